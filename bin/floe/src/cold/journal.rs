//! The journal of messages and the memory of the chain, in the rows.
//!
//! What a message does is known here, and what is there already is known to the rows: a version that was checked against
//! the ones before it is added behind just those, or not at all.

use floe_core::Epoch;
use floe_core::clock::BoxFuture;
use floe_filecoin::chain::NetworkPin;
use floe_filecoin::limits::{MAX_REPLACEMENTS, MAX_UNCONFIRMED};
use floe_filecoin::messages::{Entry, Journal, JournalError, Progress, Version};
use floe_filecoin::port::{Known, Memory};
use floe_filecoin::types::cbor::Cbor as _;
use floe_filecoin::types::{Address, SignedMessage};
use floe_records::cold::{ChainRow, MessageRow, MessageStep, MessageVersion};
use floe_records::{Error, Records};

/// Messages and what is known of the chain, in the rows.
pub(crate) struct Rows(pub(crate) Records);

fn failed(error: Error) -> JournalError {
    match error {
        Error::Conflict(what) => JournalError::Conflict(what),
        Error::Quota(_) => JournalError::Full,
        other => JournalError::Store(other.to_string()),
    }
}

fn conflict(what: &str) -> JournalError {
    JournalError::Conflict(what.to_owned())
}

fn version_row(version: &Version) -> MessageVersion {
    MessageVersion {
        cid: version.message.cid(),
        bytes: version.message.to_cbor(),
        pushed_at: version.pushed_at,
    }
}

fn step(progress: &Progress) -> MessageStep {
    let number = |version: &usize| u32::try_from(*version).unwrap_or(u32::MAX);
    match progress {
        Progress::Signed => MessageStep::Signed,
        Progress::Pooled => MessageStep::Pooled,
        Progress::Refused { reason } => MessageStep::Refused(reason.clone()),
        Progress::Included { version, height } => {
            MessageStep::Included { version: number(version), height: *height }
        }
        Progress::Final { version, height, exit_code } => {
            MessageStep::Final { version: number(version), height: *height, exit_code: *exit_code }
        }
        Progress::Missing => MessageStep::Missing,
    }
}

fn progress(step: MessageStep) -> Progress {
    match step {
        MessageStep::Signed => Progress::Signed,
        MessageStep::Pooled => Progress::Pooled,
        MessageStep::Refused(reason) => Progress::Refused { reason },
        MessageStep::Included { version, height } => Progress::Included { version: version as usize, height },
        MessageStep::Final { version, height, exit_code } => {
            Progress::Final { version: version as usize, height, exit_code }
        }
        MessageStep::Missing => Progress::Missing,
    }
}

/// The digest held, so what does not read was written by another version.
fn entry(row: MessageRow) -> Result<Entry, JournalError> {
    let odd = |what: &str| JournalError::Store(format!("the message for {:?} has {what}", row.intent));
    let from: Address = row.wallet.parse().map_err(|_| odd("a sender that this Floe cannot read"))?;
    let version = |version: &MessageVersion| {
        let message = SignedMessage::from_cbor(&version.bytes).ok()?;
        (message.cid() == version.cid).then_some(Version { message, pushed_at: version.pushed_at })
    };
    let versions: Option<Vec<_>> = row.versions.iter().map(version).collect();
    Ok(Entry {
        from,
        versions: versions.ok_or_else(|| odd("bytes that this Floe cannot read"))?,
        nonce: row.nonce,
        progress: progress(row.step),
        since: row.since,
        intent: row.intent,
    })
}

impl Rows {
    async fn added(&self, entry: &Entry) -> Result<(), JournalError> {
        let row = MessageRow {
            intent: entry.intent.clone(),
            wallet: entry.from.to_string(),
            nonce: entry.nonce,
            since: entry.since,
            step: step(&entry.progress),
            versions: entry.versions.iter().map(version_row).collect(),
        };
        let most = u32::try_from(MAX_UNCONFIRMED).unwrap_or(u32::MAX);
        self.0.add_message(row, most).await.map_err(failed)
    }

    async fn found(&self, intent: &str) -> Result<Option<Entry>, JournalError> {
        self.0.message(intent).await.map_err(failed)?.map(entry).transpose()
    }

    async fn version_added(&self, intent: &str, version: &Version) -> Result<(), JournalError> {
        let entry = self.found(intent).await?.filter(|entry| !entry.progress.is_settled());
        let entry = entry.ok_or_else(|| conflict("no open message has this intent"))?;
        let same = |old: &Version| {
            old.message.message.nonce == version.message.message.nonce
                && old.message.message.same_call(&version.message.message)
        };
        if !entry.versions.iter().all(same) {
            return Err(conflict("a replacement with another nonce or another call"));
        }
        let seen = entry.versions.len();
        if seen > MAX_REPLACEMENTS {
            metrics::counter!("floe_limit_hits_total", "limit" => "message_replacements").increment(1);
            return Err(conflict("replaced too often"));
        }
        let seen = u32::try_from(seen).unwrap_or(u32::MAX);
        self.0.add_message_version(intent.to_owned(), seen, version_row(version)).await.map_err(failed)
    }
}

