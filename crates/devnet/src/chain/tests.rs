//! The model by itself: money, nonces, the life of a deal, reorgs.

use proptest::prelude::*;

use super::*;
use crate::wire::cbor::Cbor;
use crate::wire::commp;
use crate::wire::deal::{ClientDealProposal, Label, Proposal, publish_params};
use crate::wire::message::address_param;
use crate::wire::rle;

pub(crate) fn client() -> Key {
    Key::from_seed(b"client", key::Kind::Secp)
}

pub(crate) fn genesis(seed: u64) -> Genesis {
    let rules =
        Rules { min_duration: 100, max_duration: 10_000, unlock_delay: 10, collateral_per_gib: 1 << 20 };
    let miner = Miner { sector_size: 8 << 20, ..Miner::default() };
    Genesis {
        seed,
        network: "devnet".into(),
        time: 1_700_000_000,
        block_delay: 30,
        finality: 5,
        rules,
        miners: vec![miner; 2],
        client: client().address(),
    }
}

fn send(
    chain: &mut Chain,
    from: &Key,
    to: Address,
    value: i128,
    method: u64,
    params: Vec<u8>,
) -> Result<Cid, Refused> {
    let nonce = chain.nonce(from.address())?;
    let message = Message {
        version: 0,
        to,
        from: from.address(),
        nonce,
        value,
        gas_limit: 1_000_000_000,
        gas_fee_cap: 1_000,
        gas_premium: 10,
        method,
        params,
    };
    chain.push(SignedMessage::sign(message, from).unwrap())
}

const MARKET: Address = crate::wire::address::MARKET;
const PRICE: i128 = 1_000_000;

fn proposal(start: i64, end: i64, nth: u8) -> ClientDealProposal {
    let proposal = Proposal {
        piece_cid: commp::piece_cid(&[nth; 32]),
        piece_size: 1 << 20,
        verified: false,
        client: client().address(),
        provider: Address::Id(FIRST_MINER),
        label: Label::Text("label".into()),
        start,
        end,
        price_per_epoch: PRICE,
        provider_collateral: 2_000,
        client_collateral: 7,
    };
    let signature = client().sign(&proposal.to_cbor().encode()).unwrap();
    ClientDealProposal { proposal, signature }
}

/// A chain whose client has escrow.
fn funded() -> Chain {
    let mut chain = Chain::new(genesis(1));
    let client = client();
    send(&mut chain, &client, MARKET, 1 << 60, ADD_BALANCE, address_param(client.address())).unwrap();
    chain.advance();
    chain
}

fn publish(chain: &mut Chain, deals: &[ClientDealProposal]) -> Receipt {
    let worker = worker_key(1, 0);
    let cid = send(chain, &worker, MARKET, 0, PUBLISH_STORAGE_DEALS, publish_params(deals)).unwrap();
    chain.advance();
    chain.advance();
    chain.lookup(&cid).unwrap().receipt
}

fn of_miner(chain: &mut Chain, method: u64, numbers: &[u64]) -> Receipt {
    let worker = worker_key(1, 0);
    let cid = send(chain, &worker, Address::Id(FIRST_MINER), 0, method, miner_params(numbers)).unwrap();
    chain.advance();
    chain.advance();
    chain.lookup(&cid).unwrap().receipt
}

fn escrow(chain: &Chain) -> Balance {
    let state = chain.latest();
    state.market.balance(state.id(client().address()).unwrap())
}

fn kinds(chain: &Chain) -> Vec<&'static str> {
    chain.events(0, i64::MAX).map(|at| at.event.kind).collect()
}

