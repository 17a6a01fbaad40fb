//! Deals over HTTP, end to end.

use floe_core::FailureCode;
use floe_core::cold::{Answer, Market as _, ProviderWord};

use super::*;

const ENOUGH: u128 = 1_000_000_000_000;

impl World {
    /// Steps until a deal of ours is published, and gives its number.
    async fn published(&self) -> u64 {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            self.step(1).await;
            let view = self.look().await;
            let found = self.chain.published(at(0), view.last_final).await.unwrap().unwrap();
            if let Some(deal) = found.last() {
                return deal.deal_id;
            }
        }
        panic!("nothing was published: {}", self.control("GET", "/providers", Value::Null).await);
    }
}

/// From the ask to the sector: each step by the port that the engine takes.
#[tokio::test]
async fn r13_a_deal_over_http_becomes_active() {
    for manner in [Manner::Curio, Manner::Boost] {
        let world = World::start(&[manner]).await;
        world.fund("escrow", ENOUGH).await;
        let to = world.contact(0);
        let ask = world.market.ask(&to).await.unwrap();
        assert_eq!(ask.price, AttoFil::new(50_000_000));
        let terms = world.terms(0).await;
        let signed = world.signed(&terms).await;
        assert_eq!(world.market.propose(&to, &signed).await.unwrap(), Answer::Accepted);
        // The same bytes again: it has them, and says so.
        assert_eq!(world.market.propose(&to, &signed).await.unwrap(), Answer::Accepted);
        let word = world.market.status(&to, terms.uuid).await.unwrap();
        assert!(matches!(word, ProviderWord::Known { .. }), "{word:?}");

        let id = world.published().await;
        // The event was of the newest final tipset, and the deal in no final state yet: it looked terminated.
        let deal = world.chain.deal(id, &signed).await.unwrap().expect("what is an event is a deal");
        assert!(deal.is_ours, "a key address was signed and an id is stored");
        let mut active = deal.active_since;
        for _ in 0..40 {
            if active.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            world.step(1).await;
            world.look().await;
            active = world.chain.deal(id, &signed).await.unwrap().unwrap().active_since;
        }
        let since = active.expect("it is active");
        assert!(since <= terms.start && since <= world.look().await.last_final);
        let deal = world.chain.deal(id, &signed).await.unwrap().unwrap();
        assert!(deal.sector.is_some() && !deal.is_faulty, "{deal:?}");
        assert_eq!(world.chain.deal(id + 1_000, &signed).await.unwrap(), None);
        let locked = world.chain.funds().await.unwrap().head.locked;
        assert_eq!(locked.get(), terms.price_per_epoch.get() * u128::from(terms.end.since(terms.start)));
    }
}

/// A provider names another's deal: each field counts, and the parties are compared as ids.
#[tokio::test]
async fn t40_another_deal_is_not_ours() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", ENOUGH).await;
    let terms = world.terms(0).await;
    let signed = world.signed(&terms).await;
    world.market.propose(&world.contact(0), &signed).await.unwrap();
    let id = world.published().await;
    assert!(world.chain.deal(id, &signed).await.unwrap().unwrap().is_ours);
    let other = |change: &dyn Fn(&mut DealTerms)| {
        let mut terms = terms.clone();
        change(&mut terms);
        terms
    };
    for changed in [
        other(&|t| t.start = t.start.plus(1)),
        other(&|t| t.end = t.end.plus(1)),
        other(&|t| t.price_per_epoch = AttoFil::ZERO),
        other(&|t| t.collateral = AttoFil::new(1)),
        other(&|t| t.root = sha2_cid(b"another root")),
        other(&|t| t.size = PaddedSize::from_bytes(t.size.bytes() * 2).unwrap()),
        other(&|t| t.provider = ActorId::new(1001)),
        other(&|t| t.piece = PieceCid::from_commitment([1; 32]).unwrap()),
    ] {
        let signed = world.signed(&changed).await;
        assert!(!world.chain.deal(id, &signed).await.unwrap().unwrap().is_ours, "{changed:?}");
    }
    let stranger = DealSigner::new(Arc::new(LocalKey::from_bytes(&[9; 32]).unwrap()));
    let theirs = stranger.sign(&terms).await.unwrap();
    assert!(!world.chain.deal(id, &theirs).await.unwrap().unwrap().is_ours, "another client's");
}

