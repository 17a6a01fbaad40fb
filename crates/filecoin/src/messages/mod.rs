//! Messages from a local key: numbered, signed once, and brought onto the chain whatever happens in between.
//!
//! Lotus' `MpoolPushMessage` finds its own duplicates too late, so the numbers are ours:
//!
//! ```text
//! send(intent) -> journal: intent + nonce + signed bytes   committed before anything is pushed
//!              -> MpoolPush -> ok, or "already exists"     pushed
//!                           -> lost reply                  unknown: the same bytes are pushed again
//!                           -> refused                     kept: the nonce stays taken, the bytes stay the same
//! tick()       -> StateSearchMsg of every version -> included -> confirmed at finality
//!                 not there -> pushed again every 10 epochs; gone after a reorg -> pushed again at once
//!                 not there, and the number used for good -> missing: an operator's matter, never a second payment
//! replace()    -> same nonce, same call, premium x 1.1 + 1, never a new nonce
//! ```
//!
//! A second `send` of one intent gives the first one's message: that is what makes a repeat harmless. Bytes that are
//! signed are money; the journal keeps them until one of their versions is final. After a crash, `tick` goes on from the
//! journal alone.
//!
//! One writer for each journal ([`Sender`] takes one call after the other), and one journal for each wallet: nothing keeps two
//! programs from using one key, so it is noticed. A nonce of the node that is higher than ours means that somebody else
//! spends from the key, or that the node lies, or that the journal is of an old backup: nothing is signed until the chain,
//! at finality, agrees. Two that sign one number at once pay once: one of the messages is missing then.

mod journal;
mod sender;

pub use journal::{Entry, Journal, JournalError, MemoryJournal, Progress, Version};
pub use sender::{Landed, MessageError, Sender, SenderSettings};
