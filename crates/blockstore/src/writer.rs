//! The one thread that writes the log.
//!
//! It takes what waits, puts the records of a whole group together, writes them with one call and one sync,
//! applies them to the tables, and only then answers. While a sync runs the next group gathers, so there is no
//! timer. Each group ends in a commit record; open cuts off a group without one.
//!
//! A failed write is cut back and refused, a full disk makes the store read-only, and a failed sync ends
//! everything: what the kernel did with the pages is unknown, and asking again would be told a lie.
//!
//! Crash: the groups that were synced are there, the last one may be torn and is cut off. Stop: the group being
//! written is finished, the rest is refused; a checkpoint is the business of `close`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_core::Block;
use uuid::Uuid;

use crate::ManifestTotals;
use crate::checkpoint::Checkpointer;
use crate::error::{Error, is_full};
use crate::group::{COMMIT_BYTES, Group};
use crate::holds::Holds;
use crate::limits;
use crate::packs::{self, Purpose};
use crate::queue::{Extend, Extended, Op};
use crate::record::{Key, Loc, Member, Record, State, Tomb};
use crate::shared::{Shared, index_error, key_of, write_error};
use crate::tables::{Copies, Freed, Manifest, Tables};
use crate::ticket::Sender;

/// How long the writer sleeps without work before it looks at the disk again.
const IDLE: Duration = Duration::from_millis(200);

pub(crate) struct Writer {
    shared: Arc<Shared>,
    checkpointer: Arc<Checkpointer>,
    /// Log bytes since the last checkpoint.
    since: u64,
    /// The next number for a pack of copies: it and those up to the newest pack were never used. What was used
    /// before the start is not known, so the first takes a new pack of the log first.
    next_copies: Option<u32>,
}

/// What a group knows that the tables do not know yet.
#[derive(Default)]
struct Pending {
    blocks: HashSet<Key>,
    manifests: HashMap<Uuid, Fresh>,
    chunks: Vec<(Uuid, u64, Vec<Member>)>,
}

/// A manifest as this group will leave it.
#[derive(Clone, Copy)]
struct Fresh {
    born: u64,
    state: State,
    /// What its chunks hold, this group's included.
    held: ManifestTotals,
}

