//! The walk against DAGs in memory, good and hostile.
#![expect(clippy::unwrap_used, reason = "a test's helpers may")]

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};
use floe_dag::limits::HELD_LINKS as MAX_LINKS_HELD;
use floe_dag::{Budget, Next, Walk, WalkError, scan};

const ROOMY: Budget = Budget { max_blocks: 10_000_000, max_bytes: u64::MAX, max_depth: 2_000_000 };

fn pb(links: &[Cid]) -> Block {
    let mut out = Vec::new();
    for cid in links {
        let hash = cid.to_bytes();
        out.extend_from_slice(&[0x12, hash.len() as u8 + 2, 0x0a, hash.len() as u8]);
        out.extend_from_slice(&hash);
    }
    Block::of(code::DAG_PB, Bytes::from(out)).unwrap()
}

fn raw(n: u64) -> Block {
    Block::of(code::RAW, Bytes::copy_from_slice(&n.to_be_bytes())).unwrap()
}

/// Drives a walk over `store` to its end; every visit waits first, as for a peer. Returns the visits.
fn drive(walk: &mut Walk, store: &HashMap<Cid, Block>, seen: &mut HashSet<Cid>) -> Result<usize, WalkError> {
    let mut visits = 0;
    let mut wanted = Vec::new();
    loop {
        match walk.next() {
            Some(Next::Visit(cid)) => {
                visits += 1;
                if seen.insert(cid) {
                    walk.waiting(&cid);
                    wanted.push(cid);
                } else {
                    walk.seen(&cid);
                }
            }
            Some(Next::Reload(cid)) => walk.reloaded(&store[&cid])?,
            None => match wanted.pop() {
                Some(cid) => walk.block(&store[&cid])?,
                None => break,
            },
        }
    }
    assert!(walk.is_done());
    Ok(visits)
}

fn store(blocks: &[Block]) -> HashMap<Cid, Block> {
    blocks.iter().map(|b| (*b.cid(), b.clone())).collect()
}

#[test]
fn t15_a_dag_of_64_doublings_takes_65_blocks() {
    let mut blocks = vec![raw(1)];
    for _ in 0..64 {
        let below = *blocks.last().unwrap().cid();
        blocks.push(pb(&[below, below]));
    }
    let mut walk = Walk::new(*blocks.last().unwrap().cid(), ROOMY).unwrap();
    let mut seen = HashSet::new();
    drive(&mut walk, &store(&blocks), &mut seen).unwrap();
    assert_eq!(seen.len(), 65);
}

#[test]
fn t15_a_chain_of_a_million_nodes_needs_no_stack() {
    let mut blocks = vec![raw(1)];
    for _ in 0..1_000_000 {
        blocks.push(pb(&[*blocks.last().unwrap().cid()]));
    }
    let store = store(&blocks);
    let mut walk = Walk::new(*blocks.last().unwrap().cid(), ROOMY).unwrap();
    let mut seen = HashSet::new();
    drive(&mut walk, &store, &mut seen).unwrap();
    assert_eq!(seen.len(), 1_000_001);

    let shallow = Budget { max_depth: 1_000, ..ROOMY };
    let mut walk = Walk::new(*blocks.last().unwrap().cid(), shallow).unwrap();
    let over = drive(&mut walk, &store, &mut HashSet::new());
    assert!(matches!(over, Err(WalkError::Budget { what: "levels", limit: 1_000 })), "{over:?}");
}

#[test]
fn t15_many_wide_nodes_are_not_held_at_once() {
    // 20 levels, each of 20,000 leaves and the next level as the first link: 400,000 links if all were held.
    let mut blocks = Vec::new();
    let mut below: Option<Cid> = None;
    for level in 0..20u64 {
        let leaves: Vec<Block> = (0..20_000).map(|i| raw(level * 20_000 + i)).collect();
        let links: Vec<Cid> = below.into_iter().chain(leaves.iter().map(|b| *b.cid())).collect();
        let node = pb(&links);
        below = Some(*node.cid());
        blocks.extend(leaves);
        blocks.push(node);
    }
    let store = store(&blocks);
    let mut walk = Walk::new(below.unwrap(), ROOMY).unwrap();
    let mut seen = HashSet::new();
    let mut wanted = Vec::new();
    loop {
        match walk.next() {
            Some(Next::Visit(cid)) => {
                assert!(seen.insert(cid), "{cid} is visited twice");
                if Walk::needs_data(&cid) {
                    walk.waiting(&cid);
                    wanted.push(cid);
                } else {
                    walk.present(&cid, 8).unwrap();
                }
                while let Some(cid) = wanted.pop() {
                    walk.block(&store[&cid]).unwrap();
                }
            }
            Some(Next::Reload(cid)) => walk.reloaded(&store[&cid]).unwrap(),
            None => break,
        }
        assert!(walk.links_held() <= MAX_LINKS_HELD + 20_001);
    }
    assert!(walk.is_done());
    assert_eq!(seen.len(), blocks.len());
}

#[test]
fn a_walk_goes_on_from_any_checkpoint() {
    let leaves: Vec<Block> = (0..300).map(raw).collect();
    let middle: Vec<Block> =
        leaves.chunks(10).map(|c| pb(&c.iter().map(|b| *b.cid()).collect::<Vec<_>>())).collect();
    let root = pb(&middle.iter().map(|b| *b.cid()).collect::<Vec<_>>());
    let all: Vec<Block> = leaves.into_iter().chain(middle).chain([root.clone()]).collect();
    let store = store(&all);
    for stop in 0..all.len() {
        let mut walk = Walk::new(*root.cid(), ROOMY).unwrap();
        let (mut seen, mut wanted) = (HashSet::new(), Vec::new());
        for _ in 0..stop {
            match walk.next() {
                Some(Next::Visit(cid)) => {
                    walk.waiting(&cid);
                    wanted.push(cid);
                }
                Some(Next::Reload(cid)) => walk.reloaded(&store[&cid]).unwrap(),
                None => {
                    let Some(cid) = wanted.pop() else { break };
                    seen.insert(cid);
                    walk.block(&store[&cid]).unwrap();
                }
            }
        }
        let mut again = Walk::resume(&walk.checkpoint(), ROOMY, seen.len() as u64, 0).unwrap();
        drive(&mut again, &store, &mut seen).unwrap();
        assert_eq!(seen.len(), all.len(), "stopped after {stop} steps");
    }
}

