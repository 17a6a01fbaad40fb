//! Why a piece cannot be made.

use crate::PaddedSize;

/// Why a piece cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More payload than the largest piece holds. Split it.
    #[error("a payload of more than {} bytes, which no sector holds: split it", PaddedSize::MAX.unpadded_bytes())]
    TooLarge,
    /// A target size that is too small for the payload.
    #[error("a payload of {payload_bytes} bytes does not fit in {size}: choose a larger size")]
    DoesNotFit {
        /// Bytes of payload.
        payload_bytes: u64,
        /// The target.
        size: PaddedSize,
    },
}
