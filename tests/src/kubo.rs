//! A real Kubo as a child process: loopback only, no bootstrap, no DHT.
//!
//! The binary comes from `tests/interop/kubo` (see `.ci/run`); `FLOE_TEST_KUBO` names it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::floe::now;

/// The Kubo binary, if this machine has one.
pub fn binary() -> Option<PathBuf> {
    std::env::var_os("FLOE_TEST_KUBO").map(PathBuf::from).filter(|p| p.exists())
}

/// Connections that a Kubo has seen since it started.
#[derive(Debug, Clone, Copy)]
pub struct Connections {
    /// Those that began.
    pub opened: u64,
    /// Those that ended.
    pub closed: u64,
}

/// A running `ipfs daemon`. Killed when dropped.
pub struct Kubo {
    child: Option<Child>,
    program: PathBuf,
    /// Its repository.
    pub repo: PathBuf,
}

impl Kubo {
    /// Makes a repository and starts the daemon.
    pub fn start(repo: &Path) -> Result<Self> {
        let program = binary().context("FLOE_TEST_KUBO is not set")?;
        let mut kubo = Self { child: None, program, repo: repo.to_owned() };
        kubo.ipfs(&["init", "--profile=test"])?;
        for (key, value) in [
            ("Routing.Type", "\"none\""),
            ("AutoConf.Enabled", "false"),
            ("AutoTLS.Enabled", "false"),
            ("Discovery.MDNS.Enabled", "false"),
            ("Swarm.Transports.Network.Relay", "false"),
            ("Swarm.RelayClient.Enabled", "false"),
        ] {
            kubo.ipfs(&["config", "--json", key, value])?;
        }
        kubo.daemon()?;
        Ok(kubo)
    }

    /// Starts the daemon. The file `gateway` says that it is ready; polling with commands would take the
    /// repository's lock from under it.
    pub fn daemon(&mut self) -> Result<()> {
        let ready = self.repo.join("gateway");
        let _ = std::fs::remove_file(&ready);
        let log = std::fs::File::create(self.repo.with_extension("log"))?;
        let mut child = Command::new(&self.program)
            .args(["daemon", "--migrate=false"])
            .env("IPFS_PATH", &self.repo)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let begun = now();
        while !ready.exists() {
            if let Some(status) = child.try_wait()? {
                bail!("kubo ended with {status}: see {}", self.repo.with_extension("log").display());
            }
            ensure!(begun.elapsed() < Duration::from_secs(60), "kubo was not ready in 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.child = Some(child);
        Ok(())
    }

    /// Ends the daemon.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Runs `ipfs …`; stdout, trimmed. Fails with stderr.
    pub fn ipfs(&self, args: &[&str]) -> Result<String> {
        let out = self.try_ipfs(args)?;
        ensure!(
            out.status.success(),
            "ipfs {} failed: {}",
            args.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    /// Runs `ipfs …` whatever comes of it.
    pub fn try_ipfs(&self, args: &[&str]) -> Result<Output> {
        Command::new(&self.program)
            .args(args)
            .env("IPFS_PATH", &self.repo)
            .stdin(Stdio::null())
            .output()
            .context("cannot run ipfs")
    }

    /// The daemon's process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it says of its connections.
    pub async fn connections(&self) -> Result<Connections> {
        let api: Multiaddr = std::fs::read_to_string(self.repo.join("api"))?.trim().parse()?;
        let mut parts = api.iter();
        let (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else {
            bail!("kubo's API listens on {api}, which is not /ip4/…/tcp/…");
        };
        let url = format!("http://{ip}:{port}/debug/metrics/prometheus");
        let text = reqwest::get(url).await?.text().await?;
        let sum = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        Ok(Connections {
            opened: sum("libp2p_swarm_connections_opened_total"),
            closed: sum("libp2p_swarm_connections_closed_total"),
        })
    }

    /// Its addresses, with the peer id.
    pub fn addresses(&self) -> Result<Vec<String>> {
        let out = self.ipfs(&["id", "-f", "<addrs>"])?;
        Ok(out.lines().map(str::to_owned).filter(|l| !l.is_empty()).collect())
    }
}

impl Drop for Kubo {
    fn drop(&mut self) {
        self.stop();
    }
}
