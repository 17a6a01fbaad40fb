//! The client against recorded answers of a real Lotus v1.36.0, and against nodes that are broken or lie.

use std::time::Duration;

use floe_core::{Clock as _, ManualClock, Timestamp};
use floe_filecoin::chain::{Chain, ChainError, HeadMove, HeadTracker, NetworkPin, Rules};
use floe_filecoin::rpc::answers::HeadChangeKind;
use floe_filecoin::rpc::{Fault, HeadChanges, Lotus, METHODS, NotifyError, Permission, RpcError};
use floe_filecoin::types::{Address, AttoFil, Epoch, Message, PaddedSize, SignedMessage, TipSetKey};
use serde_json::{Value, json};

use crate::node::{Node, Reply, Socket, recorded_calls, replay};
use crate::recordings::recorded;

const HEAD: &TipSetKey = &TipSetKey::HEAD;
const CLIENT: &str = "f3w27lmvh35ysezgggzctk57bkvwx7twqk67jbjjfcx5k3kgfu3ugudc7skynnlsbzicxzc4rn5sfrz7kzchgq";
const PUBLISH: &str = "bafy2bzacechzmrn7np64qptzq5wxoop2sb66k42np4vp4fptoozftb5l2ioyk";
const NEVER_SEEN: &str = "bafy2bzacec4bhcf4rdsrqcy3dtt3fjpwd4mejhhwuqdvgdw4wp4nkdlu5ulkw";
const NEW_KEY: &str = "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy";
const ABSENT_KEY: &str = "f1abjxfbp274xpdqcpuaykwkfb43omjotacm2p3za";

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

fn atto(text: &str) -> AttoFil {
    text.parse().unwrap()
}

fn params(label: &str) -> Value {
    recorded_calls().into_iter().find(|call| call.label == label).unwrap().params
}

#[tokio::test]
async fn recorded_chain_answers_are_read() {
    let node = replay().await;
    let lotus = node.lotus();
    let version = lotus.version().await.unwrap();
    assert_eq!((version.version.as_str(), version.block_delay), ("1.36.0+mainnet", 30));
    assert_eq!(lotus.network_name().await.unwrap(), "testing");
    assert_eq!(lotus.network_version(HEAD).await.unwrap(), 28);
    let head = lotus.head().await.unwrap();
    assert_eq!(head.height, Epoch::new(96));
    assert_eq!(lotus.tipset(&head.key).await.unwrap(), head);
    assert_eq!(lotus.tipset_at(Epoch::new(5), HEAD).await.unwrap().height, Epoch::new(5));
    let future = lotus.tipset_at(Epoch::new(1_000_000_000), HEAD).await.unwrap_err();
    assert_eq!(future.fault(), Some(Fault::NoSuchHeight));
    let young = lotus.finalized().await.unwrap_err();
    assert!(young.to_string().contains("height -804 is negative"), "{young}");
    let pin = NetworkPin::of(&lotus).await.unwrap();
    assert_eq!(pin.genesis.to_string(), "bafy2bzaceatrhvi4kcmf2b2dswpqhzkltxv3rwdnr7kaxxybmueu7qs5nfdkq");
    assert_eq!(node.authorization().unwrap(), "Bearer a-token");
}

#[tokio::test]
async fn recorded_answers_about_providers_are_read() {
    let lotus = replay().await.lotus();
    let miner = address("f01000");
    let info = lotus.miner_info(&miner, HEAD).await.unwrap().unwrap();
    assert_eq!((info.owner, info.worker, info.sector_size), (address("f0102"), address("f0102"), 8_388_608));
    assert_eq!(info.peer_id.unwrap(), "12D3KooWR3v2dbqeuJ9VJAsrCTMK8KiD5f3rWchY1kbCgFUTWujt");
    assert!(info.multiaddrs.is_empty());
    assert_eq!(lotus.miner_info(&address("f09999999"), HEAD).await, Ok(None));
    let account = lotus.miner_info(&address(CLIENT), HEAD).await.unwrap_err();
    assert_eq!(account.fault(), Some(Fault::NotAMiner));
    let power = lotus.miner_power(&miner, HEAD).await.unwrap();
    assert_eq!((power.miner_power.raw_byte_power, power.has_min_power), (16_777_216, true));
    assert_eq!(lotus.miner_faults(&miner, HEAD).await.unwrap(), [0]);
    let sector = lotus.sector(&miner, 3, HEAD).await.unwrap().unwrap();
    assert_eq!((sector.activation, sector.expiration), (Epoch::new(65), Epoch::new(607_855)));
    assert_eq!(lotus.sector(&miner, 9_999, HEAD).await, Ok(None));
    assert_eq!(lotus.sector_expiration(&miner, 3, HEAD).await.unwrap().on_time, Epoch::new(608_457));
}

