//! T3, T13, T14, T16: what hostile bytes do to the decoders. Any bytes give links or an error; the bounds hold at
//! their value and break one beyond it.
#![expect(clippy::unwrap_used, reason = "a test's helpers may")]

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};
use floe_dag::limits::{MAX_HAMT_FANOUT, MAX_NESTING};
use floe_dag::{Budget, Next, Walk, WalkError, links, scan};
use proptest::prelude::*;

const CODECS: [u64; 3] = [code::DAG_PB, code::DAG_CBOR, code::DAG_JSON];

fn scans(codec: u64, data: &[u8]) -> bool {
    scan(codec, data, &mut |_| {}).is_ok()
}

fn raw(n: u64) -> Cid {
    *Block::of(code::RAW, Bytes::copy_from_slice(&n.to_be_bytes())).unwrap().cid()
}

fn pb_field(field: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    let mut buffer = unsigned_varint::encode::usize_buffer();
    out.extend_from_slice(unsigned_varint::encode::usize(body.len(), &mut buffer));
    out.extend_from_slice(body);
    out
}

/// A HAMT shard with this fanout and bitfield over links with these names.
fn shard(fanout: u64, bitfield: &[u8], names: &[&str]) -> Block {
    let links: Vec<_> = names.iter().zip(0..).map(|(name, n)| (*name, raw(n))).collect();
    shard_over(fanout, bitfield, &links)
}

fn shard_over(fanout: u64, bitfield: &[u8], links: &[(&str, Cid)]) -> Block {
    let mut data = vec![0x08, 5];
    data.extend(pb_field(2, bitfield));
    let mut buffer = unsigned_varint::encode::u64_buffer();
    data.extend_from_slice(&[0x28, 0x22, 0x30]);
    data.extend_from_slice(unsigned_varint::encode::u64(fanout, &mut buffer));
    let mut node = Vec::new();
    for (name, cid) in links {
        let link = [pb_field(1, &cid.to_bytes()), pb_field(2, name.as_bytes())].concat();
        node.extend(pb_field(2, &link));
    }
    node.extend(pb_field(1, &data));
    Block::of(code::DAG_PB, Bytes::from(node)).unwrap()
}

/// `CVE-2023-23625`, `CVE-2023-23631`: readers sized tables by the fanout that a stranger wrote, and indexed links by
/// bits that were not there.
#[test]
fn t14_bogus_hamt_shards_are_refused() {
    let good = shard(256, &[0b11], &["00one", "01two"]);
    assert_eq!(links(&good).unwrap().count(), 2);
    for fanout in [0, 3, 255, 257, MAX_HAMT_FANOUT + 1, 2 * MAX_HAMT_FANOUT, 1 << 40, u64::MAX] {
        let block = shard(fanout, &[0b11], &["00one", "01two"]);
        assert!(matches!(links(&block), Err(WalkError::Malformed { .. })), "a fanout of {fanout}");
    }
    let widest = shard(MAX_HAMT_FANOUT, &[0b11], &["000one", "001two"]);
    assert!(links(&widest).is_ok(), "the widest fanout");
    // 256 slots take 32 bytes; one more does not fit, unless it is a leading zero nobody needs.
    let mut wide = vec![0b11];
    wide.resize(33, 0);
    assert!(links(&shard(256, &wide, &["00one", "01two"])).is_err(), "a bit beyond the fanout");
    for (bits, names) in [(0b1u8, &["00one", "01two"][..]), (0b111, &["00one", "01two"]), (0, &["00one"])] {
        assert!(links(&shard(256, &[bits], names)).is_err(), "{bits:b} for {} links", names.len());
    }
}

/// Shards below shards end where the hash of a name has no more bits, or at 32 levels.
#[test]
fn t14_shards_nest_as_deep_as_a_hash_has_bits() {
    for (fanout, digits, levels, ok) in [
        (256, "00", 7, true),
        (256, "00", 8, true),
        (256, "00", 9, false),
        (2, "0", 32, true),
        (2, "0", 33, false),
    ] {
        let mut shards = vec![shard(fanout, &[1], &[&format!("{digits}file")])];
        for _ in 1..levels {
            let below = *shards.last().unwrap().cid();
            shards.push(shard_over(fanout, &[1], &[(digits, below)]));
        }
        let budget = Budget { max_blocks: 100, max_bytes: 1 << 20, max_depth: 100 };
        let mut walk = Walk::new(*shards.last().unwrap().cid(), budget).unwrap();
        let walked = loop {
            let Some(Next::Visit(cid)) = walk.next() else { break Ok(()) };
            walk.waiting(&cid);
            let file = Block::of(code::RAW, Bytes::copy_from_slice(&0_u64.to_be_bytes())).unwrap();
            let block = shards.iter().find(|shard| *shard.cid() == cid).unwrap_or(&file);
            if let Err(error) = walk.block(block) {
                break Err(error);
            }
        };
        assert_eq!(walked.is_ok(), ok, "{levels} levels of {fanout}: {walked:?}");
    }
    assert!(links(&shard(256, &[1], &["00"])).is_ok(), "the slot's number alone");
    assert!(links(&shard(256, &[1], &["0"])).is_err(), "less than the slot's number");
}

