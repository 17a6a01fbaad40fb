//! WebSocket: the library's listeners, and dials that are bounded like them.
//!
//! The library bounds the messages of connections that it accepts, and of those that it dials nothing: a message gets
//! its room as soon as a header announces it, up to 256 MiB, and the answer to a handshake is read for as long as it
//! goes on. Both are before the peer has shown who it is, and whom we dial strangers have a say in (threat T2). Its
//! dialling half is closed, so dialling is done here, over the same codec. Redirects are not followed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use floe_core::clock::BoxFuture;
use futures::future::{Either, TryFutureExt as _};
use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::{self, BoxStream, IntoAsyncRead, TryStreamExt as _};
use futures::{Sink, StreamExt as _, sink};
use futures_rustls::TlsConnector;
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use libp2p::websocket::{self, error::Error};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use soketto::connection::{Builder, Mode};
use soketto::handshake::{Client, ServerResponse};

use crate::limits::{self, WEBSOCKET_HANDSHAKE, WEBSOCKET_MESSAGE};

/// Listens with the library's transport, and dials through `dials`.
pub(crate) struct WebSocket<T>
where
    T: Transport,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    listeners: websocket::Config<T>,
    dials: T,
    tls: TlsConnector,
}

impl<T> WebSocket<T>
where
    T: Transport + Clone + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Over `tcp`, which dials what it is given and no more.
    pub(crate) fn new(tcp: T) -> Self {
        let mut listeners = websocket::Config::new(tcp.clone());
        listeners.set_max_data_size(WEBSOCKET_MESSAGE);
        Self { listeners, dials: tcp, tls: TlsConnector::from(Arc::new(client(web()))) }
    }

    /// What listeners show on `/tls/ws`.
    pub(crate) fn set_tls_config(&mut self, tls: websocket::tls::Config) {
        self.listeners.set_tls_config(tls);
    }
}

impl<T> Transport for WebSocket<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Either<<websocket::Config<T> as Transport>::Output, Connection>;
    type Error = Error<T::Error>;
    type ListenerUpgrade = BoxFuture<'static, Result<Self::Output, Self::Error>>;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.listeners.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listeners.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some(place) = Place::parse(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let dial = self.dials.dial(place.tcp.clone(), opts).map_err(|error| error.map(Error::Transport))?;
        let tls = self.tls.clone();
        Ok(Box::pin(async move {
            let socket = dial.await.map_err(Error::Transport)?;
            let opened = place.open(socket, tls).await;
            opened.map(Either::Right).map_err(|error| Error::Handshake(error.into()))
        }))
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let event = Pin::new(&mut self.listeners).poll(cx);
        event.map(|event| event.map_upgrade(|upgrade| Box::pin(upgrade.map_ok(Either::Left)) as _))
    }
}

/// Who vouches for the servers of the web.
fn web() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

/// TLS to a server whose certificate names it.
fn client(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("the provider has ciphers for each version")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// Where a WebSocket address leads.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// The part below WebSocket and TLS, with the peer's id.
    tcp: Multiaddr,
    /// `host:port`, for the request.
    host: String,
    path: String,
    /// The name that the certificate must have; `None` without TLS.
    name: Option<ServerName<'static>>,
}

