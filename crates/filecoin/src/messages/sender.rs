//! Signs, pushes, follows and replaces messages: one attempt for each call, every outcome in the journal.

use std::sync::Arc;

use floe_core::cold::is_operators;

use super::journal::{Entry, Journal, JournalError, Progress, Version};
use crate::chain::View;
use crate::limits::{MAX_FOREIGN_TEXT, MAX_UNCONFIRMED, REPUSH_EVERY};
use crate::rpc::answers::MessageLookup;
use crate::rpc::{Fault, Lotus, RpcError};
use crate::signer::{SignError, Signer};
use crate::types::{AttoFil, Epoch, Message, SignedMessage, TipSetKey};

/// The most gas that a block has room for: a message with a higher limit can never run.
const BLOCK_GAS_LIMIT: u64 = 10_000_000_000;
/// A message that is missing is searched while it is younger than so many times finality: each search goes back to when it
/// was signed, and what no node has found by then was another's number.
const SEARCHED_FOR: i64 = 4;
/// Epochs that the search goes beyond what is known; twice this is what a gateway permits.
const SEARCH_SLACK: i64 = 10;

/// Why a message is not on its way. Where the error is not one of the journal or of signing, what was signed stays in
/// the journal and goes on.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The node gave nothing, before anything was signed.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// Nothing was signed.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The journal failed: nothing was pushed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It would cost more gas than is permitted.
    #[error("the message may cost {fee} attoFIL of gas, and {cap} are permitted")]
    FeeOverCap {
        /// What it may cost.
        fee: AttoFil,
        /// What is permitted.
        cap: AttoFil,
    },
    /// The node's estimate is for another message, or makes no sense.
    #[error("the node's gas estimate cannot be used: {0}")]
    BadEstimate(&'static str),
    /// The node expects a later number than we know of.
    #[error(
        "the node expects nonce {node} from {from}, and this Floe's next is {own}: another program spends from this \
         key, or the journal is of an old backup; spending waits until the chain is final up to there"
    )]
    NonceAhead {
        /// Whose.
        from: String,
        /// Ours.
        own: u64,
        /// The node's.
        node: u64,
    },
    /// No open message has this intent.
    #[error("no open message has the intent {0:?}")]
    Unknown(String),
}

/// What may be spent on gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderSettings {
    /// The most attoFIL of gas for one message, replacements included. 0 permits nothing.
    pub max_fee: AttoFil,
}

/// A message that is settled or on the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Landed {
    /// Of which intent.
    pub intent: String,
    /// How far it is now.
    pub progress: Progress,
}

/// Sends for one wallet. One for each wallet: see the module.
pub struct Sender {
    lotus: Lotus,
    signer: Arc<dyn Signer>,
    journal: Arc<dyn Journal>,
    settings: SenderSettings,
    // Between "which number is next" and "it is taken" nobody else may ask.
    turn: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sender({})", self.signer.address())
    }
}

impl Sender {
    /// Sends through `lotus` with the key of `signer`.
    pub fn new(
        lotus: Lotus,
        signer: Arc<dyn Signer>,
        journal: Arc<dyn Journal>,
        settings: SenderSettings,
    ) -> Self {
        Self { lotus, signer, journal, settings, turn: tokio::sync::Mutex::new(()) }
    }

    /// Signs `call` for `intent` and pushes it; for an intent that has a message, gives that one and does nothing. `Ok`
    /// says that it is written down, and [`Entry::progress`] how far it came: a lost reply or a refusal is no error here,
    /// because the bytes are out.
    ///
    /// Dropping the future is safe: what was written down goes on with the next [`Sender::tick`].
    ///
    /// # Errors
    /// [`MessageError`]: nothing was signed, or nothing was pushed.
    pub async fn send(&self, intent: &str, call: &Message, view: &View) -> Result<Entry, MessageError> {
        let _turn = self.turn.lock().await;
        if let Some(entry) = self.journal.find(intent).await? {
            return Ok(entry);
        }
        let from = self.signer.address();
        let mut call = call.clone();
        (call.from, call.nonce) = (from, self.next_nonce(view).await?);
        let message = self.estimated(&call, view).await?;
        let version = Version { message: self.signed(message).await?, pushed_at: None };
        let entry = Entry {
            intent: intent.to_owned(),
            from,
            nonce: call.nonce,
            versions: vec![version],
            progress: Progress::Signed,
            since: view.head.height,
        };
        self.journal.add(&entry).await?;
        self.push(&entry, view).await?;
        self.reread(intent).await
    }

