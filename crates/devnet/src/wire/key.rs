//! secp256k1 keys: the only kind that the devnet signs with and checks. BLS addresses are read and printed, their
//! signatures are refused (a C library for one kind of test is not worth its build).

use k256::ecdsa::{RecoveryId, Signature as Ecdsa, SigningKey, VerifyingKey};
use sha3::{Digest, Keccak256};

use super::address::Address;
use super::cbor::Cbor;
use super::{Malformed, blake2b_256, malformed};

/// A signature: type 1 is secp256k1, 2 BLS, 3 delegated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    pub(crate) kind: u8,
    pub(crate) data: Vec<u8>,
}

impl Signature {
    /// A byte string: type byte and data.
    pub(crate) fn to_cbor(&self) -> Cbor {
        Cbor::Bytes([&[self.kind][..], &self.data].concat())
    }

    pub(crate) fn from_cbor(item: &Cbor) -> Result<Self, Malformed> {
        match item.as_bytes("Signature")?.split_first() {
            Some((kind @ 1..=3, data)) if data.len() <= 200 => Ok(Self { kind: *kind, data: data.to_vec() }),
            Some((kind, _)) => malformed(format!("invalid signature type in cbor input: {kind}")),
            None => malformed("empty signature in cbor input"),
        }
    }

    /// Checks that the key behind `address` signed `bytes`. Errors are worded as Lotus words them.
    pub(crate) fn verify(&self, address: Address, bytes: &[u8]) -> Result<(), Malformed> {
        if self.kind != 1 {
            return malformed(format!(
                "the devnet checks secp256k1 only, not signatures of type {}",
                self.kind
            ));
        }
        if !matches!(address, Address::Secp(_)) {
            return malformed("signature did not match");
        }
        match recover(&self.data, &blake2b_256(bytes)) {
            Some(key) if secp_address(&key) == address => Ok(()),
            _ => malformed("signature did not match"),
        }
    }
}

fn recover(data: &[u8], digest: &[u8; 32]) -> Option<VerifyingKey> {
    let (v, rs) = data.split_last()?;
    let signature = Ecdsa::from_slice(rs).ok()?;
    // f05 and Lotus take only the low half of s: the other half is a second signature of the same bytes.
    if signature.normalize_s() != signature || *v > 3 {
        return None;
    }
    VerifyingKey::recover_from_prehash(digest, &signature, RecoveryId::from_byte(*v)?).ok()
}

/// The uncompressed point.
fn point(key: &VerifyingKey) -> Vec<u8> {
    key.to_sec1_point(false).as_bytes().to_vec()
}

fn secp_address(key: &VerifyingKey) -> Address {
    let mut hash = [0; 20];
    hash.copy_from_slice(blake2b_simd::Params::new().hash_length(20).hash(&point(key)).as_bytes());
    Address::Secp(hash)
}

/// What kind of address a key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Secp,
    Delegated,
}

/// A private key of the devnet's own: made from a seed, worth nothing anywhere.
#[derive(Clone)]
pub(crate) struct Key {
    secret: SigningKey,
    kind: Kind,
}

impl Key {
    /// The key of a seed: its hash, and hashed again in the case (2^-128) that this is no key.
    pub(crate) fn from_seed(seed: &[u8], kind: Kind) -> Self {
        let mut bytes = blake2b_256(seed);
        loop {
            if let Ok(secret) = SigningKey::from_slice(&bytes) {
                return Self { secret, kind };
            }
            bytes = blake2b_256(&bytes);
        }
    }

    /// The key of these 32 bytes.
    #[cfg(test)]
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self { secret: SigningKey::from_slice(bytes).ok()?, kind: Kind::Secp })
    }

    /// The 32 secret bytes, for the line that the devnet prints.
    pub(crate) fn secret_bytes(&self) -> [u8; 32] {
        self.secret.to_bytes().into()
    }

    pub(crate) fn address(&self) -> Address {
        let key = self.secret.verifying_key();
        match self.kind {
            Kind::Secp => secp_address(key),
            Kind::Delegated => {
                let hash = Keccak256::digest(&point(key)[1..]);
                let mut payload = [0; 20];
                payload.copy_from_slice(&hash[12..]);
                Address::Eth(payload)
            }
        }
    }

    /// Signs the blake2b-256 of `bytes`: r, s, v.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Signature, Malformed> {
        let (signature, v) = self.secret.sign_prehash_recoverable(&blake2b_256(bytes));
        Ok(Signature { kind: 1, data: [&signature.to_bytes()[..], &[v.to_byte()]].concat() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_checked() {
        let key = Key::from_seed(b"a", Kind::Secp);
        let signed = key.sign(b"hello").unwrap();
        assert_eq!(signed.verify(key.address(), b"hello"), Ok(()));
        assert!(signed.verify(key.address(), b"hallo").is_err());
        assert!(signed.verify(Key::from_seed(b"b", Kind::Secp).address(), b"hello").is_err());
        for broken in [vec![], vec![0; 65], vec![1; 64], [&signed.data[..64], &[9]].concat()] {
            assert!(Signature { kind: 1, data: broken }.verify(key.address(), b"hello").is_err());
        }
        assert_eq!(Signature::from_cbor(&signed.to_cbor()).unwrap(), signed);
    }
}
