//! Keys, and what signs with them.
//!
//! A secp256k1 signature is over BLAKE2b-256 of what is signed, and deterministic (RFC 6979): the same bytes give the same
//! signature. What is signed of a message is its CID, of a proposal its CBOR. [`recover`] says whose a signature is,
//! for those that come from elsewhere.

mod local;

use floe_core::clock::BoxFuture;

use crate::types::{Address, Signature};

pub use local::{LocalKey, recover};

/// Why there is no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
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
