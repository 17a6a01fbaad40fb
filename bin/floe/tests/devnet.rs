//! `floe devnet` as a script meets it: one line, ports that answer, an end by signal.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use support::{ends_with, exit_code, floe};

/// A running devnet, and the line it printed. Killed when dropped.
struct Devnet {
    child: Child,
    ready: Value,
}

impl Devnet {
    fn start(args: &[&str]) -> Self {
        let mut child = floe(&[&["devnet"], args].concat()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, ready: serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}")) }
    }

    /// The body of an answer to a POST.
    fn post(&self, base: &str, path: &str, body: &Value) -> Value {
        let addr = self.ready[base].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        let (token, body) = (self.ready["token"].as_str().unwrap(), body.to_string());
        let mut stream = TcpStream::connect(&addr).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    fn call(&self, method: &str, params: Value) -> Value {
        let method = format!("Filecoin.{method}");
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.post("rpc", "/rpc/v1", &request)["result"].clone()
    }

    fn signal(mut self, name: &str) -> i32 {
        std::process::Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        exit_code(&mut self.child)
    }
}

impl Drop for Devnet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_line_says_all() {
    let devnet = Devnet::start(&["--providers", "3", "--seed", "7", "--epoch", "0s"]);
    let ready = &devnet.ready;
    let mut names: Vec<&str> = ready.as_object().unwrap().keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["client", "control", "key", "network", "providers", "rpc", "token"]);
    let providers = ready["providers"].as_array().unwrap();
    assert_eq!(providers.len(), 3);
    for (n, provider) in providers.iter().enumerate() {
        let id = format!("f0{}", 1_000 + n);
        assert_eq!(provider["id"], id);
        assert!(provider["url"].as_str().unwrap().starts_with("http://127.0.0.1:"));
        let info = devnet.call("StateMinerInfo", json!([id, []]));
        assert_eq!(provider["peer_id"], info["PeerId"]);
        assert!(provider["multiaddrs"][0].as_str().unwrap().starts_with("/ip4/127.0.0.1/tcp/"), "{provider}");
    }
    assert_eq!(devnet.call("StateNetworkName", json!([])), ready["network"]);
    let balance = devnet.call("WalletBalance", json!([ready["client"]]));
    assert!(balance.as_str().unwrap().parse::<u128>().unwrap() > 0);
    assert_eq!(devnet.call("ChainHead", json!([]))["Height"], 0, "it stands still");
    assert_eq!(devnet.post("control", "/epochs/step", &json!({"n": 4}))["height"], 4);
    let scripts = json!({"providers": {"f01001": {"reject": "backpressure"}}});
    assert_eq!(devnet.post("control", "/faults", &scripts)["providers"]["f01001"]["reject"], "backpressure");

    let again = Devnet::start(&["--providers", "3", "--seed", "7", "--epoch", "0s"]);
    for name in ["key", "token", "client", "network"] {
        assert_eq!(again.ready[name], ready[name], "{name} follows from the seed");
    }
    assert_eq!(devnet.signal("-TERM"), 0);
    assert_eq!(again.signal("-INT"), 0);
}

/// Time goes on by itself, as fast as it is told.
#[test]
fn epochs_run() {
    let devnet = Devnet::start(&["--providers", "1", "--epoch", "5ms"]);
    while devnet.call("ChainHead", json!([]))["Height"].as_i64().unwrap() < 10 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let (_, err) = ends_with(2, &["devnet", "--providers", "33"]);
    assert!(err.contains("at most 32 providers"), "{err}");
    ends_with(2, &["devnet", "--epoch", "soon"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (_, err) = ends_with(11, &["devnet", "--rpc-addr", &addr]);
    assert!(err.contains(&addr), "{err}");
}
