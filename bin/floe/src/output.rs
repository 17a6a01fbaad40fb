//! What goes to stdout: tables for people, one JSON document for programs. The log goes to stderr.
//!
//! Names come from users and peers. What a terminal would obey instead of showing (control characters, and those
//! that change the direction of writing) is written as an escape, in both forms.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// One JSON document instead of text.
    pub(crate) json: bool,
}

impl Output {
    /// Prints a result: `value` as JSON, or what `text` makes.
    pub(crate) fn print<T: Serialize + ?Sized>(
        self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        let mut out =
            if self.json { escape(&serde_json::to_string_pretty(value)?, Form::Json) } else { text() };
        if !out.ends_with('\n') && !out.is_empty() {
            out.push('\n');
        }
        write_stdout(&out)
    }
}

/// Writes to stdout. A reader that has gone away (`floe pin ls | head`) is no failure.
pub(crate) fn write_stdout(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(e).context("cannot write to stdout"))
        }
        _ => Ok(()),
    }
}

/// Writes words for a person to stderr; a closed stderr is nothing to die of.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Line feeds are escaped too: a cell is on one line.
    Cell,
    /// Line feeds lay the document out; serde has escaped those inside strings.
    Json,
}

/// The text with everything that a terminal would not show as itself written as an escape.
pub(crate) fn printable(text: &str) -> String {
    escape(text, Form::Cell)
}

/// Like [`printable`], for texts that may have several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

fn escape(text: &str, form: Form) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !is_obeyed(c) || (form == Form::Json && c == '\n') {
            out.push(c);
            continue;
        }
        // JSON knows \uXXXX alone; all characters that are obeyed are below 0x10000.
        let _ = match form {
            Form::Json => write!(out, "\\u{:04x}", c as u32),
            Form::Cell => write!(out, "{}", c.escape_default()),
        };
    }
    out
}

/// Control characters, and the format characters that reorder or hide text.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{61c}' | '\u{feff}')
}

/// Columns that line up.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this first row.
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    /// Adds a row. Cells are made printable.
    pub(crate) fn row<const N: usize>(&mut self, cells: [&str; N]) {
        self.rows.push(cells.iter().map(|cell| printable(cell)).collect());
    }

    /// The table as text. The last column is not padded.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// Bytes for people: `1.5 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t19_nothing_that_a_terminal_obeys_gets_through() {
        let hostile = "a\u{1b}[2Jb\u{7f}\u{9b}31m\r\n\u{202e}txt.exe\u{200b}";
        let shown = printable(hostile);
        assert!(shown.chars().all(|c| !is_obeyed(c)), "{shown}");
        assert!(shown.starts_with("a\\u{1b}[2Jb"), "{shown}");
        let json = escape(&serde_json::to_string_pretty(&[hostile]).unwrap(), Form::Json);
        assert!(json.chars().all(|c| c == '\n' || !is_obeyed(c)), "{json}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [hostile], "the value is the same");
    }

    #[test]
    fn names_in_any_script_are_shown_as_they_are() {
        for name in ["plain", "Größe", "日本", "🧊", "a b"] {
            assert_eq!(printable(name), name);
        }
    }

    #[test]
    fn tables_line_up() {
        let mut table = Table::new(&["id", "name"]);
        table.row(["1", "ä"]);
        table.row(["12345", "b\n"]);
        assert_eq!(table.render(), "id     name\n1      ä\n12345  b\\n\n");
    }

    proptest::proptest! {
        #[test]
        fn json_stays_the_same_value(text in ".*") {
            let json = escape(&serde_json::to_string_pretty(&text).unwrap(), Form::Json);
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
