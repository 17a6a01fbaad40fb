//! Addresses at which peers claim to see us.
//!
//! Every peer says in identify at which address it sees us, and may say another as often as it likes. The library makes
//! a candidate of each, and its AutoNAT client keeps every candidate for ever and sorts them all at each probe: one
//! peer fills the memory with nothing but its word (threat T8). Two rules stand in the way:
//!
//! ```text
//!   peer ── identify ── [`Identify`]: few of each peer ── swarm ── [`AutoNat`]: few in all ── AutoNAT client
//! ```
//!
//! Peers that lie together can still fill the table, which would keep our true address out. So a full table
//! lasts for an hour, and then the client begins afresh.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use floe_core::Clock;
use floe_core::ports::Entropy;
use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::behaviour::ConnectionEstablished;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NewExternalAddrCandidate, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, autonat, identify};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use crate::dial::ip;
use crate::dial::target::{Host, Target};
use crate::limits::{self, CANDIDATE_BYTES, CANDIDATES_FOR, MAX_CANDIDATES, MAX_PEER_CANDIDATES};

/// What stands between a behaviour of the library and the swarm.
pub(crate) trait Rule<B: NetworkBehaviour> {
    /// Whether the behaviour hears of this.
    fn hears(&mut self, inner: &mut B, event: &FromSwarm<'_>) -> bool;
    /// Whether the swarm hears of this.
    fn tells(&mut self, _event: &ToSwarm<B::ToSwarm, THandlerInEvent<B>>) -> bool {
        true
    }
}

/// A behaviour under a rule; all else passes as it is.
pub(crate) struct Ruled<B, R> {
    inner: B,
    rule: R,
}

/// Identify, of whose candidates few pass.
pub(crate) type Identify = Ruled<identify::Behaviour, FewOfEach>;

/// The AutoNAT client, with a table that ends.
pub(crate) type AutoNat = Ruled<Client, FewInAll>;

type Client = autonat::v2::client::Behaviour<StdRng>;

impl<B: NetworkBehaviour, R: Rule<B> + 'static> NetworkBehaviour for Ruled<B, R> {
    type ConnectionHandler = THandler<B>;
    type ToSwarm = B::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner.handle_pending_inbound_connection(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_inbound_connection(id, peer, local, remote)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner.handle_pending_outbound_connection(id, peer, addresses, role)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.inner.handle_established_outbound_connection(id, peer, address, role, port_use)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if self.rule.hears(&mut self.inner, &event) {
            self.inner.on_swarm_event(event);
        } else {
            limits::hit("address_candidates");
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            let event = ready!(self.inner.poll(cx));
            if self.rule.tells(&event) {
                return Poll::Ready(event);
            }
            limits::hit("address_candidates");
        }
    }
}

/// Few candidates of each peer.
pub(crate) struct FewOfEach {
    private_allowed: bool,
    /// Whose message the library handed out last: what it made of that message comes next.
    speaker: Option<PeerId>,
    /// Candidates that passed, of each connected peer.
    passed: HashMap<PeerId, usize>,
}

impl Identify {
    /// `private_allowed`: a closed network, whose addresses are of use to its peers.
    pub(crate) fn new(config: identify::Config, private_allowed: bool) -> Self {
        let rule = FewOfEach { private_allowed, speaker: None, passed: HashMap::new() };
        Self { inner: identify::Behaviour::new(config), rule }
    }
}

impl FewOfEach {
    fn may_pass(&mut self, candidate: &Multiaddr) -> bool {
        if !is_candidate(candidate, self.private_allowed) {
            return false;
        }
        // Who is gone has no say.
        let passed = self.speaker.and_then(|peer| self.passed.get_mut(&peer));
        passed.is_some_and(|passed| {
            *passed += 1;
            *passed <= MAX_PEER_CANDIDATES
        })
    }
}

/// Whether we can be at this address: an IP address and port, as a socket has them.
fn is_candidate(address: &Multiaddr, private_allowed: bool) -> bool {
    // What a relay is seen at is the relay's.
    let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
    let host = Target::first_hop(address).map(|target| target.host);
    let may = |ip| private_allowed || ip::is_public(ip);
    !relayed && address.len() <= CANDIDATE_BYTES && matches!(host, Some(Host::Ip(ip)) if may(ip))
}

impl Rule<identify::Behaviour> for FewOfEach {
    fn hears(&mut self, _: &mut identify::Behaviour, event: &FromSwarm<'_>) -> bool {
        match event {
            FromSwarm::ConnectionEstablished(event) => drop(self.passed.entry(event.peer_id).or_default()),
            FromSwarm::ConnectionClosed(event) if event.remaining_established == 0 => {
                self.passed.remove(&event.peer_id);
            }
            _ => {}
        }
        true
    }

    fn tells(&mut self, event: &ToSwarm<identify::Event, THandlerInEvent<identify::Behaviour>>) -> bool {
        match event {
            ToSwarm::GenerateEvent(identify::Event::Received { peer_id, .. }) => {
                self.speaker = Some(*peer_id);
                true
            }
            ToSwarm::NewExternalAddrCandidate(address) => self.may_pass(address),
            _ => true,
        }
    }
}

/// Few candidates in all.
pub(crate) struct FewInAll {
    entropy: Arc<dyn Entropy>,
    clock: Arc<dyn Clock>,
    /// What the client was told, and since when.
    told: HashSet<Multiaddr>,
    since: Duration,
    /// What a fresh client must know, or it meets the end of a connection that it never heard of.
    connections: HashMap<ConnectionId, (PeerId, ConnectedPoint)>,
}

