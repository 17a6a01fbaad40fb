//! The dial filter, from the outside: sockets on loopback that nobody may reach.

use super::*;
use crate::PrivateAddresses;
use crate::testing::Trap;

/// Ways to say "your own loopback" that a hostile client might try, all leading to `port`.
fn hostile(port: u16, names: &Names) -> Vec<String> {
    let peer = PeerId::random();
    let mut hosts: Vec<String> = [
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.2",
        "/ip4/127.255.255.254",
        "/ip4/0.0.0.0",
        "/ip6/::1",
        "/ip6/::",
        "/ip6/::ffff:127.0.0.1",
        "/ip6/::ffff:7f00:1",
        "/ip6/::127.0.0.1",
        "/ip6/64:ff9b::127.0.0.1",
        "/ip6/64:ff9b::7f00:1",
        "/ip6/64:ff9b:1::7f00:1",
        "/ip6/2002:7f00:1::",
        "/ip6/2001:0:7f00:1::1",
        "/ip6/fe80::1",
        "/ip6zone/lo/ip6/::1",
        "/dns/localhost",
        "/dns4/localhost",
        "/dns6/localhost",
        "/dns4/LOCALHOST.",
        "/dns4/127.0.0.1",
        "/dns4/0x7f000001",
        "/dns4/2130706433",
        "/dns4/0177.0.0.1",
    ]
    .map(str::to_owned)
    .to_vec();
    for name in ["localhost", "127.0.0.1", "0x7f000001", "2130706433", "0177.0.0.1"] {
        names.answer(name, &["127.0.0.1", "::1"]);
    }
    // Names whose answer changes from one look-up to the next, among private ranges and with many addresses.
    for (n, first) in
        ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fd00::1"].iter().enumerate()
    {
        let name = format!("rebind{n}.example.net");
        names.answer(&name, &[first]);
        names.answer(&name, &["127.0.0.1", "::1"]);
        hosts.push(format!("/dns4/{name}"));
        hosts.push(format!("/dns6/{name}"));
        hosts.push(format!("/dns/{name}"));
    }
    names.text("_dnsaddr.evil.example.net", &format!("dnsaddr=/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"));
    names.text("_dnsaddr.evil.example.net", &format!("dnsaddr=/dns4/localhost/tcp/{port}/p2p/{peer}"));
    names.text("_dnsaddr.evil.example.net", &format!("dnsaddr=/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{peer}"));
    let tails = [
        format!("/tcp/{port}/p2p/{peer}"),
        format!("/udp/{port}/quic-v1/p2p/{peer}"),
        format!("/tcp/{port}/ws/p2p/{peer}"),
        format!("/tcp/{port}/wss/p2p/{peer}"),
        format!("/tcp/{port}/tls/ws/p2p/{peer}"),
        format!("/tcp/{port}/tls/sni/example.net/ws/p2p/{peer}"),
        format!("/tcp/{port}/p2p/{peer}/p2p-circuit/p2p/{}", PeerId::random()),
        format!("/udp/{port}/quic-v1/p2p/{peer}/p2p-circuit/p2p/{}", PeerId::random()),
    ];
    let mut all: Vec<String> =
        hosts.iter().flat_map(|host| tails.iter().map(move |tail| format!("{host}{tail}"))).collect();
    all.extend([
        format!("/dnsaddr/evil.example.net/p2p/{peer}"),
        format!("/unix/tmp%2fsocket/p2p/{peer}"),
        format!("/ip4/8.8.8.8/udp/1/ip4/127.0.0.1/tcp/{port}/ws/p2p/{peer}"),
        format!("/dns4/example.net/tcp/443/ip4/127.0.0.1/tcp/{port}/ws/p2p/{peer}"),
    ]);
    all
}

