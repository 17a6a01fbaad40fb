//! Miner actors, as far as deals need them: sectors that hold deals, become faulty, end.
//!
//! Proofs are not modelled. The numbers of the methods are the real ones, their parameters are the model's own:
//! only the devnet's providers send them, and no client reads them.

use std::collections::BTreeMap;

use super::market;
use super::state::{Call, Exit, abort, exit};
use crate::wire::cbor::{Cbor, decode};

/// Puts deals into a new sector: `[deal ids]`, answers `[sector]`.
pub(crate) const PROVE_COMMIT: u64 = 34;
/// Ends sectors: `[sectors]`.
pub(crate) const TERMINATE: u64 = 9;
/// Sectors whose proof is missing: `[sectors]`.
pub(crate) const DECLARE_FAULTS: u64 = 10;
/// Sectors that are proven again: `[sectors]`.
const RECOVER: u64 = 11;

/// Epochs that a sector lives on after the end of its deals.
const SECTOR_SLACK: i64 = 86_400;

/// A sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sector {
    pub(crate) activation: i64,
    pub(crate) expiration: i64,
    pub(crate) deals: Vec<u64>,
    pub(crate) faulty: bool,
}

/// A storage provider on the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Miner {
    /// Ids of accounts.
    pub(crate) owner: u64,
    /// See [`Miner::owner`].
    pub(crate) worker: u64,
    /// In base58.
    pub(crate) peer_id: Option<String>,
    pub(crate) multiaddrs: Vec<Vec<u8>>,
    pub(crate) sector_size: u64,
    pub(crate) sectors: BTreeMap<u64, Sector>,
    pub(crate) next_sector: u64,
}

impl Miner {
    /// Adds a sector and says its number.
    pub(crate) fn add_sector(&mut self, sector: Sector) -> u64 {
        let number = self.next_sector;
        self.next_sector += 1;
        self.sectors.insert(number, sector);
        number
    }

    /// Bytes that count: those of sectors that are not faulty.
    pub(crate) fn raw_power(&self) -> u64 {
        self.sectors.values().filter(|sector| !sector.faulty).count() as u64 * self.sector_size
    }

    /// Bit n is set when sector n is faulty.
    pub(crate) fn faults(&self) -> Vec<bool> {
        (0..self.next_sector).map(|n| self.sectors.get(&n).is_some_and(|sector| sector.faulty)).collect()
    }
}

/// One of the methods above. Only the miner's worker may call them.
pub(crate) fn invoke(call: &mut Call<'_>, miner: u64, method: u64, params: &[u8]) -> Result<Vec<u8>, Exit> {
    let worker = call.state.miner(miner).map(|miner| miner.worker);
    if worker != Some(call.from) {
        return abort(exit::FORBIDDEN, format!("caller f0{} is not the worker of f0{miner}", call.from));
    }
    let numbers = numbers(params)?;
    match method {
        PROVE_COMMIT => prove_commit(call, miner, &numbers),
        TERMINATE => terminate(call, miner, &numbers),
        DECLARE_FAULTS => set_faulty(call, miner, &numbers, true),
        RECOVER => set_faulty(call, miner, &numbers, false),
        _ => abort(exit::UNHANDLED_MESSAGE, format!("invalid method: {method}")),
    }
}

/// The parameters of the methods above.
pub(crate) fn params(numbers: &[u64]) -> Vec<u8> {
    Cbor::Array(numbers.iter().copied().map(Cbor::Unsigned).collect()).encode()
}

fn numbers(params: &[u8]) -> Result<Vec<u64>, Exit> {
    let bad = |why: crate::wire::Malformed| Exit { code: exit::ILLEGAL_ARGUMENT, why: why.0 };
    let item = decode(params).map_err(bad)?;
    item.as_array("params").and_then(|all| all.iter().map(|n| n.as_u64("number")).collect()).map_err(bad)
}

fn prove_commit(call: &mut Call<'_>, miner: u64, deals: &[u64]) -> Result<Vec<u8>, Exit> {
    let mut end = call.epoch;
    for id in deals {
        end = end.max(market::activatable(call, miner, *id)?);
    }
    let sector = Sector {
        activation: call.epoch,
        expiration: end.saturating_add(SECTOR_SLACK),
        deals: deals.to_vec(),
        faulty: false,
    };
    let Some(actor) = call.state.miner_mut(miner) else {
        return abort(exit::NOT_FOUND, format!("no miner f0{miner}"));
    };
    let number = actor.add_sector(sector);
    deals.iter().for_each(|id| market::activate(call, *id, number));
    Ok(Cbor::Array(vec![Cbor::Unsigned(number)]).encode())
}

fn terminate(call: &mut Call<'_>, miner: u64, sectors: &[u64]) -> Result<Vec<u8>, Exit> {
    for number in sectors {
        let removed = call.state.miner_mut(miner).and_then(|actor| actor.sectors.remove(number));
        let Some(sector) = removed else {
            return abort(exit::NOT_FOUND, format!("no sector {number}"));
        };
        for id in sector.deals {
            market::terminate(call, id)?;
        }
    }
    Ok(Vec::new())
}

fn set_faulty(call: &mut Call<'_>, miner: u64, sectors: &[u64], faulty: bool) -> Result<Vec<u8>, Exit> {
    for number in sectors {
        match call.state.miner_mut(miner).and_then(|actor| actor.sectors.get_mut(number)) {
            Some(sector) => sector.faulty = faulty,
            None => return abort(exit::NOT_FOUND, format!("no sector {number}")),
        }
    }
    Ok(Vec::new())
}
