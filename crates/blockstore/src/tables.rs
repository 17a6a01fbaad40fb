//! What the log means: references, manifests and packs, as a pure function of the records in order.
//!
//! The writer applies each record after it was synced; open applies the tail of the log again; a rebuild applies
//! the whole log. All three come through [`Tables::apply`], so they cannot disagree.
//!
//! Every rule here holds for records that compaction has moved to a later place:
//! - a block, chunk or manifest record that was seen before only moves;
//! - a chunk counts once, whatever happens to its record: its serial says which it is;
//! - a tombstone deletes the record it names and no other, a `Gone` the manifest of its birth and no later one;
//! - a record that compaction copied was live when it was copied, so nothing that the log says between the copy's
//!   number and that moment concerned it: reading the copy first comes to the same;
//! - in a rebuild a chunk may come before the blocks it names: an entry then has references and no place.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;

use crate::ManifestTotals;
use crate::index::{IndexError, Layered};
use crate::limits;
use crate::packs;
use crate::record::{Key, Loc, Member, Reader, Record, State, Tomb, record_len};

/// The version of everything in the index. Another version is thrown away and built again.
const INDEX_VERSION: u32 = 3;
pub(crate) const CHECKPOINT_KEY: &[u8] = b"s";

/// What the index says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) loc: Loc,
    pub(crate) len: u32,
    pub(crate) refs: u32,
}

/// What the index says of a chunk: where it is and how long its record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Placed {
    pub(crate) loc: Loc,
    pub(crate) bytes: u32,
}

/// What the index says of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) state: State,
    pub(crate) born: u64,
    /// What its chunks held when it was sealed.
    pub(crate) whole: Option<ManifestTotals>,
    /// What the chunks that are known hold.
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    pub(crate) record: Placed,
    pub(crate) frontier: Placed,
    pub(crate) root: Bytes,
}

/// Bytes of one pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PackStat {
    /// All records.
    pub(crate) total: u64,
    /// Records that mean something: current blocks, chunks, manifests, frontiers.
    pub(crate) live: u64,
    /// Steps and `Gone`s: they mean something as long as an older pack exists.
    pub(crate) negative: u64,
    /// Given back to the volume by punching.
    pub(crate) punched: u64,
    /// What punching has still to give back: the whole pages of large blocks that were removed. Which they are is in the
    /// tombstones; this says that it is worth looking for them.
    pub(crate) unpunched: u64,
}

/// How far the pack that compaction fills is applied and durable. Its groups have numbers of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copies {
    pub(crate) pack: u32,
    pub(crate) end: u32,
    pub(crate) group: u64,
}

/// A dead record whose space may be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Freed {
    pub(crate) loc: Loc,
    pub(crate) key_len: usize,
    pub(crate) len: u32,
}

impl Freed {
    /// The bytes that punching gives back, where that is worth it.
    pub(crate) fn hole(&self) -> Option<std::ops::Range<u64>> {
        let pages = packs::whole_pages(self.loc, self.key_len, self.len);
        (u64::from(self.len) >= limits::PUNCH_BYTES && !pages.is_empty()).then_some(pages)
    }

    /// How many bytes that is.
    pub(crate) fn hole_bytes(&self) -> u64 {
        self.hole().map_or(0, |pages| pages.end - pages.start)
    }
}

/// Reads a chunk's members back. `None` where its record is damaged.
pub(crate) type ReadChunk<'a> = &'a dyn Fn(Placed) -> Option<Vec<Member>>;

