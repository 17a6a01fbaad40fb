//! Randomness comes in as an argument.
//!
//! [`crate::ports::Entropy`] is the port; the system's lives in the binary, [`Seeded`] is for tests and the
//! simulator.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::ports::Entropy;

/// Bytes that follow from a seed: other ones at each call, the same in each run. Guessable, so never for secrets.
#[derive(Debug)]
pub struct Seeded(AtomicU64);

impl Seeded {
    /// Begins at `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Entropy for Seeded {
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            // SplitMix64.
            let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_bytes_in_each_run_and_others_at_each_call() {
        let bytes = |of: &Seeded| {
            let mut out = [0; 20];
            of.fill(&mut out);
            out
        };
        let (one, two) = (Seeded::new(7), Seeded::new(7));
        let first = bytes(&one);
        assert_eq!(first, bytes(&two));
        assert_ne!(first, bytes(&one));
        assert_ne!(first, bytes(&Seeded::new(8)));
    }
}
