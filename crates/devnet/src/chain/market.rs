//! f05: escrow, publication, activation, expiry, settlement, termination.
//!
//! ```text
//!  AddBalance ──> escrow ──PublishStorageDeals──> locked ──┬─ activated, SettleDealPayments ──> the provider's escrow
//!                   ^                                      ├─ ended and settled ─────────────> unlocked, deal gone
//!                   │                                      ├─ never activated: the cron or a settlement, some time
//!              WithdrawBalance                             │  after StartEpoch ──────────────> unlocked, deal gone
//!                                                          └─ terminated ─> paid up to now, the rest unlocked, gone
//! ```
//!
//! As since network version 22: a terminated deal is deleted and leaves only an event; nobody is paid until somebody
//! settles; what was never activated stays locked until the cron comes by. Stored proposals name ids, and so does
//! the key of the pending ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::wire::Cid;

use super::state::{BURNT, Call, Exit, MARKET, State, abort, exit};
use crate::limits::CHAIN_DEALS;
use crate::wire::address::Address;
use crate::wire::cbor::{Cbor, decode};
use crate::wire::commp;
use crate::wire::deal::{ClientDealProposal, Proposal, read_publish_params};
use crate::wire::message::read_address_param;
use crate::wire::{Malformed, rle};

/// Escrow of the address in the parameters grows by the value sent.
pub(crate) const ADD_BALANCE: u64 = 2;
/// `[address, amount]`, answers the amount.
pub(crate) const WITHDRAW_BALANCE: u64 = 3;
/// Proposals with signatures, answers ids and which were valid.
pub(crate) const PUBLISH_STORAGE_DEALS: u64 = 4;
/// A bit field of deal ids; the method's number is the hash of its name (FRC-0042).
pub(crate) const SETTLE_DEAL_PAYMENTS: u64 = 1_900_091_594;
/// A deal id; see [`SETTLE_DEAL_PAYMENTS`].
pub(crate) const GET_DEAL_ACTIVATION: u64 = 2_567_238_399;

/// What somebody has at the market, in attoFIL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) escrow: i128,
    pub(crate) locked: i128,
}

/// A published deal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deal {
    /// With ids for client and provider.
    pub(crate) proposal: Proposal,
    pub(crate) client: u64,
    pub(crate) provider: u64,
    pub(crate) sector: u64,
    /// -1 until it is active.
    pub(crate) sector_start: i64,
    /// -1 until it is settled once.
    pub(crate) last_updated: i64,
    /// attoFIL paid to the provider.
    pub(crate) paid: i128,
}

/// The state of f05.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Market {
    pub(crate) balances: BTreeMap<u64, Balance>,
    pub(crate) deals: BTreeMap<u64, Arc<Deal>>,
    pub(crate) pending: BTreeSet<Cid>,
    pub(crate) next: u64,
    /// When the cron looks at which deals.
    pub(crate) due: BTreeMap<i64, Vec<u64>>,
    /// attoFIL that deals which are gone have cost, by client: for those who check bills.
    pub(crate) paid: BTreeMap<u64, i128>,
}

impl Market {
    pub(crate) fn balance(&self, id: u64) -> Balance {
        self.balances.get(&id).copied().unwrap_or_default()
    }

    fn balance_mut(&mut self, id: u64) -> &mut Balance {
        self.balances.entry(id).or_default()
    }

    /// The two locks of a deal, from its terms.
    fn unlock(&mut self, deal: &Deal, client: i128, provider: i128) {
        self.balance_mut(deal.client).locked -= client;
        self.balance_mut(deal.provider).locked -= provider;
    }

    fn remove(&mut self, id: u64) {
        if let Some(deal) = self.deals.remove(&id) {
            self.pending.remove(&deal.proposal.cid());
            *self.paid.entry(deal.client).or_default() += deal.paid;
        }
    }
}

/// One of the methods above.
pub(crate) fn invoke(call: &mut Call<'_>, method: u64, params: &[u8]) -> Result<Vec<u8>, Exit> {
    match method {
        ADD_BALANCE => add_balance(call, params),
        WITHDRAW_BALANCE => withdraw(call, params),
        PUBLISH_STORAGE_DEALS => publish(call, params),
        SETTLE_DEAL_PAYMENTS => settle(call, params),
        GET_DEAL_ACTIVATION => activation(call, params),
        _ => abort(exit::UNHANDLED_MESSAGE, format!("invalid method: {method}")),
    }
}

fn illegal(why: Malformed) -> Exit {
    Exit { code: exit::ILLEGAL_ARGUMENT, why: why.0 }
}

