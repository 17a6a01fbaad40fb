//! The provider over libp2p: a node of its own that speaks mk12, and identify and ping beside it.
//!
//! ```text
//!  Boost   /ip4/127.0.0.1/tcp/P       TCP, Noise, yamux
//!  Curio   /ip4/127.0.0.1/tcp/P/ws    WebSocket alone, at the root of its HTTP server: P is the port of both
//! ```
//!
//! A stream is one request and its answer. What cannot be read, and what a script leaves unanswered, ends the stream
//! without a word. Who is offline hangs up.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt;
use libp2p::core::Transport as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::identity::{Keypair, ed25519};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, Message, ProtocolSupport};
use libp2p::swarm::{self, NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, connection_limits, identify, noise, ping, tcp, websocket, yamux};

use super::codec::{ASK, Mk12, PROPOSE, PROPOSE_OLD, Request, STATUS, TRANSPORTS};
use super::{Manner, Provider};
use crate::StartError;
use crate::limits::{
    CONNECTIONS, CONNECTIONS_OF_PEER, P2P_HANDSHAKE, P2P_IDLE, P2P_READ, P2P_STREAMS, P2P_WRITE,
};
use crate::wire::blake2b_256;
use crate::wire::cbor::Cbor;
use crate::wire::deal::{DealParams, StatusRequest, ask_request, deal_response};

/// Where a provider can be reached.
#[derive(Clone, Debug)]
pub(crate) struct Contact {
    pub(crate) peer: PeerId,
    /// What the chain would say of it.
    pub(crate) multiaddr: Multiaddr,
    /// Where its market and its pieces are over HTTP.
    pub(crate) http: SocketAddr,
    /// Where its HTTP server finds the node behind the WebSocket.
    pub(crate) websocket: Option<SocketAddr>,
}

impl Contact {
    /// The address with the peer's id behind it.
    fn whole(&self) -> Multiaddr {
        self.multiaddr.clone().with(Protocol::P2p(self.peer))
    }

    /// What the provider answers to how pieces can be had: over HTTP; of Boost, over libp2p too.
    pub(super) fn transports(&self, manner: Manner) -> Vec<u8> {
        let http = tcp_multiaddr(self.http).with(Protocol::Http);
        let protocol = |name: &str, address: Multiaddr| {
            Cbor::map([
                ("Name", Cbor::text(name)),
                ("Addresses", Cbor::Array(vec![Cbor::Bytes(address.to_vec())])),
            ])
        };
        let mut protocols = vec![protocol("http", http)];
        if manner == Manner::Boost {
            protocols.insert(0, protocol("libp2p", self.whole()));
        }
        Cbor::map([("Protocols", Cbor::Array(protocols))]).encode()
    }
}

/// `/ip4/a/tcp/p`.
fn tcp_multiaddr(addr: SocketAddr) -> Multiaddr {
    Multiaddr::from(addr.ip()).with(Protocol::Tcp(addr.port()))
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Behaviour {
    limits: connection_limits::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    market: request_response::Behaviour<Mk12>,
}

/// A node that listens, and nobody answers yet.
pub(crate) struct Listening {
    swarm: Swarm<Behaviour>,
    contact: Contact,
}

/// The identity of the provider, which follows from the seed.
pub(crate) fn identity(seed: u64, index: usize) -> Keypair {
    let mut secret = blake2b_256(format!("peer {index} of {seed}").as_bytes());
    let secret = ed25519::SecretKey::try_from_bytes(&mut secret).expect("any 32 bytes are a key");
    ed25519::Keypair::from(secret).into()
}

/// Listens in a manner. `http` is where the provider's HTTP server listens already.
pub(crate) async fn listen(key: Keypair, manner: Manner, http: SocketAddr) -> Result<Listening, StartError> {
    let failed = |why: &dyn std::fmt::Display| StartError::Swarm(why.to_string());
    let peer = key.public().to_peer_id();
    let transport = transport(&key, manner).map_err(|why| failed(&why))?;
    let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(P2P_IDLE);
    let mut swarm = Swarm::new(transport, behaviour(&key), peer, config);
    let any = tcp_multiaddr(crate::loopback());
    let any = if manner == Manner::Curio { any.with(websocket_root()) } else { any };
    swarm.listen_on(any).map_err(|why| failed(&why))?;
    let bound = loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => break address,
            SwarmEvent::ListenerError { error, .. } => return Err(failed(&error)),
            SwarmEvent::ListenerClosed { reason, .. } => {
                return Err(StartError::Swarm(format!("its listener closed: {reason:?}")));
            }
            _ => {}
        }
    };
    let (multiaddr, websocket) = match manner {
        Manner::Boost => (bound, None),
        Manner::Curio => (tcp_multiaddr(http).with(websocket_root()), port(&bound)),
    };
    Ok(Listening { swarm, contact: Contact { peer, multiaddr, http, websocket } })
}

