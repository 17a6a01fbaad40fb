//! Which node this is, what its token allows, and how old its head is: by the rules where money is real.

use floe_core::FailureCode;
use floe_core::clock::ManualClock;

use super::*;

/// When the first block of these devnets was made.
const BEGAN: u64 = 1_700_000_000;

/// A devnet whose finality is mainnet's, and a token of it that allows what is said.
async fn strict(block_delay_secs: u64, allow: &[&str]) -> (Devnet, Endpoint) {
    let config = Config {
        epoch: None,
        providers: 1,
        genesis_time: BEGAN,
        block_delay_secs,
        finality: 900,
        ..Config::default()
    };
    let devnet = Devnet::start(config).await.unwrap();
    let ready = devnet.ready();
    let (status, answer) =
        request("POST", &ready.control, "/epochs/step", json!({"n": 950}).to_string()).await;
    assert_eq!(status, 200, "{answer}");
    let token = token(&devnet, allow).await;
    let endpoint = Endpoint::parse(&format!("{token}:{}", devnet.ready().rpc)).unwrap();
    (devnet, endpoint)
}

async fn token(devnet: &Devnet, allow: &[&str]) -> String {
    let ready = devnet.ready();
    let (rpc, admin, params) = (ready.rpc.clone(), ready.token.clone(), json!([allow]));
    let made = tokio::task::spawn_blocking(move || forward(&rpc, &admin, "Filecoin.AuthNew", &params)).await;
    let bytes = data_encoding::BASE64.decode(made.unwrap()["result"].as_str().unwrap().as_bytes()).unwrap();
    String::from_utf8(bytes).unwrap()
}

fn strict_chain(endpoint: Endpoint, clock: &ManualClock, memory: &Arc<Unremembered>) -> LotusChain {
    let settings = ChainSettings { test_network: false, finality_lookback: 900, max_fee: MAX_FEE };
    let key = Arc::new(LocalKey::from_bytes(&[0x22; 32]).unwrap());
    let lotus = Lotus::new(endpoint).unwrap();
    let clock = Arc::new(clock.clone());
    LotusChain::new(lotus, key, Arc::new(MemoryJournal::default()), memory.clone(), clock, settings)
}

fn at_epoch(epoch: u64) -> ManualClock {
    ManualClock::new(Timestamp::from_millis((BEGAN + 30 * epoch) * 1_000))
}

/// T38: a node that is cut off shows an old head. Where money is real that is known by the clock.
#[tokio::test]
async fn t38_a_stale_head_pauses() {
    let (devnet, endpoint) = strict(30, &["read", "write"]).await;
    let clock = at_epoch(950);
    let chain = strict_chain(endpoint, &clock, &Arc::default());
    assert_eq!(chain.look().await.unwrap().head, at(950));
    chain.funds().await.unwrap();
    for _ in 0..5 {
        clock.advance(Duration::from_secs(30));
    }
    chain.look().await.unwrap();
    clock.advance(Duration::from_secs(30));
    let fault = chain.look().await.unwrap_err();
    assert!(fault.code == FailureCode::ChainUnreachable && fault.text.contains("6 epochs old"), "{fault}");
    assert_eq!(code(chain.funds().await), Some(FailureCode::ChainUnreachable), "nothing is answered now");
    let sent = chain.send("x", &FundsCall::TopUp(AttoFil::new(1))).await;
    assert_eq!(code(sent), Some(FailureCode::ChainUnreachable), "and nothing is sent");
    let (status, _) =
        request("POST", &devnet.ready().control, "/epochs/step", json!({"n": 6}).to_string()).await;
    assert_eq!((status, chain.look().await.unwrap().head), (200, at(956)), "it caught up");
    chain.funds().await.unwrap();
}

/// A head whose height is not its time's: such a one was believed, written down, and the true one after it had fallen back.
#[tokio::test]
async fn t38_a_head_of_another_height_than_its_time_is_not_written_down() {
    let (_devnet, endpoint) = strict(29, &["read", "write"]).await;
    let memory = Arc::new(Unremembered::default());
    let clock = ManualClock::new(Timestamp::from_millis((BEGAN + 29 * 950) * 1_000));
    let chain = strict_chain(endpoint, &clock, &memory);
    let fault = chain.look().await.unwrap_err();
    assert!(fault.code == FailureCode::ChainUnreachable && fault.text.contains("says epoch 950"), "{fault}");
    assert_eq!(memory.load().await.unwrap(), None, "neither the head nor its network");
}

