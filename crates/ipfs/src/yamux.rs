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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use futures::{StreamExt as _, future::poll_fn};
    use libp2p::core::transport::{DialOpts, ListenerId, MemoryTransport, PortUse, Transport as _};
    use libp2p::core::{Endpoint, muxing::StreamMuxerExt as _};

    use super::*;

    /// A server with our muxer and a client that is the bare library, which does what it is told.
    async fn pair(
        config: Config,
    ) -> (Muxer<impl AsyncRead + AsyncWrite + Unpin>, Connection<impl AsyncRead + AsyncWrite + Unpin>) {
        let mut listener = MemoryTransport::new().boxed();
        listener.listen_on(ListenerId::next(), "/memory/0".parse().unwrap()).unwrap();
        let address = listener.select_next_some().await.into_new_address().unwrap();
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = MemoryTransport::new().dial(address, options).unwrap();
        let (incoming, client) = futures::join!(
            async { listener.select_next_some().await.into_incoming().unwrap().0.await.unwrap() },
            async { dial.await.unwrap() }
        );
        let server = config.upgrade_inbound(incoming, "/yamux/1.0.0").await.unwrap();
        let mut generous = yamux::Config::default();
        generous.set_max_connection_receive_window(None);
        generous.set_max_num_streams(10_000);
        (server, Connection::new(client, generous, Mode::Client))
    }

    /// Opens streams and writes to each as long as it takes anything; returns the bytes taken, and whether the
    /// connection lived through it.
    async fn hoard<C: AsyncRead + AsyncWrite + Unpin>(
        client: &mut Connection<C>,
        streams: usize,
    ) -> (usize, bool) {
        let mut open = Vec::new();
        let mut taken = 0;
        let chunk = vec![7; 64 << 10];
        let work = poll_fn(|cx| {
            loop {
                let inbound = client.poll_next_inbound(cx);
                if let Poll::Ready(None | Some(Err(_))) = inbound {
                    return Poll::Ready(());
                }
                let mut moved = inbound.is_ready();
                if open.len() < streams
                    && let Poll::Ready(Ok(stream)) = client.poll_new_outbound(cx)
                {
                    open.push(stream);
                    moved = true;
                }
                for stream in &mut open {
                    if let Poll::Ready(Ok(n)) = Pin::new(stream).poll_write(cx, &chunk) {
                        taken += n;
                        moved = true;
                    }
                }
                if !moved {
                    return Poll::Pending;
                }
            }
        });
        let lived = tokio::time::timeout(Duration::from_secs(2), work).await.is_err();
        (taken, lived)
    }

    #[tokio::test]
    async fn t07_unread_windows_are_bounded() {
        const STREAMS: usize = 8;
        let (mut server, mut client) = pair(Config::with(STREAMS, STREAMS * (256 << 10) + (768 << 10))).await;
        let serve = tokio::spawn(async move {
            let _ = poll_fn(|cx| Pin::new(&mut server).poll(cx)).await;
        });
        let (taken, lived) = hoard(&mut client, STREAMS).await;
        assert!(lived);
        // Each stream's window, and no more than one chunk of each that is on its way.
        let windows = STREAMS * (256 << 10);
        assert!(taken >= windows && taken <= windows + STREAMS * (64 << 10), "{taken}");
        serve.abort();
    }

    #[tokio::test]
    async fn t08_streams_at_the_boundary() {
        for (streams, survives) in [(7, true), (8, true), (9, false)] {
            let (mut server, mut client) = pair(Config::with(8, 8 * (256 << 10) + (768 << 10))).await;
            let serve = tokio::spawn(async move {
                let _ = poll_fn(|cx| Pin::new(&mut server).poll(cx)).await;
            });
            let (_, lived) = hoard(&mut client, streams).await;
            assert_eq!(lived, survives, "{streams}");
            serve.abort();
        }
    }

    #[tokio::test]
    async fn streams_wait_until_they_are_taken_and_none_is_lost() {
        // A handler that takes streams late: Kubo opens one for each message, and a muxer that resets what it has
        // no room for loses blocks.
        let (mut server, mut client) = pair(Config::default()).await;
        let send = tokio::spawn(async move {
            for n in 0..YAMUX_STREAMS as u32 - 1 {
                let mut stream = poll_fn(|cx| client.poll_new_outbound(cx)).await.unwrap();
                let mut write = Box::pin(async move {
                    stream.write_all(&n.to_be_bytes()).await.unwrap();
                    stream.flush().await.unwrap();
                    stream
                });
                let stream = poll_fn(|cx| {
                    assert!(client.poll_next_inbound(cx).is_pending());
                    write.as_mut().poll(cx)
                })
                .await;
                std::mem::forget(stream);
            }
            poll_fn(|cx| client.poll_next_inbound(cx)).await;
        });
        let drive = async {
            loop {
                poll_fn(|cx| Pin::new(&mut server).poll(cx)).await.unwrap();
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(1_500), drive).await;
        assert_eq!(server.backlog.len(), YAMUX_STREAMS - 1);
        for n in 0..YAMUX_STREAMS as u32 - 1 {
            let mut stream = poll_fn(|cx| server.poll_inbound_unpin(cx)).await.unwrap();
            let mut bytes = [0; 4];
            stream.read_exact(&mut bytes).await.unwrap();
            assert_eq!(u32::from_be_bytes(bytes), n);
        }
        send.abort();
    }

    /// Feeds `bytes` to a server's muxer; `Err` where it ends the connection. It must not panic.
    async fn feed(bytes: &[u8]) -> Result<(), String> {
        let talker = Talker(futures::io::Cursor::new(bytes.to_vec()));
        let mut server = Config::default().upgrade_inbound(talker, "/yamux/1.0.0").await.unwrap();
        // It ends in an error at the latest when the bytes are used up.
        loop {
            match poll_fn(|cx| Pin::new(&mut server).poll(cx)).await {
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// A peer that says its piece, closes, and takes whatever it is told.
    struct Talker(futures::io::Cursor<Vec<u8>>);

    impl AsyncRead for Talker {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Talker {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(buf.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frame(kind: u8, flags: u16, stream: u32, length: u32) -> Vec<u8> {
        let mut bytes = vec![0, kind];
        bytes.extend(flags.to_be_bytes());
        bytes.extend(stream.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes
    }

    #[tokio::test]
    async fn t06_frames_of_the_advisories_end_the_connection() {
        // CVE-2026-32314: a SYN with a length beyond the first window. CVE-2026-31814: a window update that
        // overflows the credit. Both made older versions panic, which took the process's task with it.
        for kind in 0..5 {
            for flags in [0u16, 1, 2, 3, 4, 5, 8, 9, 15, u16::MAX] {
                for length in
                    [0, 1, 256 << 10, (256 << 10) + 1, 1 << 20, (1 << 20) + 1, u32::MAX - 1, u32::MAX]
                {
                    let mut bytes = frame(1, 1, 1, 0);
                    bytes.extend(frame(kind, flags, 1, length));
                    bytes.extend(frame(kind, flags, 3, length));
                    bytes.extend(frame(1, 0, 1, u32::MAX));
                    bytes.extend(vec![0; 64]);
                    assert!(feed(&bytes).await.is_err(), "{kind} {flags} {length}");
                }
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn t06_arbitrary_bytes_do_no_harm(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let ended = runtime.block_on(feed(&bytes));
            proptest::prop_assert!(ended.is_err());
        }
    }

    #[test]
    fn the_window_leaves_no_stream_above_the_frame_cap() {
        // What can be lent to one stream beyond the 256 KiB that all have.
        let lent = YAMUX_CONNECTION_WINDOW - YAMUX_STREAMS * (256 << 10);
        assert_eq!((256 << 10) + lent, 1 << 20);
    }
}
