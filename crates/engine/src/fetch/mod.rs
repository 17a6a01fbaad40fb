//! One DAG being fetched, from claim to outcome.
//!
//! ```text
//!             wants                      blocks
//!   Session <──────── Driver (async) <──────────── Session
//!                     │  ▲   the only owner of the session, the timers and the queues between
//!        blocks, step │  │ CIDs found missing
//!                     ▼  │
//!                    Walker (blocking threads) ──save──> packs
//! ```
//!
//! The driver never waits for a block, nor does it touch the disk: while the [`Walker`] is away on a blocking
//! thread or in a write, blocks pile up (bounded) and wants that are known already go out. So network, hashing
//! and disk overlap, and the slower the disk, the larger the batches become by themselves.
//!
//! A fetch ends in one of the ways of [`Ended`]. Whatever way, what came is durable before the outcome is
//! written, and a crash in between costs look-ups, not transfers. Cancelling it ([`Running`]) lets it save its
//! place first; dropping it does not, and is what a crash does.

mod walker;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use floe_blockstore::{Error as StoreError, ManifestTotals};
use floe_core::Block;
use floe_core::Cid;
use floe_core::clock::BoxFuture;
use floe_core::ports::{ExchangeClosed, Session, SessionHints};
use floe_dag::{Budget, WalkError};
use floe_records::ClaimedDag;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::walker::{Step, StepError, Walker};
use crate::context::Context;
use crate::limits;

/// How a fetch ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// All of it is here, and the manifest is sealed.
    Complete(ManifestTotals),
    /// Not now.
    Parked {
        /// Why, in words for the owner of the pin.
        reason: String,
        /// Whether a block came.
        progressed: bool,
    },
    /// Never.
    Failed(String),
    /// No pin wants it any more.
    Unwanted,
    /// The engine stops; the place is saved.
    Stopped,
}

/// News for a running fetch.
#[derive(Debug)]
pub(crate) enum Control {
    /// Another pin of the same root names these origins.
    Origins {
        /// Multiaddrs.
        origins: Vec<String>,
        /// Whether they came from this machine.
        local_request: bool,
    },
    /// A pin of it was removed: ask whether any is left.
    Check,
}

/// The fetches that run, by DAG.
#[derive(Default)]
pub(crate) struct Running(Mutex<HashMap<Uuid, Handle>>);

struct Handle {
    control: mpsc::Sender<Control>,
    cancel: CancellationToken,
    finished: CancellationToken,
}

impl Running {
    /// Enters a fetch. The returned guard takes it out again, also when the fetch is dropped or panics.
    pub(crate) fn enter(self: &Arc<Self>, dag: Uuid, stop: &CancellationToken) -> Entered {
        let (control, news) = mpsc::channel(limits::CONTROLS_PER_FETCH);
        let handle = Handle { control, cancel: stop.child_token(), finished: CancellationToken::new() };
        let entered = Entered { running: Arc::clone(self), dag, news, cancel: handle.cancel.clone() };
        self.0.lock().insert(dag, handle);
        entered
    }

    /// Tells a fetch; `false` where none runs.
    pub(crate) fn tell(&self, dag: Uuid, control: Control) -> bool {
        let running = self.0.lock();
        let Some(handle) = running.get(&dag) else { return false };
        if handle.control.try_send(control).is_err() {
            limits::hit("fetch_controls");
        }
        true
    }

    /// Stops a fetch, if it runs, and waits until it has let go of its manifest.
    pub(crate) async fn stop(&self, dag: Uuid) {
        let finished = self.0.lock().get(&dag).map(|handle| {
            handle.cancel.cancel();
            handle.finished.clone()
        });
        if let Some(finished) = finished {
            finished.cancelled().await;
        }
    }
}

/// A fetch's place in [`Running`].
pub(crate) struct Entered {
    running: Arc<Running>,
    dag: Uuid,
    news: mpsc::Receiver<Control>,
    cancel: CancellationToken,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(handle) = self.running.0.lock().remove(&self.dag) {
            handle.finished.cancel();
        }
    }
}

