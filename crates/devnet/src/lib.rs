//! A Filecoin of one's own, for tests: a Lotus-compatible node with a chain that can be stepped, and storage providers
//! that really pull, check, publish, seal and serve. The judge of the cold half, not its friend.
//!
//! ```text
//!   client ──JSON-RPC──> rpc ──┐                                       ┌── control <── the test
//!                              ├── node: one lock ── chain (no IO) ────┤
//!   client ──mk12: HTTP──> provider ──follows, publishes, proves──────┘
//!           ──mk12: libp2p─> │
//!             <──pulls the data──┘
//! ```
//!
//! - [`chain`](self) is a model without IO: the same seed and the same calls give the same chain.
//! - `rpc` shows it as Lotus does, to the letter of a recording (`lotus-http.json` among the vectors of `filecoin`).
//! - `provider` has the rules and texts of Boost and Curio, and a CommP of its own ([`wire`](self)).
//! - `faults` are the scripts of what goes wrong, set over `control`.
//!
//! Nothing here is shared with the code that it judges: encoders, signatures and CommP are written a second time. The
//! published vectors and the recordings, which are nobody's code, are those of `filecoin` and `piece`.
//! Nothing is kept on disk. Everything ends when [`Devnet`] is dropped.
//!
//! What this is not: a virtual machine or a proof system ([`chain`](self) says what is left out); a judge of BLS signatures,
//! which are not checked; a place for secrets (every key follows from the seed).

mod chain;
mod control;
mod faults;
mod limits;
mod node;
mod provider;
mod rpc;
mod serve;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::{BASE64, HEXLOWER};
use serde::Serialize;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use self::chain::{FIRST_MINER, Genesis, Miner, Rules, worker_key};
pub use self::faults::{NodeFaults, ProviderFaults, Reject, RetrievalFault, RpcFault, RpcRule, StatusFault};
use self::node::Node;
pub use self::provider::Manner;
use self::provider::p2p::{self, Contact};
use self::provider::{Provider, Terms};
use self::serve::{Server, serve};
use self::wire::address::Address;
use self::wire::key::{Key, Kind};

/// What a devnet is like. The default is small and quick.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the node listens; port 0 is a free one.
    pub rpc_addr: SocketAddr,
    /// How many providers there are, at most 32, each with an owner of its own.
    pub providers: usize,
    /// The ways of the providers, in turn.
    pub manners: Vec<Manner>,
    /// Time of an epoch. None: the chain goes on only when the control port says so.
    pub epoch: Option<Duration>,
    /// Everything that is not asked for follows from it.
    pub seed: u64,
    /// The network's name.
    pub network: String,
    /// Seconds since 1970 of epoch 0.
    pub genesis_time: u64,
    /// Seconds that an epoch adds to the timestamps.
    pub block_delay_secs: u64,
    /// Epochs until a tipset is final. The real chain's is 900.
    pub finality: i64,
    /// Epochs that a provider in Boost's manner wants between a proposal and its start. Boost's default is 2880.
    pub seal_lead: i64,
    /// Epochs from a publication to its sector.
    pub seal_delay: i64,
    /// Shortest deal, in epochs.
    pub min_duration: i64,
    /// Longest deal, in epochs.
    pub max_duration: i64,
    /// Epochs after StartEpoch at which the market's cron looks at a deal; up to 86,400 on the real chain.
    pub unlock_delay: i64,
    /// attoFIL for a GiB and an epoch that every provider asks for.
    pub price: u64,
    /// attoFIL of collateral for a GiB that the chain wants of a provider.
    pub collateral_per_gib: u64,
    /// Bytes of a sector.
    pub sector_size: u64,
    /// Whether `StateMinerInfo` names the providers' addresses. On the real chain they are often missing.
    pub on_chain_addrs: bool,
    /// A transfer without a byte for so long is tried again.
    pub stall: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rpc_addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            providers: 5,
            manners: vec![Manner::Curio, Manner::Boost],
            epoch: Some(Duration::from_millis(100)),
            seed: 1,
            network: "devnet".into(),
            genesis_time: 1_785_249_845,
            block_delay_secs: 30,
            finality: 5,
            seal_lead: 20,
            seal_delay: 6,
            min_duration: 518_400,
            max_duration: 3_680_640,
            unlock_delay: 10,
            price: 50_000_000,
            collateral_per_gib: 1 << 40,
            sector_size: 8 << 20,
            on_chain_addrs: true,
            stall: Duration::from_secs(5),
        }
    }
}

