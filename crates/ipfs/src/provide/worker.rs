//! The task that announces: takes what is due, asks the swarm, writes down what came of it.

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
use super::store::{Batch, Store};
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
    pub(crate) async fn run(mut self) {
        let mut state = State::default();
        let mut under_way = UnderWay::new();
        let stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.turn(&mut state, &mut under_way) => {}
            }
        }
        self.write(&mut state).await;
    }

    /// One step. Dropped only when the worker ends: then what is under way counts as not announced.
    async fn turn(&mut self, state: &mut State, under_way: &mut UnderWay) {
        if state.queue.is_empty() {
            self.refill(state).await;
        }
        if !*self.ready.borrow() {
            tokio::select! {
                _ = self.ready.changed() => {}
                () = self.added.notified() => state.queue.clear(),
                Some(ended) = under_way.next() => self.ended(state, ended).await,
                () = self.clock.sleep(REST) => state.queue.clear(),
            }
            return;
        }
        let step = state.pacer.step(self.clock.now(), state.total, state.queue.front().map(|(due, _)| *due));
        let rest = match step {
            Step::Announce => return self.start(state, under_way).await,
            Step::Wait(for_) => for_.min(REST),
            Step::Full => REST,
        };
        self.write(state).await;
        tokio::select! {
            Some(ended) = under_way.next() => self.ended(state, ended).await,
            () = self.added.notified() => state.queue.clear(),
            () = self.clock.sleep(rest) => if rest == REST { state.queue.clear() },
        }
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

    async fn ended(&self, state: &mut State, (multihash, announced): (Vec<u8>, bool)) {
        let due = state.pacer.ended(self.clock.now(), announced);
        metrics::counter!("floe_provides_total", "result" => if announced { "ok" } else { "failed" })
            .increment(1);
        state.under_way.remove(&multihash);
        state.results.push((multihash, due));
        if state.results.len() >= RESULTS {
            self.write(state).await;
        }
    }

    /// Reads what is due next. The results go first: until they are written, their roots look due.
    async fn refill(&self, state: &mut State) {
        self.write(state).await;
        let (store, now, skip) = (self.store.clone(), self.clock.now(), state.under_way.clone());
        let read =
            tokio::task::spawn_blocking(move || store.first(now, PROVIDE_BATCH, |hash| skip.contains(hash)));
        match read.await {
            Ok(Ok(Batch { roots, total, backlog })) => {
                state.queue = roots.into();
                state.total = total;
                self.backlog.store(backlog, Ordering::Relaxed);
            }
            Ok(Err(error)) => self.failed(&error).await,
            Err(error) => self.failed(&error).await,
        }
    }

    async fn write(&self, state: &mut State) {
        if state.results.is_empty() {
            return;
        }
        let (store, results) = (self.store.clone(), std::mem::take(&mut state.results));
        match tokio::task::spawn_blocking(move || store.announced(&results)).await {
            Ok(Ok(())) => {}
            // What is lost is announced once more.
            Ok(Err(error)) => self.failed(&error).await,
            Err(error) => self.failed(&error).await,
        }
    }

    async fn failed(&self, error: &(dyn std::error::Error + Sync)) {
        warn!(file = %self.store.path().display(), %error, "cannot use the table of announced roots");
        if !self.stop.is_cancelled() {
            self.clock.sleep(REST).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use floe_core::ManualClock;

    use super::*;
    use crate::provide::Provided;

    #[tokio::test]
    async fn due_roots_in_memory_at_the_boundary() {
        for roots in [PROVIDE_BATCH - 1, PROVIDE_BATCH, PROVIDE_BATCH + 1] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path(), Arc::new(Provided::new([1; 16]))).unwrap();
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
            worker.refill(&mut state).await;
            assert_eq!(state.queue.len(), roots.min(PROVIDE_BATCH));
            // Those that had no room are not lost.
            assert_eq!((state.total, worker.backlog.load(Ordering::Relaxed)), (roots as u64, roots as u64));
        }
    }
}
