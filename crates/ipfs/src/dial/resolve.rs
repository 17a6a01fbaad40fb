//! Names: the port to the resolver, and the transport that expands `/dnsaddr` and bounds every dial, in addresses and
//! in time.
//!
//! `/dns`, `/dns4` and `/dns6` are resolved by the gates, below WebSocket, which needs the name for TLS. A
//! `/dnsaddr` stands for whole multiaddrs of any transport, so it is expanded above them all, and what it expands
//! to is judged like any other address.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use floe_core::Clock;
use floe_core::clock::BoxFuture;
use futures::future::{self, FutureExt as _};
use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::RData;
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;

use super::inner::{Inner, Upgrade, bounded, may_try};
use super::policy::Policy;
use super::target::{Family, peer_of};
use crate::deadline::within;
use crate::limits::{self, MAX_ADDRESSES_PER_NAME, MAX_DNSADDR_LOOKUPS, TRANSPORT_TIMEOUT};

/// Looks names up. Each call is one look-up: the caller dials what it got and does not ask again.
pub(crate) trait Resolve: Send + Sync + 'static {
    /// The addresses of a name.
    fn addresses(&self, name: String, family: Family) -> BoxFuture<'static, Result<Vec<IpAddr>, String>>;
    /// The TXT records of a name.
    fn texts(&self, name: String) -> BoxFuture<'static, Result<Vec<String>, String>>;
}

/// The system's resolver.
pub(crate) struct System(TokioResolver);

impl System {
    /// Reads the system's configuration; falls back to nothing but the hosts file where there is none.
    pub(crate) fn new() -> Result<Self, String> {
        let builder = TokioResolver::builder_tokio().map_err(|e| e.to_string())?;
        builder.build().map(Self).map_err(|e| e.to_string())
    }
}

impl Resolve for System {
    fn addresses(&self, name: String, family: Family) -> BoxFuture<'static, Result<Vec<IpAddr>, String>> {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.lookup_ip(name).await.map_err(|e| e.to_string())?;
            Ok(found.iter().filter(|ip| family.has(*ip)).collect())
        })
    }

    fn texts(&self, name: String) -> BoxFuture<'static, Result<Vec<String>, String>> {
        let resolver = self.0.clone();
        Box::pin(async move {
            let found = resolver.txt_lookup(name).await.map_err(|e| e.to_string())?;
            let texts = found.answers().iter().filter_map(|record| match &record.data {
                RData::TXT(text) => Some(String::from_utf8_lossy(&text.txt_data.concat()).into_owned()),
                _ => None,
            });
            Ok(texts.collect())
        })
    }
}

/// What stands in where the system has no resolver configuration: names do not resolve, addresses work.
pub(crate) struct Nowhere(pub(crate) String);

impl Resolve for Nowhere {
    fn addresses(&self, _: String, _: Family) -> BoxFuture<'static, Result<Vec<IpAddr>, String>> {
        let error = self.0.clone();
        Box::pin(async { Err(error) })
    }
    fn texts(&self, _: String) -> BoxFuture<'static, Result<Vec<String>, String>> {
        let error = self.0.clone();
        Box::pin(async { Err(error) })
    }
}

impl Family {
    pub(crate) fn has(self, ip: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }
}

/// Why a `/dnsaddr` was not reached.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DnsaddrError<E: std::error::Error + 'static> {
    #[error("the name has no address for this peer")]
    NoAddress,
    #[error("timeout")]
    Timeout,
    #[error(transparent)]
    Inner(E),
}

/// The outermost transport: all that a `/dnsaddr` stands for is dialled at once, as the swarm does with the addresses of
/// a peer, because a silent one may not use up the time of the others. The first that answers is taken.
pub(crate) struct Dnsaddr<T> {
    inner: Inner<T>,
    policy: Arc<Policy>,
    resolver: Arc<dyn Resolve>,
    clock: Arc<dyn Clock>,
}

impl<T: Transport + Unpin> Dnsaddr<T> {
    pub(crate) fn new(
        inner: T,
        policy: Arc<Policy>,
        resolver: Arc<dyn Resolve>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { inner: Inner::new(inner), policy, resolver, clock }
    }
}

type InnerError<T> = DnsaddrError<<T as Transport>::Error>;

