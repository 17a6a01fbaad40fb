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

/// Fills a volume but for so many bytes. What does it, to be removed.
fn fill_but(volume: &Path, left: u64) -> Result<PathBuf> {
    use std::io::Write as _;
    let ballast = volume.join("ballast");
    let mut file = std::fs::File::create(&ballast)?;
    // A page at a time: what is left in the end is what no file can have.
    let page = [7u8; 4096];
    while file.write_all(&page).is_ok() {}
    let len = file.metadata()?.len();
    file.set_len(len.saturating_sub(left))?;
    Ok(ballast)
}

/// A stopped node with a pin of 20 MiB on a small volume, what it pinned, and the pin's id.
struct Small {
    disk: SmallDisk,
    home: PathBuf,
    options: Options,
    seeder: Seeder,
    blocks: Vec<Block>,
    kept: String,
}

impl Small {
    /// `None` where none can be mounted, after saying so.
    async fn with_a_pin(test: &str, dir: &Path) -> Result<Option<Self>> {
        let Some(disk) = SmallDisk::mount(&dir.join("small"), 256) else {
            skipped(test, "a small file system cannot be mounted (needs root)");
            return Ok(None);
        };
        let home = disk.0.join("floe");
        let options =
            Options { config: Some("[storage]\nreserve = \"32MiB\"\n".into()), ..Options::default() };
        let floe = Floe::start(&home, &options)?;
        let seeder = Seeder::start().await?;
        let blocks = dag::over(&noise(20 << 20, 1), 256 << 10);
        seeder.add(&blocks);
        let root = blocks.last().context("a root")?.cid().to_string();
        let kept = floe.pin(&root, &seeder.addresses()).await?;
        floe.wait_for(&kept, "pinned", Duration::from_secs(60)).await?;
        ensure!(floe.stop()? == 0);
        Ok(Some(Self { disk, home, options: Options::default(), seeder, blocks, kept }))
    }

    fn root(&self) -> Result<String> {
        Ok(self.blocks.last().context("a root")?.cid().to_string())
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
    sound(&home)
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

/// The story: filled to the last byte, the node could not be started again, so nothing could be removed to make room.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_node_without_a_free_byte_starts_removes_and_recovers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let test = "r03_a_node_without_a_free_byte_starts_removes_and_recovers";
    let Some(small) = Small::with_a_pin(test, dir.path()).await? else { return Ok(()) };
    let ballast = fill_but(&small.disk.0, 0)?;
    let floe = Floe::start(&small.home, &small.options)?;
    ensure!(read_only(&floe).await?);
    let second = dag::over(&noise(1 << 20, 2), 256 << 10);
    small.seeder.add(&second);
    let second_root = second.last().context("a root")?.cid().to_string();
    let pin = json!({"cid": second_root, "origins": small.seeder.addresses()});
    refuses_writes_and_nothing_else(&floe, &small.seeder, (&small.kept, &small.root()?), pin).await?;

    // The pin's space alone is not the reserve. What another program took comes back; nobody restarts anything.
    std::fs::remove_file(&ballast)?;
    new_token(&floe)?;
    let begun = now();
    let id = loop {
        if let Ok(id) = floe.pin(&second_root, &small.seeder.addresses()).await {
            break id;
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "did not recover");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    floe.wait_for(&id, "pinned", Duration::from_secs(60)).await?;
    ensure!(floe.stop()? == 0);
    sound(&small.home)
}

/// A running node whose volume another program fills to the last byte under it.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_running_node_without_a_free_byte_reads_and_removes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let test = "r03_a_running_node_without_a_free_byte_reads_and_removes";
    let Some(small) = Small::with_a_pin(test, dir.path()).await? else { return Ok(()) };
    let floe = Floe::start(&small.home, &small.options)?;
    let ballast = fill_but(&small.disk.0, 0)?;
    let begun = now();
    while !read_only(&floe).await? {
        ensure!(begun.elapsed() < Duration::from_secs(30), "never read-only");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let pin = json!({"cid": "bafkqabtimvwgy3yk"});
    refuses_writes_and_nothing_else(&floe, &small.seeder, (&small.kept, &small.root()?), pin).await?;
    std::fs::remove_file(&ballast)?;
    ensure!(floe.stop()? == 0);
    sound(&small.home)
}

/// A start that has no room says how much is missing, with an exit code of its own, and loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_start_without_room_says_what_is_missing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(small) = Small::with_a_pin("r03_a_start_without_room_says_what_is_missing", dir.path()).await?
    else {
        return Ok(());
    };
    // What it would start with is given up already, as on a disk that has been full for long.
    std::fs::remove_file(small.home.join("rows.reserve"))?;
    for (left, needed) in [(0, 1024), (600 << 10, 424)] {
        let ballast = fill_but(&small.disk.0, left)?;
        let home = small.home.display().to_string();
        for command in [&["serve", "--offline"][..], &["verify", "--offline"]] {
            let done = run(&[command, &["--data-dir", &home]].concat(), &[])?;
            let said = String::from_utf8_lossy(&done.stderr);
            ensure!(
                done.status.code() == Some(14),
                "{command:?} with {left} bytes: {:?}: {said}",
                done.status
            );
            ensure!(said.contains("a start needs 1024 KiB") && said.contains(&home), "{said}");
            // The volume counts in pages, and its folders take some.
            let missing =
                said.split("free ").nth(2).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
            ensure!(missing.is_some_and(|missing| missing.abs_diff(needed) <= 64), "{missing:?}: {said}");
        }
        std::fs::remove_file(&ballast)?;
    }
    // Nothing is there yet, and nothing is begun.
    let ballast = fill_but(&small.disk.0, 0)?;
    let new = small.disk.0.join("new");
    let done = run(&["init", "--data-dir", &new.display().to_string()], &[])?;
    ensure!(done.status.code() == Some(14) && !new.exists(), "{:?}", String::from_utf8_lossy(&done.stderr));
    std::fs::remove_file(&ballast)?;
    // With just so much it runs.
    let ballast = fill_but(&small.disk.0, (1 << 20) + (16 << 10))?;
    let floe = Floe::start(&small.home, &small.options)?;
    ensure!(floe.call("GET", &format!("/pins/{}", small.kept), None).await?.0 == 200);
    ensure!(floe.stop()? == 0);
    std::fs::remove_file(&ballast)?;
    sound(&small.home)
}

/// Nothing is damaged or lost.
fn sound(home: &Path) -> Result<()> {
    let verify = run(&["verify", "--offline", "--data-dir", &home.display().to_string()], &[])?;
    ensure!(verify.status.code() == Some(0), "verify --offline: {}", String::from_utf8_lossy(&verify.stdout));
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
