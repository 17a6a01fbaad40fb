//! Finds what the disk has spoilt, and fetches it again.
//!
//! The block store reads every record and compares packs and index both ways; what is damaged is quarantined
//! there and never served. This module asks the network for those blocks and writes them back, and names the
//! pins that hold what could not be had.
//!
//! It runs when an operator asks (`floe verify`), and in the background pack by pack, as the block store's schedule
//! says: every pack within 30 days, also across restarts. Crash or stop: what was mended stays mended, the rest is
//! found by the next round.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use floe_blockstore::{Error as StoreError, ManifestState, PatrolState, ScrubReport};
use floe_core::cid::code;
use floe_core::ports::SessionHints;
use floe_core::{AccountId, Block, Cid, Multihash, RequestId};
use floe_records::RowsReport;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use uuid::Uuid;

use crate::backoff::jittered;
use crate::context::Context;
use crate::{Error, limits, recovery};

const NAME: &str = "scrubber";

/// What `floe verify` prints.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct VerifyReport {
    /// Live blocks read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged or missing blocks, by multihash, and the pins that hold them.
    pub damaged: Vec<DamagedBlock>,
    /// Of these, how many were fetched again.
    pub repaired: u64,
    /// Damaged places that are no block and are needed: records of manifests, headers. Nothing can be fetched for them;
    /// what they said is found out by the next rebuild of the index.
    pub damaged_records: u64,
    /// Whether the block index disagreed with the packs: what it had lost is served again, and it is made again at
    /// the next start.
    pub index_wrong: bool,
    /// What is wrong in the rows, in words.
    pub rows: Vec<String>,
    /// What of the rows could not be checked in time, in words: `floe verify --offline` does it.
    pub rows_unchecked: Vec<String>,
    /// DAGs that rows call complete and that lost records in the packs. They are walked again from the start on;
    /// while there are any, nothing is collected.
    pub incomplete: Vec<IncompleteDag>,
}

/// A DAG that is not whole.
#[derive(Debug, Clone, serde::Serialize)]
pub struct IncompleteDag {
    /// Its id in rows and manifests.
    pub dag: Uuid,
    /// `(account, request id)` of its pins.
    pub pins: Vec<(i64, RequestId)>,
}

/// A damaged or missing block.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DamagedBlock {
    /// CID v1 raw of the multihash.
    pub cid: String,
    /// Whether it was fetched again.
    pub repaired: bool,
    /// `(account, request id)` of pins that hold it.
    pub pins: Vec<(i64, RequestId)>,
}

/// Runs until the engine stops.
pub(crate) async fn run(ctx: Arc<Context>) {
    ctx.board.state(NAME, "waiting", 0);
    tokio::select! {
        biased;
        () = ctx.stop.cancelled() => {}
        () = patrol(&ctx) => {}
    }
    ctx.board.state(NAME, "stopped", 0);
}

/// Reads pack after pack at the block store's pace, and mends what is found at once.
async fn patrol(ctx: &Context) {
    let mut wait = limits::SCRUB_FIRST_AFTER;
    loop {
        ctx.clock.sleep(jittered(wait, ctx.random())).await;
        wait = Duration::ZERO;
        ctx.board.state(NAME, progress(ctx.blocks.patrol_state()), 0);
        let finished = ctx.blocks.patrol_state().finished;
        let patrolled = ctx.blocks.patrol().await;
        if ctx.blocks.patrol_state().finished != finished {
            // The rows once in each round: they are little beside the blocks.
            if let Err(error) = check_rows(ctx, true).await {
                tracing::error!(%error, "the rows could not be checked: {error}");
                ctx.board.error(NAME, error);
            }
        }
        let mended = match patrolled {
            Ok(found) if found.is_clean() => continue,
            Ok(found) => {
                let _one_at_a_time = ctx.scrub.lock().await;
                answer(ctx, found).await
            }
            Err(error) => Err(error.into()),
        };
        match mended {
            Ok((report, _)) => tracing::info!(
                damaged = report.damaged.len(),
                repaired = report.repaired,
                "the scrub found {} damaged blocks: {} repaired",
                report.damaged.len(),
                report.repaired
            ),
            Err(error) => {
                tracing::error!(%error, "the scrub failed: {error}");
                ctx.board.error(NAME, error);
                wait = limits::SCRUB_RETRY;
            }
        }
    }
}

