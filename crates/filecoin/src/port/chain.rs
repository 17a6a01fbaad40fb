//! [`cold::Chain`] on a Lotus node: one look, and answers about that look.

use std::collections::BTreeMap;
use std::sync::Arc;

use floe_core::clock::BoxFuture;
use floe_core::cold::{
    self, ChainProvider, ChainView, DealOnChain, Fault, Funds, FundsCall, FundsView, MessageProgress,
    OwnDeal, PublishedDeal, Sent, SignedDeal, is_operators,
};
use floe_core::{ActorId, Clock, FailureCode, PieceCid};
use multiaddr::Multiaddr;
use parking_lot::Mutex;

use super::memory::{Known, Memory};
use super::status::NodeStatus;
use super::watch::Watch;
use super::{events, funds};
use crate::chain::{Chain, NetworkPin, Rules, View};
use crate::escrow::EscrowError;
use crate::limits::{self, MAX_CHAIN_ADDRESSES, MAX_UNCONFIRMED, REPLACE_AFTER};
use crate::market::DealProposal;
use crate::market::mk12::DealParams;
use crate::messages::{Entry, Journal, MessageError, Progress, Sender, SenderSettings};
use crate::rpc::answers::{MarketDeal, MinerInfo};
use crate::rpc::{Fault as Refusal, Lotus, Permission, RpcError};
use crate::signer::Signer;
use crate::types::cbor::Cbor as _;
use crate::types::{Address, AttoFil, Epoch, PaddedSize, TipSetKey, rle};

/// All the FIL that there will ever be, in attoFIL: a node that says that somebody has more lies.
const ALL_FIL: AttoFil = AttoFil::new(2_000_000_000 * 1_000_000_000_000_000_000);

/// Plain settings.
#[derive(Debug, Clone, Copy)]
pub struct ChainSettings {
    /// `filecoin.test_network`: see [`Rules`]. Refused on mainnet.
    pub test_network: bool,
    /// `filecoin.finality_lookback`
    pub finality_lookback: i64,
    /// The most gas for one message, replacements included. 0 permits none.
    pub max_fee: AttoFil,
}

/// The chain as a Lotus node has it, and one wallet's messages on it.
pub struct LotusChain {
    lotus: Lotus,
    signer: Arc<dyn Signer>,
    sender: Sender,
    journal: Arc<dyn Journal>,
    memory: Arc<dyn Memory>,
    clock: Arc<dyn Clock>,
    settings: ChainSettings,
    /// One look after the other. Holds what the first one found out.
    turn: tokio::sync::Mutex<Option<Opened>>,
    last: Mutex<Option<Arc<Look>>>,
    status: Mutex<NodeStatus>,
    watch: Watch,
}

/// A node of the pinned network.
struct Opened {
    pin: NetworkPin,
    chain: Chain,
    /// Whether the network is written down.
    is_known: bool,
    /// The highest head that is written down.
    written: Epoch,
}

/// One look, and what was asked about it already.
struct Look {
    view: View,
    /// Runs of faulty sectors, by provider; `None` where the node has no such call.
    faults: tokio::sync::Mutex<BTreeMap<Address, Option<Arc<Vec<u64>>>>>,
}

impl LotusChain {
    /// The chain through `lotus`, with the wallet of `signer`. Nothing is asked before the first look, so a node that is
    /// away keeps nobody from starting.
    pub fn new(
        lotus: Lotus,
        signer: Arc<dyn Signer>,
        journal: Arc<dyn Journal>,
        memory: Arc<dyn Memory>,
        clock: Arc<dyn Clock>,
        settings: ChainSettings,
    ) -> Self {
        let fees = SenderSettings { max_fee: settings.max_fee };
        let sender = Sender::new(lotus.clone(), signer.clone(), journal.clone(), fees);
        let status = NodeStatus { endpoint: lotus.endpoint().to_string(), ..NodeStatus::default() };
        Self {
            lotus,
            signer,
            sender,
            journal,
            memory,
            clock,
            settings,
            turn: tokio::sync::Mutex::new(None),
            last: Mutex::new(None),
            status: Mutex::new(status),
            watch: Watch::new(settings.finality_lookback),
        }
    }

