//! One peer, as the client sees it: what it was asked, what waits to be sent, how it behaves.

use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::Duration;

use floe_core::Multihash;
use libp2p::PeerId;

use crate::key::Key;
use crate::limits::{
    BLOCKS_PER_STRIKE, CHANGES_PER_PEER, CLIENT_WANTS_PER_PEER, DUPLICATES_PER_REQUEST, ENTRIES_PER_DELTA,
    HAVES_PER_PEER, PARKED_PER_PEER, PEER_WINDOW_START, SETTLED_PER_PEER, STRIKES, hit,
};
use crate::message::{Message, WantEntry, WantKind};

/// Numbers peers by connection order; never used twice.
pub(super) type PeerNo = u64;

/// A connected peer.
pub(super) struct Peer {
    pub(super) id: PeerId,
    /// What it has been or is about to be asked and has not answered.
    asked: HashMap<Key, Ask>,
    /// What the next message says. An entry counts only if `asked` still agrees when it is taken.
    out: VecDeque<Out>,
    /// Blocks among `asked`.
    blocks_out: usize,
    /// Parked roots among `asked`.
    parked: usize,
    /// Blocks that may be asked at once: grows with deliveries, halves when requests expire.
    window: usize,
    /// When it last sent a block that was wanted.
    pub(super) last_useful: Duration,
    /// When it last took bytes of an answer of ours: what it is asked waits behind that, on the same stream.
    pub(super) moved_at: Duration,
    useful: u32,
    strikes: u32,
    settled: Settled,
    /// The next message replaces all that the peer knows of our wants.
    full: bool,
    /// Nothing more is asked of it or taken from it.
    pub(super) banned: bool,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) kind: WantKind,
    pub(super) sent: bool,
    /// When it was decided: a request that cannot be sent, or is said again, has no more time than others.
    pub(super) at: Duration,
    /// Also asked of another peer because this one is silent.
    pub(super) hedged: bool,
    /// Stays until the root is unparked or had.
    parked: bool,
}

enum Out {
    Want(Key),
    Cancel(Key),
}

impl Out {
    fn key(&self) -> &Key {
        match self {
            Self::Want(key) | Self::Cancel(key) => key,
        }
    }

    /// Whether it is still to be said.
    fn counts(&self, asked: &HashMap<Key, Ask>) -> bool {
        match self {
            Self::Want(key) => asked.get(key).is_some_and(|ask| !ask.sent),
            Self::Cancel(key) => !asked.contains_key(key),
        }
    }
}

impl Peer {
    pub(super) fn new(id: PeerId) -> Self {
        Self {
            id,
            asked: HashMap::new(),
            out: VecDeque::new(),
            blocks_out: 0,
            parked: 0,
            window: PEER_WINDOW_START,
            last_useful: Duration::ZERO,
            moved_at: Duration::ZERO,
            useful: 0,
            strikes: 0,
            settled: Settled::default(),
            full: true,
            banned: false,
        }
    }

    /// Notes a request for the next message. Returns whether there is now something to send.
    pub(super) fn ask(&mut self, key: &Key, kind: WantKind, now: Duration) -> bool {
        let fresh = Ask { kind, sent: false, at: now, hedged: false, parked: false };
        match self.asked.entry(key.clone()) {
            Entry::Occupied(entry) if entry.get().kind >= kind => return false,
            Entry::Occupied(mut entry) => {
                let parked = entry.get().parked;
                entry.insert(Ask { parked, ..fresh });
            }
            Entry::Vacant(entry) => {
                entry.insert(fresh);
            }
        }
        self.blocks_out += usize::from(kind == WantKind::Block);
        self.note(Out::Want(key.clone()));
        true
    }

    /// Notes a change for the next message. A peer whose stream does not open takes none, while requests come and
    /// go: what was overtaken is swept before it outnumbers what counts.
    fn note(&mut self, change: Out) {
        self.out.push_back(change);
        if self.out.len() > CHANGES_PER_PEER {
            let (asked, mut known) = (&self.asked, HashSet::new());
            self.out.retain(|change| change.counts(asked) && known.insert(change.key().clone()));
        }
    }

    /// Asks for a parked root, unless this peer has its share of them.
    pub(super) fn ask_parked(&mut self, key: &Key, now: Duration) -> bool {
        if self.banned || self.parked >= PARKED_PER_PEER || self.is_full() {
            hit("bitswap_parked_per_peer");
            return false;
        }
        let fresh = self.ask(key, WantKind::Have, now);
        if let Some(ask) = self.asked.get_mut(key)
            && !ask.parked
        {
            ask.parked = true;
            self.parked += 1;
        }
        fresh
    }

