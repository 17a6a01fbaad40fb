//! A pin's row: its columns, its digest, and the way to and from [`PinRow`].
//!
//! SQLite's pages carry no checksum, so each row carries a digest of what the client was promised. The charge
//! (`charged`, `kept`) is left out: it changes with every progress report of a fetch, for many pins at once, and
//! is checked against the account's sum by [`crate::Records::verify`].

use floe_core::{AccountId, PinStatus, PolicyChoice, RequestId, Timestamp, cid};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

pub(crate) use crate::digests::add as digest_field;
use crate::{DagProgress, Error, PinRow, PinSpec, dags, digests};

/// Pins `p` with their DAGs' progress, for [`Stored::read`]; what follows says which. A pin whose DAG is not there
/// comes without: it is damaged, and is to be named rather than passed over. More columns may come behind these.
macro_rules! select_pins {
    ($which:literal) => {
        select_pins!("", $which)
    };
    ($more:literal, $which:literal) => {
        concat!(
            "SELECT p.id, p.account, p.created, p.status, p.cid_text, p.root, p.name, p.folded, p.origins, p.meta, \
             p.local_request, p.dag, p.reason, p.charged, p.kept, p.searched_before, p.policy, p.replicas, p.digest, \
             d.blocks, d.bytes, d.attempts, d.last_error, d.next_at, d.state, d.root AS dag_root, d.digest AS dag_digest",
            $more,
            " FROM pins p LEFT JOIN dags d ON d.id = p.dag ",
            $which
        )
    };
}
pub(crate) use select_pins;

/// A pin as the table has it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) id: Uuid,
    pub(crate) account: i64,
    pub(crate) created: i64,
    pub(crate) status: PinStatus,
    pub(crate) cid_text: String,
    pub(crate) root: Vec<u8>,
    pub(crate) name: Option<String>,
    pub(crate) folded: Option<String>,
    pub(crate) origins: String,
    pub(crate) meta: String,
    pub(crate) local_request: bool,
    pub(crate) dag: Uuid,
    pub(crate) reason: Option<String>,
    /// Logical bytes charged to the account for it.
    pub(crate) charged: i64,
    /// What it is charged at least, for the blocks of the pin it replaced, until it is pinned.
    pub(crate) kept: i64,
    /// For how long its DAG had been searched for in vain when it joined, in milliseconds.
    pub(crate) searched_before: i64,
    /// The name of its policy; empty: none.
    pub(crate) policy: String,
    /// How many replicas go to Filecoin.
    pub(crate) replicas: i64,
    pub(crate) progress: DagProgress,
}

impl Stored {
    /// Reads a row and checks its digest.
    pub(crate) fn read(row: &SqliteRow) -> Result<Self, Error> {
        let id = uuid(row, "id")?;
        let damaged = || Error::Damaged(format!("the row of pin {id} is damaged: restore it from a backup"));
        let read = || -> Result<(Self, Vec<u8>), sqlx::Error> {
            let status = row.try_get("status")?;
            let stored = Self {
                id,
                account: row.try_get("account")?,
                created: row.try_get("created")?,
                status: status_of(status).ok_or(sqlx::Error::RowNotFound)?,
                cid_text: row.try_get("cid_text")?,
                root: row.try_get("root")?,
                name: row.try_get("name")?,
                folded: row.try_get("folded")?,
                origins: row.try_get("origins")?,
                meta: row.try_get("meta")?,
                local_request: row.try_get::<i64, _>("local_request")? != 0,
                dag: uuid_of(row.try_get("dag")?),
                reason: row.try_get("reason")?,
                charged: row.try_get("charged")?,
                kept: row.try_get("kept")?,
                searched_before: row.try_get("searched_before")?,
                policy: row.try_get("policy")?,
                replicas: row.try_get("replicas")?,
                progress: progress(row)?,
            };
            Ok((stored, row.try_get("digest")?))
        };
        let (stored, digest) = read().map_err(|_| damaged())?;
        if stored.digest() == digest { Ok(stored) } else { Err(damaged()) }
    }

    /// Names what the client was promised, each field with its length.
    pub(crate) fn digest(&self) -> Vec<u8> {
        let mut hash = blake3::Hasher::new_derive_key("floe records 1 pin row");
        let name = self.name.as_deref();
        let fields: [Option<&[u8]>; 12] = [
            Some(self.id.as_bytes()),
            Some(&self.account.to_le_bytes()),
            Some(&self.created.to_le_bytes()),
            Some(&code(self.status).to_le_bytes()),
            Some(self.cid_text.as_bytes()),
            Some(&self.root),
            name.map(str::as_bytes),
            Some(self.origins.as_bytes()),
            Some(self.meta.as_bytes()),
            Some(&[u8::from(self.local_request)]),
            Some(self.dag.as_bytes()),
            self.reason.as_deref().map(str::as_bytes),
        ];
        for field in fields {
            digests::add(&mut hash, field);
        }
        // Rows that are older than this column have none of it, and keep their digest.
        if self.searched_before != 0 {
            digests::add(&mut hash, Some(&self.searched_before.to_le_bytes()));
        }
        if !self.policy.is_empty() || self.replicas != 0 {
            digests::add(&mut hash, Some(b"policy"));
            digests::add(&mut hash, Some(self.policy.as_bytes()));
            digests::add(&mut hash, Some(&self.replicas.to_le_bytes()));
        }
        digests::finish(&hash)
    }

