//! How single values are read: sizes, durations, addresses, URLs.
//!
//! Each parser says in words what it wanted; who wrote the value is added by the caller.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use floe_core::{ActorId, AttoFil};
use floe_ipfs::Multiaddr;
use ipnet::IpNet;
use reqwest::Url;

/// A value that can be read from the text of a setting.
pub(crate) trait Setting: Sized {
    /// Reads it, or says what is wrong with it.
    fn read(text: &str) -> Result<Self, String>;
}

/// Bytes, written with a binary (`KiB`) or decimal (`kB`) unit or without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

/// `text` as bytes; for flags of the command line.
pub(crate) fn byte_size(text: &str) -> Result<u64, String> {
    ByteSize::read(text).map(|size| size.0)
}

/// `text` as a duration above zero; for flags of the command line.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    Duration::read(text)
}

impl Setting for ByteSize {
    fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let number: u64 =
            number.parse().map_err(|_| "a size is a whole number and a unit, such as \"2GiB\"".to_owned())?;
        let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            _ => return Err("the units of sizes are B, KiB, MiB, GiB, TiB, kB, MB, GB and TB".into()),
        };
        let bytes = number.checked_mul(factor).filter(|bytes| *bytes <= i64::MAX as u64);
        bytes.map(Self).ok_or_else(|| "this is more than 2^63 bytes".into())
    }
}

impl Setting for Duration {
    fn read(text: &str) -> Result<Self, String> {
        let wanted =
            |e: &dyn std::fmt::Display| format!("a duration is written as in \"24h\" or \"1h 30m\": {e}");
        let span = humantime::parse_duration(text).map_err(|e| wanted(&e))?;
        if span.is_zero() { Err("a duration must be above zero".into()) } else { Ok(span) }
    }
}

impl Setting for bool {
    fn read(text: &str) -> Result<Self, String> {
        match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("this is either true or false".into()),
        }
    }
}

impl Setting for u64 {
    fn read(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) | Err(_) => Err("this is a whole number above zero".into()),
            Ok(number) => Ok(number),
        }
    }
}

impl Setting for u32 {
    fn read(text: &str) -> Result<Self, String> {
        u64::read(text)?.try_into().map_err(|_| format!("the most is {}", u32::MAX))
    }
}

impl Setting for SocketAddr {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "an IP address and a port, such as 127.0.0.1:4780 or [::1]:4780".into())
    }
}

impl Setting for Url {
    fn read(text: &str) -> Result<Self, String> {
        let url = Url::parse(text).map_err(|e| e.to_string())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err("a URL that begins with http:// or https://".into());
        }
        Ok(url)
    }
}

impl Setting for Multiaddr {
    fn read(text: &str) -> Result<Self, String> {
        let parsed = text.parse::<Self>();
        let addr = parsed.map_err(|e| format!("a multiaddr, such as /ip4/0.0.0.0/tcp/4701: {e}"))?;
        if addr.is_empty() { Err("an empty multiaddr".into()) } else { Ok(addr) }
    }
}

/// An address that the node can listen on.
#[derive(Debug, Clone)]
pub(crate) struct ListenAddr(pub(crate) Multiaddr);

impl ListenAddr {
    /// Whether it needs a certificate.
    pub(crate) fn has_tls(&self) -> bool {
        self.0.iter().any(|part| matches!(part.tag(), "tls" | "wss" | "x-parity-wss"))
    }
}

impl Setting for ListenAddr {
    fn read(text: &str) -> Result<Self, String> {
        let addr = Multiaddr::read(text)?;
        let parts: Vec<&str> = addr.iter().map(|part| part.tag()).filter(|tag| *tag != "p2p").collect();
        let known = match &parts[..] {
            // A slot at a relay: what it takes, the relay says.
            parts if parts.contains(&"p2p-circuit") => true,
            ["ip4" | "ip6", "udp", "quic-v1"] | ["ip4" | "ip6", "tcp"] => true,
            ["ip4" | "ip6", "tcp", "ws" | "x-parity-ws" | "wss" | "x-parity-wss"] => true,
            ["ip4" | "ip6", "tcp", "tls", "ws" | "x-parity-ws"] => true,
            _ => false,
        };
        let forms = "/tcp/PORT, /udp/PORT/quic-v1, /tcp/PORT/ws or /tcp/PORT/tls/ws on an IP address";
        if known { Ok(Self(addr)) } else { Err(format!("{text} cannot be listened on: it must be {forms}")) }
    }
}

/// The address of a peer that is reached directly, with its id.
#[derive(Debug, Clone)]
pub(crate) struct PeerAddr(pub(crate) Multiaddr);

impl Setting for PeerAddr {
    fn read(text: &str) -> Result<Self, String> {
        let addr = Multiaddr::read(text)?;
        match floe_ipfs::direct_peer(&addr) {
            Some(_) => Ok(Self(addr)),
            None => Err(format!("{text} does not end in the /p2p/ID of a peer that is reached directly")),
        }
    }
}

/// The text of an origin of a pin. The service passes over what names no peer, because an origin is a hint; whoever
/// types one wants to be told.
pub(crate) fn origin(text: &str) -> Result<String, String> {
    match text.parse::<Multiaddr>() {
        Ok(addr) if floe_ipfs::peer_of(&addr).is_some() => Ok(text.to_owned()),
        _ => {
            Err("an origin is the multiaddr of a peer, such as /ip4/203.0.113.7/tcp/4001/p2p/12D3Koo…".into())
        }
    }
}

