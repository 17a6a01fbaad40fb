//! Rows: pins, accounts, tokens, DAGs being fetched, due jobs. (skeleton)

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use floe_core::ports::Entropy;
use floe_core::{AccountId, Cid, Clock, PinStatus, RequestId, Timestamp, TokenId};
use uuid::Uuid;

/// Plain settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The SQLite file; made if missing.
    pub path: PathBuf,
}

/// Live objects.
#[derive(Clone)]
pub struct Components {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Random bytes for request ids and tokens.
    pub entropy: Arc<dyn Entropy>,
}

/// Why a call failed. Each variant is something a caller does something about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such row, or of another account.
    #[error("not found")]
    NotFound,
    /// A name that is taken, or another clash.
    #[error("{0}")]
    Conflict(String),
    /// Quota of bytes or pins exceeded.
    #[error("{0}")]
    Quota(String),
    /// `created` would run more than 2 s ahead of the clock, or too many pins are queued.
    #[error("{reason}")]
    Busy {
        /// For the client.
        reason: String,
        /// When to come back.
        retry_after: Duration,
    },
    /// The idempotency key was used with another body.
    #[error("this Idempotency-Key was used with another request body")]
    KeyReused,
    /// A scan ran past its deadline.
    #[error("the query took too long")]
    Deadline,
    /// A newer Floe wrote this file.
    #[error("the database has schema {found}, this Floe knows {known}: use a newer Floe")]
    Newer {
        /// In the file.
        found: i64,
        /// Known here.
        known: i64,
    },
    /// The database is damaged or foreign.
    #[error("{0}")]
    Damaged(String),
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// A sync failed: the process must end.
    #[error("a sync failed: {0}")]
    Poisoned(String),
    /// Anything else.
    #[error("{0}")]
    Sql(String),
}

/// All rows. Cheap to clone.
#[derive(Clone)]
pub struct Records {}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinSpec {
    /// The CID as it was sent.
    pub cid_text: String,
    /// The CID parsed (the canonical v1 form names the DAG).
    pub cid: Cid,
    /// Up to 255 characters.
    pub name: Option<String>,
    /// As they were sent.
    pub origins: Vec<String>,
    /// Kept and returned.
    pub meta: BTreeMap<String, String>,
}

/// A pin as it is stored, with the DAG it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinRow {
    /// Its name.
    pub id: RequestId,
    /// Its owner.
    pub account: AccountId,
    /// What was asked for.
    pub spec: PinSpec,
    /// Where it stands.
    pub status: PinStatus,
    /// Unique per account, millisecond precision.
    pub created: Timestamp,
    /// The DAG that is fetched once for all pins of one root.
    pub dag: Uuid,
    /// Why it failed, in words.
    pub reason: Option<String>,
    /// The request that brought it came from this machine (`network.private_addresses = auto`).
    pub local_request: bool,
    /// The DAG's progress, for `info`.
    pub progress: DagProgress,
}

/// Progress of a DAG, for `info`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DagProgress {
    /// Unique blocks so far.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Attempts so far.
    pub attempts: u32,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// When the next attempt is due, while it is parked.
    pub next_attempt: Option<Timestamp>,
    /// How many DAGs of this account are before it, while it is queued.
    pub queue_position: Option<u64>,
}

/// What `list` filters by. All conditions hold together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PinFilter {
    /// Any of these CIDs; any CID version and multibase of one block matches by its canonical form.
    pub cids: Vec<Cid>,
    /// By name.
    pub name: Option<(NameMatch, String)>,
    /// Any of these; empty: `pinned` alone.
    pub statuses: Vec<PinStatus>,
    /// Created before this, strictly.
    pub before: Option<Timestamp>,
    /// Created after this, strictly.
    pub after: Option<Timestamp>,
    /// All of these pairs.
    pub meta: BTreeMap<String, String>,
    /// 1 to 1000.
    pub limit: u32,
}

/// How a name is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMatch {
    /// The same text.
    Exact,
    /// The same text, case folded.
    IExact,
    /// A part of the text.
    Partial,
    /// A part of the text, case folded.
    IPartial,
}

