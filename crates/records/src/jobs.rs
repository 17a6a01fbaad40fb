//! The outbox: what follows from a change, written in its transaction and done by the engine at least once.

use std::collections::BTreeSet;

use floe_core::cid;
use sqlx::SqliteConnection;
use uuid::Uuid;

use crate::pins::row::{db, intact, uuid_of};
use crate::{Error, Job, digests};

pub(crate) const ANNOUNCE: i64 = 0;
pub(crate) const UNANNOUNCE: i64 = 1;
pub(crate) const RELEASE: i64 = 2;

/// Queues a job behind all others.
pub(crate) async fn queue(conn: &mut SqliteConnection, kind: i64, payload: Vec<u8>) -> Result<(), Error> {
    let id = next_id(conn, "job").await?;
    let digest = digest(id, kind, &payload);
    sqlx::query("INSERT INTO jobs (id, kind, payload, digest) VALUES ($1, $2, $3, $4)")
        .bind(id)
        .bind(kind)
        .bind(payload)
        .bind(digest)
        .execute(conn)
        .await?;
    Ok(())
}

/// The next number of a sequence. Never used twice, also when its row is deleted: a late [`done`] must not hit
/// another job.
pub(crate) async fn next_id(conn: &mut SqliteConnection, sequence: &str) -> Result<i64, Error> {
    let id = sqlx::query_scalar("UPDATE sequences SET value = value + 1 WHERE name = $1 RETURNING value")
        .bind(sequence)
        .fetch_one(conn)
        .await?;
    Ok(id)
}

/// The first jobs in order.
pub(crate) async fn first(conn: &mut SqliteConnection, most: usize) -> Result<Vec<(i64, Job)>, Error> {
    let rows: Vec<Row> = sqlx::query_as("SELECT id, kind, payload, digest FROM jobs ORDER BY id LIMIT $1")
        .bind(db(most as u64))
        .fetch_all(conn)
        .await?;
    // One that is damaged holds up no other; `floe verify` names it.
    Ok(rows.into_iter().filter_map(|row| Some((row.0, intact(read(row))?))).collect())
}

/// What is wrong with the jobs that are damaged.
pub(crate) async fn damaged(conn: &mut SqliteConnection) -> Result<Vec<String>, Error> {
    let rows: Vec<Row> =
        sqlx::query_as("SELECT id, kind, payload, digest FROM jobs ORDER BY id").fetch_all(conn).await?;
    Ok(rows.into_iter().filter_map(|row| read(row).err()).map(|error| error.to_string()).collect())
}

/// Id, kind, payload and digest.
type Row = (i64, i64, Vec<u8>, Option<Vec<u8>>);

fn digest(id: i64, kind: i64, payload: &[u8]) -> Vec<u8> {
    let (id, kind) = (id.to_le_bytes(), kind.to_le_bytes());
    digests::of("floe records 1 job row", [Some(&id[..]), Some(&kind[..]), Some(payload)])
}

fn read((id, kind, payload, stored): Row) -> Result<Job, Error> {
    if !digests::holds(stored.as_deref(), || digest(id, kind, &payload)) {
        return Err(Error::Damaged(format!("job {id} is damaged")));
    }
    let root = || {
        cid::parse_bytes(&payload).map_err(|error| Error::Damaged(format!("job {id} is damaged: {error}")))
    };
    match kind {
        ANNOUNCE => Ok(Job::Announce(root()?)),
        UNANNOUNCE => Ok(Job::Unannounce(root()?)),
        RELEASE => Uuid::from_slice(&payload)
            .map(Job::Release)
            .map_err(|error| Error::Damaged(format!("job {id} is damaged: {error}"))),
        kind => Err(Error::Damaged(format!("job {id} is of the unknown kind {kind}"))),
    }
}

/// The part of the migration that added the digests.
pub(crate) async fn seal_all(conn: &mut SqliteConnection) -> Result<(), Error> {
    let rows: Vec<(i64, i64, Vec<u8>)> =
        sqlx::query_as("SELECT id, kind, payload FROM jobs").fetch_all(&mut *conn).await?;
    for (id, kind, payload) in rows {
        sqlx::query("UPDATE jobs SET digest = $2 WHERE id = $1")
            .bind(id)
            .bind(digest(id, kind, &payload))
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

/// The DAGs whose release is queued.
pub(crate) async fn releases(conn: &mut SqliteConnection) -> Result<BTreeSet<Uuid>, Error> {
    let dags: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT payload FROM jobs WHERE kind = $1").bind(RELEASE).fetch_all(conn).await?;
    Ok(dags.into_iter().map(uuid_of).collect())
}

/// Removes a job. One that is gone is no error.
pub(crate) async fn done(conn: &mut SqliteConnection, id: i64) -> Result<(), Error> {
    sqlx::query("DELETE FROM jobs WHERE id = $1").bind(id).execute(conn).await?;
    Ok(())
}
