//! The store as its callers see it, over both indexes on the real disk.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use bytes::Bytes;
use common::*;
use floe_blockstore::testing::FaultyDisk;
use floe_blockstore::{Claim, Error, IndexKind, ManifestState, ManifestTotals};
use floe_core::ports::LocalBlocks;
use std::future::Future as _;

#[test]
fn a_manifest_from_the_first_block_to_the_last() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let blocks: Vec<_> = (0..300).map(|n| block(n, 1000)).collect();
        let store = real(dir.path(), kind);
        wait(async {
            let mut protect = store.protect(id(1), root()).await.unwrap();
            assert_eq!(protect.claim(blocks[0].cid().hash()).unwrap(), Claim::Absent);
            protect.put(blocks[..100].to_vec()).await.unwrap();
            assert_eq!(protect.claim(blocks[0].cid().hash()).unwrap(), Claim::Seen);
            protect.checkpoint(Bytes::from_static(b"here")).await.unwrap();
        });
        drop(store);

        let store = real(dir.path(), kind);
        assert!((0..100).all(|n| has(&store, &blocks[n])));
        assert_eq!(store.manifests().unwrap()[0].1, ManifestState::Open);
        wait(async {
            let mut protect = store.protect(id(1), root()).await.unwrap();
            assert_eq!(protect.frontier().unwrap(), Bytes::from_static(b"here"));
            assert_eq!(protect.totals(), ManifestTotals { blocks: 100, bytes: 100_000 });
            assert_eq!(protect.claim(blocks[99].cid().hash()).unwrap(), Claim::Seen);
            protect.put(blocks.clone()).await.unwrap();
            let totals = ManifestTotals { blocks: 300, bytes: 300_000 };
            assert_eq!(protect.seal().await.unwrap(), totals);
            store.close().await.unwrap();
            assert!(matches!(store.release(id(1)).await, Err(Error::Closed)));
        });

        let store = real(dir.path(), kind);
        let totals = ManifestTotals { blocks: 300, bytes: 300_000 };
        assert_eq!(store.manifests().unwrap(), [(id(1), ManifestState::Sealed, totals)]);
        assert_eq!((store.stats().blocks, store.stats().bytes), (300, 300_000));
        let report = wait(store.scrub()).unwrap();
        assert_eq!((report.damaged.len(), report.missing.len(), report.damaged_records), (0, 0, 0));
        assert!(packs(dir.path()).len() > 2);
        let before = du(dir.path());
        wait(store.release(id(1))).unwrap();
        let freed = wait(store.collect()).unwrap();
        assert_eq!(freed.blocks, 300);
        assert!(freed.bytes > 280_000, "{freed:?}");
        assert!(du(dir.path()) + 250_000 < before);
        assert!(blocks.iter().all(|b| !has(&store, b)));
        assert_eq!((store.stats().blocks, store.stats().bytes), (0, 0));
        assert_eq!(store.manifests().unwrap(), []);
    }
}

fn du(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    packs(dir).iter().map(|p| p.metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn two_manifests_count_a_block_twice() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let store = real(dir.path(), kind);
        let shared = block(1, 500);
        pin(&store, 1, &[shared.clone(), block(2, 500)]).unwrap();
        pin(&store, 2, &[shared.clone(), block(3, 500)]).unwrap();
        assert_eq!(store.stats().blocks, 3);
        wait(store.release(id(1))).unwrap();
        assert_eq!(wait(store.collect()).unwrap().blocks, 1);
        assert!(has(&store, &shared) && !has(&store, &block(2, 500)) && has(&store, &block(3, 500)));
        drop(store);
        let store = real(dir.path(), kind);
        wait(store.release(id(2))).unwrap();
        wait(store.release(id(7))).unwrap();
        assert_eq!(wait(store.collect()).unwrap().blocks, 2);
        assert!(!has(&store, &shared));
    }
}

