//! Every bound of the HTTP side, in one place. Each says what breaks if it is doubled or halved; each hit
//! counts `floe_limit_hits_total{limit="…"}`.

use std::time::Duration;

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
/// Connections of one client (an IPv4 address or an IPv6 /64), and requests at once of one client behind a
/// trusted proxy.
pub(crate) const CONNECTIONS_PER_CLIENT: usize = 64;
/// Connections of a listener, all clients together: what 16 greedy clients take. Each costs up to two buffers
/// of [`HYPER_HEADER_BYTES`], so this bounds the memory at 128 MiB.
pub(crate) const CONNECTIONS: usize = 1024;
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
/// Bytes waiting to be sent on one HTTP/2 stream.
pub(crate) const H2_SEND_BUFFER_BYTES: usize = 64 << 10;

/// Ops requests get this long at a stop.
pub(crate) const OPS_DRAIN: Duration = Duration::from_secs(1);

/// A request body. A maximal legal pin is far below.
pub(crate) const BODY_BYTES: usize = 256 << 10;
/// A body that is over is still read up to here and thrown away, so that a client that writes before it reads
/// gets the 413 and no reset.
pub(crate) const DRAINED_BODY_BYTES: usize = 1 << 20;
/// The text of a token; ours have 50 to 70 bytes.
pub(crate) const TOKEN_BYTES: usize = 512;
/// `Idempotency-Key`.
pub(crate) const IDEMPOTENCY_KEY_BYTES: usize = 255;
/// Characters of an account's name.
pub(crate) const ACCOUNT_NAME_CHARS: usize = 64;

/// Characters of a pin's name (spec).
pub(crate) const NAME_CHARS: usize = 255;
/// Origins in an answer (spec).
pub(crate) const ORIGINS_SHOWN: usize = 20;
/// Origins that are kept. More than are shown: the node uses the first 20 that parse and may be dialled, and
/// Kubo sends loopback and browser addresses before the ones that help.
pub(crate) const ORIGINS_KEPT: usize = 100;
/// Bytes of one origin; a longer one is skipped. A relay address with two certhashes has about 400.
pub(crate) const ORIGIN_BYTES: usize = 1024;
/// Entries of `meta` (spec).
pub(crate) const META_ENTRIES: usize = 1000;
/// Bytes of all keys and values of `meta`.
pub(crate) const META_BYTES: usize = 16 << 10;
/// CIDs in a filter. The spec says 10; some clients send more.
pub(crate) const FILTER_CIDS: usize = 100;
/// The largest page (spec).
pub(crate) const PAGE_MOST: u32 = 1000;
/// The page without `limit` (spec).
pub(crate) const PAGE_DEFAULT: u32 = 10;
/// Pins of one batch.
pub(crate) const BATCH_PINS: usize = 1000;
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
    pub(crate) tick: Duration,
    pub(crate) per_client: usize,
    pub(crate) connections: usize,
    pub(crate) event_comment: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            header_read: HEADER_READ,
            idle: IDLE,
            body_grace: BODY_GRACE,
            tick: DEADLINE_TICK,
            per_client: CONNECTIONS_PER_CLIENT,
            connections: CONNECTIONS,
            event_comment: EVENT_COMMENT_EVERY,
        }
    }
}

impl Pace {
    /// How long after its start a body that has made `bytes` may still stall.
    pub(crate) fn body_allowance(&self, bytes: u64) -> Duration {
        self.body_grace + Duration::from_millis(bytes.saturating_mul(1000) / BODY_RATE)
    }
}
