//! The limits that the shell itself keeps: payloads that wait to be hashed, events, the time of a frame; and the
//! connections of a peer.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_core::{Block, ManualClock, Timestamp};
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;

use super::{Link, Shared};
use crate::behaviour::{Event, Misbehaviour};
use crate::client::Client;
use crate::config::Config;
use crate::limits::{
    BLOCK_OVERHEAD_BYTES, EVENTS, HASH_SLICE_BYTES, INGEST_BYTES, INGEST_TOTAL_BYTES, OUTSTANDING_PER_PEER,
    TICK,
};
use crate::message::{Payload, WantEntry, WantKind};
use crate::server::Server;
use crate::testing::{Store, block, large};

fn shared() -> Arc<Shared> {
    over(Store::default())
}

fn over(store: Store) -> Arc<Shared> {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let server = Server::new(&Config::default(), [1; 32]);
    Arc::new(Shared::new(Client::default(), server, Arc::new(store), clock))
}

fn link() -> Arc<Link> {
    Arc::new(Link::new(PeerId::random(), ConnectionId::new_unchecked(1)))
}

/// So many connections of one peer.
fn links(shared: &Arc<Shared>, count: usize) -> Vec<Arc<Link>> {
    let peer = PeerId::random();
    let links = (0..count).map(|n| Arc::new(Link::new(peer, ConnectionId::new_unchecked(n))));
    links.inspect(|link| shared.connected(link.clone())).collect()
}

/// A payload that counts for so many bytes.
fn payload(bytes: usize) -> Payload {
    Payload::new(block(0).cid(), Bytes::from(vec![0; bytes - BLOCK_OVERHEAD_BYTES]))
}

/// A link with what counts for so many bytes waiting; nothing is hashed before the test yields.
fn waiting(shared: &Arc<Shared>, bytes: usize) -> Arc<Link> {
    let link = link();
    shared.ingest(&link, vec![payload(bytes)]);
    link
}

#[tokio::test]
async fn t07_streams_are_not_read_while_too_much_waits_to_be_hashed() {
    let shared = shared();
    for (bytes, may) in [(INGEST_BYTES - 1, true), (INGEST_BYTES, false), (INGEST_BYTES + 1, false)] {
        assert_eq!(waiting(&shared, bytes).may_read(), may, "{bytes}");
    }
}

/// The story: payloads of no bytes counted for nothing, so that any number of them could wait.
#[tokio::test]
async fn t07_empty_payloads_count() {
    let (shared, most) = (shared(), INGEST_BYTES / BLOCK_OVERHEAD_BYTES);
    for (count, may) in [(most - 1, true), (most, false), (most + 1, false)] {
        let link = link();
        shared.ingest(&link, vec![payload(BLOCK_OVERHEAD_BYTES); count]);
        assert_eq!(link.may_read(), may, "{count}");
    }
    let link = link();
    link.ingest.lock().queue.extend(vec![payload(BLOCK_OVERHEAD_BYTES); most]);
    link.ingest.lock().bytes = INGEST_BYTES;
    assert_eq!(link.next_batch().len(), HASH_SLICE_BYTES / BLOCK_OVERHEAD_BYTES);
}

#[tokio::test]
async fn reading_goes_on_when_hashing_has_caught_up() {
    let shared = shared();
    let link = waiting(&shared, INGEST_BYTES);
    let woken = Arc::new(Woken::default());
    link.register(&futures::task::waker(woken.clone()));
    assert!(!link.may_read());
    while !link.may_read() {
        tokio::task::yield_now().await;
    }
    assert!(woken.0.load(std::sync::atomic::Ordering::Acquire), "the connection's task is told");
}

/// The story: the limit was each connection's own, so that a hundred of them could have 6 GiB wait.
#[tokio::test]
async fn t07_no_stream_is_read_while_too_much_of_all_waits_to_be_hashed() {
    const LITTLE: usize = 1_000;
    for (bytes, may) in [(LITTLE - 1, true), (LITTLE, false), (LITTLE + 1, false)] {
        let shared = shared();
        let _others = [waiting(&shared, INGEST_BYTES), waiting(&shared, INGEST_BYTES - LITTLE)];
        let link = waiting(&shared, bytes);
        shared.links.lock().entry(link.peer).or_default().push(link.clone());
        assert_eq!(shared.may_read(&link), may, "{bytes}");
        let woken = Arc::new(Woken::default());
        link.register(&futures::task::waker(woken.clone()));
        while shared.ingest_bytes.load(std::sync::atomic::Ordering::Acquire) >= INGEST_BYTES {
            tokio::task::yield_now().await;
        }
        assert!(shared.may_read(&link));
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::Acquire), !may, "who was stopped is told");
    }
}

#[derive(Default)]
struct Woken(std::sync::atomic::AtomicBool);

impl futures::task::ArcWake for Woken {
    fn wake_by_ref(woken: &Arc<Self>) {
        woken.0.store(true, std::sync::atomic::Ordering::Release);
    }
}

