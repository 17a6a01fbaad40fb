//! The command line, as clap reads it: names, help, plain values. What is done with them is elsewhere.

mod cold;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use floe_core::AttoFil;

pub(crate) use self::cold::{ColdCommand, CostByArg, DealsCommand, ProvidersCommand, SpendingCommand};
use crate::client::{Secret, amount_of};
use crate::config::flags::Flags;
use crate::config::values::{byte_size, duration, origin};

/// Floe: an IPFS pinning service in one binary.
#[derive(Debug, Parser)]
#[command(name = "floe", version, about, max_term_width = 100, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 ok, 1 failure, 2 usage or config, 3 unreachable, 4 refused, 5 not found, \
    6 pin failed, 10 data directory foreign, newer or locked, 11 port in use, 12 failed sync, 13 damage found, \
    14 too little room to start."
)]
pub(crate) struct Cli {
    /// Where everything is kept [default: ~/.floe]
    // clap takes no empty path; here it is one that is not set, like every other empty variable.
    #[arg(long, global = true, env = "FLOE_DATA_DIR", value_name = "DIR", hide_env_values = true)]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from), value_hint = ValueHint::DirPath)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Print one JSON document instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the service
    #[command(
        long_about = "Run the service.\n\nAn empty data directory is initialised first. Prints where it \
        listens once it is ready; SIGTERM and SIGINT stop it within 30 seconds, a second one at once."
    )]
    Serve(ServeArgs),
    /// Make a data directory, without running on it
    Init,
    /// Pins of the account that the token belongs to
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Pin {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: PinCommand,
    },
    /// Accounts: who owns pins
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Account {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: AccountCommand,
    },
    /// Access tokens: what proves an account
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Token {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The wallet that pays for deals: its key, and what it has
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Wallet {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: WalletCommand,
    },
    /// Deals: every attempt to have a provider keep a replica on Filecoin
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Deals {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: DealsCommand,
    },
    /// Storage providers that may be asked
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Providers {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: ProvidersCommand,
    },
    /// Whether deals may be made, and what they may cost
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Spending {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: SpendingCommand,
    },
    /// What goes to Filecoin next
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Cold {
        #[command(flatten)]
        remote: Remote,
        #[command(subcommand)]
        command: ColdCommand,
    },
    /// Show what happened to pieces, deals, providers and money
    Events {
        #[command(flatten)]
        remote: Remote,
        /// Only those behind the event of this number
        #[arg(long, value_name = "NUMBER", default_value_t = 0, hide_default_value = true)]
        after: u64,
        /// Go on with what happens from now on; with --json one document a line
        #[arg(long)]
        follow: bool,
    },
    /// Show how the node is doing
    Status {
        #[command(flatten)]
        remote: Remote,
    },
    /// Wait until nothing unreferenced is left on disk, and say what was freed
    Gc {
        #[command(flatten)]
        remote: Remote,
        /// Also free what is stored and no pin is known for, as after an older rows.sqlite was put back
        #[arg(long)]
        orphans: bool,
    },
    /// Read every block back; damaged ones are fetched again where a peer has them
    Verify {
        #[command(flatten)]
        remote: Remote,
        /// Check a stopped node's directory, without fetching anything
        ///
        /// It is opened as a start opens it: the database is migrated to this version, torn ends of packs are cut, and
        /// a lost index is made again. To check a backup that is to stay as it is, check a copy of it.
        #[arg(long)]
        offline: bool,
    },
    /// Look at the settings
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run a Filecoin of one's own, for tests: a node, and providers that really store
    #[command(
        long_about = "Run a Filecoin of one's own, for tests: a Lotus-compatible node with a chain in memory, and \
        storage providers that pull, check, publish, seal and serve.\n\nPrints one line of JSON once it is ready: \
        `rpc`, `token`, `network`, `key` (of a funded account), `providers` (`id`, `peer_id`, `multiaddrs`, `url`) and `control`, \
        where faults are set (POST /faults). Nothing is kept; a signal ends it. Its keys follow from the seed and are \
        worth nothing anywhere else."
    )]
    Devnet(DevnetArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one per command
    Man {
        /// Write floe.1, floe-serve.1, … into this directory instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Arguments of `floe serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Run a Filecoin for tests inside, and make deals there: three for each pin, within two minutes
    ///
    /// A node and five providers in memory (see `floe devnet`), a policy of three replicas, small pieces, quick epochs, a
    /// funded wallet, and spending on with small caps. What config.toml, environment and flags say holds over that. The
    /// chain ends with the process, and the data directory is of no use after it: the default is `~/.floe-devnet`.
    #[arg(long)]
    pub(crate) devnet: bool,
    /// Say that this data directory was put back from a backup: replicas wait until nothing unknown can be published
    ///
    /// A backup does not know which deals were signed after it. A copy of a directory is noticed without this; a snapshot
    /// that was rolled back in place is not. `floe spending trust-backup` ends the wait sooner.
    #[arg(long)]
    pub(crate) restored: bool,
    #[command(flatten)]
    pub(crate) flags: Flags,
}

/// Arguments of `floe devnet`.
#[derive(Debug, Args)]
pub(crate) struct DevnetArgs {
    /// Where the node listens; port 0 is a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub(crate) rpc_addr: SocketAddr,
    /// How many storage providers there are, each with an owner of its own
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    pub(crate) providers: usize,
    /// Time of an epoch; 0s: the chain goes on only when the control port says so
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub(crate) epoch: Duration,
    /// Everything that is not asked for follows from it
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Size of the providers' sectors, and so of the largest piece that they take
    #[arg(long, value_name = "SIZE", default_value = "8MiB", value_parser = byte_size)]
    pub(crate) sector_size: u64,
}

/// Which API to talk to, and as whom.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Remote {
    /// The API's URL [default: that of the node running on the data directory]
    #[arg(long, global = true, env = "FLOE_API_URL", value_name = "URL", hide_env_values = true)]
    pub(crate) api_url: Option<String>,
    /// The token to show [default: admin.token in the data directory]
    #[arg(long, global = true, env = "FLOE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<Secret>,
}

