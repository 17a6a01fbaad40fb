//! Deals from the proposal to the sector, over the ports.

use http::StatusCode;
use serde_json::json;

use super::client::{Asked, FUNDS, World, send};
use super::*;

#[tokio::test]
async fn three_providers_pull_publish_seal_and_serve() {
    let world = World::start(&[Manner::Curio, Manner::Boost, Manner::Boost]).await;
    let paths = ["0", "1", "half-2"];
    let mut sent = Vec::new();
    for (n, path) in paths.iter().enumerate() {
        let params = world.proposal(n, path).await;
        world.store(n, &params).await.unwrap();
        sent.push(params);
    }
    for (n, path) in paths.iter().enumerate() {
        let book = world.transferred(n).await;
        assert!(book["error"].is_null(), "{book}");
        pulled(&world, path, &book);
    }

    let mut cost = 0;
    for (n, params) in sent.iter().enumerate() {
        let id = world.published(n).await;
        let since = world.active(id).await;
        let proposal = &params.deal.proposal;
        assert!(since <= proposal.start);
        let shown = world.call("StateMarketStorageDeal", json!([id, []])).await;
        // The chain stores ids: all else is what was signed.
        let client = world.call("StateLookupID", json!([proposal.client, []])).await;
        let mut wanted = proposal.json();
        wanted["Client"] = client;
        assert_eq!(shown["Proposal"], wanted);
        assert_eq!(shown["State"]["SlashEpoch"], -1);
        cost += proposal.client_requirement();
        // Curio tells the id when all is done; Boost one epoch after the publication.
        let status = world.status(n).await.unwrap().status.unwrap();
        assert_eq!((status.chain_deal_id, &status.proposal), (id, proposal));
        assert_eq!(status.signed_proposal_cid, params.deal.cid());
        assert_eq!(status.status, if n == 0 { "Sealed" } else { "IndexedAndAnnounced" });
        let (_, locked) = world.balance(&world.miner(n)).await;
        assert_eq!(locked, proposal.provider_collateral);
        let url = format!("{}/piece/{}", world.devnet.ready().providers[n].url, world.piece);
        let (status, body) = send("GET", &url, ("text/plain", None), Vec::new()).await.unwrap();
        assert_eq!((status, body), (StatusCode::OK.as_u16(), world.car.clone()));
    }
    assert_eq!(world.balance(&world.devnet.ready().client).await, (FUNDS, cost));
}

/// HEAD, then ranges, each with the header of the deal; every byte, and from where it broke off.
fn pulled(world: &World, path: &str, book: &Value) {
    let asked = world.asked(path);
    let token = Some(format!("Bearer of {path}"));
    let size = world.car.len();
    let first = |method: &str, range: Option<&str>, bytes| Asked {
        path: path.into(),
        method: method.into(),
        range: range.map(str::to_owned),
        token: token.clone(),
        bytes,
    };
    assert_eq!(asked[0], first("HEAD", None, 0));
    assert_eq!(asked[1], first("GET", Some("bytes=0-"), size));
    if path.starts_with("half") {
        let at: usize = size / 2;
        assert_eq!(asked[2..], [first("GET", Some(&format!("bytes={at}-")), size - at)]);
    } else {
        assert_eq!(asked.len(), 2);
    }
    assert_eq!(book["received"], size);
    assert_eq!(book["pulls"].as_array().unwrap().len(), asked.len());
}

/// A second proposal with the same identity must not make a second deal, whatever the provider says of it.
#[tokio::test]
async fn a_proposal_sent_twice_is_one_deal() {
    let world = World::start(&[Manner::Curio, Manner::Boost]).await;
    for (n, text) in [(0, "market deal with the same proposalCID"), (1, "deal has the same uuid as deal")] {
        world.script(n, json!({"lose_reply": true})).await;
        let params = world.proposal(n, &n.to_string()).await;
        assert_eq!(world.store(n, &params).await, Err("no answer".into()));
        world.script(n, json!({})).await;
        let refusal = world.store(n, &params).await.unwrap_err();
        assert!(refusal.starts_with(text), "{refusal}");
        world.transferred(n).await;
        let id = world.published(n).await;
        world.active(id).await;
    }
    assert_eq!(world.control("GET", "/deals", json!(null)).await["published"], 2);
}
