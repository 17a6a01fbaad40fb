//! The task that owns the swarm: the one place where its state changes.
//!
//! Everybody else holds a channel to it ([`Command`], bounded) and reads the [`View`]. Each turn takes what waits
//! locally first, a bounded number of it, and then one event of the network. When it is told to stop it closes
//! listeners and connections and ends; a panic in any part ends it too, and the node reports that.
//!
//! Searching: a session's origins are dialled at once. When bitswap says that nobody has what a session wants, the
//! DHT and the delegated routers are asked, and who they name is dialled and told to bitswap.

mod blocked;
mod denied;
mod kad;
mod listen;
mod opening;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use floe_bitswap::SessionId;
use floe_core::ports::NetworkEvent;
use floe_core::{Cid, Clock};
use futures::StreamExt as _;
use libp2p::core::ConnectedPoint;
use libp2p::kad::QueryId;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, ListenError, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, identify};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, trace};

use crate::behaviour::{Behaviour, BehaviourEvent};
use crate::deadline::within;
use crate::dial::origins;
use crate::dial::policy::{Asker, Policy};
use crate::limits::{
    self, CLOSE_WITHIN, COMMANDS_PER_TURN, MAX_PEER_ADDRESSES, MAX_PEER_PROTOCOLS, MAX_ROUTER_REQUESTS,
    MAX_SEARCHES, MEMORY_LOOK, TICK,
};
use crate::memory::{Guard, Memory};
#[cfg(test)]
use crate::observed::AutoNat;
use crate::provide::worker::Announce;
use crate::routers::{Found, RouterError, Routers};
use crate::search::Search;
use crate::session::Shared;
use crate::streams::Request;
use crate::view::{self, View};

/// What others ask of the task.
#[derive(Debug)]
pub(crate) enum Command {
    /// A session has origins (or none) and starts to want blocks.
    Search { shared: Arc<Shared>, asker: Asker, peers: Vec<(PeerId, Vec<Multiaddr>)> },
    /// A stream to a peer is wanted, who may be at these addresses; each with whether it is the operator's.
    Open { request: Request, addresses: Vec<(Multiaddr, bool)> },
    /// As if a peer had confirmed, or lost, an address of ours.
    #[cfg(test)]
    External { address: Multiaddr, confirmed: bool },
    /// How many of these peers are kept, and how many look-ups in the DHT are under way.
    #[cfg(test)]
    Count { peers: Vec<PeerId>, answer: oneshot::Sender<(usize, usize)> },
    /// How many addresses AutoNAT is to probe.
    #[cfg(test)]
    Candidates { answer: oneshot::Sender<usize> },
    /// As if a behaviour had a bug.
    #[cfg(test)]
    Panic,
}

/// What the task is made of.
pub(crate) struct Task {
    pub(crate) swarm: Swarm<Behaviour>,
    pub(crate) bitswap: floe_bitswap::Handle,
    pub(crate) policy: Arc<Policy>,
    pub(crate) view: Arc<View>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) memory: Memory,
    pub(crate) routers: Routers,
    pub(crate) relays: listen::Relays,
    /// `network.private_addresses = allow`: a closed network, whose addresses count as public.
    pub(crate) private_allowed: bool,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) announcements: mpsc::Receiver<Announce>,
    /// Whether the DHT can be asked, for the providing worker.
    pub(crate) dht_ready: watch::Sender<bool>,
    pub(crate) stop: CancellationToken,
    pub(crate) state: State,
}

/// What the task remembers.
#[derive(Default)]
pub(crate) struct State {
    searches: HashMap<SessionId, Search>,
    queries: HashMap<QueryId, kad::Query>,
    opening: opening::Opening,
    asked: JoinSet<(SessionId, Result<Vec<Found>, RouterError>)>,
    /// Inbound connections, the oldest first.
    inbound: VecDeque<(ConnectionId, PeerId)>,
    blocked: blocked::Blocked,
    guard: Guard,
    /// Addresses of ours that others confirmed, the first confirmed first.
    confirmed: VecDeque<Multiaddr>,
}

