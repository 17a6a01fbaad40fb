//! R11, T34: the process dies at each point where it waits, and each call goes in each way, at each moment of a life that is
//! like no other, with a death around it: no replica is paid twice, the caps hold to the attoFIL, and in the end all
//! replicas are active.

use super::*;

/// Rounds in which all that may cost money happens: the look, the choice, the top-up, signing, sending.
const BUSY_ROUNDS: usize = 9;

/// Just enough for two replicas and the gas of two top-ups, as after a crash between them: a deal too many does not fit.
fn tight() -> Settings {
    let mut settings = settings(2);
    settings.deals.caps = caps(2 * COST + 2 * MAX_FEE);
    settings.deals.escrow_tenths = 10;
    settings
}

/// Runs with a crash after `points` waits, and goes on after it. Whether the crash came.
async fn with_crash(fault: Option<(usize, Outcome)>, points: usize) -> bool {
    let mut world = World::new(tight(), &[Script::Good, Script::Good, Script::Good]).await;
    world.chain.state().fault = fault;
    let (mut left, mut crashed) = (points, false);
    for _ in 0..BUSY_ROUNDS {
        if !dropped_after(&mut left, world.passes()).await {
            crashed = true;
            world = world.crash().await;
            left = usize::MAX;
        }
        world.pass_time(1);
    }
    world.until(AggregateState::Stored, 120).await;
    world.stored_and_paid_once().await;
    crashed
}

/// Which of many are run: all where `FLOE_TEST_ALL_CRASHES` is set, else every few.
fn stride(every: usize) -> usize {
    if std::env::var_os("FLOE_TEST_ALL_CRASHES").is_some() { 1 } else { every }
}

#[tokio::test]
async fn r11_t34_a_death_at_each_wait_pays_no_replica_twice() {
    let every = stride(5);
    let mut deaths = 0;
    for points in (0..).step_by(every) {
        if !with_crash(None, points).await {
            break;
        }
        deaths += 1;
    }
    assert!(deaths * every > 100, "{deaths} deaths");
}

/// Where a process dies, as seen from one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Death {
    Nowhere,
    /// It is about to ask.
    Before,
    /// It asked and the other side acted; nothing is written down of it.
    Acted,
    /// What came back is written down, and nothing else is asked yet.
    Written,
}

/// How a call goes and where the process dies. Of the sixteen those are left out that are another one of them: whoever dies
/// before the call or before the answer does not see how it went, so only what the other side did tells them apart.
const WAYS: [(Outcome, Death); 11] = [
    (Outcome::Ok, Death::Nowhere),
    (Outcome::Error, Death::Nowhere),
    (Outcome::Lost, Death::Nowhere),
    (Outcome::Duplicate, Death::Nowhere),
    // Whatever would have come, nothing was done; as where it dies after a call that fails.
    (Outcome::Ok, Death::Before),
    // As where the answer is lost.
    (Outcome::Ok, Death::Acted),
    (Outcome::Duplicate, Death::Acted),
    (Outcome::Ok, Death::Written),
    (Outcome::Error, Death::Written),
    (Outcome::Lost, Death::Written),
    (Outcome::Duplicate, Death::Written),
];

/// When a call is made: how many deals are in each state, and how far the top-up is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    call: &'static str,
    /// Which of its kind, where each is for another deal or provider: rows look alike then.
    nth: usize,
    deals: BTreeMap<DealState, usize>,
    /// Its number, whether it is open, and whether the chain has it.
    top_up: Option<(u64, bool, bool)>,
}

async fn crowd() -> World {
    World::new(tight(), &[Script::Good, Script::Good, Script::Good]).await
}

/// One life in which nothing goes wrong, to the end: each moment that is like no other, with the number of its first call.
async fn moments() -> BTreeMap<Moment, usize> {
    let world = crowd().await;
    let mut moments = BTreeMap::new();
    while !world.all_are(AggregateState::Stored).await {
        let mut work = pin!(world.passes());
        let mut seen = world.chain.state().asked.len();
        loop {
            let polled = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
            let asked = world.chain.state().asked.clone();
            for n in seen..asked.len() {
                moments.entry(moment(&world, &asked[..=n]).await).or_insert(n + 1);
            }
            seen = asked.len();
            if polled.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        world.pass_time(1);
    }
    world.stored_and_paid_once().await;
    moments
}

async fn moment(world: &World, asked: &[&'static str]) -> Moment {
    let call = *asked.last().unwrap();
    let each = ["ask", "sign", "propose"].contains(&call);
    let nth = if each { asked.iter().filter(|other| **other == call).count() } else { 0 };
    let mut deals = BTreeMap::new();
    for deal in world.deals().await {
        *deals.entry(deal.state).or_default() += 1;
    }
    let open = world.records.open_top_up().await.unwrap();
    let state = world.chain.state();
    let last = state.messages.len() as u64;
    let is_applied = state.messages.get(&format!("top-up-{last}")).is_some_and(|m| m.applied.is_some());
    let top_up = open.map(|open| (open.number, true, open.number == last && is_applied));
    Moment { call, nth, deals, top_up: top_up.or((last > 0).then_some((last, false, is_applied))) }
}

/// Runs to the end with one call that goes in one way, and a death there.
async fn with_call(n: usize, name: &str, (outcome, death): (Outcome, Death)) {
    let mut world = crowd().await;
    world.chain.state().fault = Some((n, outcome));
    let mut lives = death != Death::Nowhere;
    for _ in 0..120 {
        if world.all_are(AggregateState::Stored).await {
            break;
        }
        if lives && dies(&world, n, death).await {
            lives = false;
            world = world.crash().await;
        } else if !lives {
            world.passes().await;
        }
        world.pass_time(1);
    }
    let way = format!("call {n}, {name}: {outcome:?}, {death:?}");
    assert!(!lives, "{way}: it was not made");
    if death != Death::Before {
        assert_eq!(world.chain.state().calls[n - 1], name, "{way}");
    }
    assert!(world.all_are(AggregateState::Stored).await, "{way}: {:#?}", world.deals().await);
    world.stored_and_paid_once().await;
}

/// A round of passes, in which the process may die. Whether it did.
async fn dies(world: &World, n: usize, death: Death) -> bool {
    let mut work = pin!(world.passes());
    let is_time = |is_done: bool| {
        let state = world.chain.state();
        match death {
            Death::Nowhere => false,
            Death::Before => state.asked.len() >= n,
            Death::Acted => state.calls.len() >= n,
            // Calls of one kind go out together: what follows from them is written when another kind is asked.
            Death::Written => {
                state.calls.len() >= n
                    && (is_done || state.asked[n..].iter().any(|c| *c != state.calls[n - 1]))
            }
        }
    };
    poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        if is_time(polled.is_ready()) { Poll::Ready(true) } else { polled.map(|()| false) }
    })
    .await
}

