//! Open: from whatever a crash left to tables that agree with the packs.
//!
//! 1. The index is opened and its checkpoint read. If it does not open, is of another store or version, or names
//!    what the packs do not have, it is thrown away and everything is read from the first pack on.
//! 2. What the packs have behind the checkpoint is applied, in order of their numbers. Where a pack was being
//!    written, by the log or by compaction, every body is checked, because its last group may be torn; other
//!    packs are whole, so only headers are read for blocks.
//! 3. A torn group is cut off. What compaction did not finish is in the packs it copied from still.
//!
//! A bad record that is not the torn end is damage: it is reported and passed over, and never keeps the store
//! from opening. The two are told apart by group numbers: a group is only begun when the one before it is
//! synced, so a bad record with a later group behind it was once whole.
//!
//! A sealed pack is read by its hint ([`crate::hints`]) where there is one that holds.
//!
//! Everything here can be cut off and begun again. A replay notes how far it is, and with that what it learned of lost
//! records: the next open begins behind them.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use crate::IndexKind;
use crate::disk::Disk;
use crate::error::Error;
use crate::format::Layout;
use crate::group::COMMIT_BYTES;
use crate::hints::{Hint, Hints};
use crate::index::redb_index::RedbIndex;
use crate::index::{BlockIndex, IndexError, Layered, redb_index};
use crate::limits;
use crate::mark::Mark;
use crate::packs::{self, Found, Packs, Purpose, Scan};
use crate::record::{Header, Key, Kind, Loc, Record};
use crate::shared::index_error;
use crate::tables::{Copies, Entry, Manifest, Placed, Tables, damage_key};

pub(crate) struct Recovery<'a> {
    pub(crate) disk: &'a Arc<dyn Disk>,
    pub(crate) layout: &'a Layout,
    pub(crate) packs: &'a Packs,
    pub(crate) hints: &'a Hints,
    pub(crate) kind: IndexKind,
    pub(crate) salt: u64,
    pub(crate) mark: &'a Arc<Mark>,
    /// Changed keys after which a replay notes how far it is: [`limits::CHECKPOINT_KEYS`], but in tests.
    pub(crate) flush_keys: usize,
}

/// What open begins with.
pub(crate) struct Recovered {
    pub(crate) tables: Tables,
    /// Blocks that are known to be damaged. A new index knows of few: reads and the scrub find the others again.
    pub(crate) damaged: BTreeSet<Key>,
    /// Packs that were read by their hints.
    pub(crate) hinted: usize,
}

