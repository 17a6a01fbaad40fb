//! Adding and replacing pins.
//!
//! What is checked and what is written is one transaction on the one writer, so quota and queue bounds cannot
//! be overshot by callers that race (threat T26). What a DAG is known to hold is reserved at once; the rest is
//! charged as the fetch reports it. `created` goes up by at least a millisecond for each pin of an account, and
//! never back, whatever the clock does (pinning-api M15).

use std::time::Duration;

use floe_core::{AccountId, PinStatus, RequestId, Timestamp, cid};
use sqlx::SqliteConnection;
use uuid::Uuid;

use super::row::{Stored, db, key, num};
use super::{change, counts};
use crate::fold::fold;
use crate::writer::Tx;
use crate::{DagProgress, Error, IdempotencyKey, PinRow, PinSpec, dags, limits};

/// The queue has no bound per account for this one: it is the operator's own.
pub const DEFAULT_ACCOUNT: &str = "default";

pub(crate) struct Add {
    pub(crate) account: i64,
    pub(crate) specs: Vec<PinSpec>,
    pub(crate) local_request: bool,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) max_queued: u64,
}

/// One transaction's part of [`crate::Records::add_pins`].
pub(crate) async fn add(tx: &mut Tx, args: &Add) -> Result<Vec<PinRow>, Error> {
    if let Some(answer) = answered(tx, args).await? {
        return Ok(answer);
    }
    let count = args.specs.len();
    if count > limits::PINS_PER_REQUEST {
        limits::hit("pins_per_request");
        return Err(Error::Quota(format!("a request may hold {} pins", limits::PINS_PER_REQUEST)));
    }
    let account = load_account(&mut tx.conn, args.account).await?;
    check_queue(tx, &account, count as u64, args.max_queued).await?;
    check_pins(&account, db(count as u64))?;
    let first = next_created(tx, &account, count).await?;
    let mut rows = Vec::with_capacity(count);
    for (created, spec) in (first..).zip(&args.specs) {
        let slot = Slot {
            account: args.account,
            created,
            local_request: args.local_request,
            kept: 0,
            replaces: false,
        };
        rows.push(insert_pin(tx, slot, spec).await?.into_row()?);
    }
    counts::added(&mut tx.conn, args.account, first, count).await?;
    remember(tx, args, &rows).await?;
    fail::fail_point!("pin.queued");
    Ok(rows)
}

/// One transaction's part of [`crate::Records::replace_pin`]. `args` holds the one new spec.
pub(crate) async fn replace(tx: &mut Tx, args: &Add, old: Uuid) -> Result<PinRow, Error> {
    if let Some(mut answer) = answered(tx, args).await? {
        return answer.pop().ok_or(Error::NotFound);
    }
    let old = change::load(&mut tx.conn, args.account, old).await?;
    let account = load_account(&mut tx.conn, args.account).await?;
    if old.status == PinStatus::Failed {
        check_pins(&account, 1)?;
    }
    // A replaced pin that was queued leaves its place to the new one.
    if old.status != PinStatus::Queued {
        check_queue(tx, &account, 1, args.max_queued).await?;
    }
    let created = next_created(tx, &account, 1).await?;
    // What the old pin was charged is charged on: its blocks stay. So the new row comes after the old has gone
    // from the sums, but with its charge as the floor.
    let inherited = change::keeps(&mut tx.conn, old.id).await?;
    change::delete(tx, &old, old.charged).await?;
    let slot = Slot {
        account: args.account,
        created,
        local_request: args.local_request,
        kept: old.charged,
        replaces: true,
    };
    let new = insert_pin(tx, slot, &args.specs[0]).await?;
    counts::added(&mut tx.conn, args.account, created, 1).await?;
    change::charge(&mut tx.conn, args.account, old.charged, 0).await?;
    inherit(tx, &old, &new, inherited).await?;
    let row = new.into_row()?;
    remember(tx, args, std::slice::from_ref(&row)).await?;
    fail::fail_point!("pin.queued");
    Ok(row)
}

