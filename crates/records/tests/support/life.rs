//! A life of accounts, tokens and pins that takes every statement once, and what it writes down of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floe_core::{Epoch, PinStatus, Timestamp};
use floe_records::{DagOutcome, IdempotencyKey, NameMatch, PinFilter, PinSpec, Quota, Records, Scope};
use tracing::field::{Field, Visit};
use tracing::span;

use super::*;

#[path = "life/cold.rs"]
mod cold;

/// Fewer would mean that the library reports them in another way, and that these tests look at nothing.
const AT_LEAST: usize = 80;

/// Keeps the text of each statement, in the order in which they came.
#[derive(Clone, Default)]
pub(crate) struct Statements(Arc<Mutex<Vec<String>>>);

/// What came of [`Statements`].
pub(crate) struct Written {
    /// What makes the tables.
    pub(crate) tables: Vec<String>,
    /// What reads and writes rows.
    pub(crate) queries: Vec<String>,
}

impl Statements {
    /// Collects from now on whatever this process runs.
    pub(crate) fn collect() -> Self {
        let statements = Self::default();
        tracing::subscriber::set_global_default(statements.clone()).unwrap();
        statements
    }

    /// How many there were.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Each once.
    pub(crate) fn written(&self) -> Written {
        let mut seen = HashSet::new();
        let all: Vec<_> = self.0.lock().unwrap().iter().filter(|s| seen.insert(*s)).cloned().collect();
        let (tables, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|s| s.starts_with("CREATE") || s.starts_with("--"));
        let queries: Vec<String> = rest.into_iter().filter(|statement| !is_no_query(statement)).collect();
        assert!(queries.len() >= AT_LEAST, "only {} statements: {queries:#?}", queries.len());
        Written { tables, queries }
    }
}

impl tracing::Subscriber for Statements {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "sqlx::query"
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut said = Said::default();
        event.record(&mut said);
        // The library leaves the statement out where the summary is all of it.
        let statement = if said.statement.trim().is_empty() { said.summary } else { said.statement };
        self.0.lock().unwrap().push(statement.trim().to_owned());
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Said {
    summary: String,
    statement: String,
}

impl Visit for Said {
    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "summary" => value.clone_into(&mut self.summary),
            "db.statement" => value.clone_into(&mut self.statement),
            _ => {}
        }
    }
}

/// What opens the file and what a transaction is framed by: each database has its words for these, and none is
/// prepared.
fn is_no_query(statement: &str) -> bool {
    if statement.contains("sqlite_master") {
        return true;
    }
    ["PRAGMA", "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"]
        .iter()
        .any(|word| statement.starts_with(word))
}

/// All of it.
pub(crate) async fn lived(world: &World, records: &Records) {
    pins(world, records).await;
    pages(records).await;
    people(world, records).await;
    messages(records).await;
    seen(records).await;
    packed(world, records).await;
    cold::lived(records).await;
}

