//! RLE+ bit fields, as actors answer with them, and the run lengths of the JSON form.

use super::{Malformed, malformed};

/// The run lengths of a bit field: alternating unset and set, beginning with unset; none for no bit at all.
pub(crate) fn runs(bits: &[bool]) -> Vec<u64> {
    let mut runs = Vec::new();
    let Some(last) = bits.iter().rposition(|bit| *bit) else { return runs };
    let (mut value, mut length) = (false, 0);
    for bit in &bits[..=last] {
        if *bit != value {
            runs.push(length);
            (value, length) = (*bit, 0);
        }
        length += 1;
    }
    runs.push(length);
    runs
}

/// The JSON form: run lengths, where no bits are `[0]`.
pub(crate) fn json(bits: &[bool]) -> Vec<u64> {
    let runs = runs(bits);
    if runs.is_empty() { vec![0] } else { runs }
}

/// RLE+ version 0: two bits of version, the first bit's value, then `1` for a run of one, `01` and four bits for a
/// run under 16, `00` and a varint for more; the low bit of each byte first.
pub(crate) fn encode(bits: &[bool]) -> Vec<u8> {
    let runs = runs(bits);
    if runs.is_empty() {
        return Vec::new();
    }
    let starts_set = runs[0] == 0;
    let mut out = vec![false, false, starts_set];
    for run in runs.into_iter().filter(|run| *run > 0) {
        match run {
            1 => out.push(true),
            2..=15 => {
                out.extend([false, true]);
                push(&mut out, run, 4);
            }
            _ => {
                out.extend([false, false]);
                let mut rest = run;
                while rest >= 0x80 {
                    push(&mut out, rest & 0x7f | 0x80, 8);
                    rest >>= 7;
                }
                push(&mut out, rest, 8);
            }
        }
    }
    let byte = |bits: &[bool]| bits.iter().rev().fold(0, |sum, bit| sum << 1 | u8::from(*bit));
    out.chunks(8).map(byte).collect()
}

/// The bits that are set, read from RLE+. Refuses other versions, and more than `most` bits in all.
pub(crate) fn decode(bytes: &[u8], most: u64) -> Result<Vec<u64>, Malformed> {
    let mut bits = Bits { bytes, at: 0 };
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    if bits.take(2) != 0 {
        return malformed("invalid RLE+ version");
    }
    let mut value = bits.take(1) == 1;
    let (mut position, mut set) = (0_u64, Vec::new());
    while bits.at < bytes.len() * 8 && bits.rest_is_set() {
        let run = bits.run()?;
        if run > most.saturating_sub(position) {
            return malformed("RLE+ overflow");
        }
        if value {
            set.extend(position..position + run);
        }
        position += run;
        value = !value;
    }
    Ok(set)
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// Past the end come zeros.
    fn take(&mut self, width: usize) -> u64 {
        let bit = |at: usize| self.bytes.get(at / 8).map_or(0, |byte| u64::from(byte >> (at % 8) & 1));
        let value = (0..width).map(|n| bit(self.at + n) << n).sum();
        self.at += width;
        value
    }

    /// The zeros that fill up the last byte are no run.
    fn rest_is_set(&self) -> bool {
        let bit = |at: usize| self.bytes.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
        (self.at..self.bytes.len() * 8).any(bit)
    }

    fn run(&mut self) -> Result<u64, Malformed> {
        if self.take(1) == 1 {
            return Ok(1);
        }
        if self.take(1) == 1 {
            return Ok(self.take(4));
        }
        let mut value = 0;
        for shift in (0..63).step_by(7) {
            let byte = self.take(8);
            value |= (byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        malformed("a run of RLE+ is too long")
    }
}

fn push(out: &mut Vec<bool>, value: u64, width: u32) {
    out.extend((0..width).map(|bit| value >> bit & 1 == 1));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(lengths in prop::collection::vec(1_usize..40, 0..12), first in any::<bool>()) {
            let mut bits = Vec::new();
            for (n, length) in lengths.into_iter().enumerate() {
                bits.extend(std::iter::repeat_n((n % 2 == 0) == first, length));
            }
            let set: Vec<u64> = (0..bits.len() as u64).filter(|n| bits[*n as usize]).collect();
            prop_assert_eq!(decode(&encode(&bits), 1_000).unwrap(), set);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            if let Ok(set) = decode(&bytes, 1_000) {
                prop_assert!(set.iter().all(|bit| *bit < 1_000));
            }
        }
    }

    #[test]
    fn recorded_forms() {
        // The recorded answer of a PublishStorageDeals with one valid deal.
        assert_eq!(encode(&[true]), [0x0c]);
        assert!(encode(&[false, false]).is_empty());
        assert_eq!(json(&[]), [0]);
        assert_eq!(json(&[true]), [0, 1]);
        assert_eq!(json(&[false, false, true, true, false]), [2, 2]);
        // Version 00, starts unset, `01` 0010 (two unset), `01` 1111 (fifteen set).
        assert_eq!(encode(&[vec![false; 2], vec![true; 15]].concat()), [0b0101_0000, 0b0111_1100]);
    }
}
