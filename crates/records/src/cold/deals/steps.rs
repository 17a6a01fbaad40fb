//! The steps of a deal: the machine of [`floe_core::deal`], with the money, the standing and the event that go with each.

use std::collections::BTreeMap;

use floe_core::cold::{DealUuid, Fault, SignedDeal};
use floe_core::deal::Money;
use floe_core::spending::{Caps, OverCap};
use floe_core::standing::Outcome;
use floe_core::{
    AccountId, ActorId, AttoFil, Cid, DealEvent, DealState, Epoch, FailureCode, PaddedSize, PieceCid,
    Timestamp,
};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::row::{DealRow, SELECT};
use super::{id_of, list};
use crate::cold::ledger::{self, Change};
use crate::cold::{events, facts, providers};
use crate::pins::row::{db, key};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records};

/// What a new attempt is made of.
#[derive(Debug, Clone)]
pub struct NewDeal {
    /// The wallet's address, as text.
    pub wallet: String,
    /// What is stored.
    pub aggregate: Uuid,
    /// For which replica.
    pub slot: u32,
    /// With whom.
    pub provider: ActorId,
    /// Who owns the provider.
    pub owner: ActorId,
    /// The policy's name.
    pub policy: String,
    /// The piece.
    pub piece: PieceCid,
    /// Its size.
    pub size: PaddedSize,
    /// Bytes of the CAR.
    pub car_bytes: u64,
    /// Its root.
    pub root: Cid,
    /// Whether indexers hear of it.
    pub ipni: bool,
    /// For the whole piece and each epoch.
    pub price: AttoFil,
    /// The provider's.
    pub collateral: AttoFil,
    /// The head.
    pub head: Epoch,
    /// First epoch.
    pub start: Epoch,
    /// Last epoch.
    pub end: Epoch,
    /// What each account has in the piece: by this the cost is shared.
    pub weights: BTreeMap<AccountId, u64>,
}

/// What came of an attempt to begin one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// The row is written and its cost reserved.
    Deal(Box<DealRow>),
    /// A cap does not permit it. Nothing was written.
    OverCap(OverCap),
    /// Spending is switched off. Nothing was written.
    Off,
    /// The slot has a deal that it waits for. Nothing was written.
    SlotTaken,
}

/// What came of a sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The provider takes it, or has had it before.
    Accepted,
    /// It does not.
    Refused(Fault),
    /// Nobody knows.
    Lost(Fault),
}

/// What a final tipset says of a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnChain {
    /// It is there, ours field by field, under this number.
    Published(u64),
    /// It is in a proven sector.
    Active(u64),
    /// Its start has passed without it being active.
    StartPassed,
    /// Its end has passed.
    EndPassed,
    /// It was active, and is gone before its end.
    Terminated,
    /// The market has let go of the price of a deal that failed.
    Unlocked,
    /// Whether its sector fails its proofs.
    Faulty(bool),
    /// The chain has no such deal: not yet believed. Or it has it again.
    Missing(bool),
}

impl Records {
    /// Begins an attempt: the switch, the slot and the caps are checked, the cost is reserved and the row written, in one
    /// transaction. The generation is the next that the piece has for this slot.
    ///
    /// # Errors
    /// [`Error::Conflict`] for terms that cannot be; [`Error::Damaged`].
    pub async fn choose_deal(&self, new: NewDeal, caps: &Caps) -> Result<Chosen, Error> {
        let caps = *caps;
        self.write(Urgency::Takes, move |tx| {
            let new = new.clone();
            Box::pin(async move { choose(tx, &new, &caps).await })
        })
        .await
    }

    /// Keeps the bytes that were signed for a deal, where it has none yet. The same bytes again are well.
    ///
    /// # Errors
    /// [`Error::Conflict`] where others are there already: these must never be sent. [`Error::NotFound`].
    pub async fn store_signed(&self, deal: DealUuid, signed: SignedDeal) -> Result<DealRow, Error> {
        self.write(Urgency::Takes, move |tx| {
            let signed = signed.clone();
            Box::pin(async move { store(tx, deal, signed).await })
        })
        .await
    }

