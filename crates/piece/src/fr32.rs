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

use crate::node::Node;

/// Bytes of a group before Fr32.
pub const GROUP_BYTES: usize = 127;
/// Bytes of a group after Fr32.
pub const PADDED_GROUP_BYTES: usize = 128;
/// Leaves of the tree in a group.
pub(crate) const LEAVES: usize = 4;

/// The top two bits of the last byte of an element.
const TOP: u64 = 0xc000_0000_0000_0000;

/// Widens a group.
pub fn pad(group: &[u8; GROUP_BYTES]) -> [u8; PADDED_GROUP_BYTES] {
    let mut out = [0; PADDED_GROUP_BYTES];
    for (to, word) in out.as_chunks_mut::<8>().0.iter_mut().zip(words(group)) {
        *to = word.to_le_bytes();
    }
    out
}

/// The group as leaves of the tree.
#[inline]
pub(crate) fn leaves(group: &[u8; GROUP_BYTES], out: &mut [Node; LEAVES]) {
    for (to, word) in out.as_flattened_mut().as_chunks_mut::<8>().0.iter_mut().zip(words(group)) {
        *to = word.to_le_bytes();
    }
}

/// The sixteen words of a widened group. Those of element `i` are the group's own, moved up by the 2 * `i` bits that the
/// elements before it have left free; what the word before loses at its top comes in below.
#[inline]
fn words(group: &[u8; GROUP_BYTES]) -> [u64; 16] {
    let (whole, rest) = group.as_chunks::<8>();
    let mut own = [0u64; 16];
    for (word, bytes) in own.iter_mut().zip(whole) {
        *word = u64::from_le_bytes(*bytes);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    own[15] = u64::from_le_bytes(last);
    let mut out = [0; 16];
    for i in 0..16 {
        let up = 2 * (i / 4) as u32;
        let below = if up == 0 { 0 } else { own[i - 1] >> (64 - up) };
        let top = if i % 4 == 3 { TOP } else { 0 };
        out[i] = (own[i] << up | below) & !top;
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

    fn any_group() -> impl Strategy<Value = [u8; GROUP_BYTES]> {
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
            let mut nodes = [[0; 32]; LEAVES];
            leaves(&group, &mut nodes);
            prop_assert_eq!(nodes.concat(), padded.to_vec());
            prop_assert_eq!(unpad(&padded), Some(group));
        }
    }
}
