//! What waits for a piece and what is in each: who joins whom, what is protected and for how long.
#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

mod support;

use floe_core::{
    AccountId, AggregateEvent as E, AggregateState as S, PaddedSize, PieceCid, PolicyChoice, RequestId,
};
use floe_records::cold::{Lot, LotPart, NewAggregate, NewSegment, SectionRow, SegmentPlace, Settled};
use floe_records::{Error, PinSpec, Records};
use support::*;
use uuid::Uuid;

fn gold(n: u32) -> PinSpec {
    PinSpec { policy: PolicyChoice { name: "gold".to_owned(), replicas: 3 }, ..spec(n) }
}

/// A pin that asks for three replicas, pinned.
async fn pinned(records: &Records, account: AccountId, n: u32) -> RequestId {
    let row = add_one(records, account, gold(n)).await;
    for dag in records.claim_dags(9, 9).await.unwrap() {
        complete(records, &dag, 10).await;
    }
    barrier(records).await;
    row.id
}

fn part(n: u32, of: u32) -> LotPart {
    assert!(n < of);
    LotPart { part: n, first: 2 * u64::from(n), sections: 2, bytes: 100 }
}

async fn measured(records: &Records, parts: u32) -> Vec<Lot> {
    for lot in records.lots_to_measure(999).await.unwrap() {
        records.lot_measured(lot.id, 1_000, (0..parts).map(|n| part(n, parts)).collect()).await.unwrap();
    }
    let lots = records.lots("gold", 3, 999).await.unwrap();
    lots.into_iter().map(|(lot, _)| lot).collect()
}

fn size() -> PaddedSize {
    PaddedSize::from_bytes(256).unwrap()
}

/// An aggregate with the first part that each of these has to do.
async fn begin(records: &Records, lots: &[Lot]) -> Uuid {
    let segment = |lot: &Lot| NewSegment { lot: lot.id, part: lot.todo[0], size: size() };
    let segments = lots.iter().map(segment).collect();
    let new = NewAggregate {
        policy: "gold".to_owned(),
        replicas: 3,
        align: true,
        least: PaddedSize::MIN,
        segments,
    };
    let id = records.begin_aggregate(new).await.unwrap().unwrap();
    barrier(records).await;
    id
}

async fn pack(records: &Records, id: Uuid) {
    let settled = Settled {
        piece: PieceCid::from_commitment([1; 32]).unwrap(),
        size: PaddedSize::from_bytes(1_024).unwrap(),
        car_bytes: 1_016,
        root: root(77),
        fillers: vec![1, 2, 3],
    };
    records.aggregate_packed(id, settled.clone()).await.unwrap();
    // Said twice, because the first reply was lost.
    records.aggregate_packed(id, settled).await.unwrap();
    let row = records.aggregate(id).await.unwrap();
    assert_eq!(
        (row.state, row.car_bytes, row.root, row.fillers),
        (S::Packed, 1_016, Some(root(77)), vec![1, 2, 3])
    );
    assert!(row.packed.is_some());
}

async fn pins(records: &Records, id: Uuid) -> Vec<RequestId> {
    let mut pins: Vec<_> =
        records.aggregate_pins(id).await.unwrap().into_iter().map(|held| held.pin).collect();
    pins.sort();
    pins
}

async fn released(records: &Records) -> usize {
    barrier(records).await;
    records.queued_releases().await.unwrap().len()
}

#[tokio::test]
async fn pins_of_one_root_share_a_lot_and_those_that_come_later_its_aggregate() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let (first, second) = (pinned(&records, account, 1).await, pinned(&records, account, 1).await);
    let other = pinned(&records, account, 2).await;
    assert_eq!(records.cold_groups().await.unwrap(), [("gold".to_owned(), 3)]);
    let lots = measured(&records, 1).await;
    assert_eq!(lots.len(), 2);
    let lot = records.lot_of_pin(first).await.unwrap().unwrap();
    assert_eq!(records.lot_of_pin(second).await.unwrap().unwrap().id, lot.id);
    let id = begin(&records, &lots).await;
    let third = pinned(&records, account, 1).await;
    let mut all = vec![first, second, third, other];
    all.sort();
    assert_eq!(pins(&records, id).await, all);
    for pin in all {
        assert_eq!(records.aggregates_of_pin(pin).await.unwrap(), [id]);
        assert!(records.lot_of_pin(pin).await.unwrap().is_none());
    }
    assert!(records.cold_groups().await.unwrap().is_empty());
    pack(&records, id).await;
    // Another policy, or another number of replicas, is another aggregate.
    let two = PolicyChoice { name: "gold".to_owned(), replicas: 2 };
    let row = add_one(&records, account, PinSpec { policy: two, ..spec(1) }).await;
    barrier(&records).await;
    assert!(records.lot_of_pin(row.id).await.unwrap().is_some());
    // What is lost takes nobody in.
    records.step_aggregate(id, E::Placing).await.unwrap();
    records.step_aggregate(id, E::NoneLeft).await.unwrap();
    let after = pinned(&records, account, 1).await;
    assert!(records.lot_of_pin(after).await.unwrap().is_some());
    assert_sound(&records).await;
}

