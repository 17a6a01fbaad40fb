//! A disk without space, and a disk that spoils what it holds.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floe_blockstore::testing::Watched;
use floe_blockstore::{RealDisk, Space};
use floe_core::ports::LocalBlocks;
use floe_core::{Block, PinStatus};
use floe_engine::{Error, Settings};
use sqlx::Connection as _;

use self::support::dags::{leaf, tree};
use self::support::{World, spec, until};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// More than anything here needs.
const ROOMY: u64 = 100 << 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_without_space_new_pins_are_refused_and_running_ones_pause_and_recover() {
    let free = Arc::new(AtomicU64::new(ROOMY));
    let told = free.clone();
    let space = move || Space { free: told.load(Ordering::SeqCst), total: 2 * ROOMY };
    let world = World::on_disk(Settings::default(), Arc::new(Watched::with_space(RealDisk, space))).await;
    let alice = world.alice().await;
    let old = tree(50, 5, 300, 5);
    let dag = tree(51, 60, 2_000, 60);
    world.net.has(&old.blocks);
    world.net.has(&dag.blocks[30..]);
    let kept = world.add(&alice, &old.root()).await;
    world.reaches(&alice, kept.id, PinStatus::Pinned).await;
    let row = world.add(&alice, &dag.root()).await;
    until("half is asked for", || async { dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1) }).await;

    free.store(0, Ordering::SeqCst);
    world.advance_until(SECOND, MINUTE, || async { world.engine.ready().await.is_err() }).await;
    let refused = world.engine.add_pins(&alice, vec![spec(&dag.root(), &[])], true, None).await;
    assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    let refused = world.engine.replace_pin(&alice, row.id, spec(&dag.root(), &[]), true, None).await;
    assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    assert!(world.engine.status().await.unwrap().read_only);

    // It lasts longer than any timer of a fetch, and fails nothing.
    world.net.has(&dag.blocks);
    for _ in 0..60 {
        world.clock.advance(10 * SECOND);
        support::settle().await;
    }
    let paused = world.engine.pin(&alice, row.id).await.unwrap();
    assert_eq!(paused.status, PinStatus::Pinning);
    assert_eq!(paused.progress.next_attempt, None, "it pauses, it is not parked: {paused:?}");
    assert!(paused.progress.last_error.unwrap().contains("disk space"));
    assert!(world.has_all(&old.blocks), "reads go on");
    world.engine.remove_pin(&alice, kept.id).await.unwrap();
    until("removing goes on and frees", || async {
        world.engine.collect().await.unwrap();
        !world.has(&old.root())
    })
    .await;

    free.store(ROOMY, Ordering::SeqCst);
    world.advance_to(&alice, row.id, PinStatus::Pinned, 2 * MINUTE).await;
    assert!(world.has_all(&dag.blocks));
    assert!(
        dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1),
        "what was in memory is not fetched twice"
    );
    world.engine.ready().await.unwrap();
    world.add(&alice, &old.root()).await;
}

/// After a day and an hour without disk space and a restart, a fetch that had paused for it got one attempt and failed:
/// "given up after 24 h without any progress".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_time_without_disk_space_does_not_count() {
    let free = Arc::new(AtomicU64::new(ROOMY));
    let told = free.clone();
    let space = move || Space { free: told.load(Ordering::SeqCst), total: 2 * ROOMY };
    let world = World::on_disk(Settings::default(), Arc::new(Watched::with_space(RealDisk, space))).await;
    let alice = world.alice().await;
    let dag = tree(53, 60, 2_000, 60);
    world.net.has(&dag.blocks[30..]);
    let row = world.add(&alice, &dag.root()).await;
    until("half is asked for", || async { dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1) }).await;
    free.store(0, Ordering::SeqCst);
    world.advance_until(SECOND, MINUTE, || async { world.engine.ready().await.is_err() }).await;
    world.net.has(&dag.blocks);
    for _ in 0..50 {
        world.clock.advance(30 * MINUTE);
        support::settle().await;
    }
    assert_eq!(world.status(&alice, row.id).await, PinStatus::Pinning);
    world.net.lacks(&dag.blocks);
    free.store(ROOMY, Ordering::SeqCst);
    let world = world.crash().await;
    let tried = || async {
        let pin = world.engine.pin(&alice, row.id).await.unwrap();
        pin.progress.attempts >= 4 || pin.status != PinStatus::Pinning
    };
    world.advance_until(5 * SECOND, 60 * MINUTE, tried).await;
    assert_eq!(world.status(&alice, row.id).await, PinStatus::Pinning);
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(packs(&path)) } else { found.push(path) }
    }
    found
}

