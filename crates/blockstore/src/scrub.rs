//! Reads every record of every pack and compares packs and index both ways.
//!
//! Three questions, because each lie of a disk is seen by another one:
//! - is each record whole, and each block what its hash says? (packs)
//! - is each block that the index names where it says? (index to packs)
//! - does the index name as many live bytes of each pack as the log left there? (packs to index) A key that rot has
//!   changed is a block that looks absent, and nothing but this sum misses it: the figures of the packs are kept
//!   apart from the keys they add up.
//!
//! An index that is found wrong is made again by the next open ([`crate::mark`]); until then nothing is freed, and
//! blocks that it lost are put back from the packs at once.
//!
//! Runs beside everything else on a thread of its own. A pack that compaction takes away meanwhile is left out:
//! its live records were verified when they were copied.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};

use crate::ScrubReport;
use crate::error::Error;
use crate::limits;
use crate::packs::{self, Found, Scan};
use crate::queue::Op;
use crate::record::{Header, Key, Kind, Loc, Record};
use crate::shared::{Shared, index_error, multihash};
use crate::tables::{self, Manifest, Placed, Tables};
use crate::ticket::ticket;

/// Everything at once, at full speed.
pub(crate) fn run(shared: &Arc<Shared>) -> Result<ScrubReport, Error> {
    let mut scrub = Scrub::new(shared.clone());
    for pack in scrub.packs_from(0)? {
        if let Some(mut walk) = scrub.begin(pack) {
            while !scrub.go_on(&mut walk, u64::MAX)? {}
        }
    }
    scrub.index()?;
    scrub.weigh()?;
    Ok(scrub.report())
}

pub(crate) struct Scrub {
    shared: Arc<Shared>,
    report: ScrubReport,
    missing: BTreeSet<Key>,
    /// Damage that is not to be reported again.
    known: BTreeSet<Key>,
    /// Damaged places of sealed packs that are not weighed yet: where they begin, and where they end.
    places: BTreeMap<Loc, u64>,
}

impl Walk {
    /// Where it reads on.
    pub(crate) fn at(&self) -> u64 {
        self.scan.at()
    }
}

/// A pack being read, up to where it ended when it was begun.
pub(crate) struct Walk {
    scan: Scan,
    end: u32,
}

