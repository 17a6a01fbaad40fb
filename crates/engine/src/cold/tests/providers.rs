//! What providers do, and what becomes of the slot and of the money.

use floe_core::FailureCode;
use floe_core::cold::FundsCall;
use floe_core::place::Ask;

use super::super::funds::{self, Refused};
use super::*;

/// R13: a hundred lost replies. The bytes that go out again are those that went out first, and are never signed again.
#[tokio::test]
async fn r13_a_lost_reply_is_unknown_and_the_same_bytes_go_out_again() {
    for case in 0..100_u32 {
        let lost = 1 + case % 4;
        let mut world = World::new(settings(1), &[Script::LosesReplies(lost)]).await;
        while world.in_state(DealState::Unknown).await.is_empty() {
            world.round().await;
        }
        assert_eq!(world.deals().await[0].error.as_ref().unwrap().code, FailureCode::SpTimeout);
        if case % 3 == 0 {
            world = world.crash().await;
        }
        // Each try waits longer; once it answers, the next look resolves it.
        for _ in 0..lost + 1 {
            world.clock.advance(Duration::from_secs(200));
            world.passes().await;
        }
        assert_eq!(world.in_state(DealState::Accepted).await.len(), 1, "case {case}");
        assert_eq!(world.signatures(), 1, "case {case}: signed once");
        assert_eq!(world.deals().await.len(), 1, "the slot waited");
    }
}

/// It never answered, and what was known of why was written over with the number of an epoch.
#[tokio::test]
async fn r13_what_was_said_of_a_deal_that_nobody_heard_of_is_kept() {
    let world = World::new(settings(1), &[Script::LosesReplies(99)]).await;
    let unknown = world.when(DealState::Unknown).await;
    world.when(DealState::Failed).await;
    let error = world.records.deal(unknown.uuid).await.unwrap().error.unwrap();
    assert_eq!((error.code, error.text.as_str()), (FailureCode::PublishTimeout, "no answer"));
}

/// A refusal frees the slot and not the money; when nobody can publish the bytes any more, that too.
#[tokio::test]
async fn a_refusal_goes_to_the_next_provider_and_its_reservation_stays() {
    let text = "client not allowed by provider";
    let world = World::new(settings(1), &[Script::Refuses(text), Script::Good]).await;
    prefer(&world, 1_000).await;
    world.rounds(PAID + 8).await;
    let refused = world.in_state(DealState::Refused).await.remove(0);
    let error = refused.error.clone().unwrap();
    assert_eq!((error.code, error.text.as_str()), (FailureCode::RejectedAllowlist, text));
    assert_eq!((refused.slot, refused.generation, refused.state.word()), (0, 0, "failed"));
    let next = world.deals().await.pop().unwrap();
    assert_eq!((next.slot, next.generation, next.provider.get()), (0, 1, 1_001));
    assert_eq!(world.records.shares(refused.uuid).await.unwrap()[0].1.reserved.get(), COST);
    world.until(AggregateState::Stored, 60).await;
    world.rounds(80).await;
    assert_eq!(world.records.deal(refused.uuid).await.unwrap().state, DealState::Failed);
    assert_eq!(world.records.shares(refused.uuid).await.unwrap()[0].1.released.get(), COST);
    world.stored_and_paid_once().await;
}

/// It said no, and took the money: one replica more than was asked for, an alarm, and no deal with it again.
#[tokio::test]
async fn what_was_refused_and_published_all_the_same_is_an_alarm() {
    let world = World::new(settings(1), &[Script::RefusesAndPublishes("no space left"), Script::Good]).await;
    prefer(&world, 1_000).await;
    world.rounds(40).await;
    assert_eq!(world.events("alarm.extra_replica").await, 1);
    let barred = world.records.provider(ActorId::new(1_000)).await.unwrap();
    assert!(barred.suspended.unwrap().contains("published it all the same"));
    assert_eq!(world.in_state(DealState::Active).await.len(), 2, "it is a replica all the same");
    world.sound().await;
}

