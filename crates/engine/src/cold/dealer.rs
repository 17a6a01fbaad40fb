//! Makes deals: chooses a provider for each replica that lacks one, reserves the money, has the proposal signed, and sends
//! it.
//!
//! ```text
//!   open slot ──choose──> chosen ──sign──> chosen, signed ──begin──> proposed ──send──> what the provider says
//!             row + money        bytes                     row                          row
//! ```
//!
//! Each arrow is a transaction that is synced before the next begins, so a crash leaves a row that says where to go on:
//! `chosen` is signed or sent, `proposed` becomes `unknown` and the same bytes go out again. They are never signed again.
//! A refusal opens the slot: the next provider is asked in the next pass, while what was reserved for the refused one
//! stays, because its bytes are out. An answer that was lost opens nothing.
//!
//! Nothing is signed or sent that [`Deals::may_spend`] does not permit, and the transactions look at the switch once more.
//! A proposal is signed when escrow covers it beside all that are signed before it, and when the quote it was chosen by
//! still holds: else it waits, or is withdrawn, which is free because nobody has seen it.
//!
//! Stop: between two calls; what was being sent is `unknown` at the next start.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use floe_core::cold::{Answer, ChainView, Contact, Fault, SignedDeal};
use floe_core::place::{Need, Unfit};
use floe_core::{
    AccountId, ActorId, AggregateState, AttoFil, DealState, Epoch, FailureCode, PaddedSize, PieceCid,
};
use floe_records::Error;
use floe_records::cold::{AggregateRow, Chosen, DealRow, NewDeal, ProviderRow, Reply};
use futures::{StreamExt as _, stream};

use super::deals::{Deals, in_words};
use super::roster::{Choice, Roster, ask_of};
use super::terms::{self, Quote, Terms, terms};
use super::{funds, slots};
use crate::backoff::jittered;
use crate::limits;

pub(crate) const NAME: &str = "dealer";

/// Aggregates that may lack replicas.
pub(crate) const PLACED: [AggregateState; 3] =
    [AggregateState::Packed, AggregateState::Placing, AggregateState::Degraded];

/// Runs until the engine stops.
pub(crate) async fn run(d: Arc<Deals>) {
    tokio::select! {
        biased;
        () = d.stop.cancelled() => {}
        () = rounds(&d) => {}
    }
    d.board.state(NAME, "stopped", 0);
}

async fn rounds(d: &Deals) {
    loop {
        pass(d).await;
        tokio::select! {
            () = d.place_due.notified() => {}
            () = d.clock.sleep(limits::PLACE_EVERY) => {}
        }
    }
}

/// One round: what was begun goes on, then open slots are filled.
pub(crate) async fn pass(d: &Deals) {
    let view = match d.may_spend().await {
        Ok(view) => view,
        Err(paused) => return d.board.state(NAME, format!("paused: {paused}"), 0),
    };
    if let Err(error) = deal(d, view).await {
        tracing::warn!(%error, "deals are not made: {error}");
        d.board.error(NAME, error);
    }
}

async fn deal(d: &Deals, view: ChainView) -> Result<(), Error> {
    if waits_for_restore(d, view).await? {
        // Not even what these rows have begun: another provider may hold what was signed for the same slot since.
        d.board.state(NAME, "waiting for what the restored rows do not know", 0);
        return Ok(());
    }
    d.begins_round();
    let mut escrow = Escrow::default();
    let mut ready = begun(d, view, &mut escrow).await?;
    let mut roster = Roster::load(d).await?;
    let mut lacking = 0;
    let mut room = room(d).await?;
    let mut after = None;
    'all: loop {
        let page = d.records.aggregates(&PLACED, after, limits::AGGREGATES_PER_PASS).await?;
        let Some(last) = page.last().map(|row| row.id) else { break };
        for aggregate in page {
            if ready.len() >= limits::SENDINGS_PER_PASS {
                limits::hit("sendings_per_pass");
                d.place_due.notify_one();
                break 'all;
            }
            lacking += fill(d, view, &aggregate, &mut roster, &mut escrow, &mut room, &mut ready).await?;
        }
        after = Some(last);
    }
    d.board.state(NAME, if ready.is_empty() { "waiting" } else { "sending" }, lacking);
    let refused = send_all(d, view, ready).await?;
    if refused > 0 {
        d.place_due.notify_one();
    }
    Ok(())
}

