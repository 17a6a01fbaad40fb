//! Reachability, relays, and floods.

use std::sync::atomic::AtomicUsize;

use floe_bitswap::wire;
use futures::StreamExt as _;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{NetworkBehaviour, Swarm, SwarmEvent};
use libp2p::{Multiaddr, autonat, identify, ping, relay};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::PrivateAddresses;
use crate::limits::{MAX_EXTERNAL, MEMORY_CLOSE_BATCH};
use crate::task::Command;

#[tokio::test(flavor = "multi_thread")]
async fn t09_the_part_in_the_dht_follows_reachability() {
    let peer = Peer::start(|s| s.offline = false).await;
    let node = &peer.node;
    assert_eq!(node.status().kad, "client");
    let external = |text: &str, confirmed| Command::External { address: text.parse().unwrap(), confirmed };
    // A private address says nothing about the world outside.
    node.command(external("/ip4/192.168.1.7/tcp/4701", true)).await;
    until(|| node.status().external.len() == 1).await;
    assert_eq!(node.status().kad, "client");
    node.command(external("/ip4/8.8.8.8/tcp/4701", true)).await;
    until(|| node.status().kad == "server").await;
    let public = format!("/ip4/8.8.8.8/tcp/4701/p2p/{}", node.peer_id());
    assert_eq!(node.delegates(false), [public]);
    node.command(external("/ip4/8.8.8.8/tcp/4701", false)).await;
    until(|| node.status().kad == "client").await;
    assert_eq!(node.delegates(false), [format!("/p2p/{}", node.peer_id())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_confirmed_addresses_at_the_boundary() {
    let peer = Peer::start(|_| {}).await;
    for count in 1..=MAX_EXTERNAL + 1 {
        let address = format!("/ip4/8.8.8.8/tcp/{}", 4_000 + count).parse().unwrap();
        peer.node.command(Command::External { address, confirmed: true }).await;
        if count + 1 >= MAX_EXTERNAL {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(peer.node.status().external.len(), count.min(MAX_EXTERNAL));
        }
    }
    // The first gave way, not the last: who moves is reached where he is now.
    let has = |port: &str| peer.node.status().external.iter().any(|address| address.contains(port));
    assert!(!has("/tcp/4001") && has("/tcp/4002") && has(&format!("/tcp/{}", 4_001 + MAX_EXTERNAL)));
    // A relay's circuit takes nobody's place.
    let relay = PeerId::random();
    let circuit = format!("/ip4/8.8.4.4/tcp/1/p2p/{relay}/p2p-circuit").parse().unwrap();
    peer.node.command(Command::External { address: circuit, confirmed: true }).await;
    until(|| has("/p2p-circuit")).await;
    assert!(has("/tcp/4002"));
}

#[tokio::test(flavor = "multi_thread")]
async fn t45_delegates_of_a_running_node() {
    let peer = Peer::start(|_| {}).await;
    let bare = format!("/p2p/{}", peer.node.peer_id());
    assert_eq!(peer.node.delegates(true), peer.addresses());
    assert_eq!(peer.node.delegates(false), [bare]);
    let public_api = Peer::start(|s| s.api_is_local = false).await;
    assert_eq!(public_api.node.delegates(true), [format!("/p2p/{}", public_api.node.peer_id())]);
    let open = Peer::start(|s| s.private_addresses = PrivateAddresses::Allow).await;
    assert_eq!(open.node.delegates(false), open.addresses());
}

/// Where `peer` listens on TCP.
fn tcp(peer: &Peer) -> String {
    peer.addresses().into_iter().find(|a| a.contains("/tcp/") && !a.contains("/ws")).unwrap()
}

/// Where `peer` says that it listens, to somebody who dials in.
async fn identified(peer: &Peer) -> Vec<String> {
    let key = Keypair::generate_ed25519();
    let identify = identify::Behaviour::new(identify::Config::new("test".into(), key.public()));
    let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(SOON);
    let mut swarm = Swarm::new(plain_transport(&key), identify, key.public().to_peer_id(), config);
    swarm.dial(tcp(peer).parse::<Multiaddr>().unwrap()).unwrap();
    loop {
        if let SwarmEvent::Behaviour(identify::Event::Received { info, .. }) = swarm.select_next_some().await
        {
            return info.listen_addrs.iter().map(ToString::to_string).collect();
        }
    }
}

/// Every peer was told each address of the inner network that a public service listened on, under `deny` as well; and
/// under `auto` every stranger of the DHT those of a service on somebody's own machine, which `auto` tells the requests
/// from that machine alone.
#[tokio::test(flavor = "multi_thread")]
async fn t45_identify_tells_inner_addresses_in_a_closed_network_alone() {
    let told = |local: bool, private: PrivateAddresses| async move {
        let peer = Peer::start(|s| (s.api_is_local, s.private_addresses) = (local, private)).await;
        soon(identified(&peer)).await
    };
    for private in [PrivateAddresses::Deny, PrivateAddresses::Auto] {
        for local in [true, false] {
            assert_eq!(told(local, private).await, [""; 0], "{private:?}, api is local: {local}");
        }
    }
    assert!(!told(false, PrivateAddresses::Allow).await.is_empty());
}

#[derive(NetworkBehaviour)]
struct RelayServer {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// A relay on loopback, with the library's own parts.
async fn relay_server() -> (Multiaddr, JoinHandle<()>) {
    let key = Keypair::generate_ed25519();
    let behaviour = RelayServer {
        relay: relay::Behaviour::new(key.public().to_peer_id(), relay::Config::default()),
        identify: identify::Behaviour::new(identify::Config::new("test".into(), key.public())),
        ping: ping::Behaviour::default(),
    };
    server(key, behaviour).await
}

#[derive(NetworkBehaviour)]
struct AutonatServer {
    autonat: autonat::v2::server::Behaviour,
    identify: identify::Behaviour,
}

/// A peer that probes on request whether an address can be dialled.
async fn autonat_server() -> (Multiaddr, JoinHandle<()>) {
    let key = Keypair::generate_ed25519();
    let behaviour = AutonatServer {
        autonat: autonat::v2::server::Behaviour::default(),
        identify: identify::Behaviour::new(identify::Config::new("test".into(), key.public())),
    };
    server(key, behaviour).await
}

async fn server(key: Keypair, behaviour: impl NetworkBehaviour + Send) -> (Multiaddr, JoinHandle<()>) {
    let peer = key.public().to_peer_id();
    let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(SOON);
    let mut swarm = Swarm::new(plain_transport(&key), behaviour, peer, config);
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    swarm.add_external_address(address.clone());
    let task = tokio::spawn(async move {
        loop {
            swarm.next().await;
        }
    });
    (address.with(Protocol::P2p(peer)), task)
}

/// How many addresses AutoNAT is to probe.
async fn candidates(peer: &Peer) -> usize {
    let (answer, candidates) = oneshot::channel();
    peer.node.command(Command::Candidates { answer }).await;
    candidates.await.unwrap()
}

/// A peer's word alone confirms nothing; that a peer could dial it does.
#[tokio::test(flavor = "multi_thread")]
async fn an_address_is_confirmed_by_a_probe_and_by_nothing_else() {
    let (talker, talking) = relay_server().await;
    let (prober, probing) = autonat_server().await;
    // Loopback addresses are candidates in a closed network alone.
    let peer = Peer::start(|s| {
        s.offline = false;
        s.private_addresses = PrivateAddresses::Allow;
    })
    .await;
    let mut session = peer.open(*block(8).cid(), &[talker.to_string()], true);
    session.want(&[*block(8).cid()]);
    soon(async {
        while candidates(&peer).await == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(peer.node.status().external.is_empty());
    session.add_origins(&Origins { addresses: vec![prober.to_string()], local_request: true });
    until(|| !peer.node.status().external.is_empty()).await;
    assert_eq!(peer.node.status().external, peer.addresses());
    // A closed network's addresses count as public ones do elsewhere.
    until(|| peer.node.status().kad == "server").await;
    talking.abort();
    probing.abort();
}

/// A relay carries 128 KiB and ends the circuit: blocks of a mebibyte come over a connection that both ends have made
/// meanwhile, and so do those that are asked for when the relay is gone.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_know_each_other_through_a_relay_come_to_a_connection_of_their_own() {
    let (relay, task) = relay_server().await;
    let behind_the_relay = |s: &mut Settings| {
        s.relays = vec![relay.clone()];
        // Loopback addresses are told to the other end in a closed network alone.
        s.private_addresses = PrivateAddresses::Allow;
    };
    let (hidden, client) = (Peer::start(behind_the_relay).await, Peer::start(behind_the_relay).await);
    let circuits = |peer: &Peer| -> Vec<String> {
        let delegates = peer.node.delegates(true).into_iter();
        delegates.filter(|address| address.contains("/p2p-circuit")).collect()
    };
    until(|| !circuits(&hidden).is_empty() && !circuits(&client).is_empty()).await;

    let first: Vec<Block> = (0..3).map(|_| block(1 << 20)).collect();
    let then = block(1 << 20);
    first.iter().chain([&then]).for_each(|block| hidden.blocks.put(block));
    let mut session = client.open(*first[0].cid(), &circuits(&hidden), true);
    session.want(&first.iter().map(|block| *block.cid()).collect::<Vec<_>>());
    assert_eq!(take(&mut session, first.len()).await.len(), first.len());
    task.abort();
    until(|| client.node.status().peers == 1 && hidden.node.status().peers == 1).await;
    session.want(&[*then.cid()]);
    assert_eq!(take(&mut session, 1).await[0].cid(), then.cid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_reached_through_its_relay() {
    let (relay, task) = relay_server().await;
    let mut hidden = Peer::start(|s| {
        s.relays = vec![relay.clone()];
        s.swarm = vec![];
    })
    .await;
    let through = |address: &String| address.contains("/p2p-circuit");
    until(|| hidden.node.delegates(true).iter().any(through)).await;
    let circuits: Vec<String> = hidden.node.delegates(true).into_iter().filter(through).collect();
    assert!(!hidden.node.delegates(false).iter().any(through), "t45: the relay's address is private");

    let client = Peer::start(|_| {}).await;
    let mut session = client.open(*block(8).cid(), &circuits, true);
    session.want(&[*block(8).cid()]);
    hidden.connected(&client).await;

    // T11: for a stranger, a relay on a private address is a private address.
    let other = Peer::start(|_| {}).await;
    let mut session = other.open(*block(8).cid(), &circuits, false);
    session.want(&[*block(8).cid()]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(other.node.status().peers, 0);
    task.abort();
}

/// A peer that served a pin could go before strangers that only took up memory, and nothing noticed: it was enough that
/// all were gone in the end.
#[tokio::test(flavor = "multi_thread")]
async fn t07_the_guard_closes_inbound_connections_and_that_of_a_peer_that_serves_a_pin_last() {
    // Looks that find too much in use.
    let over = Arc::new(AtomicUsize::new(0));
    let measure = over.clone();
    let used = move || {
        let is_over =
            measure.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
        if is_over { 1 << 40 } else { 0 }
    };
    let mut world = world();
    world.memory = Memory::with(1 << 40, used);
    let server = Peer::start_in(|_| {}, world).await;
    let address: Multiaddr = tcp(&server).parse().unwrap();
    let serving = Peer::start(|_| {}).await;
    let root = *block(8).cid();
    let mut pin = server.open(root, &[format!("/p2p/{}", serving.node.peer_id())], true);
    pin.want(&[root]);
    let mut strangers = Vec::new();
    // As many as one look closes. Half come before the peer that serves the pin, so that its age decides nothing.
    for count in 0..MEMORY_CLOSE_BATCH {
        if count == MEMORY_CLOSE_BATCH / 2 {
            serving.open(root, &server.addresses(), true).want(&[root]);
            until(|| serving.node.status().peers == 1).await;
        }
        strangers.push(wire::Peer::dial(address.clone()).await);
    }
    until(|| server.node.status().peers == MEMORY_CLOSE_BATCH + 1).await;
    over.store(1, Ordering::Relaxed);
    for stranger in &mut strangers {
        soon(async { while stranger.inbound.recv().await.is_some() {} }).await;
    }
    until(|| server.node.status().peers == 1).await;
    assert_eq!(serving.node.status().peers, 1, "it serves a pin");
    over.store(1, Ordering::Relaxed);
    until(|| server.node.status().peers == 0).await;
}
