//! How fast the engine pins what an exchange hands over at once: walk, claims, packs, syncs and rows, without a
//! network. Held against it: the same blocks hashed on one core, and the same bytes given to the block store in
//! writes of 8 MiB without any walk.
//!
//! `cargo bench -p floe-engine --bench walk [-- scale]` (scale 1 is 256 MiB and 100,000 blocks)

#![expect(clippy::unwrap_used, reason = "a bench that fails should say where")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use floe_core::{Block, PinStatus};

use self::support::dags::{Dag, tree};
use self::support::{World, until};

#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

struct Line {
    took: Duration,
    blocks: usize,
    bytes: u64,
}

impl Line {
    fn new(dag: &Dag, took: Duration) -> Self {
        Self { took, blocks: dag.blocks.len(), bytes: dag.bytes() }
    }

    fn print(&self, what: &str) {
        let seconds = self.took.as_secs_f64();
        let mb = self.bytes as f64 / 1e6 / seconds;
        let per_second = self.blocks as f64 / seconds;
        #[expect(clippy::print_stdout, reason = "the result of a bench")]
        {
            println!("{what:<34} {mb:>8.0} MB/s {per_second:>10.0} blocks/s {seconds:>7.3} s");
        }
    }
}

fn hash_all(dag: &Dag) -> Line {
    let start = now();
    for block in &dag.blocks {
        Block::new(*block.cid(), block.data().clone()).unwrap();
    }
    Line::new(dag, start.elapsed())
}

async fn store_all(dag: &Dag) -> Line {
    let world = World::new().await;
    let start = now();
    let mut protect = world.blocks.protect(uuid::Uuid::from_u128(9), dag.root()).await.unwrap();
    let mut batch = Vec::new();
    let mut bytes = 0;
    for block in &dag.blocks {
        protect.claim(block.cid().hash()).unwrap();
        bytes += block.data().len();
        batch.push(block.clone());
        if bytes >= 8 << 20 || batch.len() >= 16_384 {
            protect.put(std::mem::take(&mut batch)).await.unwrap();
            bytes = 0;
        }
    }
    protect.put(batch).await.unwrap();
    protect.seal().await.unwrap();
    Line::new(dag, start.elapsed())
}

async fn pin_all(dag: &Dag, again: bool) -> Line {
    let world = World::new().await;
    let alice = world.alice().await;
    world.net.has(&dag.blocks);
    let start = now();
    let row = world.add(&alice, &dag.root()).await;
    until("it is pinned", || async { world.status(&alice, row.id).await == PinStatus::Pinned }).await;
    let took = start.elapsed();
    if !again {
        return Line::new(dag, took);
    }
    // A root above the same DAG: every block is found present.
    let top = support::dags::node(&[dag.root()]);
    world.net.has(std::slice::from_ref(&top));
    let start = now();
    let row = world.add(&alice, top.cid()).await;
    until("it is pinned", || async { world.status(&alice, row.id).await == PinStatus::Pinned }).await;
    Line::new(dag, start.elapsed())
}

fn main() {
    let scale: usize = std::env::args().filter_map(|a| a.parse().ok()).next().unwrap_or(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        for (name, dag) in [
            ("256 KiB leaves", tree(1, 1_024 * scale, 256 << 10, 174)),
            ("1 MiB leaves", tree(2, 256 * scale, 1 << 20, 174)),
            ("256 B leaves", tree(3, 100_000 * scale, 256, 174)),
        ] {
            hash_all(&dag).print(&format!("{name}: hashed on one core"));
            store_all(&dag).await.print(&format!("{name}: stored, no walk"));
            pin_all(&dag, false).await.print(&format!("{name}: pinned"));
            pin_all(&dag, true).await.print(&format!("{name}: pinned, all present"));
        }
    });
}