/// How many more deals may be on their way.
async fn room(d: &Deals) -> Result<u64, Error> {
    let counts = d.records.deal_counts().await?;
    let open = [DealState::Chosen, DealState::Proposed, DealState::Unknown, DealState::Accepted];
    let open: u64 = open.iter().filter_map(|state| counts.get(state)).sum();
    Ok(limits::DEALS_IN_FLIGHT.saturating_sub(open))
}

/// What an earlier round, or an earlier process, began: signed where it is not, and what is due to be sent.
async fn begun(d: &Deals, view: ChainView, escrow: &mut Escrow) -> Result<Vec<DealRow>, Error> {
    let most = limits::SENDINGS_PER_PASS as u32;
    let mut ready = Vec::new();
    for row in d.records.deals_due(DealState::Chosen, d.now(), most).await? {
        if !d.records.has_live_pins(row.aggregate).await? {
            let why = Fault::new(FailureCode::Unwanted, "nobody pins any of the piece any more");
            d.records.withdraw_deal(row.uuid, why).await?;
            continue;
        }
        ready.extend(prepare(d, view, escrow, row, None).await?);
    }
    let lost = d.records.deals_due(DealState::Unknown, d.now(), most).await?;
    ready.extend(lost.into_iter().filter(|row| view.head < row.start));
    Ok(ready)
}

/// Fills the open slots of one aggregate. Says how many it still lacks.
async fn fill(
    d: &Deals,
    view: ChainView,
    aggregate: &AggregateRow,
    roster: &mut Roster,
    escrow: &mut Escrow,
    room: &mut u64,
    ready: &mut Vec<DealRow>,
) -> Result<u64, Error> {
    let mut lacking = 0;
    if !d.records.has_live_pins(aggregate.id).await? {
        // What providers have, or may publish, goes on to its end; nothing is bought beside it or after it.
        let deals = d.records.deals_of_aggregate(aggregate.id).await?;
        if deals.iter().all(|deal| !deal.state.is_exposed()) {
            d.records.aggregate_unwanted(aggregate.id).await?;
        }
        return Ok(0);
    }
    let Some(open) = Open::load(d, view, aggregate.clone()).await? else { return Ok(0) };
    let mut deals = open.deals.clone();
    for slot in open.slots.clone() {
        if *room == 0 {
            limits::hit("deals_in_flight");
            return Ok(lacking + 1);
        }
        let choice = open.choose(d, view, roster, slot, &deals).await?;
        let (new, choice) = match choice {
            Ok(found) => found,
            Err(why) => {
                match open.again(d, view, roster, slot, &deals).await? {
                    Some(row) if escrow.covers_or_tells(d, &row).await => {
                        *room -= 1;
                        ready.push(row);
                    }
                    Some(row) => d.lacks_for_again(row.cost),
                    None => d.board.error(NAME, why),
                }
                lacking += 1;
                continue;
            }
        };
        match d.records.choose_deal(new, d.caps()).await? {
            Chosen::Deal(row) => {
                *room -= 1;
                deals.push((*row).clone());
                ready.extend(prepare(d, view, escrow, *row, Some(&choice)).await?);
            }
            Chosen::OverCap(over) => {
                d.board.error(NAME, over);
                return Ok(lacking + 1);
            }
            Chosen::Off | Chosen::SlotTaken => return Ok(lacking + 1),
        }
    }
    Ok(lacking)
}

/// An aggregate that lacks replicas, with all that a deal for it is made of. The plan reads it too.
pub(crate) struct Open {
    pub(crate) aggregate: AggregateRow,
    pub(crate) deals: Vec<DealRow>,
    pub(crate) slots: Vec<u32>,
    pub(crate) policy: floe_core::Policy,
    weights: BTreeMap<AccountId, u64>,
    piece: PieceCid,
    size: PaddedSize,
    root: floe_core::Cid,
}

