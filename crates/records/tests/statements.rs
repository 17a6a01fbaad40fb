//! How many statements a call takes: each is handed to the thread of its connection and back.
//!
//! Every pin had twelve statements of its own and each look at one four, so two cores posted 952 pins a second and were
//! idle for a third of the time, waiting for the hand-overs.

mod support;

use floe_records::{Records, Scope};
use support::life::Statements;
use support::*;

/// How many statements `call` takes.
async fn count<T>(statements: &Statements, call: impl Future<Output = T>) -> (usize, T) {
    let before = statements.count();
    let out = call.await;
    (statements.count() - before, out)
}

/// One of each of `pins` callers, all waiting at the same time.
async fn add(records: &Records, account: floe_core::AccountId, first: u32, pins: u32) {
    let mut calls = tokio::task::JoinSet::new();
    for n in first..first + pins {
        let records = records.clone();
        calls.spawn(async move { add_one(&records, account, spec(n)).await });
    }
    assert_eq!(calls.join_all().await.len(), pins as usize);
}

#[tokio::test]
async fn a_group_of_pins_takes_as_many_statements_as_one() {
    let statements = Statements::collect();
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let (one, ()) = count(&statements, add(&records, account, 0, 1)).await;
    // BEGIN, SAVEPOINT, accounts, DAGs; DAGs, waits, accounts, pins, counters; RELEASE, COMMIT.
    assert_eq!(one, 11);
    for pins in [2, 20, 32] {
        world.clock.advance(std::time::Duration::from_secs(1));
        let (group, ()) = count(&statements, add(&records, account, pins * 100, pins)).await;
        assert_eq!(group, one, "{pins}");
    }
    world.clock.advance(std::time::Duration::from_secs(1));
    // DAGs are looked up, begun and waited for, and pins written, by 32.
    assert_eq!(count(&statements, add(&records, account, 9_000, 33)).await.0, one + 4);

    let row = add_one(&records, account, spec(0)).await;
    let (look, _) = count(&statements, records.pin(account, row.id)).await;
    assert_eq!(look, 1, "the row with its place in the queue");
    // BEGIN, SAVEPOINT, the accounts that wait, RELEASE, COMMIT: what each new pin makes the fetcher ask, in vain where
    // its account has as many fetches as it may.
    records.claim_dags(9, 3).await.unwrap();
    assert_eq!(count(&statements, records.claim_dags(9, 3)).await.0, 6);
    let (_, secret) = records.create_token("default", &[Scope::PinsRead], None).await.unwrap();
    assert_eq!(count(&statements, records.authenticate(&secret)).await.0, 2);
    let (known, who) = count(&statements, records.authenticate(&secret)).await;
    assert_eq!((known, who.unwrap().is_some()), (0, true));
}
