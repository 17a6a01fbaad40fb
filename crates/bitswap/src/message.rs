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
//! frame, though, so small payloads are copied behind each other, and all are where most of a frame is something
//! else. Unknown fields are skipped, as protobuf demands; lengths are checked against what is there; nothing is
//! allocated from a length on the wire. A CID that is malformed fails the message; one that is well formed but proves nothing
//! (`floe_core::cid::check`) or carries its data inline is left out, because old and odd peers send them in
//! good faith. Entries above [`ENTRIES_PER_MESSAGE`] are left out too.
//!
//! Writing makes a [`Frame`]: slices in order, small parts gathered, payloads as they are.

use bytes::{BufMut, Bytes, BytesMut};
use floe_core::cid::{self, code};
use floe_core::{Block, BlockError, Cid};
use thiserror::Error;

use crate::limits::{ENTRIES_PER_MESSAGE, SLICE_PAYLOAD_FROM, hit};

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
    /// The bytes. They keep at most twice what the payloads of their message have.
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

    /// A slice keeps its whole frame, and what is counted are the bytes of payloads: a frame of 4 MiB around a block
    /// of 100 bytes would cost 40,000 times what it counts for. So slices stay only where they are half of their
    /// frame. Payloads that are small beside it are copied in any case: one of them that is kept longer than the others
    /// then keeps no large one.
    fn copy_small_payloads(&mut self, frame_bytes: usize) {
        let large = SLICE_PAYLOAD_FROM.min(frame_bytes.div_ceil(2));
        let bytes = |payloads: &[Payload], of: std::ops::Range<usize>| -> usize {
            payloads.iter().map(|payload| payload.data.len()).filter(|len| of.contains(len)).sum()
        };
        let slices_pay = 2 * bytes(&self.payloads, large..usize::MAX) >= frame_bytes;
        let copied = 0..if slices_pay { large } else { usize::MAX };
        let mut room = BytesMut::with_capacity(bytes(&self.payloads, copied.clone()));
        for payload in self.payloads.iter_mut().filter(|payload| copied.contains(&payload.data.len())) {
            room.extend_from_slice(&payload.data);
            payload.data = room.split().freeze();
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

fn put_len(out: &mut BytesMut, tag: u8, len: usize) {
    out.put_u8(tag);
    put_varint(out, len as u64);
}

/// Like protobuf's third edition: zero is not written.
fn put_int_field(out: &mut BytesMut, tag: u8, value: i32) {
    if value != 0 {
        out.put_u8(tag);
        put_varint(out, wire_int(value));
    }
}

fn int_field_len(value: i32) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(wire_int(value)) }
}

fn bytes_field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// An int32 is sign-extended to 64 bits on the wire.
fn wire_int(value: i32) -> u64 {
    i64::from(value) as u64
}

fn put_varint(out: &mut BytesMut, value: u64) {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    out.put_slice(unsigned_varint::encode::u64(value, &mut buffer));
}

fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// A varint as protobuf reads it: padding is allowed, more than 64 bits are not.
pub(crate) fn take_varint(bytes: &[u8]) -> Result<(u64, &[u8]), DecodeError> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        if i == 9 && *byte > 1 {
            return Err(DecodeError::Overflow);
        }
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok((value, &bytes[i + 1..]));
        }
    }
    if bytes.len() >= 10 { Err(DecodeError::Overflow) } else { Err(DecodeError::Truncated) }
}

/// Walks over the fields of one protobuf message.
struct Fields<'a> {
    whole: &'a Bytes,
    at: usize,
}

/// The value of a field.
enum Value {
    Int(u64),
    Bytes(Bytes),
    /// Fixed 32 or 64 bits: no field of ours has them.
    Fixed,
}

impl Value {
    fn int(self, field: u64) -> Result<u64, DecodeError> {
        match self {
            Self::Int(value) => Ok(value),
            _ => Err(DecodeError::FieldType(field)),
        }
    }

    /// Protobuf cuts a varint that is too long for an int32.
    fn int32(self, field: u64) -> Result<i32, DecodeError> {
        self.int(field).map(|value| value as i32)
    }

    fn bytes(self, field: u64) -> Result<Bytes, DecodeError> {
        match self {
            Self::Bytes(value) => Ok(value),
            _ => Err(DecodeError::FieldType(field)),
        }
    }
}

