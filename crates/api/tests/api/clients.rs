//! What Kubo, its Web UI and Helia do, request by request.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, World, leaf};

const ALL: &str = "status=queued,pinning,pinned,failed";

async fn many(world: &World, alice: &Client, count: usize) -> Vec<String> {
    world.clock.advance(std::time::Duration::from_secs(5));
    let pins: Vec<Value> =
        (0..count).map(|i| json!({ "cid": leaf(&i.to_string()).cid().to_string() })).collect();
    let reply = alice.post("/pins/batch", json!({ "pins": pins })).await;
    reply.is_status(202);
    let results = reply.json["results"].as_array().unwrap();
    results.iter().map(|pin| pin["requestid"].as_str().unwrap().to_owned()).collect()
}

/// The Go client: `before` is the last `created` of the page; it stops when `count` is what the page holds, and
/// fails on an empty page with a count.
#[tokio::test]
async fn kubo_m14_its_pager_sees_every_pin_once() {
    let world = World::new().await;
    let alice = world.alice().await;
    for count in [1, 9, 10, 11, 25, 40] {
        let ids = many(&world, &alice, count).await;
        let expected: HashSet<String> = alice.ids(&format!("{ALL}&limit=1000")).await.into_iter().collect();
        assert!(ids.iter().all(|id| expected.contains(id)));
        let mut seen = HashSet::new();
        let mut query = ALL.to_owned();
        loop {
            let (count, page) = alice.list(&query).await;
            assert!(!(page.is_empty() && count > 0), "Kubo: no results returned, but count is {count}");
            for pin in &page {
                assert!(seen.insert(pin["requestid"].as_str().unwrap().to_owned()), "twice: {pin}");
            }
            if count == page.len() as u64 {
                break;
            }
            query = format!("{ALL}&before={}", page.last().unwrap()["created"].as_str().unwrap());
        }
        assert_eq!(seen, expected);
    }
}

/// `@helia/remote-pinning`: pages of 1000; `after` is the last `created` of the page, until a page is empty.
#[tokio::test]
async fn js_m15_its_pager_ends_and_sees_every_pin_once() {
    let world = World::new().await;
    let alice = world.alice().await;
    let mut ids = HashSet::new();
    for count in [1000, 1000, 57] {
        ids.extend(many(&world, &alice, count).await);
    }
    let mut seen = HashSet::new();
    let mut after = "2020-01-01T00:00:00.000Z".to_owned();
    for expected in [1000, 1000, 57, 0] {
        let (count, page) = alice.list(&format!("{ALL}&limit=1000&after={after}")).await;
        assert_eq!((count, page.len()), ((ids.len() - seen.len()) as u64, expected));
        let Some(last) = page.last() else { break };
        after = last["created"].as_str().unwrap().to_owned();
        for pin in &page {
            assert!(seen.insert(pin["requestid"].as_str().unwrap().to_owned()), "twice: {pin}");
        }
    }
    assert_eq!(seen, ids);
}

/// The Go client reads the reason of every refusal out of its body, of a 429 too: one without says "undefined response
/// type" and nothing of what to do.
#[tokio::test]
async fn kubo_m02_a_429_keeps_its_body() {
    let world = World::with(|s| s.lists_per_minute = Some(1)).await;
    let alice = world.alice().await;
    alice.get("/pins").await.is_status(200);
    let refused = alice.get("/pins").await;
    refused.is(429, "TOO_MANY_REQUESTS");
    assert_eq!(refused.headers["content-type"], "application/json");
    assert!(refused.json["error"]["details"].is_string() && refused.headers.contains_key("retry-after"));
}