/// Checks the rows, and says what is wrong to who looks at the log or at `floe status`.
async fn check_rows(ctx: &Context, in_background: bool) -> Result<RowsReport, Error> {
    let report = ctx.records.verify_online(in_background).await?;
    let findings = &report.findings;
    for found in findings {
        tracing::error!("the rows are damaged: {found}");
    }
    if !findings.is_empty() {
        let count = findings.len();
        ctx.board.error(NAME, format!("the rows are damaged in {count} places; see `floe verify`"));
    }
    for what in &report.unchecked {
        tracing::warn!("{what} could not be checked in time: `floe verify --offline` does");
    }
    mend_sizes(ctx, &report.sizes).await?;
    Ok(report)
}

/// Writes again what complete DAGs hold, where the row is damaged: their manifests know it too.
async fn mend_sizes(ctx: &Context, damaged: &[Uuid]) -> Result<(), Error> {
    if damaged.is_empty() {
        return Ok(());
    }
    let blocks = ctx.blocks.clone();
    let manifests = tokio::task::spawn_blocking(move || blocks.manifests()).await;
    for (dag, state, held) in manifests.map_err(|_| Error::Stopping)?? {
        let is_whole = state == ManifestState::Sealed && damaged.contains(&dag);
        if is_whole && ctx.records.mend_dag(dag, held.blocks, held.bytes).await? {
            tracing::warn!(%dag, "what DAG {dag} holds was damaged in the rows: it is written again from its manifest");
        }
    }
    Ok(())
}

/// What `floe status` says of it.
fn progress(state: PatrolState) -> String {
    let last = state.finished.map_or_else(String::new, |at| format!(", last finished {at}"));
    match (state.next, state.began) {
        (Some(pack), Some(began)) => format!("reading every pack since {began}, at {pack:08x}{last}"),
        _ => format!("waiting{last}"),
    }
}

/// Scrubs and mends. Dropping the future leaves what is mended mended.
pub(crate) async fn verify(ctx: &Context) -> Result<VerifyReport, Error> {
    let _one_at_a_time = ctx.scrub.lock().await;
    ctx.board.state(NAME, "reading every block", 0);
    let found = ctx.blocks.scrub().await?;
    let (mut report, _) = answer(ctx, found).await?;
    let rows = check_rows(ctx, false).await?;
    (report.rows, report.rows_unchecked) = (rows.findings, rows.unchecked);
    let mut pins = Pins::default();
    for dag in recovery::confirm(ctx).await? {
        let named = pins.of(ctx, dag).await?.iter().map(|(account, id)| (account.0, *id)).collect();
        report.incomplete.push(IncompleteDag { dag, pins: named });
    }
    ctx.board.state(NAME, progress(ctx.blocks.patrol_state()), 0);
    Ok(report)
}

/// What [`mend_damaged`] came to.
pub(crate) struct Pass {
    /// Blocks that pins hold and nobody had.
    pub(crate) left: u64,
    /// Where the next pass begins; `None` where this one came to the end of the list.
    pub(crate) next: Option<Multihash>,
}

/// Fetches again what is known to be damaged, whoever found it, from `from` on and as far as one pass goes.
pub(crate) async fn mend_damaged(ctx: &Context, from: Option<Multihash>) -> Result<Pass, Error> {
    let _one_at_a_time = ctx.scrub.lock().await;
    let mut damaged = ctx.blocks.damaged(from.as_ref(), limits::HEAL_BLOCKS + 1);
    if damaged.is_empty() {
        return Ok(Pass { left: 0, next: None });
    }
    let behind = damaged.get(limits::HEAL_BLOCKS).copied();
    damaged.truncate(limits::HEAL_BLOCKS);
    let done = answer(ctx, ScrubReport { damaged, ..ScrubReport::default() }).await;
    ctx.board.state(NAME, progress(ctx.blocks.patrol_state()), 0);
    let (report, unasked) = done?;
    // The next pass begins at the first that there was no time for, and counts from there on.
    let asked = unasked.map_or(report.damaged.len(), |(at, _)| at);
    let left = report.damaged[..asked].iter().filter(|block| !block.repaired && !block.pins.is_empty());
    Ok(Pass { left: left.count() as u64, next: unasked.map(|(_, hash)| hash).or(behind) })
}

