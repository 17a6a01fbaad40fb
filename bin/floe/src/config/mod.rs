//! Settings: flag over environment over file over default. A way of running (`serve --devnet`) may put a preset
//! between the file and the defaults.
//!
//! ```text
//!   keys.rs      the table: name, kind, default, reason, flag, environment variable
//!   tables.rs    the same for tables with names of the operator's own: [policy.<name>]
//!      │
//!   file.rs, environment, flags ──> three layers of plain text, each value with its origin
//!      │
//!   Config       the checked form, one struct per component; what the node is built from
//!      │
//!   render.rs    the table and the layers for people: config.toml, CONFIGURATION.md, `config show`
//! ```
//!
//! Flags are never written to the file, and the file that `floe init` writes has every line commented out, so
//! that a later version can change a default. An error names the setting and where its value came from.

pub(crate) mod cold;
pub(crate) mod file;
pub(crate) mod flags;
pub(crate) mod keys;
mod policies;
pub(crate) mod render;
pub(crate) mod tables;
pub(crate) mod values;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use floe_blockstore::IndexKind;
use floe_core::{PaddedSize, Policy};
use floe_ipfs::{CertificateFiles, Multiaddr, PrivateAddresses};
use ipnet::IpNet;
use reqwest::Url;
use thiserror::Error;

use self::file::File;
use self::keys::{Default, KEYS, Key};
use self::tables::{Family, Table, Tables};
use self::values::{ByteSize, ListenAddr, PathPrefix, PeerAddr, Setting};
use crate::limits;

/// Everything that can be set, checked.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) api: Api,
    pub(crate) ops: Ops,
    pub(crate) network: Network,
    pub(crate) storage: Storage,
    pub(crate) pin: Pin,
    pub(crate) filecoin: cold::Filecoin,
    pub(crate) deals: cold::Deals,
    pub(crate) providers: Vec<cold::Provider>,
    pub(crate) aggregate: floe_engine::cold::Packing,
    pub(crate) pull: Pull,
    pub(crate) serve: Serve,
    pub(crate) log: Log,
    pub(crate) policies: BTreeMap<String, Policy>,
}

/// `[api]`
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) addr: SocketAddr,
    pub(crate) public_url: Option<Url>,
    pub(crate) trusted_proxies: Vec<IpNet>,
    pub(crate) path_prefixes: Vec<PathPrefix>,
    pub(crate) requests_per_minute: Option<u32>,
    pub(crate) lists_per_minute: Option<u32>,
}

impl Api {
    /// Whether every client is on this machine, as far as the settings can tell.
    pub(crate) fn is_local(&self) -> bool {
        self.addr.ip().is_loopback() && self.public_url.is_none()
    }
}

/// `[ops]`
#[derive(Debug, Clone)]
pub(crate) struct Ops {
    pub(crate) addr: SocketAddr,
}

/// `[network]`
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) swarm: Vec<Multiaddr>,
    pub(crate) certificate: Option<CertificateFiles>,
    pub(crate) announce: Vec<Multiaddr>,
    pub(crate) bootstrap: Vec<Multiaddr>,
    pub(crate) routers: Vec<Url>,
    pub(crate) relays: Vec<Multiaddr>,
    pub(crate) private_addresses: PrivateAddresses,
    pub(crate) offline: bool,
    pub(crate) memory_budget: Option<u64>,
    pub(crate) egress_per_peer: Option<u64>,
    pub(crate) egress: Option<u64>,
}

/// `[storage]`
#[derive(Debug, Clone)]
pub(crate) struct Storage {
    pub(crate) index: IndexKind,
    pub(crate) reserve: Option<u64>,
    pub(crate) pack_size: u64,
}

/// `[pin]`
#[derive(Debug, Clone)]
pub(crate) struct Pin {
    pub(crate) give_up_after: Duration,
    pub(crate) max_blocks: u64,
    pub(crate) max_bytes: Option<u64>,
    pub(crate) max_depth: u32,
    pub(crate) max_queued: u64,
}

/// `filecoin.pull_addr` and `filecoin.pull_url`
#[derive(Debug, Clone)]
pub(crate) struct Pull {
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) url: Option<Url>,
}

