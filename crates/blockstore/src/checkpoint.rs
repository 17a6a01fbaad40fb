//! Writes the index down in the background.
//!
//! The packs are synced before the tables know of a record, so a frozen layer never names what is not durable.
//! A full disk is waited out: the layer stays in memory and the writer goes on until the next one is full too.
//! Any other failure is tried again and then ends the store, because the next open makes a new index.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::index::{Batch, IndexError};
use crate::limits;
use crate::shared::{Shared, index_error};
use crate::ticket::Sender;

/// Between tries on a full disk.
const RETRY: Duration = Duration::from_millis(50);

type Done = Sender<Result<(), Error>>;

#[derive(Default)]
pub(crate) struct Checkpointer {
    state: Mutex<Job>,
    changed: Condvar,
}

#[derive(Default)]
struct Job {
    next: Option<(Arc<Batch>, Option<Done>)>,
    busy: bool,
    stopped: bool,
}

impl Checkpointer {
    /// Waits until nothing is being written. `false`: it has stopped.
    pub(crate) fn wait_idle(&self) -> bool {
        let mut job = self.state.lock();
        while job.busy && !job.stopped {
            self.changed.wait(&mut job);
        }
        !job.stopped
    }

    pub(crate) fn start(&self, batch: Arc<Batch>, done: Option<Done>) {
        let mut job = self.state.lock();
        job.next = Some((batch, done));
        job.busy = true;
        self.changed.notify_all();
    }

    /// Ends the thread; what it writes is finished unless the disk is full.
    pub(crate) fn stop(&self) {
        self.state.lock().stopped = true;
        self.changed.notify_all();
    }

    pub(crate) fn run(&self, shared: &Shared) {
        loop {
            let (batch, done) = {
                let mut job = self.state.lock();
                loop {
                    if let Some(next) = job.next.take() {
                        break next;
                    }
                    if job.stopped {
                        return;
                    }
                    self.changed.wait(&mut job);
                }
            };
            let mut done = done;
            let result = self.write(shared, &batch, &mut done);
            if result.is_ok() {
                shared.kv.thaw();
            }
            // Asked-for checkpoints answer after the state says idle, so that the next can start at once.
            self.state.lock().busy = false;
            self.changed.notify_all();
            if let Some(done) = done {
                done.send(result);
            }
        }
    }

    fn write(&self, shared: &Shared, batch: &Batch, done: &mut Option<Done>) -> Result<(), Error> {
        let index = shared.kv.index();
        let (mut failed, mut was_full) = (0, false);
        loop {
            fail::fail_point!("index.apply");
            let error = match index.checkpoint(batch) {
                Ok(()) => {
                    fail::fail_point!("index.checkpoint");
                    if was_full {
                        shared.health.found_space();
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            if matches!(error, IndexError::Full) {
                was_full = true;
                limits::hit("blockstore_checkpoint_disk_full");
                shared.health.give_up_kept(&*shared.disk, &shared.layout);
                shared.health.full(&*shared.disk, &shared.layout, 0);
                // It goes on by itself. Who waits may be the one that could make space.
                if let Some(done) = done.take() {
                    done.send(Err(Error::ReadOnly));
                }
            } else {
                failed += 1;
                tracing::error!("a checkpoint of the block index failed: {error}");
            }
            if let Err(error) = index.reopen() {
                tracing::error!("the block index does not open again: {error}");
                failed += u32::from(!matches!(error, IndexError::Full));
            }
            if failed >= limits::CHECKPOINT_TRIES {
                return Err(shared.health.poison(&shared.layout.root, &index_error(error)));
            }
            let mut job = self.state.lock();
            if job.stopped {
                return Err(index_error(error));
            }
            self.changed.wait_for(&mut job, RETRY);
        }
    }
}
