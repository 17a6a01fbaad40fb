//! What is reserved, spent and let go of; the switch, the dry run, and what a restored backup may not do.

use floe_core::FailureCode;
use floe_core::cold::{Fault, FundsCall, MessageProgress};

use super::super::funds::{self, Refused};
use super::super::plan;
use super::*;

#[tokio::test]
async fn three_replicas_of_three_owners_are_active_and_paid() {
    let world = World::new(settings(3), &good(5)).await;
    world.until(AggregateState::Stored, 60).await;
    world.stored_and_paid_once().await;
    assert_eq!(world.signatures(), 3);
    for kind in ["deal.chosen", "deal.proposed", "deal.accepted", "deal.published", "deal.active"] {
        assert_eq!(world.events(kind).await, 3, "{kind}");
    }
    assert_eq!(world.events("aggregate.stored").await, 1);
    assert!(world.events("escrow.topped_up").await >= 1);
    // What each provider earned is in its standing.
    let kept = world.records.providers().await.unwrap();
    assert_eq!(kept.iter().filter(|p| p.standing.score > 500).count(), 3);
}

/// Three accounts share what is in one piece: each bears its part, and all parts are the whole.
#[tokio::test]
async fn r12_accounts_share_the_cost_of_their_aggregate() {
    let mut world = World::empty(settings(1), &[Script::Good, Script::Good]).await;
    world.pack(1, &["a", "b", "c"]).await;
    world.until(AggregateState::Stored, 60).await;
    let deal = world.in_state(DealState::Active).await.remove(0);
    let shares = world.records.shares(deal.uuid).await.unwrap();
    let spent: Vec<u128> = shares.iter().map(|(_, sum)| sum.spent.get()).collect();
    assert_eq!(spent.len(), 3);
    assert_eq!(spent.iter().sum::<u128>(), COST);
    assert!(spent[0] - spent[2] <= 2, "{spent:?}");
    let account = world.account("b").await;
    let totals = world.records.totals_of(account).await.unwrap();
    assert_eq!(totals.day.spent.get(), spent[1]);
}

#[tokio::test]
async fn r12_an_account_whose_cap_is_used_up_gets_no_deal() {
    let mut settings = settings(2);
    settings.deals.caps.account_day = AttoFil::new(COST);
    let world = World::new(settings, &good(3)).await;
    world.rounds(30).await;
    assert_eq!(world.deals().await.len(), 1, "one fits under the account's cap, and not an attoFIL more");
    world.sound().await;
}

/// R16: nothing is signed without the operator's consent, with a cap that is not set, or without a pull server.
#[tokio::test]
async fn r16_spending_is_off_by_default() {
    let cases: [fn(&mut Settings); 6] = [
        |s| s.deals.enabled = false,
        |s| s.deals.caps.deal = AttoFil::ZERO,
        |s| s.deals.caps.day = AttoFil::ZERO,
        |s| s.deals.caps.lifetime = AttoFil::ZERO,
        |s| s.pull_url = None,
        |s| s.pull_key = None,
    ];
    for change in cases {
        let mut settings = settings(1);
        change(&mut settings);
        let world = World::new(settings, &[Script::Good]).await;
        world.rounds(4).await;
        assert_eq!(world.signatures(), 0);
        assert!(world.deals().await.is_empty() && world.chain.state().messages.is_empty());
        let dealer = world.board().into_iter().find(|w| w.name == "dealer").unwrap();
        assert!(dealer.state.starts_with("paused: "), "{dealer:?}");
    }
}

/// R16: once it is off nothing more goes out, also of what is chosen and signed; and it stays off after a crash.
#[tokio::test]
async fn r16_the_switch_stops_what_was_not_sent() {
    let mut world = World::new(settings(2), &[Script::LosesReplies(99), Script::LosesReplies(99)]).await;
    world.rounds(8).await;
    let sent = world.chain.state().calls.iter().filter(|call| **call == "propose").count();
    assert!(sent >= 2);
    world.records.switch_spending(false, "the operator").await.unwrap();
    world.rounds(5).await;
    world = world.crash().await;
    world.rounds(30).await;
    let calls = world.chain.state().calls.clone();
    assert_eq!(calls.iter().filter(|call| **call == "propose").count(), sent);
    assert_eq!(world.events("spending.off").await, 1);
    world.records.switch_spending(true, "the operator").await.unwrap();
    world.clock.advance(Duration::from_secs(600));
    world.rounds(3).await;
    assert!(world.chain.state().calls.iter().filter(|call| **call == "propose").count() > sent);
    world.sound().await;
}

