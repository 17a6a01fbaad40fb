//! Crashes, restarts, a full disk and a spoilt one.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::time::Duration;

use floe_core::PinStatus;
use floe_engine::Settings;
use futures::FutureExt as _;

use self::support::dags::{chain, leaf, node, tree};
use self::support::{World, until};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_a_killed_fetch_resumes_and_fetches_only_what_is_missing() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(30, 200, 2_000, 50);
    // Ten leaves of the first node are missing, so that walk and store are somewhere in the middle.
    world.net.has(&dag.blocks[10..]);
    let row = world.add(&alice, &dag.root()).await;
    until("the rest is asked for", || async { dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1) })
        .await;
    world.advance_until(SECOND, 60 * SECOND, || async { world.has_all(&dag.blocks[10..]) }).await;

    let world = world.crash().await;
    world.net.forget_asked();
    world.net.has(&dag.blocks);
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert!(world.has_all(&dag.blocks));
    assert!(world.net.asked_in_all() <= 10, "{} were asked for", world.net.asked_in_all());
}

/// Blocks become durable before the frontier is saved. After a crash in between, the walk met a node that the
/// manifest had, took it for visited, and never asked for its children.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_nodes_that_are_ahead_of_the_saved_frontier_are_walked_again() {
    let world = World::new().await;
    let alice = world.alice().await;
    let deep = leaf(31_000, 100);
    let middle = node(&[*deep.cid()]);
    let root = node(&[*middle.cid()]);
    world.net.has(&[root.clone(), middle.clone()]);
    let row = world.add(&alice, root.cid()).await;
    until("the leaf is asked for", || async { world.net.asked(deep.cid()) == 1 }).await;
    world.advance_until(SECOND, 60 * SECOND, || async { world.has(middle.cid()) }).await;
    let world = world.crash().await;
    world.net.forget_asked();
    world.net.has(std::slice::from_ref(&deep));
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert!(world.has(deep.cid()));
    assert_eq!(world.net.asked_in_all(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_fetch_saves_its_place_and_stop_can_be_repeated() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(32, 60, 500, 60);
    world.net.has(&dag.blocks[5..]);
    let row = world.add(&alice, &dag.root()).await;
    until("the rest is asked for", || async { world.net.asked(dag.blocks[0].cid()) == 1 }).await;
    world.engine.stop().await;
    world.engine.stop().await;
    assert!(world.has_all(&dag.blocks[5..]), "what came is durable, though the clock stood still");
    let refused = world.engine.add_pins(&alice, vec![support::spec(&dag.root(), &[])], true, None).await;
    assert!(matches!(refused, Err(floe_engine::Error::Stopping)));
    let world = world.crash().await;
    world.net.forget_asked();
    world.net.has(&dag.blocks);
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert_eq!(world.net.asked_in_all(), 5);
}

/// A start released every manifest without a row. After an older `rows.sqlite` was put back, or an empty one came in
/// its place, that was every pin made since, and the collector took the last copy of what an operator could have had
/// back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_manifests_without_rows_are_kept_until_the_operator_says_otherwise() {
    let world = World::new().await;
    let alice = world.alice().await;
    let kept = tree(33, 5, 300, 5);
    world.net.has(&kept.blocks);
    let row = world.add(&alice, &kept.root()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    let orphan = leaf(33_000, 4_000);
    let given = orphan.clone();
    let world = world
        .crash_and(|blocks, _| async move {
            let mut protect = blocks.protect(uuid::Uuid::from_u128(1), *given.cid()).await.unwrap();
            protect.claim(given.cid().hash()).unwrap();
            protect.put(vec![given]).await.unwrap();
        })
        .await;
    world.engine.collect().await.unwrap();
    assert!(world.has(orphan.cid()) && world.has_all(&kept.blocks));
    let workers = world.engine.status().await.unwrap().workers;
    let told = workers.iter().find(|w| w.name == "outbox").and_then(|w| w.last_error.clone()).unwrap();
    assert!(told.contains("1 DAGs (4000 bytes)") && told.contains("floe gc --orphans"), "{told}");

    world.engine.collect_orphans().await.unwrap();
    assert!(!world.has(orphan.cid()));
    assert!(world.has_all(&kept.blocks));
    assert_eq!(world.blocks.manifests().unwrap().len(), 1);
}

/// The other side: the last pin was removed and the node crashed before the release. Its manifest has no row either,
/// and its space is to come free without anybody's doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_a_release_that_a_crash_held_up_is_done_at_start() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(37, 5, 300, 5);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    let account = alice.account.id;
    let world =
        world.crash_and(|_, records| async move { records.remove_pin(account, row.id).await.unwrap() }).await;
    until("the space is free", || async {
        world.engine.collect().await.unwrap();
        !world.has(&dag.root())
    })
    .await;
    assert!(world.blocks.manifests().unwrap().is_empty());
    let workers = world.engine.status().await.unwrap().workers;
    assert!(workers.iter().all(|w| w.last_error.is_none()), "{workers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pinned_dag_whose_manifest_is_lost_is_reported_and_fetched_again() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(34, 10, 300, 10);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    let row = world.reaches(&alice, row.id, PinStatus::Pinned).await;
    let world = world
        .crash_and(|blocks, _| async move {
            blocks.release(row.dag).await.unwrap();
            blocks.collect().await.unwrap();
        })
        .await;
    until("it is whole again", || async { world.has_all(&dag.blocks) }).await;
    assert_eq!(world.status(&alice, row.id).await, PinStatus::Pinned);
    let workers = world.engine.status().await.unwrap().workers;
    let fetcher = workers.iter().find(|w| w.name == "fetcher").unwrap();
    assert!(fetcher.last_error.as_ref().unwrap().contains("not whole"), "{fetcher:?}");
}

/// A DAG that waited to be mended was tried again for ever, and nobody asked the rows whether it was still pinned.
/// After its pin was removed and its manifest released, the next attempt opened a new manifest, fetched the whole DAG
/// and sealed it, for nobody and never to be released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dag_that_waits_to_be_mended_is_let_go_of_with_its_pin() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(36, 10, 300, 10);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    let row = world.reaches(&alice, row.id, PinStatus::Pinned).await;
    world.net.lacks(&dag.blocks);
    world.net.forget_asked();
    let world = world
        .crash_and(|blocks, _| async move {
            blocks.release(row.dag).await.unwrap();
            blocks.collect().await.unwrap();
        })
        .await;
    let attempts = || world.net.asked(&dag.root());
    world.advance_until(5 * SECOND, 3_600 * SECOND, || async { attempts() >= 2 }).await;
    // The second attempt ends too, and a third is waited for.
    world.advance_until(5 * SECOND, 60 * SECOND, || async { world.net.open_sessions() == 0 }).await;

    world.engine.remove_pin(&alice, row.id).await.unwrap();
    let manifests = || {
        world.engine.collect().map(|done| {
            done.unwrap();
            world.blocks.manifests().unwrap().len()
        })
    };
    until("the manifest is released", || async { manifests().await == 0 }).await;
    world.net.has(&dag.blocks);
    let asked = world.net.asked_in_all();
    // Longer than any wait between two attempts.
    for _ in 0..180 {
        world.clock.advance(10 * SECOND);
        support::settle().await;
    }
    assert_eq!(world.net.asked_in_all(), asked, "it is asked for again, for nobody");
    assert_eq!(manifests().await, 0);
    assert!(!world.has(&dag.root()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announcing_that_fails_is_repeated_and_does_not_hold_up_releases() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (a, b) = (leaf(35_000, 3_000), leaf(35_001, 3_000));
    world.net.has(&[a.clone(), b.clone()]);
    world.net.provide_fails(true);
    let first = world.add(&alice, a.cid()).await;
    let second = world.add(&alice, b.cid()).await;
    world.reaches(&alice, first.id, PinStatus::Pinned).await;
    world.reaches(&alice, second.id, PinStatus::Pinned).await;
    world.engine.remove_pin(&alice, first.id).await.unwrap();
    until("its space is free", || async {
        world.engine.collect().await.unwrap();
        !world.has(a.cid())
    })
    .await;
    assert_eq!(world.net.provided(b.cid()), 0);
    world.net.provide_fails(false);
    world.advance_until(SECOND, 120 * SECOND, || async { world.net.provided(b.cid()) > 0 }).await;
    until("the order held", || async { world.net.provided(a.cid()) == 0 }).await;
}

/// A start with a new store of announced roots, after the old one was lost or moved away as its error says to, never
/// announced anything again: whatever was pinned before went out of the DHT within two days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_that_the_network_forgot_are_announced_again() {
    let world = World::new().await;
    let alice = world.alice().await;
    let leaves: Vec<_> = (0..3).map(|n| leaf(36_000 + n, 3_000)).collect();
    world.net.has(&leaves);
    for leaf in &leaves {
        let row = world.add(&alice, leaf.cid()).await;
        world.reaches(&alice, row.id, PinStatus::Pinned).await;
    }
    let all = |world: &World| leaves.iter().all(|leaf| world.net.provided(leaf.cid()) > 0);
    until("they are announced", || async { all(&world) }).await;
    world.net.forgets_what_it_provides();
    let world = world.crash().await;
    until("they are announced again", || async { all(&world) }).await;
}

/// After a resume the walk reads those nodes again that are ahead of the saved frontier. They were in the manifest's
/// count, with which the walk went on, and were counted once more: a pin near `max_blocks` failed for good though
/// its DAG was small enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resume_counts_no_block_twice() {
    let dag = chain(80, 7);
    let world = World::with(Settings { max_blocks: 7, ..Settings::default() }).await;
    let alice = world.alice().await;
    let part = |from: usize, to: usize| dag.blocks.get(from..to).unwrap();
    world.net.has(part(5, 7));
    let row = world.add(&alice, &dag.root()).await;
    // One block after the other, so that some are saved with the frontier and the last ones without.
    for n in [4, 3, 2] {
        let last = dag.blocks.get(n + 1).unwrap();
        world.advance_until(SECOND, 60 * SECOND, || async { world.has(last.cid()) }).await;
        world.clock.advance(7 * SECOND);
        world.net.has(part(n, n + 1));
    }
    world.advance_until(SECOND, 60 * SECOND, || async { world.has_all(part(2, 7)) }).await;
    let world = world.crash().await;
    world.net.has(part(0, 2));
    let row = world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert_eq!(row.progress.blocks, 7);
}

/// The other side: a walk that begins at the root again, because it crashed before its first frontier, counts what
/// the manifest holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_walk_that_begins_again_counts_what_is_here() {
    let dag = chain(81, 4);
    let world = World::with(Settings { max_blocks: 3, ..Settings::default() }).await;
    let alice = world.alice().await;
    world.net.has(dag.blocks.get(1..).unwrap());
    let row = world.add(&alice, &dag.root()).await;
    world.advance_until(SECOND, 60 * SECOND, || async { world.has_all(dag.blocks.get(1..).unwrap()) }).await;
    let world = world.crash().await;
    world.net.has(&dag.blocks);
    let row = world.reaches(&alice, row.id, PinStatus::Failed).await;
    assert!(row.reason.unwrap_or_default().contains("more than 3 blocks"));
}
