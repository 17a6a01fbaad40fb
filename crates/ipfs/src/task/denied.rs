//! Connections that were refused, counted by why.

use libp2p::swarm::ConnectionDenied;
use libp2p::{connection_limits, memory_connection_limits};

use crate::limits;

/// Counts a connection that was refused for a limit, in either direction. Peers that are shut out count where they are.
pub(super) fn count(denied: &ConnectionDenied) {
    if denied.downcast_ref::<connection_limits::Exceeded>().is_some() {
        limits::hit("peer_connections");
    } else if denied.downcast_ref::<memory_connection_limits::MemoryUsageLimitExceeded>().is_some() {
        limits::hit("memory_refuse");
    }
}
