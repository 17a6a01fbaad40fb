//! The cold half, joined: the rows, the node, the key and the providers become what the engine asks for.
//!
//! A Filecoin node that is away keeps nobody from starting: what is pinned, served and announced does not need it, and
//! the engine looks again by itself. Only what cannot mend itself ends a start: a key that does not open, or rules for
//! tests where money is real.

mod journal;
pub(crate) mod keys;
mod peers;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context as _;
use floe_core::Clock;
use floe_engine::cold::{Components, Deals};
use floe_filecoin::Secret;
use floe_filecoin::chain::{NetworkPin, Rules};
use floe_filecoin::market::web::Web;
use floe_filecoin::port::{ChainSettings, DealSigner, LotusChain, Providers};
use floe_filecoin::rpc::{Endpoint, Lotus};
use floe_filecoin::signer::{self, KeyFileError, LotusWallet, Signer};
use floe_ipfs::Node;
use floe_records::Records;
use floe_records::cold::NewProvider;

use crate::config::Config;
use crate::config::cold::{Filecoin, Wallet};
use crate::datadir::Layout;
use crate::exit::{Code, Failure};

use self::journal::Rows;
use self::peers::{Filter, Peers};

/// How long a start waits for the node to say which network it is on, of the five seconds that it may take in all. The
/// node is asked again at each look.
const GREETING: Duration = Duration::from_secs(1);

