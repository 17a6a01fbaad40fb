//! Limits just below, at and just above their value. What would take minutes to bring about is written into the tables.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::time::Duration;

use floe_core::{PinStatus, Timestamp};
use floe_records::limits::{CIDS_PER_FILTER, KEY_BYTES, PAGE};
use floe_records::{DagOutcome, Error, GiveUp, IdempotencyKey, Parked, PinFilter, PinSpec, Records};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use support::*;

async fn connect(world: &World) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", world.path().display())).await.unwrap()
}

async fn raw(world: &World, sql: &str) {
    let mut conn = connect(world).await;
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

/// DAGs that wait and that no pin names, numbered from `first`; `more` is said for each number `n`.
fn dags(first: usize, count: usize, next_at: &str, more: &[&str]) -> String {
    let numbers =
        format!("WITH RECURSIVE n (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM n LIMIT {count}) ");
    // The bytes of a raw CID: its digest is the number in digits.
    let root = "CAST(char(1) || 'U' || char(18) || ' ' || printf('%032d', n) AS BLOB)";
    let id = "CAST(printf('%016d', n) AS BLOB)";
    let dags = format!(
        "INSERT INTO dags {numbers} SELECT {id}, {root}, 0, 1, NULL, 0, 0, 0, {next_at}, 0, NULL, 0, 0, 0, NULL, NULL FROM n;"
    );
    let more = more.iter().map(|insert| {
        let (into, select) = insert.split_once(" SELECT ").unwrap();
        format!("{into} {numbers} SELECT {};", select.replace("ID", id))
    });
    std::iter::once(dags).chain(more).collect()
}

#[tokio::test]
async fn a_place_in_the_queue_is_counted_up_to_a_thousand() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    for from in [0, 1_000] {
        let specs = (from..1_003.min(from + 1_000)).map(spec).collect();
        records.add_pins(account, specs, false, None).await.unwrap();
        world.clock.advance(Duration::from_secs(10));
    }
    let mut places = Vec::new();
    for (before, after) in [(Some(START + 5_000), None), (None, Some(START + 5_000))] {
        let at = floe_core::Timestamp::from_millis;
        let filter = PinFilter { before: before.map(at), after: after.map(at), ..any_status() };
        for row in records.pins(account, filter).await.unwrap().pins {
            places.push(records.pin(account, row.id).await.unwrap().progress.queue_position.unwrap());
        }
    }
    places.sort_unstable();
    assert_eq!(places, (0..1_003).map(|before: u64| before.min(1_000)).collect::<Vec<_>>());
}

#[tokio::test]
async fn origins_of_a_fetch_at_the_boundary() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    for origins in [99, 100, 101] {
        let named = (0..origins).map(|n| format!("/ip4/1.2.3.4/tcp/{n}")).collect();
        add_one(&records, account, PinSpec { origins: named, ..spec(origins) }).await;
        let told = &claim_one(&records).await.origins[0].addresses;
        assert_eq!(told.len(), origins.min(100) as usize);
    }
}

#[tokio::test]
async fn accounts_of_a_claim_at_the_boundary() {
    for accounts in [999, 1_000, 1_001] {
        let world = World::new();
        let records = world.open().await;
        raw(&world, &dags(1, accounts, "NULL", &["INSERT INTO waits SELECT n, ID, 0, 0 FROM n"])).await;
        let first = records.claim_dags(5_000, 1).await.unwrap();
        let second = records.claim_dags(5_000, 1).await.unwrap();
        assert_eq!(first.len(), accounts.min(1_000));
        assert_eq!(second.len(), accounts - first.len(), "the next claim goes on with the others");
    }
}

#[tokio::test]
async fn dags_woken_at_once_at_the_boundary() {
    let world = World::new();
    let records = world.open().await;
    for (nth, parked) in [9_999, 10_000, 10_001].into_iter().enumerate() {
        let peers = format!("INSERT INTO origin_peers SELECT 'peer {nth}', ID FROM n");
        raw(&world, &dags(1 + nth * 20_000, parked, "5", &[&peers])).await;
        let woken = records.wake(Some(&format!("peer {nth}")), None).await.unwrap();
        assert_eq!(woken, parked.min(10_000) as u64);
    }
}

#[tokio::test]
async fn findings_of_a_verification_at_the_boundary() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    records.add_pins(account, (0..101).map(spec).collect(), false, None).await.unwrap();
    for damaged in [99, 100, 101] {
        let sql = format!(
            "UPDATE pins SET reason = 'rot' WHERE id IN (SELECT id FROM pins ORDER BY id LIMIT {damaged})"
        );
        raw(&world, &sql).await;
        assert_eq!(records.verify().await.unwrap().findings.len(), damaged.min(100));
    }
}

