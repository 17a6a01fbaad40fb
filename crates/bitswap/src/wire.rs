//! A peer without a swarm: one connection whose streams are opened, held and closed as a test says, so that it
//! can do what no honest node does.
//!
//! Test support, also for other crates. Nothing here is used by a running node.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::task::Poll;

use floe_core::Cid;
use floe_core::ports::LocalBlocks;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, PortUse};
use libp2p::core::{Endpoint, Transport, upgrade};
use libp2p::{Multiaddr, PeerId, identity::Keypair, noise, tcp, yamux};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::FrameReader;
use crate::message::{Frame, Message, Payload, Presence, Version, WantEntry, WantKind};

/// What both sides of multistream-select say first.
pub const HELLO: &str = "/multistream/1.0.0\n";

/// Streams that wait to be taken. More than any muxer here lets the other side open.
const INBOUND: usize = 4_096;

/// Messages that are written at once, each on a stream of its own: Kubo's server has eight workers.
const WRITERS: usize = 8;

/// The name of the protocol on the wire, with its newline.
pub fn protocol(version: Version) -> &'static str {
    match version {
        Version::V1_0 => "/ipfs/bitswap/1.0.0\n",
        Version::V1_1 => "/ipfs/bitswap/1.1.0\n",
        Version::V1_2 => "/ipfs/bitswap/1.2.0\n",
    }
}

/// How a peer connects.
#[derive(Clone)]
pub struct Manner {
    /// Who it is.
    pub key: Keypair,
    /// The one version that it speaks.
    pub version: Version,
    /// Streams that its muxer allows.
    pub streams: usize,
}

impl Default for Manner {
    fn default() -> Self {
        Self { key: Keypair::generate_ed25519(), version: Version::V1_2, streams: 512 }
    }
}

/// One connection. It ends when the last [`Opener`] and the peer are dropped, or when the other side ends it.
pub struct Peer {
    /// Who it is.
    pub id: PeerId,
    /// Streams that the other side opened, not negotiated yet: see [`agree`]. Ends with the connection.
    pub inbound: mpsc::Receiver<SubstreamBox>,
    opener: Opener,
}

/// Opens streams on a peer's connection.
#[derive(Clone)]
pub struct Opener {
    requests: mpsc::Sender<oneshot::Sender<SubstreamBox>>,
    version: Version,
}

impl Peer {
    /// Connects in the usual manner. Panics where nobody answers.
    pub async fn dial(address: Multiaddr) -> Self {
        Self::dial_as(Manner::default(), address).await.unwrap()
    }

    /// Connects over TCP, Noise and yamux.
    ///
    /// # Errors
    /// Where nobody answers or the handshake is broken off.
    pub async fn dial_as(manner: Manner, address: Multiaddr) -> io::Result<Self> {
        let mut muxing = yamux::Config::default();
        muxing.set_max_num_streams(manner.streams);
        let transport = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
            .upgrade(upgrade::Version::V1Lazy)
            .authenticate(noise::Config::new(&manner.key).unwrap())
            .multiplex(muxing)
            .boxed();
        Self::dial_over(transport, manner, address).await
    }

    /// Connects over a transport that is the caller's; how many streams there may be is its muxer's matter.
    ///
    /// # Errors
    /// As [`Peer::dial_as`].
    pub async fn dial_over(
        mut transport: Boxed<(PeerId, StreamMuxerBox)>,
        manner: Manner,
        address: Multiaddr,
    ) -> io::Result<Self> {
        let Manner { key, version, .. } = manner;
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let (_, muxer) = transport.dial(address, options).unwrap().await?;
        let (requests, requested) = mpsc::channel(1_000);
        let (sender, inbound) = mpsc::channel(INBOUND);
        tokio::spawn(drive(muxer, requested, sender));
        Ok(Self { id: key.public().to_peer_id(), inbound, opener: Opener { requests, version } })
    }

    /// What opens streams on its connection.
    pub fn opener(&self) -> Opener {
        self.opener.clone()
    }

    /// A stream of bitswap.
    pub async fn stream(&self) -> SubstreamBox {
        self.opener.stream().await.unwrap()
    }

