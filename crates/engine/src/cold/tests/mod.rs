//! Deals, pass by pass, on real rows and a Filecoin in memory: each test drives tracker and dealer itself, so that it can
//! stop, fail or crash them wherever it wants.

#[path = "../../../tests/support/filecoin.rs"]
#[allow(dead_code, unreachable_pub, reason = "each suite uses its part")]
mod filecoin;

mod chain;
mod crashes;
mod gates;
mod money;
mod providers;
mod unwanted;

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use floe_core::policy::Hot;
use floe_core::spending::Caps;
use floe_core::{
    AccountId, ActorId, AggregateState, AttoFil, Cid, Clock as _, DealState, Epoch, ManualClock, Multihash,
    PaddedSize, PieceCid, Policy, PolicyChoice, Seeded, Timestamp,
};
use floe_records::cold::{DealFilter, DealRow, LotPart, NewAggregate, NewProvider, NewSegment, Settled};
use floe_records::{DagOutcome, PinSpec, Records};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::filecoin::{Filecoin, MAX_FEE, Outcome, Script};
use super::{Components, Dealing, Deals, PullKey, Settings, api, dealer, tracker};

const START: u64 = 1_780_000_000_000;
/// Of a piece of a GiB at the price that providers ask, for the shortest term.
const COST: u128 = 50 * 518_400;

/// Rounds in which a deal waits until the top-up that pays for it is final.
const PAID: usize = 6;

/// Rows, workers and a Filecoin.
struct World {
    chain: Filecoin,
    clock: ManualClock,
    dir: tempfile::TempDir,
    settings: Settings,
    records: Records,
    d: Dealing,
    /// In the order in which they were packed.
    aggregates: Vec<Uuid>,
}

fn policy(replicas: u8) -> Policy {
    Policy {
        name: "default".into(),
        replicas,
        regions: Vec::new(),
        max_price: AttoFil::new(100),
        duration_epochs: 518_400,
        hot: Hot::Always,
        providers: Vec::new(),
        ipni: true,
        spare_after_epochs: None,
    }
}

fn caps(atto: u128) -> Caps {
    let most = AttoFil::new(atto);
    Caps { deal: most, account_day: most, day: most, lifetime: most }
}

fn settings(replicas: u8) -> Settings {
    let deals = Deals {
        enabled: true,
        caps: caps(10_u128.pow(15)),
        start_lead: 60,
        finality_lookback: 5,
        least_top_up: AttoFil::new(1),
        wallet_reserve: AttoFil::new(1_000_000),
        look_every: Duration::from_secs(30),
        ..Deals::default()
    };
    Settings {
        policies: BTreeMap::from([("default".to_owned(), policy(replicas))]),
        deals,
        pull_url: Some("http://127.0.0.1:9".into()),
        pull_key: Some(PullKey::new([7; 32])),
        ..Settings::default()
    }
}

fn cid(n: u64) -> Cid {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&n.to_le_bytes());
    Cid::new_v1(0x55, Multihash::wrap(0x12, &digest).unwrap())
}

impl World {
    /// One aggregate that is packed, and providers with these scripts, all known.
    async fn new(settings: Settings, scripts: &[Script]) -> Self {
        let mut world = Self::empty(settings, scripts).await;
        let replicas = world.settings.policies["default"].replicas;
        world.pack(replicas, &["default"]).await;
        world
    }

