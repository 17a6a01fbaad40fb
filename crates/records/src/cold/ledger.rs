//! The ledger: what was set aside under the caps, what became of it, and the sums that the caps are held against.
//!
//! ```text
//!            reserve                    spend
//!   (free) ──────────> reserved ─────────────────> spent
//!                         │ release                  │ refund
//!                         └────────> released <──────┘
//! ```
//!
//! A reservation is taken in the transaction that checks the caps, under an id that makes a repeat harmless: a deal's
//! uuid, or a message's intent. A deal's cost is borne by the accounts whose pins are in its aggregate; the gas of a
//! message belongs to no account. Each change goes into the sums of all, of the day, the account, the account's day, the
//! provider and the month, and in every row `taken = reserved + spent + released` is checked before it is written: what
//! does not add up undoes the whole transaction ([`Error::Damaged`]).
//!
//! Days and months are those in which money was taken: what is released today of a reservation of last week makes room
//! in last week.

use std::collections::BTreeMap;

use floe_core::cold::DealUuid;
use floe_core::spending::{Cap, Caps, Committed, OverCap, split};
use floe_core::{AccountId, ActorId, AttoFil, Timestamp};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::facts;
use crate::pins::row::{db, digest_field};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// Milliseconds of a day.
const DAY: u64 = 86_400_000;

/// What was taken, and where it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Sum {
    /// All that was ever set aside.
    pub taken: AttoFil,
    /// Of that, what may still be spent.
    pub reserved: AttoFil,
    /// What is spent.
    pub spent: AttoFil,
    /// What came back.
    pub released: AttoFil,
}

impl Sum {
    /// What counts against a cap.
    ///
    /// # Errors
    /// [`Error::Damaged`] where it is more than can be.
    pub fn committed(&self) -> Result<AttoFil, Error> {
        self.reserved.checked_add(self.spent).ok_or_else(|| odd("a sum is beyond all FIL that there is"))
    }

    fn adds_up(&self) -> bool {
        let parts = self.reserved.checked_add(self.spent).and_then(|sum| sum.checked_add(self.released));
        parts == Some(self.taken)
    }

    fn after(mut self, change: Change, amount: AttoFil) -> Result<Self, Error> {
        let (from, to) = match change {
            Change::Reserve => {
                self.taken = plus(self.taken, amount)?;
                (None, &mut self.reserved)
            }
            Change::Spend => (Some(&mut self.reserved), &mut self.spent),
            Change::Release => (Some(&mut self.reserved), &mut self.released),
            Change::Refund => (Some(&mut self.spent), &mut self.released),
        };
        *to = plus(*to, amount)?;
        if let Some(from) = from {
            *from = from
                .checked_sub(amount)
                .ok_or_else(|| odd(format!("{amount} attoFIL are to be moved, and {from} are there")))?;
        }
        if self.adds_up() { Ok(self) } else { Err(odd(format!("it does not add up: {self:?}"))) }
    }
}

fn plus(sum: AttoFil, amount: AttoFil) -> Result<AttoFil, Error> {
    sum.checked_add(amount).ok_or_else(|| odd("a sum is beyond all FIL that there is"))
}

fn odd(what: impl std::fmt::Display) -> Error {
    Error::Damaged(format!("the ledger is damaged: {what}; spend nothing, and restore it from a backup"))
}

/// An arrow of the diagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Reserve,
    Spend,
    Release,
    Refund,
}

/// Whose sums [`Records::costs`] lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CostsBy {
    /// Of each account. 0: what belongs to none, which is gas.
    Account,
    /// Of each provider. 0: what goes to none.
    Provider,
    /// Of each month.
    Month,
    /// Of each day.
    Day,
}

/// One line of [`Records::costs`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// The account's or provider's number, the month as `202612`, or the day since 1970.
    pub key: i64,
    /// The sums.
    pub sum: Sum,
}

/// What counts against the caps now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Today's.
    pub day: Sum,
    /// Of all time.
    pub lifetime: Sum,
}

