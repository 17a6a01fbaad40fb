//! How many pins there are: counters that every change of a pin takes with it, in its own transaction.
//!
//! Each pin is counted four times: for all accounts, for its account, and for its account in a long and in a short
//! stretch of time. So "how many were made before this moment" is the sum of some long stretches, some short ones,
//! and the pins of one short stretch counted by index, and half of ten million pins are counted like half of ten
//! thousand.
//!
//! A crash takes a counter back together with the change that it counts. `floe verify` compares all of them with
//! the pins ([`crate::verify`]).

use floe_core::PinStatus;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::row::{code, db, num};
use crate::Error;

/// A short stretch, in milliseconds: about 16 s. It is what a count reads pin by pin, at most this many, because an
/// account makes a pin a millisecond. Half would be twice the rows to keep, double twice the pins to read.
pub(crate) const SHORT: i64 = 1 << 14;
/// A long stretch: about 9 h, or 2,048 short ones. A count reads a thousand of these a year and up to 2,048 short
/// ones: double or half moves work from one to the other.
pub(crate) const LONG: i64 = 1 << 25;
/// The width of the row that counts all time.
const EVER: i64 = 0;
/// The account whose row counts all accounts.
pub(crate) const EVERYBODY: i64 = 0;

/// Pins to add to each status.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    queued: i64,
    pinning: i64,
    pinned: i64,
    failed: i64,
}

impl Change {
    fn with(mut self, status: PinStatus, pins: i64) -> Self {
        match status {
            PinStatus::Queued => self.queued += pins,
            PinStatus::Pinning => self.pinning += pins,
            PinStatus::Pinned => self.pinned += pins,
            PinStatus::Failed => self.failed += pins,
        }
        self
    }
}

/// `pins` queued pins came, the first made at `first` and each a millisecond after the one before.
pub(crate) async fn added(
    conn: &mut SqliteConnection,
    account: i64,
    first: i64,
    pins: usize,
) -> Result<(), Error> {
    let end = first + db(pins as u64);
    let mut from = first;
    while from < end {
        let to = end.min(from - from % SHORT + SHORT);
        let came = Change::default().with(PinStatus::Queued, to - from);
        change(conn, account, from, came).await?;
        from = to;
    }
    Ok(())
}

/// A pin took a step.
pub(crate) async fn moved(
    conn: &mut SqliteConnection,
    account: i64,
    created: i64,
    from: PinStatus,
    to: PinStatus,
) -> Result<(), Error> {
    change(conn, account, created, Change::default().with(from, -1).with(to, 1)).await
}

/// A pin went. A stretch that is empty goes with its last pin, so that there are never more stretches than pins.
pub(crate) async fn removed(
    conn: &mut SqliteConnection,
    account: i64,
    created: i64,
    status: PinStatus,
) -> Result<(), Error> {
    change(conn, account, created, Change::default().with(status, -1)).await?;
    sqlx::query(
        "DELETE FROM counts WHERE account = $1 AND ((width = $2 AND start = $3) OR (width = $4 AND start = $5)) \
         AND queued + pinning + pinned + failed = 0",
    )
    .bind(account)
    .bind(SHORT)
    .bind(created - created % SHORT)
    .bind(LONG)
    .bind(created - created % LONG)
    .execute(conn)
    .await?;
    Ok(())
}

async fn change(conn: &mut SqliteConnection, account: i64, created: i64, by: Change) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO counts (account, width, start, queued, pinning, pinned, failed) VALUES \
         (0, 0, 0, $6, $7, $8, $9), ($1, 0, 0, $6, $7, $8, $9), \
         ($1, $2, $3, $6, $7, $8, $9), ($1, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (account, width, start) DO UPDATE SET \
         queued = counts.queued + excluded.queued, pinning = counts.pinning + excluded.pinning, \
         pinned = counts.pinned + excluded.pinned, failed = counts.failed + excluded.failed",
    )
    .bind(account)
    .bind(SHORT)
    .bind(created - created % SHORT)
    .bind(LONG)
    .bind(created - created % LONG)
    .bind(by.queued)
    .bind(by.pinning)
    .bind(by.pinned)
    .bind(by.failed)
    .execute(conn)
    .await?;
    Ok(())
}

