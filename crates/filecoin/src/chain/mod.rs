//! What of the chain counts, and when spending may go on.
//!
//! - The network is pinned: its name and genesis are written down at the first start ([`NetworkPin`]), and a node of
//!   another network is refused ever after. A typing error in a URL must not spend mainnet's money.
//! - A head that is old, or ahead of our clock, pauses spending: such a node is cut off or lies. So does one whose height
//!   is not its time's ([`Network::began`] and 30 s for each epoch), and one that falls back by more than finality.
//! - State counts at finality: what money depends on is read at the tipset `finality_lookback` epochs below the head.
//! - Reorgs: [`HeadTracker`] follows the subscription and says down to which height everything that was seen is void. A
//!   change that is delivered twice, or that does not fit onto what is known, changes nothing: it asks for the head anew.
//!
//! `filecoin.test_network` permits what only tests need (see [`Rules`]), and is refused on mainnet.

mod head;
mod network;
mod view;

use crate::rpc::RpcError;
use crate::types::Epoch;

pub use head::{HeadMove, HeadTracker};
pub use network::{EPOCH_SECONDS, Network, NetworkPin, Rules};
pub use view::{Chain, View};

/// Why the chain cannot be used now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The node gave no answer, or not one that helps.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Another network than at the first start.
    #[error(
        "the Lotus node is on network {found}, and this Floe belongs to {pinned}: point filecoin.api to a node of \
         that network, or begin anew in another data directory"
    )]
    WrongNetwork {
        /// At the first start. In a box, as a CID has room for 128 bytes of digest.
        pinned: Box<NetworkPin>,
        /// The node's.
        found: Box<NetworkPin>,
    },
    /// Rules for tests, where money is real.
    #[error("filecoin.test_network is set and the node is on mainnet: unset it")]
    TestRulesOnMainnet,
    /// Finality below the network's, where money is real.
    #[error("filecoin.finality_lookback is {0}: below 900 needs filecoin.test_network")]
    FinalityTooShort(i64),
    /// The name and the genesis belong to different networks.
    #[error("the Lotus node says that it is on {0}, and its genesis is another network's")]
    NameWithoutGenesis(String),
    /// The head is old.
    #[error(
        "the head of the Lotus node (epoch {height}) is {age} epochs old: spending pauses until it has caught up"
    )]
    Stale {
        /// The head's height.
        height: Epoch,
        /// How old it is, in epochs.
        age: i64,
    },
    /// The head is ahead of time.
    #[error(
        "the head of the Lotus node (epoch {height}) is {lead} epochs ahead of the clock: check the clock of this machine"
    )]
    Ahead {
        /// The head's height.
        height: Epoch,
        /// How far ahead, in epochs.
        lead: i64,
    },
    /// The head's height and its time do not belong together.
    #[error(
        "the head of the Lotus node says epoch {height} and the time {timestamp}, which is another epoch's on this \
         network: the node lies or is broken, and spending pauses"
    )]
    OddHeight {
        /// The head's height.
        height: Epoch,
        /// Its time, in seconds since the Unix epoch.
        timestamp: u64,
    },
    /// The head fell back further than anything can.
    #[error(
        "the head of the Lotus node fell from epoch {from} to {to}, below what was final: spending pauses"
    )]
    FellBack {
        /// The highest seen.
        from: Epoch,
        /// Now.
        to: Epoch,
    },
    /// The final tipset does not lie below the head.
    #[error("the Lotus node gave a tipset at epoch {found} where one at or before {asked} was asked for")]
    NotBelow {
        /// Asked for.
        asked: Epoch,
        /// Given.
        found: Epoch,
    },
    /// The network is younger than its finality.
    #[error("nothing is final yet: the head is at epoch {0}")]
    TooYoung(Epoch),
}

impl ChainError {
    /// Whether only an operator can mend it. All else passes when the node catches up.
    pub fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::WrongNetwork { .. }
                | Self::TestRulesOnMainnet
                | Self::FinalityTooShort(_)
                | Self::NameWithoutGenesis(_)
        )
    }
}
