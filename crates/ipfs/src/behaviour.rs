//! The parts of the swarm, put together.
//!
//! Only what is used is compiled in (threat T6): no gossipsub, rendezvous, mdns or upnp, no relay or autonat server.

use std::num::NonZeroUsize;
use std::sync::Arc;

use floe_core::Clock;
use floe_core::ports::Entropy;
use libp2p::allow_block_list::{self, BlockedPeers};
use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::identity::Keypair;
use libp2p::kad::{self, StoreInserts};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, dcutr, identify, memory_connection_limits, ping, relay};

use crate::kad_store::Store;
use crate::keep;
use crate::limits::{
    FOREIGN_RECORD_TTL, KAD_DISJOINT_PATHS, KAD_PACKET, MAX_INBOUND, MAX_OUTBOUND, MAX_PENDING, MAX_PER_PEER,
};
use crate::observed::{AutoNat, Identify};
use crate::streams;

/// See the module.
#[derive(NetworkBehaviour)]
pub(crate) struct Behaviour {
    // The ones that refuse connections come first: they are asked in this order.
    pub(crate) blocked: allow_block_list::Behaviour<BlockedPeers>,
    pub(crate) limits: connection_limits::Behaviour,
    pub(crate) memory: memory_connection_limits::Behaviour,
    pub(crate) keep: keep::Behaviour,
    pub(crate) bitswap: floe_bitswap::Behaviour,
    pub(crate) streams: streams::Behaviour,
    pub(crate) kad: Toggle<kad::Behaviour<Store>>,
    pub(crate) identify: Identify,
    pub(crate) ping: ping::Behaviour,
    pub(crate) relay: relay::client::Behaviour,
    pub(crate) dcutr: dcutr::Behaviour,
    pub(crate) autonat: Toggle<AutoNat>,
}

/// What the behaviour is made of, beside defaults.
pub(crate) struct Parts<'a> {
    pub(crate) key: &'a Keypair,
    pub(crate) bitswap: floe_bitswap::Behaviour,
    pub(crate) relay: relay::client::Behaviour,
    /// `None` when offline.
    pub(crate) kad: Option<Store>,
    pub(crate) refuse_bytes: usize,
    pub(crate) connections: Connections,
    /// A closed network: peers hear of every address that is listened on.
    pub(crate) private_allowed: bool,
    pub(crate) entropy: &'a Arc<dyn Entropy>,
    pub(crate) clock: &'a Arc<dyn Clock>,
}

/// How many connections there may be; tests lower the values.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connections {
    pub(crate) inbound: u32,
    pub(crate) outbound: u32,
    pub(crate) per_peer: u32,
    /// Being set up, in each direction.
    pub(crate) pending: u32,
}

impl Default for Connections {
    fn default() -> Self {
        Self { inbound: MAX_INBOUND, outbound: MAX_OUTBOUND, per_peer: MAX_PER_PEER, pending: MAX_PENDING }
    }
}

impl Connections {
    fn limits(self) -> ConnectionLimits {
        ConnectionLimits::default()
            .with_max_established_incoming(Some(self.inbound))
            .with_max_established_outgoing(Some(self.outbound))
            .with_max_established_per_peer(Some(self.per_peer))
            .with_max_pending_incoming(Some(self.pending))
            .with_max_pending_outgoing(Some(self.pending))
    }
}

impl Behaviour {
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        let peer = parts.key.public().to_peer_id();
        let online = parts.kad.is_some();
        Self {
            blocked: allow_block_list::Behaviour::default(),
            limits: connection_limits::Behaviour::new(parts.connections.limits()),
            memory: memory_connection_limits::Behaviour::with_max_bytes(parts.refuse_bytes),
            keep: keep::Behaviour::default(),
            bitswap: parts.bitswap,
            streams: streams::Behaviour::default(),
            kad: parts.kad.map(|store| kad::Behaviour::with_config(peer, store, kad_config())).into(),
            identify: Identify::new(identify_config(parts.key, parts.private_allowed), parts.private_allowed),
            ping: ping::Behaviour::default(),
            relay: parts.relay,
            dcutr: dcutr::Behaviour::new(peer),
            autonat: online.then(|| AutoNat::new(parts.entropy.clone(), parts.clock.clone())).into(),
        }
    }
}

fn kad_config() -> kad::Config {
    let mut config = kad::Config::new(StreamProtocol::new("/ipfs/kad/1.0.0"));
    let paths = NonZeroUsize::new(KAD_DISJOINT_PATHS).expect("the constant is not zero");
    config
        // With disjoint paths on, the parallelism is their number.
        .disjoint_query_paths(true)
        .set_parallelism(paths)
        .set_max_packet_size(KAD_PACKET)
        .set_provider_record_ttl(Some(FOREIGN_RECORD_TTL))
        // Announcing again is paced by `crate::provide`; values are nobody's business here.
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_record_filtering(StoreInserts::Unfiltered);
    config
}

fn identify_config(key: &Keypair, private_allowed: bool) -> identify::Config {
    identify::Config::new("ipfs/0.1.0".into(), key.public())
        .with_agent_version(crate::AGENT.into())
        .with_push_listen_addr_updates(true)
        // What is listened on are addresses of this machine and of the networks behind it, and identify says the same to
        // every peer, be it a stranger of the DHT (threat T45). Who pins from this machine is told by `delegates`, one
        // request at a time. What is confirmed from outside, and what the operator announces, is told in any case.
        .with_hide_listen_addrs(!private_allowed)
        // Addresses that peers claim are kept by nobody but the DHT's table, where they are bounded.
        .with_cache_size(0)
}
