//! Deals: one row for each attempt to have one provider keep one replica of one piece.
//!
//! ```text
//!   choose_deal          row + reservation, caps checked             } one transaction
//!   store_signed         the signed bytes: from nothing to a value, once
//!   begin_sending        `proposed`, while the switch is on          } then the bytes go out
//!   answered             what the provider said, or that nobody knows
//!   on_chain             what a final tipset says: the only thing that moves money
//! ```
//!
//! Each step is the machine of [`floe_core::deal`], applied in one transaction with what follows from it: the money in the
//! [ledger](super::ledger), the provider's standing, the state of the aggregate, the event. A step that the machine does
//! not know is no step: an answer that comes after the chain has spoken changes nothing.
//!
//! # Never twice
//! The id follows from wallet, piece, slot and generation, so an attempt that is begun again is the same row. The signed
//! bytes are written where none are; whoever brings others is refused. One slot has at most one attempt on its way: a
//! unique index says so, whatever the code above it does.
//!
//! # Crash
//! Between any two of the calls above the row says where it was. `proposed` after a restart is `unknown`
//! ([`crate::Records::replies_lost`]): the same bytes are sent again.

mod adopt;
mod list;
pub(in crate::cold) mod row;
mod steps;

pub use list::{DealFilter, Unpublished};
pub use row::{DealRow, Word};
pub use steps::{Chosen, NewDeal, OnChain, Reply};

pub(crate) use list::damaged;
pub(in crate::cold) use list::of_aggregate;

use floe_core::cold::DealUuid;
use uuid::Uuid;

/// Whether providers may pull the bytes of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullTarget {
    /// What is pulled.
    pub aggregate: Uuid,
    /// Until publication is final, or the start epoch passed.
    pub is_live: bool,
}

/// The column of a deal's id.
pub(crate) fn id_of(deal: DealUuid) -> Vec<u8> {
    crate::pins::row::key(deal.0)
}
