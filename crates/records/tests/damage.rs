//! R04: SQLite's pages carry no checksum, so a bit that turns on the disk is read as if it had been written.
//!
//! What is compared is what clients were told of pins and tokens. Not in it, because their rows carry no digest: the
//! name and the bounds of an account, what `info` says of a fetch (attempts, the last error), and queued jobs.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use floe_core::Cid;
use floe_records::{Components, Error, Records, Scope, Settings};
use sqlx::Connection as _;
use support::*;

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
    let mut found = 0;
    for nth in 0..FLIPS {
        let digest = blake3::hash(&nth.to_le_bytes());
        let at = u64::from_le_bytes(digest.as_bytes()[..8].try_into().unwrap()) % (clean.len() as u64 * 8);
        let (byte, bit) = (at as usize / 8, at % 8);
        let mut turned = clean.clone();
        turned[byte] ^= 1 << bit;
        found += u64::from(is_found(&world, &turned, &secret, &before, &roots, (byte, bit)).await);
    }
    println!("{found} of {FLIPS} turned bits were found, in a file of {} bytes", clean.len());
    // About a quarter: the others are in empty space, or in what nobody is told of.
    assert!(found > FLIPS / 10, "{found}: this shows little");
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

/// What clients were told: pins without their progress, and tokens.
async fn told(records: &Records, secret: &str) -> Result<String, Error> {
    let mut told = String::new();
    for id in [1, 2] {
        let page = records.pins(floe_core::AccountId(id), any_status()).await?;
        told += &format!("{} pins\n", page.count);
        for mut pin in page.pins {
            pin.progress = floe_records::DagProgress::default();
            told += &format!("{pin:?}\n");
        }
    }
    let who = records.authenticate(secret).await?.map(|who| (who.account.id, who.scopes, who.token));
    Ok(format!("{told}{who:?}\n{:?}", records.tokens(None).await?))
}

/// Whether open, the check of a running node, `floe verify --offline` or a read finds it. What is not found must not
/// show, and whatever was found, nothing is fetched that nobody asked for.
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
    let verified = records.verify().await;
    let found = verified.is_ok_and(|report| report.findings.is_empty()) && after.is_ok();
    let found = !found;
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
