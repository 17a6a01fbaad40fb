//! Pins that cannot be had now: parking, waking, giving up, and not holding up the others.
#![allow(clippy::unwrap_used, reason = "helpers of tests are outside of #[test] functions")]

mod support;

use std::time::Duration;

use floe_core::{Clock as _, PinStatus};
use floe_engine::Settings;

use self::support::dags::{leaf, tree};
use self::support::{World, spec, until};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_findable_pin_behind_a_hundred_dead_ones_is_pinned_within_a_minute() {
    let world = World::new().await;
    let alice = world.alice().await;
    for n in 0..100 {
        world.add(&alice, leaf(100_000 + n, 50).cid()).await;
    }
    let dag = tree(20, 10, 300, 10);
    world.net.has(&dag.blocks);
    let row = world.add(&alice, &dag.root()).await;
    let start = world.clock.monotonic();
    let pinned = || async { world.status(&alice, row.id).await == PinStatus::Pinned };
    while !pinned().await {
        // The manual clock waits for the real disk: time passes only while all ten slots are searching.
        until("every slot is taken", || async { world.net.open_sessions() == 10 || pinned().await }).await;
        world.clock.advance(SECOND / 2);
        let took = world.clock.monotonic() - start;
        assert!(took <= MINUTE, "{took:?}");
    }

    // And the dead ones of one account do not keep a second account waiting at all.
    let bob = world.account("bob", None).await;
    let dag = tree(21, 10, 300, 10);
    world.net.has(&dag.blocks);
    let row = world.add(&bob, &dag.root()).await;
    world.reaches(&bob, row.id, PinStatus::Pinned).await;
}

/// A hundred trees whose root came and one leaf of which nobody had held up a findable pin for twenty minutes: what had
/// had a block kept its slot for two minutes without another, whoever waited.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_findable_pin_behind_a_hundred_that_lack_a_leaf_is_pinned_within_a_minute() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dead: Vec<_> = (0..100).map(|n| tree(1_000 + n, 3, 100, 3)).collect();
    for dag in &dead {
        world.net.has(&dag.blocks[1..]);
        world.add(&alice, &dag.root()).await;
    }
    // Behind them in the first round, and again once they all come back: then each attempt has more time.
    for (round, seed) in [(0, 26), (1, 27)] {
        let late = tree(seed, 10, 300, 10);
        world.net.has(&late.blocks);
        let row = world.add(&alice, &late.root()).await;
        let start = world.clock.monotonic();
        let pinned = || async { world.status(&alice, row.id).await == PinStatus::Pinned };
        while !pinned().await {
            until("every slot is taken", || async { world.net.open_sessions() == 10 || pinned().await })
                .await;
            world.clock.advance(SECOND / 2);
            let took = world.clock.monotonic() - start;
            assert!(took <= MINUTE, "round {round}: {took:?}");
        }
        if round == 0 {
            until("every dead one was tried", || async {
                world.clock.advance(SECOND / 2);
                dead.iter().all(|dag| world.net.asked(dag.blocks[0].cid()) > 0)
            })
            .await;
            // Those that were tried come back, and are all that is tried.
            world.net.forget_asked();
            until("ten are tried again", || async {
                world.clock.advance(SECOND / 2);
                dead.iter().filter(|dag| world.net.asked(dag.blocks[0].cid()) > 0).count() >= 10
            })
            .await;
        }
    }

    // What came of them stayed: the leaf is all that is missing.
    world.net.forget_asked();
    let leaves: Vec<_> = dead.iter().map(|dag| dag.blocks[0].clone()).collect();
    world.net.has(&leaves);
    let all = || async {
        world
            .engine
            .pins(&alice, floe_engine::PinFilter { limit: 1, ..Default::default() })
            .await
            .unwrap()
            .count
            == 102
    };
    world.advance_until(SECOND, HOUR, all).await;
    assert!(world.net.asked_in_all() <= 100, "only what was missing: {}", world.net.asked_in_all());
}

