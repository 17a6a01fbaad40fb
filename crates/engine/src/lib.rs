//! What happens next, and when to try again.
//!
//! The engine joins the stores (rows and blocks) with the world outside (exchange and network, behind the ports
//! of `floe_core`). It names neither the swarm nor HTTP, so the simulator can drive it as it is.
//!
//! # The life of a pin
//! 1. [`Engine::add_pins`] commits the rows. From then on the pin survives anything.
//! 2. `fetcher` claims what is due and fair, and runs one `fetch` per DAG: a walk that asks the block store what
//!    is here and the exchange for what is not.
//! 3. The walk's end is one transaction: statuses, charges, and the follow-ups that `outbox` then does
//!    (announce, release).
//! 4. What cannot be found is parked and woken by `events`; what is spoilt is mended by `scrubber`
//!    and `healer`.
//!
//! # Crash and stop
//! Nothing here is the only copy of anything: `recovery` compares rows and manifests at start and goes on.
//! [`Engine::stop`] lets the fetches save their place. Dropping the last [`Engine`] without it ends the tasks
//! where they are, which is what a crash does.
//!
//! # What it is not
//! It holds no locks across the stores and no state that a row does not have; it decides nothing about
//! fairness or quota (the rows do), nor about peers (the exchange does).

mod backoff;
pub mod cold;
mod context;
mod events;
mod fetch;
mod fetcher;
mod healer;
mod limits;
mod outbox;
mod recovery;
mod scrubber;
mod watch;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use floe_core::cid::canonical;
use floe_core::ports::{Entropy, Exchange, Network, NetworkStatus, Origins};
use floe_core::{Clock, RequestId, TokenId};
use tokio::task::JoinSet;

pub use floe_blockstore::{Error as BlocksError, GcReport, ScrubReport};
pub use floe_records::limits::{CIDS_PER_FILTER, KEY_BYTES, PAGE, PINS_PER_REQUEST};
pub use floe_records::{
    Account, Bounds, DEFAULT_ACCOUNT, DagProgress, Error as RecordsError, Grant, IdempotencyKey, NameMatch,
    PinFilter, PinPage, PinRow, PinSpec, Principal, Quota, Scope, Token,
};
pub use scrubber::{DamagedBlock, IncompleteDag, VerifyReport};
pub use watch::{PinEventItem, PinEvents};
pub use workers::WorkerStatus;

use crate::context::Context;
use crate::fetch::Control;

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
    /// The cold half.
    pub cold: cold::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            give_up_after: Duration::from_secs(24 * 3600),
            max_blocks: 100_000_000,
            max_bytes: None,
            max_depth: 1_000_000,
            cold: cold::Settings::default(),
        }
    }
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
    /// Chain and providers; `None` where no node of Filecoin is configured: pins wait for one.
    pub cold: Option<cold::Components>,
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
    /// No Filecoin node, or no wallet, is configured.
    #[error(
        "no Filecoin node and wallet are configured: set filecoin.api, and make a wallet with `floe wallet new`"
    )]
    NoFilecoin,
    /// The Filecoin node, or the wallet, does not do it.
    #[error(transparent)]
    Filecoin(floe_core::cold::Fault),
    /// The engine is shutting down.
    #[error("shutting down")]
    Stopping,
}

/// The engine. Cheap to clone; when the last clone goes, so do its tasks.
#[derive(Clone)]
pub struct Engine {
    ctx: Arc<Context>,
    /// `None` where no node of Filecoin is configured.
    dealing: Option<Arc<cold::Dealing>>,
    tasks: Arc<tokio::sync::Mutex<JoinSet<()>>>,
}

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
    /// Pieces, deals and money; `None` where nothing goes to Filecoin.
    pub cold: Option<cold::ColdStatus>,
}

