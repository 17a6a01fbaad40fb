//! What the counters of blocks say, over sockets. One test alone: it has the counters of the whole process.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Duration;

use floe_bitswap::FrameReader;
use floe_bitswap::message::{Message, Payload};
use floe_bitswap::wire::{self, Peer};
use floe_core::Block;
use futures::{AsyncReadExt as _, StreamExt as _};
use support::counters::Counters;
use support::{MapBlocks, Node, Pair, cids, leaves, next, patient};

/// Blocks received that were useful, duplicate and unwanted, and blocks sent.
fn counts(counters: &Counters) -> [u64; 4] {
    let received =
        |outcome| counters.get("floe_bitswap_blocks_received_total", std::slice::from_ref(&outcome));
    let sent = counters.get("floe_bitswap_blocks_sent_total", &[]);
    [received("useful"), received("duplicate"), received("unwanted"), sent]
}

async fn come_to(counters: &Counters, expected: [u64; 4]) {
    let there = async {
        while counts(counters) != expected {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), there).await;
    assert!(in_time.is_ok(), "{:?}, and not {expected:?}", counts(counters));
}

async fn send(peer: &Peer, block: &Block) {
    let payloads = vec![Payload::new(block.cid(), block.data().clone())];
    peer.opener().send(&Message { payloads, ..Message::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_block_is_counted_once_for_what_it_was() {
    let counters = Counters::default();
    metrics::set_global_recorder(counters.clone()).ok().unwrap();
    let blocks = leaves(20, 1_000);
    let mut pair = Pair::over(&blocks).await;
    pair.fetch_all().await;
    come_to(&counters, [20, 0, 0, 20]).await;

    // From a peer that sends what it is asked for, the same again, and what nobody asked for.
    let node = Node::new(MapBlocks::of([])).await;
    let mut peer = patient(Peer::dial(node.address.clone())).await;
    let [asked, other] = leaves(2, 2_000).try_into().unwrap();
    let mut session = node.handle.session(*asked.cid());
    session.add_providers(&[peer.id]);
    session.want(&[*asked.cid()]);
    let mut frames = FrameReader::new(patient(peer.accept()).await.unwrap());
    patient(frames.next()).await.unwrap().unwrap();
    send(&peer, &asked).await;
    assert_eq!(patient(next(&mut session)).await, std::slice::from_ref(&asked));
    send(&peer, &asked).await;
    come_to(&counters, [21, 1, 0, 20]).await;
    send(&peer, &other).await;
    come_to(&counters, [21, 1, 1, 20]).await;

    // An answer that its peer leaves unread was not sent.
    let large = leaves(4, 1 << 20);
    let server = Node::new(MapBlocks::of(&large)).await;
    let mut deaf = patient(Peer::dial(server.address.clone())).await;
    deaf.opener().send(&wire::wants(&cids(&large))).await.unwrap();
    let mut begun = patient(deaf.accept()).await.unwrap();
    begun.read_exact(&mut [0; 1_000]).await.unwrap();
    drop((begun, deaf));
    server.connected(0).await;
    assert_eq!(counts(&counters), [21, 1, 1, 20]);
}
