//! The task that announces: takes what is due, asks the swarm, writes down what came of it.
//!
//! Results that cannot be written stay in memory and are tried again before anything else is read, because until
//! then their roots look due: a full disk stops the announcing within a batch, and space lets it go on.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floe_core::clock::BoxFuture;
use floe_core::{Clock, Timestamp};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::pacer::{Pacer, Step};
use super::store::{Batch, Failed, Store};
use crate::limits::PROVIDE_BATCH;

/// An announcement for the swarm's task to make. `done` says whether enough of the DHT took it.
#[derive(Debug)]
pub(crate) struct Announce {
    pub(crate) multihash: Vec<u8>,
    pub(crate) done: oneshot::Sender<bool>,
}

/// Results are written in batches of this many, and whenever the worker would rest: one sync a batch.
const RESULTS: usize = 64;
/// How long the worker rests at most before it looks at the table again, and after an error.
const REST: Duration = Duration::from_secs(30);

/// What the worker works with.
pub(crate) struct Worker {
    pub(crate) store: Arc<Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) announce: mpsc::Sender<Announce>,
    /// Roots were added.
    pub(crate) added: Arc<Notify>,
    /// Whether the DHT can be asked now.
    pub(crate) ready: watch::Receiver<bool>,
    /// For the status.
    pub(crate) backlog: Arc<AtomicU64>,
    pub(crate) stop: CancellationToken,
}

#[derive(Default)]
struct State {
    pacer: Pacer,
    queue: VecDeque<(Timestamp, Vec<u8>)>,
    total: u64,
    under_way: HashSet<Vec<u8>>,
    results: Vec<(Vec<u8>, Timestamp)>,
}

type UnderWay = FuturesUnordered<BoxFuture<'static, (Vec<u8>, bool)>>;

impl Worker {
    /// Runs until it is stopped; then the results it has are written.
    ///
    /// # Errors
    /// A sync failed: the process should end.
    pub(crate) async fn run(mut self) -> Result<(), Failed> {
        let mut state = State::default();
        let mut under_way = UnderWay::new();
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                done = self.turn(&mut state, &mut under_way) => {
                    let Err(failed) = done else { continue };
                    waited_out(failed)?;
                }
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.clock.sleep(REST) => {}
            }
        }
        self.write(&mut state).await.or_else(waited_out)
    }

    /// One step. Dropped only when the worker ends: then what is under way counts as not announced.
    async fn turn(&mut self, state: &mut State, under_way: &mut UnderWay) -> Result<(), Failed> {
        if state.queue.is_empty() {
            self.refill(state).await?;
        }
        if !*self.ready.borrow() {
            tokio::select! {
                _ = self.ready.changed() => {}
                () = self.added.notified() => state.queue.clear(),
                Some(ended) = under_way.next() => self.ended(state, ended).await?,
                () = self.clock.sleep(REST) => state.queue.clear(),
            }
            return Ok(());
        }
        let step = state.pacer.step(self.clock.now(), state.total, state.queue.front().map(|(due, _)| *due));
        let rest = match step {
            Step::Announce => {
                self.start(state, under_way).await;
                return Ok(());
            }
            Step::Wait(for_) => for_.min(REST),
            Step::Full => REST,
        };
        self.write(state).await?;
        tokio::select! {
            Some(ended) = under_way.next() => self.ended(state, ended).await?,
            () = self.added.notified() => state.queue.clear(),
            () = self.clock.sleep(rest) => if rest == REST { state.queue.clear() },
        }
        Ok(())
    }

    async fn start(&self, state: &mut State, under_way: &mut UnderWay) {
        let Some((_, multihash)) = state.queue.pop_front() else { return };
        state.under_way.insert(multihash.clone());
        let (done, result) = oneshot::channel();
        // Waiting here is the backpressure of the swarm's task; when that has ended, so does this one.
        let sent = self.announce.send(Announce { multihash: multihash.clone(), done }).await;
        under_way.push(Box::pin(async move {
            // A dropped sender is an announcement that was not made.
            (multihash, sent.is_ok() && result.await.unwrap_or(false))
        }));
    }

    async fn ended(&self, state: &mut State, (multihash, announced): (Vec<u8>, bool)) -> Result<(), Failed> {
        let due = state.pacer.ended(self.clock.now(), announced);
        metrics::counter!("floe_provides_total", "result" => if announced { "ok" } else { "failed" })
            .increment(1);
        state.under_way.remove(&multihash);
        state.results.push((multihash, due));
        if state.results.len() >= RESULTS {
            self.write(state).await?;
        }
        Ok(())
    }

    /// Reads what is due next. The results go first: until they are written, their roots look due.
    async fn refill(&self, state: &mut State) -> Result<(), Failed> {
        self.write(state).await?;
        let (now, skip) = (self.clock.now(), state.under_way.clone());
        let read = move |store: &Store| store.first(now, PROVIDE_BATCH, |hash| skip.contains(hash));
        let Batch { roots, total, backlog } = self.table(read).await?;
        state.queue = roots.into();
        state.total = total;
        self.backlog.store(backlog, Ordering::Relaxed);
        Ok(())
    }

    async fn write(&self, state: &mut State) -> Result<(), Failed> {
        if state.results.is_empty() {
            return Ok(());
        }
        let results = state.results.clone();
        self.table(move |store| store.announced(&results)).await?;
        state.results.clear();
        Ok(())
    }

    async fn table<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Failed> + Send + 'static,
    ) -> Result<T, Failed> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|e| Err(Failed::panicked(self.store.path().to_owned(), &e)))
    }
}

