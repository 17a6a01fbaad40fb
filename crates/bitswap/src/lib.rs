//! Bitswap 1.2: a sans-IO client and server, and the libp2p behaviour around them.
//!
//! Nothing in here knows of pins or accounts: blocks go out through a [`LocalBlocks`] port and come in through
//! sessions. [`new`] gives the [`Behaviour`] for a swarm and a [`Handle`] for everybody else.
//!
//! ```text
//!   handle.rs      Handle, BitswapSession         what the node holds
//!   behaviour.rs   Behaviour, Event               what the swarm drives
//!   handler.rs     Handler                        one connection: many inbound streams, one outbound
//!   shared.rs      Shared                         locks, wakers, hashing, reads
//!   client/        Client                         sans-IO: who is asked for what
//!   server/        Server                         sans-IO: who is answered when
//!   message.rs, message/, frame.rs                the wire
//!   limits.rs                                     every bound, with its reason
//!   wire.rs        Peer                           for tests: a peer that does what no honest node does
//!   counters.rs    Counters                       for tests: what counters come to
//! ```
//!
//! **Who owns what.** The client's and the server's state each sit behind one lock; connection tasks, sessions
//! and the behaviour's timer call them. Bytes of blocks belong to whoever holds the [`bytes::Bytes`]; a large
//! payload is a slice of the frame it came in, not a copy.
//!
//! **Crash and shutdown.** Nothing here is durable. Dropping the behaviour ends all sessions with
//! `ExchangeClosed`; dropping a session cancels its wants at the peers.
//!
//! **What it is not.** No routing ([`Event::NeedProviders`] asks for it), no store, no policy on who may be
//! served beyond fairness and limits.

mod behaviour;
mod client;
mod config;
mod frame;
mod handle;
mod handler;
mod key;
pub mod limits;
pub mod message;
mod protocol;
mod server;
mod shared;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;
mod unfinished;
pub mod wire;

pub use behaviour::{Behaviour, Event, Misbehaviour};
pub use config::{Config, EgressLimit};
pub use frame::{FrameError, FrameReader};
pub use handle::{BitswapSession, Handle, SessionId, Stats};

use std::sync::Arc;

use floe_core::Clock;
use floe_core::ports::LocalBlocks;

/// Makes the behaviour for the swarm and the handle for everybody else.
///
/// `blocks` is what the server serves; `seed` salts the order in which equal peers are served. The swarm must
/// run inside a tokio runtime: local blocks are read on its blocking threads, payloads hashed on its tasks.
pub fn new(
    config: Config,
    blocks: Arc<dyn LocalBlocks>,
    clock: Arc<dyn Clock>,
    seed: [u8; 32],
) -> (Behaviour, Handle) {
    let server = server::Server::new(&config, seed);
    let shared = Arc::new(shared::Shared::new(client::Client::default(), server, blocks, clock));
    (Behaviour::new(shared.clone()), Handle::new(shared))
}