/// Where a provider is reached, as the operator types it.
pub(crate) fn contact(text: &str) -> Result<String, String> {
    let is_url = text.starts_with("http://") || text.starts_with("https://");
    let read = if is_url { Url::read(text).map(drop) } else { Multiaddr::read(text).map(drop) };
    read.map(|()| text.to_owned())
        .map_err(|why| format!("a URL (https://…) or a multiaddr (/dns4/…/tcp/…): {why}"))
}

impl Setting for IpNet {
    fn read(text: &str) -> Result<Self, String> {
        let alone = || text.parse().map(|ip: std::net::IpAddr| IpNet::from(ip));
        text.parse().or_else(|_| alone()).map_err(|_| "a network, such as 10.0.0.0/8 or ::1/128".into())
    }
}

/// A path under which the API is served: `/psa`, without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathPrefix(pub(crate) String);

impl Setting for PathPrefix {
    fn read(text: &str) -> Result<Self, String> {
        floe_api::path_prefix(text).map(Self).map_err(str::to_owned)
    }
}

impl Setting for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        let path = Self::from(text);
        // Where a service is started from is chance.
        if path.is_absolute() { Ok(path) } else { Err("a path that begins with /".into()) }
    }
}

/// In attoFIL.
impl Setting for AttoFil {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e: floe_core::units::NoAmount| e.to_string())
    }
}

impl Setting for ActorId {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|e: floe_core::ids::NoActorId| e.to_string())
    }
}

impl Setting for String {
    fn read(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let good = [
            ("0", 0),
            ("17", 17),
            ("2GiB", 2 << 30),
            ("2 gib", 2 << 30),
            ("10kB", 10_000),
            ("1TiB", 1 << 40),
        ];
        for (text, bytes) in good {
            assert_eq!(byte_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1.5GiB", "2 gigs", "9223372036854775808", "99999999TiB"] {
            assert!(byte_size(text).is_err(), "{text}");
        }
        assert_eq!(byte_size("9223372036854775807"), Ok(i64::MAX as u64));
    }

    #[test]
    fn durations_have_units_and_are_above_zero() {
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("1h 30m"), Ok(Duration::from_secs(5_400)));
        for text in ["", "24", "0s", "soon"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn path_prefixes_are_plain_paths() {
        assert_eq!(PathPrefix::read("/psa/v1/"), Ok(PathPrefix("/psa/v1".into())));
        for text in ["", "/", "psa", "/a//b", "/a/../b", "/a?b", "/{x}", "/p", "/pins/v1"] {
            assert!(PathPrefix::read(text).is_err(), "{text}");
        }
    }

    const PEER: &str = "/p2p/12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";

    #[test]
    fn listen_addresses_are_on_an_ip_address_and_a_transport_that_is_there() {
        for (text, tls) in [
            ("/ip4/0.0.0.0/tcp/4701", false),
            ("/ip6/::/udp/4701/quic-v1", false),
            ("/ip4/0.0.0.0/tcp/4702/ws", false),
            ("/ip4/0.0.0.0/tcp/4703/tls/ws", true),
            ("/ip4/0.0.0.0/tcp/4703/wss", true),
        ] {
            for text in [text.to_owned(), format!("{text}{PEER}")] {
                assert_eq!(ListenAddr::read(&text).map(|addr| addr.has_tls()), Ok(tls), "{text}");
            }
        }
        assert!(ListenAddr::read(&format!("/ip4/1.2.3.4/tcp/5{PEER}/p2p-circuit")).is_ok());
        for text in [
            "",
            "/dns4/x/tcp/1",
            "/ip4/1.2.3.4",
            "/ip4/1.2.3.4/udp/1",
            "/ip4/1.2.3.4/udp/1/quic",
            "/ip4/1.2.3.4/tcp/1/http",
            "/ip4/1.2.3.4/tcp/1/ws/tls",
            PEER,
        ] {
            assert!(ListenAddr::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn peers_are_named_by_their_addresses() {
        let direct = format!("/dns4/x/tcp/1{PEER}");
        let circuit = format!("{direct}/p2p-circuit{PEER}");
        assert!(PeerAddr::read(&direct).is_ok() && PeerAddr::read(PEER).is_ok());
        assert!(PeerAddr::read(&circuit).is_err() && PeerAddr::read("/dns4/x/tcp/1").is_err());
        assert_eq!((origin(&direct), origin(&circuit)), (Ok(direct.clone()), Ok(circuit.clone())));
        for text in ["", "rubbish", "/dns4/x/tcp/1", "1.2.3.4:5", "/p2p/x"] {
            assert!(origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn networks_may_be_single_addresses() {
        assert_eq!(IpNet::read("127.0.0.1").unwrap().to_string(), "127.0.0.1/32");
        assert_eq!(IpNet::read("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(IpNet::read("10.0.0.0/33").is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_a_panic(text in ".*") {
            let _ = (ByteSize::read(&text), Duration::read(&text), Url::read(&text), Multiaddr::read(&text));
            let _ = (ListenAddr::read(&text), PeerAddr::read(&text), origin(&text));
            let _ = (PathPrefix::read(&text), IpNet::read(&text), SocketAddr::read(&text), u32::read(&text));
        }
    }
}
