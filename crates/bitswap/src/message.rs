//! The wire format: bitswap's protobuf, read by a parser that is total and written without copying payloads.
//!
//! ```text
//! frame   = varint length, then that many bytes of:
//! Message { wantlist = 1 { entries = 1 { block = 1, priority = 2, cancel = 3, wantType = 4, sendDontHave = 5 },
//!                          full = 2 },
//!           blocks = 2, payload = 3 { prefix = 1, data = 2 },
//!           blockPresences = 4 { cid = 1, type = 2 }, pendingBytes = 5 }
//! ```
//!
//! Reading takes one [`Bytes`] and hands out slices of it: a large payload is not copied. A slice keeps its whole
//! frame, though, so payloads that are small, or a small part of their frame, are copied.
//!
//! Unknown fields are skipped, as protobuf demands; lengths are checked against what is there; nothing is
//! allocated from a length on the wire. A CID that is malformed fails the message; one that is well formed but
//! proves nothing (`floe_core::cid::check`) or carries its data inline is left out, because old and odd peers
//! send them in good faith. Entries above [`ENTRIES_PER_MESSAGE`] are left out too.
//!
//! Writing makes a [`Frame`]: slices in order, small parts gathered, payloads as they are.

mod protobuf;

use bytes::{BufMut, Bytes, BytesMut};
use floe_core::cid::{self, code};
use floe_core::{Block, BlockError, Cid};
use thiserror::Error;

use crate::limits::{ENTRIES_PER_MESSAGE, SLICE_KEEPS, SLICE_PAYLOAD_FROM, hit};
pub(crate) use protobuf::take_varint;
use protobuf::{Fields, bytes_field_len, int_field_len, put_int_field, put_len, put_varint, varint_len};

/// The version of the protocol that a stream speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// `/ipfs/bitswap/1.0.0`: blocks without a prefix, so CID v0 alone.
    V1_0,
    /// `/ipfs/bitswap/1.1.0`: blocks with a CID prefix.
    V1_1,
    /// `/ipfs/bitswap/1.2.0`: HAVE and DONT_HAVE.
    V1_2,
}

/// What a want asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WantKind {
    /// Whether the peer has it.
    Have,
    /// The block.
    Block,
}

/// An entry of a wantlist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantEntry {
    /// The block.
    pub cid: Cid,
    /// Larger is more urgent.
    pub priority: i32,
    /// Takes an earlier want back.
    pub cancel: bool,
    /// Block or presence.
    pub kind: WantKind,
    /// Whether a missing block is to be answered.
    pub send_dont_have: bool,
}

/// Everything about a CID but its digest, which the receiver computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Prefix {
    /// CID version, 0 or 1.
    pub version: u64,
    /// Multicodec of the content.
    pub codec: u64,
    /// Multihash code.
    pub hash: u64,
    /// Digest length in bytes.
    pub digest_len: u64,
}

/// A block on the wire: not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// What it claims to be.
    pub prefix: Prefix,
    /// The bytes. They keep at most [`SLICE_KEEPS`] times as many in memory, whatever the frame holds.
    pub data: Bytes,
}

/// Whether a peer has a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Presence {
    /// It has.
    Have,
    /// It has not.
    DontHave,
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// Whether the wantlist replaces all earlier ones.
    pub full: bool,
    /// Wants and cancels.
    pub wants: Vec<WantEntry>,
    /// Blocks, of either wire form.
    pub payloads: Vec<Payload>,
    /// Answers to want-have, and to wants for missing blocks.
    pub presences: Vec<(Cid, Presence)>,
    /// Bytes that the sender still has queued for the receiver.
    pub pending_bytes: i32,
}

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A field ends behind the end of what holds it, or a varint does not end.
    #[error("the message is cut off inside a field")]
    Truncated,
    /// A varint of more than 64 bits.
    #[error("a number in the message has more than 64 bits")]
    Overflow,
    /// A wire type that protobuf does not have (any more), or field number 0.
    #[error("the message has a field of unknown wire type {0}")]
    WireType(u8),
    /// A known field came with another wire type than it has.
    #[error("field {0} has the wrong wire type")]
    FieldType(u64),
    /// A CID does not parse.
    #[error("a CID in the message does not parse: {0}")]
    Cid(String),
    /// A payload's prefix does not parse.
    #[error("the prefix of a block does not parse")]
    Prefix,
}

