//! The node's limits on connections and searches, each just below, at and just above its value. What is large is
//! lowered, but for what costs nothing.

use std::net::TcpListener;

use futures::StreamExt as _;
use libp2p::Multiaddr;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{Swarm, SwarmEvent, dummy};
use tokio::io::AsyncReadExt as _;
use tokio::sync::oneshot;

use super::*;
use crate::limits::{
    MAX_KAD_LOOKUPS, MAX_ORIGINS, MAX_PER_PEER, MAX_RELAYS, MAX_ROUTER_REQUESTS, MAX_SEARCH_PEERS,
    MAX_SEARCHES,
};
use crate::task::Command;
use crate::testing::Trap;

/// Long enough for a connection on loopback that should not be there to be there.
const SETTLED: Duration = Duration::from_millis(300);

/// A session that wants a block nobody has.
fn searching(client: &Peer, origins: &[String]) -> Box<dyn Session> {
    let root = *block(8).cid();
    let mut session = client.open(root, origins, true);
    session.want(&[root]);
    session
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_inbound_connections_are_bounded() {
    const MOST: u32 = 3;
    let mut world = world();
    world.connections.inbound = MOST;
    let server = Peer::start_in(|_| {}, world).await;
    let mut clients = Vec::new();
    for count in 1..=MOST as usize + 1 {
        let client = Peer::start(|_| {}).await;
        let mut session = client.open(*block(8).cid(), &server.addresses(), true);
        session.want(&[*block(8).cid()]);
        if count <= MOST as usize {
            until(|| server.node.status().peers == count).await;
        } else {
            // The connection may look established to the client for a moment, and then ends.
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(server.node.status().peers, MOST as usize);
            until(|| client.node.status().peers == 0).await;
        }
        clients.push((client, session));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_outbound_connections_are_bounded() {
    const MOST: usize = 2;
    let mut world = world();
    world.connections.outbound = MOST as u32;
    let client = Peer::start_in(|_| {}, world).await;
    let mut held = Vec::new();
    for count in 1..=MOST + 1 {
        let server = Peer::start(|_| {}).await;
        let session = searching(&client, &server.addresses());
        if count <= MOST {
            until(|| client.node.status().peers == count).await;
        } else {
            until(|| session.progress().last_error.is_some()).await;
            let error = session.progress().last_error.unwrap();
            assert!(error.contains("too many connections"), "{error}");
            assert_eq!(client.node.status().peers, MOST);
        }
        held.push((server, session));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_connections_of_one_peer_are_bounded() {
    let server = Peer::start(|_| {}).await;
    let address: Multiaddr = server.addresses()[0].parse().unwrap();
    let key = Keypair::generate_ed25519();
    let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(SOON);
    let us = key.public().to_peer_id();
    let mut swarm = Swarm::new(plain_transport(&key), dummy::Behaviour, us, config);
    let peer = server.node.peer_id().parse().unwrap();
    for dialled in 1..=MAX_PER_PEER + 1 {
        let dial =
            DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(vec![address.clone()]).build();
        swarm.dial(dial).unwrap();
        let mut open = 0;
        // The one that is too many may look established to the dialler for a moment, and then ends.
        while let Ok(event) = tokio::time::timeout(SETTLED, swarm.select_next_some()).await {
            if let SwarmEvent::ConnectionEstablished { num_established, .. } = event {
                open = num_established.get();
            } else if let SwarmEvent::ConnectionClosed { num_established, .. } = event {
                open = num_established;
            }
        }
        assert_eq!(open, dialled.min(MAX_PER_PEER), "{dialled} were dialled");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_inbound_handshakes_under_way_are_bounded() {
    const MOST: usize = 3;
    let mut world = world();
    world.connections.pending = MOST as u32;
    let server = Peer::start_in(|_| {}, world).await;
    let address = server.addresses()[0].clone();
    let port = address.split("/tcp/").nth(1).unwrap().split('/').next().unwrap().parse::<u16>().unwrap();
    let mut silent = Vec::new();
    for count in 1..=MOST + 1 {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // The node speaks first; a connection that it refuses ends without a word.
        let mut said = Vec::new();
        let ended = tokio::time::timeout(SETTLED, socket.read_to_end(&mut said)).await;
        assert_eq!(ended.is_ok(), count > MOST, "{count}: {ended:?}");
        silent.push(socket);
    }
    // A place that is given back is taken again.
    silent.remove(0);
    tokio::time::sleep(SETTLED).await;
    let client = Peer::start(|_| {}).await;
    let _session = searching(&client, &server.addresses());
    until(|| server.node.status().peers == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_dials_under_way_are_bounded() {
    const MOST: usize = 3;
    let mut world = world();
    world.connections.pending = MOST as u32;
    let client = Peer::start_in(|_| {}, world).await;
    let mut held = Vec::new();
    for count in 1..=MOST + 1 {
        // The system takes the connection, and nobody ever answers on it.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = silent.local_addr().unwrap().port();
        let session = searching(&client, &[format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", PeerId::random())]);
        tokio::time::sleep(SETTLED).await;
        let error = session.progress().last_error;
        assert_eq!(error.is_some_and(|e| e.contains("too many connections")), count > MOST, "{count}");
        held.push((silent, session));
    }
}

/// How many of `peers` the node keeps, and how many look-ups in the DHT it has under way.
async fn count(node: &Peer, peers: &[PeerId]) -> (usize, usize) {
    let (answer, counted) = oneshot::channel();
    node.node.command(Command::Count { peers: peers.to_vec(), answer }).await;
    counted.await.unwrap()
}

/// The story: a session that named more peers than a search holds left those above kept for ever, connection and all,
/// because a search that ends lets go only of the peers it knows.
#[tokio::test(flavor = "multi_thread")]
async fn t08_peers_of_a_search_at_the_boundary_are_let_go_with_it() {
    let client = Peer::start(|_| {}).await;
    for named in [MAX_SEARCH_PEERS - 1, MAX_SEARCH_PEERS, MAX_SEARCH_PEERS + 1] {
        let peers: Vec<PeerId> = (0..named).map(|_| PeerId::random()).collect();
        let mut session = searching(&client, &[]);
        for some in peers.chunks(MAX_ORIGINS) {
            let origins: Vec<String> = some.iter().map(|peer| format!("/p2p/{peer}")).collect();
            session.add_origins(&Origins { addresses: origins.clone(), local_request: true });
        }
        assert_eq!(count(&client, &peers).await.0, named.min(MAX_SEARCH_PEERS));
        drop(session);
        // It is noticed within a tick.
        soon(async {
            while count(&client, &peers).await.0 > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lookups_in_the_dht_at_the_boundary() {
    // Somebody to ask, who never answers: the system takes the connection.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let bootstrap = format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", PeerId::random());
    let client = Peer::start(|s| {
        s.offline = false;
        s.bootstrap = vec![bootstrap.parse().unwrap()];
    })
    .await;
    let mut sessions = Vec::new();
    for opened in 1..=MAX_KAD_LOOKUPS + 1 {
        sessions.push(searching(&client, &[]));
        if opened + 1 >= MAX_KAD_LOOKUPS {
            // A session calls for providers after a second.
            tokio::time::sleep(Duration::from_millis(1_600)).await;
            assert_eq!(count(&client, &[]).await.1, opened.min(MAX_KAD_LOOKUPS));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn searches_at_the_boundary() {
    let client = Peer::start(|_| {}).await;
    let mut sessions = Vec::new();
    for count in 1..=MAX_SEARCHES + 1 {
        sessions.push(searching(&client, &[]));
        // Told in the order they were opened: the task's queue is as long as this list.
        if count % 256 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    until(|| sessions[MAX_SEARCHES].progress().last_error.is_some()).await;
    let refused: Vec<usize> =
        (0..sessions.len()).filter(|n| sessions[*n].progress().last_error.is_some()).collect();
    assert_eq!(refused, [MAX_SEARCHES]);
    let error = sessions[MAX_SEARCHES].progress().last_error.unwrap();
    assert!(error.contains("too many pins"), "{error}");
    // One that ends makes room.
    sessions.truncate(MAX_SEARCHES - 1);
    let next = searching(&client, &[]);
    tokio::time::sleep(SETTLED).await;
    assert_eq!(next.progress().last_error, None);
}

/// A delegated router that takes requests and answers none. Counts them.
async fn silent_router() -> (url::Url, Arc<AtomicU64>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let asked = Arc::<AtomicU64>::default();
    let count = asked.clone();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            open.push(socket);
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_to_routers_at_the_boundary() {
    let (url, asked) = silent_router().await;
    let client = Peer::start(|s| s.routers = vec![url]).await;
    let mut sessions: Vec<_> = (1..MAX_ROUTER_REQUESTS).map(|_| searching(&client, &[])).collect();
    let most = MAX_ROUTER_REQUESTS as u64;
    until(|| asked.load(Ordering::SeqCst) == most - 1).await;
    sessions.push(searching(&client, &[]));
    until(|| asked.load(Ordering::SeqCst) == most).await;
    sessions.push(searching(&client, &[]));
    // A session calls for providers after a second.
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    assert_eq!(asked.load(Ordering::SeqCst), most);
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_at_the_boundary() {
    for count in [MAX_RELAYS - 1, MAX_RELAYS, MAX_RELAYS + 1] {
        let mut traps = Vec::new();
        for _ in 0..count {
            traps.push(Trap::start().await);
        }
        let relays: Vec<Multiaddr> = traps
            .iter()
            .map(|trap| format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", trap.port, PeerId::random()).parse().unwrap())
            .collect();
        let _node = Peer::start(|s| s.relays = relays).await;
        let dialled = || traps.iter().filter(|trap| trap.hits() > 0).count();
        until(|| dialled() == count.min(MAX_RELAYS)).await;
        tokio::time::sleep(SETTLED).await;
        assert_eq!(dialled(), count.min(MAX_RELAYS));
    }
}
