//! Which network this is, and what its rules are: pinned at the first start, and never lower than the network's own
//! where money is real.

use std::fmt;

use floe_core::{Cid, Timestamp};

use super::ChainError;
use crate::limits::{FINALITY, MAX_HEAD_AGE, MAX_HEAD_LEAD};
use crate::rpc::answers::TipSet;
use crate::rpc::{Lotus, RpcError};
use crate::types::Epoch;

/// Seconds of one epoch.
pub const EPOCH_SECONDS: u64 = 30;

/// The name of the network where money is real.
const MAINNET: &str = "mainnet";
/// Its first block.
const MAINNET_GENESIS: &str = "bafy2bzacecnamqgqmifpluoeldx7zzglxcljo6oja4vrmtj7432rphldpdmm2";
/// When that was made, in seconds since the Unix epoch: 2020-08-24T22:00:00Z.
const MAINNET_BEGAN: u64 = 1_598_306_400;

/// Which network a node is on. Written down at the first start, compared at each later one and after each reconnection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPin {
    /// As the node names it.
    pub name: String,
    /// Its first block.
    pub genesis: Cid,
}

impl NetworkPin {
    /// What a node says of itself.
    ///
    /// # Errors
    /// [`ChainError::NameWithoutGenesis`] where the name is mainnet's or the genesis is, and not both.
    pub fn new(name: &str, genesis: Cid) -> Result<Self, ChainError> {
        let pin = Self { name: crate::words::cut(name), genesis };
        if (pin.name == MAINNET) != (pin.genesis.to_string() == MAINNET_GENESIS) {
            return Err(ChainError::NameWithoutGenesis(pin.name));
        }
        Ok(pin)
    }

    /// Asks a node.
    ///
    /// # Errors
    /// [`ChainError`]; also where the name is mainnet's or the genesis is, and not both.
    pub async fn of(lotus: &Lotus) -> Result<Self, ChainError> {
        Ok(Network::of(lotus).await?.pin)
    }

    /// Whether money is real here.
    pub fn is_mainnet(&self) -> bool {
        self.name == MAINNET
    }

    /// Compares a node with what was written down.
    ///
    /// # Errors
    /// [`ChainError::WrongNetwork`].
    pub fn check(&self, found: &Self) -> Result<(), ChainError> {
        if self == found {
            return Ok(());
        }
        Err(ChainError::WrongNetwork { pinned: Box::new(self.clone()), found: Box::new(found.clone()) })
    }
}

impl fmt::Display for NetworkPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (genesis {})", self.name, self.genesis)
    }
}

/// A network as a node shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Which one.
    pub pin: NetworkPin,
    /// When its first block was made, in seconds since the Unix epoch. Each epoch is 30 s after the one before, so that
    /// a head's time says its height.
    pub began: u64,
}

impl Network {
    /// Asks a node.
    ///
    /// # Errors
    /// [`ChainError`]; also where the name is mainnet's or the genesis is, and not both.
    pub async fn of(lotus: &Lotus) -> Result<Self, ChainError> {
        let (name, genesis) = (lotus.network_name().await?, lotus.genesis().await?);
        let malformed =
            |reason: &str| RpcError::Malformed { method: "Filecoin.ChainGetGenesis", reason: reason.into() };
        let [cid] = genesis.key.blocks() else { return Err(malformed("a genesis of several blocks").into()) };
        if genesis.height != Epoch::default() {
            return Err(malformed("a genesis that is not at epoch 0").into());
        }
        let pin = NetworkPin::new(&name, *cid)?;
        if pin.is_mainnet() && genesis.timestamp != MAINNET_BEGAN {
            return Err(malformed("mainnet's genesis at another time than mainnet's").into());
        }
        Ok(Self { pin, began: genesis.timestamp })
    }
}

/// What counts on this network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    finality_lookback: i64,
    stalled_clock: bool,
}

impl Rules {
    /// The rules of a network. `test_network` and `finality_lookback` are the operator's settings of that name.
    ///
    /// # Errors
    /// [`ChainError::TestRulesOnMainnet`], [`ChainError::FinalityTooShort`].
    pub fn new(pin: &NetworkPin, test_network: bool, finality_lookback: i64) -> Result<Self, ChainError> {
        if test_network && pin.is_mainnet() {
            return Err(ChainError::TestRulesOnMainnet);
        }
        if finality_lookback < if test_network { 1 } else { FINALITY } {
            return Err(ChainError::FinalityTooShort(finality_lookback));
        }
        Ok(Self { finality_lookback, stalled_clock: test_network })
    }

    /// Epochs behind the head at which state counts.
    pub fn finality_lookback(&self) -> i64 {
        self.finality_lookback
    }

