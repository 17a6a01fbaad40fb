//! The transport that lets a dial through or not: the last step before a packet leaves.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use floe_core::clock::BoxFuture;
use futures::future::{MapErr, TryFutureExt as _};
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, Transport, TransportError, TransportEvent};
use parking_lot::Mutex;

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
    #[error(transparent)]
    Inner(E),
}

/// A transport that dials only what the [`Policy`] allows, on addresses that it resolved itself.
pub(crate) struct Gate<T> {
    inner: Arc<Mutex<T>>,
    carrier: Carrier,
    policy: Arc<Policy>,
    resolver: Arc<dyn Resolve>,
}

impl<T> Gate<T> {
    pub(crate) fn new(inner: T, carrier: Carrier, policy: Arc<Policy>, resolver: Arc<dyn Resolve>) -> Self {
        Self { inner: Arc::new(Mutex::new(inner)), carrier, policy, resolver }
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
    type ListenerUpgrade = MapErr<T::ListenerUpgrade, fn(T::Error) -> GateError<T::Error>>;
    type Dial = BoxFuture<'static, Result<T::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, addr: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.lock().listen_on(id, addr).map_err(|e| e.map(GateError::Inner))
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.lock().remove_listener(id)
    }

    fn dial(&mut self, addr: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        let target = Target::plain(&addr).filter(|target| target.carrier == self.carrier);
        let Some(target) = target else { return Err(TransportError::MultiaddrNotSupported(addr)) };
        let (inner, policy, resolver) = (self.inner.clone(), self.policy.clone(), self.resolver.clone());
        Ok(Box::pin(async move {
            let mut error = GateError::Unresolved;
            for ip in permitted(&target, &policy, &*resolver).await? {
                let dial = inner.lock().dial(target.resolved(ip), opts);
                match dial {
                    Ok(dial) => match dial.await {
                        Ok(output) => return Ok(output),
                        Err(e) => error = GateError::Inner(e),
                    },
                    Err(TransportError::Other(e)) => error = GateError::Inner(e),
                    Err(TransportError::MultiaddrNotSupported(_)) => {}
                }
            }
            Err(error)
        }))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let mut inner = self.inner.lock();
        Pin::new(&mut *inner).poll(cx).map(|event| {
            event
                .map_upgrade(|upgrade| {
                    upgrade.map_err(GateError::Inner as fn(T::Error) -> GateError<T::Error>)
                })
                .map_err(GateError::Inner)
        })
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
