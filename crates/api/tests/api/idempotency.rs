//! `Idempotency-Key`: a request that is sent again is one request (T46).

use std::collections::HashSet;

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
    let ids = |reply: &Reply| -> Vec<String> {
        let results = reply.json["results"].as_array().unwrap();
        results.iter().map(|pin| pin["requestid"].as_str().unwrap().to_owned()).collect()
    };
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
