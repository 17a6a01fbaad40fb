//! Following a pin: the source of the API's event stream.
//!
//! A change is only a name ("this DAG", "this pin"); whoever watches reads the row again. So a watcher that
//! lags behind the bounded channel loses nothing: it reads once and is up to date. Without news it reads every
//! [`limits::WATCH_POLL`].

use std::sync::Arc;
use std::time::Duration;

use floe_core::{AccountId, RequestId};
use floe_records::PinRow;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use uuid::Uuid;

use crate::context::Context;
use crate::{Error, limits};

/// A stream of a pin's states: the current one first, then each change; ends after pinned, failed or removed,
/// and when the engine stops.
pub type PinEvents = futures::stream::BoxStream<'static, PinEventItem>;

/// An item of [`PinEvents`].
#[derive(Debug, Clone)]
pub enum PinEventItem {
    /// The pin now.
    Status(Box<PinRow>),
    /// It was removed or replaced.
    Removed,
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Dag(Uuid),
    Pin(RequestId),
}

/// Tells watchers.
pub(crate) struct Changes {
    sender: broadcast::Sender<Change>,
    watchers: Arc<Semaphore>,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::channel(limits::CHANGES).0,
            watchers: Arc::new(Semaphore::new(limits::WATCHERS)),
        }
    }

    /// All pins of a DAG may have changed.
    pub(crate) fn dag(&self, dag: Uuid) {
        // An error means that nobody watches.
        let _ = self.sender.send(Change::Dag(dag));
    }

    /// One pin changed or is gone.
    pub(crate) fn pin(&self, id: RequestId) {
        let _ = self.sender.send(Change::Pin(id));
    }
}

struct Watcher {
    ctx: Arc<Context>,
    changes: broadcast::Receiver<Change>,
    account: AccountId,
    last: PinRow,
    state: WatcherState,
    _permit: OwnedSemaphorePermit,
}

enum WatcherState {
    First,
    Following,
    Over,
}

/// Follows a pin. Dropping the stream is safe.
pub(crate) async fn watch(ctx: Arc<Context>, account: AccountId, id: RequestId) -> Result<PinEvents, Error> {
    let Ok(permit) = Arc::clone(&ctx.changes.watchers).try_acquire_owned() else {
        limits::hit("watchers");
        return Err(Error::Records(floe_records::Error::Busy {
            reason: "too many pins are being followed".to_owned(),
            retry_after: Duration::from_secs(10),
        }));
    };
    // Subscribed before the row is read: a change in between is seen twice rather than never.
    let changes = ctx.changes.sender.subscribe();
    let last = ctx.records.pin(account, id).await?;
    let watcher = Watcher { ctx, changes, account, last, state: WatcherState::First, _permit: permit };
    Ok(futures::stream::unfold(watcher, Watcher::next).boxed())
}

impl Watcher {
    async fn next(mut self) -> Option<(PinEventItem, Self)> {
        match self.state {
            WatcherState::Over => return None,
            WatcherState::First => return Some(self.emit()),
            WatcherState::Following => {}
        }
        loop {
            self.changed().await?;
            match self.ctx.records.pin(self.account, self.last.id).await {
                Ok(row) if row == self.last => {}
                Ok(row) => {
                    self.last = row;
                    return Some(self.emit());
                }
                Err(floe_records::Error::NotFound) => {
                    self.state = WatcherState::Over;
                    return Some((PinEventItem::Removed, self));
                }
                // The client comes back; it has lost nothing.
                Err(_) => return None,
            }
        }
    }

    fn emit(mut self) -> (PinEventItem, Self) {
        self.state = if self.last.status.is_settled() { WatcherState::Over } else { WatcherState::Following };
        (PinEventItem::Status(Box::new(self.last.clone())), self)
    }

    /// Waits until this pin may have changed; `None` when the engine stops.
    async fn changed(&mut self) -> Option<()> {
        loop {
            let change = tokio::select! {
                biased;
                () = self.ctx.stop.cancelled() => return None,
                change = self.changes.recv() => change,
                // The rows settle a pin of a DAG that is complete already without asking anyone here.
                () = self.ctx.clock.sleep(limits::WATCH_POLL) => return Some(()),
            };
            match change {
                Ok(Change::Dag(dag)) if dag == self.last.dag => return Some(()),
                Ok(Change::Pin(id)) if id == self.last.id => return Some(()),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    limits::hit("changes");
                    return Some(());
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
