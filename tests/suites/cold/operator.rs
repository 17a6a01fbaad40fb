//! What the operator does and is promised: the switch, the plan, the caps, the wallet.
//!
//! These need a chain of their own, so that on a network outside they are skipped.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::filecoin::{Network, amount};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::seeder::Seeder;
use floe_tests::skipped;
use serde_json::{Value, json};

use super::{Plan, asked, deals, is_active, of_pin, pin_noise, prepare, stored, wallet};

const FUNDED: u128 = 1_000_000_000_000_000;

/// Whether the suite has a network outside, where these are not run.
pub(crate) fn is_outside(what: &str) -> bool {
    let is_outside = std::env::var_os("FLOE_TEST_LOTUS").is_some();
    if is_outside {
        skipped(what, "it needs a chain of its own");
    }
    is_outside
}

/// A Floe with a devnet inside, and that.
async fn with_devnet(home: &Path) -> Result<(Floe, Network)> {
    let options = Options { args: vec!["--devnet".into()], ..Options::default() };
    let floe = Floe::start(home, &options)?;
    let network = Network::of_ready(&floe.endpoints["devnet"])?;
    network.until_final().await?;
    Ok((floe, network))
}

/// R16, T36: while spending is off nobody is asked for anything; the plan says what would be done, and that is done when
/// it is on again, at that price.
#[tokio::test(flavor = "multi_thread")]
async fn r16_nothing_is_sent_while_spending_is_off_and_the_plan_is_what_is_done() -> Result<()> {
    if is_outside("cold: the switch and the plan") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (floe, network) = with_devnet(&dir.path().join("floe")).await?;
    let off = asked(&floe, &["spending", "off"])?;
    ensure!(off["spending"] == false && off["switch"] == "off", "{off}");
    let seeder = Seeder::start().await?;
    let pin = pin_noise(&floe, &seeder, 100 << 10, 5).await?;
    let plan = planned(&floe, 3).await?;
    let why = plan["paused"].as_str().unwrap_or_default();
    ensure!(why.contains("switched off"), "the plan says why it is not carried out: {plan}");

    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(deals(&floe)?.is_empty(), "{}", json!(deals(&floe)?));
    let seen = network.control("GET", "/providers", None).await?;
    let asked_of = |one: &&Value| one["deals"].as_array().is_some_and(|deals| !deals.is_empty());
    ensure!(seen.as_array().context("providers")?.iter().find(asked_of).is_none(), "{seen}");
    let address = wallet(&floe)?;
    ensure!(network.lotus.escrow(&address).await? == (0, 0), "nothing went into escrow");

    let on = asked(&floe, &["spending", "on"])?;
    ensure!(on["spending"] == true, "{on}");
    stored(&floe, std::slice::from_ref(&pin), Duration::from_secs(120)).await?;
    let made = deals(&floe)?;
    let part = |deal: &Value| {
        [&deal["provider"], &deal["piece_cid"], &deal["cost_attofil"]].map(ToString::to_string)
    };
    let mut done: Vec<_> = of_pin(&made, &pin).into_iter().map(part).collect();
    let mut wanted: Vec<_> = plan["deals"].as_array().context("deals")?.iter().map(part).collect();
    done.sort();
    wanted.sort();
    ensure!(done == wanted, "planned {wanted:?}, done {done:?}");
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");
    Ok(())
}

