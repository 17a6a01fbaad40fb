//! The walk over a DAG: which block next, with memory that does not grow with the DAG.
//!
//! ```text
//!              stack                                      handed out
//!   top    ┌─ hot: nodes with their links in memory ─┐ next()   ┌──────────┐  block()
//!          │       (HELD_LINKS in all)               │ ───────> │ pending  │ ────────> a new node on top
//!          ├─ cold: nodes without, ~50 bytes each ───┤ Visit    └──────────┘
//!   bottom └─       (read again: Reload)             ┘             seen(), present(): gone
//! ```
//! The caller takes CIDs with [`Walk::next`] for as long as it has room for more in flight; nodes that come are
//! put on top, so the walk goes deep first and the stack stays small. When the links in memory are too many,
//! the lowest nodes drop theirs and are read from the store again when their turn comes.
//!
//! # Each block once
//! A walk has no visited set, for it would not fit memory: the store's manifest is one. The walk itself leaves
//! out what is pending and what a block links to twice. So [`Walk::seen`] has a rule. The manifest goes by
//! multihash, and one multihash may be linked under several codecs: bytes that were counted as `raw` were never
//! scanned as dag-pb. It may also be ahead of the checkpoint that the walk resumed from. **Answer `seen` only
//! where [`Walk::needs_data`] is false or this walk was given the block under this codec (since it began or was
//! resumed, or in flight now); else read the block and answer [`Walk::block_again`].** To answer so once too
//! often costs look-ups; to answer `seen` wrongly loses a part of the DAG.
//!
//! Inline (identity) children are part of the block that holds them: they are walked within it, are neither
//! visited nor counted, and add no level.
//!
//! After an error the walk is over. A crash loses it; the checkpoint goes on.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use floe_core::cid::canonical;
use floe_core::{Block, Cid};

use crate::frontier::{Entry, Stack, Todo, entry_bytes};
use crate::limits::{self, HELD_LINKS, MAX_OPEN_BYTES, MAX_OPEN_NODES, MAX_PENDING, MAX_RELOADS};
use crate::links::{self, Links};

/// What a pin may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Most unique blocks.
    pub max_blocks: u64,
    /// Most bytes.
    pub max_bytes: u64,
    /// Deepest link path from the root, as the walk first meets each block.
    pub max_depth: u32,
}

/// Why a DAG cannot be walked. All are final for the pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalkError {
    /// A link to a codec that nobody can walk.
    #[error("{cid} has the codec 0x{codec:x}, which cannot be walked")]
    Codec {
        /// The block.
        cid: Cid,
        /// Its codec.
        codec: u64,
    },
    /// A block that is not what its codec says.
    #[error("{cid} is malformed: {reason}")]
    Malformed {
        /// The block.
        cid: Cid,
        /// What is wrong.
        reason: String,
    },
    /// A link with a CID that is not accepted.
    #[error("{parent} links to a CID that is not accepted: {reason}")]
    Link {
        /// The linking block.
        parent: Cid,
        /// What is wrong.
        reason: String,
    },
    /// Over budget.
    #[error("the DAG has more than {limit} {what}")]
    Budget {
        /// `blocks`, `bytes`, `levels`, `open nodes` or `bytes of open nodes`.
        what: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A checkpoint that does not decode.
    #[error("the saved frontier is damaged: {0}")]
    Frontier(String),
}

/// What the walk needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Look at this CID: claim it in the store and answer with [`Walk::seen`], [`Walk::present`],
    /// [`Walk::block`] or [`Walk::waiting`]. Never an identity CID (those are walked inside).
    Visit(Cid),
    /// Read this block again from the store and answer with [`Walk::reloaded`]: its links were dropped to bound
    /// memory. The answer may come later; the walk goes on elsewhere meanwhile.
    Reload(Cid),
}

/// A node whose links are in memory.
struct Node {
    cid: Cid,
    depth: u32,
    shards_above: u8,
    /// Links handed out so far.
    next: u32,
    links: Links,
}

