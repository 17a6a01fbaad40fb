//! What may be spent, and what was: the caps that every reservation is checked against, and the sums that must agree.
//!
//! A cap that is not set is 0, and 0 permits nothing. Gas counts like any price. The check is a pure function, made in
//! the transaction that writes the reservation, so that two of them never see the same room.

use crate::units::AttoFil;

/// The operator's caps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Caps {
    /// One deal, its price over its whole term.
    pub deal: AttoFil,
    /// What one account may commit in a day.
    pub account_day: AttoFil,
    /// What all accounts may commit in a day.
    pub day: AttoFil,
    /// What this node may ever commit.
    pub lifetime: AttoFil,
}

/// What counts against the caps already: reserved and spent, less what came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// Of the account, today.
    pub account_day: AttoFil,
    /// Of all, today.
    pub day: AttoFil,
    /// Of all, ever.
    pub lifetime: AttoFil,
}

/// Which cap does not let a reservation pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cap {
    /// [`Caps::deal`].
    Deal,
    /// [`Caps::account_day`].
    AccountDay,
    /// [`Caps::day`].
    Day,
    /// [`Caps::lifetime`].
    Lifetime,
}

/// A reservation that would pass a cap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{asked} attoFIL do not fit under the cap {name}: {committed} of {limit} are committed", name = cap.name())]
pub struct OverCap {
    /// Which.
    pub cap: Cap,
    /// What it allows.
    pub limit: AttoFil,
    /// What counts already.
    pub committed: AttoFil,
    /// What was to be added.
    pub asked: AttoFil,
}

impl Cap {
    /// Its key in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deal => "deals.max_per_deal",
            Self::AccountDay => "deals.max_per_account_day",
            Self::Day => "deals.max_per_day",
            Self::Lifetime => "deals.max_lifetime",
        }
    }
}

impl Caps {
    /// Whether a deal that costs `asked` may be committed. `shares` are what each account has committed today, and what
    /// it would have to bear of it; `committed.account_day` is not looked at.
    ///
    /// # Errors
    /// The first cap that it would pass.
    pub fn permit_deal(
        &self,
        committed: &Committed,
        asked: AttoFil,
        shares: &[(AttoFil, AttoFil)],
    ) -> Result<(), OverCap> {
        check(Cap::Deal, self.deal, AttoFil::ZERO, asked)?;
        for (today, share) in shares {
            check(Cap::AccountDay, self.account_day, *today, *share)?;
        }
        self.permit_gas(committed, asked)
    }

    /// Whether so much gas may be committed: it belongs to no deal and to no account.
    ///
    /// # Errors
    /// The first cap that it would pass.
    pub fn permit_gas(&self, committed: &Committed, asked: AttoFil) -> Result<(), OverCap> {
        check(Cap::Day, self.day, committed.day, asked)?;
        check(Cap::Lifetime, self.lifetime, committed.lifetime, asked)
    }

    /// Whether `asked` more may be committed for one account.
    ///
    /// # Errors
    /// The first cap that it would pass.
    pub fn permit(&self, committed: &Committed, asked: AttoFil) -> Result<(), OverCap> {
        self.permit_deal(committed, asked, &[(committed.account_day, asked)])
    }
}

fn check(cap: Cap, limit: AttoFil, committed: AttoFil, asked: AttoFil) -> Result<(), OverCap> {
    let fits = !limit.is_zero() && committed.checked_add(asked).is_some_and(|sum| sum <= limit);
    if fits { Ok(()) } else { Err(OverCap { cap, limit, committed, asked }) }
}

