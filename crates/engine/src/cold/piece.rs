//! The bytes of a piece, put together from rows and packs each time somebody reads them.
//!
//! ```text
//! CAR header │ manifest │ sections of a pin, fillers │ … │ zeros │ index      aligned: each pin from a multiple of its size
//! CAR header │ manifest │ sections of a pin │ sections │ … (│ zeros)          tight
//! ```
//! The same rows give the same bytes, for ever: what was signed is their commitment. Only headers and section heads are in
//! memory, about 55 bytes a section; blocks are read from the packs as they are sent, and each is checked against its hash.
//! So a whole piece is read in constant memory, and a range of it costs what is in the range.
//!
//! Pieces that are read are kept open, [`limits::OPEN_PIECE_SECTIONS`] of sections in all; who would be above it is told to
//! come back. A crash loses nothing: nothing here is stored.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use floe_blockstore::BlockStore;
use floe_core::{AggregateState, Cid, PaddedSize, PieceCid};
use floe_dag::car::{CarError, Layout, Part};
use floe_piece::segment::{Index, Segment};
use floe_piece::{Aggregate, fr32};
use floe_records::Records;
use floe_records::cold::{AggregateRow, SectionRow, SegmentRow};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use super::manifest;
use crate::{Engine, limits};

/// Why a piece cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PieceError {
    /// A block is not here, or damaged.
    #[error(
        "the block {cid} at byte {at} of the piece is not here, or damaged: it is fetched again where somebody has it"
    )]
    Missing {
        /// Which.
        cid: Cid,
        /// Where it is in the piece.
        at: u64,
    },
    /// Too much is open.
    #[error("too many pieces are being read: come back later")]
    Busy,
    /// Its bytes are not settled.
    #[error("the aggregate is not packed yet")]
    NotPacked,
    /// The rows do not give the piece that was packed.
    #[error(
        "the rows of aggregate {aggregate} do not give its piece any more: {what}; restore them from a backup"
    )]
    Changed {
        /// Which.
        aggregate: Uuid,
        /// What differs.
        what: String,
    },
    /// From the rows.
    #[error(transparent)]
    Records(#[from] floe_records::Error),
    /// From the block store.
    #[error(transparent)]
    Blocks(#[from] floe_blockstore::Error),
}

/// The bytes of a piece, laid out.
pub(super) struct Shape {
    id: Uuid,
    /// Bytes in all: what a provider pulls.
    pub(super) len: u64,
    pub(super) size: PaddedSize,
    pub(super) root: Cid,
    manifest: Bytes,
    layout: Layout,
    /// Where the index begins, and its bytes up to the last entry; zeros follow.
    index: Option<(u64, Bytes)>,
    /// Where the first section of each segment begins, in the order in which they lie.
    pub(super) starts: Vec<u64>,
    /// Counted against what may be open.
    _room: Option<OwnedSemaphorePermit>,
}

/// Puts a shape together, section by section.
struct Builder {
    id: Uuid,
    align: bool,
    root: Cid,
    manifest: Bytes,
    layout: Layout,
    starts: Vec<u64>,
}

impl Builder {
    /// Begins with the header and the manifest of these segments, which are in the order in which they lie.
    fn new(row: &AggregateRow, segments: &[SegmentRow]) -> Result<Self, PieceError> {
        let changed = |what: &dyn std::fmt::Display| changed(row.id, what);
        let manifest = manifest::block(row.id, segments).map_err(|error| changed(&error))?;
        let root = *manifest.cid();
        let mut layout = Layout::new(&[root]).map_err(|error| changed(&error))?;
        layout.push(&root, manifest.data().len()).map_err(|error| changed(&error))?;
        Ok(Self {
            id: row.id,
            align: row.align,
            root,
            manifest: manifest.into_data(),
            layout,
            starts: Vec::new(),
        })
    }

    /// Begins a segment. Returns where its first section will be.
    fn begin(&mut self, segment: &SegmentRow) -> Result<u64, PieceError> {
        if self.align && segment.place > 0 {
            self.fill_to(payload(segment.place))?;
        }
        self.starts.push(self.layout.len());
        Ok(self.layout.len())
    }

    /// The next sections of the segment.
    fn push(&mut self, sections: &[SectionRow]) -> Result<(), PieceError> {
        for section in sections {
            self.layout.push(&section.cid, section.data_bytes as usize).map_err(|e| self.unfit(&e))?;
        }
        Ok(())
    }

    /// Ends a segment; but the last, which zeros fill.
    fn end(&mut self, segment: &SegmentRow) -> Result<(), PieceError> {
        if self.align { self.fill_to(payload(segment.place + segment.size.bytes())) } else { Ok(()) }
    }

    fn fill_to(&mut self, end: u64) -> Result<(), PieceError> {
        let gap = end
            .checked_sub(self.layout.len())
            .ok_or_else(|| changed(self.id, &format!("a segment does not end before byte {end}")))?;
        self.layout.fill(gap).map_err(|e| self.unfit(&e))
    }

    fn unfit(&self, error: &CarError) -> PieceError {
        changed(self.id, error)
    }

    /// The whole, as a piece of this size. `index` are the segments, where they were hashed.
    fn finish(self, size: PaddedSize, index: &[Segment]) -> Result<Shape, PieceError> {
        let Self { id, align, root, manifest, layout, starts } = self;
        let (len, index) = if align {
            let range = Index::payload_range(size)
                .filter(|range| layout.len() <= range.start)
                .ok_or_else(|| changed(id, &format!("{} bytes leave no room for an index", layout.len())))?;
            (size.unpadded_bytes(), Some((range.start, index_bytes(index))))
        } else {
            (tight_bytes(layout.len(), size).ok_or_else(|| changed(id, &"they do not fit in it"))?, None)
        };
        Ok(Shape { id, len, size, root, manifest, layout, index, starts, _room: None })
    }
}

/// Bytes that make a piece of exactly this size of a CAR that fits in it: no more zeros than that takes.
pub(super) fn tight_bytes(car: u64, size: PaddedSize) -> Option<u64> {
    let half = PaddedSize::from_bytes(size.bytes() / 2).map_or(0, |half| half.unpadded_bytes() + 1);
    let bytes = car.max(half);
    (PaddedSize::of_payload(bytes) == Some(size)).then_some(bytes)
}

/// The entries of an index, as payload: what Fr32 pads to them. Behind them are zeros.
fn index_bytes(segments: &[Segment]) -> Bytes {
    let mut padded: Vec<u8> = segments.iter().flat_map(Segment::entry).collect();
    padded.resize(padded.len().next_multiple_of(fr32::PADDED_GROUP_BYTES), 0);
    let (groups, _) = padded.as_chunks::<{ fr32::PADDED_GROUP_BYTES }>();
    groups.iter().filter_map(fr32::unpad).flatten().collect()
}

/// Padded bytes as payload.
pub(super) fn payload(padded: u64) -> u64 {
    padded / fr32::PADDED_GROUP_BYTES as u64 * fr32::GROUP_BYTES as u64
}

pub(super) fn changed(aggregate: Uuid, what: &dyn std::fmt::Display) -> PieceError {
    PieceError::Changed { aggregate, what: what.to_string() }
}

/// The segments in the order in which they lie.
pub(super) fn in_order(mut segments: Vec<SegmentRow>) -> Vec<SegmentRow> {
    segments.sort_unstable_by_key(|segment| (segment.place, segment.start, segment.n));
    segments
}

impl Shape {
    /// Lays out an aggregate from its rows. Each of its segments is where the rows say.
    pub(super) async fn load(
        records: &Records,
        row: &AggregateRow,
        size: PaddedSize,
        segments: &[SegmentRow],
    ) -> Result<Self, PieceError> {
        let mut builder = Builder::new(row, segments)?;
        for (n, segment) in segments.iter().enumerate() {
            let start = builder.begin(segment)?;
            if segment.commitment.is_some() && start != segment.start {
                return Err(changed(row.id, &format!("segment {} begins at {start}", segment.n)));
            }
            let mut chunk = 0;
            while let Some(sections) = records.sections(row.id, segment.n, chunk).await? {
                builder.push(&sections)?;
                chunk += 1;
            }
            if n + 1 < segments.len() {
                builder.end(segment)?;
            }
        }
        builder.finish(size, &indexed(segments))
    }

    /// The segment, by its number in the order in which they lie, that this byte is in; what lies behind a segment counts to
    /// it.
    pub(super) fn segment_at(&self, at: u64) -> Option<usize> {
        self.starts.partition_point(|start| *start <= at).checked_sub(1)
    }

    /// What is in a range, as far as one read goes: at least [`limits::PIECE_READ_BYTES`], or to its end. Blocks on the
    /// disk.
    pub(super) fn read(&self, blocks: &BlockStore, range: Range<u64>) -> Result<Vec<Bytes>, PieceError> {
        let mut read = Vec::new();
        let (mut at, end) = (range.start, range.end.min(self.len));
        let enough = at.saturating_add(limits::PIECE_READ_BYTES);
        for part in self.layout.parts(at..end) {
            let bytes = self.part(blocks, &part, at)?;
            at += bytes.len() as u64;
            read.push(bytes);
            if at >= enough {
                return Ok(read);
            }
        }
        while at < end && at < enough {
            let bytes = self.behind(at, end);
            at += bytes.len() as u64;
            read.push(bytes);
        }
        Ok(read)
    }

    fn part(&self, blocks: &BlockStore, part: &Part<'_>, at: u64) -> Result<Bytes, PieceError> {
        match part {
            Part::Bytes(bytes) => Ok(Bytes::copy_from_slice(bytes)),
            Part::Zeros(bytes) => Ok(zeros(*bytes as u64)),
            Part::Block { cid, range } if *cid == self.root => Ok(self.manifest.slice(range.clone())),
            Part::Block { cid, range } => {
                let missing = || PieceError::Missing { cid: *cid, at };
                let data = blocks.get(cid)?.ok_or_else(missing)?.into_data();
                // A block of another length than the layout's would have another hash.
                data.get(range.clone()).ok_or_else(missing)?;
                Ok(data.slice(range.clone()))
            }
        }
    }

    /// Bytes behind the CAR: zeros, the index, zeros.
    fn behind(&self, at: u64, end: u64) -> Bytes {
        let Some((start, index)) = &self.index else { return zeros(end - at) };
        if at < *start {
            return zeros(end.min(*start) - at);
        }
        let from = usize::try_from(at - start).unwrap_or(usize::MAX).min(index.len());
        let to = usize::try_from(end - start).unwrap_or(usize::MAX).min(index.len());
        if from < to { index.slice(from..to) } else { zeros(end - at) }
    }
}

/// Zeros, no more than one read has.
fn zeros(bytes: u64) -> Bytes {
    static ZEROS: [u8; limits::PIECE_READ_BYTES as usize] = [0; limits::PIECE_READ_BYTES as usize];
    Bytes::from_static(&ZEROS[..bytes.min(limits::PIECE_READ_BYTES) as usize])
}

/// The segments that are in the index.
pub(super) fn indexed(segments: &[SegmentRow]) -> Vec<Segment> {
    let hashed = |segment: &SegmentRow| {
        Some(Segment { piece: segment.commitment?, offset: segment.place, size: segment.size })
    };
    segments.iter().filter_map(hashed).collect()
}

/// The commitments of what lies between segments, as a row has them: for each, its place, height and commitment.
pub(super) fn write_fillers(fillers: &[Segment]) -> Vec<u8> {
    let mut out = Vec::with_capacity(FILLER_BYTES * fillers.len());
    for filler in fillers {
        out.extend(filler.offset.to_le_bytes());
        out.push(filler.size.height());
        out.extend(filler.piece.commitment());
    }
    out
}

const FILLER_BYTES: usize = 8 + 1 + 32;

fn read_fillers(row: &AggregateRow) -> Result<Vec<Segment>, PieceError> {
    let (entries, rest) = row.fillers.as_chunks::<FILLER_BYTES>();
    let read = |entry: &[u8; FILLER_BYTES]| {
        let (offset, rest) = entry.split_first_chunk::<8>()?;
        let (height, root) = rest.split_first()?;
        let piece = PieceCid::from_commitment(root.try_into().ok()?)?;
        Some(Segment { piece, offset: u64::from_le_bytes(*offset), size: PaddedSize::from_height(*height)? })
    };
    let fillers: Option<Vec<Segment>> = entries.iter().map(read).collect();
    fillers.filter(|_| rest.is_empty()).ok_or_else(|| changed(row.id, &"its fillers cannot be read"))
}

/// See [`Engine::piece_tree`].
async fn tree(records: &Records, id: Uuid) -> Result<Aggregate, PieceError> {
    let row = records.aggregate(id).await?;
    let (Some(piece), Some(size), true) = (row.piece, row.size, row.align) else {
        return Err(PieceError::NotPacked);
    };
    let segments = in_order(records.segments(id).await?);
    let tree = Aggregate::with_fillers(size, &indexed(&segments), &read_fillers(&row)?)
        .map_err(|error| changed(id, &error))?;
    if tree.piece() == piece { Ok(tree) } else { Err(changed(id, &"they hash to another piece")) }
}

/// A packed aggregate, to be read. Cheap to clone.
#[derive(Clone)]
pub struct OpenPiece {
    blocks: BlockStore,
    shape: Arc<Shape>,
    piece: PieceCid,
}

impl std::fmt::Debug for OpenPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenPiece").field("piece", &self.piece).finish_non_exhaustive()
    }
}

