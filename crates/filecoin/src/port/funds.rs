//! What is sent from the wallet, as messages.

use floe_core::FailureCode;
use floe_core::cold::{Fault, FundsCall};

use crate::escrow::top_up_message;
use crate::limits::{self, MAX_SETTLED};
use crate::types::cbor::{Cbor as _, Writer};
use crate::types::{Address, AttoFil, Message, rle};

/// f05's method that pays free escrow back to its owner's wallet: `[address, amount]`.
const WITHDRAW_BALANCE: u64 = 3;
/// f05's method that settles deals: a bit field of their ids. The number is the hash of its name (FRC-0042).
const SETTLE_DEAL_PAYMENTS: u64 = 1_900_091_594;
/// Only transfers.
const SEND: u64 = 0;

/// The message of `call` from `wallet`, without number and gas.
pub(super) fn message(wallet: Address, call: &FundsCall) -> Result<Message, Fault> {
    let market = Address::STORAGE_MARKET;
    let none = AttoFil::ZERO;
    match call {
        FundsCall::TopUp(amount) => Ok(top_up_message(wallet, *amount)),
        FundsCall::Withdraw(amount) => {
            Ok(Message::new(wallet, market, none, WITHDRAW_BALANCE, withdraw_params(wallet, *amount)))
        }
        FundsCall::Send { to, amount } => {
            let to: Address = to
                .parse()
                .map_err(|e| Fault::new(FailureCode::FundsWallet, format!("nothing was sent: {e}")))?;
            Ok(Message::new(wallet, to, *amount, SEND, Vec::new()))
        }
        FundsCall::Settle(deals) => {
            Ok(Message::new(wallet, market, none, SETTLE_DEAL_PAYMENTS, settle_params(deals)?))
        }
    }
}

fn withdraw_params(wallet: Address, amount: AttoFil) -> Vec<u8> {
    let mut to = Writer::default();
    to.array(2);
    wallet.write(&mut to);
    amount.write(&mut to);
    to.into_bytes()
}

fn settle_params(deals: &[u64]) -> Result<Vec<u8>, Fault> {
    if deals.is_empty() || deals.len() > MAX_SETTLED {
        limits::hit("settled_deals");
        let text = format!("a message settles 1 to {MAX_SETTLED} deals, not {}", deals.len());
        return Err(Fault::new(FailureCode::Gas, text));
    }
    let mut to = Writer::default();
    to.bytes(&rle::encode(deals));
    Ok(to.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALLET: &str = "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy";

    fn of(call: FundsCall) -> Result<Message, Fault> {
        message(WALLET.parse().unwrap(), &call)
    }

    /// FRC-0042: the first four bytes of blake2b-512 of `1|Name` that are 2^24 or more.
    #[test]
    fn the_number_of_the_settling_method_is_the_hash_of_its_name() {
        let digest = crate::types::address::blake2b::<64>(&[b"1|SettleDealPayments"]);
        let words = digest.chunks(4).map(|w| u64::from(u32::from_be_bytes(w.try_into().unwrap())));
        assert_eq!(words.into_iter().find(|word| *word >= 1 << 24), Some(SETTLE_DEAL_PAYMENTS));
    }

    #[test]
    fn each_call_is_its_message() {
        let hex = |bytes: &[u8]| data_encoding::HEXLOWER.encode(bytes);
        let withdraw = of(FundsCall::Withdraw(AttoFil::new(1_000))).unwrap();
        assert_eq!((withdraw.to, withdraw.method, withdraw.value), (Address::Id(5), 3, AttoFil::ZERO));
        // An array of two: 21 bytes of address, and 0x00 0x03e8.
        assert!(hex(&withdraw.params).starts_with("825501") && hex(&withdraw.params).ends_with("430003e8"));
        let settle = of(FundsCall::Settle(vec![0])).unwrap();
        assert_eq!((settle.method, hex(&settle.params)), (SETTLE_DEAL_PAYMENTS, "410c".into()));
        let send = of(FundsCall::Send { to: "t01000".into(), amount: AttoFil::new(5) }).unwrap();
        assert_eq!((send.to, send.method, send.value), (Address::Id(1000), 0, AttoFil::new(5)));
        for bad in [
            FundsCall::Send { to: "f1nonsense".into(), amount: AttoFil::new(5) },
            FundsCall::Settle(vec![]),
            FundsCall::Settle(vec![1; MAX_SETTLED + 1]),
        ] {
            assert!(of(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
