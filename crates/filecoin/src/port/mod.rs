//! The ports of [`floe_core::cold`], on a Lotus node and on storage providers.
//!
//! ```text
//!   engine ── Chain ────> LotusChain ── rpc, chain, messages ──> the node
//!      │                        └── Memory: which network, and the highest head ──> rows
//!      ├── Market ───> Providers ── market::http, or Streams ──> a provider
//!      └── Proposer ─> DealSigner ── signer ──> a key in a file, or the node's wallet
//! ```
//!
//! Each call is one attempt, and its error is a class of the taxonomy with the words that were said. What is kept
//! between calls is only what a call must not contradict: the last look at the chain, and which way a provider took.

mod chain;
mod events;
mod faults;
mod funds;
mod market;
mod memory;
mod proposer;
mod status;
mod watch;

pub use chain::{ChainSettings, LotusChain};
pub use market::Providers;
pub use memory::{Known, Memory, Unremembered};
pub use proposer::DealSigner;
pub use status::NodeStatus;