/// A sector that its provider stopped proving, and one that it ended.
#[tokio::test]
async fn t40_faults_and_terminations_are_seen() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", ENOUGH).await;
    world.provider_faults(0, json!({"faulty_after": 3, "terminate_after": 20})).await;
    let terms = world.terms(0).await;
    let signed = world.signed(&terms).await;
    world.market.propose(&world.contact(0), &signed).await.unwrap();
    let id = world.published().await;
    let (mut faulty, mut gone) = (false, false);
    for _ in 0..80 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.step(1).await;
        world.look().await;
        match world.chain.deal(id, &signed).await.unwrap() {
            Some(deal) => faulty |= deal.is_faulty,
            None => {
                gone = true;
                break;
            }
        }
    }
    assert!(faulty, "its sector was not proven for a while");
    assert!(gone, "a terminated deal is no deal");
}

/// Past its start an unpublished deal's money stays locked: settling frees it.
#[tokio::test]
async fn settling_frees_what_an_expired_deal_locks() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", ENOUGH).await;
    world.provider_faults(0, json!({"never_seal": true})).await;
    let terms = world.terms(0).await;
    let start = terms.start.plus(300 - LEAD);
    let terms = DealTerms { start, ..terms };
    let signed = world.signed(&terms).await;
    world.market.propose(&world.contact(0), &signed).await.unwrap();
    let id = world.published().await;
    let locked = world.chain.funds().await.unwrap().head.locked;
    assert!(locked > AttoFil::ZERO);
    let left = terms.start.since(world.look().await.head) + 1;
    world.step(left).await;
    world.look().await;
    assert_eq!(world.chain.funds().await.unwrap().head.locked, locked, "an epoch went by, and nothing else");
    world.chain.send("settle", &FundsCall::Settle(vec![id])).await.unwrap();
    assert_eq!(world.settled("settle").await, MessageProgress::Final(Ok(())));
    assert_eq!(world.chain.funds().await.unwrap().head.locked, AttoFil::ZERO);
}

/// Each reason that a provider may have, in its own words.
#[tokio::test]
async fn refusals_have_their_classes() {
    let world = World::start(&[Manner::Boost]).await;
    world.fund("escrow", ENOUGH).await;
    for (reason, class) in [
        ("price", FailureCode::RejectedPrice),
        ("size", FailureCode::RejectedSize),
        ("duration", FailureCode::RejectedDuration),
        ("start_epoch", FailureCode::RejectedStartEpoch),
        ("collateral", FailureCode::RejectedCollateral),
        ("funds", FailureCode::RejectedFunds),
        ("signature", FailureCode::RejectedSignature),
        ("allowlist", FailureCode::RejectedAllowlist),
        ("backpressure", FailureCode::RejectedBackpressure),
        ("rate_limit", FailureCode::RejectedBackpressure),
        ("capacity", FailureCode::RejectedCapacity),
        ("server_error", FailureCode::RejectedOther),
    ] {
        world.provider_faults(0, json!({ "reject": reason })).await;
        let signed = world.signed(&world.terms(0).await).await;
        match world.market.propose(&world.contact(0), &signed).await.unwrap() {
            Answer::Refused(fault) => assert_eq!(fault.code, class, "{fault}"),
            Answer::Accepted => panic!("{reason}"),
        }
    }
    world.provider_faults(0, json!({"reject": "duplicate"})).await;
    let signed = world.signed(&world.terms(0).await).await;
    assert_eq!(world.market.propose(&world.contact(0), &signed).await.unwrap(), Answer::Accepted);
}

/// Real rules, not scripts: what we build passes them, and what is off by one does not.
#[tokio::test]
async fn the_judge_takes_our_bytes_and_no_others() {
    let world = World::start(&[Manner::Boost]).await;
    let terms = world.terms(0).await;
    let poor = world.market.propose(&world.contact(0), &world.signed(&terms).await).await.unwrap();
    assert!(matches!(&poor, Answer::Refused(fault) if fault.code == FailureCode::RejectedFunds), "{poor:?}");
    world.fund("escrow", ENOUGH).await;
    let cheap = DealTerms { price_per_epoch: AttoFil::ZERO, ..world.terms(0).await };
    let cheap = world.market.propose(&world.contact(0), &world.signed(&cheap).await).await.unwrap();
    assert!(
        matches!(&cheap, Answer::Refused(fault) if fault.code == FailureCode::RejectedPrice),
        "{cheap:?}"
    );
    let soon = world.terms(0).await;
    let soon = DealTerms { start: world.look().await.head.plus(1), ..soon };
    let soon = world.market.propose(&world.contact(0), &world.signed(&soon).await).await.unwrap();
    assert!(
        matches!(&soon, Answer::Refused(fault) if fault.code == FailureCode::RejectedStartEpoch),
        "{soon:?}"
    );
}

