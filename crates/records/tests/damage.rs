//! R04: SQLite's pages carry no checksum, so a bit that turns on the disk is read as if it had been written.
//!
//! What is compared is what clients were told of pins, tokens and accounts, what complete DAGs hold, and what is still to
//! be done. Not in it: what `info` says of a fetch that goes on (attempts, the last error), which the next attempt
//! writes anew, and when it was tried.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use floe_core::{Cid, PinStatus};
use floe_records::{Components, Error, Records, RowsReport, Scope, Settings};
use sqlx::Connection as _;
use support::*;

/// Turned anywhere in the file; as many again in the pages that hold something.
const FLIPS: u64 = 200;

/// One turned bit in the root of a DAG that waited made it search for a CID that nobody has, and `floe verify
/// --offline` said that all was well.
#[tokio::test(flavor = "multi_thread")]
async fn r04_a_turned_bit_is_found_or_changes_nothing_that_was_told() {
    let world = World::new();
    let records = world.open().await;
    let (secret, roots) = fill(&records, &world).await;
    let before = told(&records, &secret).await.unwrap();
    records.close().await;
    // The readers close last, and they may not move the log into the file.
    let url = format!("sqlite://{}", world.path().display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let clean = std::fs::read(world.path()).unwrap();
    assert!(!world.path().with_extension("sqlite-wal").exists(), "all is in the one file");
    // Most of the file is empty, so that flips anywhere in it meet little.
    let used: Vec<usize> = (0..clean.len()).filter(|at| clean[*at] != 0).collect();
    let mut found = [0; 2];
    for nth in 0..2 * FLIPS {
        let digest = blake3::hash(&nth.to_le_bytes());
        let random = u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap()) as usize;
        let (byte, bit) = match nth % 2 {
            0 => (random / 8 % clean.len(), random % 8),
            _ => (used[random / 8 % used.len()], random % 8),
        };
        let mut turned = clean.clone();
        turned[byte] ^= 1 << bit;
        let place = (byte, bit as u64);
        found[nth as usize % 2] +=
            u64::from(is_found(&world, &turned, &secret, &before, &roots, place).await);
    }
    let [anywhere, used] = found;
    println!(
        "of {FLIPS} turned bits {anywhere} were found, in a file of {} bytes, and of {FLIPS} in what is used {used}",
        clean.len()
    );
    // The others are in empty space, or in what nobody is told of.
    assert!(anywhere > FLIPS / 10 && used > FLIPS / 2, "{found:?}: this shows little");
}

/// Pins in every status, over some accounts; the secret of a token, and the roots that may be fetched.
async fn fill(records: &Records, world: &World) -> (String, BTreeSet<Cid>) {
    let account = default_account(records).await;
    let other = records.create_account("other", Some(1 << 30), None).await.unwrap().id;
    for n in 0..60 {
        add_one(records, if n % 3 == 0 { other } else { account }, named(n, &format!("the pin {n}"))).await;
    }
    world.clock.advance(Duration::from_secs(1));
    for (n, dag) in records.claim_dags(40, 40).await.unwrap().into_iter().enumerate() {
        match n % 4 {
            0 => complete(records, &dag, 100).await,
            1 => {
                let failed = floe_records::DagOutcome::Failed { reason: "no codec".to_owned() };
                records.finish_dag(dag.dag, failed).await.unwrap();
            }
            _ => {
                let next = floe_core::Clock::now(&world.clock);
                records.finish_dag(dag.dag, parked(next, "nobody has it")).await.unwrap();
            }
        }
    }
    let (_, secret) = records.create_token("other", &[Scope::PinsRead], None).await.unwrap();
    (secret, (0..60).map(root).collect())
}

/// What clients were told: pins, what they hold where it is all here, tokens and accounts; and what is to be done.
async fn told(records: &Records, secret: &str) -> Result<String, Error> {
    let mut told = String::new();
    for id in [1, 2] {
        let page = records.pins(floe_core::AccountId(id), any_status()).await?;
        told += &format!("{} pins\n", page.count);
        for mut pin in page.pins {
            let held = (pin.status == PinStatus::Pinned).then_some((pin.progress.blocks, pin.progress.bytes));
            pin.progress = floe_records::DagProgress::default();
            told += &format!("{pin:?} {held:?}\n");
        }
    }
    let who = records.authenticate(secret).await?;
    let (tokens, accounts) = (records.tokens(None).await?, records.accounts().await?);
    Ok(format!("{told}{who:?}\n{tokens:?}\n{accounts:?}\n{:?}", records.jobs(1_000).await?))
}

