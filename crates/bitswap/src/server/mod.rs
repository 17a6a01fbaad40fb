//! The server: answers the wants of other peers. Sans-IO: (event, now) in, jobs and actions out.
//!
//! ```text
//!   wantlist ──> queued CIDs ──next_job()──> Job (read on a blocking thread) ──finish()──> Answer ──> stream
//!                  ^   (no bytes)              │ not here                                      │ written()
//!                  └── notify() <── standing <─┘                                               v room again
//! ```
//!
//! Only CIDs wait here. Bytes exist from the start of a job, which happens when the peer has room for them,
//! until they are written: at most [`OUTSTANDING_PER_PEER`] plus one
//! block for a peer and [`OUTSTANDING_BYTES`] over all (threat T10). Presences have no such bytes, so the answers
//! that wait for a peer are counted too. A want
//! for a block that is not here stays, so that the peer gets the block when a pin brings it.
//!
//! Wants are bounded per peer and over all, and go with the peer (threat T1, CVE-2023-25568). Where there are too many,
//! one that stands gives way: the oldest of the peer, or of whoever has the most, so that those who were first do not
//! keep others from being answered. Which peer is
//! served next is fair in bytes: the one that got least so far, except that a peer that waited ten seconds
//! goes first.

mod bucket;
mod job;
mod wants;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use floe_core::block::MAX_BLOCK_BYTES;
use floe_core::{Cid, Multihash};
use libp2p::PeerId;

use crate::config::Config;
use crate::limits::{
    ANSWER_ATTEMPTS, ANSWER_TARGET_BYTES, ANSWERS_PER_PEER, FAIR_MIN_COST, FAIR_PENDING, OUTSTANDING_BYTES,
    OUTSTANDING_PER_PEER, READ_JOBS, SERVER_WANTS, SERVER_WANTS_PER_PEER, STARVED_AFTER, hit,
};
use crate::message::{Message, Version, WantEntry};
use bucket::{Bucket, Gone};
pub(crate) use job::{Done, Job, Ticket};
use wants::Wants;

/// What one running job may hold: the target, and the block that goes over it.
const JOB_BYTES: usize = ANSWER_TARGET_BYTES + MAX_BLOCK_BYTES;

/// The bounds, so that tests can lower them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) wants_per_peer: usize,
    pub(crate) wants: usize,
    pub(crate) outstanding_per_peer: usize,
    pub(crate) outstanding: usize,
    pub(crate) jobs: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            wants_per_peer: SERVER_WANTS_PER_PEER,
            wants: SERVER_WANTS,
            outstanding_per_peer: OUTSTANDING_PER_PEER,
            outstanding: OUTSTANDING_BYTES,
            jobs: READ_JOBS,
        }
    }
}

/// Names a connected peer, so that the answer of an old job does not reach a later connection.
type Epoch = u64;

/// The server of one node.
pub(crate) struct Server {
    bounds: Bounds,
    peers: BTreeMap<PeerId, Peer>,
    next_epoch: Epoch,
    /// Who waits for a block that is not here, by what its bytes hash to and the number of the want. In order, so that
    /// one is forgotten without a look at the others: all wants of all peers may be for one hash.
    standing: BTreeMap<(Multihash, u64), PeerId>,
    /// Peers by how many of their wants stand.
    crowd: BTreeSet<(usize, PeerId)>,
    /// How often blocks came to the node.
    news: u64,
    /// Wants of all peers, and the number of the last one.
    wants: usize,
    last_want: u64,
    jobs: usize,
    /// Bytes read and unwritten, running jobs with their most.
    outstanding: usize,
    egress: Option<Bucket>,
    egress_per_peer: Option<crate::EgressLimit>,
    gone: Gone,
    /// Bytes served to the peer that was picked last: where a new peer starts.
    virtual_time: u64,
    salt: [u8; 32],
}

/// A connected peer.
struct Peer {
    epoch: Epoch,
    wants: Wants,
    answers: VecDeque<Message>,
    /// Times that an answer was given back since one was written out.
    given_back: u32,
    reading: bool,
    outstanding: usize,
    egress: Option<Bucket>,
    /// Bytes served, for the order of serving.
    served: u64,
    /// Since when it has work that could be done.
    waiting_since: Option<Duration>,
    tiebreak: u64,
    /// What a block of this peer's answers was large on average, to size jobs.
    block_bytes: usize,
}

impl Server {
    pub(crate) fn new(config: &Config, salt: [u8; 32]) -> Self {
        Self::with_bounds(config, salt, Bounds::default())
    }