    /// Looks after every message that is not settled: searches it, pushes again what is not there where `may_send` or
    /// where it is the operator's, and says what changed. Call it once an epoch.
    ///
    /// # Errors
    /// [`MessageError`]; what was done before it stays done.
    pub async fn tick(&self, view: &View, may_send: bool) -> Result<Vec<Landed>, MessageError> {
        let _turn = self.turn.lock().await;
        let mut landed = Vec::new();
        for entry in self.journal.unsettled(self.signer.address()).await? {
            let may_send = may_send || is_operators(&entry.intent);
            let progress = self.follow(&entry, view, may_send).await?;
            if progress != entry.progress {
                landed.push(Landed { intent: entry.intent, progress });
            }
        }
        Ok(landed)
    }

    /// Signs the same call anew with the same number and a higher fee, within the cap and what is `reserved` for it, and
    /// pushes it.
    ///
    /// # Errors
    /// [`MessageError`]; [`MessageError::FeeOverCap`] where neither permits another tenth.
    pub async fn replace(&self, intent: &str, view: &View, reserved: AttoFil) -> Result<Entry, MessageError> {
        let _turn = self.turn.lock().await;
        let open = self.journal.find(intent).await?.filter(|entry| !entry.progress.is_settled());
        let Some((entry, last)) =
            open.and_then(|entry| entry.versions.last().cloned().map(|last| (entry, last)))
        else {
            return Err(MessageError::Unknown(intent.to_owned()));
        };
        let old = &last.message.message;
        // What gas costs now, where the node says so; the message itself may not be estimated again, because the pool
        // counts the old one already.
        let base = view.head.base_fee.checked_mul(2).unwrap_or(old.gas_fee_cap);
        let (premium, fee_cap) =
            replacement_fees(old, base).ok_or(MessageError::BadEstimate("its fees overflow"))?;
        let message = Message { gas_premium: premium, gas_fee_cap: fee_cap, ..old.clone() };
        check_fee(&message, reserved.min(self.settings.max_fee))?;
        let version = Version { message: self.signed(message).await?, pushed_at: None };
        self.journal.add_version(intent, &version).await?;
        self.push(&self.reread(&entry.intent).await?, view).await?;
        self.reread(intent).await
    }

    async fn reread(&self, intent: &str) -> Result<Entry, MessageError> {
        self.journal.find(intent).await?.ok_or_else(|| MessageError::Unknown(intent.to_owned()))
    }

    /// Ours, or the chain's where it is further for good.
    async fn next_nonce(&self, view: &View) -> Result<u64, MessageError> {
        let from = self.signer.address();
        let node = self.lotus.mpool_nonce(&from).await?;
        let Some(own) = self.journal.next_nonce(from).await? else {
            return self.first_nonce(node, view).await;
        };
        if node <= own {
            return Ok(own);
        }
        let chain = self.lotus.actor(&from, &view.last_final.key).await?.map_or(0, |actor| actor.nonce);
        if node > own.max(chain) {
            return Err(MessageError::NonceAhead { from: from.to_string(), own, node });
        }
        Ok(own.max(chain))
    }

    /// The node's, for the first message of this key here, where it fits what the chain has: a number that is far ahead
    /// would hang behind a gap that nobody fills, and one that is taken could be somebody's payment.
    async fn first_nonce(&self, node: u64, view: &View) -> Result<u64, MessageError> {
        let from = self.signer.address();
        let chain = self.lotus.actor(&from, &view.head.key).await?.map_or(0, |actor| actor.nonce);
        let most = chain.saturating_add(MAX_UNCONFIRMED as u64);
        if !(chain..=most).contains(&node) {
            return Err(MessageError::NonceAhead { from: from.to_string(), own: chain, node });
        }
        Ok(node)
    }

