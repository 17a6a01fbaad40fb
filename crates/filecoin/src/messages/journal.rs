//! What is written down about each message. A small trait, so that the rows can live in `records`;
//! [`MemoryJournal`] is for tests and dry runs.

use std::collections::BTreeMap;

use floe_core::clock::BoxFuture;
use parking_lot::Mutex;

use crate::limits::{self, MAX_REPLACEMENTS, MAX_UNCONFIRMED};
use crate::types::{Address, Epoch, SignedMessage};

/// A message that was signed for an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is for: the caller's id, the same at each repeat.
    pub intent: String,
    /// Its sender.
    pub from: Address,
    /// Its number.
    pub nonce: u64,
    /// The signed bytes, from the first to the last replacement. Never empty.
    pub versions: Vec<Version>,
    /// How far it is.
    pub progress: Progress,
    /// The head when it was signed: the search goes back to here.
    pub since: Epoch,
}

/// One signed form of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// What was signed, and the signature.
    pub message: SignedMessage,
    /// The head when it was last pushed; `None` before the first time.
    pub pushed_at: Option<Epoch>,
}

/// How far a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Signed; whether it reached the pool is not known.
    Signed,
    /// The pool has it.
    Pooled,
    /// The node refused it when it was last pushed. It may still come onto the chain: the bytes are out.
    Refused {
        /// What the node said.
        reason: String,
    },
    /// On the chain, not yet final.
    Included {
        /// Which version.
        version: usize,
        /// At which height.
        height: Epoch,
    },
    /// On the chain for good.
    Final {
        /// Which version.
        version: usize,
        /// At which height.
        height: Epoch,
        /// 0 where it did what it should.
        exit_code: i64,
    },
    /// The chain is past this number for good, and the node finds no version of it: another message had the number, or
    /// this node does not look back far enough (a gateway looks back 20 epochs). Not settled, and never a reason to
    /// sign anew: a full node says which, as long as it is searched (four times finality after it was signed), or the operator. It waits for
    /// nothing, so that it counts to no limit.
    Missing,
}

impl Progress {
    /// Whether nothing can change any more.
    pub fn is_settled(&self) -> bool {
        matches!(self, Self::Final { .. })
    }

    /// Whether it still waits for a block, or for finality.
    pub fn waits(&self) -> bool {
        !matches!(self, Self::Final { .. } | Self::Missing)
    }
}

/// Why the journal cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// There is an entry with this intent or this nonce, or the change is not one that may be made.
    #[error("the message journal refuses: {0}")]
    Conflict(String),
    /// The most unconfirmed messages that one wallet may have.
    #[error("the wallet has {MAX_UNCONFIRMED} unconfirmed messages: wait for them, or replace the oldest")]
    Full,
    /// The store failed.
    #[error("the message journal cannot be written: {0}")]
    Store(String),
}

/// Where messages are written down. Each call is one transaction, committed and synced when the future completes.
pub trait Journal: Send + Sync + 'static {
    /// The entry of an intent; `None` where there is none.
    fn find<'a>(&'a self, intent: &'a str) -> BoxFuture<'a, Result<Option<Entry>, JournalError>>;

    /// The number that the sender's next message has; `None` where it never had one.
    fn next_nonce(&self, from: Address) -> BoxFuture<'_, Result<Option<u64>, JournalError>>;

    /// The sender's entries that are not settled, by nonce.
    fn unsettled(&self, from: Address) -> BoxFuture<'_, Result<Vec<Entry>, JournalError>>;

    /// Adds an entry. Refuses an intent that is there, a nonce that is not the next or above it, and more than
    /// [`MAX_UNCONFIRMED`] that wait.
    fn add<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<(), JournalError>>;

    /// Adds a version behind the others. Refuses another nonce or call than the entry has, bytes that are there, and more
    /// than [`MAX_REPLACEMENTS`].
    fn add_version<'a>(
        &'a self,
        intent: &'a str,
        version: &'a Version,
    ) -> BoxFuture<'a, Result<(), JournalError>>;

    /// Writes down that the last version was pushed at `head`, and what came of it. Does not touch a settled entry.
    fn pushed<'a>(
        &'a self,
        intent: &'a str,
        head: Epoch,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), JournalError>>;

    /// Writes down how far it is. Does not touch a settled entry.
    fn progress<'a>(
        &'a self,
        intent: &'a str,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), JournalError>>;
}