/// Whether open, the check of a running node, `floe verify --offline` or a read finds it. What is not found must not
/// show, and whatever was found, nothing is fetched that nobody asked for. A running node finds what a stopped one does,
/// but for what is wrong with the list of free pages.
async fn is_found(
    world: &World,
    file: &[u8],
    secret: &str,
    before: &str,
    roots: &BTreeSet<Cid>,
    place: (usize, u64),
) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pins-1.sqlite");
    std::fs::write(&path, file).unwrap();
    let entropy = std::sync::Arc::<Counted>::clone(&world.entropy);
    let components = Components { clock: std::sync::Arc::new(world.clock.clone()), entropy };
    let settings = Settings { may_make: false, ..Settings::at(path) };
    let Ok(records) = Records::open(settings, components).await else { return true };
    let after = told(&records, secret).await;
    let is_clean = |report: Result<RowsReport, Error>| report.is_ok_and(|report| report.findings.is_empty());
    let (stopped, running) = (records.verify().await, records.verify_online(false).await);
    let of_free_pages = |report: &RowsReport| report.findings.iter().all(|found| found.contains("reelist"));
    if !stopped.as_ref().is_ok_and(of_free_pages) {
        assert!(!is_clean(running), "{place:?}: a running node does not find {stopped:?}");
    }
    let found = !is_clean(stopped) || after.is_err();
    if let (false, Ok(after)) = (found, &after) {
        assert_eq!(after, before, "bit {} of byte {} turned, and nobody noticed", place.1, place.0);
    }
    let _ = records.reset_claims().await;
    for dag in records.claim_dags(99, 99).await.unwrap_or_default() {
        assert!(roots.contains(&dag.root), "{} is fetched, which nobody asked for: {place:?}", dag.root);
    }
    records.close().await;
    found
}

/// What is not in the file of the test above, each turned by hand: a column of every kind of row that has a digest.
#[tokio::test]
async fn r04_each_row_with_a_digest_is_checked() {
    for (turn, found) in [
        ("UPDATE accounts SET name = 'othes' WHERE id = 2", "the row of account 2"),
        ("UPDATE accounts SET max_bytes = max_bytes + 64 WHERE id = 2", "the row of account 2"),
        ("UPDATE accounts SET max_pins = 1 WHERE id = 2", "the row of account 2"),
        ("UPDATE accounts SET suspended = 1 WHERE id = 2", "the row of account 2"),
        ("UPDATE accounts SET max_bytes = x'00' WHERE id = 2", "the row of account 2"),
        ("UPDATE accounts SET last_created = last_created - 1 WHERE id = 2", "an account's last pin"),
        (
            "UPDATE accounts SET last_created = last_created + 1073741824 WHERE id = 2",
            "an account's last pin",
        ),
        ("UPDATE dags SET bytes = bytes + 1 WHERE state = 2", "it holds is damaged"),
        ("UPDATE dags SET blocks = blocks + 1 WHERE state = 2", "it holds is damaged"),
        ("UPDATE jobs SET kind = 1 WHERE kind = 0", "job "),
        ("UPDATE sequences SET value = 1 WHERE name = 'account'", "the last number of a sequence"),
    ] {
        let world = World::new();
        let records = world.open().await;
        fill(&records, &world).await;
        let url = format!("sqlite://{}", world.path().display());
        let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(turn).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        for report in [records.verify().await.unwrap(), records.verify_online(false).await.unwrap()] {
            assert!(report.findings.iter().any(|said| said.contains(found)), "{turn}: {:?}", report.findings);
        }
        records.close().await;
    }
}

