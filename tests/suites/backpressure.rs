//! A peer in Kubo's manner against a disk that syncs slowly: the whole DAG comes, over one connection, in bounded
//! memory.
//!
//! The story: Kubo opens a stream for each message. A node that stops reading while its disk is busy lets those
//! streams pile up until the muxer's bound ends the connection, and one that drops streams in place of that
//! loses blocks: a pull of 1 GiB stopped after 315 of them. So streams are always drained, and what holds the
//! network back is wants that are not sent.
//!
//! The engine, the stores and the node are the real ones, in this process, because only here can the disk be
//! slowed. 20,000 blocks of 16 KiB keep it short; `FLOE_TEST_BLOCKS=100000` runs the size that the design asks for.

#![allow(clippy::print_stdout, reason = "a suite speaks to a person")]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use floe_bitswap::wire;
use floe_blockstore::testing::{Touch, Watched};
use floe_blockstore::{BlockStore, RealDisk};
use floe_core::cid::code;
use floe_core::ports::{LocalBlocks, Network as _, ReadError};
use floe_core::{Block, Cid, Multihash, PinStatus};
use floe_engine::{Engine, PinSpec, Scope};
use floe_ipfs::{Identity, Node, PrivateAddresses};
use floe_records::Records;
use floe_tests::floe::now;
use floe_tests::process::{memory_mib, reset_peak};
use floe_tests::seeder::System;
use floe_tests::{dag, noise, skipped};

const LEAF_BYTES: usize = 16 << 10;

/// What one sync takes: that of a busy disk. A write is 8 MiB, so the disk takes 40 MiB/s at most, which is
/// far less than loopback brings.
const SYNC: Duration = Duration::from_millis(200);

/// Twice what a write holds, for one that is shared.
const MIB_PER_SYNC: u64 = 16;

/// What the process may grow by. A fetch holds 24 MiB that are not yet written and has 32 MiB in flight; the
/// rest is the stores' caches, the muxer, and the peer that serves, which is in this process too.
const GROWTH_MIB: f64 = 224.0;

/// The real disk, whose syncs take their time and are counted.
fn slow_disk(syncs: Arc<AtomicU64>) -> Watched<RealDisk> {
    Watched::new(RealDisk, move |_, touch| {
        if touch == Touch::Sync {
            syncs.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(SYNC);
        }
        Ok(())
    })
}

/// A DAG whose leaves are made when they are asked for, so that it takes no memory.
struct Made {
    leaves: HashMap<Multihash, u64>,
    nodes: HashMap<Multihash, Block>,
    root: Cid,
}

impl Made {
    fn of(count: u64) -> Result<Self> {
        let leaf = |n: u64| Block::of(code::RAW, leaf(n)).map(|block| *block.cid());
        let cids = (0..count).map(leaf).collect::<Result<Vec<Cid>, _>>()?;
        let leaves = cids.iter().zip(0..).map(|(cid, n)| (*cid.hash(), n)).collect();
        let nodes = dag::tree(cids);
        let root = *nodes.last().context("a root")?.cid();
        Ok(Self { leaves, nodes: nodes.into_iter().map(|node| (*node.cid().hash(), node)).collect(), root })
    }

    fn blocks(&self) -> usize {
        self.leaves.len() + self.nodes.len()
    }
}

fn leaf(n: u64) -> Bytes {
    noise(LEAF_BYTES, n + 1).into()
}

impl LocalBlocks for Made {
    fn size(&self, cid: &Cid) -> Result<Option<u32>, ReadError> {
        Ok(self.read(cid)?.and_then(|data| u32::try_from(data.len()).ok()))
    }

    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError> {
        let made = self.leaves.get(cid.hash()).map(|n| leaf(*n));
        Ok(made.or_else(|| self.nodes.get(cid.hash()).map(|node| node.data().clone())))
    }
}

/// The stores on a slow disk, the node, and the engine over them.
struct Rig {
    blocks: BlockStore,
    records: Records,
    node: Node,
    engine: Engine,
    syncs: Arc<AtomicU64>,
}

