//! What goes in and comes out.

use std::collections::BTreeMap;
use std::time::Duration;

use floe_core::ports::Origins;
use floe_core::{AccountId, Cid, PinStatus, PolicyChoice, RequestId, Timestamp, TokenId};
use uuid::Uuid;

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
    /// What is asked of Filecoin for it.
    pub policy: PolicyChoice,
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
    /// Most replicas of one pin; `None`: what its policy says is the most.
    pub max_replicas: Option<u8>,
    /// Refused at the API while its data stays.
    pub suspended: bool,
    /// Logical bytes used and reserved.
    pub used_bytes: u64,
    /// Pins that are not failed.
    pub used_pins: u64,
    /// When it was made.
    pub created: Timestamp,
}

/// What a new account may use; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most logical bytes.
    pub max_bytes: Option<u64>,
    /// Most pins.
    pub max_pins: Option<u64>,
    /// Most replicas of one pin; `None`: what its policy says is the most.
    pub max_replicas: Option<u8>,
}

/// New bounds of an account: `Some(None)` takes one away, `None` leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Quota {
    /// Most logical bytes.
    pub max_bytes: Option<Option<u64>>,
    /// Most pins.
    pub max_pins: Option<Option<u64>>,
    /// Most replicas of one pin.
    pub max_replicas: Option<Option<u8>>,
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
    /// The policy of pins that are made with it, where neither path nor meta names one.
    pub policy: Option<String>,
}

/// What a new token is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// How long it lives; `None`: until it is revoked.
    pub expires_in: Option<Duration>,
    /// See [`Token::policy`].
    pub policy: Option<String>,
}

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The account. What it uses is as it was when the token was last looked up, not as it is now.
    pub account: Account,
    /// What its token may do.
    pub scopes: Vec<Scope>,
    /// The token.
    pub token: TokenId,
    /// See [`Token::policy`].
    pub policy: Option<String>,
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
    /// Origins of all its pins: those of pins that came from this machine, and those of the others.
    pub origins: Vec<Origins>,
    /// Attempts before this one.
    pub attempts: u32,
    /// When the attempt before this one ended; now, where it is the first.
    pub tried_at: Timestamp,
    /// For how long it was searched for in vain, as the pin counts that waits longest for it.
    pub searched: Duration,
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
    /// To be tried again.
    Parked(Parked),
    /// Never again.
    Failed {
        /// Why, in words.
        reason: String,
    },
}

/// An attempt that did not bring the whole DAG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parked {
    /// When to try again.
    pub next_attempt: Timestamp,
    /// Why, in words.
    pub reason: String,
    /// Whether any block came in this attempt.
    pub progressed: bool,
    /// For how long it counts as searched for since the attempt before.
    pub searched: Duration,
    /// Which pins have had their time.
    pub give_up: GiveUp,
}

/// The end of a search in vain: pins that have waited for so much of it fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GiveUp {
    /// `pin.give_up_after`: searched for since the pin joined, and since the last progress.
    pub after: Duration,
    /// What the pins are told that fail.
    pub reason: String,
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

/// What [`crate::Records::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct RowsReport {
    /// Pins whose digest was checked.
    pub pins: u64,
    /// Tokens whose digest was checked.
    pub tokens: u64,
    /// Each thing that is wrong, in words, up to [`crate::limits::FINDINGS`].
    pub findings: Vec<String>,
    /// What could not be checked in the time that a running node gives it, in words.
    pub unchecked: Vec<String>,
    /// Complete DAGs of which is not known what they hold; [`crate::Records::mend_dag`] takes it from who knows.
    pub sizes: Vec<Uuid>,
}
