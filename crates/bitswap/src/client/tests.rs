//! The client alone: events and a made-up clock in, actions and messages out.

mod bounds;

use std::collections::BTreeSet;
use std::time::Duration;

use floe_core::{Block, Cid};
use libp2p::PeerId;

use super::{Action, Client, Taken};
use crate::behaviour::{Event, Misbehaviour};
use crate::handle::SessionId;
use crate::limits::{
    BLOCK_OVERHEAD_BYTES, CLIENT_WANTS_PER_PEER, DUPLICATES_PER_REQUEST, INBOX_BYTES, NEED_PROVIDERS_AFTER,
    NEED_PROVIDERS_BACKOFF, PARKED_ROOTS, PEER_WINDOW_START, PROBES_PER_SESSION, PROGRESS_TIMEOUT,
    PROVIDERS_PER_SESSION, SESSION_WANTS, SESSION_WANTS_KEPT, SESSION_WINDOW_BYTES, STRIKES,
};
use crate::message::{Presence, WantEntry, WantKind};
use crate::testing::{block, large};

/// A client and a clock.
struct World {
    client: Client,
    now: Duration,
}

impl World {
    fn new() -> Self {
        Self { client: Client::default(), now: Duration::from_secs(100) }
    }

    fn peer(&mut self) -> PeerId {
        let id = PeerId::random();
        self.client.connected(id, self.now);
        id
    }

    fn open(&mut self, root: &Block, providers: &[PeerId]) -> SessionId {
        let id = self.client.open(*root.cid(), self.now);
        self.client.add_providers(id, providers, self.now);
        id
    }

    fn want(&mut self, id: SessionId, blocks: &[Block]) {
        let cids: Vec<Cid> = blocks.iter().map(|block| *block.cid()).collect();
        self.client.want(id, &cids, self.now);
    }

    fn sent(&mut self, to: &PeerId) -> Vec<WantEntry> {
        std::iter::from_fn(|| self.client.next_message(to)).flat_map(|message| message.wants).collect()
    }

    fn asked_blocks(&mut self, to: &PeerId) -> BTreeSet<Cid> {
        let sent = self.sent(to);
        sent.iter().filter(|want| want.kind == WantKind::Block && !want.cancel).map(|want| want.cid).collect()
    }

    fn answer(&mut self, from: &PeerId, blocks: &[Block]) -> Taken {
        self.client.on_blocks(from, blocks.to_vec(), self.now)
    }

    fn presence(&mut self, from: &PeerId, block: &Block, presence: Presence) {
        self.client.on_presences(from, &[(*block.cid(), presence)], self.now);
    }

    fn pass(&mut self, time: Duration) {
        let step = Duration::from_millis(250);
        let until = self.now + time;
        while self.now < until {
            self.now += step;
            self.client.tick(self.now);
        }
    }

    fn events(&mut self) -> Vec<Event> {
        let actions = self.client.take_actions().into_iter();
        actions
            .filter_map(|action| if let Action::Event(event) = action { Some(*event) } else { None })
            .collect()
    }

    fn got(&mut self, id: SessionId) -> usize {
        self.client.take_blocks(id, self.now).len()
    }
}

fn blocks(range: std::ops::Range<u32>) -> Vec<Block> {
    range.map(block).collect()
}

#[test]
fn a_provider_is_asked_for_the_block_and_others_whether_they_have_the_root() {
    let mut world = World::new();
    let (origin, stranger) = (world.peer(), world.peer());
    let root = block(0);
    let id = world.open(&root, &[origin]);
    world.want(id, std::slice::from_ref(&root));
    let (at_origin, at_stranger) = (world.sent(&origin), world.sent(&stranger));
    assert_eq!((at_origin.len(), at_origin[0].kind), (1, WantKind::Block));
    assert_eq!((at_stranger.len(), at_stranger[0].kind), (1, WantKind::Have));
    world.presence(&stranger, &root, Presence::Have);
    world.answer(&origin, &[root]);
    world.want(id, &blocks(1..40));
    assert!(!world.asked_blocks(&stranger).is_empty(), "who has the root shares the work");
}

