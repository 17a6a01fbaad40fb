//! A socket that is read in large pieces.
//!
//! rustls asks its socket for 4 KiB at a time and the Noise codec for 8 KiB, so a gigabyte costs a quarter of a
//! million system calls, each with a pass through every layer above. This buffer stands between the socket and
//! the cipher and takes what is there in one call.
//!
//! It doubles while reads fill it and halves when they do not, so that only a connection that carries bulk
//! pays for it: an idle one holds [`READ_BUFFER_LEAST`] bytes, which matters with 512 of them.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::{AsyncRead, AsyncWrite};

use crate::limits::{READ_BUFFER_LEAST, READ_BUFFER_MOST};

/// Reads ahead; writes pass through.
pub(crate) struct Buffered<C> {
    inner: C,
    buffer: Box<[u8]>,
    /// What was read and not given out: `buffer[taken..filled]`.
    taken: usize,
    filled: usize,
    /// The size for the next read into the empty buffer.
    size: usize,
}

impl<C> Buffered<C> {
    pub(crate) fn new(inner: C) -> Self {
        Self { inner, buffer: Box::default(), taken: 0, filled: 0, size: READ_BUFFER_LEAST }
    }

    /// Learns from a read of `n` bytes into the whole buffer.
    fn adapt(&mut self, n: usize) {
        if n == self.buffer.len() {
            self.size = (self.size * 2).min(READ_BUFFER_MOST);
        } else if n < self.buffer.len() / 8 {
            self.size = (self.size / 2).max(READ_BUFFER_LEAST);
        }
    }
}

impl<C: AsyncRead + Unpin> Buffered<C> {
    /// Reads into the buffer, which is empty. 0 is the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.buffer.len() != self.size {
            self.buffer = vec![0; self.size].into();
        }
        (self.taken, self.filled) = (0, 0);
        let n = ready!(Pin::new(&mut self.inner).poll_read(cx, &mut self.buffer))?;
        self.filled = n;
        self.adapt(n);
        Poll::Ready(Ok(n))
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Buffered<C> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.taken == this.filled {
            if out.len() >= READ_BUFFER_MOST {
                return Pin::new(&mut this.inner).poll_read(cx, out);
            }
            ready!(this.poll_fill(cx))?;
        }
        let ready = &this.buffer[this.taken..this.filled];
        let n = ready.len().min(out.len());
        out[..n].copy_from_slice(&ready[..n]);
        this.taken += n;
        Poll::Ready(Ok(n))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Buffered<C> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::io::{AsyncReadExt as _, AsyncWriteExt as _, Cursor};
    use proptest::prelude::*;

    use super::*;

    /// Gives at most so many bytes at each read, in turn, and counts the reads.
    struct Pieces {
        bytes: Cursor<Vec<u8>>,
        sizes: Vec<usize>,
        reads: usize,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let most = self.sizes[self.reads % self.sizes.len()].clamp(1, out.len());
            self.reads += 1;
            Pin::new(&mut self.bytes).poll_read(cx, &mut out[..most])
        }
    }

    fn over(bytes: Vec<u8>, sizes: Vec<usize>) -> Buffered<Pieces> {
        Buffered::new(Pieces { bytes: Cursor::new(bytes), sizes, reads: 0 })
    }

    /// Reads to the end with outputs of these sizes, in turn.
    fn drain(socket: &mut Buffered<Pieces>, outputs: &[usize]) -> Vec<u8> {
        futures::executor::block_on(async {
            let mut all = Vec::new();
            for len in outputs.iter().cycle() {
                let mut out = vec![0; *len];
                match socket.read(&mut out).await.unwrap() {
                    0 => break,
                    n => all.extend(&out[..n]),
                }
            }
            all
        })
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(
            len in 0..300_000_usize,
            sizes in prop::collection::vec(1..200_000_usize, 1..6),
            outputs in prop::collection::vec(1..100_000_usize, 1..6),
        ) {
            let bytes: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            prop_assert_eq!(drain(&mut over(bytes.clone(), sizes), &outputs), bytes);
        }
    }

    #[test]
    fn bulk_is_read_in_large_pieces() {
        let mut socket = over(vec![7; 16 << 20], vec![usize::MAX]);
        assert_eq!(drain(&mut socket, &[4096]).len(), 16 << 20);
        assert!(socket.inner.reads <= (16 << 20) / READ_BUFFER_MOST + 16, "{} reads", socket.inner.reads);
    }

    #[test]
    fn a_quiet_connection_gives_its_buffer_back() {
        let mut socket = over(vec![7; 1 << 20], vec![usize::MAX]);
        drain(&mut socket, &[4096]);
        assert!(socket.buffer.len() > 8 * READ_BUFFER_LEAST, "{}", socket.buffer.len());
        socket.inner = Pieces { bytes: Cursor::new(vec![7; 4096]), sizes: vec![64], reads: 0 };
        drain(&mut socket, &[64]);
        assert_eq!(socket.buffer.len(), READ_BUFFER_LEAST);
    }

    #[test]
    fn writes_pass_through() {
        let mut socket = Buffered::new(Cursor::new(Vec::new()));
        futures::executor::block_on(async {
            socket.write_all(b"all of it").await.unwrap();
            socket.flush().await.unwrap();
        });
        assert_eq!(socket.inner.into_inner(), b"all of it");
    }
}
