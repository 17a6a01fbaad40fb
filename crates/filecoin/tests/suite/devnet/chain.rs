//! The chain's answers, and the wallet's messages.

use floe_core::FailureCode;
use floe_filecoin::types::{Address, Epoch};

use super::*;

#[tokio::test]
async fn a_look_is_what_the_answers_are_about() {
    let world = World::start(&[Manner::Curio]).await;
    let early = chain_of(&world.lotus, &world.key, &world.journal, &world.memory);
    assert_eq!(code(early.funds().await), Some(FailureCode::ChainUnreachable), "nothing was looked at");
    let view = world.look().await;
    // The state at a tipset is that before its messages: one height later they count.
    assert_eq!(view.head.since(view.last_final), FINALITY as u64 + 1);
    let before = world.chain.funds().await.unwrap();
    assert!(before.head.wallet > AttoFil::ZERO);
    world.fund("one", 1_000_000).await;
    let after = world.chain.funds().await.unwrap();
    assert_eq!(after.head.escrow, before.head.escrow.checked_add(AttoFil::new(1_000_000)).unwrap());
    assert_eq!(after.head.locked, AttoFil::ZERO);
    let status = world.chain.status();
    assert_eq!((status.offers_client_calls, status.trouble), (false, None));
    assert!(status.network.unwrap().starts_with("devnet"));
}

/// A balance is read at the head and at the last final tipset: what came in between the two may be taken back.
#[tokio::test]
async fn t39_what_came_in_is_final_later_than_it_is_there() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    let before = world.chain.funds().await.unwrap();
    assert_eq!(before.head, before.last_final);
    let amount = AttoFil::new(9_000);
    world.chain.send("one", &FundsCall::TopUp(amount)).await.unwrap();
    let mut seen = None;
    for epoch in 0.. {
        assert!(epoch < 4 * FINALITY, "it never counted");
        world.epoch(true).await;
        let funds = world.chain.funds().await.unwrap();
        if funds.head.escrow == amount {
            seen.get_or_insert(epoch);
        }
        if funds.last_final.escrow == amount {
            assert!(epoch - seen.unwrap() >= FINALITY, "{seen:?} {epoch}");
            assert_eq!(funds.head, funds.last_final);
            break;
        }
        // What it cost is gone at once, and both are told apart all the while.
        assert_eq!(funds.last_final, before.last_final);
    }
}

#[tokio::test]
async fn providers_are_what_the_chain_says() {
    let world = World::start(&[Manner::Curio, Manner::Boost]).await;
    world.look().await;
    let one = world.chain.provider(world.provider(0)).await.unwrap().unwrap();
    let two = world.chain.provider(world.provider(1)).await.unwrap().unwrap();
    assert_ne!(one.owner, two.owner);
    assert_eq!(one.addresses, world.devnet.ready().providers[0].multiaddrs);
    assert_eq!(one.sector_bytes, 8 << 20);
    assert_eq!(world.chain.provider(ActorId::new(99_999)).await.unwrap(), None);
    assert_eq!(world.chain.provider(ActorId::new(5)).await.unwrap(), None, "the market is no provider");
}

/// Every kind of call from the wallet does on the chain what it says, once for its intent.
#[tokio::test]
async fn each_call_happens_once() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("top-up", 5_000).await;
    let again = world.chain.send("top-up", &FundsCall::TopUp(AttoFil::new(5_000))).await.unwrap();
    assert_eq!(again.progress, MessageProgress::Final(Ok(())));
    assert!(
        again.max_fee > AttoFil::ZERO && again.max_fee < MAX_FEE,
        "what it cost at most, now that it is final"
    );
    let other = world.chain.send("top-up", &FundsCall::TopUp(AttoFil::new(6_000))).await;
    assert_eq!(code(other), Some(FailureCode::Nonce), "an intent is one call");

    let sent = world.chain.send("back", &FundsCall::Withdraw(AttoFil::new(2_000))).await.unwrap();
    assert_eq!((sent.progress, sent.max_fee), (MessageProgress::Pending, MAX_FEE));
    assert_eq!(world.settled("back").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.chain.funds().await.unwrap().head.escrow, AttoFil::new(3_000));

    let to = Address::Secp256k1([7; 20]).to_string();
    let call = FundsCall::Send { to: to.clone(), amount: AttoFil::new(77) };
    world.chain.send("away", &call).await.unwrap();
    assert_eq!(world.settled("away").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.lotus.wallet_balance(&to.parse().unwrap()).await.unwrap(), AttoFil::new(77));

    let published = world.control("GET", "/balances", Value::Null).await;
    let nonces: Vec<u64> = published
        .as_object()
        .unwrap()
        .values()
        .filter(|account| account["key"] == json!(world.devnet.ready().client))
        .map(|account| account["nonce"].as_u64().unwrap())
        .collect();
    assert_eq!(nonces, [3], "three intents, three messages");
}

