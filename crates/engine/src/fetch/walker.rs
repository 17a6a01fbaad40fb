//! One DAG's walk against the store: the part of a fetch that may block on the disk, and never waits for the
//! network.
//!
//! A [`Walker`] owns the [`Walk`] (what to look at next), the [`Protect`] (what this DAG's manifest already has,
//! and what keeps it from the collector) and the blocks that came but are not yet on disk. Its owner moves it to
//! a blocking thread for a [`Walker::step`], and back.
//!
//! Four rules make it correct:
//! - A CID that was found missing is *in flight* until its block is durable; a second link to it asks for
//!   nothing.
//! - The manifest doubles as the walk's visited set, and it can be ahead of the saved frontier: after a crash a
//!   node may be there whose children never were. So "seen" is believed of leaves alone; a node with links is
//!   skipped only if *this* walk has scanned it under *this* CID, else it is read and scanned again: once, for
//!   what a walk has scanned is never forgotten while it runs. The same rule covers bytes that are linked to under
//!   two codecs.
//! - The manifest and the walk count the same blocks, each once: a block is counted when it is claimed as present or
//!   when it came, and one that is read again, for whatever reason, is not counted again.
//! - The frontier is saved only when every block that the walk has scanned is durable.

use std::collections::HashMap;

use floe_blockstore::{BlockStore, CidSet, Claim, Error as StoreError, ManifestTotals, Protect};
use floe_core::ports::Exchange;
use floe_core::{Block, Cid, Multihash};
use floe_dag::{Budget, Next, Walk, WalkError};

use crate::limits::{READY_WANTS, SCANNED_IN_MEMORY, VISITS_PER_STEP, is_full_write};

/// Why a step stopped early.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// The DAG cannot be walked: final for the pin.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// The store refused; the walk stands where it was and can go on later.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a step found.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// CIDs that are missing, each named once.
    pub(super) wants: Vec<Cid>,
    /// CIDs looked at and blocks taken.
    pub(super) visits: usize,
    /// Whether there is nothing more to look at until blocks come.
    pub(super) exhausted: bool,
    /// The walk stopped because the DAG would pass its allowance: with so many bytes.
    pub(super) short: Option<u64>,
    /// Blocks that were not taken, for that or because the store refused.
    pub(super) left: Vec<Block>,
}

/// A CID that is missing, until its block is durable.
struct Flight {
    /// As it was asked for.
    cid: Cid,
    /// What the block is for.
    purpose: Purpose,
    /// Other CIDs of the same bytes whose links have to be scanned too.
    aliases: Vec<Cid>,
    /// Where in `fresh` the block is, once it came.
    arrived: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// It was never here.
    New,
    /// It is in the manifest, and counted, but its bytes were damaged.
    Mend,
    /// As `Mend`, and the walk wants its links again.
    Reload,
}

/// See the module.
pub(super) struct Walker {
    protect: Protect,
    walk: Walk,
    blocks: BlockStore,
    flight: HashMap<Multihash, Flight>,
    /// Came, walked, not yet durable.
    fresh: Vec<Block>,
    fresh_bytes: usize,
    /// A CID that the store refused to answer for.
    unanswered: Option<Next>,
    /// What this walk has opened for its links.
    scanned: CidSet,
    /// Bytes that the accounts have room for, and those of the DAG so far.
    allowance: u64,
    held: u64,
    /// Bytes made durable since the frontier was saved.
    since_checkpoint: u64,
}

impl Walker {
    /// Begins, or goes on where the saved frontier says. May block on the disk.
    pub(super) fn new(
        protect: Protect,
        root: Cid,
        budget: Budget,
        blocks: BlockStore,
    ) -> Result<Self, WalkError> {
        let held = protect.totals();
        let walk = match protect.frontier() {
            Some(frontier) => match Walk::resume(&frontier, budget, held.blocks, held.bytes) {
                Ok(walk) => walk,
                Err(WalkError::Frontier(reason)) => {
                    // Everything that is here is found again from the root; only look-ups are lost.
                    tracing::warn!(%root, reason, "the saved frontier of {root} is damaged; walking from the root");
                    from_root(root, budget, held)?
                }
                Err(other) => return Err(other),
            },
            None => from_root(root, budget, held)?,
        };
        Ok(Self {
            scanned: protect.cid_set(SCANNED_IN_MEMORY),
            protect,
            walk,
            blocks,
            flight: HashMap::new(),
            fresh: Vec::new(),
            fresh_bytes: 0,
            unanswered: None,
            allowance: u64::MAX,
            held: held.bytes,
            since_checkpoint: 0,
        })
    }

