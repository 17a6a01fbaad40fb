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
mod node;
mod peer;
mod replay;
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

#[tokio::test]
async fn tokens() {
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
}
