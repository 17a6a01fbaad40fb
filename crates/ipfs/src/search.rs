//! What one session's search knows: which peers it named, and when to look further. No IO.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use floe_core::Cid;
use libp2p::{Multiaddr, PeerId};

use crate::dial::policy::Asker;
use crate::limits::{self, LOOKUP_PAUSE, LOOKUP_PAUSE_MAX, MAX_SEARCH_PEERS, REDIAL_PAUSE, STAYED};
use crate::session::Shared;

/// See the module.
pub(crate) struct Search {
    pub(crate) shared: Arc<Shared>,
    /// The most that any request behind this session may have dialled.
    pub(crate) asker: Asker,
    peers: HashMap<PeerId, Candidate>,
    /// When the routing systems may be asked again, and the pause after that.
    lookup_at: Duration,
    pause: Duration,
    lookups: u32,
}

/// A peer that should have the DAG.
struct Candidate {
    /// Each with whoever vouches for dialling it: one who may dial more says nothing of what another named.
    addresses: Vec<(Multiaddr, Asker)>,
    redial_at: Duration,
    redial_pause: Duration,
    /// Since when it was connected each time that somebody looked.
    connected_since: Option<Duration>,
}

impl Candidate {
    /// Whether to dial now.
    fn is_due(&mut self, now: Duration, connected: bool) -> bool {
        if !connected {
            self.connected_since = None;
            return self.redial_at <= now;
        }
        let since = *self.connected_since.get_or_insert(now);
        if now >= since + STAYED {
            self.redial_pause = REDIAL_PAUSE;
            // If it goes after this, it is worth a dial at once.
            self.redial_at = self.redial_at.min(now);
        }
        false
    }
}

/// A dial that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Vec<(Multiaddr, Asker)>,
}

