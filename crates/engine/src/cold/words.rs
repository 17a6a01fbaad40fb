//! What providers say of the deals they accepted: words for the owner, and numbers of deals to look for on the chain.
//!
//! Nothing is decided on them. A provider that says that it does not know a deal gets the same bytes once more; one that
//! does not answer is asked again later, and that is all.

use floe_core::cold::ProviderWord;
use floe_core::{DealState, Epoch};
use floe_records::Error;
use floe_records::cold::DealRow;
use futures::{StreamExt as _, stream};

use super::dealer::{contact_of, send, waits_for_restore};
use super::deals::Deals;
use super::tracker;
use crate::backoff::jittered;
use crate::limits;

/// Asks after some of those that are due.
pub(crate) async fn pass(d: &Deals) {
    let due = match d.records.deals_due(DealState::Accepted, d.now(), limits::STATUSES_PER_LOOK).await {
        Ok(due) => due,
        Err(error) => return d.board.error(tracker::NAME, error),
    };
    let asked: Vec<Result<(), Error>> =
        stream::iter(due).map(|row| ask(d, row)).buffer_unordered(limits::STATUSES_AT_ONCE).collect().await;
    for error in asked.into_iter().filter_map(Result::err) {
        d.board.error(tracker::NAME, error);
    }
}

async fn ask(d: &Deals, row: DealRow) -> Result<(), Error> {
    let due = d.now().after(jittered(limits::STATUS_EVERY, d.random()));
    let Some(contact) = contact_of(d, row.provider).await? else {
        return d.records.deal_due(row.uuid, due).await;
    };
    let word = match d.market.status(&contact, row.uuid).await {
        Ok(word) => word,
        Err(fault) => {
            tracing::debug!(deal = %row.uuid, error = %fault, "a provider does not say how a deal goes");
            return d.records.deal_due(row.uuid, due).await;
        }
    };
    let named = match &word {
        ProviderWord::Known { deal_id, .. } => *deal_id,
        ProviderWord::Unknown(_) => None,
    };
    let is_unknown = matches!(word, ProviderWord::Unknown(_));
    d.records.note_word(row.uuid, word, due).await?;
    if named.is_some() && named != row.word.as_ref().and_then(|word| word.deal_id) {
        d.records.watch_deal(row.uuid, Epoch::default()).await?;
    }
    if is_unknown
        && let Ok(view) = d.may_spend().await
        && view.head < row.start
        && !waits_for_restore(d, view).await?
    {
        send(d, view.head, row).await?;
    }
    Ok(())
}
