//! `lotus-http.json`: every request to the node, in order.
//!
//! The recorded chain had a life before: a client with escrow, and four deals of f01000 in four sectors, at height 96.
//! The devnet is given one like it. Later requests name what earlier answers named ([`Names`]).

use serde_json::json;

use super::super::client::{World, noise};
use super::mask::{self, Names};
use super::*;

const EXCLUDED: Excluded = &[
    ("StateReplay publish", "the model has no virtual machine, and no trace of one to show"),
    ("readyz", "the recorded node's head was 116 days behind the clock; the devnet's clock is its own"),
];

/// The recorded client, and the node's default wallet: one account here.
const CLIENTS: [&str; 2] = [
    "f3w27lmvh35ysezgggzctk57bkvwx7twqk67jbjjfcx5k3kgfu3ugudc7skynnlsbzicxzc4rn5sfrz7kzchgq",
    "f3wkzens5jdiqfe55gmntfjlxtpvwc47ewrsfq66frlpfdrujtbyqsqsw2nr7yczvw34xhhjhbgtiajoawo5na",
];
/// The recorded publication of deal 2.
const PUBLICATION: &str = "bafy2bzacechzmrn7np64qptzq5wxoop2sb66k42np4vp4fptoozftb5l2ioyk";
/// The height at which the recording begins.
const HEIGHT: i64 = 96;

/// As the recorded set-up was: its name, no collateral, no lead, a real finality.
pub(super) fn config() -> Config {
    Config {
        providers: 1,
        manners: vec![Manner::Boost],
        epoch: None,
        network: "testing".into(),
        collateral_per_gib: 0,
        seal_lead: 0,
        finality: 900,
        on_chain_addrs: false,
        stall: Duration::from_secs(30),
        ..Config::default()
    }
}

/// Four deals in four sectors, at [`HEIGHT`]. Says the CID of the publication of deal 2.
async fn life(world: &World) -> String {
    for nth in 0..4_u8 {
        let mut params = world.proposal(0, &nth.to_string()).await;
        params.uuid = [nth; 16];
        params.deal.proposal.end += i64::from(nth);
        params.deal = world.sign(params.deal.proposal);
        world.store(0, &params).await.unwrap();
    }
    let sealed = |deals: &Value| {
        let deals = deals[0]["deals"].as_array().unwrap();
        deals.iter().filter(|deal| deal["sector"].is_u64()).count() == 4
    };
    let transferred =
        |deals: &Value| deals[0]["deals"].as_array().unwrap().iter().all(|deal| deal["transferred"] == true);
    let mut books = world.control("GET", "/providers", Value::Null).await;
    while !transferred(&books) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        books = world.control("GET", "/providers", Value::Null).await;
    }
    let mut height = 0;
    while !sealed(&books) {
        height = world.step(1).await;
        assert!(height < HEIGHT, "{books}");
        // The provider follows the chain in its own task.
        tokio::time::sleep(Duration::from_millis(5)).await;
        books = world.control("GET", "/providers", Value::Null).await;
    }
    assert_eq!(world.step((HEIGHT - height).unsigned_abs()).await, HEIGHT);
    let deal = books[0]["deals"].as_array().unwrap().iter().find(|deal| deal["deal_id"] == 2).unwrap();
    deal["publish"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn every_recorded_request() {
    let world = World::with(config(), noise(20_000)).await;
    let mut names = Names::default();
    names.set(PUBLICATION, &life(&world).await);
    CLIENTS.iter().for_each(|client| names.set(client, &world.devnet.ready().client));
    let calls: Value =
        serde_json::from_str(include_str!("../../../../filecoin/tests/vectors/lotus-http.json")).unwrap();
    let calls = calls.as_array().unwrap();
    assert_eq!(calls.len(), 122);
    let mut outcomes = Vec::new();
    for call in calls {
        let label = call["label"].as_str().unwrap();
        if label.starts_with("StateWaitMsg") {
            // Time passes only here: what is pushed is seen to wait first.
            world.step(8).await;
        }
        outcomes.push((label.to_owned(), replay(&world, &mut names, call).await.err()));
    }
    judge(EXCLUDED, &outcomes);
}

/// Sends one request; the error says in what the answer differs.
async fn replay(world: &World, names: &mut Names, call: &Value) -> Result<(), String> {
    let text = |key: &str| call[key].as_str().unwrap_or_default();
    let ready = world.devnet.ready();
    let request = names.translate(text("request"));
    let (status, kind, body) =
        ask(text("http_method"), &ready.rpc, text("path"), Some(&ready.token), &request).await;
    let parsed = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|_| json!({"text": text}));
    let (theirs, ours) = (parsed(text("response")), parsed(&body));
    names.learn(&theirs, &ours);
    let same = |what: &str, theirs: &dyn std::fmt::Debug, ours: &dyn std::fmt::Debug| {
        let (theirs, ours) = (format!("{theirs:?}"), format!("{ours:?}"));
        if theirs == ours { Ok(()) } else { Err(format!("{what}: recorded {theirs}, got {ours}")) }
    };
    same("status", &call["status"].as_u64(), &Some(u64::from(status)))?;
    if !text("content_type").is_empty() {
        same("content type", &call["content_type"].as_str(), &kind.as_deref())?;
    }
    same("code", &theirs["error"]["code"], &ours["error"]["code"])?;
    same("last byte", &text("response").ends_with('\n'), &body.ends_with('\n'))?;
    same("answer", &mask::json(&theirs), &mask::json(&ours))
}
