//! Single facts that outlive the process: how far it has seen, whether it may spend, and what it sends into escrow.
//!
//! ```text
//!   head        the highest head that was ever seen: a node that falls behind it is stale
//!   scan        the next height at which published deals are looked for
//!   spending    `on` or `off`, and who said so; nobody: as the configuration says
//!   epoch       of the ledger: one more at each start that may spend. It is the lease of the wallet: see [`fence`]
//!   lead        the longest start lead that a deal was ever given
//!   top_up      the number of the last top-up of escrow, and its amount while it is on its way
//!   generation  the least that the next attempt for a slot has: restored rows would give one a second time
//!   restored    these rows are older than what was done with the wallet since: see [`Restored`]
//!   home        the file that these rows lie in, by something that no copy of it shares
//! ```
//!
//! Each carries a digest: a damaged switch is read as an error, never as `on`.

use floe_core::{AttoFil, Epoch, Timestamp};
use sqlx::{Row, SqliteConnection};

use crate::pins::row::{db, digest_field, num};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records};

/// The switch of `floe spending on|off`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switch {
    /// Whether it stands at `on`. It is `on` where nobody has touched it: then the configuration decides.
    pub on: bool,
    /// Who moved it last, and when.
    pub moved: Option<(String, Timestamp)>,
}

/// The rows were restored from a backup, or show in another way that they do not know all that was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// When that was found out.
    pub at: Timestamp,
    /// From then on nobody can publish what these rows do not know; `None` until the chain was looked at.
    pub safe_from: Option<Epoch>,
}

/// Money on its way into escrow. Its number makes the intent under which it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopUp {
    /// 1 for the first.
    pub number: u64,
    /// How much.
    pub amount: AttoFil,
}