pub(crate) struct Tables {
    pub(crate) kv: std::sync::Arc<Layered>,
    pub(crate) salt: u64,
    /// Where the log ends: everything before it is applied and durable.
    pub(crate) end: Loc,
    /// The last group applied.
    pub(crate) group: u64,
    pub(crate) packs: BTreeMap<u32, PackStat>,
    /// The pack that compaction fills, if it fills one.
    pub(crate) copies: Option<Copies>,
    pub(crate) blocks: u64,
    pub(crate) bytes: u64,
    /// Blocks that are here and that nobody counts: what the collector has to look at again, because a hold kept
    /// it from freeing them.
    pub(crate) zero: BTreeSet<Key>,
    /// There may be such blocks that are not in `zero`, which is bounded: the collector has to look at every block.
    pub(crate) unlisted: bool,
    /// One was left out since the collector last began to look.
    pub(crate) unlisted_again: bool,
    pub(crate) doubt: Doubt,
    /// A record was lost that may have said which blocks were deleted. Ends with a checkpoint behind the look that
    /// open takes at every block.
    pub(crate) lost_deletion: bool,
}

/// Why nothing may be freed: what looks unreferenced may not be. Each reason has its end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Doubt {
    /// The index was caught lying. Ends with the next open, which makes a new one.
    pub(crate) index: bool,
    /// Records were lost that nothing else tells of: a whole manifest, perhaps. Ends when the owner of the
    /// manifests finds all that it needs ([`crate::BlockStore::confirm`]).
    pub(crate) unknown: bool,
    /// The manifests were looked at since, and those are open again that may lack some of them.
    pub(crate) judged: bool,
    /// Manifests that lost chunks, or may have. Each ends when it is walked to its end again, or released.
    pub(crate) manifests: BTreeSet<Uuid>,
}

impl Doubt {
    pub(crate) fn is_any(&self) -> bool {
        self.index || self.unknown || !self.manifests.is_empty()
    }

    /// Records were lost of which nothing is known.
    pub(crate) fn learn(&mut self) {
        (self.unknown, self.judged) = (true, false);
    }

    /// Nobody misses what was lost. Whether anything was.
    pub(crate) fn settle(&mut self) -> bool {
        self.judged = false;
        std::mem::take(&mut self.unknown)
    }
}

pub(crate) fn block_key(hash: &[u8]) -> Box<[u8]> {
    [b"b", hash].concat().into()
}

pub(crate) fn damage_key(hash: &[u8]) -> Box<[u8]> {
    [b"d", hash].concat().into()
}

pub(crate) fn manifest_key(id: Uuid) -> Box<[u8]> {
    [b"m", &id.as_bytes()[..]].concat().into()
}

pub(crate) fn releasing_key(id: Uuid) -> Box<[u8]> {
    [b"r", &id.as_bytes()[..]].concat().into()
}

/// The prefix of a manifest's chunks; the serial follows, big endian.
pub(crate) fn chunk_prefix(id: Uuid) -> Box<[u8]> {
    [b"c", &id.as_bytes()[..]].concat().into()
}

pub(crate) fn chunk_key(id: Uuid, serial: u64) -> Box<[u8]> {
    [b"c", &id.as_bytes()[..], &serial.to_be_bytes()].concat().into()
}

/// The serial at the end of a chunk's key.
pub(crate) fn chunk_serial(key: &[u8]) -> Option<u64> {
    key.get(17..)?.try_into().ok().map(u64::from_be_bytes)
}

fn put(w: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|v| w.extend_from_slice(&v.to_le_bytes()));
}

fn put64(w: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|v| w.extend_from_slice(&v.to_le_bytes()));
}

fn read_loc(r: &mut Reader<'_>) -> Option<Loc> {
    Some(Loc { pack: r.u32()?, offset: r.u32()? })
}

impl Entry {
    pub(crate) fn encode(&self) -> Box<[u8]> {
        let mut w = Vec::with_capacity(16);
        put(&mut w, &[self.loc.pack, self.loc.offset, self.len, self.refs]);
        w.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        Some(Self { loc: read_loc(&mut r)?, len: r.u32()?, refs: r.u32()? })
    }
}

impl Placed {
    fn put(self, w: &mut Vec<u8>) {
        put(w, &[self.loc.pack, self.loc.offset, self.bytes]);
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        Some(Self { loc: read_loc(r)?, bytes: r.u32()? })
    }

    pub(crate) fn encode(self) -> Box<[u8]> {
        let mut w = Vec::with_capacity(12);
        self.put(&mut w);
        w.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        Self::read(&mut Reader(bytes))
    }
}

