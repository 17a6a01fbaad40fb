//! The index: ordered keys and values that can always be made again from the packs.
//!
//! A back end ([`redb`](redb_index), [`sled`](sled_index)) only ever sees whole checkpoints: what changed between
//! two of them lives in the front ([`Layered`]), in memory, and comes back by reading the log's tail again. So a
//! back end needs no durability of its own between checkpoints and holds, after any crash, exactly the state of
//! one checkpoint, or says that it does not. It is never the only copy of anything.
//!
//! # Keys
//!
//! | key | value |
//! |---|---|
//! | `b` multihash | where a block is, its length and references |
//! | `c` manifest, serial | where a chunk of a manifest is |
//! | `d` multihash | a damaged block |
//! | `m` manifest | its state and totals |
//! | `r` manifest | it is being released |
//! | `s` | the checkpoint: position in the log, figures, pack table |

pub(crate) mod redb_index;
#[cfg(feature = "sled")]
pub(crate) mod sled_index;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::limits;
use crate::mark::Mark;

/// Why a back end failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    /// The volume is full.
    #[error("the disk is full")]
    Full,
    /// The store was closed.
    #[error("the index is closed")]
    Closed,
    /// Anything else.
    #[error("{0}")]
    Broken(String),
}

pub(crate) type Pair = (Box<[u8]>, Box<[u8]>);
/// Keys with their new values; `None` removes.
pub(crate) type Batch = BTreeMap<Box<[u8]>, Option<Box<[u8]>>>;

/// Turns a panic of a back end on its files into an error.
fn fenced<T>(f: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|_| Err(IndexError::Broken("the index panicked on its files".into())))
}

/// An ordered map on disk. All calls block on disk.
pub(crate) trait BlockIndex: Send + Sync + 'static {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Box<[u8]>>, IndexError>;
    /// The first `limit` pairs from `from` on whose key starts with `prefix`, in order of key.
    fn scan(&self, prefix: &[u8], from: Bound<&[u8]>, limit: usize) -> Result<Vec<Pair>, IndexError>;
    /// Applies a batch as a whole and makes it durable. After an error, and after a crash in between, the index
    /// has either all of it, none of it, or does not open any more; [`BlockIndex::reopen`] tells.
    fn checkpoint(&self, batch: &Batch) -> Result<(), IndexError>;
    /// Opens the files again after a failed checkpoint.
    fn reopen(&self) -> Result<(), IndexError>;
    /// Lets go of the files.
    fn close(&self);
}

/// The index as everybody sees it: what changed since the last checkpoint in front of what is on disk.
///
/// `active` takes changes; at a checkpoint it becomes `frozen`, which is written in the background and then
/// dropped. Only the writer changes it; anybody reads.
///
/// Each value carries a checksum of itself and its key: a flipped bit in a count would free what is pinned, and
/// redb does not check its pages when it reads them.
pub(crate) struct Layered {
    layers: RwLock<Layers>,
    index: Arc<dyn BlockIndex>,
    broken: AtomicBool,
    mark: Arc<Mark>,
}

#[derive(Default)]
struct Layers {
    active: Batch,
    frozen: Option<Arc<Batch>>,
}

impl Layered {
    pub(crate) fn new(index: Arc<dyn BlockIndex>, mark: Arc<Mark>) -> Self {
        Self { layers: RwLock::default(), index, broken: AtomicBool::new(false), mark }
    }

    pub(crate) fn index(&self) -> &Arc<dyn BlockIndex> {
        &self.index
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Box<[u8]>>, IndexError> {
        let sealed = match self.layers.read().get(key) {
            Some(value) => value,
            None => self.noted(self.index.get(key))?,
        };
        sealed.map(|v| self.noted(unseal(key, &v))).transpose()
    }

    pub(crate) fn set(&self, key: Box<[u8]>, value: Option<Box<[u8]>>) {
        let value = value.map(|v| seal(&key, &v));
        self.layers.write().active.insert(key, value);
    }

    /// Whether the back end ever failed on its own bytes: it has to be made again.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    fn noted<T>(&self, result: Result<T, IndexError>) -> Result<T, IndexError> {
        if let Err(IndexError::Broken(why)) = &result {
            self.broken.store(true, Ordering::Release);
            // Here and not later: the process may end before anybody looks.
            self.mark.set(why);
        }
        result
    }

    /// Changed keys since the last freeze.
    pub(crate) fn changed(&self) -> usize {
        self.layers.read().active.len()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.layers.read().frozen.is_some()
    }