impl Records {
    /// The highest head that was seen.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn highest_head(&self) -> Result<Option<Epoch>, Error> {
        epoch_of(&mut *self.reader().await?, "head").await
    }

    /// Keeps the highest of all heads; returns it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn note_head(&self, head: Epoch) -> Result<Epoch, Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                let highest = epoch_of(&mut tx.conn, "head").await?.map_or(head, |seen| seen.max(head));
                store(tx, "head", &highest.to_string()).await?;
                Ok(highest)
            })
        })
        .await
    }

    /// The next height at which published deals are looked for; `None` before the first look.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn scan_from(&self) -> Result<Option<Epoch>, Error> {
        epoch_of(&mut *self.reader().await?, "scan").await
    }

    /// Everything below `next` was looked through.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn scanned_to(&self, next: Epoch) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move { store(tx, "scan", &next.to_string()).await })
        })
        .await
    }

    /// How the switch stands.
    ///
    /// # Errors
    /// [`Error::Damaged`]: then nothing may be spent.
    pub async fn spending_switch(&self) -> Result<Switch, Error> {
        switch(&mut *self.reader().await?).await
    }

    /// Moves the switch: durable on return, and no transaction after this one begins to spend where it is off.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn switch_spending(&self, on: bool, by: &str) -> Result<(), Error> {
        let by: String = by.chars().filter(|c| !c.is_control()).take(255).collect();
        self.write(Urgency::Frees, move |tx| {
            let value = format!("{} {by}", if on { "on" } else { "off" });
            let by = by.clone();
            Box::pin(async move {
                store(tx, "spending", &value).await?;
                let kind = if on { "spending.on" } else { "spending.off" };
                super::events::insert(tx, kind, None, "spending", &serde_json::json!({ "by": by })).await
            })
        })
        .await
    }

    /// Begins a new epoch of the ledger, at a start that may spend. Returns its number. From then on whoever began an
    /// earlier one gets [`Error::Fenced`] for all that commits money.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn begin_ledger_epoch(&self) -> Result<u64, Error> {
        self.write(Urgency::Takes, |tx| {
            Box::pin(async move {
                let next = ledger_epoch(&mut tx.conn).await?.saturating_add(1);
                store(tx, "epoch", &next.to_string()).await?;
                tx.ledger_epoch = Some(next);
                Ok(next)
            })
        })
        .await
    }

    /// The longest start lead that any deal was given: so long its bytes could be published. 0: there was none.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn longest_lead(&self) -> Result<i64, Error> {
        Ok(epoch_of(&mut *self.reader().await?, "lead").await?.map_or(0, Epoch::get))
    }

    /// The top-up of escrow that is on its way, if one is.
    ///
    /// # Errors
    /// [`Error::Damaged`]: then none may be sent.
    pub async fn open_top_up(&self) -> Result<Option<TopUp>, Error> {
        Ok(top_up(&mut *self.reader().await?).await?.1)
    }

    /// Begins a top-up, before anything is sent for it. One at a time: where one is open it comes back as it is.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn begin_top_up(&self, amount: AttoFil) -> Result<TopUp, Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                fence(tx).await?;
                let (last, open) = top_up(&mut tx.conn).await?;
                if let Some(open) = open {
                    return Ok(open);
                }
                let number = last + 1;
                store(tx, "top_up", &format!("{number} {amount}")).await?;
                Ok(TopUp { number, amount })
            })
        })
        .await
    }

    /// The top-up is on the chain for good, or was never signed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end_top_up(&self, number: u64) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                match top_up(&mut tx.conn).await? {
                    (_, Some(open)) if open.number == number => {
                        store(tx, "top_up", &number.to_string()).await
                    }
                    _ => Ok(()),
                }
            })
        })
        .await
    }

    /// Whether these rows may not know all that was signed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn restored(&self) -> Result<Option<Restored>, Error> {
        restored(&mut *self.reader().await?).await
    }

    /// These rows were restored, or do not know a deal that the chain has from this wallet: slots without a live deal
    /// wait. Said twice it is said once, until [`Records::restore_settled`].
    ///
    /// # Errors
    /// Those of the database.
    pub async fn mark_restored(&self, why: &str) -> Result<(), Error> {
        let why: String = why.chars().take(1_024).collect();
        self.write(Urgency::Frees, move |tx| {
            let why = why.clone();
            Box::pin(async move { mark(tx, &why).await })
        })
        .await
    }

    /// Where these rows lie, by something that a copy of the file does not share, such as its inode. Where it is not what
    /// it was, somebody put a copy in place: the rows count as restored. Says whether that is so.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn at_home(&self, home: &str) -> Result<bool, Error> {
        let home = home.to_owned();
        self.write(Urgency::Frees, move |tx| {
            let home = home.clone();
            Box::pin(async move {
                let known = read(&mut tx.conn, "home").await?.map(|(known, _)| known);
                if known.as_ref() == Some(&home) {
                    return Ok(false);
                }
                if known.is_some() {
                    mark(tx, "the data directory is a copy").await?;
                }
                store(tx, "home", &home).await?;
                Ok(known.is_some())
            })
        })
        .await
    }

    /// From `safe_from` on nothing that these rows do not know can be published: the last of it could have been signed
    /// just before they were restored.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn restored_until(&self, safe_from: Epoch) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            Box::pin(async move {
                match restored(&mut tx.conn).await? {
                    Some(Restored { safe_from: None, .. }) => {
                        store(tx, "restored", &safe_from.to_string()).await
                    }
                    _ => Ok(()),
                }
            })
        })
        .await
    }

    /// The wait is over, or the operator says that nothing is out: slots are filled again.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn restore_settled(&self, by: &str) -> Result<(), Error> {
        let by: String = by.chars().filter(|c| !c.is_control()).take(255).collect();
        self.write(Urgency::Frees, move |tx| {
            let by = by.clone();
            Box::pin(async move {
                let gone =
                    sqlx::query("DELETE FROM facts WHERE name = 'restored'").execute(&mut tx.conn).await?;
                if gone.rows_affected() == 0 {
                    return Ok(());
                }
                let body = serde_json::json!({ "by": by });
                super::events::insert(tx, "ledger.settled", None, "ledger", &body).await
            })
        })
        .await
    }
}

/// One writer for each wallet: the lock of the data directory keeps a second process out, and where it does not (a
/// network's file system, rows on a shared disk) the first that began to spend stops here, in the same transaction as
/// what it was about to commit. All that reserves, signs or sends passes it; what happened may be noted all the same.
pub(crate) async fn fence(tx: &mut Tx) -> Result<(), Error> {
    let (found, ours) = (ledger_epoch(&mut tx.conn).await?, tx.ledger_epoch.unwrap_or(0));
    if ours != 0 && found == ours { Ok(()) } else { Err(Error::Fenced { found, ours }) }
}

/// The epoch of the ledger that was begun last; 0 for none.
async fn ledger_epoch(conn: &mut SqliteConnection) -> Result<u64, Error> {
    let Some((value, _)) = read(conn, "epoch").await? else { return Ok(0) };
    value.parse().map_err(|_| Error::Damaged("the epoch of the ledger cannot be read".into()))
}

