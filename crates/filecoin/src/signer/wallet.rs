//! A key in the wallet of the Lotus node: what it sends is a signature only when it is the key's over our bytes.

use floe_core::clock::BoxFuture;

use super::{SignError, Signer, recover};
use crate::rpc::Lotus;
use crate::types::{Address, Signature, SignatureKind};

/// A key in the wallet of the Lotus node. Needs a token with `sign`, which may spend everything in that wallet:
/// prefer [`LocalKey`](super::LocalKey).
#[derive(Debug, Clone)]
pub struct LotusWallet {
    lotus: Lotus,
    address: Address,
}

impl LotusWallet {
    /// The key of `address` on `lotus`. `address` is a key address, f1 or f3.
    ///
    /// # Errors
    /// [`SignError`] where the node does not have it.
    pub async fn open(lotus: Lotus, address: Address) -> Result<Self, SignError> {
        let wallet = |source| SignError::Wallet { address, source };
        match (address, lotus.wallet_has(&address).await.map_err(wallet)?) {
            (Address::Secp256k1(_) | Address::Bls(_), true) => Ok(Self { lotus, address }),
            _ => Err(SignError::Key(address)),
        }
    }

    /// The key of `address`, without asking: for a node that may be away. A signature that is not the key's is refused
    /// when it comes, so nothing but time is lost where the node does not have it. `None` for an address that is none of a
    /// key.
    pub fn unasked(lotus: Lotus, address: Address) -> Option<Self> {
        matches!(address, Address::Secp256k1(_) | Address::Bls(_)).then_some(Self { lotus, address })
    }

    async fn checked(&self, bytes: &[u8]) -> Result<Signature, SignError> {
        let wallet = |source| SignError::Wallet { address: self.address, source };
        let signature = self.lotus.wallet_sign(&self.address, bytes).await.map_err(wallet)?;
        let good = match (self.address, signature.kind()) {
            (Address::Secp256k1(_), SignatureKind::Secp256k1) => {
                recover(bytes, &signature) == Some(self.address)
            }
            (Address::Bls(_), SignatureKind::Bls) => {
                self.lotus.wallet_verify(&self.address, bytes, &signature).await.map_err(wallet)?
            }
            _ => false,
        };
        if good { Ok(signature) } else { Err(SignError::NotOurs(self.address)) }
    }
}

impl Signer for LotusWallet {
    fn address(&self) -> Address {
        self.address
    }

    fn sign<'a>(&'a self, bytes: &'a [u8]) -> BoxFuture<'a, Result<Signature, SignError>> {
        Box::pin(self.checked(bytes))
    }
}
