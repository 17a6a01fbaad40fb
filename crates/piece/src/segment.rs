//! Data segments: pieces inside a piece, and the index at its end that lists them (FRC-0058).
//!
//! ```text
//! padded 0                                            start            size
//! │ segment │ zeros │   segment   │ segment │ zeros … │ entry │ entry │ … │
//! entry, 64 bytes: CommDS 32 | offset u64 | size u64 | checksum 16
//! ```
//!
//! Offsets and sizes are in padded bytes, numbers little endian. The checksum is the SHA-256 of the entry with zeros in its
//! place, cut to 126 bits, so that the entry is two field elements and reads the same in padded data. In the payload the
//! index stands with the Fr32 taken back, so that padding the payload gives it.
//!
//! An entry that is not sound is skipped, as the standard asks: whoever aggregates may put anything next to what is yours.

use sha2::Digest as _;

use crate::tree::Place;
use crate::{Error, PaddedSize, PieceCid, fr32};

/// Bytes of an entry, padded.
pub const ENTRY_BYTES: usize = 64;
/// The index has room for at least this many.
const FEWEST_ENTRIES: u64 = 4;
/// One entry for so many bytes of the piece.
const BYTES_PER_ENTRY: u64 = 2048 * ENTRY_BYTES as u64;

/// A piece inside a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// Its commitment.
    pub piece: PieceCid,
    /// Where it begins, in padded bytes: a multiple of its size.
    pub offset: u64,
    /// Its size.
    pub size: PaddedSize,
}

/// Why an entry of an index is not sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The checksum is of something else; also where the entry is not used.
    #[error("the checksum does not match")]
    Checksum,
    /// The commitment has one of its top two bits set.
    #[error("the commitment is no field element")]
    Commitment,
    /// The size is not one of a piece.
    #[error("a size of {0} bytes is not a power of two from 128")]
    Size(u64),
    /// The offset is no multiple of the size, or the segment reaches into the index or beyond the piece.
    #[error("a segment at {0} is not aligned, or not before the index")]
    Offset(u64),
}

impl Segment {
    /// Where its root is in the tree.
    pub fn place(&self) -> Place {
        Place { height: self.size.height(), index: self.offset >> self.offset_shift() }
    }

    fn offset_shift(&self) -> u32 {
        self.size.bytes().ilog2()
    }

    /// Its entry in the index.
    pub fn entry(&self) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[..32].copy_from_slice(self.piece.commitment());
        entry[32..40].copy_from_slice(&self.offset.to_le_bytes());
        entry[40..48].copy_from_slice(&self.size.bytes().to_le_bytes());
        let checksum = checksum(&entry);
        entry[48..].copy_from_slice(&checksum);
        entry
    }

    /// Reads an entry of the index of a piece of size `of`.
    ///
    /// # Errors
    /// [`EntryError`].
    pub fn read(entry: &[u8; ENTRY_BYTES], of: PaddedSize) -> Result<Self, EntryError> {
        if entry[48..] != checksum(entry) {
            return Err(EntryError::Checksum);
        }
        let number = |at: usize| entry[at..at + 8].iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
        let commitment = std::array::from_fn(|n| entry[n]);
        let piece = PieceCid::from_commitment(commitment).ok_or(EntryError::Commitment)?;
        let size = PaddedSize::from_bytes(number(40)).ok_or(EntryError::Size(number(40)))?;
        let segment = Self { piece, offset: number(32), size };
        if segment.fits(of) { Ok(segment) } else { Err(EntryError::Offset(segment.offset)) }
    }

    /// Whether it is aligned and ends before the index of a piece of size `of`.
    fn fits(&self, of: PaddedSize) -> bool {
        let end = self.offset.checked_add(self.size.bytes());
        let before_index = end.zip(index_start(of)).is_some_and(|(end, start)| end <= start);
        before_index && self.offset.is_multiple_of(self.size.bytes())
    }
}

/// The first 126 bits of the SHA-256 of an entry whose checksum is zeros.
fn checksum(entry: &[u8; ENTRY_BYTES]) -> [u8; 16] {
    let mut blank = *entry;
    blank[48..].fill(0);
    let digest: [u8; 32] = sha2::Sha256::digest(blank).into();
    let mut checksum = std::array::from_fn(|n| digest[n]);
    checksum[15] &= 0x3f;
    checksum
}

/// Entries that the index of a piece has room for.
pub fn max_entries(size: PaddedSize) -> u64 {
    // Both are powers of two, so the quotient is one or 0.
    FEWEST_ENTRIES.max(size.bytes() / BYTES_PER_ENTRY)
}

