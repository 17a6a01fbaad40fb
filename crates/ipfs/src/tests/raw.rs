//! A peer without a swarm: one connection, and streams on which a test says what no honest node does.

use std::io;
use std::task::Poll;

use floe_bitswap::wire::{HELLO, line, say};
use libp2p::Multiaddr;
use libp2p::core::Endpoint;
use libp2p::core::muxing::{StreamMuxerExt as _, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse};
use tokio::sync::oneshot;

use super::*;

/// See the module. It ends with this.
pub(super) struct Raw {
    pub(super) key: Keypair,
    requests: mpsc::UnboundedSender<oneshot::Sender<SubstreamBox>>,
    /// Streams that the other side opened.
    pub(super) inbound: mpsc::UnboundedReceiver<SubstreamBox>,
}

impl Raw {
    /// Connects to the first address of `peer`, over `transport`.
    pub(super) async fn dial(
        peer: &Peer,
        transport: fn(&Keypair) -> Boxed<(PeerId, StreamMuxerBox)>,
    ) -> Self {
        let key = Keypair::generate_ed25519();
        let address: Multiaddr = peer.addresses()[0].split("/p2p/").next().unwrap().parse().unwrap();
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dial = transport(&key).dial(address, options).unwrap();
        let (_, muxer) = soon(dial).await.unwrap();
        let (requests, requested) = mpsc::unbounded_channel();
        let (opened, inbound) = mpsc::unbounded_channel();
        tokio::spawn(drive(muxer, requested, opened));
        Self { key, requests, inbound }
    }

    /// A stream on which nothing was said; it stays pending while the other side lets us have no more.
    pub(super) async fn open(&self) -> io::Result<SubstreamBox> {
        let (sender, stream) = oneshot::channel();
        self.requests.send(sender).map_err(io::Error::other)?;
        stream.await.map_err(io::Error::other)
    }

    /// A stream of `protocol`.
    pub(super) async fn stream(&self, protocol: &str) -> io::Result<SubstreamBox> {
        let mut stream = self.open().await?;
        let protocol = format!("{protocol}\n");
        say(&mut stream, HELLO).await?;
        say(&mut stream, &protocol).await?;
        for wanted in [HELLO, &protocol] {
            let heard = line(&mut stream).await?;
            if heard != wanted {
                return Err(io::Error::other(format!("{wanted:?} was answered with {heard:?}")));
            }
        }
        Ok(stream)
    }
}

/// Takes a stream if it is one of `protocol`.
pub(super) async fn agree(mut stream: SubstreamBox, protocol: &str) -> Option<SubstreamBox> {
    loop {
        let heard = line(&mut stream).await.ok()?;
        let wanted = heard.trim_end() == protocol;
        say(&mut stream, if wanted || heard == HELLO { &heard } else { "na\n" }).await.ok()?;
        if wanted {
            return Some(stream);
        }
    }
}

/// Begins to negotiate and waits for the other side's first words.
pub(super) async fn greet(mut stream: SubstreamBox) -> io::Result<SubstreamBox> {
    say(&mut stream, HELLO).await?;
    line(&mut stream).await?;
    Ok(stream)
}

async fn drive(
    mut muxer: StreamMuxerBox,
    mut requests: mpsc::UnboundedReceiver<oneshot::Sender<SubstreamBox>>,
    inbound: mpsc::UnboundedSender<SubstreamBox>,
) {
    let mut waiting: Option<oneshot::Sender<SubstreamBox>> = None;
    let ended: io::Result<()> = std::future::poll_fn(|cx| {
        loop {
            if muxer.poll_unpin(cx)?.is_ready() {
                continue;
            }
            if let Poll::Ready(stream) = muxer.poll_inbound_unpin(cx)? {
                // A test that does not look at them drops them here.
                let _ = inbound.send(stream);
                continue;
            }
            if waiting.is_none() {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(request)) => waiting = Some(request),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
            match muxer.poll_outbound_unpin(cx)? {
                Poll::Ready(stream) => drop(waiting.take().map(|request| request.send(stream))),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    // A connection that the other side ends is a result that the test sees in its streams.
    drop(ended);
}
