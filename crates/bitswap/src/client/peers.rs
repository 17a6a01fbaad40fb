//! Peers that come, go and misbehave, and the messages for them.

use std::time::Duration;

use libp2p::PeerId;

use super::{Action, Client, Peer, PeerNo};
use crate::behaviour::{Event, Misbehaviour};
use crate::handle::SessionId;
use crate::key::Key;
use crate::limits::{PARKED_PER_PEER, PROBES_PER_SESSION};
use crate::message::Message;

impl Client {
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
        for root in self.parked.some(PARKED_PER_PEER) {
            peer.ask_parked(&root, now);
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

    /// The peer took bytes of an answer of ours.
    pub(crate) fn moved(&mut self, id: &PeerId, now: Duration) {
        if let Some(peer) = self.peer_mut(id) {
            peer.moved_at = now;
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
    pub(crate) fn next_message(&mut self, id: &PeerId) -> Option<Message> {
        self.peer_mut(id)?.next_message()
    }

    pub(crate) fn has_message(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(Peer::has_message)
    }

    /// Whether the connection is of use: something is asked of the peer.
    pub(crate) fn uses(&self, id: &PeerId) -> bool {
        self.peer(id).is_some_and(|peer| peer.is_needed())
    }
}