    async fn empty(settings: Settings, scripts: &[Script]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_millis(START));
        let chain = Filecoin::new(scripts);
        let (records, d) = open(&dir.path().join("rows.sqlite"), &clock, &chain, &settings).await;
        let providers: Vec<_> = chain.state().providers.keys().copied().collect();
        for id in providers {
            let new = NewProvider {
                id: ActorId::new(id),
                source: "test".into(),
                addresses: vec!["http://sp".into()],
                regions: vec!["eu".into()],
            };
            records.put_provider(new).await.unwrap();
        }
        Self { chain, clock, dir, settings, records, d, aggregates: Vec::new() }
    }

    /// An aggregate of one pin of each of these accounts, under the default policy.
    async fn pack(&mut self, replicas: u8, accounts: &[&str]) -> Uuid {
        self.pack_under("default", replicas, accounts).await
    }

    async fn pack_under(&mut self, policy: &str, replicas: u8, accounts: &[&str]) -> Uuid {
        let nth = self.aggregates.len() as u64;
        let records = &self.records;
        let choice = PolicyChoice { name: policy.to_owned(), replicas };
        for (n, name) in accounts.iter().enumerate() {
            let account = match records.accounts().await.unwrap().iter().find(|a| a.name == *name) {
                Some(account) => account.id,
                None => records.create_account(name, None, None).await.unwrap().id,
            };
            let root = cid(nth * 100 + n as u64 + 1);
            let spec = PinSpec {
                cid: root,
                cid_text: root.to_string(),
                name: None,
                origins: Vec::new(),
                meta: BTreeMap::new(),
                policy: choice.clone(),
            };
            records.add_pins(account, vec![spec], false, None).await.unwrap();
        }
        for dag in records.claim_dags(99, 99).await.unwrap() {
            records.finish_dag(dag.dag, DagOutcome::Complete { blocks: 1, bytes: 100 }).await.unwrap();
        }
        for lot in records.lots_to_measure(99).await.unwrap() {
            let part = LotPart { part: 0, first: 0, sections: 1, bytes: 100 };
            records.lot_measured(lot.id, 1 << 30, vec![part]).await.unwrap();
        }
        let size = PaddedSize::from_bytes(1 << 20).unwrap();
        let lots = records.lots(policy, replicas, 99).await.unwrap();
        let segments =
            lots.iter().map(|(lot, _)| NewSegment { lot: lot.id, part: lot.todo[0], size }).collect();
        let new = NewAggregate { policy: policy.to_owned(), replicas, align: true, least: size, segments };
        let id = records.begin_aggregate(new).await.unwrap().unwrap();
        let size = PaddedSize::from_bytes(1 << 30).unwrap();
        let mut commitment = [nth as u8 + 1; 32];
        commitment[31] &= 0x3f;
        let settled = Settled {
            piece: PieceCid::from_commitment(commitment).unwrap(),
            size,
            car_bytes: size.unpadded_bytes(),
            root: cid(nth * 100 + 99),
            fillers: Vec::new(),
        };
        while records.aggregate_packed(id, settled.clone()).await.is_err() {
            tokio::task::yield_now().await;
        }
        self.aggregates.push(id);
        id
    }

    /// What a kill -9 leaves: memory is gone, and the rows are opened again.
    async fn crash(self) -> Self {
        let Self { chain, clock, dir, settings, records, d, aggregates } = self;
        drop(d);
        records.close().await;
        let (records, d) = open(&dir.path().join("rows.sqlite"), &clock, &chain, &settings).await;
        Self { chain, clock, dir, settings, records, d, aggregates }
    }

    /// A look, a round of the dealer, and an epoch goes by.
    async fn round(&self) {
        self.passes().await;
        self.pass_time(1);
    }

    async fn passes(&self) {
        tracker::pass(&self.d).await;
        dealer::pass(&self.d).await;
    }

    fn pass_time(&self, epochs: u32) {
        self.chain.step(i64::from(epochs));
        self.clock.advance(Duration::from_secs(30) * epochs);
    }

    async fn rounds(&self, most: usize) {
        for _ in 0..most {
            self.round().await;
        }
    }

    /// Rounds until the aggregates are in this state. Says how many.
    async fn until(&self, state: AggregateState, most: usize) -> usize {
        for n in 0..most {
            if self.all_are(state).await {
                return n;
            }
            self.round().await;
        }
        panic!("not {state:?} in {most} rounds: {:#?} {:#?}", self.board(), self.deals().await);
    }

    /// Rounds until a deal is in this state: the first of them.
    async fn when(&self, state: DealState) -> DealRow {
        for _ in 0..200 {
            if let Some(row) = self.in_state(state).await.into_iter().next() {
                return row;
            }
            self.round().await;
        }
        panic!("no deal came to be {state:?}: {:#?} {:#?}", self.board(), self.deals().await);
    }

    async fn all_are(&self, state: AggregateState) -> bool {
        for id in &self.aggregates {
            if self.records.aggregate(*id).await.unwrap().state != state {
                return false;
            }
        }
        true
    }

    async fn deals(&self) -> Vec<DealRow> {
        let mut all = self.records.deals(DealFilter { most: 1_000, ..DealFilter::default() }).await.unwrap();
        all.reverse();
        all
    }

    async fn in_state(&self, state: DealState) -> Vec<DealRow> {
        self.deals().await.into_iter().filter(|deal| deal.state == state).collect()
    }

    async fn events(&self, kind: &str) -> usize {
        let all = self.records.events_after(0, 1_000).await.unwrap();
        all.iter().filter(|event| event.kind == kind).count()
    }

    fn board(&self) -> Vec<crate::WorkerStatus> {
        self.d.board.all()
    }

    fn signatures(&self) -> usize {
        self.chain.state().signed.values().map(Vec::len).sum()
    }

    fn policy(&mut self) -> &mut Policy {
        self.d.settings.policies.get_mut("default").unwrap()
    }

    async fn account(&self, name: &str) -> AccountId {
        self.records.accounts().await.unwrap().iter().find(|a| a.name == name).unwrap().id
    }

    /// What must hold at every moment, whatever happened.
    async fn sound(&self) {
        let report = self.records.verify().await.unwrap();
        assert_eq!(report.findings, Vec::<String>::new());
        let totals = self.records.totals().await.unwrap();
        let committed = totals.lifetime.committed().unwrap();
        assert!(committed <= self.settings.deals.caps.lifetime, "{totals:?}");
        assert!(totals.day.committed().unwrap() <= self.settings.deals.caps.day, "{totals:?}");
        let state = self.chain.state();
        // What the chain holds of ours is within what the ledger counts.
        let gas = state.messages.values().filter(|m| m.applied.is_some()).count() as u128 * filecoin::GAS;
        assert!(state.locked() + gas <= committed.get(), "{} {gas} {committed}", state.locked());
        // No bytes but those that the rows have ever reached a provider, and those once signed are the same for ever.
        for provider in state.providers.values() {
            for (uuid, bytes, ..) in &provider.got {
                assert!(state.signed[uuid].contains(bytes));
            }
        }
    }

    /// Nothing was paid twice: each slot has one deal on the chain, and no deal had two forms.
    async fn paid_once(&self) {
        self.sound().await;
        let rows = self.deals().await;
        let state = self.chain.state();
        let mut slots = BTreeMap::<_, usize>::new();
        for deal in &state.deals {
            let row = rows.iter().find(|row| row.uuid == deal.terms.uuid).expect("every deal has its row");
            assert_eq!(
                row.signed.as_ref().unwrap().bytes,
                deal.bytes,
                "what is on the chain is what was stored"
            );
            *slots.entry((row.aggregate, row.slot)).or_default() += 1;
        }
        assert!(slots.values().all(|paid| *paid == 1), "{slots:?}");
    }

    /// Each aggregate has its replicas with as many providers, paid once, and the ledger says what they cost.
    async fn stored_and_paid_once(&self) {
        self.paid_once().await;
        assert!(self.all_are(AggregateState::Stored).await);
        let active = self.in_state(DealState::Active).await;
        for id in &self.aggregates {
            let mut providers: Vec<_> =
                active.iter().filter(|deal| deal.aggregate == *id).map(|deal| deal.provider).collect();
            providers.sort();
            providers.dedup();
            assert_eq!(providers.len(), usize::from(self.settings.policies["default"].replicas));
        }
        let totals = self.records.totals().await.unwrap();
        let prices: u128 = active.iter().map(|deal| deal.cost.get()).sum();
        let spent = totals.lifetime.spent.get();
        let messages = self.chain.state().messages.len() as u128;
        assert!((prices..=prices + messages * MAX_FEE).contains(&spent), "{spent} {prices}");
    }
}

