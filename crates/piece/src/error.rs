//! Why a piece cannot be made.

use std::io;

use crate::{PaddedSize, Place};

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
    /// A subtree outside of the tree, or inside another one.
    #[error("the subtree number {} of height {} is outside of the tree or inside another one", .0.index, .0.height)]
    Place(Place),
    /// Segments that make no aggregate.
    #[error("the segments make no aggregate: {0}")]
    Segments(String),
    /// A thread did not start, or ended before its work.
    #[error("a hashing thread failed: {0}; hash with fewer threads, or again")]
    Thread(String),
}

impl Error {
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match self {
            Self::TooLarge | Self::DoesNotFit { .. } => io::ErrorKind::FileTooLarge,
            Self::Place(_) | Self::Segments(_) => io::ErrorKind::InvalidInput,
            Self::Thread(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }
}