impl Engine {
    /// Resumes what a crash left and starts the workers.
    ///
    /// # Errors
    /// From the stores, where they cannot be compared.
    pub async fn start(settings: Settings, components: Components) -> Result<Self, Error> {
        let ctx = Arc::new(Context::new(settings, components));
        let dealing = cold::dealing(&ctx).await?;
        let leftovers = recovery::recover(&ctx).await?;
        // Subscribed before the roots are parked: an answer must find a listener.
        let events = events::subscribe(&ctx);
        events::park_again(&ctx).await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(events::run(Arc::clone(&ctx), events));
        tasks.spawn(outbox::run(Arc::clone(&ctx)));
        tasks.spawn(scrubber::run(Arc::clone(&ctx)));
        tasks.spawn(healer::run(Arc::clone(&ctx)));
        tasks.spawn(cold::aggregator::run(Arc::clone(&ctx), dealing.clone()));
        tasks.spawn(fetcher::run(Arc::clone(&ctx), leftovers));
        if let Some(dealing) = &dealing {
            cold::spawn(dealing, &mut tasks);
        }
        Ok(Self { ctx, dealing, tasks: Arc::new(tokio::sync::Mutex::new(tasks)) })
    }

    /// What a request with this key was answered, if it was. Asked before anything that may refuse a new request, also
    /// while the disk is full and while the engine stops. `specs` are those of the retry, whatever their policy.
    ///
    /// # Errors
    /// [`floe_records::Error::KeyReused`] where the key came with another body.
    pub async fn answer_of(
        &self,
        who: &Principal,
        specs: Vec<PinSpec>,
        local_request: bool,
        key: IdempotencyKey,
    ) -> Result<Option<Vec<PinRow>>, Error> {
        Ok(self.ctx.records.answer_of(who.account.id, specs, local_request, key).await?)
    }

    /// Adds pins: all or none, durable on return. Dropping the future leaves it open whether they were added; if they
    /// were, they are fetched at once all the same.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] without disk space; [`Error::Records`] for quota, a full queue, a reused key.
    pub async fn add_pins(
        &self,
        who: &Principal,
        specs: Vec<PinSpec>,
        local_request: bool,
        key: Option<IdempotencyKey>,
    ) -> Result<Vec<PinRow>, Error> {
        self.takes_writes()?;
        let (ctx, account) = (Arc::clone(&self.ctx), who.account.id);
        to_its_end(async move {
            let rows = ctx.records.add_pins(account, specs, local_request, key).await.map_err(no_space)?;
            for row in &rows {
                on_added(&ctx, row).await;
            }
            Ok(rows)
        })
        .await
    }

    /// Replaces a pin. The old one is gone on return; its blocks stay until the new one is pinned. Dropping the
    /// future is as for [`Engine::add_pins`].
    ///
    /// # Errors
    /// As [`Engine::add_pins`], and [`floe_records::Error::NotFound`].
    pub async fn replace_pin(
        &self,
        who: &Principal,
        old: RequestId,
        spec: PinSpec,
        local_request: bool,
        key: Option<IdempotencyKey>,
    ) -> Result<PinRow, Error> {
        self.takes_writes()?;
        let (ctx, account) = (Arc::clone(&self.ctx), who.account.id);
        to_its_end(async move {
            let before = ctx.records.pin(account, old).await.ok();
            let replaced = ctx.records.replace_pin(account, old, spec, local_request, key).await;
            let row = replaced.map_err(no_space)?;
            on_removed(&ctx, old, before);
            on_added(&ctx, &row).await;
            Ok(row)
        })
        .await
    }

    /// Removes a pin, also while it is being fetched. Goes on without disk space.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`].
    pub async fn remove_pin(&self, who: &Principal, id: RequestId) -> Result<(), Error> {
        let (ctx, account) = (Arc::clone(&self.ctx), who.account.id);
        to_its_end(async move {
            let before = ctx.records.pin(account, id).await?;
            ctx.records.remove_pin(account, id).await?;
            on_removed(&ctx, id, Some(before));
            Ok(())
        })
        .await
    }

    /// One pin.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`], also for another account's pin.
    pub async fn pin(&self, who: &Principal, id: RequestId) -> Result<PinRow, Error> {
        Ok(self.ctx.records.pin(who.account.id, id).await?)
    }

