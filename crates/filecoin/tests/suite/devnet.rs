//! The three ports against a whole devnet: the judge, which shares no code with this crate.

mod chain;
mod deals;
mod faults;
mod hostile;
mod money;
mod network;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::Response;
use floe_core::clock::BoxFuture;
use floe_core::cold::{
    Chain as _, ChainView, Contact, ContactAddress, DealTerms, DealUuid, Fault, FundsCall, MessageProgress,
    Proposer as _, SignedDeal,
};
use floe_core::{ActorId, AttoFil, Clock, Epoch, PaddedSize, PieceCid, Timestamp};
use floe_devnet::{Config, Devnet, Manner};
use floe_filecoin::Secret;
use floe_filecoin::market::streams::{Duplex, StreamError, Streams};
use floe_filecoin::market::web::{Names, Web};
use floe_filecoin::messages::{Journal as _, MemoryJournal};
use floe_filecoin::port::{ChainSettings, DealSigner, LotusChain, Memory, Providers, Unremembered};
use floe_filecoin::rpc::{Endpoint, Lotus};
use floe_filecoin::signer::{LocalKey, Signer, from_lotus};
use floe_filecoin::types::cid::sha2_cid;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::node::{Node, Reply};

/// Epochs until a tipset of these devnets is final.
const FINALITY: i64 = 5;
/// Epochs from a proposal to its start.
const LEAD: i64 = 2_000;
/// Gas that one message may cost.
const MAX_FEE: AttoFil = AttoFil::new(10_000_000_000_000_000);

struct RealClock(Instant);

impl Clock for RealClock {
    #[expect(clippy::disallowed_methods, reason = "the tests' own adapter: a devnet lives in real time")]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Timestamp::from_millis(since.as_millis() as u64)
    }
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_))
    }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own adapter")]
fn clock() -> Arc<dyn Clock> {
    Arc::new(RealClock(Instant::now()))
}

/// What stands in for the dial filter: IP addresses are what they are, and a stranger's may not be on this machine.
struct Filter;

impl Names for Filter {
    fn addresses<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        is_operators: bool,
    ) -> BoxFuture<'a, Result<Vec<SocketAddr>, String>> {
        let ip: Option<IpAddr> = host.parse().ok();
        Box::pin(async move {
            match ip {
                Some(ip) if is_operators || !ip.is_loopback() => Ok(vec![SocketAddr::new(ip, port)]),
                _ => Err("its address is private".into()),
            }
        })
    }
}

/// A node without peers.
struct Alone;

impl Streams for Alone {
    fn open<'a>(
        &'a self,
        _: &'a str,
        _: &'a [ContactAddress],
        _: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, StreamError>> {
        Box::pin(async { Err(StreamError::Unresolvable("nobody knows where it is".into())) })
    }
}

/// A devnet, and the ports on it.
pub(crate) struct World {
    devnet: Devnet,
    lotus: Lotus,
    key: Arc<LocalKey>,
    journal: Arc<MemoryJournal>,
    memory: Arc<Unremembered>,
    chain: LotusChain,
    market: Providers,
    proposer: DealSigner,
    data: Bytes,
    url: String,
    next: AtomicU64,
}

