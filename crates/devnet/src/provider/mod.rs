//! A storage provider: takes proposals, pulls their data, publishes, seals, serves the pieces; or does not, by script.
//!
//! ```text
//!  store ──accept──> Book ──transfer──> data ──CommP──> publish ──> confirmed ──seal delay──> sector ──> active
//!                     │        (task)                   message      (chain)                  message    (chain)
//!                     └──<── status, in Boost's or in Curio's manner
//! ```
//!
//! The [`Book`] is the provider's own memory. Where a deal stands beyond the transfer is read from the chain at every
//! change of it, so that a reorg takes a publication or an activation back as it takes everything else.
//!
//! One task follows the chain and pushes messages, each transfer is a task of its own. All end with the provider.

mod accept;
pub(crate) mod codec;
mod http;
pub(crate) mod p2p;
mod pull;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::wire::Cid;
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, broadcast};
use tokio::task::JoinSet;

pub(crate) use self::http::router;
use self::p2p::Contact;
use self::pull::{Patience, Pull};
use crate::chain::{
    Chain, DECLARE_FAULTS, PROVE_COMMIT, PUBLISH_STORAGE_DEALS, TERMINATE, gas, miner_params,
};
use crate::faults::{ProviderFaults, StatusFault};
use crate::limits::{PROVIDER_DEALS, PULL_LOG, TRANSFERS};
use crate::node::Node;
use crate::wire::address::{Address, MARKET};
use crate::wire::cbor;
use crate::wire::commp;
use crate::wire::deal::{Ask, DealParams, Status, StatusRequest, StatusResponse, publish_params, uuid_text};
use crate::wire::key::Key;
use crate::wire::message::{Message, SignedMessage};

/// Whose ways a provider has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// Boost: tells every step of a deal, pads pieces up.
    Boost,
    /// Curio: tells `Processing` until the end, wants the exact piece size.
    Curio,
}

/// What a provider takes, and how fast it is.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) miner: Address,
    pub(crate) manner: Manner,
    /// attoFIL for a GiB and an epoch.
    pub(crate) price: i128,
    pub(crate) min_piece_size: u64,
    pub(crate) max_piece_size: u64,
    /// Epochs that must be left until a deal's start, as Boost wants.
    pub(crate) seal_lead: i64,
    /// Epochs from the publication to the sector.
    pub(crate) seal_delay: i64,
    /// A transfer without a byte for so long is tried again.
    pub(crate) stall: Duration,
}

/// What a provider remembers.
#[derive(Default)]
struct Book {
    deals: BTreeMap<[u8; 16], Deal>,
    /// In the order of their acceptance.
    order: Vec<[u8; 16]>,
    /// Bytes of all deals that may be in memory.
    staged: u64,
}

/// A deal, as the provider knows it.
struct Deal {
    params: DealParams,
    refused: bool,
    /// Seconds since 1970, and nanoseconds, which count the deals.
    accepted_time: (u64, usize),
    transferring: bool,
    received: u64,
    data: Option<Bytes>,
    /// Why there will be nothing of it.
    error: Option<String>,
    publish: Option<Sent>,
    seal: Option<Sent>,
    terminated: bool,
    faulted: bool,
    pulls: VecDeque<Pull>,
}

/// A message of the provider's.
#[derive(Clone, Copy)]
struct Sent {
    cid: Cid,
    at: i64,
}

/// Where a deal stands on the chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct OnChain {
    deal_id: Option<u64>,
    published_at: i64,
    sector: Option<u64>,
    active_since: i64,
}

/// A provider.
pub(crate) struct Provider {
    pub(crate) terms: Terms,
    contact: Contact,
    worker: Key,
    node: Arc<Node>,
    faults: Mutex<ProviderFaults>,
    book: Mutex<Book>,
    transfers: Semaphore,
}

impl Provider {
    pub(crate) fn new(terms: Terms, contact: Contact, worker: Key, node: Arc<Node>) -> Self {
        Self {
            terms,
            contact,
            worker,
            node,
            faults: Mutex::default(),
            book: Mutex::default(),
            transfers: Semaphore::new(TRANSFERS),
        }
    }

    pub(crate) fn set_faults(&self, faults: ProviderFaults) {
        *self.faults.lock() = faults;
    }

