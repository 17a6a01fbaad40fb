//! DAGs for tests: raw leaves under balanced dag-pb nodes, as `ipfs add --raw-leaves` makes them.

use bytes::Bytes;
use floe_core::cid::code;
use floe_core::{Block, Cid};

/// Links per node, as Kubo's importer has it.
const FANOUT: usize = 174;

/// Cuts `data` into raw leaves and builds the tree over them; the root comes last.
pub fn over(data: &[u8], leaf_bytes: usize) -> Vec<Block> {
    let leaf =
        |chunk: &[u8]| Block::of(code::RAW, Bytes::copy_from_slice(chunk)).expect("leaves are small enough");
    let mut all: Vec<Block> = data.chunks(leaf_bytes).map(leaf).collect();
    let leaves: Vec<Cid> = all.iter().map(|leaf| *leaf.cid()).collect();
    all.extend(tree(leaves));
    all
}

/// The nodes above these leaves; the root comes last.
pub fn tree(leaves: Vec<Cid>) -> Vec<Block> {
    let mut level = leaves;
    let mut nodes = Vec::new();
    while level.len() > 1 || nodes.is_empty() {
        let parents: Vec<Block> = level.chunks(FANOUT).map(|children| node(children.iter())).collect();
        level = parents.iter().map(|node| *node.cid()).collect();
        nodes.extend(parents);
    }
    nodes
}

/// A dag-pb node with these links and no data.
pub fn node<'a>(links: impl Iterator<Item = &'a Cid>) -> Block {
    let mut out = Vec::new();
    for cid in links {
        let hash = cid.to_bytes();
        // PBLink { 1: Hash, 2: Name = "" }, in PBNode field 2.
        let mut link = vec![0x0a, u8::try_from(hash.len()).expect("test CIDs are short")];
        link.extend_from_slice(&hash);
        link.extend_from_slice(&[0x12, 0x00]);
        out.extend_from_slice(&[0x12, u8::try_from(link.len()).expect("test links are short")]);
        out.extend_from_slice(&link);
    }
    Block::of(code::DAG_PB, Bytes::from(out)).expect("nodes are small enough")
}

/// The links of a node that [`node`] made.
pub fn links(data: &[u8]) -> Vec<Cid> {
    let mut rest = data;
    let mut out = Vec::new();
    while let [0x12, len, tail @ ..] = rest {
        let (link, after) = tail.split_at(usize::from(*len));
        let hash = &link[2..2 + usize::from(link[1])];
        out.push(floe_core::cid::parse_bytes(hash).expect("links of this module are CIDs"));
        rest = after;
    }
    out
}
