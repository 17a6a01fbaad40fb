//! Following a pin: the source of the API's event stream.
//!
//! A change is only a name ("this DAG", "this pin"); whoever watches reads the row again. So a watcher that
//! lags behind the bounded channel loses nothing: it reads once and is up to date. Without news it reads every
//! [`limits::WATCH_POLL`].
//!
//! Whoever watches was let in once, and may watch for days. So its token is read again with the pin, and the stream
//! ends when that is revoked or has expired, or the account is suspended.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use floe_core::{AccountId, RequestId, TokenId};
use floe_records::PinRow;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use uuid::Uuid;

use crate::context::Context;
use crate::{Error, limits};

/// A stream of a pin's states: the current one first, then each change; ends after pinned, failed or removed,
/// when the token holds no longer, and when the engine stops.
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
    of_accounts: Arc<Mutex<HashMap<AccountId, usize>>>,
}

/// One of the watchers that there may be, of all and of an account; dropping it gives it back.
struct Seat {
    _of_all: OwnedSemaphorePermit,
    of_accounts: Arc<Mutex<HashMap<AccountId, usize>>>,
    account: AccountId,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut watchers = self.of_accounts.lock();
        if let Some(count) = watchers.get_mut(&self.account) {
            *count -= 1;
            if *count == 0 {
                watchers.remove(&self.account);
            }
        }
    }
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::channel(limits::CHANGES).0,
            watchers: Arc::new(Semaphore::new(limits::WATCHERS)),
            of_accounts: Arc::default(),
        }
    }

    fn seat(&self, account: AccountId) -> Result<Seat, Error> {
        let full = |limit, reason: String| {
            limits::hit(limit);
            Error::Records(floe_records::Error::Busy { reason, retry_after: Duration::from_secs(10) })
        };
        let of_all = Arc::clone(&self.watchers).try_acquire_owned();
        let of_all = of_all.map_err(|_| full("watchers", "too many pins are being followed".to_owned()))?;
        let mut watchers = self.of_accounts.lock();
        let count = watchers.entry(account).or_default();
        if *count >= limits::WATCHERS_PER_ACCOUNT {
            let most = limits::WATCHERS_PER_ACCOUNT;
            return Err(full("watchers_per_account", format!("this account follows {most} pins already")));
        }
        *count += 1;
        Ok(Seat { _of_all: of_all, of_accounts: Arc::clone(&self.of_accounts), account })
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
    token: TokenId,
    last: PinRow,
    state: WatcherState,
    _seat: Seat,
}

enum WatcherState {
    First,
    Following,
    Over,
}

/// Follows a pin. Dropping the stream is safe.
pub(crate) async fn watch(
    ctx: Arc<Context>,
    account: AccountId,
    token: TokenId,
    id: RequestId,
) -> Result<PinEvents, Error> {
    let seat = ctx.changes.seat(account)?;
    // Subscribed before the row is read: a change in between is seen twice rather than never.
    let changes = ctx.changes.sender.subscribe();
    let last = ctx.records.pin(account, id).await?;
    let watcher = Watcher { ctx, changes, account, token, last, state: WatcherState::First, _seat: seat };
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
            // What cannot be read ends the stream as well: the client comes back, and has lost nothing.
            if !self.ctx.records.token_holds(self.token).await.unwrap_or(false) {
                return None;
            }
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
        // One sleep for all changes of others: on a busy node they never end.
        let mut poll = self.ctx.clock.sleep(limits::WATCH_POLL);
        loop {
            let change = tokio::select! {
                biased;
                () = self.ctx.stop.cancelled() => return None,
                change = self.changes.recv() => change,
                // The rows settle a pin of a DAG that is complete already without asking anyone here.
                () = &mut poll => return Some(()),
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