pub(crate) use listen::Relays;

impl Task {
    /// Runs until it is stopped.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        // At once, and then again and again: the configured relays are asked for their reservations by it.
        let (mut tick, mut look) = (self.clock.sleep(Duration::ZERO), self.clock.sleep(Duration::ZERO));
        loop {
            let mut budget = COMMANDS_PER_TURN;
            while budget > 0
                && let Ok(command) = self.commands.try_recv()
            {
                self.on_command(command);
                budget -= 1;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                Some(command) = self.commands.recv() => self.on_command(command),
                Some(announce) = self.announcements.recv() => self.announce(announce),
                Some(answer) = self.state.asked.join_next() => self.on_router(answer.ok()),
                event = self.swarm.select_next_some() => self.on_event(event),
                () = &mut tick => {
                    self.on_tick();
                    tick = self.clock.sleep(TICK);
                }
                () = &mut look => {
                    self.guard_memory();
                    look = self.clock.sleep(MEMORY_LOOK);
                }
            }
        }
        self.close().await;
    }

    /// Closes listeners and connections; peers see an end and not a silence.
    async fn close(mut self) {
        self.bitswap.close();
        self.state.asked.abort_all();
        self.close_listeners();
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            // It may have gone meanwhile.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let all_closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.next().await;
            }
        };
        // A second is long for loopback and for a far peer's FIN alike; the rest is dropped.
        let clock = self.clock.clone();
        let _ = within(&*clock, CLOSE_WITHIN, all_closed).await;
        let Self { swarm, view, .. } = self;
        drop(swarm);
        let listened = std::mem::take(&mut *view.listen.write());
        listen::until_free(&*clock, &listened).await;
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Search { shared, asker, peers } => self.on_search(shared, asker, peers),
            Command::Open { request, addresses } => self.on_open(request, addresses),
            #[cfg(test)]
            Command::External { address, confirmed } => {
                // The swarm tells the behaviours, and reports only what behaviours confirm.
                if confirmed {
                    self.swarm.add_external_address(address.clone());
                    self.on_confirmed(&address);
                } else {
                    self.swarm.remove_external_address(&address);
                    self.on_expired(&address);
                }
            }
            #[cfg(test)]
            Command::Count { peers, answer } => {
                let keep = &self.swarm.behaviour().keep;
                let kept = peers.iter().filter(|peer| keep.is_kept(peer)).count();
                answer.send((kept, self.lookups())).expect("a test waits for it");
            }
            #[cfg(test)]
            Command::Candidates { answer } => {
                let autonat = self.swarm.behaviour().autonat.as_ref();
                answer.send(autonat.map_or(0, AutoNat::candidates)).expect("a test waits for it");
            }
            #[cfg(test)]
            Command::Panic => panic!("a test asked for it"),
        }
    }

    fn on_search(&mut self, shared: Arc<Shared>, asker: Asker, peers: Vec<(PeerId, Vec<Multiaddr>)>) {
        let id = shared.id;
        if self.state.searches.len() >= MAX_SEARCHES && !self.state.searches.contains_key(&id) {
            self.forget_closed();
            if self.state.searches.len() >= MAX_SEARCHES {
                limits::hit("searches");
                shared.fail("too many pins are being searched for");
                return;
            }
        }
        let search = self.state.searches.entry(id).or_insert_with(|| Search::new(shared));
        search.asker = search.asker.max(asker);
        for (peer, addresses) in peers {
            search.add(peer, addresses, asker);
            // One peer too many is none of this search's, so its end would not let that peer go.
            if search.names(&peer) {
                self.swarm.behaviour_mut().keep.keep(peer, true);
            }
        }
        self.dial_due(id);
    }

    /// Dials the peers of one search that are due.
    fn dial_due(&mut self, id: SessionId) {
        let now = self.clock.monotonic();
        let Some(search) = self.state.searches.get_mut(&id) else { return };
        let swarm = &self.swarm;
        for dial in search.due(now, |peer| swarm.is_connected(peer)) {
            for (address, _) in dial.addresses.iter().filter(|(_, asker)| *asker == Asker::Local) {
                self.policy.permit_local(address);
            }
            self.dial(dial.peer, dial.addresses.into_iter().map(|(address, _)| address).collect());
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses)
            .extend_addresses_through_behaviour()
            .build();
        match self.swarm.dial(options) {
            Ok(()) | Err(DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => self.on_dial_failed(peer, &error),
        }
    }

    fn on_dial_failed(&mut self, peer: PeerId, error: &DialError) {
        trace!(%peer, %error, "dial failed");
        let text = explain(peer, error);
        // Why there was no address to dial (a refusal, a router that failed) says more than that there was none.
        let no_addresses = matches!(error, DialError::NoAddresses);
        for search in self.state.searches.values().filter(|search| search.names(&peer)) {
            let mut shown = search.shared.error.lock();
            if shown.is_none() || !no_addresses {
                *shown = Some(text.clone());
            }
        }
        let is_looked_for = no_addresses && self.find_peer(peer);
        self.opening_failed(peer, error, is_looked_for);
    }

    /// Peers that routing named for a session.
    fn on_found(&mut self, id: SessionId, found: Vec<(PeerId, Vec<Multiaddr>, Asker)>) {
        let own = *self.swarm.local_peer_id();
        let Some(search) = self.state.searches.get_mut(&id) else { return };
        let mut added = Vec::new();
        for (peer, addresses, asker) in found.into_iter().filter(|(peer, ..)| *peer != own) {
            let may = |address: &Multiaddr| origins::dialable(address, asker, &self.policy) == Ok(true);
            if search.add(peer, addresses.into_iter().filter(may).collect(), asker) {
                added.push(peer);
            }
        }
        self.bitswap.add_providers(id, &added);
        for peer in added {
            self.swarm.behaviour_mut().keep.keep(peer, true);
        }
        self.dial_due(id);
    }

    fn on_router(&mut self, answer: Option<(SessionId, Result<Vec<Found>, RouterError>)>) {
        // A look-up that panicked has no answer; the next one is due soon.
        let Some((id, answer)) = answer else { return };
        let Some(search) = self.state.searches.get(&id) else { return };
        match answer {
            Ok(found) => {
                let asker = |found: &Found| match search.asker {
                    Asker::Local if found.from_private_router => Asker::Local,
                    _ => Asker::Stranger,
                };
                let found = found.into_iter().map(|f| (f.peer, f.addresses.clone(), asker(&f))).collect();
                self.on_found(id, found);
            }
            Err(error) => {
                debug!(root = %search.shared.root, %error, "delegated routing failed");
                search.shared.fail(error.to_string());
            }
        }
    }

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id, connection_id, endpoint, num_established, ..
            } => {
                self.on_connected(peer_id, connection_id, &endpoint, num_established.get() == 1);
            }
            SwarmEvent::ConnectionClosed { connection_id, num_established, .. } => {
                self.state.inbound.retain(|(id, _)| *id != connection_id);
                if num_established == 0 {
                    self.count_peers();
                }
            }
            SwarmEvent::IncomingConnectionError { error: ListenError::Denied { cause }, .. } => {
                denied::count(&cause);
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                if let DialError::Denied { cause } = &error {
                    denied::count(cause);
                }
                if let Some(peer) = peer_id {
                    self.on_dial_failed(peer, &error);
                }
            }
            SwarmEvent::NewListenAddr { .. }
            | SwarmEvent::ExpiredListenAddr { .. }
            | SwarmEvent::ListenerClosed { .. }
            | SwarmEvent::ListenerError { .. } => self.on_listener(event),
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_confirmed(&address),
            SwarmEvent::ExternalAddrExpired { address } => self.on_expired(&address),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint, first: bool) {
        if endpoint.is_listener() {
            self.state.inbound.push_back((id, peer));
        }
        self.open_waiting(peer);
        if first {
            self.count_peers();
            self.view.emit(NetworkEvent::Connected { peer_id: peer.to_base58() });
        }
    }

    fn count_peers(&self) {
        let peers = self.swarm.connected_peers().count();
        self.view.peers.store(peers, Ordering::Relaxed);
        metrics::gauge!("floe_peers").set(peers as f64);
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Bitswap(event) => self.on_bitswap(event),
            BehaviourEvent::Kad(event) => self.on_kad(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.on_identified(peer_id, info);
            }
            BehaviourEvent::Relay(event) => debug!(?event, "relay"),
            BehaviourEvent::Dcutr(event) => debug!(?event, "hole punching"),
            BehaviourEvent::Autonat(event) => debug!(?event, "reachability"),
            _ => {}
        }
    }

    fn on_bitswap(&mut self, event: floe_bitswap::Event) {
        match event {
            floe_bitswap::Event::NeedProviders { session, cid, .. } => self.look_up(session, cid),
            floe_bitswap::Event::Offered { root, peer } => {
                self.view.emit(NetworkEvent::Offered { root, peer_id: peer.to_base58() });
            }
            floe_bitswap::Event::Misbehaved { peer, what } => {
                debug!(%peer, %what, "peer misbehaved");
                self.block(peer);
            }
        }
    }

    /// Asks the routing systems for a session, if it is time.
    fn look_up(&mut self, id: SessionId, missing: Cid) {
        let Some(search) = self.state.searches.get_mut(&id) else { return };
        let Some(cid) = search.lookup(self.clock.monotonic(), missing) else { return };
        if !self.routers.is_empty() {
            if self.state.asked.len() >= MAX_ROUTER_REQUESTS {
                limits::hit("router_requests");
            } else {
                let routers = self.routers.clone();
                self.state.asked.spawn(async move { (id, routers.providers(cid).await) });
            }
        }
        self.find_providers(id, &cid);
    }

    fn block(&mut self, peer: PeerId) {
        let behaviour = &mut self.swarm.behaviour_mut().blocked;
        if behaviour.block_peer(peer)
            && let Some(oldest) = self.state.blocked.add(peer, self.clock.monotonic())
        {
            behaviour.unblock_peer(oldest);
        }
    }

    /// Takes from a peer's claims what the DHT's table may hold.
    fn on_identified(&mut self, peer: PeerId, info: identify::Info) {
        let names = info.protocols.iter().map(AsRef::as_ref);
        let addresses = claimed(names, info.listen_addrs, self.private_allowed);
        self.add_to_table(peer, addresses);
    }

    fn on_tick(&mut self) {
        self.forget_closed();
        let ids: Vec<SessionId> = self.state.searches.keys().copied().collect();
        ids.into_iter().for_each(|id| self.dial_due(id));
        let now = self.clock.monotonic();
        while let Some(peer) = self.state.blocked.next_free(now) {
            self.swarm.behaviour_mut().blocked.unblock_peer(peer);
        }
        self.renew_reservations(now);
        self.dht_ready.send_if_modified(|ready| {
            std::mem::replace(ready, self.swarm.behaviour_mut().kad.as_mut().is_some_and(kad::has_peers))
                != *ready
        });
    }

    /// Forgets the searches of sessions that are gone, and lets their peers go.
    fn forget_closed(&mut self) {
        let mut gone = HashSet::new();
        self.state.searches.retain(|_, search| {
            let closed = search.shared.is_closed();
            if closed {
                gone.extend(search.peers().copied());
            }
            !closed
        });
        gone.retain(|peer| !self.state.searches.values().any(|search| search.names(peer)));
        for peer in gone.into_iter().filter(|peer| !self.relays.has(peer)) {
            self.swarm.behaviour_mut().keep.keep(peer, false);
        }
    }

    /// Where too much memory is in use, closes some inbound connections: first those that serve no pin, the
    /// youngest of them first, because an old one has proved its use and a flood is young.
    fn guard_memory(&mut self) {
        let Some(batch) = self.state.guard.next(self.memory.is_over()) else { return };
        limits::hit("memory_guard");
        let keep = &self.swarm.behaviour().keep;
        let mut scored: Vec<_> =
            self.state.inbound.iter().rev().map(|(id, peer)| (keep.is_kept(peer), *id)).collect();
        scored.sort_by_key(|(kept, _)| *kept);
        for (_, id) in scored.into_iter().take(batch) {
            self.swarm.close_connection(id);
        }
    }
}

