//! `/pins` and `/pins/{requestid}`: adding, looking, replacing, removing.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::net::PEER_ID;
use crate::schema;
use crate::support::{World, leaf, node};

#[tokio::test]
async fn m03_m06_m07_m09_a_pin_is_accepted_and_echoed() {
    let world = World::new().await;
    let alice = world.alice().await;
    let cid = leaf("a").cid().to_string();
    let sent = json!({
        "cid": cid, "name": "a name", "meta": { "app": "x" },
        "origins": ["/ip4/198.51.100.1/tcp/4001/p2p/12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust"],
    });
    let reply = alice.add(sent.clone()).await;
    assert_eq!(reply.json["pin"], sent);
    assert_eq!(reply.json["status"], "queued", "S3: it starts queued");
    let shown = alice.get(&format!("/pins/{}", reply.id())).await;
    assert_eq!(shown.json["pin"], sent, "M6: meta is kept");
    assert_eq!(shown.json["created"], reply.json["created"]);
}

#[tokio::test]
async fn m03_what_is_optional_is_left_out_and_what_is_unknown_is_ignored() {
    let world = World::new().await;
    let alice = world.alice().await;
    let cid = leaf("a").cid().to_string();
    let reply = alice.add(json!({ "cid": cid, "name": null, "replicas": 3 })).await;
    assert_eq!(reply.json["pin"], json!({ "cid": cid }));
}

#[tokio::test]
async fn m04_s02_each_request_has_its_own_id() {
    let world = World::new().await;
    let alice = world.alice().await;
    let cid = *leaf("a").cid();
    let mut ids = HashSet::new();
    for _ in 0..5 {
        let id = alice.add_cid(&cid).await;
        assert_eq!(id.as_bytes()[14], b'7', "UUIDv7: {id}");
        assert!(ids.insert(id));
    }
}

#[tokio::test]
async fn m05_s03_a_dag_is_pinned_as_a_whole() {
    let world = World::new().await;
    let alice = world.alice().await;
    let leaves = [leaf("one"), leaf("two")];
    let middle = node(&[*leaves[0].cid(), *leaves[1].cid()]);
    let root = node(&[*middle.cid(), *leaves[0].cid()]);
    world.peers.have(&[root.clone(), middle.clone(), leaves[0].clone()]);
    let id = alice.add_cid(root.cid()).await;
    let pinning = alice.reaches(&id, "pinning").await;
    assert_eq!(pinning.json["info"].get("dag_size"), None, "not while a block is missing");
    world.peers.have(&leaves);
    let pinned = alice.reaches(&id, "pinned").await;
    let bytes: usize = [&root, &middle, &leaves[0], &leaves[1]].iter().map(|b| b.data().len()).sum();
    assert_eq!(pinned.json["info"]["dag_size"], bytes.to_string());
    assert_eq!(pinned.json["info"]["progress_blocks"], "4");
    assert_eq!(pinned.json["info"]["status_details"], format!("Pinned, 4 blocks and {bytes} bytes"), "S4");
}

#[tokio::test]
async fn m07_any_spelling_of_a_cid_is_echoed_and_found() {
    let world = World::new().await;
    let alice = world.alice().await;
    let cid = *leaf("a").cid();
    let hex = cid.to_string_of_base(cid::multibase::Base::Base16Lower).unwrap();
    let reply = alice.add(json!({ "cid": hex })).await;
    assert_eq!(reply.json["pin"]["cid"], hex);
    let (count, _) = alice.list(&format!("cid={cid}&status=queued,pinning,pinned")).await;
    assert_eq!(count, 1);
}

#[tokio::test]
async fn t45_delegates_are_the_node_s_and_private_ones_for_this_machine_alone() {
    let world = World::new().await;
    let alice = world.alice().await;
    let local = alice.add(json!({ "cid": leaf("a").cid().to_string() })).await;
    let forwarded = alice.request("POST", "/pins").header("x-forwarded-for", "198.51.100.1");
    let forwarded = alice.send(forwarded.json(&json!({ "cid": leaf("b").cid().to_string() }))).await;
    for (reply, private) in [(&local, true), (&forwarded, false)] {
        let delegates: Vec<&str> =
            reply.json["delegates"].as_array().unwrap().iter().map(|d| d.as_str().unwrap()).collect();
        assert!(delegates.iter().all(|d| d.ends_with(&format!("/p2p/{PEER_ID}"))), "{delegates:?}");
        // T45: a private address is for this machine alone.
        assert_eq!(delegates.iter().any(|d| d.contains("127.0.0.1")), private, "{delegates:?}");
    }
}

