//! The API under load, through the built binary: durable `POST /pins` from four accounts, then single pins and pages
//! of what was posted. Beside each rate stands what a request costs Floe in processor time, which other programs on
//! the machine disturb less.
//!
//! `cargo bench -p floe-tests --bench api`. The load comes from the same two cores. Beside the figures stands what
//! bounds a durable answer here: a bare append and `fdatasync` of 4 KiB in the same folder. `FLOE_BENCH_PINS`
//! (20,000) scales it; one account may have 10,000 pins waiting.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_tests::floe::{Floe, Options, now, run};
use floe_tests::noise;
use floe_tests::process::cpu;
use serde_json::{Value, json};

const ACCOUNTS: usize = 4;
/// Requests under way: 8 of each account.
const CLIENTS: usize = 32;
/// Reads of each kind.
const READS: usize = 4_000;
/// Pairs of rounds with and without a Filecoin node.
const ROUNDS: usize = 7;

fn main() -> Result<()> {
    let pins = std::env::var("FLOE_BENCH_PINS").ok().and_then(|v| v.parse().ok()).unwrap_or(20_000usize);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(measure(pins))
}

async fn measure(pins: usize) -> Result<()> {
    let dir = tempfile::tempdir()?;
    println!("append + fdatasync of 4 KiB: {:.2} ms (median)\n", raw_sync(dir.path())?.as_secs_f64() * 1e3);
    let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
    let load = Load { api: floe.api().to_owned(), pid: floe.pid(), tokens: tokens(&floe)?, http: http()? };
    let load = Arc::new(load);

    println!(
        "| {CLIENTS} requests under way | requests/s | p50 ms | p99 ms | CPU ms a request |\n|---|---|---|---|---|"
    );
    let (ids, posted) = load.post(pins).await?;
    println!("| POST /pins, {ACCOUNTS} accounts, {pins} pins | {posted} |");
    let one = load.get(READS, move |nth| format!("/pins/{}", ids[nth % ids.len()])).await?;
    println!("| GET /pins/{{id}} | {one} |");
    let states = "status=queued,pinning,pinned,failed";
    let page = load.get(READS / 4, move |_| format!("/pins?{states}&limit=10")).await?;
    println!("| GET /pins, 10 of {}, all states | {page} |", pins / ACCOUNTS);
    let named = load.get(READS / 4, move |nth| format!("/pins?{states}&name=pin-{nth}&limit=10")).await?;
    println!("| GET /pins by name | {named} |");
    let long = load.get(READS / 40, move |_| format!("/pins?{states}&limit=1000")).await?;
    println!("| GET /pins, 1,000 of them | {long} |");
    drop(floe);
    beside_a_silent_lotus(dir.path()).await
}

/// R15: what a Filecoin node that takes connections and says nothing does to the API, in turns with a Floe that has none.
async fn beside_a_silent_lotus(dir: &Path) -> Result<()> {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let lotus = silent.local_addr()?;
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(connection) = silent.accept().await {
            held.push(connection);
        }
    });
    let none = Beside::start(&dir.join("none"), None).await?;
    let dead = Beside::start(&dir.join("dead"), Some(lotus)).await?;
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        took.push((none.read().await?, dead.read().await?));
    }
    println!(
        "\n| GET /pins/{{id}} | requests/s | p50 ms | p99 ms | CPU ms a request |\n|---|---|---|---|---|"
    );
    let middle = |of: fn(&(Figures, Figures)) -> &Figures| {
        let mut all: Vec<&Figures> = took.iter().map(of).collect();
        all.sort_by_key(|figures| figures.p99);
        all[ROUNDS / 2]
    };
    let (without, with) = (middle(|both| &both.0), middle(|both| &both.1));
    println!("| no Filecoin node | {without} |\n| one that says nothing | {with} |");
    let mut ratios: Vec<f64> =
        took.iter().map(|(none, dead)| dead.p99.as_secs_f64() / none.p99.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    println!("p99, ratio: {:.2} (median of {ROUNDS} pairs)", ratios[ROUNDS / 2]);
    Ok(())
}

/// A Floe with pins that wait for replicas.
struct Beside {
    _floe: Floe,
    load: Arc<Load>,
    ids: Arc<Vec<String>>,
}

impl Beside {
    async fn start(home: &Path, lotus: Option<SocketAddr>) -> Result<Self> {
        let words = home.display().to_string();
        run(&["init", "--data-dir", &words], &[])?;
        let mut config = "[policy.default]\nreplicas = 1\nmax_price_attofil_gib_epoch = \"1\"\n".to_owned();
        if let Some(lotus) = lotus {
            run(&["wallet", "new", "--data-dir", &words], &[])?;
            config.insert_str(0, &format!("filecoin.api = \"http://{lotus}\"\n"));
        }
        let floe = Floe::start(home, &Options { config: Some(config), ..Options::default() })?;
        let load =
            Load { api: floe.api().to_owned(), pid: floe.pid(), tokens: tokens(&floe)?, http: http()? };
        let load = Arc::new(load);
        let (ids, _) = load.post(READS / 4).await?;
        Ok(Self { _floe: floe, load, ids })
    }