/// Fetches one DAG. `silent`: the rows know it as complete already (it is being mended), so they hear nothing.
pub(crate) async fn fetch(ctx: Arc<Context>, dag: ClaimedDag, silent: bool, entered: &mut Entered) -> Ended {
    let protect = loop {
        match ctx.blocks.protect(dag.dag, dag.root).await {
            Ok(protect) => break protect,
            Err(StoreError::ReadOnly) => {
                if let Some(ended) = wait_for_space(&ctx, &dag, silent, &entered.cancel).await {
                    return ended;
                }
            }
            Err(error) => return store_trouble(&dag, &error, false),
        }
    };
    let budget = Budget {
        max_blocks: ctx.settings.max_blocks,
        max_bytes: byte_budget(&ctx, dag.byte_allowance),
        max_depth: ctx.settings.max_depth,
    };
    let (root, blocks) = (dag.root, ctx.blocks.clone());
    let opened = tokio::task::spawn_blocking(move || Walker::new(protect, root, budget, blocks)).await;
    let walker = match opened {
        Ok(Ok(walker)) => Box::new(walker),
        Ok(Err(error)) => return Ended::Failed(failure_words(&error, &dag, budget.max_bytes)),
        Err(_) => return internal(&dag, "opening the walk"),
    };
    Driver::new(ctx, dag, silent, walker).run(entered).await
}

/// Waits while the store is read-only. `Some` where there is nothing more to wait for.
async fn wait_for_space(
    ctx: &Context,
    dag: &ClaimedDag,
    silent: bool,
    cancel: &CancellationToken,
) -> Option<Ended> {
    let mut waited = Duration::ZERO;
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Some(Ended::Stopped),
            () = ctx.clock.sleep(limits::TICK) => waited += limits::TICK,
        }
        if !ctx.blocks.is_read_only() {
            return None;
        }
        if !silent && waited >= limits::REPORT_IDLE_EVERY {
            waited = Duration::ZERO;
            let note = Some(PAUSED.to_owned());
            if let Ok(None) = ctx.records.dag_progress(dag.dag, 0, 0, note).await {
                return Some(Ended::Unwanted);
            }
        }
    }
}

const PAUSED: &str = "paused: the service is short of disk space; it goes on by itself";

fn byte_budget(ctx: &Context, allowance: Option<u64>) -> u64 {
    ctx.settings.max_bytes.unwrap_or(u64::MAX).min(allowance.unwrap_or(u64::MAX))
}

/// A result of work that runs beside the driver.
enum Done {
    Stepped(Box<Walker>, Step, Result<(), Box<StepError>>),
    Saved(Box<Walker>, Result<(), StoreError>),
    Reported(Result<Option<Option<u64>>, floe_records::Error>),
    /// The blocking thread panicked and took the walker with it.
    Lost,
    Tick,
    Cancelled,
}

enum Event {
    Blocks(Result<Vec<Block>, ExchangeClosed>),
    Done(Done),
    Control(Control),
}

/// See the module.
struct Driver {
    ctx: Arc<Context>,
    dag: ClaimedDag,
    silent: bool,
    /// `None` while it is away in `work`.
    walker: Option<Box<Walker>>,
    /// Opened with the first want: a DAG that is all here needs no network.
    session: Option<Box<dyn Session>>,
    /// Known to be missing, not asked for yet.
    wants: VecDeque<Cid>,
    /// Asked for, without an answer. A hint for when to save; whether the walk is done says the walk.
    outstanding: usize,
    /// Came, not walked yet.
    incoming: Vec<Block>,
    incoming_bytes: usize,
    /// Bytes that the walker has with it while it is away.
    away_bytes: usize,
    /// This fetch's part of `Context::held_bytes`.
    held: usize,
    /// Nothing more to look at until blocks come.
    exhausted: bool,
    /// The store is short of space: nothing is asked for, nothing fails, the timers stand still.
    paused: bool,
    work: FuturesUnordered<BoxFuture<'static, Done>>,
    totals: ManifestTotals,
    reported: Option<ManifestTotals>,
    reporting: bool,
    check: bool,
    /// Times are of the monotonic clock.
    progress_at: Duration,
    saved_at: Duration,
    checkpoint_at: Duration,
    reported_at: Duration,
    got_block: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.ctx.held_bytes.fetch_sub(self.held, Ordering::Relaxed);
    }
}