#[test]
fn a_claim_protects_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = real(dir.path(), IndexKind::Redb);
    let b = block(1, 500);
    pin(&store, 1, std::slice::from_ref(&b)).unwrap();
    let mut protect = wait(store.protect(id(2), root())).unwrap();
    assert_eq!(protect.claim(b.cid().hash()).unwrap(), Claim::Present(500));
    wait(store.release(id(1))).unwrap();
    assert_eq!(wait(store.collect()).unwrap().blocks, 0);
    assert!(has(&store, &b));
    // Dropping leaves the manifest open and protecting.
    drop(protect);
    wait(store.collect()).unwrap();
    assert!(has(&store, &b));
    wait(store.release(id(2))).unwrap();
    assert_eq!(wait(store.collect()).unwrap().blocks, 1);
    assert!(!has(&store, &b));
}

#[test]
fn an_id_has_one_protect_and_none_after_its_release() {
    let dir = tempfile::tempdir().unwrap();
    let store = real(dir.path(), IndexKind::Redb);
    let mut first = wait(store.protect(id(1), root())).unwrap();
    assert!(matches!(wait(store.protect(id(1), root())), Err(Error::Io(_))));
    wait(first.put(vec![block(1, 100)])).unwrap();
    wait(store.release(id(1))).unwrap();
    assert!(matches!(wait(first.put(vec![block(2, 100)])), Err(Error::Released(_)) | Ok(())));
    drop(first);
    wait(store.release(id(1))).unwrap();
    wait(store.collect()).unwrap();
    assert!(!has(&store, &block(1, 100)));
    // The id may live again, and is not touched by what is left of its first life.
    pin(&store, 1, &[block(3, 100)]).unwrap();
    wait(store.collect()).unwrap();
    drop(store);
    std::fs::remove_file(dir.path().join("index-1.redb")).unwrap();
    let store = real(dir.path(), IndexKind::Redb);
    wait(store.collect()).unwrap();
    assert!(has(&store, &block(3, 100)));
}

#[test]
fn bitswap_reads_through_the_port() {
    let dir = tempfile::tempdir().unwrap();
    let store = real(dir.path(), IndexKind::Redb);
    let (b, gone) = (block(1, 500), block(2, 500));
    pin(&store, 1, std::slice::from_ref(&b)).unwrap();
    let local: &dyn LocalBlocks = &store;
    assert_eq!(local.size(b.cid()), Ok(Some(500)));
    assert_eq!(local.read(b.cid()), Ok(Some(b.data().clone())));
    assert_eq!((local.size(gone.cid()), local.read(gone.cid())), (Ok(None), Ok(None)));
}

#[test]
fn the_index_can_be_lost_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let keep: Vec<_> = (0..200).map(|n| block(n, 900)).collect();
    let store = real(dir.path(), IndexKind::Redb);
    pin(&store, 1, &keep).unwrap();
    pin(&store, 2, &keep[..50]).unwrap();
    pin(&store, 3, &[block(1000, 900)]).unwrap();
    wait(store.release(id(3))).unwrap();
    wait(store.collect()).unwrap();
    let stats = store.stats();
    wait(store.close()).unwrap();
    for kind in [IndexKind::Sled, IndexKind::Redb, IndexKind::Sled] {
        let store = real(dir.path(), kind);
        assert_eq!((store.stats().blocks, store.stats().bytes), (stats.blocks, stats.bytes));
        assert!(keep.iter().all(|b| has(&store, b)));
        assert_eq!(wait(store.collect()).unwrap().blocks, 0);
        wait(store.close()).unwrap();
    }
    let store = real(dir.path(), IndexKind::Redb);
    wait(store.release(id(1))).unwrap();
    wait(store.collect()).unwrap();
    assert_eq!(keep.iter().filter(|b| has(&store, b)).count(), 50);
}

