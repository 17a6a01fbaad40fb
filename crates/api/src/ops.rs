//! Health and metrics, on their own listener and without tokens.
//!
//! `/livez` says that the process answers, `/readyz` that it can take pins, `/metrics` what it counts. Gauges
//! that the engine can tell are read when somebody asks.

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use floe_engine::{Engine, Status};
use http::header::CONTENT_TYPE;
use tokio_util::sync::CancellationToken;

use crate::RenderMetrics;
use crate::error::ApiError;
use crate::router::refusing;

#[derive(Clone)]
struct OpsState {
    engine: Engine,
    render: RenderMetrics,
    stopping: CancellationToken,
}

pub(crate) fn router(engine: Engine, render: RenderMetrics, stopping: CancellationToken) -> Router {
    let routed = Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(show));
    refusing(routed).with_state(OpsState { engine, render, stopping })
}

async fn ready(State(state): State<OpsState>) -> Result<&'static str, ApiError> {
    if state.stopping.is_cancelled() {
        return Err(ApiError::unavailable(STOPPING));
    }
    state.engine.ready().await.map_err(|error| unready(&error))?;
    Ok("ready\n")
}

const STOPPING: &str = "this node is shutting down";

/// Why not, in words that tell nothing of the machine (T45). The cause is for the log.
fn unready(error: &floe_engine::Error) -> ApiError {
    ApiError::unavailable(match error {
        floe_engine::Error::Stopping => STOPPING,
        floe_engine::Error::ReadOnly => {
            "the disk is under its reserve: new pins are refused until there is space again"
        }
        cause => {
            tracing::error!(%cause, "not ready: {cause}");
            "the stores cannot be read: the node's log says why"
        }
    })
}

async fn show(State(state): State<OpsState>) -> Response {
    match state.engine.status().await {
        Ok(status) => gauge(&status),
        // The counters are still worth having; the gauges keep their last values.
        Err(error) => tracing::warn!(%error, "the figures of the stores could not be read: {error}"),
    }
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], (state.render)()).into_response()
}

#[expect(clippy::cast_precision_loss, reason = "a gauge is a float; counts stay exact up to 2^53")]
fn gauge(status: &Status) {
    for word in floe_core::PinStatus::ALL {
        let pins = status.pins.get(&word).copied().unwrap_or(0);
        metrics::gauge!("floe_pins", "status" => word.as_str()).set(pins as f64);
    }
    metrics::gauge!("floe_blocks").set(status.blocks as f64);
    metrics::gauge!("floe_stored_bytes").set(status.stored_bytes as f64);
    metrics::gauge!("floe_disk_free_bytes").set(status.disk_free_bytes as f64);
    metrics::gauge!("floe_read_only").set(f64::from(u8::from(status.read_only)));
    metrics::gauge!("floe_peers").set(status.network.peers as f64);
    if let Some(cold) = &status.cold {
        for (state, count) in &cold.aggregates {
            metrics::gauge!("floe_aggregates", "state" => state.as_str()).set(*count as f64);
        }
        metrics::gauge!("floe_spending").set(f64::from(u8::from(cold.spending && cold.paused.is_none())));
    }
    for worker in &status.workers {
        metrics::gauge!("floe_worker_queue", "worker" => worker.name).set(worker.queue as f64);
    }
}