    /// The root is no longer parked. Returns whether the request has no reason left.
    pub(super) fn unpark(&mut self, key: &Multihash) -> bool {
        match self.asked.get_mut(key) {
            Some(ask) if ask.parked => {
                ask.parked = false;
                self.parked -= 1;
                ask.kind == WantKind::Have
            }
            _ => false,
        }
    }

    /// Forgets a request that was answered, or will not be. What comes later is a late duplicate.
    pub(super) fn settle(&mut self, key: &Multihash) -> Option<Ask> {
        let ask = self.asked.remove(key)?;
        self.blocks_out -= usize::from(ask.kind == WantKind::Block);
        self.parked -= usize::from(ask.parked);
        self.settled.insert(key);
        Some(ask)
    }

    /// Takes a request back. Returns whether there is now something to send.
    pub(super) fn cancel(&mut self, key: &Key) -> bool {
        match self.settle(key.multihash()) {
            Some(ask) if ask.sent => {
                self.note(Out::Cancel(key.clone()));
                true
            }
            _ => false,
        }
    }

    pub(super) fn asks(&self, key: &Multihash) -> bool {
        self.asked.contains_key(key)
    }

    pub(super) fn is_parked(&self, key: &Multihash) -> bool {
        self.asked.get(key).is_some_and(|ask| ask.parked)
    }

    /// A block came that is not wanted any more. Whether an honest peer may send it: it was asked for, in recent
    /// memory, and has not come too often since.
    pub(super) fn may_repeat(&mut self, key: &Multihash) -> bool {
        self.settled.may_repeat(key)
    }

    /// No more entries fit into what the peer keeps of our wants.
    pub(super) fn is_full(&self) -> bool {
        self.asked.len() >= CLIENT_WANTS_PER_PEER
    }

    /// It may be asked whether it has something.
    pub(super) fn may_be_probed(&self) -> bool {
        let haves = self.asked.len() - self.blocks_out;
        if haves >= HAVES_PER_PEER {
            hit("bitswap_haves_per_peer");
        }
        !self.banned && !self.is_full() && haves < HAVES_PER_PEER
    }

    /// Something but parked roots is asked of it.
    pub(super) fn is_needed(&self) -> bool {
        self.asked.len() > self.parked || self.has_message()
    }

    pub(super) fn blocks_out(&self) -> usize {
        self.blocks_out
    }

    pub(super) fn window(&self) -> usize {
        self.window.min(CLIENT_WANTS_PER_PEER)
    }

    pub(super) fn has_capacity(&self) -> bool {
        !self.banned && self.blocks_out < self.window() && !self.is_full()
    }

    /// A wanted block came.
    pub(super) fn credit(&mut self, now: Duration) {
        self.window = (self.window + 1).min(CLIENT_WANTS_PER_PEER);
        self.last_useful = now;
        self.useful += 1;
        if self.useful.is_multiple_of(BLOCKS_PER_STRIKE) {
            self.strikes = self.strikes.saturating_sub(1);
        }
    }

    /// Requests expired.
    pub(super) fn shrink(&mut self) {
        self.window = (self.window / 2).max(1);
    }

    /// It did something that honest peers do not. Returns whether it has done so often enough.
    pub(super) fn strike(&mut self) -> bool {
        self.strikes += 1;
        self.strikes == STRIKES && !self.banned
    }

    /// Everything asked, in a fixed order.
    pub(super) fn sorted_asks(&self) -> Vec<(Key, Ask)> {
        let mut asks: Vec<_> = self.asked.iter().map(|(key, ask)| (key.clone(), *ask)).collect();
        asks.sort_by(|a, b| (b.1.kind, a.1.at).cmp(&(a.1.kind, b.1.at)).then_with(|| a.0.cmp(&b.0)));
        asks
    }

    /// Forgets everything asked and queued.
    pub(super) fn clear(&mut self) -> Vec<(Key, Ask)> {
        let asks = self.sorted_asks();
        for (key, _) in &asks {
            self.settled.insert(key.multihash());
        }
        self.asked.clear();
        self.out.clear();
        self.blocks_out = 0;
        self.parked = 0;
        asks
    }

