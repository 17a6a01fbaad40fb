//! mk12 over libp2p, as Boost and Curio speak it: one request on one stream.
//!
//! Who has the swarm is not known here ([`Streams`]). The answer is read until it is whole, and no further than
//! any answer reaches: some providers keep the stream open behind it.

use floe_core::clock::BoxFuture;
use floe_core::cold::ContactAddress;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::limits::{self, MAX_CBOR_DOCUMENT};
use crate::types::CborError;
use crate::types::cbor::Cbor;

/// A stream to a peer.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// Opens streams to peers.
pub trait Streams: Send + Sync + 'static {
    /// A stream to `peer` that speaks `protocol`; the peer is dialled where there is no connection, and looked for where
    /// no address is known. Ends in a time of its own. Cancel safe.
    ///
    /// # Errors
    /// [`StreamError`]: nothing was sent.
    fn open<'a>(
        &'a self,
        peer: &'a str,
        addresses: &'a [ContactAddress],
        protocol: &'static str,
    ) -> BoxFuture<'a, Result<Box<dyn Duplex>, StreamError>>;
}

/// Why there is no stream. In words for people, without addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nobody says where the peer is.
    #[error("{0}")]
    Unresolvable(String),
    /// It cannot be connected to.
    #[error("{0}")]
    Dial(String),
    /// It does not speak the protocol.
    #[error("{0}")]
    Protocol(String),
    /// It took too long.
    #[error("{0}")]
    Timeout(String),
}

/// Why an exchange on an open stream gave nothing. The request may have arrived.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The stream ended.
    #[error("the stream ended: {0}")]
    Broken(#[from] std::io::Error),
    /// What came is no answer, or half of one.
    #[error("the answer cannot be read: {0}")]
    Malformed(#[from] CborError),
}

/// Writes `request` and reads the answer.
///
/// # Errors
/// [`ExchangeError`].
pub async fn exchange<T: Cbor>(stream: &mut dyn Duplex, request: &[u8]) -> Result<T, ExchangeError> {
    stream.write_all(request).await?;
    stream.flush().await?;
    // Nothing more comes from us. A peer that has gone on to answer may have closed its side already.
    let _ = stream.close().await;
    let mut bytes = Vec::new();
    let mut part = [0; 4_096];
    loop {
        let read = stream.read(&mut part).await?;
        bytes.extend_from_slice(&part[..read]);
        match T::from_cbor(&bytes) {
            Ok(answer) => return Ok(answer),
            Err(error) if read == 0 => return Err(error.into()),
            // Perhaps only half of it so far.
            Err(_) if bytes.len() <= MAX_CBOR_DOCUMENT => {}
            Err(error) => {
                limits::hit("provider_answer");
                return Err(error.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::market::mk12::DealResponse;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// Gives its bytes in pieces, then stays open or ends.
    struct Fake {
        written: Vec<u8>,
        answer: Vec<u8>,
        piece: usize,
        stays_open: bool,
    }

    impl AsyncRead for Fake {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            out: &mut [u8],
        ) -> Poll<std::io::Result<usize>> {
            if self.answer.is_empty() {
                return if self.stays_open { Poll::Pending } else { Poll::Ready(Ok(0)) };
            }
            let len = self.piece.min(self.answer.len()).min(out.len());
            out[..len].copy_from_slice(&self.answer[..len]);
            self.answer.drain(..len);
            Poll::Ready(Ok(len))
        }
    }

    impl AsyncWrite for Fake {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<std::io::Result<usize>> {
            self.written.extend_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn ask(answer: &[u8], piece: usize, stays_open: bool) -> Option<Result<DealResponse, ExchangeError>> {
        let mut fake = Fake { written: Vec::new(), answer: answer.to_vec(), piece, stays_open };
        let answer = futures::FutureExt::now_or_never(exchange(&mut fake, b"request"));
        assert_eq!(fake.written, b"request");
        answer
    }

    #[test]
    fn an_answer_is_read_in_any_pieces_and_no_end_is_waited_for() {
        let answer = DealResponse { accepted: false, message: "we do not like you".into() };
        let bytes = answer.to_cbor();
        for piece in [1, 3, bytes.len()] {
            assert_eq!(ask(&bytes, piece, true).unwrap().unwrap(), answer);
        }
        assert!(ask(&bytes[..bytes.len() - 1], 5, false).unwrap().is_err(), "half of one");
        assert!(ask(&bytes[..bytes.len() - 1], 5, true).is_none(), "it may still come");
        assert!(ask(b"", 1, false).unwrap().is_err());
        // A text that goes on and on: it ends at the limit.
        let endless = [&[0xa2, 0x67][..], b"Message", &[0x7a, 0, 0x20, 0, 0], &vec![b'a'; 2 << 20]].concat();
        assert!(ask(&endless, 4_096, true).unwrap().is_err());
    }
}
