//! The life of pins on the real stores: found, shared, replaced, removed, refused.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::time::Duration;

use floe_core::cid::code;
use floe_core::ports::Origins;
use floe_core::{Block, Cid, PinStatus};
use floe_engine::{PinEventItem, PinFilter, Principal, Settings};
use futures::StreamExt as _;

use self::support::dags::{Dag, chain, doubling, leaf, node, tree};
use self::support::{World, spec, until};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s03_a_pin_is_queued_then_pinning_then_pinned_and_its_root_announced() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(1, 300, 1_000, 100);
    let (last, rest) = dag.blocks.split_first().unwrap();
    world.net.has(rest);

    let row = world.add_from(&alice, &dag.root(), &["/ip4/10.0.0.1/tcp/4001/p2p/12D3KooWOrigin"]).await;
    assert_eq!(row.status, PinStatus::Queued);
    let mut events = world.engine.watch_pin(&alice, row.id).await.unwrap();
    world.reaches(&alice, row.id, PinStatus::Pinning).await;
    until("its session is open", || async { world.net.asked(last.cid()) == 1 }).await;
    let hints = world.net.opened();
    assert_eq!(hints.len(), 1);
    let origins = Origins { addresses: row.spec.origins.clone(), local_request: true };
    assert_eq!(hints[0].origins, [origins], "s07: the session gets the origins to dial");

    // Progress reaches whoever asks while a block is missing.
    let most = dag.blocks.len() as u64 - 1;
    world
        .advance_until(SECOND, 60 * SECOND, || async {
            world.engine.pin(&alice, row.id).await.unwrap().progress.blocks == most
        })
        .await;
    world.net.has(std::slice::from_ref(last));
    let row = world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert_eq!(row.progress.blocks, dag.blocks.len() as u64);
    assert_eq!(row.progress.bytes, dag.bytes());
    assert!(world.has_all(&dag.blocks));
    until("the root is announced", || async { world.net.provided(&dag.root()) == 1 }).await;

    let mut seen = Vec::new();
    while let Some(PinEventItem::Status(row)) = events.next().await {
        seen.push(row.status);
    }
    assert_eq!(seen.last(), Some(&PinStatus::Pinned), "the stream ends with pinned: {seen:?}");
    seen.dedup();
    assert!(seen.is_sorted(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_accounts_share_one_fetch_and_add_their_origins() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    let dag = tree(2, 50, 500, 20);
    let (last, rest) = dag.blocks.split_first().unwrap();
    world.net.has(rest);

    let a = world.add(&alice, &dag.root()).await;
    until("the fetch waits", || async { world.net.asked(last.cid()) == 1 }).await;
    let b = world.add_from(&bob, &dag.root(), &["/ip4/10.0.0.2/tcp/4001/p2p/12D3KooWBob"]).await;
    assert_ne!(a.id, b.id);
    until("the running session hears of the origins", || async { !world.net.late_origins().is_empty() })
        .await;
    assert_eq!(world.net.late_origins(), b.spec.origins);

    world.net.has(std::slice::from_ref(last));
    world.reaches(&alice, a.id, PinStatus::Pinned).await;
    world.reaches(&bob, b.id, PinStatus::Pinned).await;
    assert_eq!(world.net.asked_in_all(), dag.blocks.len(), "each block was asked for once");
    assert_eq!(world.net.opened().len(), 1);
    let seen = world.engine.pins(&bob, PinFilter { limit: 10, ..PinFilter::default() }).await.unwrap();
    assert_eq!(seen.pins.iter().map(|p| p.id).collect::<Vec<_>>(), [b.id], "requests are never shared");

    // A third pin of what is here needs no network at all.
    let c = world.add(&bob, &dag.root()).await;
    assert_eq!(c.status, PinStatus::Queued);
    let mut events = world.engine.watch_pin(&bob, c.id).await.unwrap();
    world.reaches(&bob, c.id, PinStatus::Pinned).await;
    assert_eq!(world.net.opened().len(), 1);
    let last = tokio::spawn(async move {
        let mut last = None;
        while let Some(PinEventItem::Status(row)) = events.next().await {
            last = Some(row.status);
        }
        last
    });
    world.advance_until(SECOND, 60 * SECOND, || async { last.is_finished() }).await;
    assert_eq!(last.await.unwrap(), Some(PinStatus::Pinned), "who follows it hears of it");
}

/// A client that hung up right after its POST was committed took the wake of the fetcher with it: the pin was begun at
/// the next poll, up to 30 s later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pin_is_fetched_at_once_also_when_its_client_hangs_up() {
    let world = World::new().await;
    let alice = world.alice().await;
    let wanted = leaf(40_000, 100);
    world.net.has(std::slice::from_ref(&wanted));
    // The first pin shows that the fetcher runs and sleeps; the clock stands still from here on.
    let first = world.add(&alice, leaf(40_001, 100).cid()).await;
    world.reaches(&alice, first.id, PinStatus::Pinning).await;
    let mut adding = Box::pin(world.engine.add_pins(&alice, vec![spec(wanted.cid(), &[])], true, None));
    assert!(futures::poll!(&mut adding).is_pending(), "it waits for the disk");
    drop(adding);
    until("it is pinned", || async { world.has(wanted.cid()) }).await;

    let row = world.add(&alice, leaf(40_002, 100).cid()).await;
    world.reaches(&alice, row.id, PinStatus::Pinning).await;
    let mut removing = Box::pin(world.engine.remove_pin(&alice, row.id));
    assert!(futures::poll!(&mut removing).is_pending());
    drop(removing);
    until("its fetch ends", || async { world.net.open_sessions() == 1 }).await;
}

