//! The same generated operations on a plain model (maps, no IO) and on SQLite: all that can be observed must be
//! equal (reliability.md 2.4). Few roots, two accounts and tight quotas, because that is where the bugs are.
//!
//! Which DAG a claim takes is the database's choice; the model checks that it was allowed and that none was left.
#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use floe_core::PinStatus::{Failed, Pinned, Pinning, Queued};
use floe_core::{AccountId, Clock, PinStatus, RequestId, Timestamp};
use floe_records::{DagOutcome, Error, Records};
use proptest::prelude::*;
use support::*;
use uuid::Uuid;

const PER_ACCOUNT: usize = 2;
const MAX_BYTES: i64 = 100;
const MAX_PINS: usize = 6;

#[derive(Debug, Clone)]
enum Op {
    Add { bounded: bool, roots: Vec<u32> },
    Replace { bounded: bool, pick: usize, root: u32 },
    Remove { bounded: bool, pick: usize },
    Claim { most: usize },
    Progress { pick: usize, bytes: u64 },
    Complete { pick: usize, bytes: u64 },
    Park { pick: usize, secs: u64 },
    Fail { pick: usize },
    Advance { millis: u64 },
    ClockJump { back: bool, secs: u64 },
    DirtyReboot,
}

fn op() -> impl Strategy<Value = Op> {
    let pick = 0_usize..16;
    prop_oneof![
        5 => (any::<bool>(), prop::collection::vec(0_u32..4, 1..4)).prop_map(|(bounded, roots)| Op::Add { bounded, roots }),
        3 => (any::<bool>(), pick.clone(), 0_u32..4).prop_map(|(bounded, pick, root)| Op::Replace { bounded, pick, root }),
        2 => (any::<bool>(), pick.clone()).prop_map(|(bounded, pick)| Op::Remove { bounded, pick }),
        5 => (1_usize..4).prop_map(|most| Op::Claim { most }),
        2 => (pick.clone(), 0_u64..80).prop_map(|(pick, bytes)| Op::Progress { pick, bytes }),
        4 => (pick.clone(), 0_u64..80).prop_map(|(pick, bytes)| Op::Complete { pick, bytes }),
        1 => (pick.clone(), 0_u64..100).prop_map(|(pick, secs)| Op::Park { pick, secs }),
        2 => pick.prop_map(|pick| Op::Fail { pick }),
        3 => (1_u64..60_000).prop_map(|millis| Op::Advance { millis }),
        1 => (any::<bool>(), 0_u64..10).prop_map(|(back, secs)| Op::ClockJump { back, secs }),
        1 => Just(Op::DirtyReboot),
    ]
}

/// Half of the sequences begin with a pin that was pinned and then replaced: what is kept, charged and let go of
/// from there on is seldom reached by chance (a refund of the wrong size once passed 300 sequences unseen).
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let prefix = prop_oneof![
        Just(Vec::new()),
        (any::<bool>(), 1_u64..80).prop_map(|(bounded, bytes)| vec![
            Op::Add { bounded, roots: vec![0] },
            Op::Claim { most: 1 },
            Op::Complete { pick: 0, bytes },
            Op::Replace { bounded, pick: 0, root: 1 },
            Op::Claim { most: 1 },
        ]),
    ];
    (prefix, prop::collection::vec(op(), 1..20)).prop_map(|(mut ops, more)| {
        ops.extend(more);
        ops
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Claimed(AccountId),
    Complete,
    Idle,
}

#[derive(Debug, Clone)]
struct Pin {
    account: AccountId,
    created: u64,
    status: PinStatus,
    dag: Uuid,
    charged: i64,
    kept: i64,
    keeps: Vec<(Uuid, bool)>,
}

#[derive(Debug, Clone)]
struct Dag {
    root: u32,
    state: State,
    bytes: i64,
}

#[derive(Debug, Clone, Default)]
struct Model {
    pins: BTreeMap<RequestId, Pin>,
    dags: BTreeMap<Uuid, Dag>,
    /// Per account and DAG: a retry, and when it is due.
    waits: BTreeMap<(AccountId, Uuid), (bool, u64)>,
    last_created: BTreeMap<AccountId, u64>,
    bounded: Option<AccountId>,
}

#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Quota,
    Busy,
    NotFound,
}

