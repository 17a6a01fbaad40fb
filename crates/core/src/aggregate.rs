//! The life of an aggregate: pins that go to Filecoin together, as one piece. A pure function.
//!
//! ```text
//!   open ──packed──> packed ──placing──> placing ──enough──> stored ──too few──> degraded
//!                       │                  │ ^                  ^                  │  │
//!                       │                  │ └──────placing─────┼──────────────────┘  │
//!                       │                  │                    └───────enough────────┤
//!                       └─────none left────┴──> lost <──none left─────────────────────┘
//! ```
//!
//! `none left`: no replica is there or on its way, and none will come: the blocks are gone, or nobody pins any of it.
//!
//! `enough`: as many replicas are active at finality as the policy asks for. An aggregate protects its blocks in the
//! blockstore from `packed` until it is `stored`, or lost: providers pull them from there.

use serde::{Deserialize, Serialize};

/// Where an aggregate stands. These are the words of `info.cold` too, where `open` is `waiting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AggregateState {
    /// Pins are still being put into it.
    Open,
    /// Its bytes are settled: the piece's CID and size are known and never change.
    Packed,
    /// Deals are being made for it.
    Placing,
    /// All its replicas are active, at finality.
    Stored,
    /// It was stored, and has too few replicas now.
    Degraded,
    /// No replica is left, and its blocks are not here or nobody pins any of them any more.
    Lost,
}

/// What can happen to an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AggregateEvent {
    /// Its bytes are settled.
    Packed,
    /// A provider is chosen for a slot.
    Placing,
    /// As many replicas are active as the policy asks for.
    Enough,
    /// Fewer are.
    TooFew,
    /// None is, none is on its way, and the blocks are gone or nobody wants them.
    NoneLeft,
}

/// An event that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an aggregate that is {state:?} cannot take the event {event:?}")]
pub struct IllegalAggregateEvent {
    /// The state it had.
    pub state: AggregateState,
    /// What came.
    pub event: AggregateEvent,
}

impl AggregateState {
    /// All of them, in the order of life.
    pub const ALL: [Self; 6] =
        [Self::Open, Self::Packed, Self::Placing, Self::Stored, Self::Degraded, Self::Lost];

    /// The word that rows hold.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Packed => "packed",
            Self::Placing => "placing",
            Self::Stored => "stored",
            Self::Degraded => "degraded",
            Self::Lost => "lost",
        }
    }

    /// The word of `info.cold`: a pin whose aggregate is still open waits.
    pub fn word(self) -> &'static str {
        match self {
            Self::Open => "waiting",
            state => state.as_str(),
        }
    }

    /// The state behind a row's word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }

    /// Whether providers may still pull it, so that its blocks must stay.
    pub fn needs_blocks(self) -> bool {
        matches!(self, Self::Packed | Self::Placing | Self::Degraded)
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`IllegalAggregateEvent`] where the diagram above has no arrow.
    pub fn after(self, event: AggregateEvent) -> Result<Self, IllegalAggregateEvent> {
        use AggregateEvent as E;
        match (self, event) {
            (Self::Open, E::Packed) => Ok(Self::Packed),
            (Self::Packed | Self::Placing | Self::Degraded, E::Placing) => Ok(Self::Placing),
            (Self::Placing | Self::Degraded, E::Enough) => Ok(Self::Stored),
            (Self::Stored, E::TooFew) => Ok(Self::Degraded),
            (Self::Packed | Self::Placing | Self::Degraded, E::NoneLeft) => Ok(Self::Lost),
            (state, event) => Err(IllegalAggregateEvent { state, event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{AggregateEvent as E, AggregateState as S};

    #[test]
    fn every_pair_of_state_and_event() {
        let legal = [
            (S::Open, E::Packed, S::Packed),
            (S::Packed, E::Placing, S::Placing),
            (S::Packed, E::NoneLeft, S::Lost),
            (S::Placing, E::Placing, S::Placing),
            (S::Placing, E::Enough, S::Stored),
            (S::Placing, E::NoneLeft, S::Lost),
            (S::Stored, E::TooFew, S::Degraded),
            (S::Degraded, E::Placing, S::Placing),
            (S::Degraded, E::Enough, S::Stored),
            (S::Degraded, E::NoneLeft, S::Lost),
        ];
        for state in S::ALL {
            for event in [E::Packed, E::Placing, E::Enough, E::TooFew, E::NoneLeft] {
                let arrow = legal.iter().find(|(s, e, _)| (*s, *e) == (state, event));
                assert_eq!(state.after(event).ok(), arrow.map(|(_, _, next)| *next), "{state:?} {event:?}");
            }
        }
    }

    #[test]
    fn the_words_round_trip() {
        for state in S::ALL {
            assert_eq!(S::parse(state.as_str()), Some(state));
        }
        assert_eq!((S::Open.word(), S::Lost.word()), ("waiting", "lost"));
    }
}
