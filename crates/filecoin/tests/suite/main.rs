//! The crate against what is outside of it: published bytes, and recorded traffic of real software.

#![expect(clippy::unwrap_used, reason = "helpers of tests are outside #[test] functions")]

mod bytes_of_others;
mod devnet;
mod journal;
mod lotus;
mod messages;
mod node;
mod recordings;
mod signatures;
mod signers;
