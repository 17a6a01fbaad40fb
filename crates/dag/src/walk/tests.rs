//! The walk against a store in memory that follows the rule for `seen`, with a window of blocks in flight.

use std::collections::{HashMap, HashSet, VecDeque};

use floe_core::Multihash;
use floe_core::cid::{self, code};
use proptest::prelude::*;

use super::*;

const AMPLE: Budget = Budget { max_blocks: u64::MAX, max_bytes: u64::MAX, max_depth: 1_000_000 };

fn raw(n: u64) -> Block {
    Block::of(code::RAW, n.to_be_bytes().to_vec().into()).unwrap()
}

fn cbor_bytes(links: &[Cid]) -> Vec<u8> {
    let mut out = vec![0x9a];
    out.extend(u32::try_from(links.len()).unwrap().to_be_bytes());
    if links.len() < 1 << 16 {
        out = vec![0x99];
        out.extend(u16::try_from(links.len()).unwrap().to_be_bytes());
    }
    if links.len() < 1 << 8 {
        out = vec![0x98, u8::try_from(links.len()).unwrap()];
    }
    if links.len() < 24 {
        out = vec![0x80 | u8::try_from(links.len()).unwrap()];
    }
    for cid in links {
        out.extend([0xd8, 0x2a]);
        let bytes = cid.to_bytes();
        let len = u8::try_from(bytes.len() + 1).unwrap();
        out.extend(if len < 24 { vec![0x40 | len] } else { vec![0x58, len] });
        out.push(0);
        out.extend(bytes);
    }
    out
}

fn cbor(links: &[Cid]) -> Block {
    Block::of(code::DAG_CBOR, cbor_bytes(links).into()).unwrap()
}

fn pb_bytes(links: &[Cid]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).unwrap()];
        out.extend(bytes);
        out
    };
    links.iter().flat_map(|cid| field(2, &field(1, &cid.to_bytes()))).collect()
}

fn inline(codec: u64, data: &[u8]) -> Cid {
    Cid::new_v1(codec, Multihash::wrap(code::IDENTITY, data).unwrap())
}

#[derive(Default)]
struct Store {
    blocks: HashMap<Multihash, Bytes>,
    manifest: HashSet<Multihash>,
    scanned: HashSet<Cid>,
    visits: usize,
    reloads: usize,
    most_held: usize,
    most_open: usize,
}

impl Store {
    fn add(&mut self, block: Block) -> Cid {
        let cid = *block.cid();
        self.blocks.insert(*cid.hash(), block.into_data());
        cid
    }

    fn get(&self, cid: &Cid) -> Block {
        Block::new(*cid, self.blocks[cid.hash()].clone()).unwrap()
    }

    /// Walks with `window` blocks in flight; stops early after `stop_after` visits.
    fn run(&mut self, walk: &mut Walk, window: usize, stop_after: usize) -> Result<(), WalkError> {
        let mut flight = VecDeque::new();
        loop {
            self.most_held = self.most_held.max(walk.held);
            self.most_open = self.most_open.max(walk.cold.len() + walk.hot.len());
            if self.visits >= stop_after {
                return Ok(());
            }
            match if flight.len() < window { walk.next() } else { None } {
                Some(Next::Reload(cid)) => {
                    self.reloads += 1;
                    walk.reloaded(&self.get(&cid))?;
                }
                Some(Next::Visit(cid)) => {
                    self.visits += 1;
                    if self.visit(walk, &cid)? {
                        flight.push_back(cid);
                    }
                }
                None => {
                    let Some(cid) = flight.pop_front() else { return Ok(()) };
                    walk.block(&self.get(&cid))?;
                }
            }
        }
    }

