//! Adding pins: all requests that wait at one time are one group.
//!
//! ```text
//!   read once            decide in memory, in the order they came      write once
//!   answers to keys  ->  queue bounds, pins, `created`, bytes      ->  DAGs, waits, accounts,
//!   accounts, DAGs       (refused: answered so, nothing is left)       pins, counters, answers to keys
//! ```
//!
//! Each statement is handed to its connection's thread and back, which costs more than most of them take: so a group
//! has as many statements as a lone pin, up to [`limits::ROWS_PER_STATEMENT`] pins, and one more of each kind for each
//! further so many. A request that is refused was never written; an error of the database is no request's own, and the
//! writer then tries each alone.
//!
//! What is checked and what is written is one transaction on the one writer, so quota and queue bounds cannot
//! be overshot by callers that race (threat T26). What a DAG is known to hold is reserved at once; the rest is
//! charged as the fetch reports it. `created` goes up by at least a millisecond for each pin of an account, and
//! never back, whatever the clock does (pinning-api M15).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floe_core::{AccountId, PinStatus, RequestId, Timestamp, cid};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, SqliteConnection};

use super::row::{Stored, db, num};
use super::{change, counts, keys};
use crate::accounts::{self, account_columns};
use crate::dags::Joins;
use crate::fold::fold;
use crate::writer::Tx;
use crate::{Error, IdempotencyKey, PinRow, PinSpec, limits};

/// The queue has no bound per account for this one: it is the operator's own.
pub const DEFAULT_ACCOUNT: &str = "default";

/// A request.
pub(crate) struct Add {
    pub(crate) account: i64,
    pub(crate) specs: Vec<PinSpec>,
    pub(crate) local_request: bool,
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) max_queued: u64,
}

/// How many of the first requests are one group; at least one. Of two with one key the second is for the next group: it
/// is answered by what the first has written.
pub(crate) fn group<'a>(requests: impl Iterator<Item = &'a Add>) -> usize {
    let (mut pins, mut keys, mut length) = (0, BTreeSet::new(), 0);
    for request in requests {
        pins += request.specs.len();
        let is_new = request.key.as_ref().is_none_or(|asked| keys.insert((request.account, &asked.key)));
        if length > 0 && (pins > limits::PINS_PER_GROUP || !is_new) {
            break;
        }
        length += 1;
    }
    length
}

/// One transaction's part of [`crate::Records::add_pins`] for a [`group`]: the answer to each request. An error is of
/// none of them alone; what was written of the group is then to be undone.
pub(crate) async fn add(tx: &mut Tx, requests: &[&Add]) -> Result<Vec<Result<Vec<PinRow>, Error>>, Error> {
    let answered = keys::answered(tx, requests).await?;
    let mut intake = Intake::load(&mut tx.conn, requests).await?;
    let mut answers = Vec::with_capacity(requests.len());
    let mut remembered = Vec::new();
    for (request, answered) in requests.iter().zip(answered) {
        answers.push(match answered {
            Some(answer) => answer,
            None => match intake.take(tx, request, None) {
                Ok(rows) => {
                    remembered.extend(keys::kept(request, &rows)?);
                    Ok(rows)
                }
                refused => refused,
            },
        });
    }
    intake.write(tx).await?;
    keys::remember(tx, &remembered).await?;
    Ok(answers)
}

/// What requests stand on, and what they change of it until it is written.
pub(super) struct Intake {
    accounts: BTreeMap<i64, Result<Account, String>>,
    queued_over_all: u64,
    joins: Joins,
    pins: Vec<Stored>,
    counts: counts::Changes,
}

#[derive(Debug, Clone)]
struct Account {
    name: String,
    max_bytes: Option<i64>,
    used_bytes: i64,
    max_pins: Option<i64>,
    used_pins: i64,
    last_created: i64,
    queued: u64,
    /// What is added to `used_bytes` and `used_pins`, to be written.
    added: (i64, i64),
}

/// What is known of a new pin before its DAG is joined.
struct Draft<'a> {
    spec: &'a PinSpec,
    root: Vec<u8>,
    origins: String,
    meta: String,
    charged: i64,
}