#[tokio::test]
async fn a_pin_that_goes_leaves_its_lot_and_the_last_one_takes_it_along() {
    let world = World::new();
    let records = world.open().await;
    let (account, bob) =
        (default_account(&records).await, records.create_account("bob", None, None).await.unwrap().id);
    let (first, second) = (pinned(&records, account, 1).await, pinned(&records, bob, 1).await);
    let lot = records.lot_of_pin(first).await.unwrap().unwrap();
    assert_eq!(lot.account, account);
    records.remove_pin(account, first).await.unwrap();
    let left = records.lot_of_pin(second).await.unwrap().unwrap();
    assert_eq!((left.id, left.account), (lot.id, bob), "fairness counts for who is left");
    // A replaced pin waits no longer either.
    records.replace_pin(bob, second, spec(9), false, None).await.unwrap();
    assert!(records.lots_to_measure(9).await.unwrap().is_empty());
    assert!(records.cold_groups().await.unwrap().is_empty());
    assert_sound(&records).await;
}

#[tokio::test]
async fn an_aggregate_holds_its_dags_until_it_is_stored_however_many() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let mut all = Vec::new();
    // More than one transaction lets go of.
    for n in 0..150 {
        all.push(pinned(&records, account, n).await);
    }
    let id = begin(&records, &measured(&records, 1).await).await;
    for pin in &all {
        records.remove_pin(account, *pin).await.unwrap();
    }
    // Whoever was told and whoever was removed before: each account bears its part.
    assert_eq!(pins(&records, id).await.len(), 150);
    assert_eq!(released(&records).await, 0);
    pack(&records, id).await;
    records.step_aggregate(id, E::Placing).await.unwrap();
    assert_eq!(released(&records).await, 0);
    assert_sound(&records).await;
    records.step_aggregate(id, E::Enough).await.unwrap();
    // The writer goes on by itself: nobody else has to write.
    for _ in 0..1_000 {
        if records.queued_releases().await.unwrap().len() == 150 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(released(&records).await, 150);
    assert_sound(&records).await;
    // Degraded, and nothing of it is here: nothing to hold.
    records.step_aggregate(id, E::TooFew).await.unwrap();
    assert!(matches!(records.step_aggregate(id, E::Packed).await, Err(Error::Sql(_))));
    assert_eq!(records.aggregate(id).await.unwrap().state, S::Degraded);
    assert_sound(&records).await;
}

#[tokio::test]
async fn a_segment_that_is_given_back_waits_again_for_the_pins_that_are_left() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let (gone, stays) = (pinned(&records, account, 1).await, pinned(&records, account, 1).await);
    let other = pinned(&records, account, 2).await;
    let lots = measured(&records, 1).await;
    let id = begin(&records, &lots).await;
    let segments = records.segments(id).await.unwrap();
    let of = |n: u32| segments.iter().find(|segment| segment.root == root(n)).unwrap().n;
    let cid = root(1);
    records.put_sections(id, (of(1), 0), 0, vec![SectionRow { cid, data_bytes: 4 }]).await.unwrap();
    records.remove_pin(account, gone).await.unwrap();
    let due = floe_core::Timestamp::from_millis(START + 5_000);
    assert!(records.give_back_segment(id, of(1), "a block is missing".into(), due).await.unwrap());
    let lot = records.lot_of_pin(stays).await.unwrap().unwrap();
    assert_eq!(lot.reason.as_deref(), Some("a block is missing"));
    assert!(records.aggregates_of_pin(stays).await.unwrap().is_empty());
    assert!(records.lot_of_pin(gone).await.unwrap().is_none());
    assert!(records.sections(id, of(1), 0).await.unwrap().is_none(), "nothing of it is left");
    assert_eq!(pins(&records, id).await, [other]);
    // Not before its time, and then measured anew.
    assert!(records.lots_to_measure(9).await.unwrap().is_empty());
    world.clock.advance(std::time::Duration::from_secs(6));
    assert_eq!(records.lots_to_measure(9).await.unwrap().len(), 1);
    assert_eq!(measured(&records, 1).await.len(), 1);
    // With its last segment the aggregate goes.
    assert!(!records.give_back_segment(id, of(2), "so is one of this".into(), due).await.unwrap());
    assert!(matches!(records.aggregate(id).await, Err(Error::NotFound)));
    records.remove_pin(account, other).await.unwrap();
    records.remove_pin(account, stays).await.unwrap();
    assert_eq!(released(&records).await, 2, "nothing holds them any more");
    assert_sound(&records).await;
}

