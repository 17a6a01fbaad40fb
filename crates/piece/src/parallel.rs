//! CommP on several threads.
//!
//! The payload is cut into large chunks whose subtrees do not depend on each other. Chunk `n` goes to worker `n` modulo
//! their number, and roots are taken back in the same order, so nothing has to be sorted and the slowest worker holds back
//! the feeder. Each worker has at most [`CHUNKS_PER_WORKER`] chunks, so memory is bounded by the number of threads:
//! 2 MiB each, and one chunk that fills.
//!
//! The workers end when the hash is finished or dropped: their channels close, and the drop waits for them.

use std::io;
use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use crate::commp::{self, CommP, Piece, Subtrees};
use crate::limits::{CHUNKS_PER_WORKER, LARGE_CHUNK_BYTES, LARGE_CHUNK_HEIGHT, MAX_THREADS};
use crate::node::Node;
use crate::{Error, PaddedSize};

/// CommP under way, hashed by threads of its own.
#[derive(Debug)]
pub struct ParallelCommP {
    /// Payload that does not fill a large chunk yet.
    pending: Vec<u8>,
    /// Chunks that were hashed, to be filled again.
    spare: Vec<Vec<u8>>,
    workers: Vec<Worker>,
    /// Chunks given to workers, and roots taken back.
    given: usize,
    taken: usize,
    /// The roots taken back.
    commp: CommP,
}

impl ParallelCommP {
    /// Begins a piece that `threads` hash beside the one that feeds it, at most [`MAX_THREADS`].
    ///
    /// # Errors
    /// [`Error::Thread`] where the system gives no thread.
    pub fn new(threads: NonZeroUsize) -> Result<Self, Error> {
        let workers =
            (0..threads.get().min(MAX_THREADS)).map(|_| Worker::start()).collect::<Result<_, _>>()?;
        let (pending, spare, commp) = (Vec::new(), Vec::new(), CommP::new());
        Ok(Self { pending, spare, workers, given: 0, taken: 0, commp })
    }

    /// Bytes fed so far.
    pub fn payload_bytes(&self) -> u64 {
        let under_way = (self.given - self.taken) * LARGE_CHUNK_BYTES + self.pending.len();
        self.commp.payload_bytes() + under_way as u64
    }

    /// Feeds the next bytes of the payload. Waits for a worker where all are behind.
    ///
    /// # Errors
    /// [`Error::TooLarge`], and none of `bytes` is taken. [`Error::Thread`] where a worker died.
    pub fn update(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        commp::grown(self.payload_bytes(), bytes.len())?;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(LARGE_CHUNK_BYTES - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == LARGE_CHUNK_BYTES {
                self.give()?;
            }
        }
        Ok(())
    }

    /// The piece of the smallest size that the payload fits.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Thread`].
    pub fn finish(self) -> Result<Piece, Error> {
        self.joined()?.finish()
    }

    /// The piece of `size`, with zeros behind the payload.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`], [`Error::Thread`].
    pub fn finish_padded(self, size: PaddedSize) -> Result<Piece, Error> {
        self.joined()?.finish_padded(size)
    }

    fn joined(mut self) -> Result<CommP, Error> {
        while self.taken < self.given {
            self.take()?;
        }
        self.commp.update(&self.pending)?;
        Ok(std::mem::take(&mut self.commp))
    }

    fn give(&mut self) -> Result<(), Error> {
        if self.given - self.taken == CHUNKS_PER_WORKER * self.workers.len() {
            self.take()?;
        }
        let empty = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(LARGE_CHUNK_BYTES));
        let chunk = std::mem::replace(&mut self.pending, empty);
        self.workers[self.given % self.workers.len()].give(chunk)?;
        self.given += 1;
        Ok(())
    }

    fn take(&mut self) -> Result<(), Error> {
        let (root, mut chunk) = self.workers[self.taken % self.workers.len()].take()?;
        self.taken += 1;
        chunk.clear();
        self.spare.push(chunk);
        self.commp.append(LARGE_CHUNK_HEIGHT, root, LARGE_CHUNK_BYTES)
    }
}

/// As [`CommP`]'s, for [`io::copy`].
impl io::Write for ParallelCommP {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes).map_err(Error::into_io)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A thread that hashes chunks in the order they come. The channels have no bound of their own:
/// [`ParallelCommP::give`] keeps it.
#[derive(Debug)]
struct Worker {
    /// `None` once the worker is to end.
    chunks: Option<Sender<Vec<u8>>>,
    roots: Receiver<(Node, Vec<u8>)>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start() -> Result<Self, Error> {
        let (chunks, from) = channel::<Vec<u8>>();
        let (to, roots) = channel();
        let work = move || {
            let mut subtrees = Subtrees::default();
            for chunk in from {
                if to.send((subtrees.large_chunk(&chunk), chunk)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("commp".into()).spawn(work);
        let thread = thread.map_err(|e| Error::Thread(e.to_string()))?;
        Ok(Self { chunks: Some(chunks), roots, thread: Some(thread) })
    }

    fn give(&self, chunk: Vec<u8>) -> Result<(), Error> {
        self.chunks.as_ref().and_then(|chunks| chunks.send(chunk).ok()).ok_or_else(died)
    }

    fn take(&self) -> Result<(Node, Vec<u8>), Error> {
        self.roots.recv().map_err(|_| died())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.chunks = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the worker was told by `take`.
            let _ = thread.join();
        }
    }
}

fn died() -> Error {
    Error::Thread("it ended early".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i ^ i >> 9) as u8).collect()
    }

    /// Fewer chunks than workers, as many, and several rounds; with and without a rest.
    #[test]
    fn threads_give_what_one_gives() {
        for threads in [1, 2, 3] {
            for len in [
                0,
                1,
                LARGE_CHUNK_BYTES - 1,
                LARGE_CHUNK_BYTES,
                3 * LARGE_CHUNK_BYTES + 1,
                9 * LARGE_CHUNK_BYTES,
            ] {
                let payload = payload(len);
                let mut one = CommP::new();
                one.update(&payload).unwrap();
                let mut many = ParallelCommP::new(NonZeroUsize::new(threads).unwrap()).unwrap();
                for part in payload.chunks(300_001) {
                    many.update(part).unwrap();
                }
                assert_eq!(many.payload_bytes(), len as u64);
                assert!(many.spare.len() <= CHUNKS_PER_WORKER * threads, "no more chunks than the bound");
                let size = PaddedSize::from_bytes(32 << 20).unwrap();
                assert_eq!(
                    many.finish_padded(size),
                    one.clone().finish_padded(size),
                    "{len} bytes, {threads} threads"
                );
            }
        }
    }

    #[test]
    fn dropped_half_way_the_threads_end() {
        let mut many = ParallelCommP::new(NonZeroUsize::MIN).unwrap();
        many.update(&payload(2 * LARGE_CHUNK_BYTES + 7)).unwrap();
        drop(many);
    }

    #[test]
    fn a_payload_beyond_the_largest_piece_is_refused() {
        let mut many = ParallelCommP::new(NonZeroUsize::MIN).unwrap();
        many.commp.append(LARGE_CHUNK_HEIGHT, [0; 32], PaddedSize::MAX.unpadded_bytes() as usize).unwrap();
        assert_eq!(many.update(&[0]), Err(Error::TooLarge));
    }
}