impl Journal for Rows {
    fn find<'a>(&'a self, intent: &'a str) -> BoxFuture<'a, Result<Option<Entry>, JournalError>> {
        Box::pin(self.found(intent))
    }

    fn next_nonce(&self, from: Address) -> BoxFuture<'_, Result<Option<u64>, JournalError>> {
        Box::pin(async move {
            let last = self.0.last_nonce(&from.to_string()).await.map_err(failed)?;
            Ok(last.map(|last| last.saturating_add(1)))
        })
    }

    fn unsettled(&self, from: Address) -> BoxFuture<'_, Result<Vec<Entry>, JournalError>> {
        Box::pin(async move {
            let rows = self.0.open_messages(&from.to_string()).await.map_err(failed)?;
            rows.into_iter().map(entry).collect()
        })
    }

    fn add<'a>(&'a self, entry: &'a Entry) -> BoxFuture<'a, Result<(), JournalError>> {
        Box::pin(self.added(entry))
    }

    fn add_version<'a>(
        &'a self,
        intent: &'a str,
        version: &'a Version,
    ) -> BoxFuture<'a, Result<(), JournalError>> {
        Box::pin(self.version_added(intent, version))
    }

    fn pushed<'a>(
        &'a self,
        intent: &'a str,
        head: Epoch,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), JournalError>> {
        Box::pin(async move {
            self.0.message_step(intent.to_owned(), step(progress), Some(head)).await.map_err(failed)
        })
    }

    fn progress<'a>(
        &'a self,
        intent: &'a str,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), JournalError>> {
        Box::pin(
            async move { self.0.message_step(intent.to_owned(), step(progress), None).await.map_err(failed) },
        )
    }
}

impl Memory for Rows {
    fn load(&self) -> BoxFuture<'_, Result<Option<Known>, String>> {
        Box::pin(async move {
            let Some(ChainRow { network, genesis, highest }) =
                self.0.chain().await.map_err(|e| e.to_string())?
            else {
                return Ok(None);
            };
            let pin = NetworkPin::new(&network, genesis).map_err(|e| e.to_string())?;
            Ok(Some(Known { pin, highest }))
        })
    }

    fn pin<'a>(&'a self, pin: &'a NetworkPin) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(
            async move { self.0.pin_chain(pin.name.clone(), pin.genesis).await.map_err(|e| e.to_string()) },
        )
    }

    fn saw(&self, highest: Epoch) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move { self.0.saw_chain(highest).await.map_err(|e| e.to_string()) })
    }
}

#[cfg(test)]
#[path = "../../../../crates/filecoin/tests/suite/journal.rs"]
mod conformance;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use floe_core::cid;

    use super::*;
    use crate::system::{SystemClock, SystemEntropy};

    async fn rows(dir: &std::path::Path) -> Records {
        let components = floe_records::Components {
            clock: Arc::new(SystemClock::new()),
            entropy: Arc::new(SystemEntropy),
        };
        Records::open(floe_records::Settings::at(dir.join("rows.sqlite")), components).await.unwrap()
    }

    /// The same suite as over memory; then all of it is there after a restart.
    #[tokio::test]
    async fn the_rows_are_a_journal() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Rows(rows(dir.path()).await);
        journal.0.begin_ledger_epoch().await.unwrap();
        super::conformance::conforms(&journal).await;
        let before = journal.find("a").await.unwrap();
        journal.0.close().await;
        let journal = Rows(rows(dir.path()).await);
        assert_eq!(journal.find("a").await.unwrap(), before);
        journal.0.close().await;
    }

    #[tokio::test]
    async fn t38_the_network_is_written_down_once_and_the_highest_head_only_grows() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Rows(rows(dir.path()).await);
        assert_eq!(memory.load().await, Ok(None));
        memory.saw(Epoch::new(5)).await.unwrap();
        assert_eq!(memory.load().await, Ok(None), "a head of no network");
        let cid = |text: &str| cid::parse(text).unwrap();
        let first = cid("bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg");
        memory.pin(&NetworkPin::new("one", first).unwrap()).await.unwrap();
        memory.pin(&NetworkPin::new("two", first).unwrap()).await.unwrap();
        for (saw, highest) in [(7, 7), (3, 7), (8, 8)] {
            memory.saw(Epoch::new(saw)).await.unwrap();
            let known = memory.load().await.unwrap().unwrap();
            assert_eq!((known.pin.name.as_str(), known.highest), ("one", Epoch::new(highest)));
        }
        memory.0.close().await;
    }
}
