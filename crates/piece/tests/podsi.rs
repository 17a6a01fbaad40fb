//! The sample aggregate of go-data-segment (`vectors/podsi`), and proofs that were changed. `deal.data` is not kept here: it
//! is the two segments, each with zeros to its size, and the index at the end.
#![expect(clippy::unwrap_used, reason = "a test's helpers may")]

use std::path::Path;

use floe_piece::segment::{Index, Segment, index_start};
use floe_piece::{Aggregate, CommP, InclusionProof, PaddedSize, Piece, PieceCid, ProofError};
use proptest::prelude::*;

const DEAL: &str = "baga6ea4seaqnqkeoqevjjjfe46wo2lpfclcbmkyms4wkz5srou3vzmr3w3c72bq";

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/podsi").join(name)).unwrap()
}

/// The piece CID in a `.commp` file.
fn published(name: &str) -> PieceCid {
    let text = String::from_utf8(vector(name)).unwrap();
    text.lines().next().unwrap().trim_start_matches("CID:").trim().parse().unwrap()
}

fn commp(payload: &[u8]) -> Piece {
    let mut commp = CommP::new();
    commp.update(payload).unwrap();
    commp.finish().unwrap()
}

fn size(bytes: u64) -> PaddedSize {
    PaddedSize::from_bytes(bytes).unwrap()
}

fn segments() -> [Segment; 2] {
    [("cat.png.car", 0, 524_288), ("Verifiable_Data_Aggregation.png.car", 524_288, 262_144)].map(
        |(name, offset, bytes)| {
            let piece = commp(&vector(name));
            assert_eq!(piece.cid, published(&format!("{name}.commp")), "{name}");
            assert_eq!(piece.size, size(bytes), "{name}");
            Segment { piece: piece.cid, offset, size: piece.size }
        },
    )
}

fn aggregate() -> Aggregate {
    Aggregate::new(size(1 << 20), &segments()).unwrap()
}

#[test]
fn the_index_is_the_published_one() {
    let of = size(1 << 20);
    let index = Index::new(of, &segments()).unwrap();
    assert_eq!(index_start(of), Some(1_048_064));
    assert_eq!(index.payload(), vector("index.data"));
    assert_eq!(Index::read(of, &vector("index.data")), Ok(index));
    assert_eq!(commp(&vector("index.data")).cid, published("index.data.commp"));
    let entries: serde_json::Value = serde_json::from_slice(&vector("index.json")).unwrap();
    for (entry, segment) in entries.as_array().unwrap().iter().zip(segments()) {
        let bytes = |name: &str| -> Vec<u8> { serde_json::from_value(entry[name].clone()).unwrap() };
        assert_eq!(bytes("CommDs"), segment.piece.commitment());
        assert_eq!(bytes("Checksum"), segment.entry()[48..]);
        assert_eq!(
            (entry["Offset"].as_u64(), entry["Size"].as_u64()),
            (Some(segment.offset), Some(segment.size.bytes()))
        );
    }
}

#[test]
fn the_aggregate_is_the_published_one_with_its_bytes_and_without() {
    let deal: PieceCid = DEAL.parse().unwrap();
    assert_eq!(aggregate().piece(), deal);
    let mut payload = vector("cat.png.car");
    payload.resize(520_192, 0);
    payload.extend(vector("Verifiable_Data_Aggregation.png.car"));
    payload.resize(Index::payload_range(size(1 << 20)).unwrap().start as usize, 0);
    payload.extend(vector("index.data"));
    assert_eq!(payload.len(), 1_040_384);
    assert_eq!(commp(&payload).cid, deal);
}

#[test]
fn the_proofs_are_the_published_ones_and_hold() {
    let aggregate = aggregate();
    let deal = (DEAL.parse().unwrap(), size(1 << 20));
    for (n, segment, levels, entry) in [(0, 0, 1, 16_376), (1, 2, 2, 16_377)] {
        let proof = aggregate.prove(n).unwrap();
        assert_eq!((proof.segment.index, proof.segment.beside.len()), (segment, levels));
        assert_eq!((proof.entry.index, proof.entry.beside.len()), (entry, 14));
        let Segment { piece, size, .. } = segments()[n];
        assert_eq!(proof.verify(piece, size), Ok(deal));
    }
    assert_eq!(aggregate.prove(2), None);
}

