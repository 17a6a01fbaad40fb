//! What `floe serve` prints once it is ready: where it is, and the line to paste into a shell beside a Kubo.
//!
//! No token is in it: the line reads the file, so that the secret goes from the file to Kubo and nowhere else.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::config::Config;
use crate::datadir::Layout;
use crate::endpoints::Endpoints;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// For people.
pub(crate) fn text(endpoints: &Endpoints, config: &Config, layout: &Layout) -> String {
    let mut out = format!("floe {VERSION}\npeer id   {}\n", endpoints.peer_id);
    for addr in &endpoints.swarm {
        let _ = writeln!(out, "swarm     {addr}");
    }
    let root = absolute(layout);
    let _ = writeln!(out, "api       {}", endpoints.api);
    let _ = writeln!(out, "ops       {}", endpoints.ops);
    let _ = writeln!(out, "data      {}\n", root.root().display());
    let (whose, url) = match &config.api.public_url {
        Some(url) => ("Let a Kubo", url.as_str().trim_end_matches('/').to_owned()),
        None => ("Let a Kubo on this machine", endpoints.api.clone()),
    };
    let _ = writeln!(out, "{whose} pin to it:\n  {}", service_add(&root, &url));
    if let Some(devnet) = &endpoints.devnet {
        out.push_str(&of_devnet(devnet, &root));
    }
    out
}

/// What can be looked at with `--devnet`.
fn of_devnet(devnet: &Value, layout: &Layout) -> String {
    let text = |name: &str| devnet[name].as_str().unwrap_or_default();
    let dir = shell_word(&layout.root().display().to_string());
    format!(
        "\nA Filecoin for tests runs inside: node {}, faults {}/faults.\nWhat is pinned becomes three deals within two \
         minutes. Watch them:\n  floe deals ls --data-dir {dir}\n",
        text("rpc"),
        text("control"),
    )
}

/// For programs.
pub(crate) fn document(endpoints: &Endpoints, layout: &Layout) -> Value {
    let root = absolute(layout);
    json!({ "version": VERSION, "data_dir": root.root(), "pin_token": root.pin_token(), "endpoints": endpoints })
}

/// The line is pasted elsewhere: a relative path would not lead back here.
fn absolute(layout: &Layout) -> Layout {
    Layout::new(std::path::absolute(layout.root()).unwrap_or_else(|_| layout.root().to_owned()))
}

fn service_add(layout: &Layout, url: &str) -> String {
    let token = shell_word(&layout.pin_token().display().to_string());
    format!("ipfs pin remote service add floe {url} \"$(cat {token})\"")
}

/// The text as one word of a POSIX shell.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layer, Layers, Origin, Raw};

    fn banner(dir: &str, public_url: Option<&str>) -> String {
        let url = public_url
            .map(|url| ("api.public_url", (Raw::One(url.into()), Origin::Env("FLOE_API_PUBLIC_URL"))));
        let config =
            Config::check(&Layers::stack(Layer::new(), |_| None, url.into_iter().collect())).unwrap();
        let swarm = ["/ip4/127.0.0.1/tcp/4701".to_owned()];
        let addrs = ("127.0.0.1:4780".parse().unwrap(), "127.0.0.1:4782".parse().unwrap());
        text(&Endpoints::new(addrs.0, addrs.1, &swarm, "12D3Koo".into()), &config, &Layout::new(dir))
    }

    #[test]
    fn it_ends_with_the_line_to_paste() {
        let text = banner("/home/you/.floe", None);
        assert!(text.starts_with(&format!(
            "floe {VERSION}\npeer id   12D3Koo\nswarm     /ip4/127.0.0.1/tcp/4701/p2p/12D3Koo\n"
        )));
        let line =
            r#"  ipfs pin remote service add floe http://127.0.0.1:4780 "$(cat /home/you/.floe/pin.token)""#;
        assert_eq!(text.lines().last().unwrap(), line);
    }

    #[test]
    fn a_devnet_is_named_with_what_to_look_at() {
        let addrs = ("127.0.0.1:4780".parse().unwrap(), "127.0.0.1:4782".parse().unwrap());
        let mut endpoints = Endpoints::new(addrs.0, addrs.1, &[], "12D3Koo".into());
        let config = Config::check(&Layers::stack(Layer::new(), |_| None, Layer::new())).unwrap();
        let shown = |endpoints: &Endpoints| text(endpoints, &config, &Layout::new("/my data"));
        assert!(!shown(&endpoints).contains("Filecoin"));
        endpoints.devnet =
            Some(json!({"rpc": "http://127.0.0.1:1", "control": "http://127.0.0.1:2", "token": "t0ken"}));
        let text = shown(&endpoints);
        assert!(text.contains("node http://127.0.0.1:1, faults http://127.0.0.1:2/faults"), "{text}");
        assert!(
            text.ends_with("  floe deals ls --data-dir '/my data'\n") && !text.contains("t0ken"),
            "{text}"
        );
    }

    #[test]
    fn behind_a_proxy_it_names_the_public_url() {
        assert!(
            banner("/d", Some("https://pins.example.org/")).contains("floe https://pins.example.org \"$(")
        );
    }

    #[test]
    fn the_line_quotes_what_a_shell_would_split() {
        assert!(banner("/my data", None).contains("$(cat '/my data/pin.token')"));
        assert!(banner("/it's $HOME", None).contains(r"$(cat '/it'\''s $HOME/pin.token')"));
    }
}
