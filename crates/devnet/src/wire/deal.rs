//! mk12: what a client and a storage provider say to each other.
//!
//! The provider's side of each exchange: requests are read, answers written. The proposal is also what f05 stores.

use super::Cid;
use serde_json::{Value, json};

use super::address::Address;
use super::cbor::{Cbor, decode};
use super::key::{Key, Signature};
use super::message::link;
use super::{Malformed, chain_cid, malformed};

/// A label is text or bytes; the JSON of a node shows bytes as an empty text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Label {
    Text(String),
    Bytes(Vec<u8>),
}

impl Label {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    pub(crate) fn shown(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Bytes(_) => "",
        }
    }
}

/// What the client signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) piece_cid: Cid,
    /// Padded.
    pub(crate) piece_size: u64,
    pub(crate) verified: bool,
    pub(crate) client: Address,
    pub(crate) provider: Address,
    pub(crate) label: Label,
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// attoFIL for the whole piece and one epoch.
    pub(crate) price_per_epoch: i128,
    pub(crate) provider_collateral: i128,
    pub(crate) client_collateral: i128,
}

impl Proposal {
    pub(crate) fn to_cbor(&self) -> Cbor {
        Cbor::Array(vec![
            Cbor::Link(self.piece_cid),
            Cbor::Unsigned(self.piece_size),
            Cbor::Bool(self.verified),
            Cbor::Bytes(self.client.to_bytes()),
            Cbor::Bytes(self.provider.to_bytes()),
            match &self.label {
                Label::Text(text) => Cbor::text(text),
                Label::Bytes(bytes) => Cbor::Bytes(bytes.clone()),
            },
            Cbor::int(self.start),
            Cbor::int(self.end),
            Cbor::amount(self.price_per_epoch),
            Cbor::amount(self.provider_collateral),
            Cbor::amount(self.client_collateral),
        ])
    }

    pub(crate) fn from_cbor(item: &Cbor) -> Result<Self, Malformed> {
        let [piece, size, verified, client, provider, label, start, end, price, theirs, ours] =
            item.as_tuple::<11>("Proposal")?;
        Ok(Self {
            piece_cid: piece.as_link("PieceCID")?,
            piece_size: size.as_u64("PieceSize")?,
            verified: verified.as_bool("VerifiedDeal")?,
            client: Address::from_bytes(client.as_bytes("Client")?)?,
            provider: Address::from_bytes(provider.as_bytes("Provider")?)?,
            label: match label {
                Cbor::Text(text) => Label::Text(text.clone()),
                Cbor::Bytes(bytes) => Label::Bytes(bytes.clone()),
                _ => return malformed("Label is neither text nor bytes"),
            },
            start: start.as_i64("StartEpoch")?,
            end: end.as_i64("EndEpoch")?,
            price_per_epoch: price.as_amount("StoragePricePerEpoch")?,
            provider_collateral: theirs.as_amount("ProviderCollateral")?,
            client_collateral: ours.as_amount("ClientCollateral")?,
        })
    }

    /// The key of the pending proposals of f05, if the addresses are ids.
    pub(crate) fn cid(&self) -> Cid {
        chain_cid(&self.to_cbor().encode())
    }

    /// Epochs from start to end; negative ones are the checks' matter.
    pub(crate) fn duration(&self) -> i64 {
        self.end.saturating_sub(self.start)
    }

    /// The price of all epochs.
    pub(crate) fn storage_fee(&self) -> i128 {
        self.price_per_epoch.saturating_mul(self.duration().max(0).into())
    }

    /// What the client's escrow must have free.
    pub(crate) fn client_requirement(&self) -> i128 {
        self.storage_fee().saturating_add(self.client_collateral)
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "PieceCID": link(&self.piece_cid), "PieceSize": self.piece_size, "VerifiedDeal": self.verified,
            "Client": self.client, "Provider": self.provider, "Label": self.label.shown(),
            "StartEpoch": self.start, "EndEpoch": self.end,
            "StoragePricePerEpoch": self.price_per_epoch.to_string(),
            "ProviderCollateral": self.provider_collateral.to_string(),
            "ClientCollateral": self.client_collateral.to_string(),
        })
    }
}

/// A proposal and the client's signature over its CBOR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClientDealProposal {
    pub(crate) proposal: Proposal,
    pub(crate) signature: Signature,
}

impl ClientDealProposal {
    pub(crate) fn to_cbor(&self) -> Cbor {
        Cbor::Array(vec![self.proposal.to_cbor(), self.signature.to_cbor()])
    }

    pub(crate) fn from_cbor(item: &Cbor) -> Result<Self, Malformed> {
        let [proposal, signature] = item.as_tuple::<2>("ClientDealProposal")?;
        Ok(Self { proposal: Proposal::from_cbor(proposal)?, signature: Signature::from_cbor(signature)? })
    }

