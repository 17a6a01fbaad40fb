//! Whole nodes over real sockets.

mod support;

use std::collections::HashSet;
use std::time::Duration;

use floe_bitswap::{Config, EgressLimit, Event, Misbehaviour};
use support::{MapBlocks, Node, Pair, cids, fetch, leaves, next, patient, silent};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_dag_comes_from_one_provider() {
    let blocks = leaves(3_000, 20_000);
    let mut pair = Pair::over(&blocks).await;
    assert_eq!(pair.fetch_all().await.len(), blocks.len());
    let Pair { seeder, client, session, .. } = pair;
    assert_eq!(session.progress().outstanding, 0);
    assert_eq!(session.progress().providers, 1);
    drop(session);
    assert_eq!(client.handle.stats().wanted, 0);
    assert_eq!(seeder.handle.stats().wants_held, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_is_found_by_asking_who_is_connected() {
    let blocks = leaves(20, 5_000);
    let seeder = Node::new(MapBlocks::of(&blocks)).await;
    let stranger = Node::new(MapBlocks::of([])).await;
    let client = Node::new(MapBlocks::of([])).await;
    client.dial(&stranger).await;
    client.dial(&seeder).await;
    client.connected(2).await;
    let wanted = cids(&blocks);
    let mut session = client.handle.session(wanted[0]);
    assert_eq!(patient(fetch(&mut session, &wanted)).await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_of_two_mebibytes_and_of_one_byte_pass() {
    let mut blocks = leaves(12, floe_core::block::MAX_BLOCK_BYTES);
    blocks.extend(leaves(3_000, 4));
    assert_eq!(Pair::over(&blocks).await.fetch_all().await.len(), blocks.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t04_bad_blocks_are_not_taken_and_their_sender_is_dropped() {
    let blocks = leaves(200, 10_000);
    let wanted = cids(&blocks);
    let liar = MapBlocks::of(blocks.iter().step_by(2));
    for cid in wanted.iter().skip(1).step_by(2) {
        liar.put_lie(cid, bytes::Bytes::from(format!("not {cid}")));
    }
    let liar = Node::new(liar).await;
    let honest = Node::new(MapBlocks::of(&blocks)).await;
    let mut client = Node::new(MapBlocks::of([])).await;
    client.dial(&liar).await;
    client.dial(&honest).await;
    let mut session = client.handle.session(wanted[0]);
    session.add_providers(&[liar.peer, honest.peer]);
    let mut got = patient(fetch(&mut session, &wanted)).await;
    got.sort_by_key(|block| *block.cid());
    got.dedup_by_key(|block| *block.cid());
    assert_eq!(got.len(), blocks.len(), "every block once, each checked by its type");
    let event = patient(client.events.recv()).await.unwrap();
    assert_eq!(event, Event::Misbehaved { peer: liar.peer, what: Misbehaviour::UnwantedBlocks });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_waits_for_a_block_gets_it_when_it_arrives() {
    let blocks = leaves(2, 5_000);
    let store = MapBlocks::of([]);
    let seeder = Node::new(store.clone()).await;
    let client = Node::new(MapBlocks::of([])).await;
    client.dial(&seeder).await;
    let wanted = cids(&blocks);
    let mut session = client.handle.session(wanted[0]);
    session.want(&wanted);
    assert!(silent(&mut session, Duration::from_millis(300)).await);
    blocks.iter().for_each(|block| store.put(block));
    seeder.handle.notify_blocks(&wanted);
    let mut got = 0;
    while got < wanted.len() {
        got += patient(next(&mut session)).await.len();
    }
    assert_eq!(got, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_root_is_offered_by_the_peer_that_has_it() {
    let blocks = leaves(1, 5_000);
    let seeder = Node::new(MapBlocks::of(&blocks)).await;
    let mut client = Node::new(MapBlocks::of([])).await;
    let root = *blocks[0].cid();
    client.handle.park(&root);
    client.dial(&seeder).await;
    let event = patient(client.events.recv()).await.unwrap();
    assert_eq!(event, Event::Offered { root, peer: seeder.peer });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_peers_providers_are_called_for() {
    let mut client = Node::new(MapBlocks::of([])).await;
    let root = *leaves(1, 10)[0].cid();
    let mut session = client.handle.session(root);
    session.want(&[root]);
    let event = patient(client.events.recv()).await.unwrap();
    assert_eq!(event, Event::NeedProviders { session: session.id(), root, cid: root });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_survives_a_disconnect() {
    let Pair { seeder, client, mut session, wanted } = Pair::over(&leaves(400, 50_000)).await;
    let (first, rest) = wanted.split_at(40);
    patient(fetch(&mut session, first)).await;
    session.want(&rest[..session.room().min(20)]);
    client.disconnect(seeder.peer).await;
    client.connected(0).await;
    client.dial(&seeder).await;
    // What came before the disconnect and was not taken yet is asked for again, and may come twice.
    let all = async {
        session.want(rest);
        let mut got = HashSet::new();
        while got.len() < rest.len() {
            got.extend(next(&mut session).await.iter().map(|block| *block.cid()));
        }
        got
    };
    assert_eq!(patient(all).await, rest.iter().copied().collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_moves_to_the_second_connection_when_the_first_closes() {
    let Pair { seeder, client, mut session, wanted } = Pair::over(&leaves(600, 50_000)).await;
    client.dial(&seeder).await;
    let (first, rest) = wanted.split_at(50);
    patient(fetch(&mut session, first)).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    session.want(&rest[..session.room()]);
    client.close_oldest().await;
    session.want(rest);
    let mut got = 0;
    while got < rest.len() {
        // Well below the 10 s after which a lost request is made again: nothing may wait for that.
        let next = tokio::time::timeout(Duration::from_secs(5), next(&mut session));
        got += next.await.expect("the second connection carries on").len();
    }
    assert_eq!(client.handle.stats().peers, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t10_egress_stays_at_its_cap() {
    let blocks = leaves(60, 50_000);
    let limit = EgressLimit { bytes_per_second: 1_000_000, burst_bytes: 500_000 };
    let config = Config { egress: Some(limit), ..Config::default() };
    let mut pair = Pair::with(config, &blocks).await;
    let clock = support::SystemClock::shared();
    let from = clock.monotonic();
    pair.fetch_all().await;
    let took = clock.monotonic() - from;
    // 3.0 MB less the burst and one answer that may go into debt take 1.95 s at least.
    assert!(took >= Duration::from_millis(1_850), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_with_the_behaviour() {
    let client = Node::new(MapBlocks::of([])).await;
    let mut session = client.handle.session(*leaves(1, 10)[0].cid());
    drop(client);
    let ended = std::future::poll_fn(|cx| session.poll_blocks(cx));
    assert!(patient(ended).await.is_err());
}
