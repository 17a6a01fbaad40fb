//! What all workers share: settings, live objects, and the few signals between them.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use floe_core::Timestamp;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::fetch::Running;
use crate::watch::Changes;
use crate::workers::Board;
use crate::{Components, Settings};

/// See the module.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    components: Components,
    /// Fetches that run.
    pub(crate) running: Arc<Running>,
    /// Bytes of blocks in memory on their way to the disk, of all fetches.
    pub(crate) held_bytes: AtomicUsize,
    /// Since when nothing has kept the node from searching: its start, or the end of a time without disk space. In ms
    /// of the wall clock.
    searching_since: AtomicU64,
    /// Whether DAGs are due that find no free slot.
    pub(crate) contended: AtomicBool,
    /// Something may be due for the fetcher.
    pub(crate) fetch_due: Notify,
    /// Something may be due for the outbox.
    pub(crate) jobs_due: Notify,
    /// Something may be due for the aggregator.
    pub(crate) aggregate_due: Notify,
    /// Pieces that are read.
    pub(crate) pieces: crate::cold::piece::Pieces,
    /// What of them deals were sent.
    pub(crate) sent: Arc<crate::cold::pull::Sent>,
    /// Held from a claim until its fetch is in `running`, so that a release finds every fetch that it must stop.
    pub(crate) claiming: tokio::sync::Mutex<()>,
    /// One pass over the outbox at a time, so that its order holds.
    pub(crate) outbox: tokio::sync::Mutex<()>,
    /// One scrub at a time.
    pub(crate) scrub: tokio::sync::Mutex<()>,
    pub(crate) changes: Changes,
    pub(crate) board: Arc<Board>,
    pub(crate) stop: CancellationToken,
}

impl Context {
    pub(crate) fn new(settings: Settings, components: Components) -> Self {
        Self {
            settings,
            searching_since: AtomicU64::new(components.clock.now().as_millis()),
            components,
            running: Arc::default(),
            held_bytes: AtomicUsize::new(0),
            contended: AtomicBool::new(false),
            fetch_due: Notify::new(),
            jobs_due: Notify::new(),
            aggregate_due: Notify::new(),
            pieces: crate::cold::piece::Pieces::new(),
            sent: Arc::default(),
            claiming: tokio::sync::Mutex::new(()),
            outbox: tokio::sync::Mutex::new(()),
            scrub: tokio::sync::Mutex::new(()),
            changes: Changes::new(),
            board: Arc::default(),
            stop: CancellationToken::new(),
        }
    }

    /// See [`limits::SEARCHED_PER_ATTEMPT`](crate::limits::SEARCHED_PER_ATTEMPT): what was before does not count.
    pub(crate) fn searching_since(&self) -> Timestamp {
        Timestamp::from_millis(self.searching_since.load(Ordering::Relaxed))
    }

    /// A fetch that had paused for want of disk space goes on.
    pub(crate) fn space_is_back(&self) {
        self.searching_since.store(self.clock.now().as_millis(), Ordering::Relaxed);
    }

    /// A random number.
    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

impl Deref for Context {
    type Target = Components;
    fn deref(&self) -> &Components {
        &self.components
    }
}
