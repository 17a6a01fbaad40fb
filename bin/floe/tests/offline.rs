//! What the binary does without a running node: settings, data directories, and being told no.

#![expect(clippy::unwrap_used, reason = "a suite fails by panicking")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use support::{Node, ends_with, floe, said};

fn fresh() -> (tempfile::TempDir, String) {
    let keep = tempfile::tempdir().unwrap();
    let dir = keep.path().join("floe").display().to_string();
    (keep, dir)
}

fn read(dir: &str, name: &str) -> String {
    std::fs::read_to_string(Path::new(dir).join(name)).unwrap()
}

/// A start that comes as far as its ports, and then is refused.
const SERVE: [&str; 6] = ["serve", "--offline", "--api-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"];

#[test]
fn manual_and_completions_are_there() {
    let (man, _) = ends_with(0, &["man"]);
    assert!(man.contains(".TH floe 1") && man.contains("serve"), "{man}");
    for shell in ["bash", "zsh", "fish"] {
        let (script, _) = ends_with(0, &["completions", shell]);
        assert!(script.contains("floe"), "{shell}");
    }
    let keep = tempfile::tempdir().unwrap();
    ends_with(0, &["man", "--dir", &keep.path().display().to_string()]);
    assert!(std::fs::read_to_string(keep.path().join("floe-pin-add.1")).unwrap().contains("origin"));
}

#[test]
fn usage_errors_end_with_2() {
    for args in [&["serve", "--api-adr", "x"][..], &["pin"], &["frobnicate"], &["pin", "add"]] {
        ends_with(2, args);
    }
    let (_, err) = ends_with(2, &["status"]);
    assert!(err.contains("--data-dir"), "no HOME, no directory: {err}");
}

#[test]
fn a_misspelt_setting_ends_with_2_and_names_key_and_line() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    std::fs::write(Path::new(&dir).join("config.toml"), "[api]\n\nadress = \"127.0.0.1:1\"\n").unwrap();
    for command in [&["config", "check"][..], &["config", "show"], &["serve"]] {
        let (_, err) = ends_with(2, &[command, &["--data-dir", &dir]].concat());
        assert!(err.contains("line 3") && err.contains("did you mean \"api.addr\""), "{command:?}: {err}");
    }
}

#[test]
fn a_wrong_value_names_who_said_it() {
    let (_keep, dir) = fresh();
    let (_, err) = ends_with(2, &["serve", "--data-dir", &dir, "--api-addr", "nowhere"]);
    assert!(err.contains("--api-addr") && err.contains("api.addr"), "{err}");
    let (code, _, err) =
        said(&floe(&["serve", "--data-dir", &dir]).env("FLOE_SWARM_ADDR", "tcp").output().unwrap());
    assert!(code == 2 && err.contains("FLOE_SWARM_ADDR"), "{code}: {err}");
}

/// An empty variable is one that is not set, but an empty FLOE_DATA_DIR was a usage error, also of commands that need no
/// data directory.
#[test]
fn an_empty_data_dir_variable_is_none() {
    let keep = tempfile::tempdir().unwrap();
    let with_home = |args: &[&str]| {
        let output = floe(args).env("FLOE_DATA_DIR", "").env("HOME", keep.path()).output().unwrap();
        said(&output)
    };
    let (code, out, err) = with_home(&["config", "check"]);
    assert!(code == 0 && out.contains(".floe/config.toml"), "{code}: {out}{err}");
    assert_eq!(with_home(&["man"]).0, 0);
    let (code, _, err) = said(&floe(&["status"]).env("FLOE_DATA_DIR", "").output().unwrap());
    assert!(code == 2 && err.contains("there is no HOME"), "{code}: {err}");
}

