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
//! Settling is by DAG: the transaction that completes it settles every pin that waits for it. A pin that joins
//! a complete DAG is `queued` when its caller is answered, and settled by the writer's follow-up right after.

mod claim;
mod finish;
mod progress;

pub(crate) use claim::{claim, next_due, parked_roots, reset_claims, root_of, wake};
pub(crate) use finish::{finish, settle_joined};
pub(crate) use progress::progress;

use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::pins::row::{db, key, num, uuid_of};
use crate::writer::Tx;
use crate::{DagProgress, Error, limits};

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

/// What a new pin joins.
pub(crate) struct Joined {
    pub(crate) dag: Uuid,
    /// What the DAG is known to hold by now.
    pub(crate) bytes: i64,
    pub(crate) progress: DagProgress,
}

type Live = (Vec<u8>, i64, i64, i64, i64, Option<String>, Option<i64>);

/// Joins the live DAG of this root, or begins one; takes a reference.
pub(crate) async fn join(
    tx: &mut Tx,
    root: &[u8],
    account: i64,
    origins: &[String],
) -> Result<Joined, Error> {
    let live: Option<Live> = sqlx::query_as(
        "SELECT id, state, blocks, bytes, attempts, last_error, next_at FROM dags WHERE root = $1 AND state < 4",
    )
    .bind(root)
    .fetch_optional(&mut tx.conn)
    .await?;
    let Some((id, state, blocks, bytes, attempts, last_error, next_at)) = live else {
        return begin(tx, root, account, origins).await;
    };
    let dag = uuid_of(id);
    hold(&mut tx.conn, dag).await?;
    match state {
        COMPLETE => join_complete(tx, dag).await?,
        WAITING => wait(tx, account, dag, FRESH).await?,
        IDLE => {
            set_state(&mut tx.conn, dag, WAITING).await?;
            wait(tx, account, dag, FRESH).await?;
        }
        _ => {}
    }
    name_peers(tx, dag, origins).await?;
    let next_attempt =
        next_at.filter(|_| state == WAITING).map(|at| floe_core::Timestamp::from_millis(num(at)));
    let attempts = u32::try_from(attempts).unwrap_or(u32::MAX);
    let progress = DagProgress {
        blocks: num(blocks),
        bytes: num(bytes),
        attempts,
        last_error,
        next_attempt,
        queue_position: None,
    };
    Ok(Joined { dag, bytes, progress })
}

async fn begin(tx: &mut Tx, root: &[u8], account: i64, origins: &[String]) -> Result<Joined, Error> {
    let mut random = [0; 10];
    tx.entropy.fill(&mut random);
    let dag = uuid::Builder::from_unix_timestamp_millis(tx.now.as_millis(), &random).into_uuid();
    sqlx::query(
        "INSERT INTO dags (id, root, state, refs, blocks, bytes, attempts, progress_at, announced) \
         VALUES ($1, $2, 0, 1, 0, 0, 0, $3, 0)",
    )
    .bind(key(dag))
    .bind(root)
    .bind(db(tx.now.as_millis()))
    .execute(&mut tx.conn)
    .await?;
    wait(tx, account, dag, FRESH).await?;
    name_peers(tx, dag, origins).await?;
    Ok(Joined { dag, bytes: 0, progress: DagProgress::default() })
}

async fn join_complete(tx: &mut Tx, dag: Uuid) -> Result<(), Error> {
    sqlx::query("INSERT INTO settles (dag) VALUES ($1) ON CONFLICT (dag) DO NOTHING")
        .bind(key(dag))
        .execute(&mut tx.conn)
        .await?;
    tx.settle = true;
    Ok(())
}

/// Queues the DAG for an account, from now on.
async fn wait(tx: &mut Tx, account: i64, dag: Uuid, lane: i64) -> Result<(), Error> {
    let now = db(tx.now.as_millis());
    wait_until(&mut tx.conn, account, dag, lane, now).await
}