/// Why a devnet did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A listener could not be had.
    #[error("cannot listen on {addr}: {source}; choose another address, or port 0 for a free one")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// A provider's libp2p node did not start.
    #[error("a provider's libp2p node did not start: {0}")]
    Swarm(String),
    /// A setting is out of bounds.
    #[error("{0}")]
    Config(String),
}

/// What a client needs to know, in one line of JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Ready {
    /// Base URL of the node; JSON-RPC is at `/rpc/v1`.
    pub rpc: String,
    /// A token that allows everything.
    pub token: String,
    /// The network's name.
    pub network: String,
    /// The key of the funded account, as Lotus exports keys: hex of `{"Type","PrivateKey"}`.
    pub key: String,
    /// The funded account.
    pub client: String,
    /// The providers.
    pub providers: Vec<ReadyProvider>,
    /// Base URL of the control port.
    pub control: String,
}

/// One provider of [`Ready`].
#[derive(Clone, Debug, Serialize)]
pub struct ReadyProvider {
    /// `f01000` and on.
    pub id: String,
    /// Whom to expect at its multiaddrs.
    pub peer_id: String,
    /// Where it speaks mk12 over libp2p: as in `StateMinerInfo`, in words.
    pub multiaddrs: Vec<String>,
    /// Base URL of its market and its pieces.
    pub url: String,
    /// Its ways.
    pub manner: Manner,
}

/// A running devnet. Dropping it ends everything.
pub struct Devnet {
    ready: Ready,
    _servers: Vec<Server>,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Devnet {
    /// Starts everything. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a listener cannot be had, or a setting is out of bounds.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        check(&config)?;
        let mut listening = Vec::new();
        for n in 0..config.providers {
            let (listener, addr) = listen(loopback()).await?;
            let key = p2p::identity(config.seed, n);
            listening.push((listener, p2p::listen(key, manner(&config, n), addr).await?));
        }
        let contacts: Vec<Contact> = listening.iter().map(|(_, swarm)| swarm.contact().clone()).collect();
        let client = Key::from_seed(format!("client of {}", config.seed).as_bytes(), Kind::Secp);
        let node = Arc::new(Node::new(genesis(&config, &client, &contacts), client.clone()));

        let (mut providers, mut servers, mut tasks) = (Vec::new(), Vec::new(), Vec::new());
        for (n, (listener, swarm)) in listening.into_iter().enumerate() {
            let provider = Arc::new(provider(&config, n, swarm.contact().clone(), &node));
            servers.push(serve(listener, provider::router(Arc::clone(&provider))));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(Arc::clone(&provider).run())));
            tasks.push(AbortOnDropHandle::new(tokio::spawn(swarm.run(Arc::clone(&provider)))));
            providers.push(provider);
        }
        let (rpc_listener, rpc_addr) = listen(config.rpc_addr).await?;
        let tokens = rpc::Tokens::new(config.seed);
        let token = tokens.admin();
        let shared = Arc::new(rpc::Rpc::new(Arc::clone(&node), tokens));
        servers.push(serve(rpc_listener, rpc::router(shared)));

        let millis = config.epoch.map_or(0, |epoch| u64::try_from(epoch.as_millis()).unwrap_or(u64::MAX));
        let (epoch_ms, epochs) = watch::channel(millis);
        tasks.push(AbortOnDropHandle::new(tokio::spawn(tick(Arc::clone(&node), epochs))));
        let (control_listener, control_addr) = listen(loopback()).await?;
        let control = control::Control { node, providers, epoch_ms };
        servers.push(serve(control_listener, control::router(Arc::new(control))));

        let ready = Ready {
            rpc: format!("http://{rpc_addr}"),
            token,
            network: config.network.clone(),
            key: exported(&client),
            client: client.address().to_string(),
            providers: contacts
                .iter()
                .enumerate()
                .map(|(n, contact)| ready_provider(&config, n, contact))
                .collect(),
            control: format!("http://{control_addr}"),
        };
        Ok(Self { ready, _servers: servers, _tasks: tasks })
    }

    /// What a client needs to know.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }
}

