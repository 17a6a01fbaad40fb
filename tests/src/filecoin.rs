//! A Filecoin for the suites: `floe devnet` as a child process, or a network outside that the environment names.
//!
//! | variable | |
//! |---|---|
//! | `FLOE_TEST_LOTUS` | the node, as `TOKEN:/ip4/…/tcp/…/http` or as `TOKEN:URL` |
//! | `FLOE_TEST_KEY` | the key to spend from, as Lotus exports it (hex) |
//! | `FLOE_TEST_PROVIDERS` | `f01000=ADDR,f01001=ADDR`: URLs of markets or multiaddrs |
//! | `FLOE_TEST_PULL_URL` | where these providers reach the pull server; it listens on the URL's port |
//! | `FLOE_TEST_MAX_ATTOFIL` | the most that the suite may ever commit |
//!
//! What is asked here is asked of the node and of the devnet's control port, never of Floe: it is what Floe's word is
//! compared with.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::floe::binary;

/// A network with a funded key.
pub struct Network {
    /// The node.
    pub lotus: Lotus,
    /// As Lotus exports it.
    pub key: String,
    /// Whom to deal with: id and address.
    pub providers: Vec<(String, String)>,
    /// Of a network outside: where its providers reach us, and how much may be spent.
    pub outside: Option<Outside>,
    devnet: Option<Devnet>,
}

/// What is different on a network outside.
pub struct Outside {
    /// The pull server's URL as providers see it.
    pub pull_url: String,
    /// attoFIL.
    pub most: u128,
}

/// A JSON-RPC client, made of nothing that Floe has.
pub struct Lotus {
    /// As Floe's setting takes it.
    pub api: String,
    url: String,
    token: Option<String>,
    http: reqwest::Client,
}

struct Devnet {
    /// None: it runs inside of a Floe.
    child: Option<Child>,
    control: String,
}

impl Drop for Devnet {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Network {
    /// The network outside where the environment names one whole; a devnet of so many providers elsewhere.
    pub fn start(providers: usize, epoch: &str) -> Result<Self> {
        match std::env::var("FLOE_TEST_LOTUS") {
            Ok(api) => Self::outside(&api),
            Err(_) => Self::devnet(providers, epoch, &[]),
        }
    }

    fn outside(api: &str) -> Result<Self> {
        let variable =
            |name: &str| std::env::var(name).with_context(|| format!("FLOE_TEST_LOTUS needs {name} too"));
        let pair = |text: &str| text.split_once('=').map(|(id, addr)| (id.to_owned(), addr.to_owned()));
        let providers = variable("FLOE_TEST_PROVIDERS")?;
        let providers: Option<Vec<_>> = providers.split(',').map(|text| pair(text.trim())).collect();
        Ok(Self {
            lotus: Lotus::new(api)?,
            key: variable("FLOE_TEST_KEY")?,
            providers: providers.context("FLOE_TEST_PROVIDERS is f01000=ADDR,f01001=ADDR")?,
            outside: Some(Outside {
                pull_url: variable("FLOE_TEST_PULL_URL")?,
                most: variable("FLOE_TEST_MAX_ATTOFIL")?
                    .parse()
                    .context("FLOE_TEST_MAX_ATTOFIL is a number")?,
            }),
            devnet: None,
        })
    }

    /// A devnet of so many providers, with further arguments.
    pub fn devnet(providers: usize, epoch: &str, args: &[&str]) -> Result<Self> {
        let mut child = Command::new(binary())
            .args(["devnet", "--epoch", epoch, "--providers", &providers.to_string()])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", binary().display()))?;
        let mut line = String::new();
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let ready: Value =
            serde_json::from_str(&line).with_context(|| format!("the devnet said {line:?}"))?;
        let mut network = Self::of_ready(&ready)?;
        if let Some(devnet) = &mut network.devnet {
            devnet.child = Some(child);
        }
        Ok(network)
    }

    /// The devnet that printed this, or that `endpoints.json` has under `devnet`.
    pub fn of_ready(ready: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let providers = ready["providers"].as_array().context("providers")?.iter();
        // Each where it would be reached on a real network: over HTTP only where it is Curio.
        let address = |one: &Value| match one["manner"].as_str() {
            Some("boost") => format!("{}/p2p/{}", text(&one["multiaddrs"][0]), text(&one["peer_id"])),
            _ => text(&one["url"]),
        };
        Ok(Self {
            lotus: Lotus::new(&format!("{}:{}", text(&ready["token"]), text(&ready["rpc"])))?,
            key: text(&ready["key"]),
            providers: providers.map(|one| (text(&one["id"]), address(one))).collect(),
            outside: None,
            devnet: Some(Devnet { child: None, control: text(&ready["control"]) }),
        })
    }

