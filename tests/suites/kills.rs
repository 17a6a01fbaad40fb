//! R01, R10: kill -9 under mixed load, twenty times in CI.
//!
//! The oracle stands outside the process: a journal of what was acknowledged. After each restart every acknowledged
//! pin is there, none that was removed is back, and at the end every byte is intact. A request without an answer
//! may have happened or not, but whole.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::seeder::Seeder;
use floe_tests::{dag, noise};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::sync::Mutex;

/// What clients were told.
#[derive(Default)]
struct Journal {
    /// Request id to CID: acknowledged and not removed.
    live: BTreeMap<String, String>,
    /// Acknowledged removals and replaced ids.
    gone: BTreeSet<String>,
    /// Asked to be removed or replaced, no answer seen.
    unknown: BTreeSet<String>,
}

fn kills() -> usize {
    std::env::var("FLOE_TEST_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(20)
}

#[tokio::test(flavor = "multi_thread")]
async fn r01_nothing_acknowledged_is_lost_to_kill_9() -> Result<()> {
    let seed = std::env::var("FLOE_TEST_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(20_261_121u64);
    println!("seed={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let seeder = Arc::new(Seeder::start().await?);
    // A few DAGs that share leaves, so that removing one must not hurt another.
    let mut roots = Vec::new();
    let common = noise(1 << 20, 77);
    for i in 0..12u64 {
        let data = [common.clone(), noise(300_000 + 50_000 * i as usize, i)].concat();
        let blocks = dag::over(&data, 128 << 10);
        roots.push(blocks.last().context("a root")?.cid().to_string());
        seeder.add(&blocks);
    }
    let journal = Arc::new(Mutex::new(Journal::default()));
    let read = Arc::new(AtomicUsize::new(0));

    for round in 0..kills() {
        let floe = Arc::new(Floe::start(&home, &Options::default())?);
        ensure!(
            floe.ready_after < Duration::from_secs(5),
            "round {round}: ready after {:?}",
            floe.ready_after
        );
        compare(&floe, &*journal.lock().await)
            .await
            .with_context(|| format!("round {round}, seed {seed}"))?;
        let load: Vec<_> = (0..4)
            .map(|_| {
                let (floe, journal, roots, seeder) =
                    (floe.clone(), journal.clone(), roots.clone(), seeder.clone());
                let rng = StdRng::seed_from_u64(rng.random());
                tokio::spawn(mixed_load(floe, journal, roots, seeder.addresses(), rng))
            })
            .collect();
        let reading = tokio::spawn(read_back(floe.clone(), journal.clone(), seeder.clone(), read.clone()));
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..1_200))).await;
        std::process::Command::new("kill").args(["-KILL", &floe.pid().to_string()]).status()?;
        for task in load {
            task.await?;
        }
        if reading.is_finished() {
            reading.await??;
        } else {
            reading.abort();
        }
    }
    let read = read.load(Ordering::Relaxed);
    ensure!(read > 0, "nothing was read back while the load went on");

    let floe = Floe::start(&home, &Options::default())?;
    let journal = journal.lock().await;
    compare(&floe, &journal).await?;
    ensure!(journal.live.len() + journal.gone.len() > kills(), "the load did next to nothing");
    // What was asked to be removed without an answer may be gone: then it is none of these.
    let known = || journal.live.iter().filter(|(id, _)| !journal.unknown.contains(*id));
    for (id, _) in known() {
        floe.wait_for(id, "pinned", Duration::from_secs(90)).await?;
    }
    // Bytes, as a peer gets them.
    let reader = Seeder::start().await?;
    for cid in known().map(|(_, cid)| cid).collect::<BTreeSet<_>>() {
        let cids = seeder.cids_under(cid);
        let got = reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(60)).await?;
        ensure!(got.len() == cids.len(), "{cid}: {} of {} blocks", got.len(), cids.len());
    }
    println!(
        "{} pins live, {} gone, {} unknown; {read} blocks read back meanwhile",
        journal.live.len(),
        journal.gone.len(),
        journal.unknown.len()
    );
    ensure!(floe.stop()? == 0);
    let verify = run(&["verify", "--offline", "--data-dir", &home.display().to_string()], &[])?;
    ensure!(verify.status.code() == Some(0), "verify --offline: {}", String::from_utf8_lossy(&verify.stdout));
    Ok(())
}

async fn compare(floe: &Floe, journal: &Journal) -> Result<()> {
    for (id, cid) in &journal.live {
        if journal.unknown.contains(id) {
            continue;
        }
        let (code, body) = floe.call("GET", &format!("/pins/{id}"), None).await?;
        ensure!(code == 200, "the acknowledged pin {id} is lost: {code}");
        ensure!(
            body["pin"]["cid"] == cid.as_str() && body["status"] != "failed",
            "the pin {id} changed: {body}"
        );
    }
    for id in &journal.gone {
        let (code, _) = floe.call("GET", &format!("/pins/{id}"), None).await?;
        ensure!(code == 404, "the removed pin {id} is back: {code}");
    }
    Ok(())
}

