//! `/pins`: the Pinning Service API and its extensions.
//!
//! A handler extracts, makes one call into the engine, and encodes. The order of the extractors is the order
//! of the refusals: token, request id, content type, body. A request that was answered under its `Idempotency-Key`
//! gets that answer before anything else is looked at: the disk may be full by now, the pin that it replaced is gone,
//! and the policies may be others.

pub(crate) mod events;
pub(crate) mod policy;
pub(crate) mod query;
mod spec;
mod status;

use std::str::FromStr as _;

use axum::Json;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use floe_core::{PolicyChoice, RequestId};
use floe_engine::{IdempotencyKey, PinRow, PinSpec, Principal, RecordsError};
use http::StatusCode;
use http::request::Parts;
use serde::Serialize;
use tokio::time::Instant;

use crate::access::{Caller, PinsRead, PinsWrite};
use crate::admin::Segment;
use crate::body::Sent;
use crate::error::ApiError;
use crate::front::Local;
use crate::limits;
use crate::router::ApiState;

pub(crate) use events::events;
use policy::{Choosing, OfPath};
use spec::{BatchBody, PinBody};
use status::PinStatusBody;

type Answer<T> = Result<Json<T>, ApiError>;
type Accepted<T> = Result<(StatusCode, Json<T>), ApiError>;

/// A page. `results` is never null.
#[derive(Serialize)]
pub(crate) struct PinResults {
    count: u64,
    results: Vec<PinStatusBody>,
}

/// The answer to a batch, in the order of its pins.
#[derive(Serialize)]
pub(crate) struct BatchResults {
    results: Vec<PinStatusBody>,
}

pub(crate) async fn list(
    State(state): State<ApiState>,
    caller: Caller<PinsRead>,
    local: Local,
    RawQuery(text): RawQuery,
) -> Result<Response, ApiError> {
    state.rates.list(&caller.who, Instant::now())?;
    let filter = query::filter(text.as_deref())?;
    let room = state.memory.take(caller.payer(), filter.limit as usize * limits::PIN_BYTES).await?;
    let page = state.engine.pins(&caller.who, filter).await?;
    let results = PinResults { count: page.count, results: encode(&state, page.pins, local).await? };
    Ok(room.kept_by(Json(results).into_response()))
}

pub(crate) async fn add(
    State(state): State<ApiState>,
    caller: Caller<PinsWrite>,
    local: Local,
    path: OfPath,
    sent: Sent<PinBody>,
) -> Accepted<PinStatusBody> {
    let said = || sent.value.said().map(|spec| vec![spec]);
    let rows = match answered(&state, &caller.who, said, local, sent.key.as_ref()).await? {
        Some(rows) => rows,
        None => {
            let choosing = Choosing::new(state.engine.policies(), &caller.who, &path);
            let specs = vec![sent.value.check(&choosing)?];
            state.engine.add_pins(&caller.who, specs, local.0, sent.key).await?
        }
    };
    let added = encode(&state, rows, local).await?.pop();
    let added = added.ok_or_else(|| ApiError::internal("the engine added no pin and said nothing"))?;
    Ok((StatusCode::ACCEPTED, Json(added)))
}

pub(crate) async fn add_batch(
    State(state): State<ApiState>,
    caller: Caller<PinsWrite>,
    local: Local,
    path: OfPath,
    sent: Sent<BatchBody>,
) -> Result<Response, ApiError> {
    let said = || sent.value.said();
    let rows = match answered(&state, &caller.who, said, local, sent.key.as_ref()).await? {
        Some(rows) => rows,
        None => {
            let choosing = Choosing::new(state.engine.policies(), &caller.who, &path);
            let specs = sent.value.check(&choosing)?;
            state.engine.add_pins(&caller.who, specs, local.0, sent.key).await?
        }
    };
    let results = BatchResults { results: encode(&state, rows, local).await? };
    Ok(sent.room.kept_by((StatusCode::ACCEPTED, Json(results)).into_response()))
}

