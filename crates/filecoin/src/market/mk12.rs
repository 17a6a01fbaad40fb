//! mk12: how a proposal goes to a provider, how its state is asked for, and what the provider asks.
//!
//! The same CBOR goes over libp2p (one request for each stream) and over HTTP. An answer that says "accepted" is not
//! signed and promises nothing; an `error` in a status is not a failure of the deal. What an answer may decide is
//! said where it is decided, in the engine.

use std::fmt;

use floe_core::Cid;

use super::{ClientDealProposal, DealProposal};
use crate::types::cbor::{Cbor, CborError, Reader, Writer};
use crate::types::{Address, AttoFil, Epoch, PaddedSize, Signature};

/// Takes deals, over libp2p.
pub const STORE_PROTOCOL: &str = "/fil/storage/mk/1.2.1";
/// Says how a deal goes, over libp2p.
pub const STATUS_PROTOCOL: &str = "/fil/storage/status/1.2.0";
/// Says what the provider wants for storage, over libp2p.
pub const ASK_PROTOCOL: &str = "/fil/storage/ask/1.1.0";
/// Says where the provider serves what it stores, over libp2p.
pub const TRANSPORTS_PROTOCOL: &str = "/fil/retrieval/transports/1.0.0";

/// The ways a provider may serve data, and addresses of one of them; the recording has 4.
const MAX_TRANSPORTS: usize = 64;

/// The id that the client gives a deal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DealUuid(pub [u8; 16]);

impl fmt::Display for DealUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = data_encoding::HEXLOWER.encode(&self.0);
        write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

impl fmt::Debug for DealUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where the provider pulls the data from. The parameters hold a token, so they are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes to pull.
    pub size: u64,
    /// `http`, or nothing for an offline deal.
    pub kind: String,
    /// For `http`: JSON with `URL` and `Headers`.
    pub params: Vec<u8>,
    /// The client's own word for it.
    pub client_id: String,
}

impl fmt::Debug for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, kind, client_id, .. } = self;
        write!(f, "Transfer {{ size: {size}, kind: {kind:?}, client_id: {client_id:?}, params: … }}")
    }
}

impl Cbor for Transfer {
    fn write(&self, to: &mut Writer) {
        to.map(4);
        to.entry("Size", |to| to.uint(self.size));
        to.entry("Type", |to| to.text(&self.kind));
        to.entry("Params", |to| to.bytes(&self.params));
        to.entry("ClientID", |to| to.text(&self.client_id));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut size, mut kind, mut params, mut client_id) = (None, None, None, None);
        from.map(|from, key| {
            match key {
                "Size" => size = Some(from.uint()?),
                "Type" => kind = Some(from.text()?.to_owned()),
                "Params" => params = Some(from.bytes()?.to_vec()),
                "ClientID" => client_id = Some(from.text()?.to_owned()),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self {
            size: need(size, "Size")?,
            kind: need(kind, "Type")?,
            params: need(params, "Params")?,
            client_id: need(client_id, "ClientID")?,
        })
    }
}

/// What a client sends to make a deal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealParams {
    /// The client's id for it. A provider refuses one that it has seen.
    pub deal_uuid: DealUuid,
    /// Whether the data comes by another way.
    pub is_offline: bool,
    /// The signed proposal.
    pub proposal: ClientDealProposal,
    /// The root of the DAG inside.
    pub root: Cid,
    /// Where the data is.
    pub transfer: Transfer,
    /// Whether to keep no copy that can be read at once. Version 1.2.0 of the protocol has no such key.
    pub remove_unsealed_copy: bool,
    /// Whether not to announce it to the indexers. Version 1.2.0 of the protocol has no such key.
    pub skip_ipni_announce: bool,
}

