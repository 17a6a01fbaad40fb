//! Messages that were signed, and what is known of the chain.
//!
//! The rows hold what the journal of `filecoin` asks for, as bytes and numbers: what a message does is not known here.
//! In the transaction that adds one it is checked that its intent and its number are new and that no more wait than may;
//! a version is added behind those that the caller has seen, or not at all. What is final is never changed again.

use floe_core::{Cid, Epoch};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use super::facts;
use crate::pins::row::{db, digest_field, num};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// A message that was signed for an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageRow {
    /// What it is for.
    pub intent: String,
    /// The sender's address, as text.
    pub wallet: String,
    /// Its number among the sender's.
    pub nonce: u64,
    /// The head when it was signed.
    pub since: Epoch,
    /// How far it is.
    pub step: MessageStep,
    /// The signed bytes, from the first to the last replacement.
    pub versions: Vec<MessageVersion>,
}

/// One signed form of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageVersion {
    /// What the node calls it.
    pub cid: Cid,
    /// In CBOR, with the signature.
    pub bytes: Vec<u8>,
    /// The head when it was last pushed.
    pub pushed_at: Option<Epoch>,
}

/// How far a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageStep {
    /// Signed; whether it reached the pool is not known.
    Signed,
    /// The pool has it.
    Pooled,
    /// The node refused it when it was last pushed.
    Refused(String),
    /// On the chain, not final.
    Included {
        /// Which version.
        version: u32,
        /// Where.
        height: Epoch,
    },
    /// On the chain for good.
    Final {
        /// Which version.
        version: u32,
        /// Where.
        height: Epoch,
        /// 0 where it did what it should.
        exit_code: i64,
    },
    /// The chain is past its number, and the node finds no version of it.
    Missing,
}

/// What is known of the chain from one start to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainRow {
    /// The network's name.
    pub network: String,
    /// Its first block.
    pub genesis: Cid,
    /// The highest head that was written down.
    pub highest: Epoch,
}

const FINAL: i64 = 4;
/// The one row of `chain`.
const CHAIN: i64 = 1;

impl Records {
    /// The message of an intent; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Damaged`]; those of the database.
    pub async fn message(&self, intent: &str) -> Result<Option<MessageRow>, Error> {
        by_intent(&mut *self.reader().await?, intent).await
    }

    /// The highest number that a message of this wallet has; `None` where it never had one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn last_nonce(&self, wallet: &str) -> Result<Option<u64>, Error> {
        last_nonce(&mut *self.reader().await?, wallet).await
    }

    /// The wallet's messages that are not final, by number.
    ///
    /// # Errors
    /// [`Error::Damaged`]; those of the database.
    pub async fn open_messages(&self, wallet: &str) -> Result<Vec<MessageRow>, Error> {
        open(&mut *self.reader().await?, wallet).await
    }

    /// Adds a message with its first version. Acknowledged means synced: what is pushed afterwards is written down.
    ///
    /// # Errors
    /// [`Error::Conflict`] for an intent, a number or bytes that are there, or a number below one of the wallet's;
    /// [`Error::Quota`] where `most` wait for a block or for finality: one that is missing waits for nothing.
    pub async fn add_message(&self, row: MessageRow, most: u32) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let row = row.clone();
            Box::pin(async move { add(tx, &row, most).await })
        })
        .await
    }

    /// Adds a version behind the `seen` ones that the caller knows.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the message is final, is not there, has other versions than that, or the bytes are there.
    pub async fn add_message_version(
        &self,
        intent: String,
        seen: u32,
        version: MessageVersion,
    ) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let (intent, version) = (intent.clone(), version.clone());
            Box::pin(async move { add_version(tx, &intent, seen, &version).await })
        })
        .await
    }

    /// Writes down how far a message is, and the head at which its last version was pushed, where it was. Goes on when
    /// the disk is full: money hangs on it.
    ///
    /// # Errors
    /// [`Error::Conflict`] where the message is final, or is not there.
    pub async fn message_step(
        &self,
        intent: String,
        step: MessageStep,
        pushed_at: Option<Epoch>,
    ) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| {
            let (intent, step) = (intent.clone(), step.clone());
            Box::pin(async move { set_step(tx, &intent, step, pushed_at).await })
        })
        .await
    }

    /// What is known of the chain; `None` before [`Records::pin_chain`].
    ///
    /// # Errors
    /// [`Error::Damaged`]; those of the database.
    pub async fn chain(&self) -> Result<Option<ChainRow>, Error> {
        chain(&mut *self.reader().await?).await
    }

    /// Writes down the network. Changes nothing where one is written down already.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn pin_chain(&self, network: String, genesis: Cid) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let row = ChainRow { network: network.clone(), genesis, highest: Epoch::default() };
            Box::pin(async move {
                if chain(&mut tx.conn).await?.is_some() {
                    return Ok(());
                }
                put_chain(&mut tx.conn, &row).await
            })
        })
        .await
    }

    /// Writes down a head of the chain. Changes nothing where a higher one is written down, or no network.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn saw_chain(&self, head: Epoch) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| {
            Box::pin(async move {
                let known = chain(&mut tx.conn).await?.filter(|known| known.highest < head);
                let Some(known) = known else { return Ok(()) };
                put_chain(&mut tx.conn, &ChainRow { highest: head, ..known }).await
            })
        })
        .await
    }
}