impl Totals {
    /// What the caps of a day and of a lifetime leave for gas and for deals.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn left(&self, caps: &Caps) -> Result<AttoFil, Error> {
        let day = caps.day.checked_sub(self.day.committed()?).unwrap_or_default();
        let lifetime = caps.lifetime.checked_sub(self.lifetime.committed()?).unwrap_or_default();
        Ok(day.min(lifetime))
    }
}

impl Records {
    /// What counts against the caps.
    ///
    /// # Errors
    /// [`Error::Damaged`]: then nothing may be spent.
    pub async fn totals(&self) -> Result<Totals, Error> {
        let day = day_of(self.inner.clock.now());
        let mut conn = self.reader().await?;
        Ok(Totals {
            day: sum_of(&mut conn, Scope::Day(day)).await?,
            lifetime: sum_of(&mut conn, Scope::All).await?,
        })
    }

    /// What an account has committed today, and ever.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub async fn totals_of(&self, account: AccountId) -> Result<Totals, Error> {
        let day = day_of(self.inner.clock.now());
        let mut conn = self.reader().await?;
        Ok(Totals {
            day: sum_of(&mut conn, Scope::AccountDay(account.0, day)).await?,
            lifetime: sum_of(&mut conn, Scope::Account(account.0)).await?,
        })
    }

    /// The sums by what they are of, behind `after` in the order of their keys; at most [`limits::PAGE`].
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub async fn costs(&self, by: CostsBy, after: Option<i64>, most: u32) -> Result<Vec<Cost>, Error> {
        let (kind, key) = match by {
            CostsBy::Account => (2, "who"),
            CostsBy::Provider => (4, "who"),
            CostsBy::Month => (5, "span"),
            CostsBy::Day => (1, "span"),
        };
        let sql = match key {
            "who" => {
                "SELECT who AS of_key, kind, who, span, taken, reserved, spent, released, digest FROM sums \
                 WHERE kind = $1 AND who > $2 ORDER BY who LIMIT $3"
            }
            _ => {
                "SELECT span AS of_key, kind, who, span, taken, reserved, spent, released, digest FROM sums \
                 WHERE kind = $1 AND who = 0 AND span > $2 ORDER BY span LIMIT $3"
            }
        };
        let rows = sqlx::query(sql)
            .bind(kind)
            .bind(after.unwrap_or(-1))
            .bind(i64::from(most.min(limits::PAGE)))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(|row| Ok(Cost { key: row.try_get("of_key")?, sum: read_sum(row)? })).collect()
    }

    /// What accounts bear of a deal, in the order of the accounts.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub async fn shares(&self, deal: DealUuid) -> Result<Vec<(AccountId, Sum)>, Error> {
        let held = held(&mut *self.reader().await?, &deal.to_string()).await?;
        Ok(held.into_iter().map(|part| (AccountId(part.account), part.sum)).collect())
    }

    /// Reserves the gas of a message before it is sent, or more of it before it is replaced: where as much is reserved, or it
    /// is spent, it does nothing, and where it was let go of it is reserved anew. It counts on the day of the last that was
    /// reserved. The inner error says which cap does not permit it: then what is reserved stays as it is.
    ///
    /// # Errors
    /// [`Error::Damaged`], and those of the database.
    pub async fn reserve_gas(
        &self,
        intent: &str,
        fee: AttoFil,
        caps: &Caps,
    ) -> Result<Result<(), OverCap>, Error> {
        let (id, caps) = (message_id(intent), *caps);
        self.write(Urgency::Takes, move |tx| {
            let id = id.clone();
            Box::pin(async move {
                facts::fence(tx).await?;
                let today = day_of(tx.now);
                let before = held(&mut tx.conn, &id).await?.into_iter().next();
                let had = before.as_ref().map_or(AttoFil::ZERO, |part| part.sum.reserved);
                if before.as_ref().is_some_and(|part| !part.sum.spent.is_zero())
                    || (had >= fee && !had.is_zero())
                {
                    return Ok(Ok(()));
                }
                let all = committed(tx).await?;
                let is_of_today = before.as_ref().is_some_and(|part| part.day == today);
                let had_today = if is_of_today { had } else { AttoFil::ZERO };
                let mut beside = all;
                (beside.day, beside.lifetime) = (less(all.day, had_today)?, less(all.lifetime, had)?);
                if let Err(over) = caps.permit_gas(&beside, fee) {
                    limits::hit(over.cap.name());
                    return Ok(Err(over));
                }
                near(tx, Cap::Day, caps.day, (all.day, less(fee, had_today)?), None).await?;
                near(tx, Cap::Lifetime, caps.lifetime, (all.lifetime, less(fee, had)?), None).await?;
                match before {
                    Some(part) if is_of_today => {
                        shift(tx, part, Change::Reserve, less(fee, had)?).await?;
                    }
                    Some(mut part) => {
                        shift(tx, part.clone(), Change::Release, had).await?;
                        part.sum = part.sum.after(Change::Release, had)?;
                        lay_aside(tx, part).await?;
                        take(tx, &id, 0, &[(0, fee)]).await?;
                    }
                    None => take(tx, &id, 0, &[(0, fee)]).await?,
                }
                Ok(Ok(()))
            })
        })
        .await
    }

    /// The message is signed: no more than `most` can be spent on it. What is reserved beyond that is free again.
    ///
    /// # Errors
    /// [`Error::Damaged`], and those of the database.
    pub async fn gas_is_at_most(&self, intent: &str, most: AttoFil) -> Result<(), Error> {
        self.change_gas(intent, move |sum| {
            Ok(sum.reserved.checked_sub(most).map(|rest| (Change::Release, rest)))
        })
        .await
    }

    /// The message is final: what is reserved for it counts as spent, since how much of it was burnt is not known.
    ///
    /// # Errors
    /// [`Error::Damaged`], and those of the database.
    pub async fn gas_is_spent(&self, intent: &str) -> Result<(), Error> {
        self.change_gas(intent, |sum| Ok(Some((Change::Spend, sum.reserved)))).await
    }

    /// Nothing was signed for the intent, and nothing will be.
    ///
    /// # Errors
    /// [`Error::Damaged`], and those of the database.
    pub async fn gas_is_free(&self, intent: &str) -> Result<(), Error> {
        self.change_gas(intent, |sum| Ok(Some((Change::Release, sum.reserved)))).await
    }

    /// Whether gas is reserved for an intent, and not settled.
    ///
    /// # Errors
    /// [`Error::Damaged`], and those of the database.
    pub async fn holds_gas(&self, intent: &str) -> Result<bool, Error> {
        let held = held(&mut *self.reader().await?, &message_id(intent)).await?;
        Ok(held.iter().any(|part| !part.sum.reserved.is_zero()))
    }

    /// Intents of messages whose gas is reserved and not settled, and how much is.
    ///
    /// # Errors
    /// [`Error::Damaged`], and those of the database.
    pub async fn open_gas(&self) -> Result<BTreeMap<String, AttoFil>, Error> {
        let rows = sqlx::query(
            "SELECT id, account, provider, day, month, taken, reserved, spent, released, digest FROM reservations \
             WHERE id >= 'message:' AND id < 'message;' AND account = 0 AND reserved <> '0' ORDER BY id LIMIT $1",
        )
        .bind(i64::from(limits::PAGE))
        .fetch_all(&mut *self.reader().await?)
        .await?;
        let mut open = BTreeMap::new();
        for row in &rows {
            let part = read_part(row)?;
            let intent = part.id.strip_prefix("message:").map(str::to_owned);
            open.extend(intent.map(|intent| (intent, part.sum.reserved)));
        }
        Ok(open)
    }

    async fn change_gas(
        &self,
        intent: &str,
        what: impl Fn(&Sum) -> Result<Option<(Change, AttoFil)>, Error> + Send + Sync + Clone + 'static,
    ) -> Result<(), Error> {
        let id = message_id(intent);
        self.write(Urgency::Frees, move |tx| {
            let (id, what) = (id.clone(), what.clone());
            Box::pin(async move {
                for part in held(&mut tx.conn, &id).await? {
                    if let Some((change, amount)) = what(&part.sum)? {
                        shift(tx, part, change, amount).await?;
                    }
                }
                Ok(())
            })
        })
        .await
    }
}

