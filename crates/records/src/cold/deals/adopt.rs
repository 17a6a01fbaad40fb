//! Deals that the chain has from this wallet and that no row knows: what a restored backup forgot.
//!
//! Such a deal is paid, and it is a replica. So it gets a row, published, without the bytes that were signed; its cost is
//! counted whatever the caps say, and it fills a slot, which keeps the piece from being placed once too often.

use std::collections::BTreeMap;

use floe_core::cold::{DealUuid, OwnDeal};
use floe_core::{AccountId, ActorId, DealEvent, DealState, Epoch, PieceCid};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::row::DealRow;
use super::{NewDeal, list};
use crate::cold::{aggregates, events, ledger};
use crate::pins::row::uuid_of;
use crate::writer::{Tx, Urgency};
use crate::{Error, Records};

impl Records {
    /// The aggregate of a piece, where it is one of ours.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn aggregate_of_piece(&self, piece: &PieceCid) -> Result<Option<Uuid>, Error> {
        of_piece(&mut *self.reader().await?, piece).await
    }

    /// Takes a deal over that is on the chain and in no row. `owner` is that of its provider, or the provider itself where
    /// nobody says whose it is: then nobody is left out for it. `weights` are what each account has in the piece. One that was
    /// taken over before stays as it is.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the piece is not ours; [`Error::Damaged`].
    pub async fn adopt_deal(
        &self,
        deal_id: u64,
        found: OwnDeal,
        owner: ActorId,
        final_epoch: Epoch,
        weights: BTreeMap<AccountId, u64>,
    ) -> Result<DealRow, Error> {
        self.write(Urgency::Frees, move |tx| {
            let (found, weights) = (found.clone(), weights.clone());
            Box::pin(async move { adopt(tx, deal_id, (&found, owner), final_epoch, weights).await })
        })
        .await
    }
}

async fn of_piece(conn: &mut SqliteConnection, piece: &PieceCid) -> Result<Option<Uuid>, Error> {
    let id: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT id FROM aggregates WHERE piece = $1 ORDER BY id LIMIT 1")
            .bind(piece.commitment().to_vec())
            .fetch_optional(conn)
            .await?;
    Ok(id.map(uuid_of))
}

async fn adopt(
    tx: &mut Tx,
    deal_id: u64,
    (found, owner): (&OwnDeal, ActorId),
    at: Epoch,
    weights: BTreeMap<AccountId, u64>,
) -> Result<DealRow, Error> {
    let id = of_piece(&mut tx.conn, &found.piece).await?;
    let id = id.ok_or_else(|| Error::Conflict(format!("the piece {} is not one of ours", found.piece)))?;
    let aggregate = aggregates::load(&mut tx.conn, id).await?;
    let deals = list::of_aggregate(&mut tx.conn, id).await?;
    if let Some(known) = deals.iter().find(|deal| deal.deal_id == Some(deal_id)) {
        return Ok(known.clone());
    }
    let held = |slot: u32| deals.iter().any(|deal| deal.slot == slot && deal.state.holds_slot());
    let slot = (0..).find(|slot| !held(*slot)).unwrap_or_default();
    let generations = deals.iter().filter(|deal| deal.slot == slot).map(|deal| deal.generation);
    let generation = generations.max().map_or(0, |last| last.saturating_add(1));
    let new = NewDeal {
        wallet: format!("deal {deal_id}"),
        aggregate: id,
        slot,
        provider: found.provider,
        owner,
        policy: aggregate.policy.clone(),
        piece: found.piece,
        size: found.size,
        car_bytes: aggregate.car_bytes,
        root: aggregate.root.ok_or_else(|| Error::Conflict(format!("the aggregate {id} is not packed")))?,
        ipni: true,
        price: found.price_per_epoch,
        collateral: found.collateral,
        head: at,
        start: found.start,
        end: found.end,
        weights,
    };
    let duration = u128::from(found.end.since(found.start));
    let cost = found.price_per_epoch.checked_mul(duration);
    let cost = cost.ok_or_else(|| Error::Conflict(format!("the deal {deal_id} costs more than there is")))?;
    let uuid = DealUuid::of_attempt(&new.wallet, &new.piece, slot, generation);
    ledger::reserve_anyhow(tx, uuid, new.provider, cost, &new.weights).await?;
    let mut row = DealRow::chosen(tx.now, &new, uuid, generation, cost);
    row.insert(tx).await?;
    list::placing(tx, id).await?;
    // As if it had been sent and come onto the chain: it was.
    for event in [DealEvent::Sending, DealEvent::Published] {
        let before = row.state;
        (row.state, _) = before.after(event).map_err(|illegal| Error::Conflict(illegal.to_string()))?;
        row.deal_id = (row.state == DealState::Published).then_some(deal_id);
        row.save(tx, before, Some(at)).await?;
    }
    let body =
        serde_json::json!({ "deal_id": deal_id, "aggregate": id, "provider": found.provider.to_string() });
    events::insert(tx, "deal.adopted", None, &uuid.to_string(), &body).await?;
    Ok(row)
}
