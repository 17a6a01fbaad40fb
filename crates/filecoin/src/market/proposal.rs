//! The deal proposal: what client and provider sign, and what f05 keeps.
//!
//! The chain stores the parties as ids where a key address was proposed. So the pending-proposal key and every
//! comparison with the chain go over [`DealProposal::with_parties`].

use std::fmt;

use floe_core::Cid;
use serde::{Deserialize, Deserializer};

use crate::limits::MAX_LABEL_BYTES;
use crate::types::cbor::{Cbor, CborError, Reader, Writer};
use crate::types::cid::{blake2b_cid, json, sha2_cid};
use crate::types::{Address, AttoFil, Epoch, PaddedSize, Signature};

/// What the client calls the deal: text, or bytes. Over JSON a label of bytes comes back as empty text, so
/// never rebuild a proposal from JSON unless its label is known to be text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Label(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    Text(String),
    Bytes(Vec<u8>),
}

impl Label {
    /// A label of text; `None` over [`MAX_LABEL_BYTES`].
    pub fn text(text: &str) -> Option<Self> {
        (text.len() <= MAX_LABEL_BYTES).then(|| Self(Form::Text(text.to_owned())))
    }

    /// A label of bytes; `None` over [`MAX_LABEL_BYTES`].
    pub fn bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() <= MAX_LABEL_BYTES).then(|| Self(Form::Bytes(bytes.to_vec())))
    }

    /// The text, where it is one.
    pub fn as_text(&self) -> Option<&str> {
        match &self.0 {
            Form::Text(text) => Some(text),
            Form::Bytes(_) => None,
        }
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Form::Text(text) => fmt::Debug::fmt(text, f),
            Form::Bytes(bytes) => f.write_str(&data_encoding::HEXLOWER.encode(bytes)),
        }
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(from)?;
        Self::text(&text).ok_or_else(|| serde::de::Error::custom("a label of more than 256 bytes"))
    }
}

impl Cbor for Label {
    fn write(&self, to: &mut Writer) {
        match &self.0 {
            Form::Text(text) => to.text(text),
            Form::Bytes(bytes) => to.bytes(bytes),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let label = if from.is_text() { Self::text(from.text()?) } else { Self::bytes(from.bytes()?) };
        label.ok_or_else(|| {
            crate::limits::hit("deal_label");
            CborError::Limit { at: from.position(), limit: "deal_label" }
        })
    }
}

/// What is agreed. The client's signature is over its CBOR.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DealProposal {
    /// The piece's commitment, version 1.
    #[serde(rename = "PieceCID", with = "json")]
    pub piece_cid: Cid,
    /// Its size with padding.
    pub piece_size: PaddedSize,
    /// Whether DataCap pays. Floe never sets it.
    pub verified_deal: bool,
    /// Who pays.
    pub client: Address,
    /// Who stores.
    pub provider: Address,
    /// The client's own note; public for ever.
    pub label: Label,
    /// Before this the sector must be proven, or the deal cannot become active.
    pub start_epoch: Epoch,
    /// When it ends.
    pub end_epoch: Epoch,
    /// For the whole piece.
    pub storage_price_per_epoch: AttoFil,
    /// What the provider loses with the data.
    pub provider_collateral: AttoFil,
    /// Unused on the chain; 0.
    pub client_collateral: AttoFil,
}

impl DealProposal {
    /// The CID of the unsigned proposal. In the form with ids it is the key of `StateMarketProposalPending`.
    pub fn cid(&self) -> Cid {
        blake2b_cid(&self.to_cbor())
    }

    /// The same with other addresses for its parties, for instance the ids the chain stores.
    #[must_use]
    pub fn with_parties(&self, client: Address, provider: Address) -> Self {
        Self { client, provider, ..self.clone() }
    }

    /// What the client pays over the whole term, without collateral; `None` where the term is empty or the product
    /// cannot be held.
    pub fn total_price(&self) -> Option<AttoFil> {
        let epochs = u128::from(self.end_epoch.since(self.start_epoch));
        if epochs == 0 { None } else { self.storage_price_per_epoch.checked_mul(epochs) }
    }

    /// What must be free in escrow before a provider takes it.
    pub fn escrow_needed(&self) -> Option<AttoFil> {
        self.total_price()?.checked_add(self.client_collateral)
    }
}

impl Cbor for DealProposal {
    fn write(&self, to: &mut Writer) {
        to.array(11);
        to.cid(&self.piece_cid);
        to.uint(self.piece_size.bytes());
        to.bool(self.verified_deal);
        self.client.write(to);
        self.provider.write(to);
        self.label.write(to);
        to.int(self.start_epoch.get());
        to.int(self.end_epoch.get());
        self.storage_price_per_epoch.write(to);
        self.provider_collateral.write(to);
        self.client_collateral.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        from.tuple(11)?;
        Ok(Self {
            piece_cid: from.cid()?,
            piece_size: PaddedSize::from_bytes(from.uint()?)
                .ok_or_else(|| from.malformed("a size that no piece has"))?,
            verified_deal: from.bool()?,
            client: Address::read(from)?,
            provider: Address::read(from)?,
            label: Label::read(from)?,
            start_epoch: Epoch::new(from.int()?),
            end_epoch: Epoch::new(from.int()?),
            storage_price_per_epoch: AttoFil::read(from)?,
            provider_collateral: AttoFil::read(from)?,
            client_collateral: AttoFil::read(from)?,
        })
    }
}

/// A proposal and the client's signature. These bytes are money: who holds them can publish the deal until its
/// start epoch, so they are stored before they are sent, and sent again rather than made again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientDealProposal {
    /// What was signed.
    pub proposal: DealProposal,
    /// Over the proposal's CBOR.
    pub signature: Signature,
}

impl ClientDealProposal {
    /// The CID of the signed proposal, as Boost reports it where no collateral is zero. To show, not to decide on.
    pub fn cid(&self) -> Cid {
        sha2_cid(&self.to_cbor())
    }
}

impl Cbor for ClientDealProposal {
    fn write(&self, to: &mut Writer) {
        to.array(2);
        self.proposal.write(to);
        self.signature.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        from.tuple(2)?;
        Ok(Self { proposal: DealProposal::read(from)?, signature: Signature::read(from)? })
    }
}