    fn visit(&mut self, walk: &mut Walk, cid: &Cid) -> Result<bool, WalkError> {
        assert!(!cid::is_identity(cid), "inline blocks are never visited");
        let new = self.manifest.insert(*cid.hash());
        let unscanned = Walk::needs_data(cid) && self.scanned.insert(*cid);
        match (new, unscanned) {
            (true, _) => walk.waiting(cid),
            (false, true) => walk.block_again(&self.get(cid))?,
            (false, false) => walk.seen(cid),
        }
        Ok(new)
    }

    fn walk(&mut self, root: Cid, window: usize) -> Walk {
        let mut walk = Walk::new(root, AMPLE).unwrap();
        self.run(&mut walk, window, usize::MAX).unwrap();
        assert!(walk.is_done());
        walk
    }
}

#[test]
fn t15_a_doubling_dag_of_64_levels_is_65_blocks() {
    for distinct in [false, true] {
        let mut store = Store::default();
        let mut below = vec![store.add(raw(0))];
        for level in 0..64u64 {
            // Two links to one node, or two nodes that both link to both nodes below.
            below = if distinct {
                let other = store.add(raw(1_000 + level));
                let a = store.add(cbor(&below));
                below.push(other);
                vec![a, store.add(cbor(&below))]
            } else {
                vec![store.add(cbor(&[below[0], below[0]]))]
            };
        }
        let root = if distinct { store.add(cbor(&below)) } else { below[0] };
        let walk = store.walk(root, 16);
        assert_eq!(walk.blocks, store.blocks.len() as u64);
        if !distinct {
            assert_eq!((store.visits, walk.blocks), (65, 65));
        }
    }
}

#[test]
fn t15_a_chain_of_a_million_nodes_needs_one_open_node() {
    let link = |digest: &[u8]| Cid::new_v1(code::DAG_CBOR, Multihash::wrap(code::SHA2_256, digest).unwrap());
    let mut chain: Vec<Bytes> = vec![Bytes::copy_from_slice(cbor(&[]).cid().hash().digest())];
    let node = |below: &Bytes| cbor(&[link(below)]);
    for _ in 0..1_000_000 {
        let next = Bytes::copy_from_slice(node(chain.last().unwrap()).cid().hash().digest());
        chain.push(next);
    }
    let mut walk = Walk::new(link(&chain.pop().unwrap()), AMPLE).unwrap();
    let mut most = 0;
    while let Some(Next::Visit(cid)) = walk.next() {
        let block = chain.pop().map_or_else(|| cbor(&[]), |below| node(&below));
        assert_eq!(*block.cid(), cid);
        walk.block(&block).unwrap();
        most = most.max(walk.hot.len() + walk.cold.len() + walk.pending.len());
    }
    assert!(walk.is_done());
    assert_eq!((walk.blocks, most), (1_000_001, 1));
}

#[test]
fn t15_a_node_with_50_000_links_and_more_such_nodes_keep_memory_bounded() {
    let mut store = Store::default();
    let leaves: Vec<Cid> = (0..40_000).map(|n| store.add(raw(n))).collect();
    let wide: Vec<Cid> = (0..12)
        .map(|n| {
            let mut links = leaves.clone();
            links.push(store.add(raw(100_000 + n)));
            store.add(cbor(&links))
        })
        .collect();
    let root = store.add(cbor(&wide));
    // Wider than the root, so that all wide nodes are open at once.
    let walk = store.walk(root, 64);
    assert_eq!(walk.blocks, store.blocks.len() as u64);
    assert!(store.reloads >= 9, "{} reloads", store.reloads);
    assert!(store.most_held <= HELD_LINKS + 40_001, "{} links held", store.most_held);

    let mut store = Store::default();
    let links: Vec<Cid> = (0..50_000).map(|n| store.add(raw(n))).collect();
    let root = store.add(cbor(&links));
    assert_eq!(store.walk(root, 1_024).blocks, 50_001);
    assert_eq!(store.reloads, 0);
}

/// The next node to read again, after all that can be visited without.
fn next_reload(walk: &mut Walk) -> Option<Cid> {
    loop {
        match walk.next()? {
            Next::Visit(cid) => walk.seen(&cid),
            Next::Reload(cid) => return Some(cid),
        }
    }
}

