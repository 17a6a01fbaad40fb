//! R15, T38, T39: a node that is away, stale, or says what is not so; and what the chain does to deals.

use floe_core::FailureCode;
use floe_core::cold::{ChainView, Fault, Funds};

use super::*;

fn view(head: i64, last_final: i64) -> ChainView {
    ChainView { head: Epoch::new(head), last_final: Epoch::new(last_final) }
}

/// A view, funds or an error of the node that cannot be spent on.
fn lie(world: &World, which: usize) {
    let mut state = world.chain.state();
    let (head, funds) = (state.head, AttoFil::new(5));
    let away = |text: &str| Some(Fault::new(FailureCode::ChainUnreachable, text));
    match which {
        0 => state.lies.look = away("connection refused"),
        1 => state.lies.look = away("the network is another one"),
        2 => state.lies.look = Some(Fault::new(FailureCode::Auth, "the token is refused")),
        3 => state.lies.view = Some(view(head - 100, head - 105)),
        4 => state.lies.view = Some(view(head, head + 1)),
        _ => {
            let impossible = Funds { wallet: funds, escrow: AttoFil::ZERO, locked: funds };
            state.lies.funds = Some(impossible);
        }
    }
}

#[tokio::test]
async fn r15_t38_a_node_that_cannot_be_believed_pauses_spending_and_deals_resume() {
    for which in 0..6 {
        let world = World::new(settings(2), &good(3)).await;
        tracker::pass(&world.d).await;
        lie(&world, which);
        world.passes().await;
        world.passes().await;
        assert_eq!(world.signatures(), 0, "{which}");
        assert!(world.chain.state().messages.is_empty() && world.deals().await.is_empty(), "{which}");
        assert_eq!(world.events("spending.paused").await, 1, "{which}: said once");
        let tracker = world.board().into_iter().find(|w| w.name == "tracker").unwrap();
        assert!(tracker.state == "paused" && tracker.last_error.is_some(), "{which}");
        world.chain.state().lies = Default::default();
        world.until(AggregateState::Stored, 80).await;
        assert_eq!(world.events("spending.resumed").await, 1, "{which}");
        world.stored_and_paid_once().await;
    }
}

