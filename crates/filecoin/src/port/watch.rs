//! The watch on the head: tells that there is something new, so that nobody has to wait for the next look.
//!
//! ```text
//!   none ──subscribe──> watched ──a change──> told, once for all that came meanwhile
//!    ^  refused: later       └── ended, silent for five epochs, or not to be read ──┐
//!    └──────── a pause that doubles, up to ten minutes <──────────────────────────────┘
//! ```
//!
//! A node that offers no WebSocket, as some gateways, is asked for one every ten minutes; what it is for, the look from time
//! to time does too. What the changes say is only a hint: each look asks for the head itself.

use std::time::Duration;

use floe_core::Clock;
use futures::FutureExt as _;
use tokio::sync::Mutex;

use crate::chain::{HeadMove, HeadTracker};
use crate::limits::{NOTIFY_RETRY_FIRST, NOTIFY_RETRY_MOST};
use crate::rpc::{Endpoint, HeadChanges, NotifyError};

/// The watch. Who waits for it holds it, and leaves it as it is when dropped.
pub(super) struct Watch(Mutex<State>);

struct State {
    changes: Option<HeadChanges>,
    tracker: HeadTracker,
    /// No attempt before this, by the monotonic clock.
    not_before: Duration,
    pause: Duration,
}

impl Watch {
    /// Keeps what may still be undone.
    pub(super) fn new(finality_lookback: i64) -> Self {
        Self(Mutex::new(State {
            changes: None,
            tracker: HeadTracker::new(finality_lookback),
            not_before: Duration::ZERO,
            pause: NOTIFY_RETRY_FIRST,
        }))
    }

    /// Completes with the next change of the head. Cancel safe.
    pub(super) async fn changed(&self, endpoint: &Endpoint, clock: &dyn Clock) {
        let mut state = self.0.lock().await;
        while !state.next(endpoint, clock).await {}
    }
}

impl State {
    /// Takes what comes next; whether it is news.
    async fn next(&mut self, endpoint: &Endpoint, clock: &dyn Clock) -> bool {
        let Some(changes) = &mut self.changes else {
            self.subscribe(endpoint, clock).await;
            return false;
        };
        let taken = changes.next(clock).await;
        let mut is_news = self.take(taken, endpoint, clock);
        // What else waits already is the same news.
        while let Some(changes) = &mut self.changes
            && let Some(taken) = changes.next(clock).now_or_never()
        {
            is_news |= self.take(taken, endpoint, clock);
        }
        is_news
    }

    async fn subscribe(&mut self, endpoint: &Endpoint, clock: &dyn Clock) {
        let now = clock.monotonic();
        if now < self.not_before {
            clock.sleep(self.not_before - now).await;
        }
        // Before the attempt: one that is given up counts as well.
        self.later(clock);
        match HeadChanges::subscribe(endpoint, clock).await {
            Ok(changes) => self.changes = Some(changes),
            Err(error) => tracing::debug!(%endpoint, "the head is not watched, only looked at: {error}"),
        }
    }

    fn take(
        &mut self,
        taken: Result<Vec<crate::rpc::answers::HeadChange>, NotifyError>,
        endpoint: &Endpoint,
        clock: &dyn Clock,
    ) -> bool {
        match taken {
            Ok(changes) => {
                self.pause = NOTIFY_RETRY_FIRST;
                let moved = self.tracker.take(&changes);
                if let HeadMove::Reorg { down_to } = moved {
                    tracing::debug!("the chain was rewound to epoch {down_to}");
                }
                moved != HeadMove::Same
            }
            Err(error) => {
                tracing::debug!(%endpoint, "the watch on the head is made anew: {error}");
                self.changes = None;
                self.later(clock);
                false
            }
        }
    }

    fn later(&mut self, clock: &dyn Clock) {
        self.not_before = clock.monotonic().saturating_add(self.pause);
        self.pause = (self.pause * 2).min(NOTIFY_RETRY_MOST);
    }
}
