//! Every bound of this crate, with its reason. The largest piece, 64 GiB, is [`PaddedSize::MAX`].

use crate::PaddedSize;

/// Groups of 127 bytes that are hashed to one node at a time: 32 KiB of payload and 16 KiB of the row over its leaves stay in
/// the second cache. With fewer, more of the nodes stand at the top of a small tree, where there are too few to hash side
/// by side.
pub(crate) const CHUNK_GROUPS: usize = 256;

/// Bytes of payload in a chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK_GROUPS * crate::fr32::GROUP_BYTES;

/// The height of a chunk's root: four leaves to a group.
pub(crate) const CHUNK_HEIGHT: u8 = (4 * CHUNK_GROUPS).ilog2() as u8;

/// Levels of the largest tree, with leaves and root.
pub(crate) const LEVELS: usize = PaddedSize::MAX_HEIGHT as usize + 1;

/// Payload that one thread hashes at a time, about 1 MiB: long enough that handing it over costs nothing beside it, and
/// few of them under way.
pub(crate) const LARGE_CHUNK_BYTES: usize = 32 * CHUNK_BYTES;

/// The height of a large chunk's root.
pub(crate) const LARGE_CHUNK_HEIGHT: u8 = CHUNK_HEIGHT + 5;

/// Chunks that a thread has: the one it hashes, and the next, so that it does not wait for the feeder.
pub(crate) const CHUNKS_PER_WORKER: usize = 2;

/// The most threads for one piece: more cores than a node has, and 128 MiB of chunks.
pub const MAX_THREADS: usize = 64;