impl Open {
    /// `None` where nothing is to be placed now.
    pub(crate) async fn load(
        d: &Deals,
        view: ChainView,
        aggregate: AggregateRow,
    ) -> Result<Option<Self>, Error> {
        let parts = aggregate.piece.zip(aggregate.size).zip(aggregate.root);
        let Some(((piece, size), root)) = parts else { return Ok(None) };
        let Some(policy) = d.policy(&aggregate.policy).cloned() else {
            let (id, name) = (aggregate.id, &aggregate.policy);
            d.board.error(
                NAME,
                format!("aggregate {id} waits: the configuration has no policy {name:?} any more"),
            );
            return Ok(None);
        };
        let deals = d.records.deals_of_aggregate(aggregate.id).await?;
        let mut slots = slots::open(aggregate.replicas, &deals, &policy, view.head);
        if waits_for_restore(d, view).await? {
            slots.clear();
        }
        if slots.is_empty() || !is_here(d, &aggregate, &deals).await? {
            return Ok(None);
        }
        let weights = weights(d, aggregate.id).await?;
        Ok(Some(Self { aggregate, deals, slots, policy, weights, piece, size, root }))
    }

    /// Who gets a slot, and on which terms; or why nobody does. `deals` are those of the aggregate, with what was chosen
    /// since it was loaded.
    pub(crate) async fn choose(
        &self,
        d: &Deals,
        view: ChainView,
        roster: &mut Roster,
        slot: u32,
        deals: &[DealRow],
    ) -> Result<Result<(NewDeal, Choice), String>, Error> {
        let (taken, tried, owners) = (slots::taken(deals), slots::tried(deals), slots::owners(deals));
        let need = self.need(d, view, slot, deals, (&tried, &owners));
        // Who came to nothing with this piece comes behind all who were not asked for it yet.
        let mut choice = roster.choose(d, &need).await?;
        if choice.is_err() && tried.len() > taken.len() {
            choice = roster.choose(d, &Need { taken: &taken, ..need }).await?;
        }
        let choice = match choice {
            Ok(choice) => choice,
            Err(unfit) => return Ok(Err(self.nobody(slot, &unfit))),
        };
        let least_collateral = match d.chain.collateral(self.size).await {
            Ok(least) => least,
            Err(fault) => return Ok(Err(format!("the collateral is not known: {}", in_words(&fault)))),
        };
        let quote = Quote {
            policy: &self.policy,
            start_lead: d.settings.deals.start_lead,
            head: view.head,
            size: self.size,
            car_bytes: self.aggregate.car_bytes,
            root: &self.root,
            ask: choice.ask,
            least_collateral,
            sector_bytes: choice.chain.sector_bytes,
        };
        Ok(match terms(&quote) {
            Ok(terms) => Ok((self.deal(d, view, slot, &choice, &terms), choice)),
            Err(unsound) => Err(format!("aggregate {}, slot {slot}: {unsound}", self.aggregate.id)),
        })
    }

    /// What goes out again for a slot that nobody else fits: the bytes that their provider refused for now, if it would be
    /// chosen today and asks for no more than they pay. Of several the one that would be chosen first.
    async fn again(
        &self,
        d: &Deals,
        view: ChainView,
        roster: &mut Roster,
        slot: u32,
        deals: &[DealRow],
    ) -> Result<Option<DealRow>, Error> {
        let mut waiting = slots::refused_for_now(deals, slot, d.now());
        waiting.retain(|row| has_time(d, view, row.start));
        if waiting.is_empty() {
            return Ok(None);
        }
        let (mut taken, owners) = (slots::taken(deals), slots::owners(deals));
        if roster.choose(d, &self.need(d, view, slot, deals, (&taken, &owners))).await?.is_ok() {
            // Somebody else fits, and something else stands in the way.
            return Ok(None);
        }
        taken.retain(|id| waiting.iter().all(|row| row.provider != *id));
        // Each turn takes one of those that wait, so there are no more turns than these.
        loop {
            let need = self.need(d, view, slot, deals, (&taken, &owners));
            let Ok(choice) = roster.choose(d, &need).await? else { return Ok(None) };
            let provider = choice.placement.provider;
            let asked = choice.ask.price.for_piece(self.size);
            match waiting.iter().find(|row| row.provider == provider) {
                Some(row) if asked.is_some_and(|asked| asked <= row.price) => {
                    return Ok(Some((*row).clone()));
                }
                Some(_) => taken.push(provider),
                None => return Ok(None),
            }
        }
    }

