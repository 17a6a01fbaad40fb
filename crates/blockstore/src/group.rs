//! One group of records, put together in memory and written with one call.
//!
//! Large payloads stay where they are (the `Bytes` of their blocks) and are written by a vectored call; headers
//! and small payloads are gathered in one buffer. So a block's bytes are copied at most once, and only if small.

use std::io::IoSlice;

use bytes::Bytes;

use crate::record::{self, HEADER, Header, Kind, Loc, Record, Seed};

/// Payloads below this are copied into the buffer: a part of a vectored write costs about as much as copying 1 KiB.
const COPY_BELOW: usize = 2 << 10;

pub(crate) struct Group {
    seed: Seed,
    pack: u32,
    start: u64,
    number: u64,
    end: u64,
    small: Vec<u8>,
    parts: Vec<Part>,
    pub(crate) records: Vec<(Record, Loc, u64)>,
}

enum Part {
    Small { from: usize, to: usize },
    Large(Bytes),
}

impl Group {
    pub(crate) fn new(seed: Seed, end: Loc, number: u64) -> Self {
        let start = u64::from(end.offset);
        Self {
            seed,
            pack: end.pack,
            start,
            number,
            end: start,
            small: Vec::new(),
            parts: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Where the next record goes.
    pub(crate) fn next(&self) -> Loc {
        Loc { pack: self.pack, offset: u32::try_from(self.end).expect("packs end below 4 GiB") }
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn len(&self) -> u64 {
        self.end - self.start
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Adds a record; `payload` is a block's or a frontier's bytes.
    pub(crate) fn push(&mut self, record: Record, payload: Bytes) -> Loc {
        let at = self.next();
        let bytes = if let Record::Block { hash, .. } = &record {
            let hash = hash.clone();
            self.write(Kind::Block, &hash, payload)
        } else {
            let (key, data) = record.body(&payload);
            self.write(record.kind(), &key, data.into())
        };
        self.records.push((record, at, bytes));
        at
    }

    /// Ends the group: a group without its commit was never acknowledged.
    pub(crate) fn commit(&mut self) {
        self.write(Kind::Commit, &[], Bytes::new());
    }

    fn write(&mut self, kind: Kind, key: &[u8], data: Bytes) -> u64 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(key);
        crc.update(&data);
        let header = Header {
            kind,
            key_len: u16::try_from(key.len()).expect("keys are multihashes or ids"),
            data_len: u32::try_from(data.len()).expect("records are at most 64 MiB"),
            group: self.number,
            body_crc: crc.finalize(),
        };
        let from = self.small.len();
        self.small.extend_from_slice(&record::encode_header(self.seed, self.end, header));
        self.small.extend_from_slice(key);
        let bytes = header.record_len();
        let pad = bytes as usize - HEADER - header.body_len();
        if data.len() < COPY_BELOW {
            self.small.extend_from_slice(&data);
            self.small.resize(self.small.len() + pad, 0);
            self.add_small(from);
        } else {
            self.add_small(from);
            self.parts.push(Part::Large(data));
            if pad > 0 {
                let from = self.small.len();
                self.small.resize(from + pad, 0);
                self.add_small(from);
            }
        }
        self.end += bytes;
        bytes
    }

    fn add_small(&mut self, from: usize) {
        let end = self.small.len();
        match self.parts.last_mut() {
            Some(Part::Small { to, .. }) if *to == from => *to = end,
            _ => self.parts.push(Part::Small { from, to: end }),
        }
    }

    /// The bytes, to be written at [`Group::start`].
    pub(crate) fn slices(&self) -> Vec<IoSlice<'_>> {
        let slice = |part| match part {
            &Part::Small { from, to } => IoSlice::new(&self.small[from..to]),
            Part::Large(bytes) => IoSlice::new(bytes),
        };
        self.parts.iter().map(slice).collect()
    }
}

/// What the end of a group takes.
pub(crate) const COMMIT_BYTES: u64 = HEADER as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_its_records_one_after_the_other() {
        let seed = Seed::new(3, 1);
        let mut group = Group::new(seed, Loc { pack: 1, offset: 32 }, 9);
        for len in [0, 1, COPY_BELOW - 1, COPY_BELOW, COPY_BELOW + 1, 9000] {
            let record = Record::Block { hash: [7; 34].into(), len: len as u32 };
            group.push(record, vec![5; len].into());
        }
        group.commit();
        let bytes: Vec<u8> = group.slices().iter().flat_map(|s| s.iter().copied()).collect();
        assert_eq!(bytes.len() as u64, group.len());
        let mut at = 0;
        for (record, loc, len) in &group.records {
            assert_eq!(u64::from(loc.offset), at + 32);
            let head = record::decode_header(seed, at + 32, &bytes[at as usize..]).unwrap();
            assert_eq!((head.group, head.record_len()), (9, *len));
            let body = &bytes[at as usize + HEADER..][..head.body_len()];
            assert!(head.body_matches(body));
            assert_eq!(
                Record::decode(head.kind, &body[..34], &body[34..], head.data_len).as_ref(),
                Some(record)
            );
            at += len;
        }
        assert_eq!(record::decode_header(seed, at + 32, &bytes[at as usize..]).unwrap().kind, Kind::Commit);
        assert_eq!(at + COMMIT_BYTES, bytes.len() as u64);
    }
}
