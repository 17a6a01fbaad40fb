//! What is in an aggregate: its segments, their pins, and the DAGs that it protects.
//!
//! An aggregate begins as a row with its segments, and holds on to their DAGs, in one transaction; the lots are taken off
//! the queue in the same. What the segments hold in detail, where they lie and what they hash to is written while it is
//! packed, so many rows at a time. A segment whose blocks are not there is given back, and its pins wait again.

use floe_core::{AccountId, Cid, PaddedSize, PieceCid, RequestId, cid};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, SqliteConnection};
use uuid::Uuid;

use super::aggregates::AggregateRow;
use super::waits::{self, LotPart};
use crate::pins::row::{db, digest_field, key, num, uuid, uuid_of};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, dags, jobs, limits};

/// An aggregate that is to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewAggregate {
    /// The policy of its lots.
    pub policy: String,
    /// Their replicas.
    pub replicas: u8,
    /// Whether segments are aligned.
    pub align: bool,
    /// No piece is smaller.
    pub least: PaddedSize,
    /// What goes into it.
    pub segments: Vec<NewSegment>,
}

/// A part of a lot that goes into an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewSegment {
    /// The lot.
    pub lot: Uuid,
    /// Which part of it, as the lot has it.
    pub part: LotPart,
    /// Its size as a segment.
    pub size: PaddedSize,
}

/// A segment of an aggregate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentRow {
    /// Its number.
    pub n: u32,
    /// The lot that it was. Parts of one DAG share it.
    pub lot: Uuid,
    /// The root of the DAG.
    pub root: Cid,
    /// The DAG, as the rows named it then.
    pub dag: Uuid,
    /// In whose turn it was taken.
    pub account: AccountId,
    /// Which part of the DAG.
    pub part: LotPart,
    /// Of how many.
    pub parts: u32,
    /// Where its first section begins in the CAR, in bytes.
    pub start: u64,
    /// Where it begins in the piece, in padded bytes.
    pub place: u64,
    /// Its size in the piece.
    pub size: PaddedSize,
    /// What it hashes to; `None` until it was hashed, and where segments are not aligned.
    pub commitment: Option<PieceCid>,
}

/// Where a segment came to lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentPlace {
    /// The segment.
    pub n: u32,
    /// Where its first section begins in the CAR, in bytes.
    pub start: u64,
    /// Where it begins in the piece, in padded bytes.
    pub place: u64,
    /// Its size.
    pub size: PaddedSize,
    /// What it hashes to.
    pub commitment: Option<PieceCid>,
}

impl SegmentRow {
    fn read(aggregate: Uuid, row: &SqliteRow) -> Result<Self, Error> {
        let n: i64 = row.try_get("n")?;
        let damaged = || {
            Error::Damaged(format!(
                "the row of segment {n} of aggregate {aggregate} is damaged: restore it from a backup"
            ))
        };
        let read = || -> Option<(Self, Vec<u8>)> {
            let number = |column: &str| row.try_get::<i64, _>(column).ok().map(num);
            let small = |column: &str| u32::try_from(number(column)?).ok();
            let commitment: Option<Vec<u8>> = row.try_get("commitment").ok()?;
            let segment = Self {
                n: u32::try_from(n).ok()?,
                lot: uuid_of(row.try_get("lot").ok()?),
                root: cid::parse_bytes(&row.try_get::<Vec<u8>, _>("root").ok()?).ok()?,
                dag: uuid_of(row.try_get("dag").ok()?),
                account: AccountId(row.try_get("account").ok()?),
                part: LotPart {
                    part: small("part")?,
                    first: number("first")?,
                    sections: number("sections")?,
                    bytes: number("bytes")?,
                },
                parts: small("parts")?,
                start: number("start")?,
                place: number("place")?,
                size: PaddedSize::from_bytes(number("size")?)?,
                commitment: match commitment {
                    None => None,
                    Some(bytes) => Some(PieceCid::from_commitment(bytes.try_into().ok()?)?),
                },
            };
            Some((segment, row.try_get("digest").ok()?))
        };
        let (segment, digest) = read().ok_or_else(damaged)?;
        if segment.digest(aggregate) == digest { Ok(segment) } else { Err(damaged()) }
    }

