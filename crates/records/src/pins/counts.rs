//! How many pins there are: counters that every change of a pin takes with it, in its own transaction.
//!
//! Each pin is counted four times: for all accounts, for its account, and for its account in a long and in a short
//! stretch of time. So "how many were made before this moment" is the sum of some long stretches, some short ones,
//! and the pins of one short stretch counted by index, and half of ten million pins are counted like half of ten
//! thousand.
//!
//! A crash takes a counter back together with the change that it counts. `floe verify` compares all of them with
//! the pins ([`crate::verify`]).

use std::collections::BTreeMap;

use floe_core::PinStatus;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::row::{code, db, num};
use crate::{Error, limits};

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

/// What is to be added to the counters, each of them once however many pins change it.
#[derive(Debug, Default)]
pub(crate) struct Changes(BTreeMap<Counter, [i64; 4]>);

/// Account, width, start.
type Counter = (i64, i64, i64);

impl Changes {
    /// `pins` queued pins came, the first made at `first` and each a millisecond after the one before.
    pub(crate) fn added(&mut self, account: i64, first: i64, pins: usize) {
        let end = first + db(pins as u64);
        let mut from = first;
        while from < end {
            let to = end.min(from - from % SHORT + SHORT);
            self.add(account, from, PinStatus::Queued, to - from);
            from = to;
        }
    }

    fn add(&mut self, account: i64, created: i64, status: PinStatus, pins: i64) {
        for counter in counters(account, created) {
            let by = self.0.entry(counter).or_default();
            for (n, _) in by.iter_mut().zip(PinStatus::ALL).filter(|(_, of)| *of == status) {
                *n += pins;
            }
        }
    }

    /// Writes them.
    pub(crate) async fn write(self, conn: &mut SqliteConnection) -> Result<(), Error> {
        let changes: Vec<_> = self.0.into_iter().collect();
        for some in changes.chunks(limits::ROWS_PER_STATEMENT) {
            let mut sql = QueryBuilder::new(
                "INSERT INTO counts (account, width, start, queued, pinning, pinned, failed) ",
            );
            sql.push_values(some, |mut row, ((account, width, start), by)| {
                row.push_bind(*account).push_bind(*width).push_bind(*start);
                by.iter().for_each(|pins| {
                    row.push_bind(*pins);
                });
            });
            sql.push(
                " ON CONFLICT (account, width, start) DO UPDATE SET \
                 queued = counts.queued + excluded.queued, pinning = counts.pinning + excluded.pinning, \
                 pinned = counts.pinned + excluded.pinned, failed = counts.failed + excluded.failed",
            );
            sql.build().execute(&mut *conn).await?;
        }
        Ok(())
    }
}

/// The four that a pin is counted in.
fn counters(account: i64, created: i64) -> [Counter; 4] {
    [
        (EVERYBODY, EVER, 0),
        (account, EVER, 0),
        (account, SHORT, created - created % SHORT),
        (account, LONG, created - created % LONG),
    ]
}

/// A pin took a step.
pub(crate) async fn moved(
    conn: &mut SqliteConnection,
    account: i64,
    created: i64,
    from: PinStatus,
    to: PinStatus,
) -> Result<(), Error> {
    let mut changes = Changes::default();
    changes.add(account, created, from, -1);
    changes.add(account, created, to, 1);
    changes.write(conn).await
}

/// A pin went. A stretch that is empty goes with its last pin, so that there are never more stretches than pins.
pub(crate) async fn removed(
    conn: &mut SqliteConnection,
    account: i64,
    created: i64,
    status: PinStatus,
) -> Result<(), Error> {
    let mut changes = Changes::default();
    changes.add(account, created, status, -1);
    changes.write(conn).await?;
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
