//! HTTP/1.1 on one listener: connections are counted, and all end when the server is dropped.
//!
//! A handler can hang up without an answer ([`hang_up`]), and send half of one ([`half`]): what a client must live
//! with. What follows an upgrade ([`AfterUpgrade`]) runs in the connection's own task: it counts as a connection and
//! ends with the server.

use std::io;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderValue, header};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use crate::limits::CONNECTIONS;

/// A running server.
pub(crate) struct Server {
    _task: AbortOnDropHandle<()>,
}

/// Serves `router` on the listener until the result is dropped.
pub(crate) fn serve(listener: TcpListener, router: axum::Router) -> Server {
    Server { _task: AbortOnDropHandle::new(tokio::spawn(accept(listener, router))) }
}

async fn accept(listener: TcpListener, router: axum::Router) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, router.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// What is done with a connection that was upgraded. In the extensions of every request.
#[derive(Clone, Default)]
pub(crate) struct AfterUpgrade(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl AfterUpgrade {
    /// Sets what is done after this answer. Dropped with the server, wherever it is then.
    pub(crate) fn run(&self, what: impl Future<Output = ()> + Send + 'static) {
        *self.0.lock() = Some(Box::pin(what));
    }
}

async fn connection(stream: TcpStream, router: axum::Router) {
    // Small answers must not wait for the next.
    let _ = stream.set_nodelay(true);
    let after = AfterUpgrade::default();
    let of_requests = after.clone();
    let service = service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let router = router.clone();
        request.extensions_mut().insert(of_requests.clone());
        async move {
            // A router does not fail.
            let Ok(response) = router.oneshot(request.map(Body::new)).await;
            if response.extensions().get::<HangUp>().is_some() {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
            }
            Ok(response)
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::trace!(%error, "a connection ended early");
        return;
    }
    let upgraded = after.0.lock().take();
    if let Some(upgraded) = upgraded {
        upgraded.await;
    }
}

#[derive(Clone)]
struct HangUp;

/// An answer that is none: the connection closes.
pub(crate) fn hang_up() -> Response {
    let mut response = Response::new(Body::empty());
    response.extensions_mut().insert(HangUp);
    response
}

/// Half of an answer that says it is whole; then the connection closes.
pub(crate) async fn half(response: Response, most: usize) -> Response {
    let (mut parts, body) = response.into_parts();
    let Ok(whole) = axum::body::to_bytes(body, most).await else { return hang_up() };
    parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
    let frames = [Ok(whole.slice(..whole.len() / 2)), Err(io::Error::from(io::ErrorKind::ConnectionAborted))];
    // Given time to leave before the connection is cut.
    let stream = futures::stream::unfold(frames.into_iter(), |mut frames| async move {
        let next: io::Result<Bytes> = frames.next()?;
        if next.is_err() {
            tokio::task::yield_now().await;
        }
        Some((next, frames))
    });
    Response::from_parts(parts, Body::from_stream(stream))
}
