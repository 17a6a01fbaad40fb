//! Every bound of this crate, with its reason. Hitting one counts `floe_limit_hits_total{limit}`.

use std::time::Duration;

/// Requests waiting for the writer. Each is one caller: more only adds latency, since one sync serves a batch.
pub(crate) const WRITE_QUEUE: usize = 1_024;
/// Requests in one transaction. Half would cost syncs under load; double would stretch the worst reply.
pub(crate) const BATCH: usize = 128;
/// Pins that are written together: requests of one pin and a batch alike. More would hold them in memory twice for longer.
pub(crate) const PINS_PER_GROUP: usize = PINS_PER_REQUEST;
/// Rows of one statement. Each number of rows up to this is a text of its own that stays prepared: double would double
/// what these take in memory (about 1 MiB), half would be twice the statements for a full group.
pub(crate) const ROWS_PER_STATEMENT: usize = 32;
/// Statements that stay prepared on a connection: those of the writer that have each number of rows, and the others.
pub(crate) const STATEMENTS_PREPARED: usize = 512;
/// Complete DAGs settled for late pins in one follow-up transaction, so that callers wait little behind it.
pub(crate) const SETTLES_PER_PASS: i64 = 64;
/// Pins of one root that one transaction settles, fails or calls fetching: a root that everybody pins may have 50,000, and
/// with all of them in one transaction nobody else's write is answered for seconds.
pub(crate) const PINS_PER_STEP: usize = 1_000;
/// Connections that read. Reads are short; two cores do not use more.
pub(crate) const READERS: u32 = 4;
/// How long a reader or writer waits for a lock of another process (`floe verify`, a backup).
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Queued pins of an account where the settings say nothing else; none for the account `default` (limits.md, Tenants).
pub(crate) const QUEUED_PER_ACCOUNT: u64 = 10_000;
/// Queued pins over all accounts (limits.md, Tenants).
pub(crate) const QUEUED_OVER_ALL: u64 = 1_000_000;
/// How far `created` may run ahead of the clock (pinning-api M15).
pub(crate) const CREATED_AHEAD: Duration = Duration::from_secs(2);
/// Pins of one request: a batch (pinning-api).
pub const PINS_PER_REQUEST: usize = 1_000;
/// Pins of one page (pinning-api M13).
pub const PAGE: u32 = 1_000;
/// Damaged rows passed over for one page: each may cost a read. More is no list any more, but a case for a backup.
pub(crate) const DAMAGED_PER_PAGE: u64 = 1_000;
/// CIDs of one filter (limits.md).
pub const CIDS_PER_FILTER: usize = 100;
/// How long an idempotency key is kept (limits.md).
pub(crate) const KEY_KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Bytes of an idempotency key (limits.md).
pub const KEY_BYTES: usize = 255;
/// Expired keys deleted by each request that brings one: keeps the table at the size of a day.
pub(crate) const KEYS_PURGED: i64 = 16;
/// Tokens of an account that are neither revoked nor expired (limits.md).
pub(crate) const TOKENS_PER_ACCOUNT: i64 = 100;
/// Tokens that are let in without a look into the database: about 300 B each. More clients than that at a time pay the
/// look again.
pub(crate) const KNOWN_TOKENS: usize = 4_096;
/// Tokens of an account that have ended and are still listed, the newest. They say who had access; each is a row.
pub(crate) const TOKENS_ENDED_KEPT: i64 = 100;
/// Peers kept of one pin's origins for waking it (limits.md: 20 origins are used). Each is a row while the pin waits.
pub(crate) const PEERS_PER_PIN: usize = 20;
/// Origins handed to one fetch, over all pins of its root.
pub(crate) const ORIGINS_PER_DAG: usize = 100;
/// Pins of a DAG that are asked for their origins when it is fetched again, the newest first. With a few origins each,
/// these name more than [`ORIGINS_PER_DAG`]; a root may have 50,000 pins.
pub(crate) const PINS_ASKED: i64 = 1_000;
/// Accounts looked at in one claim; the next claim goes on where it ended.
pub(crate) const ACCOUNTS_PER_CLAIM: usize = 1_000;
/// DAGs woken by one event: more peers come, and the rest are due by themselves.
pub(crate) const WOKEN: i64 = 10_000;
/// How far a queue position is counted.
pub(crate) const QUEUE_POSITION: i64 = 1_000;
/// Places in the queue looked up by one statement. Fewer texts stay prepared than there are lengths of a page.
pub(crate) const PLACES_PER_STATEMENT: usize = 100;
/// Rows of one step of a scan: each step is its own short read, so that the WAL can be checkpointed.
pub(crate) const SCAN_STEP: i64 = 1_000;
/// How long a scan by part of a name or by meta may take (storage.md; 503 on expiry).
pub(crate) const SCAN_DEADLINE: Duration = Duration::from_secs(2);
/// What `rows.reserve` keeps for deletes on a full disk: some thousand small transactions.
pub(crate) const RESERVE_BYTES: u64 = 4 << 20;
/// How often the reserve is made again after it was given up.
pub(crate) const RESERVE_EVERY: Duration = Duration::from_secs(10);
/// Events that are kept: some days of a busy node. Whoever reads them further behind has missed the oldest.
pub(crate) const EVENTS_KEPT: i64 = 100_000;
/// Providers that are kept: each is looked at for each replica that is placed, and asked for its price.
pub(crate) const PROVIDERS: i64 = 1_000;
/// Aggregates of one filter: a pin is in one, or, where it is larger than a piece, in as many as it has parts.
pub(crate) const AGGREGATES_PER_FILTER: usize = 1_000;
/// How long one step of a check of a running node may take: a read holds back the log of the rows for as long. Ten
/// million pins and their indexes are read in a minute or two.
pub(crate) const CHECK_WITHIN: Duration = Duration::from_secs(600);
/// After how many steps of its own SQLite looks at the time: often enough to end within milliseconds of it.
pub(crate) const CHECK_LOOK: i32 = 1_000;
/// The part of one connection's time that a check in the background takes: every tenth second. Half would be twice as
/// long; double would be felt beside requests on two cores.
pub(crate) const CHECK_SHARE: u32 = 10;
/// How far a clock may be set back before the moments of pins look damaged.
pub(crate) const CLOCK_SET_BACK: Duration = Duration::from_secs(24 * 3_600);
/// Findings listed by a verification.
pub const FINDINGS: usize = 100;

/// Sections of one row of an aggregate's: a transaction of about 40 statements with what the index has of them. Half would
/// be twice the syncs for a piece, double would have writers wait twice as long.
pub const SECTIONS_PER_CHUNK: usize = 1_024;
/// Segments whose places are written in one transaction, each with a statement of its own.
pub(crate) const SEGMENTS_PER_STEP: usize = 64;
/// Policies and numbers of replicas that are looked at for what waits: more than an operator has policies.
pub(crate) const COLD_GROUPS: usize = 1_024;
/// Accounts whose waiting DAGs are looked at for one aggregate; those that were served longest ago.
pub(crate) const COLD_ACCOUNTS: u32 = 1_000;
/// Pins of a DAG larger than a piece that are told of each part at once; the others are told with the last part.
pub(crate) const COLD_PINS_TOLD: i64 = 1_000;
/// Characters of the reason why a DAG is not packed: it goes into rows and answers.
pub(crate) const COLD_REASON_CHARS: usize = 1_024;

/// Counts a hit.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}
