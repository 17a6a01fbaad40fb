//! One connection: many inbound streams, one outbound.
//!
//! Kubo and Helia open a stream for each message, so inbound streams are all read side by side, to their end;
//! none is replaced, and none is dropped but for a frame that does not come (`unfinished.rs`), or with the
//! message that it brought where many are open: Kubo may end them late, and the muxer bounds them.
//!
//! What we send, wants and answers alike, goes over one stream that stays open and is opened again when it
//! breaks or the peer lets go of it: an answer that was not written out is then written again, on the peer's
//! other connection where this one closes, and the wantlist starts over (`full`), since nobody knows how much
//! of it arrived.
//!
//! The handler runs on the connection's own task. It parses messages and hands them on; hashing happens on
//! another task, reading of blocks on threads for that. Neither stream is a reason to keep the connection:
//! open requests in either direction are.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::SelectAll;
use futures::{AsyncRead, AsyncWrite, StreamExt};
use libp2p::Stream;
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, StreamUpgradeError, SubstreamProtocol};

use crate::behaviour::Misbehaviour;
use crate::frame::{FrameError, FrameReader};
use crate::limits::{
    HANG_UP_PAUSE, INBOUND_LEFT_OPEN, INBOUND_STREAMS, INBOUND_WANTS_LEFT_OPEN, OPEN_ATTEMPTS, hit,
    send_timeout,
};
use crate::message::{DecodeError, Frame, Message, Version};
use crate::protocol::{Negotiated, Protocol};
use crate::shared::{Link, Shared};
use crate::unfinished::Held;

/// Messages handled in one go before the connection's other work gets its turn.
const MESSAGES_PER_POLL: usize = 32;

/// Written bytes are reported in steps, so that the next answer is read while this one goes out.
const REPORT_BYTES: usize = 128 << 10;

/// The handler of one connection.
pub struct Handler {
    shared: Arc<Shared>,
    link: Arc<Link>,
    inbound: SelectAll<Inbound>,
    /// Counts what is in `inbound`.
    all: Arc<()>,
    outbound: Outbound,
    writing: Option<Writing>,
    /// Streams that failed since a frame last got out.
    failures: u32,
    /// When a stream that the peer let go of is a reason to say everything again.
    say_again_from: Duration,
    /// The behaviour is to be told that this connection is given up.
    gave_up: bool,
}

/// No stream could be opened, or none carried a frame to its end: nothing more is sent on this connection.
#[derive(Debug)]
pub struct GaveUp;

enum Outbound {
    Closed,
    Opening,
    Open {
        stream: Stream,
        version: Version,
        unflushed: bool,
        /// The peer wrote to it.
        answers_back: bool,
    },
    /// The peer does not speak bitswap, or not with us.
    Unsupported,
}

/// A frame that is going out.
struct Writing {
    frame: Frame,
    part: usize,
    offset: usize,
    written: usize,
    /// `None` for wants.
    answer: Option<Answer>,
}

/// An answer that is going out, kept so that it can go out again.
struct Answer {
    message: Message,
    /// Bytes of its blocks, and how many of them were reported as written.
    bytes: usize,
    reported: usize,
}

/// Why an inbound stream ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InboundError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("a frame began and did not come in time, or others needed its room")]
    LetGo,
}

impl InboundError {
    /// Whether a peer that does so again and again is dropped.
    fn is_malformed(&self) -> bool {
        matches!(self, Self::Decode(_) | Self::Frame(FrameError::Length))
    }
}

/// Messages of one inbound stream, until the first that is wrong.
struct Inbound {
    reader: FrameReader<Stream>,
    ended: bool,
    shared: Arc<Shared>,
    link: Arc<Link>,
    /// What the frame that has begun holds.
    held: Option<Held>,
    /// One for each stream that is read, and one for the handler.
    all: Arc<()>,
}

impl Inbound {
    fn new(stream: Stream, shared: Arc<Shared>, link: Arc<Link>, all: Arc<()>) -> Self {
        Self { reader: FrameReader::new(stream), ended: false, shared, link, held: None, all }
    }

    /// Whether its end is not waited for: the peer opens a stream for each message, and many are open.
    fn is_one_of_many(&self, message: &Message) -> bool {
        let wants = message.full || !message.wants.is_empty();
        let most = if wants { INBOUND_WANTS_LEFT_OPEN } else { INBOUND_LEFT_OPEN };
        Arc::strong_count(&self.all) - 1 > most && self.reader.unfinished().is_none()
    }

