//! The node as others hold it.

use std::path::Path;
use std::sync::Arc;

use floe_bitswap::EgressLimit;
use floe_core::Cid;
use floe_core::clock::BoxFuture;
use floe_core::ports::{EventSink, Exchange, Network, NetworkStatus, ReadError, Session, SessionHints};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::Swarm;
use libp2p::{Multiaddr, PeerId, relay};
use tokio::sync::{Notify, RwLock, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::behaviour::{Behaviour, Connections, Parts};
use crate::dial::policy::Policy;
use crate::dial::resolve::{Nowhere, Resolve, System};
use crate::dial::target::peer_of;
use crate::kad_store;
use crate::limits::{
    self, COMMANDS, IDLE_CONNECTION, MAX_ANNOUNCEMENTS, MAX_NEGOTIATING_STREAMS, MAX_RELAYS, STOP_WITHIN,
};
use crate::memory::Memory;
use crate::provide::worker::Worker;
use crate::provide::{Provided, store};
use crate::routers::Routers;
use crate::session::{NodeSession, Reach};
#[cfg(test)]
use crate::task::Command;
use crate::task::{Relays, State, Task};
use crate::view::View;
use crate::{Components, Error, Identity, PrivateAddresses, Settings, identity, transport};

/// A running node. Cheap to clone; the last clone to go does not stop it: call [`Node::stop`].
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    view: Arc<View>,
    bitswap: floe_bitswap::Handle,
    reach: Reach,
    private_allowed: bool,
    /// Empty once the node has ended, so that the file can be opened again.
    provides: Provides,
    provides_added: Arc<Notify>,
    /// Why the node ended, once it has.
    ended: watch::Receiver<Option<End>>,
    end: watch::Sender<Option<End>>,
    stop: CancellationToken,
}

/// Shared with the supervisor, who takes the table away when the node has ended.
type Provides = Arc<RwLock<Option<Arc<store::Store>>>>;

/// How the node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Stopped,
    Failed(String),
}

/// What tests replace of the outside world.
pub(crate) struct World {
    pub(crate) resolver: Arc<dyn Resolve>,
    pub(crate) memory: Memory,
    pub(crate) connections: Connections,
}

impl World {
    fn real(settings: &Settings) -> Self {
        let resolver: Arc<dyn Resolve> = match System::new() {
            Ok(system) => Arc::new(system),
            Err(reason) => {
                tracing::warn!(%reason, "names do not resolve: the system has no usable resolver configuration");
                Arc::new(Nowhere(reason))
            }
        };
        Self {
            resolver,
            memory: Memory::new(settings.memory_budget_bytes),
            connections: Connections::default(),
        }
    }
}

impl Node {
    /// Starts the node; returns once every listener is up. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error`]; nothing is left running.
    pub async fn start(settings: Settings, components: Components) -> Result<Self, Error> {
        let world = World::real(&settings);
        Self::start_in(settings, components, world).await
    }

