//! The terms of a deal, checked by every rule that a provider checks before it answers: what we know to be refused is not
//! signed. A pure function.
//!
//! The rules and their order are those of Boost and Curio. What is not here cannot be otherwise by its type (the piece's
//! CID and size) or is asked of the chain at signing (escrow).

use floe_core::place::Ask;
use floe_core::{AttoFil, Cid, Epoch, PaddedSize, Policy};

use crate::limits::{DEAL_END_BUFFER, DEAL_LEAST, DEAL_MOST, LABEL_BYTES};

/// What terms are made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quote<'a> {
    pub(crate) policy: &'a Policy,
    /// Epochs from now to the start.
    pub(crate) start_lead: i64,
    pub(crate) head: Epoch,
    pub(crate) size: PaddedSize,
    /// Bytes that the provider pulls.
    pub(crate) car_bytes: u64,
    /// The label.
    pub(crate) root: &'a Cid,
    /// The provider's, seen by us, fresh.
    pub(crate) ask: Ask,
    /// The least that the chain wants of the provider.
    pub(crate) least_collateral: AttoFil,
    /// Of the provider's sectors; no piece is larger.
    pub(crate) sector_bytes: u64,
}

/// What is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// For the whole piece and each epoch.
    pub(crate) price: AttoFil,
    pub(crate) collateral: AttoFil,
    pub(crate) start: Epoch,
    pub(crate) end: Epoch,
    /// Price x duration.
    pub(crate) cost: AttoFil,
}

/// A provider would refuse it, or we would pay what we may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsound {
    #[error("the label {0:?} is longer than {LABEL_BYTES} bytes")]
    Label(String),
    #[error(
        "a deal of {0} epochs is not between {DEAL_LEAST} and {DEAL_MOST}: set the policy's duration_epochs"
    )]
    Duration(i64),
    #[error("a deal that starts in {0} epochs starts in the past: set filecoin.start_lead")]
    StartLead(i64),
    #[error("the provider's ask ended at epoch {0}")]
    AskExpired(Epoch),
    #[error("the provider asks for {asked} attoFIL per GiB and epoch, and the policy permits {most}")]
    Price { asked: AttoFil, most: AttoFil },
    #[error("the provider takes pieces from {min} to {max}, and this one has {size}", min = .ask.min_size, max = .ask.max_size)]
    Size { size: PaddedSize, ask: Ask },
    #[error("the piece of {size} is larger than the provider's sectors of {sector} bytes")]
    Sector { size: PaddedSize, sector: u64 },
    #[error("a CAR of {car_bytes} bytes does not fill a piece of {size}: this is a bug of Floe")]
    Padding { car_bytes: u64, size: PaddedSize },
    #[error("the price or the collateral is beyond all FIL that there is")]
    Overflow,
}

/// The terms at this quote.
///
/// # Errors
/// The first rule that they would break.
pub(crate) fn terms(quote: &Quote<'_>) -> Result<Terms, Unsound> {
    let Quote { policy, ask, size, head, .. } = *quote;
    let label = quote.root.to_string();
    if label.len() > LABEL_BYTES {
        return Err(Unsound::Label(label));
    }
    if PaddedSize::of_payload(quote.car_bytes) != Some(size) {
        return Err(Unsound::Padding { car_bytes: quote.car_bytes, size });
    }
    if size.bytes() > quote.sector_bytes {
        return Err(Unsound::Sector { size, sector: quote.sector_bytes });
    }
    if quote.start_lead <= 0 {
        return Err(Unsound::StartLead(quote.start_lead));
    }
    let start = head.plus(quote.start_lead);
    // No deal ends later than so many epochs from now, by the clock of whoever checks it.
    let wanted = i64::try_from(policy.duration_epochs).unwrap_or(i64::MAX);
    let end = start.plus(wanted).min(head.plus(DEAL_MOST - DEAL_END_BUFFER));
    let duration = i64::try_from(end.since(start)).unwrap_or(0);
    if !(DEAL_LEAST..=DEAL_MOST).contains(&duration) {
        return Err(Unsound::Duration(duration));
    }
    if ask.expires <= head {
        return Err(Unsound::AskExpired(ask.expires));
    }
    if ask.price > policy.max_price {
        return Err(Unsound::Price { asked: ask.price, most: policy.max_price });
    }
    if size < ask.min_size || size > ask.max_size {
        return Err(Unsound::Size { size, ask });
    }
    let price = ask.price.for_piece(size).ok_or(Unsound::Overflow)?;
    let cost = price.checked_mul(u128::from(duration.unsigned_abs())).ok_or(Unsound::Overflow)?;
    let collateral = collateral(quote.least_collateral).ok_or(Unsound::Overflow)?;
    Ok(Terms { price, collateral, start, end, cost })
}

