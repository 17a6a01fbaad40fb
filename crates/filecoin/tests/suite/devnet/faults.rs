//! A node and providers that fail: each failure has its class, and none is taken for an answer.

use floe_core::FailureCode;
use floe_core::cold::{Answer, Market as _, ProviderWord};

use super::*;

/// T38: whatever the node does instead of answering, every call of the port fails as a node that cannot be used.
#[tokio::test]
async fn t38_a_node_that_does_not_answer_is_unreachable() {
    let world = World::start(&[Manner::Curio]).await;
    let signed = world.signed(&world.terms(0).await).await;
    for fault in [json!("down"), json!("half_body"), json!({"status": 502}), json!({"error": "panic"})] {
        world.look().await;
        world.all_calls(fault.clone()).await;
        let codes = [
            code(world.chain.provider(world.provider(0)).await),
            code(world.chain.collateral(PaddedSize::MIN).await),
            code(world.chain.funds().await),
            code(world.chain.published(at(1), at(2)).await),
            code(world.chain.deal(1, &signed).await),
            code(world.chain.send("x", &FundsCall::TopUp(AttoFil::new(1))).await),
            code(world.chain.look().await),
        ];
        assert_eq!(codes, [Some(FailureCode::ChainUnreachable); 7], "{fault}");
        assert!(world.chain.status().trouble.is_some());
        world.node_faults(json!({})).await;
    }
    world.look().await;
    assert_eq!(world.chain.status().trouble, None);
    let sent = world.chain.send("x", &FundsCall::TopUp(AttoFil::new(1))).await.unwrap();
    assert_eq!(sent.progress, MessageProgress::Pending, "nothing was signed before");
}

/// T38: slower than a call may be.
#[tokio::test]
async fn t38_a_slow_node_is_unreachable() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    world.all_calls(json!({"slow": 5_000})).await;
    let fault = world.chain.look().await.unwrap_err();
    assert!(fault.code == FailureCode::ChainUnreachable && fault.text.contains("did not answer"), "{fault}");
}

#[tokio::test]
async fn a_token_that_is_not_the_nodes_is_told_apart() {
    let world = World::start(&[Manner::Curio]).await;
    let rpc = &world.devnet.ready().rpc;
    let bad = Lotus::new(Endpoint::parse(&format!("garbage:{rpc}")).unwrap()).unwrap();
    let chain = chain_of(&bad, &world.key, &world.journal, &world.memory);
    let fault = chain.look().await.unwrap_err();
    assert_eq!(fault.code, FailureCode::Auth, "{fault}");
    // Without a token all can be read, and nothing can be pushed.
    let none = Lotus::new(Endpoint::parse(rpc).unwrap()).unwrap();
    let chain = chain_of(&none, &world.key, &Arc::default(), &world.memory);
    chain.look().await.unwrap();
    chain.funds().await.unwrap();
    let sent = chain.send("x", &FundsCall::TopUp(AttoFil::new(1))).await.unwrap();
    assert_eq!(sent.progress, MessageProgress::Pending, "signed, refused, and kept");
}

/// A node that offers what Lotus dropped in 2024 is old: it is named, and used all the same.
#[tokio::test]
async fn a_node_with_the_old_deal_calls_is_reported() {
    let world = World::start(&[Manner::Curio]).await;
    let rule = json!({"fault": {"error": "no imports"}, "methods": ["Filecoin.ClientListImports"]});
    world.node_faults(json!({ "rules": [rule] })).await;
    world.look().await;
    assert!(world.chain.status().offers_client_calls);
    use floe_core::cold::Chain as _;
    let remarks = world.chain.remarks();
    assert!(remarks.iter().any(|remark| remark.contains("v1.27.1")), "{remarks:?}");
}

#[tokio::test]
async fn providers_that_do_not_answer_say_nothing_of_the_deal() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", 1_000_000_000_000).await;
    let to = world.contact(0);
    let terms = world.terms(0).await;
    let signed = world.signed(&terms).await;
    let word = world.market.status(&to, terms.uuid).await.unwrap();
    assert!(matches!(word, ProviderWord::Unknown(_)), "{word:?}");

    world.provider_faults(0, json!({"offline": true})).await;
    assert_eq!(code(world.market.ask(&to).await), Some(FailureCode::SpProtocol));
    world.provider_faults(0, json!({"lose_reply": true})).await;
    let lost = world.market.propose(&to, &signed).await;
    assert_eq!(code(lost), Some(FailureCode::SpProtocol), "it may have arrived");
    world.provider_faults(0, json!({})).await;
    assert_eq!(world.market.propose(&to, &signed).await.unwrap(), Answer::Accepted, "and it had");

    for (fault, known) in [
        (json!({"error": "getting sector status from sealer"}), true),
        (json!({"error": "something else"}), false),
        (json!("silent"), false),
    ] {
        world.provider_faults(0, json!({ "status": fault })).await;
        let word = world.market.status(&to, terms.uuid).await;
        assert_eq!(matches!(word, Ok(ProviderWord::Known { .. })), known, "{word:?}");
    }
    world.provider_faults(0, json!({"report_deal_id": 77})).await;
    let word = world.market.status(&to, terms.uuid).await.unwrap();
    assert!(matches!(word, ProviderWord::Known { deal_id: Some(77), .. }), "its word, and no more: {word:?}");
}

#[tokio::test]
async fn what_cannot_be_reached_has_its_class() {
    let world = World::start(&[Manner::Curio]).await;
    let with = |text: &str, is_operators| {
        let at = ContactAddress { text: text.into(), is_operators };
        Contact { addresses: vec![at], ..world.contact(0) }
    };
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let good = &world.devnet.ready().providers[0];
    let port = good.url.rsplit_once(':').unwrap().1;
    let multiaddr = format!("/ip4/127.0.0.1/tcp/{port}/http");
    let nowhere = Contact { addresses: vec![], ..world.contact(0) };
    for (to, class) in [
        (nowhere.clone(), FailureCode::SpUnresolvable),
        (
            Contact {
                peer_id: Some("12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5".into()),
                ..nowhere
            },
            FailureCode::SpUnresolvable,
        ),
        (with(&url, true), FailureCode::SpDial),
        // The chain's word leads to this machine: it is not followed.
        (with(&good.url, false), FailureCode::SpDial),
        (with(&multiaddr, false), FailureCode::SpDial),
        (with(&world.devnet.ready().control, true), FailureCode::SpProtocol),
    ] {
        let fault = world.market.ask(&to).await.unwrap_err();
        assert_eq!(fault.code, class, "{to:?}: {fault}");
        assert!(!fault.text.contains("127.0.0.1"), "T45: {fault}");
    }
    // The operator's word is followed, in either form; and what did not answer is passed over.
    for text in [&good.url, &multiaddr] {
        let mut to = with(&url, true);
        to.addresses.push(ContactAddress { text: text.clone(), is_operators: true });
        world.market.ask(&to).await.unwrap();
        world.market.ask(&to).await.unwrap();
    }
}
