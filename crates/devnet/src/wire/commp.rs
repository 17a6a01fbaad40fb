//! CommP, written from the specification, for checking and not for speed: the bits are moved one by one, and the
//! whole tree is in memory.
//!
//! A payload is cut into groups of 127 bytes. A group is 1016 bits, least significant first; each 254 of them become
//! 32 bytes whose two top bits are zero. Those are the leaves of a binary tree of sha256 with the two top bits of
//! each node cleared, filled up with zeros to a power of two.

use crate::wire::Cid;
use crate::wire::Multihash;
use sha2::{Digest, Sha256};

use super::{Malformed, malformed};

/// fil-commitment-unsealed.
const CODEC: u64 = 0xf101;
/// sha2-256-trunc254-padded.
const HASH: u64 = 0x1012;
/// The hash of a piece CID of version 2 (FRC-0069).
const HASH_V2: u64 = 0x1011;

/// Bits in a field element, of the 256 of its 32 bytes.
const ELEMENT_BITS: usize = 254;

/// The padded size of a payload: 128 bytes for each 127, filled up to a power of two, at least 128.
pub(crate) fn padded_size(payload: u64) -> u64 {
    payload.div_ceil(127).max(1).saturating_mul(128).next_power_of_two()
}

/// The root of a payload in a piece of `padded` bytes (a power of two, at least [`padded_size`] of the payload).
pub(crate) fn root(payload: &[u8], padded: u64) -> [u8; 32] {
    let mut level: Vec<[u8; 32]> = payload.chunks(127).flat_map(elements).collect();
    if level.is_empty() {
        level.push([0; 32]);
    }
    let mut zero = [0; 32];
    let mut width = padded / 32;
    while width > 1 {
        level = level.chunks(2).map(|pair| parent(&pair[0], pair.get(1).unwrap_or(&zero))).collect();
        zero = parent(&zero, &zero);
        width /= 2;
    }
    level[0]
}

fn elements(group: &[u8]) -> [[u8; 32]; 4] {
    let bit = |at: usize| group.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
    let mut out = [[0; 32]; 4];
    for (n, element) in out.iter_mut().enumerate() {
        for at in (0..ELEMENT_BITS).filter(|at| bit(n * ELEMENT_BITS + at)) {
            element[at / 8] |= 1 << (at % 8);
        }
    }
    out
}

fn parent(left: &[u8; 32], right: &[u8; 32]) -> [u8; 32] {
    let mut node: [u8; 32] = Sha256::new().chain_update(left).chain_update(right).finalize().into();
    node[31] &= 0x3f;
    node
}

/// The piece CID (version 1) of a root.
pub(crate) fn piece_cid(root: &[u8; 32]) -> Cid {
    Cid::new_v1(CODEC, Multihash::wrap(HASH, root).unwrap_or_default())
}

/// The root of a piece CID of version 1, as `None` where it has another form.
pub(crate) fn root_of(cid: &Cid) -> Option<[u8; 32]> {
    let right = cid.version() == ::cid::Version::V1 && cid.codec() == CODEC && cid.hash().code() == HASH;
    right.then(|| cid.hash().digest().try_into().ok()).flatten()
}

/// The piece CID of version 1 in what a request names: version 1 itself, or version 2 with its padding and height.
pub(crate) fn any_version(text: &str) -> Result<Cid, Malformed> {
    let cid: Cid = text.parse().map_err(|error| Malformed(format!("{error}")))?;
    if root_of(&cid).is_some() {
        return Ok(cid);
    }
    match cid.hash().digest().split_last_chunk::<32>() {
        Some((head, root)) if cid.codec() == 0x55 && cid.hash().code() == HASH_V2 && head.len() >= 2 => {
            Ok(piece_cid(root))
        }
        _ => malformed("no piece CID"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(csv: &str, payload: impl Fn(usize) -> Vec<u8>, most: usize) -> usize {
        let mut seen = 0;
        for line in csv.lines() {
            let fields: Vec<&str> = line.split(',').collect();
            let (size, padded): (usize, u64) = (fields[0].parse().unwrap(), fields[1].parse().unwrap());
            if size > most {
                continue;
            }
            assert_eq!(padded_size(size as u64), padded, "{line}");
            assert_eq!(piece_cid(&root(&payload(size), padded)).to_string(), fields[2], "{line}");
            seen += 1;
        }
        seen
    }

    /// The generator that the vectors were made with: x[n] = x[n-607] + x[n-273].
    fn random(bytes: usize) -> Vec<u8> {
        let mut x: Vec<u64> = include_str!("../../../piece/tests/vectors/commp/random_stream_first607.txt")
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        let words = bytes.div_ceil(4);
        for n in x.len()..words {
            x.push((x[n - 607].wrapping_add(x[n - 273])) & (u64::MAX >> 1));
        }
        let mut out: Vec<u8> = x.iter().flat_map(|x| ((x >> 31) as u32).to_le_bytes()).collect();
        out.truncate(bytes);
        out
    }

    #[test]
    fn published_roots() {
        let most = 256 << 10;
        assert!(
            check(include_str!("../../../piece/tests/vectors/commp/zero.csv"), |n| vec![0; n], most) >= 9
        );
        assert!(
            check(include_str!("../../../piece/tests/vectors/commp/0xCC.csv"), |n| vec![0xcc; n], most) >= 9
        );
        assert!(check(include_str!("../../../piece/tests/vectors/commp/random.csv"), random, most) >= 30);
    }

    #[test]
    fn a_larger_piece_is_filled_with_zeros() {
        let small = root(&[7; 127], 128);
        let zero = root(&[], 128);
        assert_eq!(root(&[7; 127], 256), parent(&small, &zero));
    }

    #[test]
    fn both_versions_name_the_same_piece() {
        let v1 = piece_cid(&root(&[1; 100], 128));
        let digest = [&[27, 2][..], &root(&[1; 100], 128)].concat();
        let v2 = Cid::new_v1(0x55, Multihash::wrap(HASH_V2, &digest).unwrap());
        assert_eq!(any_version(&v1.to_string()).unwrap(), v1);
        assert_eq!(any_version(&v2.to_string()).unwrap(), v1);
        assert!(any_version("bafy").is_err());
    }
}