impl Refused {
    fn of(error: &Error) -> Self {
        match error {
            Error::Quota(_) => Self::Quota,
            Error::Busy { .. } => Self::Busy,
            Error::NotFound => Self::NotFound,
            other => panic!("not foreseen: {other}"),
        }
    }
}

impl Model {
    fn used_bytes(&self, account: AccountId) -> i64 {
        self.pins.values().filter(|pin| pin.account == account).map(|pin| pin.charged).sum()
    }

    fn used_pins(&self, account: AccountId) -> usize {
        self.pins.values().filter(|pin| pin.account == account && pin.status != Failed).count()
    }

    fn room(&self, account: AccountId) -> i64 {
        if self.bounded == Some(account) { (MAX_BYTES - self.used_bytes(account)).max(0) } else { i64::MAX }
    }

    fn unsettled(&self, dag: Uuid) -> Vec<RequestId> {
        let mut ids: Vec<_> = self
            .pins
            .iter()
            .filter(|(_, pin)| pin.dag == dag && matches!(pin.status, Queued | Pinning))
            .map(|(id, pin)| (pin.created, *id))
            .collect();
        ids.sort();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    fn live(&self, root: u32) -> Option<Uuid> {
        self.dags.iter().find(|(_, dag)| dag.root == root).map(|(id, _)| *id)
    }

    fn first_created(&self, account: AccountId, count: u64, now: u64) -> Result<u64, Refused> {
        let first = now.max(self.last_created.get(&account).map_or(0, |last| last + 1));
        if first + count - 1 > now + 2_000 { Err(Refused::Busy) } else { Ok(first) }
    }

    /// What adding must answer, before it is done.
    fn may_add(&self, account: AccountId, roots: &[u32], now: u64) -> Result<(), Refused> {
        if self.bounded == Some(account) && self.used_pins(account) + roots.len() > MAX_PINS {
            return Err(Refused::Quota);
        }
        self.first_created(account, roots.len() as u64, now)?;
        let mut room = self.room(account);
        for root in roots {
            let bytes = self.live(*root).map_or(0, |dag| self.dags[&dag].bytes);
            if room == 0 || bytes > room {
                return Err(Refused::Quota);
            }
            room -= bytes;
        }
        Ok(())
    }

    fn may_replace(&self, account: AccountId, old: RequestId, root: u32, now: u64) -> Result<(), Refused> {
        let Some(old) = self.pins.get(&old).filter(|pin| pin.account == account) else {
            return Err(Refused::NotFound);
        };
        if self.bounded == Some(account) && old.status == Failed && self.used_pins(account) + 1 > MAX_PINS {
            return Err(Refused::Quota);
        }
        self.first_created(account, 1, now)?;
        let bytes = self.live(root).map_or(0, |dag| self.dags[&dag].bytes);
        let growth = bytes.max(old.charged) - old.charged;
        if growth > 0 && growth > self.room(account) { Err(Refused::Quota) } else { Ok(()) }
    }

    fn insert(
        &mut self,
        row: &floe_records::PinRow,
        root: u32,
        now: u64,
        kept: i64,
        keeps: Vec<(Uuid, bool)>,
    ) {
        assert_eq!(row.status, Queued);
        match self.live(root) {
            Some(dag) => assert_eq!(row.dag, dag, "the live DAG is joined"),
            None => {
                assert!(!self.dags.contains_key(&row.dag));
                self.dags.insert(row.dag, Dag { root, state: State::Waiting, bytes: 0 });
            }
        }
        let dag = self.dags.get_mut(&row.dag).unwrap();
        if dag.state == State::Idle {
            dag.state = State::Waiting;
        }
        if dag.state == State::Waiting {
            let wait = self.waits.entry((row.account, row.dag)).or_insert((false, now));
            if wait.0 {
                *wait = (false, now);
            }
        }
        let created = row.created.as_millis();
        self.last_created.insert(row.account, created);
        let charged = kept.max(dag.bytes);
        let pin = Pin { account: row.account, created, status: Queued, dag: row.dag, charged, kept, keeps };
        self.pins.insert(row.id, pin);
    }

    fn fail(&mut self, id: RequestId) {
        let pin = self.pins.get_mut(&id).unwrap();
        (pin.status, pin.charged) = (Failed, pin.kept);
    }

    fn settle(&mut self, dag: Uuid) {
        let bytes = self.dags[&dag].bytes;
        for id in self.unsettled(dag) {
            let growth = bytes - self.pins[&id].charged;
            if growth > 0 && growth > self.room(self.pins[&id].account) {
                self.fail(id);
            } else {
                let pin = self.pins.get_mut(&id).unwrap();
                (pin.status, pin.charged, pin.kept) = (Pinned, bytes, 0);
                pin.keeps.clear();
            }
        }
    }

    fn grow(&mut self, dag: Uuid, bytes: i64) {
        let held = self.dags[&dag].bytes.max(bytes);
        self.dags.get_mut(&dag).unwrap().bytes = held;
        let ids: Vec<_> = self.unsettled(dag).into_iter().filter(|id| self.pins[id].charged < held).collect();
        for id in ids {
            if held - self.pins[&id].charged > self.room(self.pins[&id].account) {
                self.fail(id);
            } else {
                self.pins.get_mut(&id).unwrap().charged = held;
            }
        }
        // Those that joined since the claim are fetched for as well.
        for id in self.unsettled(dag) {
            self.pins.get_mut(&id).unwrap().status = Pinning;
        }
    }

    fn end_claim(&mut self, dag: Uuid, retry: bool, due: u64) {
        let accounts: Vec<_> = self.unsettled(dag).iter().map(|id| self.pins[id].account).collect();
        self.dags.get_mut(&dag).unwrap().state = State::Waiting;
        accounts.into_iter().for_each(|account| {
            self.waits.insert((account, dag), (retry, due));
        });
    }

    /// What follows from any change: late pins of complete DAGs settle; what nobody references is gone; what
    /// nobody waits for is idle.
    fn normalise(&mut self) {
        let complete: Vec<Uuid> =
            self.dags.iter().filter(|(_, dag)| dag.state == State::Complete).map(|(id, _)| *id).collect();
        complete.into_iter().for_each(|dag| self.settle(dag));
        let pins: Vec<Pin> = self.pins.values().cloned().collect();
        let held = |id: &Uuid| {
            pins.iter()
                .any(|p| (p.status != Failed && p.dag == *id) || p.keeps.iter().any(|(dag, _)| dag == id))
        };
        self.dags.retain(|id, _| held(id));
        let waiting = |account: Option<AccountId>, id: Uuid| {
            pins.iter().any(|p| {
                p.dag == id && matches!(p.status, Queued | Pinning) && account.is_none_or(|a| a == p.account)
            })
        };
        let dags = &mut self.dags;
        for (id, dag) in dags.iter_mut() {
            if dag.state == State::Waiting && !waiting(None, *id) {
                dag.state = State::Idle;
            }
        }
        self.waits.retain(|(account, id), _| {
            dags.get(id).is_some_and(|dag| dag.state == State::Waiting) && waiting(Some(*account), *id)
        });
    }

    fn claimed(&self) -> Vec<Uuid> {
        let claimed = self.dags.iter().filter(|(_, dag)| matches!(dag.state, State::Claimed(_)));
        claimed.map(|(id, _)| *id).collect()
    }

    fn in_flight(&self, account: AccountId) -> usize {
        self.dags.values().filter(|dag| dag.state == State::Claimed(account)).count()
    }
}

struct Run {
    world: World,
    records: Records,
    model: Model,
    accounts: [AccountId; 2],
}

impl Run {
    async fn new() -> Self {
        let world = World::new();
        let records = world.open().await;
        let bounded = records
            .create_account("bounded", Some(MAX_BYTES as u64), Some(MAX_PINS as u64))
            .await
            .unwrap()
            .id;
        let accounts = [default_account(&records).await, bounded];
        Self { world, records, model: Model { bounded: Some(bounded), ..Model::default() }, accounts }
    }

