//! Over libp2p: a client that dials a provider, asks one thing and hears one answer.

use futures::StreamExt;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, Message, OutboundFailure, ProtocolSupport};
use libp2p::swarm::{self, Swarm, SwarmEvent};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use serde_json::json;

use super::client::World;
use super::*;
use crate::provider::codec::{ASK, Mk12, PROPOSE, PROPOSE_OLD, Request, STATUS, TRANSPORTS};
use crate::wire::cbor::{Cbor, decode};
use crate::wire::deal::StatusResponse;

/// What a provider answers on a new connection to what is sent raw.
pub(super) async fn exchange(
    provider: &ReadyProvider,
    protocol: StreamProtocol,
    bytes: Vec<u8>,
) -> Result<Vec<u8>, OutboundFailure> {
    let addr: Multiaddr = provider.multiaddrs[0].parse().unwrap();
    let peer: PeerId = provider.peer_id.parse().unwrap();
    let is_websocket = addr.iter().any(|part| matches!(part, Protocol::Ws(_)));
    let manner = if is_websocket { Manner::Curio } else { Manner::Boost };
    let key = Keypair::generate_ed25519();
    let protocols = [(protocol.clone(), ProtocolSupport::Outbound)];
    let config = request_response::Config::default().with_request_timeout(Duration::from_secs(20));
    let market = request_response::Behaviour::with_codec(Mk12::default(), protocols, config);
    let transport = p2p::transport(&key, manner).unwrap();
    let ours = key.public().to_peer_id();
    let mut swarm = Swarm::new(transport, market, ours, swarm::Config::with_tokio_executor());
    swarm.add_peer_address(peer, addr);
    swarm.behaviour_mut().send_request(&peer, Request { protocol, bytes });
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(request_response::Event::Message {
                message: Message::Response { response, .. },
                ..
            }) => return Ok(response),
            SwarmEvent::Behaviour(request_response::Event::OutboundFailure { error, .. }) => {
                return Err(error);
            }
            _ => {}
        }
    }
}

impl World {
    async fn ask_peer(
        &self,
        n: usize,
        protocol: StreamProtocol,
        bytes: Vec<u8>,
    ) -> Result<Vec<u8>, OutboundFailure> {
        exchange(&self.devnet.ready().providers[n], protocol, bytes).await
    }
}

/// Boost's address is TCP, Curio's the WebSocket of its HTTP server; both are those of the chain.
#[tokio::test]
async fn the_chain_says_where_a_provider_is() {
    let world = World::start(&[Manner::Curio, Manner::Boost]).await;
    for (n, end) in [(0, "/ws"), (1, "")] {
        let provider = &world.devnet.ready().providers[n];
        let info = world.call("StateMinerInfo", json!([provider.id, []])).await;
        let bytes = BASE64.decode(info["Multiaddrs"][0].as_str().unwrap().as_bytes()).unwrap();
        let addr = Multiaddr::try_from(bytes).unwrap();
        assert_eq!(provider.multiaddrs, [addr.to_string()]);
        assert_eq!(info["PeerId"], provider.peer_id);
        assert!(addr.to_string().ends_with(end));
        let port = provider.url.rsplit_once(':').unwrap().1;
        assert_eq!(addr.iter().nth(1) == Some(Protocol::Tcp(port.parse().unwrap())), n == 0);
    }
    let quiet = Config { on_chain_addrs: false, epoch: None, ..Config::default() };
    let again = Devnet::start(quiet).await.unwrap();
    let peer = |ready: &Ready| ready.providers[1].peer_id.clone();
    assert_eq!(peer(again.ready()), peer(world.devnet.ready()), "keys follow from the seed");
    let request = r#"{"jsonrpc":"2.0","method":"Filecoin.StateMinerInfo","params":["f01000",[]],"id":1}"#;
    let (_, _, body) = ask("POST", &again.ready().rpc, "/rpc/v1", None, request).await;
    assert!(body.contains("\"Multiaddrs\":null"), "{body}");
}

