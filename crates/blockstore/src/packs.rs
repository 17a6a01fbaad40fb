//! The pack files: names, headers, open handles, reading records, finding them.
//!
//! The newest pack is the end of the log. Beside it there may be one that compaction fills: its number is below the
//! newest and above every pack that it copies from, so reading packs in order of their numbers meets what was
//! copied before whatever the log says of it, and after what it replaces. It carries a mark in its header until it
//! is whole, because its end may be torn; the mark of the newest is that it is the newest.
//!
//! Every other pack is sealed: it changes only by holes that are punched into dead records. Pack numbers are never
//! used twice. Removing a pack takes its name away, durably: tombstones that only it needed may go next. Readers
//! that hold its handle go on.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disk::{Disk, DiskFile, Open};
use crate::limits;
use crate::record::{self, ALIGN, HEADER as RECORD_HEADER, Header, Key, Loc, Seed};

/// Bytes before the first record.
pub(crate) const HEADER: u64 = 32;
const MAGIC: [u8; 8] = *b"FLOEPK1\n";
/// Read ahead while looking at headers: a page where blocks are large, many headers where they are small.
const WINDOW: usize = 16 << 10;

pub(crate) fn id_of(name: &str) -> Option<u32> {
    let id = u32::from_str_radix(name.strip_prefix("pack-")?, 16).ok()?;
    (id != 0 && name.len() == 13).then_some(id)
}

/// What a pack is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The log, or whole.
    Log = 0,
    /// Compaction fills it.
    Copies = 1,
}

