//! Packs what waits for Filecoin into pieces.
//!
//! ```text
//!   lot ──measure──> parts ──pack::next──> aggregate, open ──sections──> placed ──hash──> packed ──> the dealer
//!                      ^                        │ a block is missing
//!                      └────── given back ──────┘
//! ```
//! One aggregate is packed at a time. What goes into it is decided by `floe_core::pack` alone, from rows; the row that says
//! so protects the DAGs from its transaction on. Then the walk of each DAG writes down its sections, some thousand to a
//! transaction, and the bytes that providers will pull are read and hashed, once.
//!
//! A block that is missing or damaged costs its own pins their place and nobody else's: they wait again, with the reason,
//! while what read it has it fetched again. What is left is placed anew.
//!
//! Without a node of Filecoin nothing is packed: pins wait for one, and for company.
//!
//! Crash and stop: an open aggregate is gone on with from its rows. Sections that were written are kept where they are all
//! there; hashing begins anew. Nothing of it is seen before `packed`.

use std::collections::HashMap;
use std::sync::Arc;

use floe_core::pack::{self, Item, Placed, Rules};
use floe_core::{AggregateState, Timestamp};
use floe_records::cold::{
    AggregateRow, Lot, LotPart, NewAggregate, NewSegment, SectionRow, SegmentPlace, SegmentRow, Settled,
};
use uuid::Uuid;

use super::hash::{self, HashError, Hashed};
use super::piece::{self, PieceError, Shape, in_order};
use super::sections::{self, Cut, Sections, Trouble};
use super::{Dealing, Packing, manifest};
use crate::context::Context;
use crate::fetch::PAUSED;
use crate::limits;

const NAME: &str = "aggregator";