impl Prefix {
    /// What bitswap 1.0 implies.
    pub const V0: Self = Self { version: 0, codec: code::DAG_PB, hash: code::SHA2_256, digest_len: 32 };

    /// The prefix of `cid`.
    pub fn of(cid: &Cid) -> Self {
        Self {
            version: cid.version().into(),
            codec: cid.codec(),
            hash: cid.hash().code(),
            digest_len: u64::from(cid.hash().size()),
        }
    }

    /// The multihash's digest length, if it can be one.
    fn digest_len(&self) -> usize {
        usize::try_from(self.digest_len).unwrap_or(usize::MAX)
    }

    fn put(&self, out: &mut BytesMut) {
        for part in [self.version, self.codec, self.hash, self.digest_len] {
            put_varint(out, part);
        }
    }

    fn encoded_len(&self) -> usize {
        [self.version, self.codec, self.hash, self.digest_len].into_iter().map(varint_len).sum()
    }

    fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut rest = bytes;
        let mut next = || {
            let (value, tail) = take_varint(rest).map_err(|_| DecodeError::Prefix)?;
            rest = tail;
            Ok(value)
        };
        let prefix = Self { version: next()?, codec: next()?, hash: next()?, digest_len: next()? };
        if prefix.version > 1 || !rest.is_empty() {
            return Err(DecodeError::Prefix);
        }
        Ok(prefix)
    }
}

impl Payload {
    /// Hashes the bytes: about half a millisecond per MiB. The CID is always v1; which version was asked for
    /// is the asker's to know.
    ///
    /// # Errors
    /// [`BlockError`] for a hash that proves nothing or a block above 2 MiB.
    pub fn hashed(self) -> Result<Block, BlockError> {
        Block::hashed(self.prefix.codec, self.prefix.hash, self.prefix.digest_len(), self.data)
    }

    /// The payload that carries `data` as `cid`.
    pub fn new(cid: &Cid, data: Bytes) -> Self {
        Self { prefix: Prefix::of(cid), data }
    }
}

// Field tags: number << 3 | wire type (0 varint, 2 bytes).
const WANTLIST: u8 = 0x0a;
const ENTRY: u8 = 0x0a;
const FULL: u8 = 0x10;
const ENTRY_BLOCK: u8 = 0x0a;
const ENTRY_PRIORITY: u8 = 0x10;
const ENTRY_CANCEL: u8 = 0x18;
const ENTRY_TYPE: u8 = 0x20;
const ENTRY_DONT_HAVE: u8 = 0x28;
const BLOCKS: u8 = 0x12;
const PAYLOAD: u8 = 0x1a;
const PAYLOAD_PREFIX: u8 = 0x0a;
const PAYLOAD_DATA: u8 = 0x12;
const PRESENCE: u8 = 0x22;
const PRESENCE_CID: u8 = 0x0a;
const PRESENCE_TYPE: u8 = 0x10;
const PENDING_BYTES: u8 = 0x28;