/// A journal that a restart forgets. For tests and dry runs: never for money.
#[derive(Debug, Default)]
pub struct MemoryJournal(Mutex<Entries>);

fn conflict(what: &str) -> JournalError {
    JournalError::Conflict(what.to_owned())
}

#[derive(Debug, Default)]
struct Entries {
    by_intent: BTreeMap<String, Entry>,
}

impl Entries {
    fn of(&self, from: Address) -> impl Iterator<Item = &Entry> {
        self.by_intent.values().filter(move |entry| entry.from == from)
    }

    fn next_nonce(&self, from: Address) -> Option<u64> {
        self.of(from).map(|entry| entry.nonce).max().map(|nonce| nonce.saturating_add(1))
    }

    fn add(&mut self, entry: &Entry) -> Result<(), JournalError> {
        if self.by_intent.contains_key(&entry.intent) {
            return Err(conflict("the intent has a message already"));
        }
        if self.next_nonce(entry.from).is_some_and(|next| entry.nonce < next) {
            return Err(conflict("the nonce is taken"));
        }
        if self.of(entry.from).filter(|entry| entry.progress.waits()).count() >= MAX_UNCONFIRMED {
            limits::hit("unconfirmed_messages");
            return Err(JournalError::Full);
        }
        self.by_intent.insert(entry.intent.clone(), entry.clone());
        Ok(())
    }

    fn add_version(&mut self, intent: &str, version: &Version) -> Result<(), JournalError> {
        let entry = self.open(intent)?;
        let Some(last) = entry.versions.last() else {
            return Err(conflict("an entry without bytes"));
        };
        let (old, new) = (&last.message.message, &version.message.message);
        if old.nonce != new.nonce || !old.same_call(new) {
            return Err(conflict("a replacement with another nonce or another call"));
        }
        if entry.versions.iter().any(|old| old.message == version.message) {
            return Err(conflict("these bytes are there already"));
        }
        if entry.versions.len() > MAX_REPLACEMENTS {
            limits::hit("message_replacements");
            return Err(conflict("replaced too often"));
        }
        entry.versions.push(version.clone());
        Ok(())
    }

    fn open(&mut self, intent: &str) -> Result<&mut Entry, JournalError> {
        let entry = self.by_intent.get_mut(intent).filter(|entry| !entry.progress.is_settled());
        entry.ok_or_else(|| conflict("no open message has this intent"))
    }
}

fn done<'a, T: Send + 'a>(result: Result<T, JournalError>) -> BoxFuture<'a, Result<T, JournalError>> {
    Box::pin(std::future::ready(result))
}

impl Journal for MemoryJournal {
    fn find<'a>(&'a self, intent: &'a str) -> BoxFuture<'a, Result<Option<Entry>, JournalError>> {
        done(Ok(self.0.lock().by_intent.get(intent).cloned()))
    }

    fn next_nonce(&self, from: Address) -> BoxFuture<'_, Result<Option<u64>, JournalError>> {
        done(Ok(self.0.lock().next_nonce(from)))
    }

    fn unsettled(&self, from: Address) -> BoxFuture<'_, Result<Vec<Entry>, JournalError>> {
        let mut open: Vec<Entry> =
            self.0.lock().of(from).filter(|entry| !entry.progress.is_settled()).cloned().collect();
        open.sort_by_key(|entry| entry.nonce);
        done(Ok(open))
    }

    fn add<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<(), JournalError>> {
        done(self.0.lock().add(entry))
    }

    fn add_version<'a>(
        &'a self,
        intent: &'a str,
        version: &'a Version,
    ) -> BoxFuture<'a, Result<(), JournalError>> {
        done(self.0.lock().add_version(intent, version))
    }

    fn pushed<'a>(
        &'a self,
        intent: &'a str,
        head: Epoch,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), JournalError>> {
        let mut entries = self.0.lock();
        done(entries.open(intent).map(|entry| {
            entry.progress = progress.clone();
            if let Some(last) = entry.versions.last_mut() {
                last.pushed_at = Some(head);
            }
        }))
    }

    fn progress<'a>(
        &'a self,
        intent: &'a str,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), JournalError>> {
        done(self.0.lock().open(intent).map(|entry| entry.progress = progress.clone()))
    }
}
