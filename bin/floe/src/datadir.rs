//! The data directory: what is in it, whose it is, and that one process at a time has it.
//!
//! ```text
//!   DATA/                  0700
//!     version              "1", or "1 initialising" until everything below was made once
//!     lock                 flock'ed by the process that runs on it; holds its id for the message
//!     config.toml          the operator's
//!     identity.key         the node's Ed25519 key
//!     admin.token          secrets of two tokens; the rows hold only their hashes
//!     pin.token
//!     pull.key             signs the URLs that storage providers pull from
//!     wallet.key           the key that pays for deals, where `floe wallet new` made it
//!     rows.sqlite          pins, accounts, tokens (floe-records), with -wal and -shm
//!     rows.reserve         space given up so that removals go on when the disk is full
//!     blocks/              packs and their index (floe-blockstore)
//!     provides-1.redb      what is announced (floe-ipfs)
//!     endpoints.json       where a running node can be reached; gone when none runs
//! ```
//!
//! A directory that holds anything and has no `version` is not ours, and nothing is written into it. Small files are
//! written beside their name, synced, renamed, and the directory synced, so that each is there whole or not at
//! all; `version` says `initialising` until the last of them is there, and a start that finds that goes on where
//! the crash was. The lock is the kernel's: it ends with the process, whatever way that ends.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use thiserror::Error;

use crate::exit::Code;
use crate::limits;

/// The layout this Floe writes and reads.
const VERSION: u32 = 1;
/// Names that may be in a directory that is still empty to us: what a crash before `version` leaves, what a new file
/// system has, and the settings, which an operator may write before anything runs.
const HARMLESS: &[&str] = &["lock", ".version.tmp", "lost+found", "config.toml"];

/// Why a data directory is not used.
#[derive(Debug, Error)]
pub(crate) enum DataDirError {
    /// Something else lives there.
    #[error(
        "{} is not a data directory of Floe: it holds {found:?} and no version file; choose another --data-dir",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// There is no directory.
    #[error("{} is no directory: choose another --data-dir", path.display())]
    NotADirectory {
        /// What is there.
        path: PathBuf,
    },
    /// The version file says nothing that can be understood.
    #[error("{} says {found:?}, which no Floe writes: restore the directory from its backup", path.display())]
    Unreadable {
        /// The version file.
        path: PathBuf,
        /// Its beginning.
        found: String,
    },
    /// A later Floe made it.
    #[error(
        "{} was written by a newer Floe (layout {found}; this one knows {VERSION}): use the newer one",
        path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its layout.
        found: u32,
    },
    /// Another process runs on it.
    #[error("{} is in use by another process{}: stop it first", path.display(), holder_words(holder))]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// What the other process wrote about itself.
        holder: Option<u32>,
    },
    /// It has to be there and is not.
    #[error("{} is no data directory: `floe init` or `floe serve` makes one", path.display())]
    Missing {
        /// The directory.
        path: PathBuf,
    },
    /// Neither `--data-dir` nor `FLOE_DATA_DIR` nor a home directory.
    #[error("no data directory: set --data-dir or FLOE_DATA_DIR (there is no HOME to put .floe in)")]
    Nowhere,
    /// A file could not be read or written.
    #[error(
        "cannot {doing} {}: Floe has to own its data directory, on a volume that can be written",
        path.display()
    )]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be synced.
    #[error("{} could not be synced, so what is on disk is unknown: look at the disk, and start again", path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn holder_words(holder: &Option<u32>) -> String {
    holder.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl DataDirError {
    /// Whether it is nothing but a disk without room.
    fn is_full_disk(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Sync { source, .. } => is_full(source),
            _ => false,
        }
    }

    /// Whether what is on disk is unknown. A sync that finds no room says only that the disk is full.
    pub(crate) fn is_failed_sync(&self) -> bool {
        matches!(self, Self::Sync { source, .. } if !is_full(source))
    }

    /// The exit code it ends the process with.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Foreign { .. }
            | Self::NotADirectory { .. }
            | Self::Unreadable { .. }
            | Self::Newer { .. }
            | Self::Locked { .. } => Code::DataDir,
            Self::Nowhere => Code::Usage,
            _ if self.is_full_disk() => Code::NoSpace,
            Self::Sync { .. } => Code::SyncFailed,
            Self::Missing { .. } | Self::Io { .. } => Code::Failure,
        }
    }
}

