//! What keeps a block from the collector before the log says so, and the other way round.
//!
//! A claim finds a block present and must be sure that it stays: it takes a hold first and looks at the index
//! afterwards. The collector decides that a block dies under the same lock: only without a hold, and from then on
//! the block is *dying*, which no claim can hold. Whoever comes first wins, and both see it (kubo#6252).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::record::{Key, Member};

#[derive(Default)]
pub(crate) struct HoldTable {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    held: HashMap<Key, u32>,
    dying: HashSet<Key>,
}

impl HoldTable {
    /// Takes a hold unless the block is dying.
    pub(crate) fn hold(&self, hash: &[u8]) -> bool {
        let mut inner = self.inner.lock();
        if inner.dying.contains(hash) {
            return false;
        }
        match inner.held.get_mut(hash) {
            Some(n) => *n += 1,
            None => drop(inner.held.insert(hash.into(), 1)),
        }
        true
    }

    pub(crate) fn release(&self, hash: &[u8]) {
        let mut inner = self.inner.lock();
        let Some(n) = inner.held.get_mut(hash) else { return };
        *n -= 1;
        if *n == 0 {
            inner.held.remove(hash);
        }
    }

    /// The collector's decision. `false`: held, not to be touched.
    pub(crate) fn condemn(&self, hash: &[u8]) -> bool {
        let mut inner = self.inner.lock();
        if inner.held.contains_key(hash) {
            return false;
        }
        inner.dying.insert(hash.into());
        true
    }

    /// The tombstones are applied, or were never written.
    pub(crate) fn buried<'a>(&self, hashes: impl Iterator<Item = &'a Key>) {
        let mut inner = self.inner.lock();
        for hash in hashes {
            inner.dying.remove(hash);
        }
    }

    /// Whether anybody holds the block now.
    pub(crate) fn is_held(&self, hash: &[u8]) -> bool {
        self.inner.lock().held.contains_key(hash)
    }
}

/// Claims that are not in the log yet. Dropping them lets go of the blocks.
pub(crate) struct Holds {
    table: Arc<HoldTable>,
    pub(crate) members: Vec<Member>,
}

impl Holds {
    pub(crate) fn new(table: Arc<HoldTable>) -> Self {
        Self { table, members: Vec::new() }
    }

    /// Takes all of them out, leaving none.
    pub(crate) fn take(&mut self) -> Self {
        Self { table: self.table.clone(), members: std::mem::take(&mut self.members) }
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.members.append(&mut other.members);
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        for member in &self.members {
            self.table.release(&member.hash);
        }
    }
}
