//! The built binary as a child process, for the suites of this crate.

#![allow(dead_code, reason = "each suite uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than any start or stop takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// The binary, with nothing of the developer's environment that it would read.
pub(crate) fn floe(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floe"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FLOE_")) {
        command.env_remove(name);
    }
    command.env_remove("HOME").args(args).stdin(Stdio::null());
    command
}

/// Runs it to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    floe(args).output().unwrap()
}

/// Exit code, stdout, stderr.
pub(crate) fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// Runs it to its end; it must end with this code. Returns stdout and stderr.
#[track_caller]
pub(crate) fn ends_with(code: i32, args: &[&str]) -> (String, String) {
    let (got, out, err) = said(&run(args));
    assert_eq!(got, code, "floe {args:?}\nstdout: {out}\nstderr: {err}");
    (out, err)
}

/// The wall clock, for time-outs.
#[expect(clippy::disallowed_methods, reason = "the suites wait for a real process")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A running `floe serve --offline` on free loopback ports. Killed when dropped.
pub(crate) struct Node {
    pub(crate) child: Child,
    /// Its data directory.
    pub(crate) dir: PathBuf,
    /// `endpoints.json`.
    pub(crate) endpoints: Value,
}

impl Node {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[], &[])
    }

    /// The same with further arguments and environment.
    pub(crate) fn start_with(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = Self::spawn(dir, args, env);
        let pid = u64::from(child.id());
        let begun = now();
        let endpoints = loop {
            let text = std::fs::read_to_string(dir.join("endpoints.json")).unwrap_or_default();
            match serde_json::from_str::<Value>(&text) {
                Ok(endpoints) if endpoints["pid"] == pid => break endpoints,
                _ => {}
            }
            if let Some(status) = child.try_wait().unwrap() {
                panic!("ended with {status}: {}", log(dir));
            }
            assert!(begun.elapsed() < PATIENCE, "not ready: {}", log(dir));
            std::thread::sleep(Duration::from_millis(10));
        };
        Self { child, dir: dir.to_owned(), endpoints }
    }

    /// Starts it without waiting. stdout and stderr go to files beside the directory.
    pub(crate) fn spawn(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Child {
        Self::command(dir, args, env).spawn().unwrap()
    }

    /// What [`Node::spawn`] runs.
    pub(crate) fn command(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> Command {
        let file = |extension: &str| {
            let path = dir.with_extension(extension);
            std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap()
        };
        let mut command = floe(&["serve", "--offline", "--api-addr", "127.0.0.1:0"]);
        command
            .args(["--ops-addr", "127.0.0.1:0", "--swarm-addr", "/ip4/127.0.0.1/tcp/0", "--data-dir"])
            .arg(dir)
            .args(args)
            .envs(env.iter().copied())
            .stdout(file("out"))
            .stderr(file("err"));
        command
    }

    /// The API's URL.
    pub(crate) fn api(&self) -> &str {
        self.endpoints["api"].as_str().unwrap()
    }

    /// Runs a client command against it that must end with this code.
    #[track_caller]
    pub(crate) fn cli(&self, code: i32, args: &[&str]) -> String {
        let dir = self.dir.display().to_string();
        ends_with(code, &[args, &["--data-dir", &dir]].concat()).0
    }

    /// The same, with the JSON document it prints.
    #[track_caller]
    pub(crate) fn json(&self, code: i32, args: &[&str]) -> Value {
        let out = self.cli(code, &[args, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// What it printed and logged so far.
    pub(crate) fn output(&self) -> String {
        log(&self.dir)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(mut self) -> i32 {
        self.signal("-TERM");
        exit_code(&mut self.child)
    }

    /// kill -9.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process.
#[track_caller]
pub(crate) fn exit_code(child: &mut Child) -> i32 {
    let begun = now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(begun.elapsed() < PATIENCE, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// stdout and stderr of what ran on a directory.
pub(crate) fn log(dir: &Path) -> String {
    ["out", "err"]
        .map(|extension| std::fs::read_to_string(dir.with_extension(extension)).unwrap_or_default())
        .concat()
}
