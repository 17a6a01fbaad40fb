//! R16, T43: which messages may leave, and when none may; and what comes of one that fails on the chain.

use super::*;

/// Whether messages might go out at the last look.
fn might_send(world: &World) -> bool {
    *world.chain.state().ticks.last().unwrap()
}

/// R16: the switch held up new messages, and nobody looked whether old ones were pushed again or replaced while it was off.
#[tokio::test]
async fn r16_no_message_is_pushed_again_while_spending_is_off_or_restored_rows_wait() {
    let world = World::new(settings(1), &good(1)).await;
    world.round().await;
    assert!(might_send(&world));
    world.records.switch_spending(false, "the operator").await.unwrap();
    world.round().await;
    assert!(!might_send(&world), "off");
    world.records.mark_restored("a backup was restored").await.unwrap();
    world.records.switch_spending(true, "the operator").await.unwrap();
    world.round().await;
    assert!(!might_send(&world), "restored rows wait");
    world.records.switch_spending(false, "the operator").await.unwrap();
    world.records.restore_settled("the operator").await.unwrap();
    world.round().await;
    assert!(!might_send(&world), "off");
    world.records.switch_spending(true, "the operator").await.unwrap();
    world.round().await;
    assert!(might_send(&world), "on, and nothing waits");
}

/// T43: restored rows do not know what was sent since. A top-up that they call for, or had begun, may be there already: it
/// is sent when the wait is over and not before.
#[tokio::test]
async fn t43_no_top_up_is_sent_while_restored_rows_wait() {
    for is_begun in [false, true] {
        let world = World::new(settings(1), &good(1)).await;
        // The wallet is empty, so a deal is chosen and nothing is topped up.
        world.chain.state().wallet = 0;
        world.round().await;
        assert_eq!(world.in_state(DealState::Chosen).await.len(), 1);
        world.records.mark_restored("a backup was restored").await.unwrap();
        world.chain.state().wallet = 10_u128.pow(18);
        if is_begun {
            world.records.begin_top_up(AttoFil::new(2 * COST)).await.unwrap();
        }
        let mut waited = 0;
        loop {
            world.passes().await;
            if world.records.restored().await.unwrap().is_none() {
                break;
            }
            waited += 1;
            let asked = world.chain.state().asked.iter().filter(|call| **call == "send").count();
            assert_eq!(asked, 0, "{is_begun}: at {}", world.chain.state().head);
            world.pass_time(1);
        }
        assert!(waited > 60, "{is_begun}: the wait is longer than a deal's lead: {waited}");
        world.until(AggregateState::Stored, 80).await;
        world.stored_and_paid_once().await;
    }
}

/// A top-up that the chain refused was over for nobody: it is told, its gas is spent, and escrow is topped up by a new plan.
#[tokio::test]
async fn a_top_up_that_fails_on_the_chain_is_told_and_made_anew() {
    let world = World::new(settings(1), &good(1)).await;
    while world.chain.state().messages.is_empty() {
        world.passes().await;
    }
    world.chain.state().messages.get_mut("top-up-1").unwrap().exit_code = 6;
    world.until(AggregateState::Stored, 60).await;
    let told = world.records.events_after(0, 1_000).await.unwrap();
    let told: Vec<_> = told.iter().filter(|event| event.kind == "alarm.top_up_failed").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].subject.as_str(), &told[0].body["exit_code"]), ("top-up-1", &6.into()));
    assert_eq!(world.events("escrow.topped_up").await, 1, "the second");
    let messages: Vec<String> = world.chain.state().messages.keys().cloned().collect();
    assert_eq!(messages, ["top-up-1", "top-up-2"]);
    let spent = world.records.totals().await.unwrap().lifetime.spent.get();
    assert_eq!(spent, COST + 2 * filecoin::GAS, "the gas of both");
    assert!(world.records.open_gas().await.unwrap().is_empty());
    world.stored_and_paid_once().await;
}
