//! `floe cold plan`: what would be placed where, at what price, and what of it is padding; it spends nothing.
//!
//! The plan is made by the very functions that place deals ([`super::dealer::Open`]), in the same order, up to the
//! transaction that would write the row; the caps are counted on in memory. Providers are asked for their asks, as they
//! would be.

use std::collections::BTreeMap;

use floe_core::spending::{Caps, Committed, OverCap, split};
use floe_core::{AccountId, ActorId, AttoFil, Epoch, PaddedSize, PieceCid};
use floe_records::cold::{DealRow, NewDeal};
use uuid::Uuid;

use super::dealer::{Open, PLACED};
use super::deals::Deals;
use super::roster::Roster;
use crate::limits;

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Why nothing would be spent now, if anything stands in the way.
    pub paused: Option<String>,
    /// Deals that would be made, in order.
    pub deals: Vec<PlannedDeal>,
    /// Replicas that could not be placed, and why.
    pub unplaced: Vec<Unplaced>,
    /// What all of them cost.
    pub cost: AttoFil,
    /// More aggregates lack replicas than a plan looks at.
    pub is_cut: bool,
}

/// One deal of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedDeal {
    /// What is stored.
    pub aggregate: Uuid,
    /// For which replica.
    pub slot: u32,
    /// With whom.
    pub provider: ActorId,
    /// The piece.
    pub piece: PieceCid,
    /// Its size.
    pub size: PaddedSize,
    /// Bytes of the pins' own segments in it, after padding each.
    pub segments: u64,
    /// What of the piece is nobody's data, in padded bytes.
    pub padding: u64,
    /// For a GiB and epoch: what the provider asks.
    pub ask: AttoFil,
    /// For the piece and each epoch.
    pub price: AttoFil,
    /// The provider's collateral.
    pub collateral: AttoFil,
    /// First epoch, if it were signed now.
    pub start: Epoch,
    /// Last epoch.
    pub end: Epoch,
    /// Price x duration.
    pub cost: AttoFil,
}

/// A replica that cannot be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unplaced {
    /// Of what.
    pub aggregate: Uuid,
    /// Which.
    pub slot: u32,
    /// Why.
    pub why: String,
}

/// Makes the plan.
///
/// # Errors
/// Those of the rows; a chain that cannot be looked at is said in [`Plan::paused`], and the plan is empty.
pub(crate) async fn plan(d: &Deals) -> Result<Plan, floe_records::Error> {
    let mut plan =
        Plan { paused: d.may_spend().await.err().map(|paused| paused.to_string()), ..Plan::default() };
    let view = match d.view() {
        Ok(view) => view,
        Err(paused) => return Ok(Plan { paused: Some(paused.to_string()), ..plan }),
    };
    let mut roster = Roster::load(d).await?;
    let mut spent = Spent::default();
    let mut after = None;
    loop {
        let page = d.records.aggregates(&PLACED, after, limits::AGGREGATES_PER_PASS).await?;
        let Some(last) = page.last().map(|row| row.id) else { return Ok(plan) };
        for aggregate in page {
            if plan.deals.len() >= limits::DEALS_PER_PLAN {
                limits::hit("deals_per_plan");
                plan.is_cut = true;
                return Ok(plan);
            }
            if !d.records.has_live_pins(aggregate.id).await? {
                continue;
            }
            let Some(open) = Open::load(d, view, aggregate).await? else { continue };
            let segments: u64 =
                d.records.segments(open.aggregate.id).await?.iter().map(|s| s.size.bytes()).sum();
            let mut deals = open.deals.clone();
            for slot in open.slots.clone() {
                let unplaced = |why| Unplaced { aggregate: open.aggregate.id, slot, why };
                let (new, choice) = match open.choose(d, view, &mut roster, slot, &deals).await? {
                    Ok(found) => found,
                    Err(why) => {
                        plan.unplaced.push(unplaced(why));
                        continue;
                    }
                };
                let cost = cost(&new);
                if let Err(over) = spent.reserve(d, &new, cost).await? {
                    plan.unplaced.push(unplaced(over.to_string()));
                    continue;
                }
                deals.push(as_if(&new, cost));
                plan.cost = plan.cost.checked_add(cost).unwrap_or(plan.cost);
                plan.deals.push(PlannedDeal {
                    aggregate: new.aggregate,
                    slot,
                    provider: new.provider,
                    piece: new.piece,
                    size: new.size,
                    segments,
                    padding: new.size.bytes().saturating_sub(segments),
                    ask: choice.placement.price,
                    price: new.price,
                    collateral: new.collateral,
                    start: new.start,
                    end: new.end,
                    cost,
                });
            }
        }
        after = Some(last);
    }
}

fn cost(new: &NewDeal) -> AttoFil {
    // The terms were checked: the product fits.
    new.price.checked_mul(u128::from(new.end.since(new.start))).unwrap_or(AttoFil::new(u128::MAX))
}

/// What the caps have left, as if the plan's deals were reserved.
#[derive(Default)]
struct Spent {
    all: Option<Committed>,
    accounts: BTreeMap<AccountId, AttoFil>,
}

impl Spent {
    async fn reserve(
        &mut self,
        d: &Deals,
        new: &NewDeal,
        cost: AttoFil,
    ) -> Result<Result<(), OverCap>, floe_records::Error> {
        let mut all = match self.all {
            Some(all) => all,
            None => {
                let totals = d.records.totals().await?;
                let (day, lifetime) = (totals.day.committed()?, totals.lifetime.committed()?);
                Committed { account_day: AttoFil::ZERO, day, lifetime }
            }
        };
        let parts = split(cost, &new.weights.values().copied().collect::<Vec<_>>());
        let mut shares = Vec::with_capacity(parts.len());
        for (account, part) in new.weights.keys().zip(&parts) {
            let today = match self.accounts.get(account) {
                Some(today) => *today,
                None => d.records.totals_of(*account).await?.day.committed()?,
            };
            shares.push((*account, today, *part));
        }
        let caps: &Caps = d.caps();
        let checked: Vec<_> = shares.iter().map(|(_, today, part)| (*today, *part)).collect();
        if let Err(over) = caps.permit_deal(&all, cost, &checked) {
            self.all = Some(all);
            return Ok(Err(over));
        }
        let sum = |a: AttoFil, b: AttoFil| a.checked_add(b).unwrap_or(a);
        (all.day, all.lifetime) = (sum(all.day, cost), sum(all.lifetime, cost));
        self.all = Some(all);
        self.accounts.extend(shares.into_iter().map(|(account, today, part)| (account, sum(today, part))));
        Ok(Ok(()))
    }
}

/// The row that would be written.
fn as_if(new: &NewDeal, cost: AttoFil) -> DealRow {
    DealRow::chosen(Default::default(), new, floe_core::cold::DealUuid(Uuid::nil()), 0, cost)
}