/// Whom to answer once the group is durable.
enum Answer {
    Extended(Sender<Extended>, Holds),
    Done(Sender<Result<(), Error>>),
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, checkpointer: Arc<Checkpointer>) -> Self {
        Self { shared, checkpointer, since: 0, next_copies: None }
    }

    pub(crate) fn run(mut self) {
        while !self.shared.stopping() {
            let ops = self.shared.queue.take(IDLE);
            self.stop_if_index_broke();
            let may_write = self.shared.health.look(&*self.shared.disk, &self.shared.layout);
            if let Err(error) = self.shared.health.check() {
                ops.into_iter().for_each(|op| op.refuse(error.clone()));
                continue;
            }
            match ops.first() {
                None => {}
                Some(op) if op.is_data() => self.data(ops, may_write),
                Some(_) => ops.into_iter().for_each(|op| self.alone(op)),
            }
            self.checkpoint_if_due();
        }
        self.shared.queue.close();
    }

    /// Without an index nothing can be found or counted; the packs have it all. A new start mends it.
    fn stop_if_index_broke(&self) {
        let shared = &self.shared;
        if shared.kv.is_broken() && shared.health.check().is_ok() {
            shared.distrust_index("it failed");
            shared
                .health
                .poison(&shared.layout.root, &"the block index is damaged; the next start makes it again");
        }
    }

    /// Operations that only add.
    fn data(&mut self, ops: Vec<Op>, may_write: bool) {
        if let Err(error) = self.roll_if_full() {
            ops.into_iter().for_each(|op| op.refuse(error.clone()));
            return;
        }
        let mut group = self.group();
        let mut pending = Pending::default();
        let mut answers = Vec::new();
        let mut permits = Vec::new();
        let mut urgent = true;
        for op in ops {
            match op {
                Op::Extend(x) if !x.blocks.is_empty() && !may_write => {
                    x.done.send(Err((Error::ReadOnly, x.holds)))
                }
                Op::Repair { done, .. } if !may_write => done.send(Err(Error::ReadOnly)),
                Op::Extend(mut x) => {
                    urgent &= x.blocks.is_empty();
                    permits.extend(x.permit.take());
                    match self.extend(&mut group, &mut pending, &mut x) {
                        Ok(()) => answers.push(Answer::Extended(x.done, x.holds)),
                        Err(error) => x.done.send(Err((error, x.holds))),
                    }
                }
                Op::Release { id, done } => match self.release(&mut group, &mut pending, id) {
                    Ok(()) => answers.push(Answer::Done(done)),
                    Err(error) => done.send(Err(error)),
                },
                Op::Repair { block, done, permit } => {
                    urgent = false;
                    permits.push(permit);
                    match self.repair(&mut group, &mut pending, &block) {
                        Ok(()) => answers.push(Answer::Done(done)),
                        Err(error) => done.send(Err(error)),
                    }
                }
                other => other.refuse(Error::Closed),
            }
        }
        for (id, born, members) in std::mem::take(&mut pending.chunks) {
            push_chunks(&mut group, id, born, members);
        }
        let result = self.write(group, urgent).map(|_| ());
        for answer in answers {
            answer.send(result.clone());
        }
        self.shared.collector.ring();
    }

    fn extend(&self, group: &mut Group, pending: &mut Pending, x: &mut Extend) -> Result<(), Error> {
        let known = self.known(pending, x.id)?;
        if known.is_some_and(|m| m.state == State::Releasing) {
            return Err(Error::Released(x.id));
        }
        let root = Bytes::from(x.root.to_bytes());
        let mut fresh = match known {
            Some(fresh) => fresh,
            None => {
                let born = group.next().serial();
                let (state, root) = (State::Open, root.clone());
                group.push(Record::Manifest { id: x.id, born, state, whole: None, root }, Bytes::new());
                Fresh { born, state, held: ManifestTotals::default() }
            }
        };
        let mut members = Vec::with_capacity(x.blocks.len() + x.holds.members.len());
        for block in &x.blocks {
            let len = self.add_block(group, pending, block)?;
            members.push(Member { hash: key_of(block.cid().hash()), len });
        }
        members.extend(x.holds.members.iter().cloned());
        let grew = !members.is_empty();
        fresh.held.blocks += members.len() as u64;
        fresh.held.bytes += members.iter().map(|m| u64::from(m.len)).sum::<u64>();
        match pending.chunks.iter_mut().find(|(id, ..)| *id == x.id) {
            Some((.., known)) => known.extend(members),
            None if members.is_empty() => {}
            None => pending.chunks.push((x.id, fresh.born, members)),
        }
        if let Some(frontier) = x.frontier.take() {
            let len = u32::try_from(frontier.len()).unwrap_or(u32::MAX);
            group.push(Record::Frontier { id: x.id, born: fresh.born, len }, frontier);
        }
        // One that grows after its seal says anew what it holds.
        let says = if fresh.state == State::Sealed { grew } else { x.seal };
        if says {
            fresh.state = State::Sealed;
            let Fresh { born, state, held } = fresh;
            group.push(Record::Manifest { id: x.id, born, state, whole: Some(held), root }, Bytes::new());
        }
        pending.manifests.insert(x.id, fresh);
        Ok(())
    }

    /// The manifest as this group leaves it so far.
    fn known(&self, pending: &Pending, id: Uuid) -> Result<Option<Fresh>, Error> {
        if let Some(fresh) = pending.manifests.get(&id) {
            return Ok(Some(*fresh));
        }
        let manifest = crate::tables::manifest(&self.shared.kv, id).map_err(index_error)?;
        Ok(manifest.map(|m| {
            let held = ManifestTotals { blocks: m.blocks, bytes: m.bytes };
            Fresh { born: m.born, state: m.state, held }
        }))
    }

    /// Writes the block unless a good copy is here. Two walks may have fetched one block at the same time.
    fn add_block(&self, group: &mut Group, pending: &mut Pending, block: &Block) -> Result<u32, Error> {
        let hash = key_of(block.cid().hash());
        let len = u32::try_from(block.data().len()).expect("a block has at most 2 MiB");
        if self.shared.present(&hash)?.is_none() && pending.blocks.insert(hash.clone()) {
            group.push(Record::Block { hash, len }, block.data().clone());
        }
        Ok(len)
    }

    fn release(&self, group: &mut Group, pending: &mut Pending, id: Uuid) -> Result<(), Error> {
        let Some(fresh) = self.known(pending, id)? else { return Ok(()) };
        if fresh.state < State::Releasing {
            let state = State::Releasing;
            let (born, root) = (fresh.born, Bytes::new());
            group.push(Record::Manifest { id, born, state, whole: None, root }, Bytes::new());
            pending.manifests.insert(id, Fresh { state, ..fresh });
        }
        Ok(())
    }

    fn repair(&self, group: &mut Group, pending: &mut Pending, block: &Block) -> Result<(), Error> {
        let hash = key_of(block.cid().hash());
        // Without references it would be garbage: nobody is waiting for it.
        if crate::tables::entry(&self.shared.kv, &hash).map_err(index_error)?.is_some() {
            self.add_block(group, pending, block)?;
        }
        Ok(())
    }

    /// Operations that depend on the tables as they are, each in a group of its own.
    fn alone(&mut self, op: Op) {
        if let Err(error) = self.roll_if_full() {
            op.refuse(error);
            return;
        }
        match op {
            Op::Step { id, chunks, done } => done.send(self.step(id, chunks)),
            Op::Reap { hashes, done } => done.send(self.reap(&hashes)),
            Op::Finish { id, done } => done.send(self.finish(id)),
            Op::Copy { from, records, done } => done.send(self.copy(from, records)),
            Op::Displace { hash, from, done } => {
                done.send(self.shared.tables.lock().displace(&hash, from).map_err(index_error));
            }
            Op::Restore { hash, loc, len, done } => {
                done.send(self.shared.tables.lock().restore(&hash, loc, len).map_err(index_error));
            }
            Op::Roll { done } => done.send(self.roll_if_used()),
            Op::SealCopies { done } => done.send(self.seal_copies()),
            Op::Checkpoint { done } => self.checkpoint(Some(done)),
            Op::Damaged { hash } => {
                self.shared.kv.set(crate::tables::damage_key(&hash), Some(Box::default()))
            }
            Op::Stop => {
                self.shared.stopping.store(true, std::sync::atomic::Ordering::Release);
                // A pack of copies that stays marked is looked at by the next open: nothing depends on this.
                let _ = self.seal_copies();
            }
            data => data.refuse(Error::Closed),
        }
    }

    fn step(&mut self, id: Uuid, chunks: Vec<(u64, Vec<Member>)>) -> Result<Vec<Freed>, Error> {
        let mut down: HashMap<Key, u32> = HashMap::new();
        let mut serials = Vec::new();
        {
            let tables = self.shared.tables.lock();
            for (serial, members) in chunks {
                if tables.chunk(id, serial).map_err(index_error)?.is_none() {
                    continue;
                }
                serials.push(serial);
                for member in members {
                    *down.entry(member.hash).or_default() += 1;
                }
            }
        }
        self.bury(id, serials, down)
    }

    fn reap(&mut self, hashes: &[Key]) -> Result<Vec<Freed>, Error> {
        self.bury(Uuid::nil(), Vec::new(), hashes.iter().map(|h| (h.clone(), 0)).collect())
    }

    /// Writes a step: counts down, and tombstones for what nobody counts or holds any more.
    fn bury(&mut self, id: Uuid, chunks: Vec<u64>, down: HashMap<Key, u32>) -> Result<Vec<Freed>, Error> {
        let mut tombs = Vec::new();
        let mut group = self.group();
        {
            let tables = self.shared.tables.lock();
            for (hash, n) in down {
                let entry = tables.entry(&hash).map_err(index_error)?;
                let dead = entry.filter(|e| e.refs <= n && e.loc.is_somewhere() && !tables.doubt.is_any());
                if let Some(entry) = dead
                    && self.shared.holds.condemn(&hash)
                {
                    tombs.push(Tomb { hash, loc: entry.loc });
                }
            }
        }
        fail::fail_point!("gc.claimed");
        if chunks.is_empty() && tombs.is_empty() {
            return Ok(Vec::new());
        }
        let dying: Vec<Key> = tombs.iter().map(|t| t.hash.clone()).collect();
        let through = group.next().pack;
        group.push(Record::Step { id, through, chunks, tombs }, Bytes::new());
        let result = self.write(group, true);
        if result.is_ok() {
            let mut damaged = self.shared.damaged.write();
            damaged.retain(|hash| !dying.contains(hash));
        }
        self.shared.holds.buried(dying.iter());
        fail::fail_point!("gc.tombstone");
        result
    }

    fn finish(&mut self, id: Uuid) -> Result<(), Error> {
        let manifest = crate::tables::manifest(&self.shared.kv, id).map_err(index_error)?;
        let Some(m) = manifest.filter(|m| m.state == State::Releasing) else { return Ok(()) };
        let mut group = self.group();
        let through = group.next().pack;
        group.push(Record::Gone { id, born: m.born, through }, Bytes::new());
        self.write(group, true).map(|_| ())
    }

    fn copy(&mut self, from: u32, records: Vec<(Record, Bytes, Loc)>) -> Result<(), Error> {
        let copies = self.copies_of(from)?;
        let end = Loc { pack: copies.pack, offset: copies.end };
        let mut group = Group::new(self.shared.packs.seed(copies.pack), end, copies.group + 1);
        {
            let tables = self.shared.tables.lock();
            for (record, payload, at) in records {
                if !tables.is_live(&record, at).map_err(index_error)? {
                    continue;
                }
                let record = match record {
                    // The state may have gone on since the record was written.
                    Record::Manifest { id, .. } => match tables.manifest(id).map_err(index_error)? {
                        Some(Manifest { born, state, whole, root, .. }) => {
                            Record::Manifest { id, born, state, whole, root }
                        }
                        None => continue,
                    },
                    other => other,
                };
                group.push(record, payload);
            }
        }
        self.write(group, true)?;
        fail::fail_point!("compact.copied");
        Ok(())
    }

    /// The pack that takes what is copied out of `from`: the one being filled, or a new one.
    fn copies_of(&mut self, from: u32) -> Result<Copies, Error> {
        let filled = self.shared.tables.lock().copies;
        if let Some(copies) = filled.filter(|c| c.pack > from && u64::from(c.end) < self.shared.pack_bytes) {
            return Ok(copies);
        }
        self.seal_copies()?;
        let newest = self.shared.tables.lock().end.pack;
        let pack = match self.next_copies.filter(|next| *next < newest) {
            Some(next) => next,
            None => {
                self.roll()?;
                newest + 1
            }
        };
        self.make(pack, Purpose::Copies)?;
        self.next_copies = Some(pack + 1);
        fail::fail_point!("compact.made");
        let copies = Copies { pack, end: packs::HEADER as u32, group: 0 };
        let mut tables = self.shared.tables.lock();
        tables.grow(pack, packs::HEADER);
        tables.copies = Some(copies);
        Ok(copies)
    }

    /// No more is copied into the pack: from here on it is like any other.
    fn seal_copies(&self) -> Result<(), Error> {
        self.shared.health.check()?;
        let Some(copies) = self.shared.tables.lock().copies else { return Ok(()) };
        let sealed = self.shared.packs.seal(copies.pack);
        sealed.map_err(|e| self.shared.health.poison(&self.shared.packs.path(copies.pack), &e))?;
        self.shared.tables.lock().copies = None;
        Ok(())
    }

    fn group(&self) -> Group {
        let tables = self.shared.tables.lock();
        Group::new(self.shared.packs.seed(tables.end.pack), tables.end, tables.group + 1)
    }

    /// Makes a group durable and applies it. `urgent` groups (nothing new to keep) may use the kept space.
    fn write(&mut self, mut group: Group, urgent: bool) -> Result<Vec<Freed>, Error> {
        if group.is_empty() {
            return Ok(Vec::new());
        }
        group.commit();
        let pack = group.next().pack;
        let path = self.shared.packs.path(pack);
        let file = self.shared.packs.file(pack).map_err(|e| Error::io(&path, "open", &e))?;
        let mut written = file.write_at(&mut group.slices(), group.start());
        if urgent
            && written.as_ref().is_err_and(is_full)
            && self.shared.health.give_up_kept(&*self.shared.disk, &self.shared.layout)
        {
            written = file.write_at(&mut group.slices(), group.start());
        }
        if let Err(e) = written {
            file.set_len(group.start()).map_err(|e| self.shared.health.poison(&path, &e))?;
            if is_full(&e) {
                self.shared.health.full(&*self.shared.disk, &self.shared.layout, group.len());
            }
            tracing::warn!("cannot append to {}: {e}", path.display());
            return Err(write_error(&path, &e));
        }
        fail::fail_point!("pack.append");
        file.sync().map_err(|e| self.shared.health.poison(&path, &e))?;
        fail::fail_point!("pack.synced");
        uncache_behind(&*file, group.start(), group.len());
        self.since += group.len();
        self.apply(&group)
    }

    /// The group is durable: from here on it has happened, whatever else fails.
    fn apply(&self, group: &Group) -> Result<Vec<Freed>, Error> {
        let shared = &self.shared;
        let mut tables = shared.tables.lock();
        let freed = apply_group(&mut tables, group, &|placed| shared.read_chunk(placed));
        // The log says one thing and the tables another: only a new start, which reads the log, mends that.
        let freed = freed.map_err(|e| shared.health.poison(&shared.layout.root, &index_error(e)))?;
        shared.figures.set(&tables);
        drop(tables);
        let mut damaged = shared.damaged.write();
        if !damaged.is_empty() {
            for (record, ..) in &group.records {
                if let Record::Block { hash, .. } = record {
                    damaged.remove(hash);
                }
            }
        }
        Ok(freed)
    }

    fn roll_if_full(&mut self) -> Result<(), Error> {
        let end = self.shared.tables.lock().end;
        if u64::from(end.offset) < self.shared.pack_bytes { Ok(()) } else { self.roll() }
    }

    fn roll_if_used(&mut self) -> Result<(), Error> {
        let end = self.shared.tables.lock().end;
        if u64::from(end.offset) <= packs::HEADER { Ok(()) } else { self.roll() }
    }

    /// Seals the pack and begins the next. Everything in it was synced with its group.
    fn roll(&mut self) -> Result<(), Error> {
        let newest = self.shared.tables.lock().end.pack;
        let next = newest + limits::PACK_STRIDE;
        self.make(next, Purpose::Log)?;
        fail::fail_point!("pack.sealed");
        self.next_copies = Some(newest + 1);
        let mut tables = self.shared.tables.lock();
        tables.grow(next, packs::HEADER);
        tables.end = Loc { pack: next, offset: packs::HEADER as u32 };
        Ok(())
    }

    /// Makes a pack, durably.
    fn make(&self, pack: u32, purpose: Purpose) -> Result<(), Error> {
        let shared = &self.shared;
        let mut made = shared.packs.create(pack, purpose);
        if made.as_ref().is_err_and(is_full) && shared.health.give_up_kept(&*shared.disk, &shared.layout) {
            made = shared.packs.create(pack, purpose);
        }
        match made {
            Ok(()) => Ok(()),
            Err(e) if is_full(&e) => {
                shared.health.full(&*shared.disk, &shared.layout, packs::HEADER);
                Err(Error::ReadOnly)
            }
            // Whether the sync of the file or the directory failed is not told apart: both mean the same.
            Err(e) => Err(shared.health.poison(&shared.packs.path(pack), &e)),
        }
    }

    fn checkpoint_if_due(&mut self) {
        let changed = self.shared.kv.changed();
        if self.since >= limits::CHECKPOINT_BYTES || changed >= limits::CHECKPOINT_KEYS {
            if self.shared.kv.is_frozen() {
                if changed < limits::FRONT_KEYS {
                    return;
                }
                limits::hit("blockstore_front_keys");
            }
            self.checkpoint(None);
        }
    }

    fn checkpoint(&mut self, done: Option<Sender<Result<(), Error>>>) {
        // A checkpoint that waits for space must not keep releases from making some.
        if self.shared.kv.is_frozen() && self.shared.health.is_read_only() {
            if let Some(done) = done {
                done.send(Err(Error::ReadOnly));
            }
            return;
        }
        // One at a time.
        if !self.checkpointer.wait_idle() {
            if let Some(done) = done {
                done.send(Err(self.shared.health.check().err().unwrap_or(Error::Closed)));
            }
            return;
        }
        let value = self.shared.tables.lock().encode_checkpoint();
        self.shared.kv.set(crate::tables::CHECKPOINT_KEY.into(), Some(value));
        if let Some(batch) = self.shared.kv.freeze() {
            self.since = 0;
            self.checkpointer.start(batch, done);
        }
    }
}

