//! Which DAGs are fetched now: claims what is due, as far as there are slots, and writes down how each attempt
//! ended.
//!
//! The rows decide what is due and what is fair between accounts; this module decides how much at a time. A DAG
//! that cannot be found leaves its slot soon (see [`limits::FIRST_BLOCK_WITHIN`]) and waits in the parking lane,
//! where it costs nothing: every peer that connects is asked for its root, and one that has it, or that the
//! pin's origins name, makes it due at once.
//!
//! Crash: claims are given back at start, manifests stay open, so the walk goes on at its last frontier. Stop:
//! the fetches save their place first.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use floe_blockstore::ManifestTotals;
use floe_records::{ClaimedDag, DagOutcome, Error as RecordsError, GiveUp, Parked};
use futures::FutureExt as _;
use tokio::task::{JoinError, JoinSet};
use uuid::Uuid;

use crate::backoff::{self, Attempt};
use crate::context::Context;
use crate::fetch::{Ended, Entered, fetch, words};
use crate::{limits, recovery};

const NAME: &str = "fetcher";

/// What start found that the fetcher has to know.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// DAGs whose manifest was sealed just before a crash kept the rows from hearing of it.
    pub(crate) sealed: HashMap<Uuid, ManifestTotals>,
    /// DAGs that the rows call complete and whose manifest is not: fetched again, while their pins stay pinned.
    pub(crate) incomplete: Vec<ClaimedDag>,
}

/// Runs until the engine stops, and then until every fetch has saved its place.
pub(crate) async fn run(ctx: Arc<Context>, leftovers: Leftovers) {
    let mut fetcher = Fetcher {
        ctx: Arc::clone(&ctx),
        sealed: leftovers.sealed,
        heals: leftovers.incomplete.into_iter().map(|dag| (Duration::ZERO, dag)).collect(),
        fetches: JoinSet::new(),
        healing: JoinSet::new(),
    };
    fetcher.run().await;
    ctx.board.state(NAME, "stopped", 0);
}

struct Fetcher {
    ctx: Arc<Context>,
    sealed: HashMap<Uuid, ManifestTotals>,
    /// To be mended, with the monotonic time of the next attempt.
    heals: Vec<(Duration, ClaimedDag)>,
    // What is in a set has a slot: one that panics is taken out like any other, so no slot is lost with it.
    fetches: JoinSet<()>,
    healing: JoinSet<Again>,
}

/// What is to be mended once more, and when.
type Again = Option<Box<(Duration, ClaimedDag)>>;

impl Fetcher {
    async fn run(&mut self) {
        loop {
            self.start_heals().await;
            self.claim().await;
            let wait = self.wait_for().await;
            let state = format!("{} of {} slots busy", self.fetches.len(), limits::FETCHES_PER_NODE);
            self.ctx.board.state(NAME, state, self.heals.len() as u64);
            tokio::select! {
                biased;
                () = self.ctx.stop.cancelled() => break,
                Some(done) = self.fetches.join_next() => self.fetched(done),
                Some(done) = self.healing.join_next() => self.healed(done),
                () = self.ctx.fetch_due.notified() => {}
                () = self.ctx.clock.sleep(wait) => {}
            }
            // Each claim is a transaction: one for all that ended together.
            while let Some(done) = self.fetches.try_join_next() {
                self.fetched(done);
            }
        }
        self.ctx.board.state(NAME, "stopping", (self.fetches.len() + self.healing.len()) as u64);
        while self.fetches.join_next().await.is_some() {}
        while self.healing.join_next().await.is_some() {}
    }

    fn fetched(&self, done: Result<(), JoinError>) {
        if let Err(error) = done {
            self.outcome_lost(&error);
        }
    }

    fn healed(&mut self, done: Result<Again, JoinError>) {
        match done {
            Ok(again) => self.heals.extend(again.map(|again| *again)),
            Err(error) => self.outcome_lost(&error),
        }
    }

