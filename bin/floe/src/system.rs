//! The machine: the real clock and the real randomness, which every other part takes as arguments, and the bound
//! on open files.

use std::time::{Duration, Instant, SystemTime};

use floe_core::clock::BoxFuture;
use floe_core::ports::Entropy;
use floe_core::{Clock, Timestamp};

use crate::limits;

/// The clock of this machine.
#[derive(Debug)]
pub(crate) struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic side begins at zero now.
    #[expect(clippy::disallowed_methods, reason = "this is the adapter that makes the clock")]
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter that makes the clock")]
    fn now(&self) -> Timestamp {
        // A clock before 1970 is a machine that does not know the time yet: the epoch is what it knows.
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_))
    }
}

/// The operating system's random bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, out: &mut [u8]) {
        use rand::TryRng as _;
        // Keys and tokens are made of these bytes: without them there is no safe way on, and Linux gives them
        // always once it has booted.
        rand::rngs::SysRng.try_fill_bytes(out).expect("the operating system gives random bytes");
    }
}

/// From now on, files that this process makes are for its owner alone, the databases of the libraries included:
/// a data directory made by hand may be open to others.
pub(crate) fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Raises the soft bound on open files towards [`limits::OPEN_FILES`]: many systems begin with 1024, which 512
/// connections and the packs come close to. Failing is no error; connections are bounded anyway.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut bound = getrlimit(Resource::Nofile);
    let wanted = bound.maximum.map_or(limits::OPEN_FILES, |hard| hard.min(limits::OPEN_FILES));
    if bound.current.is_some_and(|soft| soft < wanted) {
        bound.current = Some(wanted);
        if let Err(error) = setrlimit(Resource::Nofile, bound) {
            tracing::warn!(%error, wanted, "cannot raise the bound on open files to {wanted}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_past_2024_and_its_monotonic_side_moves_on() {
        let clock = SystemClock::new();
        assert!(clock.now() > Timestamp::from_millis(1_704_067_200_000));
        let first = clock.monotonic();
        std::thread::sleep(Duration::from_millis(2));
        assert!(clock.monotonic() > first);
    }

    #[test]
    fn random_bytes_differ() {
        let (mut one, mut two) = ([0; 32], [0; 32]);
        SystemEntropy.fill(&mut one);
        SystemEntropy.fill(&mut two);
        assert!(one != two && one != [0; 32]);
    }
}
