//! The calls, typed.

use std::sync::Arc;
use std::time::Duration;

use floe_core::Cid;
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderValue};
use jsonrpsee_core::client::{ClientT as _, Error};
use jsonrpsee_core::params::ArrayParams;
use jsonrpsee_http_client::transport::Error as TransportError;
use jsonrpsee_http_client::{HttpBackend, HttpClient, HttpClientBuilder, RpcService, RpcServiceBuilder};
use rustls::crypto::aws_lc_rs;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceBuilder;

use super::answers::{
    Actor, ActorEvent, CollateralBounds, EventFilter, MarketBalance, MarketDeal, MessageLookup, MinerInfo,
    MinerPower, NodeVersion, Permissions, SectorExpiration, SectorInfo, TipSet,
};
use super::endpoint::{Endpoint, EndpointError};
use super::error::{Fault, RpcError};
use super::frames::{Frames, Normalised};
use super::methods::{self, Method};
use crate::limits::{
    self, CALL_TIMEOUT, CONNECT_TIMEOUT, MAX_ANSWER_BYTES, MAX_CONCURRENT_CALLS, MAX_REQUEST_BYTES,
};
use crate::types::cid::JsonCid;
use crate::types::signature::base64;
use crate::types::{Address, AttoFil, Epoch, Message, PaddedSize, Signature, SignedMessage, TipSetKey};

type Http = HttpClient<RpcService<Normalised<HttpBackend>>>;

/// A Lotus node, or one that speaks like it. Cheap to clone.
///
/// Dropping a call's future gives up waiting for it; the node may carry it out all the same.
#[derive(Debug, Clone)]
pub struct Lotus {
    http: Arc<Http>,
    endpoint: Endpoint,
    timeout: Duration,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct SendSpec {
    max_fee: AttoFil,
}

#[derive(Serialize)]
struct Bytes<'a>(#[serde(serialize_with = "base64::serialize")] &'a [u8]);

impl Lotus {
    /// A client for `endpoint`. Nothing is connected before the first call.
    ///
    /// # Errors
    /// [`EndpointError`] where no client can be made for it.
    pub fn new(endpoint: Endpoint) -> Result<Self, EndpointError> {
        Self::with_timeout(endpoint, CALL_TIMEOUT)
    }

