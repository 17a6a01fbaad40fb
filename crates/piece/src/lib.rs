//! From a payload to what a deal on Filecoin commits to: Fr32, CommP, data segments and their inclusion proofs.
//!
//! ```text
//! payload   127 bytes   127 bytes   …        zeros to a power of two (before Fr32)
//!              │ Fr32      │
//! leaves    4 x 32 B    4 x 32 B    …        254 bits each, the top two bits 0
//!              └──┬────────┬──┘
//! nodes        SHA-256(left || right), the top two bits cleared, up to the root: CommP
//! ```
//!
//! - [`fr32`] widens 127 bytes to four field elements of 32, and back.
//! - [`CommP`] hashes a stream in constant memory; [`ParallelCommP`] does the same on several threads.
//! - [`Tree`] joins commitments of parts into the commitment of the whole, without the bytes.
//! - [`segment`] lays the data segment index of an aggregate out and reads it (FRC-0058); [`Aggregate`] and
//!   [`InclusionProof`] prove that a segment is in one.
//!
//! How pieces are named and sized is in [`floe_core::piece`]. Nothing here does IO or keeps anything: a crash loses a
//! hash that is under way, and the payload is hashed again. It knows no deals, no pins, and not what is in a payload.

mod commp;
mod error;
pub mod fr32;
pub mod limits;
mod node;
mod parallel;
mod proof;
mod row;
pub mod segment;
#[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
mod sha_ni;
mod stack;
mod tree;

pub use commp::{CommP, Piece, pad};
pub use error::Error;
pub use floe_core::piece::{PaddedSize, PieceCid, PieceCidError, PieceCidV2};
pub use parallel::ParallelCommP;
pub use proof::{Aggregate, InclusionProof, ProofError, Way};
pub use tree::{Place, Tree};