/// What the engine gets, where a Filecoin node and a wallet are configured.
pub(crate) async fn join(
    config: &Config,
    layout: &Layout,
    node: &Node,
    records: &Records,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<Option<Components>> {
    let Some(endpoint) = endpoint(&config.filecoin, std::env::var_os(TOKEN_VARIABLE)).await? else {
        return Ok(None);
    };
    let lotus = Lotus::new(endpoint).context("cannot use filecoin.api")?;
    let Some(signer) = signer(&config.filecoin, layout, &lotus).await? else {
        if config.deals.enabled {
            let text = "deals.enabled is set and there is no wallet: make one with `floe wallet new`, or set \
                        filecoin.wallet";
            return Err(Failure::new(Code::Usage, text).into());
        }
        tracing::warn!("filecoin.api is set and there is no wallet: `floe wallet new` makes one");
        return Ok(None);
    };
    // Without the rules of test networks there is nothing to refuse, and a silent node costs a start no time.
    if config.filecoin.test_network {
        refuse_test_rules(&config.filecoin, &lotus, clock).await?;
    }
    let rows = Arc::new(Rows(records.clone()));
    let settings = ChainSettings {
        test_network: config.filecoin.test_network,
        finality_lookback: config.filecoin.finality_lookback,
        max_fee: config.deals.max_gas,
    };
    let chain =
        LotusChain::new(lotus.clone(), signer.clone(), rows.clone(), rows, Arc::clone(clock), settings);
    // A test network's providers may be anywhere.
    let all_permitted = config.filecoin.test_network;
    let filter = Filter { filter: node.web_filter(), all_permitted };
    let web = Web::new(Arc::new(filter), Arc::clone(clock)).context("cannot set up TLS")?;
    let peers = Arc::new(Peers { node: node.clone(), all_permitted });
    let market = Providers::new(lotus, signer.clone(), web, peers, Arc::clone(clock));
    for provider in &config.providers {
        let new = NewProvider {
            id: provider.id,
            source: "config".into(),
            addresses: provider.addresses.clone(),
            regions: provider.regions.clone(),
        };
        let put = records.put_provider(new).await;
        put.with_context(|| format!("cannot write down the provider {}", provider.id))?;
    }
    Ok(Some(Components {
        chain: Arc::new(chain),
        market: Arc::new(market),
        proposer: Arc::new(DealSigner::new(signer)),
    }))
}

/// A data directory that was put back does not know what was signed since it was copied. That it is another file is seen
/// here; a snapshot that is rolled back in place looks the same, and for that the operator has `--restored`.
pub(crate) async fn notice_a_copy(
    config: &Config,
    layout: &Layout,
    records: &Records,
    restored: bool,
) -> anyhow::Result<()> {
    let rows = layout.rows();
    let file = std::fs::metadata(&rows).with_context(|| format!("cannot look at {}", rows.display()))?;
    // A freed inode is soon given to another file, so that its birth counts too, where the filesystem knows it.
    let born = file.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let home = format!("{} {}", file.ino(), born.unwrap_or_default().as_nanos());
    let copied = records.at_home(&home).await?;
    if restored {
        records.mark_restored("`floe serve --restored` says so").await?;
    }
    // Noted without a node too: one may be configured again later.
    if restored || copied && config.filecoin.api.is_some() {
        tracing::warn!(
            "this data directory was put back or copied: no replica is placed until nothing that it does not know of can \
             be published; `floe spending status` says how long, `floe spending trust-backup` ends it"
        );
    }
    Ok(())
}

/// What may be spent, and the terms of deals.
pub(crate) fn deals(config: &Config) -> Deals {
    Deals {
        enabled: config.deals.enabled,
        caps: config.deals.caps,
        start_lead: config.filecoin.start_lead,
        finality_lookback: config.filecoin.finality_lookback,
        shared_owners: config.filecoin.shared_owners,
        least_top_up: config.deals.least_top_up,
        wallet_reserve: config.deals.wallet_reserve,
        alarm_below: config.deals.alarm_below,
        look_every: config.filecoin.look_every,
        ..Deals::default()
    }
}

/// The environment variable with the token alone. No key of the configuration: nothing that is shown or written holds it.
const TOKEN_VARIABLE: &str = "FLOE_FILECOIN_API_TOKEN";

/// The endpoint with its token, wherever that is: in `filecoin.api`, in a file, or in `variable`, and in one of them alone.
async fn endpoint(filecoin: &Filecoin, variable: Option<OsString>) -> anyhow::Result<Option<Endpoint>> {
    let Some(mut endpoint) = filecoin.api.clone() else { return Ok(None) };
    if let Some(path) = filecoin.api_token_file.clone() {
        let token = secret(path).await.context("filecoin.api_token_file")?;
        endpoint = endpoint.with_token(token)?;
    }
    if let Some(token) = variable.filter(|token| !token.is_empty()) {
        // What is no text is no secret either: the empty one says so.
        let token = token.into_string().unwrap_or_default();
        let token = Secret::new(&token, &format!("in {TOKEN_VARIABLE}"))?;
        endpoint = endpoint.with_token(token).context(TOKEN_VARIABLE)?;
    }
    Ok(Some(endpoint))
}

/// A secret out of a file that only its owner may read.
pub(crate) async fn secret(path: std::path::PathBuf) -> anyhow::Result<Secret> {
    let read = tokio::task::spawn_blocking(move || Secret::from_file(&path)).await;
    Ok(read.context("reading a secret panicked")??)
}

/// Who signs; `None` where nobody was said and there is no `wallet.key`.
async fn signer(
    filecoin: &Filecoin,
    layout: &Layout,
    lotus: &Lotus,
) -> anyhow::Result<Option<Arc<dyn Signer>>> {
    let path = match &filecoin.wallet {
        Some(Wallet::Node(address)) => {
            let wallet = LotusWallet::unasked(lotus.clone(), *address);
            return Ok(wallet.map(|wallet| Arc::new(wallet) as Arc<dyn Signer>));
        }
        Some(Wallet::File(path)) => path.clone(),
        None if layout.wallet().exists() => layout.wallet(),
        None => return Ok(None),
    };
    let passphrase = match filecoin.passphrase_file.clone() {
        Some(file) => Some(secret(file).await.context("filecoin.passphrase_file")?),
        None => None,
    };
    // A passphrase takes a fifth of a second and 64 MiB.
    let loaded = tokio::task::spawn_blocking(move || signer::load(&path, passphrase.as_ref())).await;
    let key = loaded.context("opening the wallet panicked")?.map_err(not_opened)?;
    tracing::info!(wallet = %key.address(), "the wallet is open");
    Ok(Some(Arc::new(key)))
}

/// Why a wallet does not open, with the code that says whether somebody has to bring a file back or to set something.
fn not_opened(error: KeyFileError) -> anyhow::Error {
    let code = match &error {
        KeyFileError::Damaged { .. } => Code::Damage,
        KeyFileError::PassphraseNeeded(_) | KeyFileError::WrongPassphrase(_) | KeyFileError::Secret(_) => {
            Code::Usage
        }
        KeyFileError::File { source, .. } if source.kind() == ErrorKind::NotFound => Code::Usage,
        KeyFileError::File { .. } | KeyFileError::Exists(_) => Code::Failure,
    };
    Failure::new(code, format!("cannot open the wallet: {error}")).into()
}

/// Refuses `filecoin.test_network` on mainnet, where the node can be asked now. Each look refuses it too.
async fn refuse_test_rules(filecoin: &Filecoin, lotus: &Lotus, clock: &Arc<dyn Clock>) -> anyhow::Result<()> {
    let asked = tokio::select! {
        asked = NetworkPin::of(lotus) => asked.map_err(|error| error.to_string()),
        () = clock.sleep(GREETING) => Err(format!("no answer within {GREETING:?}")),
    };
    match asked {
        Ok(pin) => {
            let rules = Rules::new(&pin, filecoin.test_network, filecoin.finality_lookback);
            rules.map(drop).map_err(|error| Failure::new(Code::Usage, error.to_string()).into())
        }
        Err(error) => {
            tracing::warn!(
                endpoint = %lotus.endpoint(),
                "the Filecoin node cannot be used now ({error}): deals wait for it, and nothing else does"
            );
            Ok(())
        }
    }
}