    pub(crate) fn faults(&self) -> ProviderFaults {
        self.faults.lock().clone()
    }

    /// The ask, signed.
    fn ask(&self) -> Option<Vec<u8>> {
        let price = self.faults.lock().asked().unwrap_or(self.terms.price);
        let ask = Ask {
            price,
            verified_price: price / 10,
            min_piece_size: self.terms.min_piece_size,
            max_piece_size: self.terms.max_piece_size,
            miner: self.terms.miner,
            timestamp: 0,
            expiry: 1_000_000,
            seq_no: 0,
        };
        ask.response(&self.worker).ok()
    }

    /// Takes a proposal or says why not.
    fn store(&self, params: DealParams) -> Result<(), String> {
        let faults = self.faults();
        let mut book = self.book.lock();
        let (checked, time) = self.node.chain(|chain| {
            let checked = accept::check(&self.terms, &book, chain, &faults, &params);
            (checked, chain.head().timestamp())
        });
        let refused = checked.is_err();
        let known = book.deals.contains_key(&params.uuid);
        if (refused && !faults.publish_refused) || known || book.deals.len() >= PROVIDER_DEALS {
            return checked;
        }
        let uuid = params.uuid;
        book.staged += params.transfer.size;
        let deal = Deal {
            params,
            refused,
            accepted_time: (time, book.order.len() + 1),
            transferring: false,
            received: 0,
            data: None,
            error: None,
            publish: None,
            seal: None,
            terminated: false,
            faulted: false,
            pulls: VecDeque::new(),
        };
        book.deals.insert(uuid, deal);
        book.order.push(uuid);
        checked
    }

    /// Follows the chain until it ends. Dropping the future ends all transfers.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut changes = self.node.follow();
        let mut transfers = JoinSet::new();
        // A proposal may come between two epochs that are far apart.
        let mut look = tokio::time::interval(LOOK);
        loop {
            let changed = tokio::select! {
                change = changes.recv() => match change {
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => true,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                _ = look.tick() => false,
                Some(_) = transfers.join_next() => true,
            };
            if self.faults.lock().offline {
                continue;
            }
            for uuid in self.to_transfer() {
                transfers.spawn(Arc::clone(&self).transfer(uuid));
            }
            if changed {
                self.step();
            }
        }
    }

    fn to_transfer(&self) -> Vec<[u8; 16]> {
        let mut book = self.book.lock();
        let waiting = book.deals.iter_mut().filter(|(_, deal)| {
            deal.data.is_none()
                && deal.error.is_none()
                && !deal.transferring
                && !deal.params.offline
                && !deal.refused
        });
        let room = self.transfers.available_permits();
        waiting
            .take(room)
            .map(|(uuid, deal)| {
                deal.transferring = true;
                *uuid
            })
            .collect()
    }

    async fn transfer(self: Arc<Self>, uuid: [u8; 16]) {
        let Ok(_permit) = self.transfers.acquire().await else { return };
        let params = self.book.lock().deals.get(&uuid).map(|deal| deal.params.clone());
        let Some(params) = params else { return };
        if self.faults.lock().stall_transfer {
            // Looked at again when the script changes.
            while self.faults.lock().stall_transfer {
                tokio::time::sleep(LOOK).await;
            }
        }
        let log = |pull: Pull| {
            if let Some(deal) = self.book.lock().deals.get_mut(&uuid) {
                deal.received += pull.bytes;
                deal.pulls.push_back(pull);
                if deal.pulls.len() > PULL_LOG {
                    deal.pulls.pop_front();
                }
            }
        };
        let patience = Patience { stall: self.terms.stall, pause: PAUSE };
        let pulled = pull::pull(&params.transfer.params, params.transfer.size, patience, &log).await;
        let checked = match pulled {
            Ok(data) => self.verify(&params, data).await,
            Err(why) => Err(format!("data-transfer failed: {why}")),
        };
        let mut book = self.book.lock();
        let Some(deal) = book.deals.get_mut(&uuid) else { return };
        deal.transferring = false;
        match checked {
            Ok(data) => deal.data = Some(data),
            Err(why) => {
                deal.error = Some(why);
                book.staged -= params.transfer.size;
            }
        }
    }

