//! What providers pull: the piece of a deal, at a URL that is signed for this deal alone.
//!
//! The signature is a keyed BLAKE3 over the deal's id, so whoever has the URL of one deal has that of no other, and nobody
//! can guess one. The key is the node's own, and lives as long as URLs do that were signed into proposals: a node that
//! loses it fails every transfer that is under way.
//!
//! A live deal is never told that there is nothing: where we have trouble, it is [`PullError::Trouble`], and the provider is
//! to come back. Providers take any other refusal for the end of the transfer.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use floe_core::PieceCid;
use floe_core::cold::DealUuid;

use super::Settings;
use super::piece::{PieceError, Shape};
use crate::Engine;
use crate::context::Context;

/// Signs the URLs that deals are pulled from.
#[derive(Clone, PartialEq, Eq)]
pub struct PullKey([u8; 32]);

/// Secret: never printed.
impl fmt::Debug for PullKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PullKey(..)")
    }
}

impl PullKey {
    /// The path below which pieces are.
    pub const PATH: &'static str = "/pull";

    /// A key of these secret bytes.
    pub fn new(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// Where the piece of a deal is pulled from, below the URL that providers reach the pull server at.
    pub fn url(&self, base: &str, deal: DealUuid) -> String {
        format!("{}{}/{deal}/{}", base.trim_end_matches('/'), Self::PATH, self.sign(deal).to_hex())
    }

    /// Whether this is the signature of a deal. Takes the same time for any that is as long as one.
    pub fn checks(&self, deal: DealUuid, signature: &str) -> bool {
        // The hash of the library compares in constant time.
        blake3::Hash::from_hex(signature).is_ok_and(|signature| signature == self.sign(deal))
    }

    fn sign(&self, deal: DealUuid) -> blake3::Hash {
        let mut hash = blake3::Hasher::new_keyed(&self.0);
        hash.update(b"floe pull 1").update(deal.0.as_bytes());
        hash.finalize()
    }
}

impl Settings {
    /// Where the piece of a deal is pulled from. `None` where there is no pull server.
    pub fn pull_url_of(&self, deal: DealUuid) -> Option<String> {
        Some(self.pull_key.as_ref()?.url(self.pull_url.as_deref()?, deal))
    }
}

/// Why a piece is not sent.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No deal has this URL.
    #[error("no deal has this URL")]
    Unknown,
    /// The deal was published, or its time to start has passed.
    #[error("this deal is not to be pulled any more")]
    Over,
    /// The deal is to be pulled, and we cannot give it now: come back.
    #[error("the piece cannot be read now: {0}")]
    Trouble(#[from] PieceError),
}

impl From<floe_records::Error> for PullError {
    fn from(error: floe_records::Error) -> Self {
        Self::Trouble(error.into())
    }
}

/// A piece that is being pulled for a deal.
#[derive(Clone)]
pub struct Pull {
    ctx: Arc<Context>,
    shape: Arc<Shape>,
    deal: DealUuid,
    piece: PieceCid,
}

impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull").field("deal", &self.deal).field("piece", &self.piece).finish_non_exhaustive()
    }
}

impl Pull {
    /// Bytes in all. The same at each pull, as are the bytes.
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub fn len(&self) -> u64 {
        self.shape.len
    }

    /// What its bytes hash to.
    pub fn piece(&self) -> PieceCid {
        self.piece
    }

    /// What is in a range, as far as one read goes: a MiB or more, unless the range is shorter. Dropping the future is safe.
    ///
    /// # Errors
    /// [`PieceError`]. A damaged block is fetched again meanwhile.
    pub async fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, PieceError> {
        let (shape, blocks) = (Arc::clone(&self.shape), self.ctx.blocks.clone());
        let read = tokio::task::spawn_blocking(move || shape.read(&blocks, range)).await;
        read.map_err(|_| floe_blockstore::Error::Closed)?
    }

    /// Writes into the log of pulls how far this one got. To be called when it ends; a log that cannot be written is no
    /// trouble of the provider's.
    pub async fn ended(&self, sent_to: u64) {
        let whole = sent_to >= self.len();
        if let Err(error) = self.ctx.records.note_pull(self.deal, sent_to, whole).await {
            tracing::warn!(deal = %self.deal, %error, "the pull of deal {} is not noted: {error}", self.deal);
        }
    }
}

impl Engine {
    /// The piece of a deal, for who has its signed URL.
    ///
    /// # Errors
    /// [`PullError`].
    pub async fn open_pull(&self, deal: DealUuid, signature: &str) -> Result<Pull, PullError> {
        let key = self.ctx.settings.cold.pull_key.as_ref().ok_or(PullError::Unknown)?;
        if !key.checks(deal, signature) {
            return Err(PullError::Unknown);
        }
        let target = self.ctx.records.pull_target(deal).await?.ok_or(PullError::Unknown)?;
        if !target.is_live {
            return Err(PullError::Over);
        }
        let shape = self.ctx.pieces.get(&self.ctx.records, target.aggregate).await?;
        let row = self.ctx.records.aggregate(target.aggregate).await?;
        let piece = row.piece.ok_or(PieceError::NotPacked)?;
        Ok(Pull { ctx: Arc::clone(&self.ctx), shape, deal, piece })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn only_the_signature_of_the_deal_checks() {
        let (key, other) = (PullKey::new([7; 32]), PullKey::new([8; 32]));
        let deals = [1, 2].map(|n| DealUuid(Uuid::from_u128(n)));
        let url = key.url("https://pull.example/x/", deals[0]);
        let signature = url.strip_prefix(&format!("https://pull.example/x/pull/{}/", deals[0])).unwrap();
        assert!(key.checks(deals[0], signature));
        assert!(!key.checks(deals[1], signature), "another deal's");
        assert!(!other.checks(deals[0], signature), "another node's");
        for nth in 0..signature.len() {
            let mut flipped = signature.as_bytes().to_vec();
            flipped[nth] = if flipped[nth] == b'0' { b'1' } else { b'0' };
            assert!(!key.checks(deals[0], std::str::from_utf8(&flipped).unwrap()), "{nth}");
        }
        for bad in ["", "00", &signature[..63], &format!("{signature}0"), "é"] {
            assert!(!key.checks(deals[0], bad), "{bad}");
        }
        assert_eq!(format!("{key:?}"), "PullKey(..)");
    }
}