impl<T> Transport for Dnsaddr<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
    T::Output: Send + 'static,
{
    type Output = T::Output;
    type Error = InnerError<T>;
    type ListenerUpgrade = Upgrade<T, Self::Error>;
    type Dial = BoxFuture<'static, Result<T::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, addr, DnsaddrError::Inner)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let clock = self.clock.clone();
        if !matches!(addr.iter().next(), Some(Protocol::Dnsaddr(_))) {
            let dial = self.inner.dial(addr, opts, DnsaddrError::Inner)?;
            return Ok(in_time(clock, dial).boxed());
        }
        let (inner, policy, resolver) = (self.inner.clone(), self.policy.clone(), self.resolver.clone());
        let dial = async move {
            let found = expand(addr, &policy, &*resolver).await;
            let dials: Vec<_> = found.into_iter().map(|address| one(inner.clone(), address, opts)).collect();
            if dials.is_empty() {
                return Err(DnsaddrError::NoAddress);
            }
            future::select_ok(dials).await.map(|(output, _)| output)
        };
        Ok(in_time(clock, dial).boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        self.inner.poll(cx, DnsaddrError::Inner)
    }
}

/// Dials one of the addresses that a `/dnsaddr` stands for.
fn one<T>(inner: Inner<T>, address: Multiaddr, opts: DialOpts) -> BoxFuture<'static, DialResult<T>>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::Output: Send + 'static,
{
    Box::pin(async move {
        // Its relay is dialled by the swarm, where this dial does not count.
        if is_relayed(&address) && !may_try() {
            return Err(DnsaddrError::NoAddress);
        }
        let dialled = inner.dial_one(address, opts).await;
        dialled.map_or(Err(DnsaddrError::NoAddress), |dialled| dialled.map_err(DnsaddrError::Inner))
    })
}

type DialResult<T> = Result<<T as Transport>::Output, InnerError<T>>;

/// A dial with its bounds: whatever it stands for, it tries so many addresses and takes so long.
async fn in_time<T, E: std::error::Error + 'static>(
    clock: Arc<dyn Clock>,
    dial: impl Future<Output = Result<T, DnsaddrError<E>>>,
) -> Result<T, DnsaddrError<E>> {
    let dialled = within(&*clock, TRANSPORT_TIMEOUT, bounded(dial)).await;
    dialled.unwrap_or(Err(DnsaddrError::Timeout))
}

fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether the dial of a relay would look a name up, for addresses that nobody counts.
fn is_relayed_by_name(address: &Multiaddr) -> bool {
    is_relayed(address) && !matches!(address.iter().next(), Some(Protocol::Ip4(_) | Protocol::Ip6(_)))
}

/// The addresses behind a `/dnsaddr`, for the peer it names; what the operator's names lead to is permitted.
async fn expand(address: Multiaddr, policy: &Policy, resolver: &dyn Resolve) -> Vec<Multiaddr> {
    let peer = peer_of(&address);
    let mut found = Vec::new();
    let mut names: Vec<(String, bool)> = operators_name(&address, policy).into_iter().collect();
    for _ in 0..MAX_DNSADDR_LOOKUPS {
        let Some((name, operators)) = names.pop() else { return found };
        let texts = resolver.texts(format!("_dnsaddr.{name}")).await.unwrap_or_default();
        let entries =
            texts.iter().filter_map(|text| text.strip_prefix("dnsaddr=")?.parse::<Multiaddr>().ok());
        for entry in entries.filter(|entry| peer.is_none() || peer_of(entry) == peer) {
            if let Some(Protocol::Dnsaddr(name)) = entry.iter().next() {
                names.push((name.to_ascii_lowercase(), operators));
                names.truncate(MAX_DNSADDR_LOOKUPS);
            } else if found.len() < MAX_ADDRESSES_PER_NAME && !is_relayed_by_name(&entry) {
                if operators {
                    policy.permit_derived(&entry);
                }
                found.push(entry);
            } else {
                limits::hit("dial_addresses");
            }
        }
    }
    if !names.is_empty() {
        limits::hit("dnsaddr_lookups");
    }
    found
}