fn encode_header(id: u32, salt: u64, purpose: Purpose) -> [u8; HEADER as usize] {
    let mut out = [0; HEADER as usize];
    out[0..8].copy_from_slice(&MAGIC);
    out[8..12].copy_from_slice(&id.to_le_bytes());
    out[12..20].copy_from_slice(&salt.to_le_bytes());
    out[20] = purpose as u8;
    let crc = crc32fast::hash(&out[..28]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Salt and purpose in a pack's header, if it is one of pack `id`.
pub(crate) fn decode_header(id: u32, bytes: &[u8]) -> Option<(u64, Purpose)> {
    let b: &[u8; HEADER as usize] = bytes.get(..HEADER as usize)?.try_into().ok()?;
    let good = b[0..8] == MAGIC
        && b[8..12] == id.to_le_bytes()
        && crc32fast::hash(&b[..28]).to_le_bytes() == b[28..32];
    let purpose = [Purpose::Log, Purpose::Copies].into_iter().find(|p| *p as u8 == b[20])?;
    good.then(|| (u64::from_le_bytes([b[12], b[13], b[14], b[15], b[16], b[17], b[18], b[19]]), purpose))
}

pub(crate) struct Packs {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    salt: u64,
    open: Mutex<Handles>,
}

#[derive(Default)]
struct Handles {
    files: BTreeMap<u32, (Arc<dyn DiskFile>, u64)>,
    uses: u64,
}

impl Packs {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, salt: u64) -> Self {
        Self { disk, dir, salt, open: Mutex::default() }
    }

    pub(crate) fn seed(&self, pack: u32) -> Seed {
        Seed::new(self.salt, pack)
    }

    pub(crate) fn path(&self, id: u32) -> PathBuf {
        self.dir.join(format!("pack-{id:08x}"))
    }

    /// The packs on disk, oldest first.
    pub(crate) fn list(&self) -> io::Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.disk.list(&self.dir)?.iter().filter_map(|n| id_of(n)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    /// Makes a pack; its file and name are durable on return. What a failed attempt left is written over.
    pub(crate) fn create(&self, id: u32, purpose: Purpose) -> io::Result<()> {
        let file = self.disk.open(&self.path(id), Open::Any)?;
        file.set_len(0)?;
        file.write_at(&mut [IoSlice::new(&encode_header(id, self.salt, purpose))], 0)?;
        file.sync()?;
        self.disk.sync_dir(&self.dir)?;
        let mut open = self.open.lock();
        open.files.insert(id, (file, 0));
        Ok(())
    }

    /// The pack that compaction filled is whole: takes the mark out of its header, durably. A header torn by that
    /// is one of a sealed pack with damage, which is the careful reading.
    pub(crate) fn seal(&self, id: u32) -> io::Result<()> {
        let file = self.file(id)?;
        file.write_at(&mut [IoSlice::new(&encode_header(id, self.salt, Purpose::Log))], 0)?;
        file.sync()
    }

    /// What the pack's header says it is for; `None` where that is damaged.
    pub(crate) fn purpose(&self, id: u32) -> io::Result<Option<Purpose>> {
        let mut head = [0; HEADER as usize];
        match self.file(id)?.read_at(&mut head, 0) {
            Ok(()) => Ok(decode_header(id, &head).filter(|(salt, _)| *salt == self.salt).map(|(_, p)| p)),
            Err(e) if is_damage(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(crate) fn file(&self, id: u32) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock();
        open.uses += 1;
        let now = open.uses;
        if let Some((file, used)) = open.files.get_mut(&id) {
            *used = now;
            return Ok(file.clone());
        }
        let file = self.disk.open(&self.path(id), Open::Existing)?;
        if open.files.len() >= limits::OPEN_PACKS {
            limits::hit("blockstore_open_packs");
            if let Some(oldest) = open.files.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id) {
                open.files.remove(&oldest);
            }
        }
        open.files.insert(id, (file.clone(), now));
        Ok(file)
    }

    /// Takes the pack's name away; [`Packs::sync_names`] makes that durable.
    pub(crate) fn remove(&self, id: u32) -> io::Result<()> {
        self.open.lock().files.remove(&id);
        match self.disk.remove(&self.path(id)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(crate) fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_dir(&self.dir)
    }

    #[cfg(test)]
    pub(crate) fn open_handles(&self) -> usize {
        self.open.lock().files.len()
    }

    /// Reads the data of a block: no header is looked at, its hash is what proves it.
    pub(crate) fn read_data(&self, loc: Loc, key_len: usize, len: u32) -> io::Result<Vec<u8>> {
        let mut out = vec![0; len as usize];
        let at = u64::from(loc.offset) + (RECORD_HEADER + key_len) as u64;
        self.file(loc.pack)?.read_at(&mut out, at)?;
        Ok(out)
    }

    /// Whether the space of a block was given back: its header is still there, its bytes are not.
    pub(crate) fn is_hollow(&self, loc: Loc, key_len: usize, len: u32) -> io::Result<bool> {
        let pages = whole_pages(loc, key_len, len);
        if pages.is_empty() {
            return Ok(false);
        }
        // A look at the first bytes spares reading nearly every block that is whole.
        let mut first = [0; 64];
        match self.file(loc.pack)?.read_at(&mut first, pages.start) {
            Err(e) if is_damage(&e) => return Ok(true),
            other => other?,
        }
        Ok(first == [0; 64] && self.read_record(loc)?.is_none())
    }

    /// Reads a whole record. `None`: what is there is not the record that was written there.
    pub(crate) fn read_record(&self, loc: Loc) -> io::Result<Option<(Header, Vec<u8>)>> {
        let file = self.file(loc.pack)?;
        let mut head = [0; RECORD_HEADER];
        let at = u64::from(loc.offset);
        match file.read_at(&mut head, at) {
            Err(e) if is_damage(&e) => return Ok(None),
            other => other?,
        }
        let Some(header) = record::decode_header(self.seed(loc.pack), at, &head) else { return Ok(None) };
        Ok(read_body(&*file, at, &header)?.map(|body| (header, body)))
    }

    /// Header and key of the record at `loc`, if there is one.
    pub(crate) fn read_header(&self, loc: Loc) -> io::Result<Option<(Header, Key)>> {
        let file = self.file(loc.pack)?;
        let mut head = [0; RECORD_HEADER];
        let at = u64::from(loc.offset);
        file.read_at(&mut head, at)?;
        let Some(header) = record::decode_header(self.seed(loc.pack), at, &head) else { return Ok(None) };
        let mut key = vec![0; header.key_len as usize];
        file.read_at(&mut key, at + RECORD_HEADER as u64)?;
        Ok(Some((header, key.into())))
    }

    /// Goes through a pack's records from `at` on.
    pub(crate) fn scan(&self, pack: u32, at: u64) -> io::Result<Scan> {
        let file = self.file(pack)?;
        let end = file.size()?;
        Ok(Scan { file, seed: self.seed(pack), pack, at: at.max(HEADER), end, window: Vec::new(), start: 0 })
    }
}

/// File systems give space back in blocks of this size.
const PAGE: u64 = 4096;

/// The bytes of a block that its file system can take back. The header and the key stay, so that the pack can still
/// be walked.
pub(crate) fn whole_pages(loc: Loc, key_len: usize, len: u32) -> std::ops::Range<u64> {
    let data = u64::from(loc.offset) + (RECORD_HEADER + key_len) as u64;
    data.next_multiple_of(PAGE)..(data + u64::from(len)) / PAGE * PAGE
}

/// Whether a failed read means that the medium lost the bytes.
pub(crate) fn is_damage(e: &io::Error) -> bool {
    const EIO: i32 = 5;
    e.kind() == io::ErrorKind::UnexpectedEof || e.raw_os_error() == Some(EIO)
}

/// Padding is checked too: no byte of a record may change unnoticed.
fn read_body(file: &dyn DiskFile, at: u64, header: &Header) -> io::Result<Option<Vec<u8>>> {
    let mut body = vec![0; header.record_len() as usize - RECORD_HEADER];
    match file.read_at(&mut body, at + RECORD_HEADER as u64) {
        Ok(()) => {
            let padding = body.split_off(header.body_len());
            Ok((header.body_matches(&body) && padding.iter().all(|b| *b == 0)).then_some(body))
        }
        Err(e) if is_damage(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// One thing found in a pack.
#[derive(Debug)]
pub(crate) enum Found {
    /// A record with a good header. Its key may still be damaged: only the body's checksum covers it.
    Record { loc: Loc, header: Header, key: Key },
    /// Bytes that are no record.
    Damage { from: u64, to: u64 },
}

/// Goes through a pack by its headers. Blocks are skipped over, not read.
pub(crate) struct Scan {
    file: Arc<dyn DiskFile>,
    seed: Seed,
    pack: u32,
    at: u64,
    end: u64,
    window: Vec<u8>,
    start: u64,
}

impl Scan {
    /// The pack that is read.
    pub(crate) fn pack(&self) -> u32 {
        self.pack
    }

    /// Where the next look starts.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }

    pub(crate) fn next(&mut self) -> io::Result<Option<Found>> {
        if self.at >= self.end {
            return Ok(None);
        }
        match self.header_at(self.at)? {
            Some(header) if self.at + header.record_len() <= self.end => self.take(header).map(Some),
            _ => self.skip_damage().map(Some),
        }
    }

    /// Key and data of the record just found, or `None` where they are damaged.
    pub(crate) fn body(&self, loc: Loc, header: &Header) -> io::Result<Option<Vec<u8>>> {
        read_body(&*self.file, u64::from(loc.offset), header)
    }

    fn take(&mut self, header: Header) -> io::Result<Found> {
        let at = self.at;
        let Ok(offset) = u32::try_from(at) else { return self.skip_damage() };
        let from = at + RECORD_HEADER as u64;
        let key = self.view(from, header.key_len as usize)?.unwrap_or_default().into();
        self.at = at + header.record_len();
        Ok(Found::Record { loc: Loc { pack: self.pack, offset }, header, key })
    }

    fn header_at(&mut self, at: u64) -> io::Result<Option<Header>> {
        let seed = self.seed;
        Ok(self.view(at, RECORD_HEADER)?.and_then(|b| record::decode_header(seed, at, b)))
    }

    /// Looks for the next record by its magic and checksum.
    fn skip_damage(&mut self) -> io::Result<Found> {
        let from = self.at;
        self.at = (self.at + 1).next_multiple_of(ALIGN);
        while self.at < self.end {
            if self.header_at(self.at)?.is_some_and(|h| self.at + h.record_len() <= self.end) {
                break;
            }
            self.at += ALIGN;
        }
        self.at = self.at.min(self.end);
        Ok(Found::Damage { from, to: self.at })
    }

    /// `n` bytes at `at`, or `None` past the end or where the medium lost them.
    fn view(&mut self, at: u64, n: usize) -> io::Result<Option<&[u8]>> {
        if at + n as u64 > self.end {
            return Ok(None);
        }
        let inside = at >= self.start && at + n as u64 <= self.start + self.window.len() as u64;
        if !inside {
            let want = (self.end - at).min(WINDOW.max(n) as u64) as usize;
            self.window.resize(want, 0);
            self.start = at;
            match self.file.read_at(&mut self.window, at) {
                Err(e) if is_damage(&e) => {
                    self.window.clear();
                    return Ok(None);
                }
                other => other?,
            }
        }
        let from = (at - self.start) as usize;
        Ok(Some(&self.window[from..from + n]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn the_number_of_open_packs_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let packs = Packs::new(Arc::new(RealDisk), dir.path().into(), 1);
        for id in 1..=limits::OPEN_PACKS as u32 + 1 {
            packs.create(id, Purpose::Log).unwrap();
        }
        packs.open.lock().files.clear();
        for id in 1..=limits::OPEN_PACKS as u32 + 1 {
            packs.file(id).unwrap();
            assert_eq!(packs.open_handles(), (id as usize).min(limits::OPEN_PACKS));
        }
        assert!(packs.file(1).is_ok(), "what was closed opens again");
    }

    #[test]
    fn names_of_packs() {
        assert_eq!(id_of("pack-0000001f"), Some(31));
        for name in ["pack-00000000", "pack-1f", "pack-0000001g", "pack-0000001f.new", "kept"] {
            assert_eq!(id_of(name), None, "{name}");
        }
    }
}
