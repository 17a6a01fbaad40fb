//! Dies at each durable step of the engine, and goes on after a restart with nothing lost and nothing fetched
//! twice. Needs the feature `failpoints`; the points are global, so this is one test.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::time::Duration;

use floe_core::PinStatus;

use self::support::dags::{leaf, tree};
use self::support::{World, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_a_death_at_each_durable_step_loses_nothing() {
    for (n, point) in ["pin.frontier", "pin.refs"].into_iter().enumerate() {
        let world = World::new().await;
        let alice = world.alice().await;
        let dag = tree(40 + n as u64, 80, 900, 20);
        world.net.has(&dag.blocks[10..]);
        let row = world.add(&alice, &dag.root()).await;
        until("the rest is asked for", || async { dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1) })
            .await;
        fail::cfg(point, "panic").unwrap();
        if point == "pin.refs" {
            world.net.has(&dag.blocks);
        }
        // The frontier is saved when the fetch parks; the references when it is complete. A panic costs the
        // DAG an attempt and nothing else.
        let parked = || async { world.net.is_parked(&dag.root()) };
        world.advance_until(Duration::from_secs(1), Duration::from_secs(200), parked).await;
        fail::remove(point);
        assert_eq!(world.status(&alice, row.id).await, PinStatus::Pinning, "{point}");
        let status = world.engine.status().await.unwrap();
        let fetcher = status.workers.iter().find(|w| w.name == "fetcher").unwrap();
        assert!(fetcher.last_error.as_ref().is_some_and(|e| e.contains("panicked")), "{point}: {fetcher:?}");

        let world = world.crash().await;
        world.net.forget_asked();
        world.net.has(&dag.blocks);
        world.net.offer(&dag.root());
        world.reaches(&alice, row.id, PinStatus::Pinned).await;
        assert!(world.has_all(&dag.blocks), "{point}");
        assert!(world.net.asked_in_all() <= 10, "{point}: {}", world.net.asked_in_all());
    }
    panics_of_heals_take_no_slot().await;
}

/// A panic behind a heal, in writing how it ended, took a slot of the fetches back and kept the heal's own: after the
/// fourth nothing was mended until the next start.
async fn panics_of_heals_take_no_slot() {
    let world = World::new().await;
    let alice = world.alice().await;
    let leaves: Vec<_> = (0..5).map(|n| leaf(45_000 + n, 500)).collect();
    world.net.has(&leaves);
    let mut dags = Vec::new();
    for leaf in &leaves {
        let row = world.add(&alice, leaf.cid()).await;
        dags.push(world.reaches(&alice, row.id, PinStatus::Pinned).await.dag);
    }
    world.net.forget_asked();
    fail::cfg("heal.outcome", "4*panic").unwrap();
    let world = world
        .crash_and(|blocks, _| async move {
            for dag in dags {
                blocks.release(dag).await.unwrap();
            }
            blocks.collect().await.unwrap();
        })
        .await;
    let all = || async { leaves.iter().all(|leaf| world.net.asked(leaf.cid()) > 0) };
    world.advance_until(Duration::from_secs(1), Duration::from_secs(60), all).await;
    fail::remove("heal.outcome");
    let status = world.engine.status().await.unwrap();
    let fetcher = status.workers.iter().find(|w| w.name == "fetcher").unwrap();
    assert!(fetcher.last_error.as_ref().is_some_and(|e| e.contains("outcome")), "{fetcher:?}");
    assert!(fetcher.state.starts_with("0 of"), "{fetcher:?}");
}
