//! What every other crate of Floe knows: ids, units, state machines and ports. No IO, no runtime, no wall clock.
//!
//! # Glossary
//! - **pin**: a user's request that a DAG be kept, named by a [`RequestId`]. Never the act of keeping blocks
//!   from the collector: that is to *protect* them.
//! - **root**: the CID a pin names. **DAG**: the root and all it links to.
//! - **block**: bytes checked against their CID ([`Block`]).
//! - **origin**: where a client says its data can be had. **delegate**: where we say that we can be reached.
//! - **piece**: what a deal stores, named by its commitment ([`PieceCid`]) and sized in [`PaddedSize`].
//! - **account**: who owns pins and is charged for them. **token**: what proves it on each request.
//!
//! # Reading order
//! [`pin`] (the machine each pin goes through), [`ports`] (what the engine needs of the world), then the
//! crates that implement them.

pub mod block;
pub mod cid;
pub mod clock;
pub mod entropy;
pub mod ids;
pub mod piece;
pub mod pin;
pub mod ports;

pub use block::{Block, BlockError};
pub use cid::{Cid, CidError, Multihash};
pub use clock::{Clock, ManualClock, Timestamp};
pub use entropy::Seeded;
pub use ids::{AccountId, RequestId, TokenId};
pub use piece::{PaddedSize, PieceCid, PieceCidError, PieceCidV2};
pub use pin::{PinEvent, PinStatus};