    pub(crate) fn with_bounds(config: &Config, salt: [u8; 32], bounds: Bounds) -> Self {
        Self {
            bounds,
            peers: BTreeMap::new(),
            next_epoch: 0,
            standing: BTreeMap::new(),
            crowd: BTreeSet::new(),
            news: 0,
            wants: 0,
            last_want: 0,
            jobs: 0,
            outstanding: 0,
            egress: config.egress.map(Bucket::new),
            egress_per_peer: config.egress_per_peer,
            gone: Gone::default(),
            virtual_time: 0,
            salt,
        }
    }

    // ---- peers ----------------------------------------------------------------------------------------

    /// A peer connected. Harmless for one that is.
    pub(crate) fn connected(&mut self, id: PeerId) {
        if self.peers.contains_key(&id) {
            return;
        }
        self.next_epoch += 1;
        let mut hasher = DefaultHasher::new();
        (self.salt, id).hash(&mut hasher);
        let tiebreak = hasher.finish();
        let egress =
            self.egress_per_peer.map(|limit| self.gone.take(&id).unwrap_or_else(|| Bucket::new(limit)));
        let peer = Peer {
            epoch: self.next_epoch,
            wants: Wants::default(),
            answers: VecDeque::new(),
            given_back: 0,
            reading: false,
            outstanding: 0,
            egress,
            served: 0,
            waiting_since: None,
            tiebreak,
            block_bytes: 16 << 10,
        };
        self.peers.insert(id, peer);
    }

    /// A peer is gone: everything kept for it is freed, but for what it owes. A running job gives its bytes back when
    /// it ends.
    pub(crate) fn disconnected(&mut self, id: &PeerId, now: Duration) {
        let Some(mut peer) = self.peers.remove(id) else { return };
        // What was taken for answers that it did not get.
        let unsent: usize = peer.answers.iter().map(|answer| answer.encoded_len(Version::V1_2)).sum();
        self.egress.iter_mut().chain(peer.egress.iter_mut()).for_each(|bucket| bucket.give_back(unsent));
        if let Some(bucket) = peer.egress.take() {
            self.gone.keep(*id, bucket, now);
        }
        self.wants -= peer.wants.len();
        self.crowd.remove(&(peer.wants.standing_len(), *id));
        self.outstanding -= peer.outstanding;
        self.forget_standing(peer.wants.standing());
    }

