//! Why a call failed, and what SQLite's codes mean for us.

use std::path::PathBuf;
use std::time::Duration;

/// Why a call failed. Each variant is something a caller does something about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such row, or of another account.
    #[error("not found")]
    NotFound,
    /// A name that is taken, or another clash.
    #[error("{0}")]
    Conflict(String),
    /// Quota of bytes or pins exceeded.
    #[error("{0}")]
    Quota(String),
    /// `created` would run more than 2 s ahead of the clock, or too many pins are queued.
    #[error("{reason}")]
    Busy {
        /// For the client.
        reason: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The idempotency key was used with another body.
    #[error("this Idempotency-Key was used with another request body")]
    KeyReused,
    /// These rows spend for another process: nothing that commits money may be written by this one.
    #[error(
        "another Floe spends with these rows: it began epoch {found} of the ledger, and this one {ours}. Nothing more is \
         spent here: one wallet is one Floe's; stop one of the two"
    )]
    Fenced {
        /// The epoch that was begun last.
        found: u64,
        /// Ours; 0 where none was begun.
        ours: u64,
    },
    /// A scan ran past its deadline.
    #[error("the query took too long")]
    Deadline,
    /// A newer Floe wrote this file.
    #[error("the database has schema {found}, this Floe knows {known}: use a newer Floe")]
    Newer {
        /// In the file.
        found: i64,
        /// Known here.
        known: i64,
    },
    /// The database is damaged or foreign.
    #[error("{0}")]
    Damaged(String),
    /// The file is not there any more, or nothing is in it: what the clients were told is lost with it.
    #[error(
        "{} {how}, and every pin, account and token of this node was in it: restore the whole data directory from a \
         backup, or begin anew in another one; the blocks are left as they are",
        path.display()
    )]
    Lost {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        how: &'static str,
    },
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// The disk did not read or write what it was to. SQLite has undone the whole transaction.
    #[error("the database could not be read or written: {0}")]
    Io(String),
    /// A sync failed: the process must end.
    #[error("a sync failed: {0}")]
    Poisoned(String),
    /// Anything else.
    #[error("{0}")]
    Sql(String),
}

impl Error {
    /// Whether the transaction it happened in must be given up, and not only the request.
    pub(crate) fn spoils_batch(&self) -> bool {
        matches!(self, Self::Full | Self::Io(_) | Self::Poisoned(_))
    }
}

const SQLITE_IOERR_FSYNC: i32 = 1034;
const SQLITE_IOERR_DIR_FSYNC: i32 = 1290;
const SQLITE_INTERRUPT: i32 = 9;
const SQLITE_IOERR: i32 = 10;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<i32>().ok());
        match code {
            Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC) => {
                Self::Poisoned(format!("the database could not be synced: {error}"))
            }
            // The low byte is the primary code; the rest says which page or index.
            Some(code) if code & 0xff == SQLITE_FULL => Self::Full,
            Some(SQLITE_INTERRUPT) => Self::Deadline,
            Some(code) if code & 0xff == SQLITE_IOERR => Self::Io(error.to_string()),
            Some(code) if code & 0xff == SQLITE_CORRUPT => {
                Self::Damaged(format!("the database is damaged, restore it from a backup: {error}"))
            }
            Some(code) if code & 0xff == SQLITE_NOTADB => {
                Self::Damaged(format!("the file is no SQLite database: {error}"))
            }
            _ => match error {
                sqlx::Error::RowNotFound => Self::NotFound,
                other => Self::Sql(other.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::error::{DatabaseError, ErrorKind};

    use super::*;

    /// What SQLite answers with a code.
    #[derive(Debug, thiserror::Error)]
    #[error("SQLite's {0}")]
    struct Coded(i32);

    impl DatabaseError for Coded {
        fn message(&self) -> &str {
            "as SQLite says it"
        }
        fn code(&self) -> Option<std::borrow::Cow<'_, str>> {
            Some(self.0.to_string().into())
        }
        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> ErrorKind {
            ErrorKind::Other
        }
    }

    /// After an error of the disk SQLite has undone the transaction, for a statement that only reads as well. Taken for an
    /// answer to one request, the others of its group were then written without a transaction.
    #[test]
    fn what_undid_the_transaction_is_no_answer_to_one_request() {
        let spoils = |code| Error::from(sqlx::Error::Database(Box::new(Coded(code)))).spoils_batch();
        // FULL, IOERR_READ, IOERR_WRITE, IOERR_FSYNC; CONSTRAINT_UNIQUE, CORRUPT.
        assert_eq!([13, 266, 778, 1034, 2067, 11].map(spoils), [true, true, true, true, false, false]);
    }
}
