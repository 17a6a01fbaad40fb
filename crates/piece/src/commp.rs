//! CommP over a stream, in constant memory.
//!
//! [`CommP`] gathers chunks of 256 groups of payload, hashes each to the root of its subtree, and keeps one root for
//! each level of the tree ([`Stack`]): less than 100 KiB, however large the piece. Bytes may come in parts of any size.

use std::io;

use crate::limits::{CHUNK_BYTES, CHUNK_HEIGHT};
use crate::node::{self, Node, Words};
use crate::stack::{self, Stack};
use crate::{Error, PaddedSize, PieceCid, PieceCidV2, fr32, row};

/// A piece, as hashing a payload gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Its commitment.
    pub cid: PieceCid,
    /// The size of its tree.
    pub size: PaddedSize,
    /// Bytes of payload in it; zeros follow.
    pub payload_bytes: u64,
}

impl Piece {
    /// The piece CID v2. Where the piece is larger than its payload needs, the zeros behind it count as payload, because
    /// FRC-0069 has no other name for it.
    pub fn v2(&self) -> Option<PieceCidV2> {
        let smallest = PaddedSize::of_payload(self.payload_bytes) == Some(self.size);
        let payload_bytes = if smallest { self.payload_bytes } else { self.size.unpadded_bytes() };
        PieceCidV2::new(self.cid, self.size, payload_bytes).ok()
    }
}

/// The commitment of the piece of size `from` with zeros behind it up to `to`. `None` where `to` is smaller.
pub fn pad(piece: PieceCid, from: PaddedSize, to: PaddedSize) -> Option<PieceCid> {
    let root = (from <= to).then(|| stack::raise(*piece.commitment(), from.height(), to.height()))?;
    PieceCid::from_commitment(root)
}

/// CommP under way, on the thread that feeds it.
#[derive(Debug, Clone, Default)]
pub struct CommP {
    /// Payload that does not fill a chunk yet.
    pending: Vec<u8>,
    subtrees: Subtrees,
    roots: Stack,
    payload_bytes: u64,
}

impl CommP {
    /// Begins a piece.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes fed so far.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Feeds the next bytes of the payload.
    ///
    /// # Errors
    /// [`Error::TooLarge`], and none of `bytes` is taken.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.payload_bytes = grown(self.payload_bytes, bytes.len())?;
        if !self.pending.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(CHUNK_BYTES - self.pending.len()));
            self.pending.extend_from_slice(head);
            bytes = rest;
            if self.pending.len() < CHUNK_BYTES {
                return Ok(());
            }
            self.roots.push(CHUNK_HEIGHT, self.subtrees.chunk(&self.pending));
            self.pending.clear();
        }
        // What fills chunks is hashed where it stands.
        let mut chunks = bytes.chunks_exact(CHUNK_BYTES);
        for chunk in &mut chunks {
            self.roots.push(CHUNK_HEIGHT, self.subtrees.chunk(chunk));
        }
        self.pending.extend_from_slice(chunks.remainder());
        Ok(())
    }

    /// Appends a subtree that was hashed elsewhere over `bytes` of payload. Nothing may be pending.
    pub(crate) fn append(&mut self, height: u8, root: Node, bytes: usize) -> Result<(), Error> {
        self.payload_bytes = grown(self.payload_bytes, bytes)?;
        self.roots.push(height, root);
        Ok(())
    }

    /// The piece of the smallest size that the payload fits.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn finish(self) -> Result<Piece, Error> {
        let size = PaddedSize::of_payload(self.payload_bytes).ok_or(Error::TooLarge)?;
        self.finish_padded(size)
    }

    /// The piece of `size`, with zeros behind the payload.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn finish_padded(mut self, size: PaddedSize) -> Result<Piece, Error> {
        let payload_bytes = self.payload_bytes;
        if payload_bytes > size.unpadded_bytes() {
            return Err(Error::DoesNotFit { payload_bytes, size });
        }
        if !self.pending.is_empty() {
            let (height, root) = self.subtrees.tail(std::mem::take(&mut self.pending));
            self.roots.push(height, root);
        }
        let cid = PieceCid::from_commitment(self.roots.root(size)).ok_or(Error::TooLarge)?;
        Ok(Piece { cid, size, payload_bytes })
    }
}

/// Never fails but with [`Error::TooLarge`] as [`io::ErrorKind::FileTooLarge`]; for [`io::copy`].
impl io::Write for CommP {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes).map_err(Error::into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `payload_bytes` and so many more, where the largest piece holds them.
pub(crate) fn grown(payload_bytes: u64, by: usize) -> Result<u64, Error> {
    let grown = u64::try_from(by).ok().and_then(|by| payload_bytes.checked_add(by));
    grown.filter(|bytes| *bytes <= PaddedSize::MAX.unpadded_bytes()).ok_or(Error::TooLarge)
}

/// Hashes parts of a payload to the roots of their subtrees, with room that is used again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Subtrees {
    row: Vec<Words>,
}