#[test]
fn nodes_being_read_again_at_the_boundary() {
    let leaves: Vec<Cid> = (0..2_000).map(|n| *raw(n).cid()).collect();
    // Four times the links that are held in memory: those of most nodes are dropped.
    let count = 4 * HELD_LINKS / leaves.len();
    let wide: Vec<Block> =
        (0..count as u64).map(|n| cbor(&[&leaves[..], &[*raw(100_000 + n).cid()]].concat())).collect();
    let root = cbor(&wide.iter().map(|node| *node.cid()).collect::<Vec<_>>());
    let mut walk = Walk::new(*root.cid(), AMPLE).unwrap();
    assert_eq!(walk.next(), Some(Next::Visit(*root.cid())));
    walk.block(&root).unwrap();
    while walk.next().is_some() {}
    wide.iter().for_each(|node| walk.block(node).unwrap());

    let mut asked: VecDeque<Cid> = std::iter::from_fn(|| next_reload(&mut walk)).collect();
    assert_eq!(asked.len(), MAX_RELOADS);
    // One that comes makes room for one more.
    let first = asked.pop_front().unwrap();
    walk.reloaded(wide.iter().find(|node| *node.cid() == first).unwrap()).unwrap();
    assert!(next_reload(&mut walk).is_some());
    assert_eq!(next_reload(&mut walk), None);
}

/// A tree of nodes with some sharing; the shape follows from `seed`.
fn tree(store: &mut Store, seed: &[u8]) -> Cid {
    let mut nodes: Vec<Cid> = vec![store.add(raw(7))];
    for (at, byte) in seed.iter().enumerate() {
        let leaf = store.add(raw(at as u64));
        let mut links = vec![leaf, nodes[usize::from(*byte) % nodes.len()], nodes[nodes.len() - 1]];
        links.push(nodes[at / 2 % nodes.len()]);
        nodes.push(if byte % 2 == 0 {
            store.add(cbor(&links))
        } else {
            store.add(Block::of(code::DAG_PB, pb_bytes(&links).into()).unwrap())
        });
    }
    nodes[nodes.len() - 1]
}

proptest! {
    #[test]
    fn every_block_is_met_once_whatever_is_held_and_wherever_it_resumes(
        seed in prop::collection::vec(any::<u8>(), 1..60),
        window in 1usize..20, held in 0usize..30, stop in 1usize..60,
    ) {
        let mut store = Store::default();
        let root = tree(&mut store, &seed);
        let mut walk = Walk::new(root, AMPLE).unwrap();
        walk.held_max = held;
        store.run(&mut walk, window, stop).unwrap();
        // A crash: blocks in flight never came, so they are not in the manifest.
        for pending in walk.pending.values() {
            store.manifest.remove(pending.cid.hash());
            store.scanned.clear();
        }
        let saved = walk.checkpoint();
        let (blocks, bytes) = (walk.blocks, walk.bytes);
        let mut walk = Walk::resume(&saved, AMPLE, blocks, bytes).unwrap();
        walk.held_max = held;
        store.run(&mut walk, window, usize::MAX).unwrap();
        prop_assert!(walk.is_done());
        prop_assert_eq!(store.manifest.len(), store.blocks.len());
        prop_assert_eq!(walk.blocks, store.blocks.len() as u64);
    }

    #[test]
    fn any_bytes_are_no_panic_for_resume(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = [b"FLWK\x01".to_vec(), bytes].concat();
        drop(Walk::resume(&bytes, AMPLE, 0, 0));
        bytes.remove(0);
        prop_assert!(Walk::resume(&bytes, AMPLE, 0, 0).is_err());
    }

    #[test]
    fn a_damaged_frontier_is_an_error_or_another_frontier(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut store = Store::default();
        let root = tree(&mut store, &[1, 2, 3, 4, 5, 6, 7, 8]);
        let mut walk = Walk::new(root, AMPLE).unwrap();
        store.run(&mut walk, 3, 6).unwrap();
        let mut saved = walk.checkpoint().to_vec();
        let at = at.index(saved.len());
        saved[at] ^= flip;
        if let Ok(mut walk) = Walk::resume(&saved, AMPLE, 0, 0) {
            while walk.next().is_some() {}
        }
        saved.truncate(at);
        if let Ok(mut walk) = Walk::resume(&saved, AMPLE, 0, 0) {
            while walk.next().is_some() {}
        }
    }
}

