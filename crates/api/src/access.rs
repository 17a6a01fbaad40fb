//! Who may call: bearer tokens and scopes.
//!
//! A handler states what it needs in its signature (`Caller<PinsRead>`), so that none can forget to ask. The
//! token itself goes nowhere but into the one call that looks it up. What is read after it, the body, finds whose memory it
//! uses, and the policy of the token, as request extensions.

use std::marker::PhantomData;

use axum::extract::FromRequestParts;
use floe_engine::{DEFAULT_ACCOUNT, Principal, Scope};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use tokio::time::Instant;

use crate::error::ApiError;
use crate::limits;
use crate::memory::Payer;
use crate::router::ApiState;

/// What a handler needs of a token.
pub(crate) trait Need: Send + Sync + 'static {
    const SCOPE: Scope;
    /// Whether the scope `admin` does as well: then the handler tells whose token it is.
    const OR_ADMIN: bool = false;
    /// Whether it counts for `api.requests_per_minute`.
    const IS_COUNTED: bool = true;
    /// Whether it has the memory that is kept for the operator.
    const HAS_KEPT_MEMORY: bool = false;
}

/// Reading pins.
pub(crate) struct PinsRead;
/// Adding, replacing and removing pins.
pub(crate) struct PinsWrite;
/// Seeing deals: with `pins:read` those of one's own pins, with `admin` all.
pub(crate) struct DealsRead;
/// Administration.
pub(crate) struct Admin;

impl Need for PinsRead {
    const SCOPE: Scope = Scope::PinsRead;
}

impl Need for PinsWrite {
    const SCOPE: Scope = Scope::PinsWrite;
}

impl Need for DealsRead {
    const SCOPE: Scope = Scope::PinsRead;
    const OR_ADMIN: bool = true;
}

impl Need for Admin {
    const SCOPE: Scope = Scope::Admin;
    const IS_COUNTED: bool = false;
    const HAS_KEPT_MEMORY: bool = true;
}

/// The policy of the caller's token, as a request extension.
#[derive(Debug, Clone)]
pub(crate) struct TokenPolicy(pub(crate) String);

/// Who calls, with a token that has what `N` needs.
pub(crate) struct Caller<N> {
    pub(crate) who: Principal,
    need: PhantomData<N>,
}

impl<N: Need> FromRequestParts<ApiState> for Caller<N> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let token = bearer(&parts.headers).ok_or_else(ApiError::unauthorized)?;
        let who = state.engine.authenticate(token).await?.ok_or_else(ApiError::unauthorized)?;
        if who.account.suspended && !may_lift(&who, N::SCOPE) {
            return Err(ApiError::forbidden("this account is suspended"));
        }
        let is_admin = || N::OR_ADMIN && who.scopes.contains(&Scope::Admin);
        if !who.scopes.contains(&N::SCOPE) && !is_admin() {
            return Err(ApiError::forbidden(format!("this token lacks the scope {}", name(N::SCOPE))));
        }
        if N::IS_COUNTED {
            state.rates.request(&who, Instant::now())?;
        }
        let caller = Self { who, need: PhantomData };
        parts.extensions.insert(caller.payer());
        if let Some(policy) = &caller.who.policy {
            parts.extensions.insert(TokenPolicy(policy.clone()));
        }
        Ok(caller)
    }
}

impl<N: Need> Caller<N> {
    /// Whose memory the request uses. It goes by the route and not by the token: one that may also administrate
    /// fills no more than its account's share with pins.
    pub(crate) fn payer(&self) -> Payer {
        if N::HAS_KEPT_MEMORY { Payer::Operator } else { Payer::Account(self.who.account.id) }
    }
}

/// Suspended, the operator's own account administers all the same: nobody else is sure to be there to let it in again.
fn may_lift(who: &Principal, scope: Scope) -> bool {
    scope == Scope::Admin && who.account.name == DEFAULT_ACCOUNT
}

fn name(scope: Scope) -> &'static str {
    match scope {
        Scope::PinsRead => "pins:read",
        Scope::PinsWrite => "pins:write",
        Scope::Admin => "admin",
    }
}

/// The token of the one `Authorization: Bearer` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let only = values.next().filter(|_| values.next().is_none())?;
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    let token = token.trim();
    if token.len() > limits::TOKEN_BYTES {
        limits::hit("token_bytes");
        return None;
    }
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;
    use http::{HeaderMap, HeaderValue};

    use super::bearer;
    use crate::limits::TOKEN_BYTES;

    fn token(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        bearer(&headers).map(str::to_owned)
    }

    #[test]
    fn m01_the_token_is_what_follows_bearer() {
        assert_eq!(token(&["Bearer floe_x"]).as_deref(), Some("floe_x"));
        assert_eq!(token(&["bearer  floe_x "]).as_deref(), Some("floe_x"));
        for wrong in
            [&["Basic floe_x"][..], &["Bearer"], &["Bearer "], &["floe_x"], &[], &["Bearer a", "Bearer b"]]
        {
            assert_eq!(token(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_token_is_bounded() {
        for (len, taken) in [(TOKEN_BYTES - 1, true), (TOKEN_BYTES, true), (TOKEN_BYTES + 1, false)] {
            assert_eq!(token(&[&format!("Bearer {}", "x".repeat(len))]).is_some(), taken, "{len}");
        }
    }
}
