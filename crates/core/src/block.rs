//! A block: bytes that were checked against their CID.
//!
//! The only constructors check (or, for [`Block::of`], compute) the hash, so a `Block` in hand is the proof
//! that nothing corrupt is stored or served. Hashing is CPU work of about half a millisecond per MiB: do it
//! off the tasks that drive the network.

use bytes::Bytes;
use thiserror::Error;

use crate::cid::{self, Cid, CidError, Multihash, code};

/// The largest block that is stored, served or accepted: 2 MiB, the interoperable maximum.
pub const MAX_BLOCK_BYTES: usize = 2 << 20;

/// Bytes, and the CID that they are proved to match.
#[derive(Clone, PartialEq, Eq)]
pub struct Block {
    cid: Cid,
    data: Bytes,
}

/// Why bytes are not the block a CID names.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlockError {
    /// The CID itself is not accepted.
    #[error(transparent)]
    Cid(#[from] CidError),
    /// The bytes hash to something else.
    #[error("the bytes do not match the hash of {0}")]
    Mismatch(Cid),
    /// More than [`MAX_BLOCK_BYTES`].
    #[error("the block {cid} has {len} bytes; the most is {MAX_BLOCK_BYTES}")]
    TooLarge {
        /// The CID the bytes came with.
        cid: Cid,
        /// How many bytes came.
        len: usize,
    },
}

impl Block {
    /// Checks `data` against `cid`.
    ///
    /// # Errors
    /// [`BlockError`]; the bytes are dropped.
    pub fn new(cid: Cid, data: Bytes) -> Result<Self, BlockError> {
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge { cid, len: data.len() });
        }
        cid::check(cid.hash())?;
        if !matches(cid.hash(), &data) {
            return Err(BlockError::Mismatch(cid));
        }
        Ok(Self { cid, data })
    }

    /// Computes the CID v1 of `data` with `codec` and SHA2-256.
    ///
    /// # Errors
    /// [`BlockError::TooLarge`].
    pub fn of(codec: u64, data: Bytes) -> Result<Self, BlockError> {
        let hash = digest(code::SHA2_256, &data).expect("SHA2-256 is a hash function we compute");
        let cid = Cid::new_v1(codec, hash);
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge { cid, len: data.len() });
        }
        Ok(Self { cid, data })
    }

    /// Computes the CID v1 of `data` from what a bitswap payload's prefix says: codec, hash function and
    /// digest length. Wire formats that leave the digest out need this, so that each block is hashed once.
    ///
    /// # Errors
    /// [`BlockError`]: a hash function or digest length that is not accepted, or too many bytes.
    pub fn hashed(
        codec: u64,
        hash_code: u64,
        digest_bytes_wanted: usize,
        data: Bytes,
    ) -> Result<Self, BlockError> {
        let full = digest_bytes(hash_code, &data, digest_bytes_wanted.min(cid::MAX_DIGEST_BYTES))
            .ok_or(CidError::HashNotAllowed(hash_code))?;
        let digest = full.get(..digest_bytes_wanted).ok_or(CidError::DigestLength {
            code: hash_code,
            got: digest_bytes_wanted,
            min: cid::MIN_DIGEST_BYTES,
            max: full.len().min(cid::MAX_DIGEST_BYTES),
        })?;
        let hash = Multihash::wrap(hash_code, digest).map_err(|_| CidError::HashNotAllowed(hash_code))?;
        cid::check(&hash)?;
        let cid = Cid::new_v1(codec, hash);
        if data.len() > MAX_BLOCK_BYTES {
            return Err(BlockError::TooLarge { cid, len: data.len() });
        }
        Ok(Self { cid, data })
    }

    /// The same bytes under another CID of the same multihash (v0 for v1, another codec): the proof is about
    /// the hash alone. `None` where the multihash differs.
    pub fn relabelled(self, cid: Cid) -> Option<Self> {
        (self.cid.hash() == cid.hash()).then_some(Self { cid, data: self.data })
    }

    /// The block that an identity CID carries inline, or `None` for any other CID.
    pub fn inline(cid: &Cid) -> Option<Self> {
        (cid::is_identity(cid) && cid::check(cid.hash()).is_ok())
            .then(|| Self { cid: *cid, data: Bytes::copy_from_slice(cid.hash().digest()) })
    }

    /// The CID it was checked against.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// The bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The bytes, without the CID.
    pub fn into_data(self) -> Bytes {
        self.data
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block({}, {} bytes)", self.cid, self.data.len())
    }
}

