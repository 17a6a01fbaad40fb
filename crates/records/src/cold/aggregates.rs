//! Aggregates: each is one piece, and the deals for it are counted against its replicas.
//!
//! An aggregate protects the DAGs of its segments from its first transaction until it is stored or lost; it does so again
//! where it is degraded and the DAGs are still here. To let go of some thousand DAGs takes longer than writers may wait: the
//! transaction that ends the need lets go of the first, and the writer's follow-up of the others.
//!
//! What a crash leaves `open` is packed from its rows again, from the start.

use floe_core::{
    AccountId, AggregateEvent, AggregateState, Cid, PaddedSize, PieceCid, RequestId, Timestamp, cid,
};
use sqlx::Row as _;
use sqlx::SqliteConnection;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::deals;
use super::segments::{self, NewAggregate};
use crate::pins::row::{db, digest_field, intact, key, num, uuid, uuid_of};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// An aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AggregateRow {
    /// Its name.
    pub id: Uuid,
    /// Its number: a short name.
    pub nr: u64,
    /// The policy of its pins.
    pub policy: String,
    /// The replicas that they ask for.
    pub replicas: u8,
    /// Where it stands.
    pub state: AggregateState,
    /// Whether its segments are aligned.
    pub align: bool,
    /// No smaller piece was wanted.
    pub least: PaddedSize,
    /// Its commitment, from `packed` on.
    pub piece: Option<PieceCid>,
    /// The size of its piece, from `packed` on.
    pub size: Option<PaddedSize>,
    /// Bytes that a provider pulls: the CAR, zeros and the index. 0 until it is packed.
    pub car_bytes: u64,
    /// The root of its CAR, from `packed` on.
    pub root: Option<Cid>,
    /// The commitments of what lies between its segments, as [`Settled`] has it.
    pub fillers: Vec<u8>,
    /// When it was begun.
    pub created: Timestamp,
    /// When it was packed.
    pub packed: Option<Timestamp>,
}

/// A pin in an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AggregatePin {
    /// The pin.
    pub pin: RequestId,
    /// Whose it is.
    pub account: AccountId,
    /// Its DAG.
    pub dag: Uuid,
    /// Which part of the DAG is here, from 0.
    pub part: u32,
    /// Of how many.
    pub parts: u32,
    /// Where its segment begins, in padded bytes. 0 until the aggregate is packed.
    pub offset: u64,
    /// The size of its segment.
    pub size: PaddedSize,
}

/// What packing settles, for ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The commitment.
    pub piece: PieceCid,
    /// The size of the piece.
    pub size: PaddedSize,
    /// Bytes that a provider pulls.
    pub car_bytes: u64,
    /// The root of the CAR.
    pub root: Cid,
    /// The commitments of what lies between its segments, as the engine writes and reads them.
    pub fillers: Vec<u8>,
}

impl AggregateRow {
    pub(super) fn open(id: Uuid, nr: u64, new: &NewAggregate, now: Timestamp) -> Self {
        Self {
            id,
            nr,
            policy: new.policy.clone(),
            replicas: new.replicas,
            state: AggregateState::Open,
            align: new.align,
            least: new.least,
            piece: None,
            size: None,
            car_bytes: 0,
            root: None,
            fillers: Vec::new(),
            created: now,
            packed: None,
        }
    }

