//! The DHT's part of the task: look-ups for sessions, announcements for the providing worker, and which part this
//! node plays.
//!
//! A node is a client, which asks and does not answer, until a public address of it is confirmed; a server that
//! nobody can reach only slows the DHT down, and one behind a lying peer's word would serve it.

use floe_bitswap::SessionId;
use floe_core::Cid;
use libp2p::kad::{self, GetProvidersOk, Mode, QueryId, QueryResult, RecordKey};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::StreamProtocol;
use libp2p::{Multiaddr, PeerId};
use tracing::{debug, info};

use super::{Done, Task};
use crate::dial::policy::Asker;
use crate::kad_store::Store;
use crate::limits::{self, MAX_EXTERNAL, MAX_KAD_LOOKUPS, MAX_PEER_ADDRESSES};
use crate::provide::worker::Announce;
use crate::view;

/// The public DHT.
pub(super) const PROTOCOL: StreamProtocol = StreamProtocol::new("/ipfs/kad/1.0.0");

/// What a query of ours is for.
pub(super) enum Query {
    Providers(SessionId),
    Provide(Done),
    Peer(PeerId),
}

/// Whether there is anybody to ask.
pub(super) fn has_peers(kad: &mut kad::Behaviour<Store>) -> bool {
    kad.kbuckets().any(|bucket| bucket.num_entries() > 0)
}

impl Task {
    fn kad(&mut self) -> Option<&mut kad::Behaviour<Store>> {
        self.swarm.behaviour_mut().kad.as_mut()
    }

    pub(super) fn lookups(&self) -> usize {
        self.state.queries.values().filter(|query| !matches!(query, Query::Provide(_))).count()
    }

    /// Whether it was begun.
    fn start_lookup(
        &mut self,
        query: Query,
        start: impl FnOnce(&mut kad::Behaviour<Store>) -> QueryId,
    ) -> bool {
        if self.lookups() >= MAX_KAD_LOOKUPS {
            // The session asks again after its pause.
            limits::hit("kad_lookups");
            return false;
        }
        let Some(kad) = self.kad() else { return false };
        if !has_peers(kad) {
            return false;
        }
        let id = start(kad);
        self.state.queries.insert(id, query);
        true
    }

    pub(super) fn find_providers(&mut self, session: SessionId, cid: &Cid) {
        let key = RecordKey::new(&cid.hash().to_bytes());
        // Where it cannot be asked now, the session asks again after its pause.
        let _ = self.start_lookup(Query::Providers(session), |kad| kad.get_providers(key));
    }

    /// Looks for the addresses of a peer; the next dial of it finds them in the DHT's table. Whether it was begun.
    pub(super) fn find_peer(&mut self, peer: PeerId) -> bool {
        self.start_lookup(Query::Peer(peer), |kad| kad.get_closest_peers(peer))
    }

    pub(super) fn announce(&mut self, announce: Announce) {
        let key = RecordKey::new(&announce.multihash);
        // Dropping `done` says that it was not announced.
        let Some(kad) = self.kad() else { return };
        if let Ok(id) = kad.start_providing(key) {
            self.state.queries.insert(id, Query::Provide(announce.done));
        }
    }

    pub(super) fn on_kad(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return };
        if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders { providers, .. })) = &result
            && let Some(Query::Providers(session)) = self.state.queries.get(&id)
        {
            let session = *session;
            let found = providers.iter().map(|peer| (*peer, Vec::new(), Asker::Stranger)).collect();
            self.on_found(session, found);
        }
        if !step.last {
            return;
        }
        match (self.state.queries.remove(&id), result) {
            (Some(Query::Provide(done)), result) => {
                let announced = matches!(&result, QueryResult::StartProviding(Ok(_)));
                // The worker may be stopping.
                let _ = done.send(announced);
            }
            (Some(Query::Peer(peer)), QueryResult::GetClosestPeers(result)) => {
                self.on_peer_looked_up(peer, result)
            }
            (_, QueryResult::Bootstrap(Err(error))) => debug!(%error, "bootstrap of the DHT"),
            _ => {}
        }
    }

    /// Puts a peer into the DHT's table, with no more addresses than are kept of one.
    pub(super) fn add_to_table(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let Some(kad) = self.kad() else { return };
        let known = kad.kbucket(peer).and_then(|bucket| {
            bucket.iter().find(|entry| *entry.node.key.preimage() == peer).map(|entry| entry.node.value.len())
        });
        for address in addresses.into_iter().take(MAX_PEER_ADDRESSES.saturating_sub(known.unwrap_or(0))) {
            kad.add_address(&peer, address);
        }
    }

    /// An address of ours was confirmed. Where there are too many, the one that was confirmed longest ago gives way: a
    /// node that moved has new ones, and strangers who confirm many are not to keep them out. What the operator
    /// announces and what relays gave are few, and stay.
    pub(super) fn on_confirmed(&mut self, address: &Multiaddr) {
        let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
        let confirmed = &mut self.state.confirmed;
        if !relayed && !self.view.announce.contains(address) && !confirmed.contains(address) {
            confirmed.push_back(address.clone());
        }
        if confirmed.len() > MAX_EXTERNAL
            && let Some(oldest) = confirmed.pop_front()
        {
            limits::hit("external_addresses");
            self.swarm.remove_external_address(&oldest);
        }
        self.on_external_changed();
    }

    /// An address of ours is none any more.
    pub(super) fn on_expired(&mut self, address: &Multiaddr) {
        self.state.confirmed.retain(|confirmed| confirmed != address);
        self.on_external_changed();
    }

    /// Our external addresses changed: what is told to others follows, and so does the part we play in the DHT.
    pub(crate) fn on_external_changed(&mut self) {
        let external: Vec<Multiaddr> = self.swarm.external_addresses().cloned().collect();
        let direct = |a: &&Multiaddr| !a.iter().any(|part| part == Protocol::P2pCircuit);
        let reachable = |a: &Multiaddr| self.private_allowed || view::is_public(a);
        let public = external.iter().filter(direct).any(reachable);
        *self.view.own_addresses.write() = external.iter().filter(|a| reachable(a)).cloned().collect();
        *self.view.external.write() = external;
        let mode = if public { Mode::Server } else { Mode::Client };
        let name = match (self.kad(), mode) {
            (None, _) => "off",
            (Some(kad), mode) => {
                kad.set_mode(Some(mode));
                if mode == Mode::Server { "server" } else { "client" }
            }
        };
        let before = std::mem::replace(&mut *self.view.kad.lock(), name);
        if before != name && before != "off" {
            info!("now a {name} of the DHT");
        }
    }
}
