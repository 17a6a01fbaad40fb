//! The state of the chain at one tipset: actors, their balances, and the rules of sending.
//!
//! A [`State`] is a handful of shared maps: a copy costs five counters, and only a map that a message changes is
//! copied. That is what makes it cheap to keep the state of every tipset, and a reorg a matter of looking up.
//!
//! attoFIL is never made nor lost: what gas costs goes to f099, what is slashed too, and the tests add it all up.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::wire::Cid;

use super::market::{self, Market};
use super::miner::{self, Miner};
use crate::limits::ACCOUNTS;
use crate::wire::address::Address;
use crate::wire::chain_cid;
use crate::wire::message::Message;

/// Where fees and penalties go.
pub(crate) const BURNT: u64 = 99;
/// The market actor.
pub(crate) const MARKET: u64 = 5;
/// attoFIL that a unit of gas costs at least. The model's base fee stays there, unless a test moves it.
pub(crate) const BASE_FEE: i128 = 100;

/// What an actor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its key address.
    Account(Address),
    Miner,
    /// One of the protocol's own.
    System(&'static str),
}

impl Kind {
    /// As Lotus names the code.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Account(Address::Eth(_)) => "ethaccount",
            Self::Account(_) => "account",
            Self::Miner => "storageminer",
            Self::System(name) => name,
        }
    }

    /// A CID for the code: stable, and the model's own.
    pub(crate) fn code(self) -> Cid {
        chain_cid(self.name().as_bytes())
    }
}

/// An actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Actor {
    pub(crate) kind: Kind,
    pub(crate) nonce: u64,
    /// attoFIL.
    pub(crate) balance: i128,
}

/// The state at one tipset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) actors: Arc<BTreeMap<u64, Actor>>,
    /// Key addresses that have an id.
    pub(crate) ids: Arc<BTreeMap<Address, u64>>,
    pub(crate) market: Arc<Market>,
    pub(crate) miners: Arc<BTreeMap<u64, Arc<Miner>>>,
    pub(crate) next_id: u64,
}

/// Why a message failed: an exit code of the VM or of an actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: i64,
    pub(crate) why: String,
}

/// The exit codes that the model knows, by the names of the actors' library.
pub(crate) mod exit {
    /// SysErrInsufficientFunds.
    pub(crate) const SYS_INSUFFICIENT_FUNDS: i64 = 6;
    /// SysErrInvalidReceiver.
    pub(crate) const SYS_INVALID_RECEIVER: i64 = 2;
    /// SysErrOutOfGas.
    pub(crate) const SYS_OUT_OF_GAS: i64 = 7;
    pub(crate) const ILLEGAL_ARGUMENT: i64 = 16;
    pub(crate) const NOT_FOUND: i64 = 17;
    pub(crate) const FORBIDDEN: i64 = 18;
    pub(crate) const UNHANDLED_MESSAGE: i64 = 22;
    /// The deal has expired, or was terminated, and is gone.
    pub(crate) const DEAL_EXPIRED: i64 = 32;
    /// The deal is published and not active.
    pub(crate) const DEAL_NOT_ACTIVATED: i64 = 33;
}

/// Shorthand for an [`Exit`].
pub(crate) fn abort<T>(code: i64, why: impl Into<String>) -> Result<T, Exit> {
    Err(Exit { code, why: why.into() })
}

/// One of f05's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DealEvent {
    pub(crate) kind: &'static str,
    pub(crate) deal: u64,
    pub(crate) client: u64,
    pub(crate) provider: u64,
}

/// What a message left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) exit_code: i64,
    pub(crate) why: String,
    pub(crate) ret: Vec<u8>,
    pub(crate) gas_used: i64,
    pub(crate) events: Vec<DealEvent>,
}

