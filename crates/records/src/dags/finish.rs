//! How an attempt ends: statuses, charges and what follows from them, in one transaction.

use std::time::Duration;

use floe_core::PinStatus;
use floe_core::pin::PinEvent;
use uuid::Uuid;

use super::claim::give_back;
use super::progress::NO_ROOM;
use super::{CLAIMED, COMPLETE, IDLE, RETRY, digest, set_state, size};
use crate::pins::change::{self, Joined, step};
use crate::pins::row::{Stored, db, key, uuid_of};
use crate::writer::Tx;
use crate::{DagOutcome, Error, Parked, cold, jobs, limits};

/// How far one transaction came with [`crate::Records::finish_dag`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// It is written; whether any pin still waits for the DAG.
    All { waited_for: bool },
    /// Some of its pins have failed, and the DAG is still claimed. A crash in between costs the others an attempt.
    Some,
}

/// One transaction's part of [`crate::Records::finish_dag`].
pub(crate) async fn finish(tx: &mut Tx, dag: Uuid, outcome: &DagOutcome) -> Result<Finished, Error> {
    let found: Option<(i64, Vec<u8>)> = sqlx::query_as("SELECT state, root FROM dags WHERE id = $1")
        .bind(key(dag))
        .fetch_optional(&mut tx.conn)
        .await?;
    let root = match (found, outcome) {
        // Said twice: the first reply was lost.
        (Some((COMPLETE, _)), DagOutcome::Complete { .. }) => return Ok(Finished::All { waited_for: false }),
        (Some((CLAIMED, root)), _) => root,
        _ => return Err(Error::NotFound),
    };
    let all = match outcome {
        DagOutcome::Complete { blocks, bytes } => {
            complete(tx, dag, &root, *blocks, *bytes).await?;
            true
        }
        DagOutcome::Parked(parked) => park(tx, dag, parked).await?,
        DagOutcome::Failed { reason } => give_up(tx, dag, reason).await?,
    };
    fail::fail_point!("pin.settled");
    Ok(if all { Finished::All { waited_for: is_waited_for(tx, dag).await? } } else { Finished::Some })
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
    if settle(tx, dag, db(bytes)).await? {
        // The follow-up goes on with it, after a crash too.
        sqlx::query("INSERT INTO settles (dag) VALUES ($1) ON CONFLICT (dag) DO NOTHING")
            .bind(key(dag))
            .execute(&mut tx.conn)
            .await?;
        tx.settle = true;
    }
    Ok(())
}

/// Settles waiting pins of a complete DAG, as many as one transaction may. Says whether there are more.
async fn settle(tx: &mut Tx, dag: Uuid, bytes: i64) -> Result<bool, Error> {
    let mut any = false;
    let (pins, more) = change::some(&mut tx.conn, dag, PinStatus::Pinning).await?;
    for pin in pins {
        let room = change::room(&mut tx.conn, pin.account).await?;
        if room.is_some_and(|room| bytes > pin.charged && room < bytes - pin.charged) {
            limits::hit("account_bytes");
            change::fail(tx, pin, NO_ROOM).await?;
        } else {
            pinned(tx, pin, bytes).await?;
            any = true;
        }
    }
    if any {
        announce(tx, dag).await?;
    }
    Ok(more)
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

/// Says whether that was all: pins that have had their time fail before the claim ends, some in each transaction.
async fn park(tx: &mut Tx, dag: Uuid, parked: &Parked) -> Result<bool, Error> {
    let (over, more) = given_up(tx, dag, parked).await?;
    if more {
        fail_all(tx, over, &parked.give_up.reason).await?;
        return Ok(false);
    }
    let next = db(parked.next_attempt.as_millis());
    sqlx::query(
        "UPDATE dags SET next_at = $2, last_error = $3, tried_at = $5, searched = searched + $6, \
         progress_at = CASE WHEN $4 = 1 THEN $5 ELSE progress_at END, \
         searched_before = CASE WHEN $4 = 1 THEN searched + $6 ELSE searched_before END WHERE id = $1",
    )
    .bind(key(dag))
    .bind(next)
    .bind(&parked.reason)
    .bind(i64::from(parked.progressed))
    .bind(db(tx.now.as_millis()))
    .bind(millis(parked.searched))
    .execute(&mut tx.conn)
    .await?;
    give_back(tx, dag, RETRY, next).await?;
    fail_all(tx, over, &parked.give_up.reason).await?;
    Ok(true)
}

/// The pins that have had their time with this attempt.
async fn given_up(tx: &mut Tx, dag: Uuid, parked: &Parked) -> Result<(Vec<Stored>, bool), Error> {
    let (searched, before): (i64, i64) =
        sqlx::query_as("SELECT searched, searched_before FROM dags WHERE id = $1")
            .bind(key(dag))
            .fetch_one(&mut tx.conn)
            .await?;
    let searched = searched + millis(parked.searched);
    let before = if parked.progressed { searched } else { before };
    let most = millis(parked.give_up.after);
    if searched - before < most {
        return Ok((Vec::new(), false));
    }
    // What an attempt counts for may have begun before the pin did, so its age counts too.
    let by = Joined { created: db(tx.now.as_millis()).saturating_sub(most), searched: searched - most };
    change::some_older(&mut tx.conn, dag, PinStatus::Pinning, by).await
}

async fn fail_all(tx: &mut Tx, pins: Vec<Stored>, reason: &str) -> Result<(), Error> {
    for pin in pins {
        change::fail(tx, pin, reason).await?;
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

/// Fails every waiting pin, some in each transaction; says whether that was all. Their references go with it, and with the
/// last the DAG; what only a keep holds is left as it is.
async fn give_up(tx: &mut Tx, dag: Uuid, reason: &str) -> Result<bool, Error> {
    let (pins, more) = change::some(&mut tx.conn, dag, PinStatus::Pinning).await?;
    if more {
        fail_all(tx, pins, reason).await?;
        return Ok(false);
    }
    set_state(&mut tx.conn, dag, IDLE).await?;
    sqlx::query("UPDATE dags SET claimed_for = NULL, next_at = NULL, last_error = $2 WHERE id = $1")
        .bind(key(dag))
        .bind(reason)
        .execute(&mut tx.conn)
        .await?;
    fail_all(tx, pins, reason).await?;
    Ok(true)
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
        if state == COMPLETE {
            let dag = uuid_of(dag.clone());
            let bytes = size::bytes(&mut tx.conn, dag).await?;
            if settle(tx, dag, bytes).await? {
                // Enough for one transaction: its row stays for the next.
                return Ok(true);
            }
        }
        sqlx::query("DELETE FROM settles WHERE dag = $1").bind(dag).execute(&mut tx.conn).await?;
    }
    Ok(more)
}
