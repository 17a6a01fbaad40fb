//! What a node's wallet sends as a signature is checked before it is used.

use floe_filecoin::signer::{LocalKey, LotusWallet, SignError, Signer as _};
use floe_filecoin::types::{Address, Signature, SignatureKind};
use serde_json::{Value, json};

use crate::node::{Node, Reply, replay};

fn vector_key() -> LocalKey {
    LocalKey::from_bytes(&[0x11; 32]).unwrap()
}

#[tokio::test]
async fn the_wallet_of_the_node_signs_and_is_checked() {
    let lotus = replay().await.lotus();
    let absent: Address = "f1abjxfbp274xpdqcpuaykwkfb43omjotacm2p3za".parse().unwrap();
    assert_eq!(LotusWallet::open(lotus, absent).await.unwrap_err(), SignError::Key(absent));

    // A node that signs with a key of its own in place of ours.
    let ours: Address = "f1m2utkkedryx7s56kyqephgav2gr225xxrpegyhy".parse().unwrap();
    let forged = vector_key().sign(b"hello").await.unwrap();
    let node = Node::start(move |method, _| match method {
        "WalletHas" => Reply::Result(json!(true)),
        "WalletSign" => Reply::Result(serde_json::to_value(&forged).unwrap()),
        other => panic!("{other}"),
    })
    .await;
    let wallet = LotusWallet::open(node.lotus(), ours).await.unwrap();
    assert_eq!(wallet.sign(b"hello").await, Err(SignError::NotOurs(ours)));
    // The same node for its own key.
    let own = LotusWallet::open(node.lotus(), vector_key().address()).await.unwrap();
    assert!(own.sign(b"hello").await.is_ok());
    assert_eq!(own.sign(b"other bytes").await, Err(SignError::NotOurs(own.address())));
    let id = LotusWallet::open(node.lotus(), Address::Id(1_002)).await;
    assert!(matches!(id, Err(SignError::Key(_))), "an id signs nothing");
}

#[tokio::test]
async fn a_bls_signature_is_checked_by_the_node() {
    let bls: Address =
        "f3w27lmvh35ysezgggzctk57bkvwx7twqk67jbjjfcx5k3kgfu3ugudc7skynnlsbzicxzc4rn5sfrz7kzchgq"
            .parse()
            .unwrap();
    for good in [true, false] {
        let signature = Signature::new(SignatureKind::Bls, vec![9; 96]).unwrap();
        let answer: Value = serde_json::to_value(&signature).unwrap();
        let node = Node::start(move |method, _| match method {
            "WalletHas" => Reply::Result(json!(true)),
            "WalletSign" => Reply::Result(answer.clone()),
            "WalletVerify" => Reply::Result(json!(good)),
            other => panic!("{other}"),
        })
        .await;
        let wallet = LotusWallet::open(node.lotus(), bls).await.unwrap();
        let expected = if good { Ok(signature) } else { Err(SignError::NotOurs(bls)) };
        assert_eq!(wallet.sign(b"hello").await, expected);
    }
}
