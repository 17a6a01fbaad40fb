//! The log: to stderr, as text or JSON, one line an event, no secret in it.
//!
//! Nothing in Floe logs a token on purpose. What a library or an error text might let through is caught here, in
//! the last place before the bytes leave: everything that looks like a token is blanked (threat T24), and control
//! characters of foreign names cannot forge a line or drive a terminal (T31).

use std::io::{self, IsTerminal as _, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// What tokens begin with.
const PREFIX: &[u8] = b"floe_";
/// Tokens carry 256 bits and more: at least this many characters. Names of metrics and targets are shorter or have
/// underscores in them.
const SHORTEST_SECRET: usize = 32;
const BLANK: &[u8] = b"floe_[redacted]";

/// Sends the log of this process to stderr. Once per process.
pub(crate) fn start(settings: &Log) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let ansi = settings.format == LogFormat::Text && io::stderr().is_terminal();
    let form = match settings.format {
        LogFormat::Text => Form::Text { ansi },
        LogFormat::Json => Form::Json,
    };
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(Guarded { form });
    // A second call would mean two logs in one process: the first one stays.
    let _ = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// How a control character is written.
#[derive(Clone, Copy)]
enum Form {
    /// `ansi`: the colours are ours, and stay.
    Text { ansi: bool },
    /// A document stays one: it knows no `\x7f`.
    Json,
}

#[derive(Clone, Copy)]
struct Guarded {
    form: Form,
}

impl<'a> MakeWriter<'a> for Guarded {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { form: self.form, bytes: Vec::new() }
    }
}

/// One event, written out when it is whole.
struct Line {
    form: Form,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            // A log that cannot be written must not stop what it tells of.
            let _ = io::stderr().lock().write_all(&clean(&self.bytes, self.form));
        }
    }
}

fn clean(bytes: &[u8], form: Form) -> Vec<u8> {
    let body = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let mut out = Vec::with_capacity(body.len() + 1);
    let mut at = 0;
    while at < body.len() {
        if let Some(length) = secret_at(&body[at..]) {
            out.extend_from_slice(BLANK);
            at += length;
            continue;
        }
        match (body[at], form) {
            // A name's own escape was escaped by the formatter.
            (0x1b, Form::Text { ansi: true }) => out.push(0x1b),
            (control @ (0..=0x1f | 0x7f), Form::Text { .. }) => {
                out.extend_from_slice(format!("\\x{control:02x}").as_bytes());
            }
            // The formatter escapes all but 0x7f.
            (control @ (0..=0x1f | 0x7f), Form::Json) => {
                out.extend_from_slice(format!("\\u{control:04x}").as_bytes());
            }
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    out.push(b'\n');
    out
}

/// The length of the secret that `bytes` begin with.
fn secret_at(bytes: &[u8]) -> Option<usize> {
    let rest = bytes.strip_prefix(PREFIX)?;
    let length = rest.iter().take_while(|b| b.is_ascii_alphanumeric()).count();
    (length >= SHORTEST_SECRET).then_some(PREFIX.len() + length)
}

/// The text with every token in it blanked.
pub(crate) fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = secret_at(rest.as_bytes());
        match length {
            Some(_) => out.push_str("floe_[redacted]"),
            None => out.push(next),
        }
        rest = &rest[length.unwrap_or(next.len_utf8())..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(text: &str) -> String {
        String::from_utf8(clean(text.as_bytes(), Form::Text { ansi: false })).unwrap()
    }

    #[test]
    fn t24_tokens_are_blanked_and_other_words_are_not() {
        let secret = format!("floe_{}", "a1B2".repeat(12));
        assert_eq!(
            cleaned(&format!("got {secret}, twice {secret}\n")),
            "got floe_[redacted], twice floe_[redacted]\n"
        );
        assert_eq!(redact(&format!("ä {secret} ö")), "ä floe_[redacted] ö");
        for harmless in ["floe_limit_hits_total", "floe_engine::fetcher", "floe_", "floe_abc"] {
            assert_eq!(cleaned(harmless), format!("{harmless}\n"));
        }
        let edge = |n: usize| cleaned(&format!("floe_{}", "x".repeat(n))).contains("redacted");
        assert_eq!([edge(31), edge(32), edge(33)], [false, true, true]);
    }

    #[test]
    fn t31_an_event_is_one_line() {
        assert_eq!(cleaned("name=a\nINFO forged\r\u{1b}[2J\n"), "name=a\\x0aINFO forged\\x0d\\x1b[2J\n");
    }

    /// A path with a DEL in it made a line that no collector could read: `\x7f` is no escape of JSON.
    #[test]
    fn t31_a_document_stays_one() {
        let line = serde_json::json!({ "message": "a\u{7f}b\nc\u{1b}[2J" }).to_string();
        let cleaned = String::from_utf8(clean(format!("{line}\n").as_bytes(), Form::Json)).unwrap();
        assert!(!cleaned.trim_end().contains(char::is_control), "{cleaned}");
        let read: serde_json::Value = serde_json::from_str(&cleaned).unwrap();
        assert_eq!(read["message"], "a\u{7f}b\nc\u{1b}[2J");
    }
}
