//! Tokens, scopes, accounts, and what must not leak.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use floe_engine::Scope;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{Reply, World, leaf};

/// Method and path of each route that needs a token, with names filled in.
fn guarded(id: &str) -> Vec<(String, String, &'static str)> {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let path = path.replace("{requestid}", id).replace("{name}", "nobody").replace("{id}", "77");
        // A stream ends where it is asked to.
        let path = path.replace("{uuid}", id).replace("/v1/events", "/v1/events?follow=false");
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" || operation["security"] == json!([]) {
                continue;
            }
            let scope = match (path.starts_with("/admin/"), method.as_str()) {
                (true, _) => "admin",
                (false, "get") => "pins:read",
                (false, _) => "pins:write",
            };
            routes.push((method.to_uppercase(), path.clone(), scope));
        }
    }
    assert!(routes.len() >= 16, "{routes:?}");
    routes
}

#[tokio::test]
async fn m01_s01_every_route_wants_a_token_that_is_known_and_not_revoked() {
    let world = World::new().await;
    let alice = world.alice().await;
    let revoked = world.alice().await;
    let tokens = world.engine.tokens(Some("alice")).await.unwrap();
    world.engine.revoke_token(tokens.iter().map(|t| t.id).max().unwrap()).await.unwrap();
    let (_, short) =
        world.engine.create_token("alice", &[Scope::PinsRead], Some(Duration::from_secs(60))).await.unwrap();
    world.clock.advance(Duration::from_secs(61));
    let mut last = alice.token.clone();
    last.pop();
    for (method, path, _) in guarded("01989c5e-0000-7000-8000-000000000001") {
        let wrong = ["", "floe_", "x", &last, &revoked.token, &short];
        for token in wrong {
            let request = alice.http.request(method.parse().unwrap(), format!("{}{path}", alice.base));
            let reply = alice.send(request.header("authorization", format!("Bearer {token}"))).await;
            reply.is(401, "UNAUTHORIZED");
            assert_eq!(reply.headers["www-authenticate"], "Bearer");
        }
        let bare = alice.http.request(method.parse().unwrap(), format!("{}{path}", alice.base));
        alice.send(bare).await.is(401, "UNAUTHORIZED");
    }
    alice.get("/pins").await.is_status(200);
}

#[tokio::test]
async fn each_route_wants_its_scope() {
    let world = World::new().await;
    let scopes = [(Scope::PinsRead, "pins:read"), (Scope::PinsWrite, "pins:write"), (Scope::Admin, "admin")];
    for (scope, name) in scopes {
        let client = world.client("alice", &[scope]).await;
        for (method, path, needs) in guarded("01989c5e-0000-7000-8000-000000000001") {
            let reply = client.send(client.request(&method, &path)).await;
            // Deals are for owners and for the operator.
            if needs == name || (path.starts_with("/deals") && name == "admin") {
                assert!(![401, 403].contains(&reply.status), "{method} {path} with {name}: {}", reply.text);
            } else {
                reply.is(403, "FORBIDDEN");
                assert!(reply.details().contains(needs), "{}", reply.details());
            }
        }
    }
}

#[tokio::test]
async fn a_suspended_account_is_refused_until_it_is_lifted() {
    let world = World::new().await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    let id = alice.add_cid(leaf("a").cid()).await;
    let path = "/admin/v1/accounts/alice/suspend";
    admin.post(path, json!({ "suspended": true })).await.is_status(204);
    for (method, path, needs) in guarded(&id) {
        if needs != "admin" {
            alice.send(alice.request(&method, &path)).await.is(403, "FORBIDDEN");
        }
    }
    admin.post(path, json!({ "suspended": false })).await.is_status(204);
    alice.get(&format!("/pins/{id}")).await.is_status(200);
    admin.post("/admin/v1/accounts/nobody/suspend", json!({ "suspended": true })).await.is(404, "NOT_FOUND");
}