pub(crate) async fn show(
    State(state): State<ApiState>,
    caller: Caller<PinsRead>,
    Id(id): Id,
    local: Local,
) -> Answer<PinStatusBody> {
    let row = state.engine.pin(&caller.who, id).await?;
    Ok(Json(encode_one(&state, row, local).await?))
}

pub(crate) async fn replace(
    State(state): State<ApiState>,
    caller: Caller<PinsWrite>,
    Id(old): Id,
    local: Local,
    path: OfPath,
    sent: Sent<PinBody>,
) -> Accepted<PinStatusBody> {
    // Asked before the key is: a first try that ends in between has its answer there by then.
    let inherited = policy_of(&state, &caller.who, old).await?;
    let said = || sent.value.said().map(|spec| vec![spec]);
    let told = answered(&state, &caller.who, said, local, sent.key.as_ref()).await?;
    if let Some(row) = told.and_then(|mut rows| rows.pop()) {
        return Ok((StatusCode::ACCEPTED, Json(encode_one(&state, row, local).await?)));
    }
    let choosing = Choosing::new(state.engine.policies(), &caller.who, &path);
    let spec = sent.value.check(&choosing.replacing(inherited))?;
    let row = state.engine.replace_pin(&caller.who, old, spec, local.0, sent.key).await?;
    Ok((StatusCode::ACCEPTED, Json(encode_one(&state, row, local).await?)))
}

/// What a request was answered that came before under the same key. A body that is wrong was never answered: it is told
/// what is wrong with it.
async fn answered(
    state: &ApiState,
    who: &Principal,
    said: impl FnOnce() -> Option<Vec<PinSpec>>,
    local: Local,
    key: Option<&IdempotencyKey>,
) -> Result<Option<Vec<PinRow>>, ApiError> {
    let Some(key) = key else { return Ok(None) };
    let Some(specs) = said() else { return Ok(None) };
    Ok(state.engine.answer_of(who, specs, local.0, key.clone()).await?)
}

/// What a pin was given that is to be replaced: it never changes, so the rows that are changed need not be asked. One
/// that is gone may have been replaced by an earlier try of the same request, which its key answers.
async fn policy_of(
    state: &ApiState,
    who: &Principal,
    id: RequestId,
) -> Result<Option<PolicyChoice>, ApiError> {
    match state.engine.pin(who, id).await {
        Ok(row) => Ok(Some(row.spec.policy)),
        Err(floe_engine::Error::Records(RecordsError::NotFound)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) async fn remove(
    State(state): State<ApiState>,
    caller: Caller<PinsWrite>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    state.engine.remove_pin(&caller.who, id).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn encode(state: &ApiState, rows: Vec<PinRow>, local: Local) -> Result<Vec<PinStatusBody>, ApiError> {
    let delegates = state.engine.delegates(local.0);
    let cold = state.engine.cold_of(&rows).await?;
    let encode = |row: PinRow| {
        let cold = cold.get(&row.id);
        PinStatusBody::new(row, delegates.clone(), cold)
    };
    Ok(rows.into_iter().map(encode).collect())
}

async fn encode_one(state: &ApiState, row: PinRow, local: Local) -> Result<PinStatusBody, ApiError> {
    let one = encode(state, vec![row], local).await?.pop();
    one.ok_or_else(|| ApiError::internal("one pin was to be encoded, and none was"))
}

/// The request id of a path. What cannot be one names no pin: 404, as for a pin of somebody else.
pub(crate) struct Id(pub(crate) RequestId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Segment(text) = Segment::from_request_parts(parts, state).await?;
        // A UUID has several spellings; a request id has the one that we gave out.
        RequestId::from_str(&text)
            .ok()
            .filter(|id| id.to_string() == text)
            .map(Self)
            .ok_or_else(ApiError::not_found)
    }
}
