//! The node as others hold it.

use std::path::Path;
use std::sync::Arc;

use floe_bitswap::EgressLimit;
use floe_core::clock::BoxFuture;
use floe_core::ports::{EventSink, Exchange, Network, NetworkStatus, ReadError, Session, SessionHints};
use floe_core::{Cid, Clock};
use libp2p::identity::Keypair;
use libp2p::swarm::{Stream, StreamProtocol, Swarm};
use libp2p::{Multiaddr, PeerId, relay};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::behaviour::{Behaviour, Connections, Parts};
use crate::deadline::within;
use crate::dial::policy::Policy;
use crate::dial::resolve::{Nowhere, Resolve, System};
use crate::dial::target::direct_peer;
use crate::kad_store;
use crate::limits::{
    self, COMMANDS, IDLE_CONNECTION, MAX_ANNOUNCEMENTS, MAX_NEGOTIATING_STREAMS, MAX_RELAYS, OPEN_STREAM,
    STOP_WITHIN,
};
use crate::memory::Memory;
use crate::provide::file::{self, OpenFile};
use crate::provide::worker::{Announce, Worker};
use crate::provide::{Provided, store};
use crate::routers::Routers;
use crate::session::{NodeSession, Reach};
use crate::streams::{Request, StreamError};
use crate::task::{Command, Relays, State, Task};
use crate::view::View;
use crate::web::WebFilter;
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
    clock: Arc<dyn Clock>,
    /// Closed once the node has ended, so that the file can be opened again.
    provides: Arc<store::Store>,
    provides_added: Arc<Notify>,
    resolver: Arc<dyn Resolve>,
    /// Why the node ended, once it has.
    ended: watch::Receiver<Option<End>>,
    end: watch::Sender<Option<End>>,
    stop: CancellationToken,
}

/// How the node ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Stopped,
    /// What is on disk is unknown.
    SyncFailed(String),
    TaskEnded(String),
}

/// The first end is the one that counts.
fn set_end(end: &watch::Sender<Option<End>>, how: End) {
    end.send_if_modified(|end| {
        let first = end.is_none();
        if first {
            *end = Some(how);
        }
        first
    });
}

/// What tests replace of the outside world.
pub(crate) struct World {
    pub(crate) resolver: Arc<dyn Resolve>,
    pub(crate) memory: Memory,
    pub(crate) connections: Connections,
    pub(crate) open_provides: OpenFile,
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
            open_provides: file::on_disk(),
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
        let plan = Plan::new(settings, components, world.open_provides.clone()).await?;
        let bootstrap = configured("bootstrap", &plan.settings.bootstrap, &plan.policy)?;
        let resolver = world.resolver.clone();
        let (mut task, ends) = plan.task(world)?;
        task.listen(&plan.settings.swarm).await?;
        task.join(&plan.settings.announce, bootstrap);
        Ok(plan.run(task, ends, resolver))
    }

    /// Stops the node: sessions end, connections close, the results of announcements are written. Takes at most
    /// a few seconds. Idempotent; cancel safe in that stopping goes on.
    pub async fn stop(&self) {
        self.inner.stop.cancel();
        let mut ended = self.inner.ended.clone();
        let all = ended.wait_for(Option::is_some);
        if within(&*self.inner.clock, STOP_WITHIN, all).await.is_none() {
            error!("the node did not stop within {STOP_WITHIN:?}");
        }
    }

    /// Completes when the node has ended without having been told to, with [`Error::SyncFailed`] or
    /// [`Error::TaskEnded`]: the process should end. Stays pending for a node that was stopped. Cancel safe.
    pub async fn failed(&self) -> Error {
        let mut ended = self.inner.ended.clone();
        match ended.wait_for(|end| end.as_ref().is_some_and(|end| *end != End::Stopped)).await.as_deref() {
            Ok(Some(End::SyncFailed(reason))) => Error::SyncFailed(reason.clone()),
            Ok(Some(End::TaskEnded(reason))) => Error::TaskEnded(reason.clone()),
            _ => std::future::pending().await,
        }
    }

    async fn change_provides(
        &self,
        roots: &[Cid],
        change: impl FnOnce(&store::Store, &[Vec<u8>]) -> Result<(), store::Failed> + Send + 'static,
    ) -> Result<(), ReadError> {
        let hashes: Vec<Vec<u8>> = roots.iter().map(|root| root.hash().to_bytes()).collect();
        // Stopping waits for the call also where this future is dropped.
        let store = self.inner.provides.clone();
        let changed = tokio::task::spawn_blocking(move || change(&store, &hashes)).await;
        let panicked = |e| Err(store::Failed::panicked(self.inner.provides.path().to_owned(), &e));
        let Err(failed) = changed.unwrap_or_else(panicked) else { return Ok(()) };
        // Nothing more is acknowledged: the process ends. Anything else, a full disk above all, may pass.
        if matches!(failed, store::Failed::Sync { .. }) {
            set_end(&self.inner.end, End::SyncFailed(failed.to_string()));
        }
        Err(ReadError(failed.to_string()))
    }

    /// A stream to `peer` that speaks `protocol`. Where there is no connection, the peer is dialled at `addresses`, each
    /// with whether it is the operator's (it may then be a private one; what others say passes the dial filter), and
    /// where that leads nowhere the DHT is asked for the peer. Takes a minute at most. Cancel safe.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn open_stream(
        &self,
        peer: PeerId,
        addresses: Vec<(Multiaddr, bool)>,
        protocol: StreamProtocol,
    ) -> Result<Stream, StreamError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { peer, protocol, reply };
        let opened = async {
            let told = self.inner.reach.commands.send(Command::Open { request, addresses }).await;
            told.map_err(|_| StreamError::Ended(peer))?;
            answer.await.unwrap_or(Err(StreamError::Ended(peer)))
        };
        let opened = within(&*self.inner.clock, OPEN_STREAM, opened).await;
        opened.unwrap_or(Err(StreamError::Timeout(peer)))
    }

    /// Judges addresses for those who connect over HTTP, as the dial filter judges those of peers.
    pub fn web_filter(&self) -> WebFilter {
        WebFilter::new(self.inner.reach.policy.clone(), self.inner.resolver.clone())
    }

    #[cfg(test)]
    pub(crate) async fn command(&self, command: Command) {
        self.inner.reach.commands.send(command).await.expect("the task runs");
    }
}

