//! Streams of other protocols, opened to whole nodes. What every node answers is ping: 32 bytes come back.

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::{Multiaddr, StreamProtocol};

use super::*;
use crate::testing::Trap;
use crate::{PrivateAddresses, StreamError};

const PING: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");

fn addresses(peer: &Peer, is_operators: bool) -> Vec<(Multiaddr, bool)> {
    peer.addresses().iter().map(|address| (address.parse().unwrap(), is_operators)).collect()
}

fn id(peer: &Peer) -> PeerId {
    peer.node.peer_id().parse().unwrap()
}

async fn echo(stream: &mut crate::Stream) {
    let sent = [7; 32];
    stream.write_all(&sent).await.unwrap();
    stream.flush().await.unwrap();
    let mut back = [0; 32];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_opened_with_and_without_a_connection() {
    let server = Peer::start(|_| {}).await;
    let client = Peer::start(|s| s.private_addresses = PrivateAddresses::Deny).await;
    let open = |with| client.node.open_stream(id(&server), with, PING);
    let mut first = soon(open(addresses(&server, true))).await.unwrap();
    echo(&mut first).await;
    // On the same connection, and several at once.
    let (mut second, mut third) = soon(async { tokio::join!(open(vec![]), open(vec![])) }).await;
    echo(second.as_mut().unwrap()).await;
    echo(third.as_mut().unwrap()).await;
    echo(&mut first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_says_which() {
    let server = Peer::start(|_| {}).await;
    let client = Peer::start(|s| s.private_addresses = PrivateAddresses::Deny).await;
    let unknown = StreamProtocol::new("/fil/storage/mk/1.2.1");
    let refused = client.node.open_stream(id(&server), addresses(&server, true), unknown.clone());
    assert_eq!(soon(refused).await.unwrap_err(), StreamError::Protocol(id(&server), unknown));
    let nowhere = soon(client.node.open_stream(PeerId::random(), vec![], PING)).await.unwrap_err();
    assert!(matches!(nowhere, StreamError::Unresolvable(_)), "{nowhere}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", closed.port()).parse().unwrap();
    let dialled = client.node.open_stream(PeerId::random(), vec![(closed, true)], PING);
    let dialled = soon(dialled).await.unwrap_err();
    assert!(matches!(dialled, StreamError::Dial(_)), "{dialled}");
    assert!(!dialled.to_string().contains("127.0.0.1"), "t45: {dialled}");
    client.node.stop().await;
    let stopped = soon(client.node.open_stream(id(&server), vec![], PING)).await.unwrap_err();
    assert_eq!(stopped, StreamError::Ended(id(&server)));
}

/// What the chain says of a provider must not lead into our own network; the same address by the operator's word does.
#[tokio::test(flavor = "multi_thread")]
async fn t11_a_strangers_word_is_filtered_and_the_operators_is_not() {
    let trap = Trap::start().await;
    let client = Peer::start(|s| s.private_addresses = PrivateAddresses::Deny).await;
    let at: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", trap.port).parse().unwrap();
    let error = client.node.open_stream(PeerId::random(), vec![(at.clone(), false)], PING);
    let error = soon(error).await.unwrap_err();
    assert!(matches!(error, StreamError::Unresolvable(_)), "{error}");
    assert_eq!(trap.hits(), 0);
    let asked = tokio::time::timeout(
        Duration::from_millis(500),
        client.node.open_stream(PeerId::random(), vec![(at, true)], PING),
    );
    // The trap answers nobody: who gives up lets go.
    let _ = asked.await;
    assert!(trap.hits() > 0);
}
