//! Which provider gets the next replica of a piece. A pure function of what is known of all of them.
//!
//! A provider that does not fit is left out with a reason that its owner and the operator can read. Of those that fit, the
//! one that has kept its word most often is taken, then the cheapest; between equals a number of the caller's decides,
//! so that not every piece goes to the same one. No price is read from an answer of the provider while a deal is signed:
//! the price is that of the ask that was seen here, and never above the policy's.

use std::fmt;

use crate::ids::ActorId;
use crate::piece::PaddedSize;
use crate::policy::Policy;
use crate::units::{AttoFil, Epoch};

/// What a provider asks for, as it signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// For a GiB and epoch.
    pub price: AttoFil,
    /// The smallest piece it takes.
    pub min_size: PaddedSize,
    /// The largest.
    pub max_size: PaddedSize,
    /// From then on the ask means nothing.
    pub expires: Epoch,
}

/// What is known of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub provider: ActorId,
    /// Who owns it, on chain. Two providers of one owner fall together.
    pub owner: ActorId,
    /// The operator's tags.
    pub regions: Vec<String>,
    /// Its freshest ask; `None` where it did not give one.
    pub ask: Option<Ask>,
    /// How well it has kept its word: 0 to 1,000.
    pub score: u16,
    /// The operator does not want it now.
    pub is_suspended: bool,
    /// It failed too often of late, and rests until then.
    pub rests_until: Option<Epoch>,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy)]
pub struct Need<'a> {
    /// Under which policy.
    pub policy: &'a Policy,
    /// The size of the piece.
    pub size: PaddedSize,
    /// The chain's time.
    pub now: Epoch,
    /// Providers that have a replica of the piece, or may still get one, and those that refused it.
    pub taken: &'a [ActorId],
    /// The owners of replicas that are there or may still come.
    pub owners: &'a [ActorId],
    /// Whether two replicas may have one owner: in test networks only.
    pub shared_owners: bool,
    /// Decides between equals.
    pub tie: u64,
}

/// Why a provider does not get the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unfit {
    /// The policy names others.
    NotListed,
    /// The operator suspended it.
    Suspended,
    /// It has this piece, was asked for it, or refused it.
    Taken,
    /// Another replica has the same owner.
    SameOwner,
    /// None of its tags is one that the policy asks for.
    Region,
    /// It failed too often of late.
    Resting,
    /// It gave no ask, or the ask is too old.
    NoAsk,
    /// It asks for more than the policy allows.
    Price,
    /// The piece is too small for it.
    TooSmall,
    /// The piece is too large for it.
    TooLarge,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotListed => "the policy names other providers",
            Self::Suspended => "the operator suspended it",
            Self::Taken => "it was asked for this piece before",
            Self::SameOwner => "another replica is with the same owner",
            Self::Region => "it is in none of the policy's regions",
            Self::Resting => "it failed too often of late",
            Self::NoAsk => "it has no valid ask",
            Self::Price => "it asks for more than the policy's max_price_attofil_gib_epoch",
            Self::TooSmall => "the piece is smaller than it takes",
            Self::TooLarge => "the piece is larger than it takes",
        })
    }
}

/// Who gets the replica, and at what price.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// The provider.
    pub provider: ActorId,
    /// For a GiB and epoch: what it asked for.
    pub price: AttoFil,
}

/// The provider for the next replica.
///
/// # Errors
/// Why each does not fit, in the order of `candidates`, where none does.
pub fn choose(need: &Need<'_>, candidates: &[Candidate]) -> Result<Placement, Vec<(ActorId, Unfit)>> {
    let mut unfit = Vec::new();
    let mut best: Option<(&Candidate, AttoFil)> = None;
    for candidate in candidates {
        match fit(need, candidate) {
            Ok(price) => {
                let better = best.is_none_or(|(other, cheapest)| {
                    rank(need, candidate, price) > rank(need, other, cheapest)
                });
                if better {
                    best = Some((candidate, price));
                }
            }
            Err(why) => unfit.push((candidate.provider, why)),
        }
    }
    best.map(|(candidate, price)| Placement { provider: candidate.provider, price }).ok_or(unfit)
}

/// What is greater is better.
fn rank(need: &Need<'_>, candidate: &Candidate, price: AttoFil) -> (u16, std::cmp::Reverse<AttoFil>, u64) {
    (candidate.score, std::cmp::Reverse(price), mix(need.tie ^ candidate.provider.get()))
}

/// Spreads numbers that are close (the finalizer of SplitMix64).
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Whether a provider would be asked for this replica at all, whatever it asks for: who is not need not be asked for a
/// fresh ask.
///
/// # Errors
/// Why not.
pub fn screen(need: &Need<'_>, candidate: &Candidate) -> Result<(), Unfit> {
    let policy = need.policy;
    fails(!policy.lists(candidate.provider), Unfit::NotListed)?;
    fails(candidate.is_suspended, Unfit::Suspended)?;
    fails(need.taken.contains(&candidate.provider), Unfit::Taken)?;
    fails(!need.shared_owners && need.owners.contains(&candidate.owner), Unfit::SameOwner)?;
    fails(!policy.is_within(&candidate.regions), Unfit::Region)?;
    fails(candidate.rests_until.is_some_and(|until| need.now < until), Unfit::Resting)
}

fn fails(bad: bool, why: Unfit) -> Result<(), Unfit> {
    if bad { Err(why) } else { Ok(()) }
}

