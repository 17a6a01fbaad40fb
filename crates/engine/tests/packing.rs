//! What waits for Filecoin is packed into pieces, and pieces are read from packs: the real engine on the real stores.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floe_blockstore::testing::Watched;
use floe_blockstore::{RealDisk, Space};
use floe_core::cold::DealUuid;
use floe_core::{
    AggregateEvent, AggregateState, Block, Cid, PaddedSize, PinStatus, Policy, PolicyChoice, RequestId,
};
use floe_dag::car::{Reader, Zeros};
use floe_engine::cold::{OpenPiece, Packing, PieceError};
use floe_engine::{PinSpec, Principal, Settings};
use floe_piece::CommP;
use floe_records::cold::AggregateRow;
use uuid::Uuid;

use self::support::dags::{Dag, leaf, tree};
use self::support::{World, spec, until};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(3600);

fn settings(target: u64, least: u64, align: bool) -> Settings {
    let size = |bytes| PaddedSize::from_bytes(bytes).unwrap();
    let mut settings = Settings::default();
    let packing = Packing { target: size(target), least: size(least), flush_after: HOUR, align };
    settings.cold.packing = packing;
    let policy = Policy {
        name: "gold".to_owned(),
        replicas: 2,
        regions: Vec::new(),
        max_price: floe_core::AttoFil::ZERO,
        duration_epochs: 518_400,
        hot: floe_core::policy::Hot::Always,
        providers: Vec::new(),
        ipni: true,
        spare_after_epochs: None,
    };
    settings.cold.policies.insert("gold".to_owned(), policy);
    settings
}

fn gold(root: &Cid, replicas: u8) -> PinSpec {
    PinSpec { policy: PolicyChoice { name: "gold".to_owned(), replicas }, ..spec(root, &[]) }
}

/// Pins a DAG that peers have, and waits until it is here.
async fn pin(world: &World, who: &Principal, dag: &Dag) -> RequestId {
    world.net.has(&dag.blocks);
    let row = world.engine.add_pins(who, vec![gold(&dag.root(), 2)], true, None).await.unwrap().remove(0);
    world.reaches(who, row.id, PinStatus::Pinned).await;
    row.id
}

async fn in_state(world: &World, state: AggregateState) -> Vec<AggregateRow> {
    world.records.aggregates(&[state], None, 1_000).await.unwrap()
}

/// Lets the clock run, ten minutes at a time, and gives the engine real time after each.
async fn runs_until<F: Future<Output = bool>>(world: &World, mut holds: impl FnMut() -> F) {
    for _ in 0..100 {
        world.clock.advance(HOUR / 6);
        for _ in 0..100 {
            if holds().await {
                return;
            }
            support::settle().await;
        }
    }
    panic!("not within a hundred times ten minutes");
}

/// Lets the clock run until so many are packed.
async fn packed(world: &World, many: usize) -> Vec<AggregateRow> {
    runs_until(world, || async { in_state(world, AggregateState::Packed).await.len() >= many }).await;
    in_state(world, AggregateState::Packed).await
}

/// Waits in real time until these are measured.
async fn measured(world: &World, pins: &[RequestId]) {
    world.clock.advance(Duration::from_secs(6));
    until("they are measured", || async {
        for id in pins {
            if world.records.lot_of_pin(*id).await.unwrap().is_none_or(|lot| lot.parts == 0) {
                return false;
            }
        }
        true
    })
    .await;
}

/// All bytes of a range, read by read.
async fn read(piece: &OpenPiece, range: std::ops::Range<u64>) -> Result<Vec<u8>, PieceError> {
    let (mut at, mut all) = (range.start, Vec::new());
    while at < range.end {
        let before = all.len();
        for bytes in piece.read(at..range.end).await? {
            all.extend_from_slice(&bytes);
        }
        assert!(all.len() > before, "a read brings something");
        assert!(all.len() - before <= 4 << 20, "and not too much at once");
        at = range.start + all.len() as u64;
    }
    Ok(all)
}

async fn whole(world: &World, row: &AggregateRow) -> Vec<u8> {
    let piece = world.engine.open_piece(row.id).await.unwrap();
    assert_eq!(piece.len(), row.car_bytes);
    assert_eq!(Some(piece.piece()), row.piece);
    let bytes = read(&piece, 0..piece.len()).await.unwrap();
    assert_eq!(bytes.len() as u64, row.car_bytes);
    bytes
}