    fn forget_standing<'a>(&mut self, wants: impl Iterator<Item = (&'a Cid, u64)>) {
        for (cid, seq) in wants {
            self.standing.remove(&(*cid.hash(), seq));
        }
    }

    // ---- wants ----------------------------------------------------------------------------------------

    /// A wantlist came.
    pub(crate) fn on_wants(&mut self, id: &PeerId, full: bool, entries: Vec<WantEntry>, now: Duration) {
        if full {
            self.clear_wants(id);
        }
        for entry in entries {
            if entry.cancel {
                self.cancel(id, &entry.cid);
            } else {
                self.add(id, entry);
            }
        }
        self.note_waiting(id, now);
    }

    fn clear_wants(&mut self, id: &PeerId) {
        let Some(old) = self.change_wants(id, std::mem::take) else { return };
        self.wants -= old.len();
        self.forget_standing(old.standing());
    }

    fn cancel(&mut self, id: &PeerId, cid: &Cid) {
        if let Some(removed) = self.change_wants(id, |wants| wants.remove(cid)).flatten() {
            self.wants -= 1;
            self.forget_standing(removed.standing.map(|seq| (cid, seq)).into_iter());
        }
    }

    fn add(&mut self, id: &PeerId, entry: WantEntry) {
        let Some(peer) = self.peers.get(id) else { return };
        if !peer.wants.contains(&entry.cid) && !self.make_place(id) {
            return;
        }
        self.cancel(id, &entry.cid);
        self.last_want += 1;
        let seq = self.last_want;
        if self.change_wants(id, |wants| wants.add(entry, seq)).is_some() {
            self.wants += 1;
        }
    }

    /// Whether there is place for one more want of the peer. One that cannot be met now makes place for one that
    /// perhaps can: where the peer has too many its own, where all have, one of the peer with the most of them.
    fn make_place(&mut self, id: &PeerId) -> bool {
        let Some(peer) = self.peers.get(id) else { return false };
        let (limit, from) = if peer.wants.len() >= self.bounds.wants_per_peer {
            ("bitswap_wants_per_peer", Some(*id))
        } else if self.wants >= self.bounds.wants {
            ("bitswap_server_wants", self.crowd.last().map(|(_, peer)| *peer))
        } else {
            return true;
        };
        hit(limit);
        let oldest = |from: PeerId| Some((from, self.peers.get(&from)?.wants.oldest_standing()?));
        let Some((from, oldest)) = from.and_then(oldest) else { return false };
        self.cancel(&from, &oldest);
        true
    }

    /// Changes the wants of a peer, and notes how many of them stand.
    fn change_wants<R>(&mut self, id: &PeerId, change: impl FnOnce(&mut Wants) -> R) -> Option<R> {
        let wants = &mut self.peers.get_mut(id)?.wants;
        let before = wants.standing_len();
        let result = change(wants);
        let after = wants.standing_len();
        if before != after {
            self.crowd.remove(&(before, *id));
            self.crowd.extend((after > 0).then_some((after, *id)));
        }
        Some(result)
    }

    fn note_waiting(&mut self, id: &PeerId, now: Duration) {
        if let Some(peer) = self.peers.get_mut(id)
            && peer.wants.has_queued()
            && peer.waiting_since.is_none()
        {
            peer.waiting_since = Some(now);
            peer.served = peer.served.max(self.virtual_time);
        }
    }

    /// Blocks are here now: who waits for them is answered. Returns whether anybody does.
    pub(crate) fn notify(&mut self, cids: &[Cid], now: Duration) -> bool {
        self.news += 1;
        self.wake(cids, now)
    }

    fn wake(&mut self, cids: &[Cid], now: Duration) -> bool {
        if self.standing.is_empty() {
            return false;
        }
        let before = self.standing.len();
        for cid in cids {
            let hash = *cid.hash();
            while let Some((seq, id)) = self.oldest_waiting(hash) {
                self.standing.remove(&(hash, seq));
                self.change_wants(&id, |wants| wants.wake(seq));
                self.note_waiting(&id, now);
            }
        }
        self.standing.len() < before
    }

    /// The want that has stood longest for what hashes to this, and whose it is.
    fn oldest_waiting(&self, hash: Multihash) -> Option<(u64, PeerId)> {
        self.standing.range((hash, 0)..=(hash, u64::MAX)).next().map(|((_, seq), id)| (*seq, *id))
    }

    // ---- jobs -----------------------------------------------------------------------------------------

    /// The next read to start, for the peer whose turn it is; `None` where nobody can be served now.
    pub(crate) fn next_job(&mut self, now: Duration) -> Option<Job> {
        let full = self.jobs >= self.bounds.jobs || self.outstanding + JOB_BYTES > self.bounds.outstanding;
        if full || self.egress.as_ref().is_some_and(|bucket| !bucket.is_open(now)) {
            return None;
        }
        let id = self.pick(now)?;
        let peer = self.peers.get_mut(&id)?;
        self.virtual_time = self.virtual_time.max(peer.served);
        peer.reading = true;
        peer.waiting_since = None;
        let most = (2 * ANSWER_TARGET_BYTES / peer.block_bytes.max(1)).clamp(8, SERVER_WANTS_PER_PEER);
        let tasks = peer.wants.start(most);
        self.jobs += 1;
        self.outstanding += JOB_BYTES;
        // Counted before it is read: otherwise all the jobs that fit start on the same last token.
        if let Some(bucket) = &mut self.egress {
            bucket.take(ANSWER_TARGET_BYTES, now);
        }
        Some(Job { peer: id, epoch: peer.epoch, tasks, target_bytes: ANSWER_TARGET_BYTES, news: self.news })
    }

    fn pick(&self, now: Duration) -> Option<PeerId> {
        let bounds = self.bounds;
        self.peers
            .iter()
            .filter(|(_, peer)| {
                !peer.reading
                    && peer.wants.has_queued()
                    && peer.outstanding < bounds.outstanding_per_peer
                    && peer.answers.len() < ANSWERS_PER_PEER
                    && peer.egress.as_ref().is_none_or(|bucket| bucket.is_open(now))
            })
            .min_by_key(|(_, peer)| {
                let waited = peer.waiting_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
                let starved = (waited >= STARVED_AFTER).then_some(waited);
                let pending = peer.wants.queued().min(FAIR_PENDING);
                (Reverse(starved), peer.served / OUTSTANDING_PER_PEER as u64, Reverse(pending), peer.tiebreak)
            })
            .map(|(id, _)| *id)
    }

    /// A job ended. Returns whether the peer has an answer waiting now.
    pub(crate) fn finish(&mut self, done: Done, now: Duration) -> bool {
        self.end_job();
        let Some(peer) = self.peers.get_mut(&done.peer).filter(|peer| peer.epoch == done.epoch) else {
            return false;
        };
        let bytes = done.answer.block_bytes();
        peer.reading = false;
        peer.outstanding += bytes;
        peer.served += (bytes as u64).max(FAIR_MIN_COST);
        if let Some(average) = bytes.checked_div(done.answer.payloads.len()) {
            peer.block_bytes = average;
        }
        // The limit is on what leaves, so that small blocks and presences count with all that is around them.
        let leaving = if done.answer.is_empty() { 0 } else { done.answer.encoded_len(Version::V1_2) };
        for bucket in self.egress.iter_mut().chain(peer.egress.iter_mut()) {
            bucket.take(leaving, now);
        }
        self.outstanding += bytes;
        self.wants -= done.answered.iter().filter(|(cid, seq)| peer.wants.answered(cid, *seq)).count();
        peer.wants.put_back(done.unread);
        let has_answer = !done.answer.is_empty();
        if has_answer {
            peer.answers.push_back(done.answer);
        }
        self.stand(&done.peer, &done.missing);
        if done.news != self.news {
            // Blocks came while it read: one that it missed may be among them, and nobody would say so again.
            let missed: Vec<Cid> = done.missing.iter().map(|(cid, _)| **cid).collect();
            self.wake(&missed, now);
        }
        self.note_waiting(&done.peer, now);
        has_answer
    }

    /// Wants for what is not here stay.
    fn stand(&mut self, id: &PeerId, missing: &[(Arc<Cid>, u64)]) {
        let stood = self.change_wants(id, |wants| {
            let standing = missing.iter().filter(|(cid, seq)| wants.stand(cid, *seq));
            standing.map(|(cid, seq)| ((*Cid::hash(cid), *seq), *id)).collect::<Vec<_>>()
        });
        self.standing.extend(stood.unwrap_or_default());
    }

    /// A job ended without a result. Its wants stay unanswered until the peer asks again.
    pub(crate) fn abandon(&mut self, ticket: Ticket) {
        self.end_job();
        if let Some(peer) = self.peers.get_mut(&ticket.peer).filter(|peer| peer.epoch == ticket.epoch) {
            peer.reading = false;
        }
    }

    /// Gives back what a job was counted with while it ran.
    fn end_job(&mut self) {
        self.jobs -= 1;
        self.outstanding -= JOB_BYTES;
        if let Some(bucket) = &mut self.egress {
            bucket.give_back(ANSWER_TARGET_BYTES);
        }
    }

    /// The next answer to write to a peer. Its bytes count as outstanding until [`Server::written`].
    pub(crate) fn next_answer(&mut self, id: &PeerId) -> Option<Message> {
        self.peers.get_mut(id)?.answers.pop_front()
    }

    pub(crate) fn has_answer(&self, id: &PeerId) -> bool {
        self.peers.get(id).is_some_and(|peer| !peer.answers.is_empty())
    }

    /// Bytes of blocks were written to the peer, or dropped.
    pub(crate) fn written(&mut self, id: &PeerId, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(id) {
            let bytes = bytes.min(peer.outstanding);
            peer.outstanding -= bytes;
            self.outstanding -= bytes;
        }
    }

    /// An answer was written to its end, with the last `bytes` of its blocks.
    pub(crate) fn written_out(&mut self, id: &PeerId, bytes: usize) {
        self.written(id, bytes);
        if let Some(peer) = self.peers.get_mut(id) {
            peer.given_back = 0;
        }
    }

    /// An answer was not written out: it goes first once there is a stream again, whole, so that the `written` bytes
    /// of its blocks are outstanding again and within the egress limits once more. A peer whose streams always end
    /// in an answer does not hold it for ever.
    pub(crate) fn give_back(&mut self, id: &PeerId, answer: Message, written: usize, now: Duration) {
        let Some(peer) = self.peers.get_mut(id) else { return };
        peer.given_back += 1;
        if peer.given_back >= ANSWER_ATTEMPTS {
            hit("bitswap_answer_attempts");
            peer.given_back = 0;
            return self.written(id, answer.block_bytes() - written);
        }
        peer.outstanding += written;
        self.outstanding += written;
        for bucket in self.egress.iter_mut().chain(peer.egress.iter_mut()) {
            bucket.take(written, now);
        }
        peer.answers.push_front(answer);
    }

    // ---- for the shell --------------------------------------------------------------------------------

    /// Whether the connection is of use: the peer has work here.
    pub(crate) fn serves(&self, id: &PeerId) -> bool {
        self.peers.get(id).is_some_and(|peer| {
            peer.reading || peer.outstanding > 0 || !peer.answers.is_empty() || peer.wants.has_queued()
        })
    }

    /// Whether a peer waits for the egress limit, so that time alone makes work.
    pub(crate) fn is_throttled(&self) -> bool {
        (self.egress.is_some() || self.egress_per_peer.is_some())
            && self.peers.values().any(|peer| !peer.reading && peer.wants.has_queued())
    }

    /// Wants kept, and bytes read and unwritten.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.wants, self.outstanding)
    }

    #[cfg(test)]
    pub(crate) fn peers(&self) -> usize {
        self.peers.len()
    }

    /// What must be zero once every peer is gone and every job has ended.
    #[cfg(test)]
    fn footprint(&self) -> usize {
        let waiting = self.standing.len() + self.crowd.len();
        self.peers.len() + waiting + self.wants + self.jobs + self.outstanding
    }
}
