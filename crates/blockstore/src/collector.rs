//! Frees what nobody counts, and gives the space back.
//!
//! One thread, in small steps, each of which is one group of the writer or one change of a sealed pack, so that
//! others never wait for more than a step:
//!
//! 1. a released manifest is counted down chunk by chunk; what falls to zero and is not held gets a tombstone in
//!    the same group, what is held gets it later;
//! 2. when all its chunks are done the manifest is gone;
//! 3. removed blocks of sealed packs are punched: those that just died, and those that a stop or a crash forgot, which
//!    are looked for by their tombstones;
//! 4. the live records of a pack that has few are copied to a pack of their own and, after a checkpoint, the pack
//!    is removed;
//! 5. a sealed pack without a hint gets one.
//!
//! Every step can be repeated, so a crash between any two costs nothing but the step.

use std::collections::{BTreeMap, BTreeSet, HashSet};
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
    forgotten: Option<Forgotten>,
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

/// A look for removed blocks that are not punched and not remembered either.
///
/// It believes tombstones alone, which are durable: that the index does not name a block would not do, for an index may
/// lie, and what it does not name may be the only copy. It keeps no place on disk; one that was cut off begins again,
/// and passes over the holes that are there.
struct Forgotten {
    /// The packs in question, with what each was to give back as the look began. What dies meanwhile is remembered, or
    /// is for the next look.
    owed: BTreeMap<u32, u64>,
    /// The pack whose tombstones are read next. Those of a block are never in an older pack than the block.
    next: u32,
}

/// Whether a step found something to do.
type Did = Result<bool, Error>;

/// Nothing in the pack means anything any more.
fn is_dead(stat: &PackStat) -> bool {
    stat.live + stat.negative == 0
}

impl Collector {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (punchable, forgotten, stuck) = Default::default();
        let hinted = shared.hints.list().unwrap_or_default();
        let swept = Bound::Unbounded;
        let (asked, freed_blocks, freed_bytes) = Default::default();
        Self { shared, punchable, forgotten, stuck, hinted, swept, asked, freed_blocks, freed_bytes }
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
        if self.shared.health.is_read_only()
            && (self.punch()? || self.punch_forgotten()? || self.compact_if_room()?)
        {
            return Ok(true);
        }
        Ok(self.count_down()?
            || self.reap()?
            || self.sweep()?
            || self.punch()?
            || self.compact()?
            || self.punch_forgotten()?
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
        let room = limits::PUNCHABLE.saturating_sub(self.punchable.len());
        let mut holes = freed.into_iter().filter(|f| f.hole().is_some());
        self.punchable.extend(holes.by_ref().take(room));
        if holes.next().is_some() {
            limits::hit("blockstore_punchable");
        }
    }

    /// Gives the space of one removed block of a sealed pack back.
    fn punch(&mut self) -> Did {
        if self.holes_wait_for_copies() {
            self.ask(|done| Op::SealCopies { done })?;
            return Ok(true);
        }
        let n = {
            let tables = self.shared.tables.lock();
            // One that grows may be read group by group by the next open, and has no holes till it is sealed.
            self.punchable.iter().position(|f| tables.growing_end(f.loc.pack).is_none())
        };
        let Some(n) = n else { return Ok(false) };
        let freed = self.punchable.swap_remove(n);
        self.give_back(freed);
        // Also where it could not be given back: then compaction does it.
        if let Some(stat) = self.shared.tables.lock().packs.get_mut(&freed.loc.pack) {
            stat.unpunched = stat.unpunched.saturating_sub(freed.hole_bytes());
        }
        Ok(true)
    }

    /// Whether so much in the pack that compaction fills is to be punched that it is filled no further.
    fn holes_wait_for_copies(&self) -> bool {
        let tables = self.shared.tables.lock();
        let filled = tables.copies.and_then(|copies| tables.packs.get(&copies.pack));
        let unpunched = filled.map_or(0, |stat| stat.unpunched);
        unpunched >= limits::ROLL_DEAD_BYTES || self.asked && unpunched > 0
    }

