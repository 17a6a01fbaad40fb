//! Frames that have begun to come and are not complete, of all connections.
//!
//! The story: a stream is read as soon as it has something, so that a peer with many streams, or many peers, could
//! have begun thousands of frames of 4 MiB and never end one; no limit counted them, and none of them had a time.
//!
//! Every stream says what its begun frame holds ([`Unfinished::hold`]). Where a connection or all of them hold too
//! much, frames are let go of, those first that began first: an honest frame is complete long before it is the
//! oldest, and a frame is never kept from being read on, so nothing can wait for itself. A frame that does not come
//! in the time in which it could have been written is let go of too. To let go is to end the stream that the frame
//! came on, which its own connection does; the sender may say it again on another. Nothing here is durable.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;

use crate::limits::{SEND_TIMEOUT_MIN, UNFINISHED_BYTES, UNFINISHED_BYTES_PER_CONNECTION, hit, send_timeout};
use crate::shared::Link;

/// What may be held.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// By one connection.
    pub(crate) connection: usize,
    /// By all.
    pub(crate) total: usize,
}

/// Begun frames, the oldest first.
pub(crate) struct Unfinished {
    bounds: Bounds,
    frames: Mutex<Frames>,
}

#[derive(Default)]
struct Frames {
    bytes: usize,
    begun: u64,
    /// By the order in which they began.
    by_age: BTreeMap<u64, Frame>,
}

struct Frame {
    bytes: usize,
    begun_at: Duration,
    /// Until when it is to be complete.
    deadline: Duration,
    link: Arc<Link>,
    stream: Arc<LetGo>,
}

/// How a stream learns that it ends.
#[derive(Default)]
struct LetGo {
    now: AtomicBool,
    waker: AtomicWaker,
}

/// The begun frame of one stream; what it holds counts until this is dropped.
pub(crate) struct Held {
    unfinished: Arc<Unfinished>,
    id: u64,
    bytes: usize,
    stream: Arc<LetGo>,
}

impl Held {
    /// Whether the stream is to end; wakes `waker` where that comes later.
    pub(crate) fn is_let_go(&self, waker: &std::task::Waker) -> bool {
        self.stream.waker.register(waker);
        self.stream.now.load(Ordering::Acquire)
    }

    /// The frame holds so many bytes now, and `announced` in the end, as far as is known.
    pub(crate) fn grew(&mut self, bytes: usize, announced: usize) {
        if bytes != self.bytes {
            self.bytes = bytes;
            self.unfinished.grew(self.id, bytes, announced);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.unfinished.frames.lock().remove(self.id);
    }
}

impl Frames {
    fn remove(&mut self, id: u64) -> Option<Frame> {
        let frame = self.by_age.remove(&id)?;
        self.bytes -= frame.bytes;
        frame.link.add_unfinished(-frame.bytes.cast_signed());
        Some(frame)
    }

    /// It counts no more from here on: the stream's task frees it as soon as it runs.
    fn let_go(&mut self, id: u64) {
        if let Some(frame) = self.remove(id) {
            frame.stream.now.store(true, Ordering::Release);
            frame.stream.waker.wake();
        }
    }

    fn oldest_of(&self, link: &Arc<Link>) -> Option<u64> {
        self.by_age.iter().find(|(_, frame)| Arc::ptr_eq(&frame.link, link)).map(|(id, _)| *id)
    }

