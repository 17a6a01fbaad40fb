//! Who is asked for what: as much as the windows allow, of the provider that is likely to deliver first; and
//! requests that are taken back.

use std::time::Duration;

use super::peer::Ask;
use super::{Action, Client, PeerNo, Pick, Session, State, Want, uncharge};
use crate::handle::SessionId;
use crate::key::Key;
use crate::limits::{PROBES_PER_SESSION, SESSION_SHARE_BYTES, TOTAL_WINDOW_BYTES};
use crate::message::WantKind;

impl Client {
    /// Bytes that the session may have in flight, of the window that all share.
    pub(super) fn share(&self, session: &Session) -> usize {
        let others = self.active.saturating_sub(usize::from(!session.keys.is_empty()));
        (TOTAL_WINDOW_BYTES / (others + 1)).max(SESSION_SHARE_BYTES)
    }

    /// Asks every connected peer that is no provider whether it has the root.
    pub(super) fn introduce(&mut self, id: SessionId, now: Duration) {
        let Some(session) = self.sessions.get(&id) else { return };
        let root = session.root.clone();
        let others: Vec<PeerNo> =
            self.peers.keys().filter(|no| !session.providers.contains_key(no)).copied().collect();
        others.into_iter().for_each(|no| self.probe(id, no, &root, now));
    }

    pub(super) fn probe(&mut self, id: SessionId, no: PeerNo, key: &Key, now: Duration) {
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
    pub(super) fn provider(&mut self, id: SessionId, no: PeerNo, now: Duration) {
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
    pub(super) fn pump(&mut self, id: SessionId, now: Duration) {
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
    pub(super) fn pump_hungry(&mut self, now: Duration) {
        for id in std::mem::take(&mut self.hungry) {
            self.pump(id, now);
        }
        self.hungry.rotate_left(usize::from(self.hungry.len() > 1));
    }

    /// The provider that is likely to deliver first: the one with the emptiest window.
    pub(super) fn pick(&self, want: &Want) -> Pick {
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
    pub(super) fn request(&mut self, id: SessionId, no: PeerNo, key: &Key, now: Duration) {
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
    pub(super) fn seek(&mut self, id: SessionId, key: Key, now: Duration) {
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

    /// A peer no longer has a request for the want; it is queued again where that was the last for its block.
    pub(super) fn unask(&mut self, no: PeerNo, key: &Key) {
        let Some(want) = self.wants.get_mut(key) else { return };
        want.asked.retain(|(asked, _)| *asked != no);
        let in_flight = want.asked.iter().any(|(_, kind)| *kind == WantKind::Block);
        if want.state == State::InFlight && !in_flight {
            uncharge(&mut self.sessions, want);
            self.requeue(key);
        }
    }

    pub(super) fn requeue(&mut self, key: &Key) {
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

    pub(super) fn release(&mut self, no: PeerNo, asks: &[(Key, Ask)]) {
        // Backwards, because each goes to the front of its queue.
        asks.iter().rev().for_each(|(key, _)| self.unask(no, key));
    }

    /// Takes back what other peers were asked. Whether they have a root stays asked: it finds providers.
    pub(super) fn cancel_asked(&mut self, key: &Key, want: &Want, except: Option<PeerNo>) {
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

    pub(super) fn cancel_probe(&mut self, root: &Key) {
        if self.wants.contains_key(root) {
            return;
        }
        for peer in self.peers.values_mut() {
            if peer.asks(root.multihash()) && !peer.is_parked(root.multihash()) && peer.cancel(root) {
                self.actions.push(Action::Wake(peer.id));
            }
        }
    }
}
