//! `GET /pins`: filters, pages, counts.

use serde_json::json;

use crate::support::{Client, World, leaf};

/// Five pins: four `pinned`, one that nobody has.
async fn five(world: &World, alice: &Client) -> Vec<String> {
    let mut ids = Vec::new();
    for (i, name) in ["Alpha", "alpha", "beta Alpha", "STRASSE"].iter().enumerate() {
        let block = leaf(&i.to_string());
        world.peers.have(std::slice::from_ref(&block));
        let meta = json!({ "app": if i < 2 { "one" } else { "two" }, "n": i.to_string() });
        let body = json!({ "cid": block.cid().to_string(), "name": name, "meta": meta });
        ids.push(alice.add(body).await.id());
        alice.reaches(&ids[i], "pinned").await;
    }
    ids.push(alice.add_cid(leaf("dead").cid()).await);
    alice.reaches(&ids[4], "pinning").await;
    ids
}

fn newest_first(ids: &[String], which: &[usize]) -> Vec<String> {
    which.iter().map(|i| ids[*i].clone()).collect()
}

#[tokio::test]
async fn m11_m12_m13_m17_a_list_is_newest_first_and_pinned_alone() {
    let world = World::new().await;
    let alice = world.alice().await;
    let empty = alice.get("/pins").await;
    assert_eq!(empty.json, json!({ "count": 0, "results": [] }), "never null");
    let ids = five(&world, &alice).await;
    assert_eq!(alice.ids("").await, newest_first(&ids, &[3, 2, 1, 0]));
    assert_eq!(alice.ids("status=pinning").await, newest_first(&ids, &[4]));
    assert_eq!(alice.ids("status=pinning,pinned").await, newest_first(&ids, &[4, 3, 2, 1, 0]));
    assert_eq!(alice.ids("name=alpha&match=ipartial").await, newest_first(&ids, &[2, 1, 0]));
    let dead = leaf("dead").cid().to_string();
    assert!(alice.ids(&format!("cid={dead}")).await.is_empty(), "status absent: pinned only, whatever else");
    let (count, page) = alice.list("limit=2").await;
    assert_eq!((count, page.len()), (4, 2), "M14");
    for i in 0..10 {
        alice.add(json!({ "cid": "bafkqaaa", "name": i.to_string() })).await;
    }
    let (count, page) = alice.list("status=queued,pinning,pinned").await;
    assert_eq!((count, page.len()), (15, 10), "M13: ten by default");
}

#[tokio::test]
async fn m14_m15_count_and_page_obey_before_and_after_strictly() {
    let world = World::new().await;
    let alice = world.alice().await;
    let ids = five(&world, &alice).await;
    let created = |id: &str| {
        let (alice, path) = (alice.clone(), format!("/pins/{id}"));
        async move { alice.get(&path).await.json["created"].as_str().unwrap().to_owned() }
    };
    let (first, third) = (created(&ids[0]).await, created(&ids[2]).await);
    let (count, page) = alice.list(&format!("before={third}&limit=1")).await;
    assert_eq!((count, page.len()), (2, 1));
    assert_eq!(alice.ids(&format!("before={third}")).await, newest_first(&ids, &[1, 0]));
    assert_eq!(alice.ids(&format!("after={first}&before={third}")).await, newest_first(&ids, &[1]));
    let (count, _) = alice.list(&format!("after={third}")).await;
    assert_eq!(count, 1);
    assert!(alice.ids(&format!("before={first}")).await.is_empty());

    // Between two ends the order is that of a list without any: the newest come first, also where a page cuts the window.
    let last = created(&ids[4]).await;
    let window = format!("after={first}&before={last}");
    assert_eq!(alice.ids(&window).await, newest_first(&ids, &[3, 2, 1]));
    let (count, page) = alice.list(&format!("{window}&limit=2")).await;
    assert_eq!((count, &page[0]["requestid"], &page[1]["requestid"]), (3, &json!(ids[3]), &json!(ids[2])));

    // The Go client's pager moves `before` to the oldest pin of each page, and lets its caller's `after` stay.
    for (after, which) in [(&first, &[4, 3, 2, 1][..]), (&third, &[4, 3])] {
        let (mut before, mut seen) = ("2100-01-01T00:00:00.000Z".to_owned(), Vec::new());
        loop {
            let query = format!("status=queued,pinning,pinned,failed&after={after}&before={before}&limit=2");
            let (_, page) = alice.list(&query).await;
            let Some(oldest) = page.last() else { break };
            before = oldest["created"].as_str().unwrap().to_owned();
            seen.extend(page.iter().map(|pin| pin["requestid"].as_str().unwrap().to_owned()));
        }
        assert_eq!(seen, newest_first(&ids, which));
    }
}

#[tokio::test]
async fn m16_cids_are_a_list() {
    let world = World::new().await;
    let alice = world.alice().await;
    let ids = five(&world, &alice).await;
    let cids = [leaf("0"), leaf("2"), leaf("nobody")].map(|b| b.cid().to_string()).join(",");
    assert_eq!(alice.ids(&format!("cid={cids}")).await, newest_first(&ids, &[2, 0]));
}

#[tokio::test]
async fn m18_names_match_in_four_ways() {
    let world = World::new().await;
    let alice = world.alice().await;
    let ids = five(&world, &alice).await;
    for (query, which) in [
        ("name=alpha", &[1][..]),
        ("name=alpha&match=exact", &[1]),
        ("name=ALPHA&match=iexact", &[1, 0]),
        ("name=Alpha&match=partial", &[2, 0]),
        ("name=ALPHA&match=ipartial", &[2, 1, 0]),
        ("name=stra%C3%9Fe&match=iexact", &[3]),
        ("name=%25&match=partial", &[]),
    ] {
        assert_eq!(alice.ids(query).await, newest_first(&ids, which), "{query}");
    }
}

#[tokio::test]
async fn m19_meta_pairs_hold_together() {
    let world = World::new().await;
    let alice = world.alice().await;
    let ids = five(&world, &alice).await;
    for (meta, which) in [
        (json!({ "app": "one" }), &[1, 0][..]),
        (json!({ "app": "one", "n": "1" }), &[1]),
        (json!({ "app": "one", "n": "2" }), &[]),
        (json!({}), &[3, 2, 1, 0]),
    ] {
        let request = alice.request("GET", "/pins").query(&[("meta", meta.to_string())]);
        let reply = alice.send(request).await;
        let got: Vec<&str> = reply.json["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["requestid"].as_str().unwrap())
            .collect();
        assert_eq!(got, newest_first(&ids, which), "{meta}");
    }
}

#[tokio::test]
async fn m20_wrong_values_are_400_and_name_the_parameter() {
    let world = World::new().await;
    let alice = world.alice().await;
    for (key, value) in [
        ("limit", "0"),
        ("limit", "1001"),
        ("limit", "x"),
        ("before", "yesterday"),
        ("after", "1"),
        ("cid", "x"),
        ("status", "done"),
        ("match", "regex"),
        ("meta", "x"),
        ("meta", "map[a:b]"),
    ] {
        let reply = alice.send(alice.request("GET", "/pins").query(&[(key, value)])).await;
        reply.is(400, "BAD_REQUEST");
        assert!(reply.details().starts_with(&format!("{key}: ")), "{key}={value}: {}", reply.details());
    }
}
