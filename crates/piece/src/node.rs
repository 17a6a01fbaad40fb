//! Nodes of the tree, and the hash that joins two of them.
//!
//! A parent is the SHA-256 of its 64 bytes of children with the top two bits cleared, so that it is a field element like
//! the leaves. SHA-256 works on blocks of 64 bytes, so each parent takes two: the children, and a block of padding that is
//! the same for all. Rows are hashed with the processor's SHA extensions where it has them (`sha_ni`), else through the
//! `sha2` crate, which on aarch64 uses that processor's.

/// A leaf, or the root of a subtree.
pub(crate) type Node = [u8; 32];

/// What SHA-256 appends to a message of 64 bytes: a one bit, zeros, and the length in bits.
pub(crate) const PADDING: [u8; 64] = {
    let mut block = [0; 64];
    block[0] = 0x80;
    block[62] = 0x02;
    block
};

/// SHA-256 before any block.
pub(crate) const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The parent of two nodes.
pub(crate) fn parent(left: &Node, right: &Node) -> Node {
    let mut children = [0; 64];
    children[..32].copy_from_slice(left);
    children[32..].copy_from_slice(right);
    truncated_sha256(&children)
}

/// The node over two children that stand next to each other: SHA-256 of 64 bytes, cut to 254 bits.
pub(crate) fn truncated_sha256(children: &[u8; 64]) -> Node {
    let mut state = INITIAL;
    sha2::block_api::compress256(&mut state, &[*children, PADDING]);
    finish(state)
}

fn finish(state: [u32; 8]) -> Node {
    let mut node = [0; 32];
    for (out, word) in node.as_chunks_mut::<4>().0.iter_mut().zip(state) {
        *out = word.to_be_bytes();
    }
    node[31] &= 0x3f;
    node
}

/// Hashes a row of nodes, an even number of them, to the row above, in place: the parents are the first half. Returns how
/// many they are.
pub(crate) fn hash_row(row: &mut [Node]) -> usize {
    #[cfg(all(target_arch = "x86_64", not(feature = "portable")))]
    if let Some(parents) = crate::sha_ni::hash_row(row) {
        return parents;
    }
    hash_row_portably(row)
}

fn hash_row_portably(row: &mut [Node]) -> usize {
    let parents = row.len() / 2;
    for i in 0..parents {
        row[i] = parent(&row[2 * i], &row[2 * i + 1]);
    }
    parents
}

/// The root over a row whose length is a power of two. The row is used up.
pub(crate) fn root(row: &mut [Node]) -> Node {
    let mut len = row.len();
    while len > 1 {
        len = hash_row(&mut row[..len]);
    }
    row.first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_parent_is_the_digest_cut_to_254_bits() {
        use sha2::Digest as _;
        let mut digest: Node = sha2::Sha256::digest([0xff; 64]).into();
        digest[31] &= 0x3f;
        assert_eq!(parent(&[0xff; 32], &[0xff; 32]), digest);
    }

    proptest! {
        /// Whatever this processor has: the same as the portable way, for rows of any length.
        #[test]
        fn rows_are_hashed_as_the_portable_way_does(row in prop::collection::vec(any::<Node>(), 0..40)) {
            let (mut fast, mut slow) = (row.clone(), row);
            let parents = hash_row(&mut fast);
            prop_assert_eq!(parents, hash_row_portably(&mut slow));
            prop_assert_eq!(&fast[..parents], &slow[..parents]);
        }
    }
}
