//! `floe devnet`: a Filecoin of one's own, as a process.
//!
//! Prints one line of JSON once every port answers, so that a script reads a line and knows all: where the node is, a
//! token for it, the key of a funded account, the providers, the control port. Nothing is kept on disk; it ends with a
//! signal.

use std::time::Duration;

use floe_devnet::{Config, Devnet};

use crate::cli::DevnetArgs;
use crate::config::{Log, LogFormat};
use crate::signals::Signals;
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
        ..Config::default()
    }
}
