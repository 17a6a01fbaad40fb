//! Roots that nobody fetches now, in the order they were parked.

use std::collections::{BTreeMap, HashMap};

use floe_core::Multihash;

use crate::key::Key;
use crate::limits::{PARKED_ROOTS, hit};

/// Parked roots, bounded: the oldest go first.
#[derive(Default)]
pub(super) struct Parked {
    by_age: BTreeMap<u64, Key>,
    ages: HashMap<Key, u64>,
    next: u64,
}

impl Parked {
    /// Parks a root. Returns the root that had to go for it, or `Err` where it is parked already.
    pub(super) fn insert(&mut self, key: &Key) -> Result<Option<Key>, ()> {
        if self.ages.contains_key(key) {
            return Err(());
        }
        self.by_age.insert(self.next, key.clone());
        self.ages.insert(key.clone(), self.next);
        self.next += 1;
        if self.by_age.len() <= PARKED_ROOTS {
            return Ok(None);
        }
        hit("bitswap_parked_roots");
        let oldest = self.by_age.pop_first().map(|(_, key)| key);
        oldest.iter().for_each(|key| {
            self.ages.remove(key);
        });
        Ok(oldest)
    }

    pub(super) fn remove(&mut self, key: &Multihash) -> Option<Key> {
        self.ages.remove(key).and_then(|age| self.by_age.remove(&age))
    }

    /// The root as it was parked.
    pub(super) fn get(&self, key: &Multihash) -> Option<&Key> {
        self.ages.get_key_value(key).map(|(key, _)| key)
    }

    pub(super) fn newest(&self) -> impl Iterator<Item = &Key> {
        self.by_age.values().rev()
    }

    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    #[test]
    fn the_oldest_root_goes_first() {
        let mut parked = Parked::default();
        for i in 0..PARKED_ROOTS as u32 {
            assert_eq!(parked.insert(&key(i)), Ok(None));
        }
        assert_eq!(parked.insert(&key(0)), Err(()));
        assert_eq!(parked.insert(&key(1_000_000)), Ok(Some(key(0))));
        assert_eq!(parked.len(), PARKED_ROOTS);
        assert_eq!(parked.newest().next(), Some(&key(1_000_000)));
        assert!(parked.remove(key(1).cid().hash()).is_some());
        assert_eq!(parked.len(), PARKED_ROOTS - 1);
    }
}
