//! The IPFS Pinning Service API, its extensions and the admin routes over HTTP.
//!
//! # What is here
//! Three listeners. The *API* listener serves `/pins` and what belongs to it, `/admin/v1` and `/openapi.json`.
//! The *ops* listener serves `/livez`, `/readyz` and `/metrics`, and is meant for the machine's own network.
//! The *pull* listener, where it is set, serves pieces to storage providers. All use the same accept loop.
//!
//! A request passes, from the socket inwards:
//!
//! ```text
//!   listen      accepts; bounds connections, in all and per client; backs off when out of descriptors
//!   connection  HTTP/1 and HTTP/2 by hyper; header, idle and write deadlines
//!   front       431, Host, requests in flight, path, panics, metrics; every error becomes JSON
//!   router      routes to handlers: extract, one call into the engine, encode
//!   rates       what an account may ask for in a minute
//!   memory      what bodies and pages may take, over all clients and for each account
//! ```
//!
//! # Who owns what
//! The engine owns every fact; this crate holds nothing but connections. What a crash takes away are replies:
//! a pin that was acknowledged is durable, one that was not may or may not exist, and an `Idempotency-Key`
//! makes the retry harmless.
//!
//! [`Server::stop`] stops accepting, ends event streams at once, lets requests in flight finish for the time
//! it is given, and then cuts what is left. Stop it before the engine.
//!
//! # What it is not
//! It does not speak TLS (a reverse proxy does), does not decompress requests, and knows neither stores nor
//! swarm.

mod access;
mod admin;
mod body;
mod client;
mod cold;
mod connection;
mod deals;
mod error;
mod feed;
mod front;
mod limits;
mod listen;
mod memory;
mod ops;
mod path;
mod pins;
mod pull;
mod rates;
mod router;
#[cfg(test)]
mod siege;
#[cfg(test)]
mod testing;
mod wallet;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use floe_core::ports::Entropy;
use floe_engine::Engine;
pub use ipnet::IpNet;
pub use path::{check_prefixes as check_path_prefixes, prefix as path_prefix};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::client::{Clients, Places, TrustedProxies};
use crate::front::{Front, HostRule, Refusal};
use crate::limits::Pace;
use crate::listen::{Listener, Running};
use crate::rates::Rates;

/// Plain settings (`[api]` and `[ops]` in config.toml).
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the API listens. Port 0 takes a free one.
    pub api_addr: SocketAddr,
    /// Where health and metrics listen. Port 0 takes a free one.
    pub ops_addr: SocketAddr,
    /// Where providers pull pieces (`filecoin.pull_addr`). Port 0 takes a free one. `None`: nowhere.
    pub pull_addr: Option<SocketAddr>,
    /// The URL under which the public reaches the API, if it does. Its host is accepted on a loopback
    /// listener, and no request counts as local any more.
    pub public_url: Option<String>,
    /// Reverse proxies: exempt from the bound of connections per client; their clients are told apart by
    /// `X-Forwarded-For`.
    pub trusted_proxies: Vec<IpNet>,
    /// Paths under which everything is served as well, such as `/ipfs-pinning`.
    pub path_prefixes: Vec<String>,
    /// Requests under `/pins` that an account may make in a minute; `None`: no limit. Never for `default`.
    pub requests_per_minute: Option<u32>,
    /// Pages among them.
    pub lists_per_minute: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_addr: SocketAddr::from(([127, 0, 0, 1], 4780)),
            ops_addr: SocketAddr::from(([127, 0, 0, 1], 4782)),
            pull_addr: None,
            public_url: None,
            trusted_proxies: Vec::new(),
            path_prefixes: Vec::new(),
            requests_per_minute: None,
            lists_per_minute: None,
        }
    }
}

/// Renders the metrics in Prometheus' text format.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// Live objects.
#[derive(Clone)]
pub struct Components {
    /// What decides.
    pub engine: Engine,
    /// Names internal errors, so that the reply can say which line of the log is meant.
    pub entropy: Arc<dyn Entropy>,
    /// What `/metrics` answers.
    pub metrics: RenderMetrics,
}

