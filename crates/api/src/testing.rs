//! For tests: a small router behind the whole front and the real accept loop, and a client that writes bytes.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use floe_core::ports::Entropy;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::client::{Clients, TrustedProxies};
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

fn routes() -> Router {
    let routed = Router::new()
        .route("/ok", get(async || "ok").post(async || "ok"))
        .route("/item/{id}", get(async || "ok"))
        .route("/local", get(async |local: Local| local.0.to_string()))
        .route("/panic", get(async || -> &'static str { panic!("secret-host") }))
        .route("/cause", get(async || ApiError::internal("secret-host")))
        .route("/refused", get(async || http::StatusCode::BAD_REQUEST))
        .route("/big", get(async || Body::from(Bytes::from(vec![0; BIG]))))
        .route(
            "/slow",
            get(async || {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "slow"
            }),
        )
        .route(
            "/endless",
            get(async || {
                let silence = futures::stream::pending::<Result<Bytes, io::Error>>();
                Body::from_stream(silence)
            }),
        );
    refusing(routed)
}

pub(crate) fn front(options: &Options) -> Front {
    let host = HostRule::new(options.listens_on, options.public_host.clone());
    let prefixes = Prefixes::new(&["/psa".to_owned()]).unwrap();
    let trusted = TrustedProxies::new(options.trusted.clone());
    let forwarded = Clients::new(options.pace.per_client, "test");
    Front::new(routes(), host, prefixes, trusted, forwarded, Arc::<Counting>::default())
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