    /// What is known of the node now.
    pub fn status(&self) -> NodeStatus {
        self.status.lock().clone()
    }

    async fn look_now(&self) -> Result<ChainView, Fault> {
        let mut opened = self.turn.lock().await;
        match self.view(&mut opened).await {
            Ok(view) => {
                self.status.lock().looked(&view);
                let seen = ChainView { head: view.head.height, last_final: counted(&view) };
                *self.last.lock() = Some(Arc::new(Look { view, faults: tokio::sync::Mutex::default() }));
                Ok(seen)
            }
            Err(fault) => {
                self.status.lock().failed(&fault.text);
                // Nothing is answered about a look before this one: spending pauses.
                *self.last.lock() = None;
                Err(fault)
            }
        }
    }

    /// Which node it is is asked at every look: a name or a balancer in front of it may lead elsewhere at any time.
    async fn view(&self, opened: &mut Option<Opened>) -> Result<View, Fault> {
        let found = NetworkPin::of(&self.lotus).await?;
        if let Some(opened) = opened.as_ref() {
            opened.pin.check(&found)?;
        }
        let opened = match opened {
            Some(opened) => opened,
            None => opened.insert(self.open(&found).await?),
        };
        let view = opened.chain.look(self.clock.now()).await?;
        // Nothing of a node whose head cannot be is written down.
        if !opened.is_known {
            self.memory.pin(&opened.pin).await.map_err(forgetful)?;
            opened.is_known = true;
        }
        let every = (self.settings.finality_lookback / 8).max(1);
        if opened.chain.highest() >= opened.written.plus(every) {
            self.memory.saw(opened.chain.highest()).await.map_err(forgetful)?;
            opened.written = opened.chain.highest();
        }
        Ok(view)
    }

    /// The first look: is this the network of the first start, and may this node be used at all?
    async fn open(&self, found: &NetworkPin) -> Result<Opened, Fault> {
        let known = self.memory.load().await.map_err(forgetful)?;
        let pin = known.as_ref().map_or(found, |known| &known.pin);
        pin.check(found)?;
        let rules = Rules::new(pin, self.settings.test_network, self.settings.finality_lookback);
        let rules = rules?;
        self.greet(pin).await?;
        let written = known.as_ref().map_or(Epoch::default(), |known: &Known| known.highest);
        let chain = Chain::open(self.lotus.clone(), pin, rules, written).await?;
        Ok(Opened { pin: pin.clone(), chain, is_known: known.is_some(), written })
    }

