//! Keeps connections open that nothing uses just now: to peers that serve pins, and to relays (threat T9: who would
//! eclipse us must first cut these).
//!
//! The swarm closes a connection none of whose handlers says "keep". The handler here says it while its peer is
//! on the list; it speaks no protocol.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::DeniedUpgrade;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
    NetworkBehaviour, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

/// The list of peers to keep, as a part of the swarm's behaviour.
#[derive(Default)]
pub(crate) struct Behaviour {
    /// Connected and kept peers. A flag is shared with the handlers of the peer's connections.
    peers: HashMap<PeerId, Arc<AtomicBool>>,
}

impl Behaviour {
    /// Keeps the connections of `peer` open from now on, or no longer. Peers that are kept are as many as the
    /// searches and relays allow; the rest of the map is bounded by the connections.
    pub(crate) fn keep(&mut self, peer: PeerId, keep: bool) {
        if keep {
            self.peers.entry(peer).or_default().store(true, Ordering::Relaxed);
        } else if let Some(flag) = self.peers.get(&peer) {
            flag.store(false, Ordering::Relaxed);
            if Arc::strong_count(flag) == 1 {
                self.peers.remove(&peer);
            }
        }
    }

    /// Whether `peer` is kept.
    pub(crate) fn is_kept(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    fn handler(&mut self, peer: PeerId) -> Handler {
        Handler(self.peers.entry(peer).or_default().clone())
    }
}

/// See the module.
pub(crate) struct Handler(Arc<AtomicBool>);

impl ConnectionHandler for Handler {
    type FromBehaviour = std::convert::Infallible;
    type ToBehaviour = std::convert::Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), std::convert::Infallible>> {
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: std::convert::Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, _: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade>) {}
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, remaining_established: 0, .. }) = event
            && !self.is_kept(&peer_id)
        {
            self.peers.remove(&peer_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
