//! One CBOR item, as cbor-gen reads and writes it.
//!
//! Only what the wire of Filecoin uses: integers, byte and text strings, arrays, maps with text keys, links (tag 42),
//! booleans, null. Integers and lengths must be minimal, lengths definite, nesting shallow.

use crate::wire::Cid;

use super::{Malformed, malformed};
use crate::limits::{CBOR_DEPTH, CBOR_ITEMS};

/// One item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cbor {
    Unsigned(u64),
    /// The value is -1 - n.
    Negative(u64),
    Bytes(Vec<u8>),
    Text(String),
    Array(Vec<Cbor>),
    /// Written in the order given; read in the order found.
    Map(Vec<(String, Cbor)>),
    Link(Cid),
    Bool(bool),
    Null,
}

/// Why an item could not be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ReadError {
    /// More bytes are needed.
    Incomplete,
    /// No more bytes can help.
    Malformed(Malformed),
}

impl From<Malformed> for ReadError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

/// Reads one item that is all of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Result<Cbor, Malformed> {
    match prefix(bytes) {
        Ok((item, used)) if used == bytes.len() => Ok(item),
        Ok((_, used)) => malformed(format!("{} bytes left after the item", bytes.len() - used)),
        Err(ReadError::Incomplete) => malformed("unexpected EOF"),
        Err(ReadError::Malformed(why)) => Err(why),
    }
}

/// Reads the item that `bytes` begin with, and says how long it is: streams carry items without a length.
pub(crate) fn prefix(bytes: &[u8]) -> Result<(Cbor, usize), ReadError> {
    let mut reader = Reader { bytes, at: 0, items: 0 };
    let item = reader.item(0)?;
    Ok((item, reader.at))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    items: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ReadError> {
        let end = self.at.checked_add(n).ok_or(ReadError::Incomplete)?;
        let taken = self.bytes.get(self.at..end).ok_or(ReadError::Incomplete)?;
        self.at = end;
        Ok(taken)
    }

    /// Major type and argument.
    fn head(&mut self) -> Result<(u8, u64), ReadError> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let width = match info {
            0..=23 => return Ok((major, info.into())),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return Err(Malformed("a length is not definite".into()).into()),
        };
        let value = self.take(width)?.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let least = [24, 1 << 8, 1 << 16, 1 << 32][width.ilog2() as usize];
        if value < least {
            return Err(Malformed("cbor input was not canonical (lval)".into()).into());
        }
        Ok((major, value))
    }

    fn item(&mut self, depth: usize) -> Result<Cbor, ReadError> {
        self.items += 1;
        if depth > CBOR_DEPTH || self.items > CBOR_ITEMS {
            return Err(Malformed("too many or too deep items".into()).into());
        }
        let (major, n) = self.head()?;
        let length = usize::try_from(n).unwrap_or(usize::MAX);
        Ok(match major {
            0 => Cbor::Unsigned(n),
            1 => Cbor::Negative(n),
            2 => Cbor::Bytes(self.take(length)?.to_vec()),
            3 => Cbor::Text(self.text(length)?),
            4 => Cbor::Array((0..length).map(|_| self.item(depth + 1)).collect::<Result<_, _>>()?),
            5 => self.map(length, depth)?,
            6 if n == 42 => self.link()?,
            7 if n == 20 || n == 21 => Cbor::Bool(n == 21),
            7 if n == 22 => Cbor::Null,
            _ => return Err(Malformed(format!("unexpected item of type {major} with {n}")).into()),
        })
    }

    fn text(&mut self, length: usize) -> Result<String, ReadError> {
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| Malformed("a text is not UTF-8".into()).into())
    }

    fn map(&mut self, length: usize, depth: usize) -> Result<Cbor, ReadError> {
        let mut map: Vec<(String, Cbor)> = Vec::new();
        for _ in 0..length {
            let Cbor::Text(key) = self.item(depth + 1)? else {
                return Err(Malformed("a key is not a text".into()).into());
            };
            if map.iter().any(|(other, _)| *other == key) {
                return Err(Malformed(format!("the key {key} comes twice")).into());
            }
            map.push((key, self.item(depth + 1)?));
        }
        Ok(Cbor::Map(map))
    }

    fn link(&mut self) -> Result<Cbor, ReadError> {
        let (major, n) = self.head()?;
        let bytes = self.take(usize::try_from(n).unwrap_or(usize::MAX))?;
        match (major, bytes.split_first()) {
            (2, Some((0, cid))) => Ok(Cbor::Link(
                Cid::try_from(cid).map_err(|error| Malformed(format!("a link is no CID: {error}")))?,
            )),
            _ => Err(Malformed("a link does not begin with a zero byte".into()).into()),
        }
    }
}