    fn digest(&self, aggregate: Uuid) -> Vec<u8> {
        let mut hash = blake3::Hasher::new_derive_key("floe records 1 aggregate segment");
        let root = self.root.to_bytes();
        for field in [aggregate.as_bytes(), self.lot.as_bytes(), &root[..], self.dag.as_bytes()] {
            digest_field(&mut hash, Some(field));
        }
        let LotPart { part, first, sections, bytes } = self.part;
        let numbers = [
            u64::from(self.n),
            u64::from(part),
            u64::from(self.parts),
            first,
            sections,
            bytes,
            self.start,
            self.place,
            self.size.bytes(),
        ];
        numbers.iter().for_each(|number| digest_field(&mut hash, Some(&number.to_le_bytes())));
        digest_field(&mut hash, Some(&self.account.0.to_le_bytes()));
        digest_field(&mut hash, self.commitment.as_ref().map(|piece| &piece.commitment()[..]));
        hash.finalize().as_bytes()[..16].to_vec()
    }
}

/// Reads the segments of an aggregate, in the order of their numbers.
pub(super) async fn all(conn: &mut SqliteConnection, aggregate: Uuid) -> Result<Vec<SegmentRow>, Error> {
    let rows = sqlx::query("SELECT * FROM aggregate_segments WHERE aggregate = $1 ORDER BY n")
        .bind(key(aggregate))
        .fetch_all(conn)
        .await?;
    rows.iter().map(|row| SegmentRow::read(aggregate, row)).collect()
}

pub(super) async fn one(conn: &mut SqliteConnection, aggregate: Uuid, n: u32) -> Result<SegmentRow, Error> {
    let row = sqlx::query("SELECT * FROM aggregate_segments WHERE aggregate = $1 AND n = $2")
        .bind(key(aggregate))
        .bind(i64::from(n))
        .fetch_optional(conn)
        .await?;
    SegmentRow::read(aggregate, &row.ok_or(Error::NotFound)?)
}

/// What stands between a pin and its cost.
pub(super) fn pin_digest(aggregate: Uuid, n: i64, pin: Uuid, account: i64) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 aggregate pin");
    for field in [&aggregate.as_bytes()[..], &n.to_le_bytes(), pin.as_bytes(), &account.to_le_bytes()] {
        digest_field(&mut hash, Some(field));
    }
    hash.finalize().as_bytes()[..16].to_vec()
}

/// Enters a pin in all segments that a lot has become, but for those of lost aggregates.
pub(super) async fn join(
    conn: &mut SqliteConnection,
    lot: Uuid,
    pin: Uuid,
    account: i64,
) -> Result<(), Error> {
    let segments: Vec<(Vec<u8>, i64)> = sqlx::query_as(
        "SELECT s.aggregate, s.n FROM aggregate_segments s JOIN aggregates a ON a.id = s.aggregate WHERE s.lot = $1 \
         AND a.state <> 'lost'",
    )
    .bind(key(lot))
    .fetch_all(&mut *conn)
    .await?;
    for (aggregate, n) in segments {
        sqlx::query(
            "INSERT INTO aggregate_pins (aggregate, n, pin, account, digest) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (aggregate, n, pin) DO NOTHING",
        )
        .bind(&aggregate)
        .bind(n)
        .bind(key(pin))
        .bind(account)
        .bind(pin_digest(uuid_of(aggregate.clone()), n, pin, account))
        .execute(&mut *conn)
        .await?;
    }
    Ok(())
}

/// One transaction's part of [`Records::begin_aggregate`].
async fn begin(tx: &mut Tx, new: &NewAggregate) -> Result<Option<Uuid>, Error> {
    let id = super::new_id(tx);
    let mut segments = Vec::with_capacity(new.segments.len());
    for (n, segment) in (0..).zip(&new.segments) {
        segments.extend(take(tx, new, n, segment).await?);
    }
    if segments.is_empty() {
        return Ok(None);
    }
    let nr = num(jobs::next_id(&mut tx.conn, "aggregate").await?);
    let row = AggregateRow::open(id, nr, new, tx.now);
    row.insert(&mut tx.conn).await?;
    write(&mut tx.conn, id, &segments).await?;
    hold(&mut tx.conn, id, &segments).await?;
    take_turns(tx, new, nr, &segments).await?;
    // Those of which a part waits still are told now; the others by the follow-up.
    for segment in segments.iter().filter(|segment| segment.parts > 1) {
        let waits: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT pin, account FROM cold_waits WHERE lot = $1 ORDER BY since, pin LIMIT $2")
                .bind(key(segment.lot))
                .bind(limits::COLD_PINS_TOLD)
                .fetch_all(&mut tx.conn)
                .await?;
        for (pin, account) in waits {
            join(&mut tx.conn, segment.lot, uuid_of(pin), account).await?;
        }
    }
    tx.settle = true;
    fail::fail_point!("agg.begun");
    Ok(Some(id))
}