/// R16: the dry run is what is done, and spends nothing.
#[tokio::test]
async fn r16_the_plan_is_what_is_done() {
    let mut settings = settings(3);
    settings.deals.caps = caps(COST * 5 + MAX_FEE);
    let mut world = World::new(settings, &good(6)).await;
    world.pack(3, &["alice"]).await;
    tracker::pass(&world.d).await;
    let plan = plan::plan(&world.d).await.unwrap();
    assert_eq!((plan.paused.clone(), plan.deals.len(), plan.unplaced.len()), (None, 5, 1), "{plan:?}");
    assert_eq!(plan.cost.get(), COST * 5);
    assert!(plan.unplaced[0].why.contains("deals.max_"), "{plan:?}");
    assert!(world.deals().await.is_empty() && world.signatures() == 0);
    dealer::pass(&world.d).await;
    let done: Vec<_> = world.deals().await;
    let mut planned: Vec<_> = plan
        .deals
        .iter()
        .map(|p| (p.aggregate, p.slot, p.provider, p.price, p.cost, p.start, p.end))
        .collect();
    let mut done: Vec<_> =
        done.iter().map(|d| (d.aggregate, d.slot, d.provider, d.price, d.cost, d.start, d.end)).collect();
    planned.sort();
    done.sort();
    assert_eq!(planned, done);
}

/// A signed proposal is not sent before escrow covers it: providers would refuse it, and its slot would go on.
#[tokio::test]
async fn nothing_is_signed_that_escrow_does_not_cover() {
    let world = World::new(settings(2), &[Script::Good, Script::Good]).await;
    world.chain.state().wallet = 0;
    world.rounds(5).await;
    assert_eq!(world.in_state(DealState::Chosen).await.len(), 2);
    assert_eq!(world.signatures(), 0);
    assert_eq!(world.events("escrow.alarm").await, 1, "said once");
    world.chain.state().wallet = 10_u128.pow(18);
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
}

/// A deal that waited too long for escrow is withdrawn, which is free, and chosen anew with a later start.
#[tokio::test]
async fn a_deal_that_waited_too_long_is_chosen_anew() {
    let world = World::new(settings(1), &[Script::Good]).await;
    world.chain.state().wallet = 0;
    world.rounds(20).await;
    assert!(!world.in_state(DealState::Failed).await.is_empty());
    world.chain.state().wallet = 10_u128.pow(18);
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
    let totals = world.records.totals().await.unwrap();
    assert_eq!(totals.lifetime.reserved.get(), 0, "what was withdrawn is free again");
}

#[tokio::test]
async fn what_deals_need_leaves_neither_escrow_nor_wallet() {
    let world = World::new(settings(2), &[Script::NeverPublishes, Script::NeverPublishes]).await;
    world.rounds(10).await;
    let escrow = world.chain.state().escrow;
    assert!(escrow >= 2 * COST);
    let free = AttoFil::new(escrow - 2 * COST);
    funds::may_withdraw(&world.d, free).await.unwrap();
    let more = AttoFil::new(free.get() + 1);
    assert!(matches!(funds::may_withdraw(&world.d, more).await, Err(Refused::Committed { .. })));
    let refused = funds::operators_call(&world.d, "w1", &FundsCall::Withdraw(more)).await;
    assert!(refused.is_err() && !world.chain.state().messages.contains_key("operator-w1"));
    funds::operators_call(&world.d, "w2", &FundsCall::Withdraw(free)).await.unwrap();
    // Its gas counts like any other.
    let before = world.records.totals().await.unwrap().lifetime;
    assert!(before.committed().unwrap().get() > 2 * COST);
    let wallet = AttoFil::new(world.chain.state().wallet);
    assert!(
        funds::operators_call(&world.d, "s1", &FundsCall::Send { to: "f1x".into(), amount: wallet })
            .await
            .is_err()
    );
    world.rounds(10).await;
    world.sound().await;
}

