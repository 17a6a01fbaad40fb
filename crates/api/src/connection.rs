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
//!
//! # Slow readers
//! An answer that its client does not take ends the connection. [`Paced`] sees it where the socket takes no more. An
//! HTTP/2 client can keep the socket empty and open no window instead, so [`Counted`] hands the answer over in pieces
//! that know when they are gone: written, or given up. What the server itself has not made yet, as the next event of a
//! stream, is not waited for.
//!
//! Over HTTP/2 it is the connection that ends, with all its streams, and not the one stream: hyper asks a body for nothing
//! while a piece of it waits for the window, so an error of the body is not heard, and once it has handed the last piece
//! to its HTTP/2 library nobody but that holds the stream. A proxy that puts many clients on one connection is to use
//! HTTP/1.1 (docs/OPERATING.md).

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

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

use crate::client::{Peer, Place};
use crate::front::App;
use crate::limits::{self, Pace};
use crate::memory::Room;

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
            .initial_stream_window_size(limits::H2_RECEIVE_BYTES)
            .initial_connection_window_size(limits::H2_RECEIVE_BYTES)
            .keep_alive_interval(limits::H2_PING_EVERY)
            .keep_alive_timeout(limits::H2_PONG_WITHIN)
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
    let mut response = app.oneshot(request).await?;
    let (place, room) = (response.extensions_mut().remove(), response.extensions_mut().remove());
    let flight = Arc::new(Flight { busy, _place: place, _room: room });
    Ok(response.map(|body| Counted { body, rest: Bytes::new(), flight }))
}

/// What the connection does now.
struct Activity(Mutex<State>);

struct State {
    requests: usize,
    http2: bool,
    phase: Phase,
    since: Instant,
    /// Answers that wait for their client, by the number of their request.
    waiting: HashMap<u64, Waiting>,
    /// The number of the last request.
    last: u64,
}

/// Pieces of an answer are with hyper. There are few: it asks for no more than it may buffer.
struct Waiting {
    /// The first was handed over, or the one before it was gone.
    since: Instant,
    /// Their bytes, in their order.
    pieces: VecDeque<usize>,
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
        Self(Mutex::new(State {
            requests: 0,
            http2: false,
            phase: Phase::New,
            since: Instant::now(),
            waiting: HashMap::new(),
            last: 0,
        }))
    }

    fn begin(self: &Arc<Self>, version: Version) -> Busy {
        let mut state = self.0.lock();
        state.requests += 1;
        state.http2 |= version == Version::HTTP_2;
        state.last += 1;
        Busy { activity: Arc::clone(self), request: state.last }
    }

    /// So many bytes of a request's answer are handed over.
    fn handed_over(&self, request: u64, bytes: usize) {
        let mut state = self.0.lock();
        let fresh = || Waiting { since: Instant::now(), pieces: VecDeque::new() };
        state.waiting.entry(request).or_insert_with(fresh).pieces.push_back(bytes);
    }

    /// The first piece of a request's answer is gone. With the last one the client has kept up.
    fn gone(&self, request: u64) {
        let mut state = self.0.lock();
        let Some(waiting) = state.waiting.get_mut(&request) else { return };
        waiting.since = Instant::now();
        waiting.pieces.pop_front();
        if waiting.pieces.is_empty() {
            state.waiting.remove(&request);
        }
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
        let first = |waiting: &Waiting| waiting.pieces.front().map_or(0, |bytes| *bytes as u64);
        // The rate is the connection's: who reads many answers at once may read each of them slowly.
        let all = state.waiting.values().map(first).sum();
        let cut = |waiting: &Waiting| waiting.since + pace.body_allowance(all);
        let allowed = match state.phase {
            _ if state.requests > 0 => return state.waiting.values().map(cut).min(),
            Phase::New | Phase::Header => pace.header_read,
            Phase::Idle => pace.idle,
        };
        Some(state.since + allowed)
    }

    fn limit(&self) -> &'static str {
        let state = self.0.lock();
        match state.phase {
            _ if state.requests > 0 => "write_rate",
            Phase::Idle => "idle",
            Phase::New | Phase::Header => "header_read",
        }
    }
}

/// A request in flight.
struct Busy {
    activity: Arc<Activity>,
    request: u64,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.activity.0.lock();
        state.requests -= 1;
        (state.phase, state.since) = (Phase::Idle, Instant::now());
    }
}

