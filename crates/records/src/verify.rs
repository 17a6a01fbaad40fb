//! The whole database against itself.
//!
//! `integrity_check` for the pages, the digests for the rows that have one, and every sum recomputed from what it
//! sums. A stopped node does it in one snapshot ([`verify`], for `floe verify --offline`). A running node does the same
//! in steps ([`online`]): each is a read of its own, on a connection of its own and with a deadline, so that the log of
//! the rows can be checkpointed and nobody waits who reads or writes. A sum and what it is of are compared by one
//! statement, so in one snapshot there too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floe_core::{Clock, Timestamp};
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use crate::pins::row::{Stored, db, select_pins, uuid_of};
use crate::{Error, RowsReport, accounts, cold, dags, jobs, limits, tokens};

/// Sums that must agree: what is compared, and a statement whose rows are the disagreements.
const SUMS: [(&str, &str); 6] = [
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
    (
        "the last number of a sequence",
        "SELECT s.name FROM sequences s WHERE \
         (s.name = 'account' AND s.value < (SELECT COALESCE(MAX(id), 0) FROM accounts)) OR \
         (s.name = 'token' AND s.value < (SELECT COALESCE(MAX(id), 0) FROM tokens)) OR \
         (s.name = 'job' AND s.value < (SELECT COALESCE(MAX(id), 0) FROM jobs))",
    ),
];

/// An account's last `created` is that of its newest pin or of one that was removed, and runs ahead of no clock that was
/// not set back by more than a day.
const LAST_CREATED: &str = "SELECT 'account ' || a.id FROM accounts a WHERE a.last_created > $1 \
     OR a.last_created < (SELECT COALESCE(MAX(p.created), 0) FROM pins p WHERE p.account = a.id)";

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

/// Checks everything in the snapshot of `conn`; findings are reported, not returned as errors.
pub(crate) async fn verify(conn: &mut SqliteConnection, now: Timestamp) -> Result<RowsReport, Error> {
    let mut report = RowsReport::default();
    check_pages(conn, "PRAGMA integrity_check".to_owned(), &mut report).await?;
    for step in steps() {
        let mut next = Some(step);
        while let Some(step) = next {
            next = step.run(conn, now, &mut report).await?;
        }
    }
    Ok(report)
}

/// What a running node checks. With `share` it takes a part of one connection's time, and is done when it is done.
pub(crate) async fn online(
    mut conn: SqliteConnection,
    clock: &Arc<dyn Clock>,
    share: Option<u32>,
) -> Result<RowsReport, Error> {
    let deadline = Deadline::set(&mut conn, clock).await?;
    let mut report = RowsReport::default();
    let mut steps = pages(&mut conn).await?;
    steps.extend(self::steps());
    for step in steps {
        let mut next = Some(step);
        while let Some(step) = next {
            let begun = clock.monotonic();
            deadline.begin(begun);
            let name = step.name();
            next = match step.run(&mut conn, clock.now(), &mut report).await {
                Err(Error::Deadline) => {
                    report.unchecked.push(name);
                    None
                }
                ran => ran?,
            };
            if let Some(share) = share {
                let took = clock.monotonic().saturating_sub(begun);
                clock.sleep(took * share.saturating_sub(1)).await;
            }
        }
    }
    sqlx::Connection::close(conn).await?;
    Ok(report)
}

/// When a step is broken off, which SQLite asks as it works.
struct Deadline(Arc<AtomicU64>);

impl Deadline {
    async fn set(conn: &mut SqliteConnection, clock: &Arc<dyn Clock>) -> Result<Self, Error> {
        let until = Arc::new(AtomicU64::new(u64::MAX));
        let (seen, clock) = (Arc::clone(&until), Arc::clone(clock));
        conn.lock_handle().await?.set_progress_handler(limits::CHECK_LOOK, move || {
            millis(clock.monotonic()) < seen.load(Ordering::Relaxed)
        });
        Ok(Self(until))
    }

