//! Any proof for any segment: a piece or an error, no panic. What holds breaks when its entry is changed.
#![no_main]

use floe_fuzz::{BASE, within};
use floe_piece::{InclusionProof, PaddedSize, PieceCid, Way};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: ([u8; 32], u8, u64, u64, Vec<[u8; 32]>, Vec<[u8; 32]>)| {
    let (mut root, height, segment, entry, beside_segment, beside_entry) = input;
    root[31] &= 0x3f;
    let (Some(piece), Some(size)) = (PieceCid::from_commitment(root), PaddedSize::from_height(height)) else {
        return;
    };
    let proof = InclusionProof {
        segment: Way { index: segment, beside: beside_segment },
        entry: Way { index: entry, beside: beside_entry },
    };
    if within(0, BASE, || proof.verify(piece, size)).is_ok() {
        let mut other = proof;
        other.entry.index ^= 1;
        assert!(other.verify(piece, size).is_err(), "two places for one entry");
    }
});