/// `floe pin add --origin 203.0.113.7:4001` was accepted without a word, and the pin waited for a day: origins are hints,
/// and the service passes over what it cannot use.
#[test]
fn an_origin_that_is_none_is_a_usage_error() {
    let (_keep, dir) = fresh();
    for origin in ["rubbish", "203.0.113.7:4001", "/ip4/203.0.113.7/tcp/4001", ""] {
        for command in [&["pin", "add", "bafkqaaa"][..], &["pin", "replace", "id", "bafkqaaa"]] {
            let (_, err) = ends_with(2, &[command, &["--origin", origin, "--data-dir", &dir]].concat());
            assert!(err.contains("--origin") && err.contains("/p2p/"), "{origin}: {err}");
        }
    }
}

/// A variable whose bytes are no text was passed over, and the node listened where the default says.
#[test]
fn a_variable_that_is_no_text_is_an_error() {
    use std::os::unix::ffi::OsStrExt as _;
    let (_keep, dir) = fresh();
    let bytes = std::ffi::OsStr::from_bytes(b"127.0.0.1:\xff");
    let output = floe(&["config", "check", "--data-dir", &dir]).env("FLOE_API_ADDR", bytes).output().unwrap();
    let (code, _, err) = said(&output);
    assert!(code == 2 && err.contains("FLOE_API_ADDR") && err.contains("UTF-8"), "{code}: {err}");
}

/// `floe config check` called these right, and `floe serve` ended with 2 for each.
#[test]
fn what_serve_refuses_is_not_called_right() {
    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";
    // Enough of a certificate for its key to be asked for.
    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let keep = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = keep.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (there, gone) = (file("there.pem", PEM), keep.path().join("gone.pem").display().to_string());
    let circuit = format!("/ip4/1.2.3.4/tcp/5/p2p/{PEER}/p2p-circuit/p2p/{PEER}");
    for (key, setting) in [
        ("network.swarm", "swarm = [\"/dns4/x/tcp/1\"]".to_owned()),
        ("network.swarm", "swarm = [\"/ip4/127.0.0.1/udp/1\"]".to_owned()),
        ("network.swarm", "swarm = [\"/ip4/127.0.0.1/tcp/0\", \"/ip4/127.0.0.1\"]".to_owned()),
        ("network.swarm", "swarm = [\"/ip4/127.0.0.1/tcp/1/tls/ws\"]".to_owned()),
        ("network.bootstrap", "bootstrap = [\"/ip4/1.2.3.4/tcp/5\"]".to_owned()),
        ("network.bootstrap", format!("bootstrap = [\"{circuit}\"]")),
        ("network.relays", "relays = [\"/dns4/relay.example/tcp/5\"]".to_owned()),
        ("gone.pem", format!("tls_certificate = \"{there}\"\ntls_key = \"{gone}\"")),
        ("gone.pem", format!("tls_certificate = \"{gone}\"\ntls_key = \"{there}\"")),
    ] {
        not_right(key, &format!("[network]\n{setting}\n"));
    }
    not_right("api.path_prefixes", "[api]\npath_prefixes = [\"/psa\", \"/psa/pins\"]\n");
}

/// Both end with 2 and name the key.
fn not_right(key: &str, config: &str) {
    let (_keep, dir) = fresh();
    std::fs::create_dir(&dir).unwrap();
    let dir_arg = ["--data-dir", &dir];
    ends_with(0, &[&["init"][..], &dir_arg].concat());
    std::fs::write(Path::new(&dir).join("config.toml"), config).unwrap();
    let free = ["serve", "--offline", "--api-addr", "127.0.0.1:0", "--ops-addr", "127.0.0.1:0"];
    let swarm: &[&str] = if key == "network.swarm" { &[] } else { &["--swarm-addr", "/ip4/127.0.0.1/tcp/0"] };
    for command in [[&free[..], swarm].concat(), vec!["config", "check"]] {
        let (_, err) = ends_with(2, &[&command[..], &dir_arg].concat());
        assert!(err.contains(key), "{command:?} of {config}: {err}");
    }
}