impl Subtrees {
    /// The root, at [`CHUNK_HEIGHT`], of a whole chunk.
    pub(crate) fn chunk(&mut self, chunk: &[u8]) -> Node {
        node::bytes(&self.of(chunk))
    }

    /// The root, at [`crate::limits::LARGE_CHUNK_HEIGHT`], of a whole large chunk.
    pub(crate) fn large_chunk(&mut self, large: &[u8]) -> Node {
        let mut roots: Vec<Words> = large.chunks(CHUNK_BYTES).map(|chunk| self.of(chunk)).collect();
        node::bytes(&row::root(&mut roots))
    }

    /// The height and root of what is left at the end of a payload, no more than a chunk: zeros fill it to a power of two of
    /// groups.
    pub(crate) fn tail(&mut self, mut tail: Vec<u8>) -> (u8, Node) {
        let groups = tail.len().div_ceil(fr32::GROUP_BYTES).next_power_of_two();
        tail.resize(groups * fr32::GROUP_BYTES, 0);
        // Four leaves to a group, so a tree of at least two levels.
        ((fr32::LEAVES * groups).ilog2() as u8, self.chunk(&tail))
    }

    fn of(&mut self, payload: &[u8]) -> Words {
        row::root_of_groups(payload.as_chunks().0, &mut self.row)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// The definition: all leaves, row by row.
    fn whole(payload: &[u8], size: PaddedSize) -> PieceCid {
        let mut row: Vec<Node> = Vec::new();
        for group in payload.chunks(fr32::GROUP_BYTES) {
            let mut full = [0; fr32::GROUP_BYTES];
            full[..group.len()].copy_from_slice(group);
            row.extend(fr32::pad(&full).as_chunks::<32>().0);
        }
        row.resize(1 << size.height(), [0; 32]);
        while row.len() > 1 {
            row = row.chunks(2).map(|pair| node::parent(&pair[0], &pair[1])).collect();
        }
        PieceCid::from_commitment(row[0]).unwrap()
    }

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn a_target_that_is_too_small_is_refused() {
        let mut commp = CommP::new();
        commp.update(&[1; 128]).unwrap();
        let size = PaddedSize::MIN;
        assert_eq!(commp.finish_padded(size), Err(Error::DoesNotFit { payload_bytes: 128, size }));
    }

    #[test]
    fn a_payload_beyond_the_largest_piece_is_refused_whole() {
        let most = PaddedSize::MAX.unpadded_bytes();
        for (before, add, ok) in
            [(most - 2, 1, true), (most - 1, 1, true), (most, 1, false), (u64::MAX, 1, false)]
        {
            let mut commp = CommP { payload_bytes: before, ..CommP::default() };
            assert_eq!(commp.update(&vec![0; add]).is_ok(), ok, "{before} and {add}");
            assert_eq!(commp.payload_bytes(), if ok { before + add as u64 } else { before });
        }
        let mut commp = CommP { payload_bytes: most, ..CommP::default() };
        assert_eq!(commp.write(&[1]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn a_piece_larger_than_its_payload_needs_is_named_with_its_zeros() {
        let mut commp = CommP::new();
        commp.update(&[1; 127]).unwrap();
        let small = commp.clone().finish().unwrap();
        assert_eq!(small.v2().unwrap().payload_bytes(), 127);
        let size = PaddedSize::from_bytes(1024).unwrap();
        let large = commp.finish_padded(size).unwrap();
        assert_eq!(large.v2().unwrap().payload_bytes(), size.unpadded_bytes());
        assert_eq!(pad(small.cid, small.size, size), Some(large.cid));
        assert_eq!(pad(large.cid, size, small.size), None);
    }

    /// Around the ends of groups and chunks.
    #[test]
    fn edges_are_what_the_definition_says() {
        for around in [0, 127, 254, CHUNK_BYTES, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES, 4 * CHUNK_BYTES] {
            for len in around.saturating_sub(1)..=around + 1 {
                let payload = payload(len);
                let mut commp = CommP::new();
                commp.update(&payload).unwrap();
                let piece = commp.finish().unwrap();
                assert_eq!(piece.cid, whole(&payload, piece.size), "{len} bytes");
                assert_eq!(piece.payload_bytes, len as u64);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn parts_of_any_size_give_the_same(
            len in 0..5 * CHUNK_BYTES, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12), more in 0..3u8,
        ) {
            let payload = payload(len);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(len + 1)).chain([0, len]).collect();
            cuts.sort_unstable();
            let mut commp = CommP::new();
            for part in cuts.windows(2) {
                commp.update(&payload[part[0]..part[1]]).unwrap();
            }
            let size = PaddedSize::of_payload(len as u64).unwrap();
            let larger = PaddedSize::from_height(size.height() + more).unwrap();
            prop_assert_eq!(commp.clone().finish().unwrap(), Piece { cid: whole(&payload, size), size, payload_bytes: len as u64 });
            prop_assert_eq!(commp.finish_padded(larger).unwrap().cid, whole(&payload, larger));
        }
    }
}