impl Recovery<'_> {
    pub(crate) fn run(&self) -> Result<Recovered, Error> {
        self.remove_other_index()?;
        let ids = self.settle_newest()?;
        if self.mark.is_set().map_err(|e| self.mark_failed(&e))? {
            self.remove_index(self.kind)?;
        }
        match self.resume(&ids) {
            Ok(Some(recovered)) => return Ok(recovered),
            Ok(None) => {}
            Err(Trouble::Index(e)) => {
                tracing::error!("the block index is not usable and is made again from the packs: {e}");
            }
            Err(Trouble::Disk(e)) => return Err(e),
        }
        let rebuilt = ids.len() > 1 || self.packs_have_records(&ids)?;
        if rebuilt {
            self.mark.write().map_err(|e| self.mark_failed(&e))?;
        }
        let kv = self.empty_index()?;
        let mut tables = Tables::new(kv, self.salt);
        let hinted = self.replay(&mut tables, &ids).map_err(Trouble::into_error)?;
        if rebuilt {
            tracing::warn!(
                blocks = tables.blocks,
                "made the block index again from {} packs, {hinted} of them by their hints",
                ids.len()
            );
            // Which blocks nobody counts is nowhere in the log.
            tables.unlisted = true;
            let lossy = tables.doubt.unknown;
            self.judge(&mut tables, lossy).map_err(index_error)?;
            self.find_hollow(&mut tables).map_err(Trouble::into_error)?;
            write_checkpoint(&tables).map_err(index_error)?;
        }
        // Last: a rebuild that was cut off begins again.
        self.mark.clear().map_err(|e| self.mark_failed(&e))?;
        let damaged = known_damage(&tables).map_err(index_error)?;
        Ok(Recovered { tables, damaged, hinted })
    }

    fn mark_failed(&self, e: &std::io::Error) -> Error {
        Error::io(&self.layout.root, "keep the mark for a rebuild in", e)
    }

    /// Makes the first pack, or does away with a newest one whose making was cut off.
    fn settle_newest(&self) -> Result<Vec<u32>, Error> {
        let fail = |e| Error::io(&self.layout.packs, "read", &e);
        let mut ids = self.packs.list().map_err(fail)?;
        if let Some(newest) = ids.last().copied()
            && self.packs.purpose(newest).map_err(fail)?.is_none()
            && self.packs.scan(newest, 0).and_then(|mut s| last_group(&mut s)).map_err(fail)?.is_none()
        {
            self.make_log(newest)?;
        }
        let next = match ids.last().copied() {
            None => Some(1),
            // The log behind it was taken away by somebody.
            Some(last) if self.packs.purpose(last).map_err(fail)? == Some(Purpose::Copies) => {
                Some(last + limits::PACK_STRIDE)
            }
            Some(_) => None,
        };
        if let Some(next) = next {
            self.make_log(next)?;
            ids.push(next);
        }
        let sealed = ids.split_last().map_or(&[][..], |(_, sealed)| sealed);
        self.hints.tidy(sealed).map_err(|e| Error::io(&self.layout.hints, "tidy", &e))?;
        Ok(ids)
    }

    fn make_log(&self, pack: u32) -> Result<(), Error> {
        let made = self.packs.create(pack, Purpose::Log);
        made.map_err(|e| Error::io(&self.packs.path(pack), "make", &e))
    }

    fn packs_have_records(&self, ids: &[u32]) -> Result<bool, Error> {
        let Some(newest) = ids.last() else { return Ok(false) };
        let len = self.packs.file(*newest).and_then(|f| f.size());
        Ok(len.map_err(|e| Error::io(&self.packs.path(*newest), "read", &e))? > packs::HEADER)
    }

    fn open_index(&self) -> Result<Arc<dyn BlockIndex>, IndexError> {
        match self.kind {
            IndexKind::Redb => Ok(Arc::new(RedbIndex::open(self.disk.clone(), &self.layout.root)?)),
            #[cfg(feature = "sled")]
            IndexKind::Sled => Ok(Arc::new(crate::index::sled_index::SledIndex::open(&self.layout.root)?)),
            #[cfg(not(feature = "sled"))]
            IndexKind::Sled => Err(IndexError::Broken("this program is built without the sled index".into())),
        }
    }

    fn empty_index(&self) -> Result<Arc<Layered>, Error> {
        self.remove_index(self.kind)?;
        Ok(Arc::new(Layered::new(self.open_index().map_err(index_error)?, self.mark.clone())))
    }

    /// An index that was not written along is a trap for whoever selects it again.
    fn remove_other_index(&self) -> Result<(), Error> {
        self.remove_index(match self.kind {
            IndexKind::Redb => IndexKind::Sled,
            IndexKind::Sled => IndexKind::Redb,
        })
    }

    fn remove_index(&self, kind: IndexKind) -> Result<(), Error> {
        let root = &self.layout.root;
        let removed = match kind {
            IndexKind::Redb => self.disk.remove(&root.join(redb_index::FILE)),
            IndexKind::Sled => std::fs::remove_dir_all(root.join("index-1.sled")),
        };
        match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(root, "make an index in", &e))
            }
            _ => Ok(()),
        }
    }

    fn resume(&self, ids: &[u32]) -> Result<Option<Recovered>, Trouble> {
        let kv = Arc::new(Layered::new(self.open_index()?, self.mark.clone()));
        let Some(mut tables) = Tables::load(kv, self.salt)? else { return Ok(None) };
        self.agree(&tables, ids)?;
        let hinted = self.replay(&mut tables, ids)?;
        // Also where an earlier open learned it: it may have died before it judged. Once is enough: what is walked again
        // since then goes on from where it is.
        if tables.doubt.unknown && !tables.doubt.judged {
            self.judge(&mut tables, true)?;
        }
        self.find_hollow(&mut tables)?;
        let damaged = known_damage(&tables)?;
        Ok(Some(Recovered { tables, damaged, hinted }))
    }

    /// Whether the packs have what the checkpoint says.
    fn agree(&self, tables: &Tables, ids: &[u32]) -> Result<(), Trouble> {
        if let Some(lost) = tables.packs.iter().find(|(p, s)| s.live > 0 && !ids.contains(p)) {
            return Err(IndexError::Broken(format!("pack {:08x} is gone", lost.0)).into());
        }
        let len = self.packs.file(tables.end.pack).and_then(|f| f.size());
        match len {
            Ok(len) if len >= u64::from(tables.end.offset) => Ok(()),
            _ => Err(IndexError::Broken("the log ends before the checkpoint".into()).into()),
        }
    }

    /// Applies the log from the end of the tables on. Returns how many packs their hints were believed for.
    fn replay(&self, tables: &mut Tables, ids: &[u32]) -> Result<usize, Trouble> {
        // A pack that was dead and is gone means nothing; one that the checkpoint does not know is new.
        tables.packs.retain(|p, _| ids.contains(p));
        let newest = ids.last().copied().unwrap_or(1);
        let mut hinted = 0;
        for (pack, from) in behind(tables, ids) {
            if !tables.packs.contains_key(&pack) {
                tables.grow(pack, packs::HEADER);
            }
            if pack == newest {
                self.replay_newest(tables, pack, from)?;
            } else if self.packs.purpose(pack).map_err(|e| self.failed(pack, &e))? == Some(Purpose::Copies) {
                self.replay_copies(tables, pack, from)?;
            } else if let Some(hint) = self.hints.read(self.packs, pack).map_err(|e| self.failed(pack, &e))? {
                self.replay_hinted(tables, &hint, from)?;
                hinted += 1;
            } else {
                self.replay_sealed(tables, pack, from)?;
            }
        }
        tables.copies = None;
        Ok(hinted)
    }

    /// As [`Self::replay_sealed`]: blocks are taken from the hint, what is small is read.
    fn replay_hinted(&self, tables: &mut Tables, hint: &Hint, from: u64) -> Result<(), Trouble> {
        for hinted in hint.records.iter().filter(|r| u64::from(r.loc.offset) >= from) {
            let (loc, bytes) = (hinted.loc, hinted.record_len());
            match hinted.kind {
                Kind::Commit => tables.grow(loc.pack, bytes),
                Kind::Block => {
                    let record = Record::Block { hash: hinted.key.clone(), len: hinted.data_len };
                    self.apply(tables, &record, loc, bytes)?;
                }
                _ => {
                    let read = self.packs.read_record(loc).map_err(|e| self.failed(loc.pack, &e))?;
                    match read.and_then(|(header, body)| decode(&header, &body)) {
                        Some(record) => self.apply(tables, &record, loc, bytes)?,
                        None => {
                            let at = u64::from(loc.offset);
                            self.lost_record(tables, hinted.kind, loc.pack, at, at + bytes);
                        }
                    }
                }
            }
            self.flush(tables, loc.pack, u64::from(loc.offset) + bytes, 0)?;
        }
        tables.group = tables.group.max(hint.group);
        Ok(())
    }

    fn replay_sealed(&self, tables: &mut Tables, pack: u32, from: u64) -> Result<(), Trouble> {
        let mut scan = self.scan(pack, from)?;
        while let Some(found) = self.next(&mut scan)? {
            match found {
                Found::Damage { from, to } => self.lost(tables, pack, from, to),
                Found::Record { loc, header, key } if header.kind == Kind::Block => {
                    let record = Record::Block { hash: key, len: header.data_len };
                    self.apply(tables, &record, loc, header.record_len())?;
                }
                Found::Record { loc, header, .. } => match self.body(&scan, loc, &header)? {
                    Some(record) => self.apply_decoded(tables, record, loc, &header)?,
                    None => self.lost_record(tables, header.kind, pack, loc.offset.into(), scan.at()),
                },
            }
            self.flush(tables, pack, scan.at(), 0)?;
        }
        Ok(())
    }

    /// The newest pack, which the log goes on with.
    fn replay_newest(&self, tables: &mut Tables, pack: u32, from: u64) -> Result<(), Trouble> {
        let (end, group) = self.replay_groups(tables, pack, from, tables.group)?;
        tables.group = group;
        tables.end = Loc { pack, offset: u32::try_from(end).unwrap_or(u32::MAX) };
        Ok(())
    }

    /// A pack that compaction filled when the store ended. It is not filled any further.
    fn replay_copies(&self, tables: &mut Tables, pack: u32, from: u64) -> Result<(), Trouble> {
        let applied = tables.copies.filter(|c| c.pack == pack).map_or(0, |c| c.group);
        self.replay_groups(tables, pack, from, applied)?;
        self.packs.seal(pack).map_err(|e| self.failed(pack, &e))
    }

    /// Group by group behind the group `last`, up to the first that is not whole, and cuts off the rest. Returns
    /// where the last whole group ends, and its number.
    fn replay_groups(
        &self,
        tables: &mut Tables,
        pack: u32,
        from: u64,
        mut last: u64,
    ) -> Result<(u64, u64), Trouble> {
        let mut scan = self.scan(pack, from)?;
        let mut group: Vec<(Record, Loc, u64)> = Vec::new();
        let mut whole = from;
        while let Some(found) = self.next(&mut scan)? {
            let (loc, header, record) = match self.checked(&scan, found)? {
                Checked::Good(loc, header, record) => (loc, header, record),
                Checked::Bad(bad, to) => {
                    // Rot, if a group behind it was begun: this one was synced before.
                    let behind = last_group(&mut self.scan(pack, to)?).map_err(|e| self.failed(pack, &e))?;
                    if behind.is_none_or(|g| g <= last + 1) {
                        break;
                    }
                    self.lost(tables, pack, bad, to);
                    continue;
                }
            };
            if header.group > last + 1 {
                // The end of the group before was damaged. It was synced, so what is left of it counts.
                self.apply_all(tables, &mut group)?;
                last = header.group - 1;
            }
            match record {
                Some(record) => group.push((record, loc, header.record_len())),
                None => {
                    self.apply_all(tables, &mut group)?;
                    tables.grow(pack, COMMIT_BYTES);
                    last = header.group;
                    whole = scan.at();
                    self.flush(tables, pack, whole, last)?;
                }
            }
        }
        self.cut(pack, whole)?;
        Ok((whole, last))
    }

    fn checked(&self, scan: &Scan, found: Found) -> Result<Checked, Trouble> {
        Ok(match found {
            Found::Damage { from, to } => Checked::Bad(from, to),
            Found::Record { loc, header, .. } => {
                let body = scan.body(loc, &header).map_err(|e| self.failed(loc.pack, &e))?;
                match body.map(|b| decode(&header, &b)) {
                    Some(Some(record)) => Checked::Good(loc, header, Some(record)),
                    Some(None) if header.kind == Kind::Commit => Checked::Good(loc, header, None),
                    _ => Checked::Bad(loc.offset.into(), scan.at()),
                }
            }
        })
    }

    /// Cuts the log at `end`. Synced, so that what was cut off cannot come back behind later groups.
    fn cut(&self, pack: u32, end: u64) -> Result<(), Trouble> {
        let file = self.packs.file(pack).map_err(|e| self.failed(pack, &e))?;
        let len = file.size().map_err(|e| self.failed(pack, &e))?;
        if len > end {
            tracing::info!(
                "cut {} bytes of an unfinished group off {}",
                len - end,
                self.packs.path(pack).display()
            );
            file.set_len(end).and_then(|()| file.sync()).map_err(|e| self.failed(pack, &e))?;
        }
        Ok(())
    }

    fn apply_all(&self, tables: &mut Tables, group: &mut Vec<(Record, Loc, u64)>) -> Result<(), Trouble> {
        for (record, loc, bytes) in group.drain(..) {
            self.apply(tables, &record, loc, bytes)?;
        }
        Ok(())
    }

    fn apply_decoded(
        &self,
        tables: &mut Tables,
        record: Option<Record>,
        loc: Loc,
        header: &Header,
    ) -> Result<(), Trouble> {
        match record {
            Some(record) => self.apply(tables, &record, loc, header.record_len()),
            None => {
                tables.grow(loc.pack, COMMIT_BYTES);
                tables.group = tables.group.max(header.group);
                Ok(())
            }
        }
    }

    fn apply(&self, tables: &mut Tables, record: &Record, loc: Loc, bytes: u64) -> Result<(), Trouble> {
        tables.apply(record, loc, bytes, &|placed| self.read_chunk(placed))?;
        Ok(())
    }

    fn read_chunk(&self, placed: Placed) -> Option<Vec<crate::record::Member>> {
        let (header, body) = self.packs.read_record(placed.loc).ok()??;
        match decode(&header, &body)? {
            Record::Chunk { members, .. } => Some(members),
            _ => None,
        }
    }

    /// The body of a record of a sealed pack: outer `None` where it is damaged, inner for a commit.
    fn body(&self, scan: &Scan, loc: Loc, header: &Header) -> Result<Option<Option<Record>>, Trouble> {
        let body = scan.body(loc, header).map_err(|e| self.failed(loc.pack, &e))?;
        Ok(body.and_then(|body| match (decode(header, &body), header.kind) {
            (None, Kind::Commit) => Some(None),
            (None, _) => None,
            (Some(record), _) => Some(Some(record)),
        }))
    }

    fn damage(&self, tables: &mut Tables, pack: u32, from: u64, to: u64) {
        let path = self.packs.path(pack);
        tracing::error!("bytes {from}..{to} of {} are damaged", path.display());
        metrics::counter!("floe_pack_damage_total").increment(1);
        tables.grow(pack, to - from);
    }

    /// Bytes that may have been anything are damaged: [`Recovery::judge`] looks which manifest lacks them,
    /// [`Recovery::find_hollow`] what they may have deleted.
    fn lost(&self, tables: &mut Tables, pack: u32, from: u64, to: u64) {
        self.damage(tables, pack, from, to);
        tables.doubt.learn();
        tables.lost_deletion = true;
    }

    /// A record of a known kind is damaged. A lost deletion keeps too much, and names blocks that are not there.
    fn lost_record(&self, tables: &mut Tables, kind: Kind, pack: u32, from: u64, to: u64) {
        match kind {
            Kind::Manifest | Kind::Chunk => {
                self.damage(tables, pack, from, to);
                tables.doubt.learn();
            }
            Kind::Step => {
                self.damage(tables, pack, from, to);
                tables.lost_deletion = true;
            }
            Kind::Block | Kind::Frontier | Kind::Gone | Kind::Commit => self.damage(tables, pack, from, to),
        }
    }

    /// What a lost deletion freed is in the tables again, and its space may have been given back: a block like that
    /// is damaged, so nobody is told that it is here.
    fn find_hollow(&self, tables: &mut Tables) -> Result<(), Trouble> {
        if !tables.lost_deletion {
            return Ok(());
        }
        tracing::warn!("a deletion was lost: looking which blocks are still there");
        let mut found = 0_u64;
        for pair in tables.kv.pairs(b"b") {
            let (key, value) = pair?;
            let Some(entry) = Entry::decode(&value).filter(|e| e.loc.is_somewhere()) else { continue };
            let (hash, pack) = (&key[1..], entry.loc.pack);
            let hollow = self.packs.is_hollow(entry.loc, hash.len(), entry.len);
            if hollow.map_err(|e| self.failed(pack, &e))? {
                tables.kv.set(damage_key(hash), Some(Box::default()));
                found += 1;
            }
        }
        tracing::warn!(found, "blocks had been deleted and their space given back");
        tables.lost_deletion = false;
        Ok(())
    }

    /// Which manifests have to be walked again. `lossy`: records were lost.
    fn judge(&self, tables: &mut Tables, lossy: bool) -> Result<(), IndexError> {
        let kv = tables.kv.clone();
        for pair in kv.pairs(b"m") {
            let (key, value) = pair?;
            if let (Ok(id), Some(m)) = (Uuid::from_slice(&key[1..]), Manifest::decode(&value)) {
                tables.judge(id, m, lossy);
            }
        }
        tables.doubt.judged = tables.doubt.unknown;
        if tables.doubt.is_any() {
            let manifests = tables.doubt.manifests.len();
            tracing::error!(
                manifests,
                "records of the packs were lost, {manifests} manifests are not whole: nothing is collected until \
                 they are walked again or let go of"
            );
        }
        Ok(())
    }

    /// A rebuild must not hold the whole index in memory: notes how far it is, `group` being the last one of a pack
    /// that is read group by group.
    fn flush(&self, tables: &mut Tables, pack: u32, at: u64, group: u64) -> Result<(), Trouble> {
        if tables.kv.changed() < self.flush_keys {
            return Ok(());
        }
        let end = u32::try_from(at).unwrap_or(u32::MAX);
        if pack < tables.end.pack {
            tables.copies = Some(Copies { pack, end, group });
        } else {
            tables.end = Loc { pack, offset: end };
            tables.group = tables.group.max(group);
        }
        write_checkpoint(tables)?;
        Ok(())
    }

    fn scan(&self, pack: u32, from: u64) -> Result<Scan, Trouble> {
        self.packs.scan(pack, from).map_err(|e| self.failed(pack, &e))
    }

    fn next(&self, scan: &mut Scan) -> Result<Option<Found>, Trouble> {
        scan.next().map_err(|e| Trouble::Disk(Error::io(&self.layout.packs, "read a pack in", &e)))
    }

    fn failed(&self, pack: u32, e: &std::io::Error) -> Trouble {
        Trouble::Disk(Error::io(&self.packs.path(pack), "read", e))
    }
}