    /// `attempt` has caught panics of the fetch itself: this one was in writing its outcome.
    fn outcome_lost(&self, error: &JoinError) {
        tracing::error!(%error, "the outcome of a fetch is lost until the next start");
        self.ctx.board.error(NAME, "the outcome of a fetch is lost until the next start; see the log");
    }

    async fn claim(&mut self) {
        let free = limits::FETCHES_PER_NODE - self.fetches.len();
        if free == 0 {
            return limits::hit("fetches_per_node");
        }
        let ctx = Arc::clone(&self.ctx);
        let _entering = ctx.claiming.lock().await;
        let claimed = match ctx.records.claim_dags(free, limits::FETCHES_PER_ACCOUNT).await {
            Ok(claimed) => claimed,
            Err(error) => {
                tracing::error!(%error, "cannot claim due pins");
                return self.ctx.board.error(NAME, &error);
            }
        };
        for dag in claimed {
            self.ctx.changes.dag(dag.dag);
            let sealed = self.sealed.remove(&dag.dag);
            let mut entered = self.ctx.running.enter(dag.dag, &self.ctx.stop);
            let ctx = Arc::clone(&self.ctx);
            self.fetches.spawn(async move {
                ctx.exchange.unpark(&dag.root);
                let ended = match sealed {
                    Some(totals) => Ended::Complete(totals),
                    None => attempt(&ctx, &dag, false, &mut entered).await,
                };
                settle(&ctx, &dag, ended).await;
            });
        }
    }

    /// How long there is nothing to claim, as far as is known; also whether others wait for a slot.
    async fn wait_for(&self) -> Duration {
        let now = self.ctx.clock.now();
        let due = match self.ctx.records.next_due().await {
            Ok(due) => due,
            Err(error) => {
                self.ctx.board.error(NAME, &error);
                return limits::BLOCKED_POLL;
            }
        };
        let blocked = due.is_some_and(|at| at <= now);
        self.ctx.contended.store(blocked, Ordering::Relaxed);
        match due {
            Some(at) if at > now => at.since(now).min(limits::IDLE_POLL),
            Some(_) => limits::BLOCKED_POLL,
            None => limits::IDLE_POLL,
        }
    }

    /// Begins to mend what is due, if the rows still hold it: its pins may have gone while it waited. `claiming` is
    /// held from that look until the fetch is in `running`, so a release that the look was too early for finds it
    /// there and stops it.
    async fn start_heals(&mut self) {
        while self.healing.len() < limits::HEALS_PER_NODE {
            let now = self.ctx.clock.monotonic();
            let Some(at) = self.heals.iter().position(|(at, _)| *at <= now) else { return };
            let (_, waited) = self.heals.swap_remove(at);
            let ctx = Arc::clone(&self.ctx);
            let _entering = ctx.claiming.lock().await;
            match recovery::still_to_mend(&ctx.records, &waited).await {
                Ok(Some(dag)) => self.start_heal(dag),
                Ok(None) => tracing::info!(root = %waited.root, "{} is not held any more", waited.root),
                Err(error) => {
                    self.ctx.board.error(NAME, &error);
                    return self.heals.push((now + limits::BLOCKED_POLL, waited));
                }
            }
        }
    }

    fn start_heal(&mut self, dag: ClaimedDag) {
        let mut entered = self.ctx.running.enter(dag.dag, &self.ctx.stop);
        let ctx = Arc::clone(&self.ctx);
        self.healing.spawn(async move {
            let ended = attempt(&ctx, &dag, true, &mut entered).await;
            fail::fail_point!("heal.outcome");
            let again = heal_outcome(&ctx, dag, ended);
            recovery::thaw(&ctx).await;
            again
        });
    }
}

/// One attempt. A panic in it is a bug that costs this DAG an attempt, not the node its fetcher.
async fn attempt(ctx: &Arc<Context>, dag: &ClaimedDag, silent: bool, entered: &mut Entered) -> Ended {
    let fetch = AssertUnwindSafe(fetch(Arc::clone(ctx), dag.clone(), silent, entered));
    fetch.catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(root = %dag.root, "the fetch of {} panicked", dag.root);
        ctx.board.error(NAME, format!("the fetch of {} panicked; see the log", dag.root));
        Ended::Parked { reason: "an internal error; see the service's log".to_owned(), progressed: false }
    })
}

