//! Hint files: what a walk over a sealed pack would find, so that a rebuild of the index needs no walk.
//!
//! ```text
//! magic "FLOEHT1\n" | pack u32 | salt u64 | bytes of the pack u64 | last group u64
//! offset u32 | data_len u32 | kind u8 | key_len u8 | key                            each record, in order
//! crc u32                                                                           of all before it
//! ```
//!
//! The collector writes them, one for each sealed pack that has none, behind everything that frees space. A hint
//! is whole and durable under its name or not there: it is written beside, synced and renamed. It is never the
//! only copy of anything: one that is missing, damaged or of another state of its pack is not believed, and the
//! pack is walked. Punching leaves the headers, so it does not change what a walk finds; a pack that is removed
//! takes its hint along, and open removes what a crash in between left.
//!
//! A pack with a damaged place gets none, so that a rebuild meets the damage and says so.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::disk::{self, Disk};
use crate::limits;
use crate::packs::{self, Found, Packs};
use crate::record::{Key, Kind, Loc, Reader, record_len};

const MAGIC: [u8; 8] = *b"FLOEHT1\n";

pub(crate) struct Hints {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    salt: u64,
}

/// What a pack holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hint {
    /// The last group that ended in the pack.
    pub(crate) group: u64,
    pub(crate) records: Vec<Hinted>,
}

/// One record of a pack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hinted {
    pub(crate) loc: Loc,
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) data_len: u32,
}

impl Hinted {
    pub(crate) fn record_len(&self) -> u64 {
        record_len(self.key.len(), self.data_len as usize)
    }
}

fn name(pack: u32) -> String {
    format!("hint-{pack:08x}")
}

fn pack_of(name: &str) -> Option<u32> {
    let pack = u32::from_str_radix(name.strip_prefix("hint-")?, 16).ok()?;
    (name == self::name(pack)).then_some(pack)
}