/// `[serve]`
#[derive(Debug, Clone)]
pub(crate) struct Serve {
    pub(crate) stop_within: Duration,
}

/// `[log]`
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) filter: String,
    pub(crate) format: LogFormat,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Pack files below this would be more directory than data, above it a record's offset would not fit 32 bits.
const PACK_SIZE: std::ops::RangeInclusive<u64> = (1 << 20)..=(3 << 30);

/// Below this a block of 2 MiB would keep everybody else waiting for more than two minutes.
const EGRESS_MIN: u64 = 16 << 10;

impl Config {
    /// Checks every value of `layers`, and those that have to fit together. Looks at no file.
    pub(crate) fn check(layers: &Layers) -> Result<Self, ConfigError> {
        Ok(Self {
            api: Api {
                addr: layers.one("api.addr")?,
                public_url: layers.optional("api.public_url")?,
                trusted_proxies: layers.many("api.trusted_proxies")?,
                path_prefixes: path_prefixes(layers)?,
                requests_per_minute: layers.optional("api.requests_per_minute")?,
                lists_per_minute: layers.optional("api.lists_per_minute")?,
            },
            ops: Ops { addr: layers.one("ops.addr")? },
            network: Network {
                swarm: swarm(layers)?,
                certificate: certificate(layers)?,
                announce: layers.many("network.announce")?,
                bootstrap: peers(layers, "network.bootstrap")?,
                routers: layers.many("network.routers")?,
                relays: peers(layers, "network.relays")?,
                private_addresses: layers.one("network.private_addresses")?,
                offline: layers.one("network.offline")?,
                memory_budget: layers.optional("network.memory_budget")?.map(|ByteSize(bytes)| bytes),
                egress_per_peer: layers.optional("network.egress_per_peer")?.map(|EgressRate(bytes)| bytes),
                egress: layers.optional("network.egress")?.map(|EgressRate(bytes)| bytes),
            },
            storage: Storage {
                index: layers.one("storage.index")?,
                reserve: layers.optional("storage.reserve")?.map(|ByteSize(bytes)| bytes),
                pack_size: layers.one::<PackSize>("storage.pack_size")?.0,
            },
            pin: Pin {
                give_up_after: layers.one("pin.give_up_after")?,
                max_blocks: layers.one("pin.max_blocks")?,
                max_bytes: layers.optional("pin.max_bytes")?.map(|ByteSize(bytes)| bytes),
                max_depth: layers.one("pin.max_depth")?,
                max_queued: layers.one("pin.max_queued")?,
            },
            filecoin: cold::filecoin(layers)?,
            deals: cold::deals(layers)?,
            providers: cold::providers(layers)?,
            aggregate: aggregate(layers)?,
            pull: pull(layers)?,
            serve: Serve { stop_within: layers.one::<StopWithin>("serve.stop_within")?.0 },
            log: Log { filter: layers.one::<LogFilter>("log.filter")?.0, format: layers.one("log.format")? },
            policies: policies::check(layers)?,
        })
    }

    /// Looks whether the files that are named can be read. Only whoever runs the service is sure to be able to: they
    /// need not be there for work on a stopped node.
    pub(crate) fn check_files(&self) -> Result<(), ConfigError> {
        let Some(CertificateFiles { chain, key }) = &self.network.certificate else { return Ok(()) };
        for path in [chain, key] {
            let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
            std::fs::File::open(path).map_err(unreadable)?;
        }
        Ok(())
    }
}

/// One by one, and none of them may hide the pins of another.
fn path_prefixes(layers: &Layers) -> Result<Vec<PathPrefix>, ConfigError> {
    let key = "api.path_prefixes";
    let prefixes: Vec<PathPrefix> = layers.many(key)?;
    let texts: Vec<String> = prefixes.iter().map(|prefix| prefix.0.clone()).collect();
    match floe_api::check_path_prefixes(&texts) {
        Ok(()) => Ok(prefixes),
        Err(floe_api::Error::PathPrefix { prefix, reason }) => {
            Err(layers.invalid(key, format!("{prefix:?}: {reason}")))
        }
        Err(other) => Err(layers.invalid(key, other.to_string())),
    }
}

