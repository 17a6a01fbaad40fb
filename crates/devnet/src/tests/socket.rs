//! The WebSocket, against the recording and over a reorg.

use serde_json::json;
use soketto::handshake::{Client, ServerResponse};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::client::World;
use super::*;

type Stream = Compat<TcpStream>;

struct Socket {
    sender: soketto::Sender<Stream>,
    receiver: soketto::Receiver<Stream>,
}

impl Socket {
    async fn open(ready: &Ready) -> Self {
        let authority = ready.rpc.strip_prefix("http://").unwrap();
        let stream = TcpStream::connect(authority).await.unwrap();
        let mut client = Client::new(stream.compat(), authority, "/rpc/v1");
        let ServerResponse::Accepted { .. } = client.handshake().await.unwrap() else {
            panic!("the upgrade was refused");
        };
        let (sender, receiver) = client.into_builder().finish();
        Self { sender, receiver }
    }

    async fn send(&mut self, frame: &str) {
        self.sender.send_text(frame).await.unwrap();
        self.sender.flush().await.unwrap();
    }

    /// The next frame; None when the other side is gone.
    async fn next(&mut self) -> Option<String> {
        let mut frame = Vec::new();
        let received = self.receiver.receive_data(&mut frame);
        let received = tokio::time::timeout(Duration::from_secs(10), received).await;
        received.expect("no frame came, and no end").ok()?;
        Some(String::from_utf8(frame).unwrap())
    }

    /// The steps of the next value of a channel: kind, height, CID, parent.
    async fn steps(&mut self) -> Vec<(String, i64, Value, Value)> {
        let frame: Value = serde_json::from_str(&self.next().await.unwrap()).unwrap();
        assert_eq!(frame["method"], "xrpc.ch.val");
        let steps = frame["params"][1].as_array().unwrap().iter();
        steps
            .map(|step| {
                let tipset = &step["Val"];
                let parents = tipset["Blocks"][0]["Parents"].clone();
                let kind = step["Type"].as_str().unwrap().to_owned();
                (kind, tipset["Height"].as_i64().unwrap(), tipset["Cids"].clone(), parents)
            })
            .collect()
    }
}

const SUBSCRIBE: &str = r#"{"jsonrpc": "2.0", "id": 1, "method": "Filecoin.ChainNotify", "params": []}"#;

/// What a frame looks like with its values left out: keys and kinds of values; of several alike in a row, one.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(key, value)| format!("{key}:{}", shape(value)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(items) => {
            let mut items: Vec<String> = items.iter().map(shape).collect();
            items.dedup();
            format!("[{}]", items.join(","))
        }
        Value::String(_) => "text".into(),
        Value::Number(_) => "number".into(),
        other => other.to_string(),
    }
}

/// The recorded session again: the same frames are sent, and what comes has the same form in the same order. Values
/// are compared where they follow from no chain.
#[tokio::test]
async fn the_recorded_session() {
    let devnet = Devnet::start(Config { epoch: None, ..Config::default() }).await.unwrap();
    let ready = devnet.ready();
    let step = async || {
        assert_eq!(ask("POST", &ready.control, "/epochs/step", None, r#"{"n": 1}"#).await.0, 200);
    };
    // The genesis has no block before it, and looks otherwise.
    step().await;
    let mut socket = Socket::open(ready).await;
    let recorded: Value =
        serde_json::from_str(include_str!("../../../filecoin/tests/vectors/lotus-ws.json")).unwrap();
    let (mut values, mut replies) = (0, 0);
    for frame in recorded.as_array().unwrap() {
        let text = frame["frame"].as_str().unwrap();
        if frame["dir"] == ">" {
            socket.send(text).await;
            continue;
        }
        let wanted: Value = serde_json::from_str(text).unwrap();
        let is_value = wanted["method"] == "xrpc.ch.val";
        if is_value && values > 0 {
            step().await;
        }
        let got = socket.next().await.unwrap();
        assert_eq!(got.ends_with('\n'), text.ends_with('\n'), "{got}");
        let got: Value = serde_json::from_str(&got).unwrap();
        assert_eq!(shape(&got), shape(&wanted));
        if is_value {
            assert_eq!(got["params"][0], wanted["params"][0]);
            assert_eq!(got["params"][1][0]["Type"], wanted["params"][1][0]["Type"]);
            values += 1;
        } else {
            replies += 1;
            if !wanted["result"].is_object() {
                assert_eq!(got, wanted);
            }
        }
    }
    assert_eq!((values, replies), (7, 6));
}

/// Every step back, from the head on, then every step forth, in one frame; and each block names the one before.
#[tokio::test]
async fn a_reorg_is_told_in_order() {
    let world = World::start(&[Manner::Curio]).await;
    // The client's escrow must be on both sides.
    world.step(5).await;
    world.deal(0).await;
    world.transferred(0).await;
    let id = world.published(0).await;
    let mut socket = Socket::open(world.devnet.ready()).await;
    socket.send(SUBSCRIBE).await;
    socket.next().await.unwrap();
    let current = socket.steps().await;
    assert_eq!((current.len(), current[0].0.as_str()), (1, "current"));
    let (height, mut at) = (current[0].1, current[0].2.clone());

    let depth = 4;
    world.control("POST", "/reorg", json!({"depth": depth, "keep": false})).await;
    let steps = socket.steps().await;
    let kinds: Vec<&str> = steps.iter().map(|step| step.0.as_str()).collect();
    assert_eq!(kinds, [["revert"; 4].as_slice(), ["apply"; 5].as_slice()].concat());
    for (kind, _, cid, parent) in &steps {
        if kind == "revert" {
            assert_eq!(*cid, at);
            at = parent.clone();
        } else {
            assert_eq!(*parent, at);
            at = cid.clone();
        }
    }
    assert_eq!(steps.last().unwrap().1, height + 1);
    let head = world.call("ChainHead", json!([])).await;
    assert_eq!(head["Cids"], at);
    // The publication was on the side that lost: the chain does not know the deal, until its provider sends it again.
    assert!(world.rpc("StateMarketStorageDeal", json!([id, []])).await.get("error").is_some());
    let id = world.published(0).await;
    world.active(id).await;
}

/// A devnet was dropped, and a client's WebSocket stayed open and silent for ever: its task belonged to nobody, and
/// kept the chain alive. A client in such a test waited until the test runner ended it.
#[tokio::test]
async fn the_socket_ends_with_its_server() {
    let devnet = Devnet::start(Config { epoch: None, ..Config::default() }).await.unwrap();
    let mut socket = Socket::open(devnet.ready()).await;
    socket.send(SUBSCRIBE).await;
    assert_eq!(socket.next().await.unwrap(), "{\"id\":1,\"jsonrpc\":\"2.0\",\"result\":1}\n");
    assert!(socket.next().await.unwrap().contains("current"));
    drop(devnet);
    assert_eq!(socket.next().await, None);
}