/// The first damaged block of a report that there was no time to ask for.
type Unasked = Option<(usize, Multihash)>;

/// Fetches again what a scrub found spoilt, and names who holds it.
async fn answer(ctx: &Context, found: ScrubReport) -> Result<(VerifyReport, Unasked), Error> {
    let mut report = VerifyReport {
        blocks: found.blocks,
        bytes: found.bytes,
        damaged_records: found.damaged_records,
        index_wrong: found.index_wrong,
        ..VerifyReport::default()
    };
    if found.damaged_records > 0 {
        let what = format!("{} records of the packs that are no blocks are damaged", found.damaged_records);
        tracing::error!(records = found.damaged_records, "{what}");
        ctx.board.error(NAME, what);
    }
    let mut spoilt: Vec<Multihash> = found.damaged.into_iter().chain(found.missing).collect();
    if spoilt.len() > limits::HEAL_BLOCKS {
        limits::hit("heal_blocks");
        tracing::error!(damaged = spoilt.len(), "{} blocks are damaged; mending the first", spoilt.len());
        spoilt.truncate(limits::HEAL_BLOCKS);
    }
    if spoilt.is_empty() {
        return Ok((report, None));
    }
    ctx.board.error(NAME, format!("{} blocks were damaged or missing", spoilt.len()));
    let holders = holders(ctx, &spoilt).await?;
    let Mended { mended, unasked } = mend(ctx, &spoilt, &holders).await?;
    let first_unasked = spoilt.iter().copied().enumerate().find(|(_, hash)| unasked.contains(hash));
    let mut pins = Pins::default();
    for hash in spoilt {
        let repaired = mended.contains(&hash);
        let mut named = Vec::new();
        for dag in holders.get(&hash).into_iter().flatten() {
            named.extend(pins.of(ctx, *dag).await?.iter().map(|(account, id)| (account.0, *id)));
        }
        named.sort_unstable();
        named.dedup();
        let cid = as_raw(&hash).to_string();
        if !repaired && !unasked.contains(&hash) {
            tracing::error!(%cid, pins = named.len(), "{cid} is damaged and nobody had it; {} pins hold it", named.len());
        }
        report.repaired += u64::from(repaired);
        report.damaged.push(DamagedBlock { cid, repaired, pins: named });
    }
    Ok((report, first_unasked))
}

/// The name that a multihash is asked for by: the codec does not matter to who has the bytes.
fn as_raw(hash: &Multihash) -> Cid {
    Cid::new_v1(code::RAW, *hash)
}

/// Which manifests, and so which DAGs, hold these blocks.
async fn holders(ctx: &Context, spoilt: &[Multihash]) -> Result<HashMap<Multihash, Vec<Uuid>>, Error> {
    let (blocks, spoilt) = (ctx.blocks.clone(), spoilt.to_vec());
    let found = tokio::task::spawn_blocking(move || blocks.holders(&spoilt)).await;
    Ok(found.map_err(|_| Error::Stopping)??)
}

/// Pins by DAG, each DAG looked up once.
#[derive(Default)]
struct Pins(HashMap<Uuid, Vec<(AccountId, RequestId)>>);

impl Pins {
    async fn of(&mut self, ctx: &Context, dag: Uuid) -> Result<&[(AccountId, RequestId)], Error> {
        Ok(match self.0.entry(dag) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(ctx.records.pins_of_dag(dag).await?),
        })
    }
}

/// What [`mend`] came to.
#[derive(Default)]
struct Mended {
    mended: HashSet<Multihash>,
    /// Those that there was no time to ask for.
    unasked: HashSet<Multihash>,
}

/// One session's worth: blocks of one DAG.
struct Search {
    dag: Option<Uuid>,
    wanted: Vec<Multihash>,
}