    /// dag-cbor with sha2-256: what providers call the signed proposal's CID.
    pub(crate) fn cid(&self) -> Cid {
        use sha2::Digest;
        let digest = sha2::Sha256::digest(self.to_cbor().encode());
        Cid::new_v1(0x71, super::Multihash::wrap(0x12, &digest).unwrap_or_default())
    }
}

/// Where the data comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) size: u64,
    pub(crate) kind: String,
    /// JSON.
    pub(crate) params: Vec<u8>,
    pub(crate) client_id: String,
}

/// A request to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DealParams {
    pub(crate) uuid: [u8; 16],
    pub(crate) transfer: Transfer,
    pub(crate) offline: bool,
    pub(crate) data_root: Cid,
    pub(crate) deal: ClientDealProposal,
    pub(crate) skip_ipni: bool,
    pub(crate) remove_unsealed: bool,
}

impl DealParams {
    /// Keys in any order, unknown ones skipped; the two last booleans are not in version 1.2.0.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let map = decode(bytes)?;
        let optional = |key: &str| map.get(key)?.map_or(Ok(false), |value| value.as_bool(key));
        let transfer = map.need("Transfer")?;
        Ok(Self {
            uuid: uuid(map.need("DealUUID")?)?,
            transfer: Transfer {
                size: transfer.need("Size")?.as_u64("Transfer.Size")?,
                kind: transfer.need("Type")?.as_text("Transfer.Type")?.to_owned(),
                params: transfer.need("Params")?.as_bytes("Transfer.Params")?.to_vec(),
                client_id: transfer.need("ClientID")?.as_text("Transfer.ClientID")?.to_owned(),
            },
            offline: map.need("IsOffline")?.as_bool("IsOffline")?,
            data_root: map.need("DealDataRoot")?.as_link("DealDataRoot")?,
            deal: ClientDealProposal::from_cbor(map.need("ClientDealProposal")?)?,
            skip_ipni: optional("SkipIPNIAnnounce")?,
            remove_unsealed: optional("RemoveUnsealedCopy")?,
        })
    }

    /// What a client of version 1.2.1 sends: for tests, the devnet proposes nothing.
    #[cfg(test)]
    pub(crate) fn encode(&self) -> Vec<u8> {
        Cbor::map([
            ("DealUUID", Cbor::Bytes(self.uuid.to_vec())),
            (
                "Transfer",
                Cbor::map([
                    ("Size", Cbor::Unsigned(self.transfer.size)),
                    ("Type", Cbor::text(&self.transfer.kind)),
                    ("Params", Cbor::Bytes(self.transfer.params.clone())),
                    ("ClientID", Cbor::text(&self.transfer.client_id)),
                ]),
            ),
            ("IsOffline", Cbor::Bool(self.offline)),
            ("DealDataRoot", Cbor::Link(self.data_root)),
            ("SkipIPNIAnnounce", Cbor::Bool(self.skip_ipni)),
            ("ClientDealProposal", self.deal.to_cbor()),
            ("RemoveUnsealedCopy", Cbor::Bool(self.remove_unsealed)),
        ])
        .encode()
    }
}

fn uuid(item: &Cbor) -> Result<[u8; 16], Malformed> {
    let bytes = item.as_bytes("DealUUID")?;
    bytes.try_into().map_err(|_| Malformed("DealUUID has not 16 bytes".into()))
}

/// A UUID as people write it.
pub(crate) fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex = data_encoding::HEXLOWER.encode(uuid);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// The answer to a request to store.
pub(crate) fn deal_response(refusal: Option<&str>) -> Vec<u8> {
    Cbor::map([
        ("Message", Cbor::text(refusal.unwrap_or_default())),
        ("Accepted", Cbor::Bool(refusal.is_none())),
    ])
    .encode()
}

/// A question about a deal, signed over the 16 bytes of its UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusRequest {
    pub(crate) uuid: [u8; 16],
    pub(crate) signature: Signature,
}

impl StatusRequest {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let map = decode(bytes)?;
        Ok(Self {
            uuid: uuid(map.need("DealUUID")?)?,
            signature: Signature::from_cbor(map.need("Signature")?)?,
        })
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) fn encode(&self) -> Vec<u8> {
        Cbor::map([("DealUUID", Cbor::Bytes(self.uuid.to_vec())), ("Signature", self.signature.to_cbor())])
            .encode()
    }
}

/// What a provider says of a deal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) error: String,
    pub(crate) status: String,
    pub(crate) proposal: Proposal,
    pub(crate) publish_cid: Option<Cid>,
    pub(crate) chain_deal_id: u64,
    pub(crate) sealing: String,
    pub(crate) signed_proposal_cid: Cid,
}

