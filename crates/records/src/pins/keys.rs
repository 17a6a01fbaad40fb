//! Idempotency keys: what a request was answered, for a day, so that a retry makes no second pin (threat T46).

use std::collections::HashMap;

use floe_core::{AccountId, PinStatus, RequestId, Timestamp};
use sqlx::{QueryBuilder, SqliteConnection};
use uuid::Uuid;

use super::add::Add;
use super::change;
use super::row::db;
use crate::writer::Tx;
use crate::{DagProgress, Error, IdempotencyKey, PinRow, digests, limits};

/// The answers that were given to the requests' keys, if they are still kept. An error is the database's; what is wrong
/// with one request is its answer.
pub(super) async fn answered(
    tx: &mut Tx,
    requests: &[&Add],
) -> Result<Vec<Option<Result<Vec<PinRow>, Error>>>, Error> {
    purge(tx, requests.iter().filter(|request| request.key.is_some()).count()).await?;
    told(&mut tx.conn, tx.now, requests).await
}

/// The same of one request, on a connection that only reads. `None` also where its first try is being written.
pub(crate) async fn look(
    conn: &mut SqliteConnection,
    now: Timestamp,
    request: &Add,
) -> Result<Option<Vec<PinRow>>, Error> {
    told(conn, now, &[request]).await?.into_iter().next().flatten().transpose()
}

async fn told(
    conn: &mut SqliteConnection,
    now: Timestamp,
    requests: &[&Add],
) -> Result<Vec<Option<Result<Vec<PinRow>, Error>>>, Error> {
    let asked: Vec<(i64, &str)> =
        requests.iter().filter_map(|r| Some((r.account, r.key.as_ref()?.key.as_str()))).collect();
    let kept = look_up(conn, now, &asked).await?;
    let mut answers = Vec::with_capacity(requests.len());
    for request in requests {
        answers.push(match &request.key {
            None => None,
            Some(asked) if asked.key.len() > limits::KEY_BYTES => Some(Err(too_long())),
            Some(asked) => match kept.get(&(request.account, asked.key.clone())) {
                None => None,
                Some(Kept::Damaged) => Some(Err(Error::Damaged(format!(
                    "what was answered under the Idempotency-Key {:?} is damaged: it is forgotten within a day",
                    asked.key
                )))),
                Some(Kept::Told { body_hash, .. }) if *body_hash != asked.body_hash => {
                    Some(Err(Error::KeyReused))
                }
                Some(Kept::Told { answer, .. }) => match repeat(conn, request, answer).await {
                    Err(error @ Error::Damaged(_)) => Some(Err(error)),
                    Err(error) => return Err(error),
                    answer => Some(answer),
                },
            },
        });
    }
    Ok(answers)
}

fn too_long() -> Error {
    limits::hit("idempotency_key_bytes");
    Error::Conflict(format!("an Idempotency-Key has at most {} bytes", limits::KEY_BYTES))
}

/// What is kept for a key.
enum Kept {
    Told { body_hash: Vec<u8>, answer: String },
    Damaged,
}

/// Names all of a row.
fn digest(account: i64, key: &str, body_hash: &[u8], answer: &str, expires: i64) -> Vec<u8> {
    let (account, expires) = (account.to_le_bytes(), expires.to_le_bytes());
    let fields: [&[u8]; 5] = [&account, key.as_bytes(), body_hash, answer.as_bytes(), &expires];
    digests::of("floe records 1 idempotency key row", fields.map(Some))
}