/// What to do with pins.
#[derive(Debug, Subcommand)]
pub(crate) enum PinCommand {
    /// Pin a CID and everything under it
    Add {
        /// The root
        cid: String,
        #[command(flatten)]
        pin: PinArgs,
    },
    /// List pins, newest first
    Ls(PinFilterArgs),
    /// Show one pin
    Status {
        /// Its request id
        id: String,
    },
    /// Remove a pin
    Rm {
        /// Its request id
        id: String,
    },
    /// Replace a pin by another CID; what both share is not fetched again
    Replace {
        /// The request id of the old pin
        id: String,
        /// The new root
        cid: String,
        #[command(flatten)]
        pin: PinArgs,
    },
}

/// What can be said about a new pin.
#[derive(Debug, Clone, Args)]
pub(crate) struct PinArgs {
    /// A name to find it by
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// A multiaddr of a peer that has it
    #[arg(long = "origin", value_name = "MULTIADDR", value_parser = origin)]
    pub(crate) origins: Vec<String>,
    /// Kept with the pin
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) meta: Vec<(String, String)>,
    /// Wait until it is pinned or has failed, and show the progress
    #[arg(long)]
    pub(crate) wait: bool,
}

/// Which pins to list.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PinFilterArgs {
    /// Only this CID
    #[arg(long = "cid", value_name = "CID")]
    pub(crate) cids: Vec<String>,
    /// Only this name
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How the name is compared
    #[arg(long = "match", value_enum, requires = "name", value_name = "HOW")]
    pub(crate) name_match: Option<NameMatchArg>,
    /// Only this status [default: all four]
    #[arg(long = "status", value_enum, value_name = "STATUS")]
    pub(crate) statuses: Vec<StatusArg>,
    /// Only those made before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(crate) before: Option<String>,
    /// Only those made after this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    pub(crate) after: Option<String>,
    /// Only those with this meta
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) meta: Vec<(String, String)>,
    /// The most to list
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) limit: u64,
}

/// How names are compared.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum NameMatchArg {
    /// The same text
    Exact,
    /// The same text, upper and lower case alike
    Iexact,
    /// A part of the text
    Partial,
    /// A part of the text, upper and lower case alike
    Ipartial,
}

/// The four words of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum StatusArg {
    /// Accepted
    Queued,
    /// Being fetched
    Pinning,
    /// All here
    Pinned,
    /// Given up
    Failed,
}

