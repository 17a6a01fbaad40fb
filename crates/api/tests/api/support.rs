//! A running service, and clients of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use floe_api::{Components, Server, Settings};
use floe_blockstore::BlockStore;
use floe_blockstore::testing::Watched;
use floe_core::policy::Hot;
use floe_core::{AttoFil, Block, Cid, Clock, ManualClock, Policy, Seeded, Timestamp, cid::code};
use floe_engine::{Engine, Scope};
use floe_records::Records;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::net::Peers;
use crate::{leaks, schema};

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clock: ManualClock,
    /// What is free on the disk.
    pub(crate) free: Arc<AtomicU64>,
    pub(crate) peers: Peers,
    pub(crate) records: Records,
    pub(crate) engine: Engine,
    pub(crate) server: Server,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on_disk(1 << 20, change).await
    }

    /// On a disk of which so many bytes have to stay free.
    pub(crate) async fn on_disk(reserve_bytes: u64, change: impl FnOnce(&mut Settings)) -> Self {
        let metrics: floe_api::RenderMetrics = Arc::new(|| "floe_up 1\n".to_owned());
        Self::rendering(metrics, reserve_bytes, change).await
    }

    /// With policies of these names and numbers of replicas.
    pub(crate) async fn with_policies(of: &[(&str, u8)]) -> Self {
        let metrics: floe_api::RenderMetrics = Arc::new(|| "floe_up 1\n".to_owned());
        let policies = of.iter().map(|(name, replicas)| ((*name).to_owned(), policy(name, *replicas)));
        let mut settings = floe_engine::Settings::default();
        settings.cold.policies = policies.collect();
        let prefixed = |api: &mut Settings| api.path_prefixes = vec!["/psa".to_owned()];
        Self::made(metrics, 1 << 20, settings, prefixed).await
    }

    /// With a pull listener, a policy `gold`, and pieces of a MiB that are packed after a second.
    pub(crate) async fn with_pulls(key: floe_engine::cold::PullKey) -> Self {
        let metrics: floe_api::RenderMetrics = Arc::new(|| "floe_up 1\n".to_owned());
        let mut settings = floe_engine::Settings::default();
        settings.cold.policies.insert("gold".to_owned(), policy("gold", 2));
        settings.cold.pull_key = Some(key);
        let least = floe_core::PaddedSize::from_bytes(1 << 20).unwrap();
        let flush_after = Duration::from_secs(1);
        settings.cold.packing = floe_engine::cold::Packing { target: least, least, flush_after, align: true };
        let listens = |api: &mut Settings| api.pull_addr = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        Self::made(metrics, 1 << 20, settings, listens).await
    }

    /// With these metrics on the ops listener.
    pub(crate) async fn rendering(
        metrics: floe_api::RenderMetrics,
        reserve_bytes: u64,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        Self::made(metrics, reserve_bytes, floe_engine::Settings::default(), change).await
    }

    async fn made(
        metrics: floe_api::RenderMetrics,
        reserve_bytes: u64,
        engine: floe_engine::Settings,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_millis(1_780_000_000_000));
        let shared: Arc<dyn Clock> = Arc::new(clock.clone());
        let entropy = || Arc::new(Seeded::new(7));
        let free = Arc::new(AtomicU64::new(1 << 40));
        let blocks = open_blocks(&dir, reserve_bytes, &free, Arc::clone(&shared)).await;
        let settings = floe_records::Settings::at(dir.path().join("pins-1.sqlite"));
        let components = floe_records::Components { clock: Arc::clone(&shared), entropy: entropy() };
        let records = Records::open(settings, components).await.unwrap();
        // The tests of deals choose them by themselves, where no engine has begun an epoch to spend in.
        records.begin_ledger_epoch().await.unwrap();
        let peers = Peers::default();
        let components = floe_engine::Components {
            blocks,
            records: records.clone(),
            exchange: Arc::new(peers.clone()),
            network: Arc::new(peers.clone()),
            clock: shared,
            entropy: entropy(),
            cold: engine.cold.pull_key.is_some().then(crate::nobody::components),
        };
        let engine = Engine::start(engine, components).await.unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut settings = Settings { api_addr: any, ops_addr: any, ..Settings::default() };
        change(&mut settings);
        let components = Components { engine: engine.clone(), entropy: entropy(), metrics };
        let server = floe_api::bind(settings).await.unwrap().start(components);
        Self { dir, clock, free, peers, records, engine, server }
    }

    pub(crate) fn base(&self) -> String {
        format!("http://{}", self.server.api_addr())
    }

    pub(crate) fn ops(&self) -> String {
        format!("http://{}", self.server.ops_addr())
    }

    /// A client of the ops listener. It looks at every answer too.
    pub(crate) fn ops_client(&self) -> Client {
        Client { http: reqwest::Client::new(), base: self.ops(), token: String::new() }
    }

    /// A client with a token of that account, which is made if need be.
    pub(crate) async fn client(&self, account: &str, scopes: &[Scope]) -> Client {
        self.client_with(account, scopes, None).await
    }

    /// The same; a new account may hold so many pins.
    pub(crate) async fn client_with(&self, account: &str, scopes: &[Scope], max_pins: Option<u64>) -> Client {
        let known = self.engine.accounts().await.unwrap();
        if known.iter().all(|known| known.name != account) {
            self.engine.create_account(account, None, max_pins).await.unwrap();
        }
        let (_, token) = self.engine.create_token(account, scopes, None).await.unwrap();
        Client { http: reqwest::Client::new(), base: self.base(), token }
    }

    pub(crate) async fn alice(&self) -> Client {
        self.client("alice", &[Scope::PinsRead, Scope::PinsWrite]).await
    }

    pub(crate) async fn bob(&self) -> Client {
        self.client("bob", &[Scope::PinsRead, Scope::PinsWrite]).await
    }

    pub(crate) async fn admin(&self) -> Client {
        self.client("default", &[Scope::Admin]).await
    }
}