#[tokio::test]
async fn recorded_market_answers_are_read() {
    let lotus = replay().await.lotus();
    let balance = lotus.market_balance(&address(CLIENT), HEAD).await.unwrap();
    assert_eq!(balance.free(), Ok(atto("3999998963168377600")));
    let stranger = lotus.market_balance(&address("f0999999"), HEAD).await.unwrap();
    assert!(stranger.escrow.is_zero(), "an unknown client has zeros");
    let deal = lotus.deal(2, HEAD).await.unwrap().unwrap();
    assert!(deal.state.is_active());
    assert_eq!(deal.proposal.client, address("f01002"), "the chain has the id and not the key");
    assert_eq!(lotus.deal(10_000_000, HEAD).await, Ok(None));
    let bounds = lotus.collateral_bounds(PaddedSize::from_bytes(4_194_304).unwrap(), HEAD).await.unwrap();
    assert_eq!((bounds.min, bounds.max), (AttoFil::ZERO, atto("2000000000000000000000000000")));
    let signed = "bafyreihfvm3e66uh45ngcvbwv7cwo7v23gzl5ulwpotznnegibcpl6nnxu".parse().unwrap();
    assert_eq!(lotus.proposal_pending(&signed, HEAD).await, Ok(false));
}

#[tokio::test]
async fn recorded_answers_about_accounts_are_read() {
    let lotus = replay().await.lotus();
    assert_eq!(lotus.lookup_id(&address(CLIENT), HEAD).await, Ok(Some(address("f01002"))));
    assert_eq!(lotus.account_key(&address("f01002"), HEAD).await, Ok(Some(address(CLIENT))));
    let actor = lotus.actor(&address(CLIENT), HEAD).await.unwrap().unwrap();
    assert_eq!((actor.nonce, actor.balance), (1, atto("4999917885019312056")));
    assert_eq!(lotus.actor(&address("f0999999"), HEAD).await, Ok(None));
    assert_eq!(lotus.wallet_list().await.unwrap().len(), 5);
    assert!(lotus.wallet_has(&address(CLIENT)).await.unwrap());
    assert!(!lotus.wallet_has(&address(ABSENT_KEY)).await.unwrap());
    assert_eq!(lotus.wallet_balance(&address(CLIENT)).await, Ok(atto("4999917885019312056")));
    assert!(matches!(lotus.wallet_default().await.unwrap(), Address::Bls(_)));
    let signature = lotus.wallet_sign(&address(NEW_KEY), b"hello").await.unwrap();
    assert_eq!(floe_filecoin::signer::recover(b"hello", &signature), Some(address(NEW_KEY)));
    assert!(lotus.wallet_verify(&address(NEW_KEY), b"hello", &signature).await.unwrap());
    assert!(!lotus.wallet_verify(&address(NEW_KEY), b"helloo", &signature).await.unwrap());
    let absent = lotus.wallet_sign(&address(ABSENT_KEY), b"hello").await.unwrap_err();
    assert_eq!(absent.fault(), Some(Fault::KeyNotFound));
    // The recorded nonce of a key that is new: an error whose meaning is 0.
    assert_eq!(lotus.mpool_nonce(&address(NEW_KEY)).await, Ok(0));
}

