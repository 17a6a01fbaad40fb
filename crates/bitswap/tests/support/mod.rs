//! Real nodes on loopback TCP: a swarm on its own task, blocks in a map.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(unreachable_pub, reason = "a module that test files share")]

pub mod counters;

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use floe_bitswap::{Behaviour, BitswapSession, Config, Event, Handle};
use floe_core::cid::code;
use floe_core::clock::BoxFuture;
use floe_core::ports::{LocalBlocks, ReadError};
use floe_core::{Block, Cid, Clock, Multihash, Timestamp};
use futures::StreamExt;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, noise, tcp, yamux};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

/// The monotonic clock of the machine, or one that runs so many times as fast: every timer of the node that has
/// it is shorter by as much, and the sockets are as they are.
pub struct SystemClock {
    begun: Instant,
    speed: u32,
}

impl SystemClock {
    pub fn shared() -> Arc<dyn Clock> {
        Self::fast(1)
    }

    #[expect(clippy::disallowed_methods, reason = "tests over real sockets need real time")]
    pub fn fast(speed: u32) -> Arc<dyn Clock> {
        Arc::new(Self { begun: Instant::now(), speed })
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(u64::try_from(self.monotonic().as_millis()).unwrap())
    }

    fn monotonic(&self) -> Duration {
        self.begun.elapsed() * self.speed
    }

    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_ / self.speed))
    }
}

/// Blocks in a map.
#[derive(Default)]
pub struct MapBlocks(Mutex<HashMap<Multihash, Bytes>>);

impl MapBlocks {
    pub fn of<'a>(blocks: impl IntoIterator<Item = &'a Block>) -> Arc<Self> {
        let map = Self::default();
        blocks.into_iter().for_each(|block| map.put(block));
        Arc::new(map)
    }

    pub fn put(&self, block: &Block) {
        self.0.lock().insert(*block.cid().hash(), block.data().clone());
    }

    /// Bytes under a hash that they do not have: what a liar serves.
    pub fn put_lie(&self, cid: &Cid, data: Bytes) {
        self.0.lock().insert(*cid.hash(), data);
    }

    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

impl LocalBlocks for MapBlocks {
    fn size(&self, cid: &Cid) -> Result<Option<u32>, ReadError> {
        Ok(self.0.lock().get(cid.hash()).map(|data| u32::try_from(data.len()).unwrap()))
    }

    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError> {
        Ok(self.0.lock().get(cid.hash()).cloned())
    }
}

/// `count` leaves of `len` bytes, each different.
pub fn leaves(count: u32, len: usize) -> Vec<Block> {
    let made = (0..count).map(|i| {
        let mut data = vec![u8::try_from(len % 251).unwrap(); len];
        data[..4].copy_from_slice(&i.to_be_bytes());
        Block::of(code::RAW, Bytes::from(data)).unwrap()
    });
    made.collect()
}

pub fn cids(blocks: &[Block]) -> Vec<Cid> {
    blocks.iter().map(|block| *block.cid()).collect()
}

/// A swarm with one behaviour, listening on loopback; its muxer allows so many streams.
pub fn swarm<B: NetworkBehaviour>(behaviour: B, streams: usize) -> Swarm<B> {
    let muxing = || {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(streams);
        config
    };
    let mut swarm = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, muxing)
        .unwrap()
        .with_behaviour(|_| behaviour)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    swarm
}

/// Waits for the port.
pub async fn address<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address;
        }
    }
}

/// Nothing here takes this long; a test that hangs fails.
pub async fn patient<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}

/// A node that serves some blocks, a client that is connected to it, and the client's session for them.
pub struct Pair {
    pub seeder: Node,
    pub client: Node,
    pub session: BitswapSession,
    pub wanted: Vec<Cid>,
}

impl Pair {
    pub async fn over(blocks: &[Block]) -> Self {
        Self::with(Config::default(), blocks).await
    }

    /// The seeder with this configuration.
    pub async fn with(config: Config, blocks: &[Block]) -> Self {
        let seeder = Node::with(config, MapBlocks::of(blocks)).await;
        let client = Node::new(MapBlocks::of([])).await;
        client.dial(&seeder).await;
        client.connected(1).await;
        let wanted = cids(blocks);
        let mut session = client.handle.session(wanted[0]);
        session.add_providers(&[seeder.peer]);
        Self { seeder, client, session, wanted }
    }

    /// Fetches everything, in time.
    pub async fn fetch_all(&mut self) -> Vec<Block> {
        patient(fetch(&mut self.session, &self.wanted)).await
    }
}

enum Command {
    Dial(Multiaddr),
    Disconnect(PeerId),
    /// Closes the oldest of several connections.
    CloseOldest,
}