async fn open(path: &Path, clock: &ManualClock, chain: &Filecoin, settings: &Settings) -> (Records, Dealing) {
    let shared: Arc<dyn floe_core::Clock> = Arc::new(clock.clone());
    let entropy = Arc::new(Seeded::new(clock.now().as_millis()));
    let components =
        floe_records::Components { clock: Arc::clone(&shared), entropy: Arc::clone(&entropy) as _ };
    let records = Records::open(floe_records::Settings::at(path.to_path_buf()), components).await.unwrap();
    let cold = Components {
        chain: Arc::new(chain.clone()),
        market: Arc::new(chain.clone()),
        proposer: Arc::new(chain.clone()),
    };
    let d = Dealing::new(
        settings.clone(),
        records.clone(),
        (shared, entropy),
        cold,
        Arc::default(),
        CancellationToken::new(),
    );
    api::begin(&d).await.unwrap();
    (records, d)
}

/// Runs `work` until it has waited `left` times, and drops it there. Whether it came to its end; `left` is what remains.
async fn dropped_after(left: &mut usize, work: impl Future<Output = ()>) -> bool {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(true),
        Poll::Pending if *left == 0 => Poll::Ready(false),
        Poll::Pending => {
            *left -= 1;
            Poll::Pending
        }
    })
    .await
}

fn good(providers: usize) -> Vec<Script> {
    vec![Script::Good; providers]
}