impl Place {
    /// `/host/tcp/port`, then `/ws`, `/wss`, `/tls/ws` or `/tls/sni/name/ws`, then perhaps the peer. Nothing else.
    fn parse(address: &Multiaddr) -> Option<Self> {
        let parts: Vec<Protocol<'_>> = address.iter().collect();
        let (parts, peer) = match &parts[..] {
            [parts @ .., peer @ Protocol::P2p(_)] => (parts, Some(peer)),
            parts => (parts, None),
        };
        let (socket, tls, sni, path) = match parts {
            [socket @ .., Protocol::Tls, Protocol::Sni(sni), Protocol::Ws(path)] => {
                (socket, true, Some(sni), path)
            }
            [socket @ .., Protocol::Tls, Protocol::Ws(path)] => (socket, true, None, path),
            [socket @ .., Protocol::Wss(path)] => (socket, true, None, path),
            [socket @ .., Protocol::Ws(path)] => (socket, false, None, path),
            _ => return None,
        };
        let [at, Protocol::Tcp(port)] = socket else { return None };
        let (name, host) = match at {
            Protocol::Ip4(ip) => (ip.to_string(), format!("{ip}:{port}")),
            Protocol::Ip6(ip) => (ip.to_string(), format!("[{ip}]:{port}")),
            Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
                (name.to_string(), format!("{name}:{port}"))
            }
            _ => return None,
        };
        // Both are written into a request as they are, so neither may end a line of it.
        if ![&host[..], path].iter().all(|text| text.bytes().all(|byte| byte.is_ascii_graphic())) {
            return None;
        }
        let name = sni.map_or(name, ToString::to_string);
        let name = if tls { Some(ServerName::try_from(name).ok()?) } else { None };
        let tcp = socket.iter().chain(peer).cloned().collect();
        Some(Self { tcp, host, path: path.to_string(), name })
    }

    /// Turns a connected socket into a WebSocket.
    async fn open<S>(self, socket: S, tls: TlsConnector) -> io::Result<Connection>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self.name {
            Some(name) => upgrade(tls.connect(name, socket).await?, &self.host, &self.path).await,
            None => upgrade(socket, &self.host, &self.path).await,
        }
    }
}

async fn upgrade<S>(socket: S, host: &str, path: &str) -> io::Result<Connection>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut client = Client::new(Head { socket, left: WEBSOCKET_HANDSHAKE }, host, path);
    let refused = match client.handshake().await.map_err(io::Error::other)? {
        ServerResponse::Accepted { .. } => None,
        ServerResponse::Redirect { status_code, .. } | ServerResponse::Rejected { status_code } => {
            Some(status_code)
        }
    };
    if let Some(status) = refused {
        return Err(io::Error::other(format!("the server answered {status} to a WebSocket handshake")));
    }
    let rest = client.take_buffer();
    let mut builder = Builder::new(client.into_inner().socket, Mode::Client);
    builder.set_buffer(rest);
    builder.set_max_message_size(WEBSOCKET_MESSAGE);
    builder.set_max_frame_size(WEBSOCKET_MESSAGE);
    Ok(Connection::new(builder))
}

/// A socket during the handshake: the answer ends, or the reading does.
struct Head<S> {
    socket: S,
    /// Bytes that may still be read.
    left: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Head<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let most = self.left.min(out.len());
        if most == 0 {
            limits::hit("websocket_handshake");
            let what =
                format!("the answer to a WebSocket handshake is longer than {WEBSOCKET_HANDSHAKE} bytes");
            return Poll::Ready(Err(io::Error::other(what)));
        }
        let n = ready!(Pin::new(&mut self.socket).poll_read(cx, &mut out[..most]))?;
        self.left -= n;
        Poll::Ready(Ok(n))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Head<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// A WebSocket that we dialled, as the stream of bytes that its messages carry.
pub(crate) struct Connection {
    incoming: IntoAsyncRead<BoxStream<'static, io::Result<Vec<u8>>>>,
    /// `None` after an error: the sink panics if it is asked again, and yamux asks again.
    outgoing: Option<Pin<Box<Outbound>>>,
    closing: bool,
}

type Outbound = dyn Sink<Outgoing, Error = io::Error> + Send;

enum Outgoing {
    Message(Vec<u8>),
    Close,
}

impl Connection {
    fn new<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(builder: Builder<S>) -> Self {
        let (sender, receiver) = builder.finish();
        let incoming = stream::try_unfold(receiver, |mut receiver| async {
            let mut message = Vec::new();
            match receiver.receive_data(&mut message).await {
                Ok(_) => Ok(Some((message, receiver))),
                Err(soketto::connection::Error::Closed) => Ok(None),
                Err(error) => Err(io::Error::other(error)),
            }
        });
        let outgoing = sink::unfold(sender, |mut sender, outgoing| async {
            match outgoing {
                Outgoing::Message(message) => {
                    sender.send_binary_mut(message).await.map_err(io::Error::other)?;
                    sender.flush().await.map_err(io::Error::other)?;
                }
                Outgoing::Close => sender.close().await.map_err(io::Error::other)?,
            }
            Ok(sender)
        });
        let incoming = incoming.boxed().into_async_read();
        Self { incoming, outgoing: Some(Box::pin(outgoing)), closing: false }
    }