    /// As callers see it.
    pub(crate) fn into_row(self) -> Result<PinRow, Error> {
        let id = self.id;
        // The digest held, so what does not parse was written by another version.
        let odd = |what: &str| {
            Error::Damaged(format!("the row of pin {id} has a {what} that this Floe cannot read"))
        };
        Ok(PinRow {
            id: RequestId(id),
            account: AccountId(self.account),
            spec: PinSpec {
                cid: cid::parse(&self.cid_text).map_err(|_| odd("CID"))?,
                cid_text: self.cid_text,
                name: self.name,
                origins: serde_json::from_str(&self.origins).map_err(|_| odd("list of origins"))?,
                meta: serde_json::from_str(&self.meta).map_err(|_| odd("meta"))?,
                policy: PolicyChoice {
                    name: self.policy,
                    replicas: u8::try_from(self.replicas).map_err(|_| odd("number of replicas"))?,
                },
            },
            status: self.status,
            created: Timestamp::from_millis(num(self.created)),
            dag: self.dag,
            reason: self.reason,
            local_request: self.local_request,
            progress: self.progress,
        })
    }
}

fn progress(row: &SqliteRow) -> Result<DagProgress, sqlx::Error> {
    let state: i64 = row.try_get("state")?;
    let (blocks, bytes) = (row.try_get("blocks")?, row.try_get("bytes")?);
    if state == dags::COMPLETE {
        let (dag, root): (Vec<u8>, Vec<u8>) = (row.try_get("dag")?, row.try_get("dag_root")?);
        let digest: Option<Vec<u8>> = row.try_get("dag_digest")?;
        if !digests::holds(digest.as_deref(), || dags::digest(&dag, &root, blocks, bytes)) {
            // The pin itself is whole: it is shown, without what cannot be believed.
            let last_error = Some("what this DAG holds is not known: its row is damaged".to_owned());
            return Ok(DagProgress { last_error, ..DagProgress::default() });
        }
    }
    let next_at: Option<i64> = row.try_get("next_at")?;
    Ok(DagProgress {
        blocks: num(blocks),
        bytes: num(bytes),
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?).unwrap_or(u32::MAX),
        last_error: row.try_get("last_error")?,
        next_attempt: next_at.filter(|_| state == dags::WAITING).map(|at| Timestamp::from_millis(num(at))),
        queue_position: None,
    })
}

/// The row, or a line in the log where it is damaged: for what shows or does as much as it can.
pub(crate) fn intact<T>(read: Result<T, Error>) -> Option<T> {
    read.inspect_err(|error| tracing::error!(%error, "a row is left out: {error}")).ok()
}

/// The number a status is stored as.
pub(crate) fn code(status: PinStatus) -> i64 {
    match status {
        PinStatus::Queued => 0,
        PinStatus::Pinning => 1,
        PinStatus::Pinned => 2,
        PinStatus::Failed => 3,
    }
}

/// The status behind a stored number.
pub(crate) fn status_of(code_: i64) -> Option<PinStatus> {
    PinStatus::ALL.into_iter().find(|status| code(*status) == code_)
}

/// A UUID column.
pub(crate) fn uuid(row: &SqliteRow, column: &'static str) -> Result<Uuid, Error> {
    Ok(uuid_of(row.try_get(column)?))
}

/// Sixteen bytes, or nil for what is not: the digest or the lookup behind it then says so.
pub(crate) fn uuid_of(bytes: Vec<u8>) -> Uuid {
    Uuid::from_slice(&bytes).unwrap_or_default()
}

/// The `BYTEA` of a UUID.
pub(crate) fn key(id: Uuid) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// SQL's integers are signed: what is beyond them stops at the largest.
pub(crate) fn db(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Back from SQL's integers.
pub(crate) fn num(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_stop_at_the_ends(value: u64) {
            prop_assert_eq!(num(db(value)), value.min(i64::MAX as u64));
        }
    }

    #[test]
    fn codes_round_trip() {
        for status in PinStatus::ALL {
            assert_eq!(status_of(code(status)), Some(status));
        }
        assert_eq!(status_of(4), None);
    }
}