/// What `serve` takes, `check` takes.
#[test]
fn what_serve_takes_is_called_right() {
    const PEER: &str = "12D3KooWGC6TvWhfapngX6wvJHMYvKpDMXPb3ZnCZ6dMoaMtimQ5";
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    let config = format!(
        "[api]\npath_prefixes = [\"/psa/v1\", \"/psa\"]\n[network]\nswarm = [\"/ip4/127.0.0.1/tcp/0\", \
         \"/ip4/127.0.0.1/udp/0/quic-v1\", \"/ip4/127.0.0.1/tcp/0/ws\", \"/ip6/::1/tcp/0\"]\n\
         bootstrap = [\"/dnsaddr/bootstrap.libp2p.io/p2p/{PEER}\"]\nrelays = [\"/ip4/127.0.0.1/tcp/9/p2p/{PEER}\"]\n"
    );
    std::fs::write(Path::new(&dir).join("config.toml"), config).unwrap();
    ends_with(0, &["config", "check", "--data-dir", &dir]);
}

#[test]
fn a_stop_takes_thirty_seconds_at_most() {
    let (_keep, dir) = fresh();
    for (within, code) in [("29s", 0), ("30s", 0), ("30001ms", 2), ("0s", 2)] {
        let args = ["config", "check", "--data-dir", &dir];
        let (got, _, err) = said(&floe(&args).env("FLOE_STOP_WITHIN", within).output().unwrap());
        assert_eq!(got, code, "{within}: {err}");
        assert!(code == 0 || err.contains("serve.stop_within"), "{err}");
        ends_with(code, &[&args[..], &["--stop-within", within]].concat());
    }
}

