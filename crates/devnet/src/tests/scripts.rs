//! Each script of a provider once: what a client sees of it, on the provider's side and on the chain's.

use serde_json::json;

use super::client::{FUNDS, World, send};
use super::*;
use crate::chain::SETTLE_DEAL_PAYMENTS;
use crate::wire::cbor::Cbor;
use crate::wire::rle;

const CURIO: &[Manner] = &[Manner::Curio];
const BOOST: &[Manner] = &[Manner::Boost];

/// Every reason has the text that was read in the sources of Boost and Curio, and leaves nothing behind.
#[tokio::test]
async fn reject() {
    let world = World::start(BOOST).await;
    let params = world.proposal(0, "0").await;
    for (reason, text) in [
        (json!("price"), "failed validation: storage price per epoch less than asking price: 1 < 2"),
        (json!("size"), "failed validation: piece size less than minimum required size: 128 < 256"),
        (
            json!("duration"),
            "failed validation: deal duration out of bounds (min, max, provided): 518400, 3680640, 1",
        ),
        (json!("start_epoch"), "cannot seal a sector before 100"),
        (json!("collateral"), "failed validation: proposed provider collateral 0 below minimum 1"),
        (
            json!("funds"),
            "failed validation: client available funds in escrow 0 not enough to meet storage cost for deal 1",
        ),
        (json!("signature"), "failed validation: invalid signature"),
        (json!("allowlist"), "client not allowed by provider"),
        (json!("backpressure"), "deal rejected due to backpressure. Please retry in some time."),
        (
            json!("rate_limit"),
            "deal rejected as cumulative size of deals in past 1 hour has reached the maximum allowed for the \
             client, please retry in some time",
        ),
        (json!("capacity"), "server error: provider has no space left for storage deals"),
        (
            json!("duplicate"),
            "deal proposal is identical to deal 00000000-0000-0000-0000-000000000000 (proposed at 2026-01-01 \
             00:00:00 +0000 UTC)",
        ),
        (json!("server_error"), "server error: internal server error"),
        (json!({"text": "closed on Mondays"}), "closed on Mondays"),
    ] {
        world.script(0, json!({"reject": reason})).await;
        assert_eq!(world.store(0, &params).await, Err(text.into()));
    }
    world.script(0, json!({})).await;
    assert!(world.book(0).await.is_null(), "what was refused is not remembered");
    assert_eq!(world.asked("0"), []);
    world.store(0, &params).await.unwrap();
}

/// A Curio says what a Boost does, without Boost's word before it: a client that knew the one did not know the other.
#[tokio::test]
async fn a_curio_refuses_without_the_prefix_of_boost() {
    let world = World::start(CURIO).await;
    let params = world.proposal(0, "0").await;
    for (reason, text) in [
        (json!("price"), "storage price per epoch less than asking price: 1 < 2"),
        (json!("signature"), "invalid signature"),
        (json!("allowlist"), "client not allowed by provider"),
    ] {
        world.script(0, json!({"reject": reason})).await;
        assert_eq!(world.store(0, &params).await, Err(text.into()));
    }
}

/// Refusals that follow from the proposal itself, without a script.
#[tokio::test]
async fn rules() {
    let world = World::start(&[Manner::Curio, Manner::Boost]).await;
    let good = world.proposal(1, "1").await;
    let refusal = async |n: usize, change: fn(&mut crate::wire::deal::DealParams)| {
        let mut params = world.proposal(n, &n.to_string()).await;
        change(&mut params);
        params.deal = world.sign(params.deal.proposal);
        world.store(n, &params).await.unwrap_err()
    };
    let price = refusal(1, |params| params.deal.proposal.price_per_epoch -= 1).await;
    let least = good.deal.proposal.price_per_epoch;
    let text = "failed validation: storage price per epoch less than asking price";
    assert_eq!(price, format!("{text}: {} < {least}", least - 1));
    let early = refusal(1, |params| params.deal.proposal.start = 10).await;
    assert_eq!(early, "cannot seal a sector before 22", "head 2, lead 20");
    let padded = refusal(0, |params| {
        params.deal.proposal.piece_size *= 2;
        params.deal.proposal.price_per_epoch = 2 * params.deal.proposal.price_per_epoch + 1;
        params.deal.proposal.provider_collateral = 2 * params.deal.proposal.provider_collateral + 1;
    });
    let size = world.piece_size;
    let text = format!("deal proposal piece size {} doesn't match padded piece size {size}", 2 * size);
    assert_eq!(padded.await, text, "Curio pads nothing up");
    let funds = refusal(1, |params| params.deal.proposal.client_collateral = 1 << 61).await;
    assert!(funds.starts_with("failed validation: client available funds in escrow 1152921504606846976 not"));
}