impl Cbor for DealParams {
    fn write(&self, to: &mut Writer) {
        to.map(7);
        to.entry("DealUUID", |to| to.bytes(&self.deal_uuid.0));
        to.entry("Transfer", |to| self.transfer.write(to));
        to.entry("IsOffline", |to| to.bool(self.is_offline));
        to.entry("DealDataRoot", |to| to.cid(&self.root));
        to.entry("SkipIPNIAnnounce", |to| to.bool(self.skip_ipni_announce));
        to.entry("ClientDealProposal", |to| self.proposal.write(to));
        to.entry("RemoveUnsealedCopy", |to| to.bool(self.remove_unsealed_copy));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut uuid, mut offline, mut proposal, mut root, mut transfer) = (None, None, None, None, None);
        let (mut remove_unsealed_copy, mut skip_ipni_announce) = (false, false);
        from.map(|from, key| {
            match key {
                "DealUUID" => uuid = Some(DealUuid(from.fixed()?)),
                "IsOffline" => offline = Some(from.bool()?),
                "ClientDealProposal" => proposal = Some(ClientDealProposal::read(from)?),
                "DealDataRoot" => root = Some(from.cid()?),
                "Transfer" => transfer = Some(Transfer::read(from)?),
                "RemoveUnsealedCopy" => remove_unsealed_copy = from.bool()?,
                "SkipIPNIAnnounce" => skip_ipni_announce = from.bool()?,
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self {
            deal_uuid: need(uuid, "DealUUID")?,
            is_offline: need(offline, "IsOffline")?,
            proposal: need(proposal, "ClientDealProposal")?,
            root: need(root, "DealDataRoot")?,
            transfer: need(transfer, "Transfer")?,
            remove_unsealed_copy,
            skip_ipni_announce,
        })
    }
}

/// The answer to [`DealParams`]. Not signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealResponse {
    /// Whether the provider says that it takes the deal.
    pub accepted: bool,
    /// Why not; cut.
    pub message: String,
}

