//! What tests of this crate share: seeded randomness, names that change, an HTTP server that says what it is told.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use floe_core::clock::BoxFuture;
use floe_core::ports::Entropy;
use parking_lot::Mutex;
use redb::StorageBackend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use url::Url;

use crate::dial::resolve::Resolve;
use crate::dial::target::Family;
use crate::provide::file::{OpenFile, on_disk};

/// Bytes that follow from a seed.
pub(crate) struct Dice(Mutex<u64>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(seed))
    }
}

impl Entropy for Dice {
    fn fill(&self, out: &mut [u8]) {
        let mut state = self.0.lock();
        for byte in out {
            // SplitMix64.
            *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = *state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)) as u8;
        }
    }
}

/// A resolver whose names give one answer after another; the last stays.
#[derive(Default)]
pub(crate) struct Names {
    addresses: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    texts: Mutex<HashMap<String, Vec<String>>>,
    asked: AtomicUsize,
}

impl Names {
    pub(crate) fn answer(&self, name: &str, addresses: &[&str]) {
        let parsed = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        self.addresses.lock().entry(name.into()).or_default().push(parsed);
    }

    pub(crate) fn text(&self, name: &str, text: &str) {
        self.texts.lock().entry(name.into()).or_default().push(text.into());
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Resolve for Names {
    fn addresses(&self, name: String, family: Family) -> BoxFuture<'static, Result<Vec<IpAddr>, String>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut addresses = self.addresses.lock();
        let answer = match addresses.get_mut(&name) {
            Some(answers) if answers.len() > 1 => Ok(answers.remove(0)),
            Some(answers) => Ok(answers[0].clone()),
            None => Err("no such name".to_owned()),
        };
        let answer = answer.map(|ips| ips.into_iter().filter(|ip| family.has(*ip)).collect());
        Box::pin(async { answer })
    }

    fn texts(&self, name: String) -> BoxFuture<'static, Result<Vec<String>, String>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.texts.lock().get(&name).cloned().unwrap_or_default();
        Box::pin(async { Ok(answer) })
    }
}

/// What an [`HttpServer`] says to everybody.
#[derive(Clone)]
pub(crate) struct Answer {
    head: String,
    body: String,
}

impl Answer {
    pub(crate) fn ok(kind: &str, body: String) -> Self {
        Self { head: format!("200 OK\r\ncontent-type: {kind}"), body }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { head: format!("{status} Said"), body: String::new() }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self { head: format!("302 Found\r\nlocation: {to}"), body: String::new() }
    }
}

/// A small HTTP/1.1 server on loopback: one answer, and a list of what was asked.
pub(crate) struct HttpServer {
    address: SocketAddr,
    paths: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl HttpServer {
    pub(crate) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let paths = Arc::<Mutex<Vec<String>>>::default();
        let seen = paths.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (answer, seen) = (answer.clone(), seen.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if socket.read_exact(&mut byte).await.is_err() {
                            return;
                        }
                        request.push(byte[0]);
                    }
                    let line = String::from_utf8_lossy(&request).into_owned();
                    seen.lock().push(line.split(' ').nth(1).unwrap_or_default().to_owned());
                    let head = format!(
                        "HTTP/1.1 {}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                        answer.head,
                        answer.body.len()
                    );
                    let _ = socket.write_all(head.as_bytes()).await;
                    let _ = socket.write_all(answer.body.as_bytes()).await;
                    let _ = socket.shutdown().await;
                });
            }
        });
        Self { address, paths, task }
    }

    pub(crate) fn url(&self) -> Url {
        format!("http://{}/", self.address).parse().unwrap()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.paths.lock().clone()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The system's clock.
pub(crate) struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the tests' own adapter")]
    pub(crate) fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl floe_core::Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the tests' own adapter")]
    fn now(&self) -> floe_core::Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        floe_core::Timestamp::from_millis(since.as_millis() as u64)
    }

    fn monotonic(&self) -> std::time::Duration {
        self.start.elapsed()
    }

    fn sleep(&self, for_: std::time::Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_))
    }
}

/// The file of the table of roots, on a disk that fails when it is told to.
#[derive(Clone, Default)]
pub(crate) struct FaultyFile(Arc<Faults>);

#[derive(Debug, Default)]
struct Faults {
    full: AtomicBool,
    syncs_fail: AtomicBool,
}

impl FaultyFile {
    /// Nothing is written any more, not even in place.
    pub(crate) fn fill(&self, full: bool) {
        self.0.full.store(full, Ordering::SeqCst);
    }

    pub(crate) fn fail_syncs(&self, fail: bool) {
        self.0.syncs_fail.store(fail, Ordering::SeqCst);
    }

    pub(crate) fn open(&self) -> OpenFile {
        let (faults, open) = (self.0.clone(), on_disk());
        Arc::new(move |path| Ok(Box::new(Faulty { file: open(path)?, faults: faults.clone() })))
    }
}

#[derive(Debug)]
struct Faulty {
    file: Box<dyn StorageBackend>,
    faults: Arc<Faults>,
}

impl Faulty {
    fn room(&self) -> io::Result<()> {
        if self.faults.full.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl StorageBackend for Faulty {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.room().and_then(|()| self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.faults.syncs_fail.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk failed on purpose"));
        }
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.room().and_then(|()| self.file.write(offset, data))
    }
}

/// Blocks in memory.
#[derive(Default)]
pub(crate) struct MemoryBlocks(Mutex<HashMap<Vec<u8>, bytes::Bytes>>);

impl MemoryBlocks {
    pub(crate) fn put(&self, block: &floe_core::Block) {
        self.0.lock().insert(block.cid().hash().to_bytes(), block.data().clone());
    }
}

impl floe_core::ports::LocalBlocks for MemoryBlocks {
    fn size(&self, cid: &floe_core::Cid) -> Result<Option<u32>, floe_core::ports::ReadError> {
        Ok(self.0.lock().get(&cid.hash().to_bytes()).map(|data| data.len() as u32))
    }

    fn read(&self, cid: &floe_core::Cid) -> Result<Option<bytes::Bytes>, floe_core::ports::ReadError> {
        Ok(self.0.lock().get(&cid.hash().to_bytes()).cloned())
    }
}

/// A TCP and a UDP socket on one loopback port that count who comes.
pub(crate) struct Trap {
    pub(crate) port: u16,
    hits: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Trap {
    pub(crate) async fn start() -> Self {
        let hits = Arc::new(AtomicUsize::new(0));
        let (tcp, udp, port) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = tcp.local_addr().unwrap().port();
            // The port may be taken for UDP: try the next.
            if let Ok(udp) = tokio::net::UdpSocket::bind(("127.0.0.1", port)).await {
                break (tcp, udp, port);
            }
        };
        let mut tasks = Vec::new();
        // The same port on IPv6 loopback, where there is one.
        if let Ok(tcp) = TcpListener::bind(("::1", port)).await {
            tasks.push(tokio::spawn(count_tcp(tcp, hits.clone())));
        }
        tasks.push(tokio::spawn(count_tcp(tcp, hits.clone())));
        tasks.push(tokio::spawn(count_udp(udp, hits.clone())));
        Self { port, hits, tasks }
    }

    pub(crate) fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }
}

async fn count_tcp(tcp: TcpListener, hits: Arc<AtomicUsize>) {
    while tcp.accept().await.is_ok() {
        hits.fetch_add(1, Ordering::SeqCst);
    }
}

async fn count_udp(udp: tokio::net::UdpSocket, hits: Arc<AtomicUsize>) {
    let mut packet = [0; 2_048];
    while udp.recv_from(&mut packet).await.is_ok() {
        hits.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Trap {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
