//! UnixFS inside dag-pb: as much as refusing a bogus sharded directory needs.
//!
//! A HAMT node that lies about its fanout or bitfield makes readers panic or allocate without bound
//! (CVE-2023-23625, CVE-2023-23631); a pinning service that keeps one spreads it. Everything else in the data
//! field is opaque here: dag-pb without UnixFS is fine.

use crate::codec::{Malformed, Node};

/// The largest fanout that readers accept (boxo `ipld/unixfs/hamt`).
pub const MAX_FANOUT: u64 = 1_024;

/// `Data { 1: Type, 2: Data, 5: hashType, 6: fanout }`, the fields that a sharded directory has.
#[derive(Debug, Default)]
struct Data<'a> {
    kind: Option<u64>,
    bitfield: &'a [u8],
    fanout: u64,
}

const HAMT_SHARD: u64 = 5;

/// Refuses a sharded directory whose fanout is no power of two or over [`MAX_FANOUT`], whose bitfield does not fit it,
/// or whose set bits are not its links. Nodes that are not UnixFS, or no sharded directory, pass.
pub(crate) fn check(node: &Node<'_>) -> Result<(), Malformed> {
    let Some(data) = node.data.and_then(decode) else { return Ok(()) };
    if data.kind != Some(HAMT_SHARD) {
        return Ok(());
    }
    let fanout = data.fanout;
    if !fanout.is_power_of_two() || !(8..=MAX_FANOUT).contains(&fanout) {
        return Err(Malformed(format!("a sharded directory with the fanout {fanout}")));
    }
    // Writers leave out leading zero bytes, so the field may be shorter, never longer.
    if data.bitfield.len() as u64 > fanout / 8 {
        return Err(Malformed(format!("{} bytes of bitfield for a fanout of {fanout}", data.bitfield.len())));
    }
    let set: u32 = data.bitfield.iter().map(|b| b.count_ones()).sum();
    if set as usize != node.links.len() {
        return Err(Malformed(format!("a bitfield with {set} bits for {} links", node.links.len())));
    }
    let digits = format!("{:X}", fanout - 1).len();
    if node.links.iter().any(|l| l.name.is_none_or(|n| n.len() < digits)) {
        return Err(Malformed("a link of a sharded directory without its position".into()));
    }
    Ok(())
}

/// The data field as UnixFS, or `None` where it is something else.
fn decode(mut bytes: &[u8]) -> Option<Data<'_>> {
    let mut data = Data::default();
    while !bytes.is_empty() {
        let (tag, rest) = unsigned_varint::decode::u64(bytes).ok()?;
        let (value, rest) = match tag & 7 {
            0 => unsigned_varint::decode::u64(rest).ok()?,
            2 => {
                let (len, rest) = unsigned_varint::decode::u64(rest).ok()?;
                let (field, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
                if tag >> 3 == 2 {
                    data.bitfield = field;
                }
                (len, rest)
            }
            1 => (0, rest.get(8..)?),
            5 => (0, rest.get(4..)?),
            _ => return None,
        };
        match tag {
            0x08 => data.kind = Some(value),
            0x30 => data.fanout = value,
            _ => {}
        }
        bytes = rest;
    }
    Some(data)
}