#[tokio::test]
async fn stall() {
    let world = World::start(&[Manner::Curio, Manner::Curio]).await;
    world.script(0, json!({"stall_transfer": true})).await;
    world.deal(0).await;
    world.deal(1).await;
    // When the other is done, this one has had as much time.
    world.transferred(1).await;
    world.step(3).await;
    assert_eq!(world.asked("0"), []);
    assert_eq!(world.book(0).await["received"], 0);
    let status = world.status(0).await.unwrap().status.unwrap();
    assert_eq!((status.status.as_str(), status.error.as_str()), ("Processing", ""));
    world.script(0, json!({})).await;
    assert!(world.transferred(0).await["error"].is_null());
    let id = world.published(0).await;
    world.active(id).await;
}

#[tokio::test]
async fn wrong_commp() {
    let world = World::start(CURIO).await;
    world.script(0, json!({"wrong_commp": true})).await;
    world.deal(0).await;
    let book = world.transferred(0).await;
    assert!(book["error"].as_str().unwrap().starts_with("commp mismatch"), "{book}");
    world.step(5).await;
    assert_eq!(world.book(0).await["publish"], Value::Null);
    let status = world.status(0).await.unwrap().status.unwrap();
    assert_eq!((status.status.as_str(), status.error), ("Failed", book["error"].as_str().unwrap().into()));
    assert_eq!(world.locked().await, 0);
}

#[tokio::test]
async fn never_publish() {
    let world = World::start(&[Manner::Boost, Manner::Boost]).await;
    world.script(0, json!({"never_publish": true})).await;
    world.deal(0).await;
    let honest = world.deal(1).await;
    world.transferred(0).await;
    world.transferred(1).await;
    let id = world.published(1).await;
    world.active(id).await;
    assert_eq!(world.book(0).await["publish"], Value::Null);
    assert_eq!(world.locked().await, honest.deal.proposal.client_requirement());
    let status = world.status(0).await.unwrap();
    assert_eq!((status.error.as_str(), status.status), ("getting sector status from sealer", None));
}

/// The client is refused, and its signed bytes are used all the same.
#[tokio::test]
async fn publish_refused() {
    let world = World::start(BOOST).await;
    world.script(0, json!({"reject": "allowlist", "publish_refused": true})).await;
    let params = world.proposal(0, "0").await;
    assert_eq!(world.store(0, &params).await, Err("client not allowed by provider".into()));
    world.published(0).await;
    assert_eq!(world.locked().await, params.deal.proposal.client_requirement());
    assert_eq!(world.status(0).await.unwrap().status, None, "it says nothing of that");
}

#[tokio::test]
async fn another_deals_id() {
    let world = World::start(&[Manner::Boost, Manner::Boost]).await;
    world.deal(0).await;
    world.transferred(0).await;
    let theirs = world.published(0).await;
    world.script(1, json!({"report_deal_id": theirs})).await;
    world.deal(1).await;
    world.transferred(1).await;
    let ours = world.published(1).await;
    world.active(ours).await;
    assert_ne!(ours, theirs);
    let status = world.status(1).await.unwrap().status.unwrap();
    assert_eq!(status.chain_deal_id, theirs);
    let shown = world.call("StateMarketStorageDeal", json!([theirs, []])).await;
    assert_eq!(shown["Proposal"]["Provider"], world.miner(0), "the chain says whose it is");
}

/// StartEpoch passes; the money stays locked until the market's cron comes by, then the deal is gone.
#[tokio::test]
async fn never_seal() {
    let world = World::start(BOOST).await;
    world.script(0, json!({"never_seal": true})).await;
    let params = world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    let start = params.deal.proposal.start;
    let left = start + 1 - world.step(1).await;
    assert_eq!(world.step(left.unsigned_abs()).await, start + 1);
    let shown = world.call("StateMarketStorageDeal", json!([id, []])).await;
    assert_eq!(shown["State"]["SectorStartEpoch"], -1);
    assert_eq!(world.locked().await, params.deal.proposal.client_requirement());
    world.step(10).await;
    let gone = world.rpc("StateMarketStorageDeal", json!([id, []])).await;
    assert!(gone["error"]["message"].as_str().unwrap().starts_with(&format!("deal {id} not found")));
    assert_eq!(world.locked().await, 0);
}

