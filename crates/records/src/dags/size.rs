//! What a complete DAG holds, and its digest: clients are told of it, and accounts are charged by it.
//!
//! A DAG that is being fetched has none: what it holds changes, and is written anew when it is complete.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::COMPLETE;
use crate::pins::row::{db, key, uuid_of};
use crate::writer::Tx;
use crate::{Error, digests, limits};

/// Names a DAG, its root and what it holds.
pub(crate) fn digest(dag: &[u8], root: &[u8], blocks: i64, bytes: i64) -> Vec<u8> {
    let (blocks, bytes) = (blocks.to_le_bytes(), bytes.to_le_bytes());
    digests::of(
        "floe records 1 complete DAG row",
        [Some(dag), Some(root), Some(&blocks[..]), Some(&bytes[..])],
    )
}

/// Id, root, blocks, bytes and digest.
type Row = (Vec<u8>, Vec<u8>, i64, i64, Option<Vec<u8>>);

fn is_whole((dag, root, blocks, bytes, stored): &Row) -> bool {
    digests::holds(stored.as_deref(), || digest(dag, root, *blocks, *bytes))
}

/// The bytes of a complete DAG. Where its row is damaged, what its pins were charged when it was not.
pub(super) async fn bytes(conn: &mut SqliteConnection, dag: Uuid) -> Result<i64, Error> {
    let row: Row = sqlx::query_as("SELECT id, root, blocks, bytes, digest FROM dags WHERE id = $1")
        .bind(key(dag))
        .fetch_one(&mut *conn)
        .await?;
    if is_whole(&row) {
        return Ok(row.3);
    }
    tracing::error!(%dag, "what DAG {dag} holds is damaged: its pins say what they were charged");
    let charged: Option<i64> =
        sqlx::query_scalar("SELECT MAX(charged) FROM pins WHERE dag = $1 AND status = 2")
            .bind(key(dag))
            .fetch_one(conn)
            .await?;
    Ok(charged.unwrap_or_default())
}

/// Checks the complete DAGs after this id, as many as one read may have: those whose row is damaged, and the last that
/// was looked at, if there are more.
pub(crate) async fn check_sizes(
    conn: &mut SqliteConnection,
    after: &[u8],
) -> Result<(Vec<Uuid>, Option<Vec<u8>>), Error> {
    let rows: Vec<Row> = sqlx::query_as(
        "SELECT id, root, blocks, bytes, digest FROM dags WHERE id > $1 AND state = $2 ORDER BY id LIMIT $3",
    )
    .bind(after)
    .bind(COMPLETE)
    .bind(limits::SCAN_STEP)
    .fetch_all(conn)
    .await?;
    let damaged = rows.iter().filter(|row| !is_whole(row)).map(|row| uuid_of(row.0.clone())).collect();
    let more = db(rows.len() as u64) == limits::SCAN_STEP;
    // A damaged index would else be walked round and round.
    let last = rows.last().map(|row| row.0.clone()).filter(|last| more && last.as_slice() > after);
    Ok((damaged, last))
}

/// Writes again what a complete DAG holds, by one who knows. Whether it was complete.
pub(crate) async fn mend(tx: &mut Tx, dag: Uuid, blocks: u64, bytes: u64) -> Result<bool, Error> {
    let root: Option<Vec<u8>> = sqlx::query_scalar("SELECT root FROM dags WHERE id = $1 AND state = $2")
        .bind(key(dag))
        .bind(COMPLETE)
        .fetch_optional(&mut tx.conn)
        .await?;
    let Some(root) = root else { return Ok(false) };
    sqlx::query("UPDATE dags SET blocks = $2, bytes = $3, digest = $4 WHERE id = $1")
        .bind(key(dag))
        .bind(db(blocks))
        .bind(db(bytes))
        .bind(digest(&key(dag), &root, db(blocks), db(bytes)))
        .execute(&mut tx.conn)
        .await?;
    Ok(true)
}

/// The part of the migration that added the digests.
pub(crate) async fn seal_all(conn: &mut SqliteConnection) -> Result<(), Error> {
    let mut after = Some(Vec::new());
    while let Some(from) = after {
        let rows: Vec<(Vec<u8>, Vec<u8>, i64, i64)> = sqlx::query_as(
            "SELECT id, root, blocks, bytes FROM dags WHERE id > $1 AND state = $2 ORDER BY id LIMIT $3",
        )
        .bind(from)
        .bind(COMPLETE)
        .bind(limits::SCAN_STEP)
        .fetch_all(&mut *conn)
        .await?;
        for (dag, root, blocks, bytes) in &rows {
            sqlx::query("UPDATE dags SET digest = $2 WHERE id = $1")
                .bind(dag)
                .bind(digest(dag, root, *blocks, *bytes))
                .execute(&mut *conn)
                .await?;
        }
        after = rows.into_iter().last().map(|(dag, ..)| dag);
    }
    Ok(())
}
