//! T8: what a flood of connections, streams or identify messages does to the API, beside what it is without.
//!
//! One run compares both. Short windows take turns: a quiet one, then one with a flood, and so on. Each window gives the
//! p99 of the requests made in it, each kind of window the median of its p99s. What else the machine does meets both
//! kinds alike, and a stall spoils one window and no median. The flood is paced, so that what is measured is what the
//! node makes of it and not who has the two cores.
//!
//! `FLOE_TEST_ABUSE=full` makes the windows five times as long.

#![allow(clippy::print_stdout, reason = "a suite speaks to a person")]

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use floe_bitswap::wire::{Manner, Peer, agree_on, say};
use floe_tests::floe::{Floe, Options, now};
use futures::future::try_join_all;
use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::Multiaddr;
use libp2p::identity::Keypair;

/// Windows of each flood; there are three times as many quiet ones.
const ROUNDS: usize = 5;
const WINDOW: Duration = Duration::from_millis(800);
/// Begun handshakes a second. More would use up the ports of the loopback while they wait to be free again.
const DIALS: u32 = 3_000;
/// Connected peers of the other floods, and what all of them send in a second.
const PEERS: usize = 8;
const STREAMS: u32 = 1_500;
const MESSAGES: u32 = 400;
/// T8: the API's p99 beside a flood is at most twice what it is without.
const MOST: f64 = 2.0;
/// The best of so many tries counts.
const TRIES: usize = 3;
/// Below this a p99 is the scheduler's: a quiet one counts as so much.
const FLOOR: Duration = Duration::from_millis(4);

fn window() -> Duration {
    if std::env::var("FLOE_TEST_ABUSE").is_ok_and(|v| v == "full") { WINDOW * 5 } else { WINDOW }
}

/// Turns at a steady pace. What was missed is not made up for.
struct Pace {
    every: Duration,
    next: Instant,
    until: Instant,
}

impl Pace {
    fn new(per_second: u32, until: Instant) -> Self {
        Self { every: Duration::from_secs(1) / per_second, next: now(), until }
    }

    /// How long until the next turn; `None` where the time is up.
    fn turn(&mut self) -> Option<Duration> {
        let now = now();
        self.next = self.next.max(now - self.every * 10) + self.every;
        (now < self.until).then(|| self.next.saturating_duration_since(now))
    }

    async fn wait(&mut self) -> bool {
        let turn = self.turn();
        if let Some(left) = turn {
            // The timers of the runtime count milliseconds.
            tokio::time::sleep(left).await;
        }
        turn.is_some()
    }
}

/// What a handshake begins with: the agreement on Noise, and its first message, whose key nobody checks yet. It costs a
/// stranger nothing, and the node the other half of a key exchange.
fn opening() -> Vec<u8> {
    let mut opening = b"\x13/multistream/1.0.0\n\x07/noise\n\x00\x20".to_vec();
    opening.extend([9; 32]);
    opening
}

/// What a flood was.
#[derive(Default)]
struct Flood {
    sent: usize,
    /// Connections that were ended at once.
    refused: usize,
}

/// Begins handshakes and leaves them where they are.
fn dial(address: SocketAddr, until: Instant) -> Flood {
    const HELD: usize = 400;
    let (mut pace, opening) = (Pace::new(DIALS, until), opening());
    let (mut held, mut flood) = (VecDeque::new(), Flood::default());
    while let Some(left) = pace.turn() {
        std::thread::sleep(left);
        let Ok(mut socket) = TcpStream::connect(address) else { continue };
        flood.sent += 1;
        if socket.set_nonblocking(true).is_ok() && socket.write_all(&opening).is_ok() {
            held.push_back(socket);
        } else {
            flood.refused += 1;
        }
        // The oldest: does it still wait? So the few that were let in stay, and hold their places.
        for _ in 0..2 {
            let Some(mut oldest) = held.pop_front() else { break };
            match oldest.read(&mut [0; 512]) {
                Ok(0) => flood.refused += 1,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => flood.refused += 1,
                _ if held.len() < HELD => held.push_back(oldest),
                _ => {}
            }
        }
    }
    flood
}

/// A peer that answered the node's identify, as those do that are believed.
async fn introduced(address: Multiaddr) -> Result<Peer> {
    let manner = Manner::default();
    let hello = field(1, &manner.key.public().encode_protobuf());
    let mut peer = Peer::dial_as(manner, address).await?;
    loop {
        let stream = peer.inbound.recv().await.context("the node asks who we are")?;
        if let Some(mut stream) = agree_on(stream, "/ipfs/id/1.0.0\n").await {
            stream.write_all(&framed(&hello)).await?;
            stream.close().await?;
            return Ok(peer);
        }
    }
}

/// A protobuf field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2], &*varint(bytes.len()), bytes].concat()
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&*varint(message.len()), message].concat()
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Opens streams for a protocol that nobody speaks, and hears so.
async fn open_streams(peer: &Peer, until: Instant) -> Result<usize> {
    let (mut pace, mut sent) = (Pace::new(STREAMS / PEERS as u32, until), 0);
    while pace.wait().await {
        let mut stream = peer.opener().open().await?;
        say(&mut stream, "/multistream/1.0.0\n").await?;
        say(&mut stream, &format!("/planted/{sent}\n")).await?;
        let _ = stream.read(&mut [0; 64]).await?;
        sent += 1;
    }
    Ok(sent)
}

