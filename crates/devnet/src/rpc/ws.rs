//! The WebSocket: the same calls, and subscriptions as go-jsonrpc's channels.
//!
//! The answer to a subscription is the number of its channel; values come as `xrpc.ch.val [channel, value]`. It ends
//! with `xrpc.cancel [id of the request]`, which is answered by one `xrpc.ch.close [channel]`, or when the listener
//! is too slow. A frame that is no JSON is ignored in silence.
//!
//! One task reads, one writes; subscriptions and calls are tasks that send to the writer. All end with the reader.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use data_encoding::BASE64;
use http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use sha1::{Digest, Sha1};
use soketto::connection::{Builder, Mode};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::methods::change;
use super::{Call, Caller, Reply};
use crate::chain::HeadChange;
use crate::limits::{HEAD_CHANGES, RPC_BODY_BYTES, SUBSCRIPTIONS};
use crate::node::Node;
use crate::serve::AfterUpgrade;

/// The answer to a request for a WebSocket; None where it is not asked for as it should be. What follows on the
/// connection ends when the connection does, or its server.
pub(super) fn upgrade(caller: Caller, mut request: Request<()>) -> Option<Response> {
    let after = request.extensions().get::<AfterUpgrade>()?.clone();
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY)?;
    // RFC 6455, 4.2.2: the key and a constant, hashed.
    let hash = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, BASE64.encode(&hash))
        .body(Body::empty())
        .ok()?;
    let upgraded = hyper::upgrade::on(&mut request);
    after.run(async move {
        if let Ok(upgraded) = upgraded.await {
            run(caller, TokioIo::new(upgraded)).await;
        }
    });
    Some(response)
}

async fn run(caller: Caller, socket: TokioIo<hyper::upgrade::Upgraded>) {
    let mut builder = Builder::new(socket.compat(), Mode::Server);
    builder.set_max_message_size(RPC_BODY_BYTES);
    let (mut sender, mut receiver) = builder.finish();
    let (out, mut frames) = mpsc::channel::<String>(HEAD_CHANGES);
    let write = async move {
        while let Some(frame) = frames.recv().await {
            if sender.send_text(frame).await.is_err() || sender.flush().await.is_err() {
                return;
            }
        }
    };
    let read = async move {
        let mut session = Session {
            caller: Arc::new(caller),
            out,
            tasks: JoinSet::new(),
            channels: BTreeMap::new(),
            next: 0,
        };
        let mut frame = Vec::new();
        while receiver.receive_data(&mut frame).await.is_ok() {
            while session.tasks.try_join_next().is_some() {}
            if session.take(&frame).await.is_none() {
                return;
            }
            frame.clear();
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}

struct Session {
    caller: Arc<Caller>,
    out: mpsc::Sender<String>,
    tasks: JoinSet<()>,
    /// By the text of the request's id.
    channels: BTreeMap<String, (u64, AbortHandle)>,
    next: u64,
}

impl Session {
    /// One frame. None when the socket must end.
    async fn take(&mut self, frame: &[u8]) -> Option<()> {
        let Ok(request) = serde_json::from_slice::<Value>(frame) else { return Some(()) };
        let Ok(call) = Call::read(&request) else { return Some(()) };
        if call.method == "xrpc.cancel" {
            let key = call.params[0].to_string();
            let Some((channel, task)) = self.channels.remove(&key) else { return Some(()) };
            task.abort();
            return self.out.send(close(channel)).await.ok();
        }
        if self.tasks.len() >= SUBSCRIPTIONS {
            return None;
        }
        if call.method != "Filecoin.ChainNotify" {
            let (caller, out) = (Arc::clone(&self.caller), self.out.clone());
            self.tasks.spawn(async move {
                if let Some(reply) = caller.answer(&request).await {
                    // The socket may be gone.
                    let _ = out.send(reply.text()).await;
                }
            });
            return Some(());
        }
        let Some(id) = call.id else { return Some(()) };
        self.next += 1;
        let channel = self.next;
        // The answer goes out before the first value.
        let reply = Reply { id: id.clone(), result: Ok(channel.into()) };
        self.out.send(reply.text()).await.ok()?;
        let task = self.tasks.spawn(notify(Arc::clone(&self.caller.rpc.node), channel, self.out.clone()));
        self.channels.insert(id.to_string(), (channel, task));
        Some(())
    }
}

/// The head, then every change of it.
async fn notify(node: Arc<Node>, channel: u64, out: mpsc::Sender<String>) {
    let (first, mut changes) = node.follow_shown(|chain| change("current", chain.head()));
    if out.send(value(channel, &Value::Array(vec![first]))).await.is_err() {
        return;
    }
    while let Ok(steps) = changes.recv().await {
        let values = steps.iter().map(|step| match step {
            HeadChange::Apply(tipset) => change("apply", tipset),
            HeadChange::Revert(tipset) => change("revert", tipset),
        });
        if out.send(value(channel, &values.collect())).await.is_err() {
            return;
        }
    }
    // Too slow: cut off, as Lotus does. The socket may be gone.
    let _ = out.send(close(channel)).await;
}

fn value(channel: u64, value: &Value) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"method\":\"xrpc.ch.val\",\"params\":[{channel},{value}]}}\n")
}

fn close(channel: u64) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"method\":\"xrpc.ch.close\",\"params\":[{channel}]}}\n")
}
