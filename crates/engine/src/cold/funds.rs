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
//! A message that the chain is past, and that the node does not find, ends its top-up: the next one goes by what escrow
//! has. Gas that is reserved and that nothing was signed for is let go of at the next look.
//!
//! The operator's calls go one at a time, and while one is on its way nothing is signed and no top-up is begun.
//!
//! What came into the wallet or into escrow counts once it is final, what left them at once: a top-up is sent where the
//! head and the last final epoch both call for it, a deal is signed where both cover it, and the operator takes out what
//! both have free.
//!
//! The price of a deal counts against the caps when it is reserved, so money that only moves into escrow does not count a
//! second time; what may move is what deals need, and on top of it what the caps still leave. Gas counts.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use floe_core::cold::{ChainView, Fault, Funds, FundsCall, MessageProgress, OPERATORS, Sent, is_operators};
use floe_core::escrow::{self, Alarm, Plan, State};
use floe_core::{AttoFil, FailureCode};
use floe_records::cold::TopUp;

use super::dealer;
use super::deals::{Deals, in_words};
use super::tracker::{Failed, NAME, note};
use crate::limits;

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
    /// What would cover it came in lately.
    #[error(
        "{asked} attoFIL are asked for, and of what is free only {lasting} are final: what came in lately may be taken out \
         once it is final too (`floe wallet show`)"
    )]
    NotFinal {
        /// Asked for.
        asked: AttoFil,
        /// Free at the last final epoch.
        lasting: AttoFil,
    },
    /// Another call is on its way, and what it takes is not yet gone from what the chain says is there.
    #[error(
        "another call, {0:?}, is on its way: what is free is known once it is on the chain; try again then"
    )]
    Pending(String),
    /// All that came to nothing was to be settled, and there is none.
    #[error("no deal that came to nothing locks its price: there is nothing to settle")]
    NothingLocked,
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
pub(crate) async fn pass(d: &Deals, view: ChainView) -> Result<(), Failed> {
    // Off means that nothing is pushed again and nothing replaced but what is the operator's own; what happened on the chain is
    // looked at all the same. What restored rows had begun may have been done since.
    let waits = dealer::waits_for_restore(d, view).await?;
    let is_on = d.records.spending_switch().await?.on && !waits;
    let gas = reserved_gas(d).await?;
    for sent in d.chain.tick(is_on, &gas).await? {
        settle(d, &sent).await?;
    }
    settle_gas(d).await?;
    if let Some(intent) = operators_pending(d, None).await? {
        d.board.error(NAME, format!("no deal is signed while the operator's call {intent:?} is on its way"));
    }
    let funds = d.chain.funds().await?;
    d.has_funds(funds);
    let unpublished = d.records.unpublished_cost().await?;
    let open = d.records.open_top_up().await?;
    let again = d.lacking_for_again();
    let with_again = |needed: AttoFil| needed.checked_add(again).unwrap_or(needed);
    let needed = with_again(unpublished.needed(funds.underway()));
    let plan_now = plan(d, funds.head, needed, on_the_way(d, open).await?).await?;
    // While one top-up is on its way escrow may fall short of more than that: it is said all the same.
    let short = plan_now.alarm.map(|alarm| alarm.to_string());
    let blocked = match (open, plan_now.top_up) {
        _ if waits => None,
        (Some(open), _) => drive(d, open).await?,
        (None, Some(amount)) if may_send(d).await? && !operator_is_at_it(d).await? => {
            // Nothing is on the way: what was is final.
            let needed = with_again(unpublished.needed(AttoFil::ZERO));
            let plan_final = plan(d, funds.last_final, needed, AttoFil::ZERO).await?;
            match plan_final.top_up {
                Some(lasting) => drive(d, d.records.begin_top_up(amount.min(lasting)).await?).await?,
                None => Some(not_yet(amount, plan_final.alarm)),
            }
        }
        _ => None,
    };
    alarm(d, blocked.or(short)).await;
    Ok(())
}

/// Why a top-up that the head calls for is not sent.
fn not_yet(amount: AttoFil, at_finality: Option<Alarm>) -> String {
    let why = at_finality.map(|alarm| format!(" ({alarm})")).unwrap_or_default();
    format!("escrow lacks {amount} attoFIL, and it waits until what came in or went out is final{why}")
}

/// What of an open top-up is not in escrow yet.
async fn on_the_way(d: &Deals, open: Option<TopUp>) -> Result<AttoFil, Failed> {
    let Some(open) = open else { return Ok(AttoFil::ZERO) };
    let sent = d.chain.message(&intent(open)).await?;
    let is_there = sent.is_some_and(|sent| sent.progress == MessageProgress::Included);
    Ok(if is_there { AttoFil::ZERO } else { open.amount })
}

/// What is reserved for each message: where `deals.max_gas` was raised since, as much as that where the caps permit it, since
/// a replacement may cost what is reserved and no more.
async fn reserved_gas(d: &Deals) -> Result<BTreeMap<String, AttoFil>, Failed> {
    let mut open = d.records.open_gas().await?;
    let most = d.chain.max_fee();
    for (intent, reserved) in open.iter_mut().filter(|(_, reserved)| **reserved < most) {
        match d.records.reserve_gas(intent, most, d.caps()).await? {
            Ok(()) => *reserved = most,
            Err(over) => d.board.error(NAME, format!("the gas of {intent:?} cannot be raised: {over}")),
        }
    }
    Ok(open)
}

