//! What the swarm's task lets others see without asking it: addresses, counts, the part played in the DHT.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use floe_core::ports::{EventSink, NetworkEvent, NetworkStatus};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};
use parking_lot::{Mutex, RwLock};

use crate::dial::ip;
use crate::dial::target::{Host, Target};
use crate::kad_store::OwnAddresses;
use crate::limits::MAX_DELEGATES;
use crate::provide::Provided;

/// See the module. Written by the swarm's task alone, but for the sink.
pub(crate) struct View {
    pub(crate) peer: PeerId,
    pub(crate) announce: Vec<Multiaddr>,
    pub(crate) listen: RwLock<Vec<Multiaddr>>,
    pub(crate) external: RwLock<Vec<Multiaddr>>,
    /// What goes into our provider records: external addresses, else none.
    pub(crate) own_addresses: OwnAddresses,
    pub(crate) peers: AtomicUsize,
    pub(crate) kad: Mutex<&'static str>,
    pub(crate) provided: Arc<Provided>,
    pub(crate) backlog: Arc<AtomicU64>,
    pub(crate) sink: Mutex<Option<Arc<EventSink>>>,
}

impl View {
    pub(crate) fn new(peer: PeerId, announce: Vec<Multiaddr>, provided: Arc<Provided>) -> Self {
        Self {
            peer,
            announce,
            listen: RwLock::default(),
            external: RwLock::default(),
            own_addresses: OwnAddresses::default(),
            peers: AtomicUsize::new(0),
            kad: Mutex::new("off"),
            provided,
            backlog: Arc::default(),
            sink: Mutex::default(),
        }
    }

    /// Passes an event to whoever subscribed.
    pub(crate) fn emit(&self, event: NetworkEvent) {
        let sink = self.sink.lock().clone();
        if let Some(sink) = sink {
            sink(event);
        }
    }

    pub(crate) fn status(&self) -> NetworkStatus {
        let with_peer =
            |addresses: &[Multiaddr]| addresses.iter().map(|a| self.with_peer(a).to_string()).collect();
        NetworkStatus {
            peers: self.peers.load(Ordering::Relaxed),
            listen: with_peer(&self.listen.read()),
            external: with_peer(&self.external.read()),
            kad: (*self.kad.lock()).to_owned(),
            provided: self.provided.len(),
            provide_backlog: self.backlog.load(Ordering::Relaxed),
        }
    }

    /// Where clients can reach this node, in the order of the pinning API's `delegates`: what the operator announces,
    /// else confirmed addresses, else listen addresses where private ones may be named, else the peer id alone.
    pub(crate) fn delegates(&self, private_allowed: bool) -> Vec<String> {
        let external = self.external.read();
        let listen = self.listen.read();
        let public = |address: &&Multiaddr| private_allowed || is_public(address);
        let confirmed: Vec<_> = external.iter().filter(public).collect();
        let chosen: Vec<&Multiaddr> = if !self.announce.is_empty() {
            self.announce.iter().collect()
        } else if !confirmed.is_empty() {
            confirmed
        } else if private_allowed {
            listen.iter().collect()
        } else {
            Vec::new()
        };
        let mut seen = HashSet::new();
        let texts = chosen.into_iter().map(|address| self.with_peer(address).to_string());
        let mut delegates: Vec<String> =
            texts.filter(|text| seen.insert(text.clone())).take(MAX_DELEGATES).collect();
        if delegates.is_empty() {
            delegates.push(format!("/p2p/{}", self.peer));
        }
        delegates
    }

    fn with_peer(&self, address: &Multiaddr) -> Multiaddr {
        match address.iter().last() {
            Some(Protocol::P2p(peer)) if peer == self.peer => address.clone(),
            _ => address.clone().with(Protocol::P2p(self.peer)),
        }
    }
}

