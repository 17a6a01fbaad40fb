//! Peers that keep to the letter of the protocol and help nobody: they say HAVE and never send, ask and never
//! read, take a stream and close it.
//!
//! The node under test has a clock that runs several times as fast as the machine's, so that its timers of ten
//! seconds and more do not make the tests slow. The sockets and the other peers are as they are.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use floe_bitswap::limits::{FRAME_BYTES, OPEN_ATTEMPTS, SEND_BASE, SEND_BYTES_PER_SECOND, UNFINISHED_BYTES};
use floe_bitswap::message::Message;
use floe_bitswap::wire::{self, Peer};
use floe_bitswap::{Config, EgressLimit, Event, FrameReader, Misbehaviour};
use futures::{AsyncWriteExt as _, StreamExt as _};
use support::{MapBlocks, Node, NodeOptions, SystemClock, cids, fetch, leaves, patient};

/// How long a client of one honest peer and `stalling` others takes for a DAG, and what the others owe it.
async fn pull(stalling: usize) -> (Duration, usize) {
    let blocks = leaves(600, 10_000);
    let wanted = cids(&blocks);
    // The clean time is then 3 s on any machine: long beside the timers, which is what this is about.
    let egress = Some(EgressLimit { bytes_per_second: 2_000_000, burst_bytes: 1 });
    let honest = Node::with(Config { egress, ..Config::default() }, MapBlocks::of(&blocks)).await;
    let options = NodeOptions { clock: SystemClock::fast(10), ..NodeOptions::default() };
    let client = Node::start(options, MapBlocks::of([])).await;
    let owed = Arc::new(AtomicUsize::new(0));
    for _ in 0..stalling {
        let peer = patient(Peer::dial(client.address.clone())).await;
        tokio::spawn(wire::stall(peer, owed.clone()));
    }
    client.dial(&honest).await;
    client.connected(stalling + 1).await;
    let clock = SystemClock::shared();
    let mut session = client.handle.session(wanted[0]);
    let got = patient(fetch(&mut session, &wanted)).await;
    assert_eq!(got.len(), blocks.len());
    (clock.monotonic(), owed.load(Ordering::Relaxed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_r22_one_honest_peer_of_twenty_is_enough() {
    let (clean, _) = pull(0).await;
    let (took, owed) = pull(19).await;
    assert!(owed >= 19, "every staller was asked for blocks: {owed}");
    assert!(took < 3 * clean, "{took:?} with 19 stalling peers, {clean:?} without");
}

/// The story: only what was sent had a time to be answered in. A provider that takes every stream and says nothing on it
/// is given up after four attempts of ten seconds each, and had up to 32 blocks of a DAG until then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t05_a_peer_that_takes_streams_and_never_negotiates_holds_nothing_up() {
    let blocks = leaves(60, 1_000);
    let honest = Node::new(MapBlocks::of(&blocks)).await;
    let options = NodeOptions { clock: SystemClock::fast(10), ..NodeOptions::default() };
    let client = Node::start(options, MapBlocks::of([])).await;
    // Its streams wait unread in its queue.
    let mute = patient(Peer::dial(client.address.clone())).await;
    client.dial(&honest).await;
    client.connected(2).await;
    let wanted = cids(&blocks);
    let mut session = client.handle.session(wanted[0]);
    session.add_providers(&[mute.id, honest.peer]);
    // A second by the client's clock, and far less than the library's time to negotiate a stream, which is the machine's.
    let got = tokio::time::timeout(Duration::from_secs(5), fetch(&mut session, &wanted)).await;
    assert_eq!(got.expect("asked elsewhere in time").len(), blocks.len());
    assert!(!mute.inbound.is_empty(), "a stream was opened to it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_a_peer_that_asks_and_never_reads_is_dropped() {
    const SPEED: u32 = 40;
    let blocks = leaves(40, 256 << 10);
    let options = NodeOptions { clock: SystemClock::fast(SPEED), ..NodeOptions::default() };
    let mut node = Node::start(options, MapBlocks::of(&blocks)).await;
    let mut peer = patient(Peer::dial(node.address.clone())).await;
    peer.opener().send(&wire::wants(&cids(&blocks))).await.unwrap();
    let clock = SystemClock::shared();
    // It takes the streams, or nothing could be written at all, and leaves them unread.
    let unread = tokio::spawn(async move {
        let mut unread = Vec::new();
        while let Some(stream) = peer.accept().await {
            unread.push(stream);
        }
        unread.len()
    });
    let event = patient(node.events.recv()).await.unwrap();
    assert!(matches!(event, Event::Misbehaved { what: Misbehaviour::SlowReader, .. }), "{event:?}");
    // Each answer of two blocks had its time: a base and 12.5 kB/s.
    let answer = SEND_BASE + Duration::from_secs(2 * (256 << 10) / SEND_BYTES_PER_SECOND);
    let least = answer * OPEN_ATTEMPTS / SPEED;
    assert!(clock.monotonic() >= least, "{:?} of {least:?}", clock.monotonic());
    // A stream for each attempt; one more may be on its way when the last fails.
    let attempts = patient(unread).await.unwrap();
    assert!((OPEN_ATTEMPTS as usize..=OPEN_ATTEMPTS as usize + 1).contains(&attempts), "{attempts}");
    node.connected(0).await;
    assert_eq!(node.handle.stats().outstanding_bytes, 0, "no block is held for it");
    assert_eq!(node.handle.stats().wants_held, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_drops_every_stream_counts_as_one_without_bitswap() {
    // The story: a stream that was dropped before its negotiation ended was taken for "speaks no bitswap" at
    // once. A Kubo at its resource limits drops streams like that, and was of no use until it reconnected.
    let node = Node::new(MapBlocks::of([])).await;
    let wanted = cids(&leaves(1, 100));
    for drops in [OPEN_ATTEMPTS - 1, OPEN_ATTEMPTS] {
        let mut peer = patient(Peer::dial(node.address.clone())).await;
        node.connected(1).await;
        let mut session = node.handle.session(wanted[0]);
        session.add_providers(&[peer.id]);
        session.want(&wanted);
        for _ in 0..drops {
            drop(patient(peer.inbound.recv()).await.unwrap());
        }
        if drops == OPEN_ATTEMPTS {
            patient(node.connected(0)).await;
        } else {
            let mut frames = FrameReader::new(patient(peer.accept()).await.unwrap());
            let message = Message::decode(&patient(frames.next()).await.unwrap().unwrap()).unwrap();
            assert_eq!(message.wants[0].cid, wanted[0]);
            assert_eq!(node.handle.stats().peers, 1);
        }
        drop(peer);
        patient(node.connected(0)).await;
    }
}

/// The story: a connection that closes may first fail every stream, in less than a millisecond. The peer was then taken
/// for one without bitswap, and forgotten although another connection of it was there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_drops_every_stream_leaves_the_peer_its_other_one() {
    let here = leaves(1, 200);
    let node = Node::new(MapBlocks::of(&here)).await;
    let wanted = cids(&leaves(1, 100));
    let manner = wire::Manner::default();
    let mut first = patient(Peer::dial_as(manner.clone(), node.address.clone())).await.unwrap();
    node.connected(1).await;
    let mut second = patient(Peer::dial_as(manner, node.address.clone())).await.unwrap();
    drop(patient(second.stream()).await);
    let mut session = node.handle.session(wanted[0]);
    session.add_providers(&[first.id]);
    session.want(&wanted);
    for _ in 0..OPEN_ATTEMPTS {
        drop(patient(first.inbound.recv()).await.unwrap());
    }
    let mut frames = FrameReader::new(patient(second.accept()).await.unwrap());
    let message = Message::decode(&patient(frames.next()).await.unwrap().unwrap()).unwrap();
    assert_eq!(message.wants[0].cid, wanted[0]);
    // The other is served when the first is gone, as before.
    drop(first);
    patient(node.connections(1)).await;
    second.opener().send(&wire::wants(&cids(&here))).await.unwrap();
    let answer = Message::decode(&patient(frames.next()).await.unwrap().unwrap()).unwrap();
    assert_eq!(answer.payloads[0].data, here[0].data());
    assert_eq!(node.handle.stats().peers, 1);
}

/// The story: streams were read to wherever they stood, 4 MiB each and as many as a muxer allows, on as many
/// connections as there are; nothing counted what was held for them, and none had a time to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t07_frames_that_never_end_are_let_go_of() {
    const SPEED: u32 = 20;
    // What is sent on each stream, and the room that it makes: 72 MB and 240 MiB.
    const PEERS: usize = 3;
    const STREAMS: usize = 40;
    let options = NodeOptions { clock: SystemClock::fast(SPEED), ..NodeOptions::default() };
    let client = Node::start(options, MapBlocks::of([])).await;
    let most = Arc::new(AtomicUsize::new(0));
    let watch = tokio::spawn({
        let (handle, most) = (client.handle.clone(), most.clone());
        async move {
            loop {
                most.fetch_max(handle.stats().unfinished_bytes, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let mut begun = length_of_frame(FRAME_BYTES);
    begun.resize(600_000, 0);
    let begun = Arc::new(begun);
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let peer = patient(Peer::dial(client.address.clone())).await;
        let (opener, begun) = (peer.opener(), begun.clone());
        let stalled = tokio::spawn(async move {
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                let mut stream = opener.stream().await.unwrap();
                // One that was let go of meanwhile is reset.
                let _ = stream.write_all(&begun).await;
                let _ = stream.flush().await;
                streams.push(stream);
            }
            streams
        });
        peers.push((peer, stalled));
    }
    let mut streams = Vec::new();
    for (_, stalled) in &mut peers {
        streams.extend(patient(stalled).await.unwrap());
    }

    let blocks = leaves(40, 256 << 10);
    let honest = Node::new(MapBlocks::of(&blocks)).await;
    client.dial(&honest).await;
    client.connected(PEERS + 1).await;
    let wanted = cids(&blocks);
    let mut session = client.handle.session(wanted[0]);
    assert_eq!(patient(fetch(&mut session, &wanted)).await.len(), blocks.len());

    // The time to read a frame of 4 MiB ends, and nothing is held for them any more.
    patient(async {
        while client.handle.stats().unfinished_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    watch.abort();
    let most = most.load(Ordering::Relaxed);
    assert!(most <= UNFINISHED_BYTES, "{most} bytes were held");
    assert!(most >= UNFINISHED_BYTES / 2, "they held {most} bytes: the limit was not met");
    assert_eq!(streams.len(), PEERS * STREAMS);
}

/// The length that a frame of `len` bytes begins with.
fn length_of_frame(len: usize) -> Vec<u8> {
    let (mut rest, mut prefix) = (len, Vec::new());
    while rest >= 0x80 {
        prefix.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    prefix.push(rest as u8);
    prefix
}
