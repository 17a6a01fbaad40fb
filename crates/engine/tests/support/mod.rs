//! A world around the real engine on the real stores: a clock that stands still, and an exchange and a network
//! in memory that do what the test says.
#![allow(dead_code, unreachable_pub, reason = "each suite uses its part")]
#![allow(clippy::unwrap_used, reason = "test support, outside of #[test] functions")]

pub mod dags;
pub mod net;
pub mod nobody;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use floe_blockstore::BlockStore;
use floe_core::{AccountId, Cid, Clock, ManualClock, PinStatus, RequestId, Seeded, Timestamp};
use floe_engine::{Components, Engine, PinRow, PinSpec, Principal, Scope, Settings};
use floe_records::Records;

pub use self::net::Net;

pub struct World {
    pub clock: ManualClock,
    pub net: Arc<Net>,
    pub dir: tempfile::TempDir,
    pub blocks: BlockStore,
    pub records: Records,
    pub engine: Engine,
    settings: Settings,
    pub disk: Arc<dyn floe_blockstore::Disk>,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> Self {
        Self::on_disk(settings, Arc::new(floe_blockstore::RealDisk)).await
    }

    pub async fn on_disk(settings: Settings, disk: Arc<dyn floe_blockstore::Disk>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = ManualClock::new(Timestamp::from_millis(1_780_000_000_000));
        let net = Net::new();
        let (blocks, records) = open(dir.path(), &clock, &disk, 1).await;
        let engine = start(&settings, &blocks, &records, &net, &clock).await;
        Self { clock, net, dir, blocks, records, engine, settings, disk }
    }

    /// What a kill -9 leaves: nothing is told to stop, memory is gone, the files are opened again.
    pub async fn crash(self) -> Self {
        self.crash_and(|_, _| std::future::ready(())).await
    }

    /// The same, with something done to the stores before the engine starts again.
    pub async fn crash_and<F, Fut>(self, between: F) -> Self
    where
        F: FnOnce(BlockStore, Records) -> Fut,
        Fut: Future<Output = ()>,
    {
        let Self { clock, net, dir, blocks, records, engine, settings, disk } = self;
        drop(engine);
        net.forget_sessions();
        // The files are locked by one opener at a time; nothing is flushed that was not durable already.
        until("the tasks are gone", || async { net.open_sessions() == 0 }).await;
        records.close().await;
        blocks.close().await.unwrap();
        drop((blocks, records));
        let (blocks, records) = open(dir.path(), &clock, &disk, 2).await;
        between(blocks.clone(), records.clone()).await;
        let engine = start(&settings, &blocks, &records, &net, &clock).await;
        Self { clock, net, dir, blocks, records, engine, settings, disk }
    }

    pub async fn account(&self, name: &str, max_bytes: Option<u64>) -> Principal {
        let account = match self.records.accounts().await.unwrap().into_iter().find(|a| a.name == name) {
            Some(account) => account,
            None => self.engine.create_account(name, max_bytes, None).await.unwrap(),
        };
        let (token, secret) = self.engine.create_token(name, &[Scope::PinsWrite], None).await.unwrap();
        let who = self.engine.authenticate(&secret).await.unwrap().unwrap();
        assert_eq!((who.account.id, who.token), (account.id, token.id));
        who
    }

    pub async fn alice(&self) -> Principal {
        self.account("alice", None).await
    }

    pub async fn add(&self, who: &Principal, root: &Cid) -> PinRow {
        self.add_from(who, root, &[]).await
    }

    pub async fn add_from(&self, who: &Principal, root: &Cid, origins: &[&str]) -> PinRow {
        let specs = vec![spec(root, origins)];
        self.engine.add_pins(who, specs, true, None).await.unwrap().remove(0)
    }

    pub async fn status(&self, who: &Principal, id: RequestId) -> PinStatus {
        self.engine.pin(who, id).await.unwrap().status
    }

    /// Waits, with the clock standing still.
    pub async fn reaches(&self, who: &Principal, id: RequestId, status: PinStatus) -> PinRow {
        until(&format!("{id} is {status:?}"), || async { self.status(who, id).await == status }).await;
        self.engine.pin(who, id).await.unwrap()
    }

