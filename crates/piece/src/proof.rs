//! Proofs that a segment is in an aggregate, and that its index says so (FRC-0058).
//!
//! A proof is two ways up the tree of the aggregate: from the segment's root, and from its entry in the index. Both must
//! end in the same commitment of the same size. Who verifies gives what they know, the commitment and the size of their
//! segment, and gets the piece that must be in a deal; that it is in one is for the chain to say.

use crate::node::{Node, parent, truncated_sha256};
use crate::segment::{Index, Segment, entry_place, max_entries};
use crate::tree::{Place, Tree};
use crate::{Error, PaddedSize, PieceCid};

/// A piece that is made of segments and their index.
#[derive(Debug, Clone)]
pub struct Aggregate {
    index: Index,
    tree: Tree,
    piece: PieceCid,
}

impl Aggregate {
    /// The aggregate of these segments with their index at its end and zeros between.
    ///
    /// # Errors
    /// [`Error::Segments`].
    pub fn new(size: PaddedSize, segments: &[Segment]) -> Result<Self, Error> {
        Self::with_fillers(size, segments, &[])
    }

    /// The same where what lies between the segments is not zeros: aligned parts of it, which are not in the index.
    ///
    /// # Errors
    /// [`Error::Segments`]; [`Error::Place`] where a filler lies on something else.
    pub fn with_fillers(size: PaddedSize, segments: &[Segment], fillers: &[Segment]) -> Result<Self, Error> {
        let index = Index::new(size, segments)?;
        let fillers = fillers.iter().map(|filler| (filler.place(), *filler.piece.commitment()));
        let roots = segments.iter().map(|segment| (segment.place(), *segment.piece.commitment()));
        let entries = index.entries().iter().filter_map(|(number, segment)| {
            entry_place(size, *number).map(|place| (place, truncated_sha256(&segment.entry())))
        });
        let tree = Tree::new(size, roots.chain(entries).chain(fillers))?;
        let piece = tree.piece().ok_or_else(|| Error::Segments("the root is no commitment".into()))?;
        Ok(Self { index, tree, piece })
    }

    /// Its commitment.
    pub fn piece(&self) -> PieceCid {
        self.piece
    }

    /// Its size.
    pub fn size(&self) -> PaddedSize {
        self.index.of()
    }

    /// Its index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Proves the segment with this number in the index. `None` where there is none.
    pub fn prove(&self, number: usize) -> Option<InclusionProof> {
        let (entry, segment) = self.index.entries().get(number)?;
        let way = |place: Place| Way { index: place.index, beside: self.tree.path(place) };
        Some(InclusionProof { segment: way(segment.place()), entry: way(entry_place(self.size(), *entry)?) })
    }
}

/// A way up the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The number of its first node among those of its level.
    pub index: u64,
    /// The node beside each, from below.
    pub beside: Vec<[u8; 32]>,
}

impl Way {
    /// The root it leads to. `None` where the way does not end at a root: it is too long, or its index too high.
    fn root(&self, from: Node) -> Option<Node> {
        let levels = u32::try_from(self.beside.len()).ok()?;
        if levels > u32::from(PaddedSize::MAX_HEIGHT) || self.index >> levels != 0 {
            return None;
        }
        let step = |node: Node, (level, beside): (u32, &Node)| {
            if self.index >> level & 1 == 0 { parent(&node, beside) } else { parent(beside, &node) }
        };
        Some((0..).zip(&self.beside).fold(from, step))
    }
}

/// Why a proof proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// A way that does not end at the root of a piece.
    #[error("a way of the proof is too long, or does not begin where it says")]
    Way,
    /// The ways end at different commitments or sizes.
    #[error("the segment and its entry are not in the same piece")]
    Different,
    /// The entry stands outside of the index, or the segment inside of it.
    #[error("the entry is not in the index, or the segment is not before it")]
    Position,
}

/// A proof that a segment is in an aggregate and in its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InclusionProof {
    /// From the segment's root.
    pub segment: Way,
    /// From its entry in the index.
    pub entry: Way,
}

impl InclusionProof {
    /// The aggregate in which this proves the segment with this commitment and size to be.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify(&self, piece: PieceCid, size: PaddedSize) -> Result<(PieceCid, PaddedSize), ProofError> {
        let levels = u8::try_from(self.segment.beside.len()).map_err(|_| ProofError::Way)?;
        let height = size.height().checked_add(levels).ok_or(ProofError::Way)?;
        let of = PaddedSize::from_height(height).ok_or(ProofError::Way)?;
        let root = self.segment.root(*piece.commitment()).ok_or(ProofError::Way)?;
        // The index is within its level, so this stays below the aggregate's size.
        let segment = Segment { piece, offset: self.segment.index * size.bytes(), size };
        let entry_root = self.entry.root(truncated_sha256(&segment.entry())).ok_or(ProofError::Way)?;
        // An entry is at height 1.
        if entry_root != root || self.entry.beside.len() + 1 != usize::from(height) {
            return Err(ProofError::Different);
        }
        let first = entry_place(of, 0).map_or(u64::MAX, |place| place.index);
        let in_index = self.entry.index.checked_sub(first).is_some_and(|number| number < max_entries(of));
        if !in_index || Segment::read(&segment.entry(), of).is_err() {
            return Err(ProofError::Position);
        }
        let aggregate = PieceCid::from_commitment(root).ok_or(ProofError::Way)?;
        Ok((aggregate, of))
    }
}
