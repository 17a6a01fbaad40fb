//! Why the store refused.

use std::io;
use std::path::{Path, PathBuf};

use crate::ManifestId;

/// Why the store refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The disk is under its reserve, or said ENOSPC: writes are refused until there is space again.
    #[error("the disk is full or under its reserve: free space, writes go on by themselves")]
    ReadOnly,
    /// A sync failed: the state on disk is unknown, the process must end (exit code 12).
    #[error("a sync failed, so what is on disk is unknown: {0}")]
    Poisoned(String),
    /// The directory is not this store's, or of a newer version (exit code 10).
    #[error("{}: {reason}", path.display())]
    Directory {
        /// The directory or the file in it.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The manifest was let go of: it takes no more blocks. Protect the DAG under a new id.
    #[error("the manifest {0} was released; use a new id")]
    Released(ManifestId),
    /// The store was closed.
    #[error("the block store is closed")]
    Closed,
    /// Anything else, with the file it concerns.
    #[error("{0}")]
    Io(String),
}

impl Error {
    pub(crate) fn io(path: &Path, doing: &str, error: &io::Error) -> Self {
        Self::Io(format!("cannot {doing} {}: {error}", path.display()))
    }
}

/// Whether the volume, or what this user may use of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::WriteZero
    )
}
