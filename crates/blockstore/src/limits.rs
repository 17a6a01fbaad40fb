//! Every bound of this crate, with its reason. Nothing else in the crate spells one of these numbers.
//!
//! A hit counts `floe_limit_hits_total{limit}` through [`hit`].

use std::time::Duration;

use floe_core::block::MAX_BLOCK_BYTES;

/// Largest data of a record. A block needs 2 MiB, a chunk of a full group of the smallest blocks under 8 MiB; a
/// frontier is as wide as its walk. Read before a length sizes a buffer.
pub(crate) const RECORD_BYTES: usize = 64 << 20;

/// Largest pack that a setting may ask for: offsets and positions are kept in 32 bits.
pub(crate) const PACK_BYTES: u64 = 3 << 30;
/// Smallest pack: below a group the store would do nothing but change files.
pub(crate) const PACK_BYTES_MIN: u64 = 64 << 10;

/// Bytes of blocks waiting for the writer. Four groups: the next group fills while one is being synced, and
/// doubling it only adds memory.
pub(crate) const QUEUE_BYTES: usize = 64 << 20;

/// Bytes in one group commit. Past 16 MiB a sync costs as much as the transfer, so larger groups add latency and
/// no speed.
pub(crate) const GROUP_BYTES: usize = 16 << 20;

/// Operations in one group commit: bounds the bookkeeping where blocks are tiny.
pub(crate) const GROUP_OPS: usize = 4096;

/// Bytes at the end of the log that stay in the page cache after they are durable: what was just pinned is what is
/// asked for next. What is older leaves it, so that the next group is written into the same pages. Without,
/// a bulk pin walks through all memory: it evicts what is hot, and on a virtual machine each new page costs a
/// fault of the host's (1.3 s of CPU a GiB instead of 0.5).
pub(crate) const CACHED_TAIL_BYTES: u64 = 16 << 20;

/// Log bytes between checkpoints of the index. Twice this is what open reads again after a crash (0.3 s).
pub(crate) const CHECKPOINT_BYTES: u64 = 128 << 20;

/// Changed index keys between checkpoints: about 150 B each in memory.
pub(crate) const CHECKPOINT_KEYS: usize = 100_000;

/// Changed index keys while a checkpoint is being written, after which the writer waits for it.
pub(crate) const FRONT_KEYS: usize = 2 * CHECKPOINT_KEYS;

/// Cache of the index back end; redb's own default is 1 GiB.
pub(crate) const INDEX_CACHE_BYTES: usize = 24 << 20;

/// Hashes in one step of a release: a step's work stays around 10 ms and others wait no longer than that.
pub(crate) const STEP_HASHES: usize = 4096;

/// Hashes in one manifest chunk, so that a chunk fits a step.
pub(crate) const CHUNK_HASHES: usize = 4096;

/// Between the numbers of two packs of the log: the numbers between are those of compaction. Numbers are never
/// used twice, and 2^32 of them last for 16 million packs of the log.
pub(crate) const PACK_STRIDE: u32 = 256;

/// Bytes that compaction copies in one group, for the same reason.
pub(crate) const COPY_BYTES: usize = 4 << 20;

/// Claims that a manifest holds in memory before they are written.
pub(crate) const PENDING_CLAIMS: usize = 2048;

/// Members of a manifest's visited set in memory, before it spills to a scratch file: about 3 MB a walk.
pub(crate) const VISITED_IN_MEMORY: usize = 100_000;

/// Packs whose files are kept open.
pub(crate) const OPEN_PACKS: usize = 256;

/// Largest hint file, read and written in memory: 800,000 records. A pack with more of them is walked.
pub(crate) const HINT_BYTES: usize = 32 << 20;

/// Space kept in a file of its own and given up first, so that releases, tombstones and checkpoints find room on
/// a full disk.
pub(crate) const KEPT_BYTES: u64 = 16 << 20;

/// What compaction may copy of a pack on a full disk: a quarter of the kept space, so that it never takes all that
/// tombstones need, and more packs can follow.
pub(crate) const KEPT_COPY_BYTES: u64 = KEPT_BYTES / 4;

/// Damaged blocks whose bytes are kept in `quarantine/`: evidence, not a second store.
pub(crate) const QUARANTINE_FILES: usize = 64;

/// Blocks that nobody counts and that cannot go yet, because somebody holds them or records were lost: about 10 MB. The
/// collector finds the others by looking at every block.
pub(crate) const ZERO_KEYS: usize = 100_000;

/// A dead block smaller than this is left to compaction: punching costs a metadata write each.
pub(crate) const PUNCH_BYTES: u64 = 64 << 10;

/// Removed blocks remembered for punching, 24 B each. What is more is found again by its tombstones, as what a stop
/// forgets. In tests so few that there are more.
pub(crate) const PUNCHABLE: usize = if cfg!(test) { 8 } else { 100_000 };

/// Dead bytes in a pack that grows, of the log or of compaction, after which it is sealed, so that its holes can be
/// punched.
pub(crate) const ROLL_DEAD_BYTES: u64 = 16 << 20;

/// Blocks that an index lost and the scrub puts back: about 10 MB. The rebuild at the next start has the rest.
pub(crate) const LOST_BLOCKS: usize = 100_000;

/// Damaged places that a scrub looks up in the index, to see whether anything lives there: about 3 MB. What is more
/// counts as damage without a look.
pub(crate) const DAMAGED_PLACES: usize = 100_000;

/// Between the beginnings of two rounds of the scrub in the background. Half of the 30 days in which every pack is to
/// be read: one read at the beginning of a round may be the last of the next.
pub(crate) const PATROL_EVERY: Duration = Duration::from_secs(15 * 24 * 3600);
/// The time that a round is paced for.
pub(crate) const PATROL_WITHIN: Duration = Duration::from_secs(14 * 24 * 3600);
/// What is left of a round that is late is read within this, so that catching up starves nobody.
pub(crate) const PATROL_LATE: Duration = Duration::from_secs(24 * 3600);
/// The slowest pace in bytes a second: small stores are done early. Little beside what any disk can do.
pub(crate) const PATROL_FLOOR: u64 = 1 << 20;
/// Bytes read at a time: a second's work at the slowest pace.
pub(crate) const PATROL_SLICE: u64 = 1 << 20;
/// How often the wall clock is looked at while no round runs: it may jump.
pub(crate) const PATROL_LOOK: Duration = Duration::from_secs(3600);

/// Index keys read at a time by walks over the whole index.
pub(crate) const SCAN_KEYS: usize = 1024;

/// The default reserve: the larger of 2 GiB and a twentieth of the volume.
pub(crate) const RESERVE_BYTES: u64 = 2 << 30;

/// Failed checkpoints in a row before the store gives up (a full disk does not count).
pub(crate) const CHECKPOINT_TRIES: u32 = 3;

const _: () = assert!(MAX_BLOCK_BYTES < RECORD_BYTES && GROUP_BYTES <= QUEUE_BYTES);

/// Counts a hit on `limit`.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}
