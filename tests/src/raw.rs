//! The physical limit of the benches: one libp2p stream of bytes over the same transport as the node's (TCP, Noise,
//! yamux with Floe's windows), and nothing on top.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::muxing::{StreamMuxer as _, StreamMuxerBox, StreamMuxerExt as _};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::{Endpoint, Transport as _, upgrade::Version};
use libp2p::{Multiaddr, PeerId, identity::Keypair, noise, tcp};

fn transport() -> Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let key = Keypair::generate_ed25519();
    Ok(tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&key)?)
        .multiplex(floe_ipfs::yamux::Config::default())
        .boxed())
}

/// Listens on a free loopback port and writes `chunks` to every stream that is opened. Returns the address; the
/// listening goes on in a task.
pub async fn serve(chunks: Vec<Bytes>) -> Result<Multiaddr> {
    let mut transport = transport()?;
    transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address = loop {
        if let Some(TransportEvent::NewAddress { listen_addr, .. }) = transport.next().await {
            break listen_addr;
        }
    };
    tokio::spawn(async move {
        while let Some(event) = transport.next().await {
            let TransportEvent::Incoming { upgrade, .. } = event else { continue };
            let chunks = chunks.clone();
            tokio::spawn(async move {
                let Ok((_, mut muxer)) = upgrade.await else { return };
                let Ok(mut stream) = poll_fn(|cx| muxer.poll_inbound_unpin(cx)).await else { return };
                let drive = poll_fn(move |cx| Pin::new(&mut muxer).poll(cx));
                let write = async move {
                    for chunk in chunks {
                        stream.write_all(&chunk).await?;
                    }
                    stream.close().await?;
                    // The connection has to be driven until the reader has everything and closes it.
                    std::future::pending::<std::io::Result<()>>().await
                };
                tokio::select! { _ = drive => {}, _ = write => {} }
            });
        }
    });
    Ok(address)
}

/// Reads a stream of [`serve`] to its end: how long from the first byte asked for to the last.
pub async fn read(address: &Multiaddr, len: usize) -> Result<Duration> {
    let mut transport = transport()?;
    let dial =
        transport.dial(address.clone(), DialOpts { role: Endpoint::Dialer, port_use: PortUse::New })?;
    let (_, mut muxer) = dial.await?;
    let begun = crate::floe::now();
    let mut stream = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await?;
    let drive = async move {
        loop {
            if let Err(error) = poll_fn(|cx| Pin::new(&mut muxer).poll(cx)).await {
                return error;
            }
        }
    };
    let take = async {
        // Opens the stream on the other side.
        stream.write_all(&[0]).await?;
        stream.flush().await?;
        let mut buffer = vec![0; 256 << 10];
        let mut total = 0;
        while total < len {
            match stream.read(&mut buffer).await? {
                0 => bail!("the stream ended after {total} of {len} bytes"),
                n => total += n,
            }
        }
        anyhow::Ok(begun.elapsed())
    };
    tokio::select! {
        error = drive => Err(error).context("the connection ended"),
        took = take => took,
    }
}
