//! The walk over a DAG: by unique CID, depth first, without recursion and without IO.
//!
//! ```text
//!   next() ── Visit(cid) ──> the caller claims it ──> seen | present | block | waiting ... block
//!      │                                                         │
//!      └── Reload(cid) ──> the caller reads it again ──> reloaded┘  links go onto the stack
//! ```
//!
//! The visited set is the caller's (the store's manifest, on disk). What the walk holds is its frontier: a stack of
//! nodes with the links that are still to be visited, and the CIDs being waited for. Depth first keeps the stack as
//! small as the DAG is deep; a node's links are at most what fits into a block. Should all links held exceed
//! [`MAX_LINKS_HELD`], the lowest nodes of the stack keep their CID and position alone and are read again when their
//! turn comes: memory is bounded whatever the shape.
//!
//! A crash loses nothing: [`Walk::checkpoint`] is all that is needed to go on.

use std::collections::HashMap;

use bytes::Bytes;
use floe_core::Block;
use floe_core::Cid;
use floe_core::cid;

use crate::codec;
use crate::{Budget, Next, WalkError};

/// Links held in memory over all nodes of the stack: about 16 MiB of CIDs.
pub const MAX_LINKS_HELD: usize = 100_000;

/// First byte of a checkpoint.
const VERSION: u8 = 1;

/// A node of which some links are still to be visited.
#[derive(Debug)]
struct Frame {
    cid: Cid,
    /// Of the node; its links are one deeper.
    depth: u32,
    /// How many of its links were taken.
    taken: usize,
    /// The rest, the next one last; `None` when they were dropped and must be read again.
    rest: Option<Vec<Cid>>,
}

/// A walk over a DAG by unique CID: sans-IO, iterative, memory bounded whatever the DAG's shape.
#[derive(Debug)]
pub struct Walk {
    budget: Budget,
    blocks: u64,
    bytes: u64,
    stack: Vec<Frame>,
    /// Links in `stack`.
    held: usize,
    /// Handed out by `Visit` without an answer, and those waited for, with their depth.
    visiting: HashMap<Cid, u32>,
    waiting: HashMap<Cid, u32>,
    /// From a checkpoint, or the root: to be visited before the stack goes on.
    loose: Vec<(Cid, u32)>,
    /// The top frame was handed out by `Reload`.
    reloading: bool,
}

impl Walk {
    /// Begins at the root. An identity root is walked at once.
    ///
    /// # Errors
    /// The root's codec cannot be walked, or its inline data is malformed.
    pub fn new(root: Cid, budget: Budget) -> Result<Self, WalkError> {
        let mut walk = Self::empty(budget, 0, 0);
        admit(&root)?;
        walk.loose.push((root, 0));
        walk.unfold_inline();
        Ok(walk)
    }

    fn empty(budget: Budget, blocks: u64, bytes: u64) -> Self {
        Self {
            budget,
            blocks,
            bytes,
            stack: Vec::new(),
            held: 0,
            visiting: HashMap::new(),
            waiting: HashMap::new(),
            loose: Vec::new(),
            reloading: false,
        }
    }

    /// Goes on from a checkpoint; `blocks` and `bytes` are what the manifest already holds.
    ///
    /// # Errors
    /// [`WalkError::Frontier`] where the checkpoint does not decode; begin again at the root then.
    pub fn resume(frontier: &[u8], budget: Budget, blocks: u64, bytes: u64) -> Result<Self, WalkError> {
        let mut walk = Self::empty(budget, blocks, bytes);
        walk.decode(frontier).ok_or_else(|| WalkError::Frontier(format!("{} bytes", frontier.len())))?;
        Ok(walk)
    }

