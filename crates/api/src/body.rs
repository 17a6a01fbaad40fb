//! Request bodies: JSON, bounded in bytes, in time and in what all of them take, with the `Idempotency-Key` they came
//! under.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use floe_core::policy::DEFAULT_POLICY;
use floe_engine::IdempotencyKey;
use http::header::HeaderName;
use http::request::Parts;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::access::TokenPolicy;
use crate::error::{ApiError, is_json};
use crate::limits::{self, Pace};
use crate::memory::{Payer, Room};
use crate::path::PathPolicy;
use crate::router::ApiState;

/// A client's name for a request, so that a retry is not a second request.
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A JSON body. It comes after the [`crate::access::Caller`], who says whose memory it uses.
pub(crate) struct Sent<T> {
    pub(crate) value: T,
    pub(crate) key: Option<IdempotencyKey>,
    /// For all that is made of it, up to the answer.
    pub(crate) room: Room,
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Sent<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        if !is_json(&parts.headers) {
            return Err(ApiError::unsupported_media_type());
        }
        let payer = parts.extensions.get::<Payer>().copied();
        let payer = payer.ok_or_else(|| ApiError::internal("a body is read before its caller is known"))?;
        // While it comes it is its own bytes: a client may take minutes, and would hold sixteen times as much from
        // everybody else for as long.
        let coming = state.memory.take(payer, most(&body)).await?;
        let body = read(body, &state.pace).await?;
        drop(coming);
        let room = state.memory.take(payer, limits::BODY_WEIGHT * body.len()).await?;
        let key = idempotency_key(&parts, &body)?;
        let value = serde_json::from_slice(&body)
            .map_err(|error| ApiError::bad_request(format!("the body is not as expected: {error}")))?;
        Ok(Self { value, key, room })
    }
}

/// How many bytes of a body may be kept.
fn most(body: &Body) -> usize {
    let announced = body.size_hint().upper().and_then(|bytes| usize::try_from(bytes).ok());
    announced.map_or(limits::BODY_BYTES, |bytes| bytes.min(limits::BODY_BYTES))
}

/// The whole body, at no less than the least rate.
pub(crate) async fn read(mut body: Body, pace: &Pace) -> Result<Bytes, ApiError> {
    let too_large = || {
        limits::hit("body_bytes");
        ApiError::payload_too_large(format!("the body has more than {} bytes", limits::BODY_BYTES))
    };
    if body.size_hint().lower() > limits::DRAINED_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let started = Instant::now();
    let mut kept = BytesMut::new();
    let mut seen = 0;
    while seen <= limits::DRAINED_BODY_BYTES {
        let due = started + pace.body_allowance(seen as u64);
        let Ok(frame) = tokio::time::timeout_at(due, body.frame()).await else {
            limits::hit("body_rate");
            return Err(ApiError::request_timeout());
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| ApiError::bad_request("the body ended before its end"))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= limits::BODY_BYTES {
            kept.extend_from_slice(&data);
        }
    }
    if seen > limits::BODY_BYTES { Err(too_large()) } else { Ok(kept.freeze()) }
}

/// The policy that path or token name, where that is another than the one of pins that name none.
fn policy(parts: &Parts) -> Option<&str> {
    let path = parts.extensions.get().map(|PathPolicy(name)| &**name);
    let token = || parts.extensions.get().map(|TokenPolicy(name)| name.as_str());
    path.or_else(token).filter(|name| *name != DEFAULT_POLICY)
}