/// Whether there was no room for it.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Where things are. Says nothing about whether they are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout of a directory.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory that was given, else `~/.floe`.
    pub(crate) fn choose(given: Option<PathBuf>, home: Option<PathBuf>) -> Result<Self, DataDirError> {
        Self::given_or(given, home, ".floe")
    }

    /// The directory that was given, else `~/.floe-devnet`: what was done with one chain is of no use with another.
    pub(crate) fn choose_for_devnet(
        given: Option<PathBuf>,
        home: Option<PathBuf>,
    ) -> Result<Self, DataDirError> {
        Self::given_or(given, home, ".floe-devnet")
    }

    fn given_or(given: Option<PathBuf>, home: Option<PathBuf>, name: &str) -> Result<Self, DataDirError> {
        let in_home = || home.filter(|h| !h.as_os_str().is_empty()).map(|h| h.join(name));
        let chosen = given.filter(|dir| !dir.as_os_str().is_empty()).or_else(in_home);
        chosen.map(Self::new).ok_or(DataDirError::Nowhere)
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The node's key.
    pub(crate) fn identity(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    /// The operator's token.
    pub(crate) fn admin_token(&self) -> PathBuf {
        self.root.join("admin.token")
    }

    /// The token to give to a Kubo.
    pub(crate) fn pin_token(&self) -> PathBuf {
        self.root.join("pin.token")
    }

    /// The key of the URLs that storage providers pull from.
    pub(crate) fn pull_key(&self) -> PathBuf {
        self.root.join("pull.key")
    }

    /// The settings.
    pub(crate) fn config(&self) -> PathBuf {
        crate::config::file::path_in(&self.root)
    }

    /// The rows.
    pub(crate) fn rows(&self) -> PathBuf {
        self.root.join("rows.sqlite")
    }

    /// Space that the rows give up when the disk is full.
    pub(crate) fn rows_reserve(&self) -> PathBuf {
        self.root.join("rows.reserve")
    }

    /// The blocks.
    pub(crate) fn blocks(&self) -> PathBuf {
        self.root.join("blocks")
    }

    /// Where a running node can be reached.
    pub(crate) fn endpoints(&self) -> PathBuf {
        self.root.join("endpoints.json")
    }

    /// The wallet's key, where `filecoin.wallet` names no other.
    pub(crate) fn wallet(&self) -> PathBuf {
        self.root.join("wallet.key")
    }

    /// Whether a data directory is there.
    pub(crate) fn is_made(&self) -> bool {
        self.version().exists()
    }

    fn version(&self) -> PathBuf {
        self.root.join("version")
    }

    /// Held by the process that runs on the directory.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }
}

/// A data directory that this process has for itself until this value is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    layout: Layout,
    initialising: bool,
    /// Held, not read: closing the file gives the lock back.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, and makes it if it is missing or empty. What belongs into it is made by
    /// [`crate::init::complete`]; until [`DataDir::initialised`] it counts as half made.
    pub(crate) fn open_or_make(layout: Layout) -> Result<Self, DataDirError> {
        // Looked at before the lock, because nothing may be written into a directory that is not ours.
        look(&layout)?;
        let root = layout.root();
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(root);
        made.map_err(io_error("make", root))?;
        let lock = take_lock(&layout.lock())?;
        // What a killed node left: nobody is to be told of it while we hold the lock.
        remove(&layout.endpoints())?;
        let initialising = match look(&layout)? {
            State::Empty => {
                write_version(&layout, true)?;
                true
            }
            State::Initialising => true,
            State::Complete => false,
        };
        Ok(Self { layout, initialising, _lock: lock })
    }

    /// Takes a directory that must be there, for offline work on it.
    pub(crate) fn open(layout: Layout) -> Result<Self, DataDirError> {
        match look(&layout)? {
            State::Empty => Err(DataDirError::Missing { path: layout.root.clone() }),
            State::Initialising | State::Complete => Self::open_or_make(layout),
        }
    }

    /// Where things are.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether parts of it may still have to be made.
    pub(crate) fn is_initialising(&self) -> bool {
        self.initialising
    }

    /// Everything is there: from now on a missing part is a loss and not a crash during `init`.
    pub(crate) fn initialised(&mut self) -> Result<(), DataDirError> {
        if self.initialising {
            fail::fail_point!("datadir.initialised");
            write_version(&self.layout, false)?;
            self.initialising = false;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Initialising,
    Complete,
}

fn look(layout: &Layout) -> Result<State, DataDirError> {
    let path = layout.version();
    match read_start(&path) {
        Ok(text) => version_of(layout, &text),
        Err(e) if e.kind() == io::ErrorKind::NotFound => match first_foreign(layout.root())? {
            Some(found) => Err(DataDirError::Foreign { path: layout.root.clone(), found }),
            None => Ok(State::Empty),
        },
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            Err(DataDirError::NotADirectory { path: layout.root.clone() })
        }
        Err(source) => Err(io_error("read", &path)(source)),
    }
}

fn version_of(layout: &Layout, text: &str) -> Result<State, DataDirError> {
    let mut words = text.split_whitespace();
    let version = words.next().and_then(|word| word.parse::<u32>().ok());
    match (version, words.next()) {
        (Some(found), _) if found > VERSION => Err(DataDirError::Newer { path: layout.root.clone(), found }),
        (Some(VERSION), None) => Ok(State::Complete),
        (Some(VERSION), Some("initialising")) => Ok(State::Initialising),
        _ => Err(DataDirError::Unreadable { path: layout.version(), found: text.chars().take(40).collect() }),
    }
}

/// The file's first bytes: a version file is a line, and what is not must not fill the memory.
fn read_start(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(256).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn first_foreign(root: &Path) -> Result<Option<String>, DataDirError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("list", root)(source)),
    };
    for entry in entries {
        let name = entry.map_err(io_error("list", root))?.file_name();
        if !HARMLESS.iter().any(|harmless| name == *harmless) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn write_version(layout: &Layout, initialising: bool) -> Result<(), DataDirError> {
    let text = if initialising { format!("{VERSION} initialising\n") } else { format!("{VERSION}\n") };
    write_whole(&layout.version(), text.as_bytes())
}

fn take_lock(path: &Path) -> Result<File, DataDirError> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut file = open.map_err(io_error("open", path))?;
    let mut tries = limits::LOCK_TRIES;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) if tries > 1 => std::thread::sleep(limits::LOCK_PAUSE),
            Err(Errno::WOULDBLOCK) => {
                return Err(DataDirError::Locked { path: path.to_owned(), holder: holder(path) });
            }
            Err(errno) => return Err(io_error("lock", path)(errno.into())),
        }
        tries -= 1;
    }
    // The process id is for messages, and on a full disk there is none: that must not keep a node from freeing space.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// What the lock's holder wrote about itself.