#[test]
fn bytes_counted_as_raw_are_still_scanned_as_dag_pb() {
    // One multihash under two codecs: a store that goes by multihash has "seen" the second, yet the links were
    // never looked at. `Store::visit` follows the rule; a walk told `seen` would miss `leaf`.
    let mut store = Store::default();
    let leaf = store.add(raw(1));
    let pb = store.add(Block::of(code::DAG_PB, pb_bytes(&[leaf]).into()).unwrap());
    let as_raw = Cid::new_v1(code::RAW, *pb.hash());
    let root = store.add(cbor(&[as_raw, pb]));
    let walk = store.walk(root, 1);
    assert!(store.manifest.contains(leaf.hash()));
    assert_eq!(walk.blocks, 3, "the same bytes count once");
}

#[test]
fn inline_children_are_walked_within_their_parent() {
    let mut store = Store::default();
    let leaf = store.add(raw(1));
    let inner = inline(code::DAG_PB, &pb_bytes(&[leaf]));
    let outer = inline(code::DAG_CBOR, &cbor_bytes(&[inner, inline(code::RAW, b"x")]));
    let root = store.add(cbor(&[outer]));
    assert_eq!(store.walk(root, 1).blocks, 2);
    // As a root: only what it links to is visited.
    let mut alone = Store::default();
    alone.add(raw(1));
    assert_eq!(alone.walk(outer, 1).blocks, 1);
    assert!(Walk::new(inline(code::RAW, b"floe"), AMPLE).unwrap().is_done());
    assert!(matches!(Walk::new(inline(code::DAG_CBOR, b"\xff"), AMPLE), Err(WalkError::Malformed { .. })));
}

#[test]
fn a_link_that_cannot_be_followed_is_refused_when_it_is_met() {
    let root_of = |link: Cid| {
        let block = cbor(&[*raw(1).cid(), link]);
        let mut walk = Walk::new(*block.cid(), AMPLE).unwrap();
        assert_eq!(walk.next(), Some(Next::Visit(*block.cid())));
        walk.block(&block).unwrap_err()
    };
    let git = Cid::new_v1(0x78, *raw(2).cid().hash());
    assert_eq!(root_of(git), WalkError::Codec { cid: git, codec: 0x78 });
    let sha1 = Cid::new_v1(code::RAW, Multihash::wrap(code::SHA1, &[0; 20]).unwrap());
    assert!(matches!(root_of(sha1), WalkError::Link { .. }));
    let hidden = inline(code::DAG_CBOR, &cbor_bytes(&[git]));
    assert!(matches!(root_of(hidden), WalkError::Codec { codec: 0x78, .. }));
    assert!(matches!(Walk::new(git, AMPLE), Err(WalkError::Codec { .. })));
    assert!(matches!(Walk::new(sha1, AMPLE), Err(WalkError::Link { .. })));
}

