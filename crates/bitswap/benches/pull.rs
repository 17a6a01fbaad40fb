//! How fast a DAG's leaves come over bitswap, beside a raw libp2p stream of as many bytes in the same run.
//!
//! `cargo bench -p floe-bitswap --bench pull [-- MEBIBYTES]`: two runtimes on loopback, TCP, noise, yamux with
//! the library's settings for both. Every block is hashed and checked; the walk and the store are not part
//! of it. Ratios count, not absolute figures: each is the median of its rounds, raw and bitswap in turns.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program for the terminal that stops at what is wrong"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use floe_core::{Block, Clock};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::{Endpoint, Transport, upgrade};
use libp2p::{PeerId, identity, noise, tcp, yamux};
use support::{MapBlocks, Node, SystemClock, cids, leaves, next};
use tokio::runtime::Runtime;

const ROUNDS: usize = 3;

fn main() {
    let mebibytes: usize = std::env::args().filter_map(|arg| arg.parse().ok()).next().unwrap_or(512);
    let here = Bench { serving: runtime(), pulling: runtime(), clock: SystemClock::shared() };
    for (name, leaf) in [("256 KiB", 256 << 10), ("1 MiB", 1 << 20)] {
        let blocks = leaves(u32::try_from((mebibytes << 20) / leaf).unwrap(), leaf);
        let bytes = blocks.len() * leaf;
        let rounds: Vec<(Cost, Cost)> = (0..ROUNDS)
            .map(|_| (here.measure(|| here.raw(bytes)), here.measure(|| here.bitswap(&blocks))))
            .collect();
        let (raw, bitswap) =
            (Cost::median(rounds.iter().map(|r| r.0)), Cost::median(rounds.iter().map(|r| r.1)));
        let rate = |cost: Cost| bytes as f64 / 1e6 / cost.seconds;
        println!(
            "{mebibytes} MiB in {name} leaves: raw {:.0} MB/s, bitswap {:.0} MB/s, ratio {:.2}; \
             CPU of both ends {:.2} s and {:.2} s, ratio {:.2}",
            rate(raw),
            rate(bitswap),
            raw.seconds / bitswap.seconds,
            raw.cpu,
            bitswap.cpu,
            raw.cpu / bitswap.cpu,
        );
    }
    let blocks = leaves(100_000, 256);
    let cost = Cost::median((0..ROUNDS).map(|_| here.measure(|| here.bitswap(&blocks))));
    println!(
        "{} blocks of 256 B: {:.0} blocks/s, {:.1} us of CPU a block",
        blocks.len(),
        blocks.len() as f64 / cost.seconds,
        cost.cpu * 1e6 / blocks.len() as f64
    );
}

/// What a round took.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    /// Seconds of processor time of this process, so of both ends; 0 where the system does not say. On a
    /// busy machine its ratio is steadier than that of the wall clock.
    cpu: f64,
}

impl Cost {
    fn median(rounds: impl Iterator<Item = Self>) -> Self {
        let rounds: Vec<Self> = rounds.collect();
        Self {
            seconds: median(rounds.iter().map(|cost| cost.seconds)),
            cpu: median(rounds.iter().map(|cost| cost.cpu)),
        }
    }
}

/// User and system time of this process, from Linux's procfs in ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

struct Bench {
    serving: Runtime,
    pulling: Runtime,
    clock: Arc<dyn Clock>,
}

impl Bench {
    fn measure(&self, round: impl Fn() -> f64) -> Cost {
        let before = cpu_seconds();
        let seconds = round();
        Cost { seconds, cpu: cpu_seconds() - before }
    }

    /// Seconds to pull every block once.
    fn bitswap(&self, blocks: &[Block]) -> f64 {
        let seeder = self.serving.block_on(Node::new(MapBlocks::of(blocks)));
        let wanted = cids(blocks);
        self.pulling.block_on(async {
            let client = Node::new(MapBlocks::of([])).await;
            client.dial(&seeder).await;
            client.connected(1).await;
            let task = tokio::spawn(async move {
                let mut session = client.handle.session(wanted[0]);
                session.add_providers(&[seeder.peer]);
                let (mut rest, mut left) = (&wanted[..], wanted.len());
                let clock = SystemClock::shared();
                while left > 0 {
                    let (now, later) = rest.split_at(session.room().min(rest.len()));
                    rest = later;
                    session.want(now);
                    left -= next(&mut session).await.len();
                }
                clock.monotonic().as_secs_f64()
            });
            task.await.unwrap()
        })
    }

    /// Seconds to pull as many bytes over one stream.
    fn raw(&self, bytes: usize) -> f64 {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.serving.spawn(async move {
            let mut transport = transport();
            transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse().unwrap()).unwrap();
            let mut sender = Some(sender);
            let (_, muxer) = loop {
                match transport.select_next_some().await {
                    TransportEvent::NewAddress { listen_addr, .. } => {
                        sender.take().unwrap().send(listen_addr).unwrap()
                    }
                    TransportEvent::Incoming { upgrade, .. } => break upgrade.await.unwrap(),
                    _ => {}
                }
            };
            serve_raw(muxer, bytes).await;
        });
        self.pulling.block_on(async {
            let address = receiver.await.unwrap();
            let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
            let (_, muxer) = transport().dial(address, options).unwrap().await.unwrap();
            let clock = self.clock.clone();
            tokio::spawn(async move { pull_raw(muxer, bytes, &*clock).await }).await.unwrap().as_secs_f64()
        })
    }
}

fn transport() -> Boxed<(PeerId, StreamMuxerBox)> {
    let key = identity::Keypair::generate_ed25519();
    tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(upgrade::Version::V1Lazy)
        .authenticate(noise::Config::new(&key).unwrap())
        .multiplex(yamux::Config::default())
        .boxed()
}

fn drive(mut muxer: StreamMuxerBox) {
    tokio::spawn(async move {
        loop {
            if std::future::poll_fn(|cx| muxer.poll_unpin(cx)).await.is_err() {
                return;
            }
        }
    });
}

async fn serve_raw(mut muxer: StreamMuxerBox, bytes: usize) {
    let mut stream = std::future::poll_fn(|cx| {
        let _ = muxer.poll_unpin(cx)?;
        muxer.poll_inbound_unpin(cx)
    })
    .await
    .unwrap();
    drive(muxer);
    let mut go = [0];
    stream.read_exact(&mut go).await.unwrap();
    let chunk = vec![7; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let n = left.min(chunk.len());
        stream.write_all(&chunk[..n]).await.unwrap();
        left -= n;
    }
    stream.close().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn pull_raw(mut muxer: StreamMuxerBox, bytes: usize, clock: &dyn Clock) -> Duration {
    let mut stream = std::future::poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await.unwrap();
    drive(muxer);
    let from = clock.monotonic();
    stream.write_all(&[1]).await.unwrap();
    stream.flush().await.unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let n = Pin::new(&mut stream).read(&mut buffer).await.unwrap();
        assert!(n > 0, "the stream ended early");
        left -= n;
    }
    clock.monotonic() - from
}
