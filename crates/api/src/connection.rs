//! One connection: hyper's HTTP/1 and HTTP/2 with deadlines around them.
//!
//! hyper's own header timer also runs while a kept-alive connection is idle, so it cannot tell a slow header
//! (5 s) from a client that will come back (120 s). [`Activity`] can: it sees the bytes and the requests.
//!
//! ```text
//!   accepted ── request ──> busy <── request ── idle (120 s) <─┐
//!     5 s                    │ \___ last answer sent ___/      │
//!                            │                                 │
//!                            └─────── HTTP/1: first byte ──> header (5 s)
//! ```
//!
//! An HTTP/2 connection whose header never ends counts as idle: it costs one of its client's slots for 120 s.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http::{Request, Version};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::client::Peer;
use crate::front::App;
use crate::limits::{self, Pace};

/// hyper with our bounds.
pub(crate) struct Protocol(auto::Builder<TokioExecutor>);

impl Protocol {
    pub(crate) fn new() -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(None)
            .max_buf_size(limits::HYPER_HEADER_BYTES)
            .max_headers(limits::HYPER_HEADER_FIELDS)
            .half_close(false)
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits::H2_STREAMS)
            .max_pending_accept_reset_streams(limits::H2_PENDING_RESETS)
            .max_local_error_reset_streams(limits::H2_ERROR_RESETS)
            .max_send_buf_size(limits::H2_SEND_BUFFER_BYTES)
            .max_header_list_size(limits::HYPER_HEADER_BYTES as u32);
        Self(builder)
    }
}

/// Serves a connection to its end. Dropping the future cuts it.
pub(crate) async fn serve(
    stream: TcpStream,
    peer: IpAddr,
    app: App,
    protocol: &Protocol,
    pace: &Arc<Pace>,
    stop: &CancellationToken,
) {
    let activity = Arc::new(Activity::new());
    let io = TokioIo::new(Paced::new(stream, Arc::clone(&activity), Arc::clone(pace)));
    let seen = Arc::clone(&activity);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let busy = seen.begin(request.version());
        answer(app.clone(), request, peer, busy)
    });
    let mut connection = pin!(protocol.0.serve_connection(io, service));
    let mut stopping = false;
    loop {
        let look_again = Instant::now() + pace.tick;
        let due = activity.deadline(pace);
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, %error, "connection ended: {error}");
                }
                return;
            }
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = tokio::time::sleep_until(due.map_or(look_again, |due| due.min(look_again))) => {
                if activity.deadline(pace).is_some_and(|due| due <= Instant::now()) {
                    limits::hit(activity.limit());
                    return;
                }
            }
        }
    }
}

async fn answer(
    app: App,
    request: Request<Incoming>,
    peer: IpAddr,
    busy: Busy,
) -> Result<http::Response<Counted>, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    let response = app.oneshot(request).await?;
    Ok(response.map(|body| Counted { body, _busy: busy }))
}

/// What the connection does now.
struct Activity(Mutex<State>);

struct State {
    requests: usize,
    http2: bool,
    phase: Phase,
    since: Instant,
}

#[derive(Clone, Copy, PartialEq)]
enum Phase {
    /// Accepted; no request yet.
    New,
    /// Between requests.
    Idle,
    /// HTTP/1: the first bytes of the next header have come.
    Header,
}

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(State { requests: 0, http2: false, phase: Phase::New, since: Instant::now() }))
    }

    fn begin(self: &Arc<Self>, version: Version) -> Busy {
        let mut state = self.0.lock();
        state.requests += 1;
        state.http2 |= version == Version::HTTP_2;
        Busy(Arc::clone(self))
    }

    fn bytes_came(&self) {
        let mut state = self.0.lock();
        if state.requests == 0 && state.phase == Phase::Idle && !state.http2 {
            (state.phase, state.since) = (Phase::Header, Instant::now());
        }
    }

    /// When the connection is to be closed, if nothing happens.
    fn deadline(&self, pace: &Pace) -> Option<Instant> {
        let state = self.0.lock();
        let allowed = match state.phase {
            _ if state.requests > 0 => return None,
            Phase::New | Phase::Header => pace.header_read,
            Phase::Idle => pace.idle,
        };
        Some(state.since + allowed)
    }

    fn limit(&self) -> &'static str {
        if self.0.lock().phase == Phase::Idle { "idle" } else { "header_read" }
    }
}

/// A request in flight, until the last byte of its answer is handed over.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.0.0.lock();
        state.requests -= 1;
        (state.phase, state.since) = (Phase::Idle, Instant::now());
    }
}

/// A response body that keeps its request in flight.
struct Counted {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A socket that notes when bytes come, and fails where the other end takes them too slowly.
struct Paced {
    tcp: TcpStream,
    activity: Arc<Activity>,
    pace: Arc<Pace>,
    stall: Option<Stall>,
}

/// Writing has had to wait since the last time that everything was sent.
struct Stall {
    since: Instant,
    written: u64,
    timer: Pin<Box<Sleep>>,
}

impl Paced {
    fn new(tcp: TcpStream, activity: Arc<Activity>, pace: Arc<Pace>) -> Self {
        Self { tcp, activity, pace, stall: None }
    }

    /// Judges what a write came to.
    fn wrote(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match result {
            Poll::Ready(Ok(bytes)) => {
                if let Some(stall) = &mut self.stall {
                    stall.written += bytes as u64;
                }
                Poll::Ready(Ok(bytes))
            }
            Poll::Pending => self.poll_stalled(cx),
            failed => failed,
        }
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stall = self.stall.get_or_insert_with(|| Stall {
            since: Instant::now(),
            written: 0,
            timer: Box::pin(tokio::time::sleep(self.pace.body_grace)),
        });
        let due = stall.since + self.pace.body_allowance(stall.written);
        if stall.timer.deadline() != due {
            stall.timer.as_mut().reset(due);
        }
        if stall.timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        limits::hit("write_rate");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes its answer too slowly")))
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.bytes_came();
        }
        result
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tcp).poll_write(cx, buf);
        self.wrote(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        self.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    /// hyper flushes once its buffer is empty: the client has kept up.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stall = None;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