/// Settles gas that is still reserved and need not be: where a process ended, or a call failed, between the reservation and
/// the signing, nothing was signed and nothing will be; where it ended before the end of a message was noted, it is now.
async fn settle_gas(d: &Deals) -> Result<(), Failed> {
    // Somebody is between the two just now.
    let Ok(_turn) = d.operators_turn.try_lock() else { return Ok(()) };
    let open = d.records.open_top_up().await?.map(intent);
    for held in d.records.open_gas().await?.into_keys() {
        match d.chain.message(&held).await? {
            Some(sent) => settle(d, &sent).await?,
            None if open.as_ref() == Some(&held) => {}
            None => d.records.gas_is_free(&held).await?,
        }
    }
    Ok(())
}

/// Whether a call of the operator's is being sent, or on its way and not yet in what the chain says of the funds. Until
/// then nobody may count on what is there.
pub(crate) async fn operator_is_at_it(d: &Deals) -> Result<bool, Fault> {
    if d.operators_turn.try_lock().is_err() {
        return Ok(true);
    }
    Ok(operators_pending(d, None).await?.is_some())
}

/// The intent of a call of the operator's that is on its way, other than `but`.
async fn operators_pending(d: &Deals, but: Option<&str>) -> Result<Option<String>, Fault> {
    let open = d.records.open_gas().await;
    let open = open.map_err(|error| Fault::new(FailureCode::FundsWallet, error.to_string()))?;
    for held in open.into_keys().filter(|held| is_operators(held) && Some(held.as_str()) != but) {
        let sent = d.chain.message(&held).await?;
        if sent.is_some_and(|sent| sent.progress == MessageProgress::Pending) {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

/// The operator's consent and the switch; a fresh view is what we are in the middle of.
async fn may_send(d: &Deals) -> Result<bool, Failed> {
    Ok(d.settings.deals.enabled && d.records.spending_switch().await?.on)
}

async fn plan(d: &Deals, funds: Funds, committed: AttoFil, on_the_way: AttoFil) -> Result<Plan, Failed> {
    let odd = |what: String| Failed::Chain(Fault::new(FailureCode::ChainUnreachable, what));
    let deals = &d.settings.deals;
    let free = funds.free().map_err(|error| odd(error.to_string()))?;
    let left = d.records.totals().await?.left(&deals.caps)?;
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

/// Sends an open top-up, or asks how far it is. What stands in its way, in words.
async fn drive(d: &Deals, open: TopUp) -> Result<Option<String>, Failed> {
    if !may_send(d).await? {
        return Ok(None);
    }
    let intent = intent(open);
    if let Err(over) = d.records.reserve_gas(&intent, d.chain.max_fee(), d.caps()).await? {
        return Ok(Some(format!("the gas of a top-up does not fit: {over}")));
    }
    match d.chain.send(&intent, &FundsCall::TopUp(open.amount)).await {
        Ok(sent) => settle(d, &sent).await.map(|()| None),
        Err(fault) => Ok(Some(format!("escrow is not topped up: {}", in_words(&fault)))),
    }
}

/// What a message came to, in the ledger and in the events. Twice is once.
async fn settle(d: &Deals, sent: &Sent) -> Result<(), Failed> {
    d.records.gas_is_at_most(&sent.intent, sent.max_fee).await?;
    let done = match &sent.progress {
        MessageProgress::Pending | MessageProgress::Included => return Ok(()),
        MessageProgress::Missing => return missing(d, sent).await,
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

/// The chain is past a message's number for good, so it cannot come any more; or it came, and the node does not look back
/// far enough to say so. Its gas counts as spent, and what escrow has says the next plan: nothing waits for it for ever.
async fn missing(d: &Deals, sent: &Sent) -> Result<(), Failed> {
    let open = d.records.open_top_up().await?.filter(|open| intent(*open) == sent.intent);
    if !d.records.holds_gas(&sent.intent).await? && open.is_none() {
        return Ok(());
    }
    let text = format!("the message {:?} is lost, and its number was used by another", sent.intent);
    tracing::warn!("{text}");
    d.board.error(NAME, &text);
    let body = serde_json::json!({ "text": text, "amount": open.map(|open| open.amount) });
    note(d, "alarm.message_lost", &sent.intent, body).await;
    d.records.gas_is_spent(&sent.intent).await?;
    if let Some(open) = open {
        d.records.end_top_up(open.number).await?;
    }
    Ok(())
}

/// Whether `amount` may leave escrow: never what deals that can still be published need.
pub(crate) async fn may_withdraw(d: &Deals, amount: AttoFil) -> Result<(), Refused> {
    let rows = d.records.unpublished_cost().await.map_err(failed)?;
    within(d, amount, |funds, underway| Ok((funds.free().map_err(failed)?, rows.spoken_for(underway)))).await
}

/// Whether `amount` may leave the wallet: never its reserve, nor what escrow still lacks.
pub(crate) async fn may_leave_wallet(d: &Deals, amount: AttoFil) -> Result<(), Refused> {
    let rows = d.records.unpublished_cost().await.map_err(failed)?;
    let open = d.records.open_top_up().await.map_err(failed)?;
    within(d, amount, |funds, underway| {
        let free = funds.free().map_err(failed)?;
        let lacking = rows.spoken_for(underway).checked_sub(free).unwrap_or_default();
        let needed = lacking.max(open.map_or(AttoFil::ZERO, |open| open.amount));
        let needed = needed.checked_add(d.settings.deals.wallet_reserve);
        Ok((funds.wallet, needed.unwrap_or(funds.wallet)))
    })
    .await
}

/// Whether `asked` is there beside what is committed, at the head and at finality. `of` says both of one of the two.
async fn within(
    d: &Deals,
    asked: AttoFil,
    of: impl Fn(Funds, AttoFil) -> Result<(AttoFil, AttoFil), Refused>,
) -> Result<(), Refused> {
    let funds = d.chain.funds().await.map_err(of_chain)?;
    let free_of = |(there, committed): (AttoFil, AttoFil)| there.checked_sub(committed).unwrap_or_default();
    let at_head = of(funds.head, funds.underway())?;
    let (free, committed) = (free_of(at_head), at_head.1);
    if asked > free {
        return Err(Refused::Committed { asked, free, committed });
    }
    let lasting = free_of(of(funds.last_final, AttoFil::ZERO)?);
    if asked <= lasting { Ok(()) } else { Err(Refused::NotFinal { asked, lasting }) }
}

fn failed(error: impl std::fmt::Display) -> Refused {
    Refused::Failed(error.to_string())
}

fn of_chain(fault: Fault) -> Refused {
    Refused::Failed(in_words(&fault))
}

/// A message of the operator's: what leaves is checked, and its gas is reserved under the caps before it is sent. The same
/// key again is the same message, whatever may leave by then. The switch does not hold it up: it is the operator's.
pub(crate) async fn operators_call(d: &Deals, key: &str, call: &FundsCall) -> Result<Sent, Refused> {
    let intent = &format!("{OPERATORS}{key}");
    // One after the other: two that are checked at once would both take what one may.
    let _turn = d.operators_turn.lock().await;
    d.operators_calls.fetch_add(1, Ordering::AcqRel);
    let mut call = call.clone();
    let known = d.chain.message(intent).await.map_err(of_chain)?;
    if let Some(sent) = &known
        && matches!(&call, FundsCall::Settle(deals) if deals.is_empty())
    {
        // Which deals it names was settled when it was signed.
        settle(d, sent).await.map_err(failed)?;
        return Ok(sent.clone());
    }
    if known.is_none() {
        name_locked(d, &mut call).await?;
        permit(d, intent, &call).await?;
        let reserved = d.records.reserve_gas(intent, d.chain.max_fee(), d.caps()).await;
        reserved.map_err(failed)??;
    }
    let sent = match d.chain.send(intent, &call).await {
        Ok(sent) => sent,
        Err(fault) => {
            if let Ok(None) = d.chain.message(intent).await {
                // Where that fails too, the next look lets go of it.
                if let Err(error) = d.records.gas_is_free(intent).await {
                    tracing::warn!(%error, intent, "the gas of a call that failed stays reserved for now: {error}");
                }
            }
            return Err(of_chain(fault));
        }
    };
    settle(d, &sent).await.map_err(failed)?;
    d.look_due.notify_one();
    Ok(sent)
}

/// Who settles no deal by its number means all that came to nothing and still lock their price.
async fn name_locked(d: &Deals, call: &mut FundsCall) -> Result<(), Refused> {
    let FundsCall::Settle(deals) = call else { return Ok(()) };
    if deals.is_empty() {
        *deals = d.records.locked_deals().await.map_err(failed)?;
        deals.truncate(limits::SETTLED_AT_ONCE);
    }
    if deals.is_empty() { Err(Refused::NothingLocked) } else { Ok(()) }
}

/// Whether a new call of the operator's may be sent now.
async fn permit(d: &Deals, intent: &str, call: &FundsCall) -> Result<(), Refused> {
    let takes = matches!(call, FundsCall::Withdraw(_) | FundsCall::Send { .. });
    if takes && d.records.restored().await.map_err(failed)?.is_some() {
        let why = "these rows were restored, and deals that they do not know may need what is there: wait until slots are \
                   filled again, or say that nothing is out with `floe spending trust-backup`";
        return Err(Refused::Paused(why.to_owned()));
    }
    let pending = operators_pending(d, Some(intent)).await;
    if let Some(pending) = pending.map_err(of_chain)? {
        return Err(Refused::Pending(pending));
    }
    match call {
        FundsCall::Withdraw(amount) => may_withdraw(d, *amount).await,
        FundsCall::Send { amount, .. } | FundsCall::TopUp(amount) => may_leave_wallet(d, *amount).await,
        // Settling takes nothing.
        FundsCall::Settle(_) => Ok(()),
    }
}
