//! The handler without a connection: what it says to the behaviour.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use floe_core::{ManualClock, Timestamp};
use libp2p::PeerId;
use libp2p::swarm::handler::{ConnectionEvent, DialUpgradeError};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, ConnectionId, StreamUpgradeError};

use super::{GaveUp, Handler};
use crate::client::Client;
use crate::config::Config;
use crate::limits::OPEN_ATTEMPTS;
use crate::server::Server;
use crate::shared::{Link, Shared};
use crate::testing::Store;

/// The story: the connection's own task forgot the peer. Where the behaviour was just taking in another connection of it,
/// that one's peer was forgotten after it had been made known, and nothing was sent or taken on it.
#[tokio::test]
async fn a_connection_that_is_given_up_is_the_behaviours_to_forget() {
    let clock = Arc::new(ManualClock::new(Timestamp::from_millis(0)));
    let server = Server::new(&Config::default(), [1; 32]);
    let shared = Arc::new(Shared::new(Client::default(), server, Arc::new(Store::default()), clock));
    let link = Arc::new(Link::new(PeerId::random(), ConnectionId::new_unchecked(1)));
    shared.connected(link.clone());
    let peers = || shared.peek_client(|client| client.counts().0);
    let mut handler = Handler::new(shared.clone(), link.clone());
    for attempt in 1..=OPEN_ATTEMPTS + 1 {
        if attempt <= OPEN_ATTEMPTS {
            let error = StreamUpgradeError::NegotiationFailed;
            handler
                .on_connection_event(ConnectionEvent::DialUpgradeError(DialUpgradeError { info: (), error }));
        }
        let said = match handler.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(GaveUp)) => true,
            Poll::Ready(other) => panic!("{other:?}"),
            Poll::Pending => false,
        };
        assert_eq!((said, peers()), (attempt == OPEN_ATTEMPTS, 1), "{attempt}");
    }
    shared.gave_up(&link.peer, link.connection);
    assert_eq!(peers(), 0);
}