impl OpenPiece {
    /// Bytes in all: what a provider pulls. The same each time, as are the bytes.
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub fn len(&self) -> u64 {
        self.shape.len
    }

    /// What its bytes hash to.
    pub fn piece(&self) -> PieceCid {
        self.piece
    }

    /// What is in a range, as far as one read goes: a MiB or more, unless the range is shorter. Dropping the future is safe.
    ///
    /// # Errors
    /// [`PieceError::Missing`], [`PieceError::Blocks`]. A damaged block is fetched again meanwhile.
    pub async fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, PieceError> {
        let (shape, blocks) = (Arc::clone(&self.shape), self.blocks.clone());
        let read = tokio::task::spawn_blocking(move || shape.read(&blocks, range)).await;
        read.map_err(|_| floe_blockstore::Error::Closed)?
    }
}

impl Engine {
    /// A packed aggregate, to be read.
    ///
    /// # Errors
    /// [`PieceError`].
    pub async fn open_piece(&self, aggregate: Uuid) -> Result<OpenPiece, PieceError> {
        let shape = self.ctx.pieces.get(&self.ctx.records, aggregate).await?;
        let piece = self.ctx.records.aggregate(aggregate).await?.piece.ok_or(PieceError::NotPacked)?;
        Ok(OpenPiece { blocks: self.ctx.blocks.clone(), shape, piece })
    }

