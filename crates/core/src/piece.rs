//! How a piece is named and sized on Filecoin.
//!
//! A *piece* is a payload that Fr32 has widened (127 bytes become 128) and zeros have filled to a power of two: its
//! [`PaddedSize`]. The root of the Merkle tree over it, CommP, is what deals commit to. It has two CIDs:
//!
//! | | what it holds | form |
//! |---|---|---|
//! | [`PieceCid`] | CommP alone: what proposals and the chain name | `baga6ea4seaq…` |
//! | [`PieceCidV2`] | CommP, the tree's height and how much of it is padding (FRC-0069) | `bafkzci…` |
//!
//! Nothing here hashes: `floe-piece` computes what these types hold.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::cid::{Cid, Multihash};

/// Multicodec codes of piece CIDs.
mod code {
    /// `fil-commitment-unsealed`, the codec of v1.
    pub(super) const COMMITMENT_UNSEALED: u64 = 0xf101;
    /// `sha2-256-trunc254-padded`, the hash of v1.
    pub(super) const TRUNC254_PADDED: u64 = 0x1012;
    /// `fr32-sha256-trunc254-padbintree`, the hash of v2.
    pub(super) const PADDED_BINARY_TREE: u64 = 0x1011;
}

/// Bytes of payload in a group of Fr32, and what they become.
const GROUP: u64 = 127;
const PADDED_GROUP: u64 = 128;
/// Bytes of a node of the tree.
const NODE: u64 = 32;

/// The size of a piece after Fr32 and padding: a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaddedSize {
    /// Of the tree whose leaves are the padded bytes, 32 to a leaf.
    height: u8,
}

impl PaddedSize {
    /// One group of Fr32, 128 bytes: no piece is smaller.
    pub const MIN: Self = Self { height: 2 };
    /// 64 GiB, the largest sector: no piece is larger. It bounds every size that is read.
    pub const MAX: Self = Self { height: Self::MAX_HEIGHT };
    /// The height of the largest tree.
    pub const MAX_HEIGHT: u8 = 31;

    /// The smallest piece that a payload of `payload_bytes` fits in. `None` where that is more than [`Self::MAX`].
    pub fn of_payload(payload_bytes: u64) -> Option<Self> {
        if payload_bytes > Self::MAX.unpadded_bytes() {
            return None;
        }
        let padded = payload_bytes.div_ceil(GROUP) * PADDED_GROUP;
        Self::from_bytes(padded.next_power_of_two().max(PADDED_GROUP))
    }

    /// From padded bytes: a power of two from 128 bytes to 64 GiB.
    pub fn from_bytes(padded_bytes: u64) -> Option<Self> {
        let is_size = padded_bytes.is_power_of_two() && padded_bytes >= PADDED_GROUP;
        let size = Self { height: u8::try_from(padded_bytes.checked_ilog2()?).ok()?.checked_sub(5)? };
        (is_size && size <= Self::MAX).then_some(size)
    }

    /// From the height of the tree: 2 to 31.
    pub fn from_height(height: u8) -> Option<Self> {
        let size = Self { height };
        (Self::MIN..=Self::MAX).contains(&size).then_some(size)
    }

    /// The height of the tree: a leaf is at 0.
    pub fn height(self) -> u8 {
        self.height
    }

    /// Padded bytes.
    pub fn bytes(self) -> u64 {
        NODE << self.height
    }

    /// Entries of the data segment index at the end of an aggregate of this size (FRC-0058).
    pub fn index_entries(self) -> u64 {
        // Both are powers of two, so the quotient is one or 0.
        (self.bytes() / (2048 * Self::INDEX_ENTRY_BYTES)).max(4)
    }

    /// Bytes of the whole index, padded.
    pub fn index_bytes(self) -> u64 {
        self.index_entries() * Self::INDEX_ENTRY_BYTES
    }

    const INDEX_ENTRY_BYTES: u64 = 64;

    /// Bytes of payload that fill it: 127 for each 128.
    pub fn unpadded_bytes(self) -> u64 {
        self.bytes() / PADDED_GROUP * GROUP
    }
}

impl fmt::Display for PaddedSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} padded bytes", self.bytes())
    }
}

