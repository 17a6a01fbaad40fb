//! [`cold::Market`]: mk12 with storage providers, over HTTP first and over libp2p second.
//!
//! Which way a provider took is remembered, so that the next call begins with it. A way on which nothing arrived, or
//! where something else than mk12 answers, is passed over for the next one; silence is not, because the call may have
//! arrived. The same bytes may arrive twice all the same: a provider says then that it has them, which is acceptance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use floe_core::clock::BoxFuture;
use floe_core::cold::{self, Answer, Contact, ContactAddress, Fault, ProviderWord, SignedDeal};
use floe_core::place::Ask;
use floe_core::{ActorId, Clock, FailureCode};
use http::Method;
use multiaddr::{Multiaddr, Protocol};
use parking_lot::Mutex;

use crate::deadline::within;
use crate::limits::{self, MAX_REMEMBERED_WAYS, PROVIDER_ADDRESSES, QUESTION_TIMEOUT, STORE_TIMEOUT};
use crate::market::mk12::{
    ASK_PROTOCOL, AskRequest, AskResponse, DealResponse, DealStatusRequest, DealStatusResponse, DealUuid,
    STATUS_PROTOCOL, STORE_PROTOCOL, StorageAsk,
};
use crate::market::streams::{self, StreamError, Streams};
use crate::market::web::{Base, Question, Web, WebError};
use crate::rpc::Lotus;
use crate::signer::{Signer, recover};
use crate::types::cbor::Cbor;
use crate::types::{Address, PaddedSize, Signature, TipSetKey};

/// A call of mk12.
#[derive(Debug, Clone, Copy)]
struct Call {
    method: &'static str,
    path: &'static str,
    protocol: &'static str,
    limit: Duration,
}

const STORE: Call =
    Call { method: "POST", path: "/market/mk12/store", protocol: STORE_PROTOCOL, limit: STORE_TIMEOUT };
const STATUS: Call =
    Call { method: "GET", path: "/market/mk12/status", protocol: STATUS_PROTOCOL, limit: QUESTION_TIMEOUT };
const ASK: Call =
    Call { method: "GET", path: "/market/mk12/ask", protocol: ASK_PROTOCOL, limit: QUESTION_TIMEOUT };

/// A way to a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    Http(Base),
    Libp2p,
}

/// Storage providers.
pub struct Providers {
    lotus: Lotus,
    signer: Arc<dyn Signer>,
    web: Web,
    streams: Arc<dyn Streams>,
    clock: Arc<dyn Clock>,
    /// Which way was taken last.
    taken: Mutex<BTreeMap<ActorId, Way>>,
}

impl Providers {
    /// `lotus` says whose signature an ask has to bear; `signer` signs questions for a deal's state.
    pub fn new(
        lotus: Lotus,
        signer: Arc<dyn Signer>,
        web: Web,
        streams: Arc<dyn Streams>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { lotus, signer, web, streams, clock, taken: Mutex::default() }
    }

    /// Calls `to` in one of its ways. `fits` refuses an answer that is of the way, and not about the deal.
    async fn call<T: Cbor>(
        &self,
        to: &Contact,
        call: Call,
        body: &[u8],
        fits: impl Fn(&Way, &T) -> Result<(), Fault>,
    ) -> Result<T, Fault> {
        let mut last = None;
        for way in self.ways(to) {
            let answer: Result<T, Fault> = match &way {
                Way::Http(base) => self.over_http(base, call, body).await,
                Way::Libp2p => self.over_libp2p(to, call, body).await,
            };
            match answer.and_then(|answer| fits(&way, &answer).map(|()| answer)) {
                Ok(answer) => {
                    self.remember(to.provider, way);
                    return Ok(answer);
                }
                Err(fault) if fault.code == FailureCode::SpTimeout => return Err(fault),
                // The first way is the better known one: what it said is told.
                Err(fault) => last = last.or(Some(fault)),
            }
        }
        Err(last.unwrap_or_else(|| {
            let text = format!("{} has no address and no peer id", to.provider);
            Fault::new(FailureCode::SpUnresolvable, text)
        }))
    }