#[tokio::test]
async fn parts_of_a_dag_go_one_after_the_other_and_a_late_pin_into_all_of_them() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let pin = pinned(&records, account, 1).await;
    let lots = measured(&records, 3).await;
    let first = begin(&records, &lots).await;
    assert_eq!(pins(&records, first).await, [pin], "told of the part at once");
    let late = pinned(&records, account, 1).await;
    assert_eq!(pins(&records, first).await.len(), 2);
    assert!(records.lot_of_pin(late).await.unwrap().is_some(), "the rest is still to come");
    // A lot of which a part is in an aggregate is not cut anew.
    records.measure_again(7).await.unwrap();
    assert!(records.lots_to_measure(9).await.unwrap().is_empty());
    let mut ids = vec![first];
    for _ in 0..2 {
        let lots: Vec<Lot> =
            records.lots("gold", 3, 9).await.unwrap().into_iter().map(|(lot, _)| lot).collect();
        ids.push(begin(&records, &lots).await);
    }
    assert!(records.lots("gold", 3, 9).await.unwrap().is_empty());
    for id in &ids {
        assert_eq!(pins(&records, *id).await.len(), 2);
    }
    ids.sort();
    assert_eq!(records.aggregates_of_pin(late).await.unwrap(), ids);
    let last = pinned(&records, account, 1).await;
    assert_eq!(records.aggregates_of_pin(last).await.unwrap(), ids);
    assert_sound(&records).await;
}

#[tokio::test]
async fn what_was_planned_and_is_not_so_any_more_is_left_out() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let (stays, goes) = (pinned(&records, account, 1).await, pinned(&records, account, 2).await);
    let lots = measured(&records, 1).await;
    records.remove_pin(account, goes).await.unwrap();
    let id = begin(&records, &lots).await;
    assert_eq!(pins(&records, id).await, [stays]);
    let segment = NewSegment { lot: lots[0].id, part: part(0, 1), size: size() };
    let new = NewAggregate {
        policy: "gold".to_owned(),
        replicas: 3,
        align: true,
        least: PaddedSize::MIN,
        segments: vec![segment],
    };
    assert_eq!(records.begin_aggregate(new).await.unwrap(), None, "taken already");
    assert_sound(&records).await;
}

/// The sections of some thousand blocks, found again by each of their hashes, also under another codec.
#[tokio::test]
async fn the_cold_index_finds_each_block() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    pinned(&records, account, 1).await;
    let id = begin(&records, &measured(&records, 1).await).await;
    let n = records.segments(id).await.unwrap()[0].n;
    let section = |n: u32| SectionRow { cid: root(n), data_bytes: 100 + n % 50 };
    let (mut at, mut offsets) = (0, Vec::new());
    for chunk in 0..3 {
        let from = at;
        let sections: Vec<SectionRow> = (1_000 * chunk..1_000 * (chunk + 1)).map(section).collect();
        for section in &sections {
            // A length of two bytes, and a CID of 36.
            offsets.push(at + 38);
            at += 38 + u64::from(section.data_bytes);
        }
        records.put_sections(id, (n, chunk), from, sections).await.unwrap();
    }
    assert!(records.cold_places(root(5).hash(), 9).await.unwrap().is_empty(), "it has no place yet");
    let place = SegmentPlace {
        n,
        start: 500,
        place: 0,
        size: size(),
        commitment: PieceCid::from_commitment([2; 32]),
    };
    records.place_segments(id, vec![place]).await.unwrap();
    pack(&records, id).await;
    for n in [0, 999, 1_000, 2_500, 2_999] {
        let places = records.cold_places(root(n).hash(), 9).await.unwrap();
        let found: Vec<_> = places.iter().map(|p| (p.aggregate, p.cid, p.offset, p.length)).collect();
        assert_eq!(found, [(id, root(n), 500 + offsets[n as usize], 100 + n % 50)]);
    }
    assert!(records.cold_places(root(3_000).hash(), 9).await.unwrap().is_empty());
    let closed = records.put_sections(id, (n, 3), at, vec![section(1)]).await;
    assert!(matches!(closed, Err(Error::Conflict(_))), "what is packed stays as it is");
    assert!(matches!(records.clear_sections(id, n).await, Err(Error::Conflict(_))));
}