    fn decode(&mut self, frontier: &[u8]) -> Option<()> {
        let (&version, mut rest) = frontier.split_first()?;
        if version != VERSION {
            return None;
        }
        let number = |rest: &mut &[u8]| -> Option<u64> {
            let (value, after) = unsigned_varint::decode::u64(rest).ok()?;
            *rest = after;
            Some(value)
        };
        let cid = |rest: &mut &[u8]| -> Option<Cid> {
            let len = usize::try_from(number(rest)?).ok()?;
            let (bytes, after) = rest.split_at_checked(len)?;
            *rest = after;
            cid::parse_bytes(bytes).ok()
        };
        for _ in 0..number(&mut rest)? {
            let frame = (cid(&mut rest)?, u32::try_from(number(&mut rest)?).ok()?, number(&mut rest)?);
            let (cid, depth, taken) = frame;
            self.stack.push(Frame { cid, depth, taken: usize::try_from(taken).ok()?, rest: None });
        }
        for _ in 0..number(&mut rest)? {
            self.loose.push((cid(&mut rest)?, u32::try_from(number(&mut rest)?).ok()?));
        }
        rest.is_empty().then_some(())
    }

    /// Everything needed to go on later. CIDs being waited for are part of it.
    pub fn checkpoint(&self) -> Bytes {
        let mut out = vec![VERSION];
        let mut buffer = unsigned_varint::encode::u64_buffer();
        let mut number = |out: &mut Vec<u8>, n: u64| {
            out.extend_from_slice(unsigned_varint::encode::u64(n, &mut buffer));
        };
        number(&mut out, self.stack.len() as u64);
        for frame in &self.stack {
            let cid = frame.cid.to_bytes();
            number(&mut out, cid.len() as u64);
            out.extend_from_slice(&cid);
            number(&mut out, u64::from(frame.depth));
            number(&mut out, frame.taken as u64);
        }
        number(&mut out, (self.loose.len() + self.visiting.len() + self.waiting.len()) as u64);
        let loose = self.loose.iter().map(|(cid, depth)| (cid, depth));
        for (cid, depth) in loose.chain(&self.visiting).chain(&self.waiting) {
            let cid = cid.to_bytes();
            number(&mut out, cid.len() as u64);
            out.extend_from_slice(&cid);
            number(&mut out, u64::from(*depth));
        }
        out.into()
    }

    /// Lowers or raises the byte budget (a quota changed).
    pub fn set_max_bytes(&mut self, max_bytes: u64) {
        self.budget.max_bytes = max_bytes;
    }

    /// The next thing to do; `None` when all is visited or waits for blocks.
    pub fn next(&mut self) -> Option<Next> {
        loop {
            self.unfold_inline();
            if let Some((cid, depth)) = self.loose.pop() {
                if self.visiting.contains_key(&cid) || self.waiting.contains_key(&cid) {
                    continue;
                }
                self.visiting.insert(cid, depth);
                return Some(Next::Visit(cid));
            }
            let top = self.stack.last_mut()?;
            let depth = top.depth + 1;
            match &mut top.rest {
                None if self.reloading => return None,
                None => {
                    self.reloading = true;
                    return Some(Next::Reload(top.cid));
                }
                Some(rest) => match rest.pop() {
                    Some(cid) => {
                        top.taken += 1;
                        self.held -= 1;
                        self.loose.push((cid, depth));
                    }
                    None => {
                        self.stack.pop();
                    }
                },
            }
        }
    }

    /// The visited CID was met before.
    pub fn seen(&mut self, cid: &Cid) {
        self.visiting.remove(cid);
    }

    /// Whether a present block of this CID has to be read for its links (false for raw and other leaves).
    pub fn needs_data(cid: &Cid) -> bool {
        codec::bears_links(cid.codec())
    }

    /// The visited CID is here, has no links to scan, and this many bytes.
    ///
    /// # Errors
    /// [`WalkError::Budget`].
    pub fn present(&mut self, cid: &Cid, len: u32) -> Result<(), WalkError> {
        self.visiting.remove(cid);
        self.count(u64::from(len))
    }

    /// The visited CID is being fetched; [`Walk::block`] follows.
    pub fn waiting(&mut self, cid: &Cid) {
        if let Some(depth) = self.visiting.remove(cid) {
            self.waiting.insert(*cid, depth);
        }
    }