#[test]
fn a_frontier_has_a_largest_size() {
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    let mut protect = wait(store.protect(id(1), root())).unwrap();
    let most = (64 << 20) - 8;
    for (len, fits) in [(most - 1, true), (most, true), (most + 1, false)] {
        assert_eq!(wait(protect.checkpoint(Bytes::from(vec![3; len]))).is_ok(), fits, "{len}");
    }
    drop(protect);
    drop(store);
    let store = memory(&disk).unwrap();
    assert_eq!(wait(store.protect(id(1), root())).unwrap().frontier().unwrap().len(), most);
}

#[test]
fn chunks_steps_and_claims_at_their_bounds() {
    // 2,048 claims are written at once, 4,096 hashes are a chunk and a step.
    for count in [2047, 2048, 2049, 4095, 4096, 4097] {
        let disk = FaultyDisk::default();
        let blocks: Vec<_> = (0..count).map(|n| block(n, 8)).collect();
        let store = memory(&disk).unwrap();
        pin(&store, 1, &blocks).unwrap();
        pin(&store, 2, &blocks).unwrap();
        assert!(store.manifests().unwrap().iter().all(|m| m.2.blocks == count), "{count}");
        wait(store.release(id(1))).unwrap();
        wait(store.collect()).unwrap();
        assert_eq!(store.stats().blocks, count);
        drop(store);
        let store = memory(&disk).unwrap();
        wait(store.release(id(2))).unwrap();
        assert_eq!(wait(store.collect()).unwrap().blocks, count);
        assert_eq!(store.stats().blocks, 0);
    }
}

#[test]
fn dropped_futures_neither_lose_nor_count_twice() {
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    let blocks: Vec<_> = (0..50).map(|n| block(n, 500)).collect();
    wait(async {
        let mut protect = store.protect(id(1), root()).await.unwrap();
        for b in &blocks {
            let mut put = Box::pin(protect.put(vec![b.clone()]));
            let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(put.as_mut().poll(cx).is_ready()));
            let _ = polled.await;
            drop(put);
            assert_eq!(protect.claim(b.cid().hash()).unwrap(), Claim::Seen);
        }
        assert_eq!(protect.seal().await.unwrap().blocks, 50);
    });
    assert_eq!(store.manifests().unwrap()[0].2.blocks, 50);
}

#[test]
fn the_quarantine_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let blocks: Vec<_> = (0..65).map(|n| block(n, 3000)).collect();
    let store = real(dir.path(), IndexKind::Redb);
    pin(&store, 1, &blocks).unwrap();
    wait(store.close()).unwrap();
    for pack in packs(dir.path()) {
        let mut bytes = std::fs::read(&pack).unwrap();
        for at in 0..bytes.len().saturating_sub(200) {
            if blocks.iter().any(|b| bytes[at..at + 16] == b.data()[..16]) {
                bytes[at + 100] ^= 1;
            }
        }
        std::fs::write(&pack, bytes).unwrap();
    }
    let store = real(dir.path(), IndexKind::Redb);
    let damaged = wait(store.scrub()).unwrap().damaged.len();
    let kept = std::fs::read_dir(dir.path().join("quarantine")).unwrap().count();
    assert_eq!((damaged, kept), (65, 64));
    drop(store);
    // Known to be damaged after a start as well.
    let store = real(dir.path(), IndexKind::Redb);
    assert!(blocks.iter().all(|b| !has(&store, b)));
}

/// The number of a pack.
fn number(path: &std::path::Path) -> u32 {
    u32::from_str_radix(path.file_name().unwrap().to_str().unwrap().strip_prefix("pack-").unwrap(), 16)
        .unwrap()
}