impl Cbor {
    /// The bytes of the item.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Unsigned(n) => head(out, 0, *n),
            Self::Negative(n) => head(out, 1, *n),
            Self::Bytes(bytes) => string(out, 2, bytes),
            Self::Text(text) => string(out, 3, text.as_bytes()),
            Self::Array(items) => {
                head(out, 4, items.len() as u64);
                items.iter().for_each(|item| item.write(out));
            }
            Self::Map(entries) => {
                head(out, 5, entries.len() as u64);
                for (key, value) in entries {
                    string(out, 3, key.as_bytes());
                    value.write(out);
                }
            }
            Self::Link(cid) => {
                head(out, 6, 42);
                string(out, 2, &[&[0][..], &cid.to_bytes()].concat());
            }
            Self::Bool(value) => head(out, 7, 20 + u64::from(*value)),
            Self::Null => head(out, 7, 22),
        }
    }

    /// A map of these entries, in this order.
    pub(crate) fn map<const N: usize>(entries: [(&str, Cbor); N]) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// A signed integer.
    pub(crate) fn int(n: i64) -> Self {
        if n < 0 { Self::Negative(!(n as u64)) } else { Self::Unsigned(n as u64) }
    }

    /// An amount: a sign byte and the magnitude, nothing for zero.
    pub(crate) fn amount(n: i128) -> Self {
        let magnitude = n.unsigned_abs().to_be_bytes();
        let digits = magnitude.iter().position(|byte| *byte != 0).map_or(&[][..], |at| &magnitude[at..]);
        if digits.is_empty() {
            return Self::Bytes(Vec::new());
        }
        Self::Bytes([&[u8::from(n < 0)], digits].concat())
    }

    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A link, or null for none.
    pub(crate) fn link(cid: Option<Cid>) -> Self {
        cid.map_or(Self::Null, Self::Link)
    }

    pub(crate) fn as_u64(&self, field: &str) -> Result<u64, Malformed> {
        match self {
            Self::Unsigned(n) => Ok(*n),
            _ => malformed(format!("{field} is no unsigned integer")),
        }
    }

    pub(crate) fn as_i64(&self, field: &str) -> Result<i64, Malformed> {
        match self {
            Self::Unsigned(n) => i64::try_from(*n).ok(),
            Self::Negative(n) => i64::try_from(*n).ok().map(|n| !n),
            _ => None,
        }
        .ok_or_else(|| Malformed(format!("{field} is no integer of 64 bits")))
    }

    pub(crate) fn as_bytes(&self, field: &str) -> Result<&[u8], Malformed> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => malformed(format!("{field} is no byte string")),
        }
    }

    pub(crate) fn as_text(&self, field: &str) -> Result<&str, Malformed> {
        match self {
            Self::Text(text) => Ok(text),
            _ => malformed(format!("{field} is no text")),
        }
    }

    pub(crate) fn as_bool(&self, field: &str) -> Result<bool, Malformed> {
        match self {
            Self::Bool(value) => Ok(*value),
            _ => malformed(format!("{field} is no boolean")),
        }
    }

    pub(crate) fn as_link(&self, field: &str) -> Result<Cid, Malformed> {
        match self {
            Self::Link(cid) => Ok(*cid),
            _ => malformed(format!("{field} is no link")),
        }
    }

    /// An amount of at most 127 bits: the supply of all FIL needs 91.
    pub(crate) fn as_amount(&self, field: &str) -> Result<i128, Malformed> {
        let bytes = self.as_bytes(field)?;
        let (sign, digits) = match bytes {
            [] => return Ok(0),
            [sign @ (0 | 1), digits @ ..] if digits.len() <= 16 => (*sign, digits),
            _ => return malformed(format!("{field} is no amount")),
        };
        let magnitude = digits.iter().fold(0_u128, |sum, byte| sum << 8 | u128::from(*byte));
        let magnitude = i128::try_from(magnitude).map_err(|_| Malformed(format!("{field} is too large")))?;
        Ok(if sign == 1 { -magnitude } else { magnitude })
    }

    pub(crate) fn as_array(&self, field: &str) -> Result<&[Cbor], Malformed> {
        match self {
            Self::Array(items) => Ok(items),
            _ => malformed(format!("{field} is no array")),
        }
    }

    /// An array of exactly `N` items.
    pub(crate) fn as_tuple<const N: usize>(&self, field: &str) -> Result<&[Cbor; N], Malformed> {
        let items = self.as_array(field)?;
        items.try_into().map_err(|_| Malformed(format!("{field} has {} fields, not {N}", items.len())))
    }

    /// The value of a key of a map. None when it is not there.
    pub(crate) fn get(&self, key: &str) -> Result<Option<&Cbor>, Malformed> {
        match self {
            Self::Map(entries) => Ok(entries.iter().find(|(other, _)| other == key).map(|(_, value)| value)),
            _ => malformed(format!("what should hold {key} is no map")),
        }
    }

    /// The value of a key that must be there.
    pub(crate) fn need(&self, key: &str) -> Result<&Cbor, Malformed> {
        self.get(key)?.ok_or_else(|| Malformed(format!("{key} is missing")))
    }
}

