//! What a start makes of damaged files. What only the operator can bring back ends it with 13; what proves an account is
//! told by who uses it; what can be made again is made again.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use floe_blockstore::{BlockStore, Claim, IndexKind, RealDisk};
use floe_core::cid::code;
use floe_core::{Block, ManualClock};
use serde_json::Value;
use uuid::Uuid;

use support::{Node, ends_with, exit_code, log, now};

const EMPTY: &str = "bafkqaaa";
/// Blocks that fill a few packs of the smallest size.
const BLOCKS: u32 = 24;
const BLOCK_BYTES: usize = 128 << 10;

type Damage = fn(&mut Vec<u8>);

/// A file that lost all of its bytes, the second half of them, or one bit.
const DAMAGES: [(&str, Damage); 3] = [
    ("empty", Vec::clear),
    ("truncated", |bytes| bytes.truncate(bytes.len() / 2)),
    ("flipped", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    }),
];

fn initialised() -> (tempfile::TempDir, PathBuf, String) {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().join("floe");
    let dir_arg = dir.display().to_string();
    ends_with(0, &["init", "--data-dir", &dir_arg]);
    (keep, dir, dir_arg)
}

/// Damages a file; what it holds then.
fn damage(path: &Path, how: Damage) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    how(&mut bytes);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

/// A damaged identity.key ended with exit code 1, and systemd, which was told that starting again does not help after
/// 13, started the node again every two seconds for ever.
#[test]
fn a_damaged_identity_ends_with_13_and_is_left_as_it_is() {
    let (_keep, dir, dir_arg) = initialised();
    let path = dir.join("identity.key");
    let good = std::fs::read(&path).unwrap();
    let free = ["--api-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"];
    for (name, how) in DAMAGES {
        let left = damage(&path, how);
        for command in [[&["serve", "--offline"][..], &free].concat(), vec!["init"]] {
            let (_, err) = ends_with(13, &[&command[..], &["--data-dir", &dir_arg]].concat());
            assert!(err.contains("identity.key") && err.contains("restore it"), "{name}: {err}");
            assert_eq!(std::fs::read(&path).unwrap(), left, "{name}: a key was made anew");
        }
        std::fs::write(&path, &good).unwrap();
    }
    assert_eq!(Node::start(&dir).stop(), 0, "the right key is taken again");
}

#[test]
fn damaged_token_files_are_no_failure_of_a_start_and_are_made_again_once_deleted() {
    let (_keep, dir, dir_arg) = initialised();
    for (name, how) in DAMAGES {
        damage(&dir.join("admin.token"), how);
        let pin_token = String::from_utf8(damage(&dir.join("pin.token"), how)).unwrap();
        let node = Node::start(&dir);
        let (_, err) = ends_with(4, &["status", "--data-dir", &dir_arg]);
        assert!(err.contains("admin.token") && err.contains("delete that file"), "{name}: {err}");
        // An empty --token would be none at all.
        if !pin_token.trim().is_empty() {
            node.cli(4, &["pin", "ls", "--token", pin_token.trim()]);
        }
        assert_eq!(node.stop(), 0);

        for file in ["admin.token", "pin.token"] {
            std::fs::remove_file(dir.join(file)).unwrap();
        }
        let node = Node::start(&dir);
        assert!(log(&dir).contains("pin.token was missing"), "{name}: {}", log(&dir));
        node.json(0, &["status"]);
        let pin_token = std::fs::read_to_string(dir.join("pin.token")).unwrap();
        node.cli(0, &["pin", "add", EMPTY, "--token", pin_token.trim()]);
        assert_eq!(node.stop(), 0);
    }
}

/// A damaged `provides-1.redb`, which holds nothing that the rows do not know, ended each start with exit code 1, and with
/// some damages in a panic.
#[test]
fn r10_a_damaged_table_of_announced_roots_is_made_anew() {
    let (_keep, dir, dir_arg) = initialised();
    let path = dir.join("provides-1.redb");
    let node = Node::start(&dir);
    node.cli(0, &["pin", "add", EMPTY]);
    assert_eq!(node.stop(), 0);
    let good = std::fs::read(&path).unwrap();
    for (name, how) in DAMAGES {
        damage(&path, how);
        let node = Node::start(&dir);
        node.json(0, &["status"]);
        assert_eq!(node.stop(), 0, "{name}");
        // An empty file is no damage to redb, and a bit in its middle is in no page that is used.
        if name == "truncated" {
            let aside = dir.join("provides-1.redb.damaged");
            assert_eq!(std::fs::read(&aside).unwrap().len(), good.len() / 2);
            assert!(log(&dir).contains("all roots are announced again"), "{}", log(&dir));
        }
        std::fs::write(&path, &good).unwrap();
    }
    let foreign = [&b"SQLite format 3"[..], &[0; 4096]].concat();
    std::fs::write(&path, &foreign).unwrap();
    let free = ["--api-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"];
    let serve = [&["serve", "--offline"][..], &free, &["--data-dir", &dir_arg]].concat();
    let (_, err) = ends_with(13, &serve);
    assert!(err.contains("provides-1.redb") && err.contains("move it away"), "{err}");
    assert_eq!(std::fs::read(&path).unwrap(), foreign, "it is somebody's");
}

