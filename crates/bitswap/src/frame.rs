//! Frames out of a stream of bytes: a varint length, then the message.
//!
//! The length is checked before a buffer exists for it, and the buffer grows as bytes really come: a peer
//! that announces 4 MiB and sends nothing costs 16 KiB. A long frame is read straight into the buffer that its
//! payloads will be slices of, and not beyond its end, so nothing is moved when the next one begins.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, Stream};
use thiserror::Error;

use crate::limits::{COPY_FRAME_BELOW, FIRST_READ_BYTES, FRAME_BYTES, GROWTH, WHOLE_FRAME_BYTES, hit};
use crate::message::take_varint;

/// Why a stream gives no more frames.
#[derive(Debug, Error)]
pub enum FrameError {
    /// The frame announces more than [`FRAME_BYTES`].
    #[error("a frame of {0} bytes; the most is {FRAME_BYTES}")]
    TooLong(u64),
    /// The length is no varint of 64 bits.
    #[error("the length of a frame is malformed")]
    Length,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads frames.
pub struct FrameReader<S> {
    stream: S,
    /// Bytes `..filled` have come; the rest is zeroed room.
    buffer: BytesMut,
    filled: usize,
    ended: bool,
}

/// The parsed head of a frame.
struct Head {
    /// Bytes of the varint.
    prefix: usize,
    /// Bytes of varint and message.
    total: usize,
}

/// How large a buffer a frame of `total` bytes deserves once `filled` of them have come. Each time it grows, what
/// is there is copied: frames of one common leaf are made room for as soon as they have begun to come, and no
/// step ends just short of the frame's end.
fn room_for(total: usize, filled: usize) -> usize {
    if total <= FIRST_READ_BYTES || filled < FIRST_READ_BYTES {
        return FIRST_READ_BYTES;
    }
    let step = filled.saturating_mul(GROWTH).max(WHOLE_FRAME_BYTES);
    if total <= step + step / 4 { total } else { step }
}

impl<S: AsyncRead + Unpin> FrameReader<S> {
    /// Reads from `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), filled: 0, ended: false }
    }

    /// The room held for a frame that has begun, and the length of that frame where it is known, else 0.
    pub(crate) fn unfinished(&self) -> Option<(usize, usize)> {
        let announced = || self.head().ok().flatten().map_or(0, |head| head.total);
        (self.filled > 0).then(|| (self.buffer.len(), announced()))
    }

    /// The bytes that are held for frames not complete.
    #[cfg(test)]
    fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    fn head(&self) -> Result<Option<Head>, FrameError> {
        let Ok((len, rest)) = take_varint(&self.buffer[..self.filled]) else {
            return if self.filled >= 10 { Err(FrameError::Length) } else { Ok(None) };
        };
        let total = usize::try_from(len).ok().filter(|len| *len <= FRAME_BYTES).ok_or_else(|| {
            hit("bitswap_frame_bytes");
            FrameError::TooLong(len)
        })?;
        let prefix = self.filled - rest.len();
        Ok(Some(Head { prefix, total: prefix + total }))
    }

    /// Cuts the complete frame off the buffer.
    fn take(&mut self, head: &Head) -> Bytes {
        self.filled -= head.total;
        let mut frame = self.buffer.split_to(head.total);
        if frame.len() < COPY_FRAME_BELOW {
            return Bytes::copy_from_slice(&frame[head.prefix..]);
        }
        frame.split_to(head.prefix).clear();
        frame.freeze()
    }

    /// Makes room behind what is filled, for `wanted` bytes of a frame in all.
    fn grow(&mut self, wanted: Option<usize>) {
        let target = match wanted {
            // Short frames: read what there is, several at once.
            None => FIRST_READ_BYTES,
            Some(total) => room_for(total, self.filled),
        };
        let target = target.max(self.filled + 1);
        if self.buffer.len() < target {
            // Fresh pages are zero without being touched, so room that nothing comes to fill costs no memory.
            let mut grown = BytesMut::zeroed(target);
            grown[..self.filled].copy_from_slice(&self.buffer[..self.filled]);
            self.buffer = grown;
        }
    }

    /// The next frame without its length; `None` where the stream ended between two frames.
    ///
    /// # Errors
    /// [`FrameError`]; the stream is of no more use.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FrameError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let head = match self.head() {
                Ok(head) => head,
                Err(error) => return self.end(Some(error)),
            };
            if let Some(head) = head.as_ref().filter(|head| head.total <= self.filled) {
                return Poll::Ready(Some(Ok(self.take(head))));
            }
            self.grow(head.map(|head| head.total));
            let room = &mut self.buffer[self.filled..];
            match Pin::new(&mut self.stream).poll_read(cx, room) {
                Poll::Pending => {
                    // A stream that waits for its next frame holds nothing: many are open and idle.
                    if self.filled == 0 {
                        self.buffer = BytesMut::new();
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Ok(0)) if self.filled == 0 => return self.end(None),
                Poll::Ready(Ok(0)) => return self.end(Some(FrameError::Truncated)),
                Poll::Ready(Ok(n)) => self.filled += n,
                Poll::Ready(Err(error)) => return self.end(Some(error.into())),
            }
        }
    }

    fn end(&mut self, error: Option<FrameError>) -> Poll<Option<Result<Bytes, FrameError>>> {
        self.ended = true;
        self.buffer = BytesMut::new();
        self.filled = 0;
        Poll::Ready(error.map(Err))
    }
}