/// Whether strangers may be told `address`: its first hop is a public IP address, or a name.
pub(crate) fn is_public(address: &Multiaddr) -> bool {
    match Target::first_hop(address).map(|target| target.host) {
        Some(Host::Ip(ip)) => ip::is_public(ip),
        Some(Host::Name { name, .. }) => name.contains('.') && !is_local_name(&name),
        None => false,
    }
}

/// Names that the DNS does not hold (RFC 6761, RFC 6762, RFC 8375).
fn is_local_name(name: &str) -> bool {
    [".localhost", ".local", ".internal", ".home.arpa", ".lan", ".test", ".invalid"]
        .iter()
        .any(|suffix| name.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(announce: &[&str], external: &[&str], listen: &[&str]) -> View {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let view = View::new(PeerId::random(), parse(announce), Arc::new(Provided::new([0; 16])));
        *view.external.write() = parse(external);
        *view.listen.write() = parse(listen);
        view
    }

    fn named(view: &View, addresses: &[&str]) -> Vec<String> {
        addresses.iter().map(|address| format!("{address}/p2p/{}", view.peer)).collect()
    }

    const LOOPBACK: &str = "/ip4/127.0.0.1/tcp/4701";
    const PRIVATE: &str = "/ip4/192.168.1.7/udp/4701/quic-v1";
    const PUBLIC: &str = "/ip4/8.8.8.8/tcp/4701";
    const NAMED: &str = "/dns4/node.example.net/tcp/443/wss";

    #[test]
    fn m10_s06_t45_delegates_in_order() {
        let all = view(&[NAMED], &[PUBLIC, PRIVATE], &[LOOPBACK]);
        assert_eq!(all.delegates(false), named(&all, &[NAMED]));
        let confirmed = view(&[], &[PUBLIC, PRIVATE], &[LOOPBACK]);
        assert_eq!(confirmed.delegates(false), named(&confirmed, &[PUBLIC]));
        assert_eq!(confirmed.delegates(true), named(&confirmed, &[PUBLIC, PRIVATE]));
        let listening = view(&[], &[], &[LOOPBACK, PRIVATE]);
        assert_eq!(listening.delegates(true), named(&listening, &[LOOPBACK, PRIVATE]));
        assert_eq!(listening.delegates(false), [format!("/p2p/{}", listening.peer)]);
        let hidden = view(&[], &[PRIVATE], &[PUBLIC]);
        assert_eq!(
            hidden.delegates(false),
            [format!("/p2p/{}", hidden.peer)],
            "unconfirmed is not announced"
        );
    }

    #[test]
    fn m10_kubo_t45_delegates_are_unique_bounded_and_end_in_the_peer_id() {
        for count in [0, 1, MAX_DELEGATES - 1, MAX_DELEGATES, MAX_DELEGATES + 1] {
            let listen: Vec<String> =
                (0..count).map(|n| format!("/ip4/127.0.0.1/tcp/{}", 4001 + n)).collect();
            let twice: Vec<&str> = listen.iter().chain(&listen).map(String::as_str).collect();
            let view = view(&[], &[], &twice);
            let delegates = view.delegates(true);
            assert_eq!(delegates.len(), count.clamp(1, MAX_DELEGATES));
            assert!(delegates.iter().all(|d| d.ends_with(&format!("/p2p/{}", view.peer))));
        }
    }

    #[test]
    fn s06_t45_no_private_address_for_strangers() {
        let private = [
            LOOPBACK,
            PRIVATE,
            "/ip4/10.1.2.3/tcp/1",
            "/ip6/fe80::1/tcp/1",
            "/ip6/fd00::1/tcp/1",
            "/ip6/::1/tcp/1",
            "/dns4/localhost/tcp/1",
            "/dns4/box.local/tcp/1",
            "/dns4/db.internal/tcp/1",
            "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5/p2p-circuit",
        ];
        let view = view(&[], &private, &private);
        assert_eq!(view.delegates(false), [format!("/p2p/{}", view.peer)]);
    }
}
