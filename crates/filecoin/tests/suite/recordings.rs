//! Every answer of a real Lotus v1.36.0 to a call that Floe makes is read, and every refusal is told apart.

use std::collections::BTreeSet;
use std::path::Path;

use floe_filecoin::chain::{HeadMove, HeadTracker};
use floe_filecoin::market::mk12::DealParams;
use floe_filecoin::rpc::answers::{
    Actor, CollateralBounds, HeadChange, HeadChangeKind, MarketBalance, MarketDeal, MessageLookup, MinerInfo,
    MinerPower, NodeVersion, SectorExpiration, SectorInfo, TipSet,
};
use floe_filecoin::rpc::{Fault, METHODS, Permission, RpcError};
use floe_filecoin::types::cbor::Cbor as _;
use floe_filecoin::types::cid::JsonCid;
use floe_filecoin::types::{Address, AttoFil, Epoch, Message, Signature, SignedMessage};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A file of recorded traffic.
pub(crate) fn recorded(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// One recorded call.
pub(crate) struct Call {
    pub(crate) label: String,
    pub(crate) method: String,
    pub(crate) params: Value,
    pub(crate) response: Value,
}

/// The recorded calls over HTTP that have a JSON-RPC answer.
pub(crate) fn recorded_calls() -> Vec<Call> {
    let call = |call: &Value| {
        let request: Value = serde_json::from_str(call["request"].as_str()?).ok()?;
        Some(Call {
            label: call["label"].as_str()?.to_owned(),
            method: request.get("method")?.as_str()?.to_owned(),
            params: request["params"].clone(),
            response: serde_json::from_str(call["response"].as_str()?).ok()?,
        })
    };
    recorded("lotus-http.json").as_array().unwrap().iter().filter_map(call).collect()
}

/// The result of the first recorded call with this label.
fn result<T: DeserializeOwned>(label: &str) -> T {
    let call =
        recorded_calls().into_iter().find(|call| call.label == label).unwrap_or_else(|| panic!("{label}"));
    serde_json::from_value(call.response["result"].clone()).unwrap_or_else(|e| panic!("{label}: {e}"))
}

fn reads<T: DeserializeOwned>(result: &Value) -> Result<(), serde_json::Error> {
    serde_json::from_value::<T>(result.clone()).map(drop)
}

/// Reads a result as its method's type.
fn read(method: &str, result: &Value) -> Result<(), serde_json::Error> {
    match method.trim_start_matches("Filecoin.") {
        "Version" => reads::<NodeVersion>(result),
        "ChainHead" | "ChainGetGenesis" | "ChainGetTipSet" | "ChainGetTipSetByHeight" => {
            reads::<TipSet>(result)
        }
        "ChainGetMessage" | "GasEstimateMessageGas" => reads::<Message>(result),
        "MpoolPush" => reads::<JsonCid>(result),
        "MpoolPending" => reads::<Vec<SignedMessage>>(result),
        "StateDealProviderCollateralBounds" => reads::<CollateralBounds>(result),
        "StateGetActor" => reads::<Actor>(result),
        "StateMarketBalance" => reads::<MarketBalance>(result),
        "StateMarketStorageDeal" => reads::<MarketDeal>(result),
        "StateMinerInfo" => reads::<MinerInfo>(result),
        "StateMinerPower" => reads::<MinerPower>(result),
        "StateMinerFaults" => reads::<Vec<u64>>(result),
        "StateSearchMsg" | "StateWaitMsg" => reads::<Option<MessageLookup>>(result),
        "StateSectorExpiration" => reads::<SectorExpiration>(result),
        "StateSectorGetInfo" => reads::<Option<SectorInfo>>(result),
        "StateLookupID" | "StateAccountKey" | "WalletDefaultAddress" => reads::<Address>(result),
        "StateNetworkName" => reads::<String>(result),
        "StateNetworkVersion" | "MpoolGetNonce" => reads::<u64>(result),
        "StateMarketProposalPending" | "WalletHas" | "WalletVerify" => reads::<bool>(result),
        "WalletBalance" => reads::<AttoFil>(result),
        "WalletList" => reads::<Vec<Address>>(result),
        "WalletSign" => reads::<Signature>(result),
        other => panic!("no type for {other}"),
    }
}

#[test]
fn every_recorded_answer_to_our_calls_is_read() {
    let mut seen = BTreeSet::new();
    for call in recorded_calls() {
        let is_ours = METHODS.iter().any(|method| method.name == call.method);
        let Some(result) = call.response.get("result").filter(|_| is_ours) else { continue };
        read(&call.method, result).unwrap_or_else(|e| panic!("{}: {e}", call.label));
        seen.insert(call.method);
    }
    // Not answered in the recording: the finalised tipset of a young chain, and calls that it does not hold.
    let unseen: Vec<_> =
        METHODS.iter().map(|method| method.name).filter(|name| !seen.contains(*name)).collect();
    let expected =
        ["GetActorEventsRaw", "AuthVerify", "ChainGetFinalizedTipSet", "ChainNotify", "ClientListImports"];
    assert_eq!(unseen, expected.map(|name| format!("Filecoin.{name}")));
}

#[test]
fn recorded_refusals_are_told_apart() {
    let expected = [
        ("ChainGetTipSetByHeight future", Fault::NoSuchHeight),
        ("ChainGetFinalizedTipSet", Fault::Other),
        ("StateMinerInfo unknown actor", Fault::ActorNotFound),
        ("StateMinerInfo not a miner", Fault::NotAMiner),
        ("StateMarketStorageDeal unknown id", Fault::DealNotFound),
        ("StateSearchMsg unknown", Fault::ObjectNotFound),
        ("ChainGetMessage unknown", Fault::ObjectNotFound),
        ("StateGetActor unknown", Fault::ActorNotFound),
        ("WalletSign absent key", Fault::KeyNotFound),
        ("MpoolGetNonce new key", Fault::ActorNotFound),
        ("GasEstimateMessageGas sender unknown", Fault::ActorNotFound),
        ("MpoolPush same message again", Fault::NonceExists),
        ("MpoolPush signature does not match", Fault::BadSignature),
        ("MpoolPush same nonce, no fee bump", Fault::PremiumTooLow),
        ("MpoolPush nonce too low", Fault::NonceTooLow),
        ("AuthVerify garbage", Fault::Other),
    ];
    let mut left: BTreeSet<&str> = expected.iter().map(|(label, _)| *label).collect();
    for call in recorded_calls() {
        let method = METHODS.iter().find(|method| method.name == call.method);
        let (Some(method), Some(error)) = (method, call.response.get("error")) else { continue };
        let error = RpcError::of_object(
            method,
            error["code"].as_i64().unwrap() as i32,
            error["message"].as_str().unwrap(),
        );
        match expected.iter().find(|(label, _)| *label == call.label) {
            Some((label, fault)) => {
                assert_eq!(error.fault(), Some(*fault), "{label}");
                left.remove(label);
            }
            // Wrong parameters; and the subscription, which there is not over HTTP.
            None => assert!(
                matches!(error, RpcError::BadCall { .. } | RpcError::UnknownMethod { .. }),
                "{}: {error}",
                call.label
            ),
        }
        assert!(!error.is_lost_reply(), "{}: a refusal is an answer", call.label);
    }
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_codes_of_json_rpc_have_their_meaning() {
    let of = |code, text| RpcError::of_object(&METHODS[0], code, text);
    assert!(matches!(of(-32601, "method 'Filecoin.X' not found"), RpcError::UnknownMethod { .. }));
    assert!(matches!(of(-32602, "wrong param count"), RpcError::BadCall { .. }));
    let panicked = of(0, "fatal error calling 'X': boom");
    assert!(panicked.is_lost_reply(), "a panic may come after the effect: {panicked}");
    let forbidden = of(1, "missing permission to invoke 'MpoolPush' (need 'write')");
    assert!(matches!(forbidden, RpcError::Forbidden { .. }) && !forbidden.is_lost_reply());
    assert_eq!(of(11, "anything").fault(), Some(Fault::ActorNotFound));
    assert_eq!(of(12, "anything").fault(), Some(Fault::NoSuchHeight));
    for status in [400, 404, 500, 502, 504] {
        assert_eq!(RpcError::Status { method: "X", status }.is_lost_reply(), status >= 500);
    }
    assert!(of(1, &"x".repeat(100_000)).to_string().len() < 2_000, "a node's text is cut");
    assert!(METHODS.iter().all(|method| method.permission < Permission::Admin), "Floe never needs admin");
}

#[test]
fn what_the_answers_say_is_understood() {
    let head: TipSet = result("ChainHead");
    assert_eq!((head.height, head.key.blocks().len()), (Epoch::new(96), 1));
    let genesis: TipSet = result("ChainGetGenesis");
    assert_eq!(genesis.height, Epoch::new(0));
    let info: MinerInfo = result("StateMinerInfo");
    assert_eq!((info.owner, info.worker, info.sector_size), (Address::Id(102), Address::Id(102), 8_388_608));
    assert!(info.multiaddrs.is_empty() && info.peer_id.unwrap().starts_with("12D3Koo"));
    let balance: MarketBalance = result("StateMarketBalance");
    assert_eq!(balance.free().unwrap().to_string(), "3999998963168377600");
    let stranger: MarketBalance = result("StateMarketBalance unknown");
    assert!(stranger.escrow.is_zero());
    let publish: MessageLookup = result("StateSearchMsg publish");
    assert_eq!((publish.height, publish.receipt.exit_code), (Epoch::new(21), 0));
    assert_eq!(data_encoding::BASE64.encode(&publish.receipt.result), "goECQQw=");
    assert!(result::<Option<MessageLookup>>("StateSearchMsg pending").is_none());
    let sector: SectorInfo = result("StateSectorGetInfo");
    assert_eq!((sector.activation, sector.expiration), (Epoch::new(65), Epoch::new(607_855)));
}

/// The proposal that was accepted over libp2p is on the chain, field for field, with ids for its parties.
#[test]
fn the_deal_on_the_chain_is_the_proposal_that_was_sent() {
    let request = recorded("boost-libp2p.json")["exchanges"][0]["request_hex"].as_str().unwrap().to_owned();
    let sent = DealParams::from_cbor(&data_encoding::HEXLOWER.decode(request.as_bytes()).unwrap()).unwrap();
    let deal: MarketDeal = result("StateMarketStorageDeal");
    assert!(deal.state.is_active());
    let (proposal, client) = (&sent.proposal.proposal, result::<Address>("StateLookupID"));
    assert_ne!(&deal.proposal, proposal, "the chain has the client's id and not its key");
    assert_eq!(proposal.with_parties(client, proposal.provider), deal.proposal);
    assert_eq!(proposal.with_parties(client, proposal.provider).cid(), deal.proposal.cid());
}

/// The recorded subscription: the head as it is, then each step of it.
#[test]
fn the_recorded_head_changes_are_followed() {
    let mut tracker = HeadTracker::new(10);
    let mut moves = 0;
    for frame in recorded("lotus-ws.json").as_array().unwrap().iter().filter(|frame| frame["dir"] == "<") {
        let frame: Value = serde_json::from_str(frame["frame"].as_str().unwrap()).unwrap();
        if frame["method"] != "xrpc.ch.val" {
            continue;
        }
        let changes: Vec<HeadChange> = serde_json::from_value(frame["params"][1].clone()).unwrap();
        let kind = if moves == 0 { HeadChangeKind::Current } else { HeadChangeKind::Apply };
        assert_eq!(changes[0].kind, kind);
        assert_eq!(tracker.take(&changes), HeadMove::Forward);
        assert_eq!(tracker.take(&changes[changes.len() - 1..]), HeadMove::Same, "delivered twice");
        moves += 1;
    }
    assert_eq!(moves, 7);
}
