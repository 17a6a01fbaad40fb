//! Blocks on disk: append-only packs, a rebuildable index, reference counts.
//!
//! ```text
//!  Protect::put ─┐                                       ┌─> tables ─> front ──checkpoint──> index (redb | sled)
//!  claims        ├─> queue ─> writer: one group, ────────┤             (memory)              derived, replaced
//!  release       │            one write, one sync        └─> answer    │                     when in doubt
//!  collector ────┘            (packs: the truth)                       └─< get, size, claim
//! ```
//!
//! - **The log is the truth.** Blocks, and the *manifests* that say which DAG needs which blocks, are records in
//!   packs. A group of records is written and synced once, and only then acknowledged ([`writer`]).
//! - **The index is derived.** It says where a block is and how many manifests count it. It is written down every
//!   128 MiB or 100,000 changed keys and made again from the packs when it is lost ([`recover`], [`tables`]).
//! - **A block dies when no manifest counts it and nobody holds it**, at once: the decision is made under the
//!   lock that a claim takes ([`holds`]). What is in doubt is kept.
//! - **Every read is checked against its hash.** A block that fails is kept aside, never served, and claimed as
//!   absent, so that the next walk or [`BlockStore::repair`] brings a good copy. [`BlockStore::patrol`] reads what
//!   nobody asks for within 30 days.
//!
//! Three threads belong to a store: the writer, the checkpointer, the collector. [`BlockStore::close`] ends them
//! with a checkpoint, dropping the last handle without one; open reads the difference from the log. Calls that
//! block say so; the async ones only wait and need no particular runtime.
//!
//! What this crate is not: a cache (nothing is evicted), a lock on the directory (the binary's), a judge of what
//! a pin is.

mod checkpoint;
mod collector;
mod disk;
mod error;
mod format;
mod group;
mod hints;
mod holders;
mod holds;
mod index;
mod limits;
mod mark;
mod packs;
mod patrol;
mod protect;
mod queue;
mod record;
mod recover;
mod scrub;
mod shared;
mod store;
mod tables;
pub mod testing;
mod ticket;
mod visited;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use floe_core::ports::Entropy;
use floe_core::{Clock, Multihash, Timestamp};
use uuid::Uuid;

pub use disk::{Disk, DiskFile, Open, RealDisk, Space};
pub use error::Error;
pub use protect::Protect;
pub use store::BlockStore;
pub use visited::CidSet;

/// Which index holds multihash -> (pack, offset, length, references).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IndexKind {
    /// redb, the default.
    #[default]
    Redb,
    /// sled.
    Sled,
}

impl IndexKind {
    /// The kind of the index that a store's directory has. Opening it with the other kind makes that one anew.
    pub fn on_disk(dir: &Path) -> Option<Self> {
        let kinds = [(Self::Redb, index::redb_index::FILE), (Self::Sled, "index-1.sled")];
        kinds.into_iter().find(|(_, name)| dir.join(name).exists()).map(|(kind, _)| kind)
    }
}

/// Plain settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Directory of the packs and the index; made if missing.
    pub dir: PathBuf,
    /// The index back end.
    pub index: IndexKind,
    /// A pack is sealed when it passes this size, in bytes: 256 MiB to 1 GiB; 64 KiB to 3 GiB is taken.
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
    /// Random bytes for the salt of a new store.
    pub entropy: Arc<dyn Entropy>,
}

/// Names a manifest: the engine's DAG id.
pub type ManifestId = Uuid;

/// What [`Protect::claim`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// This manifest already has the block (the visited set of the walk).
    Seen,
    /// The block is here with this many bytes; it is now counted for this manifest and cannot be collected.
    Present(u32),
    /// Not here, or damaged. Fetch it and give it to [`Protect::put`].
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

/// What was collected since the last report.
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
    /// Live blocks read.
    pub blocks: u64,
    /// Bytes read, of all records.
    pub bytes: u64,
    /// Damaged blocks: quarantined, never served.
    pub damaged: Vec<Multihash>,
    /// Blocks that a manifest counts and no pack holds.
    pub missing: Vec<Multihash>,
    /// Blocks that the index had lost: put back from the packs, and served again.
    pub restored: Vec<Multihash>,
    /// Whether the index disagreed with the packs. It is made again at the next open; until then nothing is
    /// collected.
    pub index_wrong: bool,
    /// Damaged places that are no block and are needed: headers, manifests, what a pack that grows ends with.
    pub damaged_records: u64,
    /// Damaged places of sealed packs where nothing lives: removed blocks, records that were replaced, deletions. They
    /// go with their packs, and nobody has to do anything about them.
    pub dead_damage: u64,
}

impl ScrubReport {
    /// Whether there is nothing to mend.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.missing.is_empty() && !self.index_wrong && self.damaged_records == 0
    }
}

/// How far the scrub in the background is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PatrolState {
    /// When the last round began.
    pub began: Option<Timestamp>,
    /// The number of the pack that is next; `None` between two rounds.
    pub next: Option<u32>,
    /// When a round was last finished.
    pub finished: Option<Timestamp>,
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
    /// Whether nothing is collected, because the index was caught lying (until the next open, which makes it again),
    /// or because records that say what is needed were lost: until the manifests that lack them are walked again or
    /// released, and [`BlockStore::confirm`] misses none.
    pub in_doubt: bool,
}
