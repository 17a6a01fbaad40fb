//! Messages against a node whose every answer may be an error, a lost reply or a lie: at most one message is ever signed
//! for an intent, under one nonce.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use floe_filecoin::chain::View;
use floe_filecoin::messages::{
    Entry, Journal as _, MemoryJournal, MessageError, Progress, Sender, SenderSettings,
};
use floe_filecoin::rpc::answers::TipSet;
use floe_filecoin::signer::{LocalKey, Signer as _};
use floe_filecoin::types::cid::blake2b_cid;
use floe_filecoin::types::{AttoFil, Epoch, Message, SignedMessage, TipSetKey};
use serde_json::{Value, json};

use crate::node::{Node, Reply};

/// What the node does with the next push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Push {
    Takes,
    /// The pool has it, the answer is lost.
    TakesAndBreaks,
    /// It is lost before the pool.
    Breaks,
    Refuses(&'static str),
    /// 502 of a proxy, after the pool has it.
    TakesAnd502,
    /// Says that it took another message.
    LiesAboutCid,
}

/// The model of a node: what is in its pool and on its chain.
struct Model {
    push: Push,
    nonce: u64,
    final_nonce: u64,
    premium: u128,
    pool: BTreeMap<String, SignedMessage>,
    /// By signed CID: the height at which it was executed.
    chain: BTreeMap<String, (i64, i64)>,
    pushed: Vec<SignedMessage>,
    searched: u64,
}

type Shared = Arc<Mutex<Model>>;

fn tipset_json(height: i64) -> Value {
    let cid = |n: i64| json!({"/": blake2b_cid(&n.to_be_bytes()).to_string()});
    json!({"Cids": [cid(height)], "Height": height, "Blocks": [{
        "Parents": [cid(height - 1)], "Height": height, "Timestamp": 30 * height, "ParentBaseFee": "100"
    }]})
}

fn answer(model: &mut Model, method: &str, params: &Value) -> Reply {
    match method {
        "MpoolGetNonce" => Reply::Result(json!(model.nonce)),
        "StateGetActor" => Reply::Result(json!({"Nonce": model.final_nonce, "Balance": "1000"})),
        "GasEstimateMessageGas" => {
            let mut message = params[0].clone();
            message["GasLimit"] = json!(1_000_000);
            message["GasFeeCap"] = json!((model.premium + 1_000).to_string());
            message["GasPremium"] = json!(model.premium.to_string());
            Reply::Result(message)
        }
        "ChainGetTipSetByHeight" => Reply::Result(tipset_json(params[0].as_i64().unwrap())),
        "MpoolPush" => push(model, &params[0]),
        "StateSearchMsg" => {
            model.searched += 1;
            Reply::Result(match model.chain.get(params[1]["/"].as_str().unwrap()) {
                Some((height, exit_code)) => json!({
                    "Message": params[1], "Height": height, "TipSet": [],
                    "Receipt": {"ExitCode": exit_code, "Return": null, "GasUsed": 1}
                }),
                None => Value::Null,
            })
        }
        other => panic!("{other}"),
    }
}

fn push(model: &mut Model, message: &Value) -> Reply {
    let message: SignedMessage = serde_json::from_value(message.clone()).unwrap();
    let cid = message.cid().to_string();
    model.pushed.push(message.clone());
    let outcome = model.push;
    let took = matches!(outcome, Push::Takes | Push::TakesAndBreaks | Push::TakesAnd502);
    if took && model.pool.contains_key(&cid) && outcome == Push::Takes {
        return Reply::Refused("already in mpool: message with nonce already exists");
    }
    if took {
        model.nonce = model.nonce.max(message.message.nonce + 1);
        model.pool.insert(cid.clone(), message);
    }
    match outcome {
        Push::Takes => Reply::Result(json!({"/": cid})),
        Push::TakesAndBreaks | Push::Breaks => Reply::Broken,
        Push::TakesAnd502 => Reply::Raw(502, "bad gateway".into()),
        Push::Refuses(text) => Reply::Refused(text),
        Push::LiesAboutCid => Reply::Result(json!({"/": blake2b_cid(b"another").to_string()})),
    }
}

