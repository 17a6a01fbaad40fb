//! One session: what it wants, who has it, and how much may be in flight.
//!
//! The window is in bytes, because that is what memory and bandwidth are made of, but wants are counted in
//! blocks whose size nobody knows before they come. So each want is charged with an estimate: the sizes that
//! came before, leaves (`raw`) and nodes apart, following growth at once and shrinking slowly, so that a run of
//! tiny directory nodes does not put a thousand large leaves in flight.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::time::Duration;

use floe_core::ports::SessionProgress;
use floe_core::{Block, Cid, cid};
use libp2p::PeerId;

use super::peer::PeerNo;
use crate::key::Key;
use crate::limits::{
    INBOX_BYTES, NEED_PROVIDERS_AFTER, NEED_PROVIDERS_BACKOFF, PROVIDER_MISSES, PROVIDERS_PER_SESSION,
    SESSION_WANTS, SESSION_WANTS_MIN, SESSION_WINDOW_BYTES, SESSION_WINDOW_START, held_bytes, hit,
};

/// A connected peer that should have blocks of the session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Provider {
    misses: u32,
    pub(super) delivered: u64,
}

/// A session.
pub(super) struct Session {
    pub(super) root: Key,
    /// Wants without their block.
    pub(super) keys: HashSet<Key>,
    /// Wants to be asked for, in order. An entry counts only if the want is still queued.
    pub(super) todo: VecDeque<Key>,
    /// Wants that no known provider has.
    pub(super) seeking: VecDeque<Key>,
    /// The one that was looked up last.
    pub(super) looked_up: Option<Key>,
    pub(super) providers: BTreeMap<PeerNo, Provider>,
    /// Peers that should have it and are not connected.
    pub(super) hinted: BTreeSet<PeerId>,
    /// Connected peers that were asked.
    pub(super) asked: BTreeSet<PeerNo>,
    served: BTreeSet<PeerId>,
    /// Wants asked of a provider, and the bytes expected for them.
    pub(super) in_flight: usize,
    pub(super) in_flight_bytes: usize,
    window_bytes: usize,
    leaf_bytes: Estimate,
    node_bytes: Estimate,
    inbox: Vec<Block>,
    /// As [`held_bytes`] counts it.
    pub(super) inbox_bytes: usize,
    pub(super) last_progress: Duration,
    pub(super) need_providers_at: Duration,
    backoff: Duration,
    pub(super) last_error: Option<String>,
}

impl Session {
    pub(super) fn new(root: Cid, now: Duration) -> Self {
        Self {
            root: Key::new(root),
            keys: HashSet::new(),
            todo: VecDeque::new(),
            seeking: VecDeque::new(),
            looked_up: None,
            providers: BTreeMap::new(),
            hinted: BTreeSet::new(),
            asked: BTreeSet::new(),
            served: BTreeSet::new(),
            in_flight: 0,
            in_flight_bytes: 0,
            window_bytes: SESSION_WINDOW_START,
            leaf_bytes: Estimate(256 << 10),
            node_bytes: Estimate(32 << 10),
            inbox: Vec::new(),
            inbox_bytes: 0,
            last_progress: now,
            need_providers_at: now,
            backoff: NEED_PROVIDERS_BACKOFF.0,
            last_error: None,
        }
    }

    /// Bytes expected for a block.
    pub(super) fn estimate(&self, cid: &Cid) -> usize {
        if cid.codec() == cid::code::RAW { self.leaf_bytes.0 } else { self.node_bytes.0 }
    }

    /// Whether another want may be sent, where `share` bounds the bytes of this session.
    pub(super) fn has_budget(&self, share: usize) -> bool {
        self.in_flight < SESSION_WANTS_MIN
            || (self.in_flight < SESSION_WANTS
                && self.in_flight_bytes + self.inbox_bytes < self.window(share))
    }

    fn window(&self, share: usize) -> usize {
        self.window_bytes.min(share)
    }