#[test]
fn a_want_that_another_session_had_queued_stays_with_who_wants_it() {
    // One session looked for a block that nobody has. Another wanted it too, put it in its own queue behind what
    // its busy peer was sending, and was cancelled. The want then stood in no queue, and the first session's next
    // provider was never asked.
    let mut world = World::new();
    let busy = world.peer();
    let looking = world.open(&block(0), &[]);
    world.want(looking, &[block(7)]);
    let passing = world.open(&block(1), &[busy]);
    world.want(passing, &blocks(100..100 + PEER_WINDOW_START as u32));
    world.want(passing, &[block(7)]);
    assert!(!world.asked_blocks(&busy).contains(block(7).cid()), "the peer has no room");
    world.client.cancel(passing, &[*block(7).cid()], world.now);
    let found = world.peer();
    world.client.add_providers(looking, &[found], world.now);
    assert!(world.asked_blocks(&found).contains(block(7).cid()));
}

#[test]
fn sessions_that_want_one_block_share_the_request() {
    let mut world = World::new();
    let peer = world.peer();
    let (a, b) = (world.open(&block(0), &[peer]), world.open(&block(1), &[peer]));
    world.want(a, &[block(7)]);
    world.want(b, &[block(7)]);
    assert_eq!(world.asked_blocks(&peer).len(), 1);
    assert_eq!(world.answer(&peer, &[block(7)]).useful, 1);
    assert_eq!((world.got(a), world.got(b)), (1, 1));
}

#[test]
fn a_shared_want_outlives_the_session_that_asked_first() {
    let mut world = World::new();
    let peer = world.peer();
    let (a, b) = (world.open(&block(0), &[peer]), world.open(&block(1), &[peer]));
    world.want(a, &[block(7)]);
    world.want(b, &[block(7)]);
    world.client.close(a);
    world.answer(&peer, &[block(7)]);
    assert_eq!(world.got(b), 1);
}

#[test]
fn closing_a_session_cancels_at_the_peers() {
    let mut world = World::new();
    let (origin, stranger) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[origin]);
    world.want(id, &[block(0)]);
    world.sent(&origin);
    world.sent(&stranger);
    world.client.close(id);
    assert!(world.sent(&origin)[0].cancel && world.sent(&stranger)[0].cancel);
    assert_eq!(world.client.counts(), (2, 0, 0, 0));
    assert!(!world.client.is_busy());
}

#[test]
fn dont_have_moves_the_want_to_the_next_provider_then_to_everybody() {
    let mut world = World::new();
    let (a, b, c) = (world.peer(), world.peer(), world.peer());
    let id = world.open(&block(0), &[a, b]);
    world.want(id, &[block(5)]);
    assert_eq!(world.asked_blocks(&a).len(), 1);
    world.presence(&a, &block(5), Presence::DontHave);
    assert_eq!(world.asked_blocks(&b).len(), 1);
    world.sent(&c);
    world.presence(&b, &block(5), Presence::DontHave);
    let probe = world.sent(&c);
    assert_eq!((probe[0].cid, probe[0].kind), (*block(5).cid(), WantKind::Have));
    world.presence(&c, &block(5), Presence::Have);
    assert_eq!(world.asked_blocks(&c).len(), 1);
}

#[test]
fn a_disconnect_moves_its_wants() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[a]);
    world.want(id, &blocks(0..10));
    assert_eq!(world.asked_blocks(&a).len(), 10);
    world.client.add_providers(id, &[b], world.now);
    world.client.disconnected(&a, world.now);
    assert_eq!(world.asked_blocks(&b).len(), 10);
}