    /// The same with another limit of time for each call.
    ///
    /// # Errors
    /// [`EndpointError`] where no client can be made for it.
    pub fn with_timeout(endpoint: Endpoint, timeout: Duration) -> Result<Self, EndpointError> {
        let http = HttpClientBuilder::default()
            .max_request_size(MAX_REQUEST_BYTES)
            .max_response_size(MAX_ANSWER_BYTES)
            .request_timeout(timeout)
            .connect_timeout(CONNECT_TIMEOUT)
            .max_concurrent_requests(MAX_CONCURRENT_CALLS)
            .set_headers(headers(&endpoint)?)
            .with_custom_cert_store(tls()?)
            // Without jsonrpsee's own log of each request.
            .set_rpc_middleware(RpcServiceBuilder::new())
            .set_http_middleware(ServiceBuilder::new().layer(Frames(endpoint.clone())))
            .build(endpoint.http())
            .map_err(|e| EndpointError(e.to_string()))?;
        Ok(Self { http: Arc::new(http), endpoint, timeout })
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn call<R: DeserializeOwned + Send>(&self, method: Method, params: Params) -> Result<R, RpcError> {
        let params =
            params.0.map_err(|e| RpcError::BadCall { method: method.name, message: e.to_string() })?;
        let answer = self.http.request(method.name, params).await;
        answer.map_err(|error| self.understand(&method, error))
    }

    /// The answer, or `None` where the node says that there is no such thing.
    async fn find<R: DeserializeOwned + Send>(
        &self,
        method: Method,
        params: Params,
        missing: Fault,
    ) -> Result<Option<R>, RpcError> {
        match self.call(method, params).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.fault() == Some(missing) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn understand(&self, method: &Method, error: Error) -> RpcError {
        let name = method.name;
        // What cannot be read is quoted in the reason.
        let malformed = |e: &dyn std::fmt::Display| RpcError::Malformed {
            method: name,
            reason: crate::words::cut(&self.endpoint.hide(&e.to_string())),
        };
        match error {
            Error::Call(object) => {
                RpcError::of_object(method, object.code(), &self.endpoint.hide(object.message()))
            }
            Error::RequestTimeout => RpcError::Timeout { method: name, after: self.timeout },
            Error::Transport(error) => transport(name, error, &self.endpoint),
            Error::ParseError(error) => malformed(&error),
            other => malformed(&other),
        }
    }

    /// What the node is.
    ///
    /// # Errors
    /// [`RpcError`], as for all that follow.
    pub async fn version(&self) -> Result<NodeVersion, RpcError> {
        self.call(methods::VERSION, Params::none()).await
    }

    /// The network's name: `mainnet`, `calibrationnet`, …
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn network_name(&self) -> Result<String, RpcError> {
        self.call(methods::NETWORK_NAME, Params::none()).await
    }

    /// The version of the network's rules at a tipset.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn network_version(&self, at: &TipSetKey) -> Result<u32, RpcError> {
        self.call(methods::NETWORK_VERSION, Params::none().with(at)).await
    }

    /// What our token allows; `None` without a token (reading is then allowed). An unknown method from a gateway, which has
    /// no tokens.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn permissions(&self) -> Result<Option<Permissions>, RpcError> {
        let Some(token) = self.endpoint.token() else { return Ok(None) };
        self.call(methods::AUTH_VERIFY, Params::none().with(token.expose())).await.map(Some)
    }

    /// Whether the node offers the deal calls that Lotus had up to v1.27.0. Such a node cannot follow today's
    /// mainnet, and Floe does not use those calls. `None` where what stands in front of the node does not let us ask.
    ///
    /// # Errors
    /// [`RpcError`] where the node says neither.
    pub async fn offers_client_calls(&self) -> Result<Option<bool>, RpcError> {
        match self.call::<serde::de::IgnoredAny>(methods::CLIENT_LIST_IMPORTS, Params::none()).await {
            Err(RpcError::UnknownMethod { .. }) => Ok(Some(false)),
            Ok(_) | Err(RpcError::Refused { .. } | RpcError::Forbidden { .. } | RpcError::BadCall { .. }) => {
                Ok(Some(true))
            }
            // A proxy that passes on what it knows alone.
            Err(RpcError::Status { status: 400..=499, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The first tipset.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn genesis(&self) -> Result<TipSet, RpcError> {
        self.call(methods::CHAIN_GENESIS, Params::none()).await
    }

    /// The head.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn head(&self) -> Result<TipSet, RpcError> {
        self.call(methods::CHAIN_HEAD, Params::none()).await
    }

    /// What the node itself takes for final. Lotus from v1.34 on.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn finalized(&self) -> Result<TipSet, RpcError> {
        self.call(methods::CHAIN_FINALIZED, Params::none()).await
    }

    /// A tipset by its key.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn tipset(&self, key: &TipSetKey) -> Result<TipSet, RpcError> {
        self.call(methods::CHAIN_TIPSET, Params::none().with(key)).await
    }

    /// The tipset at `height` on the chain below `from`, or the nearest before it where that height has none.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn tipset_at(&self, height: Epoch, from: &TipSetKey) -> Result<TipSet, RpcError> {
        self.call(methods::CHAIN_TIPSET_AT, Params::none().with(&height).with(from)).await
    }

