//! Peers in memory: what they have they give at once, what they get later they give then.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use floe_core::clock::BoxFuture;
use floe_core::ports::{
    EventSink, Exchange, ExchangeClosed, Network, NetworkStatus, Origins, ReadError, Session, SessionHints,
    SessionProgress,
};
use floe_core::{Block, Cid, Multihash};
use parking_lot::Mutex;

pub(crate) const PEER_ID: &str = "12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust";

#[derive(Clone, Default)]
pub(crate) struct Peers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    blocks: HashMap<Multihash, Block>,
    asked: Vec<Cid>,
    hints: Vec<SessionHints>,
    waiting: Vec<Waker>,
}

impl Peers {
    pub(crate) fn have(&self, blocks: &[Block]) {
        let mut state = self.0.lock();
        for block in blocks {
            state.blocks.insert(*block.cid().hash(), block.clone());
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }

    /// How often a block was asked for.
    pub(crate) fn asked(&self, cid: &Cid) -> usize {
        self.0.lock().asked.iter().filter(|asked| asked.hash() == cid.hash()).count()
    }

    /// What each session was opened with.
    pub(crate) fn hints(&self) -> Vec<SessionHints> {
        self.0.lock().hints.clone()
    }
}

struct Searching {
    peers: Peers,
    wanted: VecDeque<Cid>,
    met: HashSet<Cid>,
}

impl Exchange for Peers {
    fn open(&self, hints: SessionHints) -> Box<dyn Session> {
        self.0.lock().hints.push(hints);
        Box::new(Searching { peers: self.clone(), wanted: VecDeque::new(), met: HashSet::new() })
    }

    fn park(&self, _: &Cid) {}

    fn unpark(&self, _: &Cid) {}
}

impl Session for Searching {
    fn room(&self) -> usize {
        1024_usize.saturating_sub(self.wanted.len())
    }

    fn want(&mut self, cids: &[Cid]) {
        let mut state = self.peers.0.lock();
        for cid in cids.iter().filter(|cid| self.met.insert(**cid)) {
            state.asked.push(*cid);
            self.wanted.push_back(*cid);
        }
        state.waiting.drain(..).for_each(Waker::wake);
    }

    fn cancel(&mut self, cids: &[Cid]) {
        self.wanted.retain(|wanted| !cids.contains(wanted));
    }

    fn add_origins(&mut self, _: &Origins) {}

    fn poll_blocks(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Block>, ExchangeClosed>> {
        let mut state = self.peers.0.lock();
        let mut found = Vec::new();
        self.wanted.retain(|cid| match state.blocks.get(cid.hash()) {
            Some(block) => {
                found.extend(block.clone().relabelled(*cid));
                false
            }
            None => true,
        });
        if found.is_empty() {
            state.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(found))
    }

    fn progress(&self) -> SessionProgress {
        SessionProgress { outstanding: self.wanted.len(), ..SessionProgress::default() }
    }
}

impl Network for Peers {
    fn provide<'a>(&'a self, _: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn unprovide<'a>(&'a self, _: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// A private address only for a request from this machine, as the node does it.
    fn delegates(&self, local_request: bool) -> Vec<String> {
        let host = if local_request { "127.0.0.1" } else { "203.0.113.7" };
        vec![
            format!("/ip4/{host}/tcp/4701/p2p/{PEER_ID}"),
            format!("/ip4/{host}/udp/4701/quic-v1/p2p/{PEER_ID}"),
        ]
    }

    fn peer_id(&self) -> String {
        PEER_ID.to_owned()
    }

    fn subscribe(&self, _: EventSink) {}

    fn status(&self) -> NetworkStatus {
        NetworkStatus { kad: "off".to_owned(), ..NetworkStatus::default() }
    }
}
