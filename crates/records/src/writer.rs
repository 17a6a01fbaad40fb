//! The one task that writes.
//!
//! Callers hand it closures over [`Tx`]. It runs as many as wait in one `BEGIN IMMEDIATE` transaction, each in
//! a savepoint, and answers after the COMMIT, which is one sync. No timer gathers the batch: requests gather by
//! themselves while the sync before them runs, and a lone request is not delayed. Pins to be added are no closures:
//! those next to each other in the batch are written together ([`add`]), in one savepoint.
//!
//! A request that fails is rolled back to its savepoint and fails alone. When the engine below fails (disk
//! full, an I/O error), the whole transaction is rolled back and nobody was answered; on a full disk what frees
//! space ([`Urgency::Frees`]) is run again, at last with the room of `rows.reserve`. A failed sync, or a COMMIT
//! whose result is unknown, poisons the writer: it never writes again, and the process is to end.
//!
//! Crash: what was answered is in the WAL and synced. Stop: the queue is closed and run empty.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use floe_core::clock::BoxFuture;
use floe_core::ports::Entropy;
use floe_core::{Clock, Timestamp};
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot, watch};

use crate::known::Known;
use crate::pins::add::{self, Add};
use crate::{Error, PinRow, limits};

/// The writer's connection inside a transaction, and what a request may know of the world.
pub(crate) struct Tx {
    pub(crate) conn: SqliteConnection,
    pub(crate) now: Timestamp,
    pub(crate) entropy: Arc<dyn Entropy>,
    /// Set when a pin has joined a DAG that is complete, or when an aggregate has pins to tell or DAGs to let go of: a
    /// follow-up transaction does it.
    pub(crate) settle: bool,
    /// Set when a token or an account may have changed: what is known of them is forgotten before anybody is answered.
    pub(crate) access_changed: bool,
    /// Where the next claim goes on, so that every account has its turn.
    pub(crate) last_claimed_for: i64,
    /// Accounts whose last turn went to what was woken; one entry for each account at most.
    pub(crate) woken_last: HashSet<i64>,
    /// The epoch of the ledger that this process began: what spends is fenced by it.
    pub(crate) ledger_epoch: Option<u64>,
}

/// Whether a request frees space, and so may use the reserve of a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Takes space: refused on a full disk.
    Takes,
    /// Frees space, or ends something: runs also then.
    Frees,
}

trait Work: Send {
    fn urgency(&self) -> Urgency;
    /// Runs it. The result is kept; what is returned says whether the batch can go on.
    fn run<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, Result<Ran, Error>>;
    /// Answers with the result, or with `error` if the transaction did not commit.
    fn answer(self: Box<Self>, error: Option<Error>);
}

#[derive(Clone, Copy)]
enum Ran {
    Keep,
    Undo,
}

/// What waits for the writer.
enum Request {
    /// Pins. Those that stand next to each other are written together.
    Add(Box<Adding>),
    /// All else, one by one.
    Other(Box<dyn Work>),
}

struct Adding {
    request: Add,
    answer: Answer<Vec<PinRow>>,
}

struct Call<F, T> {
    urgency: Urgency,
    run: F,
    answer: Answer<T>,
}

/// What a request came to, until its transaction is synced, and where it is said then.
struct Answer<T> {
    out: Option<Result<T, Error>>,
    reply: oneshot::Sender<Result<T, Error>>,
}

impl<T> Answer<T> {
    /// Says it, or `error` if the transaction did not commit.
    fn say(self, error: Option<Error>) {
        let Self { out, reply } = self;
        let stopped = || Err(Error::Sql("the transaction did not run".into()));
        let out = error.map_or_else(|| out.unwrap_or_else(stopped), Err);
        // A caller that has gone does not hear of it; what it asked for is done.
        let _ = reply.send(out);
    }
}

impl Request {
    fn urgency(&self) -> Urgency {
        match self {
            Self::Add(_) => Urgency::Takes,
            Self::Other(work) => work.urgency(),
        }
    }

    fn answer(self, error: Option<Error>) {
        match self {
            Self::Add(adding) => adding.answer.say(error),
            Self::Other(work) => work.answer(error),
        }
    }

    fn as_add(&self) -> Option<&Add> {
        match self {
            Self::Add(adding) => Some(&adding.request),
            Self::Other(_) => None,
        }
    }
}

