//! What happened in the cold half, in order: rows that a webhook or a stream can be fed from.
//!
//! An event is written in the transaction of what it tells of, so none is told that did not happen, and none is lost. The
//! last [`limits::EVENTS_KEPT`] stay. Ids grow by one and are never given twice.

use floe_core::{AccountId, Timestamp};
use sqlx::Row;

use crate::pins::row::{db, num};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, jobs, limits};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Event {
    /// Its number: greater than that of every event before.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// What, as `deal.active` or `spending.off`.
    pub kind: String,
    /// Whose it is, where it is one account's alone.
    pub account: Option<AccountId>,
    /// What it is about: a deal's uuid, an aggregate's id, a provider, `spending`.
    pub subject: String,
    /// More of it.
    pub body: serde_json::Value,
}

impl Records {
    /// The first `most` events behind `id` in their order; 0 is before all of them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn events_after(&self, id: u64, most: u32) -> Result<Vec<Event>, Error> {
        let rows = sqlx::query(
            "SELECT id, at, kind, account, subject, body FROM events WHERE id > $1 ORDER BY id LIMIT $2",
        )
        .bind(db(id))
        .bind(i64::from(most.min(limits::PAGE)))
        .fetch_all(&mut *self.reader().await?)
        .await?;
        rows.iter()
            .map(|row| {
                let body: String = row.try_get("body")?;
                Ok(Event {
                    id: num(row.try_get("id")?),
                    at: Timestamp::from_millis(num(row.try_get("at")?)),
                    kind: row.try_get("kind")?,
                    account: row.try_get::<Option<i64>, _>("account")?.map(AccountId),
                    subject: row.try_get("subject")?,
                    body: serde_json::from_str(&body).unwrap_or(serde_json::Value::String(body)),
                })
            })
            .collect()
    }

    /// The number of the newest event; 0 where there was none.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn last_event(&self) -> Result<u64, Error> {
        let last: i64 = sqlx::query_scalar("SELECT value FROM sequences WHERE name = 'event'")
            .fetch_one(&mut *self.reader().await?)
            .await?;
        Ok(num(last))
    }

    /// Writes an event that goes with no other change.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_event(&self, kind: &str, subject: &str, body: serde_json::Value) -> Result<(), Error> {
        let (kind, subject) = (kind.to_owned(), subject.to_owned());
        self.write(Urgency::Takes, move |tx| {
            let (kind, subject, body) = (kind.clone(), subject.clone(), body.clone());
            Box::pin(async move { insert(tx, &kind, None, &subject, &body).await })
        })
        .await
    }
}

/// Writes one, and lets go of the oldest.
pub(crate) async fn insert(
    tx: &mut Tx,
    kind: &str,
    account: Option<AccountId>,
    subject: &str,
    body: &serde_json::Value,
) -> Result<(), Error> {
    let id = jobs::next_id(&mut tx.conn, "event").await?;
    sqlx::query("INSERT INTO events (id, at, kind, account, subject, body) VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(id)
        .bind(db(tx.now.as_millis()))
        .bind(kind)
        .bind(account.map(|account| account.0))
        .bind(subject)
        .bind(body.to_string())
        .execute(&mut tx.conn)
        .await?;
    let gone = sqlx::query("DELETE FROM events WHERE id <= $1")
        .bind(id - limits::EVENTS_KEPT)
        .execute(&mut tx.conn)
        .await?;
    if gone.rows_affected() > 0 {
        limits::hit("events_kept");
    }
    Ok(())
}