struct World {
    node: Node,
    model: Shared,
    journal: Arc<MemoryJournal>,
    sender: Sender,
}

fn key() -> LocalKey {
    LocalKey::from_bytes(&[0x11; 32]).unwrap()
}

fn sender_of(node: &Node, journal: &Arc<MemoryJournal>, max_fee: u128) -> Sender {
    let settings = SenderSettings { max_fee: AttoFil::new(max_fee) };
    Sender::new(node.lotus(), Arc::new(key()), journal.clone(), settings)
}

async fn world(max_fee: u128) -> World {
    let model = Model {
        push: Push::Takes,
        nonce: 7,
        final_nonce: 7,
        premium: 100_510,
        pool: BTreeMap::new(),
        chain: BTreeMap::new(),
        pushed: Vec::new(),
        searched: 0,
    };
    let model = Arc::new(Mutex::new(model));
    let shared = model.clone();
    let node = Node::start(move |method, params| answer(&mut shared.lock().unwrap(), method, params)).await;
    let journal = Arc::new(MemoryJournal::default());
    let sender = sender_of(&node, &journal, max_fee);
    World { node, model, journal, sender }
}

const ENOUGH: u128 = 1_000_000_000_000;

fn view(head: i64) -> View {
    let tipset = |height: i64| TipSet {
        key: TipSetKey::new(vec![blake2b_cid(&height.to_be_bytes())]).unwrap(),
        height: Epoch::new(height),
        timestamp: 0,
        parents: TipSetKey::HEAD,
        base_fee: AttoFil::new(100),
    };
    View { head: tipset(head), last_final: tipset(head - 900) }
}

fn call() -> Message {
    floe_filecoin::escrow::top_up_message(key().address(), AttoFil::new(500))
}

impl World {
    fn set(&self, change: impl FnOnce(&mut Model)) {
        change(&mut self.model.lock().unwrap());
    }

    fn pushed(&self) -> Vec<SignedMessage> {
        self.model.lock().unwrap().pushed.clone()
    }

    /// Puts a version of the entry onto the chain.
    fn include(&self, entry: &Entry, version: usize, height: i64, exit_code: i64) {
        let cid = entry.versions[version].message.cid().to_string();
        self.set(|model| {
            model.chain.insert(cid, (height, exit_code));
        });
    }
}

/// Every outcome of a push: what is written down, and that a repeat of the intent signs nothing new.
#[tokio::test]
async fn every_outcome_of_a_push_is_written_down_and_signs_once() {
    let refused = |text: &'static str| Progress::Refused { reason: format!("Filecoin.MpoolPush: {text}") };
    for (push, progress) in [
        (Push::Takes, Progress::Pooled),
        (Push::TakesAndBreaks, Progress::Signed),
        (Push::Breaks, Progress::Signed),
        (Push::TakesAnd502, Progress::Signed),
        (Push::Refuses("message with nonce already exists"), Progress::Pooled),
        (Push::Refuses("minimum expected nonce is 3, got 0: message nonce too low"), Progress::Signed),
        (
            Push::Refuses("not enough funds to execute transaction"),
            refused("not enough funds to execute transaction"),
        ),
        (Push::Refuses("something new"), refused("something new")),
        (
            Push::LiesAboutCid,
            Progress::Refused { reason: "the node answered with the CID of another message".into() },
        ),
    ] {
        let w = world(ENOUGH).await;
        w.set(|model| model.push = push);
        let entry = w.sender.send("top-up-1", &call(), &view(2_000)).await.unwrap();
        assert_eq!((entry.nonce, &entry.progress), (7, &progress), "{push:?}");
        // A caller that tries again, and one after a restart.
        let again = w.sender.send("top-up-1", &call(), &view(2_001)).await.unwrap();
        let restarted =
            sender_of(&w.node, &w.journal, ENOUGH).send("top-up-1", &call(), &view(2_002)).await.unwrap();
        assert_eq!((&again, &restarted), (&entry, &entry), "{push:?}");
        assert_eq!(w.pushed(), [entry.versions[0].message.clone()], "one message, one push");
        let signer = floe_filecoin::signer::recover(
            &entry.versions[0].message.message.cid().to_bytes(),
            &entry.versions[0].message.signature,
        );
        assert_eq!(signer, Some(key().address()));
    }
}

