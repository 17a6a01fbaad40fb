//! The transport that lets a dial through or not: the last step before a packet leaves.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use floe_core::clock::BoxFuture;
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};

use super::inner::{Inner, Upgrade, may_try};
use super::policy::{Policy, Refusal};
use super::resolve::Resolve;
use super::target::{Carrier, Host, Target};
use crate::limits::{self, MAX_ADDRESSES_PER_NAME};

/// Why a dial ended at the gate or behind it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GateError<E: std::error::Error + 'static> {
    #[error("not dialled: {0}")]
    Refused(Refusal),
    #[error("its name does not resolve")]
    Unresolved,
    #[error("so many addresses were tried for its entry already")]
    TooMany,
    #[error(transparent)]
    Inner(E),
}

/// A transport that dials only what the [`Policy`] allows, on addresses that it resolved itself.
pub(crate) struct Gate<T> {
    inner: Inner<T>,
    carrier: Carrier,
    policy: Arc<Policy>,
    resolver: Arc<dyn Resolve>,
}

/// The clone dials and listens through the same transport, so that it knows the ports that are listened on.
impl<T> Clone for Gate<T> {
    fn clone(&self) -> Self {
        let (policy, resolver) = (self.policy.clone(), self.resolver.clone());
        Self { inner: self.inner.clone(), carrier: self.carrier, policy, resolver }
    }
}

impl<T: Transport + Unpin> Gate<T> {
    pub(crate) fn new(inner: T, carrier: Carrier, policy: Arc<Policy>, resolver: Arc<dyn Resolve>) -> Self {
        Self { inner: Inner::new(inner), carrier, policy, resolver }
    }
}

impl<T> Transport for Gate<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::Output: Send + 'static,
{
    type Output = T::Output;
    type Error = GateError<T::Error>;
    type ListenerUpgrade = Upgrade<T, Self::Error>;
    type Dial = BoxFuture<'static, Result<T::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, addr, GateError::Inner)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let target = Target::plain(&addr).filter(|target| target.carrier == self.carrier);
        let Some(target) = target else { return Err(TransportError::MultiaddrNotSupported(addr)) };
        let (inner, policy, resolver) = (self.inner.clone(), self.policy.clone(), self.resolver.clone());
        Ok(Box::pin(async move {
            let ips = permitted(&target, &policy, &*resolver).await?;
            let none = if ips.is_empty() { GateError::Unresolved } else { GateError::TooMany };
            let addresses = ips.into_iter().take_while(|_| may_try()).map(|ip| target.resolved(ip));
            inner.dial_first(policy.clock(), addresses, opts, none, GateError::Inner).await
        }))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        self.inner.poll(cx, GateError::Inner)
    }
}

