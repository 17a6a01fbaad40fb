//! What every suite of this crate needs: a clock, seeded randomness, a database in a folder that goes away.
#![allow(dead_code, clippy::unwrap_used, reason = "each suite uses a part; tests may panic")]

pub(crate) mod cold;
pub(crate) mod deals;
pub(crate) mod life;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use floe_core::ports::Entropy;
use floe_core::{AccountId, Cid, ManualClock, PinStatus, RequestId, Timestamp, cid};
use floe_records::{
    ClaimedDag, Components, DagOutcome, GiveUp, Parked, PinFilter, PinRow, PinSpec, Records, Settings,
};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 3_600);

pub(crate) const START: u64 = 1_800_000_000_000;

/// Different bytes at each call, the same in each run.
pub(crate) struct Counted(pub(crate) AtomicU64);

impl Entropy for Counted {
    fn fill(&self, out: &mut [u8]) {
        let seed = self.0.fetch_add(1, Ordering::Relaxed);
        let mut bytes = blake3_of(seed);
        bytes.resize(out.len().max(bytes.len()), 0);
        out.copy_from_slice(&bytes[..out.len()]);
    }
}

/// A spread of a number that is enough for ids.
fn blake3_of(seed: u64) -> Vec<u8> {
    blake3::hash(&seed.to_le_bytes()).as_bytes().to_vec()
}

pub(crate) struct World {
    pub(crate) clock: ManualClock,
    pub(crate) entropy: Arc<Counted>,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new(Timestamp::from_millis(START));
        Self { clock, entropy: Arc::new(Counted(AtomicU64::new(1))), dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("pins-1.sqlite")
    }

    pub(crate) async fn open(&self) -> Records {
        let components =
            Components { clock: Arc::new(self.clock.clone()), entropy: Arc::<Counted>::clone(&self.entropy) };
        Records::open(Settings::at(self.path()), components).await.unwrap()
    }
}

pub(crate) async fn default_account(records: &Records) -> AccountId {
    records.accounts().await.unwrap()[0].id
}

/// The raw CID of a number's bytes.
pub(crate) fn root(n: u32) -> Cid {
    let digest = blake3::hash(&n.to_le_bytes());
    let mut bytes = vec![0x01, 0x55, 0x12, 0x20];
    bytes.extend_from_slice(digest.as_bytes());
    cid::parse_bytes(&bytes).unwrap()
}

pub(crate) fn spec(n: u32) -> PinSpec {
    let cid = root(n);
    let policy = floe_core::PolicyChoice::default();
    PinSpec { cid_text: cid.to_string(), cid, name: None, origins: Vec::new(), meta: BTreeMap::new(), policy }
}

pub(crate) fn named(n: u32, name: &str) -> PinSpec {
    PinSpec { name: Some(name.to_owned()), ..spec(n) }
}

pub(crate) async fn add_one(records: &Records, account: AccountId, spec: PinSpec) -> PinRow {
    records.add_pins(account, vec![spec], false, None).await.unwrap().remove(0)
}

pub(crate) async fn claim_one(records: &Records) -> ClaimedDag {
    let mut claimed = records.claim_dags(1, 10).await.unwrap();
    assert_eq!(claimed.len(), 1);
    claimed.remove(0)
}

/// An attempt in vain, long before the time of any pin is up.
pub(crate) fn parked(next_attempt: Timestamp, reason: &str) -> DagOutcome {
    searched(next_attempt, reason, Duration::ZERO)
}

/// The same, after so much of the day that each pin has.
pub(crate) fn searched(next_attempt: Timestamp, reason: &str, searched: Duration) -> DagOutcome {
    let give_up = GiveUp { after: DAY, reason: format!("given up: {reason}") };
    DagOutcome::Parked(Parked {
        next_attempt,
        reason: reason.to_owned(),
        progressed: false,
        searched,
        give_up,
    })
}

pub(crate) async fn complete(records: &Records, dag: &ClaimedDag, bytes: u64) {
    records.finish_dag(dag.dag, DagOutcome::Complete { blocks: 1, bytes }).await.unwrap();
}

pub(crate) async fn status(records: &Records, account: AccountId, id: RequestId) -> PinStatus {
    records.pin(account, id).await.unwrap().status
}

pub(crate) fn any_status() -> PinFilter {
    PinFilter { statuses: PinStatus::ALL.to_vec(), limit: 1_000, ..PinFilter::default() }
}

/// The writer's follow-up runs before the next request that writes.
pub(crate) async fn barrier(records: &Records) {
    records.job_done(-1).await.unwrap();
}

pub(crate) async fn assert_sound(records: &Records) {
    let report = records.verify().await.unwrap();
    assert_eq!(report.findings, Vec::<String>::new());
}
