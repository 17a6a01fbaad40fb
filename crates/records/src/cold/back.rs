//! A segment whose blocks are not here is given back: its pins wait again, with the reason, and the other segments go on.

use floe_core::{AccountId, Timestamp};
use uuid::Uuid;

use super::aggregates::{self, AggregateRow};
use super::segments::{SegmentRow, all, one, release_one};
use super::waits::{self, Lot};
use crate::pins::row::{db, key, uuid_of};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records};

/// One transaction's part of [`Records::give_back_segment`].
async fn give_back(tx: &mut Tx, id: Uuid, n: u32, reason: &str, due: Timestamp) -> Result<bool, Error> {
    let aggregate = aggregates::load(&mut tx.conn, id).await?;
    if aggregate.state != floe_core::AggregateState::Open {
        return Err(Error::Conflict(format!("aggregate {id} is packed: its segments stay")));
    }
    let segment = one(&mut tx.conn, id, n).await?;
    wait_again(tx, &aggregate, &segment, reason, due).await?;
    for statement in [
        "DELETE FROM aggregate_segments WHERE aggregate = $1 AND n = $2",
        "DELETE FROM aggregate_pins WHERE aggregate = $1 AND n = $2",
    ] {
        sqlx::query(statement).bind(key(id)).bind(i64::from(n)).execute(&mut tx.conn).await?;
    }
    let left = all(&mut tx.conn, id).await?;
    if !left.iter().any(|other| other.dag == segment.dag) {
        release_one(tx, id, segment.dag).await?;
    }
    if left.is_empty() {
        sqlx::query("DELETE FROM aggregates WHERE id = $1").bind(key(id)).execute(&mut tx.conn).await?;
    }
    fail::fail_point!("agg.given_back");
    Ok(!left.is_empty())
}

/// The pins of a segment that are still there wait for its lot again.
async fn wait_again(
    tx: &mut Tx,
    aggregate: &AggregateRow,
    segment: &SegmentRow,
    reason: &str,
    due: Timestamp,
) -> Result<(), Error> {
    let lot = match waits::load(&mut tx.conn, segment.lot).await? {
        Some(mut lot) => {
            lot.put_back(segment.part);
            lot.failed(reason, due);
            lot.store(&mut tx.conn).await?;
            lot.id
        }
        None => {
            let Some(id) = begin_again(tx, aggregate, segment, reason, due).await? else { return Ok(()) };
            id
        }
    };
    sqlx::query(
        "INSERT INTO cold_waits (pin, lot, account, since) SELECT a.pin, $3, a.account, $4 FROM aggregate_pins a \
         WHERE a.aggregate = $1 AND a.n = $2 AND EXISTS (SELECT 1 FROM pins p WHERE p.id = a.pin) \
         ON CONFLICT (pin) DO NOTHING",
    )
    .bind(key(aggregate.id))
    .bind(i64::from(segment.n))
    .bind(key(lot))
    .bind(db(aggregate.created.as_millis()))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

/// Makes the lot of a segment anew, where a pin is left that wants it. Another lot of the same root takes it in.
async fn begin_again(
    tx: &mut Tx,
    aggregate: &AggregateRow,
    segment: &SegmentRow,
    reason: &str,
    due: Timestamp,
) -> Result<Option<Uuid>, Error> {
    let wanted: Option<i64> = sqlx::query_scalar(
        "SELECT MIN(a.account) FROM aggregate_pins a JOIN pins p ON p.id = a.pin WHERE a.aggregate = $1 AND a.n = $2",
    )
    .bind(key(aggregate.id))
    .bind(i64::from(segment.n))
    .fetch_one(&mut tx.conn)
    .await?;
    let Some(account) = wanted else { return Ok(None) };
    let other: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT id FROM cold_lots WHERE root = $1 AND policy = $2 AND replicas = $3")
            .bind(segment.root.to_bytes())
            .bind(&aggregate.policy)
            .bind(i64::from(aggregate.replicas))
            .fetch_optional(&mut tx.conn)
            .await?;
    if let Some(other) = other {
        return Ok(Some(uuid_of(other)));
    }
    let asked = (aggregate.policy.clone(), aggregate.replicas);
    let who = (AccountId(account), aggregate.created);
    let capacity = segment.part.bytes.max(1);
    let mut lot = Lot::again(segment.lot, asked, segment.root, segment.dag, who, capacity, segment.parts);
    lot.put_back(segment.part);
    lot.failed(reason, due);
    lot.insert(&mut tx.conn).await?;
    Ok(Some(lot.id))
}

impl Records {
    /// Takes a segment out of an aggregate that is being packed: its pins wait again, from `due` on, and are told why.
    /// With its last segment the aggregate goes; says whether it is still there.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] where it is packed.
    pub async fn give_back_segment(
        &self,
        id: Uuid,
        n: u32,
        reason: String,
        due: Timestamp,
    ) -> Result<bool, Error> {
        self.clear_sections(id, n).await?;
        self.write(Urgency::Frees, move |tx| {
            let reason = reason.clone();
            Box::pin(async move { give_back(tx, id, n, &reason, due).await })
        })
        .await
    }
}
