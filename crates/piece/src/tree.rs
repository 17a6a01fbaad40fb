//! The tree of an aggregate of which only some subtrees are known; the rest is zeros.
//!
//! It is kept row by row, each a sorted list of the nodes that are not the root of zeros, so it takes memory by what is in it
//! and not by its size: 40 bytes a node, and a few nodes for each subtree.

use crate::node::{Node, parent};
use crate::{Error, PaddedSize, PieceCid, stack};

/// A subtree by its place: its root's level, 0 for leaves, and its number among those of that level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The level.
    pub height: u8,
    /// The number from the left.
    pub index: u64,
}

/// A tree of a piece, made of subtrees.
#[derive(Debug, Clone)]
pub struct Tree {
    size: PaddedSize,
    /// By height, sorted by index.
    rows: Vec<Vec<(u64, Node)>>,
}

impl Tree {
    /// The tree of `size` over `subtrees`, in any order.
    ///
    /// # Errors
    /// [`Error::Place`] where a subtree is outside of the tree, or inside another one.
    pub fn new(
        size: PaddedSize,
        subtrees: impl IntoIterator<Item = (Place, [u8; 32])>,
    ) -> Result<Self, Error> {
        let height = usize::from(size.height());
        let mut rows = vec![Vec::new(); height + 1];
        for (place, root) in subtrees {
            let row = rows.get_mut(usize::from(place.height)).ok_or(Error::Place(place))?;
            if place.index >> (size.height() - place.height) != 0 {
                return Err(Error::Place(place));
            }
            row.push((place.index, root));
        }
        for level in 0..=height {
            let at = level as u8;
            rows[level].sort_unstable_by_key(|(index, _)| *index);
            if let Some(twice) = rows[level].windows(2).find(|pair| pair[0].0 == pair[1].0) {
                return Err(Error::Place(Place { height: at, index: twice[0].0 }));
            }
            if level < height {
                let parents = parents(&rows[level], at);
                rows[level + 1].extend(parents);
            }
        }
        Ok(Self { size, rows })
    }

    /// The size of the tree.
    pub fn size(&self) -> PaddedSize {
        self.size
    }

    /// Its commitment. `None` where a subtree was given a root that is no commitment.
    pub fn piece(&self) -> Option<PieceCid> {
        PieceCid::from_commitment(self.node(Place { height: self.size.height(), index: 0 }))
    }

    /// The nodes beside the way from `place` up to the root, from below. Inside a subtree that was given, where nothing
    /// is known, they would be those of zeros: ask only for places of subtrees and above.
    pub(crate) fn path(&self, place: Place) -> Vec<Node> {
        let beside = |height: u8| Place { height, index: place.index >> (height - place.height) ^ 1 };
        (place.height..self.size.height()).map(|height| self.node(beside(height))).collect()
    }

    fn node(&self, place: Place) -> Node {
        let row = self.rows.get(usize::from(place.height)).map_or(&[][..], Vec::as_slice);
        row.binary_search_by_key(&place.index, |(index, _)| *index)
            .map_or_else(|_| stack::zeros(place.height), |at| row[at].1)
    }
}

/// The row above a sorted row.
fn parents(row: &[(u64, Node)], height: u8) -> Vec<(u64, Node)> {
    let zeros = stack::zeros(height);
    let pairs = row.chunk_by(|(a, _), (b, _)| a / 2 == b / 2);
    let above = pairs.map(|pair| {
        let child = |index: u64| pair.iter().find(|(at, _)| *at == index).map_or(zeros, |(_, node)| *node);
        let index = pair[0].0 / 2;
        (index, parent(&child(2 * index), &child(2 * index + 1)))
    });
    above.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{CommP, fr32};

    /// Aligned parts of a payload, with their own commitments, give the commitment of the whole.
    #[test]
    fn parts_join_to_the_whole() {
        // Sizes in groups, and where each begins.
        let parts = [(1u64, 0u64), (4, 4), (2, 10), (8, 16), (1, 31)];
        let mut payload = vec![0u8; 32 * fr32::GROUP_BYTES];
        let mut subtrees = Vec::new();
        for (n, (groups, at)) in parts.iter().enumerate() {
            let bytes = *groups as usize * fr32::GROUP_BYTES;
            let part = &mut payload[*at as usize * fr32::GROUP_BYTES..][..bytes];
            part.fill(n as u8 + 1);
            let mut commp = CommP::new();
            commp.update(part).unwrap();
            let piece = commp.finish().unwrap();
            let place = Place { height: piece.size.height(), index: at / groups };
            subtrees.push((place, *piece.cid.commitment()));
        }
        let mut whole = CommP::new();
        whole.update(&payload).unwrap();
        let whole = whole.finish().unwrap();
        subtrees.reverse();
        let tree = Tree::new(whole.size, subtrees.clone()).unwrap();
        assert_eq!(tree.piece(), Some(whole.cid));
        for (place, root) in subtrees {
            let up = tree.path(place).into_iter().zip(place.height..).fold(root, |node, (beside, height)| {
                let is_left = place.index >> (height - place.height) & 1 == 0;
                if is_left { parent(&node, &beside) } else { parent(&beside, &node) }
            });
            assert_eq!(Some(&up), tree.piece().as_ref().map(PieceCid::commitment));
        }
    }

    #[test]
    fn subtrees_outside_and_inside_each_other_are_refused() {
        let size = PaddedSize::from_height(4).unwrap();
        let tree = |places: &[(u8, u64)]| {
            Tree::new(
                size,
                places.iter().map(|(height, index)| (Place { height: *height, index: *index }, [0; 32])),
            )
        };
        assert!(tree(&[(4, 0)]).is_ok());
        assert!(tree(&[(3, 0), (3, 1)]).is_ok());
        for (what, places) in [
            ("outside", &[(4, 1)][..]),
            ("outside below", &[(0, 16)]),
            ("higher than the tree", &[(5, 0)]),
            ("far higher", &[(255, 0)]),
            ("far outside", &[(0, u64::MAX)]),
            ("twice", &[(2, 1), (2, 1)]),
            ("one inside another", &[(3, 1), (1, 5)]),
        ] {
            assert!(tree(places).is_err(), "{what} was accepted");
        }
    }

    proptest! {
        #[test]
        fn leaves_give_the_tree(leaves in prop::collection::btree_map(0..64u64, any::<[u8; 32]>(), 0..64)) {
            let size = PaddedSize::from_height(6).unwrap();
            let tree = Tree::new(size, leaves.iter().map(|(index, leaf)| (Place { height: 0, index: *index }, *leaf))).unwrap();
            let mut row: Vec<Node> = (0..64).map(|n| leaves.get(&n).copied().unwrap_or_default()).collect();
            while row.len() > 1 {
                row = row.as_chunks().0.iter().map(|[left, right]| parent(left, right)).collect();
            }
            let root = row[0];
            prop_assert_eq!(tree.piece(), PieceCid::from_commitment(root));
        }
    }
}
