//! Under which policy a pin goes: by token, by path, by meta, in rising precedence.

use floe_core::RequestId;
use floe_engine::{Grant, Scope};
use serde_json::{Value, json};

use crate::support::{Client, Reply, World, leaf};

/// What the rows have of the pin of this answer.
async fn stored(world: &World, account: &str, reply: &Reply) -> (String, u8) {
    reply.is_status(202);
    let account = world.engine.accounts().await.unwrap().into_iter().find(|a| a.name == account).unwrap();
    let id: RequestId = reply.id().parse().unwrap();
    let policy = world.records.pin(account.id, id).await.unwrap().spec.policy;
    (policy.name, policy.replicas)
}

fn is(name: &str, replicas: u8) -> (String, u8) {
    (name.to_owned(), replicas)
}

fn pin(meta: Value) -> Value {
    json!({ "cid": "bafkqaaa", "meta": meta })
}

async fn with_policy(world: &World, policy: &str) -> Client {
    let plain = world.alice().await;
    let grant = Grant {
        scopes: vec![Scope::PinsRead, Scope::PinsWrite],
        policy: Some(policy.to_owned()),
        expires_in: None,
    };
    let (_, token) = world.engine.grant_token("alice", grant).await.unwrap();
    Client { token, ..plain }
}

/// Kubo cannot send `meta`: for it a policy is a token's or a path's.
#[tokio::test]
async fn kubo_token_path_and_meta_choose_a_policy_in_rising_precedence() {
    let world = World::with_policies(&[("default", 1), ("silver", 2), ("gold", 3), ("hot", 0)]).await;
    let (alice, silver) = (world.alice().await, with_policy(&world, "silver").await);
    let of = async |reply: Reply| stored(&world, "alice", &reply).await;
    assert_eq!(of(alice.post("/pins", pin(json!({}))).await).await, is("default", 1));
    assert_eq!(of(silver.post("/pins", pin(json!({}))).await).await, is("silver", 2));
    for path in ["/p/gold/pins", "/p/gold/pins/", "/psa/p/gold/pins"] {
        assert_eq!(of(silver.post(path, pin(json!({}))).await).await, is("gold", 3), "{path}");
    }
    assert_eq!(of(silver.post("/p/default/pins", pin(json!({}))).await).await, is("default", 1));
    let meta = json!({ "policy": "hot", "app": "x" });
    let reply = silver.post("/p/gold/pins", pin(meta.clone())).await;
    assert_eq!(reply.json["pin"]["meta"], meta, "M6: it is kept as it was sent");
    assert_eq!(of(reply).await, is("hot", 0));
    let reply = alice.post("/p/gold/pins/batch", json!({ "pins": [pin(json!({})), pin(meta)] })).await;
    reply.is_status(202);
    let ids = |n: usize| reply.json["results"][n]["requestid"].as_str().unwrap().to_owned();
    for (n, want) in [(0, is("gold", 3)), (1, is("hot", 0))] {
        let (account, id) = (floe_core::AccountId(alice_id(&world).await), ids(n).parse().unwrap());
        let policy = world.records.pin(account, id).await.unwrap().spec.policy;
        assert_eq!((policy.name, policy.replicas), want);
    }
}

async fn alice_id(world: &World) -> i64 {
    world.engine.accounts().await.unwrap().into_iter().find(|a| a.name == "alice").unwrap().id.0
}

