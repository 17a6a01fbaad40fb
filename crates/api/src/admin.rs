//! Administration: what the command line asks of a running node. Every route needs the scope `admin`.

use std::time::Duration;

use axum::Json;
use axum::extract::{FromRequestParts, Path, RawQuery, State};
use floe_core::TokenId;
use floe_core::policy::{DEFAULT_POLICY, MAX_REPLICAS};
use floe_engine::{Account, Bounds, Grant, Quota, Scope, Status, Token, VerifyReport};
use http::StatusCode;
use http::request::Parts;
use serde::{Deserialize, Serialize};

use crate::access::{Admin, Caller};
use crate::body::Sent;
use crate::error::ApiError;
use crate::limits;
use crate::pins::policy::known;
use crate::pins::query;
use crate::router::ApiState;

type Answer<T> = Result<Json<T>, ApiError>;

pub(crate) async fn status(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<Status> {
    Ok(Json(state.engine.status().await?))
}

pub(crate) async fn accounts(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<Vec<Account>> {
    Ok(Json(state.engine.accounts().await?))
}

#[derive(Deserialize)]
pub(crate) struct NewAccount {
    name: String,
    max_bytes: Option<u64>,
    max_pins: Option<u64>,
    max_replicas: Option<u8>,
}

pub(crate) async fn create_account(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    sent: Sent<NewAccount>,
) -> Result<(StatusCode, Json<Account>), ApiError> {
    let NewAccount { name, max_bytes, max_pins, max_replicas } = sent.value;
    check_account_name(&name)?;
    check_replicas(max_replicas)?;
    let bounds = Bounds { max_bytes, max_pins, max_replicas };
    let account = state.engine.create_bounded_account(&name, bounds).await?;
    Ok((StatusCode::CREATED, Json(account)))
}

/// Names are shown in terminals and stand in paths.
fn check_account_name(name: &str) -> Result<(), ApiError> {
    let count = name.chars().count();
    if count > limits::ACCOUNT_NAME_CHARS {
        limits::hit("account_name_chars");
    }
    let fits = (1..=limits::ACCOUNT_NAME_CHARS).contains(&count);
    let plain = name.chars().all(|c| c.is_alphanumeric() || "-_.@+".contains(c)) && !name.starts_with('.');
    if fits && plain {
        return Ok(());
    }
    let most = limits::ACCOUNT_NAME_CHARS;
    Err(ApiError::bad_request(format!(
        "name: an account's name has 1 to {most} letters, digits and any of - _ . @ +, and does not begin with a dot"
    )))
}

/// No account may ask for more replicas than any policy may.
fn check_replicas(most: Option<u8>) -> Result<(), ApiError> {
    if most.is_none_or(|most| most <= MAX_REPLICAS) {
        return Ok(());
    }
    limits::hit("max_replicas");
    Err(ApiError::bad_request(format!("max_replicas: a pin has at most {MAX_REPLICAS} replicas")))
}

#[derive(Deserialize)]
pub(crate) struct NewQuota {
    #[serde(default, deserialize_with = "given")]
    max_bytes: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    max_pins: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    max_replicas: Option<Option<u8>>,
}

/// Tells `null`, which takes a bound away, from a field that is not there.
fn given<'de, D, T>(value: D) -> Result<Option<Option<T>>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Deserialize::deserialize(value).map(Some)
}

pub(crate) async fn set_quota(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    Segment(name): Segment,
    sent: Sent<NewQuota>,
) -> Answer<Account> {
    let NewQuota { max_bytes, max_pins, max_replicas } = sent.value;
    let quota = Quota { max_bytes, max_pins, max_replicas };
    if quota == Quota::default() {
        let details = "give max_bytes, max_pins, max_replicas, or several; null takes a bound away";
        return Err(ApiError::bad_request(details));
    }
    check_replicas(max_replicas.flatten())?;
    Ok(Json(state.engine.set_quota(&name, quota).await?))
}

#[derive(Deserialize)]
pub(crate) struct Suspension {
    suspended: bool,
}

pub(crate) async fn suspend_account(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    Segment(name): Segment,
    sent: Sent<Suspension>,
) -> Result<StatusCode, ApiError> {
    state.engine.suspend_account(&name, sent.value.suspended).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn tokens(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    RawQuery(text): RawQuery,
) -> Answer<Vec<Token>> {
    let account = query::once(&query::pairs(text.as_deref())?, "account")?;
    Ok(Json(state.engine.tokens(account.as_deref()).await?))
}

#[derive(Deserialize)]
pub(crate) struct NewToken {
    account: String,
    scopes: Vec<Scope>,
    expires_in_seconds: Option<u64>,
    policy: Option<String>,
}

/// The only answer that holds a secret.
#[derive(Serialize)]
pub(crate) struct CreatedToken {
    token: Token,
    secret: String,
}

pub(crate) async fn create_token(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    sent: Sent<NewToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let NewToken { account, mut scopes, expires_in_seconds, policy } = sent.value;
    scopes.sort_unstable();
    scopes.dedup();
    if scopes.is_empty() {
        return Err(ApiError::bad_request("scopes: name at least one of pins:read, pins:write, admin"));
    }
    if expires_in_seconds == Some(0) {
        return Err(ApiError::bad_request("expires_in_seconds: 0 would have ended already"));
    }
    if let Some(policy) = &policy {
        check_token_policy(&state, policy)?;
    }
    let expires_in = expires_in_seconds.map(Duration::from_secs);
    let grant = Grant { scopes, expires_in, policy };
    let (token, secret) = state.engine.grant_token(&account, grant).await?;
    Ok((StatusCode::CREATED, Json(CreatedToken { token, secret })))
}

fn check_token_policy(state: &ApiState, name: &str) -> Result<(), ApiError> {
    let policies = state.engine.policies();
    if name == DEFAULT_POLICY || policies.contains_key(name) {
        return Ok(());
    }
    let (given, known) = (query::shown(name), known(policies));
    Err(ApiError::bad_request(format!("policy: there is no policy {given}; there is {known}")))
}

pub(crate) async fn revoke_token(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    let id = id.parse().map_err(|_| ApiError::not_found())?;
    state.engine.revoke_token(TokenId(id)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a collection freed.
#[derive(Serialize)]
pub(crate) struct Collected {
    blocks: u64,
    bytes: u64,
}

pub(crate) async fn collect(
    State(state): State<ApiState>,
    _: Caller<Admin>,
    RawQuery(text): RawQuery,
) -> Answer<Collected> {
    let report = match query::once(&query::pairs(text.as_deref())?, "orphans")?.as_deref() {
        None | Some("false") => state.engine.collect().await?,
        Some("true") => state.engine.collect_orphans().await?,
        Some(_) => return Err(ApiError::bad_request("orphans: it is true or false")),
    };
    Ok(Json(Collected { blocks: report.blocks, bytes: report.bytes }))
}

pub(crate) async fn verify(State(state): State<ApiState>, _: Caller<Admin>) -> Answer<VerifyReport> {
    Ok(Json(state.engine.verify().await?))
}

/// The one variable segment of a path. What is no UTF-8 names nothing.
pub(crate) struct Segment(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::from_request_parts(parts, state).await.map_err(|_| ApiError::not_found())?;
        Ok(Self(text))
    }
}

#[cfg(test)]
mod tests {
    use super::check_account_name;
    use crate::limits::ACCOUNT_NAME_CHARS;

    #[test]
    fn account_names_are_plain_and_bounded() {
        for good in ["default", "a", "ops@example.org", "Zoë_1"] {
            assert!(check_account_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "a/b", "a b", "a\u{202e}b", "a\nb", ".hidden"] {
            assert!(check_account_name(bad).is_err(), "{bad:?}");
        }
        for (len, fits) in
            [(ACCOUNT_NAME_CHARS - 1, true), (ACCOUNT_NAME_CHARS, true), (ACCOUNT_NAME_CHARS + 1, false)]
        {
            assert_eq!(check_account_name(&"ä".repeat(len)).is_ok(), fits, "{len}");
        }
    }
}
