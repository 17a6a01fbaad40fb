//! `GET /pins/{requestid}/events`: a pin's states as server-sent events.
//!
//! The current state first, then each change; ends after `pinned`, `failed`, removal, and at shutdown. A
//! client that was cut off asks again and has missed nothing that still matters.

use std::time::Duration;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use floe_engine::PinEventItem;
use futures::{Stream, StreamExt as _, future};

use super::Id;
use super::status::PinStatusBody;
use crate::access::{Caller, PinsRead};
use crate::error::ApiError;
use crate::front::Local;
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
        .then(move |row| {
            let engine = engine.clone();
            async move {
                // The state of the pin is what is followed: it is told also where its deals cannot be read.
                let cold = engine.cold_of(std::slice::from_ref(&*row)).await;
                let cold =
                    cold.inspect_err(|error| tracing::warn!(%error, "a pin's deals are not told: {error}"));
                let cold = cold.unwrap_or_default().remove(&row.id);
                let body = PinStatusBody::new(*row, engine.delegates(local.0), cold.as_ref());
                Event::default().event("status").json_data(body)
            }
        })
        .take_until(state.stopping.cancelled_owned());
    Ok(stream(events, state.pace.event_comment))
}

/// An event stream, with a comment where there is no news for so long.
pub(crate) fn stream(
    events: impl Stream<Item = Result<Event, axum::Error>> + Send + 'static,
    comment_every: Duration,
) -> impl IntoResponse {
    let comments = KeepAlive::new().interval(comment_every);
    // nginx would collect events until its buffer is full.
    ([("x-accel-buffering", "no")], Sse::new(events).keep_alive(comments))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;

    use super::*;
    use crate::limits::Pace;

    #[tokio::test]
    async fn a_silent_stream_gets_a_comment_as_often_as_the_limit_says() {
        assert_eq!(Pace::default().event_comment, Duration::from_secs(15));
        let every = Duration::from_millis(60);
        let news = futures::stream::iter([Ok(Event::default().data("first"))]);
        let response = stream(news.chain(futures::stream::pending()), every).into_response();
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut body = response.into_body();
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(next().await, "data: first\n\n");
        let since = Instant::now();
        for comments in 1..=3 {
            assert_eq!(next().await, ":\n\n");
            assert!(since.elapsed() >= every * comments, "not sooner: {:?}", since.elapsed());
        }
        assert!(since.elapsed() < Duration::from_secs(10), "and not much later: {:?}", since.elapsed());
    }
}
