//! The swarm's side.

use std::task::{Context, Poll};

use floe_core::Cid;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::SessionId;

/// What the node around the swarm should act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Nobody connected has what the session wants, or nothing came for a while: find providers, dial them,
    /// and tell [`crate::Handle::add_providers`]. Repeated with back-off while it stays so.
    NeedProviders {
        /// The session that waits.
        session: SessionId,
        /// Its root.
        root: Cid,
        /// The block that nobody has; the root itself at first.
        cid: Cid,
    },
    /// A peer says that it has a parked root.
    Offered {
        /// The root, as it was parked.
        root: Cid,
        /// Who has it.
        peer: PeerId,
    },
    /// A peer broke the protocol often enough to be dropped. Its wants are already asked elsewhere; nothing
    /// more is taken from it on this connection. Close the connection, and do not dial it again soon.
    Misbehaved {
        /// Who.
        peer: PeerId,
        /// What it did.
        what: Misbehaviour,
    },
}

/// Why a peer is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Misbehaviour {
    /// Sent blocks that nobody asked for, or bytes that do not match what was asked for (on the wire of
    /// bitswap 1.1 and later these are the same: the receiver computes the hash).
    #[error("sent blocks that were not asked for")]
    UnwantedBlocks,
    /// Sent frames above the limit or messages that do not parse.
    #[error("sent messages that do not parse")]
    Malformed,
    /// Does not read what it asked for.
    #[error("does not read what it asked for")]
    SlowReader,
}

/// Bitswap in a swarm.
pub struct Behaviour {}

impl Behaviour {
    pub(crate) fn new() -> Self {
        Self {}
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}
