//! Streams of other protocols to a peer, for whoever speaks one: storage providers are talked to this way.
//!
//! ```text
//!   Node::open_stream ──> the task: dials, where there is no connection ──> Behaviour ──> Handler ──> a stream
//! ```
//!
//! Only opening: what is spoken is the caller's, and nobody can open such a stream to us. A stream keeps its connection
//! open; dropping it lets go. Whoever gave up waiting has closed its end of the channel, and is passed over.
//! (`libp2p-stream` keeps a sender for every connection that there ever was.)

use std::collections::VecDeque;
use std::convert::Infallible;
use std::task::{Context, Poll, Waker};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, Stream, StreamProtocol, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

/// Why there is no stream. In words for people: no address in it (threat T45).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// No address of the peer is known.
    #[error("{0}")]
    Unresolvable(String),
    /// The peer cannot be connected to.
    #[error("{0}")]
    Dial(String),
    /// The peer does not speak the protocol.
    #[error("{0} does not speak {1}")]
    Protocol(PeerId, StreamProtocol),
    /// The connection ended while the stream was being opened.
    #[error("the connection to {0} ended")]
    Ended(PeerId),
    /// It took too long.
    #[error("{0} was not reached in time")]
    Timeout(PeerId),
    /// Too many are being opened.
    #[error("too many streams are being opened")]
    Busy,
}

/// Where the stream, or its failure, is told.
pub(crate) type Reply = oneshot::Sender<Result<Stream, StreamError>>;

/// A stream that is wanted.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) peer: PeerId,
    pub(crate) protocol: StreamProtocol,
    pub(crate) reply: Reply,
}

impl Request {
    /// Whether nobody waits any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.reply.is_closed()
    }

    pub(crate) fn fail(self, error: StreamError) {
        // Whoever asked may have gone.
        let _ = self.reply.send(Err(error));
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Behaviour {
    requests: VecDeque<Request>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// Opens a stream on a connection that is there. Where it has gone meanwhile, the request is dropped, which tells.
    pub(crate) fn open(&mut self, request: Request) {
        self.requests.push_back(request);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(request) = self.requests.pop_front() {
            let peer_id = request.peer;
            return Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::Any,
                event: request,
            });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Of one connection.
#[derive(Default)]
pub(crate) struct Handler {
    /// As many as are opened for this peer at a time: the task bounds them.
    requests: VecDeque<Request>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Request;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Request;

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        !self.requests.is_empty()
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Request, Infallible>> {
        self.requests.retain(|request| !request.is_given_up());
        let Some(request) = self.requests.pop_front() else { return Poll::Pending };
        let protocol = SubstreamProtocol::new(ReadyUpgrade::new(request.protocol.clone()), request);
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol })
    }

    fn on_behaviour_event(&mut self, request: Request) {
        self.requests.push_back(request);
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, DeniedUpgrade, Self::OutboundProtocol, (), Request>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                info: request,
            }) => {
                // A stream that nobody takes is dropped, which resets it.
                let _ = request.reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: request, error }) => {
                let peer = request.peer;
                let error = match error {
                    StreamUpgradeError::Timeout => StreamError::Timeout(peer),
                    StreamUpgradeError::NegotiationFailed => {
                        StreamError::Protocol(peer, request.protocol.clone())
                    }
                    StreamUpgradeError::Io(_) => StreamError::Ended(peer),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                request.fail(error);
            }
            _ => {}
        }
    }
}