#[test]
fn a_batch_to_hash_is_bounded() {
    for (first, count) in [(HASH_SLICE_BYTES - 1, 2), (HASH_SLICE_BYTES, 1), (HASH_SLICE_BYTES + 1, 1)] {
        let link = link();
        let small = BLOCK_OVERHEAD_BYTES;
        link.ingest.lock().queue.extend([payload(first), payload(small), payload(small)]);
        link.ingest.lock().bytes = first + 2 * small;
        assert_eq!(link.next_batch().len(), count, "{first}");
    }
}

#[test]
fn events_that_nobody_takes_are_bounded() {
    let shared = shared();
    let event = || Event::Misbehaved { peer: PeerId::random(), what: Misbehaviour::Malformed };
    for sent in 1..=EVENTS + 1 {
        shared.emit(event());
        assert_eq!(shared.events.lock().len(), sent.min(EVENTS));
    }
    assert!(shared.next_event().is_some());
    shared.emit(event());
    assert_eq!(shared.events.lock().len(), EVENTS, "there is room again");
}

#[test]
fn a_frame_is_late_after_its_deadline() {
    let (link, deadline, step) = (link(), Duration::from_secs(10), Duration::from_millis(1));
    assert!(!link.is_overdue(Duration::from_secs(1 << 40)), "nothing is being written");
    link.set_deadline(Some(deadline));
    for (now, late) in [(deadline - step, false), (deadline, false), (deadline + step, true)] {
        assert_eq!(link.is_overdue(now), late, "{now:?}");
    }
}

#[test]
fn timers_run_while_a_frame_has_a_deadline() {
    let (shared, link) = (shared(), link());
    shared.links.lock().insert(link.peer, vec![link.clone()]);
    assert_eq!(shared.next_tick(), None);
    link.set_deadline(Some(Duration::from_secs(1)));
    assert_eq!(shared.next_tick(), Some(TICK));
    link.set_deadline(None);
    assert_eq!(shared.next_tick(), None);
}

/// The story: a connection that was given up was forgotten at once, and still read. When hashing had caught up nobody woke
/// it, and when the peer was dropped its messages were still taken.
#[tokio::test]
async fn a_connection_that_is_given_up_stays_one_of_the_peer() {
    let shared = shared();
    let links = links(&shared, 2);
    let peer = links[0].peer;
    let known = || (shared.peek_client(|client| client.counts().0), shared.peek_server(Server::peers));
    let active = || links.iter().map(|link| link.is_active()).collect::<Vec<_>>();
    assert_eq!(active(), [true, false]);
    shared.gave_up(&peer, links[0].connection);
    assert_eq!((active(), known()), (vec![false, true], (1, 1)));

    let woken = Arc::new(Woken::default());
    links[0].register(&futures::task::waker(woken.clone()));
    shared.ingest_bytes.store(INGEST_TOTAL_BYTES, std::sync::atomic::Ordering::Release);
    shared.taken(1);
    assert!(woken.0.load(std::sync::atomic::Ordering::Acquire), "there is room to read again");
    shared.emit(Event::Misbehaved { peer, what: Misbehaviour::Malformed });
    assert!(links[0].is_banned(), "nothing more is taken from it");

    shared.gave_up(&peer, links[1].connection);
    assert_eq!((active(), known()), (vec![false, false], (0, 0)), "no connection is of use");
    let third = Arc::new(Link::new(peer, ConnectionId::new_unchecked(2)));
    shared.connected(third.clone());
    shared.disconnected(&peer, links[0].connection);
    shared.disconnected(&peer, links[1].connection);
    assert_eq!((third.is_active(), known()), (true, (1, 1)));
    shared.disconnected(&peer, third.connection);
    assert_eq!(known(), (0, 0));
    assert!(shared.links.lock().is_empty());
}

/// The story: a connection that closed while it wrote an answer made room for the next read, and nothing started that.
#[tokio::test]
async fn the_next_answer_is_read_when_a_connection_that_wrote_one_closes() {
    let blocks: Vec<_> = (0..6).map(|i| large(i, 256 << 10)).collect();
    let mut store = Store::default();
    store.extend(&blocks);
    let shared = over(store);
    let links = links(&shared, 2);
    let peer = links[0].peer;
    let want = |block: &Block| WantEntry {
        cid: *block.cid(),
        priority: 1,
        cancel: false,
        kind: WantKind::Block,
        send_dont_have: true,
    };
    shared.server(|server, now| server.on_wants(&peer, false, blocks.iter().map(want).collect(), now));
    let outstanding = async |bytes: usize| {
        let reached = async {
            while shared.peek_server(Server::counts).1 != bytes {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), reached).await.is_ok()
    };
    assert!(outstanding(OUTSTANDING_PER_PEER).await, "two answers are read, the third waits for room");
    let answer = shared.server(|server, _| server.next_answer(&peer)).unwrap();
    // The handler is dropped with the last byte of it: it may not start a read.
    shared.written(&peer, answer.block_bytes());
    shared.disconnected(&peer, links[0].connection);
    assert!(outstanding(OUTSTANDING_PER_PEER).await, "the third is read");
}
