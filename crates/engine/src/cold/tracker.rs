//! Looks at the chain: what it says at finality is what happened, and nothing else is.
//!
//! ```text
//!   look ──> scan: published deals of ours ──> watch: each deal whose time has come ──> messages ──> escrow ──> words
//!    │ fails: spending pauses, and says why              │
//!    └────────────────────────────────────────────       └── published, active, failed, expired, terminated
//! ```
//!
//! Publication is found in the market's events and confirmed on the deal itself, field by field against the bytes that
//! were signed; a number that a provider names is only a place to look. Heights are looked through in order, and how far
//! is a row: a deal is given up after its start only when every height up to it was looked through. What vanishes must be
//! missing at two final epochs before it counts as given up, terminated or let go of, since that makes the next deal.
//!
//! A node that is away, stale or lying about its head changes nothing: the look fails, and spending pauses until one does
//! not. Crash or stop: the next look goes on from the rows.

use std::sync::Arc;

use floe_core::cold::{ChainView, DealOnChain, Fault, PublishedDeal};
use floe_core::{DealState, Epoch, FailureCode};
use floe_records::Error as RecordsError;
use floe_records::cold::{DealRow, OnChain};

use super::deals::{Deals, in_words};
use super::{dealer, funds, words};
use crate::limits;

pub(crate) const NAME: &str = "tracker";

/// Why a look did not come to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failed {
    /// The chain.
    #[error("{}", in_words(.0))]
    Chain(#[from] Fault),
    /// The rows.
    #[error(transparent)]
    Rows(#[from] RecordsError),
}

/// Runs until the engine stops.
pub(crate) async fn run(d: Arc<Deals>) {
    tokio::select! {
        biased;
        () = d.stop.cancelled() => {}
        () = rounds(&d) => {}
    }
    d.board.state(NAME, "stopped", 0);
}

pub(super) async fn rounds(d: &Deals) {
    loop {
        pass(d).await;
        let pause = tokio::select! {
            () = d.look_due.notified() => limits::LOOK_PAUSE,
            () = d.clock.sleep(d.settings.deals.look_every) => limits::LOOK_PAUSE,
            () = d.chain.changed() => limits::HEAD_PAUSE,
        };
        // Whoever rings the bell again and again gets no more looks than these.
        d.clock.sleep(pause.min(d.settings.deals.look_every)).await;
    }
}

/// One look, with what follows from it.
pub(crate) async fn pass(d: &Deals) {
    let was_paused = d.paused();
    match look(d).await {
        Ok(view) => {
            if let Some(why) = was_paused {
                let body = serde_json::json!({ "why": why });
                note(d, "spending.resumed", "chain", body).await;
            }
            d.board.state(NAME, format!("at epoch {}", view.head), 0);
            d.place_due.notify_one();
            words::pass(d).await;
        }
        Err(failed) => {
            let why = failed.to_string();
            tracing::warn!(error = %why, "spending is paused: {why}");
            d.board.state(NAME, "paused", 0);
            d.board.error(NAME, &why);
            if d.pause(why.clone()) {
                note(d, "spending.paused", "chain", serde_json::json!({ "why": why })).await;
            }
        }
    }
    gauges(d).await;
}

async fn look(d: &Deals) -> Result<ChainView, Failed> {
    let view = d.chain.look().await?;
    let highest = d.records.highest_head().await?;
    believe(d, view, highest.unwrap_or(view.head))?;
    // Only now: by the highest head that is written down, URLs of deals end and later looks are judged.
    d.records.note_head(view.head).await?;
    let scanned = scan(d, view).await?;
    watch(d, view, scanned == Scanned::All).await?;
    settle_restore(d, view).await?;
    funds::pass(d, view).await?;
    d.looked(view);
    // A node without events never gets further: that its deals are not given up is what keeps them from being paid twice.
    d.scanned(scanned != Scanned::Behind);
    Ok(view)
}

/// What is known of what was published until the last final epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scanned {
    /// Each height was looked through: what was not found is not there.
    All,
    /// There is more to look through; nothing new is promised before.
    Behind,
    /// The node keeps no events: providers' words are the only places to look, and what nobody names may be there.
    Blind,
}