/// What to do with accounts.
#[derive(Debug, Subcommand)]
pub(crate) enum AccountCommand {
    /// Make an account
    Create {
        /// Its name
        name: String,
        /// Most bytes it may pin, such as 100GiB [default: no bound]
        #[arg(long, value_name = "SIZE", value_parser = byte_size)]
        max_bytes: Option<u64>,
        /// Most pins it may have [default: no bound]
        #[arg(long, value_name = "COUNT")]
        max_pins: Option<u64>,
        /// Most replicas that a pin may ask for [default: those of its policy]
        #[arg(long, value_name = "COUNT", value_parser = replicas)]
        max_replicas: Option<u8>,
    },
    /// Change what an account may use; its pins stay
    Set {
        /// Its name
        name: String,
        /// Most bytes it may pin, such as 100GiB, or none for no bound
        #[arg(long, value_name = "SIZE", value_parser = size_bound)]
        #[arg(required_unless_present_any = ["max_pins", "max_replicas"])]
        max_bytes: Option<Bound>,
        /// Most pins it may have, or none for no bound
        #[arg(long, value_name = "COUNT", value_parser = count_bound)]
        max_pins: Option<Bound>,
        /// Most replicas that a pin may ask for, or none for those of its policy
        #[arg(long, value_name = "COUNT", value_parser = replicas_bound)]
        max_replicas: Option<Bound>,
    },
    /// List accounts
    Ls,
    /// Refuse an account at the API; its data stays
    Suspend {
        /// Its name
        name: String,
        /// Let it in again
        #[arg(long)]
        lift: bool,
    },
}

/// A bound of an account; `None` takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound(pub(crate) Option<u64>);

fn size_bound(text: &str) -> Result<Bound, String> {
    if text == "none" { Ok(Bound(None)) } else { byte_size(text).map(|bytes| Bound(Some(bytes))) }
}

fn count_bound(text: &str) -> Result<Bound, String> {
    let count = || text.parse().map_err(|_| "this is a whole number, or none".to_owned());
    if text == "none" { Ok(Bound(None)) } else { Ok(Bound(Some(count()?))) }
}

fn replicas(text: &str) -> Result<u8, String> {
    let most = floe_core::policy::MAX_REPLICAS;
    text.parse().ok().filter(|n| *n <= most).ok_or_else(|| format!("this is a number from 0 to {most}"))
}

fn replicas_bound(text: &str) -> Result<Bound, String> {
    if text == "none" { Ok(Bound(None)) } else { replicas(text).map(|n| Bound(Some(n.into()))) }
}

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token; its secret is shown this once
    Create {
        /// Whose it is
        #[arg(long, value_name = "NAME")]
        account: String,
        /// What it may do
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_enum)]
        scopes: Vec<ScopeArg>,
        /// When it ends by itself, such as 30d [default: never]
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        expires: Option<Duration>,
        /// The policy of pins that are made with it [default: the one called default]
        #[arg(long, value_name = "NAME")]
        policy: Option<String>,
    },
    /// List tokens, without their secrets
    Ls {
        /// Only those of this account
        #[arg(long, value_name = "NAME")]
        account: Option<String>,
    },
    /// End a token at once
    Revoke {
        /// Its id, as `token ls` shows it
        id: i64,
    },
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScopeArg {
    /// Read pins
    #[value(name = "pins:read")]
    PinsRead,
    /// Add, replace, remove pins
    #[value(name = "pins:write")]
    PinsWrite,
    /// Accounts, tokens, gc, verify, status
    #[value(name = "admin")]
    Admin,
}

/// What to do with the wallet.
#[derive(Debug, Subcommand)]
pub(crate) enum WalletCommand {
    /// Make a key in a file of mode 0600, sealed where there is a passphrase
    New(KeyArgs),
    /// Take over a secp256k1 key that `lotus wallet export` wrote
    Import {
        /// The file with the export, of mode 0600 [default: stdin]
        file: Option<PathBuf>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Print the key, sealed under a passphrase; it is never printed otherwise
    Export {
        /// A file with the passphrase of the export, of mode 0600 [default: that of the key file]
        #[arg(long, value_name = "FILE")]
        under: Option<PathBuf>,
        #[command(flatten)]
        key: KeyArgs,
    },
    /// Show the address, what is in the wallet and in escrow, and what is committed
    Show,
    /// Put money into escrow
    Fund {
        /// attoFIL in digits, or FIL as in 0.5FIL
        #[arg(value_parser = amount_of)]
        amount: AttoFil,
    },
    /// Take money out of escrow; what is committed stays
    Withdraw {
        /// attoFIL in digits, or FIL as in 0.5FIL
        #[arg(value_parser = amount_of)]
        amount: AttoFil,
    },
    /// Send money from the wallet; what is committed stays
    Send {
        /// To which address
        to: String,
        /// attoFIL in digits, or FIL as in 0.5FIL
        #[arg(value_parser = amount_of)]
        amount: AttoFil,
    },
    /// Settle deals, which frees what those that ended or never began still lock
    Settle {
        /// Their numbers on the chain [default: all that came to nothing and still lock their price]
        #[arg(value_name = "DEAL_ID")]
        deals: Vec<u64>,
    },
}

/// Where a key is.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct KeyArgs {
    /// The key file [default: filecoin.wallet, or wallet.key in the data directory]
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// A file with its passphrase, of mode 0600 [default: filecoin.passphrase_file]
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// What to do with the settings.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say whether config.toml, environment and flags are right
    Check(ConfigArgs),
    /// Show every setting as it holds, and where it comes from
    Show(ConfigArgs),
}

