//! Streams of other protocols, opened to whole nodes. What every node answers is identify: each stream is told who is there.
//! (Not ping: a new stream of it takes the place of the last, and the nodes open some of their own.)

use futures::AsyncReadExt as _;
use libp2p::{Multiaddr, StreamProtocol};

use super::*;
use crate::testing::Trap;
use crate::{PrivateAddresses, StreamError};

const IDENTIFY: StreamProtocol = StreamProtocol::new("/ipfs/id/1.0.0");

fn addresses(peer: &Peer, is_operators: bool) -> Vec<(Multiaddr, bool)> {
    peer.addresses().iter().map(|address| (address.parse().unwrap(), is_operators)).collect()
}

fn id(peer: &Peer) -> PeerId {
    peer.node.peer_id().parse().unwrap()
}

/// Whether the other side says who it is.
async fn is_told(mut stream: crate::Stream) -> bool {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap() > 32
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_opened_with_and_without_a_connection() {
    let server = Peer::start(|_| {}).await;
    let client = Peer::start(|s| s.private_addresses = PrivateAddresses::Deny).await;
    let open = |with| client.node.open_stream(id(&server), with, IDENTIFY);
    assert!(is_told(soon(open(addresses(&server, true))).await.unwrap()).await);
    // On the same connection, and several at once.
    let (second, third) = soon(async { tokio::join!(open(vec![]), open(vec![])) }).await;
    assert!(is_told(second.unwrap()).await && is_told(third.unwrap()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_says_which() {
    let server = Peer::start(|_| {}).await;
    let client = Peer::start(|s| s.private_addresses = PrivateAddresses::Deny).await;
    let unknown = StreamProtocol::new("/fil/storage/mk/1.2.1");
    let refused = client.node.open_stream(id(&server), addresses(&server, true), unknown.clone());
    assert_eq!(soon(refused).await.unwrap_err(), StreamError::Protocol(id(&server), unknown));
    let nowhere = soon(client.node.open_stream(PeerId::random(), vec![], IDENTIFY)).await.unwrap_err();
    assert!(matches!(nowhere, StreamError::Unresolvable(_)), "{nowhere}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let closed: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", closed.port()).parse().unwrap();
    let dialled = client.node.open_stream(PeerId::random(), vec![(closed, true)], IDENTIFY);
    let dialled = soon(dialled).await.unwrap_err();
    assert!(matches!(dialled, StreamError::Dial(_)), "{dialled}");
    assert!(!dialled.to_string().contains("127.0.0.1"), "t45: {dialled}");
    client.node.stop().await;
    let stopped = soon(client.node.open_stream(id(&server), vec![], IDENTIFY)).await.unwrap_err();
    assert_eq!(stopped, StreamError::Ended(id(&server)));
}

/// What the chain says of a provider must not lead into our own network; the same address by the operator's word does.
#[tokio::test(flavor = "multi_thread")]
async fn t11_a_strangers_word_is_filtered_and_the_operators_is_not() {
    let trap = Trap::start().await;
    let client = Peer::start(|s| s.private_addresses = PrivateAddresses::Deny).await;
    let at: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", trap.port).parse().unwrap();
    let error = client.node.open_stream(PeerId::random(), vec![(at.clone(), false)], IDENTIFY);
    let error = soon(error).await.unwrap_err();
    assert!(matches!(error, StreamError::Unresolvable(_)), "{error}");
    assert_eq!(trap.hits(), 0);
    let asked = tokio::time::timeout(
        Duration::from_millis(500),
        client.node.open_stream(PeerId::random(), vec![(at, true)], IDENTIFY),
    );
    // The trap answers nobody: who gives up lets go.
    let _ = asked.await;
    assert!(trap.hits() > 0);
}