#[test]
fn t16_nesting_ends_at_its_bound() {
    for (depth, ok) in [(MAX_NESTING - 1, true), (MAX_NESTING, true), (MAX_NESTING + 1, false)] {
        let mut cbor = vec![0x81; depth];
        cbor.push(0x00);
        assert_eq!(scans(code::DAG_CBOR, &cbor), ok, "dag-cbor {depth}");
        let json = format!("{}0{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(scans(code::DAG_JSON, json.as_bytes()), ok, "dag-json {depth}");
    }
    // A block full of openings: no stack to overflow.
    assert!(!scans(code::DAG_CBOR, &vec![0x81; 2 << 20]));
    assert!(!scans(code::DAG_JSON, "[".repeat(2 << 20).as_bytes()));
}

/// RUSTSEC-2019-0025 and its kin: a length is a claim, and nothing is sized by it.
#[test]
fn t16_huge_lengths_are_refused() {
    for major in [2u8, 3, 4, 5] {
        for len in [1u64 << 32, 1 << 63, u64::MAX] {
            let mut cbor = vec![major << 5 | 27];
            cbor.extend_from_slice(&len.to_be_bytes());
            assert!(!scans(code::DAG_CBOR, &cbor), "major type {major}, length {len}");
        }
    }
    for len in [1u64 << 32, 1 << 63, u64::MAX] {
        let mut buffer = unsigned_varint::encode::u64_buffer();
        let pb = [&[0x0a], unsigned_varint::encode::u64(len, &mut buffer)].concat();
        assert!(!scans(code::DAG_PB, &pb), "dag-pb length {len}");
    }
}

/// CVE-2022-2584: go-codec-dagpb believed the lengths in a node and read beyond its end, which is a panic.
#[test]
fn t13_cve_2022_2584_lengths_beyond_the_end_of_a_dag_pb_node() {
    let claim = |field: u8, len: u64| {
        let mut buffer = unsigned_varint::encode::u64_buffer();
        [&[field << 3 | 2], unsigned_varint::encode::u64(len, &mut buffer)].concat()
    };
    let beyond = [1, 2, 0x7f, 0x80, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX];
    for len in beyond {
        // The data, a link, and each part of a link, whose length here is right.
        for node in [claim(1, len), claim(2, len)] {
            assert!(!scans(code::DAG_PB, &node), "{len} bytes of {node:?}");
        }
        for part in 1..=3 {
            assert!(
                !scans(code::DAG_PB, &pb_field(2, &claim(part, len))),
                "{len} bytes in part {part} of a link"
            );
        }
    }
    // A good node that ends too early, at each of its bytes: nowhere a panic.
    let good = shard(256, &[0b11], &["00one", "01two"]);
    for cut in 0..good.data().len() {
        let _ = scans(code::DAG_PB, &good.data()[..cut]);
    }
}

#[test]
fn t16_dag_cbor_is_strict() {
    let bad: [(&str, &[u8]); 10] = [
        ("nan", &[0xfb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0]),
        ("infinity", &[0xfb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0]),
        ("a short float", &[0xf9, 0x3c, 0x00]),
        ("a number not in its shortest form", &[0x18, 0x01]),
        ("an indefinite array", &[0x9f, 0xff]),
        ("a key twice", &[0xa2, 0x61, b'a', 0x01, 0x61, b'a', 0x02]),
        ("keys out of order", &[0xa2, 0x61, b'b', 0x01, 0x61, b'a', 0x02]),
        ("a key that is no text", &[0xa1, 0x01, 0x01]),
        ("a tag other than 42", &[0xc1, 0x00]),
        ("bytes left over", &[0x00, 0x00]),
    ];
    for (what, bytes) in bad {
        assert!(!scans(code::DAG_CBOR, bytes), "{what} was accepted");
    }
}

proptest! {
    /// CVE-2022-23495: go-merkledag panicked on nodes that it had decoded and could not encode again.
    #[test]
    fn t13_any_bytes_are_no_panic(codec in prop::sample::select(&CODECS), data in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = scans(codec, &data);
        let block = Block::of(codec, Bytes::from(data)).unwrap();
        let _ = links(&block);
    }

    #[test]
    fn t13_a_mutated_node_is_no_panic(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let good = shard(256, &[0b11], &["00one", "01two"]);
        let mut data = good.data().to_vec();
        let at = at.index(data.len());
        data[at] = to;
        data.truncate(cut.index(data.len()) + 1);
        let _ = links(&Block::of(code::DAG_PB, Bytes::from(data)).unwrap());
    }

    /// What serde_json refuses to read, the scanner refuses too (it takes a little more care with keys and links).
    #[test]
    fn t13_dag_json_accepts_only_json(text in "[\\[\\]{}\",:0-9a-e /tru\\\\.-]{0,40}") {
        if scans(code::DAG_JSON, text.as_bytes()) {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok(), "{}", text);
        }
    }
}
