//! What owners and operators see of the cold half, and what the operator may say to it. The rows are made by the calls
//! that the workers make; no node of Filecoin is asked.

use std::collections::BTreeMap;
use std::time::Duration;

use floe_core::cold::Fault;
use floe_core::spending::Caps;
use floe_core::{AccountId, ActorId, AttoFil, Epoch, FailureCode, PaddedSize, PieceCid};
use floe_engine::Scope;
use floe_records::Records;
use floe_records::cold::{Chosen, DealRow, LotPart, NewAggregate, NewDeal, NewSegment, Settled};
use futures::StreamExt as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::schema;
use crate::support::{Client, World, leaf};

fn piece() -> PieceCid {
    PieceCid::from_commitment([7; 32]).unwrap()
}

/// A deal for a pin of the account's own, which is made for it.
pub(crate) async fn deal_of(world: &World, client: &Client, name: &str, cid: &str) -> DealRow {
    let id = client.add(json!({ "cid": cid })).await.id();
    client.reaches(&id, "pinned").await;
    let piece = PieceCid::from_commitment([name.as_bytes()[0] % 64; 32]).unwrap();
    let aggregate = aggregate_as(&world.records, piece).await;
    choose_for(&world.records, (aggregate, piece), 0, 1_000, account(world, name).await).await
}

/// All pins that wait, in one aggregate.
async fn aggregate(records: &Records) -> Uuid {
    aggregate_as(records, piece()).await
}

