//! One record of a pack: what it looks like on disk.
//!
//! ```text
//! header, 32 bytes                                     key        data       padding to 8
//! magic "FLr1" | kind | 0 | key_len u16 | data_len u32 |
//! group u64    | body_crc u32 | 0 u32 | header_crc u32  multihash  bytes      zeros
//! ```
//!
//! Numbers are little endian. `body_crc` covers key and data. `header_crc` covers the header and starts from a
//! seed of the store, the pack and the offset: a record found by looking for the magic is one that this store
//! wrote at this place, not bytes that a stranger put into a block, and not a stale copy from elsewhere.
//!
//! Records are decoded from bytes that may be damaged: every length is checked before it is used.

use bytes::Bytes;
use uuid::Uuid;

use crate::{ManifestTotals, limits};

pub(crate) const HEADER: usize = 32;
/// Records start at multiples of this, which is what makes finding the next one after damage cheap.
pub(crate) const ALIGN: u64 = 8;
pub(crate) const MAGIC: [u8; 4] = *b"FLr1";
/// The longest key: a multihash with two 9-byte varints and 128 bytes of digest.
const KEY_BYTES: usize = 160;

/// Beside a manifest's state: its totals follow.
const WHOLE: u8 = 0x10;

/// A multihash in its binary form: what records and the index are keyed by.
pub(crate) type Key = Box<[u8]>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Block = 1,
    Manifest = 2,
    Chunk = 3,
    Frontier = 4,
    Step = 5,
    Gone = 6,
    Commit = 7,
}

impl Kind {
    pub(crate) fn from_u8(byte: u8) -> Option<Self> {
        [Self::Block, Self::Manifest, Self::Chunk, Self::Frontier, Self::Step, Self::Gone, Self::Commit]
            .into_iter()
            .find(|k| *k as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) key_len: u16,
    pub(crate) data_len: u32,
    pub(crate) group: u64,
    pub(crate) body_crc: u32,
}

impl Header {
    /// Bytes of the whole record.
    pub(crate) fn record_len(&self) -> u64 {
        record_len(self.key_len as usize, self.data_len as usize)
    }

    /// Bytes of key and data.
    pub(crate) fn body_len(&self) -> usize {
        self.key_len as usize + self.data_len as usize
    }

    pub(crate) fn body_matches(&self, body: &[u8]) -> bool {
        body.len() == self.body_len() && crc32fast::hash(body) == self.body_crc
    }
}

pub(crate) fn record_len(key_len: usize, data_len: usize) -> u64 {
    ((HEADER + key_len + data_len) as u64).next_multiple_of(ALIGN)
}

/// What makes a header valid only in this store, in this pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed {
    salt: u64,
    pack: u32,
}

impl Seed {
    pub(crate) fn new(salt: u64, pack: u32) -> Self {
        Self { salt, pack }
    }

    fn crc(self, offset: u64, head: &[u8]) -> u32 {
        let mut h = crc32fast::Hasher::new();
        h.update(&self.salt.to_le_bytes());
        h.update(&self.pack.to_le_bytes());
        h.update(&offset.to_le_bytes());
        h.update(head);
        h.finalize()
    }
}

pub(crate) fn encode_header(seed: Seed, offset: u64, h: Header) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[0..4].copy_from_slice(&MAGIC);
    out[4] = h.kind as u8;
    out[6..8].copy_from_slice(&h.key_len.to_le_bytes());
    out[8..12].copy_from_slice(&h.data_len.to_le_bytes());
    out[12..20].copy_from_slice(&h.group.to_le_bytes());
    out[20..24].copy_from_slice(&h.body_crc.to_le_bytes());
    let crc = seed.crc(offset, &out[..28]);
    out[28..32].copy_from_slice(&crc.to_le_bytes());
    out
}

