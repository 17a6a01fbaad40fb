//! For tests: a small router behind the whole front and the real accept loop, and a client that writes bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use floe_core::ports::Entropy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::client::{Clients, Places, TrustedProxies};
use crate::error::ApiError;
use crate::front::{Front, HostRule, Local};
use crate::limits::Pace;
use crate::listen::{Listener, Running};
use crate::path::Prefixes;
use crate::router::refusing;

/// Counts up.
#[derive(Default)]
pub(crate) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, out: &mut [u8]) {
        let next = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        out.iter_mut().zip(next.iter().cycle()).for_each(|(byte, next)| *byte = *next);
    }
}

/// What a test sets otherwise than the defaults.
pub(crate) struct Options {
    pub(crate) pace: Pace,
    pub(crate) trusted: Vec<ipnet::IpNet>,
    pub(crate) public_host: Option<String>,
    pub(crate) listens_on: SocketAddr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pace: Pace { tick: Duration::from_millis(10), ..Pace::default() },
            trusted: Vec::new(),
            public_host: None,
            listens_on: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

/// Bytes that no socket buffer holds.
pub(crate) const BIG: usize = 64 << 20;

/// Bytes that socket buffers hold, in several pieces.
pub(crate) const MEDIUM: usize = 100_000;

fn routes() -> Router {
    let routed = Router::new()
        .route("/ok", get(async || "ok").post(async || "ok"))
        .route("/item/{id}", get(async || "ok"))
        .route("/admin/v1/ok", get(async || "ok"))
        .route("/local", get(async |local: Local| local.0.to_string()))
        .route("/panic", get(async || -> &'static str { panic!("secret-host") }))
        .route("/cause", get(async || ApiError::internal("secret-host")))
        .route(
            "/upload",
            post(async |body: Body| crate::body::read(body, &Pace::default()).await.map(|_| "ok")),
        )
        .route("/refused", get(async || http::StatusCode::BAD_REQUEST))
        .route("/big", get(async || Body::from(Bytes::from(vec![0; BIG]))))
        .route("/medium", get(async || Body::from(Bytes::from(vec![0; MEDIUM]))))
        .route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "slow"
            }),
        )
        .route("/endless", get(endless))
        .route("/admin/v1/endless", get(endless));
    refusing(routed)
}

async fn endless() -> Body {
    Body::from_stream(futures::stream::pending::<Result<Bytes, io::Error>>())
}

pub(crate) fn front(options: &Options) -> Front {
    let host = HostRule::new(options.listens_on, options.public_host.clone());
    let prefixes = Prefixes::new(&["/psa".to_owned()]).unwrap();
    let trusted = TrustedProxies::new(options.trusted.clone());
    let clients = Clients::new(options.pace.requests_per_client, "test");
    let places = Places::new(options.pace.requests, "test", clients).keeping(crate::limits::REQUESTS_KEPT);
    Front::new(routes(), host, prefixes, trusted, places, Arc::<Counting>::default())
}

/// The same routes behind what providers pass.
pub(crate) fn front_for_pulls(options: &Options) -> Front {
    let trusted = TrustedProxies::new(options.trusted.clone());
    let clients = Clients::new(options.pace.requests_per_client, "test");
    let places = Places::new(options.pace.requests, "test", clients);
    Front::for_pulls(routes(), trusted, places, Arc::<Counting>::default())
}

/// Serves on a free port.
pub(crate) async fn serve(options: Options) -> (Running, SocketAddr) {
    let listener = Listener::bind("test", SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let addr = listener.addr();
    let trusted = TrustedProxies::new(options.trusted.clone());
    let app = front(&options).into_service();
    (listener.serve(app, trusted, Arc::new(options.pace), CancellationToken::new()), addr)
}

/// A connection with these bytes written.
pub(crate) async fn say(addr: SocketAddr, bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes.as_ref()).await.unwrap();
    stream
}

/// Everything until the other end closes. A reset counts as an end; ten seconds without one do not.
pub(crate) async fn hear(stream: &mut TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let all = stream.read_to_end(&mut heard);
    let _ = tokio::time::timeout(Duration::from_secs(10), all).await.expect("the connection stays open");
    heard
}

/// What is answered to a request that asks to close.
pub(crate) async fn ask(addr: SocketAddr, head: &str) -> String {
    let request = format!("{head}\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    String::from_utf8_lossy(&hear(&mut say(addr, request).await).await).into_owned()
}

/// HTTP/2 frames, written by hand: no client library sends what these tests send.
pub(crate) mod h2 {
    pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    pub(crate) fn settings() -> Vec<u8> {
        frame(4, 0, 0, &[])
    }

    /// SETTINGS with this SETTINGS_INITIAL_WINDOW_SIZE: what may be sent on a stream before more is allowed.
    pub(crate) fn settings_with_window(bytes: u32) -> Vec<u8> {
        frame(4, 0, 0, &[&[0, 4][..], &bytes.to_be_bytes()].concat())
    }

    /// Lets so many more bytes be sent on a stream; stream 0 is the connection.
    pub(crate) fn window_update(stream: u32, bytes: u32) -> Vec<u8> {
        frame(8, 0, stream, &bytes.to_be_bytes())
    }

    /// `GET /` to localhost; END_STREAM and END_HEADERS.
    pub(crate) fn get(stream: u32) -> Vec<u8> {
        get_path(stream, "/")
    }

    /// `GET` of any short path.
    pub(crate) fn get_path(stream: u32, path: &str) -> Vec<u8> {
        // Static table: 2 GET, 6 http; a literal :path (name 4) and :authority (name 1).
        let len = u8::try_from(path.len()).unwrap();
        let path = [&[0x82, 0x86, 0x04, len][..], path.as_bytes()].concat();
        frame(1, 0x5, stream, &[&path[..], &[0x01, 9], b"localhost"].concat())
    }

    pub(crate) fn reset(stream: u32) -> Vec<u8> {
        frame(3, 0, stream, &8u32.to_be_bytes())
    }

    /// The kinds of the frames in `bytes`.
    pub(crate) fn kinds(bytes: &[u8]) -> Vec<u8> {
        frames(bytes).into_iter().map(|(kind, _, _)| kind).collect()
    }

    /// Kind, stream and payload of the whole frames in `bytes`.
    pub(crate) fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while bytes.len() >= 9 {
            let len = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
            let Some(payload) = bytes.get(9..9 + len) else { break };
            frames.push((bytes[3], stream, payload.to_vec()));
            bytes = &bytes[9 + len..];
        }
        frames
    }
}
