//! R12: whatever happens to deals and messages in whatever order, the ledger is what a plain model says, no cap is passed,
//! and every sum is that of its parts.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::collections::BTreeMap;

use floe_core::cold::{DealUuid, Fault};
use floe_core::deal::Money;
use floe_core::spending::Caps;
use floe_core::{AttoFil, DealEvent, DealState, Epoch, FailureCode};
use floe_records::cold::{Chosen, CostsBy, MessageRow, MessageStep, MessageVersion, OnChain, Reply, Sum};
use floe_records::{Error, Records};
use support::deals::{TERM, attempt, packed, signed, wide_caps};
use support::*;

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

/// What the ledger should be.
#[derive(Default)]
struct Model {
    deals: BTreeMap<DealUuid, (DealState, u128, bool)>,
    sum: [u128; 4],
}

impl Model {
    fn step(&mut self, deal: DealUuid, event: DealEvent, refunded: u128) {
        let (state, cost, locked) = self.deals[&deal];
        let Ok((next, money)) = state.after(event) else { return };
        let [_, reserved, spent, released] = &mut self.sum;
        let mut is_locked = locked;
        match money {
            Money::Stays => is_locked |= next == DealState::Expired,
            Money::Released if state == DealState::Published => is_locked = true,
            Money::Released => (*reserved, *released) = (*reserved - cost, *released + cost),
            Money::Spent => (*reserved, *spent) = (*reserved - cost, *spent + cost),
            Money::RestRefunded => (*spent, *released) = (*spent - refunded, *released + refunded),
        }
        self.deals.insert(deal, (next, cost, is_locked));
    }
}

