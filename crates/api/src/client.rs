//! Who is at the other end: the address that bounds count for.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the socket's other end, as a request extension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// `api.trusted_proxies`.
#[derive(Debug, Clone)]
pub(crate) struct TrustedProxies(Arc<[IpNet]>);

impl TrustedProxies {
    pub(crate) fn new(nets: Vec<IpNet>) -> Self {
        Self(nets.into())
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.0.iter().any(|net| net.contains(&ip))
    }

    /// Whom a request counts for: who connects, or who is behind a trusted proxy that names somebody.
    pub(crate) fn client_of(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if self.contains(peer) { self.client_behind(peer, headers) } else { Some(peer) }
    }

    /// The client behind a trusted proxy: the last address in `X-Forwarded-For` that is no proxy of ours.
    /// What stands before it is the client's own word. `None` for a peer that is not trusted, and where the
    /// proxy named nobody.
    fn client_behind(&self, peer: IpAddr, headers: &HeaderMap) -> Option<IpAddr> {
        if !self.contains(peer) {
            return None;
        }
        let values: Vec<&str> =
            headers.get_all(X_FORWARDED_FOR).iter().filter_map(|v| v.to_str().ok()).collect();
        let mut hops = values.iter().rev().flat_map(|value| value.rsplit(','));
        hops.find_map(|hop| match hop.trim().parse::<IpAddr>() {
            Ok(ip) if self.contains(ip) => None,
            Ok(ip) => Some(Some(ip)),
            Err(_) => Some(None),
        })?
    }
}

/// How many slots each client holds. Memory is bounded by the slots that are held.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    held: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
    limit: &'static str,
}

/// One of a client's slots; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Slot {
    clients: Clients,
    key: IpAddr,
}

impl Clients {
    /// `limit` names the bound in `floe_limit_hits_total`.
    pub(crate) fn new(most: usize, limit: &'static str) -> Self {
        Self { held: Arc::default(), most, limit }
    }

    /// A slot for this client, or `None` where it holds all of its own.
    pub(crate) fn take(&self, ip: IpAddr) -> Option<Slot> {
        let key = key(ip);
        let mut held = self.held.lock();
        let count = held.entry(key).or_default();
        if *count >= self.most {
            limits::hit(self.limit);
            return None;
        }
        *count += 1;
        Some(Slot { clients: self.clone(), key })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.clients.held.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

/// A bound over all clients, and one for each of them.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    all: Arc<Semaphore>,
    /// More places, for administration where all are taken.
    kept: Arc<Semaphore>,
    limit: &'static str,
    clients: Clients,
}

/// One of the places; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    _of_all: OwnedSemaphorePermit,
    _of_client: Option<Slot>,
}

impl Places {
    /// `limit` names the bound over all.
    pub(crate) fn new(most: usize, limit: &'static str, clients: Clients) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), kept: Arc::new(Semaphore::new(0)), limit, clients }
    }

    /// So many more, for administration alone.
    pub(crate) fn keeping(self, kept: usize) -> Self {
        Self { kept: Arc::new(Semaphore::new(kept)), ..self }
    }

    /// A place for this client, or for one that nobody names. `None` where it, or all, hold what they may.
    pub(crate) fn take(&self, client: Option<IpAddr>) -> Option<Place> {
        self.take_of(&[&self.all], client)
    }

    /// The same for administration, which has places of its own where all others are taken.
    pub(crate) fn take_for_administration(&self, client: Option<IpAddr>) -> Option<Place> {
        self.take_of(&[&self.all, &self.kept], client)
    }

    fn take_of(&self, places: &[&Arc<Semaphore>], client: Option<IpAddr>) -> Option<Place> {
        let free = places.iter().find_map(|places| Arc::clone(places).try_acquire_owned().ok());
        let Some(of_all) = free else {
            limits::hit(self.limit);
            return None;
        };
        let of_client = match client {
            Some(ip) => Some(self.clients.take(ip)?),
            None => None,
        };
        Some(Place { _of_all: of_all, _of_client: of_client })
    }
}

/// One client is one IPv4 address or one IPv6 /64: a subscriber has a whole /64 to pick addresses from.
fn key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) if !v6.is_loopback() => {
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX)))
        }
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::{HeaderMap, HeaderValue};

    use super::{Clients, Places, TrustedProxies, X_FORWARDED_FOR};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_client_is_the_last_hop_that_is_no_proxy_of_ours() {
        let trusted = TrustedProxies::new(vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()]);
        let behind = |peer: &str, values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_str(value).unwrap());
            }
            trusted.client_behind(ip(peer), &headers)
        };
        assert_eq!(behind("10.0.0.1", &["1.2.3.4"]), Some(ip("1.2.3.4")));
        assert_eq!(behind("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.9.9.9"]), Some(ip("1.2.3.4")));
        assert_eq!(behind("10.0.0.1", &["6.6.6.6", "1.2.3.4"]), Some(ip("1.2.3.4")));
        assert_eq!(behind("::ffff:10.0.0.1", &["2001:db8::1"]), Some(ip("2001:db8::1")));
        assert_eq!(behind("10.0.0.1", &[]), None);
        assert_eq!(
            behind("10.0.0.1", &["1.2.3.4, unknown"]),
            None,
            "what stands before garbage is not believed"
        );
        assert_eq!(behind("9.9.9.9", &["1.2.3.4"]), None, "a stranger's word counts for nothing");
    }

    #[test]
    fn t22_each_client_has_its_own_slots() {
        let clients = Clients::new(2, "test");
        let first = clients.take(ip("1.2.3.4"));
        let second = clients.take(ip("::ffff:1.2.3.4"));
        assert!(first.is_some() && second.is_some());
        assert!(clients.take(ip("1.2.3.4")).is_none());
        assert!(clients.take(ip("1.2.3.5")).is_some());
        drop(first);
        assert!(clients.take(ip("1.2.3.4")).is_some());
        drop(second);
        assert!(clients.held.lock().is_empty(), "nothing is kept of who is gone");
    }

    #[test]
    fn t22_administration_has_places_where_all_are_taken() {
        let places = Places::new(2, "test", Clients::new(9, "test")).keeping(1);
        let mut held: Vec<_> = (0..2).map(|_| places.take(None).unwrap()).collect();
        assert!(places.take(None).is_none());
        let kept = places.take_for_administration(None);
        assert!(kept.is_some());
        assert!(places.take_for_administration(None).is_none(), "they are bounded too");
        // Where one of all is free it is taken first.
        drop(kept);
        held.pop();
        let two = [places.take_for_administration(None), places.take_for_administration(None)];
        assert!(two.iter().all(Option::is_some) && places.take(None).is_none());
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let clients = Clients::new(1, "test");
        let _held = clients.take(ip("2001:db8::1"));
        assert!(clients.take(ip("2001:db8::ffff")).is_none());
        assert!(clients.take(ip("2001:db8:0:1::1")).is_some());
    }
}