fn head(out: &mut Vec<u8>, major: u8, n: u64) {
    let major = major << 5;
    match n {
        0..=23 => out.push(major | n as u8),
        24..=0xff => out.extend([major | 24, n as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend((n as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend((n as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend(n.to_be_bytes());
        }
    }
}

fn string(out: &mut Vec<u8>, major: u8, bytes: &[u8]) {
    head(out, major, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items() -> impl Strategy<Value = Cbor> {
        let leaf = prop_oneof![
            any::<i64>().prop_map(Cbor::int),
            any::<u64>().prop_map(Cbor::Unsigned),
            any::<Vec<u8>>().prop_map(Cbor::Bytes),
            any::<String>().prop_map(Cbor::Text),
            any::<bool>().prop_map(Cbor::Bool),
            any::<Vec<u8>>().prop_map(|bytes| Cbor::Link(super::super::chain_cid(&bytes))),
            Just(Cbor::Null),
        ];
        leaf.prop_recursive(4, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Cbor::Array),
                prop::collection::btree_map(any::<String>(), inner, 0..8)
                    .prop_map(|map| Cbor::Map(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(item in items(), rest in any::<Vec<u8>>()) {
            let bytes = item.encode();
            prop_assert_eq!(decode(&bytes).unwrap(), item.clone());
            let longer = [&bytes[..], &rest].concat();
            prop_assert_eq!(prefix(&longer).unwrap(), (item, bytes.len()));
            for end in 0..bytes.len() {
                prop_assert_eq!(prefix(&bytes[..end]).unwrap_err(), ReadError::Incomplete);
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            if let Ok(item) = decode(&bytes) {
                prop_assert_eq!(item.encode(), bytes);
            }
        }

        #[test]
        fn amounts(n in any::<i128>().prop_filter("no magnitude of 128 bits", |n| *n != i128::MIN)) {
            prop_assert_eq!(Cbor::amount(n).as_amount("n").unwrap(), n);
        }
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        for bytes in
            [&[0x18, 0x17][..], &[0x19, 0, 0xff], &[0x5f], &[0xfb, 0, 0, 0, 0, 0, 0, 0, 0], &[0xc1, 0]]
        {
            assert!(decode(bytes).is_err(), "{bytes:02x?}");
        }
        let deep = vec![0x81; 1000];
        assert!(matches!(prefix(&deep), Err(ReadError::Malformed(_))));
        // A count of items is no promise of memory.
        assert_eq!(
            prefix(&[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            Err(ReadError::Incomplete)
        );
    }
}