#[tokio::test]
async fn a_deal_over_libp2p() {
    let world = World::start(&[Manner::Curio, Manner::Boost]).await;
    for (n, protocol) in [(0, PROPOSE), (1, PROPOSE_OLD)] {
        let question = Cbor::map([("Miner", Cbor::Bytes(vec![0, 0xe8 + n as u8, 7]))]).encode();
        let ask = decode(&world.ask_peer(n, ASK, question).await.unwrap()).unwrap();
        let price = ask.need("Ask").unwrap().need("Ask").unwrap().need("Price").unwrap().clone();
        assert_eq!(price, Cbor::amount(50_000_000));

        let params = world.proposal(n, &n.to_string()).await;
        let answer = world.ask_peer(n, protocol, params.encode()).await.unwrap();
        assert_eq!(decode(&answer).unwrap().need("Accepted"), Ok(&Cbor::Bool(true)));
        world.transferred(n).await;
        let id = world.published(n).await;
        world.active(id).await;
        let answer = world.ask_peer(n, STATUS, world.question(n).encode()).await.unwrap();
        let status = StatusResponse::decode(&answer).unwrap();
        assert_eq!(status.status.as_ref().unwrap().chain_deal_id, id);
        assert_eq!(Some(status), world.status(n).await, "the same over HTTP");

        let answer = decode(&world.ask_peer(n, TRANSPORTS, Vec::new()).await.unwrap()).unwrap();
        let names = answer.need("Protocols").unwrap().as_array("Protocols").unwrap().iter();
        let names: Vec<_> = names.map(|one| one.need("Name").unwrap().as_text("Name").unwrap()).collect();
        assert_eq!(names, [&["http"][..], &["libp2p", "http"]][n]);
    }
}

/// Curio takes no data over libp2p, whatever it is asked over.
#[tokio::test]
async fn curio_refuses_libp2p_transfers() {
    let world = World::start(&[Manner::Curio]).await;
    let mut params = world.proposal(0, "0").await;
    params.transfer.kind = "libp2p".into();
    let answer = decode(&world.ask_peer(0, PROPOSE, params.encode()).await.unwrap()).unwrap();
    let text = "libp2p URLs are not supported by this provider";
    assert_eq!(answer.need("Message"), Ok(&Cbor::text(text)));
    assert_eq!(answer.need("Accepted"), Ok(&Cbor::Bool(false)));
}

/// Where an answer is owed and none comes, the stream or the connection ends, and the provider goes on.
#[tokio::test]
async fn no_answer_is_the_end_of_the_stream() {
    let world = World::start(&[Manner::Boost, Manner::Curio]).await;
    for n in 0..2 {
        world.ask_peer(n, PROPOSE, vec![0xff]).await.unwrap_err();
        world.ask_peer(n, PROPOSE, Cbor::map([]).encode()).await.unwrap_err();
        let another = Cbor::map([("Miner", Cbor::Bytes(vec![0, 1]))]).encode();
        world.ask_peer(n, ASK, another).await.unwrap_err();

        world.script(n, json!({"status": "silent", "lose_reply": true})).await;
        world.ask_peer(n, STATUS, world.question(n).encode()).await.unwrap_err();
        let params = world.proposal(n, &n.to_string()).await;
        world.ask_peer(n, PROPOSE, params.encode()).await.unwrap_err();
        assert_eq!(world.book(n).await["refused"], false, "the deal was taken");

        world.script(n, json!({"offline": true})).await;
        world.ask_peer(n, TRANSPORTS, Vec::new()).await.unwrap_err();
        world.script(n, json!({})).await;
        world.ask_peer(n, TRANSPORTS, Vec::new()).await.unwrap();
    }
    let unknown = StreamProtocol::new("/fil/storage/mk/1.1.1");
    let refused = world.ask_peer(0, unknown, vec![0xa0]).await.unwrap_err();
    assert!(matches!(refused, OutboundFailure::UnsupportedProtocols), "{refused}");
}