pub(crate) fn decode_header(seed: Seed, offset: u64, bytes: &[u8]) -> Option<Header> {
    let b: &[u8; HEADER] = bytes.get(..HEADER)?.try_into().ok()?;
    if b[0..4] != MAGIC || seed.crc(offset, &b[..28]).to_le_bytes() != b[28..32] {
        return None;
    }
    let header = Header {
        kind: Kind::from_u8(b[4])?,
        key_len: u16::from_le_bytes([b[6], b[7]]),
        data_len: u32::from_le_bytes([b[8], b[9], b[10], b[11]]),
        group: u64::from_le_bytes(b[12..20].try_into().ok()?),
        body_crc: u32::from_le_bytes([b[20], b[21], b[22], b[23]]),
    };
    let fits = header.key_len as usize <= KEY_BYTES && header.data_len as usize <= limits::RECORD_BYTES;
    fits.then_some(header)
}

/// Where a record is. `pack` 0 is nowhere: packs count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub(crate) struct Loc {
    pub(crate) pack: u32,
    pub(crate) offset: u32,
}

impl Loc {
    pub(crate) fn is_somewhere(self) -> bool {
        self.pack != 0
    }

    /// A number that no other record of the store ever has: pack numbers are not used twice.
    pub(crate) fn serial(self) -> u64 {
        u64::from(self.pack) << 32 | u64::from(self.offset)
    }
}

/// A record's meaning, without a block's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// A block. The last record of a hash is where it is.
    Block { hash: Key, len: u32 },
    /// A manifest's state; the later state wins. `whole` is what its chunks hold, from the seal on: where a rebuild
    /// counts less, it knows which manifest a damaged chunk was of.
    Manifest { id: Uuid, born: u64, state: State, whole: Option<ManifestTotals>, root: Bytes },
    /// Members of a manifest. `serial` names the chunk wherever compaction moves it.
    Chunk { id: Uuid, born: u64, serial: u64, members: Vec<Member> },
    /// How far the walk of a manifest is. The last one counts.
    Frontier { id: Uuid, born: u64, len: u32 },
    /// Chunks of a manifest whose members were counted down, and the blocks that died of it. Outlives every
    /// pack up to `through`.
    Step { id: Uuid, through: u32, chunks: Vec<u64>, tombs: Vec<Tomb> },
    /// A manifest that was let go of completely. Outlives every pack up to `through`.
    Gone { id: Uuid, born: u64, through: u32 },
}

/// The state of a manifest, in the order it goes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum State {
    Open = 0,
    Sealed = 1,
    Releasing = 2,
}

impl State {
    pub(crate) fn from_u8(byte: u8) -> Option<Self> {
        [Self::Open, Self::Sealed, Self::Releasing].into_iter().find(|s| *s as u8 == byte)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) hash: Key,
    pub(crate) len: u32,
}

/// A deletion. It names the record it deletes, so that it can never delete a later copy of the block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tomb {
    pub(crate) hash: Key,
    pub(crate) loc: Loc,
}