impl<'a> Fields<'a> {
    fn new(whole: &'a Bytes) -> Self {
        Self { whole, at: 0 }
    }

    fn varint(&mut self) -> Result<u64, DecodeError> {
        let rest = &self.whole[self.at..];
        let (value, tail) = take_varint(rest)?;
        self.at += rest.len() - tail.len();
        Ok(value)
    }

    fn skip(&mut self, bytes: u64) -> Result<std::ops::Range<usize>, DecodeError> {
        let from = self.at;
        let to =
            usize::try_from(bytes).ok().and_then(|n| from.checked_add(n)).ok_or(DecodeError::Truncated)?;
        if to > self.whole.len() {
            return Err(DecodeError::Truncated);
        }
        self.at = to;
        Ok(from..to)
    }

    fn next(&mut self) -> Result<Option<(u64, Value)>, DecodeError> {
        if self.at == self.whole.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let (number, wire) = (key >> 3, (key & 7) as u8);
        if number == 0 {
            return Err(DecodeError::WireType(wire));
        }
        let value = match wire {
            0 => Value::Int(self.varint()?),
            1 => self.skip(8).map(|_| Value::Fixed)?,
            2 => {
                let len = self.varint()?;
                let range = self.skip(len)?;
                Value::Bytes(self.whole.slice(range))
            }
            5 => self.skip(4).map(|_| Value::Fixed)?,
            _ => return Err(DecodeError::WireType(wire)),
        };
        Ok(Some((number, value)))
    }
}

#[cfg(test)]
mod tests {
    use floe_core::Multihash;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{block, large};

    fn joined(frame: &Frame) -> Bytes {
        let mut all = BytesMut::new();
        frame.parts().iter().for_each(|part| all.extend_from_slice(part));
        assert_eq!(all.len(), frame.len());
        let (len, rest) = take_varint(&all).unwrap();
        assert_eq!(len as usize, rest.len());
        Bytes::copy_from_slice(rest)
    }

    fn cid_of(seed: u32, v0: bool, long: bool) -> Cid {
        let hash = if long {
            Multihash::wrap(code::SHA2_512, &[seed as u8; 64]).unwrap()
        } else {
            *block(seed).cid().hash()
        };
        if v0 && !long { Cid::new_v0(hash).unwrap() } else { Cid::new_v1(code::DAG_CBOR, hash) }
    }

    prop_compose! {
        fn any_cid()(seed in 0u32..50, v0: bool, long: bool) -> Cid {
            cid_of(seed, v0, long)
        }
    }

    prop_compose! {
        fn any_want()(cid in any_cid(), priority: i32, cancel: bool, have: bool, send_dont_have: bool) -> WantEntry {
            let kind = if have { WantKind::Have } else { WantKind::Block };
            WantEntry { cid, priority, cancel, kind, send_dont_have }
        }
    }

