//! T10: what leaves a node, counted on the wire behind the encryption.

use std::sync::atomic::AtomicUsize;

use floe_core::Clock as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// An answer is never split: the last one of a peer may go into debt. The target of an answer and one block.
const ANSWER: usize = (512 << 10) + BLOCK;

const BLOCK: usize = 64 << 10;

/// Passes connections on to `to`, and counts what comes back from there.
async fn counting(to: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::<AtomicUsize>::default();
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (socket.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                    counted.fetch_add(n, Ordering::Relaxed);
                    if to_client.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (port, count)
}

/// Asks for blocks as fast as they come.
async fn drain(mut session: Box<dyn Session>, mut wanted: Vec<Cid>) {
    while !wanted.is_empty() {
        let room = session.room().min(wanted.len());
        let next: Vec<Cid> = wanted.drain(..room).collect();
        session.want(&next);
        std::future::poll_fn(|cx| session.poll_blocks(cx)).await.expect("the exchange runs");
    }
}

/// The story: the library had both limits and the node gave it none, so that no setting could bound what leaves.
#[tokio::test(flavor = "multi_thread")]
async fn t10_what_leaves_stays_within_what_is_configured() {
    const PER_PEER: u64 = 2_000_000;
    const ALL: u64 = 3_000_000;
    let server = Peer::start(|s| (s.egress_per_peer, s.egress) = (Some(PER_PEER), Some(ALL))).await;
    let blocks: Vec<Block> = (0..400).map(|_| block(BLOCK)).collect();
    blocks.iter().for_each(|block| server.blocks.put(block));
    let cids: Vec<Cid> = blocks.iter().map(|block| *block.cid()).collect();
    let address: libp2p::Multiaddr = server.addresses()[0].parse().unwrap();
    let port = address.iter().find_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });

    let clock = SystemClock::new();
    let from = clock.monotonic();
    let mut readers = Vec::new();
    for _ in 0..2 {
        let (relay, count) = counting(port.unwrap()).await;
        let origin = format!("/ip4/127.0.0.1/tcp/{relay}/p2p/{}", server.node.peer_id());
        let client = Peer::start(|_| {}).await;
        let session = client.open(cids[0], &[origin], true);
        readers.push((client, count, tokio::spawn(drain(session, cids.clone()))));
    }
    // Not from the start: a busy machine may take its time to connect.
    until(|| readers.iter().all(|(_, count, _)| count.load(Ordering::Relaxed) > BLOCK)).await;
    let begun = clock.monotonic();
    let counts = || readers.iter().map(|(_, count, _)| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let before: usize = counts().iter().sum();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let each = counts();
    let (took, since) = ((clock.monotonic() - from).as_secs_f64(), (clock.monotonic() - begun).as_secs_f64());
    let most = |rate: u64, answers: usize| (1.05 * rate as f64 * took) as usize + answers * ANSWER;
    let total: usize = each.iter().sum();
    assert!(total <= most(ALL, 1), "{total} bytes left in {took} s");
    assert!(each.iter().all(|bytes| *bytes <= most(PER_PEER, 1)), "{each:?} bytes left in {took} s");
    // It is the limit that was met, not a slow machine.
    assert!((total - before) as f64 >= 0.6 * ALL as f64 * since, "{total} - {before} in {since} s");
}
