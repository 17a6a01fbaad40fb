//! `--wait`: following a pin to its end, with a progress bar where there is a terminal.
//!
//! The API's stream of events says each change at once. Where it breaks off (a proxy, a restart) or is not there,
//! the pin itself is asked, and the stream is tried again: what counts is the pin's status, not the stream.

use std::time::Duration;

use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::events::Parser;
use super::{Call, Client, ClientError, segment};
use crate::limits;
use crate::output::{printable, size};

impl Client {
    /// Waits until a pin is `pinned`, and returns it then. `pin` is what the API said last.
    ///
    /// A `failed` one is [`ClientError::PinFailed`]. Dropping the future ends the waiting, not the pin.
    pub(super) async fn wait(&self, mut pin: Value) -> Result<Value, ClientError> {
        let id = pin["requestid"].as_str().unwrap_or_default().to_owned();
        let bar = Bar::new();
        let mut gone_for = Duration::ZERO;
        loop {
            bar.show(&pin);
            match pin["status"].as_str() {
                Some("pinned") => return Ok(pin),
                Some("failed") => return Err(ClientError::PinFailed { id, reason: reason(&pin) }),
                _ => {}
            }
            match self.next_state(&id, &bar).await {
                Ok(state) => (pin, gone_for) = (state, Duration::ZERO),
                Err(ClientError::Unreachable { .. }) if gone_for < limits::WAIT_UNREACHABLE => {
                    gone_for += limits::POLL_INTERVAL;
                }
                Err(ClientError::Unreachable { .. }) => {
                    return Err(ClientError::Lost { url: self.base.clone() });
                }
                Err(ClientError::NotFound { .. }) => return Err(ClientError::Removed { id }),
                Err(error) => return Err(error),
            }
        }
    }

    /// The pin as it is once the stream of events has ended or is not to be had, at most once per
    /// [`limits::POLL_INTERVAL`].
    async fn next_state(&self, id: &str, bar: &Bar) -> Result<Value, ClientError> {
        let followed = self.follow(id, bar).await;
        if let Ok(Some(settled)) = followed {
            return Ok(settled);
        }
        tokio::time::sleep(limits::POLL_INTERVAL).await;
        self.call_once(&Call::get(format!("/pins/{}", segment(id)))).await
    }

    /// Follows the stream of events: the pin once it is settled, `None` where the stream ends before.
    async fn follow(&self, id: &str, bar: &Bar) -> Result<Option<Value>, ClientError> {
        let answer = self.send(&Call::get(format!("/pins/{}/events", segment(id))).long()).await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let mut parser = Parser::default();
        let mut chunks = answer.bytes_stream();
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout(limits::EVENT_SILENCE, chunks.next()).await {
            let events = parser.feed(&chunk).map_err(|_| self.not_floe("an event without an end"))?;
            for event in events.iter().filter(|event| event.name == "status") {
                let pin = self.decode(event.data.as_bytes())?;
                bar.show(&pin);
                if matches!(pin["status"].as_str(), Some("pinned" | "failed")) {
                    return Ok(Some(pin));
                }
            }
        }
        Ok(None)
    }
}

/// Why a pin failed, in the words of its `info`.
pub(super) fn reason(pin: &Value) -> String {
    let said = ["last_error", "status_details"].iter().find_map(|key| pin["info"][key].as_str());
    said.map_or_else(|| "the service gives no reason".into(), printable)
}

/// The progress, on stderr where that is a terminal; nothing elsewhere.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}");
        let bar = ProgressBar::new_spinner().with_style(style.expect("the template is well formed"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Self(bar)
    }

    fn show(&self, pin: &Value) {
        self.0.set_prefix(printable(pin["status"].as_str().unwrap_or_default()));
        self.0.set_message(progress(pin));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// `12 blocks, 3.00 MiB; details`.
pub(super) fn progress(pin: &Value) -> String {
    let info = |key: &str| pin["info"][key].as_str();
    let mut parts = Vec::new();
    if let (Some(blocks), Some(bytes)) = (info("progress_blocks"), info("progress_bytes")) {
        let bytes = bytes.parse().map_or_else(|_| printable(bytes), size);
        parts.push(format!("{} blocks, {bytes}", printable(blocks)));
    }
    parts.extend(info("status_details").map(printable));
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_bar_has_a_style() {
        Bar::new().show(&json!({}));
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
