//! Work on the data directory of a node that does not run: `floe init`, `floe verify --offline`.
//!
//! Both take the lock, so neither can meet a running node. `verify` opens the stores as a start does, which recovers
//! them: rows are migrated, torn ends of packs are cut, a lost index is made again. Beyond that it mends nothing: it
//! reads every record of every pack, every row, and compares the DAGs that rows call complete with the manifests that
//! hold their blocks. A damaged block is named by its CID and the pins whose DAG holds it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::Context as _;
use floe_blockstore::{BlockStore, IndexKind, ManifestState};
use floe_core::cid::code;
use floe_core::ports::Entropy;
use floe_core::{Cid, Clock, Multihash, RequestId};
use floe_records::Records;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::config::flags::Flags;
use crate::config::{Config, Layers, Log, LogFormat, Storage};
use crate::datadir::{DataDir, Layout};
use crate::exit::{Code, Failure};
use crate::output::Output;
use crate::system::{self, SystemClock, SystemEntropy};
use crate::{client, init, logs, space, stores};

/// Makes a data directory, or what is missing of one.
pub(crate) async fn init(layout: Layout, out: Output) -> anyhow::Result<()> {
    system::keep_files_private();
    space::require_for_new(&layout)?;
    let mut dir = DataDir::open_or_make(layout)?;
    logs::start(&Log { filter: "warn".into(), format: LogFormat::Text });
    let identity = init::files(&dir, &SystemEntropy)?;
    init::make_pull_key(&dir, &SystemEntropy)?;
    let (clock, entropy) = machine();
    let records = stores::open_records(&dir, None, &clock, &entropy).await?;
    let completed = init::complete(&mut dir, &records).await;
    records.close().await;
    completed?;
    let peer_id = identity.public().to_peer_id().to_string();
    let root = dir.layout().root();
    out.print(&json!({ "data_dir": root, "peer_id": peer_id }), || {
        format!("{} is ready: start it with `floe serve`\npeer id {peer_id}\n", root.display())
    })
}

/// What `floe verify --offline` prints: the online report, and more.
#[derive(Debug, Clone, Default, Serialize)]
struct Report {
    /// Live blocks read.
    blocks: u64,
    /// Bytes read.
    bytes: u64,
    /// Blocks whose bytes are wrong or gone.
    damaged: Vec<Damaged>,
    /// Damaged places in packs that are no block and are needed: headers, manifests.
    damaged_records: u64,
    /// Nothing is fetched offline.
    repaired: u64,
    /// The block index disagreed with the packs; the next start makes it again.
    index_wrong: bool,
    /// What is wrong with the rows, in words.
    rows: Vec<String>,
    /// DAGs that rows call complete and no sealed manifest holds.
    incomplete: Vec<Incomplete>,
}

#[derive(Debug, Clone, Serialize)]
struct Damaged {
    cid: String,
    repaired: bool,
    pins: Vec<(i64, RequestId)>,
}

#[derive(Debug, Clone, Serialize)]
struct Incomplete {
    dag: Uuid,
    pins: Vec<(i64, RequestId)>,
}

/// Reads every block and every row of a stopped node.
pub(crate) async fn verify(layout: Layout, out: Output) -> anyhow::Result<()> {
    system::keep_files_private();
    let dir = DataDir::open(layout)?;
    let config = Config::check(&Layers::load(dir.layout().root(), Flags::default().0)?)?;
    logs::start(&config.log);
    space::make_room(&dir)?;
    let (clock, entropy) = machine();
    let records = stores::open_records(&dir, None, &clock, &entropy).await?;
    // The index that is there, whatever the environment says: another kind would be a pass over all packs.
    let index = IndexKind::on_disk(&dir.layout().blocks()).unwrap_or(config.storage.index);
    let storage = Storage { index, ..config.storage };
    let blocks = stores::open_blocks(dir.layout(), &storage, &clock, &entropy).await?;
    let report = examine(&records, &blocks).await;
    let closed = blocks.close().await.context("cannot close the block store");
    records.close().await;
    let report = report?;
    closed?;
    out.print(&report, || report.text())?;
    report.verdict()
}