/// An account with an admin token went on administering after its suspension, and could lift it by itself.
#[tokio::test]
async fn a_suspended_admin_is_refused_and_cannot_lift_its_own_suspension() {
    let world = World::new().await;
    let (operator, carol) = (world.admin().await, world.client("carol", &[Scope::Admin]).await);
    carol.get("/admin/v1/status").await.is_status(200);
    let path = "/admin/v1/accounts/carol/suspend";
    operator.post(path, json!({ "suspended": true })).await.is_status(204);
    for (method, path, _) in guarded("01989c5e-0000-7000-8000-000000000001") {
        carol.send(carol.request(&method, &path)).await.is(403, "FORBIDDEN");
    }
    carol.post(path, json!({ "suspended": false })).await.is(403, "FORBIDDEN");
    carol.get("/admin/v1/status").await.is(403, "FORBIDDEN");
    operator.post(path, json!({ "suspended": false })).await.is_status(204);
    carol.get("/admin/v1/status").await.is_status(200);
}

/// Nobody else is sure to be there to lift it.
#[tokio::test]
async fn the_default_account_administers_while_it_is_suspended() {
    let world = World::new().await;
    let operator = world.client("default", &[Scope::PinsRead, Scope::PinsWrite, Scope::Admin]).await;
    let path = "/admin/v1/accounts/default/suspend";
    operator.post(path, json!({ "suspended": true })).await.is_status(204);
    operator.get("/pins").await.is(403, "FORBIDDEN");
    operator.post("/pins", json!({ "cid": "bafkqaaa" })).await.is(403, "FORBIDDEN");
    operator.get("/admin/v1/status").await.is_status(200);
    operator.post(path, json!({ "suspended": false })).await.is_status(204);
    operator.get("/pins").await.is_status(200);
}

/// Every route that names something, with what another account has there and with what never was: the same answer.
///
/// `/deals/{uuid}` was left out without a word: its name was not filled in, and a path without a name is passed over.
#[tokio::test]
async fn t25_what_another_account_has_is_what_never_was() {
    let world = World::with_policies(&[("default", 3)]).await;
    let (alice, bob) = (world.alice().await, world.bob().await);
    let tokens = world.engine.tokens(None).await.unwrap();
    let body = json!({ "cid": leaf("a").cid().to_string(), "name": "secret", "meta": { "k": "secret" } });
    let mut tried = 0;
    // Two roots, or the later pin would join the aggregate of the earlier.
    let tenants = [(&alice, "alice", &bob, "bafkqaaa"), (&bob, "bob", &alice, "bafkqabtimvwgy3yk")];
    for (owner, account, stranger, cid) in tenants {
        let deal = crate::deals::deal_of(&world, owner, account, cid).await.uuid.to_string();
        owner.get(&format!("/deals/{deal}")).await.is_status(200);
        let id = owner.add(body.clone()).await.id();
        let before = owner.get(&format!("/pins/{id}")).await.json;
        let token = tokens[0].id.0.to_string();
        let nothing = "01989c5e-0000-7000-8000-000000000001";
        let never = [("{requestid}", nothing), ("{uuid}", nothing), ("{name}", "nobody"), ("{id}", "9999")];
        let theirs = [
            ("{requestid}", id.as_str()),
            ("{uuid}", deal.as_str()),
            ("{name}", account),
            ("{id}", token.as_str()),
        ];
        let fill = |path: &str, names: [(&str, &str); 4]| {
            names.iter().fold(path.to_owned(), |path, (what, name)| path.replace(what, name))
        };
        for (method, path) in templates() {
            let (theirs, nobodys) = (fill(&path, theirs), fill(&path, never));
            if theirs == nobodys {
                assert!(!path.contains('{'), "{method} {path}: its name is not filled in");
                continue;
            }
            let ask = async |path: &str| stranger.send(stranger.request(&method, path).json(&body)).await;
            let (got, want) = (ask(&theirs).await, ask(&nobodys).await);
            let admin = path.starts_with("/admin/");
            assert_eq!(got.status, if admin { 403 } else { 404 }, "{method} {path}");
            let names =
                |reply: &Reply| reply.headers.keys().map(|name| name.to_string()).collect::<BTreeSet<_>>();
            assert_eq!((&got.text, names(&got)), (&want.text, names(&want)), "{method} {path}");
            same_time(&method, &path, async || drop(ask(&theirs).await), async || drop(ask(&nobodys).await))
                .await;
            tried += 1;
        }
        let cid = leaf("a").cid().to_string();
        stranger.delete(&format!("/pins/{id}")).await.is(404, "NOT_FOUND");
        for query in [
            format!("cid={cid}"),
            "name=secret".into(),
            "meta=%7B%22k%22%3A%22secret%22%7D".into(),
            String::new(),
        ] {
            let (_, results) = stranger.list(&format!("status=queued,pinning,pinned,failed&{query}")).await;
            assert!(results.iter().all(|pin| pin["requestid"] != id), "{query}");
        }
        let after = owner.get(&format!("/pins/{id}")).await.json;
        assert_eq!((&after["requestid"], &after["pin"]), (&before["requestid"], &before["pin"]));
    }
    assert_eq!(tried, 2 * 10, "four routes of pins, one of deals, five of administration, for two tenants");
}

