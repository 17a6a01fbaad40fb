//! The built binary as a child process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// Where cargo put the binary: beside the folder of the running test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("FLOE_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("a running test has a path");
    let profile = exe.ancestors().nth(2).expect("tests run from target/<profile>/deps");
    profile.join("floe")
}

/// How a Floe is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Further arguments of `floe serve`.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Replaces config.toml before the start.
    pub config: Option<String>,
    /// A program that runs the binary, with its arguments. It must leave it its process id.
    pub under: Vec<String>,
    /// Keep the ports of an earlier run.
    pub api_port: u16,
}

/// A running `floe serve`. Killed when dropped.
pub struct Floe {
    child: Child,
    /// Its data directory.
    pub dir: PathBuf,
    /// `endpoints.json`.
    pub endpoints: Value,
    http: reqwest::Client,
    /// How long it took to be ready.
    pub ready_after: Duration,
}

impl Floe {
    /// Starts it offline on free loopback ports and waits until it is ready.
    pub fn start(dir: &Path, options: &Options) -> Result<Self> {
        if let Some(config) = &options.config {
            run(&["init", "--data-dir", &dir.display().to_string()], &[])?;
            std::fs::write(dir.join("config.toml"), config)?;
        }
        let begun = now();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.with_extension("log"))?;
        let words = options.under.iter().map(OsString::from).chain([binary().into_os_string()]);
        let words: Vec<OsString> = words.collect();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["serve", "--offline", "--ops-addr", "127.0.0.1:0"])
            .args(["--api-addr", &format!("127.0.0.1:{}", options.api_port)])
            .args(["--swarm-addr", "/ip4/127.0.0.1/tcp/0", "--swarm-addr", "/ip4/127.0.0.1/udp/0/quic-v1"])
            .args(["--swarm-addr", "/ip4/127.0.0.1/tcp/0/ws"])
            .arg("--data-dir")
            .arg(dir)
            .args(&options.args)
            .envs(options.env.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", binary().display()))?;
        let file = dir.join("endpoints.json");
        let pid = u64::from(child.id());
        let endpoints = loop {
            if let Ok(text) = std::fs::read_to_string(&file)
                && let Ok(value) = serde_json::from_str::<Value>(&text)
                && value["pid"] == pid
            {
                break value;
            }
            if let Some(status) = child.try_wait()? {
                bail!("floe ended with {status}: {}", tail(&dir.with_extension("log")));
            }
            if begun.elapsed() > Duration::from_secs(60) {
                let _ = child.kill();
                bail!("floe was not ready in 60 s: {}", tail(&dir.with_extension("log")));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build()?;
        Ok(Self { child, dir: dir.to_owned(), endpoints, http, ready_after: begun.elapsed() })
    }

    /// The API's URL.
    pub fn api(&self) -> &str {
        self.endpoints["api"].as_str().unwrap_or_default()
    }

    /// Its first TCP swarm address, with the peer id.
    pub fn swarm_tcp(&self) -> String {
        self.swarm_where(|address| address.contains("/tcp/") && !address.contains("/ws"))
    }

    /// Its first swarm address with this in it, with the peer id.
    pub fn swarm(&self, part: &str) -> String {
        self.swarm_where(|address| address.contains(part))
    }

    fn swarm_where(&self, good: impl Fn(&str) -> bool) -> String {
        let all = self.endpoints["swarm"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(Value::as_str).find(|address| good(address)).unwrap_or_default().to_owned()
    }

    /// Its first WebSocket swarm address, with the peer id.
    pub fn swarm_ws(&self) -> String {
        let all = self.endpoints["swarm"].as_array().cloned().unwrap_or_default();
        all.iter().filter_map(Value::as_str).find(|a| a.contains("/ws")).unwrap_or_default().to_owned()
    }

    /// The token of `pin.token`.
    pub fn token(&self) -> String {
        std::fs::read_to_string(self.dir.join("pin.token")).unwrap_or_default().trim().to_owned()
    }

    /// The token of `admin.token`.
    pub fn admin_token(&self) -> String {
        std::fs::read_to_string(self.dir.join("admin.token")).unwrap_or_default().trim().to_owned()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.with_extension("log")).unwrap_or_default()
    }

    /// A request with the pin token; the status and the JSON body (or null).
    pub async fn call(&self, method: &str, path: &str, body: Option<Value>) -> Result<(u16, Value)> {
        self.call_as(&self.token(), method, path, body).await
    }

    /// The same with another token.
    pub async fn call_as(
        &self,
        token: &str,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, Value)> {
        let method = reqwest::Method::from_bytes(method.as_bytes())?;
        let mut request = self.http.request(method, format!("{}{path}", self.api())).bearer_auth(token);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// One line of `/metrics`.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let ops = self.endpoints["ops"].as_str().context("no ops address")?;
        let text = self.http.get(format!("{ops}/metrics")).send().await?.text().await?;
        let line = text.lines().find(|l| l.starts_with(name) && !l.starts_with('#'));
        let line = line.with_context(|| format!("no metric {name}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse()?)
    }

    /// `POST /pins`; the request id.
    pub async fn pin(&self, cid: &str, origins: &[String]) -> Result<String> {
        let (status, body) =
            self.call("POST", "/pins", Some(json!({"cid": cid, "origins": origins}))).await?;
        ensure!(status == 202, "POST /pins answered {status}: {body}");
        Ok(body["requestid"].as_str().context("no requestid")?.to_owned())
    }

    /// Waits until a pin has the status, or fails.
    pub async fn wait_for(&self, id: &str, status: &str, within: Duration) -> Result<Value> {
        let begun = now();
        loop {
            let (code, body) = self.call("GET", &format!("/pins/{id}"), None).await?;
            ensure!(code == 200, "GET /pins/{id} answered {code}: {body}");
            if body["status"] == status {
                return Ok(body);
            }
            ensure!(body["status"] != "failed", "the pin failed: {body}");
            ensure!(begun.elapsed() < within, "not {status} within {within:?}: {body}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// kill -9.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and the exit code.
    pub fn stop(mut self) -> Result<i32> {
        // SAFETY is not needed: the signal goes through kill(1), so that this crate has no unsafe code.
        Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        let begun = now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return status.code().context("ended by a signal");
            }
            ensure!(begun.elapsed() < Duration::from_secs(40), "did not stop in 40 s");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Floe {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the log of floe ends:\n{}", tail(&self.dir.with_extension("log")));
        }
    }
}

/// Runs a command of the binary to its end.
pub fn run(args: &[&str], env: &[(&str, &str)]) -> Result<Output> {
    Command::new(binary())
        .args(args)
        .envs(env.iter().copied())
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", binary().display()))
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(40).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// The wall clock, for time-outs of tests.
#[expect(clippy::disallowed_methods, reason = "suites wait for a real process")]
pub fn now() -> Instant {
    Instant::now()
}
