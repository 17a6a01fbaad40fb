//! What everybody but the swarm holds.

use std::task::{Context, Poll};

use floe_core::ports::{ExchangeClosed, SessionProgress};
use floe_core::{Block, Cid};
use libp2p::PeerId;

/// Names a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Figures for `floe status` and for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connected peers that speak bitswap or may yet.
    pub peers: usize,
    /// Open sessions.
    pub sessions: usize,
    /// Blocks wanted by them.
    pub wanted: usize,
    /// Parked roots.
    pub parked: usize,
    /// Wants of other peers that are kept.
    pub wants_held: usize,
    /// Bytes of blocks read and not yet written out.
    pub outstanding_bytes: usize,
}

/// Opens sessions, parks roots and tells the server of new blocks. Cheap to clone; no call blocks.
#[derive(Clone)]
pub struct Handle {}

impl Handle {
    pub(crate) fn new() -> Self {
        Self {}
    }

    /// Opens a session for the DAG under `root`. Nothing is sent before the first want.
    pub fn session(&self, root: Cid) -> BitswapSession {
        let _ = root;
        BitswapSession {}
    }

    /// As [`BitswapSession::add_providers`], for who only has the session's id; a closed session is ignored.
    pub fn add_providers(&self, session: SessionId, peers: &[PeerId]) {
        let _ = (session, peers);
    }

    /// Offers `root` to every peer that is connected or connects, as want-have, until it is unparked.
    pub fn park(&self, root: &Cid) {
        let _ = root;
    }

    /// Forgets a parked root.
    pub fn unpark(&self, root: &Cid) {
        let _ = root;
    }

    /// Tells the server that these blocks can now be read locally: peers that wait for them get them.
    pub fn notify_blocks(&self, cids: &[Cid]) {
        let _ = cids;
    }

    /// Figures now.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Ends every session with [`ExchangeClosed`]. Dropping the behaviour does the same.
    pub fn close(&self) {}
}

/// One DAG being fetched. Dropping it cancels what it still wants.
pub struct BitswapSession {}

impl BitswapSession {
    /// Its name, as in [`crate::Event::NeedProviders`].
    pub fn id(&self) -> SessionId {
        SessionId(0)
    }

    /// How many more wants the session can use now: [`floe_core::ports::Session::room`].
    pub fn room(&self) -> usize {
        0
    }

    /// Asks for blocks. Returns at once. Asking twice for one CID is asking once.
    pub fn want(&mut self, cids: &[Cid]) {
        let _ = cids;
    }

    /// Takes wants back.
    pub fn cancel(&mut self, cids: &[Cid]) {
        let _ = cids;
    }

    /// Names peers that should have the DAG (origins, answers of the routing system). They are asked for
    /// blocks at once where they are connected, else as soon as they connect.
    pub fn add_providers(&mut self, peers: &[PeerId]) {
        let _ = peers;
    }

    /// The next blocks that came: [`floe_core::ports::Session::poll_blocks`].
    pub fn poll_blocks(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Block>, ExchangeClosed>> {
        let _ = cx;
        Poll::Pending
    }

    /// How the search goes.
    pub fn progress(&self) -> SessionProgress {
        SessionProgress::default()
    }
}