impl Manifest {
    fn new(born: u64) -> Self {
        Self {
            state: State::Open,
            born,
            whole: None,
            blocks: 0,
            bytes: 0,
            record: Placed::default(),
            frontier: Placed::default(),
            root: Bytes::new(),
        }
    }

    pub(crate) fn encode(&self) -> Box<[u8]> {
        let mut w = Vec::with_capacity(50 + self.root.len());
        w.extend_from_slice(&[self.state as u8, u8::from(self.whole.is_some())]);
        let whole = self.whole.unwrap_or_default();
        put64(&mut w, &[self.born, whole.blocks, whole.bytes, self.blocks, self.bytes]);
        self.record.put(&mut w);
        self.frontier.put(&mut w);
        w.extend_from_slice(&self.root);
        w.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut r = Reader(bytes);
        let state = State::from_u8(r.take(1)?[0])?;
        let is_whole = r.take(1)?[0] != 0;
        let born = r.u64()?;
        let whole = ManifestTotals { blocks: r.u64()?, bytes: r.u64()? };
        Some(Self {
            state,
            born,
            whole: is_whole.then_some(whole),
            blocks: r.u64()?,
            bytes: r.u64()?,
            record: Placed::read(&mut r)?,
            frontier: Placed::read(&mut r)?,
            root: Bytes::copy_from_slice(r.rest()),
        })
    }

    /// Whether chunks are known to be lost.
    pub(crate) fn lacks(&self) -> bool {
        self.whole.is_some_and(|whole| self.blocks < whole.blocks)
    }
}

impl PackStat {
    /// Bytes that compacting the pack would give back.
    pub(crate) fn dead(&self, is_oldest: bool) -> u64 {
        let negative = if is_oldest { 0 } else { self.negative };
        self.total.saturating_sub(self.live + negative + self.punched)
    }

    /// Bytes that compacting the pack would copy.
    pub(crate) fn copied_bytes(&self, is_oldest: bool) -> u64 {
        if is_oldest { self.live } else { self.live + self.negative }
    }

    /// Bytes the pack still takes on the volume.
    pub(crate) fn held(&self) -> u64 {
        self.total.saturating_sub(self.punched)
    }
}

/// What a value of the index that does not decode means: the index disagrees with this code.
fn garbled(what: &str) -> IndexError {
    IndexError::Broken(format!("the index holds a {what} that cannot be read"))
}

impl Tables {
    pub(crate) fn new(kv: std::sync::Arc<Layered>, salt: u64) -> Self {
        Self {
            kv,
            salt,
            end: Loc::default(),
            group: 0,
            packs: BTreeMap::new(),
            copies: None,
            blocks: 0,
            bytes: 0,
            zero: BTreeSet::new(),
            unlisted: false,
            unlisted_again: false,
            doubt: Doubt::default(),
            lost_deletion: false,
        }
    }

    /// The state as of the last checkpoint. `None`: there is none, or it is of another store or version.
    pub(crate) fn load(kv: std::sync::Arc<Layered>, salt: u64) -> Result<Option<Self>, IndexError> {
        let Some(bytes) = kv.get(CHECKPOINT_KEY)? else { return Ok(None) };
        let mut tables = Self::new(kv, salt);
        let read = tables.decode_checkpoint(&mut Reader(&bytes));
        // Distrusted, and the mark that says so could not be written.
        Ok(read.filter(|()| !tables.doubt.index).map(|()| tables))
    }