/// Method and path of each route of the document.
fn templates() -> Vec<(String, String)> {
    let document: Value = serde_json::from_str(include_str!("../../openapi.json")).unwrap();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
        routes.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
    }
    routes
}

/// Both take about as long: their medians over requests in turns differ by less than the half, or a millisecond. Noise
/// is met by two more tries.
async fn same_time(method: &str, path: &str, one: impl AsyncFn(), other: impl AsyncFn()) {
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let mut seen = Vec::new();
    for _ in 0..3 {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..25 {
            let start = tokio::time::Instant::now();
            one().await;
            times[0].push(start.elapsed());
            let start = tokio::time::Instant::now();
            other().await;
            times[1].push(start.elapsed());
        }
        let [a, b] = times.each_mut().map(median);
        if a.abs_diff(b) <= (a.min(b) / 2).max(Duration::from_millis(1)) {
            return;
        }
        seen.push((a, b));
    }
    panic!("{method} {path}: the time tells what is there: {seen:?}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The subscriber and the recorder are the process's: with one for this thread alone, `tracing` lets a call site that
/// another test's thread meets first be silent here as well.
#[tokio::test]
async fn t24_tokens_are_in_no_log_no_metric_no_answer_and_no_file() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let rendered = recorder.handle();
    metrics::set_global_recorder(recorder).unwrap();
    let world = World::rendering(Arc::new(move || rendered.render()), 1 << 20, |_| {}).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    let made = admin.post("/admin/v1/tokens", json!({ "account": "alice", "scopes": ["pins:read"] })).await;
    made.is_status(201);
    let secret = made.json["secret"].as_str().unwrap().to_owned();
    let id = alice.add_cid(leaf("a").cid()).await;
    let mut revoked = alice.clone();
    revoked.token = secret.clone();
    revoked.get("/pins").await.is_status(200);
    let made_id = made.json["token"]["id"].as_i64().unwrap();
    admin.delete(&format!("/admin/v1/tokens/{made_id}")).await.is_status(204);

    let mut answers = String::new();
    let mut statuses = BTreeSet::new();
    let mut keep = |reply: Reply| {
        statuses.insert(reply.status);
        answers += &format!("{:?}{}", reply.headers, reply.text);
    };
    for path in ["/pins", &format!("/pins/{id}"), "/nothing", "/pins?limit=x", "/admin/v1/status"] {
        keep(alice.get(path).await);
        keep(revoked.get(path).await);
    }
    for path in ["/admin/v1/tokens", "/admin/v1/accounts", "/admin/v1/status"] {
        keep(admin.get(path).await);
    }
    let unknown = json!({ "account": "nobody", "scopes": ["pins:read"] });
    keep(admin.post("/admin/v1/tokens", unknown).await);
    keep(admin.post("/admin/v1/accounts", json!({ "name": "alice" })).await);
    keep(alice.send(alice.request("PUT", "/pins")).await);
    keep(alice.post("/pins", json!({ "cid": "no cid" })).await);
    keep(alice.post("/pins", json!({ "cid": "x".repeat(300_000) })).await);
    keep(alice.send(alice.request("POST", "/pins").body("{}")).await);
    keep(alice.send(alice.request("GET", "/pins").header("x-long", "v".repeat(20_000))).await);
    for body in ["one", "two"] {
        let cid = leaf(body).cid().to_string();
        let request = alice.request("POST", "/pins").header("idempotency-key", "same");
        keep(alice.send(request.json(&json!({ "cid": cid }))).await);
    }
    let wanted = [200, 202, 400, 401, 403, 404, 405, 409, 413, 415, 422, 431];
    assert_eq!(statuses, BTreeSet::from(wanted), "every kind of answer is among them");
    let metrics = reqwest::get(format!("{}/metrics", world.ops())).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("floe_http_requests_total"), "the metrics are there: {metrics}");
    let log = String::from_utf8_lossy(&log.0.lock()).into_owned();
    assert!(log.contains("GET /pins/{requestid}"), "the log is there");
    let files = all_files(world.dir.path());
    assert!(files.windows(6).any(|w| w == b"SQLite"), "the rows are there");
    for token in [&alice.token, &admin.token, &secret] {
        assert!(token.starts_with("floe_"));
        // Without the prefix, and without the end that a checksum may take.
        let canary = &token[5..token.len() - 8];
        assert!(!log.contains(canary), "in the log");
        assert!(!metrics.contains(canary), "in a metric");
        assert!(!answers.contains(canary), "in an answer");
        assert!(!files.windows(canary.len()).any(|w| w == canary.as_bytes()), "in a file");
    }
}