/// Takes a part off its lot; `None` where the lot has gone or was measured anew since it was planned.
async fn take(
    tx: &mut Tx,
    new: &NewAggregate,
    n: u32,
    segment: &NewSegment,
) -> Result<Option<SegmentRow>, Error> {
    let Some(mut lot) = waits::load(&mut tx.conn, segment.lot).await? else { return Ok(None) };
    if (&lot.policy, lot.replicas) != (&new.policy, new.replicas) || !lot.take(&segment.part) {
        return Ok(None);
    }
    lot.store(&mut tx.conn).await?;
    Ok(Some(SegmentRow {
        n,
        lot: lot.id,
        root: lot.root,
        dag: lot.dag,
        account: lot.account,
        part: segment.part,
        parts: lot.parts,
        start: 0,
        place: 0,
        size: segment.size,
        commitment: None,
    }))
}

async fn write(conn: &mut SqliteConnection, id: Uuid, segments: &[SegmentRow]) -> Result<(), Error> {
    for some in segments.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new(
            "INSERT INTO aggregate_segments (aggregate, n, lot, root, dag, account, part, parts, first, sections, bytes, \
             start, place, size, digest) ",
        );
        sql.push_values(some, |mut row, segment| {
            let LotPart { part, first, sections, bytes } = segment.part;
            row.push_bind(key(id)).push_bind(i64::from(segment.n)).push_bind(key(segment.lot));
            row.push_bind(segment.root.to_bytes()).push_bind(key(segment.dag)).push_bind(segment.account.0);
            row.push_bind(i64::from(part)).push_bind(i64::from(segment.parts)).push_bind(db(first));
            row.push_bind(db(sections)).push_bind(db(bytes)).push_bind(db(segment.start));
            row.push_bind(db(segment.place)).push_bind(db(segment.size.bytes()));
            row.push_bind(segment.digest(id));
        });
        sql.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// Protects the DAGs of segments, each once.
async fn hold(conn: &mut SqliteConnection, id: Uuid, segments: &[SegmentRow]) -> Result<(), Error> {
    let mut held: Vec<Uuid> = segments.iter().map(|segment| segment.dag).collect();
    held.sort_unstable();
    held.dedup();
    for dag in held {
        hold_one(conn, id, dag).await?;
    }
    Ok(())
}

/// Protects a DAG for an aggregate, once.
pub(super) async fn hold_one(conn: &mut SqliteConnection, id: Uuid, dag: Uuid) -> Result<(), Error> {
    let new = sqlx::query(
        "INSERT INTO aggregate_holds (aggregate, dag) VALUES ($1, $2) ON CONFLICT (aggregate, dag) DO NOTHING",
    )
    .bind(key(id))
    .bind(key(dag))
    .execute(&mut *conn)
    .await?;
    if new.rows_affected() > 0 {
        dags::hold(conn, dag).await?;
    }
    Ok(())
}

/// Lets go of a DAG that an aggregate protected.
pub(super) async fn release_one(tx: &mut Tx, id: Uuid, dag: Uuid) -> Result<(), Error> {
    let gone = sqlx::query("DELETE FROM aggregate_holds WHERE aggregate = $1 AND dag = $2")
        .bind(key(id))
        .bind(key(dag))
        .execute(&mut tx.conn)
        .await?;
    if gone.rows_affected() > 0 {
        dags::let_go(tx, dag, 1).await?;
    }
    Ok(())
}

async fn take_turns(tx: &mut Tx, new: &NewAggregate, nr: u64, segments: &[SegmentRow]) -> Result<(), Error> {
    let mut accounts: Vec<i64> = segments.iter().map(|segment| segment.account.0).collect();
    accounts.sort_unstable();
    accounts.dedup();
    for account in accounts {
        sqlx::query(
            "INSERT INTO cold_turns (policy, replicas, account, nr) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (policy, replicas, account) DO UPDATE SET nr = excluded.nr",
        )
        .bind(&new.policy)
        .bind(i64::from(new.replicas))
        .bind(account)
        .bind(db(nr))
        .execute(&mut tx.conn)
        .await?;
    }
    Ok(())
}

async fn place(tx: &mut Tx, id: Uuid, places: &[SegmentPlace]) -> Result<(), Error> {
    for place in places {
        let mut segment = one(&mut tx.conn, id, place.n).await?;
        (segment.start, segment.place) = (place.start, place.place);
        (segment.size, segment.commitment) = (place.size, place.commitment);
        sqlx::query(
            "UPDATE aggregate_segments SET start = $3, place = $4, size = $5, commitment = $6, digest = $7 \
             WHERE aggregate = $1 AND n = $2",
        )
        .bind(key(id))
        .bind(i64::from(place.n))
        .bind(db(place.start))
        .bind(db(place.place))
        .bind(db(place.size.bytes()))
        .bind(place.commitment.map(|piece| piece.commitment().to_vec()))
        .bind(segment.digest(id))
        .execute(&mut tx.conn)
        .await?;
    }
    Ok(())
}

impl Records {
    /// Begins an aggregate with these parts of lots: it protects their DAGs from now on, and the parts wait no longer. What
    /// is not as it was planned is left out; `None` where nothing is left.
    ///
    /// # Errors
    /// Those of the database; [`Error::Damaged`].
    pub async fn begin_aggregate(&self, new: NewAggregate) -> Result<Option<Uuid>, Error> {
        let new = std::sync::Arc::new(new);
        self.write(Urgency::Takes, move |tx| {
            let new = std::sync::Arc::clone(&new);
            Box::pin(async move { begin(tx, &new).await })
        })
        .await
    }

    /// The segments of an aggregate, in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Damaged`] where one is damaged: nothing of the aggregate can be told without it.
    pub async fn segments(&self, id: Uuid) -> Result<Vec<SegmentRow>, Error> {
        all(&mut *self.reader().await?, id).await
    }

    /// Writes down where segments lie, in bounded steps.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`].
    pub async fn place_segments(&self, id: Uuid, places: Vec<SegmentPlace>) -> Result<(), Error> {
        for some in places.chunks(limits::SEGMENTS_PER_STEP) {
            let some: std::sync::Arc<[SegmentPlace]> = some.into();
            self.write(Urgency::Takes, move |tx| {
                let some = std::sync::Arc::clone(&some);
                Box::pin(async move { place(tx, id, &some).await })
            })
            .await?;
        }
        Ok(())
    }

    /// The pins of an aggregate, also of those that were removed since, by segment.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub async fn aggregate_pins(&self, id: Uuid) -> Result<Vec<super::AggregatePin>, Error> {
        let mut conn = self.reader().await?;
        let segments = all(&mut conn, id).await?;
        let rows = sqlx::query(
            "SELECT n, pin, account, digest FROM aggregate_pins WHERE aggregate = $1 ORDER BY n, pin",
        )
        .bind(key(id))
        .fetch_all(&mut *conn)
        .await?;
        rows.iter().map(|row| pin_of(id, row, &segments)).collect()
    }

    /// The aggregates that a pin is in, by id.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn aggregates_of_pin(&self, pin: RequestId) -> Result<Vec<Uuid>, Error> {
        let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT aggregate FROM aggregate_pins WHERE pin = $1")
            .bind(key(pin.0))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        let mut ids: Vec<Uuid> = rows.into_iter().map(uuid_of).collect();
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

fn pin_of(id: Uuid, row: &SqliteRow, segments: &[SegmentRow]) -> Result<super::AggregatePin, Error> {
    let (n, pin, account): (i64, Uuid, i64) = (row.try_get("n")?, uuid(row, "pin")?, row.try_get("account")?);
    let damaged = || {
        Error::Damaged(format!("the row of pin {pin} in aggregate {id} is damaged: restore it from a backup"))
    };
    if row.try_get::<Vec<u8>, _>("digest")? != pin_digest(id, n, pin, account) {
        return Err(damaged());
    }
    let at = segments.binary_search_by_key(&n, |segment| i64::from(segment.n)).map_err(|_| damaged())?;
    let segment = &segments[at];
    Ok(super::AggregatePin {
        pin: RequestId(pin),
        account: AccountId(account),
        dag: segment.dag,
        part: segment.part.part,
        parts: segment.parts,
        offset: segment.place,
        size: segment.size,
    })
}
