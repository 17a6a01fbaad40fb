//! The selectable back end: sled 0.34 in `index-1.sled/`.
//!
//! sled's own durability is a `sync_file_range`, so after each `flush` its `db` file is synced here; and a batch
//! is no promise across a power cut, so a checkpoint is framed by a mark: set and durable before the batch,
//! removed with the batch's end. A directory with the mark was cut off in between and does not open, and the
//! store builds a new one. Opening and dropping are fenced: sled panics on some damaged files.

use std::fs::File;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;

use super::{Batch, BlockIndex, IndexError, Pair};
use crate::limits;

pub(crate) const DIR: &str = "index-1.sled";
/// Sorts before every key of the index, and no prefix matches it.
const MARK: &[u8] = b"\0checkpoint";
/// Keys applied at a time: sled holds a whole batch in memory more than once.
const BATCH_KEYS: usize = 4096;

pub(crate) struct SledIndex {
    path: PathBuf,
    db: RwLock<Option<sled::Db>>,
}

impl SledIndex {
    pub(crate) fn open(dir: &Path) -> Result<Self, IndexError> {
        let index = Self { path: dir.join(DIR), db: RwLock::new(None) };
        index.reopen()?;
        Ok(index)
    }

    fn with<T>(&self, f: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, IndexError> {
        let db = self.db.read();
        let db = db.as_ref().ok_or(IndexError::Closed)?;
        fenced(|| f(db))
    }

    fn flush(&self, db: &sled::Db) -> sled::Result<()> {
        db.flush()?;
        Ok(File::open(self.path.join("db"))?.sync_all()?)
    }
}

fn fenced<T>(f: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    super::fenced(|| {
        f().map_err(|e| match e {
            sled::Error::Io(e) if crate::error::is_full(&e) => IndexError::Full,
            e => IndexError::Broken(e.to_string()),
        })
    })
}

impl BlockIndex for SledIndex {
    fn get(&self, key: &[u8]) -> Result<Option<Box<[u8]>>, IndexError> {
        self.with(|db| Ok(db.get(key)?.map(|v| v.as_ref().into())))
    }

    fn scan(&self, prefix: &[u8], from: Bound<&[u8]>, limit: usize) -> Result<Vec<Pair>, IndexError> {
        self.with(|db| {
            let start = if from == Bound::Unbounded { Bound::Included(prefix) } else { from };
            let mut out = Vec::new();
            for pair in db.range::<&[u8], _>((start, Bound::Unbounded)).take(limit) {
                let (k, v) = pair?;
                if !k.starts_with(prefix) {
                    break;
                }
                out.push((k.as_ref().into(), v.as_ref().into()));
            }
            Ok(out)
        })
    }

    fn checkpoint(&self, batch: &Batch) -> Result<(), IndexError> {
        self.with(|db| {
            db.insert(MARK, b"")?;
            self.flush(db)?;
            let mut part = sled::Batch::default();
            for (n, (key, value)) in batch.iter().enumerate() {
                match value {
                    Some(value) => part.insert(&key[..], &value[..]),
                    None => part.remove(&key[..]),
                }
                if n % BATCH_KEYS == BATCH_KEYS - 1 {
                    db.apply_batch(std::mem::take(&mut part))?;
                }
            }
            db.apply_batch(part)?;
            self.flush(db)?;
            db.remove(MARK)?;
            self.flush(db)
        })
    }

    fn reopen(&self) -> Result<(), IndexError> {
        let mut slot = self.db.write();
        if let Some(old) = slot.take() {
            fenced(|| {
                drop(old);
                Ok(())
            })?;
        }
        let cache = limits::INDEX_CACHE_BYTES as u64;
        let db = fenced(|| {
            sled::Config::new().path(&self.path).cache_capacity(cache).flush_every_ms(None).open()
        })?;
        if fenced(|| db.contains_key(MARK))? {
            return Err(IndexError::Broken("a checkpoint was cut off".into()));
        }
        *slot = Some(db);
        Ok(())
    }

    fn close(&self) {
        if let Some(old) = self.db.write().take() {
            let _ = fenced(|| {
                drop(old);
                Ok(())
            });
        }
    }
}
