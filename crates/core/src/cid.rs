//! Content identifiers, and which of them Floe trusts.
//!
//! A CID names bytes only as well as its hash function does. [`check`] is the one place that says which
//! functions and digest lengths count as integrity (boxo's `verifcid` rules); everything that accepts a CID
//! from outside calls it before it spends memory or a lookup on it.
//!
//! The digest bound is 128 bytes and not the library's usual 64, because identity CIDs carry up to 128 bytes
//! of data inline.

use std::str::FromStr;

use thiserror::Error;

/// A content identifier whose digest may be up to 128 bytes long.
pub type Cid = ::cid::CidGeneric<128>;
/// A multihash whose digest may be up to 128 bytes long.
pub type Multihash = ::multihash::Multihash<128>;

/// The longest CID Floe reads off a wire: 40 bytes of prefix and 128 of digest.
/// Wantlist entries are the cheapest memory of ours that a stranger can fill.
pub const MAX_CID_BYTES: usize = 168;
/// The shortest digest that is not forgeable in practice (boxo `verifcid`).
pub const MIN_DIGEST_BYTES: usize = 20;
/// The longest digest, identity included: inline data must not become a storage channel.
pub const MAX_DIGEST_BYTES: usize = 128;

/// What separates a gateway's address from a CID.
const IPFS_PATH: &str = "/ipfs/";

/// Multicodec codes that Floe names.
pub mod code {
    /// Identity: the digest is the data.
    pub const IDENTITY: u64 = 0x00;
    /// SHA-1, accepted by nobody here, named so that the refusal can name it.
    pub const SHA1: u64 = 0x11;
    /// SHA2-256, what nearly every block uses.
    pub const SHA2_256: u64 = 0x12;
    /// SHA2-512.
    pub const SHA2_512: u64 = 0x13;
    /// SHA3-512, -384, -256, -224.
    pub const SHA3: std::ops::RangeInclusive<u64> = 0x14..=0x17;
    /// Keccak-224, -256, -384, -512.
    pub const KECCAK: std::ops::RangeInclusive<u64> = 0x1a..=0x1d;
    /// BLAKE3, 32 bytes and more.
    pub const BLAKE3: u64 = 0x1e;
    /// Double SHA2-256.
    pub const DBL_SHA2_256: u64 = 0x56;
    /// BLAKE2b with 20 to 64 bytes of digest: `0xb200 + bytes`.
    pub const BLAKE2B: std::ops::RangeInclusive<u64> = 0xb214..=0xb240;
    /// BLAKE2s with 20 to 32 bytes of digest: `0xb240 + bytes`.
    pub const BLAKE2S: std::ops::RangeInclusive<u64> = 0xb254..=0xb260;

    /// Plain bytes.
    pub const RAW: u64 = 0x55;
    /// The merkle-dag protobuf of UnixFS.
    pub const DAG_PB: u64 = 0x70;
    /// CBOR with links (tag 42).
    pub const DAG_CBOR: u64 = 0x71;
    /// CBOR without links.
    pub const CBOR: u64 = 0x51;
    /// JSON with links (`{"/": "bafy…"}`).
    pub const DAG_JSON: u64 = 0x0129;
    /// JSON without links.
    pub const JSON: u64 = 0x0200;
    /// Every codec whose blocks can be walked; of some, because they have no links.
    pub const WALKED: [u64; 6] = [RAW, DAG_PB, DAG_CBOR, CBOR, DAG_JSON, JSON];
}

/// Why a CID is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CidError {
    /// The text or bytes are no CID at all.
    #[error("not a CID: {0}")]
    Malformed(String),
    /// A hash function that is no integrity check (sha1, murmur3, truncated forms) or that Floe cannot compute.
    #[error(
        "the hash function 0x{0:x} of this CID is not accepted: use sha2-256, sha2-512, sha3, keccak, blake2 or blake3"
    )]
    HashNotAllowed(u64),
    /// The digest is too short to be unforgeable, too long, or of another length than its function gives.
    #[error("the digest of this CID has {got} bytes; its hash function 0x{code:x} needs {min} to {max}")]
    DigestLength {
        /// The multihash code.
        code: u64,
        /// Bytes in this digest.
        got: usize,
        /// Fewest bytes accepted.
        min: usize,
        /// Most bytes accepted.
        max: usize,
    },
}