/// A page of pins and how many match in all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinPage {
    /// All that match, `before` and `after` included.
    pub count: u64,
    /// Newest first; with `after` alone, oldest first (see pinning-api M15).
    pub pins: Vec<PinRow>,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// Its unique name.
    pub name: String,
    /// Most logical bytes, if bounded.
    pub max_bytes: Option<u64>,
    /// Most pins, if bounded.
    pub max_pins: Option<u64>,
    /// Refused at the API while its data stays.
    pub suspended: bool,
    /// Logical bytes used and reserved.
    pub used_bytes: u64,
    /// Pins that are not failed.
    pub used_pins: u64,
    /// When it was made.
    pub created: Timestamp,
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Scope {
    /// `pins:read`
    #[serde(rename = "pins:read")]
    PinsRead,
    /// `pins:write`
    #[serde(rename = "pins:write")]
    PinsWrite,
    /// `admin`
    #[serde(rename = "admin")]
    Admin,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Token {
    /// Its id.
    pub id: TokenId,
    /// Whose it is.
    pub account: AccountId,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created: Timestamp,
    /// When it ends, if it does.
    pub expires: Option<Timestamp>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The account.
    pub account: Account,
    /// What its token may do.
    pub scopes: Vec<Scope>,
    /// The token.
    pub token: TokenId,
}

/// An `Idempotency-Key` and the hash of the body it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// Up to 255 bytes.
    pub key: String,
    /// BLAKE3 of method, path and body.
    pub body_hash: [u8; 32],
}

/// A DAG that a worker has claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimedDag {
    /// Also the manifest's id in the block store.
    pub dag: Uuid,
    /// The root, canonical.
    pub root: Cid,
    /// The account in whose name it was claimed (fairness counts there).
    pub account: AccountId,
    /// Origins of all its pins.
    pub origins: Vec<String>,
    /// Whether any of its pins came from this machine.
    pub local_request: bool,
    /// Attempts before this one.
    pub attempts: u32,
    /// When its oldest unsettled pin was made or it last made progress, whichever is later: give-up counts from here.
    pub since: Timestamp,
    /// Bytes it may still grow to before every one of its pins is over its account's quota.
    pub byte_allowance: Option<u64>,
}

/// How an attempt at a DAG ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DagOutcome {
    /// All of it is here.
    Complete {
        /// Unique blocks.
        blocks: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Try again at this time.
    Parked {
        /// When.
        next_attempt: Timestamp,
        /// Why, in words.
        reason: String,
        /// Whether any block came in this attempt.
        progressed: bool,
    },
    /// Never again.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// A follow-up that a transaction queued: done at least once, in order of id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Announce this root.
    Announce(Cid),
    /// Stop announcing this root: no pin names it any more.
    Unannounce(Cid),
    /// Release this manifest: no pin needs the DAG any more.
    Release(Uuid),
}

