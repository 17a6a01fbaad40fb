//! Links of every codec, and the walk over a DAG. (skeleton)

use bytes::Bytes;
pub use floe_core::Block;
use floe_core::Cid;

/// What a pin may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Most unique blocks.
    pub max_blocks: u64,
    /// Most bytes.
    pub max_bytes: u64,
    /// Deepest link path from the root.
    pub max_depth: u32,
}

/// Why a DAG cannot be walked. All are final for the pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// A link to a codec that nobody can walk.
    #[error("{cid} has the codec 0x{codec:x}, which cannot be walked")]
    Codec {
        /// The block.
        cid: Cid,
        /// Its codec.
        codec: u64,
    },
    /// A block that is not what its codec says.
    #[error("{cid} is malformed: {reason}")]
    Malformed {
        /// The block.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
    /// A link with a CID that is not accepted.
    #[error("{parent} links to a CID that is not accepted: {reason}")]
    Link {
        /// The linking block.
        parent: Cid,
        /// What is wrong.
        reason: String,
    },
    /// Over budget.
    #[error("the DAG has more than {limit} {what}")]
    Budget {
        /// `blocks`, `bytes` or `levels`.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A checkpoint that does not decode.
    #[error("the saved frontier is damaged: {0}")]
    Frontier(String),
}

/// What the walk needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Look at this CID: claim it in the store and answer with [`Walk::seen`], [`Walk::present`],
    /// [`Walk::block`] or [`Walk::waiting`]. Never an identity CID (those are walked inside).
    Visit(Cid),
    /// Read this block again from the store and answer with [`Walk::reloaded`]: its links were dropped to bound memory.
    Reload(Cid),
}

/// A walk over a DAG by unique CID: sans-IO, iterative, memory bounded whatever the DAG's shape.
pub struct Walk {}

impl Walk {
    /// Begins at the root.
    pub fn new(_root: Cid, _budget: Budget) -> Result<Self, WalkError> {
        todo!()
    }
    /// Goes on from a checkpoint; `blocks` and `bytes` are what the manifest already holds.
    pub fn resume(_frontier: &[u8], _budget: Budget, _blocks: u64, _bytes: u64) -> Result<Self, WalkError> {
        todo!()
    }
    /// Everything needed to go on later. CIDs being waited for are part of it.
    pub fn checkpoint(&self) -> Bytes {
        todo!()
    }
    /// Lowers or raises the byte budget (a quota changed).
    pub fn set_max_bytes(&mut self, _max_bytes: u64) {
        todo!()
    }
    /// The next thing to do; `None` when all is visited or waits for blocks.
    pub fn next(&mut self) -> Option<Next> {
        todo!()
    }
    /// The visited CID was met before.
    pub fn seen(&mut self, _cid: &Cid) {
        todo!()
    }
    /// Whether a present block of this CID has to be read for its links (false for raw and other leaves).
    pub fn needs_data(_cid: &Cid) -> bool {
        todo!()
    }
    /// The visited CID is here, has no links to scan, and this many bytes.
    pub fn present(&mut self, _cid: &Cid, _len: u32) -> Result<(), WalkError> {
        todo!()
    }
    /// The visited CID is being fetched; [`Walk::block`] follows.
    pub fn waiting(&mut self, _cid: &Cid) {
        todo!()
    }
    /// A block came, from the store or from a peer: counted, its links scanned.
    pub fn block(&mut self, _block: &Block) -> Result<(), WalkError> {
        todo!()
    }
    /// The answer to [`Next::Reload`].
    pub fn reloaded(&mut self, _block: &Block) -> Result<(), WalkError> {
        todo!()
    }
    /// How many CIDs are waited for.
    pub fn pending(&self) -> usize {
        todo!()
    }
    /// Whether every block was visited and came.
    pub fn is_done(&self) -> bool {
        todo!()
    }
}
