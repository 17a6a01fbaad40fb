//! The chain at one moment: the head, and the tipset that counts. Whatever is read about money is read at one view.

use floe_core::Timestamp;

use super::{ChainError, Network, NetworkPin, Rules};
use crate::rpc::Lotus;
use crate::rpc::answers::TipSet;
use crate::types::Epoch;

/// The chain at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The newest tipset. What is read here may be undone.
    pub head: TipSet,
    /// What counts.
    pub last_final: TipSet,
}

/// The chain of one node, as far as it is believed.
#[derive(Debug)]
pub struct Chain {
    lotus: Lotus,
    rules: Rules,
    began: u64,
    highest: Epoch,
}

impl Chain {
    /// A node of the pinned network. `highest` is the highest head that was seen, also before a restart.
    ///
    /// # Errors
    /// [`ChainError`] where the node is of another network.
    pub async fn open(
        lotus: Lotus,
        pin: &NetworkPin,
        rules: Rules,
        highest: Epoch,
    ) -> Result<Self, ChainError> {
        let network = Network::of(&lotus).await?;
        pin.check(&network.pin)?;
        Ok(Self { lotus, rules, began: network.began, highest })
    }

    /// The highest head that was seen: to be written down, so that a restart does not forget it.
    pub fn highest(&self) -> Epoch {
        self.highest
    }

    /// Head and finality now. Spending pauses where this fails. Cancel safe.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn look(&mut self, now: Timestamp) -> Result<View, ChainError> {
        let head = self.lotus.head().await?;
        self.rules.check_head(&head, self.began, now)?;
        let lookback = self.rules.finality_lookback();
        if head.height < self.highest.plus(-lookback) {
            return Err(ChainError::FellBack { from: self.highest, to: head.height });
        }
        let asked = head.height.plus(-lookback);
        if asked < Epoch::default() {
            return Err(ChainError::TooYoung(head.height));
        }
        let last_final = self.lotus.tipset_at(asked, &head.key).await?;
        if last_final.height > asked {
            return Err(ChainError::NotBelow { asked, found: last_final.height });
        }
        self.highest = self.highest.max(head.height);
        Ok(View { head, last_final })
    }
}
