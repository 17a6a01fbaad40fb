//! What a fetch reports while it runs, and what it costs the accounts.
//!
//! Each pin is charged the bytes its DAG holds, whoever else pins it (threat T26): so the charge grows with the
//! fetch, and a pin whose account has no room fails then, and not only when all is fetched.

use floe_core::PinStatus;
use floe_core::pin::PinEvent;
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{CLAIMED, GONE};
use crate::pins::change;
use crate::pins::row::{db, key, num};
use crate::writer::Tx;
use crate::{Error, limits};

/// Why a pin failed for want of room.
pub(crate) const NO_ROOM: &str = "the account has no room for this DAG: its quota of bytes is used up";

/// One transaction's part of [`crate::Records::dag_progress`].
pub(crate) async fn progress(
    tx: &mut Tx,
    dag: Uuid,
    blocks: u64,
    bytes: u64,
    note: Option<&str>,
) -> Result<Option<Option<u64>>, Error> {
    // A walk that goes on after a restart counts from its last checkpoint: never show less than was shown.
    let row: Option<(i64, i64)> = sqlx::query_as(
        "UPDATE dags SET progress_at = CASE WHEN bytes < $3 THEN $5 ELSE progress_at END, \
         searched_before = CASE WHEN bytes < $3 THEN searched ELSE searched_before END, \
         blocks = CASE WHEN blocks < $2 THEN $2 ELSE blocks END, bytes = CASE WHEN bytes < $3 THEN $3 ELSE bytes END, \
         last_error = COALESCE($4, last_error) WHERE id = $1 AND state = 1 RETURNING bytes, state",
    )
    .bind(key(dag))
    .bind(db(blocks))
    .bind(db(bytes))
    .bind(note)
    .bind(db(tx.now.as_millis()))
    .fetch_optional(&mut tx.conn)
    .await?;
    let Some((held, _)) = row else { return Ok(None) };
    charge_growth(tx, dag, held).await?;
    take_in_late(tx, dag).await?;
    let (state, wanted): (i64, i64) = match sqlx::query_as(
        "SELECT state, (SELECT COUNT(*) FROM (SELECT 1 FROM pins WHERE dag = $1 AND status IN (0, 1) LIMIT 1) w) \
         FROM dags WHERE id = $1",
    )
    .bind(key(dag))
    .fetch_optional(&mut tx.conn)
    .await?
    {
        Some(row) => row,
        None => return Ok(None),
    };
    debug_assert!(state == CLAIMED || state == GONE, "only a claimed DAG is reported on");
    match (state, wanted) {
        (GONE, _) => Ok(None),
        // Only kept for a pin that replaced another: what is here stays, and no byte more is fetched for it.
        (_, 0) => Ok(Some(Some(num(held)))),
        _ => allowance(&mut tx.conn, dag).await.map(Some),
    }
}

/// Pins that joined after the claim, or that it had no room for: the DAG is being fetched for them too. Some in each report.
async fn take_in_late(tx: &mut Tx, dag: Uuid) -> Result<(), Error> {
    let (late, _) = change::some(&mut tx.conn, dag, PinStatus::Queued).await?;
    for mut pin in late {
        change::step(&mut tx.conn, &mut pin, PinEvent::Claimed).await?;
    }
    Ok(())
}

/// Charges every waiting pin what the DAG holds by now.
pub(super) async fn charge_growth(tx: &mut Tx, dag: Uuid, held: i64) -> Result<(), Error> {
    let growth: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT account, SUM($2 - charged) FROM pins WHERE dag = $1 AND status IN (0, 1) AND charged < $2 \
         GROUP BY account ORDER BY account",
    )
    .bind(key(dag))
    .bind(held)
    .fetch_all(&mut tx.conn)
    .await?;
    for (account, growth) in growth {
        match change::room(&mut tx.conn, account).await? {
            Some(room) if room < growth => charge_one_by_one(tx, account, dag, held).await?,
            _ => charge_all(tx, account, dag, held, growth).await?,
        }
    }
    Ok(())
}

async fn charge_all(tx: &mut Tx, account: i64, dag: Uuid, held: i64, growth: i64) -> Result<(), Error> {
    sqlx::query(
        "UPDATE pins SET charged = $3 WHERE dag = $1 AND account = $2 AND status IN (0, 1) AND charged < $3",
    )
    .bind(key(dag))
    .bind(account)
    .bind(held)
    .execute(&mut tx.conn)
    .await?;
    change::charge(&mut tx.conn, account, growth, 0).await
}

/// The oldest pins get the room there is; the others fail.
async fn charge_one_by_one(tx: &mut Tx, account: i64, dag: Uuid, held: i64) -> Result<(), Error> {
    for pin in change::unsettled(&mut tx.conn, dag).await? {
        if pin.account != account || pin.charged >= held {
            continue;
        }
        let room = change::room(&mut tx.conn, account).await?;
        if room.is_some_and(|room| room < held - pin.charged) {
            limits::hit("account_bytes");
            change::fail(tx, pin, NO_ROOM).await?;
            continue;
        }
        sqlx::query("UPDATE pins SET charged = $2 WHERE id = $1")
            .bind(key(pin.id))
            .bind(held)
            .execute(&mut tx.conn)
            .await?;
        change::charge(&mut tx.conn, account, held - pin.charged, 0).await?;
    }
    Ok(())
}

/// Bytes the DAG may hold before its last waiting pin is out of room; `None`: no bound.
pub(super) async fn allowance(conn: &mut SqliteConnection, dag: Uuid) -> Result<Option<u64>, Error> {
    let accounts: Vec<(Option<i64>, i64, i64)> = sqlx::query_as(
        "SELECT a.max_bytes, a.used_bytes, MAX(p.charged) FROM pins p JOIN accounts a ON a.id = p.account \
         WHERE p.dag = $1 AND p.status IN (0, 1) GROUP BY a.id, a.max_bytes, a.used_bytes",
    )
    .bind(key(dag))
    .fetch_all(conn)
    .await?;
    let mut most = Some(0);
    for (max_bytes, used, charged) in accounts {
        let of_account = max_bytes.map(|max| num((max - used).max(0).saturating_add(charged)));
        most = most.zip(of_account).map(|(a, b): (u64, u64)| a.max(b));
    }
    Ok(most)
}