/// A failed sync is fatal; anything else is told, and tried again.
fn waited_out(failed: Failed) -> Result<(), Failed> {
    if matches!(failed, Failed::Sync { .. }) {
        return Err(failed);
    }
    warn!("cannot use the table of announced roots: {failed}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use floe_core::ManualClock;

    use super::*;
    use crate::provide::Provided;
    use crate::provide::file::on_disk;
    use crate::testing::FaultyFile;

    #[tokio::test]
    async fn due_roots_in_memory_at_the_boundary() {
        for roots in [PROVIDE_BATCH - 1, PROVIDE_BATCH, PROVIDE_BATCH + 1] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), on_disk(), Arc::new(Provided::new([1; 16]))).unwrap();
            let hashes: Vec<Vec<u8>> = (0..roots).map(|n| n.to_be_bytes().to_vec()).collect();
            store.add(&hashes).unwrap();
            let worker = Worker {
                store: Arc::new(store),
                clock: Arc::new(ManualClock::new(Timestamp::from_millis(1))),
                announce: mpsc::channel(1).0,
                added: Arc::default(),
                ready: watch::channel(true).1,
                backlog: Arc::default(),
                stop: CancellationToken::new(),
            };
            let mut state = State::default();
            worker.refill(&mut state).await.unwrap();
            assert_eq!(state.queue.len(), roots.min(PROVIDE_BATCH));
            // Those that had no room are not lost.
            assert_eq!((state.total, worker.backlog.load(Ordering::Relaxed)), (roots as u64, roots as u64));
        }
    }

    /// The story: a full disk refused to take down that a root had been announced, and every look at the table from then
    /// on failed like the first, also when space was back. The root's provider records ran out two days later.
    #[tokio::test]
    async fn r03_a_root_is_announced_again_after_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let disk = FaultyFile::default();
        let store = Arc::new(Store::open(dir.path(), disk.open(), Arc::new(Provided::new([1; 16]))).unwrap());
        store.add(&[vec![1; 34]]).unwrap();
        let clock = ManualClock::new(Timestamp::from_millis(1));
        let (announce, mut announcements) = mpsc::channel(1);
        let (_ready, ready) = watch::channel(true);
        let stop = CancellationToken::new();
        let worker = Worker {
            store: store.clone(),
            clock: Arc::new(clock.clone()),
            announce,
            added: Arc::default(),
            ready,
            backlog: Arc::default(),
            stop: stop.clone(),
        };
        let running = tokio::spawn(worker.run());
        let passing = tokio::spawn(async move {
            loop {
                clock.advance(REST);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        let first = announcements.recv().await.unwrap();
        disk.fill(true);
        first.done.send(true).unwrap();
        // An hour passes, and the disk is full all along.
        tokio::time::sleep(Duration::from_millis(240)).await;
        assert!(announcements.try_recv().is_err(), "announced once, though it cannot be written down");
        disk.fill(false);
        // A day later.
        let again = tokio::time::timeout(Duration::from_secs(30), announcements.recv()).await;
        assert_eq!(again.unwrap().unwrap().multihash, first.multihash);
        stop.cancel();
        running.await.unwrap().unwrap();
        passing.abort();
    }
}
