//! Listening: the configured addresses at the start, reservations at relays all along.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use floe_core::Clock;
use futures::StreamExt as _;
use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId, TransportError};
use tracing::{debug, info, warn};

use super::Task;
use crate::Error;
use crate::behaviour::BehaviourEvent;
use crate::deadline::within;
use crate::limits::{FREE_WITHIN, LISTEN_WITHIN, RELAY_PAUSE};

/// Interfaces behind a wildcard are reported one after another; this is how long the start waits for another.
const MORE_INTERFACES: Duration = Duration::from_millis(50);

/// The relays at which reservations are held.
#[derive(Default)]
pub(crate) struct Relays {
    relays: Vec<Relay>,
}

struct Relay {
    address: Multiaddr,
    peer: PeerId,
    listener: Option<ListenerId>,
    retry_at: Duration,
}

impl Relays {
    pub(crate) fn new(relays: impl IntoIterator<Item = (PeerId, Multiaddr)>) -> Self {
        let relay = |(peer, address)| Relay { address, peer, listener: None, retry_at: Duration::ZERO };
        Self { relays: relays.into_iter().map(relay).collect() }
    }

    pub(crate) fn has(&self, peer: &PeerId) -> bool {
        self.relays.iter().any(|relay| relay.peer == *peer)
    }

    fn lost(&mut self, listener: ListenerId, now: Duration) -> bool {
        let lost = self.relays.iter_mut().find(|relay| relay.listener == Some(listener));
        lost.map(|relay| (relay.listener, relay.retry_at) = (None, now + RELAY_PAUSE)).is_some()
    }
}

impl Task {
    /// Listens on `addresses`; returns once each is up.
    pub(crate) async fn listen(&mut self, addresses: &[Multiaddr]) -> Result<(), Error> {
        let mut waiting = HashMap::new();
        for address in addresses {
            probe(address)?;
            let id = self.swarm.listen_on(address.clone()).map_err(|error| refused(address, error))?;
            waiting.insert(id, address.clone());
        }
        let mut deadline = self.clock.sleep(LISTEN_WITHIN);
        while let Some(first) = waiting.values().next().cloned() {
            let event = tokio::select! {
                event = self.swarm.select_next_some() => event,
                () = &mut deadline => {
                    return Err(Error::Listen { address: first, reason: "it did not come up in time".into() });
                }
            };
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => drop(waiting.remove(listener_id)),
                SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                    if let Some(address) = waiting.remove(listener_id) {
                        return Err(Error::Listen { address, reason: error.to_string() });
                    }
                }
                _ => {}
            }
            self.on_event(event);
        }
        while addresses.iter().any(is_wildcard)
            && let Some(event) = within(&*self.clock, MORE_INTERFACES, self.swarm.select_next_some()).await
        {
            self.on_event(event);
        }
        Ok(())
    }

    pub(super) fn on_listener(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                let lost = self.relays.lost(listener_id, self.clock.monotonic());
                match reason {
                    Err(error) if lost => debug!(%error, "a reservation at a relay ended"),
                    Err(error) => warn!(%error, "a listener closed"),
                    Ok(()) => {}
                }
            }
            SwarmEvent::ListenerError { error, .. } => debug!(%error, "an inbound connection failed"),
            SwarmEvent::NewListenAddr { address, .. } => info!(%address, "listening"),
            _ => {}
        }
        let listening: HashSet<Multiaddr> = self.swarm.listeners().cloned().collect();
        let mut listening: Vec<Multiaddr> = listening.into_iter().collect();
        listening.sort_by_cached_key(ToString::to_string);
        *self.view.listen.write() = listening;
    }

    /// Asks for the reservations that are missing.
    pub(super) fn renew_reservations(&mut self, now: Duration) {
        for at in 0..self.relays.relays.len() {
            let relay = &self.relays.relays[at];
            if relay.listener.is_some() || relay.retry_at > now {
                continue;
            }
            let (peer, circuit) = (relay.peer, relay.address.clone().with(Protocol::P2pCircuit));
            self.swarm.behaviour_mut().keep.keep(peer, true);
            let listener = self.swarm.listen_on(circuit);
            let relay = &mut self.relays.relays[at];
            relay.retry_at = now + RELAY_PAUSE;
            match listener {
                Ok(id) => relay.listener = Some(id),
                Err(error) => debug!(%peer, %error, "cannot ask the relay for a reservation"),
            }
        }
    }

    pub(super) fn close_listeners(&mut self) {
        // The ids of the configured listeners are not kept: dropping the swarm closes them. Reservations are given
        // back, so that the relay has room at once.
        for relay in &self.relays.relays {
            if let Some(id) = relay.listener {
                self.swarm.remove_listener(id);
            }
        }
    }
}

/// Whether somebody has the port. The transports set SO_REUSEPORT for hole punching, so a second node of the same
/// user would bind without an error and take half of the first one's connections.
fn probe(address: &Multiaddr) -> Result<(), Error> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::V4(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::V6(ip),
        _ => return Ok(()),
    };
    let bound = match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => TcpListener::bind(SocketAddr::new(ip, port)).map(drop),
        Some(Protocol::Udp(port)) if port != 0 => UdpSocket::bind(SocketAddr::new(ip, port)).map(drop),
        _ => return Ok(()),
    };
    bound.map_err(|error| listen_error(address, &error))
}

/// Waits until nobody listens on `addresses` any more, for a bounded time: whoever starts a node on them next finds
/// them free.
pub(super) async fn until_free(clock: &dyn Clock, addresses: &[Multiaddr]) {
    let free = async {
        while addresses.iter().any(|address| probe(address).is_err()) {
            clock.sleep(Duration::from_millis(20)).await;
        }
    };
    if within(clock, FREE_WITHIN, free).await.is_none() {
        debug!("a port is still in use after the node has stopped");
    }
}

fn refused(address: &Multiaddr, error: TransportError<io::Error>) -> Error {
    match error {
        TransportError::MultiaddrNotSupported(_) => {
            let tls = address.iter().any(|part| matches!(part, Protocol::Tls | Protocol::Wss(_)));
            let reason = if tls {
                "needs network.tls_certificate and network.tls_key, and the form /ip4/IP/tcp/PORT/tls/ws"
            } else {
                "is none of /tcp/PORT, /udp/PORT/quic-v1, /tcp/PORT/ws and /tcp/PORT/tls/ws on an IP address"
            };
            Error::Address { key: "swarm", address: address.clone(), reason }
        }
        TransportError::Other(error) => listen_error(address, &error),
    }
}

fn listen_error(address: &Multiaddr, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::AddrInUse {
        return Error::AddressInUse { address: address.clone() };
    }
    Error::Listen { address: address.clone(), reason: error.to_string() }
}

fn is_wildcard(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified(),
        _ => false,
    }
}
