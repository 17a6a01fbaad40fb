//! CBOR as the chain and the deal protocols write it: definite lengths, shortest heads, maps with text keys.
//!
//! The reader decodes into known types, so it never recurses; only a value under an unknown key is walked, with a
//! bound on its depth. A length from the wire is compared with what is left before anything is taken. Maps may
//! come in any order and with unknown keys (the servers' decoders allow it), but no key twice. The writer writes
//! the one form that the chain hashes.

use floe_core::Cid;

use crate::limits::{self, MAX_CBOR_DOCUMENT, MAX_CBOR_KEYS, MAX_CBOR_NESTING, MAX_CBOR_STRING};

/// Why bytes are not the value that was expected. `at` is the byte where it was noticed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// Not well-formed, not in its only form, or of another type.
    #[error("malformed CBOR at byte {at}: {what}")]
    Malformed {
        /// Where.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A key that must be there is not.
    #[error("the CBOR map has no {0}")]
    Missing(&'static str),
    /// Longer, wider or deeper than anything that is meant.
    #[error("CBOR over the limit {limit} at byte {at}")]
    Limit {
        /// Where.
        at: usize,
        /// Which limit.
        limit: &'static str,
    },
}

/// A value with a CBOR form.
pub trait Cbor: Sized {
    /// Appends the form.
    fn write(&self, to: &mut Writer);

    /// Reads one value; the reader stands behind it afterwards.
    ///
    /// # Errors
    /// [`CborError`].
    fn read(from: &mut Reader<'_>) -> Result<Self, CborError>;

    /// The bytes.
    fn to_cbor(&self) -> Vec<u8> {
        let mut writer = Writer::default();
        self.write(&mut writer);
        writer.0
    }

    /// Reads a value that fills `bytes`.
    ///
    /// # Errors
    /// [`CborError`]; also where bytes are left over.
    fn from_cbor(bytes: &[u8]) -> Result<Self, CborError> {
        let mut reader = Reader::new(bytes)?;
        let value = Self::read(&mut reader)?;
        reader.end()?;
        Ok(value)
    }
}

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;
const SIMPLE: u8 = 7;

const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;
const LINK_TAG: u64 = 42;

/// Appends CBOR.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn head(&mut self, major: u8, argument: u64) {
        let major = major << 5;
        match argument {
            0..=23 => self.0.push(major | argument as u8),
            24..=0xff => self.0.extend([major | 24, argument as u8]),
            0x100..=0xffff => {
                self.0.push(major | 25);
                self.0.extend((argument as u16).to_be_bytes());
            }
            0x1_0000..=0xffff_ffff => {
                self.0.push(major | 26);
                self.0.extend((argument as u32).to_be_bytes());
            }
            _ => {
                self.0.push(major | 27);
                self.0.extend(argument.to_be_bytes());
            }
        }
    }

    /// An unsigned number.
    pub fn uint(&mut self, value: u64) {
        self.head(UINT, value);
    }

    /// A signed number.
    pub fn int(&mut self, value: i64) {
        match u64::try_from(value) {
            Ok(value) => self.head(UINT, value),
            Err(_) => self.head(NEGATIVE, !value as u64),
        }
    }

    /// A byte string.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.head(BYTES, bytes.len() as u64);
        self.0.extend(bytes);
    }

    /// A text.
    pub fn text(&mut self, text: &str) {
        self.head(TEXT, text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    /// The head of an array.
    pub fn array(&mut self, len: u64) {
        self.head(ARRAY, len);
    }

    /// The head of a map.
    pub fn map(&mut self, len: u64) {
        self.head(MAP, len);
    }

    /// `true` or `false`.
    pub fn bool(&mut self, value: bool) {
        self.0.push(if value { TRUE } else { FALSE });
    }

    /// `null`.
    pub fn null(&mut self) {
        self.0.push(NULL);
    }

    /// A link: tag 42 over a zero byte and the CID.
    pub fn cid(&mut self, cid: &Cid) {
        self.head(TAG, LINK_TAG);
        let bytes = cid.to_bytes();
        self.head(BYTES, bytes.len() as u64 + 1);
        self.0.push(0);
        self.0.extend(bytes);
    }

    /// A value behind its key.
    pub fn entry(&mut self, key: &str, write: impl FnOnce(&mut Self)) {
        self.text(key);
        write(self);
    }
}

/// Reads CBOR.
#[derive(Debug)]
pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads `data`.
    ///
    /// # Errors
    /// [`CborError::Limit`] where it is longer than [`MAX_CBOR_DOCUMENT`].
    pub fn new(data: &'a [u8]) -> Result<Self, CborError> {
        if data.len() > MAX_CBOR_DOCUMENT {
            return Err(over("cbor_document", 0));
        }
        Ok(Self { data, at: 0 })
    }

    /// # Errors
    /// [`CborError::Malformed`] where bytes are left.
    pub fn end(&self) -> Result<(), CborError> {
        if self.at == self.data.len() { Ok(()) } else { Err(self.malformed("bytes behind the value")) }
    }

    pub(crate) fn malformed(&self, what: &'static str) -> CborError {
        CborError::Malformed { at: self.at, what }
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// The major type of the next value.
    fn peek(&self) -> Option<u8> {
        self.data.get(self.at).map(|first| first >> 5)
    }

    /// A major type and its argument in the shortest form.
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        if major == SIMPLE {
            return match first {
                FALSE | TRUE | NULL => Ok((SIMPLE, u64::from(first))),
                _ => Err(self.malformed("a float, or a simple value that is not false, true or null")),
            };
        }
        let (argument, shortest) = match info {
            0..=23 => (u64::from(info), 0),
            24 => (self.number(1)?, 24),
            25 => (self.number(2)?, 1 << 8),
            26 => (self.number(4)?, 1 << 16),
            27 => (self.number(8)?, 1 << 32),
            31 => return Err(self.malformed("an indefinite length")),
            _ => return Err(self.malformed("a reserved head")),
        };
        if argument < shortest {
            return Err(self.malformed("a number that is not in its shortest form"));
        }
        Ok((major, argument))
    }

    fn expect(&mut self, major: u8, what: &'static str) -> Result<u64, CborError> {
        let at = self.at;
        match self.head()? {
            (found, argument) if found == major => Ok(argument),
            _ => Err(CborError::Malformed { at, what }),
        }
    }

    /// An unsigned number.
    ///
    /// # Errors
    /// [`CborError`], as for all that follow.
    pub fn uint(&mut self) -> Result<u64, CborError> {
        self.expect(UINT, "not an unsigned number")
    }

    /// A signed number of 64 bits.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn int(&mut self) -> Result<i64, CborError> {
        let at = self.at;
        let what = "not a number of 64 bits";
        let (major, argument) = self.head()?;
        let value = i64::try_from(argument).map_err(|_| CborError::Malformed { at, what })?;
        match major {
            UINT => Ok(value),
            NEGATIVE => Ok(!value),
            _ => Err(CborError::Malformed { at, what }),
        }
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn bool(&mut self) -> Result<bool, CborError> {
        match self.expect(SIMPLE, "not a boolean")? as u8 {
            TRUE => Ok(true),
            FALSE => Ok(false),
            _ => Err(self.malformed("null in place of a boolean")),
        }
    }

    /// A byte string.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn bytes(&mut self) -> Result<&'a [u8], CborError> {
        let len = self.expect(BYTES, "not a byte string")?;
        self.string(len)
    }

    /// A byte string of `N` bytes.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn fixed<const N: usize>(&mut self) -> Result<[u8; N], CborError> {
        let bytes = self.bytes()?;
        bytes.try_into().map_err(|_| self.malformed("a byte string of another length"))
    }

    /// A text in UTF-8.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn text(&mut self) -> Result<&'a str, CborError> {
        let len = self.expect(TEXT, "not a text")?;
        let bytes = self.string(len)?;
        std::str::from_utf8(bytes).map_err(|_| self.malformed("a text that is not UTF-8"))
    }

    /// A text for people, cut to [`limits::MAX_FOREIGN_TEXT`]. Go writes whatever bytes it has: what is not UTF-8 is
    /// replaced, because a refusal with an odd byte in it must still be known as a refusal.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn words(&mut self) -> Result<String, CborError> {
        let len = self.expect(TEXT, "not a text")?;
        let bytes = self.string(len)?;
        Ok(crate::words::cut(&String::from_utf8_lossy(bytes)))
    }

    /// Whether the next value is a text.
    pub fn is_text(&self) -> bool {
        self.peek() == Some(TEXT)
    }

    /// A link.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn cid(&mut self) -> Result<Cid, CborError> {
        if self.expect(TAG, "not a link")? != LINK_TAG {
            return Err(self.malformed("a tag other than 42"));
        }
        let Some((0, cid)) = self.bytes()?.split_first() else {
            return Err(self.malformed("a link without its leading zero byte"));
        };
        super::cid::parse_bytes(cid).ok_or_else(|| self.malformed("a link that is no CID"))
    }

    /// `null`, or what `read` reads.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, CborError>,
    ) -> Result<Option<T>, CborError> {
        if self.data.get(self.at) == Some(&NULL) {
            self.at += 1;
            return Ok(None);
        }
        read(self).map(Some)
    }

    /// The head of an array that must have `len` values.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn tuple(&mut self, len: u64) -> Result<(), CborError> {
        let at = self.at;
        if self.expect(ARRAY, "not an array")? == len {
            return Ok(());
        }
        Err(CborError::Malformed { at, what: "an array of another length" })
    }

    /// The head of an array of at most `most` values.
    ///
    /// # Errors
    /// [`CborError`].
    pub fn array(&mut self, most: usize, limit: &'static str) -> Result<usize, CborError> {
        let at = self.at;
        let len = self.expect(ARRAY, "not an array")?;
        usize::try_from(len).ok().filter(|len| *len <= most).ok_or_else(|| over(limit, at))
    }

    /// Calls `on_key` for each key; it reads the value, or calls [`Reader::skip`].
    ///
    /// # Errors
    /// [`CborError`]; also for a key that comes twice.
    pub fn map(
        &mut self,
        mut on_key: impl FnMut(&mut Self, &str) -> Result<(), CborError>,
    ) -> Result<(), CborError> {
        let at = self.at;
        let len = self.expect(MAP, "not a map")?;
        if len > MAX_CBOR_KEYS as u64 {
            return Err(over("cbor_keys", at));
        }
        let mut seen: Vec<&str> = Vec::new();
        for _ in 0..len {
            let key = self.text()?;
            if seen.contains(&key) {
                return Err(self.malformed("a key that comes twice"));
            }
            seen.push(key);
            on_key(self, key)?;
        }
        Ok(())
    }

    /// Passes over one value of whatever type.
    ///
    /// # Errors
    /// [`CborError`]; also where it nests deeper than [`MAX_CBOR_NESTING`].
    pub fn skip(&mut self) -> Result<(), CborError> {
        // Values left at each open level.
        let mut open = vec![1_u64];
        while let Some(left) = open.last_mut() {
            if *left == 0 {
                open.pop();
                continue;
            }
            *left -= 1;
            let inside = match self.head()? {
                (BYTES | TEXT, len) => self.string(len).map(|_| 0)?,
                (ARRAY, len) => len,
                (MAP, len) => len.checked_mul(2).ok_or_else(|| self.malformed("a map past the end"))?,
                (TAG, _) => 1,
                _ => 0,
            };
            if inside > 0 && open.len() == MAX_CBOR_NESTING {
                return Err(over("cbor_nesting", self.at));
            }
            if inside > 0 {
                open.push(inside);
            }
        }
        Ok(())
    }

    fn number(&mut self, bytes: usize) -> Result<u64, CborError> {
        Ok(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn string(&mut self, len: u64) -> Result<&'a [u8], CborError> {
        match usize::try_from(len) {
            Ok(len) if len <= MAX_CBOR_STRING => self.take(len),
            _ => Err(over("cbor_string", self.at)),
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], CborError> {
        let left = &self.data[self.at..];
        if len > left.len() {
            return Err(self.malformed("a value that ends past the end"));
        }
        self.at += len;
        Ok(&left[..len])
    }
}

fn over(limit: &'static str, at: usize) -> CborError {
    limits::hit(limit);
    CborError::Limit { at, limit }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reader(data: &[u8]) -> Reader<'_> {
        Reader::new(data).unwrap()
    }

    #[test]
    fn numbers_have_one_form() {
        for bytes in
            [&[0x18, 23][..], &[0x19, 0, 255], &[0x1a, 0, 0, 255, 255], &[0x1b, 0, 0, 0, 0, 1, 2, 3, 4]]
        {
            assert!(matches!(reader(bytes).uint(), Err(CborError::Malformed { .. })), "{bytes:?}");
        }
        assert!(reader(&[0x1c]).uint().is_err() && reader(&[0x1f]).uint().is_err(), "reserved heads");
        assert!(reader(&[0x3b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).int().is_err());
    }

    /// A length of 2^63 from the wire must neither take memory nor wrap.
    #[test]
    fn lengths_are_checked_before_they_are_believed() {
        for len in [MAX_CBOR_STRING as u64 + 1, 1 << 32, 1 << 63, u64::MAX] {
            for major in [BYTES, TEXT] {
                let mut writer = Writer::default();
                writer.head(major, len);
                let mut reader = reader(&writer.0);
                let read = if major == BYTES { reader.bytes().map(drop) } else { reader.text().map(drop) };
                assert!(matches!(read, Err(CborError::Limit { limit: "cbor_string", .. })), "{read:?}");
            }
        }
        let whole = |len: usize| {
            let mut writer = Writer::default();
            writer.bytes(&vec![0; len]);
            reader(&writer.0).bytes().map(<[u8]>::len)
        };
        assert_eq!(whole(MAX_CBOR_STRING - 1), Ok(MAX_CBOR_STRING - 1));
        assert_eq!(whole(MAX_CBOR_STRING), Ok(MAX_CBOR_STRING));
        assert!(whole(MAX_CBOR_STRING + 1).is_err());
        assert!(Reader::new(&vec![0; MAX_CBOR_DOCUMENT]).is_ok());
        assert!(Reader::new(&vec![0; MAX_CBOR_DOCUMENT + 1]).is_err());
    }

    #[test]
    fn what_is_skipped_is_bounded_in_depth() {
        let nested = |levels: usize| {
            let mut bytes = vec![0x81; levels];
            bytes.push(0);
            reader(&bytes).skip()
        };
        assert_eq!(nested(MAX_CBOR_NESTING - 2), Ok(()));
        assert_eq!(nested(MAX_CBOR_NESTING - 1), Ok(()));
        assert!(matches!(nested(MAX_CBOR_NESTING), Err(CborError::Limit { limit: "cbor_nesting", .. })));
        assert!(reader(&[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).skip().is_err());
        assert!(reader(&[0x9b, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]).skip().is_err());
    }

    #[test]
    fn a_key_twice_and_too_many_keys_are_refused() {
        let map = |keys: &[String]| {
            let mut writer = Writer::default();
            writer.map(keys.len() as u64);
            keys.iter().for_each(|key| writer.entry(key, Writer::null));
            reader(&writer.0).map(|reader, _| reader.skip())
        };
        let keys = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>();
        assert_eq!(map(&keys(MAX_CBOR_KEYS)), Ok(()));
        assert!(matches!(map(&keys(MAX_CBOR_KEYS + 1)), Err(CborError::Limit { .. })));
        assert!(map(&["a".into(), "a".into()]).is_err());
    }

    proptest! {
        #[test]
        fn numbers_come_back(unsigned: u64, signed: i64) {
            let mut writer = Writer::default();
            writer.uint(unsigned);
            writer.int(signed);
            let mut reader = reader(&writer.0);
            prop_assert_eq!(reader.uint(), Ok(unsigned));
            prop_assert_eq!(reader.int(), Ok(signed));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn any_bytes_end_without_a_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = reader(&data).skip();
            let _ = reader(&data).map(|reader, _| reader.skip());
            let _ = reader(&data).cid();
        }
    }
}
