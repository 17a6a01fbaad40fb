//! The provider over HTTP: Curio's market routes, and the pieces.
//!
//! `Content-Type: application/cbor` is required, and what does not decode is refused, both with 400 and no body. The
//! questions are GETs with a body; that is meant. A refused proposal is 200. Curio's libp2p is a WebSocket at the root:
//! what comes there is handed on to the node behind it.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use super::Provider;
use crate::faults::RetrievalFault;
use crate::limits::{ASK_BODY_BYTES, STORE_BODY_BYTES};
use crate::serve::{AfterUpgrade, half, hang_up};
use crate::wire::commp;
use crate::wire::deal::{DealParams, StatusRequest, ask_request, deal_response};

/// All routes of a provider.
pub(crate) fn router(provider: Arc<Provider>) -> axum::Router {
    let questions = axum::Router::new()
        .route("/market/mk12/ask", get(ask))
        .route("/market/mk12/status", get(status))
        .layer(DefaultBodyLimit::max(ASK_BODY_BYTES));
    axum::Router::new()
        .route("/market/mk12/store", post(store))
        .layer(DefaultBodyLimit::max(STORE_BODY_BYTES))
        .merge(questions)
        .route("/piece/{cid}", get(piece))
        .route("/", get(websocket))
        .layer(middleware::from_fn_with_state(Arc::clone(&provider), presence))
        .with_state(provider)
}

/// Nothing answers while the provider is offline.
async fn presence(State(provider): State<Arc<Provider>>, request: Request, next: Next) -> Response {
    if provider.faults().offline {
        return hang_up();
    }
    next.run(request).await
}

fn is_cbor(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/cbor")
}

fn bad() -> Response {
    StatusCode::BAD_REQUEST.into_response()
}

/// The header of Curio's answers is set too late to be sent: clients must not rely on it.
fn answer(bytes: Vec<u8>) -> Response {
    Response::new(Body::from(bytes))
}

async fn store(State(provider): State<Arc<Provider>>, headers: HeaderMap, body: Bytes) -> Response {
    if !is_cbor(&headers) {
        return bad();
    }
    let params = match DealParams::decode(&body) {
        Ok(params) => params,
        Err(why) => {
            tracing::debug!(%why, "a proposal could not be read");
            return bad();
        }
    };
    let refusal = provider.store(params).err();
    if provider.faults().lose_reply {
        return hang_up();
    }
    answer(deal_response(refusal.as_deref()))
}

async fn ask(State(provider): State<Arc<Provider>>, headers: HeaderMap, body: Bytes) -> Response {
    match ask_request(&body) {
        Ok(miner) if is_cbor(&headers) && miner == provider.terms.miner => {
            provider.ask().map_or_else(bad, answer)
        }
        _ => bad(),
    }
}

async fn status(State(provider): State<Arc<Provider>>, headers: HeaderMap, body: Bytes) -> Response {
    let Ok(request) = StatusRequest::decode(&body) else { return bad() };
    if !is_cbor(&headers) {
        return bad();
    }
    provider.status(&request).map_or_else(hang_up, |status| answer(status.encode()))
}

/// A WebSocket that is asked for here is the node's: its handshake is handed on, and after that every byte.
async fn websocket(State(provider): State<Arc<Provider>>, mut request: Request) -> Response {
    let after = request.extensions().get::<AfterUpgrade>().cloned();
    let (Some(node), Some(after)) = (provider.contact.websocket, after) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if !request.headers().contains_key(header::UPGRADE) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let ours = hyper::upgrade::on(&mut request);
    match forward(node, request.headers().clone()).await {
        Ok((response, theirs)) => {
            after.run(async move {
                let Ok(ours) = ours.await else { return };
                // Either side may hang up at any time.
                let _ = copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
            });
            response
        }
        Err(why) => {
            tracing::debug!(%why, "a WebSocket was not handed on");
            StatusCode::BAD_GATEWAY.into_response()
        }
    }
}

/// Asks the node for the WebSocket that a client asked for: its answer, and what follows.
async fn forward(node: SocketAddr, headers: HeaderMap) -> Result<(Response, Upgraded), String> {
    let stream = TcpStream::connect(node).await.map_err(|error| error.to_string())?;
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| error.to_string())?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
    let mut request = Request::new(Body::empty());
    *request.headers_mut() = headers;
    let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(format!("the node answered {}", answer.status()));
    }
    let (parts, body) = answer.into_parts();
    let shown = Response::from_parts(parts.clone(), Body::empty());
    let upgraded = hyper::upgrade::on(http::Response::from_parts(parts, body)).await;
    drop(connection);
    Ok((shown, upgraded.map_err(|error| error.to_string())?))
}

/// The bytes of a piece, or a range of them.
async fn piece(
    State(provider): State<Arc<Provider>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let Ok(cid) = commp::any_version(&name) else { return bad() };
    let fault = provider.faults().retrieval;
    let found = provider.piece(&cid).filter(|_| fault != Some(RetrievalFault::NotFound));
    let Some(data) = found else { return StatusCode::NOT_FOUND.into_response() };
    if fault == Some(RetrievalFault::Refuse) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let length = data.len();
    let (range, status) = match headers.get(header::RANGE).map(|range| parse(range, length)) {
        None => (0..length, StatusCode::OK),
        Some(Some(range)) => (range, StatusCode::PARTIAL_CONTENT),
        Some(None) => {
            let total = HeaderValue::try_from(format!("bytes */{length}"));
            let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
            response.headers_mut().extend(total.ok().map(|total| (header::CONTENT_RANGE, total)));
            return response;
        }
    };
    let mut bytes = data.slice(range.clone());
    if fault == Some(RetrievalFault::Corrupt) {
        let mut changed = bytes.to_vec();
        changed.iter_mut().take(1).for_each(|byte| *byte ^= 1);
        bytes = changed.into();
    }
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let set = response.headers_mut();
    set.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/piece"));
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) =
            HeaderValue::try_from(format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1)))
    {
        set.insert(header::CONTENT_RANGE, value);
    }
    if fault == Some(RetrievalFault::HalfBody) {
        return half(response, usize::MAX).await;
    }
    response
}

/// One range, clamped to the data. None where it is none, or lies past the end.
fn parse(value: &HeaderValue, length: usize) -> Option<std::ops::Range<usize>> {
    let (first, last) = value.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let suffix: usize = last.parse().ok()?;
        return (suffix > 0 && length > 0).then(|| length.saturating_sub(suffix)..length);
    }
    let first: usize = first.parse().ok()?;
    let end =
        if last.is_empty() { length } else { last.parse::<usize>().ok()?.saturating_add(1).min(length) };
    (first < length && first < end).then_some(first..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clamped() {
        let range = |text| parse(&HeaderValue::from_static(text), 10);
        assert_eq!(range("bytes=0-"), Some(0..10));
        assert_eq!(range("bytes=2-3"), Some(2..4));
        assert_eq!(range("bytes=5-100"), Some(5..10));
        assert_eq!(range("bytes=-3"), Some(7..10));
        for none in ["bytes=10-", "bytes=4-2", "bytes=-0", "lines=0-1", "bytes=a-b", "bytes=0-1,3-4"] {
            assert_eq!(range(none), None, "{none}");
        }
    }
}
