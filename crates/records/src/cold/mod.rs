//! Rows of the cold half: what waits for a piece, what is in each piece, the deals for it, and the money.
//!
//! Each file holds the statements of one matter and adds its calls to [`crate::Records`]. Amounts are decimal text:
//! SQL's integers end below the FIL that there is. Money moves in one transaction with what it is for: [`deals`] knows the
//! life of an attempt, [`ledger`] what was set aside for it and whether the caps permit it.

pub(crate) mod aggregates;
mod back;
pub(crate) mod blocks;
pub mod deals;
pub mod events;
pub mod facts;
pub mod ledger;
mod messages;
pub mod providers;
pub(crate) mod segments;
mod view;
pub(crate) mod waits;

pub use aggregates::{AggregatePin, AggregateRow, Settled};
pub use blocks::{ColdPlace, SectionRow};
pub use deals::Unpublished;
pub use deals::{Chosen, DealFilter, DealRow, NewDeal, OnChain, PullTarget, Reply, Word};
pub use events::Event;
pub use facts::{Restored, Switch, TopUp};
pub use ledger::{Cost, CostsBy, Sum, Totals};
pub use messages::{ChainRow, MessageRow, MessageStep, MessageVersion};
pub use providers::{NewProvider, ProviderRow};
pub use segments::{NewAggregate, NewSegment, SegmentPlace, SegmentRow};
pub use view::{ColdPart, PinCold};
pub use waits::{Lot, LotPart};

use uuid::Uuid;

use crate::writer::Tx;

/// One pass of the writer's follow-up over the cold rows: says whether more is left.
pub(crate) async fn follow_up(tx: &mut Tx) -> Result<bool, crate::Error> {
    let told = waits::tell_some(tx).await?;
    let released = aggregates::release_some(tx).await?;
    Ok(told || released)
}

/// A new id, which sorts by the time it was made.
fn new_id(tx: &Tx) -> Uuid {
    let mut random = [0; 10];
    tx.entropy.fill(&mut random);
    uuid::Builder::from_unix_timestamp_millis(tx.now.as_millis(), &random).into_uuid()
}