/// A view that cannot be.
fn believe(d: &Deals, view: ChainView, highest: Epoch) -> Result<(), Fault> {
    let odd = |what: String| Fault::new(FailureCode::ChainUnreachable, what);
    if view.last_final > view.head {
        return Err(odd(format!(
            "the node says that epoch {} is final, and its head is {}",
            view.last_final, view.head
        )));
    }
    let lookback = d.settings.deals.finality_lookback.max(1);
    if view.head.plus(lookback) < highest {
        return Err(odd(format!("the node's head fell back from {highest} to {}", view.head)));
    }
    Ok(())
}

/// Looks through final heights for deals of ours, from where the last look ended.
async fn scan(d: &Deals, view: ChainView) -> Result<Scanned, Failed> {
    let Some(mut from) = d.records.scan_from().await? else {
        // Nothing was signed before the first look.
        d.records.scanned_to(view.last_final.plus(1)).await?;
        return Ok(Scanned::All);
    };
    for _ in 0..limits::SCANS_PER_LOOK {
        if from > view.last_final {
            return Ok(Scanned::All);
        }
        let to = from.plus(limits::SCAN_WINDOW - 1).min(view.last_final);
        let Some(found) = d.chain.published(from, to).await? else { return Ok(without_events(d)) };
        for deal in found {
            published(d, view, deal).await?;
        }
        from = to.plus(1);
        d.records.scanned_to(from).await?;
    }
    limits::hit("scans_per_look");
    d.look_due.notify_one();
    Ok(if from > view.last_final { Scanned::All } else { Scanned::Behind })
}

/// Nothing was looked through, so no deal is given up that may have been published: its slot stays held, for another deal
/// for it could be a second one that is paid. The place in the heights stays too, for when the node has events.
fn without_events(d: &Deals) -> Scanned {
    d.board.error(
        NAME,
        "the node keeps no events of the market: turn them on. Until then only providers say what they publish, and a \
         deal that is past its start and that nobody names is not given up",
    );
    Scanned::Blind
}

/// A deal of this wallet came onto the chain: which of ours is it?
async fn published(d: &Deals, view: ChainView, found: PublishedDeal) -> Result<(), Failed> {
    if !d.records.deals_on_chain(found.deal_id).await?.is_empty() {
        return Ok(());
    }
    for row in d.records.unpublished_of(found.provider, found.piece.as_ref()).await? {
        if is_ours(d, &row, found.deal_id).await? {
            let watch = view.last_final;
            d.records.on_chain(row.uuid, OnChain::Published(found.deal_id), view.last_final, watch).await?;
            return Ok(());
        }
    }
    unknown(d, view, found).await
}

async fn is_ours(d: &Deals, row: &DealRow, deal_id: u64) -> Result<bool, Fault> {
    let Some(signed) = &row.signed else { return Ok(false) };
    Ok(d.chain.deal(deal_id, signed).await?.is_some_and(|deal| deal.is_ours))
}

/// The wallet has a deal that these rows do not know, or had given up. Where it is of a piece of ours, the rows are older
/// than the wallet: it is taken over, because it is paid and keeps a replica, and other slots wait for what else there may
/// be.
async fn unknown(d: &Deals, view: ChainView, found: PublishedDeal) -> Result<(), Failed> {
    let own = d.chain.own_deal(found.deal_id).await?;
    let aggregate = match &own {
        Some(own) => d.records.aggregate_of_piece(&own.piece).await?,
        None => None,
    };
    let body = serde_json::json!({
        "deal_id": found.deal_id,
        "provider": found.provider.to_string(),
        "height": found.height,
        "piece_cid": own.as_ref().map(|own| own.piece.to_string()),
        "aggregate": aggregate,
    });
    note(d, "alarm.unknown_deal", &found.deal_id.to_string(), body).await;
    let Some((own, aggregate)) = own.zip(aggregate) else { return Ok(()) };
    let why = format!("the chain has deal {} from this wallet, which these rows do not know", found.deal_id);
    d.records.mark_restored(&why).await?;
    let weights = dealer::weights(d, aggregate).await?;
    // Replicas are with distinct owners, and this one is a replica.
    let owner = d.chain.provider(own.provider).await?.map_or(own.provider, |known| known.owner);
    d.records.adopt_deal(found.deal_id, own, owner, view.last_final, weights).await?;
    Ok(())
}

