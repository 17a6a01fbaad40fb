//! Fetches again what a read found spoilt, without waiting for a scrub to come by.
//!
//! The block store keeps the list of damaged blocks, also across restarts, and rings when it grows; this module tries
//! the whole list, at most [`limits::HEAL_BLOCKS`] of it, and tries what nobody had again with back-off for as long as
//! a pin holds it. How it is fetched is the scrubber's business. Crash or stop: the list is still there.

use std::sync::Arc;

use crate::backoff::jittered;
use crate::context::Context;
use crate::{limits, scrubber};

const NAME: &str = "healer";

/// Runs until the engine stops.
pub(crate) async fn run(ctx: Arc<Context>) {
    tokio::select! {
        biased;
        () = ctx.stop.cancelled() => {}
        () = heal(&ctx) => {}
    }
    ctx.board.state(NAME, "stopped", 0);
}

async fn heal(ctx: &Context) {
    let mut retry = limits::HEAL_RETRY_FIRST;
    loop {
        let again = match scrubber::mend_damaged(ctx).await {
            Ok(0) => {
                ctx.board.state(NAME, "waiting", 0);
                false
            }
            Ok(left) => {
                ctx.board.state(NAME, "waiting to ask for damaged blocks again", left);
                true
            }
            Err(error) => {
                tracing::error!(%error, "damaged blocks are not mended: {error}");
                ctx.board.error(NAME, error);
                true
            }
        };
        tokio::select! {
            biased;
            () = ctx.blocks.damage_found() => {
                retry = limits::HEAL_RETRY_FIRST;
                ctx.clock.sleep(limits::HEAL_AFTER).await;
            }
            () = ctx.clock.sleep(jittered(retry, ctx.random())), if again => {
                retry = (retry * 2).min(limits::HEAL_RETRY_MOST);
            }
        }
    }
}