/// What stays the same over the life of a chain and actors want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Shortest deal, in epochs.
    pub(crate) min_duration: i64,
    /// Longest deal, in epochs.
    pub(crate) max_duration: i64,
    /// Epochs after StartEpoch at which the market's cron looks at a deal.
    pub(crate) unlock_delay: i64,
    /// Least provider collateral for a GiB, in attoFIL.
    pub(crate) collateral_per_gib: i128,
}

impl Rules {
    /// The chain's own minimum. What a node tells is a tenth more.
    pub(crate) fn min_collateral(&self, padded: u64) -> i128 {
        i128::from(padded).saturating_mul(self.collateral_per_gib) >> 30
    }
}

impl State {
    /// The id of an address, if it has one.
    pub(crate) fn id(&self, address: Address) -> Option<u64> {
        match address {
            Address::Id(id) => self.actors.contains_key(&id).then_some(id),
            key => self.ids.get(&key).copied(),
        }
    }

    pub(crate) fn actor(&self, address: Address) -> Option<&Actor> {
        self.actors.get(&self.id(address)?)
    }

    /// The key address behind an address.
    pub(crate) fn key(&self, address: Address) -> Option<Address> {
        match self.actor(address)?.kind {
            Kind::Account(key) => Some(key),
            _ => None,
        }
    }

    pub(crate) fn balance(&self, address: Address) -> i128 {
        self.actor(address).map_or(0, |actor| actor.balance)
    }

    /// All attoFIL there are.
    #[cfg(test)]
    pub(crate) fn supply(&self) -> i128 {
        self.actors.values().map(|actor| actor.balance).sum()
    }

    /// Makes an actor with the id; genesis only.
    pub(crate) fn install(&mut self, id: u64, kind: Kind, balance: i128) {
        if let Kind::Account(key) = kind {
            Arc::make_mut(&mut self.ids).insert(key, id);
        }
        Arc::make_mut(&mut self.actors).insert(id, Actor { kind, nonce: 0, balance });
        self.next_id = self.next_id.max(id + 1);
    }

    pub(crate) fn miner(&self, id: u64) -> Option<&Miner> {
        self.miners.get(&id).map(Arc::as_ref)
    }

    pub(crate) fn miner_mut(&mut self, id: u64) -> Option<&mut Miner> {
        Arc::make_mut(&mut self.miners).get_mut(&id).map(Arc::make_mut)
    }

    /// Moves attoFIL between two actors that exist.
    pub(crate) fn transfer(&mut self, from: u64, to: u64, amount: i128) -> Result<(), Exit> {
        let have = self.actors.get(&from).map_or(0, |actor| actor.balance);
        if amount < 0 || amount > have {
            let why = format!(
                "sender does not have funds to transfer (balance {}, transfer {})",
                fil(have),
                fil(amount)
            );
            return abort(exit::SYS_INSUFFICIENT_FUNDS, why);
        }
        let actors = Arc::make_mut(&mut self.actors);
        for (id, change) in [(from, -amount), (to, amount)] {
            if let Some(actor) = actors.get_mut(&id) {
                actor.balance += change;
            }
        }
        Ok(())
    }

    /// The id of a receiver; an account is made for a key address that has none.
    fn receiver(&mut self, to: Address) -> Result<u64, Exit> {
        if let Some(id) = self.id(to) {
            return Ok(id);
        }
        let known = matches!(to, Address::Secp(_) | Address::Bls(_) | Address::Eth(_));
        if !known || self.actors.len() >= ACCOUNTS {
            return abort(exit::SYS_INVALID_RECEIVER, format!("no actor {to}"));
        }
        let id = self.next_id;
        self.install(id, Kind::Account(to), 0);
        Ok(id)
    }

