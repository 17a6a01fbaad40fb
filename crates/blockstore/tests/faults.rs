//! R03, R04, R10 and the images of a power cut: what is acknowledged stays, what is damaged is never served.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::*;
use floe_blockstore::testing::{Fault, FaultyDisk, Touch, Watched};
use floe_blockstore::{BlockStore, Error, IndexKind, ManifestState, Open};
use floe_core::Block;

/// What a client heard.
#[derive(Default, Clone)]
struct Journal {
    /// Sealed, acknowledged, and no release asked for.
    pinned: BTreeMap<u128, Vec<Block>>,
    /// Released and acknowledged.
    released: BTreeSet<u128>,
}

impl Journal {
    fn pin(&mut self, store: &BlockStore, n: u128, blocks: Vec<Block>) -> Result<(), Error> {
        pin(store, n, &blocks)?;
        self.pinned.insert(n, blocks);
        Ok(())
    }

    fn release(&mut self, store: &BlockStore, n: u128) -> Result<(), Error> {
        // Until the answer either is right.
        self.pinned.remove(&n);
        wait(store.release(id(n)))?;
        self.released.insert(n);
        Ok(())
    }

    fn check(&self, store: &BlockStore, when: &str) {
        let manifests: BTreeMap<_, _> =
            store.manifests().unwrap().into_iter().map(|(i, s, _)| (i, s)).collect();
        for (n, blocks) in &self.pinned {
            assert_eq!(manifests.get(&id(*n)), Some(&ManifestState::Sealed), "{when}: manifest {n}");
            for b in blocks {
                assert!(has(store, b), "{when}: block {} of manifest {n} is lost", b.cid());
            }
        }
        for n in &self.released {
            let state = manifests.get(&id(*n)).copied().unwrap_or(ManifestState::Releasing);
            assert_eq!(state, ManifestState::Releasing, "{when}: manifest {n} is back");
        }
    }
}

/// A run with every kind of write: packs made and sealed, checkpoints, tombstones, compaction, removal.
fn script(disk: &FaultyDisk, journal: &mut Journal) -> Result<(), Error> {
    let store = memory(disk)?;
    let blocks = |from: u64, n: u64| (from..from + n).map(|n| block(n, 4000)).collect::<Vec<_>>();
    journal.pin(&store, 1, blocks(0, 20))?;
    journal.pin(&store, 2, blocks(10, 20))?;
    journal.pin(&store, 3, vec![block(100, 90_000), block(101, 90_000)])?;
    journal.release(&store, 1)?;
    wait(store.collect())?;
    journal.release(&store, 3)?;
    journal.pin(&store, 4, blocks(40, 10))?;
    wait(store.collect())?;
    wait(store.scrub())?;
    wait(store.close())
}

#[test]
fn r03_every_changing_call_may_fail() {
    let disk = FaultyDisk::default();
    let mut journal = Journal::default();
    script(&disk, &mut journal).unwrap();
    journal.check(&memory(&disk).unwrap(), "without a fault");
    let calls = disk.calls();
    assert!(calls > 100, "{calls}");
    for n in 1..=calls {
        // Each call fails for good; for the milder faults every third is enough, and the suite stays short.
        let faults = [(Fault::Io, true), (Fault::Io, false), (Fault::Full, true)];
        for (fault, sticky) in faults.into_iter().take(if n % 3 == 0 { 3 } else { 1 }) {
            let when = format!("{fault:?} at call {n} of {calls}, sticky {sticky}");
            let disk = FaultyDisk::default();
            let mut journal = Journal::default();
            disk.fail_at(n, fault, sticky);
            let ended = script(&disk, &mut journal);
            assert!(
                ended.is_err() || n > 1 && !sticky || journal.pinned.len() == 2,
                "{when}: acknowledged {ended:?}"
            );
            disk.heal();
            // The power goes at that moment, or only the process does.
            for image in [disk.crash(n), disk] {
                let store = memory(&image).unwrap_or_else(|e| panic!("{when}: {e}"));
                journal.check(&store, &when);
                wait(store.collect()).unwrap_or_else(|e| panic!("{when}: {e}"));
                journal.check(&store, &when);
                let report = wait(store.scrub()).unwrap();
                assert_eq!((report.damaged.len(), report.missing.len()), (0, 0), "{when}");
            }
        }
    }
}