/// Fetches what is spoilt, some of one DAG in a session: who has its root most likely has the rest, and blocks below a
/// root are seldom announced by themselves. Searches in vain run side by side, and all of them have
/// [`limits::HEAL_ALL_WITHIN`]: many DAGs that nobody has must not keep the others waiting for days.
async fn mend(
    ctx: &Context,
    spoilt: &[Multihash],
    holders: &HashMap<Multihash, Vec<Uuid>>,
) -> Result<Mended, Error> {
    let until = ctx.clock.monotonic() + limits::HEAL_ALL_WITHIN;
    let searches = searches(spoilt, holders).into_iter().map(|search| mend_some(ctx, search, until).boxed());
    let mut searches = stream::iter(searches).buffer_unordered(limits::HEAL_SESSIONS);
    let mut all = Mended::default();
    ctx.board.state(NAME, "fetching damaged blocks again", spoilt.len() as u64);
    while let Some(some) = searches.try_next().await? {
        all.mended.extend(some.mended);
        all.unasked.extend(some.unasked);
        ctx.board.state(NAME, "fetching damaged blocks again", (spoilt.len() - all.mended.len()) as u64);
    }
    if !all.unasked.is_empty() {
        limits::hit("heal_all_within");
        let blocks = all.unasked.len();
        tracing::warn!(
            blocks,
            "there was no time to ask for {blocks} damaged blocks: the healer does it later"
        );
    }
    Ok(all)
}

/// Who is asked for what, in the order of the blocks.
fn searches(spoilt: &[Multihash], holders: &HashMap<Multihash, Vec<Uuid>>) -> Vec<Search> {
    let mut all: Vec<Search> = Vec::new();
    let mut filling: HashMap<Option<Uuid>, usize> = HashMap::new();
    for hash in spoilt {
        let dag = holders.get(hash).and_then(|dags| dags.first().copied());
        match filling.get(&dag).map(|at| &mut all[*at]) {
            Some(search) if search.wanted.len() < limits::HEAL_WANTS => search.wanted.push(*hash),
            _ => {
                filling.insert(dag, all.len());
                all.push(Search { dag, wanted: vec![*hash] });
            }
        }
    }
    all
}

/// Asks for some, and takes what comes until there is silence for [`limits::HEAL_WITHIN`], or the time is up.
async fn mend_some(ctx: &Context, search: Search, until: Duration) -> Result<Mended, Error> {
    let time_left = || until.saturating_sub(ctx.clock.monotonic());
    if time_left().is_zero() {
        return Ok(Mended { unasked: search.wanted.into_iter().collect(), ..Mended::default() });
    }
    let known = match search.dag {
        Some(dag) => ctx.records.held_dag(dag).await?,
        None => None,
    };
    let mut session = ctx.exchange.open(match known {
        Some(dag) => SessionHints { root: dag.root, origins: dag.origins },
        None => SessionHints { root: as_raw(&search.wanted[0]), origins: Vec::new() },
    });
    let mut left: HashMap<Multihash, Cid> = search.wanted.iter().map(|hash| (*hash, as_raw(hash))).collect();
    session.want(&left.values().copied().collect::<Vec<_>>());
    let mut mended = HashSet::new();
    while !left.is_empty() && !time_left().is_zero() {
        let blocks = tokio::select! {
            biased;
            blocks = poll_fn(|cx| session.poll_blocks(cx)) => blocks.ok(),
            () = ctx.clock.sleep(limits::HEAL_WITHIN.min(time_left())) => None,
        };
        let Some(blocks) = blocks else { break };
        for block in blocks {
            let hash = *block.cid().hash();
            if left.remove(&hash).is_some() {
                repair(ctx, block).await?;
                mended.insert(hash);
            }
        }
    }
    session.cancel(&left.into_values().collect::<Vec<_>>());
    Ok(Mended { mended, ..Mended::default() })
}

async fn repair(ctx: &Context, block: Block) -> Result<(), StoreError> {
    let cid = *block.cid();
    ctx.blocks.repair(block).await?;
    ctx.exchange.blocks_stored(&[cid]);
    tracing::info!(%cid, "{cid} was damaged and is repaired");
    Ok(())
}
