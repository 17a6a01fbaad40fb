//! The hash of nodes with the SHA extensions of x86-64: the one module with unsafe code.
//!
//! One SHA-256 waits for itself: each of its instructions needs what the one before gave. So [`STREAMS`] of them run side
//! by side, and the processor fills the waits of one with the work of the others. The second block of each node is the same
//! padding for all, so its message schedule, already added to the round constants, is a table made by the compiler.
//!
//! What is unsafe is one call: a function that the compiler may fill with instructions which the processor must have. It is
//! made only after the processor was asked. Loads and stores go through arrays, whose bounds the compiler checks.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_blend_epi16, _mm_cvtsi128_si64, _mm_extract_epi64,
    _mm_set_epi32, _mm_set_epi64x, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
    _mm_shuffle_epi8, _mm_shuffle_epi32,
};

use crate::node::{INITIAL, Node, PADDING};

/// Hashes that run side by side. Of one to four, three hashed most bytes in a second of processor time on a Zen 4; with four
/// there are too few registers.
const STREAMS: usize = 3;

/// The round constants of SHA-256.
const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];

/// The message schedule of the padding block with the round constants added, four rounds to an entry.
const PADDING_ROUNDS: [[u32; 4]; 16] = {
    let mut w = [0u32; 64];
    let mut i = 0;
    while i < 16 {
        w[i] =
            u32::from_be_bytes([PADDING[4 * i], PADDING[4 * i + 1], PADDING[4 * i + 2], PADDING[4 * i + 3]]);
        i += 1;
    }
    while i < 64 {
        let (a, b) = (w[i - 15], w[i - 2]);
        let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ a >> 3;
        let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ b >> 10;
        w[i] = w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1);
        i += 1;
    }
    let mut rounds = [[0; 4]; 16];
    let mut i = 0;
    while i < 64 {
        rounds[i / 4][i % 4] = w[i].wrapping_add(K[i]);
        i += 1;
    }
    rounds
};

/// Hashes a row to the row above, as [`crate::node::hash_row`] says. `None` where this processor lacks the instructions.
pub(crate) fn hash_row(row: &mut [Node]) -> Option<usize> {
    let has = is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1");
    // SAFETY: the features that `hash_row_here` is compiled for were found on this processor in the line before.
    has.then(|| unsafe { hash_row_here(row) })
}

#[target_feature(enable = "sha,sse4.1")]
fn hash_row_here(row: &mut [Node]) -> usize {
    let parents = row.len() / 2;
    let mut at = 0;
    while at + STREAMS <= parents {
        let children: [[Node; 2]; STREAMS] =
            std::array::from_fn(|s| [row[2 * (at + s)], row[2 * (at + s) + 1]]);
        row[at..at + STREAMS].copy_from_slice(&hash_nodes(&children));
        at += STREAMS;
    }
    for last in at..parents {
        let [node] = hash_nodes(&[[row[2 * last], row[2 * last + 1]]]);
        row[last] = node;
    }
    parents
}

/// The state of a hash, in the order the instructions want.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn hash_nodes<const N: usize>(children: &[[Node; 2]; N]) -> [Node; N] {
    let initial = State {
        abef: words([INITIAL[5], INITIAL[4], INITIAL[1], INITIAL[0]]),
        cdgh: words([INITIAL[7], INITIAL[6], INITIAL[3], INITIAL[2]]),
    };
    let mut states = [initial; N];
    let mut w: [[__m128i; 4]; N] = std::array::from_fn(|s| load(&children[s]));
    for group in 0..16 {
        let k = words([K[4 * group], K[4 * group + 1], K[4 * group + 2], K[4 * group + 3]]);
        for s in 0..N {
            if group >= 4 {
                w[s] = scheduled(w[s]);
            }
            let now = w[s][if group < 4 { group } else { 3 }];
            rounds(&mut states[s], _mm_add_epi32(now, k));
        }
    }
    let middle = states.map(|state| added(state, initial));
    let mut states = middle;
    for table in &PADDING_ROUNDS {
        let wk = words(*table);
        for state in &mut states {
            rounds(state, wk);
        }
    }
    std::array::from_fn(|s| node(added(states[s], middle[s])))
}

/// Four rounds; `wk` is the schedule with the constants added.
#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn rounds(state: &mut State, wk: __m128i) {
    state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, wk);
    state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, _mm_shuffle_epi32(wk, 0x0e));
}

/// The next four words of the message schedule, behind the last twelve.
#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn scheduled([w0, w1, w2, w3]: [__m128i; 4]) -> [__m128i; 4] {
    let part = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));
    [w1, w2, w3, _mm_sha256msg2_epu32(part, w3)]
}

#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn added(a: State, b: State) -> State {
    State { abef: _mm_add_epi32(a.abef, b.abef), cdgh: _mm_add_epi32(a.cdgh, b.cdgh) }
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn words(w: [u32; 4]) -> __m128i {
    let [a, b, c, d] = w.map(u32::cast_signed);
    _mm_set_epi32(d, c, b, a)
}

/// Sixteen big-endian words as four vectors.
#[inline]
#[target_feature(enable = "sse4.1")]
fn load(children: &[Node; 2]) -> [__m128i; 4] {
    // Turns each word around.
    let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let (bytes, _) = children.as_flattened().as_chunks::<8>();
    std::array::from_fn(|i| {
        let (low, high) = (i64::from_le_bytes(bytes[2 * i]), i64::from_le_bytes(bytes[2 * i + 1]));
        _mm_shuffle_epi8(_mm_set_epi64x(high, low), order)
    })
}

/// The digest, big endian, cut to 254 bits.
#[inline]
#[target_feature(enable = "sse4.1")]
fn node(state: State) -> Node {
    let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let feba = _mm_shuffle_epi32(state.abef, 0x1b);
    let dchg = _mm_shuffle_epi32(state.cdgh, 0xb1);
    let abcd = _mm_shuffle_epi8(_mm_blend_epi16(feba, dchg, 0xf0), order);
    let efgh = _mm_shuffle_epi8(_mm_alignr_epi8(dchg, feba, 8), order);
    let mut node = [0; 32];
    for (half, out) in [abcd, efgh].into_iter().zip(node.as_chunks_mut::<16>().0) {
        out[..8].copy_from_slice(&_mm_cvtsi128_si64(half).to_le_bytes());
        out[8..].copy_from_slice(&_mm_extract_epi64(half, 1).to_le_bytes());
    }
    node[31] &= 0x3f;
    node
}
