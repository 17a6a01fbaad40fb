//! The steps that every change of a pin is made of: its row, the counters and the account's charge, together.
//!
//! A row that is damaged is never changed: whoever names it gets [`Error::Damaged`], and what concerns all pins of a
//! DAG passes it over.

use floe_core::PinStatus;
use floe_core::pin::PinEvent;
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, SqliteConnection};
use uuid::Uuid;

use super::counts;
use super::row::{Stored, code, db, intact, key, select_pins};
use crate::writer::Tx;
use crate::{Error, cold, dags, limits};

/// The row of one account's pin.
pub(crate) async fn load(conn: &mut SqliteConnection, account: i64, id: Uuid) -> Result<Stored, Error> {
    let row = sqlx::query(select_pins!("WHERE p.id = $1 AND p.account = $2"))
        .bind(key(id))
        .bind(account)
        .fetch_optional(conn)
        .await?;
    Stored::read(&row.ok_or(Error::NotFound)?)
}

/// The pins of a DAG that are neither pinned nor failed, the oldest first. A damaged one is left out: it must not keep
/// the others waiting.
pub(crate) async fn unsettled(conn: &mut SqliteConnection, dag: Uuid) -> Result<Vec<Stored>, Error> {
    let rows = sqlx::query(select_pins!("WHERE p.dag = $1 AND p.status <= $2 ORDER BY p.created, p.id"))
        .bind(key(dag))
        .bind(code(PinStatus::Pinning))
        .fetch_all(conn)
        .await?;
    Ok(rows.iter().filter_map(|row| intact(Stored::read(row))).collect())
}

/// Of the pins of a DAG that have come as far as `status`, no more than one transaction may change, the oldest first; and
/// whether there are more. As in [`unsettled`] the damaged ones are left out.
pub(crate) async fn some(
    conn: &mut SqliteConnection,
    dag: Uuid,
    status: PinStatus,
) -> Result<(Vec<Stored>, bool), Error> {
    some_older(conn, dag, status, Joined { created: i64::MAX, searched: i64::MAX }).await
}

/// When a pin joined its DAG.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined {
    /// By the clock.
    pub(crate) created: i64,
    /// By how long the DAG had been searched for.
    pub(crate) searched: i64,
}

/// The same of the pins that had joined by then, both ways.
pub(crate) async fn some_older(
    conn: &mut SqliteConnection,
    dag: Uuid,
    status: PinStatus,
    by: Joined,
) -> Result<(Vec<Stored>, bool), Error> {
    let (mut pins, mut seen) = (Vec::new(), 0);
    loop {
        let rows = sqlx::query(select_pins!(
            "WHERE p.dag = $1 AND p.status <= $2 AND p.created <= $3 AND p.searched_before <= $4 \
             ORDER BY p.created, p.id LIMIT $5 OFFSET $6"
        ))
        .bind(key(dag))
        .bind(code(status))
        .bind(by.created)
        .bind(by.searched)
        .bind(ONE_MORE)
        .bind(seen)
        .fetch_all(&mut *conn)
        .await?;
        let more = take_some(&mut pins, &rows);
        seen += db(rows.len() as u64);
        if more || db(rows.len() as u64) < ONE_MORE {
            return Ok((pins, more));
        }
    }
}

/// So many rows say whether there is one more than may be changed.
const ONE_MORE: i64 = limits::PINS_PER_STEP as i64 + 1;

/// Takes intact pins until there are enough. Says whether there was one too many.
fn take_some(pins: &mut Vec<Stored>, rows: &[SqliteRow]) -> bool {
    for pin in rows.iter().filter_map(|row| intact(Stored::read(row))) {
        if pins.len() == limits::PINS_PER_STEP {
            return true;
        }
        pins.push(pin);
    }
    false
}

/// Writes new rows.
pub(crate) async fn insert(conn: &mut SqliteConnection, pins: &[Stored]) -> Result<(), Error> {
    for some in pins.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new(
            "INSERT INTO pins (id, account, created, status, cid_text, root, name, folded, origins, meta, \
             local_request, dag, reason, charged, kept, searched_before, policy, replicas, digest) ",
        );
        sql.push_values(some, |mut row, pin| {
            row.push_bind(key(pin.id)).push_bind(pin.account).push_bind(pin.created);
            row.push_bind(code(pin.status)).push_bind(&pin.cid_text).push_bind(&pin.root);
            row.push_bind(&pin.name).push_bind(&pin.folded).push_bind(&pin.origins).push_bind(&pin.meta);
            row.push_bind(i64::from(pin.local_request)).push_bind(key(pin.dag)).push_bind(&pin.reason);
            row.push_bind(pin.charged).push_bind(pin.kept).push_bind(pin.searched_before);
            row.push_bind(pin.policy.as_str()).push_bind(pin.replicas);
            row.push_bind(pin.digest());
        });
        sql.build().execute(&mut *conn).await?;
    }
    Ok(())
}

