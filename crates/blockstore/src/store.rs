//! The handle that the rest of Floe holds.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use floe_core::cid::is_identity;
use floe_core::ports::{LocalBlocks, ReadError};
use floe_core::{Block, Cid, Multihash};
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use crate::checkpoint::Checkpointer;
use crate::collector::{Bell, Collector};
use crate::error::Error;
use crate::hints::Hints;
use crate::mark::Mark;
use crate::packs::Packs;
use crate::protect::Protect;
use crate::queue::{Op, Queue};
use crate::record::State;
use crate::recover::{Recovered, Recovery};
use crate::shared::{Figures, Health, Shared, index_error, key_of, lost, multihash};
use crate::tables::{self, Entry, Manifest};
use crate::ticket::ticket;
use crate::writer::Writer;
use crate::{
    CidSet, Components, GcReport, ManifestId, ManifestState, ManifestTotals, PatrolState, ScrubReport,
    Settings, Stats,
};
use crate::{format, limits, patrol, scrub};

/// The store. Cheap to clone. When the last clone goes without [`BlockStore::close`], the threads end after the
/// group they are writing, and the next open reads the rest of the log.
#[derive(Clone)]
pub struct BlockStore {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl BlockStore {
    /// Opens or makes the store. Blocks: on the tail of the log after a crash, on all packs where the index was
    /// lost.
    ///
    /// # Errors
    /// [`Error::Directory`] for a foreign or newer directory; otherwise what the disk said.
    pub fn open(settings: Settings, components: Components) -> Result<Self, Error> {
        let Components { disk, clock, entropy } = components;
        let (layout, salt) = format::open(&*disk, &settings.dir, &*entropy)?;
        let packs = Packs::new(disk.clone(), layout.packs.clone(), salt);
        let hints = Hints::new(disk.clone(), layout.hints.clone(), salt);
        let mark = Arc::new(Mark::new(disk.clone(), &layout.root));
        let recovery = Recovery {
            disk: &disk,
            layout: &layout,
            packs: &packs,
            hints: &hints,
            kind: settings.index,
            salt,
            mark: &mark,
            flush_keys: limits::CHECKPOINT_KEYS,
        };
        let Recovered { tables, damaged, hinted } = recovery.run()?;
        metrics::counter!("floe_packs_read_by_hints_total").increment(hinted as u64);
        let patrol = Mutex::new(patrol::load(&*disk, &layout.root)?);
        let figures = Figures::default();
        figures.set(&tables);
        let shared = Arc::new(Shared {
            pack_bytes: settings.pack_bytes.clamp(limits::PACK_BYTES_MIN, limits::PACK_BYTES),
            packs,
            hints,
            kv: tables.kv.clone(),
            mark,
            tables: Mutex::new(tables),
            holds: Arc::default(),
            damaged: RwLock::new(damaged),
            damage_found: tokio::sync::Notify::new(),
            protected: Mutex::default(),
            queue: Queue::new(),
            health: Health::new(settings.reserve_bytes),
            collector: Bell::default(),
            figures,
            patrol,
            clock,
            stopping: AtomicBool::new(false),
            disk,
            layout,
        });
        shared.health.find_kept(&*shared.disk, &shared.layout);
        shared.health.look(&*shared.disk, &shared.layout);
        Ok(Self { handle: Arc::new(Handle::start(shared)?) })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The size in bytes of a block that is here and not known to be damaged. Blocks on disk.
    ///
    /// # Errors
    /// [`Error::Io`] where the index cannot be read.
    pub fn size(&self, hash: &Multihash) -> Result<Option<u32>, Error> {
        Ok(self.shared().present(&key_of(hash))?.map(|e| e.len))
    }

    /// A block, checked against its hash; a damaged one is reported, queued for repair, and `None`. Blocks on
    /// disk.
    ///
    /// # Errors
    /// [`Error::Io`] where index or pack cannot be read. Bytes that the medium lost are damage, not an error.
    pub fn get(&self, cid: &Cid) -> Result<Option<Block>, Error> {
        if is_identity(cid) {
            return Ok(Block::inline(cid));
        }
        let shared = self.shared();
        let key = key_of(cid.hash());
        let mut last: Option<Entry> = None;
        while let Some(entry) = shared.present(&key)? {
            let read = shared.packs.read_data(entry.loc, key.len(), entry.len);
            let data = match read {
                Ok(data) => Bytes::from(data),
                Err(e) if lost(&e) || e.kind() == std::io::ErrorKind::NotFound => Bytes::new(),
                Err(e) => return Err(Error::io(&shared.packs.path(entry.loc.pack), "read", &e)),
            };
            if let Ok(block) = Block::new(*cid, data.clone()) {
                return Ok(Some(block));
            }
            // Compaction may have moved the block, or the collector freed it, since we looked.
            if last.replace(entry).is_some_and(|l| l.loc == entry.loc) {
                shared.quarantine(&key, entry.loc, &data);
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Begins a manifest, or resumes one that is open or sealed. One at a time for an id. Dropping the future
    /// drops the manifest as dropping [`Protect`] does.
    ///
    /// # Errors
    /// [`Error::Released`] for a manifest that was let go of; [`Error::Io`] while another `Protect` has the id.
    pub async fn protect(&self, id: ManifestId, root: Cid) -> Result<Protect, Error> {
        let shared = self.shared().clone();
        if tables::manifest(&shared.kv, id).map_err(index_error)?.is_none() {
            return Protect::open(shared, id, root);
        }
        offload("floe-protect", move || Protect::open(shared, id, root)).await
    }

    /// An empty set of CIDs for who walks what is here, with so many in memory at most (about 32 bytes each); the others
    /// are in a scratch file. One at a time for an id.
    pub fn cid_set(&self, id: Uuid, most_in_memory: usize) -> CidSet {
        let scratch = self.shared().layout.scratch.join(format!("walk-{id}"));
        CidSet::new(self.shared().disk.clone(), scratch, most_in_memory)
    }

    /// Lets go of a manifest in any state: durable on return, counts fall in bounded steps in the background
    /// and space is freed. Unknown ids are fine. Dropping the future does not stop it.
    ///
    /// # Errors
    /// [`Error`] where the log cannot be written; works on a full disk from the space kept for it.
    pub async fn release(&self, id: ManifestId) -> Result<(), Error> {
        self.shared().health.check()?;
        let (done, answer) = ticket();
        self.shared().queue.push(Op::Release { id, done });
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// All manifests, to be compared with the rows at start. Blocks on disk.
    ///
    /// # Errors
    /// [`Error::Io`] where the index cannot be read.
    pub fn manifests(&self) -> Result<Vec<(ManifestId, ManifestState, ManifestTotals)>, Error> {
        let mut out = Vec::new();
        for pair in self.shared().kv.pairs(b"m") {
            let (key, value) = pair.map_err(index_error)?;
            if let (Ok(id), Some(m)) = (Uuid::from_slice(&key[1..]), Manifest::decode(&value)) {
                out.push((id, state(m.state), ManifestTotals { blocks: m.blocks, bytes: m.bytes }));
            }
        }
        Ok(out)
    }

    /// Compares the manifests with those that somebody `needed`: returns the ones that are not there, not sealed, or
    /// not whole. Where there are none, records that a rebuild of the index found lost are missed by nobody, and
    /// collection goes on. Blocks on disk.
    ///
    /// # Errors
    /// [`Error::Io`] where the index cannot be read.
    pub fn confirm(&self, needed: &[ManifestId]) -> Result<Vec<ManifestId>, Error> {
        let shared = self.shared();
        let mut lacking = Vec::new();
        for id in needed {
            let manifest = tables::manifest(&shared.kv, *id).map_err(index_error)?;
            if manifest.is_none_or(|m| m.state != State::Sealed || m.lacks()) {
                lacking.push(*id);
            }
        }
        if lacking.is_empty() {
            let mut tables = shared.tables.lock();
            if tables.doubt.settle() {
                tracing::info!("every manifest that is needed is whole: what was lost is not missed");
                shared.figures.set(&tables);
                drop(tables);
                shared.collector.ring();
            }
        }
        Ok(lacking)
    }

    /// Writes a repaired copy of a block that the scrub or a read found damaged or missing. Durable on return. A
    /// block that no manifest counts, or that is here and intact, is not written.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] on a full disk.
    pub async fn repair(&self, block: Block) -> Result<(), Error> {
        self.shared().health.check()?;
        // Reading it is what finds out whether the copy on disk is good.
        let (store, cid) = (self.clone(), *block.cid());
        if offload("floe-repair", move || store.get(&cid)).await?.is_some() {
            return Ok(());
        }
        let permit = self.shared().queue.room(block.data().len()).await?;
        let (done, answer) = ticket();
        self.shared().queue.push(Op::Repair { block, done, permit });
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Blocks that are known to be damaged, up to so many, in an order of their own that begins with `from`, or behind
    /// where it would be: found by reads, the scrub or an earlier run, and not repaired since. Does not block.
    pub fn damaged(&self, from: Option<&Multihash>, most: usize) -> Vec<Multihash> {
        let from = from.map_or(Bound::Unbounded, |hash| Bound::Included(key_of(hash)));
        let damaged = self.shared().damaged.read();
        damaged.range((from, Bound::Unbounded)).filter_map(|key| multihash(key)).take(most).collect()
    }

    /// Completes when a block was found damaged since the last call, for one caller. Dropping the future loses
    /// nothing.
    pub async fn damage_found(&self) {
        self.shared().damage_found.notified().await;
    }

    /// Waits until no release, collection or compaction is left to do, and says what was freed since the last
    /// such report (the background does not wait to be asked).
    ///
    /// # Errors
    /// [`Error`] of the step that failed; it is tried again in the background.
    pub async fn collect(&self) -> Result<GcReport, Error> {
        self.shared().health.check()?;
        let (done, answer) = ticket();
        self.shared().collector.ask(done);
        answer.await.unwrap_or(Err(Error::Closed))
    }

    /// Reads every record of every pack and compares packs and index both ways, at full speed. Counts as a round of
    /// [`BlockStore::patrol`].
    ///
    /// # Errors
    /// [`Error::Io`] where the disk fails in another way than by losing bytes.
    pub async fn scrub(&self) -> Result<ScrubReport, Error> {
        let shared = self.shared().clone();
        let began = shared.clock.now();
        let report = offload("floe-scrub", move || scrub::run(&shared)).await?;
        let finished = self.shared().clock.now();
        self.shared().keep_patrol(|state| {
            *state = PatrolState { began: Some(began), next: None, finished: Some(finished) };
        });
        Ok(report)
    }

    /// Figures.
    pub fn stats(&self) -> Stats {
        let shared = self.shared();
        Stats {
            blocks: shared.figures.blocks.load(Ordering::Relaxed),
            bytes: shared.figures.bytes.load(Ordering::Relaxed),
            disk_free: shared.health.free(),
            read_only: shared.health.is_read_only(),
            in_doubt: shared.figures.doubt.load(Ordering::Relaxed),
        }
    }

    /// Whether writes are refused now for lack of space.
    pub fn is_read_only(&self) -> bool {
        self.shared().health.is_read_only()
    }

    /// Completes when a sync has failed and the process must end, with the reason.
    pub async fn poisoned(&self) -> String {
        let mut poison = self.shared().health.subscribe();
        match poison.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The sender lives as long as the store, which `self` holds.
            Err(_) => std::future::pending().await,
        }
    }

    /// Flushes, checkpoints, ends the threads. Later calls are refused. Calling it again is harmless.
    ///
    /// # Errors
    /// [`Error`] where the checkpoint could not be written: the next open reads the log instead.
    pub async fn close(&self) -> Result<(), Error> {
        let (done, answer) = ticket();
        self.shared().queue.push(Op::Checkpoint { done });
        let checkpointed = match answer.await {
            None | Some(Err(Error::Closed)) => Ok(()),
            Some(result) => result,
        };
        let handle = self.handle.clone();
        offload("floe-close", move || {
            handle.stop();
            Ok(())
        })
        .await?;
        checkpointed
    }
}

impl LocalBlocks for BlockStore {
    fn size(&self, cid: &Cid) -> Result<Option<u32>, ReadError> {
        if is_identity(cid) {
            return Ok(Block::inline(cid).and_then(|b| u32::try_from(b.data().len()).ok()));
        }
        Self::size(self, cid.hash()).map_err(|e| ReadError(e.to_string()))
    }

    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError> {
        Ok(self.get(cid).map_err(|e| ReadError(e.to_string()))?.map(Block::into_data))
    }
}

impl Handle {
    fn start(shared: Arc<Shared>) -> Result<Self, Error> {
        let handle = Self { checkpointer: Arc::default(), threads: Mutex::default(), shared };
        let (shared, checkpointer) = (handle.shared.clone(), handle.checkpointer.clone());
        handle.spawn("floe-index", move || checkpointer.run(&shared))?;
        let writer = Writer::new(handle.shared.clone(), handle.checkpointer.clone());
        handle.spawn("floe-writer", move || writer.run())?;
        let collector = Collector::new(handle.shared.clone());
        handle.spawn("floe-collector", move || collector.run())?;
        Ok(handle)
    }

    fn spawn(&self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let guard = Guard { shared: self.shared.clone(), checkpointer: self.checkpointer.clone() };
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            let _guard = guard;
            run();
        });
        self.threads
            .lock()
            .push(thread.map_err(|e| Error::Io(format!("cannot start the thread {name}: {e}")))?);
        Ok(())
    }

    fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        self.shared.stopping.store(true, Ordering::Release);
        self.checkpointer.stop();
        self.shared.queue.push_note(Op::Stop);
        self.shared.collector.ring();
        for thread in threads {
            // A panic was reported by the guard.
            let _ = thread.join();
        }
        self.shared.queue.close();
        self.shared.mark.insist();
        self.shared.kv.index().close();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A thread of the store that panics leaves others waiting for it: the store ends with it.
struct Guard {
    shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            self.shared.health.poison(&self.shared.layout.root, &format!("the thread {name} panicked"));
            self.shared.queue.close();
            self.checkpointer.stop();
            self.shared.collector.ring();
        }
    }
}

fn state(state: State) -> ManifestState {
    match state {
        State::Open => ManifestState::Open,
        State::Sealed => ManifestState::Sealed,
        State::Releasing => ManifestState::Releasing,
    }
}

/// Runs what blocks on a thread of its own, so that no runtime is needed and none is held up.
pub(crate) async fn offload<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (done, answer) = ticket();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || done.send(work()));
    thread.map_err(|e| Error::Io(format!("cannot start the thread {name}: {e}")))?;
    answer.await.unwrap_or(Err(Error::Closed))
}