    /// Takes the blocks that came and looks at what they link to, until [`READY_WANTS`] are found missing or
    /// enough was looked at. Blocks on the disk. What was found before an error is in the step.
    pub(super) fn step(&mut self, incoming: Vec<Block>) -> (Step, Result<(), StepError>) {
        let mut step = Step { visits: incoming.len(), ..Step::default() };
        let result = self.try_step(incoming, &mut step);
        (step, result)
    }

    fn try_step(&mut self, incoming: Vec<Block>, step: &mut Step) -> Result<(), StepError> {
        self.held = self.totals().bytes;
        let mut incoming = incoming.into_iter();
        while let Some(block) = incoming.next() {
            let grown = self.held + block.data().len() as u64;
            if grown > self.allowance && self.is_awaited(&block) {
                step.short = Some(grown);
                step.left = std::iter::once(block).chain(incoming).collect();
                return Ok(());
            }
            if let Err(error) = self.take(&block) {
                step.left = std::iter::once(block).chain(incoming).collect();
                return Err(error);
            }
        }
        for _ in 0..VISITS_PER_STEP {
            if self.held > self.allowance {
                step.short = Some(self.held);
                return Ok(());
            }
            if step.wants.len() >= READY_WANTS {
                return Ok(());
            }
            let Some(next) = self.unanswered.take().or_else(|| self.walk.next()) else {
                step.exhausted = true;
                return Ok(());
            };
            let answered = match next {
                Next::Visit(cid) => self.visit(cid, &mut step.wants),
                Next::Reload(cid) => self.reload(cid, &mut step.wants),
            };
            if let Err(StepError::Store(_)) = &answered {
                self.unanswered = Some(next);
            }
            answered?;
            step.visits += 1;
        }
        Ok(())
    }

    fn visit(&mut self, cid: Cid, wants: &mut Vec<Cid>) -> Result<(), StepError> {
        if self.flight.contains_key(cid.hash()) {
            return self.visit_in_flight(cid);
        }
        match self.protect.claim(cid.hash())? {
            Claim::Seen if Walk::needs_data(&cid) && !self.scanned.contains(&cid)? => {
                let Some(block) = self.blocks.get(&cid)? else {
                    self.miss(cid, Purpose::Mend, wants);
                    return Ok(());
                };
                self.scan_again(&block)?;
            }
            Claim::Seen => self.walk.seen(&cid),
            Claim::Present(len) => {
                self.held += u64::from(len);
                if !Walk::needs_data(&cid) {
                    self.walk.present(&cid, len)?;
                    return Ok(());
                }
                self.walk.count_held(1, u64::from(len))?;
                // Should the read fail: the next look finds it seen but not scanned, and reads it then.
                match self.blocks.get(&cid)? {
                    Some(block) => self.scan_again(&block)?,
                    None => self.miss(cid, Purpose::Mend, wants),
                }
            }
            Claim::Absent => self.miss(cid, Purpose::New, wants),
        }
        Ok(())
    }

    /// A second link to a block that is not durable yet.
    fn visit_in_flight(&mut self, cid: Cid) -> Result<(), StepError> {
        let flight = self.flight.get_mut(cid.hash()).expect("the caller looked it up");
        if flight.cid == cid || flight.aliases.contains(&cid) || !Walk::needs_data(&cid) {
            self.walk.seen(&cid);
            return Ok(());
        }
        let Some(at) = flight.arrived else {
            flight.aliases.push(cid);
            self.walk.waiting(&cid);
            return Ok(());
        };
        // An alias only once it is scanned: should that fail for now, the next look must find it new.
        let block = rename(cid, self.fresh[at].clone());
        self.scan_again(&block)?;
        if let Some(flight) = self.flight.get_mut(cid.hash()) {
            flight.aliases.push(cid);
        }
        Ok(())
    }

    fn miss(&mut self, cid: Cid, purpose: Purpose, wants: &mut Vec<Cid>) {
        if purpose != Purpose::Reload {
            self.walk.waiting(&cid);
        }
        self.flight.insert(*cid.hash(), Flight { cid, purpose, aliases: Vec::new(), arrived: None });
        wants.push(cid);
    }

    fn reload(&mut self, cid: Cid, wants: &mut Vec<Cid>) -> Result<(), StepError> {
        let fresh =
            self.flight.get(cid.hash()).and_then(|f| f.arrived).map(|at| self.fresh[at].data().clone());
        let block = match fresh {
            Some(data) => Block::new(cid, data).ok(),
            None => self.blocks.get(&cid)?,
        };
        match block {
            Some(block) => self.walk.reloaded(&block)?,
            None => self.miss(cid, Purpose::Reload, wants),
        }
        Ok(())
    }