/// Arguments of `floe config check` and `floe config show`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) flags: Flags,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::{Origin, Raw};

    #[test]
    fn clap_accepts_the_definition() {
        Cli::command().debug_assert();
    }

    #[test]
    fn settings_come_from_flags_as_plain_text() {
        let line =
            ["floe", "serve", "--swarm-addr", "a", "--offline", "--swarm-addr", "b", "--api-addr", "c"];
        let Command::Serve(args) = Cli::try_parse_from(line).unwrap().command else { panic!("not serve") };
        assert_eq!(args.flags.0["network.swarm"].0, Raw::Many(vec!["a".into(), "b".into()]));
        assert_eq!(args.flags.0["network.offline"], (Raw::One("true".into()), Origin::Flag("offline")));
        assert_eq!(args.flags.0["api.addr"].0, Raw::One("c".into()));
        assert_eq!(args.flags.0.len(), 3);
        let off = Cli::try_parse_from(["floe", "serve", "--offline=false"]).unwrap().command;
        let Command::Serve(args) = off else { panic!("not serve") };
        assert_eq!(args.flags.0["network.offline"].0, Raw::One("false".into()));
    }

    #[test]
    fn global_flags_stand_anywhere() {
        for line in [
            ["floe", "--data-dir", "d", "pin", "status", "i", "--token", "t"],
            ["floe", "pin", "--token", "t", "--data-dir", "d", "status", "i"],
        ] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!(cli.data_dir, Some("d".into()));
            let Command::Pin { remote, .. } = cli.command else { panic!("not pin") };
            assert!(remote.token.is_some());
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        for line in [
            &["floe"][..],
            &["floe", "pin", "add", "bafy", "--meta", "novalue"],
            &["floe", "pin", "add", "bafy", "--origin", "rubbish"],
            &["floe", "pin", "ls", "--limit", "0"],
            &["floe", "pin", "ls", "--match", "exact"],
            &["floe", "token", "create", "--account", "a"],
            &["floe", "token", "create", "--account", "a", "--scope", "all"],
            &["floe", "account", "create", "a", "--max-bytes", "lots"],
            &["floe", "account", "set", "a"],
            &["floe", "account", "set", "a", "--max-pins", "lots"],
            &["floe", "account", "set", "a", "--max-replicas", "17"],
            &["floe", "account", "create", "a", "--max-replicas", "none"],
            &["floe", "serve", "--apiaddr", "1"],
            &["floe", "deals", "ls", "--state", "refused"],
            &["floe", "deals", "cost", "--by", "day"],
            &["floe", "providers", "add", "1000"],
            &["floe", "providers", "add", "f01000", "--addr", "sp.example"],
            &["floe", "providers", "add", "f01000", "--region", "the moon"],
            &["floe", "spending"],
            &["floe", "events", "--after", "-1"],
        ] {
            assert_eq!(Cli::try_parse_from(line).map(|_| ()).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }

    #[test]
    fn help_is_as_it_was_agreed() {
        let mut command = Cli::command().term_width(100);
        command.build();
        let mut all = String::new();
        help_of(&mut command, "floe", &mut all);
        insta::assert_snapshot!("help", all);
    }

    fn help_of(command: &mut clap::Command, name: &str, out: &mut String) {
        out.push_str(&format!("=== {name}\n{}\n", command.render_long_help()));
        for sub in command.get_subcommands_mut() {
            let name = format!("{name} {}", sub.get_name());
            help_of(sub, &name, out);
        }
    }
}