    /// Everything that came is read. Whether the rest is waited for no longer.
    fn is_let_go(&mut self, cx: &Context<'_>) -> bool {
        let Some((bytes, announced)) = self.reader.unfinished() else { return false };
        let (shared, link) = (&self.shared, &self.link);
        let held = self.held.get_or_insert_with(|| shared.hold(link, bytes, announced));
        held.grew(bytes, announced);
        held.is_let_go(cx.waker())
    }
}

impl futures::Stream for Inbound {
    type Item = Result<(Message, usize), InboundError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let item = match self.reader.poll_frame(cx) {
            Poll::Pending if !self.is_let_go(cx) => return Poll::Pending,
            Poll::Pending => Some(Err(InboundError::LetGo)),
            Poll::Ready(None) => None,
            Poll::Ready(Some(Ok(frame))) => {
                Some(Message::decode(&frame).map(|m| (m, frame.len())).map_err(InboundError::from))
            }
            Poll::Ready(Some(Err(error))) => Some(Err(error.into())),
        };
        self.held = None;
        self.ended = match &item {
            Some(Ok((message, _))) => self.is_one_of_many(message),
            _ => true,
        };
        Poll::Ready(item)
    }
}

impl Handler {
    pub(crate) fn new(shared: Arc<Shared>, link: Arc<Link>) -> Self {
        Self {
            shared,
            link,
            inbound: SelectAll::new(),
            all: Arc::default(),
            outbound: Outbound::Closed,
            writing: None,
            failures: 0,
            say_again_from: Duration::ZERO,
            gave_up: false,
        }
    }

    // ---- reading --------------------------------------------------------------------------------------

