//! Who this node is: an Ed25519 key in a file.
//!
//! The file holds the protobuf form that other libp2p programs read and write, with mode 0600. It is written
//! under another name, synced and linked into place, so that a crash leaves a whole key or none, and two starts at
//! once agree on one. A file that is there and cannot be read as a key is an error and never replaced: the
//! peer id stands in the delegates of every pin.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use floe_core::ports::Entropy;
use libp2p::identity::Keypair;

use crate::Error;

/// Reads the key in `path`; makes it where there is no file. Blocks on disk.
///
/// # Errors
/// [`Error::IdentityDamaged`] where the file is no key, [`Error::File`] where the disk refuses.
pub fn load_or_create(path: &Path, entropy: &dyn Entropy) -> Result<Keypair, Error> {
    match load(path)? {
        Some(key) => Ok(key),
        None => create(path, entropy),
    }
}

/// Reads the key in `path`, or `None` where there is no file. Blocks on disk.
///
/// # Errors
/// [`Error::IdentityDamaged`] where the file is no key, [`Error::File`] where the disk refuses.
pub fn load(path: &Path) -> Result<Option<Keypair>, Error> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::File { path: path.into(), source }),
    };
    Keypair::from_protobuf_encoding(&bytes)
        .map(Some)
        .map_err(|e| Error::IdentityDamaged { path: path.into(), reason: e.to_string() })
}

fn create(path: &Path, entropy: &dyn Entropy) -> Result<Keypair, Error> {
    let mut seed = [0u8; 32];
    entropy.fill(&mut seed);
    let key = Keypair::ed25519_from_bytes(&mut seed).expect("32 bytes are an Ed25519 seed");
    let bytes = key.to_protobuf_encoding().expect("an Ed25519 key has a protobuf form");
    match write_new(path, &bytes) {
        Ok(()) => Ok(key),
        // Another start was quicker: its key is the one.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match load(path)? {
            Some(key) => Ok(key),
            None => Err(Error::File { path: path.into(), source: e }),
        },
        Err(source) => Err(Error::File { path: path.into(), source }),
    }
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
    use crate::testing::Dice;

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        let made = load_or_create(&path, &Dice::new(1)).unwrap();
        let read = load_or_create(&path, &Dice::new(2)).unwrap();
        assert_eq!(made.public(), read.public());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the key");
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        load_or_create(&path, &Dice::new(1)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("identity.key");
        for damage in [&b""[..], b"\x08\x01\x12\x40short", &[0xff; 68]] {
            fs::write(&path, damage).unwrap();
            let error = load_or_create(&path, &Dice::new(1)).unwrap_err();
            assert!(matches!(error, Error::IdentityDamaged { .. }), "{error}");
            assert!(error.to_string().contains("identity.key"), "{error}");
            assert_eq!(fs::read(&path).unwrap(), damage);
        }
    }
}
