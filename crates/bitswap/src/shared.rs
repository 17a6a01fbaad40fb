//! The shell around the sans-IO cores: it locks them, calls them, and carries their actions out.
//!
//! Why locks and not a task with a channel: `room`, `want` and `poll_blocks` of a session are synchronous by
//! contract, and a block would otherwise cross three queues on its way from a connection to a session. The
//! locks are held for state changes alone, never for IO, hashing or a read; a waker is called after the lock
//! is released.
//!
//! ```text
//!   connection task ──wantlist──> Server ──job──> blocking thread ──answer──> connection task
//!         │  └──────presences───> Client <──want/room/poll── session (any task)
//!         └─payloads─> ingest task: hash ──blocks──> Client ──Ready──> wakes the session
//! ```
//!
//! On shutdown the behaviour is dropped, and every session ends with `ExchangeClosed`. Nothing here is durable.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use floe_core::ports::LocalBlocks;
use floe_core::{Block, Clock};
use futures::task::AtomicWaker;
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use parking_lot::Mutex;

use crate::behaviour::{Event, Misbehaviour};
use crate::client::{Action, Client, Taken};
use crate::handle::SessionId;
use crate::limits::{EVENTS, HASH_SLICE_BYTES, INGEST_BYTES, INGEST_TOTAL_BYTES, held_bytes, hit};
use crate::message::{Message, Payload};
use crate::server::{Done, Server, Ticket};
use crate::unfinished::{Held, Unfinished};

/// What the behaviour, the handlers and the handle share.
pub(crate) struct Shared {
    client: Mutex<Client>,
    server: Mutex<Server>,
    /// Connections of each peer; the first one that is not given up carries what we send.
    links: Mutex<HashMap<PeerId, Vec<Arc<Link>>>>,
    /// Frames that are being read.
    unfinished: Arc<Unfinished>,
    /// What waits to be hashed, of all links, as [`held_bytes`] counts it.
    ingest_bytes: AtomicUsize,
    sessions: Mutex<HashMap<SessionId, Arc<AtomicWaker>>>,
    events: Mutex<VecDeque<Event>>,
    blocks: Arc<dyn LocalBlocks>,
    clock: Arc<dyn Clock>,
    behaviour: AtomicWaker,
    ticking: AtomicBool,
    pending_reads: AtomicBool,
    closed: AtomicBool,
}

/// One connection.
pub(crate) struct Link {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    waker: AtomicWaker,
    active: AtomicBool,
    banned: AtomicBool,
    /// Nothing can be sent on it. It is still read.
    gave_up: AtomicBool,
    /// When the frame that is being written must be out, in milliseconds of the monotonic clock.
    deadline_ms: AtomicU64,
    /// What its frames hold that are being read, kept by [`Unfinished`].
    unfinished: AtomicUsize,
    ingest: Mutex<Ingest>,
}

/// Gives a job's place back where reading panics, so that a fault of the store does not end serving.
struct Slot<'a> {
    server: &'a Mutex<Server>,
    ticket: Option<Ticket>,
}

impl Slot<'_> {
    fn done(mut self) {
        self.ticket = None;
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.server.lock().abandon(ticket);
        }
    }
}

/// Payloads that wait to be hashed.
#[derive(Default)]
struct Ingest {
    queue: VecDeque<Payload>,
    bytes: usize,
    running: bool,
}

const NO_DEADLINE: u64 = u64::MAX;

fn payload_bytes(payloads: &[Payload]) -> usize {
    payloads.iter().map(|payload| held_bytes(&payload.data)).sum()
}

/// The connection of a peer that carries what we send.
fn sending(links: &[Arc<Link>]) -> Option<&Arc<Link>> {
    links.iter().find(|link| !link.gave_up.load(Ordering::Acquire))
}

