//! A token bucket that may go into debt: an answer is never split, what it took too much is waited for. The buckets of
//! peers that are gone are kept while they matter: a peer that comes back gets no new burst, and owes what it owed.

use std::collections::VecDeque;
use std::time::Duration;

use libp2p::PeerId;

use crate::config::EgressLimit;
use crate::limits::{GONE_BUCKETS, hit};

/// Bytes that may go out.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: EgressLimit,
    /// In bytes; negative after an answer larger than what was left.
    level: f64,
    filled_at: Duration,
}

impl Bucket {
    pub(super) fn new(limit: EgressLimit) -> Self {
        Self { limit, level: limit.burst_bytes as f64, filled_at: Duration::ZERO }
    }

    fn level_at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.filled_at).as_secs_f64();
        let filled = self.level + passed * self.limit.bytes_per_second as f64;
        filled.min(self.most())
    }

    fn most(&self) -> f64 {
        self.limit.burst_bytes.max(1) as f64
    }

    /// Whether it is as good as a new one.
    fn is_full(&self, now: Duration) -> bool {
        self.level_at(now) >= self.most()
    }

    /// Whether anything may go out now.
    pub(super) fn is_open(&self, now: Duration) -> bool {
        self.level_at(now) > 0.0
    }

    pub(super) fn take(&mut self, bytes: usize, now: Duration) {
        self.level = self.level_at(now) - bytes as f64;
        self.filled_at = now;
    }

    /// Takes back what was taken for bytes that do not go out.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.level += bytes as f64;
    }
}

/// The buckets of peers that are gone, until they are full again.
#[derive(Default)]
pub(super) struct Gone(VecDeque<(PeerId, Bucket)>);

impl Gone {
    /// Keeps the bucket of a peer that goes. Where there are too many, the oldest is forgotten.
    pub(super) fn keep(&mut self, id: PeerId, bucket: Bucket, now: Duration) {
        if self.0.len() >= GONE_BUCKETS {
            self.0.retain(|(_, bucket)| !bucket.is_full(now));
        }
        if bucket.is_full(now) {
            return;
        }
        if self.0.len() >= GONE_BUCKETS {
            hit("bitswap_gone_buckets");
            self.0.pop_front();
        }
        self.0.push_back((id, bucket));
    }

    /// The bucket of a peer that comes back.
    pub(super) fn take(&mut self, id: &PeerId) -> Option<Bucket> {
        let at = self.0.iter().position(|(gone, _)| gone == id)?;
        self.0.remove(at).map(|(_, bucket)| bucket)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: EgressLimit = EgressLimit { bytes_per_second: 10, burst_bytes: 100 };
    const NOW: Duration = Duration::from_secs(100);

    fn owing(bytes: usize) -> Bucket {
        let mut bucket = Bucket::new(LIMIT);
        bucket.take(bytes, NOW);
        bucket
    }

    #[test]
    fn buckets_are_kept_until_they_are_full() {
        let mut gone = Gone::default();
        let peer = PeerId::random();
        gone.keep(peer, owing(0), NOW);
        assert!(gone.take(&peer).is_none(), "a new one is as good");
        gone.keep(peer, owing(150), NOW);
        let bucket = gone.take(&peer).unwrap();
        assert!(
            !bucket.is_open(NOW + Duration::from_secs(5)) && bucket.is_open(NOW + Duration::from_secs(6))
        );
        assert_eq!(gone.len(), 0);
    }

    #[test]
    fn t10_so_many_buckets_are_kept_and_full_ones_go_first() {
        let peers: Vec<PeerId> = (0..=GONE_BUCKETS).map(|_| PeerId::random()).collect();
        for count in [GONE_BUCKETS - 1, GONE_BUCKETS, GONE_BUCKETS + 1] {
            let mut gone = Gone::default();
            peers[..count].iter().for_each(|peer| gone.keep(*peer, owing(150), NOW));
            assert_eq!(gone.len(), count.min(GONE_BUCKETS));
            assert_eq!(gone.take(&peers[0]).is_some(), count <= GONE_BUCKETS, "the oldest went");
        }
        let mut gone = Gone::default();
        peers[1..].iter().for_each(|peer| gone.keep(*peer, owing(150), NOW));
        gone.keep(peers[0], owing(1_000), NOW + Duration::from_secs(15));
        assert_eq!(gone.len(), 1, "the others owe nothing by then");
    }
}