    /// Waits until something is final: before that the chain can be asked for nothing.
    pub async fn until_final(&self) -> Result<()> {
        while self.is_devnet() && self.lotus.height().await? < 10 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// Whether scripts can be set.
    pub fn is_devnet(&self) -> bool {
        self.devnet.is_some()
    }

    /// Sets the script of a provider.
    pub async fn script(&self, provider: usize, faults: Value) -> Result<()> {
        let scripts = json!({"providers": {self.providers[provider].0.as_str(): faults}});
        self.control("POST", "/faults", Some(scripts)).await.map(drop)
    }

    /// What the control port says.
    pub async fn control(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let devnet = self.devnet.as_ref().context("only a devnet has a control port")?;
        let method = reqwest::Method::from_bytes(method.as_bytes())?;
        let mut request = self.lotus.http.request(method, format!("{}{path}", devnet.control));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        ensure!(answer.status().is_success(), "{path} answered {}", answer.status());
        Ok(answer.json().await?)
    }
}

impl Lotus {
    /// `TOKEN:ADDRESS`, or an address alone.
    fn new(api: &str) -> Result<Self> {
        let at = ["/ip4/", "/ip6/", "/dns", "http://", "https://"]
            .iter()
            .filter_map(|start| api.find(start))
            .min();
        let at = at.context("the node is TOKEN:/ip4/…/http or TOKEN:URL")?;
        let (token, address) = (api[..at].trim_end_matches(':'), &api[at..]);
        Ok(Self {
            api: api.to_owned(),
            url: format!("{}/rpc/v1", base(address)?),
            token: (!token.is_empty()).then(|| token.to_owned()),
            http: reqwest::Client::new(),
        })
    }

    /// The result of a call.
    pub async fn call(&self, method: &str, params: Value) -> Result<Value> {
        let name = format!("Filecoin.{method}");
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": name, "params": params});
        let mut request = self.http.post(&self.url).json(&body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let mut answer: Value = request.send().await?.json().await?;
        ensure!(answer.get("error").is_none_or(Value::is_null), "{method}: {}", answer["error"]);
        Ok(answer["result"].take())
    }

    /// The height of the head.
    pub async fn height(&self) -> Result<i64> {
        self.call("ChainHead", json!([])).await?["Height"].as_i64().context("a height")
    }

    /// attoFIL of an account, outside of the market.
    pub async fn wallet(&self, address: &str) -> Result<u128> {
        amount(&self.call("WalletBalance", json!([address])).await?)
    }

    /// attoFIL of an account at the market, and what of it is locked.
    pub async fn escrow(&self, address: &str) -> Result<(u128, u128)> {
        let balance = self.call("StateMarketBalance", json!([address, []])).await?;
        Ok((amount(&balance["Escrow"])?, amount(&balance["Locked"])?))
    }

    /// attoFIL that the messages of an account have cost in gas between two heights, added up from the chain. The
    /// heights must be past the node's finality, or the chain without reorgs.
    pub async fn gas(&self, address: &str, from: i64, to: i64) -> Result<u128> {
        let (mut sum, mut last) = (0, Value::Null);
        for height in from + 1..=to {
            let tipset = self.call("ChainGetTipSetByHeight", json!([height, []])).await?;
            let block = &tipset["Cids"][0];
            if *block == last {
                continue;
            }
            last = block.clone();
            let messages = self.call("ChainGetParentMessages", json!([block])).await?;
            let receipts = self.call("ChainGetParentReceipts", json!([block])).await?;
            // What the parent's messages paid is by the parent's base fee, which the child names.
            let base_fee = amount(&tipset["Blocks"][0]["ParentBaseFee"])?;
            let pairs =
                messages.as_array().into_iter().flatten().zip(receipts.as_array().into_iter().flatten());
            for (message, receipt) in pairs.filter(|(message, _)| message["Message"]["From"] == address) {
                let (cap, premium) =
                    (amount(&message["Message"]["GasFeeCap"])?, amount(&message["Message"]["GasPremium"])?);
                let used = u128::from(receipt["GasUsed"].as_u64().context("gas used")?);
                sum += used * cap.min(base_fee + premium);
            }
        }
        Ok(sum)
    }
}

fn base(address: &str) -> Result<String> {
    if address.starts_with("http") {
        return Ok(address.trim_end_matches('/').to_owned());
    }
    let parts: Vec<&str> = address.split('/').collect();
    match parts.as_slice() {
        ["", "ip6", host, "tcp", port, scheme @ ("http" | "https")] => {
            Ok(format!("{scheme}://[{host}]:{port}"))
        }
        ["", "ip4" | "dns" | "dns4" | "dns6", host, "tcp", port, scheme @ ("http" | "https")] => {
            Ok(format!("{scheme}://{host}:{port}"))
        }
        _ => anyhow::bail!("{address} is no multiaddr of HTTP"),
    }
}

/// Writes an exported key where only its owner reads it, as `floe wallet import` wants it.
pub fn write_key(path: &Path, key: &str) -> Result<()> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    Ok(file.write_all(key.as_bytes())?)
}

/// A decimal string of attoFIL.
pub fn amount(value: &Value) -> Result<u128> {
    let text = value.as_str().with_context(|| format!("{value} is no amount"))?;
    text.parse().with_context(|| format!("{text} is no amount"))
}
