//! The wallet, for its operator: what there is, and calls of his own beside those that the deals need.
//!
//! What the operator takes out is held against what is committed: a proposal that is signed can be published until its
//! start, and a provider that finds too little in escrow then drops the deal. Proposals that were refused count, because
//! whoever holds the bytes can publish them too. The look and the check are of one moment, and the call is one intent:
//! the same key gives the same message.

use std::sync::Arc;

use floe_core::cold::{Chain, Fault, Funds, FundsCall, MessageProgress, Sent};
use floe_core::{AttoFil, Epoch};

use super::Components;
use crate::{Engine, Error};

/// What there is, and what of it is spoken for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Wallet {
    /// The address that pays.
    pub address: String,
    /// In the wallet.
    pub wallet: AttoFil,
    /// With the market.
    pub escrow: AttoFil,
    /// Of that, what published deals hold.
    pub locked: AttoFil,
    /// Of that, what is free.
    pub free: AttoFil,
    /// What proposals that are not published yet will lock, those that were refused with them.
    pub committed: AttoFil,
    /// The most gas that one message may cost.
    pub max_gas: AttoFil,
    /// The head that this is about.
    pub head: Epoch,
    /// The last epoch that counts.
    pub last_final: Epoch,
}

/// A call that was written down, and goes on by itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WalletCall {
    /// What to ask for again.
    pub intent: String,
    /// `pending`, `included`, `final`, `failed` or `missing`.
    pub progress: &'static str,
    /// Why it failed on the chain.
    pub exit_code: Option<i64>,
    /// The most gas that it may cost.
    pub max_fee: AttoFil,
}

impl From<Sent> for WalletCall {
    fn from(sent: Sent) -> Self {
        let (progress, exit_code) = match sent.progress {
            MessageProgress::Pending => ("pending", None),
            MessageProgress::Included => ("included", None),
            MessageProgress::Final(Ok(())) => ("final", None),
            MessageProgress::Final(Err(code)) => ("failed", Some(code)),
            MessageProgress::Missing => ("missing", None),
        };
        Self { intent: sent.intent, progress, exit_code, max_fee: sent.max_fee }
    }
}

/// What a call takes out.
fn taken(call: &FundsCall) -> AttoFil {
    match call {
        FundsCall::TopUp(amount) | FundsCall::Withdraw(amount) | FundsCall::Send { amount, .. } => *amount,
        FundsCall::Settle(_) => AttoFil::ZERO,
    }
}

/// Whether `call` leaves what is committed where it is needed: in escrow, or in the wallet for the next top-up. Pure.
///
/// # Errors
/// What is missing, in words.
pub fn permits(call: &FundsCall, funds: &Funds, committed: AttoFil, max_fee: AttoFil) -> Result<(), String> {
    let beyond = || "the figures are beyond all FIL that there is".to_owned();
    let free = funds.escrow.checked_sub(funds.locked).ok_or_else(beyond)?;
    let amount = taken(call);
    let left = |of: AttoFil, what: &str, least: AttoFil| match of.checked_sub(amount) {
        Some(rest) if rest >= least => Ok(()),
        _ => Err(format!(
            "{amount} attoFIL cannot be taken out of the {of} in {what}: {least} of them have to stay there, for what \
             is signed and not yet published, and for gas"
        )),
    };
    match call {
        FundsCall::Withdraw(_) => left(free, "free escrow", committed),
        FundsCall::Send { .. } => {
            let uncovered = committed.checked_sub(free).unwrap_or_default();
            let least = uncovered.checked_add(max_fee).ok_or_else(beyond)?;
            left(funds.wallet, "the wallet", least)
        }
        FundsCall::TopUp(_) => left(funds.wallet, "the wallet", max_fee),
        FundsCall::Settle(_) => Ok(()),
    }
}

impl Engine {
    /// What the wallet has, at the head.
    ///
    /// # Errors
    /// [`Error::NoFilecoin`], [`Error::Filecoin`]; [`Error::Records`].
    pub async fn wallet(&self) -> Result<Wallet, Error> {
        let cold = self.cold()?;
        let seen = cold.chain.look().await?;
        let funds = cold.chain.funds().await?;
        let committed = self.ctx.records.unpublished_cost().await?.all;
        Ok(Wallet {
            address: cold.proposer.wallet(),
            wallet: funds.wallet,
            escrow: funds.escrow,
            locked: funds.locked,
            free: funds.escrow.checked_sub(funds.locked).unwrap_or_default(),
            committed,
            max_gas: cold.chain.max_fee(),
            head: seen.head,
            last_final: seen.last_final,
        })
    }