/// Those with TLS need a certificate.
fn swarm(layers: &Layers) -> Result<Vec<Multiaddr>, ConfigError> {
    let key = "network.swarm";
    let addrs: Vec<ListenAddr> = layers.many(key)?;
    let has_certificate = certificate(layers)?.is_some();
    if let Some(ListenAddr(addr)) = addrs.iter().find(|addr| addr.has_tls() && !has_certificate) {
        let reason = format!("{addr} needs network.tls_certificate and network.tls_key");
        return Err(layers.invalid(key, reason));
    }
    Ok(addrs.into_iter().map(|ListenAddr(addr)| addr).collect())
}

fn peers(layers: &Layers, key: &'static str) -> Result<Vec<Multiaddr>, ConfigError> {
    Ok(layers.many(key)?.into_iter().map(|PeerAddr(addr)| addr).collect())
}

/// Both files or neither.
fn certificate(layers: &Layers) -> Result<Option<CertificateFiles>, ConfigError> {
    let chain = layers.optional::<PathBuf>("network.tls_certificate")?;
    let key = layers.optional::<PathBuf>("network.tls_key")?;
    let alone = |set: &'static str, missing: &'static str| {
        let reason = format!("{set} is set: a certificate is of no use without its key, set both or neither");
        Err(ConfigError::Invalid { origin: layers.origin(set), key: missing, reason })
    };
    match (chain, key) {
        (Some(chain), Some(key)) => Ok(Some(CertificateFiles { chain, key })),
        (None, None) => Ok(None),
        (Some(_), None) => alone("network.tls_certificate", "network.tls_key"),
        (None, Some(_)) => alone("network.tls_key", "network.tls_certificate"),
    }
}

fn aggregate(layers: &Layers) -> Result<floe_engine::cold::Packing, ConfigError> {
    let PieceSize(target) = layers.one("aggregate.target")?;
    let PieceSize(least) = layers.one("aggregate.least")?;
    if least > target {
        let reason = format!("it is more than aggregate.target, which is {} bytes", target.bytes());
        return Err(layers.invalid("aggregate.least", reason));
    }
    let flush_after = layers.one("aggregate.flush_after")?;
    Ok(floe_engine::cold::Packing { target, least, flush_after, align: layers.one("aggregate.align")? })
}

/// What is signed into deals has to lead somewhere.
fn pull(layers: &Layers) -> Result<Pull, ConfigError> {
    let pull =
        Pull { addr: layers.optional("filecoin.pull_addr")?, url: layers.optional("filecoin.pull_url")? };
    if pull.url.is_some() && pull.addr.is_none() {
        let reason = "providers are sent there, and nothing listens: set filecoin.pull_addr too".to_owned();
        return Err(layers.invalid("filecoin.pull_url", reason));
    }
    Ok(pull)
}

/// The size of a piece.
struct PieceSize(PaddedSize);

impl Setting for PieceSize {
    fn read(text: &str) -> Result<Self, String> {
        let ByteSize(bytes) = ByteSize::read(text)?;
        let wrong = "a piece has a power of two of bytes, from 512 to 64GiB, such as \"4GiB\"";
        // An index and what it lists fit in 512 bytes.
        let size = PaddedSize::from_bytes(bytes).filter(|size| size.bytes() >= 512);
        size.map(Self).ok_or_else(|| wrong.to_owned())
    }
}

struct PackSize(u64);

impl Setting for PackSize {
    fn read(text: &str) -> Result<Self, String> {
        let ByteSize(bytes) = ByteSize::read(text)?;
        if PACK_SIZE.contains(&bytes) { Ok(Self(bytes)) } else { Err("a pack has 1 MiB to 3 GiB".into()) }
    }
}

/// Bytes a second.
struct EgressRate(u64);