    fn is_awaited(&self, block: &Block) -> bool {
        self.flight.get(block.cid().hash()).is_some_and(|f| f.arrived.is_none() && f.purpose == Purpose::New)
    }

    /// A block came. What was not asked for, or came before, is dropped. After an error of the store nothing of it is
    /// taken, and it can be given again.
    fn take(&mut self, block: &Block) -> Result<(), StepError> {
        let Some(flight) = self.flight.get(block.cid().hash()).filter(|f| f.arrived.is_none()) else {
            return Ok(());
        };
        let (asked, purpose, aliases) = (flight.cid, flight.purpose, flight.aliases.clone());
        if purpose != Purpose::Reload {
            self.note_scanned(&asked)?;
        }
        aliases.iter().try_for_each(|alias| self.note_scanned(alias))?;
        if let Some(flight) = self.flight.get_mut(block.cid().hash()) {
            flight.arrived = Some(self.fresh.len());
        }
        // The exchange may name the bytes by another CID of the same hash; the walk knows the one it asked for.
        let block = rename(asked, block.clone());
        self.fresh_bytes += block.data().len();
        if purpose == Purpose::New {
            self.held += block.data().len() as u64;
        }
        self.fresh.push(block.clone());
        match purpose {
            Purpose::Reload => self.walk.reloaded(&block)?,
            Purpose::Mend => self.walk.block_again(&block)?,
            Purpose::New => self.walk.block(&block)?,
        }
        for alias in aliases {
            self.walk.block_again(&rename(alias, block.clone()))?;
        }
        Ok(())
    }

    /// Opens a block that is counted already for its links.
    fn scan_again(&mut self, block: &Block) -> Result<(), StepError> {
        self.note_scanned(block.cid())?;
        Ok(self.walk.block_again(block)?)
    }

    /// First of all that is done for a block, because it may fail: what is noted and was then not opened after all is
    /// given again by who holds it, and opened then.
    fn note_scanned(&mut self, cid: &Cid) -> Result<(), StepError> {
        if Walk::needs_data(cid) {
            self.scanned.insert(cid)?;
        }
        Ok(())
    }

    /// The DAG may grow to so many bytes before its accounts have to be asked again.
    pub(super) fn set_allowance(&mut self, bytes: Option<u64>) {
        self.allowance = bytes.unwrap_or(u64::MAX);
    }

    /// Whether enough came for one write.
    pub(super) fn is_full(&self) -> bool {
        is_full_write(self.fresh_bytes, self.fresh.len())
    }

    /// Whether anything is not yet durable.
    pub(super) fn has_fresh(&self) -> bool {
        !self.fresh.is_empty()
    }

    /// Bytes that are not yet durable.
    pub(super) fn fresh_bytes(&self) -> usize {
        self.fresh_bytes
    }

    /// What the DAG has so far, the blocks on their way to the disk included.
    pub(super) fn totals(&self) -> ManifestTotals {
        let durable = self.protect.totals();
        ManifestTotals {
            blocks: durable.blocks + self.fresh.len() as u64,
            bytes: durable.bytes + self.fresh_bytes as u64,
        }
    }

    /// Whether every block was looked at, came, and is durable.
    pub(super) fn is_done(&self) -> bool {
        self.unanswered.is_none() && self.fresh.is_empty() && self.walk.is_done()
    }

    /// Makes what came durable, and lets the exchange know, for peers that wait for the same blocks. After an error
    /// everything is still held and the call can be repeated: storing a block twice is harmless. Cancel safe in the
    /// same sense.
    pub(super) async fn save(&mut self, exchange: &dyn Exchange) -> Result<(), StoreError> {
        let is_new = |b: &&Block| self.flight.get(b.cid().hash()).is_none_or(|f| f.purpose == Purpose::New);
        let (new, mended): (Vec<&Block>, Vec<&Block>) = self.fresh.iter().partition(is_new);
        let new: Vec<Block> = new.into_iter().cloned().collect();
        let mended: Vec<Block> = mended.into_iter().cloned().collect();
        if !new.is_empty() {
            self.protect.put(new).await?;
        }
        for block in mended {
            self.blocks.repair(block).await?;
        }
        let stored: Vec<Cid> = self.fresh.iter().map(|block| *block.cid()).collect();
        exchange.blocks_stored(&stored);
        for block in self.fresh.drain(..) {
            self.flight.remove(block.cid().hash());
        }
        self.since_checkpoint += self.fresh_bytes as u64;
        self.fresh_bytes = 0;
        Ok(())
    }

