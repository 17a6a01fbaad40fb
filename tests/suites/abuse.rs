//! Hostile peers against the built binary: what they cost it in memory, and whether it still answers others.
//!
//! The sizes are those that a minute on two cores bears. `FLOE_TEST_ABUSE=full` multiplies what the threats name
//! in hundreds (T1, T7, T8) by five.

#![allow(clippy::print_stdout, reason = "a suite speaks to a person")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use floe_bitswap::limits::FRAME_BYTES;
use floe_bitswap::message::Version;
use floe_bitswap::wire::{self, Manner, Peer};
use floe_core::cid::code;
use floe_core::{Block, Cid, Multihash};
use floe_ipfs::limits::WEBSOCKET_MESSAGE;
use floe_tests::floe::{Floe, Options, now};
use floe_tests::process::{memory_mib, reset_peak};
use floe_tests::seeder::{Seeder, reads_back};
use floe_tests::{dag, noise, skipped};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, stream};
use libp2p::Multiaddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(60);

/// Peers that connect side by side: a handshake costs a millisecond of CPU on each side.
const DIALS_AT_ONCE: usize = 16;

fn scale() -> usize {
    if std::env::var("FLOE_TEST_ABUSE").is_ok_and(|v| v == "full") { 5 } else { 1 }
}

/// A running Floe, where its memory can be read.
fn victim(suite: &str, dir: &tempfile::TempDir, config: Option<&str>) -> Result<Option<Floe>> {
    let options = Options { config: config.map(str::to_owned), ..Options::default() };
    let floe = Floe::start(&dir.path().join("floe"), &options)?;
    if memory_mib(floe.pid()).0 == 0.0 {
        skipped(suite, "the memory of a process cannot be read (needs /proc)");
        return Ok(None);
    }
    Ok(Some(floe))
}

fn address(floe: &Floe) -> Result<Multiaddr> {
    Ok(floe.swarm_tcp().parse()?)
}

/// So many connections, each of a peer of its own; those that are refused are left out.
async fn connect(floe: &Floe, count: usize) -> Result<Vec<Peer>> {
    let address = address(floe)?;
    let dials = (0..count).map(|_| Peer::dial_as(Manner::default(), address.clone()));
    let peers: Vec<_> = stream::iter(dials).buffer_unordered(DIALS_AT_ONCE).collect().await;
    Ok(peers.into_iter().flatten().collect())
}

