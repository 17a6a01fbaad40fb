//! Every bound of the HTTP side, in one place. Each says what breaks if it is doubled or halved; each hit
//! counts `floe_limit_hits_total{limit="…"}`.

use std::time::Duration;

/// What the rows bound, checked here first so that the answer can name the parameter.
pub(crate) use floe_engine::{
    CIDS_PER_FILTER as FILTER_CIDS, KEY_BYTES as IDEMPOTENCY_KEY_BYTES, PAGE as PAGE_MOST,
    PINS_PER_REQUEST as BATCH_PINS,
};

/// From a connection, or the first byte of a later request, to the whole header. Half cuts clients on poor
/// links, double lets a slow client hold a slot longer (slowloris, T22).
pub(crate) const HEADER_READ: Duration = Duration::from_secs(5);
/// A connection without a request is closed. Shorter than a client's own keep-alive, and its next request
/// meets a closing connection.
pub(crate) const IDLE: Duration = Duration::from_secs(120);
/// A body, in either direction, may stall for so long before [`BODY_RATE`] counts.
pub(crate) const BODY_GRACE: Duration = Duration::from_secs(10);
/// Bytes per second that a body has to make on average after [`BODY_GRACE`].
pub(crate) const BODY_RATE: u64 = 1024;
/// Connections of one client (an IPv4 address or an IPv6 /64).
pub(crate) const CONNECTIONS_PER_CLIENT: usize = 64;
/// Connections of a listener, all clients together: what 16 greedy clients take. Each costs up to two buffers of
/// [`HYPER_HEADER_BYTES`], or [`H2_RECEIVE_BYTES`] and the buffers of HTTP/2: 128 MiB for all.
pub(crate) const CONNECTIONS: usize = 1024;
/// Requests in flight of one client, over all its connections, until the last byte of each answer is with the system.
/// What one HTTP/2 connection may have open ([`H2_STREAMS`]); clients of HTTP/1 have no more connections than that.
pub(crate) const REQUESTS_PER_CLIENT: usize = 100;
/// Requests in flight of a listener, all clients together: what ten greedy clients take. Each costs its headers
/// ([`HEADER_BYTES`]), one pin ([`PIN_BYTES`]) as row and as text, and a task: 128 MiB for all. Bodies and pages come
/// on top, and are bounded by [`MEMORY_BYTES`].
pub(crate) const REQUESTS: usize = 1024;
/// Requests of administration that are taken where [`REQUESTS`] are in flight: an operator with a handful of commands.
/// Half: one who watches several things waits for the others; double: who has no token can hold them too, for as long
/// as reading a refusal takes.
pub(crate) const REQUESTS_KEPT: usize = 16;
/// Connections over a bound that are being told so at once. They are not [`CONNECTIONS`], or a full server could
/// refuse nobody politely.
pub(crate) const REFUSALS: usize = 64;
/// What a refused client is told to wait.
pub(crate) const REFUSED_FOR: Duration = Duration::from_secs(1);
/// Wait after an accept that failed for lack of descriptors or memory: what is open has to end first.
pub(crate) const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);
/// How often a connection looks at its deadlines: how much later than its deadline it may end.
pub(crate) const DEADLINE_TICK: Duration = Duration::from_secs(1);

/// Request line and headers. Long tokens and tracing headers fit; 4 KiB, as others have it, cuts them.
pub(crate) const HEADER_BYTES: usize = 16 << 10;
/// Header fields.
pub(crate) const HEADER_FIELDS: usize = 100;
/// What hyper reads before it refuses by itself, without a JSON body: far above [`HEADER_BYTES`], so that
/// nearly every client that is over gets the JSON answer.
pub(crate) const HYPER_HEADER_BYTES: usize = 64 << 10;
/// As [`HYPER_HEADER_BYTES`], for the number of fields.
pub(crate) const HYPER_HEADER_FIELDS: usize = 256;

