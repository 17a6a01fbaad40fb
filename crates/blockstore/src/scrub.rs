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
use crate::tables::{self, Entry};

pub(crate) fn run(shared: &Shared) -> Result<ScrubReport, Error> {
    let mut report = ScrubReport::default();
    for pack in shared.packs.list().map_err(|e| Error::io(&shared.layout.packs, "list", &e))? {
        let Ok(mut scan) = shared.packs.scan(pack, packs::HEADER) else { continue };
        // Behind the end of the log a group is just being written.
        let end = shared.tables.lock().end;
        scrub_pack(shared, &mut scan, end, &mut report)?;
    }
    let missing = compare_index(shared)?;
    report.damaged = shared.damaged.read().iter().filter_map(|k| multihash(k)).collect();
    report.missing = missing.iter().filter_map(|k| multihash(k)).collect();
    Ok(report)
}

fn scrub_pack(shared: &Shared, scan: &mut Scan, end: Loc, report: &mut ScrubReport) -> Result<(), Error> {
    let fail = |e: std::io::Error| Error::io(&shared.layout.packs, "read a pack in", &e);
    while let Some(found) = scan.next().map_err(fail)? {
        if shared.stopping() {
            return Err(Error::Closed);
        }
        match found {
            Found::Damage { from, .. } => {
                if scan.is_behind(from, end) {
                    break;
                }
                report.damaged_records += 1;
            }
            Found::Record { loc, .. } if loc >= end => break,
            Found::Record { loc, header, key } => {
                let body = scan.body(loc, &header).map_err(fail)?;
                scrub_record(shared, loc, &header, &key, body, report)?;
            }
        }
    }
    Ok(())
}

fn scrub_record(
    shared: &Shared,
    loc: Loc,
    header: &Header,
    key: &[u8],
    body: Option<Vec<u8>>,
    report: &mut ScrubReport,
) -> Result<(), Error> {
    report.blocks += 1;
    report.bytes += header.record_len();
    if header.kind != Kind::Block {
        let record = body.as_ref().and_then(|b| decode(header, b));
        if record.is_none() && header.kind != Kind::Commit {
            report.damaged_records += 1;
        }
        return Ok(());
    }
    // The key is covered by the body's checksum; one that is damaged names no block, and the index finds that.
    if body.as_ref().is_some_and(|b| is_intact(key, &b[key.len()..])) {
        return Ok(());
    }
    let entry = tables::entry(&shared.kv, key).map_err(index_error)?;
    if entry.is_some_and(|e| e.loc == loc) {
        let data = shared.packs.read_data(loc, key.len(), header.data_len).unwrap_or_default();
        if !is_intact(key, &data) {
            shared.quarantine(key, loc, &data);
        }
    }
    Ok(())
}

fn decode(header: &Header, body: &[u8]) -> Option<Record> {
    let (key, data) = body.split_at_checked(header.key_len as usize)?;
    Record::decode(header.kind, key, data, header.data_len)
}

fn is_intact(key: &[u8], data: &[u8]) -> bool {
    multihash(key)
        .is_some_and(|hash| Block::new(Cid::new_v1(code::RAW, hash), Bytes::copy_from_slice(data)).is_ok())
}

/// Blocks that the index names and no pack holds.
fn compare_index(shared: &Shared) -> Result<BTreeSet<Key>, Error> {
    let mut missing = BTreeSet::new();
    let mut from: Bound<Box<[u8]>> = Bound::Unbounded;
    loop {
        let page =
            shared.kv.scan(b"b", from.as_ref().map(|k| &k[..]), limits::SCAN_KEYS).map_err(index_error)?;
        for (key, _) in &page {
            if shared.stopping() {
                return Err(Error::Closed);
            }
            check_entry(shared, &key[1..], &mut missing)?;
        }
        match page.into_iter().next_back() {
            Some((last, _)) => from = Bound::Excluded(last),
            None => return Ok(missing),
        }
    }
}

fn check_entry(shared: &Shared, hash: &[u8], missing: &mut BTreeSet<Key>) -> Result<(), Error> {
    let look = || tables::entry(&shared.kv, hash).map_err(index_error);
    let Some(entry) = look()? else { return Ok(()) };
    if !entry.loc.is_somewhere() {
        if !shared.damaged.read().contains(hash) {
            missing.insert(hash.into());
        }
        return Ok(());
    }
    let good = |e: &Entry| {
        shared
            .packs
            .read_header(e.loc)
            .ok()
            .flatten()
            .is_some_and(|(h, k)| h.kind == Kind::Block && h.data_len == e.len && *k == *hash)
    };
    // Without a good header the block can still be good: its hash decides, as for every read.
    if good(&entry) || look()? != Some(entry) {
        return Ok(());
    }
    let data = shared.packs.read_data(entry.loc, hash.len(), entry.len).unwrap_or_default();
    if !is_intact(hash, &data) && look()? == Some(entry) {
        shared.quarantine(hash, entry.loc, &data);
    }
    Ok(())
}
