//! The accept loop.
//!
//! `axum::serve` has neither a connection bound nor a header deadline, so this is our own. It never waits for
//! a connection: one that is over a bound gets one answer, a 429, and is closed, because a queue in front of a
//! full server helps nobody. (The answer waits for the request: a client takes bytes that come before it asked
//! for a broken connection.) Out of descriptors or memory it pauses for a moment instead of spinning.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::Request;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::util::BoxCloneSyncService;

use crate::client::{Clients, Place, Places, TrustedProxies};
use crate::connection::{self, Protocol};
use crate::front::{App, Refusal};
use crate::limits::{self, Pace};
use crate::{Error, limits::ACCEPT_BACKOFF};

/// A port that is taken.
#[derive(Debug)]
pub(crate) struct Listener {
    tcp: TcpListener,
    addr: SocketAddr,
}

impl Listener {
    /// `what` names the setting in errors.
    pub(crate) async fn bind(what: &'static str, addr: SocketAddr) -> Result<Self, Error> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => Error::AddressInUse { what, addr },
            _ => Error::Bind { what, addr, source },
        };
        let tcp = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = tcp.local_addr().map_err(failed)?;
        Ok(Self { tcp, addr })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves `app` until `stop` is cancelled.
    pub(crate) fn serve(
        self,
        app: App,
        trusted: TrustedProxies,
        pace: Arc<Pace>,
        stop: CancellationToken,
    ) -> Running {
        self.serve_refusing(app, trusted, pace, stop, Refusal::TooMany)
    }

    /// The same; whoever there is no place for is told so in this way.
    pub(crate) fn serve_refusing(
        self,
        app: App,
        trusted: TrustedProxies,
        pace: Arc<Pace>,
        stop: CancellationToken,
        refusal: Refusal,
    ) -> Running {
        let running = Running { stop, cut: CancellationToken::new(), tasks: TaskTracker::new() };
        let acceptor = Acceptor {
            tcp: self.tcp,
            app,
            trusted,
            places: Places::new(
                pace.connections,
                "connections",
                Clients::new(pace.per_client, "connections_per_client"),
            ),
            refusals: Arc::new(Semaphore::new(limits::REFUSALS)),
            refusal,
            protocol: Arc::new(Protocol::new()),
            pace,
            stop: running.stop.clone(),
            cut: running.cut.clone(),
            tasks: running.tasks.clone(),
        };
        running.tasks.spawn(acceptor.run());
        running
    }
}

/// The handle on a listener's tasks.
#[derive(Debug)]
pub(crate) struct Running {
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Running {
    /// Connections that are open. The acceptor is a task as well.
    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.tasks.len() - 1
    }

    /// Stops accepting, lets what is in flight finish for `drain`, then cuts the rest.
    pub(crate) async fn stop(&self, drain: Duration) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(drain, self.tasks.wait()).await.is_err() {
            tracing::warn!(open = self.tasks.len(), "cutting connections that did not finish in {drain:?}");
            self.cut.cancel();
            self.tasks.wait().await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.cut.cancel();
    }
}

struct Acceptor {
    tcp: TcpListener,
    app: App,
    trusted: TrustedProxies,
    places: Places,
    refusals: Arc<Semaphore>,
    refusal: Refusal,
    protocol: Arc<Protocol>,
    pace: Arc<Pace>,
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Acceptor {
    async fn run(self) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                accepted = self.tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer.ip()),
                Err(error) if ended_before_accept(&error) => {}
                Err(error) => self.back_off(&error).await,
            }
        }
    }

    fn admit(&self, stream: TcpStream, peer: IpAddr) {
        let Some(place) = self.place(peer) else { return self.refuse(stream, peer) };
        // Answers are small and whole: waiting to join them only adds delay.
        let _ = stream.set_nodelay(true);
        let (app, pace, protocol) = (self.app.clone(), Arc::clone(&self.pace), Arc::clone(&self.protocol));
        let (stop, cut) = (self.stop.clone(), self.cut.clone());
        self.tasks.spawn(async move {
            let _place = place;
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = connection::serve(stream, peer, app, &protocol, &pace, &stop) => {}
            }
        });
    }

    /// A trusted proxy is many clients; their requests are counted instead.
    fn place(&self, peer: IpAddr) -> Option<Place> {
        self.places.take((!self.trusted.contains(peer)).then_some(peer))
    }

    /// Answers one request with a 429. Where many are being refused, the rest are closed unheard.
    fn refuse(&self, stream: TcpStream, peer: IpAddr) {
        let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() else {
            limits::hit("refusals");
            return;
        };
        let (pace, protocol, cut) = (Arc::clone(&self.pace), Arc::clone(&self.protocol), self.cut.clone());
        let (answered, how) = (self.stop.child_token(), self.refusal);
        self.tasks.spawn(async move {
            let _permit = permit;
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = connection::serve(stream, peer, refusal(answered.clone(), how), &protocol, &pace, &answered) => {}
            }
        });
    }

    async fn back_off(&self, error: &io::Error) {
        limits::hit("accept");
        tracing::warn!(%error, "cannot accept connections for the moment: {error}");
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(ACCEPT_BACKOFF) => {}
        }
    }
}

/// The client was gone before we came: nothing is wrong here.
fn ended_before_accept(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}

/// Refuses the one request that it gets.
fn refusal(answered: CancellationToken, how: Refusal) -> App {
    BoxCloneSyncService::new(tower::service_fn(move |_: Request<Body>| {
        answered.cancel();
        let error = how.error("too many connections are open");
        std::future::ready(Ok::<Response, Infallible>(error.into_response()))
    }))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::Listener;
    use crate::Error;

    #[tokio::test]
    async fn a_port_in_use_is_named() {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let first = Listener::bind("api.addr", free).await.unwrap();
        let taken = Listener::bind("api.addr", first.addr()).await.unwrap_err();
        assert!(matches!(taken, Error::AddressInUse { what: "api.addr", addr } if addr == first.addr()));
        assert!(taken.to_string().contains(&first.addr().to_string()), "{taken}");
        let foreign = SocketAddr::from(([192, 0, 2, 1], 0));
        assert!(matches!(
            Listener::bind("ops.addr", foreign).await,
            Err(Error::Bind { what: "ops.addr", .. })
        ));
    }
}