fn holder(lock: &Path) -> Option<u32> {
    read_start(lock).ok().and_then(|text| text.trim().parse().ok())
}

/// Whether the process with this id runs on the directory: somebody holds the lock, and does not say to be another.
pub(crate) fn is_run_by(layout: &Layout, pid: u32) -> io::Result<bool> {
    let path = layout.lock();
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    // Held for this moment where nobody else has it: who wants it then tries again.
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(holder(&path).is_none_or(|holder| holder == pid)),
        Err(errno) => Err(errno.into()),
    }
}

/// Writes a small file so that it is there whole or not at all, readable by its owner alone. Durable on return.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataDirError> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str)) else {
        return Err(io_error("write", path)(io::ErrorKind::InvalidInput.into()));
    };
    let temporary = dir.join(format!(".{name}.tmp"));
    let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let mut file = open.map_err(io_error("make", &temporary))?;
    file.write_all(bytes).map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(|source| sync_error(&temporary, source))?;
    fail::fail_point!("datadir.before_rename");
    fs::rename(&temporary, path).map_err(io_error("write", path))?;
    let dir_file = File::open(dir).map_err(io_error("open", dir))?;
    dir_file.sync_all().map_err(|source| sync_error(dir, source))
}

/// Removes a file if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), DataDirError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        _ => Ok(()),
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataDirError {
    let path = path.to_owned();
    move |source| DataDirError::Io { doing, path, source }
}

