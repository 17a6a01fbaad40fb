//! `/openapi.json` agrees with the routes and with the spec; the ops listener tells how things are.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::schema::SPEC;
use crate::support::World;

const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];

async fn document(world: &World) -> Value {
    let reply = reqwest::get(format!("{}/openapi.json", world.base())).await.unwrap();
    assert_eq!(reply.headers()["content-type"], "application/json", "without a token");
    reply.json().await.unwrap()
}

/// That each route is in the document is a test beside the routes; this is the other direction, by asking.
#[tokio::test]
async fn every_path_of_the_document_has_its_methods_and_no_others() {
    let world = World::new().await;
    let http = reqwest::Client::new();
    let document = document(&world).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let documented: BTreeSet<String> = item
            .as_object()
            .unwrap()
            .keys()
            .filter(|k| *k != "parameters")
            .map(|k| k.to_uppercase())
            .collect();
        let mut served = BTreeSet::new();
        for method in METHODS {
            let url = format!("{}{}", world.base(), path.replace(['{', '}'], ""));
            let reply = http.request(method.parse().unwrap(), url).send().await.unwrap();
            assert_ne!(reply.status(), 404, "{method} {path}");
            if reply.status() != 405 {
                served.insert(method.to_owned());
            }
        }
        assert_eq!(served, documented, "{path}");
    }
}

#[tokio::test]
async fn the_pinning_part_is_the_specs() {
    let world = World::new().await;
    let mut ours = document(&world).await;
    // What is ours on purpose: more CIDs in a filter, and a header that makes retries safe.
    assert_eq!(ours["components"]["parameters"]["cid"]["schema"]["maxItems"], 100);
    ours["components"]["parameters"]["cid"]["schema"]["maxItems"] = json!(10);
    for path in ["/pins", "/pins/{requestid}"] {
        let post = ours["paths"][path]["post"].as_object_mut().unwrap();
        assert_eq!(
            post.remove("parameters"),
            Some(json!([{ "$ref": "#/components/parameters/idempotency-key" }]))
        );
        assert_eq!(ours["paths"][path], SPEC["paths"][path], "{path}");
    }
    for kind in ["schemas", "parameters", "responses", "securitySchemes"] {
        for (name, theirs) in SPEC["components"][kind].as_object().unwrap() {
            assert_eq!(&ours["components"][kind][name], theirs, "{kind}/{name}");
        }
    }
}

#[tokio::test]
async fn health_and_metrics_are_told_on_their_own_listener() {
    let world = World::new().await;
    let ops = world.ops_client();
    ops.get("/livez").await.is_status(200);
    ops.get("/readyz").await.is_status(200);
    let metrics = ops.get("/metrics").await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4");
    assert_eq!(metrics.text, "floe_up 1\n");
    ops.get("/pins").await.is(404, "NOT_FOUND");
    world.engine.stop().await;
    ops.get("/readyz").await.is(503, "UNAVAILABLE");
    let alice = world.alice().await;
    alice.post("/pins", json!({ "cid": "bafkqaaa" })).await.is(503, "UNAVAILABLE");
}

/// `/readyz` said what the library under the rows had said, which may name files and addresses of the machine.
#[tokio::test]
async fn t45_readyz_says_why_in_words_of_its_own() {
    let world = World::new().await;
    world.records.close().await;
    let unready = world.ops_client().get("/readyz").await;
    unready.is(503, "UNAVAILABLE");
    assert_eq!(unready.details(), "the stores cannot be read: the node's log says why");
    world.engine.stop().await;
    assert_eq!(world.ops_client().get("/readyz").await.details(), "this node is shutting down");
}

/// A stop frees both ports, so that the next process can have them at once.
#[tokio::test]
async fn a_stop_frees_the_ports() {
    let world = World::new().await;
    let (api, ops) = (world.server.api_addr(), world.server.ops_addr());
    let World { server, engine, .. } = world;
    server.stop(Duration::from_secs(5)).await;
    for addr in [api, ops] {
        tokio::net::TcpListener::bind(addr).await.unwrap();
    }
    engine.stop().await;
}

#[tokio::test]
async fn a_full_disk_refuses_new_pins_and_nothing_else() {
    let world = World::on_disk(u64::MAX, |_| {}).await;
    let (alice, admin) = (world.alice().await, world.admin().await);
    let unknown = "/pins/01989c5e-0000-7000-8000-000000000001";
    for path in ["/pins", unknown] {
        alice.post(path, json!({ "cid": "bafkqaaa" })).await.is(507, "INSUFFICIENT_STORAGE");
    }
    alice.get("/pins").await.is_status(200);
    alice.delete(unknown).await.is(404, "NOT_FOUND");
    admin.send(admin.request("POST", "/admin/v1/gc")).await.is_status(200);
    assert_eq!(admin.get("/admin/v1/status").await.json["read_only"], true);
    let unready = world.ops_client().get("/readyz").await;
    unready.is(503, "UNAVAILABLE");
    assert!(unready.details().contains("under its reserve"), "{}", unready.details());
}
