//! Makes of each HTTP answer of go-jsonrpc one that jsonrpsee reads: see the traps in the module above.
//!
//! A layer between jsonrpsee and the connection. It reads the body up to the limit, and where it is one JSON-RPC frame
//! it is written anew with the known keys alone and with status 200; anything else goes on as it came.
//!
//! A node that repeats our token is not quoted: the token is taken out of the body here, before jsonrpsee logs it.

use std::borrow::Cow;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use jsonrpsee_core::BoxError;
use jsonrpsee_core::http_helpers::HttpError;
use jsonrpsee_http_client::transport::Error as TransportError;
use jsonrpsee_http_client::{HttpRequest, HttpResponse};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use tower::{Layer, Service};

use super::endpoint::Endpoint;
use crate::limits::{self, MAX_ANSWER_BYTES};

/// The layer, for the node at this endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Frames(pub(crate) Endpoint);

impl<S> Layer<S> for Frames {
    type Service = Normalised<S>;

    fn layer(&self, inner: S) -> Normalised<S> {
        Normalised(inner, self.0.clone())
    }
}

/// The service around a connection.
#[derive(Debug, Clone)]
pub(crate) struct Normalised<S>(S, Endpoint);

impl<S, B> Service<HttpRequest> for Normalised<S>
where
    S: Service<HttpRequest, Response = HttpResponse<B>, Error = TransportError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = HttpResponse<Full<Bytes>>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, TransportError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: HttpRequest) -> Self::Future {
        let response = self.0.call(request);
        let endpoint = self.1.clone();
        Box::pin(async move {
            let (mut parts, body) = response.await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES as usize).collect().await.map_err(unreadable)?;
            let body = endpoint.hide_in(body.to_bytes());
            let Some(frame) = normalised(&body) else {
                return Ok(HttpResponse::from_parts(parts, Full::new(body)));
            };
            parts.status = http::StatusCode::OK;
            parts.headers.remove(http::header::CONTENT_LENGTH);
            Ok(HttpResponse::from_parts(parts, Full::new(frame)))
        })
    }
}

fn unreadable(error: BoxError) -> TransportError {
    if error.is::<LengthLimitError>() {
        limits::hit("rpc_answer");
        return TransportError::Http(HttpError::TooLarge);
    }
    TransportError::Http(HttpError::Stream(error))
}

#[derive(Deserialize, Serialize)]
struct Frame<'a> {
    #[serde(skip_deserializing, default = "version")]
    jsonrpc: &'static str,
    #[serde(borrow)]
    id: &'a RawValue,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    error: Option<Fault<'a>>,
}

#[derive(Deserialize, Serialize)]
struct Fault<'a> {
    code: i64,
    #[serde(borrow)]
    message: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
}

const fn version() -> &'static str {
    "2.0"
}

/// `null` that is there is not the same as nothing: the one is a result, the other is none.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// The frame with the known keys alone; `None` where the body is none, or has neither a result nor an error.
fn normalised(body: &[u8]) -> Option<Bytes> {
    let mut frame: Frame<'_> = serde_json::from_slice(body).ok()?;
    // go-jsonrpc leaves out what does not count; another node may write both. The error counts.
    if frame.error.is_some() {
        frame.result = None;
    } else if frame.result.is_none() {
        return None;
    }
    serde_json::to_vec(&frame).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &str) -> Option<String> {
        normalised(body.as_bytes()).map(|frame| String::from_utf8(frame.to_vec()).unwrap())
    }

    #[test]
    fn known_keys_are_kept_and_nothing_else() {
        assert_eq!(
            text("{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":{\"a\":1.50},\"meta\":{\"x\":1}}\n").unwrap(),
            r#"{"jsonrpc":"2.0","id":1,"result":{"a":1.50}}"#
        );
        assert_eq!(
            text(r#"{"error":{"code":1,"message":"a\nb","meta":{"m":1},"data":"0x"},"id":"q"}"#).unwrap(),
            r#"{"jsonrpc":"2.0","id":"q","error":{"code":1,"message":"a\nb","data":"0x"}}"#
        );
        assert_eq!(
            text(r#"{"id":1,"result":1,"error":{"code":1,"message":"m"}}"#).unwrap(),
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"m"}}"#
        );
    }

    /// A node that leaves out `result` must not be taken to say "this message is not on the chain".
    #[test]
    fn a_missing_result_is_not_null() {
        assert_eq!(text(r#"{"id":1,"result":null}"#).unwrap(), r#"{"jsonrpc":"2.0","id":1,"result":null}"#);
        assert_eq!(text(r#"{"id":1,"jsonrpc":"2.0"}"#), None);
    }

    #[test]
    fn what_is_no_frame_goes_on_as_it_came() {
        for body in
            ["", "404 page not found\n", "[]", "{", "{\"id\":1,\"result\":1", "{\"result\":1}", "null"]
        {
            assert_eq!(text(body), None, "{body}");
        }
    }
}
