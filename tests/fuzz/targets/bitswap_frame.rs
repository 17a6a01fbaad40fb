//! Any bytes as a stream of frames, in pieces of any size: frames or an error, and never a buffer for what has
//! only been announced.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use floe_bitswap::FrameReader;
use floe_bitswap::limits::FRAME_BYTES;
use floe_fuzz::{BASE, within};
use futures::{AsyncRead, StreamExt as _};
use libfuzzer_sys::fuzz_target;

/// Gives so many bytes at a time.
struct Pieces<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let len = self.piece.min(into.len()).min(self.rest.len());
        let (now, later) = self.rest.split_at(len);
        into[..len].copy_from_slice(now);
        self.rest = later;
        Poll::Ready(Ok(len))
    }
}

fuzz_target!(|input: (u16, &[u8])| {
    let (piece, data) = input;
    // A frame grows eightfold as it comes, and the old buffer is there while it is copied.
    within(3 * data.len(), BASE, || {
        let mut frames = FrameReader::new(Pieces { rest: data, piece: usize::from(piece).max(1) });
        futures::executor::block_on(async {
            while let Some(frame) = frames.next().await {
                match frame {
                    Ok(frame) => assert!(frame.len() <= FRAME_BYTES.min(data.len())),
                    Err(_) => break,
                }
            }
            assert!(frames.next().await.is_none() || data.is_empty(), "an error is the last thing");
        });
    });
});
