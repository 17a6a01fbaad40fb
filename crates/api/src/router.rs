//! Every route of the API, grouped by who calls it.

use std::sync::Arc;

use axum::Router;
use axum::extract::FromRequestParts;
use axum::routing::{MethodRouter, delete, get, post};
use floe_engine::Engine;
use http::request::Parts;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::error::ApiError;
use crate::front::Local;
use crate::limits::{self, Pace};
use crate::memory::Memory;
use crate::rates::Rates;
use crate::{admin, cold, deals, feed, pins, wallet};

/// What handlers share.
#[derive(Clone)]
pub(crate) struct ApiState {
    pub(crate) engine: Engine,
    /// Cancelled when the server stops: event streams end.
    pub(crate) stopping: CancellationToken,
    pub(crate) pace: Arc<Pace>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) rates: Arc<Rates>,
    /// Streams of events that may be open.
    pub(crate) feeds: Arc<Semaphore>,
}

impl ApiState {
    pub(crate) fn new(engine: Engine, stopping: CancellationToken, pace: Arc<Pace>, rates: Rates) -> Self {
        let feeds = Arc::new(Semaphore::new(limits::EVENT_STREAMS));
        Self { engine, stopping, pace, memory: Arc::default(), rates: Arc::new(rates), feeds }
    }
}

/// The OpenAPI document. A test compares it with [`routes`].
pub(crate) const OPENAPI: &str = include_str!("../openapi.json");

/// The routes.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<ApiState>)> {
    vec![
        // The Pinning Service API.
        ("/pins", get(pins::list).post(pins::add)),
        ("/pins/{requestid}", get(pins::show).post(pins::replace).delete(pins::remove)),
        // Its extensions.
        ("/pins/batch", post(pins::add_batch)),
        ("/pins/{requestid}/events", get(pins::events)),
        ("/deals", get(deals::list)),
        ("/deals/cost", get(deals::cost)),
        ("/deals/{uuid}", get(deals::show)),
        // The operator, through the command line.
        ("/admin/v1/status", get(admin::status)),
        ("/admin/v1/accounts", get(admin::accounts).post(admin::create_account)),
        ("/admin/v1/accounts/{name}/quota", post(admin::set_quota)),
        ("/admin/v1/accounts/{name}/suspend", post(admin::suspend_account)),
        ("/admin/v1/tokens", get(admin::tokens).post(admin::create_token)),
        ("/admin/v1/tokens/{id}", delete(admin::revoke_token)),
        ("/admin/v1/gc", post(admin::collect)),
        ("/admin/v1/wallet", get(wallet::show)),
        ("/admin/v1/wallet/fund", post(wallet::fund)),
        ("/admin/v1/wallet/withdraw", post(wallet::withdraw)),
        ("/admin/v1/wallet/send", post(wallet::send)),
        ("/admin/v1/wallet/settle", post(wallet::settle)),
        ("/admin/v1/verify", post(admin::verify)),
        ("/admin/v1/deals/{id}/retry", post(deals::retry)),
        ("/admin/v1/providers", get(cold::providers).post(cold::add_provider)),
        ("/admin/v1/providers/{id}/suspend", post(cold::suspend_provider)),
        ("/admin/v1/spending", get(cold::spending).post(cold::switch_spending)),
        ("/admin/v1/spending/trust-backup", post(cold::trust_backup)),
        ("/admin/v1/cold/plan", get(cold::plan)),
        ("/admin/v1/events", get(feed::events)),
        // Everybody.
        ("/openapi.json", get(openapi)),
    ]
}

/// The router of the API listener.
pub(crate) fn api(state: ApiState) -> Router {
    let routed =
        routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
    refusing(routed).with_state(state)
}

/// What every router answers to unknown paths and methods.
pub(crate) fn refusing<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
}

async fn openapi() -> ([(http::HeaderName, &'static str); 1], &'static str) {
    ([(http::header::CONTENT_TYPE, "application/json")], OPENAPI)
}

impl<S: Sync> FromRequestParts<S> for Local {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(false)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{OPENAPI, routes};

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let documented: BTreeSet<&str> =
            document["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let routed: BTreeSet<&str> = routes().into_iter().map(|(path, _)| path).collect();
        assert_eq!(documented, routed);
    }
}