fn commp(bytes: &[u8]) -> floe_piece::Piece {
    let mut commp = CommP::new();
    commp.update(bytes).unwrap();
    commp.finish().unwrap()
}

/// The blocks of a CAR that any reader finds: up to the first section of no bytes.
fn blocks_in(bytes: &[u8]) -> (Vec<Cid>, Vec<Block>) {
    let reader = Reader::new(bytes, Zeros::End).unwrap();
    let roots = reader.roots().to_vec();
    (roots, reader.map(|section| section.unwrap().block).collect())
}

/// What must hold of each piece: it hashes to what was said, as a piece of exactly the size that its bytes make, and any
/// reader of CARs finds the pins' blocks in it.
async fn check(world: &World, row: &AggregateRow, dags: &[&Dag]) {
    let bytes = whole(world, row).await;
    let piece = commp(&bytes);
    assert_eq!(
        (Some(piece.cid), Some(piece.size)),
        (row.piece, row.size),
        "Curio: the size follows from the bytes"
    );
    let (roots, blocks) = blocks_in(&bytes);
    assert_eq!(roots, [row.root.unwrap()]);
    assert_eq!(blocks[0].cid(), &roots[0], "the manifest comes first");
    let found: BTreeSet<Cid> = blocks.iter().map(|block| *block.cid()).collect();
    let named: BTreeSet<Cid> = floe_dag::links(&blocks[0]).unwrap().collect();
    for dag in dags {
        assert!(dag.blocks.iter().all(|block| found.contains(block.cid())));
        assert!(named.contains(&dag.root()), "the manifest names each pin");
    }
}