impl Records {
    /// Opens or makes the database and migrates it.
    pub async fn open(_settings: Settings, _components: Components) -> Result<Self, Error> {
        todo!()
    }
    /// One transaction: idempotency key looked up, quota and queue bound checked, rows written, synced.
    /// All pins or none. With a key that was used with the same body, the first answer's pins come back.
    pub async fn add_pins(
        &self,
        _account: AccountId,
        _specs: Vec<PinSpec>,
        _local_request: bool,
        _key: Option<IdempotencyKey>,
    ) -> Result<Vec<PinRow>, Error> {
        todo!()
    }
    /// Replaces a pin in any status: the old id is gone at once, its DAG stays until the new pin is pinned.
    pub async fn replace_pin(
        &self,
        _account: AccountId,
        _old: RequestId,
        _spec: PinSpec,
        _local_request: bool,
        _key: Option<IdempotencyKey>,
    ) -> Result<PinRow, Error> {
        todo!()
    }
    /// Removes a pin; queues what follows.
    pub async fn remove_pin(&self, _account: AccountId, _id: RequestId) -> Result<(), Error> {
        todo!()
    }
    /// One pin.
    pub async fn pin(&self, _account: AccountId, _id: RequestId) -> Result<PinRow, Error> {
        todo!()
    }
    /// A page of pins.
    pub async fn pins(&self, _account: AccountId, _filter: PinFilter) -> Result<PinPage, Error> {
        todo!()
    }
    /// Claims up to `most` due DAGs, fairly: at most `per_account` of one account are claimed at a time. Their
    /// queued pins become `pinning`.
    pub async fn claim_dags(&self, _most: usize, _per_account: usize) -> Result<Vec<ClaimedDag>, Error> {
        todo!()
    }
    /// When the next DAG falls due, if any is waiting.
    pub async fn next_due(&self) -> Result<Option<Timestamp>, Error> {
        todo!()
    }
    /// Gives all claims back, at start.
    pub async fn reset_claims(&self) -> Result<u64, Error> {
        todo!()
    }
    /// Saves progress for `info`; pins whose account has no room for `bytes` fail with a reason. Returns
    /// whether any pin still wants the DAG (else stop the walk), and the new byte allowance.
    pub async fn dag_progress(
        &self,
        _dag: Uuid,
        _blocks: u64,
        _bytes: u64,
        _note: Option<String>,
    ) -> Result<Option<Option<u64>>, Error> {
        todo!()
    }
    /// Ends an attempt, in one transaction with what follows (statuses, charges, jobs).
    pub async fn finish_dag(&self, _dag: Uuid, _outcome: DagOutcome) -> Result<(), Error> {
        todo!()
    }
    /// Makes parked DAGs due now whose origins name this peer, or whose root is this one.
    pub async fn wake(&self, _peer_id: Option<&str>, _root: Option<&Cid>) -> Result<u64, Error> {
        todo!()
    }
    /// Roots of DAGs that are parked, the oldest first.
    pub async fn parked_roots(&self, _most: usize) -> Result<Vec<Cid>, Error> {
        todo!()
    }
    /// The next jobs.
    pub async fn jobs(&self, _most: usize) -> Result<Vec<(i64, Job)>, Error> {
        todo!()
    }
    /// A job is done.
    pub async fn job_done(&self, _id: i64) -> Result<(), Error> {
        todo!()
    }
    /// Ids of all DAGs that have rows, to be compared with the block store at start.
    pub async fn dag_ids(&self) -> Result<Vec<(Uuid, bool)>, Error> {
        todo!()
    }
    /// Every pin of a DAG (or of all DAGs) that holds a block named damaged; used by scrub reports.
    pub async fn pins_of_dag(&self, _dag: Uuid) -> Result<Vec<(AccountId, RequestId)>, Error> {
        todo!()
    }
    /// Who has this token. `None` for unknown, expired, revoked.
    pub async fn authenticate(&self, _token: &str) -> Result<Option<Principal>, Error> {
        todo!()
    }
    /// Makes an account.
    pub async fn create_account(
        &self,
        _name: &str,
        _max_bytes: Option<u64>,
        _max_pins: Option<u64>,
    ) -> Result<Account, Error> {
        todo!()
    }
    /// All accounts.
    pub async fn accounts(&self) -> Result<Vec<Account>, Error> {
        todo!()
    }
    /// Suspends an account, or lifts it.
    pub async fn suspend_account(&self, _name: &str, _suspended: bool) -> Result<(), Error> {
        todo!()
    }
    /// Makes a token; the secret is returned once and stored hashed.
    pub async fn create_token(
        &self,
        _account: &str,
        _scopes: &[Scope],
        _expires_in: Option<Duration>,
    ) -> Result<(Token, String), Error> {
        todo!()
    }
    /// All tokens, or those of one account.
    pub async fn tokens(&self, _account: Option<&str>) -> Result<Vec<Token>, Error> {
        todo!()
    }
    /// Revokes a token; effective at once.
    pub async fn revoke_token(&self, _id: TokenId) -> Result<(), Error> {
        todo!()
    }
    /// Pins by status over all accounts, from counters.
    pub async fn pin_counts(&self) -> Result<BTreeMap<PinStatus, u64>, Error> {
        todo!()
    }
    /// Completes when a sync has failed and the process must end, with the reason.
    pub async fn poisoned(&self) -> String {
        todo!()
    }
    /// Closes.
    pub async fn close(&self) {
        todo!()
    }
}
