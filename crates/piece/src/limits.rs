//! Every bound of this crate, with its reason. The largest piece, 64 GiB, is [`PaddedSize::MAX`].

use crate::PaddedSize;

/// Groups of 127 bytes that are hashed to one node at a time: 16,256 bytes of payload become 16 KiB of leaves, which
/// stay in the first cache with the rows above them. Half as many cost a little more at the top of each small tree, where
/// there are too few nodes to hash side by side.
pub(crate) const CHUNK_GROUPS: usize = 128;

/// Bytes of payload in a chunk.
pub(crate) const CHUNK_BYTES: usize = CHUNK_GROUPS * crate::fr32::GROUP_BYTES;

/// The height of a chunk's root: four leaves to a group.
pub(crate) const CHUNK_HEIGHT: u8 = (4 * CHUNK_GROUPS).ilog2() as u8;

/// Levels of the largest tree, with leaves and root.
pub(crate) const LEVELS: usize = PaddedSize::MAX_HEIGHT as usize + 1;
