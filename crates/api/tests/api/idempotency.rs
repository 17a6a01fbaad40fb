//! `Idempotency-Key`: a request that is sent again is one request (T46).

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use floe_core::Seeded;
use floe_core::ports::Entropy as _;
use serde_json::json;

use crate::support::{Client, Reply, World, leaf};

async fn post(client: &Client, path: &str, key: &str, body: &serde_json::Value) -> Reply {
    client.send(client.request("POST", path).header("idempotency-key", key).json(body)).await
}

#[tokio::test]
async fn t46_retries_that_race_make_one_pin() {
    let world = World::new().await;
    let alice = world.alice().await;
    let body = json!({ "cid": leaf("a").cid().to_string() });
    let tries = (0..40).map(|_| {
        let (alice, body) = (alice.clone(), body.clone());
        tokio::spawn(async move { post(&alice, "/pins", "key", &body).await })
    });
    let mut ids = HashSet::new();
    for tried in tries.collect::<Vec<_>>() {
        let reply = tried.await.unwrap();
        reply.is_status(202);
        ids.insert(reply.id());
    }
    assert_eq!(ids.len(), 1);
    let (count, _) = alice.list("status=queued,pinning,pinned").await;
    assert_eq!(count, 1);
}

#[tokio::test]
async fn t46_another_body_under_the_same_key_is_422() {
    let world = World::new().await;
    let (alice, bob) = (world.alice().await, world.bob().await);
    let (one, two) =
        (json!({ "cid": leaf("a").cid().to_string() }), json!({ "cid": leaf("b").cid().to_string() }));
    let first = post(&alice, "/pins", "key", &one).await.id();
    post(&alice, "/pins", "key", &two).await.is(422, "UNPROCESSABLE");
    post(&alice, "/pins/batch", "key", &json!({ "pins": [one.clone()] })).await.is(422, "UNPROCESSABLE");
    for path in ["/pins", "/pins/", "/p/default/pins"] {
        assert_eq!(post(&alice, path, "key", &one).await.id(), first, "{path} is the same request");
    }
    assert_ne!(post(&bob, "/pins", "key", &two).await.id(), first, "keys are each account's own");
    post(&alice, "/pins", &"k".repeat(255), &one).await.is_status(202);
    post(&alice, "/pins", &"k".repeat(256), &one).await.is(400, "BAD_REQUEST");
}

#[tokio::test]
async fn t46_batch_and_replace_take_a_key_too() {
    let world = World::new().await;
    let alice = world.alice().await;
    let batch =
        json!({ "pins": [{ "cid": leaf("a").cid().to_string() }, { "cid": leaf("b").cid().to_string() }] });
    let first = post(&alice, "/pins/batch", "batch", &batch).await;
    let again = post(&alice, "/pins/batch", "batch", &batch).await;
    assert_eq!(ids(&first), ids(&again));

    let path = format!("/pins/{}", ids(&first)[0]);
    let body = json!({ "cid": leaf("c").cid().to_string() });
    let replaced = post(&alice, &path, "replace", &body).await;
    replaced.is_status(202);
    assert_eq!(
        post(&alice, &path, "replace", &body).await.id(),
        replaced.id(),
        "although the old pin is gone"
    );
    let (count, _) = alice.list("status=queued,pinning,pinned").await;
    assert_eq!(count, 2);
}

