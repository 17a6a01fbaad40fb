//! Links of every codec, and the walk over a DAG.
//!
//! [`links`] reads the links of one block; [`Walk`] decides which CID to look at next. Neither knows where blocks
//! come from. Path resolution, UnixFS reading and CAR files have their place here and are not written yet.
//!
//! Nothing in this crate recurses over data, allocates by a length it was told, or panics on bytes.

mod codec;
mod unixfs;
mod walk;

use floe_core::Cid;

pub use codec::{MAX_NESTING, Malformed, Node, PbLink, bears_links, is_known, links};
pub use floe_core::Block;
pub use unixfs::MAX_FANOUT;
pub use walk::{MAX_LINKS_HELD, Walk};

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
