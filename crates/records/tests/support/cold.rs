//! Pins on their way to Filecoin, by the calls that the workers make.

use std::collections::BTreeMap;

use floe_core::spending::Caps;
use floe_core::{AccountId, ActorId, AttoFil, Epoch, PaddedSize, PieceCid, PolicyChoice};
use floe_records::cold::{Chosen, DealRow, LotPart, NewAggregate, NewDeal, NewSegment, Settled};
use floe_records::{PinRow, PinSpec, Records};
use uuid::Uuid;

use super::{add_one, barrier, claim_one, complete, root, spec};

/// A pinned pin that asks for three replicas under the policy `gold`.
pub(crate) async fn pinned(records: &Records, account: AccountId, n: u32) -> PinRow {
    let policy = PolicyChoice { name: "gold".to_owned(), replicas: 3 };
    let row = add_one(records, account, PinSpec { policy, ..spec(n) }).await;
    let dag = claim_one(records).await;
    complete(records, &dag, 100).await;
    row
}

/// All that waits, each DAG cut into so many parts, and one part of each in an aggregate of its own: the aggregates.
pub(crate) async fn aggregates(records: &Records, parts: u32) -> Vec<Uuid> {
    for lot in records.lots_to_measure(99).await.unwrap() {
        let part = |part: u32| LotPart { part, first: u64::from(part), sections: 1, bytes: 100 };
        records.lot_measured(lot.id, 1 << 20, (0..parts).map(part).collect()).await.unwrap();
    }
    let mut made = Vec::new();
    for _ in 0..parts {
        let lots = records.lots("gold", 3, 99).await.unwrap();
        let segment = |lot: &floe_records::cold::Lot| NewSegment {
            lot: lot.id,
            part: lot.todo[0],
            size: PaddedSize::MIN,
        };
        let new = NewAggregate {
            policy: "gold".to_owned(),
            replicas: 3,
            align: true,
            least: PaddedSize::MIN,
            segments: lots.iter().map(|(lot, _)| segment(lot)).collect(),
        };
        made.push(records.begin_aggregate(new).await.unwrap().unwrap());
    }
    barrier(records).await;
    made
}

/// The piece of this number.
pub(crate) fn piece(n: u8) -> PieceCid {
    PieceCid::from_commitment([n; 32]).unwrap()
}

pub(crate) async fn packed(records: &Records, aggregate: Uuid, n: u8) {
    let settled = Settled {
        piece: piece(n),
        size: PaddedSize::from_bytes(1 << 20).unwrap(),
        car_bytes: 1_000,
        root: root(900 + u32::from(n)),
        fillers: Vec::new(),
    };
    // Its pins are told behind the answer, some in each pass.
    while let Err(error) = records.aggregate_packed(aggregate, settled.clone()).await {
        assert!(matches!(error, floe_records::Error::Busy { .. }), "{error}");
        barrier(records).await;
    }
}

/// An attempt for a slot of a packed aggregate, of which the account bears all.
pub(crate) async fn chosen(
    records: &Records,
    aggregate: Uuid,
    n: u8,
    slot: u32,
    provider: u64,
    account: AccountId,
) -> DealRow {
    let much = AttoFil::new(1 << 100);
    let caps = Caps { deal: much, account_day: much, day: much, lifetime: much };
    let new = NewDeal {
        wallet: "f1wallet".to_owned(),
        aggregate,
        slot,
        provider: ActorId::new(provider),
        owner: ActorId::new(provider + 10_000),
        policy: "gold".to_owned(),
        piece: piece(n),
        size: PaddedSize::from_bytes(1 << 20).unwrap(),
        car_bytes: 1_000,
        root: root(900 + u32::from(n)),
        ipni: true,
        price: AttoFil::new(2),
        collateral: AttoFil::ZERO,
        head: Epoch::new(100),
        start: Epoch::new(1_000),
        end: Epoch::new(601_000),
        weights: BTreeMap::from([(account, 1)]),
    };
    records.begin_ledger_epoch().await.unwrap();
    match records.choose_deal(new, &caps).await.unwrap() {
        Chosen::Deal(deal) => *deal,
        other => panic!("{other:?}"),
    }
}
