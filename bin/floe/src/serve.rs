//! `floe serve`: everything is made here, joined here, and stopped here.
//!
//! ```text
//!   data directory ─> ports ─> rows ─> blocks ─> node ─> filecoin ─> engine ─> API ─> endpoints.json ─> banner
//!        start ─────────────────────────────────────────────────────────────────────────────────>
//!        <───────────────────────────────────────────────────────────────────────────────── stop
//! ```
//!
//! The API's ports are taken first, so that one in use is known before a long recovery, and served last: who
//! connects in between waits in the backlog and finds a node that is ready.
//!
//! What starts later uses what started before it, so it stops first: nothing new comes in, then nothing is worked
//! on, then nothing talks to peers, then the stores close, and the lock goes last.
//!
//! # Ends
//! - SIGTERM or SIGINT: a clean stop within `serve.stop_within`, exit code 0. A
//!   second signal ends the process at once; that loses nothing acknowledged, because acknowledged means synced.
//! - A failed sync: no clean stop. What is on disk is unknown, so nothing more is written or acknowledged; exit
//!   code 12, and the next start recovers from what was synced.
//! - The node's task ends by itself: a clean stop of the rest, exit code 1.
//! - kill -9: the next start takes up what was left. There is no file to clean up but `endpoints.json`, which
//!   names a process id for those who want to know.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use floe_api::Server;
use floe_blockstore::BlockStore;
use floe_core::Clock;
use floe_core::ports::Entropy;
use floe_engine::Engine;
use floe_ipfs::Node;
use floe_records::Records;

use crate::cli::ServeArgs;
use crate::config::{Config, Layers};
use crate::datadir::{DataDir, Layout};
use crate::devnet::Inside;
use crate::endpoints::Endpoints;
use crate::exit::{Code, Failure};
use crate::metrics::Metrics;
use crate::output::Output;
use crate::signals::Signals;
use crate::system::{self, SystemClock, SystemEntropy};
use crate::{banner, cold, endpoints, init, logs, space, stores};

/// Runs the service until it is told to stop.
pub(crate) async fn serve(layout: Layout, args: ServeArgs, out: Output) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    system::keep_files_private();
    space::require_for_new(&layout)?;
    let mut dir = DataDir::open_or_make(layout)?;
    let inside = if args.devnet { Some(Inside::start(dir.layout()).await?) } else { None };
    let preset = inside.as_ref().map(Inside::preset).transpose()?.unwrap_or_default();
    let config = Config::check(&Layers::load_over(preset, dir.layout().root(), args.flags.0)?)?;
    logs::start(&config.log);
    space::make_room(&dir)?;

    let started = tokio::select! {
        started = Floe::start(&mut dir, &config, args.restored) => started,
        // A long start, such as rebuilding the index, can be given up like anything else.
        signal = signals.next() => {
            tracing::info!("{signal} while starting: nothing has been served yet");
            return Ok(());
        }
    };
    let floe = started.map_err(|error| space::explain(dir.layout(), error))?;
    let mut endpoints = floe.endpoints();
    endpoints.devnet = inside.as_ref().map(Inside::ready).transpose()?;
    announce(&endpoints, &config, dir.layout(), out)?;

    let ending = tokio::select! {
        signal = signals.next() => Ending::Asked(signal),
        reason = floe.engine.poisoned() => Ending::Poisoned(reason),
        error = floe.node.failed() => match error {
            floe_ipfs::Error::SyncFailed(reason) => Ending::Poisoned(reason),
            error => Ending::NodeFailed(error),
        },
    };
    floe.end(ending, dir.layout(), config.serve.stop_within, signals).await
}

/// Tells others where the node is. It runs as well without: on a full disk neither the file nor a stdout that is a file
/// there can be written, and removing pins, which needs a node, is what makes space.
fn announce(endpoints: &Endpoints, config: &Config, layout: &Layout, out: Output) -> anyhow::Result<()> {
    match endpoints.write(layout) {
        Err(error) if error.is_failed_sync() => return Err(error.into()),
        Err(error) => {
            let (cause, api) = (error.source().map(ToString::to_string).unwrap_or_default(), &endpoints.api);
            tracing::warn!(
                cause,
                "{error} ({cause}). The node runs; commands on this machine need --api-url {api} until it is started again"
            );
        }
        Ok(()) => {}
    }
    let document = banner::document(endpoints, layout);
    if let Err(error) = out.print(&document, || banner::text(endpoints, config, layout)) {
        tracing::warn!("{error:#}: where the node is reached was not printed");
    }
    Ok(())
}

/// Why a running node ends.
enum Ending {
    Asked(&'static str),
    Poisoned(String),
    NodeFailed(floe_ipfs::Error),
}

/// A running service: the live parts, in the order they were started.
struct Floe {
    /// Held, not read: what is counted is kept small until this goes.
    _metrics: Metrics,
    records: Records,
    blocks: BlockStore,
    node: Node,
    engine: Engine,
    server: Server,
}

impl Floe {
    /// Starts every part on the one before it. Where one does not start, the process ends: the stores need no
    /// goodbye, and the kernel gives back the rest.
    async fn start(dir: &mut DataDir, config: &Config, restored: bool) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        system::raise_open_files();
        let metrics = Metrics::install(Arc::clone(&clock))?;
        let bound = floe_api::bind(floe_api::Settings {
            api_addr: config.api.addr,
            ops_addr: config.ops.addr,
            pull_addr: config.pull.addr,
            public_url: config.api.public_url.as_ref().map(ToString::to_string),
            trusted_proxies: config.api.trusted_proxies.clone(),
            path_prefixes: config.api.path_prefixes.iter().map(|prefix| prefix.0.clone()).collect(),
            requests_per_minute: config.api.requests_per_minute,
            lists_per_minute: config.api.lists_per_minute,
        })
        .await
        .context("cannot start the API")?;

