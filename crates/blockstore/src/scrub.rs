//! Reads every record of every pack and compares packs and index both ways.
//!
//! Runs beside everything else on a thread of its own. A pack that compaction takes away meanwhile is left out:
//! its live records were verified when they were copied.

use std::collections::BTreeSet;
use std::ops::Bound;

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};

use crate::ScrubReport;
use crate::error::Error;
use crate::limits;
use crate::packs::{self, Found, Scan};
use crate::record::{Header, Key, Kind, Loc, Record};
use crate::shared::{Shared, index_error, multihash};
use crate::tables;

pub(crate) fn run(shared: &Shared) -> Result<ScrubReport, Error> {
    let mut scrub = Scrub { shared, report: ScrubReport::default(), missing: BTreeSet::new(), lost: false };
    for pack in shared.packs.list().map_err(|e| Error::io(&shared.layout.packs, "list", &e))? {
        let Ok(mut scan) = shared.packs.scan(pack, packs::HEADER) else { continue };
        if !shared.packs.has_header(pack).unwrap_or(true) {
            scrub.report.damaged_records += 1;
        }
        // Behind the end of the log a group is just being written.
        let end = shared.tables.lock().end;
        scrub.pack(&mut scan, end)?;
    }
    scrub.index()?;
    if scrub.lost {
        shared.distrust_index("it lacks blocks that manifests count");
    }
    let mut report = scrub.report;
    report.damaged = shared.damaged.read().iter().filter_map(|k| multihash(k)).collect();
    report.missing = scrub.missing.iter().filter_map(|k| multihash(k)).collect();
    Ok(report)
}

struct Scrub<'a> {
    shared: &'a Shared,
    report: ScrubReport,
    missing: BTreeSet<Key>,
    /// The index lacks a block that a manifest counts.
    lost: bool,
}

impl Scrub<'_> {
    fn pack(&mut self, scan: &mut Scan, end: Loc) -> Result<(), Error> {
        let packs = self.shared.layout.packs.clone();
        let fail = |e: std::io::Error| Error::io(&packs, "read a pack in", &e);
        while let Some(found) = scan.next().map_err(fail)? {
            if self.shared.stopping() {
                return Err(Error::Closed);
            }
            match found {
                Found::Damage { from, .. } if scan.is_behind(from, end) => break,
                Found::Damage { .. } => self.report.damaged_records += 1,
                Found::Record { loc, .. } if loc >= end => break,
                Found::Record { loc, header, key } => {
                    let body = scan.body(loc, &header).map_err(fail)?;
                    self.record(loc, &header, &key, body)?;
                }
            }
        }
        Ok(())
    }

    fn record(&mut self, loc: Loc, header: &Header, key: &[u8], body: Option<Vec<u8>>) -> Result<(), Error> {
        self.report.blocks += 1;
        self.report.bytes += header.record_len();
        if header.kind == Kind::Block {
            return self.block(loc, header, key, body);
        }
        match body.as_ref().map(|b| decode(header, b)) {
            Some(Some(record)) => self.members(&record, loc),
            Some(None) if header.kind == Kind::Commit => Ok(()),
            _ => {
                self.report.damaged_records += 1;
                Ok(())
            }
        }
    }

    fn block(&mut self, loc: Loc, header: &Header, key: &[u8], body: Option<Vec<u8>>) -> Result<(), Error> {
        if body.is_some_and(|b| is_intact(key, &b[key.len()..])) {
            return Ok(());
        }
        // A damaged key names no block here; the way from the index finds it.
        let entry = tables::entry(&self.shared.kv, key).map_err(index_error)?;
        if entry.is_some_and(|e| e.loc == loc) {
            self.judge(key, loc, header.data_len);
        }
        Ok(())
    }

    /// A record is damaged: is its block?
    fn judge(&mut self, hash: &[u8], loc: Loc, len: u32) {
        let data = self.shared.packs.read_data(loc, hash.len(), len).unwrap_or_default();
        if is_intact(hash, &data) {
            self.report.damaged_records += 1;
        } else {
            self.shared.quarantine(hash, loc, &data);
        }
    }

    /// Every block that a manifest counts is in the index.
    fn members(&mut self, record: &Record, at: Loc) -> Result<(), Error> {
        let Record::Chunk { id, serial, members, .. } = record else { return Ok(()) };
        let counted = || tables::chunk(&self.shared.kv, *id, *serial).map_err(index_error);
        for member in members {
            let known = tables::entry(&self.shared.kv, &member.hash).map_err(index_error)?;
            // Looked at last: the chunk may have been counted down meanwhile.
            if known.is_none() && counted()?.is_some_and(|c| c.loc == at) {
                self.lost = true;
                self.missing.insert(member.hash.clone());
            }
        }
        Ok(())
    }

    /// Every block that the index names is where it says.
    fn index(&mut self) -> Result<(), Error> {
        let mut from: Bound<Box<[u8]>> = Bound::Unbounded;
        loop {
            let page = self.shared.kv.scan(b"b", from.as_ref().map(|k| &k[..]), limits::SCAN_KEYS);
            let page = page.map_err(index_error)?;
            for (key, _) in &page {
                if self.shared.stopping() {
                    return Err(Error::Closed);
                }
                self.entry(&key[1..])?;
            }
            match page.into_iter().next_back() {
                Some((last, _)) => from = Bound::Excluded(last),
                None => return Ok(()),
            }
        }
    }

    fn entry(&mut self, hash: &[u8]) -> Result<(), Error> {
        let look = || tables::entry(&self.shared.kv, hash).map_err(index_error);
        let Some(entry) = look()? else { return Ok(()) };
        if !entry.loc.is_somewhere() {
            if !self.shared.damaged.read().contains(hash) {
                self.missing.insert(hash.into());
            }
            return Ok(());
        }
        let here = self.shared.packs.read_header(entry.loc).ok().flatten();
        let good = here.is_some_and(|(h, k)| h.kind == Kind::Block && h.data_len == entry.len && *k == *hash);
        // Compaction may have moved it since.
        if !good && look()? == Some(entry) {
            self.judge(hash, entry.loc, entry.len);
        }
        Ok(())
    }
}

fn decode(header: &Header, body: &[u8]) -> Option<Record> {
    let (key, data) = body.split_at_checked(header.key_len as usize)?;
    Record::decode(header.kind, key, data, header.data_len)
}

fn is_intact(key: &[u8], data: &[u8]) -> bool {
    multihash(key)
        .is_some_and(|hash| Block::new(Cid::new_v1(code::RAW, hash), Bytes::copy_from_slice(data)).is_ok())
}