    pub(crate) async fn start_in(
        settings: Settings,
        components: Components,
        world: World,
    ) -> Result<Self, Error> {
        let key = load_identity(&settings, &components).await?;
        let private_allowed = settings.private_addresses == PrivateAddresses::Allow;
        let policy = Arc::new(Policy::new(private_allowed, components.clock.clone()));
        let bootstrap = configured("bootstrap", &settings.bootstrap, &policy)?;
        let relays = configured("relays", &settings.relays, &policy)?;
        if relays.len() > MAX_RELAYS {
            limits::hit("relays");
            tracing::warn!("network.relays names {}: the first {MAX_RELAYS} are used", relays.len());
        }
        let routers = Routers::new(&settings.routers)?;
        let provided = Arc::new(Provided::new(random(&components)));
        let provides = open_provides(&settings.data_dir, provided.clone()).await?;
        let view =
            Arc::new(View::new(key.public().to_peer_id(), settings.announce.clone(), provided.clone()));

        let (bitswap_behaviour, bitswap) = floe_bitswap::new(
            floe_bitswap::Config {
                egress: settings.egress.map(EgressLimit::per_second),
                egress_per_peer: settings.egress_per_peer.map(EgressLimit::per_second),
            },
            components.blocks.clone(),
            components.clock.clone(),
            random(&components),
        );
        let (relay_transport, relay) = relay::client::new(view.peer);
        let transport =
            transport::build(&key, relay_transport, &policy, &world.resolver, settings.certificate.as_ref())?;
        let kad = (!settings.offline).then(|| {
            kad_store::Store::new(view.peer, provided, view.own_addresses.clone(), components.clock.clone())
        });
        let behaviour = Behaviour::new(Parts {
            key: &key,
            bitswap: bitswap_behaviour,
            relay,
            kad,
            refuse_bytes: world.memory.refuse_bytes(),
            connections: world.connections,
            private_allowed,
            entropy: &components.entropy,
            clock: &components.clock,
        });
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(IDLE_CONNECTION)
            .with_max_negotiating_inbound_streams(MAX_NEGOTIATING_STREAMS);

        let stop = CancellationToken::new();
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (announce, announcements) = mpsc::channel(MAX_ANNOUNCEMENTS);
        let (dht_ready, ready) = watch::channel(false);
        let mut task = Task {
            swarm: Swarm::new(transport, behaviour, view.peer, config),
            bitswap: bitswap.clone(),
            policy: policy.clone(),
            view: view.clone(),
            clock: components.clock.clone(),
            memory: world.memory,
            routers,
            relays: Relays::new(relays.into_iter().take(MAX_RELAYS)),
            private_allowed,
            commands: commands_in,
            announcements,
            dht_ready,
            stop: stop.clone(),
            state: State::default(),
        };
        task.listen(&settings.swarm).await?;
        task.join(&settings.announce, bootstrap);

        let provides_added = Arc::new(Notify::new());
        let worker = Worker {
            store: provides.clone(),
            clock: components.clock.clone(),
            announce,
            added: provides_added.clone(),
            ready,
            backlog: view.backlog.clone(),
            stop: stop.clone(),
        };
        let (end, ended) = watch::channel(None);
        let provides: Provides = Arc::new(RwLock::new(Some(provides)));
        let (swarm, worker) = (tokio::spawn(task.run()), tokio::spawn(worker.run()));
        tokio::spawn(supervise(swarm, worker, provides.clone(), stop.clone(), end.clone()));
        let reach = Reach {
            own: view.peer,
            commands,
            policy,
            local_requests_are_trusted: settings.private_addresses == PrivateAddresses::Auto
                && settings.api_is_local,
        };
        let inner =
            Inner { view, bitswap, reach, private_allowed, provides, provides_added, ended, end, stop };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Stops the node: sessions end, connections close, the results of announcements are written. Takes at most
    /// a few seconds. Idempotent; cancel safe in that stopping goes on.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let mut ended = self.inner.ended.clone();
        let all = ended.wait_for(Option::is_some);
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            error!("the node did not stop within {STOP_WITHIN:?}");
        }
    }

    /// Completes when the node has ended without having been told to, with the reason: the process should end.
    /// Stays pending for a node that was stopped. Cancel safe.
    pub async fn failed(&self) -> String {
        let mut ended = self.inner.ended.clone();
        match ended.wait_for(|end| matches!(end, Some(End::Failed(_)))).await.as_deref() {
            Ok(Some(End::Failed(reason))) => reason.clone(),
            _ => std::future::pending().await,
        }
    }

    async fn change_provides(
        &self,
        roots: &[Cid],
        change: impl FnOnce(&store::Store, &[Vec<u8>]) -> Result<(), redb::Error> + Send + 'static,
    ) -> Result<(), ReadError> {
        let hashes: Vec<Vec<u8>> = roots.iter().map(|root| root.hash().to_bytes()).collect();
        // Held by the blocking call itself: stopping waits for it even where this future is dropped.
        let guard = self.inner.provides.clone().read_owned().await;
        let Some(store) = guard.as_ref().cloned() else {
            return Err(ReadError("the node has stopped".into()));
        };
        let path = store.path().display().to_string();
        let changed = tokio::task::spawn_blocking(move || {
            let changed = change(&store, &hashes);
            drop((store, guard));
            changed
        });
        let failed = match changed.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(e)) => format!("{path}: {e}"),
            Err(e) => format!("{path}: {e}"),
        };
        // What a failed sync left on disk is unknown: nothing more is acknowledged, the process ends.
        self.inner.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(End::Failed(failed.clone()));
            }
            first
        });
        Err(ReadError(failed))
    }

    #[cfg(test)]
    pub(crate) async fn command(&self, command: Command) {
        self.inner.reach.commands.send(command).await.expect("the task runs");
    }
}