impl Message {
    /// Parses what a frame holds.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing of the message counts.
    pub fn decode(frame: &Bytes) -> Result<Self, DecodeError> {
        let mut message = Self::default();
        let mut fields = Fields::new(frame);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => message.read_wantlist(&value.bytes(number)?)?,
                2 => message.push_payload(Payload { prefix: Prefix::V0, data: value.bytes(number)? }),
                3 => {
                    let payload = read_payload(&value.bytes(number)?)?;
                    message.push_payload(payload);
                }
                4 => message.read_presence(&value.bytes(number)?)?,
                5 => message.pending_bytes = value.int32(number)?,
                _ => {}
            }
        }
        message.copy_small_payloads(frame.len());
        Ok(message)
    }

    /// A slice keeps its whole frame, and what is counted are the bytes of payloads. Each payload is looked at for itself:
    /// the others may be dropped at once, and padding always is.
    fn copy_small_payloads(&mut self, frame_bytes: usize) {
        for Payload { data, .. } in &mut self.payloads {
            if data.len() < SLICE_PAYLOAD_FROM || SLICE_KEEPS * data.len() < frame_bytes {
                *data = Bytes::copy_from_slice(data);
            }
        }
    }

    /// Bytes of its blocks.
    pub(crate) fn block_bytes(&self) -> usize {
        self.payloads.iter().map(|payload| payload.data.len()).sum()
    }

    /// Whether there is nothing in it to send.
    pub fn is_empty(&self) -> bool {
        !self.full && self.wants.is_empty() && self.payloads.is_empty() && self.presences.is_empty()
    }

    fn push_payload(&mut self, payload: Payload) {
        push_bounded(&mut self.payloads, payload);
    }

    fn read_wantlist(&mut self, bytes: &Bytes) -> Result<(), DecodeError> {
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => {
                    if let Some(entry) = read_want(&value.bytes(number)?)? {
                        push_bounded(&mut self.wants, entry);
                    }
                }
                2 => self.full = value.int(number)? != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn read_presence(&mut self, bytes: &Bytes) -> Result<(), DecodeError> {
        let (mut block, mut presence) = (Bytes::new(), Presence::Have);
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                1 => block = value.bytes(number)?,
                2 => presence = if value.int(number)? == 0 { Presence::Have } else { Presence::DontHave },
                _ => {}
            }
        }
        if let Some(cid) = read_cid(&block)? {
            push_bounded(&mut self.presences, (cid, presence));
        }
        Ok(())
    }

    /// The frame to write on a stream of `version`: length first. What the version does not know is left
    /// out or said in its own way.
    pub fn encode(&self, version: Version) -> Frame {
        let mut out = FrameWriter::default();
        put_varint(&mut out.tail, self.encoded_len(version) as u64);
        self.put_wantlist(&mut out.tail, self.wantlist_len());
        if version >= Version::V1_2 {
            self.presences.iter().for_each(|p| put_presence(&mut out.tail, p));
            put_int_field(&mut out.tail, PENDING_BYTES, self.pending_bytes);
        }
        self.payloads.iter().for_each(|p| put_payload(&mut out, p, version));
        out.finish()
    }

    /// Bytes of its frame behind the length.
    pub fn encoded_len(&self, version: Version) -> usize {
        let mut len = bytes_field_len(self.wantlist_len());
        len += self.payloads.iter().map(|p| bytes_field_len(payload_len(p, version))).sum::<usize>();
        if version >= Version::V1_2 {
            len += self.presences.iter().map(|p| bytes_field_len(presence_len(p))).sum::<usize>();
            len += int_field_len(self.pending_bytes);
        }
        len
    }

    fn wantlist_len(&self) -> usize {
        let entries: usize = self.wants.iter().map(|w| bytes_field_len(want_len(w))).sum();
        entries + if self.full { 2 } else { 0 }
    }

    fn put_wantlist(&self, out: &mut BytesMut, len: usize) {
        // Written even when empty: boxo before 0.14 took a message without a wantlist for nil (boxo#961).
        put_len(out, WANTLIST, len);
        for want in &self.wants {
            put_len(out, ENTRY, want_len(want));
            put_len(out, ENTRY_BLOCK, want.cid.encoded_len());
            put_cid(out, &want.cid);
            put_int_field(out, ENTRY_PRIORITY, want.priority);
            put_int_field(out, ENTRY_CANCEL, i32::from(want.cancel));
            put_int_field(out, ENTRY_TYPE, i32::from(want.kind == WantKind::Have));
            put_int_field(out, ENTRY_DONT_HAVE, i32::from(want.send_dont_have));
        }
        put_int_field(out, FULL, i32::from(self.full));
    }
}

/// A message ready to be written: slices in order.
#[derive(Debug, Clone)]
pub struct Frame {
    parts: Vec<Bytes>,
    len: usize,
}

impl Frame {
    /// The slices, none empty.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Bytes in all slices, the length prefix included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a frame has at least its length.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Gathers small parts in `tail` and keeps large ones as they are.
#[derive(Default)]
struct FrameWriter {
    parts: Vec<Bytes>,
    tail: BytesMut,
}

impl FrameWriter {
    fn put_data(&mut self, data: &Bytes) {
        if data.len() < SLICE_PAYLOAD_FROM {
            self.tail.extend_from_slice(data);
        } else {
            self.parts.push(self.tail.split().freeze());
            self.parts.push(data.clone());
        }
    }

