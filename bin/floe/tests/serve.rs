//! `floe serve` as an operator meets it: starting, stopping, being in the way of itself, and its commands.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use support::{Node, ends_with, exit_code, floe, log, now};

/// Identity CIDs need no network: the data is in the name.
const EMPTY: &str = "bafkqaaa";
const HELLO: &str = "bafkqabtimvwgy3yk";

fn fresh() -> (tempfile::TempDir, PathBuf) {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().join("floe");
    (keep, dir)
}

#[test]
fn t24_it_starts_on_nothing_prints_no_token_and_stops_clean() {
    let (_keep, dir) = fresh();
    let node = Node::start_with(&dir, &["--log-filter", "trace"], &[]);
    let endpoints = node.endpoints.clone();
    assert_eq!(endpoints["version"], 1);
    for url in [&endpoints["api"], &endpoints["ops"]] {
        let port = url.as_str().unwrap().strip_prefix("http://127.0.0.1:").unwrap();
        assert_ne!(port.parse::<u16>().unwrap(), 0);
    }
    let peer_id = endpoints["peer_id"].as_str().unwrap().to_owned();
    for addr in endpoints["swarm"].as_array().unwrap() {
        assert!(addr.as_str().unwrap().ends_with(&format!("/p2p/{peer_id}")), "{addr}");
    }

    // Both tokens are used, so that a log of requests would have the chance.
    node.json(0, &["pin", "ls"]);
    let pin_token = std::fs::read_to_string(dir.join("pin.token")).unwrap();
    node.json(0, &["pin", "ls", "--token", pin_token.trim()]);
    let banner = std::fs::read_to_string(dir.with_extension("out")).unwrap();
    for want in [&peer_id, node.api(), &dir.display().to_string(), endpoints["ops"].as_str().unwrap()] {
        assert!(banner.contains(want), "{want}: {banner}");
    }
    let line =
        format!("ipfs pin remote service add floe {} \"$(cat {}/pin.token)\"", node.api(), dir.display());
    assert!(banner.contains(&line), "{banner}");

    assert_eq!(node.stop(), 0, "{}", log(&dir));
    assert!(!dir.join("endpoints.json").exists());
    let everything = log(&dir);
    for name in ["admin.token", "pin.token"] {
        let secret = std::fs::read_to_string(dir.join(name)).unwrap();
        assert!(!everything.contains(secret.trim()), "{name} was printed or logged");
    }
    only_for_their_owner(&dir);
}

/// T42: the key of the wallet is in memory, and a crash wrote all of that to a file.
#[cfg(target_os = "linux")]
#[test]
fn t42_a_node_leaves_no_core_dump() {
    let (_keep, dir) = fresh();
    let node = Node::start_with(&dir, &[], &[]);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
    assert_eq!(node.stop(), 0, "{}", log(&dir));
}

/// Nobody else may read what is kept: not the tokens, not the rows, not the blocks.
fn only_for_their_owner(path: &std::path::Path) {
    let mode = std::fs::metadata(path).unwrap().permissions().mode() & 0o077;
    assert_eq!(mode, 0, "{} is open to others", path.display());
    if path.is_dir() {
        std::fs::read_dir(path).unwrap().for_each(|entry| only_for_their_owner(&entry.unwrap().path()));
    }
}

#[test]
fn it_starts_again_on_the_same_directory_after_a_stop_and_after_a_kill() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    let peer_id = node.endpoints["peer_id"].clone();
    let pinned = node.json(0, &["pin", "add", EMPTY, "--wait"]);
    assert_eq!(node.stop(), 0);

    let node = Node::start(&dir);
    assert_eq!(node.endpoints["peer_id"], peer_id);
    node.kill();
    assert!(dir.join("endpoints.json").exists());
    let (_, err) = ends_with(3, &["status", "--data-dir", &dir.display().to_string()]);
    assert!(err.contains("no Floe runs on"), "{err}");

    let node = Node::start(&dir);
    let id = pinned["requestid"].as_str().unwrap();
    assert_eq!(node.json(0, &["pin", "status", id])["status"], "pinned");
    assert_eq!(node.stop(), 0);
    ends_with(0, &["verify", "--offline", "--data-dir", &dir.display().to_string()]);
}