    /// The next stream on which the other side speaks our version; refuses those of other protocols.
    pub async fn accept(&mut self) -> Option<SubstreamBox> {
        loop {
            if let Some(stream) = agree(self.inbound.recv().await?, self.opener.version).await {
                return Some(stream);
            }
        }
    }

    /// Takes every bitswap stream and gives every message to `on_message`, until the connection ends.
    pub async fn listen(mut self, on_message: impl Fn(Opener, Message) + Clone + Send + 'static) {
        while let Some(stream) = self.inbound.recv().await {
            let (opener, on_message) = (self.opener(), on_message.clone());
            tokio::spawn(async move {
                let Some(stream) = agree(stream, opener.version).await else { return };
                let mut frames = FrameReader::new(stream);
                while let Some(Ok(frame)) = frames.next().await {
                    on_message(opener.clone(), Message::decode(&frame).unwrap());
                }
            });
        }
    }
}

impl Opener {
    /// A stream on which nothing was said; it stays pending while the other side lets us have no more.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub async fn open(&self) -> io::Result<SubstreamBox> {
        let (sender, receiver) = oneshot::channel();
        self.requests.send(sender).await.map_err(io::Error::other)?;
        receiver.await.map_err(io::Error::other)
    }

    /// A stream of bitswap.
    ///
    /// # Errors
    /// Where the connection has ended, or the other side does not speak our version.
    pub async fn stream(&self) -> io::Result<SubstreamBox> {
        propose(self.open().await?, protocol(self.version)).await
    }

    /// A stream of another protocol, whose name is given without its newline.
    ///
    /// # Errors
    /// Where the connection has ended, or the other side does not speak it.
    pub async fn stream_of(&self, name: &str) -> io::Result<SubstreamBox> {
        propose(self.open().await?, &format!("{name}\n")).await
    }

    /// Sends a message the way Kubo does: open, write, close.
    ///
    /// # Errors
    /// Where the connection ends meanwhile.
    pub async fn send(&self, message: &Message) -> io::Result<()> {
        let mut stream = self.stream().await?;
        write(&mut stream, &message.encode(self.version)).await?;
        stream.close().await
    }
}

/// Multistream-select, as the side that opened the stream.
async fn propose(mut stream: SubstreamBox, protocol: &str) -> io::Result<SubstreamBox> {
    say(&mut stream, HELLO).await?;
    say(&mut stream, protocol).await?;
    for wanted in [HELLO, protocol] {
        let line = line(&mut stream).await?;
        if line != wanted {
            return Err(io::Error::other(format!("{wanted:?} was answered with {line:?}")));
        }
    }
    Ok(stream)
}

/// Multistream-select, as the side that takes the stream; `None` where it is given up. Protocols other than bitswap
/// are declined, one by one.
pub async fn agree(stream: SubstreamBox, version: Version) -> Option<SubstreamBox> {
    agree_on(stream, protocol(version)).await
}

/// The same for any protocol, whose name is given with its newline.
pub async fn agree_on(mut stream: SubstreamBox, protocol: &str) -> Option<SubstreamBox> {
    loop {
        let line = line(&mut stream).await.ok()?;
        let known = line == HELLO || line == protocol;
        say(&mut stream, if known { &line } else { "na\n" }).await.ok()?;
        if line == protocol {
            return Some(stream);
        }
    }
}

/// Says a line of multistream-select, with its newline.
///
/// # Errors
/// Where the other side resets the stream.
pub async fn say(stream: &mut SubstreamBox, line: &str) -> io::Result<()> {
    stream.write_all(&[u8::try_from(line.len()).unwrap()]).await?;
    stream.write_all(line.as_bytes()).await?;
    stream.flush().await
}

/// The next line of multistream-select, with its newline.
///
/// # Errors
/// Where the stream ends before, or the line is no text.
pub async fn line(stream: &mut SubstreamBox) -> io::Result<String> {
    let mut len = [0];
    stream.read_exact(&mut len).await?;
    let mut line = vec![0; usize::from(len[0])];
    stream.read_exact(&mut line).await?;
    String::from_utf8(line).map_err(io::Error::other)
}