#[test]
fn a_provider_that_comes_back_is_one_again() {
    let mut world = World::new();
    let a = world.peer();
    let id = world.open(&block(0), &[a]);
    world.want(id, &blocks(0..3));
    world.sent(&a);
    world.client.disconnected(&a, world.now);
    world.client.connected(a, world.now);
    assert_eq!(world.asked_blocks(&a).len(), 3);
}

#[test]
fn t05_a_silent_provider_is_given_up_after_ten_seconds() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[a]);
    world.want(id, &[block(1)]);
    world.sent(&a);
    world.client.add_providers(id, &[b], world.now);
    world.pass(PROGRESS_TIMEOUT - Duration::from_millis(250));
    assert!(world.asked_blocks(&b).is_empty());
    world.pass(Duration::from_millis(250));
    assert_eq!(world.asked_blocks(&b).len(), 1);
    assert!(world.sent(&a)[0].cancel);
    assert_eq!(world.answer(&a, &[block(1)]).useful, 1, "late, and still wanted");
    assert!(world.client.progress(id).last_error.is_some());
}

/// The story: a request had no time before it was sent, and began anew each time it was said again. A peer that took
/// streams and negotiated none, or broke them, kept its blocks for 40 s.
#[test]
fn t05_a_request_that_is_not_sent_or_said_again_has_no_more_time() {
    for said_again in [false, true] {
        let mut world = World::new();
        let (a, b) = (world.peer(), world.peer());
        let id = world.open(&block(0), &[a]);
        world.want(id, &[block(1)]);
        world.client.add_providers(id, &[b], world.now);
        for _ in 0..39 {
            if said_again {
                assert_eq!(world.asked_blocks(&a).len(), 1);
                world.client.start_over(&a);
            }
            world.pass(Duration::from_millis(250));
        }
        assert!(world.asked_blocks(&b).is_empty());
        world.pass(Duration::from_millis(250));
        assert_eq!(world.asked_blocks(&b).len(), 1);
        assert!(world.sent(&a).is_empty(), "what it never heard of is not cancelled");
    }
}

#[test]
fn t05_a_peer_that_delivers_keeps_what_waits_behind_its_stream() {
    let mut world = World::new();
    let (slow, other) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[slow]);
    let sent = blocks(0..20);
    world.want(id, &sent);
    assert_eq!(world.asked_blocks(&slow).len(), sent.len());
    let waiting = blocks(50..60);
    world.want(id, &waiting);
    world.client.add_providers(id, &[other], world.now);
    for block in &sent {
        world.pass(Duration::from_millis(2_500));
        world.answer(&slow, std::slice::from_ref(block));
    }
    assert!(world.asked_blocks(&other).is_empty(), "nothing is taken from it for 50 s");
    assert_eq!(world.asked_blocks(&slow).len(), waiting.len());
}

/// The story: wants and answers share a stream, and a request that waited there behind an answer of ours expired after
/// ten seconds like one that the peer did not meet. A provider on a thin line, which asked us for much and would have
/// sent at once, lost its window, and after 16 such blocks it was no provider any more.
#[test]
fn t05_who_slowly_takes_our_answer_is_not_blamed_for_what_waits_behind_it() {
    for taking in [true, false] {
        let mut world = World::new();
        let (slow, other) = (world.peer(), world.peer());
        let id = world.open(&block(0), &[slow]);
        let wanted = blocks(0..PEER_WINDOW_START as u32);
        world.want(id, &wanted);
        world.sent(&other);
        for _ in 0..30 {
            world.pass(Duration::from_secs(1));
            if taking {
                world.client.moved(&slow, world.now);
            }
        }
        assert_eq!(world.asked_blocks(&slow).len(), if taking { wanted.len() } else { 0 });
        world.client.add_providers(id, &[other], world.now);
        assert_eq!(world.asked_blocks(&other).is_empty(), taking);
        if taking {
            assert_eq!(world.answer(&slow, &wanted).useful, wanted.len());
        }
    }
}

