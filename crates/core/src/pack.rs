//! Which of what waits goes into the next piece, and where it lies in it. Pure functions.
//!
//! # Which
//! What waits is a list of [`Item`]s: DAGs, or parts of those that are larger than a piece. All of one plan have the same
//! policy and number of replicas. [`next`] takes them in turns:
//!
//! - The first is the oldest item of the account that was served longest ago (its `turn`). So with `n` accounts waiting, an
//!   account's oldest item that has waited for [`Rules::flush_after`] is in the `n`-th piece from then at the latest,
//!   whatever the others have queued.
//! - Then whoever has the fewest bytes in this piece comes next, with its oldest item. Items of one account never pass
//!   each other: where the next does not fit, the account has no more turns in this piece. A large item is so never
//!   held up by smaller ones behind it.
//!
//! A piece is *due* when it is full, or when one of its items has waited for [`Rules::flush_after`]. It is full when it is as
//! large as [`Rules::target`] wants and the next item does not fit, when an eighth of it at most is left, or when it has as
//! many items as it may. Where the first account's piece is not due, the next account's is looked at.
//!
//! # Where
//! Tightly, items follow each other. Aligned, each is a segment: at a multiple of its padded power of two. They are placed
//! the biggest first, each at the lowest place that is free. Sizes that divide each other fit best in that order: whatever
//! fits in a piece in any order, fits so.
//!
//! ```text
//! 0                                                                            size
//! │head│ item, biggest │ item │ it │it│ filler │ … zeros                 │ index │
//! ```
//! What is not a segment's: the *head* (the CAR's header and the manifest) goes into the segment at 0 where that has room
//! for it, and else the first place stays empty; the index takes a 2048th at the end. So nothing as large as the piece
//! fits in it: a segment of half the size fits only at 0, together with the head.
//!
//! An item that is larger than a piece takes is cut into parts ([`Rules::cut`]). Aligned, they are a sixteenth of the target
//! each, so that fifteen of them fill a piece but for the last: two halves would need a piece each, for the index's sake.
//!
//! The worst case: an item that is just above a power of two is a segment of almost twice its size, and a segment alone
//! needs a piece of twice its own: four times what is stored, half of which is what Filecoin's own powers of two cost
//! tight packing too. With many items per piece the gaps fill up, and what is left is each item's own rounding.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::clock::Timestamp;
use crate::ids::AccountId;
use crate::piece::PaddedSize;

/// The shortest section of a CAR: a gap before the next segment is empty, or has room for one.
pub const SHORTEST_FILLER: u64 = 37;
/// Payload in a group of Fr32.
const GROUP: u64 = 127;
/// Accounts with whose oldest item a full piece is looked for. Where the first ones' do not make one, because the next in
/// line is too large for what they leave, another's may; to try all thousand would take seconds each time.
const SEEDS: usize = 16;

/// How pieces are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A piece is closed when it would pass this size.
    pub target: PaddedSize,
    /// No piece is smaller: zeros fill it.
    pub least: PaddedSize,
    /// No item waits longer for others, in milliseconds.
    pub flush_after: u64,
    /// Whether each item is a segment.
    pub align: bool,
    /// The most items of a piece. An index that has room for fewer bounds them too.
    pub most_items: usize,
    /// The most sections of a piece.
    pub most_sections: u64,
    /// Bytes of the CAR's header and of a manifest without entries, at the most.
    pub head: u64,
}

/// Something that waits: a DAG, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<K> {
    /// Its name. No two have the same.
    pub key: K,
    /// Whose turn it takes.
    pub account: AccountId,
    /// The number of the last piece that took something of the account; 0: none.
    pub turn: u64,
    /// Since when it waits.
    pub since: Timestamp,
    /// Bytes of its sections.
    pub bytes: u64,
    /// How many they are.
    pub sections: u64,
    /// Bytes of its entry in the manifest.
    pub entry: u64,
}

/// Where an item lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Placed<K> {
    /// Which.
    pub key: K,
    /// Where its segment begins, in padded bytes. Tightly packed, the group in which it begins.
    pub place: u64,
    /// The size of its segment; tightly packed, of the piece that it would be alone.
    pub size: PaddedSize,
}

