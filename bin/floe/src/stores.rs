//! Opening the two stores, for the service and for work on a stopped node.

use std::sync::Arc;

use anyhow::Context as _;
use floe_blockstore::{BlockStore, RealDisk};
use floe_core::Clock;
use floe_core::ports::Entropy;
use floe_records::Records;

use crate::config::Storage;
use crate::datadir::{DataDir, Layout};

/// Opens the rows of a directory and migrates them where that is due. Makes them only in a directory that was never
/// whole: where rows were once, new ones would disown every block. `max_queued` is for who takes pins.
pub(crate) async fn open_records(
    dir: &DataDir,
    max_queued: Option<u64>,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> anyhow::Result<Records> {
    let layout = dir.layout();
    let defaults = floe_records::Settings::at(layout.rows());
    let settings = floe_records::Settings {
        may_make: dir.is_initialising(),
        max_queued: max_queued.unwrap_or(defaults.max_queued),
        ..defaults
    };
    let components = floe_records::Components { clock: Arc::clone(clock), entropy: Arc::clone(entropy) };
    let opened = Records::open(settings, components).await;
    opened.with_context(|| format!("cannot open {}", layout.rows().display()))
}

/// Opens the blocks of a directory. Rebuilds the index where it is lost, which takes a pass over the packs.
pub(crate) async fn open_blocks(
    layout: &Layout,
    storage: &Storage,
    clock: &Arc<dyn Clock>,
    entropy: &Arc<dyn Entropy>,
) -> anyhow::Result<BlockStore> {
    let settings = floe_blockstore::Settings {
        dir: layout.blocks(),
        index: storage.index,
        pack_bytes: storage.pack_size,
        reserve_bytes: storage.reserve,
    };
    let components = floe_blockstore::Components {
        disk: Arc::new(RealDisk),
        clock: Arc::clone(clock),
        entropy: Arc::clone(entropy),
    };
    let opened = tokio::task::spawn_blocking(move || BlockStore::open(settings, components)).await;
    let opened = opened.context("opening the block store panicked")?;
    opened.with_context(|| format!("cannot open {}", layout.blocks().display()))
}
