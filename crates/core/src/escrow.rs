//! Escrow: what lies with the storage market so that providers take our deals. A pure function.
//!
//! What is needed and what may be spent are the caller's figures, out of its ledger; here is only the arithmetic, and
//! nothing is believed that cannot be: a node that says that more is locked than there is lies.

use crate::cold::{Fault, Funds};
use crate::failure::FailureCode;
use crate::units::AttoFil;

/// When to top up, and by how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Below this times what is committed, in tenths, it is topped up to it: 12 is 1.2 times.
    pub keep_tenths: u32,
    /// A smaller top-up is not worth its gas, and waits.
    pub least_top_up: AttoFil,
    /// What the caps still permit to be sent now: what is committed counts against them already. 0 permits nothing.
    pub may_spend: AttoFil,
    /// Left in the wallet for gas.
    pub wallet_reserve: AttoFil,
    /// Less than this free raises the alarm, whatever is committed.
    pub alarm_below: AttoFil,
}

/// What is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The wallet's and the market's word, at the head or at finality.
    pub funds: Funds,
    /// Top-ups that are sent and not yet in it.
    pub on_the_way: AttoFil,
    /// What proposals that are signed and not yet published will lock.
    pub committed: AttoFil,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Send this much; `None` for nothing.
    pub top_up: Option<AttoFil>,
    /// What someone should look at.
    pub alarm: Option<Alarm>,
}

/// What someone should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// Free escrow is below the operator's line.
    #[error("free escrow is {free} attoFIL, below the line of {line}")]
    Low {
        /// Free.
        free: AttoFil,
        /// The line.
        line: AttoFil,
    },
    /// What is signed is not covered: providers refuse deals or drop them at publishing.
    #[error("free escrow is {free} attoFIL, and signed proposals need {committed}")]
    NotCovered {
        /// Free, with what is on the way.
        free: AttoFil,
        /// Needed.
        committed: AttoFil,
    },
    /// The caps permit less than is needed.
    #[error("escrow needs {needed} attoFIL more, and the spending caps permit {permitted}")]
    CapReached {
        /// Needed.
        needed: AttoFil,
        /// Permitted.
        permitted: AttoFil,
    },
    /// The wallet has less than is needed.
    #[error("escrow needs {needed} attoFIL more, and the wallet can give {available}: send FIL to it")]
    WalletEmpty {
        /// Needed.
        needed: AttoFil,
        /// There.
        available: AttoFil,
    },
}

/// Figures that cannot be true, or that cannot be added. Spending stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EscrowError {
    /// More locked than there is.
    #[error("the node says that {locked} attoFIL of {escrow} in escrow are locked: it cannot be believed")]
    Impossible {
        /// Said to be locked.
        locked: AttoFil,
        /// Said to be there.
        escrow: AttoFil,
    },
    /// Sums beyond all FIL that there is.
    #[error("the figures about escrow are beyond all FIL that there is: they cannot be believed")]
    Overflow,
}

impl Funds {
    /// What new deals may use.
    ///
    /// # Errors
    /// [`EscrowError::Impossible`].
    pub fn free(&self) -> Result<AttoFil, EscrowError> {
        let Self { escrow, locked, .. } = *self;
        escrow.checked_sub(locked).ok_or(EscrowError::Impossible { locked, escrow })
    }
}

/// What to do about `state`. Pure.
///
/// # Errors
/// [`EscrowError`]: nothing is to be sent.
pub fn plan(state: &State, policy: &Policy) -> Result<Plan, EscrowError> {
    let free = state.funds.free()?;
    let coming = free.checked_add(state.on_the_way).ok_or(EscrowError::Overflow)?;
    let keep = state.committed.checked_mul(u128::from(policy.keep_tenths));
    let keep = keep.map(|tenths| AttoFil::new(tenths.get().div_ceil(10)));
    let keep = keep.ok_or(EscrowError::Overflow)?.max(state.committed);
    let Some(missing) = keep.checked_sub(coming).filter(|missing| !missing.is_zero()) else {
        return Ok(Plan { top_up: None, alarm: low(free, policy) });
    };
    // What is more than what deals need is worth having, and gives way to the caps.
    let short = state.committed.checked_sub(coming).unwrap_or_default();
    let needed = missing.max(policy.least_top_up).min(policy.may_spend.max(short));
    if needed.is_zero() {
        return Ok(Plan { top_up: None, alarm: low(free, policy) });
    }
    let available = state.funds.wallet.checked_sub(policy.wallet_reserve).unwrap_or_default();
    // All or nothing: part of a top-up covers no deal, and costs the same gas.
    let blocked = if needed > policy.may_spend {
        Some(Alarm::CapReached { needed, permitted: policy.may_spend })
    } else if needed > available {
        Some(Alarm::WalletEmpty { needed, available })
    } else {
        None
    };
    let not_covered = Alarm::NotCovered { free: coming, committed: state.committed };
    let uncovered = (coming < state.committed && blocked.is_none()).then_some(not_covered);
    Ok(Plan {
        top_up: blocked.is_none().then_some(needed),
        alarm: blocked.or(uncovered).or_else(|| low(free, policy)),
    })
}