/// Two withdrawals one after the other were both held against what the chain said before either: together they took what
/// signed deals needed.
#[tokio::test]
async fn two_withdrawals_in_a_row_leave_what_deals_need() {
    let mut world = World::new(settings(2), &[Script::NeverPublishes, Script::NeverPublishes]).await;
    world.rounds(10).await;
    // What is more than deals need is not put back.
    world.d.settings.deals.escrow_tenths = 10;
    let all = FundsCall::Withdraw(AttoFil::new(world.chain.state().escrow - 2 * COST));
    funds::operators_call(&world.d, "w1", &all).await.unwrap();
    let second = funds::operators_call(&world.d, "w2", &all).await;
    assert_eq!(second, Err(Refused::Pending("operator-w1".into())));
    let send = FundsCall::Send { to: "f1x".into(), amount: AttoFil::new(1) };
    assert!(matches!(funds::operators_call(&world.d, "s1", &send).await, Err(Refused::Pending(_))));
    let again = funds::operators_call(&world.d, "w1", &all).await.unwrap();
    assert_eq!(again.progress, MessageProgress::Pending, "a repeat is the same message");
    world.rounds(2).await;
    assert_eq!(world.chain.state().escrow, 2 * COST);
    // It was answered with what is free by now, though it had its money.
    let landed = funds::operators_call(&world.d, "w1", &all).await.unwrap();
    assert_eq!(landed.progress, MessageProgress::Included);
    assert!(matches!(funds::operators_call(&world.d, "w2", &all).await, Err(Refused::Committed { .. })));
    assert_eq!(world.chain.state().messages.keys().filter(|intent| intent.contains('w')).count(), 1);
    world.rounds(10).await;
    world.sound().await;
}

/// What is being withdrawn covered new deals until it was gone.
#[tokio::test]
async fn nothing_is_signed_while_a_withdrawal_is_on_its_way() {
    let world = World::new(settings(1), &good(1)).await;
    world.chain.state().escrow = COST;
    tracker::pass(&world.d).await;
    funds::operators_call(&world.d, "w1", &FundsCall::Withdraw(AttoFil::new(COST))).await.unwrap();
    dealer::pass(&world.d).await;
    assert_eq!((world.in_state(DealState::Chosen).await.len(), world.signatures()), (1, 0));
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
}

/// Escrow that came in a moment ago covered deals, and a reorg could take it back: a signed deal was then not covered. So it
/// counts once it is final, and what goes out counts at once.
#[tokio::test]
async fn t39_what_came_in_counts_once_it_is_final() {
    let world = World::new(settings(1), &good(1)).await;
    world.chain.step(10);
    world.chain.state().wallet = 0;
    world.chain.state().escrow = COST;
    for epoch in 0..5 {
        world.passes().await;
        let (chosen, free) =
            (world.in_state(DealState::Chosen).await.len(), world.d.chain.funds().await.unwrap());
        assert_eq!((chosen, world.signatures()), (1, 0), "{epoch}: {free:?}");
        let withdrawn = funds::may_withdraw(&world.d, AttoFil::new(1)).await;
        assert!(
            matches!(withdrawn, Err(Refused::Committed { .. } | Refused::NotFinal { .. })),
            "{withdrawn:?}"
        );
        world.chain.step(1);
    }
    world.passes().await;
    assert_eq!(world.signatures(), 1, "five epochs later it is final");
}

/// Nor is it taken out again before: what the operator sees is at the head.
#[tokio::test]
async fn t39_what_came_in_is_taken_out_once_it_is_final() {
    let world = World::empty(settings(1), &good(1)).await;
    world.chain.step(10);
    world.chain.state().escrow = COST;
    for epoch in 0..5 {
        tracker::pass(&world.d).await;
        let withdrawn = funds::may_withdraw(&world.d, AttoFil::new(COST)).await;
        assert_eq!(
            withdrawn,
            Err(Refused::NotFinal { asked: AttoFil::new(COST), lasting: AttoFil::ZERO }),
            "{epoch}"
        );
        world.chain.step(1);
    }
    tracker::pass(&world.d).await;
    funds::may_withdraw(&world.d, AttoFil::new(COST)).await.unwrap();
}

/// The head lacks more than the last final epoch does: what is sent is what both lack.
#[tokio::test]
async fn t39_a_top_up_is_what_head_and_finality_both_lack() {
    let world = World::new(settings(1), &good(1)).await;
    world.chain.state().escrow = COST;
    world.chain.step(10);
    // Most of it was withdrawn a moment ago.
    world.chain.state().escrow = COST / 10;
    world.passes().await;
    world.passes().await;
    let call = world.chain.state().messages["top-up-1"].call.clone();
    assert_eq!(call, FundsCall::TopUp(AttoFil::new(COST / 5)), "two tenths more than what is needed");
}