/// As its number of padded bytes.
impl Serialize for PaddedSize {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_u64(self.bytes())
    }
}

impl<'de> Deserialize<'de> for PaddedSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = u64::deserialize(d)?;
        Self::from_bytes(bytes)
            .ok_or_else(|| serde::de::Error::custom(format!("no piece has {bytes} padded bytes")))
    }
}

/// Why a CID, a text or a size names no piece.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PieceCidError {
    /// The text is no CID.
    #[error("not a CID: {0}")]
    Malformed(String),
    /// A CID, but of no piece.
    #[error("{0} is no piece CID: v1 has codec 0xf101 and hash 0x1012, v2 codec raw and hash 0x1011")]
    NotAPiece(Cid),
    /// A commitment with one of its top two bits set: no tree gives it.
    #[error("the piece CID {0} has one of the top two bits set, which no commitment has")]
    NotFr32(Cid),
    /// A v2 digest whose padding or height cannot be.
    #[error("the piece CID {cid} cannot be: {what}")]
    Impossible {
        /// The CID.
        cid: Cid,
        /// What is wrong.
        what: &'static str,
    },
    /// A payload that is not the one a size is for.
    #[error(
        "a payload of {payload_bytes} bytes is not named by a tree of {size}: name the padding as payload, or take the smallest size it fits"
    )]
    Size {
        /// Bytes of payload.
        payload_bytes: u64,
        /// The size.
        size: PaddedSize,
    },
}

/// A piece by its commitment, CommP: the piece CID v1. It does not say how large the piece is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceCid([u8; 32]);

impl PieceCid {
    /// From the root of the tree. `None` where one of the top two bits is set: a root is cut to 254 bits.
    pub fn from_commitment(root: [u8; 32]) -> Option<Self> {
        (root[31] & 0xc0 == 0).then_some(Self(root))
    }

    /// From a CID v1 with the codec and hash of a piece.
    ///
    /// # Errors
    /// [`PieceCidError`].
    pub fn from_cid(cid: &Cid) -> Result<Self, PieceCidError> {
        let hash = cid.hash();
        let is_piece = cid.codec() == code::COMMITMENT_UNSEALED && hash.code() == code::TRUNC254_PADDED;
        let root = is_piece.then(|| hash.digest().try_into().ok()).flatten();
        Self::from_commitment(root.ok_or(PieceCidError::NotAPiece(*cid))?).ok_or(PieceCidError::NotFr32(*cid))
    }

    /// CommP, the root of the tree.
    pub fn commitment(&self) -> &[u8; 32] {
        &self.0
    }

    /// The CID v1.
    pub fn to_cid(&self) -> Cid {
        let hash = Multihash::wrap(code::TRUNC254_PADDED, &self.0).expect("32 bytes are a digest");
        Cid::new_v1(code::COMMITMENT_UNSEALED, hash)
    }
}

impl fmt::Display for PieceCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_cid().fmt(f)
    }
}

impl fmt::Debug for PieceCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PieceCid({self})")
    }
}

impl FromStr for PieceCid {
    type Err = PieceCidError;

    fn from_str(text: &str) -> Result<Self, PieceCidError> {
        Self::from_cid(&parse(text)?)
    }
}

/// A piece by commitment, size and payload: the piece CID v2 (FRC-0069).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceCidV2 {
    piece: PieceCid,
    size: PaddedSize,
    payload_bytes: u64,
}

impl PieceCidV2 {
    /// The longest digest: nine bytes of padding, the height, the root.
    const MAX_DIGEST: usize = 9 + 1 + 32;

    /// Names a payload of `payload_bytes` whose tree of `size` has this commitment. For a piece that was padded
    /// beyond the smallest size of its payload, the zeros count as payload: FRC-0069 takes no more padding than that.
    ///
    /// # Errors
    /// [`PieceCidError::Size`] where `size` is not the smallest for the payload.
    pub fn new(piece: PieceCid, size: PaddedSize, payload_bytes: u64) -> Result<Self, PieceCidError> {
        if PaddedSize::of_payload(payload_bytes) != Some(size) {
            return Err(PieceCidError::Size { payload_bytes, size });
        }
        Ok(Self { piece, size, payload_bytes })
    }