impl AutoNat {
    pub(crate) fn new(entropy: Arc<dyn Entropy>, clock: Arc<dyn Clock>) -> Self {
        let (inner, since) = (client(&*entropy), clock.monotonic());
        let (told, connections) = (HashSet::new(), HashMap::new());
        Self { inner, rule: FewInAll { entropy, clock, told, since, connections } }
    }

    /// How many there are to probe.
    #[cfg(test)]
    pub(crate) fn candidates(&self) -> usize {
        self.rule.told.len()
    }
}

impl FewInAll {
    fn takes(&mut self, inner: &mut Client, candidate: &Multiaddr) -> bool {
        if self.told.contains(candidate) {
            return true;
        }
        if self.told.len() >= MAX_CANDIDATES {
            let now = self.clock.monotonic();
            if now < self.since + CANDIDATES_FOR {
                return false;
            }
            self.begin_afresh(inner, now);
        }
        self.told.insert(candidate.clone())
    }

    /// The candidates and what was found out of them are forgotten; addresses that were confirmed stay the swarm's.
    /// Which peers can probe is learnt again from those that connect from now on.
    fn begin_afresh(&mut self, inner: &mut Client, now: Duration) {
        *inner = client(&*self.entropy);
        self.told.clear();
        self.since = now;
        for (id, (peer, endpoint)) in &self.connections {
            inner.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id: *peer,
                connection_id: *id,
                endpoint,
                failed_addresses: &[],
                other_established: 0,
            }));
        }
    }
}

fn client(entropy: &dyn Entropy) -> Client {
    let mut seed = [0; 32];
    entropy.fill(&mut seed);
    Client::new(StdRng::from_seed(seed), autonat::v2::client::Config::default())
}

impl Rule<Client> for FewInAll {
    fn hears(&mut self, inner: &mut Client, event: &FromSwarm<'_>) -> bool {
        match event {
            FromSwarm::NewExternalAddrCandidate(NewExternalAddrCandidate { addr }) => {
                return self.takes(inner, addr);
            }
            FromSwarm::ConnectionEstablished(event) => {
                self.connections.insert(event.connection_id, (event.peer_id, event.endpoint.clone()));
            }
            FromSwarm::ConnectionClosed(event) => drop(self.connections.remove(&event.connection_id)),
            _ => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use floe_core::{ManualClock, Timestamp};

    use libp2p::swarm::ConnectionClosed;

    use super::*;
    use crate::testing::Dice;

    fn address(n: usize) -> Multiaddr {
        format!("/ip4/8.8.8.8/tcp/{}", 4_001 + n).parse().unwrap()
    }

    #[test]
    fn t08_candidates_at_the_boundary_and_afresh() {
        let clock = ManualClock::new(Timestamp::from_millis(0));
        let mut autonat = AutoNat::new(Arc::new(Dice::new(1)), Arc::new(clock.clone()));
        let id = ConnectionId::new_unchecked(7);
        let endpoint = ConnectedPoint::Listener { local_addr: address(0), send_back_addr: address(0) };
        let peer_id = PeerId::random();
        autonat.on_swarm_event(FromSwarm::ConnectionEstablished(ConnectionEstablished {
            peer_id,
            connection_id: id,
            endpoint: &endpoint,
            failed_addresses: &[],
            other_established: 0,
        }));
        let takes = |autonat: &mut AutoNat, n| autonat.rule.takes(&mut autonat.inner, &address(n));
        for n in 0..MAX_CANDIDATES + 1 {
            assert_eq!(takes(&mut autonat, n), n < MAX_CANDIDATES, "{n}");
        }
        assert!(takes(&mut autonat, 0), "said again, it counts for what it is");
        clock.advance(CANDIDATES_FOR - Duration::from_secs(1));
        assert!(!takes(&mut autonat, MAX_CANDIDATES));
        clock.advance(Duration::from_secs(1));
        assert!(takes(&mut autonat, MAX_CANDIDATES), "a planted table ends");
        assert_eq!(autonat.candidates(), 1);
        // The fresh client knows the connections, whose end it would not survive otherwise.
        autonat.on_swarm_event(FromSwarm::ConnectionClosed(ConnectionClosed {
            peer_id,
            connection_id: id,
            endpoint: &endpoint,
            cause: None,
            remaining_established: 0,
        }));
        assert!(autonat.rule.connections.is_empty());
    }

    #[test]
    fn t08_only_public_sockets_are_candidates() {
        let is = |text: &str, private| is_candidate(&text.parse().unwrap(), private);
        for text in ["/ip4/8.8.8.8/tcp/4001", "/ip6/2606::1/udp/4001/quic-v1", "/ip4/8.8.8.8/tcp/4002/ws"] {
            assert!(is(text, false), "{text}");
        }
        for text in ["/ip4/10.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001", "/ip6/fd00::1/tcp/1"] {
            assert!(!is(text, false), "{text}");
            assert!(is(text, true), "{text}");
        }
        for text in ["/dns4/example.net/tcp/4001", "/ip4/8.8.8.8", "/memory/7", "/unix/tmp%2fsocket"] {
            assert!(!is(text, true), "{text}");
        }
        let long = |bytes| {
            let address =
                |path| format!("/ip4/8.8.8.8/tcp/80/x-parity-ws/{}", "a".repeat(path)).parse().unwrap();
            (1..bytes).map(address).find(|address: &Multiaddr| address.len() == bytes).unwrap()
        };
        for bytes in [CANDIDATE_BYTES - 1, CANDIDATE_BYTES, CANDIDATE_BYTES + 1] {
            assert_eq!(is_candidate(&long(bytes), false), bytes <= CANDIDATE_BYTES, "{bytes}");
        }
    }
}
