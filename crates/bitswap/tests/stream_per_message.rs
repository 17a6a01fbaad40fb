//! A peer as Kubo and Helia are: every message on a stream of its own, many of them open at once.
//!
//! The story: another implementation kept one inbound stream per peer and replaced it when the next came, so
//! it stalled for 30 s against Kubo and hung against Helia; a third had an inbound queue of zero and dropped
//! streams, and a pull of 1 GiB stopped after 315 blocks.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_bitswap::FrameReader;
use floe_bitswap::message::{Frame, Message, Payload, Version, WantEntry, WantKind};
use floe_core::Block;
use floe_core::ports::LocalBlocks;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::{Endpoint, Transport, upgrade};
use libp2p::{Multiaddr, PeerId, identity, noise, tcp, yamux};
use support::{MapBlocks, Node, cids, fetch, leaves};
use tokio::sync::{mpsc, oneshot};

const HELLO: &str = "/multistream/1.0.0\n";
const PROTOCOL: &str = "/ipfs/bitswap/1.2.0\n";

/// Multistream-select, as the side that opened the stream.
async fn propose(mut stream: SubstreamBox) -> SubstreamBox {
    let mut bytes = Vec::new();
    for line in [HELLO, PROTOCOL] {
        bytes.push(u8::try_from(line.len()).unwrap());
        bytes.extend(line.as_bytes());
    }
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!((line(&mut stream).await, line(&mut stream).await), (HELLO.into(), PROTOCOL.into()));
    stream
}