    /// From a CID v1 with codec raw and the hash of FRC-0069.
    ///
    /// # Errors
    /// [`PieceCidError`].
    pub fn from_cid(cid: &Cid) -> Result<Self, PieceCidError> {
        let hash = cid.hash();
        let is_piece = cid.codec() == crate::cid::code::RAW && hash.code() == code::PADDED_BINARY_TREE;
        let impossible = |what| PieceCidError::Impossible { cid: *cid, what };
        let (head, root) = is_piece
            .then(|| hash.digest().split_last_chunk::<32>())
            .flatten()
            .ok_or(PieceCidError::NotAPiece(*cid))?;
        let (height, varint) = head.split_last().ok_or(PieceCidError::NotAPiece(*cid))?;
        let padding = padding(varint).ok_or(impossible("its padding is no number in its shortest form"))?;
        let size = PaddedSize::from_height(*height).ok_or(impossible("its height is not 2 to 31"))?;
        let payload = size.unpadded_bytes().checked_sub(padding).ok_or(impossible("all of it is padding"))?;
        let piece = PieceCid::from_commitment(*root).ok_or(PieceCidError::NotFr32(*cid))?;
        Self::new(piece, size, payload).map_err(|_| impossible("its payload fits a smaller tree"))
    }

    /// The CID v1 in the form of FRC-0069, which its authors call the piece CID v2.
    pub fn to_cid(&self) -> Cid {
        let mut digest = Vec::with_capacity(Self::MAX_DIGEST);
        let mut padding = self.padding_bytes();
        while padding >= 0x80 {
            digest.push((padding & 0x7f) as u8 | 0x80);
            padding >>= 7;
        }
        digest.push(padding as u8);
        digest.push(self.size.height);
        digest.extend_from_slice(&self.piece.0);
        let hash = Multihash::wrap(code::PADDED_BINARY_TREE, &digest).expect("42 bytes are a digest");
        Cid::new_v1(crate::cid::code::RAW, hash)
    }

    /// The commitment, as the piece CID v1.
    pub fn piece(&self) -> PieceCid {
        self.piece
    }

    /// The size of the tree.
    pub fn size(&self) -> PaddedSize {
        self.size
    }

    /// Bytes of payload.
    pub fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    /// Zeros behind the payload, before Fr32.
    pub fn padding_bytes(&self) -> u64 {
        self.size.unpadded_bytes() - self.payload_bytes
    }
}

impl fmt::Display for PieceCidV2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_cid().fmt(f)
    }
}

impl FromStr for PieceCidV2 {
    type Err = PieceCidError;

    fn from_str(text: &str) -> Result<Self, PieceCidError> {
        Self::from_cid(&parse(text)?)
    }
}

fn parse(text: &str) -> Result<Cid, PieceCidError> {
    // Four characters a byte is the longest text form that anybody uses.
    if text.len() > 4 * crate::cid::MAX_CID_BYTES {
        return Err(PieceCidError::Malformed(format!("{} characters are too many", text.len())));
    }
    Cid::from_str(text).map_err(|e| PieceCidError::Malformed(e.to_string()))
}

