//! The ports of the cold half: what the engine needs of the chain and of storage providers.
//!
//! ```text
//!   engine ── Chain ───> a Lotus node (`floe-filecoin`), or a chain of a test's own
//!      │  └── Market ──> storage providers over HTTP or libp2p (`floe-filecoin`), or a test's own
//!      └───── Proposer ─> who holds the key: builds a proposal from its terms, and signs it once
//! ```
//!
//! Each call is one attempt with a typed error. What to do about it, when to try again and what may be spent is the
//! engine's. Bytes that were signed pass through as they are ([`SignedDeal`]): only the adapter knows what is in them,
//! and nobody makes them a second time.

use std::collections::BTreeMap;

use crate::Cid;
use crate::clock::BoxFuture;
use crate::failure::FailureCode;
use crate::ids::ActorId;
use crate::piece::{PaddedSize, PieceCid};
use crate::place::Ask;
use crate::units::{AttoFil, Epoch};

/// The id of one deal: what the provider and Floe call it before the chain has a number for it. It is derived from wallet,
/// piece, slot and generation, so the same attempt has the same id after a restored backup too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DealUuid(pub uuid::Uuid);

impl DealUuid {
    /// The id of an attempt: the `generation`th for a replica's `slot` of a piece, from this wallet.
    pub fn of_attempt(wallet: &str, piece: &PieceCid, slot: u32, generation: u32) -> Self {
        let mut hash = blake3::Hasher::new_derive_key("floe core 1 deal uuid");
        hash.update(&(wallet.len() as u64).to_le_bytes()).update(wallet.as_bytes());
        hash.update(piece.commitment());
        hash.update(&slot.to_le_bytes()).update(&generation.to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finalize().as_bytes()[..16]);
        // Version 8, which is for ids of one's own making: some readers refuse what has no version.
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

impl std::str::FromStr for DealUuid {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        uuid::Uuid::parse_str(text).map(Self)
    }
}

impl std::fmt::Display for DealUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Something outside did not work: which class of the taxonomy it is, and what was said, cut to a bounded length.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Fault {
    /// The class.
    pub code: FailureCode,
    /// The raw words.
    pub text: String,
}

impl Fault {
    /// Characters of a foreign text that are kept: it goes into rows, logs and answers.
    pub const MAX_TEXT: usize = 1_024;

    /// A fault with its text cut to [`Fault::MAX_TEXT`].
    pub fn new(code: FailureCode, text: impl AsRef<str>) -> Self {
        Self { code, text: text.as_ref().chars().take(Self::MAX_TEXT).collect() }
    }
}

/// The chain at the last look: the head, which may be undone, and the last epoch that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainView {
    /// Height of the newest tipset.
    pub head: Epoch,
    /// Height of the newest tipset that is final.
    pub last_final: Epoch,
}

/// A provider, as the chain has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainProvider {
    /// Who owns it: replicas of one piece go to distinct owners.
    pub owner: ActorId,
    /// Its peer id, as text; `None` where it does not say.
    pub peer_id: Option<String>,
    /// Its addresses as multiaddrs in text. Often none, and a stranger's word.
    pub addresses: Vec<String>,
    /// Bytes of its sectors: no piece is larger.
    pub sector_bytes: u64,
}

/// What the wallet has, and what lies with the market, in one state of the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funds {
    /// In the wallet.
    pub wallet: AttoFil,
    /// With the market, all of it.
    pub escrow: AttoFil,
    /// Of that, what published deals hold.
    pub locked: AttoFil,
}

/// The funds at the head and at the last final epoch. A reorg may take back what came in since, and what went out is not to
/// be counted on: what may be used is the lesser of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FundsView {
    /// At the head.
    pub head: Funds,
    /// At [`ChainView::last_final`].
    pub last_final: Funds,
}

impl FundsView {
    /// What the head locks and the last final epoch does not: deals of ours that are published and not final, which are in
    /// no row yet. Less than that where others ended meanwhile. What is locked at finality is of deals that are known, that
    /// ended and wait to be settled, or that are none of ours: it covers nothing that is signed.
    pub fn underway(&self) -> AttoFil {
        self.head.locked.checked_sub(self.last_final.locked).unwrap_or_default()
    }

    /// The lesser of what `of` makes of the two, given of each what is underway there.
    ///
    /// # Errors
    /// Those of `of`.
    pub fn least<E>(&self, of: impl Fn(Funds, AttoFil) -> Result<AttoFil, E>) -> Result<AttoFil, E> {
        Ok(of(self.head, self.underway())?.min(of(self.last_final, AttoFil::ZERO)?))
    }
}

/// A deal of our client that came onto the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishedDeal {
    /// Its number on the chain.
    pub deal_id: u64,
    /// Who published it.
    pub provider: ActorId,
    /// The piece, where the event or the deal at the last final tipset says it.
    pub piece: Option<PieceCid>,
    /// When.
    pub height: Epoch,
}

