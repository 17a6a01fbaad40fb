//! A small Filecoin in memory, behind the ports of `floe_core::cold`: a chain with epochs, finality, a market actor and
//! escrow, and storage providers that do what their script says. It judges what it gets by the rules of Boost and Curio,
//! and keeps all of it for the test to look at.
//!
//! Each call yields before and after it acts, so that a test can drop the caller on either side, and any call can be made
//! to fail before it acts, to lose its answer, or to act twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use floe_core::cold::*;
use floe_core::place::Ask;
use floe_core::{ActorId, AttoFil, Cid, Epoch, FailureCode, Multihash, PaddedSize};
use parking_lot::Mutex;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Epochs from acceptance to publication, from there to the sector, and from a start that passed until the market lets go.
pub const PUBLISHES_AFTER: i64 = 3;
pub const SEALS_AFTER: i64 = 4;
pub const UNLOCKS_AFTER: i64 = 20;
/// The gas of a message, and the most it may be.
pub const GAS: u128 = 7;
pub const MAX_FEE: u128 = 1_000;
/// The least collateral of a piece.
pub const COLLATERAL: u128 = 10;

/// What a provider does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Script {
    /// What it promises.
    Good,
    /// Refuses, in these words.
    Refuses(&'static str),
    /// Refuses so many proposals in these words, keeps nothing of them, then does what it promises.
    Busy(u32, &'static str),
    /// Refuses in these words, and publishes all the same.
    RefusesAndPublishes(&'static str),
    /// Takes so many proposals without a word, then does what it promises.
    LosesReplies(u32),
    /// Accepts, and never publishes.
    NeverPublishes,
    /// Publishes, and never seals.
    NeverSeals,
    /// Seals, and loses the sector so many epochs later.
    LosesSectorAfter(i64),
    /// Does what it promises, and names another's deal.
    Names(u64),
    /// Accepts, forgets the deal, and says so when it is asked.
    Forgets,
    /// Accepts, forgets the deal, and refuses it when it comes again.
    ForgetsAndRefuses(&'static str),
    /// Cannot be reached.
    Away,
}

/// How a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Ok,
    /// Fails, and nothing is done.
    Error,
    /// Is done, and the answer is lost.
    Lost,
    /// Is done twice.
    Duplicate,
}

pub struct Provider {
    pub owner: u64,
    pub ask: Ask,
    pub script: Script,
    /// What it got: bytes, when, and whether it will publish them.
    pub got: Vec<(DealUuid, Vec<u8>, i64, bool)>,
}

#[derive(Debug, Clone)]
pub struct MarketDeal {
    pub id: u64,
    pub terms: DealTerms,
    pub bytes: Vec<u8>,
    pub published: i64,
    pub active: Option<i64>,
    pub gone: Option<i64>,
    pub is_faulty: bool,
}

#[derive(Debug, Clone)]
pub struct Message {
    pub call: FundsCall,
    pub at: i64,
    pub applied: Option<i64>,
    /// Another message had its number: it never comes onto the chain.
    pub is_missing: bool,
    /// What it ends with on the chain: but for 0 it moves nothing, and its gas is burnt all the same.
    pub exit_code: i64,
    told: bool,
    /// The most that it may cost by what was signed.
    fee: u128,
}

/// What the node says that is not so.
#[derive(Debug, Clone, Default)]
pub struct Lies {
    pub look: Option<Fault>,
    pub view: Option<ChainView>,
    pub funds: Option<Funds>,
    pub keeps_no_events: bool,
    /// Deals that it says are not there.
    pub hidden: BTreeSet<u64>,
}

pub struct State {
    pub head: i64,
    pub lookback: i64,
    pub wallet: u128,
    pub escrow: u128,
    pub deals: Vec<MarketDeal>,
    pub providers: BTreeMap<u64, Provider>,
    pub messages: BTreeMap<String, Message>,
    /// `deals.max_gas`.
    pub max_fee: u128,
    /// What a replacement may cost, by intent.
    pub gas: BTreeMap<String, AttoFil>,
    /// What there was at the end of each epoch.
    funds_at: BTreeMap<i64, Funds>,
    pub lies: Lies,
    /// All that was signed, by deal.
    pub signed: BTreeMap<DealUuid, Vec<Vec<u8>>>,
    terms: HashMap<Vec<u8>, DealTerms>,
    next_deal: u64,
    /// Calls so far, each by its name, in the order in which they were done.
    pub calls: Vec<&'static str>,
    /// Those, and the ones that are asked and not done yet.
    pub asked: Vec<&'static str>,
    /// Which call goes how.
    pub fault: Option<(usize, Outcome)>,
    /// Told when the head moves, where a test rings it.
    pub moved: Arc<tokio::sync::Notify>,
    /// At each tick, whether messages might go out.
    pub ticks: Vec<bool>,
    /// Calls go wrong by themselves, one in so many, by this seed.
    pub chaos: Option<(u64, u64)>,
}

#[derive(Clone)]
pub struct Filecoin(Arc<Mutex<State>>);

/// Once pending, then done.
async fn yields() {
    let mut was = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut was, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

fn cost(terms: &DealTerms) -> u128 {
    terms.price_per_epoch.get() * u128::from(terms.end.since(terms.start))
}

impl Filecoin {
    /// Providers f01000 and on, each with an owner of its own.
    pub fn new(scripts: &[Script]) -> Self {
        let provider = |script: &Script, n: u64| Provider {
            owner: 500 + n,
            ask: Ask {
                price: AttoFil::new(50),
                min_size: PaddedSize::MIN,
                max_size: PaddedSize::MAX,
                expires: Epoch::new(i64::MAX),
            },
            script: script.clone(),
            got: Vec::new(),
        };
        let providers = scripts.iter().zip(0..).map(|(script, n)| (1_000 + n, provider(script, n))).collect();
        Self(Arc::new(Mutex::new(State {
            head: 1_000,
            lookback: 5,
            wallet: 10_u128.pow(18),
            escrow: 0,
            deals: Vec::new(),
            providers,
            messages: BTreeMap::new(),
            max_fee: MAX_FEE,
            gas: BTreeMap::new(),
            funds_at: BTreeMap::new(),
            lies: Lies::default(),
            signed: BTreeMap::new(),
            terms: HashMap::new(),
            next_deal: 100,
            calls: Vec::new(),
            asked: Vec::new(),
            fault: None,
            moved: Arc::default(),
            ticks: Vec::new(),
            chaos: None,
        })))
    }

    pub fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Epochs go by.
    pub fn step(&self, epochs: i64) {
        (0..epochs).for_each(|_| self.0.lock().step());
    }

    async fn call<T>(
        &self,
        name: &'static str,
        mut act: impl FnMut(&mut State) -> Result<T, Fault> + Send,
    ) -> Result<T, Fault> {
        self.0.lock().asked.push(name);
        yields().await;
        let done = {
            let mut state = self.0.lock();
            state.calls.push(name);
            let lost = || Err(Fault::new(FailureCode::SpTimeout, format!("{name} is lost")));
            match state.outcome() {
                Outcome::Ok => act(&mut state),
                Outcome::Error => lost(),
                Outcome::Lost => act(&mut state).and_then(|_| lost()),
                Outcome::Duplicate => act(&mut state).and_then(|_| act(&mut state)),
            }
        };
        yields().await;
        done
    }
}

impl State {
    fn outcome(&mut self) -> Outcome {
        if let Some((_, outcome)) = self.fault.filter(|(n, _)| *n == self.calls.len()) {
            return outcome;
        }
        let Some((seed, one_in)) = &mut self.chaos else { return Outcome::Ok };
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let roll = *seed >> 33;
        match roll % *one_in {
            0 => [Outcome::Error, Outcome::Lost, Outcome::Duplicate]
                [usize::try_from(roll / *one_in % 3).unwrap()],
            _ => Outcome::Ok,
        }
    }

    pub fn last_final(&self) -> i64 {
        self.head - self.lookback
    }

    /// What published deals hold of escrow.
    pub fn locked(&self) -> u128 {
        self.deals.iter().filter(|deal| deal.gone.is_none()).map(|deal| cost(&deal.terms)).sum()
    }

    fn funds(&self) -> Funds {
        Funds {
            wallet: AttoFil::new(self.wallet),
            escrow: AttoFil::new(self.escrow),
            locked: AttoFil::new(self.locked()),
        }
    }

    fn final_funds(&self) -> Funds {
        let at = self.last_final();
        let known = self.funds_at.range(..=at).next_back().or_else(|| self.funds_at.first_key_value());
        known.map_or_else(|| self.funds(), |(_, funds)| *funds)
    }

    fn step(&mut self) {
        self.funds_at.insert(self.head, self.funds());
        self.head += 1;
        let head = self.head;
        let waits = |m: &&mut Message| m.applied.is_none() && !m.is_missing && m.at < head;
        for message in self.messages.values_mut().filter(waits) {
            message.applied = Some(head);
            self.wallet -= GAS;
            if message.exit_code != 0 {
                continue;
            }
            match &message.call {
                FundsCall::TopUp(amount) => {
                    self.wallet = self.wallet.checked_sub(amount.get()).expect("the wallet has it");
                    self.escrow += amount.get();
                }
                FundsCall::Withdraw(amount) => {
                    self.escrow -= amount.get();
                    self.wallet += amount.get();
                }
                FundsCall::Send { amount, .. } => self.wallet -= amount.get(),
                FundsCall::Settle(ids) => {
                    let is_over = |deal: &&mut MarketDeal| {
                        let from = if deal.active.is_some() { deal.terms.end } else { deal.terms.start };
                        ids.contains(&deal.id) && from.get() <= head
                    };
                    for deal in self.deals.iter_mut().filter(is_over).filter(|deal| deal.gone.is_none()) {
                        deal.gone = Some(head);
                        self.escrow -= if deal.active.is_some() { cost(&deal.terms) } else { 0 };
                    }
                }
            }
        }
        self.publish();
        for deal in &mut self.deals {
            let script = &self.providers[&deal.terms.provider.get()].script;
            let start = deal.terms.start.get();
            if deal.gone.is_some() {
                continue;
            }
            match deal.active {
                None if *script != Script::NeverSeals
                    && deal.published + SEALS_AFTER <= head
                    && head <= start =>
                {
                    deal.active = Some(head);
                }
                None if start + UNLOCKS_AFTER <= head => deal.gone = Some(head),
                // What ran to its end stays until somebody settles it.
                Some(active) => {
                    if matches!(script, Script::LosesSectorAfter(after) if active + after <= head) {
                        deal.gone = Some(head);
                    }
                }
                None => {}
            }
        }
    }

    fn publish(&mut self) {
        let head = self.head;
        let mut ready = Vec::new();
        for provider in self.providers.values() {
            if provider.script == Script::NeverPublishes {
                continue;
            }
            for (_, bytes, at, publishes) in &provider.got {
                let terms = &self.terms[bytes];
                if *publishes && *at + PUBLISHES_AFTER <= head && head < terms.start.get() {
                    ready.push((bytes.clone(), terms.clone()));
                }
            }
        }
        for (bytes, terms) in ready {
            // The market drops a proposal that it has, and one that escrow does not cover.
            let known = self.deals.iter().any(|deal| deal.bytes == bytes);
            if known || self.escrow < self.locked() + cost(&terms) {
                continue;
            }
            let id = self.next_deal;
            self.next_deal += 1;
            let deal =
                MarketDeal { id, terms, bytes, published: head, active: None, gone: None, is_faulty: false };
            self.deals.push(deal);
        }
    }

    fn propose(&mut self, to: u64, deal: &SignedDeal) -> Result<Answer, Fault> {
        let terms = self.terms.get(&deal.bytes).cloned().expect("only what was signed is sent");
        let (head, free) = (self.head, self.escrow.saturating_sub(self.locked()));
        let provider = self.providers.get_mut(&to).expect("only known providers are asked");
        let refused = |text: &str| Ok(Answer::Refused(Fault::new(FailureCode::of_refusal(text), text)));
        if provider.script == Script::Away {
            return Err(Fault::new(FailureCode::SpDial, "connection refused"));
        }
        if provider.got.iter().any(|(uuid, ..)| *uuid == terms.uuid) {
            return refused("deal proposal is identical to deal 1 (proposed at 2)");
        }
        if let Some(why) = breaks(&terms, &provider.ask, head, free, to) {
            return refused(&why);
        }
        if let Script::Busy(left @ 1.., text) = &mut provider.script {
            *left -= 1;
            return refused(text);
        }
        let publishes = !matches!(provider.script, Script::Refuses(_));
        provider.got.push((terms.uuid, deal.bytes.clone(), head, publishes));
        match &mut provider.script {
            Script::Refuses(text) | Script::RefusesAndPublishes(text) => refused(text),
            Script::LosesReplies(left) if *left > 0 => {
                *left -= 1;
                // It has heard nothing of them either, but for the last time: then only its answer is lost.
                if *left > 0 {
                    provider.got.pop();
                }
                Err(Fault::new(FailureCode::SpTimeout, "no answer"))
            }
            _ => Ok(Answer::Accepted),
        }
    }

    /// One chance in a call to see a deal at the last final tipset.
    fn deal(&self, id: u64) -> Option<&MarketDeal> {
        let at = self.last_final();
        let found = self.deals.iter().find(|deal| deal.id == id && deal.published <= at);
        found.filter(|deal| deal.gone.is_none_or(|gone| gone > at) && !self.lies.hidden.contains(&id))
    }
}

/// The rule that a proposal breaks, in the words of Boost.
fn breaks(terms: &DealTerms, ask: &Ask, head: i64, free: u128, to: u64) -> Option<String> {
    let duration = terms.end.get() - terms.start.get();
    let needed = cost(terms);
    let cases = [
        (terms.provider.get() != to, "incorrect provider for deal".to_owned()),
        (terms.start.get() < head, format!("deal start epoch {} has already elapsed", terms.start)),
        (!(518_400..=3_680_640).contains(&duration), format!("deal duration out of bounds: {duration}")),
        (terms.end.get() > head + 3_680_640, "invalid deal end epoch".to_owned()),
        (terms.collateral.get() < COLLATERAL, "proposed provider collateral below minimum".to_owned()),
        (terms.collateral.get() > 2 * COLLATERAL, "proposed provider collateral above maximum".to_owned()),
        (
            Some(terms.price_per_epoch) < ask.price.for_piece(terms.size),
            "storage price per epoch less than asking price".to_owned(),
        ),
        (terms.size < ask.min_size || terms.size > ask.max_size, "piece size less than minimum".to_owned()),
        (
            PaddedSize::of_payload(terms.car_bytes) != Some(terms.size),
            "deal proposal piece size doesn't match padded piece size".to_owned(),
        ),
        (
            free < needed,
            format!(
                "client available funds in escrow {free} not enough to meet storage cost for deal {needed}"
            ),
        ),
    ];
    cases.into_iter().find(|(broken, _)| *broken).map(|(_, text)| format!("failed validation: {text}"))
}

impl Chain for Filecoin {
    fn look(&self) -> Boxed<'_, Result<ChainView, Fault>> {
        Box::pin(self.call("look", |state| match &state.lies.look {
            Some(fault) => Err(fault.clone()),
            None => Ok(state.lies.view.unwrap_or(ChainView {
                head: Epoch::new(state.head),
                last_final: Epoch::new(state.last_final()),
            })),
        }))
    }

    fn provider(&self, id: ActorId) -> Boxed<'_, Result<Option<ChainProvider>, Fault>> {
        Box::pin(self.call("provider", move |state| {
            Ok(state.providers.get(&id.get()).map(|provider| ChainProvider {
                owner: ActorId::new(provider.owner),
                peer_id: None,
                addresses: Vec::new(),
                sector_bytes: 32 << 30,
            }))
        }))
    }

    fn collateral(&self, _: PaddedSize) -> Boxed<'_, Result<AttoFil, Fault>> {
        Box::pin(self.call("collateral", |_| Ok(AttoFil::new(COLLATERAL))))
    }

    fn funds(&self) -> Boxed<'_, Result<FundsView, Fault>> {
        Box::pin(self.call("funds", |state| {
            let (head, last_final) = (state.funds(), state.final_funds());
            let told = state.lies.funds.map(|lie| FundsView { head: lie, last_final: lie });
            Ok(told.unwrap_or(FundsView { head, last_final }))
        }))
    }

    fn published(&self, from: Epoch, to: Epoch) -> Boxed<'_, Result<Option<Vec<PublishedDeal>>, Fault>> {
        Box::pin(self.call("published", move |state| {
            if state.lies.keeps_no_events {
                return Ok(None);
            }
            assert!(to.get() <= state.last_final(), "only what is final");
            let within = |deal: &&MarketDeal| (from.get()..=to.get()).contains(&deal.published);
            let found = state.deals.iter().filter(within);
            Ok(Some(
                found
                    .map(|deal| PublishedDeal {
                        deal_id: deal.id,
                        provider: deal.terms.provider,
                        piece: Some(deal.terms.piece),
                        height: Epoch::new(deal.published),
                    })
                    .collect(),
            ))
        }))
    }

    fn deal<'a>(&'a self, id: u64, signed: &'a SignedDeal) -> Boxed<'a, Result<Option<DealOnChain>, Fault>> {
        Box::pin(self.call("deal", move |state| {
            let at = state.last_final();
            Ok(state.deal(id).map(|deal| DealOnChain {
                is_ours: deal.bytes == signed.bytes,
                active_since: deal.active.filter(|active| *active <= at).map(Epoch::new),
                sector: deal.active.map(|_| deal.id + 7),
                is_faulty: deal.is_faulty,
            }))
        }))
    }

    fn own_deal(&self, id: u64) -> Boxed<'_, Result<Option<OwnDeal>, Fault>> {
        Box::pin(self.call("own_deal", move |state| {
            let at = state.last_final();
            Ok(state.deal(id).map(|deal| OwnDeal {
                provider: deal.terms.provider,
                piece: deal.terms.piece,
                size: deal.terms.size,
                start: deal.terms.start,
                end: deal.terms.end,
                price_per_epoch: deal.terms.price_per_epoch,
                collateral: deal.terms.collateral,
                state: DealOnChain {
                    is_ours: true,
                    active_since: deal.active.filter(|active| *active <= at).map(Epoch::new),
                    sector: deal.active.map(|_| deal.id + 7),
                    is_faulty: deal.is_faulty,
                },
            }))
        }))
    }

    fn max_fee(&self) -> AttoFil {
        AttoFil::new(self.0.lock().max_fee)
    }

    fn message<'a>(&'a self, intent: &'a str) -> Boxed<'a, Result<Option<Sent>, Fault>> {
        Box::pin(self.call("message", move |state| {
            let at = state.last_final();
            Ok(state.messages.get(intent).map(|message| sent(intent, message, at, state.max_fee)))
        }))
    }

    fn send<'a>(&'a self, intent: &'a str, call: &'a FundsCall) -> Boxed<'a, Result<Sent, Fault>> {
        Box::pin(self.call("send", move |state| {
            let (head, at) = (state.head, state.last_final());
            if let FundsCall::Send { to, .. } = call
                && !to.starts_with("f1")
            {
                return Err(Fault::new(FailureCode::FundsWallet, "nothing was sent: this is no address"));
            }
            let fresh = Message {
                call: call.clone(),
                at: head,
                applied: None,
                is_missing: false,
                exit_code: 0,
                told: false,
                fee: state.max_fee,
            };
            let message = state.messages.entry(intent.to_owned()).or_insert(fresh);
            assert_eq!(message.call, *call, "one intent is one call");
            Ok(sent(intent, message, at, state.max_fee))
        }))
    }

    fn changed(&self) -> Boxed<'_, ()> {
        let moved = Arc::clone(&self.0.lock().moved);
        Box::pin(async move { moved.notified().await })
    }

    fn tick<'a>(
        &'a self,
        may_send: bool,
        gas: &'a BTreeMap<String, AttoFil>,
    ) -> Boxed<'a, Result<Vec<Sent>, Fault>> {
        Box::pin(self.call("tick", move |state| {
            state.ticks.push(may_send);
            state.gas = gas.clone();
            let at = state.last_final();
            let (mut news, most) = (Vec::new(), state.max_fee);
            for (intent, message) in &mut state.messages {
                let is_over = message.is_missing || message.applied.is_some_and(|applied| applied <= at);
                if !message.told && is_over {
                    message.told = true;
                    news.push(sent(intent, message, at, most));
                }
            }
            Ok(news)
        }))
    }
}

