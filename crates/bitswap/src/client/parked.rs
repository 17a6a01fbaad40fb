//! Roots that nobody fetches now, in the order they were parked, and the offers of peers that have them.
//!
//! A peer is asked for a part of them only. Half of it are the newest, which somebody most likely waits for; the other
//! half goes round the older ones from peer to peer, so that each has its turn.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use floe_core::{Cid, Multihash, cid};

use super::{Action, Client, PeerNo};
use crate::behaviour::Event;
use crate::key::Key;
use crate::limits::{PARKED_ROOTS, hit};

/// Parked roots, bounded: the oldest go first.
#[derive(Default)]
pub(super) struct Parked {
    by_age: BTreeMap<u64, Key>,
    ages: HashMap<Key, u64>,
    next: u64,
    /// The age from which on the older ones have their turn.
    turn: u64,
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

    /// What the next peer is asked for.
    pub(super) fn some(&mut self, most: usize) -> Vec<Key> {
        let newest = self.by_age.iter().rev().take(most - most / 2);
        let (oldest_of_them, mut chosen) =
            newest.fold((self.next, Vec::new()), |(_, mut chosen), (age, key)| {
                chosen.push(key.clone());
                (*age, chosen)
            });
        let turn = self.turn.min(oldest_of_them);
        let others = self.by_age.range(turn..oldest_of_them).chain(self.by_age.range(..turn));
        for (age, key) in others.take(most / 2) {
            chosen.push(key.clone());
            self.turn = age + 1;
        }
        chosen
    }

    pub(super) fn len(&self) -> usize {
        self.by_age.len()
    }
}

impl Client {
    /// Offers a root to every peer from now on.
    pub(crate) fn park(&mut self, root: &Cid, now: Duration) {
        if cid::is_identity(root) || cid::check(root.hash()).is_err() {
            return;
        }
        let key = Key::new(*root);
        let Ok(evicted) = self.parked.insert(&key) else { return };
        evicted.iter().for_each(|oldest| self.unpark_at_peers(oldest));
        for peer in self.peers.values_mut() {
            if peer.ask_parked(&key, now) {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }

    /// Forgets a parked root.
    pub(crate) fn unpark(&mut self, root: &Cid) {
        if let Some(key) = self.parked.remove(root.hash()) {
            self.unpark_at_peers(&key);
        }
    }

    fn unpark_at_peers(&mut self, key: &Key) {
        let needed = self.wants.contains_key(key) || self.roots.contains_key(key);
        for peer in self.peers.values_mut() {
            if peer.unpark(key.multihash()) && !needed && peer.cancel(key) {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }

    pub(super) fn offered(&mut self, no: PeerNo, key: &Multihash) {
        let (Some(root), Some(peer)) = (self.parked.get(key), self.peers.get(&no)) else { return };
        self.actions.push(Action::Event(Box::new(Event::Offered { root: *root.cid(), peer: peer.id })));
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
        assert_eq!(parked.some(2).first(), Some(&key(1_000_000)));
        assert!(parked.remove(key(1).cid().hash()).is_some());
        assert_eq!(parked.len(), PARKED_ROOTS - 1);
    }

    /// Every peer was asked for the newest ones: with more than so many parked, a peer that had one of the others could
    /// come as often as it liked and was never asked for it.
    #[test]
    fn every_root_has_its_turn() {
        let mut parked = Parked::default();
        for i in 0..100 {
            assert_eq!(parked.insert(&key(i)), Ok(None));
        }
        let mut asked = HashMap::<Key, usize>::new();
        // The newest 10, and 10 of the 90 others.
        for _ in 0..9 {
            let some = parked.some(20);
            assert_eq!(some.len(), 20);
            assert!((90..100).all(|i| some.contains(&key(i))));
            some.into_iter().for_each(|key| *asked.entry(key).or_default() += 1);
        }
        assert!((0..90).all(|i| asked[&key(i)] == 1), "each once, before any twice");
        assert_eq!(parked.some(200).len(), 100, "all, each once, where they fit");
        // Those that go meanwhile are passed over.
        (0..95).for_each(|i| _ = parked.remove(key(i).cid().hash()));
        assert_eq!(parked.some(20).len(), 5);
        assert_eq!(Parked::default().some(20), []);
    }
}
