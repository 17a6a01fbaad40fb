//! Whether an answer tells of what is behind the API (T45): private addresses, names of the machine, its paths.
//!
//! [`crate::support::Client`] looks at every answer of these suites. What the tests' clients have sent themselves may
//! come back to them, and `delegates` has loopback addresses for requests from this machine, which all of these are;
//! the tests of `delegates` look at what others see.

use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use parking_lot::Mutex;
use reqwest::header::HeaderMap;

use crate::net::PEER_ID;

/// All that was sent by any client, so that an origin that one request brought may stand in a later answer.
static SENT: Mutex<String> = Mutex::new(String::new());

/// What names this machine.
static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
    let folder = std::env::temp_dir().display().to_string();
    let names = [host, folder, env!("CARGO_MANIFEST_DIR").to_owned(), ".sqlite".to_owned()];
    // Short names would be found in anything; everybody's machine is a localhost.
    names.into_iter().filter(|name| name.len() > 3 && name != "localhost").collect()
});

/// The client sends this.
pub(crate) fn note_sent(request: &reqwest::Request) {
    let body = request.body().and_then(|body| body.as_bytes()).unwrap_or_default();
    // Only what has addresses in it, or the thousands of pins of some tests would be searched for each answer.
    if find(&String::from_utf8_lossy(body)).is_some() {
        *SENT.lock() += &String::from_utf8_lossy(body);
    }
}

/// Panics where an answer tells too much.
#[track_caller]
pub(crate) fn look_for(headers: &HeaderMap, text: &str) {
    let own = |kind: &str| format!("/{kind}/4701");
    let delegates = ["tcp", "udp"].map(|kind| format!("/ip4/127.0.0.1{}", own(kind)));
    let mut text = text.to_owned();
    for delegate in delegates {
        text = text
            .replace(&format!("{delegate}/p2p/{PEER_ID}"), "")
            .replace(&format!("{delegate}/quic-v1/p2p/{PEER_ID}"), "");
    }
    for value in headers.values() {
        text += "\n";
        text += &String::from_utf8_lossy(value.as_bytes());
    }
    if let Some(found) = find(&text) {
        let sent = SENT.lock();
        let others = find_all(&text).filter(|found| !sent.contains(found.as_str())).collect::<Vec<_>>();
        assert!(others.is_empty(), "T45: the answer tells of {others:?} (first {found}): {text}");
    }
}

fn find(text: &str) -> Option<String> {
    find_all(text).next()
}

fn find_all(text: &str) -> impl Iterator<Item = String> {
    let words = text.split(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':')));
    let addresses = words.filter(|word| is_private(word)).map(str::to_owned);
    let names = NAMES.iter().filter(move |name| text.contains(name.as_str())).cloned();
    addresses.chain(names)
}

/// Whether a word is an address, perhaps with a port or a full stop behind it, that is of no use outside.
fn is_private(word: &str) -> bool {
    let word = word.trim_end_matches(['.', ':']);
    let ip = word.parse::<IpAddr>().ok().or_else(|| word.parse::<SocketAddr>().ok().map(|addr| addr.ip()));
    match ip.map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(ip)) => {
            let cgnat = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified() || cgnat
        }
        Some(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        None => false,
    }
}

#[test]
fn t45_the_search_finds_what_it_is_for() {
    for leak in [
        "connect to 10.0.0.7 failed",
        "\"192.168.1.1:5432\"",
        "/ip4/172.16.0.1/tcp/4001",
        "at 127.0.0.1.",
        "100.64.0.1",
        "169.254.169.254",
        "http://[::1]:4780/",
        "/ip6/fd00::1/tcp/1",
        "fe80::1%eth0",
        "cannot open /srv/floe/pins-1.sqlite",
    ] {
        assert!(find(leak).is_some(), "{leak}");
    }
    for harmless in [
        "/ip4/203.0.113.7/tcp/4701",
        "2026-05-28T20:26:40.000Z",
        "11.0.0.1",
        "v1.2.3",
        "::ffff",
        "2001:db8::1",
    ] {
        assert_eq!(find(harmless), None, "{harmless}");
    }
    let caught =
        std::panic::catch_unwind(|| look_for(&HeaderMap::new(), "the database at 10.11.12.13 is gone"));
    assert!(caught.is_err());
}