impl Driver {
    fn new(ctx: Arc<Context>, dag: ClaimedDag, silent: bool, walker: Box<Walker>) -> Self {
        let now = ctx.clock.monotonic();
        let totals = walker.totals();
        Self {
            ctx,
            dag,
            silent,
            walker: Some(walker),
            session: None,
            wants: VecDeque::new(),
            outstanding: 0,
            incoming: Vec::new(),
            incoming_bytes: 0,
            away_bytes: 0,
            held: 0,
            exhausted: false,
            paused: false,
            work: FuturesUnordered::new(),
            totals,
            reported: None,
            reporting: false,
            check: false,
            progress_at: now,
            saved_at: now,
            checkpoint_at: now,
            reported_at: now,
            got_block: false,
        }
    }

    async fn run(mut self, entered: &mut Entered) -> Ended {
        let cancel = entered.cancel.clone();
        self.work.push(Box::pin(async move {
            cancel.cancelled().await;
            Done::Cancelled
        }));
        self.start_tick();
        let ended = loop {
            self.pump();
            if self.walker.as_ref().is_some_and(|w| w.is_done()) {
                break None;
            }
            let event = self.next_event(&mut entered.news).await;
            if let Some(ended) = self.handle(event) {
                break Some(ended);
            }
        };
        // Takes back what was asked for, before anything slow.
        self.session = None;
        match ended {
            None => self.seal(&entered.cancel).await,
            Some(ended @ (Ended::Parked { .. } | Ended::Stopped)) => {
                self.save_place().await;
                ended
            }
            Some(ended) => ended,
        }
    }

    /// Starts whatever can go on now.
    fn pump(&mut self) {
        self.account();
        if self.paused {
            return;
        }
        self.send_wants();
        let Some(walker) = self.walker.take() else { return };
        if walker.has_fresh() && self.must_save(&walker) {
            self.start_save(walker);
        } else if !self.incoming.is_empty() || (!self.exhausted && self.wants.len() < limits::READY_WANTS / 2)
        {
            self.start_step(walker);
        } else if walker.has_fresh() && self.is_starved() {
            // Nothing is on its way that could join this write: the end of the DAG, or a missing block.
            self.start_save(walker);
        } else {
            self.walker = Some(walker);
        }
    }

    fn must_save(&self, walker: &Walker) -> bool {
        let now = self.ctx.clock.monotonic();
        walker.is_full()
            || now.saturating_sub(self.saved_at) >= limits::SAVE_EVERY
            || self.ctx.held_bytes.load(Ordering::Relaxed) >= limits::HELD_BYTES_PER_NODE
    }

    fn is_starved(&self) -> bool {
        self.exhausted && self.outstanding == 0 && self.wants.is_empty()
    }

    /// Brings `Context::held_bytes` up to date.
    fn account(&mut self) {
        let held = self.incoming_bytes + self.walker.as_ref().map_or(self.away_bytes, |w| w.fresh_bytes());
        let all = &self.ctx.held_bytes;
        if held >= self.held {
            all.fetch_add(held - self.held, Ordering::Relaxed);
        } else {
            all.fetch_sub(self.held - held, Ordering::Relaxed);
        }
        self.held = held;
    }

    fn send_wants(&mut self) {
        if self.wants.is_empty() {
            return;
        }
        if self.held >= limits::HELD_BYTES_PER_FETCH {
            return limits::hit("fetch_held_bytes");
        }
        if self.ctx.held_bytes.load(Ordering::Relaxed) >= limits::HELD_BYTES_PER_NODE {
            return limits::hit("node_held_bytes");
        }
        let session = self.session.get_or_insert_with(|| {
            self.progress_at = self.ctx.clock.monotonic();
            self.ctx.exchange.open(SessionHints {
                root: self.dag.root,
                origins: self.dag.origins.clone(),
                local_request: self.dag.local_request,
            })
        });
        let count = session.room().min(self.wants.len());
        if count > 0 {
            let wants: Vec<Cid> = self.wants.drain(..count).collect();
            session.want(&wants);
            self.outstanding += count;
        }
    }