    fn begin(&self, now: Duration) {
        self.0.store(millis(now + limits::CHECK_WITHIN), Ordering::Relaxed);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A read of its own.
enum Step {
    /// A table and its indexes, page by page.
    Pages(String),
    /// The digests of the pins behind this id.
    Pins(Vec<u8>),
    Tokens,
    Accounts,
    /// The digests of the complete DAGs behind this id.
    Sizes(Vec<u8>),
    Jobs,
    Deals,
    Ledger,
    LastCreated,
    Sum(&'static str, &'static str),
    Dag(&'static str, &'static str),
}

/// All steps but those over the pages.
fn steps() -> Vec<Step> {
    let rows = [
        Step::Pins(Vec::new()),
        Step::Tokens,
        Step::Accounts,
        Step::Sizes(Vec::new()),
        Step::Jobs,
        Step::Deals,
        Step::Ledger,
    ];
    let sums = SUMS.into_iter().map(|(what, statement)| Step::Sum(what, statement));
    let dags = DAGS.into_iter().map(|(what, statement)| Step::Dag(what, statement));
    rows.into_iter().chain([Step::LastCreated]).chain(sums).chain(dags).collect()
}

/// The tables, one by one: a check of them all would be one read of the whole file. What no table holds, the list of
/// free pages, is looked at by a stopped node.
async fn pages(conn: &mut SqliteConnection) -> Result<Vec<Step>, Error> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
            .fetch_all(conn)
            .await?;
    // The table of the tables is none of its own rows: its pages were looked at by a stopped node alone.
    Ok(std::iter::once("sqlite_schema".to_owned()).chain(tables).map(Step::Pages).collect())
}

impl Step {
    /// For who is told that it was not done.
    fn name(&self) -> String {
        match self {
            Self::Pages(table) => format!("the pages of {table}"),
            Self::Pins(_) => "the pins".to_owned(),
            Self::Tokens => "the tokens".to_owned(),
            Self::Accounts => "the accounts".to_owned(),
            Self::Sizes(_) => "what DAGs hold".to_owned(),
            Self::Jobs => "the jobs".to_owned(),
            Self::Deals => "the deals".to_owned(),
            Self::Ledger => "the ledger of deals".to_owned(),
            Self::LastCreated => "the moments of the accounts' last pins".to_owned(),
            Self::Sum(what, _) | Self::Dag(what, _) => (*what).to_owned(),
        }
    }

    /// Does it. What is left of it is the next step.
    async fn run(
        self,
        conn: &mut SqliteConnection,
        now: Timestamp,
        report: &mut RowsReport,
    ) -> Result<Option<Self>, Error> {
        match self {
            Self::Pages(table) => {
                let quoted = table.replace('\'', "''");
                check_pages(conn, format!("PRAGMA integrity_check('{quoted}')"), report).await?;
            }
            Self::Pins(after) => return Ok(check_some(conn, after, report).await?.map(Self::Pins)),
            Self::Tokens => check_tokens(conn, report).await?,
            Self::Accounts => {
                accounts::damaged(conn).await?.into_iter().for_each(|finding| find(report, finding));
            }
            Self::Sizes(after) => {
                let (damaged, more) = dags::check_sizes(conn, &after).await?;
                for dag in damaged {
                    find(report, format!("what the row of DAG {dag} says that it holds is damaged"));
                    report.sizes.push(dag);
                }
                report.sizes.truncate(limits::FINDINGS);
                return Ok(more.map(Self::Sizes));
            }
            Self::Jobs => jobs::damaged(conn).await?.into_iter().for_each(|finding| find(report, finding)),
            Self::Deals => {
                cold::deals::damaged(conn).await?.into_iter().for_each(|finding| find(report, finding));
            }
            Self::Ledger => {
                cold::ledger::verify(conn).await?.into_iter().for_each(|finding| find(report, finding));
            }
            Self::LastCreated => {
                let ahead = db(now.after(limits::CLOCK_SET_BACK).as_millis());
                let wrong: Vec<String> = sqlx::query_scalar(LAST_CREATED).bind(ahead).fetch_all(conn).await?;
                let what = "the moment of an account's last pin, or this machine's clock,";
                wrong.into_iter().for_each(|which| find(report, format!("{what} is wrong: {which}")));
            }
            Self::Sum(what, statement) => {
                let wrong: Vec<String> = sqlx::query_scalar(statement).fetch_all(conn).await?;
                wrong.into_iter().for_each(|which| find(report, format!("{what} is wrong: {which}")));
            }
            Self::Dag(what, statement) => {
                let wrong: Vec<Vec<u8>> = sqlx::query_scalar(statement).fetch_all(conn).await?;
                let wrong = wrong.into_iter().map(|id| format!("{what} is wrong: dag {}", uuid_of(id)));
                wrong.for_each(|finding| find(report, finding));
            }
        }
        Ok(None)
    }
}

async fn check_pages(
    conn: &mut SqliteConnection,
    check: String,
    report: &mut RowsReport,
) -> Result<(), Error> {
    // The only text that is put in is the name of a table of this file.
    for row in &sqlx::query(AssertSqlSafe(check)).persistent(false).fetch_all(conn).await? {
        let line: String = row.try_get(0)?;
        if line != "ok" {
            find(report, format!("integrity_check: {line}"));
        }
    }
    Ok(())
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
