//! `[filecoin]` and `[deals]`: the node, the wallet, and what may be spent.
//!
//! Nothing is spent unless the operator said how much: deals are enabled with every cap above zero, or not at all.

use std::path::PathBuf;
use std::time::Duration;

use floe_core::spending::Caps;
use floe_core::{ActorId, AttoFil};
use floe_filecoin::rpc::Endpoint;
use floe_filecoin::types::Address;

use super::keys::{Default, Kind};
use super::tables::{Family, Field};
use super::values::Setting;
use super::{ConfigError, Layers};
use crate::limits;

/// Epochs of a day.
const DAY: i64 = 2_880;
/// The finality of the network.
const FINALITY: i64 = floe_filecoin::limits::FINALITY;

/// `[filecoin]`
#[derive(Debug, Clone)]
pub(crate) struct Filecoin {
    /// Where the node is; without the token of [`Filecoin::api_token_file`].
    pub(crate) api: Option<Endpoint>,
    pub(crate) api_token_file: Option<PathBuf>,
    pub(crate) wallet: Option<Wallet>,
    pub(crate) passphrase_file: Option<PathBuf>,
    pub(crate) test_network: bool,
    pub(crate) finality_lookback: i64,
    pub(crate) start_lead: i64,
    pub(crate) shared_owners: bool,
    pub(crate) look_every: Duration,
}

/// Whose money it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wallet {
    /// A key in a file.
    File(PathBuf),
    /// A key in the wallet of the node.
    Node(Address),
}

/// `[deals]`
#[derive(Debug, Clone)]
pub(crate) struct Deals {
    pub(crate) enabled: bool,
    pub(crate) caps: Caps,
    pub(crate) max_gas: AttoFil,
    pub(crate) least_top_up: AttoFil,
    pub(crate) wallet_reserve: AttoFil,
    pub(crate) alarm_below: AttoFil,
}

/// A storage provider of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provider {
    pub(crate) id: ActorId,
    pub(crate) addresses: Vec<String>,
    pub(crate) regions: Vec<String>,
}

pub(super) fn filecoin(layers: &Layers) -> Result<Filecoin, ConfigError> {
    let filecoin = Filecoin {
        api: layers.optional("filecoin.api")?,
        api_token_file: layers.optional("filecoin.api_token_file")?,
        wallet: layers.optional("filecoin.wallet")?,
        passphrase_file: layers.optional("filecoin.passphrase_file")?,
        test_network: layers.one("filecoin.test_network")?,
        finality_lookback: layers.one::<Epochs>("filecoin.finality_lookback")?.0,
        start_lead: layers.one::<Epochs>("filecoin.start_lead")?.0,
        shared_owners: layers.one("filecoin.shared_owners")?,
        look_every: layers.one("filecoin.look_every")?,
    };
    let two_tokens = filecoin.api_token_file.is_some()
        && filecoin.api.as_ref().is_some_and(|endpoint| endpoint.token().is_some());
    if two_tokens {
        let reason = "filecoin.api holds a token too: keep one of them".to_owned();
        return Err(layers.invalid("filecoin.api_token_file", reason));
    }
    only_in_tests(layers, &filecoin)?;
    Ok(filecoin)
}

/// What needs `filecoin.test_network`.
fn only_in_tests(layers: &Layers, filecoin: &Filecoin) -> Result<(), ConfigError> {
    if filecoin.test_network {
        return Ok(());
    }
    let needs = |key, what: &str| Err(layers.invalid(key, format!("{what} needs filecoin.test_network")));
    if filecoin.finality_lookback < FINALITY {
        return needs("filecoin.finality_lookback", "less than the 900 epochs of the network's finality");
    }
    if !(2 * DAY..=14 * DAY).contains(&filecoin.start_lead) {
        return needs(
            "filecoin.start_lead",
            "less than 5760 epochs (two days), or more than 40320 (two weeks),",
        );
    }
    if filecoin.shared_owners {
        return needs("filecoin.shared_owners", "replicas with one owner");
    }
    Ok(())
}