#[test]
fn budgets_hold_at_their_boundaries() {
    let mut store = Store::default();
    let leaf = store.add(raw(1));
    let middle = store.add(cbor(&[leaf]));
    let root = store.add(cbor(&[middle]));
    let total: usize = store.blocks.values().map(Bytes::len).sum();
    let mut outcome = |budget| {
        store.manifest.clear();
        store.scanned.clear();
        let mut walk = Walk::new(root, budget).unwrap();
        store.run(&mut walk, 1, usize::MAX)
    };
    let over = |what, limit| Err(WalkError::Budget { what, limit });
    for (max, ok) in [(2, false), (3, true), (4, true)] {
        let expected = if ok { Ok(()) } else { over("blocks", max) };
        assert_eq!(outcome(Budget { max_blocks: max, ..AMPLE }), expected);
    }
    for (max, ok) in [(total as u64 - 1, false), (total as u64, true), (total as u64 + 1, true)] {
        let expected = if ok { Ok(()) } else { over("bytes", max) };
        assert_eq!(outcome(Budget { max_bytes: max, ..AMPLE }), expected);
    }
    for (max, ok) in [(1, false), (2, true), (3, true)] {
        let expected = if ok { Ok(()) } else { over("levels", max) };
        assert_eq!(outcome(Budget { max_depth: u32::try_from(max).unwrap(), ..AMPLE }), expected);
    }
}

/// With CIDs of sha2-512 (79 bytes each in a frontier) the nodes that a walk may leave open were more than the store
/// takes as one record: such a DAG could not save its place, parked, and was tried again without end.
#[test]
fn t15_a_walk_that_leaves_too_much_open_to_be_saved_fails() {
    let mut store = Store::default();
    let leaf = store.add(raw(1));
    // Each node keeps its second link open while the walk is below the first.
    let root = (0..10).fold(leaf, |below, n| {
        let other = raw(100 + n);
        let other = store.add(cbor(&[*other.cid()]));
        store.add(cbor(&[below, other]))
    });
    (0..10).for_each(|n| _ = store.add(raw(100 + n)));
    let open = 10 * entry_bytes(&root);
    assert_eq!(open, 470);
    for (max, held, ok) in
        [(open - 1, 99, false), (open, 99, true), (open + 1, 99, true), (open - 1, 1, false), (open, 1, true)]
    {
        store.manifest.clear();
        store.scanned.clear();
        let mut walk = Walk::new(root, AMPLE).unwrap();
        (walk.open_bytes_max, walk.held_max) = (max, held);
        let expected = WalkError::Budget { what: "bytes of open nodes", limit: max as u64 };
        let outcome = store.run(&mut walk, 1, usize::MAX);
        assert_eq!(outcome, if ok { Ok(()) } else { Err(expected) }, "{max} bytes, {held} links held");
        assert!(!ok || (walk.is_done() && walk.hot_bytes == 0 && walk.cold.bytes() == 0));
    }
    const { assert!(MAX_OPEN_NODES * 47 <= MAX_OPEN_BYTES, "the usual CIDs have room for all open nodes") };
}

#[test]
fn what_is_pending_is_bounded_and_named_once() {
    let links: Vec<Cid> = (0..MAX_PENDING as u64 + 1).map(|n| *raw(n).cid()).collect();
    let root = cbor(&links);
    let mut walk = Walk::new(*root.cid(), AMPLE).unwrap();
    walk.next();
    walk.block(&root).unwrap();
    let handed = std::iter::from_fn(|| match walk.next() {
        Some(Next::Visit(cid)) => {
            walk.waiting(&cid);
            Some(cid)
        }
        _ => None,
    });
    assert_eq!(handed.collect::<HashSet<_>>().len(), MAX_PENDING);
    assert_eq!(walk.pending(), MAX_PENDING);
    walk.seen(&links[0]);
    assert_eq!(walk.next(), Some(Next::Visit(links[MAX_PENDING])));
    assert!(!walk.is_done());
}

#[test]
fn a_block_nobody_asked_for_changes_nothing() {
    let mut walk = Walk::new(*raw(1).cid(), AMPLE).unwrap();
    walk.block(&cbor(&[*raw(2).cid()])).unwrap();
    walk.reloaded(&cbor(&[*raw(2).cid()])).unwrap();
    assert_eq!((walk.blocks, walk.hot.len(), walk.is_done()), (0, 0, false));
}
