//! Small DAGs in dag-cbor and raw, written out by hand.

use bytes::Bytes;
use floe_core::Block;
use floe_core::Cid;
use floe_core::cid::code;

/// A raw leaf of `len` bytes that differ by `seed`.
pub fn leaf(seed: u64, len: usize) -> Block {
    let mut data = vec![0; len];
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in data.chunks_mut(8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        chunk.copy_from_slice(&x.to_le_bytes()[..chunk.len()]);
    }
    Block::of(code::RAW, data.into()).unwrap()
}

/// A dag-cbor array of links.
pub fn node(links: &[Cid]) -> Block {
    Block::of(code::DAG_CBOR, cbor(links)).unwrap()
}

pub fn cbor(links: &[Cid]) -> Bytes {
    let mut out = head(4, links.len());
    for link in links {
        let bytes = link.to_bytes();
        out.extend([0xd8, 42]);
        out.extend(head(2, bytes.len() + 1));
        out.push(0);
        out.extend(bytes);
    }
    out.into()
}

fn head(major: u8, n: usize) -> Vec<u8> {
    let major = major << 5;
    match n {
        0..24 => vec![major | n as u8],
        24..256 => vec![major | 24, n as u8],
        256..65_536 => [vec![major | 25], (n as u16).to_be_bytes().to_vec()].concat(),
        _ => [vec![major | 26], (n as u32).to_be_bytes().to_vec()].concat(),
    }
}

/// A DAG: the root is last, every block is named once.
pub struct Dag {
    pub blocks: Vec<Block>,
}

impl Dag {
    pub fn root(&self) -> Cid {
        *self.blocks.last().unwrap().cid()
    }

    pub fn bytes(&self) -> u64 {
        self.blocks.iter().map(|b| b.data().len() as u64).sum()
    }
}

/// `leaves` raw leaves of `len` bytes under nodes of up to `fanout` links.
pub fn tree(seed: u64, leaves: usize, len: usize, fanout: usize) -> Dag {
    let mut blocks: Vec<Block> = (0..leaves).map(|i| leaf(seed * 1_000_003 + i as u64, len)).collect();
    let mut level: Vec<Cid> = blocks.iter().map(|b| *b.cid()).collect();
    while level.len() > 1 || blocks.len() == leaves {
        let parents: Vec<Block> = level.chunks(fanout).map(node).collect();
        level = parents.iter().map(|b| *b.cid()).collect();
        blocks.extend(parents);
    }
    Dag { blocks }
}

/// A chain of `len` nodes, each linking to the next.
pub fn chain(seed: u64, len: usize) -> Dag {
    let mut blocks = vec![leaf(seed, 16)];
    while blocks.len() < len {
        let below = *blocks.last().unwrap().cid();
        blocks.push(node(&[below]));
    }
    Dag { blocks }
}

/// 2^`levels` paths over `levels` + 1 blocks.
pub fn doubling(seed: u64, levels: usize) -> Dag {
    let mut blocks = vec![leaf(seed, 16)];
    for _ in 0..levels {
        let below = *blocks.last().unwrap().cid();
        blocks.push(node(&[below, below]));
    }
    Dag { blocks }
}
