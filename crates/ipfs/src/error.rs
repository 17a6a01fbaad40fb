//! Why the node did not start, or ended.

use std::path::PathBuf;

use libp2p::Multiaddr;

/// Why the node did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another program has the port: stop it, or set another `--swarm-addr`. The binary exits with 11.
    #[error("{address} is in use: stop what listens there, or choose another --swarm-addr")]
    AddressInUse {
        /// The address as it was configured.
        address: Multiaddr,
    },
    /// An address cannot be listened on for another reason.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address as it was configured.
        address: Multiaddr,
        /// What the transport said.
        reason: String,
    },
    /// A configured address lacks what its use needs, or names a transport that is not there.
    #[error("network.{key} has {address}, which {reason}")]
    Address {
        /// The configuration key.
        key: &'static str,
        /// The address.
        address: Multiaddr,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The operator's certificate or its key is of no use.
    #[error("{path} {reason} (network.tls_certificate and network.tls_key)")]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The identity file is there and is no key: put the right one back, or move it away for a new peer id.
    #[error("{path} is not a libp2p key ({reason}): restore it, or move it away to get a new peer id")]
    IdentityDamaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The table of announced roots is another's file, or of another version of redb. It holds nothing that the engine
    /// cannot announce again.
    #[error("{path} does not open ({reason}): move it away, the roots are announced anew")]
    Provides {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A sync of that table failed: what is on disk is unknown until the next start. The binary exits with 12.
    #[error("{0}")]
    SyncFailed(String),
    /// One of the node's tasks panicked.
    #[error("{0}")]
    TaskEnded(String),
    /// A part of the transport could not be set up.
    #[error("cannot set up the transport: {0}")]
    Transport(String),
    /// A router's HTTP client could not be set up.
    #[error("cannot set up the client of the delegated routers: {0}")]
    Router(String),
}
