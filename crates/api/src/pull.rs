//! The listener that storage providers pull pieces from.
//!
//! One route, `GET` and `HEAD /pull/{deal}/{signature}`, below the URL that is signed into the deal. Who knows that URL is
//! let in, and there is nothing else here. The bytes are those of the piece, the same at each pull, whole or a range.
//!
//! What providers do, and what follows:
//! - Boost asks with `HEAD`, then for five ranges at once. The last of them ends a byte behind the end: a range is cut to what
//!   there is. A whole answer to a range would be taken for the range, so no `Range` is ignored.
//! - Any 4xx is the end of the transfer, and with it of the deal. So whatever is wrong, on our side or with a range, or is
//!   too much, is 503 with `Retry-After`; 404 and 410 are for URLs of no deal, and of deals that need no transfer any more.
//!
//! A block that turns out damaged in the middle ends the connection, and the provider asks for the rest again.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use floe_core::cold::DealUuid;
use floe_engine::Engine;
use floe_engine::cold::{Pull, PullError, PullKey};
use futures::stream;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::limits;
use crate::router::refusing;

/// What handlers share.
#[derive(Clone)]
struct PullState {
    engine: Engine,
    pulls: Pulls,
}

/// The router of the pull listener.
pub(crate) fn router(engine: Engine) -> Router {
    let path = format!("{}/{{deal}}/{{signature}}", PullKey::PATH);
    let routed = Router::new().route(&path, get(pull).head(pull));
    refusing(routed)
        .with_state(PullState { engine, pulls: Pulls::new(limits::PULLS, limits::PULLS_PER_DEAL) })
}

async fn pull(
    State(state): State<PullState>,
    method: Method,
    Path((deal, signature)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    // Only the usual form of an id is in a URL that we signed.
    let deal = deal.parse().ok().filter(|id: &uuid::Uuid| id.to_string() == deal);
    let deal = DealUuid(deal.ok_or_else(ApiError::not_found)?);
    let pull = state.engine.open_pull(deal, &signature).await.map_err(|error| refused(deal, error))?;
    if method == Method::HEAD {
        return Ok(answer(&pull, StatusCode::OK, &(0..pull.piece().len()), Body::empty()));
    }
    let range = match asked(&pull, &headers) {
        Asked::All => None,
        Asked::Part(range) => Some(range),
        Asked::Nothing => return Ok(unsatisfiable(&pull)),
    };
    let seat =
        state.pulls.take(deal).ok_or_else(|| ApiError::busy("too many pulls at once", limits::PULL_AGAIN))?;
    let status = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let range = range.unwrap_or(0..pull.piece().len());
    let mut sending = Sending {
        from: range.start,
        at: range.start,
        end: range.end,
        next: Vec::new(),
        pull: pull.clone(),
        _seat: seat,
    };
    // What cannot be read at all is said while it can be: afterwards there is only the end of the connection.
    sending.read().await.map_err(|error| refused(deal, error.into()))?;
    Ok(answer(&pull, status, &range, sending.into_body()))
}

/// The log has the cause; the provider is told to come back.
fn refused(deal: DealUuid, error: PullError) -> ApiError {
    match &error {
        PullError::Trouble(cause) => {
            tracing::warn!(%deal, %cause, "the piece of deal {deal} is not sent: {cause}");
            count("trouble");
        }
        PullError::Restored => {
            tracing::warn!(%deal, "the deal {deal} is asked for, and these rows were restored and do not know it");
            count("restored");
        }
        PullError::Over => count("over"),
        PullError::Unknown => count("unknown"),
    }
    error.into()
}

fn count(outcome: &'static str) {
    metrics::counter!("floe_pulls_total", "outcome" => outcome).increment(1);
}

fn answer(pull: &Pull, status: StatusCode, range: &Range<u64>, body: Body) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/vnd.ipld.car; version=1"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Whoever stands between must not keep a copy of 32 GiB.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    set(headers, ETAG, &etag(pull));
    if status == StatusCode::PARTIAL_CONTENT {
        set(
            headers,
            CONTENT_RANGE,
            &format!("bytes {}-{}/{}", range.start, range.end - 1, pull.piece().len()),
        );
    }
    response
}

/// Text that this module made is a header's value.
fn set(headers: &mut HeaderMap, name: http::HeaderName, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

fn etag(pull: &Pull) -> String {
    format!("\"{}\"", pull.piece().piece())
}

/// What the piece has nothing of. Not 416: a provider that asks wrongly once would give the transfer up. `Content-Range` says
/// how much there is.
fn unsatisfiable(pull: &Pull) -> Response {
    let len = pull.piece().len();
    let busy = ApiError::busy(format!("one range of {len} bytes is served"), limits::PULL_AGAIN);
    let mut response = busy.into_response();
    set(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{len}"));
    response
}

/// Which bytes a request wants.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    All,
    Part(Range<u64>),
    /// Bytes that are not there, or a range that is not one.
    Nothing,
}

fn asked(pull: &Pull, headers: &HeaderMap) -> Asked {
    let mut ranges = headers.get_all(RANGE).iter();
    let Some(range) = ranges.next() else { return Asked::All };
    // The begin of something else is being gone on with: it gets all of this.
    let etag = etag(pull);
    if headers.get(IF_RANGE).is_some_and(|known| known.as_bytes() != etag.as_bytes()) {
        return Asked::All;
    }
    match range
        .to_str()
        .ok()
        .filter(|_| ranges.next().is_none())
        .and_then(|text| part(text, pull.piece().len()))
    {
        Some(range) => Asked::Part(range),
        None => Asked::Nothing,
    }
}

/// One range of `bytes`, cut to what there is. Several are none: who asks so does not understand one.
fn part(text: &str, len: u64) -> Option<Range<u64>> {
    let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
    let number = |digits: &str| -> Option<u64> {
        // Digits alone: `parse` would take a sign.
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // More digits than a number has are far behind the end.
        is_number.then(|| digits.parse().unwrap_or(u64::MAX))
    };
    let range = match (first.trim(), last.trim()) {
        ("", last) => len.saturating_sub(number(last)?)..len,
        (first, "") => number(first)?..len,
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return None;
            }
            first..last.saturating_add(1).min(len)
        }
    };
    (range.start < range.end).then_some(range)
}