#[tokio::test]
async fn recorded_answers_about_messages_are_read() {
    let lotus = replay().await.lotus();
    let (publish, never) = (PUBLISH.parse().unwrap(), NEVER_SEEN.parse().unwrap());
    let found = lotus.search_message(HEAD, &publish, -1).await.unwrap().unwrap();
    assert_eq!((found.height, found.receipt.exit_code, found.message), (Epoch::new(21), 0, publish));
    assert_eq!(data_encoding::BASE64.encode(&found.receipt.result), "goECQQw=");
    assert_eq!(lotus.search_message(HEAD, &never, 10).await, Ok(None), "a message that nobody ever saw");
    let pending = "bafy2bzaceayyjdj3r7px743vjlhjma7jjaq55pn3jgkdby7ddrzuz5hy74czs".parse().unwrap();
    assert_eq!(lotus.search_message(HEAD, &pending, 100).await, Ok(None), "a message that waits");
    assert_eq!(lotus.wait_message(&publish, 1, -1).await.unwrap().height, Epoch::new(21));
    assert_eq!(lotus.message(&publish).await.unwrap().unwrap().cid(), publish);
    assert_eq!(lotus.message(&never).await, Ok(None));
    assert_eq!(lotus.mpool_pending().await.unwrap()[0].message.nonce, 3);
    let call: Message = serde_json::from_value(params("GasEstimateMessageGas")[0].clone()).unwrap();
    let estimated = lotus.estimate_gas(&call, atto("1000000000000")).await.unwrap();
    assert!(estimated.same_call(&call) && estimated.gas_limit == 7_115_073);
    let unknown = serde_json::from_value(params("GasEstimateMessageGas sender unknown")[0].clone()).unwrap();
    let unknown = lotus.estimate_gas(&unknown, atto("1000000000000")).await.unwrap_err();
    assert_eq!(unknown.fault(), Some(Fault::ActorNotFound));
}

#[tokio::test]
async fn recorded_refusals_of_the_pool_are_told_apart() {
    let lotus = replay().await.lotus();
    let push = async |label: &str| {
        let message: SignedMessage = serde_json::from_value(params(label)[0].clone()).unwrap();
        lotus.mpool_push(&message).await.map_err(|e| e.fault())
    };
    let pushed = push("MpoolPush").await.unwrap();
    let message: SignedMessage = serde_json::from_value(params("MpoolPush")[0].clone()).unwrap();
    assert_eq!(pushed, message.cid(), "the node answers with the CID of the signed message");
    assert_eq!(push("MpoolPush signature does not match").await, Err(Some(Fault::BadSignature)));
    assert_eq!(push("MpoolPush same nonce, no fee bump").await, Err(Some(Fault::PremiumTooLow)));
    assert_eq!(push("MpoolPush nonce too low").await, Err(Some(Fault::NonceTooLow)));
    assert!(push("MpoolPush nonce gap").await.is_ok(), "a gap is taken, and hangs in silence");
    // The same bytes a second time: recorded under the same parameters as the first.
    let again =
        recorded_calls().into_iter().find(|call| call.label == "MpoolPush same message again").unwrap();
    let node = Node::start(move |_, _| Reply::Raw(200, again.response_text())).await;
    assert_eq!(node.lotus().mpool_push(&message).await.unwrap_err().fault(), Some(Fault::NonceExists));
}

/// Unknown methods, wrong counts and wrong types come as HTTP 500 with a body: jsonrpsee alone says "rejected 500".
#[tokio::test]
async fn the_body_of_an_http_500_is_read() {
    for label in ["unknown method", "too few params", "too many params", "param of wrong type", "bad address"]
    {
        let call = recorded_calls().into_iter().find(|call| call.label == label).unwrap();
        let node = Node::start(move |_, _| Reply::Raw(500, call.response_text())).await;
        let error = node.lotus().head().await.unwrap_err();
        match label {
            "unknown method" => assert!(matches!(error, RpcError::UnknownMethod { .. }), "{error}"),
            _ => assert!(matches!(&error, RpcError::BadCall { .. }), "{error}"),
        }
        assert!(!error.is_lost_reply());
    }
}

