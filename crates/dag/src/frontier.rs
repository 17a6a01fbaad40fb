//! What a walk has left to do, as bytes: the lower part of its stack, and its checkpoint.
//!
//! ```text
//! checkpoint = "FLWK" version(1) entry*                 the last entry is the top of the stack
//! entry      = kind(1) shards(1) depth(4) next(4) cid length(1)
//!              kind    0: a CID to visit, 1: a node to read again
//!              shards  HAMT shards above it
//!              next    which of the node's links comes next
//!              length  of all before it, so that the stack is read from its end
//! ```
//! Numbers are little-endian. Decoding is total: [`Stack::decode`] checks every entry once, and `pop` relies
//! on it.

use bytes::{BufMut as _, Bytes, BytesMut};
use floe_core::{Cid, cid};

use crate::walk::WalkError;

const MAGIC: &[u8] = b"FLWK\x01";
/// An entry's bytes before the CID.
const FIXED: usize = 10;

/// The bytes of this CID's entry.
pub(crate) fn entry_bytes(cid: &Cid) -> usize {
    FIXED + cid.encoded_len() + 1
}

/// One thing left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) cid: Cid,
    /// Links from the root.
    pub(crate) depth: u32,
    /// HAMT shards above it.
    pub(crate) shards_above: u8,
    pub(crate) todo: Todo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Todo {
    /// Look at the CID.
    Visit,
    /// Follow the node's links from this one on.
    Links(u32),
}

/// Entries in about 50 bytes each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stack {
    bytes: BytesMut,
    len: usize,
}

impl Stack {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes of its entries.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn push(&mut self, entry: &Entry) {
        let before = self.bytes.len();
        let (kind, next) = match entry.todo {
            Todo::Visit => (0, 0),
            Todo::Links(next) => (1, next),
        };
        self.bytes.put_u8(kind);
        self.bytes.put_u8(entry.shards_above);
        self.bytes.put_u32_le(entry.depth);
        self.bytes.put_u32_le(next);
        entry.cid.write_bytes((&mut self.bytes).writer()).expect("writing to memory succeeds");
        let len = self.bytes.len() - before;
        self.bytes.put_u8(u8::try_from(len).expect("10 bytes and a CID of at most 168"));
        self.len += 1;
    }

    pub(crate) fn pop(&mut self) -> Option<Entry> {
        let (entry, rest) =
            last_entry(&self.bytes).expect("entries are written by push or checked by decode")?;
        self.bytes.truncate(rest);
        self.len -= 1;
        Some(entry)
    }

    /// The checkpoint's bytes.
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(MAGIC.len() + self.bytes.len());
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.bytes);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WalkError> {
        let damaged = |what: &str| WalkError::Frontier(what.into());
        let entries = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("not a frontier of version 1"))?;
        let (mut rest, mut len) = (entries.len(), 0);
        while let Some((entry, before)) = last_entry(&entries[..rest]).map_err(damaged)? {
            if cid::is_identity(&entry.cid) {
                return Err(damaged("an inline block"));
            }
            crate::links::accept(&entry.cid, &entry.cid).map_err(|e| WalkError::Frontier(e.to_string()))?;
            (rest, len) = (before, len + 1);
        }
        if len > crate::limits::MAX_OPEN_NODES + 2 * crate::limits::MAX_PENDING {
            return Err(damaged("too many entries"));
        }
        Ok(Self { bytes: entries.into(), len })
    }
}

/// The entry at the end, and where it begins.
fn last_entry(bytes: &[u8]) -> Result<Option<(Entry, usize)>, &'static str> {
    let Some((len, body)) = bytes.split_last() else { return Ok(None) };
    let from = body.len().checked_sub(usize::from(*len)).ok_or("an entry begins before the start")?;
    let body = &body[from..];
    let (fixed, name) = body.split_at_checked(FIXED).ok_or("an entry is too short")?;
    let number = |at: usize| u32::from_le_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
    let todo = match (fixed[0], number(6)) {
        (0, 0) => Todo::Visit,
        (1, next) => Todo::Links(next),
        _ => return Err("an entry of an unknown kind"),
    };
    let cid = cid::parse_bytes(name).map_err(|_| "an entry without a CID")?;
    Ok(Some((Entry { cid, depth: number(2), shards_above: fixed[1], todo }, from)))
}

#[cfg(test)]
mod tests {
    use floe_core::Multihash;

    use super::*;
    use crate::limits::MAX_ENTRY_BYTES;

    #[test]
    fn the_bytes_of_an_entry_are_known_before_it_is_written() {
        for (codec, hash, digest, bytes) in
            [(0x71, 0x12, 32, 47), (0x71, 0x13, 64, 79), (0x0129, 0x12, 32, 48)]
        {
            let cid = Cid::new_v1(codec, Multihash::wrap(hash, &vec![7; digest]).unwrap());
            let mut stack = Stack::default();
            stack.push(&Entry { cid, depth: 1, shards_above: 0, todo: Todo::Links(9) });
            assert_eq!((entry_bytes(&cid), stack.bytes()), (bytes, bytes));
        }
        let longest = Cid::new_v1(u64::MAX, Multihash::wrap(u64::MAX, &[7; 128]).unwrap());
        assert!(entry_bytes(&longest) <= MAX_ENTRY_BYTES, "{}", entry_bytes(&longest));
    }
}
