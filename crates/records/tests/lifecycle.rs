//! A pin's life, and what follows from each step.

mod support;

use std::time::Duration;

use floe_core::cid::code;
use floe_core::{Cid, Clock, PinStatus, RequestId, Timestamp};
use floe_records::{DagOutcome, Error, Job, NameMatch, PinFilter, PinSpec};
use support::*;

#[tokio::test]
async fn s3_queued_then_pinning_then_pinned_then_gone() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let row = add_one(&records, account, spec(1)).await;
    assert_eq!(row.status, PinStatus::Queued);
    let dag = claim_one(&records).await;
    assert_eq!((dag.dag, dag.root, dag.attempts), (row.dag, root(1), 0));
    assert_eq!(status(&records, account, row.id).await, PinStatus::Pinning);
    complete(&records, &dag, 100).await;
    assert_eq!(status(&records, account, row.id).await, PinStatus::Pinned);
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 100);
    let jobs = records.jobs(10).await.unwrap();
    assert_eq!(jobs.iter().map(|j| j.1.clone()).collect::<Vec<_>>(), [Job::Announce(root(1))]);
    records.job_done(jobs[0].0).await.unwrap();

    records.remove_pin(account, row.id).await.unwrap();
    assert!(matches!(records.pin(account, row.id).await, Err(Error::NotFound)));
    assert!(matches!(records.remove_pin(account, row.id).await, Err(Error::NotFound)));
    let jobs: Vec<Job> = records.jobs(10).await.unwrap().into_iter().map(|j| j.1).collect();
    assert_eq!(jobs, [Job::Unannounce(root(1)), Job::Release(row.dag)]);
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 0);
    assert_eq!(records.dag_ids().await.unwrap(), []);
    assert_sound(&records).await;
}

#[tokio::test]
async fn m04_one_root_twice_is_two_pins_and_one_walk() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let (a, b) = (add_one(&records, account, spec(1)).await, add_one(&records, account, spec(1)).await);
    assert_ne!(a.id, b.id);
    assert_eq!(a.dag, b.dag);
    let dag = claim_one(&records).await;
    assert_eq!(records.claim_dags(9, 9).await.unwrap(), []);
    complete(&records, &dag, 7).await;
    for id in [a.id, b.id] {
        assert_eq!(status(&records, account, id).await, PinStatus::Pinned);
    }
    // Logical bytes, whatever is shared (T26).
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 14);

    let late = add_one(&records, account, spec(1)).await;
    assert_eq!(late.status, PinStatus::Queued, "a client sees queued first");
    barrier(&records).await;
    assert_eq!(status(&records, account, late.id).await, PinStatus::Pinned);
    assert_sound(&records).await;
}

#[tokio::test]
async fn m22_replace_keeps_the_old_dag_until_the_new_pin_is_pinned() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let old = add_one(&records, account, spec(1)).await;
    complete(&records, &claim_one(&records).await, 50).await;
    let new = records.replace_pin(account, old.id, spec(2), false, None).await.unwrap();
    assert!(matches!(records.pin(account, old.id).await, Err(Error::NotFound)));
    assert_eq!(records.dag_ids().await.unwrap().len(), 2);
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 50, "what is kept is charged on");
    let fetched = claim_one(&records).await;
    assert_eq!(fetched.dag, new.dag);
    complete(&records, &fetched, 30).await;
    assert_eq!(records.dag_ids().await.unwrap(), [(new.dag, true)]);
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 30);
    let jobs: Vec<Job> = records.jobs(10).await.unwrap().into_iter().map(|j| j.1).collect();
    assert!(jobs.contains(&Job::Release(old.dag)) && jobs.contains(&Job::Unannounce(root(1))), "{jobs:?}");
    assert_sound(&records).await;
}