async fn life(seed: u64) {
    let world = World::new();
    let records = world.open().await;
    let aggregate = packed(&records).await;
    let accounts: Vec<_> = records.accounts().await.unwrap().iter().map(|account| account.id).collect();
    let mut dice = Dice(seed);
    let most = |dice: &mut Dice, n: u64| AttoFil::new(u128::from(dice.roll(n)) * 1_000);
    let lifetime = AttoFil::new(1 + most(&mut dice, 400).get());
    let caps = Caps { deal: AttoFil::new(60_000), account_day: lifetime, day: lifetime, lifetime };
    let (mut model, mut gas) = (Model::default(), BTreeMap::<String, [u128; 3]>::new());
    for n in 0..80_u64 {
        let picked = model.deals.keys().nth(dice.roll(8) as usize).copied();
        match (dice.roll(16), picked) {
            (0..4, _) => {
                let (price, slot) = (u128::from(dice.roll(90)), dice.roll(4) as u32);
                let asked = attempt(aggregate, slot, 1_000 + dice.roll(3), price, &accounts);
                let before = model.sum[1] + model.sum[2];
                match records.choose_deal(asked, &caps).await.unwrap() {
                    Chosen::Deal(row) => {
                        assert!(before + row.cost.get() <= lifetime.get() && row.cost.get() <= 60_000);
                        assert_eq!(row.cost.get(), price * TERM.unsigned_abs() as u128);
                        model.deals.insert(row.uuid, (DealState::Chosen, row.cost.get(), false));
                        model.sum[0] += row.cost.get();
                        model.sum[1] += row.cost.get();
                    }
                    Chosen::OverCap(over) => {
                        let asked = over.asked.get().max(price * TERM.unsigned_abs() as u128);
                        assert!(asked > 60_000 || before + asked > lifetime.get(), "{over}");
                    }
                    Chosen::SlotTaken | Chosen::Off => {}
                }
            }
            (4..6, Some(deal)) => {
                records.store_signed(deal, signed(deal)).await.unwrap();
                let at = floe_core::Timestamp::from_millis(START + n);
                let sent = records.begin_sending(deal, Epoch::new(1), at).await.unwrap();
                if sent.is_some() && matches!(model.deals[&deal].0, DealState::Chosen | DealState::Refused) {
                    model.step(deal, DealEvent::Sending, 0);
                }
            }
            (6..9, Some(deal)) => {
                let fault = Fault::new(FailureCode::RejectedOther, "no");
                let (reply, event) = match dice.roll(3) {
                    0 => (Reply::Accepted, DealEvent::Accepted),
                    1 => (Reply::Refused(fault), DealEvent::Refused),
                    _ => (Reply::Lost(fault), DealEvent::ReplyLost),
                };
                let due = floe_core::Timestamp::from_millis(START);
                records.answered(deal, reply, Epoch::new(2), due).await.unwrap();
                model.step(deal, event, 0);
            }
            (9..13, Some(deal)) => {
                let at = 10 + dice.roll(TERM.unsigned_abs());
                let (seen, event) = match dice.roll(6) {
                    0 => (OnChain::Published(deal.0.as_u64_pair().0 >> 1), DealEvent::Published),
                    1 => (OnChain::Active(7), DealEvent::Activated),
                    2 => (OnChain::StartPassed, DealEvent::StartPassed),
                    3 => (OnChain::EndPassed, DealEvent::EndPassed),
                    4 => (OnChain::Terminated, DealEvent::Terminated),
                    _ => (OnChain::Unlocked, DealEvent::Withdrawn),
                };
                let epoch = Epoch::new(i64::try_from(at).unwrap());
                let before = records.totals().await.unwrap().lifetime.released.get();
                records.on_chain(deal, seen, epoch, epoch).await.unwrap();
                let (state, cost, locked) = model.deals[&deal];
                if seen == OnChain::Unlocked {
                    if locked {
                        model.deals.insert(deal, (state, cost, false));
                        // The price of one that ran to its end is paid, whoever settles it.
                        let back = if state == DealState::Failed { cost } else { 0 };
                        model.sum[1] -= back;
                        model.sum[3] += back;
                    }
                } else {
                    // Each account's part is rounded down.
                    let refunded = records.totals().await.unwrap().lifetime.released.get() - before;
                    let exact = cost * u128::from((10 + 1_000_u64).saturating_sub(at)) / 1_000;
                    if event == DealEvent::Terminated && state == DealState::Active {
                        assert!(refunded <= exact && exact - refunded <= 2, "{refunded} {exact}");
                    }
                    model.step(deal, event, refunded);
                }
            }
            (13, Some(deal)) => {
                let why = Fault::new(FailureCode::FundsEscrow, "late");
                records.withdraw_deal(deal, why).await.unwrap();
                if model.deals[&deal].0 == DealState::Chosen {
                    model.step(deal, DealEvent::Withdrawn, 0);
                }
            }
            (14, _) => {
                let (intent, fee) = (format!("m{}", dice.roll(6)), u128::from(dice.roll(9_000)));
                let today = u128::from(floe_core::Clock::now(&world.clock).as_millis() / 86_400_000);
                let [had, spent, day] = gas.get(&intent).copied().unwrap_or([0, 0, today]);
                let fits = model.sum[1] + model.sum[2] - had + fee <= lifetime.get();
                let reserved = records.reserve_gas(&intent, AttoFil::new(fee), &caps).await.unwrap();
                if spent == 0 && (had == 0 || had < fee) {
                    assert_eq!(reserved.is_ok(), fits);
                    if fits {
                        // What was reserved on another day moves to this one.
                        let moved = if day == today { 0 } else { had };
                        model.sum[0] += fee - had + moved;
                        model.sum[1] += fee - had;
                        model.sum[3] += moved;
                        gas.insert(intent, [fee, 0, today]);
                    }
                }
            }
            (15, _) => {
                let Some((intent, [reserved, spent, _])) = gas.iter_mut().nth(dice.roll(6) as usize) else {
                    continue;
                };
                let way = dice.roll(3);
                if way == 0 {
                    let most = u128::from(dice.roll(5_000));
                    records.gas_is_at_most(intent, AttoFil::new(most)).await.unwrap();
                    let rest = reserved.saturating_sub(most);
                    *reserved -= rest;
                    model.sum[1] -= rest;
                    model.sum[3] += rest;
                } else if way == 1 {
                    records.gas_is_free(intent).await.unwrap();
                    model.sum[1] -= *reserved;
                    model.sum[3] += *reserved;
                    *reserved = 0;
                } else {
                    records.gas_is_spent(intent).await.unwrap();
                    model.sum[1] -= *reserved;
                    model.sum[2] += *reserved;
                    (*reserved, *spent) = (0, *spent + *reserved);
                }
            }
            _ => {}
        }
        if dice.roll(10) == 0 {
            world.clock.advance(std::time::Duration::from_secs(3_600 * 7));
        }
        agree(&records, &model, &caps).await;
    }
    let report = records.verify().await.unwrap();
    assert_eq!(report.findings, Vec::<String>::new(), "seed {seed}");
    records.close().await;
}

