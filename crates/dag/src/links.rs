//! The links of one block, whatever its codec.
//!
//! [`scan`] borrows from the block and allocates next to nothing. [`links`] applies what a walk needs: every
//! link has a codec that can be walked and an accepted hash, inline (identity) children are replaced by what
//! they link to, each CID is there once, leaves come first, and HAMT shards are sound. It keeps CIDs as bytes,
//! about 40 for each, so a block's links take no more memory than the block.
//!
//! `json` and `cbor` hold no links and are not even parsed: nothing in them is followed, and a leaf that is
//! here already need not be read.

use bytes::Bytes;
use floe_core::cid::{self, code};
use floe_core::{Block, Cid};

use crate::unixfs::{self, Hamt, HamtError};
use crate::walk::WalkError;
use crate::{dag_cbor, dag_json, dag_pb};

/// A link as it stands in a block.
#[derive(Debug, Clone, Copy)]
pub struct Link<'a> {
    /// Where it leads. It has the form of a CID; its codec and hash function may be any.
    pub cid: Cid,
    /// Its dag-pb name, else nothing.
    pub name: &'a [u8],
}

/// Why a block's links cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Nobody here can walk this codec.
    #[error("the codec 0x{0:x} cannot be walked")]
    Codec(u64),
    /// The bytes are not what the codec says.
    #[error("{what}, at byte {at}")]
    Malformed {
        /// Where, in bytes from the start.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A link that is no CID, or one with a digest of more than 128 bytes.
    #[error("a link that is not a CID ({reason}), at byte {at}")]
    Link {
        /// Where, in bytes from the start.
        at: usize,
        /// What is wrong.
        reason: String,
    },
}

/// Whether blocks of this codec can be walked; of some, because they have no links.
pub fn is_walkable(codec: u64) -> bool {
    code::WALKED.contains(&codec)
}

/// Whether blocks of this codec can hold links.
pub(crate) fn has_links(codec: u64) -> bool {
    matches!(codec, code::DAG_PB | code::DAG_CBOR | code::DAG_JSON)
}

/// Calls `on_link` for each link of a block, in the block's order and as often as it is there. The bytes are
/// checked to their end: after an error, what `on_link` was given means nothing.
///
/// # Errors
/// [`ScanError`].
pub fn scan<'a>(codec: u64, data: &'a [u8], on_link: &mut dyn FnMut(Link<'a>)) -> Result<(), ScanError> {
    match codec {
        code::DAG_PB => dag_pb::scan(data, on_link).map(drop),
        code::DAG_CBOR => dag_cbor::scan(data, on_link),
        code::DAG_JSON => dag_json::scan(data, on_link),
        code::RAW | code::CBOR | code::JSON => Ok(()),
        other => Err(ScanError::Codec(other)),
    }
}

/// A CID that has to fill `bytes`.
pub(crate) fn binary_cid(bytes: &[u8], at: usize) -> Result<Cid, ScanError> {
    let cid = Cid::try_from(bytes).map_err(|e| ScanError::Link { at, reason: e.to_string() })?;
    if cid.encoded_len() != bytes.len() {
        return Err(ScanError::Link { at, reason: "bytes are left over".into() });
    }
    Ok(cid)
}

/// The links a walk follows from one block: an iterator that owns its CIDs in a compact form.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// For each: a byte for [`Followed::is_shard`], the CID's length, the CID.
    records: Bytes,
    left: usize,
}

/// A link that a walk follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Followed {
    pub(crate) cid: Cid,
    /// Whether the parent is a HAMT shard and says that this is one too.
    pub(crate) is_shard: bool,
}

/// Reads what a walk follows from `block`.
///
/// # Errors
/// [`WalkError::Malformed`], [`WalkError::Codec`] and [`WalkError::Link`].
pub fn links(block: &Block) -> Result<Links, WalkError> {
    read(block, 0)
}

/// As [`links`], for a node with `shards_above` HAMT shards over it.
pub(crate) fn read(block: &Block, shards_above: u32) -> Result<Links, WalkError> {
    let mut collected = Collected { parent: *block.cid(), records: Vec::new(), error: None };
    let (codec, data) = (block.cid().codec(), block.data());
    if codec == code::DAG_PB {
        collected.dag_pb(data, shards_above)?;
    } else {
        let scanned = scan(codec, data, &mut |link| collected.link(&link, false));
        collected.finish(scanned)?;
    }
    Ok(collected.into_links())
}

struct Collected {
    parent: Cid,
    records: Vec<u8>,
    /// The first refusal; the scan goes on to its end, for a malformed block is the better thing to name.
    error: Option<WalkError>,
}

impl Collected {
    fn dag_pb(&mut self, data: &[u8], shards_above: u32) -> Result<(), WalkError> {
        let mut count = 0;
        let scanned = dag_pb::scan(data, &mut |link| {
            count += 1;
            self.link(&link, false);
        });
        let node = self.finish(scanned)?.and_then(unixfs::decode);
        let Some(shard) = node.filter(|node| node.kind == unixfs::Kind::HamtShard) else { return Ok(()) };
        let parent = self.parent;
        let bogus = |e: HamtError| WalkError::Malformed { cid: parent, reason: e.to_string() };
        let hamt = Hamt::of(&shard).map_err(bogus)?;
        hamt.check_links(count).map_err(bogus)?;
        hamt.check_depth(shards_above).map_err(bogus)?;
        // Only now, with the fanout known, can names say which links lead to shards.
        self.records.clear();
        let mut bad_name = None;
        let scanned = dag_pb::scan(data, &mut |link| match hamt.is_shard_link(link.name) {
            Ok(is_shard) => self.link(&link, is_shard),
            Err(error) => bad_name = Some(error),
        });
        self.finish(scanned)?;
        bad_name.map_or(Ok(()), |error| Err(bogus(error)))
    }