#[tokio::test]
async fn m22_a_failed_replacement_protects_the_old_blocks_until_it_goes() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let old = add_one(&records, account, spec(1)).await;
    complete(&records, &claim_one(&records).await, 50).await;
    let second = records.replace_pin(account, old.id, spec(2), false, None).await.unwrap();
    let dag = claim_one(&records).await;
    records.finish_dag(dag.dag, DagOutcome::Failed { reason: "gave up".into() }).await.unwrap();
    let failed = records.pin(account, second.id).await.unwrap();
    assert_eq!((failed.status, failed.reason.as_deref()), (PinStatus::Failed, Some("gave up")));
    assert_eq!(records.dag_ids().await.unwrap(), [(old.dag, true)]);
    // Replaced in turn: the chain is inherited.
    let third = records.replace_pin(account, second.id, spec(3), false, None).await.unwrap();
    assert_eq!(records.dag_ids().await.unwrap().len(), 2);
    assert_sound(&records).await;
    records.remove_pin(account, third.id).await.unwrap();
    assert_eq!(records.dag_ids().await.unwrap(), []);
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 0);
    assert_sound(&records).await;
}

#[tokio::test]
async fn a_failed_root_can_be_pinned_again_with_a_dag_of_its_own() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let first = add_one(&records, account, spec(1)).await;
    let dag = claim_one(&records).await;
    records.finish_dag(dag.dag, DagOutcome::Failed { reason: "no".into() }).await.unwrap();
    assert!(records.jobs(9).await.unwrap().iter().any(|j| j.1 == Job::Release(dag.dag)));
    let again = add_one(&records, account, spec(1)).await;
    assert_ne!(again.dag, first.dag);
    complete(&records, &claim_one(&records).await, 5).await;
    assert_eq!(status(&records, account, again.id).await, PinStatus::Pinned);
    assert_eq!(status(&records, account, first.id).await, PinStatus::Failed);
    assert_sound(&records).await;
}

#[tokio::test]
async fn a_findable_pin_behind_a_hundred_dead_ones_is_claimed_at_once() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    records.add_pins(account, (0..100).map(spec).collect(), false, None).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let next = world.clock.now().after(Duration::from_secs(60));
    for _ in 0..100 {
        let dag = claim_one(&records).await;
        let outcome = parked(next, "nobody");
        records.finish_dag(dag.dag, outcome).await.unwrap();
    }
    world.clock.advance(Duration::from_secs(61));
    let live = add_one(&records, account, spec(1000)).await;
    assert_eq!(claim_one(&records).await.dag, live.dag, "fresh goes before retries that are due too");
    assert_eq!(records.parked_roots(500).await.unwrap().len(), 100);
    // One that is known to be findable goes first of all.
    assert_eq!(records.wake(None, Some(&root(77))).await.unwrap(), 1);
    add_one(&records, account, spec(1001)).await;
    assert_eq!(claim_one(&records).await.root, root(77));
}

/// It stayed `queued` until it was `pinned`, hours later for a large DAG: clients that wait for `pinning` before they
/// announce their blocks waited in vain.
#[tokio::test]
async fn s3_a_pin_that_joins_a_dag_being_fetched_is_pinning_with_the_next_report() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let poor = records.create_account("poor", Some(50), None).await.unwrap().id;
    add_one(&records, account, spec(1)).await;
    let dag = claim_one(&records).await;
    let (late, refused) = (add_one(&records, account, spec(1)).await, add_one(&records, poor, spec(1)).await);
    assert_eq!(status(&records, account, late.id).await, PinStatus::Queued, "a client sees queued first");
    records.dag_progress(dag.dag, 2, 60, None).await.unwrap();
    assert_eq!(status(&records, account, late.id).await, PinStatus::Pinning);
    assert_eq!(status(&records, poor, refused.id).await, PinStatus::Failed, "there was no room for it");
    assert_sound(&records).await;
    complete(&records, &dag, 60).await;
    assert_eq!(status(&records, account, late.id).await, PinStatus::Pinned);
}