    /// Sends from the wallet, once for each `key`; again with the same key it says how far that is. Dropping the future
    /// leaves it open whether it was sent; what was sent goes on by itself.
    ///
    /// # Errors
    /// [`Error::NoFilecoin`], [`Error::Filecoin`]; [`Error::NotPermitted`] where it would take what is committed, or its
    /// gas pass a cap.
    pub async fn wallet_call(&self, key: &str, call: &FundsCall) -> Result<WalletCall, Error> {
        let cold = self.cold()?;
        let intent = format!("operator:{key}");
        let chain: &Arc<dyn Chain> = &cold.chain;
        chain.look().await?;
        // What was sent before is not held against what is committed now: it is only asked how far it is.
        if self.ctx.records.message(&intent).await?.is_none() {
            let funds = chain.funds().await?;
            let committed = self.ctx.records.unpublished_cost().await?.all;
            permits(call, &funds, committed, chain.max_fee()).map_err(Error::NotPermitted)?;
            self.reserve_gas(&intent, chain.max_fee()).await?;
        }
        match chain.send(&intent, call).await {
            Ok(sent) => Ok(sent.into()),
            Err(fault) => {
                // Nothing was signed: whatever the journal does not know costs nothing.
                if self.ctx.records.message(&intent).await?.is_none() {
                    self.ctx.records.gas_is_free(&intent).await?;
                }
                Err(fault.into())
            }
        }
    }

    /// Counts the gas of a call against the caps, where there are any.
    async fn reserve_gas(&self, intent: &str, fee: AttoFil) -> Result<(), Error> {
        let deals = &self.ctx.settings.cold.deals;
        if !deals.enabled {
            return Ok(());
        }
        let reserved = self.ctx.records.reserve_gas(intent, fee, &deals.caps).await?;
        reserved.map_err(|over| Error::NotPermitted(over.to_string()))
    }

    fn cold(&self) -> Result<&Components, Error> {
        self.ctx.cold.as_ref().ok_or(Error::NoFilecoin)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Filecoin(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn atto(amount: u128) -> AttoFil {
        AttoFil::new(amount)
    }

    fn funds(wallet: u128, escrow: u128, locked: u128) -> Funds {
        Funds { wallet: atto(wallet), escrow: atto(escrow), locked: atto(locked) }
    }

    /// Free escrow is 60, and 50 of it are spoken for.
    #[test]
    fn t36_what_is_committed_is_not_taken_out() {
        let have = funds(1_000, 100, 40);
        let withdraw = |amount, committed| {
            permits(&FundsCall::Withdraw(atto(amount)), &have, atto(committed), atto(5)).is_ok()
        };
        assert!(withdraw(10, 50) && !withdraw(11, 50) && withdraw(60, 0) && !withdraw(61, 0));
        let send = |amount, committed| {
            let call = FundsCall::Send { to: "f01".into(), amount: atto(amount) };
            permits(&call, &have, atto(committed), atto(5)).is_ok()
        };
        assert!(send(995, 50) && !send(996, 50), "gas stays");
        assert!(
            send(955, 100) && !send(956, 100),
            "40 of the commitments are covered by nothing but the wallet"
        );
        assert!(permits(&FundsCall::Settle(vec![1]), &have, atto(9_999), atto(5)).is_ok());
        let odd = funds(1_000, 40, 100);
        assert!(permits(&FundsCall::Withdraw(atto(0)), &odd, atto(0), atto(0)).is_err());
    }

    proptest! {
        /// Whatever the figures: after it, escrow and wallet still cover what is committed if they did before.
        #[test]
        fn what_was_covered_stays_covered(
            [wallet, escrow, locked, committed, fee, amount] in proptest::array::uniform6(0..1_000_u128),
            sends: bool,
        ) {
            let have = funds(wallet, escrow, locked.min(escrow));
            let free = escrow - locked.min(escrow);
            let amount = atto(amount);
            let call = if sends { FundsCall::Send { to: String::new(), amount } } else { FundsCall::Withdraw(amount) };
            prop_assume!(wallet + free >= committed);
            if permits(&call, &have, atto(committed), atto(fee)).is_ok() {
                let (wallet, free) =
                    if sends { (wallet - amount.get() - fee, free) } else { (wallet, free - amount.get()) };
                prop_assert!(wallet + free >= committed);
            }
        }
    }
}
