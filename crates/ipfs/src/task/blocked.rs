//! Peers that misbehaved and may not come back for a while.

use std::collections::VecDeque;
use std::time::Duration;

use libp2p::PeerId;

use crate::limits::{self, BLOCK_FOR, MAX_BLOCKED_PEERS};

/// Who is shut out, the oldest first, each with when it may come back.
#[derive(Default)]
pub(super) struct Blocked(VecDeque<(Duration, PeerId)>);

impl Blocked {
    /// Notes a peer that was not shut out before. Returns the one that may come back for want of room.
    pub(super) fn add(&mut self, peer: PeerId, now: Duration) -> Option<PeerId> {
        self.0.push_back((now + BLOCK_FOR, peer));
        if self.0.len() <= MAX_BLOCKED_PEERS {
            return None;
        }
        limits::hit("blocked_peers");
        self.0.pop_front().map(|(_, peer)| peer)
    }

    /// The next peer whose time is over.
    pub(super) fn next_free(&mut self, now: Duration) -> Option<PeerId> {
        self.0.pop_front_if(|(until, _)| *until <= now).map(|(_, peer)| peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t04_blocked_peers_at_the_boundary() {
        let mut blocked = Blocked::default();
        let peers: Vec<PeerId> = (0..=MAX_BLOCKED_PEERS).map(|_| PeerId::random()).collect();
        let (last, first) = peers.split_last().unwrap();
        for peer in first {
            assert_eq!(blocked.add(*peer, Duration::ZERO), None);
        }
        assert_eq!(blocked.add(*last, Duration::ZERO), Some(peers[0]), "the oldest goes first");
    }

    #[test]
    fn a_peer_may_come_back_after_ten_minutes() {
        let (mut blocked, step) = (Blocked::default(), Duration::from_millis(1));
        let (early, late) = (PeerId::random(), PeerId::random());
        blocked.add(early, Duration::ZERO);
        blocked.add(late, step);
        assert_eq!(blocked.next_free(BLOCK_FOR - step), None);
        assert_eq!(blocked.next_free(BLOCK_FOR), Some(early));
        assert_eq!(blocked.next_free(BLOCK_FOR), None);
        assert_eq!(blocked.next_free(BLOCK_FOR + step), Some(late));
    }
}
