//! mk12 over HTTP, as Curio serves it: one request on one connection, to an address that was judged before.
//!
//! A name is resolved once, by whoever knows which addresses may be dialled ([`Names`]), and the connection goes to what
//! came out: a name that answers otherwise later has nothing to change. Redirects are not followed, a proxy is not
//! used. Nothing of an answer is believed but its CBOR: the content type of Curio's is not reliable.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use floe_core::Clock;
use floe_core::clock::BoxFuture;
use futures::future::{Either, select};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use multiaddr::{Multiaddr, Protocol};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use crate::deadline::within;
use crate::limits::{self, MAX_CBOR_DOCUMENT, PROVIDER_ADDRESSES, PROVIDER_CONNECT};
use crate::rpc::EndpointError;

/// Says where a host is, and which of its addresses may be connected to.
pub trait Names: Send + Sync + 'static {
    /// The addresses of `host`, a name or an IP address, that may be connected to. What the operator configured may be
    /// anywhere; what a stranger said is public. The error is for people, and names no address.
    ///
    /// # Errors
    /// Why there is none.
    fn addresses<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        is_operators: bool,
    ) -> BoxFuture<'a, Result<Vec<SocketAddr>, String>>;
}

/// Where a provider's market is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    url: Url,
    is_operators: bool,
}

impl Base {
    /// From `http(s)://…` or a multiaddr of HTTP; `None` for what is neither.
    pub fn parse(text: &str, is_operators: bool) -> Option<Self> {
        let url = if text.starts_with('/') { url_of(&text.parse().ok()?)? } else { Url::parse(text).ok()? };
        let plain = matches!(url.scheme(), "http" | "https")
            && url.host().is_some()
            && url.username().is_empty()
            && url.password().is_none();
        plain.then_some(Self { url, is_operators })
    }

    fn is_secure(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Host and port as dialled; an IPv6 address without brackets.
    fn socket(&self) -> Option<(&str, u16)> {
        let host = self.url.host_str()?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Some((host, self.url.port_or_known_default()?))
    }
}

/// `/ip4|ip6|dns|dns4|dns6/…/tcp/…` with `/http`, `/https` or `/tls/http` behind, and nothing else but a peer id.
fn url_of(address: &Multiaddr) -> Option<Url> {
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => format!("[{ip}]"),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    let scheme = match parts.next()? {
        Protocol::Http => "http",
        Protocol::Https => "https",
        Protocol::Tls if matches!(parts.next(), Some(Protocol::Http)) => "https",
        _ => return None,
    };
    match (parts.next(), parts.next()) {
        (None, _) | (Some(Protocol::P2p(_)), None) => Url::parse(&format!("{scheme}://{host}:{port}")).ok(),
        _ => None,
    }
}

/// Why a provider's market gave nothing. Without addresses: it reaches owners of pins.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebError {
    /// No address that may be dialled, or none that answers. Nothing was sent.
    #[error("cannot connect over HTTP: {0}")]
    Connect(String),
    /// It may have arrived.
    #[error("no answer over HTTP in time")]
    Timeout,
    /// A status that is no answer.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The connection ended in the middle. It may have arrived.
    #[error("the HTTP connection ended: {0}")]
    Broken(String),
    /// More than any answer has. It has arrived.
    #[error("an HTTP answer of more than {MAX_CBOR_DOCUMENT} bytes")]
    TooLarge,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question<'a> {
    /// `POST`, or `GET` with a body, which is meant.
    pub method: Method,
    /// Below the base, with a slash in front.
    pub path: &'a str,
    /// In CBOR.
    pub body: &'a [u8],
}

/// Asks providers over HTTP.
#[derive(Clone)]
pub struct Web {
    names: Arc<dyn Names>,
    tls: TlsConnector,
    clock: Arc<dyn Clock>,
}

impl Web {
    /// # Errors
    /// [`EndpointError`] where TLS cannot be set up.
    pub fn new(names: Arc<dyn Names>, clock: Arc<dyn Clock>) -> Result<Self, EndpointError> {
        let tls = TlsConnector::from(Arc::new(crate::rpc::tls()?));
        Ok(Self { names, tls, clock })
    }

    /// The body of the answer. Cancel safe in that a question that is dropped may still arrive.
    ///
    /// # Errors
    /// [`WebError`].
    pub async fn ask(
        &self,
        base: &Base,
        question: &Question<'_>,
        limit: std::time::Duration,
    ) -> Result<Vec<u8>, WebError> {
        let asked = async {
            let stream = self.connect(base).await?;
            let request = request(base, question)?;
            if base.is_secure() {
                let secured = self.secure(base, stream).await?;
                exchange(secured, request).await
            } else {
                exchange(stream, request).await
            }
        };
        within(&*self.clock, limit, asked).await.unwrap_or(Err(WebError::Timeout))
    }

