//! R01, R10: kill -9 under mixed load, twenty times in CI.
//!
//! The oracle stands outside the process: a journal of what was acknowledged. After each restart every acknowledged
//! pin is there, none that was removed is back, every token lets in and none that was revoked does, and at the end
//! every byte is intact. A request without an answer may have happened or not, but whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
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
    /// Secrets by id of tokens that were made.
    tokens: BTreeMap<i64, String>,
    /// Secrets of tokens that were revoked.
    revoked: Vec<String>,
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
        Command::new("kill").args(["-KILL", &floe.pid().to_string()]).status()?;
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
    ensure!(!journal.tokens.is_empty() && !journal.revoked.is_empty(), "no token was made or revoked");
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
        "{} pins live, {} gone, {} unknown; {} tokens, {} revoked; {read} blocks read back meanwhile",
        journal.live.len(),
        journal.gone.len(),
        journal.unknown.len(),
        journal.tokens.len(),
        journal.revoked.len()
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
    for (id, secret) in &journal.tokens {
        let (code, _) = floe.call_as(secret, "GET", "/pins", None).await?;
        ensure!(code == 200, "the acknowledged token {id} is lost: {code}");
    }
    for secret in &journal.revoked {
        let (code, _) = floe.call_as(secret, "GET", "/pins", None).await?;
        ensure!(code == 401, "a revoked token is let in: {code}");
    }
    Ok(())
}

/// Makes a token, or revokes one. `None` where the process is gone.
async fn change_tokens(floe: &Floe, journal: &Mutex<Journal>, revokes: bool) -> Option<()> {
    let admin = floe.admin_token();
    // Out of the journal for as long as nobody can say whether it still holds.
    let victim = if revokes { journal.lock().await.tokens.pop_first() } else { None };
    if let Some((id, secret)) = victim {
        let (code, _) = floe.call_as(&admin, "DELETE", &format!("/admin/v1/tokens/{id}"), None).await.ok()?;
        if code == 204 {
            journal.lock().await.revoked.push(secret);
        }
        return Some(());
    }
    let body = json!({"account": "default", "scopes": ["pins:read"]});
    let (code, made) = floe.call_as(&admin, "POST", "/admin/v1/tokens", Some(body)).await.ok()?;
    if let (201, Some(id), Some(secret)) = (code, made["token"]["id"].as_i64(), made["secret"].as_str()) {
        journal.lock().await.tokens.insert(id, secret.to_owned());
    }
    Some(())
}

