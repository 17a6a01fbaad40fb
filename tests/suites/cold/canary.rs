//! R17, T42: where the token of the node, the passphrase and the key are seen, and by whom. They are put in as canaries, the
//! node works for a while, and then everything is searched that it wrote, printed and answered.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::filecoin::{Network, write_key};
use floe_tests::floe::{Floe, Options, run};
use floe_tests::seeder::Seeder;
use floe_tests::skipped;
use serde_json::json;

use super::operator::{is_outside, until};
use super::{LIFETIME, Plan, pin_noise, stored};

/// An unprivileged user that owns nothing.
const NOBODY: u32 = 65_534;
const PASSPHRASE: &str = "canary horse battery staple 7";

/// What must not be seen, each with its name.
struct Secrets(Vec<(&'static str, Vec<u8>)>);

impl Secrets {
    fn of(network: &Network, token: &str) -> Result<Self> {
        let nibble = |c: u8| (c as char).to_digit(16).context("hex");
        let json = network.key.as_bytes().chunks(2).map(|pair| match pair {
            [high, low] => Ok(u8::try_from(nibble(*high)? * 16 + nibble(*low)?)?),
            _ => anyhow::bail!("an odd digit"),
        });
        let exported: serde_json::Value = serde_json::from_slice(&json.collect::<Result<Vec<u8>>>()?)?;
        let base64 = exported["PrivateKey"].as_str().context("the key")?;
        let raw = of_base64(base64)?;
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self(vec![
            ("the token", token.into()),
            ("the passphrase", PASSPHRASE.into()),
            ("the exported key", network.key.clone().into()),
            ("the key in base64", base64.trim_end_matches('=').into()),
            ("the key in hex", hex.into()),
            ("the key", raw),
        ]))
    }

    fn are_not_in(&self, place: &str, bytes: &[u8]) -> Result<()> {
        for (name, secret) in &self.0 {
            let is_there = bytes.windows(secret.len()).any(|some| some == secret.as_slice());
            ensure!(!is_there, "{name} is in {place}");
        }
        Ok(())
    }
}

fn of_base64(text: &str) -> Result<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut out) = (0_u32, 0, Vec::new());
    for digit in text.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|known| *known == digit).context("base64")?;
        bits = (bits << 6 | u32::try_from(value)?) & 0xfff;
        held += 6;
        if held >= 8 {
            held -= 8;
            out.push(u8::try_from(bits >> held & 0xff)?);
        }
    }
    Ok(out)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// A Lotus error that repeated the token was in the log, in the rows, and in what `floe spending status` says.