fn check(config: &Config) -> Result<(), StartError> {
    let refuse = |why: &str| Err(StartError::Config(why.to_owned()));
    if config.providers > limits::PROVIDERS {
        return refuse("a devnet has at most 32 providers");
    }
    if config.manners.is_empty() {
        return refuse("the providers must have some manner");
    }
    if config.finality < 0 || config.seal_delay < 0 || config.unlock_delay < 0 {
        return refuse("epochs cannot be negative");
    }
    if config.min_duration < 1 || config.max_duration < config.min_duration {
        return refuse("the shortest deal has at least an epoch, and is no longer than the longest");
    }
    Ok(())
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

async fn listen(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { addr, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
}

/// An epoch each so often; stands still at 0. Ends with the control port.
async fn tick(node: Arc<Node>, mut epochs: watch::Receiver<u64>) {
    loop {
        let ms = *epochs.borrow_and_update();
        let next = async {
            if ms == 0 {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(Duration::from_millis(ms)).await;
        };
        tokio::select! {
            () = next => node.advance(1),
            changed = epochs.changed() => if changed.is_err() { return },
        }
    }
}

fn genesis(config: &Config, client: &Key, contacts: &[Contact]) -> Genesis {
    let miner = |contact: &Contact| Miner {
        peer_id: Some(contact.peer.to_base58()),
        multiaddrs: config.on_chain_addrs.then(|| contact.multiaddr.to_vec()).into_iter().collect(),
        sector_size: config.sector_size,
        ..Miner::default()
    };
    Genesis {
        seed: config.seed,
        network: config.network.clone(),
        time: config.genesis_time,
        block_delay: config.block_delay_secs,
        finality: config.finality,
        rules: Rules {
            min_duration: config.min_duration,
            max_duration: config.max_duration,
            unlock_delay: config.unlock_delay,
            collateral_per_gib: config.collateral_per_gib.into(),
        },
        miners: contacts.iter().map(miner).collect(),
        client: client.address(),
    }
}

fn manner(config: &Config, n: usize) -> Manner {
    config.manners.get(n % config.manners.len().max(1)).copied().unwrap_or(Manner::Curio)
}

fn provider(config: &Config, n: usize, contact: Contact, node: &Arc<Node>) -> Provider {
    let terms = Terms {
        miner: Address::Id(FIRST_MINER + n as u64),
        manner: manner(config, n),
        price: config.price.into(),
        min_piece_size: 256,
        max_piece_size: config.sector_size,
        seal_lead: config.seal_lead,
        seal_delay: config.seal_delay,
        stall: config.stall,
    };
    Provider::new(terms, contact, worker_key(config.seed, n), Arc::clone(node))
}

fn ready_provider(config: &Config, n: usize, contact: &Contact) -> ReadyProvider {
    ReadyProvider {
        id: format!("f0{}", FIRST_MINER + n as u64),
        peer_id: contact.peer.to_base58(),
        multiaddrs: vec![contact.multiaddr.to_string()],
        url: format!("http://{}", contact.http),
        manner: manner(config, n),
    }
}

/// As Lotus exports a key: hex of JSON.
fn exported(key: &Key) -> String {
    let secret = BASE64.encode(&key.secret_bytes());
    HEXLOWER.encode(format!("{{\"Type\":\"secp256k1\",\"PrivateKey\":\"{secret}\"}}").as_bytes())
}

#[cfg(test)]
mod tests;