    /// A block came, from the store or from a peer: counted, its links scanned. One that nobody waits for is ignored.
    ///
    /// # Errors
    /// [`WalkError`]: final for the pin.
    pub fn block(&mut self, block: &Block) -> Result<(), WalkError> {
        let depth = match self.waiting.remove(block.cid()) {
            Some(depth) => depth,
            None => match self.visiting.remove(block.cid()) {
                Some(depth) => depth,
                None => return Ok(()),
            },
        };
        self.count(block.data().len() as u64)?;
        self.push(*block.cid(), depth, codec::links(block)?)
    }

    /// The answer to [`Next::Reload`].
    ///
    /// # Errors
    /// [`WalkError`]: final for the pin.
    pub fn reloaded(&mut self, block: &Block) -> Result<(), WalkError> {
        let Some(top) = self.stack.last_mut().filter(|top| self.reloading && top.cid == *block.cid()) else {
            return Ok(());
        };
        let mut links = codec::links(block)?;
        links.drain(..top.taken.min(links.len()));
        links.reverse();
        self.held += links.len();
        top.rest = Some(links);
        self.reloading = false;
        self.drop_lowest();
        Ok(())
    }

    /// Links held in memory, for tests of the bound.
    pub fn links_held(&self) -> usize {
        self.held
    }

    /// How many CIDs are waited for.
    pub fn pending(&self) -> usize {
        self.waiting.len()
    }

    /// Whether every block was visited and came.
    pub fn is_done(&self) -> bool {
        self.loose.is_empty() && self.stack.is_empty() && self.visiting.is_empty() && self.waiting.is_empty()
    }

    /// Puts a scanned node on the stack, after a look at what it links to.
    fn push(&mut self, cid: Cid, depth: u32, mut links: Vec<Cid>) -> Result<(), WalkError> {
        if links.is_empty() {
            return Ok(());
        }
        if depth >= self.budget.max_depth {
            return Err(WalkError::Budget { what: "levels", limit: u64::from(self.budget.max_depth) });
        }
        links.iter().try_for_each(admit)?;
        links.reverse();
        self.held += links.len();
        // An answer may come while the top is being read again; that one has to stay on top.
        let at = self.stack.len() - usize::from(self.reloading);
        self.stack.insert(at, Frame { cid, depth, taken: 0, rest: Some(links) });
        self.drop_lowest();
        Ok(())
    }

    /// Keeps the links held under their bound: the lowest nodes are the last to be needed.
    fn drop_lowest(&mut self) {
        let top = self.stack.len().saturating_sub(1);
        for frame in &mut self.stack[..top] {
            if self.held <= MAX_LINKS_HELD {
                return;
            }
            self.held -= frame.rest.take().map_or(0, |rest| rest.len());
        }
    }

    /// Replaces identity CIDs at the head of the loose ones by what they link to: their data is here, they are
    /// neither fetched nor counted.
    fn unfold_inline(&mut self) {
        while let Some((cid, depth)) = self.loose.last().copied()
            && let Some(block) = Block::inline(&cid)
        {
            self.loose.pop();
            // `admit` scanned it before it was let in.
            let links = codec::links(&block).unwrap_or_default();
            self.loose.extend(links.into_iter().rev().map(|link| (link, depth + 1)));
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), WalkError> {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.blocks > self.budget.max_blocks {
            return Err(WalkError::Budget { what: "blocks", limit: self.budget.max_blocks });
        }
        if self.bytes > self.budget.max_bytes {
            return Err(WalkError::Budget { what: "bytes", limit: self.budget.max_bytes });
        }
        Ok(())
    }
}

/// Whether a CID can be walked, as far as can be told before its block is here; for identity CIDs, all they hold.
/// The nesting of identity in identity is bounded by their 128 bytes.
fn admit(cid: &Cid) -> Result<(), WalkError> {
    if !codec::is_known(cid.codec()) {
        return Err(WalkError::Codec { cid: *cid, codec: cid.codec() });
    }
    match Block::inline(cid) {
        Some(block) => codec::links(&block)?.iter().try_for_each(admit),
        None => Ok(()),
    }
}