    fn finish(mut self) -> Frame {
        self.parts.push(self.tail.freeze());
        self.parts.retain(|part| !part.is_empty());
        let len = self.parts.iter().map(Bytes::len).sum();
        Frame { parts: self.parts, len }
    }
}

fn push_bounded<T>(list: &mut Vec<T>, item: T) {
    if list.len() < ENTRIES_PER_MESSAGE {
        list.push(item);
    } else {
        hit("bitswap_entries_per_message");
    }
}

/// A CID that counts, `None` for one that is left out.
fn read_cid(bytes: &[u8]) -> Result<Option<Cid>, DecodeError> {
    if bytes.len() > cid::MAX_CID_BYTES {
        hit("bitswap_cid_bytes");
        return Err(DecodeError::Cid(format!("{} bytes are too many", bytes.len())));
    }
    let parsed = Cid::try_from(bytes).map_err(|e| DecodeError::Cid(e.to_string()))?;
    if parsed.encoded_len() != bytes.len() {
        return Err(DecodeError::Cid("bytes are left over behind it".into()));
    }
    Ok((!cid::is_identity(&parsed) && cid::check(parsed.hash()).is_ok()).then_some(parsed))
}

fn read_want(bytes: &Bytes) -> Result<Option<WantEntry>, DecodeError> {
    let (mut block, mut priority, mut cancel) = (Bytes::new(), 0, false);
    let (mut kind, mut send_dont_have) = (WantKind::Block, false);
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => block = value.bytes(number)?,
            2 => priority = value.int32(number)?,
            3 => cancel = value.int(number)? != 0,
            4 => kind = if value.int(number)? == 1 { WantKind::Have } else { WantKind::Block },
            5 => send_dont_have = value.int(number)? != 0,
            _ => {}
        }
    }
    Ok(read_cid(&block)?.map(|cid| WantEntry { cid, priority, cancel, kind, send_dont_have }))
}

fn read_payload(bytes: &Bytes) -> Result<Payload, DecodeError> {
    let (mut prefix, mut data) = (None, Bytes::new());
    let mut fields = Fields::new(bytes);
    while let Some((number, value)) = fields.next()? {
        match number {
            1 => prefix = Some(Prefix::read(&value.bytes(number)?)?),
            2 => data = value.bytes(number)?,
            _ => {}
        }
    }
    Ok(Payload { prefix: prefix.ok_or(DecodeError::Prefix)?, data })
}

fn want_len(want: &WantEntry) -> usize {
    bytes_field_len(want.cid.encoded_len())
        + int_field_len(want.priority)
        + [want.cancel, want.kind == WantKind::Have, want.send_dont_have]
            .into_iter()
            .filter(|set| *set)
            .count()
            * 2
}

fn presence_len((cid, presence): &(Cid, Presence)) -> usize {
    bytes_field_len(cid.encoded_len()) + int_field_len(i32::from(*presence == Presence::DontHave))
}

fn put_presence(out: &mut BytesMut, item: &(Cid, Presence)) {
    put_len(out, PRESENCE, presence_len(item));
    put_len(out, PRESENCE_CID, item.0.encoded_len());
    put_cid(out, &item.0);
    put_int_field(out, PRESENCE_TYPE, i32::from(item.1 == Presence::DontHave));
}

fn payload_len(payload: &Payload, version: Version) -> usize {
    match version {
        Version::V1_0 => payload.data.len(),
        _ => bytes_field_len(payload.prefix.encoded_len()) + bytes_field_len(payload.data.len()),
    }
}

fn put_payload(out: &mut FrameWriter, payload: &Payload, version: Version) {
    if version == Version::V1_0 {
        put_len(&mut out.tail, BLOCKS, payload.data.len());
    } else {
        put_len(&mut out.tail, PAYLOAD, payload_len(payload, version));
        put_len(&mut out.tail, PAYLOAD_PREFIX, payload.prefix.encoded_len());
        payload.prefix.put(&mut out.tail);
        put_len(&mut out.tail, PAYLOAD_DATA, payload.data.len());
    }
    out.put_data(&payload.data);
}

fn put_cid(out: &mut BytesMut, cid: &Cid) {
    cid.write_bytes(out.writer()).expect("writing to memory does not fail");
}

#[cfg(test)]
mod tests;
