//! Fetching the data of a deal, as Boost does it: HEAD first; from 10 MiB on five parallel ranges, the last ending
//! one byte past the end; any 4xx ends the transfer for good; what else goes wrong is tried again from where it
//! stopped. A 200 to a range is taken for the range: what is wrong then, only CommP finds.
//!
//! Plain HTTP only: the devnet's clients are on the same machine.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::limits::{ATTEMPTS, PIECE_BYTES, RANGES, SPLIT_BYTES};

/// Where the data is, as `Transfer.Params` says it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Source {
    #[serde(rename = "URL")]
    url: String,
    #[serde(rename = "Headers", default)]
    headers: Option<BTreeMap<String, String>>,
}

/// A request that was made, for those who check what a provider asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Pull {
    /// HEAD or GET.
    pub(crate) method: String,
    /// The header, if there was one.
    pub(crate) range: Option<String>,
    /// HTTP status; 0 where no answer came.
    pub(crate) status: u16,
    /// Bytes of the body that arrived.
    pub(crate) bytes: u64,
}

/// How patient a transfer is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without a byte for so long, an attempt is given up. Boost's is 5 minutes.
    pub(super) stall: Duration,
    /// Between two attempts.
    pub(super) pause: Duration,
}

enum Failed {
    /// Trying again may help.
    Retry(String),
    Fatal(String),
}

/// Fetches `size` bytes. Each request is told to `log`. Dropping the future ends the transfer.
pub(super) async fn pull(
    params: &[u8],
    size: u64,
    patience: Patience,
    log: &(dyn Fn(Pull) + Sync),
) -> Result<Vec<u8>, String> {
    let source: Source =
        serde_json::from_slice(params).map_err(|error| format!("transport params: {error}"))?;
    if size > PIECE_BYTES {
        return Err(format!("the devnet transfers at most {PIECE_BYTES} bytes"));
    }
    head(&source, size, patience, log).await?;
    let parts = ranges(size).into_iter().map(|range| part(&source, range, patience, log));
    let parts = futures::future::try_join_all(parts).await?;
    let data = parts.concat();
    if data.len() as u64 != size {
        return Err(format!("transfer size mismatch: expected {size} bytes, received {}", data.len()));
    }
    Ok(data)
}

/// First byte, how many are wanted, and the last byte that the header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    wanted: u64,
    last: Option<u64>,
}

fn ranges(size: u64) -> Vec<Range> {
    if size < SPLIT_BYTES {
        return vec![Range { start: 0, wanted: size, last: None }];
    }
    let chunk = size / RANGES;
    let range = |n: u64| {
        let start = n * chunk;
        let end = if n == RANGES - 1 { size } else { start + chunk };
        // One past the end for the last: Boost's own slip, which servers must bear.
        let last = if n == RANGES - 1 { size } else { end - 1 };
        Range { start, wanted: end - start, last: Some(last) }
    };
    (0..RANGES).map(range).collect()
}

async fn head(
    source: &Source,
    size: u64,
    patience: Patience,
    log: &(dyn Fn(Pull) + Sync),
) -> Result<(), String> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(patience.pause).await;
        }
        match within(patience.stall, send(source, Method::HEAD, None)).await {
            Ok(answer) => {
                let (status, length) = (answer.response.status(), content_length(&answer.response));
                log(Pull { method: "HEAD".into(), range: None, status: status.as_u16(), bytes: 0 });
                match status.as_u16() {
                    200 if length == Some(size) => return Ok(()),
                    200 => return Err(format!("HEAD: Content-Length is {length:?}, the deal says {size}")),
                    400..=499 => return Err(format!("http req failed: code: {}", status.as_u16())),
                    other => last = format!("http req failed: code: {other}"),
                }
            }
            Err(why) => {
                log(Pull { method: "HEAD".into(), range: None, status: 0, bytes: 0 });
                last = why;
            }
        }
    }
    Err(last)
}