/// A reply was lost before the pool had the message: the same bytes are pushed again every ten epochs until the chain
/// has them.
#[tokio::test]
async fn a_lost_message_is_pushed_again_and_lands_once() {
    let w = world(ENOUGH).await;
    w.set(|model| model.push = Push::Breaks);
    let entry = w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    for head in 2_001..2_010 {
        assert!(w.sender.tick(&view(head), true).await.unwrap().is_empty());
    }
    assert_eq!(w.pushed().len(), 1, "not before ten epochs");
    w.set(|model| model.push = Push::Takes);
    let landed = w.sender.tick(&view(2_010), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Pooled);
    assert_eq!(w.pushed(), vec![entry.versions[0].message.clone(); 2], "the same bytes");
    w.include(&entry, 0, 2_012, 0);
    let landed = w.sender.tick(&view(2_013), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Included { version: 0, height: Epoch::new(2_012) });
    assert!(w.sender.tick(&view(2_911), true).await.unwrap().is_empty(), "one epoch before finality");
    let landed = w.sender.tick(&view(2_912), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Final { version: 0, height: Epoch::new(2_012), exit_code: 0 });
    assert!(w.sender.tick(&view(2_913), true).await.unwrap().is_empty());
    assert_eq!(w.pushed().len(), 2);
}

/// A reorg takes a message off the chain: it goes back to the pool at once, and is final only when it stays.
#[tokio::test]
async fn a_reorg_brings_a_message_back() {
    let w = world(ENOUGH).await;
    let entry = w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    w.include(&entry, 0, 2_001, 0);
    w.sender.tick(&view(2_002), true).await.unwrap();
    w.set(|model| {
        model.chain.clear();
        model.pool.clear();
    });
    let landed = w.sender.tick(&view(2_003), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Pooled);
    assert_eq!(w.pushed().len(), 2);
    w.include(&entry, 0, 2_005, 33);
    w.sender.tick(&view(2_006), true).await.unwrap();
    let landed = w.sender.tick(&view(2_905), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Final { version: 0, height: Epoch::new(2_005), exit_code: 33 });
}

/// A gateway looks back 20 epochs and says null beyond: after a long pause the number is used and no version is found.
/// That must not read as "it never happened", or the top-up is paid twice.
#[tokio::test]
async fn a_message_that_cannot_be_found_is_never_paid_twice() {
    let w = world(ENOUGH).await;
    let entry = w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    w.set(|model| model.final_nonce = 8);
    let landed = w.sender.tick(&view(3_000), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Missing);
    assert!(!landed[0].progress.is_settled());
    assert_eq!(w.sender.send("a", &call(), &view(3_001)).await.unwrap().versions, entry.versions);
    assert_eq!(w.pushed().len(), 1);
    // A full node finds it.
    w.include(&entry, 0, 2_001, 0);
    let landed = w.sender.tick(&view(3_002), true).await.unwrap();
    assert!(landed[0].progress.is_settled());
}

