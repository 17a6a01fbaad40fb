//! Protobuf, as far as bitswap needs it: fields of a message one after the other, and varints. Total: every length is
//! checked against what is there.

use bytes::{BufMut, Bytes, BytesMut};

use super::DecodeError;

pub(super) fn put_len(out: &mut BytesMut, tag: u8, len: usize) {
    out.put_u8(tag);
    put_varint(out, len as u64);
}

/// Like protobuf's third edition: zero is not written.
pub(super) fn put_int_field(out: &mut BytesMut, tag: u8, value: i32) {
    if value != 0 {
        out.put_u8(tag);
        put_varint(out, wire_int(value));
    }
}

pub(super) fn int_field_len(value: i32) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(wire_int(value)) }
}

pub(super) fn bytes_field_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// An int32 is sign-extended to 64 bits on the wire.
fn wire_int(value: i32) -> u64 {
    i64::from(value) as u64
}

pub(super) fn put_varint(out: &mut BytesMut, value: u64) {
    let mut buffer = unsigned_varint::encode::u64_buffer();
    out.put_slice(unsigned_varint::encode::u64(value, &mut buffer));
}

pub(super) fn varint_len(value: u64) -> usize {
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
pub(super) struct Fields<'a> {
    whole: &'a Bytes,
    at: usize,
}

/// The value of a field.
pub(super) enum Value {
    Int(u64),
    Bytes(Bytes),
    /// Fixed 32 or 64 bits: no field of ours has them.
    Fixed,
}

impl Value {
    pub(super) fn int(self, field: u64) -> Result<u64, DecodeError> {
        match self {
            Self::Int(value) => Ok(value),
            _ => Err(DecodeError::FieldType(field)),
        }
    }

    /// Protobuf cuts a varint that is too long for an int32.
    pub(super) fn int32(self, field: u64) -> Result<i32, DecodeError> {
        self.int(field).map(|value| value as i32)
    }

    pub(super) fn bytes(self, field: u64) -> Result<Bytes, DecodeError> {
        match self {
            Self::Bytes(value) => Ok(value),
            _ => Err(DecodeError::FieldType(field)),
        }
    }
}

impl<'a> Fields<'a> {
    pub(super) fn new(whole: &'a Bytes) -> Self {
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

    pub(super) fn next(&mut self) -> Result<Option<(u64, Value)>, DecodeError> {
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
