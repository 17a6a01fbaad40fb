//! What nobody pins any more: nothing is bought for it, and what was bought is not bought again.

use super::super::plan;
use super::*;

/// Removes the pins of an aggregate; those of `but` stay.
async fn remove(world: &World, id: Uuid, but: Option<AccountId>) {
    for pin in world.records.pins_in_aggregate(id, None, 99).await.unwrap() {
        let owner = world.records.owner_in_aggregates(pin).await.unwrap().unwrap();
        if Some(owner) != but {
            world.records.remove_pin(owner, pin).await.unwrap();
        }
    }
}

/// A piece whose pins were all removed before its first deal got all its deals, and its account paid for them.
#[tokio::test]
async fn what_nobody_pins_any_more_is_not_bought() {
    let world = World::new(settings(2), &good(3)).await;
    remove(&world, world.aggregates[0], None).await;
    tracker::pass(&world.d).await;
    let plan = plan::plan(&world.d).await.unwrap();
    assert!(plan.deals.is_empty() && plan.unplaced.is_empty(), "{plan:?}");
    assert!(world.all_are(AggregateState::Packed).await, "a plan changes nothing");
    world.rounds(PAID + 6).await;
    assert!(world.deals().await.is_empty() && world.chain.state().messages.is_empty());
    assert!(world.all_are(AggregateState::Lost).await);
    assert_eq!((world.events("aggregate.unwanted").await, world.events("aggregate.lost").await), (1, 0));
    assert!(!world.records.is_aggregate_here(world.aggregates[0]).await.unwrap(), "its blocks are let go of");
    world.sound().await;
}

/// A deal that waited for escrow when the last pin went was signed once escrow was there.
#[tokio::test]
async fn what_nobody_has_seen_is_withdrawn_when_the_last_pin_goes() {
    let world = World::new(settings(2), &good(3)).await;
    world.chain.state().wallet = 0;
    world.round().await;
    assert_eq!(world.in_state(DealState::Chosen).await.len(), 2);
    remove(&world, world.aggregates[0], None).await;
    world.chain.state().escrow = 10 * COST;
    world.rounds(PAID + 6).await;
    assert_eq!(world.signatures(), 0);
    for deal in world.deals().await {
        assert_eq!(deal.state, DealState::Failed);
        assert_eq!(deal.error.unwrap().code, floe_core::FailureCode::Unwanted);
    }
    assert!(world.all_are(AggregateState::Lost).await);
    assert!(world.records.totals().await.unwrap().lifetime.committed().unwrap().is_zero());
    world.sound().await;
}

/// What providers have goes on to its end; a replica that is lost is not bought again.
#[tokio::test]
async fn a_lost_replica_of_what_nobody_pins_is_not_replaced() {
    let mut world =
        World::new(settings(2), &[Script::LosesSectorAfter(200), Script::Good, Script::Good]).await;
    let listed = Policy { providers: vec![ActorId::new(1_000), ActorId::new(1_001)], ..policy(2) };
    world.d.settings.policies.insert("default".into(), listed);
    world.until(AggregateState::Stored, 60).await;
    world.d.settings.policies.insert("default".into(), policy(2));
    remove(&world, world.aggregates[0], None).await;
    for _ in 0..45 {
        world.pass_time(10);
        world.passes().await;
    }
    assert_eq!(world.in_state(DealState::Terminated).await.len(), 1);
    assert_eq!((world.deals().await.len(), world.signatures()), (2, 2));
    assert!(world.all_are(AggregateState::Degraded).await, "one replica is there");
    assert_eq!(world.in_state(DealState::Active).await.len(), 1);
    assert_eq!(world.events("aggregate.unwanted").await, 0);
    // That ends too, and then nothing is left.
    let end = world.in_state(DealState::Active).await[0].end.get();
    world.records.switch_spending(false, "the operator").await.unwrap();
    world.chain.state().head = end + 10;
    world.rounds(40).await;
    world.records.switch_spending(true, "the operator").await.unwrap();
    world.rounds(40).await;
    assert!(world.all_are(AggregateState::Lost).await, "{:#?}", world.deals().await);
    assert_eq!((world.signatures(), world.events("aggregate.unwanted").await), (2, 1));
}

/// One pin of many keeps the piece, and an account that is suspended keeps its data.
#[tokio::test]
async fn one_pin_that_is_left_keeps_the_piece_also_of_a_suspended_account() {
    let mut world = World::empty(settings(2), &good(3)).await;
    let id = world.pack(2, &["a", "b"]).await;
    let stays = world.account("b").await;
    remove(&world, id, Some(stays)).await;
    world.records.suspend_account("b", true).await.unwrap();
    world.until(AggregateState::Stored, 60).await;
    world.stored_and_paid_once().await;
}

/// T43: restored rows may have lost a pin or a deal: nothing is given up before that is settled.
#[tokio::test]
async fn t43_nothing_is_given_up_while_restored_rows_wait() {
    let world = World::new(settings(1), &good(1)).await;
    remove(&world, world.aggregates[0], None).await;
    world.records.mark_restored("a backup was restored").await.unwrap();
    world.rounds(10).await;
    assert!(world.all_are(AggregateState::Packed).await);
    world.records.restore_settled("the operator").await.unwrap();
    world.rounds(2).await;
    assert!(world.all_are(AggregateState::Lost).await);
}
