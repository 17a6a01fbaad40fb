//! R03: a full disk refuses writes and recovers by itself. On a real file system that is small (a tmpfs, which
//! needs root); elsewhere the suite says `skipped:`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::seeder::Seeder;
use floe_tests::{dag, noise, skipped};
use serde_json::json;

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
    let (code, body) = floe.call("POST", "/pins", Some(pin.clone())).await?;
    ensure!(code == 507 && body["error"]["reason"] == "INSUFFICIENT_STORAGE", "POST answered {code}: {body}");
    let (code, body) = floe.call("POST", &format!("/pins/{kept}"), Some(pin)).await?;
    ensure!(code == 507, "replace answered {code}: {body}");

    // Reads and removals go on.
    let reader = Seeder::start().await?;
    let cids = seeder.cids_under(&first_root);
    ensure!(reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(30)).await?.len() == cids.len());
    reader.stop().await;
    ensure!(floe.call("GET", &format!("/pins/{kept}"), None).await?.0 == 200);
    ensure!(floe.call("DELETE", &format!("/pins/{kept}"), None).await?.0 == 202, "DELETE on a full disk");
    let gc = run(&["gc", "--data-dir", &home.display().to_string(), "--json"], &[])?;
    ensure!(gc.status.success(), "gc on a full disk: {}", String::from_utf8_lossy(&gc.stderr));

    // Space comes back; nobody restarts anything.
    std::fs::remove_file(&ballast)?;
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