#[test]
fn r02_what_a_power_cut_leaves() {
    let disk = FaultyDisk::default();
    let journal = Arc::new(parking_lot::Mutex::new(Journal::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let (disk, journal, stop) = (disk.clone(), journal.clone(), stop.clone());
        move || {
            let store = memory(&disk).unwrap();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let blocks: Vec<_> = (0..12).map(|b| block(n * 8 + b, 3000)).collect();
                pin(&store, u128::from(n), &blocks).unwrap();
                journal.lock().pinned.insert(u128::from(n), blocks);
                if n % 16 == 0 {
                    // Or the load outruns the collector on a busy machine, and the images grow without end.
                    wait(store.collect()).unwrap();
                }
                if n >= 4 {
                    let old = u128::from(n - 4);
                    journal.lock().pinned.remove(&old);
                    wait(store.release(id(old))).unwrap();
                    journal.lock().released.insert(old);
                }
            }
        }
    });
    for seed in 0..100 {
        // Acknowledged before the cut: the image is taken while the journal stands still.
        let (known, image) = {
            let journal = journal.lock();
            (journal.clone(), disk.crash(seed * 7919 + 1))
        };
        let when = format!("image {seed}");
        let store = memory(&image).unwrap_or_else(|e| panic!("{when}: {e}"));
        known.check(&store, &when);
        wait(store.collect()).unwrap();
        known.check(&store, &when);
        drop(store);
        // What open made of it survives the next cut as well.
        known.check(&memory(&image.crash(seed)).unwrap(), &when);
    }
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
}

#[test]
fn r03_a_failed_sync_ends_everything() {
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    pin(&store, 1, &[block(1, 100)]).unwrap();
    // The write, then its sync.
    disk.fail_at(2, Fault::Io, false);
    assert!(matches!(pin(&store, 2, &[block(2, 100)]), Err(Error::Poisoned(_))));
    assert!(wait(store.poisoned()).contains("pack-"));
    assert!(matches!(pin(&store, 3, &[block(3, 100)]), Err(Error::Poisoned(_))));
    assert!(matches!(wait(store.release(id(1))), Err(Error::Poisoned(_))));
    assert!(has(&store, &block(1, 100)), "reads go on");
}