impl Intake {
    /// Reads the accounts and DAGs of these requests.
    pub(super) async fn load(conn: &mut SqliteConnection, requests: &[&Add]) -> Result<Self, Error> {
        let ids: BTreeSet<i64> = requests.iter().map(|request| request.account).collect();
        let roots: BTreeSet<Vec<u8>> = requests.iter().flat_map(|request| &request.specs).map(root).collect();
        let (accounts, queued_over_all) = load_accounts(conn, ids.into_iter().collect()).await?;
        Ok(Self {
            accounts,
            queued_over_all,
            joins: Joins::load(conn, &roots).await?,
            pins: Vec::new(),
            counts: counts::Changes::default(),
        })
    }

    /// Lets a request in, as a whole, or says why not. `instead` is the pin that its one pin takes the place of, gone
    /// from all sums already: what that was charged is charged on, because its blocks stay.
    pub(super) fn take(
        &mut self,
        tx: &Tx,
        request: &Add,
        instead: Option<&Stored>,
    ) -> Result<Vec<PinRow>, Error> {
        let count = request.specs.len();
        if count > limits::PINS_PER_REQUEST {
            limits::hit("pins_per_request");
            return Err(Error::Quota(format!("a request may hold {} pins", limits::PINS_PER_REQUEST)));
        }
        let account = self.accounts.get(&request.account).ok_or(Error::NotFound)?.clone();
        let mut account = account.map_err(Error::Damaged)?;
        // A replaced pin leaves the place that it had in the queue, and among the pins, to the new one.
        if instead.is_none_or(|old| old.status != PinStatus::Queued) {
            account.check_queue(self.queued_over_all, count as u64, request.max_queued)?;
        }
        if instead.is_none_or(|old| old.status == PinStatus::Failed) {
            account.check_pins(db(count as u64))?;
        }
        let first = account.next_created(tx.now, count)?;
        let kept = instead.map(|old| old.charged);
        let drafts = request.specs.iter().map(|spec| self.draft(&mut account, spec, kept));
        let drafts = drafts.collect::<Result<Vec<_>, _>>()?;

        account.added.1 += db(count as u64);
        account.used_pins += db(count as u64);
        account.queued += count as u64;
        self.queued_over_all += count as u64;
        self.accounts.insert(request.account, Ok(account));
        self.counts.added(request.account, first, count);
        let rows = (first..).zip(drafts).map(|(created, draft)| {
            let (pin, row) = self.pin(tx, request, created, draft, kept.unwrap_or_default());
            self.pins.push(pin);
            row
        });
        Ok(rows.collect())
    }

    /// Charges the account what the DAG is known to hold, and at least what is `kept`.
    fn draft<'a>(
        &self,
        account: &mut Account,
        spec: &'a PinSpec,
        kept: Option<i64>,
    ) -> Result<Draft<'a>, Error> {
        let root = root(spec);
        let charged = account.reserve(self.joins.bytes(&root), kept)?;
        Ok(Draft { spec, root, origins: keys::json(&spec.origins)?, meta: keys::json(&spec.meta)?, charged })
    }

    /// The row, joined to its DAG, and what the caller sees of it.
    fn pin(&mut self, tx: &Tx, request: &Add, created: i64, draft: Draft<'_>, kept: i64) -> (Stored, PinRow) {
        let Draft { spec, root, origins, meta, charged } = draft;
        let mut random = [0; 10];
        tx.entropy.fill(&mut random);
        let at = Timestamp::from_millis(num(created));
        let id = RequestId::new(at, random);
        let joined = self.joins.join(tx, &root, request.account, &spec.origins);
        let row = PinRow {
            id,
            account: AccountId(request.account),
            spec: spec.clone(),
            status: PinStatus::Queued,
            created: at,
            dag: joined.dag,
            reason: None,
            local_request: request.local_request,
            progress: joined.progress.clone(),
        };
        let pin = Stored {
            id: id.0,
            account: request.account,
            created,
            status: PinStatus::Queued,
            cid_text: spec.cid_text.clone(),
            root,
            name: spec.name.clone(),
            folded: spec.name.as_deref().map(fold),
            origins,
            meta,
            local_request: request.local_request,
            dag: joined.dag,
            reason: None,
            charged,
            kept,
            searched_before: joined.searched,
            policy: spec.policy.name.clone(),
            replicas: i64::from(spec.policy.replicas),
            progress: joined.progress,
        };
        (pin, row)
    }

    /// Writes what was let in.
    pub(super) async fn write(self, tx: &mut Tx) -> Result<(), Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        self.joins.write(tx).await?;
        charge(&mut tx.conn, &self.accounts).await?;
        change::insert(&mut tx.conn, &self.pins).await?;
        self.counts.write(&mut tx.conn).await?;
        fail::fail_point!("pin.queued");
        Ok(())
    }
}

