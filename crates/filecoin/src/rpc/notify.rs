//! The head as it moves: the one subscription.
//!
//! Each has a WebSocket of its own, because cancelling needs an id that jsonrpsee does not send: dropping
//! [`HeadChanges`] drops the connection, and the node ends with it. A node that closes the subscription says so in a frame
//! that jsonrpsee does not pass on, and a connection may die without a word: silence of five epochs is the end. Whoever
//! reads it connects anew and asks for the head, because what came in between is lost.

use std::time::Duration;

use floe_core::Clock;
use futures::future::{Either, select};
use jsonrpsee_core::client::{Subscription, SubscriptionClientT as _};
use jsonrpsee_core::params::ArrayParams;
use jsonrpsee_ws_client::{WsClient, WsClientBuilder};

use super::answers::{HeadChange, HeadChangeKind};
use super::client::{causes, headers, tls};
use super::{Endpoint, EndpointError, methods};
use crate::limits::{
    self, CALL_TIMEOUT, CONNECT_TIMEOUT, MAX_ANSWER_BYTES, MAX_HEAD_CHANGES, MAX_REQUEST_BYTES,
    NOTIFY_BUFFER, NOTIFY_SILENCE,
};

/// Why the subscription gives no more. To all of them the answer is: connect anew, and ask for the head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotifyError {
    /// The endpoint cannot be used.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No connection, or no subscription on it.
    #[error("cannot watch the head: {0}")]
    Refused(String),
    /// Nothing came for five epochs.
    #[error("the Lotus node has been silent about its head for {NOTIFY_SILENCE:?}")]
    Silent,
    /// The connection ended, or more came than was read.
    #[error("the watch on the head ended")]
    Ended,
    /// What came is no change of the head.
    #[error("the Lotus node sent something else than changes of its head: {0}")]
    Malformed(String),
}

/// A subscription to the head. Drop it to end it.
#[derive(Debug)]
pub struct HeadChanges {
    changes: Subscription<Vec<HeadChange>>,
    endpoint: Endpoint,
    // Holds the connection.
    _client: WsClient,
    began: bool,
    /// When it last said something, by the monotonic clock: whoever waits again and again waits for the same end.
    heard: Duration,
}

impl HeadChanges {
    /// Connects and subscribes. The first message that [`HeadChanges::next`] gives is the head as it is.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub async fn subscribe(endpoint: &Endpoint, clock: &dyn Clock) -> Result<Self, NotifyError> {
        let client = WsClientBuilder::default()
            .max_request_size(MAX_REQUEST_BYTES)
            .max_response_size(MAX_ANSWER_BYTES)
            .request_timeout(CALL_TIMEOUT)
            .connection_timeout(CONNECT_TIMEOUT)
            // A redirection would take the token to another host. jsonrpsee counts attempts: one, and none after it.
            .max_redirections(1)
            .max_buffer_capacity_per_subscription(NOTIFY_BUFFER)
            .set_headers(headers(endpoint)?)
            .with_custom_cert_store(tls()?)
            .build(endpoint.websocket())
            .await
            .map_err(|e| NotifyError::Refused(causes(&e, endpoint)))?;
        let method = methods::CHAIN_NOTIFY.name;
        let changes = client.subscribe(method, ArrayParams::new(), "xrpc.cancel").await;
        let changes = changes.map_err(|e| NotifyError::Refused(causes(&e, endpoint)))?;
        Ok(Self {
            changes,
            endpoint: endpoint.clone(),
            _client: client,
            began: false,
            heard: clock.monotonic(),
        })
    }

    /// The next changes, in order. Cancel safe. After an error the subscription is of no use.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub async fn next(&mut self, clock: &dyn Clock) -> Result<Vec<HeadChange>, NotifyError> {
        let left = self.heard.saturating_add(NOTIFY_SILENCE).saturating_sub(clock.monotonic());
        let next = match select(Box::pin(self.changes.next()), clock.sleep(left)).await {
            Either::Left((next, _)) => next,
            Either::Right(_) => return Err(NotifyError::Silent),
        };
        let changes = next
            .ok_or(NotifyError::Ended)?
            .map_err(|e| NotifyError::Malformed(causes(&e, &self.endpoint)))?;
        self.check(&changes)?;
        (self.began, self.heard) = (true, clock.monotonic());
        Ok(changes)
    }

    fn check(&self, changes: &[HeadChange]) -> Result<(), NotifyError> {
        if changes.len() > MAX_HEAD_CHANGES {
            limits::hit("head_changes");
            return Err(NotifyError::Malformed(format!("{} changes at once", changes.len())));
        }
        let currents = changes.iter().filter(|change| change.kind == HeadChangeKind::Current).count();
        let fits = if self.began { currents == 0 } else { currents == 1 && changes.len() == 1 };
        if fits {
            Ok(())
        } else {
            Err(NotifyError::Malformed("the head as it is belongs at the start alone".into()))
        }
    }
}
