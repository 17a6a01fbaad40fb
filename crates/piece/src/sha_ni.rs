//! Rows hashed with the SHA extensions of x86-64: the one module with unsafe code.
//!
//! One SHA-256 waits for itself: each of its rounds needs what the one before gave, four cycles later. So [`STREAMS`] of them
//! run side by side, and the processor fills the waits of one with the work of the others.
//!
//! ```text
//! two children ─> schedule: 64 words, each with its round constant   by pairs, so that two chains of it run at a time
//!                    v
//! 64 rounds of all streams ─> 64 rounds over the padding block, whose schedule the compiler made: no work but rounds
//!                    v
//! the parent, in the order in which the schedule of the row above reads it: no byte is turned around between rows
//! ```
//!
//! The schedules stand in memory between the two steps, because the registers hold the states of four streams and no
//! more. Fr32 goes straight into the schedules: leaves are never written.
//!
//! What is unsafe is two calls: of functions that the compiler may fill with instructions which the processor must have. They
//! are made only after the processor was asked. Loads and stores go through arrays, whose bounds the compiler checks.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_and_si128, _mm_blend_epi16, _mm_cvtsi128_si64,
    _mm_extract_epi64, _mm_or_si128, _mm_set_epi32, _mm_set_epi64x, _mm_setzero_si128, _mm_sha256msg1_epu32,
    _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8, _mm_shuffle_epi32, _mm_slli_epi64,
    _mm_srli_epi64, _mm_srli_si128,
};

use crate::fr32::{ELEMENT_TOP, GROUP_BYTES, Group};
use crate::node::{INITIAL, LAST_WORD, PADDING, Words};

/// Hashes that run side by side. With two the unit for rounds of a Zen 4 is busy half the time, with four all of it;
/// with six their states do not fit into the registers.
const STREAMS: usize = 4;

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

/// Hashes groups to the row above their leaves, as `row::over_groups` says. `false`, and nothing done, where
/// this processor lacks the instructions.
pub(crate) fn over_groups(groups: &[Group], row: &mut [Words]) -> bool {
    let has = has_instructions();
    if has {
        // SAFETY: the features that the function is compiled for were found on this processor in the line before.
        unsafe { over_groups_here(groups, row) }
    }
    has
}

/// Hashes a row to the row above, as `row::halve` says. `false`, and nothing done, where this processor lacks the
/// instructions.
pub(crate) fn halve(row: &mut [Words]) -> bool {
    let has = has_instructions();
    if has {
        // SAFETY: as above.
        unsafe { halve_here(row) }
    }
    has
}

fn has_instructions() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1")
}

#[target_feature(enable = "sha,sse4.1")]
fn over_groups_here(groups: &[Group], row: &mut [Words]) {
    let mut schedules = Schedules::new();
    let (fours, rest) = groups.as_chunks::<{ STREAMS / 2 }>();
    let (rows, _) = row.as_chunks_mut::<STREAMS>();
    for (pair, parents) in fours.iter().zip(rows) {
        schedules.fill(0, leaves(&pair[0]));
        schedules.fill(2, leaves(&pair[1]));
        *parents = schedules.hash().map(|state| parent(state));
    }
    if let [last] = rest {
        let mut schedules = Schedules::new();
        schedules.fill(0, leaves(last));
        let parents: [State; 2] = schedules.hash();
        row[2 * groups.len() - 2..2 * groups.len()].copy_from_slice(&parents.map(|state| parent(state)));
    }
}

#[target_feature(enable = "sha,sse4.1")]
fn halve_here(row: &mut [Words]) {
    let parents = row.len() / 2;
    let mut schedules = Schedules::new();
    let mut at = 0;
    while at + STREAMS <= parents {
        schedules.fill(0, [children(row, at), children(row, at + 1)]);
        schedules.fill(2, [children(row, at + 2), children(row, at + 3)]);
        let four: [State; STREAMS] = schedules.hash();
        row[at..at + STREAMS].copy_from_slice(&four.map(|state| parent(state)));
        at += STREAMS;
    }
    for last in at..parents {
        let mut schedules = Schedules::new();
        schedules.fill(0, [children(row, last)]);
        let [state]: [State; 1] = schedules.hash();
        row[last] = parent(state);
    }
}

/// What four rounds of each stream add, sixteen times.
struct Schedules<const N: usize>([[__m128i; N]; 16]);

impl<const N: usize> Schedules<N> {
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn new() -> Self {
        Self([[_mm_setzero_si128(); N]; 16])
    }

