//! The values of the chain, in the two forms that they have on wires: JSON as Lotus writes it, CBOR as the chain
//! hashes it. What is decoded here came from a node or a provider, and both may lie: each length is checked
//! before memory is taken for it, and a form that is not the only one of its value is refused.

pub mod address;
pub mod amount;
pub mod cbor;
pub mod cid;
pub mod message;
pub mod rle;
pub mod signature;

pub use floe_core::{AttoFil, Epoch, PaddedSize};

pub use address::{Address, AddressError, Network};
pub use amount::{AmountError, SignedAmount};
pub use cbor::CborError;
pub use cid::TipSetKey;
pub use message::{Message, SignedMessage};
pub use signature::{Signature, SignatureKind};