    /// A page of pins.
    ///
    /// # Errors
    /// [`floe_records::Error::Deadline`] where a scan took too long.
    pub async fn pins(&self, who: &Principal, filter: PinFilter) -> Result<PinPage, Error> {
        Ok(self.ctx.records.pins(who.account.id, filter).await?)
    }

    /// Follows a pin, for as long as the token holds.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`], or [`floe_records::Error::Busy`] where too many follow.
    pub async fn watch_pin(&self, who: &Principal, id: RequestId) -> Result<PinEvents, Error> {
        watch::watch(Arc::clone(&self.ctx), who.account.id, who.token, id).await
    }

    /// What can be asked for: `[policy.<name>]` by name.
    pub fn policies(&self) -> &std::collections::BTreeMap<String, floe_core::Policy> {
        &self.ctx.settings.cold.policies
    }

    /// Addresses for `delegates`.
    pub fn delegates(&self, local_request: bool) -> Vec<String> {
        self.ctx.network.delegates(local_request)
    }

    /// Who has this token; `None` for one that is unknown, expired or revoked.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn authenticate(&self, token: &str) -> Result<Option<Principal>, Error> {
        Ok(self.ctx.records.authenticate(token).await?)
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`floe_records::Error::Conflict`] where the name is taken.
    pub async fn create_account(
        &self,
        name: &str,
        max_bytes: Option<u64>,
        max_pins: Option<u64>,
    ) -> Result<Account, Error> {
        Ok(self.ctx.records.create_account(name, max_bytes, max_pins).await?)
    }

    /// Makes an account with these bounds.
    ///
    /// # Errors
    /// As [`Engine::create_account`].
    pub async fn create_bounded_account(&self, name: &str, bounds: Bounds) -> Result<Account, Error> {
        Ok(self.ctx.records.create_bounded_account(name, bounds).await?)
    }

    /// All accounts.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn accounts(&self) -> Result<Vec<Account>, Error> {
        Ok(self.ctx.records.accounts().await?)
    }

    /// Changes an account's bounds; its pins stay, whatever they are.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`].
    pub async fn set_quota(&self, name: &str, quota: Quota) -> Result<Account, Error> {
        Ok(self.ctx.records.set_quota(name, quota).await?)
    }

    /// Suspends an account, or lifts it.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`].
    pub async fn suspend_account(&self, name: &str, suspended: bool) -> Result<(), Error> {
        Ok(self.ctx.records.suspend_account(name, suspended).await?)
    }

    /// Makes a token; the secret is shown once.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`] for the account, [`floe_records::Error::Conflict`] for too many.
    pub async fn create_token(
        &self,
        account: &str,
        scopes: &[Scope],
        expires_in: Option<Duration>,
    ) -> Result<(Token, String), Error> {
        Ok(self.ctx.records.create_token(account, scopes, expires_in).await?)
    }

    /// Makes a token that is given all of this. Its policy must be one of [`Engine::policies`].
    ///
    /// # Errors
    /// As [`Engine::create_token`].
    pub async fn grant_token(&self, account: &str, grant: Grant) -> Result<(Token, String), Error> {
        Ok(self.ctx.records.grant_token(account, grant).await?)
    }

    /// Tokens of one account or all.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`] for the account.
    pub async fn tokens(&self, account: Option<&str>) -> Result<Vec<Token>, Error> {
        Ok(self.ctx.records.tokens(account).await?)
    }

    /// Revokes a token.
    ///
    /// # Errors
    /// [`floe_records::Error::NotFound`].
    pub async fn revoke_token(&self, id: TokenId) -> Result<(), Error> {
        Ok(self.ctx.records.revoke_token(id).await?)
    }

    /// Collects what nothing references, and says what was freed: first the releases that are due, then the
    /// store's own work. Returns when the space is free.
    ///
    /// # Errors
    /// [`Error::Blocks`].
    pub async fn collect(&self) -> Result<GcReport, Error> {
        if let Err(error) = outbox::drain(&self.ctx).await {
            tracing::warn!(error, "collecting while follow-up work is stuck: {error}");
        }
        Ok(self.ctx.blocks.collect().await?)
    }

    /// The same, after DAGs were released that are stored and that no row names: an older `rows.sqlite` leaves these,
    /// and nothing else frees them.
    ///
    /// # Errors
    /// [`Error::Blocks`], [`Error::Records`].
    pub async fn collect_orphans(&self) -> Result<GcReport, Error> {
        recovery::release_orphans(&self.ctx).await?;
        self.collect().await
    }

    /// Scrubs; damaged blocks are fetched again where a peer has them.
    ///
    /// # Errors
    /// [`Error::Blocks`].
    pub async fn verify(&self) -> Result<VerifyReport, Error> {
        scrubber::verify(&self.ctx).await
    }

    /// Figures.
    ///
    /// # Errors
    /// [`Error::Records`].
    pub async fn status(&self) -> Result<Status, Error> {
        let store = self.ctx.blocks.stats();
        Ok(Status {
            pins: self.ctx.records.pin_counts().await?,
            blocks: store.blocks,
            stored_bytes: store.bytes,
            disk_free_bytes: store.disk_free,
            read_only: store.read_only,
            network: self.ctx.network.status(),
            workers: self.ctx.board.all(),
            cold: self.cold_status().await?,
        })
    }

    /// Whether the stores can take writes, for `/readyz`: `Err` says why not.
    ///
    /// # Errors
    /// What stands in the way. Its words may name files of this machine.
    pub async fn ready(&self) -> Result<(), Error> {
        self.takes_writes()?;
        self.ctx.records.pin_counts().await?;
        Ok(())
    }

    /// Completes when a sync has failed and the process must end, with the reason.
    pub async fn poisoned(&self) -> String {
        tokio::select! {
            biased;
            reason = self.ctx.blocks.poisoned() => format!("block store: {reason}"),
            reason = self.ctx.records.poisoned() => format!("rows: {reason}"),
        }
    }

    /// Stops the workers; they save their place. Idempotent. The stores stay open: whoever opened them closes
    /// them.
    pub async fn stop(&self) {
        self.ctx.stop.cancel();
        let mut tasks = self.tasks.lock().await;
        while let Some(ended) = tasks.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "a worker panicked");
            }
        }
    }

    fn takes_writes(&self) -> Result<(), Error> {
        if self.ctx.stop.is_cancelled() {
            return Err(Error::Stopping);
        }
        if self.ctx.blocks.is_read_only() {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }
}

