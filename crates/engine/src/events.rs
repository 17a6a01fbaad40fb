//! What the network tells: peers that connect, and peers that have a parked root. Either makes the pins due
//! that wait for it.
//!
//! Behind a NAT this is how most pins begin: Floe cannot dial the origins, and the client dials the delegates
//! only after its request was answered.

use std::sync::Arc;

use floe_core::ports::NetworkEvent;
use tokio::sync::mpsc;

use crate::context::Context;
use crate::limits;

const NAME: &str = "waker";

/// Subscribes. The sink runs on the network's task and only passes the event on.
pub(crate) fn subscribe(ctx: &Context) -> mpsc::Receiver<NetworkEvent> {
    let (sender, events) = mpsc::channel(limits::NETWORK_EVENTS);
    ctx.network.subscribe(Box::new(move |event| {
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(event) {
            limits::hit("network_events");
        }
    }));
    events
}

/// Runs until the engine stops.
pub(crate) async fn run(ctx: Arc<Context>, mut events: mpsc::Receiver<NetworkEvent>) {
    ctx.board.state(NAME, "listening", 0);
    loop {
        let event = tokio::select! {
            biased;
            () = ctx.stop.cancelled() => break,
            event = events.recv() => event,
        };
        let Some(event) = event else { break };
        let (peer, root) = match &event {
            NetworkEvent::Connected { peer_id } => (Some(peer_id.as_str()), None),
            NetworkEvent::Offered { root, .. } => (None, Some(root)),
        };
        match ctx.records.wake(peer, root).await {
            Ok(0) => {
                // Offered, but nobody waits for it (any more): no need to go on asking.
                root.into_iter().for_each(|root| ctx.exchange.unpark(root));
            }
            Ok(woken) => {
                tracing::debug!(woken, ?event, "{woken} parked pins wake");
                ctx.fetch_due.notify_one();
            }
            Err(error) => ctx.board.error(NAME, &error),
        }
        ctx.board.state(NAME, "listening", events.len() as u64);
    }
    ctx.board.state(NAME, "stopped", 0);
}

/// Asks the network again for the roots that were parked when the node stopped.
pub(crate) async fn park_again(ctx: &Context) -> Result<(), floe_records::Error> {
    for root in ctx.records.parked_roots(limits::PARKED_ROOTS).await? {
        ctx.exchange.park(&root);
    }
    Ok(())
}
