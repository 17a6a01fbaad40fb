//! Deals from the proposal to the sector, over the ports.

use http::StatusCode;
use serde_json::json;

use super::client::{Asked, FUNDS, World, noise, send};
use super::*;
use crate::wire::{Cid, commp};

#[tokio::test]
async fn three_providers_pull_publish_seal_and_serve() {
    let world = World::start(&[Manner::Curio, Manner::Boost, Manner::Boost]).await;
    let paths = ["0", "1", "half-2"];
    let mut sent = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let params = world.proposal(n, path).await;
        world.store(n, &params).await.unwrap();
        sent.push(params);
    }
    for (n, path) in paths.iter().enumerate() {
        let book = world.transferred(n).await;
        assert!(book["error"].is_null(), "{book}");
        pulled(&world, path, &book);
    }

    let mut cost = 0;
    for (n, params) in sent.iter().enumerate() {
        let id = world.published(n).await;
        let since = world.active(id).await;
        let proposal = &params.deal.proposal;
        assert!(since <= proposal.start);
        let shown = world.call("StateMarketStorageDeal", json!([id, []])).await;
        // The chain stores ids: all else is what was signed.
        let client = world.call("StateLookupID", json!([proposal.client, []])).await;
        let mut wanted = proposal.json();
        wanted["Client"] = client;
        assert_eq!(shown["Proposal"], wanted);
        assert_eq!(shown["State"]["SlashEpoch"], -1);
        cost += proposal.client_requirement();
        // Curio tells the id when all is done; Boost one epoch after the publication.
        let status = world.status(n).await.unwrap().status.unwrap();
        assert_eq!((status.chain_deal_id, &status.proposal), (id, proposal));
        assert_eq!(status.signed_proposal_cid, params.deal.cid());
        assert_eq!(status.status, if n == 0 { "Sealed" } else { "IndexedAndAnnounced" });
        let (_, locked) = world.balance(&world.miner(n)).await;
        assert_eq!(locked, proposal.provider_collateral);
        let url = format!("{}/piece/{}", world.devnet.ready().providers[n].url, world.piece);
        let (status, body) = send("GET", &url, ("text/plain", None), Vec::new()).await.unwrap();
        assert_eq!((status, body), (StatusCode::OK.as_u16(), world.car.clone()));
    }
    assert_eq!(world.balance(&world.devnet.ready().client).await, (FUNDS, cost));
}

/// HEAD, then ranges, each with the header of the deal; every byte, and from where it broke off.
fn pulled(world: &World, path: &str, book: &Value) {
    let asked = world.asked(path);
    let token = Some(format!("Bearer of {path}"));
    let size = world.car.len();
    let first = |method: &str, range: Option<&str>, bytes| Asked {
        path: path.into(),
        method: method.into(),
        range: range.map(str::to_owned),
        token: token.clone(),
        status: if range.is_some() { 206 } else { 200 },
        bytes,
    };
    assert_eq!(asked[0], first("HEAD", None, 0));
    assert_eq!(asked[1], first("GET", Some("bytes=0-"), size));
    if path.starts_with("half") {
        let at: usize = size / 2;
        assert_eq!(asked[2..], [first("GET", Some(&format!("bytes={at}-")), size - at)]);
    } else {
        assert_eq!(asked.len(), 2);
    }
    assert_eq!(book["received"], size);
    assert_eq!(book["pulls"].as_array().unwrap().len(), asked.len());
}

/// A second proposal with the same identity must not make a second deal, whatever the provider says of it.
#[tokio::test]
async fn a_proposal_sent_twice_is_one_deal() {
    let world = World::start(&[Manner::Curio, Manner::Boost]).await;
    for (n, text) in [(0, "market deal with the same proposalCID"), (1, "deal has the same uuid as deal")] {
        world.script(n, json!({"lose_reply": true})).await;
        let params = world.proposal(n, &n.to_string()).await;
        assert_eq!(world.store(n, &params).await, Err("no answer".into()));
        world.script(n, json!({})).await;
        let refusal = world.store(n, &params).await.unwrap_err();
        assert!(refusal.starts_with(text), "{refusal}");
        world.transferred(n).await;
        let id = world.published(n).await;
        world.active(id).await;
    }
    assert_eq!(world.control("GET", "/deals", json!(null)).await["published"], 2);
}

/// From 10 MiB on, five ranges at once; the last ends one byte past the end, which a server must bear.
#[tokio::test]
async fn a_large_piece_is_pulled_in_five_ranges() {
    let world = large(&[Manner::Boost]).await;
    world.deal(0).await;
    let book = world.transferred(0).await;
    assert!(book["error"].is_null(), "{book}");
    let asked = world.asked("0");
    assert_eq!((asked[0].method.as_str(), &asked[0].range), ("HEAD", &None));
    let mut ranges: Vec<(usize, usize)> = asked[1..].iter().map(range).collect();
    ranges.sort_unstable();
    let size = world.car.len();
    assert_eq!(ranges.len(), 5);
    assert!(ranges.windows(2).all(|pair| pair[0].1 + 1 == pair[1].0), "{ranges:?}");
    assert_eq!((ranges[0].0, ranges[4].1), (0, size), "one past the last byte");
    assert!(asked[1..].iter().all(|asked| asked.status == 206));
    let id = world.published(0).await;
    world.active(id).await;
}