/// Forgets some keys that have expired, as many for each request with a key that more go than come.
async fn purge(tx: &mut Tx, asked: usize) -> Result<(), Error> {
    if asked == 0 {
        return Ok(());
    }
    sqlx::query(
        "DELETE FROM idempotency_keys WHERE (account, key) IN \
         (SELECT account, key FROM idempotency_keys WHERE expires <= $1 ORDER BY expires LIMIT $2)",
    )
    .bind(db(tx.now.as_millis()))
    .bind(limits::KEYS_PURGED * db(asked as u64))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

/// Finds the hashes and answers of these keys.
async fn look_up(
    conn: &mut SqliteConnection,
    now: Timestamp,
    asked: &[(i64, &str)],
) -> Result<HashMap<(i64, String), Kept>, Error> {
    let mut kept = HashMap::new();
    let now = db(now.as_millis());
    for some in asked.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new(
            "SELECT account, key, body_hash, answer, expires, digest FROM idempotency_keys WHERE expires > ",
        );
        sql.push_bind(now).push(" AND (");
        let mut either = sql.separated(" OR ");
        for (account, key) in some {
            either.push("(account = ").push_bind_unseparated(*account);
            either.push_unseparated(" AND key = ").push_bind_unseparated(*key).push_unseparated(")");
        }
        sql.push(")");
        let rows: Vec<Row> = sql.build_query_as().fetch_all(&mut *conn).await?;
        kept.extend(rows.into_iter().map(|(account, key, body_hash, answer, expires, stored)| {
            let now = || digest(account, &key, &body_hash, &answer, expires);
            let is_intact = digests::holds(stored.as_deref(), now);
            ((account, key), if is_intact { Kept::Told { body_hash, answer } } else { Kept::Damaged })
        }));
    }
    Ok(kept)
}

/// Account, key, the hash of the body, the answer, when it expires, and the digest.
type Row = (i64, String, Vec<u8>, String, i64, Option<Vec<u8>>);

/// The pins of an answer, as they are now. Pins removed since are shown as they were made: the client asks what it was
/// told then.
async fn repeat(conn: &mut SqliteConnection, request: &Add, answer: &str) -> Result<Vec<PinRow>, Error> {
    let made: Vec<(Uuid, u64, Uuid)> = serde_json::from_str(answer).map_err(|error| {
        Error::Damaged(format!("the answer kept for an Idempotency-Key is damaged: {error}"))
    })?;
    let mut rows = Vec::with_capacity(made.len());
    for ((id, created, dag), spec) in made.into_iter().zip(&request.specs) {
        rows.push(match change::load(&mut *conn, request.account, id).await {
            Ok(pin) => pin.into_row()?,
            Err(Error::NotFound) => PinRow {
                id: RequestId(id),
                account: AccountId(request.account),
                spec: spec.clone(),
                status: PinStatus::Queued,
                created: Timestamp::from_millis(created),
                dag,
                reason: None,
                local_request: request.local_request,
                progress: DagProgress::default(),
            },
            Err(error) => return Err(error),
        });
    }
    Ok(rows)
}

/// An answer that is to be kept.
pub(super) struct Answer {
    account: i64,
    key: IdempotencyKey,
    /// Id, moment and DAG of each pin, as JSON.
    made: String,
}

/// What is to be kept of an answer, if its request has a key.
pub(super) fn kept(request: &Add, rows: &[PinRow]) -> Result<Option<Answer>, Error> {
    let Some(key) = &request.key else { return Ok(None) };
    let made: Vec<(Uuid, u64, Uuid)> =
        rows.iter().map(|row| (row.id.0, row.created.as_millis(), row.dag)).collect();
    Ok(Some(Answer { account: request.account, key: key.clone(), made: json(&made)? }))
}

/// Keeps answers, each of another key.
pub(super) async fn remember(tx: &mut Tx, answers: &[Answer]) -> Result<(), Error> {
    let expires = db(tx.now.after(limits::KEY_KEPT).as_millis());
    for some in answers.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new(
            "INSERT INTO idempotency_keys (account, key, body_hash, answer, expires, digest) ",
        );
        sql.push_values(some, |mut row, answer| {
            row.push_bind(answer.account).push_bind(&answer.key.key);
            row.push_bind(answer.key.body_hash.to_vec()).push_bind(&answer.made).push_bind(expires);
            let IdempotencyKey { key, body_hash } = &answer.key;
            row.push_bind(digest(answer.account, key, body_hash, &answer.made, expires));
        });
        // An expired answer may still be there: only so many are purged at a time.
        sql.push(
            " ON CONFLICT (account, key) DO UPDATE SET body_hash = excluded.body_hash, \
             answer = excluded.answer, expires = excluded.expires, digest = excluded.digest",
        );
        sql.build().execute(&mut tx.conn).await?;
    }
    Ok(())
}

/// Text of a value that is kept as JSON.
pub(super) fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Sql(error.to_string()))
}