    /// Ends what a checkpoint takes. `None` while the last one is not written yet.
    pub(crate) fn freeze(&self) -> Option<Arc<Batch>> {
        let mut layers = self.layers.write();
        if layers.frozen.is_some() {
            return None;
        }
        let frozen = Arc::new(std::mem::take(&mut layers.active));
        layers.frozen = Some(frozen.clone());
        Some(frozen)
    }

    /// The frozen layer is in the index now.
    pub(crate) fn thaw(&self) {
        self.layers.write().frozen = None;
    }

    /// As [`BlockIndex::scan`], over all layers.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        from: Bound<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Pair>, IndexError> {
        let mut out = Vec::new();
        let mut from: Bound<Box<[u8]>> = from.map(Into::into);
        loop {
            let start = from.as_ref().map(|k| &k[..]);
            // Layers first: what moves into the index meanwhile is then seen twice, not never.
            let (over, horizon) = self.layers.read().overlay(prefix, start, limit);
            let indexed = self.noted(self.index.scan(prefix, start, limit.saturating_add(over.len())))?;
            let mut merged: Batch = indexed.into_iter().map(|(k, v)| (k, Some(v))).collect();
            merged.extend(over);
            let known = merged.into_iter().filter(|(k, _)| horizon.as_ref().is_none_or(|h| k <= h));
            for (key, value) in known.filter_map(|(k, v)| Some((k, v?))).take(limit - out.len()) {
                let value = self.noted(unseal(&key, &value))?;
                out.push((key, value));
            }
            match horizon {
                Some(h) if out.len() < limit => from = Bound::Excluded(h),
                _ => return Ok(out),
            }
        }
    }

    /// All pairs whose key starts with `prefix`, in order of key. Read in pages: what changes meanwhile is seen or not.
    pub(crate) fn pairs<'a>(
        &'a self,
        prefix: &'a [u8],
    ) -> impl Iterator<Item = Result<Pair, IndexError>> + 'a {
        let mut page = Vec::new().into_iter();
        let mut from: Bound<Box<[u8]>> = Bound::Unbounded;
        std::iter::from_fn(move || {
            if page.len() == 0 {
                match self.scan(prefix, from.as_ref().map(|k| &k[..]), limits::SCAN_KEYS) {
                    Ok(read) => page = read.into_iter(),
                    Err(e) => return Some(Err(e)),
                }
            }
            let pair = page.next()?;
            if page.len() == 0 {
                from = Bound::Excluded(pair.0.clone());
            }
            Some(Ok(pair))
        })
    }
}

fn seal(key: &[u8], value: &[u8]) -> Box<[u8]> {
    [value, &checksum(key, value)].concat().into()
}

fn unseal(key: &[u8], sealed: &[u8]) -> Result<Box<[u8]>, IndexError> {
    match sealed.split_last_chunk::<4>() {
        Some((value, sum)) if *sum == checksum(key, value) => Ok(value.into()),
        _ => Err(IndexError::Broken("a value of the index is damaged".into())),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; 4] {
    let mut crc = crc32fast::Hasher::new();
    crc.update(key);
    crc.update(value);
    crc.finalize().to_le_bytes()
}

impl Layers {
    /// The newest change of a key, if there is one.
    fn get(&self, key: &[u8]) -> Option<Option<Box<[u8]>>> {
        let changed = self.active.get(key).or_else(|| self.frozen.as_ref().and_then(|f| f.get(key)));
        changed.cloned()
    }

    /// Changes in the range, newest wins, and the key up to which they are complete.
    fn overlay(&self, prefix: &[u8], from: Bound<&[u8]>, limit: usize) -> (Batch, Option<Box<[u8]>>) {
        // Bounded, because the lock is held; the caller goes on from the horizon.
        let most = limit.max(limits::SCAN_KEYS);
        let mut out = Batch::new();
        let mut horizon: Option<Box<[u8]>> = None;
        for layer in self.frozen.as_deref().into_iter().chain([&self.active]) {
            let start = match from {
                Bound::Unbounded => Bound::Included(prefix),
                other => other,
            };
            let mut last = None;
            let range = layer.range::<[u8], _>((start, Bound::Unbounded));
            for (n, (k, v)) in range.take_while(|(k, _)| k.starts_with(prefix)).enumerate() {
                if n == most {
                    horizon = match (horizon.take(), last) {
                        (Some(h), Some(l)) if h < l => Some(h),
                        (_, l) => l,
                    };
                    break;
                }
                out.insert(k.clone(), v.clone());
                last = Some(k.clone());
            }
        }
        (out, horizon)
    }
}

#[cfg(test)]
mod tests;
