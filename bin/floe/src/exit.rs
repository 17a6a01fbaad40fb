//! What the process says with its exit code.
//!
//! Errors travel as `anyhow` with words for a person; the few that a script or a supervisor acts on are told apart
//! here, in one place, by looking for their types in the chain of causes.

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::datadir::{DataDirError, is_full};
use crate::{logs, output};

/// Exit codes. `docs/OPERATING.md` tells operators what to do about each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    /// Done.
    Ok = 0,
    /// Anything that has no code of its own.
    Failure = 1,
    /// Wrong flags, environment or config file. clap uses the same.
    Usage = 2,
    /// The API does not answer.
    Unreachable = 3,
    /// The API answered 401 or 403.
    Refused = 4,
    /// No such pin, account or token.
    NotFound = 5,
    /// The pin that was waited for has failed.
    PinFailed = 6,
    /// The data directory is foreign, of a newer Floe, or locked by another process.
    DataDir = 10,
    /// An address to listen on is taken.
    PortInUse = 11,
    /// A sync failed: what is on disk is unknown until the next start has recovered it.
    SyncFailed = 12,
    /// Something is damaged or lost: `floe verify` found it, or the rows or the identity are not there to start with.
    Damage = 13,
    /// The volume of the data directory has too little room to start.
    NoSpace = 14,
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}

/// A failure whose exit code is decided where it is found.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct Failure {
    /// What the process ends with.
    pub(crate) code: Code,
    /// For a person.
    pub(crate) reason: String,
}

impl Failure {
    /// An error with this code.
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// Says on stderr why the process ends: as words, or with `--json` as one document.
pub(crate) fn tell(error: &anyhow::Error, json: bool) {
    // Causes behind each other, without the ones that an outer error has put into its own words already.
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !words.contains(&cause) {
            let separator = if words.is_empty() { "" } else { ": " };
            words = format!("{words}{separator}{cause}");
        }
    }
    let words = logs::redact(&words);
    if json {
        let code = code_of(error) as u8;
        output::tell(&serde_json::json!({ "error": words, "exit_code": code }).to_string());
    } else {
        output::tell(&format!("error: {}", output::printable_lines(&words)));
    }
}

/// The code for an error: that of the outermost cause that has one.
pub(crate) fn code_of(error: &anyhow::Error) -> Code {
    error.chain().find_map(of_cause).unwrap_or(Code::Failure)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    if let Some(failure) = cause.downcast_ref::<Failure>() {
        return Some(failure.code);
    }
    if let Some(client) = cause.downcast_ref::<ClientError>() {
        return Some(client.code());
    }
    if let Some(dir) = cause.downcast_ref::<DataDirError>() {
        return Some(dir.code());
    }
    if cause.is::<ConfigError>() {
        return Some(Code::Usage);
    }
    if let Some(node) = cause.downcast_ref::<floe_ipfs::Error>() {
        return of_node(node);
    }
    if let Some(api) = cause.downcast_ref::<floe_api::Error>() {
        return of_api(api);
    }
    if let Some(floe_devnet::StartError::Config(_)) = cause.downcast_ref() {
        return Some(Code::Usage);
    }
    if let Some(engine) = cause.downcast_ref::<floe_engine::Error>() {
        return of_engine(engine);
    }
    if let Some(records) = cause.downcast_ref::<floe_records::Error>() {
        return of_records(records);
    }
    if let Some(blocks) = cause.downcast_ref::<floe_blockstore::Error>() {
        return of_blocks(blocks);
    }
    match cause.downcast_ref::<std::io::Error>()? {
        taken if taken.kind() == std::io::ErrorKind::AddrInUse => Some(Code::PortInUse),
        full if is_full(full) => Some(Code::NoSpace),
        _ => None,
    }
}

fn of_node(error: &floe_ipfs::Error) -> Option<Code> {
    match error {
        floe_ipfs::Error::AddressInUse { .. } => Some(Code::PortInUse),
        floe_ipfs::Error::Address { .. } | floe_ipfs::Error::Certificate { .. } => Some(Code::Usage),
        floe_ipfs::Error::SyncFailed(_) => Some(Code::SyncFailed),
        floe_ipfs::Error::IdentityDamaged { .. } | floe_ipfs::Error::Provides { .. } => Some(Code::Damage),
        _ => None,
    }
}

fn of_api(error: &floe_api::Error) -> Option<Code> {
    match error {
        floe_api::Error::AddressInUse { .. } => Some(Code::PortInUse),
        floe_api::Error::PublicUrl(_) | floe_api::Error::PathPrefix { .. } => Some(Code::Usage),
        // The io error behind it may say more.
        floe_api::Error::Bind { .. } => None,
    }
}

/// The engine passes the errors of the stores on as they are, so they do not stand in the chain by themselves.
fn of_engine(error: &floe_engine::Error) -> Option<Code> {
    match error {
        floe_engine::Error::Records(records) => of_records(records),
        floe_engine::Error::Blocks(blocks) => of_blocks(blocks),
        _ => None,
    }
}

fn of_blocks(error: &floe_blockstore::Error) -> Option<Code> {
    match error {
        floe_blockstore::Error::Poisoned(_) => Some(Code::SyncFailed),
        floe_blockstore::Error::Directory { .. } => Some(Code::DataDir),
        _ => None,
    }
}

fn of_records(error: &floe_records::Error) -> Option<Code> {
    match error {
        floe_records::Error::Newer { .. } => Some(Code::DataDir),
        floe_records::Error::Poisoned(_) => Some(Code::SyncFailed),
        floe_records::Error::Damaged(_) | floe_records::Error::Lost { .. } => Some(Code::Damage),
        floe_records::Error::NotFound => Some(Code::NotFound),
        floe_records::Error::Full => Some(Code::NoSpace),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn the_code_is_found_under_layers_of_context() {
        let taken = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let error = anyhow::Error::from(taken).context("cannot listen on 127.0.0.1:1");
        assert_eq!(code_of(&error), Code::PortInUse);
        let newer =
            Err::<(), _>(floe_records::Error::Newer { found: 9, known: 1 }).context("cannot open rows");
        assert_eq!(code_of(&newer.unwrap_err()), Code::DataDir);
        let poisoned = anyhow::Error::from(floe_blockstore::Error::Poisoned("EIO".into()));
        assert_eq!(code_of(&poisoned), Code::SyncFailed);
        let node = anyhow::Error::from(floe_ipfs::Error::SyncFailed("EIO".into()));
        assert_eq!(code_of(&node.context("cannot start the IPFS node")), Code::SyncFailed);
        let full = anyhow::Error::from(floe_records::Error::Full).context("cannot open rows");
        assert_eq!(code_of(&full), Code::NoSpace);
        let full = anyhow::Error::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(code_of(&full), Code::NoSpace);
        let wrapped = floe_engine::Error::from(floe_blockstore::Error::Poisoned("EIO".into()));
        assert_eq!(code_of(&anyhow::Error::from(wrapped)), Code::SyncFailed);
        assert_eq!(code_of(&anyhow::anyhow!("anything")), Code::Failure);
    }
}
