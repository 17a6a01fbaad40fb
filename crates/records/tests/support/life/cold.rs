//! The cold half's part of a life: each statement about deals, money, providers, events and facts once.

use std::collections::BTreeMap;

use floe_core::cold::{ChainProvider, DealOnChain, DealUuid, Fault, OwnDeal, ProviderWord};
use floe_core::place::Ask;
use floe_core::standing::Outcome;
use floe_core::{ActorId, AttoFil, DealState, Epoch, FailureCode, PaddedSize, PieceCid, Timestamp};
use floe_records::Records;
use floe_records::cold::{Chosen, CostsBy, DealFilter, NewProvider, OnChain, Reply};
use uuid::Uuid;

use super::super::deals::{attempt, packed, signed, wide_caps};
use super::*;

pub(super) async fn lived(records: &Records) {
    facts(records).await;
    providers(records).await;
    let aggregate = packed(records).await;
    deals(records, aggregate).await;
    money(records).await;
    for (by, after) in [(CostsBy::Account, None), (CostsBy::Month, Some(1))] {
        records.costs(by, after, 10).await.unwrap();
    }
    assert!(!records.events_after(0, 10).await.unwrap().is_empty());
    assert!(records.last_event().await.unwrap() > 0);
}

async fn facts(records: &Records) {
    records.note_head(Epoch::new(5)).await.unwrap();
    assert_eq!(records.highest_head().await.unwrap(), Some(Epoch::new(5)));
    records.scanned_to(Epoch::new(3)).await.unwrap();
    records.switch_spending(true, "the operator").await.unwrap();
    records.begin_ledger_epoch().await.unwrap();
    records.mark_restored("a test").await.unwrap();
    records.restored_until(Epoch::new(9)).await.unwrap();
    records.restore_settled("the operator").await.unwrap();
    let open = records.begin_top_up(AttoFil::new(5)).await.unwrap();
    assert_eq!(records.open_top_up().await.unwrap(), Some(open));
    records.end_top_up(open.number).await.unwrap();
    records.note_event("test", "subject", serde_json::json!({})).await.unwrap();
}

async fn providers(records: &Records) {
    let id = ActorId::new(1_000);
    let new = NewProvider { id, source: "test".into(), addresses: vec![], regions: vec!["eu".into()] };
    records.put_provider(new).await.unwrap();
    let chain = ChainProvider { owner: id, peer_id: None, addresses: vec![], sector_bytes: 1 << 35 };
    records.note_chain(id, &chain).await.unwrap();
    let size = PaddedSize::MIN;
    let ask = Ask { price: AttoFil::new(1), min_size: size, max_size: size, expires: Epoch::new(9) };
    records.note_ask(id, ask).await.unwrap();
    let fault = Fault::new(FailureCode::SpDial, "away");
    records.note_outcome(id, Outcome::Unreachable, Epoch::new(1), Some(fault)).await.unwrap();
    records.suspend_provider(id, Some("a test")).await.unwrap();
    records.suspend_provider(id, None).await.unwrap();
    let row = records.provider(id).await.unwrap();
    assert_eq!((row.chain.unwrap().0, row.ask.unwrap().0), (chain, ask));
    assert_eq!(records.providers().await.unwrap().len(), 1);
}