/// What a request holds until the last piece of its answer is gone.
struct Flight {
    busy: Busy,
    _place: Option<Arc<Place>>,
    _room: Option<Arc<Room>>,
}

/// A part of an answer, for as long as hyper has it.
struct Piece {
    bytes: Bytes,
    flight: Arc<Flight>,
}

impl Piece {
    fn hand_over(bytes: Bytes, flight: &Arc<Flight>) -> Bytes {
        flight.busy.activity.handed_over(flight.busy.request, bytes.len());
        Bytes::from_owner(Self { bytes, flight: Arc::clone(flight) })
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flight.busy.activity.gone(self.flight.busy.request);
    }
}

/// A response body that keeps its request in flight, and is handed over piece by piece.
struct Counted {
    body: Body,
    /// What of the body's last frame is not handed over yet.
    rest: Bytes,
    flight: Arc<Flight>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let next = self.rest.len().min(limits::ANSWER_PIECE_BYTES);
        let bytes = self.rest.split_to(next);
        Poll::Ready(Some(Ok(Frame::data(Piece::hand_over(bytes, &self.flight)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use crate::limits::{HYPER_HEADER_BYTES, Pace, REQUESTS_KEPT};
    use crate::testing::{Options, ask, h2, hear, say, serve};

    const GET: &str = "GET /ok HTTP/1.1\r\nHost: localhost\r\n\r\n";

    fn pace(change: impl FnOnce(&mut Pace)) -> Options {
        let mut options = Options::default();
        change(&mut options.pace);
        options
    }

    async fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !holds() {
            assert!(Instant::now() < end, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn t22_a_header_that_trickles_ends_the_connection() {
        let options = pace(|p| p.header_read = Duration::from_millis(200));
        let (_running, addr) = serve(options).await;
        let started = Instant::now();
        for head in ["", "GET /ok HTTP/1.1\r\nHost: loc", "PRI * HTTP/2.0\r\n"] {
            assert!(hear(&mut say(addr, head).await).await.is_empty(), "{head:?}");
        }
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn t22_a_later_header_that_trickles_ends_the_connection_while_an_idle_one_stays() {
        let options =
            pace(|p| (p.header_read, p.idle) = (Duration::from_millis(200), Duration::from_secs(60)));
        let (running, addr) = serve(options).await;
        let mut trickling = say(addr, format!("{GET}GET")).await;
        let mut idle = say(addr, GET).await;
        let mut first = [0; 12];
        trickling.read_exact(&mut first).await.unwrap();
        idle.read_exact(&mut first).await.unwrap();
        trickling.write_all(b" /ok").await.unwrap();
        hear(&mut trickling).await;
        // The acceptor and the idle one are left, well after the header's time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(running.open(), 1);
        idle.write_all(GET.as_bytes()).await.unwrap();
        idle.read_exact(&mut first).await.unwrap();
    }

    #[tokio::test]
    async fn an_idle_connection_ends() {
        let options = pace(|p| p.idle = Duration::from_millis(150));
        let (_running, addr) = serve(options).await;
        let heard = hear(&mut say(addr, GET).await).await;
        assert!(heard.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn t22_a_client_that_does_not_read_is_cut() {
        let options = pace(|p| p.body_grace = Duration::from_millis(200));
        let (running, addr) = serve(options).await;
        let deaf = say(addr, GET.replace("/ok", "/big")).await;
        until("it is being served", || running.open() == 1).await;
        until("it is cut", || running.open() == 0).await;
        drop(deaf);
    }

    #[tokio::test]
    async fn a_client_that_reads_gets_all_of_a_large_answer() {
        let (_running, addr) = serve(pace(|p| p.body_grace = Duration::from_secs(2))).await;
        let heard =
            hear(&mut say(addr, "GET /big HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await)
                .await;
        assert!(heard.len() > crate::testing::BIG);
    }

    #[tokio::test]
    async fn t22_connections_per_client_are_bounded() {
        let (running, addr) = serve(pace(|p| p.per_client = 3)).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut stream = say(addr, GET).await;
            stream.read_exact(&mut [0; 12]).await.unwrap();
            held.push(stream);
        }
        let refused = String::from_utf8(hear(&mut say(addr, GET).await).await).unwrap().to_lowercase();
        assert!(refused.starts_with("http/1.1 429 ") && refused.contains("retry-after: 1"), "{refused}");
        assert!(refused.contains("content-type: application/json"), "M2: {refused}");
        held.pop();
        until("its slot is free", || running.open() == 2).await;
        assert!(ask(addr, "GET /ok HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_trusted_proxy_may_have_more_but_not_more_than_all() {
        let mut options = pace(|p| (p.per_client, p.connections) = (1, 3));
        options.trusted = vec!["127.0.0.0/8".parse().unwrap()];
        let (_running, addr) = serve(options).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            let mut stream = say(addr, GET).await;
            stream.read_exact(&mut [0; 12]).await.unwrap();
            held.push(stream);
        }
        assert!(hear(&mut say(addr, GET).await).await.starts_with(b"HTTP/1.1 429 "));
    }

    /// Each from an address of its own, so that only the bound over all of them counts.
    #[tokio::test]
    async fn t22_connections_of_all_clients_together_are_bounded() {
        let (running, addr) = serve(pace(|p| (p.per_client, p.connections) = (1, 3))).await;
        let from = async |host: u8| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 1, host], 0).into()).unwrap();
            let mut stream = socket.connect(addr).await.unwrap();
            stream.write_all(GET.as_bytes()).await.unwrap();
            let mut first = [0; 12];
            stream.read_exact(&mut first).await.unwrap();
            (String::from_utf8(first.to_vec()).unwrap(), stream)
        };
        let mut held = Vec::new();
        for host in 1..=3 {
            let (answer, stream) = from(host).await;
            assert_eq!(answer, "HTTP/1.1 200", "{host}");
            held.push(stream);
        }
        assert_eq!(from(4).await.0, "HTTP/1.1 429");
        held.pop();
        until("a place is free", || running.open() == 2).await;
        assert_eq!(from(4).await.0, "HTTP/1.1 200");
        assert_eq!(Pace::default().connections, 1024);
    }

    /// One address had 64 connections of 100 streams each.
    #[tokio::test]
    async fn t22_requests_of_one_client_and_of_all_are_bounded() {
        for (per_client, all) in [(3, 1000), (1000, 3)] {
            let options = pace(|p| (p.requests_per_client, p.requests) = (per_client, all));
            let (_running, addr) = serve(options).await;
            let mut held = Vec::new();
            for _ in 0..3 {
                let mut stream = say(addr, GET.replace("/ok", "/endless")).await;
                let mut first = [0; 12];
                stream.read_exact(&mut first).await.unwrap();
                assert_eq!(&first, b"HTTP/1.1 200");
                held.push(stream);
            }
            let refused = ask(addr, "GET /ok HTTP/1.1").await.to_lowercase();
            assert!(refused.starts_with("http/1.1 429 ") && refused.contains("retry-after: 1"), "{refused}");
            held.pop();
            let end = Instant::now() + Duration::from_secs(10);
            while !ask(addr, "GET /ok HTTP/1.1").await.starts_with("HTTP/1.1 200") {
                assert!(Instant::now() < end, "a place is free");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert_eq!((Pace::default().requests_per_client, Pace::default().requests), (100, 1024));
    }

    /// The story: a thousand slow requests left the operator no place to suspend the account that sent them.
    #[tokio::test]
    async fn t22_administration_is_answered_where_all_places_are_taken() {
        let options = pace(|p| (p.requests_per_client, p.requests) = (1000, 1));
        let (_running, addr) = serve(options).await;
        let hold = async |path: &str| {
            let mut stream = say(addr, GET.replace("/ok", path)).await;
            stream.read_exact(&mut [0; 12]).await.unwrap();
            stream
        };
        let _all = hold("/endless").await;
        let status = async |path: &str| ask(addr, &format!("GET {path} HTTP/1.1")).await[9..12].to_owned();
        let mut kept = Vec::new();
        for held in 0..REQUESTS_KEPT {
            assert_eq!(
                (status("/ok").await, status("/admin/v1/ok").await),
                ("429".into(), "200".into()),
                "{held}"
            );
            kept.push(hold("/admin/v1/endless").await);
        }
        assert_eq!(status("/admin/v1/ok").await, "429", "they are bounded too");
    }

    #[tokio::test]
    async fn headers_are_refused_by_us_long_before_hyper_does() {
        let (_running, addr) = serve(Options::default()).await;
        let long = |n: usize| format!("GET /ok HTTP/1.1\r\nX: {}", "v".repeat(n));
        let ours = ask(addr, &long(HYPER_HEADER_BYTES - 1024)).await;
        assert!(ours.starts_with("HTTP/1.1 431") && ours.contains("HEADERS_TOO_LARGE"), "{ours}");
        let many: String = (0..200).map(|i| format!("\r\nX-{i}: v")).collect();
        let ours = ask(addr, &format!("GET /ok HTTP/1.1{many}")).await;
        assert!(ours.starts_with("HTTP/1.1 431") && ours.contains("HEADERS_TOO_LARGE"), "{ours}");
    }

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];

    #[tokio::test]
    async fn t22_a_hundred_http2_streams_at_once_are_served_and_the_next_is_refused() {
        let (_running, addr) = serve(Options::default()).await;
        let mut stream = say(addr, [h2::PREFACE, &h2::settings()].concat()).await;
        let mut heard = Vec::new();
        // Streams have odd numbers; what they ask for does not end.
        let mut ask_and_hear = async |numbers: Vec<u32>, answers: usize| {
            let wants: Vec<u8> = numbers.iter().flat_map(|n| h2::get_path(*n, "/endless")).collect();
            stream.write_all(&wants).await.unwrap();
            let end = Instant::now() + Duration::from_secs(10);
            loop {
                let told = h2::frames(&heard);
                let served = told.iter().filter(|(kind, _, _)| *kind == HEADERS).count();
                let refused: Vec<_> = told.into_iter().filter(|(kind, _, _)| *kind == RST_STREAM).collect();
                if served + refused.len() >= answers {
                    return (served, refused);
                }
                let read = tokio::time::timeout_at(end, stream.read_buf(&mut heard)).await;
                assert!(read.expect("they are answered").unwrap() > 0, "the connection stays open");
            }
        };
        let numbers = |n: std::ops::Range<u32>| n.map(|i| 2 * i + 1).collect::<Vec<_>>();
        assert_eq!(ask_and_hear(numbers(0..99), 99).await, (99, Vec::new()));
        assert_eq!(ask_and_hear(numbers(99..100), 100).await, (100, Vec::new()));
        let refused = vec![(RST_STREAM, 201, REFUSED_STREAM.to_vec())];
        assert_eq!(ask_and_hear(numbers(100..101), 101).await, (100, refused));
    }

    /// A client that opens no window, or stops to, kept its request and the answer in memory for ever: a request in
    /// flight had no deadline, and the socket was never full. It needs no token.
    #[tokio::test]
    async fn t22_an_http2_client_that_takes_no_answer_is_cut_and_its_place_is_free() {
        for (path, window) in [("/ok", 0), ("/ok", 1), ("/medium", 0), ("/medium", 1), ("/medium", 50_000)] {
            // Long enough for the second client to be refused meanwhile, also on a busy machine.
            let grace = Duration::from_secs(1);
            let options = pace(|p| (p.body_grace, p.body_rate, p.requests_per_client) = (grace, 1 << 20, 1));
            let (running, addr) = serve(options).await;
            let hello = [h2::PREFACE, &h2::settings_with_window(window), &h2::get_path(1, path)].concat();
            let mut deaf = say(addr, hello).await;
            let mut heard = Vec::new();
            while !h2::kinds(&heard).contains(&HEADERS) {
                assert!(deaf.read_buf(&mut heard).await.unwrap() > 0, "{path} {window}: it is answered");
            }
            let refused = ask(addr, "GET /ok HTTP/1.1").await;
            assert!(refused.starts_with("HTTP/1.1 429"), "{path} {window}: {refused}");
            hear(&mut deaf).await;
            until("it is gone", || running.open() == 0).await;
            assert!(ask(addr, "GET /ok HTTP/1.1").await.starts_with("HTTP/1.1 200"), "{path} {window}");
        }
    }

    /// A client that takes what it gets, however it opens its window, gets all of it. Nor is one cut that waits for the
    /// server: an event stream says nothing for long.
    #[tokio::test]
    async fn an_http2_client_that_reads_gets_all_of_its_answer() {
        let options = pace(|p| (p.body_grace, p.body_rate) = (Duration::from_millis(300), 1 << 20));
        let (running, addr) = serve(options).await;
        let hello = [h2::PREFACE, &h2::settings_with_window(1000), &h2::get_path(1, "/medium")].concat();
        let mut stream = say(addr, hello).await;
        let (mut heard, mut taken) = (Vec::new(), 0);
        while taken < crate::testing::MEDIUM {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "{taken} bytes came");
            let data = h2::frames(&heard).into_iter().filter(|(kind, _, _)| *kind == DATA);
            let came: usize = data.map(|(_, _, bytes)| bytes.len()).sum();
            let more = u32::try_from(came - taken).unwrap();
            if more > 0 {
                let windows = [h2::window_update(0, more), h2::window_update(1, more)].concat();
                stream.write_all(&windows).await.unwrap();
            }
            taken = came;
        }
        stream.write_all(&h2::get_path(3, "/endless")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(running.open(), 1);
    }

    #[tokio::test]
    async fn http2_is_served_on_the_same_port_and_ends_when_idle() {
        let options = pace(|p| p.idle = Duration::from_millis(200));
        let (_running, addr) = serve(options).await;
        let hello = [h2::PREFACE, &h2::settings(), &h2::get(1)].concat();
        let kinds = h2::kinds(&hear(&mut say(addr, hello).await).await);
        assert!(kinds.contains(&HEADERS), "{kinds:?}");
    }

    /// CVE-2023-44487: open a stream and reset it at once, without end.
    #[tokio::test]
    async fn t22_cve_2023_44487_rapid_resets_end_the_connection() {
        let (_running, addr) = serve(Options::default()).await;
        let mut flood = [h2::PREFACE, &h2::settings()].concat();
        for stream in (1..20_001).step_by(2) {
            flood.extend(h2::get(stream));
            flood.extend(h2::reset(stream));
        }
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(&flood).await;
        hear(&mut stream).await;
        assert!(ask(addr, "GET /ok HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    }

    /// RUSTSEC-2024-0332: CONTINUATION frames that never end their header.
    #[tokio::test]
    async fn t22_rustsec_2024_0332_a_continuation_flood_ends_the_connection() {
        let (_running, addr) = serve(Options::default()).await;
        let mut flood = [h2::PREFACE, &h2::settings(), &h2::frame(1, 0x1, 1, &[0x82, 0x86, 0x84])].concat();
        for i in 0..2_000 {
            let name = format!("x{i:05}");
            let field = [&[0x00, 6][..], name.as_bytes(), &[100], &[b'v'; 100]].concat();
            flood.extend(h2::frame(9, 0, 1, &field));
        }
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(&flood).await;
        hear(&mut stream).await;
    }

    /// RUSTSEC-2026-0258: empty DATA frames cost work and move no byte.
    #[tokio::test]
    async fn t22_rustsec_2026_0258_empty_data_frames_end_the_connection() {
        let (_running, addr) = serve(Options::default()).await;
        let post = h2::frame(1, 0x4, 1, &[&[0x83, 0x86, 0x84, 0x01, 9][..], b"localhost"].concat());
        let mut flood = [h2::PREFACE, &h2::settings(), &post].concat();
        for _ in 0..100_000 {
            flood.extend(h2::frame(0, 0, 1, &[]));
        }
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(&flood).await;
        hear(&mut stream).await;
        assert!(ask(addr, "GET /ok HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_stop_lets_requests_finish_and_closes_what_is_idle() {
        let (running, addr) = serve(Options::default()).await;
        let mut idle = say(addr, GET).await;
        idle.read_exact(&mut [0; 12]).await.unwrap();
        let mut slow = say(addr, GET.replace("/ok", "/slow")).await;
        until("both are open", || running.open() == 2).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        running.stop(Duration::from_secs(10)).await;
        assert!(hear(&mut slow).await.ends_with(b"slow"));
        assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn a_stop_cuts_what_does_not_finish() {
        let (running, addr) = serve(Options::default()).await;
        let mut endless = say(addr, GET.replace("/ok", "/endless")).await;
        endless.read_exact(&mut [0; 12]).await.unwrap();
        let started = Instant::now();
        running.stop(Duration::from_millis(100)).await;
        assert!(started.elapsed() < Duration::from_secs(5));
        hear(&mut endless).await;
    }
}