async fn add(tx: &mut Tx, row: &MessageRow, most: u32) -> Result<(), Error> {
    facts::fence(tx).await?;
    let conflict = |what: &str| Err(Error::Conflict(format!("the message for {:?}: {what}", row.intent)));
    let [version] = row.versions.as_slice() else { return conflict("it begins with one version") };
    if by_intent(&mut tx.conn, &row.intent).await?.is_some() {
        return conflict("the intent has a message already");
    }
    if last_nonce(&mut tx.conn, &row.wallet).await?.is_some_and(|last| row.nonce <= last) {
        return conflict("the nonce is taken");
    }
    let waiting: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM messages WHERE wallet = $1 AND step <> 4 AND step <> 5")
            .bind(&row.wallet)
            .fetch_one(&mut tx.conn)
            .await?;
    if num(waiting) >= u64::from(most) {
        limits::hit("unconfirmed_messages");
        return Err(Error::Quota(format!("the wallet {} has {waiting} unconfirmed messages", row.wallet)));
    }
    put(&mut tx.conn, row).await?;
    put_version(tx, &row.intent, 0, version).await
}

async fn put(conn: &mut SqliteConnection, row: &MessageRow) -> Result<(), Error> {
    let (code, version, height, exit_code, reason) = columns(&row.step);
    sqlx::query(
        "INSERT INTO messages (intent, wallet, nonce, since, step, version, height, exit_code, reason, digest) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (intent) DO UPDATE SET step = excluded.step, \
         version = excluded.version, height = excluded.height, exit_code = excluded.exit_code, \
         reason = excluded.reason, digest = excluded.digest",
    )
    .bind(&row.intent)
    .bind(&row.wallet)
    .bind(db(row.nonce))
    .bind(row.since.get())
    .bind(code)
    .bind(version)
    .bind(height)
    .bind(exit_code)
    .bind(reason)
    .bind(digest(row))
    .execute(conn)
    .await?;
    Ok(())
}