/// The key, with a hash of all that makes two requests the same. The path is the one that the router knows:
/// a retry through another prefix is a retry, but one under another policy asks for something else.
fn idempotency_key(parts: &Parts, body: &[u8]) -> Result<Option<IdempotencyKey>, ApiError> {
    let mut values = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    if key.len() > limits::IDEMPOTENCY_KEY_BYTES {
        limits::hit("idempotency_key_bytes");
    }
    if values.next().is_some() || key.is_empty() || key.len() > limits::IDEMPOTENCY_KEY_BYTES {
        let most = limits::IDEMPOTENCY_KEY_BYTES;
        return Err(ApiError::bad_request(format!("Idempotency-Key takes 1 to {most} bytes of ASCII, once")));
    }
    let mut hasher = blake3::Hasher::new();
    for part in [parts.method.as_str(), "\0", parts.uri.path(), "\0"] {
        hasher.update(part.as_bytes());
    }
    if let Some(policy) = policy(parts) {
        hasher.update(policy.as_bytes()).update(b"\0");
    }
    hasher.update(body);
    Ok(Some(IdempotencyKey { key: key.to_owned(), body_hash: *hasher.finalize().as_bytes() }))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use axum::response::IntoResponse as _;
    use bytes::Bytes;
    use futures::StreamExt as _;
    use http::{HeaderValue, Request};

    use super::{IDEMPOTENCY_KEY, idempotency_key, read};
    use crate::limits::{BODY_BYTES, DRAINED_BODY_BYTES, IDEMPOTENCY_KEY_BYTES, Pace};

    async fn status(body: Body, pace: Pace) -> u16 {
        match read(body, &pace).await {
            Ok(_) => 200,
            Err(error) => error.into_response().status().as_u16(),
        }
    }

    #[tokio::test]
    async fn t23_a_body_is_bounded_with_and_without_its_length() {
        let pace = Pace::default();
        for (len, want) in [(BODY_BYTES - 1, 200), (BODY_BYTES, 200), (BODY_BYTES + 1, 413)] {
            let bytes = Bytes::from(vec![b' '; len]);
            assert_eq!(status(Body::from(bytes.clone()), pace).await, want, "{len}");
            let chunks =
                futures::stream::iter(bytes.chunks(1000).map(Bytes::copy_from_slice).collect::<Vec<_>>());
            assert_eq!(
                status(Body::from_stream(chunks.map(Ok::<_, std::io::Error>)), pace).await,
                want,
                "{len}"
            );
        }
        let endless = futures::stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from(vec![0; 65536])));
        assert_eq!(status(Body::from_stream(endless), pace).await, 413);
        assert_eq!(status(Body::from(vec![0; DRAINED_BODY_BYTES + 1]), pace).await, 413);
    }

    #[tokio::test]
    async fn t22_a_body_that_trickles_times_out() {
        let pace = Pace { body_grace: Duration::from_millis(100), ..Pace::default() };
        let trickle = futures::stream::repeat(()).then(|()| async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok::<_, std::io::Error>(Bytes::from_static(b" "))
        });
        assert_eq!(status(Body::from_stream(trickle), pace).await, 408);
    }

    #[test]
    fn t46_a_key_stands_for_method_path_and_body() {
        let hash = |method: &str, path: &str, body: &str| {
            let request =
                Request::builder().method(method).uri(path).header(IDEMPOTENCY_KEY, "k").body(()).unwrap();
            idempotency_key(&request.into_parts().0, body.as_bytes()).unwrap().unwrap().body_hash
        };
        let one = hash("POST", "/pins", "{}");
        assert_eq!(one, hash("POST", "/pins", "{}"));
        for other in [hash("POST", "/pins", "{ }"), hash("POST", "/pins/x", "{}"), hash("PUT", "/pins", "{}")]
        {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn t46_a_key_is_bounded() {
        let takes = |values: &[&str]| {
            let mut request = Request::new(());
            for value in values {
                request.headers_mut().append(IDEMPOTENCY_KEY, HeaderValue::from_str(value).unwrap());
            }
            idempotency_key(&request.into_parts().0, b"").map(|key| key.is_some()).ok()
        };
        assert_eq!(takes(&[]), Some(false));
        for (len, want) in [(0, None), (1, Some(true)), (IDEMPOTENCY_KEY_BYTES - 1, Some(true))] {
            assert_eq!(takes(&[&"k".repeat(len)]), want, "{len}");
        }
        assert_eq!(takes(&[&"k".repeat(IDEMPOTENCY_KEY_BYTES)]), Some(true));
        assert_eq!(takes(&[&"k".repeat(IDEMPOTENCY_KEY_BYTES + 1)]), None);
        assert_eq!(takes(&["a", "b"]), None);
    }
}
