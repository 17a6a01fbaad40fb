//! The Lotus node, over JSON-RPC: where it is, the calls that are made, what they answer, and what their errors mean.
//!
//! The node is believed only as far as must be: its CIDs and amounts must be in their only form, and what money depends
//! on is checked in [`crate::chain`] and [`crate::escrow`]. The connection itself is not here yet.

pub mod answers;
mod endpoint;
mod error;
mod methods;

pub use endpoint::{Endpoint, EndpointError};
pub use error::{Fault, RpcError};
pub use methods::{METHODS, Method, Permission};
