//! What sessions do: open, want, take back, take out, close.

use std::time::Duration;

use floe_core::ports::SessionProgress;
use floe_core::{Block, Cid, cid};
use libp2p::PeerId;

use super::{Client, Session, State, Want, uncharge};
use crate::handle::SessionId;
use crate::key::Key;
use crate::limits::{SESSION_WANTS_KEPT, hit};

impl Client {
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
        if want.sessions.is_empty() {
            if let Some(want) = self.wants.remove(key) {
                self.cancel_asked(key, &want, None);
            }
        } else if want.state == State::Queued {
            // It may have waited only in the queue of the session that is leaving.
            self.requeue(key);
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
}