/// Flips a bit in the stored bytes of a block.
fn flip(world: &World, block: &Block) {
    let mut flipped = 0;
    for path in packs(&world.dir.path().join("blocks-1/packs")) {
        let mut bytes = std::fs::read(&path).unwrap();
        let data = block.data();
        let Some(at) = bytes.windows(data.len()).position(|window| window == &data[..]) else { continue };
        bytes[at + data.len() / 2] ^= 1;
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[at..at + data.len()], at as u64).unwrap();
        flipped += 1;
    }
    assert_eq!(flipped, 1, "the block is stored once");
}

/// Rows were checked by `floe verify --offline` alone: a running node said that all was well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_verify_of_a_running_node_finds_a_damaged_row() {
    let world = World::new().await;
    let alice = world.alice().await;
    let named = floe_engine::PinSpec { name: Some("a name".into()), ..spec(leaf(54, 50).cid(), &[]) };
    let row = world.engine.add_pins(&alice, vec![named], true, None).await.unwrap().remove(0);
    assert_eq!(world.engine.verify().await.unwrap().rows, Vec::<String>::new());
    let url = format!("sqlite://{}", world.dir.path().join("pins-1.sqlite").display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("UPDATE pins SET name = 'b name'").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let rows = world.engine.verify().await.unwrap().rows;
    assert!(rows.len() == 1 && rows[0].contains(&row.id.to_string()), "{rows:?}");
    let told = world.engine.status().await.unwrap().workers.into_iter().find(|w| w.name == "scrubber");
    assert!(told.unwrap().last_error.unwrap().contains("the rows are damaged"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_verify_finds_a_flipped_bit_heals_it_from_a_peer_and_names_the_pins_of_the_rest() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    let dag = tree(52, 30, 5_000, 30);
    world.net.has(&dag.blocks);
    let a = world.add(&alice, &dag.root()).await;
    let b = world.add(&bob, &dag.root()).await;
    world.reaches(&alice, a.id, PinStatus::Pinned).await;
    world.reaches(&bob, b.id, PinStatus::Pinned).await;
    let report = world.engine.verify().await.unwrap();
    assert!(report.blocks >= 31 && report.damaged.is_empty(), "{report:?}");

    let (healed, lost) = (&dag.blocks[3], &dag.blocks[9]);
    flip(&world, healed);
    flip(&world, lost);
    assert!(!world.has(healed.cid()) && !world.has(lost.cid()), "what is spoilt is never served");
    world.net.lacks(std::slice::from_ref(lost));
    let engine = world.engine.clone();
    let verify = tokio::spawn(async move { engine.verify().await.unwrap() });
    world.advance_until(SECOND, 2 * MINUTE, || async { verify.is_finished() }).await;
    let report = verify.await.unwrap();
    assert_eq!(report.repaired, 1, "{report:?}");
    assert!(world.has(healed.cid()) && !world.has(lost.cid()));
    for (block, repaired) in [(healed, true), (lost, false)] {
        let cid = floe_core::Cid::new_v1(0x55, *block.cid().hash()).to_string();
        let named = report.damaged.iter().find(|d| d.cid == cid).unwrap();
        assert_eq!(named.repaired, repaired);
        let mut pins = vec![(a.account.0, a.id), (b.account.0, b.id)];
        pins.sort_unstable();
        assert_eq!(named.pins, pins, "{cid}");
    }

    // Asked for again without anybody's doing, while the list of the next verify would name it.
    world.net.has(std::slice::from_ref(lost));
    world.advance_until(5 * SECOND, 360 * MINUTE, || async { world.has_all(&dag.blocks) }).await;
    assert!(world.engine.verify().await.unwrap().damaged.is_empty());
}

/// Damaged blocks were asked for DAG by DAG, half a minute for each that nobody had, while every other scrub waited: with
/// ten thousand such DAGs `floe verify` would have answered after 83 hours. And what was asked for in the background
/// were the first of the list each time, so a block behind them was not mended though a peer had it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_damage_that_nobody_can_mend_keeps_neither_the_report_nor_the_rest_waiting() {
    let world = World::new().await;
    let alice = world.alice().await;
    let mut blocks: Vec<Block> = (0..400).map(|n| leaf(58_000 + n, 100)).collect();
    world.net.has(&blocks);
    let specs = blocks.iter().map(|b| spec(b.cid(), &[])).collect();
    for row in world.engine.add_pins(&alice, specs, true, None).await.unwrap() {
        world.reaches(&alice, row.id, PinStatus::Pinned).await;
    }
    blocks.iter().for_each(|b| flip(&world, b));
    blocks.sort_by_key(|b| b.cid().hash().to_bytes());
    let (last, dead) = blocks.split_last().unwrap();
    world.net.lacks(dead);

    let engine = world.engine.clone();
    let verify = tokio::spawn(async move { engine.verify().await.unwrap() });
    until("damage is asked for", || async { world.net.open_sessions() > 0 }).await;
    for _ in 0..12 * 11 {
        world.clock.advance(5 * SECOND);
        support::settle().await;
    }
    until("the report is there after 11 minutes", || async { verify.is_finished() }).await;
    let report = verify.await.unwrap();
    assert_eq!((report.damaged.len(), report.repaired), (400, 0), "the last one's turn does not come");
    world.advance_until(5 * SECOND, 60 * MINUTE, || async { world.has(last.cid()) }).await;
}

/// The clock stands still, so none of these searches ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_for_damaged_blocks_at_the_boundary() {
    const MOST: usize = 16;
    for dags in [MOST - 1, MOST, MOST + 1] {
        let world = World::new().await;
        let alice = world.alice().await;
        let blocks: Vec<Block> = (0..dags as u64).map(|n| leaf(59_000 + n, 100)).collect();
        world.net.has(&blocks);
        let specs = blocks.iter().map(|b| spec(b.cid(), &[])).collect();
        for row in world.engine.add_pins(&alice, specs, true, None).await.unwrap() {
            world.reaches(&alice, row.id, PinStatus::Pinned).await;
        }
        until("the fetches are over", || async { world.net.open_sessions() == 0 }).await;
        blocks.iter().for_each(|b| flip(&world, b));
        world.net.lacks(&blocks);
        let engine = world.engine.clone();
        let verify = tokio::spawn(async move { engine.verify().await.unwrap() });
        until("all there may be are searching", || async { world.net.open_sessions() == dags.min(MOST) })
            .await;
        for _ in 0..20 {
            support::settle().await;
        }
        assert_eq!(world.net.open_sessions(), dags.min(MOST), "{dags} DAGs are damaged");
        // The one that waited has its turn when another ends in vain.
        world.advance_until(5 * SECOND, 2 * MINUTE, || async { verify.is_finished() }).await;
        assert_eq!(verify.await.unwrap().damaged.len(), dags);
        assert!(blocks.iter().all(|b| world.net.asked(b.cid()) >= 2), "each was asked for");
    }
}