/// After a kill -9 the next command showed the operator's token to whoever had the port by then.
#[test]
fn t24_a_stale_endpoints_file_sends_the_token_to_nobody() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    let addr = node.api().strip_prefix("http://").unwrap().to_owned();
    node.kill();
    let thief = std::net::TcpListener::bind(&addr).unwrap();
    thief.set_nonblocking(true).unwrap();
    let dir_arg = dir.display().to_string();
    let (_, err) = ends_with(3, &["status", "--data-dir", &dir_arg]);
    assert!(err.contains("no Floe runs on"), "{err}");
    assert_eq!(thief.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it was asked");

    std::fs::write(dir.join("endpoints.json"), "{").unwrap();
    let (_, err) = ends_with(1, &["status", "--data-dir", &dir_arg]);
    assert!(err.contains("endpoints.json") && err.contains("EOF"), "the cause is told: {err}");
}

#[test]
fn sigint_is_a_clean_stop_too() {
    let (_keep, dir) = fresh();
    let mut child = Node::spawn(&dir, &[], &[]);
    let begun = now();
    while !dir.join("endpoints.json").exists() {
        assert!(begun.elapsed() < Duration::from_secs(40), "{}", log(&dir));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(exit_code(&mut child), 0);
    assert!(!dir.join("endpoints.json").exists());
}

/// A request whose body never comes: it keeps a drain waiting for as long as it is let.
fn endless_request(dir: &std::path::Path) -> std::net::TcpStream {
    use std::io::Write as _;
    let begun = now();
    let endpoints = loop {
        let text = std::fs::read_to_string(dir.join("endpoints.json")).unwrap_or_default();
        if let Ok(endpoints) = serde_json::from_str::<Value>(&text) {
            break endpoints;
        }
        assert!(begun.elapsed() < Duration::from_secs(40), "{}", log(dir));
        std::thread::sleep(Duration::from_millis(10));
    };
    let addr = endpoints["api"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let token = std::fs::read_to_string(dir.join("pin.token")).unwrap();
    let mut stream = std::net::TcpStream::connect(&addr).unwrap();
    let head = format!("POST /pins HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {}\r\n", token.trim());
    write!(stream, "{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stream
}

fn term(child: &std::process::Child) {
    std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let (_keep, dir) = fresh();
    let mut child = Node::spawn(&dir, &[], &[]);
    let stream = endless_request(&dir);
    term(&child);
    std::thread::sleep(Duration::from_millis(700));
    term(&child);
    let second = now();
    assert_eq!(exit_code(&mut child), 1, "{}", log(&dir));
    assert!(second.elapsed() < Duration::from_secs(5), "it went on draining");
    assert!(log(&dir).contains("SIGTERM again"), "{}", log(&dir));
    drop(stream);
}

#[test]
fn a_request_that_never_ends_is_cut_and_the_stop_is_clean_and_in_time() {
    let (_keep, dir) = fresh();
    let mut child = Node::spawn(&dir, &["--stop-within", "3s"], &[]);
    let stream = endless_request(&dir);
    term(&child);
    let begun = now();
    assert_eq!(exit_code(&mut child), 0, "{}", log(&dir));
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(1_400), "the request had half of the time: {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert!(log(&dir).contains("cutting connections that did not finish in 1.5s"), "{}", log(&dir));
    drop(stream);
}

#[test]
fn a_stop_that_takes_too_long_is_given_up_and_loses_nothing() {
    let (_keep, dir) = fresh();
    let node = Node::start_with(&dir, &["--stop-within", "1ms"], &[]);
    let id = node.json(0, &["pin", "add", EMPTY, "--wait"])["requestid"].as_str().unwrap().to_owned();
    assert_eq!(node.stop(), 1, "{}", log(&dir));
    assert!(log(&dir).contains("did not stop within 1ms; nothing acknowledged is lost"), "{}", log(&dir));
    let node = Node::start(&dir);
    assert_eq!(node.json(0, &["pin", "status", &id])["status"], "pinned");
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_second_instance_ends_with_10_and_does_not_hurt_the_first() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    let dir_arg = dir.display().to_string();
    for command in [&["serve", "--offline"][..], &["init"], &["verify", "--offline"]] {
        let (_, err) = ends_with(10, &[command, &["--data-dir", &dir_arg]].concat());
        assert!(
            err.contains("in use by another process") && err.contains(&node.endpoints["pid"].to_string()),
            "{err}"
        );
    }
    assert!(dir.join("endpoints.json").exists());
    node.json(0, &["status"]);
    assert_eq!(node.stop(), 0);
}

#[test]
fn a_port_in_use_ends_with_11_and_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let api = format!("127.0.0.1:{port}");
    let swarm = format!("/ip4/127.0.0.1/tcp/{port}");
    for (flag, addr) in [("--api-addr", &api), ("--ops-addr", &api), ("--swarm-addr", &swarm)] {
        let (_keep, dir) = fresh();
        // Later ones win, but for the swarm, which listens on all.
        let mut args = vec![("--api-addr", "127.0.0.1:0"), ("--ops-addr", "127.0.0.1:0")];
        args.retain(|(name, _)| *name != flag);
        let mut line = vec!["serve", "--offline", "--data-dir"];
        let dir_arg = dir.display().to_string();
        line.push(&dir_arg);
        line.extend(args.iter().flat_map(|(name, value)| [*name, *value]));
        line.extend([flag, addr.as_str()]);
        if flag != "--swarm-addr" {
            line.extend(["--swarm-addr", "/ip4/127.0.0.1/tcp/0"]);
        }
        let (_, err) = ends_with(11, &line);
        assert!(err.contains(&port.to_string()), "{flag}: {err}");
        assert!(!dir.join("endpoints.json").exists());
    }
}

/// A node that was killed leaves its endpoints.json; a start that does not come as far as listening must not leave it
/// there, because a script that waits for the file would take it for that of the new node.
#[test]
fn a_stale_endpoints_file_is_gone_before_anything_is_bound() {
    let (_keep, dir) = fresh();
    Node::start(&dir).kill();
    assert!(dir.join("endpoints.json").exists());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let mut child = Node::spawn(&dir, &["--api-addr", &addr], &[]);
    assert_eq!(exit_code(&mut child), 11, "{}", log(&dir));
    assert!(!dir.join("endpoints.json").exists());
}

/// What a flag says holds for one run: in the file it would hold for all that follow.
#[test]
fn flags_are_never_written_to_the_file() {
    let (_keep, dir) = fresh();
    let template = tempfile::tempdir().unwrap();
    let template_dir = template.path().join("floe");
    ends_with(0, &["init", "--data-dir", &template_dir.display().to_string()]);
    let config = |dir: &std::path::Path| std::fs::read_to_string(dir.join("config.toml")).unwrap();
    for flags in [&["--stop-within", "7s", "--log-filter", "debug"][..], &["--log-format", "json"]] {
        let node = Node::start_with(&dir, flags, &[("FLOE_PIN_MAX_DEPTH", "9")]);
        assert_eq!(config(&dir), config(&template_dir), "while it runs");
        assert_eq!(node.stop(), 0);
        assert_eq!(config(&dir), config(&template_dir), "after a stop");
    }
}

/// What starts later uses what started before it.
#[test]
fn a_stop_is_in_the_reverse_order_of_the_start() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    node.json(0, &["pin", "add", EMPTY, "--wait"]);
    assert_eq!(node.stop(), 0);
    let log = log(&dir);
    let at = |part: &str| {
        let line = format!("stopped: {part}");
        log.find(&line).unwrap_or_else(|| panic!("no line \"{line}\": {log}"))
    };
    let ends = ["the API", "the engine", "the IPFS node", "the block store", "the rows"].map(at);
    assert!(ends.is_sorted(), "{log}");
}

/// On a full disk a node that had come as far as listening ended, because it could not write endpoints.json, or the
/// banner into a file there; and without a node nobody could remove pins to free space.
#[test]
fn what_cannot_be_written_for_others_to_read_keeps_no_node_from_starting() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir.display().to_string()]);
    // Whoever runs the tests may write anywhere, but not a file where a directory is.
    std::fs::create_dir(dir.join(".endpoints.json.tmp")).unwrap();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = Node::command(&dir, &[], &[]).stdout(full).spawn().unwrap();
    let begun = now();
    let api = loop {
        let log = log(&dir);
        if let Some((_, rest)) = log.split_once("--api-url ") {
            break rest.split([' ', '`', '"', '\n']).next().unwrap().to_owned();
        }
        assert!(child.try_wait().unwrap().is_none(), "it ended: {log}");
        assert!(begun.elapsed() < Duration::from_secs(40), "{log}");
        std::thread::sleep(Duration::from_millis(10));
    };
    let dir_arg = dir.display().to_string();
    let remote = ["--api-url", &api, "--data-dir", &dir_arg];
    let (out, _) = ends_with(0, &[&["pin", "add", EMPTY, "--json"][..], &remote].concat());
    let pin: Value = serde_json::from_str(&out).unwrap();
    ends_with(0, &[&["pin", "rm", pin["requestid"].as_str().unwrap()][..], &remote].concat());
    let log = log(&dir);
    assert!(log.contains("cannot write") && log.contains("endpoints.json"), "{log}");
    assert!(log.contains("stdout"), "{log}");
    term(&child);
    assert_eq!(exit_code(&mut child), 0, "{log}");
}