async fn put_version(tx: &mut Tx, intent: &str, number: u32, version: &MessageVersion) -> Result<(), Error> {
    let cid = version.cid.to_bytes();
    let known: Option<String> = sqlx::query_scalar("SELECT intent FROM message_versions WHERE cid = $1")
        .bind(&cid)
        .fetch_optional(&mut tx.conn)
        .await?;
    if let Some(other) = known {
        return Err(Error::Conflict(format!("the message {} is there already, for {other:?}", version.cid)));
    }
    sqlx::query(
        "INSERT INTO message_versions (intent, number, cid, bytes, pushed_at, digest) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(intent)
    .bind(i64::from(number))
    .bind(cid)
    .bind(&version.bytes)
    .bind(version.pushed_at.map(Epoch::get))
    .bind(version_digest(intent, number, version))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

/// The message of an intent as long as it may change.
async fn open_one(conn: &mut SqliteConnection, intent: &str) -> Result<MessageRow, Error> {
    let open = by_intent(conn, intent).await?.filter(|row| !matches!(row.step, MessageStep::Final { .. }));
    open.ok_or_else(|| Error::Conflict(format!("no open message has the intent {intent:?}")))
}

async fn add_version(tx: &mut Tx, intent: &str, seen: u32, version: &MessageVersion) -> Result<(), Error> {
    facts::fence(tx).await?;
    let row = open_one(&mut tx.conn, intent).await?;
    if row.versions.len() as u64 != u64::from(seen) {
        return Err(Error::Conflict(format!("the message for {intent:?} was replaced in the meantime")));
    }
    put_version(tx, intent, seen, version).await
}

async fn set_step(
    tx: &mut Tx,
    intent: &str,
    step: MessageStep,
    pushed_at: Option<Epoch>,
) -> Result<(), Error> {
    let mut row = open_one(&mut tx.conn, intent).await?;
    row.step = step;
    put(&mut tx.conn, &row).await?;
    let Some((head, last)) = pushed_at.zip(row.versions.last()) else { return Ok(()) };
    let number = u32::try_from(row.versions.len() - 1).unwrap_or(u32::MAX);
    let version = MessageVersion { pushed_at: Some(head), ..last.clone() };
    sqlx::query("UPDATE message_versions SET pushed_at = $3, digest = $4 WHERE intent = $1 AND number = $2")
        .bind(intent)
        .bind(i64::from(number))
        .bind(head.get())
        .bind(version_digest(intent, number, &version))
        .execute(&mut tx.conn)
        .await?;
    Ok(())
}

async fn last_nonce(conn: &mut SqliteConnection, wallet: &str) -> Result<Option<u64>, Error> {
    let last: Option<i64> =
        sqlx::query_scalar("SELECT nonce FROM messages WHERE wallet = $1 ORDER BY nonce DESC LIMIT 1")
            .bind(wallet)
            .fetch_optional(conn)
            .await?;
    Ok(last.map(num))
}

async fn by_intent(conn: &mut SqliteConnection, intent: &str) -> Result<Option<MessageRow>, Error> {
    let row = sqlx::query("SELECT * FROM messages WHERE intent = $1")
        .bind(intent)
        .fetch_optional(&mut *conn)
        .await?;
    match row {
        Some(row) => read(conn, &row).await.map(Some),
        None => Ok(None),
    }
}

async fn open(conn: &mut SqliteConnection, wallet: &str) -> Result<Vec<MessageRow>, Error> {
    let rows = sqlx::query("SELECT * FROM messages WHERE wallet = $1 AND step <> 4 ORDER BY nonce")
        .bind(wallet)
        .fetch_all(&mut *conn)
        .await?;
    let mut out = Vec::with_capacity(rows.len());
    for row in &rows {
        out.push(read(conn, row).await?);
    }
    Ok(out)
}

async fn read(conn: &mut SqliteConnection, row: &SqliteRow) -> Result<MessageRow, Error> {
    let intent: String = row.try_get("intent")?;
    let damaged = || {
        Error::Damaged(format!(
            "the row of the message for {intent:?} is damaged: restore it from a backup; nothing is sent before"
        ))
    };
    let read = || -> Result<(MessageRow, Vec<u8>), sqlx::Error> {
        let row_ = MessageRow {
            intent: intent.clone(),
            wallet: row.try_get("wallet")?,
            nonce: num(row.try_get("nonce")?),
            since: Epoch::new(row.try_get("since")?),
            step: step_of(row)?.ok_or(sqlx::Error::RowNotFound)?,
            versions: Vec::new(),
        };
        Ok((row_, row.try_get("digest")?))
    };
    let (mut message, stored) = read().map_err(|_| damaged())?;
    if digest(&message) != stored {
        return Err(damaged());
    }
    message.versions = versions(conn, &intent).await?.ok_or_else(damaged)?;
    Ok(message)
}

/// The versions of a message in their order; `None` where one of them is damaged, or missing.
async fn versions(conn: &mut SqliteConnection, intent: &str) -> Result<Option<Vec<MessageVersion>>, Error> {
    let rows = sqlx::query(
        "SELECT number, cid, bytes, pushed_at, digest FROM message_versions WHERE intent = $1 ORDER BY number",
    )
    .bind(intent)
    .fetch_all(conn)
    .await?;
    let mut out = Vec::with_capacity(rows.len());
    for (number, row) in (0_u32..).zip(&rows) {
        let Ok(cid) = Cid::try_from(row.try_get::<Vec<u8>, _>("cid")?.as_slice()) else { return Ok(None) };
        let pushed_at = row.try_get::<Option<i64>, _>("pushed_at")?.map(Epoch::new);
        let version = MessageVersion { cid, bytes: row.try_get("bytes")?, pushed_at };
        let whole = row.try_get::<i64, _>("number")? == i64::from(number)
            && row.try_get::<Vec<u8>, _>("digest")? == version_digest(intent, number, &version);
        if !whole {
            return Ok(None);
        }
        out.push(version);
    }
    Ok(Some(out).filter(|versions| !versions.is_empty()))
}

type Columns<'a> = (i64, Option<i64>, Option<i64>, Option<i64>, Option<&'a str>);

fn columns(step: &MessageStep) -> Columns<'_> {
    match step {
        MessageStep::Signed => (0, None, None, None, None),
        MessageStep::Pooled => (1, None, None, None, None),
        MessageStep::Refused(reason) => (2, None, None, None, Some(reason)),
        MessageStep::Included { version, height } => {
            (3, Some(i64::from(*version)), Some(height.get()), None, None)
        }
        MessageStep::Final { version, height, exit_code } => {
            (FINAL, Some(i64::from(*version)), Some(height.get()), Some(*exit_code), None)
        }
        MessageStep::Missing => (5, None, None, None, None),
    }
}

