//! A disk in memory that fails on demand, and the disk images that a power cut leaves of it; and a disk that is watched.
//!
//! Test support, also for other crates. Nothing here is used by a running node.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, Open, Space};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call fails with EIO; of a write half arrives.
    Io,
    /// The call fails for lack of space; of a write half arrives.
    Full,
}

/// What is about to be done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// It is written up to this offset.
    Write(u64),
    /// It is cut or grown to this length.
    SetLen(u64),
    /// It is synced.
    Sync,
}

/// What is asked before a file is touched: it may wait, count, or refuse.
type Ask = dyn Fn(&Path, Touch) -> io::Result<()> + Send + Sync;

/// Another disk, where a closure is asked first, and may say how much space there is.
pub struct Watched<D> {
    disk: D,
    ask: Arc<Ask>,
    space: Option<Box<dyn Fn() -> Space + Send + Sync>>,
}

struct WatchedFile {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    ask: Arc<Ask>,
}

impl<D: Disk> Watched<D> {
    /// Asks `ask` before a file of `disk` is touched. Its error is that of the call, which is then not made.
    pub fn new(disk: D, ask: impl Fn(&Path, Touch) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { disk, ask: Arc::new(ask), space: None }
    }

    /// The volume has as much space as `space` says.
    pub fn with_space(disk: D, space: impl Fn() -> Space + Send + Sync + 'static) -> Self {
        Self { disk, ask: Arc::new(|_, _| Ok(())), space: Some(Box::new(space)) }
    }
}

impl<D: Disk> Disk for Watched<D> {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.disk.open(path, how)?;
        Ok(Arc::new(WatchedFile { file, path: path.into(), ask: self.ask.clone() }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        self.space.as_ref().map_or_else(|| self.disk.space(dir), |space| Ok(space()))
    }
}

impl DiskFile for WatchedFile {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(out, offset)
    }

    fn write_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let end = offset + parts.iter().map(|part| part.len() as u64).sum::<u64>();
        (self.ask)(&self.path, Touch::Write(end))?;
        self.file.write_at(parts, offset)
    }

    fn sync(&self) -> io::Result<()> {
        (self.ask)(&self.path, Touch::Sync)?;
        self.file.sync()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        (self.ask)(&self.path, Touch::SetLen(len))?;
        self.file.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.file.allocate(len)
    }

    fn uncache(&self, offset: u64, len: u64) {
        self.file.uncache(offset, len);
    }
}

/// A disk in memory. Clones share it.
#[derive(Clone)]
pub struct FaultyDisk(Arc<Mutex<World>>);

struct World {
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<u64, File>,
    next: u64,
    capacity: u64,
    calls: u64,
    plan: Option<Plan>,
}

struct Plan {
    at: u64,
    fault: Fault,
    sticky: bool,
}

#[derive(Default, Clone)]
struct File {
    bytes: Vec<u8>,
    /// The bytes as of the last sync, where they differ: sector number to its old contents.
    old: BTreeMap<u64, Vec<u8>>,
    durable_len: u64,
    punched: u64,
    handles: u64,
}

/// The unit that a disk writes as a whole.
const SECTOR: u64 = 512;

impl Default for FaultyDisk {
    fn default() -> Self {
        Self::new(1 << 40)
    }
}

impl FaultyDisk {
    /// An empty volume of `capacity` bytes.
    pub fn new(capacity: u64) -> Self {
        Self(Arc::new(Mutex::new(World {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            files: BTreeMap::new(),
            next: 1,
            capacity,
            calls: 0,
            plan: None,
        })))
    }

    /// Lets the `n`th changing call from now (counted from 1) fail; `sticky`: every later one too.
    pub fn fail_at(&self, n: u64, fault: Fault, sticky: bool) {
        let mut world = self.0.lock();
        let at = world.calls + n;
        world.plan = Some(Plan { at, fault, sticky });
    }

    /// Stops failing.
    pub fn heal(&self) {
        self.0.lock().plan = None;
    }