impl Scrub {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let (report, missing, known, places) = Default::default();
        Self { shared, report, missing, known, places }
    }

    /// Damage that is known already is left out of the report.
    pub(crate) fn only_new(&mut self) {
        self.known.clone_from(&self.shared.damaged.read());
    }

    /// The packs from `first` on, oldest first.
    pub(crate) fn packs_from(&self, first: u32) -> Result<Vec<u32>, Error> {
        let packs = self.shared.packs.list();
        let packs = packs.map_err(|e| Error::io(&self.shared.layout.packs, "list", &e))?;
        Ok(packs.into_iter().filter(|pack| *pack >= first).collect())
    }

    /// `None`: the pack is gone.
    pub(crate) fn begin(&mut self, pack: u32) -> Option<Walk> {
        let scan = self.shared.packs.scan(pack, packs::HEADER).ok()?;
        if self.shared.packs.purpose(pack).is_ok_and(|purpose| purpose.is_none()) {
            self.report.damaged_records += 1;
        }
        Some(Walk { scan, end: self.end_of(pack) })
    }

    /// Behind the end of a pack that grows a group is just being written.
    fn end_of(&self, pack: u32) -> u32 {
        self.shared.tables.lock().growing_end(pack).unwrap_or(u32::MAX)
    }

    /// Reads on for about `most` bytes. Returns whether the pack is done.
    pub(crate) fn go_on(&mut self, walk: &mut Walk, most: u64) -> Result<bool, Error> {
        let packs = self.shared.layout.packs.clone();
        let fail = |e: std::io::Error| Error::io(&packs, "read a pack in", &e);
        let until = walk.scan.at().saturating_add(most);
        while walk.scan.at() < until {
            if self.shared.stopping() {
                return Err(Error::Closed);
            }
            match walk.scan.next().map_err(fail)? {
                None => return Ok(true),
                Some(Found::Damage { from, .. }) if from >= u64::from(walk.end) => return Ok(true),
                Some(Found::Damage { from, to }) => self.spoilt(walk.scan.pack(), from, to),
                Some(Found::Record { loc, .. }) if loc.offset >= walk.end => return Ok(true),
                Some(Found::Record { loc, header, key }) => {
                    let body = walk.scan.body(loc, &header).map_err(fail)?;
                    self.record(loc, &header, &key, body)?;
                }
            }
        }
        Ok(false)
    }

    /// What was found in some packs, after a look at the index where they have blocks that it lacks.
    pub(crate) fn checked_report(mut self) -> Result<ScrubReport, Error> {
        if !self.missing.is_empty() {
            self.index()?;
        }
        self.weigh()?;
        Ok(self.report())
    }

    /// What was found so far.
    pub(crate) fn report(self) -> ScrubReport {
        let mut report = self.report;
        let damaged = self.shared.damaged.read();
        report.damaged = damaged.difference(&self.known).filter_map(|k| multihash(k)).collect();
        report.missing = self.missing.iter().filter_map(|k| multihash(k)).collect();
        report
    }

    fn record(&mut self, loc: Loc, header: &Header, key: &[u8], body: Option<Vec<u8>>) -> Result<(), Error> {
        self.report.bytes += header.record_len();
        if header.kind == Kind::Block {
            return self.block(loc, header, key, body);
        }
        match body.as_ref().map(|b| decode(header, b)) {
            Some(Some(record)) => self.members(&record, loc),
            Some(None) if header.kind == Kind::Commit => Ok(()),
            _ => {
                let from = u64::from(loc.offset);
                self.spoilt(loc.pack, from, from + header.record_len());
                Ok(())
            }
        }
    }

    /// A damaged place. In a pack that grows it counts: the next open reads that one group by group, and every record
    /// of a group is needed to see its end. Elsewhere it counts if something lives there, see [`Scrub::weigh`].
    fn spoilt(&mut self, pack: u32, from: u64, to: u64) {
        let grows = self.shared.tables.lock().growing_end(pack).is_some();
        match u32::try_from(from) {
            Ok(offset) if !grows && self.places.len() < limits::DAMAGED_PLACES => {
                self.places.insert(Loc { pack, offset }, to);
            }
            _ => self.report.damaged_records += 1,
        }
    }

    /// Of the damaged places those are damage in which the index names something. The rest is what was removed or
    /// replaced, and deletions, whose loss keeps too much and never too little.
    fn weigh(&mut self) -> Result<(), Error> {
        if self.places.is_empty() {
            return Ok(());
        }
        let mut live = BTreeSet::new();
        self.each(b"b", |scrub, key| {
            let entry = tables::entry(&scrub.shared.kv, &key[1..]).map_err(index_error)?;
            live.extend(entry.and_then(|e| scrub.place_of(e.loc)));
            Ok(())
        })?;
        self.each(b"c", |scrub, key| {
            let value = scrub.shared.kv.get(key).map_err(index_error)?;
            live.extend(value.and_then(|v| scrub.place_of(Placed::decode(&v)?.loc)));
            Ok(())
        })?;
        self.each(b"m", |scrub, key| {
            let value = scrub.shared.kv.get(key).map_err(index_error)?;
            let manifest = value.and_then(|v| Manifest::decode(&v));
            let records = manifest.map(|m| [m.record.loc, m.frontier.loc]);
            live.extend(records.into_iter().flatten().filter_map(|loc| scrub.place_of(loc)));
            Ok(())
        })?;
        let dead = (self.places.len() - live.len()) as u64;
        self.places.clear();
        self.report.damaged_records += live.len() as u64;
        self.report.dead_damage += dead;
        if dead > 0 {
            tracing::warn!(
                places = dead,
                "{dead} places of the packs are damaged in which nothing lives: they go with their packs; look at the disk"
            );
        }
        Ok(())
    }

    /// The damaged place that a record is in.
    fn place_of(&self, loc: Loc) -> Option<Loc> {
        let (place, end) = self.places.range(..=loc).next_back()?;
        (place.pack == loc.pack && u64::from(loc.offset) < *end).then_some(*place)
    }

    fn block(&mut self, loc: Loc, header: &Header, key: &[u8], body: Option<Vec<u8>>) -> Result<(), Error> {
        // A damaged key names no block here; the way from the index finds it.
        let entry = tables::entry(&self.shared.kv, key).map_err(index_error)?;
        if entry.is_none_or(|e| e.loc != loc) {
            return Ok(());
        }
        self.report.blocks += 1;
        if !body.is_some_and(|b| is_intact(key, &b[key.len()..])) {
            self.judge(key, loc, header.data_len);
        }
        Ok(())
    }

    /// A record is damaged: is its block?
    fn judge(&mut self, hash: &[u8], loc: Loc, len: u32) {
        let data = self.shared.packs.read_data(loc, hash.len(), len).unwrap_or_default();
        if is_intact(hash, &data) {
            self.report.damaged_records += 1;
        } else {
            self.shared.quarantine(hash, loc, &data);
        }
    }

    /// Every block that a manifest counts is in the index.
    fn members(&mut self, record: &Record, at: Loc) -> Result<(), Error> {
        let Record::Chunk { id, serial, members, .. } = record else { return Ok(()) };
        let counted = || tables::chunk(&self.shared.kv, *id, *serial).map_err(index_error);
        for member in members {
            let known = tables::entry(&self.shared.kv, &member.hash).map_err(index_error)?;
            // Looked at last: the chunk may have been counted down meanwhile.
            if known.is_none() && counted()?.is_some_and(|c| c.loc == at) {
                self.missing.insert(member.hash.clone());
            }
        }
        Ok(())
    }

    /// Every block that the index names is where it says, and the index names all that is live. Where it does
    /// not, it is marked to be made again.
    pub(crate) fn index(&mut self) -> Result<(), Error> {
        let before = Lives::of(&self.shared.tables.lock());
        let mut named = BTreeMap::new();
        self.each(b"b", |scrub, key| scrub.entry(&key[1..], &mut named))?;
        self.each(b"c", |scrub, key| scrub.placed(key, &mut named))?;
        self.each(b"m", |scrub, key| scrub.manifest(key, &mut named))?;
        let after = Lives::of(&self.shared.tables.lock());
        let wrong = before.disagree(&after, &named);
        if wrong.is_empty() && !self.missing.iter().any(|hash| self.is_unknown(hash)) {
            return Ok(());
        }
        self.report.index_wrong = true;
        self.shared.distrust_index("it does not name what the packs hold");
        self.put_back(&wrong)
    }

    fn is_unknown(&self, hash: &[u8]) -> bool {
        tables::entry(&self.shared.kv, hash).is_ok_and(|e| e.is_none())
    }

    fn each(
        &mut self,
        prefix: &[u8],
        mut look: impl FnMut(&mut Self, &[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let kv = self.shared.kv.clone();
        for pair in kv.pairs(prefix) {
            let (key, _) = pair.map_err(index_error)?;
            if self.shared.stopping() {
                return Err(Error::Closed);
            }
            look(self, &key)?;
        }
        Ok(())
    }

    /// By a look-up, as readers do it: a key that a scan shows and a look-up misses is lost to them.
    fn entry(&mut self, hash: &[u8], named: &mut Named) -> Result<(), Error> {
        let shared = self.shared.clone();
        let look = || tables::entry(&shared.kv, hash).map_err(index_error);
        let Some(entry) = look()? else { return Ok(()) };
        if !entry.loc.is_somewhere() {
            if !shared.damaged.read().contains(hash) {
                self.missing.insert(hash.into());
            }
            return Ok(());
        }
        add(named, tables::block_at(hash, &entry));
        let here = shared.packs.read_header(entry.loc).ok().flatten();
        let good = here.is_some_and(|(h, k)| h.kind == Kind::Block && h.data_len == entry.len && *k == *hash);
        // Compaction may have moved it since.
        if !good && look()? == Some(entry) {
            self.judge(hash, entry.loc, entry.len);
        }
        Ok(())
    }

    fn placed(&mut self, key: &[u8], named: &mut Named) -> Result<(), Error> {
        let value = self.shared.kv.get(key).map_err(index_error)?;
        if let Some(chunk) = value.and_then(|v| Placed::decode(&v)) {
            add(named, chunk);
        }
        Ok(())
    }

    fn manifest(&mut self, key: &[u8], named: &mut Named) -> Result<(), Error> {
        let value = self.shared.kv.get(key).map_err(index_error)?;
        if let Some(m) = value.and_then(|v| Manifest::decode(&v)) {
            add(named, m.record);
            add(named, m.frontier);
        }
        Ok(())
    }

    /// Blocks that the index lost are put back where the packs have them.
    fn put_back(&mut self, wrong: &BTreeSet<u32>) -> Result<(), Error> {
        let mut lost = self.unnamed(wrong)?;
        self.strike_dead(&mut lost, wrong)?;
        for (hash, (loc, len)) in lost {
            let read = self.shared.packs.read_record(loc).ok().flatten();
            if !read.is_some_and(|(h, body)| is_intact(&hash, &body[h.key_len as usize..])) {
                self.missing.insert(hash);
                continue;
            }
            let (done, answer) = ticket();
            self.shared.queue.push(Op::Restore { hash: hash.clone(), loc, len, done });
            answer.wait().unwrap_or(Err(Error::Closed))?;
            self.missing.remove(&hash);
            self.report.restored.extend(multihash(&hash));
        }
        Ok(())
    }

    /// The last record of each block in these packs that the index does not know, and of each that is missing.
    fn unnamed(&self, wrong: &BTreeSet<u32>) -> Result<Lost, Error> {
        let mut lost = Lost::new();
        self.each_record(|loc, header, key, _| {
            if header.kind != Kind::Block || !wrong.contains(&loc.pack) && !self.missing.contains(key) {
                return Ok(());
            }
            if tables::entry(&self.shared.kv, key).map_err(index_error)?.is_some() {
                return Ok(());
            }
            if lost.len() >= limits::LOST_BLOCKS && !lost.contains_key(key) {
                limits::hit("blockstore_lost_blocks");
                return Ok(());
            }
            lost.insert(key.into(), (loc, header.data_len));
            Ok(())
        })?;
        Ok(lost)
    }

    /// A tombstone that names the record, or a later record that died in a pack whose sum is right: not lost.
    fn strike_dead(&self, lost: &mut Lost, wrong: &BTreeSet<u32>) -> Result<(), Error> {
        self.each_record(|loc, header, key, scan| {
            if header.kind == Kind::Block && !wrong.contains(&loc.pack) {
                if lost.get(key).is_some_and(|(last, _)| *last < loc) {
                    lost.remove(key);
                }
            } else if header.kind == Kind::Step
                && let Ok(Some(body)) = scan.body(loc, header)
                && let Some(Record::Step { tombs, .. }) = decode(header, &body)
            {
                for tomb in tombs {
                    if lost.get(&tomb.hash).is_some_and(|(at, _)| *at == tomb.loc) {
                        lost.remove(&tomb.hash);
                    }
                }
            }
            Ok(())
        })
    }

    fn each_record(
        &self,
        mut look: impl FnMut(Loc, &Header, &[u8], &Scan) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for pack in self.packs_from(0)? {
            let Ok(mut scan) = self.shared.packs.scan(pack, packs::HEADER) else { continue };
            let end = self.end_of(pack);
            while let Ok(Some(found)) = scan.next() {
                if self.shared.stopping() {
                    return Err(Error::Closed);
                }
                match found {
                    Found::Record { loc, .. } if loc.offset >= end => break,
                    Found::Record { loc, header, key } => look(loc, &header, &key, &scan)?,
                    Found::Damage { .. } => {}
                }
            }
        }
        Ok(())
    }
}

/// Bytes of live records that the index names, by pack.
type Named = BTreeMap<u32, u64>;
/// Blocks that the index lost: where the packs have them, and how long they are.
type Lost = BTreeMap<Key, (Loc, u32)>;

fn add(named: &mut Named, at: Placed) {
    if at.loc.is_somewhere() {
        *named.entry(at.loc.pack).or_default() += u64::from(at.bytes);
    }
}

/// What the figures of the packs say at one moment.
struct Lives {
    live: BTreeMap<u32, u64>,
    /// Where the packs that grow end.
    ends: BTreeMap<u32, u32>,
}

impl Lives {
    fn of(tables: &Tables) -> Self {
        let live = tables.packs.iter().map(|(pack, s)| (*pack, s.live)).collect();
        let ends = tables.packs.keys().filter_map(|pack| Some((*pack, tables.growing_end(*pack)?))).collect();
        Self { live, ends }
    }

    /// The packs of which the index named more or less than was live between the two moments. A pack that did
    /// not grow can only have lost live bytes meanwhile: what is live at the end was live, and named, throughout.
    fn disagree(&self, after: &Self, named: &Named) -> BTreeSet<u32> {
        let mut wrong = BTreeSet::new();
        for (pack, least) in &after.live {
            let Some(most) = self.live.get(pack) else { continue };
            let grew = self.ends.get(pack) != after.ends.get(pack);
            let sum = named.get(pack).copied().unwrap_or(0);
            if !grew && !(*least..=*most).contains(&sum) {
                wrong.insert(*pack);
            }
        }
        wrong
    }
}

fn decode(header: &Header, body: &[u8]) -> Option<Record> {
    let (key, data) = body.split_at_checked(header.key_len as usize)?;
    Record::decode(header.kind, key, data, header.data_len)
}

fn is_intact(key: &[u8], data: &[u8]) -> bool {
    multihash(key)
        .is_some_and(|hash| Block::new(Cid::new_v1(code::RAW, hash), Bytes::copy_from_slice(data)).is_ok())
}

#[cfg(test)]
mod tests {
    use floe_core::ManualClock;

    use super::*;
    use crate::testing::FaultyDisk;
    use crate::{BlockStore, Components, IndexKind, Settings};

    /// What is above the bound counts as damage although nothing lives there: the store is empty.
    #[test]
    fn damaged_places_at_the_boundary() {
        const SEALED: u32 = 9;
        let settings = Settings {
            dir: "/blocks".into(),
            index: IndexKind::Redb,
            pack_bytes: 64 << 10,
            reserve_bytes: None,
        };
        let (clock, entropy) = (Arc::new(ManualClock::default()), Arc::new(floe_core::Seeded::new(1)));
        let components = Components { disk: Arc::new(FaultyDisk::default()), clock, entropy };
        let store = BlockStore::open(settings, components).unwrap();
        let most = limits::DAMAGED_PLACES as u64;
        for (places, unweighed) in [(most - 1, 0), (most, 0), (most + 1, 1)] {
            let mut scrub = Scrub::new(store.shared().clone());
            (0..places).for_each(|n| scrub.spoilt(SEALED, 64 * n, 64 * n + 32));
            let report = scrub.checked_report().unwrap();
            assert_eq!((report.damaged_records, report.dead_damage), (unweighed, places - unweighed));
        }
    }
}