#[tokio::test]
async fn terminate_early() {
    let world = World::start(CURIO).await;
    world.script(0, json!({"terminate_after": 3})).await;
    world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    let since = world.active(id).await;
    let mut height = since;
    let gone = loop {
        let answer = world.rpc("StateMarketStorageDeal", json!([id, []])).await;
        if answer.get("error").is_some() {
            break answer;
        }
        height = world.step(1).await;
        assert!(height < since + 20, "the deal is not terminated");
    };
    assert!(height > since + 3);
    assert!(gone["error"]["message"].as_str().unwrap().starts_with(&format!("deal {id} not found")));
    let (_, locked) = world.balance(&world.miner(0)).await;
    assert_eq!((world.locked().await, locked), (0, 0));
    world.step(1).await;
    let events = world.call("GetActorEventsRaw", json!([{"fromHeight": 0, "toHeight": height}])).await;
    // CBOR text of 15 bytes.
    let kind = BASE64.encode(b"\x6fdeal-terminated");
    let all = events.as_array().unwrap().iter();
    assert_eq!(all.filter(|event| event["entries"][0]["Value"] == kind).count(), 1, "{events}");
}

#[tokio::test]
async fn lies_in_the_status() {
    let world = World::start(CURIO).await;
    world.script(0, json!({"status": {"lie": "Sealed"}, "never_publish": true})).await;
    world.deal(0).await;
    world.transferred(0).await;
    world.step(5).await;
    let status = world.status(0).await.unwrap().status.unwrap();
    assert_eq!((status.status.as_str(), status.chain_deal_id), ("Sealed", 0));
    assert_eq!(world.control("GET", "/deals", json!(null)).await["published"], 0);

    world.script(0, json!({"status": "not_found"})).await;
    assert_eq!(world.status(0).await.unwrap().error, "failed to get sealed deal status");
    world.script(0, json!({"status": {"error": "busy"}})).await;
    assert_eq!(world.status(0).await.unwrap().error, "busy");
    world.script(0, json!({"status": "silent"})).await;
    assert_eq!(world.status(0).await, None);
}

#[tokio::test]
async fn offline() {
    let world = World::start(&[Manner::Curio, Manner::Curio]).await;
    world.script(0, json!({"offline": true})).await;
    let params = world.proposal(0, "0").await;
    assert_eq!(world.store(0, &params).await, Err("no answer".into()));
    assert_eq!(world.status(0).await, None);
    world.deal(1).await;
    world.transferred(1).await;
    assert!(world.book(0).await.is_null());
    world.script(0, json!({})).await;
    world.store(0, &params).await.unwrap();
    world.transferred(0).await;
    let id = world.published(0).await;
    // Away while it should seal: its deal waits, and goes on when it is back.
    world.script(0, json!({"offline": true})).await;
    world.step(20).await;
    let shown = world.call("StateMarketStorageDeal", json!([id, []])).await;
    assert_eq!(shown["State"]["SectorStartEpoch"], -1);
    world.script(0, json!({})).await;
    world.active(id).await;
}

/// An error in every status, or none at all, while the deal goes on to its sector: it says nothing of the deal.
#[tokio::test]
async fn status_errors_while_sealing_goes_on() {
    let world = World::start(BOOST).await;
    world.script(0, json!({"status": {"error": "failed to load deal"}})).await;
    world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    assert_eq!(world.status(0).await.unwrap().error, "failed to load deal");
    world.script(0, json!({"index_error": true})).await;
    world.step(2).await;
    let status = world.status(0).await.unwrap().status.unwrap();
    assert_eq!(status.status, "AddedPiece");
    assert!(status.error.starts_with("failed to add index and announce deal"), "{}", status.error);
    world.active(id).await;
    world.step(1).await;
    let status = world.status(0).await.unwrap().status.unwrap();
    assert_eq!((status.sealing.as_str(), status.chain_deal_id), ("Proving", id));
    assert!(!status.error.is_empty());
}

/// A sector whose proof is missing: seen in the faults and the counts, and its deal is active all the same.
#[tokio::test]
async fn faulty() {
    let world = World::start(CURIO).await;
    world.script(0, json!({"faulty_after": 2})).await;
    world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    let since = world.active(id).await;
    let miner = world.miner(0);
    while world.call("StateMinerFaults", json!([miner, []])).await == json!([0]) {
        assert!(world.step(1).await < since + 20, "no fault is declared");
    }
    assert_eq!(world.call("StateMinerFaults", json!([miner, []])).await, json!([0, 1]));
    let count = world.call("StateMinerSectorCount", json!([miner, []])).await;
    assert_eq!(count, json!({"Live": 1, "Active": 0, "Faulty": 1}));
    let deal = world.call("StateMarketStorageDeal", json!([id, []])).await;
    assert!(deal["State"]["SectorStartEpoch"].as_i64().unwrap() > 0);
}

