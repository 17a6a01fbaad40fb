//! A token bucket that may go into debt: an answer is never split, what it took too much is waited for.

use std::time::Duration;

use crate::config::EgressLimit;

/// Bytes that may go out.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: EgressLimit,
    /// In bytes; negative after an answer larger than what was left.
    level: f64,
    filled_at: Duration,
}

impl Bucket {
    pub(super) fn new(limit: EgressLimit) -> Self {
        Self { limit, level: limit.burst_bytes as f64, filled_at: Duration::ZERO }
    }

    fn level_at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.filled_at).as_secs_f64();
        let filled = self.level + passed * self.limit.bytes_per_second as f64;
        filled.min(self.limit.burst_bytes.max(1) as f64)
    }

    /// Whether anything may go out now.
    pub(super) fn is_open(&self, now: Duration) -> bool {
        self.level_at(now) > 0.0
    }

    pub(super) fn take(&mut self, bytes: usize, now: Duration) {
        self.level = self.level_at(now) - bytes as f64;
        self.filled_at = now;
    }

    /// Takes back what was taken for bytes that do not go out.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.level += bytes as f64;
    }
}