/// What goes into a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan<K> {
    /// In the order in which they lie.
    pub items: Vec<Placed<K>>,
    /// The size of the piece.
    pub size: PaddedSize,
    /// Bytes of the items' sections.
    pub bytes: u64,
    /// Bytes of the piece's payload that are not theirs: head, fillers, zeros, index.
    pub padding: u64,
    /// Why it is packed now.
    pub why: Why,
}

/// Why a piece is packed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// It is as large as it should be.
    Full,
    /// One of its items has waited long enough.
    Age,
}

impl Rules {
    /// The most payload of an item that goes into a piece of the target size in one; what is larger is cut. Aligned, that
    /// is a segment of half the size, with the head before it.
    pub fn capacity(&self) -> u64 {
        let room = if self.align { self.fraction(1) } else { self.target };
        room.unpadded_bytes().saturating_sub(self.head + SHORTEST_FILLER + Self::ENTRY_OF_A_PART)
    }

    /// The most payload of each part of what is larger than that.
    pub fn cut(&self) -> u64 {
        if self.align { self.fraction(4).unpadded_bytes() - SHORTEST_FILLER } else { self.capacity() }
    }

    /// The target halved so often, but no smaller than the smallest segment.
    fn fraction(&self, halvings: u8) -> PaddedSize {
        PaddedSize::from_height(self.target.height().saturating_sub(halvings)).unwrap_or(PaddedSize::MIN)
    }

    /// Whether so much payload leaves no more than an eighth of a piece of the target size.
    fn is_nearly_full(&self, bytes: u64) -> bool {
        bytes / 7 >= self.target.unpadded_bytes() / 8
    }

    /// Bytes that are left for the entry of an item in a manifest of its own: more than any entry has.
    const ENTRY_OF_A_PART: u64 = 256;

    /// The most items that a piece of this size takes.
    fn room_for_items(&self, size: PaddedSize) -> usize {
        let entries = if self.align { size.index_entries() } else { u64::MAX };
        self.most_items.min(usize::try_from(entries).unwrap_or(usize::MAX))
    }
}

/// The segment that payload of so many bytes takes: nothing is left of it, or room for a filler.
pub fn segment_size(bytes: u64) -> Option<PaddedSize> {
    let size = PaddedSize::of_payload(bytes)?;
    let left = size.unpadded_bytes() - bytes;
    if left == 0 || left >= SHORTEST_FILLER { Some(size) } else { PaddedSize::from_bytes(2 * size.bytes()) }
}

/// What goes into the next piece now. `None` while nothing is due.
pub fn next<K: Copy + Ord>(items: &[Item<K>], rules: &Rules, now: Timestamp) -> Option<Plan<K>> {
    let queues = queues(items);
    let mut seeds: Vec<(u64, Timestamp, AccountId)> = queues
        .iter()
        .filter_map(|(account, queue)| queue.first().map(|first| (first.turn, first.since, *account)))
        .collect();
    seeds.sort_unstable();
    let mut looked_at = 0;
    for (_, since, seed) in seeds {
        let waited = |since: Timestamp| now.as_millis().saturating_sub(since.as_millis());
        // A piece that begins with what has waited long enough is due; of others, some are looked at for a full one.
        if waited(since) < rules.flush_after {
            if looked_at == SEEDS {
                continue;
            }
            looked_at += 1;
        }
        let Some(fill) = choose(&queues, seed, rules) else { continue };
        let full = fill.is_full(rules);
        let oldest = fill.items.iter().map(|item| item.since).min().unwrap_or(now);
        let why = match full {
            true => Why::Full,
            false if waited(oldest) >= rules.flush_after => Why::Age,
            false => continue,
        };
        return fill.into_plan(rules, why);
    }
    None
}

