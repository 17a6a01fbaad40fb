//! The fetches that run: how the rest of the engine tells them news, and stops one whose manifest is to go.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use floe_core::ports::Origins;

use crate::limits;

/// News for a running fetch.
#[derive(Debug)]
pub(crate) enum Control {
    /// Another pin of the same root names these origins.
    Origins(Origins),
    /// A pin of it was removed: ask whether any is left.
    Check,
}

/// The fetches that run, by DAG.
#[derive(Default)]
pub(crate) struct Running(Mutex<HashMap<Uuid, Handle>>);

struct Handle {
    control: mpsc::Sender<Control>,
    cancel: CancellationToken,
    finished: CancellationToken,
}

impl Running {
    /// Enters a fetch. The returned guard takes it out again, also when the fetch is dropped or panics.
    pub(crate) fn enter(self: &Arc<Self>, dag: Uuid, stop: &CancellationToken) -> Entered {
        let (control, news) = mpsc::channel(limits::CONTROLS_PER_FETCH);
        let handle = Handle { control, cancel: stop.child_token(), finished: CancellationToken::new() };
        let entered = Entered { running: Arc::clone(self), dag, news, cancel: handle.cancel.clone() };
        self.0.lock().insert(dag, handle);
        entered
    }

    /// Tells a fetch; `false` where none runs.
    pub(crate) fn tell(&self, dag: Uuid, control: Control) -> bool {
        let running = self.0.lock();
        let Some(handle) = running.get(&dag) else { return false };
        if handle.control.try_send(control).is_err() {
            limits::hit("fetch_controls");
        }
        true
    }

    /// Stops a fetch, if it runs, and waits until it has let go of its manifest.
    pub(crate) async fn stop(&self, dag: Uuid) {
        let finished = self.0.lock().get(&dag).map(|handle| {
            handle.cancel.cancel();
            handle.finished.clone()
        });
        if let Some(finished) = finished {
            finished.cancelled().await;
        }
    }
}

/// A fetch's place in [`Running`].
pub(crate) struct Entered {
    running: Arc<Running>,
    dag: Uuid,
    pub(super) news: mpsc::Receiver<Control>,
    pub(super) cancel: CancellationToken,
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(handle) = self.running.0.lock().remove(&self.dag) {
            handle.finished.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CONTROLS_PER_FETCH;
    use crate::limits::testing::hits;

    fn origins() -> Control {
        Control::Origins(Origins {
            addresses: vec!["/ip4/10.0.0.1/tcp/4001".to_owned()],
            local_request: false,
        })
    }

    #[test]
    fn news_that_do_not_fit_are_dropped_and_counted() {
        for (told, dropped) in
            [(CONTROLS_PER_FETCH - 1, 0), (CONTROLS_PER_FETCH, 0), (CONTROLS_PER_FETCH + 1, 1)]
        {
            let running = Arc::new(Running::default());
            let _entered = running.enter(Uuid::nil(), &CancellationToken::new());
            let hits = hits("fetch_controls", || {
                (0..told).for_each(|_| assert!(running.tell(Uuid::nil(), origins())))
            });
            assert_eq!(hits, dropped, "{told}");
        }
    }

    #[tokio::test]
    async fn a_stop_waits_for_the_fetch_and_not_for_one_that_is_over() {
        let running = Arc::new(Running::default());
        running.stop(Uuid::nil()).await;
        let entered = running.enter(Uuid::nil(), &CancellationToken::new());
        let mut stopping = Box::pin(running.stop(Uuid::nil()));
        assert!(futures::poll!(&mut stopping).is_pending());
        assert!(entered.cancel.is_cancelled());
        drop(entered);
        stopping.await;
        assert!(!running.tell(Uuid::nil(), Control::Check));
    }
}