/// 12/10 of the least, within what the chain takes: from the least to twice as much.
fn collateral(least: AttoFil) -> Option<AttoFil> {
    let tenths = least.checked_mul(12)?.get();
    Some(AttoFil::new(tenths.div_ceil(10)))
}

/// Whether a collateral that was agreed on is still within what the chain takes.
pub(crate) fn collateral_holds(agreed: AttoFil, least: AttoFil) -> bool {
    least <= agreed && least.checked_mul(2).is_some_and(|most| agreed <= most || least.is_zero())
}

#[cfg(test)]
mod tests {
    use floe_core::cid;
    use floe_core::policy::Hot;
    use proptest::prelude::*;

    use super::*;

    fn policy(max_price: u128, duration_epochs: u64) -> Policy {
        Policy {
            name: "p".into(),
            replicas: 3,
            regions: Vec::new(),
            max_price: AttoFil::new(max_price),
            duration_epochs,
            hot: Hot::Always,
            providers: Vec::new(),
            ipni: true,
            spare_after_epochs: None,
        }
    }

    fn root() -> Cid {
        cid::parse("bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4").unwrap()
    }

    fn quote<'a>(policy: &'a Policy, root: &'a Cid) -> Quote<'a> {
        let size = PaddedSize::from_bytes(1 << 30).unwrap();
        let ask = Ask {
            price: AttoFil::new(50),
            min_size: PaddedSize::MIN,
            max_size: PaddedSize::MAX,
            expires: Epoch::new(1_000_000),
        };
        Quote {
            policy,
            start_lead: 11_520,
            head: Epoch::new(1_000),
            size,
            car_bytes: size.unpadded_bytes(),
            root,
            ask,
            least_collateral: AttoFil::new(10),
            sector_bytes: 32 << 30,
        }
    }

    #[test]
    fn the_terms_of_a_plain_deal() {
        let (policy, root) = (policy(100, 1_555_200), root());
        let terms = terms(&quote(&policy, &root)).unwrap();
        let start = Epoch::new(12_520);
        let (price, collateral) = (AttoFil::new(50), AttoFil::new(12));
        let cost = AttoFil::new(50 * 1_555_200);
        assert_eq!(terms, Terms { price, collateral, start, end: start.plus(1_555_200), cost });
    }