/// What the provider is paid, or why it is not asked.
fn fit(need: &Need<'_>, candidate: &Candidate) -> Result<AttoFil, Unfit> {
    screen(need, candidate)?;
    let ask = candidate.ask.filter(|ask| need.now < ask.expires).ok_or(Unfit::NoAsk)?;
    fails(ask.price > need.policy.max_price, Unfit::Price)?;
    fails(need.size < ask.min_size, Unfit::TooSmall)?;
    fails(need.size > ask.max_size, Unfit::TooLarge)?;
    Ok(ask.price)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Hot;

    fn size(log: u32) -> PaddedSize {
        PaddedSize::from_bytes(1_u64 << log).unwrap()
    }

    fn policy() -> Policy {
        Policy {
            name: "three".into(),
            replicas: 3,
            regions: Vec::new(),
            max_price: AttoFil::new(100),
            duration_epochs: 600_000,
            hot: Hot::Always,
            providers: Vec::new(),
            ipni: true,
            spare_after_epochs: None,
        }
    }

    fn candidate(id: u64) -> Candidate {
        Candidate {
            provider: ActorId::new(id),
            owner: ActorId::new(id + 10_000),
            regions: vec!["eu".into()],
            ask: Some(Ask {
                price: AttoFil::new(50),
                min_size: size(20),
                max_size: size(35),
                expires: Epoch::new(1_000),
            }),
            score: 500,
            is_suspended: false,
            rests_until: None,
        }
    }

    fn need(policy: &Policy) -> Need<'_> {
        Need {
            policy,
            size: size(30),
            now: Epoch::new(10),
            taken: &[],
            owners: &[],
            shared_owners: false,
            tie: 7,
        }
    }

    #[test]
    fn each_reason_for_which_a_provider_is_left_out() {
        let (open, eu) = (policy(), Policy { regions: vec!["us".into()], ..policy() });
        let listed = Policy { providers: vec![ActorId::new(9)], ..policy() };
        let ask = candidate(1).ask.unwrap();
        let with = |change: &dyn Fn(&mut Candidate)| {
            let mut c = candidate(1);
            change(&mut c);
            c
        };
        let one = [ActorId::new(1)];
        let owner = [ActorId::new(10_001)];
        let cases = [
            (need(&listed), candidate(1), Unfit::NotListed),
            (need(&open), with(&|c| c.is_suspended = true), Unfit::Suspended),
            (Need { taken: &one, ..need(&open) }, candidate(1), Unfit::Taken),
            (Need { owners: &owner, ..need(&open) }, candidate(1), Unfit::SameOwner),
            (need(&eu), candidate(1), Unfit::Region),
            (need(&open), with(&|c| c.rests_until = Some(Epoch::new(11))), Unfit::Resting),
            (need(&open), with(&|c| c.ask = None), Unfit::NoAsk),
            (Need { now: Epoch::new(1_000), ..need(&open) }, candidate(1), Unfit::NoAsk),
            (need(&open), with(&|c| c.ask = Some(Ask { price: AttoFil::new(101), ..ask })), Unfit::Price),
            (Need { size: size(19), ..need(&open) }, candidate(1), Unfit::TooSmall),
            (Need { size: size(36), ..need(&open) }, candidate(1), Unfit::TooLarge),
        ];
        for (need, candidate, why) in cases {
            assert_eq!(choose(&need, &[candidate]), Err(vec![(ActorId::new(1), why)]));
        }
        // Each bound itself is fine.
        let most = with(&|c| {
            c.ask = Some(Ask { price: AttoFil::new(100), ..ask });
            c.rests_until = Some(Epoch::new(10));
        });
        for log in [20, 35] {
            let need = Need { size: size(log), now: Epoch::new(10), ..need(&open) };
            assert_eq!(choose(&need, std::slice::from_ref(&most)).unwrap().price, AttoFil::new(100));
        }
        let shared = Need { owners: &owner, shared_owners: true, ..need(&open) };
        assert!(choose(&shared, &[candidate(1)]).is_ok());
    }

    #[test]
    fn the_better_then_the_cheaper_then_by_turns() {
        let policy = policy();
        let better = Candidate { score: 501, ..candidate(1) };
        assert_eq!(choose(&need(&policy), &[candidate(2), better]).unwrap().provider, ActorId::new(1));
        let mut cheaper = candidate(3);
        cheaper.ask = cheaper.ask.map(|ask| Ask { price: AttoFil::new(49), ..ask });
        assert_eq!(choose(&need(&policy), &[candidate(2), cheaper]).unwrap().provider, ActorId::new(3));
        let equal: Vec<_> = (1..=4).map(candidate).collect();
        let mut chosen: Vec<_> =
            (0..64).map(|tie| choose(&Need { tie, ..need(&policy) }, &equal).unwrap().provider).collect();
        chosen.sort();
        chosen.dedup();
        assert_eq!(chosen.len(), 4, "equals take turns");
    }

    proptest! {
        /// R14: whatever they ask for, nobody is promised more than the policy allows, and the same again is the same.
        #[test]
        fn no_price_above_the_policy(
            prices in proptest::collection::vec(any::<u128>(), 0..20),
            max in any::<u128>(),
            tie in any::<u64>(),
        ) {
            let policy = Policy { max_price: AttoFil::new(max), ..policy() };
            let all: Vec<_> = prices.iter().zip(1..).map(|(price, id)| {
                let mut c = candidate(id);
                c.ask = c.ask.map(|ask| Ask { price: AttoFil::new(*price), ..ask });
                c
            }).collect();
            let need = Need { tie, ..need(&policy) };
            let chosen = choose(&need, &all);
            prop_assert_eq!(&chosen, &choose(&need, &all));
            match chosen {
                Ok(placement) => prop_assert!(placement.price <= policy.max_price),
                Err(unfit) => prop_assert!(unfit.len() == all.len() && prices.iter().all(|p| *p > max)),
            }
        }
    }
}