fn all_files(path: &std::path::Path) -> Vec<u8> {
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().flat_map(|entry| all_files(&entry.unwrap().path())).collect()
    } else {
        std::fs::read(path).unwrap()
    }
}

#[tokio::test]
async fn accounts_and_tokens_are_administered() {
    let world = World::new().await;
    let admin = world.admin().await;
    let made =
        admin.post("/admin/v1/accounts", json!({ "name": "carol", "max_bytes": 10, "max_pins": 2 })).await;
    made.is_status(201);
    assert_eq!((&made.json["name"], &made.json["max_pins"]), (&json!("carol"), &json!(2)));
    admin.post("/admin/v1/accounts", json!({ "name": "carol" })).await.is(409, "CONFLICT");
    admin.post("/admin/v1/accounts", json!({ "name": "a/b" })).await.is(400, "BAD_REQUEST");
    let names: Vec<Value> = admin
        .get("/admin/v1/accounts")
        .await
        .json
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["name"].clone())
        .collect();
    assert_eq!(names, ["default", "carol"]);

    let wanted =
        json!({ "account": "carol", "scopes": ["pins:read", "pins:write"], "expires_in_seconds": 60 });
    let made = admin.post("/admin/v1/tokens", wanted).await;
    made.is_status(201);
    let mut carol = admin.clone();
    carol.token = made.json["secret"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        carol.add_cid(leaf("a").cid()).await;
    }
    carol.post("/pins", json!({ "cid": "bafkqaaa" })).await.is(409, "INSUFFICIENT_FUNDS");

    let quota = "/admin/v1/accounts/carol/quota";
    let set = admin.post(quota, json!({ "max_pins": 3 })).await;
    set.is_status(200);
    assert_eq!((&set.json["max_pins"], &set.json["max_bytes"]), (&json!(3), &json!(10)), "the rest stays");
    carol.post("/pins", json!({ "cid": "bafkqaaa" })).await.is_status(202);
    carol.post("/pins", json!({ "cid": "bafkqaaa" })).await.is(409, "INSUFFICIENT_FUNDS");
    let set = admin.post(quota, json!({ "max_pins": 1, "max_bytes": null })).await;
    assert_eq!((&set.json["max_pins"], &set.json["max_bytes"]), (&json!(1), &Value::Null));
    assert_eq!(carol.list("status=queued,pinning,pinned,failed").await.0, 3, "pins stay");
    admin.post(quota, json!({ "max_pins": null })).await.is_status(200);
    carol.post("/pins", json!({ "cid": "bafkqaaa" })).await.is_status(202);
    for wrong in [json!({}), json!({ "max_pins": -1 }), json!({ "max_pins": "many" })] {
        admin.post(quota, wrong).await.is(400, "BAD_REQUEST");
    }
    admin.post("/admin/v1/accounts/nobody/quota", json!({ "max_pins": 1 })).await.is(404, "NOT_FOUND");

    let tokens = admin.get("/admin/v1/tokens?account=carol").await;
    assert_eq!(tokens.json.as_array().unwrap().len(), 1);
    assert_eq!(tokens.json[0], made.json["token"]);
    admin.get("/admin/v1/tokens?account=nobody").await.is(404, "NOT_FOUND");
    let id = tokens.json[0]["id"].as_i64().unwrap();
    admin.delete(&format!("/admin/v1/tokens/{id}")).await.is_status(204);
    carol.get("/pins").await.is(401, "UNAUTHORIZED");
    for wrong in ["999999", "x", "-1"] {
        admin.delete(&format!("/admin/v1/tokens/{wrong}")).await.is(404, "NOT_FOUND");
    }
    for wrong in [json!([]), json!(["root"]), json!("admin")] {
        let body = json!({ "account": "carol", "scopes": wrong });
        admin.post("/admin/v1/tokens", body).await.is(400, "BAD_REQUEST");
    }
}

