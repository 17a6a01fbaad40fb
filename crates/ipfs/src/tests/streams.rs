//! What one peer can do with the streams of its connection: how many there are, how long a message is, and what is
//! believed of what it says of us.

use std::io;

use floe_bitswap::wire::{self, HELLO, Manner, agree_on, line, say};
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::core::muxing::SubstreamBox;
use libp2p::{Multiaddr, quic};

use super::*;
use crate::PrivateAddresses;
use crate::limits::{KAD_PACKET, MAX_CANDIDATES, MAX_NEGOTIATING_STREAMS, MAX_PEER_CANDIDATES, QUIC_STREAMS};
use crate::task::Command;

/// Long enough for what should not happen to happen.
const SETTLED: Duration = Duration::from_millis(500);

/// A peer of its own, on a connection whose streams it opens and leaves as the test says.
struct Raw {
    key: Keypair,
    peer: wire::Peer,
}

impl Raw {
    /// Connects to the first address of `server`, over `transport`.
    async fn dial(server: &Peer, transport: fn(&Keypair) -> Boxed<(PeerId, StreamMuxerBox)>) -> Self {
        let manner = Manner::default();
        let key = manner.key.clone();
        let address: Multiaddr = server.addresses()[0].split("/p2p/").next().unwrap().parse().unwrap();
        let peer = soon(wire::Peer::dial_over(transport(&key), manner, address)).await.unwrap();
        Self { key, peer }
    }

    async fn open(&self) -> io::Result<SubstreamBox> {
        self.peer.opener().open().await
    }

    async fn stream(&self, protocol: &str) -> io::Result<SubstreamBox> {
        self.peer.opener().stream_of(protocol).await
    }
}

/// Begins to negotiate and waits for the other side's first words.
async fn greet(mut stream: SubstreamBox) -> io::Result<SubstreamBox> {
    say(&mut stream, HELLO).await?;
    line(&mut stream).await?;
    Ok(stream)
}

fn plain_quic(key: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
    let transport = quic::tokio::Transport::new(quic::Config::new(key));
    transport.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer))).boxed()
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_quic_streams_at_the_boundary() {
    let server = Peer::start(|s| s.swarm = vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()]).await;
    let client = Raw::dial(&server, plain_quic).await;
    let mut open = Vec::new();
    for count in 1..=QUIC_STREAMS + 1 {
        match tokio::time::timeout(SETTLED, client.open()).await {
            Ok(stream) => open.push(stream.unwrap()),
            Err(_) => assert_eq!(count, QUIC_STREAMS + 1),
        }
    }
    assert_eq!(open.len(), QUIC_STREAMS as usize);
}

/// CVE-2022-23486: streams that a peer opened and left where they were took memory without end.
#[tokio::test(flavor = "multi_thread")]
async fn t06_cve_2022_23486_negotiating_streams_at_the_boundary() {
    let server = Peer::start(|_| {}).await;
    let client = Raw::dial(&server, plain_transport).await;
    let mut negotiating = Vec::new();
    for count in 1..=MAX_NEGOTIATING_STREAMS + 1 {
        let stream = client.open().await.unwrap();
        // A stream that is not taken is not answered, and ends neither the others nor the connection.
        match tokio::time::timeout(SETTLED, greet(stream)).await {
            Ok(stream) => negotiating.push(stream.unwrap()),
            Err(_) => assert_eq!(count, MAX_NEGOTIATING_STREAMS + 1),
        }
    }
    assert_eq!(negotiating.len(), MAX_NEGOTIATING_STREAMS);
    negotiating.pop();
    let stream = client.open().await.unwrap();
    soon(greet(stream)).await.unwrap();
}

