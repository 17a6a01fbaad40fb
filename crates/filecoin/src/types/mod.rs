//! The values of the chain, in the two forms that they have on wires: JSON as Lotus writes it, CBOR as the chain
//! hashes it. What is decoded here came from a node or a provider, and both may lie: each length is checked
//! before memory is taken for it, and a form that is not the only one of its value is refused.

pub mod address;
pub mod amount;
pub mod cbor;
pub mod cid;
pub mod message;
pub mod signature;

pub use address::{Address, AddressError, Network};
pub use amount::{AmountError, SignedAmount, TokenAmount};
pub use cbor::CborError;
pub use cid::TipSetKey;
pub use message::{Message, SignedMessage};
pub use signature::{Signature, SignatureKind};

/// A height of the chain, 30 s each. Signed as on the chain, where -1 is "never".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct ChainEpoch(pub i64);

impl ChainEpoch {
    /// This many epochs later (or earlier, where negative); stops at the ends.
    pub const fn after(self, epochs: i64) -> Self {
        Self(self.0.saturating_add(epochs))
    }

    /// Epochs from `earlier` to this one; negative where this is the earlier one.
    pub const fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::fmt::Display for ChainEpoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}