impl Rig {
    async fn start(dir: &Path) -> Result<Self> {
        let (clock, entropy) = (Arc::new(System), Arc::new(System));
        let syncs = Arc::<AtomicU64>::default();
        let settings = floe_blockstore::Settings {
            dir: dir.join("blocks-1"),
            index: floe_blockstore::IndexKind::Redb,
            pack_bytes: 256 << 20,
            reserve_bytes: Some(1 << 20),
        };
        let disk = Arc::new(slow_disk(syncs.clone()));
        let components = floe_blockstore::Components { disk, clock: clock.clone(), entropy: entropy.clone() };
        let blocks = tokio::task::spawn_blocking(move || BlockStore::open(settings, components)).await??;
        let settings = floe_records::Settings::at(dir.join("pins-1.sqlite"));
        let components = floe_records::Components { clock: clock.clone(), entropy: entropy.clone() };
        let records = Records::open(settings, components).await?;
        let mut settings =
            floe_ipfs::Settings::local(dir.to_owned(), Identity::File(dir.join("identity.key")));
        settings.private_addresses = PrivateAddresses::Allow;
        let components = floe_ipfs::Components {
            blocks: Arc::new(blocks.clone()),
            clock: clock.clone(),
            entropy: entropy.clone(),
        };
        let node = Node::start(settings, components).await?;
        let components = floe_engine::Components {
            blocks: blocks.clone(),
            records: records.clone(),
            exchange: Arc::new(node.clone()),
            network: Arc::new(node.clone()),
            clock,
            entropy,
            cold: None,
        };
        let engine = Engine::start(floe_engine::Settings::default(), components).await?;
        Ok(Self { blocks, records, node, engine, syncs })
    }

    /// Pins `root` and waits until it is; `look` is called meanwhile.
    async fn pin(&self, root: Cid, within: Duration, mut look: impl FnMut() -> Result<()>) -> Result<()> {
        self.engine.create_account("alice", None, None).await?;
        let (_, secret) = self.engine.create_token("alice", &[Scope::PinsWrite], None).await?;
        let who = self.engine.authenticate(&secret).await?.context("the token is new")?;
        let spec = PinSpec {
            cid_text: root.to_string(),
            cid: root,
            name: None,
            origins: Vec::new(),
            meta: BTreeMap::new(),
            policy: Default::default(),
        };
        let id = self.engine.add_pins(&who, vec![spec], true, None).await?.remove(0).id;
        let begun = now();
        loop {
            let pin = self.engine.pin(&who, id).await?;
            if pin.status == PinStatus::Pinned {
                return Ok(());
            }
            ensure!(pin.status != PinStatus::Failed, "the pin failed: {pin:?}");
            ensure!(begun.elapsed() < within, "not pinned within {within:?}: {pin:?}");
            look()?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stop(self) -> Result<()> {
        self.engine.stop().await;
        self.node.stop().await;
        self.records.close().await;
        Ok(self.blocks.close().await?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r22_kubos_manner_against_a_slow_disk() -> Result<()> {
    let count = std::env::var("FLOE_TEST_BLOCKS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000u64);
    let made = Arc::new(Made::of(count)?);
    let dir = tempfile::tempdir()?;
    let rig = Rig::start(dir.path()).await?;
    let address = rig.node.status().listen.first().context("an address")?.parse()?;
    let peer = wire::Peer::dial(address).await;
    // It ends with the connection.
    let serving = tokio::spawn(wire::serve(peer, made.clone()));

    let pid = std::process::id();
    reset_peak(pid);
    let (before, _) = memory_mib(pid);
    let (begun, synced) = (now(), rig.syncs.load(Ordering::Relaxed));
    let within = Duration::from_secs(60 + count / 250);
    rig.pin(made.root, within, || {
        ensure!(!serving.is_finished(), "the connection was ended");
        Ok(())
    })
    .await?;
    let (took, syncs) = (begun.elapsed(), rig.syncs.load(Ordering::Relaxed) - synced);
    let (_, peak) = memory_mib(pid);
    println!("{count} blocks in {took:.1?}, {syncs} syncs, {before:.0} MiB before, {peak:.0} MiB at most");

    ensure!(!serving.is_finished() && rig.node.status().peers == 1, "over one connection");
    let stored = rig.engine.status().await?.blocks;
    ensure!(stored == made.blocks() as u64, "{stored} of {} blocks are stored", made.blocks());
    // Every few megabytes waited for the disk, or this proves nothing.
    ensure!(
        (syncs * MIB_PER_SYNC) << 20 >= count * LEAF_BYTES as u64,
        "{syncs} syncs: the disk was not slow"
    );
    if before == 0.0 {
        skipped("r22_kubos_manner_against_a_slow_disk", "its memory cannot be read (needs /proc)");
    } else {
        ensure!(peak - before < GROWTH_MIB, "grew from {before:.0} MiB to {peak:.0} MiB");
    }
    rig.stop().await
}
