//! The forms in which keys travel: how Lotus writes them, and ours, which is always sealed.

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use floe_core::ports::Entropy;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{KeyFileError, LocalKey, key_file};
use crate::limits::MAX_KEY_FILE_BYTES;
use crate::secret::Secret;

/// Why a text is no key. Never holds the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// Another form.
    #[error("this is no key as `lotus wallet export` writes it: hex of JSON with Type and PrivateKey")]
    Malformed,
    /// A key of another kind.
    #[error(
        "a key of type {0}: only secp256k1 keys are kept in a file; leave it in the wallet of the node and set \
         filecoin.wallet to its address"
    )]
    Kind(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Exported {
    #[serde(rename = "Type")]
    kind: String,
    private_key: String,
}

impl Drop for Exported {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.private_key);
    }
}

/// The key in what `lotus wallet export` wrote: hex of `{"Type":"secp256k1","PrivateKey":base64}`.
///
/// # Errors
/// [`NoKey`].
pub fn from_lotus(text: &Secret) -> Result<LocalKey, NoKey> {
    let text = text.expose().trim();
    if text.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(NoKey::Malformed);
    }
    let json = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).map(Zeroizing::new);
    let json = json.map_err(|_| NoKey::Malformed)?;
    // The library's error may hold a piece of what it read.
    let exported: Exported = serde_json::from_slice(&json).map_err(|_| NoKey::Malformed)?;
    if exported.kind != "secp256k1" {
        return Err(NoKey::Kind(
            exported.kind.chars().filter(|c| c.is_ascii_alphanumeric()).take(16).collect(),
        ));
    }
    let secret = BASE64.decode(exported.private_key.as_bytes()).map(Zeroizing::new);
    let secret = secret.map_err(|_| NoKey::Malformed)?;
    let secret: &[u8; 32] = secret.as_slice().try_into().map_err(|_| NoKey::Malformed)?;
    LocalKey::from_bytes(secret).ok_or(NoKey::Malformed)
}

/// The key as a key file under `passphrase`, to be kept elsewhere. Blocks on the passphrase.
///
/// # Errors
/// [`KeyFileError`] where it cannot be sealed.
pub fn sealed(key: &LocalKey, passphrase: &Secret, entropy: &dyn Entropy) -> Result<String, KeyFileError> {
    key_file::text(key, Some(passphrase), entropy, std::path::Path::new("the export"))
        .map(|text| text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::Signer as _;
    use floe_core::Seeded;

    fn export(kind: &str, secret: &[u8]) -> Secret {
        let json = format!("{{\"Type\":\"{kind}\",\"PrivateKey\":\"{}\"}}", BASE64.encode(secret));
        Secret::new(&HEXLOWER_PERMISSIVE.encode(json.as_bytes()), "test").unwrap()
    }

    #[test]
    fn what_lotus_exports_is_read_and_nothing_else() {
        let key = from_lotus(&export("secp256k1", &[0x11; 32])).unwrap();
        assert_eq!(key.address().to_string(), "f1ghrejg5rcic6csaduor6ak4wcgj7ikrrxxo72my");
        assert!(matches!(from_lotus(&export("bls", &[0x11; 32])), Err(NoKey::Kind(kind)) if kind == "bls"));
        let short = export("secp256k1", &[0x11; 31]);
        for bad in [short.expose(), "zz", "7b7d", &"ab".repeat(3_000)] {
            let error = from_lotus(&Secret::new(bad, "test").unwrap()).unwrap_err();
            assert!(!error.to_string().contains(bad), "{error}");
        }
    }

    #[test]
    fn an_export_opens_with_its_passphrase_alone() {
        let dir = tempfile::tempdir().unwrap();
        let key = LocalKey::from_bytes(&[0x11; 32]).unwrap();
        let passphrase = Secret::new("correct", "test").unwrap();
        let text = sealed(&key, &passphrase, &Seeded::new(1)).unwrap();
        assert!(!text.contains(&BASE64.encode(&*key.to_bytes())));
        let path = dir.path().join("key");
        std::fs::write(&path, &text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(crate::signer::load(&path, Some(&passphrase)).unwrap().address(), key.address());
        assert!(crate::signer::load(&path, None).is_err());
    }
}
