//! `endpoints.json`: where a running node can be reached, for its own command line and for scripts.
//!
//! It is removed before anything is bound and written once everything is ready, so a script that waits for it
//! never finds that of an earlier run; after a kill -9 it may be stale, and its process id says of whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::datadir::{self, DataDirError, Layout};

/// The contents of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    version: u32,
    /// The process that wrote it, which holds the lock of the directory while it runs.
    pub(crate) pid: u32,
    /// The API's URL on this machine, without a slash at its end.
    pub(crate) api: String,
    /// The URL of health and metrics.
    pub(crate) ops: String,
    /// Listen addresses, each ending in `/p2p/<peer id>`.
    pub(crate) swarm: Vec<String>,
    /// The node's id, in base58.
    pub(crate) peer_id: String,
    /// Of `serve --devnet`: what `floe devnet` would have printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) devnet: Option<serde_json::Value>,
}

impl Endpoints {
    /// Of what this process listens on.
    pub(crate) fn new(api: SocketAddr, ops: SocketAddr, swarm: &[String], peer_id: String) -> Self {
        let mut swarm: Vec<String> = swarm.iter().map(|addr| reachable(addr, &peer_id)).collect();
        swarm.sort();
        swarm.dedup();
        Self {
            version: 1,
            pid: std::process::id(),
            api: url(api),
            ops: url(ops),
            swarm,
            peer_id,
            devnet: None,
        }
    }

    /// Writes the file. Whoever sees it can connect.
    pub(crate) fn write(&self, layout: &Layout) -> Result<(), DataDirError> {
        let text = serde_json::to_string(self).expect("text, numbers and lists always encode");
        datadir::write_whole(&layout.endpoints(), format!("{text}\n").as_bytes())
    }
}

/// Removes the file, if there is one.
pub(crate) fn remove(layout: &Layout) -> Result<(), DataDirError> {
    datadir::remove(&layout.endpoints())
}

/// A wildcard cannot be connected to: the loopback of its family can.
fn url(addr: SocketAddr) -> String {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    format!("http://{}", SocketAddr::new(ip, addr.port()))
}

fn reachable(addr: &str, peer_id: &str) -> String {
    let addr = match (addr.strip_prefix("/ip4/0.0.0.0/"), addr.strip_prefix("/ip6/::/")) {
        (Some(rest), _) => format!("/ip4/127.0.0.1/{rest}"),
        (_, Some(rest)) => format!("/ip6/::1/{rest}"),
        _ => addr.to_owned(),
    };
    if addr.contains("/p2p/") { addr } else { format!("{addr}/p2p/{peer_id}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(api: &str, swarm: &[&str]) -> Endpoints {
        let swarm: Vec<String> = swarm.iter().map(ToString::to_string).collect();
        Endpoints::new(api.parse().unwrap(), "127.0.0.1:4782".parse().unwrap(), &swarm, "12D3Koo".into())
    }

    #[test]
    fn the_document_is_the_agreed_one() {
        let endpoints = of("127.0.0.1:4780", &["/ip4/127.0.0.1/tcp/4701/p2p/12D3Koo"]);
        let want = serde_json::json!({
            "version": 1, "pid": std::process::id(), "api": "http://127.0.0.1:4780", "ops": "http://127.0.0.1:4782",
            "swarm": ["/ip4/127.0.0.1/tcp/4701/p2p/12D3Koo"], "peer_id": "12D3Koo",
        });
        assert_eq!(serde_json::to_value(&endpoints).unwrap(), want);
    }

    #[test]
    fn wildcards_are_expanded() {
        assert_eq!(of("0.0.0.0:1", &[]).api, "http://127.0.0.1:1");
        assert_eq!(of("[::]:1", &[]).api, "http://[::1]:1");
        assert_eq!(of("10.0.0.1:1", &[]).api, "http://10.0.0.1:1");
        let swarm =
            of("0.0.0.0:1", &["/ip4/0.0.0.0/tcp/5", "/ip6/::/udp/6/quic-v1", "/ip4/127.0.0.1/tcp/5"]).swarm;
        assert_eq!(swarm, ["/ip4/127.0.0.1/tcp/5/p2p/12D3Koo", "/ip6/::1/udp/6/quic-v1/p2p/12D3Koo"]);
    }

    #[test]
    fn the_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        remove(&layout).unwrap();
        of("127.0.0.1:1", &[]).write(&layout).unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.endpoints()).unwrap()).unwrap();
        assert_eq!(read["version"], 1);
        remove(&layout).unwrap();
        assert!(!layout.endpoints().exists());
    }
}