/// Each pin's segment is proven to be in the piece, from what the rows have.
async fn check_proofs(world: &World, row: &AggregateRow) {
    let tree = world.engine.piece_tree(row.id).await.unwrap();
    let mut segments = world.records.segments(row.id).await.unwrap();
    segments.sort_by_key(|segment| segment.place);
    let bytes = whole(world, row).await;
    for (n, segment) in segments.iter().enumerate() {
        let proof = tree.prove(n).unwrap();
        let commitment = segment.commitment.unwrap();
        assert_eq!(proof.verify(commitment, segment.size), Ok((row.piece.unwrap(), row.size.unwrap())));
        assert_ne!(
            proof.verify(row.piece.unwrap(), segment.size),
            Ok((row.piece.unwrap(), row.size.unwrap()))
        );
        // The segment is what its owner would hash who has it alone.
        let from = (segment.place / 128 * 127) as usize;
        let own = &bytes[from..from + segment.size.unpadded_bytes() as usize];
        assert_eq!(commp(own).cid, commitment);
    }
    assert!(tree.prove(segments.len()).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pins_are_packed_after_their_time_and_each_is_proven_to_be_in_the_piece() {
    let world = World::with(settings(8 * MIB, MIB, true)).await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    let dags: Vec<Dag> = (0..6).map(|n| tree(n, 3 + 7 * n as usize, 9_000 + 1_000 * n as usize, 5)).collect();
    let mut pins = Vec::new();
    for (n, dag) in dags.iter().enumerate() {
        pins.push(pin(&world, if n % 2 == 0 { &alice } else { &bob }, dag).await);
    }
    // Nothing is due before its hour has passed.
    world.clock.advance(HOUR / 2);
    support::settle().await;
    assert!(in_state(&world, AggregateState::Packed).await.is_empty());
    let lot = world.records.lot_of_pin(pins[0]).await.unwrap().unwrap();
    assert_eq!((lot.root, lot.replicas), (dags[0].root(), 2));

    measured(&world, &pins).await;
    let plan = world.engine.packing_plan().await.unwrap();
    let rows = packed(&world, 1).await;
    assert_eq!(rows.len(), 1);
    // What was planned is what is done.
    let [piece] = &plan.pieces[..] else { panic!("{plan:?}") };
    let mut segments = world.records.segments(rows[0].id).await.unwrap();
    segments.sort_by_key(|segment| segment.place);
    let done: Vec<_> = segments.iter().map(|s| (s.root, s.part.bytes, s.size, s.place)).collect();
    let planned: Vec<_> = piece.dags.iter().map(|d| (d.root, d.bytes, d.segment, d.offset)).collect();
    assert_eq!((done, Some(piece.size)), (planned, rows[0].size));
    assert_eq!(piece.bytes + piece.padding, rows[0].car_bytes);
    assert!(plan.left_out.is_empty() && !plan.is_cut && !piece.is_full);
    check(&world, &rows[0], &dags.iter().collect::<Vec<_>>()).await;
    check_proofs(&world, &rows[0]).await;
    let held = world.records.aggregate_pins(rows[0].id).await.unwrap();
    let mut found: Vec<RequestId> = held.iter().map(|held| held.pin).collect();
    found.sort();
    pins.sort();
    assert_eq!(found, pins);
    for id in &pins {
        assert_eq!(world.records.aggregates_of_pin(*id).await.unwrap(), [rows[0].id]);
        assert!(world.records.lot_of_pin(*id).await.unwrap().is_none());
    }
    // Each segment lies where the pin is told, and the cold index knows each block in it.
    let bytes = whole(&world, &rows[0]).await;
    for block in dags.iter().flat_map(|dag| &dag.blocks) {
        let places = world.records.cold_places(block.cid().hash(), 9).await.unwrap();
        assert!(!places.is_empty());
        for place in places {
            let data = &bytes[place.offset as usize..][..place.length as usize];
            assert_eq!(data, &block.data()[..], "{}", block.cid());
        }
    }
    assert!(world.records.cold_places(leaf(99, 10).cid().hash(), 9).await.unwrap().is_empty());
    assert!(world.records.verify().await.unwrap().findings.is_empty());
}

/// Blocks of one DAG twice in it, and of two DAGs, and a DAG of no blocks at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_go_within_a_pin_and_stay_between_pins() {
    for align in [true, false] {
        let world = World::with(settings(8 * MIB, MIB, align)).await;
        let alice = world.alice().await;
        let shared = leaf(1, 50_000);
        let twice = support::dags::node(&[*shared.cid(), *shared.cid()]);
        let other = support::dags::node(&[*shared.cid()]);
        let [a, b] = [twice, other].map(|root| Dag { blocks: vec![shared.clone(), root] });
        pin(&world, &alice, &a).await;
        pin(&world, &alice, &b).await;
        let row = packed(&world, 1).await.remove(0);
        check(&world, &row, &[&a, &b]).await;
        let (_, blocks) = blocks_in(&whole(&world, &row).await);
        let copies = blocks.iter().filter(|block| block.cid() == shared.cid()).count();
        assert_eq!(copies, 2, "once for each pin: {align}");
        assert_eq!(world.records.cold_places(shared.cid().hash(), 9).await.unwrap().len(), 2);
        if align {
            check_proofs(&world, &row).await;
        } else {
            assert!(matches!(world.engine.piece_tree(row.id).await, Err(PieceError::NotPacked)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_range_is_that_of_the_whole_and_the_same_after_a_restart() {
    for align in [true, false] {
        let world = World::with(settings(4 * MIB, MIB, align)).await;
        let alice = world.alice().await;
        let dags: Vec<Dag> = (0..4).map(|n| tree(10 + n, 9, 40_000, 4)).collect();
        for dag in &dags {
            pin(&world, &alice, dag).await;
        }
        let row = packed(&world, 1).await.remove(0);
        let bytes = whole(&world, &row).await;
        let piece = world.engine.open_piece(row.id).await.unwrap();
        let (len, mut x) = (piece.len(), 7u64);
        let mut random = |below: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % below
        };
        let mut ranges = vec![0..0, 0..1, len - 1..len, len..len, len..len + 5];
        for _ in 0..200 {
            let from = random(len);
            // Short ones meet the edges of sections, long ones those of reads.
            let most = if random(2) == 0 { 300 } else { len };
            ranges.push(from..(from + random(most) + 1).min(len));
        }
        for range in ranges {
            let want = &bytes[range.start as usize..range.end.min(len) as usize];
            let end = range.end.min(len);
            assert_eq!(read(&piece, range.start..end).await.unwrap(), want, "{range:?}");
        }
        drop(piece);
        let world = world.crash().await;
        assert_eq!(whole(&world, &row).await, bytes, "{align}");
    }
}

/// A DAG of 3.4 MB for pieces of 1 MiB: its parts are in several, and all of them together are the DAG.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_larger_than_a_piece_is_split_over_several() {
    for align in [true, false] {
        let world = World::with(settings(MIB, 256 << 10, align)).await;
        let alice = world.alice().await;
        let (large, small) = (tree(20, 85, 40_000, 9), tree(21, 3, 1_000, 9));
        let (id, other) = (pin(&world, &alice, &large).await, pin(&world, &alice, &small).await);
        let done = || async {
            let left = world.records.lot_of_pin(id).await.unwrap();
            let other = world.records.lot_of_pin(other).await.unwrap();
            left.is_none() && other.is_none() && in_state(&world, AggregateState::Open).await.is_empty()
        };
        runs_until(&world, done).await;
        let rows = in_state(&world, AggregateState::Packed).await;
        assert!(rows.len() >= 4, "{} pieces", rows.len());
        let mut found = BTreeSet::new();
        let mut parts = BTreeSet::new();
        for row in &rows {
            check(&world, row, &[]).await;
            assert!(row.size.unwrap().bytes() <= MIB);
            let (_, blocks) = blocks_in(&whole(&world, row).await);
            found.extend(blocks.iter().map(|block| *block.cid()));
            let pins = world.records.aggregate_pins(row.id).await.unwrap();
            parts.extend(pins.iter().filter(|held| held.pin == id).map(|held| (held.part, held.parts)));
        }
        assert!(large.blocks.iter().all(|block| found.contains(block.cid())));
        let all: BTreeSet<_> = (0..parts.len() as u32).map(|part| (part, parts.len() as u32)).collect();
        assert_eq!(parts, all, "each part once, and all of them");
        // Whoever pins the same later is in the same pieces, and waits for none.
        let bob = world.account("bob", None).await;
        let late = pin(&world, &bob, &large).await;
        until("it has joined", || async {
            let joined = world.records.aggregates_of_pin(late).await.unwrap();
            joined == world.records.aggregates_of_pin(id).await.unwrap()
        })
        .await;
        assert!(world.records.lot_of_pin(late).await.unwrap().is_none());
    }
}

/// From the first transaction of an aggregate until it is stored, nothing that removes pins removes its blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aggregate_protects_its_blocks_until_it_is_stored() {
    let world = World::with(settings(4 * MIB, MIB, true)).await;
    let alice = world.alice().await;
    let (kept, waits) = (tree(30, 9, 30_000, 4), tree(31, 9, 30_000, 4));
    let id = pin(&world, &alice, &kept).await;
    let row = packed(&world, 1).await.remove(0);
    let before = whole(&world, &row).await;

    // One that only waits goes with its pin.
    let gone = pin(&world, &alice, &waits).await;
    world.engine.remove_pin(&alice, gone).await.unwrap();
    world.engine.collect().await.unwrap();
    assert!(!waits.blocks.iter().any(|block| world.has(block.cid())));
    assert!(world.records.lot_of_pin(gone).await.unwrap().is_none());

    world.engine.remove_pin(&alice, id).await.unwrap();
    for event in [AggregateEvent::Placing, AggregateEvent::Placing] {
        world.engine.collect().await.unwrap();
        assert!(world.has_all(&kept.blocks), "before {event:?}");
        world.records.step_aggregate(row.id, event).await.unwrap();
    }
    let world = world.crash().await;
    world.engine.collect().await.unwrap();
    assert_eq!(whole(&world, &row).await, before);
    assert_eq!(
        world.records.aggregate_pins(row.id).await.unwrap().len(),
        1,
        "also of pins that were removed"
    );

    assert_eq!(
        world.records.step_aggregate(row.id, AggregateEvent::Enough).await.unwrap(),
        AggregateState::Stored
    );
    until("its blocks are let go of", || async {
        world.engine.collect().await.unwrap();
        !kept.blocks.iter().any(|block| world.has(block.cid()))
    })
    .await;
    // Where they are not any more, the cold index has them still.
    assert!(!world.records.cold_places(kept.blocks[0].cid().hash(), 9).await.unwrap().is_empty());
    let piece = world.engine.open_piece(row.id).await.unwrap();
    assert!(matches!(read(&piece, 0..piece.len()).await, Err(PieceError::Missing { .. })));
    assert!(world.records.verify().await.unwrap().findings.is_empty());
}

/// Blocks that are held by a pin too stay when the aggregate lets go; a degraded one holds them again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_degraded_aggregate_protects_what_is_still_here() {
    let world = World::with(settings(4 * MIB, MIB, true)).await;
    let alice = world.alice().await;
    let dag = tree(35, 9, 30_000, 4);
    let id = pin(&world, &alice, &dag).await;
    let row = packed(&world, 1).await.remove(0);
    for event in [AggregateEvent::Placing, AggregateEvent::Enough, AggregateEvent::TooFew] {
        world.records.step_aggregate(row.id, event).await.unwrap();
    }
    world.engine.remove_pin(&alice, id).await.unwrap();
    world.engine.collect().await.unwrap();
    assert!(world.has_all(&dag.blocks));
    world.records.step_aggregate(row.id, AggregateEvent::NoneLeft).await.unwrap();
    until("it is given up", || async {
        world.engine.collect().await.unwrap();
        !dag.blocks.iter().any(|block| world.has(block.cid()))
    })
    .await;
}

/// Each bit that turns in a pack is found before anything is signed, and costs nobody but its own pin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_damaged_block_costs_its_own_pin_its_place_until_it_is_mended() {
    let world = World::with(settings(8 * MIB, MIB, true)).await;
    let alice = world.alice().await;
    let (good, bad) = (tree(40, 9, 30_000, 4), tree(41, 9, 30_000, 4));
    let (good_id, bad_id) = (pin(&world, &alice, &good).await, pin(&world, &alice, &bad).await);
    measured(&world, &[good_id, bad_id]).await;
    // A leaf: the walk of the DAG looks at its size alone.
    world.net.lacks(&bad.blocks);
    flip(&world, &bad.blocks[2]);
    let rows = packed(&world, 1).await;
    check(&world, &rows[0], &[&good]).await;
    check_proofs(&world, &rows[0]).await;
    assert_eq!(world.records.aggregates_of_pin(bad_id).await.unwrap(), [] as [Uuid; 0]);
    let lot = world.records.lot_of_pin(bad_id).await.unwrap().unwrap();
    assert!(lot.reason.unwrap().contains(&bad.blocks[2].cid().to_string()));
    // Somebody has it again: it is mended, and packed.
    world.net.has(&bad.blocks);
    let rows = packed(&world, 2).await;
    let mended = world.records.aggregates_of_pin(bad_id).await.unwrap();
    let row = rows.iter().find(|row| mended.contains(&row.id)).unwrap();
    check(&world, row, &[&bad]).await;
    assert!(!world.records.aggregates_of_pin(good_id).await.unwrap().contains(&row.id));
    assert!(world.records.verify().await.unwrap().findings.is_empty());
}

/// A part of a large DAG could not be packed, and was due again after a minute, as what has waited longest: each attempt
/// took along all that had come since, and nobody's pins found company any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r04_a_damaged_part_of_a_large_pin_makes_no_other_pin_leave_early() {
    let world = World::with(settings(MIB, 256 << 10, true)).await;
    let alice = world.alice().await;
    let large = tree(45, 85, 40_000, 9);
    let id = pin(&world, &alice, &large).await;
    measured(&world, &[id]).await;
    world.net.lacks(&large.blocks);
    let last = large.blocks.iter().rev().find(|block| block.data().len() == 40_000).unwrap();
    flip(&world, last);
    let failed = || async {
        let lot = world.records.lot_of_pin(id).await.unwrap();
        lot.is_some_and(|lot| lot.attempts > 0 && lot.todo.len() == 1)
    };
    runs_until(&world, failed).await;
    let bob = world.account("bob", None).await;
    let fresh = pin(&world, &bob, &tree(46, 3, 1_000, 9)).await;
    measured(&world, &[fresh]).await;
    let attempts = || async { world.records.lot_of_pin(id).await.unwrap().unwrap().attempts };
    let before = attempts().await;
    for _ in 0..4 {
        world.clock.advance(HOUR / 6);
        for _ in 0..30 {
            support::settle().await;
        }
        assert!(world.records.lot_of_pin(fresh).await.unwrap().is_some(), "it waits for its own time");
    }
    assert_eq!(attempts().await, before, "what failed waits for company too");
    let gone = || async { world.records.lot_of_pin(fresh).await.unwrap().is_none() };
    runs_until(&world, gone).await;
}