/// The addresses of `target` that may be dialled, resolved once.
async fn permitted<E: std::error::Error + 'static>(
    target: &Target,
    policy: &Policy,
    resolver: &dyn Resolve,
) -> Result<Vec<IpAddr>, GateError<E>> {
    // Read before the look-up: a permit that ends meanwhile was there when the dial was asked for.
    let asker = policy.asker(target);
    let found = match &target.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name { name, family } => {
            resolver.addresses(name.clone(), *family).await.map_err(|_| GateError::Unresolved)?
        }
    };
    if found.len() > MAX_ADDRESSES_PER_NAME {
        limits::hit("dial_addresses");
    }
    let mut allowed = Vec::new();
    let mut refusal = None;
    for ip in found.into_iter().take(MAX_ADDRESSES_PER_NAME) {
        match policy.check(asker, ip, target.port) {
            Ok(()) => allowed.push(ip),
            Err(why) => refusal = Some(why),
        }
    }
    match refusal {
        Some(why) if allowed.is_empty() => {
            limits::hit("dial_filter");
            Err(GateError::Refused(why))
        }
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use floe_core::{ManualClock, Timestamp};
    use futures::future;
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;
    use parking_lot::Mutex;

    use super::*;
    use crate::dial::resolve::Dnsaddr;
    use crate::dial::websocket::WebSocket;
    use crate::limits::{NEXT_ADDRESS_AFTER, TRANSPORT_TIMEOUT};
    use crate::testing::Names;

    /// A transport that writes down what it is told to dial, and connects nowhere.
    #[derive(Clone, Default)]
    struct Recorder {
        dialled: Arc<Mutex<Vec<String>>>,
        /// Addresses where nobody says anything.
        silent: Vec<&'static str>,
        /// Whether another program has the port that this node listens on.
        port_is_taken: bool,
    }

    impl Transport for Recorder {
        type Output = futures::io::Cursor<Vec<u8>>;
        type Error = io::Error;
        type ListenerUpgrade = future::Ready<Result<Self::Output, io::Error>>;
        type Dial = BoxFuture<'static, Result<Self::Output, io::Error>>;

        fn listen_on(&mut self, _: ListenerId, addr: Multiaddr) -> Result<(), TransportError<io::Error>> {
            Err(TransportError::MultiaddrNotSupported(addr))
        }

        fn remove_listener(&mut self, _: ListenerId) -> bool {
            false
        }

        fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
            if self.port_is_taken && opts.port_use == PortUse::Reuse {
                return Ok(Box::pin(future::ready(Err(io::ErrorKind::AddrInUse.into()))));
            }
            let address = addr.to_string();
            let is_silent = self.silent.iter().any(|silent| address.contains(silent));
            self.dialled.lock().push(address);
            Ok(Box::pin(async move {
                if is_silent {
                    future::pending::<()>().await;
                }
                Err(io::Error::other("nobody there"))
            }))
        }

        fn poll(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
            Poll::Pending
        }
    }

    struct Rig {
        recorder: Recorder,
        names: Arc<Names>,
        policy: Arc<Policy>,
        clock: Arc<ManualClock>,
    }

    impl Rig {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
            let policy = Arc::new(Policy::new(false, clock.clone()));
            Self { recorder: Recorder::default(), names: Arc::default(), policy, clock }
        }

        fn gate(&self) -> Gate<Recorder> {
            Gate::new(self.recorder.clone(), Carrier::Tcp, self.policy.clone(), self.names.clone())
        }

        fn dnsaddr(&self) -> Dnsaddr<Gate<Recorder>> {
            Dnsaddr::new(self.gate(), self.policy.clone(), self.names.clone(), self.clock.clone())
        }

        async fn dial<T>(&self, mut transport: T, address: &str) -> Option<String>
        where
            T: Transport,
            T::Output: Sized,
        {
            let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
            match transport.dial(address.parse().unwrap(), options) {
                Ok(dial) => dial.await.err().map(|e| e.to_string()),
                Err(TransportError::MultiaddrNotSupported(_)) => Some("not supported".into()),
                Err(TransportError::Other(e)) => Some(e.to_string()),
            }
        }

        fn dialled(&self) -> Vec<String> {
            std::mem::take(&mut self.recorder.dialled.lock())
        }
    }

    #[tokio::test]
    async fn t11_a_name_is_resolved_once_and_that_address_dialled() {
        // Rebinding: the name is public when it is checked and loopback when it is dialled. Here checking and dialling
        // are one look-up.
        let rig = Rig::new();
        rig.names.answer("rebind.example.net", &["8.8.8.8"]);
        rig.names.answer("rebind.example.net", &["127.0.0.1"]);
        rig.dial(rig.gate(), "/dns4/rebind.example.net/tcp/4001").await;
        assert_eq!((rig.dialled(), rig.names.asked()), (vec!["/ip4/8.8.8.8/tcp/4001".to_owned()], 1));
        let error = rig.dial(rig.gate(), "/dns4/rebind.example.net/tcp/4001").await.unwrap();
        assert!(rig.dialled().is_empty());
        assert!(error.contains("private") && !error.contains("127.0.0.1"), "{error}");
    }

    #[tokio::test]
    async fn t11_websockets_names_pass_the_gate_below_them() {
        for shape in ["ws", "wss", "tls/ws", "tls/sni/other.example.net/ws"] {
            let rig = Rig::new();
            rig.names.answer("rebind.example.net", &["8.8.8.8", "10.0.0.1", "::ffff:127.0.0.1"]);
            rig.names.answer("rebind.example.net", &["127.0.0.1"]);
            let address = format!("/dns/rebind.example.net/tcp/443/{shape}");
            rig.dial(WebSocket::new(rig.gate()), &address).await;
            assert_eq!(rig.dialled(), ["/ip4/8.8.8.8/tcp/443"], "{shape}");
            rig.dial(WebSocket::new(rig.gate()), &address).await;
            assert!(rig.dialled().is_empty(), "{shape}");
        }
    }

    #[tokio::test]
    async fn t11_addresses_of_a_name_are_bounded() {
        for count in [MAX_ADDRESSES_PER_NAME - 1, MAX_ADDRESSES_PER_NAME, MAX_ADDRESSES_PER_NAME + 1] {
            let rig = Rig::new();
            let addresses: Vec<String> = (0..count).map(|n| format!("8.8.8.{n}")).collect();
            rig.names.answer("many.example.net", &addresses.iter().map(String::as_str).collect::<Vec<_>>());
            rig.dial(rig.gate(), "/dns4/many.example.net/tcp/4001").await;
            assert_eq!(rig.dialled().len(), count.min(MAX_ADDRESSES_PER_NAME));
        }
    }

    /// The story: eight addresses were dialled of each name, and a `/dnsaddr` stood for eight names, so that one origin had
    /// the node dial 64 addresses of a stranger's choice.
    #[tokio::test]
    async fn t11_addresses_behind_a_dnsaddr_are_bounded_in_all() {
        const MOST: usize = MAX_ADDRESSES_PER_NAME;
        for (names, each) in
            [(1, MOST - 1), (1, MOST + 1), (2, MOST / 2), (3, 3), (MOST + 1, 1), (MOST, MOST)]
        {
            let rig = Rig::new();
            for name in 0..names {
                let entry = format!("dnsaddr=/dns4/n{name}.example.net/tcp/4001");
                rig.names.text("_dnsaddr.many.example.net", &entry);
                let addresses: Vec<String> = (0..each).map(|n| format!("8.8.{name}.{n}")).collect();
                let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
                rig.names.answer(&format!("n{name}.example.net"), &addresses);
            }
            let error = rig.dial(rig.dnsaddr(), "/dnsaddr/many.example.net").await;
            assert_eq!(rig.dialled().len(), MOST.min(names * each), "{names} names of {each} addresses");
            assert!(error.is_some());
        }
    }

    /// The story: the addresses of a name were dialled one after the other, and one at which nobody said anything
    /// took all the 20 s of the dial: a peer with a firewall in front of its first address was never reached.
    #[tokio::test]
    async fn a_silent_address_does_not_use_up_the_time_of_the_others() {
        let mut rig = Rig::new();
        rig.names.answer("half.example.net", &["8.8.8.1", "8.8.8.2", "8.8.8.3", "8.8.8.4"]);
        rig.recorder.silent = vec!["8.8.8.1", "8.8.8.3"];
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        let mut dial = rig.gate().dial("/dns4/half.example.net/tcp/4001".parse().unwrap(), options).unwrap();
        let dialled = |rig: &Rig| rig.recorder.dialled.lock().len();
        assert!(futures::poll!(&mut dial).is_pending());
        assert_eq!(dialled(&rig), 1, "not all at once");
        rig.clock.advance(NEXT_ADDRESS_AFTER - Duration::from_millis(1));
        assert!(futures::poll!(&mut dial).is_pending());
        assert_eq!(dialled(&rig), 1);
        rig.clock.advance(Duration::from_millis(1));
        assert!(futures::poll!(&mut dial).is_pending());
        assert_eq!(dialled(&rig), 3, "the second failed at once");
        rig.clock.advance(NEXT_ADDRESS_AFTER);
        assert!(futures::poll!(&mut dial).is_pending());
        assert_eq!(dialled(&rig), 4);
        // As many as one dial may try begin long before its time is up.
        assert!(NEXT_ADDRESS_AFTER * (MAX_ADDRESSES_PER_NAME as u32) < TRANSPORT_TIMEOUT / 2);
    }

    #[tokio::test]
    async fn a_permit_opens_the_gate_for_its_name() {
        let rig = Rig::new();
        rig.names.answer("localhost", &["127.0.0.1", "::1"]);
        let address = "/dns4/localhost/tcp/4001";
        assert!(rig.dial(rig.gate(), address).await.unwrap().contains("private"));
        rig.policy.permit_local(&address.parse().unwrap());
        rig.dial(rig.gate(), address).await;
        assert_eq!(rig.dialled(), ["/ip4/127.0.0.1/tcp/4001"]);
    }

    /// A dial leaves from the port that is listened on. Where the system had given that port to another connection of
    /// the machine, every dial failed, about one start in a thousand with ports that the system chose.
    #[tokio::test]
    async fn a_port_that_somebody_else_has_is_not_dialled_from() {
        let mut rig = Rig::new();
        rig.recorder.port_is_taken = true;
        let error = rig.dial(rig.gate(), "/ip4/8.8.8.8/tcp/4001").await;
        assert_eq!(
            (rig.dialled(), error.as_deref()),
            (vec!["/ip4/8.8.8.8/tcp/4001".to_owned()], Some("nobody there"))
        );
    }
}