    /// Whether the head is at the height of its time, and as old as a head may be. `began` is [`Network::began`].
    ///
    /// # Errors
    /// [`ChainError::OddHeight`], [`ChainError::Stale`], [`ChainError::Ahead`].
    pub fn check_head(&self, head: &TipSet, began: u64, now: Timestamp) -> Result<(), ChainError> {
        if self.stalled_clock {
            return Ok(());
        }
        if time_of(head.height, began) != Some(head.timestamp) {
            return Err(ChainError::OddHeight { height: head.height, timestamp: head.timestamp });
        }
        let epochs = |seconds: u64| i64::try_from(seconds / EPOCH_SECONDS).unwrap_or(i64::MAX);
        let now = now.as_millis() / 1_000;
        let (age, lead) =
            (epochs(now.saturating_sub(head.timestamp)), epochs(head.timestamp.saturating_sub(now)));
        if age > MAX_HEAD_AGE {
            return Err(ChainError::Stale { height: head.height, age });
        }
        if lead > MAX_HEAD_LEAD {
            return Err(ChainError::Ahead { height: head.height, lead });
        }
        Ok(())
    }
}

/// When an epoch's blocks are made: exact by consensus, null rounds or not.
fn time_of(height: Epoch, began: u64) -> Option<u64> {
    let epochs = u64::try_from(height.get()).ok()?;
    epochs.checked_mul(EPOCH_SECONDS)?.checked_add(began)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AttoFil, Epoch, TipSetKey};

    fn pin(name: &str, genesis: &str) -> NetworkPin {
        NetworkPin::new(name, genesis.parse().unwrap()).unwrap()
    }

    fn head() -> TipSet {
        let (key, parents) = (TipSetKey::HEAD, TipSetKey::HEAD);
        TipSet { key, height: Epoch::new(1_000), timestamp: 30_000, parents, base_fee: AttoFil::ZERO }
    }

    const OTHER: &str = "bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg";

    #[test]
    fn rules_for_tests_are_refused_on_mainnet() {
        let main = pin(MAINNET, MAINNET_GENESIS);
        assert_eq!(Rules::new(&main, true, 900), Err(ChainError::TestRulesOnMainnet));
        assert_eq!(Rules::new(&main, false, 899), Err(ChainError::FinalityTooShort(899)));
        assert!(Rules::new(&main, false, 900).is_ok() && Rules::new(&main, false, 901).is_ok());
        let test = pin("calibrationnet", OTHER);
        assert_eq!(Rules::new(&test, false, 10), Err(ChainError::FinalityTooShort(10)));
        assert_eq!(Rules::new(&test, true, 0), Err(ChainError::FinalityTooShort(0)));
        assert!(main.check(&test).unwrap_err().is_fatal());
        assert_eq!(main.check(&main), Ok(()));
    }

    #[test]
    fn an_old_head_and_one_from_the_future_pause_spending() {
        let strict = Rules { finality_lookback: 900, stalled_clock: false };
        let at = |seconds: u64| strict.check_head(&head(), 0, Timestamp::from_millis(seconds * 1_000));
        let made = 30_000;
        assert_eq!(at(made), Ok(()));
        assert_eq!(at(made + 5 * 30 + 29), Ok(()));
        assert_eq!(at(made + 6 * 30), Err(ChainError::Stale { height: Epoch::new(1_000), age: 6 }));
        assert_eq!(at(made - 2 * 30 - 29), Ok(()));
        assert_eq!(at(made - 3 * 30), Err(ChainError::Ahead { height: Epoch::new(1_000), lead: 3 }));
        // The recorded node's head is 116 days behind.
        assert_eq!(
            Rules::new(&pin("testing", OTHER), true, 900).unwrap().check_head(
                &head(),
                7,
                Timestamp::from_millis(u64::MAX)
            ),
            Ok(())
        );
    }

    /// A node gave a head of now at a height of the next century. Only its time was looked at, so that the height was
    /// believed and written down: every start epoch came out absurd, and the true head after it counted as fallen back.
    #[test]
    fn t38_a_head_that_is_not_at_the_height_of_its_time_is_refused() {
        let strict = Rules { finality_lookback: 900, stalled_clock: false };
        let began = 1_700_000_000;
        let at = |height: i64, timestamp: u64| {
            let head = TipSet { height: Epoch::new(height), timestamp, ..head() };
            strict.check_head(&head, began, Timestamp::from_millis(timestamp * 1_000))
        };
        let now = began + 30 * 1_000;
        assert_eq!(at(1_000, now), Ok(()));
        for height in [-1, 0, 999, 1_001, 4_000_000, i64::MAX] {
            let odd = ChainError::OddHeight { height: Epoch::new(height), timestamp: now };
            assert_eq!(at(height, now), Err(odd), "{height}");
        }
        assert!(matches!(at(1_000, now + 29), Err(ChainError::OddHeight { .. })), "between two epochs");
    }

    /// A node that says "mainnet" over the genesis of a test network, and the other way round.
    #[test]
    fn a_name_and_a_genesis_belong_together() {
        let pinned = |name: &str, genesis: &str| NetworkPin::new(name, genesis.parse().unwrap());
        assert_eq!(pinned(MAINNET, OTHER), Err(ChainError::NameWithoutGenesis(MAINNET.into())));
        assert_eq!(pinned("testing", MAINNET_GENESIS), Err(ChainError::NameWithoutGenesis("testing".into())));
        assert!(pinned(MAINNET, MAINNET_GENESIS).unwrap().is_mainnet());
        assert!(!pinned("testing", OTHER).unwrap().is_mainnet());
    }
}