    fn poll_inbound(&mut self, cx: &mut Context<'_>) {
        for _ in 0..MESSAGES_PER_POLL {
            if !self.shared.may_read(&self.link) || self.inbound.is_empty() {
                return;
            }
            match self.inbound.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok((message, bytes)))) => self.on_message(message, bytes),
                Poll::Ready(Some(Err(error))) => self.on_inbound_error(&error),
                Poll::Ready(None) | Poll::Pending => return,
            }
        }
        cx.waker().wake_by_ref();
    }

    fn on_message(&mut self, message: Message, bytes: usize) {
        metrics::counter!("floe_bitswap_bytes_total", "direction" => "in").increment(bytes as u64);
        let peer = self.link.peer;
        let Message { full, wants, payloads, presences, .. } = message;
        if !payloads.is_empty() {
            self.shared.ingest(&self.link, payloads);
        }
        if !presences.is_empty() {
            self.shared.client(|client, now| client.on_presences(&peer, &presences, now));
        }
        if full || !wants.is_empty() {
            self.shared.server(|server, now| server.on_wants(&peer, full, wants, now));
        }
    }

    fn on_inbound_error(&self, error: &InboundError) {
        let peer = self.link.peer;
        tracing::debug!(%peer, %error, "a bitswap stream of {peer} ended early: {error}");
        let what = Misbehaviour::Malformed;
        match error {
            // No honest peer begins such a frame: there is no second one.
            InboundError::Frame(FrameError::TooLong(_)) => {
                self.shared.client(|client, now| client.drop_peer(&peer, what, now));
            }
            error if error.is_malformed() => {
                self.shared.client(|client, now| client.strike(&peer, what, now));
            }
            _ => {}
        }
    }

    // ---- writing --------------------------------------------------------------------------------------

    /// Writes what there is to write. `Ready` asks for a stream.
    fn poll_outbound(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.outbound {
                Outbound::Opening | Outbound::Unsupported => return Poll::Pending,
                Outbound::Closed => {
                    let needed = self.link.is_active() && self.has_work();
                    return if needed { Poll::Ready(()) } else { Poll::Pending };
                }
                Outbound::Open { version, .. } => {
                    let version = *version;
                    if self.writing.is_none() {
                        self.writing = self.next_frame(version);
                    }
                }
            }
            match self.poll_write(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) if self.is_hung_up(cx) => self.on_hang_up(),
                Poll::Ready(Ok(false)) | Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => self.on_write_error(&error),
            }
        }
    }

    fn has_work(&self) -> bool {
        let peer = &self.link.peer;
        self.shared.peek_client(|client| client.has_message(peer))
            || self.shared.peek_server(|server| server.has_answer(peer))
    }

    /// Wants first: they are small, and what they bring is waited for.
    fn next_frame(&mut self, version: Version) -> Option<Writing> {
        if !self.link.is_active() {
            return None;
        }
        let peer = self.link.peer;
        let wants = self.shared.client(|client, _| client.next_message(&peer));
        let (frame, answer) = match wants {
            Some(wants) => (wants.encode(version), None),
            None => {
                let message = self.shared.server(|server, _| server.next_answer(&peer))?;
                let (frame, bytes) = (message.encode(version), message.block_bytes());
                (frame, Some(Answer { message, bytes, reported: 0 }))
            }
        };
        self.link.set_deadline(Some(self.shared.now() + send_timeout(frame.len())));
        self.shared.ensure_ticking();
        Some(Writing { frame, part: 0, offset: 0, written: 0, answer })
    }

    /// `true`: a frame is out; `false`: there is none.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<bool>> {
        let Outbound::Open { stream, unflushed, .. } = &mut self.outbound else {
            return Poll::Ready(Ok(false));
        };
        let Some(writing) = &mut self.writing else {
            if *unflushed {
                ready!(Pin::new(stream).poll_flush(cx))?;
                *unflushed = false;
            }
            return Poll::Ready(Ok(false));
        };
        while let Some(part) = writing.frame.parts().get(writing.part) {
            let written = match Pin::new(&mut *stream).poll_write(cx, &part[writing.offset..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending if self.link.is_overdue(self.shared.now()) => {
                    return Poll::Ready(Err(std::io::ErrorKind::TimedOut.into()));
                }
                Poll::Pending => return Poll::Pending,
            };
            *unflushed = true;
            metrics::counter!("floe_bitswap_bytes_total", "direction" => "out").increment(written as u64);
            writing.advance(written);
            if writing.answer.is_some() {
                self.shared.client(|client, now| client.moved(&self.link.peer, now));
            }
            if let Some(bytes) = writing.take_report(REPORT_BYTES) {
                self.shared.server(|server, _| server.written(&self.link.peer, bytes));
            }
        }
        self.finish_frame();
        Poll::Ready(Ok(true))
    }

    fn finish_frame(&mut self) {
        self.failures = 0;
        self.link.set_deadline(None);
        let Some(mut writing) = self.writing.take() else { return };
        let bytes = writing.take_report(0).unwrap_or(0);
        if let Some(answer) = writing.answer {
            // Counted here, because an answer that is given back goes out again.
            let blocks = answer.message.payloads.len() as u64;
            metrics::counter!("floe_bitswap_blocks_sent_total").increment(blocks);
            self.shared.server(|server, _| server.written_out(&self.link.peer, bytes));
        }
    }

    fn on_write_error(&mut self, error: &std::io::Error) {
        let peer = self.link.peer;
        tracing::debug!(%peer, %error, "the bitswap stream to {peer} failed: {error}");
        self.outbound = Outbound::Closed;
        self.link.set_deadline(None);
        let slow = error.kind() == std::io::ErrorKind::TimedOut;
        if slow {
            hit("bitswap_send_timeout");
        }
        self.stop_writing(slow);
        // What is not outstanding any more may have made room for a read.
        self.shared.server(|_, _| ());
        self.shared.client(|client, _| client.start_over(&peer));
        self.failed(slow.then_some(Misbehaviour::SlowReader));
    }

    /// Whether the peer let go of our stream while nothing was being written. Helia does so with one that is idle.
    fn is_hung_up(&mut self, cx: &mut Context<'_>) -> bool {
        let Outbound::Open { stream, answers_back, .. } = &mut self.outbound else { return false };
        if *answers_back {
            return false;
        }
        match Pin::new(stream).poll_read(cx, &mut [0]) {
            Poll::Pending => false,
            // Nothing is said on this side of a stream: it is not listened to any further.
            Poll::Ready(Ok(1)) => {
                *answers_back = true;
                false
            }
            Poll::Ready(_) => true,
        }
    }

    /// What was written last may not have been read, and no write fails that would tell: wants are said again, but
    /// not each time to a peer that always closes its side at once.
    fn on_hang_up(&mut self) {
        self.outbound = Outbound::Closed;
        let now = self.shared.now();
        if now >= self.say_again_from {
            self.say_again_from = now + HANG_UP_PAUSE;
            self.shared.client(|client, _| client.start_over(&self.link.peer));
        }
    }

    /// An answer that is not written out is given back, to be written again, but for that of a slow reader, which
    /// must not hold blocks.
    fn stop_writing(&mut self, slow: bool) {
        let Some(mut writing) = self.writing.take() else { return };
        if slow {
            writing.written = usize::MAX;
        }
        let peer = &self.link.peer;
        if let Some(bytes) = writing.take_report(0) {
            self.shared.written(peer, bytes);
        }
        if let Some(answer) = writing.answer.filter(|_| !slow) {
            self.shared.give_back(peer, answer.message, answer.reported);
        }
    }

    /// Counts a failed stream; after some, the connection is given up.
    fn failed(&mut self, why: Option<Misbehaviour>) {
        self.failures += 1;
        if self.failures < OPEN_ATTEMPTS {
            return;
        }
        match why {
            Some(what) => self.shared.misbehaved(&self.link.peer, what),
            None => self.give_up(),
        }
    }

    /// What is sent goes over the peer's other connection, or the peer is of no use. Which of the two is said by the
    /// behaviour, which knows of connections in the order in which they come and go.
    fn give_up(&mut self) {
        self.outbound = Outbound::Unsupported;
        self.gave_up = true;
    }

    /// A peer under load drops a stream before it has said which protocols it speaks. That looks the same as
    /// speaking none, so no answer is taken for final before the last attempt.
    fn on_dial_error<E: std::error::Error + 'static>(&mut self, error: &StreamUpgradeError<E>) {
        let peer = self.link.peer;
        tracing::debug!(%peer, %error, "no bitswap stream to {peer}: {error}");
        self.outbound = Outbound::Closed;
        self.failed(None);
    }

    fn accept(&mut self, mut stream: Stream) {
        if self.inbound.len() >= INBOUND_STREAMS {
            return hit("bitswap_inbound_streams");
        }
        stream.ignore_for_keep_alive();
        let (shared, link, all) = (self.shared.clone(), self.link.clone(), self.all.clone());
        self.inbound.push(Inbound::new(stream, shared, link, all));
    }
}

