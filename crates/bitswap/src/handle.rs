//! What everybody but the swarm holds.

use std::sync::Arc;
use std::task::{Context, Poll};

use floe_core::ports::{ExchangeClosed, SessionProgress};
use floe_core::{Block, Cid};
use futures::task::AtomicWaker;
use libp2p::PeerId;

use crate::client::Client;
use crate::server::Server;
use crate::shared::Shared;

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
    /// Bytes held for messages that have begun to come and are not complete.
    pub unfinished_bytes: usize,
}

/// Opens sessions, parks roots and tells the server of new blocks. Cheap to clone; no call blocks.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Opens a session for the DAG under `root`. Nothing is sent before the first want.
    pub fn session(&self, root: Cid) -> BitswapSession {
        let id = self.shared.client(|client, now| client.open(root, now));
        let waker = Arc::new(AtomicWaker::new());
        self.shared.add_session(id, waker.clone());
        BitswapSession { id, shared: self.shared.clone(), waker }
    }

    /// As [`BitswapSession::add_providers`], for who only has the session's id; a closed session is ignored.
    pub fn add_providers(&self, session: SessionId, peers: &[PeerId]) {
        self.shared.client(|client, now| client.add_providers(session, peers, now));
    }

    /// Offers `root` to every peer that is connected or connects, as want-have, until it is unparked. At most
    /// 10,000 roots, the oldest go first; a peer is asked for the newest 512.
    pub fn park(&self, root: &Cid) {
        self.shared.client(|client, now| client.park(root, now));
    }

    /// Forgets a parked root.
    pub fn unpark(&self, root: &Cid) {
        self.shared.client(|client, _| client.unpark(root));
    }

    /// Tells the server that these blocks can now be read locally: peers that wait for them get them.
    pub fn notify_blocks(&self, cids: &[Cid]) {
        if self.shared.notify(cids) {
            self.shared.wake_behaviour();
        }
    }

    /// Figures now.
    pub fn stats(&self) -> Stats {
        let (peers, sessions, wanted, parked) = self.shared.peek_client(Client::counts);
        let (wants_held, outstanding_bytes) = self.shared.peek_server(Server::counts);
        let unfinished_bytes = self.shared.unfinished_bytes();
        Stats { peers, sessions, wanted, parked, wants_held, outstanding_bytes, unfinished_bytes }
    }

    /// Ends every session with [`ExchangeClosed`]. Dropping the behaviour does the same.
    pub fn close(&self) {
        self.shared.close();
    }
}

/// One DAG being fetched. Dropping it cancels what it still wants.
pub struct BitswapSession {
    id: SessionId,
    shared: Arc<Shared>,
    waker: Arc<AtomicWaker>,
}

impl BitswapSession {
    /// Its name, as in [`crate::Event::NeedProviders`].
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// How many more wants the session can use now: [`floe_core::ports::Session::room`].
    pub fn room(&self) -> usize {
        self.shared.peek_client(|client| client.room(self.id))
    }

    /// Asks for blocks. Returns at once. Asking twice for one CID is asking once. CIDs that carry their data
    /// inline are never fetched: they are left out.
    pub fn want(&mut self, cids: &[Cid]) {
        self.shared.client(|client, now| client.want(self.id, cids, now));
    }

    /// Takes wants back.
    pub fn cancel(&mut self, cids: &[Cid]) {
        self.shared.client(|client, now| client.cancel(self.id, cids, now));
    }

    /// Names peers that should have the DAG (origins, answers of the routing system). They are asked for
    /// blocks at once where they are connected, else as soon as they connect.
    pub fn add_providers(&mut self, peers: &[PeerId]) {
        self.shared.client(|client, now| client.add_providers(self.id, peers, now));
    }

    /// The next blocks that came: [`floe_core::ports::Session::poll_blocks`]. One task at a time may wait.
    ///
    /// # Errors
    /// [`ExchangeClosed`] once the behaviour is gone and what had come is taken.
    pub fn poll_blocks(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Block>, ExchangeClosed>> {
        self.waker.register(cx.waker());
        let blocks = self.shared.client(|client, now| client.take_blocks(self.id, now));
        if !blocks.is_empty() {
            return Poll::Ready(Ok(blocks));
        }
        if self.shared.is_closed() { Poll::Ready(Err(ExchangeClosed)) } else { Poll::Pending }
    }

    /// How the search goes.
    pub fn progress(&self) -> SessionProgress {
        self.shared.peek_client(|client| client.progress(self.id))
    }
}

impl Drop for BitswapSession {
    fn drop(&mut self) {
        self.shared.remove_session(self.id);
    }
}