impl Search {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            asker: Asker::Stranger,
            peers: HashMap::new(),
            lookup_at: Duration::ZERO,
            pause: LOOKUP_PAUSE,
            lookups: 0,
        }
    }

    /// Adds a peer; `false` where it is known with these addresses, or where there are too many.
    pub(crate) fn add(&mut self, peer: PeerId, addresses: Vec<Multiaddr>, asker: Asker) -> bool {
        self.asker = self.asker.max(asker);
        if self.peers.len() >= MAX_SEARCH_PEERS && !self.peers.contains_key(&peer) {
            limits::hit("search_peers");
            return false;
        }
        let mut new = !self.peers.contains_key(&peer);
        let candidate = self.peers.entry(peer).or_insert_with(|| Candidate {
            addresses: Vec::new(),
            redial_at: Duration::ZERO,
            redial_pause: REDIAL_PAUSE,
            connected_since: None,
        });
        for address in addresses {
            let room = candidate.addresses.len() < limits::MAX_PEER_ADDRESSES;
            match candidate.addresses.iter_mut().find(|(known, _)| *known == address) {
                Some((_, vouched)) => {
                    new |= asker > *vouched;
                    *vouched = asker.max(*vouched);
                }
                None if room => {
                    candidate.addresses.push((address, asker));
                    new = true;
                }
                None => {}
            }
        }
        if new {
            candidate.redial_at = Duration::ZERO;
        }
        new
    }

    pub(crate) fn names(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.peers.keys()
    }

    /// The dials that are due, each again after a pause that doubles until the peer has stayed for a while.
    pub(crate) fn due(&mut self, now: Duration, is_connected: impl Fn(&PeerId) -> bool) -> Vec<Dial> {
        let peers = self.peers.iter_mut();
        peers
            .filter_map(|(peer, candidate)| {
                candidate.is_due(now, is_connected(peer)).then_some((peer, candidate))
            })
            .map(|(peer, candidate)| {
                candidate.redial_at = now + candidate.redial_pause;
                candidate.redial_pause = (candidate.redial_pause * 2).min(LOOKUP_PAUSE_MAX);
                Dial { peer: *peer, addresses: candidate.addresses.clone() }
            })
            .collect()
    }

    /// What to look up now, if it is time: the root, which is what people announce, and in turns with it the
    /// block that is missing.
    pub(crate) fn lookup(&mut self, now: Duration, missing: Cid) -> Option<Cid> {
        if now < self.lookup_at {
            return None;
        }
        self.lookup_at = now + self.pause;
        self.pause = (self.pause * 2).min(LOOKUP_PAUSE_MAX);
        self.lookups += 1;
        Some(if self.lookups % 2 == 1 { self.shared.root } else { missing })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use floe_bitswap::SessionId;
    use parking_lot::Mutex;

    use super::*;

    fn cid(n: u8) -> Cid {
        *floe_core::Block::of(0x55, vec![n].into()).unwrap().cid()
    }

    fn search() -> Search {
        let (id, root) = (SessionId(1), cid(0));
        Search::new(Arc::new(Shared { id, root, closed: AtomicBool::new(false), error: Mutex::default() }))
    }

    #[test]
    fn peers_at_the_boundary() {
        let mut search = search();
        for n in 0..MAX_SEARCH_PEERS + 1 {
            assert_eq!(search.add(PeerId::random(), vec![], Asker::Stranger), n < MAX_SEARCH_PEERS, "{n}");
        }
    }

    #[test]
    fn a_peer_is_dialled_again_after_a_growing_pause() {
        let mut search = search();
        let (peer, address): (_, Multiaddr) = (PeerId::random(), "/ip4/8.8.8.8/tcp/4001".parse().unwrap());
        assert!(search.add(peer, vec![address.clone()], Asker::Stranger));
        assert!(!search.add(peer, vec![address.clone()], Asker::Stranger));
        let dial = Dial { peer, addresses: vec![(address.clone(), Asker::Stranger)] };
        assert_eq!(search.due(Duration::ZERO, |_| true), []);
        assert_eq!(search.due(Duration::ZERO, |_| false), [dial]);
        assert_eq!(search.due(REDIAL_PAUSE - Duration::from_secs(1), |_| false), []);
        assert_eq!(search.due(REDIAL_PAUSE, |_| false).len(), 1);
        assert_eq!(search.due(REDIAL_PAUSE * 2, |_| false), []);
        assert!(search.add(peer, vec![address], Asker::Local), "a local request vouches for it now");
        assert_eq!(search.due(REDIAL_PAUSE * 2, |_| false)[0].addresses[0].1, Asker::Local);
    }

    /// A stranger named an address of a peer that a local request named too, and both were dialled on the local one's word.
    #[test]
    fn t11_who_may_dial_more_vouches_for_nothing_that_another_named() {
        let mut search = search();
        let peer = PeerId::random();
        let [theirs, ours]: [Multiaddr; 2] =
            ["/dns4/evil.example/tcp/80", "/ip4/127.0.0.1/tcp/4001"].map(|a| a.parse().unwrap());
        search.add(peer, vec![theirs.clone()], Asker::Stranger);
        search.add(peer, vec![ours.clone()], Asker::Local);
        let addresses = vec![(theirs, Asker::Stranger), (ours, Asker::Local)];
        assert_eq!(search.due(Duration::ZERO, |_| false), [Dial { peer, addresses }]);
    }

    /// The story: a peer that was away for an hour and came back was dialled again only ten minutes after its next
    /// hiccup, however long it had served in between.
    #[test]
    fn a_peer_that_stayed_is_dialled_again_at_once() {
        let mut search = search();
        search.add(PeerId::random(), vec![], Asker::Stranger);
        let second = Duration::from_secs(1);
        let mut now = Duration::ZERO;
        for _ in 0..10 {
            assert_eq!(search.due(now, |_| false).len(), 1);
            now += LOOKUP_PAUSE_MAX;
        }
        // Connected for just less than it takes, and gone: the long pause goes on.
        search.due(now, |_| false);
        let dialled = now;
        for connected in [now + second, now + STAYED] {
            assert_eq!(search.due(connected, |_| true), []);
        }
        assert_eq!(search.due(dialled + LOOKUP_PAUSE_MAX - second, |_| false), []);
        now = dialled + LOOKUP_PAUSE_MAX;
        assert_eq!(search.due(now, |_| false).len(), 1);
        // Connected for as long as it takes.
        for connected in [now + second, now + second + STAYED] {
            assert_eq!(search.due(connected, |_| true), []);
        }
        now += second * 2 + STAYED;
        assert_eq!(search.due(now, |_| false).len(), 1);
        assert_eq!(search.due(now + REDIAL_PAUSE - second, |_| false), []);
        assert_eq!(search.due(now + REDIAL_PAUSE, |_| false).len(), 1);
    }

    #[test]
    fn lookups_back_off_and_alternate() {
        let mut search = search();
        let missing = cid(1);
        let mut now = Duration::ZERO;
        assert_eq!(search.lookup(now, missing), Some(cid(0)));
        assert_eq!(search.lookup(now, missing), None);
        now += LOOKUP_PAUSE;
        assert_eq!(search.lookup(now, missing), Some(missing));
        assert_eq!(search.lookup(now + LOOKUP_PAUSE, missing), None);
        for _ in 0..10 {
            now += LOOKUP_PAUSE_MAX;
            assert!(search.lookup(now, missing).is_some());
        }
    }
}