    fn read(row: &SqliteRow) -> Result<Self, Error> {
        let id = uuid(row, "id")?;
        let damaged =
            || Error::Damaged(format!("the row of aggregate {id} is damaged: restore it from a backup"));
        let read = || -> Option<(Self, Vec<u8>)> {
            let number = |column: &str| row.try_get::<i64, _>(column).ok().map(num);
            let piece: Option<Vec<u8>> = row.try_get("piece").ok()?;
            let root: Option<Vec<u8>> = row.try_get("root").ok()?;
            let size: Option<i64> = row.try_get("size").ok()?;
            let packed: Option<i64> = row.try_get("packed").ok()?;
            let aggregate = Self {
                id,
                nr: number("nr")?,
                policy: row.try_get("policy").ok()?,
                replicas: u8::try_from(number("replicas")?).ok()?,
                state: AggregateState::parse(row.try_get("state").ok()?)?,
                align: number("align")? != 0,
                least: PaddedSize::from_bytes(number("least")?)?,
                piece: match piece {
                    None => None,
                    Some(bytes) => Some(PieceCid::from_commitment(bytes.try_into().ok()?)?),
                },
                size: match size {
                    None => None,
                    Some(bytes) => Some(PaddedSize::from_bytes(num(bytes))?),
                },
                car_bytes: number("car_bytes")?,
                root: match root {
                    None => None,
                    Some(bytes) => Some(cid::parse_bytes(&bytes).ok()?),
                },
                fillers: row.try_get::<Option<Vec<u8>>, _>("fillers").ok()?.unwrap_or_default(),
                created: Timestamp::from_millis(number("created")?),
                packed: packed.map(|at| Timestamp::from_millis(num(at))),
            };
            Some((aggregate, row.try_get("digest").ok()?))
        };
        let (aggregate, digest) = read().ok_or_else(damaged)?;
        if aggregate.digest() == digest { Ok(aggregate) } else { Err(damaged()) }
    }

    fn digest(&self) -> Vec<u8> {
        let mut hash = blake3::Hasher::new_derive_key("floe records 1 aggregate row");
        let root = self.root.map(|root| root.to_bytes());
        let fields: [Option<&[u8]>; 6] = [
            Some(self.id.as_bytes()),
            Some(self.policy.as_bytes()),
            Some(self.state.as_str().as_bytes()),
            self.piece.as_ref().map(|piece| &piece.commitment()[..]),
            root.as_deref(),
            Some(&self.fillers),
        ];
        fields.into_iter().for_each(|field| digest_field(&mut hash, field));
        let numbers = [
            self.nr,
            u64::from(self.replicas),
            u64::from(self.align),
            self.least.bytes(),
            self.size.map_or(0, PaddedSize::bytes),
            self.car_bytes,
            self.created.as_millis(),
            self.packed.map_or(0, Timestamp::as_millis),
        ];
        numbers.iter().for_each(|number| digest_field(&mut hash, Some(&number.to_le_bytes())));
        hash.finalize().as_bytes()[..16].to_vec()
    }

    pub(super) async fn insert(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO aggregates (id, nr, policy, replicas, state, align, least, car_bytes, created, digest) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        )
        .bind(key(self.id))
        .bind(db(self.nr))
        .bind(&self.policy)
        .bind(i64::from(self.replicas))
        .bind(self.state.as_str())
        .bind(i64::from(self.align))
        .bind(db(self.least.bytes()))
        .bind(db(self.car_bytes))
        .bind(db(self.created.as_millis()))
        .bind(self.digest())
        .execute(conn)
        .await?;
        Ok(())
    }

    async fn store(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        sqlx::query(
            "UPDATE aggregates SET state = $2, piece = $3, size = $4, car_bytes = $5, root = $6, fillers = $7, \
             packed = $8, digest = $9 WHERE id = $1",
        )
        .bind(key(self.id))
        .bind(self.state.as_str())
        .bind(self.piece.map(|piece| piece.commitment().to_vec()))
        .bind(self.size.map(|size| db(size.bytes())))
        .bind(db(self.car_bytes))
        .bind(self.root.map(|root| root.to_bytes()))
        .bind((!self.fillers.is_empty()).then_some(&self.fillers))
        .bind(self.packed.map(|at| db(at.as_millis())))
        .bind(self.digest())
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Whether its DAGs are protected in this state.
fn protects(state: AggregateState) -> bool {
    state == AggregateState::Open || state.needs_blocks()
}

pub(crate) async fn load(conn: &mut SqliteConnection, id: Uuid) -> Result<AggregateRow, Error> {
    let row =
        sqlx::query("SELECT * FROM aggregates WHERE id = $1").bind(key(id)).fetch_optional(conn).await?;
    AggregateRow::read(&row.ok_or(Error::NotFound)?)
}

/// Applies the machine, stores the state, and lets go of the blocks where the new state does not need them.
pub(crate) async fn step(tx: &mut Tx, id: Uuid, event: AggregateEvent) -> Result<AggregateState, Error> {
    let mut row = load(&mut tx.conn, id).await?;
    move_on(tx, &mut row, event).await?;
    Ok(row.state)
}

async fn move_on(tx: &mut Tx, row: &mut AggregateRow, event: AggregateEvent) -> Result<(), Error> {
    let next =
        row.state.after(event).map_err(|illegal| Error::Sql(format!("aggregate {}: {illegal}", row.id)))?;
    if next == row.state {
        return Ok(());
    }
    let (before, id) = (protects(row.state), row.id);
    row.state = next;
    row.store(&mut tx.conn).await?;
    match (before, protects(next)) {
        (true, false) => {
            sqlx::query(
                "INSERT INTO aggregate_releases (aggregate) VALUES ($1) ON CONFLICT (aggregate) DO NOTHING",
            )
            .bind(key(id))
            .execute(&mut tx.conn)
            .await?;
            release(tx, id).await
        }
        (false, true) => protect_again(tx, id).await,
        _ => Ok(()),
    }
}

/// Holds what is still here: a provider may pull it again.
async fn protect_again(tx: &mut Tx, id: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM aggregate_releases WHERE aggregate = $1")
        .bind(key(id))
        .execute(&mut tx.conn)
        .await?;
    // The second condition is that of the index of live roots.
    let here: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT DISTINCT d.id FROM aggregate_segments s JOIN dags d ON d.root = s.root WHERE s.aggregate = $1 \
         AND d.state = 2 AND d.state < 4",
    )
    .bind(key(id))
    .fetch_all(&mut tx.conn)
    .await?;
    for dag in here {
        segments::hold_one(&mut tx.conn, id, uuid_of(dag)).await?;
    }
    Ok(())
}