fn policy(name: &str, replicas: u8) -> Policy {
    Policy {
        name: name.to_owned(),
        replicas,
        regions: Vec::new(),
        max_price: AttoFil::ZERO,
        duration_epochs: 518_400,
        hot: Hot::Always,
        providers: Vec::new(),
        ipni: true,
        spare_after_epochs: None,
    }
}

async fn open_blocks(
    dir: &tempfile::TempDir,
    reserve_bytes: u64,
    free: &Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
) -> BlockStore {
    let settings = floe_blockstore::Settings {
        dir: dir.path().join("blocks-1"),
        index: floe_blockstore::IndexKind::Redb,
        pack_bytes: 64 << 20,
        reserve_bytes: Some(reserve_bytes),
    };
    let free = Arc::clone(free);
    let space = move || floe_blockstore::Space { free: free.load(Ordering::SeqCst), total: 1 << 41 };
    let disk = Arc::new(Watched::with_space(floe_blockstore::RealDisk, space));
    let entropy = Arc::new(floe_core::Seeded::new(1));
    let components = floe_blockstore::Components { disk, clock, entropy };
    tokio::task::spawn_blocking(|| BlockStore::open(settings, components)).await.unwrap().unwrap()
}

/// A client with a token.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) token: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
    pub(crate) json: Value,
}

impl Reply {
    /// The reason of an error, after a check that it is one as the spec has it.
    pub(crate) fn reason(&self) -> &str {
        schema::conforms("Failure", &self.json);
        assert_eq!(self.headers["content-type"], "application/json");
        self.json["error"]["reason"].as_str().unwrap()
    }

    pub(crate) fn details(&self) -> &str {
        self.json["error"]["details"].as_str().unwrap_or_default()
    }

    pub(crate) fn id(&self) -> String {
        self.json["requestid"].as_str().unwrap().to_owned()
    }

    /// Says what was refused and how.
    #[track_caller]
    pub(crate) fn is(&self, status: u16, reason: &str) {
        assert_eq!((self.status, self.reason()), (status, reason), "{}", self.text);
    }

    #[track_caller]
    pub(crate) fn is_status(&self, status: u16) {
        assert_eq!(self.status, status, "{}", self.text);
    }
}

impl Client {
    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method: Method = method.parse().unwrap();
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    /// Sends, and looks at the answer as every client of these tests does: an error has the spec's shape, and nothing
    /// tells of the network and the machine behind (T45).
    pub(crate) async fn send(&self, request: RequestBuilder) -> Reply {
        let request = request.build().unwrap();
        leaks::note_sent(&request);
        let response = self.http.execute(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let text = response.text().await.unwrap();
        leaks::look_for(&headers, &text);
        let json = serde_json::from_str(&text).unwrap_or(Value::Null);
        if status.is_client_error() || status.is_server_error() {
            schema::conforms("Failure", &json);
        }
        Reply { status: status.as_u16(), headers, text, json }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Reply {
        self.send(self.request("POST", path).json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send(self.request("DELETE", path)).await
    }

    /// Adds a pin, with a check of the answer.
    pub(crate) async fn add(&self, body: Value) -> Reply {
        let reply = self.post("/pins", body).await;
        reply.is_status(StatusCode::ACCEPTED.as_u16());
        schema::conforms("PinStatus", &reply.json);
        reply
    }

    pub(crate) async fn add_cid(&self, cid: &Cid) -> String {
        self.add(json!({ "cid": cid.to_string() })).await.id()
    }

    /// A page, with a check of the answer.
    pub(crate) async fn list(&self, query: &str) -> (u64, Vec<Value>) {
        let reply = self.get(&format!("/pins?{query}")).await;
        reply.is_status(200);
        schema::conforms("PinResults", &reply.json);
        let results = reply.json["results"].as_array().unwrap().clone();
        (reply.json["count"].as_u64().unwrap(), results)
    }

    /// The request ids of a page.
    pub(crate) async fn ids(&self, query: &str) -> Vec<String> {
        self.list(query).await.1.iter().map(|pin| pin["requestid"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until a pin has the status.
    pub(crate) async fn reaches(&self, id: &str, status: &str) -> Reply {
        for _ in 0..2_000 {
            let reply = self.get(&format!("/pins/{id}")).await;
            reply.is_status(200);
            schema::conforms("PinStatus", &reply.json);
            if reply.json["status"] == status {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{id} never is {status}");
    }
}

/// A raw block.
pub(crate) fn leaf(text: &str) -> Block {
    Block::of(code::RAW, Bytes::copy_from_slice(text.as_bytes())).unwrap()
}

/// A dag-cbor list of links.
pub(crate) fn node(links: &[Cid]) -> Block {
    let mut bytes = vec![0x80 | u8::try_from(links.len()).unwrap()];
    for link in links {
        let link = link.to_bytes();
        // Tag 42, a byte string (the shortest form of its length), and the zero that stands before a binary CID.
        bytes.extend([0xd8, 0x2a]);
        match u8::try_from(link.len() + 1).unwrap() {
            short @ ..24 => bytes.push(0x40 | short),
            long => bytes.extend([0x58, long]),
        }
        bytes.push(0);
        bytes.extend(link);
    }
    Block::of(code::DAG_CBOR, bytes.into()).unwrap()
}
