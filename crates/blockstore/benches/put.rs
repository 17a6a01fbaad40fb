//! Durable puts against the plain file they cannot beat: the same bytes, written and synced in groups of the same
//! size, in the same run. Prints MB/s, the ratio, and the memory of the process.
//!
//! `cargo bench -p floe-blockstore`; `FLOE_BENCH_MIB` sets the bytes of each row (256).
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench")]

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floe_blockstore::{BlockStore, Components, IndexKind, RealDisk, Settings};
use floe_core::cid::code;
use floe_core::{Block, ManualClock};
use uuid::Uuid;

/// As much as one group of the writer.
const GROUP: usize = 16 << 20;

fn main() {
    let mib: usize = std::env::var("FLOE_BENCH_MIB").ok().and_then(|v| v.parse().ok()).unwrap_or(256);
    println!(
        "{:>8} {:>6} {:>10} {:>10} {:>7} {:>10} {:>8}",
        "block", "index", "raw MB/s", "put MB/s", "ratio", "blocks/s", "RSS MiB"
    );
    for kind in [IndexKind::Redb, IndexKind::Sled] {
        for size in [1 << 20, 256 << 10, 256] {
            let count = if size == 256 { 100_000 } else { (mib << 20) / size };
            row(kind, size, count);
        }
    }
}

fn row(kind: IndexKind, size: usize, count: usize) {
    let blocks: Vec<Block> = (0..count).map(|n| block(n as u64, size)).collect();
    let bytes = (size * count) as f64;
    let dir = tempfile::tempdir_in(".").unwrap();
    // Once each before it counts, so that neither pays for the other's cold start.
    let (mut raw, mut put) = (Duration::MAX, Duration::MAX);
    let before = rss();
    let mut grown = 0;
    for round in 0..3 {
        raw = raw.min(raw_file(&dir.path().join(format!("raw-{round}")), &blocks));
        let at = dir.path().join(format!("store-{round}"));
        put = put.min(store(kind, &at, &blocks));
        grown = grown.max(rss().saturating_sub(before));
    }
    let rate = |t: Duration| bytes / t.as_secs_f64() / 1e6;
    println!(
        "{:>8} {:>6} {:>10.0} {:>10.0} {:>7.2} {:>10.0} {:>8}",
        size,
        format!("{kind:?}").to_lowercase(),
        rate(raw),
        rate(put),
        rate(put) / rate(raw),
        count as f64 / put.as_secs_f64(),
        grown >> 20
    );
}

fn raw_file(path: &Path, blocks: &[Block]) -> Duration {
    let mut file = File::create(path).unwrap();
    let per_group = (GROUP / blocks[0].data().len()).max(1);
    let time = timed(|| {
        for group in blocks.chunks(per_group) {
            // Small blocks in one call, as anybody would.
            if group[0].data().len() < 4096 {
                let all: Vec<u8> = group.iter().flat_map(|b| b.data().iter().copied()).collect();
                file.write_all(&all).unwrap();
            } else {
                group.iter().for_each(|b| file.write_all(b.data()).unwrap());
            }
            file.sync_data().unwrap();
        }
    });
    std::fs::remove_file(path).unwrap();
    time
}

fn store(kind: IndexKind, dir: &Path, blocks: &[Block]) -> Duration {
    let settings = Settings { dir: dir.into(), index: kind, pack_bytes: 512 << 20, reserve_bytes: Some(0) };
    let (clock, entropy) = (Arc::new(ManualClock::default()), Arc::new(floe_core::Seeded::new(1)));
    let components = Components { disk: Arc::new(RealDisk), clock, entropy };
    let store = BlockStore::open(settings, components).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let time = timed(|| {
        runtime.block_on(async {
            let mut protect = store.protect(Uuid::from_u128(1), *blocks[0].cid()).await.unwrap();
            for group in blocks.chunks(4096) {
                for block in group {
                    protect.claim(block.cid().hash()).unwrap();
                }
                protect.put(group.to_vec()).await.unwrap();
            }
            protect.seal().await.unwrap();
        });
    });
    runtime.block_on(store.close()).unwrap();
    drop(store);
    std::fs::remove_dir_all(dir).unwrap();
    time
}

#[expect(clippy::disallowed_methods, reason = "a bench measures the time that passes")]
fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn block(n: u64, size: usize) -> Block {
    let mut data = vec![0; size];
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in data.chunks_exact_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        word.copy_from_slice(&x.to_le_bytes());
    }
    data[..8].copy_from_slice(&n.to_le_bytes());
    Block::of(code::RAW, data.into()).unwrap()
}

/// Bytes of memory of this process.
fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok()).unwrap_or(0) * 4096
}
