//! One request a stream: raw CBOR without a length before it, as Boost and Curio write it. The stream may stay open
//! behind a request, so that a request ends where its item does.

use std::io;
use std::time::Duration;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::StreamProtocol;
use libp2p::request_response::Codec;

use crate::limits::{P2P_READ, P2P_REQUEST_BYTES, P2P_WRITE};
use crate::wire::cbor::{ReadError, prefix};

/// Proposals, the newer form.
pub(crate) const PROPOSE: StreamProtocol = StreamProtocol::new("/fil/storage/mk/1.2.1");
/// Proposals without the two last booleans; either form is taken on both.
pub(crate) const PROPOSE_OLD: StreamProtocol = StreamProtocol::new("/fil/storage/mk/1.2.0");
/// Questions about a deal.
pub(crate) const STATUS: StreamProtocol = StreamProtocol::new("/fil/storage/status/1.2.0");
/// Questions for the ask.
pub(crate) const ASK: StreamProtocol = StreamProtocol::new("/fil/storage/ask/1.1.0");
/// How pieces can be had. Nothing is asked, the stream itself is the question.
pub(crate) const TRANSPORTS: StreamProtocol = StreamProtocol::new("/fil/retrieval/transports/1.0.0");

/// What came on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) protocol: StreamProtocol,
    /// One whole item; nothing for [`TRANSPORTS`].
    pub(crate) bytes: Vec<u8>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct Mk12 {
    /// Until what is read is whole.
    pub(crate) read: Duration,
    /// Until what is written has left.
    pub(crate) write: Duration,
}

impl Default for Mk12 {
    fn default() -> Self {
        Self { read: P2P_READ, write: P2P_WRITE }
    }
}

impl Codec for Mk12 {
    type Protocol = StreamProtocol;
    type Request = Request;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, protocol: &StreamProtocol, io: &mut T) -> io::Result<Request>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = if *protocol == TRANSPORTS {
            Vec::new()
        } else {
            let item = tokio::time::timeout(self.read, item(io)).await;
            item.map_err(|_| io::ErrorKind::TimedOut)??
        };
        Ok(Request { protocol: protocol.clone(), bytes })
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        let written = tokio::time::timeout(self.write, io.write_all(&bytes)).await;
        written.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// For clients; the devnet asks nobody but in its tests.
    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let bytes = tokio::time::timeout(self.read, item(io)).await;
        bytes.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// See [`Codec::read_response`].
    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Request) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&request.bytes).await
    }
}

/// The bytes of the item that the stream begins with.
async fn item<T: AsyncRead + Unpin + Send>(io: &mut T) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = io.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk[..read]);
        if bytes.len() > P2P_REQUEST_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a request is too long"));
        }
        match prefix(&bytes) {
            Ok((_, used)) => {
                bytes.truncate(used);
                return Ok(bytes);
            }
            Err(ReadError::Incomplete) => {}
            Err(ReadError::Malformed(why)) => return Err(io::Error::new(io::ErrorKind::InvalidData, why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::io::Cursor;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;
    use crate::wire::cbor::Cbor;

    #[tokio::test]
    async fn a_request_ends_where_its_item_does() {
        let question = Cbor::map([("Miner", Cbor::Bytes(vec![0, 0xe8, 7]))]).encode();
        let longer = [&question[..], b"and more"].concat();
        let read = Mk12::default().read_request(&ASK, &mut Cursor::new(longer)).await.unwrap();
        assert_eq!(read, Request { protocol: ASK, bytes: question.clone() });
        let half = Mk12::default().read_request(&ASK, &mut Cursor::new(&question[..5])).await.unwrap_err();
        assert_eq!(half.kind(), io::ErrorKind::UnexpectedEof);
        let read = Mk12::default().read_request(&TRANSPORTS, &mut Cursor::new(Vec::new())).await.unwrap();
        assert!(read.bytes.is_empty());
    }

    #[tokio::test]
    async fn what_is_too_long_or_no_item_is_refused() {
        // A byte string that says it has a MiB.
        let long = [&[0x5a, 0, 0x10, 0, 0][..], &vec![0; P2P_REQUEST_BYTES + 1]].concat();
        for bytes in [long, vec![0xff; 10]] {
            let refused = Mk12::default().read_request(&STATUS, &mut Cursor::new(bytes)).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[tokio::test]
    async fn who_sends_nothing_is_let_go() {
        let (ours, _theirs) = tokio::io::duplex(64);
        let mut codec = Mk12 { read: Duration::from_millis(1), ..Mk12::default() };
        let waited = codec.read_request(&PROPOSE, &mut ours.compat()).await.unwrap_err();
        assert_eq!(waited.kind(), io::ErrorKind::TimedOut);
    }
}
