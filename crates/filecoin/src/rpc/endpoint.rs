//! Where the node is, and the token it wants.
//!
//! Two forms are read: `TOKEN:/ip4/127.0.0.1/tcp/1234/http`, as Lotus prints it for `FULLNODE_API_INFO`, and a
//! URL (`https://api.node.glif.io`, also with `TOKEN:` before it or `?token=` behind it). Without a path it is `/rpc/v1`.
//! What is printed of an endpoint never holds the token.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::Bytes;
use url::{Host, Url};

use crate::limits::{MAX_ENDPOINT_BYTES, MIN_HIDDEN_TOKEN};
use crate::secret::Secret;

/// The path of the interface that we speak.
const PATH: &str = "/rpc/v1";

/// Why a text is no endpoint. Never holds the text: a token may be in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the Lotus endpoint cannot be used: {0}")]
pub struct EndpointError(pub String);

fn refused<T>(why: impl Into<String>) -> Result<T, EndpointError> {
    Err(EndpointError(why.into()))
}

/// A node's address and token.
#[derive(Debug, Clone)]
pub struct Endpoint {
    http: Url,
    token: Option<Secret>,
}

impl Endpoint {
    /// Reads either form.
    ///
    /// # Errors
    /// [`EndpointError`], without the token.
    pub fn parse(text: &str) -> Result<Self, EndpointError> {
        if text.len() > MAX_ENDPOINT_BYTES {
            return refused("it is longer than 8 KiB");
        }
        let (token, address) = split_token(text.trim());
        let url = if address.starts_with('/') { url_of_multiaddr(address)? } else { address.to_owned() };
        let Ok(mut url) = Url::parse(&url) else {
            return refused("write it as TOKEN:/ip4/127.0.0.1/tcp/1234/http or as https://host/rpc/v1");
        };
        let token = token.map(str::to_owned).or_else(|| token_in_query(&url));
        let token = token.map(|token| Secret::new(&token, "of the endpoint")).transpose();
        let token = token.map_err(|e| EndpointError(e.to_string()))?;
        tidy(&mut url)?;
        Ok(Self { http: url, token })
    }

    /// The same node with the token out of a file or the environment. It must not have one already.
    ///
    /// # Errors
    /// [`EndpointError`] where there are two tokens.
    pub fn with_token(self, token: Secret) -> Result<Self, EndpointError> {
        if self.token.is_some() {
            return refused("it holds a token and another one is configured: keep one of them");
        }
        Ok(Self { token: Some(token), ..self })
    }

    /// For calls.
    pub fn http(&self) -> &Url {
        &self.http
    }

    /// For subscriptions.
    pub fn websocket(&self) -> Url {
        let mut url = self.http.clone();
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        // http and https may both become either; `set_scheme` only refuses other changes.
        let _ = url.set_scheme(scheme);
        url
    }

    /// The token, where there is one.
    pub fn token(&self) -> Option<&Secret> {
        self.token.as_ref()
    }

    /// A text of the node's or of the connection's, without the token: what is told of it goes into logs and rows. Before it is
    /// cut, or half a token would stay.
    pub(super) fn hide(&self, text: &str) -> String {
        match &self.token {
            Some(token) => text.replace(token.expose(), "[secret]"),
            None => text.to_owned(),
        }
    }

    /// A body without the token. Only where that is as long as a real one: a short one may be a part of any answer.
    pub(super) fn hide_in(&self, body: Bytes) -> Bytes {
        let long = self.token.as_ref().map(Secret::expose).filter(|token| token.len() >= MIN_HIDDEN_TOKEN);
        match (long, std::str::from_utf8(&body)) {
            (Some(token), Ok(text)) if text.contains(token) => self.hide(text).into(),
            _ => body,
        }
    }

    /// Whether the token goes over a network that others may read: not encrypted, and not to this machine.
    pub fn sends_token_in_clear(&self) -> bool {
        let local = match self.http.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        };
        self.token.is_some() && self.http.scheme() == "http" && !local
    }
}

impl fmt::Display for Endpoint {
    /// The URL, without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.http.fmt(f)
    }
}

/// A token is what stands before `:/` where no scheme does.
fn split_token(text: &str) -> (Option<&str>, &str) {
    let schemes = ["http://", "https://", "ws://", "wss://", "/"];
    if schemes.iter().any(|scheme| text.starts_with(scheme)) {
        return (None, text);
    }
    let is_address = |address: &str| {
        // Two slashes stand behind a scheme that we do not know.
        !address.starts_with("//") && schemes.iter().any(|scheme| address.starts_with(scheme))
    };
    match text.split_once(':') {
        Some((token, address)) if is_address(address) => (Some(token), address),
        _ => (None, text),
    }
}

fn token_in_query(url: &Url) -> Option<String> {
    url.query_pairs().find(|(key, _)| key == "token").map(|(_, token)| token.into_owned())
}

