//! JSON-RPC as Lotus speaks it: go-jsonrpc's framing and quirks, as they were recorded.
//!
//! - Errors of methods are HTTP 200 with code 1; unknown methods, counts and types HTTP 500 with a body; what is no
//!   request at all HTTP 400; a bad token 401 with no body.
//! - A request without an id is made and answered with an empty body. Members of a batch end with a newline each.
//! - Keys come in the order of Go's maps. On a WebSocket ([`ws`]) the same calls and subscriptions.

mod args;
mod auth;
mod methods;
mod ws;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use axum::routing::{any, get};
use http::{HeaderValue, Request, StatusCode, header};
use serde_json::Value;

use self::args::{Args, Fault};
use self::auth::Permission;
pub(crate) use self::auth::Tokens;
#[cfg(test)]
pub(crate) use self::methods::METHODS;
pub(crate) use self::methods::collateral_bound;
use self::methods::{Ctx, executed, find, lookup_json, return_decoded};
use crate::faults::RpcFault;
use crate::limits::{CONFIDENCE, RPC_BATCH, RPC_BODY_BYTES, WAIT};
use crate::node::Node;
use crate::serve::{half, hang_up};

/// What the handlers share.
pub(crate) struct Rpc {
    node: Arc<Node>,
    tokens: Tokens,
    /// What a call without a token may do.
    anonymous: Vec<Permission>,
}

impl Rpc {
    /// Everything that a call with this token may do; without one, reading only.
    pub(crate) fn new(node: Arc<Node>, tokens: Tokens) -> Self {
        Self { node, tokens, anonymous: vec![Permission::Read] }
    }
}

/// All routes of the node.
pub(crate) fn router(rpc: Arc<Rpc>) -> axum::Router {
    axum::Router::new()
        .route("/rpc/v0", any(handle))
        .route("/rpc/v1", any(handle))
        .route("/rpc/v2", any(handle))
        .route("/health/livez", get(|| async { StatusCode::OK }))
        .route("/health/readyz", get(ready))
        .fallback(|| async { plain(StatusCode::NOT_FOUND, "404 page not found\n") })
        .with_state(rpc)
}

async fn ready(State(rpc): State<Arc<Rpc>>) -> StatusCode {
    if rpc.node.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn handle(State(rpc): State<Arc<Rpc>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let allowed = match token(&parts) {
        None => rpc.anonymous.clone(),
        Some(token) => match rpc.tokens.check(&token) {
            Ok(allowed) => allowed,
            Err(_) => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = StatusCode::UNAUTHORIZED;
                return response;
            }
        },
    };
    let caller = Caller { rpc, allowed };
    if parts.headers.contains_key(header::UPGRADE) {
        let request = Request::from_parts(parts, ());
        return ws::upgrade(caller, request)
            .unwrap_or_else(|| plain(StatusCode::BAD_REQUEST, "Bad Request\n"));
    }
    match axum::body::to_bytes(body, RPC_BODY_BYTES).await {
        Ok(body) => caller.http(&body).await,
        Err(_) => {
            json(StatusCode::INTERNAL_SERVER_ERROR, Reply::error(Value::Null, -32700, "Parse error").text())
        }
    }
}

/// From the header, or from the query.
fn token(parts: &http::request::Parts) -> Option<String> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(value) = header {
        return Some(value.strip_prefix("Bearer ").unwrap_or(value).to_owned());
    }
    let query = parts.uri.query()?;
    query.split('&').find_map(|pair| pair.strip_prefix("token=")).map(str::to_owned)
}

/// Who calls, and what it may do.
struct Caller {
    rpc: Arc<Rpc>,
    allowed: Vec<Permission>,
}

/// An answer, before it is text.
struct Reply {
    id: Value,
    result: Result<Value, (i64, String)>,
}

impl Reply {
    fn error(id: Value, code: i64, message: impl Into<String>) -> Self {
        Self { id, result: Err((code, message.into())) }
    }

    fn status(&self) -> StatusCode {
        match &self.result {
            Err((-32600, _)) => StatusCode::BAD_REQUEST,
            Err((code, _)) if *code < -32000 => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::OK,
        }
    }

    /// One line.
    fn text(&self) -> String {
        let id = &self.id;
        match &self.result {
            Ok(result) => format!("{{\"id\":{id},\"jsonrpc\":\"2.0\",\"result\":{result}}}\n"),
            Err((code, message)) => {
                let message = Value::from(message.as_str());
                format!(
                    "{{\"error\":{{\"code\":{code},\"message\":{message}}},\"id\":{id},\"jsonrpc\":\"2.0\"}}\n"
                )
            }
        }
    }
}

/// A request that is one: an id (or none), a method and its parameters as they came.
struct Call {
    id: Option<Value>,
    method: String,
    params: Value,
}

impl Call {
    fn read(request: &Value) -> Result<Self, Reply> {
        let Some(fields) = request.as_object() else {
            return Err(Reply::error(Value::Null, -32700, "Parse error"));
        };
        let id = fields.get("id").filter(|id| !id.is_null()).cloned();
        let method = match fields.get("method") {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(method)) => method.clone(),
            Some(_) => return Err(Reply::error(Value::Null, -32700, "Parse error")),
        };
        Ok(Self { id, method, params: fields.get("params").cloned().unwrap_or(Value::Null) })
    }
}