/// R12: a cap that is one attoFIL short of three deals permits two, and one that is not permits three, and then nothing.
#[tokio::test(flavor = "multi_thread")]
async fn r12_the_caps_hold_to_the_attofil() -> Result<()> {
    if is_outside("cold: the caps") {
        return Ok(());
    }
    let network = Network::start(5, "100ms")?;
    network.until_final().await?;
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let options = prepare(&home, &network, &Plan::on_devnet(&network, FUNDED, false)?)?;
    let floe = Floe::start(&home, &options)?;
    let address = wallet(&floe)?;
    // Escrow is filled by the node's own wallet, so that no gas of Floe's counts.
    let client = json!([address, address, FUNDED.to_string()]);
    network.lotus.call("MarketAddBalance", client).await?;
    let seeder = Seeder::start().await?;
    let pin = pin_noise(&floe, &seeder, 100 << 10, 6).await?;
    let plan = planned(&floe, 3).await?;
    let all = amount(&plan["cost_attofil"])?;
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");

    let with_cap = |cap: u128| -> Result<Floe> {
        std::fs::write(home.join("config.toml"), Plan::on_devnet(&network, cap, true)?.config)?;
        Floe::start(&home, &options)
    };
    let floe = with_cap(all - 1)?;
    active(&floe, 2).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let made = deals(&floe)?;
    ensure!(made.len() == 2 && made.iter().all(is_active), "{}", json!(made));
    let spending = asked(&floe, &["spending", "status"])?;
    let committed = amount(&spending["committed_attofil"]["lifetime"])?;
    ensure!(committed == cost(&made)? && committed < all, "{spending}");
    ensure!(network.lotus.escrow(&address).await? == (FUNDED, committed), "the chain has locked as much");
    let (_, body) = floe.call("GET", &format!("/pins/{pin}"), None).await?;
    ensure!(body["info"]["cold"] == "placing", "two of three are not stored: {body}");
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");

    let floe = with_cap(all)?;
    stored(&floe, std::slice::from_ref(&pin), Duration::from_secs(120)).await?;
    let spending = asked(&floe, &["spending", "status"])?;
    ensure!(amount(&spending["committed_attofil"]["lifetime"])? == all, "{spending}");
    ensure!(amount(&spending["left_attofil"])? == 0, "{spending}");
    ensure!(network.lotus.escrow(&address).await? == (FUNDED, all), "the chain has locked as much");
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");
    Ok(())
}

