//! What the workers of deals share: rows, ports, settings, and the last look at the chain.
//!
//! The look is the one thing that is kept in memory: it ages, and is taken again after a start. Whoever would spend asks
//! [`Deals::may_spend`] first, which says in words what stands in the way.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use floe_core::cold::{Chain, ChainView, Fault, FundsView, Market, Proposer};
use floe_core::ports::Entropy;
use floe_core::spending::Caps;
use floe_core::{AttoFil, Clock, Epoch, Policy, Timestamp};
use floe_records::Records;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Settings;
use crate::limits;
use crate::workers::Board;

/// See the module.
pub(crate) struct Deals {
    pub(crate) settings: Settings,
    pub(crate) records: Records,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) chain: Arc<dyn Chain>,
    pub(crate) market: Arc<dyn Market>,
    pub(crate) proposer: Arc<dyn Proposer>,
    pub(crate) board: Arc<Board>,
    pub(crate) stop: CancellationToken,
    /// Something may be to place or to send.
    pub(crate) place_due: Notify,
    /// The chain is to be looked at before its time.
    pub(crate) look_due: Notify,
    /// Held while a call of the operator's is checked and sent, so that nobody counts on the same money in between.
    pub(crate) operators_turn: tokio::sync::Mutex<()>,
    /// Calls of the operator's so far: what was read of the funds before one does not hold after it.
    pub(crate) operators_calls: AtomicU64,
    look: Mutex<Look>,
}

/// The last look at the chain.
#[derive(Debug, Clone, Default)]
struct Look {
    view: Option<(ChainView, Duration)>,
    /// Everything up to the last final epoch was looked through for deals of ours.
    is_scanned: bool,
    funds: Option<FundsView>,
    /// What is wrong with the chain or with the funds.
    paused: Option<String>,
    /// What was last said to be wrong with escrow.
    alarm: Option<String>,
    /// The head at which a deal last asked for a look because escrow did not cover it.
    rung: Option<Epoch>,
    /// What the deals cost that go out again once escrow covers them, by the last round of the dealer.
    lacks_for_again: AttoFil,
}

/// Why nothing is spent now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Paused(pub(crate) String);

impl Deals {
    pub(crate) fn new(
        settings: Settings,
        records: Records,
        (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>),
        cold: super::Components,
        board: Arc<Board>,
        stop: CancellationToken,
    ) -> Self {
        let super::Components { chain, market, proposer } = cold;
        Self {
            settings,
            records,
            clock,
            entropy,
            chain,
            market,
            proposer,
            board,
            stop,
            place_due: Notify::new(),
            look_due: Notify::new(),
            operators_turn: tokio::sync::Mutex::new(()),
            operators_calls: AtomicU64::new(0),
            look: Mutex::default(),
        }
    }

    pub(crate) fn caps(&self) -> &Caps {
        &self.settings.deals.caps
    }

