//! Starting, stopping, starting again, and what goes wrong with it.

use std::net::{TcpListener, UdpSocket};

use futures::StreamExt as _;
use libp2p::swarm::{SwarmEvent, dummy};
use libp2p::{Multiaddr, Swarm, websocket};

use super::*;
use crate::testing::FaultyFile;
use crate::{CertificateFiles, Error};

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
    assert!(matches!(&reason, Error::TaskEnded(what) if what.contains("swarm")), "{reason}");
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

/// The story: another program filled the disk, a pin was removed, and the node ended because its root could not be taken
/// out of the table; started again it ended again, until somebody made space.
#[tokio::test(flavor = "multi_thread")]
async fn r03_a_full_disk_refuses_announcements_and_does_not_end_the_node() {
    let disk = FaultyFile::default();
    let peer = Peer::start_in(|_| {}, World { open_provides: disk.open(), ..world() }).await;
    let (kept, gone) = (*block(8).cid(), *block(8).cid());
    peer.node.provide(&[gone]).await.unwrap();
    disk.fill(true);
    for _ in 0..2 {
        let error = peer.node.unprovide(&[gone]).await.unwrap_err();
        assert!(error.to_string().contains("provides-1.redb"), "{error}");
        peer.node.provide(&[kept]).await.unwrap_err();
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), peer.node.failed()).await.is_err());
    assert_eq!(peer.node.status().provided, 1);
    disk.fill(false);
    peer.node.provide(&[kept]).await.unwrap();
    peer.node.unprovide(&[gone]).await.unwrap();
    assert_eq!(peer.node.status().provided, 1);
    soon(peer.node.stop()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_a_failed_sync_ends_the_node_and_nothing_more_is_acknowledged() {
    let disk = FaultyFile::default();
    let peer = Peer::start_in(|_| {}, World { open_provides: disk.open(), ..world() }).await;
    disk.fail_syncs(true);
    peer.node.provide(&[*block(8).cid()]).await.unwrap_err();
    let reason = soon(peer.node.failed()).await;
    assert!(matches!(&reason, Error::SyncFailed(what) if what.contains("provides-1.redb")), "{reason}");
    disk.fail_syncs(false);
    peer.node.provide(&[*block(8).cid()]).await.unwrap_err();
    soon(peer.node.stop()).await;
}

/// What a page that came over HTTPS needs: a socket behind a certificate that its browser believes.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_comes_in_over_the_operators_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let files = CertificateFiles { chain: dir.path().join("chain.pem"), key: dir.path().join("key.pem") };
    std::fs::write(&files.chain, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.key_pair.serialize_pem()).unwrap();
    let server = Peer::start(|settings| {
        settings.swarm = vec!["/ip4/127.0.0.1/tcp/0/tls/ws".parse().unwrap()];
        settings.certificate = Some(files);
    })
    .await;
    let address = server.addresses()[0].replace("/tls/ws", "/tls/sni/localhost/ws");

    let strangers = dial_over_tls(&address, websocket::tls::Config::client()).await;
    assert!(strangers.is_err(), "nobody believes a certificate that nobody signed");
    let mut believer = websocket::tls::Config::builder();
    believer.add_trust(&websocket::tls::Certificate::new(made.cert.der().to_vec())).unwrap();
    let peer = dial_over_tls(&address, believer.finish()).await.unwrap();
    assert_eq!(peer.to_string(), server.node.peer_id());
}

/// Who answers at `address`, as the library's own WebSocket client sees it.
async fn dial_over_tls(address: &str, tls: websocket::tls::Config) -> Result<PeerId, String> {
    let key = Keypair::generate_ed25519();
    let mut socket = websocket::Config::new(tcp::tokio::Transport::default());
    socket.set_tls_config(tls);
    let transport = socket
        .upgrade(Version::V1)
        .authenticate(noise::Config::new(&key).unwrap())
        .multiplex(libp2p::yamux::Config::default())
        .boxed();
    let config = libp2p::swarm::Config::with_tokio_executor();
    let mut swarm = Swarm::new(transport, dummy::Behaviour, key.public().to_peer_id(), config);
    swarm.dial(address.parse::<Multiaddr>().unwrap()).unwrap();
    soon(async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => return Ok(peer_id),
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.to_string()),
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_listener_without_a_certificate_says_which_settings_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let key = Identity::Keypair(Keypair::generate_ed25519());
    let error = start_on(dir.path(), key, &["/ip4/127.0.0.1/tcp/0/tls/ws"]).await.err().unwrap();
    assert!(error.to_string().contains("needs network.tls_certificate and network.tls_key"), "{error}");
}
