//! Frees what nobody counts, and gives the space back.
//!
//! One thread, in small steps, each of which is one group of the writer or one change of a sealed pack, so that
//! others never wait for more than a step:
//!
//! 1. a released manifest is counted down chunk by chunk; what falls to zero and is not held gets a tombstone in
//!    the same group, what is held gets it later;
//! 2. when all its chunks are done the manifest is gone;
//! 3. dead ranges of sealed packs are punched;
//! 4. the live records of a pack that has few are copied to a pack of their own and, after a checkpoint, the pack
//!    is removed;
//! 5. a sealed pack without a hint gets one.
//!
//! Every step can be repeated, so a crash between any two costs nothing but the step.

use std::collections::{BTreeSet, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::GcReport;
use crate::error::Error;
use crate::limits;
use crate::packs::{self, Found};
use crate::queue::Op;
use crate::record::{Kind, Loc, Record};
use crate::shared::{Shared, index_error};
use crate::tables::{self, Entry, Freed, PackStat, Placed};
use crate::ticket::{Sender, ticket};

/// Without work, and after a failure.
const IDLE: Duration = Duration::from_millis(500);
/// File systems give space back in blocks of this size.
const PAGE: u64 = 4096;
/// Dead ranges remembered for punching; more are left to compaction.
const PUNCHABLE: usize = 100_000;

/// Wakes the collector, and says who waits for it.
#[derive(Default)]
pub(crate) struct Bell {
    inner: Mutex<Inner>,
    rung: Condvar,
}

#[derive(Default)]
struct Inner {
    rung: bool,
    waiting: Vec<Sender<Result<GcReport, Error>>>,
}

impl Bell {
    pub(crate) fn ring(&self) {
        self.inner.lock().rung = true;
        self.rung.notify_all();
    }

    /// Asks for an answer once nothing is left to do.
    pub(crate) fn ask(&self, done: Sender<Result<GcReport, Error>>) {
        let mut inner = self.inner.lock();
        inner.waiting.push(done);
        inner.rung = true;
        drop(inner);
        self.rung.notify_all();
    }

    fn wait(&self, patience: Duration) {
        let mut inner = self.inner.lock();
        if !inner.rung {
            self.rung.wait_for(&mut inner, patience);
        }
        inner.rung = false;
    }

    fn take_waiting(&self) -> Vec<Sender<Result<GcReport, Error>>> {
        std::mem::take(&mut self.inner.lock().waiting)
    }
}

pub(crate) struct Collector {
    shared: Arc<Shared>,
    punchable: Vec<Freed>,
    /// Packs that still hold something after they were copied: a damaged header hides it.
    stuck: HashSet<u32>,
    /// Packs that have a hint, or get none before the next start.
    hinted: BTreeSet<u32>,
    /// How far the look at every block is.
    swept: Bound<Box<[u8]>>,
    /// Whether somebody waits: then little gains are taken too.
    asked: bool,
    freed_blocks: u64,
    freed_bytes: i64,
}

/// Whether a step found something to do.
type Did = Result<bool, Error>;

impl Collector {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (punchable, stuck) = Default::default();
        let hinted = shared.hints.list().unwrap_or_default();
        let swept = Bound::Unbounded;
        Self { shared, punchable, stuck, hinted, swept, asked: false, freed_blocks: 0, freed_bytes: 0 }
    }

    pub(crate) fn run(mut self) {
        let mut waiting = Vec::new();
        while !self.shared.stopping() {
            waiting.extend(self.shared.collector.take_waiting());
            self.asked = !waiting.is_empty();
            match self.step() {
                Ok(true) => continue,
                Ok(false) if !self.asked => {}
                Ok(false) => {
                    let report = GcReport {
                        blocks: self.freed_blocks,
                        bytes: u64::try_from(self.freed_bytes).unwrap_or(0),
                    };
                    (self.freed_blocks, self.freed_bytes) = (0, 0);
                    waiting.drain(..).for_each(|w| w.send(Ok(report.clone())));
                }
                Err(error) => {
                    if !matches!(error, Error::Closed | Error::Poisoned(_)) {
                        tracing::warn!("collection pauses: {error}");
                    }
                    waiting.drain(..).for_each(|w| w.send(Err(error.clone())));
                }
            }
            self.shared.collector.wait(IDLE);
        }
        waiting
            .into_iter()
            .chain(self.shared.collector.take_waiting())
            .for_each(|w| w.send(Err(Error::Closed)));
    }

    fn step(&mut self) -> Did {
        self.shared.health.check()?;
        // On a full disk what makes space comes before what needs some.
        if self.shared.health.is_read_only() && (self.punch()? || self.compact_if_room()?) {
            return Ok(true);
        }
        Ok(self.count_down()?
            || self.reap()?
            || self.sweep()?
            || self.punch()?
            || self.compact()?
            || self.hint())
    }

    /// Hands an operation to the writer and waits.
    fn ask<T>(&self, op: impl FnOnce(Sender<Result<T, Error>>) -> Op) -> Result<T, Error> {
        let (done, answer) = ticket();
        self.shared.queue.push(op(done));
        answer.wait().unwrap_or(Err(Error::Closed))
    }

    fn count_down(&mut self) -> Did {
        let releasing = self.shared.kv.scan(b"r", Bound::Unbounded, 1).map_err(index_error)?;
        let Some(id) = releasing.first().and_then(|(k, _)| Uuid::from_slice(&k[1..]).ok()) else {
            return Ok(false);
        };
        let chunks = self.next_chunks(id)?;
        if chunks.is_empty() {
            self.ask(|done| Op::Finish { id, done })?;
        } else {
            let freed = self.ask(|done| Op::Step { id, chunks, done })?;
            self.take_freed(freed);
        }
        Ok(true)
    }

    /// Chunks of the manifest for one step. A damaged one is passed with no members, so that the manifest goes: what
    /// it counted stays counted, which frees nothing that is needed, until the next open makes the index again without
    /// the lost chunk.
    fn next_chunks(&self, id: Uuid) -> Result<Vec<(u64, Vec<crate::record::Member>)>, Error> {
        let page = self.shared.kv.scan(&tables::chunk_prefix(id), Bound::Unbounded, limits::SCAN_KEYS);
        let mut out = Vec::new();
        let mut hashes = 0;
        for (key, value) in page.map_err(index_error)? {
            let (Some(serial), Some(placed)) = (tables::chunk_serial(&key), Placed::decode(&value)) else {
                continue;
            };
            let members = self.shared.chunk_members(placed)?.unwrap_or_else(|| {
                self.shared.mark.wish("a damaged record hides which blocks a removed pin had");
                Vec::new()
            });
            hashes += members.len();
            if !out.is_empty() && hashes > limits::STEP_HASHES {
                break;
            }
            out.push((serial, members));
        }
        Ok(out)
    }

    /// Blocks that nobody counts and that were held when they fell to zero.
    fn reap(&mut self) -> Did {
        let hashes: Vec<_> = {
            let tables = self.shared.tables.lock();
            if tables.doubt.is_any() {
                return Ok(false);
            }
            let free = tables.zero.iter().filter(|h| !self.shared.holds.is_held(h));
            free.take(limits::STEP_HASHES).cloned().collect()
        };
        if hashes.is_empty() {
            return Ok(false);
        }
        let freed = self.ask(|done| Op::Reap { hashes, done })?;
        // A claim may have come first: then it is looked at again when the claim is let go of.
        let did = !freed.is_empty();
        self.take_freed(freed);
        Ok(did)
    }

    /// Looks at some of all blocks, where there may be some that nobody counts and that are not known by name.
    fn sweep(&mut self) -> Did {
        {
            let mut tables = self.shared.tables.lock();
            // What is known by name goes first, and makes room.
            if !tables.unlisted || tables.doubt.is_any() || tables.zero.len() >= limits::ZERO_KEYS {
                return Ok(false);
            }
            if self.swept == Bound::Unbounded {
                tables.unlisted_again = false;
            }
        }
        let from = self.swept.as_ref().map(|key| &key[..]);
        let page = self.shared.kv.scan(b"b", from, limits::STEP_HASHES).map_err(index_error)?;
        let mut tables = self.shared.tables.lock();
        let uncounted = |entry: &Entry| entry.refs == 0 && entry.loc.is_somewhere();
        for (key, _) in page.iter().filter(|(_, value)| Entry::decode(value).is_some_and(|e| uncounted(&e))) {
            // Read again: it may be counted by now.
            if tables.entry(&key[1..]).map_err(index_error)?.is_some_and(|e| uncounted(&e)) {
                tables.note_zero(&key[1..]);
            }
        }
        match page.into_iter().next_back() {
            Some((last, _)) => self.swept = Bound::Excluded(last),
            None => {
                self.swept = Bound::Unbounded;
                tables.unlisted = tables.unlisted_again;
            }
        }
        Ok(true)
    }

    fn take_freed(&mut self, freed: Vec<Freed>) {
        self.freed_blocks += freed.len() as u64;
        metrics::counter!("floe_gc_blocks_total").increment(freed.len() as u64);
        let room = PUNCHABLE - self.punchable.len().min(PUNCHABLE);
        self.punchable
            .extend(freed.into_iter().filter(|f| u64::from(f.len) >= limits::PUNCH_BYTES).take(room));
    }

    /// Gives one dead range of a sealed pack back.
    fn punch(&mut self) -> Did {
        let active = self.shared.tables.lock().end.pack;
        // One that compaction still fills may be read group by group by the next open, and has no holes till then.
        let filled = self.shared.tables.lock().copies.map(|c| c.pack);
        let is_sealed = |f: &Freed| f.loc.pack < active && filled != Some(f.loc.pack);
        let Some(n) = self.punchable.iter().position(is_sealed) else { return Ok(false) };
        let freed = self.punchable.swap_remove(n);
        let is_dead = |stat: &PackStat| stat.live + stat.negative == 0;
        if self.shared.tables.lock().packs.get(&freed.loc.pack).is_none_or(is_dead) {
            // The whole pack goes: holes in it would be work for nothing.
            return Ok(true);
        }
        let Ok(file) = self.shared.packs.file(freed.loc.pack) else { return Ok(true) };
        let pages = packs::whole_pages(freed.loc, freed.key_len, freed.len);
        let bytes = pages.end.saturating_sub(pages.start);
        if bytes > 0 && file.punch(pages.start, bytes).is_ok() {
            if let Some(stat) = self.shared.tables.lock().packs.get_mut(&freed.loc.pack) {
                stat.punched += bytes;
            }
            self.freed_bytes += i64::try_from(bytes).unwrap_or(0);
        }
        Ok(true)
    }

    /// Where there is no room for copies, there may be some for tombstones still.
    fn compact_if_room(&mut self) -> Did {
        match self.compact() {
            Err(Error::ReadOnly) => Ok(false),
            other => other,
        }
    }

    fn compact(&mut self) -> Did {
        let (candidate, roll) = self.candidate();
        if roll {
            self.ask(|done| Op::Roll { done })?;
            return Ok(true);
        }
        let Some((pack, stat)) = candidate else { return Ok(false) };
        if self.shared.mark.is_asked() {
            // An index that lies does not say what is live. The next start has one that does.
            return Ok(false);
        }
        tracing::debug!(pack, live = stat.live, total = stat.total, "compacting");
        let nothing = stat.live + stat.negative == 0;
        let (copied, whole) = if nothing { (0, true) } else { self.copy_live(pack)? };
        // Without the checkpoint a replay would still look for records in the pack.
        match self.ask(|done| Op::Checkpoint { done }) {
            // The index needs space, and this makes some. All that the pack had is in the log elsewhere: a crash
            // before the next checkpoint costs a rebuild of the index and nothing else.
            Err(Error::ReadOnly) => tracing::warn!("{pack:08x} is removed before its end is in the index"),
            other => other?,
        }
        fail::fail_point!("compact.switched");
        self.remove(pack, copied, whole)
    }

    /// The pack worth most, and whether the active one should be sealed first.
    fn candidate(&self) -> (Option<(u32, PackStat)>, bool) {
        let tables = self.shared.tables.lock();
        let active = tables.end.pack;
        let worth = |pack: u32, stat: &PackStat| {
            let dead = stat.dead(tables.is_oldest(pack));
            (dead * 2 > stat.held() && dead >= PAGE).then_some(dead)
        };
        // A pack in which nothing means anything goes, however small.
        let empty = |pack: u32, stat: &PackStat| {
            let dead = stat.dead(tables.is_oldest(pack));
            (dead + stat.punched == stat.total).then_some(dead)
        };
        // Copying takes space first: on a full disk what needs none goes first, and no more is copied than was kept
        // for that.
        let full = self.shared.health.is_read_only();
        let room = if full { limits::KEPT_COPY_BYTES.max(self.shared.health.free() / 2) } else { u64::MAX };
        let best = tables
            .packs
            .iter()
            .filter(|(pack, _)| **pack < active && !self.stuck.contains(pack))
            .filter(|(pack, stat)| stat.copied_bytes(tables.is_oldest(**pack)) <= room)
            .filter_map(|(pack, stat)| {
                worth(*pack, stat).or(empty(*pack, stat)).map(|dead| (dead, *pack, *stat))
            })
            .max_by_key(|(dead, pack, stat)| {
                (full && stat.copied_bytes(tables.is_oldest(*pack)) == 0, *dead)
            });
        let stat = tables.packs.get(&active).copied().unwrap_or_default();
        let dead = stat.dead(false);
        let roll = dead >= limits::ROLL_DEAD_BYTES && (!self.punchable.is_empty() || dead * 2 > stat.total)
            || self.asked && (!self.punchable.is_empty() || worth(active, &stat).is_some());
        (best.map(|(_, pack, stat)| (pack, stat)), roll && best.is_none())
    }

    /// Copies what means something to a pack of its own, in groups. Returns the bytes, and whether all records
    /// could be read.
    fn copy_live(&mut self, pack: u32) -> Result<(u64, bool), Error> {
        let path = self.shared.packs.path(pack);
        let fail = |e: &std::io::Error| Error::io(&path, "read", e);
        let mut scan = self.shared.packs.scan(pack, packs::HEADER).map_err(|e| fail(&e))?;
        let (mut batch, mut bytes, mut copied, mut whole) = (Vec::new(), 0, 0, true);
        while let Some(found) = scan.next().map_err(|e| fail(&e))? {
            if self.shared.stopping() {
                return Err(Error::Closed);
            }
            let Found::Record { loc, header, key } = found else {
                whole = false;
                continue;
            };
            if header.kind == Kind::Commit || header.kind == Kind::Block && !self.is_here(&key, loc)? {
                continue;
            }
            let Some(body) = scan.body(loc, &header).map_err(|e| fail(&e))? else {
                self.give_up(&header, &key, loc)?;
                whole = false;
                continue;
            };
            let (key, data) = body.split_at(header.key_len as usize);
            let Some(record) = Record::decode(header.kind, key, data, header.data_len) else { continue };
            let payload = match header.kind {
                Kind::Block => data.to_vec(),
                Kind::Frontier => data.get(8..).unwrap_or_default().to_vec(),
                _ => Vec::new(),
            };
            if self.shared.tables.lock().is_live(&record, loc).map_err(index_error)? {
                bytes += header.record_len();
                batch.push((record, payload.into(), loc));
            }
            if bytes as usize >= limits::COPY_BYTES || batch.len() >= limits::STEP_HASHES {
                let records = std::mem::take(&mut batch);
                self.ask(|done| Op::Copy { from: pack, records, done })?;
                copied += std::mem::take(&mut bytes);
            }
        }
        if !batch.is_empty() {
            self.ask(|done| Op::Copy { from: pack, records: batch, done })?;
        }
        Ok((copied + bytes, whole))
    }

    fn is_here(&self, hash: &[u8], loc: Loc) -> Result<bool, Error> {
        Ok(tables::entry(&self.shared.kv, hash).map_err(index_error)?.is_some_and(|e| e.loc == loc))
    }

    /// A record of the pack that cannot be copied.
    fn give_up(&mut self, header: &crate::record::Header, key: &[u8], loc: Loc) -> Result<(), Error> {
        if header.kind != Kind::Block {
            // Somebody's manifest. The pack stays, and with it the chance to look at it.
            return Ok(());
        }
        let data = self.shared.packs.read_data(loc, key.len(), header.data_len).unwrap_or_default();
        self.shared.quarantine(key, loc, &data);
        let hash = key.into();
        self.ask(|done| Op::Displace { hash, from: loc, done })
    }

    fn remove(&mut self, pack: u32, copied: u64, whole: bool) -> Did {
        let (stat, is_oldest) = {
            let tables = self.shared.tables.lock();
            (tables.packs.get(&pack).copied().unwrap_or_default(), tables.is_oldest(pack))
        };
        if !whole && stat.negative > 0 && !is_oldest {
            // What could not be read may be tombstones that an older pack needs.
            self.stuck.insert(pack);
            return Ok(true);
        }
        if stat.live > 0 {
            let path = self.shared.packs.path(pack);
            tracing::error!(
                live = stat.live,
                "{} holds live records that were not copied; it is kept",
                path.display()
            );
            self.stuck.insert(pack);
            if whole {
                // Every record was read, and the index knew too few of them.
                self.shared.distrust_index("it does not name what a pack holds");
            }
            return Ok(true);
        }
        self.punchable.retain(|f| f.loc.pack != pack);
        self.hinted.remove(&pack);
        // One that stays is removed by the next open.
        let _ = self.shared.hints.remove(pack);
        let packs = &self.shared.packs;
        if let Err(e) = packs.remove(pack) {
            self.stuck.insert(pack);
            return Err(Error::io(&packs.path(pack), "remove", &e));
        }
        // Durable before the tables forget the pack: a name that came back would be taken for a new pack, and the
        // tombstones that it needs may be gone by then.
        packs.sync_names().map_err(|e| self.shared.health.poison(&self.shared.layout.packs, &e))?;
        fail::fail_point!("compact.removed");
        let mut tables = self.shared.tables.lock();
        tables.packs.remove(&pack);
        tables.copies = tables.copies.filter(|c| c.pack != pack);
        self.freed_bytes += i64::try_from(stat.held()).unwrap_or(0) - i64::try_from(copied).unwrap_or(0);
        Ok(true)
    }

    /// Writes the hint of one sealed pack. Never on a full disk, and never more than one try: without a hint a
    /// rebuild only takes longer.
    fn hint(&mut self) -> bool {
        if self.shared.health.is_read_only() {
            return false;
        }
        let pack = {
            let tables = self.shared.tables.lock();
            let mut sealed = tables.packs.keys().filter(|pack| tables.growing_end(**pack).is_none());
            sealed.find(|pack| !self.hinted.contains(pack)).copied()
        };
        let Some(pack) = pack else { return false };
        if let Err(e) = self.shared.hints.write(&self.shared.packs, pack) {
            tracing::warn!("cannot write the hint of {}: {e}", self.shared.packs.path(pack).display());
        }
        self.hinted.insert(pack);
        true
    }
}