#[tokio::test]
async fn the_operator_collects_verifies_and_looks() {
    let world = World::new().await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    let block = leaf("a block that will be removed");
    world.peers.have(std::slice::from_ref(&block));
    let id = alice.add_cid(block.cid()).await;
    alice.reaches(&id, "pinned").await;
    let status = admin.get("/admin/v1/status").await.json;
    assert_eq!((&status["pins"]["pinned"], &status["blocks"]), (&json!(1), &json!(1)));
    let verified = admin.send(admin.request("POST", "/admin/v1/verify")).await;
    verified.is_status(200);
    assert_eq!((&verified.json["damaged"], &verified.json["repaired"]), (&json!([]), &json!(0)));
    assert!(verified.json["blocks"].as_u64() >= Some(1), "{}", verified.text);
    alice.delete(&format!("/pins/{id}")).await.is_status(202);
    let freed = admin.send(admin.request("POST", "/admin/v1/gc")).await;
    freed.is_status(200);
    assert!(freed.json["blocks"].is_u64() && freed.json["bytes"].is_u64(), "{}", freed.text);
    assert_eq!(admin.get("/admin/v1/status").await.json["blocks"], 0);
}

#[tokio::test]
async fn an_account_has_its_requests_a_minute_and_its_lists_among_them() {
    let world = World::with(|s| (s.requests_per_minute, s.lists_per_minute) = (Some(4), Some(2))).await;
    let alice = world.alice().await;
    for _ in 0..2 {
        alice.get("/pins").await.is_status(200);
    }
    let refused = alice.get("/pins").await;
    refused.is(429, "TOO_MANY_REQUESTS");
    assert_eq!(refused.details(), "this account may make 2 lists a minute");
    let id = alice.add(json!({ "cid": "bafkqaaa" })).await.id();
    let refused = alice.get(&format!("/pins/{id}")).await;
    refused.is(429, "TOO_MANY_REQUESTS");
    assert_eq!(refused.details(), "this account may make 4 requests a minute");
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=15).contains(&wait), "{wait}");
    world.bob().await.get("/pins").await.is_status(200);
    let own = world.client("default", &[Scope::PinsRead, Scope::Admin]).await;
    for _ in 0..5 {
        own.get("/pins").await.is_status(200);
        own.get("/admin/v1/status").await.is_status(200);
    }
}