/// `/ws`.
fn websocket_root() -> Protocol<'static> {
    Protocol::Ws("/".into())
}

/// The socket of an address on this machine.
fn port(addr: &Multiaddr) -> Option<SocketAddr> {
    addr.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(SocketAddr::new(crate::loopback().ip(), port)),
        _ => None,
    })
}

/// Noise and yamux over TCP or WebSocket.
pub(crate) fn transport(
    key: &Keypair,
    manner: Manner,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, noise::Error> {
    let security = noise::Config::new(key)?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    Ok(match manner {
        Manner::Boost => tcp
            .upgrade(Version::V1Lazy)
            .authenticate(security)
            .multiplex(yamux::Config::default())
            .timeout(P2P_HANDSHAKE)
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed(),
        Manner::Curio => websocket::Config::new(tcp)
            .upgrade(Version::V1Lazy)
            .authenticate(security)
            .multiplex(yamux::Config::default())
            .timeout(P2P_HANDSHAKE)
            .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
            .boxed(),
    })
}

fn behaviour(key: &Keypair) -> Behaviour {
    let most = u32::try_from(CONNECTIONS).unwrap_or(u32::MAX);
    let limits = connection_limits::ConnectionLimits::default()
        .with_max_established(Some(most))
        .with_max_pending_incoming(Some(most))
        .with_max_established_per_peer(Some(CONNECTIONS_OF_PEER));
    let config = request_response::Config::default()
        .with_request_timeout(P2P_READ + P2P_WRITE)
        .with_max_concurrent_streams(P2P_STREAMS);
    let protocols = [PROPOSE, PROPOSE_OLD, STATUS, ASK, TRANSPORTS];
    Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        identify: identify::Behaviour::new(identify::Config::new("/ipfs/id/1.0.0".into(), key.public())),
        ping: ping::Behaviour::default(),
        market: request_response::Behaviour::with_codec(
            Mk12::default(),
            protocols.map(|protocol| (protocol, ProtocolSupport::Inbound)),
            config,
        ),
    }
}

impl Listening {
    pub(crate) fn contact(&self) -> &Contact {
        &self.contact
    }

    /// Answers for the provider. Dropping the future ends the node and all its connections.
    pub(crate) async fn run(mut self, provider: Arc<Provider>) {
        loop {
            match self.swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if provider.faults().offline => {
                    self.hang_up(peer_id);
                }
                SwarmEvent::Behaviour(BehaviourEvent::Market(request_response::Event::Message {
                    peer,
                    message: Message::Request { request, channel, .. },
                    ..
                })) => {
                    if provider.faults().offline {
                        self.hang_up(peer);
                    } else if let Some(bytes) = answer(&provider, &request) {
                        // The asker may be gone.
                        let _ = self.swarm.behaviour_mut().market.send_response(channel, bytes);
                    }
                }
                _ => {}
            }
        }
    }

    fn hang_up(&mut self, peer: PeerId) {
        // It may have done so first.
        let _ = self.swarm.disconnect_peer_id(peer);
    }
}

/// The answer; None where the stream ends without one.
fn answer(provider: &Provider, request: &Request) -> Option<Vec<u8>> {
    let bytes = request.bytes.as_slice();
    match &request.protocol {
        protocol if [PROPOSE, PROPOSE_OLD].contains(protocol) => {
            let params = DealParams::decode(bytes);
            let params = params.inspect_err(|why| tracing::debug!(%why, "a proposal could not be read"));
            let refusal = provider.store(params.ok()?).err();
            (!provider.faults().lose_reply).then(|| deal_response(refusal.as_deref()))
        }
        protocol if *protocol == STATUS => {
            provider.status(&StatusRequest::decode(bytes).ok()?).map(|status| status.encode())
        }
        protocol if *protocol == ASK => {
            (ask_request(bytes).ok()? == provider.terms.miner).then(|| provider.ask())?
        }
        protocol if *protocol == TRANSPORTS => Some(provider.contact.transports(provider.terms.manner)),
        _ => None,
    }
}