    /// What the node is, and what our token may do there.
    async fn greet(&self, pin: &NetworkPin) -> Result<(), Fault> {
        let version = self.lotus.version().await?.version;
        let mut unasked = Vec::new();
        let permissions = match self.lotus.permissions().await {
            Ok(permissions) => permissions,
            Err(RpcError::UnknownMethod { .. }) => {
                unasked.push("what the token allows (AuthVerify)");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let offers_client_calls = self.lotus.offers_client_calls().await?;
        if offers_client_calls.is_none() {
            unasked.push("whether it is of before 2024-06 (ClientListImports)");
        }
        let offers_client_calls = offers_client_calls == Some(true);
        let endpoint = self.lotus.endpoint();
        if offers_client_calls {
            tracing::warn!(
                %endpoint, version,
                "the Lotus node offers the deal calls that ended with v1.27.0: it cannot follow today's mainnet, and Floe \
                 does not use them (it talks to providers itself)"
            );
        }
        if endpoint.sends_token_in_clear() {
            tracing::warn!(%endpoint, "the token of the Lotus node goes over the network in clear: use https");
        }
        let is_admin = permissions.as_ref().is_some_and(|all| all.contains(&Permission::Admin));
        {
            let mut status = self.status.lock();
            status.network = Some(pin.to_string());
            status.version = Some(version.chars().take(200).collect());
            status.offers_client_calls = offers_client_calls;
            status.token_in_clear = endpoint.sends_token_in_clear();
            status.permissions = permissions;
            status.unasked = unasked;
        }
        if is_admin && !self.settings.test_network {
            let text = "the token of the Lotus node allows everything, the export of its keys too: make one with `lotus \
                        auth create-token --perm write` (sign, where the node's wallet signs)";
            return Err(Fault::new(FailureCode::Auth, text));
        }
        tracing::info!(%endpoint, network = %pin, "the Lotus node answers");
        Ok(())
    }

    fn last(&self) -> Result<Arc<Look>, Fault> {
        let nothing = || {
            let why = self.status.lock().trouble.clone();
            let why = why.unwrap_or_else(|| "the chain was not looked at yet".into());
            Fault::new(FailureCode::ChainUnreachable, why)
        };
        self.last.lock().clone().ok_or_else(nothing)
    }

    async fn provider_now(&self, id: ActorId) -> Result<Option<ChainProvider>, Fault> {
        let look = self.last()?;
        let head = &look.view.head.key;
        let info = match self.lotus.miner_info(&Address::Id(id.get()), head).await {
            Ok(Some(info)) => info,
            Ok(None) => return Ok(None),
            Err(error) if error.fault() == Some(Refusal::NotAMiner) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let owner = self.id_of(&info.owner, &look.view.head.key).await?;
        let owner = owner.ok_or_else(|| malformed("StateMinerInfo", "an owner that is nobody"))?;
        Ok(Some(ChainProvider {
            owner: ActorId::new(owner),
            addresses: addresses(&info),
            peer_id: info.peer_id,
            sector_bytes: info.sector_size,
        }))
    }

    async fn id_of(&self, address: &Address, at: &TipSetKey) -> Result<Option<u64>, Fault> {
        if let Address::Id(id) = address {
            return Ok(Some(*id));
        }
        match self.lotus.lookup_id(address, at).await? {
            Some(Address::Id(id)) => Ok(Some(id)),
            Some(_) => Err(malformed("StateLookupID", "something else than an id")),
            None => Ok(None),
        }
    }

    async fn collateral_now(&self, size: PaddedSize) -> Result<AttoFil, Fault> {
        let look = self.last()?;
        let bounds = self.lotus.collateral_bounds(size, &look.view.head.key).await?;
        if bounds.min > bounds.max || bounds.min > ALL_FIL {
            return Err(malformed("StateDealProviderCollateralBounds", "bounds that cannot be"));
        }
        Ok(bounds.min)
    }

    async fn funds_now(&self) -> Result<FundsView, Fault> {
        let look = self.last()?;
        let head = self.funds_at(&look.view.head.key).await?;
        let last_final = self.funds_at(&look.view.last_final.key).await?;
        Ok(FundsView { head, last_final })
    }

    async fn funds_at(&self, at: &TipSetKey) -> Result<Funds, Fault> {
        let wallet = self.signer.address();
        let actor = self.lotus.actor(&wallet, at).await?;
        let market = self.lotus.market_balance(&wallet, at).await?;
        market.free()?;
        let wallet = actor.map_or(AttoFil::ZERO, |actor| actor.balance);
        if wallet.checked_add(market.escrow).is_none_or(|sum| sum > ALL_FIL) {
            return Err(Fault::from(EscrowError::Overflow));
        }
        Ok(Funds { wallet, escrow: market.escrow, locked: market.locked })
    }

    async fn published_now(&self, from: Epoch, to: Epoch) -> Result<Option<Vec<PublishedDeal>>, Fault> {
        let look = self.last()?;
        let last_final = &look.view.last_final;
        let to = to.min(counted(&look.view));
        // Who never received anything has no deals.
        let Some(client) = self.id_of(&self.signer.address(), &last_final.key).await? else {
            return Ok(Some(Vec::new()));
        };
        let mut found = events::published(&self.lotus, client, from, to).await?;
        // The event names no piece; the deal at the last final tipset does, unless it is over already.
        for deal in found.iter_mut().flatten() {
            let on_chain = self.lotus.deal(deal.deal_id, &last_final.key).await?;
            deal.piece = on_chain.and_then(|found| PieceCid::from_cid(&found.proposal.piece_cid).ok());
        }
        let keeps = found.is_some();
        if self.status.lock().keeps_events.replace(keeps) != Some(keeps) && !keeps {
            tracing::warn!(
                "the Lotus node keeps no events of heights {from} to {to}: published deals are found by what providers \
                 say alone (Lotus: set Events.EnableActorEventsAPI and ChainIndexer.EnableIndexer)"
            );
        }
        Ok(found)
    }

    async fn deal_now(&self, deal_id: u64, signed: &SignedDeal) -> Result<Option<DealOnChain>, Fault> {
        let look = self.last()?;
        let at = &look.view.last_final.key;
        let ours = DealParams::from_cbor(&signed.bytes).map_err(|error| {
            Fault::new(
                FailureCode::ChainUnreachable,
                format!("the signed bytes of a deal are damaged: {error}"),
            )
        })?;
        let Some(found) = self.lotus.deal(deal_id, at).await? else { return Ok(None) };
        let is_ours = self.is_same(&ours.proposal.proposal, &found.proposal, at).await?;
        self.state_of(&look, &found, is_ours).await.map(Some)
    }

    /// A deal of our client by its number alone.
    async fn own_deal_now(&self, deal_id: u64) -> Result<Option<OwnDeal>, Fault> {
        let look = self.last()?;
        let at = &look.view.last_final.key;
        let Some(found) = self.lotus.deal(deal_id, at).await? else { return Ok(None) };
        let client = self.id_of(&self.signer.address(), at).await?;
        let (Some(client), Address::Id(provider)) = (client, found.proposal.provider) else {
            return Ok(None);
        };
        if found.proposal.client != Address::Id(client) {
            return Ok(None);
        }
        let piece = PieceCid::from_cid(&found.proposal.piece_cid)
            .map_err(|_| malformed("StateMarketStorageDeal", "a deal of no piece"))?;
        Ok(Some(OwnDeal {
            provider: ActorId::new(provider),
            piece,
            size: found.proposal.piece_size,
            start: found.proposal.start_epoch,
            end: found.proposal.end_epoch,
            price_per_epoch: found.proposal.storage_price_per_epoch,
            collateral: found.proposal.provider_collateral,
            state: self.state_of(&look, &found, true).await?,
        }))
    }

    async fn state_of(&self, look: &Look, found: &MarketDeal, is_ours: bool) -> Result<DealOnChain, Fault> {
        let active_since = found.state.is_active().then_some(found.state.sector_start_epoch);
        if active_since.is_some_and(|since| since > look.view.last_final.height) {
            return Err(malformed("StateMarketStorageDeal", "a deal that is active from a later epoch on"));
        }
        let sector = active_since.map(|_| found.state.sector_number);
        let is_faulty = match sector {
            Some(sector) if is_ours => self.is_faulty(look, found.proposal.provider, sector).await?,
            _ => false,
        };
        Ok(DealOnChain { is_ours, active_since, sector, is_faulty })
    }

    /// Whether the chain's deal is what was signed: in the form with ids, field by field, and by name.
    async fn is_same(
        &self,
        signed: &DealProposal,
        found: &DealProposal,
        at: &TipSetKey,
    ) -> Result<bool, Fault> {
        let client = self.id_of(&signed.client, at).await?;
        let provider = self.id_of(&signed.provider, at).await?;
        let Some((client, provider)) = client.zip(provider) else { return Ok(false) };
        let normal = signed.with_parties(Address::Id(client), Address::Id(provider));
        Ok(normal == *found && normal.cid() == found.cid())
    }

    async fn is_faulty(&self, look: &Look, provider: Address, sector: u64) -> Result<bool, Fault> {
        let mut faults = look.faults.lock().await;
        let runs = match faults.get(&provider) {
            Some(runs) => runs.clone(),
            None => {
                let runs = match self.lotus.miner_faults(&provider, &look.view.last_final.key).await {
                    Ok(runs) => Some(Arc::new(runs)),
                    // The gateway has no such call: a warning less.
                    Err(RpcError::UnknownMethod { .. }) => None,
                    Err(error) => return Err(error.into()),
                };
                faults.entry(provider).or_insert(runs).clone()
            }
        };
        Ok(runs.is_some_and(|runs| rle::is_set(&runs, sector)))
    }

    async fn message_now(&self, intent: &str) -> Result<Option<Sent>, Fault> {
        let entry = self.journal.find(intent).await.map_err(MessageError::from)?;
        Ok(entry.map(|entry| self.sent(&entry)))
    }

    async fn send_now(&self, intent: &str, call: &FundsCall) -> Result<Sent, Fault> {
        let look = self.last()?;
        let message = funds::message(self.signer.address(), call)?;
        let entry = self.sender.send(intent, &message, &look.view).await?;
        let same = entry.versions.last().is_some_and(|last| last.message.message.same_call(&message));
        if !same {
            let text = format!("the intent {intent:?} has a message already that does something else");
            return Err(Fault::new(FailureCode::Nonce, text));
        }
        if matches!(entry.progress, Progress::Refused { .. }) {
            self.note_refused().await?;
        }
        Ok(self.sent(&entry))
    }

    async fn tick_now(&self, may_send: bool, gas: &BTreeMap<String, AttoFil>) -> Result<Vec<Sent>, Fault> {
        let look = self.last()?;
        let mut changed = Vec::new();
        for landed in self.sender.tick(&look.view, may_send).await? {
            let entry = self.journal.find(&landed.intent).await.map_err(MessageError::from)?;
            changed.extend(entry.map(|entry| self.sent(&entry)));
        }
        self.replace_stuck(&look.view, may_send, gas).await?;
        self.note_refused().await?;
        Ok(changed)
    }

    /// Keeps for the operator what the pool does not take: to the engine it is on its way like any other.
    async fn note_refused(&self) -> Result<(), Fault> {
        let open = self.journal.unsettled(self.signer.address()).await.map_err(MessageError::from)?;
        let refused = open.into_iter().filter_map(|entry| match entry.progress {
            Progress::Refused { reason } => Some((entry.intent, reason)),
            _ => None,
        });
        self.status.lock().refused = refused.take(MAX_UNCONFIRMED).collect();
        Ok(())
    }

    /// Gives more to messages that no block can take: the base fee rose above their cap.
    async fn replace_stuck(
        &self,
        view: &View,
        may_send: bool,
        gas: &BTreeMap<String, AttoFil>,
    ) -> Result<(), Fault> {
        let open = self.journal.unsettled(self.signer.address()).await.map_err(MessageError::from)?;
        // The numbers go in order: what stands behind the first that is not on the chain waits for it.
        let gone = |entry: &&Entry| matches!(entry.progress, Progress::Included { .. } | Progress::Missing);
        let Some(first) = open.iter().find(|entry| !gone(entry)) else { return Ok(()) };
        let may = may_send || is_operators(&first.intent);
        if !may || !is_stuck(first, view) {
            return Ok(());
        }
        let reserved = gas.get(&first.intent).copied().unwrap_or_default();
        match self.sender.replace(&first.intent, view, reserved).await {
            Ok(_) => tracing::info!(
                intent = first.intent,
                "a message pays more, as the base fee rose above its cap"
            ),
            Err(error @ (MessageError::FeeOverCap { .. } | MessageError::Journal(_))) => {
                limits::hit("message_fee");
                tracing::warn!(intent = first.intent, "a message waits: {error}");
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// What a message may cost: until it is final, all that a replacement may pay, and no less than what was signed when
    /// more was permitted.
    fn sent(&self, entry: &Entry) -> Sent {
        let fees = entry.versions.iter().map(|version| version.message.message.max_fee());
        let signed = fees.map(|fee| fee.unwrap_or(ALL_FIL));
        let max_fee = match &entry.progress {
            Progress::Final { version, .. } => signed.clone().nth(*version).or_else(|| signed.max()),
            _ => signed.max().max(Some(self.settings.max_fee)),
        };
        Sent {
            intent: entry.intent.clone(),
            max_fee: max_fee.unwrap_or(self.settings.max_fee),
            progress: progress(&entry.progress),
        }
    }
}

/// The last height whose messages count. The state at a tipset is that before its own messages: what was published in
/// the newest final tipset is an event of its height, and in no state that is asked for there. So it counts one height
/// later, and whatever is an event is a deal too.
pub(super) fn counted(view: &View) -> Epoch {
    view.last_final.height.plus(-1)
}

fn is_stuck(entry: &Entry, view: &View) -> bool {
    let Some(last) = entry.versions.last() else { return false };
    let waits = matches!(entry.progress, Progress::Signed | Progress::Pooled | Progress::Refused { .. });
    waits
        && last.message.message.gas_fee_cap < view.head.base_fee
        && view.head.height.since(entry.since) >= REPLACE_AFTER
}

fn progress(progress: &Progress) -> MessageProgress {
    match progress {
        Progress::Signed | Progress::Pooled | Progress::Refused { .. } => MessageProgress::Pending,
        Progress::Included { .. } => MessageProgress::Included,
        Progress::Final { exit_code: 0, .. } => MessageProgress::Final(Ok(())),
        Progress::Final { exit_code, .. } => MessageProgress::Final(Err(*exit_code)),
        Progress::Missing => MessageProgress::Missing,
    }
}

fn addresses(info: &MinerInfo) -> Vec<String> {
    if info.multiaddrs.len() > MAX_CHAIN_ADDRESSES {
        limits::hit("chain_addresses");
    }
    let text = |bytes: &Vec<u8>| Some(Multiaddr::try_from(bytes.clone()).ok()?.to_string());
    info.multiaddrs.iter().take(MAX_CHAIN_ADDRESSES).filter_map(text).collect()
}

fn malformed(method: &str, what: &str) -> Fault {
    let text = format!("Filecoin.{method}: the Lotus node's answer cannot be believed: {what}");
    Fault::new(FailureCode::ChainUnreachable, text)
}

fn forgetful(error: String) -> Fault {
    Fault::new(FailureCode::ChainUnreachable, format!("what is known of the chain cannot be kept: {error}"))
}

impl cold::Chain for LotusChain {
    fn remarks(&self) -> Vec<String> {
        self.status.lock().remarks()
    }

    fn max_fee(&self) -> AttoFil {
        self.settings.max_fee
    }

    fn look(&self) -> BoxFuture<'_, Result<ChainView, Fault>> {
        Box::pin(self.look_now())
    }

    fn provider(&self, id: ActorId) -> BoxFuture<'_, Result<Option<ChainProvider>, Fault>> {
        Box::pin(self.provider_now(id))
    }

    fn collateral(&self, size: PaddedSize) -> BoxFuture<'_, Result<AttoFil, Fault>> {
        Box::pin(self.collateral_now(size))
    }

    fn funds(&self) -> BoxFuture<'_, Result<FundsView, Fault>> {
        Box::pin(self.funds_now())
    }

    fn published(&self, from: Epoch, to: Epoch) -> BoxFuture<'_, Result<Option<Vec<PublishedDeal>>, Fault>> {
        Box::pin(self.published_now(from, to))
    }

    fn deal<'a>(
        &'a self,
        deal_id: u64,
        signed: &'a SignedDeal,
    ) -> BoxFuture<'a, Result<Option<DealOnChain>, Fault>> {
        Box::pin(self.deal_now(deal_id, signed))
    }

    fn own_deal(&self, deal_id: u64) -> BoxFuture<'_, Result<Option<OwnDeal>, Fault>> {
        Box::pin(self.own_deal_now(deal_id))
    }

    fn message<'a>(&'a self, intent: &'a str) -> BoxFuture<'a, Result<Option<Sent>, Fault>> {
        Box::pin(self.message_now(intent))
    }

    fn send<'a>(&'a self, intent: &'a str, call: &'a FundsCall) -> BoxFuture<'a, Result<Sent, Fault>> {
        Box::pin(self.send_now(intent, call))
    }

    fn tick<'a>(
        &'a self,
        may_send: bool,
        gas: &'a BTreeMap<String, AttoFil>,
    ) -> BoxFuture<'a, Result<Vec<Sent>, Fault>> {
        Box::pin(self.tick_now(may_send, gas))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.watch.changed(self.lotus.endpoint(), &*self.clock))
    }
}
