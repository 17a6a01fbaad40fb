//! What must not be seen: tokens and passphrases. It has no way into a log or an error, and is wiped when dropped.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::limits::MAX_ENDPOINT_BYTES;

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The disk refuses.
    #[error("cannot read the secret in {}: {source}", path.display())]
    File {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Others could read it.
    #[error("{} can be read by others: chmod 600 {}", path.display(), path.display())]
    Readable {
        /// Where.
        path: PathBuf,
    },
    /// Empty, too long, or with characters that no secret has.
    #[error("the secret {0} is empty, longer than 8 KiB, or not printable ASCII on one line")]
    Unusable(String),
}

/// A secret. `Debug` and `Display` print a placeholder.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// From text that came another way, for instance out of the environment. `name` says where from.
    ///
    /// # Errors
    /// [`SecretError::Unusable`].
    pub fn new(text: &str, name: &str) -> Result<Self, SecretError> {
        let text = text.trim_end_matches(['\r', '\n']);
        let printable = text.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
        if text.is_empty() || text.len() > MAX_ENDPOINT_BYTES || !printable {
            return Err(SecretError::Unusable(name.to_owned()));
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    /// From a file that only its owner may read. Blocks on disk.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File { path: path.into(), source };
        let file = File::open(path).map_err(failed)?;
        check_private(&file, path)?;
        let mut text = Zeroizing::new(String::new());
        // One byte more than allowed, so that what is longer is known as such.
        file.take(MAX_ENDPOINT_BYTES as u64 + 2).read_to_string(&mut text).map_err(failed)?;
        Self::new(&text, &format!("in {}", path.display()))
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Refuses a file that its group or others may read.
#[cfg(unix)]
pub(crate) fn check_private(file: &File, path: &Path) -> Result<(), SecretError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = file.metadata().map_err(|source| SecretError::File { path: path.into(), source })?;
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(SecretError::Readable { path: path.into() });
    }
    Ok(())
}

#[cfg(not(unix))]
pub(crate) fn check_private(_: &File, _: &Path) -> Result<(), SecretError> {
    Ok(())
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2\n", "here").unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(format!("{secret} {secret:?} {:?}", Some(&secret)), "[secret] [secret] Some([secret])");
        for bad in ["", "\n", "a\nb", "é", &"x".repeat(MAX_ENDPOINT_BYTES + 1)] {
            let error = Secret::new(bad, "TOKEN").unwrap_err().to_string();
            assert!(error.contains("TOKEN") && (bad.len() < 2 || !error.contains(bad)), "{error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "hunter2\n").unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = Secret::from_file(&path);
            assert_eq!(read.is_ok(), good, "{mode:o}");
            assert!(!format!("{read:?}").contains("hunter2"));
        }
        assert!(matches!(Secret::from_file(&dir.path().join("none")), Err(SecretError::File { .. })));
    }
}