/// Pins on their way into pieces, and out of them again.
async fn packed(world: &World, records: &Records) {
    use floe_core::{AggregateEvent, Clock as _, PaddedSize, PieceCid, PolicyChoice};
    use floe_records::cold::{LotPart, NewAggregate, NewSegment, SectionRow, SegmentPlace, Settled};
    let account = default_account(records).await;
    let policy = PolicyChoice { name: "packed".to_owned(), replicas: 3 };
    let gold = |n: u32| PinSpec { policy: policy.clone(), ..spec(n) };
    let mut pins = Vec::new();
    for n in [600, 600, 601, 602, 603] {
        pins.push(add_one(records, account, gold(n)).await.id);
        for dag in records.claim_dags(9, 9).await.unwrap() {
            complete(records, &dag, 10).await;
        }
        barrier(records).await;
    }
    records.remove_pin(account, pins[0]).await.unwrap();
    records.remove_pin(account, pins[4]).await.unwrap();
    assert_eq!(records.lots_not_packable(9).await.unwrap().len(), 3);
    let part = |part: u32| LotPart { part, first: u64::from(part), sections: 1, bytes: 100 };
    for (n, lot) in (0..).zip(records.lots_to_measure(9).await.unwrap()) {
        let parts = if n == 0 { vec![part(0), part(1)] } else { vec![part(0)] };
        records.lot_measured(lot.id, 1_000, parts).await.unwrap();
    }
    records.measure_again(2_000).await.unwrap();
    for (n, lot) in (0..).zip(records.lots_to_measure(9).await.unwrap()) {
        records.put_off_lot(lot.id, "later".into(), world.clock.now()).await.unwrap();
        let parts = if n == 0 { vec![part(0), part(1)] } else { vec![part(0)] };
        records.lot_measured(lot.id, 2_000, parts).await.unwrap();
    }
    assert!(records.cold_groups().await.unwrap().contains(&("packed".to_owned(), 3)));
    let lots = records.lots("packed", 3, 9).await.unwrap();
    assert_eq!(lots.len(), 3);
    let size = PaddedSize::from_bytes(256).unwrap();
    let segments = lots.iter().map(|(lot, _)| NewSegment { lot: lot.id, part: lot.todo[0], size }).collect();
    let new = NewAggregate { policy: "packed".into(), replicas: 3, align: true, least: size, segments };
    let id = records.begin_aggregate(new).await.unwrap().unwrap();
    barrier(records).await;
    for pin in &pins {
        records.lot_of_pin(*pin).await.unwrap();
        records.aggregates_of_pin(*pin).await.unwrap();
    }
    let given = records.segments(id).await.unwrap();
    for segment in &given {
        let section = SectionRow { cid: segment.root, data_bytes: 63 };
        records.put_sections(id, (segment.n, 0), 0, vec![section]).await.unwrap();
    }
    // Of one with a lot of its own left, and of one without.
    for segment in given.iter().filter(|segment| segment.parts > 1).chain(given.iter().rev().take(1)) {
        let _ = records.give_back_segment(id, segment.n, "missing".into(), world.clock.now()).await;
    }
    let left = records.segments(id).await.unwrap();
    let place = |n: u32| SegmentPlace { n, start: 100, place: 0, size, commitment: None };
    records.place_segments(id, left.iter().map(|segment| place(segment.n)).collect()).await.unwrap();
    assert!(records.sections(id, left[0].n, 0).await.unwrap().is_some());
    let piece = PieceCid::from_commitment([4; 32]).unwrap();
    let settled = Settled { piece, size, car_bytes: 254, root: root(650), fillers: Vec::new() };
    records.aggregate_packed(id, settled).await.unwrap();
    assert!(!records.aggregate_pins(id).await.unwrap().is_empty());
    assert!(!records.aggregates(&[floe_core::AggregateState::Packed], None, 9).await.unwrap().is_empty());
    assert!(!records.cold_places(left[0].root.hash(), 9).await.unwrap().is_empty());
    for event in [AggregateEvent::Placing, AggregateEvent::Enough, AggregateEvent::TooFew] {
        records.step_aggregate(id, event).await.unwrap();
        barrier(records).await;
    }
}

/// Each way through a pin's life.
async fn pins(world: &World, records: &Records) {
    let account = default_account(records).await;
    let key = |nth: u8| Some(IdempotencyKey { key: format!("key-{nth}"), body_hash: [nth; 32] });
    let origins = vec![format!("/ip4/1.2.3.4/tcp/4001/p2p/{PEER}")];
    let meta = BTreeMap::from([("app".to_owned(), "portable".to_owned())]);
    let full = PinSpec { origins, meta, ..named(1, "One") };
    for _ in 0..2 {
        records.add_pins(account, vec![full.clone(), named(2, "Two")], true, key(1)).await.unwrap();
    }
    let row = add_one(records, account, named(3, "Three")).await;
    let claimed = records.claim_dags(9, 9).await.unwrap();
    records.reset_claims().await.unwrap();
    assert_eq!(claimed.len(), 3);
    let claimed = records.claim_dags(9, 9).await.unwrap();
    records.dag_progress(claimed[0].dag, 3, 30, Some("slow".into())).await.unwrap();
    let next_attempt = Timestamp::from_millis(START + 60_000);
    let parked = parked(next_attempt, "nobody has it");
    records.finish_dag(claimed[0].dag, parked).await.unwrap();
    assert_eq!(records.parked_roots(9).await.unwrap().len(), 1);
    records.next_due().await.unwrap();
    records.wake(Some(PEER), None).await.unwrap();
    records.wake(None, Some(&claimed[0].root)).await.unwrap();
    records.wake(Some(PEER), Some(&claimed[0].root)).await.unwrap();
    complete(records, &claimed[1], 40).await;
    records.finish_dag(claimed[2].dag, DagOutcome::Failed { reason: "no codec".into() }).await.unwrap();
    // Joins a DAG that is complete, and is settled behind the answer.
    add_one(records, account, PinSpec { name: None, ..spec(2) }).await;
    barrier(records).await;

    let replaced = records.replace_pin(account, row.id, spec(4), false, key(2)).await.unwrap();
    let dag = records.claim_dags(9, 9).await.unwrap();
    for dag in &dag {
        complete(records, dag, 10).await;
    }
    let again = records.replace_pin(account, replaced.id, spec(5), false, None).await.unwrap();
    assert!(!records.pins_of_dag(again.dag).await.unwrap().is_empty());
    assert!(!records.is_complete(again.dag).await.unwrap());
    records.remove_pin(account, again.id).await.unwrap();
    assert!(records.dag_ids().await.unwrap().iter().any(|(_, complete)| *complete));
    assert!(!records.queued_releases().await.unwrap().is_empty());
    let announced = records.announced(uuid::Uuid::nil(), 10).await.unwrap();
    assert!(records.announced_count().await.unwrap() <= announced.len() as u64);
    for (id, _) in records.jobs(99).await.unwrap() {
        records.job_done(id).await.unwrap();
    }
    // Keys are forgotten after a day.
    world.clock.advance(Duration::from_secs(100_000));
    add_one(records, account, spec(6)).await;
    barrier(records).await;
}