fn message_id(intent: &str) -> String {
    format!("message:{intent}")
}

/// Sums that one change goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    All,
    Day(i64),
    Account(i64),
    AccountDay(i64, i64),
    Provider(i64),
    Month(i64),
}

impl Scope {
    fn key(self) -> (i64, i64, i64) {
        match self {
            Self::All => (0, 0, 0),
            Self::Day(day) => (1, 0, day),
            Self::Account(account) => (2, account, 0),
            Self::AccountDay(account, day) => (3, account, day),
            Self::Provider(provider) => (4, provider, 0),
            Self::Month(month) => (5, 0, month),
        }
    }
}

/// A row of the reservations.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    id: String,
    account: i64,
    provider: i64,
    day: i64,
    month: i64,
    pub(crate) sum: Sum,
}

impl Part {
    fn scopes(&self) -> [Scope; 6] {
        [
            Scope::All,
            Scope::Day(self.day),
            Scope::Account(self.account),
            Scope::AccountDay(self.account, self.day),
            Scope::Provider(self.provider),
            Scope::Month(self.month),
        ]
    }

    fn digest(&self) -> Vec<u8> {
        let mut hash = blake3::Hasher::new_derive_key("floe records 1 reservation");
        digest_field(&mut hash, Some(self.id.as_bytes()));
        for number in [self.account, self.provider, self.day, self.month] {
            digest_field(&mut hash, Some(&number.to_le_bytes()));
        }
        digest_sum(&mut hash, &self.sum);
        hash.finalize().as_bytes()[..16].to_vec()
    }
}