impl Link {
    pub(crate) fn new(peer: PeerId, connection: ConnectionId) -> Self {
        Self {
            peer,
            connection,
            waker: AtomicWaker::new(),
            active: AtomicBool::new(false),
            banned: AtomicBool::new(false),
            gave_up: AtomicBool::new(false),
            deadline_ms: AtomicU64::new(NO_DEADLINE),
            unfinished: AtomicUsize::new(0),
            ingest: Mutex::default(),
        }
    }

    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.waker.register(waker);
    }

    /// Whether this is the connection that carries what we send.
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    pub(crate) fn is_banned(&self) -> bool {
        self.banned.load(Ordering::Acquire)
    }

    pub(crate) fn set_deadline(&self, at: Option<Duration>) {
        let ms = at.map_or(NO_DEADLINE, |at| u64::try_from(at.as_millis()).unwrap_or(NO_DEADLINE));
        self.deadline_ms.store(ms, Ordering::Release);
    }

    pub(crate) fn is_overdue(&self, now: Duration) -> bool {
        now.as_millis() > u128::from(self.deadline_ms.load(Ordering::Acquire))
    }

    fn has_deadline(&self) -> bool {
        self.deadline_ms.load(Ordering::Acquire) != NO_DEADLINE
    }

    pub(crate) fn unfinished(&self) -> usize {
        self.unfinished.load(Ordering::Relaxed)
    }

    pub(crate) fn add_unfinished(&self, bytes: isize) {
        self.unfinished.fetch_add(bytes.cast_unsigned(), Ordering::Relaxed);
    }

    /// Whether more may be read of this one: hashing keeps up.
    fn may_read(&self) -> bool {
        self.ingest.lock().bytes < INGEST_BYTES
    }

    /// The next payloads to hash; empty ends the task that asks.
    fn next_batch(&self) -> Vec<Payload> {
        let mut ingest = self.ingest.lock();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while bytes < HASH_SLICE_BYTES
            && let Some(payload) = ingest.queue.pop_front()
        {
            bytes += held_bytes(&payload.data);
            batch.push(payload);
        }
        ingest.running = !batch.is_empty();
        let was_full = ingest.bytes >= INGEST_BYTES;
        ingest.bytes -= bytes;
        if was_full && ingest.bytes < INGEST_BYTES {
            self.waker.wake();
        }
        batch
    }
}

