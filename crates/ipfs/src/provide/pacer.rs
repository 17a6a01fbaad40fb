//! When the next root is announced: pure, so that a million roots and a day are tested in a second.
//!
//! Every root is due [`PROVIDE_CYCLE`] after its last announcement. Waiting for that moment would
//! announce what came in a burst in a burst, day after day; so roots are taken ahead of time, the one due first
//! first, at the even rate that goes through all of them in [`PROVIDE_PACE`]. New roots and overdue ones do not
//! wait for the pace, only for a free place among the [`MAX_ANNOUNCEMENTS`] under way.
//!
//! ```text
//!   due    new (0)  ────> at once
//!          past     ────> at once
//!          later    ────> one each PROVIDE_PACE / roots, if it was announced PROVIDE_CYCLE - PROVIDE_PACE ago
//! ```

use std::time::Duration;

use floe_core::Timestamp;

use crate::limits::{MAX_ANNOUNCEMENTS, PROVIDE_CYCLE, PROVIDE_PACE, PROVIDE_RETRY};

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Announce the root that is due first.
    Announce,
    /// Ask again after this, or when a root is added.
    Wait(Duration),
    /// Ask again when an announcement ends.
    Full,
}

/// Counts what is under way and spreads what is not urgent.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    under_way: usize,
    /// When the next paced announcement may start.
    next: Timestamp,
}

impl Pacer {
    /// The next step, for `total` roots of which the first is due at `first`. After [`Step::Announce`] the
    /// announcement counts as under way.
    pub(crate) fn step(&mut self, now: Timestamp, total: u64, first: Option<Timestamp>) -> Step {
        let Some(first) = first else { return Step::Wait(PROVIDE_RETRY) };
        if self.under_way >= MAX_ANNOUNCEMENTS {
            return Step::Full;
        }
        if first > now {
            let ahead = now.after(PROVIDE_PACE);
            if first > ahead {
                return Step::Wait(first.since(ahead));
            }
            if self.next > now {
                return Step::Wait(self.next.since(now).min(first.since(now)));
            }
            let gap = PROVIDE_PACE / u32::try_from(total.max(1)).unwrap_or(u32::MAX);
            // From the planned moment and not from now, so that late wake-ups do not add up; but a long
            // sleep is not caught up in a burst either.
            let planned = self.next.max(Timestamp::from_millis(now.as_millis().saturating_sub(1_000)));
            self.next = planned.after(gap.max(Duration::from_millis(1)));
        }
        self.under_way += 1;
        Step::Announce
    }

    /// An announcement ended: when its root is due again.
    pub(crate) fn ended(&mut self, now: Timestamp, announced: bool) -> Timestamp {
        self.under_way = self.under_way.saturating_sub(1);
        now.after(if announced { PROVIDE_CYCLE } else { PROVIDE_RETRY })
    }

    #[cfg(test)]
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    /// Runs `roots` new ones for `days`, each announcement taking `takes`; returns the longest time between two
    /// announcements of one root, and the most announcements that started in one minute after the first day.
    fn run(roots: u32, days: u64, takes: Duration) -> (Duration, usize) {
        let mut pacer = Pacer::default();
        let mut due: BinaryHeap<Reverse<(u64, u32)>> = (0..roots).map(|n| Reverse((0, n))).collect();
        let mut last: Vec<Option<u64>> = vec![None; roots as usize];
        let mut ending: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
        let (mut now, mut longest) = (1u64, 0);
        let (mut minute, mut in_minute, mut busiest) = (0, 0, 0);
        while now < days * 86_400_000 {
            while let Some(Reverse((at, n))) = ending.peek().copied().filter(|Reverse((at, _))| *at <= now) {
                ending.pop();
                let again = pacer.ended(Timestamp::from_millis(at), true);
                due.push(Reverse((again.as_millis(), n)));
            }
            let first = due.peek().map(|Reverse((at, _))| Timestamp::from_millis(*at));
            let ends = ending.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
            match pacer.step(Timestamp::from_millis(now), u64::from(roots), first) {
                Step::Announce => {
                    let Reverse((_, n)) = due.pop().unwrap();
                    if let Some(before) = last[n as usize].replace(now) {
                        longest = longest.max(now - before);
                    }
                    ending.push(Reverse((now + takes.as_millis() as u64, n)));
                    if now / 60_000 != minute {
                        (minute, in_minute) = (now / 60_000, 0);
                    }
                    in_minute += 1;
                    if now > 86_400_000 {
                        busiest = busiest.max(in_minute);
                    }
                }
                Step::Wait(for_) => now = (now + for_.as_millis().max(1) as u64).min(ends.max(now + 1)),
                Step::Full => now = ends.max(now),
            }
        }
        assert!(
            last.iter()
                .all(|at| at.is_some_and(|at| now - at <= longest.max(PROVIDE_CYCLE.as_millis() as u64)))
        );
        (Duration::from_millis(longest), busiest)
    }

    #[test]
    fn a_million_roots_within_22_hours() {
        let (longest, busiest) = run(1_000_000, 3, Duration::from_secs(10));
        assert!(longest <= PROVIDE_CYCLE + Duration::from_secs(60), "{longest:?}");
        // The even rate is 833 a minute; the first day's burst (1,536 a minute) must have been spread.
        assert!(busiest < 1_000, "{busiest} in a minute");
    }

    #[test]
    fn a_few_roots_are_not_announced_without_end() {
        let mut pacer = Pacer::default();
        let now = Timestamp::from_millis(1_000_000_000);
        assert_eq!(pacer.step(now, 1, Some(Timestamp::default())), Step::Announce);
        let due = pacer.ended(now, true);
        assert_eq!(pacer.step(now, 1, Some(due)), Step::Wait(PROVIDE_CYCLE - PROVIDE_PACE));
        let (longest, _) = run(10, 4, Duration::from_secs(10));
        assert!(longest <= PROVIDE_CYCLE + Duration::from_secs(1) && longest >= PROVIDE_CYCLE - PROVIDE_PACE);
    }

    #[test]
    fn announcements_under_way_are_bounded() {
        let mut pacer = Pacer::default();
        let now = Timestamp::from_millis(1);
        for n in 0..MAX_ANNOUNCEMENTS + 1 {
            let step = pacer.step(now, 1_000_000, Some(Timestamp::default()));
            assert_eq!(step, if n < MAX_ANNOUNCEMENTS { Step::Announce } else { Step::Full });
        }
        pacer.ended(now, false);
        assert_eq!(pacer.step(now, 1_000_000, Some(Timestamp::default())), Step::Announce);
    }

    #[test]
    fn a_failed_one_is_due_after_ten_minutes() {
        let mut pacer = Pacer::default();
        let now = Timestamp::from_millis(5);
        assert_eq!(pacer.step(now, 1, Some(Timestamp::default())), Step::Announce);
        assert_eq!(pacer.ended(now, false), now.after(PROVIDE_RETRY));
        assert_eq!(pacer.under_way(), 0);
    }
}