    /// What was sent may be lost: the next message starts over. Returns whether there is something to send.
    pub(super) fn start_over(&mut self) -> bool {
        let asks = self.sorted_asks();
        self.out = asks.iter().map(|(key, _)| Out::Want(key.clone())).collect();
        self.asked.values_mut().for_each(|ask| ask.sent = false);
        self.full = true;
        !asks.is_empty()
    }

    pub(super) fn has_message(&self) -> bool {
        !self.out.is_empty()
    }

    /// The next message, or `None` where nothing changed.
    pub(super) fn next_message(&mut self) -> Option<Message> {
        let mut wants = Vec::with_capacity(self.out.len().min(ENTRIES_PER_DELTA));
        while wants.len() < ENTRIES_PER_DELTA
            && let Some(out) = self.out.pop_front()
        {
            wants.extend(self.entry(&out));
        }
        if wants.is_empty() {
            return None;
        }
        Some(Message { full: std::mem::take(&mut self.full), wants, ..Message::default() })
    }

    fn entry(&mut self, out: &Out) -> Option<WantEntry> {
        match out {
            Out::Want(key) => {
                let ask = self.asked.get_mut(key).filter(|ask| !ask.sent)?;
                ask.sent = true;
                let send_dont_have = !ask.parked || ask.kind == WantKind::Block;
                Some(WantEntry {
                    cid: *key.cid(),
                    priority: 1,
                    cancel: false,
                    kind: ask.kind,
                    send_dont_have,
                })
            }
            Out::Cancel(key) if self.asked.contains_key(key) => None,
            Out::Cancel(key) => Some(WantEntry {
                cid: *key.cid(),
                priority: 0,
                cancel: true,
                kind: WantKind::Block,
                send_dont_have: false,
            }),
        }
    }

    pub(super) fn mark_hedged(&mut self, key: &Multihash) {
        if let Some(ask) = self.asked.get_mut(key) {
            ask.hedged = true;
        }
    }
}

/// The last requests that were settled, as 64-bit hashes, and how often their block came since: a collision forgives
/// some unwanted blocks.
#[derive(Default)]
struct Settled {
    known: HashMap<u64, u8>,
    order: VecDeque<u64>,
}

impl Settled {
    fn digest(key: &Multihash) -> u64 {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish()
    }

    fn insert(&mut self, key: &Multihash) {
        let digest = Self::digest(key);
        if self.known.insert(digest, 0).is_some() {
            return;
        }
        self.order.push_back(digest);
        if self.order.len() > SETTLED_PER_PEER
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn may_repeat(&mut self, key: &Multihash) -> bool {
        let Some(copies) = self.known.get_mut(&Self::digest(key)) else { return false };
        *copies = copies.saturating_add(1);
        *copies <= DUPLICATES_PER_REQUEST
    }
}

#[cfg(test)]
mod tests {
    use floe_core::Cid;

    use super::*;
    use crate::testing::{block, key};

    const NOW: Duration = Duration::from_secs(1);

    fn peer() -> Peer {
        Peer::new(PeerId::random())
    }

    #[test]
    fn a_message_says_each_change_once() {
        let mut peer = peer();
        assert!(peer.ask(&key(1), WantKind::Have, NOW));
        assert!(peer.ask(&key(1), WantKind::Block, NOW));
        assert!(!peer.ask(&key(1), WantKind::Have, NOW), "a block is more than a presence");
        let message = peer.next_message().unwrap();
        assert!(message.full);
        assert_eq!(message.wants.len(), 1);
        assert_eq!(message.wants[0].kind, WantKind::Block);
        assert_eq!(peer.next_message(), None);
    }

    #[test]
    fn what_was_never_sent_is_not_cancelled() {
        let mut peer = peer();
        peer.ask(&key(1), WantKind::Block, NOW);
        assert!(!peer.cancel(&key(1)));
        assert_eq!(peer.next_message(), None);
        peer.ask(&key(2), WantKind::Block, NOW);
        peer.next_message().unwrap();
        assert!(peer.cancel(&key(2)));
        let message = peer.next_message().unwrap();
        assert!(message.wants[0].cancel && !message.full);
        assert_eq!(peer.blocks_out(), 0);
    }

    #[test]
    fn a_cancel_that_was_overtaken_by_a_new_want_is_not_sent() {
        let mut peer = peer();
        peer.ask(&key(1), WantKind::Block, NOW);
        peer.next_message();
        peer.cancel(&key(1));
        peer.ask(&key(1), WantKind::Block, NOW);
        let message = peer.next_message().unwrap();
        assert_eq!(message.wants.len(), 1);
        assert!(!message.wants[0].cancel);
    }

