//! Links of a block, codec by codec.
//!
//! Each scanner is total: any bytes give links or an error, without recursion, without a buffer sized by a length
//! it read, and with memory bounded by the block. They look for links and check the form; they build no tree of
//! values, because a pin needs none.

mod cbor;
mod json;
mod pb;

use floe_core::cid::{self, code};
use floe_core::{Block, Cid};

pub use pb::{Node, PbLink};

use crate::WalkError;

/// Deepest nesting of dag-cbor and dag-json. boxo and js stop near here as well; beyond it lie only bombs.
pub const MAX_NESTING: usize = 1_024;

/// What a scanner says of malformed bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub(crate) String);

impl Malformed {
    fn new<T>(what: impl Into<String>) -> Result<T, Self> {
        Err(Self(what.into()))
    }
}

/// Whether blocks of this codec can carry links.
pub fn bears_links(codec: u64) -> bool {
    matches!(codec, code::DAG_PB | code::DAG_CBOR | code::DAG_JSON)
}

/// Whether this codec can be walked at all.
pub fn is_known(codec: u64) -> bool {
    bears_links(codec) || matches!(codec, code::RAW | code::JSON | code::CBOR)
}

/// The links of a block, in the order they stand in it, repeats included.
///
/// `raw`, `json` and `cbor` have none by definition: their bytes are opaque here, as they are to Kubo, so that
/// what somebody stored under them can be pinned whatever it holds.
///
/// # Errors
/// [`WalkError`]: the block is malformed, links to a CID that is not accepted, or has a codec nobody can walk.
pub fn links(block: &Block) -> Result<Vec<Cid>, WalkError> {
    let cid = block.cid();
    let scanned = match cid.codec() {
        code::RAW | code::JSON | code::CBOR => return Ok(Vec::new()),
        code::DAG_PB => pb_links(block.data()),
        code::DAG_CBOR => cbor::links(block.data()),
        code::DAG_JSON => json::links(block.data()),
        codec => return Err(WalkError::Codec { cid: *cid, codec }),
    };
    let found = scanned.map_err(|Malformed(reason)| WalkError::Malformed { cid: *cid, reason })?;
    found.into_iter().map(|link| check(cid, link)).collect()
}

fn pb_links(data: &[u8]) -> Result<Vec<Cid>, Malformed> {
    let node = Node::decode(data)?;
    crate::unixfs::check(&node)?;
    Ok(node.links.into_iter().map(|link| link.cid).collect())
}

fn check(parent: &Cid, link: Cid) -> Result<Cid, WalkError> {
    cid::check(link.hash()).map_err(|e| WalkError::Link { parent: *parent, reason: e.to_string() })?;
    Ok(link)
}

/// A CID in its binary form that fills `bytes`. Trust in its hash is checked by the caller.
fn binary_cid(bytes: &[u8]) -> Result<Cid, Malformed> {
    if bytes.len() > cid::MAX_CID_BYTES {
        return Malformed::new(format!("a link of {} bytes", bytes.len()));
    }
    match Cid::try_from(bytes) {
        Ok(cid) if cid.encoded_len() == bytes.len() => Ok(cid),
        Ok(_) => Malformed::new("bytes are left over behind a link"),
        Err(e) => Malformed::new(format!("a link is no CID: {e}")),
    }
}
