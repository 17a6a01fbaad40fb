//! dag-pb: a protobuf `PBNode { Data = 1: bytes, Links = 2: [PBLink] }` with
//! `PBLink { Hash = 1: CID, Name = 2: string, Tsize = 3: u64 }`.
//!
//! Strict where implementations agree: no other field, none twice, the links in one run (before or after Data),
//! a link's fields in order, its Hash required.

use crate::links::{Link, ScanError, binary_cid};
use crate::proto::{Fields, Value};

/// Calls `on_link` for each link in order; gives the Data field.
pub(crate) fn scan<'a>(
    bytes: &'a [u8],
    on_link: &mut dyn FnMut(Link<'a>),
) -> Result<Option<&'a [u8]>, ScanError> {
    let mut fields = Fields::new(bytes);
    let (mut data, mut links_ended, mut any_link) = (None, false, false);
    loop {
        let at = fields.at();
        let malformed = |what| ScanError::Malformed { at, what };
        match fields.next().map_err(malformed)? {
            None => return Ok(data),
            Some((1, Value::Bytes(bytes))) if data.is_none() => {
                links_ended = any_link;
                data = Some(bytes);
            }
            Some((1, Value::Bytes(_))) => return Err(malformed("two Data fields")),
            Some((2, Value::Bytes(_))) if links_ended => return Err(malformed("Data between links")),
            Some((2, Value::Bytes(link))) => {
                any_link = true;
                on_link(read_link(link, at)?);
            }
            Some(_) => return Err(malformed("a field that dag-pb does not have")),
        }
    }
}

fn read_link(bytes: &[u8], at: usize) -> Result<Link<'_>, ScanError> {
    let malformed = |what| ScanError::Malformed { at, what };
    let mut fields = Fields::new(bytes);
    let (mut cid, mut name, mut last) = (None, &[][..], 0);
    while let Some((number, value)) = fields.next().map_err(malformed)? {
        if number <= last {
            return Err(malformed("fields of a link twice or out of order"));
        }
        last = number;
        match (number, value) {
            (1, Value::Bytes(hash)) => cid = Some(binary_cid(hash, at)?),
            (2, Value::Bytes(text)) => name = text,
            (3, Value::Varint(_)) => {}
            _ => return Err(malformed("a field that a link does not have")),
        }
    }
    Ok(Link { cid: cid.ok_or(malformed("a link without Hash"))?, name })
}
