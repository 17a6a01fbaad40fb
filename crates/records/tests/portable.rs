//! Every statement that the rows are kept by is also PostgreSQL.
//!
//! A life of accounts, tokens and pins runs on SQLite while the statements are written down as the library reports
//! them; a PostgreSQL then makes the same tables and prepares each. `FLOE_TEST_POSTGRES` is the URL of an empty
//! database that may be written to, for `psql`; without it only the collecting half runs.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

use support::life::{self, Statements, Written};
use support::*;

#[tokio::test]
async fn every_statement_is_also_postgresql() {
    let statements = Statements::collect();
    let world = World::new();
    let records = world.open().await;
    life::lived(&world, &records).await;
    assert_sound(&records).await;
    records.close().await;
    let Written { tables, queries: ours } = statements.written();
    assert!(!tables.is_empty(), "the tables are made by statements too");
    let Ok(url) = std::env::var("FLOE_TEST_POSTGRES") else {
        println!("skipped: {} statements were not prepared: FLOE_TEST_POSTGRES is not set", ours.len());
        return;
    };
    let path = world.dir.path().join("portable.sql");
    std::fs::write(&path, script(&tables, &ours)).unwrap();
    let out = psql(&url, &path);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Makes the tables in a place of their own, prepares each statement, and clears up.
fn script(tables: &[String], statements: &[String]) -> String {
    let mut script = String::from("CREATE SCHEMA floe_portable;\nSET search_path = floe_portable;\n");
    for table in tables {
        writeln!(script, "{};", table.trim_end_matches(';')).unwrap();
    }
    for (nth, statement) in statements.iter().enumerate() {
        writeln!(script, "PREPARE s{nth} AS {};", numbered(statement)).unwrap();
    }
    script.push_str("DROP SCHEMA floe_portable CASCADE;\n");
    script
}

/// The library's builder writes the placeholders of its database: `?` for SQLite, `$1` for PostgreSQL.
fn numbered(statement: &str) -> String {
    let mut parts = statement.split('?');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.enumerate().fold(first, |all, (nth, part)| format!("{all}${}{part}", nth + 1))
}

fn psql(url: &str, script: &Path) -> Output {
    Command::new("psql")
        .args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-f"])
        .arg(script)
        .arg(url)
        .output()
        .expect("psql is installed")
}