/// A deal, as a final tipset has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DealOnChain {
    /// Whether it is the signed proposal, field by field, with both parties as ids. A provider can name another's deal.
    pub is_ours: bool,
    /// When its sector was proven first; `None` while it is only published.
    pub active_since: Option<Epoch>,
    /// The sector, once it is active.
    pub sector: Option<u64>,
    /// Whether the sector is among those that the provider failed to prove of late.
    pub is_faulty: bool,
}

/// A deal of our client, by its number alone: what the chain has where no row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDeal {
    /// With whom.
    pub provider: ActorId,
    /// The piece.
    pub piece: PieceCid,
    /// Its size.
    pub size: PaddedSize,
    /// First epoch.
    pub start: Epoch,
    /// Last epoch.
    pub end: Epoch,
    /// For the whole piece and each epoch.
    pub price_per_epoch: AttoFil,
    /// The provider's.
    pub collateral: AttoFil,
    /// Its state; `is_ours` holds, because its client is ours.
    pub state: DealOnChain,
}

/// What is sent from the wallet, besides proposals. Each costs gas, and the gas counts against the caps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FundsCall {
    /// Into escrow.
    TopUp(AttoFil),
    /// Out of escrow, into the wallet.
    Withdraw(AttoFil),
    /// To another address, as text.
    Send {
        /// Where.
        to: String,
        /// How much.
        amount: AttoFil,
    },
    /// Settles these deals, which frees what they still lock.
    Settle(Vec<u64>),
}

/// A message that was written down, signed and pushed for an intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    /// What it is for: the same at each repeat.
    pub intent: String,
    /// The most gas that it may cost, all replacements included.
    pub max_fee: AttoFil,
    /// How far it is.
    pub progress: MessageProgress,
}

/// How far a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MessageProgress {
    /// Signed; whether it is in the pool may not be known. It goes on by itself.
    Pending,
    /// On the chain, not final.
    Included,
    /// On the chain for good; `Ok` where it did what it should, else the exit code.
    Final(Result<(), i64>),
    /// The chain is past its number, and the node knows no version of it. The operator has to look.
    Missing,
}

/// What the intents of the operator's own messages begin with.
pub const OPERATORS: &str = "operator-";

/// Whether a message is the operator's own: the switch of spending does not hold these up.
pub fn is_operators(intent: &str) -> bool {
    intent.starts_with(OPERATORS)
}

/// The chain. All answers after [`Chain::look`] are about that look; only finality counts for [`Chain::deal`] and
/// [`Chain::published`].
pub trait Chain: Send + Sync + 'static {
    /// Head and finality now. Fails where the node is away, stale, of another network, or fell back: spending pauses.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn look(&self) -> BoxFuture<'_, Result<ChainView, Fault>>;

    /// A provider; `None` where there is none of this id.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn provider(&self, id: ActorId) -> BoxFuture<'_, Result<Option<ChainProvider>, Fault>>;

    /// The least collateral that the chain wants of a provider for a piece of this size.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn collateral(&self, size: PaddedSize) -> BoxFuture<'_, Result<AttoFil, Fault>>;

    /// What there is to spend. Refused where it cannot be: more locked than there is.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn funds(&self) -> BoxFuture<'_, Result<FundsView, Fault>>;

    /// Deals of our client that were published from one height to another, both included, neither above
    /// [`ChainView::last_final`]. `None` where the node keeps no events: then providers' words are the only hint.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn published(&self, from: Epoch, to: Epoch) -> BoxFuture<'_, Result<Option<Vec<PublishedDeal>>, Fault>>;

    /// A deal at the last final tipset, held against the bytes that were signed; `None` where the chain has none of this
    /// number: never published there, or ended, or terminated.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn deal<'a>(
        &'a self,
        deal_id: u64,
        signed: &'a SignedDeal,
    ) -> BoxFuture<'a, Result<Option<DealOnChain>, Fault>>;

    /// The same by its number alone: `None` where the chain has none of this number at the last final tipset, or where its
    /// client is not ours. For deals that were signed and are in no row, as after a restored backup.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn own_deal(&self, deal_id: u64) -> BoxFuture<'_, Result<Option<OwnDeal>, Fault>>;

    /// The most that the gas of one message may cost, all its replacements included: a setting, the same at each call. It
    /// is reserved under the caps before [`Chain::send`], and [`Sent::max_fee`] is never more.
    fn max_fee(&self) -> AttoFil;

    /// Sends from the wallet, once for an intent: for one that was sent before it says how far that is, and does nothing.
    /// `Ok` says that it is written down and goes on by itself.
    ///
    /// # Errors
    /// [`Fault`] of the group «node»: nothing was signed.
    fn send<'a>(&'a self, intent: &'a str, call: &'a FundsCall) -> BoxFuture<'a, Result<Sent, Fault>>;

    /// How far the message of an intent is; `None` where none was ever signed for it. Out of what is written down: the chain
    /// is not asked.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn message<'a>(&'a self, intent: &'a str) -> BoxFuture<'a, Result<Option<Sent>, Fault>>;

    /// What an operator should know of the node, in words: that it is old, keeps no events, or cannot be reached. Without
    /// secrets.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Looks after messages that are not final; once an epoch. Says what changed. Without `may_send` it looks on alone:
    /// nothing is pushed again, and nothing is signed that would replace what is stuck. A replacement may cost what `gas`
    /// has for its intent and no more: what was reserved.
    ///
    /// # Errors
    /// [`Fault`] of the group «node».
    fn tick<'a>(
        &'a self,
        may_send: bool,
        gas: &'a BTreeMap<String, AttoFil>,
    ) -> BoxFuture<'a, Result<Vec<Sent>, Fault>>;

    /// Completes when there is something new to look at; never, where the chain has no way to say so. Dropping it loses
    /// nothing. A hint: whoever waits looks from time to time all the same.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// Where a provider is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Which.
    pub provider: ActorId,
    /// Its peer id, as text, where it is known.
    pub peer_id: Option<String>,
    /// `http(s)://…` or multiaddrs, the operator's first, then the chain's.
    pub addresses: Vec<ContactAddress>,
}