/// What a final tipset says of a deal that the chain has a number for: held against the bytes that were signed, or, where it
/// was taken over and these are not known, against its terms.
async fn on_chain(d: &Deals, row: &DealRow, deal_id: u64) -> Result<Option<DealOnChain>, Fault> {
    if let Some(signed) = &row.signed {
        return Ok(d.chain.deal(deal_id, signed).await?.filter(|deal| deal.is_ours));
    }
    let own = d.chain.own_deal(deal_id).await?;
    Ok(own.filter(|own| own.piece == row.piece && own.provider == row.provider).map(|own| own.state))
}

/// Asks the chain about each deal whose time has come.
async fn watch(d: &Deals, view: ChainView, is_scanned: bool) -> Result<(), Failed> {
    for _ in 0..limits::WATCHES_PER_LOOK {
        let due = d.records.deals_to_watch(view.last_final, limits::WATCHED_AT_ONCE).await?;
        let more = due.len() == limits::WATCHED_AT_ONCE as usize;
        for row in due {
            let next = match row.state {
                DealState::Active => active(d, view, &row).await?,
                DealState::Published => sealed(d, view, &row).await?,
                DealState::Failed | DealState::Expired => locked(d, view, &row).await?,
                _ => unpublished(d, view, &row, is_scanned).await?,
            };
            if let Some((seen, watch)) = next {
                d.records.on_chain(row.uuid, seen, view.last_final, watch).await?;
            }
        }
        if !more {
            return Ok(());
        }
    }
    limits::hit("watches_per_look");
    Ok(())
}

/// What the chain says of a deal, and when it is asked next. `None`: that was noted.
type Next = Option<(OnChain, Epoch)>;

async fn again(d: &Deals, row: &DealRow, watch: Epoch) -> Result<Next, Failed> {
    d.records.watch_deal(row.uuid, watch).await?;
    Ok(None)
}

async fn unpublished(d: &Deals, view: ChainView, row: &DealRow, is_scanned: bool) -> Result<Next, Failed> {
    let soon = view.last_final.plus(1);
    if let Some(hint) = row.word.as_ref().and_then(|word| word.deal_id)
        && is_ours(d, row, hint).await?
    {
        return Ok(Some((OnChain::Published(hint), view.last_final)));
    }
    if row.start > view.last_final {
        // The number that a provider names is looked at again until it is true, or the start has passed.
        let hinted = row.word.as_ref().is_some_and(|word| word.deal_id.is_some());
        return again(d, row, if hinted { soon } else { row.start }).await;
    }
    // Nothing is given up while a height that may have it was not looked at.
    if is_scanned { Ok(Some((OnChain::StartPassed, soon))) } else { again(d, row, soon).await }
}

async fn sealed(d: &Deals, view: ChainView, row: &DealRow) -> Result<Next, Failed> {
    let soon = view.last_final.plus(1);
    let Some(deal_id) = row.deal_id else { return again(d, row, soon).await };
    match on_chain(d, row, deal_id).await? {
        Some(deal) if deal.active_since.is_some() => {
            Ok(Some((OnChain::Active(deal.sector.unwrap_or_default()), soon)))
        }
        Some(_) if row.start <= view.last_final => Ok(Some((OnChain::StartPassed, soon))),
        Some(_) => found(d, row, soon).await,
        // What was published is there until its start: before that, nothing follows from its absence.
        None if row.start <= view.last_final => missing(d, view, row, OnChain::StartPassed).await,
        None => again(d, row, soon).await,
    }
}

