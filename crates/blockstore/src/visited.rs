//! The visited set of a walk: flat in memory, however large the DAG.
//!
//! Up to [`limits::VISITED_IN_MEMORY`] members it is a hash set. Then it spills to an open-addressing table of
//! 16-byte fingerprints in a scratch file, which is never synced: after a crash the set is made again from the
//! manifest's chunks.
//!
//! A fingerprint is 16 bytes out of the middle of the digest. Digests are at least 20 bytes of a cryptographic
//! hash, so two members share one only where somebody spent 2^64 hashes on it, and then to spoil a DAG of their
//! own.
//!
//! [`CidSet`] is the same for whole CIDs: a manifest goes by multihash, and what a walk has scanned goes by codec too.

use std::collections::HashSet;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use floe_core::Cid;
use floe_core::cid::canonical;

use crate::disk::{Disk, DiskFile, Open};
use crate::error::Error;
use crate::limits;

const SLOT: u64 = 16;
/// Slots read at a time: neighbours in a probe, one small read.
const BUCKET: u64 = 16;
/// Slots per member after growing; it grows again at half of that.
const SPARE: u64 = 4;

/// A set of CIDs whose memory is bounded, made by [`crate::Protect::cid_set`]. A CID of version 0 is the same member as
/// its version 1. Calls block on the disk once it has spilled. It is gone with a crash.
pub struct CidSet(Visited);

impl CidSet {
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf, most_in_memory: usize) -> Self {
        Self(Visited::with_bound(disk, path, most_in_memory))
    }

    /// Whether it is a member.
    ///
    /// # Errors
    /// [`Error::Io`] where the scratch file cannot be read.
    pub fn contains(&self, cid: &Cid) -> Result<bool, Error> {
        self.0.contains(&canonical(cid).to_bytes()).map_err(|e| Error::io(&self.0.path, "read", &e))
    }

    /// Adds a member; `false` where it was one already.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] on a full disk, [`Error::Io`]; the set is as it was.
    pub fn insert(&mut self, cid: &Cid) -> Result<bool, Error> {
        self.0.insert(&canonical(cid).to_bytes()).map_err(|e| match crate::error::is_full(&e) {
            true => Error::ReadOnly,
            false => Error::io(&self.0.path, "write", &e),
        })
    }
}

pub(crate) struct Visited {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    most_in_memory: usize,
    set: HashSet<u128>,
    table: Option<Table>,
}

struct Table {
    file: Arc<dyn DiskFile>,
    buckets: u64,
    members: u64,
}

/// The fingerprint of a multihash or a CID in its binary form. Never 0, which marks an empty slot.
fn fingerprint(hash: &[u8]) -> u128 {
    let mut out = [0; 16];
    let tail = &hash[hash.len().saturating_sub(18)..];
    let n = tail.len().min(16);
    out[..n].copy_from_slice(&tail[..n]);
    // Function and length, and of a CID the codec: a digest and its truncation are two blocks' names, not one.
    let head = hash.iter().take(3).fold(hash.len() as u128, |a, b| a << 8 | u128::from(*b));
    (u128::from_le_bytes(out) ^ head << 8).max(1)
}

impl Visited {
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self::with_bound(disk, path, limits::VISITED_IN_MEMORY)
    }

    fn with_bound(disk: Arc<dyn Disk>, path: PathBuf, most_in_memory: usize) -> Self {
        Self { disk, path, most_in_memory, set: HashSet::new(), table: None }
    }

    pub(crate) fn contains(&self, hash: &[u8]) -> io::Result<bool> {
        let print = fingerprint(hash);
        match &self.table {
            None => Ok(self.set.contains(&print)),
            Some(table) => Ok(table.find(print)?.is_none()),
        }
    }

    /// Adds a member; `false` where it was one already.
    pub(crate) fn insert(&mut self, hash: &[u8]) -> io::Result<bool> {
        let print = fingerprint(hash);
        if self.table.is_none() {
            if self.set.contains(&print) {
                return Ok(false);
            }
            if self.set.len() < self.most_in_memory {
                return Ok(self.set.insert(print));
            }
            limits::hit("blockstore_visited_in_memory");
            self.spill()?;
        }
        let Some(mut slot) = self.slot(print)? else { return Ok(false) };
        if self.table.as_ref().is_some_and(Table::is_half_full) {
            self.grow()?;
            slot = self.slot(print)?.unwrap_or(slot);
        }
        self.table.as_mut().expect("spill made the table").put(slot, print)?;
        Ok(true)
    }

    fn slot(&self, print: u128) -> io::Result<Option<u64>> {
        self.table.as_ref().expect("spill made the table").find(print)
    }

    /// After an error the set is as it was.
    fn spill(&mut self) -> io::Result<()> {
        let table = self.make(self.set.len() as u64)?;
        self.table = Some(table.filled(self.set.iter().copied())?);
        self.set = HashSet::new();
        Ok(())
    }

    /// After an error the table is as it was: its file has no name any more, and goes away with its handle.
    fn grow(&mut self) -> io::Result<()> {
        let Some(old) = &self.table else { return Ok(()) };
        let mut new = self.make(old.members)?;
        for bucket in 0..old.buckets {
            new = new.filled(old.read(bucket)?.into_iter().filter(|p| *p != 0))?;
        }
        self.table = Some(new);
        Ok(())
    }

    fn make(&self, members: u64) -> io::Result<Table> {
        let buckets = (members.max(1) * SPARE / BUCKET + 1).next_power_of_two();
        match self.disk.remove(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = self.disk.open(&self.path, Open::New)?;
        file.set_len(buckets * BUCKET * SLOT)?;
        Ok(Table { file, buckets, members: 0 })
    }
}

