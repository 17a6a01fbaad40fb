//! The Lotus node, over JSON-RPC: where it is, the calls that are made, what they answer, and what their errors mean.
//!
//! The node is believed only as far as must be: its CIDs and amounts must be in their only form, and what money depends
//! on is checked in [`crate::chain`] and [`crate::escrow`]. One call is one attempt: a call whose answer is lost is
//! neither done nor failed ([`RpcError::is_lost_reply`]), and who made it decides what follows.
//!
//! # Traps between jsonrpsee and go-jsonrpc
//! - An unknown method, bad parameters and a panic come as HTTP 500 with the error in the body, which jsonrpsee throws
//!   away; and frames may hold `meta`, which jsonrpsee refuses. A layer below it (`frames`) rewrites both.
//! - A frame without `result` is no answer: taken for `null` it would say "this message is not on the chain".
//! - A subscription is cancelled by the id of its request, which jsonrpsee does not send, and its end is not passed on:
//!   each has a connection of its own, dropped to end it, and a limit of silence ([`HeadChanges`]).
//! - One frame with `meta` ends a WebSocket: calls go over HTTP alone.

pub mod answers;
mod client;
mod endpoint;
mod error;
mod frames;
mod methods;
mod notify;

pub use client::Lotus;
pub(crate) use client::tls;
pub use endpoint::{Endpoint, EndpointError};
pub use error::{Fault, RpcError};
pub use methods::{METHODS, Method, Permission};
pub use notify::{HeadChanges, NotifyError};