/// A node that does not run yet: what its parts are made from, and what they share.
struct Plan {
    settings: Settings,
    components: Components,
    key: Keypair,
    private_allowed: bool,
    policy: Arc<Policy>,
    provided: Arc<Provided>,
    provides: Arc<store::Store>,
    view: Arc<View>,
    stop: CancellationToken,
}

/// What others hold of the swarm's task.
struct Ends {
    bitswap: floe_bitswap::Handle,
    commands: mpsc::Sender<Command>,
    announce: mpsc::Sender<Announce>,
    dht_ready: watch::Receiver<bool>,
}

impl Plan {
    async fn new(settings: Settings, components: Components, open_file: OpenFile) -> Result<Self, Error> {
        let key = load_identity(&settings, &components).await?;
        let private_allowed = settings.private_addresses == PrivateAddresses::Allow;
        let policy = Arc::new(Policy::new(private_allowed, components.clock.clone()));
        let provided = Arc::new(Provided::new(random(&components)));
        let provides = open_provides(&settings.data_dir, open_file, provided.clone()).await?;
        let peer = key.public().to_peer_id();
        let view = Arc::new(View::new(peer, settings.announce.clone(), provided.clone()));
        let stop = CancellationToken::new();
        Ok(Self { settings, components, key, private_allowed, policy, provided, provides, view, stop })
    }

    /// The task that owns the swarm, and what the others hold of it.
    fn task(&self, world: World) -> Result<(Task, Ends), Error> {
        let relays = self.relays()?;
        let routers = Routers::new(&self.settings.routers)?;
        let (swarm, bitswap) = self.swarm(&world)?;
        let (commands, commands_in) = mpsc::channel(COMMANDS);
        let (announce, announcements) = mpsc::channel(MAX_ANNOUNCEMENTS);
        let (ready, dht_ready) = watch::channel(false);
        let task = Task {
            swarm,
            bitswap: bitswap.clone(),
            policy: self.policy.clone(),
            view: self.view.clone(),
            clock: self.components.clock.clone(),
            memory: world.memory,
            routers,
            relays,
            private_allowed: self.private_allowed,
            commands: commands_in,
            announcements,
            dht_ready: ready,
            stop: self.stop.clone(),
            state: State::default(),
        };
        Ok((task, Ends { bitswap, commands, announce, dht_ready }))
    }

    fn local_requests_are_trusted(&self) -> bool {
        self.settings.private_addresses == PrivateAddresses::Auto && self.settings.api_is_local
    }

    fn relays(&self) -> Result<Relays, Error> {
        let relays = configured("relays", &self.settings.relays, &self.policy)?;
        if relays.len() > MAX_RELAYS {
            limits::hit("relays");
            tracing::warn!("network.relays names {}: the first {MAX_RELAYS} are used", relays.len());
        }
        Ok(Relays::new(relays.into_iter().take(MAX_RELAYS)))
    }