    fn need<'a>(
        &'a self,
        d: &Deals,
        view: ChainView,
        slot: u32,
        deals: &[DealRow],
        (taken, owners): (&'a [ActorId], &'a [ActorId]),
    ) -> Need<'a> {
        Need {
            policy: &self.policy,
            size: self.size,
            now: view.head,
            taken,
            owners,
            shared_owners: d.settings.deals.shared_owners,
            tie: slots::tie(self.aggregate.id, slot, deals),
        }
    }

    fn deal(&self, d: &Deals, view: ChainView, slot: u32, choice: &Choice, terms: &Terms) -> NewDeal {
        NewDeal {
            wallet: d.proposer.wallet(),
            aggregate: self.aggregate.id,
            slot,
            provider: choice.placement.provider,
            owner: choice.chain.owner,
            policy: self.policy.name.clone(),
            piece: self.piece,
            size: self.size,
            car_bytes: self.aggregate.car_bytes,
            root: self.root,
            ipni: self.policy.ipni,
            price: terms.price,
            collateral: terms.collateral,
            head: view.head,
            start: terms.start,
            end: terms.end,
            weights: self.weights.clone(),
        }
    }

    fn nobody(&self, slot: u32, unfit: &[(ActorId, Unfit)]) -> String {
        if unfit.is_empty() {
            return "no provider is known: add one with `floe providers add`".to_owned();
        }
        let reasons: Vec<String> = unfit.iter().map(|(id, why)| format!("{id}: {why}")).collect();
        format!("aggregate {}, slot {slot}: no provider fits: {}", self.aggregate.id, reasons.join("; "))
    }
}

/// What each account has in an aggregate: by this it bears the cost.
pub(crate) async fn weights(d: &Deals, aggregate: uuid::Uuid) -> Result<BTreeMap<AccountId, u64>, Error> {
    let mut weights = BTreeMap::new();
    for pin in d.records.aggregate_pins(aggregate).await? {
        *weights.entry(pin.account).or_insert(0_u64) += pin.size.bytes();
    }
    Ok(weights)
}

/// Whether the blocks are here. Where they are not, and nothing of the aggregate is anywhere, it is given up.
async fn is_here(d: &Deals, aggregate: &AggregateRow, deals: &[DealRow]) -> Result<bool, Error> {
    if d.records.is_aggregate_here(aggregate.id).await? {
        return Ok(true);
    }
    if deals.iter().any(|deal| deal.state.holds_slot()) {
        let id = aggregate.id;
        d.board.error(NAME, format!("aggregate {id} lacks replicas, and its blocks are not here any more"));
    } else {
        d.records.aggregate_lost(aggregate.id).await?;
    }
    Ok(false)
}

/// After a restored backup nothing is signed or sent, and slots wait, until nobody can publish what these rows do not know.
pub(crate) async fn waits_for_restore(d: &Deals, view: ChainView) -> Result<bool, Error> {
    let Some(restored) = d.records.restored().await? else { return Ok(false) };
    let waits = restored.safe_from.is_none_or(|safe| view.last_final < safe);
    if waits {
        let until =
            restored.safe_from.map_or("the chain is looked at".to_owned(), |e| format!("epoch {e} is final"));
        d.board.error(
            NAME,
            format!("these rows were restored: no slot is filled and nothing is sent until {until}"),
        );
    }
    Ok(waits)
}

/// What escrow still covers, read once a pass, and anew after each call of the operator's.
#[derive(Default)]
struct Escrow {
    /// What is free beside all that is signed.
    known: Option<AttoFil>,
    /// The operator's calls before it was read.
    calls: u64,
}

impl Escrow {
    /// Whether one more deal of `cost` is covered beside all that are signed. Nothing is while a call of the operator's is
    /// on its way: it may take out what would cover it.
    async fn covers(&mut self, d: &Deals, cost: AttoFil) -> Result<bool, Fault> {
        let calls = d.operators_calls.load(Ordering::Acquire);
        let left = match self.known.filter(|_| self.calls == calls) {
            Some(known) => known,
            None => {
                if funds::operator_is_at_it(d).await? {
                    return Ok(false);
                }
                read_left(d).await?
            }
        };
        let rest = left.checked_sub(cost);
        (self.known, self.calls) = (Some(rest.unwrap_or(left)), calls);
        Ok(rest.is_some())
    }