/// Turns a bit of a block on the disk, behind the store's back.
fn flip(world: &World, block: &Block) {
    use std::os::unix::fs::FileExt as _;
    let mut flipped = 0;
    for path in files(&world.dir.path().join("blocks-1/packs")) {
        let bytes = std::fs::read(&path).unwrap();
        let found = bytes.windows(block.data().len()).position(|some| some == &block.data()[..]);
        let Some(at) = found else { continue };
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
        flipped += 1;
    }
    assert_eq!(flipped, 1, "the block is stored once");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Pinning, fetching and dealing stop where the disk is short of space, and packing went on: it wrote rows by the million
/// into the reserve that removals need.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r03_without_space_nothing_is_packed_and_with_space_it_goes_on() {
    const ROOMY: u64 = 100 << 30;
    let free = Arc::new(AtomicU64::new(ROOMY));
    let told = Arc::clone(&free);
    let space = move || Space { free: told.load(Ordering::SeqCst), total: 2 * ROOMY };
    let disk = Arc::new(Watched::with_space(RealDisk, space));
    let world = World::on_disk(settings(8 * MIB, MIB, true), disk).await;
    let alice = world.alice().await;
    let dag = tree(45, 9, 30_000, 4);
    let id = pin(&world, &alice, &dag).await;
    free.store(0, Ordering::SeqCst);
    runs_until(&world, || async { world.engine.ready().await.is_err() }).await;
    let state = || async {
        let workers = world.engine.status().await.unwrap().workers;
        workers.into_iter().find(|worker| worker.name == "aggregator").unwrap().state
    };
    runs_until(&world, || async { state().await.contains("disk space") }).await;
    let lots = || async { world.records.lots_not_packable(9).await.unwrap().len() };
    let before = lots().await;
    for _ in 0..20 {
        world.clock.advance(HOUR / 6);
        for _ in 0..5 {
            support::settle().await;
        }
    }
    assert_eq!(lots().await, before, "nothing is measured");
    for open in [AggregateState::Open, AggregateState::Packed] {
        assert_eq!(in_state(&world, open).await.len(), 0, "nothing is packed");
    }
    free.store(ROOMY, Ordering::SeqCst);
    let rows = packed(&world, 1).await;
    check(&world, &rows[0], &[&dag]).await;
    assert_eq!(world.records.aggregates_of_pin(id).await.unwrap(), [rows[0].id]);
}