/// The age of a DAG was held against every pin of it: who joined one that had been searched for in vain for a day was
/// given up for after a minute, with the pins of the others.
#[tokio::test]
async fn t05_each_pin_has_its_own_time_and_the_others_of_its_dag_go_on() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let hour = Duration::from_secs(3_600);
    let attempt = async |hours: u32, waited_for: bool| {
        let dag = claim_one(&records).await;
        world.clock.advance(hour * hours);
        let outcome = searched(world.clock.now(), "nobody", hour * hours);
        assert_eq!(records.finish_dag(dag.dag, outcome).await.unwrap(), waited_for);
        dag.searched
    };
    let first = add_one(&records, account, spec(1)).await;
    assert_eq!(attempt(20, true).await, Duration::ZERO);
    let second = add_one(&records, account, spec(1)).await;
    assert_eq!(attempt(3, true).await, hour * 20);
    assert_eq!(status(&records, account, first.id).await, PinStatus::Pinning, "23 h");
    // It joins while an attempt goes on that began before it.
    let dag = claim_one(&records).await;
    world.clock.advance(hour);
    let third = add_one(&records, account, spec(1)).await;
    let outcome = searched(world.clock.now(), "nobody", hour);
    assert!(records.finish_dag(dag.dag, outcome).await.unwrap());
    let failed = records.pin(account, first.id).await.unwrap();
    assert_eq!((failed.status, failed.reason.as_deref()), (PinStatus::Failed, Some("given up: nobody")));
    assert_eq!(attempt(19, true).await, hour * 4, "as the second counts");
    assert_eq!(status(&records, account, second.id).await, PinStatus::Pinning, "23 h");
    // Progress begins anew for both.
    let dag = claim_one(&records).await;
    records.dag_progress(dag.dag, 1, 10, None).await.unwrap();
    world.clock.advance(hour);
    records.finish_dag(dag.dag, searched(world.clock.now(), "nobody", hour)).await.unwrap();
    assert_eq!(attempt(22, true).await, hour);
    assert_eq!(status(&records, account, second.id).await, PinStatus::Pinning, "23 h since progress");
    assert_sound(&records).await;
    attempt(1, false).await;
    for id in [second.id, third.id] {
        assert_eq!(status(&records, account, id).await, PinStatus::Failed);
    }
    assert_eq!(records.claim_dags(9, 9).await.unwrap(), []);
    assert_eq!(records.next_due().await.unwrap(), None);
    assert_sound(&records).await;
}

/// A peer that connected again and again woke all parked pins that name it to the front of their queue, and what the
/// account asked for since was never looked for.
#[tokio::test]
async fn t05_what_is_woken_again_and_again_keeps_no_other_pin_waiting() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let named = |n| {
        let origins = vec!["/ip4/1.2.3.4/tcp/4001/p2p/12D3KooWpeer".to_owned()];
        floe_records::PinSpec { origins, ..spec(n) }
    };
    records.add_pins(account, (0..5).map(named).collect(), false, None).await.unwrap();
    let next_attempt = world.clock.now().after(Duration::from_secs(600));
    let park = async |dag: uuid::Uuid| {
        let outcome = parked(next_attempt, "nobody");
        records.finish_dag(dag, outcome).await.unwrap();
    };
    world.clock.advance(Duration::from_secs(1));
    for _ in 0..5 {
        park(claim_one(&records).await.dag).await;
    }
    records.add_pins(account, (10..13).map(spec).collect(), false, None).await.unwrap();
    let fresh: Vec<_> = (10..13).map(root).collect();
    world.clock.advance(Duration::from_secs(1));
    let mut turns = Vec::new();
    for _ in 0..6 {
        records.wake(Some("12D3KooWpeer"), None).await.unwrap();
        let dag = claim_one(&records).await;
        let is_fresh = fresh.contains(&dag.root);
        if !is_fresh {
            park(dag.dag).await;
        }
        turns.push(is_fresh);
    }
    assert_eq!(turns, [false, true, false, true, false, true]);
    assert_eq!(records.claim_dags(9, 9).await.unwrap().len(), 5, "and with nobody else waiting, all of them");
    assert_sound(&records).await;
}

