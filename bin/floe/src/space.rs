//! Room that a start needs on the volume of the data directory.
//!
//! A running node goes on without a free byte: it frees space from what it keeps for that (`rows.reserve`,
//! `blocks/kept`). A start needs some before it gets there: for SQLite's shared memory, which is a file beside the
//! rows, for what recovery writes into the index, for the table of announced roots. Where there is less, the start gives
//! `rows.reserve` up, which the rows take again when there is space. Where that is gone too, it says how much is
//! missing, and has changed nothing but that.

use std::path::Path;

use crate::datadir::{DataDir, Layout, remove};
use crate::exit::{self, Code, Failure};
use crate::limits::{NEW_BYTES, START_BYTES};

/// Refuses to make a directory where there is no room for one. One that is there already is looked at once it is locked.
pub(crate) fn require_for_new(layout: &Layout) -> Result<(), Failure> {
    if layout.rows().exists() {
        return Ok(());
    }
    // What is not there yet will be on the volume of what is.
    let volume = layout.root().ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    let short = free(volume).filter(|free| *free < NEW_BYTES);
    short.map_or(Ok(()), |free| Err(refused(layout, free, NEW_BYTES)))
}

/// Sees to it that a start has room, as far as it can.
pub(crate) fn make_room(dir: &DataDir) -> anyhow::Result<()> {
    let layout = dir.layout();
    let is_short = || free(layout.root()).filter(|free| *free < START_BYTES);
    let Some(before) = is_short() else { return Ok(()) };
    remove(&layout.rows_reserve())?;
    match is_short() {
        Some(free) => Err(refused(layout, free, START_BYTES).into()),
        None => {
            tracing::warn!(
                "the disk is full ({before} bytes free): rows.reserve is given up so that the node starts"
            );
            Ok(())
        }
    }
}

/// Says what is missing where a start failed for it all the same.
pub(crate) fn explain(layout: &Layout, error: anyhow::Error) -> anyhow::Error {
    let left = free(layout.root()).filter(|free| *free < START_BYTES);
    match (left, exit::code_of(&error)) {
        (Some(free), Code::Failure | Code::NoSpace) => {
            let Failure { code, reason } = refused(layout, free, START_BYTES);
            Failure::new(code, format!("{reason} ({error:#})")).into()
        }
        _ => error,
    }
}

/// Free bytes; `None` where the system does not say, and the start finds out.
fn free(volume: &Path) -> Option<u64> {
    rustix::fs::statvfs(volume).ok().map(|volume| volume.f_bavail * volume.f_frsize)
}

fn refused(layout: &Layout, free: u64, needed: u64) -> Failure {
    let reason = format!(
        "the volume of {} has {} KiB free and a start needs {} KiB: free {} KiB on it, or give the directory a larger \
         volume, and start again; nothing is lost",
        layout.root().display(),
        free >> 10,
        needed >> 10,
        (needed - free).div_ceil(1 << 10),
    );
    Failure::new(Code::NoSpace, reason)
}