/// Writes how an attempt ended. Tries until it is written, nobody wants it, or the engine stops.
async fn settle(ctx: &Context, dag: &ClaimedDag, ended: Ended) {
    let (outcome, parked) = match ended {
        // What becomes of an unwanted DAG's blocks the rows have said already: a job releases them, or they stay
        // for the pin that replaced it.
        Ended::Stopped | Ended::Unwanted => return,
        Ended::Complete(ManifestTotals { blocks, bytes }) => (DagOutcome::Complete { blocks, bytes }, None),
        Ended::Failed(reason) => {
            tracing::info!(root = %dag.root, reason, "the pin of {} failed: {reason}", dag.root);
            (DagOutcome::Failed { reason }, None)
        }
        Ended::Parked { reason, progressed } => {
            tracing::debug!(root = %dag.root, reason, "the fetch of {} is parked: {reason}", dag.root);
            let parked = parked(ctx, dag, reason.clone(), progressed);
            (DagOutcome::Parked(parked), Some(reason))
        }
    };
    let waited_for = loop {
        match ctx.records.finish_dag(dag.dag, outcome.clone()).await {
            Ok(waited_for) => break waited_for,
            Err(RecordsError::NotFound | RecordsError::Poisoned(_)) => return,
            Err(error) => {
                tracing::error!(root = %dag.root, %error, "the outcome of {} is not written; trying again", dag.root);
                ctx.board.error(NAME, &error);
            }
        }
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return,
            () = ctx.clock.sleep(limits::BLOCKED_POLL) => {}
        }
    };
    ctx.aggregate_due.notify_one();
    match parked {
        // After the row says so: an offer from now on finds a parked row to wake.
        Some(_) if waited_for => ctx.exchange.park(&dag.root),
        Some(reason) => {
            tracing::info!(root = %dag.root, reason, "no pin waits for {} any more: {reason}", dag.root);
        }
        None => {}
    }
    ctx.changes.dag(dag.dag);
    ctx.jobs_due.notify_one();
}

/// What a parked attempt means for its pins: those that have had their time fail, the others go on.
fn parked(ctx: &Context, dag: &ClaimedDag, reason: String, progressed: bool) -> Parked {
    let (now, after) = (ctx.clock.now(), ctx.settings.give_up_after);
    let began = dag.tried_at.max(ctx.searching_since());
    let searched = backoff::searched(now.since(began), after);
    let attempt = Attempt {
        earlier: dag.attempts,
        progressed,
        left: after.saturating_sub(dag.searched + searched),
        random: ctx.random(),
    };
    let give_up =
        GiveUp { after, reason: format!("given up after {} without any progress: {reason}", words(after)) };
    Parked { next_attempt: now.after(attempt.wait()), reason, progressed, searched, give_up }
}

/// A mended DAG is whole again, or is tried again later; its pins never stopped being pinned.
fn heal_outcome(ctx: &Context, mut dag: ClaimedDag, ended: Ended) -> Option<Box<(Duration, ClaimedDag)>> {
    let reason = match ended {
        Ended::Complete(totals) => {
            tracing::info!(root = %dag.root, blocks = totals.blocks, "{} is whole again", dag.root);
            return None;
        }
        Ended::Unwanted | Ended::Stopped => return None,
        Ended::Parked { reason, .. } | Ended::Failed(reason) => reason,
    };
    tracing::warn!(root = %dag.root, reason, "{} is held but not whole, and could not be mended: {reason}", dag.root);
    ctx.board.error(NAME, format!("{} is held but not whole: {reason}", dag.root));
    let attempt =
        Attempt { earlier: dag.attempts, progressed: false, left: Duration::MAX, random: ctx.random() };
    dag.attempts += 1;
    let wait = attempt.wait();
    Some(Box::new((ctx.clock.monotonic() + wait, dag)))
}
