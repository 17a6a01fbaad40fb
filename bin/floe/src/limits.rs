//! Every bound of the binary itself. The libraries own theirs.

use std::time::Duration;

/// The most and the default time for a clean stop (`serve.stop_within`): the server drains, workers save their place,
/// stores close. systemd's own default is 90 s; the unit in docs/OPERATING.md gives 40 (limits.md, graceful drain).
pub(crate) const DRAIN: Duration = Duration::from_secs(30);

/// Tries to take the lock of the data directory, and the pause between two: a command that looks whether a node runs
/// holds it for microseconds, and must not keep one from starting.
pub(crate) const LOCK_TRIES: u32 = 5;
/// See [`LOCK_TRIES`].
pub(crate) const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How often the samples of histograms are folded into their distributions. At 10,000 requests a second they take less
/// than 1 MiB until then, and a look at a few dozen histograms costs nothing.
pub(crate) const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Free bytes that a start needs: 32 KiB of shared memory and some pages of log for the rows, and a commit of each index.
/// Half may be too little after a kill; double keeps a node off that would run.
pub(crate) const START_BYTES: u64 = 1 << 20;

/// The same in a directory that is to be made: the index and the table of announced roots begin with 1 MiB each, and the
/// rows with half of one.
pub(crate) const NEW_BYTES: u64 = 4 << 20;

/// Open files to ask the kernel for: 512 connections, as many streams of QUIC again, packs and rows fit several times.
pub(crate) const OPEN_FILES: u64 = 65_536;

/// Time to connect to the API. A local one answers in a millisecond; a far one behind a slow link in a few hundred.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for an answer to a request that does a bounded piece of work.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for `gc` and `verify`, which read the whole store: a day is 8 TB at 100 MB/s.
pub(crate) const LONG_REQUEST_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Tries of a request that is safe to repeat, the first included.
pub(crate) const ATTEMPTS: u32 = 3;

/// Pause before a repeat.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// The largest answer that is read. A page of 1000 pins with 16 KiB of meta each is the largest legal one, 20 MiB.
pub(crate) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The longest event of a stream: one pin with all its meta and origins is below 64 KiB.
pub(crate) const MAX_EVENT_BYTES: usize = 1 << 20;

/// A stream that is silent for longer is dead: the server sends a comment each 15 s.
pub(crate) const EVENT_SILENCE: Duration = Duration::from_secs(45);

/// How often `--wait` asks where there is no stream of events.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How often the bar of `--wait` moves while nothing new is known: often enough to be seen alive.
pub(crate) const BAR_TICK: Duration = Duration::from_millis(120);

/// How long `--wait` is quiet after it was told that it asks too often.
pub(crate) const BUSY_PAUSE: Duration = Duration::from_secs(5);

/// How long `--wait` goes on while the API does not answer: a restart takes seconds.
pub(crate) const WAIT_UNREACHABLE: Duration = Duration::from_secs(60);

/// Deals in a page of `deals ls`; the API allows no more.
pub(crate) const DEALS_PAGE: u64 = 100;

/// Policies in the file. Each is a word that people choose from; more than this is a file that a program wrote wrong.
pub(crate) const POLICIES: usize = 100;

/// Pins in a page of `pin ls`; the API allows no more.
pub(crate) const PAGE: u64 = 1000;

/// Providers of the configuration. More than this is a typing error: deals go to a handful of replicas.
pub(crate) const PROVIDERS: usize = 1_000;