#[tokio::test]
async fn kubo_s07_origins_are_hints() {
    let world = World::new().await;
    let alice = world.alice().await;
    let mut origins: Vec<Value> =
        (0..30).map(|i| json!(format!("/ip4/198.51.100.1/tcp/{}", 4000 + i))).collect();
    origins.insert(0, json!("not a multiaddr"));
    origins.insert(1, json!("/ip4/127.0.0.1/udp/4001/quic-v1/webtransport"));
    origins.insert(2, json!(7));
    let cid = *leaf("a").cid();
    let reply = alice.add(json!({ "cid": cid.to_string(), "origins": origins })).await;
    assert_eq!(reply.json["pin"]["origins"].as_array().unwrap().len(), 20, "the schema's bound");
    // The rows say `pinning` a moment before the exchange is asked.
    let given = || {
        let hints = world.peers.hints();
        hints
            .iter()
            .filter(|h| h.root == cid)
            .flat_map(|h| &h.origins)
            .any(|o| o.local_request && o.addresses.iter().any(|a| a.ends_with("/4000")))
    };
    for _ in 0..2_000 {
        if given() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the origins were not handed on: {:?}", world.peers.hints().len());
}

#[tokio::test]
async fn kubo_identity_cids_are_pinned_without_the_network() {
    let world = World::new().await;
    let alice = world.alice().await;
    let id = alice.add(json!({ "cid": "bafkqaaa" })).await.id();
    alice.reaches(&id, "pinned").await;
    let inline: floe_core::Cid = floe_core::cid::parse("bafkqabtjnzwgs3tf").unwrap();
    let root = node(&[inline]);
    world.peers.have(std::slice::from_ref(&root));
    let id = alice.add_cid(root.cid()).await;
    alice.reaches(&id, "pinned").await;
    assert_eq!(world.peers.asked(&inline), 0);
}

#[tokio::test]
async fn m02_bad_bodies_are_refused_and_lose_nothing() {
    let world = World::new().await;
    let alice = world.alice().await;
    for body in [
        "",
        "{",
        "[]",
        "null",
        "\"x\"",
        "{}",
        r#"{"cid":7}"#,
        r#"{"cid":"x"}"#,
        r#"{"cid":"bafkqaaa","name":7}"#,
        r#"{"cid":"bafkqaaa","meta":{"policy":"gold"}}"#,
    ] {
        let request = alice.request("POST", "/pins").header("content-type", "application/json").body(body);
        alice.send(request).await.is(400, "BAD_REQUEST");
    }
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let request = alice.request("POST", "/pins").header("content-type", "application/json").body(deep);
    alice.send(request).await.is(400, "BAD_REQUEST");
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let request =
            alice.request("POST", "/pins").header("content-type", kind).body(r#"{"cid":"bafkqaaa"}"#);
        alice.send(request).await.is(415, "UNSUPPORTED_MEDIA_TYPE");
    }
    let kind = "application/json; charset=utf-8";
    let request = alice.request("POST", "/pins").header("content-type", kind).body(r#"{"cid":"bafkqaaa"}"#);
    alice.send(request).await.is_status(202);
    let large = json!({ "cid": "bafkqaaa", "name": "x".repeat(256 << 10) });
    alice.post("/pins", large).await.is(413, "PAYLOAD_TOO_LARGE");
    let (count, _) = alice.list("status=queued,pinning,pinned,failed").await;
    assert_eq!(count, 1);
}

#[tokio::test]
async fn m21_what_is_no_request_id_is_not_found() {
    let world = World::new().await;
    let alice = world.alice().await;
    let id = alice.add_cid(leaf("a").cid()).await;
    let upper = id.to_uppercase();
    let unknown = "01989c5e-0000-7000-8000-000000000001";
    for wrong in [unknown, "x", "%ff", "..", &upper, &id.replace('-', ""), &format!("{{{id}}}")] {
        for method in ["GET", "POST", "DELETE"] {
            let request =
                alice.request(method, &format!("/pins/{wrong}")).json(&json!({ "cid": "bafkqaaa" }));
            let reply = alice.send(request).await;
            assert_eq!((reply.status, reply.reason()), (404, "NOT_FOUND"), "{method} {wrong}");
        }
    }
    alice.get(&format!("/pins/{unknown}")).await.is(404, "NOT_FOUND");
}

#[tokio::test]
async fn m22_replace_gives_a_new_id_keeps_the_blocks_and_fetches_the_difference() {
    let world = World::new().await;
    let alice = world.alice().await;
    let shared = leaf("shared");
    let old_root = node(&[*shared.cid()]);
    let added = leaf("added");
    let new_root = node(&[*shared.cid(), *added.cid()]);
    world.peers.have(&[shared.clone(), old_root.clone()]);
    let old = alice.add_cid(old_root.cid()).await;
    alice.reaches(&old, "pinned").await;

    let body = json!({ "cid": new_root.cid().to_string(), "name": "second" });
    let reply = alice.post(&format!("/pins/{old}"), body).await;
    reply.is_status(202);
    schema::conforms("PinStatus", &reply.json);
    assert_ne!(reply.id(), old);
    alice.get(&format!("/pins/{old}")).await.is(404, "NOT_FOUND");
    alice.delete(&format!("/pins/{old}")).await.is(404, "NOT_FOUND");
    alice.reaches(&reply.id(), "pinning").await;
    world.peers.have(&[new_root, added]);
    alice.reaches(&reply.id(), "pinned").await;
    assert_eq!(world.peers.asked(shared.cid()), 1, "only the difference is fetched");
}

#[tokio::test]
async fn m22_replace_works_in_every_status() {
    let world = World::new().await;
    let alice = world.alice().await;
    let broken =
        floe_core::Block::of(floe_core::cid::code::DAG_CBOR, bytes::Bytes::from_static(&[0xff])).unwrap();
    let whole = leaf("whole");
    world.peers.have(&[broken.clone(), whole.clone()]);
    for (cid, status) in
        [(*leaf("dead").cid(), "pinning"), (*whole.cid(), "pinned"), (*broken.cid(), "failed")]
    {
        let id = alice.add_cid(&cid).await;
        alice.reaches(&id, status).await;
        let reply = alice.post(&format!("/pins/{id}"), json!({ "cid": whole.cid().to_string() })).await;
        reply.is_status(202);
        alice.reaches(&reply.id(), "pinned").await;
    }
    let [queued, _] = two_queued(&alice).await;
    let reply = alice.post(&format!("/pins/{queued}"), json!({ "cid": whole.cid().to_string() })).await;
    reply.is_status(202);
    alice.get(&format!("/pins/{queued}")).await.is(404, "NOT_FOUND");
    alice.reaches(&reply.id(), "pinned").await;
}

/// Two pins that wait behind as many dead ones as are looked for at once.
async fn two_queued(alice: &crate::support::Client) -> [String; 2] {
    for n in 0..10 {
        let id = alice.add_cid(leaf(&format!("dead {n}")).cid()).await;
        alice.reaches(&id, "pinning").await;
    }
    let first = alice.add_cid(leaf("first in the queue").cid()).await;
    let second = alice.add_cid(leaf("second in the queue").cid()).await;
    alice.reaches(&second, "queued").await;
    [first, second]
}

#[tokio::test]
async fn s04_a_list_tells_each_place_in_the_queue() {
    let world = World::new().await;
    let alice = world.alice().await;
    let queued = two_queued(&alice).await;
    let list = alice.get("/pins?status=queued").await;
    for (n, id) in queued.iter().enumerate() {
        let place = format!("Queue position: {}", n + 1);
        let results = list.json["results"].as_array().unwrap();
        let listed = results.iter().find(|pin| pin["requestid"] == id.as_str()).unwrap();
        assert_eq!(listed["info"]["status_details"], place.as_str());
        assert_eq!(alice.get(&format!("/pins/{id}")).await.json["info"]["status_details"], place.as_str());
    }
}

#[tokio::test]
async fn m23_m24_delete_answers_202_without_a_body_in_every_status() {
    let world = World::new().await;
    let alice = world.alice().await;
    let whole = leaf("whole");
    world.peers.have(std::slice::from_ref(&whole));
    let pinned = alice.add_cid(whole.cid()).await;
    alice.reaches(&pinned, "pinned").await;
    let broken =
        floe_core::Block::of(floe_core::cid::code::DAG_CBOR, bytes::Bytes::from_static(&[0xff])).unwrap();
    world.peers.have(std::slice::from_ref(&broken));
    let failed = alice.add_cid(broken.cid()).await;
    alice.reaches(&failed, "failed").await;
    let [queued, _] = two_queued(&alice).await;
    let pending = alice.add_cid(leaf("dead 0").cid()).await;
    for id in [pinned, pending, failed, queued] {
        let reply = alice.delete(&format!("/pins/{id}")).await;
        assert_eq!((reply.status, reply.text.as_str()), (202, ""));
        alice.get(&format!("/pins/{id}")).await.is(404, "NOT_FOUND");
        alice.delete(&format!("/pins/{id}")).await.is(404, "NOT_FOUND");
    }
}

#[tokio::test]
async fn a_failed_pin_says_why() {
    let world = World::new().await;
    let alice = world.alice().await;
    let broken =
        floe_core::Block::of(floe_core::cid::code::DAG_CBOR, bytes::Bytes::from_static(&[0xff])).unwrap();
    world.peers.have(std::slice::from_ref(&broken));
    let id = alice.add_cid(broken.cid()).await;
    let failed = alice.reaches(&id, "failed").await;
    let details = failed.json["info"]["status_details"].as_str().unwrap();
    assert!(details.contains("malformed"), "S4: {details}");
}

#[tokio::test]
async fn a_batch_is_accepted_in_its_order_or_not_at_all() {
    let world = World::new().await;
    let alice = world.alice().await;
    let names: Vec<String> = (0..1000).map(|i| format!("pin {i}")).collect();
    let pins: Vec<Value> = names.iter().map(|name| json!({ "cid": "bafkqaaa", "name": name })).collect();
    let reply = alice.post("/pins/batch", json!({ "pins": pins })).await;
    reply.is_status(202);
    let results = reply.json["results"].as_array().unwrap();
    results.iter().for_each(|pin| schema::conforms("PinStatus", pin));
    let echoed: Vec<&str> = results.iter().map(|pin| pin["pin"]["name"].as_str().unwrap()).collect();
    assert_eq!(echoed, names);
    let created: HashSet<&str> = results.iter().map(|pin| pin["created"].as_str().unwrap()).collect();
    assert_eq!(created.len(), 1000, "M15: each has its own millisecond");

    let wrong = alice.post("/pins/batch", json!({ "pins": [{ "cid": "bafkqaaa" }, { "cid": "x" }] })).await;
    wrong.is(400, "BAD_REQUEST");
    assert!(wrong.details().starts_with("pins[1].cid: "), "{}", wrong.details());
    alice.post("/pins/batch", json!({ "pins": [] })).await.is(400, "BAD_REQUEST");
    let (count, _) = alice.list("status=queued,pinning,pinned,failed&limit=1").await;
    assert_eq!(count, 1000);
}

/// M15: a clock that stands still lets `created` run 2 s ahead and no further.
#[tokio::test]
async fn m15_created_runs_at_most_2_s_ahead_then_429() {
    let world = World::new().await;
    let alice = world.alice().await;
    let batch = json!({ "pins": vec![json!({ "cid": "bafkqaaa" }); 1000] });
    alice.post("/pins/batch", batch.clone()).await.is_status(202);
    alice.post("/pins/batch", batch.clone()).await.is_status(202);
    let refused = alice.post("/pins/batch", batch.clone()).await;
    refused.is(429, "TOO_MANY_REQUESTS");
    assert_eq!(refused.headers["retry-after"], "1");
    world.clock.advance(std::time::Duration::from_secs(1));
    alice.post("/pins/batch", batch).await.is_status(202);
}

#[tokio::test]
async fn t26_200_concurrent_posts_at_the_edge_of_the_quota() {
    // A proxy may open more connections than a client.
    let world = World::with(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()]).await;
    let both = [floe_engine::Scope::PinsRead, floe_engine::Scope::PinsWrite];
    let alice = world.client_with("edge", &both, Some(50)).await;
    let tries = (0..200).map(|i| {
        let alice = alice.clone();
        tokio::spawn(
            async move { alice.post("/pins", json!({ "cid": "bafkqaaa", "name": i.to_string() })).await },
        )
    });
    let mut statuses = Vec::new();
    for tried in tries.collect::<Vec<_>>() {
        let reply = tried.await.unwrap();
        if reply.status != 202 {
            reply.is(409, "INSUFFICIENT_FUNDS");
        }
        statuses.push(reply.status);
    }
    assert_eq!(statuses.iter().filter(|s| **s == 202).count(), 50, "{statuses:?}");
    let (count, _) = alice.list("status=queued,pinning,pinned,failed&limit=1").await;
    assert_eq!(count, 50, "overshoot: none");
}
