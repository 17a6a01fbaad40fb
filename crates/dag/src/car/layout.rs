//! What a CAR holds, known before its bytes are read.
//!
//! A deal's CAR is streamed from the packs whenever somebody asks for it, whole or a range of it, and each time it must be the
//! same bytes, for its commitment was signed. So it is laid out once, from CIDs and sizes alone, and any range of it
//! becomes [`Part`]s: bytes that the layout knows, and ranges of blocks to read.
//!
//! Where a segment has to begin at a certain byte, [`Layout::fill`] puts sections with blocks of zeros before it. Zeros
//! between sections would not do: an indexer takes a section of no bytes for the end.

use std::ops::Range;

use floe_core::block::MAX_BLOCK_BYTES;
use floe_core::cid::{self, code};
use floe_core::{Block, Cid};

use super::write::section_head;
use super::{CarError, header};
use crate::limits::{FILLER_BYTES, MAX_LAYOUT_SECTIONS};

/// The shortest section: the length, and the CID of a raw block of no bytes.
const SHORTEST_FILLER: u64 = 37;

/// The longest: three bytes of length, the CID, and [`FILLER_BYTES`].
const LONGEST_FILLER: u64 = 39 + FILLER_BYTES as u64;

/// The layout of a CAR of version 1. It holds about 55 bytes for each section.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The header, then what stands before the data of each section.
    heads: Vec<u8>,
    header_bytes: usize,
    sections: Vec<Entry>,
    len: u64,
    /// The CID of a whole filler, once there is one.
    filler: Option<Cid>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where the section begins in the file.
    start: u64,
    /// Where its head begins among the heads: at most 171 bytes each, so far below 4 GiB.
    head: u32,
    is_filler: bool,
}

/// A part of a CAR's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes of headers.
    Bytes(&'a [u8]),
    /// A range of a block's data.
    Block {
        /// The block.
        cid: Cid,
        /// Which of its bytes.
        range: Range<usize>,
    },
    /// So many zeros, of a block that fills a gap.
    Zeros(usize),
}

