//! Server-sent events, as the API sends them: bytes in, `event` and `data` out. No IO.
//!
//! Not a whole implementation of the format: no `id`, no `retry`, because a broken stream is replaced by a new
//! one that begins with the pin as it is.

use crate::limits::MAX_EVENT_BYTES;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    /// Its sort; `message` where the stream names none.
    pub(super) name: String,
    /// Its data lines, joined.
    pub(super) data: String,
}

/// The stream has a line or an event above [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooLong;

/// Puts events together from pieces of a stream.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    /// The last line ended with a carriage return: a line feed right behind it belongs to it.
    after_cr: bool,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// Takes the next bytes; returns the events that are complete with them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, TooLong> {
        let mut events = Vec::new();
        for &byte in bytes {
            let skip = std::mem::take(&mut self.after_cr) && byte == b'\n';
            match byte {
                _ if skip => {}
                b'\n' | b'\r' => {
                    self.after_cr = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_of_line(&String::from_utf8_lossy(&line)));
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > MAX_EVENT_BYTES {
                return Err(TooLong);
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.name = value.to_owned(),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            // A comment (no field name), or a field that is not used here.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<Event> {
        let name = Some(std::mem::take(&mut self.name)).filter(|n| !n.is_empty());
        let data = std::mem::take(&mut self.data);
        std::mem::take(&mut self.has_data)
            .then(|| Event { name: name.unwrap_or_else(|| "message".into()), data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nevent: status\ndata: {\"a\":1}\n\n: ping\n\nevent: status\r\ndata: x\r\ndata:y\r\n\r\n\
                          data: z\r\r";

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), data: data.into() }
    }

    #[test]
    fn events_come_out_whole_however_the_stream_is_cut() {
        let want = [event("status", "{\"a\":1}"), event("status", "x\ny"), event("message", "z")];
        for size in 1..STREAM.len() {
            let mut parser = Parser::default();
            let pieces = STREAM.as_bytes().chunks(size);
            let got: Vec<Event> = pieces.flat_map(|piece| parser.feed(piece).unwrap()).collect();
            assert_eq!(got, want, "pieces of {size}");
        }
    }

    #[test]
    fn an_event_has_a_bound() {
        let of = |length: usize| Parser::default().feed(&vec![b'x'; length]).is_ok();
        assert_eq!(
            [of(MAX_EVENT_BYTES - 1), of(MAX_EVENT_BYTES), of(MAX_EVENT_BYTES + 1)],
            [true, true, false]
        );
        let mut many = Parser::default();
        let line = format!("data: {}\n", "x".repeat(1000));
        assert!((0..=MAX_EVENT_BYTES / 1000 + 1).any(|_| many.feed(line.as_bytes()).is_err()));
    }

    proptest::proptest! {
        #[test]
        fn any_data_comes_back(lines in proptest::collection::vec("[^\r\n]*", 1..4)) {
            let stream: String = lines.iter().map(|line| format!("data: {line}\n")).collect();
            let got = Parser::default().feed(format!("{stream}\n").as_bytes()).unwrap();
            proptest::prop_assert_eq!(got, [event("message", &lines.join("\n"))]);
        }
    }
}
