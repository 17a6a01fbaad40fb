//! An exchange and a network in memory. What it holds it gives at once; what it does not hold it gives when it
//! comes; what is spoilt fails the hash check and is dropped, as the real exchange does it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use floe_blockstore::BlockStore;
use floe_core::clock::BoxFuture;
use floe_core::ports::{
    EventSink, Exchange, ExchangeClosed, Network, NetworkEvent, NetworkStatus, Origins, ReadError, Session,
    SessionHints, SessionProgress,
};
use floe_core::{Block, Cid, Multihash};
use parking_lot::Mutex;

#[derive(Default)]
struct State {
    blocks: HashMap<Multihash, Block>,
    /// How often each was asked for.
    asked: HashMap<Multihash, usize>,
    parked: BTreeSet<Cid>,
    provided: BTreeMap<Cid, usize>,
    opened: Vec<SessionHints>,
    late_origins: Vec<String>,
    sessions: Vec<Weak<Mutex<Inbox>>>,
    sink: Option<EventSink>,
    spoilt: HashSet<Multihash>,
    stored: Vec<Cid>,
    /// Where what is said to be stored must be.
    store: Option<BlockStore>,
}

#[derive(Default)]
struct Inbox {
    ready: VecDeque<Block>,
    pending: HashMap<Multihash, Cid>,
    given: usize,
    spoilt: usize,
    waker: Option<Waker>,
}

#[derive(Clone)]
pub struct Net(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    provide_fails: AtomicBool,
    /// Blocks given at once.
    batch: AtomicUsize,
    room: AtomicUsize,
}

impl Net {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Arc::new(Shared {
            state: Mutex::default(),
            provide_fails: AtomicBool::new(false),
            batch: AtomicUsize::new(64),
            room: AtomicUsize::new(1_024),
        })))
    }

    /// A peer has these from now on.
    pub fn has(&self, blocks: &[Block]) {
        let sessions = {
            let mut state = self.0.state.lock();
            for block in blocks {
                state.spoilt.remove(block.cid().hash());
                state.blocks.insert(*block.cid().hash(), block.clone());
            }
            state.sessions.clone()
        };
        for session in sessions.iter().filter_map(Weak::upgrade) {
            let mut inbox = session.lock();
            for block in blocks {
                if let Some(cid) = inbox.pending.remove(block.cid().hash()) {
                    inbox.ready.push_back(Block::new(cid, block.data().clone()).unwrap());
                }
            }
            if let Some(waker) = inbox.waker.take() {
                waker.wake();
            }
        }
    }

    /// No peer has these any more.
    pub fn lacks(&self, blocks: &[Block]) {
        let mut state = self.0.state.lock();
        for block in blocks {
            state.blocks.remove(block.cid().hash());
        }
    }

    /// The only peer sends wrong bytes for these.
    pub fn spoils(&self, blocks: &[Block]) {
        self.lacks(blocks);
        self.0.state.lock().spoilt.extend(blocks.iter().map(|b| *b.cid().hash()));
    }

    pub fn asked(&self, cid: &Cid) -> usize {
        self.0.state.lock().asked.get(cid.hash()).copied().unwrap_or(0)
    }

    pub fn asked_in_all(&self) -> usize {
        self.0.state.lock().asked.values().sum()
    }

    pub fn forget_asked(&self) {
        self.0.state.lock().asked.clear();
    }

    pub fn is_parked(&self, root: &Cid) -> bool {
        self.0.state.lock().parked.contains(root)
    }

    /// How often a root was announced; 0 also after its announcement was taken back.
    pub fn provided(&self, root: &Cid) -> usize {
        self.0.state.lock().provided.get(root).copied().unwrap_or(0)
    }

    pub fn provide_fails(&self, fails: bool) {
        self.0.provide_fails.store(fails, Ordering::Relaxed);
    }

    pub fn forgets_what_it_provides(&self) {
        self.0.state.lock().provided.clear();
    }

    pub fn opened(&self) -> Vec<SessionHints> {
        self.0.state.lock().opened.clone()
    }

    pub fn late_origins(&self) -> Vec<String> {
        self.0.state.lock().late_origins.clone()
    }

    /// From now on, what is said to be stored is looked for there.
    pub fn stores_in(&self, store: BlockStore) {
        self.0.state.lock().store = Some(store);
    }

    /// What peers that wait would be answered with, in order.
    pub fn stored(&self) -> Vec<Cid> {
        self.0.state.lock().stored.clone()
    }

    pub fn open_sessions(&self) -> usize {
        self.0.state.lock().sessions.iter().filter(|s| s.strong_count() > 0).count()
    }

    pub fn forget_sessions(&self) {
        self.0.state.lock().sessions.retain(|s| s.strong_count() > 0);
    }

    pub fn tell(&self, event: NetworkEvent) {
        let state = self.0.state.lock();
        state.sink.as_ref().expect("the engine subscribed")(event);
    }

    pub fn connect(&self, peer_id: &str) {
        self.tell(NetworkEvent::Connected { peer_id: peer_id.to_owned() });
    }

    pub fn offer(&self, root: &Cid) {
        assert!(self.is_parked(root), "only parked roots are offered");
        self.tell(NetworkEvent::Offered { root: *root, peer_id: "12D3KooWTest".to_owned() });
    }
}