    /// The policy of this name. One that is gone from the configuration has no stand-in: another one's price, term and
    /// regions are not what its pins were promised.
    pub(crate) fn policy(&self, name: &str) -> Option<&Policy> {
        self.settings.policies.get(name)
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    pub(crate) fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        self.entropy.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// The chain was looked at.
    pub(crate) fn looked(&self, view: ChainView) {
        let mut look = self.look.lock();
        look.view = Some((view, self.clock.monotonic()));
        look.paused = None;
    }

    /// All final epochs were looked through, or not yet.
    pub(crate) fn scanned(&self, is_scanned: bool) {
        self.look.lock().is_scanned = is_scanned;
    }

    pub(crate) fn has_funds(&self, funds: FundsView) {
        self.look.lock().funds = Some(funds);
    }

    pub(crate) fn funds(&self) -> Option<FundsView> {
        self.look.lock().funds
    }

    /// A deal waits for escrow: a look, which tops up, is due; once for each head, because what came in counts after hours,
    /// and each look brings another round.
    pub(crate) fn ring_for_escrow(&self) {
        let mut look = self.look.lock();
        let head = look.view.map(|(view, _)| view.head);
        if look.rung != head {
            look.rung = head;
            self.look_due.notify_one();
        }
    }

    /// A round of the dealer begins.
    pub(crate) fn begins_round(&self) {
        self.look.lock().lacks_for_again = AttoFil::ZERO;
    }

    /// A deal that was refused would go out again, and escrow does not cover it: no row says that a slot waits for it.
    pub(crate) fn lacks_for_again(&self, cost: AttoFil) {
        let mut look = self.look.lock();
        look.lacks_for_again = look.lacks_for_again.checked_add(cost).unwrap_or(look.lacks_for_again);
    }

    /// What such deals cost together.
    pub(crate) fn lacking_for_again(&self) -> AttoFil {
        self.look.lock().lacks_for_again
    }

    /// Spending pauses. Says whether it did not already, for this reason's first word.
    pub(crate) fn pause(&self, why: String) -> bool {
        let mut look = self.look.lock();
        let is_news = look.paused.is_none();
        look.paused = Some(why);
        is_news
    }

    /// Keeps what is wrong with escrow. Says whether that is new.
    pub(crate) fn alarm_is_news(&self, alarm: Option<String>) -> bool {
        let mut look = self.look.lock();
        let is_news = look.alarm != alarm;
        look.alarm = alarm;
        is_news
    }

    pub(crate) fn paused(&self) -> Option<String> {
        self.look.lock().paused.clone()
    }

    /// The last view, where it is fresh.
    pub(crate) fn view(&self) -> Result<ChainView, Paused> {
        let look = self.look.lock();
        if let Some(why) = &look.paused {
            return Err(Paused(why.clone()));
        }
        let (view, at) = look.view.ok_or_else(|| Paused("the chain was not looked at yet".into()))?;
        let age = self.clock.monotonic().saturating_sub(at);
        let most = limits::VIEW_FRESH.max(self.settings.deals.look_every * 4);
        if age > most {
            return Err(Paused(format!("the chain was last looked at {} s ago", age.as_secs())));
        }
        Ok(view)
    }

    /// The chain's time, or the latest that is known: for what need not be fresh.
    pub(crate) fn head(&self) -> Epoch {
        self.look.lock().view.map_or(Epoch::default(), |(view, _)| view.head)
    }

    /// Whether anything may be signed or sent now: the consent, the caps, the switch, the pull server and a fresh view of
    /// the chain in which all deals of ours are known.
    pub(crate) async fn may_spend(&self) -> Result<ChainView, Paused> {
        let paused = |why: &str| Paused(why.to_owned());
        let deals = &self.settings.deals;
        if !deals.enabled {
            return Err(paused("deals.enabled is false: the operator has not consented to spend"));
        }
        let caps = [deals.caps.deal, deals.caps.account_day, deals.caps.day, deals.caps.lifetime];
        if caps.iter().any(|cap| cap.is_zero()) {
            return Err(paused("a spending cap is not set, and an unset cap permits nothing"));
        }
        if self.settings.pull_url.is_none() || self.settings.pull_key.is_none() {
            return Err(paused("filecoin.pull_url is not set: providers could pull nothing"));
        }
        let switch = self.records.spending_switch().await.map_err(|error| Paused(error.to_string()))?;
        if !switch.on {
            let who = switch.moved.map(|(by, at)| format!(" by {by} at {at}")).unwrap_or_default();
            return Err(Paused(format!("spending was switched off{who}")));
        }
        let view = self.view()?;
        if !self.look.lock().is_scanned {
            return Err(paused("what is on the chain already is still being looked through"));
        }
        Ok(view)
    }
}

/// What a failed call of the chain is called in events and on the board.
pub(crate) fn in_words(fault: &Fault) -> String {
    format!("{}: {}", fault.code, fault.text)
}
