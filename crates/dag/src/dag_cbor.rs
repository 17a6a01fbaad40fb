//! dag-cbor: CBOR in one form for each value, with links as tag 42.
//!
//! Strict: shortest heads, no indefinite lengths, text keys unique and sorted by length and then bytes, 64-bit
//! finite floats, no simple value but `false`, `true`, `null`, no tag but 42. Text is not checked to be UTF-8:
//! nothing reads it here, and deal labels on Filecoin hold any bytes.

use crate::limits::{self, MAX_NESTING};
use crate::links::{Link, ScanError, binary_cid};

/// An open array or map.
struct Open<'a> {
    /// Values to come; a map's pairs.
    left: u64,
    /// `None` for an array, for a map the key before (none yet: no bytes, and `first`).
    last_key: Option<&'a [u8]>,
    first: bool,
}

/// Calls `on_link` for each link in order.
pub(crate) fn scan<'a>(data: &'a [u8], on_link: &mut dyn FnMut(Link<'a>)) -> Result<(), ScanError> {
    let mut reader = Reader { data, at: 0 };
    let mut open: Vec<Open<'a>> = Vec::new();
    loop {
        if let Some(container) = reader.value(on_link)? {
            if open.len() == MAX_NESTING {
                limits::hit("dag_nesting");
                return Err(reader.malformed("nested too deep"));
            }
            open.push(container);
        }
        while open.last().is_some_and(|top| top.left == 0) {
            open.pop();
        }
        let Some(top) = open.last_mut() else {
            let rest = reader.at != data.len();
            return if rest { Err(reader.malformed("bytes behind the value")) } else { Ok(()) };
        };
        top.left -= 1;
        if top.last_key.is_some() {
            reader.key(top)?;
        }
    }
}

pub(crate) struct Reader<'a> {
    pub(crate) data: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn malformed(&self, what: &'static str) -> ScanError {
        ScanError::Malformed { at: self.at, what }
    }

    /// Reads a value, or the head of a container.
    fn value(&mut self, on_link: &mut dyn FnMut(Link<'a>)) -> Result<Option<Open<'a>>, ScanError> {
        let (major, argument) = self.head()?;
        match major {
            0 | 1 => {}
            2 | 3 => drop(self.take(argument)?),
            4 => return Ok(Some(Open { left: argument, last_key: None, first: true })),
            5 => return Ok(Some(Open { left: argument, last_key: Some(&[]), first: true })),
            6 => on_link(self.link(argument)?),
            // `head` lets through no other simple value and no other float.
            _ => {}
        }
        Ok(None)
    }

    /// A major type and its argument in the shortest form.
    pub(crate) fn head(&mut self) -> Result<(u8, u64), ScanError> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        if major == 7 {
            return self.simple(info).map(|()| (7, 0));
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

    fn simple(&mut self, info: u8) -> Result<(), ScanError> {
        match info {
            20..=22 => Ok(()),
            27 if f64::from_bits(self.number(8)?).is_finite() => Ok(()),
            27 => Err(self.malformed("a float that is not finite")),
            25 | 26 => Err(self.malformed("a float of less than 64 bits")),
            _ => Err(self.malformed("a simple value that dag-cbor does not have")),
        }
    }

    pub(crate) fn link(&mut self, tag: u64) -> Result<Link<'a>, ScanError> {
        if tag != 42 {
            return Err(self.malformed("a tag other than 42"));
        }
        let at = self.at;
        let (2, len) = self.head()? else { return Err(self.malformed("a link that is not bytes")) };
        let Some((0, cid)) = self.take(len)?.split_first() else {
            return Err(self.malformed("a link without its leading zero byte"));
        };
        Ok(Link { cid: binary_cid(cid, at)?, name: &[] })
    }

    fn key(&mut self, map: &mut Open<'a>) -> Result<(), ScanError> {
        let (3, len) = self.head()? else { return Err(self.malformed("a map key that is not text")) };
        let key = self.take(len)?;
        let last = map.last_key.unwrap_or_default();
        if !map.first && (last.len(), last) >= (key.len(), key) {
            return Err(self.malformed("map keys twice or not sorted"));
        }
        (map.last_key, map.first) = (Some(key), false);
        Ok(())
    }

    fn number(&mut self, bytes: u64) -> Result<u64, ScanError> {
        Ok(self.take(bytes)?.iter().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], ScanError> {
        let left = &self.data[self.at..];
        let len = usize::try_from(len).ok().filter(|len| *len <= left.len());
        let len = len.ok_or(ScanError::Malformed { at: self.at, what: "a value ends past the end" })?;
        self.at += len;
        Ok(&left[..len])
    }
}