    fn account(&self, bounded: bool) -> AccountId {
        self.accounts[usize::from(bounded)]
    }

    /// Mostly one of the account's own pins; sometimes any, so that the other account's must not be found.
    fn pick_pin(&self, account: AccountId, pick: usize) -> RequestId {
        let any = pick % 4 == 3;
        let ids: Vec<_> = self
            .model
            .pins
            .iter()
            .filter(|(_, pin)| any || pin.account == account)
            .map(|(id, _)| *id)
            .collect();
        if ids.is_empty() { RequestId(Uuid::nil()) } else { ids[pick % ids.len()] }
    }

    fn pick_claimed(&self, pick: usize) -> Option<Uuid> {
        let claimed = self.model.claimed();
        (!claimed.is_empty()).then(|| claimed[pick % claimed.len()])
    }

    async fn apply(&mut self, op: Op) {
        let now = self.world.clock.now().as_millis();
        match op {
            Op::Add { bounded, roots } => self.add(self.account(bounded), &roots, now).await,
            Op::Replace { bounded, pick, root } => {
                let account = self.account(bounded);
                self.replace(account, self.pick_pin(account, pick), root, now).await;
            }
            Op::Remove { bounded, pick } => {
                let account = self.account(bounded);
                let id = self.pick_pin(account, pick);
                let there = self.model.pins.get(&id).is_some_and(|pin| pin.account == account);
                assert_eq!(self.records.remove_pin(account, id).await.is_ok(), there);
                if there {
                    self.model.pins.remove(&id);
                }
            }
            Op::Claim { most } => self.claim(most, now).await,
            Op::Progress { pick, bytes } => {
                if let Some(dag) = self.pick_claimed(pick) {
                    let wanted = self.records.dag_progress(dag, 1, bytes, None).await.unwrap();
                    self.model.grow(dag, bytes as i64);
                    self.model.normalise();
                    assert_eq!(wanted.is_some(), self.model.dags.contains_key(&dag));
                }
            }
            Op::Complete { pick, bytes } => {
                if let Some(dag) = self.pick_claimed(pick) {
                    complete_dag(&self.records, dag, bytes).await;
                    let row = self.model.dags.get_mut(&dag).unwrap();
                    (row.bytes, row.state) = (bytes as i64, State::Complete);
                }
            }
            Op::Park { pick, secs } => {
                if let Some(dag) = self.pick_claimed(pick) {
                    let due = now + secs * 1_000;
                    let next_attempt = Timestamp::from_millis(due);
                    let outcome = parked(next_attempt, "nobody");
                    self.records.finish_dag(dag, outcome).await.unwrap();
                    self.model.end_claim(dag, true, due);
                }
            }
            Op::Fail { pick } => {
                if let Some(dag) = self.pick_claimed(pick) {
                    self.records.finish_dag(dag, DagOutcome::Failed { reason: "no".into() }).await.unwrap();
                    self.model.dags.get_mut(&dag).unwrap().state = State::Idle;
                    self.model.unsettled(dag).into_iter().for_each(|id| self.model.fail(id));
                }
            }
            Op::Advance { millis } => self.world.clock.advance(Duration::from_millis(millis)),
            Op::ClockJump { back, secs } => {
                let to = if back { now - secs * 1_000 } else { now + secs * 1_000 };
                self.world.clock.jump_to(Timestamp::from_millis(to));
            }
            Op::DirtyReboot => {
                self.records = self.world.open().await;
                let claimed = self.model.claimed();
                assert_eq!(self.records.reset_claims().await.unwrap(), claimed.len() as u64);
                claimed.into_iter().for_each(|dag| self.model.end_claim(dag, false, now));
            }
        }
        self.model.normalise();
        self.compare().await;
    }

