//! A peer as Kubo and Helia are: every message on a stream of its own, many of them open at once.
//!
//! The story: another implementation kept one inbound stream per peer and replaced it when the next came, so
//! it stalled for 30 s against Kubo and hung against Helia; a third had an inbound queue of zero and dropped
//! streams, and a pull of 1 GiB stopped after 315 blocks.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use bytes::Bytes;
use floe_bitswap::FrameReader;
use floe_bitswap::limits::{INBOUND_LEFT_OPEN, INBOUND_STREAMS, INBOUND_WANTS_LEFT_OPEN};
use floe_bitswap::message::{Message, Payload, Version, WantKind};
use floe_bitswap::wire::{self, Manner, Peer};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::SubstreamBox;
use support::{MapBlocks, Node, NodeOptions, SystemClock, cids, fetch, leaves, patient};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_on_a_stream_of_its_own() {
    let blocks = leaves(1_000, 16_000);
    let node = Node::new(MapBlocks::of([])).await;
    let peer = patient(Peer::dial(node.address.clone())).await;
    let id = peer.id;
    tokio::spawn(wire::serve(peer, MapBlocks::of(&blocks)));
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
    for cid in cids(&blocks) {
        let mut stream = patient(peer.stream()).await;
        let bytes = wire::bytes(&wire::wants([&cid]), Version::V1_2);
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        stream.write_all(first).await.unwrap();
        stream.flush().await.unwrap();
        halves.push((stream, Bytes::copy_from_slice(rest)));
    }
    for (stream, rest) in halves.iter_mut().rev() {
        stream.write_all(rest).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert_eq!(patient(received(&mut peer, blocks.len())).await, blocks.len());
}

/// Takes messages until so many blocks came. Says how many did.
async fn received(peer: &mut Peer, count: usize) -> usize {
    let mut frames = FrameReader::new(peer.accept().await.unwrap());
    let mut got = 0;
    while got < count {
        got += Message::decode(&frames.next().await.unwrap().unwrap()).unwrap().payloads.len();
    }
    got
}

/// The story: the answer that was being written when the first of two connections closed was lost. Its wants counted
/// as answered, and the peer, still connected, had no reason to ask again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_moves_to_the_second_connection_when_the_first_closes() {
    let blocks = leaves(6, 400_000);
    let node = Node::new(MapBlocks::of(&blocks)).await;
    let manner = Manner::default();
    let mut first = patient(Peer::dial_as(manner.clone(), node.address.clone())).await.unwrap();
    node.connected(1).await;
    let mut second = patient(Peer::dial_as(manner, node.address.clone())).await.unwrap();
    drop(patient(second.stream()).await);
    first.opener().send(&wire::wants(&cids(&blocks))).await.unwrap();
    // The answer has begun, and is more than a stream takes while nobody reads.
    let mut begun = patient(first.accept()).await.unwrap();
    begun.read_exact(&mut [0; 1_000]).await.unwrap();
    drop((begun, first));
    assert_eq!(patient(received(&mut second, blocks.len())).await, blocks.len());
    patient(async {
        while node.handle.stats().outstanding_bytes > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// The story: Kubo ends a stream when it has read what was said to its protocol. On a busy machine that was hundreds of
/// messages later, every stream was kept until then, and at the muxer's bound the connection ended: each pin of
/// some thousand small blocks from a real Kubo over TCP lost it, and went on over another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_brought_their_message_and_do_not_end_are_let_go_of() {
    // As many as Floe allows over yamux.
    let node = Node::start(NodeOptions { streams: 256, ..NodeOptions::default() }, MapBlocks::of([])).await;
    let manner = Manner { streams: 1_000, ..Manner::default() };
    let peer = patient(Peer::dial_as(manner, node.address.clone())).await.unwrap();
    let mut open = Vec::new();
    for cid in cids(&leaves(700, 100)) {
        let mut stream = patient(peer.stream()).await;
        wire::write(&mut stream, &wire::wants([&cid]).encode(Version::V1_2)).await.unwrap();
        open.push(stream);
    }
    patient(async {
        while node.handle.stats().wants_held < open.len() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Whether the other side left each of these open. What it did to a stream is heard before what it did later to another.
async fn are_open(streams: &mut [SubstreamBox]) -> bool {
    for stream in streams {
        if futures::poll!(stream.read(&mut [0])).is_ready() {
            return false;
        }
    }
    true
}

/// Waits until the other side ends the stream.
async fn ended(stream: &mut SubstreamBox) {
    let ended = patient(stream.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_wants_left_open_at_the_boundary() {
    let node = Node::new(MapBlocks::of([])).await;
    let peer = patient(Peer::dial(node.address.clone())).await;
    let mut open = Vec::new();
    for cid in cids(&leaves(INBOUND_WANTS_LEFT_OPEN as u32 + 1, 100)) {
        let mut stream = patient(peer.stream()).await;
        wire::write(&mut stream, &wire::wants([&cid]).encode(Version::V1_2)).await.unwrap();
        open.push(stream);
        // Each is read before the next is there.
        patient(async {
            while node.handle.stats().wants_held < open.len() {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
        .await;
    }
    ended(&mut open.pop().unwrap()).await;
    assert!(are_open(&mut open).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_blocks_left_open_at_the_boundary() {
    let node = Node::new(MapBlocks::of([])).await;
    let mut peer = patient(Peer::dial(node.address.clone())).await;
    let blocks = leaves(INBOUND_LEFT_OPEN as u32 + 1, 100);
    let mut session = node.handle.session(*blocks[0].cid());
    session.add_providers(&[peer.id]);
    let (mut open, mut frames) = (Vec::new(), None);
    for block in &blocks {
        session.want(&[*block.cid()]);
        if frames.is_none() {
            frames = Some(FrameReader::new(patient(peer.accept()).await.unwrap()));
        }
        let frames = frames.as_mut().unwrap();
        while !asks_for(&patient(frames.next()).await.unwrap().unwrap(), block.cid()) {}
        let mut stream = patient(peer.stream()).await;
        let payloads = vec![Payload::new(block.cid(), block.data().clone())];
        let answer = Message { payloads, ..Message::default() };
        wire::write(&mut stream, &answer.encode(Version::V1_2)).await.unwrap();
        open.push(stream);
        // Each is read before the next is there.
        assert_eq!(patient(support::next(&mut session)).await, std::slice::from_ref(block));
    }
    ended(&mut open.pop().unwrap()).await;
    assert!(are_open(&mut open).await);
}

fn asks_for(frame: &Bytes, cid: &floe_core::Cid) -> bool {
    let message = Message::decode(frame).unwrap();
    message.wants.iter().any(|want| want.cid == *cid && want.kind == WantKind::Block && !want.cancel)
}

/// The story: wants go behind the answer that is being written, on the same stream, and expired there after ten seconds
/// as if the peer had not met them: it was no provider any more before it had heard of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wants_wait_behind_an_answer_that_is_slowly_read() {
    let ours = leaves(1, 2 << 20);
    let options = NodeOptions { clock: SystemClock::fast(10), ..NodeOptions::default() };
    let node = Node::start(options, MapBlocks::of(&ours)).await;
    let mut peer = patient(Peer::dial(node.address.clone())).await;
    peer.opener().send(&wire::wants(&cids(&ours))).await.unwrap();
    let mut stream = patient(peer.accept()).await.unwrap();
    let payloads = vec![Payload::new(ours[0].cid(), ours[0].data().clone())];
    let mut answer = vec![0; wire::bytes(&Message { payloads, ..Message::default() }, Version::V1_2).len()];
    let (begin, rest) = answer.split_at_mut(1_000);
    stream.read_exact(begin).await.unwrap();
    let theirs = leaves(20, 100);
    let mut session = node.handle.session(*theirs[0].cid());
    session.add_providers(&[peer.id]);
    session.want(&cids(&theirs));
    // Twenty seconds by the node's clock.
    for part in rest.chunks_mut(100_000) {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        stream.read_exact(part).await.unwrap();
    }
    let frame = patient(FrameReader::new(stream).next()).await.unwrap().unwrap();
    let wants = Message::decode(&frame).unwrap().wants;
    assert_eq!(wants.iter().filter(|want| want.kind == WantKind::Block).count(), theirs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_streams_at_the_boundary() {
    // With a muxer that allows more than there may be: the handler's own bound is then the first to be met.
    let streams = INBOUND_STREAMS + 100;
    let node = Node::start(NodeOptions { streams, ..NodeOptions::default() }, MapBlocks::of([])).await;
    let manner = Manner { streams, ..Manner::default() };
    let peer = patient(Peer::dial_as(manner, node.address.clone())).await.unwrap();
    let mut open = Vec::new();
    for _ in 0..INBOUND_STREAMS {
        open.push(patient(peer.stream()).await);
    }
    // The last of them and one more: the one that is too many is dropped, and the others are all still read.
    let mut more = patient(peer.stream()).await;
    let ended = patient(more.read(&mut [0])).await;
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    for (n, stream) in open.iter_mut().enumerate() {
        let want = wire::wants(&cids(&leaves(1, 100 + n)));
        wire::write(stream, &want.encode(Version::V1_2)).await.unwrap();
    }
    patient(async {
        while node.handle.stats().wants_held < INBOUND_STREAMS {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    // A place that is given back is taken again.
    open.pop();
    let mut again = patient(async {
        loop {
            let (mut stream, mut byte) = (peer.stream().await, [0]);
            let ended =
                tokio::time::timeout(std::time::Duration::from_millis(50), stream.read(&mut byte)).await;
            if ended.is_err() {
                return stream;
            }
        }
    })
    .await;
    again.close().await.unwrap();
}

/// The story: a frame above the cap ended its stream, and only the sixteenth its connection; no honest peer sends one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t02_a_frame_above_the_cap_ends_the_connection() {
    let mut node = Node::new(MapBlocks::of([])).await;
    // 4 MiB + 1, 2^32 and 2^63 as varints.
    let lengths: [&[u8]; 3] = [
        &[0x81, 0x80, 0x80, 0x02],
        &[0x80, 0x80, 0x80, 0x80, 0x10],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
    ];
    for length in lengths {
        let mut peer = patient(Peer::dial(node.address.clone())).await;
        let mut stream = patient(peer.stream()).await;
        stream.write_all(length).await.unwrap();
        stream.flush().await.unwrap();
        let event = patient(node.events.recv()).await.unwrap();
        let what = floe_bitswap::Misbehaviour::Malformed;
        assert_eq!(event, floe_bitswap::Event::Misbehaved { peer: peer.id, what });
        patient(async { while peer.inbound.recv().await.is_some() {} }).await;
        patient(node.connected(0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_protocols_are_spoken_both_ways() {
    // go-ipfs before 0.5 and other old peers: 1.1 has no HAVE, 1.0 sends bare bytes that are CIDv0 by rule.
    for version in [Version::V1_0, Version::V1_1] {
        let blocks = leaves(300, 4_000);
        let wanted = cids(&blocks);
        let node = Node::new(MapBlocks::of(&blocks[..150])).await;
        let manner = Manner { version, ..Manner::default() };
        let mut peer = patient(Peer::dial_as(manner.clone(), node.address.clone())).await.unwrap();
        // They fetch from us.
        let mut stream = patient(peer.stream()).await;
        let asks = wire::wants(&wanted[..150]).encode(version);
        wire::write(&mut stream, &asks).await.unwrap();
        assert_eq!(patient(received(&mut peer, 150)).await, 150, "{version:?}");
        // We fetch from them. They let go of the stream that the answers came on, which we would write the wants
        // to: half of the time the wants were lost with it, and nobody asked again.
        let id = peer.id;
        tokio::spawn(wire::serve(peer, MapBlocks::of(&blocks[150..])));
        let mut session = node.handle.session(wanted[150]);
        session.add_providers(&[id]);
        let mut got = patient(fetch(&mut session, &wanted[150..])).await;
        got.sort_by_key(|block| wanted.iter().position(|cid| cid == block.cid()));
        assert_eq!(got, &blocks[150..], "{version:?}");
    }
}
