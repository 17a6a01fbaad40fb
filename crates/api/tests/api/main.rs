//! The API as its clients meet it: over HTTP, in front of the real engine on the real stores in a temporary
//! directory. Only the network is in memory ([`net`]), and the clock is moved by hand.
//!
//! Names carry the numbers of the requirements: m.. and s.. (the spec), kubo and js (its clients), t.. (threats).

#![expect(clippy::unwrap_used, reason = "helpers of tests are outside #[test] functions")]

mod access;
mod clients;
mod deals;
mod documents;
mod events;
mod idempotency;
mod leaks;
mod listing;
mod net;
#[path = "../../../engine/tests/support/nobody.rs"]
mod nobody;
mod pins;
mod policies;
mod pulls;
mod schema;
mod support;
