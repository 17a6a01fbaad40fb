//! How many requests an account may make in a minute (limits.md, hosted tenants).
//!
//! An account may make a minute's worth at once, and gets the next when its share of the minute has passed. All that is
//! kept is when its minute is whole again. The account `default` is the operator's own and has no limit; administration
//! is not counted.

use std::collections::HashMap;
use std::time::Duration;

use floe_core::AccountId;
use floe_engine::{DEFAULT_ACCOUNT, Principal};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::limits;

const MINUTE: Duration = Duration::from_secs(60);

/// `api.requests_per_minute` and `api.lists_per_minute`.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    requests: Option<Rate>,
    lists: Option<Rate>,
}

#[derive(Debug)]
struct Rate {
    per_minute: u32,
    /// When each account's minute is whole again; one whose minute is whole need not be here.
    whole_at: Mutex<HashMap<AccountId, Instant>>,
}

impl Rates {
    pub(crate) fn new(requests_per_minute: Option<u32>, lists_per_minute: Option<u32>) -> Self {
        Self { requests: requests_per_minute.map(Rate::new), lists: lists_per_minute.map(Rate::new) }
    }

    /// Counts a request, or refuses it.
    pub(crate) fn request(&self, who: &Principal, now: Instant) -> Result<(), ApiError> {
        check(self.requests.as_ref(), "requests", who, now)
    }

    /// Counts a page, on top of its request, or refuses it.
    pub(crate) fn list(&self, who: &Principal, now: Instant) -> Result<(), ApiError> {
        check(self.lists.as_ref(), "lists", who, now)
    }
}

fn check(rate: Option<&Rate>, what: &str, who: &Principal, now: Instant) -> Result<(), ApiError> {
    let Some(rate) = rate.filter(|_| who.account.name != DEFAULT_ACCOUNT) else { return Ok(()) };
    rate.take(who.account.id, now).map_err(|wait| {
        limits::hit("api_rate");
        let most = rate.per_minute;
        ApiError::too_many_requests(format!("this account may make {most} {what} a minute"), wait)
    })
}

impl Rate {
    fn new(per_minute: u32) -> Self {
        Self { per_minute: per_minute.max(1), whole_at: Mutex::default() }
    }

    /// One more, or how long until there may be.
    fn take(&self, account: AccountId, now: Instant) -> Result<(), Duration> {
        let mut whole_at = self.whole_at.lock();
        if whole_at.len() >= limits::ACCOUNTS_REMEMBERED {
            whole_at.retain(|_, at| *at > now);
        }
        let before = whole_at.get(&account).map_or(now, |at| now.max(*at));
        let after = before + MINUTE / self.per_minute;
        let wait = (after - now).saturating_sub(MINUTE);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        whole_at.insert(account, after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use floe_core::{Timestamp, TokenId};
    use floe_engine::Account;
    use http::header::RETRY_AFTER;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn who(id: i64, name: &str) -> Principal {
        let account = Account {
            id: AccountId(id),
            name: name.to_owned(),
            max_bytes: None,
            max_pins: None,
            max_replicas: None,
            suspended: false,
            used_bytes: 0,
            used_pins: 0,
            created: Timestamp::from_millis(0),
        };
        Principal { account, scopes: Vec::new(), token: TokenId(1), policy: None }
    }

    #[test]
    fn a_minute_s_worth_may_come_at_once_and_the_next_when_its_time_has_passed() {
        let (rates, alice, bob) = (Rates::new(Some(60), Some(30)), who(2, "alice"), who(3, "bob"));
        let start = Instant::now();
        for n in 1..=60 {
            assert!(rates.request(&alice, start).is_ok(), "{n}");
        }
        let refused = rates.request(&alice, start).unwrap_err().into_response();
        assert_eq!((refused.status().as_u16(), refused.headers()[RETRY_AFTER].to_str().unwrap()), (429, "1"));
        assert!(rates.request(&bob, start).is_ok(), "each account has its own");
        assert!(rates.request(&alice, start + SECOND / 2).is_err());
        assert!(rates.request(&alice, start + SECOND).is_ok());
        assert!(rates.request(&alice, start + SECOND).is_err());
        for n in 1..=60 {
            assert!(
                rates.request(&alice, start + 2 * MINUTE).is_ok(),
                "{n}: no more than a minute is saved up"
            );
        }
        assert!(rates.request(&alice, start + 2 * MINUTE).is_err());
        for n in 1..=30 {
            assert!(rates.list(&alice, start).is_ok(), "{n}: lists have their own");
        }
        let refused = rates.list(&alice, start).unwrap_err().into_response();
        assert_eq!(refused.headers()[RETRY_AFTER].to_str().unwrap(), "2");
    }

    #[test]
    fn the_operator_s_account_and_a_rate_that_is_unset_have_no_limit() {
        let now = Instant::now();
        let (one, none) = (Rates::new(Some(1), None), Rates::default());
        for _ in 0..1000 {
            assert!(one.request(&who(1, "default"), now).is_ok());
            assert!(one.list(&who(2, "alice"), now).is_ok());
            assert!(none.request(&who(2, "alice"), now).is_ok());
        }
        assert!(one.request(&who(2, "alice"), now).is_ok());
        assert!(one.request(&who(2, "alice"), now).is_err());
    }

    #[test]
    fn accounts_whose_minute_is_whole_are_let_go_of() {
        let rate = Rate::new(60);
        let mut now = Instant::now();
        for account in 0..3 * limits::ACCOUNTS_REMEMBERED as i64 {
            now += SECOND;
            rate.take(AccountId(account), now).unwrap();
            assert!(rate.whole_at.lock().len() <= limits::ACCOUNTS_REMEMBERED);
        }
    }
}
