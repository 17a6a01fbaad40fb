//! `--wait`: following a pin to its end, with a progress bar where there is a terminal.
//!
//! The bar fills up where the service says how large the DAG is. Most do not know that before they have it: then it is a
//! spinner, with what has come so far.
//!
//! The API's stream of events says each change at once. Where it breaks off (a proxy, a restart) or is not there,
//! the pin itself is asked, and the stream is tried again: what counts is the pin's status, not the stream.

use std::time::Duration;

use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use tokio::time::Instant;

use super::events::Parser;
use super::{Call, Client, ClientError, segment};
use crate::config::render::redact_url;
use crate::limits;
use crate::output::{printable, size};

/// How long what says nothing is waited for.
#[derive(Clone, Copy)]
struct Patience {
    /// The head of the stream of events.
    head: Duration,
    /// The answer about a pin.
    answer: Duration,
    /// The service, over all tries.
    service: Duration,
}

const PATIENCE: Patience = Patience {
    head: limits::EVENT_SILENCE,
    answer: limits::REQUEST_TIMEOUT,
    service: limits::WAIT_UNREACHABLE,
};

impl Client {
    /// Waits until a pin is `pinned`, and returns it then. `pin` is what the API said last.
    ///
    /// A `failed` one is [`ClientError::PinFailed`]. Dropping the future ends the waiting, not the pin.
    pub(super) async fn wait(&self, pin: Value) -> Result<Value, ClientError> {
        self.wait_with(pin, PATIENCE, &Bar::new(ProgressDrawTarget::stderr())).await
    }

    async fn wait_with(&self, mut pin: Value, patience: Patience, bar: &Bar) -> Result<Value, ClientError> {
        let id = pin["requestid"].as_str().unwrap_or_default().to_owned();
        // Since when nobody there has said anything.
        let mut gone_since: Option<Instant> = None;
        loop {
            bar.show(&pin);
            match pin["status"].as_str() {
                Some("pinned") => return Ok(pin),
                Some("failed") => return Err(ClientError::PinFailed { id, reason: reason(&pin) }),
                _ => {}
            }
            // Whatever the stream's trouble is, the pin itself is asked then.
            match self.follow(&id, bar, patience.head).await {
                Ok(Followed::Settled(settled)) => {
                    pin = settled;
                    continue;
                }
                Ok(Followed::Heard) => gone_since = None,
                Ok(Followed::Silent) | Err(_) => {}
            }
            tokio::time::sleep(limits::POLL_INTERVAL).await;
            let asked = Instant::now();
            let call = Call { timeout: patience.answer, ..Call::get(format!("/pins/{}", segment(&id))) };
            match self.call_once(&call).await {
                Ok(state) => (pin, gone_since) = (state, None),
                Err(ClientError::Answer { status: 429, .. }) => {
                    gone_since = None;
                    tokio::time::sleep(limits::BUSY_PAUSE).await;
                }
                // A proxy answers for a service that restarts, and one that is full says so for a moment.
                Err(ClientError::Unreachable { .. } | ClientError::Answer { status: 502..=504, .. }) => {
                    let silent = gone_since.get_or_insert(asked).elapsed();
                    if silent >= patience.service {
                        return Err(ClientError::Lost { url: redact_url(&self.base), silent, id });
                    }
                }
                Err(ClientError::NotFound { .. }) => return Err(ClientError::Removed { id }),
                Err(error) => return Err(error),
            }
        }
    }

    /// Follows the stream of events, until the pin is settled or the stream ends.
    async fn follow(&self, id: &str, bar: &Bar, head: Duration) -> Result<Followed, ClientError> {
        let call = Call::get(format!("/pins/{}/events", segment(id))).long();
        // The stream may be long, its head may not: who listens there and says nothing is no node.
        let Ok(answer) = tokio::time::timeout(head, self.send(&call)).await else {
            return Ok(Followed::Silent);
        };
        let answer = answer?;
        if !answer.status().is_success() {
            return Ok(Followed::Silent);
        }
        let mut parser = Parser::default();
        let mut chunks = answer.bytes_stream();
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout(limits::EVENT_SILENCE, chunks.next()).await {
            let events = parser.feed(&chunk).map_err(|_| self.not_floe("an event without an end"))?;
            for event in events.iter().filter(|event| event.name == "status") {
                let pin = self.decode(event.data.as_bytes())?;
                bar.show(&pin);
                if matches!(pin["status"].as_str(), Some("pinned" | "failed")) {
                    return Ok(Followed::Settled(pin));
                }
            }
        }
        Ok(Followed::Heard)
    }
}

/// What became of a stream of events.
enum Followed {
    /// The pin, pinned or failed.
    Settled(Value),
    /// It began, and ended before the pin did.
    Heard,
    /// There was none.
    Silent,
}

