//! What happens because nothing happened: requests that expire, providers that are called for.

use std::time::Duration;

use super::peer::Ask;
use super::{Action, Client, PeerNo, Pick, Session, State};
use crate::behaviour::Event;
use crate::handle::SessionId;
use crate::key::Key;
use crate::limits::{HEDGE_AFTER, PROBES_PER_SESSION, PROGRESS_TIMEOUT, REQUEST_TIMEOUT};
use crate::message::WantKind;

impl Client {
    /// Looks at all timers. To be called every [`TICK`](crate::limits::TICK) while [`Client::is_busy`].
    pub(crate) fn tick(&mut self, now: Duration) {
        let peers: Vec<PeerNo> =
            self.peers.iter().filter(|(_, peer)| peer.blocks_out() > 0).map(|(no, _)| *no).collect();
        for no in peers {
            self.expire_requests(no, now);
        }
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in sessions {
            self.call_for_providers(id, now);
        }
        self.pump_hungry(now);
    }

    /// A silent peer: after a second an idle provider is asked too, after ten the block is asked elsewhere. Whether the
    /// request was sent does not matter: a peer that delivers keeps those that wait behind its busy stream, and one that
    /// takes an answer of ours keeps those that wait behind that.
    fn expire_requests(&mut self, no: PeerNo, now: Duration) {
        let Some(peer) = self.peers.get(&no) else { return };
        let age = |at: Duration| now.saturating_sub(at);
        let oldest_first = peer.sorted_asks().into_iter().filter(|(_, ask)| ask.kind == WantKind::Block);
        let (mut expired, mut slow) = (Vec::new(), Vec::new());
        for (key, ask) in oldest_first {
            let waited = age(ask.at.max(peer.last_useful));
            let stuck = if ask.sent { waited } else { waited.min(age(peer.moved_at)) };
            if stuck >= PROGRESS_TIMEOUT || age(ask.at) >= REQUEST_TIMEOUT {
                expired.push((key, ask));
            } else if waited >= HEDGE_AFTER && !ask.hedged {
                slow.push(key);
            }
        }
        if !expired.is_empty() {
            self.give_up_on(no, &expired);
        }
        slow.iter().for_each(|key| self.hedge(no, key, now));
    }

    fn give_up_on(&mut self, no: PeerNo, expired: &[(Key, Ask)]) {
        let Some(peer) = self.peers.get_mut(&no) else { return };
        // What waited behind an answer that the peer was taking says nothing about the peer.
        let moved_at = peer.moved_at;
        let missed = |ask: &Ask| ask.sent || moved_at <= ask.at;
        if expired.iter().any(|(_, ask)| missed(ask)) {
            peer.shrink();
        }
        let sent = expired.iter().filter(|(key, _)| peer.cancel(key)).count();
        if sent > 0 {
            self.actions.push(Action::Wake(peer.id));
        }
        for (key, ask) in expired.iter().rev() {
            let Some(want) = self.wants.get_mut(key) else { continue };
            want.tried.push(no);
            for (id, _) in &want.sessions {
                if let Some(session) = self.sessions.get_mut(id) {
                    if missed(ask) {
                        session.missed_by(no);
                    }
                    session.last_error = Some(format!(
                        "a peer did not send {} within {} s",
                        key.cid(),
                        PROGRESS_TIMEOUT.as_secs()
                    ));
                }
            }
            self.unask(no, key);
        }
    }

    /// Asks another provider, too, if one is idle enough to answer at once.
    fn hedge(&mut self, silent: PeerNo, key: &Key, now: Duration) {
        let Some(want) = self.wants.get(key).filter(|want| want.state == State::InFlight) else { return };
        let Some((id, _)) = want.charged else { return };
        let best = want
            .sessions
            .iter()
            .filter_map(|(id, _)| self.sessions.get(id))
            .flat_map(|session| session.providers.iter())
            .filter(|(no, provider)| {
                **no != silent
                    && provider.delivered > 0
                    && !want.tried.contains(no)
                    && !want.asked.contains(&(**no, WantKind::Block))
            })
            .filter_map(|(no, _)| self.peers.get(no).map(|peer| (*no, peer)))
            .filter(|(_, peer)| {
                peer.has_capacity()
                    && now.saturating_sub(peer.last_useful) < HEDGE_AFTER.max(PROGRESS_TIMEOUT)
            })
            .min_by_key(|(no, peer)| (peer.blocks_out(), *no));
        if let Some((other, _)) = best {
            if let Some(peer) = self.peers.get_mut(&silent) {
                peer.mark_hedged(key.multihash());
            }
            self.request(id, other, key, now);
        }
    }

    /// Nobody to ask, or no progress: the node is told to find providers, and everybody is asked again, for other blocks
    /// than before where there are many.
    fn call_for_providers(&mut self, id: SessionId, now: Duration) {
        let Some(session) = self.sessions.get(&id) else { return };
        let stalled = session.in_flight == 0 || now.saturating_sub(session.last_progress) >= PROGRESS_TIMEOUT;
        let waiting = !session.keys.is_empty() && session.inbox_bytes == 0;
        if !waiting || !stalled || now < session.need_providers_at {
            return;
        }
        let key = missing(session).clone();
        let cid = *key.cid();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.looked_up = Some(key);
        session.asked_for_providers(now);
        let event = Event::NeedProviders { session: id, root: *session.root.cid(), cid };
        self.actions.push(Action::Event(Box::new(event)));
        let mut seeking = std::mem::take(&mut session.seeking);
        seeking.rotate_left(next_round(seeking.len()));
        for key in seeking {
            self.ask_again(id, key, now);
        }
    }

    /// Who lacked it may have it by now.
    fn ask_again(&mut self, id: SessionId, key: Key, now: Duration) {
        let Some(want) = self.wants.get_mut(&key).filter(|want| want.state == State::Seeking) else { return };
        want.tried.clear();
        want.state = State::Queued;
        let pick = self.wants.get(&key).map_or(Pick::Nobody, |want| self.pick(want));
        match pick {
            Pick::Peer(no) => self.request(id, no, &key, now),
            Pick::Busy => self.requeue(&key),
            Pick::Nobody => self.seek(id, key, now),
        }
    }
}

/// How many blocks give way to others in the next round. Only the first [`PROBES_PER_SESSION`] are asked of everybody: a
/// peer may have none of those and all others.
fn next_round(seeking: usize) -> usize {
    if seeking > PROBES_PER_SESSION { PROBES_PER_SESSION - 1 } else { seeking.min(1) }
}

/// A block to look for: the root where it is missing, else the next one in each round. In the order of their keys and not
/// of the queue, which is turned in each round and changes between them: so none is passed over.
fn missing(session: &Session) -> &Key {
    let sought = || session.seeking.iter().chain(&session.todo).filter(|key| session.keys.contains(*key));
    let next = || sought().filter(|key| Some(*key) > session.looked_up.as_ref()).min();
    let root = session.keys.get(&session.root);
    root.or_else(next)
        .or_else(|| sought().min())
        .or_else(|| session.keys.iter().min())
        .unwrap_or(&session.root)
}
