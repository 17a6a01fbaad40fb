//! The dial filter: which addresses this node connects to, on whose word.
//!
//! Addresses come from strangers (origins of a pin, DHT, identify, delegated routers, DNS), and a node that dials
//! whatever it is told is a port scanner inside the operator's network. The rule is checked on the
//! *resolved* address, at the last moment, inside the transports:
//!
//! ```text
//!   swarm ── dnsaddr ──┬── relay client ──(dials the relay through the swarm)
//!                      ├── WebSocket (keeps the name for TLS) ── gate ── TCP
//!                      ├─────────────────────────────────────── gate ── TCP
//!                      └─────────────────────────────────────── gate ── QUIC
//! ```
//!
//! A [`gate::Gate`] takes `/dns4/name/tcp/…`, resolves the name once, drops every answer that is not allowed, and
//! hands the inner transport plain IP addresses: a name that changes its answer later (rebinding) has nothing to
//! change. However many names a dial meets on its way, it tries eight addresses in all and takes 20 s
//! ([`resolve::Dnsaddr`]). The WebSocket transport ([`websocket`]) follows no HTTP redirects.
//!
//! # Who asked
//! A transport does not know on whose behalf it dials. So the sessions say so beforehand: a [`policy::Policy`] holds
//! *permits*, each for one (host, protocol, port, peer id) exactly as it will be dialled. The operator's own
//! addresses (bootstrap, relays) have permits without end; a session whose request came from this machine registers
//! its origins for a minute. Whatever has no permit is a stranger's. A stranger who names
//! the very address and peer id of a live permit gets it dialled too, which tells him nothing: it was about
//! to be dialled anyway, and the peer at its end must prove that id.

pub(crate) mod gate;
mod inner;
pub(crate) mod ip;
pub(crate) mod origins;
pub(crate) mod policy;
pub(crate) mod resolve;
pub(crate) mod target;
pub(crate) mod websocket;
