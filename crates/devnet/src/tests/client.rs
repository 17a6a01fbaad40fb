//! A small client: it funds its escrow, serves one CAR, proposes, asks, and steps the chain. Everything over the ports.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::Response;
use data_encoding::BASE64;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::serve::half;
use crate::wire::Cid;
use crate::wire::address::MARKET;
use crate::wire::cbor::{Cbor, decode};
use crate::wire::commp;
use crate::wire::deal::{
    ClientDealProposal, DealParams, Label, Proposal, StatusRequest, StatusResponse, Transfer,
};
use crate::wire::message::{Message, SignedMessage, address_param};

use super::*;

/// attoFIL that the client puts into its escrow.
pub(super) const FUNDS: i128 = 1 << 60;
/// Epochs that a test waits for what must come.
const EPOCHS: usize = 80;
/// Epochs from a proposal to its start: more than a test steps before a deal is active.
const LEAD: i64 = 100;
const DURATION: i64 = 518_400;

/// Status and body of any request; the error says that the connection closed without an answer.
pub(super) async fn send(
    method: &str,
    url: &str,
    (kind, token): (&str, Option<&str>),
    body: Vec<u8>,
) -> Result<(u16, Bytes), hyper::Error> {
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let stream = TcpStream::connect(authority).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method.parse::<Method>().unwrap())
        .uri(format!("/{path}"))
        .header("host", authority)
        .header("content-type", kind);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = sender.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

/// What the client serves, and what was asked of it.
struct Source {
    car: Bytes,
    asked: Mutex<Vec<Asked>>,
}

/// A request for the CAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) method: String,
    pub(super) range: Option<String>,
    pub(super) token: Option<String>,
    pub(super) status: u16,
    /// Bytes that the answer has.
    pub(super) bytes: usize,
}

