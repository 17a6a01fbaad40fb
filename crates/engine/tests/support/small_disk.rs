//! The real disk, with as much free space as the test says.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use floe_blockstore::{Disk, DiskFile, Open, RealDisk, Space};

pub const ROOMY: u64 = 100 << 30;

pub struct SmallDisk(AtomicU64);

impl SmallDisk {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(ROOMY)))
    }

    pub fn set_free(&self, bytes: u64) {
        self.0.store(bytes, Ordering::SeqCst);
    }
}

impl Disk for SmallDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(path, how)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        Ok(Space { free: self.0.load(Ordering::SeqCst), total: 2 * ROOMY })
    }
}