fn matches(hash: &Multihash, data: &[u8]) -> bool {
    if hash.code() == code::IDENTITY {
        return hash.digest() == data;
    }
    // A truncated SHA2 or BLAKE3 digest is a prefix of the full one; `cid::check` has bounded its length.
    digest_bytes(hash.code(), data, hash.digest().len()).is_some_and(|full| {
        full.len() >= hash.digest().len() && full[..hash.digest().len()] == *hash.digest()
    })
}

/// The full-length multihash of `data` under `hash_code`, or `None` for a function that is not accepted.
pub fn digest(hash_code: u64, data: &[u8]) -> Option<Multihash> {
    let bytes = digest_bytes(hash_code, data, 32)?;
    Multihash::wrap(hash_code, &bytes).ok()
}

fn digest_bytes(hash_code: u64, data: &[u8], wanted: usize) -> Option<Vec<u8>> {
    use sha2::Digest as _;
    Some(match hash_code {
        code::IDENTITY => data.to_vec(),
        code::SHA2_256 => sha2::Sha256::digest(data).to_vec(),
        code::SHA2_512 => sha2::Sha512::digest(data).to_vec(),
        code::DBL_SHA2_256 => sha2::Sha256::digest(sha2::Sha256::digest(data)).to_vec(),
        0x14 => sha3::Sha3_512::digest(data).to_vec(),
        0x15 => sha3::Sha3_384::digest(data).to_vec(),
        0x16 => sha3::Sha3_256::digest(data).to_vec(),
        0x17 => sha3::Sha3_224::digest(data).to_vec(),
        0x1a => sha3::Keccak224::digest(data).to_vec(),
        0x1b => sha3::Keccak256::digest(data).to_vec(),
        0x1c => sha3::Keccak384::digest(data).to_vec(),
        0x1d => sha3::Keccak512::digest(data).to_vec(),
        code::BLAKE3 => {
            let mut out = vec![0; wanted];
            blake3::Hasher::new().update(data).finalize_xof().fill(&mut out);
            out
        }
        // BLAKE2's digest length is a parameter of the function, not a truncation.
        c if code::BLAKE2B.contains(&c) => {
            blake2b_simd::Params::new().hash_length((c - 0xb200) as usize).hash(data).as_bytes().to_vec()
        }
        c if code::BLAKE2S.contains(&c) => {
            blake2s_simd::Params::new().hash_length((c - 0xb240) as usize).hash(data).as_bytes().to_vec()
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Block, MAX_BLOCK_BYTES, code};
    use crate::{BlockError, Cid, CidError};

    #[test]
    fn a_prefix_and_bytes_make_the_block_that_checking_accepts() {
        let data = Bytes::from_static(b"floe");
        for (hash, len) in [
            (code::SHA2_256, 32),
            (code::SHA2_256, 20),
            (code::SHA2_512, 64),
            (code::BLAKE3, 48),
            (0xb220, 32),
        ] {
            let block = Block::hashed(code::RAW, hash, len, data.clone()).unwrap();
            assert_eq!(Block::new(*block.cid(), data.clone()), Ok(block));
        }
    }

    #[test]
    fn t18_a_prefix_with_a_weak_hash_is_refused() {
        let data = Bytes::from_static(b"floe");
        let made = |hash, len| Block::hashed(code::RAW, hash, len, data.clone());
        assert_eq!(made(code::SHA1, 20), Err(BlockError::Cid(CidError::HashNotAllowed(code::SHA1))));
        for len in [0, 19, 33, usize::MAX] {
            assert!(
                matches!(made(code::SHA2_256, len), Err(BlockError::Cid(CidError::DigestLength { .. }))),
                "{len}"
            );
        }
        let large = Bytes::from(vec![0; MAX_BLOCK_BYTES + 1]);
        assert!(matches!(
            Block::hashed(code::RAW, code::SHA2_256, 32, large),
            Err(BlockError::TooLarge { .. })
        ));
    }

    #[test]
    fn relabelling_keeps_the_multihash() {
        let block = Block::of(code::DAG_PB, Bytes::from_static(b"x")).unwrap();
        let v0 = Cid::new_v0(*block.cid().hash()).unwrap();
        assert_eq!(block.clone().relabelled(v0).unwrap().cid(), &v0);
        let other = Block::of(code::RAW, Bytes::from_static(b"y")).unwrap();
        assert_eq!(block.relabelled(*other.cid()), None);
    }
}