/// Appends a protobuf field of bytes.
fn field(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    message.push(number << 3 | 2);
    varint(message, bytes.len());
    message.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Fails where the other side ends the stream meanwhile.
async fn send(stream: &mut SubstreamBox, message: &[u8]) -> io::Result<()> {
    let mut framed = Vec::new();
    varint(&mut framed, message.len());
    framed.extend(message);
    stream.write_all(&framed).await?;
    stream.flush().await
}

/// A FIND_NODE of exactly this length.
fn find_node(bytes: usize) -> Vec<u8> {
    let mut message = vec![1 << 3, 4];
    // Two bytes say what it is, three begin the key at these lengths.
    field(&mut message, 2, &vec![7; bytes - 2 - 3]);
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn t09_messages_of_the_dht_at_the_boundary() {
    let server = Peer::start(|s| {
        s.offline = false;
        s.private_addresses = PrivateAddresses::Allow;
    })
    .await;
    let address = server.addresses()[0].parse().unwrap();
    server.node.command(Command::External { address, confirmed: true }).await;
    until(|| server.node.status().kad == "server").await;
    for bytes in [KAD_PACKET - 1, KAD_PACKET, KAD_PACKET + 1] {
        let message = find_node(bytes);
        assert_eq!(message.len(), bytes);
        let client = Raw::dial(&server, plain_transport).await;
        let mut stream = client.stream("/ipfs/kad/1.0.0").await.unwrap();
        let answer = soon(async {
            send(&mut stream, &message).await?;
            stream.read(&mut [0; 64]).await
        });
        let answer = answer.await;
        let answered = matches!(answer, Ok(n) if n > 0);
        assert_eq!(answered, bytes <= KAD_PACKET, "{bytes}: {answer:?}");
    }
}

/// Answers the node's identify, so that it listens to what comes later.
async fn introduce(client: &mut Raw) {
    let mut hello = Vec::new();
    field(&mut hello, 1, &client.key.public().encode_protobuf());
    soon(async {
        loop {
            let stream = client.peer.inbound.recv().await.expect("the node asks who we are");
            if let Some(mut stream) = agree_on(stream, "/ipfs/id/1.0.0\n").await {
                send(&mut stream, &hello).await.unwrap();
                stream.close().await.unwrap();
                return;
            }
        }
    })
    .await;
}

/// Says in so many messages, each with another address, where we see the node.
async fn claim(client: &Raw, addresses: impl Iterator<Item = Multiaddr>) {
    for address in addresses {
        let mut push = Vec::new();
        field(&mut push, 4, &address.to_vec());
        let mut stream = client.stream("/ipfs/id/push/1.0.0").await.unwrap();
        send(&mut stream, &push).await.unwrap();
        stream.close().await.unwrap();
        // The node ends the stream when it has read it.
        let _ = stream.read(&mut [0]).await;
    }
}

/// The story: AutoNAT's client keeps every address that any peer claims to have seen us at, and identify hands it a
/// new one with every message. A peer that pushed for a day left the node with millions of them.
#[tokio::test(flavor = "multi_thread")]
async fn t08_addresses_that_peers_claim_to_see_us_at_are_bounded() {
    let server = Peer::start(|s| s.offline = false).await;
    let candidates = || async {
        let (answer, counted) = tokio::sync::oneshot::channel();
        server.node.command(Command::Candidates { answer }).await;
        counted.await.unwrap()
    };
    // Each on a port of its own and over QUIC, which this node does not listen on: none is translated.
    let address = |n: usize| format!("/ip4/8.8.{}.{}/udp/4001/quic-v1", n / 250, n % 250).parse().unwrap();
    let mut client = Raw::dial(&server, plain_transport).await;
    introduce(&mut client).await;
    claim(&client, (0..MAX_PEER_CANDIDATES - 1).map(address)).await;
    // The last stream may have ended before what it said was counted.
    soon(async { while candidates().await < MAX_PEER_CANDIDATES - 1 {} }).await;
    assert_eq!(candidates().await, MAX_PEER_CANDIDATES - 1);
    claim(&client, (0..1_000).map(address)).await;
    assert!(candidates().await <= MAX_PEER_CANDIDATES);

    // Others that lie with it fill the table, and no more.
    let mut liars = Vec::new();
    for liar in 1..=MAX_CANDIDATES / MAX_PEER_CANDIDATES {
        let mut client = Raw::dial(&server, plain_transport).await;
        introduce(&mut client).await;
        claim(&client, (0..MAX_PEER_CANDIDATES).map(|n| address(1_000 * liar + n))).await;
        liars.push(client);
    }
    soon(async { while candidates().await < MAX_CANDIDATES {} }).await;
    assert_eq!(candidates().await, MAX_CANDIDATES);
}