fn add_balance(call: &mut Call<'_>, params: &[u8]) -> Result<Vec<u8>, Exit> {
    let address = read_address_param(params).map_err(illegal)?;
    let Some(id) = call.state.id(address) else {
        return abort(exit::ILLEGAL_ARGUMENT, format!("no actor {address}"));
    };
    if call.value <= 0 {
        return abort(exit::ILLEGAL_ARGUMENT, "balance to add must be greater than zero");
    }
    Arc::make_mut(&mut call.state.market).balance_mut(id).escrow += call.value;
    Ok(Vec::new())
}

fn withdraw(call: &mut Call<'_>, params: &[u8]) -> Result<Vec<u8>, Exit> {
    let item = decode(params).map_err(illegal)?;
    let [address, amount] = item.as_tuple::<2>("WithdrawBalanceParams").map_err(illegal)?;
    let address = Address::from_bytes(address.as_bytes("address").map_err(illegal)?).map_err(illegal)?;
    let amount = amount.as_amount("amount").map_err(illegal)?;
    let id = call.state.id(address).filter(|_| amount >= 0);
    let Some(id) = id else { return abort(exit::ILLEGAL_ARGUMENT, "no such balance") };
    let (allowed, receiver) = match call.state.miner(id) {
        Some(miner) => (miner.owner == call.from || miner.worker == call.from, miner.owner),
        None => (id == call.from, id),
    };
    if !allowed {
        return abort(exit::FORBIDDEN, "caller is not the owner of the balance");
    }
    let have = call.state.market.balance(id);
    let given = amount.min(have.escrow - have.locked);
    Arc::make_mut(&mut call.state.market).balance_mut(id).escrow -= given;
    call.state.transfer(MARKET, receiver, given)?;
    Ok(Cbor::amount(given).encode())
}

fn publish(call: &mut Call<'_>, params: &[u8]) -> Result<Vec<u8>, Exit> {
    let deals = read_publish_params(params).map_err(illegal)?;
    let Some(first) = deals.first() else {
        return abort(exit::ILLEGAL_ARGUMENT, "empty deals parameter");
    };
    let provider = call.state.id(first.proposal.provider);
    let Some((provider, miner)) = provider.and_then(|id| Some((id, call.state.miner(id)?))) else {
        return abort(exit::ILLEGAL_ARGUMENT, "deal provider is not a storage miner actor");
    };
    if miner.worker != call.from {
        return abort(exit::FORBIDDEN, format!("caller f0{} is not worker of the provider", call.from));
    }
    let (mut ids, mut valid) = (Vec::new(), Vec::new());
    let mut last = String::new();
    for deal in &deals {
        match publish_one(call, provider, deal) {
            Ok(id) => {
                ids.push(Cbor::Unsigned(id));
                valid.push(true);
            }
            Err(why) => {
                valid.push(false);
                last = why;
            }
        }
    }
    if ids.is_empty() {
        return abort(exit::ILLEGAL_ARGUMENT, format!("all deal proposals invalid: {last}"));
    }
    Ok(Cbor::Array(vec![Cbor::Array(ids), Cbor::Bytes(rle::encode(&valid))]).encode())
}

fn publish_one(call: &mut Call<'_>, provider: u64, signed: &ClientDealProposal) -> Result<u64, String> {
    check(call, provider, signed)?;
    let client = call.state.id(signed.proposal.client).ok_or("no client actor")?;
    let mut proposal = signed.proposal.clone();
    proposal.client = Address::Id(client);
    proposal.provider = Address::Id(provider);
    let cid = proposal.cid();
    if call.state.market.pending.contains(&cid) {
        return Err("cannot publish duplicate deals".into());
    }
    let (ours, theirs) = (proposal.client_requirement(), proposal.provider_collateral);
    for (id, needed) in [(client, ours), (provider, theirs)] {
        let have = call.state.market.balance(id);
        if have.escrow - have.locked < needed {
            return Err(format!(
                "insufficient funds of f0{id}: {} free, {needed} needed",
                have.escrow - have.locked
            ));
        }
    }
    let unlock_at = proposal.start.saturating_add(call.rules.unlock_delay);
    let market = Arc::make_mut(&mut call.state.market);
    market.balance_mut(client).locked += ours;
    market.balance_mut(provider).locked += theirs;
    let id = market.next;
    market.next += 1;
    market.pending.insert(cid);
    market.due.entry(unlock_at).or_default().push(id);
    let deal = Deal { proposal, client, provider, sector: 0, sector_start: -1, last_updated: -1, paid: 0 };
    market.deals.insert(id, Arc::new(deal));
    call.emit("deal-published", id, client, provider);
    Ok(id)
}