/// Plain CBOR (0x51) and JSON (0x0200) were on the list of what is walked, and no test would have missed them there, nor
/// seen what looks like a link in them followed.
#[test]
fn each_walked_codec_is_walked_as_a_root_and_as_a_child() {
    let below = raw(1);
    let link = below.cid().to_bytes();
    let tagged = [&[0x81, 0xd8, 42, 0x58, link.len() as u8 + 1, 0][..], &link].concat();
    let named = format!(r#"[{{"/":"{}"}}]"#, below.cid());
    let of = |codec, data: &[u8]| Block::of(codec, Bytes::copy_from_slice(data)).unwrap();
    let table = [
        (0x55, raw(2), false),
        (0x70, pb(&[*below.cid()]), true),
        (0x71, of(0x71, &tagged), true),
        (0x0129, of(0x0129, named.as_bytes()), true),
        // The same bytes, which mean no link here; and bytes that are neither.
        (0x51, of(0x51, &tagged), false),
        (0x51, of(0x51, b"\xff\x00"), false),
        (0x0200, of(0x0200, named.as_bytes()), false),
        (0x0200, of(0x0200, b"{ not JSON"), false),
    ];
    for (codec, block, has_link) in &table {
        assert_eq!(block.cid().codec(), *codec);
        // A walk does not look into what cannot have links; who reads the links of a block does.
        let mut links = 0;
        scan(*codec, block.data(), &mut |_| links += 1).unwrap_or_else(|e| panic!("{codec:#x}: {e}"));
        assert_eq!(links, usize::from(*has_link), "{codec:#x}");
        let parent = pb(&[*block.cid()]);
        let store = store(&[below.clone(), block.clone(), parent.clone()]);
        for (root, above) in [(block, 0), (&parent, 1)] {
            let mut seen = HashSet::new();
            let mut walk = Walk::new(*root.cid(), ROOMY).unwrap_or_else(|e| panic!("{codec:#x}: {e}"));
            drive(&mut walk, &store, &mut seen).unwrap_or_else(|e| panic!("{codec:#x}: {e}"));
            assert_eq!(seen.len(), 1 + above + usize::from(*has_link), "{codec:#x} under {above}");
            assert_eq!(seen.contains(below.cid()), *has_link, "{codec:#x}");
        }
    }
    let mut walked: Vec<u64> = table.iter().map(|(codec, ..)| *codec).collect();
    walked.dedup();
    assert_eq!(HashSet::from_iter(walked), HashSet::from(code::WALKED), "none is without its row");
}

#[test]
fn a_codec_that_nobody_can_walk_is_named_before_it_is_fetched() {
    let strange = Cid::new_v1(0x78, *raw(1).cid().hash());
    assert!(matches!(Walk::new(strange, ROOMY), Err(WalkError::Codec { codec: 0x78, .. })));
    let root = pb(&[strange]);
    let mut walk = Walk::new(*root.cid(), ROOMY).unwrap();
    walk.next();
    assert!(matches!(walk.block(&root), Err(WalkError::Codec { codec: 0x78, .. })));
}

#[test]
fn identity_cids_are_walked_inside_and_never_visited() {
    let empty = floe_core::cid::parse("bafkqaaa").unwrap();
    let mut walk = Walk::new(empty, ROOMY).unwrap();
    assert_eq!(walk.next(), None);
    assert!(walk.is_done());

    let leaf = raw(9);
    let inline = pb(&[*leaf.cid()]);
    let hash = floe_core::Multihash::wrap(code::IDENTITY, inline.data()).unwrap();
    let root = pb(&[empty, Cid::new_v1(code::DAG_PB, hash)]);
    let mut walk = Walk::new(*root.cid(), ROOMY).unwrap();
    let mut seen = HashSet::new();
    drive(&mut walk, &store(&[leaf.clone(), root.clone()]), &mut seen).unwrap();
    assert_eq!(seen, HashSet::from([*root.cid(), *leaf.cid()]));
}

#[test]
fn budgets_end_the_walk() {
    let leaves: Vec<Block> = (0..10).map(raw).collect();
    let root = pb(&leaves.iter().map(|b| *b.cid()).collect::<Vec<_>>());
    let all: Vec<Block> = leaves.into_iter().chain([root.clone()]).collect();
    for (max_blocks, ok) in [(10, false), (11, true), (12, true)] {
        let mut walk = Walk::new(*root.cid(), Budget { max_blocks, ..ROOMY }).unwrap();
        assert_eq!(drive(&mut walk, &store(&all), &mut HashSet::new()).is_ok(), ok, "{max_blocks}");
    }
    let bytes: u64 = all.iter().map(|b| b.data().len() as u64).sum();
    for (max_bytes, ok) in [(bytes - 1, false), (bytes, true), (bytes + 1, true)] {
        let mut walk = Walk::new(*root.cid(), Budget { max_bytes, ..ROOMY }).unwrap();
        assert_eq!(drive(&mut walk, &store(&all), &mut HashSet::new()).is_ok(), ok, "{max_bytes}");
    }
}
