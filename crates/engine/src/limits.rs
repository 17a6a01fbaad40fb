//! Every bound of the engine, in one place. Each says what breaks if it is doubled or halved; each hit counts
//! `floe_limit_hits_total{limit="…"}`.

use std::time::Duration;

/// DAGs fetched at once on this node. Doubled: twice the buffers and searches; halved: slow providers hold up
/// more of the queue.
pub(crate) const FETCHES_PER_NODE: usize = 64;
/// DAGs of one account fetched at once, so that one account's dead pins leave slots to the others.
pub(crate) const FETCHES_PER_ACCOUNT: usize = 10;
/// Complete DAGs whose blocks were found missing at start and that are fetched again at the same time. They
/// come on top of the node's fetches: repair neither waits for users nor takes much from them.
pub(crate) const HEALS_PER_NODE: usize = 4;

/// An attempt that gets no block for so long parks and gives its slot back.
pub(crate) const FIRST_BLOCK_WITHIN: Duration = Duration::from_secs(20);
/// The same for the *first* attempt of a DAG while others wait for a slot. A hundred dead pins of one account
/// pass its ten slots in 40 s at this value, so a findable pin behind them is pinned within 60 s; what can be
/// had only slowly gets the full time in its second attempt, 30 s later. While others wait, an attempt that had
/// blocks has no more patience than one that had none, this or [`FIRST_BLOCK_WITHIN`]: a tree that lacks one leaf
/// is as dead as one that lacks its root.
pub(crate) const FIRST_BLOCK_WITHIN_CONTENDED: Duration = Duration::from_secs(4);
/// What each block gives back of that patience. A peer that sends one in this time, be it 64 KiB/s in blocks of
/// 256 KiB, keeps the slot; one that sends a block just before the time is up, each time, does not. Doubled: half as
/// much holds a slot for ever; halved: slow lines take turns with those that wait.
pub(crate) const PATIENCE_PER_BLOCK: Duration = FIRST_BLOCK_WITHIN_CONTENDED;
/// An attempt that had blocks parks after so long without another, where nobody waits for its slot (limits.md,
/// "no-progress timer per pin").
pub(crate) const NO_PROGRESS_WITHIN: Duration = Duration::from_secs(120);
/// Wait after the first attempt without a block; doubles with each.
pub(crate) const BACKOFF_FIRST: Duration = Duration::from_secs(30);
/// The longest wait between two attempts, before jitter (ipfs-cluster's recover interval).
pub(crate) const BACKOFF_MOST: Duration = Duration::from_secs(12 * 60);
/// The most that an attempt counts for of `pin.give_up_after`, with the wait before it. Two attempts are further apart
/// only where nothing was tried in between: the service was off, or others were first.
pub(crate) const SEARCHED_PER_ATTEMPT: Duration = BACKOFF_MOST.saturating_add(NO_PROGRESS_WITHIN);
/// Attempts that a pin has before it fails, however short its time is: one may fall into an hour without a network.
pub(crate) const ATTEMPTS_AT_LEAST: u32 = 3;
/// Jitter of a back-off: up to this share of it is taken off, so that pins that failed together do not come
/// back together.
pub(crate) const BACKOFF_JITTER_PERCENT: u64 = 25;

/// How often a running fetch looks at its timers, at stalled saves and at the space on the disk.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// Progress reaches the rows (and who watches) at most this often: each is a committed transaction.
pub(crate) const REPORT_EVERY: Duration = Duration::from_secs(1);
/// An unchanged fetch asks the rows this often whether it is still wanted and what it may still cost.
pub(crate) const REPORT_IDLE_EVERY: Duration = Duration::from_secs(10);

