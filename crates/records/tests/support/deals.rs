//! Deals: an aggregate that is packed, and attempts for it.

use floe_core::cold::{DealUuid, SignedDeal};
use floe_core::spending::Caps;
use floe_core::{AccountId, ActorId, AttoFil, Epoch, Multihash, PaddedSize, PieceCid, PolicyChoice};
use floe_records::cold::{LotPart, NewAggregate, NewDeal, NewSegment, Settled};
use floe_records::{DagOutcome, PinSpec, Records};
use uuid::Uuid;

use super::*;

/// Epochs that a deal runs.
pub(crate) const TERM: i64 = 1_000;

/// Caps that nothing here comes near.
pub(crate) fn wide_caps() -> Caps {
    let most = AttoFil::new(1 << 60);
    Caps { deal: most, account_day: most, day: most, lifetime: most }
}

/// The bytes that are signed for a deal.
pub(crate) fn signed(deal: DealUuid) -> SignedDeal {
    let mut digest = [0; 32];
    digest[..16].copy_from_slice(deal.0.as_bytes());
    let cid = Cid::new_v1(0x71, Multihash::wrap(0x12, &digest).unwrap());
    SignedDeal { bytes: deal.0.as_bytes().to_vec(), signed_cid: cid }
}

/// An aggregate of one pin of two accounts, in rows that may spend.
pub(crate) async fn packed(records: &Records) -> Uuid {
    records.begin_ledger_epoch().await.unwrap();
    let bob = records.create_account("bob", None, None).await.unwrap().id;
    for (n, account) in [(1, default_account(records).await), (2, bob)] {
        let policy = PolicyChoice { name: "p".into(), replicas: 3 };
        records.add_pins(account, vec![PinSpec { policy, ..spec(n) }], false, None).await.unwrap();
    }
    for dag in records.claim_dags(9, 9).await.unwrap() {
        records.finish_dag(dag.dag, DagOutcome::Complete { blocks: 1, bytes: 10 }).await.unwrap();
    }
    // Pins of DAGs that were complete are settled behind the answer.
    barrier(records).await;
    barrier(records).await;
    for lot in records.lots_to_measure(9).await.unwrap() {
        let part = LotPart { part: 0, first: 0, sections: 1, bytes: 10 };
        records.lot_measured(lot.id, 1 << 30, vec![part]).await.unwrap();
    }
    let lots = records.lots("p", 3, 9).await.unwrap();
    let size = PaddedSize::from_bytes(1 << 20).unwrap();
    let segments = lots.iter().map(|(lot, _)| NewSegment { lot: lot.id, part: lot.todo[0], size }).collect();
    let new = NewAggregate { policy: "p".into(), replicas: 3, align: true, least: size, segments };
    let id = records.begin_aggregate(new).await.unwrap().unwrap();
    let piece = PieceCid::from_commitment([1; 32]).unwrap();
    let settled = Settled { piece, size, car_bytes: size.unpadded_bytes(), root: root(9), fillers: vec![] };
    while records.aggregate_packed(id, settled.clone()).await.is_err() {
        barrier(records).await;
    }
    id
}

/// An attempt for a slot of it; the first account has three quarters of the piece.
pub(crate) fn attempt(
    aggregate: Uuid,
    slot: u32,
    provider: u64,
    price: u128,
    accounts: &[AccountId],
) -> NewDeal {
    NewDeal {
        wallet: "f1w".into(),
        aggregate,
        slot,
        provider: ActorId::new(provider),
        owner: ActorId::new(provider + 50),
        policy: "p".into(),
        piece: PieceCid::from_commitment([1; 32]).unwrap(),
        size: PaddedSize::from_bytes(1 << 20).unwrap(),
        car_bytes: 100,
        root: root(9),
        ipni: true,
        price: AttoFil::new(price),
        collateral: AttoFil::new(1),
        head: Epoch::new(0),
        start: Epoch::new(10),
        end: Epoch::new(10 + TERM),
        weights: accounts.iter().zip([3, 1]).map(|(account, weight)| (*account, weight)).collect(),
    }
}