    /// Asks the sink, if it has not failed.
    fn ask<T>(&mut self, ask: impl FnOnce(Pin<&mut Outbound>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let Some(sink) = self.outgoing.as_mut() else {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        };
        let answer = ask(sink.as_mut());
        if matches!(answer, Poll::Ready(Err(_))) {
            self.outgoing = None;
        }
        answer
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.incoming).poll_read(cx, out)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closing {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.ask(|mut sink| {
            ready!(sink.as_mut().poll_ready(cx))?;
            // No longer than what we take ourselves.
            let n = data.len().min(WEBSOCKET_MESSAGE);
            sink.start_send(Outgoing::Message(data[..n].to_vec()))?;
            Poll::Ready(Ok(n))
        })
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ask(|sink| sink.poll_flush(cx))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            ready!(self.ask(|mut sink| {
                ready!(sink.as_mut().poll_ready(cx))?;
                Poll::Ready(sink.start_send(Outgoing::Close))
            }))?;
            self.closing = true;
        }
        self.ask(|sink| sink.poll_flush(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use floe_core::{ManualClock, Timestamp};
    use futures::io::{AsyncReadExt as _, AsyncWriteExt as _, Cursor};
    use futures_rustls::TlsAcceptor;
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;
    use libp2p::tcp;
    use rustls::ServerConfig;
    use rustls::pki_types::PrivateKeyDer;
    use soketto::handshake::{Server, server::Response};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

    use super::*;
    use crate::dial::gate::Gate;
    use crate::dial::policy::Policy;
    use crate::dial::target::Carrier;
    use crate::testing::Names;

    const SOON: Duration = Duration::from_secs(10);

    /// Dials a server that does what it is told.
    async fn dialled<F>(
        server: impl FnOnce(Compat<TcpStream>) -> F,
    ) -> io::Result<impl AsyncRead + AsyncWrite>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
        let policy = Arc::new(Policy::new(true, clock));
        let tcp = tcp::tokio::Transport::new(tcp::Config::default());
        let mut transport = WebSocket::new(Gate::new(tcp, Carrier::Tcp, policy, Arc::new(Names::default())));
        let address = format!("/ip4/127.0.0.1/tcp/{port}/ws").parse().unwrap();
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = transport.dial(address, options).unwrap();
        let accept = async {
            let (socket, _) = listener.accept().await.unwrap();
            tokio::spawn(server(socket.compat()));
        };
        let both = async { tokio::join!(accept, dial).1.map_err(io::Error::other) };
        tokio::time::timeout(SOON, both).await.expect("it ends soon")
    }

    /// The same, and reads to the end of what it says.
    async fn heard<F>(server: impl FnOnce(Compat<TcpStream>) -> F) -> io::Result<Vec<u8>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut socket = std::pin::pin!(dialled(server).await?);
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(SOON, socket.read_to_end(&mut bytes));
        read.await.expect("it ends soon")?;
        Ok(bytes)
    }

    #[tokio::test]
    async fn what_is_written_comes_in_messages_and_the_end_is_told() {
        let (said, told) = tokio::sync::oneshot::channel();
        let server = |socket| async move {
            let mut server = Server::new(socket);
            let key = server.receive_request().await.unwrap().key();
            server.send_response(&Response::Accept { key, protocol: None }).await.unwrap();
            let (_, mut receiver) = server.into_builder().finish();
            let mut messages = Vec::new();
            let end = loop {
                let mut message = Vec::new();
                match receiver.receive(&mut message).await.unwrap() {
                    soketto::Incoming::Data(_) => messages.push(message),
                    soketto::Incoming::Closed(reason) => break reason.code,
                    soketto::Incoming::Pong(_) => {}
                }
            };
            said.send((messages, end)).unwrap();
        };
        let mut socket = std::pin::pin!(dialled(server).await.unwrap());
        let long = vec![7; WEBSOCKET_MESSAGE + 1];
        socket.write_all(b"short").await.unwrap();
        socket.write_all(&long).await.unwrap();
        socket.close().await.unwrap();
        let (messages, end) = told.await.unwrap();
        assert_eq!(messages, [b"short", &long[..WEBSOCKET_MESSAGE], b"\x07"]);
        assert_eq!(end, 1_000, "a normal end");
    }

    /// Takes the handshake, says these bytes, and then nothing.
    async fn after_the_handshake<S>(socket: S, bytes: Vec<u8>, ends: bool)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut server = Server::new(socket);
        let key = server.receive_request().await.unwrap().key();
        server.send_response(&Response::Accept { key, protocol: None }).await.unwrap();
        let mut socket = server.into_inner();
        // It may be broken off in the middle.
        let _ = socket.write_all(&bytes).await;
        if !ends {
            let _ = socket.read_to_end(&mut Vec::new()).await;
        }
    }