#[tokio::test]
async fn retrieval() {
    let world = World::start(CURIO).await;
    world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    world.active(id).await;
    let url = format!("{}/piece/{}", world.devnet.ready().providers[0].url, world.piece);
    let get = async |fault: &str| {
        world.script(0, json!({"retrieval": fault})).await;
        send("GET", &url, ("text/plain", None), Vec::new()).await
    };
    let (status, body) = get("corrupt").await.unwrap();
    assert_eq!((status, body.len()), (200, world.car.len()));
    assert_eq!((body[0], &body[1..]), (world.car[0] ^ 1, &world.car[1..]));
    assert_eq!(get("refuse").await.unwrap(), (403, Bytes::new()));
    assert_eq!(get("not_found").await.unwrap(), (404, Bytes::new()));
    get("half_body").await.unwrap_err();
    world.script(0, json!({})).await;
    assert_eq!(send("GET", &url, ("text/plain", None), Vec::new()).await.unwrap(), (200, world.car.clone()));
}

/// Who settles is told what was paid; nobody is paid before that, and it is paid from what is locked.
#[tokio::test]
async fn settled_payments() {
    let world = World::start(CURIO).await;
    let params = world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    world.active(id).await;
    let proposal = &params.deal.proposal;
    let passed = 20;
    let left = proposal.start + passed - world.step(1).await;
    world.step(left.unsigned_abs()).await;
    let before = world.balance(&world.devnet.ready().client).await;
    assert_eq!(before, (FUNDS, proposal.client_requirement()));
    let mut bits = vec![false; usize::try_from(id).unwrap() + 1];
    bits[usize::try_from(id).unwrap()] = true;
    let settle = Cbor::Bytes(rle::encode(&bits)).encode();
    let found = world.message(0, SETTLE_DEAL_PAYMENTS, settle).await;
    assert_eq!(found["Receipt"]["ExitCode"], 0, "{found}");
    // The message is in the tipset after the head of before, `passed` epochs after the start.
    let paid = proposal.price_per_epoch * i128::from(passed + 1);
    let after = world.balance(&world.devnet.ready().client).await;
    assert_eq!(after, (FUNDS - paid, proposal.client_requirement() - paid));
    let deals = world.control("GET", "/deals", Value::Null).await;
    assert_eq!(deals["pieces"][world.piece.to_string()][0]["paid"], paid.to_string());
    let unknown = Cbor::Bytes(vec![0xff]).encode();
    let found = world.message(0, SETTLE_DEAL_PAYMENTS, unknown).await;
    assert_eq!(found["Receipt"]["ExitCode"], 16, "{found}");
}

/// The events of f05 by kind, by client and by provider; a reorg takes them back.
#[tokio::test]
async fn events() {
    let world = World::start(&[Manner::Curio, Manner::Curio]).await;
    world.step(5).await;
    for n in 0..2 {
        world.deal(n).await;
        world.transferred(n).await;
        let id = world.published(n).await;
        world.active(id).await;
    }
    world.step(1).await;
    let events = async |fields: Value| {
        let filter = json!({"addresses": ["f05"], "fields": fields, "fromHeight": 0, "toHeight": -1});
        let found = world.call("GetActorEventsRaw", json!([filter])).await;
        let found = found.as_array().unwrap().clone();
        assert!(found.iter().all(|event| event["emitter"] == "f05" && event["reverted"] == false));
        found.len()
    };
    let wanted = |value: Cbor| json!([{"codec": 81, "value": BASE64.encode(&value.encode())}]);
    let client = world.call("StateLookupID", json!([world.key.address(), []])).await;
    let client: u64 = client.as_str().unwrap()[2..].parse().unwrap();
    assert_eq!(events(json!({})).await, 4);
    assert_eq!(events(json!({"$type": wanted(Cbor::text("deal-published"))})).await, 2);
    assert_eq!(events(json!({"$type": wanted(Cbor::text("deal-activated"))})).await, 2);
    assert_eq!(events(json!({"client": wanted(Cbor::Unsigned(client))})).await, 4);
    assert_eq!(events(json!({"client": wanted(Cbor::Unsigned(client + 1))})).await, 0);
    assert_eq!(events(json!({"provider": wanted(Cbor::Unsigned(1_001))})).await, 2);
    // Until before the first deal, and nothing comes back.
    let height = world.control("GET", "/head", Value::Null).await["height"].as_i64().unwrap();
    world.script(0, json!({"never_publish": true})).await;
    world.script(1, json!({"never_publish": true})).await;
    world.control("POST", "/reorg", json!({"depth": height - 5, "keep": false})).await;
    assert_eq!(events(json!({})).await, 0);
}