/// Gives a node every hostile origin, each in a session of its own, and counts who reaches the trap.
async fn reached(private: PrivateAddresses, local_request: bool, api_is_local: bool) -> (usize, usize) {
    let trap = Trap::start().await;
    let names = Names::default();
    let origins = hostile(trap.port, &names);
    let mut world = world();
    world.resolver = Arc::new(names);
    let change = |s: &mut Settings| {
        s.private_addresses = private;
        s.api_is_local = api_is_local;
    };
    let victim = Peer::start_in(change, world).await;
    let mut sessions = Vec::new();
    // Few at a time, so that no dial is refused for being one too many.
    for some in origins.chunks(20) {
        for origin in some {
            let root = *block(8).cid();
            let mut session = victim.open(root, std::slice::from_ref(origin), local_request);
            session.want(&[root]);
            sessions.push(session);
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for session in &sessions {
        let error = session.progress().last_error.unwrap_or_default();
        for secret in ["127.0.0.1", "localhost", "::1", &trap.port.to_string()] {
            assert!(!error.contains(secret), "t45: {error}");
        }
    }
    (trap.hits(), origins.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_r23_200_hostile_addresses_reach_nothing() {
    let (hits, tried) = reached(PrivateAddresses::Deny, true, true).await;
    assert!(tried >= 200, "{tried}");
    assert_eq!(hits, 0, "deny");
    assert_eq!(reached(PrivateAddresses::Auto, false, true).await.0, 0, "auto, a request from elsewhere");
    assert_eq!(reached(PrivateAddresses::Auto, true, false).await.0, 0, "auto, a public API");
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_the_same_addresses_reach_it_where_they_may() {
    // The trap works: without this, the test above could not fail.
    assert!(reached(PrivateAddresses::Auto, true, true).await.0 > 0);
    assert!(reached(PrivateAddresses::Allow, false, false).await.0 > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_one_requests_permit_is_not_anothers() {
    let trap = Trap::start().await;
    let mut server = Peer::start(|_| {}).await;
    let client = Peer::start(|_| {}).await;
    let mut local = client.open(*block(8).cid(), &server.addresses(), true);
    local.want(&[*block(8).cid()]);
    server.connected(&client).await;
    let elsewhere = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", trap.port, PeerId::random());
    let mut stranger = client.open(*block(8).cid(), &[elsewhere], false);
    stranger.want(&[*block(8).cid()]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(trap.hits(), 0);
    let error = stranger.progress().last_error.unwrap();
    assert!(error.contains("private"), "{error}");
}

/// What a request from this machine may dial, everybody's pin of the same root could have dialled: the origins of all of
/// them were taken for its own.
#[tokio::test(flavor = "multi_thread")]
async fn t11_a_local_pin_lends_its_right_to_no_other_pin_of_its_root() {
    let trap = Trap::start().await;
    let mut server = Peer::start(|_| {}).await;
    let client = Peer::start(|_| {}).await;
    let root = *block(8).cid();
    let elsewhere = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", trap.port, PeerId::random());
    // Under the peer that the local request names too.
    let theirs = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", trap.port, server.node.peer_id());
    let stranger = Origins { addresses: vec![elsewhere, theirs], local_request: false };
    let local = Origins { addresses: server.addresses(), local_request: true };
    let hints = SessionHints { root, origins: vec![local.clone(), stranger.clone()] };
    let mut session = client.node.open(hints);
    session.want(&[root]);
    session.add_origins(&stranger);
    session.add_origins(&local);
    server.connected(&client).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(trap.hits(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn t45_a_failed_dial_is_told_without_the_address() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Peer::start(|_| {}).await;
    let origin = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", closed.port(), PeerId::random());
    let mut session = client.open(*block(8).cid(), &[origin], true);
    session.want(&[*block(8).cid()]);
    until(|| session.progress().last_error.is_some()).await;
    let error = session.progress().last_error.unwrap();
    assert!(error.ends_with("the connection was refused"), "{error}");
    assert!(!error.contains("127.0.0.1"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn t11_offline_nobody_is_dialled_unasked() {
    let trap = Trap::start().await;
    let bootstrap = format!("/ip4/127.0.0.1/tcp/{}/p2p/{}", trap.port, PeerId::random());
    let node = Peer::start(|s| s.bootstrap = vec![bootstrap.parse().unwrap()]).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((trap.hits(), node.node.status().kad.as_str()), (0, "off"));
    let online = Peer::start(|s| {
        s.offline = false;
        s.private_addresses = PrivateAddresses::Deny;
        s.bootstrap = vec![bootstrap.parse().unwrap()];
    })
    .await;
    // The operator's peers are dialled wherever they are.
    until(|| trap.hits() > 0).await;
    assert_eq!(online.node.status().kad, "client");
}