#[test]
fn config_show_says_what_holds_and_hides_passwords() {
    let (_keep, dir) = fresh();
    let text = "[network]\nrouters = [\"https://me:hunter2@router.example\"]\n[pin]\nmax_depth = 7\n";
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(Path::new(&dir).join("config.toml"), text).unwrap();
    let args = ["config", "show", "--json", "--api-addr", "127.0.0.1:9", "--data-dir", &dir];
    let (code, out, err) = said(&floe(&args).env("FLOE_PIN_MAX_DEPTH", "8").output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(!out.contains("hunter2"), "{out}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    let of = |key: &str| shown.as_array().unwrap().iter().find(|s| s["key"] == key).unwrap().clone();
    assert_eq!(of("api.addr")["value"], "127.0.0.1:9");
    assert_eq!(of("api.addr")["origin"], "--api-addr");
    assert_eq!(of("pin.max_depth")["value"], "8");
    assert!(of("network.routers")["origin"].as_str().unwrap().ends_with("config.toml, line 2"));
    assert_eq!(of("storage.index")["origin"], "default");
    assert!(of("storage.reserve")["value"].is_null());
    ends_with(0, &["config", "check", "--data-dir", &dir]);
}

#[test]
fn nobody_answers_ends_with_3() {
    let (_keep, dir) = fresh();
    let (_, err) = ends_with(3, &["status", "--data-dir", &dir]);
    assert!(err.contains("floe serve"), "{err}");
    // A port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let (_, err) = ends_with(3, &["pin", "ls", "--api-url", &url, "--token", "floe_x", "--data-dir", &dir]);
    assert!(err.contains(&url), "{err}");
    let (_, err) =
        ends_with(3, &["pin", "ls", "--api-url", &url, "--token", "floe_x", "--data-dir", &dir, "--json"]);
    let document: Value = serde_json::from_str(&err).unwrap();
    assert_eq!(document["exit_code"], 3);
}

#[test]
fn without_a_token_nothing_is_asked() {
    let (_keep, dir) = fresh();
    let (_, err) = ends_with(2, &["pin", "ls", "--api-url", "http://127.0.0.1:1", "--data-dir", &dir]);
    assert!(err.contains("FLOE_TOKEN") && err.contains("admin.token"), "{err}");
    ends_with(2, &["pin", "ls", "--api-url", "ftp://x", "--token", "t", "--data-dir", &dir]);
}

#[test]
fn a_foreign_directory_ends_with_10() {
    let keep = tempfile::tempdir().unwrap();
    std::fs::write(keep.path().join("thesis.tex"), "words").unwrap();
    let dir = keep.path().display().to_string();
    for command in [&["init"][..], &["serve", "--offline"], &["verify", "--offline"]] {
        let (_, err) = ends_with(10, &[command, &["--data-dir", &dir]].concat());
        assert!(err.contains("thesis.tex"), "{err}");
    }
    assert_eq!(std::fs::read_dir(keep.path()).unwrap().count(), 1);
    let file = keep.path().join("thesis.tex").display().to_string();
    let (_, err) = ends_with(10, &["serve", "--offline", "--data-dir", &file]);
    assert!(err.contains("is no directory"), "{err}");
}

/// A machine is set up with its config.toml first; `floe config check` called that right, and `floe init` and
/// `floe serve` called the directory foreign.
#[test]
fn a_directory_that_holds_only_its_settings_is_initialised() {
    let (_keep, dir) = fresh();
    let config = Path::new(&dir).join("config.toml");
    let text = "[pin]\nmax_depth = 7\n";
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(&config, text).unwrap();
    ends_with(0, &["config", "check", "--data-dir", &dir]);
    ends_with(0, &["init", "--data-dir", &dir]);
    assert_eq!(std::fs::read_to_string(&config).unwrap(), text, "it is the operator's");
    ends_with(0, &["verify", "--offline", "--data-dir", &dir]);
}

#[test]
fn a_newer_directory_ends_with_10() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    std::fs::write(Path::new(&dir).join("version"), "2\n").unwrap();
    let (_, err) = ends_with(10, &["serve", "--data-dir", &dir]);
    assert!(err.contains("newer Floe"), "{err}");
}

#[test]
fn t24_init_makes_secrets_that_only_their_owner_reads_and_prints_none() {
    let (_keep, dir) = fresh();
    let (out, err) = ends_with(0, &["init", "--data-dir", &dir]);
    let mode =
        |name: &str| std::fs::metadata(Path::new(&dir).join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    for name in ["admin.token", "pin.token", "identity.key", "config.toml", "version"] {
        assert_eq!(mode(name), 0o600, "{name}");
    }
    for name in ["admin.token", "pin.token"] {
        let secret = read(&dir, name);
        assert!(secret.starts_with("floe_") && secret.len() > 40, "{name}");
        assert!(!out.contains(secret.trim()) && !err.contains(secret.trim()));
    }
    assert_eq!(read(&dir, "version"), "1\n");
    // Every line says nothing until its # is taken away.
    assert!(read(&dir, "config.toml").lines().all(|l| l.is_empty() || l.starts_with(['#', '['])));
}

#[test]
fn init_can_be_repeated_and_changes_nothing() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    let all = |dir: &str| ["admin.token", "pin.token", "config.toml"].map(|name| read(dir, name));
    let before = (all(&dir), std::fs::read(Path::new(&dir).join("identity.key")).unwrap());
    ends_with(0, &["init", "--data-dir", &dir]);
    assert_eq!((all(&dir), std::fs::read(Path::new(&dir).join("identity.key")).unwrap()), before);
}

#[test]
fn a_half_written_init_is_completed() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    let (admin, key) =
        (read(&dir, "admin.token"), std::fs::read(Path::new(&dir).join("identity.key")).unwrap());
    // As a crash leaves it between the two tokens.
    std::fs::write(Path::new(&dir).join("version"), "1 initialising\n").unwrap();
    std::fs::remove_file(Path::new(&dir).join("pin.token")).unwrap();
    std::fs::write(Path::new(&dir).join(".pin.token.tmp"), "flo").unwrap();
    let (_, err) = ends_with(0, &["init", "--data-dir", &dir]);
    assert!(!err.contains("was missing"), "{err}");
    assert!(read(&dir, "pin.token").starts_with("floe_"));
    assert_eq!(read(&dir, "version"), "1\n");
    assert_eq!(
        (read(&dir, "admin.token"), std::fs::read(Path::new(&dir).join("identity.key")).unwrap()),
        (admin, key)
    );
}

