//! CAR files: blocks one after the other, each with its CID (version 1), and the envelope of version 2.
//!
//! ```text
//! version 1   length | {"roots": [..], "version": 1} , then for each block: length | CID | bytes
//! version 2   length | {"version": 2} | 40 bytes: characteristics, data offset and size, index offset
//!             zeros | a version 1 | an index, which is not read
//! ```
//!
//! - [`Decoder`] takes bytes in parts of any size and gives blocks, sans IO: of uploads, and of pieces that come back.
//!   [`Reader`] drives it from anything that is [`std::io::Read`].
//! - [`Writer`] writes blocks as they come. [`Layout`] says what a CAR will hold before its bytes are there: its exact length,
//!   where each section is, and the parts of any range of it. So a deal's CAR need not be kept: it is put together from
//!   the packs each time it is read, byte for byte the same, from the middle too.
//!
//! A file that a stranger gives is never trusted: each length is checked before it is waited for, nothing is sized by it,
//! each block is hashed, and an end inside a section is an error. Offsets in an index are never followed
//! (GHSA-9x4h-8wgm-8xfg, GHSA-f2gr-7299-487h).

mod decode;
mod header;
mod layout;
mod write;

pub use decode::{Decoder, Reader, Section, Zeros};
pub use layout::{Layout, Part};
pub use write::{Writer, section_len};

use floe_core::{BlockError, Cid};

use crate::limits::{MAX_CAR_HEADER_BYTES, MAX_CAR_ROOTS, MAX_CAR_SECTION_BYTES, MAX_LAYOUT_SECTIONS};

/// Why a CAR cannot be read or written. Offsets are from the file's first byte.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CarError {
    /// It ends inside of a header or a section: fetch it again.
    #[error("the CAR ends early, at byte {0}: it was cut off")]
    Truncated(u64),
    /// A length that is no varint in its shortest form.
    #[error("a length at byte {0} that is no number")]
    Length(u64),
    /// A header that is too long.
    #[error("a CAR header of {0} bytes; the most is {MAX_CAR_HEADER_BYTES}")]
    HeaderTooLarge(u64),
    /// A header that is no header.
    #[error("the CAR header is malformed: {0}")]
    Header(String),
    /// A version that is not 1 or 2, or version 2 inside of version 2.
    #[error("a CAR of version {0}; 1 and 2 can be read")]
    Version(u64),
    /// Too many roots.
    #[error("a CAR with more than {MAX_CAR_ROOTS} roots")]
    TooManyRoots,
    /// The envelope of a version 2 that cannot be.
    #[error("the header of this CARv2 cannot be: {0}")]
    V2(&'static str),
    /// A section that is too long.
    #[error("a section of {len} bytes at byte {at}; the most is {MAX_CAR_SECTION_BYTES}")]
    SectionTooLarge {
        /// Where.
        at: u64,
        /// How long it says it is.
        len: u64,
    },
    /// A section that reaches beyond the data of a CARv2.
    #[error("the section at byte {0} reaches beyond the data of the CARv2")]
    BeyondData(u64),
    /// A section of no bytes, where none may be.
    #[error("a section of no bytes at byte {0}")]
    EmptySection(u64),
    /// A section that does not begin with a CID.
    #[error("the section at byte {at} has no CID: {reason}")]
    Cid {
        /// Where.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// A block that is not what its CID says.
    #[error("the section at byte {at}: {source}")]
    Block {
        /// Where.
        at: u64,
        /// What is wrong.
        source: BlockError,
    },
    /// A gap that no section fits in.
    #[error("a gap of {0} bytes is too small for a section: move what follows to the next place")]
    Gap(u64),
    /// A block that no layout may hold.
    #[error("{cid} with {bytes} bytes cannot be in a CAR: it is too large or its hash is not accepted")]
    Unfit {
        /// Its CID.
        cid: Cid,
        /// Its bytes.
        bytes: usize,
    },
    /// Too many sections.
    #[error("a layout of more than {MAX_LAYOUT_SECTIONS} sections: make smaller aggregates")]
    TooManySections,
    /// Reading or writing failed.
    #[error("a CAR cannot be read or written: {0}")]
    Io(String),
}
