//! The durable word that the index is not to be trusted: a file named `rebuild`.
//!
//! Whoever sees the index lie sets it on the spot, on the thread that saw it, because the process may end before
//! anybody else hears of it. The next open throws the index away, reads the packs, and only then clears the mark,
//! so a rebuild that is cut off begins again. The packs are the truth, so a mark too many costs time and nothing
//! else.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::disk::{Disk, Open};

pub(crate) const FILE: &str = "rebuild";

pub(crate) struct Mark {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Somebody asked for it.
    asked: AtomicBool,
    /// It is on disk.
    durable: AtomicBool,
}

impl Mark {
    pub(crate) fn new(disk: Arc<dyn Disk>, root: &Path) -> Self {
        Self { disk, root: root.into(), asked: AtomicBool::new(false), durable: AtomicBool::new(false) }
    }

    /// Whether the last run, or this one, left it.
    pub(crate) fn is_set(&self) -> io::Result<bool> {
        match self.disk.open(&self.root.join(FILE), Open::Existing) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether this run found the index lying.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }

    /// For an index that counts too much and is right otherwise: what is freed on its word is free, so nothing stops.
    /// Where the disk refuses, nothing more comes of it than that what is counted too much stays.
    pub(crate) fn wish(&self, why: &str) {
        tracing::error!("{why}: their space is free after the next start, which makes the index again");
        if let Err(e) = self.write() {
            tracing::error!("cannot write {}: {e}", self.root.join(FILE).display());
        }
    }

    /// Durable on return, unless the disk refuses: then it is tried again by [`Mark::insist`].
    pub(crate) fn set(&self, why: &str) {
        if !self.asked.swap(true, Ordering::AcqRel) {
            tracing::error!(
                "the block index is not to be trusted ({why}): it is made again from the packs at the next start"
            );
        }
        self.insist();
    }

    /// Writes what was asked for and could not be written.
    pub(crate) fn insist(&self) {
        if !self.asked.load(Ordering::Acquire) || self.durable.load(Ordering::Acquire) {
            return;
        }
        match self.write() {
            Ok(()) => self.durable.store(true, Ordering::Release),
            Err(e) => tracing::error!("cannot write {}: {e}", self.root.join(FILE).display()),
        }
    }

    /// Durable before a rebuild begins, so that one that is cut off begins again.
    pub(crate) fn write(&self) -> io::Result<()> {
        self.disk.open(&self.root.join(FILE), Open::Any)?.sync()?;
        self.disk.sync_dir(&self.root)
    }

    /// The index is made again.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.asked.store(false, Ordering::Release);
        self.durable.store(false, Ordering::Release);
        match self.disk.remove(&self.root.join(FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}
