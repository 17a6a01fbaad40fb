//! When to try again, and when not to: pure functions of what an attempt brought.
//!
//! Only progress counts, and only time in which it was looked for. A pin whose blocks come slowly may take weeks; one
//! that gets nothing waits longer after each attempt, wakes at once when a peer turns up that may have it, and fails
//! only after it was searched for over `pin.give_up_after` without a single block. So each attempt has a time that it
//! counts for ([`searched`]), and the rows add them up, for each pin from its own beginning.

use std::time::Duration;

use crate::limits::{
    ATTEMPTS_AT_LEAST, BACKOFF_FIRST, BACKOFF_JITTER_PERCENT, BACKOFF_MOST, SEARCHED_PER_ATTEMPT,
};

/// What is known when an attempt ends without the whole DAG.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// Attempts before this one.
    pub(crate) earlier: u32,
    /// Whether a block came in this one.
    pub(crate) progressed: bool,
    /// What is left of `pin.give_up_after` for the pin that waits longest.
    pub(crate) left: Duration,
    /// A random number, for the jitter.
    pub(crate) random: u64,
}

impl Attempt {
    /// How long to wait until the next.
    pub(crate) fn wait(&self) -> Duration {
        if self.progressed {
            return wait(0, self.random);
        }
        let full = wait(self.earlier, self.random);
        // The last attempt for a pin is made when its time is up, not up to 12 minutes later. With nothing left it
        // was this one, and the next is for others.
        if self.left.is_zero() { full } else { full.min(self.left) }
    }
}

/// What an attempt counts for that ends so long after the one before it, or after it could begin. A longer time was no
/// search, and no time is so short that [`ATTEMPTS_AT_LEAST`] are not made in it.
pub(crate) fn searched(elapsed: Duration, give_up_after: Duration) -> Duration {
    let share = Duration::from_millis(1) + give_up_after / ATTEMPTS_AT_LEAST;
    elapsed.min(SEARCHED_PER_ATTEMPT).min(share)
}

/// The wait after `earlier` attempts without a block.
fn wait(earlier: u32, random: u64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1u32.checked_shl(earlier.min(16)).unwrap_or(u32::MAX));
    jittered(doubled.min(BACKOFF_MOST), random)
}

/// `full`, less up to [`BACKOFF_JITTER_PERCENT`].
pub(crate) fn jittered(full: Duration, random: u64) -> Duration {
    let millis = u64::try_from(full.as_millis()).unwrap_or(u64::MAX);
    let most_off = millis / 100 * BACKOFF_JITTER_PERCENT;
    Duration::from_millis(millis - random % (most_off + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn attempt(earlier: u32, left: Duration) -> Attempt {
        Attempt { earlier, progressed: false, left, random: 0 }
    }

    #[test]
    fn t05_waits_double_up_to_twelve_minutes() {
        let waits: Vec<u64> = (0..8).map(|n| attempt(n, DAY).wait().as_secs()).collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 720, 720, 720]);
        assert_eq!(Attempt { progressed: true, ..attempt(7, DAY) }.wait().as_secs(), 30);
    }

    #[test]
    fn t05_the_last_attempt_is_when_the_time_is_up() {
        assert_eq!(attempt(200, 5 * MINUTE).wait(), 5 * MINUTE);
        assert_eq!(attempt(200, Duration::ZERO).wait(), BACKOFF_MOST, "for the others");
    }

    /// A weekend with the machine off, a day behind others in the queue: each counted as if it had been searched.
    #[test]
    fn t05_an_attempt_counts_for_a_quarter_of_an_hour_at_most_and_never_for_all_of_the_time() {
        assert_eq!(searched(4 * MINUTE, DAY), 4 * MINUTE);
        for elapsed in [14 * MINUTE, 15 * MINUTE, DAY, Duration::MAX] {
            assert_eq!(searched(elapsed, DAY), 14 * MINUTE);
        }
        for give_up_after in [1, 2, 3, 1_000, 60_000, 3_600_000].map(Duration::from_millis) {
            let most = searched(DAY, give_up_after);
            assert!(2 * most < give_up_after || give_up_after < Duration::from_millis(9));
            assert!(3 * most >= give_up_after.min(42 * MINUTE), "{give_up_after:?}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_is_never_shorter_than_three_quarters_nor_longer_than_the_most(n: u32, random: u64) {
            let w = wait(n, random);
            prop_assert!(w >= BACKOFF_FIRST * 3 / 4);
            prop_assert!(w <= BACKOFF_MOST);
        }
    }
}