/// T37: what each token may, as its node says; one that may everything is refused where money is real.
#[tokio::test]
async fn t37_each_token_may_what_it_says_and_admin_is_refused() {
    let all = ["read", "write", "sign", "admin"];
    let (devnet, _) = strict(30, &all).await;
    let client = devnet.ready().client.parse().unwrap();
    for classes in 1..=all.len() {
        let allow = &all[..classes];
        let token = token(&devnet, allow).await;
        let endpoint = Endpoint::parse(&format!("{token}:{}", devnet.ready().rpc)).unwrap();
        let chain = strict_chain(endpoint.clone(), &at_epoch(950), &Arc::default());
        let looked = chain.look().await;
        let allowed: Vec<String> =
            chain.status().permissions.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(allowed, allow);
        if allow.contains(&"admin") {
            let fault = looked.unwrap_err();
            assert!(fault.code == FailureCode::Auth && fault.text.contains("--perm write"), "{fault}");
            assert_eq!(code(chain.funds().await), Some(FailureCode::ChainUnreachable));
        } else {
            looked.unwrap();
            chain.funds().await.unwrap();
        }
        let lotus = Lotus::new(endpoint).unwrap();
        assert_eq!(lotus.wallet_list().await.is_ok(), allow.contains(&"write"), "{allow:?}");
        assert_eq!(lotus.wallet_sign(&client, b"x").await.is_ok(), allow.contains(&"sign"), "{allow:?}");
    }
}

/// A gateway has no `AuthVerify`, and some pass on known calls alone: each of those questions ended the look, though nothing
/// hangs on their answers.
#[tokio::test(flavor = "multi_thread")]
async fn t38_what_a_gateway_does_not_answer_stops_nothing() {
    let unknown = r#"{"error":{"code":-32601,"message":"method 'Filecoin.AuthVerify' not found"},"id":"ID","jsonrpc":"2.0"}"#;
    let world = World::start(&[Manner::Curio]).await;
    let node = world
        .node_before(move |method| match method {
            "AuthVerify" => Some(Reply::Raw(500, unknown.into())),
            "ClientListImports" => Some(Reply::Raw(403, "not on this gateway".into())),
            _ => None,
        })
        .await;
    let chain = chain_of(&node.lotus(), &world.key, &world.journal, &world.memory);
    chain.look().await.unwrap();
    chain.funds().await.unwrap();
    let remarks = chain.remarks();
    let unasked = remarks.iter().filter(|remark| remark.contains("could not be asked"));
    assert_eq!(unasked.count(), 2, "{remarks:?}");
    assert_eq!((chain.status().permissions, chain.status().offers_client_calls), (None, false));
    // One that breaks is another matter.
    let node = world
        .node_before(|method| (method == "ClientListImports").then_some(Reply::Raw(502, "".into())))
        .await;
    let chain = chain_of(&node.lotus(), &world.key, &world.journal, &world.memory);
    assert_eq!(code(chain.look().await), Some(FailureCode::ChainUnreachable));
}

/// The subscription to the head was in the client and nobody took it: between two looks nothing was known of the chain.
#[tokio::test]
async fn t38_the_head_is_watched_and_watched_anew() {
    let world = World::start(&[Manner::Curio]).await;
    let within = |ms| Duration::from_millis(ms);
    let changed = || tokio::time::timeout(within(5_000), world.chain.changed());
    changed().await.expect("the head as it is: what came before is not known");
    tokio::time::timeout(within(200), world.chain.changed()).await.expect_err("the chain stands still");
    world.step(1).await;
    changed().await.expect("one epoch");
    // What is given up in between is not lost.
    world.step(3).await;
    changed().await.expect("three epochs are one change, or more");
    while tokio::time::timeout(within(200), world.chain.changed()).await.is_ok() {}
    world.control("POST", "/reorg", json!({"depth": 3, "keep": true})).await;
    changed().await.expect("a reorg");
}
