//! The node.

use floe_core::Cid;
use floe_core::clock::BoxFuture;
use floe_core::ports::{EventSink, Exchange, Network, NetworkStatus, ReadError, Session, SessionHints};

use crate::{Components, Error, Settings};

/// A running node. Cheap to clone; the last clone to go does not stop it: call [`Node::stop`].
#[derive(Clone)]
pub struct Node {}

impl Node {
    /// Starts the node; returns once every listener is up.
    ///
    /// # Errors
    /// [`Error`]; nothing is left running.
    pub async fn start(_settings: Settings, _components: Components) -> Result<Self, Error> {
        todo!()
    }

    /// Stops the node: connections are closed, tables synced. Bounded to a few seconds; idempotent.
    pub async fn stop(&self) {
        todo!()
    }

    /// Completes when the node has ended without having been told to, with the reason: the process should end.
    /// Cancel safe.
    pub async fn failed(&self) -> String {
        todo!()
    }
}

impl Exchange for Node {
    fn open(&self, _hints: SessionHints) -> Box<dyn Session> {
        todo!()
    }
    fn park(&self, _root: &Cid) {
        todo!()
    }
    fn unpark(&self, _root: &Cid) {
        todo!()
    }
}

impl Network for Node {
    fn provide<'a>(&'a self, _roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        todo!()
    }
    fn unprovide<'a>(&'a self, _roots: &'a [Cid]) -> BoxFuture<'a, Result<(), ReadError>> {
        todo!()
    }
    fn delegates(&self, _local_request: bool) -> Vec<String> {
        todo!()
    }
    fn peer_id(&self) -> String {
        todo!()
    }
    fn subscribe(&self, _sink: EventSink) {
        todo!()
    }
    fn status(&self) -> NetworkStatus {
        todo!()
    }
}
