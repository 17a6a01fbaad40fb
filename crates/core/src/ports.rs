//! What the engine needs of the world outside, and what the outside needs of the stores.
//!
//! The engine never names the swarm and the swarm never names the engine: they meet here. Each port has at
//! least two real implementations or is what the simulator replaces.

use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::clock::BoxFuture;
use crate::{Block, Cid};

/// Fetches blocks by CID from elsewhere: bitswap today, pieces on Filecoin later.
pub trait Exchange: Send + Sync + 'static {
    /// Opens a session for one DAG. Cheap; no IO happens before the first want. Dropping the session cancels
    /// what it still wants.
    fn open(&self, hints: SessionHints) -> Box<dyn Session>;

    /// Keeps `root` in mind while nobody fetches it: every peer that connects is asked whether it has it, and
    /// [`NetworkEvent::Offered`] says when one does. Bounded by the implementation; the oldest go first.
    fn park(&self, root: &Cid);

    /// Forgets a parked root.
    fn unpark(&self, root: &Cid);

    /// These blocks can be read here from now on: peers that wait for one of them may be answered. Cheap, and only
    /// news: an exchange that serves nobody has nothing to do.
    fn blocks_stored(&self, _cids: &[Cid]) {}
}

/// What is known about a DAG before its first block.
#[derive(Debug, Clone)]
pub struct SessionHints {
    /// The root.
    pub root: Cid,
    /// What the clients say of where it can be had: dialled at once, best effort, through the dial filter.
    pub origins: Vec<Origins>,
}

/// Where some clients say that a DAG can be had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins {
    /// Multiaddrs. What does not parse or may not be dialled is skipped.
    pub addresses: Vec<String>,
    /// Whether the requests that brought them came from this machine, so that private and loopback addresses may be
    /// dialled under `network.private_addresses = auto`. What one request may dial, another of the same DAG may not.
    pub local_request: bool,
}

/// One DAG being fetched. The caller bounds memory: it wants no more than [`Session::room`] allows and takes
/// blocks out as they come.
pub trait Session: Send + 'static {
    /// How many more wants this session can use now. It falls to zero when enough bytes are expected to be in
    /// flight; it grows with what the peers deliver.
    fn room(&self) -> usize;

    /// Asks for blocks. Returns at once. Asking twice for one CID is asking once.
    fn want(&mut self, cids: &[Cid]);

    /// Takes wants back.
    fn cancel(&mut self, cids: &[Cid]);

    /// Adds origins that became known later (another pin of the same root).
    fn add_origins(&mut self, origins: &Origins);

    /// The next blocks that came, each wanted and checked, at least one. Every block is handed out once.
    /// `Ready(Err)` only when the exchange has shut down.
    fn poll_blocks(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Block>, ExchangeClosed>>;

    /// For `info`: how the search goes.
    fn progress(&self) -> SessionProgress;
}

/// How a session's search goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionProgress {
    /// Peers that are connected and have been asked.
    pub peers: usize,
    /// Peers that sent at least one block.
    pub providers: usize,
    /// Wants without an answer.
    pub outstanding: usize,
    /// The last thing that went wrong, in words for the owner of the pin (no internal address in it).
    pub last_error: Option<String>,
}

/// The exchange has shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the exchange has shut down")]
pub struct ExchangeClosed;

/// A local block could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot read block: {0}")]
pub struct ReadError(pub String);

/// Local blocks, as the bitswap server reads them. Both calls block on disk: keep them off the runtime's
/// threads.
pub trait LocalBlocks: Send + Sync + 'static {
    /// The size in bytes, or `None` where the block is not here.
    ///
    /// # Errors
    /// [`ReadError`] where the disk failed.
    fn size(&self, cid: &Cid) -> Result<Option<u32>, ReadError>;

    /// The bytes, checked against the hash; a damaged block counts as missing.
    ///
    /// # Errors
    /// [`ReadError`] where the disk failed.
    fn read(&self, cid: &Cid) -> Result<Option<Bytes>, ReadError>;
}

/// The node in its network, as the engine sees it.
pub trait Network: Send + Sync + 'static {
    /// Announces roots to the routing system from now on, until [`Network::unprovide`]. Durable when the
    /// future completes; the announcing itself is paced. Calling it again for a root is harmless.
    fn provide<'a>(&'a self, roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>>;

    /// Stops announcing. Unknown roots are ignored.
    fn unprovide<'a>(&'a self, roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>>;

    /// Multiaddrs ending in `/p2p/<peer id>` where clients can reach this node, 1 to 20, unique. Private
    /// ranges only where the configuration allows them for this request: see `network.private_addresses`.
    fn delegates(&self, local_request: bool) -> Vec<String>;

    /// The peer id, in base58.
    fn peer_id(&self) -> String;

    /// Sends every later [`NetworkEvent`] to `sink`. One sink: a second call replaces the first.
    fn subscribe(&self, sink: EventSink);

    /// For `floe status`.
    fn status(&self) -> NetworkStatus;
}

/// What `floe status` says of the network.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct NetworkStatus {
    /// Connected peers.
    pub peers: usize,
    /// Addresses listened on, with `/p2p/<peer id>`.
    pub listen: Vec<String>,
    /// Addresses confirmed from outside.
    pub external: Vec<String>,
    /// `client` or `server`: the part this node plays in the DHT, or `off`.
    pub kad: String,
    /// Roots that are announced.
    pub provided: u64,
    /// Roots whose announcement is due.
    pub provide_backlog: u64,
}

/// What wakes pins that wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A peer connected: pins that name it in their origins wake at once.
    Connected {
        /// The peer id, in base58.
        peer_id: String,
    },
    /// A connected peer says that it has a parked root.
    Offered {
        /// The root, as it was parked.
        root: Cid,
        /// The peer id, in base58.
        peer_id: String,
    },
}

/// Takes [`NetworkEvent`]s. Called on the network's task: it must only pass the event on.
pub type EventSink = Box<dyn Fn(NetworkEvent) + Send + Sync>;

/// Random bytes, from the system or from a seed.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `out`.
    fn fill(&self, out: &mut [u8]);
}

impl fmt::Debug for dyn Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entropy")
    }
}

/// How long one block may stay without an answer before it is asked for elsewhere.
pub const BLOCK_PROGRESS_TIMEOUT: Duration = Duration::from_secs(10);