#[tokio::test]
async fn a_node_with_the_old_deal_calls_is_noticed() {
    let reply = |status, body: &str| {
        let body = body.to_owned();
        Node::start(move |_, _| Reply::Raw(status, body.clone()))
    };
    let absent = r#"{"error":{"code":-32601,"message":"method 'Filecoin.ClientListImports' not found"},"id":"ID","jsonrpc":"2.0"}"#;
    assert_eq!(reply(500, absent).await.lotus().offers_client_calls().await, Ok(Some(false)));
    let present = r#"{"id":"ID","jsonrpc":"2.0","result":[]}"#;
    assert_eq!(reply(200, present).await.lotus().offers_client_calls().await, Ok(Some(true)));
    let forbidden = r#"{"error":{"code":1,"message":"missing permission to invoke 'ClientListImports' (need 'write')"},"id":"ID","jsonrpc":"2.0"}"#;
    assert_eq!(reply(200, forbidden).await.lotus().offers_client_calls().await, Ok(Some(true)));
    assert!(reply(502, "bad gateway").await.lotus().offers_client_calls().await.is_err());
}

#[tokio::test]
async fn tokens_that_are_refused_or_may_too_little_say_so() {
    let node = Node::start(|_, _| Reply::Raw(401, String::new())).await;
    let error = node.lotus().head().await.unwrap_err();
    assert!(
        matches!(error, RpcError::Unauthorized { .. }) && error.to_string().contains("create-token"),
        "{error}"
    );
    let node =
        Node::start(|_, _| Reply::Refused("missing permission to invoke 'WalletSign' (need 'sign')")).await;
    let error = node.lotus().wallet_sign(&address(NEW_KEY), b"x").await.unwrap_err();
    assert_eq!(error, RpcError::Forbidden { method: "Filecoin.WalletSign", need: Permission::Sign });
    let node = Node::start(|_, _| Reply::Result(json!(["read", "write", "sign", "admin"]))).await;
    let allowed = node.lotus().permissions().await.unwrap().unwrap();
    assert!(allowed.contains(&Permission::Admin), "doctor refuses such a token");
    assert_eq!(node.calls()[0].1, json!(["a-token"]));
    assert!(METHODS.iter().all(|method| method.permission < Permission::Admin));
}

/// Half of an answer, none, another's, one that is too large, one without a result: never a value, and after each of
/// them the call may have taken place.
#[tokio::test]
async fn broken_answers_are_lost_replies() {
    let huge = format!("{{\"id\":\"ID\",\"jsonrpc\":\"2.0\",\"result\":\"{}\"}}", "x".repeat(17 << 20));
    type Answers = Box<dyn Fn() -> Reply + Send>;
    let cases: Vec<(&str, Answers)> = vec![
        ("cut", Box::new(|| Reply::Broken)),
        ("half", Box::new(|| Reply::Raw(200, "{\"id\":\"ID\",\"jsonrpc\":\"2.0\",\"res".into()))),
        ("empty", Box::new(|| Reply::Raw(200, String::new()))),
        ("no result", Box::new(|| Reply::Raw(200, "{\"id\":\"ID\",\"jsonrpc\":\"2.0\"}".into()))),
        ("other id", Box::new(|| Reply::Raw(200, "{\"id\":77,\"jsonrpc\":\"2.0\",\"result\":null}".into()))),
        ("other type", Box::new(|| Reply::Result(json!({"Cids": 1})))),
        ("page", Box::new(|| Reply::Raw(200, "<html>".into()))),
        ("proxy", Box::new(|| Reply::Raw(502, "bad gateway".into()))),
        ("huge", Box::new(move || Reply::Raw(200, huge.clone()))),
        (
            "panic",
            Box::new(|| {
                Reply::Raw(
                    500,
                    "{\"error\":{\"code\":0,\"message\":\"fatal error calling 'X': boom\"},\"id\":\"ID\"}"
                        .into(),
                )
            }),
        ),
    ];
    for (name, reply) in cases {
        let node = Node::start(move |_, _| reply()).await;
        let lotus = node.lotus();
        let found = lotus.search_message(HEAD, &PUBLISH.parse().unwrap(), 10).await;
        let error = found.expect_err(name);
        assert!(error.is_lost_reply(), "{name}: {error}");
        assert!(error.to_string().len() < 2_000, "{name}");
        if name == "huge" {
            assert!(matches!(error, RpcError::TooLarge { .. }), "{error}");
        }
    }
    let nobody = Lotus::new(floe_filecoin::rpc::Endpoint::parse("http://127.0.0.1:1").unwrap()).unwrap();
    let error = nobody.head().await.unwrap_err();
    assert!(matches!(error, RpcError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_node_that_does_not_answer_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let endpoint = floe_filecoin::rpc::Endpoint::parse(&endpoint).unwrap();
    let lotus = Lotus::with_timeout(endpoint, Duration::from_millis(50)).unwrap();
    let error = lotus.head().await.unwrap_err();
    assert!(matches!(error, RpcError::Timeout { .. }) && error.is_lost_reply(), "{error}");
}

/// go-jsonrpc may add `meta` to a frame, which jsonrpsee refuses.
#[tokio::test]
async fn meta_in_a_frame_is_left_out() {
    let body = r#"{"jsonrpc":"2.0","id":"ID","result":"testing","meta":{"a":"b"}}"#;
    let node = Node::start(move |_, _| Reply::Raw(200, body.into())).await;
    assert_eq!(node.lotus().network_name().await.unwrap(), "testing");
    let body =
        r#"{"jsonrpc":"2.0","id":"ID","error":{"code":1,"message":"actor not found","meta":{"a":"b"}}}"#;
    let node = Node::start(move |_, _| Reply::Raw(200, body.into())).await;
    assert_eq!(node.lotus().mpool_nonce(&address(NEW_KEY)).await, Ok(0));
}

/// A node of another network, under the same address as yesterday, must not be spent on.
#[tokio::test]
async fn another_network_is_refused() {
    let lotus = replay().await.lotus();
    let pin = NetworkPin::of(&lotus).await.unwrap();
    let rules = Rules::new(&pin, true, 10).unwrap();
    let other = NetworkPin { name: "calibrationnet".into(), ..pin.clone() };
    let error = Chain::open(lotus.clone(), &other, rules, Epoch::new(0)).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongNetwork { .. }) && error.is_fatal(), "{error}");
    let genesis = params_of_genesis();
    // A name that is mainnet's over another genesis.
    let liar = Node::start(move |method, _| match method {
        "StateNetworkName" => Reply::Result(json!("mainnet")),
        _ => Reply::Result(genesis.clone()),
    })
    .await;
    assert!(matches!(NetworkPin::of(&liar.lotus()).await, Err(ChainError::NameWithoutGenesis(_))));
}

