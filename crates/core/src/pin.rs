//! The life of a pin, as a pure function: (status, event) in, next status out.
//!
//! ```text
//!   queued ──claimed──> pinning ──complete──> pinned ──removed──> (gone)
//!     │  \                │  ^
//!     │   \─gave up──┐    │  └─ parked and claimed again: stays `pinning`
//!     └──complete─┐  v    v
//!      (shared)   v  failed(reason)
//! ```
//!
//! The four words are the API's; everything else (parked, attempts, progress) goes into `info`. A pin may go
//! from `queued` to `pinned` in two steps of one transaction, never in one: clients see `queued` first.

use serde::{Deserialize, Serialize};

/// The four words of the Pinning Service API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinStatus {
    /// Accepted and durable; nothing is spent on it yet.
    Queued,
    /// Being looked for or fetched, also while it waits between two attempts.
    Pinning,
    /// Every block of the DAG is here, durable and protected.
    Pinned,
    /// Given up, with a reason.
    Failed,
}

/// What can happen to a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PinEvent {
    /// A worker took it up.
    Claimed,
    /// The attempt ended without the whole DAG; another follows later.
    Parked,
    /// The whole DAG is here and counted.
    Complete,
    /// It will not be tried again (gave up, over budget, a block nobody can walk).
    GaveUp,
}

/// An event that the status does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a pin that is {status:?} cannot take the event {event:?}")]
pub struct IllegalEvent {
    /// The status it had.
    pub status: PinStatus,
    /// What came.
    pub event: PinEvent,
}

impl PinStatus {
    /// All four, in the order of life.
    pub const ALL: [Self; 4] = [Self::Queued, Self::Pinning, Self::Pinned, Self::Failed];

    /// The word the API uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Pinning => "pinning",
            Self::Pinned => "pinned",
            Self::Failed => "failed",
        }
    }

    /// The status behind one of the API's words.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }

    /// Whether nothing more will happen to it by itself.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Pinned | Self::Failed)
    }

    /// The status after `event`.
    ///
    /// # Errors
    /// [`IllegalEvent`] where the diagram above has no arrow.
    pub fn after(self, event: PinEvent) -> Result<Self, IllegalEvent> {
        use PinEvent as E;
        match (self, event) {
            (Self::Queued | Self::Pinning, E::Claimed) => Ok(Self::Pinning),
            (Self::Pinning, E::Parked) => Ok(Self::Pinning),
            (Self::Pinning, E::Complete) => Ok(Self::Pinned),
            (Self::Queued | Self::Pinning, E::GaveUp) => Ok(Self::Failed),
            (status, event) => Err(IllegalEvent { status, event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{PinEvent as E, PinStatus as S};

    #[test]
    fn every_pair_of_status_and_event() {
        let legal = [
            (S::Queued, E::Claimed, S::Pinning),
            (S::Queued, E::GaveUp, S::Failed),
            (S::Pinning, E::Claimed, S::Pinning),
            (S::Pinning, E::Parked, S::Pinning),
            (S::Pinning, E::Complete, S::Pinned),
            (S::Pinning, E::GaveUp, S::Failed),
        ];
        for status in S::ALL {
            for event in [E::Claimed, E::Parked, E::Complete, E::GaveUp] {
                let want =
                    legal.iter().find(|(s, e, _)| (*s, *e) == (status, event)).map(|(_, _, next)| *next);
                assert_eq!(status.after(event).ok(), want, "{status:?} {event:?}");
            }
        }
    }

    #[test]
    fn the_words_round_trip() {
        for status in S::ALL {
            assert_eq!(S::parse(status.as_str()), Some(status));
        }
        assert_eq!(S::parse("Pinned"), None);
    }
}
