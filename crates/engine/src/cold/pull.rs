//! What providers pull: the piece of a deal, at a URL that is signed for this deal alone.
//!
//! The signature is a keyed BLAKE3 over the deal's id, so whoever has the URL of one deal has that of no other, and nobody
//! can guess one. The key is the node's own, and lives as long as URLs do that were signed into proposals: a node that
//! loses it fails every transfer that is under way.
//!
//! A live deal is never told that there is nothing: where we have trouble, it is [`PullError::Trouble`], and the provider is
//! to come back. Providers take any other refusal for the end of the transfer. Restored rows do not know what was signed
//! since: until that is settled, no signed URL is one of no deal.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use floe_core::cold::DealUuid;
use floe_records::Records;
use parking_lot::Mutex;

use super::Settings;
use super::piece::{OpenPiece, PieceError};
use crate::{Engine, limits};

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
    /// These rows were restored and may not know the deal, or how far it is: come back.
    #[error("these rows were restored, and may not know this deal yet")]
    Restored,
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
    sent: Arc<Sent>,
    deal: DealUuid,
}

impl Pull {
    /// What is pulled.
    pub fn piece(&self) -> &OpenPiece {
        &self.piece
    }

    /// Writes into the log of pulls what was sent. To be called when it ends; a log that cannot be written is no trouble of
    /// the provider's.
    pub async fn ended(&self, sent: Range<u64>) {
        let bytes = self.sent.add(self.deal, sent);
        if let Err(error) = self.records.note_pull(self.deal, bytes, bytes >= self.piece.len()).await {
            tracing::warn!(deal = %self.deal, %error, "the pull of deal {} is not noted: {error}", self.deal);
        }
    }
}

/// Which bytes of their pieces deals were sent. Providers pull five ranges at once: that the last one was sent does not say
/// that the others were. In memory: after a restart the log goes on from what is pulled then.
#[derive(Debug, Default)]
pub(crate) struct Sent(Mutex<HashMap<DealUuid, Vec<Range<u64>>>>);

impl Sent {
    /// Adds a range; says how many bytes were sent in all, each once.
    fn add(&self, deal: DealUuid, range: Range<u64>) -> u64 {
        let mut all = self.0.lock();
        if all.len() >= limits::PULLS_REMEMBERED && !all.contains_key(&deal) {
            limits::hit("pulls_remembered");
            all.clear();
        }
        let sent = all.entry(deal).or_default();
        sent.push(range);
        sent.sort_unstable_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(sent.len());
        for range in sent.drain(..).filter(|range| !range.is_empty()) {
            match joined.last_mut().filter(|last| range.start <= last.end) {
                Some(last) => last.end = last.end.max(range.end),
                None => joined.push(range),
            }
        }
        // The first are kept: who asks for a thousand bits of a piece is no provider that pulls it.
        joined.truncate(limits::RANGES_REMEMBERED);
        *sent = joined;
        sent.iter().map(|range| range.end - range.start).sum()
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
        let records = &self.ctx.records;
        let target = match records.pull_target(deal).await? {
            Some(target) if target.is_live => target,
            _ if records.restored().await?.is_some() => return Err(PullError::Restored),
            Some(_) => return Err(PullError::Over),
            None => return Err(PullError::Unknown),
        };
        let piece = self.open_piece(target.aggregate).await?;
        Ok(Pull { piece, records: self.ctx.records.clone(), sent: Arc::clone(&self.ctx.sent), deal })
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    /// The last of five ranges was there first, and the deal counted as pulled.
    #[test]
    fn a_piece_is_sent_when_all_of_it_is_however_it_was_asked_for() {
        let sent = Sent::default();
        let [one, two] = [1, 2].map(|n| DealUuid(Uuid::from_u128(n)));
        for (range, bytes) in
            [(80..100, 20), (0..20, 40), (0..20, 40), (10..50, 70), (70..80, 80), (50..70, 100)]
        {
            assert_eq!(sent.add(one, range.clone()), bytes, "{range:?}");
        }
        assert_eq!(sent.add(two, 5..5), 0);
        for n in 0..2 * limits::RANGES_REMEMBERED as u64 {
            sent.add(two, 10 * n..10 * n + 1);
        }
        assert_eq!(sent.0.lock()[&two].len(), limits::RANGES_REMEMBERED);
        for n in 0..2 * limits::PULLS_REMEMBERED as u128 {
            sent.add(DealUuid(Uuid::from_u128(n)), 0..1);
            assert!(sent.0.lock().len() <= limits::PULLS_REMEMBERED);
        }
    }

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
