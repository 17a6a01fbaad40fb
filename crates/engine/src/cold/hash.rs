//! The commitment of a piece that is being packed, and those of its segments, in one pass over its bytes.
//!
//! The bytes come as providers will read them ([`Shape`]), so what is hashed is what is sent. Aligned, each segment and
//! what lies between them is a subtree of its own, and the piece's tree is joined from these; so no byte is hashed twice.
//! Blocks, for minutes: it runs on a thread of its own, and looks whether it is to stop after each read.

use std::num::NonZeroUsize;

use floe_blockstore::BlockStore;
use floe_core::{PaddedSize, PieceCid};
use floe_piece::segment::Segment;
use floe_piece::{Aggregate, CommP, ParallelCommP};
use floe_records::cold::SegmentRow;
use tokio_util::sync::CancellationToken;

use super::piece::{PieceError, Shape, payload};
use crate::limits;

/// Why nothing was hashed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HashError {
    /// Reading it.
    #[error(transparent)]
    Piece(#[from] PieceError),
    /// Hashing it.
    #[error(transparent)]
    Hash(#[from] floe_piece::Error),
    /// The engine stops.
    #[error("stopped")]
    Stopped,
}

/// What a piece hashes to.
pub(super) struct Hashed {
    pub(super) piece: PieceCid,
    /// The segments with their commitments, in the order in which they lie; none where they are not aligned.
    pub(super) segments: Vec<Segment>,
    /// What lies between them.
    pub(super) fillers: Vec<Segment>,
}

/// Reads a shape from its beginning to its end, once.
struct Reading<'a> {
    shape: &'a Shape,
    blocks: &'a BlockStore,
    stop: &'a CancellationToken,
    threads: NonZeroUsize,
}

/// Hashes a piece whose segments are not hashed yet: `shape` has no entries in its index.
pub(super) fn hash(
    shape: &Shape,
    align: bool,
    segments: &[SegmentRow],
    blocks: &BlockStore,
    stop: &CancellationToken,
) -> Result<Hashed, HashError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get).div_ceil(2);
    let threads = NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN);
    let reading = Reading { shape, blocks, stop, threads };
    if !align {
        let piece = reading.hash(0..shape.len, shape.size)?;
        return Ok(Hashed { piece, segments: Vec::new(), fillers: Vec::new() });
    }
    let (mut hashed, mut fillers, mut at) = (Vec::with_capacity(segments.len()), Vec::new(), 0);
    for segment in segments {
        for filler in between(at, segment.place) {
            fillers.push(reading.segment(filler)?);
        }
        hashed.push(reading.segment((segment.place, segment.size))?);
        at = segment.place + segment.size.bytes();
    }
    let tree = Aggregate::with_fillers(shape.size, &hashed, &fillers)?;
    Ok(Hashed { piece: tree.piece(), segments: hashed, fillers })
}

impl Reading<'_> {
    fn segment(&self, (offset, size): (u64, PaddedSize)) -> Result<Segment, HashError> {
        let piece = self.hash(payload(offset)..payload(offset + size.bytes()), size)?;
        Ok(Segment { piece, offset, size })
    }

    /// The commitment of a range, as a piece of this size. Small ones are hashed on this thread: to start others for some
    /// thousand segments would cost more than it brings.
    fn hash(&self, range: std::ops::Range<u64>, size: PaddedSize) -> Result<PieceCid, HashError> {
        if size.bytes() < limits::HASHED_IN_PARALLEL {
            let mut commp = CommP::new();
            self.feed(range, |bytes| commp.update(bytes))?;
            return Ok(commp.finish_padded(size)?.cid);
        }
        let mut commp = ParallelCommP::new(self.threads)?;
        self.feed(range, |bytes| commp.update(bytes))?;
        Ok(commp.finish_padded(size)?.cid)
    }

    fn feed(
        &self,
        range: std::ops::Range<u64>,
        mut update: impl FnMut(&[u8]) -> Result<(), floe_piece::Error>,
    ) -> Result<(), HashError> {
        let mut at = range.start;
        while at < range.end {
            if self.stop.is_cancelled() {
                return Err(HashError::Stopped);
            }
            for bytes in self.shape.read(self.blocks, at..range.end)? {
                update(&bytes)?;
                at += bytes.len() as u64;
            }
        }
        Ok(())
    }
}

/// The aligned blocks that a gap is made of, in order.
fn between(mut at: u64, end: u64) -> impl Iterator<Item = (u64, PaddedSize)> {
    std::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let most = 1 << left.ilog2();
        let aligned = if at == 0 { most } else { 1 << at.trailing_zeros() };
        let size = PaddedSize::from_bytes(most.min(aligned))?;
        let block = (at, size);
        at += size.bytes();
        Some(block)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A gap between segments is covered, each block at a multiple of its size.
        #[test]
        fn a_gap_is_made_of_aligned_blocks(from in 0..5_000u64, groups in 0..5_000u64) {
            let (from, end) = (128 * from, 128 * (from + groups));
            let mut at = from;
            for (offset, size) in between(from, end) {
                prop_assert_eq!(offset, at);
                prop_assert_eq!(offset % size.bytes(), 0);
                at += size.bytes();
            }
            prop_assert_eq!(at, end);
        }
    }
}
