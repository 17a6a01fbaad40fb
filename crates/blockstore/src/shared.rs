//! What the threads of a store share, and its health.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use floe_core::{Clock, Multihash};
use parking_lot::{Condvar, Mutex, RwLock};
use uuid::Uuid;

use crate::PatrolState;
use crate::disk::{Disk, DiskFile, Open, Space};
use crate::error::{Error, is_full};
use crate::format::Layout;
use crate::hints::Hints;
use crate::holds::HoldTable;
use crate::index::{IndexError, Layered};
use crate::limits;
use crate::mark::Mark;
use crate::packs::{self, Packs};
use crate::queue::Queue;
use crate::record::{Key, Loc, Member, Record};
use crate::tables::{self, Entry, Placed, Tables};

pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) layout: Layout,
    pub(crate) pack_bytes: u64,
    pub(crate) packs: Packs,
    pub(crate) hints: Hints,
    pub(crate) kv: Arc<Layered>,
    pub(crate) mark: Arc<Mark>,
    pub(crate) tables: Mutex<Tables>,
    pub(crate) holds: Arc<HoldTable>,
    /// Damaged blocks: never served, claimed as absent, listed for repair.
    pub(crate) damaged: RwLock<BTreeSet<Key>>,
    /// Rung when one more is found.
    pub(crate) damage_found: tokio::sync::Notify,
    /// Manifests somebody is writing: two visited sets for one manifest would count a block twice.
    pub(crate) protected: Mutex<HashSet<Uuid>>,
    pub(crate) queue: Queue,
    pub(crate) health: Health,
    pub(crate) patrol: Mutex<PatrolState>,
    pub(crate) collector: crate::collector::Bell,
    pub(crate) figures: Figures,
    /// Set when the threads have to end.
    pub(crate) stopping: AtomicBool,
}

/// Copies for [`crate::BlockStore::stats`], so that it takes no lock the writer holds.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) blocks: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) doubt: AtomicBool,
}

impl Shared {
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// The entry of a block that is here and may be served.
    pub(crate) fn present(&self, hash: &[u8]) -> Result<Option<Entry>, Error> {
        if self.damaged.read().contains(hash) {
            return Ok(None);
        }
        Ok(tables::entry(&self.kv, hash).map_err(index_error)?.filter(|e| e.loc.is_somewhere()))
    }

    /// The index is wrong: the next open makes it again. Until then nothing is freed on its word.
    pub(crate) fn distrust_index(&self, why: &str) {
        self.tables.lock().doubt.index = true;
        self.figures.doubt.store(true, Ordering::Relaxed);
        self.mark.set(why);
    }

    /// A chunk's members, or `None` where its record cannot be read.
    pub(crate) fn read_chunk(&self, placed: Placed) -> Option<Vec<Member>> {
        self.chunk_members(placed).ok()?
    }

    /// A chunk's members, or `None` where its record is damaged or lost. An error may pass.
    pub(crate) fn chunk_members(&self, placed: Placed) -> Result<Option<Vec<Member>>, Error> {
        let (header, body) = match self.packs.read_record(placed.loc) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(None),
            Err(e) if lost(&e) || e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&self.packs.path(placed.loc.pack), "read", &e)),
        };
        let Some((key, data)) = body.split_at_checked(header.key_len as usize) else { return Ok(None) };
        Ok(match Record::decode(header.kind, key, data, header.data_len) {
            Some(Record::Chunk { members, .. }) => Some(members),
            _ => None,
        })
    }

    /// The bytes at `loc` are not those of the block: keeps them as evidence and never serves them. The caller
    /// has made sure that the index still names `loc`.
    pub(crate) fn quarantine(&self, hash: &[u8], loc: Loc, bytes: &[u8]) {
        if !self.damaged.write().insert(hash.into()) {
            return;
        }
        let name = multihash(hash).map_or_else(|| "?".into(), |m| hex(&m.to_bytes()));
        metrics::counter!("floe_blocks_damaged_total").increment(1);
        tracing::error!(
            pack = loc.pack,
            offset = loc.offset,
            "the block with multihash {name} is damaged in {}: it is not served, and fetched again when somebody has it",
            self.packs.path(loc.pack).display()
        );
        if let Err(e) = self.keep_evidence(&name, bytes) {
            tracing::warn!("cannot keep the damaged bytes of {name}: {e}");
        }
        self.queue.push_note(crate::queue::Op::Damaged { hash: hash.into() });
        self.damage_found.notify_one();
    }

    fn keep_evidence(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let dir = &self.layout.quarantine;
        if self.disk.list(dir)?.len() >= limits::QUARANTINE_FILES {
            limits::hit("blockstore_quarantine_files");
            return Ok(());
        }
        // A file name has at most 255 bytes; the start of the hex is enough to find it again.
        let file = self.disk.open(&dir.join(&name[..name.len().min(100)]), Open::Any)?;
        file.set_len(0)?;
        file.write_at(&mut [io::IoSlice::new(bytes)], 0)
    }
}

/// The multihash that a record's key is.
pub(crate) fn multihash(key: &[u8]) -> Option<Multihash> {
    Multihash::from_bytes(key).ok()
}