#[test]
fn a_deal_lives_is_paid_and_ends() {
    let mut chain = funded();
    let deal = proposal(20, 220, 1);
    let receipt = publish(&mut chain, std::slice::from_ref(&deal));
    assert_eq!((receipt.exit_code, data_encoding::BASE64.encode(&receipt.ret)), (0, "goEAQQw=".into()));
    assert_eq!(escrow(&chain).locked, 200 * PRICE + 7);
    let published = chain.latest().market.deals.get(&0).unwrap().clone();
    assert_eq!(published.proposal.client, Address::Id(1002), "stored with ids");
    assert!(chain.latest().market.pending.contains(&published.proposal.cid()));

    // The same again is no second deal.
    assert_eq!(publish(&mut chain, &[deal]).exit_code, 16);

    assert_eq!(of_miner(&mut chain, PROVE_COMMIT, &[0]).exit_code, 0);
    assert!(chain.latest().market.deals[&0].sector_start > 0);

    chain.skip(100);
    let settle = |chain: &mut Chain| {
        let params = Cbor::Bytes(rle::encode(&[true])).encode();
        send(chain, &client(), MARKET, 0, market::SETTLE_DEAL_PAYMENTS, params).unwrap();
        chain.advance();
        chain.advance();
    };
    settle(&mut chain);
    let paid = chain.latest().market.deals[&0].paid;
    assert!(paid > 80 * PRICE && paid < 100 * PRICE, "{paid}");
    assert_eq!(escrow(&chain).locked, 200 * PRICE + 7 - paid);
    assert!(chain.latest().market.pending.is_empty(), "the cron came by");

    chain.skip(200);
    assert_eq!(escrow(&chain).locked, 200 * PRICE + 7 - paid, "completed deals linger until settled");
    settle(&mut chain);
    assert_eq!(escrow(&chain), Balance { escrow: (1 << 60) - 200 * PRICE, locked: 0 });
    assert!(chain.latest().market.deals.is_empty());
    assert_eq!(kinds(&chain), ["deal-published", "deal-activated", "deal-completed"]);
}

#[test]
fn what_is_never_activated_is_unlocked_late() {
    let mut chain = funded();
    publish(&mut chain, &[proposal(20, 220, 1)]);
    while chain.head().height < 29 {
        chain.advance();
    }
    assert_eq!(escrow(&chain).locked, 200 * PRICE + 7, "StartEpoch passed, the cron did not come");
    assert_eq!(of_miner(&mut chain, PROVE_COMMIT, &[0]).exit_code, 16, "too late to activate");
    assert_eq!(escrow(&chain), Balance { escrow: 1 << 60, locked: 0 });
    assert!(chain.latest().market.deals.is_empty());
}

#[test]
fn a_terminated_deal_is_deleted_and_leaves_an_event() {
    let mut chain = funded();
    publish(&mut chain, &[proposal(20, 220, 1)]);
    of_miner(&mut chain, PROVE_COMMIT, &[0]);
    chain.skip(100);
    assert_eq!(of_miner(&mut chain, TERMINATE, &[0]).exit_code, 0);
    let paid = (1 << 60) - escrow(&chain).escrow;
    assert!(paid > 80 * PRICE && paid < 100 * PRICE, "{paid}");
    assert_eq!(escrow(&chain).locked, 0);
    assert!(chain.latest().market.deals.is_empty());
    assert_eq!(kinds(&chain), ["deal-published", "deal-activated", "deal-terminated"]);
}

#[test]
fn publications_are_checked() {
    let mut chain = funded();
    let mut forged = proposal(20, 220, 1);
    forged.proposal.price_per_epoch += 1;
    let mut dear = proposal(20, 220, 2);
    dear.proposal.price_per_epoch = 1 << 60;
    dear.signature = client().sign(&dear.proposal.to_cbor().encode()).unwrap();
    for (deal, why) in [
        (forged, "signature did not match"),
        (dear, "insufficient funds"),
        (proposal(0, 200, 3), "already elapsed"),
        (proposal(20, 21, 4), "duration"),
        (proposal(20, 10, 5), "before start"),
    ] {
        let receipt = publish(&mut chain, &[deal]);
        assert_eq!(receipt.exit_code, 16);
        assert!(receipt.why.contains(why), "{}", receipt.why);
    }
    // One bad deal does not spoil the others.
    let receipt = publish(&mut chain, &[proposal(50, 51, 6), proposal(50, 250, 7)]);
    assert_eq!((receipt.exit_code, chain.latest().market.deals.len()), (0, 1));
    // Nor may anybody but the worker.
    let worker = worker_key(1, 1);
    let params = publish_params(&[proposal(60, 260, 8)]);
    let cid = send(&mut chain, &worker, MARKET, 0, PUBLISH_STORAGE_DEALS, params).unwrap();
    chain.advance();
    chain.advance();
    assert_eq!(chain.lookup(&cid).unwrap().receipt.exit_code, 18);
}

