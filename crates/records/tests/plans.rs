//! What each statement costs where there are many rows: it finds them by an index, and sorts none that it need not read.
//!
//! The plans are those that SQLite makes of the statements as the library reports them, on a full database that was
//! never analysed, as in production. What reads a whole table, or sorts, is named here with the reason.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Connection as _, Row as _, SqliteConnection};
use support::life::{self, Statements};
use support::*;

/// Statements that read all of a table, by how they begin.
const READ_ALL: [(&str, &str); 21] = [
    (
        "SELECT id, kind, payload, digest FROM jobs ORDER BY id LIMIT",
        "in the order of the index, as many as are asked for",
    ),
    ("SELECT s.dag, d.state FROM settles", "in the order of the index, as many as are asked for"),
    (
        "SELECT id, root FROM dags WHERE state = 0 AND next_at IS NOT NULL ORDER BY",
        "the same, of the parked ones",
    ),
    ("SELECT id FROM dags WHERE state = 1", "an index of the claimed ones alone: at most 64"),
    ("SELECT (SELECT COUNT(*) FROM dags", "once at a start"),
    ("WITH RECURSIVE turn", "the accounts whose turn it is, as many as are asked for"),
    ("SELECT payload FROM jobs WHERE kind", "once at a start, and where orphans are collected"),
    (
        "SELECT id, state FROM dags WHERE state < 4",
        "once at a start, for a verification, and where orphans are collected",
    ),
    ("SELECT id FROM accounts", "once, when an older file is brought up to date"),
    ("SELECT id, kind, payload FROM jobs", "the same"),
    ("SELECT a.id, a.name, a.max_bytes", "every account is listed, for the operator"),
    ("SELECT * FROM tokens WHERE account = COALESCE", "every token is listed, for the operator"),
    (
        "SELECT id FROM cold_lots WHERE packed = 1",
        "the first of an index of those alone whose pins are being told",
    ),
    ("SELECT aggregate FROM aggregate_releases", "the first of those that are being let go of"),
    ("SELECT state, COUNT(*) FROM aggregates", "an index of a word for each piece, for the operator"),
    ("SELECT d.id, d.aggregate, d.slot", "in the order of the index, as many as are asked for"),
    (
        "SELECT deal_id FROM deals WHERE locked",
        "an index of those alone that failed after they were published, or ended",
    ),
    ("SELECT state, cost FROM deal_counts", "a row for each of ten states"),
    ("SELECT state, deals FROM deal_counts", "the same"),
    ("SELECT COUNT(*) FROM providers", "they are bounded"),
    ("SELECT id, source, addresses", "the same: each is looked at for each replica"),
];

/// What is sorted without an index, by how the statement begins.
const SORT: [(&str, &str); 11] = [
    (
        "SELECT p.id, p.account, p.created, p.status, p.cid_text, p.root",
        "a page of ids for each range at most; the pins of one DAG",
    ),
    ("SELECT account, id FROM pins WHERE dag", "the pins of one DAG"),
    ("SELECT account, SUM($2 - charged) FROM pins WHERE dag", "the pins of one DAG"),
    ("SELECT a.max_bytes, a.used_bytes, MAX(p.charged) FROM pins p", "the pins of one DAG"),
    ("SELECT DISTINCT account FROM pins WHERE dag", "the pins of one DAG"),
    ("SELECT id FROM dags WHERE state = 0 AND next_at IS NOT NULL AND id IN", "the DAGs that name one peer"),
    ("DELETE FROM tokens WHERE account", "the tokens of one account, which are bounded"),
    (
        "WITH RECURSIVE turn (account) AS (SELECT MIN(account) FROM cold_lots",
        "the accounts that wait, each once",
    ),
    ("SELECT s.lot, s.parts, COUNT(DISTINCT s.part)", "the segments of one root"),
    ("SELECT DISTINCT d.id FROM aggregate_segments", "the segments of one aggregate"),
    ("SELECT d.id, d.aggregate, d.slot", "the deals of some aggregates, or in some states"),
];

