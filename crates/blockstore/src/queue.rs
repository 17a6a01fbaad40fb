//! What the writer is asked to do, in order, bounded in bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use floe_core::{Block, Cid};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use uuid::Uuid;

use crate::error::Error;
use crate::holds::Holds;
use crate::limits;
use crate::record::{Key, Loc, Member, Record};
use crate::tables::Freed;
use crate::ticket::Sender;

/// An answer that gives the claims back where they did not reach the log.
pub(crate) type Extended = Result<(), (Error, Holds)>;

/// One operation of the writer.
pub(crate) enum Op {
    /// Adds to a manifest.
    Extend(Extend),
    /// Lets go of a manifest.
    Release { id: Uuid, done: Sender<Result<(), Error>> },
    /// Writes a good copy of a block that is damaged or missing.
    Repair { block: Block, done: Sender<Result<(), Error>>, permit: OwnedSemaphorePermit },
    /// Counts chunks of a released manifest down. Answers with what died.
    Step { id: Uuid, chunks: Vec<(u64, Vec<Member>)>, done: Sender<Result<Vec<Freed>, Error>> },
    /// Frees blocks that nobody counts.
    Reap { hashes: Vec<Key>, done: Sender<Result<Vec<Freed>, Error>> },
    /// A manifest whose chunks are all counted down.
    Finish { id: Uuid, done: Sender<Result<(), Error>> },
    /// Records of the pack `from` that is being compacted, with where they were.
    Copy { from: u32, records: Vec<(Record, Bytes, Loc)>, done: Sender<Result<(), Error>> },
    /// Bytes of a block in a pack that goes away are bad.
    Displace { hash: Key, from: Loc, done: Sender<Result<(), Error>> },
    /// Puts a block back that the index lost.
    Restore { hash: Key, loc: Loc, len: u32, done: Sender<Result<(), Error>> },
    /// Begins a new pack.
    Roll { done: Sender<Result<(), Error>> },
    /// Ends the pack that compaction fills, so that it can have holes.
    SealCopies { done: Sender<Result<(), Error>> },
    /// Writes the index down.
    Checkpoint { done: Sender<Result<(), Error>> },
    /// Remembers that a block is damaged.
    Damaged { hash: Key },
    /// Ends the writer.
    Stop,
}

/// What is added to a manifest, in one group.
pub(crate) struct Extend {
    pub(crate) id: Uuid,
    pub(crate) root: Cid,
    pub(crate) blocks: Vec<Block>,
    pub(crate) holds: Holds,
    pub(crate) frontier: Option<Bytes>,
    pub(crate) seal: bool,
    pub(crate) permit: Option<OwnedSemaphorePermit>,
    pub(crate) done: Sender<Extended>,
}

impl Op {
    /// Bytes it will add to the log, roughly.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Extend(x) => {
                x.blocks.iter().map(|b| b.data().len() + 100).sum::<usize>()
                    + x.frontier.as_ref().map_or(0, Bytes::len)
            }
            Self::Repair { block, .. } => block.data().len(),
            _ => 0,
        }
    }

    /// Whether it may share a group with others: the rest depends on the tables as they are.
    pub(crate) fn is_data(&self) -> bool {
        matches!(self, Self::Extend(_) | Self::Release { .. } | Self::Repair { .. })
    }

    /// Answers without doing it.
    pub(crate) fn refuse(self, error: Error) {
        match self {
            Self::Extend(x) => x.done.send(Err((error, x.holds))),
            Self::Release { done, .. } | Self::Repair { done, .. } | Self::Finish { done, .. } => {
                done.send(Err(error))
            }
            Self::Copy { done, .. } | Self::Displace { done, .. } | Self::Restore { done, .. } => {
                done.send(Err(error));
            }
            Self::Roll { done } | Self::SealCopies { done } | Self::Checkpoint { done } => {
                done.send(Err(error));
            }
            Self::Step { done, .. } | Self::Reap { done, .. } => done.send(Err(error)),
            Self::Damaged { .. } | Self::Stop => {}
        }
    }
}

pub(crate) struct Queue {
    ops: Mutex<Inner>,
    ready: Condvar,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    ops: VecDeque<Op>,
    closed: bool,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Self {
            ops: Mutex::default(),
            ready: Condvar::new(),
            room: Arc::new(Semaphore::new(limits::QUEUE_BYTES)),
        }
    }

    /// Waits for room for `bytes`. More than the whole queue counts as the whole queue. Cancel safe.
    pub(crate) async fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let n = u32::try_from(bytes.clamp(1, limits::QUEUE_BYTES)).expect("the queue is smaller than 4 GiB");
        if self.room.available_permits() < n as usize {
            limits::hit("blockstore_queue_bytes");
        }
        self.room.clone().acquire_many_owned(n).await.map_err(|_| Error::Closed)
    }

    /// Hands an operation over, or refuses it where the store is closed.
    pub(crate) fn push(&self, op: Op) {
        let mut inner = self.ops.lock();
        if inner.closed {
            drop(inner);
            op.refuse(Error::Closed);
            return;
        }
        inner.ops.push_back(op);
        drop(inner);
        self.ready.notify_one();
    }

    /// A note that nobody waits for: lost where the store is closed.
    pub(crate) fn push_note(&self, op: Op) {
        self.push(op);
    }

    /// The next operations: one by itself, or data operations up to a group. Empty after `patience`.
    pub(crate) fn take(&self, patience: Duration) -> Vec<Op> {
        let mut inner = self.ops.lock();
        if inner.ops.is_empty() && !inner.closed {
            self.ready.wait_for(&mut inner, patience);
        }
        let mut out = Vec::new();
        let mut bytes = 0;
        while let Some(op) = inner.ops.front() {
            let fits =
                out.is_empty() || bytes + op.bytes() <= limits::GROUP_BYTES && out.len() < limits::GROUP_OPS;
            if !fits || !out.is_empty() && !op.is_data() {
                break;
            }
            let alone = !op.is_data();
            bytes += op.bytes();
            out.extend(inner.ops.pop_front());
            if alone {
                break;
            }
        }
        out
    }

    /// Refuses everything from now on, what waits included.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.ops.lock();
            inner.closed = true;
            std::mem::take(&mut inner.ops)
        };
        self.room.close();
        self.ready.notify_all();
        waiting.into_iter().for_each(|op| op.refuse(Error::Closed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_bounded_in_bytes() {
        let queue = Queue::new();
        let whole = u32::try_from(limits::QUEUE_BYTES).unwrap();
        for (n, left) in [(whole - 1, 1), (whole, 0)] {
            let permit = queue.room.clone().try_acquire_many_owned(n).unwrap();
            assert_eq!(queue.room.available_permits(), left);
            assert!(queue.room.clone().try_acquire_many_owned(left as u32 + 1).is_err());
            drop(permit);
        }
        assert_eq!(queue.room.available_permits(), limits::QUEUE_BYTES);
    }

    #[test]
    fn a_closed_queue_refuses() {
        let queue = Queue::new();
        let (done, ticket) = crate::ticket::ticket();
        queue.push(Op::Roll { done });
        queue.close();
        assert!(matches!(ticket.wait(), Some(Err(Error::Closed))));
        let (done, ticket) = crate::ticket::ticket();
        queue.push(Op::Roll { done });
        assert!(matches!(ticket.wait(), Some(Err(Error::Closed))));
    }
}