/// Bytes of new blocks that make one write to the packs. Half: more syncs than the disk needs; double: more
/// memory and a longer pause of the walk per write, without more speed.
pub(crate) const SAVE_BYTES: usize = 8 << 20;
/// New blocks that make one write, however small they are: their book-keeping is about 0.4 KiB each.
pub(crate) const SAVE_BLOCKS: usize = 16_384;
/// A fetch asks for no more blocks while it holds so many bytes that are not yet on disk.
pub(crate) const HELD_BYTES_PER_FETCH: usize = 24 << 20;
/// No fetch asks for more while all of them together hold so much.
pub(crate) const HELD_BYTES_PER_NODE: usize = 96 << 20;
/// CIDs that are known to be missing and wait for room in the session: enough that the network is busy while
/// the walk waits for the disk.
pub(crate) const READY_WANTS: usize = 4_096;
/// Blocks taken from a session in one go.
pub(crate) const TAKEN_AT_ONCE: usize = 1_024;
/// CIDs looked at in one step of the walk, after which its owner can be stopped or told news.
pub(crate) const VISITS_PER_STEP: usize = 8_192;
/// CIDs of link-bearing blocks that a walk has scanned and keeps in memory, about 2 MB; the others are in a scratch file.
/// Fewer cost a small read for each node of smaller DAGs too.
pub(crate) const SCANNED_IN_MEMORY: usize = 100_000;
/// New blocks wait at most about this long for others to share their write with.
pub(crate) const SAVE_EVERY: Duration = Duration::from_secs(2);
/// The frontier is saved after this many bytes: what a crash makes the walk look up (not fetch) again.
pub(crate) const CHECKPOINT_BYTES: u64 = 256 << 20;
/// … or after this long, where anything changed.
pub(crate) const CHECKPOINT_EVERY: Duration = Duration::from_secs(15);

/// News to one running fetch (more origins). What does not fit is dropped: origins are hints.
pub(crate) const CONTROLS_PER_FETCH: usize = 64;
/// Network events that wait to be handled. What does not fit is dropped: back-off tries the pins anyway.
pub(crate) const NETWORK_EVENTS: usize = 1_024;
/// Parked roots that peers are asked for.
pub(crate) const PARKED_ROOTS: usize = 16_384;
/// Changes kept for watchers; one that lags further re-reads its pin.
pub(crate) const CHANGES: usize = 1_024;
/// A watcher without news reads its pin this often.
pub(crate) const WATCH_POLL: Duration = Duration::from_secs(2);
/// Watchers at once. Each reads its pin and its token every [`WATCH_POLL`].
pub(crate) const WATCHERS: usize = 1_024;
/// Watchers of one account, so that 16 greedy accounts take what one could.
pub(crate) const WATCHERS_PER_ACCOUNT: usize = 64;

/// Jobs read at once. Larger than what can be stuck on the network, so that releases behind are reached.
pub(crate) const JOBS_PER_PASS: usize = 1_024;
/// Wait after a pass with a failure, and the longest after doubling.
pub(crate) const JOBS_RETRY_FIRST: Duration = Duration::from_secs(1);
/// See [`JOBS_RETRY_FIRST`].
pub(crate) const JOBS_RETRY_MOST: Duration = Duration::from_secs(60);
/// The longest that a worker sleeps without looking, however wrong its idea of what is due.
pub(crate) const IDLE_POLL: Duration = Duration::from_secs(30);
/// How soon a scheduler looks again when something is due that it could not claim.
pub(crate) const BLOCKED_POLL: Duration = Duration::from_secs(1);

/// Time from start until the scrub in the background goes on: a start has other things to read first.
pub(crate) const SCRUB_FIRST_AFTER: Duration = Duration::from_secs(600);
/// Time from a failure of the scrub until it is tried again.
pub(crate) const SCRUB_RETRY: Duration = Duration::from_secs(3600);
/// Damaged blocks that one scrub lists and tries to fetch again; the healer goes round all of them, so many at a time.
pub(crate) const HEAL_BLOCKS: usize = 10_000;
/// Searches for damaged blocks at once. Half: those that nobody has hold up the others for twice as long; double: more
/// peers are asked at once than what is mended beside everything else is worth.
pub(crate) const HEAL_SESSIONS: usize = 16;
/// No search begins, and none goes on, this long after the first of them: who waits for a report gets it, and the healer
/// goes on where it stopped. At the time of a search in vain, that is 320 of them.
pub(crate) const HEAL_ALL_WITHIN: Duration = Duration::from_secs(600);
/// Time from a read that finds damage until it is asked for: a walk that met it asks by itself, and what else the
/// same bad place holds is found meanwhile.
pub(crate) const HEAL_AFTER: Duration = Duration::from_secs(2);
/// Wait after an attempt that could not mend all damaged blocks, and the longest after doubling: each attempt reads
/// which manifests hold them.
pub(crate) const HEAL_RETRY_FIRST: Duration = Duration::from_secs(60);
/// See [`HEAL_RETRY_FIRST`].
pub(crate) const HEAL_RETRY_MOST: Duration = Duration::from_secs(3600);
/// A search for damaged blocks ends after this long without one.
pub(crate) const HEAL_WITHIN: Duration = Duration::from_secs(30);
/// Damaged blocks that one search asks for.
pub(crate) const HEAL_WANTS: usize = 256;