fn content_length(response: &Response<Incoming>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// One range, with what is missing asked for again.
async fn part(
    source: &Source,
    range: Range,
    patience: Patience,
    log: &(dyn Fn(Pull) + Sync),
) -> Result<Vec<u8>, String> {
    let mut data = Vec::new();
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(patience.pause).await;
        }
        match fetch(source, range, patience, &mut data, log).await {
            Ok(()) if data.len() as u64 >= range.wanted => return Ok(data),
            Ok(()) => last = format!("{} of {} bytes arrived", data.len(), range.wanted),
            Err(Failed::Retry(why)) => last = why,
            Err(Failed::Fatal(why)) => return Err(why),
        }
    }
    Err(last)
}

async fn fetch(
    source: &Source,
    range: Range,
    patience: Patience,
    data: &mut Vec<u8>,
    log: &(dyn Fn(Pull) + Sync),
) -> Result<(), Failed> {
    let before = data.len() as u64;
    let end = range.last.map(|last| last.to_string()).unwrap_or_default();
    let text = format!("bytes={}-{end}", range.start + before);
    let note = |status: u16, bytes: u64| {
        log(Pull { method: "GET".into(), range: Some(text.clone()), status, bytes });
    };
    let sent = within(patience.stall, send(source, Method::GET, Some(&text))).await;
    let answer = sent.map_err(|why| {
        note(0, 0);
        Failed::Retry(why)
    })?;
    let status = answer.response.status().as_u16();
    match status {
        200 | 206 => {}
        400..=499 => {
            note(status, 0);
            return Err(Failed::Fatal(format!("http req failed: code: {status}")));
        }
        other => {
            note(status, 0);
            return Err(Failed::Retry(format!("http req failed: code: {other}")));
        }
    }
    let mut body = answer.response.into_body();
    let outcome = loop {
        match tokio::time::timeout(patience.stall, body.frame()).await {
            Err(_) => break Err(Failed::Retry("no byte came".into())),
            Ok(None) => break Ok(()),
            Ok(Some(Err(error))) => break Err(Failed::Retry(format!("the body broke off: {error}"))),
            Ok(Some(Ok(frame))) => {
                let Ok(bytes) = frame.into_data() else { continue };
                // A server that sends more than was asked for is not let fill memory.
                let room = (range.wanted - data.len() as u64).min(bytes.len() as u64);
                data.extend_from_slice(&bytes[..usize::try_from(room).unwrap_or(0)]);
                if data.len() as u64 >= range.wanted {
                    break Ok(());
                }
            }
        }
    };
    note(status, data.len() as u64 - before);
    outcome
}

async fn within<T>(limit: Duration, what: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(limit, what).await.unwrap_or_else(|_| Err("no answer came".into()))
}

/// An answer, and the connection that it comes over.
struct Answer {
    response: Response<Incoming>,
    _connection: AbortOnDropHandle<()>,
}

async fn send(source: &Source, method: Method, range: Option<&str>) -> Result<Answer, String> {
    let uri: Uri = source.url.parse().map_err(|error| format!("parse request url: {error}"))?;
    let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(format!("the devnet fetches over http only, not from {}", source.url));
    };
    let address = (authority.host(), authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| format!("send request: {error}"))?;
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(|error| format!("send request: {error}"))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(async move {
        // The body says what went wrong.
        let _ = connection.await;
    }));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, authority.as_str());
    for (name, value) in source.headers.iter().flatten() {
        let name: HeaderName = name.parse().map_err(|_| format!("no header name: {name}"))?;
        let value: HeaderValue = value.parse().map_err(|_| "no header value".to_owned())?;
        request = request.header(name, value);
    }
    if let Some(range) = range {
        request = request.header(header::RANGE, range);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| format!("create http req: {error}"))?;
    let response = sender.send_request(request).await.map_err(|error| format!("send request: {error}"))?;
    Ok(Answer { response, _connection: connection })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_cover_the_data() {
        assert_eq!(ranges(100), [Range { start: 0, wanted: 100, last: None }]);
        for size in [SPLIT_BYTES, SPLIT_BYTES + 1, SPLIT_BYTES + 4] {
            let all = ranges(size);
            assert_eq!(all.len(), 5);
            assert_eq!(all.iter().map(|range| range.wanted).sum::<u64>(), size);
            assert!(all.windows(2).all(|pair| pair[0].start + pair[0].wanted == pair[1].start));
            assert_eq!(all[4].last, Some(size), "one past the end");
        }
    }
}
