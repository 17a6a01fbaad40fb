//! R11, T34: the process dies at each point where it waits, and each call goes in each way: no replica is paid twice, the
//! caps hold to the attoFIL, and in the end all replicas are active.

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

/// Calls that the busy rounds make where nothing goes wrong.
async fn calls() -> Vec<&'static str> {
    let world = World::new(tight(), &[Script::Good, Script::Good, Script::Good]).await;
    world.rounds(BUSY_ROUNDS).await;
    let calls = world.chain.state().calls.clone();
    assert!(calls.iter().filter(|call| **call == "propose").count() == 2, "{calls:?}");
    assert!(calls.contains(&"send"));
    calls
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

#[tokio::test]
async fn r11_t34_each_outcome_of_each_call_and_a_death_behind_it() {
    let calls = calls().await;
    // The calls that move money or bytes, each in all ways; of the others every few.
    let vital = |name: &str| matches!(name, "sign" | "propose" | "send");
    let every = stride(7);
    for (n, name) in calls.iter().enumerate() {
        if !vital(name) && n % every != 0 {
            continue;
        }
        for outcome in [Outcome::Error, Outcome::Lost, Outcome::Duplicate] {
            with_crash(Some((n + 1, outcome)), usize::MAX).await;
        }
    }
    // A death while the answer of a vital call is out, or just after it.
    let before: Vec<usize> = (0..calls.len()).filter(|n| vital(calls[*n])).collect();
    for n in before.into_iter().step_by(stride(2)) {
        for outcome in [Outcome::Ok, Outcome::Error, Outcome::Lost, Outcome::Duplicate] {
            for behind in [0, 1, 3, 6] {
                with_death_at_call(n + 1, outcome, behind).await;
            }
        }
    }
}

/// Dies so many waits after a call was made.
async fn with_death_at_call(call: usize, outcome: Outcome, behind: usize) {
    let mut world = World::new(tight(), &[Script::Good, Script::Good, Script::Good]).await;
    world.chain.state().fault = Some((call, outcome));
    let mut died = false;
    for _ in 0..BUSY_ROUNDS {
        if died {
            world.passes().await;
        } else if !dropped_at_call(&world, call, behind).await {
            died = true;
            world = world.crash().await;
        }
        world.pass_time(1);
    }
    assert!(died, "call {call} was made");
    world.until(AggregateState::Stored, 120).await;
    world.stored_and_paid_once().await;
}

async fn dropped_at_call(world: &World, call: usize, behind: usize) -> bool {
    let mut work = pin!(world.passes());
    let mut left = behind;
    poll_fn(|cx| {
        let polled = work.as_mut().poll(cx);
        match polled {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending if world.chain.state().calls.len() < call => Poll::Pending,
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        }
    })
    .await
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
