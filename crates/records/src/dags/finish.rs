//! How an attempt ends: statuses, charges and what follows from them, in one transaction.

use std::time::Duration;

use floe_core::PinStatus;
use floe_core::pin::PinEvent;
use uuid::Uuid;

use super::claim::give_back;
use super::progress::NO_ROOM;
use super::{CLAIMED, COMPLETE, IDLE, RETRY, digest, set_state, size};
use crate::pins::change::{self, step, unsettled};
use crate::pins::row::{Stored, db, key, uuid_of};
use crate::writer::Tx;
use crate::{DagOutcome, Error, Parked, cold, jobs, limits};

/// One transaction's part of [`crate::Records::finish_dag`].
pub(crate) async fn finish(tx: &mut Tx, dag: Uuid, outcome: &DagOutcome) -> Result<bool, Error> {
    let found: Option<(i64, Vec<u8>)> = sqlx::query_as("SELECT state, root FROM dags WHERE id = $1")
        .bind(key(dag))
        .fetch_optional(&mut tx.conn)
        .await?;
    let root = match (found, outcome) {
        // Said twice: the first reply was lost.
        (Some((COMPLETE, _)), DagOutcome::Complete { .. }) => return Ok(false),
        (Some((CLAIMED, root)), _) => root,
        _ => return Err(Error::NotFound),
    };
    match outcome {
        DagOutcome::Complete { blocks, bytes } => complete(tx, dag, &root, *blocks, *bytes).await?,
        DagOutcome::Parked(parked) => park(tx, dag, parked).await?,
        DagOutcome::Failed { reason } => give_up(tx, dag, reason).await?,
    }
    fail::fail_point!("pin.settled");
    is_waited_for(tx, dag).await
}

async fn complete(tx: &mut Tx, dag: Uuid, root: &[u8], blocks: u64, bytes: u64) -> Result<(), Error> {
    sqlx::query(
        "UPDATE dags SET state = 2, claimed_for = NULL, blocks = $2, bytes = $3, last_error = NULL, next_at = NULL, \
         progress_at = $4, digest = $5 WHERE id = $1",
    )
    .bind(key(dag))
    .bind(db(blocks))
    .bind(db(bytes))
    .bind(db(tx.now.as_millis()))
    .bind(digest(&key(dag), root, db(blocks), db(bytes)))
    .execute(&mut tx.conn)
    .await?;
    sqlx::query("DELETE FROM origin_peers WHERE dag = $1").bind(key(dag)).execute(&mut tx.conn).await?;
    settle(tx, dag, db(bytes)).await
}

/// Settles every waiting pin of a complete DAG.
async fn settle(tx: &mut Tx, dag: Uuid, bytes: i64) -> Result<(), Error> {
    let mut any = false;
    for pin in unsettled(&mut tx.conn, dag).await? {
        let room = change::room(&mut tx.conn, pin.account).await?;
        if room.is_some_and(|room| bytes > pin.charged && room < bytes - pin.charged) {
            limits::hit("account_bytes");
            change::fail(tx, pin, NO_ROOM).await?;
        } else {
            pinned(tx, pin, bytes).await?;
            any = true;
        }
    }
    if any { announce(tx, dag).await } else { Ok(()) }
}

/// The pin is charged what its DAG holds, lets go of what it kept of the one it replaced, and waits for a piece where it
/// asks for replicas.
async fn pinned(tx: &mut Tx, mut pin: Stored, bytes: i64) -> Result<(), Error> {
    change::charge(&mut tx.conn, pin.account, bytes - pin.charged, 0).await?;
    (pin.charged, pin.kept) = (bytes, 0);
    if pin.status == PinStatus::Queued {
        step(&mut tx.conn, &mut pin, PinEvent::Claimed).await?;
    }
    step(&mut tx.conn, &mut pin, PinEvent::Complete).await?;
    cold::waits::enter(tx, &pin).await?;
    change::drop_keeps(tx, pin.id).await
}

