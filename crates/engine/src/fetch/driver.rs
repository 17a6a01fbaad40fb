//! Drives one fetch: the only owner of the session, the timers, and the queues between network and disk.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{self, Poll, ready};
use std::time::Duration;

use floe_blockstore::{Error as StoreError, ManifestTotals};
use floe_core::clock::BoxFuture;
use floe_core::ports::{ExchangeClosed, Origins, Session, SessionHints};
use floe_core::{Block, Cid};
use floe_records::ClaimedDag;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::quiet::Quiet;
use super::running::{Control, Entered};
use super::walker::{Step, StepError, Walker};
use super::{Ended, PAUSED, failure_words, internal, store_trouble, wait_for_space};
use crate::context::Context;
use crate::limits;

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
pub(super) struct Driver {
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
    /// The next step would make the DAG as large as this, which no account has room for as far as is known: the
    /// rows are asked first, because another pin may have joined, or room been made.
    short: Option<u64>,
    /// Times are of the monotonic clock.
    ticked_at: Duration,
    quiet: Quiet,
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
    pub(super) fn new(ctx: Arc<Context>, dag: ClaimedDag, silent: bool, walker: Box<Walker>) -> Self {
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
            short: None,
            ticked_at: now,
            quiet: Quiet::default(),
            saved_at: now,
            checkpoint_at: now,
            reported_at: now,
            got_block: false,
        }
    }

    pub(super) async fn run(mut self, entered: &mut Entered) -> Ended {
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
        } else if self.short.is_none() && self.has_steps() {
            self.start_step(walker);
        } else if walker.has_fresh() && self.is_starved() {
            // Nothing is on its way that could join this write: the end of the DAG, or a missing block.
            self.start_save(walker);
        } else {
            self.walker = Some(walker);
        }
    }

    fn has_steps(&self) -> bool {
        !self.incoming.is_empty() || (!self.exhausted && self.wants.len() < limits::READY_WANTS / 2)
    }

    fn must_save(&self, walker: &Walker) -> bool {
        let now = self.ctx.clock.monotonic();
        walker.is_full()
            || now.saturating_sub(self.saved_at) >= limits::SAVE_EVERY
            || self.ctx.held_bytes.load(Ordering::Relaxed) >= limits::HELD_BYTES_PER_NODE
    }

    fn is_starved(&self) -> bool {
        self.exhausted && self.wants_nothing()
    }

    fn wants_nothing(&self) -> bool {
        self.outstanding == 0 && self.wants.is_empty()
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
        if !limits::may_ask(self.held, self.ctx.held_bytes.load(Ordering::Relaxed)) {
            return;
        }
        let session = self.session.get_or_insert_with(|| {
            self.ctx.exchange.open(SessionHints { root: self.dag.root, origins: self.dag.origins.clone() })
        });
        // One want is always out: it is what makes a session look for peers.
        let count = session.room().max(usize::from(self.outstanding == 0)).min(self.wants.len());
        if count > 0 {
            let wants: Vec<Cid> = self.wants.drain(..count).collect();
            session.want(&wants);
            self.outstanding += count;
        }
    }

    fn start_step(&mut self, mut walker: Box<Walker>) {
        walker.set_allowance(self.dag.byte_allowance);
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
        let checkpoint = late || walker.since_checkpoint() >= limits::checkpoint_bytes();
        if checkpoint {
            self.checkpoint_at = now;
        }
        let exchange = Arc::clone(&self.ctx.exchange);
        self.work.push(Box::pin(async move {
            let mut saved = walker.save(&*exchange).await;
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
        let mut totals = self.totals;
        totals.bytes = totals.bytes.max(self.short.unwrap_or(0));
        self.reported = Some(totals);
        let (records, dag) = (self.ctx.records.clone(), self.dag.dag);
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
            match &mut self.session {
                Some(session) => poll_all(session.as_mut(), cx).map(Event::Blocks),
                None => Poll::Pending,
            }
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
            Event::Control(Control::Origins(origins)) => self.on_origins(origins),
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
        self.quiet.ended_by(blocks.len());
        self.outstanding = self.outstanding.saturating_sub(blocks.len());
        self.incoming_bytes += blocks.iter().map(|b| b.data().len()).sum::<usize>();
        if self.incoming.is_empty() {
            self.incoming = blocks;
        } else {
            self.incoming.extend(blocks);
        }
    }

    fn on_origins(&mut self, origins: Origins) {
        match &mut self.session {
            // It keeps as many as it can use; here they would pile up with each pin that joins.
            Some(session) => session.add_origins(&origins),
            None => self.dag.origins.push(origins),
        }
        // The pin that joined is `queued` until the rows hear that its DAG is being fetched. A report that is on its
        // way may have been too early for it.
        self.check = true;
        self.start_report();
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
        self.incoming_bytes += step.left.iter().map(|b| b.data().len()).sum::<usize>();
        self.incoming.splice(..0, step.left);
        if step.short.is_some() {
            self.short = step.short;
            self.start_report();
        }
        if step.visits > 0 {
            self.quiet.ended_by(0);
        }
        match *result.err()? {
            StepError::Store(error) => self.on_store_error(&error),
            StepError::Walk(error) => Some(Ended::Failed(failure_words(&error))),
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
                let said = self.reported.unwrap_or_default();
                if allowance.is_some_and(|most| most <= said.bytes) && !self.wants_nothing() {
                    // Kept for a pin that was replaced, or at the end of every quota: what is here stays, and not
                    // a byte more is fetched.
                    return Some(self.park("it may not grow any more".to_owned()));
                }
                if self.short.is_some_and(|needed| allowance.is_none_or(|most| needed <= most)) {
                    self.short = None;
                }
                self.check |= self.short.is_some();
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
        let passed = now.saturating_sub(std::mem::replace(&mut self.ticked_at, now));
        if self.paused {
            self.paused = self.ctx.blocks.is_read_only();
            if !self.paused {
                self.ctx.space_is_back();
            }
            self.quiet.ended_by(0);
        } else if self.waits_for_peers() {
            self.quiet.goes_on(passed);
        } else {
            self.quiet.ended_by(0);
        }
        if let Some(why) = self.quiet.is_too_long(self.got_block, self.dag.attempts == 0, self.is_contended())
        {
            return Some(self.park(why));
        }
        let since_report = now.saturating_sub(self.reported_at);
        let changed = self.reported != Some(self.totals);
        let changed = changed || self.short.is_some();
        if since_report >= limits::REPORT_IDLE_EVERY || (changed && since_report >= limits::REPORT_EVERY) {
            self.start_report();
        }
        None
    }

    /// Only this counts as quiet: a slow disk, a long local walk and a want that no memory is left for are no missing
    /// peers.
    fn waits_for_peers(&self) -> bool {
        let unasked = self.outstanding == 0 && !self.wants.is_empty();
        self.walker.is_some() && self.session.is_some() && !unasked
    }

    /// Whether others wait for this slot. What is mended has slots that nobody else waits for.
    fn is_contended(&self) -> bool {
        !self.silent && self.ctx.contended.load(Ordering::Relaxed)
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
        let saved = match walker.save(&*self.ctx.exchange).await {
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

/// All blocks that are there, up to about [`limits::TAKEN_AT_ONCE`]: a step of the walk costs a change of
/// threads, which tiny blocks must share.
fn poll_all(
    session: &mut dyn Session,
    cx: &mut task::Context<'_>,
) -> Poll<Result<Vec<Block>, ExchangeClosed>> {
    let mut blocks = ready!(session.poll_blocks(cx))?;
    while blocks.len() < limits::TAKEN_AT_ONCE {
        match session.poll_blocks(cx) {
            Poll::Ready(Ok(more)) => blocks.extend(more),
            // An exchange that has shut down says so again.
            Poll::Ready(Err(ExchangeClosed)) | Poll::Pending => break,
        }
    }
    Poll::Ready(Ok(blocks))
}
