//! The roots that are announced, on disk: `provides-1.redb`.
//!
//! ```text
//!   roots-1   multihash            -> when it is due next (ms since the epoch; 0: never announced)
//!   due-1     (due, multihash)     -> ()
//! ```
//!
//! The two tables change in one transaction. Adding and removing is synced before it is acknowledged; the result of an
//! announcement is synced with its batch, and what a crash loses of it is announced once more. Every call
//! blocks on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fail::fail_point;
use floe_core::Timestamp;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};

use super::Provided;
use crate::Error;
use crate::limits::{MAX_COUNTED_BACKLOG, PROVIDES_CACHE};

const ROOTS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("roots-1");
const DUE: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("due-1");

/// The file's name in the data directory.
pub(crate) const FILE: &str = "provides-1.redb";

/// See the module.
pub(crate) struct Store {
    database: Database,
    path: PathBuf,
    provided: Arc<Provided>,
}

/// The first roots that are due, and how many there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// `(due, multihash)`, the earliest first.
    pub(crate) roots: Vec<(Timestamp, Vec<u8>)>,
    /// All roots.
    pub(crate) total: u64,
    /// Roots whose time has come, counted up to a limit.
    pub(crate) backlog: u64,
}

type Outcome<T> = Result<T, redb::Error>;

impl Store {
    /// Opens the table, or makes it; fills `provided`.
    pub(crate) fn open(dir: &Path, provided: Arc<Provided>) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let damaged = |e: redb::Error| Error::Provides { path: path.clone(), reason: e.to_string() };
        let database = Database::builder()
            .set_cache_size(PROVIDES_CACHE)
            .create(&path)
            .map_err(|e| damaged(e.into()))?;
        let store = Self { database, path: path.clone(), provided };
        store.load().map_err(damaged)?;
        Ok(store)
    }

    fn load(&self) -> Outcome<()> {
        let write = self.database.begin_write()?;
        {
            write.open_table(DUE)?;
            let roots = write.open_table(ROOTS)?;
            for entry in roots.iter()? {
                self.provided.insert(entry?.0.value());
            }
        }
        write.commit()?;
        Ok(())
    }

    /// Adds roots that are not there yet, due at once. Durable on return.
    pub(crate) fn add(&self, hashes: &[Vec<u8>]) -> Outcome<()> {
        let write = self.database.begin_write()?;
        {
            let mut roots = write.open_table(ROOTS)?;
            let mut due = write.open_table(DUE)?;
            for hash in hashes {
                if roots.get(hash.as_slice())?.is_none() {
                    roots.insert(hash.as_slice(), 0)?;
                    due.insert((0, hash.as_slice()), ())?;
                }
            }
        }
        fail_point!("provides.added");
        write.commit()?;
        hashes.iter().for_each(|hash| self.provided.insert(hash));
        Ok(())
    }

    /// Removes roots. Durable on return.
    pub(crate) fn remove(&self, hashes: &[Vec<u8>]) -> Outcome<()> {
        let write = self.database.begin_write()?;
        {
            let mut roots = write.open_table(ROOTS)?;
            let mut due = write.open_table(DUE)?;
            for hash in hashes {
                if let Some(at) = roots.remove(hash.as_slice())?.map(|at| at.value()) {
                    due.remove((at, hash.as_slice()))?;
                }
            }
        }
        fail_point!("provides.removed");
        write.commit()?;
        hashes.iter().for_each(|hash| self.provided.remove(hash));
        Ok(())
    }

    /// Notes when roots are due next; those that were removed meanwhile stay removed.
    pub(crate) fn announced(&self, results: &[(Vec<u8>, Timestamp)]) -> Outcome<()> {
        let write = self.database.begin_write()?;
        {
            let mut roots = write.open_table(ROOTS)?;
            let mut due = write.open_table(DUE)?;
            for (hash, next) in results {
                let Some(at) = roots.get(hash.as_slice())?.map(|at| at.value()) else { continue };
                due.remove((at, hash.as_slice()))?;
                roots.insert(hash.as_slice(), next.as_millis())?;
                due.insert((next.as_millis(), hash.as_slice()), ())?;
            }
        }
        write.commit()?;
        Ok(())
    }

    /// The first `most` roots by due time that `skip` does not name.
    pub(crate) fn first(&self, now: Timestamp, most: usize, skip: impl Fn(&[u8]) -> bool) -> Outcome<Batch> {
        let read = self.database.begin_read()?;
        let due = read.open_table(DUE)?;
        let mut batch = Batch { total: due.len()?, ..Batch::default() };
        for entry in due.iter()? {
            let (key, _) = entry?;
            let (at, hash) = key.value();
            let late = at <= now.as_millis();
            if batch.roots.len() < most && !skip(hash) {
                batch.roots.push((Timestamp::from_millis(at), hash.to_vec()));
            }
            batch.backlog += u64::from(late);
            let full = batch.roots.len() >= most;
            if full && !late || batch.backlog >= MAX_COUNTED_BACKLOG as u64 {
                break;
            }
        }
        Ok(batch)
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(dir: &Path) -> (Store, Arc<Provided>) {
        let provided = Arc::new(Provided::new([1; 16]));
        (Store::open(dir, provided.clone()).unwrap(), provided)
    }

    fn hash(n: u8) -> Vec<u8> {
        vec![n; 34]
    }

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn roots_survive_and_keep_their_time() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path());
        store.add(&[hash(1), hash(2), hash(3)]).unwrap();
        store.announced(&[(hash(1), at(500)), (hash(9), at(1))]).unwrap();
        store.remove(&[hash(3), hash(8)]).unwrap();
        drop(store);
        let (store, provided) = open(dir.path());
        assert_eq!(provided.len(), 2);
        assert!(provided.contains(&hash(1)) && provided.contains(&hash(2)) && !provided.contains(&hash(3)));
        let batch = store.first(at(499), 10, |_| false).unwrap();
        assert_eq!(batch, Batch { roots: vec![(at(0), hash(2)), (at(500), hash(1))], total: 2, backlog: 1 });
    }

    #[test]
    fn adding_again_does_not_announce_again() {
        let dir = tempfile::tempdir().unwrap();
        let (store, provided) = open(dir.path());
        store.add(&[hash(1)]).unwrap();
        store.announced(&[(hash(1), at(500))]).unwrap();
        store.add(&[hash(1), hash(1)]).unwrap();
        assert_eq!(store.first(at(0), 10, |_| false).unwrap().roots, [(at(500), hash(1))]);
        assert_eq!(provided.len(), 1);
    }

    #[test]
    fn what_was_removed_during_its_announcement_stays_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path());
        store.add(&[hash(1)]).unwrap();
        store.remove(&[hash(1)]).unwrap();
        store.announced(&[(hash(1), at(500))]).unwrap();
        assert_eq!(store.first(at(1_000), 10, |_| false).unwrap(), Batch::default());
    }

    #[test]
    fn a_batch_is_bounded_and_skips() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(dir.path());
        store.add(&(0..10).map(hash).collect::<Vec<_>>()).unwrap();
        let batch = store.first(at(1), 3, |hash| hash[0] == 1).unwrap();
        assert_eq!(batch.roots.iter().map(|(_, hash)| hash[0]).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!((batch.total, batch.backlog), (10, 10));
    }

    #[test]
    fn a_foreign_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), b"no database").unwrap();
        let error = Store::open(dir.path(), Arc::new(Provided::new([0; 16]))).err().unwrap();
        assert!(error.to_string().contains(FILE), "{error}");
    }
}
