//! Time limits by the clock that came in.

use std::pin::pin;
use std::time::Duration;

use floe_core::Clock;
use futures::future::{Either, select};

/// What `work` gives, or `None` where it takes longer than `limit`; then it is dropped.
pub(crate) async fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(work), clock.sleep(limit)).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}