impl Shared {
    pub(crate) fn new(
        client: Client,
        server: Server,
        blocks: Arc<dyn LocalBlocks>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            client: Mutex::new(client),
            server: Mutex::new(server),
            links: Mutex::default(),
            unfinished: Arc::default(),
            ingest_bytes: AtomicUsize::new(0),
            sessions: Mutex::default(),
            events: Mutex::default(),
            blocks,
            clock,
            behaviour: AtomicWaker::new(),
            ticking: AtomicBool::new(false),
            pending_reads: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    // ---- the cores ------------------------------------------------------------------------------------

    /// Calls the client and carries out what follows.
    pub(crate) fn client<R>(&self, call: impl FnOnce(&mut Client, Duration) -> R) -> R {
        let now = self.now();
        let (result, actions, busy) = {
            let mut client = self.client.lock();
            let result = call(&mut client, now);
            (result, client.take_actions(), client.is_busy())
        };
        if !actions.is_empty() {
            self.carry_out(actions);
        }
        if busy {
            self.ensure_ticking();
        }
        result
    }

    fn carry_out(&self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Wake(peer) => self.wake_peer(&peer),
                Action::Ready(session) => {
                    if let Some(waker) = self.sessions.lock().get(&session) {
                        waker.wake();
                    }
                }
                Action::Event(event) => self.emit(*event),
            }
        }
    }

    fn emit(&self, event: Event) {
        if let Event::Misbehaved { peer, .. } = &event {
            for link in self.links.lock().get(peer).into_iter().flatten() {
                link.banned.store(true, Ordering::Release);
                link.waker.wake();
            }
        }
        let mut events = self.events.lock();
        if events.len() >= EVENTS {
            return hit("bitswap_events");
        }
        events.push_back(event);
        drop(events);
        self.behaviour.wake();
    }

    /// Calls the server, and starts what reads it now wants.
    pub(crate) fn server<R>(self: &Arc<Self>, call: impl FnOnce(&mut Server, Duration) -> R) -> R {
        let now = self.now();
        let mut server = self.server.lock();
        let result = call(&mut server, now);
        while let Some(job) = server.next_job(now) {
            let shared = self.clone();
            tokio::task::spawn_blocking(move || {
                let slot = Slot { server: &shared.server, ticket: Some(job.ticket()) };
                let done = job.run(&*shared.blocks);
                slot.done();
                shared.finish(done);
            });
        }
        let throttled = server.is_throttled();
        drop(server);
        if throttled {
            self.ensure_ticking();
        }
        result
    }

    fn finish(self: &Arc<Self>, done: Done) {
        let peer = *done.peer();
        if self.server(|server, now| server.finish(done, now)) {
            self.wake_peer(&peer);
        }
    }

    /// Blocks are here now. Returns whether somebody waits for one, so that reads are to be started; that is
    /// left to the behaviour, because this may be called outside the runtime.
    pub(crate) fn notify(&self, cids: &[floe_core::Cid]) -> bool {
        let now = self.now();
        let found = self.server.lock().notify(cids, now);
        if found {
            self.pending_reads.store(true, Ordering::Release);
        }
        found
    }

    /// Starts the reads that [`Shared::notify`] left.
    pub(crate) fn start_pending_reads(self: &Arc<Self>) {
        if self.pending_reads.swap(false, Ordering::AcqRel) {
            self.server(|_, _| ());
        }
    }

    /// Reads of the server's state that start nothing.
    pub(crate) fn peek_server<R>(&self, look: impl FnOnce(&Server) -> R) -> R {
        look(&self.server.lock())
    }

    /// Reads of the client's state that change nothing.
    pub(crate) fn peek_client<R>(&self, look: impl FnOnce(&Client) -> R) -> R {
        look(&self.client.lock())
    }

    // ---- connections ----------------------------------------------------------------------------------

    fn wake_peer(&self, peer: &PeerId) {
        if let Some(link) = self.links.lock().get(peer).and_then(|links| sending(links)) {
            link.waker.wake();
        }
    }

    pub(crate) fn connected(self: &Arc<Self>, link: Arc<Link>) {
        let peer = link.peer;
        {
            let mut links = self.links.lock();
            let of_peer = links.entry(peer).or_default();
            link.active.store(sending(of_peer).is_none(), Ordering::Release);
            link.banned.store(self.peek_client(|client| client.is_banned(&peer)), Ordering::Release);
            of_peer.push(link);
        }
        self.server(|server, _| server.connected(peer));
        self.client(|client, now| client.connected(peer, now));
    }

    /// A connection closed. Harmless for one that has before.
    pub(crate) fn disconnected(self: &Arc<Self>, peer: &PeerId, connection: ConnectionId) {
        self.change_links(peer, |links| links.retain(|link| link.connection != connection));
    }

    /// A connection turned out to carry nothing that we send. It stays one that is read, until it closes.
    pub(crate) fn gave_up(self: &Arc<Self>, peer: &PeerId, connection: ConnectionId) {
        self.change_links(peer, |links| {
            for link in links.iter().filter(|link| link.connection == connection) {
                link.gave_up.store(true, Ordering::Release);
                link.active.store(false, Ordering::Release);
            }
        });
    }

    /// What is sent goes over the peer's next connection where that of before is none any more. The behaviour alone
    /// calls this, as it does [`Shared::connected`]: a peer that is forgotten here is not connected meanwhile.
    fn change_links(self: &Arc<Self>, peer: &PeerId, change: impl FnOnce(&mut Vec<Arc<Link>>)) {
        let (before, now) = {
            let mut links = self.links.lock();
            let Some(of_peer) = links.get_mut(peer) else { return };
            let before = sending(of_peer).map(|link| link.connection);
            change(of_peer);
            let now = sending(of_peer).cloned();
            if of_peer.is_empty() {
                links.remove(peer);
            }
            (before, now)
        };
        match now {
            None => self.forget(peer),
            Some(link) if before != Some(link.connection) => {
                link.active.store(true, Ordering::Release);
                self.client(|client, _| client.start_over(peer));
                // What the closed one was writing is not outstanding any more, which may have made room for a read.
                self.server(|_, _| ());
                link.waker.wake();
            }
            Some(_) => {}
        }
    }

    /// The peer is of no use any more: gone, or without bitswap.
    fn forget(self: &Arc<Self>, peer: &PeerId) {
        self.server(|server, now| server.disconnected(peer, now));
        self.client(|client, now| client.disconnected(peer, now));
    }

    /// The peer is dropped at once.
    pub(crate) fn misbehaved(&self, peer: &PeerId, what: Misbehaviour) {
        self.client(|client, now| client.drop_peer(peer, what, now));
    }

    /// See [`Server::written`]. Starts no read: this may be called outside the runtime.
    pub(crate) fn written(&self, peer: &PeerId, bytes: usize) {
        self.server.lock().written(peer, bytes);
    }

    /// See [`Server::give_back`]. Starts no read either.
    pub(crate) fn give_back(&self, peer: &PeerId, answer: Message, written: usize) {
        let now = self.now();
        self.server.lock().give_back(peer, answer, written, now);
    }

    // ---- blocks that come -----------------------------------------------------------------------------

    /// A frame began on a stream of `link`.
    pub(crate) fn hold(&self, link: &Arc<Link>, bytes: usize, announced: usize) -> Held {
        let held = self.unfinished.hold(link, bytes, announced, self.now());
        self.ensure_ticking();
        held
    }

    /// What frames that are being read hold.
    pub(crate) fn unfinished_bytes(&self) -> usize {
        self.unfinished.bytes()
    }

    /// Whether more may be read of `link`: hashing keeps up, with it and with all.
    pub(crate) fn may_read(&self, link: &Link) -> bool {
        self.ingest_bytes.load(Ordering::Acquire) < INGEST_TOTAL_BYTES && link.may_read()
    }

    /// Takes payloads of a connection to be hashed on a task of their own.
    pub(crate) fn ingest(self: &Arc<Self>, link: &Arc<Link>, payloads: Vec<Payload>) {
        let bytes = payload_bytes(&payloads);
        if self.ingest_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes >= INGEST_TOTAL_BYTES {
            hit("bitswap_ingest_total_bytes");
        }
        let mut ingest = link.ingest.lock();
        ingest.bytes += bytes;
        if ingest.bytes >= INGEST_BYTES {
            hit("bitswap_ingest_bytes");
        }
        ingest.queue.extend(payloads);
        if !std::mem::replace(&mut ingest.running, true) {
            tokio::spawn(self.clone().hash(link.clone()));
        }
    }

    async fn hash(self: Arc<Self>, link: Arc<Link>) {
        loop {
            let batch = link.next_batch();
            if batch.is_empty() {
                return;
            }
            self.taken(payload_bytes(&batch));
            if !link.is_banned() {
                self.deliver(&link.peer, batch);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Payloads left the queues.
    fn taken(&self, bytes: usize) {
        let before = self.ingest_bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before >= INGEST_TOTAL_BYTES && before - bytes < INGEST_TOTAL_BYTES {
            self.links.lock().values().flatten().for_each(|link| link.waker.wake());
        }
    }

    fn deliver(&self, peer: &PeerId, batch: Vec<Payload>) {
        let count = batch.len();
        let blocks: Vec<Block> = batch.into_iter().filter_map(|payload| payload.hashed().ok()).collect();
        let refused = count - blocks.len();
        let taken = self.client(|client, now| {
            let taken = client.on_blocks(peer, blocks, now);
            (0..refused).for_each(|_| client.strike(peer, Misbehaviour::UnwantedBlocks, now));
            Taken { unwanted: taken.unwanted + refused, ..taken }
        });
        for (outcome, n) in
            [("useful", taken.useful), ("duplicate", taken.duplicate), ("unwanted", taken.unwanted)]
        {
            if n > 0 {
                metrics::counter!("floe_bitswap_blocks_received_total", "outcome" => outcome)
                    .increment(n as u64);
            }
        }
    }

    // ---- sessions -------------------------------------------------------------------------------------

    pub(crate) fn add_session(&self, id: SessionId, waker: Arc<AtomicWaker>) {
        self.sessions.lock().insert(id, waker);
    }

    pub(crate) fn remove_session(&self, id: SessionId) {
        self.sessions.lock().remove(&id);
        self.client(|client, _| client.close(id));
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.sessions.lock().values().for_each(|waker| waker.wake());
    }

    // ---- the behaviour's part -------------------------------------------------------------------------

    pub(crate) fn register_behaviour(&self, waker: &std::task::Waker) {
        self.behaviour.register(waker);
    }

    /// Makes sure that the behaviour's timer runs.
    pub(crate) fn ensure_ticking(&self) {
        if !self.ticking.load(Ordering::Acquire) {
            self.behaviour.wake();
        }
    }

    pub(crate) fn wake_behaviour(&self) {
        self.behaviour.wake();
    }

    pub(crate) fn set_ticking(&self, ticking: bool) {
        self.ticking.store(ticking, Ordering::Release);
    }

    pub(crate) fn next_event(&self) -> Option<Event> {
        self.events.lock().pop_front()
    }

    /// How soon timers are to be looked at, `None` where there is nothing to time.
    pub(crate) fn next_tick(&self) -> Option<Duration> {
        if self.peek_server(Server::is_throttled) {
            return Some(crate::limits::THROTTLED_TICK);
        }
        let busy = self.peek_client(Client::is_busy)
            || self.unfinished_bytes() > 0
            || self.links.lock().values().flatten().any(|link| link.has_deadline());
        busy.then_some(crate::limits::TICK)
    }

    /// Looks at all timers.
    pub(crate) fn tick(self: &Arc<Self>) {
        self.client(|client, now| client.tick(now));
        self.server(|_, _| ());
        let now = self.now();
        self.unfinished.tick(now, |link| self.may_read(link));
        for link in self.links.lock().values().flatten().filter(|link| link.is_overdue(now)) {
            link.waker.wake();
        }
    }
}

#[cfg(test)]
mod tests;
