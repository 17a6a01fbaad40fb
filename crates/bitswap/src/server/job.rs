//! One read: some wants of one peer become one answer. Blocks on disk; runs on a thread for that.

use std::sync::Arc;

use floe_core::Cid;
use floe_core::block::MAX_BLOCK_BYTES;
use floe_core::ports::{LocalBlocks, ReadError};
use libp2p::PeerId;

use super::Epoch;
use crate::limits::INLINE_BLOCK_BYTES;
use crate::message::{Message, Payload, Presence, WantKind};

/// A want to be answered.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(super) cid: Arc<Cid>,
    pub(super) seq: u64,
    pub(super) kind: WantKind,
    pub(super) send_dont_have: bool,
}

/// A read to run.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) peer: PeerId,
    pub(super) epoch: Epoch,
    pub(super) tasks: Vec<Task>,
    pub(super) target_bytes: usize,
    /// How often blocks had come to the node when it began.
    pub(super) news: u64,
}

/// Which peer a running job is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket {
    pub(super) peer: PeerId,
    pub(super) epoch: Epoch,
}

/// What a read came to.
#[derive(Debug)]
pub(crate) struct Done {
    pub(super) peer: PeerId,
    pub(super) epoch: Epoch,
    pub(super) news: u64,
    pub(super) answer: Message,
    pub(super) answered: Vec<(Arc<Cid>, u64)>,
    pub(super) missing: Vec<(Arc<Cid>, u64)>,
    pub(super) unread: Vec<Task>,
}

impl Done {
    pub(crate) fn peer(&self) -> &PeerId {
        &self.peer
    }
}

enum Found {
    Block(bytes::Bytes),
    Here,
    Missing,
}

impl Job {
    /// For [`super::Server::abandon`].
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket { peer: self.peer, epoch: self.epoch }
    }

    /// Reads until the answer is large enough. A block that cannot be read counts as missing: it is never
    /// served damaged, and the peer can ask elsewhere.
    pub(crate) fn run(self, blocks: &dyn LocalBlocks) -> Done {
        let Self { peer, epoch, tasks, target_bytes, news } = self;
        let mut done = Done {
            peer,
            epoch,
            news,
            answer: Message::default(),
            answered: Vec::new(),
            missing: Vec::new(),
            unread: Vec::new(),
        };
        let mut bytes = 0;
        let mut tasks = tasks.into_iter();
        for task in tasks.by_ref() {
            let found = task.look_up(blocks).unwrap_or_else(|error| {
                tracing::warn!(cid = %task.cid, %error, "a block that a peer wants cannot be read: {}", task.cid);
                Found::Missing
            });
            if let Found::Block(data) = &found {
                bytes += data.len();
            }
            done.note(task, found);
            if bytes >= target_bytes {
                break;
            }
        }
        done.unread = tasks.collect();
        done
    }
}

impl Task {
    fn look_up(&self, blocks: &dyn LocalBlocks) -> Result<Found, ReadError> {
        if self.kind == WantKind::Have {
            match blocks.size(&self.cid)? {
                None => return Ok(Found::Missing),
                Some(size) if size > INLINE_BLOCK_BYTES => return Ok(Found::Here),
                Some(_) => {}
            }
        }
        let data = blocks.read(&self.cid)?.filter(|data| data.len() <= MAX_BLOCK_BYTES);
        Ok(data.map_or(Found::Missing, Found::Block))
    }
}

impl Done {
    fn note(&mut self, task: Task, found: Found) {
        match found {
            Found::Block(data) => self.answer.payloads.push(Payload::new(&task.cid, data)),
            Found::Here => self.answer.presences.push((*task.cid, Presence::Have)),
            Found::Missing => {
                if task.send_dont_have {
                    self.answer.presences.push((*task.cid, Presence::DontHave));
                }
                return self.missing.push((task.cid, task.seq));
            }
        }
        self.answered.push((task.cid, task.seq));
    }
}