    fn start_step(&mut self, mut walker: Box<Walker>) {
        let incoming = std::mem::take(&mut self.incoming);
        self.away_bytes = walker.fresh_bytes() + std::mem::take(&mut self.incoming_bytes);
        let step = tokio::task::spawn_blocking(move || {
            let (step, result) = walker.step(incoming);
            Done::Stepped(walker, step, result.map_err(Box::new))
        });
        self.work.push(Box::pin(async move { step.await.unwrap_or(Done::Lost) }));
    }

    fn start_save(&mut self, mut walker: Box<Walker>) {
        let now = self.ctx.clock.monotonic();
        self.away_bytes = walker.fresh_bytes();
        self.saved_at = now;
        let late = now.saturating_sub(self.checkpoint_at) >= limits::CHECKPOINT_EVERY;
        let checkpoint = late || walker.since_checkpoint() >= limits::CHECKPOINT_BYTES;
        if checkpoint {
            self.checkpoint_at = now;
        }
        self.work.push(Box::pin(async move {
            let mut saved = walker.save().await;
            if checkpoint && saved.is_ok() {
                saved = walker.checkpoint().await;
            }
            Done::Saved(walker, saved)
        }));
    }

    fn start_tick(&mut self) {
        let tick = self.ctx.clock.sleep(limits::TICK);
        self.work.push(Box::pin(async move {
            tick.await;
            Done::Tick
        }));
    }

    fn start_report(&mut self) {
        if self.silent || self.reporting {
            return;
        }
        (self.reporting, self.check) = (true, false);
        self.reported_at = self.ctx.clock.monotonic();
        self.reported = Some(self.totals);
        let (records, dag, totals) = (self.ctx.records.clone(), self.dag.dag, self.totals);
        let note = if self.paused {
            Some(PAUSED.to_owned())
        } else {
            self.session.as_ref().and_then(|s| s.progress().last_error)
        };
        self.work.push(Box::pin(async move {
            Done::Reported(records.dag_progress(dag, totals.blocks, totals.bytes, note).await)
        }));
    }

    /// Cancel safe: everything it takes out of a queue it returns.
    async fn next_event(&mut self, news: &mut mpsc::Receiver<Control>) -> Event {
        poll_fn(|cx| {
            // Local results first: they free what remote input would fill.
            if let Poll::Ready(Some(done)) = self.work.poll_next_unpin(cx) {
                return Poll::Ready(Event::Done(done));
            }
            if let Poll::Ready(Some(control)) = news.poll_recv(cx) {
                return Poll::Ready(Event::Control(control));
            }
            if let Some(session) = &mut self.session
                && let Poll::Ready(blocks) = session.poll_blocks(cx)
            {
                return Poll::Ready(Event::Blocks(blocks));
            }
            Poll::Pending
        })
        .await
    }

    fn handle(&mut self, event: Event) -> Option<Ended> {
        match event {
            Event::Blocks(Ok(blocks)) => self.on_blocks(blocks),
            // The engine is about to be stopped, or the network has failed: either way, later.
            Event::Blocks(Err(ExchangeClosed)) => {
                return Some(self.park("the network is shutting down".into()));
            }
            Event::Control(Control::Origins { origins, local_request }) => {
                self.on_origins(origins, local_request)
            }
            Event::Control(Control::Check) => {
                self.check = true;
                self.start_report();
            }
            Event::Done(Done::Stepped(walker, step, result)) => return self.on_step(walker, step, result),
            Event::Done(Done::Saved(walker, result)) => {
                self.walker = Some(walker);
                return result.err().and_then(|error| self.on_store_error(&error));
            }
            Event::Done(Done::Reported(result)) => return self.on_report(result),
            Event::Done(Done::Lost) => return Some(internal(&self.dag, "a step of the walk")),
            Event::Done(Done::Tick) => return self.on_tick(),
            Event::Done(Done::Cancelled) => return Some(Ended::Stopped),
        }
        None
    }