/// What an answer holds up for the whole life of a request is asked elsewhere, and the peer stays what it was.
#[test]
fn t05_a_request_lives_a_minute_behind_an_answer() {
    let mut world = World::new();
    let (slow, other) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[slow]);
    let wanted = blocks(0..PEER_WINDOW_START as u32);
    world.want(id, &wanted);
    world.client.add_providers(id, &[other], world.now);
    let at_other = world.asked_blocks(&other).len();
    assert_eq!(at_other, 0);
    for _ in 0..60 {
        world.client.moved(&slow, world.now);
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.asked_blocks(&other).len(), wanted.len());
    let no = world.client.numbers[&slow];
    assert_eq!(world.client.peers[&no].window(), PEER_WINDOW_START);
    assert!(world.client.sessions[&id].providers.contains_key(&no));
}

#[test]
fn t05_one_honest_provider_of_twenty_is_enough() {
    let run = |stallers: usize| {
        let mut world = World::new();
        let liars: Vec<PeerId> = (0..stallers).map(|_| world.peer()).collect();
        let honest = world.peer();
        let id = world.open(&block(0), &[&liars[..], &[honest]].concat());
        let (all, from) = (blocks(0..2_000), world.now);
        let (mut asked, mut got) = (0, 0);
        while got < all.len() {
            let next = (asked + world.client.room(id)).min(all.len());
            world.want(id, &all[asked..next]);
            asked = next;
            liars.iter().for_each(|liar| drop(world.sent(liar)));
            // The honest one sends 100 blocks in a quarter of a second, so clean needs five.
            let wanted = world.asked_blocks(&honest);
            let ready: Vec<Block> =
                all.iter().filter(|block| wanted.contains(block.cid())).cloned().collect();
            world.pass(Duration::from_millis(250).mul_f64((ready.len() as f64 / 100.0).max(1.0)));
            world.answer(&honest, &ready);
            got += world.got(id);
            assert!(world.now - from < Duration::from_secs(120), "{got} blocks");
        }
        world.now - from
    };
    let (clean, attacked) = (run(0), run(19));
    assert!(attacked < clean * 3, "clean {clean:?}, with 19 that never send {attacked:?}");
}

#[test]
fn t04_unwanted_blocks_are_dropped_and_their_sender_after_sixteen() {
    let mut world = World::new();
    let (bad, good) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[bad]);
    world.want(id, &[block(0)]);
    world.sent(&bad);
    let unwanted = blocks(1_000..1_000 + STRIKES);
    let (last, first) = unwanted.split_last().unwrap();
    assert_eq!(world.answer(&bad, first).unwanted, first.len());
    assert!(world.events().is_empty() && !world.client.is_banned(&bad));
    world.client.add_providers(id, &[good], world.now);
    world.answer(&bad, std::slice::from_ref(last));
    assert_eq!(world.events(), [Event::Misbehaved { peer: bad, what: Misbehaviour::UnwantedBlocks }]);
    assert_eq!(world.asked_blocks(&good).len(), 1, "at once, not after the timer");
    assert_eq!(world.answer(&bad, &[block(0)]), Taken::default(), "nothing more is taken from it");
    assert_eq!(world.got(id), 0);
}

#[test]
fn t04_a_late_duplicate_is_no_strike() {
    let mut world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[a]);
    let all = blocks(0..STRIKES + 5);
    world.want(id, &all);
    world.sent(&a);
    world.client.add_providers(id, &[b], world.now);
    world.pass(PROGRESS_TIMEOUT);
    world.sent(&b);
    assert_eq!(world.answer(&b, &all).useful, all.len());
    assert_eq!(world.answer(&a, &all).duplicate, all.len());
    assert!(!world.client.is_banned(&a));
    assert_eq!(world.got(id), all.len(), "each handed out once");
}