    /// Bytes that a crash would make the walk look up again.
    pub(super) fn since_checkpoint(&self) -> u64 {
        self.since_checkpoint
    }

    /// Saves the frontier. Only between steps and with nothing fresh, or the frontier would be ahead of the
    /// blocks.
    pub(super) async fn checkpoint(&mut self) -> Result<(), StoreError> {
        debug_assert!(self.fresh.is_empty(), "blocks must be durable before the frontier that passed them");
        fail::fail_point!("pin.frontier");
        self.protect.checkpoint(self.walk.checkpoint()).await?;
        self.since_checkpoint = 0;
        Ok(())
    }

    /// The whole DAG is here.
    pub(super) async fn seal(self) -> Result<ManifestTotals, StoreError> {
        fail::fail_point!("pin.refs");
        self.protect.seal().await
    }
}

/// A walk from the root over what the manifest holds already: after a crash before the first frontier was saved.
fn from_root(root: Cid, budget: Budget, held: ManifestTotals) -> Result<Walk, WalkError> {
    let mut walk = Walk::new(root, budget)?;
    walk.count_held(held.blocks, held.bytes)?;
    Ok(walk)
}

/// The same bytes under another CID with the same multihash.
fn rename(cid: Cid, block: Block) -> Block {
    block.relabelled(cid).expect("flights are looked up by multihash")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use floe_core::cid::code;

    use super::*;

    fn cid(n: u32) -> Cid {
        *Block::of(code::DAG_CBOR, n.to_be_bytes().to_vec().into()).unwrap().cid()
    }

    /// A dag-cbor list of links to blocks that are nowhere.
    fn list(links: u16) -> Block {
        list_of(&(0..links).map(|n| cid(n.into())).collect::<Vec<_>>())
    }

    /// A dag-cbor list of links.
    fn list_of(links: &[Cid]) -> Block {
        // dag-cbor takes a number in its shortest form only.
        let mut bytes = match u16::try_from(links.len()).unwrap() {
            few @ 0..24 => vec![0x80 | few.to_be_bytes()[1]],
            many => [&[0x99][..], &many.to_be_bytes()].concat(),
        };
        for link in links {
            let link = link.to_bytes();
            // Tag 42; a byte string of the zero that stands before a binary CID, and the CID.
            bytes.extend([0xd8, 0x2a, 0x58, u8::try_from(link.len() + 1).unwrap(), 0]);
            bytes.extend(link);
        }
        Block::of(code::DAG_CBOR, bytes.into()).unwrap()
    }

    /// What a step of a new walk finds missing under a root with so many links, step by step until nothing is left
    /// to look at.
    async fn missing_by_step(links: u16) -> Vec<usize> {
        let (_dir, blocks) = store();
        let root = list(links);
        let protect = blocks.protect(uuid::Uuid::nil(), *root.cid()).await.unwrap();
        let budget = Budget { max_blocks: u64::MAX, max_bytes: u64::MAX, max_depth: 9 };
        let mut walker = Walker::new(protect, *root.cid(), budget, blocks).unwrap();
        let (first, _) = walker.step(Vec::new());
        assert_eq!(first.wants, [*root.cid()]);
        let (mut found, mut incoming) = (Vec::new(), vec![root]);
        loop {
            let (step, result) = walker.step(std::mem::take(&mut incoming));
            result.unwrap();
            found.push(step.wants.len());
            if step.exhausted {
                return found;
            }
        }
    }

    fn store() -> (tempfile::TempDir, BlockStore) {
        let dir = tempfile::tempdir().unwrap();
        let settings = floe_blockstore::Settings {
            dir: dir.path().join("blocks-1"),
            index: floe_blockstore::IndexKind::Redb,
            pack_bytes: 64 << 20,
            reserve_bytes: Some(1 << 20),
        };
        let clock = Arc::new(floe_core::ManualClock::default());
        let entropy = Arc::new(floe_core::Seeded::new(1));
        let components =
            floe_blockstore::Components { disk: Arc::new(floe_blockstore::RealDisk), clock, entropy };
        let blocks = BlockStore::open(settings, components).unwrap();
        (dir, blocks)
    }

    /// A node that was read again, because it was forgotten that its links had been scanned, was counted again. The
    /// bytes were made up for and the blocks were not: a DAG of nearly as many blocks as one pin may have failed for
    /// good. A budget of one block less must fail still.
    #[tokio::test]
    async fn a_node_that_is_read_again_is_counted_once() {
        let shared = list_of(&[cid(1)]);
        let others: Vec<Block> = (0..8).map(|n| list_of(&[cid(1), cid(100 + n)])).collect();
        let last = list_of(&[*shared.cid(), cid(2)]);
        let links =
            [&[*shared.cid()][..], &others.iter().map(|b| *b.cid()).collect::<Vec<_>>(), &[*last.cid()]];
        let root = list_of(&links.concat());
        let all = [vec![shared, last, root.clone()], others].concat();
        let (_dir, blocks) = store();
        let mut other = blocks.protect(uuid::Uuid::nil(), *root.cid()).await.unwrap();
        for block in &all {
            other.claim(block.cid().hash()).unwrap();
        }
        other.put(all.clone()).await.unwrap();
        let walker = async |id, max_blocks| {
            let protect = blocks.protect(uuid::Uuid::from_u128(id), *root.cid()).await.unwrap();
            let budget = Budget { max_blocks, max_bytes: u64::MAX, max_depth: 9 };
            Walker::new(protect, *root.cid(), budget, blocks.clone())
        };
        let most = all.len() as u64;
        assert!(walker(1, most - 1).await.unwrap().step(Vec::new()).1.is_err(), "one block less");
        // The first walk claims all; the next finds each seen, and has scanned none of them.
        for _ in 0..2 {
            let mut walker = walker(2, most).await.unwrap();
            walker.step(Vec::new()).1.unwrap();
            assert_eq!(walker.totals().blocks, most);
            // Its claims are durable, and no frontier is.
            walker.protect.checkpoint(bytes::Bytes::new()).await.unwrap();
        }
    }

    /// What a walk may leave open was once more than the store takes as a record.
    #[tokio::test]
    async fn t15_the_largest_frontier_of_a_walk_can_be_saved() {
        let (_dir, blocks) = store();
        let mut protect = blocks.protect(uuid::Uuid::nil(), cid(0)).await.unwrap();
        let frontier = vec![7; floe_dag::limits::MAX_FRONTIER_BYTES];
        protect.checkpoint(frontier.into()).await.unwrap();
    }

    /// Of 300,000 nodes only the last 262,144 were known to be scanned. Any other that was linked to twice was read
    /// again with all below it: thirty levels of two such links above them were 2^30 readings of everything, which
    /// neither ended nor failed, and ten such pins took all the fetches of an account.
    #[tokio::test]
    async fn t15_each_node_is_read_once_however_few_fit_in_memory() {
        let raw = |n: u32| Block::of(code::RAW, n.to_be_bytes().to_vec().into()).unwrap();
        let below: Vec<Block> = (0..10).map(raw).collect();
        let nodes: Vec<Block> = below.iter().map(|leaf| list_of(&[*leaf.cid()])).collect();
        let mut top = list_of(&nodes.iter().map(|node| *node.cid()).collect::<Vec<_>>());
        let mut all = [below, nodes, vec![top.clone()]].concat();
        for level in 0..20 {
            let leaves = [raw(100 + level), raw(200 + level)];
            let pair = leaves.clone().map(|leaf| list_of(&[*top.cid(), *leaf.cid()]));
            top = list_of(&pair.clone().map(|node| *node.cid()));
            all.extend([&leaves[..], &pair, std::slice::from_ref(&top)].concat());
        }
        let links = 20 + 20 * 6;
        let (_dir, blocks) = store();
        blocks.protect(uuid::Uuid::nil(), *top.cid()).await.unwrap().put(all).await.unwrap();
        let protect = blocks.protect(uuid::Uuid::from_u128(1), *top.cid()).await.unwrap();
        let budget = Budget { max_blocks: u64::MAX, max_bytes: u64::MAX, max_depth: 99 };
        let mut walker = Walker::new(protect, *top.cid(), budget, blocks).unwrap();
        walker.scanned = walker.protect.cid_set(2);
        let (step, result) = walker.step(Vec::new());
        result.unwrap();
        assert!(step.visits <= 1 + links, "{} visits of {links} links", step.visits);
        assert!(step.exhausted && walker.is_done());
    }

    #[tokio::test]
    async fn a_step_ends_at_so_many_wants_as_are_kept_ready() {
        assert_eq!(READY_WANTS, 4_096);
        assert_eq!(missing_by_step(4_095).await, [4_095]);
        assert_eq!(missing_by_step(4_096).await, [4_096, 0]);
        assert_eq!(missing_by_step(4_097).await, [4_096, 1]);
    }
}