/// One scheme, one path, nothing else.
fn tidy(url: &mut Url) -> Result<(), EndpointError> {
    let scheme = match url.scheme() {
        "http" | "ws" => "http",
        "https" | "wss" => "https",
        // Not shown: where a token stands before an address that we do not know, it is read as the scheme.
        _ => return refused("its scheme is not http or https"),
    };
    // From ws to http is a change between two schemes that the standard knows.
    let _ = url.set_scheme(scheme);
    if url.host().is_none() {
        return refused("it names no host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refused("it holds a user name: give the token as TOKEN:https://host");
    }
    url.set_query(None);
    url.set_fragment(None);
    match url.path().trim_end_matches('/') {
        "" => url.set_path(PATH),
        path if path.ends_with("/rpc/v0") => return refused("/rpc/v0 has other shapes: use /rpc/v1"),
        path => {
            let path = path.to_owned();
            url.set_path(&path);
        }
    }
    Ok(())
}

/// `/ip4/1.2.3.4/tcp/1234/http` as a URL.
fn url_of_multiaddr(address: &str) -> Result<String, EndpointError> {
    let parts: Vec<&str> = address.split('/').skip(1).collect();
    let [kind, host, "tcp", port, rest @ ..] = parts.as_slice() else {
        return refused("a multiaddr of it is /ip4/ADDRESS/tcp/PORT/http");
    };
    let host = match *kind {
        "ip4" => host.parse::<Ipv4Addr>().ok().map(IpAddr::V4).map(|ip| ip.to_string()),
        "ip6" => host.parse::<Ipv6Addr>().ok().map(|ip| format!("[{ip}]")),
        "dns" | "dns4" | "dns6" => Host::parse(host).ok().map(|host| host.to_string()),
        _ => None,
    };
    let Some((host, port)) = host.zip(port.parse::<u16>().ok().filter(|port| *port != 0)) else {
        return refused("the address or port in its multiaddr cannot be read");
    };
    match rest {
        [] | ["http" | "ws"] => Ok(format!("http://{host}:{port}")),
        ["https" | "wss"] | ["tls", "http"] => Ok(format!("https://{host}:{port}")),
        _ => refused("its multiaddr ends in something other than /http or /https"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str =
        "eyJhbGciOiJIUzI1NiJ9.eyJBbGxvdyI6WyJyZWFkIl19.x96sBJP_Rmd5YpuW2SZVvKtIroNbG7ufEUN7SZ__nBI";

    #[test]
    fn both_forms_are_read() {
        for (text, http, websocket, token) in [
            (
                "TOKEN:/ip4/127.0.0.1/tcp/1234/http",
                "http://127.0.0.1:1234/rpc/v1",
                "ws://127.0.0.1:1234/rpc/v1",
                true,
            ),
            ("/ip4/127.0.0.1/tcp/1234", "http://127.0.0.1:1234/rpc/v1", "ws://127.0.0.1:1234/rpc/v1", false),
            ("TOKEN:/ip6/::1/tcp/1234/http", "http://[::1]:1234/rpc/v1", "ws://[::1]:1234/rpc/v1", true),
            (
                "TOKEN:/dns4/lotus.lan/tcp/443/https",
                "https://lotus.lan/rpc/v1",
                "wss://lotus.lan/rpc/v1",
                true,
            ),
            (
                "https://api.node.glif.io",
                "https://api.node.glif.io/rpc/v1",
                "wss://api.node.glif.io/rpc/v1",
                false,
            ),
            (
                "https://api.node.glif.io/rpc/v1/",
                "https://api.node.glif.io/rpc/v1",
                "wss://api.node.glif.io/rpc/v1",
                false,
            ),
            ("TOKEN:https://host/lotus/rpc/v1", "https://host/lotus/rpc/v1", "wss://host/lotus/rpc/v1", true),
            ("wss://host/rpc/v1?token=TOKEN", "https://host/rpc/v1", "wss://host/rpc/v1", true),
            ("http://localhost:1234", "http://localhost:1234/rpc/v1", "ws://localhost:1234/rpc/v1", false),
        ] {
            let endpoint = Endpoint::parse(&text.replace("TOKEN", TOKEN)).unwrap();
            assert_eq!(endpoint.http().as_str(), http);
            assert_eq!(endpoint.websocket().as_str(), websocket);
            assert_eq!(endpoint.token().map(Secret::expose), token.then_some(TOKEN), "{text}");
            assert!(!format!("{endpoint} {endpoint:?}").contains("eyJ"), "the token is never printed");
        }
    }

    #[test]
    fn what_is_refused_says_why_and_never_the_token() {
        for (text, why) in [
            ("", "write it as"),
            ("TOKEN", "write it as"),
            ("TOKEN:", "write it as"),
            ("TOKEN:/ip4/127.0.0.1/udp/1234", "/tcp/PORT"),
            ("TOKEN:/ip4/127.0.0.1/tcp/0/http", "port"),
            ("TOKEN:/ip4/localhost/tcp/1234/http", "address or port"),
            ("TOKEN:/ip4/127.0.0.1/tcp/1234/quic", "ends in"),
            ("TOKEN:https://host/rpc/v0", "use /rpc/v1"),
            ("https://user:TOKEN@host", "user name"),
            ("ftp://host/TOKEN", "scheme"),
            // A token without an underscore was taken for the scheme, and shown.
            ("eyJhbGciOiJIUzI1NiJ9:ftp://host", "scheme"),
            ("a b:/ip4/127.0.0.1/tcp/1234/http\u{7}", "ends in"),
        ] {
            let error = Endpoint::parse(&text.replace("TOKEN", TOKEN)).unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("eyJ"), "{text}: {error}");
        }
        let both = Endpoint::parse(&format!("{TOKEN}:https://host")).unwrap();
        assert!(both.with_token(Secret::new("other", "x").unwrap()).is_err());
    }

    #[test]
    fn a_token_in_clear_is_noticed() {
        let clear = |text: &str| Endpoint::parse(text).unwrap().sends_token_in_clear();
        assert!(clear("t:http://192.0.2.1:1234"));
        assert!(
            !clear("t:http://127.0.0.1:1234") && !clear("t:https://192.0.2.1") && !clear("http://192.0.2.1")
        );
    }
}