    prop_compose! {
        fn any_payload()(cid in any_cid(), data in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..200),
            Just(vec![3; SLICE_PAYLOAD_FROM]),
            Just(vec![4; SLICE_PAYLOAD_FROM - 1]),
        ]) -> Payload {
            Payload::new(&cid, Bytes::from(data))
        }
    }

    prop_compose! {
        fn any_message()(
            full: bool,
            wants in prop::collection::vec(any_want(), 0..8),
            payloads in prop::collection::vec(any_payload(), 0..4),
            presences in prop::collection::vec((any_cid(), any::<bool>()), 0..8),
            pending_bytes: i32,
        ) -> Message {
            let presences = presences
                .into_iter()
                .map(|(cid, have)| (cid, if have { Presence::Have } else { Presence::DontHave }))
                .collect();
            Message { full, wants, payloads, presences, pending_bytes }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_written_is_read(message in any_message()) {
            prop_assert_eq!(Message::decode(&joined(&message.encode(Version::V1_2))), Ok(message));
        }

        #[test]
        fn older_versions_leave_out_what_they_lack(message in any_message()) {
            let v1_1 = Message::decode(&joined(&message.encode(Version::V1_1))).unwrap();
            prop_assert_eq!(&v1_1.payloads, &message.payloads);
            prop_assert!(v1_1.presences.is_empty());
            let v1_0 = Message::decode(&joined(&message.encode(Version::V1_0))).unwrap();
            prop_assert_eq!(v1_0.payloads.len(), message.payloads.len());
            prop_assert!(v1_0.payloads.iter().all(|payload| payload.prefix == Prefix::V0));
        }

        #[test]
        fn t03_arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&Bytes::from(bytes));
        }

        #[test]
        fn t03_damaged_messages_never_panic(
            message in any_message(),
            damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = joined(&message.encode(Version::V1_2)).to_vec();
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let _ = Message::decode(&Bytes::from(bytes));
        }

        #[test]
        fn varints_agree_with_their_length(value: u64) {
            let mut out = BytesMut::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(take_varint(&out), Ok((value, &[][..])));
        }
    }

    #[test]
    fn t03_a_message_without_a_wantlist_is_read() {
        // boxo#961: a message without a wantlist was a nil pointer there.
        assert_eq!(Message::decode(&Bytes::new()), Ok(Message::default()));
        let only_pending = Message::decode(&Bytes::from_static(&[PENDING_BYTES, 7])).unwrap();
        assert_eq!(only_pending.pending_bytes, 7);
    }

    #[test]
    fn the_bytes_are_those_of_the_protobuf() {
        // Made by hand from the schema, so that both directions being wrong alike would show.
        let block = block(1);
        let cid = block.cid().to_bytes();
        let mut entry = vec![0x0a, 36];
        entry.extend(&cid);
        entry.extend([0x10, 1, 0x20, 1, 0x28, 1]);
        let mut wantlist = vec![0x0a, u8::try_from(entry.len()).unwrap()];
        wantlist.extend(entry);
        wantlist.extend([0x10, 1]);
        let mut bytes = vec![0x0a, u8::try_from(wantlist.len()).unwrap()];
        bytes.extend(wantlist);
        bytes.extend([0x22, 40, 0x0a, 36]);
        bytes.extend(&cid);
        bytes.extend([0x10, 1]);
        bytes.extend([0x1a, 12, 0x0a, 4, 1, 0x55, 0x12, 32, 0x12, 4]);
        bytes.extend(block.data());
        let message = Message {
            full: true,
            wants: vec![WantEntry {
                cid: *block.cid(),
                priority: 1,
                cancel: false,
                kind: WantKind::Have,
                send_dont_have: true,
            }],
            payloads: vec![Payload::new(block.cid(), block.data().clone())],
            presences: vec![(*block.cid(), Presence::DontHave)],
            pending_bytes: 0,
        };
        assert_eq!(Message::decode(&Bytes::from(bytes.clone())).unwrap(), message);
        assert_eq!(joined(&message.encode(Version::V1_2)), bytes);
    }

    #[test]
    fn payloads_are_slices_of_the_frame_and_go_out_uncopied() {
        let block = large(1, 100_000);
        let payload = Payload::new(block.cid(), block.data().clone());
        let frame = Message { payloads: vec![payload], ..Message::default() }.encode(Version::V1_2);
        assert!(frame.parts().iter().any(|part| part.as_ptr() == block.data().as_ptr()));
        let bytes = joined(&frame);
        let read = Message::decode(&bytes).unwrap();
        assert!(bytes.as_ptr_range().contains(&read.payloads[0].data.as_ptr()));
        assert_eq!(read.payloads[0].clone().hashed().unwrap(), block);
    }

    /// `message` with so many bytes of a field that nobody knows.
    fn padded(message: &Message, padding: usize) -> Bytes {
        const UNKNOWN: u8 = 0x7a;
        let mut bytes = BytesMut::from(&joined(&message.encode(Version::V1_2))[..]);
        put_len(&mut bytes, UNKNOWN, padding);
        bytes.put_bytes(0, padding);
        bytes.freeze()
    }

    /// The story: a payload was a slice of its frame whatever else the frame held, and counted for its own bytes: a
    /// provider that padded each message kept 4 MiB in memory for every block of 100 bytes.
    #[test]
    fn t07_a_padded_frame_is_not_kept_for_its_payloads() {
        let block = large(1, 100_000);
        let message =
            Message { payloads: vec![Payload::new(block.cid(), block.data().clone())], ..Message::default() };
        let around = padded(&message, 0).len() - 100_000;
        // The length of the padding has one byte more than that of no padding, at least.
        for (padding, kept) in [(99_000, true), (100_000 - around - 2, true), (100_000 - around - 1, false)] {
            let frame = padded(&message, padding);
            let read = Message::decode(&frame).unwrap();
            assert_eq!(frame.is_unique(), !kept, "{padding} of {}", frame.len());
            assert_eq!(read.payloads[0].clone().hashed().unwrap(), block);
        }
    }

    #[test]
    fn t07_small_payloads_do_not_keep_large_ones() {
        let blocks =
            [large(1, 200_000), large(2, SLICE_PAYLOAD_FROM), large(3, SLICE_PAYLOAD_FROM - 1), block(4)];
        let payloads = blocks.iter().map(|block| Payload::new(block.cid(), block.data().clone())).collect();
        let frame = joined(&Message { payloads, ..Message::default() }.encode(Version::V1_2));
        let read = Message::decode(&frame).unwrap();
        let slices = |payload: &Payload| frame.as_ptr_range().contains(&payload.data.as_ptr());
        assert_eq!(read.payloads.iter().map(slices).collect::<Vec<_>>(), [true, true, false, false]);
        let read: Vec<Block> = read.payloads.into_iter().map(|payload| payload.hashed().unwrap()).collect();
        assert_eq!(read, blocks);
    }

    #[test]
    fn entries_are_bounded() {
        let want = |i| WantEntry {
            cid: *block(i).cid(),
            priority: 0,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: false,
        };
        for (sent, kept) in [
            (ENTRIES_PER_MESSAGE - 1, ENTRIES_PER_MESSAGE - 1),
            (ENTRIES_PER_MESSAGE, ENTRIES_PER_MESSAGE),
            (ENTRIES_PER_MESSAGE + 1, ENTRIES_PER_MESSAGE),
        ] {
            let wants = (0..u32::try_from(sent).unwrap()).map(want).collect();
            let bytes = joined(&Message { wants, ..Message::default() }.encode(Version::V1_2));
            assert_eq!(Message::decode(&bytes).unwrap().wants.len(), kept);
        }
    }

    fn presence(cid: &[u8]) -> Bytes {
        let mut bytes = vec![PRESENCE];
        let mut field = vec![PRESENCE_CID];
        let mut buffer = unsigned_varint::encode::u64_buffer();
        field.extend(unsigned_varint::encode::u64(cid.len() as u64, &mut buffer));
        field.extend(cid);
        bytes.extend(unsigned_varint::encode::u64(field.len() as u64, &mut buffer));
        bytes.extend(field);
        Bytes::from(bytes)
    }

    #[test]
    fn cids_are_bounded_and_inline_or_weak_ones_left_out() {
        let sha3 = |len: u8| {
            let mut cid = vec![1, 0x55, 0x1e, len, 1];
            cid.splice(3..4, if len < 128 { vec![len] } else { vec![len, 1] });
            cid.truncate(cid.len() - 1);
            cid.extend(vec![9; usize::from(len)]);
            cid
        };
        assert_eq!(Message::decode(&presence(&sha3(127))).unwrap().presences.len(), 1);
        assert_eq!(Message::decode(&presence(&sha3(128))).unwrap().presences.len(), 1);
        assert!(matches!(Message::decode(&presence(&sha3(129))), Err(DecodeError::Cid(_))));
        assert!(matches!(Message::decode(&presence(&[1; 169])), Err(DecodeError::Cid(_))));
        let inline = [1, 0x55, 0, 2, 7, 7];
        assert!(Message::decode(&presence(&inline)).unwrap().presences.is_empty());
        let mut sha1 = vec![1, 0x55, 0x11, 20];
        sha1.extend([5; 20]);
        assert!(Message::decode(&presence(&sha1)).unwrap().presences.is_empty());
        let mut tail = block(1).cid().to_bytes();
        tail.push(0);
        assert!(matches!(Message::decode(&presence(&tail)), Err(DecodeError::Cid(_))));
    }

    #[test]
    fn t02_field_lengths_beyond_the_end_are_cut_off_fields() {
        for len in [1u64, 4 << 20, 1 << 32, 1 << 63, u64::MAX] {
            let mut bytes = BytesMut::from(&[PAYLOAD][..]);
            put_varint(&mut bytes, len);
            assert_eq!(Message::decode(&bytes.freeze()), Err(DecodeError::Truncated), "{len}");
        }
    }
}
