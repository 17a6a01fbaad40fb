//! What peers answer: HAVE and DONT_HAVE, and blocks, which go to the inboxes of the sessions that want them.

use std::collections::BTreeSet;
use std::time::Duration;

use floe_core::{Block, Cid, Multihash};
use libp2p::PeerId;
use smallvec::SmallVec;

use super::{Action, Client, PeerNo, Taken, Want, uncharge};
use crate::behaviour::Misbehaviour;
use crate::handle::SessionId;
use crate::key::Key;
use crate::message::{Presence, WantKind};

impl Client {
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
        peer.settle(&hash);
        if offered {
            self.offered(no, &hash);
        }
        let Some((key, want)) = self.wants.remove_entry(&hash) else {
            if self.peers.get_mut(&no).is_some_and(|peer| peer.may_repeat(&hash)) {
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
}
