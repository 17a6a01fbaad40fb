//! The life of a pin, through the public ports alone: pinned from a peer, read back by another, replaced, shared
//! between accounts, removed, there again after a restart.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::seeder::{Seeder, reads_back};
use floe_tests::{dag, noise};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_outlives_its_origin_and_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let floe = Floe::start(&home, &Options::default())?;
    let seeder = Seeder::start().await?;
    let blocks = dag::over(&noise(20 << 20, 1), 256 << 10);
    let root = *blocks.last().context("a root")?.cid();
    seeder.add(&blocks);

    let id = floe.pin(&root.to_string(), &seeder.addresses()).await?;
    let done = floe.wait_for(&id, "pinned", SOON).await?;
    let blocks_said = blocks.len().to_string();
    ensure!(done["info"]["progress_blocks"] == blocks_said.as_str(), "info: {}", done["info"]);
    seeder.stop().await;
    reads_back(&floe, &blocks).await?;
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");
    ensure!(!home.join("endpoints.json").exists(), "endpoints.json is left after a clean stop");

    let floe = Floe::start(&home, &Options::default())?;
    let (code, body) = floe.call("GET", &format!("/pins/{id}"), None).await?;
    ensure!(code == 200 && body["status"] == "pinned", "after the restart: {code} {body}");
    reads_back(&floe, &blocks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn replacing_fetches_the_difference_and_removing_frees_the_space() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
    let seeder = Seeder::start().await?;
    let mut data = noise(8 << 20, 2);
    let old = dag::over(&data, 256 << 10);
    data[5 << 20] ^= 1;
    let new = dag::over(&data, 256 << 10);
    seeder.add(&old);
    let (old_root, new_root) = (old.last().context("a root")?.cid(), new.last().context("a root")?.cid());

    let first = floe.pin(&old_root.to_string(), &seeder.addresses()).await?;
    floe.wait_for(&first, "pinned", SOON).await?;
    let served = seeder.served();

    seeder.add(&new);
    let pin = json!({"cid": new_root.to_string(), "origins": seeder.addresses()});
    let (code, body) = floe.call("POST", &format!("/pins/{first}"), Some(pin)).await?;
    ensure!(code == 202, "replace answered {code}: {body}");
    let second = body["requestid"].as_str().context("no requestid")?.to_owned();
    ensure!(second != first, "a replaced pin has a new request id");
    ensure!(floe.call("GET", &format!("/pins/{first}"), None).await?.0 == 404, "the old id is gone at once");
    floe.wait_for(&second, "pinned", SOON).await?;
    // One leaf and the root differ.
    ensure!(
        seeder.served() - served == 2,
        "{} blocks were fetched for the difference",
        seeder.served() - served
    );

    ensure!(floe.call("DELETE", &format!("/pins/{second}"), None).await?.0 == 202);
    ensure!(floe.call("GET", &format!("/pins/{second}"), None).await?.0 == 404);
    let begun = now();
    while floe.metric("floe_blocks").await? > 0.0 {
        ensure!(begun.elapsed() < SOON, "{} blocks are left", floe.metric("floe_blocks").await?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_accounts_share_blocks_and_never_see_each_other() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let floe = Floe::start(&home, &Options::default())?;
    let seeder = Seeder::start().await?;
    let blocks = dag::over(&noise(4 << 20, 3), 256 << 10);
    let root = blocks.last().context("a root")?.cid().to_string();
    seeder.add(&blocks);

    let home_arg = home.display().to_string();
    let cli = |args: &[&str]| run(&[args, &["--data-dir", &home_arg, "--json"]].concat(), &[]);
    ensure!(cli(&["account", "create", "alice"])?.status.success());
    let made =
        cli(&["token", "create", "--account", "alice", "--scope", "pins:read", "--scope", "pins:write"])?;
    let made: Value = serde_json::from_slice(&made.stdout)?;
    let alice = made["secret"].as_str().context("no secret")?.to_owned();
    let http = reqwest::Client::new();
    let ask = |method: reqwest::Method, path: String, body: Option<Value>| {
        let request = http.request(method, format!("{}{path}", floe.api())).bearer_auth(&alice);
        match body {
            Some(body) => request.json(&body).send(),
            None => request.send(),
        }
    };

    let mine = floe.pin(&root, &seeder.addresses()).await?;
    floe.wait_for(&mine, "pinned", SOON).await?;
    let served = seeder.served();
    let answer = ask(reqwest::Method::POST, "/pins".into(), Some(json!({"cid": root}))).await?;
    ensure!(answer.status() == 202, "alice's pin: {}", answer.status());
    let hers = answer.json::<Value>().await?["requestid"].as_str().context("no requestid")?.to_owned();
    let begun = now();
    loop {
        let body: Value = ask(reqwest::Method::GET, format!("/pins/{hers}"), None).await?.json().await?;
        if body["status"] == "pinned" {
            break;
        }
        ensure!(begun.elapsed() < SOON, "alice's pin: {body}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(seeder.served() == served, "shared blocks were fetched again");

    // Neither can see, replace or remove the other's request.
    for method in [reqwest::Method::GET, reqwest::Method::DELETE] {
        ensure!(ask(method, format!("/pins/{mine}"), None).await?.status() == 404);
    }
    ensure!(floe.call("DELETE", &format!("/pins/{hers}"), None).await?.0 == 404);
    // What one removes stays for the other.
    ensure!(floe.call("DELETE", &format!("/pins/{mine}"), None).await?.0 == 202);
    run(&["gc", "--data-dir", &home_arg], &[])?;
    reads_back(&floe, &blocks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_never_served_and_fetched_again() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let home_arg = home.display().to_string();
    let floe = Floe::start(&home, &Options::default())?;
    let seeder = Seeder::start().await?;
    let blocks = dag::over(&noise(2 << 20, 4), 256 << 10);
    let root = blocks.last().context("a root")?.cid().to_string();
    seeder.add(&blocks);
    let id = floe.pin(&root, &seeder.addresses()).await?;
    floe.wait_for(&id, "pinned", SOON).await?;
    ensure!(floe.stop()? == 0);

    // One bit of one leaf, in the pack itself.
    let needle = &blocks[3].data()[1000..1064];
    let mut flipped = 0;
    for path in files_under(&home.join("blocks"))? {
        let mut bytes = std::fs::read(&path)?;
        if let Some(at) = bytes.windows(needle.len()).position(|w| w == needle) {
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes)?;
            flipped += 1;
        }
    }
    ensure!(flipped == 1, "the block stands in {flipped} files");
    let offline = run(&["verify", "--offline", "--data-dir", &home_arg, "--json"], &[])?;
    ensure!(offline.status.code() == Some(13), "verify --offline ended with {:?}", offline.status);
    let said: Value = serde_json::from_slice(&offline.stdout)?;
    ensure!(said["blocks"] == blocks.len(), "verify --offline counts other things than blocks: {said}");
    ensure!(said["damaged"].to_string().contains(&id), "verify --offline names no pin: {said}");

    // Nobody has a good copy: it is not served, and reported.
    seeder.stop().await;
    let floe = Floe::start(&home, &Options::default())?;
    let reader = Seeder::start().await?;
    let got = reader.fetch(&[*blocks[3].cid()], &[floe.swarm_tcp()], Duration::from_secs(3)).await;
    ensure!(got.is_err(), "a damaged block was served");
    reader.stop().await;
    let report = run(&["verify", "--data-dir", &home_arg, "--json"], &[])?;
    ensure!(report.status.code() == Some(13), "verify ended with {:?}", report.status);
    let said: Value = serde_json::from_slice(&report.stdout)?;
    ensure!(said["damaged"].as_array().is_some_and(|d| d.len() == 1), "verify said {said}");
    ensure!(said.to_string().contains(&id), "verify names no pin: {said}");

    // A peer that has it connects: verify heals it.
    let healer = Seeder::start().await?;
    healer.add(&blocks);
    healer.connect(&floe.swarm_tcp()).await?;
    let report = run(&["verify", "--data-dir", &home_arg, "--json"], &[])?;
    let said: Value = serde_json::from_slice(&report.stdout)?;
    ensure!(said["repaired"] == 1, "verify said {said}");
    healer.stop().await;
    reads_back(&floe, &blocks).await?;
    ensure!(floe.stop()? == 0);
    ensure!(run(&["verify", "--offline", "--data-dir", &home_arg], &[])?.status.code() == Some(0));
    Ok(())
}

fn files_under(dir: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            out.extend(files_under(&path)?);
        } else {
            out.push(path);
        }
    }
    Ok(out)
}