/// Writes a frame.
///
/// # Errors
/// Where the other side resets the stream.
pub async fn write(stream: &mut SubstreamBox, frame: &Frame) -> io::Result<()> {
    for part in frame.parts() {
        stream.write_all(part).await?;
    }
    stream.flush().await
}

async fn drive(
    mut muxer: StreamMuxerBox,
    mut requests: mpsc::Receiver<oneshot::Sender<SubstreamBox>>,
    inbound: mpsc::Sender<SubstreamBox>,
) {
    let mut waiting = VecDeque::new();
    std::future::poll_fn(|cx| {
        loop {
            if muxer.poll_unpin(cx)?.is_ready() {
                continue;
            }
            loop {
                match requests.poll_recv(cx) {
                    Poll::Ready(Some(request)) => waiting.push_back(request),
                    Poll::Ready(None) => return Poll::Ready(io::Result::Ok(())),
                    Poll::Pending => break,
                }
            }
            if !waiting.is_empty()
                && let Poll::Ready(stream) = muxer.poll_outbound_unpin(cx)?
            {
                let request: oneshot::Sender<SubstreamBox> = waiting.pop_front().unwrap();
                let _ = request.send(stream);
                continue;
            }
            match muxer.poll_inbound_unpin(cx)? {
                Poll::Ready(stream) => drop(inbound.try_send(stream)),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
    .ok();
}

/// A want for a block, or for word that it is not there.
pub fn want(cid: &Cid) -> WantEntry {
    WantEntry { cid: *cid, priority: 1, cancel: false, kind: WantKind::Block, send_dont_have: true }
}

/// Wants for these blocks, in one message.
pub fn wants<'a>(cids: impl IntoIterator<Item = &'a Cid>) -> Message {
    Message { wants: cids.into_iter().map(want).collect(), ..Message::default() }
}

/// A frame as one run of bytes.
pub fn bytes(message: &Message, version: Version) -> Vec<u8> {
    message.encode(version).parts().concat()
}

fn asked(message: &Message, kind: WantKind) -> Vec<Cid> {
    let asked = message.wants.iter().filter(|want| want.kind == kind && !want.cancel);
    asked.map(|want| want.cid).collect()
}

/// Serves as Kubo does, until the connection ends: HAVE for what it has, and each wanted block in a message and
/// on a stream of its own.
pub async fn serve(peer: Peer, blocks: Arc<dyn LocalBlocks>) {
    let writers = Arc::new(Semaphore::new(WRITERS));
    peer.listen(move |opener, message| {
        let haves = asked(&message, WantKind::Have).into_iter();
        let here: Vec<_> = haves
            .filter(|cid| blocks.size(cid).unwrap().is_some())
            .map(|cid| (cid, Presence::Have))
            .collect();
        if !here.is_empty() {
            let opener = opener.clone();
            tokio::spawn(async move {
                opener.send(&Message { presences: here, ..Message::default() }).await.ok();
            });
        }
        for cid in asked(&message, WantKind::Block) {
            let (opener, blocks, writers) = (opener.clone(), blocks.clone(), writers.clone());
            tokio::spawn(async move {
                let _turn = writers.acquire().await.unwrap();
                let Some(data) = blocks.read(&cid).unwrap() else { return };
                let payloads = vec![Payload::new(&cid, data)];
                opener.send(&Message { payloads, ..Message::default() }).await.ok();
            });
        }
    })
    .await;
}

/// Says HAVE to everything and sends nothing, until the connection ends. Gives the number of blocks it owes.
pub async fn stall(peer: Peer, owed: Arc<std::sync::atomic::AtomicUsize>) {
    peer.listen(move |opener, message| {
        owed.fetch_add(asked(&message, WantKind::Block).len(), std::sync::atomic::Ordering::Relaxed);
        let haves = asked(&message, WantKind::Have).into_iter();
        let presences: Vec<_> = haves.map(|cid| (cid, Presence::Have)).collect();
        tokio::spawn(async move {
            opener.send(&Message { presences, ..Message::default() }).await.ok();
        });
    })
    .await;
}