/// Why the servers did not start.
#[derive(Debug, Error)]
pub enum Error {
    /// Another process listens there: the binary exits with 11.
    #[error("{what} = {addr} is in use: stop what listens there, or choose another address")]
    AddressInUse {
        /// The setting: `api.addr`, `ops.addr` or `filecoin.pull_addr`.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {what} = {addr}")]
    Bind {
        /// The setting: `api.addr`, `ops.addr` or `filecoin.pull_addr`.
        what: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// `api.public_url` is no absolute URL.
    #[error("api.public_url = {0:?} is not an absolute URL such as https://pins.example.org")]
    PublicUrl(String),
    /// An entry of `api.path_prefixes` is no path, or would hide our own.
    #[error("api.path_prefixes: {prefix:?}: {reason}")]
    PathPrefix {
        /// The entry.
        prefix: String,
        /// What was wanted.
        reason: &'static str,
    },
}

/// All ports, taken but not served: connections wait in the backlog until [`Bound::start`].
#[derive(Debug)]
pub struct Bound {
    api: Listener,
    ops: Listener,
    pull: Option<Listener>,
    hosts: (HostRule, HostRule),
    trusted: TrustedProxies,
    prefixes: path::Prefixes,
    rates: Rates,
    pace: Pace,
}

/// Checks the settings and takes the ports. Early, so that a port in use is known before anything is opened.
///
/// # Errors
/// [enum@Error], which names the setting.
pub async fn bind(settings: Settings) -> Result<Bound, Error> {
    let public_host = settings.public_url.as_deref().map(front::public_host).transpose()?;
    let prefixes = path::Prefixes::new(&settings.path_prefixes)?;
    let api = Listener::bind("api.addr", settings.api_addr).await?;
    let ops = Listener::bind("ops.addr", settings.ops_addr).await?;
    let pull = match settings.pull_addr {
        Some(addr) => Some(Listener::bind("filecoin.pull_addr", addr).await?),
        None => None,
    };
    let hosts = (HostRule::new(api.addr(), public_host), HostRule::new(ops.addr(), None));
    let trusted = TrustedProxies::new(settings.trusted_proxies);
    let rates = Rates::new(settings.requests_per_minute, settings.lists_per_minute);
    Ok(Bound { api, ops, pull, hosts, trusted, prefixes, rates, pace: Pace::default() })
}

impl Bound {
    /// Where the API will be served, with the port that was chosen.
    pub fn api_addr(&self) -> SocketAddr {
        self.api.addr()
    }

    /// Where health and metrics will be served, with the port that was chosen.
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops.addr()
    }

    /// Where pieces will be pulled from, with the port that was chosen.
    pub fn pull_addr(&self) -> Option<SocketAddr> {
        self.pull.as_ref().map(Listener::addr)
    }

    /// Serves. Call it on a tokio runtime.
    pub fn start(self, components: Components) -> Server {
        let Components { engine, entropy, metrics } = components;
        let pace = Arc::new(self.pace);
        let stopping = CancellationToken::new();
        let (api_addr, ops_addr, pull_addr) = (self.api_addr(), self.ops_addr(), self.pull_addr());
        let front = |router, host, prefixes| {
            let clients = Clients::new(pace.requests_per_client, "requests_per_client");
            let places = Places::new(pace.requests, "requests", clients).keeping(limits::REQUESTS_KEPT);
            Front::new(router, host, prefixes, self.trusted.clone(), places, Arc::clone(&entropy))
        };
        let pulls = self.pull.map(|listener| {
            let pace = Arc::new(pace.of_pulls());
            let clients = Clients::new(pace.requests_per_client, "requests_per_client");
            let places = Places::new(pace.requests, "requests", clients);
            let routes = pull::router(engine.clone());
            let front = Front::for_pulls(routes, self.trusted.clone(), places, Arc::clone(&entropy));
            let (app, trusted, stop) = (front.into_service(), self.trusted.clone(), stopping.clone());
            listener.serve_refusing(app, trusted, pace, stop, Refusal::Unavailable)
        });
        let state = router::ApiState::new(engine.clone(), stopping.clone(), Arc::clone(&pace), self.rates);
        let routes = router::api(state);
        let prefixes = self.prefixes.with_policies(engine.policies().keys());
        let api = front(routes, self.hosts.0, prefixes);
        let ops =
            front(ops::router(engine, metrics, stopping.clone()), self.hosts.1, path::Prefixes::default());
        let api = self.api.serve(api.into_service(), self.trusted.clone(), Arc::clone(&pace), stopping);
        let ops = self.ops.serve(ops.into_service(), self.trusted.clone(), pace, CancellationToken::new());
        Server { api_addr, ops_addr, pull_addr, api, ops, pulls }
    }
}

/// The running servers. Dropping it without [`Server::stop`] cuts every connection.
#[derive(Debug)]
pub struct Server {
    api_addr: SocketAddr,
    ops_addr: SocketAddr,
    pull_addr: Option<SocketAddr>,
    api: Running,
    ops: Running,
    pulls: Option<Running>,
}

impl Server {
    /// Where the API is served, with the port that was chosen.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// Where health and metrics are served, with the port that was chosen.
    pub fn ops_addr(&self) -> SocketAddr {
        self.ops_addr
    }

    /// Where pieces are pulled from, with the port that was chosen.
    pub fn pull_addr(&self) -> Option<SocketAddr> {
        self.pull_addr
    }

    /// Stops accepting, ends event streams at once, and gives requests in flight `drain` to finish. What providers pull is
    /// cut then: they ask for the rest later. Health and metrics answer (`/readyz` with 503) until the API has stopped. Not cancel safe: dropping the future
    /// cuts what is open.
    pub async fn stop(self, drain: Duration) {
        match &self.pulls {
            Some(pulls) => tokio::join!(self.api.stop(drain), pulls.stop(drain)).0,
            None => self.api.stop(drain).await,
        }
        self.ops.stop(limits::OPS_DRAIN).await;
    }
}
