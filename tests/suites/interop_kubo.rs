//! A real Kubo pins to Floe, goes away, and another Kubo gets the bytes back from Floe alone.
//!
//! Needs a Kubo binary named by `FLOE_TEST_KUBO` (`.ci/run` builds one through Go); without it each test says
//! `skipped:` and why.

#![expect(clippy::print_stdout, reason = "a suite speaks to a person")]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::floe::{Floe, Options, now};
use floe_tests::kubo::{self, Kubo};
use floe_tests::{noise, skipped};
use serde_json::{Value, json};

/// A Floe, a Kubo that knows it as the service `floe`, and the folder they live in.
struct World {
    dir: tempfile::TempDir,
    floe: Floe,
    kubo: Kubo,
}

fn world(suite: &str) -> Result<Option<World>> {
    world_with(suite, &Options::default())
}

fn world_with(suite: &str, options: &Options) -> Result<Option<World>> {
    if kubo::binary().is_none() {
        skipped(suite, "FLOE_TEST_KUBO names no Kubo binary (needs Go 1.26)");
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let floe = Floe::start(&dir.path().join("floe"), options)?;
    let kubo = Kubo::start(&dir.path().join("kubo"))?;
    kubo.ipfs(&["pin", "remote", "service", "add", "floe", floe.api(), &floe.token()])?;
    Ok(Some(World { dir, floe, kubo }))
}

/// Another Kubo that is connected to Floe and to nobody else.
fn reader(world: &World) -> Result<Kubo> {
    let reader = Kubo::start(&world.dir.path().join("reader"))?;
    reader.ipfs(&["swarm", "connect", &world.floe.swarm_tcp()])?;
    Ok(reader)
}

fn file(dir: &Path, name: &str, len: usize, seed: u64) -> Result<String> {
    let path = dir.join(name);
    std::fs::write(&path, noise(len, seed))?;
    Ok(path.display().to_string())
}

/// Every block of a DAG, in the order of its links.
fn export(kubo: &Kubo, root: &str) -> Result<Vec<u8>> {
    output(kubo, &["dag", "export", "--progress=false", root])
}

/// What `ipfs …` writes, as bytes.
fn output(kubo: &Kubo, args: &[&str]) -> Result<Vec<u8>> {
    let out = kubo.try_ipfs(args)?;
    let said = String::from_utf8_lossy(&out.stderr);
    ensure!(out.status.success(), "ipfs {} failed: {}", args.join(" "), said.trim());
    Ok(out.stdout)
}

fn remote_status(kubo: &Kubo, cid: &str) -> Result<String> {
    kubo.ipfs(&[
        "pin",
        "remote",
        "ls",
        "--service=floe",
        "--status=queued,pinning,pinned,failed",
        &format!("--cid={cid}"),
    ])
}

#[test]
fn files_of_each_size_come_back_from_floe_alone() -> Result<()> {
    let Some(mut world) = world("files_of_each_size_come_back_from_floe_alone")? else { return Ok(()) };
    let dir = world.dir.path().to_owned();
    let gib = std::env::var("FLOE_TEST_BIG_MIB").ok().and_then(|m| m.parse().ok()).unwrap_or(1024usize);
    let mut pinned = Vec::new();
    for (name, len) in [("1KiB", 1 << 10), ("1MiB", 1 << 20), ("1GiB", gib << 20)] {
        let path = file(&dir, name, len, len as u64)?;
        let cid = world.kubo.ipfs(&["add", "-Q", "--cid-version=1", &path])?;
        let begun = now();
        let out =
            world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", &format!("--name={name}"), &cid])?;
        ensure!(out.contains("pinned"), "ipfs pin remote add said: {out}");
        println!("{name}: pinned in {:.2?}", begun.elapsed());
        pinned.push((name, cid, path));
    }
    let stat = world.kubo.ipfs(&["pin", "remote", "service", "ls", "--stat"])?;
    ensure!(stat.contains("0/0/3/0"), "service ls --stat said: {stat}");

    world.kubo.stop();
    let reader = reader(&world)?;
    for (name, cid, path) in pinned {
        let got = dir.join(format!("{name}.got"));
        let begun = now();
        reader.ipfs(&["get", "-o", &got.display().to_string(), &cid])?;
        println!("{name}: read back in {:.2?}", begun.elapsed());
        ensure!(std::fs::read(&got)? == std::fs::read(&path)?, "{name} came back changed");
        std::fs::remove_file(got)?;
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Each sync of the disk takes so long where the crash points are compiled in: a write is 8 MiB, so the disk takes
/// 80 MiB/s at most, which is far less than loopback brings.
const SYNC_MS: u64 = 100;

/// Kubo opens a stream for each message, and 16 KiB fill one: see suites/backpressure.rs for the story, which the real
/// thing repeats here, and with the crash points compiled in (`--features floe/failpoints,floe-tests/failpoints`) on a
/// disk whose syncs take their time. `FLOE_TEST_BLOCKS=100000` runs the size that the design asks for.
#[tokio::test(flavor = "multi_thread")]
async fn r22_small_blocks_by_the_thousand_over_quic() -> Result<()> {
    small_blocks("r22_small_blocks_by_the_thousand_over_quic", |floe| floe.swarm("/quic-v1")).await
}

/// The same over yamux.
#[tokio::test(flavor = "multi_thread")]
async fn r22_small_blocks_by_the_thousand_over_tcp() -> Result<()> {
    small_blocks("r22_small_blocks_by_the_thousand_over_tcp", Floe::swarm_tcp).await
}

async fn small_blocks(suite: &str, address: impl Fn(&Floe) -> String) -> Result<()> {
    let slow = cfg!(feature = "failpoints");
    let armed = ("FAILPOINTS".to_owned(), format!("disk.sync=sleep({SYNC_MS})"));
    let options = Options { env: slow.then_some(armed).into_iter().collect(), ..Options::default() };
    let Some(world) = world_with(suite, &options)? else { return Ok(()) };
    let count = std::env::var("FLOE_TEST_BLOCKS").ok().and_then(|n| n.parse().ok());
    let count = count.unwrap_or(if slow { 20_000usize } else { 5_000 });
    let path = file(world.dir.path(), "small", count * (16 << 10), 77)?;
    let add = ["add", "-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-16384", &path];
    let cid = world.kubo.ipfs(&add)?;
    // Before the pin, so that it finds one connection and needs no other.
    let address = address(&world.floe);
    world.kubo.ipfs(&["swarm", "connect", &address])?;
    let before = world.kubo.connections().await?;
    ensure!(before.opened > before.closed, "Kubo counts no connection");
    let begun = now();
    let out = world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", "--name=small", &cid])?;
    ensure!(out.contains("pinned"), "ipfs pin remote add said: {out}");
    let took = begun.elapsed();
    let after = world.kubo.connections().await?;
    println!("{count} blocks of 16 KiB over {address}: pinned in {took:.2?}, {before:?}, {after:?}");
    ensure!(after.closed == before.closed, "a connection ended meanwhile");
    ensure!(world.floe.metric("floe_peers").await? == 1.0, "Kubo is not connected any more");
    // Every write waited for the disk, or this proves nothing.
    let syncs = (count * (16 << 10)) as u64 / (16 << 20);
    let least = Duration::from_millis(if slow { syncs * SYNC_MS } else { 0 });
    ensure!(took >= least, "the disk was not slow: {took:?} for {syncs} syncs");
    Ok(())
}

#[test]
fn a_sharded_directory_of_10_000_entries_and_dag_cbor() -> Result<()> {
    let Some(mut world) = world("a_sharded_directory_of_10_000_entries_and_dag_cbor")? else { return Ok(()) };
    let tree = world.dir.path().join("tree");
    std::fs::create_dir(&tree)?;
    for i in 0..10_000 {
        std::fs::write(tree.join(format!("entry number {i:05} of the sharded directory")), format!("{i}\n"))?;
    }
    world.kubo.ipfs(&["config", "--json", "Import.UnixFSHAMTDirectorySizeThreshold", "\"1KiB\""])?;
    let root = world.kubo.ipfs(&[
        "add",
        "-r",
        "-Q",
        "--cid-version=1",
        "--raw-leaves=false",
        &tree.display().to_string(),
    ])?;
    world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", "--name=tree", &root])?;

    let node = world.dir.path().join("node.json");
    std::fs::write(
        &node,
        json!({"what": "a dag-cbor node", "tree": {"/": root}, "list": [1, 2, 3]}).to_string(),
    )?;
    let cbor = world.kubo.ipfs(&["dag", "put", "--store-codec=dag-cbor", &node.display().to_string()])?;
    world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", "--name=cbor", &cbor])?;

    // The node links to the tree: every block of both.
    let sent = export(&world.kubo, &cbor)?;
    world.kubo.stop();
    let reader = reader(&world)?;
    let names = reader.ipfs(&["ls", "--size=false", "--resolve-type=false", &root])?;
    ensure!(names.lines().count() == 10_000, "{} entries came back", names.lines().count());
    let got = world.dir.path().join("tree.got");
    reader.ipfs(&["get", "-o", &got.display().to_string(), &root])?;
    ensure!(std::fs::read_dir(&got)?.count() == 10_000, "not every entry was written");
    for i in 0..10_000 {
        let entry = format!("entry number {i:05} of the sharded directory");
        ensure!(std::fs::read_to_string(got.join(&entry))? == format!("{i}\n"), "{entry} came back changed");
    }
    let back: Value = serde_json::from_str(&reader.ipfs(&["dag", "get", &cbor])?)?;
    ensure!(
        back["tree"]["/"] == root.as_str() && back["list"] == json!([1, 2, 3]),
        "dag-cbor came back as {back}"
    );
    ensure!(export(&reader, &cbor)? == sent, "the blocks came back changed");
    Ok(())
}

#[test]
fn background_statuses_and_force_removal_over_25_pins() -> Result<()> {
    let Some(world) = world("background_statuses_and_force_removal_over_25_pins")? else { return Ok(()) };
    let dir = world.dir.path().to_owned();
    // Nobody has this one: it stays pending, and its removal works.
    let dead = "bafkreigaknpexyvxt76zgkitavbwx6ejgfheup5oybpm77f3pxzrvwpfdi";
    world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", "--background", "--name=dead", dead])?;
    let begun = now();
    while !remote_status(&world.kubo, dead)?.contains("pinning") {
        ensure!(
            begun.elapsed() < Duration::from_secs(30),
            "never pinning: {}",
            remote_status(&world.kubo, dead)?
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut sent = Vec::new();
    for i in 0..26u64 {
        let path = file(&dir, &format!("f{i}"), 2_000 + i as usize, i)?;
        let cid = world.kubo.ipfs(&["add", "-Q", &path])?;
        world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", "--background", "--name=many", &cid])?;
        sent.push((cid, path));
    }
    let count = || -> Result<usize> {
        Ok(world.kubo.ipfs(&["pin", "remote", "ls", "--service=floe", "--name=many"])?.lines().count())
    };
    let begun = now();
    while count()? < 26 {
        ensure!(begun.elapsed() < Duration::from_secs(60), "{} of 26 pinned", count()?);
        std::thread::sleep(Duration::from_millis(200));
    }
    let reader = reader(&world)?;
    for (cid, path) in &sent {
        ensure!(output(&reader, &["cat", cid])? == std::fs::read(path)?, "{path} came back changed");
    }
    // Kubo refuses to remove several without --force, and with it removes every one, page by page.
    let refused = world.kubo.try_ipfs(&["pin", "remote", "rm", "--service=floe", "--name=many"])?;
    ensure!(!refused.status.success(), "removal of 26 pins without --force was not refused");
    world.kubo.ipfs(&["pin", "remote", "rm", "--service=floe", "--name=many", "--force"])?;
    ensure!(count()? == 0, "{} pins are left", count()?);
    world.kubo.ipfs(&["pin", "remote", "rm", "--service=floe", "--name=dead", "--status=pinning"])?;
    let stat = world.kubo.ipfs(&["pin", "remote", "service", "ls", "--stat"])?;
    ensure!(stat.contains("0/0/0/0"), "service ls --stat said: {stat}");
    Ok(())
}

#[test]
fn identity_roots_are_pinned_at_once() -> Result<()> {
    let Some(world) = world("identity_roots_are_pinned_at_once")? else { return Ok(()) };
    let out = world.kubo.ipfs(&["pin", "remote", "add", "--service=floe", "--name=empty", "bafkqaaa"])?;
    ensure!(out.contains("pinned"), "ipfs pin remote add said: {out}");
    Ok(())
}

#[test]
fn the_mfs_policy_pins_and_replaces() -> Result<()> {
    let Some(mut world) = world("the_mfs_policy_pins_and_replaces")? else { return Ok(()) };
    world.kubo.ipfs(&["config", "--json", "Pinning.RemoteServices.floe.Policies.MFS.Enable", "true"])?;
    world.kubo.ipfs(&["config", "Pinning.RemoteServices.floe.Policies.MFS.RepinInterval", "1s"])?;
    world.kubo.ipfs(&["config", "Pinning.RemoteServices.floe.Policies.MFS.PinName", "mfs"])?;
    world.kubo.stop();
    world.kubo.daemon()?;
    let (mut sent, mut last) = (Vec::new(), String::new());
    for round in 0..3u64 {
        let path = file(world.dir.path(), &format!("m{round}"), 300_000, 900 + round)?;
        let cid = world.kubo.ipfs(&["add", "-Q", "--cid-version=1", &path])?;
        world.kubo.ipfs(&["files", "cp", &format!("/ipfs/{cid}"), &format!("/m{round}")])?;
        let root = world.kubo.ipfs(&["files", "stat", "--hash", "/"])?;
        let begun = now();
        loop {
            let pins = world.kubo.ipfs(&["pin", "remote", "ls", "--service=floe", "--name=mfs"])?;
            if pins.contains(&root) {
                ensure!(pins.lines().count() == 1, "replaced pins are still listed: {pins}");
                break;
            }
            // The policy looks once in a while; Kubo's own pause between two looks is 5 minutes at the most.
            ensure!(
                begun.elapsed() < Duration::from_secs(60),
                "round {round}: {root} was not pinned: {pins}"
            );
            std::thread::sleep(Duration::from_millis(250));
        }
        sent.push(path);
        last = root;
    }

    world.kubo.stop();
    let reader = reader(&world)?;
    for (round, path) in sent.iter().enumerate() {
        let got = output(&reader, &["cat", &format!("/ipfs/{last}/m{round}")])?;
        ensure!(got == std::fs::read(path)?, "{path} came back changed");
    }
    Ok(())
}

#[test]
fn a_wrong_token_and_a_wrong_path_are_told_apart() -> Result<()> {
    let Some(world) = world("a_wrong_token_and_a_wrong_path_are_told_apart")? else { return Ok(()) };
    world.kubo.ipfs(&["pin", "remote", "service", "add", "wrong", world.floe.api(), "floe_wrong"])?;
    let out = world.kubo.try_ipfs(&["pin", "remote", "ls", "--service=wrong"])?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && said.contains("UNAUTHORIZED"), "a wrong token: {said}");
    let stat = world.kubo.ipfs(&["pin", "remote", "service", "ls", "--stat"])?;
    let line = stat.lines().find(|l| l.starts_with("wrong")).context("no line for the service")?;
    ensure!(line.contains("invalid"), "service ls --stat: {line}");

    let path = format!("{}/nowhere", world.floe.api());
    world.kubo.ipfs(&["pin", "remote", "service", "add", "lost", &path, &world.floe.token()])?;
    let out = world.kubo.try_ipfs(&["pin", "remote", "ls", "--service=lost"])?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && said.contains("NOT_FOUND"), "a wrong path: {said}");
    Ok(())
}