impl Task {
    /// Tells the swarm what the operator configured.
    fn join(&mut self, announce: &[Multiaddr], bootstrap: Vec<(PeerId, Multiaddr)>) {
        announce.iter().for_each(|address| self.swarm.add_external_address(address.clone()));
        if let Some(kad) = self.swarm.behaviour_mut().kad.as_mut() {
            for (peer, address) in bootstrap {
                kad.add_address(&peer, address);
            }
            // Without any peer there is nothing to do yet.
            let _ = kad.bootstrap();
        }
        self.on_external_changed();
    }
}

/// Waits for the tasks; says how the node ended. A panic in any behaviour ends the swarm's task.
async fn supervise(
    swarm: JoinHandle<()>,
    worker: JoinHandle<()>,
    provides: Provides,
    stop: CancellationToken,
    end: watch::Sender<Option<End>>,
) {
    // Whichever ends first takes the other with it.
    let last = |task: JoinHandle<()>| async {
        let result = task.await;
        stop.cancel();
        result
    };
    let (swarm_result, worker_result) = futures::future::join(last(swarm), last(worker)).await;
    provides.write().await.take();
    let panicked = |what: &str, result: Result<(), tokio::task::JoinError>| {
        result.err().map(|e| End::Failed(format!("the node's {what} ended: {e}")))
    };
    let how = panicked("swarm", swarm_result)
        .or_else(|| panicked("providing", worker_result))
        .unwrap_or(End::Stopped);
    end.send_if_modified(|end| {
        let first = end.is_none();
        if first {
            *end = Some(how);
        }
        first
    });
}

async fn load_identity(settings: &Settings, components: &Components) -> Result<Keypair, Error> {
    match &settings.identity {
        Identity::Keypair(key) => Ok(key.clone()),
        Identity::File(path) => {
            let (path, entropy) = (path.clone(), components.entropy.clone());
            let load = move || identity::load_or_create(&path, &*entropy);
            tokio::task::spawn_blocking(load).await.expect("reading a key does not panic")
        }
    }
}

async fn open_provides(dir: &Path, provided: Arc<Provided>) -> Result<Arc<store::Store>, Error> {
    let dir = dir.to_owned();
    let open = move || store::Store::open(&dir, provided).map(Arc::new);
    tokio::task::spawn_blocking(open).await.expect("opening a table does not panic")
}

/// Addresses of the configuration that must name a peer; they may be dialled wherever they are.
fn configured(
    key: &'static str,
    addresses: &[Multiaddr],
    policy: &Policy,
) -> Result<Vec<(PeerId, Multiaddr)>, Error> {
    let peer = |address: &Multiaddr| {
        let peer = peer_of(address).filter(|_| !address.iter().any(|part| part == Protocol::P2pCircuit));
        let reason = "does not end in the /p2p/ID of a peer that is reached directly";
        let peer = peer.ok_or_else(|| Error::Address { key, address: address.clone(), reason })?;
        policy.permit_operator(address);
        Ok((peer, address.clone()))
    };
    addresses.iter().map(peer).collect()
}

fn random<const N: usize>(components: &Components) -> [u8; N] {
    let mut bytes = [0; N];
    components.entropy.fill(&mut bytes);
    bytes
}

impl Exchange for Node {
    fn open(&self, hints: SessionHints) -> Box<dyn Session> {
        let session = self.inner.bitswap.session(hints.root);
        Box::new(NodeSession::new(session, &hints, self.inner.reach.clone()))
    }

    fn park(&self, root: &Cid) {
        self.inner.bitswap.park(root);
    }

    fn unpark(&self, root: &Cid) {
        self.inner.bitswap.unpark(root);
    }

    fn blocks_stored(&self, cids: &[Cid]) {
        self.inner.bitswap.notify_blocks(cids);
    }
}

impl Network for Node {
    fn provide<'a>(&'a self, roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move {
            self.change_provides(roots, |provides, hashes| provides.add(hashes)).await?;
            self.inner.provides_added.notify_one();
            Ok(())
        })
    }

    fn unprovide<'a>(&'a self, roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        Box::pin(async move { self.change_provides(roots, |provides, hashes| provides.remove(hashes)).await })
    }

    fn delegates(&self, local_request: bool) -> Vec<String> {
        let local = local_request && self.inner.reach.local_requests_are_trusted;
        self.inner.view.delegates(self.inner.private_allowed || local)
    }

    fn peer_id(&self) -> String {
        self.inner.view.peer.to_base58()
    }

    fn subscribe(&self, sink: EventSink) {
        *self.inner.view.sink.lock() = Some(Arc::new(sink));
    }

    fn status(&self) -> NetworkStatus {
        self.inner.view.status()
    }
}
