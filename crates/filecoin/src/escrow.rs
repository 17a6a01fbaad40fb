//! Escrow: what lies with the storage market so that providers take our deals.
//!
//! A top-up is a plain message to f05 (method 2, the address as parameter), so it works with a key of ours and over a
//! gateway; Lotus' own `MarketReserveFunds` keeps its account in one node's store and is not used. When to send one, and
//! of how much, is decided by [`floe_core::escrow`].

pub use floe_core::escrow::{Alarm, EscrowError, Plan, Policy, State, plan};

use floe_core::cold::Funds;

use crate::rpc::answers::MarketBalance;
use crate::types::cbor::Cbor as _;
use crate::types::{Address, AttoFil, Message};

/// The market's method that takes a deposit.
const ADD_BALANCE: u64 = 2;

impl MarketBalance {
    /// What new deals may use.
    ///
    /// # Errors
    /// [`EscrowError::Impossible`].
    pub fn free(&self) -> Result<AttoFil, EscrowError> {
        let Self { escrow, locked } = *self;
        Funds { wallet: AttoFil::ZERO, escrow, locked }.free()
    }
}

/// The message that pays `amount` out of `wallet` into escrow for `wallet`.
pub fn top_up_message(wallet: Address, amount: AttoFil) -> Message {
    Message::new(wallet, Address::STORAGE_MARKET, amount, ADD_BALANCE, wallet.to_cbor())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The recorded MarketAddBalance of a real Lotus, built by us.
    #[test]
    fn a_top_up_is_the_message_that_lotus_builds() {
        let wallet = "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy".parse().unwrap();
        let mut message = top_up_message(wallet, AttoFil::new(500_000_000_000_000_000));
        message.gas_limit = 5_867_266;
        message.gas_fee_cap = AttoFil::new(102_127);
        message.gas_premium = AttoFil::new(100_673);
        assert_eq!(
            message.cid().to_string(),
            "bafy2bzacecxqajwxbfvfjkw3en3vd4gpzh6n26k6gc36vv5lw55z2axt7bdgo"
        );
    }
}