    fn ways(&self, to: &Contact) -> Vec<Way> {
        let bases = to.addresses.iter().filter_map(|at| Base::parse(&at.text, at.is_operators));
        let mut ways: Vec<Way> = bases.take(PROVIDER_ADDRESSES).map(Way::Http).collect();
        ways.dedup();
        ways.extend(peer_of(to).map(|_| Way::Libp2p));
        let taken = self.taken.lock().get(&to.provider).cloned();
        if let Some(at) = taken.and_then(|taken| ways.iter().position(|way| *way == taken)) {
            ways[..=at].rotate_right(1);
        }
        ways
    }

    fn remember(&self, provider: ActorId, way: Way) {
        let mut taken = self.taken.lock();
        if taken.len() >= MAX_REMEMBERED_WAYS && !taken.contains_key(&provider) {
            limits::hit("remembered_ways");
            taken.pop_first();
        }
        taken.insert(provider, way);
    }

    async fn over_http<T: Cbor>(&self, base: &Base, call: Call, body: &[u8]) -> Result<T, Fault> {
        let method = if call.method == "POST" { Method::POST } else { Method::GET };
        let question = Question { method, path: call.path, body };
        let answer = self.web.ask(base, &question, call.limit).await.map_err(|error| {
            let code = match &error {
                WebError::Connect(_) => FailureCode::SpDial,
                WebError::Timeout => FailureCode::SpTimeout,
                _ => FailureCode::SpProtocol,
            };
            Fault::new(code, error.to_string())
        })?;
        T::from_cbor(&answer).map_err(|error| unreadable(&error))
    }

    async fn over_libp2p<T: Cbor>(&self, to: &Contact, call: Call, body: &[u8]) -> Result<T, Fault> {
        let Some(peer) = peer_of(to) else {
            return Err(Fault::new(FailureCode::SpUnresolvable, "it has no peer id"));
        };
        let is_http = |at: &&ContactAddress| Base::parse(&at.text, at.is_operators).is_none();
        let addresses: Vec<ContactAddress> =
            to.addresses.iter().filter(is_http).filter(|at| at.text.starts_with('/')).cloned().collect();
        let mut stream = self.streams.open(&peer, &addresses, call.protocol).await.map_err(|error| {
            let code = match &error {
                StreamError::Unresolvable(_) => FailureCode::SpUnresolvable,
                StreamError::Dial(_) => FailureCode::SpDial,
                StreamError::Protocol(_) => FailureCode::SpProtocol,
                StreamError::Timeout(_) => FailureCode::SpTimeout,
            };
            Fault::new(code, error.to_string())
        })?;
        let answer = within(&*self.clock, call.limit, streams::exchange(&mut *stream, body)).await;
        let answer =
            answer.ok_or_else(|| Fault::new(FailureCode::SpTimeout, "no answer over libp2p in time"))?;
        answer.map_err(|error| Fault::new(FailureCode::SpProtocol, crate::words::cut(&error.to_string())))
    }

    async fn ask_now(&self, to: &Contact) -> Result<Ask, Fault> {
        let miner = Address::Id(to.provider.get());
        let request = AskRequest { miner }.to_cbor();
        let answer: AskResponse = self.call(to, ASK, &request, |_, _| Ok(())).await?;
        if answer.ask.miner != miner {
            return Err(protocol("its ask is another provider's"));
        }
        if !self.is_workers(miner, &answer.ask.to_cbor(), &answer.signature).await? {
            return Err(protocol("its ask is not signed by its worker"));
        }
        understood(&answer.ask)
    }