impl<F, T> Work for Call<F, T>
where
    T: Send,
    F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, Result<T, Error>> + Send,
{
    fn urgency(&self) -> Urgency {
        self.urgency
    }

    fn run<'a>(&'a mut self, tx: &'a mut Tx) -> BoxFuture<'a, Result<Ran, Error>> {
        Box::pin(async move {
            match (self.run)(tx).await {
                Err(error) if error.spoils_batch() => Err(error),
                Err(error) => {
                    self.answer.out = Some(Err(error));
                    Ok(Ran::Undo)
                }
                Ok(out) => {
                    self.answer.out = Some(Ok(out));
                    Ok(Ran::Keep)
                }
            }
        })
    }

    fn answer(self: Box<Self>, error: Option<Error>) {
        self.answer.say(error);
    }
}

/// Hands requests to the writer.
#[derive(Clone)]
pub(crate) struct Handle {
    queue: mpsc::Sender<Request>,
    poison: watch::Receiver<Option<String>>,
}

impl Handle {
    /// Runs `run` in a transaction and answers once it is synced. Dropping the future does not take the request
    /// back: it may be written or not.
    pub(crate) async fn write<T, F>(&self, urgency: Urgency, run: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'a> Fn(&'a mut Tx) -> BoxFuture<'a, Result<T, Error>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let call = Call { urgency, run, answer: Answer { out: None, reply } };
        self.ask(Request::Other(Box::new(call)), answer).await
    }

    /// Adds pins, with all others that wait to be added. As for [`Handle::write`].
    pub(crate) async fn add(&self, request: Add) -> Result<Vec<PinRow>, Error> {
        let (reply, answer) = oneshot::channel();
        let adding = Adding { request, answer: Answer { out: None, reply } };
        self.ask(Request::Add(Box::new(adding)), answer).await
    }

    async fn ask<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, Error>>,
    ) -> Result<T, Error> {
        match request.urgency() {
            // Clients are told to come back; our own work waits its turn.
            Urgency::Takes => self.queue.try_send(request).map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    limits::hit("records_write_queue");
                    Error::Busy { reason: "too many writes wait".into(), retry_after: Duration::from_secs(1) }
                }
                mpsc::error::TrySendError::Closed(_) => self.closed(),
            })?,
            Urgency::Frees => self.queue.send(request).await.map_err(|_| self.closed())?,
        }
        match answer.await {
            Ok(out) => out,
            // The reply went down with the writer: a moment later its guard says why.
            Err(_) => {
                self.queue.closed().await;
                Err(self.closed())
            }
        }
    }

    fn closed(&self) -> Error {
        match &*self.poison.borrow() {
            Some(reason) => Error::Poisoned(reason.clone()),
            None => Error::Sql("the database is closed".into()),
        }
    }

    /// Completes when the writer is poisoned; never, if it ends in order.
    pub(crate) async fn poisoned(&self) -> String {
        let mut poison = self.poison.clone();
        loop {
            if let Some(reason) = poison.borrow_and_update().clone() {
                return reason;
            }
            if poison.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Starts the task. It ends when every [`Handle`] is gone, or at a failed sync.
pub(crate) fn start(
    conn: SqliteConnection,
    known: Arc<Known>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    reserve: PathBuf,
) -> (Handle, tokio::task::JoinHandle<()>) {
    let (queue, requests) = mpsc::channel(limits::WRITE_QUEUE);
    let (poison_tx, poison) = watch::channel(None);
    let now = clock.now();
    let tx = Tx {
        conn,
        now,
        entropy,
        settle: true,
        access_changed: false,
        last_claimed_for: 0,
        woken_last: HashSet::new(),
        ledger_epoch: None,
    };
    let writer = Writer {
        tx,
        known,
        clock,
        poison: poison_tx,
        reserve,
        reserve_missing_since: None,
        settle_later: false,
    };
    (Handle { queue, poison }, tokio::spawn(writer.run(requests)))
}

struct Writer {
    tx: Tx,
    known: Arc<Known>,
    clock: Arc<dyn Clock>,
    poison: watch::Sender<Option<String>>,
    reserve: PathBuf,
    reserve_missing_since: Option<Duration>,
    /// The follow-up failed; it is tried again after the next write, not in a hot loop.
    settle_later: bool,
}

impl Writer {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let _guard = PoisonOnPanic(self.poison.clone());
        self.make_reserve();
        loop {
            // Before the next requests, so that a pin of a complete DAG waits for one commit and not for luck.
            while self.tx.settle && self.poison.borrow().is_none() {
                self.follow_up().await;
                if !requests.is_empty() {
                    break;
                }
            }
            let mut batch = Vec::new();
            if self.poison.borrow().is_some() || requests.recv_many(&mut batch, limits::BATCH).await == 0 {
                break;
            }
            self.serve(batch).await;
            self.tx.settle |= std::mem::take(&mut self.settle_later);
            self.mend_reserve();
        }
        // Who still waits is told by the closed channel.
        drop(requests);
        if self.poison.borrow().is_none() {
            let _ = self.tx.conn.close().await;
        }
    }

    async fn serve(&mut self, mut batch: Vec<Request>) {
        let mut result = self.transact(&mut batch).await;
        if matches!(result, Err(Error::Full)) {
            let (frees, takes): (Vec<_>, Vec<_>) =
                batch.into_iter().partition(|work| work.urgency() == Urgency::Frees);
            takes.into_iter().for_each(|work| work.answer(Some(Error::Full)));
            batch = frees;
            result = self.transact_on_full(&mut batch).await;
        }
        if let Err(Error::Poisoned(reason)) = &result {
            self.poison.send_replace(Some(reason.clone()));
        }
        for work in batch {
            work.answer(result.as_ref().err().map(copy));
        }
    }

    /// Only what frees space, and at last with the reserve given up.
    async fn transact_on_full(&mut self, batch: &mut [Request]) -> Result<(), Error> {
        if batch.is_empty() {
            return Ok(());
        }
        match self.transact(batch).await {
            Err(Error::Full) if self.give_up_reserve() => self.transact(batch).await,
            other => other,
        }
    }

    /// One transaction with all of the batch. On an error nothing of it is written.
    async fn transact(&mut self, batch: &mut [Request]) -> Result<(), Error> {
        match self.attempt(batch).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // SQLite may have rolled back by itself (a full disk): then this one fails, and that is well.
                let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.tx.conn).await;
                Err(error)
            }
        }
    }

    async fn attempt(&mut self, batch: &mut [Request]) -> Result<(), Error> {
        self.execute("BEGIN IMMEDIATE").await?;
        let mut rest = batch;
        while !rest.is_empty() {
            self.tx.now = self.clock.now();
            let group = add::group(rest.iter().map_while(Request::as_add));
            let (now, later) = rest.split_at_mut(group.max(1));
            match now {
                [Request::Other(work)] => self.run_alone(work).await?,
                adding => self.add(adding).await?,
            }
            rest = later;
        }
        self.commit().await
    }

    async fn run_alone(&mut self, work: &mut Box<dyn Work>) -> Result<(), Error> {
        self.execute("SAVEPOINT request").await?;
        if matches!(work.run(&mut self.tx).await?, Ran::Undo) {
            self.execute("ROLLBACK TO request").await?;
        }
        self.execute("RELEASE request").await
    }

    /// A group of pins. Where the database refuses it, each request is tried alone, so that one of them is to blame.
    async fn add(&mut self, group: &mut [Request]) -> Result<(), Error> {
        let Err(refused) = self.add_together(group).await? else { return Ok(()) };
        if let [Request::Add(adding)] = group {
            adding.answer.out = Some(Err(refused));
            return Ok(());
        }
        tracing::warn!(error = %refused, "a group of pins is written one by one: {refused}");
        for alone in group.chunks_mut(1) {
            if let (Err(error), Some(Request::Add(adding))) =
                (self.add_together(alone).await?, alone.first_mut())
            {
                adding.answer.out = Some(Err(error));
            }
        }
        Ok(())
    }

    /// The inner error is the group's: nothing of it is written, and the transaction goes on.
    async fn add_together(&mut self, group: &mut [Request]) -> Result<Result<(), Error>, Error> {
        self.execute("SAVEPOINT request").await?;
        let requests: Vec<&Add> = group.iter().filter_map(Request::as_add).collect();
        let added = match add::add(&mut self.tx, &requests).await {
            Err(error) if error.spoils_batch() => return Err(error),
            Err(error) => {
                self.execute("ROLLBACK TO request").await?;
                Err(error)
            }
            Ok(answers) => {
                for (request, answer) in group.iter_mut().zip(answers) {
                    if let Request::Add(adding) = request {
                        adding.answer.out = Some(answer);
                    }
                }
                Ok(())
            }
        };
        self.execute("RELEASE request").await?;
        Ok(added)
    }

    async fn commit(&mut self) -> Result<(), Error> {
        fail::fail_point!("rows.before_commit");
        let committed = self.execute("COMMIT").await;
        if std::mem::take(&mut self.tx.access_changed) {
            self.known.forget();
        }
        fail::fail_point!("rows.after_commit");
        match committed {
            // Nobody can say whether it is on the disk: the log decides at the next start.
            Err(Error::Sql(error)) => Err(Error::Poisoned(format!("a commit of unknown result: {error}"))),
            other => other,
        }
    }

    async fn follow_up(&mut self) {
        self.tx.settle = false;
        self.tx.now = self.clock.now();
        let settled = async {
            self.execute("BEGIN IMMEDIATE").await?;
            let more = crate::dags::settle_joined(&mut self.tx).await?;
            let cold = crate::cold::follow_up(&mut self.tx).await?;
            self.commit().await?;
            Ok::<bool, Error>(more || cold)
        };
        match settled.await {
            Ok(more) => self.tx.settle = more,
            Err(error) => {
                let _ = sqlx::raw_sql("ROLLBACK").execute(&mut self.tx.conn).await;
                self.settle_later = true;
                tracing::error!(%error, "what follows from earlier writes is done with the next one: {error}");
                if let Error::Poisoned(reason) = error {
                    self.poison.send_replace(Some(reason));
                }
            }
        }
    }

    async fn execute(&mut self, sql: &'static str) -> Result<(), Error> {
        // Prepared once and cached: a savepoint is set and released for every request.
        sqlx::query(sql).execute(&mut self.tx.conn).await?;
        Ok(())
    }

    fn give_up_reserve(&mut self) -> bool {
        let given = std::fs::remove_file(&self.reserve).is_ok();
        if given {
            self.reserve_missing_since = Some(self.clock.monotonic());
            tracing::warn!("the disk is full: rows.reserve is given up so that deletes go on");
        }
        given
    }

    fn mend_reserve(&mut self) {
        let now = self.clock.monotonic();
        if self.reserve_missing_since.is_some_and(|since| now.saturating_sub(since) >= limits::RESERVE_EVERY)
        {
            self.make_reserve();
        }
    }

    /// Real bytes, not a hole: they are to be there when the disk is full.
    fn make_reserve(&mut self) {
        let bytes = usize::try_from(limits::RESERVE_BYTES).expect("a few MiB");
        if std::fs::metadata(&self.reserve).is_ok_and(|file| file.len() >= limits::RESERVE_BYTES) {
            self.reserve_missing_since = None;
            return;
        }
        match std::fs::write(&self.reserve, vec![0xF1; bytes]) {
            Ok(()) => self.reserve_missing_since = None,
            Err(error) => {
                // A part of it would take the space that is missing.
                let _ = std::fs::remove_file(&self.reserve);
                self.reserve_missing_since = Some(self.clock.monotonic());
                tracing::warn!(%error, "cannot make {}: {error}", self.reserve.display());
            }
        }
    }
}

