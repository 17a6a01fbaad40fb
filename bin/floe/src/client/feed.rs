//! `floe events`: what happened in the cold half, and what happens from now on.

use futures::StreamExt as _;
use serde_json::Value;
use tokio::time::Instant;

use super::admin::{moment, plain};
use super::events::Parser;
use super::{Call, Client, ClientError};
use crate::limits;
use crate::output::{Output, printable, write_stdout};

/// Prints the events behind `after`; with `follow` those to come as well, each on a line of its own, until it is
/// interrupted.
pub(crate) async fn feed(client: &Client, out: Output, after: u64, follow: bool) -> anyhow::Result<()> {
    let mut last = after;
    if !follow {
        let mut events = Vec::new();
        client.events(&mut last, false, |event| events.push(event)).await?;
        return out.print(&events, || events.iter().map(line).collect());
    }
    // Since when it has not answered. It did once: it is not the URL that is wrong.
    let mut silent_since: Option<Instant> = None;
    let mut answered = false;
    loop {
        let mut written = Ok(());
        let show = |event: Value| {
            let text = if out.json { format!("{event}\n") } else { line(&event) };
            written = write_stdout(&text);
        };
        match client.events(&mut last, true, show).await {
            Ok(()) => (answered, silent_since) = (true, None),
            // It restarts, or a proxy answers for it meanwhile: it goes on behind the last one then.
            Err(ClientError::Unreachable { .. } | ClientError::Answer { status: 502..=504, .. })
                if answered
                    && silent_since.get_or_insert_with(Instant::now).elapsed() < limits::WAIT_UNREACHABLE => {
            }
            Err(error) => return Err(error.into()),
        }
        written?;
        tokio::time::sleep(limits::POLL_INTERVAL).await;
    }
}

impl Client {
    /// Reads the stream of events behind `last`, which goes along with them, to its end.
    async fn events(
        &self,
        last: &mut u64,
        follow: bool,
        mut take: impl FnMut(Value),
    ) -> Result<(), ClientError> {
        let query = vec![("after", last.to_string()), ("follow", follow.to_string())];
        let answer = self.send(&Call::get("/admin/v1/events").query(query).long()).await?;
        let status = answer.status();
        if !status.is_success() {
            let body = self.read(answer).await?;
            return Err(ClientError::of_answer(status, &body));
        }
        let mut parser = Parser::default();
        let mut chunks = answer.bytes_stream();
        // One that is silent for so long is dead, and one that breaks is begun anew behind the last event.
        while let Ok(Some(Ok(chunk))) = tokio::time::timeout(limits::EVENT_SILENCE, chunks.next()).await {
            for event in parser.feed(&chunk).map_err(|_| self.not_floe("an event without an end"))? {
                let event = self.decode(event.data.as_bytes())?;
                *last = event["id"].as_u64().unwrap_or(*last);
                take(event);
            }
        }
        Ok(())
    }
}

fn line(event: &Value) -> String {
    let body = printable(&event["body"].to_string());
    let (kind, subject) = (printable(&plain(&event["kind"])), printable(&plain(&event["subject"])));
    format!("{:>6} {} {kind} {subject} {body}\n", plain(&event["id"]), moment(&event["at"]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::service;
    use super::*;

    #[tokio::test]
    async fn events_are_read_to_the_end_of_the_stream() {
        const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n\
                              event: deal.active\nid: 7\ndata: {\"id\":7}\n\n:\n\nevent: x\nid: 9\ndata: {\"id\":9}\n\n";
        let (mut last, mut seen) = (3, Vec::new());
        let client = service(vec![STREAM]).await;
        client.events(&mut last, false, |event| seen.push(event)).await.unwrap();
        assert_eq!((seen, last), (vec![json!({"id": 7}), json!({"id": 9})], 9));
    }

    #[test]
    fn t19_a_line_is_one_line_and_shows_nothing_that_a_terminal_obeys() {
        let event = json!({"id": 7, "at": 1_780_000_000_000_u64, "kind": "deal.failed", "subject": "a\u{1b}[2J\nb", "body": {"text": "c\u{7}"}});
        let line = line(&event);
        assert!(line.starts_with("     7 2026-05-28T20:26:40.000Z deal.failed a\\u{1b}[2J\\nb "), "{line}");
        assert!(line.chars().filter(|c| c.is_control()).eq(['\n']), "{line}");
    }
}
