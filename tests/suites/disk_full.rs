//! R03: a full disk refuses writes and recovers by itself. On a real file system that is small (a tmpfs, which
//! needs root); elsewhere these tests say `skipped:`, and the one that needs no more than a setting is what is left.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_core::Block;
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::seeder::Seeder;
use floe_tests::{dag, noise, skipped};
use serde_json::{Value, json};

/// A mounted tmpfs, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).ok()?;
        let size = format!("size={mib}m");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output().ok()?;
        done.status.success().then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// What a full disk refuses, with `pin` as the new one; and what goes on all the same. Removes the pin `kept`.
async fn refuses_writes_and_nothing_else(
    floe: &Floe,
    seeder: &Seeder,
    (kept, root): (&str, &str),
    pin: Value,
) -> Result<()> {
    let (code, body) = floe.call("POST", "/pins", Some(pin.clone())).await?;
    ensure!(code == 507 && body["error"]["reason"] == "INSUFFICIENT_STORAGE", "POST answered {code}: {body}");
    let (code, body) = floe.call("POST", &format!("/pins/{kept}"), Some(pin)).await?;
    ensure!(code == 507, "replace answered {code}: {body}");

    // Reads and removals go on.
    let reader = Seeder::start().await?;
    let cids = seeder.cids_under(root);
    ensure!(reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(30)).await?.len() == cids.len());
    reader.stop().await;
    ensure!(floe.call("GET", &format!("/pins/{kept}"), None).await?.0 == 200);
    ensure!(floe.call("DELETE", &format!("/pins/{kept}"), None).await?.0 == 202, "DELETE on a full disk");
    admin(floe, &["gc"])?;
    // The token that leaked is the one that clients use: from here on there is none.
    let tokens = admin(floe, &["token", "ls"])?;
    let token = tokens["tokens"]
        .as_array()
        .or(tokens.as_array())
        .into_iter()
        .flatten()
        .find(|token| token["scopes"].as_array().is_some_and(|scopes| !scopes.contains(&json!("admin"))));
    let id = token.context("no token of pin.token")?["id"].clone();
    admin(floe, &["token", "revoke", &id.to_string()])?;
    let (code, _) = floe.call("GET", "/pins", None).await?;
    ensure!(code == 401, "a revoked token was answered {code}");
    Ok(())
}

/// Runs a command of the administrator; what it printed.
fn admin(floe: &Floe, command: &[&str]) -> Result<Value> {
    let dir = floe.dir.display().to_string();
    let done = run(&[command, &["--json", "--data-dir", &dir]].concat(), &[])?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "floe {} on a full disk: {said}", command.join(" "));
    Ok(serde_json::from_slice(&done.stdout)?)
}

/// A new token in the place of one that was revoked.
fn new_token(floe: &Floe) -> Result<()> {
    let scopes = ["--scope", "pins:read", "--scope", "pins:write"];
    let made = admin(floe, &[&["token", "create", "--account", "default"], &scopes[..]].concat())?;
    let secret = made["secret"].as_str().context("no secret")?;
    Ok(std::fs::write(floe.dir.join("pin.token"), secret)?)
}