#[tokio::test(flavor = "multi_thread")]
async fn r17_token_passphrase_and_key_are_seen_nowhere_after_a_days_work() -> Result<()> {
    if is_outside("cold: where secrets are seen") {
        return Ok(());
    }
    let network = Network::start(5, "100ms")?;
    network.until_final().await?;
    let dir = tempfile::tempdir()?;
    let home = dir.path().join("floe");
    let api = &network.lotus.api;
    let (token, address) = api.split_once(":http").context("the node is TOKEN:URL")?;
    let address = format!("http{address}");
    let secrets = Secrets::of(&network, token)?;
    let (token_file, passphrase_file) = (dir.path().join("lotus.token"), dir.path().join("passphrase"));
    write_key(&token_file, token)?;
    write_key(&passphrase_file, PASSPHRASE)?;
    let plan = Plan::on_devnet(&network, LIFETIME, true)?.config;
    let config = plan.replace(
        &format!("filecoin.api = \"{api}\"\n"),
        &format!(
            "log.filter = \"debug\"\nfilecoin.api = \"{address}\"\nfilecoin.api_token_file = \"{}\"\n\
             filecoin.passphrase_file = \"{}\"\n",
            token_file.display(),
            passphrase_file.display()
        ),
    );
    ensure!(config.contains("api_token_file"), "{config}");
    let data_dir = home.display().to_string();
    run(&["init", "--data-dir", &data_dir], &[])?;
    std::fs::write(home.join("config.toml"), config)?;
    let exported = dir.path().join("exported.key");
    write_key(&exported, &network.key)?;
    let imported = run(&["wallet", "import", &exported.display().to_string(), "--data-dir", &data_dir], &[])?;
    ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));

    let mut said = imported.stdout;
    said.extend(imported.stderr);
    let mut says = |command: &[&str]| -> Result<String> {
        let done = run(&[command, &["--data-dir", &data_dir]].concat(), &[])?;
        let text = [done.stdout, done.stderr].concat();
        said.extend(&text);
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let floe = Floe::start(&home, &Options::default())?;
    let seeder = Seeder::start().await?;
    let pin = pin_noise(&floe, &seeder, 100 << 10, 11).await?;
    stored(&floe, std::slice::from_ref(&pin), Duration::from_secs(120)).await?;
    says(&["wallet", "withdraw", "999FIL"])?;
    says(&["wallet", "export", "--under", &passphrase_file.display().to_string()])?;
    let repeats = json!({"error": format!("invalid token {token}: signature is invalid")});
    network.control("POST", "/faults", Some(json!({"node": {"rules": [{"fault": repeats}]}}))).await?;
    until("the node's error is told", async || Ok(floe.log().contains("invalid token [secret]"))).await?;
    says(&["wallet", "fund", "1FIL"])?;
    for command in [
        &["wallet", "show"][..],
        &["spending", "status"],
        &["status"],
        &["providers", "ls"],
        &["cold", "plan"],
        &["deals", "ls", "--json"],
        &["deals", "cost"],
        &["events"],
    ] {
        says(command)?;
    }
    for path in ["/pins".to_owned(), format!("/pins/{pin}")] {
        let (status, body) = floe.call("GET", &path, None).await?;
        ensure!(status == 200, "{path}: {status}");
        secrets.are_not_in(&path, body.to_string().as_bytes())?;
    }
    for path in ["/admin/v1/spending", "/admin/v1/wallet", "/admin/v1/status", "/admin/v1/deals"] {
        let (_, body) = floe.call_as(&floe.admin_token(), "GET", path, None).await?;
        secrets.are_not_in(path, body.to_string().as_bytes())?;
    }
    let ops = floe.endpoints["ops"].as_str().context("ops")?;
    let metrics = reqwest::get(format!("{ops}/metrics")).await?.text().await?;
    ensure!(metrics.contains("floe_attofil_wallet"), "{metrics}");
    secrets.are_not_in("/metrics", metrics.as_bytes())?;
    secrets.are_not_in("endpoints.json", floe.endpoints.to_string().as_bytes())?;
    ensure!(floe.log().contains("DEBUG"), "the log is that of level debug");
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");

    secrets.are_not_in("what the commands print", &said)?;
    secrets.are_not_in("the log", &std::fs::read(home.with_extension("log"))?)?;
    let kept = files(&home)?;
    ensure!(kept.len() > 10, "{kept:?}");
    for path in kept {
        secrets.are_not_in(&path.display().to_string(), &std::fs::read(&path)?)?;
    }
    // The key is there, sealed; what opens it is outside, and all of it is its owner's alone.
    for path in [home.join("wallet.key"), token_file, passphrase_file] {
        let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "{}: {mode:o}", path.display());
    }
    Ok(())
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// T42: any process of the same user could read the key out of the memory of `floe serve`.
#[tokio::test(flavor = "multi_thread")]
async fn t42_no_other_process_of_the_same_user_reads_the_memory() -> Result<()> {
    let what = "cold: the memory of a running node";
    if !cfg!(target_os = "linux") {
        skipped(what, "only Linux keeps it from the same user");
        return Ok(());
    }
    // Root reads everything: then it is another user's process, and another process of that user's.
    let is_root = std::fs::metadata("/proc/self")?.uid() == 0;
    let nobody = NOBODY.to_string();
    let switch = ["setpriv", "--reuid", &nobody, "--regid", &nobody, "--clear-groups"];
    let under: Vec<String> =
        if is_root { switch.iter().map(ToString::to_string).collect() } else { Vec::new() };
    let as_user = |words: &[&str]| {
        let all: Vec<&str> = under.iter().map(String::as_str).chain(words.iter().copied()).collect();
        let mut command = Command::new(all[0]);
        command.args(&all[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let binary = floe_tests::floe::binary().display().to_string();
    if is_root && !as_user(&[&binary, "--version"]).status().is_ok_and(|status| status.success()) {
        skipped(what, "it runs as root, and setpriv cannot run the binary as another user");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    if is_root {
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY))?;
    }
    let reads = |pid: u32| -> Result<bool> {
        Ok(as_user(&["cat", &format!("/proc/{pid}/environ")]).status()?.success())
    };
    let other = Running(as_user(&["sleep", "60"]).spawn()?);
    // It is the user's own from the moment at which it is another program.
    until("a process of the user's is read by another", async || reads(other.0.id())).await?;
    let options = Options { under: under.clone(), ..Options::default() };
    let floe = Floe::start(&dir.path().join("floe"), &options)?;
    ensure!(!reads(floe.pid())?, "the environment of floe serve is read by another process");
    let owner = std::fs::metadata(format!("/proc/{}/mem", floe.pid()))?.uid();
    ensure!(!is_root || owner == 0, "its memory belongs to {owner}");
    ensure!(floe.stop()? == 0, "a clean stop ends with 0");
    Ok(())
}