/// A look at the chain is fresh for so long, or for four times `deals.look_every` where that is more: two epochs of 30 s in
/// which a provider's own view may differ from ours anyway.
pub(crate) const VIEW_FRESH: Duration = Duration::from_secs(60);
/// Looks that somebody rang for are at least so far apart.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(200);
/// The same for looks because the head moved. Blocks of one epoch come one after the other over some seconds, and each is a
/// change: a look behind them sees them all, and one for each of them costs a public node's patience.
pub(crate) const HEAD_PAUSE: Duration = Duration::from_secs(2);
/// The dealer goes round this often without being rung.
pub(crate) const PLACE_EVERY: Duration = Duration::from_secs(30);
/// Heights asked for at once: nodes refuse filters over more than a day.
pub(crate) const SCAN_WINDOW: i64 = 500;
/// Such stretches in one look. Behind by more, a node catches up in several, and spends nothing until it has.
pub(crate) const SCANS_PER_LOOK: usize = 20;
/// Deals asked about at once, and how often in one look: each is a call of the node. What is over waits for the next look,
/// those that waited longest first.
pub(crate) const WATCHED_AT_ONCE: u32 = 64;
/// See [`WATCHED_AT_ONCE`].
pub(crate) const WATCHES_PER_LOOK: usize = 8;
/// Epochs between two looks at an active deal: half an hour, when a sector has a day to be proven.
pub(crate) const ACTIVE_CHECKED_EVERY: i64 = 60;
/// Epochs between two looks at a deal whose price the market still locks.
pub(crate) const LOCKED_CHECKED_EVERY: i64 = 60;
/// Deals that were asked for and are not published: each is a promise of money, and a pull that may come.
pub(crate) const DEALS_IN_FLIGHT: u64 = 500;
/// Deals that one message settles: a block has gas for no more. Those that are left are settled by the next.
pub const SETTLED_AT_ONCE: usize = 256;
/// Deals begun in one round of the dealer.
pub(crate) const SENDINGS_PER_PASS: usize = 64;
/// Proposals on the wire at once; a provider that does not answer holds one of these for a minute.
pub(crate) const SENDINGS_AT_ONCE: usize = 16;
/// Asks on the wire at once.
pub(crate) const ASKS_AT_ONCE: usize = 16;
/// Aggregates read at once.
pub(crate) const AGGREGATES_PER_PASS: u32 = 64;
/// Deals of one plan.
pub(crate) const DEALS_PER_PLAN: usize = 1_000;
/// What a provider asked for is asked again after so long: a minute in which nothing is signed at an old price.
pub(crate) const ASK_FRESH: Duration = Duration::from_secs(60);
/// Owner, peer id and addresses of a provider, which change rarely.
pub(crate) const CHAIN_INFO_FRESH: Duration = Duration::from_secs(3_600);
/// Epochs that a provider with Boost's default wants for sealing (a day), and an hour for the sending.
const SEALING: i64 = 2_880 + 120;

/// The least that must be left until a deal's start when it is sent: three quarters of the lead that it was chosen with, and
/// what providers want. Networks for tests have shorter leads, and providers that seal at once.
pub(crate) fn least_lead(start_lead: i64) -> i64 {
    let most_of_it = start_lead / 4 * 3;
    if start_lead < SEALING { most_of_it } else { most_of_it.max(SEALING) }
}

