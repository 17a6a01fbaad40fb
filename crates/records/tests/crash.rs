//! The writer dies at each named point; what was acknowledged is there after reopening, and what was not is
//! there as a whole or not at all. One test, because failpoints are the process's.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use floe_core::PinStatus;
use floe_records::{DagOutcome, Error, Scope};
use support::*;

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
    die_in_migration().await;
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
