//! Deadlines by the node's clock.

use std::time::Duration;

use floe_core::Clock;

/// `what`, or `None` where it takes longer than `for_`. Cancel safe as far as `what` is.
pub(crate) async fn within<T>(clock: &dyn Clock, for_: Duration, what: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = what => Some(done),
        () = clock.sleep(for_) => None,
    }
}