/// The key of the URLs that providers pull from was read at each start: a rotten one stopped nodes that have no provider.
#[test]
fn a_damaged_pull_key_stops_nobody_but_who_serves_pieces() {
    let (_keep, dir, dir_arg) = initialised();
    let path = dir.join("pull.key");
    let good = std::fs::read(&path).unwrap();
    for (name, how) in DAMAGES {
        let left = damage(&path, how);
        assert_eq!(Node::start(&dir).stop(), 0, "{name}");
        ends_with(0, &["init", "--data-dir", &dir_arg]);
        // A bit that turns in a digit may make another digit, and so another key, under whose URLs nobody was sent.
        if name != "flipped" {
            let mut child = Node::spawn(&dir, &[], &[("FLOE_FILECOIN_PULL_ADDR", "127.0.0.1:0")]);
            assert_eq!(exit_code(&mut child), 13, "{name}: {}", log(&dir));
            assert!(log(&dir).contains("pull.key is damaged"), "{name}: {}", log(&dir));
        }
        assert_eq!(std::fs::read(&path).unwrap(), left, "{name}: a key was made anew");
        std::fs::write(&path, &good).unwrap();
    }
    let node = Node::start_with(&dir, &[], &[("FLOE_FILECOIN_PULL_ADDR", "127.0.0.1:0")]);
    assert_eq!(node.stop(), 0, "the right key is taken again");
}

#[tokio::test]
async fn a_damaged_hint_is_no_failure() {
    let (_keep, dir, dir_arg) = initialised();
    let blocks = dir.join("blocks");
    fill(&blocks).await;
    assert!(made_again_by_hints(&dir) >= 2, "whole hints are believed: {}", log(&dir));
    for (name, how) in DAMAGES {
        let hints: Vec<PathBuf> =
            std::fs::read_dir(blocks.join("hints")).unwrap().map(|hint| hint.unwrap().path()).collect();
        assert!(hints.len() >= 2, "{name}: {hints:?}");
        let kept: Vec<Vec<u8>> = hints.iter().map(|hint| std::fs::read(hint).unwrap()).collect();
        hints.iter().for_each(|hint| drop(damage(hint, how)));
        assert_eq!(made_again_by_hints(&dir), 0, "{name}: {}", log(&dir));
        let (out, _) = ends_with(0, &["verify", "--offline", "--data-dir", &dir_arg, "--json"]);
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["blocks"], BLOCKS, "{name}: {report}");
        for (hint, bytes) in hints.iter().zip(kept) {
            std::fs::write(hint, bytes).unwrap();
        }
    }
}

/// Starts and stops a node that has to make the index again, which is what hints are for; how many packs it took from
/// theirs.
fn made_again_by_hints(dir: &Path) -> u32 {
    std::fs::remove_file(dir.join("blocks/index-1.redb")).unwrap();
    assert_eq!(Node::start_with(dir, &[], &[("FLOE_STORAGE_PACK_SIZE", "1MiB")]).stop(), 0);
    let log = log(dir);
    let (said, _) = log.rsplit_once(" of them by their hints").unwrap();
    said.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Stores some packs of blocks, with their hints. No row names them: a start keeps such blocks.
async fn fill(dir: &Path) {
    let settings = floe_blockstore::Settings {
        dir: dir.to_owned(),
        index: IndexKind::Redb,
        pack_bytes: 1 << 20,
        reserve_bytes: Some(0),
    };
    let clock = Arc::new(ManualClock::default());
    let entropy = Arc::new(floe_core::Seeded::new(1));
    let components = floe_blockstore::Components { disk: Arc::new(RealDisk), clock, entropy };
    let store =
        tokio::task::spawn_blocking(|| BlockStore::open(settings, components)).await.unwrap().unwrap();
    let blocks: Vec<Block> = (0..BLOCKS).map(block).collect();
    let mut protect = store.protect(Uuid::from_u128(1), *blocks[0].cid()).await.unwrap();
    for block in &blocks {
        assert_eq!(protect.claim(block.cid().hash()).unwrap(), Claim::Absent);
    }
    // What is put at once goes into one pack.
    for some in blocks.chunks(4) {
        protect.put(some.to_vec()).await.unwrap();
    }
    protect.seal().await.unwrap();
    // The collector writes hints when it has nothing better to do.
    let begun = now();
    while std::fs::read_dir(dir.join("hints")).unwrap().count() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(20), "no hints");
        store.collect().await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    store.close().await.unwrap();
}

fn block(n: u32) -> Block {
    let bytes: Vec<u8> = n.to_le_bytes().into_iter().cycle().take(BLOCK_BYTES).collect();
    Block::of(code::RAW, bytes.into()).unwrap()
}