/// Pins of an account, or of [`EVERYBODY`], by status in the order of [`PinStatus::ALL`].
pub(crate) async fn ever(conn: &mut SqliteConnection, account: i64) -> Result<[u64; 4], Error> {
    let row: Option<(i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT queued, pinning, pinned, failed FROM counts WHERE account = $1 AND width = 0 AND start = 0",
    )
    .bind(account)
    .fetch_optional(conn)
    .await?;
    let (queued, pinning, pinned, failed) = row.unwrap_or_default();
    Ok([queued, pinning, pinned, failed].map(num))
}

/// How many pins of these statuses were made after `after` and before `before`, both strictly.
pub(crate) async fn between(
    conn: &mut SqliteConnection,
    account: i64,
    statuses: &[PinStatus],
    after: Option<i64>,
    before: Option<i64>,
) -> Result<u64, Error> {
    let until = match before {
        Some(before) => earlier(conn, account, statuses, before).await?,
        None => stretches(conn, account, statuses, None).await?,
    };
    let too_early = match after {
        Some(after) => earlier(conn, account, statuses, after.saturating_add(1)).await?,
        None => 0,
    };
    // Where `before` is not behind `after`, nothing is between them.
    Ok(num(until - too_early))
}

/// How many were made before `moment`.
async fn earlier(
    conn: &mut SqliteConnection,
    account: i64,
    statuses: &[PinStatus],
    moment: i64,
) -> Result<i64, Error> {
    let whole = stretches(conn, account, statuses, Some(moment)).await?;
    let mut sql = QueryBuilder::new("SELECT CAST(SUM(n) AS BIGINT) FROM (");
    for (i, status) in statuses.iter().enumerate() {
        sql.push(if i > 0 { " UNION ALL " } else { "" });
        sql.push("SELECT COUNT(*) AS n FROM pins WHERE account = ").push_bind(account);
        sql.push(" AND status = ").push_bind(code(*status));
        sql.push(" AND created >= ").push_bind(moment - moment % SHORT);
        sql.push(" AND created < ").push_bind(moment);
    }
    sql.push(") edge");
    let edge: i64 = sql.build_query_scalar().fetch_one(conn).await?;
    Ok(whole + edge)
}

/// The sum of the stretches that end by `until`, or of all time.
async fn stretches(
    conn: &mut SqliteConnection,
    account: i64,
    statuses: &[PinStatus],
    until: Option<i64>,
) -> Result<i64, Error> {
    let mut sql = QueryBuilder::new("SELECT CAST(COALESCE(SUM(n), 0) AS BIGINT) FROM (");
    let ranges = match until {
        None => vec![(EVER, 0, 1)],
        Some(until) => {
            let (long, short) = (until - until % LONG, until - until % SHORT);
            vec![(LONG, 0, long), (SHORT, long, short)]
        }
    };
    for (i, (width, from, to)) in ranges.into_iter().enumerate() {
        sql.push(if i > 0 { " UNION ALL SELECT " } else { "SELECT " });
        columns(&mut sql, statuses);
        sql.push(" AS n FROM counts WHERE account = ").push_bind(account);
        sql.push(" AND width = ").push_bind(width);
        sql.push(" AND start >= ").push_bind(from);
        sql.push(" AND start < ").push_bind(to);
    }
    sql.push(") stretches");
    Ok(sql.build_query_scalar().fetch_one(conn).await?)
}

fn columns(sql: &mut QueryBuilder<Sqlite>, statuses: &[PinStatus]) {
    for (i, status) in statuses.iter().enumerate() {
        sql.push(if i > 0 { " + " } else { "" }).push(match status {
            PinStatus::Queued => "queued",
            PinStatus::Pinning => "pinning",
            PinStatus::Pinned => "pinned",
            PinStatus::Failed => "failed",
        });
    }
}