/// Checks the caps and reserves a deal's cost for the accounts that bear it, in proportion to what each has in the piece.
/// The inner error says which cap does not permit it: then nothing was written.
pub(crate) async fn reserve_deal(
    tx: &mut Tx,
    deal: DealUuid,
    provider: ActorId,
    cost: AttoFil,
    weights: &BTreeMap<AccountId, u64>,
    caps: &Caps,
) -> Result<Result<(), OverCap>, Error> {
    if weights.is_empty() {
        return Err(Error::Conflict(format!("the deal {deal} is for no account: its aggregate has no pins")));
    }
    let day = day_of(tx.now);
    let parts = split(cost, &weights.values().copied().collect::<Vec<_>>());
    let shares: Vec<(i64, AttoFil)> = weights.keys().map(|account| account.0).zip(parts).collect();
    let mut today = Vec::with_capacity(shares.len());
    for (account, share) in &shares {
        let sum = sum_of(&mut tx.conn, Scope::AccountDay(*account, day)).await?;
        today.push((sum.committed()?, *share));
    }
    let committed = committed(tx).await?;
    if let Err(over) = caps.permit_deal(&committed, cost, &today) {
        limits::hit(over.cap.name());
        return Ok(Err(over));
    }
    warn_near(tx, caps, &committed, cost).await?;
    for ((account, share), (before, _)) in shares.iter().zip(&today) {
        near(tx, Cap::AccountDay, caps.account_day, (*before, *share), Some(AccountId(*account))).await?;
    }
    take(tx, &deal.to_string(), db(provider.get()), &shares).await.map(Ok)
}

/// Counts what a deal that is on the chain already costs: no cap is asked, since it is committed whatever they say.
pub(crate) async fn reserve_anyhow(
    tx: &mut Tx,
    deal: DealUuid,
    provider: ActorId,
    cost: AttoFil,
    weights: &BTreeMap<AccountId, u64>,
) -> Result<(), Error> {
    let parts = split(cost, &weights.values().copied().collect::<Vec<_>>());
    let shares: Vec<(i64, AttoFil)> = weights.keys().map(|account| account.0).zip(parts).collect();
    take(tx, &deal.to_string(), db(provider.get()), &shares).await
}

/// Tells of the caps of all of which four fifths are used with this reservation.
async fn warn_near(tx: &mut Tx, caps: &Caps, before: &Committed, asked: AttoFil) -> Result<(), Error> {
    near(tx, Cap::Day, caps.day, (before.day, asked), None).await?;
    near(tx, Cap::Lifetime, caps.lifetime, (before.lifetime, asked), None).await
}

