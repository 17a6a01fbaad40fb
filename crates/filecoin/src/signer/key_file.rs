//! A key in a file: JSON, mode 0600, sealed where there is a passphrase.
//!
//! ```text
//! { "format": "floe-key-1", "address": "f1…",
//!   "secret": base64 }                                                    without a passphrase
//!   "sealed": { "kdf": "argon2id", "memory_kib", "passes", "lanes", "salt", "nonce", "secret": base64 } }   with one
//! ```
//!
//! Sealed with XChaCha20-Poly1305 under Argon2id of the passphrase, over format and address, so that neither can be
//! exchanged. The file is written under another name, synced and linked into place: a crash leaves a whole key or none.
//! A file that is there is never written over, because money hangs on it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Version};
use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use floe_core::ports::Entropy;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{LocalKey, Signer as _};
use crate::limits::MAX_KEY_FILE_BYTES;
use crate::secret::{Secret, SecretError, check_private};
use crate::types::Address;
use crate::types::signature::base64;

const FORMAT: &str = "floe-key-1";

/// What a passphrase costs to try: RFC 9106's second choice, 64 MiB and 3 passes, about 0.2 s.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 1;

/// The most that a file may ask for: sixteen times ours, or opening it would eat the machine.
const MAX_MEMORY_KIB: u32 = 1 << 20;
const MAX_PASSES: u32 = 48;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The disk refuses.
    #[error("cannot read or write the key file {}: {source}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read it, or it is no file.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// There is one already.
    #[error("{} is there already: Floe does not write over a key", .0.display())]
    Exists(PathBuf),
    /// It is sealed.
    #[error("the key in {} needs its passphrase", .0.display())]
    PassphraseNeeded(PathBuf),
    /// The passphrase does not open it, or the file was changed.
    #[error("the passphrase does not open the key in {}, or the file was changed", .0.display())]
    WrongPassphrase(PathBuf),
    /// No key file, or a damaged one.
    #[error("{} is no key file of Floe: {reason}", path.display())]
    Damaged {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    format: String,
    address: Address,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Open>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Sealed>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Open(#[serde(with = "base64")] Vec<u8>);

impl Drop for Open {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    kdf: String,
    memory_kib: u32,
    passes: u32,
    lanes: u32,
    #[serde(with = "base64")]
    salt: Vec<u8>,
    #[serde(with = "base64")]
    nonce: Vec<u8>,
    #[serde(with = "base64")]
    secret: Vec<u8>,
}

/// Makes a new key in `path`, sealed where there is a passphrase. Blocks on disk, and on the passphrase.
///
/// # Errors
/// [`KeyFileError`].
pub fn create(
    path: &Path,
    passphrase: Option<&Secret>,
    entropy: &dyn Entropy,
) -> Result<LocalKey, KeyFileError> {
    loop {
        let mut secret = Zeroizing::new([0; 32]);
        entropy.fill(&mut *secret);
        // Of 2^256 values about 2^128 are no key.
        if let Some(key) = LocalKey::from_bytes(&secret) {
            return import(path, key, passphrase, entropy);
        }
    }
}

/// Writes `key` to `path`, sealed where there is a passphrase. Blocks on disk, and on the passphrase.
///
/// # Errors
/// [`KeyFileError`].
pub fn import(
    path: &Path,
    key: LocalKey,
    passphrase: Option<&Secret>,
    entropy: &dyn Entropy,
) -> Result<LocalKey, KeyFileError> {
    let text = text(&key, passphrase, entropy, path)?;
    match write_new(path, text.as_bytes()) {
        Ok(()) => Ok(key),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(KeyFileError::Exists(path.into())),
        Err(source) => Err(KeyFileError::File { path: path.into(), source }),
    }
}

/// The text of a key file.
pub(super) fn text(
    key: &LocalKey,
    passphrase: Option<&Secret>,
    entropy: &dyn Entropy,
    path: &Path,
) -> Result<Zeroizing<String>, KeyFileError> {
    let (secret, sealed) = match passphrase {
        None => (Some(Open(key.to_bytes().to_vec())), None),
        Some(passphrase) => (None, Some(seal(key, passphrase, entropy, path)?)),
    };
    let file = KeyFile { format: FORMAT.into(), address: key.address(), secret, sealed };
    let text = serde_json::to_string_pretty(&file).map(Zeroizing::new);
    text.map_err(|e| damaged(path, &e.to_string()))
}

/// Reads the key in `path`. Blocks on disk, and on the passphrase.
///
/// # Errors
/// [`KeyFileError`].
pub fn load(path: &Path, passphrase: Option<&Secret>) -> Result<LocalKey, KeyFileError> {
    let file = read(path)?;
    if file.format != FORMAT {
        return Err(damaged(path, "its format is another one"));
    }
    let secret = match (&file.secret, &file.sealed, passphrase) {
        (Some(open), None, _) => Zeroizing::new(open.0.clone()),
        (None, Some(sealed), Some(passphrase)) => open(sealed, &file.address, passphrase, path)?,
        (None, Some(_), None) => return Err(KeyFileError::PassphraseNeeded(path.into())),
        _ => return Err(damaged(path, "it holds no secret, or two")),
    };
    let secret: &[u8; 32] =
        secret.as_slice().try_into().map_err(|_| damaged(path, "its secret has not 32 bytes"))?;
    let key = LocalKey::from_bytes(secret).ok_or_else(|| damaged(path, "its secret is no key"))?;
    if key.address() != file.address {
        return Err(damaged(path, "its address is not that of its secret"));
    }
    Ok(key)
}

fn read(path: &Path) -> Result<KeyFile, KeyFileError> {
    let failed = |source| KeyFileError::File { path: path.into(), source };
    let file = fs::File::open(path).map_err(failed)?;
    check_private(&file, path)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_KEY_FILE_BYTES {
        return Err(damaged(path, "it is longer than 4 KiB"));
    }
    // The error of the library may hold a piece of what it read.
    serde_json::from_slice(&bytes)
        .map_err(|e| damaged(path, &format!("line {}, column {}", e.line(), e.column())))
}

fn damaged(path: &Path, reason: &str) -> KeyFileError {
    KeyFileError::Damaged { path: path.into(), reason: reason.into() }
}

fn seal(
    key: &LocalKey,
    passphrase: &Secret,
    entropy: &dyn Entropy,
    path: &Path,
) -> Result<Sealed, KeyFileError> {
    let (mut salt, mut nonce) = (vec![0; 16], vec![0; 24]);
    entropy.fill(&mut salt);
    entropy.fill(&mut nonce);
    let mut sealed = Sealed {
        kdf: "argon2id".into(),
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        lanes: LANES,
        salt,
        nonce,
        secret: Vec::new(),
    };
    let cipher = cipher(&sealed, passphrase, path)?;
    let (nonce, secret) = (XNonce::clone_from_slice(&sealed.nonce), key.to_bytes());
    let payload = Payload { msg: secret.as_slice(), aad: &bound(&key.address()) };
    sealed.secret =
        cipher.encrypt(&nonce, payload).map_err(|_| damaged(path, "its secret cannot be sealed"))?;
    Ok(sealed)
}

fn open(
    sealed: &Sealed,
    address: &Address,
    passphrase: &Secret,
    path: &Path,
) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let within =
        (1..=MAX_MEMORY_KIB).contains(&sealed.memory_kib) && (1..=MAX_PASSES).contains(&sealed.passes);
    if sealed.kdf != "argon2id" || !within || sealed.nonce.len() != 24 {
        return Err(damaged(path, "it is sealed in a way that Floe does not open"));
    }
    let payload = Payload { msg: &sealed.secret, aad: &bound(address) };
    let opened = cipher(sealed, passphrase, path)?.decrypt(&XNonce::clone_from_slice(&sealed.nonce), payload);
    opened.map(Zeroizing::new).map_err(|_| KeyFileError::WrongPassphrase(path.into()))
}

/// What the seal covers beside the secret.
fn bound(address: &Address) -> Vec<u8> {
    [FORMAT.as_bytes(), &address.to_bytes()].concat()
}

fn cipher(sealed: &Sealed, passphrase: &Secret, path: &Path) -> Result<XChaCha20Poly1305, KeyFileError> {
    let mut key = Zeroizing::new([0; 32]);
    argon2::Params::new(sealed.memory_kib, sealed.passes, sealed.lanes, Some(key.len()))
        .map(|params| Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
        .and_then(|argon| argon.hash_password_into(passphrase.expose().as_bytes(), &sealed.salt, &mut *key))
        .map_err(|e| damaged(path, &e.to_string()))?;
    Ok(XChaCha20Poly1305::new((&*key).into()))
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = dir.join(name);
    let written = private_file(&new).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::hard_link(&new, path)
    });
    let _ = fs::remove_file(&new);
    written?;
    fs::File::open(dir)?.sync_all()
}

