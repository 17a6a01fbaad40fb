//! The table of settings for people: `config.toml`, `docs/CONFIGURATION.md`, `floe config show`.

use std::fmt::Write as _;

use serde::Serialize;

use super::keys::{Default, KEYS, Key, Kind, SECTIONS};
use super::tables::{FAMILIES, Family};
use super::{Layers, Origin, Raw};

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
            commented(&mut out, key.short(), key.default);
        }
    }
    for family in FAMILIES {
        family_template(&mut out, family);
    }
    out
}

/// The table as an example: its name is the operator's to give.
fn family_template(out: &mut String, family: &Family) {
    out.push('\n');
    comment(out, family.about);
    comment(out, &format!("As many such tables as you like; a name has {}.", family.names));
    let _ = writeln!(out, "#[{}.{}]", family.section, family.example);
    for field in family.fields {
        out.push('\n');
        comment(out, field.about);
        comment(out, field.reason);
        commented(out, field.name, field.default);
    }
}

/// A setting as it holds, commented out.
fn commented(out: &mut String, name: &str, default: Default) {
    let (value, note) = match default {
        Default::Is(value) => (value, ""),
        Default::Unset(example) => (example, " unset; this is an example"),
    };
    for (n, line) in value.lines().enumerate() {
        let start = if n == 0 { format!("{name} = ") } else { String::new() };
        let _ = writeln!(out, "#{start}{line}");
    }
    if !note.is_empty() {
        let end = out.pop();
        debug_assert_eq!(end, Some('\n'));
        let _ = writeln!(out, "  #{note}");
    }
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
    FAMILIES.iter().for_each(|family| markdown_family(&mut out, family));
    out
}

#[cfg(test)]
fn markdown_family(out: &mut String, family: &Family) {
    let Family { section, about, names, most, fields, .. } = family;
    let _ = write!(
        out,
        "\n## `[{section}.<name>]`\n\n{about}\n\nUp to {most} such tables; a name has {names}. They are in the file alone, \
         without flags and environment variables.\n"
    );
    for field in *fields {
        let _ =
            write!(out, "\n### `{section}.<name>.{}`\n\n{} {}\n\n", field.name, field.about, field.reason);
        let _ = writeln!(out, "- {}", field.kind.describe().replace('"', "`"));
        markdown_default(out, field.default);
    }
}

#[cfg(test)]
fn markdown_default(out: &mut String, default: Default) {
    let _ = match default {
        Default::Is(value) if value.contains('\n') => write!(out, "- default:\n\n```toml\n{value}\n```\n"),
        Default::Is(value) => writeln!(out, "- default: `{value}`"),
        Default::Unset(example) => writeln!(out, "- default: unset; for example `{example}`"),
    };
}

#[cfg(test)]
fn markdown_key(out: &mut String, key: &Key) {
    let flag = key.flag.map(|f| format!(", `--{f}`")).unwrap_or_default();
    let _ = write!(out, "\n### `{}`\n\n{} {}\n\n", key.name, key.about, key.reason);
    let _ = writeln!(out, "- {}; `{}`{flag}", key.kind.describe().replace('"', "`"), key.env);
    markdown_default(out, key.default);
}

fn keys_of(section: &str) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(move |key| key.section() == section)
}

/// A setting as it holds now.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Shown {
    /// Its name.
    pub(crate) key: String,
    /// Its value, secrets left out; `null` where it is unset.
    pub(crate) value: Option<serde_json::Value>,
    /// Where it comes from.
    pub(crate) origin: String,
}

/// Every setting as it holds now. Passwords inside URLs are not shown.
pub(crate) fn shown(layers: &Layers) -> Vec<Shown> {
    let show = |key: &'static Key| match layers.get(key) {
        None => shown_as(key.name.to_owned(), None, &Origin::Default),
        Some((Raw::One(text), origin)) if key.kind == Kind::Secret => {
            shown_as(key.name.to_owned(), Some(&Raw::One(without_token(text))), origin)
        }
        Some((raw, origin)) => shown_as(key.name.to_owned(), Some(raw), origin),
    };
    let mut all: Vec<Shown> = KEYS.iter().map(show).collect();
    for family in FAMILIES {
        for (_, table) in layers.tables(family) {
            all.extend(family.fields.iter().map(|field| {
                let origin = table.values.get(field.name).map_or(&Origin::Default, |(_, origin)| origin);
                shown_as(format!("{}.{}", table.path, field.name), table.raw(field).as_ref(), origin)
            }));
        }
    }
    all
}

fn shown_as(key: String, raw: Option<&Raw>, origin: &Origin) -> Shown {
    let value = raw.map(|raw| match raw {
        Raw::One(text) => redact_url(text).into(),
        Raw::Many(texts) => texts.iter().map(|t| redact_url(t)).collect::<Vec<_>>().into(),
    });
    Shown { key, value, origin: origin.to_string() }
}

/// Where a node is, without the token that may stand in front of it.
fn without_token(text: &str) -> String {
    floe_filecoin::rpc::Endpoint::parse(text)
        .map_or_else(|_| "[secret]".to_owned(), |endpoint| endpoint.to_string())
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