/// `ipfs pin remote service ls --stat`: four requests at once.
#[tokio::test]
async fn kubo_service_ls_stat() {
    let world = World::new().await;
    let alice = world.alice().await;
    let id = alice.add_cid(leaf("dead").cid()).await;
    // Then it stays there: a pin that steps on between the four is counted twice or not at all.
    alice.reaches(&id, "pinning").await;
    let ask = |status: &'static str| {
        let alice = alice.clone();
        async move { alice.list(&format!("limit=1&status={status}")).await.0 }
    };
    let (queued, pinning, pinned, failed) =
        tokio::join!(ask("queued"), ask("pinning"), ask("pinned"), ask("failed"));
    assert_eq!((queued, pinning, pinned, failed), (0, 1, 0, 0));
}

/// The MFS policy looks up its name in all four statuses, then replaces what it finds.
#[tokio::test]
async fn kubo_the_mfs_policy_replaces_its_pin() {
    let world = World::new().await;
    let alice = world.alice().await;
    let name = "policy/12D3KooWQYV9dGMFoRzNStwpXztXaBUjtPqi6aU76ZgUriHhKust/mfs";
    let mut last = alice.add(json!({ "cid": leaf("0").cid().to_string(), "name": name })).await.id();
    for i in 1..4 {
        let request = alice.request("GET", &format!("/pins?{ALL}")).query(&[("name", name)]);
        let found = alice.send(request).await;
        assert_eq!((&found.json["count"], &found.json["results"][0]["requestid"]), (&json!(1), &json!(last)));
        let body = json!({ "cid": leaf(&i.to_string()).cid().to_string(), "name": name });
        last = alice.post(&format!("/pins/{last}"), body).await.id();
    }
}

/// The Web UI: ten CIDs in each of the four statuses, and pending pins again after a reload.
#[tokio::test]
async fn kubo_the_web_ui_asks_for_ten_cids_in_four_statuses() {
    let world = World::new().await;
    let alice = world.alice().await;
    let cids: Vec<String> = (0..10).map(|i| leaf(&i.to_string()).cid().to_string()).collect();
    for cid in &cids {
        alice.add(json!({ "cid": cid })).await;
        alice.add(json!({ "cid": cid })).await;
    }
    // A pin that steps on between two of the questions is counted twice or not at all, so the sum is asked for until
    // nothing moved.
    for attempt in 0.. {
        let mut found = 0;
        for status in ["queued", "pinning", "pinned", "failed"] {
            found += alice.list(&format!("cid={}&status={status}&limit=1000", cids.join(","))).await.0;
        }
        if found == 20 {
            break;
        }
        assert!(attempt < 50, "{found} pins");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn kubo_a_service_can_be_mounted_anywhere_and_nothing_redirects() {
    let world = World::with(|settings| settings.path_prefixes = vec!["/psa".to_owned()]).await;
    let mut alice = world.alice().await;
    alice.http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for path in
        ["/pins", "/pins/", "/p/default/pins", "/p/default/pins/", "/psa/pins", "/psa/p/default/pins/"]
    {
        alice.get(path).await.is_status(200);
        let id = alice.post(path, json!({ "cid": "bafkqaaa" })).await.id();
        alice.get(&format!("{}/{id}", path.trim_end_matches('/'))).await.is_status(200);
    }
    for path in ["/p/gold/pins", "/psa/p/gold/pins", "/p/default", "/pin", "/psa/psa/pins", "/"] {
        alice.get(path).await.is(404, "NOT_FOUND");
    }
}

/// A request from a page of any site, with the token that its user gave it.
#[tokio::test]
async fn js_a_browser_may_call_from_any_origin() {
    let world = World::new().await;
    let alice = world.alice().await;
    let request = alice.request("GET", "/pins").header("origin", "https://webui.ipfs.io");
    let reply = alice.send(request).await;
    assert_eq!((reply.status, &reply.headers["access-control-allow-origin"]), (200, &"*".parse().unwrap()));
    let preflight = alice.http.request("OPTIONS".parse().unwrap(), format!("{}/pins", alice.base));
    let preflight =
        preflight.header("origin", "https://webui.ipfs.io").header("access-control-request-method", "POST");
    assert_eq!(alice.send(preflight).await.status, 200);
}
