//! A secp256k1 key in this process.

use std::fmt;

use floe_core::clock::BoxFuture;
use k256::ecdsa::{RecoveryId, Signature as Ecdsa, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::{SignError, Signer};
use crate::types::address::blake2b;
use crate::types::{Address, Signature, SignatureKind};

/// Bytes of r and s.
const RS: usize = 64;

/// A secret key. Never printed; wiped when dropped.
pub struct LocalKey {
    key: SigningKey,
    address: Address,
}

impl LocalKey {
    /// From 32 bytes; `None` for the few values that are no key.
    pub fn from_bytes(secret: &[u8; 32]) -> Option<Self> {
        let key = SigningKey::from_slice(secret).ok()?;
        let address = address_of(key.verifying_key())?;
        Some(Self { key, address })
    }

    /// The secret itself, for the one place that writes it down.
    pub(super) fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.key.to_bytes().into())
    }

    fn sign_now(&self, bytes: &[u8]) -> Option<Signature> {
        let digest = blake2b::<32>(&[bytes]);
        let (signature, recovery) = self.key.sign_prehash_recoverable(&digest);
        let mut data = signature.to_bytes().to_vec();
        data.push(recovery.to_byte());
        Signature::new(SignatureKind::Secp256k1, data)
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalKey({})", self.address)
    }
}

impl Signer for LocalKey {
    fn address(&self) -> Address {
        self.address
    }

    fn sign<'a>(&'a self, bytes: &'a [u8]) -> BoxFuture<'a, Result<Signature, SignError>> {
        let signature = self.sign_now(bytes).ok_or(SignError::Key(self.address));
        Box::pin(std::future::ready(signature))
    }
}

fn address_of(key: &VerifyingKey) -> Option<Address> {
    let point = key.to_sec1_point(false);
    point.as_bytes().try_into().ok().map(Address::of_secp256k1)
}

/// Whose signature over `bytes` this is; `None` where it is not a secp256k1 one, or nobody's.
pub fn recover(bytes: &[u8], signature: &Signature) -> Option<Address> {
    let is_ours = signature.kind() == SignatureKind::Secp256k1;
    let (rs, v) = signature.data().split_at_checked(RS).filter(|_| is_ours)?;
    let recovery = RecoveryId::from_byte(*v.first()?)?;
    let ecdsa = Ecdsa::from_slice(rs).ok()?;
    let digest = blake2b::<32>(&[bytes]);
    address_of(&VerifyingKey::recover_from_prehash(&digest, &ecdsa, recovery).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_what_is_past_the_order_are_no_keys() {
        assert!(LocalKey::from_bytes(&[0; 32]).is_none());
        assert!(LocalKey::from_bytes(&[0xff; 32]).is_none());
        let key = LocalKey::from_bytes(&[0x11; 32]).unwrap();
        assert_eq!(format!("{key:?}"), "LocalKey(f1ghrejg5rcic6csaduor6ak4wcgj7ikrrxxo72my)");
    }

    #[test]
    fn a_signature_names_its_key_and_its_bytes() {
        let key = LocalKey::from_bytes(&[7; 32]).unwrap();
        let signature = key.sign_now(b"one").unwrap();
        assert_eq!(recover(b"one", &signature), Some(key.address));
        assert_ne!(recover(b"two", &signature), Some(key.address));
        assert_eq!(key.sign_now(b"one").unwrap(), signature, "the same bytes give the same signature");
        let mut data = signature.data().to_vec();
        data[64] = 7;
        assert_eq!(recover(b"one", &Signature::new(SignatureKind::Secp256k1, data).unwrap()), None);
        assert_eq!(recover(b"one", &Signature::new(SignatureKind::Bls, vec![1; 96]).unwrap()), None);
    }
}