fn params_of_genesis() -> Value {
    let all = recorded("lotus-http.json");
    let call = all.as_array().unwrap().iter().find(|call| call["label"] == "ChainGetGenesis").unwrap();
    let response: Value = serde_json::from_str(call["response"].as_str().unwrap()).unwrap();
    response["result"].clone()
}

fn tipset(height: i64) -> Value {
    let cid = |n: i64| json!({"/": floe_filecoin::types::cid::blake2b_cid(&n.to_be_bytes()).to_string()});
    json!({"Cids": [cid(height)], "Height": height, "Blocks": [{
        "Parents": [cid(height - 1)], "Height": height, "Timestamp": 30 * height, "ParentBaseFee": "100"
    }]})
}

/// A view has a head that is fresh and a final tipset below it; a node that falls back, or gives a "final" tipset that
/// is not, pauses spending.
#[tokio::test]
async fn a_view_is_taken_at_finality() {
    use std::sync::atomic::{AtomicI64, Ordering};
    static HEIGHT: AtomicI64 = AtomicI64::new(2_000);
    static SHIFT: AtomicI64 = AtomicI64::new(0);
    let node = Node::start(move |method, params| match method {
        "StateNetworkName" => Reply::Result(json!("testing")),
        "ChainGetGenesis" => Reply::Result(tipset(0)),
        "ChainHead" => Reply::Result(tipset(HEIGHT.load(Ordering::Relaxed))),
        "ChainGetTipSetByHeight" => {
            Reply::Result(tipset(params[0].as_i64().unwrap() + SHIFT.load(Ordering::Relaxed)))
        }
        other => panic!("{other}"),
    })
    .await;
    let lotus = node.lotus();
    let pin = NetworkPin::of(&lotus).await.unwrap();
    let rules = Rules::new(&pin, false, 900).unwrap();
    let mut chain = Chain::open(lotus, &pin, rules, Epoch::new(0)).await.unwrap();
    let now = Timestamp::from_millis(2_000 * 30_000 + 10_000);
    let view = chain.look(now).await.unwrap();
    assert_eq!((view.head.height, view.last_final.height), (Epoch::new(2_000), Epoch::new(1_100)));
    SHIFT.store(1, Ordering::Relaxed);
    assert!(matches!(chain.look(now).await, Err(ChainError::NotBelow { .. })));
    SHIFT.store(-1, Ordering::Relaxed);
    assert_eq!(chain.look(now).await.unwrap().last_final.height, Epoch::new(1_099), "a null round");
    assert!(matches!(chain.look(now.after(Duration::from_secs(180))).await, Err(ChainError::Stale { .. })));
    HEIGHT.store(1_099, Ordering::Relaxed);
    let fell = chain.look(Timestamp::from_millis(1_099 * 30_000)).await;
    assert!(matches!(fell, Err(ChainError::FellBack { .. })), "{fell:?}");
    assert_eq!(chain.highest(), Epoch::new(2_000));
}

