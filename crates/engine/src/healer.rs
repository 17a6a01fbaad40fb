//! Fetches again what a read found spoilt, without waiting for a scrub to come by.
//!
//! The block store keeps the list of damaged blocks, also across restarts, and rings when it grows; this module goes round
//! the whole list, in passes of at most [`limits::HEAL_BLOCKS`] and [`limits::HEAL_ALL_WITHIN`] between which others may
//! scrub. After a round that left something it waits, longer each time, and goes round again for as long as a pin
//! holds what nobody had. How it is fetched is the scrubber's business. Crash or stop: the list is still there.

use std::sync::Arc;

use crate::backoff::jittered;
use crate::context::Context;
use crate::{Error, limits, scrubber};

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
        let again = match round(ctx).await {
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

/// The whole list, pass by pass. Says how many blocks that pins hold are left.
async fn round(ctx: &Context) -> Result<u64, Error> {
    let (mut left, mut from) = (0, None);
    loop {
        ctx.board.state(NAME, "asking for damaged blocks", left);
        let pass = scrubber::mend_damaged(ctx, from).await?;
        left += pass.left;
        from = pass.next;
        if from.is_none() {
            return Ok(left);
        }
    }
}