/// The new pin keeps what the last pinned request of the chain held, and what the replaced one was fetching:
/// so a chain of any length keeps two DAGs at most.
async fn inherit(tx: &mut Tx, old: &Stored, new: &Stored, inherited: Vec<(Uuid, bool)>) -> Result<(), Error> {
    let mut wanted: Vec<(Uuid, bool)> = inherited.iter().copied().filter(|(_, solid)| *solid).collect();
    match old.status {
        PinStatus::Pinned => wanted = vec![(old.dag, true)],
        PinStatus::Queued | PinStatus::Pinning => wanted.push((old.dag, false)),
        PinStatus::Failed => {}
    }
    wanted.retain(|(dag, _)| *dag != new.dag);
    wanted.sort();
    wanted.dedup_by_key(|(dag, _)| *dag);
    for (dag, solid) in wanted {
        sqlx::query("INSERT INTO keeps (pin, dag, solid) VALUES ($1, $2, $3)")
            .bind(key(new.id))
            .bind(key(dag))
            .bind(i64::from(solid))
            .execute(&mut tx.conn)
            .await?;
        dags::hold(&mut tx.conn, dag).await?;
    }
    // Only now let go, so that nothing falls to zero in between.
    change::drop_keeps(tx, old.id).await?;
    if old.status != PinStatus::Failed {
        dags::let_go(tx, old.dag, 1).await?;
    }
    dags::stop_waiting(&mut tx.conn, old.account, old.dag).await?;
    dags::forget_if_gone(&mut tx.conn, old.dag).await
}

struct Slot {
    account: i64,
    created: i64,
    local_request: bool,
    kept: i64,
    replaces: bool,
}

/// Writes the row and joins it to its DAG. Counters and pin count are the caller's; bytes above the floor are
/// charged here.
async fn insert_pin(tx: &mut Tx, slot: Slot, spec: &PinSpec) -> Result<Stored, Error> {
    let mut random = [0; 10];
    tx.entropy.fill(&mut random);
    let id = RequestId::new(Timestamp::from_millis(num(slot.created)), random).0;
    let root = cid::canonical(&spec.cid).to_bytes();
    let joined = dags::join(tx, &root, slot.account, &spec.origins).await?;
    let charged = slot.kept.max(joined.bytes);
    reserve(tx, &slot, charged).await?;
    let pin = Stored {
        id,
        account: slot.account,
        created: slot.created,
        status: PinStatus::Queued,
        cid_text: spec.cid_text.clone(),
        root,
        name: spec.name.clone(),
        folded: spec.name.as_deref().map(fold),
        origins: json(&spec.origins)?,
        meta: json(&spec.meta)?,
        local_request: slot.local_request,
        dag: joined.dag,
        reason: None,
        charged,
        kept: slot.kept,
        searched_before: joined.searched,
        progress: joined.progress,
    };
    change::insert(&mut tx.conn, &pin).await?;
    Ok(pin)
}

/// Charges what the new pin is known to hold, above what it takes over.
async fn reserve(tx: &mut Tx, slot: &Slot, charged: i64) -> Result<(), Error> {
    let (account, floor) = (slot.account, slot.kept);
    // The floor was handed back by the old pin a moment ago and is charged again by the caller.
    if let Some(room) = change::room(&mut tx.conn, account).await? {
        let left = room - floor;
        let none_left = !slot.replaces && room == 0;
        if none_left || (charged > floor && charged - floor > left) {
            limits::hit("account_bytes");
            return Err(Error::Quota(format!(
                "the account has {left} bytes left and this pin needs more",
                left = left.max(0)
            )));
        }
    }
    change::charge(&mut tx.conn, account, charged - floor, 0).await
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Sql(error.to_string()))
}

struct AccountRow {
    id: i64,
    name: String,
    max_pins: Option<i64>,
    used_pins: i64,
    last_created: i64,
}

async fn load_account(conn: &mut SqliteConnection, id: i64) -> Result<AccountRow, Error> {
    let row: Option<(String, Option<i64>, i64, i64)> =
        sqlx::query_as("SELECT name, max_pins, used_pins, last_created FROM accounts WHERE id = $1")
            .bind(id)
            .fetch_optional(conn)
            .await?;
    let (name, max_pins, used_pins, last_created) = row.ok_or(Error::NotFound)?;
    Ok(AccountRow { id, name, max_pins, used_pins, last_created })
}

fn check_pins(account: &AccountRow, more: i64) -> Result<(), Error> {
    match account.max_pins {
        Some(most) if account.used_pins.saturating_add(more) > most => {
            limits::hit("account_pins");
            Err(Error::Quota(format!("the account may hold {most} pins and holds {}", account.used_pins)))
        }
        _ => Ok(()),
    }
}