/// How the switch stands, inside whatever asks.
pub(crate) async fn switch(conn: &mut SqliteConnection) -> Result<Switch, Error> {
    let Some((value, at)) = read(conn, "spending").await? else {
        return Ok(Switch { on: true, moved: None });
    };
    let (word, by) = value.split_once(' ').unwrap_or((&value, ""));
    Ok(Switch { on: word == "on", moved: Some((by.to_owned(), at)) })
}

/// Once, until it is settled.
async fn mark(tx: &mut Tx, why: &str) -> Result<(), Error> {
    if restored(&mut tx.conn).await?.is_some() {
        return Ok(());
    }
    store(tx, "restored", "?").await?;
    // A deal's id is made of its generation, and a provider knows it: the attempts that these rows do not know keep theirs.
    let line = super::new_id(tx).as_u64_pair().1 & 0xffff;
    store(tx, "generation", &(line << 12).to_string()).await?;
    let body = serde_json::json!({ "why": why });
    super::events::insert(tx, "ledger.restored", None, "ledger", &body).await
}

async fn restored(conn: &mut SqliteConnection) -> Result<Option<Restored>, Error> {
    let fact = read(conn, "restored").await?;
    Ok(fact.map(|(value, at)| Restored { at, safe_from: value.parse().ok().map(Epoch::new) }))
}

/// The number of the last top-up, and it while it is open.
async fn top_up(conn: &mut SqliteConnection) -> Result<(u64, Option<TopUp>), Error> {
    let Some((value, _)) = read(conn, "top_up").await? else { return Ok((0, None)) };
    let (number, amount) = value.split_once(' ').unwrap_or((&value, ""));
    let number = number.parse().map_err(|_| Error::Damaged("the last top-up cannot be read".into()))?;
    Ok((number, amount.parse().ok().map(|amount| TopUp { number, amount })))
}

/// The least generation of a new attempt.
pub(crate) async fn least_generation(conn: &mut SqliteConnection) -> Result<u32, Error> {
    let Some((value, _)) = read(conn, "generation").await? else { return Ok(0) };
    value.parse().map_err(|_| Error::Damaged("the least generation of a deal cannot be read".into()))
}

/// Keeps the longest of all start leads.
pub(crate) async fn note_lead(tx: &mut Tx, lead: u64) -> Result<(), Error> {
    let lead = db(lead);
    let longest = epoch_of(&mut tx.conn, "lead").await?.map_or(0, Epoch::get);
    if lead > longest { store(tx, "lead", &lead.to_string()).await } else { Ok(()) }
}

async fn epoch_of(conn: &mut SqliteConnection, name: &str) -> Result<Option<Epoch>, Error> {
    let fact = read(conn, name).await?;
    Ok(fact.and_then(|(value, _)| value.parse().ok()).map(Epoch::new))
}

/// The fact of this name, and when it was written.
pub(crate) async fn read(
    conn: &mut SqliteConnection,
    name: &str,
) -> Result<Option<(String, Timestamp)>, Error> {
    let row = sqlx::query("SELECT value, at, digest FROM facts WHERE name = $1")
        .bind(name)
        .fetch_optional(conn)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let (value, at): (String, i64) = (row.try_get("value")?, row.try_get("at")?);
    let kept: Vec<u8> = row.try_get("digest")?;
    if digest(name, &value, at) != kept {
        return Err(Error::Damaged(format!("the fact {name:?} is damaged: restore it from a backup")));
    }
    Ok(Some((value, Timestamp::from_millis(num(at)))))
}

/// Writes it over whatever was there.
pub(crate) async fn store(tx: &mut Tx, name: &str, value: &str) -> Result<(), Error> {
    let at = db(tx.now.as_millis());
    sqlx::query(
        "INSERT INTO facts (name, value, at, digest) VALUES ($1, $2, $3, $4) ON CONFLICT (name) DO UPDATE SET \
         value = excluded.value, at = excluded.at, digest = excluded.digest",
    )
    .bind(name)
    .bind(value)
    .bind(at)
    .bind(digest(name, value, at))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

fn digest(name: &str, value: &str, at: i64) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 fact");
    digest_field(&mut hash, Some(name.as_bytes()));
    digest_field(&mut hash, Some(value.as_bytes()));
    digest_field(&mut hash, Some(&at.to_le_bytes()));
    hash.finalize().as_bytes()[..16].to_vec()
}
