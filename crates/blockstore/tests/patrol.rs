//! The scrub in the background: every pack in its turn, at a pace, remembered across restarts.
#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use floe_blockstore::testing::FaultyDisk;
use floe_blockstore::{BlockStore, Components, IndexKind, ScrubReport};
use floe_core::{Block, Clock as _, ManualClock, Timestamp};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn open(disk: &FaultyDisk, clock: &ManualClock) -> BlockStore {
    let entropy = Arc::new(floe_core::Seeded::new(1));
    let components = Components { disk: Arc::new(disk.clone()), clock: Arc::new(clock.clone()), entropy };
    BlockStore::open(settings(Path::new(ROOT), IndexKind::Redb), components).unwrap()
}

/// One step of the patrol while the clock goes on by `tick` at a time.
fn patrol(store: &BlockStore, clock: &ManualClock, tick: Duration) -> ScrubReport {
    wait(async {
        let mut step = Box::pin(store.patrol());
        loop {
            tokio::select! {
                report = &mut step => return report.unwrap(),
                () = tokio::time::sleep(Duration::from_micros(200)) => clock.advance(tick),
            }
        }
    })
}

fn packs_of(disk: &FaultyDisk) -> Vec<(PathBuf, u64)> {
    disk.files().into_iter().filter(|(path, _)| path.to_string_lossy().contains("/pack-")).collect()
}

/// Five packs and more.
fn filled(store: &BlockStore) -> Vec<Block> {
    let blocks: Vec<_> = (0..100).map(|n| block(n, 3000)).collect();
    blocks.chunks(20).zip(1..).for_each(|(some, n)| pin(store, n, some).unwrap());
    blocks
}

#[test]
fn a_round_reads_every_pack_at_its_pace_and_the_next_begins_after_15_days() {
    let (disk, clock) = (FaultyDisk::default(), ManualClock::new(Timestamp::from_millis(1 << 40)));
    let store = open(&disk, &clock);
    let blocks = filled(&store);
    let packs = packs_of(&disk);
    let began = clock.now();
    let (mut read, mut bytes) = (0, 0);
    for n in 0..packs.len() {
        assert_eq!(store.patrol_state().next.is_some(), n > 0);
        let report = patrol(&store, &clock, Duration::from_millis(1));
        assert!(report.is_clean(), "{report:?}");
        (read, bytes) = (read + report.blocks, bytes + report.bytes);
    }
    assert_eq!(read, blocks.len() as u64);
    // A MiB a second is the slowest pace.
    let took = clock.now().since(began).as_secs_f64();
    let least = bytes as f64 / (1 << 20) as f64;
    assert!(took >= least, "{took} s for {bytes} bytes");
    assert!(patrol(&store, &clock, Duration::from_millis(1)).is_clean());
    let state = store.patrol_state();
    assert!((state.began, state.next) == (Some(began), None) && state.finished > Some(began), "{state:?}");
    // Between rounds it waits, also across a restart.
    drop(store);
    let store = open(&disk, &clock);
    assert_eq!(store.patrol_state(), state);
    assert!(patrol(&store, &clock, Duration::from_secs(600)).is_clean());
    let second = store.patrol_state().began.unwrap();
    assert!(second.since(began) >= 15 * DAY && second.since(began) < 16 * DAY, "{second}");
}

#[test]
fn the_position_outlives_a_restart_and_damage_is_told_once_where_it_is_read() {
    let (disk, clock) = (FaultyDisk::default(), ManualClock::new(Timestamp::from_millis(1 << 40)));
    let store = open(&disk, &clock);
    filled(&store);
    let packs = packs_of(&disk);
    let tick = Duration::from_millis(100);
    patrol(&store, &clock, tick);
    let state = store.patrol_state();
    // The power goes; the file of the position is whole or of the pack before.
    let disk = disk.crash(7);
    let store = open(&disk, &clock);
    assert_eq!(store.patrol_state(), state);
    // The middle of the third pack is data of a block.
    assert!(disk.flip(&packs[2].0, packs[2].1 / 2 * 8));
    let steps: Vec<_> = (0..packs.len()).map(|_| patrol(&store, &clock, tick)).collect();
    let damaged: Vec<_> = steps.iter().map(|report| report.damaged.len()).collect();
    // Pack 2, pack 3 with the damage, the others, and at the end all that is known.
    let mut want = vec![0; packs.len()];
    (want[1], want[packs.len() - 1]) = (1, 1);
    assert_eq!(damaged, want);
    assert_eq!(store.patrol_state().next, None);
    // A state that cannot be read begins a round early.
    assert!(disk.flip(&Path::new(ROOT).join("scrub"), 100));
    drop(store);
    assert_eq!(open(&disk, &clock).patrol_state(), floe_blockstore::PatrolState::default());
}

#[test]
fn a_scrub_that_was_asked_for_is_a_round() {
    let (disk, clock) = (FaultyDisk::default(), ManualClock::new(Timestamp::from_millis(1 << 40)));
    let store = open(&disk, &clock);
    pin(&store, 1, &[block(1, 3000)]).unwrap();
    let report = wait(store.scrub()).unwrap();
    assert_eq!(report.blocks, 1, "one block, whatever else there is: {report:?}");
    let state = store.patrol_state();
    assert_eq!((state.began, state.next, state.finished), (Some(clock.now()), None, Some(clock.now())));
    // A clock that is set back does not put the next round off.
    clock.jump_to(Timestamp::from_millis(1 << 30));
    patrol(&store, &clock, Duration::from_millis(1));
    assert!(store.patrol_state().next.is_some());
}