    fn keep_within(&mut self, bounds: Bounds, link: &Arc<Link>) {
        while link.unfinished() > bounds.connection
            && let Some(oldest) = self.oldest_of(link)
        {
            hit("bitswap_unfinished_bytes_per_connection");
            self.let_go(oldest);
        }
        while self.bytes > bounds.total
            && let Some(oldest) = self.by_age.first_key_value().map(|(id, _)| *id)
        {
            hit("bitswap_unfinished_bytes");
            self.let_go(oldest);
        }
    }
}

impl Default for Unfinished {
    fn default() -> Self {
        Self::new(Bounds { connection: UNFINISHED_BYTES_PER_CONNECTION, total: UNFINISHED_BYTES })
    }
}

impl Unfinished {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, frames: Mutex::default() }
    }

    /// A frame began on a stream of `link`: see [`Held::grew`] for the numbers.
    pub(crate) fn hold(
        self: &Arc<Self>,
        link: &Arc<Link>,
        bytes: usize,
        announced: usize,
        now: Duration,
    ) -> Held {
        let stream = Arc::<LetGo>::default();
        let mut frames = self.frames.lock();
        frames.begun += 1;
        let id = frames.begun;
        frames.bytes += bytes;
        link.add_unfinished(bytes.cast_signed());
        let deadline = now + send_timeout(announced);
        let frame = Frame { bytes, begun_at: now, deadline, link: link.clone(), stream: stream.clone() };
        frames.by_age.insert(id, frame);
        frames.keep_within(self.bounds, link);
        Held { unfinished: self.clone(), id, bytes, stream }
    }

    fn grew(&self, id: u64, bytes: usize, announced: usize) {
        let mut frames = self.frames.lock();
        let Some(frame) = frames.by_age.get_mut(&id) else { return };
        let before = std::mem::replace(&mut frame.bytes, bytes);
        frame.deadline = frame.deadline.max(frame.begun_at + send_timeout(announced));
        let link = frame.link.clone();
        link.add_unfinished(bytes.cast_signed() - before.cast_signed());
        frames.bytes = frames.bytes + bytes - before;
        frames.keep_within(self.bounds, &link);
    }

    /// Lets go of what did not come in time. While a connection is not read, the time of its frames stands still.
    pub(crate) fn tick(&self, now: Duration, is_read: impl Fn(&Link) -> bool) {
        let mut frames = self.frames.lock();
        let mut late = Vec::new();
        for (id, frame) in &mut frames.by_age {
            if now < frame.begun_at + SEND_TIMEOUT_MIN {
                break;
            }
            if !is_read(&frame.link) {
                frame.deadline = frame.deadline.max(now + SEND_TIMEOUT_MIN);
            } else if now > frame.deadline {
                late.push(*id);
            }
        }
        for id in late {
            hit("bitswap_read_timeout");
            frames.let_go(id);
        }
    }

    /// Bytes held now.
    pub(crate) fn bytes(&self) -> usize {
        self.frames.lock().bytes
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use libp2p::PeerId;
    use libp2p::swarm::ConnectionId;

    use super::*;
    use crate::limits::{FRAME_BYTES, SEND_TIMEOUT_MAX};

    const BOUNDS: Bounds = Bounds { connection: 100, total: 250 };

    fn link() -> Arc<Link> {
        Arc::new(Link::new(PeerId::random(), ConnectionId::new_unchecked(1)))
    }

    fn ends(held: &Held) -> bool {
        held.is_let_go(Waker::noop())
    }

    #[test]
    fn t07_a_connection_lets_go_of_its_oldest_frames() {
        for (second, let_go) in [(49, false), (50, false), (51, true)] {
            let unfinished = Arc::new(Unfinished::new(BOUNDS));
            let (link, other) = (link(), link());
            let older_of_another = unfinished.hold(&other, 100, 100, Duration::ZERO);
            let first = unfinished.hold(&link, 50, 100, Duration::ZERO);
            let mut last = unfinished.hold(&link, 1, 100, Duration::ZERO);
            last.grew(second, 100);
            assert_eq!(ends(&first), let_go, "{second}");
            assert!(!ends(&last) && !ends(&older_of_another));
            let left = if let_go { second } else { 50 + second };
            assert_eq!((link.unfinished(), unfinished.bytes()), (left, 100 + left));
            drop((first, last, older_of_another));
            assert_eq!((link.unfinished(), other.unfinished(), unfinished.bytes()), (0, 0, 0));
        }
    }

    #[test]
    fn t07_all_connections_let_go_of_the_oldest_frames() {
        for (last, let_go) in [(49, 0), (50, 0), (51, 1), (100, 1)] {
            let unfinished = Arc::new(Unfinished::new(BOUNDS));
            let links = [link(), link(), link()];
            let begin = |n: usize, bytes| unfinished.hold(&links[n], bytes, 100, Duration::ZERO);
            let held = [begin(0, 100), begin(1, 100), begin(2, last)];
            assert_eq!(held.iter().filter(|held| ends(held)).count(), let_go, "{last}");
            assert_eq!(ends(&held[0]), let_go == 1, "the oldest goes first");
            assert!(unfinished.bytes() <= BOUNDS.total);
        }
    }

    #[test]
    fn one_frame_alone_is_never_too_much() {
        const { assert!(2 * FRAME_BYTES <= UNFINISHED_BYTES_PER_CONNECTION) };
        const { assert!(UNFINISHED_BYTES_PER_CONNECTION <= UNFINISHED_BYTES) };
    }

    #[test]
    fn t07_a_frame_has_the_time_that_writing_it_may_take() {
        let unfinished = Arc::new(Unfinished::default());
        let link = link();
        let short = unfinished.hold(&link, 10, 100, Duration::ZERO);
        // What a frame announces may come behind its first bytes.
        let mut long = unfinished.hold(&link, 10, 0, Duration::ZERO);
        long.grew(20, FRAME_BYTES);
        let at = |time: Duration| {
            unfinished.tick(time, |_| true);
            (ends(&short), ends(&long))
        };
        let ms = Duration::from_millis(1);
        assert_eq!(at(SEND_TIMEOUT_MIN), (false, false));
        assert_eq!(at(SEND_TIMEOUT_MIN + ms), (true, false));
        assert_eq!(at(SEND_TIMEOUT_MAX), (true, false));
        assert_eq!(at(SEND_TIMEOUT_MAX + ms), (true, true));
        assert_eq!(unfinished.bytes(), 0);
    }

    #[test]
    fn no_time_passes_while_a_connection_is_not_read() {
        let unfinished = Arc::new(Unfinished::default());
        let held = unfinished.hold(&link(), 10, 100, Duration::ZERO);
        let paused = 3 * SEND_TIMEOUT_MIN;
        unfinished.tick(paused, |_| false);
        unfinished.tick(paused + SEND_TIMEOUT_MIN, |_| true);
        assert!(!ends(&held));
        unfinished.tick(paused + 2 * SEND_TIMEOUT_MIN, |_| true);
        assert!(ends(&held));
    }
}