#[test]
fn wrong_and_weak_tokens_end_with_4() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    node.cli(4, &["pin", "ls", "--token", "floe_wrong"]);
    let reader = node.json(0, &["token", "create", "--account", "default", "--scope", "pins:read"]);
    let secret = reader["secret"].as_str().unwrap();
    node.cli(0, &["pin", "ls", "--token", secret]);
    node.cli(4, &["pin", "add", EMPTY, "--token", secret]);
    node.cli(4, &["status", "--token", secret]);
    node.cli(0, &["token", "revoke", &reader["token"]["id"].to_string()]);
    node.cli(4, &["pin", "ls", "--token", secret]);
}

#[test]
fn what_is_not_there_ends_with_5() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    let unknown = "01890a5d-ac96-774b-bcce-b302099a8057";
    for args in [
        &["pin", "status", unknown][..],
        &["pin", "rm", unknown],
        &["pin", "replace", unknown, EMPTY],
        &["pin", "status", "../admin/v1/status"],
        &["account", "suspend", "nobody"],
        &["account", "set", "nobody", "--max-pins", "1"],
        &["token", "revoke", "999999"],
    ] {
        node.cli(5, args);
    }
}

#[test]
fn pins_are_added_listed_replaced_and_removed() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    let args = ["pin", "add", EMPTY, "--name", "first", "--meta", "k=v", "--wait"];
    let first = node.json(0, &args);
    assert_eq!((&first["status"], &first["pin"]["meta"]), (&json!("pinned"), &json!({"k": "v"})));
    let id = first["requestid"].as_str().unwrap();

    let second = node.json(0, &["pin", "replace", id, HELLO, "--name", "sec\u{1b}[2Jond", "--wait"]);
    assert_eq!(second["pin"]["cid"], HELLO);
    node.cli(5, &["pin", "status", id]);
    let listed = node.json(0, &["pin", "ls", "--status", "pinned"]);
    assert_eq!((listed["count"].as_u64(), listed["results"].as_array().map(Vec::len)), (Some(1), Some(1)));
    let text = node.cli(0, &["pin", "ls"]);
    assert!(text.contains("sec\\u{1b}[2Jond") && !text.contains('\u{1b}'), "t19: {text}");

    let id = second["requestid"].as_str().unwrap();
    node.cli(0, &["pin", "rm", id]);
    assert_eq!(node.json(0, &["pin", "ls"])["count"], 0);
    node.cli(0, &["gc"]);
    node.cli(0, &["verify"]);
    assert!(node.cli(0, &["status"]).contains("pins pinned"));
}