    async fn add(&mut self, account: AccountId, roots: &[u32], now: u64) {
        let specs = roots.iter().map(|root| spec(*root)).collect();
        let expected = self.model.may_add(account, roots, now);
        match self.records.add_pins(account, specs, false, None).await {
            Err(error) => assert_eq!(Err(Refused::of(&error)), expected),
            Ok(rows) => {
                assert_eq!(expected, Ok(()));
                let first = self.model.first_created(account, rows.len() as u64, now).unwrap();
                for ((row, root), created) in rows.iter().zip(roots).zip(first..) {
                    assert_eq!(row.created.as_millis(), created);
                    self.model.insert(row, *root, now, 0, Vec::new());
                }
            }
        }
    }

    async fn replace(&mut self, account: AccountId, old: RequestId, root: u32, now: u64) {
        let expected = self.model.may_replace(account, old, root, now);
        match self.records.replace_pin(account, old, spec(root), false, None).await {
            Err(error) => assert_eq!(Err(Refused::of(&error)), expected),
            Ok(row) => {
                assert_eq!(expected, Ok(()));
                let was = self.model.pins.remove(&old).unwrap();
                let mut keeps: Vec<_> = was.keeps.into_iter().filter(|(_, solid)| *solid).collect();
                match was.status {
                    Pinned => keeps = vec![(was.dag, true)],
                    Queued | Pinning => keeps.push((was.dag, false)),
                    Failed => {}
                }
                keeps.retain(|(dag, _)| *dag != row.dag);
                self.model.insert(&row, root, now, was.charged, keeps);
            }
        }
    }