    fn decode_checkpoint(&mut self, r: &mut Reader<'_>) -> Option<()> {
        if r.u32()? != INDEX_VERSION || r.u64()? != self.salt {
            return None;
        }
        self.end = read_loc(r)?;
        (self.group, self.blocks, self.bytes) = (r.u64()?, r.u64()?, r.u64()?);
        let doubt = r.u32()?;
        (self.doubt.index, self.doubt.unknown) = (doubt & 1 != 0, doubt & 2 != 0);
        (self.unlisted, self.lost_deletion) = (doubt & 4 != 0, doubt & 8 != 0);
        self.doubt.judged = doubt & 16 != 0;
        let copies = Copies { pack: r.u32()?, end: r.u32()?, group: r.u64()? };
        self.copies = Some(copies).filter(|c| c.pack != 0);
        for _ in 0..r.u32()? {
            let pack = r.u32()?;
            let (total, live, negative) = (r.u64()?, r.u64()?, r.u64()?);
            let stat = PackStat { total, live, negative, punched: r.u64()?, unpunched: r.u64()? };
            self.packs.insert(pack, stat);
        }
        for _ in 0..r.u32()? {
            self.zero.insert(r.hash()?);
        }
        for _ in 0..r.u32()? {
            self.doubt.manifests.insert(Uuid::from_slice(r.take(16)?).ok()?);
        }
        r.0.is_empty().then_some(())
    }

    /// What a checkpoint stores beside the changed keys.
    pub(crate) fn encode_checkpoint(&self) -> Box<[u8]> {
        let mut w = Vec::new();
        put(&mut w, &[INDEX_VERSION]);
        put64(&mut w, &[self.salt]);
        put(&mut w, &[self.end.pack, self.end.offset]);
        put64(&mut w, &[self.group, self.blocks, self.bytes]);
        let Doubt { index, unknown, judged, .. } = self.doubt;
        let doubt = [index, unknown, self.unlisted, self.lost_deletion, judged];
        put(&mut w, &[doubt.iter().zip(0..).map(|(is, bit)| u32::from(*is) << bit).sum()]);
        let copies = self.copies.unwrap_or(Copies { pack: 0, end: 0, group: 0 });
        put(&mut w, &[copies.pack, copies.end]);
        put64(&mut w, &[copies.group]);
        put(&mut w, &[u32::try_from(self.packs.len()).unwrap_or(u32::MAX)]);
        for (pack, s) in &self.packs {
            put(&mut w, &[*pack]);
            put64(&mut w, &[s.total, s.live, s.negative, s.punched, s.unpunched]);
        }
        put(&mut w, &[u32::try_from(self.zero.len()).unwrap_or(u32::MAX)]);
        for hash in &self.zero {
            w.push(u8::try_from(hash.len()).expect("a multihash is shorter than 256 bytes"));
            w.extend_from_slice(hash);
        }
        put(&mut w, &[u32::try_from(self.doubt.manifests.len()).unwrap_or(u32::MAX)]);
        self.doubt.manifests.iter().for_each(|id| w.extend_from_slice(id.as_bytes()));
        w.into()
    }

    pub(crate) fn entry(&self, hash: &[u8]) -> Result<Option<Entry>, IndexError> {
        entry(&self.kv, hash)
    }

    pub(crate) fn manifest(&self, id: Uuid) -> Result<Option<Manifest>, IndexError> {
        manifest(&self.kv, id)
    }

    pub(crate) fn chunk(&self, id: Uuid, serial: u64) -> Result<Option<Placed>, IndexError> {
        chunk(&self.kv, id, serial)
    }

    /// Where what is written of a pack ends, for the packs that grow.
    pub(crate) fn growing_end(&self, pack: u32) -> Option<u32> {
        let log = Some(self.end).filter(|end| end.pack == pack).map(|end| end.offset);
        log.or_else(|| self.copies.filter(|c| c.pack == pack).map(|c| c.end))
    }

    pub(crate) fn is_oldest(&self, pack: u32) -> bool {
        self.packs.first_key_value().is_none_or(|(oldest, _)| *oldest >= pack)
    }

