//! Messages of the wallet when the pool refuses, the base fee rises, the chain is rewound, or somebody else spends too.

use floe_core::FailureCode;
use floe_filecoin::messages::{Entry, Journal as _};

use super::*;

impl World {
    async fn entry(&self, intent: &str) -> Entry {
        self.journal.find(intent).await.unwrap().unwrap()
    }

    /// One epoch as the engine takes it.
    pub(super) async fn epoch(&self, may_send: bool) {
        self.step(1).await;
        self.look().await;
        self.chain.tick(may_send, &self.gas().await).await.unwrap();
    }
}

/// The pool refused a message and nobody was told: to the engine it was on its way, and why it did not get there stood
/// nowhere, neither in a log nor in what the operator asks for.
#[tokio::test]
async fn t38_a_refused_push_is_told() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    let text =
        "mpool push: not enough funds (required: 2, balance: 1): not enough funds to execute transaction";
    let rule = json!({"fault": {"error": text}, "methods": ["Filecoin.MpoolPush"]});
    world.node_faults(json!({ "rules": [rule] })).await;
    let sent = world.chain.send("poor", &FundsCall::TopUp(AttoFil::new(9))).await.unwrap();
    assert_eq!(sent.progress, MessageProgress::Pending, "what is signed goes on");
    let told =
        |remarks: &[String]| remarks.iter().any(|r| r.contains("poor") && r.contains("not enough funds"));
    assert!(told(&world.chain.remarks()), "{:?}", world.chain.remarks());
    world.epoch(true).await;
    assert!(told(&world.chain.remarks()), "still");
    world.node_faults(json!({})).await;
    assert_eq!(world.settled("poor").await, MessageProgress::Final(Ok(())));
    assert!(!told(&world.chain.remarks()), "{:?}", world.chain.remarks());
}

/// `floe spending off` did not reach the messages: they were pushed again, and signed anew at a higher fee.
#[tokio::test(flavor = "multi_thread")]
async fn t38_off_pushes_and_signs_nothing() {
    let world = World::start(&[Manner::Curio]).await;
    world.node_faults(json!({"hold_messages": true})).await;
    let node = world.node_before(|_| None).await;
    let chain = chain_of(&node.lotus(), &world.key, &world.journal, &world.memory);
    chain.look().await.unwrap();
    chain.send("one", &FundsCall::TopUp(AttoFil::new(9))).await.unwrap();
    world.control("POST", "/base_fee", json!({"atto": 1_000_000})).await;
    let round = async |may_send: bool| {
        world.step(1).await;
        chain.look().await.unwrap();
        chain.tick(may_send, &world.gas().await).await.unwrap();
    };
    for _ in 0..45 {
        round(false).await;
    }
    assert_eq!((node.count("MpoolPush"), world.entry("one").await.versions.len()), (1, 1));
    assert!(node.count("StateSearchMsg") >= 45, "what happened is looked at all the same");
    round(true).await;
    assert!(node.count("MpoolPush") >= 2, "it is due since long");
    assert_eq!(world.entry("one").await.versions.len(), 2, "and stuck since long");
    // What lands while all is off is seen.
    world.node_faults(json!({})).await;
    for _ in 0..FINALITY + 5 {
        round(false).await;
    }
    assert!(world.entry("one").await.progress.is_settled());
}

/// The base fee rises over what a message pays: no block takes it. After 20 epochs it is signed anew with the same number at
/// a higher fee within the cap, and what it does happens once.
#[tokio::test]
async fn t43_a_stuck_message_is_replaced_and_paid_once() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    world.chain.send("one", &FundsCall::TopUp(AttoFil::new(9_000))).await.unwrap();
    let first = world.entry("one").await;
    world.control("POST", "/base_fee", json!({"atto": 1_000_000})).await;
    // 20 epochs later it is replaced; then it is the most that the new base fee may double to.
    for _ in 0..19 {
        world.epoch(true).await;
        assert_eq!(world.entry("one").await.versions.len(), 1, "not before 20 epochs");
    }
    world.epoch(true).await;
    let replaced = world.entry("one").await;
    let [old, new] = replaced.versions.as_slice() else { panic!("{replaced:?}") };
    assert_eq!(old.message, first.versions[0].message, "what was signed stays");
    let (old, new) = (&old.message.message, &new.message.message);
    assert!(old.same_call(new) && old.nonce == new.nonce, "one call, one nonce");
    assert!(new.gas_fee_cap > AttoFil::new(1_000_000) && new.max_fee().unwrap() <= MAX_FEE, "{new:?}");
    assert_eq!(world.settled("one").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.entry("one").await.versions.len(), 2, "it is replaced once");
    assert_eq!(world.chain.funds().await.unwrap().head.escrow, AttoFil::new(9_000), "paid once");
}