#[test]
fn lost_tokens_are_made_anew_and_a_lost_identity_is_not() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    let before = read(&dir, "pin.token");
    std::fs::remove_file(Path::new(&dir).join("pin.token")).unwrap();
    let (_, err) = ends_with(0, &["init", "--data-dir", &dir]);
    assert!(err.contains("pin.token was missing") && err.contains("floe token revoke"), "{err}");
    let after = read(&dir, "pin.token");
    assert!(after != before && !err.contains(after.trim()));

    std::fs::remove_file(Path::new(&dir).join("identity.key")).unwrap();
    let (_, err) = ends_with(13, &[&SERVE[..], &["--data-dir", &dir]].concat());
    assert!(err.contains("identity.key is missing"), "{err}");
    ends_with(0, &["init", "--data-dir", &dir]);
    assert!(Path::new(&dir).join("identity.key").exists());
}

#[test]
fn an_empty_node_is_without_damage() {
    let (_keep, dir) = fresh();
    ends_with(1, &["verify", "--offline", "--data-dir", &dir]);
    ends_with(0, &["init", "--data-dir", &dir]);
    let (out, _) = ends_with(0, &["verify", "--offline", "--data-dir", &dir, "--json"]);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert!(report["blocks"] == 0 && report["damaged"] == serde_json::json!([]), "{report}");
}

#[test]
fn rows_that_are_no_database_are_told() {
    let (_keep, dir) = fresh();
    ends_with(0, &["init", "--data-dir", &dir]);
    for extension in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(Path::new(&dir).join(format!("rows.sqlite{extension}")));
    }
    std::fs::write(Path::new(&dir).join("rows.sqlite"), "this is not a database, and long enough to see it")
        .unwrap();
    for command in [&["verify", "--offline"][..], &SERVE] {
        let (_, err) = ends_with(13, &[command, &["--data-dir", &dir]].concat());
        assert!(err.contains("rows.sqlite"), "{err}");
    }
}

/// The index was of the kind that the node's environment named; `verify` did not have that variable, removed the index
/// and made another one.
#[test]
fn verify_leaves_the_index_that_is_there() {
    let (_keep, dir) = fresh();
    Node::start_with(Path::new(&dir), &[], &[("FLOE_STORAGE_INDEX", "sled")]).stop();
    ends_with(0, &["verify", "--offline", "--data-dir", &dir]);
    let blocks = Path::new(&dir).join("blocks");
    assert!(blocks.join("index-1.sled").exists() && !blocks.join("index-1.redb").exists());
}

/// `serve` made a lost `rows.sqlite` anew, without pins, and then freed every block, because no pin named it.
#[test]
fn r10_lost_rows_are_told_and_the_blocks_are_left_alone() {
    let (_keep, dir) = fresh();
    Node::start(Path::new(&dir)).stop();
    let rows = Path::new(&dir).join("rows.sqlite");
    let blocks = || {
        let files =
            std::fs::read_dir(Path::new(&dir).join("blocks")).unwrap().map(|file| file.unwrap().path());
        files
            .filter(|path| path.is_file())
            .map(|path| (std::fs::read(&path).unwrap(), path))
            .collect::<Vec<_>>()
    };
    let before = blocks();
    assert!(!before.is_empty());
    for how in ["is missing", "is empty"] {
        if how == "is missing" {
            std::fs::remove_file(&rows).unwrap();
        } else {
            std::fs::write(&rows, "").unwrap();
        }
        for command in [&SERVE[..], &["init"], &["verify", "--offline"]] {
            let (_, err) = ends_with(13, &[command, &["--data-dir", &dir]].concat());
            assert!(err.contains("rows.sqlite") && err.contains(how) && err.contains("backup"), "{err}");
        }
        assert!(blocks() == before, "the blocks were touched");
    }
}
