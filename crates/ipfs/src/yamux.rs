//! Yamux with bounded windows.
//!
//! The library's own upgrade leaves the receive window at 1 GiB a connection and exposes only the number of
//! streams, so this is a stream muxer of our own over the `yamux` crate. The window: 256 streams, each with the
//! 256 KiB that the specification grants unasked, and 768 KiB for all of them to grow by, so that one stream ends at
//! 1 MiB at most. A faster distant peer is better served over QUIC.
//!
//! A peer may open streams faster than the connection's handler takes them. They wait here, as many as can be
//! open at all: an open stream is never reset for want of room. Kubo opens one for each message, so a
//! muxer that drops them loses blocks.
//!
//! Public so that a raw stream can be measured with the same window.

use std::collections::VecDeque;
use std::io;
use std::iter;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use futures::future;
use futures::io::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode};

use crate::limits::{self, YAMUX_BACKLOG, YAMUX_CONNECTION_WINDOW, YAMUX_STREAMS};

/// The upgrade to `/yamux/1.0.0` with the window of this crate.
#[derive(Debug, Clone)]
pub struct Config(yamux::Config);

impl Default for Config {
    fn default() -> Self {
        Self::with(YAMUX_STREAMS, YAMUX_CONNECTION_WINDOW)
    }
}

impl Config {
    /// Another window. The order of the two calls matters: each checks against what the other has set.
    fn with(streams: usize, window: usize) -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(streams);
        config.set_max_connection_receive_window(Some(window));
        Self(config)
    }
}

impl UpgradeInfo for Config {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, io: C, _: Self::Info) -> Self::Future {
        future::ready(Ok(Muxer::new(Connection::new(io, self.0, Mode::Server))))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Config {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = future::Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, io: C, _: Self::Info) -> Self::Future {
        future::ready(Ok(Muxer::new(Connection::new(io, self.0, Mode::Client))))
    }
}

/// A connection that carries many streams.
#[derive(Debug)]
pub struct Muxer<C> {
    connection: Connection<C>,
    /// Streams that the peer opened while the connection was driven for another reason.
    backlog: VecDeque<yamux::Stream>,
    acceptor: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(connection: Connection<C>) -> Self {
        Self { connection, backlog: VecDeque::new(), acceptor: None }
    }

    /// Drives the connection until it yields a stream.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<yamux::Stream, Error>> {
        let accepted = ready!(self.connection.poll_next_inbound(cx));
        Poll::Ready(accepted.unwrap_or(Err(ConnectionError::Closed)).map_err(Error))
    }

    fn keep(&mut self, stream: yamux::Stream) {
        if self.backlog.len() >= YAMUX_BACKLOG {
            // The connection bounds the streams that are open, so what is over are streams the peer gave up.
            self.backlog.retain(|stream| !stream.is_closed());
        }
        if self.backlog.len() >= YAMUX_BACKLOG {
            limits::hit("yamux_backlog");
            return;
        }
        self.backlog.push_back(stream);
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.wake();
        }
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
    type Error = Error;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Error>> {
        if let Some(stream) = self.backlog.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let accepted = self.poll_accept(cx);
        if accepted.is_pending() {
            self.acceptor = Some(cx.waker().clone());
        }
        accepted
    }

    fn poll_outbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Substream, Error>> {
        self.connection.poll_new_outbound(cx).map_err(Error)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.connection.poll_close(cx).map_err(Error)
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<StreamMuxerEvent, Error>> {
        let stream = ready!(self.poll_accept(cx))?;
        self.keep(stream);
        // One stream a call, so that a peer that opens them without end cannot hold the task.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Why a yamux connection ended.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct Error(ConnectionError);

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error.0 {
            ConnectionError::Io(e) => e,
            e => Self::other(e),
        }
    }
}