impl Drop for Visited {
    fn drop(&mut self) {
        if self.table.is_some() {
            // Open empties the directory anyway.
            let _ = self.disk.remove(&self.path);
        }
    }
}

impl Table {
    fn filled(mut self, prints: impl IntoIterator<Item = u128>) -> io::Result<Self> {
        for print in prints {
            if let Some(slot) = self.find(print)? {
                self.put(slot, print)?;
            }
        }
        Ok(self)
    }

    fn read(&self, bucket: u64) -> io::Result<[u128; BUCKET as usize]> {
        let mut bytes = [0; (BUCKET * SLOT) as usize];
        self.file.read_at(&mut bytes, bucket * BUCKET * SLOT)?;
        let mut out = [0; BUCKET as usize];
        for (slot, b) in out.iter_mut().zip(bytes.chunks_exact(SLOT as usize)) {
            *slot = u128::from_le_bytes(b.try_into().expect("chunks of 16 bytes"));
        }
        Ok(out)
    }

    /// The free slot where `print` belongs, or `None` where it is a member. The table is at most half full, so
    /// there always is one.
    fn find(&self, print: u128) -> io::Result<Option<u64>> {
        let mut bucket = (print >> 64) as u64 % self.buckets;
        loop {
            for (n, at) in self.read(bucket)?.into_iter().enumerate() {
                if at == print {
                    return Ok(None);
                }
                if at == 0 {
                    return Ok(Some(bucket * BUCKET + n as u64));
                }
            }
            bucket = (bucket + 1) % self.buckets;
        }
    }

    fn is_half_full(&self) -> bool {
        (self.members + 1) * 2 > self.buckets * BUCKET
    }

    fn put(&mut self, slot: u64, print: u128) -> io::Result<()> {
        self.file.write_at(&mut [IoSlice::new(&print.to_le_bytes())], slot * SLOT)?;
        self.members += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::disk::RealDisk;
    use crate::testing::{Fault, FaultyDisk};

    fn hash(n: u64) -> Vec<u8> {
        let mut out = vec![0x12, 32];
        out.extend((0..4).flat_map(|i: u64| (n ^ i).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()));
        out
    }

    #[test]
    fn a_set_that_spills_and_grows_is_still_a_set() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let bound = 8;
        let mut set = Visited::with_bound(Arc::new(RealDisk), path.clone(), bound);
        for n in 0..2000 {
            assert!(!set.contains(&hash(n)).unwrap());
            assert!(set.insert(&hash(n)).unwrap());
            assert!(!set.insert(&hash(n)).unwrap());
            assert_eq!(path.exists(), n as usize >= bound, "{n}");
        }
        assert!((0..2000).all(|n| set.contains(&hash(n)).unwrap()));
        drop(set);
        assert!(!path.exists());
    }

    /// dag-pb and dag-cbor of the same bytes are two members, before and after the set has spilled; so are the codecs of
    /// two bytes, dag-json (0x0129) and another.
    #[test]
    fn a_set_of_cids_goes_by_codec_and_not_by_version() {
        use floe_core::Multihash;
        let dir = tempfile::tempdir().unwrap();
        let mut set = CidSet::new(Arc::new(RealDisk), dir.path().join("s"), 4);
        let codecs = [0x71, 0x70, 0x0129, 0x0202];
        for n in 0..50 {
            let digest = Multihash::wrap(0x12, &hash(n)[2..]).unwrap();
            for codec in codecs {
                let cid = Cid::new_v1(codec, digest);
                assert!(!set.contains(&cid).unwrap(), "{cid}");
                assert!(set.insert(&cid).unwrap() && !set.insert(&cid).unwrap());
            }
            let old = Cid::new_v0(digest).unwrap();
            assert!(set.contains(&old).unwrap() && !set.insert(&old).unwrap());
        }
        assert!(dir.path().join("s").exists());
    }

    #[test]
    fn a_full_disk_loses_no_member() {
        // The set was moved out before the table was written, and a table that could not grow was dropped: after a
        // full disk every block of the walk counted as new again, in the totals, the references and the quota.
        let empty = || {
            let disk = FaultyDisk::default();
            disk.create_dir(Path::new("/d")).unwrap();
            let set = Visited::with_bound(Arc::new(disk.clone()), "/d/v".into(), 8);
            (disk, set)
        };
        let (healthy, mut set) = empty();
        let before = healthy.calls();
        assert!((0..200).all(|n| set.insert(&hash(n)).unwrap()));
        for nth in 1..=healthy.calls() - before {
            let (disk, mut set) = empty();
            disk.fail_at(nth, Fault::Full, true);
            let mut failed = 0;
            for n in 0..200 {
                while let Err(e) = set.insert(&hash(n)) {
                    assert_eq!(e.kind(), io::ErrorKind::StorageFull);
                    failed += 1;
                    assert!((0..n).all(|n| set.contains(&hash(n)).unwrap()), "{nth}: one before {n} is lost");
                    assert!(!set.contains(&hash(n)).unwrap());
                    disk.heal();
                }
                assert!(!set.insert(&hash(n)).unwrap());
            }
            assert!(failed > 0, "{nth}");
        }
    }
}
