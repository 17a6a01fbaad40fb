//! Whole nodes on loopback.

mod bounds;
mod dialling;
mod egress;
mod fetch;
mod lifecycle;
mod network;
mod opened;
mod streams;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use floe_core::ports::{Exchange as _, Network as _, NetworkEvent, Origins, Session, SessionHints};
use floe_core::{Block, Cid};
use libp2p::core::Transport as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise, tcp};
use tokio::sync::mpsc;

use crate::behaviour::Connections;
use crate::memory::Memory;
use crate::node::World;
use crate::testing::{Dice, MemoryBlocks, Names, SystemClock};
use crate::{Components, Identity, Node, Settings};

/// Nothing here takes this long, not even a dial that failed on a busy machine and is made again after
/// [`crate::limits::REDIAL_PAUSE`]; a test that hangs fails.
const SOON: Duration = Duration::from_secs(40);

/// A node, its blocks, its names, and what it tells its engine.
struct Peer {
    node: Node,
    blocks: Arc<MemoryBlocks>,
    events: mpsc::UnboundedReceiver<NetworkEvent>,
    _dir: tempfile::TempDir,
}

fn settings(dir: &Path) -> Settings {
    Settings::local(dir.to_owned(), Identity::Keypair(Keypair::generate_ed25519()))
}

fn components(blocks: Arc<MemoryBlocks>) -> Components {
    static SEED: AtomicU64 = AtomicU64::new(1);
    let entropy = Arc::new(Dice::new(SEED.fetch_add(1, Ordering::Relaxed)));
    Components { blocks, clock: Arc::new(SystemClock::new()), entropy }
}

fn world() -> World {
    World {
        resolver: Arc::new(Names::default()),
        memory: Memory::with(1 << 40, || 0),
        connections: Connections::default(),
        open_provides: crate::provide::file::on_disk(),
    }
}

impl Peer {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_in(change, world()).await
    }

    async fn start_in(change: impl FnOnce(&mut Settings), world: World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path());
        change(&mut settings);
        let blocks = Arc::new(MemoryBlocks::default());
        let node = Node::start_in(settings, components(blocks.clone()), world).await.unwrap();
        let (events_in, events) = mpsc::unbounded_channel();
        node.subscribe(Box::new(move |event| drop(events_in.send(event))));
        Self { node, blocks, events, _dir: dir }
    }

    fn addresses(&self) -> Vec<String> {
        self.node.status().listen
    }

    fn open(&self, root: Cid, origins: &[String], local_request: bool) -> Box<dyn Session> {
        self.node.open(SessionHints {
            root,
            origins: vec![Origins { addresses: origins.to_vec(), local_request }],
        })
    }

    /// Waits for `peer` to connect.
    async fn connected(&mut self, peer: &Peer) {
        let id = peer.node.peer_id();
        soon(async {
            loop {
                let event = self.events.recv().await.expect("the node runs");
                if event == (NetworkEvent::Connected { peer_id: id.clone() }) {
                    return;
                }
            }
        })
        .await;
    }
}

/// The library's own parts: a peer that is not of this crate.
fn plain_transport(key: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    tcp::tokio::Transport::default()
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(key).unwrap())
        .multiplex(libp2p::yamux::Config::default())
        .boxed()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, what).await.expect("it happens soon")
}

/// Waits until `true`.
async fn until(what: impl Fn() -> bool) {
    soon(async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// A block that no other test has.
fn block(bytes: usize) -> Block {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut data = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes().to_vec();
    data.resize(bytes.max(8), 0x5a);
    Block::of(floe_core::cid::code::RAW, Bytes::from(data)).unwrap()
}

/// Takes `count` blocks out of a session.
async fn take(session: &mut Box<dyn Session>, count: usize) -> Vec<Block> {
    let mut blocks = Vec::new();
    let all = async {
        while blocks.len() < count {
            let more = std::future::poll_fn(|cx| session.poll_blocks(cx)).await;
            blocks.extend(more.expect("the exchange runs"));
        }
    };
    if tokio::time::timeout(SOON, all).await.is_err() {
        panic!("{} of {count} blocks came: {:?}", blocks.len(), session.progress());
    }
    blocks
}