/// A hash is announced, not a CID. Whoever pinned the bytes of another's root as raw, which is one block and done at once,
/// and removed that pin again, took the other's root out of the DHT for good.
#[tokio::test]
async fn t25_a_root_stays_announced_while_a_pin_of_its_hash_is_left() {
    let world = World::new();
    let records = world.open().await;
    let victim = default_account(&records).await;
    let attacker = records.create_account("attacker", None, None).await.unwrap().id;
    let of = |codec| {
        let cid = Cid::new_v1(codec, *root(1).hash());
        PinSpec { cid, cid_text: cid.to_string(), ..spec(1) }
    };
    let mut pins = Vec::new();
    for (account, codec) in [(victim, code::DAG_PB), (attacker, code::RAW)] {
        let row = records.add_pins(account, vec![of(codec)], false, None).await.unwrap().remove(0);
        complete(&records, &claim_one(&records).await, 10).await;
        pins.push((account, row.id));
    }
    let stops = async || {
        let jobs = records.jobs(99).await.unwrap();
        jobs.into_iter().filter(|(_, job)| matches!(job, Job::Unannounce(_))).count()
    };
    records.remove_pin(pins[1].0, pins[1].1).await.unwrap();
    assert_eq!(stops().await, 0, "the victim's root is pinned");
    records.remove_pin(pins[0].0, pins[0].1).await.unwrap();
    assert_eq!(stops().await, 1);
}

/// R23: what came from this machine and what did not were told as one list, with the right to dial of the first.
#[tokio::test]
async fn r23_origins_of_local_requests_and_of_others_stay_apart() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    for (local, origin) in [(true, "/ip4/10.0.0.1/tcp/1/p2p/a"), (false, "/ip4/10.0.0.2/tcp/1/p2p/b")] {
        let mut spec = spec(1);
        spec.origins = vec![origin.into()];
        records.add_pins(account, vec![spec], local, None).await.unwrap();
    }
    let dag = claim_one(&records).await;
    let origins: Vec<_> = dag.origins.iter().map(|o| (o.local_request, &o.addresses[0][..])).collect();
    assert_eq!(origins, [(true, "/ip4/10.0.0.1/tcp/1/p2p/a"), (false, "/ip4/10.0.0.2/tcp/1/p2p/b")]);
}

#[tokio::test]
async fn s7_a_peer_wakes_the_pins_whose_origins_name_it() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let mut with_origin = spec(1);
    with_origin.origins = vec!["/ip4/1.2.3.4/tcp/4001/p2p/12D3KooWpeer".into(), "odd".into()];
    add_one(&records, account, with_origin.clone()).await;
    let dag = claim_one(&records).await;
    assert_eq!(dag.origins.iter().flat_map(|o| o.addresses.clone()).collect::<Vec<_>>(), with_origin.origins);
    let next_attempt = world.clock.now().after(Duration::from_secs(600));
    let outcome = parked(next_attempt, "nobody");
    records.finish_dag(dag.dag, outcome).await.unwrap();
    assert_eq!(records.next_due().await.unwrap(), Some(next_attempt));
    assert_eq!(records.claim_dags(1, 10).await.unwrap(), []);
    assert_eq!(records.wake(Some("12D3KooWother"), None).await.unwrap(), 0);
    assert_eq!(records.wake(Some("12D3KooWpeer"), None).await.unwrap(), 1);
    assert_eq!(claim_one(&records).await.attempts, 1);
}

#[tokio::test]
async fn claims_are_fair_between_accounts_and_bounded_in_each() {
    let world = World::new();
    let records = world.open().await;
    let greedy = default_account(&records).await;
    let modest = records.create_account("modest", None, None).await.unwrap().id;
    records.add_pins(greedy, (0..50).map(spec).collect(), false, None).await.unwrap();
    records.add_pins(modest, (100..103).map(spec).collect(), false, None).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
    let claimed = records.claim_dags(4, 10).await.unwrap();
    assert_eq!(claimed.iter().filter(|dag| dag.account == modest).count(), 2);
    let claimed = records.claim_dags(64, 10).await.unwrap();
    assert_eq!(claimed.len(), 9, "one of the modest, and the greedy up to ten");
    assert_eq!(records.reset_claims().await.unwrap(), 13);
    assert_sound(&records).await;
}