    /// Punches a removed block of a sealed pack, unless that was done before.
    fn give_back(&mut self, freed: Freed) {
        let Freed { loc, key_len, len } = freed;
        let Some(pages) = freed.hole() else { return };
        if self.shared.tables.lock().packs.get(&loc.pack).is_none_or(is_dead) {
            // The whole pack goes: holes in it would be work for nothing.
            return;
        }
        let packs = &self.shared.packs;
        let Ok(file) = packs.file(loc.pack) else { return };
        let bytes = pages.end - pages.start;
        if packs.is_hollow(loc, key_len, len).is_ok_and(|hollow| !hollow)
            && file.punch(pages.start, bytes).is_ok()
        {
            if let Some(stat) = self.shared.tables.lock().packs.get_mut(&loc.pack) {
                stat.punched += bytes;
            }
            self.freed_bytes += i64::try_from(bytes).unwrap_or(0);
        }
    }

    /// Looks through the tombstones of one pack for removed blocks that are not punched yet. Where nobody waits and
    /// there is space, it is no haste: then one pack is read each time that there was nothing else to do.
    fn punch_forgotten(&mut self) -> Did {
        let haste = self.asked || self.shared.health.is_read_only();
        let Some(mut look) = self.forgotten.take().or_else(|| self.look_for_forgotten()) else {
            return Ok(false);
        };
        let pack = self.shared.tables.lock().packs.range(look.next..).next().map(|(pack, _)| *pack);
        let Some(pack) = pack else {
            let mut tables = self.shared.tables.lock();
            for (pack, owed) in look.owed {
                if let Some(stat) = tables.packs.get_mut(&pack) {
                    stat.unpunched = stat.unpunched.saturating_sub(owed);
                }
            }
            return Ok(haste);
        };
        if let Err(e) = self.punch_named_by(pack, &look.owed) {
            // What it names is left to compaction.
            tracing::warn!(
                "cannot read which removed blocks {} names: {e}",
                self.shared.packs.path(pack).display()
            );
        }
        look.next = pack.saturating_add(1);
        self.forgotten = Some(look);
        Ok(haste)
    }

    /// The sealed packs that have something to give back, while nothing of it is remembered.
    fn look_for_forgotten(&self) -> Option<Forgotten> {
        let tables = self.shared.tables.lock();
        let is_owing = |pack: u32, stat: &PackStat| {
            stat.unpunched > 0 && !is_dead(stat) && tables.growing_end(pack).is_none()
        };
        let owing = tables.packs.iter().filter(|(pack, stat)| is_owing(**pack, stat));
        let owed: BTreeMap<u32, u64> = owing.map(|(pack, stat)| (*pack, stat.unpunched)).collect();
        let next = *owed.first_key_value()?.0;
        Some(Forgotten { owed, next })
    }

    /// Punches what the tombstones of a pack name in the packs of `owed`.
    fn punch_named_by(&mut self, pack: u32, owed: &BTreeMap<u32, u64>) -> std::io::Result<()> {
        let shared = Arc::clone(&self.shared);
        // What is behind the end of one that grows is not durable yet.
        let end = shared.tables.lock().growing_end(pack);
        let hint = if end.is_none() { shared.hints.read(&shared.packs, pack)? } else { None };
        if let Some(hint) = hint {
            for step in hint.records.iter().filter(|r| r.kind == Kind::Step) {
                if shared.stopping() {
                    break;
                }
                self.punch_named(step.loc, owed)?;
            }
            return Ok(());
        }
        let mut scan = shared.packs.scan(pack, packs::HEADER)?;
        while let Some(found) = scan.next()? {
            if shared.stopping() || end.is_some_and(|end| scan.at() > u64::from(end)) {
                break;
            }
            if let Found::Record { loc, header, .. } = found
                && header.kind == Kind::Step
            {
                self.punch_named(loc, owed)?;
            }
        }
        Ok(())
    }