enum Checked {
    Good(Loc, Header, Option<Record>),
    Bad(u64, u64),
}

/// Whose fault it is: an index that fails is made again, a disk that fails is not.
enum Trouble {
    Index(IndexError),
    Disk(Error),
}

impl Trouble {
    fn into_error(self) -> Error {
        match self {
            Self::Index(e) => index_error(e),
            Self::Disk(e) => e,
        }
    }
}

impl From<IndexError> for Trouble {
    fn from(e: IndexError) -> Self {
        Self::Index(e)
    }
}

fn decode(header: &Header, body: &[u8]) -> Option<Record> {
    let (key, data) = body.split_at_checked(header.key_len as usize)?;
    Record::decode(header.kind, key, data, header.data_len)
}

/// What the tables do not know of yet: packs, and from where on. Below the end of the log these are packs that
/// compaction has filled since the checkpoint.
fn behind(tables: &Tables, ids: &[u32]) -> Vec<(u32, u64)> {
    let start = tables.end;
    let filled = |pack: u32| tables.copies.filter(|c| c.pack == pack).map(|c| u64::from(c.end));
    let from = |pack: u32| match pack.cmp(&start.pack) {
        Ordering::Greater => Some(packs::HEADER),
        Ordering::Equal => Some(u64::from(start.offset)),
        Ordering::Less if tables.packs.contains_key(&pack) => filled(pack),
        Ordering::Less => Some(packs::HEADER),
    };
    ids.iter().filter_map(|pack| Some((*pack, from(*pack)?))).collect()
}

