//! Storage deals as they are signed and sent: the proposal, and the protocol called mk12 around it.
//!
//! What is here are bytes and their meaning. Sending them is one attempt elsewhere; when to try again is the engine's.

pub mod mk12;
pub mod proposal;
pub mod streams;
pub mod web;

pub use proposal::{ClientDealProposal, DealProposal, Label};