    /// A message by its CID; `None` where the node never saw it.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn message(&self, cid: &Cid) -> Result<Option<Message>, RpcError> {
        self.find(methods::CHAIN_MESSAGE, Params::none().with(&JsonCid(*cid)), Fault::ObjectNotFound).await
    }

    /// The id of an address; `None` where it has none yet.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn lookup_id(&self, address: &Address, at: &TipSetKey) -> Result<Option<Address>, RpcError> {
        self.find(methods::STATE_LOOKUP_ID, Params::none().with(address).with(at), Fault::ActorNotFound).await
    }

    /// The key address of an account.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn account_key(&self, address: &Address, at: &TipSetKey) -> Result<Option<Address>, RpcError> {
        self.find(methods::STATE_ACCOUNT_KEY, Params::none().with(address).with(at), Fault::ActorNotFound)
            .await
    }

    /// Nonce and balance of an account; `None` where it never received anything.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn actor(&self, address: &Address, at: &TipSetKey) -> Result<Option<Actor>, RpcError> {
        self.find(methods::STATE_ACTOR, Params::none().with(address).with(at), Fault::ActorNotFound).await
    }

    /// A provider; `None` where there is no such actor.
    ///
    /// # Errors
    /// [`RpcError`]; with [`Fault::NotAMiner`] where the actor is something else.
    pub async fn miner_info(&self, miner: &Address, at: &TipSetKey) -> Result<Option<MinerInfo>, RpcError> {
        self.find(methods::MINER_INFO, Params::none().with(miner).with(at), Fault::ActorNotFound).await
    }

    /// How much a provider stores.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn miner_power(&self, miner: &Address, at: &TipSetKey) -> Result<MinerPower, RpcError> {
        self.call(methods::MINER_POWER, Params::none().with(miner).with(at)).await
    }

    /// A provider's faulty sectors, as run lengths: sectors that are well, faulty, well, … The gateway has no
    /// such call.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn miner_faults(&self, miner: &Address, at: &TipSetKey) -> Result<Vec<u64>, RpcError> {
        self.call(methods::MINER_FAULTS, Params::none().with(miner).with(at)).await
    }

    /// A sector; `None` where the provider has no such one.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn sector(
        &self,
        miner: &Address,
        number: u64,
        at: &TipSetKey,
    ) -> Result<Option<SectorInfo>, RpcError> {
        self.call(methods::SECTOR_INFO, Params::none().with(miner).with(&number).with(at)).await
    }

    /// When a sector ends. The gateway has no such call.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn sector_expiration(
        &self,
        miner: &Address,
        number: u64,
        at: &TipSetKey,
    ) -> Result<SectorExpiration, RpcError> {
        self.call(methods::SECTOR_EXPIRATION, Params::none().with(miner).with(&number).with(at)).await
    }

    /// What lies in escrow for `address`; zeros where nothing ever did.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn market_balance(&self, address: &Address, at: &TipSetKey) -> Result<MarketBalance, RpcError> {
        self.call(methods::MARKET_BALANCE, Params::none().with(address).with(at)).await
    }

    /// A published deal by its id; `None` where the chain holds no such one: not published, never activated,
    /// ended, or terminated.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn deal(&self, id: u64, at: &TipSetKey) -> Result<Option<MarketDeal>, RpcError> {
        self.find(methods::MARKET_DEAL, Params::none().with(&id).with(at), Fault::DealNotFound).await
    }

    /// Whether a proposal is published and not yet active. `proposal` is the CID of the unsigned form with ids. Lotus
    /// from v1.32 on alone.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn proposal_pending(&self, proposal: &Cid, at: &TipSetKey) -> Result<bool, RpcError> {
        self.call(methods::PROPOSAL_PENDING, Params::none().with(&JsonCid(*proposal)).with(at)).await
    }

    /// Events of actors. [`Fault::NoEvents`], or an unknown method, from a node that keeps none;
    /// [`Fault::TooFarBack`] from a gateway, which looks back a day.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn actor_events(&self, filter: &EventFilter) -> Result<Vec<ActorEvent>, RpcError> {
        let found =
            self.call::<Option<Vec<ActorEvent>>>(methods::ACTOR_EVENTS, Params::none().with(filter)).await;
        found.map(Option::unwrap_or_default)
    }

    /// What collateral a provider may lay down for a piece.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn collateral_bounds(
        &self,
        size: PaddedSize,
        at: &TipSetKey,
    ) -> Result<CollateralBounds, RpcError> {
        self.call(methods::COLLATERAL_BOUNDS, Params::none().with(&size.bytes()).with(&false).with(at)).await
    }

    /// The nonce that the pool expects next; 0 for an account that never received anything.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn mpool_nonce(&self, address: &Address) -> Result<u64, RpcError> {
        let nonce =
            self.find(methods::MPOOL_NONCE, Params::none().with(address), Fault::ActorNotFound).await?;
        Ok(nonce.unwrap_or(0))
    }

    /// The messages that wait. On mainnet this is megabytes.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn mpool_pending(&self) -> Result<Vec<SignedMessage>, RpcError> {
        self.call(methods::MPOOL_PENDING, Params::none().with(&TipSetKey::HEAD)).await
    }

    /// `message` with its gas filled in, as the node suggests, so that it costs at most `max_fee`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn estimate_gas(&self, message: &Message, max_fee: AttoFil) -> Result<Message, RpcError> {
        let params = Params::none().with(message).with(&SendSpec { max_fee }).with(&TipSetKey::HEAD);
        self.call(methods::GAS_ESTIMATE, params).await
    }

    /// Hands a signed message to the pool. Needs `write`. The answer is [`SignedMessage::cid`].
    ///
    /// # Errors
    /// [`RpcError`]; after a lost reply the message may be in the pool.
    pub async fn mpool_push(&self, message: &SignedMessage) -> Result<Cid, RpcError> {
        self.call::<JsonCid>(methods::MPOOL_PUSH, Params::none().with(message)).await.map(|cid| cid.0)
    }

    /// Looks for a message on the chain, back from `from` by at most `lookback` epochs (-1 for all); `None` where it is
    /// not there, or the node never saw it. A message that replaced it does not count: Lotus says of one that its number is
    /// used, as an error.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn search_message(
        &self,
        from: &TipSetKey,
        cid: &Cid,
        lookback: i64,
    ) -> Result<Option<MessageLookup>, RpcError> {
        let params = Params::none().with(from).with(&JsonCid(*cid)).with(&lookback).with(&false);
        match self.call(methods::STATE_SEARCH, params).await {
            Ok(found) => Ok(found),
            Err(error) if matches!(error.fault(), Some(Fault::ObjectNotFound | Fault::NonceUsed)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until a message is `confidence` epochs deep: a long poll, which ends at this client's limit of time. Prefer
    /// [`Lotus::search_message`].
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn wait_message(
        &self,
        cid: &Cid,
        confidence: u64,
        lookback: i64,
    ) -> Result<MessageLookup, RpcError> {
        let params = Params::none().with(&JsonCid(*cid)).with(&confidence).with(&lookback).with(&false);
        self.call(methods::STATE_WAIT, params).await
    }

    /// The node's first key. Needs `write`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn wallet_default(&self) -> Result<Address, RpcError> {
        self.call(methods::WALLET_DEFAULT, Params::none()).await
    }

    /// The node's keys. Needs `write`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn wallet_list(&self) -> Result<Vec<Address>, RpcError> {
        self.call(methods::WALLET_LIST, Params::none()).await
    }

    /// Whether the node has the key of `address`. Needs `write`.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn wallet_has(&self, address: &Address) -> Result<bool, RpcError> {
        self.call(methods::WALLET_HAS, Params::none().with(address)).await
    }

    /// What an account has.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn wallet_balance(&self, address: &Address) -> Result<AttoFil, RpcError> {
        self.call(methods::WALLET_BALANCE, Params::none().with(address)).await
    }

    /// Signs `bytes` with a key of the node. Needs `sign`.
    ///
    /// # Errors
    /// [`RpcError`]; with [`Fault::KeyNotFound`] where the node has no such key.
    pub async fn wallet_sign(&self, address: &Address, bytes: &[u8]) -> Result<Signature, RpcError> {
        self.call(methods::WALLET_SIGN, Params::none().with(address).with(&Bytes(bytes))).await
    }

    /// Whether `signature` is that of `address` over `bytes`; also for keys that are not the node's.
    ///
    /// # Errors
    /// [`RpcError`].
    pub async fn wallet_verify(
        &self,
        address: &Address,
        bytes: &[u8],
        signature: &Signature,
    ) -> Result<bool, RpcError> {
        let params = Params::none().with(address).with(&Bytes(bytes)).with(signature);
        self.call(methods::WALLET_VERIFY, params).await
    }
}