    /// The data's CommP against the proposal's, in a piece of the proposal's size.
    async fn verify(&self, params: &DealParams, data: Vec<u8>) -> Result<Bytes, String> {
        let (wanted, size) = (params.deal.proposal.piece_cid, params.deal.proposal.piece_size);
        if commp::padded_size(data.len() as u64) > size {
            return Err(format!("piece of {} bytes is larger than the proposal's size {size}", data.len()));
        }
        let wrong = self.faults.lock().wrong_commp;
        let hashed = tokio::task::spawn_blocking(move || {
            let mut root = commp::root(&data, size);
            root[0] ^= u8::from(wrong);
            (commp::piece_cid(&root), data)
        });
        let Ok((found, data)) = hashed.await else { return Err("CommP was given up".into()) };
        if found == wanted {
            return Ok(Bytes::from(data));
        }
        Err(format!("commp mismatch: deal proposal piece cid {wanted} does not match the data's {found}"))
    }

    /// What an epoch asks of each deal.
    fn step(&self) {
        let faults = self.faults();
        let mut book = self.book.lock();
        self.node.chain(|chain| {
            for deal in book.deals.values_mut() {
                self.step_deal(chain, &faults, deal);
            }
        });
    }

    fn step_deal(&self, chain: &mut Chain, faults: &ProviderFaults, deal: &mut Deal) {
        let head = chain.head().height;
        let ready = deal.data.is_some() || deal.refused;
        if deal.error.is_some() || !ready || faults.never_publish {
            return;
        }
        let stands = stands(chain, deal);
        if stands.deal_id.is_none() {
            let lost = deal.publish.is_none_or(|sent| is_lost(chain, &sent));
            if lost && head <= deal.params.deal.proposal.start {
                let params = publish_params(std::slice::from_ref(&deal.params.deal));
                deal.publish = self.send(chain, MARKET, PUBLISH_STORAGE_DEALS, params);
            } else if let Some(why) = deal.publish.and_then(|sent| failed(chain, &sent.cid)) {
                deal.error = Some(format!("failed to publish deal: {why}"));
            }
            return;
        }
        let Some(deal_id) = stands.deal_id else { return };
        if stands.sector.is_none() {
            let due = head >= stands.published_at.saturating_add(self.terms.seal_delay);
            let lost = deal.seal.is_none_or(|sent| is_lost(chain, &sent));
            let live = chain.latest().market.deals.contains_key(&deal_id);
            if due && lost && live && !faults.never_seal && !deal.refused {
                deal.seal = self.send(chain, self.terms.miner, PROVE_COMMIT, miner_params(&[deal_id]));
            } else if let Some(why) = deal.seal.and_then(|sent| failed(chain, &sent.cid)) {
                deal.error = Some(format!("failed to seal: {why}"));
            }
            return;
        }
        let Some(sector) = stands.sector else { return };
        let after =
            |epochs: Option<i64>| epochs.is_some_and(|n| head >= stands.active_since.saturating_add(n));
        if after(faults.terminate_after) && !deal.terminated {
            deal.terminated =
                self.send(chain, self.terms.miner, TERMINATE, miner_params(&[sector])).is_some();
        }
        if after(faults.faulty_after) && !deal.faulted {
            deal.faulted =
                self.send(chain, self.terms.miner, DECLARE_FAULTS, miner_params(&[sector])).is_some();
        }
    }

    /// Signs and pushes a message of the worker's. None where the pool refuses it; the next epoch tries again.
    fn send(&self, chain: &mut Chain, to: Address, method: u64, params: Vec<u8>) -> Option<Sent> {
        let from = self.worker.address();
        let mut message = Message {
            version: 0,
            to,
            from,
            nonce: chain.nonce(from).ok()?,
            value: 0,
            gas_limit: 0,
            gas_fee_cap: 100_000,
            gas_premium: 1_000,
            method,
            params,
        };
        message.gas_limit = gas(&message).saturating_mul(5) / 4;
        let signed = SignedMessage::sign(message, &self.worker).ok()?;
        match chain.push(signed) {
            Ok(cid) => Some(Sent { cid, at: chain.head().height }),
            Err(why) => {
                tracing::warn!(provider = %self.terms.miner, %why, "a message was refused");
                None
            }
        }
    }