/// Attempts of one piece with one provider that came to nothing, after which it is not asked for this piece again.
pub(crate) const TRIES_PER_PROVIDER: usize = 3;
/// Wait before signed bytes whose answer was lost go out again; it doubles up to [`SEND_RETRY_MOST`].
pub(crate) const SEND_RETRY_FIRST: Duration = Duration::from_secs(10);
/// See [`SEND_RETRY_FIRST`].
pub(crate) const SEND_RETRY_MOST: Duration = Duration::from_secs(600);
/// A provider is asked how a deal goes so long after it accepted it.
pub(crate) const STATUS_FIRST: Duration = Duration::from_secs(30);
/// … and then this often.
pub(crate) const STATUS_EVERY: Duration = Duration::from_secs(120);
/// Deals that are asked after in one look. Words only: they may wait.
pub(crate) const STATUSES_PER_LOOK: u32 = 64;
/// … and at once.
pub(crate) const STATUSES_AT_ONCE: usize = 8;
/// Epochs that a deal runs at least and at most (filecoin.md 9.1), by the market actor's own constants.
pub(crate) const DEAL_LEAST: i64 = 518_400;
/// See [`DEAL_LEAST`]. No deal ends later than so many epochs from now either.
pub(crate) const DEAL_MOST: i64 = 3_680_640;
/// A deal ends a day before that, since whoever checks it has another head.
pub(crate) const DEAL_END_BUFFER: i64 = 2_880;
/// Bytes of a deal's label.
pub(crate) const LABEL_BYTES: usize = 256;
/// Segments of an aggregate: its manifest stays a block of less than 1 MiB. A piece of a GiB has room for as many in its
/// index.
pub(crate) const SEGMENTS_PER_AGGREGATE: usize = 8_192;
/// Sections of an aggregate, about 55 MB of memory while it is packed or read. A DAG with more is cut into parts. In
/// blocks of 256 KiB that is more than the largest piece holds.
pub(crate) const SECTIONS_PER_AGGREGATE: u64 = 1 << 20;
/// Parts of a DAG: at the usual target of 4 GiB that is 4 TiB. They are one row while it waits, of about 60 bytes each.
pub(crate) const PARTS_PER_DAG: usize = 16_384;
/// Parts of one DAG that are looked at for an aggregate: more than go into one.
pub(crate) const PARTS_PLANNED: usize = 64;
/// Sections of all pieces that are open at a time, about 110 MB: two of the largest, or all those of a usual node.
pub(crate) const OPEN_PIECE_SECTIONS: usize = 1 << 21;
/// What is open is counted in so many sections: each piece as one of these at least.
pub(crate) const SECTIONS_OF_ROOM: usize = 1 << 12;
/// Pieces that are kept open. More are laid out anew when they are read, which takes as long as reading their rows.
pub(crate) const OPEN_PIECES: usize = 64;
/// Bytes of a piece that are read at a time, at least; at most a block more. Half would be twice the hand-overs between
/// threads; double would hold more for each provider that pulls.
pub(crate) const PIECE_READ_BYTES: u64 = 1 << 20;
/// A segment of at least this size is hashed on several threads; to start them takes as long as hashing some KiB.
pub(crate) const HASHED_IN_PARALLEL: u64 = 8 << 20;
/// DAGs that are measured before something is packed, so that a flood of new pins does not hold up what is due.
pub(crate) const LOTS_MEASURED: u32 = 256;
/// DAGs that are looked at for one aggregate: twice what it holds.
pub(crate) const LOTS_PLANNED: u32 = 2 * SEGMENTS_PER_AGGREGATE as u32;
/// Deals of which it is known what was sent; with more, all begin anew. Each has some 16 bytes a range.
pub(crate) const PULLS_REMEMBERED: usize = 1_024;
/// Ranges of one deal's piece that are kept apart.
pub(crate) const RANGES_REMEMBERED: usize = 64;
/// Pieces of a plan that is only shown.
pub(crate) const PIECES_PER_PLAN: usize = 100;
/// The longest that the aggregator sleeps without looking. Its look is one read of an index where nothing waits.
pub(crate) const COLD_POLL: Duration = Duration::from_secs(5);
/// The first wait for a DAG that cannot be packed, and for packing that failed.
pub(crate) const COLD_RETRY: Duration = Duration::from_secs(60);
/// The longest, after doubling.
pub(crate) const COLD_RETRY_MOST: Duration = Duration::from_secs(3600);

