//! The client: gets wanted blocks from whoever has them. Sans-IO: (event, now) in, actions out.
//!
//! ```text
//!            want()                 a provider has room                   block comes
//!   session ───────> Queued ─────────────────────────────> InFlight ───────────────────> inbox
//!                     ^  │ nobody connected should have it     │ DONT_HAVE, 10 s without
//!                     │  v                                     │ progress, peer gone
//!                     └─ Seeking <── want-have to everybody ───┘ (back to Queued)
//! ```
//!
//! **Providers first.** A peer that was named (an origin, the routing system), said HAVE or delivered gets
//! want-block at once; all others are only asked whether they have the root, and, when no provider has a
//! block, whether they have that.
//!
//! **Deltas.** Each peer has a queue of changes; a message carries what changed since the last one. No work
//! per block grows with the wantlist.
//!
//! **Backpressure is wants held back.** Streams are always drained. What is in flight is bounded by what is
//! asked: bytes per session and over all ([`session`]), a count per peer ([`peer`]).
//!
//! **Trust.** Only blocks whose hash somebody wants are handed on. On the wire of bitswap 1.1 the receiver
//! computes the hash, so wrong bytes and unasked blocks look the same: each is a strike, and a peer with
//! [`STRIKES`](crate::limits::STRIKES) of them is dropped and its requests go elsewhere at once. A late
//! duplicate of something asked is not a strike.
//!
//! The client owns no task and no clock; the shell (`shared.rs`) locks it, calls it, and carries the actions out.

mod parked;
mod peer;
mod session;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use floe_core::ports::SessionProgress;
use floe_core::{Block, Cid, Multihash, cid};
use libp2p::PeerId;
use smallvec::SmallVec;

use crate::behaviour::{Event, Misbehaviour};
use crate::handle::SessionId;
use crate::key::Key;
use crate::limits::{
    PARKED_PER_PEER, PROBES_PER_SESSION, SESSION_SHARE_BYTES, SESSION_WANTS_KEPT, TOTAL_WINDOW_BYTES, hit,
};
use crate::message::{Message, Presence, WantKind};
use parked::Parked;
use peer::{Peer, PeerNo};
use session::Session;

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// The peer has a message waiting: [`Client::next_message`].
    Wake(PeerId),
    /// The session has blocks: [`Client::take_blocks`].
    Ready(SessionId),
    /// For the node around the swarm.
    Event(Box<Event>),
}

/// The client of one node.
#[derive(Default)]
pub(crate) struct Client {
    peers: BTreeMap<PeerNo, Peer>,
    numbers: HashMap<PeerId, PeerNo>,
    next_peer: PeerNo,
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
    wants: HashMap<Key, Want>,
    /// Sessions by root: a HAVE for a root makes a provider.
    roots: HashMap<Key, SmallVec<[SessionId; 1]>>,
    /// Sessions whose `todo` waits for room.
    hungry: VecDeque<SessionId>,
    parked: Parked,
    /// Sessions that want something: they share the window.
    active: usize,
    actions: Vec<Action>,
}

/// A block that sessions want.
struct Want {
    state: State,
    /// Who wants it, each under the CID that it used.
    sessions: SmallVec<[(SessionId, Key); 1]>,
    /// Peers with an open request.
    asked: SmallVec<[(PeerNo, WantKind); 2]>,
    /// Peers that lack it or did not send it in time.
    tried: SmallVec<[PeerNo; 2]>,
    /// The session whose window it takes from, and how much.
    charged: Option<(SessionId, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Queued,
    Seeking,
    InFlight,
}

enum Pick {
    Peer(PeerNo),
    /// There are providers, none has room.
    Busy,
    /// No connected peer is known to have it.
    Nobody,
}

/// What a batch of blocks came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Blocks that somebody wanted.
    pub(crate) useful: usize,
    /// Blocks that were asked for, but had come already or are no longer wanted.
    pub(crate) duplicate: usize,
    /// Blocks that this peer was never asked for.
    pub(crate) unwanted: usize,
}