/// Where the index begins, in padded bytes. `None` where the piece has no room for a segment beside it.
pub fn index_start(size: PaddedSize) -> Option<u64> {
    size.bytes().checked_sub(max_entries(size) * ENTRY_BYTES as u64).filter(|start| *start > 0)
}

/// The index of a piece: which segments are in it, each with the number of its entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    of: PaddedSize,
    entries: Vec<(u64, Segment)>,
}

impl Index {
    /// The index of a piece of size `of` that holds `segments`, in this order.
    ///
    /// # Errors
    /// [`Error::Segments`] where there are too many, where one is not aligned or not before the index, or where two
    /// overlap.
    pub fn new(of: PaddedSize, segments: &[Segment]) -> Result<Self, Error> {
        if segments.len() as u64 > max_entries(of) {
            return Err(Error::Segments(format!("{of} have an index of {} entries", max_entries(of))));
        }
        if let Some(bad) = segments.iter().find(|segment| !segment.fits(of)) {
            let Segment { piece, offset, size } = bad;
            return Err(Error::Segments(format!(
                "{piece} of {size} at {offset} is not aligned to its size, or not before the index"
            )));
        }
        let mut sorted: Vec<&Segment> = segments.iter().collect();
        sorted.sort_unstable_by_key(|segment| segment.offset);
        let overlap = sorted.windows(2).find(|pair| pair[0].offset + pair[0].size.bytes() > pair[1].offset);
        if let Some(pair) = overlap {
            return Err(Error::Segments(format!("{} and {} overlap", pair[0].piece, pair[1].piece)));
        }
        Ok(Self { of, entries: (0..).zip(segments.iter().copied()).collect() })
    }

    /// Reads the index of a piece of size `of` from the payload of its index area ([`Self::payload_range`]). Entries that are
    /// not sound are skipped; those that are may still overlap, and say nothing about the data they name.
    ///
    /// # Errors
    /// [`Error::Segments`] where the payload is not as long as the area.
    pub fn read(of: PaddedSize, payload: &[u8]) -> Result<Self, Error> {
        let range = Self::payload_range(of)
            .ok_or_else(|| Error::Segments(format!("{of} have no room for an index and a segment")))?;
        if payload.len() as u64 != range.end - range.start {
            return Err(Error::Segments(format!(
                "an index of {} bytes where {of} have one of {}",
                payload.len(),
                range.end - range.start
            )));
        }
        let (groups, _) = payload.as_chunks::<{ fr32::GROUP_BYTES }>();
        let mut entries = Vec::new();
        for (n, group) in (0..).step_by(2).zip(groups) {
            let padded = fr32::pad(group);
            for (number, entry) in (n..).zip(padded.as_chunks::<ENTRY_BYTES>().0) {
                entries.extend(Segment::read(entry, of).ok().map(|segment| (number, segment)));
            }
        }
        Ok(Self { of, entries })
    }

    /// The piece's size.
    pub fn of(&self) -> PaddedSize {
        self.of
    }

    /// The segments.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &Segment> {
        self.entries.iter().map(|(_, segment)| segment)
    }

    /// The entry's number of each segment, and the segment.
    pub(crate) fn entries(&self) -> &[(u64, Segment)] {
        &self.entries
    }

    /// Where the index stands in the payload of a piece of size `of`, to its end.
    pub fn payload_range(of: PaddedSize) -> Option<std::ops::Range<u64>> {
        let start = index_start(of)? / fr32::PADDED_GROUP_BYTES as u64 * fr32::GROUP_BYTES as u64;
        Some(start..of.unpadded_bytes())
    }

    /// The payload of the index area: what Fr32 pads to the entries, with zeros where no entry is.
    pub fn payload(&self) -> Vec<u8> {
        let entries = max_entries(self.of) as usize;
        let mut padded = vec![0; entries * ENTRY_BYTES];
        for (number, segment) in &self.entries {
            padded[*number as usize * ENTRY_BYTES..][..ENTRY_BYTES].copy_from_slice(&segment.entry());
        }
        let (groups, _) = padded.as_chunks::<{ fr32::PADDED_GROUP_BYTES }>();
        groups.iter().filter_map(fr32::unpad).flatten().collect()
    }
}

