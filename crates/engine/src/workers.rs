//! The list of background workers that `floe status` shows: each says what it does, what went wrong last, and
//! how much waits.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// A background worker, as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: &'static str,
    /// What it does now.
    pub state: String,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// Work waiting.
    pub queue: u64,
}

/// All workers' last words.
#[derive(Default)]
pub(crate) struct Board(Mutex<BTreeMap<&'static str, WorkerStatus>>);

impl Board {
    /// What `name` does now, and how much waits.
    pub(crate) fn state(&self, name: &'static str, state: impl Into<String>, queue: u64) {
        self.update(name, |worker| (worker.state, worker.queue) = (state.into(), queue));
    }

    /// What went wrong. It stays until the next thing does.
    pub(crate) fn error(&self, name: &'static str, error: impl ToString) {
        self.update(name, |worker| worker.last_error = Some(error.to_string()));
    }

    fn update(&self, name: &'static str, change: impl FnOnce(&mut WorkerStatus)) {
        let mut workers = self.0.lock();
        change(workers.entry(name).or_insert_with(|| WorkerStatus {
            name,
            state: "starting".to_owned(),
            last_error: None,
            queue: 0,
        }));
    }

    pub(crate) fn all(&self) -> Vec<WorkerStatus> {
        self.0.lock().values().cloned().collect()
    }
}