/// On the first pinned pin.
async fn announce(tx: &mut Tx, dag: Uuid) -> Result<(), Error> {
    let root: Option<Vec<u8>> =
        sqlx::query_scalar("UPDATE dags SET announced = 1 WHERE id = $1 AND announced = 0 RETURNING root")
            .bind(key(dag))
            .fetch_optional(&mut tx.conn)
            .await?;
    match root {
        Some(root) => jobs::queue(&mut tx.conn, jobs::ANNOUNCE, root).await,
        None => Ok(()),
    }
}

async fn park(tx: &mut Tx, dag: Uuid, parked: &Parked) -> Result<(), Error> {
    let next = db(parked.next_attempt.as_millis());
    let (searched, before): (i64, i64) = sqlx::query_as(
        "UPDATE dags SET next_at = $2, last_error = $3, tried_at = $5, searched = searched + $6, \
         progress_at = CASE WHEN $4 = 1 THEN $5 ELSE progress_at END, \
         searched_before = CASE WHEN $4 = 1 THEN searched + $6 ELSE searched_before END WHERE id = $1 \
         RETURNING searched, searched_before",
    )
    .bind(key(dag))
    .bind(next)
    .bind(&parked.reason)
    .bind(i64::from(parked.progressed))
    .bind(db(tx.now.as_millis()))
    .bind(millis(parked.searched))
    .fetch_one(&mut tx.conn)
    .await?;
    give_back(tx, dag, RETRY, next).await?;
    let most = millis(parked.give_up.after);
    if searched - before >= most {
        for pin in unsettled(&mut tx.conn, dag).await? {
            // What an attempt counts for may have begun before the pin did.
            let age = db(tx.now.as_millis()) - pin.created;
            if searched - before.max(pin.searched_before) >= most && age >= most {
                change::fail(tx, pin, &parked.give_up.reason).await?;
            }
        }
    }
    Ok(())
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

async fn is_waited_for(tx: &mut Tx, dag: Uuid) -> Result<bool, Error> {
    let waits: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM (SELECT 1 FROM waits WHERE dag = $1 LIMIT 1) w")
            .bind(key(dag))
            .fetch_one(&mut tx.conn)
            .await?;
    Ok(waits > 0)
}

/// Fails every waiting pin. Their references go with it, and with the last the DAG; what only a keep holds is
/// left as it is.
async fn give_up(tx: &mut Tx, dag: Uuid, reason: &str) -> Result<(), Error> {
    set_state(&mut tx.conn, dag, IDLE).await?;
    sqlx::query("UPDATE dags SET claimed_for = NULL, next_at = NULL, last_error = $2 WHERE id = $1")
        .bind(key(dag))
        .bind(reason)
        .execute(&mut tx.conn)
        .await?;
    for pin in unsettled(&mut tx.conn, dag).await? {
        change::fail(tx, pin, reason).await?;
    }
    Ok(())
}

/// The writer's follow-up: settles pins that joined DAGs which were complete. Says whether more are left.
pub(crate) async fn settle_joined(tx: &mut Tx) -> Result<bool, Error> {
    let joined: Vec<(Vec<u8>, i64)> = sqlx::query_as(
        "SELECT s.dag, d.state FROM settles s JOIN dags d ON d.id = s.dag ORDER BY s.dag LIMIT $1",
    )
    .bind(limits::SETTLES_PER_PASS)
    .fetch_all(&mut tx.conn)
    .await?;
    let more = db(joined.len() as u64) == limits::SETTLES_PER_PASS;
    for (dag, state) in joined {
        sqlx::query("DELETE FROM settles WHERE dag = $1").bind(&dag).execute(&mut tx.conn).await?;
        if state == COMPLETE {
            let dag = uuid_of(dag);
            let bytes = size::bytes(&mut tx.conn, dag).await?;
            settle(tx, dag, bytes).await?;
        }
    }
    Ok(more)
}