/// FIL that was just sent to the wallet is not sent on, and the operator is told what it waits for.
#[tokio::test]
async fn t39_a_top_up_waits_until_what_pays_for_it_is_final() {
    let world = World::new(settings(1), &good(1)).await;
    world.chain.state().wallet = 0;
    world.passes().await;
    world.chain.step(10);
    world.chain.state().wallet = 10_u128.pow(18);
    for epoch in 0..5 {
        world.passes().await;
        assert!(world.chain.state().messages.is_empty(), "{epoch}");
        let told = world.board().into_iter().find(|w| w.name == "tracker").unwrap().last_error.unwrap();
        assert!(told.contains("it waits until") && told.contains("send FIL to it"), "{told}");
        let send = funds::may_leave_wallet(&world.d, AttoFil::new(1)).await;
        assert!(matches!(send, Err(Refused::NotFinal { lasting: AttoFil::ZERO, .. })), "{send:?}");
        world.chain.step(1);
    }
    world.passes().await;
    assert_eq!(world.chain.state().messages.len(), 1);
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
}

/// The operator's own top-up is at the head and not final: another for the same need would be one too many.
#[tokio::test]
async fn t39_what_the_operator_put_in_is_not_put_in_again() {
    let world = World::new(settings(1), &good(1)).await;
    tracker::pass(&world.d).await;
    let fund = FundsCall::TopUp(AttoFil::new(2 * COST));
    funds::operators_call(&world.d, "1", &fund).await.unwrap();
    world.until(AggregateState::Stored, 80).await;
    let messages: Vec<String> = world.chain.state().messages.keys().cloned().collect();
    assert_eq!(messages, ["operator-1"]);
    world.stored_and_paid_once().await;
}

/// A deal that ran to its end holds its price until somebody settles it. That counted as if the renewal were published:
/// another was signed without cover, and the operator could take out what it needed.
#[tokio::test]
async fn what_an_ended_deal_still_locks_covers_no_other() {
    let world = World::new(settings(1), &good(2)).await;
    world.until(AggregateState::Stored, 60).await;
    let ended = world.deals().await.remove(0);
    {
        let mut state = world.chain.state();
        // No more than the price of the first, and nothing to top up with.
        (state.head, state.wallet, state.escrow) = (ended.end.get() + 10, 1_000, COST);
    }
    // Every height is looked through first.
    world.when(DealState::Chosen).await;
    world.rounds(10).await;
    let row = world.records.deal(ended.uuid).await.unwrap();
    assert_eq!((row.state, row.is_locked), (DealState::Expired, true));
    let (chosen, board) = (world.in_state(DealState::Chosen).await.len(), world.board());
    assert_eq!((chosen, world.signatures()), (1, 1), "nothing is signed: {board:?}");
    let withdrawn = funds::may_withdraw(&world.d, AttoFil::new(1)).await;
    assert!(matches!(withdrawn, Err(Refused::Committed { .. })), "{withdrawn:?}");
    // Settling names it, and pays its provider.
    funds::operators_call(&world.d, "s", &FundsCall::Settle(Vec::new())).await.unwrap();
    world.rounds(12).await;
    let (escrow, locked) = {
        let state = world.chain.state();
        (state.escrow, state.locked())
    };
    assert_eq!((escrow, locked), (0, 0));
    // It is looked after less often than what is under way.
    world.pass_time(3_000);
    world.rounds(3).await;
    let row = world.records.deal(ended.uuid).await.unwrap();
    assert_eq!((row.state, row.is_locked), (DealState::Expired, false));
    world.sound().await;
    world.chain.state().wallet = 10_u128.pow(18);
    world.until(AggregateState::Stored, 80).await;
    world.sound().await;
    assert_eq!(world.signatures(), 2);
}