/// HTTP/2 streams of one connection at once (RFC 9113 advises 100 at least).
pub(crate) const H2_STREAMS: u32 = 100;
/// HTTP/2 streams that the peer reset before we looked at them; one more ends the connection (CVE-2023-44487).
pub(crate) const H2_PENDING_RESETS: usize = 20;
/// HTTP/2 streams that we reset for the peer's errors; one more ends the connection.
pub(crate) const H2_ERROR_RESETS: usize = 256;
/// Bytes waiting to be sent on one HTTP/2 stream. They are parts of the answer, not copies of them.
pub(crate) const H2_SEND_BUFFER_BYTES: usize = 64 << 10;
/// Bytes of bodies that one HTTP/2 connection may send before a handler reads them. hyper's 1 MiB would be 1 GiB over
/// all connections.
pub(crate) const H2_RECEIVE_BYTES: u32 = 64 << 10;
/// A silent HTTP/2 connection is asked this often whether its other end is still there.
pub(crate) const H2_PING_EVERY: Duration = Duration::from_secs(30);
/// … and ends without an answer in this time: what is gone without a word holds an event stream no longer.
pub(crate) const H2_PONG_WITHIN: Duration = Duration::from_secs(20);
/// An answer is handed over in pieces of this size, so that it can be seen how fast they go: each has [`BODY_GRACE`] and
/// its time at [`BODY_RATE`]. Double would let a reader stall for longer; half costs more frames.
pub(crate) const ANSWER_PIECE_BYTES: usize = 16 << 10;

/// Pieces, or ranges of them, that are sent at the same time: each has a read of a MiB in memory, or a block more. Half
/// would keep ten providers with five ranges each waiting for each other; double would read from too many places of the
/// disk at once.
pub(crate) const PULLS: usize = 64;
/// … for one deal. Boost pulls five ranges, and begins anew while old connections have not ended.
pub(crate) const PULLS_PER_DEAL: usize = 16;
/// Connections of the pull listener: those that pull, and as many that ask.
pub(crate) const PULL_CONNECTIONS: usize = 256;
/// What a provider is told to wait that cannot have its piece now: long enough for a damaged block to be mended.
pub(crate) const PULL_AGAIN: Duration = Duration::from_secs(30);

/// Ops requests get this long at a stop.
pub(crate) const OPS_DRAIN: Duration = Duration::from_secs(1);

/// A request body. A maximal legal pin is far below.
pub(crate) const BODY_BYTES: usize = 256 << 10;
/// A body that is over is still read up to here and thrown away, so that a client that writes before it reads
/// gets the 413 and no reset.
pub(crate) const DRAINED_BODY_BYTES: usize = 1 << 20;
/// Memory for bodies and pages, over all clients, each weighed by what it can come to. Half: the page of one
/// account keeps the others waiting; double: more than a small machine has.
pub(crate) const MEMORY_BYTES: usize = 256 << 20;
/// What of [`MEMORY_BYTES`] one account may hold: three pages of 1000, or 350 of ten.
pub(crate) const MEMORY_PER_ACCOUNT: usize = MEMORY_BYTES / 2;
/// Memory for administration, beside [`MEMORY_BYTES`]: two of the longest bodies, and its own are some hundred bytes.
/// Half: one of them keeps the next waiting; double: nobody has so much to say.
pub(crate) const MEMORY_KEPT: usize = 8 << 20;
/// Accounts that are remembered, for their shares and their rates, before those that use nothing are let go of: some
/// 100 bytes each.
pub(crate) const ACCOUNTS_REMEMBERED: usize = 1024;
/// A request waits so long for memory before it is refused.
pub(crate) const MEMORY_WITHIN: Duration = Duration::from_secs(5);
/// What a client is told to wait that was refused for lack of memory.
pub(crate) const MEMORY_AGAIN: Duration = Duration::from_secs(5);
/// What a body weighs while it is worked on, in times its length: its text, the pins read from it, their rows and the
/// answer. The smallest pin has 70 bytes and is answered with 1 KiB.
pub(crate) const BODY_WEIGHT: usize = 16;
/// What a pin of a page weighs: [`META_BYTES`], [`ORIGINS_BYTES`], [`INFO_DEALS_BYTES`], its name and the rest. Read and
/// written at the same time it is there twice; control characters, written as six, may be more.
pub(crate) const PIN_BYTES: usize = 48 << 10;
/// Bytes of a pin's `info.deals`, the newest attempts: some twenty of the usual length. `deals ls` has the others.
pub(crate) const INFO_DEALS_BYTES: usize = 12 << 10;
/// What a deal of a list weighs: a thousand request ids of 39 bytes, and its row.
pub(crate) const DEAL_BYTES: usize = 48 << 10;
/// Lines of the costs read at a time.
pub(crate) const COSTS_PER_READ: u32 = 1_000;
/// Lines of the costs in one answer: accounts, providers or months. More are no table any more.
pub(crate) const COSTS: usize = 10_000;
/// Addresses that the operator gives of a provider: the first that answers is used.
pub(crate) const PROVIDER_ADDRESSES: usize = 16;
/// Tags of a provider.
pub(crate) const PROVIDER_REGIONS: usize = 16;
/// Streams of events at a time: each reads the rows twice a second. As many as [`REQUESTS_KEPT`].
pub(crate) const EVENT_STREAMS: usize = REQUESTS_KEPT;
/// What one is told to wait that found them taken.
pub(crate) const EVENT_STREAMS_AGAIN: Duration = Duration::from_secs(10);
/// Events read at a time: about 50 KiB.
pub(crate) const EVENTS_PER_READ: u32 = 100;
/// How often a stream without news looks for some.
pub(crate) const EVENT_POLL: Duration = Duration::from_millis(500);
/// The text of a token; ours have 50 to 70 bytes.
pub(crate) const TOKEN_BYTES: usize = 512;
/// Characters of an account's name.
pub(crate) const ACCOUNT_NAME_CHARS: usize = 64;

