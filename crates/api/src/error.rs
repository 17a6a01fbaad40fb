//! The one place where errors become HTTP: `{"error":{"reason","details"}}` on every route.
//!
//! Handlers return [`ApiError`] by `?`. An internal error carries its cause only as far as [`crate::front`],
//! which logs it under an id and sends the id alone (T45).

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use floe_engine::cold::{PullError, Refused};
use floe_engine::{BlocksError, RecordsError};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

use crate::limits;

/// An answer that is not success.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    reason: &'static str,
    details: String,
    retry_after: Option<Duration>,
    cause: Option<Cause>,
}

/// Why an internal error happened: for the log, never for the client. Travels as a response extension.
#[derive(Debug, Clone)]
pub(crate) struct Cause(pub(crate) String);

#[derive(Serialize)]
struct Failure<'a> {
    error: FailureError<'a>,
}

#[derive(Serialize)]
struct FailureError<'a> {
    reason: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl ApiError {
    fn new(status: StatusCode, reason: &'static str, details: impl Into<String>) -> Self {
        Self { status, reason, details: details.into(), retry_after: None, cause: None }
    }

    pub(crate) fn bad_request(details: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BAD_REQUEST", details)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "the access token is missing or invalid")
    }

    pub(crate) fn forbidden(details: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "FORBIDDEN", details)
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", "the specified resource was not found")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "METHOD_NOT_ALLOWED", "this resource has no such method")
    }

    pub(crate) fn request_timeout() -> Self {
        let details = "the request body came too slowly";
        Self::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", details)
    }

    fn conflict(details: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "CONFLICT", details)
    }

    fn insufficient_funds(details: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "INSUFFICIENT_FUNDS", details)
    }

    pub(crate) fn payload_too_large(details: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "PAYLOAD_TOO_LARGE", details)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        let details = "send the body as Content-Type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UNSUPPORTED_MEDIA_TYPE", details)
    }

    fn unprocessable(details: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "UNPROCESSABLE", details)
    }

    pub(crate) fn too_many_requests(details: impl Into<String>, retry_after: Duration) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_REQUESTS", details);
        Self { retry_after: Some(retry_after), ..error }
    }

    pub(crate) fn headers_too_large(details: impl Into<String>) -> Self {
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "HEADERS_TOO_LARGE", details)
    }

    pub(crate) fn internal(cause: impl ToString) -> Self {
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_SERVER_ERROR", "");
        Self { cause: Some(Cause(cause.to_string())), ..error }
    }

    /// What [`crate::front`] sends for a [`Cause`], once it has logged it under `id`.
    pub(crate) fn internal_with_id(id: &str) -> Self {
        let details = format!("something went wrong here; the log says more under {id}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL_SERVER_ERROR", details)
    }

    pub(crate) fn unavailable(details: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", details)
    }

    pub(crate) fn busy(details: impl Into<String>, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::unavailable(details) }
    }

    fn gone(details: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "GONE", details)
    }

    fn insufficient_storage() -> Self {
        let details = "the disk is under its reserve: new pins are refused until there is space again";
        Self::new(StatusCode::INSUFFICIENT_STORAGE, "INSUFFICIENT_STORAGE", details)
    }

    /// For a refusal that a library made with a status alone.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::NOT_FOUND => Self::not_found(),
            StatusCode::METHOD_NOT_ALLOWED => Self::method_not_allowed(),
            status if status.is_server_error() => Self::internal(format!("a library answered {status}")),
            status => Self { status, ..Self::bad_request("the request is malformed") },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let failure = Failure { error: FailureError { reason: self.reason, details: &self.details } };
        let body = serde_json::to_vec(&failure).expect("two strings are always JSON");
        let mut response = (self.status, [(CONTENT_TYPE, "application/json")], body).into_response();
        if let Some(after) = self.retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(cause) = self.cause {
            response.extensions_mut().insert(cause);
        }
        response
    }
}

/// Gives a JSON body to a refusal that has none, and keeps its headers (`Allow`).
pub(crate) fn with_json_body(response: Response) -> Response {
    let refused = response.status().is_client_error() || response.status().is_server_error();
    if !refused || is_json(response.headers()) {
        return response;
    }
    let mut told = ApiError::of_status(response.status()).into_response();
    for (name, value) in response.headers() {
        if !told.headers().contains_key(name) && name != http::header::CONTENT_LENGTH {
            told.headers_mut().insert(name, value.clone());
        }
    }
    told
}

/// Whether the content type is JSON: `application/json` or `application/…+json`.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

impl From<floe_engine::Error> for ApiError {
    fn from(error: floe_engine::Error) -> Self {
        match error {
            floe_engine::Error::Records(error) => of_records(error),
            floe_engine::Error::Blocks(BlocksError::ReadOnly) | floe_engine::Error::ReadOnly => {
                Self::insufficient_storage()
            }
            floe_engine::Error::NoFilecoin => Self::conflict(error.to_string()),
            floe_engine::Error::Filecoin(fault) => of_fault(&fault),
            floe_engine::Error::Stopping => Self::unavailable("this node is shutting down"),
            error => Self::internal(error),
        }
    }
}

