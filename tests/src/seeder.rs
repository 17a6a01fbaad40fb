//! A peer of our own: a libp2p node that serves blocks from memory and fetches them.
//!
//! It stands in for the client's IPFS node where the suites have no Kubo. As a child process
//! ([`Child`], [`child_main`]) it is the other end of the benches, and also sends a raw stream of the same bytes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use floe_core::clock::BoxFuture;
use floe_core::ports::{Entropy, Exchange as _, LocalBlocks, Network as _, Origins, ReadError, SessionHints};
use floe_core::{Block, Cid, Clock, Multihash, Timestamp};
use floe_ipfs::{Identity, Node, PrivateAddresses, Settings};

use crate::floe::Floe;

/// Blocks in memory, and how many were handed out.
#[derive(Default)]
struct Memory {
    blocks: Mutex<HashMap<Multihash, Block>>,
    served: AtomicUsize,
}

impl LocalBlocks for Memory {
    fn size(&self, cid: &Cid) -> Result<Option<u32>, ReadError> {
        Ok(self.get(cid).map(|b| u32::try_from(b.data().len()).expect("blocks have at most 2 MiB")))
    }

    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError> {
        let found = self.get(cid).map(Block::into_data);
        self.served.fetch_add(usize::from(found.is_some()), Ordering::Relaxed);
        Ok(found)
    }
}

impl Memory {
    fn get(&self, cid: &Cid) -> Option<Block> {
        self.blocks.lock().expect("no holder panics").get(cid.hash()).cloned()
    }
}

/// The system's clock and randomness.
pub struct System;

impl Clock for System {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter")]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is the adapter")]
    fn monotonic(&self) -> Duration {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        START.get_or_init(std::time::Instant::now).elapsed()
    }

    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_))
    }
}

impl Entropy for System {
    #[expect(clippy::disallowed_methods, reason = "this is the adapter")]
    fn fill(&self, out: &mut [u8]) {
        rand::Rng::fill_bytes(&mut rand::rng(), out);
    }
}

/// The peer.
pub struct Seeder {
    node: Node,
    memory: Arc<Memory>,
    // Holds the node's files until it ends.
    _dir: tempfile::TempDir,
}