/// What each of several bears of `amount`, in proportion to its weight: whole attoFIL, and what is left over to the first.
/// Where all weights are 0 the first bears it.
pub fn split(amount: AttoFil, weights: &[u64]) -> Vec<AttoFil> {
    let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
    let part = |weight: u64| {
        // Not `amount * weight / total`, which may not fit.
        let whole = amount.get().checked_div(total).unwrap_or(0) * u128::from(weight);
        let rest = amount.get().checked_rem(total).unwrap_or(0).checked_mul(u128::from(weight));
        whole + rest.unwrap_or(0).checked_div(total).unwrap_or(0)
    };
    let mut parts: Vec<AttoFil> = weights.iter().map(|weight| AttoFil::new(part(*weight))).collect();
    let given = parts.iter().map(|part| part.get()).sum::<u128>();
    if let Some(first) = parts.first_mut() {
        *first = AttoFil::new(first.get() + (amount.get() - given));
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn atto(n: u128) -> AttoFil {
        AttoFil::new(n)
    }

    const CAPS: Caps = Caps {
        deal: AttoFil::new(10),
        account_day: AttoFil::new(20),
        day: AttoFil::new(30),
        lifetime: AttoFil::new(40),
    };

    #[test]
    fn each_cap_lets_pass_what_it_allows_and_no_atto_more() {
        let none = Committed::default();
        assert_eq!(CAPS.permit(&none, atto(10)), Ok(()));
        assert_eq!(CAPS.permit(&none, atto(11)).unwrap_err().cap, Cap::Deal);
        let cases = [
            (Committed { account_day: atto(15), ..none }, Cap::AccountDay),
            (Committed { day: atto(25), ..none }, Cap::Day),
            (Committed { lifetime: atto(35), ..none }, Cap::Lifetime),
        ];
        for (committed, cap) in cases {
            assert_eq!(CAPS.permit(&committed, atto(5)), Ok(()), "{cap:?}");
            assert_eq!(CAPS.permit(&committed, atto(6)).unwrap_err().cap, cap);
        }
    }

    /// A deal for nothing is a deal: without a positive cap it is not made either.
    #[test]
    fn an_unset_cap_permits_nothing() {
        for caps in [
            Caps { deal: AttoFil::ZERO, ..CAPS },
            Caps { account_day: AttoFil::ZERO, ..CAPS },
            Caps { day: AttoFil::ZERO, ..CAPS },
            Caps { lifetime: AttoFil::ZERO, ..CAPS },
            Caps::default(),
        ] {
            assert!(caps.permit(&Committed::default(), AttoFil::ZERO).is_err(), "{caps:?}");
        }
    }

    proptest! {
        /// T36: any sequence of reservations stays under every cap.
        #[test]
        fn sums_stay_under_the_caps(asked in proptest::collection::vec(0_u128..15, 0..60)) {
            let mut committed = Committed::default();
            for amount in asked.into_iter().map(AttoFil::new) {
                if CAPS.permit(&committed, amount).is_ok() {
                    for sum in [&mut committed.account_day, &mut committed.day, &mut committed.lifetime] {
                        *sum = sum.checked_add(amount).unwrap();
                    }
                }
                prop_assert!(committed.account_day <= CAPS.account_day);
                prop_assert!(committed.day <= CAPS.day && committed.lifetime <= CAPS.lifetime);
            }
        }

        #[test]
        fn parts_are_all_of_it_and_nobody_bears_more_than_its_share(
            amount in any::<u128>(),
            weights in proptest::collection::vec(0_u64..1 << 40, 1..50),
        ) {
            let parts = split(atto(amount), &weights);
            prop_assert_eq!(parts.iter().map(|part| part.get()).sum::<u128>(), amount);
            let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            for (part, weight) in parts.iter().zip(&weights).skip(1) {
                let share = (total > 0).then(|| amount / total * u128::from(*weight));
                prop_assert!(share.is_none_or(|share| part.get() >= share && part.get() - share <= u128::from(*weight)));
            }
        }

        /// Three accounts share what each could not bear alone.
        #[test]
        fn no_account_passes_its_cap_by_a_share(today in proptest::collection::vec(0_u128..25, 3), asked in 0_u128..15) {
            let shares: Vec<_> = today.iter().zip(split(atto(asked), &[1, 1, 2])).map(|(t, s)| (atto(*t), s)).collect();
            let fits = shares.iter().all(|(t, s)| t.get() + s.get() <= 20) && asked <= 10;
            prop_assert_eq!(CAPS.permit_deal(&Committed::default(), atto(asked), &shares).is_ok(), fits);
        }

        #[test]
        fn nothing_wraps(a in any::<u128>(), b in any::<u128>()) {
            let most = Caps { deal: atto(u128::MAX), account_day: atto(u128::MAX), day: atto(u128::MAX), lifetime: atto(u128::MAX) };
            let committed = Committed { account_day: atto(a), day: atto(a), lifetime: atto(a) };
            prop_assert_eq!(most.permit(&committed, atto(b)).is_ok(), a.checked_add(b).is_some());
        }
    }
}
