//! `floe verify`: the whole database against itself.
//!
//! `integrity_check` for the pages, the digests for the rows that matter, and every sum recomputed from what it
//! sums. It reads in one snapshot where sums are compared, so run it on a stopped node or accept a longer WAL.

use sqlx::{Row, SqliteConnection};

use crate::pins::row::{Stored, pin_columns};
use crate::{Error, RowsReport, limits, tokens};

/// Sums that must agree: what is compared, and a statement whose rows are the disagreements.
const SUMS: [(&str, &str); 7] = [
    (
        "the counter of an account and status",
        "SELECT 'account ' || k.account || ' status ' || k.status FROM \
         (SELECT account, status FROM pin_counts WHERE account > 0 UNION SELECT account, status FROM pins) k WHERE \
         COALESCE((SELECT pins FROM pin_counts c WHERE c.account = k.account AND c.status = k.status), 0) <> \
         (SELECT COUNT(*) FROM pins p WHERE p.account = k.account AND p.status = k.status)",
    ),
    (
        "the counter of a status over all accounts",
        "SELECT 'status ' || t.status FROM pin_counts t WHERE t.account = 0 AND \
         t.pins <> (SELECT COUNT(*) FROM pins p WHERE p.status = t.status)",
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
    (
        "the references of a DAG",
        "SELECT 'dag ' || hex(d.id) FROM dags d WHERE d.refs <> \
         (SELECT COUNT(*) FROM pins p WHERE p.dag = d.id AND p.status <> 3) + \
         (SELECT COUNT(*) FROM keeps k WHERE k.dag = d.id)",
    ),
    (
        "a waiting pin whose DAG is not waiting, claimed or about to be settled",
        "SELECT 'dag ' || hex(d.id) FROM dags d WHERE EXISTS \
         (SELECT 1 FROM pins p WHERE p.dag = d.id AND p.status IN (0, 1)) AND d.state <> 1 \
         AND NOT EXISTS (SELECT 1 FROM waits w WHERE w.dag = d.id AND d.state = 0) \
         AND NOT EXISTS (SELECT 1 FROM settles s WHERE s.dag = d.id AND d.state = 2)",
    ),
    (
        "a pinned pin whose DAG is not complete",
        "SELECT 'dag ' || hex(d.id) FROM dags d WHERE d.state <> 2 AND EXISTS \
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
    for (what, statement) in SUMS {
        let wrong: Vec<String> = sqlx::query_scalar(statement).fetch_all(&mut *conn).await?;
        wrong.into_iter().for_each(|which| find(&mut report, format!("{what} is wrong: {which}")));
    }
    Ok(report)
}

async fn check_pins(conn: &mut SqliteConnection, report: &mut RowsReport) -> Result<(), Error> {
    let mut last: Vec<u8> = Vec::new();
    loop {
        let rows = sqlx::query(concat!(
            "SELECT ",
            pin_columns!(),
            "FROM pins p JOIN dags d ON d.id = p.dag WHERE p.id > $1 ORDER BY p.id LIMIT $2"
        ))
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
