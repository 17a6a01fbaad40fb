//! Connections, and what each is told before its first statement.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};

use crate::pins::add::DEFAULT_ACCOUNT;
use crate::{Error, accounts, limits, migrate};

pub(crate) struct Opened {
    pub(crate) writer: SqliteConnection,
    pub(crate) readers: SqlitePool,
}

/// Opens the file, migrates it, and opens the readers. Makes it only where it `may_make` it.
pub(crate) async fn open(path: &Path, may_make: bool) -> Result<Opened, Error> {
    let named = |error: Error| match error {
        Error::Damaged(what) => Error::Damaged(format!("{}: {what}", path.display())),
        Error::Sql(what) => Error::Sql(format!("cannot open {}: {what}", path.display())),
        other => other,
    };
    // The version is read before anything is set: WAL mode is a write, and a file that is refused stays as it is.
    check_is_ours(path, may_make).await.map_err(named)?;
    let mut writer =
        options(path).create_if_missing(may_make).connect().await.map_err(Error::from).map_err(named)?;
    migrate::migrate(&mut writer).await.map_err(named)?;
    sync_folder(path)?;
    let readers = SqlitePoolOptions::new()
        .min_connections(0)
        .max_connections(limits::READERS)
        .acquire_timeout(limits::BUSY_TIMEOUT)
        .test_before_acquire(false)
        .connect_with(options(path).read_only(true).pragma("query_only", "ON"))
        .await
        .map_err(Error::from)
        .map_err(named)?;
    Ok(Opened { writer, readers })
}

/// A connection of its own for a check of a running node: it takes none of the readers away, and is slow to nobody.
pub(crate) async fn checker(path: &Path) -> Result<SqliteConnection, Error> {
    Ok(options(path).read_only(true).pragma("query_only", "ON").connect().await?)
}

/// Refuses a file that is newer, not ours, or without what it had: one that was made once holds an account.
async fn check_is_ours(path: &Path, may_make: bool) -> Result<(), Error> {
    let lost = |how| if may_make { Ok(()) } else { Err(Error::Lost { path: path.to_owned(), how }) };
    match std::fs::metadata(path) {
        Ok(file) if file.len() > 0 => {}
        Ok(_) => return lost("is empty"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return lost("is missing"),
        // Opening it says why.
        Err(_) => {}
    }
    let plain = SqliteConnectOptions::new().filename(path).busy_timeout(limits::BUSY_TIMEOUT);
    let mut conn = plain.connect().await?;
    let version = migrate::check(&mut conn).await?;
    let in_use = version > 0 && accounts::by_name(&mut conn, DEFAULT_ACCOUNT).await?.is_some();
    sqlx::Connection::close(conn).await?;
    if in_use { Ok(()) } else { lost("holds no accounts") }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(limits::BUSY_TIMEOUT)
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON")
        // 16 MiB: the upper levels of each index at 10 M pins.
        .pragma("cache_size", "-16384")
        .statement_cache_capacity(limits::STATEMENTS_PREPARED)
}

/// SQLite syncs the folder for its journals, but a file that was just made is to survive too.
fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::Poisoned(format!("cannot sync {}: {error}", folder.display())))
}