fn sync_error(path: &Path, source: io::Error) -> DataDirError {
    DataDirError::Sync { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("floe"));
        (dir, layout)
    }

    fn refused(layout: &Layout) -> DataDirError {
        let error = DataDir::open_or_make(layout.clone()).unwrap_err();
        assert_eq!(error.code(), Code::DataDir, "{error}");
        error
    }

    #[test]
    fn a_missing_directory_is_made_and_counts_as_half_made_until_it_is_whole() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_keep, layout) = fresh();
        let dir = DataDir::open_or_make(layout.clone()).unwrap();
        assert!(dir.is_initialising());
        assert_eq!(fs::metadata(layout.root()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(dir);
        let mut dir = DataDir::open_or_make(layout.clone()).unwrap();
        assert!(dir.is_initialising(), "a crash before the end is gone on with");
        dir.initialised().unwrap();
        drop(dir);
        assert!(!DataDir::open_or_make(layout).unwrap().is_initialising());
    }

    #[test]
    fn what_a_crash_before_the_version_file_leaves_is_taken_up() {
        let (_keep, layout) = fresh();
        fs::create_dir(layout.root()).unwrap();
        fs::write(layout.root().join("lock"), "").unwrap();
        fs::write(layout.root().join(".version.tmp"), "1 init").unwrap();
        assert!(DataDir::open_or_make(layout).unwrap().is_initialising());
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_as_it_is() {
        let (_keep, layout) = fresh();
        fs::create_dir(layout.root()).unwrap();
        fs::write(layout.root().join("thesis.tex"), "words").unwrap();
        let said = refused(&layout).to_string();
        assert!(said.contains("thesis.tex") && said.contains("--data-dir"), "{said}");
        assert_eq!(fs::read_dir(layout.root()).unwrap().count(), 1, "something was written into it");
    }

    #[test]
    fn a_failed_sync_is_told_from_a_full_disk() {
        let sync = |kind: io::ErrorKind| sync_error(Path::new("f"), kind.into());
        assert!(sync(io::ErrorKind::Other).is_failed_sync());
        assert!(!sync(io::ErrorKind::StorageFull).is_failed_sync());
        assert!(!sync(io::ErrorKind::QuotaExceeded).is_failed_sync());
        assert!(!io_error("write", Path::new("f"))(io::ErrorKind::Other.into()).is_failed_sync());
    }

    /// A `--data-dir` that is a file ended with exit code 1 and the bare words "Not a directory".
    #[test]
    fn a_file_is_refused_as_a_directory() {
        let (_keep, layout) = fresh();
        fs::write(layout.root(), "words").unwrap();
        let said = refused(&layout).to_string();
        assert!(said.contains("is no directory") && said.contains("--data-dir"), "{said}");
    }

    #[test]
    fn what_fails_is_named_with_what_to_do() {
        let (_keep, layout) = fresh();
        let error = write_whole(&layout.root().join("secret"), b"").unwrap_err();
        let said = error.to_string();
        assert!(said.starts_with("cannot make /") && said.contains("own its data directory"), "{said}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn who_runs_on_it_holds_its_lock() {
        let (_keep, layout) = fresh();
        let me = std::process::id();
        assert!(!is_run_by(&layout, me).unwrap());
        let dir = DataDir::open_or_make(layout.clone()).unwrap();
        assert!(is_run_by(&layout, me).unwrap());
        assert!(!is_run_by(&layout, me + 1).unwrap(), "another process has it");
        // As on a disk that had no room for the process id.
        fs::write(layout.lock(), "").unwrap();
        assert!(is_run_by(&layout, me).unwrap());
        drop(dir);
        assert!(!is_run_by(&layout, me).unwrap(), "killed");
    }

    #[test]
    fn a_newer_directory_is_refused() {
        let (_keep, layout) = fresh();
        drop(DataDir::open_or_make(layout.clone()).unwrap());
        fs::write(layout.version(), "2 with more words\n").unwrap();
        let said = refused(&layout).to_string();
        assert!(said.contains("newer Floe") && said.contains("layout 2"), "{said}");
    }

    #[test]
    fn a_version_file_without_sense_is_refused() {
        let (_keep, layout) = fresh();
        drop(DataDir::open_or_make(layout.clone()).unwrap());
        for text in ["", "one", "0", "1 done", "\u{0}\u{0}"] {
            fs::write(layout.version(), text).unwrap();
            assert!(matches!(refused(&layout), DataDirError::Unreadable { .. }), "{text:?}");
        }
    }

    #[test]
    fn one_process_at_a_time_has_it() {
        let (_keep, layout) = fresh();
        let first = DataDir::open_or_make(layout.clone()).unwrap();
        let said = refused(&layout).to_string();
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        drop(first);
        DataDir::open_or_make(layout).unwrap();
    }

    #[test]
    fn offline_work_makes_no_directory() {
        let (_keep, layout) = fresh();
        assert!(matches!(DataDir::open(layout.clone()), Err(DataDirError::Missing { .. })));
        assert!(!layout.root().exists());
    }

    #[test]
    fn the_home_directory_is_the_last_resort() {
        let chosen = |given: Option<&str>, home: Option<&str>| {
            Layout::choose(given.map(Into::into), home.map(Into::into)).map(|l| l.root)
        };
        assert_eq!(chosen(Some("/data"), Some("/home/you")).unwrap(), Path::new("/data"));
        assert_eq!(chosen(None, Some("/home/you")).unwrap(), Path::new("/home/you/.floe"));
        assert!(matches!(chosen(None, Some("")), Err(DataDirError::Nowhere)));
        let beside = Layout::choose_for_devnet(None, Some("/home/you".into())).unwrap();
        assert_eq!(beside.root, Path::new("/home/you/.floe-devnet"));
    }

    #[test]
    fn a_file_is_written_whole_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