    /// Moves the clock by `step` until `holds`, at most `most` in all. Says how long it took. Before each step the
    /// stores get real time for what the last one began.
    pub async fn advance_until<F, Fut>(&self, step: Duration, most: Duration, mut holds: F) -> Duration
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = bool>,
    {
        let start = self.clock.monotonic();
        let patience = if step > Duration::from_secs(1) { 1 } else { 20 };
        loop {
            for _ in 0..patience {
                settle().await;
                if holds().await {
                    return self.clock.monotonic() - start;
                }
            }
            let passed = self.clock.monotonic() - start;
            assert!(passed < most, "not within {most:?} of the manual clock");
            self.clock.advance(step);
        }
    }

    /// Lets the search for a root that nobody has run into its end.
    pub async fn parks(&self, root: &Cid) {
        until("it is asked for", || async { self.net.asked(root) > 0 }).await;
        self.clock.advance(Duration::from_secs(25));
        until("it is parked", || async { self.net.is_parked(root) }).await;
    }

    pub async fn advance_to(
        &self,
        who: &Principal,
        id: RequestId,
        status: PinStatus,
        most: Duration,
    ) -> Duration {
        self.advance_until(Duration::from_secs(1), most, || async { self.status(who, id).await == status })
            .await
    }

    pub fn has(&self, cid: &Cid) -> bool {
        self.blocks.get(cid).unwrap().is_some()
    }

    pub fn has_all(&self, blocks: &[floe_core::Block]) -> bool {
        blocks.iter().all(|b| self.has(b.cid()))
    }
}

async fn open(
    dir: &Path,
    clock: &ManualClock,
    disk: &Arc<dyn floe_blockstore::Disk>,
    seed: u64,
) -> (BlockStore, Records) {
    let clock: Arc<dyn Clock> = Arc::new(clock.clone());
    let settings = floe_blockstore::Settings {
        dir: dir.join("blocks-1"),
        index: floe_blockstore::IndexKind::Redb,
        pack_bytes: 64 << 20,
        reserve_bytes: Some(1 << 20),
    };
    let entropy = Arc::new(Seeded::new(seed));
    let components = floe_blockstore::Components {
        disk: Arc::clone(disk),
        clock: Arc::clone(&clock),
        entropy: entropy.clone(),
    };
    let blocks =
        tokio::task::spawn_blocking(move || BlockStore::open(settings, components)).await.unwrap().unwrap();
    let settings = floe_records::Settings::at(dir.join("pins-1.sqlite"));
    let records = Records::open(settings, floe_records::Components { clock, entropy }).await.unwrap();
    (blocks, records)
}

async fn start(
    settings: &Settings,
    blocks: &BlockStore,
    records: &Records,
    net: &Arc<Net>,
    clock: &ManualClock,
) -> Engine {
    let components = Components {
        blocks: blocks.clone(),
        records: records.clone(),
        exchange: Arc::clone(net) as _,
        network: Arc::clone(net) as _,
        clock: Arc::new(clock.clone()),
        entropy: Arc::new(Seeded::new(7)),
        cold: (!settings.cold.policies.is_empty()).then(nobody::components),
    };
    Engine::start(settings.clone(), components).await.unwrap()
}

pub fn spec(root: &Cid, origins: &[&str]) -> PinSpec {
    PinSpec {
        cid_text: root.to_string(),
        cid: *root,
        name: None,
        origins: origins.iter().map(|o| (*o).to_owned()).collect(),
        meta: BTreeMap::new(),
        policy: Default::default(),
    }
}

/// Lets what is ready run, also on other threads.
pub async fn settle() {
    tokio::time::sleep(Duration::from_millis(3)).await;
}

/// Waits in real time for what needs no clock; fails after 30 s.
pub async fn until<F, Fut>(what: &str, mut holds: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    for _ in 0..10_000 {
        if holds().await {
            return;
        }
        settle().await;
    }
    panic!("never: {what}");
}

pub fn id_of(row: &PinRow) -> (AccountId, RequestId) {
    (row.account, row.id)
}