/// With as many providers as replicas, one that was busy for a minute kept its slot empty for the whole lead and finality: it
/// was not asked again for that piece. It gets the same bytes again, and nothing is reserved or signed twice.
#[tokio::test]
async fn a_provider_that_was_busy_gets_the_same_bytes_again_where_nobody_else_fits() {
    let busy = "deal rejected due to backpressure. Please retry in some time.";
    let mut settings = settings(1);
    settings.deals.start_lead = 2_000;
    let world = World::new(settings, &[Script::Busy(2, busy)]).await;
    let refused = world.when(DealState::Refused).await;
    assert_eq!(refused.error.as_ref().unwrap().code, FailureCode::RejectedBackpressure);
    world.until(AggregateState::Stored, 450).await;
    assert!(world.chain.state().head < refused.start.get(), "long before its start");
    let deals = world.deals().await;
    assert_eq!((deals.len(), deals[0].uuid, world.signatures()), (1, refused.uuid, 1));
    assert!(deals[0].error.is_none());
    world.stored_and_paid_once().await;
}

/// What it refused was covered no more when it was to go out again: no row said that it was needed, and no top-up came.
#[tokio::test]
async fn what_goes_out_again_is_topped_up_for() {
    let busy = "deal rejected due to backpressure. Please retry in some time.";
    let mut settings = settings(1);
    settings.deals.start_lead = 2_000;
    let world = World::new(settings, &[Script::Busy(1, busy)]).await;
    let refused = world.when(DealState::Refused).await;
    // Others used it meanwhile.
    world.chain.state().escrow = 0;
    world.until(AggregateState::Stored, 450).await;
    let row = world.records.deal(refused.uuid).await.unwrap();
    assert!(row.sent.unwrap().1 > refused.sent.unwrap().1, "its provider's time begins anew");
    assert_eq!(world.signatures(), 1);
    world.sound().await;
}

/// Where another fits, that one has the slot, and the busy one is left alone from then on.
#[tokio::test]
async fn a_provider_that_was_busy_is_not_asked_again_for_a_slot_that_another_has() {
    let busy = "deal rejected due to backpressure. Please retry in some time.";
    let world = World::new(settings(1), &[Script::Busy(1, busy), Script::Good]).await;
    prefer(&world, 1_000).await;
    let refused = world.when(DealState::Refused).await;
    world.until(AggregateState::Stored, 30).await;
    world.clock.advance(Duration::from_secs(600));
    let again = world.records.begin_sending(refused.uuid, Epoch::new(0), world.d.now()).await.unwrap();
    assert_eq!(again, None, "the rows do not permit it either");
    world.rounds(5).await;
    assert_eq!(world.chain.state().providers[&1_000].got.len(), 0);
    world.stored_and_paid_once().await;
}

/// What it refused for good does not go out again, nor what it asks more for by now.
#[tokio::test]
async fn what_was_refused_for_good_or_has_become_dearer_does_not_go_out_again() {
    for (text, price) in [("client not allowed by provider", 50), ("deal rejected due to backpressure.", 51)]
    {
        let mut settings = settings(1);
        settings.deals.start_lead = 2_000;
        let world = World::new(settings, &[Script::Busy(1, text)]).await;
        world.when(DealState::Refused).await;
        world.chain.state().providers.get_mut(&1_000).unwrap().ask.price = AttoFil::new(price);
        world.rounds(300).await;
        assert_eq!(world.chain.state().providers[&1_000].got.len(), 0, "{text}");
        assert_eq!(world.in_state(DealState::Refused).await.len(), 1, "{text}");
    }
}

/// Our own fault: somebody must look.
#[tokio::test]
async fn a_refusal_that_tells_of_a_bug_of_ours_is_an_alarm() {
    let text = "deal proposal piece size 1 doesn't match padded piece size 2";
    let world = World::new(settings(1), &[Script::Refuses(text)]).await;
    world.rounds(8).await;
    assert_eq!(world.events("alarm.our_bug").await, 1);
}

/// T40: it never publishes. The slot waits until nobody can, then goes on; the money is free; its score is worse.
#[tokio::test]
async fn t40_never_published_frees_slot_and_money_after_the_start_is_final() {
    let world = World::new(settings(1), &[Script::NeverPublishes, Script::Good]).await;
    prefer(&world, 1_000).await;
    world.rounds(10).await;
    let stuck = world.in_state(DealState::Accepted).await.remove(0);
    while world.chain.state().last_final() < stuck.start.get() {
        assert_eq!(world.deals().await.len(), 1, "the slot waits");
        world.round().await;
    }
    world.until(AggregateState::Stored, 60).await;
    let failed = world.records.deal(stuck.uuid).await.unwrap();
    assert_eq!(failed.state, DealState::Failed);
    assert_eq!(failed.error.unwrap().code, FailureCode::TransferUnreachable, "our log: it pulled nothing");
    assert!(!failed.is_locked);
    let score = world.records.provider(ActorId::new(1_000)).await.unwrap().standing.score;
    assert!(score < 900, "{score}");
    world.stored_and_paid_once().await;
}

