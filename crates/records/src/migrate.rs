//! Schema versions: embedded, forward only, each step in one transaction with its number.
//!
//! A crash inside a step leaves the step before it. A file of a newer Floe is refused untouched, and so is one
//! that is not ours: a database with tables but without `floe_schema` belongs to someone else.

use sqlx::{Connection, Row, SqliteConnection};

use crate::{Error, digests};

const STEPS: &[&str] = &[
    include_str!("../migrations/0001_rows.sql"),
    include_str!("../migrations/0002_counts.sql"),
    include_str!("../migrations/0003_searched.sql"),
    include_str!("../migrations/0004_policies.sql"),
    include_str!("../migrations/0005_aggregates.sql"),
    include_str!("../migrations/0006_deals.sql"),
    include_str!("../migrations/0007_messages.sql"),
    include_str!("../migrations/0008_digests.sql"),
    include_str!("../migrations/0009_key_digests.sql"),
];

/// The step that adds digests to rows that are there already: SQL alone cannot make them.
const DIGESTS: i64 = 8;

/// Brings the schema up to date.
pub(crate) async fn migrate(conn: &mut SqliteConnection) -> Result<(), Error> {
    migrate_with(conn, STEPS).await
}

/// Refuses a file that is newer or not ours, without writing to it. Returns its version, 0 for an empty one.
pub(crate) async fn check(conn: &mut SqliteConnection) -> Result<i64, Error> {
    refuse_newer(version(conn).await?, STEPS.len())
}

fn refuse_newer(found: i64, steps: usize) -> Result<i64, Error> {
    let known = i64::try_from(steps).expect("few steps");
    if found > known { Err(Error::Newer { found, known }) } else { Ok(found) }
}

async fn migrate_with(conn: &mut SqliteConnection, steps: &[&'static str]) -> Result<(), Error> {
    let found = refuse_newer(version(conn).await?, steps.len())?;
    for (number, step) in (1..).zip(steps).filter(|(number, _)| *number > found) {
        let mut tx = conn.begin_with("BEGIN IMMEDIATE").await?;
        if number == 1 {
            sqlx::raw_sql("CREATE TABLE floe_schema (version BIGINT NOT NULL PRIMARY KEY)")
                .execute(&mut *tx)
                .await?;
        }
        sqlx::raw_sql(*step).execute(&mut *tx).await?;
        if number == DIGESTS {
            digests::fill(&mut tx).await?;
        }
        sqlx::query("INSERT INTO floe_schema (version) VALUES ($1)").bind(number).execute(&mut *tx).await?;
        fail::fail_point!("migrate.step");
        tx.commit().await?;
    }
    Ok(())
}

/// The version in the file; 0 for an empty one.
async fn version(conn: &mut SqliteConnection) -> Result<i64, Error> {
    let tables =
        sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table'").fetch_all(&mut *conn).await?;
    let names: Vec<String> = tables.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if names.is_empty() {
        return Ok(0);
    }
    if !names.iter().any(|name| name == "floe_schema") {
        return Err(Error::Damaged(format!(
            "the database is not Floe's (it has the table {:?}): choose another data directory",
            names[0]
        )));
    }
    let found: Option<i64> =
        sqlx::query_scalar("SELECT MAX(version) FROM floe_schema").fetch_one(&mut *conn).await?;
    found.ok_or_else(|| {
        Error::Damaged("floe_schema names no version: restore the database from a backup".into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn memory() -> SqliteConnection {
        SqliteConnection::connect("sqlite::memory:").await.unwrap()
    }

    #[tokio::test]
    async fn migrating_twice_is_migrating_once() {
        let mut conn = memory().await;
        migrate(&mut conn).await.unwrap();
        migrate(&mut conn).await.unwrap();
        assert_eq!(version(&mut conn).await.unwrap(), STEPS.len() as i64);
    }

    /// Pins of two accounts on both sides of the edges of stretches; what `counts` must hold is counted by hand.
    #[tokio::test]
    async fn r09_the_counters_of_an_older_file_are_made_from_its_pins() {
        let mut conn = memory().await;
        migrate_with(&mut conn, &STEPS[..1]).await.unwrap();
        let pins = [(1, 16_383, 0), (1, 16_384, 2), (1, 16_385, 2), (1, 33_554_432, 3), (2, 33_554_431, 1)];
        sqlx::raw_sql("PRAGMA foreign_keys = OFF").execute(&mut conn).await.unwrap();
        for (account, created, status) in pins {
            sqlx::query(
                "INSERT INTO pins VALUES (randomblob(16), $1, $2, $3, '', x'', NULL, NULL, '', '', 0, x'', NULL, 0, 0, x'')",
            )
            .bind(account)
            .bind(created)
            .bind(status)
            .execute(&mut conn)
            .await
            .unwrap();
        }
        migrate(&mut conn).await.unwrap();
        type Row = (i64, i64, i64, i64, i64, i64, i64);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT account, width, start, queued, pinning, pinned, failed FROM counts ORDER BY account, width, start",
        )
        .fetch_all(&mut conn)
        .await
        .unwrap();
        use crate::pins::counts::{LONG, SHORT};
        let want = [
            (0, 0, 0, 1, 1, 2, 1),
            (1, 0, 0, 1, 0, 2, 1),
            (1, SHORT, 0, 1, 0, 0, 0),
            (1, SHORT, SHORT, 0, 0, 2, 0),
            (1, SHORT, LONG, 0, 0, 0, 1),
            (1, LONG, 0, 1, 0, 2, 0),
            (1, LONG, LONG, 0, 0, 0, 1),
            (2, 0, 0, 0, 1, 0, 0),
            (2, SHORT, LONG - SHORT, 0, 1, 0, 0),
            (2, LONG, 0, 0, 1, 0, 0),
        ];
        assert_eq!(rows, want);
    }

    #[tokio::test]
    async fn r10_a_newer_schema_is_refused() {
        let mut conn = memory().await;
        migrate(&mut conn).await.unwrap();
        let known = STEPS.len() as i64;
        let newer = known + 1;
        sqlx::query("INSERT INTO floe_schema VALUES ($1)").bind(newer).execute(&mut conn).await.unwrap();
        let refused = migrate(&mut conn).await.unwrap_err();
        assert!(matches!(refused, Error::Newer { found, known: k } if (found, k) == (newer, known)));
    }

    #[tokio::test]
    async fn r10_a_foreign_database_is_refused() {
        let mut conn = memory().await;
        sqlx::raw_sql("CREATE TABLE theirs (x)").execute(&mut conn).await.unwrap();
        assert!(matches!(migrate(&mut conn).await, Err(Error::Damaged(_))));
    }

    #[tokio::test]
    async fn r09_a_step_that_fails_leaves_the_one_before() {
        let mut conn = memory().await;
        let broken = [STEPS[0], "CREATE TABLE half (x BIGINT); SELECT nonsense;"];
        migrate_with(&mut conn, &broken).await.unwrap_err();
        assert_eq!(version(&mut conn).await.unwrap(), 1);
        let half: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE name = 'half'")
            .fetch_one(&mut conn)
            .await
            .unwrap();
        assert_eq!(half, 0);
    }
}