/// Whoever pins is refused by name where the account's row is damaged; the other accounts go on.
#[tokio::test]
async fn r04_a_damaged_account_is_refused_and_holds_up_no_other() {
    let world = World::new();
    let records = world.open().await;
    let (account, other) =
        (default_account(&records).await, records.create_account("other", Some(9), None).await.unwrap().id);
    let url = format!("sqlite://{}", world.path().display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("UPDATE accounts SET max_bytes = 1073741833 WHERE id = 2").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let refused = records.add_pins(other, vec![spec(1)], false, None).await;
    assert!(matches!(&refused, Err(Error::Damaged(said)) if said.contains("account 2")), "{refused:?}");
    add_one(&records, account, spec(1)).await;
    assert_eq!(records.accounts().await.unwrap().len(), 1, "it is left out of the list");
    assert!(
        matches!(records.suspend_account("other", true).await, Err(Error::Damaged(_))),
        "and not sealed anew"
    );
}

/// What a complete DAG holds is not told where its row is damaged, a pin that joins it is charged what the others were,
/// and who knows what it holds writes it again.
#[tokio::test]
async fn r04_what_a_dag_holds_is_mended_by_who_knows() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let pin = add_one(&records, account, spec(1)).await;
    let dag = claim_one(&records).await;
    complete(&records, &dag, 100).await;
    let url = format!("sqlite://{}", world.path().display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::query("UPDATE dags SET bytes = bytes + 1048576").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let told = records.pin(account, pin.id).await.unwrap();
    assert_eq!((told.status, told.progress.bytes), (PinStatus::Pinned, 0));
    assert!(told.progress.last_error.is_some_and(|said| said.contains("damaged")));
    world.clock.advance(Duration::from_secs(1));
    let late = add_one(&records, account, spec(1)).await;
    barrier(&records).await;
    assert_eq!(status(&records, account, late.id).await, PinStatus::Pinned);
    assert_eq!(records.accounts().await.unwrap()[0].used_bytes, 200);
    assert_eq!(records.verify_online(false).await.unwrap().sizes, [dag.dag]);
    assert!(records.mend_dag(dag.dag, 1, 100).await.unwrap());
    assert_eq!(records.pin(account, pin.id).await.unwrap().progress.bytes, 100);
    assert_sound(&records).await;
}

/// A bit that turned in the answer kept for an Idempotency-Key told a client that another pin was made than the one that
/// was; one in the hash of the body refused the retry as another request.
#[tokio::test]
async fn r04_a_damaged_answer_of_a_key_is_not_told() {
    for (turn, named) in [
        ("UPDATE idempotency_keys SET answer = REPLACE(answer, '0', '1')", "the answer"),
        ("UPDATE idempotency_keys SET body_hash = x'00'", "the hash"),
        ("UPDATE idempotency_keys SET expires = expires + 1", "the moment"),
    ] {
        let world = World::new();
        let records = world.open().await;
        let account = default_account(&records).await;
        let add = async |key: &str| {
            let key = floe_records::IdempotencyKey { key: key.to_owned(), body_hash: [1; 32] };
            records.add_pins(account, vec![spec(1)], false, Some(key)).await
        };
        let first = add("one").await.unwrap();
        assert_eq!(add("one").await.unwrap()[0].id, first[0].id);
        let url = format!("sqlite://{}", world.path().display());
        let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
        sqlx::query(turn).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
        let refused = add("one").await;
        let said = matches!(&refused, Err(Error::Damaged(said)) if said.contains("\"one\""));
        assert!(said, "{named}: {refused:?}");
        add("two").await.unwrap();
        world.clock.advance(Duration::from_secs(86_401));
        assert_ne!(add("one").await.unwrap()[0].id, first[0].id, "{named}: it is forgotten by then");
        assert_sound(&records).await;
    }
}

/// A running node checked the pages of each table that is named in `sqlite_schema`, and those of `sqlite_schema` never.
#[tokio::test]
async fn r04_the_table_of_the_tables_is_checked_too() {
    /// Behind the header of the file, in that of the first page: its bytes that are too few to use.
    const FRAGMENTS: usize = 100 + 7;
    let world = World::new();
    world.open().await.close().await;
    let url = format!("sqlite://{}", world.path().display());
    let mut conn = sqlx::SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
    let mut file = std::fs::read(world.path()).unwrap();
    file[FRAGMENTS] ^= 1;
    std::fs::write(world.path(), file).unwrap();
    let records = world.open().await;
    for report in [records.verify().await.unwrap(), records.verify_online(false).await.unwrap()] {
        assert!(report.findings.iter().any(|said| said.contains("page 1")), "{:?}", report.findings);
    }
    records.close().await;
}
