//! What the network tells: peers that connect, and peers that have a parked root. Either makes the pins due
//! that wait for it.
//!
//! Behind a NAT this is how most pins begin: Floe cannot dial the origins, and the client dials the delegates
//! only after its request was answered.

use std::sync::Arc;

use floe_core::ports::{EventSink, NetworkEvent};
use tokio::sync::mpsc;

use crate::context::Context;
use crate::limits;

const NAME: &str = "waker";

/// Subscribes. The sink runs on the network's task and only passes the event on.
pub(crate) fn subscribe(ctx: &Context) -> mpsc::Receiver<NetworkEvent> {
    let (sender, events) = mpsc::channel(limits::NETWORK_EVENTS);
    ctx.network.subscribe(sink(sender));
    events
}

fn sink(sender: mpsc::Sender<NetworkEvent>) -> EventSink {
    Box::new(move |event| {
        if let Err(mpsc::error::TrySendError::Full(_)) = sender.try_send(event) {
            limits::hit("network_events");
        }
    })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::NETWORK_EVENTS;
    use crate::limits::testing::hits;

    #[test]
    fn events_that_do_not_fit_are_dropped_and_counted() {
        for (told, dropped) in [(NETWORK_EVENTS - 1, 0), (NETWORK_EVENTS, 0), (NETWORK_EVENTS + 1, 1)] {
            let (sender, mut events) = mpsc::channel(NETWORK_EVENTS);
            let sink = sink(sender);
            let tell = || (0..told).for_each(|_| sink(NetworkEvent::Connected { peer_id: "p".to_owned() }));
            assert_eq!(hits("network_events", tell), dropped, "{told}");
            drop(sink);
            assert_eq!(std::iter::from_fn(|| events.try_recv().ok()).count() as u64, told as u64 - dropped);
        }
    }
}