impl Writing {
    fn advance(&mut self, bytes: usize) {
        self.written += bytes;
        self.offset += bytes;
        if self.frame.parts().get(self.part).is_some_and(|part| self.offset == part.len()) {
            self.part += 1;
            self.offset = 0;
        }
    }

    /// Bytes of blocks that went out since the last report, where they are at least `step`.
    fn take_report(&mut self, step: usize) -> Option<usize> {
        let answer = self.answer.as_mut()?;
        let out = self.written.min(answer.bytes) - answer.reported;
        if out == 0 || out < step {
            return None;
        }
        answer.reported += out;
        Some(out)
    }
}

impl Drop for Handler {
    /// The swarm drops a handler before it says that the connection is closed: the server still knows the peer, and
    /// the answer waits for its other connection, or goes with it.
    fn drop(&mut self) {
        let slow = self.link.is_overdue(self.shared.now());
        self.stop_writing(slow);
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = std::convert::Infallible;
    type ToBehaviour = GaveUp;
    type InboundProtocol = Protocol;
    type OutboundProtocol = Protocol;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Protocol> {
        SubstreamProtocol::new(Protocol, ())
    }

    fn connection_keep_alive(&self) -> bool {
        let peer = &self.link.peer;
        !self.link.is_banned()
            && (self.writing.is_some()
                || self.shared.peek_client(|client| client.uses(peer))
                || self.shared.peek_server(|server| server.serves(peer)))
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Protocol, Protocol>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) => {
                self.accept(protocol.stream);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) => {
                let Negotiated { mut stream, version } = protocol;
                stream.ignore_for_keep_alive();
                self.outbound = Outbound::Open { stream, version, unflushed: false, answers_back: false };
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => self.on_dial_error(&error),
            _ => {}
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Protocol, (), Self::ToBehaviour>> {
        self.link.register(cx.waker());
        if self.link.is_banned() {
            self.inbound.clear();
            self.outbound = Outbound::Closed;
            self.writing = None;
            return Poll::Pending;
        }
        self.poll_inbound(cx);
        let wants_stream = self.poll_outbound(cx);
        if std::mem::take(&mut self.gave_up) {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(GaveUp));
        }
        ready!(wants_stream);
        self.outbound = Outbound::Opening;
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(Protocol, ()),
        })
    }
}

#[cfg(test)]
mod tests;