/// A bit that turns in a row is found where it is read, and named.
#[tokio::test]
async fn r04_damaged_rows_of_aggregates_are_not_believed() {
    use sqlx::Connection as _;
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let pin = pinned(&records, account, 1).await;
    let id = begin(&records, &measured(&records, 1).await).await;
    let n = records.segments(id).await.unwrap()[0].n;
    records.put_sections(id, (n, 0), 0, vec![SectionRow { cid: root(5), data_bytes: 4 }]).await.unwrap();
    let mut conn =
        sqlx::SqliteConnection::connect(&format!("sqlite:{}", world.path().display())).await.unwrap();
    for (damage, mend) in [
        ("UPDATE aggregates SET replicas = 2", "UPDATE aggregates SET replicas = 3"),
        (
            "UPDATE aggregate_segments SET bytes = bytes + 1",
            "UPDATE aggregate_segments SET bytes = bytes - 1",
        ),
        ("UPDATE aggregate_pins SET account = 9", "UPDATE aggregate_pins SET account = 1"),
        ("UPDATE aggregate_sections SET at = 1", "UPDATE aggregate_sections SET at = 0"),
    ] {
        sqlx::query(damage).execute(&mut conn).await.unwrap();
        let damaged = |result: Result<(), Error>| matches!(result, Err(Error::Damaged(_)));
        let found = damaged(records.aggregate(id).await.map(drop))
            || damaged(records.aggregate_pins(id).await.map(drop))
            || damaged(records.sections(id, n, 0).await.map(drop));
        assert!(found, "{damage}");
        sqlx::query(mend).execute(&mut conn).await.unwrap();
        records.aggregate(id).await.unwrap();
        assert_eq!(pins(&records, id).await, [pin]);
        records.sections(id, n, 0).await.unwrap();
    }
}

/// An aggregate whose pins were all removed kept its blocks and had all its deals bought. It is given up, and a pin that
/// comes later is packed anew.
#[tokio::test]
async fn an_aggregate_that_nobody_pins_is_given_up() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let (first, second) = (pinned(&records, account, 1).await, pinned(&records, account, 2).await);
    let id = begin(&records, &measured(&records, 1).await).await;
    pack(&records, id).await;
    records.remove_pin(account, first).await.unwrap();
    assert!(records.has_live_pins(id).await.unwrap());
    assert!(!records.aggregate_unwanted(id).await.unwrap(), "one is left");
    // Who joins it keeps it.
    let joins = pinned(&records, account, 1).await;
    records.remove_pin(account, second).await.unwrap();
    assert!(!records.aggregate_unwanted(id).await.unwrap());
    assert_eq!(released(&records).await, 0);
    records.remove_pin(account, joins).await.unwrap();
    assert!(!records.has_live_pins(id).await.unwrap());
    assert!(records.aggregate_unwanted(id).await.unwrap());
    assert!(!records.aggregate_unwanted(id).await.unwrap(), "once");
    assert_eq!(records.aggregate(id).await.unwrap().state, S::Lost);
    assert_eq!(released(&records).await, 2);
    let told = records.events_after(0, 99).await.unwrap();
    assert_eq!(told.iter().filter(|event| event.kind == "aggregate.unwanted").count(), 1);
    let late = pinned(&records, account, 1).await;
    assert!(records.lot_of_pin(late).await.unwrap().is_some(), "it waits for another");
    assert_sound(&records).await;
}

/// A pin of a DAG in parts waits for the rest: what is in pieces already is wanted before it is told of them.
#[tokio::test]
async fn a_pin_that_waits_for_the_rest_wants_the_first_part() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    let pin = pinned(&records, account, 1).await;
    let id = begin(&records, &measured(&records, 2).await).await;
    pack(&records, id).await;
    assert!(records.has_live_pins(id).await.unwrap());
    records.remove_pin(account, pin).await.unwrap();
    assert!(!records.has_live_pins(id).await.unwrap());
}

/// The event was illegal from `packed`: an aggregate whose blocks were gone before its first deal was tried at each pass, and
/// never given up.
#[tokio::test]
async fn a_packed_aggregate_without_its_blocks_is_lost() {
    let world = World::new();
    let records = world.open().await;
    let account = default_account(&records).await;
    pinned(&records, account, 1).await;
    let id = begin(&records, &measured(&records, 1).await).await;
    records.aggregate_lost(id).await.unwrap();
    assert_eq!(records.aggregate(id).await.unwrap().state, S::Open, "it is packed anew");
    pack(&records, id).await;
    records.aggregate_lost(id).await.unwrap();
    assert_eq!(records.aggregate(id).await.unwrap().state, S::Lost);
    assert_sound(&records).await;
}