    fn swarm(&self, world: &World) -> Result<(Swarm<Behaviour>, floe_bitswap::Handle), Error> {
        let (bitswap_behaviour, bitswap) = self.bitswap();
        let (relay_transport, relay) = relay::client::new(self.view.peer);
        let certificate = self.settings.certificate.as_ref();
        let transport = transport::build(
            &self.key,
            relay_transport,
            &self.policy,
            &world.resolver,
            &self.components.clock,
            certificate,
        )?;
        let behaviour = Behaviour::new(Parts {
            key: &self.key,
            bitswap: bitswap_behaviour,
            relay,
            kad: (!self.settings.offline).then(|| self.kad_store()),
            refuse_bytes: world.memory.refuse_bytes(),
            connections: world.connections,
            private_allowed: self.private_allowed,
            entropy: &self.components.entropy,
            clock: &self.components.clock,
        });
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(IDLE_CONNECTION)
            .with_max_negotiating_inbound_streams(MAX_NEGOTIATING_STREAMS);
        Ok((Swarm::new(transport, behaviour, self.view.peer, config), bitswap))
    }

    fn bitswap(&self) -> (floe_bitswap::Behaviour, floe_bitswap::Handle) {
        let config = floe_bitswap::Config {
            egress: self.settings.egress.map(EgressLimit::per_second),
            egress_per_peer: self.settings.egress_per_peer.map(EgressLimit::per_second),
        };
        let Components { blocks, clock, .. } = self.components.clone();
        floe_bitswap::new(config, blocks, clock, random(&self.components))
    }

    fn kad_store(&self) -> kad_store::Store {
        let (provided, addresses) = (self.provided.clone(), self.view.own_addresses.clone());
        kad_store::Store::new(self.view.peer, provided, addresses, self.components.clock.clone())
    }

    /// Lets the tasks run.
    fn run(self, task: Task, ends: Ends, resolver: Arc<dyn Resolve>) -> Node {
        let provides_added = Arc::new(Notify::new());
        let worker = Worker {
            store: self.provides.clone(),
            clock: self.components.clock.clone(),
            announce: ends.announce,
            added: provides_added.clone(),
            ready: ends.dht_ready,
            backlog: self.view.backlog.clone(),
            stop: self.stop.clone(),
        };
        let (end, ended) = watch::channel(None);
        let local_requests_are_trusted = self.local_requests_are_trusted();
        let provides = self.provides;
        let (swarm, worker) = (tokio::spawn(task.run()), tokio::spawn(worker.run()));
        tokio::spawn(supervise(swarm, worker, provides.clone(), self.stop.clone(), end.clone()));
        let reach = Reach {
            own: self.view.peer,
            commands: ends.commands,
            policy: self.policy,
            local_requests_are_trusted,
        };
        let inner = Inner {
            view: self.view,
            bitswap: ends.bitswap,
            reach,
            private_allowed: self.private_allowed,
            clock: self.components.clock,
            provides,
            provides_added,
            resolver,
            ended,
            end,
            stop: self.stop,
        };
        Node { inner: Arc::new(inner) }
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
    worker: JoinHandle<Result<(), store::Failed>>,
    provides: Arc<store::Store>,
    stop: CancellationToken,
    end: watch::Sender<Option<End>>,
) {
    let (swarm, worker) = futures::future::join(ended(swarm, &stop), ended(worker, &stop)).await;
    if tokio::task::spawn_blocking(move || provides.close()).await.is_err() {
        error!("the table of announced roots panicked while it was closed");
    }
    let panicked = |what: &str, e: JoinError| End::TaskEnded(format!("the node's {what} ended: {e}"));
    let how = match (swarm, worker) {
        (_, Ok(Err(failed))) => End::SyncFailed(failed.to_string()),
        (Err(e), _) => panicked("swarm", e),
        (_, Err(e)) => panicked("providing", e),
        _ => End::Stopped,
    };
    set_end(&end, how);
}

/// Waits for a task; whichever ends first takes the others with it.
async fn ended<T>(task: JoinHandle<T>, stop: &CancellationToken) -> Result<T, JoinError> {
    let result = task.await;
    stop.cancel();
    result
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

async fn open_provides(
    dir: &Path,
    open_file: OpenFile,
    provided: Arc<Provided>,
) -> Result<Arc<store::Store>, Error> {
    let dir = dir.to_owned();
    let open = move || store::Store::open(&dir, open_file, provided).map(Arc::new);
    tokio::task::spawn_blocking(open).await.expect("the panics of redb are caught where it is called")
}

/// Addresses of the configuration that must name a peer; they may be dialled wherever they are.
fn configured(
    key: &'static str,
    addresses: &[Multiaddr],
    policy: &Policy,
) -> Result<Vec<(PeerId, Multiaddr)>, Error> {
    let peer = |address: &Multiaddr| {
        let peer = direct_peer(address);
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