pub(super) fn deals(layers: &Layers) -> Result<Deals, ConfigError> {
    // What is not set permits nothing.
    let cap = |key| Ok(layers.optional::<AttoFil>(key)?.unwrap_or_default());
    let deals = Deals {
        enabled: layers.one("deals.enabled")?,
        caps: Caps {
            deal: cap("deals.max_per_deal")?,
            account_day: cap("deals.max_per_account_day")?,
            day: cap("deals.max_per_day")?,
            lifetime: cap("deals.max_lifetime")?,
        },
        max_gas: cap("deals.max_gas")?,
        least_top_up: layers.one("deals.least_top_up")?,
        wallet_reserve: layers.one("deals.wallet_reserve")?,
        alarm_below: cap("deals.alarm_below")?,
    };
    if !deals.enabled {
        return Ok(deals);
    }
    let caps = [
        ("deals.max_per_deal", deals.caps.deal),
        ("deals.max_per_account_day", deals.caps.account_day),
        ("deals.max_per_day", deals.caps.day),
        ("deals.max_lifetime", deals.caps.lifetime),
        ("deals.max_gas", deals.max_gas),
    ];
    if let Some((missing, _)) = caps.iter().find(|(_, cap)| cap.is_zero()) {
        let reason = format!("{missing} is 0, and permits nothing: set it, or leave deals off");
        return Err(layers.invalid("deals.enabled", reason));
    }
    if layers.optional::<Endpoint>("filecoin.api")?.is_none() {
        let reason = "filecoin.api is not set: without a Filecoin node there are no deals".to_owned();
        return Err(layers.invalid("deals.enabled", reason));
    }
    Ok(deals)
}

/// What `[provider.f01000]` may hold.
pub(crate) const PROVIDER: Family = Family {
    section: "provider",
    about: "Storage providers that deals may be made with, by their ids on the chain; `floe providers add` adds others. What \
            is not said here the chain is asked for.",
    example: "f01000",
    is_name: |name| name.parse::<ActorId>().is_ok(),
    names: "the id of a provider, such as f01000",
    most: limits::PROVIDERS,
    fields: &[ADDR, REGIONS],
};

const ADDR: Field = Field {
    name: "addr",
    kind: Kind::List("URLs or multiaddrs"),
    default: Default::Is("[]"),
    about: "Where it is reached: the URL of its market, or multiaddrs.",
    reason: "Empty: where the chain says, which is often nothing. What stands here may be a private address.",
};
const REGIONS: Field = Field {
    name: "regions",
    kind: Kind::List("tags"),
    default: Default::Is("[]"),
    about: "Tags for policies to choose by, such as a country.",
    reason: "Nobody but you says where a provider is.",
};

/// The providers of the file, by id.
pub(super) fn providers(layers: &Layers) -> Result<Vec<Provider>, ConfigError> {
    let named = layers.tables(&PROVIDER).map(|(name, table)| {
        let id = name.parse().map_err(|_| table.invalid(ADDR.name, "this is no id of a provider"))?;
        let addresses = table.many::<ProviderAddress>(&ADDR)?.into_iter().map(|ProviderAddress(at)| at);
        Ok(Provider { id, addresses: addresses.collect(), regions: table.many(&REGIONS)? })
    });
    named.collect()
}

struct ProviderAddress(String);

impl Setting for ProviderAddress {
    fn read(text: &str) -> Result<Self, String> {
        provider_address(text).map(Self)
    }
}

struct Epochs(i64);

impl Setting for Epochs {
    fn read(text: &str) -> Result<Self, String> {
        let epochs = u32::read(text)?;
        Ok(Self(i64::from(epochs)))
    }
}

impl Setting for Endpoint {
    fn read(text: &str) -> Result<Self, String> {
        Self::parse(text).map_err(|e| e.to_string())
    }
}

impl Setting for Wallet {
    fn read(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::File(PathBuf::from(text)));
        }
        match text.parse() {
            Ok(address @ (Address::Secp256k1(_) | Address::Bls(_))) => Ok(Self::Node(address)),
            Ok(_) => Err("the address of a key begins with f1 or f3".into()),
            Err(_) => Err("the path of a key file, or the address of a key in the node's wallet".into()),
        }
    }
}

