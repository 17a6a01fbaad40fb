//! R11-R13: what is pinned ends in as many active deals as its policy asks for, by the chain's own word, whoever
//! misbehaves and whatever is killed; and it costs what it may cost, to the attoFIL.
//!
//! The built binary against `floe devnet`, or against a network outside (`floe_tests::filecoin` says how). The judge
//! is the node: Floe's word is only compared with its.

mod canary;
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::filecoin::{Network, amount, write_key};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::seeder::Seeder;
use floe_tests::{dag, noise, skipped};
use serde_json::{Value, json};

const PINS: usize = 30;
/// Replicas of each pin, on the devnet.
const REPLICAS: usize = 3;
/// Bytes of a pin on the devnet: a handful of pins make a piece.
const PIN_BYTES: usize = 40 << 10;
/// Until every pin is stored.
const DEVNET_PATIENCE: Duration = Duration::from_secs(150);
/// The same where sealing takes its time.
const OUTSIDE_PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Caps of the devnet's run, in attoFIL.
const LIFETIME: u128 = 2_000_000_000_000_000_000;

/// What a run is like.
struct Plan {
    pins: usize,
    replicas: usize,
    pin_bytes: usize,
    config: String,
    patience: Duration,
    most: u128,
}

impl Plan {
    /// Quick epochs and small pieces, with this cap of ever, in attoFIL.
    fn on_devnet(network: &Network, lifetime: u128, enabled: bool) -> Result<Self> {
        let config = format!(
            "filecoin.api = \"{api}\"\nfilecoin.test_network = true\nfilecoin.finality_lookback = 5\n\
             filecoin.start_lead = 80\nfilecoin.look_every = \"200ms\"\n\
             filecoin.pull_addr = \"127.0.0.1:{port}\"\nfilecoin.pull_url = \"http://127.0.0.1:{port}\"\n\
             aggregate.target = \"512KiB\"\naggregate.least = \"512KiB\"\naggregate.flush_after = \"3s\"\n\
             deals.enabled = {enabled}\ndeals.max_per_deal = \"{lifetime}\"\n\
             deals.max_per_account_day = \"{lifetime}\"\ndeals.max_per_day = \"{lifetime}\"\n\
             deals.max_lifetime = \"{lifetime}\"\ndeals.max_gas = \"100000000000000000\"\n\
             [policy.default]\nreplicas = {REPLICAS}\nmax_price_attofil_gib_epoch = \"50000000\"\n\
             duration_epochs = 518400\n{providers}",
            api = network.lotus.api,
            port = free_port()?,
            providers = providers(network),
        );
        let patience = DEVNET_PATIENCE;
        Ok(Self { pins: PINS, replicas: REPLICAS, pin_bytes: PIN_BYTES, config, patience, most: lifetime })
    }

    fn of(network: &Network) -> Result<Self> {
        let (api, providers) = (&network.lotus.api, providers(network));
        let Some(outside) = &network.outside else { return Self::on_devnet(network, LIFETIME, true) };
        let (replicas, most) = (network.providers.len(), outside.most);
        let port = outside.pull_url.trim_end_matches('/').rsplit_once(':').map_or("80", |(_, port)| port);
        let config = format!(
            "filecoin.api = \"{api}\"\nfilecoin.test_network = true\n\
             filecoin.pull_addr = \"0.0.0.0:{port}\"\nfilecoin.pull_url = \"{url}\"\n\
             aggregate.target = \"8MiB\"\naggregate.least = \"4MiB\"\naggregate.flush_after = \"30s\"\n\
             deals.enabled = true\ndeals.max_per_deal = \"{most}\"\ndeals.max_per_account_day = \"{most}\"\n\
             deals.max_per_day = \"{most}\"\ndeals.max_lifetime = \"{most}\"\ndeals.max_gas = \"{gas}\"\n\
             [policy.default]\nreplicas = {replicas}\nmax_price_attofil_gib_epoch = \"100000000000\"\n\
             duration_epochs = 540000\n{providers}",
            url = outside.pull_url,
            // Each message on its way reserves so much.
            gas = most / 20,
        );
        // Pieces of 4 to 8 MiB: three pins in each.
        Ok(Self { pins: 6, replicas, pin_bytes: 2 << 20, config, patience: OUTSIDE_PATIENCE, most })
    }
}