    fn finish<T>(&mut self, scanned: Result<T, ScanError>) -> Result<T, WalkError> {
        let cid = self.parent;
        let done = scanned.map_err(|error| match error {
            ScanError::Codec(codec) => WalkError::Codec { cid, codec },
            ScanError::Link { .. } => WalkError::Link { parent: cid, reason: error.to_string() },
            ScanError::Malformed { .. } => WalkError::Malformed { cid, reason: error.to_string() },
        })?;
        self.error.take().map_or(Ok(done), Err)
    }

    fn link(&mut self, link: &Link<'_>, is_shard: bool) {
        if self.error.is_some() {
            return;
        }
        let pushed = accept(&self.parent, &link.cid).and_then(|()| self.push(&link.cid, is_shard));
        self.error = pushed.err();
    }

    /// Adds a link, or what an inline child links to. Each inline child lies within its parent's digest of at
    /// most 128 bytes, so this ends after a few rounds.
    fn push(&mut self, cid: &Cid, is_shard: bool) -> Result<(), WalkError> {
        let mut inline = Vec::new();
        self.push_or_open(cid, is_shard, &mut inline);
        while let Some(child) = inline.pop() {
            let mut refused = None;
            let data = child.data();
            let mut opened = Vec::new();
            let scanned = scan(child.cid().codec(), data, &mut |link| match accept(child.cid(), &link.cid) {
                Ok(()) => self.push_or_open(&link.cid, false, &mut opened),
                Err(error) => drop(refused.get_or_insert(error)),
            });
            scanned.map_err(|e| WalkError::Malformed { cid: *child.cid(), reason: e.to_string() })?;
            refused.map_or(Ok(()), Err)?;
            inline.append(&mut opened);
        }
        Ok(())
    }

    fn push_or_open(&mut self, cid: &Cid, is_shard: bool, inline: &mut Vec<Block>) {
        if cid::is_identity(cid) {
            inline.extend(Block::inline(cid).filter(|b| has_links(b.cid().codec())));
            return;
        }
        self.records.push(u8::from(is_shard));
        self.records.push(u8::try_from(cid.encoded_len()).expect("an accepted CID has at most 168 bytes"));
        cid.write_bytes(&mut self.records).expect("writing to memory succeeds");
    }

    /// Each CID once, leaves before nodes and otherwise in the block's order: with its leaves gone first, a
    /// node is often done with before the walk goes below it, so fewer nodes are open at a time.
    fn into_links(self) -> Links {
        let all = self.records;
        let mut starts = Vec::new();
        let mut at = 0;
        while let Some(record) = record_at(&all, at) {
            starts.push(u32::try_from(at).expect("a block's links are shorter than 4 GiB"));
            at += record.len();
        }
        let cid_at = |start: &u32| record_at(&all, *start as usize).map(|r| &r[2..]).unwrap_or_default();
        starts.sort_unstable_by_key(|start| (cid_at(start), *start));
        starts.dedup_by(|b, a| cid_at(b) == cid_at(a));
        let is_node = |start: &u32| Cid::try_from(cid_at(start)).is_ok_and(|cid| has_links(cid.codec()));
        starts.sort_unstable();
        let mut records = Vec::with_capacity(all.len());
        for nodes in [false, true] {
            for start in starts.iter().filter(|start| is_node(start) == nodes) {
                records.extend_from_slice(record_at(&all, *start as usize).unwrap_or_default());
            }
        }
        Links { left: starts.len(), records: records.into() }
    }
}

/// Refuses a link when it is met, before anybody fetches what it leads to.
pub(crate) fn accept(parent: &Cid, cid: &Cid) -> Result<(), WalkError> {
    cid::check(cid.hash()).map_err(|e| WalkError::Link { parent: *parent, reason: format!("{cid}: {e}") })?;
    if cid.encoded_len() > cid::MAX_CID_BYTES {
        return Err(WalkError::Link { parent: *parent, reason: format!("{cid} is too long") });
    }
    if is_walkable(cid.codec()) { Ok(()) } else { Err(WalkError::Codec { cid: *cid, codec: cid.codec() }) }
}

/// The record that starts at `at`.
fn record_at(records: &[u8], at: usize) -> Option<&[u8]> {
    let rest = records.get(at..)?;
    rest.get(..2 + usize::from(*rest.get(1)?))
}

impl Links {
    pub(crate) fn next_followed(&mut self) -> Option<Followed> {
        let record = record_at(&self.records, 0)?;
        let (is_shard, len) = (record[0] == 1, record.len());
        let cid = Cid::try_from(&record[2..]).expect("the record was written from a CID");
        self.records = self.records.slice(len..);
        self.left -= 1;
        Some(Followed { cid, is_shard })
    }

    /// Drops the first `count` links.
    pub(crate) fn skip_links(&mut self, count: u32) {
        for _ in 0..count {
            let Some(len) = record_at(&self.records, 0).map(<[u8]>::len) else { return };
            self.records = self.records.slice(len..);
            self.left -= 1;
        }
    }
}

impl Iterator for Links {
    type Item = Cid;

    fn next(&mut self) -> Option<Cid> {
        self.next_followed().map(|followed| followed.cid)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Links {}