/// All pieces that would be packed if nothing waited any longer: [`next`] again and again, until nothing is left or there
/// are `most`. Those that are full say so.
pub fn all<K: Copy + Ord>(items: &[Item<K>], rules: &Rules, now: Timestamp, most: usize) -> Vec<Plan<K>> {
    let at_once = Rules { flush_after: 0, ..*rules };
    let mut left = items.to_vec();
    let mut turn = left.iter().map(|item| item.turn).max().unwrap_or(0);
    let mut plans = Vec::new();
    while plans.len() < most {
        let Some(plan) = next(&left, &at_once, now) else { break };
        turn += 1;
        let taken: BTreeSet<K> = plan.items.iter().map(|placed| placed.key).collect();
        let served: BTreeSet<AccountId> =
            left.iter().filter(|item| taken.contains(&item.key)).map(|item| item.account).collect();
        left.retain(|item| !taken.contains(&item.key));
        left.iter_mut().filter(|item| served.contains(&item.account)).for_each(|item| item.turn = turn);
        plans.push(plan);
    }
    plans
}

/// What waits, by account, the oldest first.
type Queues<'a, K> = BTreeMap<AccountId, Vec<&'a Item<K>>>;

fn queues<K: Copy + Ord>(items: &[Item<K>]) -> Queues<'_, K> {
    let mut queues: Queues<'_, K> = BTreeMap::new();
    items.iter().for_each(|item| queues.entry(item.account).or_default().push(item));
    queues.values_mut().for_each(|queue| queue.sort_unstable_by_key(|item| (item.since, item.key)));
    queues
}

/// The items of a piece that begins with the oldest of `seed`.
fn choose<K: Copy + Ord>(queues: &Queues<'_, K>, seed: AccountId, rules: &Rules) -> Option<Fill<K>> {
    // Bytes in this piece, what is next, whose it is: the first has the next turn.
    let first = |account: AccountId, taken: usize| queues.get(&account).and_then(|queue| queue.get(taken));
    let mut turns: BTreeSet<(u64, Timestamp, AccountId, usize)> =
        queues.iter().filter_map(|(account, queue)| Some((0, queue.first()?.since, *account, 0))).collect();
    let begins = turns.iter().copied().find(|(_, _, account, _)| *account == seed);
    let mut fill = Fill::new(rules);
    let mut next = begins;
    while let Some(turn) = next {
        turns.remove(&turn);
        let (bytes, _, account, taken) = turn;
        let item = first(account, taken)?;
        if fill.push(item, rules)
            && let Some(following) = first(account, taken + 1)
        {
            turns.insert((bytes + item.bytes, following.since, account, taken + 1));
        }
        next = turns.first().copied();
    }
    (!fill.items.is_empty()).then_some(fill)
}

/// A piece that is being filled: its items, and what is needed to say at once whether one more fits.
struct Fill<K> {
    items: Vec<Item<K>>,
    /// What it needs.
    size: PaddedSize,
    sums: Sums,
    /// Something that waits did not fit.
    refused: bool,
    /// It has as many items or sections as it may.
    is_closed: bool,
}

impl<K: Copy + Ord> Fill<K> {
    fn new(rules: &Rules) -> Self {
        Self { items: Vec::new(), size: rules.least, sums: Sums::default(), refused: false, is_closed: false }
    }

    /// Whether nothing is gained by waiting for more.
    fn is_full(&self, rules: &Rules) -> bool {
        let as_large = self.size >= rules.target && self.refused;
        self.is_closed || as_large || rules.is_nearly_full(self.sums.bytes)
    }

    /// Takes an item in, where it fits in a piece of the target size. The first goes whatever it needs: it was cut to fit.
    fn push(&mut self, item: &Item<K>, rules: &Rules) -> bool {
        let fits = self.try_push(item, rules);
        self.refused |= !fits;
        fits
    }

    fn try_push(&mut self, item: &Item<K>, rules: &Rules) -> bool {
        let alone = self.items.is_empty();
        let most = if alone { PaddedSize::MAX } else { rules.target.max(rules.least) };
        let Some(sums) = self.sums.with(item, rules) else { return false };
        if !alone && (sums.sections > rules.most_sections || sums.items > rules.most_items) {
            self.is_closed = true;
            return false;
        }
        let Some(size) = sums.smallest(self.size, most, rules) else { return false };
        self.items.push(*item);
        (self.size, self.sums) = (size, sums);
        true
    }

