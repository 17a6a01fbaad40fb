//! `GET /pins/{requestid}/events`: a pin's states as server-sent events.
//!
//! The current state first, then each change; ends after `pinned`, `failed`, removal, and at shutdown. A
//! client that was cut off asks again and has missed nothing that still matters.

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use floe_engine::PinEventItem;
use futures::{StreamExt as _, future};

use super::Id;
use super::status::PinStatusBody;
use crate::access::{Caller, PinsRead};
use crate::error::ApiError;
use crate::front::Local;
use crate::limits;
use crate::router::ApiState;

pub(crate) async fn events(
    State(state): State<ApiState>,
    caller: Caller<PinsRead>,
    Id(id): Id,
    local: Local,
) -> Result<impl IntoResponse, ApiError> {
    let states = state.engine.watch_pin(&caller.who, id).await?;
    let engine = state.engine;
    let events = states
        .take_while(|item| future::ready(matches!(item, PinEventItem::Status(_))))
        .filter_map(|item| {
            future::ready(match item {
                PinEventItem::Status(row) => Some(row),
                PinEventItem::Removed => None,
            })
        })
        .map(move |row| {
            let body = PinStatusBody::new(*row, engine.delegates(local.0));
            Event::default().event("status").json_data(body)
        })
        .take_until(state.stopping.cancelled_owned());
    let comments = KeepAlive::new().interval(limits::EVENT_COMMENT_EVERY);
    // nginx would collect events until its buffer is full.
    Ok(([("x-accel-buffering", "no")], Sse::new(events).keep_alive(comments)))
}
