//! Pinning, measured whole: the built binary against a raw stream of the same bytes, and beside a second Kubo
//! that pins the same DAG from the same Kubo. Ratios, in one run; absolute figures do not hold on shared machines.
//!
//! `tests/bench/run` builds what this needs and starts it. `FLOE_BENCH_RUNS` (3) and `FLOE_BENCH_MIB` (1024) scale it;
//! `FLOE_BENCH_ONLY=raw`, `afar`, `kubo` or `serve` runs one part, `FLOE_BENCH_CASE` the cases whose
//! name contains it.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use floe_tests::floe::{Floe, Options, now};
use floe_tests::kubo::{self, Kubo};
use floe_tests::process::{cpu, memory_mib, reset_peak};
use floe_tests::{noise, seeder};

/// One way of cutting the same bytes into blocks.
struct Case {
    name: &'static str,
    chunker: &'static str,
    leaf_bytes: usize,
    len: usize,
}

/// What one pin took.
#[derive(Debug, Clone, Copy, Default)]
struct Took {
    wall: f64,
    cpu: f64,
    peak_mib: f64,
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn cases() -> Vec<Case> {
    let len = setting("FLOE_BENCH_MIB", 1024) << 20;
    let only = std::env::var("FLOE_BENCH_CASE").unwrap_or_default();
    let mut cases = vec![
        Case { name: "256 KiB leaves", chunker: "size-262144", leaf_bytes: 256 << 10, len },
        Case { name: "1 MiB leaves", chunker: "size-1048576", leaf_bytes: 1 << 20, len },
        Case { name: "100,000 leaves of 256 B", chunker: "size-256", leaf_bytes: 256, len: 25_600_000 },
    ];
    cases.retain(|case| case.name.contains(&only));
    cases
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

fn main() -> Result<()> {
    if std::env::args().nth(1).is_some_and(|a| a == "seed") {
        return seeder::child_main();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let runs = setting("FLOE_BENCH_RUNS", 3);
    runtime.block_on(async {
        let only = std::env::var("FLOE_BENCH_ONLY").unwrap_or_default();
        let wanted = |part: &str| only.is_empty() || only == part;
        if wanted("raw") {
            against_raw_stream(runs).await?;
        }
        if wanted("afar") {
            from_afar(runs).await?;
        }
        if kubo::binary().is_none() {
            println!("skipped: beside Kubo: FLOE_TEST_KUBO names no Kubo binary");
            return Ok(());
        }
        if wanted("kubo") {
            beside_kubo(runs).await?;
        }
        if wanted("serve") {
            serving(runs).await?;
        }
        Ok(())
    })
}

/// Floe pins from a peer that serves from memory, and a raw libp2p stream of the same bytes from the same process
/// over the same transport (TCP, Noise, yamux with Floe's windows).
async fn against_raw_stream(runs: usize) -> Result<()> {
    println!(
        "\n| from a peer in memory, into durable packs | Floe MB/s | raw stream MB/s | ratio | blocks/s | Floe CPU s | peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|");
    for case in cases() {
        let mut rows = Vec::new();
        for run in 0..=runs {
            let seed = seeder::Child::start(case.len, case.leaf_bytes)?;
            let raw = seed.raw_stream().await?;
            let dir = tempfile::tempdir()?;
            let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
            let took = floe_pins(&floe, &seed.root, &seed.addresses).await?;
            // The first run warms caches and is not counted.
            if run > 0 {
                rows.push((took, raw));
            }
        }
        let mb = case.len as f64 / 1e6;
        let ours = median(rows.iter().map(|(t, _)| mb / t.wall).collect());
        let raw = median(rows.iter().map(|(_, r)| mb / r.as_secs_f64()).collect());
        let ratio = median(rows.iter().map(|(t, r)| r.as_secs_f64() / t.wall).collect());
        let cpu = median(rows.iter().map(|(t, _)| t.cpu).collect());
        let peak = median(rows.iter().map(|(t, _)| t.peak_mib).collect());
        let blocks = ours * 1e6 / case.leaf_bytes as f64;
        println!(
            "| {} | {ours:.0} | {raw:.0} | {ratio:.2} | {blocks:.0} | {cpu:.2} | {peak:.0} |",
            case.name
        );
    }
    Ok(())
}

/// The same with 50 ms round trip to the peer, for both.
async fn from_afar(runs: usize) -> Result<()> {
    const ONE_WAY: Duration = Duration::from_millis(25);
    println!("\n| 50 ms away | Floe MB/s | raw stream MB/s | ratio |\n|---|---|---|---|");
    let len = (setting("FLOE_BENCH_MIB", 1024) << 20) / 8;
    for leaf_bytes in [256 << 10, 1 << 20] {
        let mut rows = Vec::new();
        for _ in 0..runs {
            let seed = seeder::Child::start(len, leaf_bytes)?;
            let (addresses, raw) = seed.from_afar(ONE_WAY).await?;
            let dir = tempfile::tempdir()?;
            let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
            rows.push((floe_pins(&floe, &seed.root, &addresses).await?.wall, raw.as_secs_f64()));
        }
        let mb = len as f64 / 1e6;
        let ours = median(rows.iter().map(|(t, _)| mb / t).collect());
        let raw = median(rows.iter().map(|(_, r)| mb / r).collect());
        let ratio = median(rows.iter().map(|(t, r)| r / t).collect());
        println!("| {} KiB leaves | {ours:.0} | {raw:.0} | {ratio:.2} |", leaf_bytes >> 10);
    }
    Ok(())
}

/// A fresh Kubo pins a DAG from Floe, and another the same DAG from the Kubo that Floe had it from, in turn.
async fn serving(runs: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = Kubo::start(&dir.path().join("source"))?;
    let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
    println!(
        "\n| to a Kubo | from Floe s | from Kubo s | time ratio | Floe CPU s | Kubo CPU s | CPU ratio |\n|---|---|---|---|---|---|---|"
    );
    for case in cases() {
        let cid = added(&source, dir.path(), &case)?;
        floe_pins(&floe, &cid, &source.addresses()?).await?;
        let mut rows = Vec::new();
        for run in 0..=runs {
            let place = dir.path().join(format!("run-{run}"));
            std::fs::create_dir(&place)?;
            let fetch = |name: &str, from: &[String], server: u32| -> Result<Took> {
                let before = cpu(server);
                let mut took = kubo_pins(&place.join(name), &cid, from)?;
                took.cpu = cpu(server).saturating_sub(before).as_secs_f64();
                Ok(took)
            };
            let ours = fetch("from-floe", &[floe.swarm_tcp()], floe.pid())?;
            let theirs = fetch("from-kubo", &source.addresses()?, source.pid().unwrap_or_default())?;
            std::fs::remove_dir_all(&place)?;
            if run > 0 {
                rows.push((ours, theirs));
            }
        }
        println!("| {} | {} |", case.name, compared(&rows));
    }
    Ok(())
}

/// Adds the bytes of a case to a Kubo; the root.
fn added(kubo: &Kubo, dir: &Path, case: &Case) -> Result<String> {
    let path = dir.join("data");
    std::fs::write(&path, noise(case.len, case.leaf_bytes as u64))?;
    let chunker = format!("--chunker={}", case.chunker);
    let cid = kubo.ipfs(&["add", "-Q", "--cid-version=1", &chunker, &path.display().to_string()])?;
    std::fs::remove_file(&path)?;
    Ok(cid)
}

/// The same DAG from one Kubo: by a fresh Floe, and by `ipfs pin add` of a fresh second Kubo, in turn.
async fn beside_kubo(runs: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let source = Kubo::start(&dir.path().join("source"))?;
    let origins = source.addresses()?;
    println!(
        "\n| from one Kubo | Floe s | Kubo s | time ratio | Floe CPU s | Kubo CPU s | CPU ratio | Floe peak MiB | Kubo peak MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for case in cases() {
        let cid = added(&source, dir.path(), &case)?;
        let mut rows = Vec::new();
        for run in 0..=runs {
            let place = dir.path().join(format!("run-{run}"));
            std::fs::create_dir(&place)?;
            let theirs = kubo_pins(&place, &cid, &origins)?;
            let floe = Floe::start(&place.join("floe"), &Options::default())?;
            let ours = floe_pins(&floe, &cid, &origins).await?;
            drop(floe);
            std::fs::remove_dir_all(&place)?;
            if run > 0 {
                rows.push((ours, theirs));
            }
        }
        let peak = |f: &dyn Fn(&(Took, Took)) -> f64| median(rows.iter().map(f).collect());
        println!(
            "| {} | {} | {:.0} | {:.0} |",
            case.name,
            compared(&rows),
            peak(&|r| r.0.peak_mib),
            peak(&|r| r.1.peak_mib),
        );
        source.ipfs(&["pin", "rm", &cid])?;
        source.ipfs(&["repo", "gc", "-q"])?;
    }
    idle(dir.path())
}

/// Time and CPU of both and their ratios, the medians, as cells of a table.
fn compared(rows: &[(Took, Took)]) -> String {
    let of = |f: &dyn Fn(&(Took, Took)) -> f64| format!("{:.2}", median(rows.iter().map(f).collect()));
    [
        of(&|r| r.0.wall),
        of(&|r| r.1.wall),
        of(&|r| r.0.wall / r.1.wall),
        of(&|r| r.0.cpu),
        of(&|r| r.1.cpu),
        of(&|r| r.0.cpu / r.1.cpu),
    ]
    .join(" | ")
}

/// Resident memory of each, started and left alone for ten seconds.
fn idle(dir: &Path) -> Result<()> {
    let floe = Floe::start(&dir.join("idle-floe"), &Options::default())?;
    let kubo = Kubo::start(&dir.join("idle-kubo"))?;
    std::thread::sleep(Duration::from_secs(10));
    let kubo_pid = kubo.pid().unwrap_or_default();
    println!("\n| idle | Floe | Kubo |\n|---|---|---|");
    println!("| resident MiB | {:.0} | {:.0} |", memory_mib(floe.pid()).0, memory_mib(kubo_pid).0);
    println!("| ready after, ms | {} | |", floe.ready_after.as_millis());
    Ok(())
}

async fn floe_pins(floe: &Floe, cid: &str, origins: &[String]) -> Result<Took> {
    reset_peak(floe.pid());
    let (begun, cpu_before) = (now(), cpu(floe.pid()));
    let id = floe.pin(cid, origins).await?;
    floe.wait_for(&id, "pinned", Duration::from_secs(600)).await?;
    Ok(took(floe.pid(), begun, cpu_before))
}

fn kubo_pins(place: &Path, cid: &str, origins: &[String]) -> Result<Took> {
    std::fs::create_dir_all(place)?;
    let kubo = Kubo::start(&place.join("kubo"))?;
    let connected =
        origins.iter().any(|o| o.contains("/tcp/") && kubo.ipfs(&["swarm", "connect", o]).is_ok());
    ensure!(connected, "the second Kubo cannot reach the first at {origins:?}");
    let pid = kubo.pid().unwrap_or_default();
    reset_peak(pid);
    let (begun, cpu_before) = (now(), cpu(pid));
    kubo.ipfs(&["pin", "add", "--progress=false", cid])?;
    Ok(took(pid, begun, cpu_before))
}

fn took(pid: u32, begun: std::time::Instant, cpu_before: Duration) -> Took {
    let wall = begun.elapsed().as_secs_f64();
    Took { wall, cpu: (cpu(pid).saturating_sub(cpu_before)).as_secs_f64(), peak_mib: memory_mib(pid).1 }
}
