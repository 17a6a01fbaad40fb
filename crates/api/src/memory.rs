//! Memory for bodies and pages, over all clients.
//!
//! Connections and requests in flight are counted; what they carry is weighed here: a body by its length while it
//! comes, and by all that is made of it from then on; a page by what it can come to, and the rest is given back as
//! soon as its size is known. Where an account has its share in flight, or all
//! together what there is, the next request waits for a moment. An account waits for its own before it waits for all,
//! so that one that asks for too much keeps nobody else waiting.
//!
//! Administration has memory of its own, which nobody else can fill: where pins take all there is, the operator can
//! still suspend the account that does.

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

/// Whose memory a request uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Payer {
    /// The account's share of what there is for all.
    Account(AccountId),
    /// What is kept for administration.
    Operator,
}

/// What is free, of all, of each account's share, and for the operator.
pub(crate) struct Memory {
    free: Arc<Semaphore>,
    kept: Arc<Semaphore>,
    shares: Mutex<HashMap<AccountId, Arc<Semaphore>>>,
    per_account: usize,
    within: Duration,
}

/// Bytes that a request may use, until its answer is gone.
#[derive(Debug)]
pub(crate) struct Room {
    of_all: OwnedSemaphorePermit,
    /// `None` for the operator.
    of_account: Option<OwnedSemaphorePermit>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            free: Arc::new(Semaphore::new(limits::MEMORY_BYTES)),
            kept: Arc::new(Semaphore::new(limits::MEMORY_KEPT)),
            shares: Mutex::default(),
            per_account: limits::MEMORY_PER_ACCOUNT,
            within: limits::MEMORY_WITHIN,
        }
    }
}

impl Memory {
    /// Room for what may come to so many bytes. Dropping the future takes nothing.
    pub(crate) async fn take(&self, payer: Payer, bytes: usize) -> Result<Room, ApiError> {
        let until = Instant::now() + self.within;
        let (of_account, free) = match payer {
            Payer::Account(account) => {
                let Some(share) = wait(self.share(account), bytes, until).await else {
                    limits::hit("memory_per_account");
                    let details = "this account has too much in flight";
                    return Err(ApiError::too_many_requests(details, limits::MEMORY_AGAIN));
                };
                (Some(share), &self.free)
            }
            Payer::Operator => (None, &self.kept),
        };
        let Some(of_all) = wait(Arc::clone(free), bytes, until).await else {
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
        for permit in [Some(&mut self.of_all), self.of_account.as_mut()].into_iter().flatten() {
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

    const ALICE: Payer = Payer::Account(AccountId(1));
    const BOB: Payer = Payer::Account(AccountId(2));

    fn memory() -> Memory {
        Memory {
            free: Arc::new(Semaphore::new(100)),
            kept: Arc::new(Semaphore::new(10)),
            per_account: 60,
            within: Duration::from_millis(50),
            ..Memory::default()
        }
    }

    async fn refused(memory: &Memory, payer: Payer, bytes: usize) -> Option<u16> {
        let refused = memory.take(payer, bytes).await.err()?.into_response();
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
        let (room, ()) = tokio::join!(memory.take(Payer::Account(AccountId(3)), 1), later);
        assert!(room.is_ok());
    }

    /// The story: bodies and pages of two accounts could take all the memory there was, and then the operator's request
    /// to suspend them was told to come again.
    #[tokio::test]
    async fn t22_the_operator_has_memory_where_accounts_hold_all() {
        let memory = memory();
        let _held = [memory.take(ALICE, 60).await.unwrap(), memory.take(BOB, 40).await.unwrap()];
        assert_eq!(refused(&memory, BOB, 1).await, Some(503));
        for (bytes, want) in [(9, None), (10, None), (11, Some(503))] {
            assert_eq!(refused(&memory, Payer::Operator, bytes).await, want, "{bytes}");
        }
        // It is bounded too, and given back.
        let mut room = memory.take(Payer::Operator, 10).await.unwrap();
        assert_eq!(refused(&memory, Payer::Operator, 1).await, Some(503));
        room.shrink(4);
        assert_eq!(refused(&memory, Payer::Operator, 6).await, None);
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
            memory.take(Payer::Account(AccountId(account as i64)), 1).await.unwrap();
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
        const { assert!(limits::BODY_BYTES * limits::BODY_WEIGHT <= limits::MEMORY_KEPT) };
    }
}
