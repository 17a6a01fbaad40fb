//! Follows the head over the subscription, and says down to which height everything that was seen is void. A change that
//! is delivered twice changes nothing; one that does not fit onto what is known asks for the head anew.

use std::collections::VecDeque;

use crate::rpc::answers::{HeadChange, HeadChangeKind, TipSet};
use crate::types::{Epoch, TipSetKey};

/// What a message of the subscription means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeadMove {
    /// Nothing new.
    Same,
    /// The chain grew.
    Forward,
    /// It was rewound: whatever was seen above this height is void, and is to be looked at anew.
    Reorg {
        /// The highest tipset that still stands.
        down_to: Epoch,
    },
    /// The message does not fit onto what is known: ask for the head, and take everything that is not final for void.
    Lost,
}

/// Follows the head over the subscription. Pure: no IO.
#[derive(Debug)]
pub struct HeadTracker {
    /// From the oldest to the head.
    recent: VecDeque<(Epoch, TipSetKey)>,
    keep: usize,
}

impl HeadTracker {
    /// Keeps what may still be undone: so many epochs, which are [`Rules::finality_lookback`].
    ///
    /// [`Rules::finality_lookback`]: super::Rules::finality_lookback
    pub fn new(finality_lookback: i64) -> Self {
        let keep = usize::try_from(finality_lookback).unwrap_or(usize::MAX).saturating_add(1);
        Self { recent: VecDeque::new(), keep }
    }

    /// The head.
    pub fn head(&self) -> Option<&(Epoch, TipSetKey)> {
        self.recent.back()
    }

    /// Takes one message.
    pub fn take(&mut self, changes: &[HeadChange]) -> HeadMove {
        let before = self.head().cloned();
        let mut lowest = None;
        for change in changes {
            let fits = match change.kind {
                HeadChangeKind::Current => self.begin(&change.val),
                HeadChangeKind::Apply => self.apply(&change.val),
                HeadChangeKind::Revert => self.revert(&change.val, &mut lowest),
            };
            if !fits {
                self.recent.clear();
                return HeadMove::Lost;
            }
        }
        match lowest {
            Some(down_to) => HeadMove::Reorg { down_to },
            None if self.head() == before.as_ref() => HeadMove::Same,
            None => HeadMove::Forward,
        }
    }

    /// A new subscription begins: where its head continues ours nothing is lost.
    fn begin(&mut self, head: &TipSet) -> bool {
        if self.recent.is_empty() {
            self.push(head);
            return true;
        }
        self.apply(head)
    }

    fn apply(&mut self, tipset: &TipSet) -> bool {
        match self.head() {
            // Delivered twice.
            Some((_, key)) if *key == tipset.key => true,
            Some((height, key)) if *key == tipset.parents && *height < tipset.height => {
                self.push(tipset);
                true
            }
            _ => false,
        }
    }

    fn revert(&mut self, tipset: &TipSet, lowest: &mut Option<Epoch>) -> bool {
        match self.recent.back() {
            Some((_, key)) if *key == tipset.key => {
                self.recent.pop_back();
                let below = tipset.height.plus(-1);
                let stands = self.recent.back().map_or(below, |(height, _)| *height);
                *lowest = Some(lowest.map_or(stands, |lowest| lowest.min(stands)));
                true
            }
            // Delivered twice: it is not part of our chain any more.
            Some((_, key)) => *key == tipset.parents,
            None => false,
        }
    }

    fn push(&mut self, tipset: &TipSet) {
        self.recent.push_back((tipset.height, tipset.key.clone()));
        while self.recent.len() > self.keep {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::AttoFil;
    use crate::types::cid::blake2b_cid;
    use proptest::prelude::*;

    fn key(name: &str) -> TipSetKey {
        TipSetKey::new(vec![blake2b_cid(name.as_bytes())]).unwrap()
    }

    fn tipset(height: i64, name: &str, parent: &str) -> TipSet {
        TipSet {
            key: key(name),
            height: Epoch::new(height),
            timestamp: 30 * height as u64,
            parents: key(parent),
            base_fee: AttoFil::ZERO,
        }
    }

    fn change(kind: HeadChangeKind, height: i64, name: &str, parent: &str) -> HeadChange {
        HeadChange { kind, val: tipset(height, name, parent) }
    }

    #[test]
    fn the_head_is_followed_and_a_reorg_says_what_is_void() {
        use HeadChangeKind::{Apply, Current, Revert};
        let mut tracker = HeadTracker::new(900);
        assert_eq!(tracker.take(&[change(Current, 10, "a", "z")]), HeadMove::Forward);
        assert_eq!(tracker.take(&[change(Apply, 11, "b", "a")]), HeadMove::Forward);
        assert_eq!(tracker.take(&[change(Apply, 11, "b", "a")]), HeadMove::Same, "delivered twice");
        // Height 12 is a null round.
        assert_eq!(tracker.take(&[change(Apply, 13, "c", "b")]), HeadMove::Forward);
        let reorg = [change(Revert, 13, "c", "b"), change(Revert, 11, "b", "a"), change(Apply, 12, "d", "a")];
        assert_eq!(tracker.take(&reorg), HeadMove::Reorg { down_to: Epoch::new(10) });
        assert_eq!(tracker.head().unwrap().1, key("d"));
        assert_eq!(tracker.take(&[change(Apply, 20, "y", "x")]), HeadMove::Lost, "a gap");
        assert!(tracker.head().is_none());
        assert_eq!(tracker.take(&[change(Revert, 20, "y", "x")]), HeadMove::Lost);
    }

    #[test]
    fn a_new_subscription_that_does_not_continue_is_a_loss() {
        use HeadChangeKind::Current;
        let mut tracker = HeadTracker::new(900);
        tracker.take(&[change(Current, 10, "a", "z")]);
        assert_eq!(tracker.take(&[change(Current, 10, "a", "z")]), HeadMove::Same);
        assert_eq!(tracker.take(&[change(Current, 11, "b", "a")]), HeadMove::Forward);
        assert_eq!(tracker.take(&[change(Current, 15, "f", "e")]), HeadMove::Lost);
    }

    proptest! {
        /// A reorg of any depth within finality: what stands is what both chains share.
        #[test]
        fn reorgs_of_any_depth_are_followed(depth in 1..900_i64, length in 1..20_i64) {
            let (tip, name) = (1_000, |height: i64| format!("m{height}"));
            let mut tracker = HeadTracker::new(900);
            tracker.take(&[change(HeadChangeKind::Current, 0, &name(0), "z")]);
            for height in 1..=tip {
                tracker.take(&[change(HeadChangeKind::Apply, height, &name(height), &name(height - 1))]);
            }
            let mut changes: Vec<_> = (0..depth)
                .map(|i| change(HeadChangeKind::Revert, tip - i, &name(tip - i), &name(tip - i - 1)))
                .collect();
            let base = tip - depth;
            let fork = |height: i64| if height == base { name(base) } else { format!("f{height}") };
            changes.extend((base + 1..=base + length).map(|h| change(HeadChangeKind::Apply, h, &fork(h), &fork(h - 1))));
            prop_assert_eq!(tracker.take(&changes), HeadMove::Reorg { down_to: Epoch::new(base) });
            prop_assert_eq!(&tracker.head().unwrap().1, &key(&fork(base + length)));
            prop_assert!(tracker.recent.len() <= 901);
        }
    }
}
