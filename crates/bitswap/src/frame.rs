//! Frames out of a stream of bytes: a varint length, then the message.
//!
//! The length is checked before a buffer exists for it, and the buffer grows as bytes really come: a peer
//! that announces 4 MiB and sends nothing costs 16 KiB. A long frame is read straight into the buffer that its
//! payloads will be slices of, and not beyond its end, so nothing is moved when the next one begins.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::{AsyncRead, Stream};
use thiserror::Error;

use crate::limits::{COPY_FRAME_BELOW, FIRST_READ_BYTES, FRAME_BYTES, hit};
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

impl<S: AsyncRead + Unpin> FrameReader<S> {
    /// Reads from `stream`.
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: BytesMut::new(), filled: 0, ended: false }
    }

    /// The bytes that are held for frames not complete.
    #[cfg(test)]
    fn buffered(&self) -> usize {
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
        let step = FIRST_READ_BYTES.max(self.filled.saturating_mul(8));
        let target = match wanted {
            // Short frames: read what there is, several at once.
            None => FIRST_READ_BYTES,
            Some(total) if total <= FIRST_READ_BYTES => FIRST_READ_BYTES,
            Some(total) => total.min(step),
        };
        let target = target.max(self.filled + 1);
        if self.buffer.len() < target {
            self.buffer.resize(target, 0);
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
            match ready!(Pin::new(&mut self.stream).poll_read(cx, room)) {
                Ok(0) if self.filled == 0 => return self.end(None),
                Ok(0) => return self.end(Some(FrameError::Truncated)),
                Ok(n) => self.filled += n,
                Err(error) => return self.end(Some(error.into())),
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
