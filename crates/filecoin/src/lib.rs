//! The cold half's way to Filecoin: a Lotus node for chain, funds and truth, and the bytes that go to storage
//! providers.
//!
//! Everything here is one attempt with a typed error. When to try again, what to spend and which deal to make is
//! decided in the engine; the rows belong to `records`.
//!
//! # Reading order
//! [`types`] (the chain's values and their strict forms), [`market`] (deal proposals and the protocol around them),
//! [`rpc`] (the node's calls and answers), [`chain`] (what counts, and when spending pauses), [`signer`] (keys),
//! [`messages`] (what is signed and pushed, once), [`escrow`] (funds for deals), [`port`] (all of it, as the engine has it).

pub mod chain;
mod deadline;
pub mod escrow;
pub mod limits;
pub mod market;
pub mod messages;
pub mod port;
pub mod rpc;
pub mod secret;
pub mod signer;
pub mod types;
mod words;

pub use secret::{Secret, SecretError};