    /// See [`crate::BitswapSession::room`].
    pub(super) fn room(&self, share: usize) -> usize {
        // The leaves are what there is many of.
        let each = self.leaf_bytes.0.max(1);
        let queued = self.keys.len().saturating_sub(self.in_flight);
        let taken = self.in_flight_bytes + self.inbox_bytes + queued * each;
        let by_bytes = self.window(share).saturating_sub(taken) / each;
        let least = SESSION_WANTS_MIN.saturating_sub(self.keys.len());
        let most = SESSION_WANTS.saturating_sub(self.keys.len());
        if self.inbox_bytes >= self.window(share) { 0 } else { by_bytes.max(least).min(most) }
    }

    /// Takes a block in. `Err` where the inbox is full: the block is to be asked for again later.
    pub(super) fn deliver(&mut self, block: Block, from: PeerId, now: Duration) -> Result<(), Block> {
        let bytes = block.data().len();
        self.window_bytes = (self.window_bytes + bytes).min(SESSION_WINDOW_BYTES);
        let estimate =
            if block.cid().codec() == cid::code::RAW { &mut self.leaf_bytes } else { &mut self.node_bytes };
        estimate.observe(bytes);
        self.progressed(now);
        let held = held_bytes(block.data());
        if self.inbox_bytes + held > INBOX_BYTES {
            hit("bitswap_inbox_bytes");
            return Err(block);
        }
        self.inbox_bytes += held;
        self.inbox.push(block);
        if self.served.len() < PROVIDERS_PER_SESSION {
            self.served.insert(from);
        }
        Ok(())
    }

    pub(super) fn take_inbox(&mut self) -> Vec<Block> {
        self.inbox_bytes = 0;
        std::mem::take(&mut self.inbox)
    }

    pub(super) fn progressed(&mut self, now: Duration) {
        self.last_progress = now;
        self.backoff = NEED_PROVIDERS_BACKOFF.0;
        self.need_providers_at = now + NEED_PROVIDERS_AFTER;
    }

    /// Providers are asked for now; returns nothing, the next time is later by the back-off.
    pub(super) fn asked_for_providers(&mut self, now: Duration) {
        self.need_providers_at = now + self.backoff;
        self.backoff = (self.backoff * 2).min(NEED_PROVIDERS_BACKOFF.1);
    }

    /// Counts a connected peer as a provider. Returns whether it is new as one.
    pub(super) fn add_provider(&mut self, no: PeerNo) -> bool {
        if self.providers.contains_key(&no) {
            return false;
        }
        if self.providers.len() >= PROVIDERS_PER_SESSION {
            hit("bitswap_providers_per_session");
            return false;
        }
        self.providers.insert(no, Provider::default());
        self.asked.insert(no);
        true
    }

    pub(super) fn hint(&mut self, peer: PeerId) {
        if self.hinted.len() < PROVIDERS_PER_SESSION {
            self.hinted.insert(peer);
        } else {
            hit("bitswap_providers_per_session");
        }
    }

    pub(super) fn delivered_by(&mut self, no: PeerNo) {
        self.add_provider(no);
        if let Some(provider) = self.providers.get_mut(&no) {
            provider.delivered += 1;
            provider.misses = 0;
        }
    }

    /// The provider lacks a block or did not send it in time.
    pub(super) fn missed_by(&mut self, no: PeerNo) {
        if let Some(provider) = self.providers.get_mut(&no) {
            provider.misses += 1;
            if provider.misses >= PROVIDER_MISSES {
                self.providers.remove(&no);
            }
        }
    }

    pub(super) fn progress(&self) -> SessionProgress {
        SessionProgress {
            peers: self.asked.len(),
            providers: self.served.len(),
            outstanding: self.keys.len(),
            last_error: self.last_error.clone(),
        }
    }
}

/// A running estimate of block sizes: up by a quarter of the difference, down by a sixteenth.
#[derive(Debug, Clone, Copy)]
struct Estimate(usize);

impl Estimate {
    fn observe(&mut self, bytes: usize) {
        if bytes > self.0 {
            self.0 += (bytes - self.0).div_ceil(4);
        } else {
            self.0 -= (self.0 - bytes) / 16;
        }
    }
}
