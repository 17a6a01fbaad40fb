//! One DAG being fetched: a bitswap session, and the search for peers behind it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use floe_bitswap::{BitswapSession, SessionId};
use floe_core::ports::{self, ExchangeClosed, Session, SessionHints, SessionProgress};
use floe_core::{Block, Cid};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::dial::origins::Origins;
use crate::dial::policy::{Asker, Policy};
use crate::limits::{self, MAX_UNTOLD};
use crate::task::Command;
use libp2p::PeerId;

/// What the session and the swarm's task both see.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) id: SessionId,
    pub(crate) root: Cid,
    /// The session was dropped: nobody needs what is found.
    pub(crate) closed: AtomicBool,
    /// In words for the owner of the pin.
    pub(crate) error: Mutex<Option<String>>,
}

impl Shared {
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(crate) fn fail(&self, error: impl Into<String>) {
        *self.error.lock() = Some(error.into());
    }
}

/// How a session reaches the node.
#[derive(Clone)]
pub(crate) struct Reach {
    pub(crate) own: PeerId,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) policy: Arc<Policy>,
    /// Under `network.private_addresses = auto` with a local API.
    pub(crate) local_requests_are_trusted: bool,
}

impl Reach {
    fn asker(&self, local_request: bool) -> Asker {
        if local_request && self.local_requests_are_trusted { Asker::Local } else { Asker::Stranger }
    }
}

/// See the module.
pub(crate) struct NodeSession {
    bitswap: BitswapSession,
    shared: Arc<Shared>,
    reach: Reach,
    /// Origins that the swarm's task has not been told yet; the first are told with the first want.
    untold: VecDeque<(Asker, Origins)>,
    wanted: bool,
}

impl NodeSession {
    pub(crate) fn new(bitswap: BitswapSession, hints: &SessionHints, reach: Reach) -> Self {
        let shared = Arc::new(Shared {
            id: bitswap.id(),
            root: hints.root,
            closed: AtomicBool::new(false),
            error: Mutex::default(),
        });
        let mut session = Self { bitswap, shared, reach, untold: VecDeque::new(), wanted: false };
        hints.origins.iter().for_each(|origins| session.queue(origins));
        session
    }

    fn queue(&mut self, origins: &ports::Origins) {
        let asker = self.reach.asker(origins.local_request);
        let origins = Origins::parse(&origins.addresses, asker, &self.reach.policy, &self.reach.own);
        if let Some(refusal) = origins.refusal {
            self.shared.fail(format!("an origin was not dialled: {refusal}"));
        }
        if self.untold.len() >= MAX_UNTOLD {
            limits::hit("untold_origins");
            self.untold.pop_front();
        }
        self.untold.push_back((asker, origins));
    }

    /// Tells the swarm's task what it does not know yet. Where its queue is full, the next call tries again.
    fn tell(&mut self) {
        while let Some((asker, origins)) = self.untold.pop_front() {
            let peers: Vec<_> = origins.peers.iter().map(|(peer, _)| *peer).collect();
            match self.reach.commands.try_reserve() {
                Ok(slot) => {
                    self.bitswap.add_providers(&peers);
                    slot.send(Command::Search { shared: self.shared.clone(), asker, peers: origins.peers });
                }
                Err(mpsc::error::TrySendError::Full(())) => {
                    limits::hit("node_commands");
                    self.untold.push_front((asker, origins));
                    return;
                }
                // The node has stopped; the session ends through bitswap.
                Err(mpsc::error::TrySendError::Closed(())) => return,
            }
        }
    }
}

impl Session for NodeSession {
    fn room(&self) -> usize {
        self.bitswap.room()
    }

    fn want(&mut self, cids: &[Cid]) {
        self.wanted = true;
        self.tell();
        self.bitswap.want(cids);
    }

    fn cancel(&mut self, cids: &[Cid]) {
        self.bitswap.cancel(cids);
    }

    fn add_origins(&mut self, origins: &ports::Origins) {
        self.queue(origins);
        if self.wanted {
            self.tell();
        }
    }

    fn poll_blocks(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Block>, ExchangeClosed>> {
        if self.wanted && !self.untold.is_empty() {
            self.tell();
        }
        self.bitswap.poll_blocks(cx)
    }

    fn progress(&self) -> SessionProgress {
        let mut progress = self.bitswap.progress();
        // What bitswap says is about peers that were reached, so it is the better news.
        if progress.last_error.is_none() && progress.providers == 0 {
            progress.last_error = self.shared.error.lock().clone();
        }
        progress
    }
}

impl Drop for NodeSession {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use libp2p::Multiaddr;

    use super::*;
    use crate::testing::{MemoryBlocks, SystemClock};

    /// A session before its first want, and the other end of the task's queue, which holds `room` commands.
    fn session(room: usize) -> (NodeSession, mpsc::Receiver<Command>, floe_bitswap::Behaviour) {
        let clock = Arc::new(SystemClock::new());
        let blocks = Arc::new(MemoryBlocks::default());
        let (behaviour, bitswap) =
            floe_bitswap::new(floe_bitswap::Config::default(), blocks, clock.clone(), [1; 32]);
        let (commands, commands_in) = mpsc::channel(room);
        let policy = Arc::new(Policy::new(true, clock));
        let reach = Reach { own: PeerId::random(), commands, policy, local_requests_are_trusted: true };
        let root = *floe_core::Block::of(0x55, vec![1].into()).unwrap().cid();
        let hints = SessionHints { root, origins: vec![named(&[])] };
        (NodeSession::new(bitswap.session(root), &hints, reach), commands_in, behaviour)
    }

    fn named(addresses: &[String]) -> ports::Origins {
        ports::Origins { addresses: addresses.to_vec(), local_request: true }
    }

    fn origin(port: usize) -> String {
        format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", PeerId::random())
    }

    fn addresses(command: Command) -> Vec<Multiaddr> {
        let Command::Search { peers, .. } = command else { panic!("a session only searches") };
        peers.into_iter().flat_map(|(_, addresses)| addresses).collect()
    }

    #[test]
    fn untold_origins_at_the_boundary() {
        // The list that every session begins with is the first.
        for lists in [MAX_UNTOLD - 1, MAX_UNTOLD, MAX_UNTOLD + 1] {
            let (mut session, _commands, _behaviour) = session(1);
            (1..lists).for_each(|n| session.add_origins(&named(&[origin(4_000 + n)])));
            assert_eq!(session.untold.len(), lists.min(MAX_UNTOLD));
            let newest = &session.untold.back().unwrap().1.peers[0].1[0];
            assert!(newest.to_string().contains(&format!("/tcp/{}", 3_999 + lists)), "{newest}");
        }
    }

    #[test]
    fn origins_that_find_the_tasks_queue_full_are_told_later() {
        let (mut session, mut commands, _behaviour) = session(1);
        let root = session.shared.root;
        session.want(&[root]);
        session.add_origins(&named(&[origin(4_001)]));
        assert_eq!(session.untold.len(), 1, "the queue holds the first want");
        assert!(addresses(commands.try_recv().unwrap()).is_empty());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(session.poll_blocks(&mut cx).is_pending());
        assert!(session.untold.is_empty());
        assert!(addresses(commands.try_recv().unwrap())[0].to_string().contains("/tcp/4001"));
    }
}