/// `None` for a row that this Floe does not know.
fn step_of(row: &SqliteRow) -> Result<Option<MessageStep>, sqlx::Error> {
    let version = row.try_get::<Option<i64>, _>("version")?.and_then(|version| u32::try_from(version).ok());
    let height = row.try_get::<Option<i64>, _>("height")?.map(Epoch::new);
    let exit_code: Option<i64> = row.try_get("exit_code")?;
    let reason: Option<String> = row.try_get("reason")?;
    Ok(match row.try_get::<i64, _>("step")? {
        0 => Some(MessageStep::Signed),
        1 => Some(MessageStep::Pooled),
        2 => reason.map(MessageStep::Refused),
        3 => version.zip(height).map(|(version, height)| MessageStep::Included { version, height }),
        FINAL => version
            .zip(height)
            .zip(exit_code)
            .map(|((version, height), exit_code)| MessageStep::Final { version, height, exit_code }),
        5 => Some(MessageStep::Missing),
        _ => None,
    })
}

fn digest(row: &MessageRow) -> Vec<u8> {
    let (code, version, height, exit_code, reason) = columns(&row.step);
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 message row");
    digest_field(&mut hash, Some(row.intent.as_bytes()));
    digest_field(&mut hash, Some(row.wallet.as_bytes()));
    for number in [db(row.nonce), row.since.get(), code] {
        digest_field(&mut hash, Some(&number.to_le_bytes()));
    }
    for number in [version, height, exit_code] {
        digest_field(&mut hash, number.map(i64::to_le_bytes).as_ref().map(<[u8; 8]>::as_slice));
    }
    digest_field(&mut hash, reason.map(str::as_bytes));
    hash.finalize().as_bytes()[..16].to_vec()
}

fn version_digest(intent: &str, number: u32, version: &MessageVersion) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 message version row");
    let pushed_at = version.pushed_at.map(|at| at.get().to_le_bytes());
    let fields: [Option<&[u8]>; 5] = [
        Some(intent.as_bytes()),
        Some(&number.to_le_bytes()),
        Some(&version.cid.to_bytes()),
        Some(&version.bytes),
        pushed_at.as_ref().map(<[u8; 8]>::as_slice),
    ];
    fields.into_iter().for_each(|field| digest_field(&mut hash, field));
    hash.finalize().as_bytes()[..16].to_vec()
}

async fn chain(conn: &mut SqliteConnection) -> Result<Option<ChainRow>, Error> {
    let row = sqlx::query("SELECT network, genesis, highest, digest FROM chain WHERE id = $1")
        .bind(CHAIN)
        .fetch_optional(conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let damaged = "what is known of the chain is damaged: restore the database from a backup";
    let genesis = Cid::try_from(row.try_get::<Vec<u8>, _>("genesis")?.as_slice());
    let known = ChainRow {
        network: row.try_get("network")?,
        genesis: genesis.map_err(|_| Error::Damaged(damaged.into()))?,
        highest: Epoch::new(row.try_get("highest")?),
    };
    if row.try_get::<Vec<u8>, _>("digest")? != chain_digest(&known) {
        return Err(Error::Damaged(damaged.into()));
    }
    Ok(Some(known))
}

async fn put_chain(conn: &mut SqliteConnection, row: &ChainRow) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO chain (id, network, genesis, highest, digest) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET highest = excluded.highest, digest = excluded.digest",
    )
    .bind(CHAIN)
    .bind(&row.network)
    .bind(row.genesis.to_bytes())
    .bind(row.highest.get())
    .bind(chain_digest(row))
    .execute(conn)
    .await?;
    Ok(())
}

fn chain_digest(row: &ChainRow) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 chain row");
    digest_field(&mut hash, Some(row.network.as_bytes()));
    digest_field(&mut hash, Some(&row.genesis.to_bytes()));
    digest_field(&mut hash, Some(&row.highest.get().to_le_bytes()));
    hash.finalize().as_bytes()[..16].to_vec()
}
