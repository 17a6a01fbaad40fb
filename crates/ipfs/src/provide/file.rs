//! The table's file, as redb sees it. It remembers that a sync failed, which redb tells like any other error: a full
//! disk is waited out, but what a failed sync left on disk is unknown.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// Opens the file, or makes it. Tests give one that fails.
pub(crate) type OpenFile = Arc<dyn Fn(&Path) -> io::Result<Box<dyn StorageBackend>> + Send + Sync>;

/// The file system's. One that was begun and not finished is begun again.
pub(crate) fn on_disk() -> OpenFile {
    Arc::new(|path| {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        if is_unfinished(&file)? {
            tracing::warn!("{} was begun and not finished, and is made again", path.display());
            file.set_len(0)?;
        }
        Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
    })
}

/// What a file of redb begins with.
const MAGIC: [u8; 9] = *b"redb\x1a\x0a\xa9\x0d\x0a";

/// Whether the file is one of redb, as far as it says itself.
pub(crate) fn is_redb(path: &Path) -> bool {
    let mut magic = [0; MAGIC.len()];
    File::open(path).and_then(|file| file.read_exact_at(&mut magic, 0)).is_ok() && magic == MAGIC
}

/// Whether redb was cut off while it made the file. It refuses one that has a length and no magic number, and writes
/// the magic number last: there was never anything in it.
fn is_unfinished(file: &File) -> io::Result<bool> {
    let mut magic = [0; MAGIC.len()];
    if file.metadata()?.len() < magic.len() as u64 {
        return Ok(false);
    }
    file.read_exact_at(&mut magic, 0)?;
    Ok(magic == [0; MAGIC.len()])
}

/// See the module. The locks are the file's own, so that two nodes do not share one.
#[derive(Debug)]
pub(crate) struct Watched {
    pub(crate) file: Box<dyn StorageBackend>,
    pub(crate) sync_failed: Arc<AtomicBool>,
}

impl StorageBackend for Watched {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