async fn wait_until(
    conn: &mut SqliteConnection,
    account: i64,
    dag: Uuid,
    lane: i64,
    next_at: i64,
) -> Result<(), Error> {
    // A second pin must not send the DAG back in its queue.
    sqlx::query(
        "INSERT INTO waits (account, dag, lane, next_at) VALUES ($1, $2, $3, $4) \
         ON CONFLICT (account, dag) DO UPDATE SET lane = excluded.lane, next_at = excluded.next_at \
         WHERE waits.lane = 1",
    )
    .bind(account)
    .bind(key(dag))
    .bind(lane)
    .bind(next_at)
    .execute(conn)
    .await?;
    Ok(())
}

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

async fn name_peers(tx: &mut Tx, dag: Uuid, origins: &[String]) -> Result<(), Error> {
    for peer in peers_of(origins) {
        sqlx::query(
            "INSERT INTO origin_peers (peer, dag) VALUES ($1, $2) ON CONFLICT (peer, dag) DO NOTHING",
        )
        .bind(peer)
        .bind(key(dag))
        .execute(&mut tx.conn)
        .await?;
    }
    Ok(())
}

/// The peers that origins name, each once: Kubo sends all addresses of one peer, and those that nobody else can dial
/// come first. Twenty *peers* are more than the twenty origins of the spec can name, so only a client that sends
/// more is cut, and for it the others are tried at the pin's next attempt all the same.
fn peers_of(origins: &[String]) -> Vec<&str> {
    let mut peers = Vec::new();
    for peer in origins.iter().filter_map(|origin| peer_of(origin)) {
        if peers.contains(&peer) {
            continue;
        }
        if peers.len() == limits::PEERS_PER_PIN {
            limits::hit("peers_per_pin");
            break;
        }
        peers.push(peer);
    }
    peers
}

/// The peer that a multiaddr ends at, as it is written. Origins are hints: what names none is no error.
fn peer_of(origin: &str) -> Option<&str> {
    let mut parts = origin.rsplit('/');
    let (peer, protocol) = (parts.next()?, parts.next()?);
    (matches!(protocol, "p2p" | "ipfs") && !peer.is_empty() && peer.len() <= 128).then_some(peer)
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
    if announced != 0 {
        crate::jobs::queue(&mut tx.conn, crate::jobs::UNANNOUNCE, root).await?;
    }
    crate::jobs::queue(&mut tx.conn, crate::jobs::RELEASE, key(dag)).await?;
    forget_if_gone(&mut tx.conn, dag).await
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

#[cfg(test)]
mod tests {
    use super::{peer_of, peers_of};
    use crate::limits::PEERS_PER_PIN;

    /// A client behind NAT sent thirty addresses of its own before the one of its relay: only the first twenty
    /// origins were looked at, so the relay's connection woke nothing.
    #[test]
    fn s7_a_peer_counts_once_however_many_addresses_it_has() {
        let own = (0..30).map(|port| format!("/ip4/10.0.0.1/tcp/{port}/p2p/own"));
        let origins: Vec<String> = own.chain(["/dns4/x/tcp/4001/p2p/relay".to_owned()]).collect();
        assert_eq!(peers_of(&origins), ["own", "relay"]);
        for peers in [PEERS_PER_PIN - 1, PEERS_PER_PIN, PEERS_PER_PIN + 1] {
            let origins: Vec<String> =
                (0..peers).map(|n| format!("/ip4/10.0.0.1/tcp/1/p2p/peer{n}")).collect();
            assert_eq!(peers_of(&origins).len(), peers.min(PEERS_PER_PIN));
        }
    }

    #[test]
    fn s7_the_peer_at_the_end_of_an_origin() {
        assert_eq!(peer_of("/ip4/1.2.3.4/tcp/4001/p2p/12D3Koo"), Some("12D3Koo"));
        assert_eq!(peer_of("/dns4/x/tcp/4001/p2p/relay/p2p-circuit/p2p/target"), Some("target"));
        for odd in ["", "/", "p2p", "/ip4/1.2.3.4/tcp/4001", "/p2p/", "no multiaddr"] {
            assert_eq!(peer_of(odd), None, "{odd}");
        }
    }
}