/// What lies [`limits::CACHED_TAIL_BYTES`] behind a group that was just synced may leave the page cache.
fn uncache_behind(file: &dyn crate::disk::DiskFile, start: u64, len: u64) {
    let from = start.saturating_sub(limits::CACHED_TAIL_BYTES);
    let to = (start + len).saturating_sub(limits::CACHED_TAIL_BYTES);
    file.uncache(from, to - from);
}

/// Applies the records of a group and moves the end of its pack.
fn apply_group(
    tables: &mut Tables,
    group: &Group,
    read_chunk: crate::tables::ReadChunk<'_>,
) -> Result<Vec<Freed>, crate::index::IndexError> {
    let mut freed = Vec::new();
    for (record, at, bytes) in &group.records {
        freed.extend(tables.apply(record, *at, *bytes, read_chunk)?);
    }
    let end = group.next();
    tables.grow(end.pack, COMMIT_BYTES);
    if let Some(copies) = tables.copies.as_mut().filter(|c| c.pack == end.pack) {
        (copies.end, copies.group) = (end.offset, group.number());
    } else {
        (tables.end, tables.group) = (end, group.number());
    }
    Ok(freed)
}

fn push_chunks(group: &mut Group, id: Uuid, born: u64, mut members: Vec<Member>) {
    while !members.is_empty() {
        let rest = members.split_off(members.len().min(limits::CHUNK_HASHES));
        let serial = group.next().serial();
        group.push(Record::Chunk { id, born, serial, members }, Bytes::new());
        members = rest;
    }
}

impl Answer {
    fn send(self, result: Result<(), Error>) {
        match self {
            // The claims are in the log now: their holds go with the end of this arm.
            Self::Extended(done, holds) => match result {
                Ok(()) => {
                    drop(holds);
                    done.send(Ok(()));
                }
                Err(error) => done.send(Err((error, holds))),
            },
            Self::Done(done) => done.send(result),
        }
    }
}

impl crate::shared::Figures {
    pub(crate) fn set(&self, tables: &Tables) {
        use std::sync::atomic::Ordering::Relaxed;
        self.blocks.store(tables.blocks, Relaxed);
        self.bytes.store(tables.bytes, Relaxed);
        self.doubt.store(tables.doubt.is_any(), Relaxed);
        metrics::gauge!("floe_blocks").set(tables.blocks as f64);
        metrics::gauge!("floe_blocks_bytes").set(tables.bytes as f64);
    }
}