impl Setting for EgressRate {
    fn read(text: &str) -> Result<Self, String> {
        let ByteSize(bytes) = ByteSize::read(text)?;
        let too_low = "the least is 16KiB a second; leave it unset for no limit";
        if bytes >= EGRESS_MIN { Ok(Self(bytes)) } else { Err(too_low.into()) }
    }
}

struct StopWithin(Duration);

impl Setting for StopWithin {
    fn read(text: &str) -> Result<Self, String> {
        let within = Duration::read(text)?;
        if within <= limits::DRAIN { Ok(Self(within)) } else { Err("the most is 30s".into()) }
    }
}

struct LogFilter(String);

impl Setting for LogFilter {
    fn read(text: &str) -> Result<Self, String> {
        match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(e) => Err(format!("a level or targets with levels, as in \"info,floe_engine=debug\": {e}")),
        }
    }
}

/// Reads the words of a choice. The words themselves are in the table of keys.
macro_rules! choice {
    ($type:ty { $($word:literal => $value:expr),+ $(,)? }) => {
        impl Setting for $type {
            fn read(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($value),)+
                    _ => Err(format!("it must be {}", [$(concat!("\"", $word, "\"")),+].join(" or "))),
                }
            }
        }
    };
}
choice!(PrivateAddresses { "auto" => Self::Auto, "allow" => Self::Allow, "deny" => Self::Deny });
choice!(IndexKind { "redb" => Self::Redb, "sled" => Self::Sled });
choice!(LogFormat { "text" => Self::Text, "json" => Self::Json });

/// A value as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Raw {
    /// Anything but a list.
    One(String),
    /// A list.
    Many(Vec<String>),
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The table of keys.
    Default,
    /// The file.
    File {
        /// Its path.
        path: PathBuf,
        /// The line of the key.
        line: usize,
    },
    /// An environment variable.
    Env(&'static str),
    /// A flag, without dashes.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}, line {line}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// Values by key, each with its origin.
pub(crate) type Layer = BTreeMap<&'static str, (Raw, Origin)>;

/// Why the settings are not accepted. All of these end with exit code 2.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file is there and cannot be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{}, line {line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What the parser says.
        reason: String,
    },
    /// A key that nobody knows.
    #[error(
        "{}, line {line}: there is no setting \"{key}\"{}; `floe config show` lists all",
        path.display(),
        nearest.as_ref().map(|n| format!(": did you mean \"{n}\"?")).unwrap_or_default()
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The line.
        line: usize,
        /// What was written.
        key: String,
        /// What was probably meant.
        nearest: Option<String>,
    },
    /// A value that is not one.
    #[error("{origin}: {key}: {reason}")]
    Invalid {
        /// Who said so.
        origin: Origin,
        /// The setting.
        key: &'static str,
        /// What was wanted.
        reason: String,
    },
    /// The same, in a table with a name of the operator's own.
    #[error("{origin}: {key}: {reason}")]
    InvalidIn {
        /// Who said so.
        origin: Origin,
        /// The setting, with the table's name.
        key: String,
        /// What was wanted.
        reason: String,
    },
}

/// All layers on top of each other.
#[derive(Debug, Clone)]
pub(crate) struct Layers {
    effective: Layer,
    tables: Tables,
}

impl Layers {
    /// File, environment and flags over the defaults. `env` looks a variable up; an empty one counts as unset.
    #[cfg(test)]
    pub(crate) fn stack(file: impl Into<File>, env: impl Fn(&str) -> Option<String>, flags: Layer) -> Self {
        Self::stack_over(File::default(), file, env, flags)
    }

    /// File, environment and flags over a `preset`, and that over the defaults. `env` looks a variable up; an empty one
    /// counts as unset.
    pub(crate) fn stack_over(
        preset: File,
        file: impl Into<File>,
        env: impl Fn(&str) -> Option<String>,
        flags: Layer,
    ) -> Self {
        let File { settings, tables: named } = file.into();
        let mut tables = preset.tables;
        tables.extend(named);
        let mut effective = defaults();
        effective.extend(preset.settings);
        effective.extend(settings);
        effective.extend(from_env(env));
        effective.extend(flags);
        Self { effective, tables }
    }

