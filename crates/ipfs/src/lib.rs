//! The IPFS node: swarm, routing, providing, dial filter.

mod error;
mod node;
mod settings;

pub use error::Error;
pub use node::Node;
pub use settings::{Components, Identity, PrivateAddresses, Settings};

// The types that settings are made of, so that callers need not name the library's version.
pub use libp2p::{Multiaddr, PeerId, identity};
