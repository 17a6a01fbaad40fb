//! The whole devnet over its ports.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::*;

mod client;
mod deals;
mod scripts;
mod socket;

/// Status, content type and body of a request without a body's type.
async fn ask(
    method: &str,
    base: &str,
    path: &str,
    token: Option<&str>,
    body: &str,
) -> (u16, Option<String>, String) {
    let authority = base.strip_prefix("http://").unwrap().to_owned();
    let stream = TcpStream::connect(&authority).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut request =
        Request::builder().method(method.parse::<Method>().unwrap()).uri(path).header("host", authority);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    if base.ends_with("control") || path.starts_with("/epochs") || path.starts_with("/faults") {
        request = request.header("content-type", "application/json");
    }
    let body = Full::new(Bytes::from(body.to_owned()));
    let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

/// A first part of the replay: the recorded requests that depend on no state of the recorded chain are answered alike,
/// but for the order of keys.
#[tokio::test]
async fn recorded_requests_without_state_are_answered_alike() {
    let devnet = Devnet::start(Config { epoch: None, ..Config::default() }).await.unwrap();
    let ready = devnet.ready();
    let labels = [
        "Version",
        "Version v0",
        "StateNetworkVersion",
        "StateMinerInfo unknown actor",
        "StateLookupID never seen or bad checksum",
        "StateMarketBalance unknown",
        "StateMarketStorageDeal unknown id",
        "StateSectorGetInfo unknown",
        "StateSearchMsg unknown",
        "ChainGetMessage unknown",
        "StateGetActor unknown",
        "WalletHas absent",
        "WalletNew bad type",
        "WalletSign absent key",
        "WalletVerify",
        "WalletVerify wrong bytes",
        "MpoolGetNonce new key",
        "GasEstimateMessageGas sender unknown",
        "MpoolPushMessage sender unknown",
        "removed: ClientListDeals",
        "removed, v0: ClientListDeals",
        "unknown method",
        "too few params",
        "too many params",
        "param of wrong type",
        "bad address",
        "malformed JSON",
        "empty body",
        "named params",
        "no id (notification)",
        "string id",
        "batch",
        "empty batch",
        "GET",
        "unknown path",
        "livez",
        "ChainNotify over HTTP",
        "AuthVerify garbage",
        "MsigGetPending",
        "EthChainId",
        "F3IsRunning",
        "F3GetLatestCertificate",
    ];
    let calls: Value =
        serde_json::from_str(include_str!("../../filecoin/tests/vectors/lotus-http.json")).unwrap();
    let mut seen = 0;
    for call in calls.as_array().unwrap() {
        let text = |key: &str| call[key].as_str().unwrap_or_default();
        if !labels.contains(&text("label")) {
            continue;
        }
        let token = Some(ready.token.as_str());
        let (status, kind, body) =
            ask(text("http_method"), &ready.rpc, text("path"), token, text("request")).await;
        let parsed = |text: &str| serde_json::from_str::<Value>(text).map_err(|_| text.to_owned());
        assert_eq!(parsed(&body), parsed(text("response")), "{}", text("label"));
        assert_eq!(body.ends_with('\n'), text("response").ends_with('\n'), "{}", text("label"));
        assert_eq!(u64::from(status), call["status"].as_u64().unwrap(), "{}", text("label"));
        if !text("content_type").is_empty() {
            assert_eq!(kind.as_deref(), call["content_type"].as_str(), "{}", text("label"));
        }
        seen += 1;
    }
    assert_eq!(seen, labels.len());
}

#[tokio::test]
async fn tokens_and_faults() {
    let devnet = Devnet::start(Config { epoch: None, ..Config::default() }).await.unwrap();
    let ready = devnet.ready();
    let head = r#"{"jsonrpc":"2.0","method":"Filecoin.ChainHead","params":[],"id":1}"#;
    let list = r#"{"jsonrpc":"2.0","method":"Filecoin.WalletList","params":[],"id":1}"#;
    let (status, _, body) = ask("POST", &ready.rpc, "/rpc/v1", Some("garbage"), head).await;
    assert_eq!((status, body.as_str()), (401, ""));
    let (status, _, body) = ask("POST", &ready.rpc, "/rpc/v1", None, list).await;
    assert!(
        status == 200 && body.contains("missing permission to invoke 'WalletList' (need 'write')"),
        "{body}"
    );

    let stale = r#"{"node": {"stale": true}}"#;
    assert_eq!(ask("POST", &ready.control, "/faults", None, stale).await.0, 200);
    let (_, _, stepped) = ask("POST", &ready.control, "/epochs/step", None, r#"{"n": 3}"#).await;
    assert!(stepped.contains("\"height\":3"), "{stepped}");
    let (_, _, body) = ask("POST", &ready.rpc, "/rpc/v1", None, head).await;
    assert!(body.contains("\"Height\":0}"), "a stale node shows the head it had: {body}");
    assert_eq!(ask("POST", &ready.control, "/faults", None, r#"{"node": {}}"#).await.0, 200);
    let (_, _, body) = ask("POST", &ready.rpc, "/rpc/v1", None, head).await;
    assert!(body.contains("\"Height\":3}"), "{body}");
    assert_ne!(ask("POST", &ready.control, "/faults", None, r#"{"nod": {}}"#).await.0, 200);
}