    /// Changing calls so far: writes, syncs, lengths, names, holes.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Makes the volume larger or smaller.
    pub fn resize(&self, capacity: u64) {
        self.0.lock().capacity = capacity;
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// What a power cut leaves: of all that was not synced, each sector, length and name is there or not, as
    /// the seed says.
    pub fn crash(&self, seed: u64) -> Self {
        let world = self.0.lock();
        let mut dice = Dice(seed | 1);
        let mut files = BTreeMap::new();
        for id in world.names.values().chain(world.durable_names.values()) {
            if let Some(file) = world.files.get(id) {
                files.entry(*id).or_insert_with(|| file.crashed(&mut dice));
            }
        }
        let mut names = world.durable_names.clone();
        let paths: BTreeSet<_> = world.names.keys().chain(world.durable_names.keys()).collect();
        for path in paths {
            if world.names.get(path) != world.durable_names.get(path) && dice.flip() {
                match world.names.get(path) {
                    Some(id) => names.insert(path.clone(), *id),
                    None => names.remove(path),
                };
            }
        }
        Self(Arc::new(Mutex::new(World {
            durable_names: names.clone(),
            names,
            dirs: world.dirs.clone(),
            files,
            next: world.next,
            capacity: world.capacity,
            calls: 0,
            plan: None,
        })))
    }

    /// Flips one bit of a file. Returns whether the file is that long.
    pub fn flip(&self, path: &Path, bit: u64) -> bool {
        let mut world = self.0.lock();
        let Some(id) = world.names.get(path).copied() else { return false };
        let byte = world.files.get_mut(&id).and_then(|f| f.bytes.get_mut((bit / 8) as usize));
        byte.map(|b| *b ^= 1 << (bit % 8)).is_some()
    }

    /// The files, with their lengths.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let world = self.0.lock();
        world.names.iter().map(|(p, id)| (p.clone(), world.files[id].bytes.len() as u64)).collect()
    }
}

/// A small generator of its own, so that a seed gives the same image for ever.
struct Dice(u64);

impl Dice {
    fn flip(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 63 == 1
    }
}

impl World {
    fn used(&self) -> u64 {
        let named: BTreeSet<_> = self.names.values().collect();
        let taken = |f: &File| (f.bytes.len() as u64).saturating_sub(f.punched);
        named.into_iter().filter_map(|id| self.files.get(id)).map(taken).sum()
    }

    /// Forgets a file without names and handles.
    fn forget(&mut self, id: u64) {
        let named = |names: &BTreeMap<PathBuf, u64>| names.values().any(|n| *n == id);
        let unused = self.files.get(&id).is_some_and(|f| f.handles == 0);
        if unused && !named(&self.names) && !named(&self.durable_names) {
            self.files.remove(&id);
        }
    }

    /// Counts a changing call, and says whether it fails.
    fn call(&mut self) -> Option<Fault> {
        self.calls += 1;
        let plan = self.plan.as_ref()?;
        (self.calls == plan.at || plan.sticky && self.calls > plan.at).then_some(plan.fault)
    }

    fn check(&mut self) -> io::Result<()> {
        self.call().map_or(Ok(()), |f| Err(f.error()))
    }
}

impl Fault {
    fn error(self) -> io::Error {
        match self {
            Self::Io => io::Error::from_raw_os_error(5),
            Self::Full => io::ErrorKind::StorageFull.into(),
        }
    }
}

impl File {
    fn crashed(&self, dice: &mut Dice) -> Self {
        let now = self.bytes.len() as u64;
        let len = if self.durable_len != now && dice.flip() { self.durable_len } else { now };
        let mut bytes = self.bytes.clone();
        bytes.resize(len as usize, 0);
        for (sector, old) in &self.old {
            let from = (sector * SECTOR) as usize;
            // What was cut off and comes back with the old length comes back as it was.
            if from < bytes.len() && (from as u64 >= now || dice.flip()) {
                let n = old.len().min(bytes.len() - from);
                bytes[from..from + n].copy_from_slice(&old[..n]);
            }
        }
        Self { durable_len: len, bytes, punched: self.punched, ..Self::default() }
    }