/// What a client sees of a reorg: the deal that was published is not, its message waits again or is gone.
#[test]
fn a_reorg_takes_back_what_was_done() {
    for keep in [true, false] {
        let mut chain = funded();
        publish(&mut chain, &[proposal(40, 240, 1)]);
        let (before, height) = (chain.head().cid, chain.head().height);
        let changes = chain.reorg(3, keep).unwrap();
        let reverts = changes.iter().take_while(|change| matches!(change, HeadChange::Revert(_))).count();
        assert_eq!((reverts, changes.len()), (3, 7));
        assert_eq!(chain.head().height, height + 1);
        assert_eq!(chain.latest().market.deals.len(), usize::from(keep));
        assert!(chain.by_cid(&before).is_some(), "what was left behind is still known");
        assert_ne!(chain.by_height(height, false).unwrap().cid, before);
    }
    let mut chain = funded();
    assert!(chain.reorg(2, true).is_none(), "the genesis stays");
}

#[test]
fn null_rounds_and_heights() {
    let mut chain = Chain::new(genesis(1));
    chain.advance();
    chain.skip(10);
    let height = |chain: &Chain, h, later| chain.by_height(h, later).map(|tipset| tipset.height);
    assert_eq!(height(&chain, 5, false), Some(1));
    assert_eq!(height(&chain, 5, true), Some(11));
    assert_eq!(height(&chain, 12, false), None);
    assert_eq!(chain.finalized().unwrap().height, 1, "6 was a null round");
    assert_eq!(Chain::new(genesis(1)).finalized().unwrap_err(), -5);
}

#[test]
fn old_states_are_forgotten_and_old_tipsets_are_not() {
    let mut chain = Chain::new(genesis(1));
    (0..KEPT_STATES + 10).for_each(|_| {
        chain.advance();
    });
    let old = chain.by_height(3, false).unwrap();
    assert!(chain.state_at(old).is_none());
    assert!(chain.state_at(chain.by_height(20, false).unwrap()).is_some());
    assert!(chain.reorg(KEPT_STATES + 5, true).is_none());
    assert!(chain.reorg(900, true).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// No attoFIL is made or lost, f05 holds exactly what it owes, and nothing is locked for nobody; and the same
    /// calls give the same chain.
    #[test]
    fn money_is_conserved(steps in prop::collection::vec((0_u8..10, 0_u8..6, 1_u64..60), 1..60)) {
        let run = || {
            let mut chain = funded();
            let supply = chain.latest().supply();
            for (what, which, n) in &steps {
                let (which, n) = (*which, *n);
                let head = chain.head().height;
                let client = client();
                let worker = worker_key(1, 0);
                let ids: Vec<u64> = vec![u64::from(which)];
                match what {
                    0 | 1 => {
                        let start = head + n as i64;
                        let params = publish_params(&[proposal(start, start + 100 + n as i64, which)]);
                        send(&mut chain, &worker, MARKET, 0, PUBLISH_STORAGE_DEALS, params).unwrap();
                    }
                    2 => drop(send(&mut chain, &worker, Address::Id(FIRST_MINER), 0, PROVE_COMMIT, miner_params(&ids))),
                    3 => drop(send(&mut chain, &worker, Address::Id(FIRST_MINER), 0, TERMINATE, miner_params(&ids))),
                    4 => {
                        let bits: Vec<bool> = (0..=which).map(|bit| bit == which).collect();
                        let params = Cbor::Bytes(rle::encode(&bits)).encode();
                        send(&mut chain, &client, MARKET, 0, market::SETTLE_DEAL_PAYMENTS, params).unwrap();
                    }
                    5 => {
                        let amount = Cbor::amount(i128::from(n) << 50);
                        let address = Cbor::Bytes(client.address().to_bytes());
                        let params = Cbor::Array(vec![address, amount]).encode();
                        send(&mut chain, &client, MARKET, 0, WITHDRAW_BALANCE, params).unwrap();
                    }
                    6 => drop(chain.reorg(usize::from(which), n % 2 == 0)),
                    7 => drop(chain.skip(n)),
                    _ => drop(chain.advance()),
                }
                let state = chain.latest();
                prop_assert_eq!(state.supply(), supply);
                let held: i128 = state.market.balances.values().map(|b| b.escrow).sum();
                prop_assert_eq!(state.balance(MARKET), held);
                let locked: i128 = state.market.balances.values().map(|b| b.locked).sum();
                let owed = state.market.deals.values();
                let owed = owed.map(|d| d.proposal.client_requirement() - d.paid + d.proposal.provider_collateral);
                prop_assert_eq!(locked, owed.sum::<i128>());
                prop_assert!(state.market.balances.values().all(|b| 0 <= b.locked && b.locked <= b.escrow));
            }
            Ok((chain.head().cid, chain.latest().clone()))
        };
        prop_assert_eq!(run()?, run()?);
    }
}