/// Tells of a cap at the reservation that brings it to four fifths, and at no other: who is warned each time reads none.
async fn near(
    tx: &mut Tx,
    cap: Cap,
    limit: AttoFil,
    (before, asked): (AttoFil, AttoFil),
    account: Option<AccountId>,
) -> Result<(), Error> {
    let line = limit.get() - limit.get() / 5;
    let after = before.get().saturating_add(asked.get());
    if before.get() >= line || after < line {
        return Ok(());
    }
    let name = cap.name();
    let body = serde_json::json!({ "cap": name, "limit": limit, "committed": AttoFil::new(after) });
    super::events::insert(tx, "spending.near_cap", account, name, &body).await
}

fn less(all: AttoFil, part: AttoFil) -> Result<AttoFil, Error> {
    all.checked_sub(part).ok_or_else(|| odd("a sum is less than a part of it"))
}

/// What counts against the caps of all, in the transaction.
async fn committed(tx: &mut Tx) -> Result<Committed, Error> {
    let day = day_of(tx.now);
    Ok(Committed {
        account_day: AttoFil::ZERO,
        day: sum_of(&mut tx.conn, Scope::Day(day)).await?.committed()?,
        lifetime: sum_of(&mut tx.conn, Scope::All).await?.committed()?,
    })
}

async fn take(tx: &mut Tx, id: &str, provider: i64, shares: &[(i64, AttoFil)]) -> Result<(), Error> {
    for (account, share) in shares {
        let part = Part {
            id: id.to_owned(),
            account: *account,
            provider,
            day: day_of(tx.now),
            month: month_of(tx.now),
            sum: Sum::default(),
        };
        shift(tx, part, Change::Reserve, *share).await?;
    }
    Ok(())
}

/// Keeps what was reserved on another day and let go of under an id of its own: its id is used again, and the sums of that
/// day stay what they are.
async fn lay_aside(tx: &mut Tx, mut part: Part) -> Result<(), Error> {
    let old = std::mem::take(&mut part.id);
    // A clock that went back may come to the same day twice.
    let nth = super::new_id(tx).simple();
    part.id = format!("freed:{}:{nth}:{old}", part.day);
    sqlx::query("UPDATE reservations SET id = $3, digest = $4 WHERE id = $1 AND account = $2")
        .bind(old)
        .bind(part.account)
        .bind(&part.id)
        .bind(part.digest())
        .execute(&mut tx.conn)
        .await?;
    Ok(())
}

/// Moves all of what a deal holds.
pub(crate) async fn move_all(tx: &mut Tx, deal: DealUuid, change: Change) -> Result<(), Error> {
    for part in held(&mut tx.conn, &deal.to_string()).await? {
        let amount = match change {
            Change::Reserve => return Err(odd("what is reserved cannot be reserved again")),
            Change::Spend | Change::Release => part.sum.reserved,
            Change::Refund => part.sum.spent,
        };
        shift(tx, part, change, amount).await?;
    }
    Ok(())
}

/// Gives back so many of `whole` parts of what was spent on a deal, to each account of its share; rounded down.
pub(crate) async fn refund(tx: &mut Tx, deal: DealUuid, parts: u64, whole: u64) -> Result<(), Error> {
    let kept = whole.saturating_sub(parts);
    for part in held(&mut tx.conn, &deal.to_string()).await? {
        let back = split(part.sum.spent, &[kept, parts.min(whole)]).pop().unwrap_or_default();
        shift(tx, part, Change::Refund, back).await?;
    }
    Ok(())
}

