//! A manifest being written: the visited set of a walk, what keeps its blocks from the collector, and its durable
//! record.

use std::sync::Arc;

use bytes::Bytes;
use floe_core::block::MAX_BLOCK_BYTES;
use floe_core::{Block, Cid, Multihash};

use crate::error::Error;
use crate::holds::Holds;
use crate::limits;
use crate::queue::{Extend, Extended, Op};
use crate::record::{Key, Member, Record, State};
use crate::shared::{Shared, index_error, key_of};
use crate::tables::{self, Manifest, Placed};
use crate::ticket::{Ticket, ticket};
use crate::visited::{CidSet, Visited};
use crate::{Claim, ManifestId, ManifestTotals};

/// A manifest being written: the visited set of a walk, what keeps its blocks from the collector, and its
/// durable record. Dropping it leaves the manifest open on disk (still protecting) for a later resume.
pub struct Protect {
    shared: Arc<Shared>,
    id: ManifestId,
    root: Cid,
    visited: Visited,
    /// Claims that are not in the log yet.
    claims: Holds,
    /// What was handed to the writer and not heard of yet. There is more than one round of it only where a
    /// future was dropped.
    flight: Option<Flight>,
    /// Stored, and not in the visited set yet.
    stored: Vec<Member>,
    totals: ManifestTotals,
    frontier: Option<Bytes>,
}

struct Flight {
    answer: Ticket<Extended>,
    blocks: Vec<Member>,
}

impl Protect {
    /// Resumes from what the log has. Blocks on disk.
    pub(crate) fn open(shared: Arc<Shared>, id: ManifestId, root: Cid) -> Result<Self, Error> {
        shared.health.check()?;
        if !shared.protected.lock().insert(id) {
            return Err(Error::Io(format!(
                "the manifest {id} is being written already: let go of that Protect first"
            )));
        }
        let scratch = shared.layout.scratch.join(format!("visited-{id}"));
        let mut protect = Self {
            visited: Visited::new(shared.disk.clone(), scratch),
            claims: Holds::new(shared.holds.clone()),
            flight: None,
            stored: Vec::new(),
            totals: ManifestTotals::default(),
            frontier: None,
            shared,
            id,
            root,
        };
        // On an error the drop of `protect` gives the id back.
        let known = tables::manifest(&protect.shared.kv, id).map_err(index_error)?;
        match known {
            Some(m) if m.state == State::Releasing => return Err(Error::Released(id)),
            Some(m) => protect.resume(&m)?,
            None => {}
        }
        Ok(protect)
    }

    fn resume(&mut self, manifest: &Manifest) -> Result<(), Error> {
        self.totals = ManifestTotals { blocks: manifest.blocks, bytes: manifest.bytes };
        let prefix = tables::chunk_prefix(self.id);
        let kv = self.shared.kv.clone();
        for pair in kv.pairs(&prefix) {
            let (_, value) = pair.map_err(index_error)?;
            let members = Placed::decode(&value).and_then(|p| self.shared.read_chunk(p));
            // Members of a damaged chunk are looked up again: they cost a count too many, not a block.
            for member in members.unwrap_or_default() {
                self.visit(&member.hash)?;
            }
        }
        if manifest.frontier.loc.is_somewhere() {
            self.frontier = self.read_frontier(manifest.frontier);
        }
        Ok(())
    }

    fn read_frontier(&self, placed: Placed) -> Option<Bytes> {
        let (header, body) = self.shared.packs.read_record(placed.loc).ok()??;
        let data = body.get(header.key_len as usize..)?;
        match Record::decode(header.kind, &body[..header.key_len as usize], data, header.data_len)? {
            Record::Frontier { .. } => Some(Bytes::copy_from_slice(data.get(8..)?)),
            _ => None,
        }
    }

    /// Claims a block for this manifest. A hit is a write: it is counted under the lock the collector uses.
    /// Blocks on disk (index and visited set).
    ///
    /// # Errors
    /// [`Error`]; the block is not claimed then.
    pub fn claim(&mut self, hash: &Multihash) -> Result<Claim, Error> {
        self.shared.health.check()?;
        self.settle_now()?;
        let key = key_of(hash);
        if self.seen(&key)? {
            return Ok(Claim::Seen);
        }
        if !self.shared.holds.hold(&key) {
            return Ok(Claim::Absent);
        }
        // From here on the block stays, if it is here.
        match self.shared.present(&key) {
            Ok(Some(entry)) => {
                if let Err(e) = self.visit(&key) {
                    self.shared.holds.release(&key);
                    return Err(e);
                }
                self.count(entry.len);
                self.claims.members.push(Member { hash: key, len: entry.len });
                if self.claims.members.len() >= limits::PENDING_CLAIMS {
                    self.flush_claims();
                }
                Ok(Claim::Present(entry.len))
            }
            absent => {
                self.shared.holds.release(&key);
                absent.map(|_| Claim::Absent)
            }
        }
    }

