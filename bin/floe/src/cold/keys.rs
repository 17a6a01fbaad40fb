//! `floe wallet new`, `import` and `export`: keys in files, without a running node.
//!
//! A key is written once and never over another one. It leaves its file only sealed under a passphrase.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use floe_filecoin::Secret;
use floe_filecoin::signer::{self, LocalKey, Signer as _};
use serde_json::json;

use crate::cli::KeyArgs;
use crate::config::cold::Wallet;
use crate::config::{Config, Layers};
use crate::datadir::Layout;
use crate::exit::{Code, Failure};
use crate::output::Output;
use crate::system::{self, SystemEntropy};

/// What an exported key may have at most, in bytes.
const MAX_IMPORT: u64 = 8 << 10;

/// Where a key is, and what opens it: by the flags, else by the settings, else `wallet.key` of the data directory.
struct Place {
    path: PathBuf,
    passphrase: Option<Secret>,
}

impl Place {
    async fn of(layout: &Layout, args: KeyArgs) -> anyhow::Result<Self> {
        let config = Config::check(&Layers::load(layout.root(), crate::config::Layer::new())?)?.filecoin;
        let path = match (args.key_file, config.wallet) {
            (Some(path), _) => path,
            (None, Some(Wallet::File(path))) => path,
            (None, Some(Wallet::Node(address))) => {
                let text =
                    format!("filecoin.wallet is {address}, a key of the node: say --key-file for one here");
                return Err(Failure::new(Code::Usage, text).into());
            }
            (None, None) => layout.wallet(),
        };
        let file = args.passphrase_file.or(config.passphrase_file);
        let passphrase = match file {
            Some(file) => Some(super::secret(file).await.context("the passphrase")?),
            None => None,
        };
        Ok(Self { path, passphrase })
    }

    /// A key must not be the first thing in a directory: it would be taken for somebody else's.
    fn refuse_stray(&self, layout: &Layout) -> anyhow::Result<()> {
        if self.path.starts_with(layout.root()) && !layout.is_made() {
            let text =
                format!("{} is no data directory yet: make it with `floe init`", layout.root().display());
            return Err(Failure::new(Code::DataDir, text).into());
        }
        Ok(())
    }

    fn say(&self, out: Output, what: &str, key: &LocalKey) -> anyhow::Result<()> {
        let (address, path) = (key.address().to_string(), self.path.display().to_string());
        let sealed = self.passphrase.is_some();
        out.print(&json!({ "address": address, "file": path, "sealed": sealed }), || {
            let how = if sealed { "sealed under its passphrase" } else { "not sealed: keep the file to yourself" };
            format!("{what} {address} in {path}, {how}\nback it up with `floe wallet export`, and send FIL to it\n")
        })
    }
}

/// Makes a key.
pub(crate) async fn new(layout: &Layout, out: Output, args: KeyArgs) -> anyhow::Result<()> {
    system::keep_files_private();
    let place = Place::of(layout, args).await?;
    place.refuse_stray(layout)?;
    let key = signer::create(&place.path, place.passphrase.as_ref(), &SystemEntropy)?;
    place.say(out, "made", &key)
}

/// Takes over what `lotus wallet export` wrote, from a file or from stdin.
pub(crate) async fn import(
    layout: &Layout,
    out: Output,
    from: Option<PathBuf>,
    args: KeyArgs,
) -> anyhow::Result<()> {
    system::keep_files_private();
    let place = Place::of(layout, args).await?;
    place.refuse_stray(layout)?;
    let text = match from.filter(|path| path.as_os_str() != "-") {
        Some(path) => super::secret(path).await?,
        None => {
            let mut text = String::new();
            std::io::stdin().take(MAX_IMPORT).read_to_string(&mut text).context("cannot read stdin")?;
            Secret::new(text.trim(), "on stdin")?
        }
    };
    let key = signer::from_lotus(&text).map_err(|error| Failure::new(Code::Usage, error.to_string()))?;
    let key = signer::import(&place.path, key, place.passphrase.as_ref(), &SystemEntropy)?;
    place.say(out, "took over", &key)
}

/// Prints the key, sealed under a passphrase.
pub(crate) async fn export(layout: &Layout, under: Option<PathBuf>, args: KeyArgs) -> anyhow::Result<()> {
    let place = Place::of(layout, args).await?;
    let under = match under {
        Some(file) => Some(super::secret(file).await.context("the passphrase of the export")?),
        None => place.passphrase.clone(),
    };
    let Some(under) = under else {
        let text = "a key leaves its file only sealed: name a passphrase with --under FILE";
        return Err(Failure::new(Code::Usage, text).into());
    };
    let key = signer::load(&place.path, place.passphrase.as_ref())?;
    let text = signer::sealed(&key, &under, &SystemEntropy)?;
    crate::output::write_stdout(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datadir::DataDir;
    use crate::exit::code_of;

    const OUT: Output = Output { json: true };

    fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    }

    #[tokio::test]
    async fn r17_a_key_is_made_once_and_leaves_its_file_only_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = || Layout::new(dir.path().join("data"));
        let stray = new(&layout(), OUT, KeyArgs::default()).await.unwrap_err();
        assert_eq!(code_of(&stray), Code::DataDir, "{stray:#}");
        drop(DataDir::open_or_make(layout()).unwrap());
        new(&layout(), OUT, KeyArgs::default()).await.unwrap();
        let made = signer::load(&layout().wallet(), None).unwrap();
        let again = new(&layout(), OUT, KeyArgs::default()).await.unwrap_err();
        assert!(again.to_string().contains("does not write over a key"), "{again:#}");
        assert_eq!(signer::load(&layout().wallet(), None).unwrap().address(), made.address());
        // Not sealed, and no passphrase for the export: it stays where it is.
        let plain = export(&layout(), None, KeyArgs::default()).await.unwrap_err();
        assert_eq!(code_of(&plain), Code::Usage, "{plain:#}");
        let under = file(&dir, "passphrase", "correct horse");
        export(&layout(), Some(under), KeyArgs::default()).await.unwrap();
    }

    #[tokio::test]
    async fn what_lotus_exported_is_taken_over_and_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().join("data"));
        drop(DataDir::open_or_make(Layout::new(dir.path().join("data"))).unwrap());
        // Hex of {"Type":"secp256k1","PrivateKey":"ERER…"}: 32 bytes of 0x11.
        let json = br#"{"Type":"secp256k1","PrivateKey":"ERERERERERERERERERERERERERERERERERERERERERE="}"#;
        let hex: String = json.iter().map(|byte| format!("{byte:02x}")).collect();
        let (from, passphrase) = (file(&dir, "export", &hex), file(&dir, "passphrase", "correct horse"));
        let args = KeyArgs { key_file: None, passphrase_file: Some(passphrase) };
        import(&layout, OUT, Some(from), args).await.unwrap();
        assert!(signer::load(&layout.wallet(), None).is_err(), "it is sealed");
        let text = std::fs::read_to_string(layout.wallet()).unwrap();
        assert!(
            text.contains("f1ghrejg5rcic6csaduor6ak4wcgj7ikrrxxo72my") && !text.contains("ERERER"),
            "{text}"
        );
        let bad = file(&dir, "bad", "nonsense");
        let args = KeyArgs { key_file: Some(dir.path().join("other")), passphrase_file: None };
        let error = import(&layout, OUT, Some(bad), args).await.unwrap_err();
        assert_eq!(code_of(&error), Code::Usage, "{error:#}");
    }
}