#[tokio::test]
async fn filters_and_pages_at_the_boundary() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    for cids in [CIDS_PER_FILTER - 1, CIDS_PER_FILTER, CIDS_PER_FILTER + 1] {
        let filter = PinFilter { cids: (0..cids as u32).map(root).collect(), ..any_status() };
        let taken = records.pins(account, filter).await;
        assert_eq!(matches!(taken, Err(Error::Conflict(_))), cids > CIDS_PER_FILTER, "{cids}: {taken:?}");
    }
    for from in [0, 1_000] {
        records
            .add_pins(account, (from..(from + 1_000).min(1_001)).map(spec).collect(), false, None)
            .await
            .unwrap();
        world.clock.advance(Duration::from_secs(10));
    }
    for limit in [PAGE - 1, PAGE, PAGE + 1] {
        let page = records.pins(account, PinFilter { limit, ..any_status() }).await.unwrap();
        assert_eq!((page.count, page.pins.len()), (1_001, limit.min(PAGE) as usize));
    }
}

async fn add_under(records: &Records, key: &str) -> Result<(), Error> {
    let account = default_account(records).await;
    let key = IdempotencyKey { key: key.to_owned(), body_hash: [1; 32] };
    records.add_pins(account, vec![spec(1)], false, Some(key)).await.map(drop)
}

#[tokio::test]
async fn t46_keys_at_the_boundary() {
    let world = World::new();
    let records = world.open().await;
    for bytes in [KEY_BYTES - 1, KEY_BYTES, KEY_BYTES + 1] {
        let added = add_under(&records, &"k".repeat(bytes)).await;
        assert_eq!(matches!(added, Err(Error::Conflict(_))), bytes > KEY_BYTES, "{bytes}: {added:?}");
    }
    // Those of a day ago go, sixteen with each request that brings one.
    for expired in [15, 16, 17] {
        let sql = format!(
            "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT {expired}) \
             INSERT INTO idempotency_keys SELECT 1, printf('old {expired} %d', n), x'00', '', 1, NULL FROM n"
        );
        raw(&world, &sql.replace("WITH", "DELETE FROM idempotency_keys; WITH")).await;
        add_under(&records, &format!("{expired}")).await.unwrap();
        let left = "SELECT COUNT(*) FROM idempotency_keys WHERE expires = 1";
        let left: i64 = sqlx::query_scalar(left).fetch_one(&mut connect(&world).await).await.unwrap();
        assert_eq!(left, i64::max(expired - 16, 0), "{expired} had expired");
    }
}

/// All pins of a root were called fetching, settled or failed by one transaction: 50,000 of them held the writer up for
/// seconds, and with it everybody's answers.
#[tokio::test]
async fn pins_that_one_transaction_settles_at_the_boundary() {
    const MOST: u64 = 1_000;
    for pins in [MOST - 1, MOST, MOST + 1, 2 * MOST + 1] {
        for (outcome, status) in [
            (DagOutcome::Complete { blocks: 1, bytes: 10 }, PinStatus::Pinned),
            (DagOutcome::Failed { reason: "no codec".to_owned() }, PinStatus::Failed),
            (out_of_time(), PinStatus::Failed),
        ] {
            let world = World::new();
            let records = world.open().await;
            let account = default_account(&records).await;
            let mut left = pins;
            while left > 0 {
                let some = left.min(500);
                records.add_pins(account, vec![spec(1); some as usize], false, None).await.unwrap();
                world.clock.advance(Duration::from_secs(2));
                left -= some;
            }
            world.clock.advance(Duration::from_secs(3_600));
            let dag = claim_one(&records).await;
            let count = async |status| records.pin_counts().await.unwrap()[&status];
            assert_eq!(count(PinStatus::Pinning).await, pins.min(MOST), "{pins} are claimed");
            records.dag_progress(dag.dag, 1, 10, None).await.unwrap();
            assert_eq!(count(PinStatus::Pinning).await, pins.min(2 * MOST), "{pins} are fetched");
            assert!(!records.finish_dag(dag.dag, outcome.clone()).await.unwrap());
            // What is complete is settled behind the answer, and each write waits for one step of it at most.
            for _ in 0..=pins / MOST {
                barrier(&records).await;
            }
            assert_eq!(count(status).await, pins, "{outcome:?}");
            assert_sound(&records).await;
            records.close().await;
        }
    }
}

/// Parked for the last time: an hour without progress is all that these pins have.
fn out_of_time() -> DagOutcome {
    let hour = Duration::from_secs(3_600);
    DagOutcome::Parked(Parked {
        next_attempt: Timestamp::from_millis(2 * START),
        reason: "nobody has it".to_owned(),
        progressed: false,
        searched: hour,
        give_up: GiveUp { after: hour, reason: "given up".to_owned() },
    })
}
