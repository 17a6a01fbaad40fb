//! What happens next, and when to try again. (skeleton)

use std::sync::Arc;
use std::time::Duration;

use floe_core::ports::{Entropy, Exchange, Network, NetworkStatus};
use floe_core::{Clock, RequestId, TokenId};

pub use floe_blockstore::{GcReport, ScrubReport};
pub use floe_records::{
    Account, DagProgress, IdempotencyKey, NameMatch, PinFilter, PinPage, PinRow, PinSpec, Principal, Scope, Token,
};

/// Plain settings (`[pin]` in config.toml).
#[derive(Debug, Clone)]
pub struct Settings {
    /// A pin without any progress for so long fails. Default 24 h.
    pub give_up_after: Duration,
    /// Most unique blocks of one pin. Default 10^8.
    pub max_blocks: u64,
    /// Most bytes of one pin; `None`: the account's quota alone bounds it.
    pub max_bytes: Option<u64>,
    /// Deepest link path of one pin. Default 10^6.
    pub max_depth: u32,
}

/// Live objects.
#[derive(Clone)]
pub struct Components {
    /// Blocks.
    pub blocks: floe_blockstore::BlockStore,
    /// Rows.
    pub records: floe_records::Records,
    /// Where missing blocks come from.
    pub exchange: Arc<dyn Exchange>,
    /// The node in its network.
    pub network: Arc<dyn Network>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// From the rows: not found, quota, busy, and so on.
    #[error(transparent)]
    Records(#[from] floe_records::Error),
    /// From the block store.
    #[error(transparent)]
    Blocks(#[from] floe_blockstore::Error),
    /// The store is read-only for lack of disk space: 507.
    #[error("the disk is under its reserve: new pins are refused until there is space again")]
    ReadOnly,
    /// The engine is shutting down.
    #[error("shutting down")]
    Stopping,
}

/// The engine. Cheap to clone.
#[derive(Clone)]
pub struct Engine {}

/// What `floe status` shows.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Status {
    /// Pins by status.
    pub pins: std::collections::BTreeMap<floe_core::PinStatus, u64>,
    /// Live blocks.
    pub blocks: u64,
    /// Their bytes.
    pub stored_bytes: u64,
    /// Free bytes on the volume.
    pub disk_free_bytes: u64,
    /// Whether new pins are refused for lack of space.
    pub read_only: bool,
    /// The network.
    pub network: NetworkStatus,
    /// Background workers: name, state, last error, queue length.
    pub workers: Vec<WorkerStatus>,
}

/// A background worker, as an operator sees it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct WorkerStatus {
    /// Its name.
    pub name: &'static str,
    /// What it does now.
    pub state: String,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
    /// Work waiting.
    pub queue: u64,
}

/// A stream of a pin's states: the current one first, then each change; ends after pinned, failed or removed.
pub type PinEvents = futures::stream::BoxStream<'static, PinEventItem>;

/// An item of [`PinEvents`].
#[derive(Debug, Clone)]
pub enum PinEventItem {
    /// The pin now.
    Status(Box<PinRow>),
    /// It was removed or replaced.
    Removed,
}

impl Engine {
    /// Resumes what a crash left and starts the workers.
    pub async fn start(_settings: Settings, _components: Components) -> Result<Self, Error> {
        todo!()
    }
    /// Adds pins: all or none, durable on return.
    pub async fn add_pins(
        &self,
        _who: &Principal,
        _specs: Vec<PinSpec>,
        _local_request: bool,
        _key: Option<IdempotencyKey>,
    ) -> Result<Vec<PinRow>, Error> {
        todo!()
    }
    /// Replaces a pin.
    pub async fn replace_pin(
        &self,
        _who: &Principal,
        _old: RequestId,
        _spec: PinSpec,
        _local_request: bool,
        _key: Option<IdempotencyKey>,
    ) -> Result<PinRow, Error> {
        todo!()
    }
    /// Removes a pin.
    pub async fn remove_pin(&self, _who: &Principal, _id: RequestId) -> Result<(), Error> {
        todo!()
    }
    /// One pin.
    pub async fn pin(&self, _who: &Principal, _id: RequestId) -> Result<PinRow, Error> {
        todo!()
    }
    /// A page of pins.
    pub async fn pins(&self, _who: &Principal, _filter: PinFilter) -> Result<PinPage, Error> {
        todo!()
    }
    /// Follows a pin.
    pub async fn watch_pin(&self, _who: &Principal, _id: RequestId) -> Result<PinEvents, Error> {
        todo!()
    }
    /// Addresses for `delegates`.
    pub fn delegates(&self, _local_request: bool) -> Vec<String> {
        todo!()
    }
    /// Who has this token.
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
    /// Makes a token; the secret is shown once.
    pub async fn create_token(
        &self,
        _account: &str,
        _scopes: &[Scope],
        _expires_in: Option<Duration>,
    ) -> Result<(Token, String), Error> {
        todo!()
    }
    /// Tokens of one account or all.
    pub async fn tokens(&self, _account: Option<&str>) -> Result<Vec<Token>, Error> {
        todo!()
    }
    /// Revokes a token.
    pub async fn revoke_token(&self, _id: TokenId) -> Result<(), Error> {
        todo!()
    }
    /// Collects what nothing references, and says what was freed.
    pub async fn collect(&self) -> Result<GcReport, Error> {
        todo!()
    }
    /// Scrubs; damaged blocks are fetched again where a peer has them.
    pub async fn verify(&self) -> Result<VerifyReport, Error> {
        todo!()
    }
    /// Figures.
    pub async fn status(&self) -> Result<Status, Error> {
        todo!()
    }
    /// Whether the stores can take writes, for `/readyz`: `Err` says why not.
    pub async fn ready(&self) -> Result<(), String> {
        todo!()
    }
    /// Completes when a sync has failed and the process must end, with the reason.
    pub async fn poisoned(&self) -> String {
        todo!()
    }
    /// Stops the workers; they save their place. Idempotent.
    pub async fn stop(&self) {
        todo!()
    }
}

/// What `floe verify` prints.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub struct VerifyReport {
    /// Blocks read.
    pub blocks: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Damaged or missing blocks, by multihash, and the pins that hold them.
    pub damaged: Vec<DamagedBlock>,
    /// Of these, how many were fetched again.
    pub repaired: u64,
}

/// A damaged or missing block.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DamagedBlock {
    /// CID v1 raw of the multihash.
    pub cid: String,
    /// Whether it was fetched again.
    pub repaired: bool,
    /// `(account, request id)` of pins that hold it.
    pub pins: Vec<(i64, RequestId)>,
}