    /// The bytes are about to go out: `proposed` from now on, or another try of a lost one, of one that its provider does
    /// not know any more, or of a refused one whose slot is open; with the next not before `retry_at`. `None` where they
    /// must not: spending is off, or the deal is not waiting for it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`].
    pub async fn begin_sending(
        &self,
        deal: DealUuid,
        head: Epoch,
        retry_at: Timestamp,
    ) -> Result<Option<DealRow>, Error> {
        self.write(Urgency::Takes, move |tx| Box::pin(begin_sending(tx, deal, head, retry_at))).await
    }

    /// What came of a sending; when it is asked after, or sent again, is `due`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`].
    pub async fn answered(
        &self,
        deal: DealUuid,
        reply: Reply,
        head: Epoch,
        due: Timestamp,
    ) -> Result<DealRow, Error> {
        self.write(Urgency::Frees, move |tx| {
            let reply = reply.clone();
            Box::pin(async move { answered(tx, deal, &reply, head, due).await })
        })
        .await
    }

    /// After a start: what was being sent has no answer. Says how many there were.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn replies_lost(&self) -> Result<u64, Error> {
        self.write(Urgency::Frees, |tx| Box::pin(replies_lost(tx))).await
    }

    /// Gives a deal up that nobody was told of. One that was sent stays as it is.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`].
    pub async fn withdraw_deal(&self, deal: DealUuid, why: Fault) -> Result<DealRow, Error> {
        self.write(Urgency::Frees, move |tx| {
            let why = why.clone();
            Box::pin(async move {
                let mut row = one(&mut tx.conn, deal).await?;
                if row.state == DealState::Chosen {
                    row.error = Some(why);
                    step(tx, &mut row, DealEvent::Withdrawn, None).await?;
                }
                Ok(row)
            })
        })
        .await
    }

    /// What the chain says at `final_epoch`; `watch` is when it is asked next, while the deal is not over.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`].
    pub async fn on_chain(
        &self,
        deal: DealUuid,
        seen: OnChain,
        final_epoch: Epoch,
        watch: Epoch,
    ) -> Result<DealRow, Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(on_chain(tx, deal, seen, final_epoch, watch))).await
    }

    /// The operator's word on a deal that came to nothing: its provider may be asked again, for this piece too, at once.
    ///
    /// # Errors
    /// [`Error::Conflict`] for one that the slot still waits for; [`Error::NotFound`].
    pub async fn forgive_deal(&self, deal: DealUuid) -> Result<DealRow, Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                let mut row = one(&mut tx.conn, deal).await?;
                if row.state.is_exposed() {
                    return Err(Error::Conflict(format!(
                        "the deal {deal} is {}: until epoch {} its provider can publish it, and no other is made in its \
                         place with this provider",
                        row.state.as_str(),
                        row.start,
                    )));
                }
                row.is_forgiven = true;
                let watch = row.is_locked.then_some(Epoch::default());
                row.save(tx, row.state, watch).await?;
                providers::wake(tx, row.provider).await?;
                Ok(row)
            })
        })
        .await
    }
}

async fn choose(tx: &mut Tx, new: &NewDeal, caps: &Caps) -> Result<Chosen, Error> {
    facts::fence(tx).await?;
    if !facts::switch(&mut tx.conn).await?.on {
        return Ok(Chosen::Off);
    }
    if list::slot_waits(&mut tx.conn, new.aggregate, new.slot).await? {
        return Ok(Chosen::SlotTaken);
    }
    let duration = new.end.since(new.start);
    let cost = new.price.checked_mul(u128::from(duration)).filter(|_| duration > 0);
    let cost = cost.ok_or_else(|| Error::Conflict("a deal's price over its term cannot be paid".into()))?;
    let generation: i64 = sqlx::query_scalar(
        "SELECT CAST(COALESCE(MAX(generation) + 1, 0) AS BIGINT) FROM deals WHERE piece = $1 AND slot = $2",
    )
    .bind(new.piece.commitment().to_vec())
    .bind(i64::from(new.slot))
    .fetch_one(&mut tx.conn)
    .await?;
    let generation = u32::try_from(generation).map_err(|_| Error::Conflict("too many attempts".into()))?;
    let generation = generation.max(facts::least_generation(&mut tx.conn).await?);
    let uuid = DealUuid::of_attempt(&new.wallet, &new.piece, new.slot, generation);
    let permitted = ledger::reserve_deal(tx, uuid, new.provider, cost, &new.weights, caps).await?;
    if let Err(over) = permitted {
        return Ok(Chosen::OverCap(over));
    }
    let row = DealRow::chosen(tx.now, new, uuid, generation, cost);
    row.insert(tx).await?;
    facts::note_lead(tx, new.start.since(new.head)).await?;
    list::placing(tx, new.aggregate).await?;
    tell(tx, &row).await?;
    fail::fail_point!("deal.chosen");
    Ok(Chosen::Deal(Box::new(row)))
}