/// Whoever wanted the money back sooner had to find out the numbers of deals that came to nothing.
#[tokio::test]
async fn settling_without_numbers_settles_what_came_to_nothing() {
    let world = World::new(settings(1), &[Script::NeverSeals, Script::Good]).await;
    prefer(&world, 1_000).await;
    let all = FundsCall::Settle(Vec::new());
    let nothing = funds::operators_call(&world.d, "all", &all).await;
    assert!(matches!(nothing, Err(Refused::NothingLocked)), "{nothing:?}");
    while world.in_state(DealState::Failed).await.is_empty() {
        world.round().await;
    }
    let failed = world.in_state(DealState::Failed).await.remove(0);
    funds::operators_call(&world.d, "all", &all).await.unwrap();
    let sent = world.chain.state().messages["operator-all"].call.clone();
    assert_eq!(sent, FundsCall::Settle(vec![failed.deal_id.unwrap()]));
    // The same again is the same message, whatever is locked by then; and another waits for it, as all calls do.
    funds::operators_call(&world.d, "all", &all).await.unwrap();
    let another = funds::operators_call(&world.d, "others", &all).await;
    assert_eq!(another, Err(Refused::Pending("operator-all".into())));
}

/// It publishes and never seals: the slot goes on after the start, and the price stays locked until the market lets go.
#[tokio::test]
async fn t40_never_sealed_keeps_its_price_locked_until_the_market_lets_go() {
    let world = World::new(settings(1), &[Script::NeverSeals, Script::Good]).await;
    prefer(&world, 1_000).await;
    while world.in_state(DealState::Failed).await.is_empty() {
        world.round().await;
    }
    let failed = world.in_state(DealState::Failed).await.remove(0);
    assert_eq!(failed.error.as_ref().unwrap().code, FailureCode::SealTimeout);
    assert!(failed.is_locked);
    assert_eq!(world.records.locked_deals().await.unwrap(), vec![failed.deal_id.unwrap()]);
    assert_eq!(world.records.shares(failed.uuid).await.unwrap()[0].1.reserved.get(), COST);
    world.until(AggregateState::Stored, 60).await;
    world.rounds(70).await;
    let freed = world.records.deal(failed.uuid).await.unwrap();
    assert!(!freed.is_locked && world.records.locked_deals().await.unwrap().is_empty());
    assert_eq!(world.records.shares(failed.uuid).await.unwrap()[0].1.released.get(), COST);
    world.sound().await;
}

/// «Not found» frees nothing: it gets the same bytes again.
#[tokio::test]
async fn a_provider_that_forgot_the_deal_gets_the_same_bytes_again() {
    let world = World::new(settings(1), &[Script::Forgets, Script::Good]).await;
    prefer(&world, 1_000).await;
    world.chain.state().providers.get_mut(&1_000).unwrap().script = Script::NeverPublishes;
    world.rounds(PAID + 3).await;
    assert_eq!(world.signatures(), 1, "it has the deal");
    world.chain.state().providers.get_mut(&1_000).unwrap().script = Script::Forgets;
    world.clock.advance(Duration::from_secs(300));
    world.until(AggregateState::Stored, 60).await;
    assert_eq!((world.deals().await.len(), world.signatures()), (1, 1));
    world.stored_and_paid_once().await;
}

/// It forgot what it had accepted, got the same bytes again and refused them. That was no step of a deal: its slot waited
/// for the whole lead, and what it had said was lost.
#[tokio::test]
async fn what_was_accepted_and_is_refused_later_goes_to_the_next_provider() {
    let text = "server error: provider has no space left for storage deals";
    let world = World::new(settings(1), &[Script::ForgetsAndRefuses(text), Script::Good]).await;
    prefer(&world, 1_000).await;
    let refused = world.when(DealState::Refused).await;
    assert_eq!(refused.error.unwrap().text, text);
    world.until(AggregateState::Stored, 40).await;
    assert_eq!(world.signatures(), 2);
    world.stored_and_paid_once().await;
}