/// T41: what a provider gives back has another CommP than the piece where it gives back other bytes.
#[tokio::test]
async fn t41_a_piece_that_is_served_wrong_is_found_by_its_commp() {
    let world = World::start(&[Manner::Curio]).await;
    world.fund("escrow", ENOUGH).await;
    let signed = world.signed(&world.terms(0).await).await;
    world.market.propose(&world.contact(0), &signed).await.unwrap();
    let (piece, _) = world.piece();
    let served = async || {
        let url = world.devnet.ready().providers[0].url.clone();
        fetch("GET", &url, &format!("/piece/{}", piece.to_cid()), String::new()).await
    };
    let mut answer = served().await;
    for _ in 0..60 {
        if answer.0 == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.step(1).await;
        answer = served().await;
    }
    let commp = |bytes: &[u8]| {
        let mut writer = floe_piece::CommP::new();
        writer.update(bytes).unwrap();
        writer.finish().unwrap().cid
    };
    assert_eq!((answer.0, commp(&answer.1)), (200, piece), "the honest bytes are the piece");
    world.provider_faults(0, json!({"retrieval": "corrupt"})).await;
    let (status, bytes) = served().await;
    assert_eq!((status, bytes.len()), (200, answer.1.len()));
    assert_ne!(commp(&bytes), piece, "one bit");
}

/// R14: the ask is good when it is looked at, and jumps after. Whatever it jumps to, what is signed is what was seen to fit the
/// policy, or nothing.
#[tokio::test]
async fn r14_an_ask_that_jumps_is_paid_within_the_policy_or_not_at_all() {
    use floe_core::place::{Candidate, Need, choose};
    use floe_core::policy::{Hot, Policy};
    use floe_filecoin::market::mk12::DealParams;
    use floe_filecoin::types::cbor::Cbor as _;
    let world = World::start(&[Manner::Curio]).await;
    world.look().await;
    let policy = Policy {
        name: "one".into(),
        replicas: 1,
        regions: vec![],
        max_price: AttoFil::new(60_000_000),
        duration_epochs: 518_400,
        hot: Hot::Always,
        providers: vec![],
        ipni: false,
        spare_after_epochs: None,
    };
    let (_, size) = world.piece();
    let placed = async || {
        let candidate = Candidate {
            provider: world.provider(0),
            owner: ActorId::new(1),
            regions: vec![],
            ask: world.market.ask(&world.contact(0)).await.ok(),
            score: 500,
            is_suspended: false,
            rests_until: None,
        };
        let now = at(20);
        let need = Need { policy: &policy, size, now, taken: &[], owners: &[], shared_owners: false, tie: 1 };
        choose(&need, &[candidate]).ok()
    };
    let most = policy.max_price.for_piece(size).unwrap();
    for (jump, fits) in [
        ("0", true),
        ("60000000", true),
        ("60000001", false),
        ("2000000000000000000000000000", false),
        ("170141183460469231731687303715884105727", false),
    ] {
        world.provider_faults(0, json!({"ask_price": jump, "ask_price_after": 1})).await;
        let before = placed().await.expect("the ask that was there first");
        assert_eq!(before.price, AttoFil::new(50_000_000));
        let after = placed().await;
        assert_eq!(after.map(|placed| placed.price.to_string()), fits.then(|| jump.to_owned()), "{jump}");
        for placed in [Some(before), after].into_iter().flatten() {
            let price_per_epoch = placed.price.for_piece(size).unwrap();
            let terms = DealTerms { price_per_epoch, ..world.terms(0).await };
            let signed = DealParams::from_cbor(&world.signed(&terms).await.bytes).unwrap();
            assert!(signed.proposal.proposal.storage_price_per_epoch <= most, "{jump}");
        }
    }
    let (status, _) = request(
        "POST",
        &world.devnet.ready().control,
        "/faults",
        json!({"providers": {"f01000": {"ask_price": "-1"}}}).to_string(),
    )
    .await;
    assert_eq!(status, 400, "a script that means nothing");
}
