//! What the suites share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "test support; each suite uses its part")]

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use floe_blockstore::testing::FaultyDisk;
use floe_blockstore::{BlockStore, Components, Disk, Error, IndexKind, RealDisk, Settings};
use floe_core::cid::code;
use floe_core::{Block, Cid, ManualClock};
use uuid::Uuid;

pub const KINDS: [IndexKind; 2] = [IndexKind::Redb, IndexKind::Sled];
/// Where the store is on a disk in memory.
pub const ROOT: &str = "/blocks";

pub fn wait<T>(f: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(f)
}

pub fn settings(dir: &Path, index: IndexKind) -> Settings {
    Settings { dir: dir.into(), index, pack_bytes: 64 << 10, reserve_bytes: Some(0) }
}

pub fn on(disk: impl Disk, settings: Settings) -> Result<BlockStore, Error> {
    let clock = Arc::new(ManualClock::default());
    BlockStore::open(
        settings,
        Components { disk: Arc::new(disk), clock, entropy: Arc::new(floe_core::Seeded::new(1)) },
    )
}

pub fn real(dir: &Path, index: IndexKind) -> BlockStore {
    on(RealDisk, settings(dir, index)).unwrap()
}

pub fn memory(disk: &FaultyDisk) -> Result<BlockStore, Error> {
    on(disk.clone(), settings(Path::new(ROOT), IndexKind::Redb))
}

/// The block number `n`, with `len` bytes that no other number has.
pub fn block(n: u64, len: usize) -> Block {
    let mut data = n.to_le_bytes().to_vec();
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while data.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        data.extend_from_slice(&x.to_le_bytes());
    }
    data.truncate(len.max(8));
    Block::of(code::RAW, data.into()).unwrap()
}

pub fn root() -> Cid {
    *block(u64::MAX, 8).cid()
}

pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

/// Pins `blocks` under `n` and seals.
pub fn pin(store: &BlockStore, n: u128, blocks: &[Block]) -> Result<(), Error> {
    wait(async {
        let mut protect = store.protect(id(n), root()).await?;
        let mut absent = Vec::new();
        for b in blocks {
            if protect.claim(b.cid().hash())? == floe_blockstore::Claim::Absent {
                absent.push(b.clone());
            }
        }
        protect.put(absent).await?;
        protect.seal().await.map(drop)
    })
}

pub fn has(store: &BlockStore, b: &Block) -> bool {
    let got = store.get(b.cid()).unwrap();
    assert!(got.as_ref().is_none_or(|g| g == b), "bytes of another block");
    let size = store.size(b.cid().hash()).unwrap();
    if got.is_some() {
        assert_eq!(size, Some(b.data().len() as u32));
    }
    got.is_some()
}

/// The packs of a directory on the real disk, oldest first.
pub fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = std::fs::read_dir(dir.join("packs")).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}