/// Lets go of some of the DAGs of an aggregate that needs them no longer.
async fn release(tx: &mut Tx, id: Uuid) -> Result<(), Error> {
    let held: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT dag FROM aggregate_holds WHERE aggregate = $1 ORDER BY dag LIMIT $2")
            .bind(key(id))
            .bind(limits::SETTLES_PER_PASS)
            .fetch_all(&mut tx.conn)
            .await?;
    let last = db(held.len() as u64) < limits::SETTLES_PER_PASS;
    for dag in held {
        segments::release_one(tx, id, uuid_of(dag)).await?;
    }
    if last {
        sqlx::query("DELETE FROM aggregate_releases WHERE aggregate = $1")
            .bind(key(id))
            .execute(&mut tx.conn)
            .await?;
    }
    tx.settle = true;
    Ok(())
}

/// The follow-up: lets go for the first aggregate that has holds left. Says whether there was one.
pub(super) async fn release_some(tx: &mut Tx) -> Result<bool, Error> {
    let next: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT aggregate FROM aggregate_releases ORDER BY aggregate LIMIT 1")
            .fetch_optional(&mut tx.conn)
            .await?;
    let Some(id) = next else { return Ok(false) };
    release(tx, uuid_of(id)).await?;
    Ok(true)
}

async fn has_live_pins(conn: &mut SqliteConnection, id: Uuid) -> Result<bool, Error> {
    // A pin that is removed has no row. The second: pins that are not told yet which aggregates they are in.
    for sql in [
        "SELECT p.account FROM aggregate_pins a JOIN pins p ON p.id = a.pin WHERE a.aggregate = $1 LIMIT 1",
        "SELECT w.account FROM aggregate_segments s JOIN cold_waits w ON w.lot = s.lot WHERE s.aggregate = $1 LIMIT 1",
    ] {
        let whose: Option<i64> = sqlx::query_scalar(sql).bind(key(id)).fetch_optional(&mut *conn).await?;
        if whose.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One transaction's part of [`Records::aggregate_packed`].
async fn packed(tx: &mut Tx, id: Uuid, settled: &Settled) -> Result<(), Error> {
    let mut row = load(&mut tx.conn, id).await?;
    let same = |row: &AggregateRow| row.piece == Some(settled.piece) && row.root == Some(settled.root);
    if row.state != AggregateState::Open && same(&row) {
        // Said twice: the first reply was lost.
        return Ok(());
    }
    let untold: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM aggregate_segments s JOIN cold_lots l ON l.id = s.lot WHERE s.aggregate = $1 \
         AND l.packed = 1",
    )
    .bind(key(id))
    .fetch_one(&mut tx.conn)
    .await?;
    if untold > 0 {
        let reason = format!("pins of aggregate {id} are still being told that they are in it");
        return Err(Error::Busy { reason, retry_after: std::time::Duration::from_secs(1) });
    }
    (row.piece, row.size, row.root) = (Some(settled.piece), Some(settled.size), Some(settled.root));
    (row.car_bytes, row.packed) = (settled.car_bytes, Some(tx.now));
    row.fillers.clone_from(&settled.fillers);
    move_on(tx, &mut row, AggregateEvent::Packed).await?;
    fail::fail_point!("agg.packed");
    Ok(())
}

impl Records {
    /// An aggregate.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`].
    pub async fn aggregate(&self, id: Uuid) -> Result<AggregateRow, Error> {
        load(&mut *self.reader().await?, id).await
    }

    /// Aggregates in any of these states, by id, at most `most` behind `after`. A damaged one is left out, and named in the
    /// log.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn aggregates(
        &self,
        states: &[AggregateState],
        after: Option<Uuid>,
        most: u32,
    ) -> Result<Vec<AggregateRow>, Error> {
        let mut conn = self.reader().await?;
        let mut found = Vec::new();
        // State by state, so that each is found by its index.
        for state in states {
            let rows =
                sqlx::query("SELECT * FROM aggregates WHERE state = $1 AND id > $2 ORDER BY id LIMIT $3")
                    .bind(state.as_str())
                    .bind(after.map(key).unwrap_or_default())
                    .bind(i64::from(most))
                    .fetch_all(&mut *conn)
                    .await?;
            found.extend(rows.iter().filter_map(|row| intact(AggregateRow::read(row))));
        }
        found.sort_unstable_by_key(|row| row.id);
        found.dedup_by_key(|row| row.id);
        found.truncate(usize::try_from(most).unwrap_or(usize::MAX));
        Ok(found)
    }

    /// Whether somebody still pins any of it, or waits for the rest of a DAG that is partly in it. An account that is
    /// suspended still does: its data stays.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn has_live_pins(&self, id: Uuid) -> Result<bool, Error> {
        has_live_pins(&mut *self.reader().await?, id).await
    }

    /// Gives an aggregate up that nobody pins any more, unless signed bytes of it are out or a provider has it: those may
    /// still be pulled. Says whether it did. A pin that comes meanwhile is seen, and one that comes later waits for another.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`].
    pub async fn aggregate_unwanted(&self, id: Uuid) -> Result<bool, Error> {
        self.write(Urgency::Frees, move |tx| {
            Box::pin(async move {
                let row = load(&mut tx.conn, id).await?;
                let deals = deals::of_aggregate(&mut tx.conn, id).await?;
                if row.state.after(AggregateEvent::NoneLeft).is_err()
                    || deals.iter().any(|deal| deal.state.is_exposed())
                    || has_live_pins(&mut tx.conn, id).await?
                {
                    return Ok(false);
                }
                step(tx, id, AggregateEvent::NoneLeft).await?;
                let body = serde_json::json!({ "replicas": row.replicas, "policy": row.policy });
                super::events::insert(tx, "aggregate.unwanted", None, &id.to_string(), &body).await?;
                Ok(true)
            })
        })
        .await
    }

    /// Takes an aggregate one step on, alone. Where more follows from the event, it is one transaction with that.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Sql`] where the state does not allow it.
    pub async fn step_aggregate(&self, id: Uuid, event: AggregateEvent) -> Result<AggregateState, Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(step(tx, id, event))).await
    }

    /// The bytes of an aggregate are settled: it goes on to `packed`. Twice is once.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Busy`] while its pins are still being told.
    pub async fn aggregate_packed(&self, id: Uuid, settled: Settled) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let settled = settled.clone();
            Box::pin(async move { packed(tx, id, &settled).await })
        })
        .await
    }
}
