//! The wallet, for its operator: what there is, and what of it is spoken for.

use floe_core::cold::{Fault, MessageProgress, Sent};
use floe_core::{AttoFil, Epoch};

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
    /// Of what is free, what was there at the last final epoch too: new deals and withdrawals use no more than this.
    pub free_final: AttoFil,
    /// Of what is in the wallet, the same: no more leaves it.
    pub wallet_final: AttoFil,
    /// What proposals that are not published yet will lock, those that were refused with them: whoever holds their bytes
    /// can publish them.
    pub committed: AttoFil,
    /// The most gas that one message may cost.
    pub max_gas: AttoFil,
    /// The head that this is about.
    pub head: Epoch,
    /// The last epoch that counts.
    pub last_final: Epoch,
    /// What the operator should know of the Filecoin node.
    pub remarks: Vec<String>,
}

/// A call of the operator's that was written down, and goes on by itself.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WalletCall {
    /// The same at each repeat.
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

impl Engine {
    /// What the wallet has, at the head, and what of it is final.
    ///
    /// # Errors
    /// [`Error::NoFilecoin`], [`Error::Filecoin`]; [`Error::Records`].
    pub async fn wallet(&self) -> Result<Wallet, Error> {
        let cold = self.ctx.cold.as_ref().ok_or(Error::NoFilecoin)?;
        let seen = cold.chain.look().await?;
        let funds = cold.chain.funds().await?;
        let now = funds.head;
        let committed = self.ctx.records.unpublished_cost().await?.spoken_for(funds.underway());
        Ok(Wallet {
            address: cold.proposer.wallet(),
            wallet: now.wallet,
            escrow: now.escrow,
            locked: now.locked,
            free: now.free().map_err(Fault::from)?,
            free_final: funds.least(|funds, _| funds.free().map_err(Fault::from))?,
            wallet_final: now.wallet.min(funds.last_final.wallet),
            committed,
            max_gas: cold.chain.max_fee(),
            head: seen.head,
            last_final: seen.last_final,
            remarks: cold.chain.remarks(),
        })
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

    #[test]
    fn each_progress_has_its_word() {
        let of = |progress| {
            let sent = Sent { intent: "i".into(), max_fee: AttoFil::new(1), progress };
            let call = WalletCall::from(sent);
            (call.progress, call.exit_code)
        };
        assert_eq!(of(MessageProgress::Pending), ("pending", None));
        assert_eq!(of(MessageProgress::Final(Ok(()))), ("final", None));
        assert_eq!(of(MessageProgress::Final(Err(16))), ("failed", Some(16)));
        assert_eq!(of(MessageProgress::Missing), ("missing", None));
    }
}