/// A CID that was handed out.
#[derive(Clone, Copy)]
struct Pending {
    cid: Cid,
    depth: u32,
    shards_above: u8,
    waiting: bool,
}

/// A walk over a DAG by unique CID: sans-IO, iterative, memory bounded whatever the DAG's shape.
pub struct Walk {
    budget: Budget,
    blocks: u64,
    bytes: u64,
    cold: Stack,
    hot: VecDeque<Node>,
    /// What the entries of `hot` have in bytes, once they are saved.
    hot_bytes: usize,
    open_bytes_max: usize,
    /// Links in `hot`.
    held: usize,
    held_max: usize,
    pending: HashMap<Cid, Pending>,
    waiting: usize,
    reloads: Vec<Entry>,
}

impl Walk {
    /// Begins at the root.
    ///
    /// # Errors
    /// [`WalkError::Codec`] and [`WalkError::Link`] for a root that cannot be walked; for an inline root also
    /// what [`Walk::block`] says.
    pub fn new(root: Cid, budget: Budget) -> Result<Self, WalkError> {
        links::accept(&root, &root)?;
        let mut walk = Self::over(Stack::default(), budget, 0, 0);
        match Block::inline(&root) {
            Some(block) => walk.open_inline(&block)?,
            None => walk.cold.push(&Entry { cid: root, depth: 0, shards_above: 0, todo: Todo::Visit }),
        }
        Ok(walk)
    }

    /// Goes on from a checkpoint; `blocks` and `bytes` are what the manifest already holds.
    ///
    /// # Errors
    /// [`WalkError::Frontier`].
    pub fn resume(frontier: &[u8], budget: Budget, blocks: u64, bytes: u64) -> Result<Self, WalkError> {
        Ok(Self::over(Stack::decode(frontier)?, budget, blocks, bytes))
    }

    fn over(cold: Stack, budget: Budget, blocks: u64, bytes: u64) -> Self {
        Self {
            budget,
            blocks,
            bytes,
            cold,
            hot: VecDeque::new(),
            hot_bytes: 0,
            open_bytes_max: MAX_OPEN_BYTES,
            held: 0,
            held_max: HELD_LINKS,
            pending: HashMap::new(),
            waiting: 0,
            reloads: Vec::new(),
        }
    }

    /// Everything needed to go on later. CIDs being waited for are part of it.
    pub fn checkpoint(&self) -> Bytes {
        let mut all = self.cold.clone();
        self.reloads.iter().for_each(|entry| all.push(entry));
        self.hot.iter().for_each(|node| all.push(&node.entry()));
        for Pending { cid, depth, shards_above, .. } in self.pending.values().copied() {
            all.push(&Entry { cid, depth, shards_above, todo: Todo::Visit });
        }
        all.encode()
    }

    /// Counts blocks that the manifest holds and this walk has not counted: all of them, where a walk begins at the
    /// root over a manifest that is not empty; or one that was just claimed and whose bytes are still to be read.
    /// Each is answered with [`Walk::block_again`] from then on.
    ///
    /// # Errors
    /// [`WalkError::Budget`].
    pub fn count_held(&mut self, blocks: u64, bytes: u64) -> Result<(), WalkError> {
        self.blocks = self.blocks.saturating_add(blocks);
        self.bytes = self.bytes.saturating_add(bytes);
        within("blocks", self.blocks, self.budget.max_blocks)?;
        within("bytes", self.bytes, self.budget.max_bytes)
    }