/// R14: its policy was gone from the configuration, and the pins were placed under the default one: at its price, for its
/// term, in its regions.
#[tokio::test]
async fn r14_what_has_no_policy_any_more_waits_for_one() {
    let mut world = World::empty(settings(1), &good(2)).await;
    world.pack_under("archive", 1, &["default"]).await;
    world.rounds(5).await;
    assert!(world.deals().await.is_empty());
    let dealer = world.board().into_iter().find(|worker| worker.name == "dealer").unwrap();
    assert!(format!("{:?}", dealer.last_error).contains("no policy \\\"archive\\\""), "{dealer:?}");
    let archive = Policy { name: "archive".into(), ..policy(1) };
    world.d.settings.policies.insert("archive".into(), archive);
    world.until(AggregateState::Stored, 60).await;
    world.stored_and_paid_once().await;
}

/// R14, T35: it asks for more than the policy permits, for ever more, or for more than there is.
#[tokio::test]
async fn r14_t35_asks_beyond_the_policy_are_not_taken() {
    for price in [101, 1_000, 10_u128.pow(20), u128::MAX] {
        let world = World::new(settings(1), &good(1)).await;
        world.chain.state().providers.get_mut(&1_000).unwrap().ask.price = AttoFil::new(price);
        world.rounds(5).await;
        assert!(world.deals().await.is_empty(), "{price}");
    }
    let cases: [fn(&mut Ask); 3] = [
        |ask| ask.expires = Epoch::new(10),
        |ask| ask.min_size = PaddedSize::MAX,
        |ask| ask.max_size = PaddedSize::MIN,
    ];
    for spoil in cases {
        let world = World::new(settings(1), &good(1)).await;
        spoil(&mut world.chain.state().providers.get_mut(&1_000).unwrap().ask);
        world.rounds(5).await;
        assert!(world.deals().await.is_empty());
    }
}

/// T35: the price rises between the choice and the signing. The old price is not signed, nor is the new one without a
/// choice of its own.
#[tokio::test]
async fn t35_an_ask_that_rises_before_signing_needs_a_new_choice() {
    let world = World::new(settings(1), &good(1)).await;
    world.chain.state().wallet = 0;
    world.rounds(2).await;
    let chosen = world.in_state(DealState::Chosen).await.remove(0);
    world.chain.state().providers.get_mut(&1_000).unwrap().ask.price = AttoFil::new(60);
    world.chain.state().wallet = 10_u128.pow(18);
    world.clock.advance(Duration::from_secs(90));
    world.until(AggregateState::Stored, 60).await;
    let old = world.records.deal(chosen.uuid).await.unwrap();
    assert_eq!((old.state, old.signed), (DealState::Failed, None));
    assert_eq!(old.error.unwrap().code, FailureCode::RejectedPrice);
    assert_eq!(world.in_state(DealState::Active).await[0].price.get(), 60);
    world.stored_and_paid_once().await;
}

/// R14: a deal waits for its escrow to be final, and what was meant to stop it meanwhile did not: it was signed and sent to a
/// provider that the operator had suspended, or beyond a price that the policy permits no more.
#[tokio::test]
async fn r14_what_does_not_fit_any_more_is_not_signed() {
    type Change = fn(&mut World);
    let cases: [(&str, Change); 5] = [
        ("price", |world| world.policy().max_price = AttoFil::new(49)),
        ("other providers", |world| world.policy().providers = vec![ActorId::new(1_001)]),
        ("region", |world| world.policy().regions = vec!["asia".into()]),
        ("no policy", |world| world.d.settings.policies.clear()),
        ("suspended", |_| {}),
    ];
    for (what, change) in cases {
        let mut world = World::new(settings(1), &good(1)).await;
        world.chain.state().wallet = 0;
        world.rounds(2).await;
        let chosen = world.in_state(DealState::Chosen).await.remove(0);
        change(&mut world);
        if what == "suspended" {
            world.records.suspend_provider(ActorId::new(1_000), Some("not now")).await.unwrap();
        }
        world.chain.state().wallet = 10_u128.pow(18);
        world.rounds(20).await;
        let row = world.records.deal(chosen.uuid).await.unwrap();
        assert_eq!(
            (row.state, world.deals().await.len(), world.signatures()),
            (DealState::Failed, 1, 0),
            "{what}"
        );
        world.sound().await;
    }
}

