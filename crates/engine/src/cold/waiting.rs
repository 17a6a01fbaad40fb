//! The part of `floe cold plan` that is about pieces: what would be packed if nothing waited any longer, exactly as it would
//! be, and without doing it. Made by the functions that pack, from the rows that they pack from.

use std::collections::HashMap;

use floe_core::pack::{self, Item, Why};
use floe_core::{Cid, PaddedSize};
use floe_records::cold::{Lot, LotPart};

use super::aggregator::{Key, items};
use crate::{Engine, Error, limits};

/// What would be packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackingPlan {
    /// In the order in which they would be packed, policy by policy.
    pub pieces: Vec<PlannedPiece>,
    /// DAGs that were not measured yet, or cannot be packed now: they are in no piece of the plan.
    pub left_out: Vec<LeftOut>,
    /// More waits than a plan looks at.
    pub is_cut: bool,
}

/// A piece of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedPiece {
    /// The policy of its pins.
    pub policy: String,
    /// Deals that it is to have.
    pub replicas: u8,
    /// Its size.
    pub size: PaddedSize,
    /// Bytes of the pins' sections.
    pub bytes: u64,
    /// Bytes of its payload that are not theirs: alignment, manifest, zeros, index.
    pub padding: u64,
    /// Whether it would be packed now because it is full. Otherwise it waits for others.
    pub is_full: bool,
    /// What is in it, in the order in which it lies.
    pub dags: Vec<PlannedDag>,
}

/// A DAG of a piece, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDag {
    /// Its root: pins of this root and policy share it.
    pub root: Cid,
    /// Which part, from 0.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
    /// Bytes of its sections.
    pub bytes: u64,
    /// The size of its segment, where segments are aligned.
    pub segment: PaddedSize,
    /// Where it begins, in padded bytes.
    pub offset: u64,
}

/// A DAG that is in no piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Its root.
    pub root: Cid,
    /// Why, where an attempt failed.
    pub reason: Option<String>,
}

impl Engine {
    /// Plans what waits, and changes nothing.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn packing_plan(&self) -> Result<PackingPlan, Error> {
        let (records, now) = (&self.ctx.records, self.ctx.clock.now());
        let rules = self.ctx.settings.cold.packing.rules();
        let mut plan = PackingPlan::default();
        for (policy, replicas) in records.cold_groups().await? {
            let lots = records.lots(&policy, replicas, limits::LOTS_PLANNED).await?;
            let parts = items(&lots);
            let waiting: Vec<Item<Key>> = parts.iter().map(|(item, _)| *item).collect();
            let room = limits::PIECES_PER_PLAN.saturating_sub(plan.pieces.len());
            let pieces = pack::all(&waiting, &rules, now, room);
            let planned: usize = pieces.iter().map(|piece| piece.items.len()).sum();
            plan.is_cut |= planned < waiting.len() || lots.len() >= limits::LOTS_PLANNED as usize;
            let parts: HashMap<Key, LotPart> = parts.iter().map(|(item, part)| (item.key, *part)).collect();
            let lots: HashMap<_, &Lot> = lots.iter().map(|(lot, _)| (lot.id, lot)).collect();
            let dag = |placed: &pack::Placed<Key>| {
                let (lot, part) = (lots.get(&placed.key.0)?, parts.get(&placed.key)?);
                Some(PlannedDag {
                    root: lot.root,
                    part: part.part,
                    parts: lot.parts,
                    bytes: part.bytes,
                    segment: placed.size,
                    offset: placed.place,
                })
            };
            plan.pieces.extend(pieces.iter().map(|piece| PlannedPiece {
                policy: policy.clone(),
                replicas,
                size: piece.size,
                bytes: piece.bytes,
                padding: piece.padding,
                is_full: piece.why == Why::Full,
                dags: piece.items.iter().filter_map(dag).collect(),
            }));
        }
        let left_out = |lot: Lot| LeftOut { root: lot.root, reason: lot.reason };
        let unmeasured = records.lots_not_packable(limits::LOTS_PLANNED).await?;
        plan.left_out.extend(unmeasured.into_iter().map(left_out));
        Ok(plan)
    }
}
