//! The chain and who listens to it: the one lock around the model, and the faults of what the node shows.
//!
//! Providers see the chain as it is. Clients see what the node shows: the same, or a fork of it that nobody feeds
//! (stale), or another network. Every change is made under the lock and told to the listeners in order.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::chain::{Chain, Genesis, HeadChange};
use crate::faults::{NodeFaults, RpcFault};
use crate::limits::{HEAD_CHANGES, WALLET_KEYS};
use crate::wire::address::Address;
use crate::wire::key::{Key, Kind};

/// Steps of the head that happened together.
pub(crate) type Changes = std::sync::Arc<[HeadChange]>;

/// The node.
pub(crate) struct Node {
    inner: Mutex<Inner>,
    real: broadcast::Sender<Changes>,
    shown: broadcast::Sender<Changes>,
}

struct Inner {
    chain: Chain,
    /// What clients see instead.
    instead: Option<Chain>,
    faults: NodeFaults,
    wallet: Wallet,
}

/// The node's own keys.
pub(crate) struct Wallet {
    seed: u64,
    keys: BTreeMap<Address, Key>,
    default: Address,
}

impl Wallet {
    fn new(seed: u64, default: Key) -> Self {
        let address = default.address();
        Self { seed, keys: BTreeMap::from([(address, default)]), default: address }
    }

    /// A new key. None when there are too many.
    pub(crate) fn create(&mut self, kind: Kind) -> Option<Address> {
        let count = self.keys.len();
        let key = Key::from_seed(format!("wallet {count} of {}", self.seed).as_bytes(), kind);
        let address = key.address();
        (count < WALLET_KEYS).then(|| {
            self.keys.insert(address, key);
            address
        })
    }

    pub(crate) fn key(&self, address: Address) -> Option<&Key> {
        self.keys.get(&address)
    }

    pub(crate) fn addresses(&self) -> Vec<Address> {
        self.keys.keys().copied().collect()
    }

    pub(crate) fn default_address(&self) -> Address {
        self.default
    }
}

impl Node {
    pub(crate) fn new(genesis: Genesis, client: Key) -> Self {
        let wallet = Wallet::new(genesis.seed, client);
        let chain = Chain::new(genesis);
        let inner = Inner { chain, instead: None, faults: NodeFaults::default(), wallet };
        Self {
            inner: Mutex::new(inner),
            real: broadcast::channel(HEAD_CHANGES).0,
            shown: broadcast::channel(HEAD_CHANGES).0,
        }
    }

    /// The chain as it is.
    pub(crate) fn chain<T>(&self, look: impl FnOnce(&mut Chain) -> T) -> T {
        look(&mut self.inner.lock().chain)
    }

    /// The chain as clients see it, and the wallet.
    pub(crate) fn shown<T>(&self, look: impl FnOnce(&mut Chain, &mut Wallet) -> T) -> T {
        let inner = &mut *self.inner.lock();
        look(inner.instead.as_mut().unwrap_or(&mut inner.chain), &mut inner.wallet)
    }

    /// The changes that providers follow.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Changes> {
        self.real.subscribe()
    }

    /// The head that clients see, and every change from there on: none is missed and none comes twice.
    pub(crate) fn follow_shown<T>(
        &self,
        look: impl FnOnce(&Chain) -> T,
    ) -> (T, broadcast::Receiver<Changes>) {
        let inner = self.inner.lock();
        let chain = inner.instead.as_ref().unwrap_or(&inner.chain);
        (look(chain), self.shown.subscribe())
    }

    /// Some epochs with a block each.
    pub(crate) fn advance(&self, epochs: u64) {
        for _ in 0..epochs {
            self.change(|chain| Some(vec![chain.advance()]));
        }
    }

    /// A block that many epochs on, and none between.
    pub(crate) fn skip(&self, epochs: u64) {
        self.change(|chain| Some(vec![chain.skip(epochs)]));
    }

    /// What a unit of gas costs from the next tipset on.
    pub(crate) fn set_base_fee(&self, base_fee: i128) {
        self.inner.lock().chain.base_fee = base_fee;
    }

    /// Forgets what waits in the pool.
    pub(crate) fn forget_pool(&self) {
        self.inner.lock().chain.forget_pool();
    }

    /// See [`Chain::reorg`]. False where it cannot be.
    pub(crate) fn reorg(&self, depth: usize, keep: bool) -> bool {
        let mut inner = self.inner.lock();
        let Some(changes) = inner.chain.reorg(depth, keep) else { return false };
        self.tell(&inner, changes.into());
        true
    }

    fn change(&self, make: impl Fn(&mut Chain) -> Option<Vec<HeadChange>>) {
        let mut inner = self.inner.lock();
        if let Some(changes) = make(&mut inner.chain) {
            self.tell(&inner, changes.into());
        }
        // Another network goes on as well; a stale node does not.
        if inner.faults.wrong_chain
            && let Some(changes) = inner.instead.as_mut().and_then(make)
        {
            // Nobody may be listening.
            let _ = self.shown.send(changes.into());
        }
    }

    fn tell(&self, inner: &Inner, changes: Changes) {
        if inner.instead.is_none() {
            // Nobody may be listening.
            let _ = self.shown.send(std::sync::Arc::clone(&changes));
        }
        let _ = self.real.send(changes);
    }

    /// Sets the faults of the node.
    pub(crate) fn set_faults(&self, faults: NodeFaults) {
        let inner = &mut *self.inner.lock();
        inner.chain.hold_messages = faults.hold_messages;
        let (was_wrong, was_stale) = (inner.faults.wrong_chain, inner.faults.stale);
        if faults.wrong_chain {
            if !was_wrong {
                inner.instead = Some(other_network(&inner.chain));
            }
        } else if faults.stale {
            if was_wrong || !was_stale {
                inner.instead = Some(inner.chain.clone());
            }
        } else {
            inner.instead = None;
        }
        inner.faults = faults;
    }

    pub(crate) fn faults(&self) -> NodeFaults {
        self.inner.lock().faults.clone()
    }

    /// The fault of this call, counted.
    pub(crate) fn fault_of(&self, method: &str) -> Option<RpcFault> {
        self.inner.lock().faults.of(method)
    }

    /// Whether the node would say that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.inner.lock().instead.is_none()
    }
}

/// A chain of another network, as high as this one.
fn other_network(chain: &Chain) -> Chain {
    let ours = chain.genesis();
    let mut other = Chain::new(Genesis {
        seed: ours.seed.wrapping_add(1),
        network: format!("not-{}", ours.network),
        miners: ours.miners.clone(),
        ..ours.clone()
    });
    other.skip(chain.head().height.unsigned_abs());
    other
}
