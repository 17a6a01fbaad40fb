//! Starting, stopping, starting again, and what goes wrong with it.

use std::net::{TcpListener, UdpSocket};

use super::*;
use crate::Error;

async fn start_on(dir: &Path, identity: Identity, swarm: &[&str]) -> Result<Node, Error> {
    let mut settings = Settings::local(dir.to_owned(), identity);
    settings.swarm = swarm.iter().map(|address| address.parse().unwrap()).collect();
    Node::start_in(settings, components(Arc::default()), world()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_node_comes_back_on_the_same_ports() {
    let dir = tempfile::tempdir().unwrap();
    let key = || Identity::File(dir.path().join("identity.key"));
    let any = ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0/ws"];
    let node = start_on(dir.path(), key(), &any).await.unwrap();
    let root = *block(8).cid();
    node.provide(&[root, *block(8).cid()]).await.unwrap();
    node.unprovide(&[root]).await.unwrap();
    let (peer, listen) = (node.peer_id(), node.status().listen);
    assert_eq!(listen.len(), 3);
    // A connection is open while it stops.
    let client = Peer::start(|_| {}).await;
    let mut session = client.open(root, &listen, true);
    session.want(&[root]);
    until(|| node.status().peers == 1).await;
    soon(node.stop()).await;
    soon(node.stop()).await;

    for _ in 0..3 {
        let suffix = format!("/p2p/{peer}");
        let same: Vec<&str> = listen.iter().map(|address| address.strip_suffix(&suffix).unwrap()).collect();
        let node = start_on(dir.path(), key(), &same).await.unwrap();
        assert_eq!((node.peer_id(), node.status().listen), (peer.clone(), listen.clone()));
        assert_eq!(node.status().provided, 1);
        soon(node.stop()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
    for address in [
        format!("/ip4/127.0.0.1/tcp/{tcp_port}"),
        format!("/ip4/127.0.0.1/tcp/{tcp_port}/ws"),
        format!("/ip4/127.0.0.1/udp/{udp_port}/quic-v1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let key = Identity::Keypair(Keypair::generate_ed25519());
        let error = start_on(dir.path(), key, &[&address]).await.err().unwrap();
        assert!(
            matches!(&error, Error::AddressInUse { address: named } if named.to_string() == address),
            "{error}"
        );
        assert!(error.to_string().contains(&address), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_node_on_the_port_is_noticed() {
    // The transports set SO_REUSEPORT: without the probe, a second node of the same user binds without an error
    // and takes half of the first one's connections.
    let first = Peer::start(|s| {
        s.swarm =
            ["/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"].map(|a| a.parse().unwrap()).to_vec();
    })
    .await;
    for address in first.addresses() {
        let address = address.split("/p2p/").next().unwrap().to_owned();
        let dir = tempfile::tempdir().unwrap();
        let key = Identity::Keypair(Keypair::generate_ed25519());
        let error = start_on(dir.path(), key, &[&address]).await.err().unwrap();
        assert!(matches!(error, Error::AddressInUse { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_settings_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let key = || Identity::Keypair(Keypair::generate_ed25519());
    let error = start_on(dir.path(), key(), &["/dns4/example.net/tcp/1"]).await.err().unwrap();
    assert!(matches!(error, Error::Address { key: "swarm", .. }), "{error}");
    let mut settings = settings(dir.path());
    settings.relays = vec!["/ip4/1.2.3.4/tcp/4001".parse().unwrap()];
    let error = Node::start_in(settings, components(Arc::default()), world()).await.err().unwrap();
    assert!(error.to_string().contains("network.relays"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn wildcards_are_expanded() {
    let node = Peer::start(|s| s.swarm = vec!["/ip4/0.0.0.0/tcp/0".parse().unwrap()]).await;
    let listen = node.addresses();
    assert!(listen.iter().any(|address| address.starts_with("/ip4/127.0.0.1/tcp/")), "{listen:?}");
    assert!(
        listen.iter().all(|address| !address.contains("/0.0.0.0/") && !address.contains("/tcp/0/")),
        "{listen:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_swarms_task_is_reported() {
    let peer = Peer::start(|_| {}).await;
    let mut session = peer.open(*block(8).cid(), &[], true);
    peer.node.command(crate::task::Command::Panic).await;
    let reason = soon(peer.node.failed()).await;
    assert!(reason.contains("swarm"), "{reason}");
    // Sessions end, and stopping a dead node is harmless.
    let ended = soon(std::future::poll_fn(|cx| session.poll_blocks(cx))).await;
    assert!(ended.is_err());
    soon(peer.node.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_node_has_not_failed_and_its_sessions_end() {
    let peer = Peer::start(|_| {}).await;
    let mut session = peer.open(*block(8).cid(), &[], true);
    session.want(&[*block(8).cid()]);
    soon(peer.node.stop()).await;
    assert!(soon(std::future::poll_fn(|cx| session.poll_blocks(cx))).await.is_err());
    assert!(tokio::time::timeout(Duration::from_millis(50), peer.node.failed()).await.is_err());
}
