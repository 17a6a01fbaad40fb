//! The pull listener as storage providers meet it. What they do is from recordings and sources of theirs (filecoin.md, «The
//! pull server»).

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use floe_core::cold::{DealUuid, SignedDeal};
use floe_core::spending::Caps;
use floe_core::{AccountId, ActorId, AggregateState, AttoFil, Block, Epoch, PolicyChoice, cid::code};
use floe_engine::cold::PullKey;
use floe_engine::{PinSpec, Scope};
use floe_records::cold::{AggregateRow, Chosen, NewDeal};
use reqwest::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, RANGE, RETRY_AFTER,
};
use reqwest::{Method, Response};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{World, node};

const KEY: [u8; 32] = [9; 32];
const HEAD: Epoch = Epoch::new(10);
const START: Epoch = Epoch::new(100);

struct Provider {
    world: World,
    http: reqwest::Client,
    row: AggregateRow,
    deal: DealUuid,
    url: String,
    blocks: Vec<Block>,
}

impl Provider {
    /// A deal whose signed bytes went out, for a piece with one pin in it.
    async fn new() -> Self {
        let world = World::with_pulls(PullKey::new(KEY)).await;
        let blocks = pinned(&world).await;
        let row = packed(&world).await;
        let deal = proposed(&world, &row).await;
        let base = format!("http://{}", world.server.pull_addr().unwrap());
        let url = PullKey::new(KEY).url(&base, deal);
        Self { world, http: reqwest::Client::new(), row, deal, url, blocks }
    }

    async fn ask(&self, method: Method, range: Option<&str>) -> Response {
        let mut request = self.http.request(method, &self.url);
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        request.send().await.unwrap()
    }

    async fn get(&self, range: Option<&str>) -> (u16, HeaderMap, Bytes) {
        let response = self.ask(Method::GET, range).await;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        (status, headers, response.bytes().await.unwrap())
    }

    async fn whole(&self) -> Bytes {
        let (status, _, bytes) = self.get(None).await;
        assert_eq!((status, bytes.len() as u64), (200, self.row.car_bytes));
        bytes
    }
}

async fn pinned(world: &World) -> Vec<Block> {
    let leaves: Vec<Block> = (0..5u8)
        .map(|n| Block::of(code::RAW, (0..40_000u32).map(|i| (i / 7) as u8 ^ n).collect()).unwrap())
        .collect();
    let root = node(&leaves.iter().map(|leaf| *leaf.cid()).collect::<Vec<_>>());
    let blocks: Vec<Block> = leaves.into_iter().chain([root.clone()]).collect();
    world.peers.have(&blocks);
    let (_, token) = world.engine.create_token("default", &[Scope::PinsWrite], None).await.unwrap();
    let who = world.engine.authenticate(&token).await.unwrap().unwrap();
    let spec = PinSpec {
        cid_text: root.cid().to_string(),
        cid: *root.cid(),
        name: None,
        origins: Vec::new(),
        meta: BTreeMap::new(),
        policy: PolicyChoice { name: "gold".to_owned(), replicas: 2 },
    };
    world.engine.add_pins(&who, vec![spec], true, None).await.unwrap();
    blocks
}

