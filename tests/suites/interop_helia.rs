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
    let (certificate, key) = certificate(dir.path())?;
    let options = Options {
        args: vec!["--swarm-addr".into(), "/ip4/127.0.0.1/tcp/0/tls/ws".into()],
        env: vec![
            ("FLOE_NETWORK_TLS_CERTIFICATE".into(), certificate.clone()),
            ("FLOE_NETWORK_TLS_KEY".into(), key),
        ],
        ..Options::default()
    };
    let floe = Floe::start(&dir.path().join("floe"), &options)?;
    let over_tls = floe.swarm("/tls/ws").replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    let out = Command::new("node")
        .arg("suite.mjs")
        .args([floe.api(), &floe.token(), &floe.swarm_tcp(), &over_tls, "100"])
        .env("NODE_EXTRA_CA_CERTS", certificate)
        .current_dir(suite)
        .output()?;
    println!("{}", String::from_utf8_lossy(&out.stdout));
    ensure!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), floe.log());
    Ok(())
}

/// A certificate for `localhost` that signs itself, and its key: the paths of two PEM files.
fn certificate(dir: &Path) -> Result<(String, String)> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let [chain, key] = ["chain.pem", "key.pem"].map(|name| dir.join(name));
    std::fs::write(&chain, made.cert.pem())?;
    std::fs::write(&key, made.key_pair.serialize_pem())?;
    Ok((chain.display().to_string(), key.display().to_string()))
}
