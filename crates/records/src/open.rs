//! Connections, and what each is told before its first statement.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, SqliteConnection, SqlitePool};

use crate::{Error, limits, migrate};

pub(crate) struct Opened {
    pub(crate) writer: SqliteConnection,
    pub(crate) readers: SqlitePool,
}

/// Opens the file, migrates it, and opens the readers.
pub(crate) async fn open(path: &Path) -> Result<Opened, Error> {
    let named = |error: Error| match error {
        Error::Damaged(what) => Error::Damaged(format!("{}: {what}", path.display())),
        Error::Sql(what) => Error::Sql(format!("cannot open {}: {what}", path.display())),
        other => other,
    };
    // The version is read before anything is set: WAL mode is a write, and a file that is refused stays as it is.
    check_is_ours(path).await.map_err(named)?;
    let mut writer =
        options(path).create_if_missing(true).connect().await.map_err(Error::from).map_err(named)?;
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

async fn check_is_ours(path: &Path) -> Result<(), Error> {
    if !std::fs::metadata(path).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    let plain = SqliteConnectOptions::new().filename(path).busy_timeout(limits::BUSY_TIMEOUT);
    let mut conn = plain.connect().await?;
    migrate::check(&mut conn).await?;
    sqlx::Connection::close(conn).await?;
    Ok(())
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
        .statement_cache_capacity(128)
}

/// SQLite syncs the folder for its journals, but a file that was just made is to survive too.
fn sync_folder(path: &Path) -> Result<(), Error> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::Poisoned(format!("cannot sync {}: {error}", folder.display())))
}