#[tokio::test]
async fn kubo_every_route_of_pins_is_under_a_policys_path_and_nothing_else_is() {
    let world = World::with_policies(&[("gold", 3)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    for prefix in ["/p/gold", "/psa/p/gold", "/p/default"] {
        let id = alice.post(&format!("{prefix}/pins"), json!({ "cid": "bafkqaaa" })).await.id();
        alice.get(&format!("{prefix}/pins?limit=1")).await.is_status(200);
        alice.get(&format!("{prefix}/pins/{id}")).await.is_status(200);
        alice.reaches(&id, "pinned").await;
        alice.get(&format!("{prefix}/pins/{id}/events")).await.is_status(200);
        let new = alice.post(&format!("{prefix}/pins/{id}"), json!({ "cid": "bafkqaaa" })).await.id();
        alice.delete(&format!("{prefix}/pins/{new}")).await.is_status(202);
        admin.get(&format!("{prefix}/admin/v1/status")).await.is(404, "NOT_FOUND");
    }
    for path in
        ["/p/silver/pins", "/psa/p/silver/pins", "/p/Gold/pins", "/p/gold", "/p/gold/pinsx", "/p//pins"]
    {
        alice.post(path, json!({ "cid": "bafkqaaa" })).await.is(404, "NOT_FOUND");
        alice.get(path).await.is(404, "NOT_FOUND");
    }
}

#[tokio::test]
async fn an_unknown_policy_in_meta_is_400_and_names_the_known_ones() {
    let world = World::with_policies(&[("gold", 3), ("silver", 2)]).await;
    let alice = world.alice().await;
    let refused = alice.post("/pins", pin(json!({ "policy": "bronze" }))).await;
    refused.is(400, "BAD_REQUEST");
    assert_eq!(
        refused.details(),
        r#"meta.policy: there is no policy "bronze"; there is "default", "gold", "silver""#
    );
    let pins = json!({ "pins": [pin(json!({})), pin(json!({ "policy": "bronze" }))] });
    let refused = alice.post("/pins/batch", pins).await;
    refused.is(400, "BAD_REQUEST");
    assert!(refused.details().starts_with("pins[1].meta.policy: "), "{}", refused.details());
    assert_eq!(alice.list("status=queued,pinning,pinned,failed").await.0, 0, "all or none");
    // A policy that went from the file since its token was made.
    let gone = with_policy(&world, "bronze").await;
    let refused = gone.post("/pins", pin(json!({}))).await;
    refused.is(400, "BAD_REQUEST");
    assert!(refused.details().starts_with("the token's policy: "), "{}", refused.details());
    gone.post("/p/gold/pins", pin(json!({}))).await.is_status(202);
}

#[tokio::test]
async fn replicas_may_be_asked_for_within_the_bounds_of_account_and_policy() {
    let world = World::with_policies(&[("default", 3), ("hot", 0)]).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    let asked = async |text: &str| alice.post("/pins", pin(json!({ "replicas": text }))).await;
    for (text, replicas) in [("0", 0), ("1", 1), ("3", 3)] {
        assert_eq!(stored(&world, "alice", &asked(text).await).await, is("default", replicas));
    }
    for text in ["4", "", "-1", "x", "1.5", "256", "99999999999999999999"] {
        let refused = asked(text).await;
        refused.is(400, "BAD_REQUEST");
        assert!(refused.details().starts_with("meta.replicas: "), "{text}: {}", refused.details());
    }
    alice.post("/p/hot/pins", pin(json!({ "replicas": "1" }))).await.is(400, "BAD_REQUEST");
    for (bound, text, fits) in [(5, "5", true), (5, "6", false), (2, "2", true), (2, "3", false)] {
        let quota = admin.post("/admin/v1/accounts/alice/quota", json!({ "max_replicas": bound })).await;
        assert_eq!(quota.json["max_replicas"], bound);
        assert_eq!(asked(text).await.status, if fits { 202 } else { 400 }, "{text} of {bound}");
    }
    // What nobody asked for is cut to the bound of the account.
    let plain = alice.post("/pins", pin(json!({}))).await;
    assert_eq!(stored(&world, "alice", &plain).await, is("default", 2));
    let lifted = admin.post("/admin/v1/accounts/alice/quota", json!({ "max_replicas": null })).await;
    assert_eq!(lifted.json["max_replicas"], Value::Null);
    asked("3").await.is_status(202);
    admin.post("/admin/v1/accounts/alice/quota", json!({ "max_replicas": 17 })).await.is(400, "BAD_REQUEST");
    let made = json!({ "name": "carol", "max_replicas": 1 });
    assert_eq!(admin.post("/admin/v1/accounts", made).await.json["max_replicas"], 1);
    let made = json!({ "name": "dave", "max_replicas": 17 });
    admin.post("/admin/v1/accounts", made).await.is(400, "BAD_REQUEST");
}

#[tokio::test]
async fn m22_a_replacement_inherits_policy_and_replicas() {
    let world = World::with_policies(&[("default", 1), ("gold", 3), ("silver", 2)]).await;
    let (alice, silver) = (world.alice().await, with_policy(&world, "silver").await);
    let of = async |reply: &Reply| stored(&world, "alice", reply).await;
    let first = alice.post("/p/gold/pins", pin(json!({ "replicas": "2" }))).await;
    assert_eq!(of(&first).await, is("gold", 2));
    let path = |reply: &Reply| format!("/pins/{}", reply.id());
    // Kubo's MFS policy replaces with a token that may have another policy.
    let second = silver.post(&path(&first), json!({ "cid": leaf("b").cid().to_string() })).await;
    assert_eq!(of(&second).await, is("gold", 2));
    let third = silver.post(&path(&second), pin(json!({ "replicas": "3" }))).await;
    assert_eq!(of(&third).await, is("gold", 3));
    let fourth = silver.post(&format!("/p/default{}", path(&third)), pin(json!({}))).await;
    assert_eq!(of(&fourth).await, is("default", 1));
    let fifth = silver.post(&path(&fourth), pin(json!({ "policy": "silver" }))).await;
    assert_eq!(of(&fifth).await, is("silver", 2));
    silver.post(&path(&first), pin(json!({}))).await.is(404, "NOT_FOUND");
}

#[tokio::test]
async fn a_token_is_made_for_a_policy_that_is_there() {
    let world = World::with_policies(&[("gold", 3)]).await;
    let admin = world.admin().await;
    let new = |policy: Value| json!({ "account": "default", "scopes": ["pins:write"], "policy": policy });
    let made = admin.post("/admin/v1/tokens", new(json!("gold"))).await;
    made.is_status(201);
    assert_eq!(made.json["token"]["policy"], "gold");
    let client = Client { token: made.json["secret"].as_str().unwrap().to_owned(), ..admin.clone() };
    let reply = client.post("/pins", pin(json!({}))).await;
    assert_eq!(stored(&world, "default", &reply).await, is("gold", 3));
    assert_eq!(admin.post("/admin/v1/tokens", new(Value::Null)).await.json["token"]["policy"], Value::Null);
    admin.post("/admin/v1/tokens", new(json!("default"))).await.is_status(201);
    let refused = admin.post("/admin/v1/tokens", new(json!("silver"))).await;
    refused.is(400, "BAD_REQUEST");
    assert!(refused.details().contains("\"default\", \"gold\""), "{}", refused.details());
    let listed = admin.get("/admin/v1/tokens").await;
    assert!(listed.json.as_array().unwrap().iter().any(|token| token["policy"] == "gold"));
}

/// A retry under another policy was answered by the pin of the first, which asks for something else.
#[tokio::test]
async fn t46_a_key_stands_for_one_policy() {
    let world = World::with_policies(&[("gold", 3)]).await;
    let (alice, gold) = (world.alice().await, with_policy(&world, "gold").await);
    let body = json!({ "cid": leaf("a").cid().to_string() });
    let post = async |client: &Client, path: &str, key: &str| {
        let request = client.request("POST", path).header("idempotency-key", key).json(&body);
        client.send(request).await
    };
    let first = post(&alice, "/p/gold/pins", "key").await;
    first.is_status(202);
    for (client, path) in [(&alice, "/psa/p/gold/pins/"), (&gold, "/pins"), (&gold, "/p/gold/pins")] {
        assert_eq!(post(client, path, "key").await.id(), first.id(), "{path} is the same request");
    }
    for (client, path) in [(&alice, "/pins"), (&alice, "/p/default/pins"), (&gold, "/p/default/pins")] {
        post(client, path, "key").await.is(422, "UNPROCESSABLE");
    }
}

/// Without `[policy.default]` a pin that chooses nothing is kept hot and asks for nothing.
#[tokio::test]
async fn pins_that_choose_none_are_hot_where_no_default_is_configured() {
    let world = World::with_policies(&[("gold", 3)]).await;
    let alice = world.alice().await;
    for path in ["/pins", "/p/default/pins"] {
        for meta in [json!({}), json!({ "policy": "default" }), json!({ "replicas": "0" })] {
            let reply = alice.post(path, pin(meta)).await;
            assert_eq!(stored(&world, "alice", &reply).await, is("", 0));
        }
    }
    alice.post("/pins", pin(json!({ "replicas": "1" }))).await.is(400, "BAD_REQUEST");
}
