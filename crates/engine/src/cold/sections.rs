//! The blocks of a DAG in the order in which a CAR has them: depth first, each CID once, from what is here.
//!
//! The order depends on the DAG alone, so walks of the same DAG agree: the one that measures it, those that pack its parts,
//! and that of a node that was restored. Memory is bounded as the walk's is; what was met before is in a set that spills.
//! Calls block on the disk.

use floe_blockstore::{BlockStore, CidSet};
use floe_core::Cid;
use floe_dag::car::section_len;
use floe_dag::{Budget, Next, Walk, WalkError};
use floe_records::cold::{LotPart, SectionRow};
use uuid::Uuid;

use crate::limits;

/// Why a DAG cannot be packed now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// A block is not here, or damaged.
    #[error("the block {0} is not here, or damaged: it is fetched again where somebody has it")]
    Missing(Cid),
    /// It is not as it was when it was measured.
    #[error("the DAG has other blocks than when it was measured")]
    Changed,
    /// It would take too many pieces.
    #[error("the DAG makes more than {} parts: set aggregate.target higher", limits::PARTS_PER_DAG)]
    TooManyParts,
    /// It cannot be walked.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The block store refused.
    #[error(transparent)]
    Store(#[from] floe_blockstore::Error),
}

/// A walk over the sections of a DAG.
pub(super) struct Sections {
    blocks: BlockStore,
    walk: Walk,
    met: CidSet,
}

impl Sections {
    /// Begins at the root. `id` names the walk: one at a time.
    pub(super) fn new(blocks: &BlockStore, id: Uuid, root: &Cid) -> Result<Self, Trouble> {
        // It is pinned, so it was within the bounds of a pin.
        let budget = Budget { max_blocks: u64::MAX, max_bytes: u64::MAX, max_depth: u32::MAX };
        Ok(Self {
            walk: Walk::new(*root, budget)?,
            met: blocks.cid_set(id, limits::SCANNED_IN_MEMORY),
            blocks: blocks.clone(),
        })
    }

    /// The next section; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<SectionRow>, Trouble> {
        while let Some(next) = self.walk.next() {
            match next {
                Next::Reload(cid) => {
                    let block = self.blocks.get(&cid)?.ok_or(Trouble::Missing(cid))?;
                    self.walk.reloaded(&block)?;
                }
                Next::Visit(cid) if !self.met.insert(&cid)? => self.walk.seen(&cid),
                Next::Visit(cid) => return self.visit(cid).map(Some),
            }
        }
        Ok(None)
    }

    fn visit(&mut self, cid: Cid) -> Result<SectionRow, Trouble> {
        if Walk::needs_data(&cid) {
            let block = self.blocks.get(&cid)?.ok_or(Trouble::Missing(cid))?;
            self.walk.block(&block)?;
            let data_bytes = u32::try_from(block.data().len()).map_err(|_| Trouble::Changed)?;
            return Ok(SectionRow { cid, data_bytes });
        }
        let data_bytes = self.blocks.size(cid.hash())?.ok_or(Trouble::Missing(cid))?;
        self.walk.present(&cid, data_bytes)?;
        Ok(SectionRow { cid, data_bytes })
    }

    /// Passes over so many.
    pub(super) fn skip(&mut self, sections: u64) -> Result<(), Trouble> {
        for _ in 0..sections {
            self.next()?.ok_or(Trouble::Changed)?;
        }
        Ok(())
    }
}

/// Bytes of a section.
pub(super) fn bytes_of(section: &SectionRow) -> u64 {
    section_len(&section.cid, section.data_bytes as usize)
}

/// How a DAG is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// Bytes that go into a piece in one.
    pub(super) whole: u64,
    /// Bytes of each part, where it is more than that.
    pub(super) part: u64,
    /// Sections of a part.
    pub(super) sections: u64,
}

/// Measures a DAG: all of it, or the parts that it is cut into. A section that is larger than a part is a part of its own.
pub(super) fn measure(blocks: &BlockStore, id: Uuid, root: &Cid, cut: &Cut) -> Result<Vec<LotPart>, Trouble> {
    let mut sections = Sections::new(blocks, id, root)?;
    let mut whole = LotPart { part: 0, first: 0, sections: 0, bytes: 0 };
    let mut parts = vec![whole];
    while let Some(section) = sections.next()? {
        let bytes = bytes_of(&section);
        (whole.sections, whole.bytes) = (whole.sections + 1, whole.bytes + bytes);
        let n = parts.len() - 1;
        let LotPart { part, first, sections, bytes: held } = parts[n];
        if sections > 0 && (held + bytes > cut.part || sections == cut.sections) {
            parts.push(LotPart { part: part + 1, first: first + sections, sections: 1, bytes });
        } else {
            parts[n] = LotPart { part, first, sections: sections + 1, bytes: held + bytes };
        }
        if parts.len() > limits::PARTS_PER_DAG {
            return Err(Trouble::TooManyParts);
        }
    }
    let in_one = whole.bytes <= cut.whole && whole.sections <= cut.sections;
    Ok(if in_one { vec![whole] } else { parts })
}