/// A peer that waits for a block hears of it when a pin has stored it, and not before it is durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exchange_hears_of_each_block_that_a_pin_stored() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(42, 60, 400, 20);
    world.net.has(&dag.blocks[1..]);
    world.net.stores_in(world.blocks.clone());
    let row = world.add(&alice, &dag.root()).await;
    until("one is missing", || async { world.net.asked(dag.blocks[0].cid()) == 1 }).await;
    // Stored while the fetch goes on.
    let told = || async { world.net.stored().len() == dag.blocks.len() - 1 };
    world.advance_until(SECOND, MINUTE, told).await;
    world.net.has(&dag.blocks[..1]);
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    let told = world.net.stored();
    assert_eq!(told.len(), dag.blocks.len(), "each once");
    assert!(dag.blocks.iter().all(|block| told.contains(block.cid())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m22_replace_keeps_the_old_blocks_until_pinned_and_fetches_the_difference() {
    let world = World::new().await;
    let alice = world.alice().await;
    let old = tree(3, 40, 700, 40);
    world.net.has(&old.blocks);
    let first = world.add(&alice, &old.root()).await;
    world.reaches(&alice, first.id, PinStatus::Pinned).await;

    // The new DAG shares 39 of 40 leaves.
    let changed = leaf(777_777, 700);
    let mut links: Vec<Cid> = old.blocks[..40].iter().map(|b| *b.cid()).collect();
    links[7] = *changed.cid();
    let root = node(&links);
    world.net.lacks(&old.blocks);
    world.net.has(std::slice::from_ref(&root));
    world.net.forget_asked();
    let new = world.engine.replace_pin(&alice, first.id, spec(root.cid(), &[]), true, None).await.unwrap();
    assert!(world.engine.pin(&alice, first.id).await.is_err(), "the old request is gone at once");
    until("the difference is asked for", || async { world.net.asked(changed.cid()) == 1 }).await;
    world.engine.collect().await.unwrap();
    assert!(world.has_all(&old.blocks), "nothing of the old DAG goes before the new one is pinned");

    world.net.has(std::slice::from_ref(&changed));
    world.reaches(&alice, new.id, PinStatus::Pinned).await;
    assert_eq!(world.net.asked_in_all(), 2, "the root and the one leaf that changed");
    until("the old DAG is let go", || async {
        world.engine.collect().await.unwrap();
        !world.has(&old.root()) && !world.has(old.blocks[7].cid())
    })
    .await;
    assert!(world.has_all(&old.blocks[..7]) && world.has_all(&old.blocks[8..40]), "what is shared stays");
    assert!(world.has(changed.cid()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m24_a_pin_can_be_removed_while_it_is_fetched() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(4, 30, 600, 30);
    world.net.has(&dag.blocks[1..]);
    let row = world.add(&alice, &dag.root()).await;
    until("the fetch waits", || async { world.net.asked(dag.blocks[0].cid()) == 1 }).await;
    let mut events = world.engine.watch_pin(&alice, row.id).await.unwrap();
    world.engine.remove_pin(&alice, row.id).await.unwrap();
    until("the fetch ends", || async { world.net.open_sessions() == 0 }).await;
    until("its blocks go", || async {
        world.engine.collect().await.unwrap();
        dag.blocks.iter().all(|b| !world.has(b.cid()))
    })
    .await;
    let mut last = None;
    while let Some(item) = events.next().await {
        last = Some(item);
    }
    assert!(matches!(last, Some(PinEventItem::Removed)), "{last:?}");
    assert!(world.blocks.manifests().unwrap().is_empty());
}

/// A replaced pin keeps what it has, also where it was not pinned yet; its fetch ended as "nobody wants this" and
/// took the blocks with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m22_replacing_a_pin_that_is_being_fetched_keeps_what_came() {
    let world = World::new().await;
    let alice = world.alice().await;
    let old = tree(41, 20, 500, 20);
    world.net.has(&old.blocks[1..]);
    let first = world.add(&alice, &old.root()).await;
    until("one is missing", || async { world.net.asked(old.blocks[0].cid()) == 1 }).await;
    let come = || async { world.has_all(&old.blocks[1..]) };
    world.advance_until(SECOND, 60 * SECOND, come).await;

    let missing = leaf(41_000, 50);
    let root = node(&[*missing.cid(), *old.blocks[1].cid()]);
    world.net.has(std::slice::from_ref(&root));
    let new = world.engine.replace_pin(&alice, first.id, spec(root.cid(), &[]), true, None).await.unwrap();
    until("the old fetch ends, the new one asks", || async {
        world.net.asked(missing.cid()) == 1 && world.net.open_sessions() == 1
    })
    .await;
    world.engine.collect().await.unwrap();
    assert!(come().await, "what came stays until the new pin is pinned");
    assert_eq!(world.net.asked(old.blocks[1].cid()), 1, "and is not fetched again");
    world.net.has(std::slice::from_ref(&missing));
    world.reaches(&alice, new.id, PinStatus::Pinned).await;
    until("then it goes", || async {
        world.engine.collect().await.unwrap();
        !world.has(&old.root()) && !world.has(old.blocks[2].cid())
    })
    .await;
    assert!(world.has(old.blocks[1].cid()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r06_an_unpin_frees_space_and_never_another_accounts_blocks() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    let shared = tree(5, 20, 800, 20);
    let own = leaf(5_000, 800);
    let top = node(&[shared.root(), *own.cid()]);
    world.net.has(&shared.blocks);
    world.net.has(&[own.clone(), top.clone()]);
    let a = world.add(&alice, top.cid()).await;
    let b = world.add(&bob, &shared.root()).await;
    world.reaches(&alice, a.id, PinStatus::Pinned).await;
    world.reaches(&bob, b.id, PinStatus::Pinned).await;

    world.engine.remove_pin(&alice, a.id).await.unwrap();
    until("what only alice had goes", || async {
        world.engine.collect().await.unwrap();
        !world.has(top.cid()) && !world.has(own.cid())
    })
    .await;
    assert!(world.has_all(&shared.blocks));
    until("its announcement ends", || async { world.net.provided(top.cid()) == 0 }).await;
    assert_eq!(world.net.provided(&shared.root()), 1);

    world.engine.remove_pin(&bob, b.id).await.unwrap();
    until("the rest goes", || async {
        world.engine.collect().await.unwrap();
        world.blocks.stats().blocks == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_roots_and_children_are_pinned_without_the_network() {
    let world = World::new().await;
    let alice = world.alice().await;
    let empty: Cid = floe_core::cid::parse("bafkqaaa").unwrap();
    let row = world.add(&alice, &empty).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert!(world.net.opened().is_empty());

    let parent = node(&[empty]);
    world.net.has(std::slice::from_ref(&parent));
    let row = world.add(&alice, parent.cid()).await;
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert_eq!(world.net.asked_in_all(), 1, "the child is data, never asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_a_doubling_dag_and_a_long_chain_cost_what_their_blocks_cost() {
    let world = World::new().await;
    let alice = world.alice().await;
    for dag in [doubling(6, 64), chain(7, 3_000)] {
        world.net.has(&dag.blocks);
        let row = world.add(&alice, &dag.root()).await;
        let row = world.reaches(&alice, row.id, PinStatus::Pinned).await;
        assert_eq!(row.progress.blocks, dag.blocks.len() as u64);
        assert!(dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1));
    }
}

/// The manifest is the walk's visited set, and it knows multihashes. Bytes that are linked to as raw first and
/// as dag-cbor later were "seen", and their links were never followed: a pin was called pinned with blocks
/// missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_linked_under_two_codecs_are_scanned_under_both() {
    let world = World::new().await;
    let alice = world.alice().await;
    let deep = leaf(8_000, 100);
    let inner = node(&[*deep.cid()]);
    let as_raw = Cid::new_v1(code::RAW, *inner.cid().hash());
    // In one node, and spread so that the raw link is durable long before the other is met.
    let beside = node(&[as_raw, *inner.cid()]);
    let late = node(&[*inner.cid()]);
    let apart = node(&[as_raw, *late.cid()]);
    for (n, root) in [beside, apart].into_iter().enumerate() {
        world.net.has(&[deep.clone(), inner.clone(), late.clone(), root.clone()]);
        let row = world.add(&alice, root.cid()).await;
        world.reaches(&alice, row.id, PinStatus::Pinned).await;
        assert!(world.has(deep.cid()), "case {n}");
        world.engine.remove_pin(&alice, row.id).await.unwrap();
        until("all goes", || async {
            world.engine.collect().await.unwrap();
            world.blocks.stats().blocks == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dag_that_nobody_can_walk_fails_at_once_and_keeps_nothing() {
    let world = World::new().await;
    let alice = world.alice().await;
    let git = Cid::new_v1(0x78, *leaf(9_000, 10).cid().hash());
    let unknown = node(&[git]);
    let malformed = Block::of(code::DAG_CBOR, vec![0x9f, 0x01].into()).unwrap();
    world.net.has(&[unknown.clone(), malformed.clone()]);
    for (root, word) in [(&unknown, "codec"), (&malformed, "malformed")] {
        let row = world.add(&alice, root.cid()).await;
        let row = world.reaches(&alice, row.id, PinStatus::Failed).await;
        let reason = row.reason.unwrap();
        assert!(reason.contains(word), "{reason}");
        world.engine.remove_pin(&alice, row.id).await.unwrap();
    }
    until("nothing is kept", || async {
        world.engine.collect().await.unwrap();
        world.blocks.manifests().unwrap().is_empty() && world.blocks.stats().blocks == 0
    })
    .await;
}

async fn budget_outcome(settings: Settings, dag: &Dag) -> (PinStatus, Option<String>) {
    let world = World::with(settings).await;
    let alice = world.alice().await;
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    until("it is settled", || async { world.status(&alice, row.id).await.is_settled() }).await;
    let row = world.engine.pin(&alice, row.id).await.unwrap();
    (row.status, row.reason)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_budgets_hold_at_their_bounds() {
    let dag = tree(10, 20, 500, 20);
    let (blocks, bytes) = (dag.blocks.len() as u64, dag.bytes());
    for (more, status) in [(-1i64, PinStatus::Failed), (0, PinStatus::Pinned), (1, PinStatus::Pinned)] {
        let max_blocks = blocks.checked_add_signed(more).unwrap();
        let (got, reason) = budget_outcome(Settings { max_blocks, ..Settings::default() }, &dag).await;
        assert_eq!(got, status, "{max_blocks} blocks: {reason:?}");
        if let Some(reason) = reason {
            assert!(reason.contains(&format!("more than {max_blocks} blocks")), "{reason}");
        }
        let max_bytes = Some(bytes.checked_add_signed(more).unwrap());
        let (got, reason) = budget_outcome(Settings { max_bytes, ..Settings::default() }, &dag).await;
        assert_eq!(got, status, "{max_bytes:?} bytes: {reason:?}");
    }
    let dag = chain(11, 10);
    let fails = budget_outcome(Settings { max_depth: 8, ..Settings::default() }, &dag).await;
    assert_eq!(fails.0, PinStatus::Failed, "{fails:?}");
    let fits = budget_outcome(Settings { max_depth: 10, ..Settings::default() }, &dag).await;
    assert_eq!(fits.0, PinStatus::Pinned, "{fits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t26_a_quota_met_while_fetching_fails_that_pin_alone() {
    let world = World::new().await;
    let poor = world.account("poor", Some(20_000)).await;
    let rich = world.alice().await;
    let dag = tree(12, 100, 1_000, 100);
    let (held_back, first) = dag.blocks.split_at(60);
    world.net.has(first);
    let a = world.add(&poor, &dag.root()).await;
    let b = world.add(&rich, &dag.root()).await;
    // Forty leaves are here: over the quota of one, not of the other.
    world.advance_to(&poor, a.id, PinStatus::Failed, MINUTE).await;
    let reason = world.engine.pin(&poor, a.id).await.unwrap().reason.unwrap();
    assert!(reason.contains("quota"), "{reason}");
    // The other account's pin goes on; it joined the fetch that the first one's claim began, so it was `queued` until
    // the rows heard of that.
    assert_eq!(world.status(&rich, b.id).await, PinStatus::Pinning);
    world.net.has(held_back);
    world.advance_to(&rich, b.id, PinStatus::Pinned, 20 * MINUTE).await;
    assert!(world.has_all(&dag.blocks));

    // Alone it is stopped by the budget, and nothing of it stays.
    let own = tree(13, 100, 1_000, 100);
    world.net.has(&own.blocks);
    let c = world.add(&poor, &own.root()).await;
    world.advance_to(&poor, c.id, PinStatus::Failed, MINUTE).await;
    let reason = world.engine.pin(&poor, c.id).await.unwrap().reason.unwrap();
    assert!(reason.contains("quota"), "{reason}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_are_bounded_and_gone_pins_are_not_found() {
    let world = World::new().await;
    let alice = world.alice().await;
    let row = world.add(&alice, leaf(14_000, 10).cid()).await;
    let mut streams = Vec::new();
    let refused = async |who: &Principal, id| match world.engine.watch_pin(who, id).await.err().unwrap() {
        floe_engine::Error::Records(floe_records::Error::Busy { reason, .. }) => reason,
        other => panic!("{other}"),
    };
    for account in 0..16 {
        let who = world.account(&format!("account {account}"), None).await;
        let row = world.add(&who, leaf(14_000, 10).cid()).await;
        for _ in 0..64 {
            streams.push(world.engine.watch_pin(&who, row.id).await.unwrap());
        }
        if account < 15 {
            assert_eq!(refused(&who, row.id).await, "this account follows 64 pins already");
        }
    }
    assert_eq!(refused(&alice, row.id).await, "too many pins are being followed");
    streams.pop();
    streams.push(world.engine.watch_pin(&alice, row.id).await.unwrap());
    drop(streams);
    let bob = world.account("bob", None).await;
    assert!(world.engine.watch_pin(&bob, row.id).await.is_err(), "another account's pin is not there");
    // Streams end when the engine stops, so that they do not hold up a shutdown.
    let mut stream = world.engine.watch_pin(&alice, row.id).await.unwrap();
    stream.next().await.unwrap();
    world.engine.stop().await;
    until("the stream ends", || {
        let next = futures::FutureExt::now_or_never(stream.next());
        async move { matches!(next, Some(None)) }
    })
    .await;
}