    /// The file of a data directory, the environment of this process, and `flags`.
    pub(crate) fn load(data_dir: &Path, flags: Layer) -> Result<Self, ConfigError> {
        Self::load_over(File::default(), data_dir, flags)
    }

    /// The same, with a `preset` between the defaults and the file: what a way of running sets.
    pub(crate) fn load_over(preset: File, data_dir: &Path, flags: Layer) -> Result<Self, ConfigError> {
        let file = file::read(&file::path_in(data_dir))?;
        for key in KEYS {
            readable(key, std::env::var_os(key.env).as_deref())?;
        }
        Ok(Self::stack_over(preset, file, |name| std::env::var(name).ok(), flags))
    }

    /// The value of a key, unless it is unset.
    pub(crate) fn get(&self, key: &Key) -> Option<&(Raw, Origin)> {
        self.effective.get(key.name)
    }

    /// The tables of a family, with their names.
    pub(crate) fn tables(&self, family: &Family) -> impl Iterator<Item = (&str, &Table)> {
        let of_family = move |(key, _): &(&(&'static str, String), &Table)| key.0 == family.section;
        self.tables.iter().filter(of_family).map(|((_, name), table)| (name.as_str(), table))
    }

    fn origin(&self, name: &str) -> Origin {
        self.effective.get(name).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    fn invalid(&self, key: &'static str, reason: String) -> ConfigError {
        ConfigError::Invalid { origin: self.origin(key), key, reason }
    }

    fn optional<T: Setting>(&self, name: &'static str) -> Result<Option<T>, ConfigError> {
        match self.effective.get(name) {
            None => Ok(None),
            Some((Raw::One(text), origin)) => read(name, text, origin).map(Some),
            Some((Raw::Many(_), origin)) => Err(ConfigError::Invalid {
                origin: origin.clone(),
                key: name,
                reason: "it is not a list".into(),
            }),
        }
    }

    fn one<T: Setting>(&self, name: &'static str) -> Result<T, ConfigError> {
        let missing =
            || ConfigError::Invalid { origin: Origin::Default, key: name, reason: "it is unset".into() };
        self.optional(name)?.ok_or_else(missing)
    }

    fn many<T: Setting>(&self, name: &'static str) -> Result<Vec<T>, ConfigError> {
        match self.effective.get(name) {
            None => Ok(Vec::new()),
            Some((Raw::Many(texts), origin)) => texts.iter().map(|text| read(name, text, origin)).collect(),
            Some((Raw::One(text), origin)) => Ok(vec![read(name, text, origin)?]),
        }
    }
}

/// A variable that is no text would be passed over without a word.
fn readable(key: &'static Key, value: Option<&OsStr>) -> Result<(), ConfigError> {
    if value.is_none_or(|value| value.to_str().is_some()) {
        return Ok(());
    }
    let reason = "the variable is not UTF-8".to_owned();
    Err(ConfigError::Invalid { origin: Origin::Env(key.env), key: key.name, reason })
}

fn read<T: Setting>(key: &'static str, text: &str, origin: &Origin) -> Result<T, ConfigError> {
    T::read(text).map_err(|reason| ConfigError::Invalid { origin: origin.clone(), key, reason })
}

fn defaults() -> Layer {
    let text: String = KEYS
        .iter()
        .filter_map(|k| match k.default {
            Default::Is(value) => Some(format!("{} = {value}\n", k.name)),
            Default::Unset(_) => None,
        })
        .collect();
    let parsed = file::parse(Path::new("defaults"), &text).expect("a test reads the defaults of the table");
    parsed.settings.into_iter().map(|(name, (raw, _))| (name, (raw, Origin::Default))).collect()
}

fn from_env(env: impl Fn(&str) -> Option<String>) -> Layer {
    let set = |key: &'static Key| {
        let text = env(key.env).filter(|text| !text.trim().is_empty())?;
        let raw =
            if key.kind.is_list() { Raw::Many(split_list(&text)) } else { Raw::One(text.trim().to_owned()) };
        Some((key.name, (raw, Origin::Env(key.env))))
    };
    KEYS.iter().filter_map(set).collect()
}

fn split_list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests;