    /// `call` with gas; nothing else of it may have changed.
    async fn estimated(&self, call: &Message, view: &View) -> Result<Message, MessageError> {
        let cap = self.settings.max_fee;
        if cap.is_zero() {
            return Err(MessageError::FeeOverCap { fee: AttoFil::ZERO, cap });
        }
        let message = self.lotus.estimate_gas(call, cap).await?;
        if !message.same_call(call) || message.nonce != call.nonce {
            return Err(MessageError::BadEstimate("it is for another message"));
        }
        if message.gas_limit == 0 || message.gas_limit > BLOCK_GAS_LIMIT {
            return Err(MessageError::BadEstimate("its gas limit is 0 or more than a block has"));
        }
        if message.gas_premium > message.gas_fee_cap {
            return Err(MessageError::BadEstimate("its premium is above its fee cap"));
        }
        check_fee(&message, cap)?;
        // Where the cap is too low the node does not refuse: it cuts the fee, and no block takes such a message.
        if message.gas_fee_cap < view.head.base_fee {
            let fee = view.head.base_fee.checked_mul(u128::from(message.gas_limit));
            let fee = fee.ok_or(MessageError::BadEstimate("its fee overflows"))?;
            return Err(MessageError::FeeOverCap { fee, cap });
        }
        Ok(message)
    }

    async fn signed(&self, message: Message) -> Result<SignedMessage, MessageError> {
        let signature = self.signer.sign(&message.cid().to_bytes()).await?;
        Ok(SignedMessage { message, signature })
    }

    /// Pushes the last version and writes down what came of it.
    async fn push(&self, entry: &Entry, view: &View) -> Result<Progress, MessageError> {
        let Some(last) = entry.versions.last() else { return Ok(entry.progress.clone()) };
        let progress = match self.lotus.mpool_push(&last.message).await {
            Ok(cid) if cid == last.message.cid() => Progress::Pooled,
            Ok(_) => Progress::Refused { reason: "the node answered with the CID of another message".into() },
            Err(error) => match error.fault() {
                Some(Fault::NonceExists) => Progress::Pooled,
                // Some version of it is on the chain, or another message is: the search says which.
                Some(Fault::NonceTooLow) => Progress::Signed,
                // The pool holds an earlier version that pays nearly as much.
                Some(Fault::PremiumTooLow) if entry.versions.len() > 1 => Progress::Pooled,
                _ if error.is_lost_reply() => Progress::Signed,
                _ => Progress::Refused { reason: error.to_string().chars().take(MAX_FOREIGN_TEXT).collect() },
            },
        };
        if let Progress::Refused { reason } = &progress {
            tracing::warn!(
                intent = entry.intent,
                nonce = entry.nonce,
                "the node refuses a message, which is pushed again later: {reason}"
            );
        }
        self.journal.pushed(&entry.intent, view.head.height, &progress).await?;
        Ok(progress)
    }

    async fn follow(&self, entry: &Entry, view: &View, may_send: bool) -> Result<Progress, MessageError> {
        if entry.progress == Progress::Missing && is_given_up(entry, view) {
            return Ok(Progress::Missing);
        }
        if let Some((version, found)) = self.search(entry, view).await? {
            let height = found.height;
            let is_final = height <= view.last_final.height;
            let progress = if is_final {
                Progress::Final { version, height, exit_code: found.receipt.exit_code }
            } else {
                Progress::Included { version, height }
            };
            if progress != entry.progress {
                self.journal.progress(&entry.intent, &progress).await?;
            }
            return Ok(progress);
        }
        if self.is_passed(entry, view).await? {
            if entry.progress != Progress::Missing {
                self.journal.progress(&entry.intent, &Progress::Missing).await?;
            }
            return Ok(Progress::Missing);
        }
        let due = entry.versions.last().and_then(|last| last.pushed_at);
        let due = due.is_none_or(|at| view.head.height.since(at) >= REPUSH_EVERY);
        // What a reorg took off the chain may have left the pool too.
        if may_send && (due || matches!(entry.progress, Progress::Included { .. })) {
            return self.push(entry, view).await;
        }
        Ok(entry.progress.clone())
    }

