//! Every number that bounds this crate, each with its reason. Nothing else in the crate spells one.
//!
//! Hitting a limit counts `floe_limit_hits_total{limit="…"}` through [`hit`].

use std::time::Duration;

/// Counts that a limit did its work.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}

/// The longest frame that is read, checked before a buffer exists for it: an unchecked varint is a remote
/// allocation. What boxo reads and writes at most (`MessageSizeMax`).
pub const FRAME_BYTES: usize = 4 << 20;

/// The longest frame of wants: peers reject more (boxo's client, `messagequeue.go`).
pub const CLIENT_FRAME_BYTES: usize = 2 << 20;

/// Entries of one kind kept of one message; what follows is dropped. Four times what one peer may have
/// queued here, so that only a hostile or very old message meets it, and a frame of 4 MiB cannot make 100 MB
/// of parsed entries.
pub const ENTRIES_PER_MESSAGE: usize = 4_096;

/// Entries in one frame of ours: 2,048 of the longest CIDs are 0.4 MB, far below [`CLIENT_FRAME_BYTES`].
pub const ENTRIES_PER_DELTA: usize = 2_048;

/// Changes of our wants that wait for one peer, before those that were overtaken are swept. What counts is at most
/// each want and as many cancels, half of it, so that a sweep is seldom.
pub const CHANGES_PER_PEER: usize = 4 * CLIENT_WANTS_PER_PEER;

/// Inbound streams of one connection that are read at once. Kubo and Helia open one per message, and none may
/// be dropped before its message is read; the muxers stop at 256 (yamux, as Floe sets it) or 64 (QUIC), so this is never the first
/// to be met and only bounds a muxer with other settings.
pub const INBOUND_STREAMS: usize = 1_024;

/// Inbound streams of one connection, past which one is over with the message that it brought. Kubo ends a stream only
/// when it has read what was said to its protocol: on a busy machine that is hundreds of messages later, and at 256
/// streams yamux ends the connection. QUIC stops here.
pub const INBOUND_LEFT_OPEN: usize = 64;

/// The same for a stream that brought wants: Kubo says all of its own over one stream, and what it has written there
/// when the stream is ended comes again only after half a minute. Helia has a stream for each message.
pub const INBOUND_WANTS_LEFT_OPEN: usize = 192;

/// The first buffer of a long frame: a length alone costs 16 KiB.
pub const FIRST_READ_BYTES: usize = 16 << 10;

/// What a frame gets once the first buffer is full: one leaf of the common size fits, with a quarter more. It is 16
/// times what has come.
pub const WHOLE_FRAME_BYTES: usize = 256 << 10;

/// From there on a buffer grows to so many times what has come.
pub const GROWTH: usize = 8;

/// Frames below this are copied out of the read buffer, so that a kept small block does not pin 16 KiB.
pub const COPY_FRAME_BELOW: usize = 2 << 10;

/// Payloads from here on are their own slice of the outgoing frame; smaller ones are copied behind each
/// other, because each slice becomes a muxer frame with a header and a wake-up of its own.
pub const SLICE_PAYLOAD_FROM: usize = 8 << 10;

/// How many times its own bytes a payload that came may keep in memory, as a slice of its frame; where it would be more,
/// it is copied. Four: the common leaves that fill an answer of [`ANSWER_TARGET_BYTES`], two of 256 KiB or one that is
/// larger, stay slices, and copying a byte costs a tenth of hashing it.
pub const SLICE_KEEPS: usize = 4;

/// What a block counts for in a queue beside its bytes: its CID, the handle of its bytes, its place. Without it,
/// blocks of no bytes would count for nothing, and as many could wait as a peer cares to send.
pub const BLOCK_OVERHEAD_BYTES: usize = 256;

/// Payload bytes of one connection that wait to be hashed before its streams are no longer read. Twice the
/// largest window of a session: no honest peer gets here, and hashing is faster than any network. Where
/// frames are mostly padding, memory is [`SLICE_KEEPS`] times this at most.
pub const INGEST_BYTES: usize = 64 << 20;

/// The same over all connections; where it is met, none is read until hashing, which waits for nobody, has caught up.
/// Two connections may have their most, and a limit per connection alone is none for who opens many.
pub const INGEST_TOTAL_BYTES: usize = 2 * INGEST_BYTES;

/// Room held by one connection for frames that have begun and not ended. Kubo sends eight answers at once at most,
/// each of 4 MiB at most: an honest peer needs half of it.
pub const UNFINISHED_BYTES_PER_CONNECTION: usize = 64 << 20;

/// The same over all connections: with [`INGEST_TOTAL_BYTES`], what others can make this node hold of what they send
/// is 256 MiB, or 640 MiB where three quarters of all is padding. The frames that began first are let go of where it is met.
pub const UNFINISHED_BYTES: usize = 128 << 20;

/// Payload bytes hashed in one go, about half a millisecond, before other tasks get their turn.
pub const HASH_SLICE_BYTES: usize = 1 << 20;