/// The chain has a deal, whether or not it was missing before.
async fn found(d: &Deals, row: &DealRow, watch: Epoch) -> Result<Next, Failed> {
    if row.missing_since.is_some() {
        return Ok(Some((OnChain::Missing(false), watch)));
    }
    again(d, row, watch).await
}

/// The chain does not have a deal that it had: believed at the second final epoch that says so, and then it means `then`.
async fn missing(d: &Deals, view: ChainView, row: &DealRow, then: OnChain) -> Result<Next, Failed> {
    let soon = view.last_final.plus(1);
    match row.missing_since {
        None => Ok(Some((OnChain::Missing(true), soon))),
        Some(since) if since < view.last_final => Ok(Some((then, soon))),
        Some(_) => again(d, row, soon).await,
    }
}

async fn active(d: &Deals, view: ChainView, row: &DealRow) -> Result<Next, Failed> {
    let soon = view.last_final.plus(1);
    let later = view.last_final.plus(limits::ACTIVE_CHECKED_EVERY).min(row.end);
    if row.end <= view.last_final {
        return Ok(Some((OnChain::EndPassed, soon)));
    }
    let Some(deal_id) = row.deal_id else { return again(d, row, later).await };
    match on_chain(d, row, deal_id).await? {
        Some(deal) if deal.is_faulty != row.is_faulty => Ok(Some((OnChain::Faulty(deal.is_faulty), later))),
        Some(_) => found(d, row, later).await,
        None => missing(d, view, row, OnChain::Terminated).await,
    }
}

/// Whether the market has let go of the price of a deal that failed after it was published, or that ended.
async fn locked(d: &Deals, view: ChainView, row: &DealRow) -> Result<Next, Failed> {
    let later = view.last_final.plus(limits::LOCKED_CHECKED_EVERY);
    let Some(deal_id) = row.deal_id else { return again(d, row, later).await };
    match on_chain(d, row, deal_id).await? {
        None => missing(d, view, row, OnChain::Unlocked).await,
        Some(_) => found(d, row, later).await,
    }
}

/// After a restored backup: when nothing unknown can be published any more, slots are filled again.
async fn settle_restore(d: &Deals, view: ChainView) -> Result<(), Failed> {
    let Some(restored) = d.records.restored().await? else { return Ok(()) };
    match restored.safe_from {
        None => {
            let lead = d.settings.deals.start_lead.max(d.records.longest_lead().await?);
            d.records.restored_until(view.head.plus(lead)).await?;
        }
        Some(safe) if safe <= view.last_final => d.records.restore_settled("the chain").await?,
        Some(_) => {}
    }
    Ok(())
}

/// Notes an event; that it could not be is no reason to stop.
pub(crate) async fn note(d: &Deals, kind: &str, subject: &str, body: serde_json::Value) {
    if let Err(error) = d.records.note_event(kind, subject, body).await {
        tracing::error!(%error, kind, "an event could not be noted: {error}");
    }
}

async fn gauges(d: &Deals) {
    if let Ok(counts) = d.records.deal_counts().await {
        for (state, count) in counts {
            metrics::gauge!("floe_deals", "state" => state.as_str()).set(count as f64);
        }
    }
    if let Ok(totals) = d.records.totals().await {
        // A gauge is a float: for a look, not for a sum.
        metrics::gauge!("floe_attofil_reserved").set(totals.lifetime.reserved.get() as f64);
        metrics::gauge!("floe_attofil_spent").set(totals.lifetime.spent.get() as f64);
    }
    if let Some(funds) = d.funds().map(|funds| funds.head) {
        metrics::gauge!("floe_attofil_wallet").set(funds.wallet.get() as f64);
        metrics::gauge!("floe_attofil_escrow").set(funds.escrow.get() as f64);
        metrics::gauge!("floe_attofil_locked").set(funds.locked.get() as f64);
    }
    metrics::gauge!("floe_chain_head").set(d.head().get() as f64);
}