async fn agree(records: &Records, model: &Model, caps: &Caps) {
    let totals = records.totals().await.unwrap();
    let Sum { taken, reserved, spent, released } = totals.lifetime;
    assert_eq!([taken, reserved, spent, released].map(AttoFil::get), model.sum);
    assert!(totals.lifetime.committed().unwrap() <= caps.lifetime);
    assert!(totals.day.committed().unwrap() <= caps.day);
    for (deal, (state, ..)) in &model.deals {
        assert_eq!(records.deal(*deal).await.unwrap().state, *state);
    }
}

#[tokio::test]
async fn r12_the_ledger_is_what_a_plain_model_says() {
    let seeds = std::env::var("FLOE_TEST_LEDGER_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(12_u64);
    for seed in 0..seeds {
        life(seed).await;
    }
}

/// Every way of adding up gives the same.
#[tokio::test]
async fn r12_all_is_the_sum_of_its_accounts_providers_months_and_days() {
    let world = World::new();
    let records = world.open().await;
    let aggregate = packed(&records).await;
    let accounts: Vec<_> = records.accounts().await.unwrap().iter().map(|account| account.id).collect();
    let most = AttoFil::new(u128::MAX);
    let caps = Caps { deal: most, account_day: most, day: most, lifetime: most };
    for slot in 0..4 {
        let asked = attempt(aggregate, slot, 1_000 + u64::from(slot), 7, &accounts);
        assert!(matches!(records.choose_deal(asked, &caps).await.unwrap(), Chosen::Deal(_)));
        world.clock.advance(std::time::Duration::from_secs(20 * 86_400));
    }
    records.reserve_gas("m", AttoFil::new(5), &caps).await.unwrap().unwrap();
    let all = records.totals().await.unwrap().lifetime.taken.get();
    assert_eq!(all, 4 * 7_000 + 5);
    for by in [CostsBy::Account, CostsBy::Provider, CostsBy::Month, CostsBy::Day] {
        let lines = records.costs(by, None, 100).await.unwrap();
        assert!(lines.len() >= 3, "{by:?}");
        assert_eq!(lines.iter().map(|line| line.sum.taken.get()).sum::<u128>(), all, "{by:?}");
    }
    let shares = records.costs(CostsBy::Account, Some(0), 100).await.unwrap();
    assert_eq!(shares.iter().map(|line| line.sum.taken.get()).collect::<Vec<_>>(), [21_000, 7_000]);
}

/// The gas of a message that was never signed was let go of, and the same intent then ran without a reservation. It counts
/// again, on the day on which it is reserved again.
#[tokio::test]
async fn r12_gas_that_was_let_go_of_is_reserved_anew() {
    let world = World::new();
    let records = world.open().await;
    records.begin_ledger_epoch().await.unwrap();
    let (fee, most) = (AttoFil::new(5), AttoFil::new(12));
    let caps = Caps { deal: most, account_day: most, day: most, lifetime: most };
    for round in 0..4_u64 {
        records.reserve_gas("m", fee, &caps).await.unwrap().unwrap();
        records.reserve_gas("m", fee, &caps).await.unwrap().unwrap();
        let totals = records.totals().await.unwrap();
        assert_eq!((totals.day.reserved, totals.lifetime.reserved), (fee, fee), "{round}");
        assert_eq!(records.open_gas().await.unwrap(), BTreeMap::from([("m".to_owned(), fee)]));
        records.gas_is_free("m").await.unwrap();
        assert!(!records.holds_gas("m").await.unwrap() && records.open_gas().await.unwrap().is_empty());
        world.clock.advance(std::time::Duration::from_secs(20 * 86_400 * (round % 2)));
    }
    assert_eq!(records.totals().await.unwrap().lifetime.released.get(), 20);
    records.reserve_gas("m", fee, &caps).await.unwrap().unwrap();
    records.gas_is_spent("m").await.unwrap();
    records.reserve_gas("m", fee, &caps).await.unwrap().unwrap();
    assert_eq!(records.totals().await.unwrap().lifetime.committed().unwrap(), fee, "spent is spent");
    assert_eq!(records.verify().await.unwrap().findings, Vec::<String>::new());
}

/// T36: `deals.max_gas` was raised while a message waited, and nothing more was set aside for it. What is added counts, under
/// the caps, and on the day on which it is added.
#[tokio::test]
async fn t36_gas_is_raised_under_the_caps() {
    let world = World::new();
    let records = world.open().await;
    records.begin_ledger_epoch().await.unwrap();
    let atto = AttoFil::new;
    let caps = |day, lifetime| Caps {
        deal: atto(99),
        account_day: atto(99),
        day: atto(day),
        lifetime: atto(lifetime),
    };
    records.reserve_gas("m", atto(5), &caps(12, 20)).await.unwrap().unwrap();
    records.reserve_gas("other", atto(4), &caps(12, 20)).await.unwrap().unwrap();
    let over = records.reserve_gas("m", atto(9), &caps(12, 20)).await.unwrap().unwrap_err();
    assert_eq!(over.cap.name(), "deals.max_per_day", "{over}");
    assert_eq!(records.open_gas().await.unwrap()["m"], atto(5), "what is reserved stays");
    records.reserve_gas("m", atto(8), &caps(12, 20)).await.unwrap().unwrap();
    assert_eq!(records.totals().await.unwrap().day.reserved, atto(12));
    records.reserve_gas("m", atto(3), &caps(12, 20)).await.unwrap().unwrap();
    assert_eq!(records.open_gas().await.unwrap()["m"], atto(8), "never less");
    for day in 1..4_u128 {
        world.clock.advance(std::time::Duration::from_secs(86_400));
        let over = records.reserve_gas("m", atto(8 + day), &caps(12, 11 + day)).await.unwrap().unwrap_err();
        assert_eq!(over.cap.name(), "deals.max_lifetime", "{over}");
        let over = records.reserve_gas("m", atto(8 + day), &caps(7 + day, 99)).await.unwrap().unwrap_err();
        assert_eq!(over.cap.name(), "deals.max_per_day", "all of it counts today: {over}");
        records.reserve_gas("m", atto(8 + day), &caps(8 + day, 12 + day)).await.unwrap().unwrap();
        let totals = records.totals().await.unwrap();
        assert_eq!((totals.day.reserved, totals.lifetime.reserved), (atto(8 + day), atto(12 + day)));
    }
    records.gas_is_spent("m").await.unwrap();
    assert_eq!(records.totals().await.unwrap().lifetime.spent, atto(11));
    assert_eq!(records.verify().await.unwrap().findings, Vec::<String>::new());
}

/// A damaged amount, sum or switch is never read as money that may be spent.
#[tokio::test]
async fn what_is_damaged_is_not_spent_on() {
    for damage in [
        "UPDATE sums SET reserved = '0' WHERE kind = 0",
        "UPDATE sums SET taken = '0', reserved = '0' WHERE kind = 1",
        "UPDATE facts SET value = 'on x' WHERE name = 'spending'",
        "UPDATE deals SET cost = '1'",
        "UPDATE deals SET state = 'failed'",
    ] {
        let world = World::new();
        let records = world.open().await;
        let aggregate = packed(&records).await;
        let accounts = [default_account(&records).await];
        let most = AttoFil::new(1 << 40);
        let caps = Caps { deal: most, account_day: most, day: most, lifetime: most };
        records.choose_deal(attempt(aggregate, 0, 1_000, 7, &accounts), &caps).await.unwrap();
        if damage.contains("facts") {
            records.switch_spending(false, "the operator").await.unwrap();
        }
        records.close().await;
        let path = format!("sqlite:{}", world.path().display());
        let mut conn = <sqlx::SqliteConnection as sqlx::Connection>::connect(&path).await.unwrap();
        sqlx::raw_sql(damage).execute(&mut conn).await.unwrap();
        sqlx::Connection::close(conn).await.unwrap();
        let records = world.open().await;
        records.begin_ledger_epoch().await.unwrap();
        // A sum is looked at where a slot is free; a deal, where it may hold one.
        let slot = u32::from(damage.starts_with("UPDATE sums"));
        let again = records.choose_deal(attempt(aggregate, slot, 1_001, 7, &accounts), &caps).await;
        assert!(matches!(again, Err(floe_records::Error::Damaged(_))), "{damage}: {again:?}");
        if !damage.contains("facts") {
            assert!(!records.verify().await.unwrap().findings.is_empty(), "{damage}");
        }
    }
}

/// T43: where the lock of the data directory does not hold, two processes have the same rows open. The one that began to
/// spend last has the wallet; the other commits nothing more, and what happens to what it had sent may still be noted.
#[tokio::test(flavor = "multi_thread")]
async fn t43_of_two_that_spend_with_the_same_rows_the_last_one_has_the_wallet() {
    let world = World::new();
    let first = world.open().await;
    let aggregate = packed(&first).await;
    let accounts: Vec<_> = first.accounts().await.unwrap().iter().map(|account| account.id).collect();
    let caps = wide_caps();
    let Chosen::Deal(sent) =
        first.choose_deal(attempt(aggregate, 0, 1_000, 5, &accounts), &caps).await.unwrap()
    else {
        panic!("nothing stands in its way")
    };
    first.store_signed(sent.uuid, signed(sent.uuid)).await.unwrap();
    let at = floe_core::Timestamp::from_millis(START);
    first.begin_sending(sent.uuid, Epoch::new(1), at).await.unwrap().unwrap();
    let Chosen::Deal(chosen) =
        first.choose_deal(attempt(aggregate, 1, 1_001, 5, &accounts), &caps).await.unwrap()
    else {
        panic!("nothing stands in its way")
    };

    let second = world.open().await;
    let early = second.reserve_gas("early", AttoFil::new(1), &caps).await;
    assert!(
        matches!(early, Err(Error::Fenced { found: 1, ours: 0 })),
        "it did not begin to spend: {early:?}"
    );
    assert_eq!(second.begin_ledger_epoch().await.unwrap(), 2);
    let before = second.totals().await.unwrap();
    let fenced = [
        first.choose_deal(attempt(aggregate, 2, 1_002, 5, &accounts), &caps).await.err(),
        first.store_signed(chosen.uuid, signed(chosen.uuid)).await.err(),
        first.begin_sending(sent.uuid, Epoch::new(2), at).await.err(),
        first.reserve_gas("late", AttoFil::new(1), &caps).await.err(),
        first.begin_top_up(AttoFil::new(1)).await.err(),
        first.add_message(message("late"), 9).await.err(),
    ];
    for (n, error) in fenced.iter().enumerate() {
        assert!(matches!(error, Some(Error::Fenced { found: 2, ours: 1 })), "{n}: {error:?}");
    }
    assert_eq!(second.totals().await.unwrap(), before, "nothing was reserved");
    // The chain's word is no spending.
    first.answered(sent.uuid, Reply::Accepted, Epoch::new(2), at).await.unwrap();
    second.store_signed(chosen.uuid, signed(chosen.uuid)).await.unwrap();
    second.add_message(message("of the second"), 9).await.unwrap();
    let version = message("x").versions.remove(0);
    let late = first.add_message_version("of the second".into(), 1, version).await;
    assert!(matches!(late, Err(Error::Fenced { .. })), "{late:?}");
}

fn message(intent: &str) -> MessageRow {
    let cid = root(u32::try_from(intent.len()).unwrap());
    let version = MessageVersion { cid, bytes: intent.as_bytes().to_vec(), pushed_at: None };
    MessageRow {
        intent: intent.into(),
        wallet: "f1wallet".into(),
        nonce: 0,
        since: Epoch::new(1),
        step: MessageStep::Signed,
        versions: vec![version],
    }
}

/// A deal's id is made of wallet, piece, slot and generation: restored rows gave the id of an attempt that they did not know
/// to another one, and its provider took that for the first ("deal has the same uuid").
#[tokio::test]
async fn t43_restored_rows_give_no_generation_a_second_time() {
    let world = World::new();
    let records = world.open().await;
    let aggregate = packed(&records).await;
    let accounts: Vec<_> = records.accounts().await.unwrap().iter().map(|account| account.id).collect();
    let caps = wide_caps();
    let mut generations = Vec::new();
    for slot in 0..4 {
        let asked = attempt(aggregate, slot, 1_000 + u64::from(slot), 1, &accounts);
        let Chosen::Deal(row) = records.choose_deal(asked, &caps).await.unwrap() else { panic!("{slot}") };
        generations.push(row.generation);
        if slot > 0 {
            records.mark_restored("a test").await.unwrap();
            records.restore_settled("a test").await.unwrap();
        }
    }
    assert_eq!(generations[..2], [0, 0]);
    assert!(generations[2] >= 1 << 12 && generations[3] >= 1 << 12, "{generations:?}");
    assert_ne!(generations[2], generations[3], "each restore begins a line of its own");
}

/// T36: gas and the cap of an account came near their caps and nobody was told. Each cap tells of its four fifths at the
/// reservation that reaches them, and not at those after it.
#[tokio::test]
async fn t36_a_cap_of_which_four_fifths_are_used_tells_once() {
    let world = World::new();
    let records = world.open().await;
    let aggregate = packed(&records).await;
    let accounts: Vec<_> = records.accounts().await.unwrap().iter().map(|account| account.id).collect();
    let caps = Caps {
        deal: AttoFil::new(1 << 40),
        account_day: AttoFil::new(9_374),
        day: AttoFil::new(17_500),
        lifetime: AttoFil::new(100_000),
    };
    let told = async || -> Vec<(String, Option<floe_core::AccountId>, u64)> {
        let events = records.events_after(0, 100).await.unwrap().into_iter();
        let near = events.filter(|event| event.kind == "spending.near_cap");
        let amount = |event: &floe_records::cold::Event| event.body["committed"].as_str().unwrap().parse();
        near.map(|event| (event.subject.clone(), event.account, amount(&event).unwrap())).collect()
    };
    let deal = async |slot: u32, price: u128| {
        let asked = attempt(aggregate, slot, 1_000 + u64::from(slot), price, &accounts);
        assert!(matches!(records.choose_deal(asked, &caps).await.unwrap(), Chosen::Deal(_)), "{slot}");
    };
    let day = |committed| ("deals.max_per_day".to_owned(), None, committed);
    let of_account = ("deals.max_per_account_day".to_owned(), Some(accounts[0]), 7_500);
    // 7,500 of it are the first account's: one more than four fifths of its cap. 10,000 of the day's 14,000.
    deal(0, 10).await;
    assert_eq!(told().await, std::slice::from_ref(&of_account));
    // Gas is nobody's, and counts in the day.
    for (intent, fee) in [("m1", 3_999), ("m2", 1), ("m2", 1), ("m3", 1)] {
        records.reserve_gas(intent, AttoFil::new(fee), &caps).await.unwrap().unwrap();
    }
    assert_eq!(told().await, [of_account.clone(), day(14_000)]);
    deal(1, 1).await;
    assert_eq!(told().await.len(), 2, "both are past it: nothing new");
    // It went below the line, and passes it once more.
    records.gas_is_free("m1").await.unwrap();
    records.reserve_gas("m4", AttoFil::new(3_999), &caps).await.unwrap().unwrap();
    assert_eq!(told().await, [of_account, day(14_000), day(15_001)]);
    // The next day begins anew.
    world.clock.advance(std::time::Duration::from_secs(86_400));
    records.reserve_gas("m5", AttoFil::new(14_000), &caps).await.unwrap().unwrap();
    assert_eq!(told().await.len(), 4);
}