/// Why a pin failed, in the words of its `info`.
pub(super) fn reason(pin: &Value) -> String {
    let said = ["last_error", "status_details"].iter().find_map(|key| pin["info"][key].as_str());
    said.map_or_else(|| "the service gives no reason".into(), printable)
}

/// The progress, on stderr where that is a terminal; nothing elsewhere.
struct Bar(ProgressBar);

impl Bar {
    fn new(target: ProgressDrawTarget) -> Self {
        let bar = ProgressBar::with_draw_target(None, target).with_style(style(SPINNER));
        bar.enable_steady_tick(limits::BAR_TICK);
        Self(bar)
    }

    fn show(&self, pin: &Value) {
        let (template, length) = match share(pin) {
            Some((bytes, size)) => {
                self.0.set_position(bytes);
                (BAR, Some(size))
            }
            None => (SPINNER, None),
        };
        if self.0.length() != length {
            self.0.set_style(style(template));
            match length {
                Some(length) => self.0.set_length(length),
                None => self.0.unset_length(),
            }
        }
        self.0.set_prefix(printable(pin["status"].as_str().unwrap_or_default()));
        self.0.set_message(told(pin));
    }
}

const SPINNER: &str = "{spinner} {prefix} {elapsed} {wide_msg}";
const BAR: &str = "{spinner} {prefix} {elapsed} [{bar:24}] {percent}% {wide_msg}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is well formed")
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// The bytes that are there and those of the whole DAG, where both are known.
fn share(pin: &Value) -> Option<(u64, u64)> {
    let number = |key: &str| pin["info"][key].as_str()?.parse::<u64>().ok();
    let (bytes, size) = (number("progress_bytes")?, number("dag_size")?);
    (size > 0).then_some((bytes.min(size), size))
}

/// What the bar says of a pin beside its status: how much is there, what is being done, and what went wrong last.
fn told(pin: &Value) -> String {
    let mut told = progress(pin);
    if let Some(error) = pin["info"]["last_error"].as_str().map(printable)
        && pin["status"] != "pinned"
        && !told.contains(&error)
    {
        told += &format!("; last error: {error}");
    }
    told
}

