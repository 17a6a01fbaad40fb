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
//!
//! redb takes nothing more after a write that failed, so after any error the database is closed, and the next call
//! opens it again: a full disk refuses what it has no room for, and nothing else. A failed sync is fatal: from then on
//! every call is refused, and the process should end.
//!
//! A table that is damaged at a start is put aside and made anew: whoever keeps the roots announces all of them again.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fail::fail_point;
use floe_core::Timestamp;
use parking_lot::Mutex;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, Table, TableDefinition,
};

use super::Provided;
use super::file::{OpenFile, Watched, is_redb};
use crate::Error;
use crate::limits::{MAX_COUNTED_BACKLOG, PROVIDES_CACHE};

const ROOTS: TableDefinition<'_, &[u8], u64> = TableDefinition::new("roots-1");
const DUE: TableDefinition<'_, (u64, &[u8]), ()> = TableDefinition::new("due-1");

/// The file's name in the data directory.
pub(crate) const FILE: &str = "provides-1.redb";

/// See the module.
pub(crate) struct Store {
    /// Empty after an error (or a panic of redb), and once it is closed.
    database: Mutex<Option<Database>>,
    /// Changes under the lock of `database`.
    closed: AtomicBool,
    open_file: OpenFile,
    sync_failed: Arc<AtomicBool>,
    path: PathBuf,
    provided: Arc<Provided>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// Nothing was acknowledged; the same call may go well later.
    #[error("{path}: {source}")]
    Refused {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: redb::Error,
    },
    /// What is on disk is unknown. Fatal.
    #[error("{path} could not be synced")]
    Sync {
        /// The file.
        path: PathBuf,
    },
    /// The node has stopped, and the file may be another node's by now.
    #[error("the node has stopped")]
    Closed,
}

impl Failed {
    /// A call panicked, as redb does on some damaged files.
    pub(crate) fn panicked(path: PathBuf, panic: &tokio::task::JoinError) -> Self {
        Self::Refused { path, source: redb::Error::Corrupted(panic.to_string()) }
    }

    fn is_full_disk(&self) -> bool {
        matches!(self, Self::Refused { source: redb::Error::Io(e), .. } if e.kind() == io::ErrorKind::StorageFull)
    }

    /// Whether the file is damaged, rather than the disk.
    fn is_damage(&self) -> bool {
        match self {
            Self::Refused { source: redb::Error::Io(error), .. } => is_of_content(error),
            Self::Refused { source, .. } => !matches!(
                source,
                redb::Error::DatabaseAlreadyOpen
                    | redb::Error::LockProtocolMismatch
                    | redb::Error::UpgradeRequired(_)
            ),
            Self::Sync { .. } | Self::Closed => false,
        }
    }
}

