//! The writer dies at each named point; what was acknowledged is there after reopening, and what was not is
//! there as a whole or not at all. One test, because failpoints are the process's.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use floe_core::{Epoch, PinStatus, Timestamp};
use floe_records::cold::{OnChain, Reply};
use floe_records::{DagOutcome, Error, Records, Scope};
use support::deals::{attempt, packed, signed, wide_caps};
use support::*;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn r01_the_writer_dies_at_each_point() {
    std::panic::set_hook(Box::new(|_| {}));
    for (point, committed) in [
        ("rows.before_commit", false),
        ("rows.after_commit", true),
        ("pin.queued", false),
        ("pin.settled", false),
        ("unpin.rows", false),
        ("token.created", false),
        ("token.revoked", false),
    ] {
        die_at(point, committed).await;
    }
    for (point, committed) in [("rows.before_commit", false), ("rows.after_commit", true)] {
        die_with_a_token(point, committed).await;
    }
    for (nth, point) in DEAL.into_iter().enumerate() {
        die_with_a_deal(nth, point).await;
    }
    die_giving_back().await;
    die_between_steps().await;
    die_in_migration().await;
}

/// More pins than one transaction may fail, and the writer dies in the second: those of the first have failed, and the
/// others have another attempt.
async fn die_between_steps() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    for _ in 0..2 {
        records.add_pins(account, vec![spec(1); 750], false, None).await.unwrap();
        world.clock.advance(std::time::Duration::from_secs(2));
    }
    let failed = DagOutcome::Failed { reason: "no codec".to_owned() };
    let dag = claim_one(&records).await;
    fail::cfg("pin.settled", "1*off->panic").unwrap();
    let died = records.finish_dag(dag.dag, failed.clone()).await;
    fail::remove("pin.settled");
    assert!(matches!(died, Err(Error::Poisoned(_))), "{died:?}");
    drop(records);

    let records = world.open().await;
    let count = async |status| records.pin_counts().await.unwrap()[&status];
    assert_eq!(count(PinStatus::Failed).await, 1_000);
    assert_eq!(records.reset_claims().await.unwrap(), 1);
    assert_sound(&records).await;
    let again = claim_one(&records).await;
    assert_eq!(again.dag, dag.dag);
    records.finish_dag(again.dag, failed).await.unwrap();
    assert_eq!(count(PinStatus::Failed).await, 1_500);
    assert_sound(&records).await;
    records.close().await;
}

/// A deal's steps, each in a transaction of its own.
const DEAL: [&str; 5] = ["deal.chosen", "deal.signed", "deal.proposed", "deal.answered", "deal.on_chain"];

/// Takes a deal's step.
async fn take(records: &Records, step: &str, aggregate: Uuid) -> Result<(), Error> {
    let caps = wide_caps();
    let accounts: Vec<_> = records.accounts().await.unwrap().iter().map(|account| account.id).collect();
    if step == "deal.chosen" {
        return records.choose_deal(attempt(aggregate, 0, 1_000, 7, &accounts), &caps).await.map(drop);
    }
    let deal = records.deals_of_aggregate(aggregate).await.unwrap()[0].uuid;
    let (head, due) = (Epoch::new(5), Timestamp::from_millis(START));
    match step {
        "deal.signed" => records.store_signed(deal, signed(deal)).await.map(drop),
        "deal.proposed" => records.begin_sending(deal, head, due).await.map(drop),
        "deal.answered" => records.answered(deal, Reply::Accepted, head, due).await.map(drop),
        _ => records.on_chain(deal, OnChain::Published(3), head, head).await.map(drop),
    }
}

/// What is known of the deal, and what is bound for it.
async fn known(records: &Records, aggregate: Uuid) -> String {
    let deals = records.deals_of_aggregate(aggregate).await.unwrap();
    format!("{deals:?} {:?}", records.totals().await.unwrap())
}

/// A step of a deal that its writer died in was not taken, and is taken after the restart like any other: no money is
/// bound twice, and what was signed is signed once.
async fn die_with_a_deal(nth: usize, point: &str) {
    let world = World::new();
    let records = world.open().await;
    let aggregate = packed(&records).await;
    records.switch_spending(true, "the operator").await.unwrap();
    for step in &DEAL[..nth] {
        take(&records, step, aggregate).await.unwrap();
    }
    let before = known(&records, aggregate).await;
    fail::cfg(point, "panic").unwrap();
    let died = take(&records, point, aggregate).await;
    fail::remove(point);
    assert!(matches!(died, Err(Error::Poisoned(_))), "{point}: {died:?}");
    drop(records);

    let records = world.open().await;
    records.begin_ledger_epoch().await.unwrap();
    assert_eq!(known(&records, aggregate).await, before, "{point}");
    for step in &DEAL[nth..] {
        take(&records, step, aggregate).await.unwrap();
    }
    let deals = records.deals_of_aggregate(aggregate).await.unwrap();
    assert_eq!((deals.len(), deals[0].deal_id), (1, Some(3)), "{point}");
    assert_sound(&records).await;
    records.close().await;
}