/// Every moment of a life at which one of these calls is made, in every way. Says how many there were.
async fn every_way(calls: &[&str]) -> usize {
    let mut ways = 0;
    for (moment, n) in moments().await {
        for way in WAYS.into_iter().filter(|_| calls.contains(&moment.call)) {
            with_call(n, moment.call, way).await;
            ways += 1;
        }
    }
    ways
}

#[tokio::test]
async fn r11_t34_each_outcome_and_death_at_each_call_that_looks_at_the_chain() {
    let ways = every_way(&["look", "published", "deal", "own_deal"]).await;
    assert!(ways >= 11 * 10, "{ways}");
}

#[tokio::test]
async fn r11_t34_each_outcome_and_death_at_each_call_about_messages() {
    let ways = every_way(&["tick", "message", "funds", "send"]).await;
    assert!(ways >= 11 * 10, "{ways}");
}

#[tokio::test]
async fn r11_t34_each_outcome_and_death_at_each_call_that_makes_a_deal() {
    let ways = every_way(&["provider", "collateral", "ask", "sign", "propose", "status"]).await;
    assert!(ways >= 11 * 5, "{ways}");
}

/// No call is made that the three above leave out.
#[tokio::test]
async fn r11_t34_every_kind_of_call_is_among_them() {
    let known = [
        "look",
        "published",
        "deal",
        "own_deal",
        "tick",
        "message",
        "funds",
        "send",
        "provider",
        "collateral",
        "ask",
        "sign",
        "propose",
        "status",
    ];
    for moment in moments().await.into_keys() {
        assert!(known.contains(&moment.call), "{moment:?}");
    }
}

/// T36: whatever providers do, calls come to and crashes hit, all sums stay under the caps and nothing is paid twice but
/// what a provider published after it had refused it.
#[tokio::test]
async fn t36_random_schedules_stay_under_the_caps() {
    let seeds = std::env::var("FLOE_TEST_DEAL_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(6_u64);
    for seed in 0..seeds {
        schedule(seed).await;
    }
}

async fn schedule(seed: u64) {
    let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut roll = |most: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % most
    };
    let scripts: Vec<Script> = (0..5)
        .map(|_| match roll(8) {
            0 => Script::Refuses("deal rejected due to backpressure. Please retry in some time."),
            1 => Script::LosesReplies(3),
            2 => Script::NeverPublishes,
            3 => Script::NeverSeals,
            4 => Script::Forgets,
            _ => Script::Good,
        })
        .collect();
    let mut settings = settings(2);
    settings.deals.caps = caps(COST * u128::from(2 + roll(6)) + MAX_FEE * u128::from(roll(4)));
    let mut world = World::new(settings, &scripts).await;
    world.pack(2, &["default", "alice"]).await;
    world.chain.state().chaos = Some((seed, 4 + roll(12)));
    for _ in 0..60 {
        let mut left = usize::try_from(roll(400)).unwrap();
        if !dropped_after(&mut left, world.passes()).await {
            world = world.crash().await;
        }
        world.pass_time(1 + u32::try_from(roll(3)).unwrap());
        world.sound().await;
    }
    world.chain.state().chaos = None;
    world.rounds(20).await;
    world.sound().await;
    let state = world.chain.state();
    for (uuid, signed) in &state.signed {
        let got = state.providers.values().flat_map(|p| &p.got).filter(|(id, ..)| id == uuid);
        let forms: std::collections::BTreeSet<_> = got.map(|(_, bytes, ..)| bytes).collect();
        assert!(
            forms.len() <= 1,
            "seed {seed}: {uuid} went out in {} forms of {}",
            forms.len(),
            signed.len()
        );
    }
}
