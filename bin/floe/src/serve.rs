//! `floe serve`: everything is made here, joined here, and stopped here.
use crate::config::flags::Flags;
use crate::datadir::Layout;
use crate::output::Output;

/// Runs until it is told to stop.
pub(crate) async fn serve(_layout: Layout, _flags: Flags, _out: Output) -> anyhow::Result<()> {
    anyhow::bail!("not wired yet")
}
