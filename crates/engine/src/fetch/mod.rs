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

mod driver;
mod quiet;
mod running;
mod walker;

use std::sync::Arc;
use std::time::Duration;

use floe_blockstore::{Error as StoreError, ManifestTotals};
use floe_dag::{Budget, WalkError};
use floe_records::ClaimedDag;
use tokio_util::sync::CancellationToken;

use self::driver::Driver;
pub(crate) use self::running::{Control, Entered, Running};
use self::walker::Walker;
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
        max_bytes: ctx.settings.max_bytes.unwrap_or(u64::MAX),
        max_depth: ctx.settings.max_depth,
    };
    let (root, blocks) = (dag.root, ctx.blocks.clone());
    let opened = tokio::task::spawn_blocking(move || Walker::new(protect, root, budget, blocks)).await;
    let walker = match opened {
        Ok(Ok(walker)) => Box::new(walker),
        Ok(Err(error)) => return Ended::Failed(failure_words(&error)),
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
            ctx.space_is_back();
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

/// What waits for disk space says of itself.
pub(crate) const PAUSED: &str = "paused: the service is short of disk space; it goes on by itself";

fn store_trouble(dag: &ClaimedDag, error: &StoreError, progressed: bool) -> Ended {
    match error {
        // Whoever watches `poisoned` ends the process; the rows must not say more than is known.
        StoreError::Poisoned(_) | StoreError::Closed => Ended::Stopped,
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
fn failure_words(error: &WalkError) -> String {
    if let WalkError::Budget { what, .. } = error {
        limits::hit(match *what {
            "bytes" => "pin_bytes",
            "blocks" => "pin_blocks",
            _ => "pin_depth",
        });
        return format!("{error}, the most that one pin may have here");
    }
    error.to_string()
}

/// A duration as people say it.
pub(crate) fn words(d: Duration) -> String {
    match d.as_secs() {
        s if s >= 3600 && s % 3600 == 0 => format!("{} h", s / 3600),
        s if s >= 60 && s % 60 == 0 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_said_as_people_say_them() {
        let said: Vec<String> = [86_400, 5_400, 120, 90, 0].map(|s| words(Duration::from_secs(s))).into();
        assert_eq!(said, ["24 h", "90 min", "2 min", "90 s", "0 s"]);
    }
}