    fn on_blocks(&mut self, blocks: Vec<Block>) {
        self.got_block = true;
        self.progress_at = self.ctx.clock.monotonic();
        self.outstanding = self.outstanding.saturating_sub(blocks.len());
        self.incoming_bytes += blocks.iter().map(|b| b.data().len()).sum::<usize>();
        if self.incoming.is_empty() {
            self.incoming = blocks;
        } else {
            self.incoming.extend(blocks);
        }
    }

    fn on_origins(&mut self, origins: Vec<String>, local_request: bool) {
        if let Some(session) = &mut self.session {
            session.add_origins(&origins, local_request);
        }
        self.dag.local_request |= local_request;
        self.dag.origins.extend(origins);
    }

    fn on_step(
        &mut self,
        walker: Box<Walker>,
        step: Step,
        result: Result<(), Box<StepError>>,
    ) -> Option<Ended> {
        self.totals = walker.totals();
        self.walker = Some(walker);
        self.exhausted = step.exhausted;
        self.wants.extend(step.wants);
        if step.visits > 0 {
            self.progress_at = self.ctx.clock.monotonic();
        }
        match *result.err()? {
            StepError::Store(error) => self.on_store_error(&error),
            StepError::Walk(error) => {
                let budget = byte_budget(&self.ctx, self.dag.byte_allowance);
                Some(Ended::Failed(failure_words(&error, &self.dag, budget)))
            }
        }
    }

    fn on_store_error(&mut self, error: &StoreError) -> Option<Ended> {
        if matches!(error, StoreError::ReadOnly) {
            if !self.paused {
                tracing::info!(root = %self.dag.root, "the fetch of {} is paused: no disk space", self.dag.root);
            }
            self.paused = true;
            return None;
        }
        Some(store_trouble(&self.dag, error, self.got_block))
    }

    fn on_report(&mut self, result: Result<Option<Option<u64>>, floe_records::Error>) -> Option<Ended> {
        self.reporting = false;
        match result {
            Ok(None) | Err(floe_records::Error::NotFound) => return Some(Ended::Unwanted),
            Ok(Some(allowance)) => {
                self.ctx.changes.dag(self.dag.dag);
                self.dag.byte_allowance = allowance;
                let budget = byte_budget(&self.ctx, allowance);
                if let Some(walker) = &mut self.walker {
                    walker.set_max_bytes(budget);
                }
            }
            // Progress is for show and for the quota; the next report carries it all again.
            Err(error) => {
                tracing::warn!(root = %self.dag.root, %error, "progress of {} not saved", self.dag.root)
            }
        }
        if self.check {
            self.start_report();
        }
        None
    }

    fn on_tick(&mut self) -> Option<Ended> {
        self.start_tick();
        let now = self.ctx.clock.monotonic();
        if self.paused {
            self.progress_at = now;
            self.paused = self.ctx.blocks.is_read_only();
        }
        // Only waiting for the network counts: a slow disk or a long local walk is no missing peer.
        if self.walker.is_none() || self.session.is_none() {
            self.progress_at = now;
        }
        let quiet = now.saturating_sub(self.progress_at);
        if self.got_block && quiet >= limits::NO_PROGRESS_WITHIN {
            return Some(self.park(format!("no block came for {}", words(limits::NO_PROGRESS_WITHIN))));
        }
        if !self.got_block && quiet >= self.first_block_within() {
            return Some(self.park("no block came".to_owned()));
        }
        let since_report = now.saturating_sub(self.reported_at);
        let changed = self.reported != Some(self.totals);
        if since_report >= limits::REPORT_IDLE_EVERY || (changed && since_report >= limits::REPORT_EVERY) {
            self.start_report();
        }
        None
    }

    fn first_block_within(&self) -> Duration {
        if self.dag.attempts == 0 && self.ctx.contended.load(Ordering::Relaxed) {
            limits::FIRST_BLOCK_WITHIN_CONTENDED
        } else {
            limits::FIRST_BLOCK_WITHIN
        }
    }

