//! When to try again, and when not to: pure functions of what an attempt brought.
//!
//! Only progress counts. A pin whose blocks come slowly may take weeks; one that gets nothing waits longer
//! after each attempt, wakes at once when a peer turns up that may have it, and fails only after
//! `pin.give_up_after` without a single block.

use std::time::Duration;

use floe_core::Timestamp;

use crate::limits::{BACKOFF_FIRST, BACKOFF_JITTER_PERCENT, BACKOFF_MOST};

/// What is known when an attempt ends without the whole DAG.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    /// Now.
    pub(crate) now: Timestamp,
    /// When the DAG last made progress, or was first asked for.
    pub(crate) since: Timestamp,
    /// Attempts before this one.
    pub(crate) earlier: u32,
    /// Whether a block came in this one.
    pub(crate) progressed: bool,
    /// `pin.give_up_after`.
    pub(crate) give_up_after: Duration,
    /// A random number, for the jitter.
    pub(crate) random: u64,
}

impl Attempt {
    /// When to try again; `None` where the pin has had its time.
    pub(crate) fn next(&self) -> Option<Timestamp> {
        if self.progressed {
            return Some(self.now.after(wait(0, self.random)));
        }
        let give_up_at = self.since.after(self.give_up_after);
        if self.now >= give_up_at {
            return None;
        }
        // The last attempt is made when the time is up, not up to 12 minutes later.
        Some(self.now.after(wait(self.earlier, self.random)).min(give_up_at))
    }
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

    fn attempt(earlier: u32, elapsed: Duration) -> Attempt {
        let since = Timestamp::from_millis(1_000_000);
        Attempt {
            now: since.after(elapsed),
            since,
            earlier,
            progressed: false,
            give_up_after: DAY,
            random: 0,
        }
    }

    #[test]
    fn t05_waits_double_up_to_twelve_minutes() {
        let waits: Vec<u64> = (0..8)
            .map(|n| {
                let a = attempt(n, Duration::from_secs(20));
                a.next().unwrap().since(a.now).as_secs()
            })
            .collect();
        assert_eq!(waits, [30, 60, 120, 240, 480, 720, 720, 720]);
    }

    #[test]
    fn t05_gives_up_exactly_when_the_time_without_progress_is_over() {
        let ms = Duration::from_millis(1);
        assert!(attempt(200, DAY - ms).next().is_some());
        assert_eq!(attempt(200, DAY).next(), None);
        assert_eq!(attempt(200, DAY + ms).next(), None);
        let late = Attempt { progressed: true, ..attempt(200, DAY + ms) };
        assert!(late.next().is_some(), "progress keeps a pin alive");
    }

    #[test]
    fn t05_the_last_attempt_is_when_the_time_is_up() {
        let a = attempt(200, DAY - Duration::from_secs(5));
        assert_eq!(a.next(), Some(a.since.after(DAY)));
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
