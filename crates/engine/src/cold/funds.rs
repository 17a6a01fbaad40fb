//! Money on the chain: escrow is kept at what deals need, and what messages cost is set aside under the caps.
//!
//! ```text
//!   plan ──begin──> open top-up (a row) ──reserve gas──> sent, once for its intent ──final──> ended
//! ```
//!
//! One top-up is open at a time, under an intent that its number makes: after a crash the same intent is asked for again,
//! and whoever holds the key sends it once. While it is open its amount counts as on its way, so the same need is not met
//! twice. A call that fails leaves it open: whether an earlier call had signed it is not known here.
//!
//! The price of a deal counts against the caps when it is reserved, so money that only moves into escrow does not count a
//! second time; what may move is what deals need, and on top of it what the caps still leave. Gas counts.

use floe_core::cold::{ChainView, Fault, Funds, FundsCall, MessageProgress, Sent};
use floe_core::escrow::{self, Plan, State};
use floe_core::{AttoFil, FailureCode};
use floe_records::cold::{TopUp, Unpublished};

use super::deals::{Deals, in_words};
use super::tracker::{Failed, NAME, note};

/// Why money may not leave escrow or the wallet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// What deals need would not be covered.
    #[error("{asked} attoFIL are asked for, and {free} are free: deals that are signed need {committed}")]
    Committed {
        /// Asked for.
        asked: AttoFil,
        /// What may go.
        free: AttoFil,
        /// What deals need.
        committed: AttoFil,
    },
    /// Nothing may be spent now.
    #[error("{0}")]
    Paused(String),
    /// A cap does not permit the gas.
    #[error("the gas does not fit: {0}")]
    Gas(#[from] floe_core::spending::OverCap),
    /// The chain, or the rows.
    #[error("{0}")]
    Failed(String),
}

/// Looks after messages and escrow, once a look.
pub(crate) async fn pass(d: &Deals, _view: ChainView) -> Result<(), Failed> {
    // Off means that nothing is pushed again and nothing replaced; what happened on the chain is looked at all the same.
    let is_on = d.records.spending_switch().await?.on;
    for sent in d.chain.tick(is_on).await? {
        settle(d, &sent).await?;
    }
    let funds = d.chain.funds().await?;
    d.has_funds(funds);
    let unpublished = d.records.unpublished_cost().await?;
    if let Some(open) = d.records.open_top_up().await? {
        return drive(d, open).await;
    }
    let plan = plan(d, funds, &unpublished, AttoFil::ZERO).await?;
    alarm(d, plan.alarm.map(|alarm| alarm.to_string())).await;
    let Some(amount) = plan.top_up else { return Ok(()) };
    if !may_send(d).await? {
        return Ok(());
    }
    let open = d.records.begin_top_up(amount).await?;
    drive(d, open).await
}

/// The operator's consent and the switch; a fresh view is what we are in the middle of.
async fn may_send(d: &Deals) -> Result<bool, Failed> {
    Ok(d.settings.deals.enabled && d.records.spending_switch().await?.on)
}

async fn plan(
    d: &Deals,
    funds: Funds,
    unpublished: &Unpublished,
    on_the_way: AttoFil,
) -> Result<Plan, Failed> {
    let odd = |what: String| Failed::Chain(Fault::new(FailureCode::ChainUnreachable, what));
    let deals = &d.settings.deals;
    let free = funds.free().map_err(|error| odd(error.to_string()))?;
    let left = d.records.totals().await?.left(&deals.caps)?;
    let committed = unpublished.needed(funds.locked);
    let short = committed.checked_sub(free).unwrap_or_default();
    let policy = escrow::Policy {
        keep_tenths: deals.escrow_tenths,
        least_top_up: deals.least_top_up,
        may_spend: short.checked_add(left).unwrap_or(short),
        wallet_reserve: deals.wallet_reserve,
        alarm_below: deals.alarm_below,
    };
    let state = State { funds, on_the_way, committed };
    escrow::plan(&state, &policy).map_err(|error| odd(error.to_string()))
}

/// Tells of what someone should look at, once while it stays the same.
async fn alarm(d: &Deals, alarm: Option<String>) {
    if let Some(text) = &alarm {
        d.board.error(NAME, text);
    }
    if d.alarm_is_news(alarm.clone())
        && let Some(text) = alarm
    {
        tracing::warn!("{text}");
        note(d, "escrow.alarm", "escrow", serde_json::json!({ "text": text })).await;
    }
}

fn intent(top_up: TopUp) -> String {
    format!("top-up-{}", top_up.number)
}

