//! The providers of one pass: who is known, what each asks for, and who gets the next replica.
//!
//! An ask is asked for once a pass, of those alone that would be taken at any price; what a provider said a moment ago
//! holds that long. Dealer and plan choose by the same roster, so the plan is what is done.

use floe_core::cold::{ChainProvider, Contact};
use floe_core::place::{Ask, Candidate, Need, Placement, Unfit, choose, screen};
use floe_core::standing::Outcome;
use floe_core::{ActorId, Epoch};
use floe_records::Error;
use floe_records::cold::ProviderRow;
use futures::{StreamExt as _, stream};

use super::deals::{Deals, in_words};
use crate::limits;

/// See the module.
pub(crate) struct Roster {
    entries: Vec<Entry>,
}

struct Entry {
    row: ProviderRow,
    chain: ChainProvider,
    ask: Option<Ask>,
    is_asked: bool,
}

/// Who gets a replica, and all that is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) placement: Placement,
    pub(crate) ask: Ask,
    pub(crate) chain: ChainProvider,
}

impl Roster {
    /// All providers whose owner the chain says.
    pub(crate) async fn load(d: &Deals) -> Result<Self, Error> {
        let mut entries = Vec::new();
        for row in d.records.providers().await? {
            match chain_of(d, &row).await? {
                Some(chain) => entries.push(Entry { row, chain, ask: None, is_asked: false }),
                None => tracing::debug!(provider = %row.id, "the chain knows nothing of this provider"),
            }
        }
        Ok(Self { entries })
    }

    /// Who of the policy's providers is first, with an ask that is fresh.
    ///
    /// # Errors
    /// The outer ones are the rows'; the inner says why each does not fit.
    pub(crate) async fn choose(
        &mut self,
        d: &Deals,
        need: &Need<'_>,
    ) -> Result<Result<Choice, Vec<(ActorId, Unfit)>>, Error> {
        self.ask(d, need).await?;
        let candidates: Vec<Candidate> = self.entries.iter().map(|entry| entry.candidate(need)).collect();
        let placement = match choose(need, &candidates) {
            Ok(placement) => placement,
            Err(unfit) => return Ok(Err(unfit)),
        };
        let chosen = self.entries.iter().find(|entry| entry.row.id == placement.provider);
        let chosen =
            chosen.and_then(|entry| Some(Choice { placement, ask: entry.ask?, chain: entry.chain.clone() }));
        Ok(chosen.ok_or_else(Vec::new))
    }

    /// Asks those that would be taken at any price, and were not asked in this pass.
    async fn ask(&mut self, d: &Deals, need: &Need<'_>) -> Result<(), Error> {
        let wanted: Vec<(usize, ActorId, Contact)> = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| !entry.is_asked && screen(need, &entry.candidate(need)).is_ok())
            .map(|(n, entry)| (n, entry.row.id, entry.row.contact()))
            .collect();
        let asked: Vec<(usize, Option<Ask>)> = stream::iter(wanted)
            .map(|(n, id, contact)| async move { (n, ask_of(d, id, &contact, need.now).await) })
            .buffer_unordered(limits::ASKS_AT_ONCE)
            .collect()
            .await;
        for (n, ask) in asked {
            (self.entries[n].ask, self.entries[n].is_asked) = (ask, true);
        }
        Ok(())
    }
}

impl Entry {
    fn candidate(&self, need: &Need<'_>) -> Candidate {
        // A piece that no sector holds is too large for it, whatever its ask says.
        let fits = need.size.bytes() <= self.chain.sector_bytes;
        let sector = floe_core::PaddedSize::from_bytes(self.chain.sector_bytes);
        let ask = self.ask.map(|ask| match sector {
            Some(sector) if !fits => Ask { max_size: ask.max_size.min(sector), ..ask },
            _ => ask,
        });
        Candidate {
            provider: self.row.id,
            owner: self.chain.owner,
            regions: self.row.regions.clone(),
            ask,
            score: self.row.standing.score,
            is_suspended: self.row.suspended.is_some(),
            rests_until: self.row.standing.rests_until,
        }
    }
}

/// The ask of a provider: what it said a moment ago, or what it says now. `None` where it says none.
pub(crate) async fn ask_of(d: &Deals, id: ActorId, contact: &Contact, now: Epoch) -> Option<Ask> {
    if let Ok(ProviderRow { ask: Some((ask, at)), .. }) = d.records.provider(id).await {
        let age = d.now().since(at);
        if age <= limits::ASK_FRESH && now < ask.expires && at <= d.now() {
            return Some(ask);
        }
    }
    let noted = match d.market.ask(contact).await {
        Ok(ask) => {
            let noted = d.records.note_ask(id, ask).await;
            return noted.map_or_else(|_| None, |()| Some(ask));
        }
        Err(fault) => {
            tracing::info!(provider = %id, error = %fault, "a provider gives no ask: {}", in_words(&fault));
            d.records.note_outcome(id, Outcome::Unreachable, now, Some(fault)).await
        }
    };
    if let Err(error) = noted {
        tracing::warn!(provider = %id, %error, "what a provider did could not be noted");
    }
    None
}

/// What the chain says of a provider; looked up again now and then. A node that is away leaves what was known.
async fn chain_of(d: &Deals, row: &ProviderRow) -> Result<Option<ChainProvider>, Error> {
    if let Some((chain, at)) = &row.chain
        && d.now().since(*at) <= limits::CHAIN_INFO_FRESH
    {
        return Ok(Some(chain.clone()));
    }
    match d.chain.provider(row.id).await {
        Ok(Some(chain)) => {
            d.records.note_chain(row.id, &chain).await?;
            Ok(Some(chain))
        }
        Ok(None) => Ok(None),
        Err(fault) => {
            tracing::warn!(provider = %row.id, error = %fault, "the chain was not asked: {}", in_words(&fault));
            Ok(row.chain.as_ref().map(|(chain, _)| chain.clone()))
        }
    }
}
