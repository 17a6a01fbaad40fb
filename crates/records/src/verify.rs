//! `floe verify`: the whole database against itself.
//!
//! `integrity_check` for the pages, the digests for the rows that matter, and every sum recomputed from what it
//! sums. It reads in one snapshot where sums are compared, so run it on a stopped node or accept a longer WAL.
//!
//! A running node checks its rows too ([`rows`]): what can be checked in short reads, which is all digests and what
//! pins and DAGs say of each other.

use sqlx::{Row, SqliteConnection, SqlitePool};

use crate::pins::row::{Stored, select_pins, uuid_of};
use crate::{Error, RowsReport, cold, jobs, limits, tokens};

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
const DAGS: [(&str, &str); 5] = [
    (
        "the root of a DAG, as its pins have it,",
        "SELECT DISTINCT d.id FROM dags d JOIN pins p ON p.dag = d.id WHERE p.root <> d.root",
    ),
    (
        "what keeps a DAG, which is no pin,",
        "SELECT k.dag FROM keeps k WHERE NOT EXISTS (SELECT 1 FROM pins p WHERE p.id = k.pin)",
    ),
    (
        "the references of a DAG",
        "SELECT d.id FROM dags d WHERE d.refs <> \
         (SELECT COUNT(*) FROM pins p WHERE p.dag = d.id AND p.status <> 3) + \
         (SELECT COUNT(*) FROM keeps k WHERE k.dag = d.id) + \
         (SELECT COUNT(*) FROM aggregate_holds h WHERE h.dag = d.id)",
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
    check_tokens(conn, &mut report).await?;
    jobs::damaged(&mut *conn).await?.into_iter().for_each(|finding| find(&mut report, finding));
    cold::deals::damaged(&mut *conn).await?.into_iter().for_each(|finding| find(&mut report, finding));
    cold::ledger::verify(&mut *conn).await?.into_iter().for_each(|finding| find(&mut report, finding));
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

/// What a running node checks, a step at a time: each is its own short read, so that the log of the rows can be
/// checkpointed, and nobody waits who writes.
pub(crate) async fn rows(readers: &SqlitePool) -> Result<RowsReport, Error> {
    let mut report = RowsReport::default();
    let mut last = Some(Vec::new());
    while let Some(from) = last {
        last = check_some(&mut *readers.acquire().await?, from, &mut report).await?;
    }
    check_tokens(&mut *readers.acquire().await?, &mut report).await?;
    Ok(report)
}

async fn check_tokens(conn: &mut SqliteConnection, report: &mut RowsReport) -> Result<(), Error> {
    for row in sqlx::query("SELECT * FROM tokens").fetch_all(conn).await? {
        report.tokens += 1;
        if let Err(error) = tokens::read(&row) {
            find(report, error.to_string());
        }
    }
    Ok(())
}

async fn check_pins(conn: &mut SqliteConnection, report: &mut RowsReport) -> Result<(), Error> {
    let mut last = Some(Vec::new());
    while let Some(from) = last {
        last = check_some(conn, from, report).await?;
    }
    Ok(())
}

/// Checks the pins after this id, so many as one read may have. Returns the last; `None` where there are no more.
async fn check_some(
    conn: &mut SqliteConnection,
    from: Vec<u8>,
    report: &mut RowsReport,
) -> Result<Option<Vec<u8>>, Error> {
    let rows = sqlx::query(select_pins!("WHERE p.id > $1 ORDER BY p.id LIMIT $2"))
        .bind(&from)
        .bind(limits::SCAN_STEP)
        .fetch_all(conn)
        .await?;
    for row in &rows {
        report.pins += 1;
        let root: Option<Vec<u8>> = row.try_get("dag_root")?;
        match Stored::read(row) {
            Ok(pin) if root.as_ref() != Some(&pin.root) => {
                find(report, format!("the DAG {} of pin {} has another root than the pin", pin.dag, pin.id));
            }
            read => {
                if let Err(error) = read.and_then(Stored::into_row) {
                    find(report, error.to_string());
                }
            }
        }
    }
    let last: Option<Vec<u8>> = rows.last().map(|row| row.try_get("id")).transpose()?;
    if last.as_ref().is_some_and(|last| *last <= from) {
        // A damaged index would else be walked round and round.
        find(report, "the pins are out of order".to_owned());
        return Ok(None);
    }
    Ok(last)
}

fn find(report: &mut RowsReport, finding: String) {
    if report.findings.len() < limits::FINDINGS {
        report.findings.push(finding);
    } else {
        limits::hit("findings");
    }
}