/// What a dishonest aggregator could say: a proof of something else, or an entry that no index holds.
#[test]
fn proofs_of_something_else_are_refused() {
    let aggregate = aggregate();
    let [cat, other] = segments();
    let (first, second) = (aggregate.prove(0).unwrap(), aggregate.prove(1).unwrap());
    assert!(first.verify(other.piece, other.size).is_err(), "another segment");
    assert!(second.verify(other.piece, cat.size).is_err(), "another size");
    let crossed = InclusionProof { segment: first.segment.clone(), entry: second.entry.clone() };
    assert_eq!(crossed.verify(cat.piece, cat.size), Err(ProofError::Different));
    let mut long = first.clone();
    long.segment.beside.resize(400, [0; 32]);
    assert_eq!(long.verify(cat.piece, cat.size), Err(ProofError::Way));
    let mut beyond = first.clone();
    beyond.segment.index = u64::MAX;
    assert_eq!(beyond.verify(cat.piece, cat.size), Err(ProofError::Way));
}

/// A segment whose bytes are themselves an entry proves nothing: an entry counts only where the index is.
#[test]
fn an_entry_outside_of_the_index_is_refused() {
    let of = size(1 << 20);
    let [cat, _] = segments();
    // The second half of the piece begins with cat's entry, as anybody's payload may.
    let mut forged = vec![0; 128];
    forged[..64].copy_from_slice(&cat.entry());
    let payload = floe_piece::fr32::unpad(forged.as_slice().try_into().unwrap()).unwrap();
    let piece = commp(&payload);
    let entry = Segment { piece: piece.cid, offset: 1 << 19, size: piece.size };
    // An honest proof for the forged payload gives the way up from it; one step below stands the entry.
    let aggregate = Aggregate::new(of, &[entry, cat]).unwrap();
    let up = aggregate.prove(0).unwrap().segment;
    let mut beside = vec![pair_of_zeros()];
    beside.extend(&up.beside);
    let forged = InclusionProof {
        segment: aggregate.prove(1).unwrap().segment,
        entry: floe_piece::Way { index: 2 * up.index, beside },
    };
    assert_eq!(forged.verify(cat.piece, cat.size), Err(ProofError::Position));
}

/// The node over two leaves of zeros.
fn pair_of_zeros() -> [u8; 32] {
    let mut digest: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest([0; 64]).into();
    digest[31] &= 0x3f;
    digest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any layout that fits: each of its proofs holds for its segment, and breaks when one bit of it changes.
    #[test]
    fn any_aggregate_proves_its_segments(heights in prop::collection::vec(2..9u8, 1..8), flip in any::<prop::sample::Index>()) {
        let of = size(1 << 20);
        let (mut at, mut segments) = (0u64, Vec::new());
        for (n, height) in heights.into_iter().enumerate() {
            let size = PaddedSize::from_height(height).unwrap();
            let offset = at.next_multiple_of(size.bytes());
            at = offset + size.bytes();
            segments.push(Segment { piece: PieceCid::from_commitment([n as u8; 32]).unwrap(), offset, size });
        }
        let aggregate = Aggregate::new(of, &segments).unwrap();
        for (n, segment) in segments.iter().enumerate() {
            let proof = aggregate.prove(n).unwrap();
            prop_assert_eq!(proof.verify(segment.piece, segment.size), Ok((aggregate.piece(), of)));
            let mut broken = proof.clone();
            let bit = flip.index(broken.entry.beside.len() * 256);
            broken.entry.beside[bit / 256][bit / 8 % 32] ^= 1 << (bit % 8);
            prop_assert!(broken.verify(segment.piece, segment.size).is_err());
        }
    }
}