const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

/// Each filter, alone and with the ends of a page.
async fn pages(records: &Records) {
    let account = default_account(records).await;
    let by = |name: NameMatch| PinFilter { name: Some((name, "two".to_owned())), ..any_status() };
    let filters = [
        any_status(),
        PinFilter { statuses: vec![PinStatus::Pinned], ..any_status() },
        PinFilter { cids: vec![root(1), root(2)], ..any_status() },
        by(NameMatch::Exact),
        by(NameMatch::IExact),
        by(NameMatch::Partial),
        by(NameMatch::IPartial),
        PinFilter { meta: BTreeMap::from([("app".to_owned(), "portable".to_owned())]), ..any_status() },
    ];
    let (early, late) = (Timestamp::from_millis(START - 1), Timestamp::from_millis(START + 200_000_000));
    for filter in filters {
        for (before, after) in
            [(None, None), (Some(late), None), (None, Some(early)), (Some(late), Some(early))]
        {
            let page = records.pins(account, PinFilter { before, after, ..filter.clone() }).await.unwrap();
            for row in page.pins {
                records.pin(account, row.id).await.unwrap();
            }
        }
    }
    records.pin_counts().await.unwrap();
}

/// Accounts and tokens.
async fn people(world: &World, records: &Records) {
    records.create_account("alice", Some(1_000), Some(10)).await.unwrap();
    let account = records.accounts().await.unwrap().iter().find(|a| a.name == "alice").unwrap().id;
    add_one(records, account, spec(1)).await;
    let (token, secret) =
        records.create_token("alice", &[Scope::PinsRead], Some(Duration::from_secs(60))).await.unwrap();
    assert!(records.authenticate(&secret).await.unwrap().is_some());
    records.tokens(None).await.unwrap();
    records.tokens(Some("alice")).await.unwrap();
    records.revoke_token(token.id).await.unwrap();
    records.suspend_account("alice", true).await.unwrap();
    records.set_quota("alice", Quota { max_pins: Some(None), ..Quota::default() }).await.unwrap();
    world.clock.advance(Duration::from_secs(1));
}

/// A message through all of its steps, and what is known of the chain.
async fn messages(records: &Records) {
    use floe_records::cold::{MessageRow, MessageStep, MessageVersion};
    let version = |n: u32| MessageVersion { cid: root(n), bytes: vec![1, 2, 3], pushed_at: None };
    let row = MessageRow {
        intent: "top-up 1".into(),
        wallet: "f1wallet".into(),
        nonce: 7,
        since: Epoch::new(100),
        step: MessageStep::Signed,
        versions: vec![version(900)],
    };
    records.begin_ledger_epoch().await.unwrap();
    records.add_message(row.clone(), 2).await.unwrap();
    records.message_step(row.intent.clone(), MessageStep::Pooled, Some(Epoch::new(101))).await.unwrap();
    records.add_message_version(row.intent.clone(), 1, version(901)).await.unwrap();
    assert_eq!(records.open_messages("f1wallet").await.unwrap().len(), 1);
    let done = MessageStep::Final { version: 1, height: Epoch::new(105), exit_code: 0 };
    records.message_step(row.intent.clone(), done, None).await.unwrap();
    assert_eq!(records.message("top-up 1").await.unwrap().unwrap().versions.len(), 2);
    assert_eq!(records.last_nonce("f1wallet").await.unwrap(), Some(7));
    for _ in 0..2 {
        records.pin_chain("devnet".into(), root(902)).await.unwrap();
    }
    records.saw_chain(Epoch::new(9)).await.unwrap();
    assert_eq!(records.chain().await.unwrap().unwrap().highest, Epoch::new(9));
}

/// What owners and operators look at in the cold half.
async fn seen(records: &Records) {
    let (pin, aggregate) = (floe_core::RequestId(uuid::Uuid::max()), uuid::Uuid::max());
    let account = default_account(records).await;
    assert!(records.cold_of_pins(&[pin]).await.unwrap().is_empty());
    assert_eq!(records.owner_in_aggregates(pin).await.unwrap(), None);
    for account in [None, Some(account)] {
        assert!(records.pins_in_aggregate(aggregate, account, 9).await.unwrap().is_empty());
        let filter = floe_records::cold::DealFilter { account, most: 9, ..Default::default() };
        assert!(records.deals(filter).await.unwrap().is_empty());
    }
    assert_eq!(records.aggregate_counts().await.unwrap().values().sum::<u64>(), 0);
}
