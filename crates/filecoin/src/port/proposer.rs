//! [`cold::Proposer`]: terms become the bytes of a deal, signed by the wallet.

use std::sync::Arc;

use floe_core::FailureCode;
use floe_core::clock::BoxFuture;
use floe_core::cold::{self, DealTerms, Fault, SignedDeal};
use serde::Serialize;

use crate::market::mk12::{DealParams, DealUuid, Transfer};
use crate::market::{ClientDealProposal, DealProposal, Label};
use crate::signer::Signer;
use crate::types::cbor::Cbor as _;
use crate::types::{Address, AttoFil};

/// Signs deals with one wallet.
pub struct DealSigner {
    signer: Arc<dyn Signer>,
}

/// Where the provider pulls from, as Boost and Curio read it.
#[derive(Serialize)]
struct HttpRequest<'a> {
    #[serde(rename = "URL")]
    url: &'a str,
    #[serde(rename = "Headers")]
    headers: std::collections::BTreeMap<&'a str, &'a str>,
}

impl DealSigner {
    /// Signs with `signer`.
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self { signer }
    }

    async fn signed(&self, terms: &DealTerms) -> Result<SignedDeal, Fault> {
        let proposal = proposal(self.signer.address(), terms)?;
        let signature = self.signer.sign(&proposal.to_cbor()).await?;
        let proposal = ClientDealProposal { proposal, signature };
        let signed_cid = proposal.cid();
        let params = DealParams {
            deal_uuid: DealUuid(*terms.uuid.0.as_bytes()),
            is_offline: false,
            proposal,
            root: terms.root,
            transfer: transfer(terms)?,
            // What is only sealed takes hours to read back.
            remove_unsealed_copy: false,
            skip_ipni_announce: !terms.ipni,
        };
        Ok(SignedDeal { bytes: params.to_cbor(), signed_cid })
    }
}

fn nonsense(what: &str) -> Fault {
    Fault::new(FailureCode::RejectedOther, format!("nothing was signed: {what}"))
}

/// The same terms give the same proposal, byte for byte.
fn proposal(client: Address, terms: &DealTerms) -> Result<DealProposal, Fault> {
    let label = Label::text(&terms.root.to_string()).ok_or_else(|| nonsense("the root is no label"))?;
    let proposal = DealProposal {
        piece_cid: terms.piece.to_cid(),
        piece_size: terms.size,
        verified_deal: false,
        client,
        provider: Address::Id(terms.provider.get()),
        label,
        start_epoch: terms.start,
        end_epoch: terms.end,
        storage_price_per_epoch: terms.price_per_epoch,
        provider_collateral: terms.collateral,
        client_collateral: AttoFil::ZERO,
    };
    let sound = proposal.escrow_needed().is_some();
    if sound { Ok(proposal) } else { Err(nonsense("the term is empty, or its price cannot be held")) }
}

fn transfer(terms: &DealTerms) -> Result<Transfer, Fault> {
    let request = HttpRequest { url: &terms.url, headers: std::collections::BTreeMap::new() };
    let params = serde_json::to_vec(&request).map_err(|_| nonsense("the URL cannot be written"))?;
    if terms.car_bytes == 0 || terms.car_bytes > terms.size.unpadded_bytes() {
        return Err(nonsense("the data does not fit the piece"));
    }
    Ok(Transfer { size: terms.car_bytes, kind: "http".into(), params, client_id: String::new() })
}

impl cold::Proposer for DealSigner {
    fn wallet(&self) -> String {
        self.signer.address().to_string()
    }

    fn sign<'a>(&'a self, terms: &'a DealTerms) -> BoxFuture<'a, Result<SignedDeal, Fault>> {
        Box::pin(self.signed(terms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signer::{LocalKey, recover};
    use floe_core::cold::Proposer as _;
    use floe_core::{ActorId, Epoch, PaddedSize, PieceCid};
    use futures::executor::block_on;

    fn terms() -> DealTerms {
        DealTerms {
            uuid: cold::DealUuid(uuid::Uuid::from_u128(7)),
            provider: ActorId::new(1000),
            piece: PieceCid::from_commitment([0x11; 32]).unwrap(),
            size: PaddedSize::from_bytes(1 << 20).unwrap(),
            car_bytes: 1_000,
            root: "bafy2bzacebt2ee4rg3gcnnyayymqe2tnjucon3nice6xkwjlar5vbtlfkayxg".parse().unwrap(),
            url: "https://floe.example/pull/7?\"s\"".into(),
            start: Epoch::new(100),
            end: Epoch::new(518_500),
            price_per_epoch: AttoFil::new(5),
            collateral: AttoFil::new(9),
            ipni: true,
        }
    }

    fn signer() -> (DealSigner, Address) {
        let key = LocalKey::from_bytes(&[0x11; 32]).unwrap();
        let address = key.address();
        (DealSigner::new(Arc::new(key)), address)
    }

    #[test]
    fn the_same_terms_give_the_same_bytes() {
        let (signer, wallet) = signer();
        let one = block_on(signer.sign(&terms())).unwrap();
        assert_eq!(block_on(signer.sign(&terms())).unwrap(), one);
        let read = DealParams::from_cbor(&one.bytes).unwrap();
        assert_eq!(read.proposal.cid(), one.signed_cid);
        assert_eq!(recover(&read.proposal.proposal.to_cbor(), &read.proposal.signature), Some(wallet));
        assert_eq!(read.proposal.proposal.label.as_text(), Some(terms().root.to_string().as_str()));
        assert_eq!((read.proposal.proposal.client, read.skip_ipni_announce), (wallet, false));
        let request: serde_json::Value = serde_json::from_slice(&read.transfer.params).unwrap();
        assert_eq!(request, serde_json::json!({"URL": terms().url, "Headers": {}}));
    }

    #[test]
    fn nonsense_is_not_signed() {
        let (signer, _) = signer();
        for (what, bad) in [
            ("no term", DealTerms { end: Epoch::new(100), ..terms() }),
            ("a price that overflows", DealTerms { price_per_epoch: AttoFil::new(u128::MAX), ..terms() }),
            ("no data", DealTerms { car_bytes: 0, ..terms() }),
            ("data that does not fit", DealTerms { car_bytes: 1 << 20, ..terms() }),
        ] {
            assert!(block_on(signer.sign(&bad)).is_err(), "{what}");
        }
    }
}