/// Why packing goes no further now.
#[derive(Debug, thiserror::Error)]
enum PackError {
    #[error(transparent)]
    Records(#[from] floe_records::Error),
    #[error(transparent)]
    Piece(#[from] PieceError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Trouble(#[from] Trouble),
    #[error("the aggregate {0} has more than a piece holds: its pins wait again")]
    TooLarge(Uuid),
    #[error("a thread of the aggregator failed")]
    Thread,
    #[error("{PAUSED}")]
    NoSpace,
    #[error("stopped")]
    Stopped,
}

impl Packing {
    pub(super) fn rules(&self) -> Rules {
        Rules {
            target: self.target,
            least: self.least,
            flush_after: u64::try_from(self.flush_after.as_millis()).unwrap_or(u64::MAX),
            align: self.align,
            most_items: limits::SEGMENTS_PER_AGGREGATE,
            most_sections: limits::SECTIONS_PER_AGGREGATE,
            head: manifest::HEAD,
        }
    }
}

/// Runs until the engine stops. `dealing` is told of each piece that is packed; without it nothing is.
pub(crate) async fn run(ctx: Arc<Context>, dealing: Option<Arc<Dealing>>) {
    let Some(dealing) = dealing else {
        ctx.board.state(NAME, "no node of Filecoin is configured", 0);
        return ctx.stop.cancelled().await;
    };
    let mut began = false;
    loop {
        let mut state = "waiting";
        let wait = match round(&ctx, &dealing, &mut began).await {
            Ok(()) => limits::COLD_POLL,
            Err(PackError::NoSpace) => {
                state = PAUSED;
                limits::COLD_POLL
            }
            Err(PackError::Stopped | PackError::Hash(HashError::Stopped)) => break,
            Err(error) => {
                tracing::warn!(%error, "packing failed, trying again: {error}");
                ctx.board.error(NAME, &error);
                limits::COLD_RETRY
            }
        };
        ctx.board.state(NAME, state, 0);
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => break,
            () = ctx.aggregate_due.notified() => {}
            () = ctx.clock.sleep(wait) => {}
        }
    }
    ctx.board.state(NAME, "stopped", 0);
}

/// All that there is to do now. What is packed takes rows, so nothing is while the disk has no space.
async fn round(ctx: &Arc<Context>, dealing: &Dealing, began: &mut bool) -> Result<(), PackError> {
    going(ctx)?;
    if !*began {
        ctx.records.measure_again(ctx.settings.cold.packing.rules().capacity()).await?;
        *began = true;
    }
    loop {
        if finish_open(ctx).await? {
            dealing.place_due.notify_one();
        }
        let measured = measure(ctx).await?;
        let begun = begin(ctx).await?;
        if measured == 0 && !begun {
            return Ok(());
        }
    }
}

fn going(ctx: &Context) -> Result<(), PackError> {
    match () {
        () if ctx.stop.is_cancelled() => Err(PackError::Stopped),
        () if ctx.blocks.is_read_only() => Err(PackError::NoSpace),
        () => Ok(()),
    }
}

/// Walks DAGs that came since. Says how many there were.
async fn measure(ctx: &Arc<Context>) -> Result<usize, PackError> {
    let lots = ctx.records.lots_to_measure(limits::LOTS_MEASURED).await?;
    for lot in &lots {
        going(ctx)?;
        ctx.board.state(NAME, format!("measuring {}", lot.root), lots.len() as u64);
        match walk(ctx, lot).await {
            Ok(parts) => {
                let capacity = ctx.settings.cold.packing.rules().capacity();
                ctx.records.lot_measured(lot.id, capacity, parts).await?;
            }
            Err(PackError::Trouble(trouble)) => {
                let due = later(ctx, lot.attempts);
                tracing::warn!(root = %lot.root, %trouble, "{} is not packed now: {trouble}", lot.root);
                ctx.records.put_off_lot(lot.id, trouble.to_string(), due).await?;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(lots.len())
}

async fn walk(ctx: &Arc<Context>, lot: &Lot) -> Result<Vec<LotPart>, PackError> {
    let (blocks, id, root) = (ctx.blocks.clone(), lot.id, lot.root);
    let rules = ctx.settings.cold.packing.rules();
    let cut = Cut { whole: rules.capacity(), part: rules.cut(), sections: rules.most_sections };
    on_a_thread(move || sections::measure(&blocks, id, &root, &cut)).await
}

/// When what failed so often is tried again.
fn later(ctx: &Context, attempts: u32) -> Timestamp {
    let wait = limits::COLD_RETRY.saturating_mul(1 << attempts.min(16)).min(limits::COLD_RETRY_MOST);
    ctx.clock.now().after(crate::backoff::jittered(wait, ctx.random()))
}

/// What names an item of a plan: the lot, and which part of it.
pub(super) type Key = (Uuid, u32);

/// What waits, as items of a plan, and what a segment of each would hold.
pub(super) fn items(lots: &[(Lot, u64)]) -> Vec<(Item<Key>, LotPart)> {
    let first = |lot: &Lot| lot.todo.len().min(limits::PARTS_PLANNED);
    let parts = lots
        .iter()
        .flat_map(|(lot, turn)| lot.todo[..first(lot)].iter().map(move |part| (lot, *turn, *part)));
    let item = |(lot, turn, part): (&Lot, u64, LotPart)| {
        let item = Item {
            key: (lot.id, part.part),
            account: lot.account,
            turn,
            // What failed counts as having come when it is tried again: else it would make a piece due at each attempt, and
            // take along all that came since.
            since: if lot.attempts > 0 { lot.due.max(lot.since) } else { lot.since },
            bytes: part.bytes,
            sections: part.sections,
            entry: manifest::entry_bytes(&lot.root, (part.part, lot.parts)),
        };
        (item, part)
    };
    parts.map(item).collect()
}

/// Begins an aggregate, where one is due. Says whether.
async fn begin(ctx: &Arc<Context>) -> Result<bool, PackError> {
    going(ctx)?;
    let packing = &ctx.settings.cold.packing;
    for (policy, replicas) in ctx.records.cold_groups().await? {
        let lots = ctx.records.lots(&policy, replicas, limits::LOTS_PLANNED).await?;
        let all = items(&lots);
        let waiting: Vec<Item<Key>> = all.iter().map(|(item, _)| *item).collect();
        let Some(plan) = pack::next(&waiting, &packing.rules(), ctx.clock.now()) else { continue };
        let parts: HashMap<Key, LotPart> = all.iter().map(|(item, part)| (item.key, *part)).collect();
        let segment = |placed: &Placed<Key>| {
            Some(NewSegment { lot: placed.key.0, part: *parts.get(&placed.key)?, size: placed.size })
        };
        let segments: Vec<NewSegment> = plan.items.iter().filter_map(segment).collect();
        let (align, least) = (packing.align, packing.least);
        tracing::info!(
            pins = segments.len(),
            size = plan.size.bytes(),
            "packing {} DAGs of policy {policy:?} into a piece of {}",
            segments.len(),
            plan.size
        );
        ctx.records.begin_aggregate(NewAggregate { policy, replicas, align, least, segments }).await?;
        return Ok(true);
    }
    Ok(false)
}

/// Packs what is open: one, but for what a crash left. Says whether there was something.
async fn finish_open(ctx: &Arc<Context>) -> Result<bool, PackError> {
    let mut any = false;
    loop {
        let open = ctx.records.aggregates(&[AggregateState::Open], None, 1).await?;
        let Some(row) = open.into_iter().next() else { return Ok(any) };
        any = true;
        ctx.board.state(NAME, format!("packing aggregate {}", row.id), 1);
        pack(ctx, &row).await?;
        metrics::counter!("floe_aggregates_packed_total").increment(1);
    }
}

/// Packs an open aggregate. One that has more than a piece holds is given back as a whole: nothing of it would ever fit.
async fn pack(ctx: &Arc<Context>, row: &AggregateRow) -> Result<(), PackError> {
    let Err(error) = pack_parts(ctx, row).await else { return Ok(()) };
    if matches!(error, PackError::TooLarge(_)) {
        for segment in ctx.records.segments(row.id).await? {
            give_back(ctx, row, &segment, &error).await?;
        }
    }
    Err(error)
}

/// Each time that something of it is given back, the rest is placed anew.
async fn pack_parts(ctx: &Arc<Context>, row: &AggregateRow) -> Result<(), PackError> {
    loop {
        going(ctx)?;
        if !write_sections(ctx, row).await? {
            return Ok(());
        }
        let (size, segments) = places(row, ctx.records.segments(row.id).await?)?;
        let shape = Arc::new(Shape::load(&ctx.records, row, size, &segments).await?);
        match hash_it(ctx, row, &shape, &segments).await {
            Ok(hashed) => return settle(ctx, row, &shape, &segments, &hashed).await,
            Err(PackError::Hash(HashError::Piece(PieceError::Missing { cid, at }))) => {
                let holds = shape.segment_at(at).and_then(|n| segments.get(n));
                let segment = holds.ok_or(PackError::TooLarge(row.id))?;
                if !give_back(ctx, row, segment, &Trouble::Missing(cid)).await? {
                    return Ok(());
                }
            }
            Err(other) => return Err(other),
        }
    }
}

/// Writes down the sections of each segment. Says whether a segment is left: those whose blocks are not here are given back.
async fn write_sections(ctx: &Arc<Context>, row: &AggregateRow) -> Result<bool, PackError> {
    let mut left = false;
    for segment in ctx.records.segments(row.id).await? {
        going(ctx)?;
        if is_written(ctx, row, &segment).await? {
            left = true;
            continue;
        }
        match write_segment(ctx, row, &segment).await {
            Ok(()) => left = true,
            Err(PackError::Trouble(trouble)) => {
                give_back(ctx, row, &segment, &trouble).await?;
            }
            Err(other) => return Err(other),
        }
    }
    Ok(left)
}

/// Whether all sections of a segment are there, from before a crash.
async fn is_written(ctx: &Context, row: &AggregateRow, segment: &SegmentRow) -> Result<bool, PackError> {
    let (mut chunk, mut count, mut bytes) = (0, 0, 0);
    while let Some(sections) = ctx.records.sections(row.id, segment.n, chunk).await? {
        count += sections.len() as u64;
        bytes += sections.iter().map(sections::bytes_of).sum::<u64>();
        chunk += 1;
    }
    let LotPart { sections, bytes: all, .. } = segment.part;
    Ok((count, bytes) == (sections, all) && (chunk > 0 || sections == 0))
}

async fn write_segment(
    ctx: &Arc<Context>,
    row: &AggregateRow,
    segment: &SegmentRow,
) -> Result<(), PackError> {
    ctx.records.clear_sections(row.id, segment.n).await?;
    let (blocks, root, first) = (ctx.blocks.clone(), segment.root, segment.part.first);
    let id = segment.lot;
    let mut walk = on_a_thread(move || {
        let mut walk = Sections::new(&blocks, id, &root)?;
        walk.skip(first)?;
        Ok(walk)
    })
    .await?;
    let (mut left, mut at, mut chunk) = (segment.part.sections, 0, 0);
    while left > 0 {
        going(ctx)?;
        let some = left.min(floe_records::limits::SECTIONS_PER_CHUNK as u64);
        let (walked, sections) = on_a_thread(move || next_sections(walk, some)).await?;
        walk = walked;
        let bytes: u64 = sections.iter().map(sections::bytes_of).sum();
        ctx.records.put_sections(row.id, (segment.n, chunk), at, sections).await?;
        (left, at, chunk) = (left - some, at + bytes, chunk + 1);
    }
    if at == segment.part.bytes { Ok(()) } else { Err(Trouble::Changed.into()) }
}

fn next_sections(mut walk: Sections, count: u64) -> Result<(Sections, Vec<SectionRow>), Trouble> {
    let mut sections = Vec::new();
    for _ in 0..count {
        sections.push(walk.next()?.ok_or(Trouble::Changed)?);
    }
    Ok((walk, sections))
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, PackError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| PackError::Thread)??)
}

async fn give_back(
    ctx: &Context,
    row: &AggregateRow,
    segment: &SegmentRow,
    trouble: &(dyn std::error::Error + Sync),
) -> Result<bool, PackError> {
    let n = segment.n;
    tracing::warn!(aggregate = %row.id, n, %trouble, "segment {n} of aggregate {} is given back: {trouble}", row.id);
    metrics::counter!("floe_segments_given_back_total").increment(1);
    let attempts = ctx.records.lot(segment.lot).await?.map_or(0, |lot| lot.attempts);
    let due = later(ctx, attempts);
    Ok(ctx.records.give_back_segment(row.id, n, trouble.to_string(), due).await?)
}

/// Where each segment lies, in the order in which they lie, and the size of the piece. It follows from the rows alone.
fn places(
    row: &AggregateRow,
    mut segments: Vec<SegmentRow>,
) -> Result<(floe_core::PaddedSize, Vec<SegmentRow>), PackError> {
    let rules = Rules {
        target: floe_core::PaddedSize::MAX,
        least: row.least,
        flush_after: 0,
        align: row.align,
        most_items: limits::SEGMENTS_PER_AGGREGATE,
        most_sections: u64::MAX,
        head: manifest::HEAD,
    };
    let items: Vec<Item<u32>> = segments
        .iter()
        .map(|segment| Item {
            key: segment.n,
            account: segment.account,
            turn: 0,
            since: Timestamp::from_millis(0),
            bytes: segment.part.bytes,
            sections: segment.part.sections,
            entry: manifest::entry_bytes(&segment.root, (segment.part.part, segment.parts)),
        })
        .collect();
    let placed =
        pack::size_for(&items, &rules).and_then(|size| Some((size, pack::place(&items, size, &rules)?)));
    let (size, placed) = placed.ok_or(PackError::TooLarge(row.id))?;
    let places: HashMap<u32, Placed<u32>> = placed.into_iter().map(|placed| (placed.key, placed)).collect();
    for segment in &mut segments {
        let placed = places.get(&segment.n).ok_or(PackError::TooLarge(row.id))?;
        // Of a crash or a segment that was given back another place may be left.
        (segment.place, segment.size) = (placed.place, placed.size);
        (segment.start, segment.commitment) = (0, None);
    }
    Ok((size, in_order(segments)))
}

async fn hash_it(
    ctx: &Arc<Context>,
    row: &AggregateRow,
    shape: &Arc<Shape>,
    segments: &[SegmentRow],
) -> Result<Hashed, PackError> {
    let (blocks, stop, align) = (ctx.blocks.clone(), ctx.stop.clone(), row.align);
    let (shape, segments) = (Arc::clone(shape), segments.to_vec());
    let work = move || hash::hash(&shape, align, &segments, &blocks, &stop);
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| PackError::Thread)??)
}