async fn read_only(floe: &Floe) -> Result<bool> {
    let ops = floe.endpoints["ops"].as_str().context("no ops address")?;
    let text = reqwest::get(format!("{ops}/metrics")).await?.text().await?;
    Ok(text.lines().any(|l| l == "floe_read_only 1"))
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_a_full_disk_refuses_writes_and_recovers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&dir.path().join("small"), 256) else {
        skipped(
            "r03_a_full_disk_refuses_writes_and_recovers",
            "a small file system cannot be mounted (needs root)",
        );
        return Ok(());
    };
    let home = disk.0.join("floe");
    // The reserve of a real volume is 2 GiB; this one has 256 MiB in all.
    let config = "[storage]\nreserve = \"32MiB\"\n".to_owned();
    let floe = Floe::start(&home, &Options { config: Some(config), ..Options::default() })?;
    let seeder = Seeder::start().await?;
    let first = dag::over(&noise(20 << 20, 1), 256 << 10);
    let first_root = first.last().context("a root")?.cid().to_string();
    seeder.add(&first);
    let kept = floe.pin(&first_root, &seeder.addresses()).await?;
    floe.wait_for(&kept, "pinned", Duration::from_secs(60)).await?;

    // Another program fills the volume past the reserve.
    let ballast = disk.0.join("ballast");
    std::fs::write(&ballast, vec![7u8; 195 << 20])?;
    let begun = now();
    while !read_only(&floe).await? {
        ensure!(begun.elapsed() < Duration::from_secs(30), "never read-only");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let second = dag::over(&noise(10 << 20, 2), 256 << 10);
    let second_root = second.last().context("a root")?.cid().to_string();
    seeder.add(&second);
    let pin = json!({"cid": second_root, "origins": seeder.addresses()});
    refuses_writes_and_nothing_else(&floe, &seeder, (&kept, &first_root), pin).await?;

    // Space comes back; nobody restarts anything.
    std::fs::remove_file(&ballast)?;
    new_token(&floe)?;
    let begun = now();
    let id = loop {
        if let Ok(id) = floe.pin(&second_root, &seeder.addresses()).await {
            break id;
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "did not recover");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    floe.wait_for(&id, "pinned", Duration::from_secs(60)).await?;
    ensure!(floe.stop()? == 0);
    let verify = run(&["verify", "--offline", "--data-dir", &home.display().to_string()], &[])?;
    ensure!(verify.status.code() == Some(0), "verify --offline: {}", String::from_utf8_lossy(&verify.stdout));
    Ok(())
}

/// The disk is as large as it is; what is kept free of it is more than it has. Needs a restart to end, and no root.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_disk_under_its_reserve_refuses_writes_and_pauses_pins() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let reserve = |size: &str| Options {
        config: Some(format!("[storage]\nreserve = \"{size}\"\n")),
        ..Options::default()
    };
    let seeder = Seeder::start().await?;
    let (first, second) = (dag::over(&noise(1 << 20, 1), 64 << 10), dag::over(&noise(1 << 20, 2), 64 << 10));
    let root = |blocks: &[Block]| blocks.last().context("a root").map(|block| block.cid().to_string());
    let (first_root, second_root) = (root(&first)?, root(&second)?);
    seeder.add(&first);
    let floe = Floe::start(&home, &reserve("1MiB"))?;
    let kept = floe.pin(&first_root, &seeder.addresses()).await?;
    floe.wait_for(&kept, "pinned", Duration::from_secs(60)).await?;
    // Nobody has this one yet.
    let running = floe.pin(&second_root, &seeder.addresses()).await?;
    ensure!(floe.stop()? == 0);

    let floe = Floe::start(&home, &reserve("4096TiB"))?;
    ensure!(read_only(&floe).await?, "less is free than the reserve");
    seeder.add(&second);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, body) = floe.call("GET", &format!("/pins/{running}"), None).await?;
    ensure!(body["status"] == "pinning" || body["status"] == "queued", "without space the pin is {body}");
    let pin = json!({"cid": "bafkqabtimvwgy3yk"});
    refuses_writes_and_nothing_else(&floe, &seeder, (&kept, &first_root), pin).await?;
    ensure!(floe.stop()? == 0);

    let floe = Floe::start(&home, &reserve("1MiB"))?;
    new_token(&floe)?;
    ensure!(floe.call("GET", &format!("/pins/{kept}"), None).await?.0 == 404, "it was removed");
    floe.wait_for(&running, "pinned", Duration::from_secs(60)).await?;
    ensure!(floe.stop()? == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_a_running_pin_pauses_on_a_full_disk_and_never_fails_for_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(disk) = SmallDisk::mount(&dir.path().join("small"), 160) else {
        skipped(
            "r03_a_running_pin_pauses_on_a_full_disk",
            "a small file system cannot be mounted (needs root)",
        );
        return Ok(());
    };
    let home = disk.0.join("floe");
    let config = "[storage]\nreserve = \"16MiB\"\n".to_owned();
    let floe = Floe::start(&home, &Options { config: Some(config), ..Options::default() })?;
    std::fs::write(disk.0.join("ballast"), vec![7u8; 70 << 20])?;
    let seeder = Seeder::start().await?;
    // Larger than what is left: the disk fills while it is fetched.
    let blocks = dag::over(&noise(90 << 20, 3), 256 << 10);
    let root = blocks.last().context("a root")?.cid().to_string();
    seeder.add(&blocks);
    let id = floe.pin(&root, &seeder.addresses()).await?;
    let begun = now();
    while !read_only(&floe).await? {
        ensure!(begun.elapsed() < Duration::from_secs(60), "the disk never filled");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (_, body) = floe.call("GET", &format!("/pins/{id}"), None).await?;
    ensure!(body["status"] == "pinning", "on a full disk the pin is {body}");
    std::fs::remove_file(disk.0.join("ballast"))?;
    floe.wait_for(&id, "pinned", Duration::from_secs(90)).await?;
    Ok(())
}
