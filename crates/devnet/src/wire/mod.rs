//! The bytes of Filecoin, written a second time: nothing here is shared with the client that the devnet judges.
//!
//! ```text
//!  cbor      one item, strictly canonical        address   f0 f1 f2 f3 f410, bytes and text
//!  key       secp256k1: sign, recover, verify    message   chain messages, their CIDs and JSON
//!  deal      mk12: proposals, params, status     commp     CommP, plain and slow
//!  rle       the bit fields of answers
//! ```
//!
//! Decoders refuse what cbor-gen's refuse (integers that are not minimal, indefinite lengths, bytes left over) but
//! take map keys in any order and skip the keys they do not know. All are total: no input panics.

pub(crate) mod address;
pub(crate) mod cbor;
pub(crate) mod commp;
pub(crate) mod deal;
pub(crate) mod key;
pub(crate) mod message;
pub(crate) mod rle;

use thiserror::Error;

/// Room for the identity CIDs that real clients send as labels and data roots: 112 bytes were recorded.
const DIGEST_BYTES: usize = 128;

/// A CID of any field.
pub(crate) type Cid = cid::CidGeneric<DIGEST_BYTES>;
/// Its hash.
pub(crate) type Multihash = cid::multihash::Multihash<DIGEST_BYTES>;

/// Why bytes or text are not what they should be. The text names the field.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

/// Shorthand for [`Malformed`].
pub(crate) fn malformed<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

/// dag-cbor.
const DAG_CBOR: u64 = 0x71;
/// blake2b with 32 bytes.
const BLAKE2B_256: u64 = 0xb220;

/// blake2b with 32 bytes: what is signed, and what chain objects are named by.
pub(crate) fn blake2b_256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(blake2b_simd::Params::new().hash_length(32).hash(bytes).as_bytes());
    out
}

/// The CID of a chain object: dag-cbor, blake2b-256.
pub(crate) fn chain_cid(bytes: &[u8]) -> Cid {
    let digest = blake2b_256(bytes);
    // 32 bytes always fit in 64.
    Cid::new_v1(DAG_CBOR, Multihash::wrap(BLAKE2B_256, &digest).unwrap_or_default())
}