    /// Remembers the sectors of a range before they change.
    fn remember(&mut self, from: u64, to: u64) {
        if from == to {
            return;
        }
        for sector in from / SECTOR..=(to - 1) / SECTOR {
            let at = (sector * SECTOR) as usize;
            let bytes = &self.bytes;
            self.old.entry(sector).or_insert_with(|| {
                let mut old =
                    bytes.get(at..).map_or_else(Vec::new, |b| b[..b.len().min(SECTOR as usize)].to_vec());
                old.resize(SECTOR as usize, 0);
                old
            });
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let to = offset + data.len() as u64;
        self.remember(offset, to);
        if to > self.bytes.len() as u64 {
            self.bytes.resize(to as usize, 0);
        }
        self.bytes[offset as usize..to as usize].copy_from_slice(data);
    }
}

struct Handle {
    world: Arc<Mutex<World>>,
    id: u64,
}

impl Handle {
    fn change<T>(&self, f: impl FnOnce(&mut File) -> T) -> io::Result<T> {
        let mut world = self.world.lock();
        world.check()?;
        world.files.get_mut(&self.id).map(f).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn grow(&self, to: u64) -> io::Result<()> {
        let mut world = self.world.lock();
        world.check()?;
        let len = world.files.get(&self.id).map_or(0, |f| f.bytes.len() as u64);
        if world.used() + to.saturating_sub(len) > world.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = world.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let len = file.bytes.len() as u64;
        if to < len {
            file.remember(to, len);
        }
        file.bytes.resize(to as usize, 0);
        Ok(())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        if let Some(file) = world.files.get_mut(&self.id) {
            file.handles -= 1;
        }
        world.forget(self.id);
    }
}

impl DiskFile for Handle {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        let world = self.world.lock();
        let file = world.files.get(&self.id).ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let bytes = file.bytes.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, parts: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut data: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        let mut world = self.world.lock();
        let mut failed = world.call().map(Fault::error);
        let len = world.files.get(&self.id).map_or(0, |f| f.bytes.len() as u64);
        let growth = (offset + data.len() as u64).saturating_sub(len);
        if failed.is_none() && world.used() + growth > world.capacity {
            failed = Some(Fault::Full.error());
        }
        if failed.is_some() {
            data.truncate(if growth == 0 { data.len() / 2 } else { 0 });
        }
        let file = world.files.get_mut(&self.id).ok_or(io::ErrorKind::NotFound)?;
        file.write(offset, &data);
        failed.map_or(Ok(()), Err)
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|file| {
            file.old.clear();
            file.durable_len = file.bytes.len() as u64;
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.grow(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.world
            .lock()
            .files
            .get(&self.id)
            .map(|f| f.bytes.len() as u64)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|file| {
            file.write(offset, &vec![0; len as usize]);
            file.punched += len;
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.grow(len)
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<Arc<dyn DiskFile>> {
        let mut world = self.0.lock();
        let id = match (world.names.get(path).copied(), how) {
            (Some(_), Open::New) => return Err(io::ErrorKind::AlreadyExists.into()),
            (None, Open::Existing) => return Err(io::ErrorKind::NotFound.into()),
            (Some(id), _) => id,
            (None, _) => {
                world.check()?;
                let id = world.next;
                world.next += 1;
                world.files.insert(id, File::default());
                world.names.insert(path.into(), id);
                id
            }
        };
        if let Some(file) = world.files.get_mut(&id) {
            file.handles += 1;
        }
        Ok(Arc::new(Handle { world: self.0.clone(), id }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.0.lock().dirs.insert(path.into());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.0.lock();
        if !world.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let all = world.names.keys().chain(&world.dirs);
        let inside = all.filter(|p| p.parent() == Some(dir)).filter_map(|p| p.file_name());
        Ok(inside.map(|n| n.to_string_lossy().into_owned()).collect())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        if !world.names.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        world.check()?;
        world.names.remove(path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.check()?;
        let id = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        world.names.insert(to.into(), id);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.0.lock();
        world.check()?;
        let World { names, durable_names, .. } = &mut *world;
        let before: Vec<u64> = durable_names.values().copied().collect();
        durable_names.retain(|p, _| p.parent() != Some(dir));
        durable_names
            .extend(names.iter().filter(|(p, _)| p.parent() == Some(dir)).map(|(p, id)| (p.clone(), *id)));
        before.into_iter().for_each(|id| world.forget(id));
        Ok(())
    }

    fn space(&self, _dir: &Path) -> io::Result<Space> {
        let world = self.0.lock();
        Ok(Space { free: world.capacity.saturating_sub(world.used()), total: world.capacity })
    }
}
