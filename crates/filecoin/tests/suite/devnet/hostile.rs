//! Providers and nodes that send what nobody should: huge, half, turned, and lies. And secrets that must not be seen.

use std::sync::Mutex;

use floe_core::FailureCode;
use floe_core::cold::Market as _;
use floe_filecoin::market::mk12::{AskResponse, DealResponse, StorageAsk};
use floe_filecoin::messages::Journal as _;
use floe_filecoin::types::cbor::Cbor as _;
use floe_filecoin::types::{Address, Signature, SignatureKind};

use super::*;

/// A provider that answers everything with the same bytes.
async fn provider(body: Vec<u8>) -> Contact {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!("http://{}", listener.local_addr().unwrap());
    let app = axum::Router::new().fallback(move || std::future::ready(body.clone()));
    tokio::spawn(async move { axum::serve(listener, app).await });
    let at = ContactAddress { text, is_operators: true };
    Contact { provider: ActorId::new(1000), peer_id: None, addresses: vec![at] }
}

/// The bytes of a real ask, as the devnet's provider signs it.
async fn real_ask(world: &World) -> Vec<u8> {
    use floe_filecoin::market::mk12::AskRequest;
    use floe_filecoin::market::web::{Base, Question};
    let web = Web::new(Arc::new(Filter), clock()).unwrap();
    let base = Base::parse(&world.devnet.ready().providers[0].url, true).unwrap();
    let body = AskRequest { miner: Address::Id(1000) }.to_cbor();
    let question = Question { method: Method::GET, path: "/market/mk12/ask", body: &body };
    web.ask(&base, &question, Duration::from_secs(5)).await.unwrap()
}

/// T35: one bit of a signed ask is another; whatever it hits, the ask is refused, or it is the same ask.
#[tokio::test]
async fn t35_a_turned_bit_in_an_ask_is_found() {
    let world = World::start(&[Manner::Curio]).await;
    let good = real_ask(&world).await;
    let asked = AskResponse::from_cbor(&good).unwrap();
    let real = world.market.ask(&world.contact(0)).await.unwrap();
    for bit in 0..good.len() * 8 {
        let mut turned = good.clone();
        turned[bit / 8] ^= 1 << (bit % 8);
        if AskResponse::from_cbor(&turned).is_err() {
            continue;
        }
        let to = provider(turned).await;
        match world.market.ask(&to).await {
            Ok(ask) => assert_eq!(ask, real, "bit {bit}"),
            Err(fault) => assert_eq!(fault.code, FailureCode::SpProtocol, "bit {bit}: {fault}"),
        }
    }
    // Signed by another key, however cheap.
    let cheap = StorageAsk { price: AttoFil::new(1), ..asked.ask };
    let other = LocalKey::from_bytes(&[9; 32]).unwrap();
    let signature = other.sign(&cheap.to_cbor()).await.unwrap();
    let to = provider(AskResponse { ask: cheap, signature }.to_cbor()).await;
    let fault = world.market.ask(&to).await.unwrap_err();
    assert!(fault.text.contains("not signed by its worker"), "{fault}");
}

/// Documents that no provider sends, to every call: none is taken for an answer, and none is kept in memory.
#[tokio::test]
async fn t38_hostile_answers_of_providers_are_protocol_errors() {
    let world = World::start(&[Manner::Curio]).await;
    let terms = world.terms(0).await;
    let signed = world.signed(&terms).await;
    let whole = DealResponse { accepted: true, message: String::new() }.to_cbor();
    let long = DealResponse { accepted: true, message: "x".repeat(60_000) }.to_cbor();
    let zeros = Signature::new(SignatureKind::Secp256k1, vec![0; 65]).unwrap();
    for body in [
        Vec::new(),
        b"<html>404</html>".to_vec(),
        vec![0xff; 100],
        vec![0x9f; 10_000],
        vec![0x81; 200_000],
        whole[..whole.len() - 1].to_vec(),
        [whole.clone(), whole.clone()].concat(),
        [0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff].to_vec(),
        vec![0; 3 << 20],
        zeros.to_cbor(),
    ] {
        let to = provider(body.clone()).await;
        let head: Vec<u8> = body.iter().take(8).copied().collect();
        assert_eq!(code(world.market.propose(&to, &signed).await), Some(FailureCode::SpProtocol), "{head:?}");
        assert_eq!(code(world.market.ask(&to).await), Some(FailureCode::SpProtocol), "{head:?}");
        assert_eq!(
            code(world.market.status(&to, terms.uuid).await),
            Some(FailureCode::SpProtocol),
            "{head:?}"
        );
    }
    // A long text is cut before it goes anywhere.
    let refused = DealResponse { accepted: false, ..DealResponse::from_cbor(&long).unwrap() };
    let to = provider(refused.to_cbor()).await;
    let answer = world.market.propose(&to, &signed).await.unwrap();
    let floe_core::cold::Answer::Refused(fault) = answer else { panic!("{answer:?}") };
    assert!(fault.text.chars().count() <= Fault::MAX_TEXT + 1, "{}", fault.text.len());
}

