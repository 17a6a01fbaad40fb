//! Nodes of the tree, and the hash that joins two of them.
//!
//! A parent is the SHA-256 of its 64 bytes of children with the top two bits cleared, so that it is a field element like
//! the leaves. SHA-256 works on blocks of 64 bytes, so each parent takes two: the children, and a block of padding that is
//! the same for all. Here is one node at a time, through the `sha2` crate; whole rows are hashed in [`crate::row`].

/// A leaf, or the root of a subtree.
pub(crate) type Node = [u8; 32];

/// A node as SHA-256 counts in: eight words, each big endian in the node.
pub(crate) type Words = [u32; 8];

/// What SHA-256 appends to a message of 64 bytes: a one bit, zeros, and the length in bits.
pub(crate) const PADDING: [u8; 64] = {
    let mut block = [0; 64];
    block[0] = 0x80;
    block[62] = 0x02;
    block
};

/// SHA-256 before any block.
pub(crate) const INITIAL: Words =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// What the cut to 254 bits leaves of the last word.
pub(crate) const LAST_WORD: u32 = 0xffff_ff3f;

/// The parent of two nodes.
pub(crate) fn parent(left: &Node, right: &Node) -> Node {
    let mut children = [0; 64];
    children[..32].copy_from_slice(left);
    children[32..].copy_from_slice(right);
    truncated_sha256(&children)
}

/// The node over two children that stand next to each other: SHA-256 of 64 bytes, cut to 254 bits.
pub(crate) fn truncated_sha256(children: &[u8; 64]) -> Node {
    bytes(&parent_words(children))
}

/// The same, as words.
pub(crate) fn parent_words(children: &[u8; 64]) -> Words {
    let mut state = INITIAL;
    sha2::block_api::compress256(&mut state, &[*children, PADDING]);
    state[7] &= LAST_WORD;
    state
}

/// A node of words as bytes.
pub(crate) fn bytes(words: &Words) -> Node {
    let mut node = [0; 32];
    for (out, word) in node.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *out = word.to_be_bytes();
    }
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_the_digest_cut_to_254_bits() {
        use sha2::Digest as _;
        let mut digest: Node = sha2::Sha256::digest([0xff; 64]).into();
        digest[31] &= 0x3f;
        assert_eq!(parent(&[0xff; 32], &[0xff; 32]), digest);
    }
}