/// Sends an open top-up, or asks how far it is.
async fn drive(d: &Deals, open: TopUp) -> Result<(), Failed> {
    if !may_send(d).await? {
        return Ok(());
    }
    let intent = intent(open);
    if let Err(over) = d.records.reserve_gas(&intent, d.chain.max_fee(), d.caps()).await? {
        alarm(d, Some(format!("the gas of a top-up does not fit: {over}"))).await;
        return Ok(());
    }
    match d.chain.send(&intent, &FundsCall::TopUp(open.amount)).await {
        Ok(sent) => settle(d, &sent).await,
        Err(fault) => {
            alarm(d, Some(format!("escrow is not topped up: {}", in_words(&fault)))).await;
            Ok(())
        }
    }
}

/// What a message came to, in the ledger and in the events. Twice is once.
async fn settle(d: &Deals, sent: &Sent) -> Result<(), Failed> {
    d.records.gas_is_at_most(&sent.intent, sent.max_fee).await?;
    let done = match &sent.progress {
        MessageProgress::Pending | MessageProgress::Included => return Ok(()),
        MessageProgress::Missing => {
            let text = format!("the message {:?} is lost, and its number was used by another", sent.intent);
            alarm(d, Some(text)).await;
            return Ok(());
        }
        MessageProgress::Final(done) => done,
    };
    d.records.gas_is_spent(&sent.intent).await?;
    let open = d.records.open_top_up().await?.filter(|open| intent(*open) == sent.intent);
    let Some(open) = open else { return Ok(()) };
    let (kind, code) = match done {
        Ok(()) => ("escrow.topped_up", 0),
        Err(code) => ("alarm.top_up_failed", *code),
    };
    d.records.end_top_up(open.number).await?;
    let body = serde_json::json!({ "amount": open.amount, "exit_code": code });
    note(d, kind, &sent.intent, body).await;
    Ok(())
}

/// Whether `amount` may leave escrow: never what deals that can still be published need.
pub(crate) async fn may_withdraw(d: &Deals, amount: AttoFil) -> Result<(), Refused> {
    let failed = |error: String| Refused::Failed(error);
    let funds = d.chain.funds().await.map_err(|fault| failed(in_words(&fault)))?;
    let free = funds.free().map_err(|error| failed(error.to_string()))?;
    let unpublished = d.records.unpublished_cost().await.map_err(|error| failed(error.to_string()))?;
    let committed = unpublished.spoken_for(funds.locked);
    within(amount, free, committed)
}

/// Whether `amount` may leave the wallet: never its reserve, nor what escrow still lacks.
pub(crate) async fn may_leave_wallet(d: &Deals, amount: AttoFil) -> Result<(), Refused> {
    let failed = |error: String| Refused::Failed(error);
    let funds = d.chain.funds().await.map_err(|fault| failed(in_words(&fault)))?;
    let free = funds.free().map_err(|error| failed(error.to_string()))?;
    let unpublished = d.records.unpublished_cost().await.map_err(|error| failed(error.to_string()))?;
    let open = d.records.open_top_up().await.map_err(|error| failed(error.to_string()))?;
    let committed = unpublished.spoken_for(funds.locked);
    let lacking = committed.checked_sub(free).unwrap_or_default();
    let needed = lacking.max(open.map_or(AttoFil::ZERO, |open| open.amount));
    let needed = needed.checked_add(d.settings.deals.wallet_reserve);
    within(amount, funds.wallet, needed.unwrap_or(funds.wallet))
}

fn within(asked: AttoFil, there: AttoFil, committed: AttoFil) -> Result<(), Refused> {
    let free = there.checked_sub(committed).unwrap_or_default();
    if asked <= free { Ok(()) } else { Err(Refused::Committed { asked, free, committed }) }
}

/// A message of the operator's: what leaves is checked, and its gas is reserved under the caps before it is sent. The same
/// intent again is the same message.
pub(crate) async fn operators_call(d: &Deals, intent: &str, call: &FundsCall) -> Result<Sent, Refused> {
    match call {
        FundsCall::Withdraw(amount) => may_withdraw(d, *amount).await?,
        FundsCall::Send { amount, .. } | FundsCall::TopUp(amount) => may_leave_wallet(d, *amount).await?,
        FundsCall::Settle(_) => {}
    }
    let failed = |error: String| Refused::Failed(error);
    d.records
        .reserve_gas(intent, d.chain.max_fee(), d.caps())
        .await
        .map_err(|error| failed(error.to_string()))??;
    let sent = d.chain.send(intent, call).await.map_err(|fault| failed(in_words(&fault)))?;
    settle(d, &sent).await.map_err(|error| failed(error.to_string()))?;
    d.look_due.notify_one();
    Ok(sent)
}