/// One address of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContactAddress {
    /// A URL or a multiaddr.
    pub text: String,
    /// Whether the operator gave it: then it may be a private one. What the chain says passes the dial filter.
    pub is_operators: bool,
}

/// The terms of one deal: all that a proposal is built from, so that the same terms give the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealTerms {
    /// Its id.
    pub uuid: DealUuid,
    /// With whom.
    pub provider: ActorId,
    /// What is stored.
    pub piece: PieceCid,
    /// Its size.
    pub size: PaddedSize,
    /// Bytes of the CAR: what the provider pulls.
    pub car_bytes: u64,
    /// The CAR's root, which is also the label.
    pub root: Cid,
    /// Where the provider pulls it from.
    pub url: String,
    /// First epoch.
    pub start: Epoch,
    /// Last epoch.
    pub end: Epoch,
    /// For the whole piece and each epoch.
    pub price_per_epoch: AttoFil,
    /// The provider's.
    pub collateral: AttoFil,
    /// Whether the provider announces it to indexers.
    pub ipni: bool,
}

/// A deal that was signed. The bytes are what is sent, now and at every repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedDeal {
    /// What goes to the provider (`DealParams` in CBOR).
    pub bytes: Vec<u8>,
    /// Names the signed proposal: never twice in the rows.
    pub signed_cid: Cid,
}

/// What a provider said to a proposal. Its word alone: it signs none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It takes it, or says that it has had it before.
    Accepted,
    /// It does not.
    Refused(Fault),
}

/// What a provider says of a deal. A hint: only the chain counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderWord {
    /// It knows the deal.
    Known {
        /// In its own words.
        status: String,
        /// What went wrong by its word; no proof of failure.
        error: Option<String>,
        /// The number on chain that it names.
        deal_id: Option<u64>,
        /// Bytes that it says it has pulled.
        received: u64,
    },
    /// It says that it does not know the deal. Frees nothing: the stored bytes are sent again.
    Unknown(String),
}

/// Storage providers. An error of these calls says nothing about a deal: only [`Answer::Refused`] is a refusal.
pub trait Market: Send + Sync + 'static {
    /// What the provider asks for now, signed by its worker and checked.
    ///
    /// # Errors
    /// [`Fault`] of the group «reaching a provider».
    fn ask<'a>(&'a self, to: &'a Contact) -> BoxFuture<'a, Result<Ask, Fault>>;

    /// Sends signed bytes. They may have arrived where this fails.
    ///
    /// # Errors
    /// [`Fault`] of the group «reaching a provider»: the outcome is not known.
    fn propose<'a>(&'a self, to: &'a Contact, deal: &'a SignedDeal) -> BoxFuture<'a, Result<Answer, Fault>>;

    /// Asks how a deal goes.
    ///
    /// # Errors
    /// [`Fault`] of the group «reaching a provider».
    fn status<'a>(&'a self, to: &'a Contact, uuid: DealUuid) -> BoxFuture<'a, Result<ProviderWord, Fault>>;
}

/// Builds proposals and signs them.
pub trait Proposer: Send + Sync + 'static {
    /// The wallet's address, as text: part of what a deal's id is derived from.
    fn wallet(&self) -> String;

    /// Builds the proposal of these terms and signs it. The engine stores what comes back before anything is sent, and
    /// never calls this twice for one id once it has.
    ///
    /// # Errors
    /// [`Fault`]: nothing was signed, or nobody has seen it.
    fn sign<'a>(&'a self, terms: &'a DealTerms) -> BoxFuture<'a, Result<SignedDeal, Fault>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_has_one_id_and_no_other_has_it() {
        let piece = |n: u8| PieceCid::from_commitment([n; 32]).unwrap();
        let one = DealUuid::of_attempt("f1a", &piece(1), 0, 0);
        assert_eq!(one, DealUuid::of_attempt("f1a", &piece(1), 0, 0));
        assert_eq!(one.to_string().parse(), Ok(one));
        for other in [
            DealUuid::of_attempt("f1b", &piece(1), 0, 0),
            DealUuid::of_attempt("f1a", &piece(2), 0, 0),
            DealUuid::of_attempt("f1a", &piece(1), 1, 0),
            DealUuid::of_attempt("f1a", &piece(1), 0, 1),
        ] {
            assert_ne!(one, other);
        }
    }
}