/// How a node starts.
pub struct NodeOptions {
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    /// Streams that its muxer allows.
    pub streams: usize,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self { config: Config::default(), clock: SystemClock::shared(), streams: 512 }
    }
}

/// A node: its swarm runs until it is dropped.
pub struct Node {
    pub peer: PeerId,
    pub address: Multiaddr,
    pub handle: Handle,
    pub events: mpsc::Receiver<Event>,
    commands: mpsc::Sender<Command>,
    connections: watch::Receiver<usize>,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    pub async fn new(blocks: Arc<dyn LocalBlocks>) -> Self {
        Self::start(NodeOptions::default(), blocks).await
    }

    pub async fn with(config: Config, blocks: Arc<dyn LocalBlocks>) -> Self {
        Self::start(NodeOptions { config, ..NodeOptions::default() }, blocks).await
    }

    pub async fn start(options: NodeOptions, blocks: Arc<dyn LocalBlocks>) -> Self {
        let NodeOptions { config, clock, streams } = options;
        let (behaviour, handle) = floe_bitswap::new(config, blocks, clock, [7; 32]);
        let mut swarm = swarm(behaviour, streams);
        let address = address(&mut swarm).await;
        let peer = *swarm.local_peer_id();
        let (commands, receiver) = mpsc::channel(8);
        let (sender, events) = mpsc::channel(64);
        let (open, connections) = watch::channel(0);
        let task = tokio::spawn(drive(swarm, receiver, sender, open));
        Self { peer, address, handle, events, commands, connections, task }
    }

    pub async fn dial(&self, other: &Node) {
        self.dial_address(other.address.clone()).await;
    }

    pub async fn dial_address(&self, address: Multiaddr) {
        self.commands.send(Command::Dial(address)).await.unwrap();
    }

    pub async fn disconnect(&self, peer: PeerId) {
        self.commands.send(Command::Disconnect(peer)).await.unwrap();
    }

    pub async fn close_oldest(&self) {
        self.commands.send(Command::CloseOldest).await.unwrap();
    }

    /// Waits until so many connections are open, of all peers.
    pub async fn connections(&self, open: usize) {
        patient(self.connections.clone().wait_for(|now| *now == open)).await.unwrap();
    }

    /// Waits until `peers` are connected.
    pub async fn connected(&self, peers: usize) {
        let there = async {
            while self.handle.stats().peers != peers {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        patient(there).await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn drive(
    mut swarm: Swarm<Behaviour>,
    mut commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    open: watch::Sender<usize>,
) {
    let mut connections = std::collections::VecDeque::new();
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Dial(address)) => {
                    // Not from the port that is listened on: the system may have given that one to another test's
                    // connection as well.
                    let options = DialOpts::unknown_peer_id().address(address).allocate_new_port();
                    swarm.dial(options.build()).unwrap();
                }
                Some(Command::Disconnect(peer)) => { let _ = swarm.disconnect_peer_id(peer); }
                Some(Command::CloseOldest) => {
                    swarm.close_connection(connections.pop_front().unwrap());
                }
                None => return,
            },
            event = swarm.select_next_some() => {
                if let SwarmEvent::OutgoingConnectionError { error, .. } = &event {
                    panic!("a dial failed: {error}");
                }
                if let SwarmEvent::ConnectionEstablished { connection_id, .. } = &event {
                    connections.push_back(*connection_id);
                    open.send_modify(|open| *open += 1);
                }
                if matches!(event, SwarmEvent::ConnectionClosed { .. }) {
                    open.send_modify(|open| *open -= 1);
                }
                let SwarmEvent::Behaviour(event) = event else { continue };
                if let Event::Misbehaved { peer, .. } = event {
                    let _ = swarm.disconnect_peer_id(peer);
                }
                let _ = events.try_send(event);
            }
        }
    }
}

/// The next blocks.
pub async fn next(session: &mut BitswapSession) -> Vec<Block> {
    std::future::poll_fn(|cx| session.poll_blocks(cx)).await.unwrap()
}

/// Fetches `wanted` as a walk does: as many at a time as there is room for.
pub async fn fetch(session: &mut BitswapSession, wanted: &[Cid]) -> Vec<Block> {
    let mut rest = wanted;
    let mut got = Vec::new();
    while got.len() < wanted.len() {
        let (now, later) = rest.split_at(session.room().min(rest.len()));
        rest = later;
        session.want(now);
        got.extend(next(session).await);
    }
    got
}

/// Whether nothing comes for `wait`.
pub async fn silent(session: &mut BitswapSession, wait: Duration) -> bool {
    let came = std::future::poll_fn(|cx| match session.poll_blocks(cx) {
        Poll::Ready(_) => Poll::Ready(()),
        Poll::Pending => Poll::Pending,
    });
    tokio::time::timeout(wait, came).await.is_err()
}