impl Cbor for DealResponse {
    fn write(&self, to: &mut Writer) {
        to.map(2);
        to.entry("Message", |to| to.text(&self.message));
        to.entry("Accepted", |to| to.bool(self.accepted));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut accepted, mut message) = (None, None);
        from.map(|from, key| {
            match key {
                "Accepted" => accepted = Some(from.bool()?),
                "Message" => message = Some(from.words()?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self { accepted: need(accepted, "Accepted")?, message: need(message, "Message")? })
    }
}

/// Asks how a deal goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealStatusRequest {
    /// Which.
    pub deal_uuid: DealUuid,
    /// The client's, over the 16 bytes of the id.
    pub signature: Signature,
}

impl Cbor for DealStatusRequest {
    fn write(&self, to: &mut Writer) {
        to.map(2);
        to.entry("DealUUID", |to| to.bytes(&self.deal_uuid.0));
        to.entry("Signature", |to| self.signature.write(to));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut uuid, mut signature) = (None, None);
        from.map(|from, key| {
            match key {
                "DealUUID" => uuid = Some(DealUuid(from.fixed()?)),
                "Signature" => signature = Some(Signature::read(from)?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self { deal_uuid: need(uuid, "DealUUID")?, signature: need(signature, "Signature")? })
    }
}

/// The answer to [`DealStatusRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealStatusResponse {
    /// About the question, not about the deal; cut.
    pub error: String,
    /// Which deal.
    pub deal_uuid: DealUuid,
    /// Whether its data comes by another way.
    pub is_offline: bool,
    /// Missing where the provider could not say.
    pub status: Option<DealStatus>,
    /// Bytes to pull; Curio says 1.
    pub transfer_size: u64,
    /// Bytes pulled.
    pub received: u64,
}

impl Cbor for DealStatusResponse {
    fn write(&self, to: &mut Writer) {
        to.map(6);
        to.entry("Error", |to| to.text(&self.error));
        to.entry("DealUUID", |to| to.bytes(&self.deal_uuid.0));
        to.entry("IsOffline", |to| to.bool(self.is_offline));
        to.entry("DealStatus", |to| match &self.status {
            Some(status) => status.write(to),
            None => to.null(),
        });
        to.entry("TransferSize", |to| to.uint(self.transfer_size));
        to.entry("NBytesReceived", |to| to.uint(self.received));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut error, mut uuid, mut offline, mut status) = (None, None, None, None);
        let (mut transfer_size, mut received) = (None, None);
        from.map(|from, key| {
            match key {
                "Error" => error = Some(from.words()?),
                "DealUUID" => uuid = Some(DealUuid(from.fixed()?)),
                "IsOffline" => offline = Some(from.bool()?),
                "DealStatus" => status = from.optional(DealStatus::read)?,
                "TransferSize" => transfer_size = Some(from.uint()?),
                "NBytesReceived" => received = Some(from.uint()?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self {
            error: need(error, "Error")?,
            deal_uuid: need(uuid, "DealUUID")?,
            is_offline: need(offline, "IsOffline")?,
            status,
            transfer_size: need(transfer_size, "TransferSize")?,
            received: need(received, "NBytesReceived")?,
        })
    }
}

/// What the provider says of a deal. A claim: the chain is asked for the truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DealStatus {
    /// What last went wrong; no proof that the deal failed. Cut.
    pub error: String,
    /// `Accepted`, `Transferred`, `Published`, …; cut.
    pub status: String,
    /// Said by the sealer; cut.
    pub sealing: String,
    /// The proposal as the provider holds it.
    pub proposal: DealProposal,
    /// The CID of the signed proposal, as the provider computed it. To show, not to decide on.
    pub signed_proposal_cid: Cid,
    /// The message that publishes it.
    pub publish_cid: Option<Cid>,
    /// The id on the chain; 0 before, and in any state from a provider that does not say.
    pub chain_deal_id: u64,
}

impl Cbor for DealStatus {
    fn write(&self, to: &mut Writer) {
        to.map(7);
        to.entry("Error", |to| to.text(&self.error));
        to.entry("Status", |to| to.text(&self.status));
        to.entry("Proposal", |to| self.proposal.write(to));
        to.entry("PublishCid", |to| match &self.publish_cid {
            Some(cid) => to.cid(cid),
            None => to.null(),
        });
        to.entry("ChainDealID", |to| to.uint(self.chain_deal_id));
        to.entry("SealingStatus", |to| to.text(&self.sealing));
        to.entry("SignedProposalCid", |to| to.cid(&self.signed_proposal_cid));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut error, mut status, mut sealing, mut proposal) = (None, None, None, None);
        let (mut signed_proposal_cid, mut publish_cid, mut chain_deal_id) = (None, None, None);
        from.map(|from, key| {
            match key {
                "Error" => error = Some(from.words()?),
                "Status" => status = Some(from.words()?),
                "SealingStatus" => sealing = Some(from.words()?),
                "Proposal" => proposal = Some(DealProposal::read(from)?),
                "SignedProposalCid" => signed_proposal_cid = Some(from.cid()?),
                "PublishCid" => publish_cid = from.optional(Reader::cid)?,
                "ChainDealID" => chain_deal_id = Some(from.uint()?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self {
            error: need(error, "Error")?,
            status: need(status, "Status")?,
            sealing: need(sealing, "SealingStatus")?,
            proposal: need(proposal, "Proposal")?,
            signed_proposal_cid: need(signed_proposal_cid, "SignedProposalCid")?,
            publish_cid,
            chain_deal_id: need(chain_deal_id, "ChainDealID")?,
        })
    }
}

/// Asks what a provider wants for storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskRequest {
    /// Whose ask.
    pub miner: Address,
}

impl Cbor for AskRequest {
    fn write(&self, to: &mut Writer) {
        to.map(1);
        to.entry("Miner", |to| self.miner.write(to));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let mut miner = None;
        from.map(|from, key| {
            match key {
                "Miner" => miner = Some(Address::read(from)?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self { miner: need(miner, "Miner")? })
    }
}

/// What a provider wants for storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorageAsk {
    /// Whose.
    pub miner: Address,
    /// For one GiB (padded) and epoch.
    pub price: AttoFil,
    /// The same for verified deals.
    pub verified_price: AttoFil,
    /// The smallest piece, padded.
    pub min_piece_size: u64,
    /// The largest piece, padded.
    pub max_piece_size: u64,
    /// When it was made.
    pub timestamp: Epoch,
    /// Until when it stands.
    pub expiry: Epoch,
    /// Its number among this provider's.
    pub sequence: u64,
}

impl StorageAsk {
    /// The least that a provider with this ask takes for a piece of `size` and one epoch; `None` where that cannot be held.
    pub fn price_per_epoch(&self, size: PaddedSize) -> Option<AttoFil> {
        self.price.for_piece(size)
    }
}

impl Cbor for StorageAsk {
    fn write(&self, to: &mut Writer) {
        to.map(8);
        to.entry("Miner", |to| self.miner.write(to));
        to.entry("Price", |to| self.price.write(to));
        to.entry("SeqNo", |to| to.uint(self.sequence));
        to.entry("Expiry", |to| to.int(self.expiry.get()));
        to.entry("Timestamp", |to| to.int(self.timestamp.get()));
        to.entry("MaxPieceSize", |to| to.uint(self.max_piece_size));
        to.entry("MinPieceSize", |to| to.uint(self.min_piece_size));
        to.entry("VerifiedPrice", |to| self.verified_price.write(to));
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut miner, mut price, mut verified_price, mut sequence) = (None, None, None, None);
        let (mut min, mut max, mut timestamp, mut expiry) = (None, None, None, None);
        from.map(|from, key| {
            match key {
                "Miner" => miner = Some(Address::read(from)?),
                "Price" => price = Some(AttoFil::read(from)?),
                "VerifiedPrice" => verified_price = Some(AttoFil::read(from)?),
                "SeqNo" => sequence = Some(from.uint()?),
                "MinPieceSize" => min = Some(from.uint()?),
                "MaxPieceSize" => max = Some(from.uint()?),
                "Timestamp" => timestamp = Some(Epoch::new(from.int()?)),
                "Expiry" => expiry = Some(Epoch::new(from.int()?)),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self {
            miner: need(miner, "Miner")?,
            price: need(price, "Price")?,
            verified_price: need(verified_price, "VerifiedPrice")?,
            min_piece_size: need(min, "MinPieceSize")?,
            max_piece_size: need(max, "MaxPieceSize")?,
            timestamp: need(timestamp, "Timestamp")?,
            expiry: need(expiry, "Expiry")?,
            sequence: need(sequence, "SeqNo")?,
        })
    }
}

/// The answer to [`AskRequest`]. The signature is the provider's worker key's, over the ask's CBOR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskResponse {
    /// The ask.
    pub ask: StorageAsk,
    /// Over its CBOR.
    pub signature: Signature,
}

impl Cbor for AskResponse {
    fn write(&self, to: &mut Writer) {
        to.map(1);
        to.entry("Ask", |to| {
            to.map(2);
            to.entry("Ask", |to| self.ask.write(to));
            to.entry("Signature", |to| self.signature.write(to));
        });
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let mut signed = None;
        from.map(|from, key| {
            match key {
                "Ask" => signed = Some(signed_ask(from)?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        need(signed, "Ask")
    }
}

fn signed_ask(from: &mut Reader<'_>) -> Result<AskResponse, CborError> {
    let (mut ask, mut signature) = (None, None);
    from.map(|from, key| {
        match key {
            "Ask" => ask = Some(StorageAsk::read(from)?),
            "Signature" => signature = Some(Signature::read(from)?),
            _ => from.skip()?,
        }
        Ok(())
    })?;
    Ok(AskResponse { ask: need(ask, "Ask")?, signature: need(signature, "Signature")? })
}

/// One way in which a provider serves what it stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transport {
    /// `http`, `https`, `libp2p`, `bitswap`.
    pub name: String,
    /// Multiaddrs, as bytes. A stranger's word: they pass the dial filter before anything is dialled.
    pub addresses: Vec<Vec<u8>>,
}

/// The answer on [`TRANSPORTS_PROTOCOL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transports {
    /// The ways.
    pub protocols: Vec<Transport>,
}

impl Cbor for Transports {
    fn write(&self, to: &mut Writer) {
        to.map(1);
        to.entry("Protocols", |to| {
            to.array(self.protocols.len() as u64);
            self.protocols.iter().for_each(|one| one.write(to));
        });
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let mut protocols = None;
        from.map(|from, key| {
            match key {
                "Protocols" => protocols = Some(list(from, Transport::read)?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self { protocols: need(protocols, "Protocols")? })
    }
}

impl Cbor for Transport {
    fn write(&self, to: &mut Writer) {
        to.map(2);
        to.entry("Name", |to| to.text(&self.name));
        to.entry("Addresses", |to| {
            to.array(self.addresses.len() as u64);
            self.addresses.iter().for_each(|address| to.bytes(address));
        });
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, CborError> {
        let (mut name, mut addresses) = (None, None);
        from.map(|from, key| {
            match key {
                "Name" => name = Some(from.words()?),
                "Addresses" => addresses = Some(list(from, |from| from.bytes().map(<[u8]>::to_vec))?),
                _ => from.skip()?,
            }
            Ok(())
        })?;
        Ok(Self { name: need(name, "Name")?, addresses: need(addresses, "Addresses")? })
    }
}

/// A list of at most [`MAX_TRANSPORTS`] values.
fn list<T>(
    from: &mut Reader<'_>,
    mut read: impl FnMut(&mut Reader<'_>) -> Result<T, CborError>,
) -> Result<Vec<T>, CborError> {
    let len = from.array(MAX_TRANSPORTS, "transports")?;
    (0..len).map(|_| read(from)).collect()
}

fn need<T>(value: Option<T>, key: &'static str) -> Result<T, CborError> {
    value.ok_or(CborError::Missing(key))
}
