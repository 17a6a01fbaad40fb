//! The memory guard: what the process uses, against its budget.
//!
//! libp2p's `memory-connection-limits` refuses new connections above its share but closes none, and the unread
//! windows of connections that are already there can grow far beyond it. So above a second, higher share
//! the node closes inbound connections, the least useful first.

use crate::limits::{MEMORY_CLOSE_BATCH, MEMORY_CLOSE_PERCENT, MEMORY_REFUSE_PERCENT};

/// The memory budget, and how to measure against it.
pub(crate) struct Memory {
    budget_bytes: usize,
    used: Box<dyn Fn() -> Option<usize> + Send + Sync>,
}

impl Memory {
    /// With `budget_bytes`, else what the machine (or the container) has.
    pub(crate) fn new(budget_bytes: Option<u64>) -> Self {
        let budget = budget_bytes.unwrap_or_else(machine_bytes);
        let used = || memory_stats::memory_stats().map(|stats| stats.physical_mem);
        Self { budget_bytes: usize::try_from(budget).unwrap_or(usize::MAX), used: Box::new(used) }
    }

    /// With another measure of what is used.
    #[cfg(test)]
    pub(crate) fn with(budget_bytes: usize, used: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self { budget_bytes, used: Box::new(move || Some(used())) }
    }

    /// From here on new connections are refused.
    pub(crate) fn refuse_bytes(&self) -> usize {
        self.budget_bytes / 100 * MEMORY_REFUSE_PERCENT
    }

    /// Whether connections must be closed now. Reads a file of the kernel, not of a disk.
    pub(crate) fn is_over(&self) -> bool {
        (self.used)().is_some_and(|used| used > self.budget_bytes / 100 * MEMORY_CLOSE_PERCENT)
    }
}

/// How many connections to close, from one look to the next.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    /// Looks in a row that found too much in use.
    over: u32,
}

impl Guard {
    /// Twice as many as at the last look, for as long as it is `over`; `None` where it is not.
    pub(crate) fn next(&mut self, over: bool) -> Option<usize> {
        if !over {
            self.over = 0;
            return None;
        }
        let batch = MEMORY_CLOSE_BATCH.saturating_mul(1 << self.over.min(16));
        self.over += 1;
        Some(batch)
    }
}

fn machine_bytes() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let container = system.cgroup_limits().map(|limits| limits.total_memory).filter(|bytes| *bytes > 0);
    container.unwrap_or(u64::MAX).min(system.total_memory().max(1 << 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t07_the_guard_at_its_boundary() {
        for (used, over) in [(599, false), (600, false), (601, true)] {
            assert_eq!(Memory::with(1_000, move || used).is_over(), over, "{used}");
        }
        assert_eq!(Memory::with(1_000, || 0).refuse_bytes(), 400);
    }

    #[test]
    fn t07_the_guard_closes_more_while_it_does_not_help() {
        let mut guard = Guard::default();
        assert_eq!(guard.next(false), None);
        for batch in [1, 2, 4, 8] {
            assert_eq!(guard.next(true), Some(batch * MEMORY_CLOSE_BATCH));
        }
        assert_eq!(guard.next(false), None);
        assert_eq!(guard.next(true), Some(MEMORY_CLOSE_BATCH), "a spike that is over is forgotten");
    }

    #[test]
    fn the_machine_is_measured() {
        let memory = Memory::new(None);
        assert!(memory.budget_bytes >= 1 << 28);
        assert!((memory.used)().is_some_and(|used| used > 1 << 20));
    }
}
