//! What owners and operators see of the cold half, and the few things that they may say to it.
//!
//! Everything here reads rows, or writes one. Nothing signs and nothing sends: what was begun goes on by the workers, and
//! `retry` only lets them begin sooner.

use std::collections::BTreeMap;

use floe_core::cold::DealUuid;
use floe_core::{
    AccountId, ActorId, AggregateState, AttoFil, DealState, Epoch, PinStatus, RequestId, TokenId,
};
use floe_records::cold::{DealFilter, DealRow, PinCold, Sum};
use floe_records::{Error as RecordsError, PinRow};
use uuid::Uuid;

use crate::{Engine, Error, limits};

/// Whose deals somebody may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Viewer {
    /// All of them.
    Operator,
    /// Those for pins of this account.
    Account(AccountId),
}

impl Viewer {
    fn account(self) -> Option<AccountId> {
        match self {
            Self::Operator => None,
            Self::Account(account) => Some(account),
        }
    }
}

/// What deals are asked for. All conditions hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DealQuery {
    /// Of this pin.
    pub pin: Option<RequestId>,
    /// With this provider.
    pub provider: Option<ActorId>,
    /// In one of these states; empty: in any.
    pub states: Vec<DealState>,
    /// Older than this one.
    pub before: Option<DealUuid>,
    /// 1 to [`DEALS`].
    pub most: u32,
}

pub use crate::limits::DEALS_PER_PAGE as DEALS;

/// An attempt, and the pins that it is for, as far as they are the viewer's: also those that were removed since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenDeal {
    /// The attempt.
    pub deal: DealRow,
    /// Up to [`limits::PINS_PER_DEAL`].
    pub pins: Vec<RequestId>,
}

/// What `retry` did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Retried {
    /// Attempts whose provider may be asked again.
    pub forgiven: u64,
    /// Attempts that are sent, or asked after, at once: with the bytes that were signed.
    pub hurried: u64,
}

/// The cold half in `floe status`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ColdStatus {
    /// Aggregates by state.
    pub aggregates: BTreeMap<AggregateState, u64>,
    /// Deals by state, those that were refused among the failed.
    pub deals: BTreeMap<&'static str, u64>,
    /// The highest head that was seen.
    pub head: Option<Epoch>,
    /// Whether deals may be made, as far as configuration and switch say.
    pub spending: bool,
    /// What is committed, of all time.
    pub committed: AttoFil,
    /// What today's cap and that of all time leave.
    pub left: AttoFil,
    /// Why nothing is spent now, where that is so.
    pub paused: Option<String>,
    /// In the wallet, at the last look at the chain.
    pub wallet: Option<AttoFil>,
    /// With the market, all of it.
    pub escrow: Option<AttoFil>,
    /// Of that, what published deals hold.
    pub locked: Option<AttoFil>,
}

/// States in which the signed bytes may be with a provider, and the chain does not have them.
const OUT: [DealState; 4] =
    [DealState::Proposed, DealState::Unknown, DealState::Accepted, DealState::Refused];

