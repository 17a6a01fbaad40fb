//! Storage providers that the operator knows: where they are, what they ask for, and how well they have kept their word.
//!
//! What the operator says (addresses, regions, suspended) and what the chain and the provider say (owner, peer id, its
//! addresses, its ask) stand in columns of their own: neither ever overwrites the other. The standing is what placement
//! reads: a score, and until when the provider rests ([`floe_core::standing`]).

use floe_core::cold::{ChainProvider, Contact, ContactAddress, Fault};
use floe_core::place::Ask;
use floe_core::standing::{Outcome, Standing};
use floe_core::{ActorId, AttoFil, Epoch, FailureCode, PaddedSize, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::pins::row::{db, num};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// What the operator says of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewProvider {
    /// Its id.
    pub id: ActorId,
    /// `config`, or who added it.
    pub source: String,
    /// `http(s)://…` or multiaddrs; may be none.
    pub addresses: Vec<String>,
    /// Tags.
    pub regions: Vec<String>,
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderRow {
    /// Its id.
    pub id: ActorId,
    /// Who added it.
    pub source: String,
    /// The operator's addresses.
    pub addresses: Vec<String>,
    /// The operator's tags.
    pub regions: Vec<String>,
    /// Whether it is asked for nothing now, and why.
    pub suspended: Option<String>,
    /// As the chain has it, and when that was read.
    pub chain: Option<(ChainProvider, Timestamp)>,
    /// Its last ask, and when it was given.
    pub ask: Option<(Ask, Timestamp)>,
    /// How well it has kept its word.
    pub standing: Standing,
    /// The last thing that went wrong.
    pub error: Option<Fault>,
    /// When it was added.
    pub created: Timestamp,
}

impl ProviderRow {
    /// Where it is reached: the operator's addresses first.
    pub fn contact(&self) -> Contact {
        let chain = self.chain.as_ref().map(|(chain, _)| chain);
        let mine = self.addresses.iter().map(|a| ContactAddress { text: a.clone(), is_operators: true });
        let theirs = chain.map(|chain| chain.addresses.as_slice()).unwrap_or_default();
        let theirs = theirs.iter().map(|a| ContactAddress { text: a.clone(), is_operators: false });
        Contact {
            provider: self.id,
            peer_id: chain.and_then(|chain| chain.peer_id.clone()),
            addresses: mine.chain(theirs).collect(),
        }
    }
}

const COLUMNS: &str = "SELECT id, source, addresses, regions, suspended, suspended_why, owner, peer, chain_addresses, \
    sector_bytes, chain_at, ask_price, ask_min, ask_max, ask_expires, ask_at, score, failures, rests_until, code, \
    error, created FROM providers";

impl Records {
    /// Adds a provider, or gives it other addresses and tags; what it has earned stays.
    ///
    /// # Errors
    /// [`Error::Conflict`] where there are too many.
    pub async fn put_provider(&self, new: NewProvider) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let new = new.clone();
            Box::pin(async move { put(tx, &new).await })
        })
        .await
    }

    /// All of them, by id. They are bounded ([`limits::PROVIDERS`]).
    ///
    /// # Errors
    /// Those of the database.
    pub async fn providers(&self) -> Result<Vec<ProviderRow>, Error> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} ORDER BY id")))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(read).collect()
    }

    /// One of them.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn provider(&self, id: ActorId) -> Result<ProviderRow, Error> {
        one(&mut *self.reader().await?, id).await
    }

    /// Asks it for nothing more, or lifts that. Its deals go on.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn suspend_provider(&self, id: ActorId, why: Option<&str>) -> Result<(), Error> {
        let why: Option<String> = why.map(|why| why.chars().take(Fault::MAX_TEXT).collect());
        self.write(Urgency::Frees, move |tx| {
            let why = why.clone();
            Box::pin(async move { suspend(tx, id, why.as_deref()).await })
        })
        .await
    }

    /// Keeps what the chain says of it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn note_chain(&self, id: ActorId, chain: &ChainProvider) -> Result<(), Error> {
        let (owner, peer) = (db(chain.owner.get()), chain.peer_id.clone());
        let addresses = json(&chain.addresses);
        let sector = db(chain.sector_bytes);
        self.write(Urgency::Takes, move |tx| {
            let (peer, addresses) = (peer.clone(), addresses.clone());
            Box::pin(async move {
                let done = sqlx::query(
                    "UPDATE providers SET owner = $2, peer = $3, chain_addresses = $4, sector_bytes = $5, \
                     chain_at = $6 WHERE id = $1",
                )
                .bind(db(id.get()))
                .bind(owner)
                .bind(peer)
                .bind(addresses)
                .bind(sector)
                .bind(db(tx.now.as_millis()))
                .execute(&mut tx.conn)
                .await?;
                if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
            })
        })
        .await
    }

    /// Keeps its ask.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn note_ask(&self, id: ActorId, ask: Ask) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                let done = sqlx::query(
                    "UPDATE providers SET ask_price = $2, ask_min = $3, ask_max = $4, ask_expires = $5, ask_at = $6 \
                     WHERE id = $1",
                )
                .bind(db(id.get()))
                .bind(ask.price.to_string())
                .bind(db(ask.min_size.bytes()))
                .bind(db(ask.max_size.bytes()))
                .bind(ask.expires.get())
                .bind(db(tx.now.as_millis()))
                .execute(&mut tx.conn)
                .await?;
                if done.rows_affected() == 0 { Err(Error::NotFound) } else { Ok(()) }
            })
        })
        .await
    }

    /// It did well or badly, outside of any deal.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_outcome(
        &self,
        id: ActorId,
        outcome: Outcome,
        now: Epoch,
        error: Option<Fault>,
    ) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let error = error.clone();
            Box::pin(async move { learn(tx, id, outcome, now, error.as_ref()).await })
        })
        .await
    }
}