async fn aggregate_as(records: &Records, piece: PieceCid) -> Uuid {
    let part = LotPart { part: 0, first: 0, sections: 1, bytes: 100 };
    for lot in records.lots_to_measure(99).await.unwrap() {
        records.lot_measured(lot.id, 1 << 20, vec![part]).await.unwrap();
    }
    let lots = records.lots("default", 3, 99).await.unwrap();
    let segment = |lot| NewSegment { lot, part, size: PaddedSize::MIN };
    let new = NewAggregate {
        policy: "default".to_owned(),
        replicas: 3,
        align: true,
        least: PaddedSize::MIN,
        segments: lots.iter().map(|(lot, _)| segment(lot.id)).collect(),
    };
    let id = records.begin_aggregate(new).await.unwrap().unwrap();
    let settled = Settled {
        piece,
        size: PaddedSize::from_bytes(1 << 20).unwrap(),
        car_bytes: 1_000,
        root: *leaf("a manifest").cid(),
        fillers: Vec::new(),
    };
    // Its pins are told behind the answer.
    for _ in 0..1_000 {
        if records.aggregate_packed(id, settled.clone()).await.is_ok() {
            return id;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("its pins are never told");
}

/// An attempt that costs 1,200,000 attoFIL.
async fn choose(records: &Records, aggregate: Uuid, slot: u32, provider: u64, of: AccountId) -> DealRow {
    choose_for(records, (aggregate, piece()), slot, provider, of).await
}

async fn choose_for(
    records: &Records,
    (aggregate, piece): (Uuid, PieceCid),
    slot: u32,
    provider: u64,
    of: AccountId,
) -> DealRow {
    let much = AttoFil::new(1 << 100);
    let caps = Caps { deal: much, account_day: much, day: much, lifetime: much };
    let new = NewDeal {
        wallet: "f1wallet".to_owned(),
        aggregate,
        slot,
        provider: ActorId::new(provider),
        owner: ActorId::new(provider + 10_000),
        policy: "default".to_owned(),
        piece,
        size: PaddedSize::from_bytes(1 << 20).unwrap(),
        car_bytes: 1_000,
        root: *leaf("a manifest").cid(),
        ipni: true,
        price: AttoFil::new(2),
        collateral: AttoFil::ZERO,
        head: Epoch::new(100),
        start: Epoch::new(1_000),
        end: Epoch::new(601_000),
        weights: BTreeMap::from([(of, 1)]),
    };
    match records.choose_deal(new, &caps).await.unwrap() {
        Chosen::Deal(deal) => *deal,
        other => panic!("{other:?}"),
    }
}

async fn account(world: &World, name: &str) -> AccountId {
    world.engine.accounts().await.unwrap().into_iter().find(|account| account.name == name).unwrap().id
}

async fn pinned(client: &Client) -> String {
    let id = client.add(json!({ "cid": "bafkqaaa" })).await.id();
    client.reaches(&id, "pinned").await;
    id
}

fn info(pin: &Value) -> &Value {
    assert!(pin["info"].as_object().unwrap().values().all(Value::is_string), "{pin}");
    &pin["info"]
}

#[tokio::test]
async fn info_tells_where_a_pin_is_and_lists_what_deals_ls_lists() {
    let world = World::with_policies(&[("default", 3), ("hot", 0)]).await;
    let alice = world.alice().await;
    let id = pinned(&alice).await;
    let show = async || alice.get(&format!("/pins/{id}")).await.json;
    let waiting = show().await;
    assert_eq!(
        (info(&waiting)["cold"].as_str(), info(&waiting)["deals"].as_str()),
        (Some("waiting"), Some("[]"))
    );
    assert_eq!(info(&waiting).get("piece_cid"), None);

    let aggregate = aggregate(&world.records).await;
    let packed = show().await;
    assert_eq!(info(&packed)["cold"], "packed");
    assert_eq!(info(&packed)["piece_cid"], piece().to_string());

    let owner = account(&world, "alice").await;
    let first = choose(&world.records, aggregate, 0, 1_000, owner).await;
    world.clock.advance(Duration::from_secs(1));
    let second = choose(&world.records, aggregate, 1, 1_001, owner).await;
    let why = "failed to fetch https://pull.example/x?sig=1: no route";
    let fault = Fault::new(FailureCode::TransferUnreachable, why);
    world.records.withdraw_deal(first.uuid, fault).await.unwrap();

    let placing = show().await;
    schema::conforms("PinStatus", &placing);
    assert_eq!(info(&placing)["cold"], "placing");
    let deals: Value = serde_json::from_str(info(&placing)["deals"].as_str().unwrap()).unwrap();
    let want = json!([
        { "provider": "f01001", "state": "chosen", "deal_uuid": second.uuid.to_string(), "deal_id": null,
          "piece_cid": piece().to_string(), "pins": [id], "start_epoch": 1_000, "end_epoch": 601_000,
          "cost_attofil": "1200000", "error": null },
        { "provider": "f01000", "state": "failed", "deal_uuid": first.uuid.to_string(), "deal_id": null,
          "piece_cid": piece().to_string(), "pins": [id], "start_epoch": 1_000, "end_epoch": 601_000,
          "cost_attofil": "1200000",
          "error": { "code": "transfer_unreachable", "text": "failed to fetch (address) no route" } },
    ]);
    assert_eq!(deals, want);
    assert_eq!(alice.get(&format!("/deals?pin={id}")).await.json, want);
    let (_, page) = alice.list("limit=1").await;
    assert_eq!(page[0]["info"], placing["info"], "a page says the same");

    // What asks for nothing says nothing.
    let hot = alice.post("/p/hot/pins", json!({ "cid": "bafkqaaa" })).await.id();
    let hot = alice.reaches(&hot, "pinned").await.json;
    for key in ["cold", "piece_cid", "deals"] {
        assert_eq!(info(&hot).get(key), None);
    }
}

#[tokio::test]
async fn t25_owners_see_their_own_deals_and_the_operator_all() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, bob, admin) = (world.alice().await, world.bob().await, world.admin().await);
    let carol = world.client("carol", &[Scope::PinsRead]).await;
    let (of_alice, of_bob) = (pinned(&alice).await, pinned(&bob).await);
    let aggregate = aggregate(&world.records).await;
    let owner = account(&world, "alice").await;
    let deal = choose(&world.records, aggregate, 0, 1_000, owner).await;
    world.clock.advance(Duration::from_secs(1));
    let newer = choose(&world.records, aggregate, 1, 1_001, owner).await;

    let pins = async |client: &Client| {
        let listed = client.get("/deals").await;
        listed.is_status(200);
        listed.json.as_array().unwrap().iter().map(|deal| deal["pins"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(pins(&alice).await, [json!([of_alice]), json!([of_alice])]);
    assert_eq!(pins(&bob).await, [json!([of_bob]), json!([of_bob])]);
    assert_eq!(pins(&carol).await, Vec::<Value>::new());
    let mut both = [of_alice.clone(), of_bob.clone()];
    both.sort();
    assert_eq!(pins(&admin).await, [json!(both), json!(both)]);

    let path = format!("/deals/{}", deal.uuid);
    for (client, status) in [(&alice, 200), (&bob, 200), (&admin, 200), (&carol, 404)] {
        client.get(&path).await.is_status(status);
    }
    carol.get(&format!("/deals?pin={of_alice}")).await.is_status(200);
    assert_eq!(carol.get(&format!("/deals?pin={of_alice}")).await.json, json!([]));
    assert_eq!(alice.get(&path).await.json["slot"], 0);
    admin.get("/deals/01989c5e-0000-7000-8000-000000000001").await.is(404, "NOT_FOUND");
    admin.get("/deals/x").await.is(404, "NOT_FOUND");
    world.client("dave", &[Scope::PinsWrite]).await.get("/deals").await.is(403, "FORBIDDEN");

    let uuids = async |query: &str| {
        let listed = admin.get(&format!("/deals?{query}")).await;
        listed.is_status(200);
        let uuids =
            listed.json.as_array().unwrap().iter().map(|deal| deal["deal_uuid"].as_str().unwrap().to_owned());
        uuids.collect::<Vec<_>>()
    };
    let (deal, newer) = (deal.uuid.to_string(), newer.uuid.to_string());
    assert_eq!(uuids("").await, [newer.clone(), deal.clone()]);
    assert_eq!(uuids("limit=1").await, std::slice::from_ref(&newer));
    assert_eq!(uuids(&format!("limit=1&before={newer}")).await, std::slice::from_ref(&deal));
    assert_eq!(uuids("provider=f01000").await, std::slice::from_ref(&deal));
    assert_eq!(uuids("state=chosen,active").await, [newer.clone(), deal.clone()]);
    assert_eq!(uuids("state=active").await, Vec::<String>::new());
    admin.get("/deals?state=refused").await.is(400, "BAD_REQUEST");

    let cost = admin.get("/deals/cost").await.json;
    assert_eq!((&cost[0]["account"], &cost[0]["committed_attofil"]), (&json!("alice"), &json!("2400000")));
    assert_eq!(admin.get("/deals/cost?by=provider").await.json[1]["provider"], "f01001");
    assert_eq!(admin.get("/deals/cost?by=month").await.json[0]["month"], "2026-05");
    assert_eq!(alice.get("/deals/cost").await.json, cost);
    assert_eq!(bob.get("/deals/cost").await.json[0]["committed_attofil"], "0");
    bob.get("/deals/cost?by=provider").await.is(403, "FORBIDDEN");
}

/// What came to nothing may be tried again; what was signed is never signed again.
#[tokio::test]
async fn retry_forgives_what_is_over_and_hurries_what_waits() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    pinned(&alice).await;
    let aggregate = aggregate(&world.records).await;
    let owner = account(&world, "alice").await;
    let failed = choose(&world.records, aggregate, 0, 1_000, owner).await;
    let fault = Fault::new(FailureCode::SpDial, "away");
    world.records.withdraw_deal(failed.uuid, fault).await.unwrap();
    let waiting = choose(&world.records, aggregate, 1, 1_001, owner).await;
    let retry = async |id: &str| admin.post(&format!("/admin/v1/deals/{id}/retry"), json!({})).await;
    assert_eq!(retry(&failed.uuid.to_string()).await.json, json!({ "forgiven": 1, "hurried": 0 }));
    assert_eq!(retry(&waiting.uuid.to_string()).await.json, json!({ "forgiven": 0, "hurried": 1 }));
    assert_eq!(retry(&aggregate.to_string()).await.json, json!({ "forgiven": 1, "hurried": 1 }));
    assert!(world.records.deal(failed.uuid).await.unwrap().is_forgiven);
    assert_eq!(world.records.deal(waiting.uuid).await.unwrap().signed, None);
    retry("01989c5e-0000-7000-8000-000000000001").await.is(404, "NOT_FOUND");
    alice.post(&format!("/admin/v1/deals/{aggregate}/retry"), json!({})).await.is(403, "FORBIDDEN");
}

#[tokio::test]
async fn providers_are_added_suspended_and_asked_again() {
    let world = World::new().await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    let new = json!({ "id": "f01000", "addresses": ["https://sp.example"], "regions": ["eu"] });
    let added = admin.post("/admin/v1/providers", new).await;
    added.is_status(201);
    assert_eq!((&added.json["id"], &added.json["suspended"]), (&json!("f01000"), &Value::Null));
    assert_eq!(admin.get("/admin/v1/providers").await.json, json!([added.json]));
    let suspend = async |body: Value| admin.post("/admin/v1/providers/f01000/suspend", body).await.json;
    assert_eq!(suspend(json!({ "suspended": true, "why": "slow" })).await["suspended"], "slow");
    assert_eq!(suspend(json!({ "suspended": true })).await["suspended"], "by default");
    assert_eq!(suspend(json!({ "suspended": false })).await["suspended"], Value::Null);
    let again = json!({ "id": "t01000", "regions": ["us"] });
    let again = admin.post("/admin/v1/providers", again).await.json;
    assert_eq!((&again["addresses"], &again["regions"]), (&json!([]), &json!(["us"])));
    for wrong in [
        json!({ "id": "1000" }),
        json!({ "id": "f01", "addresses": ["x"] }),
        json!({ "id": "f01", "regions": [""] }),
    ] {
        admin.post("/admin/v1/providers", wrong).await.is(400, "BAD_REQUEST");
    }
    admin.post("/admin/v1/providers/f02/suspend", json!({ "suspended": true })).await.is(404, "NOT_FOUND");
    alice.get("/admin/v1/providers").await.is(403, "FORBIDDEN");
}

/// The switch holds from its answer on, and through a restart; what was signed is listed.
#[tokio::test]
async fn t36_spending_goes_off_at_once_and_lists_what_cannot_be_recalled() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    pinned(&alice).await;
    let aggregate = aggregate(&world.records).await;
    let owner = account(&world, "alice").await;
    let deal = choose(&world.records, aggregate, 0, 1_000, owner).await;
    let signed = floe_core::cold::SignedDeal { bytes: vec![1], signed_cid: *leaf("signed").cid() };
    world.records.store_signed(deal.uuid, signed).await.unwrap();
    let now = world.records.deal(deal.uuid).await.unwrap().created;
    world.records.begin_sending(deal.uuid, Epoch::new(100), now).await.unwrap().unwrap();

    let before = admin.get("/admin/v1/spending").await.json;
    assert_eq!(
        (&before["enabled"], &before["switch"], &before["moved"]),
        (&json!(false), &json!("on"), &Value::Null)
    );
    assert_eq!(before["committed_attofil"]["reserved"], "1200000");
    let off = admin.post("/admin/v1/spending", json!({ "on": false })).await.json;
    assert_eq!((&off["switch"], &off["spending"]), (&json!("off"), &json!(false)));
    assert_eq!(off["signed"][0]["deal_uuid"], deal.uuid.to_string());
    assert!(off["moved"]["by"].as_str().unwrap().starts_with("default, token "), "{off}");
    let refused = world.records.begin_sending(deal.uuid, Epoch::new(100), now).await.unwrap();
    assert_eq!(refused, None, "nothing goes out any more");
    assert_eq!(admin.post("/admin/v1/spending", json!({ "on": true })).await.json["switch"], "on");
    alice.post("/admin/v1/spending", json!({ "on": true })).await.is(403, "FORBIDDEN");
    admin.post("/admin/v1/spending", json!({ "on": "no" })).await.is(400, "BAD_REQUEST");
}

/// After a backup was put back replicas wait, and the operator's word ends that.
#[tokio::test]
async fn t43_the_operator_says_that_the_backup_knows_all_that_was_signed() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    assert!(!world.records.at_home("one disk").await.unwrap(), "nothing was known before");
    assert!(!world.records.at_home("one disk").await.unwrap());
    assert_eq!(admin.get("/admin/v1/spending").await.json["restored"], Value::Null);
    assert!(world.records.at_home("another disk").await.unwrap(), "it is a copy");
    let waits = admin.get("/admin/v1/spending").await.json;
    assert!(waits["restored"]["at"].is_u64(), "{waits}");
    let word = "/admin/v1/spending/trust-backup";
    alice.post(word, json!({})).await.is(403, "FORBIDDEN");
    assert_eq!(admin.post(word, json!({})).await.json["restored"], Value::Null);
    let events = world.records.events_after(0, 10).await.unwrap();
    let settled = events.last().unwrap();
    assert_eq!(settled.kind, "ledger.settled");
    assert!(settled.body["by"].as_str().unwrap().starts_with("default, token "), "{}", settled.body);
    // Said again, nothing happens.
    admin.post(word, json!({})).await.is_status(200);
    assert_eq!(world.records.events_after(0, 10).await.unwrap().len(), events.len());
}

