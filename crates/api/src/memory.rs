//! Memory for bodies and pages, over all clients.
//!
//! Connections and requests in flight are counted; what they carry is weighed here: a body by its length while it
//! comes, and by all that is made of it from then on; a page by what it can come to, and the rest is given back as
//! soon as its size is known. Where an account has its share in flight, or all
//! together what there is, the next request waits for a moment. An account waits for its own before it waits for all,
//! so that one that asks for too much keeps nobody else waiting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use floe_core::AccountId;
use hyper::body::Body as _;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::ApiError;
use crate::limits;

/// What is free, of all and of each account's share.
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    shares: Mutex<HashMap<AccountId, Arc<Semaphore>>>,
    per_account: usize,
    within: Duration,
}

/// Bytes that a request may use, until its answer is gone.
#[derive(Debug)]
pub(crate) struct Room {
    of_all: OwnedSemaphorePermit,
    of_account: OwnedSemaphorePermit,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(limits::MEMORY_BYTES, limits::MEMORY_PER_ACCOUNT, limits::MEMORY_WITHIN)
    }
}

impl Memory {
    fn new(bytes: usize, per_account: usize, within: Duration) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes)), shares: Mutex::default(), per_account, within }
    }

    /// Room for what may come to so many bytes. Dropping the future takes nothing.
    pub(crate) async fn take(&self, account: AccountId, bytes: usize) -> Result<Room, ApiError> {
        let until = Instant::now() + self.within;
        let Some(of_account) = wait(self.share(account), bytes, until).await else {
            limits::hit("memory_per_account");
            let details = "this account has too much in flight";
            return Err(ApiError::too_many_requests(details, limits::MEMORY_AGAIN));
        };
        let Some(of_all) = wait(Arc::clone(&self.free), bytes, until).await else {
            limits::hit("memory");
            return Err(ApiError::busy("too much is in flight", limits::MEMORY_AGAIN));
        };
        Ok(Room { of_all, of_account })
    }

    /// An account's share. Those that nobody uses are let go of now and then.
    fn share(&self, account: AccountId) -> Arc<Semaphore> {
        let mut shares = self.shares.lock();
        if shares.len() >= limits::ACCOUNTS_REMEMBERED {
            shares.retain(|_, share| Arc::strong_count(share) > 1);
        }
        let whole = || Arc::new(Semaphore::new(self.per_account));
        Arc::clone(shares.entry(account).or_insert_with(whole))
    }
}

/// So many of the bytes, or nothing where they are not free in time.
async fn wait(free: Arc<Semaphore>, bytes: usize, until: Instant) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).ok()?;
    timeout_at(until, free.acquire_many_owned(bytes)).await.ok()?.ok()
}

impl Room {
    /// Gives back what is above so many bytes.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        for permit in [&mut self.of_all, &mut self.of_account] {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }

    /// Lets an answer keep what its body has, until that is gone: the connection looks for it.
    pub(crate) fn kept_by(mut self, mut response: Response) -> Response {
        self.shrink(usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX));
        response.extensions_mut().insert(Arc::new(self));
        response
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse as _;

    use super::*;

    const ALICE: AccountId = AccountId(1);
    const BOB: AccountId = AccountId(2);

    fn memory() -> Memory {
        Memory::new(100, 60, Duration::from_millis(50))
    }

    async fn refused(memory: &Memory, account: AccountId, bytes: usize) -> Option<u16> {
        let refused = memory.take(account, bytes).await.err()?.into_response();
        assert!(refused.headers().contains_key(http::header::RETRY_AFTER));
        Some(refused.status().as_u16())
    }

    #[tokio::test]
    async fn t22_an_account_has_its_share_and_no_more() {
        for (bytes, want) in [(59, None), (60, None), (61, Some(429))] {
            assert_eq!(refused(&memory(), ALICE, bytes).await, want, "{bytes}");
        }
        let memory = memory();
        let held = memory.take(ALICE, 40).await.unwrap();
        for (bytes, want) in [(20, None), (21, Some(429))] {
            assert_eq!(refused(&memory, ALICE, bytes).await, want, "{bytes}");
        }
        assert_eq!(refused(&memory, BOB, 60).await, None);
        drop(held);
        assert_eq!(refused(&memory, ALICE, 60).await, None);
    }

    #[tokio::test]
    async fn t22_all_accounts_together_are_bounded_and_wait_for_a_moment() {
        let memory = memory();
        let _alice = memory.take(ALICE, 60).await.unwrap();
        for (bytes, want) in [(39, None), (40, None), (41, Some(503))] {
            assert_eq!(refused(&memory, BOB, bytes).await, want, "{bytes}");
        }
        let bob = memory.take(BOB, 40).await.unwrap();
        let later = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(bob);
        };
        let (room, ()) = tokio::join!(memory.take(AccountId(3), 1), later);
        assert!(room.is_ok());
    }

    #[tokio::test]
    async fn an_answer_keeps_what_it_has_and_no_more() {
        let memory = memory();
        let room = memory.take(ALICE, 60).await.unwrap();
        let answer = room.kept_by(Response::new(Body::from("ten bytes.")));
        assert_eq!(memory.free.available_permits(), 90);
        assert_eq!(refused(&memory, ALICE, 51).await, Some(429));
        drop(answer);
        assert_eq!(memory.free.available_permits(), 100);
    }

    #[tokio::test]
    async fn accounts_that_hold_nothing_are_let_go_of() {
        let memory = memory();
        let held = memory.take(ALICE, 60).await.unwrap();
        for account in 2..2 * limits::ACCOUNTS_REMEMBERED {
            memory.take(AccountId(account as i64), 1).await.unwrap();
            assert!(memory.shares.lock().len() <= limits::ACCOUNTS_REMEMBERED);
        }
        assert_eq!(refused(&memory, ALICE, 1).await, Some(429), "who holds some is not forgotten");
        drop(held);
    }

    #[test]
    fn a_share_holds_what_one_request_may_ask_for() {
        const { assert!(limits::PAGE_MOST as usize * limits::PIN_BYTES <= limits::MEMORY_PER_ACCOUNT) };
        const { assert!(limits::BODY_BYTES * limits::BODY_WEIGHT <= limits::MEMORY_PER_ACCOUNT) };
        const { assert!(limits::MEMORY_PER_ACCOUNT < limits::MEMORY_BYTES) };
    }
}
