//! Time comes in as an argument.
//!
//! [`Clock`] is the port; the system clock lives in the binary, [`ManualClock`] is for tests and the simulator.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since the Unix epoch, UTC. Everything Floe stores or shows has this precision, because
/// clients page by it (`created` with exactly three digits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Later by `by`; stops at the largest value.
    pub fn after(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Parses RFC 3339 text. Digits below the millisecond are cut off.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        u64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok().map(Self)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with exactly three digits: `2026-01-02T03:04:05.678Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Year 9999 is the last that RFC 3339 can write.
        let millis = self.0.min(253_402_300_799_999);
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
            .expect("years up to 9999 are in range");
        let (y, m, d) = (at.year(), u8::from(at.month()), at.day());
        let (h, min, s, ms) = (at.hour(), at.minute(), at.second(), at.millisecond());
        write!(f, "{y:04}-{m:02}-{d:02}T{h:02}:{min:02}:{s:02}.{ms:03}Z")
    }
}

/// A boxed future, as ports return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump, also backwards: use it for what is shown and stored, not to measure.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary start; never goes backwards. For deadlines and durations.
    fn monotonic(&self) -> Duration;
    /// Completes `for_` later by the monotonic clock. Dropping it is safe.
    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()>;
}

/// A clock that stands still until it is moved.
#[derive(Clone, Default)]
pub struct ManualClock(Arc<Mutex<ManualState>>);

#[derive(Default)]
struct ManualState {
    start: u64,
    elapsed: Duration,
    sleepers: Vec<(Duration, Waker)>,
}

impl ManualClock {
    /// A clock that shows `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(ManualState { start: start.0, ..ManualState::default() })))
    }

    /// Moves both clocks on and wakes who is due.
    pub fn advance(&self, by: Duration) {
        let due = {
            let mut state = self.0.lock();
            state.elapsed += by;
            let now = state.elapsed;
            let (due, rest) = std::mem::take(&mut state.sleepers).into_iter().partition(|(at, _)| *at <= now);
            state.sleepers = rest;
            due
        };
        let due: Vec<(Duration, Waker)> = due;
        due.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Sets the wall clock alone, as an operator or NTP would.
    pub fn jump_to(&self, wall: Timestamp) {
        let mut state = self.0.lock();
        let elapsed = u64::try_from(state.elapsed.as_millis()).unwrap_or(u64::MAX);
        state.start = wall.0.saturating_sub(elapsed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let state = self.0.lock();
        Timestamp(state.start).after(state.elapsed)
    }

    fn monotonic(&self) -> Duration {
        self.0.lock().elapsed
    }

    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        let clock = self.clone();
        let until = self.monotonic() + for_;
        Box::pin(std::future::poll_fn(move |cx| {
            let mut state = clock.0.lock();
            if state.elapsed >= until {
                return Poll::Ready(());
            }
            state.sleepers.push((until, cx.waker().clone()));
            Poll::Pending
        }))
    }
}
