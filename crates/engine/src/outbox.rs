//! Does what transactions queued: announce, stop announcing, release.
//!
//! Each job is done at least once and in order. The rows are the truth: a job is marked done after its effect,
//! and every effect may be repeated. One kind of trouble does not hold up the other: while the network's store
//! refuses (a full disk, say), releases go on, because they are what frees the disk.
//!
//! What the network's store of announced roots lacks at a start is announced again: it can be lost, the rows are not.
//!
//! Crash: the job is still there. Stop: between two jobs.

use std::sync::Arc;
use std::time::Duration;

use floe_core::Cid;
use floe_records::Job;
use uuid::Uuid;

use crate::backoff::jittered;
use crate::context::Context;
use crate::{limits, recovery};

const NAME: &str = "outbox";

/// Runs until the engine stops.
pub(crate) async fn run(ctx: Arc<Context>) {
    let mut retry = limits::JOBS_RETRY_FIRST;
    // When what is announced is compared next: until it could be once.
    let mut compare_at = Some(Duration::ZERO);
    loop {
        // First what frees space. Where the network's store refuses, it is not asked again at each wake.
        let mut done = drain(&ctx).await;
        if done.is_ok() && compare_at.is_some_and(|at| at <= ctx.clock.monotonic()) {
            done = announce_again(&ctx).await;
            compare_at = done.is_err().then(|| ctx.clock.monotonic() + limits::JOBS_RETRY_MOST);
        }
        let wait = match done {
            Ok(()) => {
                retry = limits::JOBS_RETRY_FIRST;
                limits::IDLE_POLL
            }
            Err(error) => {
                tracing::warn!(error, "follow-up work failed, trying again: {error}");
                ctx.board.error(NAME, &error);
                let wait = jittered(retry, ctx.random());
                retry = (retry * 2).min(limits::JOBS_RETRY_MOST);
                wait
            }
        };
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => break,
            () = ctx.jobs_due.notified() => {}
            () = ctx.clock.sleep(wait) => {}
        }
    }
    ctx.board.state(NAME, "stopped", 0);
}

/// Does all jobs that are there. An error leaves those that failed, and those that must come after them.
pub(crate) async fn drain(ctx: &Context) -> Result<(), String> {
    let _one_at_a_time = ctx.outbox.lock().await;
    loop {
        let jobs = ctx.records.jobs(limits::JOBS_PER_PASS).await.map_err(|e| e.to_string())?;
        ctx.board.state(NAME, if jobs.is_empty() { "idle" } else { "working" }, jobs.len() as u64);
        if jobs.is_empty() {
            return Ok(());
        }
        if jobs.len() == limits::JOBS_PER_PASS {
            limits::hit("jobs_per_pass");
        }
        // The first failure of each kind ends that kind for this pass.
        let routing = routing_jobs(ctx, &jobs).await;
        let releases = release_jobs(ctx, &jobs).await;
        routing?;
        releases?;
        if ctx.stop.is_cancelled() {
            return Ok(());
        }
    }
}

/// Announces everything anew where the network's store knows of less than the rows do: its file was lost, or moved
/// away because it was damaged. What it knows is left as it is.
async fn announce_again(ctx: &Context) -> Result<(), String> {
    let announced = ctx.records.announced_count().await.map_err(|e| e.to_string())?;
    let known = ctx.network.status().provided;
    if known >= announced {
        return Ok(());
    }
    tracing::warn!(
        known,
        announced,
        "{known} of {announced} roots are known to be announced: announcing all again"
    );
    let mut after = Uuid::nil();
    while !ctx.stop.is_cancelled() {
        // Nothing is to stop being announced between reading a root and announcing it.
        let _one_at_a_time = ctx.outbox.lock().await;
        let page = ctx.records.announced(after, limits::JOBS_PER_PASS).await.map_err(|e| e.to_string())?;
        // An id that is damaged reads as nil.
        let Some((last, _)) = page.last().filter(|(last, _)| *last > after) else { break };
        after = *last;
        let roots: Vec<Cid> = page.into_iter().filter_map(|(_, root)| root).collect();
        ctx.network.provide(&roots).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Routing {
    Provide,
    Unprovide,
}

/// Announcements and their ends, in order; neighbours of one kind in one call, because each call is a sync.
async fn routing_jobs(ctx: &Context, jobs: &[(i64, Job)]) -> Result<(), String> {
    let routing: Vec<(i64, Routing, Cid)> = jobs
        .iter()
        .filter_map(|(id, job)| match job {
            Job::Announce(root) => Some((*id, Routing::Provide, *root)),
            Job::Unannounce(root) => Some((*id, Routing::Unprovide, *root)),
            Job::Release(_) => None,
        })
        .collect();
    for group in routing.chunk_by(|a, b| a.1 == b.1) {
        let roots: Vec<Cid> = group.iter().map(|(_, _, root)| *root).collect();
        let (done, what) = match group[0].1 {
            Routing::Provide => (ctx.network.provide(&roots).await, "announce"),
            Routing::Unprovide => (ctx.network.unprovide(&roots).await, "stop announcing"),
        };
        done.map_err(|e| format!("cannot {what} {} roots, {} first: {e}", roots.len(), roots[0]))?;
        for (id, ..) in group {
            ctx.records.job_done(*id).await.map_err(|e| e.to_string())?;
        }
    }
    Ok(())
}

async fn release_jobs(ctx: &Context, jobs: &[(i64, Job)]) -> Result<(), String> {
    let mut released = false;
    for (id, job) in jobs {
        let Job::Release(dag) = job else { continue };
        // A fetch that still runs, or was claimed a moment ago, would write into the manifest again.
        drop(ctx.claiming.lock().await);
        ctx.running.stop(*dag).await;
        ctx.blocks.release(*dag).await.map_err(|e| format!("cannot release the blocks of {dag}: {e}"))?;
        ctx.records.job_done(*id).await.map_err(|e| e.to_string())?;
        released = true;
    }
    if released {
        recovery::thaw(ctx).await;
    }
    Ok(())
}