/// One part takes a step, and all sums with it.
async fn shift(tx: &mut Tx, mut part: Part, change: Change, amount: AttoFil) -> Result<(), Error> {
    if amount.is_zero() && change != Change::Reserve {
        return Ok(());
    }
    part.sum = part.sum.after(change, amount)?;
    for scope in part.scopes() {
        let sum = sum_of(&mut tx.conn, scope).await?.after(change, amount)?;
        write_sum(tx, scope, &sum).await?;
    }
    sqlx::query(
        "INSERT INTO reservations (id, account, provider, day, month, taken, reserved, spent, released, digest) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (id, account) DO UPDATE SET \
         taken = excluded.taken, reserved = excluded.reserved, spent = excluded.spent, \
         released = excluded.released, digest = excluded.digest",
    )
    .bind(&part.id)
    .bind(part.account)
    .bind(part.provider)
    .bind(part.day)
    .bind(part.month)
    .bind(part.sum.taken.to_string())
    .bind(part.sum.reserved.to_string())
    .bind(part.sum.spent.to_string())
    .bind(part.sum.released.to_string())
    .bind(part.digest())
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

async fn write_sum(tx: &mut Tx, scope: Scope, sum: &Sum) -> Result<(), Error> {
    let key = scope.key();
    sqlx::query(
        "INSERT INTO sums (kind, who, span, taken, reserved, spent, released, digest) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (kind, who, span) DO UPDATE SET \
         taken = excluded.taken, reserved = excluded.reserved, spent = excluded.spent, \
         released = excluded.released, digest = excluded.digest",
    )
    .bind(key.0)
    .bind(key.1)
    .bind(key.2)
    .bind(sum.taken.to_string())
    .bind(sum.reserved.to_string())
    .bind(sum.spent.to_string())
    .bind(sum.released.to_string())
    .bind(sum_digest(key, sum))
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

async fn sum_of(conn: &mut SqliteConnection, scope: Scope) -> Result<Sum, Error> {
    let (kind, who, span) = scope.key();
    let row = sqlx::query(
        "SELECT kind, who, span, taken, reserved, spent, released, digest FROM sums \
         WHERE kind = $1 AND who = $2 AND span = $3",
    )
    .bind(kind)
    .bind(who)
    .bind(span)
    .fetch_optional(conn)
    .await?;
    row.as_ref().map_or_else(|| Ok(Sum::default()), read_sum)
}

fn read_sum(row: &SqliteRow) -> Result<Sum, Error> {
    let sum = amounts(row)?;
    let key = (row.try_get("kind")?, row.try_get("who")?, row.try_get("span")?);
    let kept: Vec<u8> = row.try_get("digest")?;
    let whole = kept == sum_digest(key, &sum) && sum.adds_up();
    if whole { Ok(sum) } else { Err(odd(format!("its sum {key:?} does not hold"))) }
}

/// What is held under an id, by account.
pub(crate) async fn held(conn: &mut SqliteConnection, id: &str) -> Result<Vec<Part>, Error> {
    let rows = sqlx::query(
        "SELECT id, account, provider, day, month, taken, reserved, spent, released, digest FROM reservations \
         WHERE id = $1 ORDER BY account",
    )
    .bind(id)
    .fetch_all(conn)
    .await?;
    rows.iter().map(read_part).collect()
}

/// The account that bears all that is held under an id; `None` where several do, or none.
pub(crate) async fn only_account(conn: &mut SqliteConnection, id: &str) -> Result<Option<i64>, Error> {
    let accounts: Vec<i64> = sqlx::query_scalar("SELECT account FROM reservations WHERE id = $1 LIMIT 2")
        .bind(id)
        .fetch_all(conn)
        .await?;
    Ok(if let [account] = accounts[..] { Some(account).filter(|account| *account != 0) } else { None })
}

fn read_part(row: &SqliteRow) -> Result<Part, Error> {
    let part = Part {
        id: row.try_get("id")?,
        account: row.try_get("account")?,
        provider: row.try_get("provider")?,
        day: row.try_get("day")?,
        month: row.try_get("month")?,
        sum: amounts(row)?,
    };
    let kept: Vec<u8> = row.try_get("digest")?;
    let whole = kept == part.digest() && part.sum.adds_up();
    if whole { Ok(part) } else { Err(odd(format!("the reservation {} does not hold", part.id))) }
}

fn amounts(row: &SqliteRow) -> Result<Sum, Error> {
    let amount = |column: &str| -> Result<AttoFil, Error> {
        let text: String = row.try_get(column)?;
        text.parse().map_err(odd)
    };
    Ok(Sum {
        taken: amount("taken")?,
        reserved: amount("reserved")?,
        spent: amount("spent")?,
        released: amount("released")?,
    })
}

fn digest_sum(hash: &mut blake3::Hasher, sum: &Sum) {
    for amount in [sum.taken, sum.reserved, sum.spent, sum.released] {
        digest_field(hash, Some(&amount.get().to_le_bytes()));
    }
}

fn sum_digest(key: (i64, i64, i64), sum: &Sum) -> Vec<u8> {
    let mut hash = blake3::Hasher::new_derive_key("floe records 1 sum");
    for number in [key.0, key.1, key.2] {
        digest_field(&mut hash, Some(&number.to_le_bytes()));
    }
    digest_sum(&mut hash, sum);
    hash.finalize().as_bytes()[..16].to_vec()
}

/// All of the ledger against itself: what the reservations add up to is what the sums say. Findings in words.
pub(crate) async fn verify(conn: &mut SqliteConnection) -> Result<Vec<String>, Error> {
    let mut findings = Vec::new();
    let mut sums: BTreeMap<(i64, i64, i64), Sum> = BTreeMap::new();
    let rows = sqlx::query("SELECT * FROM reservations ORDER BY id, account").fetch_all(&mut *conn).await?;
    for row in &rows {
        match read_part(row) {
            Err(error) => findings.push(error.to_string()),
            Ok(part) => {
                for scope in part.scopes() {
                    add(sums.entry(scope.key()).or_default(), &part.sum);
                }
            }
        }
    }
    for row in sqlx::query("SELECT * FROM sums ORDER BY kind, who, span").fetch_all(conn).await? {
        let key = (row.try_get("kind")?, row.try_get("who")?, row.try_get("span")?);
        match read_sum(&row) {
            Err(error) => findings.push(error.to_string()),
            Ok(sum) if sums.remove(&key).unwrap_or_default() != sum => {
                findings.push(format!("the ledger's sum {key:?} is not that of its reservations"));
            }
            Ok(_) => {}
        }
    }
    let left = sums.into_iter().filter(|(_, sum)| !sum.taken.is_zero());
    findings.extend(left.map(|(key, _)| format!("the ledger's sum {key:?} is missing")));
    Ok(findings)
}

fn add(sum: &mut Sum, part: &Sum) {
    for (to, from) in [
        (&mut sum.taken, part.taken),
        (&mut sum.reserved, part.reserved),
        (&mut sum.spent, part.spent),
        (&mut sum.released, part.released),
    ] {
        *to = AttoFil::new(to.get().saturating_add(from.get()));
    }
}

fn day_of(now: Timestamp) -> i64 {
    db(now.as_millis() / DAY)
}

/// The month in UTC, as 202612.
fn month_of(now: Timestamp) -> i64 {
    let text = now.to_string();
    let digits = |part: Option<&str>| part.and_then(|part| part.parse::<i64>().ok()).unwrap_or(0);
    digits(text.get(..4)) * 100 + digits(text.get(5..7))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_month_is_the_one_on_the_calendar() {
        for (text, month) in [("2026-12-31T23:59:59.999Z", 202_612), ("2027-01-01T00:00:00.000Z", 202_701)] {
            assert_eq!(month_of(Timestamp::parse_rfc3339(text).unwrap()), month);
        }
        assert_eq!(day_of(Timestamp::from_millis(DAY)), 1);
    }

    #[test]
    fn nothing_is_moved_that_is_not_there() {
        let sum = Sum::default().after(Change::Reserve, AttoFil::new(5)).unwrap();
        assert!(sum.after(Change::Spend, AttoFil::new(6)).is_err());
        assert!(sum.after(Change::Refund, AttoFil::new(1)).is_err());
        let spent = sum.after(Change::Spend, AttoFil::new(5)).unwrap();
        assert!(spent.after(Change::Release, AttoFil::new(1)).is_err());
        assert!(sum.after(Change::Reserve, AttoFil::new(u128::MAX)).is_err());
    }
}