    /// The same of a deal; where it is not covered a look is due, which tops up, and the board says so.
    async fn covers_or_tells(&mut self, d: &Deals, row: &DealRow) -> bool {
        match self.covers(d, row.cost).await {
            Ok(true) => return true,
            Ok(false) => {
                d.ring_for_escrow();
                d.board.error(NAME, format!("the deal {} waits for escrow", row.uuid));
            }
            Err(fault) => d.board.error(NAME, in_words(&fault)),
        }
        false
    }
}

/// What is free beside all that is signed, at the head and at finality alike: what came in since is not there yet.
async fn read_left(d: &Deals) -> Result<AttoFil, Fault> {
    // The rows first: what is published in between counts twice then, and not for nothing.
    let rows = d.records.unpublished_cost().await;
    let rows = rows.map_err(|error| Fault::new(FailureCode::FundsEscrow, error.to_string()))?;
    let there = d.chain.funds().await?;
    there.least(|funds, underway| {
        let free = funds.free().map_err(Fault::from)?;
        Ok(free.checked_sub(rows.signed(underway)).unwrap_or_default())
    })
}

/// Signs a chosen deal, if its terms still hold and escrow covers it. `None`: not now, or never.
async fn prepare(
    d: &Deals,
    view: ChainView,
    escrow: &mut Escrow,
    row: DealRow,
    fresh: Option<&Choice>,
) -> Result<Option<DealRow>, Error> {
    if let Err(stale) = holds(d, view, &row, fresh).await {
        if stale.code != FailureCode::ChainUnreachable {
            tracing::info!(deal = %row.uuid, "a deal is chosen anew: {}", in_words(&stale));
            d.records.withdraw_deal(row.uuid, stale).await?;
            d.place_due.notify_one();
        }
        return Ok(None);
    }
    if row.signed.is_some() {
        return Ok(Some(row));
    }
    if escrow.covers_or_tells(d, &row).await { sign(d, row).await } else { Ok(None) }
}

/// Signs, once: what comes back is stored before anybody else sees it.
async fn sign(d: &Deals, row: DealRow) -> Result<Option<DealRow>, Error> {
    let Some(url) = d.settings.pull_url_of(row.uuid) else { return Ok(None) };
    match d.proposer.sign(&row.terms(url)).await {
        Ok(signed) => d.records.store_signed(row.uuid, signed).await.map(Some),
        Err(fault) => {
            d.board.error(NAME, format!("the deal {} is not signed: {}", row.uuid, in_words(&fault)));
            Ok(None)
        }
    }
}

/// Whether what is left until the start is still most of the lead: providers need the time to seal, and by Boost's default
/// take nothing that leaves them less than a day.
fn has_time(d: &Deals, view: ChainView, start: Epoch) -> bool {
    start.since(view.head) >= limits::least_lead(d.settings.deals.start_lead).unsigned_abs()
}

/// Whether the terms of a deal that nobody has seen yet are still those that would be agreed on now. An increase of any
/// kind needs a new quote, and with it a new choice.
async fn holds(d: &Deals, view: ChainView, row: &DealRow, fresh: Option<&Choice>) -> Result<(), Fault> {
    if fresh.is_some() {
        return Ok(());
    }
    if !has_time(d, view, row.start) {
        let why = format!("it would start at {}, and the head is {}", row.start, view.head);
        return Err(Fault::new(FailureCode::RejectedStartEpoch, why));
    }
    let least = d.chain.collateral(row.size).await;
    let least = least.map_err(|fault| Fault::new(FailureCode::ChainUnreachable, fault.text))?;
    if !terms::collateral_holds(row.collateral, least) {
        let why = format!("the chain wants {least} attoFIL of collateral now, and not {}", row.collateral);
        return Err(Fault::new(FailureCode::RejectedCollateral, why));
    }
    let provider = d.records.provider(row.provider).await;
    let provider = provider.map_err(|error| Fault::new(FailureCode::SpUnresolvable, error.to_string()))?;
    still_fits(d, row, &provider)?;
    let ask = ask_of(d, row.provider, &provider.contact(), view.head).await;
    let asked = ask.and_then(|ask| ask.price.for_piece(row.size));
    match asked {
        Some(asked) if asked <= row.price => Ok(()),
        Some(asked) => {
            Err(Fault::new(FailureCode::RejectedPrice, format!("it asks for {asked} attoFIL an epoch now")))
        }
        None => Err(Fault::new(FailureCode::SpDial, "it gives no ask any more")),
    }
}

