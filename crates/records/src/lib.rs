//! Rows: pins, accounts, tokens, the DAGs that are fetched for them, and what is due.
//!
//! Everything that a client was told lives here, in one SQLite file (WAL, `synchronous=FULL`): a call that
//! changes something answers after its transaction is synced. One task writes, in groups ([`writer`]); pins that
//! come at the same time share their statements too ([`pins::add`]). A few connections read, and who was let in
//! lately is known without a look ([`known`]). What follows from a change (announce, release) is a row of the same
//! transaction ([`Job`]), so a crash between the two cannot be.
//!
//! Every call about pins takes the account first and puts it into each statement's key: another account's pin
//! is [`Error::NotFound`], like one that never was (threat T25).
//!
//! # Reading order
//! [`dags`] (the life of a DAG, and who keeps it), `pins/add.rs`, `dags/claim.rs`, `dags/finish.rs`.
//!
//! # Crash and stop
//! Acknowledged means synced; what was not answered is there or not, as a whole. Claims outlive a crash and are
//! given back by [`Records::reset_claims`]. [`Records::close`] lets the writer finish what it has. A failed sync
//! poisons the writer ([`Records::poisoned`]): the process is to end, and the log is read at the next start.
//!
//! # What it is not
//! It holds no bytes of blocks, does not know where they are, and never speaks to a network. Statements stay
//! portable to PostgreSQL, which is to come.

mod accounts;
pub mod cold;
mod dags;
mod digests;
mod error;
mod fold;
mod jobs;
mod known;
pub mod limits;
mod migrate;
mod open;
mod pins;
mod tokens;
mod types;
mod verify;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use floe_core::ports::Entropy;
use floe_core::{AccountId, Cid, Clock, PinStatus, RequestId, Timestamp, TokenId};
use sqlx::SqlitePool;
use uuid::Uuid;

pub use error::Error;
pub use pins::add::DEFAULT_ACCOUNT;
pub use types::{
    Account, Bounds, ClaimedDag, DagOutcome, DagProgress, GiveUp, Grant, IdempotencyKey, Job, NameMatch,
    Parked, PinFilter, PinPage, PinRow, PinSpec, Principal, Quota, RowsReport, Scope, Token,
};

use crate::known::Known;
use crate::pins::add::Add;
use crate::pins::replace::replace;
use crate::pins::row::{intact, key, uuid_of};
use crate::writer::{Tx, Urgency};

/// Plain settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The SQLite file. `rows.reserve` is kept beside it.
    pub path: PathBuf,
    /// Whether it is made if it is missing or empty. Not where there were rows once: new ones would know none of the
    /// blocks, and call them garbage.
    pub may_make: bool,
    /// Queued pins of an account; the account `default` has no such bound.
    pub max_queued: u64,
}

impl Settings {
    /// The defaults, with this file; it may be made.
    pub fn at(path: PathBuf) -> Self {
        Self { path, may_make: true, max_queued: limits::QUEUED_PER_ACCOUNT }
    }
}

/// Live objects.
#[derive(Clone)]
pub struct Components {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Random bytes for request ids and tokens.
    pub entropy: Arc<dyn Entropy>,
}