    /// Punches what one record of tombstones names in the packs of `owed`.
    fn punch_named(&mut self, step: Loc, owed: &BTreeMap<u32, u64>) -> std::io::Result<()> {
        let Some((header, body)) = self.shared.packs.read_record(step)? else { return Ok(()) };
        let Some((key, data)) = body.split_at_checked(header.key_len as usize) else { return Ok(()) };
        let Some(Record::Step { tombs, .. }) = Record::decode(header.kind, key, data, header.data_len) else {
            return Ok(());
        };
        for tomb in tombs.iter().filter(|tomb| owed.contains_key(&tomb.loc.pack)) {
            // It died there and lives elsewhere, if it lives. An index that says otherwise is not argued with.
            if !self.is_here(&tomb.hash, tomb.loc).is_ok_and(|here| !here) {
                continue;
            }
            if let Ok(Some((header, key))) = self.shared.packs.read_header(tomb.loc)
                && header.kind == Kind::Block
                && key == tomb.hash
            {
                self.give_back(Freed { loc: tomb.loc, key_len: key.len(), len: header.data_len });
            }
        }
        Ok(())
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
        let has_holes = stat.unpunched > 0;
        let roll = dead >= limits::ROLL_DEAD_BYTES && (has_holes || dead * 2 > stat.total)
            || self.asked && (has_holes || worth(active, &stat).is_some());
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use floe_core::cid::code;
    use floe_core::{Block, ManualClock, Seeded};

    use super::*;
    use crate::testing::FaultyDisk;
    use crate::{BlockStore, Claim, Components, IndexKind, Settings};

    /// Of a block of this size at least so much is whole pages.
    const LARGE: usize = 100 << 10;
    const HOLE: u64 = (96 << 10) - PAGE;

    fn wait<T>(f: impl Future<Output = T>) -> T {
        let patience = Duration::from_secs(60);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(patience, f).await }).expect("it ends")
    }

    fn open(disk: &FaultyDisk, pack_bytes: u64) -> BlockStore {
        let settings =
            Settings { dir: "/blocks".into(), index: IndexKind::Redb, pack_bytes, reserve_bytes: Some(0) };
        let (clock, entropy) = (Arc::new(ManualClock::default()), Arc::new(Seeded::new(1)));
        BlockStore::open(settings, Components { disk: Arc::new(disk.clone()), clock, entropy }).unwrap()
    }

    fn large(n: u32) -> Block {
        Block::of(code::RAW, n.to_le_bytes().repeat(LARGE / 4).into()).unwrap()
    }

    fn pin(store: &BlockStore, n: u128, blocks: &[Block]) {
        wait(async {
            let mut protect = store.protect(Uuid::from_u128(n), *blocks[0].cid()).await.unwrap();
            for block in blocks {
                if protect.claim(block.cid().hash()).unwrap() == Claim::Absent {
                    protect.put(vec![block.clone()]).await.unwrap();
                }
            }
            protect.seal().await.unwrap();
        });
    }

    /// Pins 1 and 2 with `n` blocks each; they lie in turns. Then the first is released, and all of it has died.
    fn half_dead(store: &BlockStore, n: u32) -> (Vec<Block>, Vec<Block>) {
        let (dying, living): (Vec<_>, Vec<_>) = (0..n).map(|i| (large(2 * i), large(2 * i + 1))).unzip();
        wait(async {
            let mut of = Vec::new();
            for (id, blocks) in [(1, &dying), (2, &living)] {
                of.push(store.protect(Uuid::from_u128(id), *blocks[0].cid()).await.unwrap());
            }
            for (dying, living) in dying.iter().zip(&living) {
                of[0].put(vec![dying.clone()]).await.unwrap();
                of[1].put(vec![living.clone()]).await.unwrap();
            }
            for protect in of {
                protect.seal().await.unwrap();
            }
        });
        // A little more lives than dies: no pack is worth compacting.
        pin(store, 3, &(1_000..1_000 + n / 4 + 2).map(large).collect::<Vec<_>>());
        let before = store.stats().blocks;
        wait(async {
            store.release(Uuid::from_u128(1)).await.unwrap();
            while store.stats().blocks + u64::from(n) > before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        (dying, living)
    }

    fn assert_all_here(store: &BlockStore, blocks: &[Block]) {
        assert!(blocks.iter().all(|b| store.get(b.cid()).unwrap().is_some_and(|got| got.data() == b.data())));
    }

    /// The story: which removed blocks were still to be punched was in memory alone. A pin was removed and the node
    /// stopped, by itself or by a kill, before their pack was sealed: no collection gave their space back ever after.
    #[test]
    fn what_died_before_a_stop_is_given_back_after_it() {
        for killed in [false, true] {
            let disk = FaultyDisk::default();
            let store = open(&disk, 64 << 20);
            let (_, living) = half_dead(&store, 20);
            let image = disk.crash(3);
            if !killed {
                wait(store.close()).unwrap();
            }
            drop(store);
            let disk = if killed { image } else { disk };

            let store = open(&disk, 64 << 20);
            let before = disk.used();
            let report = wait(store.collect()).unwrap();
            assert!(disk.used() + 20 * HOLE <= before, "killed: {killed}; {} of {before}", disk.used());
            assert!(report.bytes >= 20 * HOLE, "{report:?}");
            assert_all_here(&store, &living);
            let (used, again) = (disk.used(), wait(store.collect()).unwrap());
            assert_eq!((disk.used(), again.bytes), (used, 0), "once");
        }
    }

    /// The story: more blocks died at once than are remembered. The others were left to a compaction that never came.
    #[test]
    fn more_than_is_remembered_is_given_back_too() {
        let n = u32::try_from(limits::PUNCHABLE).unwrap() * 5;
        let disk = FaultyDisk::default();
        let store = open(&disk, 64 << 20);
        let (_, living) = half_dead(&store, n);
        let before = disk.used();
        wait(store.collect()).unwrap();
        assert!(disk.used() + u64::from(n) * HOLE <= before, "{} of {before}", disk.used());
        assert_all_here(&store, &living);
    }

    /// A look for what was forgotten meets blocks that were removed and put again, holes that are there already, and
    /// tombstones that compaction has moved.
    #[test]
    fn what_was_put_again_lives_and_holes_are_made_once() {
        let disk = FaultyDisk::default();
        let store = open(&disk, 1 << 20);
        let (dying, living) = half_dead(&store, 20);
        pin(&store, 4, &dying[..10]);
        wait(store.collect()).unwrap();
        // As it was before the holes were in the index, which so many changes do not write down by themselves.
        let image = disk.crash(5);
        drop(store);

        let store = open(&image, 1 << 20);
        let before = image.used();
        wait(store.collect()).unwrap();
        assert!(image.used() <= before + (1 << 16), "{} of {before}", image.used());
        assert_all_here(&store, &dying[..10]);
        assert_all_here(&store, &living);
        pin(&store, 5, &dying);
        assert_all_here(&store, &dying);
    }

    /// The story: a block died in the pack that compaction was filling. No hole is punched in that one and nothing sealed
    /// it, so the collection that somebody waited for went in circles and never ended.
    #[test]
    fn a_collection_ends_where_a_copied_block_died() {
        let disk = FaultyDisk::default();
        let store = open(&disk, 4 << 20);
        let most: Vec<_> = (0..30).map(large).collect();
        pin(&store, 1, &most);
        let kept: Vec<_> = [3, 7, 11, 15].map(|n| most[n].clone()).into();
        pin(&store, 2, &kept);
        pin(&store, 3, &kept[1..]);
        // Fills up the pack, and the next one.
        let others: Vec<_> = (100..150).map(large).collect();
        pin(&store, 4, &others);
        wait(store.release(Uuid::from_u128(1))).unwrap();
        wait(store.collect()).unwrap();
        wait(store.release(Uuid::from_u128(2))).unwrap();
        let before = disk.used();
        wait(store.collect()).unwrap();
        assert!(disk.used() + HOLE <= before + (1 << 12), "{} of {before}", disk.used());
        assert_all_here(&store, &kept[1..]);
        assert_all_here(&store, &others);
    }
}
