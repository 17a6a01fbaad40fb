//! What a block links to, in every codec that real DAGs use, and the walk over a DAG.
//!
//! - [`scan`] and [`links()`] read the links of one block. Decoders are total: no recursion, no allocation sized
//!   by a length that was read, no panic.
//! - [`unixfs`] reads the UnixFS fields of a dag-pb node and refuses bogus HAMT shards.
//! - [`Walk`] visits each block of a DAG once, sans IO: it says what to look at next and is told what was found.
//! - [`car`] reads CAR files, checks each block, and writes them so that the same blocks give the same bytes.
//!
//! Nothing here does IO but through what it is given, or holds anything durable: a crash loses a `Walk`, and its last
//! [`Walk::checkpoint`] goes on. It is no codec library either: values are skipped, and nothing but CARs is encoded.

pub mod car;
mod dag_cbor;
mod dag_json;
mod dag_pb;
mod frontier;
pub mod limits;
mod links;
mod proto;
pub mod unixfs;
mod walk;

pub use floe_core::Block;
pub use links::{Link, Links, ScanError, is_walkable, links, scan};
pub use walk::{Budget, Next, Walk, WalkError};