/// All rows. Cheap to clone.
///
/// Dropping the future of a call that writes does not take the call back: it is written or not, as a whole.
#[derive(Clone)]
pub struct Records {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    known: Arc<Known>,
    clock: Arc<dyn Clock>,
    max_queued: u64,
    readers: SqlitePool,
    writer: parking_lot::Mutex<Option<writer::Handle>>,
    task: tokio::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Records {
    /// Opens or makes the database, migrates it, and makes the account `default`.
    ///
    /// # Errors
    /// [`Error::Newer`], [`Error::Damaged`] for a file that is not ours or not whole, [`Error::Lost`] for one that is
    /// gone; what is there is left as it is.
    pub async fn open(settings: Settings, components: Components) -> Result<Self, Error> {
        let opened = open::open(&settings.path, settings.may_make).await?;
        let reserve = settings.path.with_file_name("rows.reserve");
        let known = Arc::<Known>::default();
        let (handle, task) = writer::start(
            opened.writer,
            Arc::clone(&known),
            Arc::clone(&components.clock),
            components.entropy,
            reserve,
        );
        let inner = Inner {
            path: settings.path,
            known,
            clock: components.clock,
            max_queued: settings.max_queued,
            readers: opened.readers,
            writer: parking_lot::Mutex::new(Some(handle)),
            task: tokio::sync::Mutex::new(Some(task)),
        };
        let records = Self { inner: Arc::new(inner) };
        if accounts::by_name(&mut *records.reader().await?, pins::add::DEFAULT_ACCOUNT).await?.is_none() {
            records.create_account(pins::add::DEFAULT_ACCOUNT, None, None).await?;
        }
        Ok(records)
    }

    /// One transaction: idempotency key looked up, quota and queue bound checked, rows written, synced. Calls that
    /// wait at the same time share it and its statements; each is refused alone. All pins of a call or none. With a key that was used with the same body, the first answer's pins come back, as
    /// they are now.
    ///
    /// # Errors
    /// [`Error::Quota`], [`Error::Busy`], [`Error::KeyReused`]; [`Error::NotFound`] for the account.
    pub async fn add_pins(
        &self,
        account: AccountId,
        specs: Vec<PinSpec>,
        local_request: bool,
        key: Option<IdempotencyKey>,
    ) -> Result<Vec<PinRow>, Error> {
        self.writer()?.add(self.adding(account, specs, local_request, key)).await
    }

    /// What a request with this key was answered, if it was: a retry is to be told so whatever became of the disk and of
    /// the policies since. The pins are as they are now, and those removed since as `specs` say, which are the first
    /// request's own if the key's body is. `None` also while the first try is under way: [`Records::add_pins`] and
    /// [`Records::replace_pin`] look again.
    ///
    /// # Errors
    /// [`Error::KeyReused`] where it came with another body; [`Error::Damaged`].
    pub async fn answer_of(
        &self,
        account: AccountId,
        specs: Vec<PinSpec>,
        local_request: bool,
        key: IdempotencyKey,
    ) -> Result<Option<Vec<PinRow>>, Error> {
        let request = self.adding(account, specs, local_request, Some(key));
        pins::keys::look(&mut *self.reader().await?, self.inner.clock.now(), &request).await
    }

    /// Replaces a pin in any status: the old id is gone at once, its DAG stays until the new pin is pinned. If
    /// the new pin fails, it stays until that is removed or replaced in turn. What the old pin was charged is
    /// charged on for as long.
    ///
    /// # Errors
    /// [`Error::NotFound`], and those of [`Records::add_pins`].
    pub async fn replace_pin(
        &self,
        account: AccountId,
        old: RequestId,
        spec: PinSpec,
        local_request: bool,
        key: Option<IdempotencyKey>,
    ) -> Result<PinRow, Error> {
        let args = Arc::new(self.adding(account, vec![spec], local_request, key));
        self.write(Urgency::Takes, move |tx| {
            let args = Arc::clone(&args);
            Box::pin(async move { replace(tx, &args, old.0).await })
        })
        .await
    }

    /// Removes a pin; queues what follows. Goes on when the disk is full.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn remove_pin(&self, account: AccountId, id: RequestId) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(pins::change::remove(tx, account.0, id.0))).await
    }

    /// One pin, with its place in the queue.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] if its digest does not hold.
    pub async fn pin(&self, account: AccountId, id: RequestId) -> Result<PinRow, Error> {
        pins::list::one(&mut *self.reader().await?, account.0, id.0).await
    }

    /// A page of pins, each queued one with its place in the queue.
    ///
    /// # Errors
    /// [`Error::Deadline`] when a scan by part of a name or by meta takes too long.
    pub async fn pins(&self, account: AccountId, filter: PinFilter) -> Result<PinPage, Error> {
        let mut page = pins::list::page(&self.inner.readers, &*self.inner.clock, account, &filter).await?;
        if page.pins.iter().any(|pin| pin.status == PinStatus::Queued) {
            pins::list::queue_positions(&mut *self.reader().await?, account, &mut page.pins).await?;
        }
        Ok(page)
    }