/// Which of the addresses that a peer claims go into the DHT's table: none, unless it plays the DHT's server. What is
/// over the limits is planted (threat T8) and not looked at.
fn claimed<'a>(
    protocols: impl Iterator<Item = &'a str>,
    addresses: Vec<Multiaddr>,
    private_allowed: bool,
) -> Vec<Multiaddr> {
    let mut protocols = protocols.take(MAX_PEER_PROTOCOLS);
    if !protocols.any(|name| name == kad::PROTOCOL.as_ref()) {
        return Vec::new();
    }
    let may = |address: &Multiaddr| private_allowed || view::is_public(address);
    addresses.into_iter().filter(may).take(MAX_PEER_ADDRESSES).collect()
}

/// Why a peer could not be reached, for the owner of a pin: no address in it (threat T45).
fn explain(peer: PeerId, error: &DialError) -> String {
    let why = match error {
        DialError::NoAddresses => "no address that may be dialled is known",
        DialError::LocalPeerId { .. } => "it is this node",
        DialError::WrongPeerId { .. } => "another peer answers in its place",
        DialError::Denied { .. } => "too many connections, or the peer is shut out for misbehaving",
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => "the attempt was broken off",
        DialError::Transport(errors) => explain_transport(errors),
    };
    format!("cannot reach {peer}: {why}")
}

