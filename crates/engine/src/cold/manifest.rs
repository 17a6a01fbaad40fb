//! The root of an aggregate's CAR: a dag-cbor block that names the pins in it.
//!
//! ```text
//! { "id": bytes(16), "pins": [ { "root": &Any } | { "part": [n, of], "root": &Any } ... ], "type": "floe/aggregate/1" }
//! ```
//! `id` is the aggregate's, so that no two have the same piece; `pins` are in the order in which they lie, each a link, so
//! that who has the root finds all that is in the piece. `part` is there where a DAG is larger than a piece: part `n`, from
//! 0, of `of`. A deal on Filecoin is public: no account, no request id and no name is in it.

use floe_core::cid::code;
use floe_core::{Block, BlockError, Cid};
use floe_records::cold::SegmentRow;
use uuid::Uuid;

const TYPE: &str = "floe/aggregate/1";
/// Bytes of a manifest without entries, at the most: a map of three, the keys with their heads, the id, the longest head
/// of an array, and the type.
const EMPTY: u64 = 1 + 3 + 17 + 5 + 5 + 5 + 1 + TYPE.len() as u64;
/// Bytes of the header of a CAR with one root of 36 bytes, and of the head of a section.
const HEADER: u64 = 59 + 4 + 36;

/// Bytes before the first pin of a CAR whose manifest has no entries, at the most.
pub(super) const HEAD: u64 = HEADER + EMPTY;

/// Bytes of an entry.
pub(super) fn entry_bytes(root: &Cid, (part, parts): (u32, u32)) -> u64 {
    let mut entry = Vec::new();
    write_entry(&mut entry, root, (part, parts));
    entry.len() as u64
}

/// The manifest of these segments, which are in the order in which they lie.
///
/// # Errors
/// [`BlockError`] for more segments than a block names, which are more than an aggregate takes.
pub(super) fn block(id: Uuid, segments: &[SegmentRow]) -> Result<Block, BlockError> {
    let mut out = head(5, 3);
    text(&mut out, "id");
    out.extend(head(2, 16));
    out.extend_from_slice(id.as_bytes());
    text(&mut out, "pins");
    out.extend(head(4, segments.len() as u64));
    for segment in segments {
        write_entry(&mut out, &segment.root, (segment.part.part, segment.parts));
    }
    text(&mut out, "type");
    text(&mut out, TYPE);
    Block::of(code::DAG_CBOR, out.into())
}

fn write_entry(out: &mut Vec<u8>, root: &Cid, (part, parts): (u32, u32)) {
    let is_part = parts > 1;
    out.extend(head(5, 1 + u64::from(is_part)));
    if is_part {
        text(out, "part");
        out.extend(head(4, 2));
        out.extend(head(0, u64::from(part)));
        out.extend(head(0, u64::from(parts)));
    }
    text(out, "root");
    let cid = root.to_bytes();
    out.extend([0xd8, 42]);
    out.extend(head(2, 1 + cid.len() as u64));
    out.push(0);
    out.extend(cid);
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend(head(3, text.len() as u64));
    out.extend_from_slice(text.as_bytes());
}

/// A major type and its argument, in the shortest form.
fn head(major: u8, argument: u64) -> Vec<u8> {
    let major = major << 5;
    let bytes = argument.to_be_bytes();
    match argument {
        0..24 => vec![major | bytes[7]],
        24..0x100 => vec![major | 24, bytes[7]],
        0x100..0x1_0000 => [&[major | 25], &bytes[6..]].concat(),
        0x1_0000..0x1_0000_0000 => [&[major | 26], &bytes[4..]].concat(),
        _ => [&[major | 27], &bytes[..]].concat(),
    }
}
