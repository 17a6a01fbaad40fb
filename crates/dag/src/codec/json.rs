//! dag-json: JSON in which `{"/": "bafy…"}` is a link and `{"/": {"bytes": "…"}}` is bytes.
//! <https://ipld.io/specs/codecs/dag-json/spec/>
//!
//! A pushdown scanner over the bytes: a value of the map key `/` that is text is a link exactly when the map holds
//! nothing else.

use std::collections::HashSet;
use std::str::FromStr as _;

use floe_core::Cid;
use floe_core::cid::MAX_CID_BYTES;

use super::{MAX_NESTING, Malformed};

/// An open array or object.
enum Open {
    Array,
    /// With its keys so far: one that stands twice is refused.
    Object {
        keys: HashSet<String>,
        slash: Slash,
    },
}

/// What the key `/` of an object held so far.
enum Slash {
    Absent,
    Text(String),
    Other,
}

struct Scanner<'a> {
    rest: &'a [u8],
    open: Vec<Open>,
    links: Vec<Cid>,
}

/// The links of a dag-json block.
pub(super) fn links(data: &[u8]) -> Result<Vec<Cid>, Malformed> {
    if std::str::from_utf8(data).is_err() {
        return Malformed::new("not UTF-8");
    }
    let mut scanner = Scanner { rest: data, open: Vec::new(), links: Vec::new() };
    scanner.document()?;
    Ok(scanner.links)
}