/// T43: restored rows do not know what was signed since, and the operator could take out what that needs.
#[tokio::test]
async fn t43_nothing_is_taken_out_while_restored_rows_wait() {
    let world = World::new(settings(1), &good(1)).await;
    world.chain.state().escrow = 3 * COST;
    world.until(AggregateState::Stored, 80).await;
    world.records.mark_restored("a backup was restored").await.unwrap();
    let one = AttoFil::new(1);
    let send = FundsCall::Send { to: "f1x".into(), amount: one };
    for (key, call) in [("w", FundsCall::Withdraw(one)), ("s", send)] {
        let refused = funds::operators_call(&world.d, key, &call).await;
        let Err(Refused::Paused(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains("trust-backup"), "{why}");
    }
    // What is put in is taken from nobody.
    funds::operators_call(&world.d, "f", &FundsCall::TopUp(one)).await.unwrap();
    world.rounds(10).await;
    world.records.restore_settled("the operator").await.unwrap();
    funds::operators_call(&world.d, "w", &FundsCall::Withdraw(one)).await.unwrap();
}

/// T36: `deals.max_gas` was raised while a message waited. A replacement may cost what is reserved, so more is reserved first,
/// where the caps permit it.
#[tokio::test]
async fn t36_a_replacement_may_cost_what_is_reserved() {
    let world = World::new(settings(1), &good(1)).await;
    while world.chain.state().messages.is_empty() {
        world.passes().await;
    }
    world.chain.state().messages.get_mut("top-up-1").unwrap().at = i64::MAX;
    world.rounds(1).await;
    let permitted = || world.chain.state().gas["top-up-1"].get();
    assert_eq!(permitted(), MAX_FEE);
    world.chain.state().max_fee = 2 * MAX_FEE;
    world.rounds(1).await;
    assert_eq!(permitted(), 2 * MAX_FEE);
    assert_eq!(world.records.open_gas().await.unwrap()["top-up-1"].get(), 2 * MAX_FEE);
    world.chain.state().max_fee = 10_u128.pow(16);
    world.rounds(1).await;
    assert_eq!(permitted(), 2 * MAX_FEE, "beyond the caps");
    world.chain.state().max_fee = MAX_FEE / 2;
    world.rounds(2).await;
    assert_eq!(permitted(), MAX_FEE, "what was signed may still be burnt");
    world.sound().await;
}

/// Gas was reserved, and the message could not be made: the reservation stayed for life, and took its part of every cap.
#[tokio::test]
async fn gas_that_nothing_was_signed_for_is_let_go_of() {
    let mut world = World::new(settings(1), &good(1)).await;
    world.rounds(2).await;
    let reserved = async |world: &World| world.records.totals().await.unwrap().lifetime.reserved.get();
    let before = reserved(&world).await;
    let amount = AttoFil::new(1);
    let bad = FundsCall::Send { to: "nobody".into(), amount };
    assert!(funds::operators_call(&world.d, "1", &bad).await.is_err());
    assert_eq!(reserved(&world).await, before);
    // The process ended between the two.
    let fee = AttoFil::new(MAX_FEE);
    for intent in ["operator-1", "operator-2"] {
        world.records.reserve_gas(intent, fee, world.d.caps()).await.unwrap().unwrap();
    }
    world = world.crash().await;
    world.round().await;
    assert_eq!(world.records.open_gas().await.unwrap().into_keys().collect::<Vec<_>>(), ["top-up-1"]);
    // The same intent again: with its gas reserved.
    let good = FundsCall::Send { to: "f1x".into(), amount };
    funds::operators_call(&world.d, "1", &good).await.unwrap();
    assert!(world.records.holds_gas("operator-1").await.unwrap());
    world.until(AggregateState::Stored, 60).await;
    world.sound().await;
    assert!(world.records.open_gas().await.unwrap().is_empty());
}

/// The chain went past the number of a top-up that it never had: each pass waited for it, and no other was made.
#[tokio::test]
async fn a_top_up_that_is_lost_is_made_anew() {
    let world = World::new(settings(1), &good(1)).await;
    while world.chain.state().messages.is_empty() {
        world.passes().await;
    }
    world.chain.state().messages.get_mut("top-up-1").unwrap().is_missing = true;
    world.until(AggregateState::Stored, 60).await;
    assert_eq!(world.events("alarm.message_lost").await, 1);
    assert_eq!(world.chain.state().messages.len(), 2);
    world.stored_and_paid_once().await;
}

/// While a top-up was on its way nobody looked at escrow, however long that took.
#[tokio::test]
async fn escrow_is_watched_while_a_top_up_is_on_its_way() {
    let mut world = World::new(settings(1), &good(1)).await;
    while world.chain.state().messages.is_empty() {
        world.passes().await;
    }
    world.chain.state().messages.get_mut("top-up-1").unwrap().at = i64::MAX;
    world.rounds(3).await;
    let before = world.events("escrow.alarm").await;
    world.pack(1, &["default"]).await;
    world.rounds(3).await;
    assert_eq!(world.events("escrow.alarm").await, before + 1);
    assert_eq!(world.chain.state().messages.len(), 1, "one at a time");
    world.chain.state().messages.get_mut("top-up-1").unwrap().at = 0;
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
}

/// A call that fails may have been signed before: the top-up stays open, and is not begun a second time.
#[tokio::test]
async fn a_top_up_whose_answer_is_lost_is_sent_once() {
    let mut world = World::new(settings(1), &[Script::Good]).await;
    let calls = {
        let probe = World::new(settings(1), &[Script::Good]).await;
        probe.rounds(3).await;
        let calls = probe.chain.state().calls.clone();
        calls.iter().position(|call| *call == "send").unwrap() + 1
    };
    world.chain.state().fault = Some((calls, Outcome::Lost));
    world.rounds(3).await;
    world = world.crash().await;
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
    assert_eq!(world.chain.state().messages.len(), 1);
}

/// T43: yesterday's rows do not know what was signed since. No slot is filled until nobody can publish that any more.
#[tokio::test]
async fn t43_a_restored_backup_waits_for_what_it_does_not_know() {
    let world =
        World::new(settings(2), &[Script::NeverPublishes, Script::NeverPublishes, Script::Good]).await;
    tracker::pass(&world.d).await;
    let world = backed_up(world).await;
    world.rounds(PAID + 8).await;
    let (signed, head) = (world.signatures(), world.chain.state().head);
    assert_eq!(signed, 2);
    let world = restored(world).await;
    while world.chain.state().last_final() < head + 60 {
        world.round().await;
        assert_eq!(world.signatures(), signed, "at {}", world.chain.state().head);
    }
    assert_eq!(world.events("ledger.restored").await, 1);
    world.rounds(10).await;
    assert_eq!(world.events("ledger.settled").await, 1);
    assert!(world.signatures() > signed, "{:#?} {:#?}", world.board(), world.deals().await);
    world.sound().await;
}

/// T43: what yesterday's rows do not know comes onto the chain, and is taken over: no replica is paid twice.
#[tokio::test]
async fn t43_deals_that_a_restored_backup_forgot_are_taken_over() {
    let world = World::new(settings(2), &good(4)).await;
    tracker::pass(&world.d).await;
    let world = backed_up(world).await;
    world.rounds(PAID + 7).await;
    assert_eq!(world.signatures(), 2);
    let world = restored(world).await;
    world.until(AggregateState::Stored, 90).await;
    world.rounds(90).await;
    assert_eq!((world.signatures(), world.chain.state().deals.len()), (2, 2), "0 duplicate deals");
    assert_eq!(world.events("deal.adopted").await, 2);
    // Whose they are counts too: they were their own owners, and a third replica could have gone to one of these.
    for deal in world.in_state(DealState::Active).await {
        assert_eq!(deal.owner.get(), deal.provider.get() - 500);
    }
    let totals = world.records.totals().await.unwrap().lifetime;
    assert!(totals.spent.get() >= 2 * COST, "what they cost is counted");
    assert_eq!(world.records.verify().await.unwrap().findings, Vec::<String>::new());
}

async fn backed_up(world: World) -> World {
    let World { chain, clock, dir, settings, records, d, aggregates } = world;
    drop(d);
    records.close().await;
    // The log belongs to the rows: what was written last may be in it alone.
    for end in ["", "-wal"] {
        let (from, to) = (format!("rows.sqlite{end}"), format!("backup.sqlite{end}"));
        if dir.path().join(&from).exists() {
            std::fs::copy(dir.path().join(from), dir.path().join(to)).unwrap();
        }
    }
    let (records, d) = open(&dir.path().join("rows.sqlite"), &clock, &chain, &settings).await;
    World { chain, clock, dir, settings, records, d, aggregates }
}

/// Opens the backup in place of the rows, and says so.
async fn restored(world: World) -> World {
    let World { chain, clock, dir, settings, records, d, aggregates } = world;
    drop(d);
    records.close().await;
    let (records, d) = open(&dir.path().join("backup.sqlite"), &clock, &chain, &settings).await;
    records.mark_restored("a backup was restored").await.unwrap();
    World { chain, clock, dir, settings, records, d, aggregates }
}

/// T43: a backup had a deal with one provider `chosen`. Afterwards that one was withdrawn and another provider got the
/// replica. The restored rows guarded open slots only: the chosen deal was signed and sent, and both were paid.
#[tokio::test]
async fn t43_what_a_restored_backup_had_begun_is_not_gone_on_with() {
    let world = World::new(settings(1), &good(2)).await;
    world.chain.state().wallet = 0;
    world.rounds(2).await;
    let chosen = world.in_state(DealState::Chosen).await.remove(0);
    let world = backed_up(world).await;
    let of_chosen = chosen.provider.get();
    world.chain.state().providers.get_mut(&of_chosen).unwrap().ask.price = AttoFil::new(101);
    world.chain.state().escrow = 2 * COST;
    world.clock.advance(Duration::from_secs(90));
    world.when(DealState::Accepted).await;
    assert_eq!(world.records.deal(chosen.uuid).await.unwrap().state, DealState::Failed);
    world.chain.state().providers.get_mut(&of_chosen).unwrap().ask.price = AttoFil::new(50);
    let world = restored(world).await;
    assert_eq!(world.in_state(DealState::Chosen).await.len(), 1);
    world.until(AggregateState::Stored, 90).await;
    world.rounds(90).await;
    assert_eq!((world.signatures(), world.chain.state().deals.len()), (1, 1), "0 duplicate deals");
    assert_eq!(world.events("deal.adopted").await, 1);
    assert_eq!(world.records.deal(chosen.uuid).await.unwrap().state, DealState::Failed);
}

/// T43: no more does a proposal go out again whose answer was lost, or that its provider has forgotten.
#[tokio::test]
async fn t43_nothing_goes_out_again_while_restored_rows_wait() {
    for script in [Script::LosesReplies(99), Script::NeverPublishes] {
        let world = World::new(settings(1), std::slice::from_ref(&script)).await;
        world.rounds(PAID + 6).await;
        let out = [DealState::Unknown, DealState::Accepted];
        assert!(out.contains(&world.deals().await[0].state));
        let world = restored(backed_up(world).await).await;
        if script == Script::NeverPublishes {
            world.chain.state().providers.get_mut(&1_000).unwrap().script = Script::Forgets;
        }
        let count = || world.chain.state().calls.iter().filter(|call| **call == "propose").count();
        let sent = count();
        while world.records.restored().await.unwrap().is_some() {
            world.clock.advance(Duration::from_secs(300));
            world.passes().await;
            let waits = world.records.restored().await.unwrap().is_some();
            assert!(!waits || count() == sent, "{script:?}");
            world.pass_time(1);
        }
        world.sound().await;
    }
}

/// The operator knows that nothing is out, and need not wait.
#[tokio::test]
async fn t43_the_operators_word_ends_the_wait() {
    let world = World::new(settings(1), &[Script::Good]).await;
    world.records.mark_restored("a backup was restored").await.unwrap();
    world.rounds(PAID + 5).await;
    assert_eq!(world.signatures(), 0);
    world.records.restore_settled("the operator").await.unwrap();
    world.until(AggregateState::Stored, 60).await;
    world.stored_and_paid_once().await;
}

#[tokio::test]
async fn nothing_is_sent_with_other_bytes_than_those_that_are_stored() {
    let world = World::new(settings(1), &[Script::Good]).await;
    world.rounds(PAID + 6).await;
    let deal = world.deals().await.remove(0);
    let stored = deal.signed.clone().unwrap();
    let mut other = stored.clone();
    other.bytes.push(0);
    assert!(matches!(
        world.records.store_signed(deal.uuid, other).await,
        Err(floe_records::Error::Conflict(_))
    ));
    assert_eq!(world.records.store_signed(deal.uuid, stored).await.unwrap().signed, deal.signed);
    // What was sent is not withdrawn either.
    let why = Fault::new(FailureCode::FundsEscrow, "no");
    assert_ne!(world.records.withdraw_deal(deal.uuid, why).await.unwrap().state, DealState::Failed);
}
