//! A real Helia 5.5 pushes 100 MiB to Floe, drives the API through `@helia/remote-pinning`, and reads back.
//!
//! The checks are in `tests/interop/helia/suite.mjs`. Needs Node and the installed packages
//! (`FLOE_TEST_HELIA=1` after `npm ci --ignore-scripts` there; `.ci/run` does both).

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use floe_tests::floe::{Floe, Options};
use floe_tests::skipped;

#[test]
fn helia_pushes_100_mib_and_reads_it_back() -> Result<()> {
    if std::env::var_os("FLOE_TEST_HELIA").is_none() {
        skipped(
            "helia_pushes_100_mib_and_reads_it_back",
            "FLOE_TEST_HELIA is not set (needs Node 20 and npm)",
        );
        return Ok(());
    }
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("interop/helia");
    let dir = tempfile::tempdir()?;
    let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
    let out = Command::new("node")
        .arg("suite.mjs")
        .args([floe.api(), &floe.token(), &floe.swarm_tcp(), "100"])
        .current_dir(suite)
        .output()?;
    println!("{}", String::from_utf8_lossy(&out.stdout));
    ensure!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), floe.log());
    Ok(())
}
