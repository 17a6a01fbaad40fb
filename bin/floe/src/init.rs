//! What a data directory holds from its first day: settings, identity, the account `default` and two tokens.
//!
//! Each part is made if it is missing, so a crash in between is mended by running it again. In a directory
//! that was whole once, missing rows are an error, because new ones would know none of its blocks; so is a missing
//! identity, because a new one would quietly be another peer. Missing token files are made anew with a word about it,
//! because the rows hold only hashes: the lost secrets cannot be written down again, only replaced.

use std::path::Path;

use anyhow::Context as _;
use floe_core::ports::Entropy;
use floe_engine::cold::PullKey;
use floe_ipfs::Keypair;
use floe_records::{Records, Scope};

use crate::config::render;
use crate::datadir::{DataDir, write_whole};
use crate::exit::{Code, Failure};

/// The account that the rows have from the start; its pins are the operator's.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";

const ALL_SCOPES: &[Scope] = &[Scope::PinsRead, Scope::PinsWrite, Scope::Admin];
const PIN_SCOPES: &[Scope] = &[Scope::PinsRead, Scope::PinsWrite];

/// Writes what needs no rows: `config.toml` and the identity. Returns the identity.
pub(crate) fn files(dir: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<Keypair> {
    let layout = dir.layout();
    if !layout.config().exists() && dir.is_initialising() {
        write_whole(&layout.config(), render::template().as_bytes())?;
    }
    Ok(floe_ipfs::identity::load_or_create(&layout.identity(), entropy)?)
}

/// Makes the key of the URLs that storage providers pull from, where it is missing: 32 random bytes, in hex. A directory
/// of an older Floe has none.
pub(crate) fn make_pull_key(dir: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<()> {
    let path = dir.layout().pull_key();
    if path.exists() {
        return Ok(());
    }
    let mut secret = [0; PULL_KEY_BYTES];
    entropy.fill(&mut secret);
    write_whole(&path, format!("{}\n", data_encoding::HEXLOWER.encode(&secret)).as_bytes())?;
    if !dir.is_initialising() {
        tracing::warn!(
            "{} was missing and is made anew: deals whose pieces were still to be pulled by the old one fail",
            path.display()
        );
    }
    Ok(())
}

/// Reads that key, or makes it.
pub(crate) fn pull_key(dir: &DataDir, entropy: &dyn Entropy) -> anyhow::Result<PullKey> {
    make_pull_key(dir, entropy)?;
    let path = dir.layout().pull_key();
    let damaged = || {
        let reason = format!(
            "{} is damaged: restore it from the backup, or remove it to go on with a new one, with which deals fail \
             whose pieces are still to be pulled",
            path.display()
        );
        Failure::new(Code::Damage, reason)
    };
    let text = std::fs::read_to_string(&path).map_err(|_| damaged())?;
    let secret = data_encoding::HEXLOWER.decode(text.trim().as_bytes()).ok();
    let secret: Option<[u8; PULL_KEY_BYTES]> = secret.and_then(|secret| secret.try_into().ok());
    Ok(PullKey::new(secret.ok_or_else(damaged)?))
}

const PULL_KEY_BYTES: usize = 32;

/// Makes what is missing of the tokens, and marks the directory as whole.
pub(crate) async fn complete(dir: &mut DataDir, records: &Records) -> anyhow::Result<()> {
    let fresh = dir.is_initialising();
    token(records, &dir.layout().admin_token(), ALL_SCOPES, fresh).await?;
    token(records, &dir.layout().pin_token(), PIN_SCOPES, fresh).await?;
    dir.initialised()?;
    Ok(())
}

/// Refuses a whole directory without its identity: `serve` asks this before it makes anything.
pub(crate) fn require_identity(dir: &DataDir) -> Result<(), Failure> {
    let path = dir.layout().identity();
    if dir.is_initialising() || path.exists() {
        return Ok(());
    }
    let reason = format!(
        "{} is missing: restore it from the backup, or run `floe init` to go on under a new peer id",
        path.display()
    );
    Err(Failure::new(Code::Damage, reason))
}

async fn token(records: &Records, path: &Path, scopes: &[Scope], fresh: bool) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let (token, secret) = records
        .create_own_token(DEFAULT_ACCOUNT, scopes)
        .await
        .with_context(|| format!("cannot make the token for {}", path.display()))?;
    fail::fail_point!("init.token");
    write_whole(path, format!("{secret}\n").as_bytes())?;
    if !fresh {
        tracing::warn!(
            token = token.id.0,
            "{} was missing: a new token was made; whatever held the lost one still can use it: \
             `floe token ls`, `floe token revoke ID`",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::Layout;
    use crate::system::SystemEntropy;

    fn half_made() -> (tempfile::TempDir, DataDir) {
        let keep = tempfile::tempdir().unwrap();
        let dir = DataDir::open_or_make(Layout::new(keep.path().join("floe"))).unwrap();
        (keep, dir)
    }

    #[test]
    fn the_identity_is_made_once() {
        let (_keep, dir) = half_made();
        let first = files(&dir, &SystemEntropy).unwrap().public();
        assert_eq!(files(&dir, &SystemEntropy).unwrap().public(), first);
        assert!(first.try_into_ed25519().is_ok());
    }

    #[test]
    fn a_whole_directory_without_its_identity_is_refused() {
        let (_keep, mut dir) = half_made();
        require_identity(&dir).unwrap();
        dir.initialised().unwrap();
        let said = require_identity(&dir).unwrap_err().to_string();
        assert!(said.contains("identity.key") && said.contains("floe init"), "{said}");
    }

    #[test]
    fn the_key_of_pull_urls_is_made_once_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let (_keep, dir) = half_made();
        let first = pull_key(&dir, &SystemEntropy).unwrap();
        assert_eq!(pull_key(&dir, &SystemEntropy).unwrap(), first);
        let path = dir.layout().pull_key();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        for damaged in ["", "zz", "00", &"0".repeat(66)] {
            std::fs::write(&path, damaged).unwrap();
            let said = pull_key(&dir, &SystemEntropy).unwrap_err().to_string();
            assert!(said.contains("pull.key"), "{said}");
        }
    }

    #[test]
    fn a_damaged_identity_is_named() {
        let (_keep, dir) = half_made();
        std::fs::write(dir.layout().identity(), b"").unwrap();
        let said = files(&dir, &SystemEntropy).unwrap_err().to_string();
        assert!(said.contains("identity.key"), "{said}");
    }
}