fn low(free: AttoFil, policy: &Policy) -> Option<Alarm> {
    (free < policy.alarm_below).then_some(Alarm::Low { free, line: policy.alarm_below })
}

/// A node whose figures cannot be true is as good as one that is away.
impl From<EscrowError> for Fault {
    fn from(error: EscrowError) -> Self {
        Self::new(FailureCode::ChainUnreachable, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn atto(amount: u128) -> AttoFil {
        AttoFil::new(amount)
    }

    fn policy() -> Policy {
        Policy {
            keep_tenths: 12,
            least_top_up: atto(10),
            may_spend: atto(1_000),
            wallet_reserve: atto(50),
            alarm_below: atto(20),
        }
    }

    fn state(escrow: u128, locked: u128, committed: u128) -> State {
        let funds = Funds { wallet: atto(10_000), escrow: atto(escrow), locked: atto(locked) };
        State { funds, on_the_way: atto(0), committed: atto(committed) }
    }

    #[test]
    fn it_is_topped_up_to_what_is_kept() {
        assert_eq!(plan(&state(120, 0, 100), &policy()), Ok(Plan { top_up: None, alarm: None }));
        let short = plan(&state(119, 0, 100), &policy()).unwrap();
        assert_eq!((short.top_up, short.alarm), (Some(atto(10)), None), "the least that is worth its gas");
        let uncovered = plan(&state(99, 19, 100), &policy()).unwrap();
        assert_eq!(uncovered.top_up, Some(atto(40)));
        assert_eq!(uncovered.alarm, Some(Alarm::NotCovered { free: atto(80), committed: atto(100) }));
    }

    /// A top-up whose message is not yet on the chain must not be sent a second time.
    #[test]
    fn what_is_on_the_way_counts() {
        let mut waiting = state(0, 0, 100);
        waiting.on_the_way = atto(120);
        let plan = plan(&waiting, &policy()).unwrap();
        assert_eq!(plan.top_up, None);
        assert_eq!(plan.alarm, Some(Alarm::Low { free: atto(0), line: atto(20) }));
    }

    #[test]
    fn caps_and_the_wallet_bind() {
        let broke = Policy { may_spend: atto(0), ..policy() };
        let refused = plan(&state(0, 0, 100), &broke).unwrap();
        assert_eq!(refused.top_up, None, "a cap that is not set permits nothing");
        assert_eq!(refused.alarm, Some(Alarm::CapReached { needed: atto(100), permitted: atto(0) }));
        let near = plan(&state(0, 0, 100), &Policy { may_spend: atto(105), ..policy() }).unwrap();
        assert_eq!(near.top_up, Some(atto(105)), "what is committed is covered, and what is more gives way");
        let mut poor = state(0, 0, 100);
        poor.funds.wallet = atto(169);
        let refused = plan(&poor, &policy()).unwrap();
        assert_eq!(refused.top_up, None);
        assert_eq!(refused.alarm, Some(Alarm::WalletEmpty { needed: atto(120), available: atto(119) }));
    }

    /// A node that lies about the balance: more locked than there is, or sums beyond 128 bits.
    #[test]
    fn impossible_figures_send_nothing() {
        assert_eq!(
            plan(&state(1, 2, 0), &policy()),
            Err(EscrowError::Impossible { locked: atto(2), escrow: atto(1) })
        );
        let mut vast = state(u128::MAX, 0, 1);
        vast.on_the_way = atto(1);
        assert_eq!(plan(&vast, &policy()), Err(EscrowError::Overflow));
        assert_eq!(plan(&state(0, 0, u128::MAX), &policy()), Err(EscrowError::Overflow));
    }

    proptest! {
        /// Whatever the node says: never more than the caps permit, never into the wallet's reserve.
        #[test]
        fn no_figure_spends_past_the_caps(figures: [u128; 5], cap: u128, reserve: u128, tenths in 0..100_u32) {
            let [escrow, locked, on_the_way, committed, wallet] = figures.map(atto);
            let state = State { funds: Funds { wallet, escrow, locked }, on_the_way, committed };
            let policy = Policy { keep_tenths: tenths, may_spend: atto(cap), wallet_reserve: atto(reserve), ..policy() };
            if let Ok(Plan { top_up: Some(amount), .. }) = plan(&state, &policy) {
                prop_assert!(amount <= policy.may_spend && !amount.is_zero());
                prop_assert!(amount.checked_add(policy.wallet_reserve).is_some_and(|sum| sum <= wallet));
            }
        }
    }
}
