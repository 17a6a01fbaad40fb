//! Announcing roots to the DHT: durable, paced, bounded.
//!
//! [`store`] holds the roots on disk, in a [`mod@file`] that remembers a failed sync, [`pacer`] says when, [`worker`] does
//! it: one task that takes the roots that are due, asks the swarm to announce each, and writes down when it is due
//! again. [`Provided`] is what the DHT's server side answers from.
//!
//! A crash loses at most the results of the last seconds: those roots are announced once more. Nothing is announced
//! while the node is offline or knows no peer of the DHT; the roots stay due. While the disk is full the results wait in
//! memory, and with them what would be announced next; a failed sync ends the node.

pub(crate) mod file;
pub(crate) mod pacer;
pub(crate) mod store;
pub(crate) mod worker;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hasher as _};

use parking_lot::RwLock;

/// Which multihashes are announced, in eight bytes each, so that a million of them stay in memory.
///
/// A keyed hash stands for the multihash. Two that collide (one in 10^13 for a million roots) make us claim a root that
/// we do not have; the key, which is new at each start, keeps strangers from making them collide.
pub(crate) struct Provided {
    key: [u8; 16],
    hashes: RwLock<HashSet<u64>>,
}

impl Provided {
    pub(crate) fn new(key: [u8; 16]) -> Self {
        Self { key, hashes: RwLock::default() }
    }

    fn hash(&self, multihash: &[u8]) -> u64 {
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.key);
        hasher.write(multihash);
        hasher.finish()
    }

    pub(crate) fn insert(&self, multihash: &[u8]) {
        self.hashes.write().insert(self.hash(multihash));
    }

    pub(crate) fn remove(&self, multihash: &[u8]) {
        self.hashes.write().remove(&self.hash(multihash));
    }

    pub(crate) fn clear(&self) {
        self.hashes.write().clear();
    }

    pub(crate) fn contains(&self, multihash: &[u8]) -> bool {
        self.hashes.read().contains(&self.hash(multihash))
    }

    pub(crate) fn len(&self) -> u64 {
        self.hashes.read().len() as u64
    }
}