/// The story: a pin was accepted, its answer was lost, and by the time of the retry the disk had fallen under its reserve:
/// the retry got 507, and the client held a pin that was there for one that was refused.
#[tokio::test]
async fn t46_a_retry_gets_its_answer_on_a_full_disk() {
    let world = World::new().await;
    let alice = world.alice().await;
    let pin = |text: &str| json!({ "cid": leaf(text).cid().to_string(), "name": text });
    let old = post(&alice, "/pins", "old", &pin("old")).await.id();
    let (add, batch, replace) = (pin("a"), json!({ "pins": [pin("b"), pin("c")] }), pin("d"));
    let path = format!("/pins/{old}");
    let requests = [("/pins", &add), ("/pins/batch", &batch), (path.as_str(), &replace)];
    let mut first = Vec::new();
    for (path, body) in requests {
        first.push(post(&alice, path, path, body).await);
    }

    world.free.store(0, Ordering::SeqCst);
    while world.engine.ready().await.is_ok() {
        world.clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for ((path, body), first) in requests.into_iter().zip(&first) {
        let again = post(&alice, path, path, body).await;
        again.is_status(202);
        assert_eq!(ids(&again), ids(first), "{path}");
        post(&alice, path, path, &json!({ "cid": "bafkqaaa", "pins": [pin("x")] }))
            .await
            .is(422, "UNPROCESSABLE");
        post(&alice, path, "new", body).await.is(507, "INSUFFICIENT_STORAGE");
    }
    // A pin that is gone is shown as it was made.
    alice.delete(&format!("/pins/{}", ids(&first[0])[0])).await.is_status(202);
    let again = post(&alice, "/pins", "/pins", &add).await;
    assert_eq!((ids(&again), &again.json["pin"]["name"]), (ids(&first[0]), &json!("a")));

    // The node stops: whoever is still answered is told the same.
    world.free.store(1 << 40, Ordering::SeqCst);
    world.engine.stop().await;
    assert_eq!(ids(&post(&alice, "/pins", "/pins", &add).await), ids(&first[0]));
    assert_eq!(post(&alice, "/pins", "new", &add).await.status, 503);
}

/// The story: a replacement inherited its policy and said how many replicas. The pin that it inherited from was gone by
/// the time of the retry, no policy was there to have replicas under, and the retry got 400.
#[tokio::test]
async fn t46_a_retry_of_a_replacement_does_not_choose_its_policy_again() {
    let world = World::with_policies(&[("gold", 3)]).await;
    let alice = world.alice().await;
    let old = alice.post("/p/gold/pins", json!({ "cid": "bafkqaaa" })).await.id();
    let path = format!("/pins/{old}");
    let body = json!({ "cid": leaf("a").cid().to_string(), "meta": { "replicas": "2" } });
    let first = post(&alice, &path, "key", &body).await;
    first.is_status(202);
    let again = post(&alice, &path, "key", &body).await;
    again.is_status(202);
    assert_eq!(again.id(), first.id());
    let other = json!({ "cid": leaf("a").cid().to_string(), "meta": { "replicas": "1" } });
    post(&alice, &path, "key", &other).await.is(422, "UNPROCESSABLE");
}

/// The request ids of an answer, of one pin or of a batch.
fn ids(reply: &Reply) -> Vec<String> {
    let Some(results) = reply.json["results"].as_array() else { return vec![reply.id()] };
    results.iter().map(|pin| pin["requestid"].as_str().unwrap().to_owned()).collect()
}

/// Clients that lose patience, that ask again, and that ask twice at once: ten thousand requests under a thousand keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t46_ten_thousand_random_retries_make_one_pin_for_each_key() {
    const KEYS: u64 = 1_000;
    const REQUESTS: u64 = 10_000;
    // Together they have the 64 connections of one address, three for each that asks three times at once.
    const CLIENTS: u64 = 16;
    let world = World::new().await;
    let alice = world.alice().await;
    let clients = (0..CLIENTS).map(|n| {
        let alice = Client { http: reqwest::Client::new(), ..alice.clone() };
        tokio::spawn(async move {
            let dice = Seeded::new(n);
            let random = |below: u64| {
                let mut bytes = [0; 8];
                dice.fill(&mut bytes);
                u64::from_le_bytes(bytes) % below
            };
            let mut answers = Vec::new();
            let mut given_up = 0;
            let mut sent = 0;
            while sent < REQUESTS / CLIENTS {
                // Near each other, so that the clients meet at the same keys.
                let key = (sent * CLIENTS * KEYS / REQUESTS + random(20)) % KEYS;
                let copies = 1 + random(3);
                let patience =
                    if random(4) == 0 { Duration::from_micros(random(3_000)) } else { Duration::MAX };
                let tries = (0..copies).map(|_| try_once(&alice, key, patience));
                for answer in futures::future::join_all(tries).await {
                    match answer {
                        Some(id) => answers.push((key, id)),
                        None => given_up += 1,
                    }
                }
                sent += copies;
            }
            (answers, given_up)
        })
    });
    let mut ids = BTreeMap::<u64, HashSet<String>>::new();
    let mut given_up = 0;
    for client in clients.collect::<Vec<_>>() {
        let (answers, impatient) = client.await.unwrap();
        given_up += impatient;
        for (key, id) in answers {
            ids.entry(key).or_default().insert(id);
        }
    }
    assert!(given_up > 100, "{given_up} requests were cut off or refused");
    for key in 0..KEYS {
        ids.entry(key).or_default().extend(try_once(&alice, key, Duration::MAX).await);
    }
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    let (count, _) = alice.list("status=queued,pinning,pinned,failed").await;
    assert_eq!(count, KEYS);
}

/// `None` where the client lost patience, or was told to come again.
async fn try_once(client: &Client, key: u64, patience: Duration) -> Option<String> {
    let body = json!({ "cid": leaf(&format!("block {key}")).cid().to_string() });
    let key = format!("key {key}");
    let request = post(client, "/pins", &key, &body);
    let reply = tokio::time::timeout(patience, request).await.ok()?;
    if reply.status == 429 {
        return None;
    }
    reply.is_status(202);
    Some(reply.id())
}