/// The highest group among the records that can be found from here on.
fn last_group(scan: &mut Scan) -> std::io::Result<Option<u64>> {
    let mut last = None;
    while let Some(found) = scan.next()? {
        if let Found::Record { header, .. } = found {
            last = last.max(Some(header.group));
        }
    }
    Ok(last)
}

/// Writes the tables to the index at once.
fn write_checkpoint(tables: &Tables) -> Result<(), IndexError> {
    tables.kv.set(crate::tables::CHECKPOINT_KEY.into(), Some(tables.encode_checkpoint()));
    if let Some(batch) = tables.kv.freeze() {
        tables.kv.index().checkpoint(&batch)?;
        tables.kv.thaw();
    }
    Ok(())
}

fn known_damage(tables: &Tables) -> Result<BTreeSet<Key>, IndexError> {
    tables.kv.pairs(b"d").map(|pair| Ok(pair?.0[1..].into())).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use floe_core::cid::code;
    use floe_core::{Block, ManualClock};

    use super::*;
    use crate::disk::Open;
    use crate::testing::FaultyDisk;
    use crate::{BlockStore, Claim, Components, ManifestState, Settings, format, tables};

    const ROOT: &str = "/blocks";

    fn wait<T>(f: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
    }

    fn open(disk: &FaultyDisk) -> BlockStore {
        let settings = Settings {
            dir: ROOT.into(),
            index: IndexKind::Redb,
            pack_bytes: 1 << 20,
            reserve_bytes: Some(0),
        };
        let clock = Arc::new(ManualClock::default());
        BlockStore::open(
            settings,
            Components { disk: Arc::new(disk.clone()), clock, entropy: Arc::new(floe_core::Seeded::new(1)) },
        )
        .unwrap()
    }

    /// `count` blocks from the number `first` on.
    fn blocks(first: u8, count: u8, bytes: usize) -> Vec<Block> {
        (first..first + count).map(|n| Block::of(code::RAW, vec![n; bytes].into()).unwrap()).collect()
    }

    fn pin(store: &BlockStore, n: u128, blocks: &[Block]) {
        wait(async {
            let mut protect = store.protect(Uuid::from_u128(n), *blocks[0].cid()).await.unwrap();
            let is_absent = |b: &&Block| protect.claim(b.cid().hash()).unwrap() == Claim::Absent;
            let absent = blocks.iter().filter(is_absent).cloned().collect();
            protect.put(absent).await.unwrap();
            protect.seal().await.unwrap();
        });
    }

    /// Flips a bit in the one place behind `from` where a pack names the block, the `skip` first ones left out. Returns
    /// the disk as a power cut leaves it.
    fn rotten(
        disk: &FaultyDisk,
        from: &[(std::path::PathBuf, u64)],
        block: &Block,
        skip: usize,
    ) -> FaultyDisk {
        let name = block.cid().hash().to_bytes();
        let mut places = Vec::new();
        for (path, _) in disk.files().into_iter().filter(|(path, _)| path.starts_with("/blocks/packs")) {
            let file = disk.open(&path, Open::Existing).unwrap();
            // The holes too, which are synced by nobody.
            file.sync().unwrap();
            let mut bytes = vec![0; usize::try_from(file.size().unwrap()).unwrap()];
            file.read_at(&mut bytes, 0).unwrap();
            let known = from.iter().find(|(p, _)| *p == path).map_or(0, |(_, len)| *len);
            let named = bytes.windows(name.len()).enumerate().filter(|(_, w)| *w == name);
            places.extend(named.map(|(at, _)| (path.clone(), at as u64)).filter(|(_, at)| *at >= known));
        }
        let image = disk.crash(1);
        let [(path, at)] = &places[skip..] else { panic!("{places:?}") };
        assert!(image.flip(path, at * 8 + 77));
        image
    }

    /// An open that notes how far it is after each change, and dies where it would be done. Returns the disk as it is
    /// then.
    fn cut_off(disk: &FaultyDisk) -> FaultyDisk {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let (layout, salt) = format::open(&*shared, Path::new(ROOT), &floe_core::Seeded::new(1)).unwrap();
        let packs = Packs::new(shared.clone(), layout.packs.clone(), salt);
        let hints = Hints::new(shared.clone(), layout.hints.clone(), salt);
        let mark = Arc::new(Mark::new(shared.clone(), &layout.root));
        let kind = IndexKind::Redb;
        let (disk_of, layout, packs, hints, mark) = (&shared, &layout, &packs, &hints, &mark);
        let recovery = Recovery { disk: disk_of, layout, packs, hints, kind, salt, mark, flush_keys: 1 };
        assert!(recovery.resume(&packs.list().unwrap()).is_ok_and(|found| found.is_some()));
        disk.crash(2)
    }

    /// The story: a chunk of a manifest had rotted, and the open that found it died behind a checkpoint of its own. The
    /// next open began behind the rot, told that the pin was whole, and let the collector free the blocks of the chunk.
    #[test]
    fn a_lost_chunk_is_not_forgotten_by_an_open_that_is_cut_off() {
        let disk = FaultyDisk::default();
        let store = open(&disk);
        pin(&store, 9, &blocks(90, 1, 100));
        wait(store.close()).unwrap();
        drop(store);
        let store = open(&disk);
        let pinned = blocks(0, 20, 100);
        pin(&store, 1, &pinned);
        pin(&store, 2, &blocks(30, 2, 100));
        pin(&store, 3, &blocks(40, 2, 100));
        // The block's record names it first, then the chunk.
        let image = cut_off(&rotten(&disk, &[], &pinned[1], 1));

        let store = open(&image);
        let needed: Vec<_> = [1, 2, 3, 9].map(Uuid::from_u128).into();
        assert_eq!(store.confirm(&needed).unwrap(), needed[..1]);
        assert!(store.stats().in_doubt);
        let open: Vec<_> =
            store.manifests().unwrap().into_iter().filter(|m| m.1 == ManifestState::Open).collect();
        assert_eq!(open.iter().map(|m| m.0).collect::<Vec<_>>(), needed[..1], "it is to be walked again");
        pin(&store, 1, &pinned);
        assert!(store.confirm(&needed).unwrap().is_empty());
        assert!(!store.stats().in_doubt);
        wait(store.collect()).unwrap();
        assert!(pinned.iter().all(|b| store.get(b.cid()).unwrap().is_some()));
    }

    /// The story: while it was in doubt what the packs had lost, every open took all open manifests to be suspect, and
    /// threw their frontiers away: a large DAG was walked from its root at each restart, and never to its end.
    #[test]
    fn a_manifest_that_is_walked_again_goes_on_at_the_next_open() {
        let disk = FaultyDisk::default();
        let store = open(&disk);
        pin(&store, 9, &blocks(90, 1, 100));
        wait(store.close()).unwrap();
        drop(store);
        let store = open(&disk);
        let pinned = blocks(0, 20, 100);
        pin(&store, 1, &pinned);
        let disk = rotten(&disk, &[], &pinned[1], 1);
        let store = open(&disk);
        let mut protect = wait(store.protect(Uuid::from_u128(1), *pinned[0].cid())).unwrap();
        assert_eq!(protect.frontier(), None, "from the root");
        wait(protect.checkpoint(b"half".as_slice().into())).unwrap();
        drop(protect);
        wait(store.close()).unwrap();
        drop(store);

        let store = open(&disk);
        assert!(store.stats().in_doubt, "nobody has confirmed that nothing is missed");
        let protect = wait(store.protect(Uuid::from_u128(1), *pinned[0].cid())).unwrap();
        assert_eq!(protect.frontier().as_deref(), Some(&b"half"[..]));
    }

    /// The story: a deletion had rotted, and the open that found it died behind a checkpoint of its own. The next open did
    /// not look for blocks whose space had been given back: a pin of them was pinned at once, and held nothing.
    #[test]
    fn a_lost_deletion_is_not_forgotten_by_an_open_that_is_cut_off() {
        let disk = FaultyDisk::default();
        let store = open(&disk);
        let (freed, kept) = (blocks(1, 2, 100_000), blocks(10, 8, 100_000));
        pin(&store, 1, &freed);
        pin(&store, 2, &kept);
        wait(store.close()).unwrap();
        drop(store);
        let before = disk.files();
        let store = open(&disk);
        wait(store.release(Uuid::from_u128(1))).unwrap();
        // Seals the pack, so that it gets its holes.
        wait(store.collect()).unwrap();
        pin(&store, 3, &blocks(20, 2, 100));
        pin(&store, 4, &blocks(30, 2, 100));
        let image = cut_off(&rotten(&disk, &before, &freed[0], 0));

        let store = open(&image);
        assert_eq!(store.size(freed[0].cid().hash()).unwrap(), None, "its space was given back");
        pin(&store, 5, &freed);
        assert!(
            freed.iter().chain(&kept).all(|b| store.get(b.cid()).unwrap().is_some()),
            "pinned means here"
        );
    }

    /// The story: the owner of the manifests was told that one was whole because it was sealed, though chunks of it were
    /// known to be lost, and collection went on without them.
    #[test]
    fn a_sealed_manifest_that_lacks_chunks_is_not_confirmed() {
        let disk = FaultyDisk::default();
        let store = open(&disk);
        pin(&store, 1, &blocks(0, 3, 100));
        let id = Uuid::from_u128(1);
        {
            let mut tables = store.shared().tables.lock();
            let mut manifest = tables.manifest(id).unwrap().unwrap();
            manifest.blocks -= 1;
            tables.kv.set(tables::manifest_key(id), Some(manifest.encode()));
            tables.doubt.unknown = true;
        }
        assert_eq!(store.confirm(&[id]).unwrap(), [id]);
        assert!(store.shared().tables.lock().doubt.unknown, "the doubt stays");
    }
}