/// The node tells when its head moves, and nobody listened: with a look every hour, a deal was seen an hour late.
#[tokio::test]
async fn r15_a_head_that_moves_is_looked_at_before_the_hour() {
    let mut settings = settings(1);
    settings.deals.look_every = Duration::from_secs(3_600);
    let world = World::empty(settings, &good(1)).await;
    let looks = async |wanted: usize| {
        for _ in 0..200 {
            let looks = world.chain.state().calls.iter().filter(|call| **call == "look").count();
            if looks == wanted {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    };
    let moves = async {
        assert!(looks(1).await);
        world.clock.advance(Duration::from_secs(60));
        assert!(!looks(2).await, "nothing moved");
        let moved = Arc::clone(&world.chain.state().moved);
        moved.notify_one();
        tokio::time::sleep(Duration::from_millis(20)).await;
        // A head that moves all the time does not make looks all the time.
        moved.notify_one();
        assert!(!looks(2).await);
        world.clock.advance(Duration::from_secs(2));
        assert!(looks(2).await);
    };
    tokio::select! {
        () = tracker::rounds(&world.d) => unreachable!("it goes round for good"),
        () = moves => {}
    }
}

/// A deal that escrow did not cover asked for a look, the look for a round of the dealer, and that for a look again: five a
/// second for all the hours until what had come in was final.
#[tokio::test]
async fn r15_a_deal_that_waits_for_escrow_makes_no_storm_of_looks() {
    let mut settings = settings(1);
    settings.deals.look_every = Duration::from_secs(3_600);
    let world = World::new(settings, &good(1)).await;
    world.chain.state().wallet = 0;
    let looks = || world.chain.state().calls.iter().filter(|call| **call == "look").count();
    let a_while = async {
        for _ in 0..100 {
            world.clock.advance(Duration::from_millis(250));
            tokio::time::sleep(Duration::from_millis(2)).await;
            dealer::pass(&world.d).await;
        }
    };
    tokio::select! {
        () = tracker::rounds(&world.d) => unreachable!("it goes round for good"),
        () = a_while => {}
    }
    assert_eq!(world.in_state(DealState::Chosen).await.len(), 1, "it waits");
    assert!((1..=3).contains(&looks()), "{} looks of one head", looks());
}

/// A look that is old is no look: nothing is signed on what the chain was.
#[tokio::test]
async fn r15_nothing_is_signed_on_an_old_look() {
    let world = World::new(settings(1), &good(1)).await;
    tracker::pass(&world.d).await;
    world.clock.advance(Duration::from_secs(121));
    dealer::pass(&world.d).await;
    assert!(world.deals().await.is_empty());
    tracker::pass(&world.d).await;
    dealer::pass(&world.d).await;
    assert_eq!(world.deals().await.len(), 1);
}

/// T39: what is undone before it was final was never anything.
#[tokio::test]
async fn t39_a_reorg_before_finality_changes_nothing() {
    let world = World::new(settings(1), &good(1)).await;
    while world.chain.state().deals.is_empty() {
        world.round().await;
    }
    assert!(world.in_state(DealState::Published).await.is_empty(), "not final");
    {
        // The publication is undone, and comes again under another number.
        let mut state = world.chain.state();
        let deal = state.deals[0].clone();
        state.deals[0].id = deal.id + 1_000;
        state.deals[0].published += 2;
    }
    world.until(AggregateState::Stored, 60).await;
    world.stored_and_paid_once().await;
    let active = world.in_state(DealState::Active).await;
    assert!(active[0].deal_id.unwrap() > 1_000);
}

/// A node without events: the provider names the number, and the chain says whether it is true.
#[tokio::test]
async fn without_events_a_providers_word_is_a_place_to_look() {
    let world = World::new(settings(1), &[Script::Names(100)]).await;
    world.chain.state().lies.keeps_no_events = true;
    world.until(AggregateState::Stored, 70).await;
    world.stored_and_paid_once().await;
}

/// R13: on a node without events, a deal that was published and whose provider named another number counted as failed once
/// its start had passed, and the replica was bought a second time.
#[tokio::test]
async fn r13_without_events_a_deal_that_nobody_names_is_not_given_up() {
    let world = World::new(settings(1), &[Script::Names(999)]).await;
    world.chain.state().lies.keeps_no_events = true;
    world.rounds(20).await;
    for _ in 0..10 {
        world.pass_time(30);
        world.passes().await;
    }
    let deals = world.deals().await;
    assert_eq!((deals.len(), deals[0].state), (1, DealState::Accepted));
    // With events it is found where it was all the time.
    world.chain.state().lies.keeps_no_events = false;
    world.rounds(5).await;
    assert_eq!(world.deals().await[0].state, DealState::Active);
    world.paid_once().await;
}

/// A provider that names another's deal gets nothing by it.
#[tokio::test]
async fn a_provider_that_names_anothers_deal_is_not_believed() {
    let mut world = World::empty(settings(1), &[Script::Good, Script::Names(100)]).await;
    world.pack(1, &["default"]).await;
    let listed = Policy { providers: vec![ActorId::new(1_000)], ..policy(1) };
    world.d.settings.policies.insert("default".into(), listed);
    world.until(AggregateState::Stored, 60).await;
    // Deal 100 is on the chain; the other provider names it for its own.
    let listed = Policy { providers: vec![ActorId::new(1_001)], ..policy(1) };
    world.d.settings.policies.insert("default".into(), listed);
    world.chain.state().lies.keeps_no_events = true;
    world.pack(1, &["default"]).await;
    world.rounds(30).await;
    let row = world.deals().await.pop().unwrap();
    assert_eq!(row.word.as_ref().and_then(|word| word.deal_id), Some(100));
    assert_eq!((row.state, row.deal_id), (DealState::Accepted, None));
    world.sound().await;
}

#[tokio::test]
async fn a_sector_that_is_lost_degrades_the_aggregate_and_another_takes_its_place() {
    let world = World::new(settings(2), &[Script::LosesSectorAfter(200), Script::Good, Script::Good]).await;
    let listed = Policy { providers: vec![ActorId::new(1_000), ActorId::new(1_001)], ..policy(2) };
    let mut world = world;
    world.d.settings.policies.insert("default".into(), listed);
    world.until(AggregateState::Stored, 60).await;
    world.d.settings.policies.insert("default".into(), policy(2));
    for _ in 0..45 {
        world.pass_time(10);
        world.passes().await;
    }
    world.until(AggregateState::Stored, 80).await;
    let gone = world.in_state(DealState::Terminated).await;
    assert_eq!((gone.len(), gone[0].provider.get()), (1, 1_000));
    assert_eq!(gone[0].error.as_ref().unwrap().code, FailureCode::TerminatedEarly);
    assert_eq!(world.events("aggregate.degraded").await, 1);
    assert_eq!(world.in_state(DealState::Active).await.len(), 2);
    // What it had not earned came back.
    let totals = world.records.totals().await.unwrap();
    assert!(totals.lifetime.released.get() > COST / 2, "{totals:?}");
    assert_eq!(world.records.verify().await.unwrap().findings, Vec::<String>::new());
}

/// A node that says once that an active deal is gone is not believed: the next deal would cost money.
#[tokio::test]
async fn t38_a_deal_that_is_missing_once_is_not_terminated() {
    let world = World::new(settings(1), &good(2)).await;
    world.until(AggregateState::Stored, 60).await;
    let id = world.chain.state().deals[0].id;
    world.chain.state().lies.hidden.insert(id);
    world.pass_time(70);
    world.passes().await;
    let row = world.deals().await.remove(0);
    assert!(row.missing_since.is_some() && row.state == DealState::Active);
    world.chain.state().lies.hidden.clear();
    world.rounds(3).await;
    let row = world.deals().await.remove(0);
    assert!(row.missing_since.is_none() && row.state == DealState::Active);
    assert_eq!(world.deals().await.len(), 1);
}

/// At the epoch of its start a node said once that it does not know a deal that had been published and sealed. It counted
/// as failed, and its replica was bought a second time.
#[tokio::test]
async fn t38_a_deal_that_is_missing_once_at_its_start_is_not_given_up() {
    let world = World::new(settings(1), &good(2)).await;
    let deal = world.when(DealState::Published).await;
    world.chain.state().lies.hidden.insert(deal.deal_id.unwrap());
    while world.chain.state().last_final() < deal.start.get() {
        world.round().await;
    }
    world.round().await;
    assert!(world.deals().await[0].missing_since.is_some());
    world.chain.state().lies.hidden.clear();
    world.until(AggregateState::Stored, 10).await;
    assert_eq!((world.deals().await.len(), world.deals().await[0].missing_since), (1, None));
    world.stored_and_paid_once().await;
}

/// As little does the market let go of a price because a node does not know the deal once.
#[tokio::test]
async fn t38_a_price_is_not_let_go_of_because_a_deal_is_missing_once() {
    let world = World::new(settings(1), &[Script::NeverSeals]).await;
    let failed = world.when(DealState::Failed).await;
    world.chain.state().lies.hidden.insert(failed.deal_id.unwrap());
    world.round().await;
    assert!(world.records.deal(failed.uuid).await.unwrap().missing_since.is_some());
    world.chain.state().lies.hidden.clear();
    world.rounds(2).await;
    let row = world.records.deal(failed.uuid).await.unwrap();
    assert_eq!((row.is_locked, row.missing_since), (true, None));
    world.rounds(70).await;
    assert!(!world.records.deal(failed.uuid).await.unwrap().is_locked, "gone for good");
    world.sound().await;
}

/// A head that nobody could believe was written down before it was judged: every URL of a deal ended, and each honest head
/// after it counted as one that fell back.
#[tokio::test]
async fn t38_a_head_that_is_not_believed_is_not_remembered() {
    let world = World::new(settings(1), &[Script::NeverPublishes]).await;
    world.rounds(PAID + 6).await;
    let deal = world.in_state(DealState::Accepted).await.remove(0);
    let far = 1_000_000_000;
    world.chain.state().lies.view = Some(view(far, far + 1));
    world.round().await;
    assert!(world.records.highest_head().await.unwrap().unwrap().get() < far);
    assert!(world.records.pull_target(deal.uuid).await.unwrap().unwrap().is_live);
    world.chain.state().lies.view = None;
    world.round().await;
    assert_eq!(world.d.paused(), None);
}

#[tokio::test]
async fn a_faulty_sector_is_a_warning() {
    let world = World::new(settings(1), &good(1)).await;
    world.until(AggregateState::Stored, 60).await;
    world.chain.state().deals[0].is_faulty = true;
    world.pass_time(70);
    world.passes().await;
    let row = world.deals().await.remove(0);
    assert!(row.is_faulty && row.state == DealState::Active);
    assert_eq!(row.error.unwrap().code, FailureCode::SectorFaulty);
    world.chain.state().deals[0].is_faulty = false;
    world.pass_time(70);
    world.passes().await;
    assert_eq!(world.deals().await[0].error, None);
    assert_eq!((world.events("deal.faulty").await, world.events("deal.recovered").await), (1, 1));
}

/// Expired goes by epoch: a deal that nobody settled is still there.
#[tokio::test]
async fn a_deal_expires_by_its_end() {
    let world = World::new(settings(1), &good(1)).await;
    world.until(AggregateState::Stored, 60).await;
    let end = world.deals().await[0].end.get();
    world.records.switch_spending(false, "the operator").await.unwrap();
    let away = {
        let mut state = world.chain.state();
        let away = end - state.head + 10;
        state.head = end + 10;
        away
    };
    assert!(away > 500_000);
    world.rounds(60).await;
    let row = world.deals().await.remove(0);
    assert_eq!((row.state, row.error.unwrap().code), (DealState::Expired, FailureCode::Expired));
    assert!(world.all_are(AggregateState::Degraded).await);
}

/// A deal of this wallet that the rows do not know, of a piece that is not theirs: whoever else uses the wallet is told of.
#[tokio::test]
async fn t43_a_deal_of_another_piece_is_an_alarm() {
    let world = World::new(settings(2), &good(3)).await;
    world.until(AggregateState::Stored, 60).await;
    {
        let mut state = world.chain.state();
        let mut strange = state.deals[0].clone();
        (strange.id, strange.published) = (9_999, state.head);
        strange.bytes.push(1);
        strange.terms.piece = PieceCid::from_commitment([9; 32]).unwrap();
        state.deals.push(strange);
    }
    world.rounds(10).await;
    assert_eq!(world.events("alarm.unknown_deal").await, 1);
    assert!(world.records.restored().await.unwrap().is_none());
    assert_eq!(world.deals().await.len(), 2);
}
