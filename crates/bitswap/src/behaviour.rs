//! The swarm's side: it makes a handler for each connection, runs the timer, and passes events on.
//!
//! It carries no data: messages go between the connections' own tasks and the cores (`shared.rs`), so that a
//! busy swarm task does not slow blocks down.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use floe_core::Cid;
use floe_core::clock::BoxFuture;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{Multiaddr, PeerId};

use crate::handle::SessionId;
use crate::handler::{GaveUp, Handler};
use crate::shared::{Link, Shared};

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
    /// Sent blocks that nobody asked for, or one of them again and again, or bytes that do not match what was asked
    /// for (on the wire of bitswap 1.1 and later that is the same: the receiver computes the hash).
    #[error("sent blocks that were not asked for")]
    UnwantedBlocks,
    /// Sent frames above the limit or messages that do not parse.
    #[error("sent messages that do not parse")]
    Malformed,
    /// Does not read what it asked for.
    #[error("does not read what it asked for")]
    SlowReader,
}

/// Bitswap in a swarm. Dropping it ends every session.
pub struct Behaviour {
    shared: Arc<Shared>,
    /// Connections that the other behaviours may still refuse.
    pending: HashMap<ConnectionId, PeerId>,
    timer: Option<BoxFuture<'static, ()>>,
}

impl Behaviour {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, pending: HashMap::new(), timer: None }
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId) -> Handler {
        let link = Arc::new(Link::new(peer, connection));
        self.pending.insert(connection, peer);
        // Before the swarm says so: the connection's task runs by then, and what it reads of a peer that nobody knows is lost.
        self.shared.connected(link.clone());
        Handler::new(self.shared.clone(), link)
    }

    /// Another behaviour refused the connection, so that its handler never runs.
    fn denied(&mut self, connection: ConnectionId) {
        if let Some(peer) = self.pending.remove(&connection) {
            self.shared.disconnected(&peer, connection);
        }
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        loop {
            if self.timer.is_none() {
                self.timer = self.shared.next_tick().map(|wait| self.shared.clock().sleep(wait));
            }
            self.shared.set_ticking(self.timer.is_some());
            let Some(timer) = &mut self.timer else {
                // What began just before it was said that no timer runs woke nobody.
                if self.shared.next_tick().is_some() {
                    continue;
                }
                return;
            };
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.timer = None;
            self.shared.tick();
        }
    }
}

impl Drop for Behaviour {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.pending.remove(&established.connection_id);
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.shared.disconnected(&closed.peer_id, closed.connection_id)
            }
            FromSwarm::DialFailure(failure) => self.denied(failure.connection_id),
            FromSwarm::ListenFailure(failure) => self.denied(failure.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        GaveUp: THandlerOutEvent<Self>,
    ) {
        self.shared.gave_up(&peer, connection);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.shared.register_behaviour(cx.waker());
        self.shared.start_pending_reads();
        self.poll_timer(cx);
        match self.shared.next_event() {
            Some(event) => Poll::Ready(ToSwarm::GenerateEvent(event)),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use floe_core::{ManualClock, Timestamp};
    use libp2p::swarm::ListenError;

    use super::*;
    use crate::client::Client;
    use crate::config::Config;
    use crate::server::Server;
    use crate::testing::Store;

    /// The story: over QUIC one fetch of twenty-five stood still for 20 s. The swarm starts a connection's task before it
    /// tells the behaviours of it; where that task was quicker, the first wantlist came from a peer that the server did not
    /// know, and was dropped.
    #[tokio::test]
    async fn a_peer_is_known_before_its_connection_runs() {
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
        let server = Server::new(&Config::default(), [1; 32]);
        let shared = Arc::new(Shared::new(Client::default(), server, Arc::new(Store::default()), clock));
        let mut behaviour = Behaviour::new(shared.clone());
        let address = Multiaddr::empty();
        let peers = || shared.peek_client(|client| client.counts().0);
        let (peer, first, second) =
            (PeerId::random(), ConnectionId::new_unchecked(1), ConnectionId::new_unchecked(2));
        let _handler =
            behaviour.handle_established_inbound_connection(first, peer, &address, &address).unwrap();
        assert_eq!(peers(), 1, "its task may run from here on");
        let other = PeerId::random();
        let _handler =
            behaviour.handle_established_inbound_connection(second, other, &address, &address).unwrap();
        assert_eq!(peers(), 2);
        // Another behaviour refuses the second.
        let error = ListenError::Aborted;
        behaviour.on_swarm_event(FromSwarm::ListenFailure(libp2p::swarm::behaviour::ListenFailure {
            local_addr: &address,
            send_back_addr: &address,
            error: &error,
            connection_id: second,
            peer_id: Some(other),
        }));
        assert_eq!(peers(), 1);
    }
}