/// Where a provider is: the URL of its market, or a multiaddr.
pub(crate) fn provider_address(text: &str) -> Result<String, String> {
    let is_multiaddr = text.starts_with('/') && text.parse::<floe_ipfs::Multiaddr>().is_ok();
    let is_url = floe_filecoin::market::web::Base::parse(text, true).is_some();
    if is_multiaddr || is_url {
        Ok(text.to_owned())
    } else {
        Err(format!("{text} is no URL and no multiaddr"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layer, file};
    use floe_core::spending::Committed;

    fn read(text: &str) -> Result<crate::config::Config, String> {
        let layer = file::parse(std::path::Path::new("config.toml"), text).map_err(|e| e.to_string())?;
        crate::config::Config::check(&Layers::stack(layer, |_| None, Layer::new())).map_err(|e| e.to_string())
    }

    const CAPS: &str = "max_per_deal = \"1\"\nmax_per_account_day = \"1\"\nmax_per_day = \"1\"\nmax_lifetime = \"1\"\nmax_gas = \"1\"\n";
    const API: &str = "[filecoin]\napi = \"hunter2:http://127.0.0.1:1234\"\n";

    /// T36: off by default; on with all caps or not at all.
    #[test]
    fn t36_deals_without_caps_are_refused() {
        assert!(!read("").unwrap().deals.enabled);
        assert!(read("").unwrap().deals.caps.permit(&Committed::default(), AttoFil::ZERO).is_err());
        let on = |caps: &str| read(&format!("{API}[deals]\nenabled = true\n{caps}"));
        assert!(on(CAPS).unwrap().deals.enabled);
        for line in CAPS.lines() {
            let key = line.split(' ').next().unwrap();
            for less in [CAPS.replace(line, ""), CAPS.replace(line, &line.replace('1', "0"))] {
                let error = on(&less).unwrap_err();
                assert!(error.contains(key) && error.contains("line 4"), "{error}");
            }
        }
        let error = read(&format!("[deals]\nenabled = true\n{CAPS}")).unwrap_err();
        assert!(error.contains("filecoin.api"), "{error}");
        for bad in ["1.5", "-1", "1e18", ""] {
            let error = read(&format!("[deals]\nmax_per_deal = \"{bad}\"")).unwrap_err();
            assert!(error.contains("deals.max_per_deal"), "{error}");
        }
        assert!(read("[deals]\nmax_per_deal = 1").unwrap_err().contains("as text"));
    }

    #[test]
    fn what_only_test_networks_need_is_refused_elsewhere() {
        for line in ["finality_lookback = 5", "start_lead = 60", "start_lead = 50000", "shared_owners = true"]
        {
            let error = read(&format!("[filecoin]\n{line}")).unwrap_err();
            assert!(error.contains("filecoin.test_network") && error.contains("line 2"), "{error}");
            read(&format!("[filecoin]\ntest_network = true\n{line}")).unwrap();
        }
    }

    /// R17: whatever is wrong with it, and wherever it is shown.
    #[test]
    fn r17_the_token_of_the_node_is_not_shown() {
        for bad in ["hunter2:ftp://x", "hunter2", "https://user:hunter2@x", "hunter2:/ip4/1.2.3.4/udp/1"] {
            let error = read(&format!("[filecoin]\napi = \"{bad}\"")).unwrap_err();
            assert!(error.contains("filecoin.api") && !error.contains("hunter2"), "{error}");
        }
        let error = read(&format!("{API}api_token_file = \"/etc/token\"")).unwrap_err();
        assert!(error.contains("keep one of them") && !error.contains("hunter2"), "{error}");
        assert!(!format!("{:?}", read(API).unwrap()).contains("hunter2"));
        let layer = file::parse(std::path::Path::new("config.toml"), API).unwrap();
        let layers = Layers::stack(layer, |_| None, Layer::new());
        let shown = serde_json::to_string(&crate::config::render::shown(&layers)).unwrap();
        assert!(!shown.contains("hunter2") && shown.contains("http://127.0.0.1:1234/rpc/v1"), "{shown}");
    }

    #[test]
    fn wallets_and_providers() {
        assert_eq!(Wallet::read("/a/b"), Ok(Wallet::File("/a/b".into())));
        assert!(matches!(Wallet::read("f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy"), Ok(Wallet::Node(_))));
        for bad in ["f01000", "wallet.key", "f1nonsense", ""] {
            assert!(Wallet::read(bad).is_err(), "{bad}");
        }
        let text = "[provider.f01001]\n[provider.f01000]\naddr = [\"https://sp.example\", \"/ip4/1.2.3.4/tcp/5\"]\nregions = [\"eu\"]";
        let providers = read(text).unwrap().providers;
        assert_eq!(providers.len(), 2);
        let one = providers.iter().find(|one| one.id == ActorId::new(1000)).unwrap();
        assert_eq!((one.addresses.len(), one.regions.as_slice()), (2, ["eu".to_owned()].as_slice()));
        for (bad, key) in [
            ("[provider.1000]", "provider.1000"),
            ("[provider.f01000]\naddr = [\"sp.example\"]", "provider.f01000.addr"),
            ("[provider.f01000]\naddr = [\"ftp://x\"]", "provider.f01000.addr"),
            ("[provider.f01000]\nadr = []", "provider.f01000.addr"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(key), "{bad}: {error}");
        }
    }
}