    /// Whether the provider's worker key made `signature`.
    async fn is_workers(&self, miner: Address, bytes: &[u8], signature: &Signature) -> Result<bool, Fault> {
        let info = self.lotus.miner_info(&miner, &TipSetKey::HEAD).await?;
        let info = info.ok_or_else(|| protocol("it is no storage provider on this chain"))?;
        let key = self.lotus.account_key(&info.worker, &TipSetKey::HEAD).await?;
        match key {
            Some(key @ Address::Secp256k1(_)) => Ok(recover(bytes, signature) == Some(key)),
            Some(key @ Address::Bls(_)) => Ok(self.lotus.wallet_verify(&key, bytes, signature).await?),
            _ => Ok(false),
        }
    }

    async fn propose_now(&self, to: &Contact, deal: &SignedDeal) -> Result<Answer, Fault> {
        let answer: DealResponse = self.call(to, STORE, &deal.bytes, speaks_this_way).await?;
        if answer.accepted {
            return Ok(Answer::Accepted);
        }
        let code = FailureCode::of_refusal(&answer.message);
        if FailureCode::is_our_bug(&answer.message) {
            metrics::counter!("floe_deal_bugs_total").increment(1);
            tracing::error!(
                provider = %to.provider, deal = %deal.signed_cid,
                "a provider refuses a deal for what is a fault of Floe: {}", answer.message
            );
        }
        // It has had these bytes before: an earlier sending arrived.
        if code == FailureCode::RejectedDuplicate {
            return Ok(Answer::Accepted);
        }
        Ok(Answer::Refused(Fault::new(code, answer.message)))
    }

    async fn status_now(&self, to: &Contact, uuid: cold::DealUuid) -> Result<ProviderWord, Fault> {
        let deal_uuid = DealUuid(*uuid.0.as_bytes());
        let signature = self.signer.sign(&deal_uuid.0).await?;
        let request = DealStatusRequest { deal_uuid, signature }.to_cbor();
        let answer: DealStatusResponse = self.call(to, STATUS, &request, |_, _| Ok(())).await?;
        if answer.deal_uuid != deal_uuid {
            return Err(protocol("its status is another deal's"));
        }
        word(answer)
    }
}

/// What a provider knows of a deal, from its answer.
fn word(answer: DealStatusResponse) -> Result<ProviderWord, Fault> {
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    let Some(status) = answer.status else {
        return match answer.error {
            error if NOT_FOUND.iter().any(|text| error.contains(text)) => Ok(ProviderWord::Unknown(error)),
            // It asked its sealer before the deal had a sector: this says nothing of the deal.
            error if error.contains(BEFORE_A_SECTOR) => Ok(ProviderWord::Known {
                status: String::new(),
                error: some(error),
                deal_id: None,
                received: answer.received,
            }),
            error => Err(Fault::new(FailureCode::SpProtocol, error)),
        };
    };
    Ok(ProviderWord::Known {
        status: status.status,
        error: some(status.error).or_else(|| some(answer.error)),
        deal_id: Some(status.chain_deal_id).filter(|id| *id != 0),
        received: answer.received,
    })
}

/// What Boost and Curio say of a deal that they do not have.
const NOT_FOUND: [&str; 2] = ["no storage deal found with deal UUID", "failed to get sealed deal status"];
/// What Boost says while its sealer knows no sector.
const BEFORE_A_SECTOR: &str = "getting sector status from sealer";
/// What Curio says over libp2p where its operator has turned that off: of the way, not of the deal.
const NOT_THIS_WAY: &str = "Libp2p is disabled";

fn speaks_this_way(way: &Way, answer: &DealResponse) -> Result<(), Fault> {
    if *way == Way::Libp2p && !answer.accepted && answer.message.contains(NOT_THIS_WAY) {
        return Err(Fault::new(FailureCode::SpProtocol, &answer.message));
    }
    Ok(())
}

