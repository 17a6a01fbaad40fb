//! Work on the data directory of a node that does not run: `floe init`, `floe verify --offline`.

use std::sync::Arc;

use anyhow::Context as _;
use floe_records::Records;
use serde_json::json;

use crate::datadir::{DataDir, Layout};
use crate::init;
use crate::output::Output;
use crate::system::{SystemClock, SystemEntropy};

/// Makes a data directory, or what is missing of one.
pub(crate) async fn init(layout: Layout, out: Output) -> anyhow::Result<()> {
    let mut dir = DataDir::open_or_make(layout)?;
    let identity = init::files(&dir, &SystemEntropy)?;
    let records = open_records(dir.layout()).await?;
    let completed = init::complete(&mut dir, &records).await;
    records.close().await;
    completed?;
    let peer_id = identity.public().to_peer_id().to_string();
    let root = dir.layout().root();
    out.print(&json!({ "data_dir": root, "peer_id": peer_id }), || {
        format!("{} is ready: start it with `floe serve`\npeer id {peer_id}\n", root.display())
    })
}

/// Opens the rows of a directory.
pub(crate) async fn open_records(layout: &Layout) -> anyhow::Result<Records> {
    let settings = floe_records::Settings { path: layout.rows() };
    let components =
        floe_records::Components { clock: Arc::new(SystemClock::new()), entropy: Arc::new(SystemEntropy) };
    let opened = Records::open(settings, components).await;
    opened.with_context(|| format!("cannot open {}", layout.rows().display()))
}

/// Reads every block and every row of a stopped node.
pub(crate) async fn verify(layout: Layout, _out: Output) -> anyhow::Result<()> {
    let _dir = DataDir::open(layout)?;
    anyhow::bail!("not wired yet")
}