#[test]
fn r03_a_full_disk_refuses_and_recovers_by_itself() {
    for step in 0..50 {
        let room = 200_000 + step * 5_601;
        let disk = FaultyDisk::new(1 << 30);
        let store = memory(&disk).unwrap();
        let mut journal = Journal::default();
        journal.pin(&store, 0, (0..10).map(|n| block(n, 3000)).collect()).unwrap();
        disk.resize(disk.used() + room);
        let mut n = 1;
        let refused = loop {
            let blocks = (n * 10..n * 10 + 10).map(|n| block(n, 3000)).collect();
            match journal.pin(&store, n.into(), blocks) {
                Ok(()) => n += 1,
                Err(e) => break e,
            }
        };
        assert!(matches!(refused, Error::ReadOnly), "{refused}");
        assert!(store.is_read_only() && store.stats().read_only);
        journal.check(&store, "full");
        // Letting go works on the full disk.
        journal.release(&store, 0).unwrap();
        disk.resize(1 << 30);
        let deadline = std::time::Duration::from_secs(10);
        wait(async {
            tokio::time::timeout(deadline, async {
                while store.is_read_only() {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            })
            .await
            .unwrap();
        });
        journal.pin(&store, n.into(), (n * 10..n * 10 + 10).map(|n| block(n, 3000)).collect()).unwrap();
        wait(store.collect()).unwrap();
        journal.check(&store, "space again");
        drop(store);
        journal.check(&memory(&disk).unwrap(), "reopened");
    }
}

/// What a store keeps for what must go on without space.
const KEPT: u64 = 16 << 20;

/// Sixty manifests in many packs, on a volume that then has not a byte left, and where what the store gives up of its
/// kept space is gone at once.
fn crowded() -> (FaultyDisk, BlockStore, Journal) {
    let disk = FaultyDisk::new(1 << 30);
    let store = memory(&disk).unwrap();
    let mut journal = Journal::default();
    for n in 0..60_u64 {
        journal.pin(&store, n.into(), (n * 10..n * 10 + 10).map(|b| block(b, 3000)).collect()).unwrap();
    }
    wait(store.collect()).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let store = memory(&disk).unwrap();
    disk.resize(disk.used() - KEPT);
    (disk, store, journal)
}

/// Waits for what the store does by itself.
fn soon(mut done: impl FnMut() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("it does not go on");
}

/// A volume on which the index finds no space while it is `full`, and everything else does.
fn no_index(disk: FaultyDisk, full: Arc<AtomicBool>) -> Watched<FaultyDisk> {
    Watched::new(disk, move |path, touch| {
        // Beside the header: a database that cannot grow can still be opened.
        let grows = matches!(touch, Touch::Write(end) | Touch::SetLen(end) if end > 4096);
        match path.ends_with("index-1.redb") && grows && full.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    })
}

/// The collector asked for a checkpoint before it removed a pack, and the checkpoint waited for space that only the
/// removal could make: on a full disk nothing was freed once the kept space was used.
#[test]
fn r03_packs_go_while_the_index_finds_no_space() {
    let disk = FaultyDisk::default();
    let full = Arc::new(AtomicBool::new(false));
    let store = on(no_index(disk.clone(), full.clone()), settings(Path::new(ROOT), IndexKind::Redb)).unwrap();
    let mut journal = Journal::default();
    for n in 0..60_u64 {
        journal.pin(&store, n.into(), (n * 10..n * 10 + 10).map(|b| block(b, 3000)).collect()).unwrap();
    }
    wait(store.collect()).unwrap();
    let before = disk.used();
    full.store(true, Ordering::Relaxed);
    for n in 0..55 {
        journal.release(&store, n).unwrap();
    }
    let patience = std::time::Duration::from_secs(10);
    let collected = wait(async { tokio::time::timeout(patience, store.collect()).await });
    let collected = collected.expect("it waits for what only it can make");
    assert!(matches!(collected, Ok(_) | Err(Error::ReadOnly)), "{collected:?}");
    assert!(store.is_read_only());
    assert!(disk.used() + (1 << 20) < before, "{} of {before}", disk.used());
    journal.check(&store, "the index is full");
    // The process dies before the index knew that packs were gone.
    let image = disk.crash(3);
    let reopened = memory(&image).unwrap();
    journal.check(&reopened, "after a power cut");
    wait(reopened.collect()).unwrap();
    assert_eq!(reopened.stats().blocks, 50);
    // Or there is space again.
    full.store(false, Ordering::Relaxed);
    soon(|| !store.is_read_only() && wait(store.collect()).is_ok());
    assert_eq!(store.stats().blocks, 50);
    journal.pin(&store, 100, vec![block(6000, 3000)]).unwrap();
    wait(store.close()).unwrap();
    journal.check(&memory(&disk).unwrap(), "space again");
}

/// On a full disk the collector began with the pack that had most dead bytes. What lived in it had to be copied first, and
/// there was no room for that, so it tried again and again; packs in which nothing lived were not removed.
#[test]
fn r03_a_full_disk_is_freed_by_removing_pins() {
    let disk = FaultyDisk::new(1 << 30);
    let store = memory(&disk).unwrap();
    let mut journal = Journal::default();
    // One pack, because it is one group: 14 MiB, of which 6 will live. The next one has 5 MiB, of which none will.
    let blocks = |from: u64, n: u64| (from..from + n).map(|n| block(n, 32 << 10)).collect::<Vec<_>>();
    journal.pin(&store, 1, blocks(0, 448)).unwrap();
    journal.pin(&store, 2, blocks(0, 192)).unwrap();
    journal.pin(&store, 3, blocks(1_000, 160)).unwrap();
    journal.pin(&store, 4, blocks(2_000, 1)).unwrap();
    wait(store.collect()).unwrap();
    // Not a byte is left but what is kept, and of that, once it is given up, a megabyte.
    let before = disk.used() - KEPT;
    disk.resize(before + (1 << 20));
    journal.release(&store, 1).unwrap();
    journal.release(&store, 3).unwrap();
    let collected = wait(store.collect());
    assert!(matches!(collected, Ok(_) | Err(Error::ReadOnly)), "{collected:?}");
    journal.check(&store, "full");
    let freed = before.saturating_sub(disk.used());
    assert!(freed > 4 << 20, "{freed} bytes freed while the disk was full");
    // The power goes on the full disk.
    let image = disk.crash(3);
    image.resize(1 << 30);
    journal.check(&memory(&image).unwrap(), "after a power cut on the full disk");
    disk.resize(1 << 30);
    soon(|| !store.is_read_only() && wait(store.collect()).is_ok());
    journal.check(&store, "space again");
    assert_eq!(store.stats().blocks, 193);
    assert!(disk.used() + (10 << 20) < before + KEPT, "{} of {before}", disk.used());
}

#[test]
fn r03_without_a_byte_left_it_says_so_and_goes_on_by_itself() {
    let (disk, store, mut journal) = crowded();
    assert!(matches!(journal.release(&store, 0), Err(Error::ReadOnly)));
    assert!(matches!(pin(&store, 100, &[block(5000, 100)]), Err(Error::ReadOnly)));
    assert!(store.is_read_only() && wait(store.collect()).is_ok_and(|r| r.blocks == 0));
    journal.check(&store, "full");
    // The kept space is kept across a restart that finds the disk full.
    drop(store);
    let store = memory(&disk).unwrap();
    journal.check(&store, "reopened on a full disk");
    disk.resize(disk.used() + (64 << 10));
    wait(store.release(id(1))).unwrap();
    journal.pinned.remove(&1);
    disk.resize(1 << 30);
    soon(|| !store.is_read_only());
    journal.pin(&store, 200, vec![block(6000, 3000)]).unwrap();
    wait(store.collect()).unwrap();
    journal.check(&store, "space again");
}

#[test]
fn the_reserve_is_exact() {
    for (short, refused) in [(-1_i64, false), (0, false), (1, true)] {
        let disk = FaultyDisk::new(1 << 30);
        let mut settings = settings(Path::new(ROOT), IndexKind::Redb);
        drop(on(disk.clone(), settings.clone()).unwrap());
        let free = (1_u64 << 30) - disk.used();
        settings.reserve_bytes = Some(free.checked_add_signed(short).unwrap());
        let store = on(disk, settings).unwrap();
        assert_eq!(store.is_read_only(), refused, "{short}");
        assert_eq!(matches!(pin(&store, 1, &[block(1, 100)]), Err(Error::ReadOnly)), refused, "{short}");
    }
}

/// A store with two packs and more, closed.
fn filled(disk: &FaultyDisk) -> Vec<Block> {
    let blocks: Vec<_> = (0..60).map(|n| block(n, 3000)).collect();
    let store = memory(disk).unwrap();
    pin(&store, 1, &blocks).unwrap();
    wait(store.close()).unwrap();
    blocks
}

#[test]
fn r04_flipped_bits_of_packs_are_found_and_never_served() {
    let disk = FaultyDisk::default();
    let blocks = filled(&disk);
    let packs: Vec<_> =
        disk.files().into_iter().filter(|(p, _)| p.to_string_lossy().contains("pack-")).collect();
    let all: u64 = packs.iter().map(|(_, len)| len).sum();
    for n in 0..200_u64 {
        let image = disk.crash(1);
        let mut bit = n * 0x9e37_79b9 % (all * 8);
        let file = packs.iter().find(|(_, len)| {
            let inside = bit < len * 8;
            bit -= if inside { 0 } else { len * 8 };
            inside
        });
        let (path, _) = file.unwrap();
        assert!(image.flip(path, bit));
        let store = memory(&image).unwrap();
        let before: Vec<_> = blocks.iter().filter(|b| !has(&store, b)).cloned().collect();
        let report = wait(store.scrub()).unwrap();
        let found = report.damaged.len() as u64 + report.missing.len() as u64;
        let found = found + report.damaged_records + report.dead_damage;
        assert!(found > 0, "bit {bit} of {}", path.display());
        // What the scrub finds is what reads refuse, and a good copy mends it.
        for b in blocks.iter().filter(|b| report.damaged.contains(b.cid().hash())) {
            assert!(!has(&store, b));
            assert_eq!(store.size(b.cid().hash()).unwrap(), None);
            wait(store.repair(b.clone())).unwrap();
            assert!(has(&store, b));
        }
        assert!(before.iter().all(|b| report.damaged.contains(b.cid().hash())));
        assert!(blocks.iter().all(|b| has(&store, b)));
        assert!(wait(store.scrub()).unwrap().damaged.is_empty());
    }
}

/// A run served 59 of 60 blocks after a bit of an index key had flipped, scrubbed, was opened again, and served 59:
/// the scrub met the index's error, the store was dropped before its writer had looked, and nobody had written down
/// that the index lies. And a key whose chunk was unreachable as well was not missed by anything.
#[test]
fn r04_flipped_bits_of_the_index_are_survived() {
    let disk = FaultyDisk::default();
    let blocks = filled(&disk);
    let index = Path::new(ROOT).join("index-1.redb");
    let (mut wrong, mut unnoticed) = (0, 0);
    for n in 0..200_u64 {
        let image = disk.crash(1);
        let len = image.files().into_iter().find(|(p, _)| *p == index).unwrap().1;
        // Most of a small redb file is never read again: the places are spread over its first 64 KiB too.
        let bits = if n % 2 == 0 { len * 8 } else { len.min(64 << 10) * 8 };
        assert!(image.flip(&index, n * 0x9e37_79b9 % bits));
        let store = memory(&image).unwrap();
        let served =
            |s: &BlockStore| blocks.iter().filter(|b| s.get(b.cid()).is_ok_and(|g| g.is_some())).count();
        let sealed = |s: &BlockStore| {
            s.manifests().is_ok_and(|all| all.iter().any(|m| (m.0, m.1) == (id(1), ManifestState::Sealed)))
        };
        if served(&store) < blocks.len() || !sealed(&store) {
            // The index lied or failed: the scrub notices, and what it says is good it has put back.
            wrong += 1;
            if let Ok(report) = wait(store.scrub()) {
                let found = report.damaged.len() + report.missing.len() + report.restored.len();
                unnoticed += usize::from(found == 0 && sealed(&store) || !report.index_wrong);
                assert_eq!(served(&store), blocks.len(), "put back");
            }
            drop(store);
            let store = memory(&image).unwrap();
            assert_eq!(served(&store), blocks.len(), "made again");
            assert!(sealed(&store), "made again");
            let report = wait(store.scrub()).unwrap();
            assert!(!report.index_wrong && report.restored.is_empty(), "{report:?}");
        }
    }
    assert!(wrong > 0, "no bit mattered");
    assert_eq!(unnoticed, 0);
}

/// Three sealed manifests, then a flipped bit in what the first one says it holds, and an index made again from
/// that. The first pin's second block is what the damaged record named.
fn lost_chunk(hint: bool) -> (FaultyDisk, Vec<Block>) {
    let (disk, blocks) = rotten_chunk();
    floe_blockstore::Disk::remove(&disk, &Path::new(ROOT).join("index-1.redb")).unwrap();
    if !hint {
        floe_blockstore::Disk::remove(&disk, &Path::new(ROOT).join("hints/hint-00000001")).unwrap();
    }
    (disk, blocks)
}

/// The same with the index as it was: it does not know of the bit.
fn rotten_chunk() -> (FaultyDisk, Vec<Block>) {
    let disk = FaultyDisk::default();
    let blocks: Vec<_> = (0..60).map(|n| block(n, 3000)).collect();
    let store = memory(&disk).unwrap();
    for (some, n) in blocks.chunks(20).zip(1..) {
        pin(&store, n, some).unwrap();
    }
    wait(store.collect()).unwrap();
    wait(store.close()).unwrap();
    let path = Path::new(ROOT).join("packs/pack-00000001");
    let file = floe_blockstore::Disk::open(&disk, &path, Open::Existing).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    let name = blocks[1].cid().hash().to_bytes();
    // The key of the block's record comes first, then the manifest's chunk.
    let chunk = bytes.windows(name.len()).enumerate().filter(|(_, w)| *w == name).nth(1).unwrap().0;
    assert!(disk.flip(&path, chunk as u64 * 8 + 77));
    (disk, blocks)
}

/// A chunk that had rotted was counted down as if it had been empty when its pin was removed. Nothing was said, and its
/// blocks were counted for ever: no later removal, collection or start freed them. Then it was said, and nothing at all
/// was freed until the next start, though blocks that are counted too often endanger none.
#[test]
fn r04_blocks_that_a_rotten_chunk_counted_are_freed_after_the_next_start() {
    let (disk, blocks) = rotten_chunk();
    let store = memory(&disk).unwrap();
    assert!(!store.stats().in_doubt);
    let report = wait(store.scrub()).unwrap();
    assert_eq!((report.damaged.len(), report.damaged_records), (0, 1));
    assert!(!report.is_clean(), "rot in a record is rot");
    wait(store.release(id(1))).unwrap();
    wait(store.collect()).unwrap();
    assert!(blocks.iter().all(|b| has(&store, b)));
    wait(store.release(id(2))).unwrap();
    wait(store.collect()).unwrap();
    let here: Vec<_> = blocks.iter().map(|b| has(&store, b)).collect();
    assert_eq!(here, (0..60).map(|n| !(20..40).contains(&n)).collect::<Vec<_>>(), "the others are freed");
    wait(store.close()).unwrap();
    drop(store);
    let store = memory(&disk).unwrap();
    assert!(store.confirm(&[id(3)]).unwrap().is_empty());
    assert!(!store.stats().in_doubt, "it ended");
    wait(store.collect()).unwrap();
    let here: Vec<_> = blocks.iter().map(|b| has(&store, b)).collect();
    assert_eq!(here, (0..60).map(|n| n >= 40).collect::<Vec<_>>());
    assert!(wait(store.scrub()).unwrap().missing.is_empty());
}

/// Rot was damage wherever it was, until its pack was compacted, and that could be never: each `floe verify` failed for
/// bytes that nobody needed, and there was nothing that anybody could do.
#[test]
fn r04_rot_where_nothing_lives_is_no_damage() {
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    // More than a pack, so that the seal is in the next one, and what the first says of the manifest is old.
    let blocks: Vec<_> = (0..24).map(|n| block(n, 3000)).collect();
    pin(&store, 1, &blocks).unwrap();
    pin(&store, 2, &[block(100, 3000)]).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let pack = Path::new(ROOT).join("packs/pack-00000001");
    // In the header of the first record, and behind it.
    for byte in [32 + 4, 32 + 44] {
        let image = disk.crash(1);
        assert!(image.flip(&pack, byte * 8));
        let store = memory(&image).unwrap();
        let report = wait(store.scrub()).unwrap();
        assert!(report.is_clean(), "byte {byte}: {report:?}");
        assert_eq!(report.dead_damage, 1, "byte {byte}: it is known all the same");
        assert!(blocks.iter().all(|b| has(&store, b)));
    }
}

/// What a rotten deletion had freed came back with a new index, as blocks that are here and whose space had been given
/// back long ago: a pin of them was pinned at once, and held nothing.
#[test]
fn r04_blocks_that_a_rotten_deletion_freed_do_not_come_back_as_present() {
    for hint in [true, false] {
        let disk = FaultyDisk::default();
        let open = || {
            let settings = floe_blockstore::Settings {
                pack_bytes: 1 << 20,
                ..settings(Path::new(ROOT), IndexKind::Redb)
            };
            on(disk.clone(), settings).unwrap()
        };
        let freed: Vec<_> = (0..2).map(|n| block(n, 100_000)).collect();
        let kept: Vec<_> = (10..18).map(|n| block(n, 100_000)).collect();
        let store = open();
        pin(&store, 1, &freed).unwrap();
        pin(&store, 2, &kept).unwrap();
        wait(store.release(id(1))).unwrap();
        // Seals the pack too, so that it gets its holes; the next pin seals the one with the deletion.
        wait(store.collect()).unwrap();
        pin(&store, 3, &(20..32).map(|n| block(n, 100_000)).collect::<Vec<_>>()).unwrap();
        wait(store.collect()).unwrap();
        wait(store.close()).unwrap();
        drop(store);

        let name = freed[0].cid().hash().to_bytes();
        let steps: Vec<_> =
            disk.files().into_iter().filter(|(path, _)| path.starts_with(format!("{ROOT}/packs"))).collect();
        let mut flipped = 0;
        for (path, _) in steps {
            let file = floe_blockstore::Disk::open(&disk, &path, Open::Existing).unwrap();
            let mut bytes = vec![0; file.size().unwrap() as usize];
            file.read_at(&mut bytes, 0).unwrap();
            // The block's own record, the chunk of its manifest, then the deletion.
            let places = bytes.windows(name.len()).enumerate().filter(|(_, w)| *w == name);
            for (at, _) in places.skip(if path.ends_with("pack-00000001") { 2 } else { 0 }) {
                assert!(disk.flip(&path, at as u64 * 8 + 77));
                flipped += 1;
            }
        }
        assert_eq!(flipped, 1, "one record says that the block is deleted");
        floe_blockstore::Disk::remove(&disk, &Path::new(ROOT).join("index-1.redb")).unwrap();
        if !hint {
            for (path, _) in disk.files().iter().filter(|(path, _)| path.to_string_lossy().contains("hint-"))
            {
                floe_blockstore::Disk::remove(&disk, path).unwrap();
            }
        }

        let store = open();
        pin(&store, 4, &freed).unwrap();
        assert!(freed.iter().chain(&kept).all(|b| has(&store, b)), "hint {hint}: pinned means here");
        assert!(wait(store.scrub()).unwrap().damaged.is_empty(), "hint {hint}");
    }
}

/// Every block that could not be freed yet was remembered by name, in memory and in one value of the index: removing a
/// pin of fifty million blocks while collection was frozen took gigabytes.
#[test]
fn blocks_that_cannot_be_freed_yet_are_found_again_without_being_remembered() {
    // As many names are remembered.
    const KEPT: usize = 100_000;
    let disk = FaultyDisk::default();
    let settings =
        || floe_blockstore::Settings { pack_bytes: 64 << 20, ..settings(Path::new(ROOT), IndexKind::Redb) };
    let store = on(disk.clone(), settings()).unwrap();
    let blocks: Vec<_> = (0..KEPT as u64 + 1).map(|n| block(n, 8)).collect();
    pin(&store, 1, &blocks).unwrap();
    let mut held = wait(store.protect(id(2), root())).unwrap();
    for b in &blocks {
        held.claim(b.cid().hash()).unwrap();
    }
    wait(store.release(id(1))).unwrap();
    wait(store.collect()).unwrap();
    assert_eq!(store.stats().blocks as usize, blocks.len(), "they are held");
    drop(held);
    wait(store.release(id(2))).unwrap();
    wait(store.collect()).unwrap();
    assert_eq!(store.stats().blocks, 0, "all are freed");
}

/// Once frozen, collection stayed so for ever: nothing said which manifest had lost records, and no verb ended it.
#[test]
fn r04_a_lost_manifest_record_freezes_collection_until_its_pin_is_walked_again_or_removed() {
    for (hint, repin) in [(true, true), (true, false), (false, true), (false, false)] {
        let (disk, blocks) = lost_chunk(hint);
        let store = memory(&disk).unwrap();
        assert!(store.stats().in_doubt);
        // The one that lacks something is the one that is not sealed any more.
        assert_eq!(store.confirm(&[id(1), id(2), id(3)]).unwrap(), [id(1)]);
        let open: Vec<_> =
            store.manifests().unwrap().into_iter().filter(|m| m.1 == ManifestState::Open).collect();
        assert_eq!(open.iter().map(|m| m.0).collect::<Vec<_>>(), [id(1)]);
        wait(store.release(id(2))).unwrap();
        wait(store.collect()).unwrap();
        assert!(blocks.iter().all(|b| has(&store, b)), "frozen");
        // The freeze outlives a restart.
        wait(store.close()).unwrap();
        drop(store);
        let store = memory(&disk).unwrap();
        assert!(store.stats().in_doubt);
        assert_eq!(store.confirm(&[id(1), id(3)]).unwrap(), [id(1)]);
        let needed = if repin {
            pin(&store, 1, &blocks[..20]).unwrap();
            vec![id(1), id(3)]
        } else {
            wait(store.release(id(1))).unwrap();
            vec![id(3)]
        };
        assert!(store.confirm(&needed).unwrap().is_empty());
        assert!(!store.stats().in_doubt);
        wait(store.collect()).unwrap();
        let here: Vec<_> = blocks.iter().map(|b| has(&store, b)).collect();
        let want: Vec<_> = (0..60).map(|n| n >= 40 || n < 20 && repin).collect();
        assert_eq!(here, want);
        // The damaged record may be there still: the next rebuild misses nothing by it.
        wait(store.close()).unwrap();
        drop(store);
        floe_blockstore::Disk::remove(&disk, &Path::new(ROOT).join("index-1.redb")).unwrap();
        let store = memory(&disk).unwrap();
        assert!(store.confirm(&needed).unwrap().is_empty());
        assert!(!store.stats().in_doubt);
        wait(store.collect()).unwrap();
        assert_eq!(blocks.iter().map(|b| has(&store, b)).collect::<Vec<_>>(), want);
    }
}

#[test]
fn r04_a_block_that_looks_like_records_is_only_bytes() {
    // A stranger may pin bytes that look like our log. After damage open looks for the next record by its magic:
    // what it finds must be ours.
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    let mine = block(1, 3000);
    pin(&store, 1, std::slice::from_ref(&mine)).unwrap();
    let path = Path::new(ROOT).join("packs/pack-00000001");
    let file = floe_blockstore::Disk::open(&disk, &path, Open::Existing).unwrap();
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    let forged = Block::of(floe_core::cid::code::RAW, bytes.into()).unwrap();
    pin(&store, 2, std::slice::from_ref(&forged)).unwrap();
    let after = block(2, 3000);
    pin(&store, 3, std::slice::from_ref(&after)).unwrap();
    let start = 32 + 3000; // inside the first record's neighbours: the forged block's header is behind it
    drop(store);
    for byte in (start..start + 400).step_by(8) {
        let image = disk.crash(1);
        image.flip(&path, byte * 8);
        image.flip(&path, byte * 8 + 1);
        let store = memory(&image).unwrap();
        let manifests = store.manifests().unwrap();
        assert!(manifests.len() <= 3, "{manifests:?}");
        assert!(has(&store, &after));
    }
}

#[test]
fn r10_foreign_newer_and_half_written_directories() {
    let open = |dir: &Path| on(floe_blockstore::RealDisk, settings(dir, IndexKind::Redb));
    let refused = |dir: &Path, word: &str| match open(dir) {
        Err(e @ Error::Directory { .. }) => assert!(e.to_string().contains(word), "{e}"),
        other => panic!("{word}: {:?}", other.err()),
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letters.txt"), "dear").unwrap();
    refused(dir.path(), "letters.txt");
    std::fs::write(dir.path().join("FORMAT"), "floe blocks 2\nsalt 00\n").unwrap();
    refused(dir.path(), "version 2");
    std::fs::write(dir.path().join("FORMAT"), "something else").unwrap();
    refused(dir.path(), "not one of a Floe block store");

    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("packs")).unwrap();
    std::fs::write(dir.path().join("FORMAT.new"), "floe bl").unwrap();
    let store = open(dir.path()).unwrap();
    pin(&store, 1, &[block(1, 100)]).unwrap();
    wait(store.close()).unwrap();
    for damage in ["", "floe", "\0\0\0\0\0\0\0\0"] {
        std::fs::write(dir.path().join("FORMAT"), damage).unwrap();
        assert!(has(&open(dir.path()).unwrap(), &block(1, 100)), "{damage:?}");
    }
    std::fs::remove_file(dir.path().join("FORMAT")).unwrap();
    assert!(has(&open(dir.path()).unwrap(), &block(1, 100)));
    for kind in KINDS {
        let index = if kind == IndexKind::Redb { "index-1.redb" } else { "index-1.sled/db" };
        for damage in [&b""[..], b"x", &[7; 9000]] {
            drop(real(dir.path(), kind));
            std::fs::write(dir.path().join(index), damage).unwrap();
            let store = real(dir.path(), kind);
            assert!(has(&store, &block(1, 100)), "{index} {damage:?}");
        }
    }
    // A pack whose making was cut off.
    std::fs::write(dir.path().join("packs/pack-00000002"), "FLO").unwrap();
    let store = open(dir.path()).unwrap();
    pin(&store, 2, &[block(2, 100)]).unwrap();
    drop(store);
    let store = open(dir.path()).unwrap();
    assert!(has(&store, &block(1, 100)) && has(&store, &block(2, 100)));
}
