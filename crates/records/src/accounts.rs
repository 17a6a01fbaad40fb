//! Accounts: who owns pins and is charged for them.

use floe_core::{AccountId, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::pins::row::{db, intact, num};
use crate::writer::Tx;
use crate::{Account, Bounds, Error, Quota, digests, jobs};

const MAX_NAME: usize = 255;

/// Columns of `accounts a`, for [`read`]. More may come behind these.
macro_rules! account_columns {
    () => {
        "a.id, a.name, a.max_bytes, a.max_pins, a.suspended, a.used_bytes, a.used_pins, a.created, a.max_replicas, \
         a.digest"
    };
}
pub(crate) use account_columns;

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
    seal(&mut tx.conn, id).await?;
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

/// All accounts, in order of making. Damaged rows are left out, and named in the log.
pub(crate) async fn all(conn: &mut SqliteConnection) -> Result<Vec<Account>, Error> {
    Ok(rows(conn).await?.iter().filter_map(|row| intact(read(row))).collect())
}

/// What is wrong with the accounts that are damaged.
pub(crate) async fn damaged(conn: &mut SqliteConnection) -> Result<Vec<String>, Error> {
    Ok(rows(conn).await?.iter().filter_map(|row| read(row).err()).map(|error| error.to_string()).collect())
}

async fn rows(conn: &mut SqliteConnection) -> Result<Vec<SqliteRow>, Error> {
    let all = sqlx::query(concat!("SELECT ", account_columns!(), " FROM accounts a ORDER BY a.id"));
    Ok(all.fetch_all(conn).await?)
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
    seal(&mut tx.conn, account.id.0).await?;
    by_id(&mut tx.conn, account.id.0).await?.ok_or(Error::NotFound)
}

/// Suspends an account, or lifts it.
pub(crate) async fn suspend(tx: &mut Tx, name: &str, suspended: bool) -> Result<(), Error> {
    tx.access_changed = true;
    let account = by_name(&mut tx.conn, name).await?.ok_or(Error::NotFound)?;
    sqlx::query("UPDATE accounts SET suspended = $2 WHERE id = $1")
        .bind(account.id.0)
        .bind(i64::from(suspended))
        .execute(&mut tx.conn)
        .await?;
    seal(&mut tx.conn, account.id.0).await
}

/// Reads a row and checks its digest.
pub(crate) fn read(row: &SqliteRow) -> Result<Account, Error> {
    let id: i64 = row.try_get("id")?;
    let whole = || -> Result<Option<Account>, sqlx::Error> {
        let stored: Option<Vec<u8>> = row.try_get("digest")?;
        let digest = digest(row)?;
        Ok(digests::holds(stored.as_deref(), || digest).then_some(Account {
            id: AccountId(id),
            name: row.try_get("name")?,
            max_bytes: row.try_get::<Option<i64>, _>("max_bytes")?.map(num),
            max_pins: row.try_get::<Option<i64>, _>("max_pins")?.map(num),
            // What is no such number permits none: more replicas are more money.
            max_replicas: row
                .try_get::<Option<i64>, _>("max_replicas")?
                .map(|n| u8::try_from(n).unwrap_or(0)),
            suspended: row.try_get::<i64, _>("suspended")? != 0,
            used_bytes: num(row.try_get("used_bytes")?),
            used_pins: num(row.try_get("used_pins")?),
            created: Timestamp::from_millis(num(row.try_get("created")?)),
        }))
    };
    // What is of another type than it was written with is as damaged as what has another value.
    whole().ok().flatten().ok_or_else(|| {
        Error::Damaged(format!("the row of account {id} is damaged: restore the database from a backup"))
    })
}

/// Names what only an operator changes, each field with its length.
fn digest(row: &SqliteRow) -> Result<Vec<u8>, sqlx::Error> {
    let number = |column: &str| -> Result<Option<[u8; 8]>, sqlx::Error> {
        Ok(row.try_get::<Option<i64>, _>(column)?.map(i64::to_le_bytes))
    };
    let name: String = row.try_get("name")?;
    let [id, max_bytes, max_pins] = [number("id")?, number("max_bytes")?, number("max_pins")?];
    let [suspended, created] = [number("suspended")?, number("created")?];
    let max_replicas = number("max_replicas")?;
    let bytes = |number: &'_ Option<[u8; 8]>| number.map(|bytes| bytes.to_vec());
    let fields = [bytes(&id), Some(name.into_bytes()), bytes(&max_bytes), bytes(&max_pins)];
    let fields = fields.into_iter().chain([bytes(&suspended), bytes(&created), bytes(&max_replicas)]);
    let fields: Vec<Option<Vec<u8>>> = fields.collect();
    Ok(digests::of("floe records 1 account row", fields.iter().map(Option::as_deref)))
}

/// Writes the digest of an account as it stands. Whoever changes what it speaks for has read the account before.
pub(crate) async fn seal(conn: &mut SqliteConnection, id: i64) -> Result<(), Error> {
    let row = sqlx::query(concat!("SELECT ", account_columns!(), " FROM accounts a WHERE a.id = $1"))
        .bind(id)
        .fetch_one(&mut *conn)
        .await?;
    sqlx::query("UPDATE accounts SET digest = $2 WHERE id = $1")
        .bind(id)
        .bind(digest(&row)?)
        .execute(conn)
        .await?;
    Ok(())
}

/// The part of the migration that added the digests.
pub(crate) async fn seal_all(conn: &mut SqliteConnection) -> Result<(), Error> {
    let ids: Vec<i64> = sqlx::query_scalar("SELECT id FROM accounts").fetch_all(&mut *conn).await?;
    for id in ids {
        seal(conn, id).await?;
    }
    Ok(())
}
