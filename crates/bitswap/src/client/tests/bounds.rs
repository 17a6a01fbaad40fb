//! The client's limits, each just below, at and just above its value.

use super::*;
use crate::limits::{
    HEDGE_AFTER, NEED_PROVIDERS_BACKOFF, PROVIDER_MISSES, REQUEST_TIMEOUT, SESSION_SHARE_BYTES,
    SESSION_WANTS_MIN, SESSION_WINDOW_START, TICK, TOTAL_WINDOW_BYTES,
};

/// What the first want of a session for such blocks is charged with.
const FIRST_ESTIMATE: usize = 256 << 10;

#[test]
fn a_silent_provider_is_hedged_after_a_second() {
    let mut world = World::new();
    let (silent, idle) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[idle]);
    // Only who delivered before is asked in another's place.
    world.want(id, &[block(1)]);
    world.sent(&idle);
    world.answer(&idle, &[block(1)]);
    world.client.cancel(id, &[], world.now);
    let late = world.open(&block(0), &[silent]);
    world.want(late, &[block(2)]);
    assert_eq!(world.asked_blocks(&silent).len(), 1);
    world.answer(&idle, &[block(1)]);
    world.client.add_providers(late, &[idle], world.now);
    world.client.sessions.get_mut(&late).unwrap().delivered_by(world.client.numbers[&idle]);
    world.pass(HEDGE_AFTER - TICK);
    assert!(world.asked_blocks(&idle).is_empty());
    world.pass(TICK);
    assert_eq!(world.asked_blocks(&idle).len(), 1);
    world.pass(TICK);
    assert!(world.asked_blocks(&idle).is_empty(), "once");
}

#[test]
fn a_request_lives_a_minute_at_a_peer_that_sends_other_blocks() {
    let mut world = World::new();
    let (busy, other) = (world.peer(), world.peer());
    let id = world.open(&block(0), &[busy]);
    world.want(id, &[block(9_999)]);
    world.sent(&busy);
    let (mut next, from) = (0, world.now);
    while world.now - from < REQUEST_TIMEOUT - TICK {
        world.want(id, &[block(next)]);
        world.sent(&busy);
        world.answer(&busy, &[block(next)]);
        next += 1;
        world.pass(TICK);
    }
    world.client.add_providers(id, &[other], world.now);
    assert!(world.asked_blocks(&other).is_empty());
    world.answer(&busy, &[]);
    world.pass(TICK);
    assert_eq!(world.asked_blocks(&other).len(), 1);
}

/// The story: an empty block counted for nothing, so that a session could be given any number of them.
#[test]
fn t07_empty_blocks_fill_an_inbox() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    let session = world.client.sessions.get_mut(&id).unwrap();
    let empty = Block::of(floe_core::cid::code::RAW, bytes::Bytes::new()).unwrap();
    session.inbox_bytes = INBOX_BYTES - 2 * BLOCK_OVERHEAD_BYTES;
    for fits in [true, true, false] {
        assert_eq!(session.deliver(empty.clone(), PeerId::random(), world.now).is_ok(), fits);
    }
}

#[test]
fn a_provider_may_lack_so_many_blocks() {
    for (misses, kept) in
        [(PROVIDER_MISSES - 1, true), (PROVIDER_MISSES, false), (PROVIDER_MISSES + 1, false)]
    {
        let mut world = World::new();
        let peer = world.peer();
        let id = world.open(&block(0), &[peer]);
        let wanted = blocks(0..PROVIDER_MISSES + 2);
        world.want(id, &wanted);
        world.sent(&peer);
        for block in &wanted[..misses as usize] {
            world.presence(&peer, block, Presence::DontHave);
        }
        assert_eq!(world.client.sessions[&id].providers.len() == 1, kept, "{misses}");
    }
}

