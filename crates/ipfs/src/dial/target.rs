//! What a multiaddr asks to be dialled, and whether its shape is one of the few that are.
//!
//! Shapes are matched whole. Parsers that look for the first thing they know (as transports do) can be told two
//! stories by one address: `/ip4/8.8.8.8/udp/1/ip4/127.0.0.1/tcp/80/ws`.

use std::net::IpAddr;

use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

/// The host part of an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Ip(IpAddr),
    /// Lower case, without the final dot.
    Name {
        name: String,
        family: Family,
    },
}

/// Which addresses of a name count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    Any,
    V4,
    V6,
}

/// What the gate of a transport can dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Carrier {
    Tcp,
    Quic,
}

/// One place to dial, and who should be there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) host: Host,
    pub(crate) carrier: Carrier,
    pub(crate) port: u16,
    pub(crate) peer: Option<PeerId>,
}

impl Target {
    /// The target of exactly `/host/tcp/port[/p2p/id]` or `/host/udp/port/quic-v1[/p2p/id]`.
    pub(crate) fn plain(address: &Multiaddr) -> Option<Self> {
        let mut rest = address.iter();
        let (host, carrier, port) = socket(&mut rest)?;
        let peer = match (rest.next(), rest.next()) {
            (None, _) => None,
            (Some(Protocol::P2p(peer)), None) => Some(peer),
            _ => return None,
        };
        Some(Self { host, carrier, port, peer })
    }

    /// The target that dialling `address` reaches first, of any shape that this node dials:
    /// plain, WebSocket, or either of them with a relayed circuit behind.
    pub(crate) fn first_hop(address: &Multiaddr) -> Option<Self> {
        let mut rest = address.iter().peekable();
        let (host, carrier, port) = socket(&mut rest)?;
        if carrier == Carrier::Tcp {
            skip_websocket(&mut rest)?;
        }
        let mut peer = None;
        if let Some(Protocol::P2p(id)) = rest.peek() {
            peer = Some(*id);
            rest.next();
        }
        match (rest.next(), rest.next(), rest.next()) {
            (None, ..) => {}
            (Some(Protocol::P2pCircuit), None, _) if peer.is_some() => {}
            (Some(Protocol::P2pCircuit), Some(Protocol::P2p(_)), None) if peer.is_some() => {}
            _ => return None,
        }
        Some(Self { host, carrier, port, peer })
    }

    /// The address for the inner transport, with `ip` in place of the name.
    pub(crate) fn resolved(&self, ip: IpAddr) -> Multiaddr {
        let address = Multiaddr::from(ip);
        match self.carrier {
            Carrier::Tcp => address.with(Protocol::Tcp(self.port)),
            Carrier::Quic => address.with(Protocol::Udp(self.port)).with(Protocol::QuicV1),
        }
    }
}

fn socket<'a>(rest: &mut impl Iterator<Item = Protocol<'a>>) -> Option<(Host, Carrier, u16)> {
    let name =
        |name: &str, family| Host::Name { name: name.trim_end_matches('.').to_ascii_lowercase(), family };
    let host = match rest.next()? {
        Protocol::Ip4(ip) => Host::Ip(ip.into()),
        Protocol::Ip6(ip) => Host::Ip(ip.into()),
        Protocol::Dns(n) => name(&n, Family::Any),
        Protocol::Dns4(n) => name(&n, Family::V4),
        Protocol::Dns6(n) => name(&n, Family::V6),
        _ => return None,
    };
    let (carrier, port) = match rest.next()? {
        Protocol::Tcp(port) => (Carrier::Tcp, port),
        Protocol::Udp(port) => match rest.next()? {
            Protocol::QuicV1 => (Carrier::Quic, port),
            _ => return None,
        },
        _ => return None,
    };
    (port != 0).then_some((host, carrier, port))
}

/// Skips `/ws`, `/wss`, `/tls/ws` or `/tls/sni/name/ws`; `None` for a `/tls` without them.
fn skip_websocket<'a>(rest: &mut std::iter::Peekable<impl Iterator<Item = Protocol<'a>>>) -> Option<()> {
    let tls = matches!(rest.peek(), Some(Protocol::Tls));
    if tls {
        rest.next();
        if matches!(rest.peek(), Some(Protocol::Sni(_))) {
            rest.next();
        }
    }
    match rest.peek() {
        Some(Protocol::Ws(_)) => rest.next().map(drop),
        Some(Protocol::Wss(_)) if !tls => rest.next().map(drop),
        _ => (!tls).then_some(()),
    }
}

/// The peer at the end of `address`, unless a relay is on the way: what the operator's own addresses have to name.
pub fn direct_peer(address: &Multiaddr) -> Option<PeerId> {
    peer_of(address).filter(|_| !address.iter().any(|part| part == Protocol::P2pCircuit))
}

/// The peer that `address` leads to: the last `/p2p` of it.
pub fn peer_of(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last()? {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";

    fn first_hop(text: &str) -> Option<Target> {
        Target::first_hop(&text.replace("ID", PEER).parse().unwrap())
    }

    #[test]
    fn shapes_that_are_dialled() {
        for text in [
            "/ip4/1.2.3.4/tcp/4001",
            "/ip4/1.2.3.4/tcp/4001/p2p/ID",
            "/ip6/2606::1/udp/4001/quic-v1/p2p/ID",
            "/dns4/example.net/tcp/443/wss/p2p/ID",
            "/dns/example.net/tcp/443/tls/ws/p2p/ID",
            "/dns6/example.net/tcp/443/tls/sni/other.net/ws",
            "/ip4/1.2.3.4/tcp/80/ws",
            "/ip4/1.2.3.4/tcp/4001/p2p/ID/p2p-circuit/p2p/ID",
            "/ip4/1.2.3.4/udp/4001/quic-v1/p2p/ID/p2p-circuit",
        ] {
            assert!(first_hop(text).is_some(), "{text}");
        }
    }

    #[test]
    fn t11_shapes_that_are_not() {
        for text in [
            "/unix/tmp%2fsocket",
            "/memory/7",
            "/p2p/ID",
            "/ip4/1.2.3.4",
            "/ip4/1.2.3.4/tcp/0",
            "/ip4/1.2.3.4/udp/4001",
            "/ip4/1.2.3.4/udp/4001/quic",
            "/ip4/1.2.3.4/udp/4001/quic-v1/webtransport",
            "/ip4/1.2.3.4/udp/4001/webrtc-direct",
            "/ip6zone/lo/ip6/fe80::1/tcp/4001",
            "/ip4/1.2.3.4/tcp/80/http",
            "/ip4/1.2.3.4/tcp/443/tls",
            "/ip4/1.2.3.4/tcp/443/tls/wss",
            "/ip4/8.8.8.8/udp/1/ip4/127.0.0.1/tcp/80/ws",
            "/ip4/8.8.8.8/tcp/80/ip4/127.0.0.1/tcp/80/ws",
            "/dns4/example.net/tcp/80/ws/ws",
            "/ip4/1.2.3.4/tcp/4001/p2p-circuit/p2p/ID",
            "/ip4/1.2.3.4/tcp/4001/p2p/ID/p2p-circuit/ip4/127.0.0.1/tcp/80",
            "/ip4/1.2.3.4/tcp/4001/p2p/ID/p2p/ID",
        ] {
            assert_eq!(first_hop(text), None, "{text}");
        }
    }

    #[test]
    fn names_are_compared_in_one_form() {
        assert_eq!(first_hop("/dns4/LocalHost./tcp/4001"), first_hop("/dns4/localhost/tcp/4001"));
    }
}