    /// Applies a message that a tipset of `epoch` includes. Gas is paid and the nonce counted in any case.
    pub(crate) fn apply(&mut self, rules: &Rules, message: &Message, epoch: i64, base_fee: i128) -> Receipt {
        let gas_used = gas(message);
        if let Some(sender) = self.id(message.from) {
            let price = message.gas_fee_cap.min(base_fee.saturating_add(message.gas_premium));
            let fee = price.saturating_mul(gas_used.into()).min(self.balance(message.from));
            // The fee is no more than the balance.
            let _ = self.transfer(sender, BURNT, fee);
            if let Some(actor) = Arc::make_mut(&mut self.actors).get_mut(&sender) {
                actor.nonce += 1;
            }
        }
        if message.gas_limit < gas_used {
            return Receipt {
                exit_code: exit::SYS_OUT_OF_GAS,
                why: format!("gas limit {} is under {gas_used}", message.gas_limit),
                ret: Vec::new(),
                gas_used,
                events: Vec::new(),
            };
        }
        self.call(rules, message, epoch, gas_used)
    }

    /// What the message would do, and does to this copy, without gas and nonce.
    pub(crate) fn call(&mut self, rules: &Rules, message: &Message, epoch: i64, gas_used: i64) -> Receipt {
        let before = self.clone();
        let mut events = Vec::new();
        match self.invoke(rules, message, epoch, &mut events) {
            Ok(ret) => Receipt { exit_code: 0, why: String::new(), ret, gas_used, events },
            Err(failed) => {
                *self = before;
                Receipt {
                    exit_code: failed.code,
                    why: failed.why,
                    ret: Vec::new(),
                    gas_used,
                    events: Vec::new(),
                }
            }
        }
    }

    fn invoke(
        &mut self,
        rules: &Rules,
        message: &Message,
        epoch: i64,
        events: &mut Vec<DealEvent>,
    ) -> Result<Vec<u8>, Exit> {
        let Some(from) = self.id(message.from) else {
            return abort(exit::SYS_INVALID_RECEIVER, format!("no actor {}", message.from));
        };
        let to = self.receiver(message.to)?;
        self.transfer(from, to, message.value)?;
        if message.method == 0 {
            return Ok(Vec::new());
        }
        let mut call = Call { state: self, rules, epoch, from, value: message.value, events };
        if to == MARKET {
            return market::invoke(&mut call, message.method, &message.params);
        }
        if call.state.miners.contains_key(&to) {
            return miner::invoke(&mut call, to, message.method, &message.params);
        }
        abort(exit::UNHANDLED_MESSAGE, format!("invalid method: {}", message.method))
    }

    /// What happens at the end of an epoch without anybody asking.
    pub(crate) fn cron(&mut self, epoch: i64) {
        if self.market.due.range(..=epoch).next().is_some() {
            market::cron(self, epoch);
        }
    }
}

/// What an actor's method works with.
pub(crate) struct Call<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) rules: &'a Rules,
    pub(crate) epoch: i64,
    /// The sender's id.
    pub(crate) from: u64,
    pub(crate) value: i128,
    pub(crate) events: &'a mut Vec<DealEvent>,
}

impl Call<'_> {
    pub(crate) fn emit(&mut self, kind: &'static str, deal: u64, client: u64, provider: u64) {
        self.events.push(DealEvent { kind, deal, client, provider });
    }
}

/// Gas of a message: near what was recorded of a real node for sends, escrow and publications.
pub(crate) fn gas(message: &Message) -> i64 {
    let bytes = i64::try_from(message.params.len()).unwrap_or(i64::MAX / 1_000_000);
    match message.method {
        0 => 1_256_163,
        2 | 3 => 4_699_013,
        _ => 20_000_000 + 60_000 * bytes,
    }
}

/// attoFIL as the VM prints it.
fn fil(atto: i128) -> String {
    const FIL: i128 = 1_000_000_000_000_000_000;
    let text = format!("{}.{:018}", atto / FIL, (atto % FIL).abs());
    let trimmed = text.trim_end_matches('0');
    if trimmed.ends_with('.') { format!("{trimmed}0") } else { trimmed.to_owned() }
}