/// One of many accounts must not wait for what another has queued before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_one_account_delays_no_other() {
    let world = World::with(settings(MIB, 256 << 10, false)).await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    for n in 0..12 {
        pin(&world, &alice, &tree(50 + n, 4, 75_000, 9)).await;
    }
    let late = pin(&world, &bob, &tree(90, 4, 75_000, 9)).await;
    let done = || async { world.records.lot_of_pin(late).await.unwrap().is_none() };
    runs_until(&world, done).await;
    let of_bob = world.records.aggregates_of_pin(late).await.unwrap();
    let mut all = in_state(&world, AggregateState::Packed).await;
    all.extend(in_state(&world, AggregateState::Open).await);
    all.sort_by_key(|row| row.nr);
    let at = all.iter().position(|row| of_bob.contains(&row.id)).unwrap();
    assert!(at <= 4, "in piece {at} of {}, where a queue would have put it last", all.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_signed_url_of_a_live_deal_is_answered() {
    let mut settings = settings(4 * MIB, MIB, true);
    let key = floe_engine::cold::PullKey::new([3; 32]);
    settings.cold.pull_key = Some(key.clone());
    let world = World::with(settings).await;
    let deal = DealUuid(Uuid::from_u128(5));
    let url = key.url("", deal);
    let signature = url.rsplit('/').next().unwrap();
    use floe_engine::cold::PullError;
    assert!(matches!(world.engine.open_pull(deal, signature).await, Err(PullError::Unknown)), "no such deal");
    assert!(matches!(world.engine.open_pull(deal, "00").await, Err(PullError::Unknown)));
    // Restored rows may not know a deal that is being pulled, and its end would be the end of the deal.
    world.records.mark_restored("a backup was restored").await.unwrap();
    assert!(matches!(world.engine.open_pull(deal, signature).await, Err(PullError::Restored)));
    assert!(
        matches!(world.engine.open_pull(deal, "00").await, Err(PullError::Unknown)),
        "nobody signed that"
    );
    world.records.restore_settled("the operator").await.unwrap();
    assert!(matches!(world.engine.open_pull(deal, signature).await, Err(PullError::Unknown)));
}