async fn store(tx: &mut Tx, deal: DealUuid, signed: SignedDeal) -> Result<DealRow, Error> {
    facts::fence(tx).await?;
    let mut row = one(&mut tx.conn, deal).await?;
    match &row.signed {
        Some(kept) if *kept == signed => return Ok(row),
        Some(_) => {
            return Err(Error::Conflict(format!("the deal {deal} was signed before, with other bytes")));
        }
        None => row.signed = Some(signed.clone()),
    }
    // From nothing to a value, once: `signed IS NULL` holds whatever was read above.
    let done = sqlx::query(
        "UPDATE deals SET signed = $2, signed_cid = $3, digest = $4 WHERE id = $1 AND signed IS NULL",
    )
    .bind(id_of(deal))
    .bind(signed.bytes)
    .bind(signed.signed_cid.to_bytes())
    .bind(row.digest())
    .execute(&mut tx.conn)
    .await?;
    if done.rows_affected() == 1 {
        fail::fail_point!("deal.signed");
        Ok(row)
    } else {
        Err(Error::Conflict(format!("the deal {deal} was signed before")))
    }
}

async fn begin_sending(
    tx: &mut Tx,
    deal: DealUuid,
    head: Epoch,
    retry_at: Timestamp,
) -> Result<Option<DealRow>, Error> {
    facts::fence(tx).await?;
    let mut row = one(&mut tx.conn, deal).await?;
    let waits = match row.state {
        DealState::Chosen | DealState::Unknown | DealState::Accepted => true,
        // Its slot was open meanwhile: whoever has it keeps it.
        DealState::Refused => !list::slot_waits(&mut tx.conn, row.aggregate, row.slot).await?,
        _ => false,
    };
    let waits = waits && row.signed.is_some();
    if !waits || !facts::switch(&mut tx.conn).await?.on {
        return Ok(None);
    }
    row.tries = row.tries.saturating_add(1);
    row.due = retry_at;
    if matches!(row.state, DealState::Chosen | DealState::Refused) {
        // Anew after a refusal: what its provider does is waited for from now on.
        row.sent = Some((tx.now, head));
        step(tx, &mut row, DealEvent::Sending, None).await?;
    } else {
        let watch = Some(row.start);
        row.save(tx, row.state, watch).await?;
    }
    fail::fail_point!("deal.proposed");
    Ok(Some(row))
}

async fn answered(
    tx: &mut Tx,
    deal: DealUuid,
    reply: &Reply,
    head: Epoch,
    due: Timestamp,
) -> Result<DealRow, Error> {
    let mut row = one(&mut tx.conn, deal).await?;
    let (event, outcome, fault) = match reply {
        Reply::Accepted => (DealEvent::Accepted, Outcome::Answered, None),
        Reply::Refused(fault) if fault.code == FailureCode::RejectedBackpressure => {
            (DealEvent::Refused, Outcome::Busy, Some(fault))
        }
        Reply::Refused(fault) => (DealEvent::Refused, Outcome::Refused, Some(fault)),
        Reply::Lost(fault) => (DealEvent::ReplyLost, Outcome::Unreachable, Some(fault)),
    };
    if row.state.after(event).is_err() {
        return Ok(row);
    }
    row.due = due;
    row.error = fault.cloned();
    providers::learn(tx, row.provider, outcome, head, fault).await?;
    if let Some(fault) = fault.filter(|fault| FailureCode::is_our_bug(&fault.text)) {
        let body = serde_json::json!({ "provider": row.provider.to_string(), "text": fault.text });
        events::insert(tx, "alarm.our_bug", None, &deal.to_string(), &body).await?;
    }
    step(tx, &mut row, event, None).await?;
    fail::fail_point!("deal.answered");
    Ok(row)
}

async fn replies_lost(tx: &mut Tx) -> Result<u64, Error> {
    let rows =
        list::in_state(&mut tx.conn, DealState::Proposed, Timestamp::from_millis(u64::MAX), u32::MAX).await?;
    let lost = rows.len() as u64;
    for mut row in rows {
        row.due = tx.now;
        step(tx, &mut row, DealEvent::ReplyLost, None).await?;
    }
    Ok(lost)
}