/// A message that another took the number of was searched at every look for ever, each time back to when it was signed.
#[tokio::test]
async fn a_message_that_is_missing_is_not_searched_for_ever() {
    let w = world(ENOUGH).await;
    w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    w.set(|model| model.final_nonce = 8);
    assert_eq!(w.sender.tick(&view(3_000), true).await.unwrap()[0].progress, Progress::Missing);
    let searched = |w: &World| w.model.lock().unwrap().searched;
    for (head, again) in [(3_001, 1), (5_600, 1), (5_601, 0), (90_000, 0)] {
        let before = searched(&w);
        assert_eq!(w.sender.tick(&view(head), true).await.unwrap(), []);
        assert_eq!(searched(&w) - before, again, "{head}");
    }
}

#[tokio::test]
async fn a_replacement_keeps_nonce_and_call_and_pays_a_tenth_more() {
    let w = world(ENOUGH).await;
    let entry = w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    let replaced = w.sender.replace("a", &view(2_020), AttoFil::new(ENOUGH)).await.unwrap();
    let [first, second] = replaced.versions.as_slice() else { panic!("{replaced:?}") };
    assert_eq!(first.message, entry.versions[0].message);
    let (old, new) = (&first.message.message, &second.message.message);
    assert_eq!((old.nonce, new.nonce), (7, 7));
    assert!(old.same_call(new));
    assert_eq!(new.gas_premium, AttoFil::new(110_562));
    // The first version is what lands in the end: the same intent, settled once.
    w.include(&replaced, 0, 2_021, 0);
    let landed = w.sender.tick(&view(2_921), true).await.unwrap();
    assert_eq!(landed[0].progress, Progress::Final { version: 0, height: Epoch::new(2_021), exit_code: 0 });
    assert!(matches!(
        w.sender.replace("a", &view(2_922), AttoFil::new(ENOUGH)).await,
        Err(MessageError::Unknown(_))
    ));
}

#[tokio::test]
async fn gas_stays_under_the_cap() {
    let unset = world(0).await;
    let error = unset.sender.send("a", &call(), &view(2_000)).await.unwrap_err();
    assert!(
        matches!(error, MessageError::FeeOverCap { .. }),
        "a cap that is not set permits nothing: {error}"
    );
    // The estimate costs 1,000,000 x 101,510.
    for (cap, fits) in [(101_509_999_999, false), (101_510_000_000, true), (101_510_000_001, true)] {
        let w = world(cap).await;
        let sent = w.sender.send("a", &call(), &view(2_000)).await;
        assert_eq!(sent.is_ok(), fits, "{cap}");
        assert_eq!(w.pushed().len(), usize::from(fits));
        if fits {
            let replaced = w.sender.replace("a", &view(2_020), AttoFil::new(ENOUGH)).await;
            assert!(matches!(replaced, Err(MessageError::FeeOverCap { .. })), "a tenth more is too much");
            assert_eq!(w.pushed().len(), 1);
        }
    }
}

/// `deals.max_gas` was raised while a message waited: its replacement cost more than was set aside for it, beyond the caps.
#[tokio::test]
async fn t36_a_replacement_costs_no_more_than_is_reserved() {
    let w = world(101_510_000_000).await;
    w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    let raised = sender_of(&w.node, &w.journal, ENOUGH);
    let reserved = AttoFil::new(101_510_000_000);
    let refused = raised.replace("a", &view(2_020), reserved).await;
    assert!(matches!(refused, Err(MessageError::FeeOverCap { cap, .. }) if cap == reserved), "{refused:?}");
    assert_eq!(w.pushed().len(), 1);
    raised.replace("a", &view(2_020), AttoFil::new(ENOUGH)).await.unwrap();
    assert_eq!(w.pushed().len(), 2);
}