/// How many pulls there may be, of all deals and of one.
#[derive(Clone)]
struct Pulls {
    all: Arc<Semaphore>,
    of_deals: Arc<Mutex<HashMap<DealUuid, usize>>>,
    per_deal: usize,
}

/// One of them; dropping it gives it back.
struct Seat {
    _of_all: OwnedSemaphorePermit,
    pulls: Pulls,
    deal: DealUuid,
}

impl Pulls {
    fn new(all: usize, per_deal: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_deals: Arc::default(), per_deal }
    }

    fn take(&self, deal: DealUuid) -> Option<Seat> {
        let Ok(of_all) = Arc::clone(&self.all).try_acquire_owned() else {
            limits::hit("pulls");
            return None;
        };
        let mut of_deals = self.of_deals.lock();
        let count = of_deals.entry(deal).or_default();
        if *count >= self.per_deal {
            limits::hit("pulls_per_deal");
            return None;
        }
        *count += 1;
        metrics::gauge!("floe_pulls_open").increment(1);
        Some(Seat { _of_all: of_all, pulls: self.clone(), deal })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        metrics::gauge!("floe_pulls_open").decrement(1);
        let mut of_deals = self.pulls.of_deals.lock();
        if let Some(count) = of_deals.get_mut(&self.deal) {
            *count -= 1;
            if *count == 0 {
                of_deals.remove(&self.deal);
            }
        }
    }
}

/// A range that is being sent. What was read and not sent yet is one read: a MiB, or a block more.
struct Sending {
    pull: Pull,
    from: u64,
    /// How far it was handed over.
    at: u64,
    end: u64,
    /// What was read, the last part first.
    next: Vec<Bytes>,
    _seat: Seat,
}

impl Sending {
    async fn read(&mut self) -> Result<(), floe_engine::cold::PieceError> {
        self.next = self.pull.piece().read(self.at..self.end).await?;
        self.next.reverse();
        Ok(())
    }

    fn into_body(self) -> Body {
        Body::from_stream(stream::try_unfold(self, async |mut sending: Self| {
            if sending.next.is_empty() && sending.at < sending.end {
                sending.read().await.map_err(|error| {
                    count("broken");
                    tracing::warn!(piece = %sending.pull.piece().piece(), %error, "a pull ends early: {error}");
                    io::Error::other(error)
                })?;
            }
            let Some(bytes) = sending.next.pop() else { return Ok(None) };
            sending.at += bytes.len() as u64;
            metrics::counter!("floe_pull_bytes_total").increment(bytes.len() as u64);
            Ok::<_, io::Error>(Some((bytes, sending)))
        }))
    }
}

/// However it ends, the log of pulls has how far it got.
impl Drop for Sending {
    fn drop(&mut self) {
        count(if self.at == self.end { "sent" } else { "cut" });
        let (pull, sent) = (self.pull.clone(), self.from..self.at);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { pull.ended(sent).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_range_is_cut_to_what_there_is() {
        for (text, want) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=0-99", Some(0..100)),
            ("bytes=80-100", Some(80..100)),
            ("bytes=99-18446744073709551615", Some(99..100)),
            ("bytes=7-99999999999999999999999", Some(7..100)),
            ("bytes=5-", Some(5..100)),
            ("bytes=-5", Some(95..100)),
            ("bytes=-1000", Some(0..100)),
            (" bytes=1-2 ", Some(1..3)),
            ("bytes=100-", None),
            ("bytes=100-101", None),
            ("bytes=-0", None),
            ("bytes=5-4", None),
            ("bytes=0-1,5-6", None),
            ("bytes=+1-2", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
            ("bytes", None),
            ("lines=0-1", None),
            ("", None),
        ] {
            assert_eq!(part(text, 100), want, "{text}");
        }
    }

    #[test]
    fn pulls_are_bounded_in_all_and_for_each_deal() {
        let pulls = Pulls::new(5, 3);
        let [one, two] = [1, 2].map(|n| DealUuid(Uuid::from_u128(n)));
        let mut held: Vec<_> = (0..3).map(|_| pulls.take(one).unwrap()).collect();
        assert!(pulls.take(one).is_none());
        held.extend((0..2).map(|_| pulls.take(two).unwrap()));
        assert!(pulls.take(two).is_none(), "all are taken");
        held.remove(0);
        assert!(pulls.take(one).is_some());
        drop(held);
        assert!(pulls.of_deals.lock().is_empty());
        assert_eq!(pulls.all.available_permits(), 5);
    }
}