/// The answer to a question about a deal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StatusResponse {
    /// About the question, not about the deal.
    pub(crate) error: String,
    pub(crate) uuid: [u8; 16],
    pub(crate) offline: bool,
    pub(crate) status: Option<Status>,
    pub(crate) transfer_size: u64,
    pub(crate) received: u64,
}

impl StatusResponse {
    /// An answer that only says why there is none.
    pub(crate) fn refused(uuid: [u8; 16], error: impl Into<String>) -> Self {
        Self { error: error.into(), uuid, offline: false, status: None, transfer_size: 0, received: 0 }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let status = self.status.as_ref().map_or(Cbor::Null, |status| {
            Cbor::map([
                ("Error", Cbor::text(&status.error)),
                ("Status", Cbor::text(&status.status)),
                ("Proposal", status.proposal.to_cbor()),
                ("PublishCid", Cbor::link(status.publish_cid)),
                ("ChainDealID", Cbor::Unsigned(status.chain_deal_id)),
                ("SealingStatus", Cbor::text(&status.sealing)),
                ("SignedProposalCid", Cbor::Link(status.signed_proposal_cid)),
            ])
        });
        Cbor::map([
            ("Error", Cbor::text(&self.error)),
            ("DealUUID", Cbor::Bytes(self.uuid.to_vec())),
            ("IsOffline", Cbor::Bool(self.offline)),
            ("DealStatus", status),
            ("TransferSize", Cbor::Unsigned(self.transfer_size)),
            ("NBytesReceived", Cbor::Unsigned(self.received)),
        ])
        .encode()
    }

    /// For tests.
    #[cfg(test)]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let map = decode(bytes)?;
        let status = match map.need("DealStatus")? {
            Cbor::Null => None,
            status => Some(Status {
                error: status.need("Error")?.as_text("Error")?.to_owned(),
                status: status.need("Status")?.as_text("Status")?.to_owned(),
                proposal: Proposal::from_cbor(status.need("Proposal")?)?,
                publish_cid: match status.need("PublishCid")? {
                    Cbor::Null => None,
                    cid => Some(cid.as_link("PublishCid")?),
                },
                chain_deal_id: status.need("ChainDealID")?.as_u64("ChainDealID")?,
                sealing: status.need("SealingStatus")?.as_text("SealingStatus")?.to_owned(),
                signed_proposal_cid: status.need("SignedProposalCid")?.as_link("SignedProposalCid")?,
            }),
        };
        Ok(Self {
            error: map.need("Error")?.as_text("Error")?.to_owned(),
            uuid: uuid(map.need("DealUUID")?)?,
            offline: map.need("IsOffline")?.as_bool("IsOffline")?,
            status,
            transfer_size: map.need("TransferSize")?.as_u64("TransferSize")?,
            received: map.need("NBytesReceived")?.as_u64("NBytesReceived")?,
        })
    }
}

/// What a provider charges and takes. Prices are attoFIL for a GiB and an epoch, sizes padded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) price: i128,
    pub(crate) verified_price: i128,
    pub(crate) min_piece_size: u64,
    pub(crate) max_piece_size: u64,
    pub(crate) miner: Address,
    pub(crate) timestamp: i64,
    pub(crate) expiry: i64,
    pub(crate) seq_no: u64,
}

impl Ask {
    fn to_cbor(&self) -> Cbor {
        Cbor::map([
            ("Miner", Cbor::Bytes(self.miner.to_bytes())),
            ("Price", Cbor::amount(self.price)),
            ("SeqNo", Cbor::Unsigned(self.seq_no)),
            ("Expiry", Cbor::int(self.expiry)),
            ("Timestamp", Cbor::int(self.timestamp)),
            ("MaxPieceSize", Cbor::Unsigned(self.max_piece_size)),
            ("MinPieceSize", Cbor::Unsigned(self.min_piece_size)),
            ("VerifiedPrice", Cbor::amount(self.verified_price)),
        ])
    }

    /// The answer to a question for the ask, signed with the worker's key.
    pub(crate) fn response(&self, worker: &Key) -> Result<Vec<u8>, Malformed> {
        let signature = worker.sign(&self.to_cbor().encode())?;
        let signed = Cbor::map([("Ask", self.to_cbor()), ("Signature", signature.to_cbor())]);
        Ok(Cbor::map([("Ask", signed)]).encode())
    }
}

/// The miner that a question for an ask names.
pub(crate) fn ask_request(bytes: &[u8]) -> Result<Address, Malformed> {
    Address::from_bytes(decode(bytes)?.need("Miner")?.as_bytes("Miner")?)
}