/// A node that lies about what the money depends on.
#[tokio::test(flavor = "multi_thread")]
async fn t38_a_node_that_lies_about_money_is_not_believed() {
    let lie: Arc<Mutex<(&'static str, Value)>> = Arc::new(Mutex::new(("", Value::Null)));
    let world = World::start(&[Manner::Curio]).await;
    let signed = world.signed(&world.terms(0).await).await;
    let said = lie.clone();
    let node = world
        .node_before(move |method| {
            let said = said.lock().unwrap().clone();
            (said.0 == method).then_some(Reply::Result(said.1))
        })
        .await;
    let chain = chain_of(&node.lotus(), &world.key, &world.journal, &world.memory);
    let set = |method: &'static str, value: Value| *lie.lock().unwrap() = (method, value);
    chain.look().await.unwrap();
    chain.funds().await.unwrap();
    set("StateMarketBalance", json!({"Escrow": "1", "Locked": "2"}));
    assert_eq!(code(chain.funds().await), Some(FailureCode::ChainUnreachable), "more locked than there is");
    for amount in ["3000000000000000000000000000", "-1", "1e18", "340282366920938463463374607431768211456"] {
        set("StateMarketBalance", json!({"Escrow": amount, "Locked": "0"}));
        assert_eq!(code(chain.funds().await), Some(FailureCode::ChainUnreachable), "{amount}");
    }
    set("StateMarketStorageDeal", json!({"Proposal": {}, "State": {}}));
    assert_eq!(code(chain.deal(1, &signed).await), Some(FailureCode::ChainUnreachable));
    let event = |height: i64, client: u64| {
        let entry = |key: &str, cbor: Vec<u8>| json!({"Flags": 3, "Key": key, "Codec": 81, "Value": data_encoding::BASE64.encode(&cbor)});
        let mut kind = floe_filecoin::types::cbor::Writer::default();
        kind.text("deal-published");
        let number = |n: u64| {
            let mut to = floe_filecoin::types::cbor::Writer::default();
            to.uint(n);
            to.into_bytes()
        };
        json!([{"emitter": "f05", "reverted": false, "height": height, "tipsetKey": [], "msgCid": {"/": "bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg"},
            "entries": [entry("$type", kind.into_bytes()), entry("id", number(1)), entry("client", number(client)), entry("provider", number(1000))]}])
    };
    set("GetActorEventsRaw", event(3, 424_242));
    assert_eq!(
        code(chain.published(at(0), at(9)).await),
        Some(FailureCode::ChainUnreachable),
        "another's deal"
    );
    set("GetActorEventsRaw", event(12, 1));
    assert_eq!(
        code(chain.published(at(0), at(9)).await),
        Some(FailureCode::ChainUnreachable),
        "another height"
    );
    set("ChainHead", json!({"Cids": [], "Blocks": [], "Height": 3}));
    assert_eq!(code(chain.look().await), Some(FailureCode::ChainUnreachable));
    // The first nonce was the node's word: the message hung for good behind a million numbers that nobody fills.
    set("MpoolGetNonce", json!(1_000_003));
    chain.look().await.unwrap();
    let call = FundsCall::TopUp(AttoFil::new(5));
    assert_eq!(code(chain.send("first", &call).await), Some(FailureCode::Nonce));
    set("MpoolGetNonce", json!(33));
    assert_eq!(code(chain.send("first", &call).await), Some(FailureCode::Nonce));
    assert_eq!(node.count("MpoolPush"), 0);
    assert!(world.journal.unsettled(world.key.address()).await.unwrap().is_empty(), "nothing was signed");
    // It mends itself.
    set("", Value::Null);
    chain.send("first", &call).await.unwrap();
    assert_eq!(world.settled("first").await, MessageProgress::Final(Ok(())));
}

/// R17: neither the token nor the key is in a log, an error, or what is shown of the parts; also where the node repeats the
/// token in an error, which then stood in the log, in rows and in what `floe spending status` says.
#[tokio::test]
async fn r17_token_and_key_are_seen_nowhere() {
    let logs = Logs::default();
    let _guard = tracing::subscriber::set_default(logs.clone());
    let world = World::start(&[Manner::Curio]).await;
    let token = world.devnet.ready().token.clone();
    let secret = {
        let json = data_encoding::HEXLOWER.decode(world.devnet.ready().key.as_bytes()).unwrap();
        let key: Value = serde_json::from_slice(&json).unwrap();
        key["PrivateKey"].as_str().unwrap().to_owned()
    };
    let mut said = Vec::new();
    // The second is cut in the middle of the token, where half of it would be left.
    let repeated = format!("{}{token}", "x".repeat(Fault::MAX_TEXT - 9));
    for fault in [
        json!("down"),
        json!("half_body"),
        json!({"status": 401}),
        json!({"error": format!("bad token {token}: signature is invalid")}),
        json!({"error": repeated}),
        json!(null),
    ] {
        if fault.is_null() {
            world.node_faults(json!({})).await;
        } else {
            world.all_calls(fault).await;
        }
        said.push(format!("{:?}", world.chain.look().await));
        said.push(format!("{:?}", world.chain.send("x", &FundsCall::TopUp(AttoFil::new(1))).await));
        said.push(format!("{:?}", world.market.ask(&world.contact(0)).await));
        said.push(format!("{:?} {:?} {:?}", world.chain.status(), world.lotus, world.key));
    }
    let signed = world.signed(&world.terms(0).await).await;
    said.push(format!("{signed:?}"));
    said.push(logs.0.lock().unwrap().join("\n"));
    assert!(said.iter().any(|text| text.contains("the Lotus node answers")), "the log was listened to");
    for text in &said {
        assert!(!text.contains(&token) && !text.contains(&token[..9]), "{text}");
        assert!(!text.contains(&secret) && !text.contains(&world.devnet.ready().key), "{text}");
    }
}

/// Every line that this process logs, whatever its level.
#[derive(Clone, Default)]
struct Logs(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Logs {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl tracing::field::Visit for Line {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.push_str(&format!("{}={value:?} ", field.name()));
            }
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}
