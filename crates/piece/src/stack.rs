//! A tree that grows from left to right, of which only the roots of complete subtrees are kept: at most one for each level.
//!
//! It is a counter in binary. Subtrees of one height join as ones carry, and what is missing at the right is zeros, whose
//! subtrees have known roots.

use std::sync::LazyLock;

use crate::PaddedSize;
use crate::limits::LEVELS;
use crate::node::{Node, parent};

/// The roots of subtrees of zeros, by height.
static ZEROS: LazyLock<[Node; LEVELS]> = LazyLock::new(|| {
    let mut roots = [[0; 32]; LEVELS];
    for height in 1..LEVELS {
        roots[height] = parent(&roots[height - 1], &roots[height - 1]);
    }
    roots
});

/// The root of a subtree of zeros.
pub(crate) fn zeros(height: u8) -> Node {
    ZEROS[usize::from(height)]
}

/// Raises a node at `from` to `to` with zeros at its right.
pub(crate) fn raise(node: Node, from: u8, to: u8) -> Node {
    (from..to).fold(node, |node, height| parent(&node, &zeros(height)))
}

/// Roots of complete subtrees from left to right, each lower than the one before.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stack {
    roots: Vec<(u8, Node)>,
}

impl Stack {
    /// Appends the subtree of `height` with this root. It must not be higher than the last one that was appended, but
    /// where that one was joined.
    pub(crate) fn push(&mut self, mut height: u8, mut root: Node) {
        while let Some((_, left)) = self.roots.pop_if(|(top, _)| *top == height) {
            root = parent(&left, &root);
            height += 1;
        }
        self.roots.push((height, root));
    }

    /// The root of the tree of `size` over what was appended, with zeros behind it.
    pub(crate) fn root(&self, size: PaddedSize) -> Node {
        let mut roots = self.roots.iter().rev();
        let Some(&(height, last)) = roots.next() else { return zeros(size.height()) };
        let (height, root) = roots.fold((height, last), |(height, root), (above, left)| {
            (above + 1, parent(left, &raise(root, height, *above)))
        });
        raise(root, height, size.height())
    }
}
