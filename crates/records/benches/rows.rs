//! Durable adds per second, and how long a page takes as pins grow. `cargo bench -p floe-records`.
//!
//! Beside each figure stands what bounds it on this machine: a bare `fdatasync` after a 4 KiB append.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench measures and prints"
)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use floe_core::clock::BoxFuture;
use floe_core::{AccountId, Clock, PinStatus, Timestamp};
use floe_records::{Components, NameMatch, PinFilter, Records, Settings};
use support::{Counted, World, named, spec};

struct RealClock(Instant, u64);

impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.1).after(self.0.elapsed())
    }
    fn monotonic(&self) -> Duration {
        self.0.elapsed()
    }
    fn sleep(&self, for_: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(for_))
    }
}

#[tokio::main]
async fn main() {
    let world = World::new();
    println!("raw 4 KiB append + fdatasync: {:?} (median)", raw_sync(&world));
    let components = Components {
        clock: Arc::new(RealClock(Instant::now(), support::START)),
        entropy: Arc::<Counted>::clone(&world.entropy),
    };
    let records = Records::open(Settings::at(world.path()), components).await.unwrap();
    let mut accounts = vec![support::default_account(&records).await];
    for name in ["b", "c", "d"] {
        accounts.push(records.create_account(name, None, None).await.unwrap().id);
    }
    adds(&records, &accounts).await;
    records.close().await;
    listing().await;
}

/// All queued, so just below the bound of a million over all.
async fn listing() {
    let world = World::new();
    let records = world.open().await;
    let account = support::default_account(&records).await;
    let mut from = 0;
    for pins in [10_000, 100_000, 990_000] {
        fill(&world, &records, account, from, pins).await;
        pages(&world, &records, account, pins).await;
        from = pins;
    }
    records.close().await;
}

fn raw_sync(world: &World) -> Duration {
    let mut file = std::fs::File::create(world.dir.path().join("raw")).unwrap();
    let mut times: Vec<Duration> = (0..200)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&[7; 4_096]).unwrap();
            file.sync_data().unwrap();
            start.elapsed()
        })
        .collect();
    times.sort();
    times[100]
}

async fn adds(records: &Records, accounts: &[AccountId]) {
    const CALLERS: u32 = 64;
    let until = Duration::from_secs(5);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for caller in 0..CALLERS {
        let (records, account) = (records.clone(), accounts[caller as usize % accounts.len()]);
        tasks.spawn(async move {
            let (mut times, mut busy, mut n) = (Vec::new(), 0_u32, 0);
            while start.elapsed() < until {
                let sent = Instant::now();
                match records.add_pins(account, vec![spec(caller * 1_000_000 + n)], false, None).await {
                    Ok(_) => times.push(sent.elapsed()),
                    Err(floe_records::Error::Busy { retry_after, .. }) => {
                        busy += 1;
                        tokio::time::sleep(retry_after.min(Duration::from_millis(50))).await;
                    }
                    Err(other) => panic!("{other}"),
                }
                n += 1;
            }
            (times, busy)
        });
    }
    let (mut times, mut busy) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (of_task, refused) = done.unwrap();
        times.extend(of_task);
        busy += refused;
    }
    let rate = times.len() as f64 / start.elapsed().as_secs_f64();
    println!(
        "durable add_pins, 64 callers, 4 accounts: {rate:.0}/s, p50 {:?}, p99 {:?}, {busy} refused as busy",
        at(&mut times, 50),
        at(&mut times, 99)
    );
}

fn at(times: &mut [Duration], percent: usize) -> Duration {
    times.sort();
    times[(times.len() - 1) * percent / 100]
}

/// Fills a database of its own up to `pins`, on a clock that is moved on so that `created` never waits. The names
/// and roots repeat, so that each filter has many matches.
async fn fill(world: &World, records: &Records, account: AccountId, from: u32, pins: u32) {
    let start = Instant::now();
    for batch in (from..pins).step_by(1_000) {
        world.clock.advance(Duration::from_secs(1));
        let specs = (batch..batch + 1_000).map(|n| named(n % 50_000, &format!("name {}", n % 100))).collect();
        records.add_pins(account, specs, false, None).await.unwrap();
    }
    println!("filled to {pins} pins in {:?}", start.elapsed());
}

async fn pages(world: &World, records: &Records, account: AccountId, pins: u32) {
    let queued = PinFilter { statuses: vec![PinStatus::Queued], limit: 10, ..PinFilter::default() };
    let middle = Timestamp::from_millis(support::START + u64::from(pins / 2));
    let filters = [
        ("status", queued.clone()),
        (
            "four statuses, 1000 rows",
            PinFilter { statuses: PinStatus::ALL.to_vec(), limit: 1_000, ..queued.clone() },
        ),
        (
            "ten CIDs, four statuses",
            PinFilter {
                cids: (0..10).map(support::root).collect(),
                statuses: PinStatus::ALL.to_vec(),
                ..queued.clone()
            },
        ),
        ("exact name", PinFilter { name: Some((NameMatch::Exact, "name 7".into())), ..queued.clone() }),
        ("after the newest but 1000", PinFilter { after: Some(world.clock.now()), ..queued.clone() }),
        ("before the middle (counts half)", PinFilter { before: Some(middle), ..queued.clone() }),
        (
            "between two moments, four statuses",
            PinFilter {
                after: Some(Timestamp::from_millis(support::START + u64::from(pins / 3))),
                before: Some(middle),
                statuses: PinStatus::ALL.to_vec(),
                ..queued.clone()
            },
        ),
    ];
    for (what, filter) in filters {
        let mut times = Vec::new();
        for _ in 0..200 {
            let sent = Instant::now();
            std::hint::black_box(records.pins(account, filter.clone()).await.unwrap());
            times.push(sent.elapsed());
        }
        println!("{pins} pins, page by {what}: p50 {:?}, p99 {:?}", at(&mut times, 50), at(&mut times, 99));
    }
}