async fn peers(floe: &Floe, wanted: impl Fn(usize) -> bool) -> Result<()> {
    let begun = now();
    loop {
        let count = floe.metric("floe_peers").await? as usize;
        if wanted(count) {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "{count} peers are connected");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A block that nobody has.
fn nowhere(peer: usize, n: usize) -> Cid {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&(peer as u64).to_be_bytes());
    digest[8..16].copy_from_slice(&(n as u64).to_be_bytes());
    Cid::new_v1(code::RAW, Multihash::wrap(0x12, &digest).expect("a digest of 32 bytes fits"))
}

/// Sends a wantlist, a few thousand at a time, and returns when all of it was read. Reads no answer.
async fn want_all(peer: &Peer, number: usize, wants: usize) -> Result<()> {
    let mut stream = peer.opener().stream().await?;
    let cids: Vec<Cid> = (0..wants).map(|n| nowhere(number, n)).collect();
    for some in cids.chunks(4_096) {
        stream.write_all(&wire::bytes(&wire::wants(some), Version::V1_2)).await?;
    }
    stream.close().await?;
    // The other side ends the stream when it has read its end.
    let said = stream.read(&mut [0]).await?;
    ensure!(said == 0, "the stream of the wants was answered on");
    Ok(())
}

/// So many peers, numbered from `first`, come, want and go. What the memory was with them, in MiB.
async fn crowd(floe: &Floe, count: usize, first: usize, wants: usize) -> Result<f64> {
    let all = connect(floe, count).await?;
    ensure!(all.len() == count, "{} of {count} peers connected", all.len());
    let wanting = all.iter().zip(first..).map(|(peer, number)| want_all(peer, number, wants));
    let done: Vec<_> = stream::iter(wanting).buffer_unordered(DIALS_AT_ONCE).collect().await;
    done.into_iter().collect::<Result<Vec<()>>>()?;
    let with_them = memory_mib(floe.pid()).0;
    drop(all);
    peers(floe, |count| count == 0).await?;
    Ok(with_them)
}

#[tokio::test(flavor = "multi_thread")]
async fn t01_what_peers_want_goes_with_them() -> Result<()> {
    const WANTS: usize = 50_000;
    const CYCLES: usize = 4;
    let dir = tempfile::tempdir()?;
    let Some(floe) = victim("t01_what_peers_want_goes_with_them", &dir, None)? else { return Ok(()) };
    let (count, pid) = (40 * scale(), floe.pid());
    // The first peers bring what stays for good: threads, and the room that the allocator keeps for each.
    crowd(&floe, 4, 1_000_000, WANTS).await?;
    let (before, _) = memory_mib(pid);
    let (mut most, mut last) = (0.0, before);
    for cycle in 0..CYCLES {
        let earlier = last;
        most = crowd(&floe, count, cycle * count, WANTS).await?.max(most);
        last = memory_mib(pid).0;
        println!("cycle {cycle}: {last:.0} MiB");
        // The first cycles find how much there is at once; after that, nothing may be added.
        ensure!(cycle < 2 || last < earlier + 8.0, "cycle {cycle} left {:.0} MiB more", last - earlier);
    }
    println!(
        "{count} peers x {WANTS} wants x {CYCLES}: {before:.0} MiB, {most:.0} with them, {last:.0} after"
    );
    // What was freed the allocator keeps for the next peers, half a MiB for each that was there at once: at 200 of
    // them 90 MiB, the same after every cycle.
    let allowed = (0.6 * count as f64).max(32.0);
    ensure!(last < before + allowed, "grew from {before:.0} MiB to {last:.0} MiB");
    // What is kept of a peer's wants is a thousand of them, and two answers.
    let kept = 1.5 * count as f64;
    ensure!(most < before + 64.0 + kept, "{most:.0} MiB while {count} peers want, from {before:.0} MiB");
    Ok(())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn t02_a_length_above_the_cap_costs_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let Some(floe) = victim("t02_a_length_above_the_cap_costs_nothing", &dir, None)? else { return Ok(()) };
    // The first connection of all brings what is loaded once.
    drop(Peer::dial(address(&floe)?).await);
    peers(&floe, |count| count == 0).await?;
    let (before, _) = memory_mib(floe.pid());
    reset_peak(floe.pid());
    for len in [FRAME_BYTES as u64 + 1, 1 << 32, 1 << 63] {
        let mut peer = Peer::dial(address(&floe)?).await;
        let mut stream = peer.stream().await;
        stream.write_all(&varint(len)).await?;
        stream.flush().await?;
        // As much of the frame as is taken; the connection is ended before it is much.
        let junk = vec![0; 64 << 10];
        let taken = tokio::time::timeout(SOON, async {
            let mut taken = 0;
            while taken < FRAME_BYTES && stream.write_all(&junk).await.is_ok() {
                taken += junk.len();
            }
            taken
        });
        let taken = taken.await.context("the stream is neither read nor ended")?;
        ensure!(taken < FRAME_BYTES, "{taken} bytes of a frame of {len} were taken");
        tokio::time::timeout(SOON, async { while peer.inbound.recv().await.is_some() {} })
            .await
            .with_context(|| format!("the connection is open after a frame of {len} bytes"))?;
    }
    let (_, peak) = memory_mib(floe.pid());
    println!("{before:.1} MiB before, {peak:.1} MiB at most");
    ensure!(peak < before + 8.0, "grew from {before:.1} MiB to {peak:.1} MiB");
    Ok(())
}

/// A stranger's WebSocket, on which nothing was said yet.
async fn websocket(floe: &Floe) -> Result<TcpStream> {
    let address = floe.swarm_ws();
    let port = address.split('/').nth(4).context("no port")?.parse::<u16>()?;
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let request = "GET / HTTP/1.1\r\nHost: floe\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(socket.read_u8().await?);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    Ok(socket)
}

/// The header of a message of so many bytes, as a client writes it: fourteen bytes.
fn message_of(length: u64) -> Vec<u8> {
    let mut header = vec![0x82, 0xff];
    header.extend(length.to_be_bytes());
    header.extend([0; 4]);
    header
}

/// The story: fourteen bytes of a stranger, before any handshake of libp2p, made the node take and clear 256 MiB. A
/// WebSocket message was given its room as soon as its header announced it.
#[tokio::test(flavor = "multi_thread")]
async fn t02_a_websocket_message_above_the_cap_costs_nothing() -> Result<()> {
    const AT_ONCE: usize = 32;
    let dir = tempfile::tempdir()?;
    let Some(floe) = victim("t02_a_websocket_message_above_the_cap_costs_nothing", &dir, None)? else {
        return Ok(());
    };
    // The first connection of all brings what is loaded once.
    drop(websocket(&floe).await?);
    let (before, _) = memory_mib(floe.pid());
    reset_peak(floe.pid());
    for length in [WEBSOCKET_MESSAGE as u64 + 1, 1 << 28, 1 << 32, 1 << 63] {
        let mut socket = websocket(&floe).await?;
        socket.write_all(&message_of(length)).await?;
        let ended = tokio::time::timeout(Duration::from_secs(5), socket.read_to_end(&mut Vec::new())).await;
        ensure!(ended.is_ok(), "the connection is open after a message of {length} bytes was announced");
    }
    let (_, peak) = memory_mib(floe.pid());
    println!("{before:.1} MiB before, {peak:.1} MiB at most");
    ensure!(peak < before + 8.0, "grew from {before:.1} MiB to {peak:.1} MiB");

    // What is within the cap is believed, and costs what it says.
    let mut open = Vec::new();
    for _ in 0..AT_ONCE {
        let mut socket = websocket(&floe).await?;
        socket.write_all(&message_of(WEBSOCKET_MESSAGE as u64)).await?;
        open.push(socket);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (_, peak) = memory_mib(floe.pid());
    let announced = (AT_ONCE * WEBSOCKET_MESSAGE) as f64 / f64::from(1 << 20);
    println!("{AT_ONCE} announcements: {peak:.1} MiB at most");
    ensure!(peak < before + announced + 8.0, "grew from {before:.1} MiB to {peak:.1} MiB");
    Ok(())
}

/// Opens streams one after the other and leaves on each what it takes of a frame that never ends.
async fn hoard(peer: &Peer, streams: usize, written: &AtomicUsize) {
    let mut held = Vec::new();
    let part = vec![0x5a; 256 << 10];
    for _ in 0..streams {
        let Ok(mut stream) = peer.opener().stream().await else { return };
        let all = async {
            stream.write_all(&varint(FRAME_BYTES as u64)).await?;
            for _ in 0..4 {
                stream.write_all(&part).await?;
                written.fetch_add(part.len(), Ordering::Relaxed);
            }
            stream.flush().await
        };
        // What is not taken is left where it is.
        if let Ok(Err(_)) = tokio::time::timeout(Duration::from_secs(5), all).await {
            return;
        }
        held.push(stream);
    }
    // Until the other side has had enough.
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn t07_hoarded_windows_stay_within_the_budget() -> Result<()> {
    const STREAMS: usize = 64;
    const BUDGET_MIB: f64 = 1_024.0;
    let dir = tempfile::tempdir()?;
    let config = Some("[network]\nmemory_budget = \"1GiB\"\n");
    let Some(floe) = victim("t07_hoarded_windows_stay_within_the_budget", &dir, config)? else {
        return Ok(());
    };
    let (count, pid) = (100 * scale(), floe.pid());
    reset_peak(pid);
    let written = Arc::<AtomicUsize>::default();
    let hoarding: Vec<_> = connect(&floe, count)
        .await?
        .into_iter()
        .map(|peer| {
            let written = written.clone();
            tokio::spawn(async move { hoard(&peer, STREAMS, &written).await })
        })
        .collect();
    let (begun, mut slowest) = (now(), Duration::ZERO);
    while begun.elapsed() < Duration::from_secs(10) {
        let asked = now();
        let (code, body) = floe.call("GET", "/pins", None).await?;
        ensure!(code == 200, "GET /pins answered {code}: {body}");
        slowest = slowest.max(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (now_mib, peak) = memory_mib(pid);
    let sent = written.load(Ordering::Relaxed) >> 20;
    println!(
        "{} connections, {sent} MiB sent: {now_mib:.0} MiB, {peak:.0} MiB at most; the API took {slowest:.1?}",
        hoarding.len()
    );
    ensure!(peak < BUDGET_MIB, "{peak:.0} MiB of a budget of {BUDGET_MIB} MiB");
    hoarding.iter().for_each(|task| task.abort());
    drop(hoarding);
    peers(&floe, |count| count == 0).await?;
    pins_and_gives_back(&floe, 9).await
}

/// An honest peer still pins here and gets its blocks back.
async fn pins_and_gives_back(floe: &Floe, seed: u64) -> Result<()> {
    let seeder = Seeder::start().await?;
    let blocks: Vec<Block> = dag::over(&noise(2 << 20, seed), 64 << 10);
    seeder.add(&blocks);
    let root = blocks.last().context("a root")?.cid();
    let id = floe.pin(&root.to_string(), &seeder.addresses()).await?;
    floe.wait_for(&id, "pinned", SOON).await?;
    seeder.stop().await;
    reads_back(floe, &blocks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn t08_a_flood_of_dials_leaves_api_and_exchange_working() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let floe = Floe::start(&dir.path().join("floe"), &Options::default())?;
    let (count, address) = (500 * scale(), address(&floe)?);
    // Every dial is a new identity with a whole handshake, which is let go as soon as it is there.
    let flood = tokio::spawn(async move {
        let dials = (0..count).map(|_| Peer::dial_as(Manner::default(), address.clone()));
        let through = stream::iter(dials).buffer_unordered(50);
        through.filter(|peer| std::future::ready(peer.is_ok())).count().await
    });
    let (mut asked, mut slowest, mut rounds) = (0, Duration::ZERO, 0);
    while !flood.is_finished() || rounds == 0 {
        for _ in 0..10 {
            let begun = now();
            let (code, body) = floe.call("GET", "/pins", None).await?;
            ensure!(code == 200, "GET /pins answered {code}: {body}");
            slowest = slowest.max(begun.elapsed());
            asked += 1;
        }
        pins_and_gives_back(&floe, 100 + rounds).await?;
        rounds += 1;
    }
    let through = flood.await?;
    println!(
        "{through} of {count} dials got through; {asked} API requests, the slowest {slowest:.1?}; {rounds} pins"
    );
    ensure!(through > 0, "no dial got through: this was no flood");
    ensure!(slowest < Duration::from_secs(2), "an API request took {slowest:?}");
    peers(&floe, |count| count < 10).await
}