    /// The next thing to do; `None` when all is visited or waits for blocks.
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end: more follows when blocks come")]
    pub fn next(&mut self) -> Option<Next> {
        loop {
            if self.pending.len() >= MAX_PENDING {
                limits::hit("walk_pending");
                return None;
            }
            let Some(node) = self.hot.back_mut() else { return self.next_cold() };
            let Some(link) = node.links.next_followed() else {
                self.drop_top();
                continue;
            };
            node.next += 1;
            let shards_above = if link.is_shard { node.shards_above.saturating_add(1) } else { 0 };
            let depth = node.depth.saturating_add(1);
            if node.links.len() == 0 {
                self.drop_top();
            }
            self.held -= 1;
            if let Some(visit) = self.hand_out(link.cid, depth, shards_above) {
                return Some(visit);
            }
        }
    }

    /// All links of the node on top are handed out.
    fn drop_top(&mut self) {
        if let Some(node) = self.hot.pop_back() {
            self.hot_bytes -= entry_bytes(&node.cid);
        }
    }

    /// Goes on in the lower part of the stack.
    fn next_cold(&mut self) -> Option<Next> {
        loop {
            if self.reloads.len() >= MAX_RELOADS {
                limits::hit("walk_reloads");
                return None;
            }
            let entry = self.cold.pop()?;
            let Todo::Links(next) = entry.todo else {
                match self.hand_out(entry.cid, entry.depth, entry.shards_above) {
                    Some(visit) => return Some(visit),
                    None => continue,
                }
            };
            if let Some(same) = self.reloads.iter_mut().find(|other| other.cid == entry.cid) {
                // The same node twice on the stack: one reading serves both, from the earlier link on.
                if let Todo::Links(other) = &mut same.todo {
                    *other = next.min(*other);
                }
                continue;
            }
            self.reloads.push(entry);
            return Some(Next::Reload(entry.cid));
        }
    }

    fn hand_out(&mut self, cid: Cid, depth: u32, shards_above: u8) -> Option<Next> {
        let key = canonical(&cid);
        if self.pending.contains_key(&key) {
            return None;
        }
        self.pending.insert(key, Pending { cid, depth, shards_above, waiting: false });
        Some(Next::Visit(cid))
    }

    fn take(&mut self, cid: &Cid) -> Option<Pending> {
        let pending = self.pending.remove(&canonical(cid))?;
        self.waiting -= usize::from(pending.waiting);
        Some(pending)
    }

    /// The visited CID was met before: see the rule in the module's text.
    pub fn seen(&mut self, cid: &Cid) {
        self.take(cid);
    }

    /// Whether a present block of this CID has to be read for its links (false for raw and other leaves).
    pub fn needs_data(cid: &Cid) -> bool {
        links::has_links(cid.codec())
    }

    /// The visited CID is here, has no links to scan, and this many bytes.
    ///
    /// # Errors
    /// [`WalkError::Budget`].
    pub fn present(&mut self, cid: &Cid, len: u32) -> Result<(), WalkError> {
        debug_assert!(!Self::needs_data(cid), "a block with links must be read");
        match self.take(cid) {
            Some(_) => self.count_held(1, u64::from(len)),
            None => Ok(()),
        }
    }

    /// The visited CID is being fetched; [`Walk::block`] follows.
    pub fn waiting(&mut self, cid: &Cid) {
        if let Some(pending) = self.pending.get_mut(&canonical(cid)) {
            self.waiting += usize::from(!pending.waiting);
            pending.waiting = true;
        }
    }

    /// A block came, from the store or from a peer: counted, its links scanned. A block that was not handed out,
    /// or came before, is ignored.
    ///
    /// # Errors
    /// [`WalkError`]: over budget, malformed, or with a link that cannot be followed.
    pub fn block(&mut self, block: &Block) -> Result<(), WalkError> {
        let Some(pending) = self.take(block.cid()) else { return Ok(()) };
        self.count_held(1, block.data().len() as u64)?;
        self.open(block, pending.depth, pending.shards_above, 0)
    }

    /// As [`Walk::block`], for bytes that this walk or its manifest has counted before: after a resume, or under
    /// another codec. Its links are scanned, nothing is counted.
    ///
    /// # Errors
    /// As [`Walk::block`].
    pub fn block_again(&mut self, block: &Block) -> Result<(), WalkError> {
        let Some(pending) = self.take(block.cid()) else { return Ok(()) };
        self.open(block, pending.depth, pending.shards_above, 0)
    }