/// The story: whoever had once been asked for a block could send it again without end, and each copy was hashed.
#[test]
fn t04_a_block_that_comes_again_and_again_is_a_strike() {
    let copies = u32::from(DUPLICATES_PER_REQUEST);
    for (again, dropped) in [
        (copies, false),
        (copies + STRIKES - 1, false),
        (copies + STRIKES, true),
        (copies + STRIKES + 1, true),
    ] {
        let mut world = World::new();
        let peer = world.peer();
        let id = world.open(&block(0), &[peer]);
        world.want(id, &blocks(0..1));
        world.sent(&peer);
        assert_eq!(world.answer(&peer, &blocks(0..1)).useful, 1);
        let taken = world.answer(&peer, &vec![block(0); again as usize]);
        assert_eq!(
            (taken.duplicate, taken.unwanted as u32),
            (copies as usize, (again - copies).min(STRIKES))
        );
        assert_eq!(world.client.is_banned(&peer), dropped, "{again}");
        assert_eq!(world.events().len(), usize::from(dropped));
    }
}

#[test]
fn one_peer_is_asked_for_a_window_that_doubles() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    // Tiny blocks first, so that bytes do not bound.
    world.want(id, &blocks(0..4_000));
    let mut expected = PEER_WINDOW_START;
    let mut asked = 0;
    while asked < 4_000 {
        let round = world.asked_blocks(&peer);
        assert!(round.len() <= expected.min(CLIENT_WANTS_PER_PEER), "{} of {expected}", round.len());
        asked += round.len();
        expected *= 2;
        let answer: Vec<Block> = blocks(0..4_000).into_iter().filter(|b| round.contains(b.cid())).collect();
        world.answer(&peer, &answer);
        world.got(id);
    }
    assert!(expected >= CLIENT_WANTS_PER_PEER, "the window reached its most");
}

#[test]
fn never_more_than_the_window_of_bytes_is_expected() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    let size = 256 << 10;
    let mut next = 0;
    let mut widest = 0;
    for _ in 0..20 {
        let room = u32::try_from(world.client.room(id)).unwrap();
        let fresh: Vec<Block> = (next..next + room).map(|i| large(i, size)).collect();
        next += room;
        world.want(id, &fresh);
        widest = widest.max(fresh.len());
        assert!(world.client.room(id) == 0);
        let asked = world.asked_blocks(&peer);
        assert!(asked.len() * size <= SESSION_WINDOW_BYTES + size, "{} blocks", asked.len());
        let answer: Vec<Block> = fresh.into_iter().filter(|b| asked.contains(b.cid())).collect();
        world.answer(&peer, &answer);
        assert_eq!(world.got(id), answer.len());
    }
    assert!(widest >= 100, "the window grew to {widest} blocks");
}

#[test]
fn the_window_for_tiny_blocks_is_wide() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    for round in 0..20 {
        let batch = blocks(round * 200..(round + 1) * 200);
        world.want(id, &batch);
        while world.client.progress(id).outstanding > 0 {
            let asked = world.asked_blocks(&peer);
            let answer: Vec<Block> = batch.iter().filter(|b| asked.contains(b.cid())).cloned().collect();
            world.answer(&peer, &answer);
        }
        world.got(id);
    }
    assert_eq!(world.client.room(id), SESSION_WANTS);
}

#[test]
fn what_is_not_taken_out_closes_the_window() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    let all: Vec<Block> = (0..40).map(|i| large(i, 1 << 20)).collect();
    let mut asked = 0;
    for _ in 0..20 {
        let next = (asked + world.client.room(id)).min(all.len());
        world.want(id, &all[asked..next]);
        asked = next;
        let wanted = world.asked_blocks(&peer);
        let answer: Vec<Block> = all.iter().filter(|b| wanted.contains(b.cid())).cloned().collect();
        world.answer(&peer, &answer);
    }
    assert!(asked < all.len() && world.client.room(id) == 0, "{asked} were wanted");
    assert!(world.got(id) > 0 && world.client.room(id) > 0);
}