/// A message was replaced, and the first version is what the chain took in the end. Lotus says of the second, when it is
/// searched, that its number is used, as an error: every look failed from then on, and spending stood still for good.
#[tokio::test]
async fn t43_the_version_that_landed_counts_whichever_it_is() {
    let world = World::start(&[Manner::Curio]).await;
    world.node_faults(json!({"hold_messages": true})).await;
    world.look().await;
    world.chain.send("one", &FundsCall::TopUp(AttoFil::new(9_000))).await.unwrap();
    world.control("POST", "/base_fee", json!({"atto": 1_000_000})).await;
    // The replacement comes to the pool, and the fork that wins never heard of it.
    for _ in 0..20 {
        world.epoch(true).await;
    }
    let entry = world.entry("one").await;
    assert_eq!(entry.versions.len(), 2);
    world.control("POST", "/base_fee", json!({"atto": 100})).await;
    world.control("POST", "/pool/forget", json!({})).await;
    let pushed = world.raw("MpoolPush", json!([entry.versions[0].message])).await;
    assert!(pushed["result"].is_object(), "{pushed}");
    world.node_faults(json!({})).await;
    assert_eq!(world.settled("one").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.chain.funds().await.unwrap().head.escrow, AttoFil::new(9_000), "paid once");
}

/// A reorg takes a top-up off the chain, and out of the pool too: the same bytes are pushed again, and escrow grows once.
#[tokio::test]
async fn r15_a_top_up_that_a_reorg_undid_is_paid_once() {
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    world.chain.send("one", &FundsCall::TopUp(AttoFil::new(9_000))).await.unwrap();
    for _ in 0..3 {
        world.epoch(true).await;
    }
    assert_eq!(world.escrow_at_head().await, "9000");
    let sent = world.chain.send("one", &FundsCall::TopUp(AttoFil::new(9_000))).await.unwrap();
    assert_eq!(sent.progress, MessageProgress::Included, "seen, and not final");
    world.control("POST", "/reorg", json!({"depth": 3, "keep": false})).await;
    assert_eq!(world.escrow_at_head().await, "0", "undone");
    assert_eq!(world.settled("one").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.escrow_at_head().await, "9000", "once");
    assert_eq!(world.entry("one").await.versions.len(), 1, "the same bytes");
}

/// T43: two nodes on one wallet, each with a journal of its own. Who comes second sees a number that it did not give, and
/// signs nothing until the chain is final up to there; nothing is paid twice.
#[tokio::test]
async fn t43_two_nodes_on_one_wallet_pay_nothing_twice() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("one", 1_000).await;
    let journal = Arc::new(MemoryJournal::default());
    journal.add(&world.entry("one").await).await.unwrap();
    let other = chain_of(&world.lotus, &world.key, &journal, &world.memory);
    other.look().await.unwrap();
    world.chain.send("two", &FundsCall::TopUp(AttoFil::new(20_000))).await.unwrap();
    let call = FundsCall::TopUp(AttoFil::new(300_000));
    assert_eq!(code(other.send("three", &call).await), Some(FailureCode::Nonce), "whose is number 1?");
    assert_eq!(world.settled("two").await, MessageProgress::Final(Ok(())));
    // Final: number 1 is the other's for good, and the next one is free.
    world.epoch(true).await;
    other.look().await.unwrap();
    other.send("three", &call).await.unwrap();
    let fourth = world.chain.send("four", &FundsCall::TopUp(AttoFil::new(4_000_000))).await;
    assert_eq!(code(fourth), Some(FailureCode::Nonce), "now it is the first that waits");
    for _ in 0..FINALITY + 5 {
        world.epoch(true).await;
    }
    assert_eq!(world.escrow_at_head().await, "321000", "three payments, each once");
}

/// T43: both signed the same number before either saw the other's. One lands; the other is missing, which is the operator's
/// matter, and neither a second payment nor a look that fails.
#[tokio::test]
async fn t43_a_number_that_somebody_else_used_is_missing() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("one", 1_000).await;
    let journal = Arc::new(MemoryJournal::default());
    journal.add(&world.entry("one").await).await.unwrap();
    let other = chain_of(&world.lotus, &world.key, &journal, &world.memory);
    other.look().await.unwrap();
    // The node forgets the first's message before the second asks for a number.
    world.node_faults(json!({"hold_messages": true})).await;
    world.chain.send("two", &FundsCall::TopUp(AttoFil::new(20_000))).await.unwrap();
    world.control("POST", "/pool/forget", json!({})).await;
    other.send("three", &FundsCall::TopUp(AttoFil::new(300_000))).await.unwrap();
    world.node_faults(json!({})).await;
    assert_eq!(world.settled("two").await, MessageProgress::Missing);
    assert_eq!(world.escrow_at_head().await, "301000");
}