    fn into_plan(self, rules: &Rules, why: Why) -> Option<Plan<K>> {
        let items = place(&self.items, self.size, rules)?;
        let bytes = self.items.iter().map(|item| item.bytes).sum();
        Some(Plan {
            items,
            size: self.size,
            bytes,
            padding: self.size.unpadded_bytes().checked_sub(bytes)?,
            why,
        })
    }
}

/// What decides whether items fit in a piece.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    items: usize,
    sections: u64,
    bytes: u64,
    entries: u64,
    /// Segments by height.
    segments: [u32; HEIGHTS],
    /// The fewest bytes of any of them.
    shortest: [Option<u64>; HEIGHTS],
}

const HEIGHTS: usize = PaddedSize::MAX_HEIGHT as usize + 1;

impl Sums {
    fn of<K>(items: &[Item<K>], rules: &Rules) -> Option<Self> {
        items.iter().try_fold(Self::default(), |sums, item| sums.with(item, rules))
    }

    fn with<K>(mut self, item: &Item<K>, rules: &Rules) -> Option<Self> {
        self.items += 1;
        self.sections = self.sections.checked_add(item.sections)?;
        self.bytes = self.bytes.checked_add(item.bytes)?;
        self.entries = self.entries.checked_add(item.entry)?;
        if rules.align {
            let height = usize::from(segment_size(item.bytes)?.height());
            self.segments[height] += 1;
            let shortest = self.shortest[height].map_or(item.bytes, |bytes| bytes.min(item.bytes));
            self.shortest[height] = Some(shortest);
        }
        Some(self)
    }

    fn head(&self, rules: &Rules) -> u64 {
        rules.head.saturating_add(self.entries)
    }

    /// The smallest size from one to another that they fit in.
    fn smallest(&self, from: PaddedSize, to: PaddedSize, rules: &Rules) -> Option<PaddedSize> {
        (from.height()..=to.height()).filter_map(PaddedSize::from_height).find(|size| self.fits(*size, rules))
    }

    fn fits(&self, size: PaddedSize, rules: &Rules) -> bool {
        if self.items > rules.room_for_items(size) {
            return false;
        }
        if !rules.align {
            return self.head(rules).checked_add(self.bytes).is_some_and(|all| all <= size.unpadded_bytes());
        }
        // Sizes divide each other: from the biggest down, it is enough to count.
        let Some(free) = Free::new(size, self.first(rules), self.head(rules)) else { return false };
        let mut wanted = self.segments;
        if let Some(first) = self.first(rules) {
            wanted[usize::from(first.height())] -= 1;
        }
        let mut have = 0;
        for height in (0..HEIGHTS).rev() {
            have = 2 * have + free.blocks.get(height).map_or(0, BTreeSet::len) as u64;
            let Some(left) = have.checked_sub(u64::from(wanted[height])) else { return false };
            have = left;
        }
        true
    }

    /// The size of the segment that takes the head in: the biggest that has room for it. Whatever else lay at the begin of a
    /// piece could change places with it.
    fn first(&self, rules: &Rules) -> Option<PaddedSize> {
        let sizes = (0..=PaddedSize::MAX_HEIGHT).rev().filter_map(PaddedSize::from_height);
        sizes.into_iter().find(|size| {
            let shortest = self.shortest[usize::from(size.height())];
            shortest.is_some_and(|bytes| has_room(bytes, *size, self.head(rules)))
        })
    }
}

/// Whether a segment has room for the head before its item.
fn has_room(bytes: u64, size: PaddedSize, head: u64) -> bool {
    head.saturating_add(bytes).saturating_add(SHORTEST_FILLER) <= size.unpadded_bytes()
}

/// Where each of the items lies in a piece of this size, in the order in which they lie. `None` where they do not fit.
pub fn place<K: Copy + Ord>(items: &[Item<K>], size: PaddedSize, rules: &Rules) -> Option<Vec<Placed<K>>> {
    let sums = Sums::of(items, rules).filter(|sums| sums.items <= rules.room_for_items(size))?;
    let head = sums.head(rules);
    if rules.align { aligned(items, size, sums.first(rules), head) } else { tight(items, size, head) }
}

