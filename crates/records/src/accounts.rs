//! Accounts: who owns pins and is charged for them.

use floe_core::{AccountId, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::pins::row::{db, num};
use crate::writer::Tx;
use crate::{Account, Bounds, Error, Quota, jobs};

const MAX_NAME: usize = 255;

macro_rules! account_columns {
    () => {
        "a.id, a.name, a.max_bytes, a.max_pins, a.max_replicas, a.suspended, a.used_bytes, a.used_pins, a.created"
    };
}

/// Makes an account.
pub(crate) async fn create(tx: &mut Tx, name: &str, bounds: Bounds) -> Result<Account, Error> {
    if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Error::Conflict(format!(
            "an account's name has 1 to {MAX_NAME} bytes and no control characters"
        )));
    }
    if by_name(&mut tx.conn, name).await?.is_some() {
        return Err(Error::Conflict(format!("there is an account {name:?} already")));
    }
    let id = jobs::next_id(&mut tx.conn, "account").await?;
    sqlx::query(
        "INSERT INTO accounts \
         (id, name, max_bytes, max_pins, max_replicas, suspended, used_bytes, used_pins, last_created, created) \
         VALUES ($1, $2, $3, $4, $5, 0, 0, 0, 0, $6)",
    )
    .bind(id)
    .bind(name)
    .bind(bounds.max_bytes.map(db))
    .bind(bounds.max_pins.map(db))
    .bind(bounds.max_replicas.map(i64::from))
    .bind(db(tx.now.as_millis()))
    .execute(&mut tx.conn)
    .await?;
    by_name(&mut tx.conn, name).await?.ok_or(Error::NotFound)
}

/// The account of that name.
pub(crate) async fn by_name(conn: &mut SqliteConnection, name: &str) -> Result<Option<Account>, Error> {
    let row = sqlx::query(concat!("SELECT ", account_columns!(), " FROM accounts a WHERE a.name = $1"))
        .bind(name)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(read).transpose()
}

/// The account of that id.
pub(crate) async fn by_id(conn: &mut SqliteConnection, id: i64) -> Result<Option<Account>, Error> {
    let row = sqlx::query(concat!("SELECT ", account_columns!(), " FROM accounts a WHERE a.id = $1"))
        .bind(id)
        .fetch_optional(conn)
        .await?;
    row.as_ref().map(read).transpose()
}

/// All accounts, in order of making.
pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<Vec<Account>, Error> {
    let rows = sqlx::query(concat!("SELECT ", account_columns!(), " FROM accounts a ORDER BY a.id"))
        .fetch_all(conn)
        .await?;
    rows.iter().map(read).collect()
}

/// Changes the bounds that are given.
pub(crate) async fn set_quota(tx: &mut Tx, name: &str, quota: Quota) -> Result<Account, Error> {
    tx.access_changed = true;
    let account = by_name(&mut tx.conn, name).await?.ok_or(Error::NotFound)?;
    sqlx::query("UPDATE accounts SET max_bytes = $2, max_pins = $3, max_replicas = $4 WHERE id = $1")
        .bind(account.id.0)
        .bind(quota.max_bytes.unwrap_or(account.max_bytes).map(db))
        .bind(quota.max_pins.unwrap_or(account.max_pins).map(db))
        .bind(quota.max_replicas.unwrap_or(account.max_replicas).map(i64::from))
        .execute(&mut tx.conn)
        .await?;
    by_id(&mut tx.conn, account.id.0).await?.ok_or(Error::NotFound)
}

/// Suspends an account, or lifts it.
pub(crate) async fn suspend(tx: &mut Tx, name: &str, suspended: bool) -> Result<(), Error> {
    tx.access_changed = true;
    let done = sqlx::query("UPDATE accounts SET suspended = $2 WHERE name = $1")
        .bind(name)
        .bind(i64::from(suspended))
        .execute(&mut tx.conn)
        .await?;
    if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
}

fn read(row: &SqliteRow) -> Result<Account, Error> {
    Ok(Account {
        id: AccountId(row.try_get("id")?),
        name: row.try_get("name")?,
        max_bytes: row.try_get::<Option<i64>, _>("max_bytes")?.map(num),
        max_pins: row.try_get::<Option<i64>, _>("max_pins")?.map(num),
        // What is no such number permits none: more replicas are more money.
        max_replicas: row.try_get::<Option<i64>, _>("max_replicas")?.map(|n| u8::try_from(n).unwrap_or(0)),
        suspended: row.try_get::<i64, _>("suspended")? != 0,
        used_bytes: num(row.try_get("used_bytes")?),
        used_pins: num(row.try_get("used_pins")?),
        created: Timestamp::from_millis(num(row.try_get("created")?)),
    })
}