    /// A packed aggregate as a tree, for inclusion proofs of its segments.
    ///
    /// # Errors
    /// [`PieceError::NotPacked`], also where its segments are not aligned: those have no proofs.
    pub async fn piece_tree(&self, aggregate: Uuid) -> Result<Aggregate, PieceError> {
        tree(&self.ctx.records, aggregate).await
    }
}

/// Pieces that are open, the last read last.
pub(crate) struct Pieces {
    open: Mutex<Vec<Arc<Shape>>>,
    /// Thousands of sections that may be open.
    room: Arc<Semaphore>,
    /// One is laid out at a time.
    loading: tokio::sync::Mutex<()>,
}

impl Pieces {
    pub(crate) fn new() -> Self {
        Self {
            open: Mutex::default(),
            room: Arc::new(Semaphore::new(limits::OPEN_PIECE_SECTIONS / limits::SECTIONS_OF_ROOM)),
            loading: tokio::sync::Mutex::new(()),
        }
    }

    fn find(&self, id: Uuid) -> Option<Arc<Shape>> {
        let mut open = self.open.lock();
        let at = open.iter().position(|shape| shape.id == id)?;
        let shape = open.remove(at);
        open.push(Arc::clone(&shape));
        Some(shape)
    }

    /// A packed aggregate, laid out.
    pub(super) async fn get(&self, records: &Records, id: Uuid) -> Result<Arc<Shape>, PieceError> {
        if let Some(shape) = self.find(id) {
            return Ok(shape);
        }
        let _one_at_a_time = self.loading.lock().await;
        if let Some(shape) = self.find(id) {
            return Ok(shape);
        }
        let row = records.aggregate(id).await?;
        let (Some(size), Some(root)) = (row.size, row.root) else { return Err(PieceError::NotPacked) };
        debug_assert_ne!(row.state, AggregateState::Open, "what is open has no piece");
        let segments = in_order(records.segments(id).await?);
        let room = self.room(&segments)?;
        let mut shape = Shape::load(records, &row, size, &segments).await?;
        if shape.root != root || shape.len != row.car_bytes {
            return Err(changed(id, &"they give another CAR"));
        }
        shape._room = Some(room);
        let shape = Arc::new(shape);
        let mut open = self.open.lock();
        open.push(Arc::clone(&shape));
        if open.len() > limits::OPEN_PIECES {
            open.remove(0);
        }
        Ok(shape)
    }

    /// Makes room for one more: those that nobody reads go first, the longest unread before the others.
    fn room(&self, segments: &[SegmentRow]) -> Result<OwnedSemaphorePermit, PieceError> {
        let sections: u64 = segments.iter().map(|segment| segment.part.sections).sum();
        let units = (sections as usize).div_ceil(limits::SECTIONS_OF_ROOM).max(1);
        let all = limits::OPEN_PIECE_SECTIONS / limits::SECTIONS_OF_ROOM;
        let units = u32::try_from(units.min(all)).unwrap_or(u32::MAX);
        loop {
            if let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(units) {
                return Ok(permit);
            }
            let mut open = self.open.lock();
            let Some(unread) = open.iter().position(|shape| Arc::strong_count(shape) == 1) else {
                limits::hit("open_piece_sections");
                return Err(PieceError::Busy);
            };
            open.remove(unread);
        }
    }
}