async fn on_chain(
    tx: &mut Tx,
    deal: DealUuid,
    seen: OnChain,
    at: Epoch,
    watch: Epoch,
) -> Result<DealRow, Error> {
    let mut row = one(&mut tx.conn, deal).await?;
    let event = match seen {
        OnChain::Published(_) => DealEvent::Published,
        OnChain::Active(_) => DealEvent::Activated,
        OnChain::StartPassed => DealEvent::StartPassed,
        OnChain::EndPassed => DealEvent::EndPassed,
        OnChain::Terminated => DealEvent::Terminated,
        OnChain::Unlocked => return unlock(tx, row).await,
        OnChain::Faulty(is_faulty) => return faulty(tx, row, is_faulty, watch).await,
        OnChain::Missing(is_missing) => {
            row.missing_since = is_missing.then(|| row.missing_since.unwrap_or(at));
            row.save(tx, row.state, Some(watch)).await?;
            return Ok(row);
        }
    };
    if row.state.after(event).is_err() {
        return Ok(row);
    }
    if let OnChain::Published(deal_id) = seen {
        (row.deal_id, row.due) = (Some(deal_id), tx.now);
        if row.state == DealState::Refused {
            unexpected(tx, &row).await?;
        }
    }
    if let OnChain::Active(sector) = seen {
        (row.sector, row.error) = (Some(sector), None);
    }
    row.missing_since = None;
    blame(tx, &mut row, event, at).await?;
    step(tx, &mut row, event, Some((at, watch))).await?;
    list::settle(tx, row.aggregate).await?;
    fail::fail_point!("deal.on_chain");
    Ok(row)
}

/// What went wrong where a deal ends, and what its provider is thought of.
async fn blame(tx: &mut Tx, row: &mut DealRow, event: DealEvent, at: Epoch) -> Result<(), Error> {
    let (outcome, code) = match (event, row.state) {
        (DealEvent::Activated, _) => (Outcome::Kept, None),
        (DealEvent::EndPassed, _) => (Outcome::Kept, Some(FailureCode::Expired)),
        (DealEvent::Terminated, _) => (Outcome::Broken, Some(FailureCode::TerminatedEarly)),
        (DealEvent::StartPassed, DealState::Published) => (Outcome::Broken, Some(FailureCode::SealTimeout)),
        (DealEvent::StartPassed, DealState::Accepted) => (Outcome::Broken, Some(unpublished(row))),
        (DealEvent::StartPassed, DealState::Proposed | DealState::Unknown) => {
            (Outcome::Unreachable, Some(FailureCode::PublishTimeout))
        }
        // It was refused, and has its code.
        _ => return Ok(()),
    };
    if let Some(code) = code {
        let said = row.word.as_ref().map(|word| match &word.error {
            Some(error) => format!("the provider's last word: {}: {error}", word.status),
            None => format!("the provider's last word: {}", word.status),
        });
        // What was said when it was sent is all that is known of one that nobody heard of since.
        let was_heard = event != DealEvent::StartPassed || row.state == DealState::Published;
        let before = row.error.take().filter(|_| !was_heard).map(|error| error.text);
        row.error = Some(Fault::new(code, said.or(before).unwrap_or_else(|| format!("at epoch {at}"))));
    }
    providers::learn(tx, row.provider, outcome, at, row.error.as_ref()).await
}

/// Why a deal that was accepted was not published.
fn unpublished(row: &DealRow) -> FailureCode {
    let said = row.word.as_ref().and_then(|word| word.error.as_deref()).unwrap_or_default();
    FailureCode::of_unpublished(said, row.pulled, row.is_pulled)
}

/// A provider published what it had refused: one replica more than was asked for. It is paid, and gets no other deal.
async fn unexpected(tx: &mut Tx, row: &DealRow) -> Result<(), Error> {
    let why = format!("it refused the deal {} and published it all the same", row.uuid);
    match providers::suspend(tx, row.provider, Some(&why)).await {
        Ok(()) | Err(Error::NotFound) => {}
        Err(error) => return Err(error),
    }
    events::insert(tx, "alarm.extra_replica", None, &row.uuid.to_string(), &body(row)).await
}

