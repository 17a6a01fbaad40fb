//! DAGs: one row for each root that is held, fetched once for all its pins.
//!
//! ```text
//!            join                    claim                     complete
//!   (none) ────────> waiting ───────────────────> claimed ───────────────> complete
//!                    ^  │ ^ <──────── parked ──────┘  │                       │
//!               join │  │ no pin wants it, one keeps  │ failed, or parked     │ last reference
//!                    │  v                             v and only kept         v
//!                   idle <────────────────────────────┘                     gone
//! ```
//!
//! A reference is a pin that is not failed, or a keep (what a replaced pin held, until its successor is pinned).
//! With the last reference the DAG is *gone*, from any state, and in the same transaction the release of its
//! manifest is queued. A failed pin holds none: so a DAG that failed is released at once, and the next pin of
//! that root begins anew with a row and a manifest of its own. The gone row stays as history for the failed
//! pins' `info`, and goes with the last of them.
//!
//! What a pin is given up for is time in which its DAG was *searched for* in vain since it joined, not its age: each
//! attempt adds what it counts for (the engine says how much), progress begins anew, and only the pins that have had
//! all of `pin.give_up_after` fail. The others go on, with the same DAG.
//!
//! Settling is by DAG: the transaction that completes it settles the pins that wait for it, up to
//! [`limits::PINS_PER_STEP`](crate::limits); the writer's follow-up settles the rest, and pins that join a complete DAG,
//! which are `queued` when their caller is answered. Where a DAG is given up its pins fail in such steps too, while it
//! stays claimed: a crash in between costs those that are left another attempt.

mod claim;
mod finish;
mod join;
mod progress;
mod size;

pub(crate) use claim::{claim, held, next_due, parked_roots, reset_claims, root_of, wake};
pub(crate) use finish::{Finished, finish, settle_joined};
pub(crate) use join::Joins;
pub(crate) use progress::progress;
pub(crate) use size::{check_sizes, digest, mend, seal_all};

use floe_core::cid::{self, Cid, code};
use sqlx::{QueryBuilder, SqliteConnection};
use uuid::Uuid;

use crate::Error;
use crate::pins::row::key;
use crate::writer::Tx;

pub(crate) const WAITING: i64 = 0;
pub(crate) const CLAIMED: i64 = 1;
pub(crate) const COMPLETE: i64 = 2;
pub(crate) const IDLE: i64 = 3;
pub(crate) const GONE: i64 = 4;

/// The lane of what was never tried: before all retries.
pub(crate) const FRESH: i64 = 0;
/// The lane of what was parked.
pub(crate) const RETRY: i64 = 1;
/// The lane of what was parked and woken: every other turn of its account, while others wait.
pub(crate) const WOKEN: i64 = 2;

/// An account whose last pin of this DAG has gone or settled waits for it no longer; a DAG that nobody waits
/// for is idle.
pub(crate) async fn stop_waiting(conn: &mut SqliteConnection, account: i64, dag: Uuid) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM waits WHERE account = $1 AND dag = $2 AND NOT EXISTS \
         (SELECT 1 FROM pins WHERE dag = $2 AND status IN (0, 1) AND account = $1)",
    )
    .bind(account)
    .bind(key(dag))
    .execute(&mut *conn)
    .await?;
    sqlx::query(
        "UPDATE dags SET state = 3 WHERE id = $1 AND state = 0 AND NOT EXISTS \
         (SELECT 1 FROM pins WHERE dag = $1 AND status IN (0, 1))",
    )
    .bind(key(dag))
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes a reference.
pub(crate) async fn hold(conn: &mut SqliteConnection, dag: Uuid) -> Result<(), Error> {
    sqlx::query("UPDATE dags SET refs = refs + 1 WHERE id = $1").bind(key(dag)).execute(conn).await?;
    Ok(())
}

/// Gives `refs` references back. With the last one the DAG is gone, and what follows is queued.
pub(crate) async fn let_go(tx: &mut Tx, dag: Uuid, refs: i64) -> Result<(), Error> {
    let left: Option<(i64, i64, i64, Vec<u8>)> = sqlx::query_as(
        "UPDATE dags SET refs = refs - $2 WHERE id = $1 RETURNING refs, state, announced, root",
    )
    .bind(key(dag))
    .bind(refs)
    .fetch_optional(&mut tx.conn)
    .await?;
    let Some((left, state, announced, root)) = left else { return Ok(()) };
    if left > 0 || state == GONE {
        return Ok(());
    }
    for statement in [
        "UPDATE dags SET state = 4, announced = 0, claimed_for = NULL, next_at = NULL WHERE id = $1",
        "DELETE FROM waits WHERE dag = $1",
        "DELETE FROM settles WHERE dag = $1",
        "DELETE FROM origin_peers WHERE dag = $1",
    ] {
        sqlx::query(statement).bind(key(dag)).execute(&mut tx.conn).await?;
    }
    if announced != 0 && !is_announced_otherwise(&mut tx.conn, &root).await? {
        crate::jobs::queue(&mut tx.conn, crate::jobs::UNANNOUNCE, root).await?;
    }
    crate::jobs::queue(&mut tx.conn, crate::jobs::RELEASE, key(dag)).await?;
    forget_if_gone(&mut tx.conn, dag).await
}

/// Whether another DAG whose root has the same hash is announced: a hash is announced, not a CID, and stays so as long as
/// one of them is pinned. Without this, whoever pinned the bytes of another's root as raw and let go of them took the
/// other's root out of the DHT.
async fn is_announced_otherwise(conn: &mut SqliteConnection, root: &[u8]) -> Result<bool, Error> {
    let Ok(root) = cid::parse_bytes(root) else { return Ok(false) };
    let others = code::WALKED.into_iter().filter(|codec| *codec != root.codec());
    let mut sql =
        QueryBuilder::new("SELECT COUNT(*) FROM dags WHERE state < 4 AND announced = 1 AND root IN (");
    let mut list = sql.separated(", ");
    others.for_each(|codec| {
        list.push_bind(cid::canonical(&Cid::new_v1(codec, *root.hash())).to_bytes());
    });
    sql.push(")");
    let count: i64 = sql.build_query_scalar().fetch_one(conn).await?;
    Ok(count > 0)
}

/// Deletes the row of a gone DAG that no failed pin shows any more.
pub(crate) async fn forget_if_gone(conn: &mut SqliteConnection, dag: Uuid) -> Result<(), Error> {
    sqlx::query(
        "DELETE FROM dags WHERE id = $1 AND state = 4 AND NOT EXISTS (SELECT 1 FROM pins WHERE dag = $1)",
    )
    .bind(key(dag))
    .execute(conn)
    .await?;
    Ok(())
}

pub(crate) async fn set_state(conn: &mut SqliteConnection, dag: Uuid, state: i64) -> Result<(), Error> {
    sqlx::query("UPDATE dags SET state = $2 WHERE id = $1").bind(key(dag)).bind(state).execute(conn).await?;
    Ok(())
}
