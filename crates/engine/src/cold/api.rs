//! What operators and owners of pins ask of the cold half.

use std::sync::Arc;

use floe_core::cold::{DealUuid, FundsCall, Sent};
use floe_core::spending::Caps;
use floe_core::{ActorId, AttoFil, DealState};
use floe_records::cold::{
    Cost, CostsBy, DealFilter, DealRow, Event, NewProvider, ProviderRow, Restored, Switch, Totals,
};
use tokio::task::JoinSet;

use super::{Dealing, Plan, Refused, dealer, funds, plan, tracker};
use crate::context::Context;
use crate::{Engine, Error};

/// Whether anything is spent, and what may still be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spending {
    /// `deals.enabled`: the operator's consent.
    pub enabled: bool,
    /// `floe spending on|off`.
    pub switch: Switch,
    /// Why nothing is spent now, if anything stands in the way.
    pub paused: Option<String>,
    /// The caps.
    pub caps: Caps,
    /// What counts against them.
    pub totals: Totals,
    /// What is left of the day's and the lifetime's.
    pub left: AttoFil,
    /// Deals whose signed bytes are out and that the chain does not have yet: switching off does not recall these.
    pub exposed: u64,
    /// The rows were restored, and slots wait.
    pub restored: Option<Restored>,
}

/// The live half of deals; it goes on from what an earlier process left.
///
/// # Errors
/// Those of the rows.
pub(crate) async fn dealing(ctx: &Context) -> Result<Option<Arc<Dealing>>, Error> {
    let Some(cold) = ctx.cold.clone() else { return Ok(None) };
    let world = (Arc::clone(&ctx.clock), Arc::clone(&ctx.entropy));
    let (settings, board) = (ctx.settings.cold.clone(), Arc::clone(&ctx.board));
    let dealing = Dealing::new(settings, ctx.records.clone(), world, cold, board, ctx.stop.clone());
    begin(&dealing).await?;
    Ok(Some(Arc::new(dealing)))
}

/// What a start does to the rows: a new epoch of the ledger, and no answer to what was being sent.
pub(crate) async fn begin(dealing: &Dealing) -> Result<(), Error> {
    let epoch = dealing.records.begin_ledger_epoch().await?;
    let lost = dealing.records.replies_lost().await?;
    tracing::info!(epoch, lost, "the ledger begins epoch {epoch}; {lost} proposals are without an answer");
    Ok(())
}

/// Starts the workers.
pub(crate) fn spawn(dealing: &Arc<Dealing>, tasks: &mut JoinSet<()>) {
    tasks.spawn(tracker::run(Arc::clone(dealing)));
    tasks.spawn(dealer::run(Arc::clone(dealing)));
}

impl Engine {
    /// One deal.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`].
    pub async fn deal(&self, deal: DealUuid) -> Result<DealRow, Error> {
        Ok(self.ctx.records.deal(deal).await?)
    }

    /// A page of deals, the newest first.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn deals(&self, filter: DealFilter) -> Result<Vec<DealRow>, Error> {
        Ok(self.ctx.records.deals(filter).await?)
    }

    /// The operator's word on a deal that came to nothing: its provider may be asked for this piece again, now.
    ///
    /// # Errors
    /// [`floe_records::Error::Conflict`] while its bytes are out; [`floe_records::Error::NotFound`].
    pub async fn retry_deal(&self, deal: DealUuid) -> Result<DealRow, Error> {
        let row = self.ctx.records.forgive_deal(deal).await?;
        self.ring();
        Ok(row)
    }

    /// What deals and gas cost.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn costs(&self, by: CostsBy, after: Option<i64>, most: u32) -> Result<Vec<Cost>, Error> {
        Ok(self.ctx.records.costs(by, after, most).await?)
    }

    /// Whether anything is spent, and what may still be.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn spending(&self) -> Result<Spending, Error> {
        let (records, settings) = (&self.ctx.records, &self.ctx.settings.cold.deals);
        let paused = match &self.dealing {
            Some(dealing) => dealing.may_spend().await.err().map(|paused| paused.to_string()),
            None => Some("no Lotus node is configured: set filecoin.api".to_owned()),
        };
        let totals = records.totals().await?;
        let counts = records.deal_counts().await?;
        let out = [DealState::Proposed, DealState::Unknown, DealState::Accepted, DealState::Refused];
        Ok(Spending {
            enabled: settings.enabled,
            switch: records.spending_switch().await?,
            paused,
            caps: settings.caps,
            left: totals.left(&settings.caps)?,
            totals,
            exposed: out.iter().filter_map(|state| counts.get(state)).sum(),
            restored: records.restored().await?,
        })
    }

    /// Moves the switch: durable on return, and nothing that is signed or sent after it passes it by. It cannot recall what
    /// was sent: those deals are listed by [`Engine::deals`].
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn switch_spending(&self, on: bool, by: &str) -> Result<(), Error> {
        self.ctx.records.switch_spending(on, by).await?;
        self.ring();
        Ok(())
    }

    /// The operator's word that nothing is out that these rows do not know: slots are filled again after a restore.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn settle_restore(&self, by: &str) -> Result<(), Error> {
        self.ctx.records.restore_settled(by).await?;
        self.ring();
        Ok(())
    }

    /// All providers.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn providers(&self) -> Result<Vec<ProviderRow>, Error> {
        Ok(self.ctx.records.providers().await?)
    }

    /// Adds a provider, or changes what the operator says of it.
    ///
    /// # Errors
    /// [`floe_records::Error::Conflict`] where there are too many.
    pub async fn put_provider(&self, new: NewProvider) -> Result<ProviderRow, Error> {
        let id = new.id;
        self.ctx.records.put_provider(new).await?;
        self.ring();
        Ok(self.ctx.records.provider(id).await?)
    }

    /// Asks a provider for nothing more, with a reason; `None` lifts it. Its deals go on.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`].
    pub async fn suspend_provider(&self, id: ActorId, why: Option<&str>) -> Result<(), Error> {
        self.ctx.records.suspend_provider(id, why).await?;
        self.ring();
        Ok(())
    }

    /// What happened after event `id`, at most `most` of it.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn events_after(&self, id: u64, most: u32) -> Result<Vec<Event>, Error> {
        Ok(self.ctx.records.events_after(id, most).await?)
    }

    /// What would be placed where and at what price, if it were done now. Spends nothing.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn cold_plan(&self) -> Result<Plan, Error> {
        match &self.dealing {
            Some(dealing) => Ok(plan::plan(dealing).await?),
            None => {
                let paused = "no Lotus node is configured: set filecoin.api".to_owned();
                Ok(Plan { paused: Some(paused), ..Plan::default() })
            }
        }
    }

    /// Sends a message of the operator's from the wallet: what leaves is checked, its gas is reserved under the caps. The
    /// same key again is the same message.
    ///
    /// # Errors
    /// [`Refused`]: nothing was sent by this call.
    pub async fn wallet_call(&self, key: &str, call: &FundsCall) -> Result<Sent, Refused> {
        funds::operators_call(self.dealing_or()?, key, call).await
    }

    fn dealing_or(&self) -> Result<&Dealing, Refused> {
        self.dealing.as_deref().ok_or_else(|| Refused::Paused("no Lotus node is configured".to_owned()))
    }

    /// Something changed that deals may wait for.
    pub(super) fn ring(&self) {
        if let Some(dealing) = &self.dealing {
            dealing.look_due.notify_one();
            dealing.place_due.notify_one();
        }
    }
}
