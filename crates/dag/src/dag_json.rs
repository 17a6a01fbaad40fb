//! dag-json: JSON with links as `{"/": "<cid>"}` and bytes as `{"/": {"bytes": "<base64>"}}`.
//!
//! An object that begins with the key `/` is one of these two forms or malformed: the key is reserved. Keys are
//! unique. Whitespace and unsorted keys are accepted, for older writers left them; their order changes no link.

use std::cmp::Ordering;
use std::str::FromStr as _;

use floe_core::Cid;
use floe_core::cid::MAX_CID_BYTES;

use crate::limits::{self, MAX_NESTING};
use crate::links::{Link, ScanError};

/// A string between its quotes, escapes and all: 8 bytes for each key keep the memory under the bound.
#[derive(Clone, Copy)]
struct Text {
    from: u32,
    to: u32,
}

enum Open {
    Array,
    /// Where its keys begin among all keys of open objects.
    Object(usize),
}

/// Calls `on_link` for each link in order.
pub(crate) fn scan<'a>(data: &'a [u8], on_link: &mut dyn FnMut(Link<'a>)) -> Result<(), ScanError> {
    let text = std::str::from_utf8(data)
        .map_err(|e| ScanError::Malformed { at: e.valid_up_to(), what: "text that is not UTF-8" })?;
    if u32::try_from(text.len()).is_err() {
        return Err(ScanError::Malformed { at: 0, what: "4 GiB of JSON" });
    }
    let mut parser = Parser { text, at: 0, open: Vec::new(), keys: Vec::new() };
    loop {
        if parser.value(on_link)? && parser.close()? {
            return Ok(());
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    open: Vec<Open>,
    keys: Vec<Text>,
}

impl<'a> Parser<'a> {
    fn malformed(&self, what: &'static str) -> ScanError {
        ScanError::Malformed { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// The next byte that is not whitespace.
    fn token(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.peek()
    }

    fn expect(&mut self, byte: u8, what: &'static str) -> Result<(), ScanError> {
        if self.token() != Some(byte) {
            return Err(self.malformed(what));
        }
        self.at += 1;
        Ok(())
    }

    /// Reads a whole value (`true`), or opens a container whose first value follows (`false`).
    fn value(&mut self, on_link: &mut dyn FnMut(Link<'a>)) -> Result<bool, ScanError> {
        match self.token() {
            Some(b'{') => self.object(on_link),
            Some(b'[') => self.array(),
            Some(b'"') => self.string().map(|_| true),
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| true),
            _ => self.word().map(|()| true),
        }
    }

    fn array(&mut self) -> Result<bool, ScanError> {
        self.at += 1;
        if self.token() == Some(b']') {
            self.at += 1;
            return Ok(true);
        }
        self.push(Open::Array)?;
        Ok(false)
    }

    fn object(&mut self, on_link: &mut dyn FnMut(Link<'a>)) -> Result<bool, ScanError> {
        self.at += 1;
        if self.token() == Some(b'}') {
            self.at += 1;
            return Ok(true);
        }
        let key = self.key()?;
        if self.decoded(key).eq(['/']) {
            return self.reserved(on_link).map(|()| true);
        }
        self.push(Open::Object(self.keys.len()))?;
        self.keys.push(key);
        Ok(false)
    }

    fn push(&mut self, container: Open) -> Result<(), ScanError> {
        if self.open.len() == MAX_NESTING {
            limits::hit("dag_nesting");
            return Err(self.malformed("nested too deep"));
        }
        self.open.push(container);
        Ok(())
    }

    /// What follows `{"/":`.
    fn reserved(&mut self, on_link: &mut dyn FnMut(Link<'a>)) -> Result<(), ScanError> {
        const FORM: &str = "an object with the reserved key \"/\" that is neither link nor bytes";
        match self.token() {
            Some(b'"') => {
                let cid = self.string()?;
                self.expect(b'}', FORM)?;
                on_link(Link { cid: self.cid(cid)?, name: &[] });
                Ok(())
            }
            Some(b'{') => {
                self.at += 1;
                let key = self.key()?;
                if !self.decoded(key).eq("bytes".chars()) {
                    return Err(self.malformed(FORM));
                }
                self.token();
                let bytes = self.string()?;
                let base64 = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=');
                if !self.decoded(bytes).all(base64) {
                    return Err(self.malformed("bytes that are not base64"));
                }
                self.expect(b'}', FORM)?;
                self.expect(b'}', FORM)
            }
            _ => Err(self.malformed(FORM)),
        }
    }

    fn cid(&self, text: Text) -> Result<Cid, ScanError> {
        // Base2 has 8 digits for a byte; a CID in any base is no longer than that and its prefix.
        let cid: String = self.decoded(text).take(8 * MAX_CID_BYTES + 2).collect();
        if cid.len() > 8 * MAX_CID_BYTES + 1 {
            return Err(self.malformed("a link that is too long for a CID"));
        }
        Cid::from_str(&cid).map_err(|e| ScanError::Link { at: text.from as usize, reason: e.to_string() })
    }

    /// Goes on behind a value: closes what ends there, reads the next key. `true` at the end of all.
    fn close(&mut self) -> Result<bool, ScanError> {
        loop {
            let token = self.token();
            match (self.open.last(), token) {
                (None, None) => return Ok(true),
                (None, Some(_)) => return Err(self.malformed("bytes behind the value")),
                (Some(Open::Array), Some(b',')) => {
                    self.at += 1;
                    return Ok(false);
                }
                (Some(Open::Array), Some(b']')) => {
                    self.at += 1;
                    self.open.pop();
                }
                (Some(Open::Object(_)), Some(b',')) => {
                    self.at += 1;
                    let key = self.key()?;
                    self.keys.push(key);
                    return Ok(false);
                }
                (Some(Open::Object(from)), Some(b'}')) => {
                    let from = *from;
                    self.at += 1;
                    self.unique_keys(from)?;
                    self.open.pop();
                }
                _ => return Err(self.malformed("neither a comma nor an end")),
            }
        }
    }

    fn key(&mut self) -> Result<Text, ScanError> {
        self.token();
        let key = self.string()?;
        self.expect(b':', "a key without a colon")?;
        Ok(key)
    }

    fn unique_keys(&mut self, from: usize) -> Result<(), ScanError> {
        let mut keys = self.keys.split_off(from);
        let order = |a: &Text, b: &Text| self.decoded(*a).cmp(self.decoded(*b));
        if !keys.is_sorted_by(|a, b| order(a, b) == Ordering::Less) {
            keys.sort_unstable_by(order);
            if keys.windows(2).any(|pair| order(&pair[0], &pair[1]) == Ordering::Equal) {
                return Err(self.malformed("a key twice in one object"));
            }
        }
        Ok(())
    }

    fn word(&mut self) -> Result<(), ScanError> {
        let rest = &self.text.as_bytes()[self.at..];
        let word = ["true", "false", "null"].into_iter().find(|w| rest.starts_with(w.as_bytes()));
        self.at += word.ok_or_else(|| self.malformed("no JSON value"))?.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), ScanError> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), ScanError> {
        let from = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == from { Err(self.malformed("a number without digits")) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<Text, ScanError> {
        if self.peek() != Some(b'"') {
            return Err(self.malformed("no string where one belongs"));
        }
        self.at += 1;
        let from = self.at;
        loop {
            match self.peek() {
                None => return Err(self.malformed("a string without an end")),
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0..0x20) => return Err(self.malformed("a control character in a string")),
                Some(_) => self.at += 1,
            }
        }
        let to = self.at;
        self.at += 1;
        Ok(Text { from: from as u32, to: to as u32 })
    }

    fn escape(&mut self) -> Result<(), ScanError> {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += match rest.get(1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => 2,
            Some(b'u') => match (code_unit(rest), rest.get(6..).and_then(code_unit)) {
                (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => 12,
                (Some(0xd800..0xe000) | None, _) => return Err(self.malformed("half an escaped character")),
                (Some(_), _) => 6,
            },
            _ => return Err(self.malformed("an unknown escape")),
        };
        Ok(())
    }

    /// The characters that a checked string stands for.
    fn decoded(&self, text: Text) -> impl Iterator<Item = char> {
        let mut rest = &self.text[text.from as usize..text.to as usize];
        std::iter::from_fn(move || {
            let (c, len) = next_char(rest)?;
            rest = &rest[len..];
            Some(c)
        })
    }
}

/// The first character of a checked string, and how many bytes it takes.
fn next_char(rest: &str) -> Option<(char, usize)> {
    let first = rest.chars().next()?;
    if first != '\\' {
        return Some((first, first.len_utf8()));
    }
    let bytes = rest.as_bytes();
    Some(match bytes.get(1)? {
        b'u' => {
            let high = code_unit(bytes)?;
            match bytes.get(6..).and_then(code_unit) {
                Some(low @ 0xdc00..0xe000) if (0xd800..0xdc00).contains(&high) => {
                    (char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00))?, 12)
                }
                _ => (char::from_u32(high)?, 6),
            }
        }
        b'b' => ('\u{8}', 2),
        b'f' => ('\u{c}', 2),
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        other => (char::from(*other), 2),
    })
}

/// The UTF-16 code unit of a `\uXXXX`.
fn code_unit(bytes: &[u8]) -> Option<u32> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |n, b| Some(n << 4 | char::from(*b).to_digit(16)?))
}