/// The market's own checks: whoever publishes what fails one pays gas for nothing.
fn check(call: &Call<'_>, provider: u64, signed: &ClientDealProposal) -> Result<(), String> {
    let (deal, rules) = (&signed.proposal, call.rules);
    let key = call.state.key(deal.client).ok_or("client is no account")?;
    signed.signature.verify(key, &deal.to_cbor().encode()).map_err(|why| why.0)?;
    let within = |ok: bool, why: &str| if ok { Ok(()) } else { Err(why.to_owned()) };
    within(call.state.id(deal.provider) == Some(provider), "cannot publish deals from multiple providers")?;
    within(deal.label.len() <= 256, "deal label is too long")?;
    within(deal.piece_size.is_power_of_two() && deal.piece_size >= 128, "proposal piece size is invalid")?;
    within(commp::root_of(&deal.piece_cid).is_some(), "proposal PieceCID undefined")?;
    within(deal.end > deal.start, "proposal end before start")?;
    within(call.epoch <= deal.start, "deal start epoch has already elapsed")?;
    let duration = deal.duration();
    within((rules.min_duration..=rules.max_duration).contains(&duration), "deal duration out of bounds")?;
    within(deal.end <= call.epoch.saturating_add(rules.max_duration), "deal ends too far in the future")?;
    within(deal.price_per_epoch >= 0 && deal.client_collateral >= 0, "amounts are negative")?;
    within(
        deal.provider_collateral >= rules.min_collateral(deal.piece_size),
        "provider collateral out of bounds",
    )?;
    within(!deal.verified, "client is not a verified client")?;
    within(call.state.market.deals.len() < CHAIN_DEALS, "the model holds no more deals")
}

/// Checks that the miner may put the deal into a sector now, and says when the deal ends.
pub(crate) fn activatable(call: &Call<'_>, miner: u64, id: u64) -> Result<i64, Exit> {
    let Some(deal) = call.state.market.deals.get(&id) else {
        return abort(exit::NOT_FOUND, format!("no such deal {id}"));
    };
    if deal.provider != miner {
        return abort(exit::FORBIDDEN, format!("deal {id} is not of f0{miner}"));
    }
    if deal.sector_start >= 0 {
        return abort(exit::ILLEGAL_ARGUMENT, format!("deal {id} already activated"));
    }
    if call.epoch > deal.proposal.start {
        return abort(
            exit::ILLEGAL_ARGUMENT,
            format!("proposal start epoch of deal {id} has already elapsed"),
        );
    }
    Ok(deal.proposal.end)
}

fn deal_mut(state: &mut State, id: u64) -> Option<&mut Deal> {
    Arc::make_mut(&mut state.market).deals.get_mut(&id).map(Arc::make_mut)
}

/// The deal is in a sector from now on. [`activatable`] said that it may.
pub(crate) fn activate(call: &mut Call<'_>, id: u64, sector: u64) {
    let epoch = call.epoch;
    let Some(deal) = deal_mut(call.state, id) else { return };
    deal.sector = sector;
    deal.sector_start = epoch;
    let (client, provider) = (deal.client, deal.provider);
    call.emit("deal-activated", id, client, provider);
}

/// What is owed for the epochs up to now, and since when it is counted from now on.
fn owed(deal: &Deal, epoch: i64) -> i128 {
    let from = deal.proposal.start.max(deal.last_updated);
    let to = epoch.min(deal.proposal.end);
    deal.proposal.price_per_epoch.saturating_mul((to - from).max(0).into())
}

/// Pays the provider from what the client has locked.
fn pay(state: &mut State, id: u64, epoch: i64) -> i128 {
    let Some(deal) = deal_mut(state, id) else { return 0 };
    let amount = owed(deal, epoch);
    deal.last_updated = epoch.max(deal.last_updated);
    deal.paid += amount;
    let (client, provider) = (deal.client, deal.provider);
    let market = Arc::make_mut(&mut state.market);
    let from = market.balance_mut(client);
    from.escrow -= amount;
    from.locked -= amount;
    market.balance_mut(provider).escrow += amount;
    amount
}

/// What of the fee is locked still.
fn remaining(deal: &Deal) -> i128 {
    deal.proposal.client_requirement() - deal.paid
}

/// The sector of the deal was ended by its miner: the deal is deleted, what is left goes back to the client, the
/// provider's collateral is burnt.
pub(crate) fn terminate(call: &mut Call<'_>, id: u64) -> Result<(), Exit> {
    let Some(deal) = call.state.market.deals.get(&id).cloned() else { return Ok(()) };
    if call.epoch >= deal.proposal.end {
        return Ok(());
    }
    pay(call.state, id, call.epoch);
    slash(call.state, id)?;
    call.emit("deal-terminated", id, deal.client, deal.provider);
    Ok(())
}

/// Unlocks what the client has left, burns the provider's collateral, deletes the deal.
fn slash(state: &mut State, id: u64) -> Result<(), Exit> {
    let Some(deal) = state.market.deals.get(&id).cloned() else { return Ok(()) };
    let collateral = deal.proposal.provider_collateral;
    let market = Arc::make_mut(&mut state.market);
    market.unlock(&deal, remaining(&deal), collateral);
    market.balance_mut(deal.provider).escrow -= collateral;
    market.remove(id);
    state.transfer(MARKET, BURNT, collateral)
}