/// The node takes the message and the answer is lost, and the process ends: who comes after finds it in the journal.
#[tokio::test]
async fn r15_a_lost_reply_and_a_restart_pay_once() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    let rule = json!({"fault": "lost_reply", "methods": ["Filecoin.MpoolPush"], "times": 1});
    world.node_faults(json!({ "rules": [rule] })).await;
    let sent = world.chain.send("once", &FundsCall::TopUp(AttoFil::new(9_000))).await.unwrap();
    assert_eq!(sent.progress, MessageProgress::Pending);
    let after = chain_of(&world.lotus, &world.key, &world.journal, &world.memory);
    after.look().await.unwrap();
    after.send("once", &FundsCall::TopUp(AttoFil::new(9_000))).await.unwrap();
    assert_eq!(world.settled("once").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.chain.funds().await.unwrap().head.escrow, AttoFil::new(9_000));
}

#[tokio::test]
async fn gas_that_is_not_permitted_is_not_spent() {
    let world = World::start(&[Manner::Curio]).await;
    for max_fee in [AttoFil::ZERO, AttoFil::new(1)] {
        let chain = chain_with(&world.lotus, &world.key, &world.journal, world.memory.clone(), max_fee);
        chain.look().await.unwrap();
        let refused = chain.send("gas", &FundsCall::TopUp(AttoFil::new(5))).await;
        assert_eq!(code(refused), Some(FailureCode::Gas), "{max_fee}");
    }
    world.look().await;
    let too_much = FundsCall::TopUp(AttoFil::new(u128::MAX / 4));
    assert_eq!(code(world.chain.send("all", &too_much).await), Some(FailureCode::FundsWallet));
}

/// A node that was on another chain at the first start, or is led to another one later.
#[tokio::test]
async fn t38_another_network_is_refused_at_every_look() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    world.node_faults(json!({"wrong_chain": true})).await;
    let fault = world.chain.look().await.unwrap_err();
    assert!(fault.code == FailureCode::ChainUnreachable && fault.text.contains("belongs to"), "{fault}");
    assert_eq!(
        code(world.chain.funds().await),
        Some(FailureCode::ChainUnreachable),
        "nothing is answered now"
    );
    let restarted = chain_of(&world.lotus, &world.key, &world.journal, &world.memory);
    assert!(restarted.look().await.unwrap_err().text.contains("belongs to"));
    world.node_faults(json!({})).await;
    world.look().await;
    world.chain.funds().await.unwrap();
}

/// A head that fell below what was final, before a restart and after it.
#[tokio::test]
async fn t38_a_head_that_fell_back_pauses_everything() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    world.step(60).await;
    world.look().await;
    let highest = world.memory.load().await.unwrap().unwrap().highest;
    assert!(highest >= at(80 - FINALITY), "{highest}");
    // Another devnet with the same seed is the same chain, and it is young.
    let young = World::start(&[Manner::Curio]).await;
    let chain = chain_of(&young.lotus, &world.key, &world.journal, &world.memory);
    let fault = chain.look().await.unwrap_err();
    assert!(fault.text.contains("fell from"), "{fault}");
}