        init::require_identity(dir)?;
        let identity = init::files(dir, &*entropy)?;
        // Nobody but providers needs it, and a rotten one must not stop a node that has none.
        let pull_key = config.pull.addr.map(|_| init::pull_key(dir, &*entropy)).transpose()?;
        let records = stores::open_records(dir, Some(config.pin.max_queued), &clock, &entropy).await?;
        init::complete(dir, &records).await?;
        let blocks = stores::open_blocks(dir.layout(), &config.storage, &clock, &entropy).await?;

        let node = Node::start(
            floe_ipfs::Settings {
                identity: floe_ipfs::Identity::Keypair(identity),
                data_dir: dir.layout().root().to_owned(),
                swarm: config.network.swarm.clone(),
                certificate: config.network.certificate.clone(),
                announce: config.network.announce.clone(),
                bootstrap: config.network.bootstrap.clone(),
                routers: config.network.routers.clone(),
                relays: config.network.relays.clone(),
                private_addresses: config.network.private_addresses,
                api_is_local: config.api.is_local(),
                offline: config.network.offline,
                memory_budget_bytes: config.network.memory_budget,
                egress_per_peer: config.network.egress_per_peer,
                egress: config.network.egress,
            },
            floe_ipfs::Components {
                blocks: Arc::new(blocks.clone()),
                clock: Arc::clone(&clock),
                entropy: Arc::clone(&entropy),
            },
        )
        .await
        .context("cannot start the IPFS node")?;

        cold::notice_a_copy(config, dir.layout(), &records, restored).await?;
        let cold = cold::join(config, dir.layout(), &node, &records, &clock).await?;
        let engine = Engine::start(
            floe_engine::Settings {
                give_up_after: config.pin.give_up_after,
                max_blocks: config.pin.max_blocks,
                max_bytes: config.pin.max_bytes,
                max_depth: config.pin.max_depth,
                cold: floe_engine::cold::Settings {
                    policies: config.policies.clone(),
                    deals: cold::deals(config),
                    packing: config.aggregate.clone(),
                    pull_url: config.pull.url.as_ref().map(ToString::to_string),
                    pull_key,
                },
            },
            floe_engine::Components {
                blocks: blocks.clone(),
                records: records.clone(),
                exchange: Arc::new(node.clone()),
                network: Arc::new(node.clone()),
                clock: Arc::clone(&clock),
                entropy: Arc::clone(&entropy),
                cold,
            },
        )
        .await
        .context("cannot start the engine")?;

        let server =
            bound.start(floe_api::Components { engine: engine.clone(), entropy, metrics: metrics.render() });
        Ok(Self { _metrics: metrics, records, blocks, node, engine, server })
    }

    /// Where it can be reached, now that every port is known.
    fn endpoints(&self) -> Endpoints {
        use floe_core::ports::Network as _;
        Endpoints::new(
            self.server.api_addr(),
            self.server.ops_addr(),
            &self.node.status().listen,
            self.node.peer_id(),
        )
    }

    async fn end(
        self,
        ending: Ending,
        layout: &Layout,
        within: Duration,
        mut signals: Signals,
    ) -> anyhow::Result<()> {
        let said = humantime::format_duration(within);
        let outcome = match ending {
            Ending::Poisoned(reason) => {
                return Err(Failure::new(
                    Code::SyncFailed,
                    format!("a sync failed ({reason}): start again to recover"),
                )
                .into());
            }
            Ending::Asked(signal) => {
                tracing::info!("{signal}: stopping within {said}; a second signal ends at once");
                Ok(())
            }
            Ending::NodeFailed(error) => {
                Err(anyhow::Error::from(error).context("the IPFS node ended by itself"))
            }
        };
        tokio::select! {
            stopped = tokio::time::timeout(within, self.stop(layout, within)) => match stopped {
                Ok(stopped) => stopped.and(outcome),
                Err(_) => Err(anyhow::anyhow!("did not stop within {said}; nothing acknowledged is lost")),
            },
            signal = signals.next() => Err(anyhow::anyhow!("{signal} again: ended at once; nothing acknowledged is lost")),
        }
    }

    /// Stops every part, the last started first. Requests in flight have half of the time, and are cut then, so that
    /// the stores still have time to close.
    async fn stop(self, layout: &Layout, within: Duration) -> anyhow::Result<()> {
        endpoints::remove(layout)?;
        self.server.stop(within / 2).await;
        tracing::info!("stopped: the API");
        self.engine.stop().await;
        tracing::info!("stopped: the engine");
        self.node.stop().await;
        tracing::info!("stopped: the IPFS node");
        let closed = self.blocks.close().await.context("cannot close the block store");
        if closed.is_ok() {
            tracing::info!("stopped: the block store");
        }
        self.records.close().await;
        tracing::info!("stopped: the rows");
        closed
    }
}