impl Record {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Block { .. } => Kind::Block,
            Self::Manifest { .. } => Kind::Manifest,
            Self::Chunk { .. } => Kind::Chunk,
            Self::Frontier { .. } => Kind::Frontier,
            Self::Step { .. } => Kind::Step,
            Self::Gone { .. } => Kind::Gone,
        }
    }

    /// Key and data of the record. A block's and a frontier's bytes are `payload`.
    pub(crate) fn body(&self, payload: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut w = Vec::new();
        let key = match self {
            Self::Block { hash, .. } => {
                w.extend_from_slice(payload);
                hash.to_vec()
            }
            Self::Manifest { id, born, state, whole, root } => {
                put_u64(&mut w, *born);
                w.push(*state as u8 | whole.map_or(0, |_| WHOLE));
                for n in whole.iter().flat_map(|whole| [whole.blocks, whole.bytes]) {
                    put_u64(&mut w, n);
                }
                w.extend_from_slice(root);
                id.as_bytes().to_vec()
            }
            Self::Chunk { id, born, serial, members } => {
                w.reserve(20 + members.len() * 40);
                put_u64(&mut w, *born);
                put_u64(&mut w, *serial);
                put_len(&mut w, members.len());
                for m in members {
                    put_hash(&mut w, &m.hash);
                    put_u32(&mut w, m.len);
                }
                id.as_bytes().to_vec()
            }
            Self::Frontier { id, born, .. } => {
                put_u64(&mut w, *born);
                w.extend_from_slice(payload);
                id.as_bytes().to_vec()
            }
            Self::Step { id, through, chunks, tombs } => {
                put_u32(&mut w, *through);
                put_len(&mut w, chunks.len());
                chunks.iter().for_each(|c| put_u64(&mut w, *c));
                put_len(&mut w, tombs.len());
                for t in tombs {
                    put_hash(&mut w, &t.hash);
                    put_u32(&mut w, t.loc.pack);
                    put_u32(&mut w, t.loc.offset);
                }
                id.as_bytes().to_vec()
            }
            Self::Gone { id, born, through } => {
                put_u64(&mut w, *born);
                put_u32(&mut w, *through);
                id.as_bytes().to_vec()
            }
        };
        (key, w)
    }

    /// Decodes a body. `None` for a commit and for what no version of this code wrote. The bytes of a block or a
    /// frontier need not be there: `data_len` is what the header says of them.
    pub(crate) fn decode(kind: Kind, key: &[u8], data: &[u8], data_len: u32) -> Option<Self> {
        if kind == Kind::Block {
            return Some(Self::Block { hash: key.into(), len: data_len });
        }
        let id = Uuid::from_slice(key).ok()?;
        let mut r = Reader(data);
        let record = match kind {
            Kind::Block | Kind::Commit => return None,
            Kind::Manifest => {
                let (born, state) = (r.u64()?, r.take(1)?[0]);
                let whole = match state & WHOLE {
                    0 => None,
                    _ => Some(ManifestTotals { blocks: r.u64()?, bytes: r.u64()? }),
                };
                let state = State::from_u8(state & !WHOLE)?;
                Self::Manifest { id, born, state, whole, root: Bytes::copy_from_slice(r.rest()) }
            }
            Kind::Chunk => {
                let (born, serial, n) = (r.u64()?, r.u64()?, r.u32()?);
                let members = (0..n)
                    .map(|_| Some(Member { hash: r.hash()?, len: r.u32()? }))
                    .collect::<Option<Vec<_>>>()?;
                Self::Chunk { id, born, serial, members }
            }
            Kind::Frontier => {
                let born = r.u64()?;
                r.rest();
                Self::Frontier { id, born, len: data_len.checked_sub(8)? }
            }
            Kind::Step => {
                let through = r.u32()?;
                let n = r.u32()?;
                let chunks = (0..n).map(|_| r.u64()).collect::<Option<Vec<_>>>()?;
                let n = r.u32()?;
                let tombs = (0..n).map(|_| r.tomb()).collect::<Option<Vec<_>>>()?;
                Self::Step { id, through, chunks, tombs }
            }
            Kind::Gone => Self::Gone { id, born: r.u64()?, through: r.u32()? },
        };
        r.0.is_empty().then_some(record)
    }
}

fn put_u32(w: &mut Vec<u8>, v: u32) {
    w.extend_from_slice(&v.to_le_bytes());
}

fn put_u64(w: &mut Vec<u8>, v: u64) {
    w.extend_from_slice(&v.to_le_bytes());
}

fn put_len(w: &mut Vec<u8>, n: usize) {
    put_u32(w, u32::try_from(n).expect("a group has far fewer than 2^32 items"));
}

fn put_hash(w: &mut Vec<u8>, hash: &[u8]) {
    w.push(u8::try_from(hash.len()).expect("a multihash is shorter than 256 bytes"));
    w.extend_from_slice(hash);
}