impl Engine {
    /// Where pins stand in the cold half. Those that ask for no replicas, and those that failed, are not in it; where
    /// all are such, the rows are not asked.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn cold_of(&self, pins: &[PinRow]) -> Result<BTreeMap<RequestId, PinCold>, Error> {
        let asking = pins.iter().filter(|row| row.spec.policy.replicas > 0);
        let (pinned, others): (Vec<&PinRow>, Vec<&PinRow>) = asking
            .filter(|row| row.status != PinStatus::Failed)
            .partition(|row| row.status == PinStatus::Pinned);
        let ids: Vec<RequestId> = pinned.iter().map(|row| row.id).collect();
        let mut seen = self.ctx.records.cold_of_pins(&ids).await?;
        for row in pinned.iter().chain(&others) {
            seen.entry(row.id).or_default();
        }
        Ok(seen)
    }

    /// A page of attempts, the newest first.
    ///
    /// # Errors
    /// [`Error::Records`]: not found for a `before` that does not exist.
    pub async fn seen_deals(&self, viewer: Viewer, query: DealQuery) -> Result<Vec<SeenDeal>, Error> {
        let before = match query.before {
            Some(deal) => Some((self.ctx.records.deal(deal).await?.created, deal)),
            None => None,
        };
        let aggregates = match query.pin {
            Some(pin) => Some(self.ctx.records.aggregates_of_pin(pin).await?),
            None => None,
        };
        let filter = DealFilter {
            aggregates,
            account: viewer.account(),
            provider: query.provider,
            states: query.states,
            before,
            most: query.most.clamp(1, DEALS),
        };
        if let (Some(pin), Some(account)) = (query.pin, viewer.account())
            && !self.was_of(pin, account).await?
        {
            return Ok(Vec::new());
        }
        let deals = self.ctx.records.deals(filter).await?;
        let mut pins: BTreeMap<Uuid, Vec<RequestId>> = BTreeMap::new();
        for deal in &deals {
            let listed = match (query.pin, pins.contains_key(&deal.aggregate)) {
                (_, true) => continue,
                // What is listed for a pin is about that pin.
                (Some(pin), false) => vec![pin],
                (None, false) => self.pins_in(deal.aggregate, viewer).await?,
            };
            pins.insert(deal.aggregate, listed);
        }
        let seen = |deal: DealRow| SeenDeal { pins: pins[&deal.aggregate].clone(), deal };
        Ok(deals.into_iter().map(seen).collect())
    }

    /// Whether a pin of an aggregate is, or was, this account's.
    async fn was_of(&self, pin: RequestId, account: AccountId) -> Result<bool, Error> {
        Ok(self.ctx.records.owner_in_aggregates(pin).await? == Some(account))
    }

    async fn pins_in(&self, aggregate: Uuid, viewer: Viewer) -> Result<Vec<RequestId>, Error> {
        let most = limits::PINS_PER_DEAL;
        Ok(self.ctx.records.pins_in_aggregate(aggregate, viewer.account(), most).await?)
    }

    /// One attempt.
    ///
    /// # Errors
    /// Not found, also for one that is for none of the viewer's pins.
    pub async fn seen_deal(&self, viewer: Viewer, deal: DealUuid) -> Result<SeenDeal, Error> {
        let deal = self.ctx.records.deal(deal).await?;
        let pins = self.pins_in(deal.aggregate, viewer).await?;
        if viewer != Viewer::Operator && pins.is_empty() {
            return Err(RecordsError::NotFound.into());
        }
        Ok(SeenDeal { deal, pins })
    }

    /// Lets an attempt, or every attempt for an aggregate, be gone on with at once: the provider of one that came to
    /// nothing may be asked again, and one that waits is sent again as it was signed. Never signs what was signed.
    ///
    /// # Errors
    /// Not found; a conflict where nothing can be done sooner.
    pub async fn retry(&self, id: Uuid) -> Result<Retried, Error> {
        let records = &self.ctx.records;
        let deals = match records.deal(DealUuid(id)).await {
            Ok(deal) => vec![deal],
            Err(RecordsError::NotFound) => {
                records.aggregate(id).await?;
                records.deals_of_aggregate(id).await?
            }
            Err(error) => return Err(error.into()),
        };
        let now = self.ctx.clock.now();
        let mut done = Retried::default();
        for deal in &deals {
            match deal.state {
                DealState::Failed | DealState::Terminated | DealState::Expired => {
                    records.forgive_deal(deal.uuid).await?;
                    done.forgiven += 1;
                }
                DealState::Chosen | DealState::Proposed | DealState::Unknown | DealState::Accepted => {
                    records.deal_due(deal.uuid, now).await?;
                    done.hurried += 1;
                }
                DealState::Refused | DealState::Published | DealState::Active => {}
            }
        }
        if done == Retried::default()
            && let Some(deal) = deals.first()
        {
            let why = format!(
                "the deal {} is {}: there is nothing to try again, and what was signed is never signed again",
                deal.uuid,
                deal.state.as_str()
            );
            return Err(RecordsError::Conflict(why).into());
        }
        self.ring();
        Ok(done)
    }

    /// What one account has committed, of all time.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn cost_of(&self, account: AccountId) -> Result<Sum, Error> {
        Ok(self.ctx.records.totals_of(account).await?.lifetime)
    }

    /// Proposals whose signed bytes are out and that the chain does not have: whoever holds one can publish it until its
    /// start epoch. The newest, and whether there are more.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn signed_out(&self) -> Result<(Vec<DealRow>, bool), Error> {
        let out = DealFilter { states: OUT.to_vec(), most: limits::DEALS_OUT + 1, ..DealFilter::default() };
        let mut deals = self.ctx.records.deals(out).await?;
        let is_cut = deals.len() > limits::DEALS_OUT as usize;
        deals.truncate(limits::DEALS_OUT as usize);
        Ok((deals, is_cut))
    }

    /// Whether a token that was let in still would be.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn token_holds(&self, token: TokenId) -> Result<bool, Error> {
        Ok(self.ctx.records.token_holds(token).await?)
    }

    /// Figures of the cold half; `None` where none is configured.
    pub(crate) async fn cold_status(&self) -> Result<Option<ColdStatus>, Error> {
        let settings = &self.ctx.settings.cold;
        if self.ctx.cold.is_none() && settings.policies.values().all(|policy| policy.replicas == 0) {
            return Ok(None);
        }
        let records = &self.ctx.records;
        let mut deals = BTreeMap::new();
        for (state, count) in records.deal_counts().await? {
            *deals.entry(state.word()).or_default() += count;
        }
        let totals = records.totals().await?;
        let funds = self.dealing.as_ref().and_then(|dealing| dealing.funds()).map(|funds| funds.head);
        let paused = match &self.dealing {
            Some(dealing) => dealing.may_spend().await.err().map(|paused| paused.to_string()),
            None => None,
        };
        Ok(Some(ColdStatus {
            aggregates: records.aggregate_counts().await?,
            deals,
            head: records.highest_head().await?,
            spending: settings.deals.enabled && records.spending_switch().await?.on,
            committed: totals.lifetime.committed()?,
            left: totals.left(&settings.deals.caps)?,
            paused,
            wallet: funds.map(|funds| funds.wallet),
            escrow: funds.map(|funds| funds.escrow),
            locked: funds.map(|funds| funds.locked),
        }))
    }
}
