//! The IPFS node: swarm, routing, providing, dial filter.
//!
//! [`Node`] is what the engine sees, through two ports of `floe_core`: an `Exchange` that fetches blocks and a
//! `Network` that announces roots and says where this node is reached. Behind it one task owns a libp2p swarm
//! ([`task`]); another announces roots ([`provide`]). Which bytes are wanted and what is served is
//! `floe_bitswap`'s business; what a pin is, nobody here knows.
//!
//! # Reading order
//! [`Settings`], [`Node`], then `task` (what happens), `dial` (what may be dialled, and why), `transport`, `yamux` and
//! `limits` (every number), `provide` (announcing).
//!
//! # Crash and shutdown
//! On disk are the identity and `provides-1.redb`; both are whole after a crash at any moment. [`Node::stop`] ends
//! sessions and connections within seconds. If the swarm's task ends by itself (a panic in a behaviour), or
//! the table fails to sync, [`Node::failed`] says so and the process should end. A full disk is no such end: what it has
//! no room for is refused, and may be tried again.

mod behaviour;
mod buffered;
mod deadline;
mod dial;
mod error;
pub mod identity;
mod kad_store;
mod keep;
pub mod limits;
mod memory;
mod node;
mod observed;
mod provide;
mod routers;
mod search;
mod session;
mod settings;
mod streams;
mod task;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod view;
mod web;
mod wss;
pub mod yamux;

pub use dial::target::{direct_peer, peer_of};
pub use error::Error;
pub use node::Node;
pub use settings::{CertificateFiles, Components, Identity, PrivateAddresses, Settings};
pub use streams::StreamError;
pub use web::WebFilter;

// The types that settings are made of, so that callers need not name the library's version.
pub use libp2p::identity::Keypair;
pub use libp2p::swarm::{Stream, StreamProtocol};
pub use libp2p::{Multiaddr, PeerId};

/// How this node names itself to peers and routers.
pub(crate) const AGENT: &str = concat!("floe/", env!("CARGO_PKG_VERSION"));