pub(crate) fn key_of(hash: &Multihash) -> Key {
    hash.to_bytes().into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn index_error(e: IndexError) -> Error {
    match e {
        IndexError::Full => Error::ReadOnly,
        IndexError::Closed => Error::Closed,
        IndexError::Broken(why) => Error::Io(format!("the index of the block store failed: {why}")),
    }
}

/// Whether a read error is the medium's.
pub(crate) fn lost(e: &io::Error) -> bool {
    packs::is_damage(e)
}

/// Free space and failed syncs.
pub(crate) struct Health {
    reserve: Option<u64>,
    read_only: AtomicBool,
    free: AtomicU64,
    /// After ENOSPC: how much has to be free before writing is tried again.
    wanted: AtomicU64,
    kept: AtomicBool,
    /// The kept space was given up, and is not to be used for anything but what it was kept for.
    given_up: AtomicBool,
    poison: tokio::sync::watch::Sender<Option<String>>,
    changed: (Mutex<()>, Condvar),
}

impl Health {
    pub(crate) fn new(reserve: Option<u64>) -> Self {
        Self {
            reserve,
            read_only: AtomicBool::new(false),
            free: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            kept: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            poison: tokio::sync::watch::Sender::new(None),
            changed: Default::default(),
        }
    }

    pub(crate) fn poison(&self, path: &Path, e: &dyn std::fmt::Display) -> Error {
        let why = format!("{}: {e}", path.display());
        let first = self.poison.send_if_modified(|p| {
            let first = p.is_none();
            if first {
                *p = Some(why.clone());
            }
            first
        });
        if first {
            tracing::error!("the block store stops: {why}");
        }
        self.changed.1.notify_all();
        Error::Poisoned(why)
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match &*self.poison.borrow() {
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(()),
        }
    }

    pub(crate) fn subscribe(&self) -> tokio::sync::watch::Receiver<Option<String>> {
        self.poison.subscribe()
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    pub(crate) fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }

    /// Looks at the volume. Returns whether blocks may be written.
    pub(crate) fn look(&self, disk: &dyn Disk, layout: &Layout) -> bool {
        let Ok(space) = disk.space(&layout.root) else { return !self.is_read_only() };
        self.free.store(space.free, Ordering::Relaxed);
        let kept = if self.kept.load(Ordering::Relaxed) { 0 } else { limits::KEPT_BYTES };
        let owed = if self.given_up.load(Ordering::Relaxed) { limits::KEPT_BYTES } else { 0 };
        let least = self.reserve(space).max(self.wanted.load(Ordering::Relaxed)).saturating_add(owed);
        let full = space.free < least;
        if self.read_only.swap(full, Ordering::AcqRel) != full {
            if full {
                limits::hit("blockstore_disk_reserve");
                tracing::warn!(
                    free = space.free,
                    "the disk is under its reserve: no new blocks until space is free"
                );
            } else {
                tracing::info!(free = space.free, "there is space again: blocks are written");
            }
        }
        metrics::gauge!("floe_disk_free_bytes").set(space.free as f64);
        metrics::gauge!("floe_read_only").set(f64::from(u8::from(full)));
        if !full {
            self.wanted.store(0, Ordering::Relaxed);
            if kept > 0 && space.free >= least.saturating_add(2 * kept) {
                self.keep(disk, layout);
            }
        }
        !full
    }

    fn reserve(&self, space: Space) -> u64 {
        self.reserve.unwrap_or_else(|| limits::RESERVE_BYTES.max(space.total / 20))
    }

    /// A write of `bytes` met ENOSPC: nothing more until that much, and a little, is free.
    pub(crate) fn full(&self, disk: &dyn Disk, layout: &Layout, bytes: u64) {
        let free = disk.space(&layout.root).map_or(0, |s| s.free);
        self.wanted.store(free.saturating_add(1).max(bytes.saturating_mul(2)), Ordering::Relaxed);
        self.look(disk, layout);
    }

    /// A write that had met ENOSPC went through: under a quota the volume does not show when there is space again.
    pub(crate) fn found_space(&self) {
        self.wanted.store(0, Ordering::Relaxed);
    }

    /// Takes space for what must go on when the disk is full. Best effort: a small disk goes without.
    pub(crate) fn keep(&self, disk: &dyn Disk, layout: &Layout) {
        let kept = || -> io::Result<Arc<dyn DiskFile>> {
            let file = disk.open(&layout.kept, Open::Any)?;
            file.allocate(limits::KEPT_BYTES)?;
            Ok(file)
        };
        match kept() {
            Ok(_) => {
                self.kept.store(true, Ordering::Relaxed);
                self.given_up.store(false, Ordering::Relaxed);
            }
            Err(_) => drop(disk.remove(&layout.kept)),
        }
    }

    /// Finds what the last run kept: a start on a full disk could not take it again.
    pub(crate) fn find_kept(&self, disk: &dyn Disk, layout: &Layout) {
        let len = disk.open(&layout.kept, Open::Existing).and_then(|file| file.size());
        self.kept.store(len.is_ok_and(|len| len >= limits::KEPT_BYTES), Ordering::Relaxed);
    }

    /// Gives the kept space up. Returns whether there was any.
    pub(crate) fn give_up_kept(&self, disk: &dyn Disk, layout: &Layout) -> bool {
        let gave = self.kept.swap(false, Ordering::AcqRel) && disk.remove(&layout.kept).is_ok();
        self.given_up.fetch_or(gave, Ordering::AcqRel);
        gave
    }
}

/// What a failed write means: the disk is full, or the file cannot be written.
pub(crate) fn write_error(path: &Path, e: &io::Error) -> Error {
    if is_full(e) { Error::ReadOnly } else { Error::io(path, "write", e) }
}
