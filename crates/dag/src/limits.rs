//! Every bound of this crate, with its reason.

/// Deepest nesting of dag-cbor and dag-json values. Real data stays under 100; the decoders keep one small stack
/// entry for each level, so this is also 1,024 entries of memory. Hard.
pub const MAX_NESTING: usize = 1_024;

/// The widest HAMT shard (CVE-2023-23625). Hard.
pub const MAX_HAMT_FANOUT: u64 = 1_024;

/// The most levels of a HAMT. Hard.
pub const MAX_HAMT_LEVELS: u32 = 32;

/// Bits of the hash that places names in a HAMT (murmur3-x64-64): a shard below the last bit holds nothing. Hard.
pub const HAMT_HASH_BITS: u32 = 64;

/// Links that a walk holds in memory beside those of the node on top: 4 MB of CIDs. Fewer would read nodes from
/// the store again more often, more costs memory for each running pin.
pub const HELD_LINKS: usize = 100_000;

/// Nodes with links left to visit, whose own links were dropped: about 50 bytes each. Above the depth budget, so
/// that only a DAG both deep and wide at every level meets it.
pub const MAX_OPEN_NODES: usize = 1 << 20;

/// The same in bytes, as they are saved: room for [`MAX_OPEN_NODES`] of the usual 47 bytes, and less for longer CIDs.
/// With what is handed out beside it ([`MAX_FRONTIER_BYTES`]) it stays under the 64 MiB that a store takes as a record:
/// a frontier above that could never be saved, and its pin would be tried again without end.
pub const MAX_OPEN_BYTES: usize = 56 << 20;

/// The largest frontier that a walk makes: [`MAX_OPEN_BYTES`], and the longest entry for each CID that is handed out
/// and each node that is being read again. 59 MiB.
pub const MAX_FRONTIER_BYTES: usize = 8 + MAX_OPEN_BYTES + (MAX_PENDING + MAX_RELOADS) * MAX_ENTRY_BYTES;

/// The longest entry of a frontier: a CID of 168 bytes, and eleven of book-keeping.
pub(crate) const MAX_ENTRY_BYTES: usize = 168 + 11;

/// CIDs that are handed out or waited for at one time, about 200 bytes each. Well above what an exchange has in
/// flight.
pub const MAX_PENDING: usize = 16_384;

/// Nodes that are being read again at one time. One is the rule; more only while damaged blocks are mended.
pub const MAX_RELOADS: usize = 64;

/// The longest header of a CAR. A usual one has 60 bytes; go-car allowed 32 MiB (GHSA-9x4h-8wgm-8xfg). Hard.
pub const MAX_CAR_HEADER_BYTES: usize = 64 << 10;

/// The most roots of a CAR. Their number is also bounded by the header. Hard.
pub const MAX_CAR_ROOTS: usize = 128;

/// The longest section of a CAR, without the length before it: one CID and one block. Hard.
pub const MAX_CAR_SECTION_BYTES: usize = floe_core::cid::MAX_CID_BYTES + floe_core::block::MAX_BLOCK_BYTES;

/// The most bytes between the header of a CARv2 and its data. They are there to align the data for a device, and no page
/// is larger than 2 MiB. Hard.
pub const MAX_CAR_V2_PADDING_BYTES: u64 = 2 << 20;

/// The most sections of a layout, about 55 bytes each: 230 MB at the most, for a piece of 32 GiB in blocks of 8 KiB.
pub const MAX_LAYOUT_SECTIONS: usize = 4 << 20;

/// Data of a section that fills a gap: as a block, it is one that every reader takes.
pub const FILLER_BYTES: usize = 1 << 20;

/// What is read at a time from where a CAR comes from.
pub(crate) const CAR_READ_BYTES: usize = 64 << 10;

pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}