/// Pins, replaces and removes until the process is gone; [`read_back`] has it serve meanwhile.
async fn mixed_load(
    floe: Arc<Floe>,
    journal: Arc<Mutex<Journal>>,
    roots: Vec<String>,
    origins: Vec<String>,
    mut rng: StdRng,
) {
    let begun = now();
    while begun.elapsed() < Duration::from_secs(5) {
        let cid = roots[rng.random_range(0..roots.len())].clone();
        let pin = json!({"cid": cid, "origins": origins});
        let victim = take(&journal, &mut rng).await;
        let (what, path, body) = match (rng.random_range(0..10), &victim) {
            (0..3, Some(id)) => ("DELETE", format!("/pins/{id}"), None),
            (3..5, Some(id)) => ("POST", format!("/pins/{id}"), Some(pin)),
            _ => ("POST", "/pins".to_owned(), Some(pin)),
        };
        let touches = path != "/pins";
        if let (true, Some(id)) = (touches, &victim) {
            journal.lock().await.unknown.insert(id.clone());
        }
        let Ok((code, answer)) = floe.call(what, &path, body).await else { return };
        let mut journal = journal.lock().await;
        if code != 202 {
            continue;
        }
        if let (true, Some(id)) = (touches, &victim) {
            journal.unknown.remove(id);
            journal.live.remove(id);
            journal.gone.insert(id.clone());
        }
        if let Some(id) = answer["requestid"].as_str() {
            journal.live.insert(id.to_owned(), cid);
        }
    }
}

/// A peer that reads what is pinned while it is pinned, replaced and removed, until it is stopped. Ends by itself
/// only where it cannot begin.
async fn read_back(
    floe: Arc<Floe>,
    journal: Arc<Mutex<Journal>>,
    seeder: Arc<Seeder>,
    read: Arc<AtomicUsize>,
) -> Result<()> {
    let reader = Seeder::start().await?;
    loop {
        let live: Vec<(String, String)> = journal.lock().await.live.clone().into_iter().collect();
        for (id, cid) in live {
            let Ok((200, pin)) = floe.call("GET", &format!("/pins/{id}"), None).await else { continue };
            if pin["status"] != "pinned" {
                continue;
            }
            // It may be removed meanwhile, or the process may end: what counts is what came, and that each block
            // is what it says is checked where it arrives.
            let cids = seeder.cids_under(&cid);
            if let Ok(got) = reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(2)).await {
                read.fetch_add(got.len(), Ordering::Relaxed);
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A live pin that nobody else is changing.
async fn take(journal: &Mutex<Journal>, rng: &mut StdRng) -> Option<String> {
    let journal = journal.lock().await;
    let free: Vec<&String> = journal.live.keys().filter(|id| !journal.unknown.contains(*id)).collect();
    (!free.is_empty()).then(|| free[rng.random_range(0..free.len())].clone())
}

/// Each durable step in turn: the process dies at that point, and what was acknowledged is there again.
/// Needs the crash points compiled in (`--features floe/failpoints`).
#[tokio::test(flavor = "multi_thread")]
async fn r01_a_crash_at_each_named_point() -> Result<()> {
    if !cfg!(feature = "failpoints") {
        floe_tests::skipped("r01_a_crash_at_each_named_point", "built without the feature failpoints");
        return Ok(());
    }
    let points = [
        "pack.append",
        "pack.synced",
        "index.apply",
        "rows.before_commit",
        "rows.after_commit",
        "pin.queued",
        "pin.frontier",
        "pin.refs",
        "pin.settled",
        "unpin.rows",
        "gc.claimed",
        "gc.tombstone",
    ];
    let seeder = Seeder::start().await?;
    let blocks = dag::over(&noise(3 << 20, 5), 128 << 10);
    let root = blocks.last().context("a root")?.cid().to_string();
    seeder.add(&blocks);
    for point in points {
        let dir = tempfile::tempdir()?;
        let home = dir.path().join("floe");
        let calm = Floe::start(&home, &Options::default())?;
        let kept = calm.pin(&root, &seeder.addresses()).await?;
        calm.wait_for(&kept, "pinned", Duration::from_secs(60)).await?;
        ensure!(calm.stop()? == 0);

        // The third time this point is passed ends the process; a pin and a removal pass it often enough.
        let env = vec![("FAILPOINTS".to_owned(), format!("{point}=2*off->panic"))];
        if let Ok(floe) = Floe::start(&home, &Options { env, ..Options::default() }) {
            let other = dag::over(&noise(2 << 20, 6), 128 << 10);
            let other_root = other.last().context("a root")?.cid().to_string();
            seeder.add(&other);
            if let Ok(id) = floe.pin(&other_root, &seeder.addresses()).await {
                let _ = floe.wait_for(&id, "pinned", Duration::from_secs(5)).await;
                let _ = floe.call("DELETE", &format!("/pins/{id}"), None).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            floe.kill();
        }

        let floe = Floe::start(&home, &Options::default()).with_context(|| format!("after {point}"))?;
        let (code, body) = floe.call("GET", &format!("/pins/{kept}"), None).await?;
        ensure!(code == 200 && body["status"] == "pinned", "after {point}: {code} {body}");
        let reader = Seeder::start().await?;
        let cids = seeder.cids_under(&root);
        let got = reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(30)).await;
        ensure!(got.is_ok_and(|g| g.len() == cids.len()), "after {point}: blocks are missing");
        ensure!(floe.stop()? == 0, "after {point}");
        let verify = run(&["verify", "--offline", "--data-dir", &home.display().to_string()], &[])?;
        ensure!(
            verify.status.code() == Some(0),
            "after {point}: {}",
            String::from_utf8_lossy(&verify.stdout)
        );
    }
    Ok(())
}
