//! `floe`: the composition root and the command line. The only place that names every crate.
//!
//! [`cli`] is what can be said, [`serve`] what runs, [`client`] what talks to it, [`config`] what can be set,
//! [`datadir`] where everything is kept, [`exit`] what the exit codes mean. Read [`serve`] first.

mod banner;
mod cli;
mod client;
mod cold;
mod config;
mod datadir;
mod devnet;
mod endpoints;
mod exit;
mod init;
mod limits;
mod logs;
mod metrics;
mod offline;
mod output;
mod serve;
mod shell;
mod signals;
mod space;
mod stores;
mod system;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;

use crate::cli::{Cli, Command, ConfigArgs, ConfigCommand, WalletCommand};
use crate::client::Client;
use crate::config::{Config, Layers, file};
use crate::datadir::Layout;
use crate::output::Output;
use crate::system::SystemEntropy;

fn main() -> ExitCode {
    // Crash points of the test rigs; nothing where the feature is off.
    #[cfg(feature = "failpoints")]
    die_at_crash_points();
    let _scenario = fail::FailScenario::setup();
    let cli = Cli::parse();
    let json = cli.json;
    match run(cli) {
        Ok(()) => exit::Code::Ok.into(),
        Err(error) => {
            exit::tell(&error, json);
            exit::code_of(&error).into()
        }
    }
}

/// A crash point that is armed with `panic` ends the process there, as a kill does. A panic alone is caught by whoever
/// runs the thread or the task, and the process lives on.
#[cfg(feature = "failpoints")]
fn die_at_crash_points() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        // The words are those of the crate `fail`.
        if panic.payload_as_str().is_some_and(|said| said.starts_with("failpoint ")) {
            std::process::abort();
        }
    }));
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the runtime")?;
    let outcome = runtime.block_on(dispatch(cli));
    // What has to be finished was waited for; a read that still blocks must not hold up the exit.
    runtime.shutdown_background();
    outcome
}

/// Keeps what this process has in memory out of core dumps and from other processes of the same user: the key of the wallet
/// is in it. Where that cannot be had the process runs all the same.
fn keep_memory_private() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps cannot be turned off: {error}");
    }
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
    {
        tracing::warn!(%error, "other processes cannot be kept from this one's memory: {error}");
    }
}

async fn dispatch(cli: Cli) -> anyhow::Result<()> {
    let out = Output { json: cli.json };
    if matches!(cli.command, Command::Serve(_) | Command::Wallet { .. }) {
        keep_memory_private();
    }
    let home = || std::env::var_os("HOME").map(PathBuf::from);
    let layout = || Layout::choose(cli.data_dir.clone(), home());
    let connect = |remote| anyhow::Ok(Client::connect(&remote, &layout()?)?);
    match cli.command {
        Command::Serve(args) => {
            let layout = if args.devnet {
                Layout::choose_for_devnet(cli.data_dir.clone(), home())?
            } else {
                layout()?
            };
            serve::serve(layout, args, out).await
        }
        Command::Init => offline::init(layout()?, out).await,
        Command::Pin { remote, command } => {
            client::pin(&connect(remote)?, out, command, &SystemEntropy).await
        }
        Command::Account { remote, command } => client::account(&connect(remote)?, out, command).await,
        Command::Token { remote, command } => client::token(&connect(remote)?, out, command).await,
        Command::Wallet { remote, command } => match command {
            WalletCommand::New(key) => cold::keys::new(&layout()?, out, key).await,
            WalletCommand::Import { file, key } => cold::keys::import(&layout()?, out, file, key).await,
            WalletCommand::Export { under, key } => cold::keys::export(&layout()?, under, key).await,
            command => client::wallet(&connect(remote)?, out, command, &SystemEntropy).await,
        },
        Command::Deals { remote, command } => client::deals(&connect(remote)?, out, command).await,
        Command::Providers { remote, command } => client::providers(&connect(remote)?, out, command).await,
        Command::Spending { remote, command } => client::spending(&connect(remote)?, out, command).await,
        Command::Cold { remote, command } => client::cold(&connect(remote)?, out, command).await,
        Command::Events { remote, after, follow } => {
            client::feed(&connect(remote)?, out, after, follow).await
        }
        Command::Status { remote } => client::status(&connect(remote)?, out).await,
        Command::Gc { remote, orphans } => client::gc(&connect(remote)?, out, orphans).await,
        Command::Verify { offline: true, .. } => offline::verify(layout()?, out).await,
        Command::Verify { remote, offline: false } => client::verify(&connect(remote)?, out).await,
        Command::Config { command } => settings(&layout()?, out, command),
        Command::Devnet(args) => devnet::run(args).await,
        Command::Completions { shell } => shell::completions(shell),
        Command::Man { dir } => shell::man(dir),
    }
}

fn settings(layout: &Layout, out: Output, command: ConfigCommand) -> anyhow::Result<()> {
    let (ConfigCommand::Check(ConfigArgs { flags }) | ConfigCommand::Show(ConfigArgs { flags })) = &command;
    let layers = Layers::load(layout.root(), flags.0.clone())?;
    let config = Config::check(&layers)?;
    match command {
        ConfigCommand::Check(_) => {
            config.check_files()?;
            let file = file::path_in(layout.root());
            out.print(&serde_json::json!({ "ok": true, "file": file }), || {
                format!("{} is right", file.display())
            })
        }
        ConfigCommand::Show(_) => shell::show_settings(out, &layers),
    }
}
