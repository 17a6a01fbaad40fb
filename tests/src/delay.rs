//! A long way between two peers on one machine: a TCP relay that holds every byte back for a while.
//!
//! It limits no rate; what it holds is bounded, well above what any window in use can have on its way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use bytes::{Bytes, BytesMut};
use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::floe::now;

/// Pieces held back in each direction: with 64 KiB each, 256 MiB.
const HELD: usize = 4_096;

/// Relays connections to `target` (`/ip4/…/tcp/…`, with or without `/p2p/…`), each direction later by `one_way`.
/// Returns the address to dial instead; it works until the runtime ends.
pub async fn relay(target: &str, one_way: Duration) -> Result<String> {
    let target: Multiaddr = target.parse()?;
    let mut parts = target.iter();
    let (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) = (parts.next(), parts.next()) else {
        anyhow::bail!("{target} is not /ip4/…/tcp/…");
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let own = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect((ip, port)).await else { continue };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            carry(near_in, far_out, one_way);
            carry(far_in, near_out, one_way);
        }
    });
    let rest: Multiaddr = parts.collect();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", own.port()).parse().context("an address")?;
    Ok(rest.iter().fold(address, Multiaddr::with).to_string())
}

fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, later: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Bytes)>(HELD);
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(64 << 10);
            match from.read_buf(&mut buffer).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
            if sender.send((now() + later, buffer.split().freeze())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((at, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(at.into()).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
}
