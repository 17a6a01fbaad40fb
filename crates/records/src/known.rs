//! Who was let in lately, so that a request with a token that is known costs no look into the database.
//!
//! A revocation, a suspension and a new quota hold from their answer on: after each COMMIT that may have changed a
//! token or an account, and before anybody is answered, the writer has all of this forgotten. A look into the database
//! that was under way meanwhile may have seen what was before: what it brings is not kept ([`Seen`]).
//!
//! It is memory alone and begins empty. With several nodes on one database each would have to hear of the others'
//! changes; until then the one writer is all there is to hear of.

use std::collections::HashMap;

use floe_core::Timestamp;
use parking_lot::Mutex;

use crate::tokens::Let;
use crate::{Principal, limits};

/// See the module.
#[derive(Default)]
pub(crate) struct Known(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    forgotten: Seen,
    /// By the start of the token's hash, as the database finds it; compared as a whole, in constant time.
    by_lookup: HashMap<u64, ([u8; 32], Let)>,
}

/// How often all was forgotten when a look began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen(u64);

impl Known {
    /// Who has the token of this hash, if that is known; else what [`Known::keep`] is to be told after a look.
    pub(crate) fn find(&self, hash: &[u8; 32], now: Timestamp) -> Result<Principal, Seen> {
        let inner = self.0.lock();
        match inner.by_lookup.get(&lookup(hash)) {
            Some((stored, found)) if found.holds(stored, hash, now) => Ok(found.who.clone()),
            _ => Err(inner.forgotten),
        }
    }

    /// Keeps what a look has found, unless all was forgotten since it began.
    pub(crate) fn keep(&self, seen: Seen, hash: [u8; 32], found: Let) {
        let mut inner = self.0.lock();
        if inner.forgotten != seen {
            return;
        }
        if inner.by_lookup.len() >= limits::KNOWN_TOKENS {
            limits::hit("known_tokens");
            inner.by_lookup.clear();
        }
        inner.by_lookup.insert(lookup(&hash), (hash, found));
    }

    /// Forgets all.
    pub(crate) fn forget(&self) {
        let mut inner = self.0.lock();
        inner.forgotten.0 += 1;
        inner.by_lookup.clear();
    }
}

fn lookup(hash: &[u8; 32]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use floe_core::{AccountId, TokenId};

    use super::*;
    use crate::Account;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn found(expires: Option<u64>) -> Let {
        let account = Account {
            id: AccountId(1),
            name: "a".into(),
            max_bytes: None,
            max_pins: None,
            max_replicas: None,
            suspended: false,
            used_bytes: 0,
            used_pins: 0,
            created: NOW,
        };
        let who = Principal { account, scopes: Vec::new(), token: TokenId(1), policy: None };
        Let { who, expires: expires.map(Timestamp::from_millis) }
    }

    fn hash(n: usize) -> [u8; 32] {
        *blake3::hash(&n.to_le_bytes()).as_bytes()
    }

    #[test]
    fn t24_what_a_look_saw_before_a_change_is_not_kept() {
        let known = Known::default();
        let seen = known.find(&hash(1), NOW).unwrap_err();
        known.forget();
        known.keep(seen, hash(1), found(None));
        let seen = known.find(&hash(1), NOW).expect_err("it was seen before the change");
        known.keep(seen, hash(1), found(None));
        known.find(&hash(1), NOW).unwrap();
        known.forget();
        known.find(&hash(1), NOW).unwrap_err();
    }

    #[test]
    fn t24_only_the_whole_hash_is_known_and_only_until_it_expires() {
        let known = Known::default();
        let seen = known.find(&hash(1), NOW).unwrap_err();
        known.keep(seen, hash(1), found(Some(1_001)));
        let mut other = hash(1);
        other[31] ^= 1;
        known.find(&other, NOW).unwrap_err();
        known.find(&hash(1), NOW).unwrap();
        known.find(&hash(1), Timestamp::from_millis(1_001)).unwrap_err();
    }

    #[test]
    fn the_tokens_that_are_known_are_bounded() {
        for (tokens, first_is_known) in [
            (limits::KNOWN_TOKENS - 1, true),
            (limits::KNOWN_TOKENS, true),
            (limits::KNOWN_TOKENS + 1, false),
        ] {
            let known = Known::default();
            for n in 0..tokens {
                known.keep(Seen(0), hash(n), found(None));
            }
            assert_eq!(known.find(&hash(0), NOW).is_ok(), first_is_known, "{tokens}");
            assert!(known.find(&hash(tokens - 1), NOW).is_ok());
            assert!(known.0.lock().by_lookup.len() <= limits::KNOWN_TOKENS);
        }
    }
}
