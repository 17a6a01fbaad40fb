//! The faults of the node, each over its port: what a client sees while they hold, and that they end.

use serde_json::json;

use super::client::{World, send};
use super::*;

const HEAD: &str = r#"{"jsonrpc":"2.0","method":"Filecoin.ChainHead","params":[],"id":1}"#;

/// Status and body of a request to the node; the error says that the connection closed early.
async fn head(world: &World) -> Result<(u16, String), hyper::Error> {
    let ready = world.devnet.ready();
    let url = format!("{}/rpc/v1", ready.rpc);
    let kind = ("application/json", Some(ready.token.as_str()));
    let (status, body) = send("POST", &url, kind, HEAD.into()).await?;
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

async fn node(world: &World, faults: Value) {
    world.control("POST", "/faults", json!({"node": faults})).await;
}

async fn height(world: &World) -> i64 {
    world.call("ChainHead", json!([])).await["Height"].as_i64().unwrap()
}

#[tokio::test]
async fn down_half_lost_and_wrong_answers() {
    let world = World::start(&[Manner::Curio]).await;
    for fault in ["down", "half_body", "lost_reply"] {
        node(&world, json!({"rules": [{"fault": fault}]})).await;
        head(&world).await.unwrap_err();
    }
    node(&world, json!({"rules": [{"fault": {"status": 503}}]})).await;
    assert_eq!(head(&world).await.unwrap().0, 503);
    node(&world, json!({"rules": [{"fault": {"error": "busy"}, "methods": ["Filecoin.ChainHead"]}]})).await;
    assert_eq!(world.rpc("ChainHead", json!([])).await["error"], json!({"code": 1, "message": "busy"}));
    world.call("StateNetworkName", json!([])).await;
    // The first goes well, the next two do not, and then all do.
    node(&world, json!({"rules": [{"fault": "down", "after": 1, "times": 2}]})).await;
    let mut ok = Vec::new();
    for _ in 0..4 {
        ok.push(head(&world).await.is_ok());
    }
    assert_eq!(ok, [true, false, false, true]);
    node(&world, json!({})).await;
    assert_eq!(head(&world).await.unwrap().0, 200);
}

/// The call is made although no answer comes: who pushes again is told that the message is there.
#[tokio::test]
async fn a_lost_reply_is_a_call_that_was_made() {
    let world = World::start(&[Manner::Curio]).await;
    let me = json!(world.key.address());
    let message = json!({
        "Version": 0, "To": "f0100", "From": me, "Nonce": 1, "Value": "5", "GasLimit": 10_000_000,
        "GasFeeCap": "1000", "GasPremium": "10", "Method": 0, "Params": null,
    });
    let signed = world.call("WalletSignMessage", json!([me, message])).await;
    node(&world, json!({"rules": [{"fault": "lost_reply", "methods": ["Filecoin.MpoolPush"], "times": 1}]}))
        .await;
    let ready = world.devnet.ready();
    let push =
        json!({"jsonrpc": "2.0", "id": 1, "method": "Filecoin.MpoolPush", "params": [signed]}).to_string();
    let url = format!("{}/rpc/v1", ready.rpc);
    let kind = ("application/json", Some(ready.token.as_str()));
    send("POST", &url, kind, push.into()).await.unwrap_err();
    let again = world.rpc("MpoolPush", json!([signed])).await;
    let text = again["error"]["message"].as_str().unwrap();
    assert!(text.ends_with("message with nonce already exists"), "{text}");
}

#[tokio::test]
async fn slow() {
    let world = World::start(&[Manner::Curio]).await;
    node(&world, json!({"rules": [{"fault": {"slow": 300}, "times": 1}]})).await;
    let early = tokio::time::timeout(Duration::from_millis(100), head(&world)).await;
    assert!(early.is_err(), "an answer came at once");
    assert_eq!(head(&world).await.unwrap().0, 200);
}

/// A stale node shows the head it had, is not ready, and what is pushed to it is heard by nobody.
#[tokio::test]
async fn stale() {
    let world = World::start(&[Manner::Curio]).await;
    let before = height(&world).await;
    let ready = world.devnet.ready();
    let readyz = async || ask("GET", &ready.rpc, "/health/readyz", None, "").await.0;
    assert_eq!(readyz().await, 200);
    node(&world, json!({"stale": true})).await;
    assert_eq!(world.step(3).await, before + 3, "the chain goes on");
    assert_eq!((height(&world).await, readyz().await), (before, 503));
    let me = json!(world.key.address());
    world.call("MarketAddBalance", json!([me, me, "7"])).await;
    world.step(3).await;
    node(&world, json!({})).await;
    assert_eq!((height(&world).await, readyz().await), (before + 6, 200));
    assert_eq!(world.call("MpoolPending", json!([[]])).await, json!([]));
    assert_eq!(world.balance(&ready.client).await.0, super::client::FUNDS);
}

/// Another network has another name and another genesis, and goes on like this one.
#[tokio::test]
async fn wrong_chain() {
    let world = World::start(&[Manner::Curio]).await;
    let identity = async || {
        let name = world.call("StateNetworkName", json!([])).await;
        (name, world.call("ChainGetGenesis", json!([])).await["Cids"].clone())
    };
    let (name, genesis) = identity().await;
    node(&world, json!({"wrong_chain": true})).await;
    let (other_name, other_genesis) = identity().await;
    assert!(other_name != name && other_genesis != genesis);
    let before = height(&world).await;
    world.step(2).await;
    assert_eq!(height(&world).await, before + 2);
    node(&world, json!({})).await;
    assert_eq!(identity().await, (name, genesis));
}

#[tokio::test]
async fn held_messages_wait() {
    let world = World::start(&[Manner::Curio]).await;
    node(&world, json!({"hold_messages": true})).await;
    let me = json!(world.key.address());
    let cid = world.call("MarketAddBalance", json!([me, me, "7"])).await;
    world.step(5).await;
    assert_eq!(world.call("StateSearchMsg", json!([[], cid, -1, true])).await, Value::Null);
    node(&world, json!({})).await;
    world.step(2).await;
    assert_eq!(world.call("StateSearchMsg", json!([[], cid, -1, true])).await["Receipt"]["ExitCode"], 0);
}

/// A script that is misspelt, or of a provider that is not there, changes nothing.
#[tokio::test]
async fn unknown_scripts_are_refused() {
    let world = World::start(&[Manner::Curio]).await;
    let ready = world.devnet.ready();
    for body in [
        r#"{"nod": {}}"#,
        r#"{"node": {"down": true}}"#,
        r#"{"node": {"stale": true}, "providers": {"f09999": {}}}"#,
        r#"{"providers": {"f01000": {"of_line": true}}}"#,
    ] {
        let (status, _, said) = ask("POST", &ready.control, "/faults", None, body).await;
        assert!((400..500).contains(&status), "{body}: {status} {said}");
    }
    let faults = world.control("GET", "/faults", Value::Null).await;
    assert_eq!(faults["node"]["stale"], false);
}

/// The fourth parameter of the searches: whether what replaced a message counts for it. Lotus reads it strictly, and says of
/// every other message of that number that it is another.
#[tokio::test]
async fn t43_what_replaced_a_message_is_found_where_it_may() {
    use crate::wire::address::MARKET;
    use crate::wire::message::{Message, SignedMessage, address_param};
    let world = World::start(&[Manner::Curio]).await;
    node(&world, json!({"hold_messages": true})).await;
    let from = world.key.address();
    let nonce = world.call("MpoolGetNonce", json!([from])).await.as_u64().unwrap();
    let message = |gas_premium, value| Message {
        version: 0,
        to: MARKET,
        from,
        nonce,
        value,
        gas_limit: 100_000_000,
        gas_fee_cap: 10_000,
        gas_premium,
        method: 2,
        params: address_param(from),
    };
    let sign = |message| SignedMessage::sign(message, &world.key).unwrap();
    let other = sign(message(10, 8));
    let (old, new) = (sign(message(100, 7)), sign(message(1_000, 7)));
    for signed in [&other, &old, &new] {
        world.call("MpoolPush", json!([signed.json()])).await;
    }
    node(&world, json!({})).await;
    world.step(2).await;
    let link = |signed: &SignedMessage| json!({"/": signed.cid().to_string()});
    let search = |signed: &SignedMessage, allow: Value| json!([[], link(signed), -1, allow]);
    for allow in [true, false] {
        assert_eq!(world.call("StateSearchMsg", search(&new, json!(allow))).await["Message"], link(&new));
    }
    assert_eq!(world.call("StateSearchMsg", search(&old, json!(true))).await["Message"], link(&new));
    let waited = world.call("StateWaitMsg", json!([link(&old), 0, -1, true])).await;
    assert_eq!(waited["Message"], link(&new));
    for (signed, allow, text) in [
        (&old, false, "the one we are looking for (F:"),
        (&other, true, "NOT a valid replacement"),
        (&other, false, "NOT a valid replacement"),
    ] {
        let said = world.rpc("StateSearchMsg", search(signed, json!(allow))).await;
        let said = said["error"]["message"].as_str().unwrap().to_owned();
        assert!(said.contains("found message with equal nonce") && said.contains(text), "{said}");
    }
    for method in ["StateSearchMsg", "StateWaitMsg"] {
        let params = match method {
            "StateSearchMsg" => search(&old, json!("yes")),
            _ => json!([link(&old), 0, -1, "yes"]),
        };
        let said = world.rpc(method, params).await;
        assert!(said["error"]["message"].as_str().unwrap().contains("type bool"), "{said}");
    }
}