/// A number as a varint in its shortest form that fills `bytes`: at most 63 bits.
fn padding(bytes: &[u8]) -> Option<u64> {
    let (last, rest) = bytes.split_last()?;
    let ends_there = rest.iter().all(|byte| byte & 0x80 != 0) && last & 0x80 == 0;
    let shortest = *last != 0 || rest.is_empty();
    if bytes.len() > 9 || !ends_there || !shortest {
        return None;
    }
    Some(bytes.iter().rev().fold(0, |n, byte| n << 7 | u64::from(byte & 0x7f)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_payload_gets_the_smallest_size_it_fits() {
        for (payload, padded) in
            [(0, 128), (1, 128), (127, 128), (128, 256), (254, 256), (255, 512), (508, 512), (509, 1024)]
        {
            assert_eq!(PaddedSize::of_payload(payload).unwrap().bytes(), padded, "{payload}");
        }
        let most = PaddedSize::MAX.unpadded_bytes();
        assert_eq!(PaddedSize::of_payload(most), Some(PaddedSize::MAX));
        for beyond in [most + 1, 1 << 63, u64::MAX] {
            assert_eq!(PaddedSize::of_payload(beyond), None, "{beyond}");
        }
    }

    #[test]
    fn sizes_are_powers_of_two_within_bounds() {
        for (bytes, ok) in [
            (0, false),
            (64, false),
            (127, false),
            (128, true),
            (129, false),
            (64 << 30, true),
            (128 << 30, false),
            (1 << 63, false),
        ] {
            assert_eq!(PaddedSize::from_bytes(bytes).is_some(), ok, "{bytes}");
        }
        for (height, ok) in [(0, false), (1, false), (2, true), (31, true), (32, false), (255, false)] {
            assert_eq!(PaddedSize::from_height(height).is_some(), ok, "{height}");
        }
    }

    #[test]
    fn cids_of_other_things_are_no_pieces() {
        for text in ["bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku", "", "baga", "QmNope"] {
            assert!(text.parse::<PieceCid>().is_err(), "{text}");
            assert!(text.parse::<PieceCidV2>().is_err(), "{text}");
        }
        // v1 is not taken for v2, nor the other way round.
        let v1 = "baga6ea4seaqdomn3tgwgrh3g532zopskstnbrd2n3sxfqbze7rxt7vqn7veigmy";
        let v2 = "bafkzcibcaabdomn3tgwgrh3g532zopskstnbrd2n3sxfqbze7rxt7vqn7veigmy";
        assert!(v1.parse::<PieceCidV2>().is_err());
        assert!(v2.parse::<PieceCid>().is_err());
        assert_eq!(v2.parse::<PieceCidV2>().unwrap().piece(), v1.parse().unwrap());
        assert_eq!(PieceCid::from_commitment([0xff; 32]), None);
    }

    fn v2(digest: &[u8]) -> Result<PieceCidV2, PieceCidError> {
        let hash = Multihash::wrap(code::PADDED_BINARY_TREE, digest).unwrap();
        PieceCidV2::from_cid(&Cid::new_v1(crate::cid::code::RAW, hash))
    }

    #[test]
    fn v2_digests_that_cannot_be_are_refused() {
        let digest = |head: &[u8]| [head, &[0; 32]].concat();
        assert!(v2(&digest(&[0, 2])).is_ok());
        assert!(v2(&digest(&[127, 2])).is_ok(), "nothing, padded to 127 bytes");
        for (what, head) in [
            ("no head", &[][..]),
            ("no padding", &[2]),
            ("more padding than bytes", &[0x80, 0x01, 2]),
            ("half of it padding", &[127, 3]),
            ("a longer form of 0", &[0x80, 0x00, 2]),
            ("a varint that does not end", &[0x80, 2]),
            ("two varints", &[0, 0, 2]),
            ("no tree", &[0, 1]),
            ("a tree beyond 64 GiB", &[0, 32]),
            ("ten bytes of varint", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 31]),
        ] {
            assert!(v2(&digest(head)).is_err(), "{what} was accepted");
        }
        assert!(v2(&[&[0, 2][..], &[0xff; 32]].concat()).is_err(), "no commitment has its top bits set");
    }

    proptest! {
        #[test]
        fn cids_come_back(root in any::<[u8; 32]>(), payload in 0..=PaddedSize::MAX.unpadded_bytes(), shift in 0..38u32) {
            let mut root = root;
            root[31] &= 0x3f;
            let payload = payload >> shift;
            let piece = PieceCid::from_commitment(root).unwrap();
            prop_assert_eq!(piece.to_string().parse::<PieceCid>(), Ok(piece));
            let size = PaddedSize::of_payload(payload).unwrap();
            let named = PieceCidV2::new(piece, size, payload).unwrap();
            prop_assert_eq!(named.to_string().parse::<PieceCidV2>(), Ok(named));
            prop_assert_eq!(named.payload_bytes() + named.padding_bytes(), size.unpadded_bytes());
        }

        /// Any digest is a value or an error, and a value is written as it was read.
        #[test]
        fn any_digest_is_no_panic(digest in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(named) = v2(&digest) {
                let cid = named.to_cid();
                prop_assert_eq!(cid.hash().digest(), &digest[..]);
            }
        }
    }
}