    /// The story: after an error the sink underneath panics if it is asked again, and yamux asks again. The connection's
    /// task was gone without a word, and the node took the peer for connected for as long as it ran.
    #[tokio::test]
    async fn a_socket_that_broke_stays_broken() {
        let server = |socket| after_the_handshake(socket, Vec::new(), true);
        let mut socket = std::pin::pin!(dialled(server).await.unwrap());
        let breaks = async {
            while socket.write_all(&[7; 1_024]).await.is_ok() && socket.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(SOON, breaks).await.expect("it breaks soon");
        for _ in 0..2 {
            assert!(socket.write_all(b"more").await.is_err());
            assert!(socket.flush().await.is_err());
            assert!(socket.close().await.is_err());
        }
    }

    /// The header of a binary message of this length.
    fn header(length: u64) -> Vec<u8> {
        let mut bytes = vec![0x82, 127];
        bytes.extend(length.to_be_bytes());
        bytes
    }

    /// The story: the library gave a message of a server that it had dialled room as its header announced it, up to
    /// 256 MiB for ten bytes; its bound is for the connections that it accepts.
    #[tokio::test]
    async fn t02_messages_of_a_server_at_the_boundary() {
        for length in [WEBSOCKET_MESSAGE - 1, WEBSOCKET_MESSAGE] {
            let mut bytes = header(length as u64);
            bytes.extend(vec![7; length]);
            let heard = heard(|socket| after_the_handshake(socket, bytes, true)).await.unwrap();
            assert_eq!(heard.len(), length);
        }
        for length in [WEBSOCKET_MESSAGE as u64 + 1, 1 << 28, 1 << 32, 1 << 63, u64::MAX] {
            let error = heard(|socket| after_the_handshake(socket, header(length), false)).await.unwrap_err();
            assert!(error.to_string().contains("payload too large"), "{length}: {error}");
        }
        // The same in two frames.
        let mut bytes = header(WEBSOCKET_MESSAGE as u64);
        bytes[0] = 0x02;
        bytes.extend(vec![7; WEBSOCKET_MESSAGE]);
        bytes.extend([0x80, 1, 7]);
        bytes.extend(vec![7; WEBSOCKET_MESSAGE]);
        let error = heard(|socket| after_the_handshake(socket, bytes, true)).await.unwrap_err();
        assert!(error.to_string().contains("message too large"), "{error}");
    }

    /// The story: the codec read the answer to a handshake for as long as it went on, and kept all of it.
    #[tokio::test]
    async fn t02_an_answer_to_a_handshake_that_does_not_end() {
        let error = heard(|mut socket| async move {
            let mut taken = socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nX: ").await;
            while taken.is_ok() {
                taken = socket.write_all(&[b'a'; 1_024]).await;
            }
        });
        let error = error.await.unwrap_err().to_string();
        assert!(error.contains("longer than"), "{error}");
    }

    #[tokio::test]
    async fn t02_what_is_read_of_an_answer_at_the_boundary() {
        for length in [WEBSOCKET_HANDSHAKE - 1, WEBSOCKET_HANDSHAKE, WEBSOCKET_HANDSHAKE + 1] {
            let mut head = Head { socket: Cursor::new(vec![7; length]), left: WEBSOCKET_HANDSHAKE };
            let read = head.read_exact(&mut vec![0; length]).await;
            assert_eq!(read.is_ok(), length <= WEBSOCKET_HANDSHAKE, "{length}");
        }
    }

    #[tokio::test]
    async fn a_server_behind_tls_is_the_one_that_its_certificate_names() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.key_pair.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut believed = RootCertStore::empty();
        believed.add(made.cert.der().clone()).unwrap();
        for (roots, name, opens) in [
            (believed.clone(), "localhost", true),
            (believed, "other.net", false),
            (web(), "localhost", false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let at = listener.local_addr().unwrap();
            let place = place(&format!("/dns4/{name}/tcp/{}/tls/ws", at.port())).unwrap();
            let accept = async {
                let (socket, _) = listener.accept().await.unwrap();
                if let Ok(socket) = acceptor.accept(socket.compat()).await {
                    after_the_handshake(socket, vec![0x82, 2, b'h', b'i'], true).await;
                }
            };
            let dial = async {
                let socket = TcpStream::connect(at).await?.compat();
                let mut socket = place.open(socket, TlsConnector::from(Arc::new(client(roots)))).await?;
                let mut heard = [0; 2];
                socket.read_exact(&mut heard).await.map(|()| heard)
            };
            let heard = tokio::time::timeout(SOON, async { tokio::join!(accept, dial).1 }).await.unwrap();
            assert_eq!(heard.ok(), opens.then_some(*b"hi"), "{name}");
        }
    }

    fn place(text: &str) -> Option<Place> {
        Place::parse(&text.parse().unwrap())
    }

    #[test]
    fn places() {
        const PEER: &str = "/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";
        for (text, tcp, host, path, name) in [
            ("/ip4/1.2.3.4/tcp/80/ws", "/ip4/1.2.3.4/tcp/80", "1.2.3.4:80", "/", None),
            ("/ip6/2606::1/tcp/80/ws", "/ip6/2606::1/tcp/80", "[2606::1]:80", "/", None),
            ("/dns/a.net/tcp/443/wss", "/dns/a.net/tcp/443", "a.net:443", "/", Some("a.net")),
            ("/dns4/a.net/tcp/443/tls/ws", "/dns4/a.net/tcp/443", "a.net:443", "/", Some("a.net")),
            ("/dns6/a.net/tcp/443/tls/sni/b.net/ws", "/dns6/a.net/tcp/443", "a.net:443", "/", Some("b.net")),
            ("/dns/a.net/tcp/80/x-parity-ws/a%2Fb", "/dns/a.net/tcp/80", "a.net:80", "a/b", None),
        ] {
            let name = name.map(|name| ServerName::try_from(name).unwrap());
            let expected = |tcp: String| {
                let tcp = tcp.parse().unwrap();
                Some(Place { tcp, host: host.into(), path: path.into(), name: name.clone() })
            };
            assert_eq!(place(text), expected(tcp.into()), "{text}");
            assert_eq!(place(&format!("{text}{PEER}")), expected(format!("{tcp}{PEER}")), "{text}");
        }
    }

    #[test]
    fn t11_places_that_are_none() {
        for text in [
            "/ip4/1.2.3.4/tcp/80",
            "/ip4/1.2.3.4/tcp/443/tls",
            "/ip4/1.2.3.4/udp/80/quic-v1",
            "/ip4/8.8.8.8/udp/1/ip4/127.0.0.1/tcp/80/ws",
            "/unix/tmp%2fsocket/tcp/80/ws",
            "/dns/a.net/tcp/80/x-parity-ws/a%0D%0AX-Evil: yes",
            "/dns/a.net/tcp/80/x-parity-ws/a b",
        ] {
            assert_eq!(place(text), None, "{text}");
        }
        // A name that would end the line of the request that it stands in.
        let split = Multiaddr::empty()
            .with(Protocol::Dns("a.net\r\nX-Evil: yes".into()))
            .with(Protocol::Tcp(80))
            .with(Protocol::Ws("/".into()));
        assert_eq!(Place::parse(&split), None);
    }
}