#[test]
fn pages_of_pins_are_put_together() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    for n in 0..7 {
        node.json(0, &["pin", "add", EMPTY, "--name", &format!("n{n}")]);
    }
    let names = |args: &[&str]| -> Vec<String> {
        let listed: Value = node.json(0, &[&["pin", "ls"], args].concat());
        listed["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["pin"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&[]), ["n6", "n5", "n4", "n3", "n2", "n1", "n0"]);
    assert_eq!(names(&["--limit", "3"]), ["n6", "n5", "n4"]);
    assert_eq!(names(&["--name", "N3", "--match", "iexact"]), ["n3"]);
}

#[test]
fn a_pin_that_fails_ends_with_6_and_its_reason() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    // The codec of signed objects, inline: nobody here can walk it.
    let dir_arg = dir.display().to_string();
    let (_, err) = ends_with(6, &["pin", "add", "f0185010000", "--wait", "--data-dir", &dir_arg]);
    assert!(err.contains("failed:") && err.contains("codec"), "{err}");
    assert_eq!(node.json(0, &["pin", "ls", "--status", "failed"])["count"], 1);
}

#[test]
fn a_wait_goes_on_over_a_restart() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    let addr = node.api().strip_prefix("http://").unwrap().to_owned();
    // Nobody has it, so it is waited for until it is removed.
    let lost = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    let mut waiting = floe(&["pin", "add", lost, "--wait", "--api-url", node.api(), "--data-dir"])
        .arg(&dir)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let begun = now();
    let id = loop {
        let listed = node.json(0, &["pin", "ls"]);
        if let Some(id) = listed["results"][0]["requestid"].as_str() {
            break id.to_owned();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the pin was not added");
        std::thread::sleep(Duration::from_millis(50));
    };
    node.kill();
    let node = Node::start_with(&dir, &["--api-addr", &addr], &[]);
    assert!(waiting.try_wait().unwrap().is_none(), "it gave up");
    node.cli(0, &["pin", "rm", &id]);
    assert_eq!(exit_code(&mut waiting), 5);
}