/// Positional parameters: Lotus counts them.
pub(super) struct Params(Result<ArrayParams, serde_json::Error>);

impl Params {
    pub(super) fn none() -> Self {
        Self(Ok(ArrayParams::new()))
    }

    fn with<T: Serialize + ?Sized>(self, value: &T) -> Self {
        Self(self.0.and_then(|mut params| params.insert(value).map(|()| params)))
    }
}

fn transport(method: &'static str, error: jsonrpsee_core::BoxError, endpoint: &Endpoint) -> RpcError {
    use jsonrpsee_core::http_helpers::HttpError;
    let error = match error.downcast::<TransportError>() {
        Ok(error) => *error,
        Err(other) => return RpcError::Unreachable { method, reason: causes(&*other, endpoint) },
    };
    match error {
        TransportError::Rejected { status_code: 401 } => RpcError::Unauthorized { method },
        TransportError::Rejected { status_code } => RpcError::Status { method, status: status_code },
        TransportError::Http(HttpError::TooLarge) => {
            limits::hit("rpc_answer");
            RpcError::TooLarge { method }
        }
        TransportError::Http(HttpError::Malformed) => {
            RpcError::Malformed { method, reason: "a body that is no JSON".into() }
        }
        other => RpcError::Unreachable { method, reason: causes(&other, endpoint) },
    }
}

