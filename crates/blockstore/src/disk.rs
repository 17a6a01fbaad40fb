//! The disk under the packs and the redb index: real, or faulty for tests.
//!
//! Few methods that map to what the system offers. Paths are absolute; nothing is buffered here; nothing is
//! durable before [`DiskFile::sync`] (bytes and length) or [`Disk::sync_dir`] (names) returned `Ok`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// It must exist.
    Existing,
    /// It must not exist.
    New,
    /// Either.
    Any,
}

/// Bytes on the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// What this user may still write.
    pub free: u64,
    /// The size of the volume.
    pub total: u64,
}

/// The disk under the packs: real, or faulty for tests.
pub trait Disk: Send + Sync + 'static {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// As the system says; `NotFound` and `AlreadyExists` per [`Open`].
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes a directory and its parents; one that exists is fine.
    ///
    /// # Errors
    /// As the system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// As the system says; `NotFound` where there is none.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Removes a file. Open handles stay readable.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames a file over another, atomically.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the system says; what is durable is unknown then.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Space on the volume of `dir`.
    ///
    /// # Errors
    /// As the system says.
    fn space(&self, dir: &Path) -> io::Result<Space>;
}

/// An open file. All calls take an offset, so one handle serves many threads.
pub trait DiskFile: Send + Sync + 'static {
    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file ends before.
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all parts one after the other from `offset`, growing the file. After an error any part of it may
    /// be written.
    ///
    /// # Errors
    /// As the system says.
    fn write_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Makes bytes and length durable.
    ///
    /// # Errors
    /// As the system says; what is durable is unknown then and must not be synced again.
    fn sync(&self) -> io::Result<()>;
    /// Cuts or grows (with zeros) the file.
    ///
    /// # Errors
    /// As the system says.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// The length in bytes.
    ///
    /// # Errors
    /// As the system says.
    fn size(&self) -> io::Result<u64>;
    /// Gives the bytes of a range back to the volume; they read as zeros. A file system that cannot answers
    /// `Unsupported`.
    ///
    /// # Errors
    /// As the system says.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Takes `len` bytes of the volume for the file, from its start.
    ///
    /// # Errors
    /// As the system says.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// The system need not keep a durable range in memory any longer. A hint: it loses nothing and cannot fail.
    fn uncache(&self, _offset: u64, _len: u64) {}
}

/// The real disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

struct RealFile(File);

impl Disk for RealDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        match how {
            Open::Existing => {}
            Open::New => {
                options.create_new(true);
            }
            Open::Any => {
                options.create(true).truncate(false);
            }
        }
        Ok(Arc::new(RealFile(options.open(path)?)))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        let s = rustix::fs::statvfs(dir)?;
        Ok(Space { free: s.f_bavail * s.f_frsize, total: s.f_blocks * s.f_frsize })
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write_at(&self, parts: &mut [IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        /// Linux takes no more parts in one call.
        const IOV_MAX: usize = 1024;
        let mut left = parts;
        while left.iter().any(|p| !p.is_empty()) {
            let some = &left[..left.len().min(IOV_MAX)];
            let n = match rustix::io::pwritev(&self.0, some, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            offset += n as u64;
            IoSlice::advance_slices(&mut left, n);
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        fail::fail_point!("disk.sync", |_| Err(io::Error::other("the disk failed on purpose")));
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, mode, offset, len)?)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len)?)
    }

    fn uncache(&self, offset: u64, len: u64) {
        let len = std::num::NonZeroU64::new(len);
        if len.is_some()
            && let Err(error) = rustix::fs::fadvise(&self.0, offset, len, rustix::fs::Advice::DontNeed)
        {
            tracing::trace!(%error, "the page cache keeps what was written: {error}");
        }
    }
}

/// Reads a whole small file; `None` where there is none.
pub(crate) fn read_small(disk: &dyn Disk, path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, Open::Existing) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let len = file.size()?.min(most);
    let mut out = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    file.read_at(&mut out, 0)?;
    Ok(Some(out))
}

/// Writes a small file under another name, syncs it, and renames it into place, durably.
pub(crate) fn write_small(disk: &dyn Disk, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let file = disk.open(&new, Open::Any)?;
    file.set_len(0)?;
    file.write_at(&mut [IoSlice::new(bytes)], 0)?;
    file.sync()?;
    disk.rename(&new, &dir.join(name))?;
    disk.sync_dir(dir)
}