    async fn connect(&self, base: &Base) -> Result<TcpStream, WebError> {
        let connect = |why: &str| WebError::Connect(why.to_owned());
        let (host, port) = base.socket().ok_or_else(|| connect("its URL names no host"))?;
        let dial = async {
            let found =
                self.names.addresses(host, port, base.is_operators).await.map_err(WebError::Connect)?;
            let mut last = connect("its name has no address that may be dialled");
            for address in found.into_iter().take(PROVIDER_ADDRESSES) {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = WebError::Connect(error.kind().to_string()),
                }
            }
            Err(last)
        };
        let dialled = within(&*self.clock, PROVIDER_CONNECT, dial).await;
        dialled.unwrap_or_else(|| Err(connect("it did not answer in time")))
    }

    async fn secure(
        &self,
        base: &Base,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, WebError> {
        let host = base.socket().map(|(host, _)| host.to_owned()).unwrap_or_default();
        let name = ServerName::try_from(host).map_err(|_| WebError::Connect("no name for TLS".into()))?;
        let secured = within(&*self.clock, PROVIDER_CONNECT, self.tls.connect(name, stream)).await;
        let secured = secured.unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()));
        secured.map_err(|error| WebError::Connect(crate::words::cut(&format!("TLS: {error}"))))
    }
}

fn request(base: &Base, question: &Question<'_>) -> Result<Request<Full<Bytes>>, WebError> {
    let path = format!("{}{}", base.url.path().trim_end_matches('/'), question.path);
    let authority = match base.url.port() {
        Some(port) => format!("{}:{port}", base.url.host_str().unwrap_or_default()),
        None => base.url.host_str().unwrap_or_default().to_owned(),
    };
    Request::builder()
        .method(question.method.clone())
        .uri(path)
        .header(HOST, authority)
        .header(USER_AGENT, concat!("floe/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/cbor")
        // Said in any case: a GET is not expected to have a body.
        .header(CONTENT_LENGTH, question.body.len())
        .body(Full::new(Bytes::copy_from_slice(question.body)))
        .map_err(|error| WebError::Connect(error.to_string()))
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Vec<u8>, WebError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error: hyper::Error| WebError::Broken(crate::words::cut(&error.to_string()));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status() != StatusCode::OK {
            return Err(WebError::Status(response.status().as_u16()));
        }
        body(response.into_body()).await
    };
    // The connection is driven as long as the answer is awaited, and ends with it.
    match select(std::pin::pin!(answered), std::pin::pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        Either::Right((_, answer)) => answer.await,
    }
}

async fn body(mut incoming: Incoming) -> Result<Vec<u8>, WebError> {
    let mut bytes = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| WebError::Broken(crate::words::cut(&error.to_string())))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > MAX_CBOR_DOCUMENT {
            limits::hit("provider_answer");
            return Err(WebError::TooLarge);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bases_are_urls_and_multiaddrs_of_http() {
        for (text, url) in [
            ("https://sp.example", "https://sp.example/"),
            ("http://192.0.2.1:8080/base/", "http://192.0.2.1:8080/base/"),
            ("/ip4/192.0.2.1/tcp/12310/http", "http://192.0.2.1:12310/"),
            ("/ip6/2001:db8::1/tcp/443/https", "https://[2001:db8::1]/"),
            ("/dns/sp.example/tcp/443/tls/http", "https://sp.example/"),
            ("/dns4/sp.example/tcp/80/http", "http://sp.example/"),
        ] {
            let base = Base::parse(text, false).unwrap();
            assert_eq!(base.url.as_str(), url);
        }
        for other in [
            "ftp://sp.example",
            "https://user:secret@sp.example",
            "/ip4/192.0.2.1/tcp/4001",
            "/dns4/sp.example/tcp/443/wss",
            "/ip4/192.0.2.1/udp/4001/quic-v1",
            "/ip4/192.0.2.1/tcp/80/http/ip4/127.0.0.1",
            "nonsense",
            "",
        ] {
            assert_eq!(Base::parse(other, true), None, "{other}");
        }
    }

    #[test]
    fn a_question_goes_below_the_base() {
        let base = Base::parse("https://sp.example:8443/curio/", true).unwrap();
        let question = Question { method: Method::GET, path: "/market/mk12/ask", body: b"abc" };
        let request = request(&base, &question).unwrap();
        assert_eq!(request.uri(), "/curio/market/mk12/ask");
        assert_eq!(request.headers()[HOST], "sp.example:8443");
        assert_eq!(request.headers()[CONTENT_LENGTH], "3");
        assert_eq!(base.socket(), Some(("sp.example", 8443)));
        assert_eq!(Base::parse("http://[::1]:1", true).unwrap().socket(), Some(("::1", 1)));
    }
}