/// A writer that panicked writes no more: the process is to end, as after a failed sync.
struct PoisonOnPanic(watch::Sender<Option<String>>);

impl Drop for PoisonOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.send_replace(Some("the writer panicked; see the log".into()));
        }
    }
}

/// The same error for each request of a transaction that failed.
fn copy(error: &Error) -> Error {
    match error {
        Error::Full => Error::Full,
        Error::Poisoned(reason) => Error::Poisoned(reason.clone()),
        other => Error::Sql(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use floe_core::ManualClock;
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;

    struct Zeros;

    impl Entropy for Zeros {
        fn fill(&self, out: &mut [u8]) {
            out.fill(0);
        }
    }

    async fn writer(dir: &tempfile::TempDir) -> (Handle, tokio::task::JoinHandle<()>) {
        let path = dir.path().join("rows.sqlite");
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let mut conn = options.connect().await.unwrap();
        crate::migrate::migrate(&mut conn).await.unwrap();
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(1_000)));
        start(conn, Arc::default(), clock, Arc::new(Zeros), dir.path().join("rows.reserve"))
    }

    fn insert(tx: &mut Tx) -> BoxFuture<'_, Result<(), Error>> {
        let sql = "INSERT INTO settles (dag) SELECT randomblob(900) FROM (VALUES (1), (2), (3), (4), (5), (6), (7), (8))";
        Box::pin(async move {
            sqlx::query(sql).execute(&mut tx.conn).await?;
            Ok(())
        })
    }

    #[tokio::test]
    async fn r03_a_full_disk_refuses_what_takes_space_and_recovers_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, _task) = writer(&dir).await;
        let limit = |sql: &'static str| {
            handle.write(Urgency::Frees, move |tx| {
                Box::pin(async move { Ok(sqlx::raw_sql(sql).execute(&mut tx.conn).await.map(|_| ())?) })
            })
        };
        handle.write(Urgency::Takes, insert).await.unwrap();
        limit("PRAGMA max_page_count = 1").await.unwrap();
        assert!(matches!(handle.write(Urgency::Takes, insert).await, Err(Error::Full)));
        limit("DELETE FROM settles").await.unwrap();
        limit("PRAGMA max_page_count = 1000000").await.unwrap();
        handle.write(Urgency::Takes, insert).await.unwrap();
    }

    #[tokio::test]
    async fn r03_what_frees_space_gets_the_reserve_and_a_taker_never_does() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = dir.path().join("rows.reserve");
        let (handle, _task) = writer(&dir).await;
        let full_until = |tries: usize, urgency| {
            let ran = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&ran);
            let done = handle.write(urgency, move |_: &mut Tx| {
                let full = count.fetch_add(1, Ordering::Relaxed) < tries;
                Box::pin(async move { if full { Err(Error::Full) } else { Ok(()) } })
            });
            (ran, done)
        };
        let (ran, done) = full_until(9, Urgency::Takes);
        assert!(matches!(done.await, Err(Error::Full)));
        assert_eq!(ran.load(Ordering::Relaxed), 1);
        assert_eq!(std::fs::metadata(&reserve).unwrap().len(), limits::RESERVE_BYTES);
        let (ran, done) = full_until(2, Urgency::Frees);
        done.await.unwrap();
        assert_eq!(ran.load(Ordering::Relaxed), 3, "in the group, alone, with the reserve");
        assert!(!reserve.exists());
    }

    #[tokio::test]
    async fn what_takes_space_is_refused_while_the_queue_is_full_and_what_frees_waits() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, _task) = writer(&dir).await;
        let nothing = |urgency| handle.write(urgency, |_: &mut Tx| Box::pin(async { Ok(()) }));
        // The writer is held inside a request, so that nothing leaves the queue.
        let (begun, mut is_begun) = mpsc::channel::<()>(1);
        let hold = Arc::new(tokio::sync::Semaphore::new(0));
        let held = Arc::clone(&hold);
        let mut first = Box::pin(handle.write(Urgency::Frees, move |_: &mut Tx| {
            let (begun, held) = (begun.clone(), Arc::clone(&held));
            Box::pin(async move {
                let _ = begun.try_send(());
                held.acquire().await.expect("never closed").forget();
                Ok(())
            })
        }));
        assert!(futures_now(&mut first).is_none());
        is_begun.recv().await.unwrap();
        let mut queued = Vec::new();
        for _ in 0..limits::WRITE_QUEUE {
            let mut write = Box::pin(nothing(Urgency::Takes));
            assert!(futures_now(&mut write).is_none(), "there is room for it");
            queued.push(write);
        }
        match futures_now(&mut Box::pin(nothing(Urgency::Takes))) {
            Some(Err(Error::Busy { retry_after, .. })) => assert_eq!(retry_after, Duration::from_secs(1)),
            other => panic!("{other:?}"),
        }
        let mut waits = Box::pin(nothing(Urgency::Frees));
        assert!(futures_now(&mut waits).is_none(), "our own work waits for its turn");
        hold.add_permits(1);
        first.await.unwrap();
        for write in queued {
            write.await.unwrap();
        }
        waits.await.unwrap();
        nothing(Urgency::Takes).await.unwrap();
    }

    /// Polls once.
    fn futures_now<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(future).poll(&mut cx) {
            std::task::Poll::Ready(out) => Some(out),
            std::task::Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn r03_after_a_failed_sync_nothing_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let (handle, task) = writer(&dir).await;
        let failed = handle.write(Urgency::Frees, |_: &mut Tx| {
            Box::pin(async { Err::<(), _>(Error::Poisoned("the database could not be synced".into())) })
        });
        assert!(matches!(failed.await, Err(Error::Poisoned(_))));
        assert_eq!(handle.poisoned().await, "the database could not be synced");
        task.await.unwrap();
        assert!(matches!(handle.write(Urgency::Takes, insert).await, Err(Error::Poisoned(_))));
    }
}