    /// The answer to [`Next::Reload`].
    ///
    /// # Errors
    /// As [`Walk::block`].
    pub fn reloaded(&mut self, block: &Block) -> Result<(), WalkError> {
        let asked = canonical(block.cid());
        let Some(at) = self.reloads.iter().position(|entry| canonical(&entry.cid) == asked) else {
            return Ok(());
        };
        let entry = self.reloads.swap_remove(at);
        let Todo::Links(next) = entry.todo else { return Ok(()) };
        self.open(block, entry.depth, entry.shards_above, next)
    }

    /// Links held in memory: bounded by [`HELD_LINKS`] and the node on top.
    pub fn links_held(&self) -> usize {
        self.held
    }

    /// How many CIDs are waited for.
    pub fn pending(&self) -> usize {
        self.waiting
    }

    /// Whether every block was visited and came.
    pub fn is_done(&self) -> bool {
        self.pending.is_empty() && self.reloads.is_empty() && self.hot.is_empty() && self.cold.len() == 0
    }

    /// Puts a node on top, from its link `next` on.
    fn open(&mut self, block: &Block, depth: u32, shards_above: u8, next: u32) -> Result<(), WalkError> {
        if !Self::needs_data(block.cid()) {
            return Ok(());
        }
        let mut links = links::read(block, u32::from(shards_above))?;
        links.skip_links(next);
        if links.len() == 0 {
            return Ok(());
        }
        within("levels", u64::from(depth) + 1, u64::from(self.budget.max_depth))?;
        self.held += links.len();
        self.hot_bytes += entry_bytes(block.cid());
        self.hot.push_back(Node { cid: *block.cid(), depth, shards_above, next, links });
        self.cool()
    }

    /// An inline root cannot be read again from a store, so what it links to is put on the stack at once: three
    /// links at most.
    fn open_inline(&mut self, root: &Block) -> Result<(), WalkError> {
        let mut links = links::read(root, 0)?;
        if links.len() > 0 {
            within("levels", 1, u64::from(self.budget.max_depth))?;
        }
        while let Some(link) = links.next_followed() {
            let shards_above = u8::from(link.is_shard);
            self.cold.push(&Entry { cid: link.cid, depth: 1, shards_above, todo: Todo::Visit });
        }
        Ok(())
    }

    /// Drops links from the bottom up until few enough are held; the node on top keeps its own.
    fn cool(&mut self) -> Result<(), WalkError> {
        while self.held > self.held_max && self.hot.len() > 1 {
            let Some(node) = self.hot.pop_front() else { break };
            limits::hit("walk_held_links");
            self.held -= node.links.len();
            self.hot_bytes -= entry_bytes(&node.cid);
            self.cold.push(&node.entry());
        }
        within("open nodes", (self.cold.len() + self.hot.len()) as u64, MAX_OPEN_NODES as u64)?;
        let bytes = self.cold.bytes() + self.hot_bytes;
        within("bytes of open nodes", bytes as u64, self.open_bytes_max as u64)
    }
}

impl Node {
    fn entry(&self) -> Entry {
        Entry {
            cid: self.cid,
            depth: self.depth,
            shards_above: self.shards_above,
            todo: Todo::Links(self.next),
        }
    }
}

fn within(what: &'static str, value: u64, limit: u64) -> Result<(), WalkError> {
    if value <= limit {
        return Ok(());
    }
    limits::hit(match what {
        "blocks" => "pin_blocks",
        "bytes" => "pin_bytes",
        "levels" => "pin_depth",
        "bytes of open nodes" => "walk_open_bytes",
        _ => "walk_open_nodes",
    });
    Err(WalkError::Budget { what, limit })
}

#[cfg(test)]
mod tests;