impl Client {
    // ---- sessions -------------------------------------------------------------------------------------

    /// Opens a session.
    pub(crate) fn open(&mut self, root: Cid, now: Duration) -> SessionId {
        self.next_session += 1;
        let id = SessionId(self.next_session);
        let session = Session::new(root, now);
        self.roots.entry(session.root.clone()).or_default().push(id);
        self.sessions.insert(id, session);
        id
    }

    /// Ends a session; what nobody else wants is cancelled.
    pub(crate) fn close(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let mut keys: Vec<Key> = session.keys.drain().collect();
        let root = session.root.clone();
        keys.sort();
        self.active -= usize::from(!keys.is_empty());
        keys.iter().for_each(|key| self.drop_interest(id, key));
        self.sessions.remove(&id);
        if let Some(ids) = self.roots.get_mut(&root) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.roots.remove(&root);
                self.cancel_probe(&root);
            }
        }
    }

    /// Wants blocks. Identity CIDs (the data is in them) and hashes that prove nothing are left out.
    pub(crate) fn want(&mut self, id: SessionId, cids: &[Cid], now: Duration) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let was_idle = session.keys.is_empty();
        for cid in cids {
            let Some(session) = self.sessions.get_mut(&id) else { return };
            if let Err(error) = cid::check(cid.hash()) {
                session.last_error = Some(format!("{cid} cannot be fetched: {error}"));
                continue;
            }
            if cid::is_identity(cid) || session.keys.contains(cid.hash()) {
                continue;
            }
            if session.keys.len() >= SESSION_WANTS_KEPT {
                hit("bitswap_session_wants");
                session.last_error =
                    Some(format!("more than {SESSION_WANTS_KEPT} blocks were wanted at once"));
                break;
            }
            self.add_want(id, Key::new(*cid));
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.keys.is_empty() {
            return;
        }
        if was_idle {
            session.progressed(now);
            self.active += 1;
            self.introduce(id, now);
        }
        self.pump(id, now);
    }

    fn add_want(&mut self, id: SessionId, key: Key) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.keys.insert(key.clone());
        session.todo.push_back(key.clone());
        let want = self.wants.entry(key.clone()).or_insert_with(Want::new);
        if want.state == State::Seeking {
            want.state = State::Queued;
        }
        want.sessions.push((id, key));
    }

    /// Takes wants back.
    pub(crate) fn cancel(&mut self, id: SessionId, cids: &[Cid], now: Duration) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let had = !session.keys.is_empty();
        let keys: Vec<Key> = cids.iter().filter_map(|cid| session.keys.take(cid.hash())).collect();
        self.active -= usize::from(had && session.keys.is_empty());
        keys.iter().for_each(|key| self.drop_interest(id, key));
        self.pump_hungry(now);
    }

    fn drop_interest(&mut self, id: SessionId, key: &Key) {
        let Some(want) = self.wants.get_mut(key) else { return };
        want.sessions.retain(|(session, _)| *session != id);
        if want.charged.is_some_and(|(session, _)| session == id) {
            uncharge(&mut self.sessions, want);
        }
        if want.sessions.is_empty()
            && let Some(want) = self.wants.remove(key)
        {
            self.cancel_asked(key, &want, None);
        }
    }

    /// Names peers that should have the session's DAG.
    pub(crate) fn add_providers(&mut self, id: SessionId, peers: &[PeerId], now: Duration) {
        for peer in peers {
            let Some(session) = self.sessions.get_mut(&id) else { return };
            match self.numbers.get(peer) {
                Some(no) => self.provider(id, *no, now),
                None => session.hint(*peer),
            }
        }
    }

    /// How many more wants the session can use.
    pub(crate) fn room(&self, id: SessionId) -> usize {
        self.sessions.get(&id).map_or(0, |session| session.room(self.share(session)))
    }

    /// The blocks that came. The session's window opens by as much.
    pub(crate) fn take_blocks(&mut self, id: SessionId, now: Duration) -> Vec<Block> {
        let Some(session) = self.sessions.get_mut(&id) else { return Vec::new() };
        let blocks = session.take_inbox();
        if !blocks.is_empty() {
            self.pump(id, now);
        }
        blocks
    }

    pub(crate) fn progress(&self, id: SessionId) -> SessionProgress {
        self.sessions.get(&id).map(Session::progress).unwrap_or_default()
    }

    // ---- parked roots ---------------------------------------------------------------------------------

    /// Offers a root to every peer from now on.
    pub(crate) fn park(&mut self, root: &Cid, now: Duration) {
        if cid::is_identity(root) || cid::check(root.hash()).is_err() {
            return;
        }
        let key = Key::new(*root);
        let Ok(evicted) = self.parked.insert(&key) else { return };
        evicted.iter().for_each(|oldest| self.unpark_at_peers(oldest));
        for peer in self.peers.values_mut() {
            if peer.ask_parked(&key, now) {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }

    /// Forgets a parked root.
    pub(crate) fn unpark(&mut self, root: &Cid) {
        if let Some(key) = self.parked.remove(root.hash()) {
            self.unpark_at_peers(&key);
        }
    }

    fn unpark_at_peers(&mut self, key: &Key) {
        let needed = self.wants.contains_key(key) || self.roots.contains_key(key);
        for peer in self.peers.values_mut() {
            if peer.unpark(key.multihash()) && !needed && peer.cancel(key) {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }

    fn offered(&mut self, no: PeerNo, key: &Multihash) {
        let (Some(root), Some(peer)) = (self.parked.get(key), self.peers.get(&no)) else { return };
        self.actions.push(Action::Event(Box::new(Event::Offered { root: *root.cid(), peer: peer.id })));
    }

    // ---- peers ----------------------------------------------------------------------------------------

    /// A peer connected. Harmless for one that is.
    pub(crate) fn connected(&mut self, id: PeerId, now: Duration) {
        if self.numbers.contains_key(&id) {
            return;
        }
        let no = self.next_peer;
        self.next_peer += 1;
        self.numbers.insert(id, no);
        let mut peer = Peer::new(id);
        peer.last_useful = now;
        for root in self.parked.newest().take(PARKED_PER_PEER) {
            peer.ask_parked(root, now);
        }
        if peer.has_message() {
            self.actions.push(Action::Wake(id));
        }
        self.peers.insert(no, peer);
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in sessions {
            self.greet(id, no, now);
        }
    }

    /// What a session has to say to a peer that is new.
    fn greet(&mut self, id: SessionId, no: PeerNo, now: Duration) {
        let (Some(session), Some(peer)) = (self.sessions.get_mut(&id), self.peers.get(&no)) else { return };
        if session.hinted.remove(&peer.id) {
            return self.provider(id, no, now);
        }
        if session.keys.is_empty() {
            return;
        }
        let root = session.root.clone();
        let probes: Vec<Key> = session.seeking.iter().take(PROBES_PER_SESSION).cloned().collect();
        self.probe(id, no, &root, now);
        probes.iter().for_each(|key| self.probe(id, no, key, now));
    }

    /// A peer is gone, or turned out not to speak bitswap.
    pub(crate) fn disconnected(&mut self, id: &PeerId, now: Duration) {
        let Some(no) = self.numbers.remove(id) else { return };
        let Some(mut peer) = self.peers.remove(&no) else { return };
        let asks = peer.clear();
        self.release(no, &asks);
        for session in self.sessions.values_mut() {
            session.asked.remove(&no);
            if session.providers.remove(&no).is_some() && !peer.banned {
                session.hint(*id);
            }
        }
        self.pump_hungry(now);
    }

    /// What was sent to the peer may be lost (its stream broke): everything is said again.
    pub(crate) fn start_over(&mut self, id: &PeerId) {
        if let Some(peer) = self.peer_mut(id)
            && peer.start_over()
        {
            self.actions.push(Action::Wake(*id));
        }
    }

    /// The peer broke the protocol. After some of it, it is dropped.
    pub(crate) fn strike(&mut self, id: &PeerId, what: Misbehaviour, now: Duration) {
        let Some(no) = self.numbers.get(id).copied() else { return };
        if self.peers.get_mut(&no).is_some_and(Peer::strike) {
            self.ban(no, what, now);
        }
    }

    /// Drops the peer at once.
    pub(crate) fn drop_peer(&mut self, id: &PeerId, what: Misbehaviour, now: Duration) {
        if let Some(no) = self.numbers.get(id).copied() {
            self.ban(no, what, now);
        }
    }

    fn ban(&mut self, no: PeerNo, what: Misbehaviour, now: Duration) {
        let Some(peer) = self.peers.get_mut(&no).filter(|peer| !peer.banned) else { return };
        peer.banned = true;
        let (id, asks) = (peer.id, peer.clear());
        for session in self.sessions.values_mut() {
            if session.providers.remove(&no).is_some() {
                session.last_error = Some(format!("a peer was dropped because it {what}"));
            }
        }
        self.release(no, &asks);
        self.actions.push(Action::Event(Box::new(Event::Misbehaved { peer: id, what })));
        self.pump_hungry(now);
    }

    pub(crate) fn is_banned(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.banned)
    }

    fn peer(&self, id: &PeerId) -> Option<&Peer> {
        self.numbers.get(id).and_then(|no| self.peers.get(no))
    }

    fn peer_mut(&mut self, id: &PeerId) -> Option<&mut Peer> {
        self.numbers.get(id).and_then(|no| self.peers.get_mut(no))
    }

    /// The next message for a peer, or `None` where nothing changed.
    pub(crate) fn next_message(&mut self, id: &PeerId, now: Duration) -> Option<Message> {
        self.peer_mut(id)?.next_message(now)
    }

    pub(crate) fn has_message(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(Peer::has_message)
    }

    /// Whether the connection is of use: something is asked of the peer.
    pub(crate) fn uses(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.is_needed())
    }

    // ---- what comes -----------------------------------------------------------------------------------

    /// HAVE and DONT_HAVE came.
    pub(crate) fn on_presences(&mut self, id: &PeerId, presences: &[(Cid, Presence)], now: Duration) {
        let Some(no) = self.numbers.get(id).copied() else { return };
        for (cid, presence) in presences {
            if self.peers.get(&no).is_none_or(|peer| peer.banned) {
                return;
            }
            match presence {
                Presence::Have => self.on_have(no, cid.hash(), now),
                Presence::DontHave => self.on_dont_have(no, cid.hash()),
            }
        }
        self.pump_hungry(now);
    }

    fn on_have(&mut self, no: PeerNo, key: &Multihash, now: Duration) {
        let Some(peer) = self.peers.get_mut(&no) else { return };
        if peer.is_parked(key) {
            peer.settle(key);
            self.offered(no, key);
        }
        let mut sessions: SmallVec<[SessionId; 4]> =
            self.roots.get(key).into_iter().flatten().copied().collect();
        sessions
            .extend(self.wants.get(key).into_iter().flat_map(|want| want.sessions.iter().map(|(id, _)| *id)));
        if let Some(want) = self.wants.get_mut(key) {
            want.tried.retain(|tried| *tried != no);
        }
        for id in sessions {
            self.provider(id, no, now);
        }
        // Asked whether, and now asked for it or left to another provider: either way it is answered.
        self.settle_have(no, key);
    }

    fn settle_have(&mut self, no: PeerNo, key: &Multihash) {
        let asked_for_it =
            self.wants.get(key).is_some_and(|want| want.asked.contains(&(no, WantKind::Block)));
        if asked_for_it {
            return;
        }
        if let Some(want) = self.wants.get_mut(key) {
            want.asked.retain(|(asked, _)| *asked != no);
        }
        if let Some(peer) = self.peers.get_mut(&no) {
            peer.settle(key);
        }
    }

    fn on_dont_have(&mut self, no: PeerNo, key: &Multihash) {
        let Some(peer) = self.peers.get_mut(&no) else { return };
        if peer.is_parked(key) || peer.settle(key).is_none() {
            return;
        }
        let Some((key, want)) = self.wants.get_key_value(key).map(|(key, _)| key.clone()).and_then(|key| {
            let want = self.wants.get_mut(&key)?;
            Some((key, want))
        }) else {
            return;
        };
        want.tried.push(no);
        for (id, _) in &want.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.missed_by(no);
            }
        }
        self.unask(no, &key);
    }

    /// A peer no longer has a request for the want; it is queued again where that was the last for its block.
    fn unask(&mut self, no: PeerNo, key: &Key) {
        let Some(want) = self.wants.get_mut(key) else { return };
        want.asked.retain(|(asked, _)| *asked != no);
        let in_flight = want.asked.iter().any(|(_, kind)| *kind == WantKind::Block);
        if want.state == State::InFlight && !in_flight {
            uncharge(&mut self.sessions, want);
            self.requeue(key);
        }
    }

    fn requeue(&mut self, key: &Key) {
        let Some(want) = self.wants.get_mut(key) else { return };
        want.state = State::Queued;
        for (id, key) in &want.sessions {
            if let Some(session) = self.sessions.get_mut(id) {
                session.todo.push_front(key.clone());
                if !self.hungry.contains(id) {
                    self.hungry.push_back(*id);
                }
            }
        }
    }

    fn release(&mut self, no: PeerNo, asks: &[(Key, peer::Ask)]) {
        // Backwards, because each goes to the front of its queue.
        asks.iter().rev().for_each(|(key, _)| self.unask(no, key));
    }

    /// Blocks came, hashed. What somebody wants goes to their inboxes.
    pub(crate) fn on_blocks(&mut self, id: &PeerId, blocks: Vec<Block>, now: Duration) -> Taken {
        let mut taken = Taken::default();
        let Some(no) = self.numbers.get(id).copied() else { return taken };
        let mut ready: BTreeSet<SessionId> = BTreeSet::new();
        for block in blocks {
            if self.peers.get(&no).is_none_or(|peer| peer.banned) {
                break;
            }
            self.on_block(no, block, now, &mut taken, &mut ready);
        }
        self.actions.extend(ready.iter().map(|id| Action::Ready(*id)));
        for id in ready {
            self.pump(id, now);
        }
        self.pump_hungry(now);
        taken
    }

    fn on_block(
        &mut self,
        no: PeerNo,
        block: Block,
        now: Duration,
        taken: &mut Taken,
        ready: &mut BTreeSet<SessionId>,
    ) {
        let hash = *block.cid().hash();
        let Some(peer) = self.peers.get_mut(&no) else { return };
        let (id, offered) = (peer.id, peer.is_parked(&hash));
        let asked = peer.settle(&hash).is_some();
        if offered {
            self.offered(no, &hash);
        }
        let Some((key, want)) = self.wants.remove_entry(&hash) else {
            if asked || self.peers.get(&no).is_some_and(|peer| peer.was_asked(&hash)) {
                taken.duplicate += 1;
            } else {
                taken.unwanted += 1;
                self.strike(&id, Misbehaviour::UnwantedBlocks, now);
            }
            return;
        };
        taken.useful += 1;
        if let Some(peer) = self.peers.get_mut(&no) {
            peer.credit(now);
        }
        self.satisfy(no, key, want, &block, now, ready);
    }

    fn satisfy(
        &mut self,
        no: PeerNo,
        key: Key,
        mut want: Want,
        block: &Block,
        now: Duration,
        ready: &mut BTreeSet<SessionId>,
    ) {
        uncharge(&mut self.sessions, &mut want);
        self.cancel_asked(&key, &want, Some(no));
        let Some(from) = self.peers.get(&no).map(|peer| peer.id) else { return };
        let mut refused: SmallVec<[(SessionId, Key); 1]> = SmallVec::new();
        for (id, wanted) in want.sessions {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            session.delivered_by(no);
            let Some(block) = block.clone().relabelled(*wanted.cid()) else { continue };
            if session.deliver(block, from, now).is_err() {
                refused.push((id, wanted));
                continue;
            }
            session.keys.remove(&wanted);
            self.active -= usize::from(session.keys.is_empty());
            ready.insert(id);
        }
        if !refused.is_empty() {
            self.wants.insert(key.clone(), Want { sessions: refused, ..Want::new() });
            self.requeue(&key);
        }
    }

    /// Takes back what other peers were asked. Whether they have a root stays asked: it finds providers.
    fn cancel_asked(&mut self, key: &Key, want: &Want, except: Option<PeerNo>) {
        let is_root = self.roots.contains_key(key);
        for (no, kind) in &want.asked {
            if Some(*no) == except || (is_root && *kind == WantKind::Have) {
                continue;
            }
            if let Some(peer) = self.peers.get_mut(no)
                && !peer.is_parked(key.multihash())
                && peer.cancel(key)
            {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }

    fn cancel_probe(&mut self, root: &Key) {
        if self.wants.contains_key(root) {
            return;
        }
        for peer in self.peers.values_mut() {
            if peer.asks(root.multihash()) && !peer.is_parked(root.multihash()) && peer.cancel(root) {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }

    // ---- asking ---------------------------------------------------------------------------------------

    /// Bytes that the session may have in flight, of the window that all share.
    fn share(&self, session: &Session) -> usize {
        let others = self.active.saturating_sub(usize::from(!session.keys.is_empty()));
        (TOTAL_WINDOW_BYTES / (others + 1)).max(SESSION_SHARE_BYTES)
    }

    /// Asks every connected peer that is no provider whether it has the root.
    fn introduce(&mut self, id: SessionId, now: Duration) {
        let Some(session) = self.sessions.get(&id) else { return };
        let root = session.root.clone();
        let others: Vec<PeerNo> =
            self.peers.keys().filter(|no| !session.providers.contains_key(no)).copied().collect();
        others.into_iter().for_each(|no| self.probe(id, no, &root, now));
    }

    fn probe(&mut self, id: SessionId, no: PeerNo, key: &Key, now: Duration) {
        let Some(peer) = self.peers.get_mut(&no) else { return };
        if !peer.may_be_probed() {
            return;
        }
        if let Some(want) = self.wants.get_mut(key)
            && !want.asked.iter().any(|(asked, _)| *asked == no)
        {
            want.asked.push((no, WantKind::Have));
        }
        if peer.ask(key, WantKind::Have, now) {
            self.actions.push(Action::Wake(peer.id));
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.asked.insert(no);
        }
    }

    /// The peer should have blocks of the session: what it was sought for is asked of it.
    fn provider(&mut self, id: SessionId, no: PeerNo, now: Duration) {
        if self.peers.get(&no).is_none_or(|peer| peer.banned) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.add_provider(no);
        let seeking = std::mem::take(&mut session.seeking);
        for key in seeking.into_iter().rev() {
            let Some(want) = self.wants.get_mut(&key).filter(|want| want.state == State::Seeking) else {
                continue;
            };
            want.state = State::Queued;
            if let Some(session) = self.sessions.get_mut(&id) {
                session.todo.push_front(key);
            }
        }
        self.pump(id, now);
    }

    /// Asks for as much as the windows allow.
    fn pump(&mut self, id: SessionId, now: Duration) {
        let mut waits = false;
        while let Some(session) = self.sessions.get(&id) {
            let Some(key) = session.todo.front() else { break };
            let Some((key, want)) = self
                .wants
                .get_key_value(key)
                .filter(|(key, want)| want.state == State::Queued && session.keys.contains(*key))
            else {
                self.pop_todo(id);
                continue;
            };
            if !session.has_budget(self.share(session)) {
                waits = true;
                break;
            }
            let (pick, key) = (self.pick(want), key.clone());
            match pick {
                Pick::Peer(no) => {
                    self.pop_todo(id);
                    self.request(id, no, &key, now);
                }
                Pick::Busy => {
                    waits = true;
                    break;
                }
                Pick::Nobody => {
                    self.pop_todo(id);
                    self.seek(id, key, now);
                }
            }
        }
        if waits && !self.hungry.contains(&id) {
            self.hungry.push_back(id);
        }
    }

    fn pop_todo(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.todo.pop_front();
        }
    }

    /// Gives every session that waits for room its turn, each time another one first.
    fn pump_hungry(&mut self, now: Duration) {
        for id in std::mem::take(&mut self.hungry) {
            self.pump(id, now);
        }
        self.hungry.rotate_left(usize::from(self.hungry.len() > 1));
    }

    /// The provider that is likely to deliver first: the one with the emptiest window.
    fn pick(&self, want: &Want) -> Pick {
        let mut best: Option<(PeerNo, usize, usize)> = None;
        let mut known = false;
        let sessions = want.sessions.iter().filter_map(|(id, _)| self.sessions.get(id));
        for no in sessions.flat_map(|session| session.providers.keys()) {
            let Some(peer) = self.peers.get(no).filter(|peer| !peer.banned && !want.tried.contains(no))
            else {
                continue;
            };
            known = true;
            let (out, window) = (peer.blocks_out(), peer.window());
            if peer.has_capacity() && best.is_none_or(|(_, o, w)| out * w < o * window) {
                best = Some((*no, out, window));
            }
        }
        match (best, known) {
            (Some((no, ..)), _) => Pick::Peer(no),
            (None, true) => Pick::Busy,
            (None, false) => Pick::Nobody,
        }
    }

    /// Asks one peer for the block, on the account of one session.
    fn request(&mut self, id: SessionId, no: PeerNo, key: &Key, now: Duration) {
        let (Some(want), Some(peer), Some(session)) =
            (self.wants.get_mut(key), self.peers.get_mut(&no), self.sessions.get_mut(&id))
        else {
            return;
        };
        want.asked.retain(|(asked, _)| *asked != no);
        want.asked.push((no, WantKind::Block));
        want.state = State::InFlight;
        if want.charged.is_none() {
            let bytes = session.estimate(key.cid());
            want.charged = Some((id, bytes));
            session.in_flight += 1;
            session.in_flight_bytes += bytes;
        }
        if peer.ask(key, WantKind::Block, now) && self.actions.last() != Some(&Action::Wake(peer.id)) {
            self.actions.push(Action::Wake(peer.id));
        }
    }

    /// Nobody known has it: everybody is asked whether they do.
    fn seek(&mut self, id: SessionId, key: Key, now: Duration) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let probed = session.seeking.len() < PROBES_PER_SESSION;
        session.seeking.push_back(key.clone());
        let Some(want) = self.wants.get_mut(&key) else { return };
        want.state = State::Seeking;
        if probed {
            let tried = want.tried.clone();
            let others: Vec<PeerNo> = self.peers.keys().filter(|no| !tried.contains(no)).copied().collect();
            others.into_iter().for_each(|no| self.probe(id, no, &key, now));
        }
    }

    // ---- for the shell --------------------------------------------------------------------------------

    /// What is to be done since the last call.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether timers matter.
    pub(crate) fn is_busy(&self) -> bool {
        self.active > 0
    }

    /// Peers, sessions, wants, parked roots.
    pub(crate) fn counts(&self) -> (usize, usize, usize, usize) {
        (self.peers.len(), self.sessions.len(), self.wants.len(), self.parked.len())
    }
}

impl Want {
    fn new() -> Self {
        Self {
            state: State::Queued,
            sessions: SmallVec::new(),
            asked: SmallVec::new(),
            tried: SmallVec::new(),
            charged: None,
        }
    }
}

/// Gives the window back what the want took.
fn uncharge(sessions: &mut BTreeMap<SessionId, Session>, want: &mut Want) {
    if let Some((id, bytes)) = want.charged.take()
        && let Some(session) = sessions.get_mut(&id)
    {
        session.in_flight -= 1;
        session.in_flight_bytes -= bytes;
    }
}