impl Caller {
    async fn http(&self, body: &[u8]) -> Response {
        let body = body.trim_ascii();
        let invalid = || {
            let reply = Reply::error(Value::Null, -32600, "Invalid request");
            json(StatusCode::BAD_REQUEST, reply.text())
        };
        if body.is_empty() {
            return invalid();
        }
        let Ok(parsed) = serde_json::from_slice::<Value>(body) else {
            let reply = Reply::error(Value::Null, -32700, "Parse error");
            return json(StatusCode::INTERNAL_SERVER_ERROR, reply.text());
        };
        match parsed {
            Value::Array(batch) if batch.is_empty() || batch.len() > RPC_BATCH => invalid(),
            Value::Array(batch) => {
                let mut texts = Vec::new();
                for request in &batch {
                    if let Some(reply) = self.answer(request).await {
                        texts.push(reply.text());
                    }
                }
                json(StatusCode::OK, format!("[{}]", texts.join(",")))
            }
            request => self.single(&request).await,
        }
    }

    /// One request, with the faults that are set for its method.
    async fn single(&self, request: &Value) -> Response {
        let method = request["method"].as_str().unwrap_or_default();
        let fault = self.rpc.node.fault_of(method);
        match &fault {
            Some(RpcFault::Down) => return hang_up(),
            Some(RpcFault::Slow(ms)) => tokio::time::sleep(std::time::Duration::from_millis(*ms)).await,
            Some(RpcFault::Status(status)) => {
                let mut response = plain(StatusCode::OK, "the devnet was told to answer so\n");
                *response.status_mut() = StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY);
                return response;
            }
            Some(RpcFault::Error(text)) => {
                return json(StatusCode::OK, Reply::error(request["id"].clone(), 1, text.as_str()).text());
            }
            Some(RpcFault::HalfBody | RpcFault::LostReply) | None => {}
        }
        let response = match self.answer(request).await {
            Some(reply) => json(reply.status(), reply.text()),
            None => json(StatusCode::OK, String::new()),
        };
        match fault {
            Some(RpcFault::HalfBody) => half(response, usize::MAX).await,
            Some(RpcFault::LostReply) => hang_up(),
            _ => response,
        }
    }

    /// Makes a call. None where nobody wants to know.
    async fn answer(&self, request: &Value) -> Option<Reply> {
        let call = match Call::read(request) {
            Ok(call) => call,
            Err(reply) => return Some(reply),
        };
        let result = if call.method == "Filecoin.ChainNotify" && find(&call.method).is_some() {
            let text = "method 'Filecoin.ChainNotify' not supported in this mode (no out channel support)";
            Err((-32601, text.to_owned()))
        } else {
            self.run(&call).await
        };
        call.id.map(|id| Reply { id, result })
    }

    async fn run(&self, call: &Call) -> Result<Value, (i64, String)> {
        let name = &call.method;
        let Some(method) = find(name) else {
            return Err((-32601, format!("method '{name}' not found")));
        };
        let args = match &call.params {
            Value::Null => Vec::new(),
            Value::Array(args) => args.clone(),
            other => {
                let kind = if other.is_object() { "object" } else { "value" };
                let text = "Go value of type []jsonrpc.param";
                return Err((
                    -32700,
                    format!("unmarshaling param array: json: cannot unmarshal {kind} into {text}"),
                ));
            }
        };
        if args.len() != method.params {
            let text = format!("wrong param count (method '{name}'): {} != {}", args.len(), method.params);
            return Err((-32602, text));
        }
        if !self.allowed.contains(&method.needs) {
            let needs = method.needs.name();
            return Err((1, format!("missing permission to invoke '{}' (need '{needs}')", method.name)));
        }
        let args = Args(args);
        let done = match method.name {
            "StateWaitMsg" => self.wait(&args).await,
            _ => self.rpc.node.shown(|chain, wallet| {
                (method.run)(&mut Ctx { chain, wallet, tokens: &self.rpc.tokens }, &args)
            }),
        };
        done.map_err(|fault| match fault {
            Fault::Param(go, why) => {
                (-32700, format!("unmarshaling params for '{name}' (param: {go}): {why}"))
            }
            Fault::Call(code, text) => (code, text),
        })
    }

    /// Waits until the message was executed and `confidence` epochs passed since. Cancel safe.
    async fn wait(&self, args: &Args) -> Result<Value, Fault> {
        let (cid, confidence, _) = (args.cid(0)?, args.uint(1)?, args.int(2)?);
        let allow_replaced = args.boolean(3)?;
        if confidence > CONFIDENCE {
            return args::fail(format!("confidence {confidence} is too high, at most {CONFIDENCE}"));
        }
        let look = |chain: &crate::chain::Chain| {
            let head = chain.head().height;
            let (cid, found) = match executed(chain, &cid, allow_replaced) {
                Ok(found) => found.filter(|(_, found)| {
                    head - found.seen_in.height >= i64::try_from(confidence).unwrap_or(i64::MAX)
                })?,
                Err(fault) => return Some(Err(fault)),
            };
            let decoded = return_decoded(chain.message(&cid), &found.receipt.ret);
            Some(Ok(lookup_json(&cid, &found, decoded)))
        };
        if self.rpc.node.shown(|chain, _| chain.message(&cid).is_none()) {
            return args::fail(format!("failed to load message: ipld: could not find {cid}"));
        }
        let waiting = async {
            loop {
                let (found, mut changes) = self.rpc.node.follow_shown(look);
                if let Some(found) = found {
                    return found;
                }
                // Cut off or not: look again.
                let _ = changes.recv().await;
            }
        };
        match tokio::time::timeout(WAIT, waiting).await {
            Ok(found) => found,
            Err(_) => args::fail("context deadline exceeded"),
        }
    }
}