/// The smallest size from `least` on that the items fit in, however large the target is.
pub fn size_for<K: Copy + Ord>(items: &[Item<K>], rules: &Rules) -> Option<PaddedSize> {
    Sums::of(items, rules)?.smallest(rules.least, PaddedSize::MAX, rules)
}

/// One behind the other, the oldest first.
fn tight<K: Copy + Ord>(items: &[Item<K>], size: PaddedSize, head: u64) -> Option<Vec<Placed<K>>> {
    let mut items: Vec<&Item<K>> = items.iter().collect();
    items.sort_unstable_by_key(|item| (item.since, item.key));
    let mut at = head;
    let mut placed = Vec::with_capacity(items.len());
    for item in items {
        let alone = PaddedSize::of_payload(item.bytes)?;
        placed.push(Placed { key: item.key, place: at / GROUP * (GROUP + 1), size: alone });
        at = at.checked_add(item.bytes)?;
    }
    (at <= size.unpadded_bytes()).then_some(placed)
}

/// As segments, the biggest first, each at the lowest free place; but the one that takes the head in lies at 0.
fn aligned<K: Copy + Ord>(
    items: &[Item<K>],
    of: PaddedSize,
    first: Option<PaddedSize>,
    head: u64,
) -> Option<Vec<Placed<K>>> {
    let mut sized = items
        .iter()
        .map(|item| Some((segment_size(item.bytes)?, item)))
        .collect::<Option<Vec<(PaddedSize, &Item<K>)>>>()?;
    sized.sort_unstable_by_key(|(size, item)| (Reverse(*size), item.bytes, item.key));
    // Of those of its size the shortest is the one that has room, if any has.
    let takes_head = sized.iter().position(|(size, _)| Some(*size) == first);
    let mut free = Free::new(of, first, head)?;
    let mut placed = Vec::with_capacity(sized.len());
    for (n, (size, item)) in sized.into_iter().enumerate() {
        let place = if Some(n) == takes_head { 0 } else { free.take(size)? };
        placed.push(Placed { key: item.key, place, size });
    }
    placed.sort_unstable_by_key(|placed| placed.place);
    Some(placed)
}

/// The places of a piece that are free: blocks of a power of two, each at a multiple of its size.
struct Free {
    /// By height.
    blocks: Vec<BTreeSet<u64>>,
}

impl Free {
    /// All of it but its index, and what lies at 0: a segment of size `first`, or the head alone. `None` where the piece has
    /// no room for these.
    fn new(of: PaddedSize, first: Option<PaddedSize>, head: u64) -> Option<Self> {
        let end = of.bytes().checked_sub(of.index_bytes()).filter(|end| *end > 0)?;
        let alone = || head.checked_add(SHORTEST_FILLER)?.div_ceil(GROUP).checked_mul(GROUP + 1);
        let mut at = first.map(PaddedSize::bytes).or_else(alone).filter(|at| *at <= end)?;
        let mut blocks = vec![BTreeSet::new(); usize::from(of.height()) + 1];
        while at < end {
            // The largest block that may begin here, and ends in time.
            let height = (at.trailing_zeros()).min((end - at).ilog2()).checked_sub(NODE_BITS)? as usize;
            blocks.get_mut(height)?.insert(at);
            at += 1 << (height as u32 + NODE_BITS);
        }
        Some(Self { blocks })
    }

    /// The lowest free place for a segment.
    fn take(&mut self, size: PaddedSize) -> Option<u64> {
        let wanted = usize::from(size.height());
        let lowest =
            (wanted..self.blocks.len()).filter_map(|height| Some((*self.blocks[height].first()?, height)));
        let (at, mut height) = lowest.min()?;
        self.blocks[height].remove(&at);
        // What is not used of the block is free.
        while height > wanted {
            height -= 1;
            self.blocks[height].insert(at + (1 << (height as u32 + NODE_BITS)));
        }
        Some(at)
    }
}

/// A node of the tree has 32 bytes.
const NODE_BITS: u32 = 5;

#[cfg(test)]
mod tests;