/// Says again and again who it is: as many addresses and protocols as a message holds, others in each.
async fn plant(peer: &Peer, until: Instant) -> Result<usize> {
    let (mut pace, mut sent) = (Pace::new(MESSAGES / PEERS as u32, until), 0);
    let key = Keypair::generate_ed25519().public().encode_protobuf();
    while pace.wait().await {
        let mut message = field(1, &key);
        for n in 0..60_usize {
            let address = format!("/ip4/8.{}.{}.{n}/tcp/4001", sent >> 8 & 0xff, sent & 0xff);
            message.extend(field(2, &address.parse::<Multiaddr>()?.to_vec()));
            message.extend(field(3, format!("/planted/{sent}/{n}").as_bytes()));
        }
        let seen = format!("/ip4/8.8.{}.{}/udp/4001/quic-v1", sent >> 8 & 0xff, sent & 0xff);
        message.extend(field(4, &seen.parse::<Multiaddr>()?.to_vec()));
        let mut stream = peer.opener().stream_of("/ipfs/id/push/1.0.0").await?;
        stream.write_all(&framed(&message)).await?;
        stream.close().await?;
        // The node ends the stream when it has read it.
        let _ = stream.read(&mut [0]).await;
        sent += 1;
    }
    Ok(sent)
}

/// The p99 of requests that are made one after the other until then.
async fn p99(floe: &Floe, until: Instant) -> Result<Duration> {
    let mut took = Vec::new();
    while now() < until {
        let begun = now();
        let (code, body) = floe.call("GET", "/pins", None).await?;
        ensure!(code == 200, "GET /pins answered {code}: {body}");
        took.push(begun.elapsed());
    }
    took.sort_unstable();
    took.get(took.len() * 99 / 100).copied().context("no request was answered")
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort_unstable();
    values[values.len() / 2]
}

/// Everything that is measured.
#[derive(Default)]
struct Measured {
    quiet: Vec<Duration>,
    floods: [Vec<Duration>; 3],
    sent: [usize; 3],
    refused: usize,
}

const NAMES: [&str; 3] = ["dials", "streams", "identify messages"];

impl Measured {
    async fn window(&mut self, floe: &Floe, kind: usize, peers: &[Peer], port: u16) -> Result<()> {
        let until = now() + window();
        self.quiet.push(p99(floe, until).await?);
        let until = now() + window();
        let flood = async {
            Ok(match kind {
                0 => {
                    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                    tokio::task::spawn_blocking(move || dial(address, until)).await?
                }
                1 => Flood {
                    sent: sum(try_join_all(peers.iter().map(|p| open_streams(p, until))).await?),
                    refused: 0,
                },
                _ => Flood {
                    sent: sum(try_join_all(peers.iter().map(|p| plant(p, until))).await?),
                    refused: 0,
                },
            })
        };
        let (beside, flood) = tokio::try_join!(p99(floe, until), flood)?;
        self.floods[kind].push(beside);
        self.sent[kind] += flood.sent;
        self.refused += flood.refused;
        Ok(())
    }
}

fn sum(counts: Vec<usize>) -> usize {
    counts.into_iter().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_the_api_answers_beside_a_flood_as_it_does_without() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
    let address: Multiaddr = floe.swarm_tcp().parse()?;
    let port = floe.swarm_tcp().split("/tcp/").nth(1).and_then(|rest| rest.split('/').next()?.parse().ok());
    let port: u16 = port.context("no port")?;
    let peers = try_join_all((0..PEERS).map(|_| introduced(address.clone()))).await?;
    p99(&floe, now() + window()).await?;

    // A stall of the machine spoils a window, and a bad minute a try. What a flood does it does in each.
    for left in (0..TRIES).rev() {
        let worst = compare(&floe, &peers, port).await?;
        if worst <= MOST {
            break;
        }
        ensure!(
            left > 0,
            "beside a flood the API's p99 is {worst:.1} times what it is without, in each of {TRIES} tries"
        );
    }
    Ok(())
}

/// One try: how many times its quiet self the API's p99 is beside the worst of the floods.
async fn compare(floe: &Floe, peers: &[Peer], port: u16) -> Result<f64> {
    let mut all = Measured::default();
    for _ in 0..ROUNDS {
        for kind in 0..NAMES.len() {
            all.window(floe, kind, peers, port).await?;
        }
    }
    let Measured { quiet, floods, sent, refused } = all;
    let quiet = median(quiet);
    // Where nothing was ever refused there is no such line.
    let counted = floe.metric("floe_limit_hits_total{limit=\"peer_connections\"}").await.unwrap_or_default();
    println!(
        "quiet: p99 {quiet:.1?}; {refused} of {} dials were refused at once, {counted} counted",
        sent[0]
    );
    let (seconds, mut worst) = (window().as_secs_f64() * ROUNDS as f64, 0.0_f64);
    for ((name, beside), sent) in NAMES.iter().zip(floods).zip(sent) {
        let beside = median(beside);
        println!("{:.0} {name} a second: p99 {beside:.1?}", sent as f64 / seconds);
        ensure!(sent as f64 > 20.0 * seconds, "{sent} {name} in {seconds:.0} s: this was no flood");
        worst = worst.max(beside.as_secs_f64() / quiet.max(FLOOR).as_secs_f64());
    }
    let most = sent[0];
    ensure!(counted > 0.0 && refused * 2 > most, "{refused} of {most} dials were refused, {counted} counted");
    Ok(worst)
}
