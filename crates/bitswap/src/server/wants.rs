//! The wants of one peer: queued, being read, or standing because the block is not here.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use floe_core::Cid;

use super::job::Task;
use crate::message::{WantEntry, WantKind};

/// The wants of one peer. The owner bounds how many there are.
#[derive(Default)]
pub(super) struct Wants {
    entries: HashMap<Arc<Cid>, Entry>,
    /// In the order of coming. An item counts only while the entry has its number and is queued.
    queue: VecDeque<(Arc<Cid>, u64)>,
    queued: usize,
    standing: BTreeMap<u64, Arc<Cid>>,
}

#[derive(Clone, Copy)]
struct Entry {
    kind: WantKind,
    send_dont_have: bool,
    state: State,
    /// Tells this want from every other one of the server, also from an earlier one for the same CID.
    seq: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Reading,
    Standing,
}

/// A want that was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Removed {
    /// Its number, where it was standing.
    pub(super) standing: Option<u64>,
}

impl Wants {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn contains(&self, cid: &Cid) -> bool {
        self.entries.contains_key(cid)
    }

    pub(super) fn queued(&self) -> usize {
        self.queued
    }

    pub(super) fn has_queued(&self) -> bool {
        self.queued > 0
    }

    #[cfg(test)]
    pub(super) fn queue_len(&self) -> usize {
        self.queue.len()
    }

    /// Wants for blocks that are not here.
    pub(super) fn standing(&self) -> impl Iterator<Item = (&Cid, u64)> {
        self.standing.iter().map(|(seq, cid)| (&**cid, *seq))
    }

    pub(super) fn standing_len(&self) -> usize {
        self.standing.len()
    }

    pub(super) fn oldest_standing(&self) -> Option<Cid> {
        self.standing.values().next().map(|cid| **cid)
    }

    /// Adds a want that is not there.
    pub(super) fn add(&mut self, want: WantEntry, seq: u64) {
        let cid = Arc::new(want.cid);
        let entry = Entry { kind: want.kind, send_dont_have: want.send_dont_have, state: State::Queued, seq };
        self.entries.insert(cid.clone(), entry);
        self.enqueue(cid, seq);
    }

    fn enqueue(&mut self, cid: Arc<Cid>, seq: u64) {
        self.queue.push_back((cid, seq));
        self.queued += 1;
        // Wants that were cancelled leave items behind: swept before they outnumber the rest.
        if self.queue.len() > 64 + 2 * self.entries.len() {
            let entries = &self.entries;
            self.queue.retain(|(cid, seq)| is_queued(entries, cid, *seq));
        }
    }

    /// Removes a want; `None` where there was none.
    pub(super) fn remove(&mut self, cid: &Cid) -> Option<Removed> {
        let entry = self.entries.remove(cid)?;
        self.queued -= usize::from(entry.state == State::Queued);
        self.standing.remove(&entry.seq);
        Some(Removed { standing: (entry.state == State::Standing).then_some(entry.seq) })
    }

    /// Takes up to `most` queued wants to be read.
    pub(super) fn start(&mut self, most: usize) -> Vec<Task> {
        let mut tasks = Vec::with_capacity(most.min(self.queued));
        while tasks.len() < most
            && let Some((cid, seq)) = self.queue.pop_front()
        {
            let Some(entry) = self.entries.get_mut(&cid).filter(|e| e.seq == seq && e.state == State::Queued)
            else {
                continue;
            };
            entry.state = State::Reading;
            self.queued -= 1;
            tasks.push(Task { cid, seq, kind: entry.kind, send_dont_have: entry.send_dont_have });
        }
        tasks
    }

    /// Wants that a job did not get to go first next time.
    pub(super) fn put_back(&mut self, tasks: Vec<Task>) {
        for task in tasks.into_iter().rev() {
            if let Some(entry) = self.reading(&task.cid, task.seq) {
                entry.state = State::Queued;
                self.queued += 1;
                self.queue.push_front((task.cid, task.seq));
            }
        }
    }

    fn reading(&mut self, cid: &Cid, seq: u64) -> Option<&mut Entry> {
        self.entries.get_mut(cid).filter(|entry| entry.seq == seq && entry.state == State::Reading)
    }

    /// A want was answered. Returns whether it was still there.
    pub(super) fn answered(&mut self, cid: &Cid, seq: u64) -> bool {
        self.reading(cid, seq).is_some() && self.entries.remove(cid).is_some()
    }

    /// The block is not here. Returns whether the want is still there, to be kept.
    pub(super) fn stand(&mut self, cid: &Arc<Cid>, seq: u64) -> bool {
        let Some(entry) = self.reading(cid, seq) else { return false };
        entry.state = State::Standing;
        self.standing.insert(seq, cid.clone());
        true
    }

    /// Queues the standing want of that number.
    pub(super) fn wake(&mut self, seq: u64) {
        let Some(cid) = self.standing.remove(&seq) else { return };
        if let Some(entry) = self.entries.get_mut(&cid) {
            entry.state = State::Queued;
            self.enqueue(cid, seq);
        }
    }
}

fn is_queued(entries: &HashMap<Arc<Cid>, Entry>, cid: &Cid, seq: u64) -> bool {
    entries.get(cid).is_some_and(|entry| entry.seq == seq && entry.state == State::Queued)
}