struct MemorySession {
    net: Net,
    inbox: Arc<Mutex<Inbox>>,
}

impl Exchange for Net {
    fn open(&self, hints: SessionHints) -> Box<dyn Session> {
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let mut state = self.0.state.lock();
        state.opened.push(hints);
        state.sessions.push(Arc::downgrade(&inbox));
        Box::new(MemorySession { net: self.clone(), inbox })
    }

    fn park(&self, root: &Cid) {
        self.0.state.lock().parked.insert(*root);
    }

    fn unpark(&self, root: &Cid) {
        self.0.state.lock().parked.remove(root);
    }

    fn blocks_stored(&self, cids: &[Cid]) {
        let mut state = self.0.state.lock();
        if let Some(store) = &state.store {
            assert!(cids.iter().all(|cid| store.get(cid).unwrap().is_some()), "said before it was true");
        }
        state.stored.extend_from_slice(cids);
    }
}

impl Session for MemorySession {
    fn room(&self) -> usize {
        let inbox = self.inbox.lock();
        self.net.0.room.load(Ordering::Relaxed).saturating_sub(inbox.pending.len() + inbox.ready.len())
    }

    fn want(&mut self, cids: &[Cid]) {
        let mut state = self.net.0.state.lock();
        let mut inbox = self.inbox.lock();
        for cid in cids {
            *state.asked.entry(*cid.hash()).or_default() += 1;
            match state.blocks.get(cid.hash()) {
                // A block under the CID that it was stored as costs no second hash.
                Some(block) if block.cid() == cid => inbox.ready.push_back(block.clone()),
                Some(block) => inbox.ready.push_back(Block::new(*cid, block.data().clone()).unwrap()),
                None => {
                    if state.spoilt.contains(cid.hash()) {
                        // What every real exchange does with wrong bytes: they never become a block.
                        assert!(Block::new(*cid, bytes::Bytes::from_static(b"wrong")).is_err());
                        inbox.spoilt += 1;
                    }
                    inbox.pending.insert(*cid.hash(), *cid);
                }
            }
        }
        if !inbox.ready.is_empty()
            && let Some(waker) = inbox.waker.take()
        {
            waker.wake();
        }
    }

    fn cancel(&mut self, cids: &[Cid]) {
        let mut inbox = self.inbox.lock();
        for cid in cids {
            inbox.pending.remove(cid.hash());
        }
    }

    fn add_origins(&mut self, origins: &Origins) {
        self.net.0.state.lock().late_origins.extend_from_slice(&origins.addresses);
    }

    fn poll_blocks(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Block>, ExchangeClosed>> {
        let mut inbox = self.inbox.lock();
        let count = inbox.ready.len().min(self.net.0.batch.load(Ordering::Relaxed));
        if count == 0 {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        inbox.given += count;
        Poll::Ready(Ok(inbox.ready.drain(..count).collect()))
    }

    fn progress(&self) -> SessionProgress {
        let inbox = self.inbox.lock();
        SessionProgress {
            peers: usize::from(inbox.given + inbox.spoilt > 0),
            providers: usize::from(inbox.given > 0),
            outstanding: inbox.pending.len(),
            last_error: (inbox.spoilt > 0).then(|| "a peer sent wrong bytes".to_owned()),
        }
    }
}

impl Network for Net {
    fn provide<'a>(&'a self, roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            if self.0.provide_fails.load(Ordering::Relaxed) {
                return Err(ReadError("the provider store is full".into()));
            }
            let mut state = self.0.state.lock();
            for root in roots {
                *state.provided.entry(*root).or_default() += 1;
            }
            Ok(())
        })
    }

    fn unprovide<'a>(&'a self, roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            let mut state = self.0.state.lock();
            for root in roots {
                state.provided.remove(root);
            }
            Ok(())
        })
    }

    fn delegates(&self, _local_request: bool) -> Vec<String> {
        vec![format!("/ip4/127.0.0.1/tcp/4701/p2p/{}", self.peer_id())]
    }

    fn peer_id(&self) -> String {
        "12D3KooWFloe".to_owned()
    }

    fn subscribe(&self, sink: EventSink) {
        self.0.state.lock().sink = Some(sink);
    }

    fn status(&self) -> NetworkStatus {
        NetworkStatus { provided: self.0.state.lock().provided.len() as u64, ..NetworkStatus::default() }
    }
}