/// The clock stands still, so none of these searches ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_dags_of_an_account_and_64_of_the_node_are_fetched_at_once() {
    let world = World::new().await;
    let mut next = 300_000;
    let mut add = async |who: &floe_engine::Principal, pins: usize| {
        let mut rows = Vec::new();
        for _ in 0..pins {
            next += 1;
            rows.push(world.add(who, leaf(next, 50).cid()).await);
        }
        rows
    };
    let open = async |sessions: usize| {
        until(&format!("{sessions} are searching"), || async { world.net.open_sessions() == sessions }).await;
        for _ in 0..20 {
            support::settle().await;
        }
        assert_eq!(world.net.open_sessions(), sessions, "and no more");
    };
    let first = world.account("account 0", None).await;
    let mut rows = add(&first, 9).await;
    open(9).await;
    rows.extend(add(&first, 1).await);
    open(10).await;
    rows.extend(add(&first, 1).await);
    open(10).await;
    assert_eq!(world.status(&first, rows[10].id).await, PinStatus::Queued);
    for n in 1..=5 {
        let who = world.account(&format!("account {n}"), None).await;
        add(&who, 10).await;
    }
    open(60).await;
    let last = world.account("account 6", None).await;
    let mut late = add(&last, 3).await;
    open(63).await;
    late.extend(add(&last, 1).await);
    open(64).await;
    late.extend(add(&last, 1).await);
    open(64).await;
    assert_eq!(world.status(&last, late[4].id).await, PinStatus::Queued);
    // A slot of the node that becomes free is the last account's; the first one's own bound holds its eleventh back.
    let other = world.account("account 1", None).await;
    let filter =
        floe_engine::PinFilter { statuses: vec![PinStatus::Pinning], limit: 1, ..Default::default() };
    let one = world.engine.pins(&other, filter).await.unwrap().pins[0].id;
    world.engine.remove_pin(&other, one).await.unwrap();
    world.reaches(&last, late[4].id, PinStatus::Pinning).await;
    open(64).await;
    assert_eq!(world.status(&first, rows[10].id).await, PinStatus::Queued);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_a_pin_without_progress_parks_and_fails_only_after_the_whole_time() {
    let world = World::new().await;
    let alice = world.alice().await;
    let missing = leaf(200_000, 50);
    let row = world.add(&alice, missing.cid()).await;
    until("it is asked for", || async { world.net.asked(missing.cid()) == 1 }).await;
    let parked =
        world.advance_until(SECOND, 40 * SECOND, || async { world.net.is_parked(missing.cid()) }).await;
    assert!(parked >= 19 * SECOND, "an attempt alone has its 20 s: {parked:?}");
    let at = world.engine.pin(&alice, row.id).await.unwrap();
    assert_eq!(at.status, PinStatus::Pinning);
    assert_eq!(at.progress.attempts, 1);
    let next = at.progress.next_attempt.unwrap().since(world.clock.now());
    assert!(next >= 10 * SECOND && next <= 30 * SECOND, "{next:?}");
    assert!(at.progress.last_error.unwrap().contains("no peer"));

    let took = world
        .advance_until(MINUTE, 40 * HOUR, || async {
            world.status(&alice, row.id).await == PinStatus::Failed
        })
        .await;
    assert!(took >= 24 * HOUR - 10 * MINUTE, "{took:?}");
    let reason = world.engine.pin(&alice, row.id).await.unwrap().reason.unwrap();
    assert!(reason.starts_with("given up after 24 h"), "{reason}");
    assert!(reason.contains("no peer that has it is connected"), "{reason}");
    until("nobody is asked any more", || async { !world.net.is_parked(missing.cid()) }).await;
}

/// Somebody had pinned a dead root a day before, and who pinned it then was told a minute later that the service had
/// given up after 24 h: the age of the DAG was held against every pin of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_who_joins_an_old_search_has_the_whole_time_too() {
    let world = World::with(Settings { give_up_after: 4 * HOUR, ..Settings::default() }).await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    let missing = leaf(240_000, 50);
    let a = world.add(&alice, missing.cid()).await;
    world.parks(missing.cid()).await;
    let long = world.clock.monotonic() + 3 * HOUR;
    world.advance_until(MINUTE, 4 * HOUR, || async { world.clock.monotonic() >= long }).await;
    let b = world.add(&bob, missing.cid()).await;
    let failed = |who, id| {
        let world = &world;
        async move { world.status(who, id).await == PinStatus::Failed }
    };
    world.advance_until(MINUTE, 8 * HOUR, || failed(&alice, a.id)).await;
    assert_eq!(world.status(&bob, b.id).await, PinStatus::Pinning);
    world.advance_until(MINUTE, 8 * HOUR, || failed(&bob, b.id)).await;
    let took = world.clock.now().since(b.created);
    assert!(took >= 4 * HOUR, "{took:?}");
    until("nobody is asked any more", || async { !world.net.is_parked(missing.cid()) }).await;
}

/// After a weekend with the machine off, each parked pin got one attempt and failed: "given up after 24 h".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_time_in_which_the_service_was_off_does_not_count() {
    let world = World::new().await;
    let alice = world.alice().await;
    let missing = leaf(241_000, 50);
    let row = world.add(&alice, missing.cid()).await;
    world.parks(missing.cid()).await;
    let clock = world.clock.clone();
    let world = world.crash_and(|_, _| async move { clock.advance(60 * HOUR) }).await;
    let tried = || async {
        let pin = world.engine.pin(&alice, row.id).await.unwrap();
        pin.progress.attempts >= 4 || pin.status != PinStatus::Pinning
    };
    world.advance_until(5 * SECOND, HOUR, tried).await;
    assert_eq!(world.status(&alice, row.id).await, PinStatus::Pinning);
}