/// `12 blocks, 3.00 MiB of 6.00 MiB; details`.
pub(super) fn progress(pin: &Value) -> String {
    let info = |key: &str| pin["info"][key].as_str();
    let mut parts = Vec::new();
    if let (Some(blocks), Some(bytes)) = (info("progress_blocks"), info("progress_bytes")) {
        let bytes = bytes.parse().map_or_else(|_| printable(bytes), size);
        let of =
            share(pin).filter(|(bytes, size)| bytes < size).map(|(_, whole)| format!(" of {}", size(whole)));
        parts.push(format!("{} blocks, {bytes}{}", printable(blocks), of.unwrap_or_default()));
    }
    parts.extend(info("status_details").map(printable));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;
    use serde_json::json;

    use super::super::testing::service;
    use super::*;

    /// Where a service accepted and never answered, `--wait` waited a day for the head of the stream; and its sixty
    /// seconds were sixty rounds of up to a minute. The last word held the password of the URL.
    #[tokio::test]
    async fn a_service_that_says_nothing_is_given_up_after_a_minute() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://me:hunter2@{}", silent.local_addr().unwrap());
        let remote = crate::cli::Remote { api_url: Some(url), token: Some("t".parse().unwrap()) };
        let client = Client::connect(&remote, &crate::datadir::Layout::new("nowhere")).unwrap();
        let short = Duration::from_millis(100);
        let patience = Patience { head: short, answer: short, service: short };
        let pin = json!({"requestid": "id-1", "status": "pinning"});
        let hidden = Bar::new(ProgressDrawTarget::hidden());
        let waited =
            tokio::time::timeout(Duration::from_secs(20), client.wait_with(pin, patience, &hidden)).await;
        let lost = waited.expect("it ends by itself").unwrap_err();
        assert!(matches!(lost, ClientError::Lost { .. }), "{lost}");
        let said = lost.to_string();
        assert!(said.contains("floe pin status id-1") && !said.contains("hunter2"), "{said}");
    }

    /// A proxy's 502 while the service restarts ended the wait, though it is what the wait is to outlive.
    #[tokio::test]
    async fn a_wait_outlives_a_restart_behind_a_proxy() {
        const GONE: &str = "HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        const PINNED: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n\
                              content-length: 41\r\n\r\n{\"requestid\": \"id-1\", \"status\": \"pinned\"}";
        let client = service(vec![GONE, GONE, GONE, PINNED]).await;
        let pin = json!({"requestid": "id-1", "status": "pinning"});
        let hidden = Bar::new(ProgressDrawTarget::hidden());
        let waited =
            tokio::time::timeout(Duration::from_secs(20), client.wait_with(pin, PATIENCE, &hidden)).await;
        assert_eq!(waited.expect("it ends by itself").unwrap()["status"], "pinned");
    }

    /// A terminal that keeps what is written to it.
    #[derive(Debug, Clone, Default)]
    struct Terminal(Arc<Mutex<String>>);

    impl Terminal {
        fn bar(&self) -> Bar {
            Bar::new(ProgressDrawTarget::term_like(Box::new(self.clone())))
        }

        fn take(&self) -> String {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            120
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    fn pinning(info: Value) -> Value {
        json!({ "requestid": "id-1", "status": "pinning", "info": info })
    }

    /// What the wait shows was a spinner whatever was known, and no test missed it when it was gone.
    #[tokio::test]
    async fn a_wait_shows_a_bar_where_the_size_is_known_and_a_spinner_elsewhere() {
        const PINNED: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n\
                              content-length: 41\r\n\r\n{\"requestid\": \"id-1\", \"status\": \"pinned\"}";
        const NO_STREAM: &str = "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let terminal = Terminal::default();
        let client = service(vec![NO_STREAM, PINNED]).await;
        let half = json!({ "progress_blocks": "12", "progress_bytes": "3145728", "dag_size": "6291456" });
        client.wait_with(pinning(half.clone()), PATIENCE, &terminal.bar()).await.unwrap();
        let shown = terminal.take();
        assert!(shown.contains("] 50% 12 blocks, 3.00 MiB of 6.00 MiB"), "{shown}");
        assert!(shown.contains("pinned"), "{shown}");

        let bar = terminal.bar();
        bar.show(&pinning(json!({ "progress_blocks": "12", "progress_bytes": "3145728" })));
        let shown = terminal.take();
        assert!(shown.contains("12 blocks, 3.00 MiB") && !shown.contains('%'), "{shown}");
        bar.show(&pinning(half));
        assert!(terminal.take().contains("] 50% "), "once it is known");
    }

    #[test]
    fn the_bar_says_how_much_is_there_and_what_went_wrong() {
        let so_far =
            json!({ "progress_blocks": "12", "progress_bytes": "3145728", "status_details": "Fetching" });
        let with = |more: Value| {
            let mut info = so_far.clone();
            info.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            pinning(info)
        };
        let unknown = with(json!({}));
        assert_eq!((told(&unknown), share(&unknown)), ("12 blocks, 3.00 MiB; Fetching".into(), None));
        let known = with(json!({ "dag_size": "6291456" }));
        assert_eq!(told(&known), "12 blocks, 3.00 MiB of 6.00 MiB; Fetching");
        assert_eq!(share(&known), Some((3 << 20, 6 << 20)));
        let parked =
            with(json!({ "status_details": "Waiting until 12:00", "last_error": "no peer\u{1b}[31m" }));
        assert_eq!(told(&parked), "12 blocks, 3.00 MiB; Waiting until 12:00; last error: no peer\\u{1b}[31m");
        let parked =
            with(json!({ "status_details": "Waiting until 12:00: no peer", "last_error": "no peer" }));
        assert_eq!(told(&parked), "12 blocks, 3.00 MiB; Waiting until 12:00: no peer", "once");
        let mut pinned =
            with(json!({ "dag_size": "3145728", "status_details": "Pinned", "last_error": "no peer" }));
        pinned["status"] = json!("pinned");
        assert_eq!(told(&pinned), "12 blocks, 3.00 MiB; Pinned");
        assert_eq!(share(&pinned), Some((3 << 20, 3 << 20)));
        for wrong in [json!({ "dag_size": "0" }), json!({ "dag_size": "x" }), json!({ "dag_size": 1 })] {
            assert_eq!(share(&with(wrong)), None);
        }
    }

    #[test]
    fn the_reason_is_found_and_made_printable() {
        let pin = json!({"info": {"last_error": "no peer\u{1b}[31m", "status_details": "gave up"}});
        assert_eq!(reason(&pin), "no peer\\u{1b}[31m");
        assert_eq!(reason(&json!({"info": {"status_details": "gave up"}})), "gave up");
        assert!(reason(&json!({})).contains("no reason"));
    }

    #[test]
    fn progress_says_blocks_and_bytes() {
        let pin = json!({"info": {"progress_blocks": "12", "progress_bytes": "3145728", "status_details": "2 peers"}});
        assert_eq!(progress(&pin), "12 blocks, 3.00 MiB; 2 peers");
        assert_eq!(progress(&json!({})), "");
    }
}
