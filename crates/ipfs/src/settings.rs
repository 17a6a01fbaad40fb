//! What the node is told when it starts: plain [`Settings`], live [`Components`].

use std::path::PathBuf;
use std::sync::Arc;

use floe_core::Clock;
use floe_core::ports::{Entropy, LocalBlocks};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use url::Url;

/// Whether private and loopback addresses may be dialled and announced (`network.private_addresses`).
///
/// Connections that come *in* from private addresses are accepted under every value, and what the operator
/// configured (bootstrap, relays, routers) is dialled under every value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrivateAddresses {
    /// Only for requests that came from this machine, and only where [`Settings::api_is_local`].
    #[default]
    Auto,
    /// Always: a closed network, a test.
    Allow,
    /// Never.
    Deny,
}

/// Where the node's identity comes from.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Identity {
    /// A file with a protobuf-encoded key, as other libp2p programs write it; made (Ed25519, mode 0600) where
    /// it is missing.
    File(PathBuf),
    /// A key in hand.
    Keypair(Keypair),
}

/// The PEM files of the operator's certificate.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// The certificate of this server, then those between it and a root.
    pub chain: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1, without a passphrase.
    pub key: PathBuf,
}

/// Plain settings (`[network]` in config.toml, and two facts about the API).
#[derive(Debug, Clone)]
pub struct Settings {
    /// Who this node is.
    pub identity: Identity,
    /// Holds `provides-1.redb`. Must exist.
    pub data_dir: PathBuf,
    /// Addresses to listen on: TCP, QUIC v1, WebSocket (`/ws`, and with a certificate `/tls/ws`). Port 0 takes a
    /// free one.
    pub swarm: Vec<Multiaddr>,
    /// What `/tls/ws` listeners show.
    pub certificate: Option<CertificateFiles>,
    /// Addresses that others reach this node at, in place of what it finds out by itself.
    pub announce: Vec<Multiaddr>,
    /// Peers that lead into the DHT, each with `/p2p/<peer id>`.
    pub bootstrap: Vec<Multiaddr>,
    /// Delegated routers: base URLs, to which `/routing/v1/providers/{cid}` is appended.
    pub routers: Vec<Url>,
    /// Relays to hold a reservation at, each with `/p2p/<peer id>`.
    pub relays: Vec<Multiaddr>,
    /// Whether private addresses may be dialled and announced.
    pub private_addresses: PrivateAddresses,
    /// Whether the API listens on loopback alone and has no public URL: what [`PrivateAddresses::Auto`] asks.
    pub api_is_local: bool,
    /// No bootstrap, no DHT, nothing announced. Origins, relays and configured routers are still used.
    pub offline: bool,
    /// Memory that this process may use, in bytes; `None` is the machine's. From 40 % of it on new
    /// connections are refused, from 60 % on inbound ones are closed.
    pub memory_budget_bytes: Option<u64>,
    /// Bytes a second that answers to one peer may have; `None`: as fast as it takes them.
    pub egress_per_peer: Option<u64>,
    /// The same over all peers.
    pub egress: Option<u64>,
}

impl Settings {
    /// Listens on a free loopback TCP port, offline, with everything else off: what tests start from.
    pub fn local(data_dir: PathBuf, identity: Identity) -> Self {
        Self {
            identity,
            data_dir,
            swarm: vec!["/ip4/127.0.0.1/tcp/0".parse().expect("a literal multiaddr parses")],
            certificate: None,
            announce: Vec::new(),
            bootstrap: Vec::new(),
            routers: Vec::new(),
            relays: Vec::new(),
            private_addresses: PrivateAddresses::Auto,
            api_is_local: true,
            offline: true,
            memory_budget_bytes: None,
            egress_per_peer: None,
            egress: None,
        }
    }
}

/// Live objects that the node uses.
#[derive(Clone)]
pub struct Components {
    /// What the bitswap server serves.
    pub blocks: Arc<dyn LocalBlocks>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness: seeds and the identity, where one has to be made.
    pub entropy: Arc<dyn Entropy>,
}