/// One deal through each state, and all ways to look for them.
async fn deals(records: &Records, aggregate: Uuid) {
    let accounts: Vec<_> = records.accounts().await.unwrap().iter().map(|a| a.id).take(2).collect();
    let (now, epoch) = (Timestamp::from_millis(START), Epoch::new(12));
    let choose = async |slot| match records
        .choose_deal(attempt(aggregate, slot, 1_000, 7, &accounts), &wide_caps())
        .await
    {
        Ok(Chosen::Deal(row)) => row.uuid,
        other => panic!("{other:?}"),
    };
    let fault = || Fault::new(FailureCode::RejectedBackpressure, "busy");
    let withdrawn = choose(0).await;
    records.withdraw_deal(withdrawn, fault()).await.unwrap();
    records.forgive_deal(withdrawn).await.unwrap();
    let send = async |deal: DealUuid| {
        records.store_signed(deal, signed(deal)).await.unwrap();
        records.begin_sending(deal, epoch, now).await.unwrap();
    };
    let (refused, active, failed) = (choose(0).await, choose(1).await, choose(2).await);
    for deal in [refused, active, failed] {
        send(deal).await;
    }
    records.replies_lost().await.unwrap();
    records.answered(refused, Reply::Refused(fault()), epoch, now).await.unwrap();
    records.answered(active, Reply::Accepted, epoch, now).await.unwrap();
    let word = ProviderWord::Known { status: "Sealing".into(), error: None, deal_id: Some(3), received: 9 };
    records.note_word(active, word, now).await.unwrap();
    records.note_pull(active, 10, true).await.unwrap();
    assert!(records.pull_target(active).await.unwrap().unwrap().is_live);
    records.deal_due(active, now).await.unwrap();
    records.watch_deal(active, epoch).await.unwrap();
    assert_eq!(records.unpublished_of(ActorId::new(1_000), None).await.unwrap().len(), 3);
    let piece = records.aggregate(aggregate).await.unwrap().piece.unwrap();
    let other = PieceCid::from_commitment([3; 32]).unwrap();
    for (piece, count) in [(piece, 3), (other, 0)] {
        let found = records.unpublished_of(ActorId::new(1_000), Some(&piece)).await.unwrap();
        assert_eq!(found.len(), count, "a page of other pieces hides none of this one");
    }
    for deal in [active, failed] {
        records.on_chain(deal, OnChain::Published(3), epoch, epoch).await.unwrap();
    }
    records.on_chain(active, OnChain::Active(1), epoch, epoch).await.unwrap();
    records.on_chain(active, OnChain::Faulty(true), epoch, epoch).await.unwrap();
    records.on_chain(active, OnChain::Missing(true), epoch, epoch).await.unwrap();
    records.on_chain(failed, OnChain::StartPassed, epoch, epoch).await.unwrap();
    assert_eq!(records.locked_deals().await.unwrap(), [3]);
    assert_eq!(records.deals_on_chain(3).await.unwrap().len(), 2);
    assert!(!records.deals_to_watch(Epoch::new(9_999), 9).await.unwrap().is_empty());
    records.on_chain(failed, OnChain::Unlocked, epoch, epoch).await.unwrap();
    records.on_chain(active, OnChain::Terminated, epoch, epoch).await.unwrap();
    records.deals_due(DealState::Refused, now, 9).await.unwrap();
    adopted(records, aggregate).await;
    looked_for(records, aggregate).await;
}

async fn adopted(records: &Records, aggregate: Uuid) {
    let row = records.aggregate(aggregate).await.unwrap();
    let own = OwnDeal {
        provider: ActorId::new(1_001),
        piece: row.piece.unwrap(),
        size: row.size.unwrap(),
        start: Epoch::new(10),
        end: Epoch::new(20),
        price_per_epoch: AttoFil::new(1),
        collateral: AttoFil::new(1),
        state: DealOnChain { is_ours: true, active_since: None, sector: None, is_faulty: false },
    };
    assert_eq!(records.aggregate_of_piece(&own.piece).await.unwrap(), Some(aggregate));
    let account = default_account(records).await;
    let weights = BTreeMap::from([(account, 1)]);
    let row = records
        .adopt_deal(77, own.clone(), ActorId::new(500), Epoch::new(12), weights.clone())
        .await
        .unwrap();
    assert_eq!((row.state, row.deal_id, row.owner), (DealState::Published, Some(77), ActorId::new(500)));
    assert_eq!(
        records.adopt_deal(77, own, ActorId::new(500), Epoch::new(13), weights).await.unwrap().uuid,
        row.uuid
    );
}

async fn looked_for(records: &Records, aggregate: Uuid) {
    let all = DealFilter { most: 10, ..DealFilter::default() };
    let first = records.deals(all.clone()).await.unwrap()[0].clone();
    let filters = [
        DealFilter { aggregates: Some(vec![aggregate]), ..all.clone() },
        DealFilter { provider: Some(ActorId::new(1_000)), ..all.clone() },
        DealFilter { states: vec![DealState::Refused], ..all.clone() },
        DealFilter { before: Some((first.created, first.uuid)), ..all },
    ];
    for filter in filters {
        records.deals(filter).await.unwrap();
    }
    assert!(!records.deals_of_aggregate(aggregate).await.unwrap().is_empty());
    let pin = records.aggregate_pins(aggregate).await.unwrap()[0].pin;
    assert!(!records.deals_of_pin(pin).await.unwrap().is_empty());
    assert!(records.is_aggregate_here(aggregate).await.unwrap());
    assert!(records.has_live_pins(aggregate).await.unwrap());
    assert!(!records.aggregate_unwanted(aggregate).await.unwrap());
    records.aggregate_lost(aggregate).await.unwrap();
    records.unpublished_cost().await.unwrap();
    records.deal_counts().await.unwrap();
}

async fn money(records: &Records) {
    for intent in ["m1", "m2"] {
        records.reserve_gas(intent, AttoFil::new(9), &wide_caps()).await.unwrap().unwrap();
    }
    assert_eq!(records.open_gas().await.unwrap().len(), 2);
    records.gas_is_at_most("m1", AttoFil::new(4)).await.unwrap();
    records.gas_is_spent("m1").await.unwrap();
    records.gas_is_free("m2").await.unwrap();
    records.totals().await.unwrap();
    records.totals_of(default_account(records).await).await.unwrap();
}