#[cfg(unix)]
fn private_file(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let _ = fs::remove_file(path);
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn private_file(path: &Path) -> io::Result<fs::File> {
    let _ = fs::remove_file(path);
    fs::OpenOptions::new().write(true).create_new(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use floe_core::Seeded;

    fn passphrase(text: &str) -> Secret {
        Secret::new(text, "test").unwrap()
    }

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        for (name, passphrase) in [("open", None), ("sealed", Some(passphrase("correct horse")))] {
            let path = dir.path().join(name);
            let made = create(&path, passphrase.as_ref(), &Seeded::new(1)).unwrap();
            let read = load(&path, passphrase.as_ref()).unwrap();
            assert_eq!((read.address(), read.to_bytes()), (made.address(), made.to_bytes()));
            let before = fs::read(&path).unwrap();
            let again = create(&path, passphrase.as_ref(), &Seeded::new(2)).unwrap_err();
            assert!(matches!(again, KeyFileError::Exists(_)), "{again}");
            assert_eq!(fs::read(&path).unwrap(), before, "a key is never written over");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside the keys");
    }

    #[test]
    fn a_sealed_key_opens_with_its_passphrase_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = create(&path, Some(&passphrase("correct")), &Seeded::new(1)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let secret = data_encoding::BASE64.encode(&*key.to_bytes());
        assert!(!text.contains(&secret) && text.contains(&key.address().to_string()));
        assert!(matches!(load(&path, None), Err(KeyFileError::PassphraseNeeded(_))));
        assert!(matches!(load(&path, Some(&passphrase("wrong"))), Err(KeyFileError::WrongPassphrase(_))));
        // Another address in front of the same secret: the seal covers it.
        fs::write(
            &path,
            text.replace(&key.address().to_string(), "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy"),
        )
        .unwrap();
        assert!(matches!(load(&path, Some(&passphrase("correct"))), Err(KeyFileError::WrongPassphrase(_))));
    }

    #[test]
    fn a_file_that_would_eat_the_machine_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, Some(&passphrase("correct")), &Seeded::new(1)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"memory_kib\": 65536", "\"memory_kib\": 4294967295")).unwrap();
        let error = load(&path, Some(&passphrase("correct"))).unwrap_err();
        assert!(matches!(error, KeyFileError::Damaged { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, None, &Seeded::new(1)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(load(&path, None), Err(KeyFileError::Secret(SecretError::Readable { .. }))));
    }

    #[test]
    fn a_damaged_file_is_an_error_that_shows_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create(&path, None, &Seeded::new(1)).unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let secret = good.split('"').rev().nth(1).unwrap().to_owned();
        for bad in [
            String::new(),
            "{}".into(),
            good.replace("floe-key-1", "floe-key-2"),
            good.replace(&secret, "AAAA"),
            good.replace(&secret, &format!("{secret}{secret}")),
            good.replace("\"secret\": \"", "\"secret\": "),
            good.replace("f1", "f3"),
            "x".repeat(5_000),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = load(&path, None).unwrap_err();
            assert!(matches!(error, KeyFileError::Damaged { .. }), "{bad}: {error}");
            assert!(
                error.to_string().contains("key") && !error.to_string().contains(&secret[..8]),
                "{error}"
            );
        }
    }
}