async fn put(tx: &mut Tx, new: &NewProvider) -> Result<(), Error> {
    let (addresses, regions) = (json(&new.addresses), json(&new.regions));
    let known = one(&mut tx.conn, new.id).await;
    if matches!(known, Err(Error::NotFound)) {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM providers").fetch_one(&mut tx.conn).await?;
        if count >= limits::PROVIDERS {
            limits::hit("providers");
            return Err(Error::Conflict(format!(
                "there are {count} providers already, and no more are kept"
            )));
        }
    }
    let standing = Standing::default();
    sqlx::query(
        "INSERT INTO providers (id, source, addresses, regions, suspended, chain_addresses, score, failures, created) \
         VALUES ($1, $2, $3, $4, 0, '[]', $5, 0, $6) ON CONFLICT (id) DO UPDATE SET source = excluded.source, \
         addresses = excluded.addresses, regions = excluded.regions",
    )
    .bind(db(new.id.get()))
    .bind(&new.source)
    .bind(addresses)
    .bind(regions)
    .bind(i64::from(standing.score))
    .bind(db(tx.now.as_millis()))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

/// Suspends it with a reason, or lifts that, and tells of it where it changes anything.
pub(crate) async fn suspend(tx: &mut Tx, id: ActorId, why: Option<&str>) -> Result<(), Error> {
    let before = one(&mut tx.conn, id).await?;
    sqlx::query("UPDATE providers SET suspended = $2, suspended_why = $3 WHERE id = $1")
        .bind(db(id.get()))
        .bind(i64::from(why.is_some()))
        .bind(why)
        .execute(&mut tx.conn)
        .await?;
    if before.suspended.is_some() == why.is_some() {
        return Ok(());
    }
    let kind = if why.is_some() { "provider.suspended" } else { "provider.lifted" };
    super::events::insert(tx, kind, None, &id.to_string(), &serde_json::json!({ "why": why })).await
}

/// Its standing after what it did. A provider that the operator does not know any more has none.
pub(crate) async fn learn(
    tx: &mut Tx,
    id: ActorId,
    outcome: Outcome,
    now: Epoch,
    error: Option<&Fault>,
) -> Result<(), Error> {
    let before = match one(&mut tx.conn, id).await {
        Ok(row) => row.standing,
        Err(Error::NotFound) => return Ok(()),
        Err(error) => return Err(error),
    };
    let after = before.after(outcome, now);
    sqlx::query(
        "UPDATE providers SET score = $2, failures = $3, rests_until = $4, code = COALESCE($5, code), \
         error = COALESCE($6, error) WHERE id = $1",
    )
    .bind(db(id.get()))
    .bind(i64::from(after.score))
    .bind(i64::from(after.failures))
    .bind(after.rests_until.map(Epoch::get))
    .bind(error.map(|error| error.code.as_str()))
    .bind(error.map(|error| error.text.as_str()))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

/// Lets it be asked again at once.
pub(crate) async fn wake(tx: &mut Tx, id: ActorId) -> Result<(), Error> {
    sqlx::query("UPDATE providers SET rests_until = NULL, failures = 0 WHERE id = $1")
        .bind(db(id.get()))
        .execute(&mut tx.conn)
        .await?;
    Ok(())
}

pub(crate) async fn one(conn: &mut SqliteConnection, id: ActorId) -> Result<ProviderRow, Error> {
    let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE id = $1")))
        .bind(db(id.get()))
        .fetch_optional(conn)
        .await?;
    read(&row.ok_or(Error::NotFound)?)
}

fn json(list: &[String]) -> String {
    serde_json::Value::from(list.to_vec()).to_string()
}

fn read(row: &SqliteRow) -> Result<ProviderRow, Error> {
    let id = ActorId::new(num(row.try_get("id")?));
    let odd = |_| Error::Damaged(format!("the row of provider {id} is damaged: add it again"));
    let list = |column: &str| -> Result<Vec<String>, Error> {
        let text: String = row.try_get(column)?;
        serde_json::from_str(&text).map_err(odd)
    };
    let at = |column: &str| -> Result<Option<Timestamp>, Error> {
        Ok(row.try_get::<Option<i64>, _>(column)?.map(|at| Timestamp::from_millis(num(at))))
    };
    let suspended: Option<String> = row.try_get("suspended_why")?;
    let is_suspended = row.try_get::<i64, _>("suspended")? != 0;
    let code: Option<String> = row.try_get("code")?;
    let text: Option<String> = row.try_get("error")?;
    let owner: Option<i64> = row.try_get("owner")?;
    let sector_bytes: Option<i64> = row.try_get("sector_bytes")?;
    let chain = owner.zip(sector_bytes).map(|(owner, sector)| -> Result<ChainProvider, Error> {
        Ok(ChainProvider {
            owner: ActorId::new(num(owner)),
            peer_id: row.try_get("peer")?,
            addresses: list("chain_addresses")?,
            sector_bytes: num(sector),
        })
    });
    let score = u16::try_from(row.try_get::<i64, _>("score")?).unwrap_or(0);
    let failures = u32::try_from(row.try_get::<i64, _>("failures")?).unwrap_or(u32::MAX);
    Ok(ProviderRow {
        id,
        source: row.try_get("source")?,
        addresses: list("addresses")?,
        regions: list("regions")?,
        suspended: is_suspended.then(|| suspended.unwrap_or_default()),
        chain: chain.transpose()?.zip(at("chain_at")?),
        ask: ask(row)?.zip(at("ask_at")?),
        standing: Standing {
            score,
            failures,
            rests_until: row.try_get::<Option<i64>, _>("rests_until")?.map(Epoch::new),
        },
        error: code
            .and_then(|code| FailureCode::parse(&code))
            .map(|code| Fault::new(code, text.unwrap_or_default())),
        created: Timestamp::from_millis(num(row.try_get("created")?)),
    })
}

/// Its ask; `None` for one that cannot be read: then a fresh one is asked for.
fn ask(row: &SqliteRow) -> Result<Option<Ask>, Error> {
    let price: Option<String> = row.try_get("ask_price")?;
    let size = |column: &str| -> Result<Option<PaddedSize>, Error> {
        Ok(row.try_get::<Option<i64>, _>(column)?.and_then(|bytes| PaddedSize::from_bytes(num(bytes))))
    };
    let expires: Option<i64> = row.try_get("ask_expires")?;
    let (price, min, max) =
        (price.and_then(|p| p.parse::<AttoFil>().ok()), size("ask_min")?, size("ask_max")?);
    let parts = price.zip(min).zip(max).zip(expires);
    Ok(parts.map(|(((price, min_size), max_size), expires)| Ask {
        price,
        min_size,
        max_size,
        expires: Epoch::new(expires),
    }))
}
