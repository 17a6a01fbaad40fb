//! `floe devnet`: a Filecoin of one's own, as a process.
//!
//! Prints one line of JSON once every port answers, so that a script reads a line and knows all: where the node is, a
//! token for it, the key of a funded account, the providers, the control port. Nothing is kept on disk; it ends with a
//! signal.
//!
//! `floe serve --devnet` runs the same inside ([`Inside`]), and is set by a preset over the defaults: config.toml,
//! environment and flags hold over it, and nothing else of Floe knows that the chain is no real one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use floe_core::ports::Entropy as _;
use floe_devnet::{Config, Devnet, Manner, Ready, ReadyProvider};
use floe_filecoin::{Secret, signer};

use crate::cli::DevnetArgs;
use crate::config::file::File;
use crate::config::{Log, LogFormat};
use crate::datadir::Layout;
use crate::exit::{Code, Failure};
use crate::signals::Signals;
use crate::system::SystemEntropy;
use crate::{logs, output};

/// Runs it until a signal comes.
pub(crate) async fn run(args: DevnetArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    logs::start(&Log { filter: "warn".into(), format: LogFormat::Text });
    let devnet = Devnet::start(config(&args)).await?;
    // The line is for programs, whatever `--json` says.
    output::write_stdout(&format!("{}\n", serde_json::to_string(devnet.ready())?))?;
    let signal = signals.next().await;
    tracing::info!("{signal}: the devnet ends");
    Ok(())
}

fn config(args: &DevnetArgs) -> Config {
    Config {
        rpc_addr: args.rpc_addr,
        providers: args.providers,
        epoch: (args.epoch > Duration::ZERO).then_some(args.epoch),
        seed: args.seed,
        sector_size: args.sector_size,
        ..Config::default()
    }
}

/// A devnet inside of `floe serve`. Ends when dropped.
pub(crate) struct Inside {
    devnet: Devnet,
    /// The funded key, as a key file.
    wallet: PathBuf,
    /// Where pieces are pulled from.
    pull: SocketAddr,
}

impl Inside {
    /// Starts it, and writes its key into the data directory.
    pub(crate) async fn start(layout: &Layout) -> anyhow::Result<Self> {
        // A setting of a path has the whole path.
        let wallet = std::path::absolute(layout.root())?.join("devnet.key");
        let root = layout.root().display();
        let wrong = if wallet.exists() {
            Some(format!("{root} is of an earlier --devnet, and its chain ended with that: remove it, or"))
        } else if layout.blocks().exists() {
            Some(format!(
                "{root} is of a node without --devnet, whose pins would be promised to a chain for tests:"
            ))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let reason = format!("{wrong} give --data-dir another directory");
            return Err(Failure::new(Code::DataDir, reason).into());
        }
        // Another chain each time: what was signed on one must be worth nothing on the next.
        let mut seed = [0; 8];
        SystemEntropy.fill(&mut seed);
        let devnet = Devnet::start(Config { seed: u64::from_le_bytes(seed), ..Config::default() }).await?;
        let key = signer::from_lotus(&Secret::new(&devnet.ready().key, "of the devnet")?)?;
        signer::import(&wallet, key, None, &SystemEntropy)?;
        // The URL is in the settings, so that the port must be known before it is listened on.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free on this machine")?;
        Ok(Self { devnet, wallet, pull: free.local_addr()? })
    }

    /// What `floe devnet` would print.
    pub(crate) fn ready(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::to_value(self.devnet.ready())?)
    }

    /// The settings under which a plain pin becomes three deals within two minutes.
    pub(crate) fn preset(&self) -> anyhow::Result<File> {
        let wallet = self.wallet.to_str().context("the data directory's name is not UTF-8")?;
        Ok(File::of_flag("devnet", &preset(self.devnet.ready(), wallet, self.pull))?)
    }
}

/// Sizes and times are a hundredth of the real ones, prices and rules are real.
fn preset(ready: &Ready, wallet: &str, pull: SocketAddr) -> String {
    let quoted = |text: &str| toml_edit::Value::from(text).to_string();
    let provider =
        |one: &ReadyProvider| format!("[provider.{}]\naddr = [{}]\n", one.id, quoted(&address(one)));
    let providers: String = ready.providers.iter().map(provider).collect();
    let api = format!("{}:{}", ready.token, ready.rpc);
    format!(
        r#"
[filecoin]
api = {api}
wallet = {wallet}
test_network = true
finality_lookback = 5
start_lead = 60
look_every = "200ms"
pull_addr = "{pull}"
pull_url = "http://{pull}"

[aggregate]
target = "8MiB"
least = "1MiB"
flush_after = "2s"

[deals]
enabled = true
max_per_deal = "10000000000000000"
max_per_account_day = "100000000000000000"
max_per_day = "100000000000000000"
max_lifetime = "1000000000000000000"
max_gas = "1000000000000000"
least_top_up = "1000000000000"
wallet_reserve = "1000000000000000"

[policy.default]
replicas = 3
max_price_attofil_gib_epoch = "100000000"
duration_epochs = 518400

{providers}"#,
        api = quoted(&api),
        wallet = quoted(wallet),
    )
}

/// Where the provider would be reached on a real network: over HTTP only where it is Curio.
fn address(provider: &ReadyProvider) -> String {
    match (provider.manner, provider.multiaddrs.first()) {
        (Manner::Boost, Some(addr)) => format!("{addr}/p2p/{}", provider.peer_id),
        _ => provider.url.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Layer, Layers};

    #[test]
    fn the_preset_is_a_whole_configuration() {
        let provider = |n: u16, manner| ReadyProvider {
            id: format!("f0{}", 1_000 + n),
            peer_id: "12D3KooWR3v2dbqeuJ9VJAsrCTMK8KiD5f3rWchY1kbCgFUTWujt".into(),
            multiaddrs: vec![format!("/ip4/127.0.0.1/tcp/{}", 4_000 + n)],
            url: format!("http://127.0.0.1:{}", 5_000 + n),
            manner,
        };
        let ready = Ready {
            rpc: "http://127.0.0.1:1234".into(),
            token: "a.b.c".into(),
            network: "devnet".into(),
            key: String::new(),
            client: String::new(),
            providers: vec![provider(0, Manner::Curio), provider(1, Manner::Boost)],
            control: String::new(),
        };
        let text = preset(&ready, "/my \"data\"/devnet.key", "127.0.0.1:4788".parse().unwrap());
        let preset = File::of_flag("devnet", &text).unwrap();
        let layers = Layers::stack_over(preset, Layer::new(), |_| None, Layer::new());
        let config = Config::check(&layers).unwrap();
        let policy = &config.policies["default"];
        assert_eq!((policy.replicas, policy.duration_epochs), (3, 518_400));
        assert!(config.deals.enabled);
        assert_eq!(config.filecoin.start_lead, 60);
        assert_eq!(config.providers.len(), 2);
    }
}
