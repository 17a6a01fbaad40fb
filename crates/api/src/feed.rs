//! `GET /admin/v1/events`: what happened in the cold half, as server-sent events.
//!
//! Each event carries its number as `id`, so that whoever is cut off goes on where it was, by `Last-Event-ID` or `after`.
//! With `follow=false` the stream ends with the newest one that there is. It ends at shutdown, and when the token that it
//! was opened with holds no longer.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use axum::response::sse;
use floe_core::TokenId;
use floe_engine::Engine;
use floe_engine::cold::Event;
use futures::{Stream, StreamExt as _};
use http::HeaderMap;
use tokio::sync::OwnedSemaphorePermit;

use crate::access::{Admin, Caller};
use crate::error::ApiError;
use crate::limits;
use crate::pins::events::stream;
use crate::pins::query::{once, pairs, shown};
use crate::router::ApiState;

/// One stream of events.
struct Feed {
    engine: Engine,
    token: TokenId,
    after: u64,
    follow: bool,
    read: VecDeque<Event>,
    _seat: OwnedSemaphorePermit,
}

pub(crate) async fn events(
    State(state): State<ApiState>,
    caller: Caller<Admin>,
    headers: HeaderMap,
    RawQuery(text): RawQuery,
) -> Result<impl IntoResponse, ApiError> {
    let pairs = pairs(text.as_deref())?;
    let last = headers.get("last-event-id").map(|id| id.to_str().unwrap_or("?").to_owned());
    let after = match last.map_or_else(|| once(&pairs, "after"), |id| Ok(Some(id)))? {
        None => 0,
        Some(text) => number(&text)?,
    };
    let follow = match once(&pairs, "follow")?.as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(_) => return Err(ApiError::bad_request("follow: it is true or false")),
    };
    let seat = Arc::clone(&state.feeds).try_acquire_owned().map_err(|_| {
        limits::hit("event_streams");
        ApiError::too_many_requests("too many follow the events", limits::EVENT_STREAMS_AGAIN)
    })?;
    let feed = Feed {
        engine: state.engine,
        token: caller.who.token,
        after,
        follow,
        read: VecDeque::new(),
        _seat: seat,
    };
    let events = feed.into_stream().take_until(state.stopping.cancelled_owned());
    Ok(stream(events, state.pace.event_comment))
}

/// A number that our own events have.
fn number(text: &str) -> Result<u64, ApiError> {
    let wrong = || ApiError::bad_request(format!("after: {} is no number of an event", shown(text)));
    text.parse().ok().filter(|n| i64::try_from(*n).is_ok()).ok_or_else(wrong)
}

impl Feed {
    fn into_stream(self) -> impl Stream<Item = Result<sse::Event, axum::Error>> + Send + 'static {
        futures::stream::unfold(self, |mut feed| async move {
            let event = feed.next().await?;
            let sent = sse::Event::default().event(&event.kind).id(event.id.to_string()).json_data(&event);
            Some((sent, feed))
        })
    }

    /// The next event; `None` where the stream is over.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.read.pop_front() {
                self.after = event.id;
                return Some(event);
            }
            if let Err(why) = self.more().await {
                tracing::debug!(why, "a stream of events ends: {why}");
                return None;
            }
            if self.read.is_empty() {
                if !self.follow {
                    return None;
                }
                tokio::time::sleep(limits::EVENT_POLL).await;
            }
        }
    }

    /// Reads more, or says why there will be none.
    async fn more(&mut self) -> Result<(), String> {
        if !self.engine.token_holds(self.token).await.map_err(|error| error.to_string())? {
            return Err("its token holds no longer".to_owned());
        }
        let more = self.engine.events_after(self.after, limits::EVENTS_PER_READ).await;
        self.read = more.map_err(|error| error.to_string())?.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn a_number_is_one_that_an_event_can_have() {
        assert_eq!(number("0").unwrap(), 0);
        assert_eq!(number("9223372036854775807").unwrap(), i64::MAX as u64);
        for bad in ["", "-1", "x", "1.0", "9223372036854775808"] {
            assert!(format!("{:?}", number(bad).unwrap_err()).contains("after: "), "{bad}");
        }
    }
}