#[test]
fn compaction_fills_a_pack_of_its_own() {
    for kind in KINDS {
        let dir = tempfile::tempdir().unwrap();
        let store = real(dir.path(), kind);
        // Of every three blocks in a pack one lives on.
        let live: Vec<_> = (0..40).map(|n| block(n, 3000)).collect();
        for n in 0..40_u64 {
            let dying: Vec<_> = (0..2).map(|d| block(1000 + n * 2 + d, 3000)).collect();
            pin(&store, 1, &live[..n as usize + 1]).unwrap();
            pin(&store, 2, &dying).unwrap();
        }
        let before: Vec<_> = packs(dir.path()).iter().map(|p| number(p)).collect();
        wait(store.release(id(2))).unwrap();
        wait(store.collect()).unwrap();
        let after: Vec<_> = packs(dir.path()).iter().map(|p| number(p)).collect();
        let made: Vec<_> = after.iter().copied().filter(|p| !before.contains(p)).collect();
        let log = *after.last().unwrap();
        assert!(after.len() < before.len() && made.len() >= 2, "{before:?} {after:?}");
        // The log's packs are numbered in steps of 256; the numbers between are those of compaction.
        assert!(made.iter().all(|p| (*p % 256 == 1) == (*p == log)), "{before:?} {after:?}");
        let size = |n: u32| std::fs::metadata(dir.path().join(format!("packs/pack-{n:08x}"))).unwrap().len();
        let copies: Vec<_> = made.iter().filter(|p| **p != log).map(|p| size(*p)).collect();
        assert!(copies.iter().sum::<u64>() > 20 * 3000, "{copies:?}");
        pin(&store, 3, &[block(5000, 3000)]).unwrap();
        assert_eq!(copies, made.iter().filter(|p| **p != log).map(|p| size(*p)).collect::<Vec<_>>());
        assert!(live.iter().all(|b| has(&store, b)));
        let report = wait(store.scrub()).unwrap();
        assert_eq!((report.blocks, report.index_wrong, report.damaged_records), (41, false, 0));
        wait(store.close()).unwrap();
        let _ = std::fs::remove_file(dir.path().join("index-1.redb"));
        let _ = std::fs::remove_dir_all(dir.path().join("index-1.sled"));
        let store = real(dir.path(), kind);
        assert!(live.iter().all(|b| has(&store, b)));
        assert_eq!(store.stats().blocks, 41);
        assert_eq!(store.manifests().unwrap().len(), 2);
    }
}

#[test]
fn tombstones_outlive_the_packs_they_are_about() {
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    // The first pack keeps a live block and the chunk and the blocks of a manifest that goes.
    pin(&store, 1, &(0..12).map(|n| block(n, 3000)).collect::<Vec<_>>()).unwrap();
    pin(&store, 2, &[block(100, 500), block(101, 500)]).unwrap();
    pin(&store, 3, &(20..40).map(|n| block(n, 3000)).collect::<Vec<_>>()).unwrap();
    let first = |disk: &FaultyDisk| {
        disk.files().iter().any(|(path, _)| path.to_string_lossy().ends_with("packs/pack-00000001"))
    };
    wait(store.release(id(2))).unwrap();
    wait(store.collect()).unwrap();
    // The pack that has the tombstones is compacted, again and again; the first one stays.
    for round in 0..6_u64 {
        let dying: Vec<_> = (0..40).map(|n| block(1000 + round * 40 + n, 3000)).collect();
        pin(&store, 9, &dying).unwrap();
        wait(store.release(id(9))).unwrap();
        wait(store.collect()).unwrap();
        assert!(first(&disk), "round {round}");
        let image = disk.crash(round);
        floe_blockstore::Disk::remove(&image, &std::path::Path::new(ROOT).join("index-1.redb")).unwrap();
        let store = memory(&image).unwrap();
        let ids: Vec<_> = store.manifests().unwrap().into_iter().map(|m| m.0).collect();
        assert_eq!(ids, [id(1), id(3)], "round {round}");
        assert!(!has(&store, &block(100, 500)) && !has(&store, &block(101, 500)), "round {round}");
        wait(store.collect()).unwrap();
        assert_eq!(store.stats().blocks, 32, "round {round}");
    }
}
