//! What every other crate of Floe knows: ids, units, state machines and ports. No IO, no runtime, no wall clock.
//!
//! # Glossary
//! - **pin**: a user's request that a DAG be kept, named by a [`RequestId`]. Never the act of keeping blocks
//!   from the collector: that is to *protect* them.
//! - **root**: the CID a pin names. **DAG**: the root and all it links to.
//! - **block**: bytes checked against their CID ([`Block`]).
//! - **origin**: where a client says its data can be had. **delegate**: where we say that we can be reached.
//! - **piece**: what a provider stores, named by its commitment ([`PieceCid`]) and sized in [`PaddedSize`].
//!   **aggregate**: the pins that are in one piece. **deal**: one provider's promise, on chain, to keep one replica of it. **epoch**: the chain's unit of time.
//! - **account**: who owns pins and is charged for them. **token**: what proves it on each request.
//!
//! # Reading order
//! [`pin`] (the machine each pin goes through), [`aggregate`] and [`deal`] (the same for the cold half, with the [`units`]
//! of money and time, the [`policy`] that asks for deals, who gets them ([`place`]) and what they may cost
//! ([`spending`])), [`ports`] and [`cold`] (what the engine needs of the world), then the
//! crates that implement them.

pub mod aggregate;
pub mod block;
pub mod cid;
pub mod clock;
pub mod cold;
pub mod deal;
pub mod entropy;
pub mod escrow;
pub mod failure;
pub mod ids;
pub mod pack;
pub mod piece;
pub mod pin;
pub mod place;
pub mod policy;
pub mod ports;
pub mod spending;
pub mod standing;
pub mod units;

pub use aggregate::{AggregateEvent, AggregateState};
pub use block::{Block, BlockError};
pub use cid::{Cid, CidError, Multihash};
pub use clock::{Clock, ManualClock, Timestamp};
pub use deal::{DealEvent, DealState};
pub use entropy::Seeded;
pub use failure::FailureCode;
pub use ids::{AccountId, ActorId, RequestId, TokenId};
pub use piece::{PaddedSize, PieceCid, PieceCidError, PieceCidV2};
pub use pin::{PinEvent, PinStatus};
pub use policy::{Policy, PolicyChoice};
pub use units::{AttoFil, Epoch};