    /// Makes the schedules of the streams from `first` on, side by side, from their first sixteen words.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn fill<const M: usize>(&mut self, first: usize, mut w: [[__m128i; 4]; M]) {
        for (group, out) in self.0.iter_mut().enumerate() {
            let k = words([K[4 * group], K[4 * group + 1], K[4 * group + 2], K[4 * group + 3]]);
            for (w, out) in w.iter_mut().zip(&mut out[first..]) {
                if group >= 4 {
                    *w = scheduled(*w);
                }
                *out = _mm_add_epi32(w[group.min(3)], k);
            }
        }
    }

    /// All rounds of all streams, over their own block and the padding.
    #[inline]
    #[target_feature(enable = "sha,sse4.1")]
    fn hash(&self) -> [State; N] {
        let initial = State {
            abef: words([INITIAL[5], INITIAL[4], INITIAL[1], INITIAL[0]]),
            cdgh: words([INITIAL[7], INITIAL[6], INITIAL[3], INITIAL[2]]),
        };
        let mut states = [initial; N];
        for wk in &self.0 {
            rounds(&mut states, wk);
        }
        let middle = states.map(|state| added(state, initial));
        let mut states = middle;
        for table in &PADDING_ROUNDS {
            rounds(&mut states, &[words(*table); N]);
        }
        std::array::from_fn(|s| added(states[s], middle[s]))
    }
}

/// The state of a hash, in the order the instructions want.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

/// Four rounds of each stream. Two of one stream are never next to each other: they would wait.
#[inline]
#[target_feature(enable = "sha,sse4.1")]
fn rounds<const N: usize>(states: &mut [State; N], wk: &[__m128i; N]) {
    for (state, wk) in states.iter_mut().zip(wk) {
        state.cdgh = _mm_sha256rnds2_epu32(state.cdgh, state.abef, *wk);
    }
    for (state, wk) in states.iter_mut().zip(wk) {
        state.abef = _mm_sha256rnds2_epu32(state.abef, state.cdgh, _mm_shuffle_epi32(*wk, 0x0e));
    }
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

/// The two children of the parent with this number, as sixteen words.
#[inline]
#[target_feature(enable = "sse4.1")]
fn children(row: &[Words], parent: usize) -> [__m128i; 4] {
    let (quarters, _) = row[2 * parent..2 * parent + 2].as_flattened().as_chunks::<4>();
    std::array::from_fn(|n| words(quarters[n]))
}

/// The leaves of a group, two and two, as sixteen words each.
#[inline]
#[target_feature(enable = "sse4.1")]
fn leaves(group: &Group) -> [[__m128i; 4]; 2] {
    // SHA-256 reads its words big endian.
    let order = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
    let turned = |v| _mm_shuffle_epi8(v, order);
    let ([a, b], [c, d]) = (element::<0, 0, 8>(group), element::<31, 6, 2>(group));
    let ([e, f], [g, h]) = (element::<63, 4, 4>(group), element::<95, 2, 6>(group));
    [[a, b, c, d].map(turned), [e, f, g, h].map(turned)]
}

/// The element that begins in byte `AT`, `DOWN` bits above its lowest; `UP` is what is missing to 8. See [`crate::fr32`].
#[inline]
#[target_feature(enable = "sse4.1")]
fn element<const AT: usize, const DOWN: i32, const UP: i32>(group: &Group) -> [__m128i; 2] {
    // Each half word by half word: moved down, and what comes in at its top from one byte further on.
    let half = |at: usize| {
        let here = load(group, at);
        let further = if at + 17 <= GROUP_BYTES { load(group, at + 1) } else { _mm_srli_si128(here, 1) };
        _mm_or_si128(_mm_srli_epi64(here, DOWN), _mm_slli_epi64(further, UP))
    };
    [half(AT), _mm_and_si128(half(AT + 16), _mm_set_epi64x(ELEMENT_TOP.cast_signed(), -1))]
}

#[inline]
#[target_feature(enable = "sse4.1")]
fn load(group: &Group, at: usize) -> __m128i {
    let (bytes, _) = group[at..at + 16].as_chunks::<8>();
    _mm_set_epi64x(i64::from_le_bytes(bytes[1]), i64::from_le_bytes(bytes[0]))
}

/// The node a state ends as, cut to 254 bits.
#[inline]
#[target_feature(enable = "sse4.1")]
fn parent(state: State) -> Words {
    let feba = _mm_shuffle_epi32(state.abef, 0x1b);
    let dchg = _mm_shuffle_epi32(state.cdgh, 0xb1);
    let abcd = _mm_blend_epi16(feba, dchg, 0xf0);
    let efgh = _mm_and_si128(_mm_alignr_epi8(dchg, feba, 8), words([!0, !0, !0, LAST_WORD]));
    let mut node = [0; 8];
    for (half, out) in [abcd, efgh].into_iter().zip(node.as_chunks_mut::<4>().0) {
        let (low, high) = (_mm_cvtsi128_si64(half) as u64, _mm_extract_epi64(half, 1) as u64);
        *out = [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32];
    }
    node
}