/// The proposals of a PublishStorageDeals.
pub(crate) fn read_publish_params(bytes: &[u8]) -> Result<Vec<ClientDealProposal>, Malformed> {
    let item = decode(bytes)?;
    let [deals] = item.as_tuple::<1>("PublishStorageDealsParams")?;
    deals.as_array("Deals")?.iter().map(ClientDealProposal::from_cbor).collect()
}

/// Writes [`read_publish_params`].
pub(crate) fn publish_params(deals: &[ClientDealProposal]) -> Vec<u8> {
    Cbor::Array(vec![Cbor::Array(deals.iter().map(ClientDealProposal::to_cbor).collect())]).encode()
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;

    use super::*;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../../../filecoin/tests/vectors/deal_cbor_vectors.json")).unwrap()
    }

    fn hex(value: &Value) -> Vec<u8> {
        HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
    }

    #[test]
    fn published_bytes() {
        let v = vectors();
        let params = DealParams::decode(&hex(&v["deal_params_v121_cbor"])).unwrap();
        assert_eq!(params.encode(), hex(&v["deal_params_v121_cbor"]));
        assert_eq!(params.deal.to_cbor().encode(), hex(&v["client_deal_proposal_cbor"]));
        let proposal = &params.deal.proposal;
        assert_eq!(proposal.to_cbor().encode(), hex(&v["deal_proposal_cbor"]));
        assert_eq!(proposal.cid().to_string(), v["deal_proposal_cid(dag-cbor,blake2b-256)"]);
        let signed =
            "signed_proposal_cid_sha256__DealStatus.SignedProposalCid_and_legacy_ClientStartDeal_result";
        assert_eq!(params.deal.cid().to_string(), v[signed]);

        let key = Key::from_bytes(&hex(&v["secp_private_key_hex"])).unwrap();
        assert_eq!(key.address().to_string(), v["client_address_f"]);
        let signature = key.sign(&proposal.to_cbor().encode()).unwrap();
        assert_eq!(signature.data, hex(&v["client_signature_secp(r||s||v)"]));
        assert_eq!(params.deal.signature.verify(proposal.client, &proposal.to_cbor().encode()), Ok(()));

        let status = StatusRequest::decode(&hex(&v["deal_status_request_cbor"])).unwrap();
        assert_eq!(status.encode(), hex(&v["deal_status_request_cbor"]));
        assert_eq!(status.signature.verify(proposal.client, &status.uuid), Ok(()));
        assert_eq!(ask_request(&hex(&v["ask_request_cbor"])).unwrap(), Address::Id(1000));
        assert_eq!(deal_response(None), hex(&v["deal_response_accepted_cbor"]));
        let refused = Some("storage price per epoch less than asking price: 1 < 2");
        assert_eq!(deal_response(refused), hex(&v["deal_response_rejected_cbor"]));
    }

    /// Every recorded exchange with a real Boost is read, and what was read is written as the same bytes.
    #[test]
    fn recorded_exchanges() {
        let all: Value =
            serde_json::from_str(include_str!("../../../filecoin/tests/vectors/boost-libp2p.json")).unwrap();
        for exchange in all["exchanges"].as_array().unwrap() {
            let (request, response) = (hex(&exchange["request_hex"]), hex(&exchange["response_hex"]));
            match exchange["protocol"].as_str().unwrap() {
                "/fil/storage/mk/1.2.1" | "/fil/storage/mk/1.2.0" => {
                    let params = DealParams::decode(&request).unwrap();
                    assert_eq!(params.encode(), request, "{}", exchange["label"]);
                    let decoded = &exchange["response_decoded"];
                    let refusal = decoded["Message"].as_str().filter(|text| !text.is_empty());
                    assert_eq!(deal_response(refusal), response);
                }
                "/fil/storage/status/1.2.0" => {
                    assert_eq!(StatusRequest::decode(&request).unwrap().encode(), request);
                    let decoded = StatusResponse::decode(&response).unwrap();
                    assert_eq!(decoded.encode(), response);
                    if let Some(status) = decoded.status {
                        assert_eq!(
                            status.proposal.json(),
                            exchange["response_decoded"]["DealStatus"]["Proposal"]
                        );
                    }
                }
                "/fil/storage/ask/1.1.0" => assert_eq!(ask_request(&request).unwrap(), Address::Id(1000)),
                _ => {}
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = (DealParams::decode(&bytes), StatusRequest::decode(&bytes), StatusResponse::decode(&bytes));
            let _ = (ask_request(&bytes), read_publish_params(&bytes));
        }

        #[test]
        fn a_changed_byte_is_read_or_refused(at in 0_usize..500, byte in any::<u8>()) {
            let mut bytes = hex(&vectors()["deal_params_v121_cbor"]);
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(params) = DealParams::decode(&bytes) {
                prop_assert_eq!(DealParams::decode(&params.encode()).unwrap(), params);
            }
        }
    }
}