impl Seeder {
    /// Starts it on a free loopback port.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let memory = Arc::new(Memory::default());
        let mut settings =
            Settings::local(dir.path().to_owned(), Identity::File(dir.path().join("identity.key")));
        settings.private_addresses = PrivateAddresses::Allow;
        let components = floe_ipfs::Components {
            blocks: memory.clone(),
            clock: Arc::new(System),
            entropy: Arc::new(System),
        };
        Ok(Self { node: Node::start(settings, components).await?, memory, _dir: dir })
    }

    /// Serves these blocks from now on.
    pub fn add(&self, blocks: &[Block]) {
        let mut held = self.memory.blocks.lock().expect("no holder panics");
        held.extend(blocks.iter().map(|b| (*b.cid().hash(), b.clone())));
    }

    /// Blocks handed out so far.
    pub fn served(&self) -> usize {
        self.memory.served.load(Ordering::Relaxed)
    }

    /// Where it listens, with its peer id.
    pub fn addresses(&self) -> Vec<String> {
        self.node.status().listen
    }

    /// Every CID of a DAG it holds, the root first.
    pub fn cids_under(&self, root: &str) -> Vec<Cid> {
        let mut todo = vec![floe_core::cid::parse(root).expect("a CID of this test")];
        let mut seen = Vec::new();
        while let Some(cid) = todo.pop() {
            if seen.contains(&cid) {
                continue;
            }
            seen.push(cid);
            if let Some(block) = self.memory.get(&cid)
                && cid.codec() == floe_core::cid::code::DAG_PB
            {
                todo.extend(crate::dag::links(block.data()));
            }
        }
        seen
    }

    /// Connects to a peer and waits until it is there.
    pub async fn connect(&self, address: &str) -> Result<()> {
        let before = self.node.status().peers;
        // A session dials its origins when it first wants something; it stays open until the peer is there.
        let root = Block::of(floe_core::cid::code::RAW, Bytes::from_static(b"nobody has this"))?;
        let hints = SessionHints { root: *root.cid(), origins: vec![local(&[address.to_owned()])] };
        let mut session = self.node.open(hints);
        session.want(&[*root.cid()]);
        let begun = crate::floe::now();
        while self.node.status().peers <= before {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(10), "no connection to {address} in 10 s");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Fetches blocks from these addresses and from nobody else.
    pub async fn fetch(&self, cids: &[Cid], from: &[String], within: Duration) -> Result<Vec<Block>> {
        let root = *cids.first().context("nothing to fetch")?;
        let mut session = self.node.open(SessionHints { root, origins: vec![local(from)] });
        let mut left = cids.iter().copied().collect::<std::collections::HashSet<_>>();
        let mut queue = cids.to_vec();
        let mut got = Vec::new();
        let all = async {
            while !left.is_empty() {
                let room = session.room().min(queue.len());
                let next: Vec<Cid> = queue.drain(..room).collect();
                if !next.is_empty() {
                    session.want(&next);
                }
                let blocks = std::future::poll_fn(|cx| session.poll_blocks(cx)).await?;
                for block in blocks {
                    left.remove(block.cid());
                    got.push(block);
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(within, all).await.context("the blocks did not come in time")??;
        Ok(got)
    }

    /// Ends it.
    pub async fn stop(&self) {
        self.node.stop().await;
    }
}

/// A fresh peer that knows Floe's address and nothing else gets these blocks, byte for byte.
pub async fn reads_back(floe: &Floe, blocks: &[Block]) -> Result<()> {
    let reader = Seeder::start().await?;
    let cids = blocks.iter().map(|b| *b.cid()).collect::<Vec<_>>();
    let got = reader.fetch(&cids, &[floe.swarm_tcp()], Duration::from_secs(60)).await?;
    anyhow::ensure!(got.len() == blocks.len(), "{} of {} blocks came back", got.len(), blocks.len());
    reader.stop().await;
    Ok(())
}

/// A seeder in a process of its own, so that its CPU is not the measured program's.
pub struct Child {
    process: std::process::Child,
    /// The root of the DAG it serves.
    pub root: String,
    /// Where it serves bitswap.
    pub addresses: Vec<String>,
    raw: libp2p::Multiaddr,
    len: usize,
}

impl Child {
    /// Starts this program again with the argument `seed`, see [`child_main`].
    pub fn start(len: usize, leaf_bytes: usize) -> Result<Self> {
        use std::io::BufRead as _;
        let mut process = std::process::Command::new(std::env::current_exe()?)
            .args(["seed", &len.to_string(), &leaf_bytes.to_string()])
            .stdout(std::process::Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        std::io::BufReader::new(stdout).read_line(&mut line)?;
        let said: serde_json::Value = serde_json::from_str(&line).context("the seeder said nothing")?;
        let addresses = said["addresses"].as_array().cloned().unwrap_or_default();
        Ok(Self {
            process,
            root: said["root"].as_str().unwrap_or_default().to_owned(),
            addresses: addresses.iter().filter_map(|a| a.as_str().map(str::to_owned)).collect(),
            raw: said["raw"].as_str().unwrap_or_default().parse()?,
            len,
        })
    }

    /// How long a raw stream of the same bytes takes.
    pub async fn raw_stream(&self) -> Result<Duration> {
        crate::raw::read(&self.raw, self.len).await
    }

    /// The same as seen from afar: its addresses, and how long the raw stream takes.
    pub async fn from_afar(&self, one_way: Duration) -> Result<(Vec<String>, Duration)> {
        let tcp = self.addresses.iter().find(|a| a.contains("/tcp/") && !a.contains("/ws"));
        let address = crate::delay::relay(tcp.context("it listens on TCP")?, one_way).await?;
        let raw = crate::delay::relay(&self.raw.to_string(), one_way).await?;
        Ok((vec![address], crate::raw::read(&raw.parse()?, self.len).await?))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The process behind [`Child`]: `seed LEN LEAF_BYTES`. Prints one line of JSON and serves until it is killed.
pub fn child_main() -> Result<()> {
    let number =
        |n: usize| -> Result<usize> { Ok(std::env::args().nth(n).context("seed LEN LEAF_BYTES")?.parse()?) };
    let (len, leaf_bytes) = (number(2)?, number(3)?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let blocks = crate::dag::over(&crate::noise(len, leaf_bytes as u64), leaf_bytes);
        let leaves = blocks.iter().filter(|b| b.cid().codec() == floe_core::cid::code::RAW);
        let raw = crate::raw::serve(leaves.map(|b| b.data().clone()).collect()).await?;
        let seeder = Seeder::start().await?;
        seeder.add(&blocks);
        let root = blocks.last().context("a root")?.cid().to_string();
        let line = serde_json::json!({
            "root": root, "addresses": seeder.addresses(), "raw": raw.to_string(),
        });
        println!("{line}");
        std::future::pending::<Result<()>>().await
    })
}

/// Origins that may be dialled wherever they are.
fn local(addresses: &[String]) -> Origins {
    Origins { addresses: addresses.to_vec(), local_request: true }
}