/// Blocks of one DAG are asked for together, up to a number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_blocks_of_one_search_at_the_boundary() {
    const MOST: usize = 256;
    for leaves in [MOST - 1, MOST, MOST + 1] {
        let world = World::new().await;
        let alice = world.alice().await;
        let dag = tree(60, leaves, 100, leaves);
        world.net.has(&dag.blocks);
        let row = world.add(&alice, &dag.root()).await;
        world.reaches(&alice, row.id, PinStatus::Pinned).await;
        until("the fetch is over", || async { world.net.open_sessions() == 0 }).await;
        dag.blocks[..leaves].iter().for_each(|b| flip(&world, b));
        let before = world.net.opened().len();
        let report = world.engine.verify().await.unwrap();
        assert_eq!((report.damaged.len(), report.repaired), (leaves, leaves as u64));
        assert_eq!(world.net.opened().len() - before, leaves.div_ceil(MOST), "{leaves} leaves are damaged");
    }
}

/// A block that a read found damaged was said to be queued for repair, and was only put on a list that the end of a
/// round of the scrub reads: peers that asked for it got nothing for weeks, though others had it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_a_block_that_a_read_finds_damaged_is_fetched_again_by_itself() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(56, 30, 5_000, 30);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    let (near, far) = (&dag.blocks[4], &dag.blocks[8]);
    // How the exchange reads for a peer.
    let read = |block: &Block| LocalBlocks::read(&world.blocks, block.cid()).unwrap();

    flip(&world, near);
    assert_eq!(read(near), None);
    world.advance_until(SECOND, MINUTE, || async { read(near).is_some() }).await;
    assert_eq!(world.engine.verify().await.unwrap().damaged.len(), 0);

    // Nobody has this one at first: it is asked for again, less and less often.
    world.net.lacks(std::slice::from_ref(far));
    world.net.forget_asked();
    flip(&world, far);
    assert_eq!(read(far), None);
    world.advance_until(5 * SECOND, 360 * MINUTE, || async { world.net.asked(far.cid()) >= 3 }).await;
    world.net.has(std::slice::from_ref(far));
    world.advance_until(5 * SECOND, 360 * MINUTE, || async { read(far).is_some() }).await;
    assert!(world.has_all(&dag.blocks));
}