#[tokio::test]
async fn r01_what_was_acknowledged_is_there_after_reopening() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let row = add_one(&records, account, named(1, "kept")).await;
    let (token, secret) =
        records.create_token("default", &[floe_records::Scope::PinsRead], None).await.unwrap();
    records.close().await;
    let records = world.open().await;
    assert_eq!(records.pin(account, row.id).await.unwrap().spec, row.spec);
    assert_eq!(records.authenticate(&secret).await.unwrap().unwrap().token, token.id);
}

#[tokio::test]
async fn m12_m13_m14_m15_pages() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let rows = records.add_pins(account, (0..25).map(spec).collect(), false, None).await.unwrap();
    let times: Vec<Timestamp> = rows.iter().map(|row| row.created).collect();
    assert!(times.windows(2).all(|pair| pair[0] < pair[1]), "unique by millisecond");
    let page = records.pins(account, PinFilter { limit: 10, ..any_status() }).await.unwrap();
    assert_eq!(page.count, 25);
    assert!(page.pins.windows(2).all(|pair| pair[0].created > pair[1].created));
    let before = PinFilter { before: Some(times[5]), ..any_status() };
    let page = records.pins(account, before).await.unwrap();
    assert_eq!((page.count, page.pins.len()), (5, 5), "strict, and counted");
    // As @helia/remote-pinning pages.
    let (mut after, mut seen) = (Some(Timestamp::from_millis(0)), Vec::new());
    loop {
        let page = records.pins(account, PinFilter { after, limit: 7, ..any_status() }).await.unwrap();
        let Some(last) = page.pins.last() else { break };
        after = Some(last.created);
        seen.extend(page.pins.into_iter().map(|row| row.id));
    }
    assert_eq!(seen, rows.iter().map(|row| row.id).collect::<Vec<RequestId>>());
    let page = records.pins(account, PinFilter { limit: 1, ..PinFilter::default() }).await.unwrap();
    assert_eq!((page.count, page.pins.len()), (0, 0), "status absent: pinned alone");
}

#[tokio::test]
async fn m16_m18_m19_filters() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let mut tagged = named(2, "100%_Straße");
    tagged.meta = [("app".to_owned(), "x".to_owned()), ("env".to_owned(), "prod".to_owned())].into();
    records.add_pins(account, vec![named(1, "Plain"), tagged, spec(3)], false, None).await.unwrap();
    let count = async |filter: PinFilter| {
        let page = records.pins(account, filter).await.unwrap();
        assert_eq!(page.count, page.pins.len() as u64);
        page.count
    };
    let by_name = |how, name: &str| PinFilter { name: Some((how, name.to_owned())), ..any_status() };
    assert_eq!(count(by_name(NameMatch::Exact, "Plain")).await, 1);
    assert_eq!(count(by_name(NameMatch::Exact, "plain")).await, 0);
    assert_eq!(count(by_name(NameMatch::IExact, "PLAIN")).await, 1);
    assert_eq!(count(by_name(NameMatch::Partial, "Str")).await, 1);
    assert_eq!(count(by_name(NameMatch::Partial, "str")).await, 0);
    assert_eq!(count(by_name(NameMatch::IPartial, "STRASS")).await, 1);
    assert_eq!(count(by_name(NameMatch::Partial, "%")).await, 1, "no wildcard");
    assert_eq!(count(by_name(NameMatch::Partial, "Pl_in")).await, 0, "no wildcard");
    let meta =
        |key: &str, value: &str| PinFilter { meta: [(key.into(), value.into())].into(), ..any_status() };
    assert_eq!(count(meta("app", "x")).await, 1);
    assert_eq!(count(meta("app", "y")).await, 0);
    assert_eq!(count(PinFilter { cids: vec![root(1), root(3), root(9)], ..any_status() }).await, 2);
}