/// [`CHECKPOINT_BYTES`], or 0 for the rigs that crash where the frontier is saved and cannot wait for so many.
pub(crate) fn checkpoint_bytes() -> u64 {
    fail::fail_point!("pin.frontier.always", |_| 0);
    CHECKPOINT_BYTES
}

/// Deals in one page of `deals ls`: the pins of each are looked up by themselves.
pub const DEALS_PER_PAGE: u32 = 100;
/// Pins that are listed for one deal: a piece of 32 GiB may hold a million small ones, and a list of them serves nobody.
pub(crate) const PINS_PER_DEAL: u32 = 1_000;
/// Signed proposals that `spending off` lists: more is a number, and `deals ls` has them all.
pub(crate) const DEALS_OUT: u32 = 500;

/// Counts one hit of a limit.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("floe_limit_hits_total", "limit" => limit).increment(1);
}

/// Whether so much makes one write to the packs.
pub(crate) fn is_full_write(bytes: usize, blocks: usize) -> bool {
    bytes >= SAVE_BYTES || blocks >= SAVE_BLOCKS
}

/// Whether a fetch that holds `own` bytes in memory may ask for more, while all of them hold `all`.
pub(crate) fn may_ask(own: usize, all: usize) -> bool {
    if own >= HELD_BYTES_PER_FETCH {
        hit("fetch_held_bytes");
        return false;
    }
    if all >= HELD_BYTES_PER_NODE {
        hit("node_held_bytes");
        return false;
    }
    true
}

#[cfg(test)]
pub(crate) mod testing {
    //! Counts the hits of limits on one thread.

    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
    use parking_lot::Mutex;

    #[derive(Default)]
    struct Hits(Mutex<BTreeMap<String, Arc<AtomicU64>>>);

    impl Recorder for Hits {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            assert_eq!(key.name(), "floe_limit_hits_total");
            let limit =
                key.labels().find(|l| l.key() == "limit").expect("names the limit").value().to_owned();
            Counter::from_arc(Arc::clone(self.0.lock().entry(limit).or_default()))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    /// The hits of `limit` while `work` ran.
    pub(crate) fn hits(limit: &str, work: impl FnOnce()) -> u64 {
        let recorder = Hits::default();
        metrics::with_local_recorder(&recorder, work);
        recorder.0.lock().get(limit).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::testing::hits;
    use super::*;

    #[test]
    fn a_write_is_full_at_its_bytes_and_at_its_blocks() {
        for (bytes, blocks, full) in [
            (SAVE_BYTES - 1, SAVE_BLOCKS - 1, false),
            (SAVE_BYTES, 1, true),
            (SAVE_BYTES + 1, 1, true),
            (1, SAVE_BLOCKS, true),
            (1, SAVE_BLOCKS + 1, true),
        ] {
            assert_eq!(is_full_write(bytes, blocks), full, "{bytes} bytes, {blocks} blocks");
        }
    }

    #[test]
    fn a_fetch_asks_for_no_more_at_either_bound_and_the_hit_is_counted() {
        for (own, all, limit) in [
            (HELD_BYTES_PER_FETCH - 1, HELD_BYTES_PER_NODE - 1, None),
            (HELD_BYTES_PER_FETCH, 0, Some("fetch_held_bytes")),
            (HELD_BYTES_PER_FETCH + 1, 0, Some("fetch_held_bytes")),
            (0, HELD_BYTES_PER_NODE, Some("node_held_bytes")),
            (0, HELD_BYTES_PER_NODE + 1, Some("node_held_bytes")),
        ] {
            assert_eq!(may_ask(own, all), limit.is_none());
            for known in ["fetch_held_bytes", "node_held_bytes"] {
                let counted = hits(known, || _ = may_ask(own, all));
                assert_eq!(counted, u64::from(limit == Some(known)), "{own} {all} {known}");
            }
        }
    }
}
