//! The client: gets wanted blocks from whoever has them. Sans-IO: (event, now) in, actions out.
//!
//! ```text
//!            want()                 a provider has room                   block comes
//!   session ───────> Queued ─────────────────────────────> InFlight ───────────────────> inbox
//!                     ^  │ nobody connected should have it     │ DONT_HAVE, 10 s without
//!                     │  v                                     │ progress, peer gone
//!                     └─ Seeking <── want-have to everybody ───┘ (back to Queued)
//! ```
//!
//! **Providers first.** A peer that was named (an origin, the routing system), said HAVE or delivered gets
//! want-block at once; all others are only asked whether they have the root, and, when no provider has a
//! block, whether they have that.
//!
//! **Deltas.** Each peer has a queue of changes; a message carries what changed since the last one. No work
//! per block grows with the wantlist.
//!
//! **Backpressure is wants held back.** Streams are always drained. What is in flight is bounded by what is
//! asked: bytes per session and over all ([`session`]), a count per peer ([`peer`]).
//!
//! **Trust.** Only blocks whose hash somebody wants are handed on. On the wire of bitswap 1.1 the receiver
//! computes the hash, so wrong bytes and unasked blocks look the same: each is a strike, and a peer with
//! [`STRIKES`](crate::limits::STRIKES) of them is dropped and its requests go elsewhere at once. A
//! duplicate of something asked is not a strike, until it has come more often than an honest peer sends it.
//!
//! ```text
//!   wants.rs     what sessions do          parked.rs   roots that are offered to everybody
//!   asking.rs    who is asked for what     peers.rs    peers that come, go and misbehave
//!   answers.rs   what comes back           timers.rs   what happens because nothing happened
//!   session.rs, peer.rs                    the state of one
//! ```
//!
//! The client owns no task and no clock; the shell (`shared.rs`) locks it, calls it, and carries the actions out.

mod answers;
mod asking;
mod parked;
mod peer;
mod peers;
mod session;
mod timers;
mod wants;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};

use libp2p::PeerId;
use smallvec::SmallVec;

use crate::behaviour::Event;
use crate::handle::SessionId;
use crate::key::Key;
use crate::message::WantKind;
use parked::Parked;
use peer::{Peer, PeerNo};
use session::Session;

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// The peer has a message waiting: [`Client::next_message`].
    Wake(PeerId),
    /// The session has blocks: [`Client::take_blocks`].
    Ready(SessionId),
    /// For the node around the swarm.
    Event(Box<Event>),
}

/// The client of one node.
#[derive(Default)]
pub(crate) struct Client {
    peers: BTreeMap<PeerNo, Peer>,
    numbers: HashMap<PeerId, PeerNo>,
    next_peer: PeerNo,
    sessions: BTreeMap<SessionId, Session>,
    next_session: u64,
    wants: HashMap<Key, Want>,
    /// Sessions by root: a HAVE for a root makes a provider.
    roots: HashMap<Key, SmallVec<[SessionId; 1]>>,
    /// Sessions whose `todo` waits for room.
    hungry: VecDeque<SessionId>,
    parked: Parked,
    /// Sessions that want something: they share the window.
    active: usize,
    actions: Vec<Action>,
}

/// A block that sessions want.
struct Want {
    state: State,
    /// Who wants it, each under the CID that it used.
    sessions: SmallVec<[(SessionId, Key); 1]>,
    /// Peers with an open request.
    asked: SmallVec<[(PeerNo, WantKind); 2]>,
    /// Peers that lack it or did not send it in time.
    tried: SmallVec<[PeerNo; 2]>,
    /// The session whose window it takes from, and how much.
    charged: Option<(SessionId, usize)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Queued,
    Seeking,
    InFlight,
}

enum Pick {
    Peer(PeerNo),
    /// There are providers, none has room.
    Busy,
    /// No connected peer is known to have it.
    Nobody,
}

/// What a batch of blocks came to.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Blocks that somebody wanted.
    pub(crate) useful: usize,
    /// Blocks that were asked for, but had come already or are no longer wanted.
    pub(crate) duplicate: usize,
    /// Blocks that this peer was never asked for, or sent too often.
    pub(crate) unwanted: usize,
}

impl Client {
    /// What is to be done since the last call.
    pub(crate) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Whether timers matter.
    pub(crate) fn is_busy(&self) -> bool {
        self.active > 0
    }

    /// Peers, sessions, wants, parked roots.
    pub(crate) fn counts(&self) -> (usize, usize, usize, usize) {
        (self.peers.len(), self.sessions.len(), self.wants.len(), self.parked.len())
    }
}

impl Want {
    fn new() -> Self {
        Self {
            state: State::Queued,
            sessions: SmallVec::new(),
            asked: SmallVec::new(),
            tried: SmallVec::new(),
            charged: None,
        }
    }
}

/// Gives the window back what the want took.
fn uncharge(sessions: &mut BTreeMap<SessionId, Session>, want: &mut Want) {
    if let Some((id, bytes)) = want.charged.take()
        && let Some(session) = sessions.get_mut(&id)
    {
        session.in_flight -= 1;
        session.in_flight_bytes -= bytes;
    }
}