    /// Claims up to `most` due DAGs, fairly: at most `per_account` of one account are claimed at a time. Their
    /// queued pins become `pinning`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn claim_dags(&self, most: usize, per_account: usize) -> Result<Vec<ClaimedDag>, Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(dags::claim(tx, most, per_account))).await
    }

    /// When the next DAG falls due, if any is waiting. In the past for one that only waits for a slot.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        dags::next_due(&mut *self.reader().await?).await
    }

    /// Gives all claims back, at start.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn reset_claims(&self) -> Result<u64, Error> {
        self.write(Urgency::Frees, |tx| Box::pin(dags::reset_claims(tx))).await
    }

    /// Saves progress for `info`; pins whose account has no room for `bytes` fail with a reason. Returns
    /// whether any pin still wants the DAG (else stop the walk), and the new byte allowance.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn dag_progress(
        &self,
        dag: Uuid,
        blocks: u64,
        bytes: u64,
        note: Option<String>,
    ) -> Result<Option<Option<u64>>, Error> {
        self.write(Urgency::Frees, move |tx| {
            let note = note.clone();
            Box::pin(async move { dags::progress(tx, dag, blocks, bytes, note.as_deref()).await })
        })
        .await
    }

    /// Ends an attempt, in one transaction with what follows (statuses, charges, jobs); where more than a thousand pins
    /// are concerned, in some, each of which leaves a whole. Saying twice that a DAG is complete is saying it once. Returns
    /// whether any pin still waits for the DAG.
    ///
    /// # Errors
    /// [`Error::NotFound`] if nothing wants the DAG any more: its release is queued already.
    pub async fn finish_dag(&self, dag: Uuid, outcome: DagOutcome) -> Result<bool, Error> {
        let outcome = Arc::new(outcome);
        let mut begun = false;
        loop {
            let outcome = Arc::clone(&outcome);
            let step = self.write(Urgency::Frees, move |tx| {
                let outcome = Arc::clone(&outcome);
                Box::pin(async move { dags::finish(tx, dag, &outcome).await })
            });
            match step.await {
                Ok(dags::Finished::All { waited_for }) => return Ok(waited_for),
                Ok(dags::Finished::Some) => begun = true,
                // The pins that were left have been removed meanwhile, and the DAG has gone with them.
                Err(Error::NotFound) if begun => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes parked DAGs due now whose origins name this peer, or whose root is this one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn wake(&self, peer_id: Option<&str>, root: Option<&Cid>) -> Result<u64, Error> {
        let (peer_id, root) = (peer_id.map(str::to_owned), root.copied());
        self.write(Urgency::Frees, move |tx| {
            let peer_id = peer_id.clone();
            Box::pin(async move { dags::wake(tx, peer_id.as_deref(), root.as_ref()).await })
        })
        .await
    }

    /// Roots of DAGs that are parked, the oldest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn parked_roots(&self, most: usize) -> Result<Vec<Cid>, Error> {
        dags::parked_roots(&mut *self.reader().await?, most).await
    }

    /// The next jobs.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn jobs(&self, most: usize) -> Result<Vec<(i64, Job)>, Error> {
        jobs::first(&mut *self.reader().await?, most).await
    }

    /// A job is done. Twice is once.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn job_done(&self, id: i64) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(async move { jobs::done(&mut tx.conn, id).await }))
            .await
    }

    /// Ids of all DAGs that are held, and whether they are complete, to be compared with the block store at
    /// start. DAGs that are gone are not among them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn dag_ids(&self) -> Result<Vec<(Uuid, bool)>, Error> {
        let rows: Vec<(Vec<u8>, i64)> =
            sqlx::query_as("SELECT id, state FROM dags WHERE state < 4 ORDER BY id")
                .fetch_all(&mut *self.reader().await?)
                .await?;
        Ok(rows.into_iter().map(|(id, state)| (uuid_of(id), state == dags::COMPLETE)).collect())
    }

    /// How many DAGs are announced, those whose announcement is still queued not among them. Linear in the DAGs: for
    /// the start.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn announced_count(&self) -> Result<u64, Error> {
        let count: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM dags WHERE state = $1 AND announced = 1) \
             - (SELECT COUNT(*) FROM jobs WHERE kind = $2)",
        )
        .bind(dags::COMPLETE)
        .bind(jobs::ANNOUNCE)
        .fetch_one(&mut *self.reader().await?)
        .await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// Roots of announced DAGs in the order of their ids, the first `limit` behind `after`; `None` where a row is
    /// damaged.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn announced(&self, after: Uuid, limit: usize) -> Result<Vec<(Uuid, Option<Cid>)>, Error> {
        let rows: Vec<(Vec<u8>, Vec<u8>)> = sqlx::query_as(
            "SELECT id, root FROM dags WHERE id > $1 AND state = $2 AND announced = 1 ORDER BY id LIMIT $3",
        )
        .bind(key(after))
        .bind(dags::COMPLETE)
        .bind(i64::try_from(limit).unwrap_or(i64::MAX))
        .fetch_all(&mut *self.reader().await?)
        .await?;
        let roots = rows.into_iter().map(|(id, root)| (uuid_of(id), root));
        Ok(roots.map(|(dag, root)| (dag, intact(dags::root_of(dag, &root)))).collect())
    }

    /// DAGs whose release is queued and not done yet.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn queued_releases(&self) -> Result<BTreeSet<Uuid>, Error> {
        jobs::releases(&mut *self.reader().await?).await
    }

    /// Whether a DAG is held, and complete as far as the rows know.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn is_complete(&self, dag: Uuid) -> Result<bool, Error> {
        let state: Option<i64> = sqlx::query_scalar("SELECT state FROM dags WHERE id = $1")
            .bind(key(dag))
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        Ok(state == Some(dags::COMPLETE))
    }

    /// What is needed to fetch a DAG again that is held: its root and the origins of its pins. Pins whose rows are damaged
    /// are left out; where there is none that is readable, its own row says the root. `None` where it is not held, or
    /// nothing says which root it has.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn held_dag(&self, dag: Uuid) -> Result<Option<ClaimedDag>, Error> {
        dags::held(&mut *self.reader().await?, dag, self.inner.clock.now()).await
    }

    /// Every pin of a DAG, failed ones too; used by scrub reports.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn pins_of_dag(&self, dag: Uuid) -> Result<Vec<(AccountId, RequestId)>, Error> {
        let rows: Vec<(i64, Vec<u8>)> =
            sqlx::query_as("SELECT account, id FROM pins WHERE dag = $1 ORDER BY id")
                .bind(key(dag))
                .fetch_all(&mut *self.reader().await?)
                .await?;
        Ok(rows.into_iter().map(|(account, id)| (AccountId(account), RequestId(uuid_of(id)))).collect())
    }

    /// Who has this token. `None` for unknown, expired, revoked. The sums of the account are those of some moment since
    /// it or a token last changed.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its row's digest does not hold.
    pub async fn authenticate(&self, token: &str) -> Result<Option<Principal>, Error> {
        let now = self.inner.clock.now();
        let Some(hash) = tokens::hash_of(token) else { return Ok(None) };
        let seen = match self.inner.known.find(&hash, now) {
            Ok(who) => return Ok(Some(who)),
            Err(seen) => seen,
        };
        let found = tokens::authenticate(&mut *self.reader().await?, now, &hash).await?;
        if let Some(found) = found.clone() {
            self.inner.known.keep(seen, hash, found);
        }
        Ok(found.map(|found| found.who))
    }

    /// Whether a token that was let in still would be; for what goes on long after it was.
    ///
    /// # Errors
    /// [`Error::Damaged`] if its row's digest does not hold.
    pub async fn token_holds(&self, token: TokenId) -> Result<bool, Error> {
        let now = self.inner.clock.now();
        tokens::holds(&mut *self.reader().await?, now, token).await
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a name that is taken or not allowed.
    pub async fn create_account(
        &self,
        name: &str,
        max_bytes: Option<u64>,
        max_pins: Option<u64>,
    ) -> Result<Account, Error> {
        self.create_bounded_account(name, Bounds { max_bytes, max_pins, max_replicas: None }).await
    }

    /// Makes an account with these bounds.
    ///
    /// # Errors
    /// As [`Records::create_account`].
    pub async fn create_bounded_account(&self, name: &str, bounds: Bounds) -> Result<Account, Error> {
        let name = name.to_owned();
        self.write(Urgency::Takes, move |tx| {
            let name = name.clone();
            Box::pin(async move { accounts::create(tx, &name, bounds).await })
        })
        .await
    }

    /// All accounts.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn accounts(&self) -> Result<Vec<Account>, Error> {
        accounts::all(&mut *self.reader().await?).await
    }

    /// Changes an account's bounds. Below what it uses, they refuse new pins and take none away.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn set_quota(&self, name: &str, quota: Quota) -> Result<Account, Error> {
        let name = name.to_owned();
        self.write(Urgency::Takes, move |tx| {
            let name = name.clone();
            Box::pin(async move { accounts::set_quota(tx, &name, quota).await })
        })
        .await
    }

    /// Suspends an account, or lifts it.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn suspend_account(&self, name: &str, suspended: bool) -> Result<(), Error> {
        let name = name.to_owned();
        self.write(Urgency::Frees, move |tx| {
            let name = name.clone();
            Box::pin(async move { accounts::suspend(tx, &name, suspended).await })
        })
        .await
    }

    /// Makes a token; the secret is returned once and stored hashed.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account; [`Error::Conflict`] if it has too many.
    pub async fn create_token(
        &self,
        account: &str,
        scopes: &[Scope],
        expires_in: Option<Duration>,
    ) -> Result<(Token, String), Error> {
        self.grant_token(account, Grant { scopes: scopes.to_vec(), expires_in, policy: None }).await
    }

    /// Makes a token that is given all of this. Whether there is such a policy is the caller's matter.
    ///
    /// # Errors
    /// As [`Records::create_token`].
    pub async fn grant_token(&self, account: &str, grant: Grant) -> Result<(Token, String), Error> {
        self.make_token(account, grant, false).await
    }

    /// Makes a token of the node's own, which it writes down in its directory at a start. The bound is for what clients
    /// ask for: a start that it refused could be helped by nobody, since who revokes a token needs one.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account.
    pub async fn create_own_token(&self, account: &str, scopes: &[Scope]) -> Result<(Token, String), Error> {
        self.make_token(account, Grant { scopes: scopes.to_vec(), ..Grant::default() }, true).await
    }

    async fn make_token(&self, account: &str, grant: Grant, own: bool) -> Result<(Token, String), Error> {
        let account = account.to_owned();
        self.write(Urgency::Takes, move |tx| {
            let (account, grant) = (account.clone(), grant.clone());
            Box::pin(async move { tokens::create(tx, &account, &grant, own).await })
        })
        .await
    }

    /// All tokens, or those of one account, with the last hundred of each account that have ended. Damaged rows are
    /// left out, and named in the log.
    ///
    /// # Errors
    /// [`Error::NotFound`] for the account.
    pub async fn tokens(&self, account: Option<&str>) -> Result<Vec<Token>, Error> {
        tokens::all(&mut *self.reader().await?, account).await
    }

    /// Revokes a token; effective at once. Goes on when the disk is full. Deletes a row that is damaged.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub async fn revoke_token(&self, id: TokenId) -> Result<(), Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(tokens::revoke(tx, id))).await
    }

    /// Pins by status over all accounts, from counters.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn pin_counts(&self) -> Result<BTreeMap<PinStatus, u64>, Error> {
        let counts = pins::counts::ever(&mut *self.reader().await?, pins::counts::EVERYBODY).await?;
        Ok(PinStatus::ALL.into_iter().zip(counts).collect())
    }

    /// Checks pages, digests and every sum, in one read transaction.
    ///
    /// # Errors
    /// Only where it cannot go on; what is wrong is in the report.
    pub async fn verify(&self) -> Result<RowsReport, Error> {
        let mut tx = self.inner.readers.begin().await?;
        let report = verify::verify(&mut tx, self.inner.clock.now()).await?;
        tx.commit().await?;
        Ok(report)
    }

    /// The same on a running node: in steps that are each a read of their own with a deadline, beside those who read and
    /// write. What a deadline cut off is named in the report. `in_background` takes a tenth of one connection's time.
    ///
    /// # Errors
    /// As [`Records::verify`].
    pub async fn verify_online(&self, in_background: bool) -> Result<RowsReport, Error> {
        let conn = open::checker(&self.inner.path).await?;
        let share = in_background.then_some(limits::CHECK_SHARE);
        verify::online(conn, &self.inner.clock, share).await
    }

    /// Writes again what a complete DAG holds, where its row is damaged. Whether there is such a DAG.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn mend_dag(&self, dag: Uuid, blocks: u64, bytes: u64) -> Result<bool, Error> {
        self.write(Urgency::Frees, move |tx| Box::pin(dags::mend(tx, dag, blocks, bytes))).await
    }

    /// Completes when a sync has failed and the process must end, with the reason.
    pub async fn poisoned(&self) -> String {
        let handle = self.inner.writer.lock().clone();
        match handle {
            Some(handle) => handle.poisoned().await,
            None => std::future::pending().await,
        }
    }

    /// Closes: what was asked before is written first. Later calls that write fail.
    pub async fn close(&self) {
        drop(self.inner.writer.lock().take());
        if let Some(task) = self.inner.task.lock().await.take() {
            // A panic of the writer was told to its callers.
            let _ = task.await;
        }
        self.inner.readers.close().await;
    }

    fn adding(
        &self,
        account: AccountId,
        specs: Vec<PinSpec>,
        local_request: bool,
        key: Option<IdempotencyKey>,
    ) -> Add {
        Add { account: account.0, specs, local_request, key, max_queued: self.inner.max_queued }
    }

    async fn reader(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Sqlite>, Error> {
        Ok(self.inner.readers.acquire().await?)
    }

    async fn write<T, F>(&self, urgency: Urgency, run: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx) -> floe_core::clock::BoxFuture<'a, Result<T, Error>> + Send + 'static,
    {
        self.writer()?.write(urgency, run).await
    }

    fn writer(&self) -> Result<writer::Handle, Error> {
        self.inner.writer.lock().clone().ok_or_else(|| Error::Sql("the database is closed".into()))
    }
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").finish_non_exhaustive()
    }
}