fn explain_transport(errors: &[(Multiaddr, libp2p::TransportError<std::io::Error>)]) -> &'static str {
    use crate::dial::policy::Refusal;
    let texts: Vec<String> = errors.iter().map(|(_, error)| chain(error)).collect();
    let any = |needle: &str| texts.iter().any(|text| text.contains(needle));
    if any("refused (os error") {
        "the connection was refused"
    } else if any("imeout") || any("timed out") {
        "it did not answer in time"
    } else if any(&Refusal::Private.to_string()) {
        "its address is private, which network.private_addresses does not allow for this request"
    } else if any(&Refusal::Port.to_string()) {
        "its port is reserved for other services"
    } else if any("does not resolve") {
        "its name does not resolve"
    } else {
        "none of its addresses could be reached"
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// A oneshot that the swarm's task answers.
pub(crate) type Done = oneshot::Sender<bool>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t08_planted_addresses_and_protocols() {
        let public = |n: usize| format!("/ip4/8.8.8.8/tcp/{}", 4001 + n).parse::<Multiaddr>().unwrap();
        for count in [MAX_PEER_ADDRESSES - 1, MAX_PEER_ADDRESSES, MAX_PEER_ADDRESSES + 1] {
            let kept = claimed(["/ipfs/kad/1.0.0"].into_iter(), (0..count).map(public).collect(), false);
            assert_eq!(kept.len(), count.min(MAX_PEER_ADDRESSES));
        }
        for before in [MAX_PEER_PROTOCOLS - 1, MAX_PEER_PROTOCOLS] {
            let names = std::iter::repeat_n("/x", before).chain(["/ipfs/kad/1.0.0"]);
            let kept = claimed(names, vec![public(0)], false);
            assert_eq!(kept.len(), usize::from(before < MAX_PEER_PROTOCOLS), "{before}");
        }
        let private: Vec<Multiaddr> = vec!["/ip4/127.0.0.1/tcp/4001".parse().unwrap()];
        assert!(claimed(["/ipfs/kad/1.0.0"].into_iter(), private.clone(), false).is_empty());
        assert_eq!(claimed(["/ipfs/kad/1.0.0"].into_iter(), private, true).len(), 1);
        assert!(claimed(["/ipfs/bitswap/1.2.0"].into_iter(), vec![public(0)], false).is_empty());
    }
}
