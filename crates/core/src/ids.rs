//! Names of rows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Names one pin request: a UUIDv7, so that ids sort by creation and cannot be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RequestId(pub Uuid);

impl RequestId {
    /// Makes an id from a time and 10 random bytes (both come in as arguments, so that a seed replays a run).
    pub fn new(now: crate::Timestamp, random: [u8; 10]) -> Self {
        Self(uuid::Builder::from_unix_timestamp_millis(now.as_millis(), &random).into_uuid())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RequestId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text).map(Self)
    }
}

/// Names an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(pub i64);

/// Names a token. Not a secret: it is what `floe token ls` and `revoke` use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenId(pub i64);

/// Names an actor of the chain, a storage provider for instance: `f01000`. The same everywhere, whatever keys the actor
/// has or has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActorId(u64);

/// Text that is no actor's id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no id of an actor: write it as f01000")]
pub struct NoActorId(String);

impl ActorId {
    /// The actor of this number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "f0{}", self.0)
    }
}

impl FromStr for ActorId {
    type Err = NoActorId;

    /// `f0` and digits; `t0` names the same actor as test networks write it.
    fn from_str(text: &str) -> Result<Self, NoActorId> {
        let digits = text.strip_prefix("f0").or_else(|| text.strip_prefix("t0")).unwrap_or_default();
        let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        let id = plain.then(|| digits.parse().ok()).flatten();
        id.map(Self).ok_or_else(|| NoActorId(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_an_actor() {
        assert_eq!("f01000".parse(), Ok(ActorId::new(1000)));
        assert_eq!("t05".parse(), Ok(ActorId::new(5)));
        assert_eq!(ActorId::new(1000).to_string(), "f01000");
        for bad in ["", "f0", "1000", "f1abc", "f0-1", "f0+1", "f018446744073709551616", "F01000"] {
            assert!(bad.parse::<ActorId>().is_err(), "{bad}");
        }
    }
}