/// HEAD, and GET with a range that may reach past the end. What the path begins with, goes wrong:
///
/// - `half`: the first GET from the beginning breaks off in the middle;
/// - `whole`: a range is answered by 200 and all bytes;
/// - `gone`: GETs are answered by 404;
/// - `busy`: the first three GETs are answered by 503.
async fn car(
    State(source): State<Arc<Source>>,
    Path(path): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let range = text(header::RANGE);
    let size = source.car.len();
    let (start, end) = range.as_deref().map_or((0, size), |range| {
        let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let end = if last.is_empty() { size } else { last.parse::<usize>().unwrap() + 1 };
        (first.parse().unwrap(), end.min(size))
    });
    let get = method == Method::GET;
    let gets = source.asked.lock().iter().filter(|asked| asked.path == path && asked.method == "GET").count();
    let (status, bytes) = match range {
        _ if !get => (StatusCode::OK, Bytes::new()),
        _ if path.starts_with("gone") => (StatusCode::NOT_FOUND, Bytes::new()),
        _ if path.starts_with("busy") && gets < 3 => (StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
        Some(_) if !path.starts_with("whole") => (StatusCode::PARTIAL_CONTENT, source.car.slice(start..end)),
        _ => (StatusCode::OK, source.car.clone()),
    };
    let length = if get { bytes.len() } else { size };
    let breaks = path.starts_with("half") && get && start == 0;
    source.asked.lock().push(Asked {
        path,
        method: method.to_string(),
        range,
        token: text(header::AUTHORIZATION),
        status: status.as_u16(),
        bytes: bytes.len(),
    });
    let response = Response::builder().status(status).header(header::CONTENT_LENGTH, length);
    let response = response.body(Body::from(bytes)).unwrap();
    if breaks { half(response, usize::MAX).await } else { response }
}

/// Bytes that do not repeat.
pub(super) fn noise(words: u32) -> Vec<u8> {
    (0..words).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect()
}

/// A CAR of one raw block: the header, then CID and bytes, each with its length before it.
fn build_car(block: Vec<u8>) -> (Cid, Bytes) {
    use sha2::Digest;
    let hash = crate::wire::Multihash::wrap(0x12, &sha2::Sha256::digest(&block)).unwrap();
    let root = Cid::new_v1(0x55, hash);
    let header = Cbor::Map(vec![
        ("roots".into(), Cbor::Array(vec![Cbor::Link(root)])),
        ("version".into(), Cbor::Unsigned(1)),
    ]);
    let mut car = Vec::new();
    for section in [header.encode(), [root.to_bytes(), block].concat()] {
        let mut length = section.len();
        while length >= 0x80 {
            car.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        car.push(length as u8);
        car.extend(section);
    }
    (root, car.into())
}

/// A devnet that stands still, a client of it with escrow, and the CAR that it wants stored.
pub(super) struct World {
    pub(super) devnet: Devnet,
    pub(super) key: Key,
    pub(super) root: Cid,
    pub(super) car: Bytes,
    pub(super) piece: Cid,
    pub(super) piece_size: u64,
    source: Arc<Source>,
    source_url: String,
    _server: Server,
}

impl World {
    pub(super) async fn start(manners: &[Manner]) -> Self {
        let config = Config {
            providers: manners.len(),
            manners: manners.to_vec(),
            epoch: None,
            stall: Duration::from_secs(30),
            ..Config::default()
        };
        Self::with(config, noise(20_000)).await
    }

    /// A devnet as it is told to be, and a CAR of that block.
    pub(super) async fn with(config: Config, block: Vec<u8>) -> Self {
        let devnet = Devnet::start(config).await.unwrap();
        let (root, car) = build_car(block);
        let piece_size = commp::padded_size(car.len() as u64);
        let piece = commp::piece_cid(&commp::root(&car, piece_size));
        let source = Arc::new(Source { car: car.clone(), asked: Mutex::default() });
        let (listener, addr) = listen(loopback()).await.unwrap();
        let router = axum::Router::new()
            .route("/{path}", axum::routing::any(self::car))
            .with_state(Arc::clone(&source));
        let world = Self {
            key: exported_key(&devnet.ready().key),
            devnet,
            root,
            car,
            piece,
            piece_size,
            source,
            source_url: format!("http://{addr}"),
            _server: serve(listener, router),
        };
        assert_eq!(world.key.address().to_string(), world.devnet.ready().client);
        world.fund().await;
        world
    }

    /// Where the client serves its CAR.
    pub(super) fn source_url(&self, path: &str) -> String {
        format!("{}/{path}", self.source_url)
    }

    /// The whole answer to a call.
    pub(super) async fn rpc(&self, method: &str, params: Value) -> Value {
        let ready = self.devnet.ready();
        let request =
            json!({"jsonrpc": "2.0", "id": 1, "method": format!("Filecoin.{method}"), "params": params});
        let url = format!("{}/rpc/v1", ready.rpc);
        let kind = ("application/json", Some(ready.token.as_str()));
        let (_, body) = send("POST", &url, kind, request.to_string().into()).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    /// The result of a call that must not fail.
    pub(super) async fn call(&self, method: &str, params: Value) -> Value {
        let mut answer = self.rpc(method, params).await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].take()
    }

    pub(super) async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}{path}", self.devnet.ready().control);
        let (status, body) =
            send(method, &url, ("application/json", None), body.to_string().into()).await.unwrap();
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    pub(super) async fn step(&self, n: u64) -> i64 {
        self.control("POST", "/epochs/step", json!({"n": n})).await["height"].as_i64().unwrap()
    }

    /// The script of a provider.
    pub(super) async fn script(&self, n: usize, faults: Value) {
        let scripts = json!({"providers": {self.miner(n): faults}});
        self.control("POST", "/faults", scripts).await;
    }

    pub(super) fn miner(&self, n: usize) -> String {
        self.devnet.ready().providers[n].id.clone()
    }

    /// AddBalance, and waited for.
    pub(super) async fn fund(&self) {
        let found = self.message(FUNDS, 2, address_param(self.key.address())).await;
        assert_eq!(found["Receipt"]["ExitCode"], 0, "{found}");
    }

    /// A message to the market, signed here, pushed, and waited for: what `StateSearchMsg` says of it.
    pub(super) async fn message(&self, value: i128, method: u64, params: Vec<u8>) -> Value {
        let from = self.key.address();
        let nonce = self.call("MpoolGetNonce", json!([from])).await.as_u64().unwrap();
        let message = Message {
            version: 0,
            to: MARKET,
            from,
            nonce,
            value,
            gas_limit: 100_000_000,
            gas_fee_cap: 1_000,
            gas_premium: 10,
            method,
            params,
        };
        let signed = SignedMessage::sign(message, &self.key).unwrap();
        let pushed = self.call("MpoolPush", json!([signed.json()])).await;
        assert_eq!(pushed["/"], signed.cid().to_string());
        self.step(2).await;
        self.call("StateSearchMsg", json!([[], pushed, -1, true])).await
    }

    /// attoFIL of collateral, as the node says.
    pub(super) async fn collateral(&self) -> i128 {
        let bounds =
            self.call("StateDealProviderCollateralBounds", json!([self.piece_size, false, []])).await;
        bounds["Min"].as_str().unwrap().parse().unwrap()
    }

    /// A proposal to a provider; its data is at `path`.
    pub(super) async fn proposal(&self, n: usize, path: &str) -> DealParams {
        let head = self.call("ChainHead", json!([])).await["Height"].as_i64().unwrap();
        let proposal = Proposal {
            piece_cid: self.piece,
            piece_size: self.piece_size,
            verified: false,
            client: self.key.address(),
            provider: self.miner(n).parse().unwrap(),
            label: Label::Text(self.root.to_string()),
            start: head + LEAD,
            end: head + LEAD + DURATION,
            price_per_epoch: (50_000_000 * i128::from(self.piece_size)) >> 30,
            provider_collateral: self.collateral().await,
            client_collateral: 0,
        };
        let source =
            json!({"URL": self.source_url(path), "Headers": {"Authorization": format!("Bearer of {path}")}});
        DealParams {
            uuid: [n as u8 + 1; 16],
            transfer: Transfer {
                size: self.car.len() as u64,
                kind: "http".into(),
                params: source.to_string().into(),
                client_id: String::new(),
            },
            offline: false,
            data_root: self.root,
            deal: self.sign(proposal),
            skip_ipni: false,
            remove_unsealed: false,
        }
    }

    pub(super) fn sign(&self, proposal: Proposal) -> ClientDealProposal {
        let signature = self.key.sign(&proposal.to_cbor().encode()).unwrap();
        ClientDealProposal { proposal, signature }
    }

    /// Sends a proposal. The refusal is the provider's text.
    pub(super) async fn store(&self, n: usize, params: &DealParams) -> Result<(), String> {
        let url = format!("{}/market/mk12/store", self.devnet.ready().providers[n].url);
        let (status, body) =
            send("POST", &url, ("application/cbor", None), params.encode()).await.map_err(|_| "no answer")?;
        assert_eq!(status, 200);
        let answer = decode(&body).unwrap();
        let text = answer.need("Message").unwrap().as_text("Message").unwrap().to_owned();
        match answer.need("Accepted").unwrap().as_bool("Accepted").unwrap() {
            true => Ok(()),
            false => Err(text),
        }
    }

    /// A proposal that is accepted, its data at `/{n}`.
    pub(super) async fn deal(&self, n: usize) -> DealParams {
        let params = self.proposal(n, &n.to_string()).await;
        self.store(n, &params).await.unwrap();
        params
    }

    /// What the provider says of its deal; None where it does not answer.
    pub(super) async fn status(&self, n: usize) -> Option<StatusResponse> {
        let request = self.question(n);
        let url = format!("{}/market/mk12/status", self.devnet.ready().providers[n].url);
        let (status, body) = send("GET", &url, ("application/cbor", None), request.encode()).await.ok()?;
        assert_eq!(status, 200);
        Some(StatusResponse::decode(&body).unwrap())
    }

    /// The question for the status of a provider's first deal.
    pub(super) fn question(&self, n: usize) -> StatusRequest {
        let uuid = [n as u8 + 1; 16];
        StatusRequest { uuid, signature: self.key.sign(&uuid).unwrap() }
    }

    /// The first deal of a provider's book; null where there is none.
    pub(super) async fn book(&self, n: usize) -> Value {
        let books = self.control("GET", "/providers", Value::Null).await;
        books[n]["deals"].get(0).cloned().unwrap_or_default()
    }

    /// Waits for the end of the provider's transfer, good or bad: the one thing that takes time, not epochs.
    pub(super) async fn transferred(&self, n: usize) -> Value {
        for _ in 0..2_000 {
            let book = self.book(n).await;
            if book["transferred"] == true || !book["error"].is_null() {
                return book;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the transfer of provider {n} does not end: {}", self.book(n).await);
    }

    /// Steps the chain until the provider's deal is on it, and says its id.
    pub(super) async fn published(&self, n: usize) -> u64 {
        for _ in 0..EPOCHS {
            if let Some(id) = self.book(n).await["deal_id"].as_u64() {
                return id;
            }
            self.step(1).await;
        }
        panic!("the deal of provider {n} is not published: {}", self.book(n).await);
    }

    /// Steps the chain until the deal is active, and says since when.
    pub(super) async fn active(&self, id: u64) -> i64 {
        for _ in 0..EPOCHS {
            let deal = self.call("StateMarketStorageDeal", json!([id, []])).await;
            let since = deal["State"]["SectorStartEpoch"].as_i64().unwrap();
            if since > 0 {
                return since;
            }
            self.step(1).await;
        }
        panic!("deal {id} does not become active");
    }

    /// Escrow and what is locked of it.
    pub(super) async fn balance(&self, address: &str) -> (i128, i128) {
        let balance = self.call("StateMarketBalance", json!([address, []])).await;
        let number = |key: &str| balance[key].as_str().unwrap().parse().unwrap();
        (number("Escrow"), number("Locked"))
    }

    pub(super) async fn locked(&self) -> i128 {
        self.balance(&self.devnet.ready().client).await.1
    }

    /// The requests for the CAR at a path, in order.
    pub(super) fn asked(&self, path: &str) -> Vec<Asked> {
        self.source.asked.lock().iter().filter(|asked| asked.path == path).cloned().collect()
    }
}

/// The key of the line that a devnet prints.
fn exported_key(text: &str) -> Key {
    let json: Value = serde_json::from_slice(&HEXLOWER.decode(text.as_bytes()).unwrap()).unwrap();
    let secret = BASE64.decode(json["PrivateKey"].as_str().unwrap().as_bytes()).unwrap();
    Key::from_bytes(&secret).unwrap()
}