/// What the Filecoin node or the wallet said, for the operator: none but he asks them.
fn of_fault(fault: &floe_core::cold::Fault) -> ApiError {
    use floe_core::FailureCode as F;
    match fault.code {
        F::ChainUnreachable | F::Auth => ApiError::unavailable(fault.to_string()),
        F::FundsWallet | F::FundsEscrow | F::Gas => ApiError::insufficient_funds(fault.to_string()),
        _ => ApiError::conflict(fault.to_string()),
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let details = refused.to_string();
        match refused {
            Refused::Committed { .. } | Refused::NotFinal { .. } | Refused::Gas(_) => {
                Self::insufficient_funds(details)
            }
            Refused::Paused(_) | Refused::Pending(_) | Refused::NothingLocked => Self::conflict(details),
            Refused::Failed(_) => Self::unavailable(details),
        }
    }
}

impl From<PullError> for ApiError {
    fn from(error: PullError) -> Self {
        match error {
            PullError::Unknown => Self::not_found(),
            PullError::Over => Self::gone(PullError::Over.to_string()),
            // A provider takes anything but these for the end of the deal.
            PullError::Restored => Self::busy(PullError::Restored.to_string(), limits::PULL_AGAIN),
            PullError::Trouble(_) => Self::busy("the piece cannot be read now", limits::PULL_AGAIN),
        }
    }
}

fn of_records(error: RecordsError) -> ApiError {
    match error {
        RecordsError::NotFound => ApiError::not_found(),
        RecordsError::Conflict(details) => ApiError::conflict(details),
        RecordsError::Quota(details) => ApiError::insufficient_funds(details),
        RecordsError::Busy { reason, retry_after } => ApiError::too_many_requests(reason, retry_after),
        RecordsError::KeyReused => ApiError::unprocessable(RecordsError::KeyReused.to_string()),
        RecordsError::Deadline => {
            ApiError::busy("the query took too long: narrow the filter", limits::SCAN_AGAIN)
        }
        RecordsError::Full => ApiError::insufficient_storage(),
        fenced @ RecordsError::Fenced { .. } => ApiError::conflict(fenced.to_string()),
        error => ApiError::internal(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::response::IntoResponse as _;
    use floe_engine::cold::{PieceError, PullError};
    use floe_engine::{BlocksError, Error, RecordsError};
    use http::header::{CONTENT_TYPE, RETRY_AFTER};
    use http_body_util::BodyExt as _;

    use super::{ApiError, Cause, with_json_body};

    async fn told(error: ApiError) -> String {
        let response = with_json_body(error.into_response());
        let status = response.status().as_u16();
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        let retry = response.headers().get(RETRY_AFTER).map(|v| v.to_str().unwrap().to_owned());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wait = retry.map(|s| format!(", after {s} s")).unwrap_or_default();
        format!("{status} {}{wait}", body["error"]["reason"].as_str().unwrap())
    }

    #[tokio::test]
    async fn m02_each_error_of_the_engine_has_its_status_and_reason() {
        let busy = |millis| {
            let retry_after = Duration::from_millis(millis);
            RecordsError::Busy { reason: "queue".into(), retry_after }
        };
        let table: [(Error, &str); 15] = [
            (RecordsError::NotFound.into(), "404 NOT_FOUND"),
            (RecordsError::Conflict("taken".into()).into(), "409 CONFLICT"),
            (RecordsError::Quota("quota".into()).into(), "409 INSUFFICIENT_FUNDS"),
            (busy(0).into(), "429 TOO_MANY_REQUESTS, after 1 s"),
            (busy(2000).into(), "429 TOO_MANY_REQUESTS, after 2 s"),
            (busy(2001).into(), "429 TOO_MANY_REQUESTS, after 3 s"),
            (RecordsError::KeyReused.into(), "422 UNPROCESSABLE"),
            (RecordsError::Deadline.into(), "503 UNAVAILABLE, after 10 s"),
            (RecordsError::Full.into(), "507 INSUFFICIENT_STORAGE"),
            (RecordsError::Fenced { found: 2, ours: 1 }.into(), "409 CONFLICT"),
            (RecordsError::Sql("boom".into()).into(), "500 INTERNAL_SERVER_ERROR"),
            (BlocksError::ReadOnly.into(), "507 INSUFFICIENT_STORAGE"),
            (Error::ReadOnly, "507 INSUFFICIENT_STORAGE"),
            (Error::Stopping, "503 UNAVAILABLE"),
            (BlocksError::Io("disk".into()).into(), "500 INTERNAL_SERVER_ERROR"),
        ];
        for (error, want) in table {
            let named = format!("{error:?}");
            assert_eq!(told(error.into()).await, want, "{named}");
        }
    }

    #[tokio::test]
    async fn our_trouble_is_never_the_end_of_a_transfer() {
        let missing = PieceError::Records(RecordsError::NotFound);
        for (error, want) in [
            (PullError::Unknown, "404 NOT_FOUND"),
            (PullError::Over, "410 GONE"),
            (PullError::Restored, "503 UNAVAILABLE, after 30 s"),
            (PullError::Trouble(PieceError::Busy), "503 UNAVAILABLE, after 30 s"),
            (PullError::Trouble(missing), "503 UNAVAILABLE, after 30 s"),
        ] {
            let named = format!("{error:?}");
            assert_eq!(told(error.into()).await, want, "{named}");
        }
    }

    #[tokio::test]
    async fn t45_the_cause_stays_out_of_the_body() {
        let response =
            ApiError::from(Error::from(RecordsError::Sql("secret-host:5432".into()))).into_response();
        assert!(response.extensions().get::<Cause>().unwrap().0.contains("secret-host"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(!String::from_utf8_lossy(&body).contains("secret-host"));
    }
}