/// The events of a stream, as `id kind`, until it ends.
async fn told(client: &Client, query: &str, last: Option<&str>) -> Vec<String> {
    let request = client.request("GET", &format!("/admin/v1/events?{query}"));
    let request = last.into_iter().fold(request, |request, id| request.header("last-event-id", id));
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let of = |event: &str| {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        Some((field("id: ")?, field("event: ")?, field("data: ")?))
    };
    let events = text.split("\n\n").filter_map(of).map(|(id, kind, data)| {
        let data: Value = serde_json::from_str(&data).unwrap();
        assert_eq!((data["id"].to_string(), data["kind"].as_str()), (id.clone(), Some(kind.as_str())));
        format!("{id} {kind}")
    });
    events.collect()
}

#[tokio::test]
async fn events_are_told_from_where_one_was_and_go_on() {
    let world = World::new().await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    for on in [false, true, false] {
        admin.post("/admin/v1/spending", json!({ "on": on })).await.is_status(200);
    }
    let all = ["1 spending.off", "2 spending.on", "3 spending.off"];
    assert_eq!(told(&admin, "follow=false", None).await, all);
    assert_eq!(told(&admin, "follow=false&after=1", None).await, all[1..]);
    assert_eq!(told(&admin, "follow=false&after=0", Some("2")).await, all[2..], "the header goes first");
    assert_eq!(told(&admin, "follow=false&after=3", None).await, Vec::<String>::new());
    for wrong in ["after=x", "after=-1", "follow=maybe", "after=1&after=2"] {
        admin.get(&format!("/admin/v1/events?{wrong}")).await.is(400, "BAD_REQUEST");
    }
    alice.get("/admin/v1/events").await.is(403, "FORBIDDEN");

    let response = admin.request("GET", "/admin/v1/events?after=3").send().await.unwrap();
    let mut chunks = response.bytes_stream();
    admin.post("/admin/v1/spending", json!({ "on": true })).await.is_status(200);
    let chunk = tokio::time::timeout(Duration::from_secs(5), chunks.next()).await.unwrap().unwrap().unwrap();
    assert!(String::from_utf8_lossy(&chunk).contains("id: 4\n"), "{chunk:?}");

    // A stop ends it at once, and a token that is revoked within a moment.
    let token = world.engine.tokens(Some("default")).await.unwrap().pop().unwrap();
    world.engine.revoke_token(token.id).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), chunks.next()).await.unwrap();
    assert!(ended.is_none(), "{ended:?}");
    let next = world.admin().await;
    let mut open = next.request("GET", "/admin/v1/events?after=4").send().await.unwrap().bytes_stream();
    let World { server, engine, .. } = world;
    tokio::time::timeout(Duration::from_secs(5), server.stop(Duration::from_secs(60))).await.unwrap();
    assert!(open.next().await.is_none_or(|chunk| chunk.is_err()));
    engine.stop().await;
}

