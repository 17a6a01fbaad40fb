//! Which replicas an aggregate still lacks, and with whom none of them can be. Pure functions of its deals.
//!
//! ```text
//!   slot 0   refused ── accepted ── …        waits: its last attempt may still come to something
//!   slot 1   failed                          open: the next attempt is made
//!   slot 2   active                          filled
//!   slot 3   (a spare, where the policy permits one and another slot stalls)
//! ```

use std::collections::BTreeSet;

use floe_core::{ActorId, DealState, Epoch, FailureCode, Policy, Timestamp};
use floe_records::cold::DealRow;

use crate::limits;

/// The slots of `replicas` that are to be filled now: those that no deal holds, as many as replicas are lacking. A spare
/// counts as a replica, whichever slot it is in.
pub(crate) fn open(replicas: u8, deals: &[DealRow], policy: &Policy, head: Epoch) -> Vec<u32> {
    let holding: Vec<&DealRow> = deals.iter().filter(|deal| deal.state.holds_slot()).collect();
    let providers: BTreeSet<ActorId> = holding.iter().map(|deal| deal.provider).collect();
    let lacking = usize::from(replicas).saturating_sub(providers.len());
    let free = (0..u32::from(replicas)).filter(|slot| holding.iter().all(|deal| deal.slot != *slot));
    let mut slots: Vec<u32> = free.take(lacking).collect();
    let spare = u32::from(replicas);
    let has_spare = holding.iter().any(|deal| deal.slot >= spare);
    if !has_spare && holding.iter().any(|deal| stalls(deal, policy, head)) {
        slots.push(spare);
    }
    slots
}

/// Whether a deal waits for longer than the policy bears without a byte being pulled.
fn stalls(deal: &DealRow, policy: &Policy, head: Epoch) -> bool {
    let waits = matches!(deal.state, DealState::Proposed | DealState::Unknown | DealState::Accepted);
    let nothing = deal.pulled == 0 && !deal.is_pulled;
    let since = deal.sent.map(|(_, epoch)| head.since(epoch));
    waits && nothing && since.zip(policy.spare_after_epochs).is_some_and(|(since, most)| since >= most)
}

/// Providers that none of the next replicas goes to: those whose bytes for this piece are out, whatever they answered, and
/// those that will not take it or have failed it too often. The operator may forgive what is over.
pub(crate) fn taken(deals: &[DealRow]) -> Vec<ActorId> {
    let mut taken = BTreeSet::new();
    for deal in deals {
        let over: Vec<&DealRow> = deals
            .iter()
            .filter(|other| other.provider == deal.provider && !other.is_forgiven && was_tried(other))
            .collect();
        if deal.state.is_exposed()
            || over.iter().any(|deal| is_final(deal))
            || over.len() >= limits::TRIES_PER_PROVIDER
        {
            taken.insert(deal.provider);
        }
    }
    taken.into_iter().collect()
}

/// The attempts for a slot that their providers refused for now, such as for being busy, and that are due to go out again:
/// the same bytes, since others could be published beside them. Whoever has or had another part in this piece is left out.
pub(crate) fn refused_for_now(deals: &[DealRow], slot: u32, now: Timestamp) -> Vec<&DealRow> {
    let is_for_now = |deal: &&DealRow| {
        let code = deal.error.as_ref().map(|error| error.code);
        deal.state == DealState::Refused && deal.slot == slot && code.is_some_and(FailureCode::is_for_now)
    };
    let alone = |deal: &&DealRow| {
        let others = |other: &&DealRow| other.provider == deal.provider;
        deals.iter().filter(others).count() == 1
    };
    deals.iter().filter(is_for_now).filter(alone).filter(|deal| deal.due <= now).collect()
}

/// [`taken`], and those that were asked for this piece before and came to nothing.
pub(crate) fn tried(deals: &[DealRow]) -> Vec<ActorId> {
    let tried = deals.iter().filter(|deal| !deal.is_forgiven && was_tried(deal)).map(|deal| deal.provider);
    let all: BTreeSet<ActorId> = taken(deals).into_iter().chain(tried).collect();
    all.into_iter().collect()
}

/// Whether it came to an end after its provider had heard of it.
fn was_tried(deal: &DealRow) -> bool {
    deal.state.is_over() && deal.sent.is_some()
}

/// Whether the same provider will not do better another time.
fn is_final(deal: &DealRow) -> bool {
    let refused = |code: FailureCode| code.as_str().starts_with("rejected_") && !code.is_passing();
    deal.state == DealState::Terminated || deal.error.as_ref().is_some_and(|error| refused(error.code))
}

/// The owners of replicas that are there or may still come.
pub(crate) fn owners(deals: &[DealRow]) -> Vec<ActorId> {
    let held: BTreeSet<ActorId> =
        deals.iter().filter(|deal| deal.state.holds_slot()).map(|deal| deal.owner).collect();
    held.into_iter().collect()
}

/// Decides between providers that are equal: the same at each look, and another for each attempt.
pub(crate) fn tie(aggregate: uuid::Uuid, slot: u32, deals: &[DealRow]) -> u64 {
    let attempts = deals.iter().filter(|deal| deal.slot == slot).count() as u64;
    let (high, low) = aggregate.as_u64_pair();
    high ^ low.rotate_left(17)
        ^ u64::from(slot).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ attempts.rotate_left(48)
}