#[test]
fn a_block_above_the_inbox_is_wanted_again() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    // So many that the last is one too many.
    let size = 2 << 20;
    let fit = INBOX_BYTES / (size + BLOCK_OVERHEAD_BYTES);
    let all: Vec<Block> = (0..u32::try_from(fit + 1).unwrap()).map(|i| large(i, size)).collect();
    world.want(id, &all);
    world.sent(&peer);
    // A peer that sends what it was not asked for yet: wanted all the same.
    assert_eq!(world.answer(&peer, &all).useful, all.len());
    assert_eq!(world.got(id), all.len() - 1);
    assert_eq!(world.client.progress(id).outstanding, 1);
    assert_eq!(world.asked_blocks(&peer).len(), 1);
}

#[test]
fn wants_beyond_what_is_kept_are_refused_in_words() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    let limit = u32::try_from(SESSION_WANTS_KEPT).unwrap();
    world.want(id, &blocks(0..limit));
    assert_eq!(
        (world.client.progress(id).outstanding, world.client.progress(id).last_error),
        (SESSION_WANTS_KEPT, None)
    );
    world.want(id, &blocks(limit..limit + 1));
    assert_eq!(world.client.progress(id).outstanding, SESSION_WANTS_KEPT);
    assert!(world.client.progress(id).last_error.is_some());
}

#[test]
fn providers_are_called_for_with_back_off_while_nobody_has_it() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    world.want(id, &[block(0)]);
    world.pass(NEED_PROVIDERS_AFTER - Duration::from_millis(250));
    assert!(world.events().is_empty());
    world.pass(Duration::from_millis(250));
    let call = Event::NeedProviders { session: id, root: *block(0).cid(), cid: *block(0).cid() };
    assert_eq!(world.events(), std::slice::from_ref(&call));
    world.pass(Duration::from_secs(9));
    assert!(world.events().is_empty());
    world.pass(Duration::from_secs(1));
    assert_eq!(world.events(), [call]);
    let late = PeerId::random();
    world.client.add_providers(id, &[late], world.now);
    world.client.connected(late, world.now);
    assert_eq!(world.asked_blocks(&late).len(), 1);
}

#[test]
fn a_peer_that_connects_later_is_asked_too() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    let wanted = blocks(0..u32::try_from(PROBES_PER_SESSION).unwrap() + 10);
    world.want(id, &wanted);
    let peer = world.peer();
    let probes = world.sent(&peer);
    assert_eq!(probes.len(), PROBES_PER_SESSION);
    assert!(probes.iter().all(|want| want.kind == WantKind::Have));
    world.presence(&peer, &block(0), Presence::Have);
    assert_eq!(world.asked_blocks(&peer).len(), PEER_WINDOW_START);
}

/// The story: of a session's blocks that no provider had, the same 32 were asked of everybody in each round, and the same
/// one was looked up. A connected peer that had only others was never asked for them, and the pin stood still.
#[test]
fn t05_each_round_asks_for_other_blocks() {
    let mut world = World::new();
    let wanted = blocks(1..1 + 2 * u32::try_from(PROBES_PER_SESSION).unwrap());
    let (first, late) = wanted.split_at(PROBES_PER_SESSION);
    let peer = world.peer();
    let id = world.open(&block(0), &[]);
    world.want(id, &wanted);
    let cids = |blocks: &[Block]| -> BTreeSet<Cid> { blocks.iter().map(|block| *block.cid()).collect() };
    let probed = |world: &mut World, peer: &PeerId| -> BTreeSet<Cid> {
        let sent = world.sent(peer).into_iter().filter(|want| want.kind == WantKind::Have && !want.cancel);
        sent.map(|want| want.cid).filter(|cid| cid != block(0).cid()).collect()
    };
    assert_eq!(probed(&mut world, &peer), cids(first));
    first.iter().for_each(|block| world.presence(&peer, block, Presence::DontHave));
    world.pass(NEED_PROVIDERS_AFTER);
    let second = probed(&mut world, &peer);
    assert!(second.len() <= PROBES_PER_SESSION, "{}", second.len());
    second.iter().for_each(|cid| world.client.on_presences(&peer, &[(*cid, Presence::DontHave)], world.now));
    // Who connects now is asked for those, too.
    let other = world.peer();
    assert_eq!(probed(&mut world, &other), second);
    world.pass(NEED_PROVIDERS_BACKOFF.0);
    let third = probed(&mut world, &peer);
    let asked: BTreeSet<Cid> = second.union(&third).copied().collect();
    assert!(
        asked.is_superset(&cids(late)),
        "{} of {} late blocks",
        asked.intersection(&cids(late)).count(),
        late.len()
    );
    let looked_up: Vec<Cid> = world
        .events()
        .into_iter()
        .filter_map(|event| if let Event::NeedProviders { cid, .. } = event { Some(cid) } else { None })
        .collect();
    assert_eq!(looked_up.len(), 2);
    assert_ne!(looked_up[0], looked_up[1], "another one is looked up each time");
    // It has one of them.
    let has = late.last().unwrap();
    world.presence(&peer, has, Presence::Have);
    assert!(world.asked_blocks(&peer).contains(has.cid()));
}