fn recorded_frames() -> Vec<String> {
    let frames = recorded("lotus-ws.json");
    let received = frames.as_array().unwrap().iter().filter(|frame| frame["dir"] == "<");
    let frames = received.map(|frame| frame["frame"].as_str().unwrap().to_owned());
    frames.filter(|frame| frame.contains("xrpc.ch")).collect()
}

/// The recorded subscription: the head as it is, then each step; after `xrpc.ch.close` only silence, which is the
/// end. Dropping it drops the connection.
#[tokio::test]
async fn the_recorded_subscription_is_followed_to_its_silent_end() {
    let frames = recorded_frames();
    assert!(frames.last().unwrap().contains("xrpc.ch.close"));
    let values = frames.len() - 1;
    let socket = Socket::start(frames).await;
    let clock = ManualClock::new(Timestamp::default());
    let mut changes = HeadChanges::subscribe(&socket.endpoint(), &clock).await.unwrap();
    let mut tracker = HeadTracker::new(10);
    for at in 0..values {
        let next = changes.next(&clock).await.unwrap();
        let kind = if at == 0 { HeadChangeKind::Current } else { HeadChangeKind::Apply };
        assert_eq!(next[0].kind, kind);
        assert_eq!(tracker.take(&next), HeadMove::Forward);
    }
    let (silence, ()) = tokio::join!(changes.next(&clock), async {
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(149));
        tokio::time::sleep(Duration::from_millis(20)).await;
        clock.advance(Duration::from_secs(1));
    });
    assert_eq!(silence, Err(NotifyError::Silent));
    assert_eq!(clock.monotonic(), Duration::from_secs(150), "not before five epochs");
    drop(changes);
    tokio::time::timeout(Duration::from_secs(10), socket.closed()).await.expect("the connection is dropped");
}

#[tokio::test]
async fn frames_that_are_no_head_changes_end_the_subscription() {
    let clock = ManualClock::new(Timestamp::default());
    let value =
        |value: &str| format!("{{\"jsonrpc\":\"2.0\",\"method\":\"xrpc.ch.val\",\"params\":[1,{value}]}}");
    let apply = recorded_frames()[1].clone();
    for (frame, why) in [
        (value("{\"a\":1}"), "something else"),
        (value("[{\"Type\":\"sideways\",\"Val\":{}}]"), "something else"),
        (apply, "belongs at the start"),
        ("{\"jsonrpc\":\"2.0\",\"method\":\"xrpc.ch.val\",\"params\":[1,[]],\"meta\":{}}".into(), ""),
    ] {
        let socket = Socket::start(vec![frame]).await;
        let mut changes = HeadChanges::subscribe(&socket.endpoint(), &clock).await.unwrap();
        let next = async {
            tokio::time::timeout(Duration::from_secs(5), changes.next(&clock)).await.expect("it ends")
        };
        let error = next.await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    let nobody = floe_filecoin::rpc::Endpoint::parse("secret-token:http://127.0.0.1:1").unwrap();
    let error = HeadChanges::subscribe(&nobody, &clock).await.unwrap_err();
    assert!(matches!(error, NotifyError::Refused(_)) && !error.to_string().contains("secret"), "{error}");
}