    /// Stores blocks that were [`Claim::Absent`]. Durable when the future completes. Dropping the future does
    /// not stop the write of what was handed over (at most 16 MiB at a time); the rest is not stored.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] on a full disk: nothing is lost, call again when there is space.
    pub async fn put(&mut self, blocks: Vec<Block>) -> Result<(), Error> {
        let mut blocks = blocks.into_iter().peekable();
        while blocks.peek().is_some() {
            self.settle().await?;
            let mut part = Vec::new();
            let mut members: Vec<Member> = Vec::new();
            let mut mine = std::collections::HashSet::new();
            let mut bytes = 0;
            while bytes + MAX_BLOCK_BYTES <= limits::GROUP_BYTES && part.len() < limits::GROUP_OPS {
                let Some(block) = blocks.next() else { break };
                let key = key_of(block.cid().hash());
                // One manifest counts a block once, however often it is given.
                if self.seen(&key)? || !mine.insert(key.clone()) {
                    continue;
                }
                bytes += block.data().len() + 100;
                members
                    .push(Member { hash: key, len: u32::try_from(block.data().len()).unwrap_or(u32::MAX) });
                part.push(block);
            }
            if !part.is_empty() {
                let permit = self.shared.queue.room(bytes).await?;
                self.submit(part, members, Some(permit), None, false);
                self.settle().await?;
            }
        }
        Ok(())
    }

    /// Saves how far the walk is: `frontier` comes back from [`Protect::frontier`] after a restart. Durable,
    /// with all claims, when the future completes.
    ///
    /// # Errors
    /// [`Error`]; the last frontier is still right then.
    pub async fn checkpoint(&mut self, frontier: Bytes) -> Result<(), Error> {
        // 8 bytes of the record are the manifest's birth.
        if frontier.len() > limits::RECORD_BYTES - 8 {
            limits::hit("blockstore_record_bytes");
            return Err(Error::Io(format!("a frontier of {} bytes is too large", frontier.len())));
        }
        self.settle().await?;
        let permit = self.shared.queue.room(frontier.len()).await?;
        self.submit(Vec::new(), Vec::new(), Some(permit), Some(frontier.clone()), false);
        self.settle().await?;
        self.frontier = Some(frontier);
        Ok(())
    }

    /// An empty set of CIDs for the walk that writes this manifest, with so many in memory at most (about 32 bytes each);
    /// the others are in a scratch file. One at a time.
    pub fn cid_set(&self, most_in_memory: usize) -> CidSet {
        let scratch = self.shared.layout.scratch.join(format!("cids-{}", self.id));
        CidSet::new(self.shared.disk.clone(), scratch, most_in_memory)
    }

    /// The last checkpoint, if this manifest was resumed or checkpointed.
    pub fn frontier(&self) -> Option<Bytes> {
        self.frontier.clone()
    }

    /// What it holds so far.
    pub fn totals(&self) -> ManifestTotals {
        self.totals
    }

    /// The whole DAG is here: durable when the future completes.
    ///
    /// # Errors
    /// [`Error`]; the manifest stays open.
    pub async fn seal(mut self) -> Result<ManifestTotals, Error> {
        self.settle().await?;
        self.submit(Vec::new(), Vec::new(), None, None, true);
        self.settle().await?;
        Ok(self.totals)
    }

    fn submit(
        &mut self,
        blocks: Vec<Block>,
        members: Vec<Member>,
        permit: Option<tokio::sync::OwnedSemaphorePermit>,
        frontier: Option<Bytes>,
        seal: bool,
    ) {
        let (done, answer) = ticket();
        let holds = self.claims.take();
        self.flight = Some(Flight { answer, blocks: members });
        let (id, root) = (self.id, self.root);
        self.shared.queue.push(Op::Extend(Extend { id, root, blocks, holds, frontier, seal, permit, done }));
    }

    fn flush_claims(&mut self) {
        self.submit(Vec::new(), Vec::new(), None, None, false);
    }

    /// Waits for what is in flight. Cancel safe: the next call goes on waiting.
    async fn settle(&mut self) -> Result<(), Error> {
        let answer = match &mut self.flight {
            Some(flight) => std::pin::Pin::new(&mut flight.answer).await,
            None => return self.settled(Some(Ok(()))),
        };
        self.stored.extend(self.flight.take().into_iter().flat_map(|f| f.blocks));
        self.settled(answer)
    }

    fn settle_now(&mut self) -> Result<(), Error> {
        let Some(Flight { answer, blocks }) = self.flight.take() else { return self.settled(Some(Ok(()))) };
        self.stored.extend(blocks);
        self.settled(answer.wait())
    }

    fn settled(&mut self, answer: Option<Extended>) -> Result<(), Error> {
        match answer {
            Some(Ok(())) => {
                // One that cannot be noted now (a full disk) stays first in line: it is stored and must not be
                // counted again.
                while let Some(member) = self.stored.last().cloned() {
                    self.visit(&member.hash)?;
                    self.count(member.len);
                    self.stored.pop();
                }
                Ok(())
            }
            Some(Err((error, holds))) => {
                self.stored.clear();
                self.claims.append(holds);
                Err(error)
            }
            None => Err(Error::Closed),
        }
    }

    fn seen(&self, key: &Key) -> Result<bool, Error> {
        self.visited.contains(key).map_err(|e| Error::io(&self.shared.layout.scratch, "read", &e))
    }

    fn visit(&mut self, key: &Key) -> Result<(), Error> {
        match self.visited.insert(key) {
            Ok(_) => Ok(()),
            Err(e) if crate::error::is_full(&e) => Err(Error::ReadOnly),
            Err(e) => Err(Error::io(&self.shared.layout.scratch, "write", &e)),
        }
    }

    fn count(&mut self, len: u32) {
        self.totals.blocks += 1;
        self.totals.bytes += u64::from(len);
    }
}

impl Drop for Protect {
    fn drop(&mut self) {
        // What is only claimed goes to the log without waiting, so that it stays protected; where that fails the
        // resumed walk claims it again.
        if !self.claims.members.is_empty() && self.shared.health.check().is_ok() {
            self.flush_claims();
        }
        self.shared.protected.lock().remove(&self.id);
    }
}
