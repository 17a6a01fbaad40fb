//! How well a storage provider has kept its word: a score that placement prefers by, and rest after failures. A pure
//! function.
//!
//! ```text
//!   score   0 ────────────── 500 ────────────── 1,000
//!                            ^ begins            └── sealed in time, again and again
//!   rest    none, none, 20 epochs, 40, 80, … at most a day, by failures in a row; any success ends it
//! ```
//!
//! One failure is bad luck; from the [`FAILURES_BORNE`]th in a row on the provider rests, longer each time (a circuit
//! breaker). What it refuses because it has too much to do takes little of its score, what it promised and did not keep
//! takes much.

use crate::units::Epoch;

/// What a provider did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A replica is active.
    Kept,
    /// It answered as it should.
    Answered,
    /// It refused a deal.
    Refused,
    /// It wants less now: it rests at once.
    Busy,
    /// It could not be reached, or did not speak the protocol.
    Unreachable,
    /// It accepted a deal and did not publish or seal it, or it lost a sector.
    Broken,
}

/// Failures in a row that cost no rest.
pub const FAILURES_BORNE: u32 = 2;
/// Epochs of the first rest; each failure more doubles it.
pub const REST_FIRST: i64 = 20;
/// Epochs of the longest rest: a day.
pub const REST_MOST: i64 = 2_880;

/// What is known of a provider from what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// 0 to 1,000.
    pub score: u16,
    /// In a row.
    pub failures: u32,
    /// It is asked for nothing until then.
    pub rests_until: Option<Epoch>,
}

impl Default for Standing {
    /// Of one that is not known yet.
    fn default() -> Self {
        Self { score: 500, failures: 0, rests_until: None }
    }
}

impl Standing {
    /// The standing after one thing more.
    #[must_use]
    pub fn after(self, outcome: Outcome, now: Epoch) -> Self {
        let score = i64::from(self.score);
        let score = match outcome {
            Outcome::Kept => score + (1_000 - score) / 8 + 1,
            Outcome::Answered => score,
            Outcome::Busy => score - score / 64,
            Outcome::Refused => score - score / 16,
            Outcome::Unreachable => score - score / 16,
            Outcome::Broken => score - score / 4,
        };
        let score = u16::try_from(score.clamp(0, 1_000)).unwrap_or(0);
        let failures = match outcome {
            Outcome::Kept | Outcome::Answered => 0,
            _ => self.failures.saturating_add(1),
        };
        let borne = if outcome == Outcome::Busy { 0 } else { FAILURES_BORNE };
        let rests_until = (failures > borne).then(|| now.plus(rest(failures - borne)));
        Self { score, failures, rests_until }
    }
}

/// Epochs of the `nth` rest in a row.
fn rest(nth: u32) -> i64 {
    let doublings = nth.saturating_sub(1).min(16);
    REST_FIRST.saturating_mul(1_i64 << doublings).min(REST_MOST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(outcomes: &[Outcome]) -> Standing {
        outcomes
            .iter()
            .fold(Standing::default(), |standing, outcome| standing.after(*outcome, Epoch::new(100)))
    }

    #[test]
    fn two_failures_are_borne_and_then_it_rests_for_longer_each_time() {
        use Outcome::Unreachable;
        let rests: Vec<_> = (1..12)
            .map(|n| after(&vec![Unreachable; n]).rests_until.map_or(0, |until| until.get() - 100))
            .collect();
        assert_eq!(rests, [0, 0, 20, 40, 80, 160, 320, 640, 1_280, 2_560, 2_880]);
        assert_eq!(after(&[Unreachable, Unreachable, Unreachable, Outcome::Kept]).rests_until, None);
        assert_eq!(after(&[Outcome::Busy]).rests_until, Some(Epoch::new(120)), "it said so itself");
    }

    #[test]
    fn who_keeps_its_word_is_preferred_to_who_is_new_and_that_to_who_breaks_it() {
        let (kept, new, broken) = (after(&[Outcome::Kept]), after(&[]), after(&[Outcome::Broken]));
        assert!(kept.score > new.score && new.score > broken.score);
        assert!(after(&[Outcome::Refused]).score > broken.score, "a refusal is no broken promise");
        assert_eq!(after(&[Outcome::Answered]), new);
    }

    proptest! {
        #[test]
        fn a_score_stays_in_its_range_and_a_rest_ends(picks in proptest::collection::vec(0_usize..6, 0..200)) {
            let all = [
                Outcome::Kept, Outcome::Answered, Outcome::Refused,
                Outcome::Busy, Outcome::Unreachable, Outcome::Broken,
            ];
            let mut standing = Standing::default();
            for (pick, now) in picks.into_iter().zip(0..) {
                let now = Epoch::new(now);
                standing = standing.after(all[pick], now);
                prop_assert!(standing.score <= 1_000);
                prop_assert!(standing.rests_until.is_none_or(|until| until.since(now) <= REST_MOST.unsigned_abs()));
            }
        }
    }
}
