//! Hostile peers against the built binary: what they cost it in memory, and whether it still answers others.
//!
//! The sizes are those that a minute on two cores bears. `FLOE_TEST_ABUSE=full` multiplies what the threats name
//! in hundreds (T1, T7, T8) by five.

#![allow(clippy::print_stdout, reason = "a suite speaks to a person")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
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
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(60);

/// A peer of an origin, whom nobody meets.
const PEER: &str = "12D3KooWGjMCwJJvQmQ7mGEGCtmRsJDkYxHDpn2tWkDCbqk2Pkye";

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

/// Every series of `/metrics`: a name with its labels.
async fn series(floe: &Floe) -> Result<BTreeSet<String>> {
    let ops = floe.endpoints["ops"].as_str().context("no ops address")?;
    let text = reqwest::get(format!("{ops}/metrics")).await?.text().await?;
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    Ok(lines.filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series.to_owned()).collect())
}

/// The first address in a text that is of use behind this machine's own door alone.
fn private_address(text: &str) -> Option<&str> {
    let mut words = text.split(|c: char| !(c.is_ascii_hexdigit() || matches!(c, '.' | ':')));
    words.find(|word| {
        let ip = word.parse::<IpAddr>().ok().or_else(|| word.parse::<SocketAddr>().ok().map(|at| at.ip()));
        match ip {
            Some(IpAddr::V4(ip)) => {
                ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()
            }
            Some(IpAddr::V6(ip)) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
            None => false,
        }
    })
}

/// So many pins of blocks that nobody has, under a hostile name and from an address of the inner network, and so many
/// peers that want others. What each was called.
async fn name_much(floe: &Floe, pins: usize, guests: usize, first: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for n in first..first + pins {
        let cid = nowhere(usize::MAX, n).to_string();
        let name = format!("pin {n}\n{{\"level\":\"ERROR\"}}\r\u{1b}[2J\u{7f}");
        let origins = [format!("/ip4/10.99.0.{}/tcp/4001/p2p/{PEER}", 1 + n % 200)];
        let body = json!({ "cid": cid, "name": name, "origins": origins, "meta": { "\u{7f}": "\n" } });
        let (status, answer) = floe.call("POST", "/pins", Some(body)).await?;
        ensure!(status == 202, "POST /pins answered {status}: {answer}");
        names.push(cid);
    }
    for (peer, number) in connect(floe, guests).await?.iter().zip(first..) {
        want_all(peer, number, 50).await?;
        names.push(peer.id.to_string());
        names.push(nowhere(number, 0).to_string());
    }
    Ok(names)
}

/// A label for each CID fills the memory of whoever collects the figures; a line that is no JSON, or an address of the
/// inner network, is what no test of the running binary looked for. A path with a DEL in it made such a line.
#[tokio::test(flavor = "multi_thread")]
async fn t31_t45_what_strangers_name_makes_no_series_and_breaks_no_line_of_the_log() -> Result<()> {
    const HOSTILE: &str = "floe\u{7f}\n{}\u{1b}[2J";
    let keep = tempfile::tempdir()?;
    let (dir, log) = (keep.path().join(HOSTILE), keep.path().join("stderr"));
    let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
    let options = Options {
        args: words(&["--log-format", "json", "--log-filter", "debug"]),
        // Stdout is for the operator; stderr has the log alone.
        under: words(&["sh", "-c", r#"exec "$0" "$@" 2>>"$STDERR_TO""#]),
        env: vec![("STDERR_TO".into(), log.display().to_string())],
        ..Options::default()
    };
    ensure!(Floe::start(&dir, &options)?.stop()? == 0, "it stops");
    // The next start tells of this, with the path.
    std::fs::remove_file(dir.join("pin.token"))?;
    let floe = Floe::start(&dir, &options)?;

    // The first bring what is there once; so does the first look.
    name_much(&floe, 12, 4, 0).await?;
    series(&floe).await?;
    let before = series(&floe).await?;
    let names = name_much(&floe, 50, 20, 100).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = series(&floe).await?;
    let new: Vec<_> = after.difference(&before).collect();
    ensure!(new.len() < 10, "50 pins and 20 peers made {} series: {new:?}", new.len());
    for name in &names {
        let named = after.iter().find(|series| series.contains(name.as_str()));
        ensure!(named.is_none(), "{named:?} names what a stranger named");
    }
    let ops = floe.endpoints["ops"].as_str().context("no ops address")?;
    let all = reqwest::get(format!("{ops}/metrics")).await?.text().await?;
    ensure!(private_address("no 8.8.8.8, but 10.99.0.7:4001").is_some_and(|found| found.starts_with("10.")));
    ensure!(private_address(&all).is_none(), "the metrics tell of {:?}", private_address(&all));
    ensure!(!all.contains("[2J"), "a name is in the metrics");

    ensure!(floe.stop()? == 0, "it stops");
    let text = std::fs::read_to_string(&log)?;
    let mut hostile = 0;
    for line in text.lines() {
        let event: Value = serde_json::from_str(line).with_context(|| format!("no document: {line:?}"))?;
        ensure!(event["level"].is_string() && event["timestamp"].is_string(), "no event: {line}");
        ensure!(!line.contains(|c: char| c.is_control()), "{line:?}");
        hostile += usize::from(event["message"].as_str().is_some_and(|said| said.contains(HOSTILE)));
    }
    ensure!(hostile > 0, "no line has the path in it: {text}");
    Ok(())
}