/// A pin that had waited in the queue for more than 24 h, behind many others, failed after the four seconds of its
/// first attempt: "given up after 24 h".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_time_in_the_queue_does_not_count() {
    let world = World::new().await;
    let alice = world.alice().await;
    let missing = leaf(242_000, 50);
    let (clock, root) = (world.clock.clone(), *missing.cid());
    let account = alice.account.id;
    let world = world
        .crash_and(|_, records| async move {
            records.add_pins(account, vec![spec(&root, &[])], true, None).await.unwrap();
            clock.advance(25 * HOUR);
        })
        .await;
    let row = world.engine.pins(
        &alice,
        floe_engine::PinFilter { limit: 1, statuses: PinStatus::ALL.to_vec(), ..Default::default() },
    );
    let id = row.await.unwrap().pins[0].id;
    let tried = || async {
        let pin = world.engine.pin(&alice, id).await.unwrap();
        pin.progress.attempts >= 4 || pin.status != PinStatus::Pinning
    };
    world.advance_until(5 * SECOND, HOUR, tried).await;
    // Queued again for the next attempt, or in it.
    assert_ne!(world.status(&alice, id).await, PinStatus::Failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pin_wakes_when_its_origin_connects_or_a_peer_offers_its_root() {
    let world = World::new().await;
    let alice = world.alice().await;
    let (named, offered) = (leaf(210_000, 50), leaf(210_001, 50));
    let peer = "12D3KooWGjMCwJJvQmQ7mGEGCtmRsJDkYxHDpn2tWkDCbqk2Pkye";
    let a = world.add_from(&alice, named.cid(), &[&format!("/ip4/10.0.0.1/tcp/4001/p2p/{peer}")]).await;
    let b = world.add(&alice, offered.cid()).await;
    until("both are asked for", || async {
        world.net.asked(named.cid()) + world.net.asked(offered.cid()) == 2
    })
    .await;
    world.parks(named.cid()).await;
    until("the other too", || async { world.net.is_parked(offered.cid()) }).await;
    world.net.has(&[named.clone(), offered.clone()]);

    world.net.connect("12D3KooWSomebodyElse");
    world.net.connect(peer);
    world.reaches(&alice, a.id, PinStatus::Pinned).await;
    assert_eq!(world.status(&alice, b.id).await, PinStatus::Pinning, "its time has not come");
    world.net.offer(offered.cid());
    world.reaches(&alice, b.id, PinStatus::Pinned).await;
    assert!(!world.net.is_parked(named.cid()) && !world.net.is_parked(offered.cid()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_pin_wakes_when_it_is_asked_for_again() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.account("bob", None).await);
    let wanted = leaf(220_000, 50);
    let a = world.add(&alice, wanted.cid()).await;
    world.parks(wanted.cid()).await;
    world.net.has(std::slice::from_ref(&wanted));
    let b = world.add(&bob, wanted.cid()).await;
    world.reaches(&bob, b.id, PinStatus::Pinned).await;
    world.reaches(&alice, a.id, PinStatus::Pinned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_roots_are_asked_for_again_after_a_restart() {
    let world = World::new().await;
    let alice = world.alice().await;
    let wanted = leaf(230_000, 50);
    let row = world.add(&alice, wanted.cid()).await;
    world.parks(wanted.cid()).await;
    floe_core::ports::Exchange::unpark(&*world.net, wanted.cid());
    let world = world.crash().await;
    until("it is parked again", || async { world.net.is_parked(wanted.cid()) }).await;
    world.net.has(std::slice::from_ref(&wanted));
    world.net.offer(wanted.cid());
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_a_stall_midway_parks_with_its_progress_and_goes_on_from_there() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(24, 50, 400, 50);
    world.net.has(&dag.blocks[1..]);
    let row = world.add(&alice, &dag.root()).await;
    let parked = world.advance_until(SECOND, 3 * MINUTE, || async { world.net.is_parked(&dag.root()) }).await;
    assert!(parked >= 119 * SECOND, "the no-progress time is 2 min: {parked:?}");
    let at = world.engine.pin(&alice, row.id).await.unwrap();
    assert_eq!(at.progress.blocks, dag.blocks.len() as u64 - 1);
    assert!(at.progress.last_error.unwrap().contains("1 blocks are known to be missing"));
    world.net.forget_asked();
    world.net.has(&dag.blocks[..1]);
    world.net.offer(&dag.root());
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert_eq!(world.net.asked_in_all(), 1, "only what was missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t04_wrong_bytes_are_never_stored_and_an_honest_peer_completes_the_pin() {
    let world = World::new().await;
    let alice = world.alice().await;
    let dag = tree(25, 40, 400, 40);
    world.net.has(&dag.blocks);
    world.net.spoils(&dag.blocks[..20]);
    let row = world.add(&alice, &dag.root()).await;
    until("all is asked for", || async { dag.blocks.iter().all(|b| world.net.asked(b.cid()) == 1) }).await;
    support::settle().await;
    assert!(dag.blocks[..20].iter().all(|b| !world.has(b.cid())), "no bad byte is stored");
    assert_eq!(world.status(&alice, row.id).await, PinStatus::Pinning);
    world.net.has(&dag.blocks);
    world.reaches(&alice, row.id, PinStatus::Pinned).await;
    assert!(world.has_all(&dag.blocks));
}