/// `verify` of a running node said that all was well where a record of a manifest had rotted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_verify_counts_damaged_records() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(57, 30, 1_000, 10);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert_eq!(world.engine.verify().await.unwrap().damaged_records, 0);
    spoil_a_manifest_record(&world, &dag.blocks[3]);
    let report = world.engine.verify().await.unwrap();
    assert_eq!((report.damaged_records, report.damaged.len()), (1, 0));
}

/// Flips a bit where a manifest says that it holds this block, and takes the index away.
fn lose_a_manifest_record(world: &World, block: &Block) {
    spoil_a_manifest_record(world, block);
    std::fs::remove_file(world.dir.path().join("blocks-1/index-1.redb")).unwrap();
}

/// Flips a bit where a manifest says that it holds this block.
fn spoil_a_manifest_record(world: &World, block: &Block) {
    let hash = block.cid().hash().to_bytes();
    let len = u32::try_from(block.data().len()).unwrap();
    let member = [&[hash.len() as u8][..], &hash, &len.to_le_bytes()].concat();
    let mut flipped = 0;
    for path in packs(&world.dir.path().join("blocks-1/packs")) {
        let bytes = std::fs::read(&path).unwrap();
        let Some(at) = bytes.windows(member.len()).position(|window| window == member) else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[bytes[at + 9] ^ 4], at as u64 + 9).unwrap();
        flipped += 1;
    }
    assert_eq!(flipped, 1, "one manifest holds the block");
}

/// Once a rebuild of the index had met a damaged manifest record, nothing was collected any more, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_pin_that_lost_a_record_is_walked_again_and_collection_goes_on() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (dag, gone) = (tree(54, 30, 1_000, 10), tree(55, 5, 300, 5));
    world.net.has(&dag.blocks);
    world.net.has(&gone.blocks);
    let row = world.add(&alice, &dag.root()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    let other = world.add(&alice, &gone.root()).await;
    world.reaches(&alice, other.id, PinStatus::Pinned).await;

    lose_a_manifest_record(&world, &dag.blocks[3]);
    world.net.forget_asked();
    let world = world
        .crash_and(|blocks, _| async move {
            assert!(blocks.stats().in_doubt, "what is lost is known to be lost");
        })
        .await;
    world.advance_until(SECOND, 2 * MINUTE, || async { !world.blocks.stats().in_doubt }).await;
    assert!(world.has_all(&dag.blocks));
    assert_eq!(world.net.asked_in_all(), 0, "all of it was here");
    world.engine.remove_pin(&alice, other.id).await.unwrap();
    world.engine.collect().await.unwrap();
    assert!(gone.blocks.iter().all(|b| !world.has(b.cid())), "collected again");
    let report = world.engine.verify().await.unwrap();
    assert!(
        world.has_all(&dag.blocks) && report.damaged.is_empty() && report.incomplete.is_empty(),
        "{report:?}"
    );
}