/// A segment is given back as a whole or not at all: its pins are in the aggregate or wait, never both and never neither.
async fn die_giving_back() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let pins = [cold::pinned(&records, account, 1).await.id, cold::pinned(&records, account, 2).await.id];
    let aggregate = cold::aggregates(&records, 1).await[0];
    let due = Timestamp::from_millis(START);
    let give_back = async |records: &Records| {
        records.give_back_segment(aggregate, 0, "a block is missing".into(), due).await
    };
    fail::cfg("agg.given_back", "panic").unwrap();
    let died = give_back(&records).await;
    fail::remove("agg.given_back");
    assert!(matches!(died, Err(Error::Poisoned(_))), "{died:?}");
    drop(records);

    let records = world.open().await;
    assert_eq!(records.segments(aggregate).await.unwrap().len(), 2);
    for pin in pins {
        assert_eq!(records.aggregates_of_pin(pin).await.unwrap(), [aggregate]);
    }
    assert!(give_back(&records).await.unwrap(), "the other is left");
    assert_eq!(records.segments(aggregate).await.unwrap().len(), 1);
    assert_sound(&records).await;
    records.close().await;
}

/// A token that is made, and one that is revoked, in the transaction at whose commit the writer dies.
async fn die_with_a_token(point: &str, committed: bool) {
    for revokes in [false, true] {
        let world = World::new();
        let records = world.open().await;
        let (token, secret) = records.create_token("default", &[Scope::PinsRead], None).await.unwrap();
        fail::cfg(point, "panic").unwrap();
        let died = match revokes {
            true => records.revoke_token(token.id).await.err(),
            false => records.create_token("default", &[], None).await.err(),
        };
        fail::remove(point);
        assert!(matches!(died, Some(Error::Poisoned(_))), "{point}: {died:?}");
        drop(records);

        let records = world.open().await;
        let made = records.tokens(None).await.unwrap();
        assert_eq!(made.len(), if committed && !revokes { 2 } else { 1 }, "{point}");
        let let_in = records.authenticate(&secret).await.unwrap().is_some();
        assert_eq!(let_in, !(committed && revokes), "{point}: a token that is revoked lets nobody in");
        assert_sound(&records).await;
        records.close().await;
    }
}

async fn die_at(point: &str, committed: bool) {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let before = add_one(&records, account, spec(1)).await;
    let dag = claim_one(&records).await;
    let (token, secret) = records.create_token("default", &[Scope::PinsRead], None).await.unwrap();
    fail::cfg(point, "panic").unwrap();
    let complete = DagOutcome::Complete { blocks: 1, bytes: 9 };
    let died = match point {
        "pin.settled" => records.finish_dag(dag.dag, complete.clone()).await.err(),
        "unpin.rows" => records.remove_pin(account, before.id).await.err(),
        "token.created" => records.create_token("default", &[], None).await.err(),
        "token.revoked" => records.revoke_token(token.id).await.err(),
        _ => records.add_pins(account, vec![spec(2)], false, None).await.err(),
    };
    fail::remove(point);
    assert!(matches!(died, Some(Error::Poisoned(_))), "{point}: {died:?}");
    assert!(records.poisoned().await.contains("panicked"));
    drop(records);

    let records = world.open().await;
    assert_eq!(records.reset_claims().await.unwrap(), 1, "{point}");
    let pins = records.pins(account, any_status()).await.unwrap();
    assert_eq!(pins.count, if committed { 2 } else { 1 }, "{point}");
    assert_eq!(status(&records, account, before.id).await, PinStatus::Pinning, "{point}");
    assert_eq!(records.tokens(None).await.unwrap().len(), 1, "{point}");
    assert!(records.authenticate(&secret).await.unwrap().is_some(), "{point}");
    assert_sound(&records).await;
    records.close().await;
}

async fn die_in_migration() {
    let world = World::new();
    fail::cfg("migrate.step", "panic").unwrap();
    let (clock, entropy) = (world.clock.clone(), std::sync::Arc::clone(&world.entropy));
    let settings = floe_records::Settings::at(world.path());
    let components = floe_records::Components { clock: std::sync::Arc::new(clock), entropy };
    assert!(tokio::spawn(floe_records::Records::open(settings, components)).await.unwrap_err().is_panic());
    fail::remove("migrate.step");
    let records = world.open().await;
    assert_eq!(records.accounts().await.unwrap().len(), 1);
    assert_sound(&records).await;
}