impl<S: AsyncRead + Unpin> Stream for FrameReader<S> {
    type Item = Result<Bytes, FrameError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_frame(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use futures::{StreamExt, TryStreamExt};
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn prefix(len: u64) -> Vec<u8> {
        let mut buffer = unsigned_varint::encode::u64_buffer();
        unsigned_varint::encode::u64(len, &mut buffer).to_vec()
    }

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut bytes = prefix(body.len() as u64);
        bytes.extend(body);
        bytes
    }

    /// Gives bytes in pieces, as a network does.
    struct Pieces(std::collections::VecDeque<Vec<u8>>);

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let Some(mut piece) = self.0.pop_front() else { return Poll::Ready(Ok(0)) };
            let n = piece.len().min(buf.len());
            buf[..n].copy_from_slice(&piece[..n]);
            if n < piece.len() {
                self.0.push_front(piece.split_off(n));
            }
            Poll::Ready(Ok(n))
        }
    }

    fn read_all(stream: impl AsyncRead + Unpin) -> Vec<Result<Bytes, FrameError>> {
        block_on(FrameReader::new(stream).collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn frames_come_out_as_they_went_in(
            bodies in prop::collection::vec(
                prop_oneof![0usize..300, Just(COPY_FRAME_BELOW), 16_000usize..17_000, 100_000usize..300_000], 1..6),
            piece in prop_oneof![Just(1usize), 2usize..50, Just(16_384), Just(1 << 20)],
        ) {
            prop_assume!(piece > 1 || bodies.iter().sum::<usize>() < 50_000);
            let bodies: Vec<Vec<u8>> = bodies.iter().enumerate().map(|(i, len)| vec![i as u8; *len]).collect();
            let bytes: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            let read = read_all(Pieces(bytes.chunks(piece).map(<[u8]>::to_vec).collect()));
            let read: Vec<Bytes> = read.into_iter().map(Result::unwrap).collect();
            prop_assert_eq!(read, bodies);
        }

        #[test]
        fn t03_arbitrary_streams_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            read_all(Cursor::new(bytes));
        }
    }

    #[test]
    fn t02_a_length_above_the_cap_is_refused_before_anything_is_allocated() {
        for len in [FRAME_BYTES as u64 + 1, 1 << 32, 1 << 63, u64::MAX] {
            let mut reader = FrameReader::new(Cursor::new(prefix(len)));
            let error = block_on(reader.next()).unwrap().unwrap_err();
            assert!(matches!(error, FrameError::TooLong(n) if n == len), "{error}");
            assert_eq!(reader.held_bytes(), 0);
            assert!(block_on(reader.next()).is_none());
        }
    }

    #[test]
    fn t02_the_longest_frame_passes() {
        for len in [FRAME_BYTES - 1, FRAME_BYTES] {
            let read = read_all(Cursor::new(frame(&vec![1; len])));
            assert_eq!(read[0].as_ref().unwrap().len(), len);
        }
    }

    #[test]
    fn room_grows_with_what_came_and_common_frames_are_copied_once() {
        const KIB: usize = 1 << 10;
        assert_eq!(room_for(FRAME_BYTES, 0), FIRST_READ_BYTES);
        assert_eq!(room_for(300 * KIB, FIRST_READ_BYTES - 1), FIRST_READ_BYTES);
        let leaf = (256 << 10) + 64;
        assert_eq!(room_for(leaf, FIRST_READ_BYTES), leaf);
        let large = (1 << 20) + 64;
        assert_eq!(room_for(large, FIRST_READ_BYTES), 256 * KIB);
        assert_eq!(room_for(large, 256 * KIB), large);
        assert!(room_for(FRAME_BYTES, FIRST_READ_BYTES) <= FIRST_READ_BYTES * 16);
        assert!((FIRST_READ_BYTES..FRAME_BYTES).step_by(997).all(|n| room_for(FRAME_BYTES, n) > n));
    }

    #[test]
    fn t02_a_length_alone_costs_little() {
        let stalled = futures::stream::iter([Ok(prefix(FRAME_BYTES as u64)), Ok(vec![0; 100])])
            .chain(futures::stream::pending::<io::Result<Vec<u8>>>());
        let mut reader = FrameReader::new(stalled.into_async_read());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(reader.poll_frame(&mut cx).is_pending());
        assert!(reader.held_bytes() <= FIRST_READ_BYTES, "{}", reader.held_bytes());
        assert_eq!(reader.unfinished(), Some((reader.held_bytes(), FRAME_BYTES + 4)));
    }

    #[test]
    fn t07_a_stream_holds_nothing_between_two_frames() {
        let idle = futures::stream::iter([Ok(frame(&[1; 100]))])
            .chain(futures::stream::pending::<io::Result<Vec<u8>>>());
        let mut reader = FrameReader::new(idle.into_async_read());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(reader.poll_frame(&mut cx).is_ready());
        assert!(reader.poll_frame(&mut cx).is_pending());
        assert_eq!((reader.held_bytes(), reader.unfinished()), (0, None));
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_or_has_no_length_is_an_error() {
        let mut cut = frame(&[1; 100]);
        cut.pop();
        assert!(matches!(read_all(Cursor::new(cut))[0], Err(FrameError::Truncated)));
        assert!(matches!(read_all(Cursor::new(vec![0xff; 20]))[0], Err(FrameError::Length)));
        assert!(read_all(Cursor::new(Vec::new())).is_empty());
    }
}