/// Whether an error is one of what is in a file, such as that it ends too soon, and not of the disk under it.
fn is_of_content(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | UnexpectedEof)
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
type Roots<'a> = Table<'a, &'static [u8], u64>;
type Due<'a> = Table<'a, (u64, &'static [u8]), ()>;

impl Store {
    /// Opens the table, or makes it; fills `provided`. On a full disk it may stay closed for now. What is damaged is
    /// put aside; what is no file of redb is somebody's, and refused.
    pub(crate) fn open(dir: &Path, open_file: OpenFile, provided: Arc<Provided>) -> Result<Self, Error> {
        let store = Self {
            database: Mutex::default(),
            closed: AtomicBool::new(false),
            open_file,
            sync_failed: Arc::default(),
            path: dir.join(FILE),
            provided,
        };
        let mut opened = store.try_open();
        if let Err(failed) = &opened
            && failed.is_damage()
            && is_redb(&store.path)
        {
            store.put_aside(failed)?;
            opened = store.try_open();
        }
        match opened {
            Ok(()) => {}
            Err(failed) if failed.is_full_disk() => {
                tracing::warn!(file = %store.path.display(), "the disk is full: {failed}; it is opened when there is space");
            }
            Err(Failed::Refused { path, source: redb::Error::Io(source) }) if !is_of_content(&source) => {
                return Err(Error::File { path, source });
            }
            Err(Failed::Refused { path, source }) => {
                return Err(Error::Provides { path, reason: source.to_string() });
            }
            Err(failed) => return Err(Error::SyncFailed(failed.to_string())),
        }
        Ok(store)
    }

    /// Opens the table. redb panics on some damaged files.
    fn try_open(&self) -> Result<(), Failed> {
        catch_unwind(AssertUnwindSafe(|| self.with(|_| Ok(())))).unwrap_or_else(|_| {
            let source = redb::Error::Corrupted("redb panicked".to_owned());
            Err(Failed::Refused { path: self.path.clone(), source })
        })
    }

    /// The table is derived: it is not worth a start. What was read of it is forgotten, so that it counts as lost.
    fn put_aside(&self, failed: &Failed) -> Result<(), Error> {
        let aside = self.path.with_extension("redb.damaged");
        let source = |source| Error::File { path: self.path.clone(), source };
        std::fs::rename(&self.path, &aside).map_err(source)?;
        self.provided.clear();
        tracing::warn!("{failed}: it is now {}, and all roots are announced again", aside.display());
        Ok(())
    }

    /// Waits for the calls under way, and closes the file for good: it can be opened again by others.
    pub(crate) fn close(&self) {
        let mut slot = self.database.lock();
        self.closed.store(true, Ordering::Relaxed);
        *slot = None;
    }

    /// Works with the database, which is opened where it is not. After an error it is closed.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Outcome<T>) -> Result<T, Failed> {
        let mut slot = self.database.lock();
        if self.closed.load(Ordering::Relaxed) {
            return Err(Failed::Closed);
        }
        let synced = || !self.sync_failed.load(Ordering::Acquire);
        let done = match slot.take() {
            _ if !synced() => return Err(Failed::Sync { path: self.path.clone() }),
            Some(database) => Ok(database),
            None => self.open_database(),
        }
        .and_then(|database| Ok((work(&database)?, database)));
        match done {
            Ok((done, database)) => {
                *slot = Some(database);
                Ok(done)
            }
            Err(source) if synced() => Err(Failed::Refused { path: self.path.clone(), source }),
            Err(_) => Err(Failed::Sync { path: self.path.clone() }),
        }
    }

    /// The file, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn open_database(&self) -> Outcome<Database> {
        let file = Watched { file: (self.open_file)(&self.path)?, sync_failed: self.sync_failed.clone() };
        let database = Database::builder().set_cache_size(PROVIDES_CACHE).create_with_backend(file)?;
        self.load(&database)?;
        Ok(database)
    }

    fn load(&self, database: &Database) -> Outcome<()> {
        // Opened again on a full disk, it must not need space.
        if database.begin_read()?.open_table(DUE).is_err() {
            // A table that was never written cannot be opened for reading.
            let write = database.begin_write()?;
            write.open_table(DUE)?;
            write.open_table(ROOTS)?;
            write.commit()?;
        }
        let roots = database.begin_read()?.open_table(ROOTS)?;
        for entry in roots.iter()? {
            self.provided.insert(entry?.0.value());
        }
        Ok(())
    }

    /// Adds roots that are not there yet, due at once. Durable on return.
    pub(crate) fn add(&self, hashes: &[Vec<u8>]) -> Result<(), Failed> {
        self.change(|roots, due| {
            for hash in hashes {
                if roots.get(hash.as_slice())?.is_none() {
                    roots.insert(hash.as_slice(), 0)?;
                    due.insert((0, hash.as_slice()), ())?;
                }
            }
            fail_point!("provides.added");
            Ok(())
        })?;
        hashes.iter().for_each(|hash| self.provided.insert(hash));
        Ok(())
    }

    /// Removes roots. Durable on return.
    pub(crate) fn remove(&self, hashes: &[Vec<u8>]) -> Result<(), Failed> {
        self.change(|roots, due| {
            for hash in hashes {
                if let Some(at) = roots.remove(hash.as_slice())?.map(|at| at.value()) {
                    due.remove((at, hash.as_slice()))?;
                }
            }
            fail_point!("provides.removed");
            Ok(())
        })?;
        hashes.iter().for_each(|hash| self.provided.remove(hash));
        Ok(())
    }

    /// Notes when roots are due next; those that were removed meanwhile stay removed.
    pub(crate) fn announced(&self, results: &[(Vec<u8>, Timestamp)]) -> Result<(), Failed> {
        self.change(|roots, due| {
            for (hash, next) in results {
                let Some(at) = roots.get(hash.as_slice())?.map(|at| at.value()) else { continue };
                due.remove((at, hash.as_slice()))?;
                roots.insert(hash.as_slice(), next.as_millis())?;
                due.insert((next.as_millis(), hash.as_slice()), ())?;
            }
            Ok(())
        })
    }

    /// Changes both tables in one transaction.
    fn change(&self, work: impl FnOnce(&mut Roots<'_>, &mut Due<'_>) -> Outcome<()>) -> Result<(), Failed> {
        self.with(|database| {
            let write = database.begin_write()?;
            work(&mut write.open_table(ROOTS)?, &mut write.open_table(DUE)?)?;
            Ok(write.commit()?)
        })
    }

    /// The first `most` roots by due time that `skip` does not name.
    pub(crate) fn first(
        &self,
        now: Timestamp,
        most: usize,
        skip: impl Fn(&[u8]) -> bool,
    ) -> Result<Batch, Failed> {
        self.with(|database| {
            let due = database.begin_read()?.open_table(DUE)?;
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
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provide::file::on_disk;
    use crate::testing::FaultyFile;

    fn open(dir: &Path) -> (Store, Arc<Provided>) {
        open_on(on_disk(), dir)
    }

    fn open_on(file: OpenFile, dir: &Path) -> (Store, Arc<Provided>) {
        let provided = Arc::new(Provided::new([1; 16]));
        (Store::open(dir, file, provided.clone()).unwrap(), provided)
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
        let error = Store::open(dir.path(), on_disk(), Arc::new(Provided::new([0; 16]))).err().unwrap();
        assert!(error.to_string().contains(FILE), "{error}");
    }

    /// The story: the node was killed, or its disk was full, while the table was made for the first time. What was left had
    /// its length and no magic number, and every later start ended with "magic number mismatch" until somebody removed
    /// the file.
    #[test]
    fn a_table_that_was_begun_and_not_finished_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut header_only = vec![0; 1 << 20];
        // Cut off between the header and its magic number.
        header_only[9..320].fill(7);
        for begun in [vec![0; 1 << 20], header_only] {
            std::fs::write(&path, &begun).unwrap();
            let (store, _) = open(dir.path());
            store.add(&[hash(1)]).unwrap();
            drop(store);
            let (store, _) = open(dir.path());
            assert_eq!(store.first(at(0), 10, |_| false).unwrap().roots, [(at(0), hash(1))]);
        }
    }

    #[test]
    fn a_file_with_another_magic_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut other = vec![0; 1 << 20];
        other[8] = 1;
        for foreign in [other, vec![0; 8], b"SQLite format 3".to_vec()] {
            std::fs::write(&path, &foreign).unwrap();
            assert!(Store::open(dir.path(), on_disk(), Arc::new(Provided::new([0; 16]))).is_err());
            assert!(std::fs::read(&path).unwrap() == foreign, "it is somebody's");
        }
    }

    /// The story: redb answers some damaged files with an error and some with a panic. The first ended every start with exit
    /// code 1, so that systemd started the node for ever; the second ended it with a backtrace.
    #[test]
    fn r10_a_damaged_table_is_put_aside_and_made_anew() {
        let good = {
            let dir = tempfile::tempdir().unwrap();
            let (store, _) = open(dir.path());
            store.add(&(0..200).map(hash).collect::<Vec<_>>()).unwrap();
            drop(store);
            std::fs::read(dir.path().join(FILE)).unwrap()
        };
        let (mut made_anew, mut turned) = (0, good.clone());
        turned[9] ^= 0xff;
        let mut damaged =
            vec![good[..good.len() / 2].to_vec(), good[..100].to_vec(), good[..9].to_vec(), turned];
        // Every page of the header and the tables.
        for at in (320..good.len()).step_by(4096) {
            let mut zeroed = good.clone();
            zeroed[at..good.len().min(at + 4096)].fill(0xa5);
            damaged.push(zeroed);
        }
        for bytes in damaged {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(FILE);
            std::fs::write(&path, &bytes).unwrap();
            let (store, provided) = open(dir.path());
            store.add(&[hash(1)]).unwrap();
            let aside = path.with_extension("redb.damaged");
            if aside.exists() {
                made_anew += 1;
                assert!(std::fs::read(&aside).unwrap().len() >= bytes.len().min(9));
                assert_eq!(
                    (provided.len(), provided.contains(&hash(1))),
                    (1, true),
                    "the rest counts as lost"
                );
            }
        }
        assert!(made_anew > 3, "{made_anew}");
    }

    /// The story: after one write that a full disk refused, redb refused every call for good, so that nothing was
    /// announced again until somebody restarted the node, and its provider records ran out.
    #[test]
    fn r03_a_full_disk_refuses_and_space_is_enough_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyFile::default();
        let (store, provided) = open_on(disk.open(), dir.path());
        store.add(&[hash(1), hash(2)]).unwrap();
        disk.fill(true);
        for _ in 0..2 {
            assert!(store.add(&[hash(3)]).unwrap_err().is_full_disk());
            assert!(store.remove(&[hash(1)]).unwrap_err().is_full_disk());
            assert!(store.announced(&[(hash(1), at(500))]).unwrap_err().is_full_disk());
        }
        disk.fill(false);
        assert!(provided.contains(&hash(1)) && !provided.contains(&hash(3)), "nothing was acknowledged");
        assert_eq!(store.first(at(0), 10, |_| false).unwrap().roots, [(at(0), hash(1)), (at(0), hash(2))]);
        store.announced(&[(hash(2), at(500))]).unwrap();
        store.remove(&[hash(1)]).unwrap();
        store.add(&[hash(3)]).unwrap();
        drop(store);
        let (store, _) = open(dir.path());
        assert_eq!(store.first(at(0), 10, |_| false).unwrap().roots, [(at(0), hash(3)), (at(500), hash(2))]);
    }

    #[test]
    fn r03_a_node_that_died_starts_on_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyFile::default();
        let (store, _) = open_on(disk.open(), dir.path());
        store.add(&[hash(1)]).unwrap();
        // What is on disk now was not closed: opening it writes.
        disk.fill(true);
        drop(store);
        let (store, _) = open_on(disk.open(), dir.path());
        assert!(store.first(at(0), 10, |_| false).unwrap_err().is_full_disk());
        disk.fill(false);
        assert_eq!(store.first(at(0), 10, |_| false).unwrap().total, 1);
    }

    #[test]
    fn r03_a_failed_sync_ends_the_table() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyFile::default();
        let (store, _) = open_on(disk.open(), dir.path());
        disk.fail_syncs(true);
        assert!(matches!(store.add(&[hash(1)]), Err(Failed::Sync { .. })));
        disk.fail_syncs(false);
        assert!(matches!(store.add(&[hash(1)]), Err(Failed::Sync { .. })), "never tried again");
        assert!(matches!(store.first(at(0), 10, |_| false), Err(Failed::Sync { .. })));
    }
}