/// Takes values off the front of a slice, never past its end.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take(8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    }

    pub(crate) fn hash(&mut self) -> Option<Key> {
        let n = self.take(1)?[0];
        self.take(n as usize).map(Into::into)
    }

    fn tomb(&mut self) -> Option<Tomb> {
        Some(Tomb { hash: self.hash()?, loc: Loc { pack: self.u32()?, offset: self.u32()? } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        vec(any::<u8>(), 2..150).prop_map(Vec::into_boxed_slice)
    }

    fn record() -> impl Strategy<Value = Record> {
        let id = || any::<[u8; 16]>().prop_map(Uuid::from_bytes);
        let state = prop_oneof![Just(State::Open), Just(State::Sealed), Just(State::Releasing)];
        let member = (key(), any::<u32>()).prop_map(|(hash, len)| Member { hash, len });
        let tomb = (key(), any::<u32>(), any::<u32>())
            .prop_map(|(hash, pack, offset)| Tomb { hash, loc: Loc { pack, offset } });
        prop_oneof![
            (id(), any::<u64>(), state, any::<Option<(u64, u64)>>(), vec(any::<u8>(), 0..170)).prop_map(
                |(id, born, state, whole, root)| {
                    let whole = whole.map(|(blocks, bytes)| ManifestTotals { blocks, bytes });
                    Record::Manifest { id, born, state, whole, root: root.into() }
                }
            ),
            (id(), any::<u64>(), any::<u64>(), vec(member, 0..40))
                .prop_map(|(id, born, serial, members)| Record::Chunk { id, born, serial, members }),
            (id(), any::<u32>(), vec(any::<u64>(), 0..40), vec(tomb, 0..40))
                .prop_map(|(id, through, chunks, tombs)| Record::Step { id, through, chunks, tombs }),
            (id(), any::<u64>(), any::<u32>()).prop_map(|(id, born, through)| Record::Gone {
                id,
                born,
                through
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_round_trip(r in record()) {
            let (key, data) = r.body(&[]);
            prop_assert_eq!(Record::decode(r.kind(), &key, &data, data.len() as u32), Some(r));
        }

        #[test]
        fn r04_a_cut_record_is_no_record(r in record(), cut in 1usize..200) {
            let (key, data) = r.body(&[]);
            // A manifest ends in its root, which has no length of its own: its checksum is what notices.
            if cut <= data.len() && r.kind() != Kind::Manifest {
                let data = &data[..data.len() - cut];
                prop_assert_eq!(Record::decode(r.kind(), &key, data, data.len() as u32), None);
            }
        }

        #[test]
        fn r04_any_flipped_bit_of_a_header_is_noticed(
            salt: u64, offset: u64, group: u64, key_len in 0u16..160, data_len in 0u32..1000, bit in 0usize..256
        ) {
            let seed = Seed::new(salt, 7);
            let h = Header { kind: Kind::Block, key_len, data_len, group, body_crc: 5 };
            let mut bytes = encode_header(seed, offset, h);
            prop_assert_eq!(decode_header(seed, offset, &bytes), Some(h));
            prop_assert_eq!(decode_header(seed, offset ^ 8, &bytes), None);
            prop_assert_eq!(decode_header(Seed::new(salt ^ 1, 7), offset, &bytes), None);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode_header(seed, offset, &bytes), None);
        }

        #[test]
        fn garbage_is_no_record(kind in 1u8..8, key in vec(any::<u8>(), 0..40), data in vec(any::<u8>(), 0..300)) {
            let kind = Kind::from_u8(kind).unwrap();
            let _ = Record::decode(kind, &key, &data, data.len() as u32);
        }
    }

    #[test]
    fn the_record_length_limit_is_hard() {
        for (len, ok) in [
            (limits::RECORD_BYTES - 1, true),
            (limits::RECORD_BYTES, true),
            (limits::RECORD_BYTES + 1, false),
        ] {
            let seed = Seed::new(1, 1);
            let h = Header { kind: Kind::Frontier, key_len: 16, data_len: len as u32, group: 1, body_crc: 0 };
            assert_eq!(decode_header(seed, 8, &encode_header(seed, 8, h)).is_some(), ok, "{len}");
        }
    }
}