/// Wants outstanding at one peer, parked roots included: what boxo's server keeps
/// (`MaxQueuedWantlistEntriesPerPeer`); it forgets the rest.
pub const CLIENT_WANTS_PER_PEER: usize = 1_024;

/// Blocks asked at once of a peer that has delivered nothing yet. It doubles with each round that is
/// delivered: a peer that never sends holds up no more than this.
pub const PEER_WINDOW_START: usize = 32;

/// Bytes of blocks a session expects in flight at first.
pub const SESSION_WINDOW_START: usize = 8 << 20;

/// The same at most: 32 MiB carry 450 MB/s over a round trip of 70 ms.
pub const SESSION_WINDOW_BYTES: usize = 32 << 20;

/// The same over all sessions; each gets its share, but at least [`SESSION_SHARE_BYTES`].
pub const TOTAL_WINDOW_BYTES: usize = 64 << 20;

/// What a session may always expect, so that many sessions do not starve each other: one large block.
pub const SESSION_SHARE_BYTES: usize = 2 << 20;

/// Blocks a session may always have in flight, whatever their size.
pub const SESSION_WANTS_MIN: usize = 4;

/// Wants that [`crate::BitswapSession::room`] offers at most, however small the blocks are.
pub const SESSION_WANTS: usize = 4_096;

/// Wants kept for a caller that asks for more than it has room for; those above are refused, and
/// `progress().last_error` says so.
pub const SESSION_WANTS_KEPT: usize = 65_536;

/// Bytes of blocks that wait to be taken out of one session. A block that comes above is dropped and asked
/// for again later: streams are always drained, memory is bounded all the same. Four windows: only blocks much
/// larger than those before can meet it.
pub const INBOX_BYTES: usize = 128 << 20;

/// Peers of one session that count as providers, and peers named to it that are not connected.
pub const PROVIDERS_PER_SESSION: usize = 256;

/// Wants of one session that are looked for at once with want-have at every connected peer, others in each round. One is enough to
/// find a provider; several find partial ones.
pub const PROBES_PER_SESSION: usize = 32;

/// Times that a provider may say that it lacks a block before it stops counting as one, unless it delivers.
pub const PROVIDER_MISSES: u32 = 16;

/// Parked roots; the oldest go first.
pub const PARKED_ROOTS: usize = 10_000;

/// Parked roots that one peer is asked for: half of [`CLIENT_WANTS_PER_PEER`], so that fetching keeps the other
/// half.
pub const PARKED_PER_PEER: usize = 512;

/// Presences one peer is asked for, parked roots included: a quarter of [`CLIENT_WANTS_PER_PEER`] stays for
/// blocks whatever many sessions look for, also at a peer that answers no want-have.
pub const HAVES_PER_PEER: usize = 768;

/// Silence of a peer after which its blocks are also asked of an idle provider, where there is one.
pub const HEDGE_AFTER: Duration = Duration::from_secs(1);

/// Silence after which a block is asked elsewhere and no longer here. It counts from when the request was decided:
/// a peer may also be silent by never taking it. One that takes an answer of ours meanwhile is not silent.
pub const PROGRESS_TIMEOUT: Duration = floe_core::ports::BLOCK_PROGRESS_TIMEOUT;

/// Longest life of one request at a peer that does deliver other blocks.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Between a first want without a provider and the first call for providers: time for want-have to be answered.
pub const NEED_PROVIDERS_AFTER: Duration = Duration::from_secs(1);

/// Between two calls for providers, at first and at most.
pub const NEED_PROVIDERS_BACKOFF: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Blocks nobody asked for, or malformed messages, after which a peer is dropped. Duplicates of what was asked count
/// as nothing up to [`DUPLICATES_PER_REQUEST`], so an honest peer has none.
pub const STRIKES: u32 = 16;

/// Copies of a block that a peer may send for one request beside the first. One comes late where the block was asked
/// elsewhere meanwhile. Helia sends what is on its list again with each message that it gets, until a first copy is
/// out; it has 50 messages going out at once, and others wait as one.
pub const DUPLICATES_PER_REQUEST: u8 = 50;

/// Useful blocks that take one strike back.
pub const BLOCKS_PER_STRIKE: u32 = 64;

/// Settled requests per peer that are remembered to tell duplicates from unwanted blocks.
pub const SETTLED_PER_PEER: usize = 4_096;

/// Events that wait for the swarm; those above are dropped (each is repeated or only speeds things up).
pub const EVENTS: usize = 4_096;

/// Wants kept for one peer, also for `full=true`.
pub const SERVER_WANTS_PER_PEER: usize = 1_024;

/// Wants kept for all peers. Above it a want that stands gives way, of the peer with the most of them: 250 peers with
/// [`SERVER_WANTS_PER_PEER`] for what is not here do not keep the next one from being answered.
pub const SERVER_WANTS: usize = 256_000;

