//! What start does before any work: the rows and the block store are two files, and a crash can have fallen
//! between two writes. Each difference has one meaning and one remedy.
//!
//! | rows | manifest | how it came | remedy |
//! |---|---|---|---|
//! | claimed | any | the node stopped while fetching | the claim is given back; the walk resumes |
//! | wanted | sealed | crash before the rows heard of it | counted as complete when it is claimed |
//! | complete | missing or open | a lost or restored store | reported, and fetched again |
//! | none | any | crash between the rows and the release | released |

use std::collections::{BTreeMap, HashMap, HashSet};

use floe_blockstore::ManifestState;
use floe_core::cid::canonical;
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
    let mut released = 0;
    let mut totals = HashMap::new();
    for (id, state, held) in manifests {
        match (rows.get(&id), state) {
            (None, ManifestState::Open | ManifestState::Sealed) => {
                ctx.blocks.release(id).await?;
                released += 1;
            }
            (Some(true), ManifestState::Sealed) => {
                whole.insert(id);
            }
            (Some(false), ManifestState::Sealed) => {
                totals.insert(id, held);
            }
            (_, ManifestState::Releasing) | (Some(_), ManifestState::Open) => {}
        }
    }
    leftovers.sealed = totals;
    for (dag, _) in rows.into_iter().filter(|(dag, complete)| *complete && !whole.contains(dag)) {
        leftovers.incomplete.extend(to_mend(&ctx.records, dag).await?);
    }
    if given_back > 0 || released > 0 {
        tracing::info!(given_back, released, "resumed {given_back} fetches, released {released} orphans");
    }
    if !leftovers.incomplete.is_empty() {
        let count = leftovers.incomplete.len();
        tracing::error!(
            count,
            "{count} pinned DAGs are not whole in the block store; they are fetched again"
        );
        ctx.board
            .error("fetcher", format!("{count} pinned DAGs were not whole at start; they are fetched again"));
    }
    thaw(ctx).await;
    Ok(leftovers)
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
    let now = to_mend(records, waited.dag).await?;
    Ok(now.map(|dag| ClaimedDag { attempts: waited.attempts, ..dag }))
}

/// What is needed to fetch a complete DAG again, from the pins that name it.
pub(crate) async fn to_mend(records: &Records, dag: Uuid) -> Result<Option<ClaimedDag>, Error> {
    let mut mend: Option<ClaimedDag> = None;
    for (account, id) in records.pins_of_dag(dag).await? {
        let row = match records.pin(account, id).await {
            Ok(row) => row,
            Err(floe_records::Error::NotFound) => continue,
            Err(error) => return Err(error.into()),
        };
        let mend = mend.get_or_insert_with(|| ClaimedDag {
            dag,
            root: canonical(&row.spec.cid),
            account,
            origins: Vec::new(),
            local_request: row.local_request,
            attempts: 0,
            since: row.created,
            byte_allowance: None,
        });
        mend.origins.extend(row.spec.origins);
        mend.local_request |= row.local_request;
    }
    Ok(mend)
}