async fn check_queue(tx: &mut Tx, account: &AccountRow, more: u64, most: u64) -> Result<(), Error> {
    let busy = |reason: String| Error::Busy { reason, retry_after: Duration::from_secs(60) };
    let [of_account, ..] = counts::ever(&mut tx.conn, account.id).await?;
    let [over_all, ..] = counts::ever(&mut tx.conn, counts::EVERYBODY).await?;
    if account.name != DEFAULT_ACCOUNT && of_account + more > most {
        limits::hit("queued_per_account");
        return Err(busy(format!("{of_account} of {most} pins are queued already")));
    }
    if over_all + more > limits::QUEUED_OVER_ALL {
        limits::hit("queued_over_all");
        return Err(busy("the service has too many queued pins".into()));
    }
    Ok(())
}

/// Takes `count` values of `created`, one after another, and counts so many pins as used.
async fn next_created(tx: &mut Tx, account: &AccountRow, count: usize) -> Result<i64, Error> {
    let now = db(tx.now.as_millis());
    let first = now.max(account.last_created + 1);
    let last = first + db(count as u64) - 1;
    let ahead = last.saturating_sub(now).saturating_sub(db(limits::CREATED_AHEAD.as_millis() as u64));
    if ahead > 0 {
        limits::hit("created_ahead");
        return Err(Error::Busy {
            reason: "too many pins in a short time: each has its own millisecond".into(),
            retry_after: Duration::from_millis(num(ahead)),
        });
    }
    sqlx::query("UPDATE accounts SET last_created = $2, used_pins = used_pins + $3 WHERE id = $1")
        .bind(account.id)
        .bind(last)
        .bind(db(count as u64))
        .execute(&mut tx.conn)
        .await?;
    Ok(first)
}

/// The answer that was given to this key, if it is still kept. Pins removed since are shown as they were made:
/// the client asks what it was told then, and a second pin must not come of it (threat T46).
async fn answered(tx: &mut Tx, args: &Add) -> Result<Option<Vec<PinRow>>, Error> {
    let Some(asked) = &args.key else { return Ok(None) };
    if asked.key.len() > limits::KEY_BYTES {
        limits::hit("idempotency_key_bytes");
        return Err(Error::Conflict(format!("an Idempotency-Key has at most {} bytes", limits::KEY_BYTES)));
    }
    let now = db(tx.now.as_millis());
    sqlx::query(
        "DELETE FROM idempotency_keys WHERE (account, key) IN \
         (SELECT account, key FROM idempotency_keys WHERE expires <= $1 ORDER BY expires LIMIT $2)",
    )
    .bind(now)
    .bind(limits::KEYS_PURGED)
    .execute(&mut tx.conn)
    .await?;
    let found: Option<(Vec<u8>, String)> = sqlx::query_as(
        "SELECT body_hash, answer FROM idempotency_keys WHERE account = $1 AND key = $2 AND expires > $3",
    )
    .bind(args.account)
    .bind(&asked.key)
    .bind(now)
    .fetch_optional(&mut tx.conn)
    .await?;
    let Some((body_hash, answer)) = found else { return Ok(None) };
    if body_hash != asked.body_hash {
        return Err(Error::KeyReused);
    }
    let made: Vec<(Uuid, u64, Uuid)> = serde_json::from_str(&answer).map_err(|error| {
        Error::Damaged(format!("the answer kept for an Idempotency-Key is damaged: {error}"))
    })?;
    let mut rows = Vec::with_capacity(made.len());
    for ((id, created, dag), spec) in made.into_iter().zip(&args.specs) {
        rows.push(match change::load(&mut tx.conn, args.account, id).await {
            Ok(pin) => pin.into_row()?,
            Err(Error::NotFound) => PinRow {
                id: RequestId(id),
                account: AccountId(args.account),
                spec: spec.clone(),
                status: PinStatus::Queued,
                created: Timestamp::from_millis(created),
                dag,
                reason: None,
                local_request: args.local_request,
                progress: DagProgress::default(),
            },
            Err(error) => return Err(error),
        });
    }
    Ok(Some(rows))
}

async fn remember(tx: &mut Tx, args: &Add, rows: &[PinRow]) -> Result<(), Error> {
    let Some(asked) = &args.key else { return Ok(()) };
    let made: Vec<(Uuid, u64, Uuid)> =
        rows.iter().map(|row| (row.id.0, row.created.as_millis(), row.dag)).collect();
    // An expired answer may still be there: only so many are purged at a time.
    sqlx::query(
        "INSERT INTO idempotency_keys (account, key, body_hash, answer, expires) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (account, key) DO UPDATE SET body_hash = excluded.body_hash, answer = excluded.answer, \
         expires = excluded.expires",
    )
    .bind(args.account)
    .bind(&asked.key)
    .bind(asked.body_hash.to_vec())
    .bind(json(&made)?)
    .bind(db(tx.now.after(limits::KEY_KEPT).as_millis()))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}