#[test]
fn accounts_have_bounds_and_can_be_shut_out() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    node.cli(0, &["account", "create", "alice", "--max-pins", "1", "--max-bytes", "1GiB"]);
    node.cli(1, &["account", "create", "alice"]);
    let args = [
        "token",
        "create",
        "--account",
        "alice",
        "--scope",
        "pins:read",
        "--scope",
        "pins:write",
        "--expires",
        "30d",
    ];
    let made = node.json(0, &args);
    let at = |key: &str| made["token"][key].as_u64().unwrap_or_default();
    let days = at("expires").saturating_sub(at("created")) as f64 / 86_400_000.0;
    assert!((29.99..30.01).contains(&days), "{days} days: {made}");
    let secret = made["secret"].as_str().unwrap();
    node.cli(0, &["pin", "add", EMPTY, "--token", secret]);
    let dir_arg = dir.display().to_string();
    let over = ["pin", "add", HELLO, "--token", secret, "--data-dir", &dir_arg];
    let (_, err) = ends_with(1, &over);
    assert!(err.contains("409 INSUFFICIENT_FUNDS"), "{err}");

    let set = node.cli(0, &["account", "set", "alice", "--max-pins", "2"]);
    assert!(set.contains("alice") && set.contains("1.00 GiB"), "{set}");
    node.cli(0, &["pin", "add", HELLO, "--token", secret]);
    ends_with(1, &over);
    let set = node.json(0, &["account", "set", "alice", "--max-pins", "none"]);
    assert!(set["max_pins"].is_null() && set["max_bytes"] == 1_u64 << 30, "{set}");
    node.cli(0, &["pin", "add", HELLO, "--token", secret]);

    node.cli(0, &["account", "suspend", "alice"]);
    node.cli(4, &["pin", "ls", "--token", secret]);
    node.cli(0, &["account", "suspend", "alice", "--lift"]);
    node.cli(0, &["pin", "ls", "--token", secret]);
    let accounts = node.cli(0, &["account", "ls"]);
    assert!(
        accounts.contains("default") && accounts.contains("alice") && accounts.contains("1.00 GiB"),
        "{accounts}"
    );
    let tokens = node.cli(0, &["token", "ls", "--account", "alice"]);
    assert!(
        tokens.contains("alice") && tokens.contains("pins:read pins:write") && !tokens.contains(secret),
        "{tokens}"
    );
}

#[test]
fn metrics_and_health_are_on_the_ops_address() {
    let (_keep, dir) = fresh();
    let node = Node::start(&dir);
    node.json(0, &["pin", "add", EMPTY, "--wait"]);
    let ops = node.endpoints["ops"].as_str().unwrap();
    let get = |path: &str| {
        let out = get(ops.strip_prefix("http://").unwrap(), path);
        out.split_once("\r\n\r\n").map(|(head, body)| (head.to_owned(), body.to_owned())).unwrap()
    };
    assert!(get("/livez").0.contains(" 200 ") && get("/readyz").0.contains(" 200 "));
    let text = get("/metrics").1;
    for want in [
        "floe_pins{status=\"pinned\"} 1",
        "floe_pins{status=\"failed\"} 0",
        "floe_read_only 0",
        "floe_blocks ",
        "floe_stored_bytes ",
        "floe_disk_free_bytes ",
        "floe_build_info{version=",
    ] {
        assert!(text.contains(want), "{want}: {text}");
    }
}

/// A plain HTTP/1.1 request, so that this suite needs no client of its own.
fn get(addr: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").unwrap();
    let mut out = Vec::new();
    stream.read_to_end(&mut out).unwrap();
    String::from_utf8_lossy(&out).into_owned()
}
