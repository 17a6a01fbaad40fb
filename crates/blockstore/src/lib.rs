//! Blocks on disk: append-only packs, a rebuildable index, reference counts. (skeleton)

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use floe_core::{Block, Cid, Clock, Multihash};
use uuid::Uuid;

/// Which index holds multihash -> (pack, offset, length, references).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexKind {
    /// redb, the default.
    #[default]
    Redb,
    /// sled.
    Sled,
}

/// Plain settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the packs and the index; made if missing.
    pub dir: PathBuf,
    /// The index back end.
    pub index: IndexKind,
    /// A pack is sealed when it passes this size.
    pub pack_bytes: u64,
    /// Free bytes on the volume under which the store is read-only. `None`: 2 GiB or 5 %, whichever is larger.
    pub reserve_bytes: Option<u64>,
}

/// Live objects.
#[derive(Clone)]
pub struct Components {
    /// The disk under the packs.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The disk under the packs: real, or faulty for tests.
pub trait Disk: Send + Sync + 'static {}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is under its reserve, or said ENOSPC: writes are refused until there is space again.
    #[error("the disk is full or under its reserve: free space, writes go on by themselves")]
    ReadOnly,
    /// A sync failed: the state on disk is unknown, the process must end (exit code 12).
    #[error("a sync failed, so what is on disk is unknown: {0}")]
    Poisoned(String),
    /// Anything else, with the file it concerns.
    #[error("{0}")]
    Io(String),
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct BlockStore {}

/// Names a manifest: the engine's DAG id.
pub type ManifestId = Uuid;

/// What [`Protect::claim`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// This manifest already has the block (the visited set of the walk).
    Seen,
    /// The block is here with this many bytes; it is now counted for this manifest and cannot be collected.
    Present(u32),
    /// Not here. Fetch it and give it to [`Protect::put`].
    Absent,
}

/// What a manifest holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ManifestTotals {
    /// Unique blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How a manifest stands after open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ManifestState {
    /// Being walked, or the walk was cut short: `Protect` resumes it.
    Open,
    /// The whole DAG is here.
    Sealed,
    /// Being released; the store goes on with it by itself.
    Releasing,
}

impl BlockStore {
    /// Opens or makes the store. Blocks.
    pub fn open(_settings: Settings, _components: Components) -> Result<Self, Error> {
        todo!()
    }
    /// The size of a block that is here. Blocks on disk.
    pub fn size(&self, _hash: &Multihash) -> Result<Option<u32>, Error> {
        todo!()
    }
    /// A block, checked against its hash; a damaged one is reported, queued for repair, and `None`. Blocks on disk.
    pub fn get(&self, _cid: &Cid) -> Result<Option<Block>, Error> {
        todo!()
    }
    /// Begins a manifest, or resumes one that is open.
    pub async fn protect(&self, _id: ManifestId, _root: Cid) -> Result<Protect, Error> {
        todo!()
    }
    /// Lets go of a manifest in any state: durable on return, counts fall in bounded steps in the background
    /// and space is freed. Unknown ids are fine.
    pub async fn release(&self, _id: ManifestId) -> Result<(), Error> {
        todo!()
    }
    /// All manifests, to be compared with the rows at start. Blocks on disk.
    pub fn manifests(&self) -> Result<Vec<(ManifestId, ManifestState, ManifestTotals)>, Error> {
        todo!()
    }
    /// Writes a repaired copy of a block that the scrub or a read found damaged. Durable on return.
    pub async fn repair(&self, _block: Block) -> Result<(), Error> {
        todo!()
    }
    /// Waits until no release, collection or compaction is left to do, and says what was freed.
    pub async fn collect(&self) -> Result<GcReport, Error> {
        todo!()
    }
    /// Reads every record of every pack and compares packs and index both ways.
    pub async fn scrub(&self) -> Result<ScrubReport, Error> {
        todo!()
    }
    /// Figures.
    pub fn stats(&self) -> Stats {
        todo!()
    }
    /// Whether writes are refused now for lack of space.
    pub fn is_read_only(&self) -> bool {
        todo!()
    }
    /// Completes when a sync has failed and the process must end, with the reason.
    pub async fn poisoned(&self) -> String {
        todo!()
    }
    /// Flushes, checkpoints, ends the threads.
    pub async fn close(&self) -> Result<(), Error> {
        todo!()
    }
}

/// A manifest being written: the visited set of a walk, what keeps its blocks from the collector, and its
/// durable record. Dropping it leaves the manifest open on disk (still protecting) for a later resume.
pub struct Protect {}

impl Protect {
    /// Claims a block for this manifest. A hit is a write: it is counted under the lock the collector uses.
    /// Blocks on disk (index and visited set).
    pub fn claim(&mut self, _hash: &Multihash) -> Result<Claim, Error> {
        todo!()
    }
    /// Stores blocks that were [`Claim::Absent`]. Durable when the future completes. Dropping the future does
    /// not stop the write.
    pub async fn put(&mut self, _blocks: Vec<Block>) -> Result<(), Error> {
        todo!()
    }
    /// Saves how far the walk is: `frontier` comes back from [`Protect::frontier`] after a restart.
    pub async fn checkpoint(&mut self, _frontier: Bytes) -> Result<(), Error> {
        todo!()
    }
    /// The last checkpoint, if this manifest was resumed.
    pub fn frontier(&self) -> Option<Bytes> {
        todo!()
    }
    /// What it holds so far.
    pub fn totals(&self) -> ManifestTotals {
        todo!()
    }
    /// The whole DAG is here: durable when the future completes.
    pub async fn seal(self) -> Result<ManifestTotals, Error> {
        todo!()
    }
}

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Blocks removed.
    pub blocks: u64,
    /// Bytes given back to the volume.
    pub bytes: u64,
}

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Records read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged blocks: quarantined, never served.
    pub damaged: Vec<Multihash>,
    /// Blocks that the index names and no pack holds.
    pub missing: Vec<Multihash>,
}

/// Figures of the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Free bytes on the volume.
    pub disk_free: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}