/// The place of an entry in the tree of a piece of size `of`: it is two leaves, so it is at height 1.
pub(crate) fn entry_place(of: PaddedSize, number: u64) -> Option<Place> {
    (number < max_entries(of))
        .then(|| Place { height: 1, index: index_start(of).unwrap_or(0) / ENTRY_BYTES as u64 + number })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn size(bytes: u64) -> PaddedSize {
        PaddedSize::from_bytes(bytes).unwrap()
    }

    fn segment(offset: u64, bytes: u64) -> Segment {
        Segment { piece: PieceCid::from_commitment([9; 32]).unwrap(), offset, size: size(bytes) }
    }

    #[test]
    fn the_index_grows_with_the_piece() {
        for (padded, entries) in
            [(512, 4), (512 << 10, 4), (1 << 20, 8), (32 << 30, 256 << 10), (64 << 30, 512 << 10)]
        {
            assert_eq!(max_entries(size(padded)), entries, "{padded}");
        }
        assert_eq!(index_start(size(128)), None);
        assert_eq!(index_start(size(256)), None);
        assert_eq!(index_start(size(512)), Some(256));
    }

    #[test]
    fn entries_that_are_not_sound_are_refused() {
        let of = size(1 << 20);
        let good = segment(1 << 18, 1 << 18);
        assert_eq!(Segment::read(&good.entry(), of), Ok(good));
        assert_eq!(
            Segment::read(&[0; ENTRY_BYTES], of),
            Err(EntryError::Checksum),
            "an entry that is not used"
        );
        let with = |change: &dyn Fn(&mut [u8; ENTRY_BYTES])| {
            let mut entry = good.entry();
            change(&mut entry);
            let checksum = checksum(&entry);
            entry[48..].copy_from_slice(&checksum);
            Segment::read(&entry, of)
        };
        assert_eq!(with(&|e| e[31] = 0x40), Err(EntryError::Commitment));
        for bytes in [0, 64, 129, 1 << 37, 1 << 63, u64::MAX] {
            assert_eq!(
                with(&|e| e[40..48].copy_from_slice(&bytes.to_le_bytes())),
                Err(EntryError::Size(bytes))
            );
        }
        // Not aligned, over the index, behind the piece, over the end of numbers.
        for offset in [128, (1 << 18) + 128, 3 << 18, 1 << 20, u64::MAX - (1 << 18) + 1] {
            let read = with(&|e| e[32..40].copy_from_slice(&u64::to_le_bytes(offset)));
            assert_eq!(read, Err(EntryError::Offset(offset)), "{offset}");
        }
    }

    #[test]
    fn segments_that_do_not_fit_are_refused() {
        let of = size(1 << 20);
        let new = |segments: &[Segment]| Index::new(of, segments).map(|_| ());
        assert!(new(&[segment(0, 1 << 19), segment(1 << 19, 1 << 18)]).is_ok());
        // FRC-0058: two halves leave no room for the index.
        assert!(new(&[segment(0, 1 << 19), segment(1 << 19, 1 << 19)]).is_err());
        assert!(new(&[segment(0, 1 << 19), segment(1 << 18, 1 << 18)]).is_err(), "one over another");
        assert!(new(&[segment(128, 256)]).is_err(), "not aligned");
        let many: Vec<Segment> = (0..9).map(|n| segment(128 * n, 128)).collect();
        assert!(new(&many[..8]).is_ok());
        assert!(new(&many).is_err(), "one more than the index has room for");
    }

    #[test]
    fn an_index_of_another_length_is_refused() {
        let of = size(1 << 20);
        let payload = Index::new(of, &[]).unwrap().payload();
        assert_eq!(payload.len(), 508);
        assert!(Index::read(of, &payload).is_ok());
        for len in [0, 507, 509] {
            assert!(Index::read(of, &vec![0; len]).is_err(), "{len}");
        }
        assert!(Index::read(PaddedSize::MIN, &[]).is_err());
    }

    proptest! {
        #[test]
        fn an_index_comes_back(heights in prop::collection::vec(2..9u8, 0..8), root in any::<[u8; 32]>()) {
            let of = size(1 << 20);
            let mut root = root;
            root[31] &= 0x3f;
            let mut at = 0u64;
            let mut segments = Vec::new();
            for height in heights {
                let size = PaddedSize::from_height(height).unwrap();
                let offset = at.next_multiple_of(size.bytes());
                at = offset + size.bytes();
                segments.push(Segment { piece: PieceCid::from_commitment(root).unwrap(), offset, size });
            }
            let index = Index::new(of, &segments).unwrap();
            prop_assert_eq!(Index::read(of, &index.payload()), Ok(index));
        }

        /// Flipping any bit of an entry makes it one that is skipped: the checksum covers it, and Fr32's own bits.
        #[test]
        fn a_flipped_bit_is_found(bit in 0..512usize) {
            let mut entry = segment(1 << 18, 1 << 18).entry();
            entry[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Segment::read(&entry, size(1 << 20)).is_err());
        }

        #[test]
        fn any_payload_is_no_panic(payload in prop::collection::vec(any::<u8>(), 508)) {
            let read = Index::read(size(1 << 20), &payload).unwrap();
            prop_assert!(read.segments().len() <= 8);
        }
    }
}