/// Whether the policy as it is now would still choose this provider at this price, and the operator did not suspend it.
fn still_fits(d: &Deals, row: &DealRow, provider: &ProviderRow) -> Result<(), Fault> {
    let unfit = |why: String| Err(Fault::new(FailureCode::RejectedOther, why));
    let Some(policy) = d.policy(&row.policy) else {
        return unfit(format!("the configuration has no policy {:?} any more", row.policy));
    };
    if provider.suspended.is_some() {
        return unfit(Unfit::Suspended.to_string());
    }
    if !policy.lists(provider.id) {
        return unfit(Unfit::NotListed.to_string());
    }
    if !policy.is_within(&provider.regions) {
        return unfit(Unfit::Region.to_string());
    }
    if policy.max_price.for_piece(row.size).is_none_or(|most| row.price > most) {
        return unfit(format!(
            "it was to be paid {} attoFIL an epoch, and the policy permits less now",
            row.price
        ));
    }
    Ok(())
}

/// Sends what is ready, some at a time. Says how many were refused.
async fn send_all(d: &Deals, view: ChainView, ready: Vec<DealRow>) -> Result<usize, Error> {
    let sent: Vec<Result<bool, Error>> = stream::iter(ready)
        .map(|row| send(d, view.head, row))
        .buffer_unordered(limits::SENDINGS_AT_ONCE)
        .collect()
        .await;
    let mut refused = 0;
    for outcome in sent {
        refused += usize::from(outcome?);
    }
    Ok(refused)
}

/// Sends a deal's bytes once. Whether its slot is open again.
pub(crate) async fn send(d: &Deals, head: Epoch, row: DealRow) -> Result<bool, Error> {
    let retry_at = d.now().after(retry(row.tries, d.random()));
    let Some(row) = d.records.begin_sending(row.uuid, head, retry_at).await? else { return Ok(false) };
    let Some(signed) = &row.signed else { return Ok(false) };
    let reply = match contact_of(d, row.provider).await? {
        Some(contact) => propose(d, &contact, signed).await,
        None => Reply::Lost(Fault::new(FailureCode::SpUnresolvable, "this provider is not known any more")),
    };
    let due = match &reply {
        Reply::Accepted => d.now().after(jittered(limits::STATUS_FIRST, d.random())),
        Reply::Refused(_) | Reply::Lost(_) => retry_at,
    };
    let row = d.records.answered(row.uuid, reply, head, due).await?;
    if let Some(error) = row.error.as_ref().filter(|_| row.state == DealState::Refused) {
        tracing::info!(deal = %row.uuid, provider = %row.provider, "refused: {}", in_words(error));
    }
    Ok(row.state == DealState::Refused)
}

async fn propose(d: &Deals, contact: &Contact, signed: &SignedDeal) -> Reply {
    match d.market.propose(contact, signed).await {
        Ok(Answer::Accepted) => Reply::Accepted,
        // It has had these bytes: an earlier sending arrived.
        Ok(Answer::Refused(fault)) if fault.code == FailureCode::RejectedDuplicate => Reply::Accepted,
        Ok(Answer::Refused(fault)) => Reply::Refused(fault),
        Err(fault) => Reply::Lost(fault),
    }
}

pub(crate) async fn contact_of(d: &Deals, provider: ActorId) -> Result<Option<Contact>, Error> {
    match d.records.provider(provider).await {
        Ok(row) => Ok(Some(row.contact())),
        Err(Error::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The wait before the same bytes go out again.
fn retry(tries: u32, random: u64) -> Duration {
    let doubled = limits::SEND_RETRY_FIRST.saturating_mul(1_u32 << tries.min(16));
    jittered(doubled.min(limits::SEND_RETRY_MOST), random)
}
