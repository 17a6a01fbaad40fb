//! What owners see of their pins in the cold half, and how many statements that takes.

mod support;

use std::time::Duration;

use floe_core::{AccountId, AggregateState, RequestId};
use floe_records::cold::DealFilter;
use support::cold::{aggregates, chosen, packed, piece, pinned};
use support::life::Statements;
use support::*;

/// The story: `GET /pins` is asked for forty times by one page of a web UI. It must not pay for what a pin does not have,
/// nor once for each pin that has it.
#[tokio::test]
async fn a_page_is_one_look_and_one_without_replicas_none() {
    let statements = Statements::collect();
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(pinned(&records, account, n).await.id);
    }
    let of = async |ids: &[RequestId]| {
        let before = statements.count();
        let seen = records.cold_of_pins(ids).await.unwrap();
        (statements.count() - before, seen.len())
    };
    assert_eq!(of(&[]).await, (0, 0));
    assert_eq!(of(&ids).await, (1, 0), "in no aggregate yet: they wait");
    for (n, aggregate) in aggregates(&records, 2).await.into_iter().enumerate() {
        packed(&records, aggregate, n as u8 + 1).await;
        chosen(&records, aggregate, n as u8 + 1, 0, 1_000, account).await;
    }
    assert_eq!(of(&ids).await, (1, 20));
    assert_eq!(of(&ids[..1]).await, (1, 1));
}

#[tokio::test]
async fn a_pin_in_several_pieces_shows_them_all_and_every_attempt_for_them() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let pin = pinned(&records, account, 1).await.id;
    let [first, second] = aggregates(&records, 2).await[..] else { panic!("two parts") };
    packed(&records, first, 1).await;
    let seen = records.cold_of_pins(&[pin]).await.unwrap().remove(&pin).unwrap();
    let states: Vec<_> = seen.parts.iter().map(|part| (part.aggregate, part.state, part.piece)).collect();
    assert_eq!(
        states,
        [(first, AggregateState::Packed, Some(piece(1))), (second, AggregateState::Open, None)]
    );
    assert_eq!((seen.waits, seen.state()), (false, AggregateState::Open), "the worst of both");

    packed(&records, second, 2).await;
    let mut deals = Vec::new();
    for (aggregate, n, slot, provider) in [(first, 1, 0, 1_000), (second, 2, 0, 1_001), (first, 1, 1, 1_002)]
    {
        world.clock.advance(Duration::from_secs(1));
        deals.push(chosen(&records, aggregate, n, slot, provider, account).await);
    }
    let seen = records.cold_of_pins(&[pin]).await.unwrap().remove(&pin).unwrap();
    assert_eq!(seen.state(), AggregateState::Placing);
    assert_eq!(seen.parts[0].deals, [deals[2].clone(), deals[0].clone()], "the newest first");
    assert_eq!(seen.parts[1].deals, [deals[1].clone()]);
}

/// Two accounts share an aggregate; each sees it, and of its pins its own.
#[tokio::test]
async fn t25_owners_see_deals_of_their_own_pins() {
    let world = World::new();
    let records = world.open().await;
    let alice = default_account(&records).await;
    let bob = records.create_account("bob", None, None).await.unwrap().id;
    let carol = records.create_account("carol", None, None).await.unwrap().id;
    let (of_alice, of_bob) = (pinned(&records, alice, 1).await.id, pinned(&records, bob, 2).await.id);
    let aggregate = aggregates(&records, 1).await[0];
    packed(&records, aggregate, 1).await;
    let deal = chosen(&records, aggregate, 1, 0, 1_000, alice).await;

    let pins = async |account| records.pins_in_aggregate(aggregate, account, 9).await.unwrap();
    // Both were made in one millisecond.
    assert_eq!(pins(None).await, [of_alice.min(of_bob), of_alice.max(of_bob)]);
    assert_eq!(pins(Some(alice)).await, [of_alice]);
    assert_eq!(pins(Some(bob)).await, [of_bob]);
    assert_eq!(pins(Some(carol)).await, []);
    assert_eq!(records.pins_in_aggregate(aggregate, None, 1).await.unwrap().len(), 1);
    let deals = async |account: AccountId| {
        let filter = DealFilter { account: Some(account), most: 9, ..DealFilter::default() };
        records.deals(filter).await.unwrap()
    };
    assert_eq!(deals(alice).await, std::slice::from_ref(&deal));
    assert_eq!(deals(bob).await, std::slice::from_ref(&deal));
    assert_eq!(deals(carol).await, []);
    for (pin, owner) in [(of_alice, Some(alice)), (of_bob, Some(bob)), (RequestId(deal.uuid.0), None)] {
        assert_eq!(records.owner_in_aggregates(pin).await.unwrap(), owner);
    }
    // A pin that was removed is paid for all the same.
    records.remove_pin(bob, of_bob).await.unwrap();
    assert_eq!((pins(Some(bob)).await, deals(bob).await.len()), (vec![of_bob], 1));
    assert_eq!(records.aggregate_counts().await.unwrap()[&AggregateState::Placing], 1);
}