impl Hints {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, salt: u64) -> Self {
        Self { disk, dir, salt }
    }

    /// The packs that have one.
    pub(crate) fn list(&self) -> io::Result<BTreeSet<u32>> {
        Ok(self.disk.list(&self.dir)?.iter().filter_map(|n| pack_of(n)).collect())
    }

    /// Removes all but those of `sealed` packs. The newest pack grows, so what is known of it is not known.
    pub(crate) fn tidy(&self, sealed: &[u32]) -> io::Result<()> {
        for name in self.disk.list(&self.dir)? {
            if !pack_of(&name).is_some_and(|pack| sealed.contains(&pack)) {
                self.disk.remove(&self.dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Writes the hint of a sealed pack, durably, unless the pack is damaged or has too many records.
    pub(crate) fn write(&self, packs: &Packs, pack: u32) -> io::Result<()> {
        let Some(bytes) = self.encode(packs, pack)? else { return Ok(()) };
        fail::fail_point!("hint.write");
        disk::write_small(&*self.disk, &self.dir, &name(pack), &bytes)
    }

    /// The hint of a pack, if there is one that holds for the pack as it is.
    pub(crate) fn read(&self, packs: &Packs, pack: u32) -> io::Result<Option<Hint>> {
        let len = packs.file(pack)?.size()?;
        let read = disk::read_small(&*self.disk, &self.dir.join(name(pack)), limits::HINT_BYTES as u64);
        Ok(match read {
            Ok(bytes) => bytes.and_then(|b| decode(pack, self.salt, len, &b)),
            Err(e) if packs::is_damage(&e) => None,
            Err(e) => return Err(e),
        })
    }

    pub(crate) fn remove(&self, pack: u32) -> io::Result<()> {
        match self.disk.remove(&self.dir.join(name(pack))) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn encode(&self, packs: &Packs, pack: u32) -> io::Result<Option<Vec<u8>>> {
        let (mut records, mut group) = (Vec::new(), 0);
        let mut scan = packs.scan(pack, packs::HEADER)?;
        while let Some(found) = scan.next()? {
            let Found::Record { loc, header, key } = found else { return Ok(None) };
            // Only a body's checksum covers its key, and the key is what a hint is believed for.
            if header.kind == Kind::Block && crate::shared::multihash(&key).is_none() {
                return Ok(None);
            }
            let Ok(key_len) = u8::try_from(key.len()) else { return Ok(None) };
            if header.kind == Kind::Commit {
                group = header.group;
            }
            records.extend_from_slice(&loc.offset.to_le_bytes());
            records.extend_from_slice(&header.data_len.to_le_bytes());
            records.extend_from_slice(&[header.kind as u8, key_len]);
            records.extend_from_slice(&key);
            if records.len() > limits::HINT_BYTES - 64 {
                limits::hit("blockstore_hint_bytes");
                return Ok(None);
            }
        }
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&pack.to_le_bytes());
        for number in [self.salt, scan.at(), group] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.append(&mut records);
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        Ok(Some(out))
    }
}

/// `None`: damaged, or of another pack or another state of it.
fn decode(pack: u32, salt: u64, len: u64, bytes: &[u8]) -> Option<Hint> {
    let (body, crc) = bytes.split_last_chunk::<4>()?;
    if crc32fast::hash(body).to_le_bytes() != *crc {
        return None;
    }
    let mut r = Reader(body);
    if r.take(8)? != MAGIC || r.u32()? != pack || r.u64()? != salt || r.u64()? != len {
        return None;
    }
    let group = r.u64()?;
    let mut records = Vec::new();
    while !r.0.is_empty() {
        let (offset, data_len) = (r.u32()?, r.u32()?);
        let kind = Kind::from_u8(r.take(1)?[0])?;
        let key = r.hash()?;
        records.push(Hinted { loc: Loc { pack, offset }, kind, key, data_len });
    }
    Some(Hint { group, records })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use floe_core::cid::code;
    use floe_core::{Block, ManualClock};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::mark::Mark;
    use crate::recover::{Recovered, Recovery};
    use crate::tables::Tables;
    use crate::testing::FaultyDisk;
    use crate::{BlockStore, Components, IndexKind, Settings, format};

    const ROOT: &str = "/blocks";

    fn wait<T>(f: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
    }

    fn block(n: u16) -> Block {
        let len = 200 + usize::from(n % 7) * 3000;
        Block::of(code::RAW, n.to_le_bytes().repeat(len / 2).into()).unwrap()
    }

    /// Pins and unpins, collects, closes; what is left has several sealed packs.
    fn lived_in(steps: &[(u8, u16, u8)]) -> FaultyDisk {
        let disk = FaultyDisk::default();
        let settings = Settings {
            dir: ROOT.into(),
            index: IndexKind::Redb,
            pack_bytes: 64 << 10,
            reserve_bytes: Some(0),
        };
        let clock = Arc::new(ManualClock::default());
        let entropy = Arc::new(floe_core::Seeded::new(1));
        let components = Components { disk: Arc::new(disk.clone()), clock, entropy };
        let store = BlockStore::open(settings, components).unwrap();
        wait(async {
            for (n, (id, first, count)) in steps.iter().enumerate() {
                let id = Uuid::from_u128((*id).into());
                if n % 3 == 2 {
                    store.release(id).await.unwrap();
                    store.collect().await.unwrap();
                }
                let root = *block(*first).cid();
                let mut protect = match store.protect(id, root).await {
                    Ok(protect) => protect,
                    Err(_) => continue,
                };
                let blocks = (0..u16::from(*count)).map(|n| block(first.wrapping_add(n))).collect();
                protect.put(blocks).await.unwrap();
                protect.seal().await.unwrap();
            }
            store.collect().await.unwrap();
            store.close().await.unwrap();
        });
        disk
    }

    /// Everything that a rebuild makes, and how many packs it did not have to walk.
    fn rebuilt(disk: &FaultyDisk) -> (Vec<u8>, Vec<crate::index::Pair>, usize) {
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        disk::write_small(&*shared, Path::new(ROOT), crate::mark::FILE, b"").unwrap();
        let (layout, salt) = format::open(&*shared, Path::new(ROOT), &floe_core::Seeded::new(1)).unwrap();
        let packs = Packs::new(shared.clone(), layout.packs.clone(), salt);
        let hints = Hints::new(shared.clone(), layout.hints.clone(), salt);
        let mark = Arc::new(Mark::new(shared.clone(), &layout.root));
        let kind = IndexKind::Redb;
        let (disk, layout, packs, hints, mark) = (&shared, &layout, &packs, &hints, &mark);
        let Recovered { tables, hinted, .. } =
            Recovery { disk, layout, packs, hints, kind, salt, mark, flush_keys: limits::CHECKPOINT_KEYS }
                .run()
                .unwrap();
        let Tables { kv, .. } = &tables;
        let pairs = kv.scan(b"", std::ops::Bound::Unbounded, usize::MAX).unwrap();
        (tables.encode_checkpoint().to_vec(), pairs, hinted)
    }

    fn hint_files(disk: &FaultyDisk) -> Vec<(PathBuf, u64)> {
        disk.files().into_iter().filter(|(p, _)| p.to_string_lossy().contains("/hint-")).collect()
    }

    fn without_hints(disk: &FaultyDisk) -> FaultyDisk {
        let image = disk.crash(1);
        hint_files(&image).iter().for_each(|(path, _)| image.remove(path).unwrap());
        image
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
        #[test]
        fn a_rebuild_by_hints_is_the_rebuild_by_walking(
            steps in proptest::collection::vec((0u8..5, 0u16..40, 5u8..40), 3..14)
        ) {
            let disk = lived_in(&steps);
            let (by_hints, by_walking) = (rebuilt(&disk.crash(1)), rebuilt(&without_hints(&disk)));
            prop_assert_eq!(by_walking.2, 0);
            prop_assert_eq!(by_hints.2, hint_files(&disk).len());
            prop_assert_eq!((by_hints.0, by_hints.1), (by_walking.0, by_walking.1));
        }
    }

    #[test]
    fn every_flipped_byte_of_a_hint_is_noticed() {
        let disk = lived_in(&[(1, 0, 39), (2, 30, 39)]);
        let walked = rebuilt(&without_hints(&disk));
        let all = hint_files(&disk);
        assert!(!all.is_empty(), "no pack was sealed");
        for (path, len) in &all {
            for byte in (0..*len).step_by(37).chain([len - 1]) {
                let image = disk.crash(1);
                assert!(image.flip(path, byte * 8 + byte % 8));
                let found = rebuilt(&image);
                assert_eq!(found.2, all.len() - 1, "byte {byte} of {}", path.display());
                assert_eq!((&found.0, &found.1), (&walked.0, &walked.1));
            }
        }
    }

    #[test]
    fn a_hint_of_another_state_of_its_pack_is_not_believed() {
        let disk = lived_in(&[(1, 0, 39), (2, 30, 39)]);
        let (path, len) = hint_files(&disk).remove(0);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let bytes = disk::read_small(&*shared, &path, len).unwrap().unwrap();
        let salt = format::open(&*shared, Path::new(ROOT), &floe_core::Seeded::new(1)).unwrap().1;
        let pack = pack_of(&path.file_name().unwrap().to_string_lossy()).unwrap();
        let size =
            Packs::new(shared, Path::new(ROOT).join("packs"), salt).file(pack).unwrap().size().unwrap();
        for (p, s, l, good) in [
            (pack, salt, size, true),
            (pack + 1, salt, size, false),
            (pack, salt ^ 1, size, false),
            (pack, salt, size - 8, false),
            (pack, salt, size + 8, false),
        ] {
            assert_eq!(decode(p, s, l, &bytes).is_some(), good, "{p} {l}");
        }
    }
}