fn machine() -> (Arc<dyn Clock>, Arc<dyn Entropy>) {
    (Arc::new(SystemClock::new()), Arc::new(SystemEntropy))
}

async fn examine(records: &Records, blocks: &BlockStore) -> anyhow::Result<Report> {
    let rows = records.verify().await.context("cannot check the rows")?;
    let scrub = blocks.scrub().await.context("cannot read the blocks")?;
    let mut report = Report {
        blocks: scrub.blocks,
        bytes: scrub.bytes,
        damaged_records: scrub.damaged_records,
        index_wrong: scrub.index_wrong,
        rows: rows.findings,
        ..Report::default()
    };
    let pins = Pins { records };
    let spoilt: Vec<Multihash> = scrub.damaged.into_iter().chain(scrub.missing).collect();
    let holders = holders(blocks, &spoilt).await?;
    for hash in spoilt {
        let cid = Cid::new_v1(code::RAW, hash).to_string();
        let dags = holders.get(&hash).map_or(&[][..], Vec::as_slice);
        report.damaged.push(Damaged { cid, repaired: false, pins: pins.of(dags).await? });
    }
    for dag in not_whole(records, blocks).await? {
        report.incomplete.push(Incomplete { dag, pins: pins.of(&[dag]).await? });
    }
    Ok(report)
}

/// Which manifests, and so which DAGs, hold these blocks.
async fn holders(blocks: &BlockStore, spoilt: &[Multihash]) -> anyhow::Result<HashMap<Multihash, Vec<Uuid>>> {
    if spoilt.is_empty() {
        return Ok(HashMap::new());
    }
    let (store, spoilt) = (blocks.clone(), spoilt.to_vec());
    let found = tokio::task::spawn_blocking(move || store.holders(&spoilt)).await;
    found.context("reading manifests panicked")?.context("cannot read which pins hold damaged blocks")
}

/// The DAGs that rows call complete without a sealed manifest. Manifests without rows are no damage: a crash leaves
/// them to be released, and the next start names the others.
async fn not_whole(records: &Records, blocks: &BlockStore) -> anyhow::Result<Vec<Uuid>> {
    let store = blocks.clone();
    let manifests = tokio::task::spawn_blocking(move || store.manifests())
        .await
        .context("reading manifests panicked")??;
    let states: BTreeMap<Uuid, ManifestState> =
        manifests.into_iter().map(|(id, state, _)| (id, state)).collect();
    let complete = records.dag_ids().await?.into_iter().filter(|(_, complete)| *complete);
    Ok(complete.map(|(dag, _)| dag).filter(|dag| states.get(dag) != Some(&ManifestState::Sealed)).collect())
}

struct Pins<'a> {
    records: &'a Records,
}

impl Pins<'_> {
    async fn of(&self, dags: &[Uuid]) -> anyhow::Result<Vec<(i64, RequestId)>> {
        let mut pins = Vec::new();
        for dag in dags {
            pins.extend(
                self.records.pins_of_dag(*dag).await?.into_iter().map(|(account, id)| (account.0, id)),
            );
        }
        pins.sort_unstable();
        pins.dedup();
        Ok(pins)
    }
}

impl Report {
    fn text(&self) -> String {
        client::verify_text(&json!(self)) + &client::rows_text(&json!(self))
    }

    fn verdict(&self) -> anyhow::Result<()> {
        let found =
            [(self.damaged.len() as u64, "damaged blocks"), (self.rows.len() as u64, "problems in the rows")];
        let mut words: Vec<String> = found
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        words.extend(client::verify_words(&json!(self)));
        if words.is_empty() { Ok(()) } else { Err(Failure::new(Code::Damage, words.join(", ")).into()) }
    }
}