/// Pins, replaces and removes, makes and revokes tokens until the process is gone; [`read_back`] has it serve meanwhile.
async fn mixed_load(
    floe: Arc<Floe>,
    journal: Arc<Mutex<Journal>>,
    roots: Vec<String>,
    origins: Vec<String>,
    mut rng: StdRng,
) {
    let begun = now();
    while begun.elapsed() < Duration::from_secs(5) {
        // As many are revoked as are made, or an account would have all it may have soon.
        let tokens = rng.random_range(0..8);
        if tokens < 2 && change_tokens(&floe, &journal, tokens == 0).await.is_none() {
            return;
        }
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
        let Ok((code, answer)) = floe.call(what, &path, body).await else {
            return;
        };
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
            let Ok((200, pin)) = floe.call("GET", &format!("/pins/{id}"), None).await else {
                continue;
            };
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

/// Where the process is made to die, each a durable step.
const POINTS: [&str; 12] = [
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

/// Each durable step in turn: the process dies at that point, and what was acknowledged is there again.
/// Needs the crash points compiled in (`--features floe/failpoints`).
///
/// The story: this armed a point, worked for a while, and never looked whether the process had died there. It need not
/// have: a panic of a task is caught, and a frontier is saved every 256 MiB, which no pin of this suite has.
#[tokio::test(flavor = "multi_thread")]
async fn r01_a_crash_at_each_named_point() -> Result<()> {
    if !cfg!(feature = "failpoints") {
        floe_tests::skipped("r01_a_crash_at_each_named_point", "built without the feature failpoints");
        return Ok(());
    }
    let seeder = Seeder::start().await?;
    let blocks = dag::over(&noise(1 << 20, 5), 16 << 10);
    let root = blocks.last().context("a root")?.cid().to_string();
    seeder.add(&blocks);
    for point in POINTS {
        let dir = tempfile::tempdir()?;
        let home = dir.path().join("floe");
        let calm = Floe::start(&home, &Options::default())?;
        let kept = calm.pin(&root, &seeder.addresses()).await?;
        calm.wait_for(&kept, "pinned", Duration::from_secs(60)).await?;
        ensure!(calm.stop()? == 0);
        let mut journal = Journal::default();
        journal.live.insert(kept, root.clone());

        let after = format!("after {point}");
        die_at(point, &home, &seeder, &mut journal).await.with_context(|| format!("at {point}"))?;

        let floe = Floe::start(&home, &Options::default()).with_context(|| after.clone())?;
        compare(&floe, &journal).await.with_context(|| after.clone())?;
        let reader = Seeder::start().await?;
        for (id, cid) in journal.live.iter().filter(|(id, _)| !journal.unknown.contains(*id)) {
            floe.wait_for(id, "pinned", Duration::from_secs(30)).await.with_context(|| after.clone())?;
            let cids = seeder.cids_under(cid);
            let got = reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(30)).await;
            ensure!(got.is_ok_and(|g| g.len() == cids.len()), "{after}: blocks of {cid} are missing");
        }
        ensure!(floe.stop()? == 0, "{after}");
        let verify = run(&["verify", "--offline", "--data-dir", &home.display().to_string()], &[])?;
        ensure!(verify.status.code() == Some(0), "{after}: {}", String::from_utf8_lossy(&verify.stdout));
    }
    Ok(())
}

/// Where making a data directory is cut off, and how often each is passed at most.
const MAKING: [(&str, usize); 3] =
    [("datadir.before_rename", 9), ("init.token", 2), ("datadir.initialised", 1)];

/// `floe init` that dies anywhere is finished by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn r01_a_crash_while_a_directory_is_made_is_mended_by_the_next_start() -> Result<()> {
    if !cfg!(feature = "failpoints") {
        let suite = "r01_a_crash_while_a_directory_is_made_is_mended_by_the_next_start";
        floe_tests::skipped(suite, "built without the feature failpoints");
        return Ok(());
    }
    let mut deaths = 0;
    for (point, most) in MAKING {
        for nth in 0..=most {
            let dir = tempfile::tempdir()?;
            let home = dir.path().join("floe");
            let args = ["init", "--data-dir", &home.display().to_string()].map(str::to_owned);
            let args = args.each_ref().map(String::as_str);
            let died = run(&args, &[("FAILPOINTS", &format!("{point}={nth}*off->panic"))])?;
            if died.status.success() {
                ensure!(nth > 0, "{point} is never passed");
                break;
            }
            ensure!(nth < most, "{point} is passed more often than {most} times");
            let said = String::from_utf8_lossy(&died.stderr).into_owned();
            ensure!(said.contains(&format!("failpoint {point} panic")), "it did not die there: {said}");
            deaths += 1;
            let done = run(&args, &[])?;
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            ensure!(done.status.success(), "after {point}, time {nth}: {said}");
            for file in ["config.toml", "identity.key", "admin.token", "pin.token", "pull.key", "rows.sqlite"]
            {
                ensure!(home.join(file).exists(), "after {point}, time {nth}: {file} is missing");
            }
            ensure!(std::fs::read_to_string(home.join("version"))? == "1\n", "after {point}, time {nth}");
            let floe = Floe::start(&home, &Options::default())?;
            floe.pin("bafkqaaa", &[]).await?;
            ensure!(floe.stop()? == 0, "after {point}, time {nth}");
        }
    }
    ensure!(deaths >= 9, "only {deaths} deaths");
    Ok(())
}

/// Runs a Floe until it dies the third time that it comes by `point`, and makes sure that it was there that it died.
async fn die_at(point: &str, home: &Path, seeder: &Seeder, journal: &mut Journal) -> Result<()> {
    let armed = format!("pin.frontier.always=return;{point}=2*off->panic");
    let env = vec![("FAILPOINTS".to_owned(), armed)];
    // One that dies before it is ready was there three times already.
    if let Ok(mut floe) = Floe::start(home, &Options { env, ..Options::default() }) {
        let begun = now();
        let ended = loop {
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "it lives: the point is not passed three times"
            );
            // An error is what a death looks like from outside.
            let round = pin_and_remove(&floe, seeder, journal).await;
            for _ in 0..if round.is_err() { 100 } else { 1 } {
                if floe.ended()?.is_some() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            match (floe.ended()?, round) {
                (Some(status), _) => break status,
                (None, Err(error)) => return Err(error.context("it lives, and")),
                (None, Ok(())) => {}
            }
        };
        ensure!(ended.code().is_none(), "it ended by itself, with {ended}");
    }
    let log = std::fs::read_to_string(home.with_extension("log"))?;
    ensure!(log.contains(&format!("failpoint {point} panic")), "it did not die there");
    Ok(())
}

/// A DAG is pinned, removed and collected. Its blocks are too small to be punched out of a pack, so its packs are
/// compacted, which writes the index; and they are most of what the pack has.
async fn pin_and_remove(floe: &Floe, seeder: &Seeder, journal: &mut Journal) -> Result<()> {
    let blocks = dag::over(&noise(4 << 20, 100 + journal.gone.len() as u64), 16 << 10);
    let root = blocks.last().context("a root")?.cid().to_string();
    seeder.add(&blocks);
    let id = floe.pin(&root, &seeder.addresses()).await?;
    journal.live.insert(id.clone(), root);
    floe.wait_for(&id, "pinned", Duration::from_secs(30)).await?;
    journal.unknown.insert(id.clone());
    let (code, body) = floe.call("DELETE", &format!("/pins/{id}"), None).await?;
    ensure!(code == 202, "DELETE answered {code}: {body}");
    journal.unknown.remove(&id);
    journal.live.remove(&id);
    journal.gone.insert(id);
    let gc = run(&["gc", "--data-dir", &floe.dir.display().to_string()], &[])?;
    ensure!(gc.status.success(), "gc: {}", String::from_utf8_lossy(&gc.stderr));
    Ok(())
}

/// From some commit on SQLite cannot sync its log. Nothing in the process reaches those syncs: strace makes them fail.
#[tokio::test(flavor = "multi_thread")]
async fn r03_rows_that_cannot_be_synced_end_the_process_and_nothing_acknowledged_is_lost() -> Result<()> {
    let traces =
        Command::new("strace").args(["-D", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"]).output();
    if !traces.is_ok_and(|done| done.status.success()) {
        floe_tests::skipped(
            "r03_rows_that_cannot_be_synced_end_the_process_and_nothing_acknowledged_is_lost",
            "strace is missing or may not trace",
        );
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    ensure!(Floe::start(&home, &Options::default())?.stop()? == 0);
    // Only those of the log of the rows, and not the first ones, so that it starts.
    let log = home.join("rows.sqlite-wal").display().to_string();
    let syncs = ["-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when=20+"];
    let tracer = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-P", &log];
    let under = [&tracer[..], &syncs[..]].concat().into_iter().map(str::to_owned).collect();
    let mut floe = Floe::start(&home, &Options { under, ..Options::default() })?;
    let mut journal = Journal::default();
    let begun = now();
    let ended = loop {
        ensure!(begun.elapsed() < Duration::from_secs(60), "it lives, and its syncs fail");
        let Ok(id) = floe.pin("bafkqabtimvwgy3yk", &[]).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match floe.ended()? {
                Some(status) => break status,
                None => continue,
            }
        };
        journal.live.insert(id.clone(), "bafkqabtimvwgy3yk".to_owned());
        if journal.live.len().is_multiple_of(2) {
            journal.unknown.insert(id.clone());
            if matches!(floe.call("DELETE", &format!("/pins/{id}"), None).await, Ok((202, _))) {
                journal.unknown.remove(&id);
                journal.live.remove(&id);
                journal.gone.insert(id);
            }
        }
    };
    ensure!(ended.code() == Some(12), "it ended with {ended}");
    ensure!(floe.log().contains("rows: the database could not be synced"), "the log names something else");
    ensure!(!journal.live.is_empty() && !journal.gone.is_empty(), "nothing was acknowledged before");
    drop(floe);

    let floe = Floe::start(&home, &Options::default())?;
    compare(&floe, &journal).await?;
    ensure!(floe.stop()? == 0);
    Ok(())
}
