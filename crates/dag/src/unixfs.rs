//! The UnixFS message in a dag-pb node's Data field, and the checks that keep bogus HAMT shards out (T14).
//!
//! A dag-pb node whose Data is no UnixFS is fine to pin: its links are walked all the same. Only a node that
//! says it is a HAMT shard has to be a sound one.

use crate::limits::{self, HAMT_HASH_BITS, MAX_HAMT_FANOUT, MAX_HAMT_LEVELS};
use crate::proto::{Fields, Value};

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of a file, the older form of a raw leaf.
    Raw,
    /// A directory in one block.
    Directory,
    /// A file.
    File,
    /// Data about a file.
    Metadata,
    /// A symbolic link.
    Symlink,
    /// A directory, or a part of one, spread over blocks by the hash of its names.
    HamtShard,
}

/// The UnixFS fields that Floe reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnixFs<'a> {
    /// What it is.
    pub kind: Kind,
    /// The file's bytes, the link's target, or the shard's bitfield.
    pub data: &'a [u8],
    /// Bytes of the whole file.
    pub file_size: Option<u64>,
    /// The multihash code of the function that places names.
    pub hash_type: Option<u64>,
    /// Slots of a shard.
    pub fanout: Option<u64>,
}

/// Reads a dag-pb node's Data field; `None` where it is no UnixFS. Unknown fields are skipped, as protobuf asks.
pub fn decode(bytes: &[u8]) -> Option<UnixFs<'_>> {
    let mut fields = Fields::new(bytes);
    let mut kind = None;
    let mut node = UnixFs { kind: Kind::Raw, data: &[], file_size: None, hash_type: None, fanout: None };
    while let Some((number, value)) = fields.next().ok()? {
        match (number, value) {
            (1, Value::Varint(n)) => kind = Some(kind_of(n)?),
            (2, Value::Bytes(data)) => node.data = data,
            (3, Value::Varint(n)) => node.file_size = Some(n),
            (5, Value::Varint(n)) => node.hash_type = Some(n),
            (6, Value::Varint(n)) => node.fanout = Some(n),
            (1..=3 | 5 | 6, _) => return None,
            _ => {}
        }
    }
    Some(UnixFs { kind: kind?, ..node })
}

fn kind_of(number: u64) -> Option<Kind> {
    Some(match number {
        0 => Kind::Raw,
        1 => Kind::Directory,
        2 => Kind::File,
        3 => Kind::Metadata,
        4 => Kind::Symlink,
        5 => Kind::HamtShard,
        _ => return None,
    })
}

/// Why a HAMT shard is bogus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HamtError {
    /// No power of two, or too wide (CVE-2023-23625).
    #[error("a HAMT shard with {0} slots: a power of two of at most {MAX_HAMT_FANOUT} is needed")]
    Fanout(u64),
    /// A bitfield longer than the fanout, or with slots that the fanout does not have.
    #[error("a HAMT shard of {fanout} slots with a bitfield of {bytes} bytes that does not fit it")]
    Bitfield {
        /// Slots.
        fanout: u64,
        /// Bytes of the bitfield.
        bytes: usize,
    },
    /// Slots taken and links differ.
    #[error("a HAMT shard with {slots} slots taken and {links} links")]
    Links {
        /// Bits set.
        slots: u64,
        /// Links.
        links: u64,
    },
    /// A link whose name lacks the slot's number.
    #[error("a HAMT shard with a link name that is shorter than a slot number")]
    Name,
    /// Deeper than the hash has bits, or than 32 levels.
    #[error("a HAMT that is {0} levels deep")]
    Depth(u32),
}

/// A shard whose fanout and bitfield are sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hamt {
    bits: u32,
    slots_taken: u64,
}

impl Hamt {
    /// Checks fanout and bitfield of a shard. Writers leave out leading zero bytes of the bitfield, so it may be
    /// shorter than the fanout, never longer.
    ///
    /// # Errors
    /// [`HamtError`].
    pub fn of(node: &UnixFs<'_>) -> Result<Self, HamtError> {
        let fanout = node.fanout.unwrap_or(0);
        if !fanout.is_power_of_two() || fanout > MAX_HAMT_FANOUT {
            limits::hit("hamt_fanout");
            return Err(HamtError::Fanout(fanout));
        }
        let bytes = node.data.len();
        // The bitfield is a big-endian number: what is above the fanout's bits is at its front.
        let stray = fanout < 8 && node.data.last().is_some_and(|b| u64::from(*b) >> fanout != 0);
        if bytes as u64 > fanout.div_ceil(8) || stray {
            return Err(HamtError::Bitfield { fanout, bytes });
        }
        let slots_taken = node.data.iter().map(|b| u64::from(b.count_ones())).sum();
        Ok(Self { bits: fanout.trailing_zeros(), slots_taken })
    }

    /// Checks how many links there are.
    ///
    /// # Errors
    /// [`HamtError::Links`].
    pub fn check_links(&self, links: u64) -> Result<(), HamtError> {
        let slots = self.slots_taken;
        if slots == links { Ok(()) } else { Err(HamtError::Links { slots, links }) }
    }

    /// Checks a shard with `above` shards over it.
    ///
    /// # Errors
    /// [`HamtError::Depth`].
    pub fn check_depth(&self, above: u32) -> Result<(), HamtError> {
        let levels = above.saturating_add(1);
        if levels > MAX_HAMT_LEVELS || levels.saturating_mul(self.bits) > HAMT_HASH_BITS {
            limits::hit("hamt_depth");
            return Err(HamtError::Depth(levels));
        }
        Ok(())
    }

    /// Whether the link of this name leads to a shard below (its name is the slot's number alone).
    ///
    /// # Errors
    /// [`HamtError::Name`].
    pub fn is_shard_link(&self, name: &[u8]) -> Result<bool, HamtError> {
        // The slot's number in hexadecimal, padded to the width of the largest.
        let digits = self.bits.div_ceil(4).max(1) as usize;
        if name.len() < digits { Err(HamtError::Name) } else { Ok(name.len() == digits) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t14_levels_of_a_hamt_at_both_boundaries() {
        // The bits of the fanout, and the most levels that it may have.
        for (bits, most) in [(1, 32), (2, 32), (3, 21), (8, 8), (10, 6)] {
            let shard = Hamt { bits, slots_taken: 0 };
            for (levels, fits) in [(most - 1, true), (most, true), (most + 1, false)] {
                assert_eq!(shard.check_depth(levels - 1).is_ok(), fits, "{levels} levels of {bits} bits");
            }
        }
    }
}
