//! A server on loopback that speaks as go-jsonrpc does. What it answers is what was recorded, or what a test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use floe_filecoin::rpc::{Endpoint, Lotus};
use serde_json::{Value, json};
use soketto::handshake::server::{Response as Accepted, Server};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use crate::recordings::recorded;

/// One answer.
pub(crate) enum Reply {
    /// This result.
    Result(Value),
    /// HTTP 200, code 1, this text: how Lotus refuses.
    Refused(&'static str),
    /// This status and body, with `ID` in it replaced by the request's id.
    Raw(u16, String),
    /// The call is taken and the connection breaks: a lost reply.
    Broken,
}

type Answer = Box<dyn FnMut(&str, &Value) -> Reply + Send>;

struct Shared {
    answer: Mutex<Answer>,
    calls: Mutex<Vec<(String, Value)>>,
    headers: Mutex<HeaderMap>,
}

/// The server. It ends with the runtime of its test.
#[derive(Clone)]
pub(crate) struct Node {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Node {
    /// Answers each call with what `answer` says.
    pub(crate) async fn start(answer: impl FnMut(&str, &Value) -> Reply + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            answer: Mutex::new(Box::new(answer)),
            calls: Mutex::default(),
            headers: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = axum::Router::new().fallback(serve).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, shared }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("a-token:http://{}", self.address)).unwrap()
    }

    pub(crate) fn lotus(&self) -> Lotus {
        Lotus::new(self.endpoint()).unwrap()
    }

    /// The calls so far: method and parameters.
    pub(crate) fn calls(&self) -> Vec<(String, Value)> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// How often a method was called.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.calls().iter().filter(|(name, _)| name == method).count()
    }

    pub(crate) fn authorization(&self) -> Option<String> {
        let headers = self.shared.headers.lock().unwrap();
        headers.get("authorization").map(|value| value.to_str().unwrap().to_owned())
    }
}

async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    *shared.headers.lock().unwrap() = parts.headers.clone();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap();
    // No parameters are written by leaving them out: that is what go-jsonrpc takes for none.
    assert_ne!(request.get("params"), Some(&Value::Null));
    let method = request["method"].as_str().unwrap().trim_start_matches("Filecoin.");
    shared.calls.lock().unwrap().push((method.to_owned(), request["params"].clone()));
    let reply = (shared.answer.lock().unwrap())(method, &request["params"]);
    let id = &request["id"];
    match reply {
        Reply::Result(result) => {
            json!({"id": id, "jsonrpc": "2.0", "result": result}).to_string().into_response()
        }
        Reply::Refused(text) => json!({"id": id, "jsonrpc": "2.0", "error": {"code": 1, "message": text}})
            .to_string()
            .into_response(),
        Reply::Raw(status, body) => {
            (StatusCode::from_u16(status).unwrap(), body.replace("\"ID\"", &id.to_string())).into_response()
        }
        Reply::Broken => {
            let half = futures::stream::iter([
                Ok(Bytes::from_static(b"{\"id\":")),
                Err(std::io::Error::other("cut")),
            ]);
            Body::from_stream(half).into_response()
        }
    }
}

/// A WebSocket that takes one subscription and sends what it was given.
pub(crate) struct Socket {
    address: SocketAddr,
    closed: tokio::task::JoinHandle<()>,
}

impl Socket {
    /// Sends `frames` to whoever subscribes first, and is silent from then on.
    pub(crate) async fn start(frames: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let closed = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            subscription(stream, frames).await;
        });
        Self { address, closed }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::parse(&format!("a-token:http://{}", self.address)).unwrap()
    }

    /// Completes when the other side has closed the connection.
    pub(crate) async fn closed(self) {
        self.closed.await.unwrap();
    }
}

async fn subscription(stream: TcpStream, frames: Vec<String>) {
    let mut server = Server::new(stream.compat());
    let key = server.receive_request().await.unwrap().key();
    server.send_response(&Accepted::Accept { key, protocol: None }).await.unwrap();
    let (mut sender, mut receiver) = server.into_builder().finish();
    let mut request = Vec::new();
    receiver.receive_data(&mut request).await.unwrap();
    let request: Value = serde_json::from_slice(&request).unwrap();
    assert_eq!(request["method"], "Filecoin.ChainNotify");
    let accepted = json!({"id": request["id"], "jsonrpc": "2.0", "result": 1}).to_string();
    for frame in [accepted].into_iter().chain(frames) {
        sender.send_text(frame).await.unwrap();
    }
    sender.flush().await.unwrap();
    let mut rest = Vec::new();
    while receiver.receive_data(&mut rest).await.is_ok() {}
}

/// One recorded call.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) label: String,
    pub(crate) method: String,
    pub(crate) params: Value,
    status: u16,
    response: String,
}

/// The recorded calls over HTTP that are one request of a method.
pub(crate) fn recorded_calls() -> Vec<Call> {
    let all = recorded("lotus-http.json");
    let call = |call: &Value| {
        let request: Value = serde_json::from_str(call["request"].as_str()?).ok()?;
        let response = call["response"].as_str()?;
        // The frame as it was, but for the id, which ours has to be.
        let id = request.get("id")?.to_string();
        let response = response.replacen(&format!("\"id\":{id}"), "\"id\":\"ID\"", 1);
        Some(Call {
            label: call["label"].as_str()?.to_owned(),
            method: request["method"].as_str()?.trim_start_matches("Filecoin.").to_owned(),
            params: request["params"].clone(),
            status: call["status"].as_u64()? as u16,
            response,
        })
    };
    all.as_array().unwrap().iter().filter_map(call).collect()
}

/// What counts of parameters: without the CID that Lotus adds to messages, and without what we set otherwise.
fn comparable(method: &str, params: &Value) -> Value {
    let mut params = if params.is_null() { json!([]) } else { params.clone() };
    let last = params.as_array().map_or(0, Vec::len).saturating_sub(1);
    match method {
        "StateSearchMsg" | "StateWaitMsg" => params[last] = Value::Null,
        "GasEstimateMessageGas" => params[1] = Value::Null,
        _ => {}
    }
    without_cid(&mut params);
    params
}

fn without_cid(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.contains_key("To") || map.contains_key("Signature") {
                map.remove("CID");
            }
            map.values_mut().for_each(without_cid);
        }
        Value::Array(list) => list.iter_mut().for_each(without_cid),
        _ => {}
    }
}

/// A node that answers as recorded.
pub(crate) async fn replay() -> Node {
    let calls = recorded_calls();
    Node::start(move |method, params| {
        let wanted = comparable(method, params);
        let found = calls.iter().find(|c| c.method == method && comparable(method, &c.params) == wanted);
        match found {
            Some(call) => Reply::Raw(call.status, call.response.clone()),
            None => panic!("nothing is recorded for {method} {params}"),
        }
    })
    .await
}

impl Call {
    /// The recorded body, with `ID` for the id.
    pub(crate) fn response_text(&self) -> String {
        self.response.clone()
    }
}
