//! `floe verify`: the whole database against itself.
//!
//! `integrity_check` for the pages, the digests for the rows that matter, and every sum recomputed from what it
//! sums. It reads in one snapshot where sums are compared, so run it on a stopped node or accept a longer WAL.

use sqlx::{Row, SqliteConnection};

use crate::pins::row::{Stored, select_pins, uuid_of};
use crate::{Error, RowsReport, jobs, limits, tokens};

/// Sums that must agree: what is compared, and a statement whose rows are the disagreements.
const SUMS: [(&str, &str); 5] = [
    (
        "the counters of an account",
        "SELECT 'account ' || a.id FROM accounts a LEFT JOIN counts c ON c.account = a.id AND c.width = 0 WHERE \
         COALESCE(c.queued, 0) <> (SELECT COUNT(*) FROM pins p WHERE p.account = a.id AND p.status = 0) OR \
         COALESCE(c.pinning, 0) <> (SELECT COUNT(*) FROM pins p WHERE p.account = a.id AND p.status = 1) OR \
         COALESCE(c.pinned, 0) <> (SELECT COUNT(*) FROM pins p WHERE p.account = a.id AND p.status = 2) OR \
         COALESCE(c.failed, 0) <> (SELECT COUNT(*) FROM pins p WHERE p.account = a.id AND p.status = 3)",
    ),
    (
        "the counters of a stretch of time",
        "SELECT 'account ' || c.account || ', ' || c.width || ' ms from ' || c.start FROM counts c WHERE c.width > 0 AND ( \
         c.queued <> (SELECT COUNT(*) FROM pins p WHERE p.account = c.account AND p.status = 0 \
                      AND p.created >= c.start AND p.created < c.start + c.width) OR \
         c.pinning <> (SELECT COUNT(*) FROM pins p WHERE p.account = c.account AND p.status = 1 \
                       AND p.created >= c.start AND p.created < c.start + c.width) OR \
         c.pinned <> (SELECT COUNT(*) FROM pins p WHERE p.account = c.account AND p.status = 2 \
                      AND p.created >= c.start AND p.created < c.start + c.width) OR \
         c.failed <> (SELECT COUNT(*) FROM pins p WHERE p.account = c.account AND p.status = 3 \
                      AND p.created >= c.start AND p.created < c.start + c.width))",
    ),
    (
        "the sum of an account's counters of short or long stretches, or of all accounts' counters",
        "SELECT 'account ' || t.account || ', ' || t.width || ' ms' FROM \
         (SELECT e.account, w.width, e.queued, e.pinning, e.pinned, e.failed FROM counts e, \
          (SELECT 16384 AS width UNION SELECT 33554432) w WHERE e.width = 0 AND e.account > 0 \
          UNION ALL SELECT account, width, queued, pinning, pinned, failed FROM counts WHERE account = 0) t \
         LEFT JOIN (SELECT account, width, SUM(queued) AS queued, SUM(pinning) AS pinning, SUM(pinned) AS pinned, \
                    SUM(failed) AS failed FROM counts WHERE width > 0 GROUP BY account, width \
                    UNION ALL SELECT 0, 0, SUM(queued), SUM(pinning), SUM(pinned), SUM(failed) FROM counts \
                    WHERE width = 0 AND account > 0) s ON s.account = t.account AND s.width = t.width \
         WHERE t.queued <> COALESCE(s.queued, 0) OR t.pinning <> COALESCE(s.pinning, 0) \
         OR t.pinned <> COALESCE(s.pinned, 0) OR t.failed <> COALESCE(s.failed, 0)",
    ),
    (
        "the bytes an account uses",
        "SELECT 'account ' || a.id FROM accounts a WHERE a.used_bytes <> \
         (SELECT COALESCE(SUM(p.charged), 0) FROM pins p WHERE p.account = a.id)",
    ),
    (
        "the pins an account uses",
        "SELECT 'account ' || a.id FROM accounts a WHERE a.used_pins <> \
         (SELECT COUNT(*) FROM pins p WHERE p.account = a.id AND p.status <> 3)",
    ),
];

/// What must hold for each DAG, and a statement whose rows are the ids of those for which it does not.
const DAGS: [(&str, &str); 3] = [
    (
        "the references of a DAG",
        "SELECT d.id FROM dags d WHERE d.refs <> \
         (SELECT COUNT(*) FROM pins p WHERE p.dag = d.id AND p.status <> 3) + \
         (SELECT COUNT(*) FROM keeps k WHERE k.dag = d.id)",
    ),
    (
        "a waiting pin whose DAG is not waiting, claimed or about to be settled",
        "SELECT d.id FROM dags d WHERE EXISTS \
         (SELECT 1 FROM pins p WHERE p.dag = d.id AND p.status IN (0, 1)) AND d.state <> 1 \
         AND NOT EXISTS (SELECT 1 FROM waits w WHERE w.dag = d.id AND d.state = 0) \
         AND NOT EXISTS (SELECT 1 FROM settles s WHERE s.dag = d.id AND d.state = 2)",
    ),
    (
        "a pinned pin whose DAG is not complete",
        "SELECT d.id FROM dags d WHERE d.state <> 2 AND EXISTS \
         (SELECT 1 FROM pins p WHERE p.dag = d.id AND p.status = 2)",
    ),
];

/// Checks everything; findings are reported, not returned as errors.
pub(crate) async fn verify(conn: &mut SqliteConnection) -> Result<RowsReport, Error> {
    let mut report = RowsReport::default();
    let pages = sqlx::query("PRAGMA integrity_check").fetch_all(&mut *conn).await?;
    for row in &pages {
        let line: String = row.try_get(0)?;
        if line != "ok" {
            find(&mut report, format!("integrity_check: {line}"));
        }
    }
    check_pins(conn, &mut report).await?;
    for row in sqlx::query("SELECT * FROM tokens").fetch_all(&mut *conn).await? {
        report.tokens += 1;
        if let Err(error) = tokens::read(&row) {
            find(&mut report, error.to_string());
        }
    }
    jobs::damaged(&mut *conn).await?.into_iter().for_each(|finding| find(&mut report, finding));
    for (what, statement) in SUMS {
        let wrong: Vec<String> = sqlx::query_scalar(statement).fetch_all(&mut *conn).await?;
        wrong.into_iter().for_each(|which| find(&mut report, format!("{what} is wrong: {which}")));
    }
    for (what, statement) in DAGS {
        let wrong: Vec<Vec<u8>> = sqlx::query_scalar(statement).fetch_all(&mut *conn).await?;
        wrong.into_iter().for_each(|id| find(&mut report, format!("{what} is wrong: dag {}", uuid_of(id))));
    }
    Ok(report)
}

async fn check_pins(conn: &mut SqliteConnection, report: &mut RowsReport) -> Result<(), Error> {
    let mut last: Vec<u8> = Vec::new();
    loop {
        let rows = sqlx::query(select_pins!("WHERE p.id > $1 ORDER BY p.id LIMIT $2"))
            .bind(last)
            .bind(limits::SCAN_STEP)
            .fetch_all(&mut *conn)
            .await?;
        let Some(end) = rows.last() else { return Ok(()) };
        last = end.try_get("id")?;
        for row in &rows {
            report.pins += 1;
            if let Err(error) = Stored::read(row).and_then(Stored::into_row) {
                find(report, error.to_string());
            }
        }
    }
}

fn find(report: &mut RowsReport, finding: String) {
    if report.findings.len() < limits::FINDINGS {
        report.findings.push(finding);
    } else {
        limits::hit("findings");
    }
}