/// Multistream-select, as the side that takes it; `None` where another protocol is proposed.
async fn agree(mut stream: SubstreamBox) -> Option<SubstreamBox> {
    for wanted in [HELLO, PROTOCOL] {
        if line(&mut stream).await != wanted {
            return None;
        }
        stream.write_all(&[u8::try_from(wanted.len()).unwrap()]).await.unwrap();
        stream.write_all(wanted.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
    }
    Some(stream)
}

async fn line(stream: &mut SubstreamBox) -> String {
    let mut len = [0];
    stream.read_exact(&mut len).await.unwrap();
    let mut line = vec![0; usize::from(len[0])];
    stream.read_exact(&mut line).await.unwrap();
    String::from_utf8(line).unwrap()
}

/// One connection, without a swarm: streams are opened and taken as the test says.
struct Peer {
    id: PeerId,
    open: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
    inbound: mpsc::Receiver<SubstreamBox>,
}

impl Peer {
    async fn dial(address: Multiaddr) -> Self {
        let key = identity::Keypair::generate_ed25519();
        let mut transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .upgrade(upgrade::Version::V1Lazy)
            .authenticate(noise::Config::new(&key).unwrap())
            .multiplex(yamux::Config::default())
            .boxed();
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        let (_, muxer) = transport.dial(address, options).unwrap().await.unwrap();
        let (open, requests) = mpsc::channel(1_000);
        let (sender, inbound) = mpsc::channel(1_000);
        tokio::spawn(drive(muxer, requests, sender));
        Self { id: key.public().to_peer_id(), open, inbound }
    }

    async fn stream(&self) -> SubstreamBox {
        let (sender, receiver) = oneshot::channel();
        self.open.send(sender).await.unwrap();
        propose(receiver.await.unwrap()).await
    }

    /// Sends a message the way Kubo does: open, write, close.
    async fn send(&self, message: &Message) {
        let mut stream = self.stream().await;
        write(&mut stream, &message.encode(Version::V1_2)).await;
        stream.close().await.unwrap();
    }
}

async fn write(stream: &mut SubstreamBox, frame: &Frame) {
    for part in frame.parts() {
        stream.write_all(part).await.unwrap();
    }
    stream.flush().await.unwrap();
}

async fn drive(
    mut muxer: StreamMuxerBox,
    mut requests: mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    inbound: mpsc::Sender<SubstreamBox>,
) {
    let mut waiting = std::collections::VecDeque::new();
    std::future::poll_fn(|cx| {
        loop {
            if muxer.poll_unpin(cx)?.is_ready() {
                continue;
            }
            while let std::task::Poll::Ready(Some(request)) = requests.poll_recv(cx) {
                waiting.push_back(request);
            }
            if !waiting.is_empty()
                && let std::task::Poll::Ready(stream) = muxer.poll_outbound_unpin(cx)?
            {
                let request: oneshot::Sender<SubstreamBox> = waiting.pop_front().unwrap();
                let _ = request.send(stream);
                continue;
            }
            match muxer.poll_inbound_unpin(cx)? {
                std::task::Poll::Ready(stream) => drop(inbound.try_send(stream)),
                std::task::Poll::Pending => return std::task::Poll::<std::io::Result<()>>::Pending,
            }
        }
    })
    .await
    .ok();
}

/// Answers each wanted block in a message and on a stream of its own.
async fn serve(mut peer: Peer, blocks: Arc<MapBlocks>) {
    let peer_streams = Arc::new(Peer { id: peer.id, open: peer.open.clone(), inbound: mpsc::channel(1).1 });
    while let Some(stream) = peer.inbound.recv().await {
        let (blocks, peer) = (blocks.clone(), peer_streams.clone());
        tokio::spawn(async move {
            // What is not bitswap (nothing, here) is refused by the negotiation.
            let Some(stream) = agree(stream).await else {
                return;
            };
            let mut frames = FrameReader::new(stream);
            while let Some(Ok(frame)) = frames.next().await {
                let message = Message::decode(&frame).unwrap();
                let wanted = message.wants.iter().filter(|want| want.kind == WantKind::Block && !want.cancel);
                for cid in wanted.map(|want| want.cid) {
                    let (peer, data) = (peer.clone(), blocks.read(&cid).unwrap().unwrap());
                    tokio::spawn(async move {
                        let payloads = vec![Payload::new(&cid, data)];
                        peer.send(&Message { payloads, ..Message::default() }).await;
                    });
                }
            }
        });
    }
}

async fn patient<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_on_a_stream_of_its_own() {
    let blocks = leaves(1_000, 16_000);
    let node = Node::new(MapBlocks::of([])).await;
    let peer = patient(Peer::dial(node.address.clone())).await;
    let id = peer.id;
    tokio::spawn(serve(peer, MapBlocks::of(&blocks)));
    node.connected(1).await;
    let wanted = cids(&blocks);
    let mut session = node.handle.session(wanted[0]);
    session.add_providers(&[id]);
    assert_eq!(patient(fetch(&mut session, &wanted)).await.len(), blocks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_at_once_are_all_read() {
    let blocks = leaves(200, 1_000);
    let node = Node::new(MapBlocks::of(&blocks)).await;
    let mut peer = patient(Peer::dial(node.address.clone())).await;
    // All streams are open, each with half a message, before any message is whole.
    let mut halves = Vec::new();
    for block in &blocks {
        let mut stream = patient(peer.stream()).await;
        let bytes = want(block);
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        stream.write_all(first).await.unwrap();
        stream.flush().await.unwrap();
        halves.push((stream, Bytes::copy_from_slice(rest)));
    }
    for (stream, rest) in halves.iter_mut().rev() {
        stream.write_all(rest).await.unwrap();
        stream.flush().await.unwrap();
    }
    let answer = async {
        let stream = peer.inbound.recv().await.unwrap();
        let stream = agree(stream).await.unwrap();
        let mut frames = FrameReader::new(stream);
        let mut got = 0;
        while got < blocks.len() {
            got += Message::decode(&frames.next().await.unwrap().unwrap()).unwrap().payloads.len();
        }
    };
    patient(answer).await;
}

fn want(block: &Block) -> Vec<u8> {
    let entry = WantEntry {
        cid: *block.cid(),
        priority: 1,
        cancel: false,
        kind: WantKind::Block,
        send_dont_have: true,
    };
    Message { wants: vec![entry], ..Message::default() }.encode(Version::V1_2).parts().concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_a_frame_above_the_cap_ends_its_stream_and_repeated_ones_the_peer() {
    let mut node = Node::new(MapBlocks::of([])).await;
    let peer = patient(Peer::dial(node.address.clone())).await;
    for _ in 0..floe_bitswap::limits::STRIKES {
        let mut stream = patient(peer.stream()).await;
        // 2^32 as a varint.
        stream.write_all(&[0x80, 0x80, 0x80, 0x80, 0x10]).await.unwrap();
        stream.flush().await.unwrap();
    }
    let event = patient(node.events.recv()).await.unwrap();
    let what = floe_bitswap::Misbehaviour::Malformed;
    assert_eq!(event, floe_bitswap::Event::Misbehaved { peer: peer.id, what });
}
