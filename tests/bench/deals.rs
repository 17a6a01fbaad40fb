//! Deals, measured whole: the built binary against `floe devnet`. How many can be in flight and what they cost the node,
//! and whether its memory grows with the piece.
//!
//! `tests/bench/run` starts it. `FLOE_BENCH_DEALS` (500) and `FLOE_BENCH_PIECE_MIB` (2048) scale it.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::filecoin::{Network, amount};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::process::{cpu, memory_mib, reset_peak};
use floe_tests::seeder::Seeder;
use floe_tests::{dag, noise};
use serde_json::{Value, json};

const PROVIDERS: usize = 5;
/// The devnet's providers keep pieces in memory, and take no larger ones.
const TAKEN_MIB: usize = 64;
/// While so long nothing happens but the watch over what is in flight.
const WATCHED: Duration = Duration::from_secs(20);

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        in_flight(setting("FLOE_BENCH_DEALS", 500)).await?;
        println!("\n| piece, MiB | peak while packing and hashing, MiB | peak while it is pulled, MiB |\n|---|---|---|");
        for mib in [8, 64, 512, setting("FLOE_BENCH_PIECE_MIB", 2_048)] {
            memory(mib).await?;
        }
        Ok(())
    })
}

/// A Floe on a devnet, with a policy of so many replicas and pieces of this size.
async fn start(home: &Path, replicas: usize, piece: &str) -> Result<(Network, Floe)> {
    let network = Network::devnet(PROVIDERS, "200ms", &["--sector-size", "32GiB"])?;
    network.until_final().await?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let provider = |(id, addr): &(String, String)| format!("[provider.{id}]\naddr = [\"{addr}\"]\n");
    let providers: String = network.providers.iter().map(provider).collect();
    let most = "1000000000000000000";
    let config = format!(
        "filecoin.api = \"{api}\"\nfilecoin.test_network = true\nfilecoin.finality_lookback = 5\n\
         filecoin.start_lead = 20000\nfilecoin.look_every = \"1s\"\n\
         filecoin.pull_addr = \"127.0.0.1:{port}\"\nfilecoin.pull_url = \"http://127.0.0.1:{port}\"\n\
         aggregate.target = \"{piece}\"\naggregate.least = \"{piece}\"\naggregate.flush_after = \"1s\"\n\
         deals.enabled = true\ndeals.max_per_deal = \"{most}\"\ndeals.max_per_account_day = \"{most}\"\n\
         deals.max_per_day = \"{most}\"\ndeals.max_lifetime = \"{most}\"\ndeals.max_gas = \"10000000000000000\"\n\
         [policy.default]\nreplicas = {replicas}\nmax_price_attofil_gib_epoch = \"50000000\"\n\
         duration_epochs = 518400\n{providers}",
        api = network.lotus.api,
    );
    let options = Options { config: Some(config), ..Options::default() };
    run(&["init", "--data-dir", &home.display().to_string()], &[])?;
    let key = home.with_extension("key");
    floe_tests::filecoin::write_key(&key, &network.key)?;
    let words = ["wallet", "import", &key.display().to_string(), "--data-dir", &home.display().to_string()];
    ensure!(run(&words, &[])?.status.success(), "the wallet is not imported");
    Ok((network, Floe::start(home, &options)?))
}

async fn pin(floe: &Floe, seeder: &Seeder, bytes: usize, leaf: usize, seed: u64) -> Result<String> {
    let blocks = dag::over(&noise(bytes, seed), leaf);
    seeder.add(&blocks);
    let root = blocks.last().context("a root")?.cid().to_string();
    floe.pin(&root, &seeder.addresses()).await
}

fn deals_in(floe: &Floe, state: &str) -> Result<usize> {
    let dir = floe.dir.display().to_string();
    let listed = run(&["deals", "ls", "--state", state, "--json", "--data-dir", &dir], &[])?;
    ensure!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed: Value = serde_json::from_slice(&listed.stdout)?;
    Ok(listed.as_array().map_or(0, Vec::len))
}

/// As many accepted deals that nobody publishes as a node may have, and what watching them costs.
async fn in_flight(wanted: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (network, floe) = start(&dir.path().join("floe"), PROVIDERS, "64KiB").await?;
    for provider in 0..PROVIDERS {
        network.script(provider, json!({"never_publish": true})).await?;
    }
    let seeder = Seeder::start().await?;
    let (idle, _) = memory_mib(floe.pid());
    let (begun, used) = (now(), cpu(floe.pid()));
    for n in 0..wanted.div_ceil(PROVIDERS) {
        pin(&floe, &seeder, 40 << 10, 16 << 10, n as u64 + 1).await?;
    }
    while deals_in(&floe, "accepted")? < wanted {
        ensure!(begun.elapsed() < Duration::from_secs(900), "{} accepted", deals_in(&floe, "accepted")?);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (took, spent) = (begun.elapsed(), cpu(floe.pid()) - used);
    let watched = cpu(floe.pid());
    tokio::time::sleep(WATCHED).await;
    let busy = (cpu(floe.pid()) - watched).as_secs_f64() / WATCHED.as_secs_f64();
    let (now_mib, peak) = memory_mib(floe.pid());
    let escrow = network.lotus.call("StateMarketBalance", json!([wallet(&floe)?, []])).await?;
    println!(
        "{wanted} deals in flight after {:.1} s ({:.0} a second), {:.1} s of CPU; resident {idle:.0} MiB before, {now_mib:.0} \
         with them, {peak:.0} at its peak; watching them takes {:.1} % of a core; escrow {} attoFIL",
        took.as_secs_f64(),
        wanted as f64 / took.as_secs_f64(),
        spent.as_secs_f64(),
        100.0 * busy,
        amount(&escrow["Escrow"])?,
    );
    Ok(())
}

fn wallet(floe: &Floe) -> Result<String> {
    let shown = run(&["wallet", "show", "--json", "--data-dir", &floe.dir.display().to_string()], &[])?;
    let shown: Value = serde_json::from_slice(&shown.stdout)?;
    Ok(shown["address"].as_str().context("an address")?.to_owned())
}

/// What packing a pin into a piece of this size and having it pulled takes at most. The pin is as large as half of the
/// piece takes in: the other half is fillers, the index and the manifest.
async fn memory(mib: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (_network, floe) = start(&dir.path().join("floe"), 1, &format!("{mib}MiB")).await?;
    let seeder = Seeder::start().await?;
    let id = pin(&floe, &seeder, (mib << 20) * 15 / 32, 1 << 20, mib as u64).await?;
    floe.wait_for(&id, "pinned", Duration::from_secs(600)).await?;
    reset_peak(floe.pid());
    cold(&floe, &id, &["packed", "placing", "stored"]).await?;
    let (_, packing) = memory_mib(floe.pid());
    if mib > TAKEN_MIB {
        println!("| {mib} | {packing:.0} | |");
        return Ok(());
    }
    reset_peak(floe.pid());
    cold(&floe, &id, &["stored"]).await?;
    let (_, pulled) = memory_mib(floe.pid());
    println!("| {mib} | {packing:.0} | {pulled:.0} |");
    Ok(())
}

/// Waits until the pin's cold half is in one of these states.
async fn cold(floe: &Floe, id: &str, states: &[&str]) -> Result<()> {
    let begun = now();
    loop {
        let (_, body) = floe.call("GET", &format!("/pins/{id}"), None).await?;
        if states.iter().any(|state| body["info"]["cold"] == *state) {
            return Ok(());
        }
        ensure!(begun.elapsed() < Duration::from_secs(900), "not {states:?}: {body}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
