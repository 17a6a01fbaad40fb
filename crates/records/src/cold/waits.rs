//! Who waits for a piece.
//!
//! A pin that asks for replicas has a row in `cold_waits` from the transaction that makes it pinned, until aggregates hold
//! all of its DAG. Pins of one root, policy and number of replicas share a *lot*: the DAG is packed once for all of them,
//! and a pin that comes later joins the aggregates that there are, for as long as none of them is lost.
//!
//! ```text
//!   pinned ──> lot, not measured ──measured──> lot with parts to do ──begin──> parts in aggregates ──> (no lot)
//!                                                  ^                              │
//!                                                  └──────────given back──────────┘
//! ```
//! A DAG that is larger than a piece is cut into parts, which go into aggregates one after the other. A lot with nothing
//! left to do is `packed`: the writer's follow-up tells its pins which aggregates they are in, so many at a time, and
//! removes it.

use floe_core::{AccountId, Cid, Timestamp, cid};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};
use uuid::Uuid;

use super::segments::join;
use crate::pins::row::{Stored, db, digest_field, intact, key, num, uuid, uuid_of};
use crate::writer::{Tx, Urgency};
use crate::{Error, Records, limits};

/// A DAG that waits to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lot {
    /// Its name. Segments of its parts carry it.
    pub id: Uuid,
    /// The policy of its pins.
    pub policy: String,
    /// The replicas that they ask for.
    pub replicas: u8,
    /// The root, canonical.
    pub root: Cid,
    /// The DAG.
    pub dag: Uuid,
    /// Whose pin has waited longest for it: fairness counts there.
    pub account: AccountId,
    /// Since when.
    pub since: Timestamp,
    /// Attempts that failed.
    pub attempts: u32,
    /// Why the last one did.
    pub reason: Option<String>,
    /// How many parts the DAG has; 0: it was not measured.
    pub parts: u32,
    /// The parts that no aggregate holds, the first first.
    pub todo: Vec<LotPart>,
    /// When it is tried; later than now after a failure.
    pub due: Timestamp,
    capacity: u64,
    is_packed: bool,
}