    /// Any version on the chain. The node's answer must be about the message that was asked for.
    async fn search(
        &self,
        entry: &Entry,
        view: &View,
    ) -> Result<Option<(usize, MessageLookup)>, MessageError> {
        let (from, lookback) = self.search_range(entry, view).await?;
        for (index, version) in entry.versions.iter().enumerate().rev() {
            let (unsigned, signed) = (version.message.message.cid(), version.message.cid());
            let found = self.lotus.search_message(&from, &signed, lookback).await?;
            let plausible = |found: &MessageLookup| {
                (found.message == signed || found.message == unsigned)
                    && found.height > Epoch::new(0)
                    && found.height <= view.head.height
            };
            if let Some(found) = found.filter(plausible) {
                return Ok(Some((index, found)));
            }
        }
        Ok(None)
    }

    /// Where the search begins and how far back it goes. Where the height is known it is searched around there: a gateway
    /// looks back only 20 epochs, and finality is 900.
    async fn search_range(&self, entry: &Entry, view: &View) -> Result<(TipSetKey, i64), MessageError> {
        if let Progress::Included { height, .. } = entry.progress
            && height.plus(SEARCH_SLACK) < view.head.height
        {
            let above = self.lotus.tipset_at(height.plus(SEARCH_SLACK), &view.head.key).await?;
            return Ok((above.key, 2 * SEARCH_SLACK));
        }
        let since = i64::try_from(view.head.height.since(entry.since)).unwrap_or(i64::MAX);
        Ok((view.head.key.clone(), since.saturating_add(SEARCH_SLACK)))
    }

    /// Whether the chain is past this number for good.
    async fn is_passed(&self, entry: &Entry, view: &View) -> Result<bool, MessageError> {
        let actor = self.lotus.actor(&entry.from, &view.last_final.key).await?;
        Ok(actor.is_some_and(|actor| actor.nonce > entry.nonce))
    }
}

fn check_fee(message: &Message, cap: AttoFil) -> Result<(), MessageError> {
    match message.max_fee() {
        Some(fee) if fee <= cap => Ok(()),
        Some(fee) => Err(MessageError::FeeOverCap { fee, cap }),
        None => Err(MessageError::BadEstimate("its fee overflows")),
    }
}

/// Whether a missing message is searched no more.
fn is_given_up(entry: &Entry, view: &View) -> bool {
    let finality = view.head.height.since(view.last_final.height);
    view.head.height.since(entry.since) > finality.saturating_mul(SEARCHED_FOR.unsigned_abs())
}

/// Premium and fee cap of a replacement: the premium a tenth and one more, or the pool refuses it; the cap no lower than
/// before, with room for `base`.
fn replacement_fees(old: &Message, base: AttoFil) -> Option<(AttoFil, AttoFil)> {
    let premium = AttoFil::new(old.gas_premium.checked_mul(11)?.get() / 10);
    let premium = premium.checked_add(AttoFil::new(1))?;
    let raised = premium.checked_sub(old.gas_premium)?.checked_add(old.gas_fee_cap)?;
    Some((premium, raised.max(premium.checked_add(base)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Address;

    /// The recorded pool asked for exactly this: `increase GasPremium to 110562 from 100510`.
    #[test]
    fn a_replacement_pays_what_the_pool_asks_for() {
        let mut old = Message::new(Address::Id(1), Address::Id(2), AttoFil::ZERO, 0, Vec::new());
        old.gas_premium = AttoFil::new(100_510);
        old.gas_fee_cap = AttoFil::new(101_564);
        let (premium, cap) = replacement_fees(&old, AttoFil::new(200)).unwrap();
        assert_eq!(premium, AttoFil::new(110_562));
        assert_eq!(cap, AttoFil::new(111_616));
        let (_, cap) = replacement_fees(&old, AttoFil::new(1_000_000)).unwrap();
        assert_eq!(cap, AttoFil::new(1_110_562), "the base fee rose");
        old.gas_premium = AttoFil::new(u128::MAX / 2);
        assert_eq!(replacement_fees(&old, AttoFil::ZERO), None);
    }
}