/// A DAG that is damaged is fetched again with what its pins say, and one pin whose row was damaged too ended all of it:
/// no block was mended, `floe verify` answered 500, and the next start ended with exit code 13.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_damaged_row_and_rot_in_the_same_dag_stop_neither_mending_nor_a_start() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (bad, good) = (tree(61, 30, 1_000, 10), tree(62, 30, 1_000, 10));
    let mut turned = None;
    for dag in [&bad, &good] {
        world.net.has(&dag.blocks);
        let row = world.add(&alice, &dag.root()).await;
        world.reaches(&alice, row.id, PinStatus::Pinned).await;
        turned = turned.or(Some(row.id));
    }
    let url = format!("sqlite://{}", world.dir.path().join("pins-1.sqlite").display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    let turn = sqlx::query("UPDATE pins SET name = 'turned' WHERE id = $1");
    turn.bind(turned.unwrap().0.as_bytes().as_slice()).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let both = || world.has_all(&bad.blocks) && world.has_all(&good.blocks);

    [&bad, &good].iter().for_each(|dag| flip(&world, &dag.blocks[3]));
    let report = world.engine.verify().await.unwrap();
    assert_eq!((report.damaged.len(), report.repaired, report.rows.len()), (2, 2, 1), "{report:?}");
    [&bad, &good].iter().for_each(|dag| flip(&world, &dag.blocks[5]));
    assert!(!both(), "a read finds it");
    world.advance_until(SECOND, MINUTE, || async { both() }).await;

    [&bad, &good].iter().for_each(|dag| spoil_a_manifest_record(&world, &dag.blocks[7]));
    std::fs::remove_file(world.dir.path().join("blocks-1/index-1.redb")).unwrap();
    let world = world.crash().await;
    world.advance_until(SECOND, 2 * MINUTE, || async { !world.blocks.stats().in_doubt }).await;
    assert!(world.engine.verify().await.unwrap().incomplete.is_empty());
}

/// What was to be walked again was found by the pins that name it. A pin that was replaced keeps its DAG until its
/// successor is pinned, and no pin names that one: it was never walked again, and nothing was collected any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_dag_that_no_pin_names_is_walked_again_and_collection_goes_on() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (kept, gone) = (tree(63, 30, 1_000, 10), tree(64, 5, 300, 5));
    let mut pins = Vec::new();
    for dag in [&kept, &gone] {
        world.net.has(&dag.blocks);
        let row = world.add(&alice, &dag.root()).await;
        pins.push(world.reaches(&alice, row.id, PinStatus::Pinned).await.id);
    }
    let dead = spec(leaf(65_000, 100).cid(), &[]);
    world.engine.replace_pin(&alice, pins[0], dead, true, None).await.unwrap();
    lose_a_manifest_record(&world, &kept.blocks[3]);
    let world = world.crash().await;
    world.advance_until(SECOND, 2 * MINUTE, || async { !world.blocks.stats().in_doubt }).await;
    world.engine.remove_pin(&alice, pins[1]).await.unwrap();
    world.engine.collect().await.unwrap();
    assert!(gone.blocks.iter().all(|b| !world.has(b.cid())), "collected again");
    assert!(world.has_all(&kept.blocks));
}

/// A walk that meets a damaged block of its own, or another pin's, asks for it like for a missing one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r05_a_walk_over_a_damaged_node_mends_it() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(53, 30, 1_000, 10);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    flip(&world, &dag.blocks[31]);
    world.net.forget_asked();
    let top = support::dags::node(&[dag.root()]);
    world.net.has(std::slice::from_ref(&top));
    let row = world.add(&alice, top.cid()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert!(world.has_all(&dag.blocks), "the damaged node is whole again");
    assert_eq!(world.net.asked_in_all(), 2, "the new root and the damaged node");
}