#[tokio::test]
async fn streams_of_events_are_bounded() {
    let world = World::new().await;
    let admin = world.admin().await;
    let mut open = Vec::new();
    let answer = loop {
        let response = admin.request("GET", "/admin/v1/events").send().await.unwrap();
        match response.status().as_u16() {
            200 => open.push(response),
            status => break (status, response.headers()["retry-after"].to_str().unwrap().to_owned()),
        }
    };
    assert_eq!((answer, open.len()), ((429, "10".to_owned()), 16));
    open.pop();
    for _ in 0..500 {
        let response = admin.request("GET", "/admin/v1/events").send().await.unwrap();
        if response.status() == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a place that was left is never given again");
}

/// The plan says what would be packed and made, and makes nothing.
#[tokio::test]
async fn a_plan_shows_what_waits_and_spends_nothing() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    pinned(&alice).await;
    let plan = async || admin.get("/admin/v1/cold/plan").await;
    let before = plan().await;
    before.is_status(200);
    assert!(before.json["paused"].is_string(), "no node is configured: {}", before.text);
    assert_eq!(before.json["left_out"][0]["root"], "bafkqaaa", "it was not measured: {}", before.text);
    let part = LotPart { part: 0, first: 0, sections: 1, bytes: 100 };
    for lot in world.records.lots_to_measure(99).await.unwrap() {
        world.records.lot_measured(lot.id, 1 << 20, vec![part]).await.unwrap();
    }
    let planned = plan().await.json;
    let piece = &planned["pieces"][0];
    assert_eq!(
        (&piece["policy"], &piece["replicas"], &piece["full"]),
        (&json!("default"), &json!(3), &json!(false))
    );
    assert_eq!((&piece["dags"][0]["root"], &piece["data_bytes"]), (&json!("bafkqaaa"), &json!(100)));
    assert_eq!(piece["cost_at_most_attofil"], "0", "the policy takes deals for nothing alone");
    assert_eq!(plan().await.json, planned);
    assert_eq!((&planned["deals"], &planned["cost_attofil"]), (&json!([]), &json!("0")));
    assert!(world.records.deal_counts().await.unwrap().values().all(|count| *count == 0));
    alice.get("/admin/v1/cold/plan").await.is(403, "FORBIDDEN");
}

#[tokio::test]
async fn status_has_the_cold_half_where_something_goes_there() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    pinned(&alice).await;
    aggregate(&world.records).await;
    let cold = admin.get("/admin/v1/status").await.json["cold"].clone();
    assert_eq!((&cold["aggregates"]["packed"], &cold["deals"]["active"]), (&json!(1), &json!(0)));
    assert_eq!((&cold["spending"], &cold["committed"]), (&json!(false), &json!("0")));
    let hot = World::new().await;
    assert_eq!(hot.admin().await.get("/admin/v1/status").await.json["cold"], Value::Null);
}
