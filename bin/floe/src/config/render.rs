//! The table of settings for people: `config.toml`, `docs/CONFIGURATION.md`, `floe config show`.

use std::fmt::Write as _;

use serde::Serialize;

use super::keys::{Default, KEYS, Key, SECTIONS};
use super::{Layers, Raw};

/// Width of the comments in `config.toml`.
const WIDTH: usize = 96;

/// The file that `floe init` writes: every setting, its default and reason, commented out.
pub(crate) fn template() -> String {
    let mut out = String::from(
        "# Settings of this node. Every line is a default, commented out: remove the # to change one, and leave the\n\
         # rest, so that a newer Floe can bring better defaults. `floe config check` says whether the file is right;\n\
         # `floe config show` says what holds, and why. Flags and environment variables win over this file.\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(out, "\n# {about}\n[{section}]\n");
        for key in keys_of(section) {
            out.push('\n');
            comment(&mut out, key.about);
            comment(&mut out, key.reason);
            let (value, note) = match key.default {
                Default::Is(value) => (value, ""),
                Default::Unset(example) => (example, " unset; this is an example"),
            };
            for (n, line) in value.lines().enumerate() {
                let start = if n == 0 { format!("{} = ", key.short()) } else { String::new() };
                let _ = writeln!(out, "#{start}{line}");
            }
            if !note.is_empty() {
                let end = out.pop();
                debug_assert_eq!(end, Some('\n'));
                let _ = writeln!(out, "  #{note}");
            }
        }
    }
    out
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

/// `docs/CONFIGURATION.md`. A test compares it with the file.
#[cfg(test)]
pub(crate) fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Made from the table in bin/floe/src/config/keys.rs. To renew it:\n\
         \x20    UPDATE=1 cargo test -p floe the_document_is_made_from_the_table -->\n\n\
         Settings come from flags, then environment variables, then `config.toml` in the data directory, then the\n\
         defaults below; the first that says something wins. Flags are never written to the file.\n\n\
         - `floe init` writes the file with every line commented out. `floe serve` does it on its first start.\n\
         - `floe config check` says whether the file is right. A key that does not exist is an error that names the\n\
         \x20 nearest one. `floe config show` lists what holds, and where it comes from.\n\
         - The file is read at the start: restart to apply a change.\n\
         - Lists are separated by commas in environment variables. Sizes are written as `\"2GiB\"` or `\"500MB\"`,\n\
         \x20 durations as `\"24h\"` or `\"1h 30m\"`.\n\n\
         Three things are no settings of the file, because they say where it is or who asks:\n\n\
         | flag | environment | default | |\n|---|---|---|---|\n\
         | `--data-dir` | `FLOE_DATA_DIR` | `~/.floe` | the data directory |\n\
         | `--api-url` | `FLOE_API_URL` | from `endpoints.json` in the data directory | the API a command talks to |\n\
         | `--token` | `FLOE_TOKEN` | from `admin.token` in the data directory | the token it shows |\n",
    );
    for (section, about) in SECTIONS {
        let _ = write!(out, "\n## `[{section}]`\n\n{about}\n");
        keys_of(section).for_each(|key| markdown_key(&mut out, key));
    }
    out
}

#[cfg(test)]
fn markdown_key(out: &mut String, key: &Key) {
    let flag = key.flag.map(|f| format!(", `--{f}`")).unwrap_or_default();
    let _ = write!(out, "\n### `{}`\n\n{} {}\n\n", key.name, key.about, key.reason);
    let _ = writeln!(out, "- {}; `{}`{flag}", key.kind.describe().replace('"', "`"), key.env);
    let _ = match key.default {
        Default::Is(value) if value.contains('\n') => write!(out, "- default:\n\n```toml\n{value}\n```\n"),
        Default::Is(value) => writeln!(out, "- default: `{value}`"),
        Default::Unset(example) => writeln!(out, "- default: unset; for example `{example}`"),
    };
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section() == section)
}

/// A setting as it holds now.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Shown {
    /// Its name.
    pub(crate) key: &'static str,
    /// Its value, secrets left out; `null` where it is unset.
    pub(crate) value: Option<serde_json::Value>,
    /// Where it comes from.
    pub(crate) origin: String,
}

/// Every setting as it holds now. Passwords inside URLs are not shown.
pub(crate) fn shown(layers: &Layers) -> Vec<Shown> {
    let show = |key: &'static Key| match layers.get(key) {
        None => Shown { key: key.name, value: None, origin: "default".into() },
        Some((raw, origin)) => {
            let value = match raw {
                Raw::One(text) => redact_url(text).into(),
                Raw::Many(texts) => texts.iter().map(|t| redact_url(t)).collect::<Vec<_>>().into(),
            };
            Shown { key: key.name, value: Some(value), origin: origin.to_string() }
        }
    };
    KEYS.iter().map(show).collect()
}

/// The text without the user and password of a URL in it.
pub(crate) fn redact_url(text: &str) -> String {
    match reqwest::Url::parse(text) {
        Ok(mut url) if !url.username().is_empty() || url.password().is_some() => {
            // Cannot fail: a URL that had a user may have one.
            let _ = url.set_password(None);
            let _ = url.set_username("redacted");
            url.to_string()
        }
        _ => text.to_owned(),
    }
}
