//! The default back end: one redb table in `index-1.redb`.
//!
//! Each checkpoint is one transaction: two-phase (redb's one-phase checksum can be forged by hostile input) and
//! with quick-repair, so that open after a crash does not walk the tree. The file goes through [`Disk`], so that
//! a faulty disk reaches it too. Calls are fenced: redb panics on some damaged files, and those must only cost
//! the index.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::RwLock;
use redb::{Database, Durability, ReadableDatabase as _, StorageBackend, TableDefinition};

use super::{Batch, BlockIndex, IndexError, Pair};
use crate::disk::{Disk, DiskFile, Open};
use crate::error::is_full;
use crate::limits;

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("index-1");
pub(crate) const FILE: &str = "index-1.redb";

pub(crate) struct RedbIndex {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    db: RwLock<Option<Database>>,
}

impl RedbIndex {
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, IndexError> {
        let index = Self { disk, path: dir.join(FILE), db: RwLock::new(None) };
        index.reopen()?;
        index.disk.sync_dir(dir).map_err(|e| broken(&e))?;
        Ok(index)
    }

    fn with<T>(&self, f: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, IndexError> {
        let db = self.db.read();
        let db = db.as_ref().ok_or(IndexError::Closed)?;
        super::fenced(|| f(db).map_err(|e| error(&e)))
    }
}

fn error(e: &redb::Error) -> IndexError {
    match e {
        redb::Error::Io(e) if is_full(e) => IndexError::Full,
        e => broken(e),
    }
}

fn broken(e: &dyn fmt::Display) -> IndexError {
    IndexError::Broken(e.to_string())
}

impl BlockIndex for RedbIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Box<[u8]>>, IndexError> {
        self.with(|db| {
            let table = db.begin_read()?.open_table(TABLE)?;
            Ok(table.get(key)?.map(|v| v.value().into()))
        })
    }

    fn scan(&self, prefix: &[u8], from: Bound<&[u8]>, limit: usize) -> Result<Vec<Pair>, IndexError> {
        self.with(|db| {
            let table = db.begin_read()?.open_table(TABLE)?;
            let start = if from == Bound::Unbounded { Bound::Included(prefix) } else { from };
            let mut out = Vec::new();
            for pair in table.range::<&[u8]>((start, Bound::Unbounded))?.take(limit) {
                let (k, v) = pair?;
                if !k.value().starts_with(prefix) {
                    break;
                }
                out.push((k.value().into(), v.value().into()));
            }
            Ok(out)
        })
    }

    fn checkpoint(&self, batch: &Batch) -> Result<(), IndexError> {
        self.with(|db| {
            let mut tx = db.begin_write()?;
            tx.set_durability(Durability::Immediate)
                .map_err(|e| redb::Error::Io(io::Error::other(e.to_string())))?;
            tx.set_two_phase_commit(true);
            tx.set_quick_repair(true);
            {
                let mut table = tx.open_table(TABLE)?;
                for (key, value) in batch {
                    match value {
                        Some(value) => drop(table.insert(&key[..], &value[..])?),
                        None => drop(table.remove(&key[..])?),
                    }
                }
            }
            tx.commit()?;
            Ok(())
        })
    }

    fn reopen(&self) -> Result<(), IndexError> {
        let mut slot = self.db.write();
        let old = slot.take();
        super::fenced(|| {
            drop(old);
            Ok(())
        })?;
        let file = self.disk.open(&self.path, Open::Any).map_err(|e| broken(&e))?;
        *slot = Some(super::fenced(|| open(Backend(file)).map_err(|e| error(&e)))?);
        Ok(())
    }

    fn close(&self) {
        let old = self.db.write().take();
        let _ = super::fenced(|| {
            drop(old);
            Ok(())
        });
    }
}

fn open(backend: Backend) -> Result<Database, redb::Error> {
    let db = Database::builder().set_cache_size(limits::INDEX_CACHE_BYTES).create_with_backend(backend)?;
    // Opened again on a full disk, it must not need space.
    if db.begin_read()?.open_table(TABLE).is_ok() {
        return Ok(db);
    }
    // A table that was never written cannot be opened for reading.
    let tx = db.begin_write()?;
    drop(tx.open_table(TABLE)?);
    tx.commit()?;
    Ok(db)
}

/// redb's file, on our disk. The data directory's lock is the binary's, so there is none here.
struct Backend(Arc<dyn DiskFile>);

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Backend")
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(&mut [IoSlice::new(data)], offset)
    }
}