fn providers(network: &Network) -> String {
    let provider = |(id, addr): &(String, String)| format!("[provider.{id}]\naddr = [\"{addr}\"]\n");
    network.providers.iter().map(provider).collect()
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The node's data directory with the network's key as its wallet.
fn prepare(home: &Path, network: &Network, plan: &Plan) -> Result<Options> {
    let dir = home.display().to_string();
    run(&["init", "--data-dir", &dir], &[])?;
    std::fs::write(home.join("config.toml"), &plan.config)?;
    let exported = home.with_extension("key");
    write_key(&exported, &network.key)?;
    let imported = run(&["wallet", "import", &exported.display().to_string(), "--data-dir", &dir], &[])?;
    ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    Ok(Options::default())
}

#[tokio::test(flavor = "multi_thread")]
async fn r11_every_pin_is_stored_although_a_third_of_the_world_fails() -> Result<()> {
    let network = Network::start(5, "100ms")?;
    network.until_final().await?;
    let plan = Plan::of(&network)?;
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let options = prepare(&home, &network, &plan)?;
    let floe = Floe::start(&home, &options)?;
    let address = wallet(&floe)?;
    let (height, before) = (network.lotus.height().await?, network.lotus.wallet(&address).await?);
    let (escrow_before, locked_before) = network.lotus.escrow(&address).await?;
    if network.is_devnet() {
        misbehave(&network).await?;
    } else {
        skipped("cold: two of five providers misbehave", "it needs the fault scripts of a devnet");
    }

    let seeder = Seeder::start().await?;
    let mut pins = Vec::new();
    for n in 0..plan.pins {
        pins.push(pin_noise(&floe, &seeder, plan.pin_bytes, 1_000 + n as u64).await?);
    }
    let floe = kill_in_the_middle(floe, &home, &options, &plan).await?;
    stored(&floe, &pins, plan.patience).await?;

    let deals = deals(&floe)?;
    let told: BTreeMap<&str, Vec<&Value>> =
        pins.iter().map(|pin| (pin.as_str(), of_pin(&deals, pin))).collect();
    for (pin, active) in &told {
        every_replica_is_on_the_chain(&network, pin, active, plan.replicas).await?;
        where_it_is(&floe, pin, active).await?;
    }
    let committed = nothing_is_paid_twice(&network, &deals, &address).await?;
    ensure!(committed <= plan.most, "{committed} attoFIL are committed, the cap is {}", plan.most);
    let (escrow, locked) = network.lotus.escrow(&address).await?;
    // Providers of a real network settle meanwhile: what they were paid left escrow and what is locked alike.
    let paid = (committed + locked_before).checked_sub(locked);
    let paid = paid.with_context(|| format!("{locked} attoFIL are locked, the deals cost {committed}"))?;
    ensure!(paid == 0 || !network.is_devnet(), "{locked} attoFIL are locked, the deals cost {committed}");
    let to = network.lotus.height().await?;
    let after = network.lotus.wallet(&address).await?;
    let gas = network.lotus.gas(&address, height, to).await?;
    ensure!(
        before + escrow_before == after + escrow + gas + paid,
        "{before} + {escrow_before} attoFIL became {after} + {escrow}, {gas} of gas, {paid} to providers"
    );
    ensure!(committed + gas <= plan.most, "with {gas} of gas the cap of {} is passed", plan.most);
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");
    Ok(())
}

/// What the README promises: one command, a plain pin, three active deals within two minutes. The chain ends with the
/// process, so that the directory is of no use to another start.
#[tokio::test(flavor = "multi_thread")]
async fn one_command_shows_it_all() -> Result<()> {
    if std::env::var_os("FLOE_TEST_LOTUS").is_some() {
        skipped("cold: serve --devnet", "the suite runs on a network outside");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let options = Options { args: vec!["--devnet".into()], ..Options::default() };
    let floe = Floe::start(&home, &options)?;
    let network = Network::of_ready(&floe.endpoints["devnet"])?;
    ensure!(network.providers.len() == 5, "{}", floe.endpoints);
    let seeder = Seeder::start().await?;
    // Such a pin was cut into eleven pieces of a MiB, and had 33 deals.
    let pin = pin_noise(&floe, &seeder, 3 << 20, 4).await?;
    let begun = now();
    stored(&floe, std::slice::from_ref(&pin), Duration::from_secs(120)).await?;
    println!("stored after {:?}", begun.elapsed());
    let deals = deals(&floe)?;
    let active = of_pin(&deals, &pin);
    ensure!(active.len() == REPLICAS, "a plain pin is three deals, not {}", active.len());
    every_replica_is_on_the_chain(&network, &pin, &active, REPLICAS).await?;
    where_it_is(&floe, &pin, &active).await?;
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");

    let devnet_on =
        |dir: &Path| run(&["serve", "--devnet", "--offline", "--data-dir", &dir.display().to_string()], &[]);
    let again = devnet_on(&home)?;
    let said = String::from_utf8_lossy(&again.stderr);
    ensure!(again.status.code() == Some(10) && said.contains("another directory"), "{said}");
    // Pins of a real node are never promised to a chain for tests.
    let real = dir.path().join("real");
    ensure!(Floe::start(&real, &Options::default())?.stop()? == 0, "a clean stop ends with 0");
    let mixed = devnet_on(&real)?;
    let said = String::from_utf8_lossy(&mixed.stderr);
    ensure!(mixed.status.code() == Some(10) && said.contains("without --devnet"), "{said}");
    Ok(())
}

/// Pins a DAG that only the seeder has; the request id.
async fn pin_noise(floe: &Floe, seeder: &Seeder, bytes: usize, seed: u64) -> Result<String> {
    let blocks = dag::over(&noise(bytes, seed), 16 << 10);
    seeder.add(&blocks);
    let root = blocks.last().context("a root")?.cid().to_string();
    floe.pin(&root, &seeder.addresses()).await
}

/// One never publishes what it accepted, and one answers nothing, reports errors, and seals all the same: whoever
/// believes the second pays twice.
async fn misbehave(network: &Network) -> Result<()> {
    network.script(1, json!({"never_publish": true})).await?;
    let confusing = json!({"lose_reply": true, "status": {"error": "failed to load deal"}});
    network.script(3, confusing).await
}

/// kill -9 when some deals are made and not all are active; then a new start.
async fn kill_in_the_middle(floe: Floe, home: &Path, options: &Options, plan: &Plan) -> Result<Floe> {
    let begun = now();
    loop {
        let deals = deals(&floe)?;
        let active = deals.iter().filter(|deal| is_active(deal)).count();
        if deals.len() >= plan.replicas && active < deals.len() {
            break;
        }
        ensure!(begun.elapsed() < plan.patience, "no deal is made: {}", floe.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    floe.kill();
    Floe::start(home, options)
}

/// Waits until every pin says that it is stored.
async fn stored(floe: &Floe, pins: &[String], patience: Duration) -> Result<()> {
    let begun = now();
    for pin in pins {
        loop {
            let (code, body) = floe.call("GET", &format!("/pins/{pin}"), None).await?;
            ensure!(code == 200, "GET /pins/{pin} answered {code}: {body}");
            if body["info"]["cold"] == "stored" {
                break;
            }
            ensure!(begun.elapsed() < patience, "not stored: {body}\n{}", json!(deals(floe)?));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}

/// A command on the node's data directory, with `--json`: what it prints.
fn asked(floe: &Floe, command: &[&str]) -> Result<Value> {
    let dir = floe.dir.display().to_string();
    let done = run(&[command, &["--json", "--data-dir", &dir]].concat(), &[])?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// `floe deals ls --json`.
fn deals(floe: &Floe) -> Result<Vec<Value>> {
    asked(floe, &["deals", "ls"])?.as_array().cloned().context("deals ls prints an array")
}

/// The address that pays.
fn wallet(floe: &Floe) -> Result<String> {
    let shown = asked(floe, &["wallet", "show"])?;
    Ok(shown["address"].as_str().context("wallet show names an address")?.to_owned())
}

fn is_active(deal: &Value) -> bool {
    deal["state"] == "active"
}

/// The active deals of a pin.
fn of_pin<'a>(deals: &'a [Value], pin: &str) -> Vec<&'a Value> {
    let names = |deal: &Value| deal["pins"].as_array().is_some_and(|pins| pins.iter().any(|id| id == pin));
    deals.iter().filter(|deal| is_active(deal) && names(deal)).collect()
}

/// As many active deals as there should be for each piece of the pin, with as many providers of as many owners.
async fn every_replica_is_on_the_chain(
    network: &Network,
    pin: &str,
    active: &[&Value],
    replicas: usize,
) -> Result<()> {
    let mut pieces: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for deal in active {
        let piece = deal["piece_cid"].as_str().context("a piece")?;
        let shown = network.lotus.call("StateMarketStorageDeal", json!([deal["deal_id"], []])).await?;
        let proposal = &shown["Proposal"];
        ensure!(proposal["PieceCID"]["/"] == piece, "deal {} is of another piece: {shown}", deal["deal_id"]);
        ensure!(proposal["Provider"] == deal["provider"], "deal {} is another's: {shown}", deal["deal_id"]);
        ensure!(
            shown["State"]["SectorStartEpoch"].as_i64().is_some_and(|start| start > 0),
            "deal {} is not active: {shown}",
            deal["deal_id"]
        );
        let info = network.lotus.call("StateMinerInfo", json!([deal["provider"], []])).await?;
        let owner = info["Owner"].as_str().context("an owner")?.to_owned();
        ensure!(pieces.entry(piece).or_default().insert(owner), "{pin}: two replicas have one owner");
    }
    ensure!(!pieces.is_empty(), "{pin} is stored, and has no deal");
    for (piece, owners) in &pieces {
        ensure!(owners.len() == replicas, "{pin}: {} of {replicas} replicas of {piece}", owners.len());
    }
    Ok(())
}

/// `info.deals` of the pin lists its deals, and `info.piece_cid` names a piece of them.
async fn where_it_is(floe: &Floe, pin: &str, active: &[&Value]) -> Result<()> {
    let (_, body) = floe.call("GET", &format!("/pins/{pin}"), None).await?;
    let told = body["info"]["deals"].as_str().context("info.deals is text")?;
    let told: Vec<Value> = serde_json::from_str(told)?;
    let uuids = |deals: &[&Value]| -> BTreeSet<String> {
        deals.iter().filter(|deal| is_active(deal)).map(|deal| deal["deal_uuid"].to_string()).collect()
    };
    let (told, listed) = (uuids(&told.iter().collect::<Vec<_>>()), uuids(active));
    ensure!(told == listed, "{pin}: info.deals has {told:?}, deals ls {listed:?}");
    let piece = &body["info"]["piece_cid"];
    ensure!(active.iter().any(|deal| deal["piece_cid"] == *piece), "{pin}: info.piece_cid is {piece}");
    Ok(())
}

/// No piece has two deals with one provider, and the chain has no deal of ours that is not listed. Says what the deals
/// on the chain cost.
async fn nothing_is_paid_twice(network: &Network, deals: &[Value], address: &str) -> Result<u128> {
    let on_chain: Vec<&Value> = deals.iter().filter(|deal| deal["deal_id"].is_u64()).collect();
    let mut seen = BTreeSet::new();
    let mut committed = 0;
    for deal in &on_chain {
        let replica = (deal["piece_cid"].to_string(), deal["provider"].to_string());
        ensure!(seen.insert(replica), "a replica is paid twice: {deal}");
        let shown = network.lotus.call("StateMarketStorageDeal", json!([deal["deal_id"], []])).await?;
        let proposal = &shown["Proposal"];
        let epochs = proposal["EndEpoch"].as_i64().zip(proposal["StartEpoch"].as_i64()).map(|(e, s)| e - s);
        let epochs = u128::try_from(epochs.context("epochs")?)?;
        let cost = amount(&proposal["StoragePricePerEpoch"])? * epochs;
        ensure!(amount(&deal["cost_attofil"])? == cost, "{deal} costs {cost} on the chain");
        committed += cost + amount(&proposal["ClientCollateral"])?;
    }
    if network.is_devnet() {
        let judged = network.control("GET", "/deals", None).await?;
        let client = network.lotus.call("StateLookupID", json!([address, []])).await?;
        let published: Vec<&Value> = judged["pieces"]
            .as_object()
            .into_iter()
            .flat_map(|pieces| pieces.values())
            .filter_map(Value::as_array)
            .flatten()
            .filter(|deal| deal["client"] == client)
            .collect();
        let ids: BTreeSet<u64> = on_chain.iter().filter_map(|deal| deal["deal_id"].as_u64()).collect();
        for deal in published {
            let id = deal["deal_id"].as_u64().context("a deal on the chain has an id")?;
            ensure!(
                ids.contains(&id),
                "Floe lists no deal {id}, which is on the chain: {deal}\n{}",
                json!(deals)
            );
            ensure!(deal["active"] == true, "a deal on the chain is not active: {deal}\n{}", json!(deals));
        }
    } else {
        skipped(
            "cold: the chain has no deal that is not listed",
            "only a devnet lists the deals of a client",
        );
    }
    Ok(committed)
}