    /// Filecoin.md 5.4: each rule, just inside and just outside.
    #[test]
    fn each_rule_of_acceptance_is_checked_by_us() {
        let (open, root) = (policy(100, 1_555_200), root());
        let base = quote(&open, &root);
        let ok = |quote: Quote<'_>| terms(&quote).is_ok();
        assert!(ok(base));
        let (least, most) = (policy(100, 518_400), policy(100, 10_000_000));
        assert!(ok(Quote { policy: &least, ..base }));
        let short = policy(100, 518_399);
        assert!(!ok(Quote { policy: &short, ..base }));
        let longest = terms(&Quote { policy: &most, ..base }).unwrap();
        assert_eq!(longest.end.since(base.head), (DEAL_MOST - DEAL_END_BUFFER).unsigned_abs());
        assert!(!ok(Quote { start_lead: 0, ..base }));
        assert!(!ok(Quote { start_lead: 3_500_000, ..base }), "nothing is left of its term");
        let ask = base.ask;
        assert!(ok(Quote { ask: Ask { expires: Epoch::new(1_001), ..ask }, ..base }));
        assert!(!ok(Quote { ask: Ask { expires: Epoch::new(1_000), ..ask }, ..base }));
        assert!(ok(Quote { ask: Ask { price: AttoFil::new(100), ..ask }, ..base }));
        assert!(!ok(Quote { ask: Ask { price: AttoFil::new(101), ..ask }, ..base }));
        let half = PaddedSize::from_bytes(1 << 29).unwrap();
        let double = PaddedSize::from_bytes(1 << 31).unwrap();
        assert!(ok(Quote { ask: Ask { min_size: base.size, max_size: base.size, ..ask }, ..base }));
        assert!(!ok(Quote { ask: Ask { min_size: double, ..ask }, ..base }));
        assert!(!ok(Quote { ask: Ask { max_size: half, ..ask }, ..base }));
        assert!(ok(Quote { sector_bytes: 1 << 30, ..base }) && !ok(Quote { sector_bytes: 1 << 29, ..base }));
        assert!(
            !ok(Quote { car_bytes: half.unpadded_bytes(), ..base }),
            "Curio takes no piece that is padded up"
        );
        assert!(!ok(Quote { least_collateral: AttoFil::new(u128::MAX), ..base }));
    }

    #[test]
    fn a_collateral_holds_between_the_least_and_twice_as_much() {
        let holds = |agreed, least| collateral_holds(AttoFil::new(agreed), AttoFil::new(least));
        assert!(holds(12, 10) && holds(10, 10) && holds(20, 10) && holds(0, 0));
        assert!(!holds(9, 10) && !holds(21, 10) && !holds(1, u128::MAX));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        /// R14, T35: whatever is asked for, what is signed is within the policy and within what was quoted.
        #[test]
        fn r14_no_terms_beyond_policy_and_quote(
            asked in prop_oneof![Just(0), 0_u128..1_000, any::<u128>()],
            most in prop_oneof![Just(0), 0_u128..1_000, any::<u128>()],
            least_collateral in prop_oneof![0_u128..1_000, any::<u128>()],
            expires in any::<i64>(),
            (min, max) in (0_u8..40, 0_u8..40),
            (head, lead) in (0_i64..10_000_000, any::<i64>()),
            duration in any::<u64>(),
        ) {
            let (policy, root) = (policy(most, duration), root());
            let size = |height: u8| PaddedSize::from_height(height).unwrap_or(PaddedSize::MIN);
            let ask = Ask {
                price: AttoFil::new(asked),
                min_size: size(min),
                max_size: size(max),
                expires: Epoch::new(expires),
            };
            let base = quote(&policy, &root);
            let quote = Quote {
                ask,
                head: Epoch::new(head),
                start_lead: lead,
                least_collateral: AttoFil::new(least_collateral),
                ..base
            };
            if let Ok(terms) = terms(&quote) {
                prop_assert!(terms.price <= policy.max_price.for_piece(base.size).unwrap_or(terms.price));
                prop_assert_eq!(Some(terms.price), ask.price.for_piece(base.size));
                prop_assert!(ask.price <= policy.max_price && expires > head);
                prop_assert!(collateral_holds(terms.collateral, quote.least_collateral) || least_collateral < 5);
                prop_assert!(terms.end.since(quote.head) <= DEAL_MOST.unsigned_abs());
                let duration = i128::from(terms.end.get()) - i128::from(terms.start.get());
                prop_assert!((518_400..=3_680_640).contains(&duration));
                prop_assert_eq!(terms.cost.get(), terms.price.get() * duration.unsigned_abs());
            }
        }
    }
}
