//! The commands that talk to a running node: clients of its HTTP API, like any other.
//!
//! Where the API is: `--api-url`, `FLOE_API_URL`, else `endpoints.json` of the node that runs on the data directory. As
//! whom: `--token`, `FLOE_TOKEN`, else `admin.token` there. Requests that are safe to repeat (reads, removals, and what
//! carries an `Idempotency-Key`) are repeated when the connection breaks; nothing else is.

mod admin;
mod cold;
mod error;
mod events;
mod feed;
mod pins;
#[cfg(test)]
mod testing;
mod wait;
mod wallet;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use std::{fmt, io};

use futures::StreamExt as _;
use reqwest::{Method, Response, Url};
use serde_json::Value;

pub(crate) use self::admin::{account, gc, rows_text, status, token, verify, verify_text, verify_words};
pub(crate) use self::cold::{cold, deals, providers, spending};
pub(crate) use self::error::ClientError;
pub(crate) use self::feed::feed;
pub(crate) use self::pins::pin;
pub(crate) use self::wallet::{amount_of, wallet};

use crate::cli::Remote;
use crate::config::render::redact_url;
use crate::datadir::{self, Layout};
use crate::endpoints::Endpoints;
use crate::limits;

/// A secret text: it can be used, and it cannot be printed by accident.
#[derive(Clone)]
pub(crate) struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.trim().to_owned()))
    }
}

/// A request, before it is sent.
#[derive(Debug, Clone)]
struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    body: Option<Value>,
    idempotency_key: Option<String>,
    timeout: Duration,
}

impl Call {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            query: Vec::new(),
            body: None,
            idempotency_key: None,
            timeout: limits::REQUEST_TIMEOUT,
        }
    }

    fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    fn post(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::POST, path) }
    }

    fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    fn query(self, query: Vec<(&'static str, String)>) -> Self {
        Self { query, ..self }
    }

    fn keyed(self, key: String) -> Self {
        Self { idempotency_key: Some(key), ..self }
    }

    fn long(self) -> Self {
        Self { timeout: limits::LONG_REQUEST_TIMEOUT, ..self }
    }

    /// Whether sending it twice is the same as sending it once.
    fn may_repeat(&self) -> bool {
        self.method != Method::POST || self.idempotency_key.is_some()
    }
}

/// A connection to the API, as the holder of one token.
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
    token: Secret,
}

impl Client {
    /// Finds out where the API is and with what token. Sends nothing yet.
    pub(crate) fn connect(remote: &Remote, layout: &Layout) -> Result<Self, ClientError> {
        let base = match given(remote.api_url.as_deref()) {
            Some(url) => url.to_owned(),
            None => running(layout)?,
        };
        let url = Url::parse(&base).map_err(|e| ClientError::BadUrl(e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(ClientError::BadUrl("it must begin with http:// or https://".into()));
        }
        let token = match remote.token.clone().filter(|token| !token.0.is_empty()) {
            Some(token) => token,
            None => token_file(layout)?,
        };
        // No redirects: they would carry the token to somewhere else.
        let builder = reqwest::Client::builder()
            .connect_timeout(limits::CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none());
        // A proxy of the environment is for the world, not for this machine.
        let builder = if is_loopback(&url) { builder.no_proxy() } else { builder };
        let http =
            builder.build().map_err(|source| ClientError::Unreachable { url: redact_url(&base), source })?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), token })
    }

    /// Sends a request and reads the whole answer as JSON; an answer without a body is `null`.
    async fn call(&self, call: Call) -> Result<Value, ClientError> {
        let tries = if call.may_repeat() { limits::ATTEMPTS } else { 1 };
        let mut tried = 0;
        loop {
            tried += 1;
            match self.call_once(&call).await {
                // Nothing listens there: asking again would only make the person wait.
                Err(ClientError::Unreachable { source, .. }) if tried < tries && !source.is_connect() => {
                    tokio::time::sleep(limits::RETRY_PAUSE).await;
                }
                // What an earlier try removed is not there any more: its answer was lost, not its work.
                Err(ClientError::NotFound { .. }) if tried > 1 && call.method == Method::DELETE => {
                    return Ok(Value::Null);
                }
                done => return done,
            }
        }
    }

    async fn call_once(&self, call: &Call) -> Result<Value, ClientError> {
        let answer = self.send(call).await?;
        let status = answer.status();
        let body = self.read(answer).await?;
        if status.is_success() { self.decode(&body) } else { Err(ClientError::of_answer(status, &body)) }
    }

    async fn send(&self, call: &Call) -> Result<Response, ClientError> {
        let url = format!("{}{}", self.base, call.path);
        let mut request = self.http.request(call.method.clone(), url).timeout(call.timeout);
        request = request.bearer_auth(&self.token.0).query(&call.query);
        if let Some(key) = &call.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        request.send().await.map_err(|source| self.unreachable(source))
    }

    async fn read(&self, answer: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        let mut chunks = answer.bytes_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|source| self.unreachable(source))?;
            if body.len() + chunk.len() > limits::MAX_ANSWER_BYTES {
                return Err(self.not_floe(format!("it answers more than {} bytes", limits::MAX_ANSWER_BYTES)));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn decode(&self, body: &[u8]) -> Result<Value, ClientError> {
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(body).map_err(|e| self.not_floe(format!("its answer is no JSON ({e})")))
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        // The URL is in our own words already, and may hold a password there.
        ClientError::Unreachable { url: redact_url(&self.base), source: source.without_url() }
    }

    fn not_floe(&self, what: impl Into<String>) -> ClientError {
        ClientError::NotFloe { url: redact_url(&self.base), what: what.into() }
    }
}

fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

/// The URL of the node that runs on the directory now. A node that was killed leaves its `endpoints.json`, and whoever
/// has its port since must not be shown the operator's token: so the process of the file must hold the lock.
fn running(layout: &Layout) -> Result<String, ClientError> {
    let not_running = || ClientError::NotRunning { dir: layout.root().to_owned() };
    let unreadable = |path: PathBuf| move |source| ClientError::Endpoints { path, source };
    let path = layout.endpoints();
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_running()),
        read => read.map_err(unreadable(path.clone()))?,
    };
    let at: Endpoints = serde_json::from_str(&text).map_err(io::Error::from).map_err(unreadable(path))?;
    let runs = datadir::is_run_by(layout, at.pid).map_err(unreadable(layout.lock()))?;
    if runs { Ok(at.api) } else { Err(not_running()) }
}

fn token_file(layout: &Layout) -> Result<Secret, ClientError> {
    let path = layout.admin_token();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Secret(text.trim().to_owned())),
        Err(source) => Err(ClientError::NoToken { path, source }),
    }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// One segment of a path, with everything escaped that has a meaning in URLs.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => out.push(char::from(byte)),
            // Dots too: "." and ".." would be resolved away, and name another route.
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::testing::service;
    use super::*;

    /// The answer to `floe pin rm` was lost on the way; the second try met a 404, and the command said, with exit code 5,
    /// that there was no such pin, though it had just removed it.
    #[tokio::test]
    async fn a_removal_whose_answer_was_lost_is_done() {
        const LOST: &str = "";
        const GONE: &str = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let removed = service(vec![LOST, GONE]).await.call(Call::delete("/pins/id-1")).await;
        assert_eq!(removed.unwrap(), Value::Null);
        let never_was = service(vec![GONE]).await.call(Call::delete("/pins/id-1")).await;
        assert!(matches!(never_was, Err(ClientError::NotFound { .. })), "{never_was:?}");
        let not_removed = service(vec![LOST, GONE]).await.call(Call::get("/pins/id-1")).await;
        assert!(matches!(not_removed, Err(ClientError::NotFound { .. })), "{not_removed:?}");
    }

    #[test]
    fn t24_a_secret_does_not_print() {
        let secret: Secret = "floe_hush".parse().unwrap();
        assert!(!format!("{secret:?}").contains("hush"));
    }

    #[test]
    fn segments_cannot_leave_their_place() {
        assert_eq!(segment("019a-Zz_~"), "019a-Zz_~");
        assert_eq!(segment("a/b?c#d ä"), "a%2Fb%3Fc%23d%20%C3%A4");
        assert_eq!(segment("a.b"), "a%2Eb");
    }

    #[test]
    fn what_makes_a_request_safe_to_repeat() {
        assert!(Call::get("/").may_repeat() && Call::delete("/").may_repeat());
        assert!(!Call::post("/", Value::Null).may_repeat());
        assert!(Call::post("/", Value::Null).keyed("k".into()).may_repeat());
    }

    #[test]
    fn loopback_is_told_from_the_world() {
        for (url, local) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
            ("https://pins.example.org", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), local, "{url}");
        }
    }
}