/// An error and what led to it, on one line, without the token.
pub(super) fn causes(error: &dyn std::error::Error, endpoint: &Endpoint) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        // Wrappers often print what they wrap.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    crate::words::cut(&endpoint.hide(&text))
}

/// The token as a header that no log prints.
pub(super) fn headers(endpoint: &Endpoint) -> Result<HeaderMap, EndpointError> {
    let mut headers = HeaderMap::new();
    if let Some(token) = endpoint.token() {
        let value = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
        let mut value =
            HeaderValue::from_str(&value).map_err(|_| EndpointError("its token is no header".into()))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// The public certificate authorities, and the provider of ciphers that the rest of Floe uses.
pub(crate) fn tls() -> Result<rustls::ClientConfig, EndpointError> {
    let roots = rustls::RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| EndpointError(e.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_into_a_header_that_is_not_printed() {
        let endpoint = Endpoint::parse("hunter2:http://127.0.0.1:1").unwrap();
        assert!(!format!("{:?}", headers(&endpoint).unwrap()).contains("hunter2"));
        let lotus = Lotus::new(endpoint).unwrap();
        assert!(!format!("{lotus:?}").contains("hunter2"));
    }

    /// A result of another shape is quoted in the reason: one that was our token stood in the log.
    #[test]
    fn a_token_that_comes_back_is_not_quoted() {
        let lotus = Lotus::new(Endpoint::parse("hunter2:http://127.0.0.1:1").unwrap()).unwrap();
        let quoted = serde_json::from_str::<u32>(r#""it is hunter2, is it""#).unwrap_err();
        let told = lotus.understand(&methods::CHAIN_HEAD, Error::ParseError(quoted)).to_string();
        assert!(told.contains("it is [secret], is it"), "{told}");
    }
}