impl<'a> Scanner<'a> {
    fn space(&mut self) {
        let end = self.rest.iter().position(|b| !matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
        self.rest = &self.rest[end.unwrap_or(self.rest.len())..];
    }

    fn peek(&mut self) -> Result<u8, Malformed> {
        self.space();
        self.rest.first().copied().ok_or_else(|| Malformed("ends in the middle of a value".into()))
    }

    fn eat(&mut self, byte: u8) -> Result<bool, Malformed> {
        let found = self.peek()? == byte;
        if found {
            self.rest = &self.rest[1..];
        }
        Ok(found)
    }

    fn document(&mut self) -> Result<(), Malformed> {
        let mut key = None;
        loop {
            let opened = self.value(key.take())?;
            if opened {
                // The first entry of a container, or its end at once.
                if !self.ended()? {
                    key = self.entry()?;
                    continue;
                }
            }
            // A value is complete: go on in its container, or out of it.
            loop {
                if self.open.is_empty() {
                    self.space();
                    return if self.rest.is_empty() {
                        Ok(())
                    } else {
                        Malformed::new("text is left over behind the value")
                    };
                }
                if self.eat(b',')? {
                    key = self.entry()?;
                    break;
                }
                if !self.ended()? {
                    return Malformed::new("neither a comma nor the end of an array or object");
                }
            }
        }
    }

    /// Closes the innermost container if its end stands here.
    fn ended(&mut self) -> Result<bool, Malformed> {
        let close = if matches!(self.open.last(), Some(Open::Array)) { b']' } else { b'}' };
        if !self.eat(close)? {
            return Ok(false);
        }
        if let Some(Open::Object { keys, slash: Slash::Text(text) }) = self.open.pop()
            && keys.len() == 1
        {
            if text.len() > 4 * MAX_CID_BYTES {
                return Malformed::new("a link of too many characters");
            }
            let cid = Cid::from_str(&text).map_err(|e| Malformed(format!("a link is no CID: {e}")))?;
            self.links.push(cid);
        }
        Ok(true)
    }

    /// In an object, the key of the next entry.
    fn entry(&mut self) -> Result<Option<String>, Malformed> {
        if !matches!(self.open.last(), Some(Open::Object { .. })) {
            return Ok(None);
        }
        if self.peek()? != b'"' {
            return Malformed::new("an object key that is not text");
        }
        let key = self.string()?;
        if !self.eat(b':')? {
            return Malformed::new("no colon behind an object key");
        }
        if let Some(Open::Object { keys, .. }) = self.open.last_mut()
            && !keys.insert(key.clone())
        {
            return Malformed::new("an object key stands twice");
        }
        Ok(Some(key))
    }

    /// Reads a scalar, or opens a container (`true`).
    fn value(&mut self, key: Option<String>) -> Result<bool, Malformed> {
        let first = self.peek()?;
        let slash = key.as_deref() == Some("/");
        let said = match first {
            b'"' => Slash::Text(self.string()?),
            _ => Slash::Other,
        };
        let text = matches!(said, Slash::Text(_));
        if slash && let Some(Open::Object { slash, .. }) = self.open.last_mut() {
            *slash = said;
        }
        match first {
            _ if text => Ok(false),
            b'[' | b'{' => {
                if self.open.len() >= MAX_NESTING {
                    return Malformed::new(format!("nested deeper than {MAX_NESTING}"));
                }
                self.rest = &self.rest[1..];
                self.open.push(match first {
                    b'[' => Open::Array,
                    _ => Open::Object { keys: HashSet::new(), slash: Slash::Absent },
                });
                Ok(true)
            }
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            b'-' | b'0'..=b'9' => self.number(),
            other => Malformed::new(format!("the byte 0x{other:02x} begins no value")),
        }
    }

    fn word(&mut self, word: &str) -> Result<bool, Malformed> {
        match self.rest.strip_prefix(word.as_bytes()) {
            Some(rest) => {
                self.rest = rest;
                Ok(false)
            }
            None => Malformed::new("a word that JSON does not have"),
        }
    }

    fn digits(&mut self) -> usize {
        let count = self.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
        count
    }

    fn number(&mut self) -> Result<bool, Malformed> {
        if self.rest.first() == Some(&b'-') {
            self.rest = &self.rest[1..];
        }
        let leading_zero = self.rest.first() == Some(&b'0');
        let count = self.digits();
        if count == 0 || (leading_zero && count > 1) {
            return Malformed::new("a malformed number");
        }
        if self.rest.first() == Some(&b'.') {
            self.rest = &self.rest[1..];
            if self.digits() == 0 {
                return Malformed::new("a malformed number");
            }
        }
        if matches!(self.rest.first(), Some(b'e' | b'E')) {
            self.rest = &self.rest[1..];
            if matches!(self.rest.first(), Some(b'+' | b'-')) {
                self.rest = &self.rest[1..];
            }
            if self.digits() == 0 {
                return Malformed::new("a malformed number");
            }
        }
        Ok(false)
    }

    /// A string with its escapes undone. The whole text is UTF-8 already.
    fn string(&mut self) -> Result<String, Malformed> {
        self.rest = &self.rest[1..];
        let mut out = Vec::new();
        loop {
            let stop = self.rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f));
            let Some(stop) = stop else { return Malformed::new("a string without an end") };
            out.extend_from_slice(&self.rest[..stop]);
            let at = self.rest[stop];
            self.rest = &self.rest[stop + 1..];
            match at {
                b'"' => break,
                b'\\' => self.escape(&mut out)?,
                _ => return Malformed::new("a control character in a string"),
            }
        }
        String::from_utf8(out).map_err(|_| Malformed("a string that is not UTF-8".into()))
    }

    fn escape(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let Some((&kind, rest)) = self.rest.split_first() else {
            return Malformed::new("a string without an end");
        };
        self.rest = rest;
        let plain = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode(out),
            _ => return Malformed::new("an escape that JSON does not have"),
        };
        out.push(plain);
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32, Malformed> {
        let Some((digits, rest)) = self.rest.split_at_checked(4) else {
            return Malformed::new("a short \\u escape");
        };
        let value = digits.iter().try_fold(0u32, |v, b| Some(v << 4 | (*b as char).to_digit(16)?));
        self.rest = rest;
        value.ok_or_else(|| Malformed("a \\u escape that is not hex".into()))
    }

    fn unicode(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut point = self.hex4()?;
        if (0xd800..0xdc00).contains(&point) && self.rest.starts_with(b"\\u") {
            self.rest = &self.rest[2..];
            let low = self.hex4()?;
            if !(0xdc00..0xe000).contains(&low) {
                return Malformed::new("half a surrogate pair");
            }
            point = 0x1_0000 + ((point - 0xd800) << 10) + (low - 0xdc00);
        }
        match char::from_u32(point) {
            Some(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            None => return Malformed::new("half a surrogate pair"),
        }
        Ok(())
    }
}
