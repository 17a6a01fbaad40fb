//! Which DAGs are fetched next: fair between accounts, fresh and woken before retries.
//!
//! Each account that waits for a DAG has a row in `waits`; a claim goes round the accounts, one DAG a turn, and
//! takes the first due of each by index. So its cost follows what is claimed, not what is queued, and neither a
//! thousand dead pins of one account nor its next in line can hold up another's.
//!
//! Within an account, what was woken comes before what waits, but not twice in a row: a peer that connects again and
//! again wakes every parked pin that names it, and would else keep the account's other pins waiting without end.

use std::time::Duration;

use floe_core::ports::Origins;
use floe_core::{AccountId, Cid, PinStatus, Timestamp, cid};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::join::wait_until;
use super::{FRESH, IDLE, RETRY, WAITING, WOKEN, set_state};
use crate::pins::change::{some, step};
use crate::pins::row::{Stored, db, intact, key, num, select_pins, uuid_of};
use crate::writer::Tx;
use crate::{ClaimedDag, Error, limits};

/// The account of a DAG that no pin names: there is none of this number.
const NOBODY: i64 = 0;

/// One transaction's part of [`crate::Records::claim_dags`].
pub(crate) async fn claim(tx: &mut Tx, most: usize, per_account: usize) -> Result<Vec<ClaimedDag>, Error> {
    let mut claimed = Vec::new();
    let mut turns = accounts_in_turn(tx).await?;
    while !turns.is_empty() && claimed.len() < most {
        let mut still = Vec::with_capacity(turns.len());
        for (account, in_flight) in turns {
            if claimed.len() >= most {
                break;
            }
            if in_flight >= db(per_account as u64) {
                limits::hit("claims_per_account");
                continue;
            }
            if let Some(dag) = first_due(tx, account).await? {
                let taken = take(tx, account, dag).await?;
                tx.last_claimed_for = account;
                still.push((account, in_flight + i64::from(taken.is_some())));
                claimed.extend(taken);
            }
        }
        turns = still;
    }
    Ok(claimed)
}

/// Accounts that wait, from the one after the last that had a turn, round to it; so many that a claim stays short. With
/// each, how many DAGs are claimed for it.
async fn accounts_in_turn(tx: &mut Tx) -> Result<Vec<(i64, i64)>, Error> {
    let last = tx.last_claimed_for;
    let mut accounts = waiting_behind(tx, last, limits::ACCOUNTS_PER_CLAIM).await?;
    let rest = limits::ACCOUNTS_PER_CLAIM - accounts.len();
    if last > 0 && rest > 0 {
        let round = waiting_behind(tx, 0, rest).await?;
        accounts.extend(round.into_iter().take_while(|(account, _)| *account <= last));
    }
    if let Some((end, _)) = accounts.get(limits::ACCOUNTS_PER_CLAIM - 1) {
        limits::hit("accounts_per_claim");
        // Nobody of these may be due: the next claim looks at others.
        tx.last_claimed_for = *end;
    }
    Ok(accounts)
}

/// The next accounts that wait, each found by one look at the index, and how many DAGs are claimed for each. A new pin
/// makes a claim likely, so this is one statement however many accounts there are.
async fn waiting_behind(tx: &mut Tx, account: i64, most: usize) -> Result<Vec<(i64, i64)>, Error> {
    let mut accounts: Vec<(i64, i64)> = sqlx::query_as(
        "WITH RECURSIVE turn (account, nth) AS (SELECT MIN(account), 1 FROM waits WHERE account > $1 UNION ALL \
         SELECT (SELECT MIN(w.account) FROM waits w WHERE w.account > turn.account), turn.nth + 1 FROM turn \
         WHERE turn.account IS NOT NULL AND turn.nth < $2) \
         SELECT t.account, (SELECT COUNT(*) FROM dags d WHERE d.claimed_for = t.account AND d.state = 1) \
         FROM turn t WHERE t.account IS NOT NULL",
    )
    .bind(account)
    .bind(db(most as u64))
    .fetch_all(&mut tx.conn)
    .await?;
    accounts.sort_unstable();
    Ok(accounts)
}

async fn first_due(tx: &mut Tx, account: i64) -> Result<Option<Uuid>, Error> {
    let woken_last = tx.woken_last.remove(&account);
    for lane in if woken_last { [FRESH, RETRY, WOKEN] } else { [WOKEN, FRESH, RETRY] } {
        let due: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT dag FROM waits WHERE account = $1 AND lane = $2 AND next_at <= $3 ORDER BY next_at, dag LIMIT 1",
        )
        .bind(account)
        .bind(lane)
        .bind(db(tx.now.as_millis()))
        .fetch_optional(&mut tx.conn)
        .await?;
        if let Some(dag) = due {
            if lane == WOKEN {
                tx.woken_last.insert(account);
            }
            return Ok(Some(uuid_of(dag)));
        }
    }
    Ok(None)
}