/// Money goes in, out and elsewhere as the operator says, each once, and never what signed deals need.
#[tokio::test(flavor = "multi_thread")]
async fn the_operator_moves_money_that_is_free_and_no_other() -> Result<()> {
    if is_outside("cold: the wallet's commands") {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (floe, network) = with_devnet(&dir.path().join("floe")).await?;
    let address = wallet(&floe)?;
    patiently(&floe, &["wallet", "fund", &FUNDED.to_string()]).await?;
    escrow_is(&network, &address, FUNDED).await?;

    // Over HTTP a call needs a key, and with that it is done once.
    let (status, body) = fund(&floe, None).await?;
    ensure!(status == 400 && body.to_string().contains("Idempotency-Key"), "{status}: {body}");
    until("no other call is on its way", async || Ok(fund(&floe, Some("once")).await?.0 == 200)).await?;
    let (first, second) = (fund(&floe, Some("once")).await?, fund(&floe, Some("once")).await?);
    ensure!(
        first.0 == 200 && second.0 == 200 && first.1["intent"] == second.1["intent"],
        "{first:?} {second:?}"
    );
    escrow_is(&network, &address, 2 * FUNDED).await?;

    let seeder = Seeder::start().await?;
    let pin = pin_noise(&floe, &seeder, 100 << 10, 7).await?;
    stored(&floe, std::slice::from_ref(&pin), Duration::from_secs(120)).await?;
    let (escrow, locked) = network.lotus.escrow(&address).await?;
    let free = escrow - locked;
    refused(&floe, &["wallet", "withdraw", &(free + 1).to_string()]).await?;
    patiently(&floe, &["wallet", "withdraw", &free.to_string()]).await?;
    escrow_is(&network, &address, locked).await?;

    let elsewhere = network.lotus.call("WalletNew", json!(["secp256k1"])).await?;
    let elsewhere = elsewhere.as_str().context("an address")?;
    let rest = network.lotus.wallet(&address).await?;
    refused(&floe, &["wallet", "send", elsewhere, &rest.to_string()]).await?;
    refused(&floe, &["wallet", "send", "f3nobody", "1"]).await?;
    refused(&floe, &["wallet", "settle"]).await?;
    patiently(&floe, &["wallet", "send", elsewhere, "7"]).await?;
    until("the money arrives", async || Ok(network.lotus.wallet(elsewhere).await? == 7)).await?;

    let made = deals(&floe)?;
    let deal = made.iter().find(|deal| is_active(deal)).context("a deal")?;
    // It earns from its start on, whenever it was sealed.
    let start = deal["start_epoch"].as_i64().context("a start")?;
    until("the deal has begun", async || Ok(network.lotus.height().await? > start + 5)).await?;
    let settled = deal["deal_id"].to_string();
    patiently(&floe, &["wallet", "settle", &settled]).await?;
    until("what the deal earned is paid", async || Ok(network.lotus.escrow(&address).await?.1 < locked))
        .await?;
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");
    Ok(())
}

/// `floe cold plan`, once it has so many deals.
async fn planned(floe: &Floe, count: usize) -> Result<Value> {
    let begun = now();
    loop {
        let plan = asked(floe, &["cold", "plan"])?;
        if plan["deals"].as_array().is_some_and(|deals| deals.len() == count) {
            return Ok(plan);
        }
        ensure!(begun.elapsed() < Duration::from_secs(60), "not {count} deals: {plan}\n{}", floe.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Waits until so many deals are active.
async fn active(floe: &Floe, count: usize) -> Result<()> {
    until("the deals are active", async || {
        Ok(deals(floe)?.iter().filter(|deal| is_active(deal)).count() == count)
    })
    .await
}

async fn escrow_is(network: &Network, address: &str, wanted: u128) -> Result<()> {
    until("the escrow is what it should be", async || Ok(network.lotus.escrow(address).await?.0 == wanted))
        .await
}

pub(crate) async fn until(what: &str, mut is_so: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let begun = now();
    while !is_so().await? {
        ensure!(begun.elapsed() < Duration::from_secs(90), "not in 90 s: {what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

fn cost(deals: &[Value]) -> Result<u128> {
    deals.iter().map(|deal| amount(&deal["cost_attofil"])).sum()
}

/// A command of the wallet, again while another is on its way to the chain, or what pays for it is not final.
async fn patiently(floe: &Floe, command: &[&str]) -> Result<()> {
    until("nothing stands in its way any more", async || {
        let (code, said) = told(floe, command)?;
        let waits = said.contains("is on its way") || said.contains("once it is final");
        ensure!(code == Some(0) || waits, "{command:?} ended with {code:?}: {said}");
        Ok(code == Some(0))
    })
    .await
}

/// A command that is refused for what it asks, and not because another is on its way.
async fn refused(floe: &Floe, command: &[&str]) -> Result<()> {
    until("the command is refused", async || {
        let (code, said) = told(floe, command)?;
        ensure!(code == Some(1) && !said.is_empty(), "{command:?} ended with {code:?}: {said}");
        Ok(!said.contains("is on its way"))
    })
    .await
}

/// How a command ends, and what it says to people.
fn told(floe: &Floe, command: &[&str]) -> Result<(Option<i32>, String)> {
    let dir = floe.dir.display().to_string();
    let done = run(&[command, &["--data-dir", &dir]].concat(), &[])?;
    Ok((done.status.code(), String::from_utf8_lossy(&done.stderr).into_owned()))
}

async fn fund(floe: &Floe, key: Option<&str>) -> Result<(u16, Value)> {
    let client = reqwest::Client::new();
    let url = format!("{}/admin/v1/wallet/fund", floe.api());
    let request =
        client.post(url).bearer_auth(floe.admin_token()).json(&json!({"amount": FUNDED.to_string()}));
    let request = key.into_iter().fold(request, |request, key| request.header("Idempotency-Key", key));
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}