impl Part<'_> {
    /// Its bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Block { range, .. } => range.len(),
            Self::Zeros(bytes) => *bytes,
        }
    }

    /// Whether there are none, which no part of a range has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Layout {
    /// A CAR with these roots and no block yet.
    ///
    /// # Errors
    /// [`CarError::TooManyRoots`].
    pub fn new(roots: &[Cid]) -> Result<Self, CarError> {
        let heads = header::write(roots)?;
        let (header_bytes, len) = (heads.len(), heads.len() as u64);
        Ok(Self { heads, header_bytes, sections: Vec::new(), len, filler: None })
    }

    /// Bytes of the CAR.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: there is a header.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends the section of a block with so many bytes of data. Returns the range of its data in the file.
    ///
    /// # Errors
    /// [`CarError::Unfit`], [`CarError::TooManySections`]; the layout is as it was.
    pub fn push(&mut self, cid: &Cid, data_bytes: usize) -> Result<Range<u64>, CarError> {
        if data_bytes > MAX_BLOCK_BYTES || cid::check(cid.hash()).is_err() {
            return Err(CarError::Unfit { cid: *cid, bytes: data_bytes });
        }
        self.append(cid, data_bytes, false)
    }

    /// Fills the next `bytes` of the file with sections of zeros.
    ///
    /// # Errors
    /// [`CarError::Gap`] for 1 to 36 bytes, which no section fits in, and [`CarError::TooManySections`]; the layout is as it
    /// was.
    pub fn fill(&mut self, bytes: u64) -> Result<(), CarError> {
        if (1..SHORTEST_FILLER).contains(&bytes) {
            return Err(CarError::Gap(bytes));
        }
        // A gap that could not be filled in any case is told before a million sections are laid out for it.
        let fewest = bytes.div_ceil(LONGEST_FILLER);
        if fewest > (MAX_LAYOUT_SECTIONS - self.sections.len()) as u64 {
            return Err(CarError::TooManySections);
        }
        let end = self.len + bytes;
        let before = (self.heads.len(), self.sections.len(), self.len);
        while self.len < end {
            if let Err(error) = self.append_filler(filler_data(end - self.len)) {
                self.heads.truncate(before.0);
                self.sections.truncate(before.1);
                self.len = before.2;
                return Err(error);
            }
        }
        Ok(())
    }

    fn append_filler(&mut self, data: usize) -> Result<(), CarError> {
        let cid = match self.filler {
            Some(whole) if data == FILLER_BYTES => whole,
            _ => *Block::of(code::RAW, vec![0; data].into())
                .map_err(|source| CarError::Block { at: self.len, source })?
                .cid(),
        };
        self.filler = self.filler.or((data == FILLER_BYTES).then_some(cid));
        self.append(&cid, data, true).map(drop)
    }

    fn append(&mut self, cid: &Cid, data_bytes: usize, is_filler: bool) -> Result<Range<u64>, CarError> {
        if self.sections.len() == MAX_LAYOUT_SECTIONS {
            return Err(CarError::TooManySections);
        }
        let head = u32::try_from(self.heads.len()).map_err(|_| CarError::TooManySections)?;
        self.sections.push(Entry { start: self.len, head, is_filler });
        let bytes = section_head(cid, data_bytes);
        let data = self.len + bytes.len() as u64;
        self.heads.extend_from_slice(&bytes);
        self.len = data + data_bytes as u64;
        Ok(data..self.len)
    }

    /// The parts of a range of the file, in order; what is beyond the end is left out.
    pub fn parts(&self, range: Range<u64>) -> impl Iterator<Item = Part<'_>> {
        let range = range.start..range.end.min(self.len);
        let header = within(&range, 0, self.header_bytes).map(|bytes| Part::Bytes(&self.heads[bytes]));
        let first = self.sections.partition_point(|section| section.start <= range.start).saturating_sub(1);
        let touched = (first..self.sections.len()).take_while({
            let end = range.end;
            move |n| self.sections[*n].start < end
        });
        header.into_iter().chain(touched.flat_map(move |n| self.section_parts(n, &range)))
    }

    /// The parts of a range that lie in section `n`: of its head, and of its data.
    fn section_parts(&self, n: usize, range: &Range<u64>) -> impl Iterator<Item = Part<'_>> + use<'_> {
        let section = self.sections[n];
        let next = self.sections.get(n + 1);
        let head =
            &self.heads[section.head as usize..next.map_or(self.heads.len(), |next| next.head as usize)];
        let data_start = section.start + head.len() as u64;
        let data_bytes = (next.map_or(self.len, |next| next.start) - data_start) as usize;
        let of_head = within(range, section.start, head.len()).map(|bytes| Part::Bytes(&head[bytes]));
        let of_data = within(range, data_start, data_bytes).and_then(|bytes| match section.is_filler {
            true => Some(Part::Zeros(bytes.len())),
            false => Some(Part::Block { cid: cid_of(head)?, range: bytes }),
        });
        of_head.into_iter().chain(of_data)
    }
}

/// The part of `range` that lies in `len` bytes from `start`, counted from there.
fn within(range: &Range<u64>, start: u64, len: usize) -> Option<Range<usize>> {
    let from = range.start.saturating_sub(start).min(len as u64) as usize;
    let to = range.end.saturating_sub(start).min(len as u64) as usize;
    (from < to).then_some(from..to)
}

/// The CID in a head that this module wrote.
fn cid_of(head: &[u8]) -> Option<Cid> {
    let (_, cid) = unsigned_varint::decode::u64(head).ok()?;
    Cid::try_from(cid).ok()
}

/// Data of the next section that fills a gap of at least [`SHORTEST_FILLER`] bytes, so that what is left of the gap is
/// nothing, or again large enough.
fn filler_data(gap: u64) -> usize {
    const CID_BYTES: u64 = 36;
    // The length before a section of n bytes takes one byte more for each seven bits, so no section has 129 bytes, nor 16,386:
    // there, and where the rest would be too short, the shortest section goes first.
    let whole = FILLER_BYTES as u64;
    let len = |data: u64| {
        let section = CID_BYTES + data;
        section + u64::from(section.ilog2() / 7 + 1)
    };
    if gap >= len(whole) + SHORTEST_FILLER || gap == len(whole) {
        return FILLER_BYTES;
    }
    let exact =
        (1..=3).filter_map(|prefix| gap.checked_sub(CID_BYTES + prefix)).find(|data| len(*data) == gap);
    exact.filter(|data| *data <= whole).unwrap_or(0) as usize
}