/// T39: what is not final is no published deal, whatever depth a reorg has within finality.
#[tokio::test]
async fn t39_only_what_is_final_was_published() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", 1_000_000_000_000).await;
    let terms = world.terms(0).await;
    let signed = world.signed(&terms).await;
    use floe_core::cold::Market as _;
    world.market.propose(&world.contact(0), &signed).await.unwrap();
    let mut seen = None;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.step(1).await;
        let view = world.look().await;
        let found = world.chain.published(at(0), view.head).await.unwrap().unwrap();
        if let Some(deal) = found.first() {
            assert!(deal.height <= view.last_final, "{deal:?} {view:?}");
            seen = Some((*deal, view));
            break;
        }
    }
    let (deal, view) = seen.unwrap();
    assert_eq!(deal.provider, world.provider(0));
    assert_eq!(world.chain.published(deal.height, deal.height).await.unwrap().unwrap(), [deal]);
    assert!(world.chain.published(deal.height.plus(1), view.head).await.unwrap().unwrap().is_empty());
    assert!(world.chain.published(at(9), at(3)).await.unwrap().unwrap().is_empty(), "an empty range");
}

/// T39: a publication that is not final and is undone was none: nobody was told of it. The provider publishes again, and it
/// is one deal.
#[tokio::test]
async fn t39_a_publication_that_a_reorg_undid_is_one_deal() {
    use floe_core::cold::Market as _;
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", 1_000_000_000_000).await;
    let terms = world.terms(0).await;
    let signed = world.signed(&terms).await;
    world.market.propose(&world.contact(0), &signed).await.unwrap();
    let at_head = async || {
        let deals = world.control("GET", "/deals", Value::Null).await;
        let by_piece = deals["pieces"].as_object().unwrap().values();
        by_piece.map(|deals| deals.as_array().unwrap().len()).sum::<usize>()
    };
    let published = async || {
        let view = world.look().await;
        world.chain.published(at(0), view.head).await.unwrap().unwrap()
    };
    for _ in 0..40 {
        if at_head().await > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.step(1).await;
    }
    assert_eq!(at_head().await, 1, "published, and not final");
    assert!(published().await.is_empty());
    world.control("POST", "/reorg", json!({"depth": 3, "keep": false})).await;
    assert_eq!(at_head().await, 0, "undone");
    assert!(published().await.is_empty());
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.step(1).await;
    }
    let found = published().await;
    let [deal] = found.as_slice() else { panic!("{found:?}") };
    assert!(world.chain.deal(deal.deal_id, &signed).await.unwrap().unwrap().is_ours);
    assert_eq!(at_head().await, 1, "exactly one deal");
}

/// Both nodes that keep no events, and gateways that do not look back so far: providers' words are the only hint then.
#[tokio::test]
async fn a_node_without_events_is_told_from_one_without_deals() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    assert_eq!(world.chain.published(at(0), at(9)).await.unwrap(), Some(vec![]));
    assert_eq!(world.chain.status().keeps_events, Some(true));
    for text in [
        "module disabled, enable with Events.EnableActorEventsAPI",
        "method not supported",
        "bad tipset height: lookbacks of more than 24h0m0s are disallowed",
    ] {
        let rule = json!({"fault": {"error": text}, "methods": ["Filecoin.GetActorEventsRaw"]});
        world.node_faults(json!({ "rules": [rule] })).await;
        assert_eq!(world.chain.published(at(0), at(9)).await.unwrap(), None, "{text}");
    }
    assert_eq!(world.chain.status().keeps_events, Some(false));
    let rule = json!({"fault": {"error": "something else"}, "methods": ["Filecoin.GetActorEventsRaw"]});
    world.node_faults(json!({ "rules": [rule] })).await;
    assert_eq!(code(world.chain.published(at(0), at(9)).await), Some(FailureCode::ChainUnreachable));
}

#[tokio::test]
async fn the_least_collateral_grows_with_the_piece() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    let of = |bytes: u64| world.chain.collateral(PaddedSize::from_bytes(bytes).unwrap());
    assert!(of(1 << 30).await.unwrap() > of(1 << 20).await.unwrap());
    assert_eq!(Epoch::default(), at(0));
}
