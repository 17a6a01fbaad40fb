//! Bit fields: which deals a call is about, in the chain's RLE+, and which sectors a node says are faulty, in its JSON.

use crate::limits::{self, MAX_BIT_RUNS};

/// Runs of this length and more have their length as a varint.
const LONG: u64 = 16;

/// RLE+ version 0 of the set of `ids`, in any order and as often as they come: two bits of version, the value of the
/// first bit, then for each run `1` for one bit, `01` and four bits of length below 16, `00` and a varint else. The low
/// bit of each byte comes first.
pub fn encode(ids: &[u64]) -> Vec<u8> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let Some(first) = ids.first().copied() else { return Vec::new() };
    let mut bits = Bits::default();
    bits.push(0, 2);
    bits.push(u64::from(first == 0), 1);
    let (mut next, mut at) = (0, 0);
    while let Some(start) = ids.get(at).copied() {
        let end = ids[at..].iter().zip(start..).take_while(|(id, expected)| **id == *expected).count();
        if start > next {
            bits.run(start - next);
        }
        bits.run(end as u64);
        (next, at) = (start.saturating_add(end as u64), at + end);
    }
    bits.bytes
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: usize,
}

impl Bits {
    fn push(&mut self, value: u64, width: usize) {
        for bit in (0..width).map(|n| (value >> n & 1) as u8) {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            if let Some(last) = self.bytes.last_mut() {
                *last |= bit << (self.used % 8);
            }
            self.used += 1;
        }
    }

    fn run(&mut self, length: u64) {
        match length {
            1 => self.push(1, 1),
            2..LONG => {
                self.push(0b10, 2);
                self.push(length, 4);
            }
            _ => {
                self.push(0, 2);
                let mut buffer = unsigned_varint::encode::u64_buffer();
                for byte in unsigned_varint::encode::u64(length, &mut buffer) {
                    self.push(u64::from(*byte), 8);
                }
            }
        }
    }
}

/// Whether `bit` is set in a field that is given as the lengths of its runs, the first of bits that are not.
/// Stops believing after [`MAX_BIT_RUNS`]: what comes behind counts as not set.
pub fn is_set(runs: &[u64], bit: u64) -> bool {
    if runs.len() > MAX_BIT_RUNS {
        limits::hit("bit_runs");
    }
    let mut end = 0_u64;
    for (n, run) in runs.iter().take(MAX_BIT_RUNS).enumerate() {
        end = end.saturating_add(*run);
        if bit < end {
            return !n.is_multiple_of(2);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The recorded PublishStorageDeals answers `goECQQw=`: one deal, and a field whose bit 0 is set.
    #[test]
    fn the_field_of_one_bit_is_what_the_chain_writes() {
        assert_eq!(encode(&[0]), [0x0c]);
        assert_eq!(encode(&[]), [0_u8; 0]);
    }

    /// Computed by hand from the rules: version 00, first bit 0, a run of two that are not set (`01`, 2), one that is (`1`).
    #[test]
    fn runs_have_their_shortest_form() {
        // 00 0 01 0100 1 -> low bit first: 0,0,0,0,1,0,1,0 | 0,1
        assert_eq!(encode(&[2]), [0b0101_0000, 0b10]);
        assert_eq!(encode(&[2, 2]), encode(&[2]));
        assert_eq!(encode(&[3, 2]), encode(&[2, 3]));
        // 00 0, 00 and the varint of 300 (0xac 0x02), 1.
        assert_eq!(encode(&[300]), [0b1000_0000, 0b0101_0101, 0b0010_0000]);
    }

    #[test]
    fn run_lengths_alternate() {
        assert!(!is_set(&[0], 0), "how Lotus writes that none is");
        assert!(!is_set(&[], 0));
        assert!(is_set(&[5, 1], 5) && !is_set(&[5, 1], 4) && !is_set(&[5, 1], 6));
        assert!(is_set(&[0, 2, 1, 1], 1) && !is_set(&[0, 2, 1, 1], 2) && is_set(&[0, 2, 1, 1], 3));
        assert!(!is_set(&[u64::MAX, u64::MAX], u64::MAX), "lengths that no chain has");
    }

    proptest! {
        /// Read back by a decoder that shares nothing with the encoder.
        #[test]
        fn fields_come_back(ids in proptest::collection::btree_set(0..3_000_u64, 0..40)) {
            let ids: Vec<u64> = ids.into_iter().collect();
            prop_assert_eq!(decode(&encode(&ids)), ids);
        }
    }

    fn decode(bytes: &[u8]) -> Vec<u64> {
        let bits: Vec<bool> = bytes.iter().flat_map(|b| (0..8).map(move |n| b >> n & 1 == 1)).collect();
        let number = |from: &[bool]| from.iter().rev().fold(0_u64, |sum, bit| sum << 1 | u64::from(*bit));
        let (mut value, mut at, mut position, mut set) = (bits.get(2) == Some(&true), 3, 0, Vec::new());
        while at < bits.len() && bits[at..].contains(&true) {
            let run = if bits[at] {
                at += 1;
                1
            } else if bits[at + 1] {
                at += 6;
                number(&bits[at - 4..at])
            } else {
                at += 2;
                let (mut run, mut shift) = (0, 0);
                loop {
                    let byte = number(&bits[at..at + 8]);
                    at += 8;
                    run |= (byte & 0x7f) << shift;
                    shift += 7;
                    if byte < 0x80 {
                        break run;
                    }
                }
            };
            if value {
                set.extend(position..position + run);
            }
            (position, value) = (position + run, !value);
        }
        set
    }
}