async fn unlock(tx: &mut Tx, mut row: DealRow) -> Result<DealRow, Error> {
    if row.is_locked {
        if row.state == DealState::Failed {
            ledger::move_all(tx, row.uuid, Change::Release).await?;
        }
        row.is_locked = false;
        row.save(tx, row.state, None).await?;
    }
    Ok(row)
}

async fn faulty(tx: &mut Tx, mut row: DealRow, is_faulty: bool, watch: Epoch) -> Result<DealRow, Error> {
    if row.state != DealState::Active {
        return Ok(row);
    }
    let news = row.is_faulty != is_faulty;
    (row.is_faulty, row.missing_since) = (is_faulty, None);
    row.error = is_faulty.then(|| Fault::new(FailureCode::SectorFaulty, "its sector is not being proven"));
    row.save(tx, row.state, Some(watch)).await?;
    if news {
        let kind = if is_faulty { "deal.faulty" } else { "deal.recovered" };
        let account = sole_account(tx, row.uuid).await?;
        events::insert(tx, kind, account, &row.uuid.to_string(), &body(&row)).await?;
    }
    Ok(row)
}

/// The machine, and the money. `chain`: the final epoch, and when the chain is asked next.
async fn step(
    tx: &mut Tx,
    row: &mut DealRow,
    event: DealEvent,
    chain: Option<(Epoch, Epoch)>,
) -> Result<(), Error> {
    let before = row.state;
    let (after, money) = before.after(event).map_err(|illegal| Error::Conflict(illegal.to_string()))?;
    match money {
        // What its provider has not settled yet stays locked; it is paid all the same.
        Money::Stays => row.is_locked |= after == DealState::Expired,
        // The market still has its price, until its cron or somebody settles it.
        Money::Released if before == DealState::Published => row.is_locked = true,
        Money::Released => ledger::move_all(tx, row.uuid, Change::Release).await?,
        Money::Spent => ledger::move_all(tx, row.uuid, Change::Spend).await?,
        Money::RestRefunded => {
            let (at, _) = chain.unwrap_or_default();
            ledger::refund(tx, row.uuid, row.end.since(at.max(row.start)), row.duration()).await?;
        }
    }
    (row.state, row.updated) = (after, tx.now);
    let watch = match chain {
        Some((_, watch)) => (!after.is_over() || row.is_locked).then_some(watch),
        None => (!after.is_over()).then_some(row.start),
    };
    row.save(tx, before, watch).await?;
    if before == after { Ok(()) } else { tell(tx, row).await }
}

/// Tells of a deal's new state.
async fn tell(tx: &mut Tx, row: &DealRow) -> Result<(), Error> {
    let account = sole_account(tx, row.uuid).await?;
    let kind = format!("deal.{}", row.state.as_str());
    events::insert(tx, &kind, account, &row.uuid.to_string(), &body(row)).await
}

/// The account that bears all of a deal, where it is one.
async fn sole_account(tx: &mut Tx, deal: DealUuid) -> Result<Option<AccountId>, Error> {
    Ok(ledger::only_account(&mut tx.conn, &deal.to_string()).await?.map(AccountId))
}

fn body(row: &DealRow) -> serde_json::Value {
    serde_json::json!({
        "aggregate": row.aggregate,
        "slot": row.slot,
        "provider": row.provider.to_string(),
        "state": row.state.word(),
        "piece_cid": row.piece.to_string(),
        "deal_id": row.deal_id,
        "cost_attofil": row.cost,
        "error": row.error.as_ref().map(|e| serde_json::json!({ "code": e.code, "text": e.text })),
    })
}

pub(super) async fn one(conn: &mut SqliteConnection, deal: DealUuid) -> Result<DealRow, Error> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{SELECT} WHERE d.id = $1")))
        .bind(id_of(deal))
        .fetch_optional(conn)
        .await?;
    DealRow::read(&row.ok_or(Error::NotFound)?)
}

/// Of what others say: no step, and no money.
pub(super) async fn note_pull(tx: &mut Tx, deal: DealUuid, sent_to: u64, whole: bool) -> Result<(), Error> {
    let sent_to = db(sent_to);
    sqlx::query(
        "UPDATE deals SET pulled = CASE WHEN pulled < $2 THEN $2 ELSE pulled END, \
         pulled_whole = CASE WHEN $3 = 1 THEN 1 ELSE pulled_whole END WHERE id = $1",
    )
    .bind(key(deal.0))
    .bind(sent_to)
    .bind(i64::from(whole))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}
