//! The life of a deal: one attempt to have one provider keep one replica of one piece. A pure function.
//!
//! ```text
//!   chosen ──sending──> proposed ──accepted──> accepted ──published──> published ──activated──> active ──end──> expired
//!      │                  │   │  \               │ refused (as proposed)  │                       └─terminated─> terminated
//!      │ withdrawn        │   │   \──lost──> unknown (as proposed)        │ start passed
//!      v                  │   │ refused                                   v
//!    failed <──start passed┘  v                                         failed
//!      ^────start passed──── refused ──published──> published (one replica too many)
//!                               └──sending──> proposed (the same bytes, where it was busy and nobody else fits)
//! ```
//!
//! What makes the difference between the states is what may still cost money. Whoever holds the signed bytes can publish
//! them until the start epoch, so between `proposed` and the start nothing is over, whatever the provider answers: it
//! signs none of its answers. A refusal lets the replica's slot go on to another provider; an answer that was lost does
//! not ([`DealState::holds_slot`]). Only the chain, at finality, moves a deal to `published` and beyond.
//!
//! A process that ends while a deal is `proposed` does not know whether the bytes arrived: at the next start it takes
//! [`DealEvent::ReplyLost`]. The same signed bytes are then sent again; they are never signed again.

use serde::{Deserialize, Serialize};

/// Where a deal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DealState {
    /// The provider is chosen, the money reserved, the proposal signed and stored; nothing was sent.
    Chosen,
    /// The signed bytes are being sent.
    Proposed,
    /// They were sent, and what came of it is not known.
    Unknown,
    /// The provider says that it will take the data. Its word, not signed.
    Accepted,
    /// The provider says that it will not. The bytes are still out: watched until nobody can publish them.
    Refused,
    /// On chain, final, not yet in a sector.
    Published,
    /// In a sector that is proven, final.
    Active,
    /// It ran to its end.
    Expired,
    /// The chain ended it early.
    Terminated,
    /// Nothing came of it and nothing can.
    Failed,
}

/// What can happen to a deal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DealEvent {
    /// The bytes are about to be sent, for the first time; or again, after a refusal that was for now.
    Sending,
    /// It was given up before a byte was sent.
    Withdrawn,
    /// The provider accepts, or says that it has had the proposal before.
    Accepted,
    /// The provider refuses.
    Refused,
    /// No answer that can be read.
    ReplyLost,
    /// A final tipset has the deal, and it is ours field by field.
    Published,
    /// A final tipset has it in a sector.
    Activated,
    /// The start epoch is final, and the deal is not active.
    StartPassed,
    /// The end epoch is final.
    EndPassed,
    /// A final tipset does not have the deal any more, before its end.
    Terminated,
}

/// An event that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a deal that is {state:?} cannot take the event {event:?}")]
pub struct IllegalDealEvent {
    /// The state it had.
    pub state: DealState,
    /// What came.
    pub event: DealEvent,
}

/// What a step means for the money that was reserved when the provider was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Money {
    /// It stays as it is.
    Stays,
    /// The whole reservation is free again.
    Released,
    /// The whole price is spent: the provider is paid epoch by epoch from now on.
    Spent,
    /// What was not earned until now comes back.
    RestRefunded,
}

impl DealState {
    /// All of them, in the order of life.
    pub const ALL: [Self; 10] = [
        Self::Chosen,
        Self::Proposed,
        Self::Unknown,
        Self::Accepted,
        Self::Refused,
        Self::Published,
        Self::Active,
        Self::Expired,
        Self::Terminated,
        Self::Failed,
    ];