    #[test]
    fn after_a_broken_stream_everything_is_said_again() {
        let mut peer = peer();
        for i in 0..3 {
            peer.ask(&key(i), WantKind::Block, NOW);
        }
        peer.next_message().unwrap();
        peer.settle(block(0).cid().hash());
        assert!(peer.start_over());
        let message = peer.next_message().unwrap();
        assert!(message.full);
        assert_eq!(message.wants.len(), 2);
    }

    #[test]
    fn the_peer_is_full_at_1024_wants() {
        let mut peer = peer();
        for i in 0..CLIENT_WANTS_PER_PEER as u32 - 1 {
            peer.ask(&key(i), WantKind::Have, NOW);
        }
        assert!(!peer.is_full());
        peer.ask(&key(5_000), WantKind::Have, NOW);
        assert!(peer.is_full());
        assert!(!peer.has_capacity());
    }

    #[test]
    fn presences_leave_room_for_blocks() {
        let mut peer = peer();
        for (i, open) in [(HAVES_PER_PEER - 1, true), (HAVES_PER_PEER, false), (HAVES_PER_PEER + 1, false)] {
            while peer.asked.len() < i {
                peer.ask(&key(u32::try_from(peer.asked.len()).unwrap()), WantKind::Have, NOW);
            }
            assert_eq!(peer.may_be_probed(), open, "{i}");
            assert!(peer.has_capacity());
        }
    }

    #[test]
    fn parked_roots_have_half_of_the_wants() {
        let mut peer = peer();
        let taken = (0..PARKED_PER_PEER as u32 + 1).filter(|i| peer.ask_parked(&key(*i), NOW)).count();
        assert_eq!(taken, PARKED_PER_PEER);
        assert!(peer.unpark(block(0).cid().hash()));
        peer.cancel(&key(0));
        assert!(peer.ask_parked(&key(9_999), NOW));
    }

    #[test]
    fn useful_blocks_take_a_strike_back() {
        for (blocks, forgiven) in
            [(BLOCKS_PER_STRIKE - 1, false), (BLOCKS_PER_STRIKE, true), (BLOCKS_PER_STRIKE + 1, true)]
        {
            let mut peer = peer();
            (1..STRIKES).for_each(|_| assert!(!peer.strike()));
            (0..blocks).for_each(|_| peer.credit(NOW));
            assert_eq!(!peer.strike(), forgiven, "{blocks}");
        }
    }

    #[test]
    fn settled_requests_are_remembered_up_to_the_limit() {
        let mut settled = Settled::default();
        let hash = |i| *block(i).cid().hash();
        (0..SETTLED_PER_PEER as u32 + 1).for_each(|i| settled.insert(&hash(i)));
        assert!(!settled.may_repeat(&hash(0)));
        assert!(settled.may_repeat(&hash(1)));
        assert_eq!(settled.known.len(), SETTLED_PER_PEER);
    }

    /// The story: a change that was overtaken stayed in the queue until the next message, and a peer whose stream
    /// never opens has no next message: each session that came and went left its changes there.
    #[test]
    fn changes_that_nobody_takes_are_bounded() {
        let mut peer = peer();
        peer.ask(&key(0), WantKind::Block, NOW);
        peer.next_message().unwrap();
        peer.cancel(&key(0));
        for i in 1..=3 * CHANGES_PER_PEER as u32 {
            // Each is asked and taken back, and one over and over.
            for key in [key(i), key(1)] {
                peer.ask(&key, WantKind::Block, NOW);
                peer.cancel(&key);
                assert!(peer.out.len() <= CHANGES_PER_PEER);
            }
        }
        peer.ask(&key(1), WantKind::Block, NOW);
        let said: Vec<(Cid, bool)> =
            peer.next_message().unwrap().wants.iter().map(|want| (want.cid, want.cancel)).collect();
        assert_eq!(said, [(*block(0).cid(), true), (*block(1).cid(), false)]);
    }

    #[test]
    fn a_delta_is_bounded() {
        let mut peer = peer();
        (0..ENTRIES_PER_DELTA as u32 + 1).for_each(|i| {
            peer.ask(&key(i), WantKind::Have, NOW);
        });
        assert_eq!(peer.next_message().unwrap().wants.len(), ENTRIES_PER_DELTA);
        assert_eq!(peer.next_message().unwrap().wants.len(), 1);
    }
}
