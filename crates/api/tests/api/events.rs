//! `GET /pins/{requestid}/events`.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::support::{Client, World, leaf};
use crate::{leaks, schema};

/// Reads a stream to its end.
async fn follow(client: Client, id: String) -> Vec<Value> {
    let response = client.request("GET", &format!("/pins/{id}/events")).send().await.unwrap();
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        text += std::str::from_utf8(&chunk.unwrap()).unwrap();
    }
    leaks::look_for(&headers, &text);
    text.split("\n\n").filter(|event| !event.is_empty()).map(status_of).collect()
}

fn status_of(event: &str) -> Value {
    let (kind, data) = event.split_once('\n').unwrap();
    assert_eq!(kind, "event: status");
    let pin = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    schema::conforms("PinStatus", &pin);
    pin
}

async fn ended(task: tokio::task::JoinHandle<Vec<Value>>) -> Vec<Value> {
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("the stream ends").unwrap()
}

#[tokio::test]
async fn a_stream_shows_each_state_and_ends_when_pinned() {
    let world = World::new().await;
    let alice = world.alice().await;
    let block = leaf("a");
    let id = alice.add_cid(block.cid()).await;
    alice.reaches(&id, "pinning").await;
    let stream = tokio::spawn(follow(alice.clone(), id.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.peers.have(&[block]);
    let states = ended(stream).await;
    assert_eq!(states.first().unwrap()["status"], "pinning");
    assert_eq!(states.last().unwrap()["status"], "pinned");
    let again = ended(tokio::spawn(follow(alice, id))).await;
    assert_eq!(again.len(), 1, "a settled pin is told once");
}

#[tokio::test]
async fn a_stream_ends_when_the_pin_fails() {
    let world = World::new().await;
    let alice = world.alice().await;
    let broken =
        floe_core::Block::of(floe_core::cid::code::DAG_CBOR, bytes::Bytes::from_static(&[0xff])).unwrap();
    let id = alice.add_cid(broken.cid()).await;
    alice.reaches(&id, "pinning").await;
    let stream = tokio::spawn(follow(alice.clone(), id));
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.peers.have(&[broken]);
    assert_eq!(ended(stream).await.last().unwrap()["status"], "failed");
}

#[tokio::test]
async fn a_stream_ends_when_the_pin_is_removed() {
    let world = World::new().await;
    let alice = world.alice().await;
    let id = alice.add_cid(leaf("a").cid()).await;
    alice.reaches(&id, "pinning").await;
    let stream = tokio::spawn(follow(alice.clone(), id.clone()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    alice.delete(&format!("/pins/{id}")).await.is_status(202);
    assert!(!ended(stream).await.is_empty());
}

/// The token was looked at once: a stream that was open went on for days after it was revoked. Nor did it look again
/// by itself while pins of others changed: each change began the wait for the next look anew.
#[tokio::test]
async fn t24_a_stream_ends_when_its_token_does_or_its_account_is_suspended() {
    const HOUR: Duration = Duration::from_secs(3600);
    for way in ["revoked", "expired", "suspended"] {
        let world = World::new().await;
        let (mut alice, bob) = (world.alice().await, world.bob().await);
        let id = alice.add_cid(leaf("a").cid()).await;
        alice.reaches(&id, "pinning").await;
        let a_second = async || {
            let other = bob.add(json!({ "cid": "bafkqaaa" })).await.id();
            bob.delete(&format!("/pins/{other}")).await.is_status(202);
            world.clock.advance(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        // Parked, it says nothing by itself for 20 s.
        while !alice.reaches(&id, "pinning").await.text.contains("Waiting until") {
            a_second().await;
        }
        let (token, secret) =
            world.engine.create_token("alice", &[floe_engine::Scope::PinsRead], Some(HOUR)).await.unwrap();
        alice.token = secret;
        let response = alice.request("GET", &format!("/pins/{id}/events")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let stream = tokio::spawn(response.text());
        for _ in 0..5 {
            a_second().await;
        }
        assert!(!stream.is_finished(), "{way}: it goes on while the token holds");
        match way {
            "revoked" => world.engine.revoke_token(token.id).await.unwrap(),
            "expired" => world.clock.advance(HOUR),
            _ => world.engine.suspend_account("alice", true).await.unwrap(),
        }
        for _ in 0..5 {
            a_second().await;
        }
        let text = tokio::time::timeout(Duration::from_secs(10), stream).await;
        assert!(text.is_ok(), "{way}: it ends");
    }
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_streams() {
    let world = World::new().await;
    let alice = world.alice().await;
    let id = alice.add_cid(leaf("a").cid()).await;
    let stream = tokio::spawn(follow(alice.clone(), id));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let World { server, engine, .. } = world;
    let stop = server.stop(Duration::from_secs(30));
    tokio::time::timeout(Duration::from_secs(5), stop).await.expect("streams hold up nothing");
    ended(stream).await;
    engine.stop().await;
}