impl Account {
    /// An account that was read, with what else its row has here.
    fn of(read: crate::Account, row: &SqliteRow) -> Result<Self, Error> {
        Ok(Self {
            name: read.name,
            max_bytes: read.max_bytes.map(db),
            used_bytes: row.try_get("used_bytes")?,
            max_pins: read.max_pins.map(db),
            used_pins: row.try_get("used_pins")?,
            last_created: row.try_get("last_created")?,
            queued: num(row.try_get::<Option<i64>, _>("queued")?.unwrap_or_default()),
            added: (0, 0),
        })
    }

    fn check_queue(&self, over_all: u64, more: u64, most: u64) -> Result<(), Error> {
        let busy = |reason: String| Error::Busy { reason, retry_after: Duration::from_secs(60) };
        if self.name != DEFAULT_ACCOUNT && self.queued + more > most {
            limits::hit("queued_per_account");
            return Err(busy(format!("{} of {most} pins are queued already", self.queued)));
        }
        if over_all + more > limits::QUEUED_OVER_ALL {
            limits::hit("queued_over_all");
            return Err(busy("the service has too many queued pins".into()));
        }
        Ok(())
    }

    fn check_pins(&self, more: i64) -> Result<(), Error> {
        match self.max_pins {
            Some(most) if self.used_pins.saturating_add(more) > most => {
                limits::hit("account_pins");
                Err(Error::Quota(format!("the account may hold {most} pins and holds {}", self.used_pins)))
            }
            _ => Ok(()),
        }
    }

    /// Takes `count` values of `created`, one after another. The first of them.
    fn next_created(&mut self, now: Timestamp, count: usize) -> Result<i64, Error> {
        let now = db(now.as_millis());
        let first = now.max(self.last_created + 1);
        let last = first + db(count as u64) - 1;
        let ahead = last.saturating_sub(now).saturating_sub(db(limits::CREATED_AHEAD.as_millis() as u64));
        if ahead > 0 {
            limits::hit("created_ahead");
            return Err(Error::Busy {
                reason: "too many pins in a short time: each has its own millisecond".into(),
                retry_after: Duration::from_millis(num(ahead)),
            });
        }
        self.last_created = last;
        Ok(first)
    }

    /// Charges a new pin, and says how much. A pin that takes the place of another needs room only above what is
    /// `kept`, which was handed back a moment ago.
    fn reserve(&mut self, bytes: i64, kept: Option<i64>) -> Result<i64, Error> {
        let floor = kept.unwrap_or_default();
        let charged = floor.max(bytes);
        if let Some(most) = self.max_bytes {
            let room = (most - self.used_bytes).max(0);
            let none_left = kept.is_none() && room == 0;
            if none_left || (charged > floor && charged > room) {
                limits::hit("account_bytes");
                return Err(Error::Quota(format!(
                    "the account has {left} bytes left and this pin needs more",
                    left = (room - floor).max(0)
                )));
            }
        }
        self.used_bytes += charged;
        self.added.0 += charged;
        Ok(charged)
    }
}

fn root(spec: &PinSpec) -> Vec<u8> {
    cid::canonical(&spec.cid).to_bytes()
}