/// Characters of a pin's name (spec).
pub(crate) const NAME_CHARS: usize = 255;
/// Origins in an answer (spec).
pub(crate) const ORIGINS_SHOWN: usize = 20;
/// Origins that are kept. More than are shown: the node uses the first 20 that parse and may be dialled, and
/// Kubo sends loopback and browser addresses before the ones that help.
pub(crate) const ORIGINS_KEPT: usize = 100;
/// Bytes of all origins of a pin; what goes over is left out. Kubo's 20 to 40 addresses have 2 to 8 KiB. A pin of a
/// hundred long ones would make a page of 1000 pins 100 MiB.
pub(crate) const ORIGINS_BYTES: usize = 16 << 10;
/// Bytes of one origin; a longer one is skipped. A relay address with two certhashes has about 400.
pub(crate) const ORIGIN_BYTES: usize = 1024;
/// Entries of `meta` (spec).
pub(crate) const META_ENTRIES: usize = 1000;
/// Bytes of all keys and values of `meta`.
pub(crate) const META_BYTES: usize = 16 << 10;
/// Policies that an error names: more would bury what it is about.
pub(crate) const POLICIES_NAMED: usize = 20;
/// The page without `limit` (spec).
pub(crate) const PAGE_DEFAULT: u32 = 10;
/// What a client is told to wait whose query took too long: longer than the query did, so that one that only repeats
/// it leaves the disk to others most of the time.
pub(crate) const SCAN_AGAIN: Duration = Duration::from_secs(10);
/// A comment on an event stream without news, so that proxies keep it open.
pub(crate) const EVENT_COMMENT_EVERY: Duration = Duration::from_secs(15);

/// Counts a hit.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}

/// The bounds that tests lower.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) header_read: Duration,
    pub(crate) idle: Duration,
    pub(crate) body_grace: Duration,
    pub(crate) body_rate: u64,
    pub(crate) tick: Duration,
    pub(crate) per_client: usize,
    pub(crate) connections: usize,
    pub(crate) requests_per_client: usize,
    pub(crate) requests: usize,
    pub(crate) event_comment: Duration,
}

/// Bytes of an address of the chain; the longest has about 120.
pub(crate) const ADDRESS_BYTES: usize = 255;
/// Deals that one message settles: what the engine puts into one.
pub(crate) const DEALS_SETTLED: usize = floe_engine::cold::SETTLED_AT_ONCE;

impl Default for Pace {
    fn default() -> Self {
        Self {
            header_read: HEADER_READ,
            idle: IDLE,
            body_grace: BODY_GRACE,
            body_rate: BODY_RATE,
            tick: DEADLINE_TICK,
            per_client: CONNECTIONS_PER_CLIENT,
            connections: CONNECTIONS,
            requests_per_client: REQUESTS_PER_CLIENT,
            requests: REQUESTS,
            event_comment: EVENT_COMMENT_EVERY,
        }
    }
}

impl Pace {
    /// Of the pull listener.
    pub(crate) fn of_pulls(self) -> Self {
        Self { connections: PULL_CONNECTIONS, requests: PULL_CONNECTIONS, ..self }
    }

    /// How long after its start a body that has made `bytes` may still stall.
    pub(crate) fn body_allowance(&self, bytes: u64) -> Duration {
        self.body_grace + Duration::from_millis(bytes.saturating_mul(1000) / self.body_rate)
    }
}