/// A server that answers 200 to a range corrupts the data in silence: only CommP finds it.
#[tokio::test]
async fn a_200_to_a_range_corrupts() {
    let world = large(&[Manner::Boost]).await;
    let params = world.proposal(0, "whole").await;
    world.store(0, &params).await.unwrap();
    let book = world.transferred(0).await;
    assert!(book["error"].as_str().unwrap().starts_with("commp mismatch"), "{book}");
    assert_eq!(book["received"], world.car.len(), "as many bytes as there should be");
}

/// A 4xx ends the transfer for good; a 5xx is tried again.
#[tokio::test]
async fn a_4xx_ends_a_transfer_and_a_5xx_does_not() {
    let world = World::start(&[Manner::Boost, Manner::Boost]).await;
    for (n, path) in [(0, "gone"), (1, "busy")] {
        let params = world.proposal(n, path).await;
        world.store(n, &params).await.unwrap();
        let book = world.transferred(n).await;
        let statuses: Vec<u16> = world.asked(path).iter().map(|asked| asked.status).collect();
        if n == 0 {
            assert_eq!(book["error"], "data-transfer failed: http req failed: code: 404");
            assert_eq!(statuses, [200, 404], "asked once, and never again");
        } else {
            assert!(book["error"].is_null(), "{book}");
            assert_eq!(statuses, [200, 503, 503, 503, 206]);
        }
    }
    world.step(5).await;
    assert_eq!(world.asked("gone").len(), 2);
    assert_eq!(world.book(0).await["publish"], Value::Null);
}

/// A client with a CAR that is pulled in parts.
async fn large(manners: &[Manner]) -> World {
    let config = Config {
        providers: manners.len(),
        manners: manners.to_vec(),
        epoch: None,
        sector_size: 32 << 20,
        stall: Duration::from_secs(30),
        ..Config::default()
    };
    World::with(config, noise(3 << 20)).await
}

fn range(asked: &Asked) -> (usize, usize) {
    let (first, last) =
        asked.range.as_deref().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

/// A piece is served once it is in a sector, whole or in part, under both forms of its CID.
#[tokio::test]
async fn pieces_are_served_with_ranges() {
    let world = World::start(&[Manner::Curio]).await;
    let base = format!("{}/piece", world.devnet.ready().providers[0].url);
    let url = format!("{base}/{}", world.piece);
    world.deal(0).await;
    world.transferred(0).await;
    let get = async |url: &str, range: Option<&'static str>| fetch(url, range).await;
    assert_eq!(get(&url, None).await.0, 404, "it is not sealed yet");
    let id = world.published(0).await;
    world.active(id).await;
    let size = world.car.len();
    for (range, wanted) in [
        (None, 0..size),
        (Some("bytes=0-0"), 0..1),
        (Some("bytes=100-199"), 100..200),
        (Some("bytes=-10"), size - 10..size),
        (Some("bytes=80000-999999999"), 80_000..size),
    ] {
        let (status, body, content_range) = get(&url, range).await;
        assert_eq!(status, if range.is_some() { 206 } else { 200 });
        let told = format!("bytes {}-{}/{size}", wanted.start, wanted.end - 1);
        assert_eq!(content_range, range.map(|_| told));
        assert_eq!(body, world.car.slice(wanted));
    }
    assert_eq!(get(&url, Some("bytes=999999999-")).await.0, 416);
    let v2 = piece_v2(&world);
    assert_eq!(get(&format!("{base}/{v2}"), None).await, (200, world.car.clone(), None));
    assert_eq!(get(&format!("{base}/bafkqaaa"), None).await.0, 400);
    let other = commp::piece_cid(&[7; 32]);
    assert_eq!(get(&format!("{base}/{other}"), None).await.0, 404);
}

/// FRC-0069, written out: padding as a varint, the tree's height, the root.
fn piece_v2(world: &World) -> Cid {
    let padding = world.piece_size / 128 * 127 - world.car.len() as u64;
    let mut digest = Vec::new();
    let mut left = padding;
    while left >= 0x80 {
        digest.push((left & 0x7f) as u8 | 0x80);
        left >>= 7;
    }
    digest.push(left as u8);
    digest.push((world.piece_size / 32).ilog2() as u8);
    digest.extend(commp::root_of(&world.piece).unwrap());
    Cid::new_v1(0x55, crate::wire::Multihash::wrap(0x1011, &digest).unwrap())
}

/// Status, body and Content-Range of a GET.
pub(super) async fn fetch(url: &str, range: Option<&str>) -> (u16, Bytes, Option<String>) {
    let (authority, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let stream = TcpStream::connect(authority).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request = Request::builder().uri(format!("/{path}")).header("host", authority);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let response = sender.send_request(request.body(Full::new(Bytes::new())).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let told = response.headers().get("content-range").map(|told| told.to_str().unwrap().to_owned());
    (status, response.into_body().collect().await.unwrap().to_bytes(), told)
}