async fn packed(world: &World) -> AggregateRow {
    for _ in 0..3_000 {
        let packed = world.records.aggregates(&[AggregateState::Packed], None, 9).await.unwrap();
        if let Some(row) = packed.into_iter().next() {
            return row;
        }
        world.clock.advance(Duration::from_millis(500));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it is not packed");
}

async fn proposed(world: &World, row: &AggregateRow) -> DealUuid {
    world.records.switch_spending(true, "a test").await.unwrap();
    let new = NewDeal {
        wallet: "f1wallet".to_owned(),
        aggregate: row.id,
        slot: 0,
        provider: ActorId::new(1_000),
        owner: ActorId::new(2_000),
        policy: row.policy.clone(),
        piece: row.piece.unwrap(),
        size: row.size.unwrap(),
        car_bytes: row.car_bytes,
        root: row.root.unwrap(),
        ipni: true,
        price: AttoFil::new(1),
        collateral: AttoFil::ZERO,
        head: HEAD,
        start: START,
        end: Epoch::new(600_000),
        weights: BTreeMap::from([(AccountId(1), 1)]),
    };
    let most = AttoFil::new(1 << 60);
    let caps = Caps { deal: most, account_day: most, day: most, lifetime: most };
    let Chosen::Deal(chosen) = world.records.choose_deal(new, &caps).await.unwrap() else {
        panic!("not chosen")
    };
    let signed = SignedDeal { bytes: vec![1, 2, 3], signed_cid: row.root.unwrap() };
    world.records.store_signed(chosen.uuid, signed).await.unwrap();
    let now = floe_core::Timestamp::from_millis(1_780_000_000_000);
    assert!(world.records.begin_sending(chosen.uuid, HEAD, now).await.unwrap().is_some());
    chosen.uuid
}

fn number(headers: &HeaderMap, name: reqwest::header::HeaderName) -> u64 {
    headers[name].to_str().unwrap().parse().unwrap()
}

/// Boost: HEAD, then five ranges at once, the last of which ends a byte behind the end.
#[tokio::test]
async fn a_provider_pulls_the_piece_as_boost_does() {
    let provider = Provider::new().await;
    let head = provider.ask(Method::HEAD, None).await;
    assert_eq!(head.status(), 200);
    let len = number(head.headers(), CONTENT_LENGTH);
    assert_eq!(len, provider.row.car_bytes);
    assert_eq!(head.headers()[ACCEPT_RANGES], "bytes");
    let etag = head.headers()[ETAG].clone();
    assert_eq!(etag, format!("\"{}\"", provider.row.piece.unwrap()));
    assert!(head.bytes().await.unwrap().is_empty());

    let each = len / 5;
    let ranges: Vec<(u64, u64)> =
        (0..5).map(|n| (n * each, if n == 4 { len } else { (n + 1) * each - 1 })).collect();
    let pulls = ranges.iter().map(|(from, to)| {
        let range = format!("bytes={from}-{to}");
        let provider = &provider;
        async move { provider.get(Some(&range)).await }
    });
    let mut pulled = Vec::new();
    for ((status, headers, bytes), (from, to)) in
        futures::future::join_all(pulls).await.into_iter().zip(&ranges)
    {
        assert_eq!(status, 206);
        let end = (*to).min(len - 1);
        assert_eq!(headers[CONTENT_RANGE], format!("bytes {from}-{end}/{len}"));
        assert_eq!(number(&headers, CONTENT_LENGTH), bytes.len() as u64);
        assert_eq!(headers[ETAG], etag);
        pulled.extend_from_slice(&bytes);
    }
    assert_eq!(pulled, provider.whole().await);
    // What we sent is in our own log: providers do not say it.
    for _ in 0..1_000 {
        if provider.world.records.deal(provider.deal).await.unwrap().is_pulled {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the pull is not noted");
}

#[tokio::test]
async fn ranges_are_cut_to_what_there_is_and_never_ignored() {
    let provider = Provider::new().await;
    let whole = provider.whole().await;
    let len = whole.len();
    for (range, from, to) in [
        ("bytes=0-0".to_owned(), 0, 1),
        ("bytes=-300".to_owned(), len - 300, len),
        (format!("bytes={}-", len - 7), len - 7, len),
        (format!("bytes=1000-{}", len + 1_000_000), 1_000, len),
        (format!("bytes=-{}", 2 * len), 0, len),
    ] {
        let (status, _, bytes) = provider.get(Some(&range)).await;
        assert_eq!((status, &bytes[..]), (206, &whole[from..to]), "{range}");
    }
    for range in [format!("bytes={len}-"), "bytes=5-4".into(), "bytes=0-1,5-6".into(), "bytes=x".into()] {
        let (status, headers, _) = provider.get(Some(&range)).await;
        // A 200 would be taken for the range, and a 416 is the end of the deal.
        assert_eq!(status, 503, "{range}");
        assert!(headers.contains_key(RETRY_AFTER), "{range}");
        assert_eq!(headers[CONTENT_RANGE], format!("bytes */{len}"));
    }
    // Who goes on with something else gets all of this.
    let other = provider.http.get(&provider.url).header(RANGE, "bytes=5-9").header(IF_RANGE, "\"other\"");
    assert_eq!(other.send().await.unwrap().status(), 200);
    let same = format!("\"{}\"", provider.row.piece.unwrap());
    let same = provider.http.get(&provider.url).header(RANGE, "bytes=5-9").header(IF_RANGE, same);
    assert_eq!(same.send().await.unwrap().bytes().await.unwrap(), &whole[5..10]);
}

#[tokio::test]
async fn only_the_url_of_a_live_deal_is_answered() {
    let provider = Provider::new().await;
    let base = format!("http://{}", provider.world.server.pull_addr().unwrap());
    let signed_by_others = PullKey::new([1; 32]).url(&base, provider.deal);
    let unknown = PullKey::new(KEY).url(&base, DealUuid(uuid::Uuid::from_u128(7)));
    let cut = &provider.url[..provider.url.len() - 1];
    for url in
        [signed_by_others.as_str(), &unknown, cut, &base, &format!("{base}/pins"), &format!("{base}/metrics")]
    {
        assert_eq!(provider.http.get(url).send().await.unwrap().status(), 404, "{url}");
    }
    assert_eq!(provider.http.post(&provider.url).send().await.unwrap().status(), 405);
    // Whatever name it is reached by: a proxy may stand before it.
    let named = provider.http.get(&provider.url).header("host", "pull.example.org");
    assert_eq!(named.send().await.unwrap().status(), 200);
    // The API's listener has nothing of it.
    let path = provider.url.strip_prefix(&base).unwrap();
    assert_eq!(
        provider.http.get(format!("{}{path}", provider.world.base())).send().await.unwrap().status(),
        404
    );
    // Past its start nobody needs it any more.
    provider.world.records.note_head(START).await.unwrap();
    assert_eq!(provider.ask(Method::GET, None).await.status(), 410);
    assert_eq!(provider.ask(Method::HEAD, None).await.status(), 410);
}

/// Any 4xx is the end of the deal for Boost.
#[tokio::test]
async fn trouble_of_ours_is_a_503_for_a_live_deal() {
    let provider = Provider::new().await;
    let whole = provider.whole().await;
    let bad = &provider.blocks[2];
    let at = whole.windows(bad.data().len()).position(|some| some == &bad.data()[..]).unwrap();
    flip(provider.world.dir.path(), bad);
    let (status, headers, body) = provider.get(Some(&format!("bytes={}-{}", at + 10, at + 20))).await;
    assert_eq!((status, number(&headers, RETRY_AFTER)), (503, 30), "{body:?}");
    // What is whole is still sent.
    let (status, _, bytes) = provider.get(Some(&format!("bytes=0-{}", at - 1))).await;
    assert_eq!((status, &bytes[..]), (206, &whole[..at]));
    assert_eq!(provider.ask(Method::HEAD, None).await.status(), 200);
    // The healer fetches it again from who has it.
    for _ in 0..2_000 {
        provider.world.clock.advance(Duration::from_millis(100));
        if provider.get(None).await == (200, provider.get(None).await.1, whole.clone()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it is not mended");
}

/// A request on a connection of its own that takes little of the answer. Its head, and the connection, which keeps it open.
async fn asked(provider: &Provider, method: &str) -> (String, TcpStream) {
    let addr = provider.world.server.pull_addr().unwrap();
    let path = provider.url.strip_prefix(&format!("http://{addr}")).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let mut stream = socket.connect(addr).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: pull.example.org\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        heard.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(heard).unwrap().to_lowercase(), stream)
}

/// Asks again and again, and lets go of nothing, until it is refused: how often it was answered before that. The refusal is
/// one after which a provider comes back.
async fn until_refused(provider: &Provider, method: &str, held: &mut Vec<TcpStream>) -> usize {
    for answered in 0..100 {
        let (head, stream) = asked(provider, method).await;
        held.push(stream);
        if !head.starts_with("http/1.1 200") {
            assert!(head.starts_with("http/1.1 503"), "{head}");
            assert!(head.contains("\r\nretry-after: 30\r\n"), "{head}");
            return answered;
        }
    }
    panic!("it is never too much");
}

/// A 429 is a 4xx, and any of these ends a transfer of Boost's for good: where seats or connections are taken it is told to
/// come back.
#[tokio::test]
async fn a_provider_that_finds_all_places_taken_is_told_to_come_back() {
    let provider = Provider::new().await;
    let mut held = Vec::new();
    let pulls = until_refused(&provider, "GET", &mut held).await;
    assert!(pulls >= 10, "two times five ranges fit: {pulls}");
    // Who asks how much there is takes no seat, but a connection.
    until_refused(&provider, "HEAD", &mut held).await;
    assert!(held.len() > 50, "{} connections", held.len());
    drop(held);
    for _ in 0..500 {
        if provider.ask(Method::GET, None).await.status() == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the places are not given back");
}

/// A 404 ended the transfer of a deal that the rows of a backup did not know.
#[tokio::test]
async fn t43_a_signed_url_that_restored_rows_do_not_know_is_a_503() {
    let provider = Provider::new().await;
    let base = format!("http://{}", provider.world.server.pull_addr().unwrap());
    let unknown = PullKey::new(KEY).url(&base, DealUuid(uuid::Uuid::from_u128(7)));
    let foreign = PullKey::new([1; 32]).url(&base, DealUuid(uuid::Uuid::from_u128(7)));
    provider.world.records.mark_restored("a backup was restored").await.unwrap();
    for method in [Method::HEAD, Method::GET] {
        let answer = provider.http.request(method, &unknown).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), number(answer.headers(), RETRY_AFTER)), (503, 30));
    }
    assert_eq!(provider.http.get(&foreign).send().await.unwrap().status(), 404, "nobody signed that");
    assert_eq!(provider.ask(Method::HEAD, None).await.status(), 200, "what they know is sent");
    provider.world.records.restore_settled("the operator").await.unwrap();
    assert_eq!(provider.http.get(&unknown).send().await.unwrap().status(), 404);
}

/// Turns a bit of a block on the disk, behind the store's back.
fn flip(dir: &std::path::Path, block: &Block) {
    use std::os::unix::fs::FileExt as _;
    let mut todo = vec![dir.join("blocks-1/packs")];
    let mut flipped = 0;
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(block.data().len()).position(|some| some == &block.data()[..]);
            let Some(at) = found else { continue };
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[at] ^ 1], at as u64).unwrap();
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1, "the block is stored once");
}
