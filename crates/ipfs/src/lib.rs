//! The IPFS node: swarm, routing, providing, dial filter.