/// The node's estimate changes the call, or asks for gas that no block has.
#[tokio::test]
async fn an_estimate_that_lies_is_not_signed() {
    type Lie = fn(&mut Value);
    let lies: [Lie; 7] = [
        |m| m["To"] = json!("f01000"),
        |m| m["Value"] = json!("501"),
        |m| m["Nonce"] = json!(8),
        |m| m["Params"] = json!("QQ=="),
        |m| m["GasLimit"] = json!(0),
        |m| m["GasLimit"] = json!(10_000_000_001_u64),
        |m| m["GasPremium"] = json!("999999999"),
    ];
    for lie in lies {
        let model = world(ENOUGH).await.model;
        let node = Node::start(move |method, params| {
            match (method, answer(&mut model.lock().unwrap(), method, params)) {
                ("GasEstimateMessageGas", Reply::Result(mut message)) => {
                    lie(&mut message);
                    Reply::Result(message)
                }
                (_, reply) => reply,
            }
        })
        .await;
        let journal = Arc::new(MemoryJournal::default());
        let error = sender_of(&node, &journal, u128::MAX).send("a", &call(), &view(2_000)).await.unwrap_err();
        assert!(matches!(error, MessageError::BadEstimate(_)), "{error}");
        assert_eq!((node.count("MpoolPush"), journal.find("a").await.unwrap()), (0, None));
    }
}

/// Another program spends from the key, or an old backup was restored, or the node lies: nothing is signed until
/// the chain is final up to there.
#[tokio::test]
async fn a_nonce_ahead_of_ours_waits_for_finality() {
    let w = world(ENOUGH).await;
    w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    w.set(|model| model.nonce = 1_003);
    let error = w.sender.send("b", &call(), &view(2_001)).await.unwrap_err();
    assert!(matches!(error, MessageError::NonceAhead { own: 8, node: 1_003, .. }), "{error}");
    assert_eq!(w.pushed().len(), 1);
    w.set(|model| model.final_nonce = 1_003);
    assert_eq!(w.sender.send("b", &call(), &view(3_000)).await.unwrap().nonce, 1_003);
}

/// A node that forgot its pool says a lower nonce: ours goes on, so that no number is used twice.
#[tokio::test]
async fn a_nonce_behind_ours_is_not_believed() {
    let w = world(ENOUGH).await;
    w.sender.send("a", &call(), &view(2_000)).await.unwrap();
    w.set(|model| model.nonce = 0);
    assert_eq!(w.sender.send("b", &call(), &view(2_001)).await.unwrap().nonce, 8);
    assert_eq!(w.sender.send("c", &call(), &view(2_001)).await.unwrap().nonce, 9);
}

#[tokio::test]
async fn two_sends_at_once_have_two_numbers() {
    let w = world(ENOUGH).await;
    let (call, view) = (call(), view(2_000));
    let (one, two, again) = tokio::join!(
        w.sender.send("a", &call, &view),
        w.sender.send("b", &call, &view),
        w.sender.send("a", &call, &view)
    );
    let (one, two, again) = (one.unwrap(), two.unwrap(), again.unwrap());
    assert_eq!((one.nonce, two.nonce, again), (7, 8, one.clone()));
    assert_eq!(w.pushed().len(), 2);
}

/// The lookup is about another message, or from the future: it says nothing.
#[tokio::test]
async fn a_lookup_that_lies_is_not_believed() {
    for (height, other) in [(2_001, true), (99_999, false), (0, false)] {
        let w = world(ENOUGH).await;
        let entry = w.sender.send("a", &call(), &view(2_000)).await.unwrap();
        let cid = entry.versions[0].message.cid();
        let named = if other { blake2b_cid(b"another") } else { cid };
        let model = w.model.clone();
        let node = Node::start(move |method, params| match method {
            "StateSearchMsg" => Reply::Result(json!({
                "Message": {"/": named.to_string()}, "Height": height, "TipSet": [],
                "Receipt": {"ExitCode": 0, "Return": null, "GasUsed": 1}
            })),
            _ => answer(&mut model.lock().unwrap(), method, params),
        })
        .await;
        let landed = sender_of(&node, &w.journal, ENOUGH).tick(&view(2_002), true).await.unwrap();
        assert!(landed.is_empty(), "{landed:?}");
    }
}

#[tokio::test]
async fn the_journal_refuses_what_would_spend_twice() {
    crate::journal::conforms(&MemoryJournal::default()).await;
}