/// Writes down what was hashed, and last that it is packed.
async fn settle(
    ctx: &Context,
    row: &AggregateRow,
    shape: &Shape,
    segments: &[SegmentRow],
    hashed: &Hashed,
) -> Result<(), PackError> {
    let places = segments.iter().enumerate().map(|(n, segment)| SegmentPlace {
        n: segment.n,
        start: shape.starts[n],
        place: segment.place,
        size: segment.size,
        commitment: hashed.segments.get(n).map(|segment| segment.piece),
    });
    let places: Vec<SegmentPlace> = places.collect();
    while let Err(error) = ctx.records.place_segments(row.id, places.clone()).await {
        if_busy(ctx, error).await?;
    }
    fail::fail_point!("agg.placed");
    let settled = Settled {
        piece: hashed.piece,
        size: shape.size,
        car_bytes: shape.len,
        root: shape.root,
        fillers: piece::write_fillers(&hashed.fillers),
    };
    while let Err(error) = ctx.records.aggregate_packed(row.id, settled.clone()).await {
        if_busy(ctx, error).await?;
    }
    tracing::info!(aggregate = %row.id, piece = %hashed.piece, size = shape.size.bytes(), "packed {}", hashed.piece);
    Ok(())
}

/// Waits for a writer that has too much to do: what was hashed is not to be lost for that.
async fn if_busy(ctx: &Context, error: floe_records::Error) -> Result<(), PackError> {
    let floe_records::Error::Busy { retry_after, .. } = error else { return Err(error.into()) };
    going(ctx)?;
    ctx.clock.sleep(retry_after).await;
    Ok(())
}
