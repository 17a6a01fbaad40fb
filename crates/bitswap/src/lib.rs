//! Bitswap 1.2: a sans-IO client and server, and the libp2p behaviour around them.