/// `None` for a DAG that cannot be fetched because its row is damaged.
async fn take(tx: &mut Tx, account: i64, dag: Uuid) -> Result<Option<ClaimedDag>, Error> {
    let (root, attempts, searched, before, tried_at): (Vec<u8>, i64, i64, i64, Option<i64>) = sqlx::query_as(
        "UPDATE dags SET state = 1, claimed_for = $2, attempts = attempts + 1, next_at = NULL WHERE id = $1 \
         RETURNING root, attempts, searched, searched_before, tried_at",
    )
    .bind(key(dag))
    .bind(account)
    .fetch_one(&mut tx.conn)
    .await?;
    sqlx::query("DELETE FROM waits WHERE dag = $1").bind(key(dag)).execute(&mut tx.conn).await?;
    // The others are called fetching with what the fetch reports.
    let (mut pins, more) = some(&mut tx.conn, dag, PinStatus::Pinning).await?;
    // Pins carry a digest and DAGs do not: where they differ, a bit of the DAG's root has turned. It would be searched
    // for in vain.
    let named = pins.first().map_or(&root, |pin| &pin.root);
    if *named != root {
        tracing::error!(%dag, "the root of DAG {dag} is damaged: its pins say which it is");
    }
    let Some(root) = intact(root_of(dag, named)) else {
        // Out of the queue, so that it holds up nobody; `floe verify` names it.
        sqlx::query("UPDATE dags SET state = 0, claimed_for = NULL WHERE id = $1")
            .bind(key(dag))
            .execute(&mut tx.conn)
            .await?;
        return Ok(None);
    };
    for pin in pins.iter_mut().filter(|pin| pin.status == PinStatus::Queued) {
        step(&mut tx.conn, pin, floe_core::pin::PinEvent::Claimed).await?;
    }
    let joined = match more {
        true => joined_first(tx, dag).await?,
        false => pins.iter().map(|pin| pin.searched_before).min(),
    };
    let before = joined.map_or(searched, |joined| before.max(joined));
    Ok(Some(ClaimedDag {
        dag,
        root,
        account: AccountId(account),
        origins: origins_of(&pins),
        attempts: u32::try_from(attempts - 1).unwrap_or(u32::MAX),
        tried_at: tried_at.map_or(tx.now, |at| Timestamp::from_millis(num(at))),
        searched: Duration::from_millis(num(searched - before)),
        byte_allowance: super::progress::allowance(&mut tx.conn, dag).await?,
    }))
}

/// What is needed to fetch a DAG again that is held, from its pins and its own row: no pin names one that only keeps or
/// aggregates hold, and a damaged pin tells nothing. `None` where it is not held, or nothing says which root it has.
pub(crate) async fn held(
    conn: &mut SqliteConnection,
    dag: Uuid,
    now: Timestamp,
) -> Result<Option<ClaimedDag>, Error> {
    let root: Option<Vec<u8>> = sqlx::query_scalar("SELECT root FROM dags WHERE id = $1 AND state < 4")
        .bind(key(dag))
        .fetch_optional(&mut *conn)
        .await?;
    let Some(root) = root else { return Ok(None) };
    let rows = sqlx::query(select_pins!("WHERE p.dag = $1 ORDER BY p.created DESC, p.id LIMIT $2"))
        .bind(key(dag))
        .bind(limits::PINS_ASKED)
        .fetch_all(conn)
        .await?;
    let pins: Vec<Stored> = rows.iter().filter_map(|row| intact(Stored::read(row))).collect();
    let first = pins.first();
    let Some(root) = intact(root_of(dag, first.map_or(&root, |pin| &pin.root))) else { return Ok(None) };
    Ok(Some(ClaimedDag {
        dag,
        root,
        account: AccountId(first.map_or(NOBODY, |pin| pin.account)),
        origins: origins_of(&pins),
        attempts: 0,
        tried_at: first.map_or(now, |pin| Timestamp::from_millis(num(pin.created))),
        searched: Duration::ZERO,
        byte_allowance: None,
    }))
}

/// For how long the DAG had been searched for when the first of its waiting pins joined.
async fn joined_first(tx: &mut Tx, dag: Uuid) -> Result<Option<i64>, Error> {
    let first = sqlx::query_scalar("SELECT MIN(searched_before) FROM pins WHERE dag = $1 AND status <= 1")
        .bind(key(dag))
        .fetch_one(&mut tx.conn)
        .await?;
    Ok(first)
}

/// Origins of all pins, each once for those that came from this machine and once for the others. Either is there
/// where it has pins, be it without an origin.
fn origins_of(pins: &[Stored]) -> Vec<Origins> {
    let (local, others): (Vec<_>, Vec<_>) = pins.iter().partition(|pin| pin.local_request);
    let groups = [(local, true), (others, false)].into_iter().filter(|(pins, _)| !pins.is_empty());
    groups.map(|(pins, local_request)| Origins { addresses: addresses_of(&pins), local_request }).collect()
}

