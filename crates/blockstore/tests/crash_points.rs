//! A thread of the store dies at each named point; the next open has everything that was acknowledged.
//!
//! `cargo test -p floe-blockstore --features failpoints --test crash_points`
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use common::*;
use fail::FailScenario;
use floe_blockstore::{BlockStore, Error, IndexKind, ManifestState};

const POINTS: [&str; 12] = [
    "pack.append",
    "pack.synced",
    "pack.sealed",
    "index.apply",
    "index.checkpoint",
    "hint.write",
    "gc.claimed",
    "gc.tombstone",
    "compact.made",
    "compact.copied",
    "compact.switched",
    "compact.removed",
];

/// Comes by every point. The first manifest is there before the points are armed.
fn script(store: &BlockStore, acknowledged: &mut Vec<u128>) -> Result<(), Error> {
    for n in 2..5_u128 {
        pin(store, n, &(0..30).map(|b| block(n as u64 * 20 + b, 3000)).collect::<Vec<_>>())?;
        acknowledged.push(n);
    }
    acknowledged.retain(|n| *n != 2);
    wait(store.release(id(2)))?;
    wait(store.collect())?;
    wait(store.close())
}

#[test]
fn r01_a_crash_at_every_point_loses_nothing() {
    for kind in [IndexKind::Redb, IndexKind::Sled] {
        for point in POINTS {
            let scenario = FailScenario::setup();
            let dir = tempfile::tempdir().unwrap();
            let store = real(dir.path(), kind);
            pin(&store, 1, &[block(1, 3000)]).unwrap();
            fail::cfg(point, "panic").unwrap();
            let mut acknowledged = vec![1];
            let ended = script(&store, &mut acknowledged);
            assert!(ended.is_err(), "{point} was not reached");
            assert!(wait(store.poisoned()).contains("panicked"), "{point}");
            drop(store);
            scenario.teardown();

            let store = real(dir.path(), kind);
            let manifests = store.manifests().unwrap();
            for n in acknowledged {
                let sealed = manifests.iter().any(|m| (m.0, m.1) == (id(n), ManifestState::Sealed));
                assert!(sealed, "{point}: manifest {n}");
                let (from, blocks) = if n == 1 { (1, 1) } else { (n as u64 * 20, 30) };
                assert!((from..from + blocks).all(|b| has(&store, &block(b, 3000))), "{point}: manifest {n}");
            }
            // What was begun is finished.
            let all: Vec<_> = store.manifests().unwrap().into_iter().map(|m| m.0).collect();
            for manifest in all {
                wait(store.release(manifest)).unwrap();
            }
            wait(store.collect()).unwrap();
            assert_eq!((store.stats().blocks, store.manifests().unwrap().len()), (0, 0), "{point}");
        }
    }
}