/// `max_fee`: the most that a message may cost now.
fn sent(intent: &str, message: &Message, last_final: i64, max_fee: u128) -> Sent {
    let progress = match message.applied {
        None if message.is_missing => MessageProgress::Missing,
        None => MessageProgress::Pending,
        Some(applied) if applied <= last_final && message.exit_code != 0 => {
            MessageProgress::Final(Err(message.exit_code))
        }
        Some(applied) if applied <= last_final => MessageProgress::Final(Ok(())),
        Some(_) => MessageProgress::Included,
    };
    let max_fee = if matches!(progress, MessageProgress::Final(_)) { GAS } else { max_fee.max(message.fee) };
    Sent { intent: intent.to_owned(), max_fee: AttoFil::new(max_fee), progress }
}

impl Market for Filecoin {
    fn ask<'a>(&'a self, to: &'a Contact) -> Boxed<'a, Result<Ask, Fault>> {
        Box::pin(self.call("ask", move |state| {
            let provider = &state.providers[&to.provider.get()];
            match provider.script {
                Script::Away => Err(Fault::new(FailureCode::SpDial, "connection refused")),
                _ => Ok(provider.ask),
            }
        }))
    }

    fn propose<'a>(&'a self, to: &'a Contact, deal: &'a SignedDeal) -> Boxed<'a, Result<Answer, Fault>> {
        Box::pin(self.call("propose", move |state| state.propose(to.provider.get(), deal)))
    }

    fn status<'a>(&'a self, to: &'a Contact, uuid: DealUuid) -> Boxed<'a, Result<ProviderWord, Fault>> {
        Box::pin(self.call("status", move |state| {
            let provider = state.providers.get_mut(&to.provider.get()).expect("known");
            match provider.script {
                Script::Forgets => {
                    provider.got.retain(|(known, ..)| *known != uuid);
                    provider.script = Script::Good;
                    Ok(ProviderWord::Unknown(format!("no storage deal found with deal UUID {uuid}")))
                }
                Script::ForgetsAndRefuses(text) => {
                    provider.got.retain(|(known, ..)| *known != uuid);
                    provider.script = Script::Refuses(text);
                    Ok(ProviderWord::Unknown("failed to get sealed deal status".into()))
                }
                Script::Names(deal_id) => Ok(ProviderWord::Known {
                    status: "Sealing".into(),
                    error: None,
                    deal_id: Some(deal_id),
                    received: 1,
                }),
                _ => Ok(ProviderWord::Known {
                    status: "Processing".into(),
                    error: None,
                    deal_id: None,
                    received: 1,
                }),
            }
        }))
    }
}

impl Proposer for Filecoin {
    fn wallet(&self) -> String {
        "f1wallet".into()
    }

    fn sign<'a>(&'a self, terms: &'a DealTerms) -> Boxed<'a, Result<SignedDeal, Fault>> {
        Box::pin(self.call("sign", move |state| {
            // New bytes at each signing, as a key with a random nonce gives: who signs twice pays twice.
            let nth = state.signed.values().map(Vec::len).sum::<usize>();
            let bytes = format!("{nth} {terms:?}").into_bytes();
            state.signed.entry(terms.uuid).or_default().push(bytes.clone());
            state.terms.insert(bytes.clone(), terms.clone());
            let mut digest = [0_u8; 32];
            digest[..16].copy_from_slice(terms.uuid.0.as_bytes());
            digest[16..24].copy_from_slice(&(nth as u64).to_le_bytes());
            let hash = Multihash::wrap(0x12, &digest).expect("32 bytes");
            Ok(SignedDeal { bytes, signed_cid: Cid::new_v1(0x71, hash) })
        }))
    }
}