    /// Answers a question about a deal; None where the script says nothing at all.
    fn status(&self, request: &StatusRequest) -> Option<StatusResponse> {
        let faults = self.faults();
        let refused = |error: String| Some(StatusResponse::refused(request.uuid, error));
        let unknown = match self.terms.manner {
            Manner::Boost => format!("no storage deal found with deal UUID {}", uuid_text(&request.uuid)),
            Manner::Curio => "failed to get sealed deal status".to_owned(),
        };
        match &faults.status {
            Some(StatusFault::Silent) => return None,
            Some(StatusFault::Error(text)) => return refused(text.clone()),
            Some(StatusFault::NotFound) => return refused(unknown),
            Some(StatusFault::Lie(_)) | None => {}
        }
        let book = self.book.lock();
        let Some(deal) = book.deals.get(&request.uuid).filter(|deal| !deal.refused) else {
            return refused(unknown);
        };
        let client = deal.params.deal.proposal.client;
        let key = self.node.chain(|chain| accept::client_key(chain, client));
        if key.is_none_or(|key| request.signature.verify(key, &request.uuid).is_err()) {
            return refused("signature verification failed".into());
        }
        let (stands, head) = self.node.chain(|chain| (stands(chain, deal), chain.head().height));
        let mut answer = match self.terms.manner {
            Manner::Boost => self.boost_status(deal, &stands, head, faults.index_error),
            Manner::Curio => curio_status(deal, &stands, faults.index_error),
        };
        if let Some(status) = &mut answer.status {
            if let Some(other) = faults.report_deal_id {
                status.chain_deal_id = other;
            }
            if let Some(StatusFault::Lie(text)) = &faults.status {
                status.status = text.clone();
            }
        }
        Some(answer)
    }

    fn boost_status(&self, deal: &Deal, stands: &OnChain, head: i64, index_error: bool) -> StatusResponse {
        // Boost asks its sealer about sector 0 until the deal has one, and says only what comes of that.
        let Some(deal_id) = stands.deal_id.filter(|_| head > stands.published_at) else {
            let error = "getting sector status from sealer";
            return StatusResponse::refused(deal.params.uuid, error);
        };
        let sealing = if stands.sector.is_some() {
            "Proving"
        } else {
            let passed = head - stands.published_at;
            let steps = SEALING.len() as i64 - 1;
            let step = passed.saturating_mul(steps) / self.terms.seal_delay.max(1);
            SEALING[usize::try_from(step.clamp(0, steps)).unwrap_or(0)]
        };
        let indexed = stands.sector.is_some() && !index_error;
        let status = if indexed { "IndexedAndAnnounced" } else { "AddedPiece" };
        let error = match &deal.error {
            Some(error) => error.clone(),
            // Boost tries to index when the data is in a sector that seals.
            None if index_error && sealing != SEALING[0] => index_failure(deal, stands),
            None => String::new(),
        };
        filled(deal, stands, (status, sealing), error, Some(deal_id))
    }

    /// The deals of the book, for tests.
    pub(crate) fn introspect(&self) -> Value {
        let book = self.book.lock();
        let deals = book.order.iter().filter_map(|uuid| book.deals.get(uuid)).map(|deal| {
            let stands = self.node.chain(|chain| stands(chain, deal));
            json!({
                "uuid": uuid_text(&deal.params.uuid), "client_id": deal.params.transfer.client_id,
                "piece": deal.params.deal.proposal.piece_cid.to_string(), "refused": deal.refused,
                "error": deal.error, "received": deal.received, "transferred": deal.data.is_some(),
                "publish": deal.publish.map(|sent| sent.cid.to_string()), "deal_id": stands.deal_id,
                "sector": stands.sector, "pulls": deal.pulls,
                "signed_proposal": deal.params.deal.cid().to_string(),
            })
        });
        let deals: Vec<Value> = deals.collect();
        json!({"id": self.terms.miner, "manner": self.terms.manner, "deals": deals})
    }

    /// The data of a piece that is in a sector.
    fn piece(&self, cid: &Cid) -> Option<Bytes> {
        let book = self.book.lock();
        let of_piece = book.deals.values().filter(|deal| deal.params.deal.proposal.piece_cid == *cid);
        self.node.chain(|chain| {
            of_piece.filter(|deal| stands(chain, deal).sector.is_some()).find_map(|deal| deal.data.clone())
        })
    }
}