    async fn read(&self) -> Result<Figures> {
        let ids = self.ids.clone();
        self.load.get(READS, move |nth| format!("/pins/{}", ids[nth % ids.len()])).await
    }
}

fn http() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().timeout(Duration::from_secs(60)).pool_max_idle_per_host(CLIENTS).build()?)
}

/// An account for each, and a token that may read and write.
fn tokens(floe: &Floe) -> Result<Vec<String>> {
    let dir = floe.dir.display().to_string();
    let call = |args: &[&str]| -> Result<Value> {
        let out = run(&[args, &["--json", "--data-dir", &dir]].concat(), &[])?;
        ensure!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(serde_json::from_slice(&out.stdout)?)
    };
    let make = |name: &str| -> Result<String> {
        call(&["account", "create", name])?;
        let made =
            call(&["token", "create", "--account", name, "--scope", "pins:read", "--scope", "pins:write"])?;
        Ok(made["secret"].as_str().context("no secret")?.to_owned())
    };
    (0..ACCOUNTS).map(|n| make(&format!("account-{n}"))).collect()
}

struct Load {
    api: String,
    pid: u32,
    tokens: Vec<String>,
    http: reqwest::Client,
}

impl Load {
    /// Posts pins of content that nobody has; their request ids.
    async fn post(self: &Arc<Self>, pins: usize) -> Result<(Arc<Vec<String>>, Figures)> {
        let (answers, figures) = self
            .each(pins, |load, nth| async move {
                let pin = json!({ "cid": cid(nth), "name": format!("pin-{nth}") });
                let request =
                    load.http.post(format!("{}/pins", load.api)).bearer_auth(load.token(nth)).json(&pin);
                let answer = request.send().await?.error_for_status()?.json::<Value>().await?;
                Ok((nth, answer["requestid"].as_str().context("no request id")?.to_owned()))
            })
            .await?;
        let mut answers = answers;
        answers.sort_unstable();
        Ok((Arc::new(answers.into_iter().map(|(_, id)| id).collect()), figures))
    }

    async fn get(
        self: &Arc<Self>,
        reads: usize,
        path: impl Fn(usize) -> String + Send + Sync + 'static,
    ) -> Result<Figures> {
        let path = Arc::new(path);
        let (_, figures) = self
            .each(reads, move |load, nth| {
                let url = format!("{}{}", load.api, path(nth));
                async move {
                    let request = load.http.get(url).bearer_auth(load.token(nth));
                    Ok(request.send().await?.error_for_status()?.bytes().await?.len())
                }
            })
            .await?;
        Ok(figures)
    }

    fn token(&self, nth: usize) -> &str {
        &self.tokens[nth % ACCOUNTS]
    }

    /// Runs `request` for each number below `count`, [`CLIENTS`] at a time.
    async fn each<T, R, F>(self: &Arc<Self>, count: usize, request: R) -> Result<(Vec<T>, Figures)>
    where
        T: Send + 'static,
        R: Fn(Arc<Self>, usize) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let next = Arc::new(AtomicUsize::new(0));
        let (begun, cpu_before) = (now(), cpu(self.pid));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                let (load, next, request) = (self.clone(), next.clone(), request.clone());
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    loop {
                        let nth = next.fetch_add(1, Ordering::Relaxed);
                        if nth >= count {
                            return anyhow::Ok(done);
                        }
                        let asked = now();
                        done.push((request(load.clone(), nth).await?, asked.elapsed()));
                    }
                })
            })
            .collect();
        let (mut answers, mut took) = (Vec::new(), Vec::new());
        for client in clients {
            for (answer, time) in client.await?? {
                answers.push(answer);
                took.push(time);
            }
        }
        let (all, cpu) = (begun.elapsed(), cpu(self.pid).saturating_sub(cpu_before));
        Ok((answers, Figures::of(took, all, cpu)))
    }
}

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    cpu: Duration,
}

impl Figures {
    fn of(mut took: Vec<Duration>, all: Duration, cpu: Duration) -> Self {
        took.sort_unstable();
        let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
        let count = took.len() as f64;
        let per_second = count / all.as_secs_f64();
        Self { per_second, p50: at(50), p99: at(99), cpu: cpu.div_f64(count) }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (p50, p99, cpu) = (ms(self.p50), ms(self.p99), ms(self.cpu));
        write!(f, "{:.0} | {p50:.1} | {p99:.1} | {cpu:.2}", self.per_second)
    }
}

/// A CID that no other number has and that nobody serves.
fn cid(nth: usize) -> String {
    let block = floe_tests::dag::over(&noise(64, nth as u64), 1 << 20);
    block[0].cid().to_string()
}

fn raw_sync(dir: &Path) -> Result<Duration> {
    let mut file = std::fs::File::create(dir.join("raw"))?;
    let mut took = Vec::new();
    for _ in 0..200 {
        let begun = now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    Ok(took[took.len() / 2])
}
