//! `boost-libp2p.json`: every exchange with a provider, over libp2p, in order.
//!
//! The recorded client's key is not known (and BLS, which the devnet does not check): each proposal is sent with the
//! devnet's client in its place and signed anew, all else byte for byte. Of the deal that was accepted first, the data
//! is not known either: it has other bytes, of the same length.

use libp2p::StreamProtocol;
use serde_json::json;

use super::super::client::{World, noise};
use super::super::peer::exchange;
use super::lotus::config;
use super::mask;
use super::*;
use crate::wire::cbor::decode;
use crate::wire::deal::{DealParams, StatusRequest, StatusResponse};

const EXCLUDED: Excluded =
    &[("retrieval transports", "the recorded provider had no HTTP server beside it; the devnet's have")];

/// The height at which the recorded proposals came.
const HEIGHT: u64 = 16;
/// Of the recorded CAR.
const BYTES: usize = 2_254_421;

#[tokio::test]
async fn every_recorded_exchange() {
    let config = Config { seal_delay: 12, sector_size: 32 << 30, ..config() };
    // Other bytes, of the same length: what a CAR has around a block of this length is 99 bytes.
    let mut block = noise(600_000);
    block.truncate(BYTES - 99);
    let world = World::with(config, block).await;
    assert_eq!(world.car.len(), BYTES);
    world.fund().await;
    let height = world.control("GET", "/head", Value::Null).await["height"].as_u64().unwrap();
    world.step(HEIGHT - height).await;

    let recorded: Value =
        serde_json::from_str(include_str!("../../../../filecoin/tests/vectors/boost-libp2p.json")).unwrap();
    let exchanges = recorded["exchanges"].as_array().unwrap();
    assert_eq!(exchanges.len(), 42);
    let mut outcomes = Vec::new();
    for (nth, recorded) in exchanges.iter().enumerate() {
        let label = recorded["label"].as_str().unwrap();
        let outcome = replay(&world, nth, label, recorded).await;
        outcomes.push((label.to_owned(), outcome.err()));
    }
    judge(EXCLUDED, &outcomes);
}

async fn replay(world: &World, nth: usize, label: &str, recorded: &Value) -> Result<(), String> {
    let hex = |key: &str| HEXLOWER.decode(recorded[key].as_str().unwrap().as_bytes()).unwrap();
    let protocol = recorded["protocol"].as_str().unwrap();
    let request = match protocol {
        "/fil/storage/mk/1.2.0" | "/fil/storage/mk/1.2.1" => {
            let recorded = hex("request_hex");
            let params = DealParams::decode(&recorded).unwrap();
            // Before client and signature are others: what is sent then is what was recorded, but for these.
            if params.encode() != recorded {
                return Err("what is read is not written as it was".into());
            }
            signed(world, nth, label, params)
        }
        "/fil/storage/status/1.2.0" => {
            question(world, label, StatusRequest::decode(&hex("request_hex")).unwrap())
        }
        _ => hex("request_hex"),
    };
    let wanted = decode(&hex("response_hex")).unwrap();
    let sealing = StatusResponse::decode(&hex("response_hex")).ok().and_then(|answer| answer.status);
    if let Some(status) = &sealing {
        prepare(world, !status.error.is_empty()).await;
    }
    let stream = || StreamProtocol::try_from_owned(protocol.to_owned()).unwrap();
    let provider = &world.devnet.ready().providers[0];
    let mut complaint = String::new();
    // A deal that seals comes to the recorded step in time; nothing else changes by waiting.
    for _ in 0..if sealing.is_some() { 60 } else { 1 } {
        let answer = exchange(provider, stream(), request.clone()).await.map_err(|why| why.to_string())?;
        let (wanted, got) = (mask::cbor(&wanted), mask::cbor(&decode(&answer).unwrap()));
        if wanted == got {
            return Ok(());
        }
        complaint = format!("recorded {wanted}, got {got}");
        if sealing.is_some() {
            world.step(1).await;
        }
    }
    Err(complaint)
}

/// The proposal in the devnet's client's name.
fn signed(world: &World, nth: usize, label: &str, mut params: DealParams) -> Vec<u8> {
    let recorded = params.deal.proposal.client;
    params.deal.proposal.client = world.key.address();
    if nth == 0 {
        params.deal.proposal.piece_cid = world.piece;
        let source = json!({"URL": world.source_url("0"), "Headers": null});
        params.transfer.params = source.to_string().into();
    }
    params.deal = world.sign(params.deal.proposal);
    match label {
        "bad signature" => params.deal.signature.data[10] ^= 1,
        // It named the client where the provider belongs.
        "wrong provider" => assert_eq!(params.deal.proposal.provider, recorded),
        _ => {}
    }
    params.encode()
}

/// The question, signed by the devnet's client, or by somebody else where it was so.
fn question(world: &World, label: &str, mut request: StatusRequest) -> Vec<u8> {
    let stranger = Key::from_seed(b"stranger", Kind::Secp);
    let signer = if label == "wrong signer" { &stranger } else { &world.key };
    request.signature = signer.sign(&request.uuid).unwrap();
    request.encode()
}

/// The deal that seals was transferred; its index step fails where it did so then.
async fn prepare(world: &World, index_error: bool) {
    world.script(0, json!({"index_error": index_error})).await;
    for _ in 0..2_000 {
        let books = world.control("GET", "/providers", Value::Null).await;
        if books[0]["deals"][0]["transferred"] == true {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the deal is not transferred: {}", world.book(0).await);
}