/// Takes a pin one step on. Counters go with it; the charge is the caller's.
pub(crate) async fn step(
    conn: &mut SqliteConnection,
    pin: &mut Stored,
    event: PinEvent,
) -> Result<(), Error> {
    let next = pin.status.after(event).map_err(|illegal| Error::Sql(format!("pin {}: {illegal}", pin.id)))?;
    if next != pin.status {
        counts::moved(conn, pin.account, pin.created, pin.status, next).await?;
        pin.status = next;
    }
    store_state(conn, pin).await
}

async fn store_state(conn: &mut SqliteConnection, pin: &Stored) -> Result<(), Error> {
    sqlx::query(
        "UPDATE pins SET status = $2, reason = $3, charged = $4, kept = $5, digest = $6 WHERE id = $1",
    )
    .bind(key(pin.id))
    .bind(code(pin.status))
    .bind(&pin.reason)
    .bind(pin.charged)
    .bind(pin.kept)
    .bind(pin.digest())
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives a pin up. It keeps nothing of its own DAG, but still what it kept of the pin it replaced, and the
/// charge for that.
pub(crate) async fn fail(tx: &mut Tx, mut pin: Stored, reason: &str) -> Result<(), Error> {
    charge(&mut tx.conn, pin.account, pin.kept - pin.charged, -1).await?;
    pin.charged = pin.kept;
    pin.reason = Some(reason.to_owned());
    step(&mut tx.conn, &mut pin, PinEvent::GaveUp).await?;
    dags::let_go(tx, pin.dag, 1).await?;
    dags::stop_waiting(&mut tx.conn, pin.account, pin.dag).await
}

/// Adds to what an account uses (may be negative).
pub(crate) async fn charge(
    conn: &mut SqliteConnection,
    account: i64,
    bytes: i64,
    pins: i64,
) -> Result<(), Error> {
    if bytes == 0 && pins == 0 {
        return Ok(());
    }
    sqlx::query("UPDATE accounts SET used_bytes = used_bytes + $2, used_pins = used_pins + $3 WHERE id = $1")
        .bind(account)
        .bind(bytes)
        .bind(pins)
        .execute(conn)
        .await?;
    Ok(())
}

/// Bytes an account has left; `None`: no bound.
pub(crate) async fn room(conn: &mut SqliteConnection, account: i64) -> Result<Option<i64>, Error> {
    let (most, used): (Option<i64>, i64) =
        sqlx::query_as("SELECT max_bytes, used_bytes FROM accounts WHERE id = $1")
            .bind(account)
            .fetch_one(conn)
            .await?;
    Ok(most.map(|most| (most - used).max(0)))
}

/// Lets go of what a pin kept of the one it replaced.
pub(crate) async fn drop_keeps(tx: &mut Tx, pin: Uuid) -> Result<(), Error> {
    for (dag, _) in keeps(&mut tx.conn, pin).await? {
        sqlx::query("DELETE FROM keeps WHERE pin = $1 AND dag = $2")
            .bind(key(pin))
            .bind(key(dag))
            .execute(&mut tx.conn)
            .await?;
        dags::let_go(tx, dag, 1).await?;
    }
    Ok(())
}

/// The DAGs a pin keeps, and whether the pin they were of had been pinned.
pub(crate) async fn keeps(conn: &mut SqliteConnection, pin: Uuid) -> Result<Vec<(Uuid, bool)>, Error> {
    let rows: Vec<(Vec<u8>, i64)> =
        sqlx::query_as("SELECT dag, solid FROM keeps WHERE pin = $1 ORDER BY dag")
            .bind(key(pin))
            .fetch_all(conn)
            .await?;
    Ok(rows.into_iter().map(|(dag, solid)| (super::row::uuid_of(dag), solid != 0)).collect())
}

/// Removes an account's pin and lets go of all it holds.
pub(crate) async fn remove(tx: &mut Tx, account: i64, id: Uuid) -> Result<(), Error> {
    let pin = load(&mut tx.conn, account, id).await?;
    drop_keeps(tx, id).await?;
    delete(tx, &pin, pin.charged).await?;
    if pin.status != PinStatus::Failed {
        dags::let_go(tx, pin.dag, 1).await?;
    }
    dags::stop_waiting(&mut tx.conn, account, pin.dag).await?;
    dags::forget_if_gone(&mut tx.conn, pin.dag).await?;
    fail::fail_point!("unpin.rows");
    Ok(())
}

/// Deletes the row, its count, its wait for a piece, and `refund` of the account's bytes. What it holds is the caller's.
pub(crate) async fn delete(tx: &mut Tx, pin: &Stored, refund: i64) -> Result<(), Error> {
    cold::waits::leave(tx, pin).await?;
    sqlx::query("DELETE FROM pins WHERE id = $1").bind(key(pin.id)).execute(&mut tx.conn).await?;
    counts::removed(&mut tx.conn, pin.account, pin.created, pin.status).await?;
    let pins = if pin.status == PinStatus::Failed { 0 } else { -1 };
    charge(&mut tx.conn, pin.account, -refund, pins).await
}