/// Parses the text form of a CID (v0 or v1, any multibase) and applies [`check`].
///
/// # Errors
/// [`CidError`] with words for the person who sent it.
pub fn parse(text: &str) -> Result<Cid, CidError> {
    if text.len() > 4 * MAX_CID_BYTES {
        return Err(CidError::Malformed(format!("{} characters are too many", text.len())));
    }
    // The library takes whatever stands behind `/ipfs/`, so that `https://elsewhere/ipfs/<cid>` would be a CID.
    if text.contains(IPFS_PATH) {
        return Err(CidError::Malformed("a path or URL: give the CID alone".into()));
    }
    let cid = Cid::from_str(text).map_err(|e| CidError::Malformed(e.to_string()))?;
    check(cid.hash())?;
    Ok(cid)
}

/// Parses the binary form of a CID that fills `bytes` exactly, and applies [`check`].
///
/// # Errors
/// [`CidError`]; also when bytes are left over.
pub fn parse_bytes(bytes: &[u8]) -> Result<Cid, CidError> {
    if bytes.len() > MAX_CID_BYTES {
        return Err(CidError::Malformed(format!("{} bytes are too many", bytes.len())));
    }
    let cid = Cid::try_from(bytes).map_err(|e| CidError::Malformed(e.to_string()))?;
    if cid.encoded_len() != bytes.len() {
        return Err(CidError::Malformed("bytes are left over behind the CID".into()));
    }
    check(cid.hash())?;
    Ok(cid)
}

/// The digest lengths that `hash_code` may have, or `None` where the function is not accepted.
fn allowed_lengths(hash_code: u64) -> Option<(usize, usize)> {
    let exact = |n: usize| Some((n, n));
    match hash_code {
        code::IDENTITY => Some((0, MAX_DIGEST_BYTES)),
        // A truncated SHA2 digest is still the function's; below 20 bytes it is forgeable.
        code::SHA2_256 | code::DBL_SHA2_256 => Some((MIN_DIGEST_BYTES, 32)),
        code::SHA2_512 => Some((MIN_DIGEST_BYTES, 64)),
        0x14 | 0x1d => exact(64),
        0x15 | 0x1c => exact(48),
        0x16 | 0x1b => exact(32),
        0x17 | 0x1a => exact(28),
        code::BLAKE3 => Some((MIN_DIGEST_BYTES, MAX_DIGEST_BYTES)),
        c if code::BLAKE2B.contains(&c) => exact((c - 0xb200) as usize),
        c if code::BLAKE2S.contains(&c) => exact((c - 0xb240) as usize),
        _ => None,
    }
}

/// Refuses hash functions and digest lengths that do not prove integrity (threat T18).
///
/// # Errors
/// [`CidError::HashNotAllowed`] or [`CidError::DigestLength`].
pub fn check(hash: &Multihash) -> Result<(), CidError> {
    let (min, max) = allowed_lengths(hash.code()).ok_or(CidError::HashNotAllowed(hash.code()))?;
    let got = hash.digest().len();
    if got < min || got > max {
        return Err(CidError::DigestLength { code: hash.code(), got, min, max });
    }
    Ok(())
}

/// Whether the CID carries its data inline: such a block is never fetched, stored or served.
pub fn is_identity(cid: &Cid) -> bool {
    cid.hash().code() == code::IDENTITY
}

/// The CID v1 that names the same block: its codec and multihash, with v0 lifted to v1.
/// Two CIDs that agree here are one root.
pub fn canonical(cid: &Cid) -> Cid {
    Cid::new_v1(cid.codec(), *cid.hash())
}
