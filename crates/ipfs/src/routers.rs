//! The client of delegated routers (`/routing/v1`): a second source of providers beside the DHT.
//!
//! The routers are the operator's choice and dialled as configured; redirects are off, so that a router cannot send us
//! elsewhere. What they answer is a stranger's word: addresses pass the dial filter like any other, and
//! only a router on a private address itself (the operator's own) may name private ones, for a request that may
//! dial them.

use std::net::IpAddr;

use floe_core::Cid;
use libp2p::{Multiaddr, PeerId};
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::Deserialize;
use url::{Host, Url};

use crate::Error;
use crate::dial::ip;
use crate::limits::{
    self, MAX_PEER_ADDRESSES, MAX_ROUTER_PROVIDERS, MAX_ROUTERS, ROUTER_BODY, ROUTER_TIMEOUT,
};

/// A provider as a router named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<Multiaddr>,
    /// Whether the router that said so is itself on a private address.
    pub(crate) from_private_router: bool,
}

/// Why a router gave nothing. No address in it: it reaches the owner of a pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouterError {
    #[error("a delegated router did not answer")]
    Unreachable,
    #[error("a delegated router answered with status {0}")]
    Status(u16),
    #[error("a delegated router's answer could not be read")]
    Malformed,
}

/// All configured routers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Routers {
    client: reqwest::Client,
    bases: Vec<(Url, bool)>,
}

impl Routers {
    /// # Errors
    /// [`Error::Router`] where the HTTP client cannot be made.
    pub(crate) fn new(bases: &[Url]) -> Result<Self, Error> {
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ROUTER_TIMEOUT)
            .no_proxy()
            .user_agent(crate::AGENT)
            .build()
            .map_err(|e| Error::Router(e.to_string()))?;
        if bases.len() > MAX_ROUTERS {
            limits::hit("routers");
        }
        let bases = bases.iter().take(MAX_ROUTERS).map(|base| (base.clone(), is_private(base))).collect();
        Ok(Self { client, bases })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// Asks all routers at once; an error only where none answered. Cancel safe. Ends within [`ROUTER_TIMEOUT`].
    pub(crate) async fn providers(&self, cid: Cid) -> Result<Vec<Found>, RouterError> {
        let asked = self.bases.iter().map(|(base, private)| self.ask(base, *private, cid));
        let mut answers = futures::future::join_all(asked).await;
        if answers.iter().all(Result::is_err) {
            return answers.pop().unwrap_or(Ok(Vec::new()));
        }
        let mut found: Vec<Found> = answers.into_iter().flatten().flatten().collect();
        found.truncate(MAX_ROUTER_PROVIDERS);
        Ok(found)
    }

    async fn ask(&self, base: &Url, private: bool, cid: Cid) -> Result<Vec<Found>, RouterError> {
        let url = format!("{}/routing/v1/providers/{cid}", base.as_str().trim_end_matches('/'));
        let request = self.client.get(url).header(ACCEPT, "application/x-ndjson, application/json;q=0.9");
        let mut response = request.send().await.map_err(|_| RouterError::Unreachable)?;
        match response.status().as_u16() {
            200 => {}
            404 => return Ok(Vec::new()),
            status => return Err(RouterError::Status(status)),
        }
        let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let lines = kind.starts_with("application/x-ndjson");
        let mut body = Vec::new();
        let mut whole = true;
        while let Some(chunk) = response.chunk().await.map_err(|_| RouterError::Unreachable)? {
            if body.len() + chunk.len() > ROUTER_BODY {
                limits::hit("router_body");
                whole = false;
                break;
            }
            body.extend_from_slice(&chunk);
        }
        if lines {
            Ok(parse_lines(&body, private))
        } else if whole {
            parse_json(&body, private)
        } else {
            Err(RouterError::Malformed)
        }
    }
}

