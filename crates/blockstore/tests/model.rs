//! The store against a map: any sequence of what its callers do, with crashes between.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Barrier};

use common::*;
use floe_blockstore::testing::FaultyDisk;
use floe_blockstore::{BlockStore, Claim, IndexKind, ManifestState};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    /// Walks blocks into a manifest, and seals it or leaves it open.
    Walk {
        manifest: u8,
        blocks: Vec<u8>,
        seal: bool,
    },
    Release {
        manifest: u8,
    },
    Collect,
    Scrub,
    Close,
    /// The process is killed.
    Kill,
    /// The power goes.
    Cut {
        seed: u64,
    },
    LoseIndex,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..5, proptest::collection::vec(0u8..24, 0..12), any::<bool>())
            .prop_map(|(manifest, blocks, seal)| Step::Walk { manifest, blocks, seal }),
        4 => (0u8..5).prop_map(|manifest| Step::Release { manifest }),
        3 => Just(Step::Collect),
        1 => Just(Step::Scrub),
        1 => Just(Step::Close),
        2 => Just(Step::Kill),
        2 => any::<u64>().prop_map(|seed| Step::Cut { seed }),
        1 => Just(Step::LoseIndex),
    ]
}

#[derive(Default)]
struct Model {
    manifests: BTreeMap<u8, (BTreeSet<u8>, bool)>,
    released: BTreeSet<u8>,
}

/// Every third block is large enough to be punched.
fn number(n: u8) -> floe_core::Block {
    block(n.into(), if n.is_multiple_of(3) { 80_000 } else { 700 + usize::from(n) * 40 })
}

impl Model {
    fn live(&self) -> BTreeSet<u8> {
        self.manifests.values().flat_map(|(blocks, _)| blocks.iter().copied()).collect()
    }

    fn walk(&mut self, store: &BlockStore, manifest: u8, blocks: &[u8], seal: bool) {
        let uuid = id(manifest.into());
        if self.released.contains(&manifest) {
            // The id is busy until its release is done.
            wait(store.collect()).unwrap();
            self.released.remove(&manifest);
        }
        let known = self.manifests.entry(manifest).or_default();
        wait(async {
            let mut protect = store.protect(uuid, root()).await.unwrap();
            assert_eq!(protect.totals().blocks, known.0.len() as u64);
            let mut absent = Vec::new();
            for n in blocks {
                let claimed = protect.claim(number(*n).cid().hash()).unwrap();
                assert_eq!(claimed == Claim::Seen, known.0.contains(n), "block {n}");
                match claimed {
                    Claim::Seen => {}
                    Claim::Present(len) => {
                        assert_eq!(len as usize, number(*n).data().len());
                        known.0.insert(*n);
                    }
                    Claim::Absent => absent.push(*n),
                }
            }
            protect.put(absent.iter().map(|n| number(*n)).collect()).await.unwrap();
            known.0.extend(absent);
            // Claims become durable with a checkpoint or a seal.
            if seal {
                known.1 = true;
                assert_eq!(protect.seal().await.unwrap().blocks, known.0.len() as u64);
            } else {
                protect.checkpoint(vec![manifest; 9].into()).await.unwrap();
            }
        });
    }

    fn check(&self, store: &BlockStore) {
        for n in self.live() {
            assert!(has(store, &number(n)), "block {n} is lost");
        }
        let mut want: Vec<_> = self
            .manifests
            .iter()
            .map(|(m, (blocks, sealed))| {
                let state = if *sealed { ManifestState::Sealed } else { ManifestState::Open };
                (id((*m).into()), state, blocks.len() as u64)
            })
            .collect();
        want.sort_by_key(|m| m.0);
        let all = store.manifests().unwrap().into_iter();
        let mut got: Vec<_> = all
            .filter(|(_, s, _)| *s != ManifestState::Releasing)
            .map(|(i, s, t)| (i, s, t.blocks))
            .collect();
        got.sort_by_key(|m| m.0);
        assert_eq!(format!("{got:?}"), format!("{want:?}"));
    }

    fn check_collected(&self, store: &BlockStore) {
        wait(store.collect()).unwrap();
        let live = self.live();
        for n in (0..24).filter(|n| !live.contains(n)) {
            assert!(!has(store, &number(n)), "block {n} leaks");
        }
        assert_eq!(store.stats().blocks, live.len() as u64);
        let bytes: usize = live.iter().map(|n| number(*n).data().len()).sum();
        assert_eq!(store.stats().bytes, bytes as u64);
        assert!(store.manifests().unwrap().iter().all(|(_, s, _)| *s != ManifestState::Releasing));
    }
}

