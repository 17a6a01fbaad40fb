//! The message pool: who may wait, in Lotus' words, and who comes next.

use std::collections::BTreeMap;

use thiserror::Error;

use super::state::{BASE_FEE, State};
use crate::limits::{MESSAGE_BYTES, POOL_MESSAGES, POOL_MESSAGES_OF_ONE, TIPSET_MESSAGES};
use crate::wire::address::Address;
use crate::wire::message::SignedMessage;

/// All attoFIL that will ever be.
const TOTAL: i128 = 2_000_000_000 * 1_000_000_000_000_000_000;

/// A refusal, worded as Lotus words it: clients have nothing else to tell them apart.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct Refused(pub(crate) String);

/// Messages that wait, by sender (its key address) and nonce.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    waiting: BTreeMap<Address, BTreeMap<u64, SignedMessage>>,
}

impl Pool {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &SignedMessage> {
        self.waiting.values().flat_map(BTreeMap::values)
    }

    fn len(&self) -> usize {
        self.waiting.values().map(BTreeMap::len).sum()
    }

    /// The nonce that follows what is on the chain and what waits.
    pub(crate) fn nonce(&self, state: &State, from: Address) -> Result<u64, Refused> {
        let Some(actor) = state.actor(from) else {
            return Err(Refused(format!(
                "resolution lookup failed ({from}): resolve address {from}: actor not found"
            )));
        };
        let waiting = state.key(from).and_then(|key| self.waiting.get(&key));
        let last = waiting.and_then(|all| all.last_key_value()).map(|(nonce, _)| nonce + 1);
        Ok(last.unwrap_or(0).max(actor.nonce))
    }

    /// Takes a message, or says why not.
    pub(crate) fn add(&mut self, state: &State, signed: SignedMessage) -> Result<(), Refused> {
        let refuse = |why: String| Err(Refused(why));
        let message = &signed.message;
        let size = message.encode().len() + signed.signature.data.len();
        if size > MESSAGE_BYTES {
            return refuse(format!("mpool message too large ({size}B): message too big"));
        }
        if message.version != 0 || message.value < 0 || message.gas_limit <= 0 {
            return refuse("mpool validation failure: message is not valid for block inclusion".into());
        }
        if message.value > TOTAL {
            return refuse("cannot send more filecoin than will ever exist".into());
        }
        if message.gas_fee_cap < BASE_FEE || message.gas_premium > message.gas_fee_cap {
            return refuse(format!(
                "gas fee cap {} is under {BASE_FEE} or under the premium: gas fee cap too low",
                message.gas_fee_cap
            ));
        }
        let Some(key) = state.key(message.from) else {
            return refuse(format!(
                "resolution lookup failed ({0}): resolve address {0}: actor not found",
                message.from
            ));
        };
        let cid = message.cid();
        if let Err(why) = signed.signature.verify(key, &cid.to_bytes()) {
            return refuse(format!(
                "signature verification failed: failed to validate signature: invalid signature for message \
                 {cid} (type {}): {why}",
                signed.signature.kind
            ));
        }
        let expected = state.actor(message.from).map_or(0, |actor| actor.nonce);
        if message.nonce < expected {
            return refuse(format!(
                "minimum expected nonce is {expected}, got {}: message nonce too low",
                message.nonce
            ));
        }
        let (needed, have) = (message.required_funds() + message.value, state.balance(message.from));
        if have < needed {
            return refuse(format!(
                "mpool validation failure: not enough funds (required: {needed}, balance: {have}): not enough \
                 funds to execute transaction"
            ));
        }
        self.add_locked(key, signed)
    }

    fn add_locked(&mut self, key: Address, signed: SignedMessage) -> Result<(), Refused> {
        let full = self.len() >= POOL_MESSAGES;
        let waiting = self.waiting.entry(key).or_default();
        let (from, nonce) = (signed.message.from, signed.message.nonce);
        if let Some(other) = waiting.get(&nonce) {
            if *other == signed {
                return Err(Refused(format!(
                    "failed to add locked: message from {from} with nonce {nonce} already in mpool: message with \
                     nonce already exists"
                )));
            }
            let least = replacement(other.message.gas_premium);
            if signed.message.gas_premium < least {
                return Err(Refused(format!(
                    "failed to add locked: message from {from} with nonce {nonce} already in mpool, increase \
                     GasPremium to {least} from {} to trigger replace by fee: replace by fee has too low GasPremium",
                    other.message.gas_premium
                )));
            }
        } else if full || waiting.len() >= POOL_MESSAGES_OF_ONE {
            return Err(Refused(format!(
                "failed to add locked: too many pending messages for actor {from}: too many pending messages for \
                 actor"
            )));
        }
        waiting.insert(nonce, signed);
        Ok(())
    }

    /// Forgets what waits, as a node does that restarts without its pool.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
    }

    /// A message that a reorg took off the chain waits again, whatever the rules say.
    pub(crate) fn give_back(&mut self, state: &State, signed: SignedMessage) {
        if let Some(key) = state.key(signed.message.from) {
            self.waiting.entry(key).or_default().entry(signed.message.nonce).or_insert(signed);
        }
    }

    /// Takes the messages of the next tipset: of each sender those without a gap, and of the senders in the order of
    /// their addresses. What is too old to be included is dropped; what pays less than the base fee waits, and what stands
    /// behind it too.
    pub(crate) fn select(&mut self, state: &State, base_fee: i128) -> Vec<SignedMessage> {
        let mut chosen = Vec::new();
        for (key, waiting) in &mut self.waiting {
            let mut next = state.actor(*key).map_or(0, |actor| actor.nonce);
            *waiting = waiting.split_off(&next);
            while chosen.len() < TIPSET_MESSAGES {
                if waiting.get(&next).is_none_or(|signed| signed.message.gas_fee_cap < base_fee) {
                    break;
                }
                chosen.extend(waiting.remove(&next));
                next += 1;
            }
        }
        self.waiting.retain(|_, waiting| !waiting.is_empty());
        chosen
    }
}

/// The premium that replaces a message: a tenth more and one.
fn replacement(premium: i128) -> i128 {
    premium.saturating_mul(11) / 10 + 1
}
