//! What providers pull: the piece of a deal, at a URL that is signed for this deal alone.
//!
//! The signature is a keyed BLAKE3 over the deal's id, so whoever has the URL of one deal has that of no other, and nobody
//! can guess one. The key is the node's own, and lives as long as URLs do that were signed into proposals: a node that
//! loses it fails every transfer that is under way.
//!
//! A live deal is never told that there is nothing: where we have trouble, it is [`PullError::Trouble`], and the provider is
//! to come back. Providers take any other refusal for the end of the transfer.

use std::fmt;

use floe_core::cold::DealUuid;
use floe_records::Records;

use super::Settings;
use super::piece::{OpenPiece, PieceError};
use crate::Engine;

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
#[derive(Debug, Clone)]
pub struct Pull {
    piece: OpenPiece,
    records: Records,
    deal: DealUuid,
}

impl Pull {
    /// What is pulled.
    pub fn piece(&self) -> &OpenPiece {
        &self.piece
    }

    /// Writes into the log of pulls how far this one got. To be called when it ends; a log that cannot be written is no
    /// trouble of the provider's.
    pub async fn ended(&self, sent_to: u64) {
        let whole = sent_to >= self.piece.len();
        if let Err(error) = self.records.note_pull(self.deal, sent_to, whole).await {
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
        let piece = self.open_piece(target.aggregate).await?;
        Ok(Pull { piece, records: self.ctx.records.clone(), deal })
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
