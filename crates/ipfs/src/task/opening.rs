//! Streams that wait for a connection to their peer.
//!
//! A peer is dialled at the addresses that came with the request; where there is none, or none that may be dialled, the DHT
//! is asked for it once. What the operator said may be anywhere, what others said passes the dial filter.

use std::collections::HashMap;

use libp2p::kad::{GetClosestPeersError, GetClosestPeersOk, GetClosestPeersResult};
use libp2p::swarm::DialError;
use libp2p::{Multiaddr, PeerId};

use super::{Task, explain};
use crate::dial::origins;
use crate::dial::policy::Asker;
use crate::limits::{self, MAX_OPENING, MAX_PEER_ADDRESSES};
use crate::streams::{Request, StreamError};

/// What waits for one peer.
#[derive(Default)]
pub(crate) struct Waiting {
    requests: Vec<Request>,
    /// Whether the DHT was asked where it is.
    looked: bool,
}

/// By peer.
pub(crate) type Opening = HashMap<PeerId, Waiting>;

impl Task {
    /// Opens a stream, now or once its peer is connected.
    pub(super) fn on_open(&mut self, request: Request, addresses: Vec<(Multiaddr, bool)>) {
        let peer = request.peer;
        if self.swarm.is_connected(&peer) {
            return self.swarm.behaviour_mut().streams.open(request);
        }
        self.forget_given_up();
        let waiting: usize = self.state.opening.values().map(|waiting| waiting.requests.len()).sum();
        if waiting >= MAX_OPENING {
            limits::hit("opening_streams");
            return request.fail(StreamError::Busy);
        }
        let addresses = self.permitted(peer, addresses);
        self.state.opening.entry(peer).or_default().requests.push(request);
        self.dial(peer, addresses);
    }

    /// Of the addresses of a peer those that may be dialled.
    fn permitted(&self, peer: PeerId, addresses: Vec<(Multiaddr, bool)>) -> Vec<Multiaddr> {
        let named = addresses.into_iter().filter_map(|(address, is_operators)| {
            let address = address.with_p2p(peer).ok()?;
            if is_operators {
                self.policy.permit_derived(&address);
                return Some(address);
            }
            (origins::dialable(&address, Asker::Stranger, &self.policy) == Ok(true)).then_some(address)
        });
        named.take(MAX_PEER_ADDRESSES).collect()
    }

    fn forget_given_up(&mut self) {
        self.state.opening.retain(|_, waiting| {
            waiting.requests.retain(|request| !request.is_given_up());
            !waiting.requests.is_empty()
        });
    }

    /// A peer is connected: whatever waits for it goes on.
    pub(super) fn open_waiting(&mut self, peer: PeerId) {
        let Some(waiting) = self.state.opening.remove(&peer) else { return };
        let streams = &mut self.swarm.behaviour_mut().streams;
        waiting.requests.into_iter().for_each(|request| streams.open(request));
    }

    /// A dial failed. Where there was nothing to dial, the DHT is asked once (by the caller, for all who search).
    pub(super) fn opening_failed(&mut self, peer: PeerId, error: &DialError, is_looked_for: bool) {
        if matches!(error, DialError::NoAddresses)
            && is_looked_for
            && let Some(waiting) = self.state.opening.get_mut(&peer)
            && !std::mem::replace(&mut waiting.looked, true)
        {
            return;
        }
        let text = explain(peer, error);
        let failure = |text: String| match error {
            DialError::NoAddresses => StreamError::Unresolvable(text),
            _ => StreamError::Dial(text),
        };
        let Some(waiting) = self.state.opening.remove(&peer) else { return };
        waiting.requests.into_iter().for_each(|request| request.fail(failure(text.clone())));
    }

    /// The DHT was asked for a peer: it is dialled where it was named.
    pub(super) fn on_peer_looked_up(&mut self, peer: PeerId, result: GetClosestPeersResult) {
        if !self.state.opening.contains_key(&peer) {
            return;
        }
        let (Ok(GetClosestPeersOk { peers, .. }) | Err(GetClosestPeersError::Timeout { peers, .. })) = result;
        let found = peers.into_iter().find(|found| found.peer_id == peer).map(|found| found.addrs);
        let found = found.unwrap_or_default().into_iter().map(|address| (address, false)).collect();
        let addresses = self.permitted(peer, found);
        self.dial(peer, addresses);
    }
}