/// Pins, and as many DAGs, of several accounts, behind the library's back: one by one they would take minutes.
async fn fill(conn: &mut SqliteConnection) {
    const ROWS: &str = "WITH RECURSIVE n (n) AS (SELECT 1000 UNION ALL SELECT n + 1 FROM n LIMIT 100000) ";
    let all = [
        "INSERT INTO dags SELECT CAST(printf('%016d', n) AS BLOB), CAST(printf('r%d', n) AS BLOB), n % 5, 1, n % 64, \
         1, 1, 1, CASE n % 2 WHEN 0 THEN n END, n, NULL, 0, 0, 0, NULL, NULL FROM n",
        "INSERT INTO pins SELECT CAST(printf('%016d', n) AS BLOB), 1 + n % 2, n, n % 4, 'c', \
         CAST(printf('r%d', n) AS BLOB), printf('name %d', n % 1000), 'name', '[]', '{}', 0, \
         CAST(printf('%016d', n) AS BLOB), NULL, 1, 0, x'00', 0, '', 0 FROM n",
        "INSERT INTO waits SELECT 1 + n % 2, CAST(printf('%016d', n) AS BLOB), n % 3, n FROM n",
        "INSERT INTO counts SELECT 1 + n % 2, 16384, n * 16384, 1, 1, 1, 1 FROM n",
        "INSERT INTO origin_peers SELECT printf('peer %d', n % 100), CAST(printf('%016d', n) AS BLOB) FROM n",
        "INSERT INTO keeps SELECT CAST(printf('%016d', n) AS BLOB), CAST(printf('%016d', n) AS BLOB), 1 FROM n",
        "INSERT INTO jobs SELECT n, 0, x'00', NULL FROM n",
        "INSERT INTO idempotency_keys SELECT 1 + n % 2, printf('key %d', n), x'00', '', n, NULL FROM n",
    ];
    let mut tx = conn.begin().await.unwrap();
    for insert in all {
        let (into, select) = insert.split_once(" SELECT ").unwrap();
        let sql = format!("{into} {ROWS} SELECT {select}");
        sqlx::query(AssertSqlSafe(sql)).execute(&mut *tx).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// The steps of the plan of a statement.
async fn plan(conn: &mut SqliteConnection, query: &str) -> Vec<String> {
    let explain = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {query}"));
    let plan = sqlx::query(explain).fetch_all(conn).await.unwrap();
    plan.iter().map(|row| row.get(3)).collect()
}

/// Whether a step reads all of a table. What the statement made itself is small, and is read whole.
fn reads_all(step: &str, plan: &[String]) -> bool {
    let Some(of) = step.strip_prefix("SCAN ").and_then(|rest| rest.split(' ').next()) else { return false };
    let named = |how: &str| plan.contains(&format!("{how} {of}"));
    let listed = step.ends_with("VALUES CLAUSE") || step == "SCAN CONSTANT ROW";
    let made_here = named("CO-ROUTINE") || named("MATERIALIZE") || listed;
    !made_here
}

/// The entry that a statement is excepted by.
fn allowed(list: &[(&'static str, &'static str)], query: &str) -> Option<&'static str> {
    list.iter().map(|(begin, _)| *begin).find(|begin| query.starts_with(begin))
}

/// The story: a pin's place in the queue was found by comparing it with each that waits in the same lane, for whoever
/// looked at the first of a million as long as it took to read them all.
#[tokio::test]
async fn every_statement_finds_its_rows_by_an_index() {
    let statements = Statements::collect();
    let world = World::new();
    let records = world.open().await;
    life::lived(&world, &records).await;
    records.close().await;
    let queries = statements.written().queries;

    let mut conn = SqliteConnection::connect(&format!("sqlite:{}", world.path().display())).await.unwrap();
    fill(&mut conn).await;
    let analysed = "SELECT COUNT(*) FROM sqlite_master WHERE name LIKE 'sqlite_stat%'";
    let analysed: i64 = sqlx::query_scalar(analysed).fetch_one(&mut conn).await.unwrap();
    assert_eq!(analysed, 0);
    let (mut needed, mut wrong) = (BTreeSet::new(), Vec::new());
    for query in &queries {
        let plan = plan(&mut conn, query).await;
        if plan.iter().any(|step| reads_all(step, &plan)) {
            let reason = allowed(&READ_ALL, query);
            if reason.is_none() {
                wrong.push(format!("{query}\nreads a whole table: {plan:#?}"));
            }
            needed.extend(reason);
        }
        if plan.iter().any(|step| step.contains("TEMP B-TREE")) {
            let reason = allowed(&SORT, query);
            if reason.is_none() {
                wrong.push(format!("{query}\nsorts: {plan:#?}"));
            }
            needed.extend(reason);
        }
        // What stands before a pin in the queue is the part of the index before it.
        if query.contains("FROM waits w JOIN waits me") {
            let before = plan.iter().find(|step| step.starts_with("SEARCH w "));
            assert!(
                before.is_some_and(|step| step.contains("next_at")),
                "{query}\nreads the queue: {plan:#?}"
            );
        }
    }
    assert!(queries.iter().any(|query| query.contains("FROM waits w JOIN waits me")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed: BTreeSet<_> = READ_ALL.iter().chain(&SORT).map(|(begin, _)| *begin).collect();
    assert_eq!(needed, listed, "an exception is listed while a statement needs it");
}