/// The story: the queue of blocks that nobody connected has was turned by 31 in each round, and the first one in it was
/// looked up. Of 62 blocks only two were ever named to routing, and a pin whose other blocks had providers elsewhere
/// stood still.
#[test]
fn every_block_that_nobody_has_is_looked_up_in_its_turn() {
    for count in [2, 31, 32, 33, 62, 93, 124] {
        let mut world = World::new();
        let wanted = blocks(1..1 + count);
        let id = world.open(&block(0), &[]);
        world.want(id, &wanted);
        let mut looked_up = BTreeSet::new();
        for _ in 0..count {
            world.now += NEED_PROVIDERS_BACKOFF.1;
            world.client.tick(world.now);
            looked_up.extend(world.events().into_iter().filter_map(|event| match event {
                Event::NeedProviders { cid, .. } => Some(cid),
                _ => None,
            }));
        }
        assert_eq!(looked_up.len(), wanted.len(), "of {count} blocks");
    }
}

#[test]
fn parked_roots_are_offered_and_forgotten() {
    let mut world = World::new();
    let early = world.peer();
    world.client.park(block(1).cid(), world.now);
    let late = world.peer();
    for peer in [&early, &late] {
        let sent = world.sent(peer);
        assert_eq!((sent.len(), sent[0].kind), (1, WantKind::Have));
    }
    world.events();
    world.presence(&late, &block(1), Presence::Have);
    assert_eq!(world.events(), [Event::Offered { root: *block(1).cid(), peer: late }]);
    world.client.unpark(block(1).cid());
    assert!(world.sent(&early)[0].cancel);
    assert!(world.sent(&late).is_empty());
    (0..u32::try_from(PARKED_ROOTS).unwrap() + 5).for_each(|i| world.client.park(block(i).cid(), world.now));
    assert_eq!(world.client.counts().3, PARKED_ROOTS);
}

#[test]
fn a_session_knows_so_many_providers() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    let named: Vec<PeerId> = (0..=PROVIDERS_PER_SESSION).map(|_| PeerId::random()).collect();
    world.client.add_providers(id, &named, world.now);
    assert_eq!(world.client.sessions[&id].hinted.len(), PROVIDERS_PER_SESSION);
    named.iter().for_each(|peer| world.client.connected(*peer, world.now));
    assert_eq!(world.client.sessions[&id].providers.len(), PROVIDERS_PER_SESSION);
}

#[test]
fn identity_and_weak_hashes_are_never_asked_for() {
    use floe_core::{Cid, Multihash};
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    let inline = Cid::new_v1(0x55, Multihash::wrap(0, b"inline").unwrap());
    let sha1 = Cid::new_v1(0x55, Multihash::wrap(0x11, &[1; 20]).unwrap());
    world.client.want(id, &[inline, sha1], world.now);
    assert_eq!(world.client.progress(id).outstanding, 0);
    assert!(!world.client.is_busy());
}
