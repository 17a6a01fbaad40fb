//! The answer to one operation of the writer, to be awaited or waited for.
//!
//! `claim` blocks a thread and `put` awaits, and both may have to wait for the same operation, so a channel that
//! can only do one of the two does not serve. Dropping a ticket does not stop the operation.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Condvar, Mutex};

struct Slot<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

enum State<T> {
    Waiting(Option<Waker>),
    Ready(T),
    Taken,
    /// The sender went away without an answer.
    Dropped,
}

/// Where the answer goes.
pub(crate) struct Sender<T>(Arc<Slot<T>>);

/// Where it comes out. `None`: the store was closed before it got to the operation.
pub(crate) struct Ticket<T>(Arc<Slot<T>>);

pub(crate) fn ticket<T>() -> (Sender<T>, Ticket<T>) {
    let slot = Arc::new(Slot { state: Mutex::new(State::Waiting(None)), done: Condvar::new() });
    (Sender(slot.clone()), Ticket(slot))
}

impl<T> Sender<T> {
    pub(crate) fn send(self, answer: T) {
        self.finish(State::Ready(answer));
    }

    fn finish(&self, end: State<T>) {
        let mut state = self.0.state.lock();
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = end;
            drop(state);
            self.0.done.notify_all();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.finish(State::Dropped);
    }
}

impl<T> Ticket<T> {
    /// Blocks until the answer is there.
    pub(crate) fn wait(self) -> Option<T> {
        let mut state = self.0.state.lock();
        while matches!(*state, State::Waiting(_)) {
            self.0.done.wait(&mut state);
        }
        take(&mut state)
    }
}

fn take<T>(state: &mut State<T>) -> Option<T> {
    match std::mem::replace(state, State::Taken) {
        State::Ready(answer) => Some(answer),
        _ => None,
    }
}

impl<T> Future for Ticket<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.state.lock();
        if let State::Waiting(waker) = &mut *state {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(take(&mut state))
    }
}