#[test]
fn a_miss_is_forgiven_by_a_delivery() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    let wanted = blocks(0..2 * PROVIDER_MISSES);
    world.want(id, &wanted);
    world.sent(&peer);
    let (first, rest) = wanted.split_at(PROVIDER_MISSES as usize);
    let (delivered, missed) = first.split_last().unwrap();
    missed.iter().for_each(|block| world.presence(&peer, block, Presence::DontHave));
    world.answer(&peer, std::slice::from_ref(delivered));
    rest[1..].iter().for_each(|block| world.presence(&peer, block, Presence::DontHave));
    assert_eq!(world.client.sessions[&id].providers.len(), 1);
}

#[test]
fn the_calls_for_providers_back_off_to_a_minute() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    world.want(id, &[block(0)]);
    world.pass(NEED_PROVIDERS_AFTER);
    assert_eq!(world.events().len(), 1);
    let (mut pause, most) = NEED_PROVIDERS_BACKOFF;
    for _ in 0..6 {
        world.pass(pause - TICK);
        assert!(world.events().is_empty(), "within {pause:?}");
        world.pass(TICK);
        assert_eq!(world.events().len(), 1, "after {pause:?}");
        pause = (pause * 2).min(most);
    }
}

#[test]
fn a_session_starts_with_its_first_window() {
    let mut world = World::new();
    let id = world.open(&block(0), &[]);
    let first = SESSION_WINDOW_START / FIRST_ESTIMATE;
    assert_eq!(world.client.room(id), first);
    for (wanted, room) in [(first - 1, 1), (first, 0), (first + 1, 0)] {
        let id = world.open(&block(0), &[]);
        world.want(id, &blocks(0..u32::try_from(wanted).unwrap()));
        assert_eq!(world.client.room(id), room, "{wanted}");
        world.client.close(id);
    }
}

#[test]
fn many_sessions_share_the_window_and_each_keeps_its_least() {
    let mut world = World::new();
    let sessions: Vec<SessionId> = (0..2 * TOTAL_WINDOW_BYTES / SESSION_SHARE_BYTES)
        .map(|n| world.open(&block(u32::try_from(n).unwrap()), &[]))
        .collect();
    let share = |world: &World, at: usize| world.client.share(&world.client.sessions[&sessions[at]]);
    assert_eq!(share(&world, 0), TOTAL_WINDOW_BYTES);
    for (at, id) in sessions.iter().enumerate() {
        world.want(*id, &[block(u32::try_from(at).unwrap())]);
        let active = at + 1;
        assert_eq!(share(&world, at), (TOTAL_WINDOW_BYTES / active).max(SESSION_SHARE_BYTES), "{active}");
    }
    assert_eq!(share(&world, 0), SESSION_SHARE_BYTES);
    sessions.iter().for_each(|id| world.client.close(*id));
    assert!(!world.client.is_busy());
}

#[test]
fn a_session_may_always_have_a_few_blocks_in_flight() {
    let mut world = World::new();
    let peer = world.peer();
    let id = world.open(&block(0), &[peer]);
    // Large blocks have taught the estimate that one alone fills the least share.
    let taught: Vec<Block> = (0..60).map(|n| large(n, SESSION_SHARE_BYTES)).collect();
    for block in &taught {
        world.want(id, std::slice::from_ref(block));
        world.sent(&peer);
        world.answer(&peer, std::slice::from_ref(block));
        world.got(id);
    }
    for n in 0..2 * u32::try_from(TOTAL_WINDOW_BYTES / SESSION_SHARE_BYTES).unwrap() {
        let other = world.open(&block(50_000 + n), &[]);
        world.want(other, &[block(50_000 + n)]);
    }
    world.sent(&peer);
    assert_eq!(world.client.room(id), SESSION_WANTS_MIN);
    world.want(id, &blocks(0..u32::try_from(SESSION_WANTS_MIN).unwrap() + 1));
    assert_eq!(world.asked_blocks(&peer).len(), SESSION_WANTS_MIN);
    assert_eq!(world.client.room(id), 0);
}