/// How often a provider looks for what is not told by the chain.
const LOOK: Duration = Duration::from_millis(20);
/// Between two attempts of a transfer. Boost waits 5 s and more; tests cannot.
const PAUSE: Duration = Duration::from_millis(50);
/// Epochs after which a message that is nowhere is sent again.
const LOST: i64 = 10;

/// The steps of sealing, as they were recorded.
const SEALING: [&str; 6] = [
    "WaitDeals",
    "SubmitPreCommitBatch",
    "PreCommitBatchWait",
    "WaitSeed",
    "SubmitCommitAggregate",
    "CommitAggregateWait",
];

/// The message is neither waiting nor on the chain, for some time.
fn is_lost(chain: &Chain, sent: &Sent) -> bool {
    chain.head().height - sent.at > LOST
        && chain.lookup(&sent.cid).is_none()
        && !chain.pending().any(|signed| signed.cid() == sent.cid)
}

/// Why an executed message failed.
fn failed(chain: &Chain, cid: &Cid) -> Option<String> {
    let receipt = chain.lookup(cid)?.receipt;
    (receipt.exit_code != 0).then(|| format!("exit code {}: {}", receipt.exit_code, receipt.why))
}

/// Reads from the chain where a deal stands.
fn stands(chain: &Chain, deal: &Deal) -> OnChain {
    let executed = |sent: Option<Sent>| {
        let found = chain.lookup(&sent?.cid)?;
        (found.receipt.exit_code == 0).then_some((found.seen_in.height, found.receipt.ret))
    };
    let mut stands = OnChain::default();
    if let Some((height, ret)) = executed(deal.publish) {
        stands.deal_id = first_number(&ret, true);
        stands.published_at = height;
    }
    if let Some((height, ret)) = executed(deal.seal) {
        stands.sector = first_number(&ret, false);
        stands.active_since = height;
    }
    stands
}

/// The first number of an answer: `[[id, ..], ..]`, or `[sector]`.
fn first_number(ret: &[u8], nested: bool) -> Option<u64> {
    let item = cbor::decode(ret).ok()?;
    let first = item.as_array("return").ok()?.first()?;
    let first = if nested { first.as_array("ids").ok()?.first()? } else { first };
    first.as_u64("number").ok()
}

/// What Boost says of a deal whose index step failed, while all else goes on (recorded).
fn index_failure(deal: &Deal, stands: &OnChain) -> String {
    let piece = deal.params.deal.proposal.piece_cid;
    format!(
        "failed to add index and announce deal: failed to add deal to piece metadata store: adding index for piece \
         {piece}: getting reader over piece {piece}: getting reader over sector {}: sector is not unsealed",
        stands.sector.unwrap_or_default()
    )
}

fn curio_status(deal: &Deal, stands: &OnChain, index_error: bool) -> StatusResponse {
    let sealed = stands.sector.is_some();
    let text = if deal.error.is_some() {
        "Failed"
    } else if sealed {
        "Sealed"
    } else {
        "Processing"
    };
    let id = stands.deal_id.filter(|_| sealed);
    let index_failure = index_error.then(|| index_failure(deal, stands));
    let error = deal.error.clone().or(index_failure).unwrap_or_default();
    let mut answer = filled(deal, stands, (text, ""), error, id);
    if !sealed && let Some(status) = &mut answer.status {
        status.publish_cid = None;
    }
    // Curio's own answer to how large the transfer is.
    answer.transfer_size = 1;
    answer
}

fn filled(
    deal: &Deal,
    stands: &OnChain,
    (status, sealing): (&str, &str),
    error: String,
    id: Option<u64>,
) -> StatusResponse {
    let publish = deal.publish.filter(|_| stands.deal_id.is_some());
    StatusResponse {
        error: String::new(),
        uuid: deal.params.uuid,
        offline: deal.params.offline,
        status: Some(Status {
            error,
            status: status.into(),
            proposal: deal.params.deal.proposal.clone(),
            publish_cid: publish.map(|sent| sent.cid),
            chain_deal_id: id.unwrap_or(0),
            sealing: sealing.into(),
            signed_proposal_cid: deal.params.deal.cid(),
        }),
        transfer_size: deal.params.transfer.size,
        received: deal.received,
    }
}
