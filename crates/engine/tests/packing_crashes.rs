//! Dies at each durable step of packing, and goes on after a restart: one piece, each pin in it once, nothing half. Needs the
//! feature `failpoints`; the points are global, so this is one test.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use floe_core::{AggregateState, PaddedSize, PinStatus, Policy, PolicyChoice, RequestId};
use floe_engine::cold::Packing;
use floe_engine::{PinSpec, Settings};
use floe_piece::CommP;

use self::support::dags::{Dag, tree};
use self::support::{World, spec, until};

fn settings() -> Settings {
    let size = |bytes| PaddedSize::from_bytes(bytes).unwrap();
    let mut settings = Settings::default();
    let flush_after = Duration::from_secs(3_600);
    settings.cold.packing = Packing { target: size(4 << 20), least: size(1 << 20), flush_after, align: true };
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

async fn pin(world: &World, dag: &Dag) -> RequestId {
    let alice = world.alice().await;
    world.net.has(&dag.blocks);
    let policy = PolicyChoice { name: "gold".to_owned(), replicas: 2 };
    let specs = vec![PinSpec { policy, ..spec(&dag.root(), &[]) }];
    let row = world.engine.add_pins(&alice, specs, true, None).await.unwrap().remove(0);
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    row.id
}

/// Lets the clock run until `holds`, with real time after each step.
async fn runs_until<F: Future<Output = bool>>(world: &World, mut holds: impl FnMut() -> F) {
    for _ in 0..100 {
        world.clock.advance(Duration::from_secs(600));
        for _ in 0..100 {
            if holds().await {
                return;
            }
            support::settle().await;
        }
    }
    panic!("not within a hundred times ten minutes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r01_a_death_at_each_step_of_packing_leaves_nothing_half() {
    for (n, point) in ["agg.begun", "agg.sections", "agg.placed", "agg.packed"].into_iter().enumerate() {
        let world = World::with(settings()).await;
        let dags = [tree(200 + n as u64, 12, 20_000, 4), tree(300 + n as u64, 5, 9_000, 4)];
        let pins = [pin(&world, &dags[0]).await, pin(&world, &dags[1]).await];
        let hit = Arc::new(AtomicBool::new(false));
        let here = Arc::clone(&hit);
        fail::cfg_callback(point, move || {
            here.store(true, Ordering::SeqCst);
            panic!("the node dies here");
        })
        .unwrap();
        runs_until(&world, || async { hit.load(Ordering::SeqCst) }).await;
        fail::remove(point);

        let world = world.crash().await;
        let packed = || async { world.records.aggregates(&[AggregateState::Packed], None, 9).await.unwrap() };
        runs_until(&world, || async { packed().await.len() == 1 }).await;
        let row = packed().await.remove(0);
        assert!(
            world.records.aggregates(&[AggregateState::Open], None, 9).await.unwrap().is_empty(),
            "{point}"
        );
        for pin in pins {
            assert_eq!(world.records.aggregates_of_pin(pin).await.unwrap(), [row.id], "{point}");
            assert!(world.records.lot_of_pin(pin).await.unwrap().is_none(), "{point}");
        }
        let piece = world.engine.open_piece(row.id).await.unwrap();
        let (mut commp, mut at) = (CommP::new(), 0);
        while at < piece.len() {
            for bytes in piece.read(at..piece.len()).await.unwrap() {
                commp.update(&bytes).unwrap();
                at += bytes.len() as u64;
            }
        }
        assert_eq!(Some(commp.finish().unwrap().cid), row.piece, "{point}");
        for block in dags.iter().flat_map(|dag| &dag.blocks) {
            let places = world.records.cold_places(block.cid().hash(), 9).await.unwrap();
            assert_eq!(places.len(), 1, "{point}: once in the index, and not from both attempts");
        }
        until("it is sound", || async { world.records.verify().await.unwrap().findings.is_empty() }).await;
    }
}