    /// Parked, with what is known about the search.
    fn park(&self, what: String) -> Ended {
        let search = self.session.as_ref().map(|s| s.progress()).unwrap_or_default();
        let peers = match (search.peers, search.providers) {
            (0, _) => "no peer that has it is connected".to_owned(),
            (asked, 0) => format!("{asked} connected peers were asked, none sent any"),
            (asked, sent) => format!("{asked} connected peers were asked, {sent} sent some"),
        };
        let missing = self.outstanding + self.wants.len();
        let last = search.last_error.map(|e| format!("; {e}")).unwrap_or_default();
        Ended::Parked {
            reason: format!("{what}: {peers}, {missing} blocks are known to be missing{last}"),
            progressed: self.got_block,
        }
    }

    /// Makes what came durable, so that the next attempt goes on from here. Best effort: what cannot be stored
    /// is fetched again.
    async fn save_place(&mut self) {
        while self.walker.is_none() {
            match self.work.next().await {
                Some(Done::Stepped(walker, ..) | Done::Saved(walker, _)) => self.walker = Some(walker),
                Some(Done::Lost) | None => return,
                Some(_) => {}
            }
        }
        let Some(mut walker) = self.walker.take() else { return };
        let incoming = std::mem::take(&mut self.incoming);
        let stepped = tokio::task::spawn_blocking(move || {
            let (_, result) = walker.step(incoming);
            (walker, result)
        });
        let Ok((mut walker, Ok(()) | Err(StepError::Store(_)))) = stepped.await else { return };
        let saved = match walker.save().await {
            Ok(()) => walker.checkpoint().await,
            Err(error) => Err(error),
        };
        if let Err(error) = saved {
            tracing::warn!(root = %self.dag.root, %error, "the place of the fetch of {} is not saved", self.dag.root);
        }
    }

    async fn seal(mut self, cancel: &CancellationToken) -> Ended {
        let walker = self.walker.take().expect("the loop ended with the walker at home");
        match walker.seal().await {
            Ok(totals) => Ended::Complete(totals),
            // The manifest stays open; the next attempt looks everything up once more and seals it.
            Err(StoreError::ReadOnly) => wait_for_space(&self.ctx, &self.dag, self.silent, cancel)
                .await
                .unwrap_or(Ended::Parked { reason: PAUSED.to_owned(), progressed: true }),
            Err(error) => store_trouble(&self.dag, &error, self.got_block),
        }
    }
}

fn store_trouble(dag: &ClaimedDag, error: &StoreError, progressed: bool) -> Ended {
    match error {
        // Whoever watches `poisoned` ends the process; the rows must not say more than is known.
        StoreError::Poisoned(_) => Ended::Stopped,
        StoreError::ReadOnly => Ended::Parked { reason: PAUSED.to_owned(), progressed },
        other => {
            tracing::error!(root = %dag.root, error = %other, "the block store failed while fetching {}", dag.root);
            Ended::Parked { reason: "the block store failed; see the service's log".to_owned(), progressed }
        }
    }
}

fn internal(dag: &ClaimedDag, what: &str) -> Ended {
    tracing::error!(root = %dag.root, "{what} of {} panicked", dag.root);
    Ended::Parked { reason: "an internal error; see the service's log".to_owned(), progressed: false }
}

/// The reason of a pin that failed for good.
fn failure_words(error: &WalkError, dag: &ClaimedDag, max_bytes: u64) -> String {
    match error {
        WalkError::Budget { what: "bytes", .. } => {
            limits::hit("pin_bytes");
            match dag.byte_allowance {
                Some(allowance) if allowance <= max_bytes => {
                    format!(
                        "over quota: the DAG is larger than the {allowance} bytes that the account has left"
                    )
                }
                _ => format!("the DAG is larger than {max_bytes} bytes, the most that one pin may have here"),
            }
        }
        WalkError::Budget { what, limit } => {
            limits::hit(if *what == "blocks" { "pin_blocks" } else { "pin_depth" });
            format!("the DAG has more than {limit} {what}, the most that one pin may have here")
        }
        other => other.to_string(),
    }
}

/// A duration as people say it.
pub(crate) fn words(d: Duration) -> String {
    match d.as_secs() {
        s if s >= 3600 && s % 3600 == 0 => format!("{} h", s / 3600),
        s if s >= 60 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}
