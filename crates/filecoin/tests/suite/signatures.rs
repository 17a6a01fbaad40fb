//! Signatures of others: the vectors' key gives the vectors' signatures, and those of a real Lotus name their signer.

use data_encoding::HEXLOWER;
use floe_filecoin::signer::{LocalKey, Signer as _, recover};
use floe_filecoin::types::{Signature, SignedMessage};
use futures::executor::block_on;

use crate::recordings::{recorded, recorded_calls};

#[test]
fn the_key_of_the_vectors_signs_as_the_vectors_do() {
    let v = recorded("deal_cbor_vectors.json");
    let hex = |key: &str| HEXLOWER.decode(v[key].as_str().unwrap().as_bytes()).unwrap();
    let key = LocalKey::from_bytes(&[0x11; 32]).unwrap();
    assert_eq!(key.address().to_string(), v["client_address_f"].as_str().unwrap());
    let proposal = hex("deal_proposal_cbor");
    let signature = block_on(key.sign(&proposal)).unwrap();
    assert_eq!(signature.data(), hex("client_signature_secp(r||s||v)"));
    assert_eq!(recover(&proposal, &signature), Some(key.address()));
    let uuid = HEXLOWER.decode(b"00112233445566778899aabbccddeeff").unwrap();
    let signature = block_on(key.sign(&uuid)).unwrap();
    assert!(hex("deal_status_request_cbor").ends_with(signature.data()));
}

/// A real Lotus signs messages over the bytes of their CID; the one with a changed value is nobody's we know.
#[test]
fn recorded_messages_are_signed_over_their_cid() {
    let mut checked = 0;
    for call in recorded_calls().iter().filter(|call| call.method == "Filecoin.MpoolPush") {
        let message: SignedMessage = serde_json::from_value(call.params[0].clone()).unwrap();
        let signer = recover(&message.message.cid().to_bytes(), &message.signature);
        let is_good = call.label != "MpoolPush signature does not match";
        assert_eq!(signer == Some(message.message.from), is_good, "{}", call.label);
        checked += 1;
    }
    assert_eq!(checked, 6);
}

#[test]
fn a_recorded_signature_of_the_wallet_names_its_key() {
    let calls = recorded_calls();
    let call = calls.iter().find(|call| call.label == "WalletSign").unwrap();
    let signature: Signature = serde_json::from_value(call.response["result"].clone()).unwrap();
    let signer = recover(b"hello", &signature).unwrap();
    assert_eq!(signer.to_string(), call.params[0].as_str().unwrap());
}
