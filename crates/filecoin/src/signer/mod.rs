//! Keys, and what signs with them: a key in a file of ours, or the wallet of the Lotus node.
//!
//! A secp256k1 signature is over BLAKE2b-256 of what is signed, and deterministic (RFC 6979): the same bytes give the same
//! signature. What is signed of a message is its CID, of a proposal its CBOR. A signature that comes from the node is
//! checked before it is used where that can be done here, that is for secp256k1; for BLS the node is asked.

mod export;
mod key_file;
mod local;
mod wallet;

use floe_core::clock::BoxFuture;

use crate::rpc::RpcError;
use crate::types::{Address, Signature};

pub use export::{NoKey, from_lotus, sealed};
pub use key_file::{KeyFileError, create, import, load};
pub use local::{LocalKey, recover};
pub use wallet::LotusWallet;

/// Why there is no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The node does not sign.
    #[error("the Lotus wallet does not sign for {address}: {source}")]
    Wallet {
        /// For whom.
        address: Address,
        /// Why.
        source: RpcError,
    },
    /// The node sent a signature that is not one.
    #[error("the Lotus wallet sent a signature for {0} that is not that key's")]
    NotOurs(Address),
    /// The key itself refuses; not to be expected.
    #[error("the key of {0} cannot sign")]
    Key(Address),
}

/// Signs for one address.
pub trait Signer: Send + Sync + 'static {
    /// A key address: what stands in `From` and `Client`.
    fn address(&self) -> Address;

    /// Signs `bytes`. Dropping the future is safe: a signature that nobody sees does nothing.
    ///
    /// # Errors
    /// [`SignError`].
    fn sign<'a>(&'a self, bytes: &'a [u8]) -> BoxFuture<'a, Result<Signature, SignError>>;
}