/// An ask as the choice of a provider has it. Sizes that no piece has end at the next one inside.
fn understood(ask: &StorageAsk) -> Result<Ask, Fault> {
    let nonsense = || protocol("its ask has sizes that no piece has");
    let least = ask.min_piece_size.max(PaddedSize::MIN.bytes()).checked_next_power_of_two();
    let most = ask.max_piece_size.min(PaddedSize::MAX.bytes()).checked_ilog2().map(|log| 1_u64 << log);
    let size = |bytes: Option<u64>| bytes.and_then(PaddedSize::from_bytes).ok_or_else(nonsense);
    let (min_size, max_size) = (size(least)?, size(most)?);
    if min_size > max_size {
        return Err(nonsense());
    }
    Ok(Ask { price: ask.price, min_size, max_size, expires: ask.expiry })
}

fn protocol(what: &str) -> Fault {
    Fault::new(FailureCode::SpProtocol, what)
}

fn unreadable(error: &dyn std::fmt::Display) -> Fault {
    protocol(&format!("its answer cannot be read: {error}"))
}

/// The peer, by the chain's word or by an address of it.
fn peer_of(to: &Contact) -> Option<String> {
    let named = |at: &ContactAddress| {
        let address: Multiaddr = at.text.parse().ok()?;
        match address.iter().last()? {
            Protocol::P2p(peer) => Some(peer.to_base58()),
            _ => None,
        }
    };
    to.peer_id.clone().or_else(|| to.addresses.iter().find_map(named))
}

impl cold::Market for Providers {
    fn ask<'a>(&'a self, to: &'a Contact) -> BoxFuture<'a, Result<Ask, Fault>> {
        Box::pin(self.ask_now(to))
    }

    fn propose<'a>(&'a self, to: &'a Contact, deal: &'a SignedDeal) -> BoxFuture<'a, Result<Answer, Fault>> {
        Box::pin(self.propose_now(to, deal))
    }

    fn status<'a>(
        &'a self,
        to: &'a Contact,
        uuid: cold::DealUuid,
    ) -> BoxFuture<'a, Result<ProviderWord, Fault>> {
        Box::pin(self.status_now(to, uuid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{AttoFil, Epoch};

    fn status(error: &str) -> Result<ProviderWord, Fault> {
        word(DealStatusResponse {
            error: error.into(),
            deal_uuid: DealUuid([7; 16]),
            is_offline: false,
            status: None,
            transfer_size: 0,
            received: 5,
        })
    }

    /// Recorded: none of these says anything of the deal but the first two, and those only that it is not there now.
    #[test]
    fn an_error_of_a_status_is_no_failure_of_the_deal() {
        for unknown in ["no storage deal found with deal UUID 07", "failed to get sealed deal status"] {
            assert_eq!(status(unknown), Ok(ProviderWord::Unknown(unknown.into())));
        }
        let sealing = status("getting sector status from sealer: not found").unwrap();
        assert!(matches!(sealing, ProviderWord::Known { deal_id: None, received: 5, .. }), "{sealing:?}");
        assert_eq!(status("signature verification failed").unwrap_err().code, FailureCode::SpProtocol);
    }

    #[test]
    fn t35_an_ask_is_what_it_says_or_nothing() {
        let ask = |min, max| StorageAsk {
            miner: Address::Id(1000),
            price: AttoFil::new(u128::MAX),
            verified_price: AttoFil::ZERO,
            min_piece_size: min,
            max_piece_size: max,
            timestamp: Epoch::new(0),
            expiry: Epoch::new(9),
            sequence: 1,
        };
        let read = |min, max| {
            understood(&ask(min, max)).map(|ask| (ask.min_size.bytes(), ask.max_size.bytes())).ok()
        };
        assert_eq!(read(256, 1 << 35), Some((256, 1 << 35)));
        assert_eq!(read(0, 1_000), Some((128, 512)));
        assert_eq!(read(300, 1_000), Some((512, 512)));
        for (min, max) in [(0, 0), (513, 512), (u64::MAX, u64::MAX), (600, 1_000)] {
            assert_eq!(read(min, max), None, "{min} {max}");
        }
        assert_eq!(
            understood(&ask(256, 512)).unwrap().price,
            AttoFil::new(u128::MAX),
            "the caller's to refuse"
        );
    }
}
