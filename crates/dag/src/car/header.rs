//! The headers of CARs: a map in dag-cbor, and the fixed envelope of version 2.

use floe_core::Cid;
use floe_core::cid::MAX_CID_BYTES;

use super::CarError;
use crate::dag_cbor::Reader;
use crate::limits::{self, MAX_CAR_ROOTS, MAX_CAR_V2_PADDING_BYTES};
use crate::links::ScanError;

/// Bytes of the first section of a CARv2, with its length.
pub(super) const PRAGMA_BYTES: u64 = 11;
/// Bytes of the envelope behind it.
pub(super) const V2_BYTES: usize = 40;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u64,
    /// `None` where the key is missing, which only version 2 may do.
    pub(super) roots: Option<Vec<Cid>>,
}

/// Reads a header: a map with the keys `roots` and `version` and no other.
pub(super) fn read(bytes: &[u8]) -> Result<Header, CarError> {
    let mut reader = Reader { data: bytes, at: 0 };
    let (5, pairs) = reader.head().map_err(malformed)? else { return Err(what("no map")) };
    let (mut version, mut roots, mut last) = (None, None, &b""[..]);
    for _ in 0..pairs {
        let (3, len) = reader.head().map_err(malformed)? else { return Err(what("a key that is no text")) };
        let key = reader.take(len).map_err(malformed)?;
        // Keys are sorted by length and then bytes, so none is there twice.
        if (last.len(), last) >= (key.len(), key) {
            return Err(what("keys twice or not sorted"));
        }
        last = key;
        match key {
            b"roots" => roots = Some(read_roots(&mut reader)?),
            b"version" => {
                let (0, number) = reader.head().map_err(malformed)? else {
                    return Err(what("a version that is no number"));
                };
                version = Some(number);
            }
            _ => return Err(what("a key that CARs do not have")),
        }
    }
    if reader.at != bytes.len() {
        return Err(what("bytes behind the map"));
    }
    Ok(Header { version: version.ok_or_else(|| what("no version"))?, roots })
}

fn read_roots(reader: &mut Reader<'_>) -> Result<Vec<Cid>, CarError> {
    let (4, count) = reader.head().map_err(malformed)? else { return Err(what("roots that are no list")) };
    if count > MAX_CAR_ROOTS as u64 {
        limits::hit("car_roots");
        return Err(CarError::TooManyRoots);
    }
    let mut roots = Vec::new();
    for _ in 0..count {
        let (6, tag) = reader.head().map_err(malformed)? else { return Err(what("a root that is no link")) };
        let root = reader.link(tag).map_err(malformed)?.cid;
        if root.encoded_len() > MAX_CID_BYTES {
            return Err(what("a root that is too long"));
        }
        roots.push(root);
    }
    Ok(roots)
}

/// The header of version 1 with its length, in the one form that dag-cbor has for it.
pub(super) fn write(roots: &[Cid]) -> Result<Vec<u8>, CarError> {
    if roots.len() > MAX_CAR_ROOTS {
        return Err(CarError::TooManyRoots);
    }
    let mut map = vec![0xa2, 0x65];
    map.extend_from_slice(b"roots");
    head(&mut map, 4, roots.len());
    for root in roots {
        map.extend_from_slice(&[0xd8, 42]);
        head(&mut map, 2, root.encoded_len() + 1);
        map.push(0);
        map.extend_from_slice(&root.to_bytes());
    }
    map.push(0x67);
    map.extend_from_slice(b"version\x01");
    let mut header = super::write::varint(map.len() as u64);
    header.append(&mut map);
    Ok(header)
}

/// A head of CBOR: 128 roots and the bytes of a CID are both below 256.
fn head(to: &mut Vec<u8>, major: u8, argument: usize) {
    match argument as u8 {
        small @ 0..=23 => to.push(major << 5 | small),
        large => to.extend_from_slice(&[major << 5 | 24, large]),
    }
}

/// Where the data of a CARv2 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Reads the envelope. Its characteristics say only whether the index is complete, which nobody asks here.
pub(super) fn read_v2(bytes: &[u8; V2_BYTES]) -> Result<Data, CarError> {
    let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |n, byte| n << 8 | u64::from(*byte));
    let (start, size, index) = (number(16), number(24), number(32));
    let first = PRAGMA_BYTES + V2_BYTES as u64;
    if start < first {
        return Err(CarError::V2("its data begins inside of the header"));
    }
    if start - first > MAX_CAR_V2_PADDING_BYTES {
        limits::hit("car_v2_padding");
        return Err(CarError::V2("its data begins more than 2 MiB behind the header"));
    }
    let end = start.checked_add(size).ok_or(CarError::V2("its data is larger than a file can be"))?;
    if size == 0 {
        return Err(CarError::V2("it has no data"));
    }
    if index != 0 && index < end {
        return Err(CarError::V2("its index begins inside of the data"));
    }
    Ok(Data { start, end })
}

fn malformed(error: ScanError) -> CarError {
    CarError::Header(error.to_string())
}

fn what(what: &str) -> CarError {
    CarError::Header(what.into())
}
