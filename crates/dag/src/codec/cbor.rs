//! dag-cbor: CBOR with links in tag 42, strict: shortest lengths, sorted and unique text keys, 64-bit floats that are
//! finite, nothing indefinite. <https://ipld.io/specs/codecs/dag-cbor/spec/>

use floe_core::Cid;

use super::{MAX_NESTING, Malformed, binary_cid};

/// An open array or map.
struct Open<'a> {
    left: u64,
    /// For maps: whether a key comes next, and the last key.
    map: Option<(bool, Option<&'a [u8]>)>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(len).ok().filter(|len| *len <= self.0.len());
        let Some(len) = len else { return Malformed::new("an item reaches past the end of the block") };
        let (head, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(head)
    }

    /// Major type, additional information, and the argument in its shortest form.
    fn head(&mut self) -> Result<(u8, u8, u64), Malformed> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 31);
        let width = match info {
            0..=23 => return Ok((major, info, u64::from(info))),
            24..=27 => 1usize << (info - 24),
            _ => return Malformed::new("an indefinite or reserved length"),
        };
        let value = self.take(width as u64)?.iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let shortest = match width {
            1 => value > 23,
            2 => value > 0xff,
            4 => value > 0xffff,
            _ => value > 0xffff_ffff,
        };
        // Floats carry bits, not a number: for them width is meaning.
        if major != 7 && !shortest {
            return Malformed::new("a length or number that is not in its shortest form");
        }
        Ok((major, info, value))
    }
}

/// The links of a dag-cbor block.
pub(super) fn links(data: &[u8]) -> Result<Vec<Cid>, Malformed> {
    let mut reader = Reader(data);
    let mut links = Vec::new();
    let mut open: Vec<Open<'_>> = Vec::new();
    loop {
        if open.last().is_some_and(|o| matches!(o.map, Some((true, _)))) {
            key(&mut reader, open.last_mut().expect("it was just looked at"))?;
            continue;
        }
        let opened = item(&mut reader, &mut links)?;
        match opened {
            Some(opened) if opened.left > 0 => {
                if open.len() >= MAX_NESTING {
                    return Malformed::new(format!("nested deeper than {MAX_NESTING}"));
                }
                open.push(opened);
            }
            _ => close(&mut open),
        }
        if open.is_empty() {
            break;
        }
    }
    if reader.0.is_empty() { Ok(links) } else { Malformed::new("bytes are left over behind the value") }
}

/// An item inside the innermost container is complete.
fn close(open: &mut Vec<Open<'_>>) {
    while let Some(last) = open.last_mut() {
        last.left -= 1;
        if let Some((key_next, _)) = &mut last.map {
            *key_next = true;
        }
        if last.left > 0 {
            return;
        }
        open.pop();
    }
}

fn key<'a>(reader: &mut Reader<'a>, open: &mut Open<'a>) -> Result<(), Malformed> {
    let (major, _, len) = reader.head()?;
    if major != 3 {
        return Malformed::new("a map key that is not text");
    }
    let key = reader.take(len)?;
    if std::str::from_utf8(key).is_err() {
        return Malformed::new("a map key that is not UTF-8");
    }
    if let Some((key_next, last)) = &mut open.map {
        // Shorter first, then bytewise.
        if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
            return Malformed::new("map keys are not sorted or stand twice");
        }
        *last = Some(key);
        *key_next = false;
    }
    Ok(())
}

/// Reads one item; a container with items in it is returned as opened.
fn item<'a>(reader: &mut Reader<'a>, links: &mut Vec<Cid>) -> Result<Option<Open<'a>>, Malformed> {
    let (major, info, value) = reader.head()?;
    match (major, info) {
        (0 | 1, _) => Ok(None),
        (2, _) => reader.take(value).map(|_| None),
        (3, _) => match std::str::from_utf8(reader.take(value)?) {
            Ok(_) => Ok(None),
            Err(_) => Malformed::new("text that is not UTF-8"),
        },
        (4, _) => Ok(Some(Open { left: value, map: None })),
        (5, _) => Ok(Some(Open { left: value, map: Some((true, None)) })),
        (6, _) if value == 42 => link(reader, links).map(|()| None),
        (6, _) => Malformed::new(format!("tag {value}: only 42 is allowed")),
        (7, 20..=22) => Ok(None),
        (7, 27) if f64::from_bits(value).is_finite() => Ok(None),
        (7, 27) => Malformed::new("a float that is not finite"),
        _ => Malformed::new("a simple value or short float that dag-cbor does not have"),
    }
}

fn link(reader: &mut Reader<'_>, links: &mut Vec<Cid>) -> Result<(), Malformed> {
    let (major, _, len) = reader.head()?;
    if major != 2 {
        return Malformed::new("tag 42 around something other than bytes");
    }
    match reader.take(len)? {
        // The identity multibase prefix stands before every binary CID.
        [0, cid @ ..] => links.push(binary_cid(cid)?),
        _ => return Malformed::new("a link without its zero prefix"),
    }
    Ok(())
}