/// Runs a change to its end, also where its caller goes away: a client that hangs up drops the future of its request,
/// and what was committed for it must not wait for the next poll (30 s) until somebody hears of it. As many run at a
/// time as there are requests whose writes are queued, which is bounded.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    match tokio::spawn(change).await {
        Ok(done) => done,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime shuts down.
            Err(_) => Err(Error::Stopping),
        },
    }
}

/// Lets a new pin's fetch begin, or hear of more origins, at once.
async fn on_added(ctx: &Context, row: &PinRow) {
    if row.status.is_settled() {
        return;
    }
    let origins = Origins { addresses: row.spec.origins.clone(), local_request: row.local_request };
    let more = Control::Origins(origins);
    if ctx.running.tell(row.dag, more) {
        return;
    }
    if row.progress.next_attempt.is_some() {
        // Parked for an earlier pin. Its owner asks anew, so look anew. The pin is durable: that this fails must
        // not make the answer an error.
        if let Err(error) = ctx.records.wake(None, Some(&canonical(&row.spec.cid))).await {
            tracing::warn!(%error, "a parked pin waits for its time");
        }
    }
    ctx.fetch_due.notify_one();
}

fn on_removed(ctx: &Context, id: RequestId, before: Option<PinRow>) {
    ctx.changes.pin(id);
    if let Some(row) = before {
        ctx.running.tell(row.dag, Control::Check);
    }
    ctx.jobs_due.notify_one();
}

/// A full disk under the rows is the same news as one under the blocks.
fn no_space(error: floe_records::Error) -> Error {
    match error {
        floe_records::Error::Full => Error::ReadOnly,
        other => other.into(),
    }
}
