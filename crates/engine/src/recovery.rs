//! What start does before any work: the rows and the block store are two files, and a crash can have fallen
//! between two writes. Each difference has one meaning and one remedy.
//!
//! | rows | manifest | how it came | remedy |
//! |---|---|---|---|
//! | claimed | any | the node stopped while fetching | the claim is given back; the walk resumes |
//! | wanted | sealed | crash before the rows heard of it | counted as complete when it is claimed |
//! | complete | missing or open | a lost or restored store | reported, and fetched again |
//! | none, release queued | any | crash between the rows and the release | released by the outbox |
//! | none | any | rows that are older than the blocks, or a lost record of a release | reported, and kept until [`release_orphans`] |

use std::collections::{BTreeMap, HashMap, HashSet};

use floe_blockstore::{ManifestState, ManifestTotals};
use floe_records::{ClaimedDag, Records};
use uuid::Uuid;

use crate::Error;
use crate::context::Context;
use crate::fetcher::Leftovers;

/// Compares and repairs. Idempotent.
pub(crate) async fn recover(ctx: &Context) -> Result<Leftovers, Error> {
    let given_back = ctx.records.reset_claims().await?;
    let blocks = ctx.blocks.clone();
    let manifests = tokio::task::spawn_blocking(move || blocks.manifests()).await;
    let manifests = manifests.map_err(|_| Error::Stopping)??;
    let rows: BTreeMap<Uuid, bool> = ctx.records.dag_ids().await?.into_iter().collect();

    let mut leftovers = Leftovers::default();
    let mut whole = HashSet::new();
    let mut totals = HashMap::new();
    let mut unknown = Vec::new();
    for (id, state, held) in manifests {
        match (rows.get(&id), state) {
            (Some(true), ManifestState::Sealed) => {
                whole.insert(id);
            }
            (Some(false), ManifestState::Sealed) => {
                totals.insert(id, held);
            }
            (None, ManifestState::Open | ManifestState::Sealed) => unknown.push((id, held)),
            (_, ManifestState::Releasing) | (Some(_), ManifestState::Open) => {}
        }
    }
    leftovers.sealed = totals;
    for (dag, _) in rows.into_iter().filter(|(dag, complete)| *complete && !whole.contains(dag)) {
        leftovers.incomplete.extend(ctx.records.held_dag(dag).await?);
    }
    if given_back > 0 {
        tracing::info!(given_back, "resumed {given_back} fetches");
    }
    report_orphans(ctx, unknown).await?;
    if !leftovers.incomplete.is_empty() {
        let count = leftovers.incomplete.len();
        tracing::error!(
            count,
            "{count} DAGs that are held are not whole in the block store; they are fetched again"
        );
        ctx.board.error("fetcher", format!("{count} DAGs were not whole at start; they are fetched again"));
    }
    thaw(ctx).await;
    Ok(leftovers)
}

/// A manifest's id and what it holds.
type Unknown = (Uuid, ManifestTotals);

/// Manifests that no row names and whose release nobody asked for. A removed pin leaves a queued release in the
/// transaction that removes it, so these are not what a crash leaves: rows were lost. What they hold may be the last
/// copy, so they are kept until the operator says otherwise.
async fn orphans(ctx: &Context) -> Result<Vec<Unknown>, Error> {
    let blocks = ctx.blocks.clone();
    let manifests = tokio::task::spawn_blocking(move || blocks.manifests()).await;
    // A row is there before its manifest, and goes when its release is queued. Asked in this order, the rows and then
    // the queue name every manifest that is needed or is let go of.
    let manifests = manifests.map_err(|_| Error::Stopping)??;
    let rows: HashSet<Uuid> = ctx.records.dag_ids().await?.into_iter().map(|(dag, _)| dag).collect();
    let unknown = manifests
        .into_iter()
        .filter(|(id, state, _)| *state != ManifestState::Releasing && !rows.contains(id))
        .map(|(id, _, held)| (id, held));
    without_queued(ctx, unknown.collect()).await
}

async fn without_queued(ctx: &Context, mut unknown: Vec<Unknown>) -> Result<Vec<Unknown>, Error> {
    if !unknown.is_empty() {
        let queued = ctx.records.queued_releases().await?;
        unknown.retain(|(id, _)| !queued.contains(id));
    }
    Ok(unknown)
}

async fn report_orphans(ctx: &Context, unknown: Vec<Unknown>) -> Result<(), Error> {
    let orphans = without_queued(ctx, unknown).await?;
    if orphans.is_empty() {
        return Ok(());
    }
    let (count, bytes) = (orphans.len(), orphans.iter().map(|(_, held)| held.bytes).sum::<u64>());
    let said = format!(
        "{count} DAGs ({bytes} bytes) are stored and no row names them, as after an older rows.sqlite was put back: \
         they are kept; put the newer rows back, pin them again, or free them with `floe gc --orphans`"
    );
    tracing::error!(count, bytes, "{said}");
    ctx.board.error("outbox", said);
    Ok(())
}

/// Releases what no row names. Returns how many DAGs these were.
pub(crate) async fn release_orphans(ctx: &Context) -> Result<usize, Error> {
    let orphans = orphans(ctx).await?;
    for (id, _) in &orphans {
        ctx.blocks.release(*id).await?;
    }
    if !orphans.is_empty() {
        tracing::info!("released {} DAGs that no row names", orphans.len());
        thaw(ctx).await;
    }
    Ok(orphans.len())
}

/// The DAGs that the rows call complete and that are not whole in the block store. Where there are none, nothing
/// that its packs may have lost is missed, and it collects again.
pub(crate) async fn confirm(ctx: &Context) -> Result<Vec<Uuid>, Error> {
    let rows = ctx.records.dag_ids().await?;
    let needed: Vec<Uuid> = rows.into_iter().filter(|(_, complete)| *complete).map(|(dag, _)| dag).collect();
    let blocks = ctx.blocks.clone();
    let lacking = tokio::task::spawn_blocking(move || blocks.confirm(&needed)).await;
    Ok(lacking.map_err(|_| Error::Stopping)??)
}

/// To be called when a DAG became whole, or went: ends the freeze of collection where that was the last one.
pub(crate) async fn thaw(ctx: &Context) {
    if !ctx.blocks.stats().in_doubt {
        return;
    }
    match confirm(ctx).await {
        Ok(lacking) if lacking.is_empty() => {}
        Ok(lacking) => {
            tracing::warn!(
                dags = lacking.len(),
                "nothing is collected: {} DAGs are not whole",
                lacking.len()
            );
        }
        Err(error) => tracing::warn!(%error, "cannot look whether the DAGs are whole: {error}"),
    }
}

/// A DAG that waited to be fetched again, as the rows have it now; `None` where they do not hold it as complete any
/// more. A pin that failed names its DAG for as long as it is listed, so pins alone do not say that it is held.
pub(crate) async fn still_to_mend(
    records: &Records,
    waited: &ClaimedDag,
) -> Result<Option<ClaimedDag>, Error> {
    if !records.is_complete(waited.dag).await? {
        return Ok(None);
    }
    let now = records.held_dag(waited.dag).await?;
    Ok(now.map(|dag| ClaimedDag { attempts: waited.attempts, ..dag }))
}