/// Whether the router stands on a private address, as far as its URL says.
fn is_private(base: &Url) -> bool {
    match base.host() {
        Some(Host::Ipv4(ip)) => !ip::is_public(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => !ip::is_public(IpAddr::V6(ip)),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// A record of any schema: "peer" and the old "bitswap" agree on these two.
#[derive(Deserialize)]
struct Record {
    #[serde(rename = "ID")]
    id: Option<String>,
    #[serde(rename = "Addrs", default)]
    addresses: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Providers", default)]
    providers: Option<Vec<serde_json::Value>>,
}

fn parse_json(body: &[u8], private: bool) -> Result<Vec<Found>, RouterError> {
    let answer: Answer = serde_json::from_slice(body).map_err(|_| RouterError::Malformed)?;
    let records = answer.providers.unwrap_or_default().into_iter();
    Ok(bounded(records.filter_map(|value| found(serde_json::from_value(value).ok()?, private))))
}

/// Lines that are no record are skipped: the format grows new schemas, and the last line may be cut off.
fn parse_lines(body: &[u8], private: bool) -> Vec<Found> {
    bounded(body.split(|b| *b == b'\n').filter_map(|line| found(serde_json::from_slice(line).ok()?, private)))
}

fn bounded(found: impl Iterator<Item = Found>) -> Vec<Found> {
    let mut found = found.peekable();
    let taken = found.by_ref().take(MAX_ROUTER_PROVIDERS).collect();
    if found.peek().is_some() {
        limits::hit("router_providers");
    }
    taken
}

fn found(record: Record, from_private_router: bool) -> Option<Found> {
    let peer: PeerId = record.id?.parse().ok()?;
    let addresses = record.addresses.unwrap_or_default();
    let parsed =
        addresses.iter().filter_map(|address| address.parse::<Multiaddr>().ok()?.with_p2p(peer).ok());
    Some(Found { peer, addresses: parsed.take(MAX_PEER_ADDRESSES).collect(), from_private_router })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer as Reply, HttpServer};

    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";

    fn cid() -> Cid {
        "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy".parse().unwrap()
    }

    fn record() -> String {
        format!(
            r#"{{"Schema":"peer","ID":"{PEER}","Addrs":["/ip4/1.2.3.4/tcp/4001","bad"],"Protocols":["transport-bitswap"]}}"#
        )
    }

    async fn ask(reply: Reply) -> (Result<Vec<Found>, RouterError>, Vec<String>) {
        let server = HttpServer::start(reply).await;
        let routers = Routers::new(&[server.url()]).unwrap();
        let answer = routers.providers(cid()).await;
        (answer, server.paths())
    }

    fn expected() -> Vec<Found> {
        let peer: PeerId = PEER.parse().unwrap();
        let addresses = vec![format!("/ip4/1.2.3.4/tcp/4001/p2p/{PEER}").parse().unwrap()];
        vec![Found { peer, addresses, from_private_router: true }]
    }

    #[tokio::test]
    async fn json_and_ndjson() {
        let json = format!(r#"{{"Providers":[{},{{"Schema":"new"}},7]}}"#, record());
        let (answer, paths) = ask(Reply::ok("application/json", json)).await;
        assert_eq!(answer.unwrap(), expected());
        assert_eq!(paths, [format!("/routing/v1/providers/{}", cid())]);
        let lines = format!("{}\nnot json\n{{\"Schema\":\"new\"}}\n{{\"ID\":\"12D", record());
        assert_eq!(ask(Reply::ok("application/x-ndjson", lines)).await.0.unwrap(), expected());
        for nothing in ["{}", r#"{"Providers":null}"#] {
            assert_eq!(ask(Reply::ok("application/json", nothing.into())).await.0.unwrap(), []);
        }
    }

    #[tokio::test]
    async fn errors_have_no_address_in_them() {
        assert_eq!(ask(Reply::status(404)).await.0, Ok(vec![]));
        assert_eq!(ask(Reply::status(500)).await.0, Err(RouterError::Status(500)));
        assert_eq!(ask(Reply::ok("application/json", "[".into())).await.0, Err(RouterError::Malformed));
        let nobody = Routers::new(&["http://127.0.0.1:1/".parse().unwrap()]).unwrap();
        assert_eq!(nobody.providers(cid()).await, Err(RouterError::Unreachable));
    }

    #[tokio::test]
    async fn t11_a_redirect_is_not_followed() {
        let target = HttpServer::start(Reply::ok("application/json", "{}".into())).await;
        let (answer, _) = ask(Reply::redirect(target.url().as_str())).await;
        assert_eq!(answer, Err(RouterError::Status(302)));
        assert_eq!(target.paths(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_body_at_the_limit_and_over_it() {
        for (len, fits) in [(ROUTER_BODY - 1, true), (ROUTER_BODY, true), (ROUTER_BODY + 1, false)] {
            let mut body = format!(r#"{{"Providers":[{}]}}"#, record());
            body.extend(std::iter::repeat_n(' ', len - body.len()));
            assert_eq!(ask(Reply::ok("application/json", body)).await.0.is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn routers_at_the_boundary() {
        for count in [MAX_ROUTERS - 1, MAX_ROUTERS, MAX_ROUTERS + 1] {
            let bases: Vec<Url> = (0..count).map(|n| format!("http://r{n}.test/").parse().unwrap()).collect();
            assert_eq!(Routers::new(&bases).unwrap().bases.len(), count.min(MAX_ROUTERS), "{count}");
        }
    }

    #[test]
    fn addresses_of_a_provider_are_bounded() {
        for count in [MAX_PEER_ADDRESSES - 1, MAX_PEER_ADDRESSES, MAX_PEER_ADDRESSES + 1] {
            let addresses = (0..count).map(|n| format!("/ip4/1.2.3.4/tcp/{}", 4_001 + n)).collect();
            let record = Record { id: Some(PEER.into()), addresses: Some(addresses) };
            assert_eq!(
                found(record, false).unwrap().addresses.len(),
                count.min(MAX_PEER_ADDRESSES),
                "{count}"
            );
        }
    }

    #[test]
    fn providers_of_an_answer_are_bounded() {
        for count in [MAX_ROUTER_PROVIDERS - 1, MAX_ROUTER_PROVIDERS, MAX_ROUTER_PROVIDERS + 1] {
            let lines = vec![record(); count].join("\n");
            assert_eq!(parse_lines(lines.as_bytes(), false).len(), count.min(MAX_ROUTER_PROVIDERS));
        }
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_answers_do_no_harm(body: Vec<u8>) {
            parse_lines(&body, false);
            let _ = parse_json(&body, false);
        }
    }
}