/// The accounts, those that are damaged with what is wrong with them, and how many pins are queued over all.
async fn load_accounts(
    conn: &mut SqliteConnection,
    ids: Vec<i64>,
) -> Result<(BTreeMap<i64, Result<Account, String>>, u64), Error> {
    let (mut accounts, mut over_all) = (BTreeMap::new(), 0);
    for some in ids.chunks(limits::ROWS_PER_STATEMENT) {
        let mut sql = QueryBuilder::new(concat!(
            "SELECT ",
            account_columns!(),
            ", a.last_created, c.queued, \
             (SELECT e.queued FROM counts e WHERE e.account = 0 AND e.width = 0 AND e.start = 0) AS over_all \
             FROM accounts a LEFT JOIN counts c ON c.account = a.id AND c.width = 0 AND c.start = 0 WHERE a.id IN (",
        ));
        let mut list = sql.separated(", ");
        some.iter().for_each(|id| {
            list.push_bind(*id);
        });
        sql.push(")");
        for row in sql.build().fetch_all(&mut *conn).await? {
            over_all = num(row.try_get::<Option<i64>, _>("over_all")?.unwrap_or_default());
            let account = match accounts::read(&row) {
                Ok(account) => Ok(Account::of(account, &row)?),
                Err(error) => Err(error.to_string()),
            };
            accounts.insert(row.try_get("id")?, account);
        }
    }
    Ok((accounts, over_all))
}

/// Writes what the accounts are charged, and their last `created`.
async fn charge(
    conn: &mut SqliteConnection,
    accounts: &BTreeMap<i64, Result<Account, String>>,
) -> Result<(), Error> {
    let read = accounts.iter().filter_map(|(id, account)| Some((id, account.as_ref().ok()?)));
    let changed: Vec<_> = read.filter(|(_, account)| account.added.1 > 0).collect();
    for some in changed.chunks(limits::ROWS_PER_STATEMENT) {
        // Bound alone, PostgreSQL would take the values for text.
        const NUMBER: &str = " AS BIGINT)";
        let mut sql = QueryBuilder::new(
            "UPDATE accounts SET last_created = v.column2, used_bytes = used_bytes + v.column3, \
             used_pins = used_pins + v.column4 FROM (",
        );
        sql.push_values(some, |mut row, (id, account)| {
            for value in [**id, account.last_created, account.added.0, account.added.1] {
                row.push("CAST(").push_bind_unseparated(value).push_unseparated(NUMBER);
            }
        });
        sql.push(") v WHERE accounts.id = v.column1");
        sql.build().execute(&mut *conn).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(account: i64, pins: usize, key: Option<&str>) -> Add {
        let cid = cid::parse("bafkqaaa").unwrap();
        let spec = PinSpec {
            cid_text: "bafkqaaa".into(),
            cid,
            name: None,
            origins: Vec::new(),
            meta: BTreeMap::new(),
            policy: floe_core::PolicyChoice::default(),
        };
        let key = key.map(|key| IdempotencyKey { key: key.into(), body_hash: [0; 32] });
        Add { account, specs: vec![spec; pins], local_request: false, key, max_queued: 1 }
    }

    fn grouped(requests: &[Add]) -> usize {
        group(requests.iter())
    }

    #[test]
    fn a_group_ends_before_a_key_that_it_has() {
        let (a, b) = (Some("a"), Some("b"));
        assert_eq!(grouped(&[request(1, 1, a), request(1, 1, b), request(1, 1, a)]), 2);
        assert_eq!(grouped(&[request(1, 1, a), request(2, 1, a), request(1, 1, None)]), 3, "another's key");
    }

    #[test]
    fn a_group_has_so_many_pins_or_is_one_request() {
        for (more, length) in [(-1, 2), (0, 2), (1, 1)] {
            let second = usize::try_from(more + 10).unwrap();
            let requests = [request(1, limits::PINS_PER_GROUP - 10, None), request(1, second, None)];
            assert_eq!(grouped(&requests), length, "{more}");
        }
        assert_eq!(grouped(&[request(1, limits::PINS_PER_GROUP + 1, None)]), 1);
    }
}
