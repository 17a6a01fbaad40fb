//! How long a fetch may wait for peers: a pure function of what came, and of whether others wait for its slot.
//!
//! Where nobody does, only the time since the last block counts. Where somebody does, a fetch has a patience that time
//! without a block uses up and each block gives a part of back. So what makes progress stays however slow it is, and
//! neither a DAG that lacks one leaf nor a peer that sends a block now and then, to hold the slot, keeps it for long.
//! What came is kept either way, and the back-off brings the fetch back.

use std::time::Duration;

use super::words;
use crate::limits::{
    FIRST_BLOCK_WITHIN, FIRST_BLOCK_WITHIN_CONTENDED, NO_PROGRESS_WITHIN, PATIENCE_PER_BLOCK,
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// Since the last progress.
    lasts: Duration,
    /// Patience that is used up.
    used: Duration,
}

impl Quiet {
    /// Peers were waited for, and nothing came.
    pub(super) fn goes_on(&mut self, passed: Duration) {
        self.lasts += passed;
        // More than there is of it cannot be used up, or blocks would pay for hours in which nobody waited.
        self.used = (self.used + passed).min(FIRST_BLOCK_WITHIN);
    }

    /// So many blocks came, or there was something else to do: that ends the quiet too, and gives nothing back.
    pub(super) fn ended_by(&mut self, blocks: usize) {
        self.lasts = Duration::ZERO;
        let back = PATIENCE_PER_BLOCK.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX));
        self.used = self.used.saturating_sub(back);
    }

    /// Why it is time to park, if it is.
    pub(super) fn is_too_long(
        &self,
        got_block: bool,
        first_attempt: bool,
        contended: bool,
    ) -> Option<String> {
        let alone = if got_block { NO_PROGRESS_WITHIN } else { FIRST_BLOCK_WITHIN };
        let patience = if first_attempt { FIRST_BLOCK_WITHIN_CONTENDED } else { FIRST_BLOCK_WITHIN };
        if self.lasts >= alone || (contended && self.used >= patience) {
            return Some(match got_block {
                false => "no block came".to_owned(),
                true if self.lasts >= alone => format!("no block came for {}", words(alone)),
                true => "too few blocks came while others waited".to_owned(),
            });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Blocks that came at such intervals until it parked, of at most 1,000.
    fn blocks_every(interval: Duration, first_attempt: bool, contended: bool) -> Option<u32> {
        let mut quiet = Quiet::default();
        for came in 0..1_000 {
            let mut waited = Duration::ZERO;
            while waited < interval {
                waited += SECOND / 2;
                quiet.goes_on(SECOND / 2);
                if waited < interval && quiet.is_too_long(came > 0, first_attempt, contended).is_some() {
                    return Some(came);
                }
            }
            quiet.ended_by(1);
        }
        None
    }

    #[test]
    fn t05_slow_progress_stays_while_others_wait() {
        for first_attempt in [true, false] {
            assert_eq!(blocks_every(SECOND / 2, first_attempt, true), None);
            assert_eq!(blocks_every(4 * SECOND, first_attempt, true), None);
        }
    }

    /// A peer that sent one block every 119 s held a slot for ever, and every 19 s would have too.
    #[test]
    fn t05_a_trickle_holds_no_slot_that_others_wait_for() {
        assert_eq!(blocks_every(5 * SECOND, true, true), Some(0));
        for (interval, most) in [(119, 0), (19, 1), (8, 4), (5, 16)] {
            let came = blocks_every(interval * SECOND, false, true).expect("it parks");
            assert_eq!(came, most, "every {interval} s");
        }
        assert_eq!(blocks_every(19 * SECOND, false, false), None, "nobody waits");
    }

    #[test]
    fn t05_the_bounds_of_each_time() {
        for (got_block, first, contended, most) in [
            (false, true, false, 20),
            (true, true, false, 120),
            (false, false, false, 20),
            (true, false, false, 120),
            (false, true, true, 4),
            (true, true, true, 4),
            (false, false, true, 20),
            (true, false, true, 20),
        ] {
            let mut quiet = Quiet::default();
            quiet.goes_on(most * SECOND - SECOND / 2);
            assert_eq!(quiet.is_too_long(got_block, first, contended), None);
            quiet.goes_on(SECOND / 2);
            assert!(
                quiet.is_too_long(got_block, first, contended).is_some(),
                "{got_block} {first} {contended}"
            );
            quiet.ended_by(1);
            assert_eq!(quiet.is_too_long(got_block, first, false), None);
        }
    }
}
