//! The cold half: what is pinned becomes pieces, and pieces become deals.
//!
//! ```text
//!   pinned ──> cold_waits ──aggregator──> aggregate, packed ──dealer──> deals ──tracker──> stored
//!                                             ^                  │          ^
//!                                  pieces ────┘ the CAR, read    │          └── the chain, at finality
//!                                  again for each pull           └── funds: escrow, caps, messages
//! ```
//!
//! Everything that may cost money is a row before it is an act, and what was signed is sent as it is or not at all.
//! Crash and stop: each worker begins from rows; none holds what a row does not have.

pub(crate) mod aggregator;
mod api;
mod dealer;
mod deals;
mod funds;
mod hash;
mod manifest;
pub(crate) mod piece;
mod plan;
pub mod pull;
mod roster;
mod sections;
mod slots;
mod terms;
#[cfg(test)]
mod tests;
mod tracker;
mod view;
mod waiting;
mod wallet;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floe_core::cold::{Chain, Market, Proposer};
use floe_core::spending::Caps;
use floe_core::{AttoFil, PaddedSize, Policy};

pub use api::Spending;
pub use funds::Refused;
pub use piece::{OpenPiece, PieceError};
pub use plan::{Plan, PlannedDeal, Unplaced};
pub use pull::{Pull, PullError, PullKey};
pub use waiting::{LeftOut, PackingPlan, PlannedDag, PlannedPiece};
pub use wallet::{Wallet, WalletCall};

pub(crate) use api::{dealing, spawn};
pub(crate) use deals::Deals as Dealing;

pub use crate::limits::SETTLED_AT_ONCE;
pub use floe_records::cold::{
    ColdPart, Cost, CostsBy, DealRow, Event, NewProvider, PinCold, ProviderRow, Restored, Sum, Switch, Word,
};
pub use view::{ColdStatus, DEALS, DealQuery, Retried, SeenDeal, Viewer};

/// Plain settings of the cold half.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// `[policy.<name>]`. `default` is for pins that choose none.
    pub policies: BTreeMap<String, Policy>,
    /// `[aggregate]`
    pub packing: Packing,
    /// `[deals]`
    pub deals: Deals,
    /// `filecoin.pull_url`: where providers reach the pull server, without a slash at its end. `None`: no deals are made.
    pub pull_url: Option<String>,
    /// What signs the URLs of deals. `None`: nobody pulls.
    pub pull_key: Option<PullKey>,
}

/// How pins become pieces.
#[derive(Debug, Clone)]
pub struct Packing {
    /// A piece is closed when it would pass this size.
    pub target: PaddedSize,
    /// No piece is smaller: zeros fill it.
    pub least: PaddedSize,
    /// A pin waits no longer for others.
    pub flush_after: Duration,
    /// Whether each pin's blocks are a segment of their own, with an inclusion proof; else they are packed tightly.
    pub align: bool,
}

/// What may be spent on deals, and the terms of them.
#[derive(Debug, Clone)]
pub struct Deals {
    /// The operator's consent. `floe spending off` overrules it.
    pub enabled: bool,
    /// What may be committed.
    pub caps: Caps,
    /// Epochs from the proposal to the start of a deal.
    pub start_lead: i64,
    /// Epochs behind the head at which the chain counts.
    pub finality_lookback: i64,
    /// Whether replicas may share an owner: in test networks only.
    pub shared_owners: bool,
    /// Escrow is kept at so many tenths of what is committed: 12 is 1.2 times.
    pub escrow_tenths: u32,
    /// The least that is worth a top-up's gas.
    pub least_top_up: AttoFil,
    /// Left in the wallet for gas.
    pub wallet_reserve: AttoFil,
    /// Less than this free in escrow raises the alarm.
    pub alarm_below: AttoFil,
    /// How often the chain is looked at.
    pub look_every: Duration,
}

impl Default for Packing {
    fn default() -> Self {
        Self {
            target: PaddedSize::from_bytes(4 << 30).unwrap_or(PaddedSize::MAX),
            least: PaddedSize::from_bytes(1 << 30).unwrap_or(PaddedSize::MAX),
            flush_after: Duration::from_secs(24 * 3600),
            align: true,
        }
    }
}

impl Default for Deals {
    fn default() -> Self {
        Self {
            enabled: false,
            caps: Caps::default(),
            start_lead: 4 * 2_880,
            finality_lookback: 900,
            shared_owners: false,
            escrow_tenths: 12,
            least_top_up: AttoFil::new(10_000_000_000_000_000),
            wallet_reserve: AttoFil::new(100_000_000_000_000_000),
            alarm_below: AttoFil::ZERO,
            look_every: Duration::from_secs(30),
        }
    }
}

/// Live objects of the cold half.
#[derive(Clone)]
pub struct Components {
    /// The chain.
    pub chain: Arc<dyn Chain>,
    /// Providers.
    pub market: Arc<dyn Market>,
    /// The key.
    pub proposer: Arc<dyn Proposer>,
}