/// An answer is closed once it holds so many bytes of blocks. With one more block of 2 MiB it stays below
/// [`FRAME_BYTES`] by more than a megabyte.
pub const ANSWER_TARGET_BYTES: usize = 512 << 10;

/// No new answer is read for a peer while so many bytes are read and unwritten for it.
pub const OUTSTANDING_PER_PEER: usize = 1 << 20;

/// Answers read and not taken for one peer; no new one is read for it meanwhile. Bytes of blocks are bounded by
/// [`OUTSTANDING_PER_PEER`], but a presence has none: without this, a peer that asks for what is not here and
/// reads no answer has a DONT_HAVE kept for everything it ever asked. Two, so that one waits while the next is read.
pub const ANSWERS_PER_PEER: usize = 2;

/// Bytes read and unwritten over all peers, running reads counted with their most.
pub const OUTSTANDING_BYTES: usize = 64 << 20;

/// Reads that run at once: the disk's queue is the limit, not the number of threads.
pub const READ_JOBS: usize = 32;

/// Wants of a peer that count in the order of serving: a greedy peer gains nothing from more.
pub const FAIR_PENDING: usize = 16;

/// A peer that waited so long goes first.
pub const STARVED_AFTER: Duration = Duration::from_secs(10);

/// What one answer costs in the order of serving, however small it is.
pub const FAIR_MIN_COST: u64 = 16 << 10;

/// A want-have for a block of at most so many bytes is answered with the block (boxo does the same).
pub const INLINE_BLOCK_BYTES: u32 = 1_024;

/// Time for one frame to be written, and for one that has begun to be read: a base and 100 kbit/s, at least and at most.
pub const SEND_BASE: Duration = Duration::from_secs(2);
/// See [`SEND_BASE`].
pub const SEND_BYTES_PER_SECOND: u64 = 12_500;
/// See [`SEND_BASE`].
pub const SEND_TIMEOUT_MIN: Duration = Duration::from_secs(10);
/// See [`SEND_BASE`].
pub const SEND_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// Between two times that a peer is told its wants again because it let go of our stream. A want lost with a stream
/// would otherwise only be asked elsewhere, and a peer that closes each stream at once must not hear the same wants
/// for ever.
pub const HANG_UP_PAUSE: Duration = PROGRESS_TIMEOUT;

/// Egress buckets of peers that are gone, kept where egress is limited per peer. A peer that would make room here for a
/// second burst needs as many others that were served; who has so many peers has as many buckets as it likes, and is
/// bounded by the limit on all.
pub const GONE_BUCKETS: usize = 1_024;

/// Attempts to open the outbound stream before the peer counts as one that does not speak bitswap.
pub const OPEN_ATTEMPTS: u32 = 4;

/// Attempts to write an answer before it is dropped: more than one connection has, since one that dies fails them all
/// within a millisecond, and the answer is then to go over the peer's next.
pub const ANSWER_ATTEMPTS: u32 = 2 * OPEN_ATTEMPTS;

/// Between two looks at timers while there is work.
pub const TICK: Duration = Duration::from_millis(250);

/// The same while the egress limit holds answers back.
pub const THROTTLED_TICK: Duration = Duration::from_millis(20);

// The longest answer fits a frame: the longest run of blocks, and every entry with the longest CID.
const _: () = {
    let entries = SERVER_WANTS_PER_PEER * (floe_core::cid::MAX_CID_BYTES + 16);
    assert!(ANSWER_TARGET_BYTES - 1 + floe_core::block::MAX_BLOCK_BYTES + 2 * entries < FRAME_BYTES);
};
const _: () = assert!(size_of::<floe_core::Block>() <= BLOCK_OVERHEAD_BYTES);
// The longest delta fits what peers read.
const _: () = assert!(ENTRIES_PER_DELTA * (floe_core::cid::MAX_CID_BYTES + 24) < CLIENT_FRAME_BYTES);

/// What a block of such bytes counts for in a queue.
pub(crate) fn held_bytes(data: &[u8]) -> usize {
    data.len() + BLOCK_OVERHEAD_BYTES
}

/// Time for a frame of `bytes` to be written.
pub(crate) fn send_timeout(bytes: usize) -> Duration {
    let transfer = Duration::from_millis((bytes as u64).saturating_mul(1_000) / SEND_BYTES_PER_SECOND);
    (SEND_BASE + transfer).clamp(SEND_TIMEOUT_MIN, SEND_TIMEOUT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_send_timeout_is_clamped() {
        assert_eq!(send_timeout(0), SEND_TIMEOUT_MIN);
        assert_eq!(send_timeout(100_000), Duration::from_secs(10));
        assert_eq!(send_timeout(112_500), Duration::from_secs(11));
        assert_eq!(send_timeout(1_475_000), SEND_TIMEOUT_MAX);
        assert_eq!(send_timeout(FRAME_BYTES), SEND_TIMEOUT_MAX);
    }
}