    /// Whether a record read at `at` still means something there.
    pub(crate) fn is_live(&self, record: &Record, at: Loc) -> Result<bool, IndexError> {
        Ok(match record {
            Record::Block { hash, .. } => self.entry(hash)?.is_some_and(|e| e.loc == at),
            Record::Chunk { id, serial, .. } => self.chunk(*id, *serial)?.is_some_and(|c| c.loc == at),
            Record::Manifest { id, .. } => self.manifest(*id)?.is_some_and(|m| m.record.loc == at),
            Record::Frontier { id, .. } => self.manifest(*id)?.is_some_and(|m| m.frontier.loc == at),
            Record::Step { through, .. } | Record::Gone { through, .. } => {
                self.packs.keys().any(|p| p <= through && *p != at.pack)
            }
        })
    }

    /// Takes a record of the log, `bytes` long at `at`, into account. Returns what it made free.
    pub(crate) fn apply(
        &mut self,
        record: &Record,
        at: Loc,
        bytes: u64,
        read_chunk: ReadChunk<'_>,
    ) -> Result<Vec<Freed>, IndexError> {
        let here = Placed { loc: at, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) };
        self.grow(at.pack, bytes);
        match record {
            Record::Block { hash, len } => self.apply_block(hash, *len, here)?,
            Record::Manifest { id, born, state, whole, root } => {
                self.apply_manifest(*id, *born, (*state, *whole), root, here)?;
            }
            Record::Chunk { id, born, serial, members } => {
                self.apply_chunk(*id, *born, *serial, members, here)?;
            }
            Record::Frontier { id, born, .. } => self.apply_frontier(*id, *born, here)?,
            Record::Step { id, chunks, tombs, .. } => {
                self.packs.entry(at.pack).or_default().negative += bytes;
                return self.apply_step(*id, chunks, tombs, read_chunk);
            }
            Record::Gone { id, born, .. } => {
                self.packs.entry(at.pack).or_default().negative += bytes;
                self.apply_gone(*id, *born)?;
            }
        }
        Ok(Vec::new())
    }

    /// Bytes of a pack that mean nothing by themselves: its header, the ends of groups.
    pub(crate) fn grow(&mut self, pack: u32, bytes: u64) {
        self.packs.entry(pack).or_default().total += bytes;
    }

    fn revive(&mut self, at: Placed) {
        self.packs.entry(at.loc.pack).or_default().live += u64::from(at.bytes);
    }

    /// The record at `at` means nothing any more. Its pack may be gone already, in a rebuild.
    fn bury(&mut self, at: Placed) {
        if let Some(stat) = self.packs.get_mut(&at.loc.pack) {
            stat.live = stat.live.saturating_sub(u64::from(at.bytes));
        }
    }

    fn set_entry(&mut self, hash: &[u8], entry: &Entry) {
        self.kv.set(block_key(hash), Some(entry.encode()));
    }

    fn set_manifest(&mut self, id: Uuid, m: &Manifest) {
        self.kv.set(manifest_key(id), Some(m.encode()));
    }

    fn apply_block(&mut self, hash: &[u8], len: u32, here: Placed) -> Result<(), IndexError> {
        let old = self.entry(hash)?.unwrap_or_default();
        if old.loc.is_somewhere() {
            self.bury(block_at(hash, &old));
        } else {
            self.blocks += 1;
            self.bytes += u64::from(len);
        }
        self.revive(here);
        self.set_entry(hash, &Entry { loc: here.loc, len, refs: old.refs });
        if self.kv.get(&damage_key(hash))?.is_some() {
            self.kv.set(damage_key(hash), None);
        }
        Ok(())
    }

    /// The manifest of that birth. In a rebuild an earlier life of the id may still be there, because compaction
    /// moved its end behind this record: what it held means nothing any more.
    fn manifest_of(&mut self, id: Uuid, born: u64) -> Result<Manifest, IndexError> {
        match self.manifest(id)? {
            Some(m) if m.born == born => Ok(m),
            Some(earlier) => {
                self.bury(earlier.record);
                self.bury(earlier.frontier);
                self.kv.set(releasing_key(id), None);
                Ok(Manifest::new(born))
            }
            None => Ok(Manifest::new(born)),
        }
    }

    fn apply_manifest(
        &mut self,
        id: Uuid,
        born: u64,
        (state, whole): (State, Option<ManifestTotals>),
        root: &Bytes,
        here: Placed,
    ) -> Result<(), IndexError> {
        let mut m = self.manifest_of(id, born)?;
        self.bury(m.record);
        self.revive(here);
        m.state = m.state.max(state);
        m.whole = whole.or(m.whole);
        m.record = here;
        m.root.clone_from(root);
        self.set_manifest(id, &m);
        if m.state != State::Open {
            self.doubt.manifests.remove(&id);
        }
        if m.state == State::Releasing {
            self.kv.set(releasing_key(id), Some(Box::default()));
        }
        Ok(())
    }

    fn apply_chunk(
        &mut self,
        id: Uuid,
        born: u64,
        serial: u64,
        members: &[Member],
        here: Placed,
    ) -> Result<(), IndexError> {
        let known = self.chunk(id, serial)?;
        self.revive(here);
        self.kv.set(chunk_key(id, serial), Some(here.encode()));
        if let Some(old) = known {
            self.bury(old);
            return Ok(());
        }
        let mut m = self.manifest_of(id, born)?;
        for member in members {
            let mut entry =
                self.entry(&member.hash)?.unwrap_or(Entry { len: member.len, ..Entry::default() });
            if entry.refs == 0 && entry.loc.is_somewhere() {
                self.zero.remove(&member.hash);
            }
            entry.refs = entry.refs.saturating_add(1);
            self.set_entry(&member.hash, &entry);
            m.blocks += 1;
            m.bytes += u64::from(member.len);
        }
        self.set_manifest(id, &m);
        Ok(())
    }

    fn apply_frontier(&mut self, id: Uuid, born: u64, here: Placed) -> Result<(), IndexError> {
        let mut m = self.manifest_of(id, born)?;
        self.bury(m.frontier);
        self.revive(here);
        m.frontier = here;
        self.set_manifest(id, &m);
        Ok(())
    }

    fn apply_step(
        &mut self,
        id: Uuid,
        chunks: &[u64],
        tombs: &[Tomb],
        read_chunk: ReadChunk<'_>,
    ) -> Result<Vec<Freed>, IndexError> {
        for serial in chunks {
            let Some(placed) = self.chunk(id, *serial)? else { continue };
            // Members of a damaged chunk stay counted: space is lost, never a block.
            if let Some(members) = read_chunk(placed) {
                self.count_down(&members)?;
            }
            self.bury(placed);
            self.kv.set(chunk_key(id, *serial), None);
        }
        let mut freed = Vec::new();
        for tomb in tombs {
            freed.extend(self.apply_tomb(tomb)?);
        }
        Ok(freed)
    }

    fn count_down(&mut self, members: &[Member]) -> Result<(), IndexError> {
        for member in members {
            let Some(mut entry) = self.entry(&member.hash)? else { continue };
            entry.refs = entry.refs.saturating_sub(1);
            if entry.refs == 0 && entry.loc.is_somewhere() {
                self.note_zero(&member.hash);
            }
            if entry.refs == 0 && !entry.loc.is_somewhere() {
                self.forget(&member.hash)?;
            } else {
                self.set_entry(&member.hash, &entry);
            }
        }
        Ok(())
    }

    /// A block is here and nobody counts it.
    pub(crate) fn note_zero(&mut self, hash: &[u8]) {
        if self.zero.len() < limits::ZERO_KEYS {
            self.zero.insert(hash.into());
        } else if !self.zero.contains(hash) {
            limits::hit("blockstore_zero_keys");
            (self.unlisted, self.unlisted_again) = (true, true);
        }
    }

    fn apply_tomb(&mut self, tomb: &Tomb) -> Result<Option<Freed>, IndexError> {
        let Some(entry) = self.entry(&tomb.hash)?.filter(|e| e.loc == tomb.loc) else { return Ok(None) };
        self.bury(block_at(&tomb.hash, &entry));
        self.blocks = self.blocks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(entry.len));
        self.zero.remove(&tomb.hash);
        if entry.refs == 0 {
            self.forget(&tomb.hash)?;
        } else {
            // Only in a rebuild whose order compaction has changed: a later record says where it is now.
            self.set_entry(&tomb.hash, &Entry { loc: Loc::default(), ..entry });
        }
        let freed = Freed { loc: entry.loc, key_len: tomb.hash.len(), len: entry.len };
        if let Some(stat) = self.packs.get_mut(&freed.loc.pack) {
            stat.unpunched += freed.hole_bytes();
        }
        Ok(Some(freed))
    }

    fn forget(&mut self, hash: &[u8]) -> Result<(), IndexError> {
        self.kv.set(block_key(hash), None);
        if self.kv.get(&damage_key(hash))?.is_some() {
            self.kv.set(damage_key(hash), None);
        }
        Ok(())
    }

    fn apply_gone(&mut self, id: Uuid, born: u64) -> Result<(), IndexError> {
        if let Some(m) = self.manifest(id)?.filter(|m| m.born == born) {
            self.bury(m.record);
            self.bury(m.frontier);
            self.kv.set(manifest_key(id), None);
            self.kv.set(releasing_key(id), None);
        }
        Ok(())
    }

    /// After a rebuild, or records that were lost: a manifest that lacks chunks has to be walked again. `lossy`: it
    /// is not known of which manifests the lost records were.
    pub(crate) fn judge(&mut self, id: Uuid, mut m: Manifest, lossy: bool) {
        let sealed_blindly = m.state == State::Sealed && m.whole.is_none();
        let suspect = m.lacks() || lossy && (sealed_blindly || m.state == State::Open);
        if m.state == State::Releasing || !suspect {
            return;
        }
        // From the root: what lies before the frontier may be what was lost.
        self.bury(std::mem::take(&mut m.frontier));
        m.state = State::Open;
        self.set_manifest(id, &m);
        self.doubt.manifests.insert(id);
    }

    /// The block is no longer where the index says: its bytes are bad and its pack goes away.
    pub(crate) fn displace(&mut self, hash: &[u8], from: Loc) -> Result<(), IndexError> {
        if let Some(entry) = self.entry(hash)?.filter(|e| e.loc == from) {
            self.bury(block_at(hash, &entry));
            self.blocks = self.blocks.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(u64::from(entry.len));
            self.set_entry(hash, &Entry { loc: Loc::default(), ..entry });
        }
        Ok(())
    }

    /// The index lost the block; the packs have it at `loc`. Their figures count it still. How many manifests
    /// count it only a rebuild can say: until then nothing is freed, and one reference keeps it.
    pub(crate) fn restore(&mut self, hash: &[u8], loc: Loc, len: u32) -> Result<(), IndexError> {
        if self.entry(hash)?.is_none() && self.packs.contains_key(&loc.pack) {
            self.set_entry(hash, &Entry { loc, len, refs: 1 });
        }
        Ok(())
    }
}

/// Where a block's record is, and how long.
pub(crate) fn block_at(hash: &[u8], entry: &Entry) -> Placed {
    let bytes = record_len(hash.len(), entry.len as usize);
    Placed { loc: entry.loc, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
}

pub(crate) fn entry(kv: &Layered, hash: &[u8]) -> Result<Option<Entry>, IndexError> {
    let Some(bytes) = kv.get(&block_key(hash))? else { return Ok(None) };
    Entry::decode(&bytes).ok_or_else(|| garbled("block")).map(Some)
}

pub(crate) fn chunk(kv: &Layered, id: Uuid, serial: u64) -> Result<Option<Placed>, IndexError> {
    let Some(bytes) = kv.get(&chunk_key(id, serial))? else { return Ok(None) };
    Placed::decode(&bytes).ok_or_else(|| garbled("chunk")).map(Some)
}

pub(crate) fn manifest(kv: &Layered, id: Uuid) -> Result<Option<Manifest>, IndexError> {
    let Some(bytes) = kv.get(&manifest_key(id))? else { return Ok(None) };
    Manifest::decode(&bytes).ok_or_else(|| garbled("manifest")).map(Some)
}