fn settle(call: &mut Call<'_>, params: &[u8]) -> Result<Vec<u8>, Exit> {
    let item = decode(params).map_err(illegal)?;
    let bits = item.as_bytes("deal ids").map_err(illegal)?;
    let ids = rle::decode(bits, CHAIN_DEALS as u64).map_err(illegal)?;
    let (mut settled, mut failed) = (Vec::new(), Vec::new());
    for (index, id) in ids.into_iter().enumerate() {
        match settle_one(call, id)? {
            Ok((payment, completed)) => {
                settled.push(Cbor::Array(vec![Cbor::amount(payment), Cbor::Bool(completed)]));
            }
            Err(code) => failed.push(Cbor::Array(vec![Cbor::Unsigned(index as u64), Cbor::int(code)])),
        }
    }
    let batch = Cbor::Array(vec![Cbor::Unsigned(settled.len() as u64), Cbor::Array(failed)]);
    Ok(Cbor::Array(vec![batch, Cbor::Array(settled)]).encode())
}

/// The payment and whether the deal is over; or the exit code of this deal alone.
fn settle_one(call: &mut Call<'_>, id: u64) -> Result<Result<(i128, bool), i64>, Exit> {
    let Some(deal) = call.state.market.deals.get(&id).cloned() else {
        return Ok(Err(missing(&call.state.market, id)));
    };
    if deal.sector_start < 0 {
        if call.epoch <= deal.proposal.start {
            return Ok(Err(exit::DEAL_NOT_ACTIVATED));
        }
        slash(call.state, id)?;
        return Ok(Err(exit::DEAL_EXPIRED));
    }
    let payment = pay(call.state, id, call.epoch);
    let completed = call.epoch >= deal.proposal.end;
    if completed {
        complete(call.state, id);
        call.emit("deal-completed", id, deal.client, deal.provider);
    }
    Ok(Ok((payment, completed)))
}

fn complete(state: &mut State, id: u64) {
    let Some(deal) = state.market.deals.get(&id).cloned() else { return };
    let market = Arc::make_mut(&mut state.market);
    market.unlock(&deal, remaining(&deal), deal.proposal.provider_collateral);
    market.remove(id);
}

fn missing(market: &Market, id: u64) -> i64 {
    if id < market.next { exit::DEAL_EXPIRED } else { exit::NOT_FOUND }
}

fn activation(call: &mut Call<'_>, params: &[u8]) -> Result<Vec<u8>, Exit> {
    let id = decode(params).and_then(|item| item.as_u64("deal id")).map_err(illegal)?;
    match call.state.market.deals.get(&id) {
        None => abort(missing(&call.state.market, id), format!("deal {id} not found")),
        Some(deal) if deal.sector_start < 0 && call.epoch > deal.proposal.start => {
            abort(exit::DEAL_EXPIRED, format!("deal {id} expired"))
        }
        Some(deal) if deal.sector_start < 0 => {
            abort(exit::DEAL_NOT_ACTIVATED, format!("deal {id} not yet activated"))
        }
        Some(deal) => Ok(Cbor::Array(vec![Cbor::int(deal.sector_start), Cbor::int(-1)]).encode()),
    }
}

/// The cron's look at the deals that are due: what is not active is given up, what is active is pending no more.
pub(crate) fn cron(state: &mut State, epoch: i64) {
    let market = Arc::make_mut(&mut state.market);
    let later = market.due.split_off(&(epoch.saturating_add(1)));
    let due = std::mem::replace(&mut market.due, later);
    for id in due.into_values().flatten() {
        let Some(deal) = state.market.deals.get(&id).cloned() else { continue };
        if deal.sector_start < 0 {
            // f05 holds the collateral of every deal it knows.
            let _ = slash(state, id);
        } else {
            Arc::make_mut(&mut state.market).pending.remove(&deal.proposal.cid());
        }
    }
}

#[cfg(test)]
mod tests {
    /// FRC-0042: the first four bytes, big endian, of blake2b-512 of `1|Name`, the next four where they are under 2^24.
    fn method(name: &str) -> u64 {
        let digest = blake2b_simd::Params::new().hash_length(64).hash(format!("1|{name}").as_bytes());
        let words = digest.as_bytes().chunks(4).map(|w| u32::from_be_bytes(w.try_into().unwrap()));
        words.map(u64::from).find(|word| *word >= 1 << 24).unwrap()
    }

    #[test]
    fn method_numbers_are_the_hashes_of_their_names() {
        assert_eq!(super::SETTLE_DEAL_PAYMENTS, method("SettleDealPayments"));
        assert_eq!(super::GET_DEAL_ACTIVATION, method("GetDealActivation"));
    }
}