/// A part of a DAG: sections of the CAR in the order of the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LotPart {
    /// Its number, from 0.
    pub part: u32,
    /// How many sections are before it.
    pub first: u64,
    /// How many it has.
    pub sections: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Lot {
    fn read(row: &SqliteRow) -> Result<Self, Error> {
        let id = uuid(row, "id")?;
        let damaged = || {
            Error::Damaged(format!("the row of the waiting DAG {id} is damaged: restore it from a backup"))
        };
        let read = || -> Option<(Self, Vec<u8>)> {
            let number = |column: &str| row.try_get::<i64, _>(column).ok().map(num);
            let lot = Self {
                id,
                policy: row.try_get("policy").ok()?,
                replicas: u8::try_from(number("replicas")?).ok()?,
                root: cid::parse_bytes(&row.try_get::<Vec<u8>, _>("root").ok()?).ok()?,
                dag: uuid_of(row.try_get("dag").ok()?),
                account: AccountId(row.try_get("account").ok()?),
                since: Timestamp::from_millis(number("since")?),
                attempts: u32::try_from(number("attempts")?).ok()?,
                reason: row.try_get("reason").ok()?,
                parts: u32::try_from(number("parts")?).ok()?,
                todo: serde_json::from_str(row.try_get("todo").ok()?).ok()?,
                due: Timestamp::from_millis(number("due")?),
                capacity: number("capacity")?,
                is_packed: number("packed")? != 0,
            };
            Some((lot, row.try_get("digest").ok()?))
        };
        let (lot, digest) = read().ok_or_else(damaged)?;
        if lot.digest()? == digest { Ok(lot) } else { Err(damaged()) }
    }

    /// Names what is to be packed; not when, nor how often it was tried.
    fn digest(&self) -> Result<Vec<u8>, Error> {
        let mut hash = blake3::Hasher::new_derive_key("floe records 1 cold lot");
        let root = self.root.to_bytes();
        let todo = self.todo_text()?;
        let numbers = [u64::from(self.replicas), u64::from(self.parts), u64::from(self.is_packed)];
        for field in [self.id.as_bytes(), self.policy.as_bytes(), &root, self.dag.as_bytes(), todo.as_bytes()]
        {
            digest_field(&mut hash, Some(field));
        }
        numbers.iter().for_each(|number| digest_field(&mut hash, Some(&number.to_le_bytes())));
        digest_field(&mut hash, Some(&self.account.0.to_le_bytes()));
        digest_field(&mut hash, Some(&self.since.as_millis().to_le_bytes()));
        Ok(hash.finalize().as_bytes()[..16].to_vec())
    }

    fn todo_text(&self) -> Result<String, Error> {
        serde_json::to_string(&self.todo).map_err(|error| Error::Sql(error.to_string()))
    }

    pub(super) async fn insert(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        sqlx::query(
            "INSERT INTO cold_lots (id, policy, replicas, root, dag, account, since, due, attempts, reason, capacity, \
             parts, todo, packed, digest) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(key(self.id))
        .bind(&self.policy)
        .bind(i64::from(self.replicas))
        .bind(self.root.to_bytes())
        .bind(key(self.dag))
        .bind(self.account.0)
        .bind(db(self.since.as_millis()))
        .bind(db(self.due.as_millis()))
        .bind(i64::from(self.attempts))
        .bind(&self.reason)
        .bind(db(self.capacity))
        .bind(i64::from(self.parts))
        .bind(self.todo_text()?)
        .bind(i64::from(self.is_packed))
        .bind(self.digest()?)
        .execute(conn)
        .await?;
        Ok(())
    }

    pub(super) async fn store(&self, conn: &mut SqliteConnection) -> Result<(), Error> {
        sqlx::query(
            "UPDATE cold_lots SET account = $2, since = $3, due = $4, attempts = $5, reason = $6, capacity = $7, \
             parts = $8, todo = $9, packed = $10, digest = $11 WHERE id = $1",
        )
        .bind(key(self.id))
        .bind(self.account.0)
        .bind(db(self.since.as_millis()))
        .bind(db(self.due.as_millis()))
        .bind(i64::from(self.attempts))
        .bind(&self.reason)
        .bind(db(self.capacity))
        .bind(i64::from(self.parts))
        .bind(self.todo_text()?)
        .bind(i64::from(self.is_packed))
        .bind(self.digest()?)
        .execute(conn)
        .await?;
        Ok(())
    }

    /// Takes a part off what is left to do. `false` where it was not there: it was measured anew.
    pub(super) fn take(&mut self, part: &LotPart) -> bool {
        let before = self.todo.len();
        self.todo.retain(|left| left != part);
        self.is_packed = self.todo.is_empty();
        self.todo.len() < before
    }

    /// Puts a part back. A DAG that waits with all of its parts again is measured anew.
    pub(super) fn put_back(&mut self, part: LotPart) {
        self.todo.retain(|left| left.part != part.part);
        self.todo.push(part);
        self.todo.sort_unstable_by_key(|left| left.part);
        self.is_packed = false;
        if self.todo.len() as u64 == u64::from(self.parts) {
            self.capacity = 0;
        }
    }

    /// A lot of what an aggregate gives back, where there is none any more.
    pub(super) fn again(
        id: Uuid,
        (policy, replicas): (String, u8),
        root: Cid,
        dag: Uuid,
        (account, since): (AccountId, Timestamp),
        capacity: u64,
        parts: u32,
    ) -> Self {
        Self {
            id,
            policy,
            replicas,
            root,
            dag,
            account,
            since,
            due: since,
            attempts: 0,
            reason: None,
            parts,
            todo: Vec::new(),
            capacity,
            is_packed: false,
        }
    }

    /// It failed: it is tried again at `due`.
    pub(super) fn failed(&mut self, reason: &str, due: Timestamp) {
        self.attempts = self.attempts.saturating_add(1);
        self.reason = Some(reason.chars().take(limits::COLD_REASON_CHARS).collect());
        self.due = due;
    }
}

pub(super) async fn load(conn: &mut SqliteConnection, id: Uuid) -> Result<Option<Lot>, Error> {
    let row = sqlx::query(
        "SELECT id, policy, replicas, root, dag, account, since, due, attempts, reason, capacity, parts, todo, packed, \
         digest FROM cold_lots WHERE id = $1",
    )
    .bind(key(id))
    .fetch_optional(conn)
    .await?;
    row.as_ref().map(Lot::read).transpose()
}

/// A pin that asks for replicas has become pinned: it joins the aggregates that hold its DAG, or waits for one.
pub(crate) async fn enter(tx: &mut Tx, pin: &Stored) -> Result<(), Error> {
    if pin.replicas == 0 {
        return Ok(());
    }
    if let Some(lot) = packed_whole(tx, pin).await? {
        return join(&mut tx.conn, lot, pin.id, pin.account).await;
    }
    let lot: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT id FROM cold_lots WHERE root = $1 AND policy = $2 AND replicas = $3")
            .bind(&pin.root)
            .bind(&pin.policy)
            .bind(pin.replicas)
            .fetch_optional(&mut tx.conn)
            .await?;
    let lot = match lot {
        Some(id) => uuid_of(id),
        None => begin(tx, pin).await?,
    };
    sqlx::query("INSERT INTO cold_waits (pin, lot, account, since) VALUES ($1, $2, $3, $4)")
        .bind(key(pin.id))
        .bind(key(lot))
        .bind(pin.account)
        .bind(db(tx.now.as_millis()))
        .execute(&mut tx.conn)
        .await?;
    // Parts of it may be in aggregates already.
    join(&mut tx.conn, lot, pin.id, pin.account).await
}

/// The lot that is wholly in aggregates of the pin's policy and replicas, none of them lost.
async fn packed_whole(tx: &mut Tx, pin: &Stored) -> Result<Option<Uuid>, Error> {
    let lots: Vec<(Vec<u8>, i64, i64)> = sqlx::query_as(
        "SELECT s.lot, s.parts, COUNT(DISTINCT s.part) FROM aggregate_segments s JOIN aggregates a ON a.id = s.aggregate \
         WHERE s.root = $1 AND a.policy = $2 AND a.replicas = $3 AND a.state <> 'lost' GROUP BY s.lot, s.parts",
    )
    .bind(&pin.root)
    .bind(&pin.policy)
    .bind(pin.replicas)
    .fetch_all(&mut tx.conn)
    .await?;
    let whole = lots.into_iter().filter(|(_, parts, held)| held >= parts);
    Ok(whole.map(|(lot, ..)| uuid_of(lot)).max())
}

async fn begin(tx: &mut Tx, pin: &Stored) -> Result<Uuid, Error> {
    let root = cid::parse_bytes(&pin.root)
        .map_err(|error| Error::Damaged(format!("the root of pin {} is damaged: {error}", pin.id)))?;
    let replicas = u8::try_from(pin.replicas)
        .map_err(|_| Error::Damaged(format!("the pin {} asks for {} replicas", pin.id, pin.replicas)))?;
    let asked = (pin.policy.clone(), replicas);
    let lot = Lot::again(super::new_id(tx), asked, root, pin.dag, (AccountId(pin.account), tx.now), 0, 0);
    lot.insert(&mut tx.conn).await?;
    Ok(lot.id)
}

/// A pin goes: it waits no longer, and with the last of its pins the lot goes. What aggregates hold stays there.
pub(crate) async fn leave(tx: &mut Tx, pin: &Stored) -> Result<(), Error> {
    if pin.replicas == 0 {
        return Ok(());
    }
    let lot: Option<Vec<u8>> = sqlx::query_scalar("DELETE FROM cold_waits WHERE pin = $1 RETURNING lot")
        .bind(key(pin.id))
        .fetch_optional(&mut tx.conn)
        .await?;
    let Some(lot) = lot.map(uuid_of) else { return Ok(()) };
    // What aggregates hold of it they hold for this pin too, and its account bears its part.
    join(&mut tx.conn, lot, pin.id, pin.account).await?;
    match first_wait(&mut tx.conn, lot).await? {
        None => forget(&mut tx.conn, lot).await,
        Some((account, since)) => {
            // A damaged row stays as it is: the aggregator passes it over, and `floe verify` names it.
            let Some(Some(mut lot)) = intact(load(&mut tx.conn, lot).await) else { return Ok(()) };
            (lot.account, lot.since) = (account, since);
            lot.store(&mut tx.conn).await
        }
    }
}

async fn first_wait(conn: &mut SqliteConnection, lot: Uuid) -> Result<Option<(AccountId, Timestamp)>, Error> {
    let first: Option<(i64, i64)> =
        sqlx::query_as("SELECT account, since FROM cold_waits WHERE lot = $1 ORDER BY since, pin LIMIT 1")
            .bind(key(lot))
            .fetch_optional(conn)
            .await?;
    Ok(first.map(|(account, since)| (AccountId(account), Timestamp::from_millis(num(since)))))
}

async fn forget(conn: &mut SqliteConnection, lot: Uuid) -> Result<(), Error> {
    sqlx::query("DELETE FROM cold_lots WHERE id = $1").bind(key(lot)).execute(conn).await?;
    Ok(())
}

/// Tells pins of packed lots which aggregates they are in. Says whether more is left.
pub(super) async fn tell_some(tx: &mut Tx) -> Result<bool, Error> {
    let lots: Vec<Vec<u8>> =
        sqlx::query_scalar("SELECT id FROM cold_lots WHERE packed = 1 ORDER BY id LIMIT $1")
            .bind(limits::SETTLES_PER_PASS)
            .fetch_all(&mut tx.conn)
            .await?;
    let mut left = limits::SETTLES_PER_PASS;
    let any = !lots.is_empty();
    for lot in lots.into_iter().map(uuid_of) {
        if left == 0 {
            break;
        }
        left -= tell(tx, lot, left).await?;
    }
    Ok(any)
}

/// The pins of one packed lot, no more than `most`; with the last the lot goes. Says how many there were.
async fn tell(tx: &mut Tx, lot: Uuid, most: i64) -> Result<i64, Error> {
    let waits: Vec<(Vec<u8>, i64)> =
        sqlx::query_as("SELECT pin, account FROM cold_waits WHERE lot = $1 ORDER BY since, pin LIMIT $2")
            .bind(key(lot))
            .bind(most)
            .fetch_all(&mut tx.conn)
            .await?;
    let told = db(waits.len() as u64);
    for (pin, account) in waits {
        join(&mut tx.conn, lot, uuid_of(pin.clone()), account).await?;
        sqlx::query("DELETE FROM cold_waits WHERE pin = $1").bind(pin).execute(&mut tx.conn).await?;
    }
    if told < most {
        forget(&mut tx.conn, lot).await?;
    }
    Ok(told)
}

impl Records {
    /// Lots that were not measured and are due, the first due first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn lots_to_measure(&self, most: u32) -> Result<Vec<Lot>, Error> {
        let rows = sqlx::query(
            "SELECT id, policy, replicas, root, dag, account, since, due, attempts, reason, capacity, parts, todo, \
             packed, digest FROM cold_lots WHERE capacity = 0 AND due <= $1 ORDER BY due LIMIT $2",
        )
        .bind(db(self.inner.clock.now().as_millis()))
        .bind(i64::from(most))
        .fetch_all(&mut *self.reader().await?)
        .await?;
        Ok(rows.iter().filter_map(|row| intact(Lot::read(row))).collect())
    }

    /// Lots that were not measured, due or not, the first due first: what no piece can take.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn lots_not_packable(&self, most: u32) -> Result<Vec<Lot>, Error> {
        let rows = sqlx::query(
            "SELECT id, policy, replicas, root, dag, account, since, due, attempts, reason, capacity, parts, todo, \
             packed, digest FROM cold_lots WHERE capacity = 0 ORDER BY due LIMIT $1",
        )
        .bind(i64::from(most))
        .fetch_all(&mut *self.reader().await?)
        .await?;
        Ok(rows.iter().filter_map(|row| intact(Lot::read(row))).collect())
    }

    /// What a walk of its DAG found, for pieces that hold `capacity` bytes. A lot that has gone, or of which aggregates
    /// hold something, is left as it is.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn lot_measured(&self, id: Uuid, capacity: u64, parts: Vec<LotPart>) -> Result<(), Error> {
        self.write(Urgency::Takes, move |tx| {
            let parts = parts.clone();
            Box::pin(async move {
                let Some(mut lot) = load(&mut tx.conn, id).await? else { return Ok(()) };
                if lot.is_packed || lot.todo.len() as u64 != u64::from(lot.parts) || parts.is_empty() {
                    return Ok(());
                }
                lot.parts = u32::try_from(parts.len()).unwrap_or(u32::MAX);
                (lot.todo, lot.capacity, lot.reason) = (parts, capacity, None);
                lot.store(&mut tx.conn).await
            })
        })
        .await
    }

    /// Lots that were measured for pieces of another size are measured again, unless parts of them are in aggregates.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn measure_again(&self, capacity: u64) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| {
            Box::pin(async move {
                let others: Vec<Vec<u8>> =
                    sqlx::query_scalar("SELECT id FROM cold_lots WHERE capacity > 0 AND capacity <> $1")
                        .bind(db(capacity))
                        .fetch_all(&mut tx.conn)
                        .await?;
                for id in others.into_iter().map(uuid_of) {
                    let Some(Some(mut lot)) = intact(load(&mut tx.conn, id).await) else { continue };
                    if lot.todo.len() as u64 == u64::from(lot.parts) {
                        lot.capacity = 0;
                        lot.store(&mut tx.conn).await?;
                    }
                }
                Ok(())
            })
        })
        .await
    }

    /// A lot that cannot be measured now, and why: it is tried again at `due`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn put_off_lot(&self, id: Uuid, reason: String, due: Timestamp) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| {
            let reason = reason.clone();
            Box::pin(async move {
                let Some(mut lot) = load(&mut tx.conn, id).await? else { return Ok(()) };
                lot.failed(&reason, due);
                lot.store(&mut tx.conn).await
            })
        })
        .await
    }

    /// The policies and replicas that lots wait for.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cold_groups(&self) -> Result<Vec<(String, u8)>, Error> {
        let mut conn = self.reader().await?;
        let (mut groups, mut last) = (Vec::new(), (String::new(), -1));
        // Each by one look at the index: there are few, and many lots of each.
        while groups.len() < limits::COLD_GROUPS {
            let next: Option<(String, i64)> = sqlx::query_as(
                "SELECT policy, replicas FROM cold_lots WHERE (policy, replicas) > ($1, $2) \
                 ORDER BY policy, replicas LIMIT 1",
            )
            .bind(&last.0)
            .bind(last.1)
            .fetch_optional(&mut *conn)
            .await?;
            let Some(next) = next else { break };
            groups.extend(u8::try_from(next.1).ok().map(|replicas| (next.0.clone(), replicas)));
            last = next;
        }
        Ok(groups)
    }

    /// Lots of one policy and number of replicas that can be packed, with the number of the last aggregate that took
    /// something of their account: of accounts that were served longest ago first, of each the oldest, no more than
    /// `most` in all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn lots(&self, policy: &str, replicas: u8, most: u32) -> Result<Vec<(Lot, u64)>, Error> {
        let mut conn = self.reader().await?;
        let accounts: Vec<(i64, i64)> = sqlx::query_as(
            "WITH RECURSIVE turn (account) AS (SELECT MIN(account) FROM cold_lots WHERE policy = $1 AND replicas = $2 \
             UNION ALL SELECT (SELECT MIN(l.account) FROM cold_lots l WHERE l.policy = $1 AND l.replicas = $2 \
             AND l.account > turn.account) FROM turn WHERE turn.account IS NOT NULL) \
             SELECT t.account, COALESCE(c.nr, 0) FROM turn t LEFT JOIN cold_turns c ON c.policy = $1 \
             AND c.replicas = $2 AND c.account = t.account WHERE t.account IS NOT NULL ORDER BY 2, 1 LIMIT $3",
        )
        .bind(policy)
        .bind(i64::from(replicas))
        .bind(i64::from(limits::COLD_ACCOUNTS))
        .fetch_all(&mut *conn)
        .await?;
        let each = (most / u32::try_from(accounts.len().max(1)).unwrap_or(1)).max(1);
        let mut lots = Vec::new();
        for (account, turn) in accounts {
            let rows = sqlx::query(
                "SELECT id, policy, replicas, root, dag, account, since, due, attempts, reason, capacity, parts, todo, \
                 packed, digest FROM cold_lots WHERE policy = $1 AND replicas = $2 AND account = $3 AND capacity > 0 \
                 AND packed = 0 AND due <= $4 ORDER BY since, id LIMIT $5",
            )
            .bind(policy)
            .bind(i64::from(replicas))
            .bind(account)
            .bind(db(self.inner.clock.now().as_millis()))
            .bind(i64::from(each))
            .fetch_all(&mut *conn)
            .await?;
            lots.extend(rows.iter().filter_map(|row| intact(Lot::read(row))).map(|lot| (lot, num(turn))));
        }
        Ok(lots)
    }

    /// A lot; `None` where nothing of it waits any more.
    ///
    /// # Errors
    /// Those of the database; [`Error::Damaged`].
    pub async fn lot(&self, id: Uuid) -> Result<Option<Lot>, Error> {
        load(&mut *self.reader().await?, id).await
    }

    /// What a pin waits for: the lot, where aggregates do not hold all of its DAG.
    ///
    /// # Errors
    /// Those of the database; [`Error::Damaged`].
    pub async fn lot_of_pin(&self, pin: floe_core::RequestId) -> Result<Option<Lot>, Error> {
        let mut conn = self.reader().await?;
        let lot: Option<Vec<u8>> = sqlx::query_scalar("SELECT lot FROM cold_waits WHERE pin = $1")
            .bind(key(pin.0))
            .fetch_optional(&mut *conn)
            .await?;
        match lot {
            Some(lot) => load(&mut conn, uuid_of(lot)).await,
            None => Ok(None),
        }
    }
}