/// A provider with Boost's default refuses what leaves it less than a day to seal: a deal that waited, with a lead of little
/// more than that, was sent all the same, and its slot was lost until its start was final.
#[tokio::test]
async fn nothing_is_sent_that_leaves_no_day_for_sealing() {
    for (lead, least) in [(11_520, 8_640), (3_600, 3_000), (3_000, 3_000), (60, 45)] {
        assert_eq!(crate::limits::least_lead(lead), least, "{lead}");
    }
    let mut settings = settings(1);
    settings.deals.start_lead = 3_600;
    let world = World::new(settings, &good(1)).await;
    world.chain.state().wallet = 0;
    world.passes().await;
    let chosen = world.in_state(DealState::Chosen).await.remove(0);
    world.pass_time(601);
    world.chain.state().wallet = 10_u128.pow(18);
    world.passes().await;
    assert_eq!(world.records.deal(chosen.uuid).await.unwrap().state, DealState::Failed);
    world.until(AggregateState::Stored, 80).await;
    world.stored_and_paid_once().await;
}

#[tokio::test]
async fn replicas_go_to_distinct_owners() {
    let world = World::new(settings(2), &good(3)).await;
    for id in [1_000, 1_001] {
        world.chain.state().providers.get_mut(&id).unwrap().owner = 7;
    }
    world.until(AggregateState::Stored, 60).await;
    let active = world.in_state(DealState::Active).await;
    assert_ne!(active[0].owner, active[1].owner);
    assert!(active.iter().any(|deal| deal.provider.get() == 1_002));
}

/// A provider that cannot be reached rests after three attempts: it is not asked until its rest is over, and then it is.
#[tokio::test]
async fn a_provider_that_is_away_rests() {
    let world = World::new(settings(1), &[Script::Away]).await;
    let asked = || world.chain.state().calls.iter().filter(|call| **call == "ask").count();
    world.rounds(3).await;
    let away = world.records.provider(ActorId::new(1_000)).await.unwrap();
    assert_eq!((away.standing.failures, asked()), (3, 3));
    assert!(away.error.is_some());
    let rests_until = away.standing.rests_until.unwrap().get();
    assert!(rests_until > world.chain.state().head);
    world.chain.state().providers.get_mut(&1_000).unwrap().script = Script::Good;
    while world.chain.state().head < rests_until {
        world.round().await;
        assert_eq!(asked(), 3, "it is left out until {rests_until}");
    }
    world.until(AggregateState::Stored, 60).await;
    let back = world.records.provider(ActorId::new(1_000)).await.unwrap();
    assert_eq!((back.standing.failures, back.standing.rests_until), (0, None));
    world.stored_and_paid_once().await;
}

/// `spare_after`: one replica more where a provider takes its time, and only one.
#[tokio::test]
async fn a_spare_is_placed_where_the_policy_permits_one() {
    let mut world =
        World::new(settings(1), &[Script::NeverPublishes, Script::NeverPublishes, Script::Good]).await;
    prefer(&world, 1_000).await;
    world.rounds(20).await;
    assert_eq!(world.deals().await.len(), 1, "by default none");
    let policy = Policy { spare_after_epochs: Some(15), ..policy(1) };
    world.d.settings.policies.insert("default".into(), policy);
    let new = NewProvider {
        id: ActorId::new(1_001),
        source: "test".into(),
        addresses: Vec::new(),
        regions: Vec::new(),
    };
    world.records.put_provider(new).await.unwrap();
    world.records.suspend_provider(ActorId::new(1_001), Some("not now")).await.unwrap();
    world.until(AggregateState::Stored, 40).await;
    let deals = world.deals().await;
    assert_eq!(deals.iter().map(|deal| deal.slot).collect::<Vec<_>>(), [0, 1]);
    world.sound().await;
}

/// The operator forgives: what failed for good is tried again with the same provider.
#[tokio::test]
async fn a_provider_that_will_not_take_a_piece_is_asked_again_when_the_operator_says_so() {
    let world = World::new(settings(1), &[Script::Refuses("client not allowed by provider")]).await;
    world.rounds(PAID + 5).await;
    let refused = world.in_state(DealState::Refused).await.remove(0);
    let early = world.records.forgive_deal(refused.uuid).await;
    assert!(matches!(early, Err(floe_records::Error::Conflict(_))), "its bytes are out");
    world.rounds(80).await;
    assert_eq!(world.deals().await.len(), 1, "not by itself");
    world.chain.state().providers.get_mut(&1_000).unwrap().script = Script::Good;
    world.records.forgive_deal(refused.uuid).await.unwrap();
    world.until(AggregateState::Stored, 60).await;
    world.stored_and_paid_once().await;
}

/// Makes a provider the first to be asked.
async fn prefer(world: &World, id: u64) {
    for _ in 0..4 {
        let id = ActorId::new(id);
        world
            .records
            .note_outcome(id, floe_core::standing::Outcome::Kept, Epoch::new(0), None)
            .await
            .unwrap();
    }
}