    /// The word that rows hold.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chosen => "chosen",
            Self::Proposed => "proposed",
            Self::Unknown => "unknown",
            Self::Accepted => "accepted",
            Self::Refused => "refused",
            Self::Published => "published",
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Terminated => "terminated",
            Self::Failed => "failed",
        }
    }

    /// The word that users see: to them a refusal is a failure, and that it is watched is the operator's matter.
    pub fn word(self) -> &'static str {
        match self {
            Self::Refused => Self::Failed.as_str(),
            state => state.as_str(),
        }
    }

    /// The state behind a row's word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == word)
    }

    /// Whether the replica's slot waits for this deal: no other provider may be asked to fill it.
    pub fn holds_slot(self) -> bool {
        matches!(
            self,
            Self::Chosen | Self::Proposed | Self::Unknown | Self::Accepted | Self::Published | Self::Active
        )
    }

    /// Whether somebody may still publish the signed bytes, or has: the reservation counts against the caps.
    pub fn is_exposed(self) -> bool {
        matches!(
            self,
            Self::Chosen
                | Self::Proposed
                | Self::Unknown
                | Self::Accepted
                | Self::Refused
                | Self::Published
                | Self::Active
        )
    }

    /// Whether nothing more can happen to it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Expired | Self::Terminated | Self::Failed)
    }

    /// The state after `event`, and what becomes of the money.
    ///
    /// # Errors
    /// [`IllegalDealEvent`] where the diagram above has no arrow.
    pub fn after(self, event: DealEvent) -> Result<(Self, Money), IllegalDealEvent> {
        use DealEvent as E;
        use Money::{Released, RestRefunded, Spent, Stays};
        match (self, event) {
            (Self::Chosen | Self::Refused, E::Sending) => Ok((Self::Proposed, Stays)),
            (Self::Chosen, E::Withdrawn) => Ok((Self::Failed, Released)),
            (Self::Proposed | Self::Unknown, E::Accepted) => Ok((Self::Accepted, Stays)),
            // Accepted too: one that forgot what it took gets the same bytes again, and may then not want them.
            (Self::Proposed | Self::Unknown | Self::Accepted, E::Refused) => Ok((Self::Refused, Stays)),
            (Self::Proposed | Self::Unknown, E::ReplyLost) => Ok((Self::Unknown, Stays)),
            (Self::Proposed | Self::Unknown | Self::Accepted | Self::Refused, E::Published) => {
                Ok((Self::Published, Stays))
            }
            (
                Self::Chosen
                | Self::Proposed
                | Self::Unknown
                | Self::Accepted
                | Self::Refused
                | Self::Published,
                E::StartPassed,
            ) => Ok((Self::Failed, Released)),
            (Self::Published, E::Activated) => Ok((Self::Active, Spent)),
            (Self::Active, E::EndPassed) => Ok((Self::Expired, Stays)),
            (Self::Active, E::Terminated) => Ok((Self::Terminated, RestRefunded)),
            (state, event) => Err(IllegalDealEvent { state, event }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DealEvent as E, DealState as S, Money as M};

    const EVENTS: [E; 10] = [
        E::Sending,
        E::Withdrawn,
        E::Accepted,
        E::Refused,
        E::ReplyLost,
        E::Published,
        E::Activated,
        E::StartPassed,
        E::EndPassed,
        E::Terminated,
    ];

    #[test]
    fn every_pair_of_state_and_event() {
        let legal = [
            (S::Chosen, E::Sending, S::Proposed, M::Stays),
            (S::Chosen, E::Withdrawn, S::Failed, M::Released),
            (S::Chosen, E::StartPassed, S::Failed, M::Released),
            (S::Proposed, E::Accepted, S::Accepted, M::Stays),
            (S::Proposed, E::Refused, S::Refused, M::Stays),
            (S::Proposed, E::ReplyLost, S::Unknown, M::Stays),
            (S::Proposed, E::Published, S::Published, M::Stays),
            (S::Proposed, E::StartPassed, S::Failed, M::Released),
            (S::Unknown, E::Accepted, S::Accepted, M::Stays),
            (S::Unknown, E::Refused, S::Refused, M::Stays),
            (S::Unknown, E::ReplyLost, S::Unknown, M::Stays),
            (S::Unknown, E::Published, S::Published, M::Stays),
            (S::Unknown, E::StartPassed, S::Failed, M::Released),
            (S::Accepted, E::Refused, S::Refused, M::Stays),
            (S::Accepted, E::Published, S::Published, M::Stays),
            (S::Accepted, E::StartPassed, S::Failed, M::Released),
            (S::Refused, E::Sending, S::Proposed, M::Stays),
            (S::Refused, E::Published, S::Published, M::Stays),
            (S::Refused, E::StartPassed, S::Failed, M::Released),
            (S::Published, E::Activated, S::Active, M::Spent),
            (S::Published, E::StartPassed, S::Failed, M::Released),
            (S::Active, E::EndPassed, S::Expired, M::Stays),
            (S::Active, E::Terminated, S::Terminated, M::RestRefunded),
        ];
        for state in S::ALL {
            for event in EVENTS {
                let arrow = legal.iter().find(|(s, e, ..)| (*s, *e) == (state, event));
                let want = arrow.map(|(_, _, next, money)| (*next, *money));
                assert_eq!(state.after(event).ok(), want, "{state:?} {event:?}");
            }
        }
    }

    /// Whatever comes in whatever order: money is let go of once, and only where nobody can publish the bytes any more.
    #[test]
    fn no_path_pays_twice_or_frees_what_may_still_be_published() {
        fn walk(state: S, settled: u32, depth: u32) {
            assert!(settled <= 1, "settled twice");
            assert_eq!(state.is_over() && state != S::Expired && state != S::Terminated, state == S::Failed);
            if depth == 0 {
                return;
            }
            for event in EVENTS {
                let Ok((next, money)) = state.after(event) else { continue };
                let ends = matches!(money, M::Released | M::Spent);
                assert!(
                    money != M::Released || state == S::Chosen || event == E::StartPassed,
                    "{state:?} {event:?}: the bytes are out"
                );
                assert!(!state.is_over(), "{state:?} {event:?}");
                assert!(next.holds_slot() <= next.is_exposed(), "a slot waits for what can still come");
                walk(next, settled + u32::from(ends), depth - 1);
            }
        }
        walk(S::Chosen, 0, 7);
    }

    #[test]
    fn the_words_round_trip() {
        for state in S::ALL {
            assert_eq!(S::parse(state.as_str()), Some(state));
        }
        assert_eq!(S::Refused.word(), "failed");
        assert_eq!(S::parse("Active"), None);
    }
}