fn operators_name(address: &Multiaddr, policy: &Policy) -> Option<(String, bool)> {
    match address.iter().next() {
        Some(Protocol::Dnsaddr(name)) => Some((name.to_ascii_lowercase(), policy.is_operators_name(&name))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use floe_core::{ManualClock, Timestamp};
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;

    use super::*;
    use crate::testing::Names;

    fn policy() -> Policy {
        Policy::new(false, Arc::new(ManualClock::new(Timestamp::from_millis(0))))
    }

    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";

    #[tokio::test]
    async fn dnsaddr_follows_names_and_keeps_to_the_peer() {
        let names = Names::default();
        names.text("_dnsaddr.a.test", &format!("dnsaddr=/dnsaddr/b.test/p2p/{PEER}"));
        names.text("_dnsaddr.b.test", &format!("dnsaddr=/ip4/1.1.1.1/tcp/4001/p2p/{PEER}"));
        names.text(
            "_dnsaddr.b.test",
            "dnsaddr=/ip4/2.2.2.2/tcp/4001/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",
        );
        names.text("_dnsaddr.b.test", "something else");
        let found = expand(format!("/dnsaddr/a.test/p2p/{PEER}").parse().unwrap(), &policy(), &names).await;
        assert_eq!(found, [format!("/ip4/1.1.1.1/tcp/4001/p2p/{PEER}").parse().unwrap()]);
    }

    #[tokio::test]
    async fn t11_a_circle_of_names_ends() {
        let names = Names::default();
        names.text("_dnsaddr.a.test", "dnsaddr=/dnsaddr/b.test");
        names.text("_dnsaddr.b.test", "dnsaddr=/dnsaddr/a.test");
        assert!(expand("/dnsaddr/a.test".parse().unwrap(), &policy(), &names).await.is_empty());
        assert_eq!(names.asked(), MAX_DNSADDR_LOOKUPS);
    }

    #[tokio::test]
    async fn t11_a_name_yields_eight_addresses_at_most() {
        for count in [MAX_ADDRESSES_PER_NAME - 1, MAX_ADDRESSES_PER_NAME, MAX_ADDRESSES_PER_NAME + 1] {
            let names = Names::default();
            for n in 0..count {
                names.text("_dnsaddr.a.test", &format!("dnsaddr=/ip4/1.1.1.{n}/tcp/4001"));
            }
            let found = expand("/dnsaddr/a.test".parse().unwrap(), &policy(), &names).await;
            assert_eq!(found.len(), count.min(MAX_ADDRESSES_PER_NAME));
        }
    }

    #[tokio::test]
    async fn t11_a_relay_behind_a_dnsaddr_has_an_address() {
        let names = Names::default();
        let circuit = |relay: &str| format!("{relay}/tcp/4001/p2p/{PEER}/p2p-circuit");
        names.text("_dnsaddr.a.test", &format!("dnsaddr={}", circuit("/dns4/many.test")));
        names.text("_dnsaddr.a.test", &format!("dnsaddr={}", circuit("/ip4/1.1.1.1")));
        let found = expand("/dnsaddr/a.test".parse().unwrap(), &policy(), &names).await;
        assert_eq!(found, [circuit("/ip4/1.1.1.1").parse().unwrap()]);
    }

    /// A transport where nobody ever answers. Counts the dials.
    #[derive(Default)]
    struct Silent(Arc<AtomicUsize>);

    impl Transport for Silent {
        type Output = ();
        type Error = io::Error;
        type ListenerUpgrade = future::Pending<Result<(), io::Error>>;
        type Dial = future::Pending<Result<(), io::Error>>;

        fn listen_on(&mut self, _: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
            Err(TransportError::MultiaddrNotSupported(addr))
        }

        fn remove_listener(&mut self, _: ListenerId) -> bool {
            false
        }

        fn dial(&mut self, _: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(future::pending())
        }

        fn poll(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
            Poll::Pending
        }
    }

    /// The story: each step of a dial had its 20 s, so that a name of eight silent addresses held one of the few places
    /// for pending dials for 160 s.
    #[tokio::test]
    async fn t11_a_dial_ends_in_time_whatever_it_stands_for() {
        let names = Arc::new(Names::default());
        for n in 0..MAX_ADDRESSES_PER_NAME {
            names.text("_dnsaddr.a.test", &format!("dnsaddr=/ip4/1.1.1.{n}/tcp/4001"));
        }
        for (address, addresses) in
            [("/dnsaddr/a.test", MAX_ADDRESSES_PER_NAME), ("/ip4/1.1.1.1/tcp/4001", 1)]
        {
            let (silent, clock) = (Silent::default(), ManualClock::new(Timestamp::from_millis(0)));
            let dialled = silent.0.clone();
            let policy = Arc::new(policy());
            let mut transport = Dnsaddr::new(silent, policy, names.clone(), Arc::new(clock.clone()));
            let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
            let mut dial = transport.dial(address.parse().unwrap(), options).unwrap();
            assert!(futures::poll!(&mut dial).is_pending());
            assert_eq!(dialled.load(Ordering::Relaxed), addresses, "all at once");
            clock.advance(TRANSPORT_TIMEOUT - Duration::from_millis(1));
            assert!(futures::poll!(&mut dial).is_pending());
            clock.advance(Duration::from_millis(1));
            assert!(matches!(dial.now_or_never(), Some(Err(DnsaddrError::Timeout))), "{address}");
        }
    }
}