fn addresses_of(pins: &[&Stored]) -> Vec<String> {
    let mut origins = Vec::new();
    let parse = |pin: &&Stored| {
        serde_json::from_str(&pin.origins)
            .map_err(|_| Error::Damaged(format!("the row of pin {} has origins that do not parse", pin.id)))
    };
    for origin in pins.iter().filter_map(|pin| intact::<Vec<String>>(parse(pin))).flatten() {
        if origins.len() == limits::ORIGINS_PER_DAG {
            limits::hit("origins_per_dag");
            break;
        }
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    origins
}

pub(crate) fn root_of(dag: Uuid, bytes: &[u8]) -> Result<Cid, Error> {
    cid::parse_bytes(bytes)
        .map_err(|error| Error::Damaged(format!("the root of DAG {dag} is damaged: {error}")))
}

/// When the next DAG falls due.
pub(crate) async fn next_due(conn: &mut SqliteConnection) -> Result<Option<Timestamp>, Error> {
    let next: Option<i64> = sqlx::query_scalar("SELECT MIN(next_at) FROM waits").fetch_one(conn).await?;
    Ok(next.map(|at| Timestamp::from_millis(num(at))))
}

/// One transaction's part of [`crate::Records::reset_claims`]: at most 64 are claimed by a node, so few rows.
pub(crate) async fn reset_claims(tx: &mut Tx) -> Result<u64, Error> {
    let claimed: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT id FROM dags WHERE state = 1").fetch_all(&mut tx.conn).await?;
    for id in &claimed {
        give_back(tx, uuid_of(id.clone()), FRESH, db(tx.now.as_millis())).await?;
    }
    Ok(claimed.len() as u64)
}

/// Ends a claim: the DAG waits for the accounts that have pins to settle, or is idle.
pub(super) async fn give_back(tx: &mut Tx, dag: Uuid, lane: i64, next_at: i64) -> Result<(), Error> {
    let accounts: Vec<i64> =
        sqlx::query_scalar("SELECT DISTINCT account FROM pins WHERE dag = $1 AND status IN (0, 1)")
            .bind(key(dag))
            .fetch_all(&mut tx.conn)
            .await?;
    let waits: Vec<_> = accounts.iter().map(|account| (*account, dag)).collect();
    wait_until(&mut tx.conn, &waits, lane, next_at).await?;
    sqlx::query("UPDATE dags SET claimed_for = NULL WHERE id = $1")
        .bind(key(dag))
        .execute(&mut tx.conn)
        .await?;
    set_state(&mut tx.conn, dag, if accounts.is_empty() { IDLE } else { WAITING }).await
}

/// One transaction's part of [`crate::Records::wake`]. What is woken is likely to be findable, so it goes before
/// what waits; behind what was woken before it, so that nobody is overtaken twice by the same DAG.
///
/// A DAG that is woken is not parked any more, so a peer that comes and goes wakes it again only after another
/// attempt: the work of a wake is bounded by the fetches, not by the peer.
pub(crate) async fn wake(tx: &mut Tx, peer: Option<&str>, root: Option<&Cid>) -> Result<u64, Error> {
    let parked: Vec<Vec<u8>> = sqlx::query_scalar(
        "SELECT id FROM dags WHERE state = 0 AND next_at IS NOT NULL AND id IN \
         (SELECT dag FROM origin_peers WHERE peer = $1 \
          UNION SELECT id FROM dags WHERE root = $2 AND state < 4) LIMIT $3",
    )
    .bind(peer)
    .bind(root.map(|root| cid::canonical(root).to_bytes()))
    .bind(limits::WOKEN)
    .fetch_all(&mut tx.conn)
    .await?;
    for dag in &parked {
        sqlx::query("UPDATE waits SET lane = $2, next_at = $3 WHERE dag = $1")
            .bind(dag)
            .bind(WOKEN)
            .bind(db(tx.now.as_millis()))
            .execute(&mut tx.conn)
            .await?;
        sqlx::query("UPDATE dags SET next_at = NULL WHERE id = $1").bind(dag).execute(&mut tx.conn).await?;
    }
    if db(parked.len() as u64) == limits::WOKEN {
        limits::hit("woken");
    }
    Ok(parked.len() as u64)
}

/// Roots of parked DAGs, those that made progress longest ago first.
pub(crate) async fn parked_roots(conn: &mut SqliteConnection, most: usize) -> Result<Vec<Cid>, Error> {
    let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(
        "SELECT id, root FROM dags WHERE state = 0 AND next_at IS NOT NULL ORDER BY progress_at LIMIT $1",
    )
    .bind(db(most as u64))
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().filter_map(|(id, root)| intact(root_of(uuid_of(id), &root))).collect())
}
