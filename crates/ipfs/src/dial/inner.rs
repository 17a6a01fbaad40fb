//! The transport below a filter: shared between the filter and the dials that it has begun, which look names up
//! before they dial.
//!
//! A name stands for addresses, and a `/dnsaddr` for names. Whatever a dial meets on its way down, it tries so many
//! addresses in all: [`bounded`] begins the count, [`may_try`] goes on with it.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use floe_core::Clock;
use futures::StreamExt as _;
use futures::future::{MapErr, TryFutureExt as _};
use futures::stream::FuturesUnordered;
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, PortUse, Transport, TransportError, TransportEvent};
use parking_lot::Mutex;

use crate::limits::{self, MAX_ADDRESSES_PER_NAME, NEXT_ADDRESS_AFTER};

tokio::task_local! {
    /// Addresses that this dial may still try. The transports in between have no place for it in their calls.
    static LEFT: Cell<usize>;
}

/// Lets `dial` try so many addresses and no more, whatever names it meets.
pub(super) fn bounded<T>(dial: impl Future<Output = T>) -> impl Future<Output = T> {
    LEFT.scope(Cell::new(MAX_ADDRESSES_PER_NAME), dial)
}

/// Counts an address that is about to be dialled. Whether it may be.
pub(super) fn may_try() -> bool {
    // A gate by itself, in a test: there is one name, whose addresses are bounded where they are found.
    let left = LEFT.try_with(|left| left.replace(left.get().saturating_sub(1))).unwrap_or(1);
    if left == 0 {
        limits::hit("dial_addresses");
    }
    left > 0
}

/// A shared transport. `wrap`, in what it does, makes the filter's errors of the transport's.
pub(super) struct Inner<T>(Arc<Mutex<T>>);

impl<T> Clone for Inner<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// How an inbound connection is set up, with the filter's errors.
pub(super) type Upgrade<T, E> = MapErr<<T as Transport>::ListenerUpgrade, fn(<T as Transport>::Error) -> E>;

/// A dial, with the filter's errors.
pub(super) type Dial<T, E> = MapErr<<T as Transport>::Dial, fn(<T as Transport>::Error) -> E>;

impl<T: Transport + Unpin> Inner<T> {
    pub(super) fn new(transport: T) -> Self {
        Self(Arc::new(Mutex::new(transport)))
    }

    pub(super) fn listen_on<E>(
        &self,
        id: ListenerId,
        address: Multiaddr,
        wrap: fn(T::Error) -> E,
    ) -> Result<(), TransportError<E>> {
        self.0.lock().listen_on(id, address).map_err(|error| error.map(wrap))
    }

    pub(super) fn remove_listener(&self, id: ListenerId) -> bool {
        self.0.lock().remove_listener(id)
    }

    pub(super) fn dial<E>(
        &self,
        address: Multiaddr,
        opts: DialOpts,
        wrap: fn(T::Error) -> E,
    ) -> Result<Dial<T, E>, TransportError<E>> {
        let dial = self.0.lock().dial(address, opts).map_err(|error| error.map(wrap))?;
        Ok(dial.map_err(wrap))
    }

    /// Dials the addresses of one name: the next one as soon as those before it failed or were silent for
    /// [`NEXT_ADDRESS_AFTER`], so that a silent one does not use up the time of the others. The first that answers is
    /// taken; else gives the last error, `none` where nothing could be dialled.
    pub(super) async fn dial_first<E>(
        &self,
        clock: &dyn Clock,
        addresses: impl IntoIterator<Item = Multiaddr>,
        opts: DialOpts,
        none: E,
        wrap: fn(T::Error) -> E,
    ) -> Result<T::Output, E>
    where
        T::Error: 'static,
    {
        let mut addresses = addresses.into_iter().fuse();
        let mut dials = FuturesUnordered::new();
        let mut last = none;
        loop {
            let next = addresses.next();
            let is_last = next.is_none();
            dials.extend(next.map(|address| self.dial_one(address, opts)));
            let dialled = tokio::select! {
                biased;
                dialled = dials.next() => dialled,
                () = clock.sleep(NEXT_ADDRESS_AFTER), if !is_last => continue,
            };
            match dialled {
                Some(Some(Ok(output))) => return Ok(output),
                Some(Some(Err(error))) => last = wrap(error),
                Some(None) => {}
                None => return Err(last),
            }
        }
    }

    /// Dials one address; `None` where the transport does not dial such addresses.
    pub(super) async fn dial_one(
        &self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Option<Result<T::Output, T::Error>>
    where
        T::Error: 'static,
    {
        let dialled = self.dial_once(&address, opts).await;
        // From the port that is listened on, which another program's connection may have been given too. The library
        // goes over to a new port by itself only where the two ends have a connection already.
        if opts.port_use == PortUse::Reuse && matches!(&dialled, Some(Err(e)) if port_is_taken(e)) {
            return self.dial_once(&address, DialOpts { port_use: PortUse::New, ..opts }).await;
        }
        dialled
    }

    async fn dial_once(&self, address: &Multiaddr, opts: DialOpts) -> Option<Result<T::Output, T::Error>> {
        let dial = self.0.lock().dial(address.clone(), opts);
        match dial {
            Ok(dial) => Some(dial.await),
            Err(TransportError::Other(error)) => Some(Err(error)),
            Err(TransportError::MultiaddrNotSupported(_)) => None,
        }
    }

    pub(super) fn poll<E>(
        &self,
        cx: &mut Context<'_>,
        wrap: fn(T::Error) -> E,
    ) -> Poll<TransportEvent<Upgrade<T, E>, E>> {
        let mut transport = self.0.lock();
        let event = Pin::new(&mut *transport).poll(cx);
        event.map(|event| event.map_upgrade(|upgrade| upgrade.map_err(wrap)).map_err(wrap))
    }
}

/// Whether the local port could not be used.
fn port_is_taken(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
            return true;
        }
        cause = error.source();
    }
    false
}