impl World {
    /// A chain that stands still, with its first tipsets final.
    async fn start(manners: &[Manner]) -> Self {
        let config = Config {
            epoch: None,
            providers: manners.len(),
            manners: manners.to_vec(),
            finality: FINALITY,
            seal_delay: 2,
            ..Config::default()
        };
        let devnet = Devnet::start(config).await.unwrap();
        let ready = devnet.ready();
        let endpoint = Endpoint::parse(&format!("{}:{}", ready.token, ready.rpc)).unwrap();
        let lotus = Lotus::with_timeout(endpoint, Duration::from_secs(3)).unwrap();
        let key = Arc::new(from_lotus(&Secret::new(&ready.key, "test").unwrap()).unwrap());
        let (journal, memory) = (Arc::new(MemoryJournal::default()), Arc::new(Unremembered::default()));
        let chain = chain_of(&lotus, &key, &journal, &memory);
        let signer: Arc<dyn Signer> = key.clone();
        let web = Web::new(Arc::new(Filter), clock()).unwrap();
        let market = Providers::new(lotus.clone(), signer.clone(), web, Arc::new(Alone), clock());
        let data: Bytes = (0..1_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        let url = serve(data.clone()).await;
        let world = Self {
            devnet,
            lotus,
            key,
            journal,
            memory,
            chain,
            market,
            proposer: DealSigner::new(signer),
            data,
            url,
            next: AtomicU64::new(1),
        };
        world.step(20).await;
        world
    }

    async fn look(&self) -> ChainView {
        self.chain.look().await.unwrap()
    }

    async fn step(&self, epochs: u64) {
        self.control("POST", "/epochs/step", json!({"n": epochs})).await;
    }

    async fn control(&self, method: &str, path: &str, body: Value) -> Value {
        let base = &self.devnet.ready().control;
        let (status, answer) = request(method, base, path, body.to_string()).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        serde_json::from_str(&answer).unwrap_or(Value::Null)
    }

    async fn node_faults(&self, faults: Value) {
        self.control("POST", "/faults", json!({ "node": faults })).await;
    }

    /// One thing happens to every call from now on.
    async fn all_calls(&self, fault: Value) {
        self.node_faults(json!({"rules": [{ "fault": fault }]})).await;
    }

    async fn provider_faults(&self, n: usize, faults: Value) {
        let id = self.devnet.ready().providers[n].id.clone();
        self.control("POST", "/faults", json!({"providers": { id: faults }})).await;
    }

    fn provider(&self, n: usize) -> ActorId {
        self.devnet.ready().providers[n].id.parse().unwrap()
    }

    /// The provider at the URL that its operator gave us.
    fn contact(&self, n: usize) -> Contact {
        let at = ContactAddress { text: self.devnet.ready().providers[n].url.clone(), is_operators: true };
        Contact { provider: self.provider(n), peer_id: None, addresses: vec![at] }
    }

    fn piece(&self) -> (PieceCid, PaddedSize) {
        let mut writer = floe_piece::CommP::new();
        writer.update(&self.data).unwrap();
        let piece = writer.finish().unwrap();
        (piece.cid, piece.size)
    }

    /// Terms that the provider takes.
    async fn terms(&self, n: usize) -> DealTerms {
        let head = self.look().await.head;
        let (piece, size) = self.piece();
        DealTerms {
            uuid: DealUuid(uuid::Uuid::from_u128(self.next.fetch_add(1, Ordering::Relaxed).into())),
            provider: self.provider(n),
            piece,
            size,
            car_bytes: self.data.len() as u64,
            root: sha2_cid(b"a root"),
            url: self.url.clone(),
            // Long: the chain is stepped while the provider works in its own time.
            start: head.plus(LEAD),
            end: head.plus(LEAD + 518_400),
            price_per_epoch: AttoFil::new(50_000_000).for_piece(size).unwrap(),
            collateral: AttoFil::new(self.chain.collateral(size).await.unwrap().get() * 12 / 10),
            ipni: false,
        }
    }

    async fn signed(&self, terms: &DealTerms) -> SignedDeal {
        self.proposer.sign(terms).await.unwrap()
    }

    /// Puts so much into escrow, to finality.
    async fn fund(&self, intent: &str, amount: u128) {
        self.look().await;
        self.chain.send(intent, &FundsCall::TopUp(AttoFil::new(amount))).await.unwrap();
        assert_eq!(self.settled(intent).await, MessageProgress::Final(Ok(())));
    }

    /// Enough gas for each message that is on its way.
    async fn gas(&self) -> BTreeMap<String, AttoFil> {
        let open = self.journal.unsettled(self.key.address()).await.unwrap();
        open.into_iter().map(|entry| (entry.intent, MAX_FEE)).collect()
    }

    /// Steps until the message is final.
    async fn settled(&self, intent: &str) -> MessageProgress {
        for _ in 0..30 {
            self.step(1).await;
            self.look().await;
            let changed = self.chain.tick(true, &self.gas().await).await.unwrap();
            let done = changed.into_iter().find(|sent| {
                sent.intent == intent
                    && matches!(sent.progress, MessageProgress::Final(_) | MessageProgress::Missing)
            });
            if let Some(sent) = done {
                return sent.progress;
            }
        }
        panic!("{intent} was not settled");
    }
}

impl World {
    /// A node that answers as `instead` says, and else as the devnet does. Wants a runtime of several threads.
    async fn node_before(&self, mut instead: impl FnMut(&str) -> Option<Reply> + Send + 'static) -> Node {
        let ready = self.devnet.ready();
        let (rpc, token) = (ready.rpc.clone(), ready.token.clone());
        Node::start(move |method, params| {
            if let Some(reply) = instead(method) {
                return reply;
            }
            let (rpc, token, call) = (rpc.clone(), token.clone(), format!("Filecoin.{method}"));
            let params = if params.is_null() { json!([]) } else { params.clone() };
            // Its own token is the devnet's: what that allows is asked of the devnet.
            let params = if method == "AuthVerify" { json!([token]) } else { params };
            let answer = tokio::task::block_in_place(|| forward(&rpc, &token, &call, &params));
            match answer["error"]["message"].as_str() {
                Some(text) => Reply::Refused(text.to_owned().leak()),
                None => Reply::Result(answer["result"].clone()),
            }
        })
        .await
    }

