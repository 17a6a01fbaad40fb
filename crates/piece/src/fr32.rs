//! Fr32: 127 bytes of payload become four elements of a field whose order needs 255 bits.
//!
//! The 127 bytes are one little-endian number of 1,016 bits; each 254 of them become 32 bytes, little endian, so the top
//! two bits of each element are 0.
//!
//! ```text
//! bit        0            254          508          762         1016
//! payload    ├── 254 ─────┼── 254 ─────┼── 254 ─────┼── 254 ─────┤
//! padded     ├── 254 ──┤00├── 254 ──┤00├── 254 ──┤00├── 254 ──┤00│
//! ```

/// Bytes of a group before Fr32.
pub const GROUP_BYTES: usize = 127;
/// Bytes of a group after Fr32.
pub const PADDED_GROUP_BYTES: usize = 128;
/// Leaves of the tree in a group.
pub(crate) const LEAVES: usize = 4;

/// A group before Fr32.
pub(crate) type Group = [u8; GROUP_BYTES];

/// What is kept of the last word of an element.
pub(crate) const ELEMENT_TOP: u64 = 0x3fff_ffff_ffff_ffff;

/// Widens a group.
pub fn pad(group: &[u8; GROUP_BYTES]) -> [u8; PADDED_GROUP_BYTES] {
    // One byte more, so that the last word too has one behind it.
    let mut bytes = [0; GROUP_BYTES + 1];
    bytes[..GROUP_BYTES].copy_from_slice(group);
    let word = |at: usize| bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
    let mut out = [0; PADDED_GROUP_BYTES];
    for (i, element) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (first, down) = (254 * i / 8, 254 * i % 8);
        for (n, to) in element.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let at = first + 8 * n;
            // What this leaves free at the top comes from one byte further on.
            let moved = word(at) >> down | word(at + 1) << (8 - down);
            *to = (if n == 3 { moved & ELEMENT_TOP } else { moved }).to_le_bytes();
        }
    }
    out
}

/// Takes the widening back. `None` where one of the bits that Fr32 leaves 0 is set: no payload pads to that.
pub fn unpad(padded: &[u8; PADDED_GROUP_BYTES]) -> Option<[u8; GROUP_BYTES]> {
    let (elements, _) = padded.as_chunks::<32>();
    if elements.iter().any(|element| element[31] & 0xc0 != 0) {
        return None;
    }
    let mut out = [0u8; GROUP_BYTES];
    for (i, element) in elements.iter().enumerate() {
        let (from, shift) = if i == 0 { (0, 0) } else { (32 * i - 1, 8 - 2 * i) };
        for (n, byte) in element.iter().enumerate() {
            let wide = u16::from(*byte) << shift;
            out[from + n] |= wide as u8;
            if let Some(next) = out.get_mut(from + n + 1) {
                *next |= (wide >> 8) as u8;
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_group() -> impl Strategy<Value = Group> {
        prop::collection::vec(any::<u8>(), GROUP_BYTES).prop_map(|bytes| bytes.try_into().unwrap())
    }

    /// Bit by bit, as the definition says it.
    fn slowly(group: &[u8; GROUP_BYTES]) -> [u8; PADDED_GROUP_BYTES] {
        let mut out = [0; PADDED_GROUP_BYTES];
        for bit in 0..8 * GROUP_BYTES {
            let to = bit / 254 * 256 + bit % 254;
            out[to / 8] |= (group[bit / 8] >> (bit % 8) & 1) << (to % 8);
        }
        out
    }

    #[test]
    fn what_no_payload_pads_to_is_refused() {
        for element in 0..4 {
            for bit in [0x40, 0x80] {
                let mut padded = [0; PADDED_GROUP_BYTES];
                padded[32 * element + 31] = bit;
                assert_eq!(unpad(&padded), None, "bit {bit:x} of element {element}");
            }
        }
    }

    proptest! {
        #[test]
        fn padding_is_what_the_definition_says(group in any_group()) {
            let padded = pad(&group);
            prop_assert_eq!(padded, slowly(&group));
            prop_assert_eq!(unpad(&padded), Some(group));
        }
    }
}