/// Where a sequence runs: the disk in memory can lose power, the real one carries sled.
enum Ground {
    Memory(FaultyDisk),
    Real(tempfile::TempDir, IndexKind),
}

impl Ground {
    fn open(&self) -> BlockStore {
        match self {
            Self::Memory(disk) => memory(disk).unwrap(),
            Self::Real(dir, kind) => real(dir.path(), *kind),
        }
    }

    fn cut(&mut self, seed: u64) {
        if let Self::Memory(disk) = self {
            *disk = disk.crash(seed);
        }
    }

    fn lose_index(&self) {
        match self {
            Self::Memory(disk) => {
                floe_blockstore::Disk::remove(disk, &Path::new(ROOT).join("index-1.redb")).unwrap();
            }
            Self::Real(dir, IndexKind::Redb) => {
                std::fs::remove_file(dir.path().join("index-1.redb")).unwrap()
            }
            Self::Real(dir, IndexKind::Sled) => {
                std::fs::remove_dir_all(dir.path().join("index-1.sled")).unwrap()
            }
        }
    }
}

fn run(mut ground: Ground, steps: Vec<Step>) {
    let mut model = Model::default();
    let mut store = ground.open();
    for step in steps {
        match step {
            Step::Walk { manifest, blocks, seal } => model.walk(&store, manifest, &blocks, seal),
            Step::Release { manifest } => {
                wait(store.release(id(manifest.into()))).unwrap();
                if model.manifests.remove(&manifest).is_some() {
                    model.released.insert(manifest);
                }
            }
            Step::Collect => model.check_collected(&store),
            Step::Scrub => {
                let report = wait(store.scrub()).unwrap();
                assert_eq!((report.damaged.len(), report.missing.len(), report.damaged_records), (0, 0, 0));
                assert!(!report.index_wrong, "{report:?}");
            }
            Step::Close => {
                wait(store.close()).unwrap();
                drop(store);
                store = ground.open();
            }
            Step::Kill => {
                drop(store);
                store = ground.open();
            }
            Step::Cut { seed } => {
                ground.cut(seed);
                drop(store);
                store = ground.open();
            }
            Step::LoseIndex => {
                drop(store);
                ground.lose_index();
                store = ground.open();
            }
        }
        model.check(&store);
    }
    model.check_collected(&store);
    model.check(&store);
}

/// How many sequences are tried. R06 asks for 10,000, which is `FLOE_TEST_SEQUENCES=10000` and takes eight minutes: each
/// opens and closes stores with threads of their own. By default as many as fit into twenty seconds.
fn sequences() -> u32 {
    std::env::var("FLOE_TEST_SEQUENCES").map_or(400, |n| n.parse().expect("FLOE_TEST_SEQUENCES is a number"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), ..ProptestConfig::default() })]
    #[test]
    fn r06_the_store_is_a_map(steps in proptest::collection::vec(step(), 1..30)) {
        run(Ground::Memory(FaultyDisk::default()), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]
    #[test]
    fn r06_the_store_is_a_map_on_a_real_disk(steps in proptest::collection::vec(step(), 1..20)) {
        for kind in KINDS {
            run(Ground::Real(tempfile::tempdir().unwrap(), kind), steps.clone());
        }
    }
}

/// kubo#6252: a block is found present and pinned while the collector, which looked before, deletes it.
#[test]
fn r06_pins_unpins_and_collection_race() {
    let disk = FaultyDisk::default();
    let store = memory(&disk).unwrap();
    let rounds = 1000_u32;
    for round in 0..rounds {
        let base = u128::from(round) * 10;
        let blocks: Vec<_> = (0..3).map(|n| block(u64::from(round % 7) * 3 + n, 600)).collect();
        pin(&store, base, &blocks).unwrap();
        let barrier = Arc::new(Barrier::new(3));
        let spawn = |work: Box<dyn FnOnce(BlockStore) + Send>| {
            let (store, barrier) = (store.clone(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                work(store);
            })
        };
        let mine = blocks.clone();
        let threads = [
            spawn(Box::new(move |s| wait(s.release(id(base))).unwrap())),
            spawn(Box::new(move |s| pin(&s, base + 1, &mine).unwrap())),
            spawn(Box::new(move |s| {
                wait(s.collect()).unwrap();
            })),
        ];
        for t in threads {
            t.join().unwrap();
        }
        assert!(blocks.iter().all(|b| has(&store, b)), "round {round}: a pinned block was collected");
        wait(store.release(id(base + 1))).unwrap();
        if round % 50 == 49 {
            wait(store.collect()).unwrap();
            assert_eq!(store.stats().blocks, 0, "round {round}: a leak");
        }
    }
}