    /// A call of the devnet's node, with the token that allows everything.
    async fn raw(&self, method: &str, params: Value) -> Value {
        let ready = self.devnet.ready();
        let (rpc, token, method) = (ready.rpc.clone(), ready.token.clone(), format!("Filecoin.{method}"));
        tokio::task::spawn_blocking(move || forward(&rpc, &token, &method, &params)).await.unwrap()
    }

    /// What the client has in escrow at the very head, final or not.
    async fn escrow_at_head(&self) -> String {
        let balances = self.control("GET", "/balances", Value::Null).await;
        let ours = json!(self.devnet.ready().client);
        let mut accounts = balances.as_object().unwrap().values();
        accounts.find(|account| account["key"] == ours).unwrap()["escrow"].as_str().unwrap().to_owned()
    }
}

/// Passes a call on to the devnet, and gives the whole frame. Blocks its thread.
fn forward(rpc: &str, token: &str, method: &str, params: &Value) -> Value {
    use std::io::{Read as _, Write as _};
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
    let authority = rpc.strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(authority).unwrap();
    let head = format!(
        "POST /rpc/v1 HTTP/1.1\r\nHost: {authority}\r\nAuthorization: Bearer {token}\r\nContent-Type: \
         application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (start, end) = (answer.find('{').unwrap(), answer.rfind('}').unwrap());
    serde_json::from_str(&answer[start..=end]).unwrap()
}

fn chain_of(
    lotus: &Lotus,
    key: &Arc<LocalKey>,
    journal: &Arc<MemoryJournal>,
    memory: &Arc<Unremembered>,
) -> LotusChain {
    chain_with(lotus, key, journal, memory.clone(), MAX_FEE)
}

fn chain_with(
    lotus: &Lotus,
    key: &Arc<LocalKey>,
    journal: &Arc<MemoryJournal>,
    memory: Arc<dyn Memory>,
    max_fee: AttoFil,
) -> LotusChain {
    let settings = ChainSettings { test_network: true, finality_lookback: FINALITY, max_fee };
    LotusChain::new(lotus.clone(), key.clone(), journal.clone(), memory, clock(), settings)
}

/// One request to a port of the devnet, and its answer as text.
async fn request(method: &str, base: &str, path: &str, body: String) -> (u16, String) {
    let (status, body) = fetch(method, base, path, body).await;
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn fetch(method: &str, base: &str, path: &str, body: String) -> (u16, Bytes) {
    let authority = base.strip_prefix("http://").unwrap().to_owned();
    let stream = TcpStream::connect(&authority).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = axum::http::Request::builder()
        .method(method.parse::<Method>().unwrap())
        .uri(path)
        .header("host", authority)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

/// A pull server with one file: HEAD, and ranges.
async fn serve(data: Bytes) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/pull", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(move |method: Method, headers: HeaderMap, _: Request| {
        std::future::ready(answer(&data, &method, &headers))
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn answer(data: &Bytes, method: &Method, headers: &HeaderMap) -> Response {
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()?.strip_prefix("bytes="));
    let start: usize = range.and_then(|range| range.split('-').next()?.parse().ok()).unwrap_or(0);
    let body = data.slice(start..);
    let mut response = Response::builder().header(header::CONTENT_LENGTH, body.len());
    if range.is_some() {
        let content = format!("bytes {start}-{}/{}", data.len() - 1, data.len());
        response = response.status(StatusCode::PARTIAL_CONTENT).header(header::CONTENT_RANGE, content);
    }
    response.body(if method == Method::HEAD { Body::empty() } else { Body::from(body) }).unwrap()
}

fn code<T>(result: Result<T, Fault>) -> Option<floe_core::FailureCode> {
    result.err().map(|fault| fault.code)
}

fn at(height: i64) -> Epoch {
    Epoch::new(height)
}