    async fn claim(&mut self, most: usize, now: u64) {
        let claimed = self.records.claim_dags(most, PER_ACCOUNT).await.unwrap();
        assert!(claimed.len() <= most);
        for dag in &claimed {
            let (_, due) = self.model.waits[&(dag.account, dag.dag)];
            assert!(due <= now, "not due");
            assert!(self.model.in_flight(dag.account) < PER_ACCOUNT, "over its share");
            let row = self.model.dags.get_mut(&dag.dag).unwrap();
            assert_eq!((row.state, root(row.root)), (State::Waiting, dag.root));
            row.state = State::Claimed(dag.account);
            self.model.waits.retain(|(_, of), _| *of != dag.dag);
            for id in self.model.unsettled(dag.dag) {
                self.model.pins.get_mut(&id).unwrap().status = Pinning;
            }
        }
        let left = self
            .model
            .waits
            .iter()
            .any(|((account, _), (_, due))| *due <= now && self.model.in_flight(*account) < PER_ACCOUNT);
        assert!(claimed.len() == most || !left, "something due was left lying");
    }

    async fn compare(&self) {
        barrier(&self.records).await;
        let mut counts: BTreeMap<PinStatus, u64> = PinStatus::ALL.into_iter().map(|s| (s, 0)).collect();
        for account in self.accounts {
            let page = self.records.pins(account, any_status()).await.unwrap();
            let real: Vec<_> =
                page.pins.iter().map(|row| (row.created.as_millis(), row.id, row.status, row.dag)).collect();
            let mut model: Vec<_> = self
                .model
                .pins
                .iter()
                .filter(|(_, pin)| pin.account == account)
                .map(|(id, pin)| (pin.created, *id, pin.status, pin.dag))
                .collect();
            model.sort_by(|a, b| b.cmp(a));
            assert_eq!(real, model);
            assert_eq!(page.count, model.len() as u64);
            model.iter().for_each(|(_, _, status, _)| *counts.entry(*status).or_default() += 1);
        }
        assert_eq!(self.records.pin_counts().await.unwrap(), counts);
        for account in self.records.accounts().await.unwrap() {
            let bytes = self.model.used_bytes(account.id);
            assert_eq!(
                (account.used_bytes, account.used_pins),
                (bytes as u64, self.model.used_pins(account.id) as u64)
            );
            assert!(account.max_bytes.is_none_or(|most| account.used_bytes <= most), "overshoot");
        }
        let dags: Vec<_> =
            self.model.dags.iter().map(|(id, dag)| (*id, dag.state == State::Complete)).collect();
        assert_eq!(self.records.dag_ids().await.unwrap(), dags);
    }
}

async fn complete_dag(records: &Records, dag: Uuid, bytes: u64) {
    records.finish_dag(dag, DagOutcome::Complete { blocks: 1, bytes }).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn r07_sqlite_is_the_model(ops in ops()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new().await;
            for op in ops {
                run.apply(op).await;
            }
            assert_sound(&run.records).await;
        });
    }
}
